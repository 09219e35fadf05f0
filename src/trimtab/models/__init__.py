"""Models: loading, chat rendering, one trunk with adapters, and the roles that compute on it.

Names are imported on first use, so that settings can be read without torch installed.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trimtab.models.backbone import AdapterConfig, Backbone
    from trimtab.models.batch import PASS_TOKENS, Batch, collate, pack, parts_of_like_size, scatter
    from trimtab.models.chat import Chat, Encoded, leave_out
    from trimtab.models.config import ModelConfig
    from trimtab.models.frozen import FrozenStates
    from trimtab.models.loading import model_identity
    from trimtab.models.moving import MovingReference, ReferenceUpdateConfig
    from trimtab.models.role import Role
    from trimtab.models.tensors import load_tensors, save_tensors

__all__ = [
    "PASS_TOKENS",
    "AdapterConfig",
    "Backbone",
    "Batch",
    "Chat",
    "Encoded",
    "FrozenStates",
    "ModelConfig",
    "MovingReference",
    "ReferenceUpdateConfig",
    "Role",
    "collate",
    "leave_out",
    "load_tensors",
    "model_identity",
    "pack",
    "parts_of_like_size",
    "save_tensors",
    "scatter",
]

_MODULES = {
    "backbone": "AdapterConfig Backbone",
    "batch": "PASS_TOKENS Batch collate pack parts_of_like_size scatter",
    "chat": "Chat Encoded leave_out",
    "config": "ModelConfig",
    "frozen": "FrozenStates",
    "loading": "model_identity",
    "moving": "MovingReference ReferenceUpdateConfig",
    "role": "Role",
    "tensors": "load_tensors save_tensors",
}
_HOME = {name: f"trimtab.models.{module}" for module, names in _MODULES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module 'trimtab.models' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value
