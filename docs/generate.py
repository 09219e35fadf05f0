"""Writes docs/reference/ from the code, so that it cannot say anything else.

``python docs/generate.py`` writes, ``python docs/generate.py --check`` fails if a page is stale.
"""

import ast
import dataclasses
import difflib
import importlib
import inspect
import itertools
import json
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel
from pydantic.fields import FieldInfo

FOLDER = Path(__file__).parent / "reference"
NOTE = "<!-- Made from the code by `python docs/generate.py`; change the docstrings, not this page. -->\n\n"
WIDTH = 110


def pages() -> dict[str, str]:
    """Every page of the reference, by file name."""
    made = {
        "alarms.md": alarms(),
        "algorithms.md": algorithms(),
        "api.md": api(),
        "commands.md": commands(),
        "configuration.md": configuration(),
        "errors.md": errors(),
        "methods.md": methods(),
        "metrics.md": metrics(),
        "records.md": records(),
    }
    return {
        name: NOTE + "\n".join(line.rstrip() for line in text.strip().splitlines()) + "\n"
        for name, text in made.items()
    }


# Pages ------------------------------------------------------------------------------------


def configuration() -> str:
    """All configuration classes, from the recipe inwards."""
    from trimtab.config import Config
    from trimtab.pipeline.config import RunConfig

    places: dict[type[BaseModel], list[str]] = {}
    _walk(RunConfig, "", Config, places)
    parts = [
        "# Configuration\n\nThe keys of a recipe. A section that is left out is a stage that does not run; every "
        "other key has the default shown. `--set a.b=value` overrides one key. An unknown key is an error that names "
        "the nearest valid one.\n\n" + ", ".join(_link(cls) for cls in places)
    ]
    for cls, paths in places.items():
        where = (
            "The whole recipe."
            if cls is RunConfig
            else f"In a recipe: {', '.join(f'`{p}`' for p in dict.fromkeys(paths))}."
        )
        rows = [
            (f"`{name}`", _type(field.annotation, field.metadata), _default(field), plain(field.description or ""))
            for name, field in cls.model_fields.items()
        ]
        table = _table(("key", "type", "default", "meaning"), rows)
        parts.append(f"## {cls.__name__}\n\n{plain(_doc(cls))}\n\n{where}\n\n{table}")
    return "\n\n".join(parts)


def records() -> str:
    """The records, field by field, and the row formats that are read."""
    from trimtab.records import annotation, formats, types

    parts = [
        "# Records\n\nThe data that the parts of trimtab exchange and that its JSON lines files hold. Records are "
        "frozen and their fields are given by name. From `trimtab.records`.\n\n```text\n" + _doc(types) + "\n```"
    ]
    for cls in [*vars(types).values(), *vars(annotation).values()]:
        ours = inspect.isclass(cls) and cls.__module__ in (types.__name__, annotation.__name__)
        if not ours or cls is types.Record:
            continue
        table = _table(("field", "type", "default", "meaning"), _fields(cls))
        parts.append(f"## {cls.__name__}\n\n{plain(_doc(cls))}\n\n{table}")
    rows = [(f"`{form.name}`", form.columns) for form in formats.FORMATS.values()]
    parts.append(
        "## Row formats\n\nTried in this order; the first whose columns are there is taken. [Use your own "
        "data](../how-to/your-data.md#formats) has a row of each.\n\n" + _table(("format", "columns"), rows)
    )
    return "\n\n".join(parts)


def methods() -> str:
    """The table of ``trimtab methods``."""
    from trimtab.trainers.choosing import choices

    star = " (start here)"
    soft = ", also soft labels"
    rows = [
        (f"`{c.method}`{star if c.start else ''}", c.label, c.data + soft * c.soft_labels, c.cost, c.flaw)
        for c in choices()
    ]
    return (
        "# Methods\n\nThe methods of alignment by what they learn from, as `trimtab methods` prints them. A method for "
        "pairs takes every strict pair of a ranking. [Methods and papers](../explanation/methods-and-papers.md) has "
        "the formulas, [Choose a method](../how-to/choose-a-method.md) says how to choose.\n\n"
        + _table(("method", "name", "learns from", "costs beside the policy", "known to do wrong"), rows)
    )


