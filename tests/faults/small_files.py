"""A process that may write files of 4 kB at most: the write that goes beyond really fails half-way.

A process of its own, because the limit also holds for the file that a test run's output may be sent to.
"""

import resource
import sys
from pathlib import Path

import pytest
import torch

from trimtab.errors import StorageError
from trimtab.files import write_atomic
from trimtab.models import save_tensors
from trimtab.storage import MetricsLog, read_metrics


def check(folder: Path) -> None:
    write_atomic(folder / "notes.txt", "old")
    with pytest.raises(StorageError, match=r"notes\.txt: File too large"):
        write_atomic(folder / "notes.txt", "x" * 9000)
    with pytest.raises(StorageError, match=r"weights\.safetensors: cannot be written.*File too large"):
        save_tensors(folder / "weights.safetensors", {"a": torch.zeros(9000)})
    assert [p.name for p in folder.iterdir()] == ["notes.txt"]
    assert (folder / "notes.txt").read_text() == "old"
    log = MetricsLog(folder, 0)
    with pytest.raises(StorageError, match=r"metrics\.jsonl: File too large"):
        for step in range(1, 200):
            log({"step": step, "loss": 0.123456})
    with pytest.raises(StorageError, match=r"metrics\.jsonl: File too large"):
        log.close()  # the last line still waits to be written
    assert len(read_metrics(folder / "metrics.jsonl")) > 50


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    check(Path(sys.argv[1]))
