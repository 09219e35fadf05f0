"""Run folders: which stages are finished, with which settings, and where their files are; journals of answers."""

from trimtab.storage.journal import Journal
from trimtab.storage.run import (
    REPLACE,
    START,
    MetricsLog,
    RunFolder,
    Status,
    read_json,
    read_metrics,
    read_record,
    require_space,
)

__all__ = [
    "REPLACE",
    "START",
    "Journal",
    "MetricsLog",
    "RunFolder",
    "Status",
    "read_json",
    "read_metrics",
    "read_record",
    "require_space",
]
