"""The peak memory of this process, and of no other."""

import subprocess
import sys

from trimtab import process


def test_a_later_reading_of_the_peak_is_never_lower(monkeypatch):
    readings = iter((10, 9, 12))
    monkeypatch.setattr(process, "_highest", 0)
    monkeypatch.setattr(process, "_read_peak", lambda: next(readings))
    assert [process.peak_memory() for _ in range(3)] == [10, 10, 12]


def test_a_childs_peak_has_what_it_took_and_nothing_of_its_parents():
    size = 200 * 2**20
    held = b"x" * size
    assert process.peak_memory() > size
    code = "from trimtab.process import peak_memory as p; a = p(); b = b'x' * (64 * 2**20); print(a, p() - a)"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    start, more = map(int, child.stdout.split())
    assert 5 * 2**20 < start < len(held) and 60 * 2**20 < more < 80 * 2**20
