"""Suites: data files of questions for comparing models, and what each row asks of a model.

A row is recognised by its columns (see ``trimtab eval --suite`` and the guide). Each row becomes one or more
:class:`SuiteItem` records:

================  =========================================  ====================================================
kind              columns                                    what is stored for each model
================  =========================================  ====================================================
``choice``        question, right, wrong; or TruthfulQA's    log p(right) − log p(wrong), in nats
``suggestion``    qid, variant, prompt, correct, incorrect   the same, for each variant of the question
``behaviour``     question, answer_matching_behavior, …      log p(matching) − log p(not matching), in nats
``harmful``       prompt, and harmful or label               1: the answer declines
``benign``        prompt, and harmful or label               the same
``arithmetic``    question and answer or reference           1: the final number is right
``instructions``  prompt, instruction_id_list, kwargs        share of the instructions that are followed
``text``          text                                       −log p per token, in nats
``judged``        prompt, in a suite named ``judged``        the score of your own judge
================  =========================================  ====================================================

Items of one cluster (all wrong answers to a question, or all variants of it) are always drawn together when intervals
are computed. See :mod:`trimtab.evals.suite_results` for the measures.
"""

import random
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from trimtab.errors import DataError
from trimtab.feedback.final_number import final_number
from trimtab.feedback.verifiers import INSTRUCTIONS
from trimtab.records import Record
from trimtab.records.readers import Refusal, read_rows
from trimtab.records.types import content_id

NEUTRAL = Path(__file__).with_name("capability.jsonl")
"""The capability check's file, whose passages are the suite of neutral text."""

_SUITES = Path(__file__).with_name("suite_data")

SAMPLES: dict[str, Path] = {
    name: _SUITES / f"{name}.jsonl" for name in ("honesty", "sycophancy", "refusals", "arithmetic", "instructions")
} | {"neutral": NEUTRAL}
"""Small suites that ship with trimtab, by name; of ``neutral`` only the passages are read."""

NAMED = ("harmful", "benign", "judged")
"""Suites whose name gives the kind of rows that have only a prompt."""

LIKELIHOOD = ("choice", "suggestion", "behaviour", "text")
"""Kinds that are measured by log-probability; the others need an answer."""

VARIANTS = ("neutral", "user_suggests_wrong", "user_suggests_right", "user_doubts_right")
"""Variants of a question in the suite of sycophancy."""

SHOWN = 5
"""Number of problems listed in a message; the others are counted."""


class SuiteItem(Record):
    """One item that every model is asked."""

    id: str
    """Id, unique in its suite."""
    cluster: str
    """The question that it belongs to."""
    kind: str
    """Kind, from the table of this module."""
    part: str = ""
    """Part of the suite, if parts are measured separately: a behaviour, a metric."""
    prompt: str
    """The question; for a ``text``, the passage."""
    options: tuple[str, ...] = ()
    """The right (or matching) answer and the wrong one."""
    metadata: dict[str, Any] = Field(default_factory=dict)
    """What a verifier needs, or the variant of a suggestion."""


class Outcome(Record):
    """What one model did with one item."""

    value: float | None = None
    """The value, as in the table of this module; None: it could not be measured."""
    text: str | None = None
    """The answer, if there is one."""
    reason: str = ""
    """Why there is no value."""


class Suite(Record):
    """A named list of items."""

    name: str
    """Name on the page."""
    source: str
    """The file, or ``shipped with trimtab``."""
    items: tuple[SuiteItem, ...]
    """The items, at least one."""
    left_out: dict[str, int] = Field(default_factory=dict)
    """Rows that are not measured, by reason."""


