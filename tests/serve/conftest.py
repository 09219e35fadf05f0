"""One server for all tests that do not change it."""

from collections.abc import Iterator

import pytest

from trimtab.serve.app import Service, Settings

from .kit import MODEL, Live, served


@pytest.fixture(scope="session")
def live() -> Iterator[Live]:
    """A toy model with four slots."""
    service = Service(
        models={MODEL: served(), "toy-sft": served("toy-sft", seed=1)},
        settings=Settings(slots=4, queue=16, default_tokens=200),
    )
    made = Live(service)
    yield made
    made.stop()
