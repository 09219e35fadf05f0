"""The base of every configuration, and the readable form of what pydantic finds wrong in one.

A configuration class sits in the file of the component that reads it. It is frozen and
keyword-only; an unknown key is an error that names the nearest valid one.
"""

import difflib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from trimtab.errors import ConfigError

LARGEST, SMALLEST, LARGEST_INTEGER = 1e15, 1e-30, 2**63 - 1
"""Limits of a number's magnitude, unless it is 0: training computes in float32, where sums of squares must fit too, and
counts in 64 bits."""


class Config(BaseModel):
    """Frozen settings of one component; the text under each field is its documentation."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=(), allow_inf_nan=False
    )

    @model_validator(mode="before")
    @classmethod
    def _keep_the_fields_own_defaults(cls, values: Any) -> Any:
        """Where a field's default is a configuration, what is given changes that one and not the class's defaults."""
        if not isinstance(values, Mapping):
            return values
        merged = dict(values)
        for name, field in cls.model_fields.items():
            kinds = _plain_kinds(field.annotation)
            if _holds_bool(values.get(name)) and kinds & {int, float} and bool not in kinds:
                raise ValueError(f"{name} is a number, and {values[name]} is given; write the number")
            if isinstance(field.default, Config) and isinstance(merged.get(name), Mapping):
                merged[name] = _over(field.default.model_dump(), merged[name])
        return merged

    @model_validator(mode="after")
    def _fits_the_computation(self) -> Self:
        """A number that float32 turns into infinity or zero is refused here and not found out in training."""
        for name in type(self).model_fields:
            for number in _numbers(getattr(self, name)):
                large = LARGEST_INTEGER if isinstance(number, int) else LARGEST
                if abs(number) > large or 0 < abs(number) < SMALLEST:
                    size = f"{number:g}" if isinstance(number, float) else f"a number of {len(str(abs(number)))} digits"
                    raise ValueError(
                        f"{name} is {size}, outside the supported range; expected 0, or a magnitude between "
                        f"{SMALLEST:g} and {large:g}"
                    )
        return self


def _holds_bool(value: Any) -> bool:
    """YAML reads ``yes``, ``on`` and ``true`` as truth, and pydantic takes that for the number 1."""
    return isinstance(value, bool) or (isinstance(value, list | tuple) and any(_holds_bool(part) for part in value))


def _plain_kinds(annotation: Any) -> set[Any]:
    """The plain types in a type, however deep in unions and lists."""
    return {annotation}.union(*(_plain_kinds(part) for part in get_args(annotation)))


def _numbers(value: Any) -> Iterator[int | float]:
    if isinstance(value, int | float):
        yield value
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _numbers(inner)


def _over(defaults: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """``given`` on top of ``defaults``, section by section."""
    out = dict(defaults)
    for key, value in given.items():
        inner = out.get(key)
        out[key] = _over(inner, value) if isinstance(inner, dict) and isinstance(value, Mapping) else value
    return out


C = TypeVar("C", bound=Config)


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice in one mapping, at any depth; the plain loader takes the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Check the keys as they are written, before an anchor is merged into them."""
        keys = Counter((key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        for (_, key), count in keys.items():
            if count > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given {count} times; keep one", node.start_mark
                )
        return super().construct_mapping(node, deep=deep)


def load_yaml(text: str) -> Any:
    """Plain values of a YAML text.

    Raises:
        yaml.YAMLError: not YAML, or a key is given twice in one mapping.
    """
    return yaml.load(text, Loader=_Loader)


def read_yaml(path: Path, *, hint: str = "") -> Any:
    """Plain values of a YAML file; ``hint`` ends the message about a file that cannot be read.

    Raises:
        ConfigError: unreadable, no YAML, or a key is given twice in one mapping.
    """
    try:
        return load_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}){hint}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None


def parse_config(cls: type[C], values: Mapping[str, Any], *, where: str, beside: Path | None = None) -> C:
    """Build ``cls`` from plain values, or raise :class:`ConfigError` with one line per mistake.

    Args:
        cls: the configuration class.
        values: nested plain values, as read from YAML.
        where: what the values came from (a file name), for the message.
        beside: the folder of that file, from which model folders and chat templates are looked up too; None: only from
            the current folder.
    """
    try:
        return cls.model_validate(values, context={"beside": beside})
    except ValidationError as error:
        lines = [_explain(cls, item) for item in error.errors()]
        raise ConfigError(f"{where}: {len(lines)} mistake(s)\n" + "\n".join(f"  {line}" for line in lines)) from None


def _explain(cls: type[Config], item: Any) -> str:
    owner, path, kinds = _walk(cls, [str(part) for part in item["loc"]])
    dotted = ".".join(path) or "(top level)"
    if item["type"] == "extra_forbidden":
        names = list(owner.model_fields) if owner else []
        near = difflib.get_close_matches(path[-1], names, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"valid keys here: {', '.join(names)}"
        return f"{dotted}: unknown key; {hint}"
    if item["type"] == "missing":
        return f"{dotted}: required and missing"
    if item["type"] in ("union_tag_invalid", "union_tag_not_found"):
        which, given = item["ctx"]["discriminator"].strip("'"), item["ctx"].get("tag")
        valid = ", ".join(str(kind.model_fields[which].default) for kind in kinds)
        fault = "required and missing" if given is None else f"{given!r} is not one of them"
        return f"{dotted}.{which}: {fault}; valid: {valid}"
    if item["type"] == "value_error" and isinstance(item["input"], Mapping):  # a whole section says too much
        return f"{dotted}: {item['msg'].removeprefix('Value error, ')}"
    return f"{dotted}: {item['input']!r} is not accepted; {item['msg'][0].lower()}{item['msg'][1:]}"


def _walk(cls: type[BaseModel], location: list[str]) -> tuple[type[BaseModel] | None, list[str], list[type[BaseModel]]]:
    """Where a mistake is: the model its last key belongs to, its path, and what kinds of models may stand there.

    Pydantic's location also holds the tag of the kind it chose in a union; the path does not.
    """
    owner: type[BaseModel] | None = cls
    current: list[type[BaseModel]] = [cls]
    path: list[str] = []
    named = False  # the next part is a name the user gave
    for part in location:
        if named:
            path.append(part)
            named = False
        elif part.isdigit():  # a place in a list
            path.append(part)
        elif len(current) > 1:
            current = [kind for kind in current if any(f.default == part for f in kind.model_fields.values())]
        else:
            owner = current[0] if current else None
            path.append(part)
            field = owner.model_fields.get(part) if owner else None
            current = _models(field.annotation) if field else []
            named = field is not None and bool(current) and _maps(field.annotation)
    return owner, path, current


def _maps(annotation: Any) -> bool:
    """Is it, or may it be, a mapping with names of the user's?"""
    return get_origin(annotation) is dict or any(_maps(part) for part in get_args(annotation))


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The configuration classes in a type, however deep in unions."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]
