"""The pipeline: the one place that wires concrete parts into a run."""
