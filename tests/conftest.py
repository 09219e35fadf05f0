"""One thread: the numbers in these tests, and the machine they share, stay calm."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"  # read when torch is first imported


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    """``os.fsync`` checks its file and returns at once.

    What it adds is safety from power cuts, which no test can cause; a killed process loses nothing without it.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", os.fstat)
        yield


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random three-layer Llama with a ChatML tokenizer; ``ModelConfig(name=str(tiny))`` loads it."""
    from trimtab import testing

    return testing.save_model(tmp_path_factory.mktemp("tiny") / "model")
