"""How this process holds large blocks of memory: glibc's settings, where there is glibc."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # of <malloc.h>


@cache
def keep_freed_memory() -> bool:
    """Let this process use large blocks again instead of handing each back to the kernel; True if it could be set.

    By default glibc maps every large tensor afresh and the kernel fills it with zeros, page by page. On 2 cores
    that was a fifth of a training step.
    """
    return _mallopt(_MMAP_MAX, 0) and _mallopt(_TRIM_THRESHOLD, 2**31 - 1)


@contextmanager
def mapped_apart() -> Iterator[None]:
    """Inside, large blocks are mapped apart from the others and go back to the kernel when freed.

    For what lives long beside other blocks and then goes as a whole: it leaves no holes between them.
    """
    changed = keep_freed_memory() and _mallopt(_MMAP_MAX, 65536) and _mallopt(_MMAP_THRESHOLD, 2**20)
    try:
        yield
    finally:
        if changed:
            _mallopt(_MMAP_MAX, 0)


def release_freed_memory() -> None:
    """Hand freed blocks back to the kernel after all: what sampling needed once is not what an update needs next."""
    trim = _glibc("malloc_trim")
    if trim is not None:
        trim(0)


def _mallopt(parameter: int, value: int) -> bool:
    mallopt = _glibc("mallopt")
    return mallopt is not None and bool(mallopt(parameter, value))


def _glibc(name: str) -> Any:
    """A function of glibc; musl and other systems have none of these."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform.startswith("linux") else None
