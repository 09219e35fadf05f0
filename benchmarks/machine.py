"""What a measurement was made on: processor, memory and versions. No host name, no path."""

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

from trimtab.process import peak_memory


def cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine() -> dict[str, Any]:
    """Processor, cores, memory in GiB, system, and the load average of the last minute before the start."""
    return {
        "processor": _processor(),
        "cores": cores(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "load_before": round(os.getloadavg()[0], 2),
    }


def versions() -> dict[str, str]:
    """Python and the packages whose speed this is."""
    packages = ("trimtab", "torch", "transformers", "peft")
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}


def peak_mib() -> float:
    """The most memory this process ever held in RAM, in MiB."""
    return peak_memory() / 2**20


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()
