"""Options of a command from a configuration class: each setting is described, typed and checked in one place."""

import inspect
import re
from collections.abc import Callable
from types import NoneType
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import typer
import yaml
from pydantic.fields import FieldInfo

from trimtab.config import Config, parse_config

C = TypeVar("C", bound=Config)

PANEL = "Settings, as in a recipe"
"""Title of these options in the help."""


def settings_of(cls: type[C]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Replace a command's parameter ``settings`` by one option for each field of a configuration class.

    An option takes what a recipe takes: YAML, with commas between the items of a list. Only given options reach the
    class, so its defaults hold and its checks name the setting.

    Args:
        cls: the class; the command receives an instance of it as ``settings``.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        def with_options(**values: Any) -> None:
            texts = {name: values.pop(name) for name in cls.model_fields}
            given = {n: _value(cls.model_fields[n], t) for n, t in texts.items() if t is not None}
            command(**values, settings=parse_config(cls, given, where="options"))

        signature = inspect.signature(command)
        own = [p for p in signature.parameters.values() if p.name != "settings"]
        options = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=Annotated[str | None, _option(name, field)],
            )
            for name, field in cls.model_fields.items()
        ]
        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own] + options
        with_options.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        with_options.__annotations__ = {p.name: p.annotation for p in parameters} | {"return": None}
        with_options.__name__, with_options.__doc__ = command.__name__, command.__doc__
        return with_options

    return decorate


def _option(name: str, field: FieldInfo) -> Any:
    text = re.sub(r"``([^`]*)``", r"\1", field.description or "").replace("None:", "null:")
    default = "" if field.is_required() else f" [default: {_shown(field.default)}]"
    flag = f"--{name.replace('_', '-')}"
    return typer.Option(
        flag, metavar=_metavar(field.annotation), help=" ".join(text.split()) + default, rich_help_panel=PANEL
    )


def _shown(value: Any) -> str:
    if isinstance(value, tuple | list):
        return ",".join(str(part) for part in value)
    return yaml.safe_dump(value).splitlines()[0]


def _metavar(annotation: Any) -> str:
    kinds = [kind for kind in get_args(annotation) or (annotation,) if kind is not NoneType]
    if get_origin(annotation) is Literal:
        return "|".join(str(kind) for kind in get_args(annotation))
    if get_origin(annotation) in (tuple, list) or get_origin(kinds[0]) in (tuple, list):
        return "LIST"
    return {int: "INTEGER", float: "NUMBER", bool: "true|false"}.get(kinds[0], "TEXT")


def _value(field: FieldInfo, text: str) -> Any:
    """What an option's text means: YAML, or the items of a list."""
    if _metavar(field.annotation) == "LIST" and text != "null" and not text.startswith("["):
        return [_yaml(part.strip()) for part in text.split(",")]
    return _yaml(text)


def _yaml(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text  # the class refuses it and says what it expects
