"""trimtab: align language models with human feedback, from a click to the gradient and back.

The names here are what a script needs; each is imported when it is first used, so ``import trimtab`` takes no time and
loads no torch. Everything else is in the subpackages: :mod:`trimtab.algos` (formulas), :mod:`trimtab.feedback`
(labels), :mod:`trimtab.evals`, :mod:`trimtab.testing` (fakes for your tests).

=====================  ==============================================================================================
records                :class:`Prompt`, :class:`Message`, :class:`Completion`, :class:`Demonstration`,
                       :class:`Comparison`, :class:`Judgement`, :class:`Preference`, :class:`Rating`, :class:`Rollout`
data files             :func:`load`, :func:`read_records`, :func:`write_records`
labels                 :func:`aggregate`, :func:`agreement_report`
models                 :class:`Backbone`, :class:`ModelConfig`, :class:`AdapterConfig`, :class:`Role`
answers                :class:`LocalSampler`, :class:`SamplerConfig`
training               :func:`train_sft`, :func:`train_reward`, :func:`train_preference`, :func:`train_rl`,
                       :class:`SftConfig`, :class:`RewardConfig`, :class:`DpoConfig`, :class:`PpoConfig`,
                       :class:`RlRoles`, :class:`Session`
evaluation             :func:`win_rate`, :func:`evaluate_reward_model`
whole runs             :func:`load_recipe`, :func:`run_recipe`, :func:`export_model`
errors                 :class:`TrimtabError`
=====================  ==============================================================================================
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trimtab.errors import TrimtabError
    from trimtab.evals import evaluate_reward_model, win_rate
    from trimtab.feedback import aggregate, agreement_report
    from trimtab.models import AdapterConfig, Backbone, ModelConfig, Role
    from trimtab.pipeline.config import load_recipe
    from trimtab.pipeline.export import export_model
    from trimtab.pipeline.run import run_recipe
    from trimtab.records import (
        Comparison,
        Completion,
        Demonstration,
        Judgement,
        Message,
        Preference,
        Prompt,
        Rating,
        Rollout,
        load,
        read_records,
        write_records,
    )
    from trimtab.rollout import LocalSampler, SamplerConfig
    from trimtab.trainers import (
        DpoConfig,
        PpoConfig,
        RewardConfig,
        RlRoles,
        Session,
        SftConfig,
        train_preference,
        train_reward,
        train_rl,
        train_sft,
    )

__version__ = "0.1.0"

__all__ = [
    "AdapterConfig",
    "Backbone",
    "Comparison",
    "Completion",
    "Demonstration",
    "DpoConfig",
    "Judgement",
    "LocalSampler",
    "Message",
    "ModelConfig",
    "PpoConfig",
    "Preference",
    "Prompt",
    "Rating",
    "RewardConfig",
    "RlRoles",
    "Role",
    "Rollout",
    "SamplerConfig",
    "Session",
    "SftConfig",
    "TrimtabError",
    "__version__",
    "aggregate",
    "agreement_report",
    "evaluate_reward_model",
    "export_model",
    "load",
    "load_recipe",
    "read_records",
    "run_recipe",
    "train_preference",
    "train_reward",
    "train_rl",
    "train_sft",
    "win_rate",
    "write_records",
]

_MODULES = {
    "errors": "TrimtabError",
    "evals": "evaluate_reward_model win_rate",
    "feedback": "aggregate agreement_report",
    "models": "AdapterConfig Backbone ModelConfig Role",
    "pipeline.config": "load_recipe",
    "pipeline.export": "export_model",
    "pipeline.run": "run_recipe",
    "records": "Comparison Completion Demonstration Judgement Message Preference Prompt Rating Rollout load "
    "read_records write_records",
    "rollout": "LocalSampler SamplerConfig",
    "trainers": "DpoConfig PpoConfig RewardConfig RlRoles Session SftConfig train_preference train_reward train_rl "
    "train_sft",
}
_HOME = {name: f"trimtab.{module}" for module, names in _MODULES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module 'trimtab' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