def metrics() -> str:
    """Every logged and shown number, from the tables in ``trimtab.metrics``."""
    from trimtab.metrics import GROUPS, TRAINING

    parts = [
        "# Metrics\n\nEvery number in `metrics.jsonl` and on the pages: its meaning, its unit, the range to expect, "
        "and what to do outside it. Ranges are rules of thumb for language models, not limits."
    ]
    for title, (where, table) in GROUPS.items():
        parts.append(f"## {title}\n\n{where}")
        if table is not TRAINING:
            rows = [(m.title, m.unit, m.meaning, m.good, m.act) for m in table.values()]
            parts.append(_table(("number", "unit", "meaning", "good", "otherwise"), rows))
            continue
        parts.append(", ".join(f"[{key}](#{_anchor(key)})" for key in table))
        for key, m in table.items():
            scope = f" Logged by {m.where}." if m.where else " Logged by every stage that trains."
            unit = "without a unit" if m.unit == "1" else f"unit: {m.unit}"
            parts.append(
                f"### {key}\n\n**{m.title}** ({unit}).{scope}\n\n{m.meaning}\n\n"
                f"- *Good:* {m.good}.\n- *Otherwise:* {m.act}"
            )
    return "\n\n".join(parts)


def alarms() -> str:
    """Every alarm with its limit, by where it is raised."""
    from trimtab.evals.alarms import REPORT_ALARMS
    from trimtab.evals.capability import LIMITS
    from trimtab.evals.chance import SIGNIFICANT
    from trimtab.evals.run_alarms import LEVELS, RUN_PROBES

    training = [
        (
            p.title,
            p.counted.removeprefix("of "),
            *(f"{100 * floors * p.floor:.0f} points" for floors in LEVELS.values()),
            p.advice,
        )
        for p in RUN_PROBES.values()
    ]
    capability = [(limit.name, limit.unit, limit.stated) for limit in LIMITS.values()]
    return "\n\n".join(
        [
            "# Alarms\n\nAn alarm is a reason to read answers, not a verdict. No alarm is no proof: a fault that "
            "nothing counts is not seen.",
            "## While the policy trains\n\nRises of a probe's mean above the first steps, beyond chance, with one "
            "error budget for the whole run: [Watch a run](../how-to/watch-a-run.md#alarms).",
            _table(("probe", "how many", *LEVELS, "what to do"), training),
            "## In the report\n\nFrom the answers to held-out prompts, printed by the `evaluate` stage too: "
            "[Read the report](../how-to/read-the-report.md). Copies, endings, repetition, phrases, length and "
            "over-optimisation (the rise of the proxy) also need a change that is more than sampling error: "
            f"p of at most {SIGNIFICANT:g} in a two-sided paired test of the answers to the same prompts.",
            _table(("alarm", "raised when", "what to do"), REPORT_ALARMS),
            "## Capability check\n\nLosses beyond the limit, with an interval that excludes no change, after SFT and "
            "after alignment: [Check capabilities](../how-to/check-capabilities.md).",
            _table(("measure", "unit", "limit"), capability),
        ]
    )


def api() -> str:
    """The public names: those of ``import trimtab`` in full, those of its packages with a line each."""
    import trimtab

    parts = [
        "# API\n\nThe public names. Formulas are in [Algorithms](algorithms.md), records in [Records](records.md), "
        "settings in [Configuration](configuration.md), exceptions in [Errors](errors.md). "
        "[Use trimtab from Python](../how-to/python.md) has examples."
    ]
    names = [name for name in getattr(trimtab, "__all__", ()) if not name.startswith("_")]
    if names:
        parts.append(
            "## trimtab\n\nThe names of `import trimtab`. Each is imported on first use, so the import loads no torch."
        )
        for name in names:
            item = getattr(trimtab, name)
            parts.append(
                f"### {name}\n\n" + (_described(item) if inspect.isfunction(item) else f"```text\n{_doc(item)}\n```")
            )
    for name in PACKAGES:
        package = importlib.import_module(f"trimtab.{name}")
        rows = [(f"`{n}`", _first_line(getattr(package, n))) for n in package.__all__]
        parts.append(f"## trimtab.{name}\n\n{plain(_doc(package).split(chr(10) * 2)[0])}\n\n" + _table(_NAME, rows))
    return "\n\n".join(parts)


PACKAGES = (
    "records",
    "feedback",
    "constitution",
    "models",
    "rollout",
    "trainers",
    "evals",
    "guard",
    "conformance",
    "storage",
    "testing",
)
"""Packages whose ``__all__`` is public; ``algos`` has a page of its own."""

_NAME = ("name", "what it is")


