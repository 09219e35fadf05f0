"""Reads PRMBench files as they are, and scores them as PRMBench does: how well right and wrong steps are told apart.

Rows: ``modified_question``, ``modified_process`` (the steps), ``error_steps`` (numbers from 1), ``classification``,
``idx``, ``original_question``. Each class contains one kind of error; ``multi_solutions`` has no wrong steps. Right
steps are the positive class, and TP, FP, TN and FN are counted over all steps:

    PRM score = (F1 + F1⁻)/2,  F1 = 2 TP/(2 TP + FP + FN),  F1⁻ = 2 TN/(2 TN + FN + FP)

For ``multi_solutions`` the score is F1 alone. The overall score pools the steps of all classes; the scores of
simplicity, soundness and sensitivity are means of their classes' scores. Source: Song et al. 2025, "PRMBench" (arXiv
2501.03124), and the evaluation code of the ssmisya/PRMBench repository. That code also removes the number at the start
of a step, ignores numbers of error steps beyond the last step, and uses the first of several rows with the same class
and ``idx``.

Departures: an F1 without any true positive is 0, where their code gives −1 if some steps were called right and all of
these were wrong. A row with an empty step is refused (3 of their 6,216), because a model has nowhere to judge it. The
original solutions, which they use for a similarity, are not scored.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from trimtab.errors import DataError
from trimtab.feedback.intervals import RESAMPLES, Estimate, middle_95
from trimtab.records import Prompt
from trimtab.records.annotation import StepLabel
from trimtab.records.literals import is_list, parse
from trimtab.records.readers import Refusal, Row, read_rows

COLUMNS = ("modified_question", "modified_process", "error_steps", "classification", "idx")
"""Columns that every PRMBench row has."""

ASPECTS: dict[str, tuple[str, ...]] = {
    "simplicity": ("redundency", "circular"),
    "soundness": ("counterfactual", "step_contradiction", "domain_inconsistency", "confidence"),
    "sensitivity": ("missing_condition", "deception", "multi_solutions"),
}
"""PRMBench's three aspects with the classes of each, spelled as in the files."""

ALL_RIGHT = "multi_solutions"
"""The class without wrong steps."""

OVERALL = "overall"

_STEP_NUMBER = re.compile(r"^\s*(?:step\s*\d+\.\s*|\d+\.\s*)", flags=re.I)

Counts = tuple[int, int, int, int]
"""TP, FP, TN, FN of steps; a right step is positive."""

