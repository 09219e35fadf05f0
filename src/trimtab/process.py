"""What this process has used."""

import resource
import sys
from pathlib import Path


def peak_memory() -> int:
    """The most memory this process ever held in RAM, in bytes.

    On Linux from VmHWM, which is counted anew for each program; ``ru_maxrss``, used elsewhere, starts at the parent's
    peak there. The kernel's count is exact to some pages per processor, so a later reading could be lower; it is not
    here.
    """
    global _highest
    _highest = max(_highest, _read_peak())
    return _highest


_highest = 0


def _read_peak() -> int:
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
