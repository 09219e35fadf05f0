"""How long a step of each trainer takes and how much memory it needs; start with ``python -m benchmarks.steps``."""
