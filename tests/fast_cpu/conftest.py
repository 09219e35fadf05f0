"""Every test here runs with the fast implementations installed; afterwards the plain ones are back."""

from collections.abc import Iterator

import pytest

from trimtab import fast_cpu


@pytest.fixture(autouse=True)
def fast() -> Iterator[None]:
    fast_cpu.install()
    yield
    fast_cpu.uninstall()
