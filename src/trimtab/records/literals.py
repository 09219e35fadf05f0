"""Text that stands for a value: lists in CSV cells, booleans and numbers as text; and any value as plain JSON.

A CSV file holds text only. ``DataFrame.to_csv`` writes a list as Python writes it, and a numpy array of objects without
the commas; other tools write JSON. :func:`parse` reads all three and never evaluates code.
"""

import ast
import io
import json
import math
import tokenize
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any, TypeGuard, cast
from uuid import UUID

from trimtab.config import LARGEST

TRUE = frozenset(("true", "t", "yes", "y", "1", "1.0"))
"""Texts that mean true, in any case."""

FALSE = frozenset(("false", "f", "no", "n", "0", "0.0"))
"""Texts that mean false, in any case."""

_OPEN, _CLOSE = ("[", "{", "("), ("]", "}", ")")
_VALUES = (tokenize.STRING, tokenize.NUMBER, tokenize.NAME)
_NAMES = {"nan": None, "inf": None, "null": None, "true": True, "false": False}


def is_list(value: object) -> TypeGuard[list[Any]]:
    """True: a JSON list."""
    return isinstance(value, list)


def is_object(value: object) -> TypeGuard[Mapping[str, Any]]:
    """True: a JSON object."""
    return isinstance(value, Mapping)


def parse(text: str) -> list[Any] | dict[str, Any] | None:
    """The list or object that a text spells as JSON, Python or numpy; None where it spells neither.

    >>> parse("[{'role': 'user', 'content': 'hi'}]") == parse('[{"role": "user", "content": "hi"}]')
    True
    >>> parse("['a' 'b']"), parse("array([1, 2], dtype=object)"), parse("[draft] hello")
    (['a', 'b'], [1, 2], None)
    """
    text = text.strip()
    if not text.startswith(("[", "{", "array(")) or not text.endswith(_CLOSE):
        return None
    try:
        value: Any = json.loads(text, parse_constant=lambda _: None)
    except ValueError:
        value = _parse_python(text)
    except RecursionError:
        return None
    return cast("list[Any] | dict[str, Any]", value) if isinstance(value, list | dict) else None


def _parse_python(text: str) -> Any:
    try:
        return _evaluated(ast.parse(_with_commas(text), mode="eval").body)
    except (ValueError, SyntaxError, tokenize.TokenError, RecursionError, MemoryError, TypeError):
        return None


def _with_commas(text: str) -> str:
    """Put the commas in that numpy leaves out between the elements of an array."""
    parts: list[str] = []
    before = None
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.NEWLINE, tokenize.NL, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER):
            continue
        ends = before is not None and (before.type in _VALUES or before.string in _CLOSE)
        called = before is not None and before.type == tokenize.NAME and token.string == "("
        if ends and not called and (token.type in _VALUES or token.string in _OPEN):
            parts.append(",")
        parts.append(token.string)
        before = token
    return " ".join(parts)


def _evaluated(node: ast.expr) -> Any:
    """The value of a literal; ``array(...)`` is its first argument."""
    match node:
        case ast.Constant(value=str() | int() | float() | bool() | None as value):
            return value
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_evaluated(item) for item in items]
        case ast.Dict(keys=keys, values=values):
            pairs = zip(keys, values, strict=True)
            return {str(_evaluated(key)): _evaluated(value) for key, value in pairs if key is not None}
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
            return -number
        case ast.Name(id=name) if name in _NAMES:
            return _NAMES[name]
        case ast.Call(func=ast.Name(id="array" | "Decimal" | "Timestamp" | "UUID"), args=[first, *_]):
            return _evaluated(first)
        case ast.Call(func=ast.Attribute(value=ast.Name(id="np" | "numpy" | "uuid" | "decimal")), args=[first, *_]):
            return _evaluated(first)
        case ast.Call(func=ast.Attribute(value=ast.Name(id="datetime"), attr="datetime" | "date" as kind)):
            year, month, day, *clock = [int(_evaluated(part)) for part in node.args]
            if kind == "date":
                return date(year, month, day).isoformat()
            hour, minute, second, microsecond, *_ = (*clock, 0, 0, 0, 0)
            return datetime(year, month, day, hour, minute, second, microsecond).isoformat()
        case ast.Attribute(value=ast.Name(id="np" | "numpy"), attr="True_" | "False_" | "nan" | "inf" as name):
            return _NAMES[name.rstrip("_").lower()]
        case _:
            raise ValueError("no literal")


def boolean(value: Any) -> bool | None:
    """A boolean that may be written as a number or text; None where it is no boolean."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float | Decimal) and value in (0, 1):
        return bool(value)
    text = value.strip().lower() if isinstance(value, str) else ""
    return True if text in TRUE else False if text in FALSE else None


def number(value: Any) -> float | None:
    """A finite number below :data:`trimtab.config.LARGEST` that may be written as text; None where it is none.

    >>> number("1.5"), number("85 %"), number("1,5")
    (1.5, 0.85, None)
    """
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal | str):
        return None
    share = isinstance(value, str) and value.rstrip().endswith("%")
    try:
        converted = float(str(value).rstrip().removesuffix("%")) / 100 if share else float(value)
    except (ValueError, OverflowError):
        return None
    usable = math.isfinite(converted) and abs(converted) < LARGEST and "_" not in str(value)
    return converted if usable else None


def without_nan(value: Any) -> Any:
    """The same with null for NaN and infinity, at any depth, as JSON files have it; numpy values become Python's."""
    if isinstance(value, str | bool | int | bytes):
        return value
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, float | Decimal):
        return value if math.isfinite(value) else None
    if is_object(value):
        return {name: without_nan(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(inner) for inner in cast("Sequence[Any]", value)]
    return value


def plain(value: Any) -> Any:
    """A value as plain JSON: dates as ISO 8601, decimals as floats.

    Raises:
        ValueError: the value has no JSON form (bytes, a picture, half a surrogate pair).
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, default=_plain)
    text.encode()
    return json.loads(text)


def _plain(value: Any) -> Any:
    match value:
        case date() | time():  # and datetime, a subclass of date
            return value.isoformat()
        case Decimal():
            return float(value)
        case UUID():
            return str(value)
        case set() | frozenset():
            return sorted(cast("AbstractSet[Any]", value), key=str)
        case _:
            raise ValueError(f"{type(value).__name__} has no JSON form")
