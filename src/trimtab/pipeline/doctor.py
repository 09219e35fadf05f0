"""Checks of the machine and the installation; a finding has a name, a state (ok, note, problem) and a text."""

import importlib.util
import platform
import shutil
from pathlib import Path

import torch

from trimtab.errors import ModelError, install_hint
from trimtab.fast_cpu.packed import packed
from trimtab.models import embedded
from trimtab.pipeline.plan import matmul_rate
from trimtab.pipeline.reporting import machine, versions

OPTIONAL = {"vaderSentiment": "train", "tensorboard": "train", "datasets": "data", "pyarrow": "data"}
"""Packages that some features need, and the extra that installs them."""

Finding = dict[str, str]


def examine() -> list[Finding]:
    """All findings, in order."""
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    findings = [
        _finding("python", "ok", platform.python_version()),
        _finding("machine", "ok", machine()),
        _finding("versions", "ok", ", ".join(f"{k} {v}" for k, v in versions().items())),
        _finding("torch threads", "ok", str(torch.get_num_threads())),
        _finding("disk", "ok" if free > 2 else "problem", f"{free:.0f} GB free here; a run needs about 2"),
        _finding("matrix product", "ok", f"{matmul_rate() / 1e9:.0f} GFLOP/s measured in float32"),
    ]
    findings.append(_layout())
    for package, extra in OPTIONAL.items():
        there = importlib.util.find_spec(package) is not None
        text = "installed" if there else f"not installed; {install_hint(extra)}"
        findings.append(_finding(package, "ok" if there else "note", text))
    try:
        findings.append(_finding("default model", "ok", str(embedded.embedded_folder())))
    except ModelError as error:
        findings.append(_finding("default model", "note", str(error)))
    findings.append(_gradient())
    return findings


def _layout() -> Finding:
    """Whether oneDNN can pack weights for the small matrix products of sampling."""
    layer = torch.nn.Linear(64, 64)
    with packed(layer):
        is_packed = "forward" in vars(layer)
    if is_packed:
        return _finding("sampling", "ok", "weights are packed for small batches (oneDNN, float32)")
    text = "no oneDNN in this torch: weights are not packed; the same answers, more slowly"
    return _finding("sampling", "note", text)


def _gradient() -> Finding:
    """One optimiser step on a tiny problem must lower its loss."""
    weight = torch.nn.Parameter(torch.ones(4))
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
    before = weight.square().sum()
    before.backward()
    optimizer.step()
    lower = bool(weight.square().sum() < before)
    return _finding(
        "optimiser step", "ok" if lower else "problem", "lowers a loss" if lower else "does not lower a loss"
    )


def _finding(name: str, state: str, text: str) -> Finding:
    return {"name": name, "state": state, "text": text}
