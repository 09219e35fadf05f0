"""What a measurement was made on."""

import subprocess
import sys
from pathlib import Path

from benchmarks import machine


def test_a_later_reading_of_the_peak_is_never_lower(monkeypatch):
    readings = iter((10.0, 9.8, 12.0))
    monkeypatch.setattr(machine, "_highest", 0.0)
    monkeypatch.setattr(machine, "_read_peak_mib", lambda: next(readings))
    assert [machine.peak_mib() for _ in range(3)] == [10.0, 10.0, 12.0]


CHILD = """
from benchmarks import machine
before = machine.peak_mib()
block = bytearray(200 * 2**20)  # zeros are not in memory until they are touched
block[::4096] = b"x" * len(block[::4096])
print(before, machine.peak_mib() - before)
"""


def test_the_peak_is_this_process_own_in_mebibytes():
    """A child of a process that holds 300 MiB starts with a small peak, which grows by the 200 MiB it touches."""
    held = bytearray(300 * 2**20)
    held[::4096] = b"x" * len(held[::4096])
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", CHILD], cwd=root, capture_output=True, text=True, check=True)
    before, grown = map(float, done.stdout.split())
    assert 180 <= grown <= 220
    if Path("/proc/self/status").exists():  # elsewhere a child's peak starts at its parent's
        assert before < 250
    assert machine.peak_mib() >= len(held) / 2**20