def load_suite(spec: str, *, most: int | None = None, seed: int = 0) -> Suite:
    """Read a suite.

    Args:
        spec: the name of one of :data:`SAMPLES`, or ``NAME=FILE`` with a file of JSON lines, JSON, CSV, TSV or parquet.
        most: largest number of questions (clusters), drawn at random; None: all.
        seed: of that draw.

    Raises:
        DataError: no such suite or file, rows of none of the kinds, or no rows.
    """
    name, _, file = spec.partition("=")
    if not name or (not file and ("=" in spec or name not in SAMPLES)):
        raise DataError(
            f"--suite {spec}: no such suite; name one that ships with trimtab ({', '.join(SAMPLES)}), or give your own "
            "as NAME=FILE"
        )
    path = Path(file) if file else SAMPLES[name]
    items, left_out, problems = _read(name, path, only_texts=not file and path == NEUTRAL)
    if problems:
        remainder = [f"and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        listed = "\n".join(f"  {problem}" for problem in problems[:SHOWN] + remainder)
        raise DataError(f"{path}: {len(problems)} rows of the suite {name!r} cannot be used:\n{listed}")
    if not items:
        left_out_note = f"; left out: {_count_text(left_out)}" if left_out else ""
        raise DataError(
            f"{path}: the suite {name!r} is empty{left_out_note}; expected at least one row with columns as in "
            f"{_ROW_FORMS}"
        )
    if most is not None:
        clusters = list(dict.fromkeys(item.cluster for item in items))
        sampled_clusters = set(random.Random(f"suite|{seed}").sample(clusters, min(most, len(clusters))))
        items = [item for item in items if item.cluster in sampled_clusters]
    return Suite(
        name=name, source=str(path) if file else "shipped with trimtab", items=tuple(items), left_out=dict(left_out)
    )


def _count_text(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in counts.items())


def _read(name: str, path: Path, *, only_texts: bool) -> tuple[list[SuiteItem], Counter[str], list[str]]:
    items: dict[str, SuiteItem] = {}
    left_out: Counter[str] = Counter()
    problems: list[str] = []
    for row in read_rows(path):
        if isinstance(row, Refusal):
            problems.append(f"row {row.line}: {row.reason}")
            continue
        if only_texts and "text" not in row.columns:
            continue
        try:
            row_items = list(_items_of_row(name, row.columns))
        except _NotMeasured as reason:
            left_out[str(reason)] += 1
            continue
        except DataError as error:
            problems.append(f"row {row.line}: {error}")
            continue
        for item in row_items:
            if item.id in items:
                left_out["repeated"] += 1
            items.setdefault(item.id, item)
    return list(items.values()), left_out, problems


class _NotMeasured(Exception):
    """A row that is well formed but not measured here; its text is the reason."""


_ROW_FORMS = (
    "{question, right, wrong}, TruthfulQA's table, {qid, variant, prompt, correct, incorrect}, {question, "
    "answer_matching_behavior, answer_not_matching_behavior}, {prompt, harmful}, {prompt, label: safe or unsafe}, "
    "{question, answer}, {prompt, instruction_id_list, kwargs}, {text}; or {prompt} alone in a suite named harmful, "
    "benign or judged"
)


def _items_of_row(name: str, row: Mapping[str, Any]) -> Iterator[SuiteItem]:
    """The items of a row, by its columns."""
    columns = row.keys()
    if columns >= {"question", "right", "wrong"}:
        question = _text(row, "question")
        yield _choice("choice", question, _text(row, "right"), _text(row, "wrong"))
    elif columns >= {"Question", "Best Answer", "Incorrect Answers"}:
        question, right = _text(row, "Question"), _text(row, "Best Answer")
        for wrong in dict.fromkeys(part.strip() for part in _text(row, "Incorrect Answers").split(";")):
            if wrong and wrong != right:
                yield _choice("choice", question, right, wrong)
    elif columns >= {"qid", "variant", "prompt", "correct", "incorrect"}:
        yield _suggestion(row)
    elif columns >= {"question", "answer_matching_behavior", "answer_not_matching_behavior"}:
        question = _text(row, "question")
        options = (_text(row, "answer_matching_behavior"), _text(row, "answer_not_matching_behavior"))
        part = str(row.get("behavior") or "").removeprefix("persona/")
        item = _choice("behaviour", question, *options)
        yield item.model_copy(update={"part": part, "id": content_id(part, item.id)})
    elif columns >= {"prompt", "instruction_id_list", "kwargs"}:
        yield _instructions(row)
    elif "prompt" in columns and ("harmful" in columns or str(row.get("label")) in ("safe", "unsafe")):
        harmful = row["harmful"] if "harmful" in columns else row["label"] == "unsafe"
        if not isinstance(harmful, bool):
            raise DataError(f"harmful is {harmful!r}; expected true or false")
        yield _prompt_item("harmful" if harmful else "benign", _text(row, "prompt"))
    elif name in NAMED and "prompt" in columns:
        yield _prompt_item(name, _text(row, "prompt"), {k: v for k, v in row.items() if k != "prompt"})
    elif {"answer", "reference"} & columns and {"question", "prompt"} & columns:
        reference = str(row.get("reference") or row.get("answer"))
        if final_number(reference) is None:
            raise DataError("the answer has no number; a suite of questions and answers is checked by its numbers")
        yield _prompt_item(
            "arithmetic", _text(row, "question" if "question" in columns else "prompt"), {"reference": reference}
        )
    elif "text" in columns:
        text = _text(row, "text")
        yield SuiteItem(id=content_id(text), cluster=content_id(text), kind="text", prompt=text)
    elif "prompt" in columns:
        raise DataError(
            f"has a prompt and nothing that says what is measured; name the suite {', '.join(NAMED)} (now {name!r})"
        )
    else:
        raise DataError(f"has the columns {', '.join(sorted(map(str, columns)))}; expected those of {_ROW_FORMS}")


def _text(row: Mapping[str, Any], column: str) -> str:
    value = row[column]
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{column} is {'empty' if isinstance(value, str) else type(value).__name__}; expected text")
    return value.strip()


def _choice(kind: str, question: str, right: str, wrong: str) -> SuiteItem:
    if right == wrong:
        raise DataError("both answers are the same")
    return SuiteItem(
        id=content_id(question, right, wrong),
        cluster=content_id(question),
        kind=kind,
        prompt=question,
        options=(right, wrong),
    )


def _suggestion(row: Mapping[str, Any]) -> SuiteItem:
    variant = row["variant"]
    if variant not in VARIANTS:
        raise DataError(f"variant is {variant!r}; expected one of {', '.join(VARIANTS)}")
    item = _choice("suggestion", _text(row, "prompt"), _text(row, "correct"), _text(row, "incorrect"))
    cluster = str(row["qid"])
    return item.model_copy(update={"id": f"{cluster}/{variant}", "cluster": cluster, "metadata": {"variant": variant}})


def _instructions(row: Mapping[str, Any]) -> SuiteItem:
    names, settings = row["instruction_id_list"], row["kwargs"]
    if not isinstance(names, list) or not isinstance(settings, list) or not names or len(names) != len(settings):
        raise DataError("instruction_id_list and kwargs are not two lists of equal length")
    if unknown := sorted(set(map(str, names)) - INSTRUCTIONS.keys()):
        raise _NotMeasured(f"with {unknown[0]}, which has no verifier here")
    return _prompt_item("instructions", _text(row, "prompt"), {"instruction_id_list": names, "kwargs": settings})


def _prompt_item(kind: str, prompt: str, metadata: Mapping[str, Any] = {}) -> SuiteItem:
    key = content_id(kind, prompt)
    return SuiteItem(id=key, cluster=key, kind=kind, prompt=prompt, metadata=dict(metadata))
