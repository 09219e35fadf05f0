"""Guards: classifiers trained from a constitution. They check requests, and answers while the model writes them.

Names are imported on first use, so settings can be read without scikit-learn and torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trimtab.guard.activations import layer_states
    from trimtab.guard.config import GuardConfig
    from trimtab.guard.guard import AnswerCheck, DecisionLog, Guard, Verdict
    from trimtab.guard.stream import HoldBack

__all__ = ["AnswerCheck", "DecisionLog", "Guard", "GuardConfig", "HoldBack", "Verdict", "layer_states"]

_MODULES = {
    "activations": "layer_states",
    "config": "GuardConfig",
    "guard": "AnswerCheck DecisionLog Guard Verdict",
    "stream": "HoldBack",
}
_PLACES = {name: f"{__name__}.{module}" for module, names in _MODULES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)