NO_STEPS: Counts = (0, 0, 0, 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class PrmBenchRow:
    """A solution with its wrong steps."""

    label: StepLabel
    """Question and steps; ``first_wrong`` is the first of ``wrong``."""
    wrong: frozenset[int]
    """Indices of the wrong steps, from 0."""
    kind: str
    """The class."""
    question: str
    """The question before it was changed; rows of other classes share it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PrmBench:
    """The contents of a PRMBench file."""

    rows: list[PrmBenchRow]
    """The solutions."""
    refused: list[Refusal]
    """Rows that cannot be used, with the reason."""
    repeated: int
    """How many rows were left out because an earlier row has the same class and ``idx``."""
    beyond: int
    """How many error steps were ignored because their number is beyond the last step."""


def has_prm_bench_columns(columns: Mapping[str, Any]) -> bool:
    """True: by its columns, this is a row of PRMBench."""
    return set(COLUMNS) <= columns.keys()


def read_prm_bench(source: str | Path) -> PrmBench:
    """Read PRMBench's rows from JSON lines, JSON, CSV or parquet.

    Raises:
        DataError: the file cannot be read, or no row can be used.
    """
    rows: dict[str, PrmBenchRow] = {}
    refused: list[Refusal] = []
    repeated = beyond = 0
    for row in read_rows(source):
        if not isinstance(row, Row):
            refused.append(row)
            continue
        try:
            solution, ignored = _solution(row.columns)
        except DataError as error:
            refused.append(Refusal(line=row.line, reason=str(error)))
            continue
        if solution.label.id in rows:
            repeated += 1
            continue
        rows[solution.label.id] = solution
        beyond += ignored
    if not rows:
        example = f"; line {refused[0].line}: {refused[0].reason}" if refused else ""
        raise DataError(f"{source}: none of {len(refused)} rows is one of PRMBench{example}")
    return PrmBench(rows=list(rows.values()), refused=refused, repeated=repeated, beyond=beyond)


def _solution(columns: Mapping[str, Any]) -> tuple[PrmBenchRow, int]:
    """A row, and the number of its error steps that are beyond its last step."""
    missing = [name for name in COLUMNS if columns.get(name) is None]
    if missing:
        raise DataError(f"{', '.join(missing)} missing; expected the columns {', '.join(COLUMNS)}")
    steps, errors = (_list(columns[name]) for name in ("modified_process", "error_steps"))
    if not steps or not all(isinstance(step, str) for step in steps):
        raise DataError("modified_process is not a list of texts; expected the steps of the solution")
    if errors is None or not all(isinstance(e, int) and not isinstance(e, bool) and e >= 1 for e in errors):
        raise DataError("error_steps is not a list of whole numbers from 1; expected the numbers of the wrong steps")
    kind, question = str(columns["classification"]), str(columns["modified_question"])
    wrong = frozenset(e - 1 for e in errors if e <= len(steps))
    try:
        label = StepLabel(
            id=f"{kind}/{columns['idx']}",
            prompt=Prompt.from_text(question),
            steps=tuple(_STEP_NUMBER.sub("", step) or step for step in steps),
            first_wrong=min(wrong, default=None),
        )
    except ValidationError as error:
        raise DataError(str(error.errors()[0]["msg"]).removeprefix("Value error, ")) from None
    original = str(columns.get("original_question") or question)
    return PrmBenchRow(label=label, wrong=wrong, kind=kind, question=original), len(set(errors)) - len(wrong)


def _list(value: Any) -> list[Any] | None:
    """A list, also if a cell of a CSV file spells it as text."""
    parsed = parse(value) if isinstance(value, str) else value
    return list(parsed) if is_list(parsed) else None


def step_counts(wrong: frozenset[int], right: Sequence[bool]) -> Counts:
    """TP, FP, TN, FN of a solution whose steps are called right or wrong.

    >>> step_counts(frozenset({1}), [True, True, False])
    (1, 1, 0, 1)
    """
    pairs = [(i not in wrong, called_right) for i, called_right in enumerate(right)]
    return (
        pairs.count((True, True)),
        pairs.count((False, True)),
        pairs.count((False, False)),
        pairs.count((True, False)),
    )


def prm_score(counts: Counts, kind: str = OVERALL) -> float:
    """The PRM score of steps, as the module's docstring defines it; for the class without wrong steps, F1 alone.

    >>> round(prm_score((6, 2, 1, 1)), 6), round(prm_score((3, 0, 0, 1), "multi_solutions"), 6)
    (0.6, 0.857143)
    """
    tp, fp, tn, fn = counts
    positive = 2 * tp / (2 * tp + fp + fn) if tp else 0.0
    negative = 2 * tn / (2 * tn + fn + fp) if tn else 0.0
    return positive if kind == ALL_RIGHT else (positive + negative) / 2


def prm_bench_scores(rows: Sequence[PrmBenchRow], right: Sequence[Sequence[bool]]) -> dict[str, Estimate]:
    """PRM scores with intervals: overall, of each aspect whose classes are all present, and of each class.

    Args:
        rows: the solutions.
        right: for each solution, for each step, whether the model calls it right.

    Returns:
        name → score with a 95 % bootstrap interval over questions; ``n`` is the number of solutions.

    Raises:
        DataError: no solutions, or not one verdict for each step.
    """
    if not rows or [len(r.label.steps) for r in rows] != [len(verdicts) for verdicts in right]:
        raise DataError(f"{len(rows)} solutions and verdicts on {len(right)}; expected a verdict for each step of each")
    kinds = list(dict.fromkeys(row.kind for row in rows))
    by_question: dict[str, dict[str, Counts]] = {}
    for row, verdicts in zip(rows, right, strict=True):
        counts_by_kind = by_question.setdefault(row.question, {})
        counts_by_kind[row.kind] = _total([counts_by_kind.get(row.kind, NO_STEPS), step_counts(row.wrong, verdicts)])
    scores = _scores(
        {kind: _total(counts_by_kind.get(kind, NO_STEPS) for counts_by_kind in by_question.values()) for kind in kinds}
    )
    sizes = {kind: sum(row.kind == kind for row in rows) for kind in kinds}
    sizes |= {aspect: sum(sizes.get(kind, 0) for kind in members) for aspect, members in ASPECTS.items()}
    intervals = _bootstrap(list(by_question.values()), kinds)
    return {
        name: Estimate(
            name=name, value=score, low=intervals[name][0], high=intervals[name][1], n=sizes.get(name, len(rows))
        )
        for name, score in scores.items()
    }


def _scores(counts: Mapping[str, Counts]) -> dict[str, float]:
    """Overall, aspects, classes."""
    kind_scores = {kind: prm_score(kind_counts, kind) for kind, kind_counts in counts.items()}
    aspects = {
        aspect: sum(kind_scores[kind] for kind in members) / len(members)
        for aspect, members in ASPECTS.items()
        if kind_scores.keys() >= set(members)
    }
    return {OVERALL: prm_score(_total(counts.values())), **aspects, **kind_scores}


def _bootstrap(questions: Sequence[Mapping[str, Counts]], kinds: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Ends of the 95 % intervals from samples of the questions."""
    import numpy as np  # not needed to read a file

    table = np.array([[counts_by_kind.get(kind, NO_STEPS) for kind in kinds] for counts_by_kind in questions])
    draws = np.random.default_rng(0).multinomial(len(questions), [1 / len(questions)] * len(questions), RESAMPLES)
    samples = np.einsum("rq,qkc->rkc", draws, table).tolist()
    resampled_scores = [_scores(dict(zip(kinds, map(tuple, sample), strict=True))) for sample in samples]
    intervals: dict[str, tuple[float, float]] = {}
    for name in resampled_scores[0]:
        intervals[name] = middle_95(sorted(scores[name] for scores in resampled_scores))
    return intervals


def _total(counts: Iterable[Counts]) -> Counts:
    tp, fp, tn, fn = (sum(column) for column in zip(NO_STEPS, *counts, strict=True))
    return tp, fp, tn, fn
