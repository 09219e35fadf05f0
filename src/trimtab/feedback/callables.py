"""Functions named in a recipe by dotted path, such as ``trimtab.feedback.gold.friendly_utility``."""

import difflib
import importlib
from collections.abc import Callable
from typing import Any

from trimtab.errors import ConfigError
from trimtab.records import Completion, Prompt

Utility = Callable[[Prompt, Completion], float]
"""How good one answer is, in utility units: larger is better, differences count, the zero does not."""


def load_callable(path: str) -> Callable[..., Any]:
    """Import ``package.module.name`` and return what it names.

    Raises:
        ConfigError: if the path has no dot, the module cannot be imported, the name is not in it
            or is not callable. The message says which.
    """
    module_name, _, name = path.rpartition(".")
    if not module_name or not name:
        raise ConfigError(f"{path!r} is not a dotted path; write it as 'package.module.function'")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever the module does while it is imported
        raise ConfigError(
            f"{path!r}: module {module_name!r} cannot be imported ({type(error).__name__}: {error}); "
            "check the spelling and that it is installed or on PYTHONPATH"
        ) from error
    if not hasattr(module, name):
        public = [n for n in vars(module) if not n.startswith("_") and callable(getattr(module, n))]
        near = difflib.get_close_matches(name, public, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"functions there: {', '.join(sorted(public)) or 'none'}"
        raise ConfigError(f"{path!r}: {module_name!r} has no {name!r}; {hint}")
    found = getattr(module, name)
    if not callable(found):
        raise ConfigError(f"{path!r} is a {type(found).__name__}, not a function; name something that can be called")
    return found
