"""Models: loading, chat rendering, one trunk with adapters, and the roles that compute on it."""

from trimtab.models.backbone import AdapterConfig, Backbone
from trimtab.models.batch import Batch, LowerCache, collate, pack, scatter
from trimtab.models.chat import Chat, Encoded
from trimtab.models.loading import ModelConfig, model_identity
from trimtab.models.role import Role

__all__ = [
    "AdapterConfig",
    "Backbone",
    "Batch",
    "Chat",
    "Encoded",
    "LowerCache",
    "ModelConfig",
    "Role",
    "collate",
    "model_identity",
    "pack",
    "scatter",
]
