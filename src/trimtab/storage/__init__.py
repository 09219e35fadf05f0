"""Run folders: what is finished, with which settings, and where it lies."""

from trimtab.storage.run import MetricsLog, RunFolder, Status, read_json, read_metrics, require_space

__all__ = ["MetricsLog", "RunFolder", "Status", "read_json", "read_metrics", "require_space"]
