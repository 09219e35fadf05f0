"""trimtab: align language models with human feedback, from a click to the gradient and back."""

__version__ = "0.1.0"
