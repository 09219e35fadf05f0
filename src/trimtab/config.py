"""The base of every configuration, and the readable form of what pydantic finds wrong in one.

A configuration class sits in the file of the component that reads it. It is frozen and
keyword-only; an unknown key is an error that names the nearest valid one.
"""

import difflib
from collections.abc import Mapping
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from trimtab.errors import ConfigError


class Config(BaseModel):
    """Frozen settings of one component; the text under each field is its documentation."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=())


C = TypeVar("C", bound=Config)


def parse_config(cls: type[C], values: Mapping[str, Any], *, where: str) -> C:
    """Build ``cls`` from plain values, or raise :class:`ConfigError` with one line per mistake.

    Args:
        cls: the configuration class.
        values: nested plain values, as read from YAML.
        where: what the values came from (a file name), for the message.
    """
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        lines = [_explain(cls, item) for item in error.errors()]
        raise ConfigError(f"{where}: {len(lines)} mistake(s)\n" + "\n".join(f"  {line}" for line in lines)) from None


def _explain(cls: type[Config], item: Any) -> str:
    path = [str(part) for part in item["loc"]]
    dotted = ".".join(path) or "(top level)"
    if item["type"] == "extra_forbidden":
        owner = _model_at(cls, path[:-1])
        names = list(owner.model_fields) if owner else []
        near = difflib.get_close_matches(path[-1], names, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"valid keys here: {', '.join(names)}"
        return f"{dotted}: unknown key; {hint}"
    if item["type"] == "missing":
        return f"{dotted}: required and missing"
    return f"{dotted}: {item['input']!r} is not accepted; {item['msg'][0].lower()}{item['msg'][1:]}"


def _model_at(cls: type[BaseModel], path: list[str]) -> type[BaseModel] | None:
    current: Any = cls
    for name in path:
        field = current.model_fields.get(name) if isinstance(current, type) and issubclass(current, BaseModel) else None
        if field is None:
            return None
        kinds = [field.annotation, *get_args(field.annotation)]
        current = next((k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)), None)
    return current
