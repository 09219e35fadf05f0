"""One thread: the numbers in these tests, and the machine they share, stay calm."""

import os
from pathlib import Path

import pytest

os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"  # read when torch is first imported


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random three-layer Llama with a ChatML tokenizer; ``ModelConfig(name=str(tiny))`` loads it."""
    from trimtab import testing

    return testing.save_model(tmp_path_factory.mktemp("tiny") / "model")