def _first_line(item: Any) -> str:
    """First sentence of a docstring; of a plain value its type, which has no docstring of its own."""
    if not callable(item) or get_origin(item) is not None:
        return f"`{type(item).__name__}`"
    return plain(_doc(item).split("\n\n")[0])


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def errors() -> str:
    """Exit codes, from the exception tree."""
    from trimtab import errors as module

    classes = [c for c in vars(module).values() if inspect.isclass(c) and issubclass(c, module.TrimtabError)]
    rows = [("0", "", "It worked.")]
    rows += [(str(c.exit_code), f"`{c.__name__}`", plain(_doc(c))) for c in classes]
    rows.append(("70", "", "A bug in trimtab; run again with `--debug` and report it."))
    return (
        "# Errors and exit codes\n\nEvery error a user can cause is a `TrimtabError`, ends a command with its exit "
        "code, and says the value, what was expected and the next step. `--debug` (or "
        "`TRIMTAB_DEBUG=1`) adds the traceback.\n\n"
        + _table(("exit code", "exception", "meaning"), rows)
        + "\n\n```text\n"
        + _doc(module)
        + "\n```"
    )


def commands() -> str:
    """The help of every command, as the command line prints it without colours."""
    from typer.main import get_command

    from trimtab.cli.app import app

    shown = list(_helps(get_command(app), "trimtab", None))
    return "# Commands\n\n" + "\n\n".join(f"## {path}\n\n```text\n{text}\n```" for path, text in shown)


def algorithms() -> str:
    """The formulas of ``trimtab.algos`` with their docstrings."""
    from trimtab import algos

    result = [getattr(algos, name) for name in algos.__all__]
    parts = ["# Algorithms\n\nFrom `trimtab.algos`.\n\n```text\n" + _doc(algos) + "\n```"]
    for module in dict.fromkeys(re.findall(r"^- ``(\w+)``", _doc(algos), flags=re.M)):
        ours = [x for x in result if x.__module__ == f"{algos.__name__}.{module}"]
        ours.sort(key=lambda x: x.__code__.co_firstlineno if inspect.isfunction(x) else inspect.getsourcelines(x)[1])
        parts.append(f"## {module}\n\n```text\n{_doc(sys.modules[f'{algos.__name__}.{module}'])}\n```")
        for item in ours:
            parts.append(f"### {item.__name__}\n\n{_described(item)}")
            if inspect.isclass(item):
                methods = [(n, m) for n, m in vars(item).items() if inspect.isfunction(m) and not n.startswith("_")]
                parts += [f"#### {item.__name__}.{n}\n\n{_described(m)}" for n, m in methods]
    return "\n\n".join(parts)


# Pieces -----------------------------------------------------------------------------------


def plain(text: str) -> str:
    """A docstring as Markdown on one line per paragraph: roles and double backticks become code."""
    text = re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"`\1`", text).replace("``", "`")
    return re.sub(r"(?<!\n)\n(?!\n)", " ", text.strip())


def _walk(cls: type[BaseModel], path: str, base: type[BaseModel], places: dict[type[BaseModel], list[str]]) -> None:
    places.setdefault(cls, []).append(path)
    for name, field in cls.model_fields.items():
        for inner in _classes(field.annotation):
            if issubclass(inner, base):
                many = "[]" if get_origin(field.annotation) is tuple else ""
                _walk(inner, f"{path}.{name}{many}".lstrip("."), base, places)


def _classes(annotation: Any) -> Iterator[type]:
    if inspect.isclass(annotation) and not get_args(annotation):
        yield annotation
    for inner in get_args(annotation):
        yield from _classes(inner)


def _type(annotation: Any, metadata: list[Any] | tuple[Any, ...] = ()) -> str:
    """A type in the words of this reference, with its limits."""
    limits = [f"{sign} {getattr(m, key):g}" for m in metadata for key, sign in _SIGNS.items() if hasattr(m, key)]
    limits += [f"{m.min_length} or more" for m in metadata if hasattr(m, "min_length")]
    limits += [f"matches `{m.pattern}`" for m in metadata if getattr(m, "pattern", None)]
    return ", ".join([_kind(annotation), *limits])


_SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def _kind(annotation: Any) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(inner[0])
    if origin in (Union, UnionType):
        return " or ".join(_kind(a) for a in inner)
    if origin is Literal:
        return " or ".join(f"`{a}`" for a in inner)
    if origin is list or (origin is tuple and inner[-1] is Ellipsis):
        return f"list of {_kind(inner[0])}"
    if origin is tuple:
        return f"[{', '.join(_kind(a) for a in inner)}]"
    if origin is dict:
        return "mapping" if inner[1] is Any else f"mapping to {_kind(inner[1])}"
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return _link(annotation)
    return {str: "text", int: "integer", float: "number", bool: "true or false", NoneType: "null"}[annotation]


def _link(cls: type) -> str:
    return f"[{cls.__name__}](#{cls.__name__.lower()})"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)  # type: ignore[call-arg]
    if isinstance(value, BaseModel):
        changed = value.model_dump(mode="json", exclude_unset=True)
        return "its defaults" + (f", but `{json.dumps(changed)}`" if changed else "")
    return f"`{json.dumps(value)}`"


def _fields(cls: type) -> list[tuple[str, ...]]:
    """Name, type, default and meaning of a record's fields, pydantic or dataclass."""
    if issubclass(cls, BaseModel):
        return [
            (f"`{n}`", _type(f.annotation, f.metadata), _default(f), plain(f.description or ""))
            for n, f in cls.model_fields.items()
        ]
    hints, texts = get_type_hints(cls), _field_docs(cls)
    rows = []
    for field in dataclasses.fields(cls):
        optional = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        value = field.default_factory() if callable(field.default_factory) else field.default
        shown = f"`{json.dumps(value)}`" if optional else "required"
        rows.append((f"`{field.name}`", _kind(hints[field.name]), shown, plain(texts[field.name])))
    return rows


def _field_docs(cls: type) -> dict[str, str]:
    """The text under each field of a dataclass, which Python itself forgets."""
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0].body  # type: ignore[attr-defined]
    return {
        ast.unparse(field.target): ast.literal_eval(text.value)
        for field, text in itertools.pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr)
    }


def _described(item: Callable[..., Any]) -> str:
    return f"```python\n{_signature(item)}\n```\n\n```text\n{_doc(item)}\n```"


def _signature(item: Callable[..., Any]) -> str:
    signature = inspect.signature(item)
    line = f"{item.__name__}{signature}"
    if len(line) > WIDTH:
        inner, keyword_only = [], False
        for parameter in signature.parameters.values():
            if parameter.kind is parameter.KEYWORD_ONLY and not keyword_only:
                keyword_only = True
                inner.append("*")
            inner.append(str(parameter))
        result = signature.replace(parameters=[])
        line = f"{item.__name__}(\n    " + ",\n    ".join(inner) + f",\n{str(result).removeprefix('(')}"
    line = re.sub(r"\b(?:torch|typing|collections\.abc)\.", "", line)
    line = re.sub(r"Annotated\[Tensor, '(\[[^\]]*\](?: bool)?)'\]", r"Tensor\1", line)  # see trimtab.algos.shapes
    return re.sub(r"Optional\[(Tensor\[[^\]]*\](?: bool)?)\]", r"\1 | None", line)


def _helps(command: Any, name: str, parent: Any) -> Iterator[tuple[str, str]]:
    command.rich_markup_mode = None
    context = command.make_context(
        name, [], parent=parent, resilient_parsing=True, terminal_width=WIDTH, max_content_width=WIDTH
    )
    yield context.command_path, command.get_help(context)
    for inner, child in getattr(command, "commands", {}).items():
        yield from _helps(child, inner, context)


def _doc(item: Any) -> str:
    return inspect.getdoc(item) or ""


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    def line(cells: tuple[str, ...]) -> str:
        return "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in cells) + " |"

    return "\n".join([line(head), "|" + "---|" * len(head), *map(line, rows)])


def main(arguments: list[str]) -> int:
    """Write the pages, or compare them; returns the exit code."""
    made = pages()
    if arguments == ["--check"]:
        stale = [
            name for name, text in made.items() if not (FOLDER / name).exists() or (FOLDER / name).read_text() != text
        ]
        for name in stale:
            old = (FOLDER / name).read_text() if (FOLDER / name).exists() else ""
            difference = difflib.unified_diff(old.splitlines(), made[name].splitlines(), "written", "from code", n=0)
            print(f"docs/reference/{name} is stale; run `python docs/generate.py`", *list(difference)[:12], sep="\n")
        return 1 if stale else 0
    FOLDER.mkdir(exist_ok=True)
    for name, text in made.items():
        (FOLDER / name).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
