"""Models: loading, chat rendering, one trunk with adapters, and the roles that compute on it."""

from trimtab.models.backbone import AdapterConfig, Backbone
from trimtab.models.batch import PASS_TOKENS, Batch, collate, pack, parts_of_like_size, scatter
from trimtab.models.chat import Chat, Encoded, leave_out
from trimtab.models.frozen import FrozenStates
from trimtab.models.loading import ModelConfig, model_identity
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
