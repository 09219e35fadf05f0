"""How this process allocates large blocks of memory, through glibc's settings if glibc is in use."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # of <malloc.h>


@cache
def keep_freed_memory() -> bool:
    """Reuse large blocks in this process instead of returning them to the kernel; True: it could be set.

    By default glibc maps every large tensor afresh and the kernel fills it with zeros, page by page. On 2 cores
    that was a fifth of a training step.
    """
    return _mallopt(_MMAP_MAX, 0) and _mallopt(_TRIM_THRESHOLD, 2**31 - 1)


@contextmanager
def mapped_apart() -> Iterator[None]:
    """Inside the context, large blocks are mapped separately and return to the kernel when freed.

    For blocks that live long among others and are then freed together, so that they leave no holes.
    """
    changed = keep_freed_memory() and _mallopt(_MMAP_MAX, 65536) and _mallopt(_MMAP_THRESHOLD, 2**20)
    try:
        yield
    finally:
        if changed:
            _mallopt(_MMAP_MAX, 0)


def release_freed_memory() -> None:
    """Return freed blocks to the kernel; an update needs other blocks than sampling did."""
    trim = _glibc("malloc_trim")
    if trim is not None:
        trim(0)


def _mallopt(parameter: int, value: int) -> bool:
    mallopt = _glibc("mallopt")
    return mallopt is not None and bool(mallopt(parameter, value))


def _glibc(name: str) -> Any:
    """A function of glibc; musl and other systems lack these functions."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform.startswith("linux") else None
