"""A small check, before and after each stage, of abilities that no stage should change.

===================  ===============================================  =============================================
measure              on                                               what is compared
===================  ===============================================  =============================================
right answers        questions with a right and a wrong answer        share where log p(right) > log p(wrong)
odds                 the same                                         mean of log p(right) − log p(wrong)
neutral text         short passages of prose                          perplexity, exp(−mean log p per token)
demonstrations       the recipe's held-out demonstrations             the same, on the assistant's tokens
sensible answers     open questions, answered greedily                share on topic and complete
===================  ===============================================  =============================================

The log-probability of an answer is the sum over its tokens, including the end of turn: how likely the model is to give
exactly this answer. Right and wrong answers have the same form and differ in a word or two, so length hardly matters,
and its effect is the same before and after. A perplexity is the exponential of the mean over texts, with equal weight
for each text.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean

from trimtab.config import Config
from trimtab.errors import DataError
from trimtab.evals.balance import measure
from trimtab.evals.probes import repetition, words
from trimtab.evals.report_data import Alarm, CapabilityReport, CapabilityRow
from trimtab.evals.suite_results import LARGEST
from trimtab.feedback.intervals import Estimate, paired_bootstrap_interval, wilson_interval
from trimtab.metrics import CAPABILITY
from trimtab.records import Record

BUILT_IN = Path(__file__).with_name("capability.jsonl")
"""136 questions with a right and a wrong answer, 24 open questions and 16 passages, written for this check."""

ROW_FORMS = '{"question", "right", "wrong"}, {"question", "keywords"} or {"text"}'
"""The kinds of rows in a capability file."""

SHOWN_PROBLEMS = 5
"""Number of rows listed in the message about a malformed file."""

MAX_REPETITION = 0.2
"""Largest share of repeated 4-grams in an answer that counts as complete."""


class CapabilityConfig(Config):
    """The capability check before and after SFT and alignment."""

    file: str | None = None
    """Your own JSON lines: rows ``{"question", "right", "wrong"}``, ``{"question", "keywords"}`` and ``{"text"}``; a
    measure without rows is left out. None: the set that ships with trimtab, in English."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CapabilitySet:
    """The rows of a capability file by kind."""

    choices: tuple[tuple[str, str, str], ...]
    """Questions with the right and the wrong answer."""
    open: tuple[tuple[str, tuple[str, ...]], ...]
    """Open questions with their keywords; an answer on topic has at least one of them."""
    texts: tuple[str, ...]
    """Passages of neutral prose."""


class OpenAnswer(Record):
    """A model's answer to an open question."""

    text: str
    """Text of the answer."""
    on_topic: bool
    """True: the answer has one of the keywords."""
    complete: bool
    """True: the answer has a whole sentence and does not repeat itself."""


class Capability(Record):
    """Results of one model, item by item, so that two models are compared on the same items."""

    margins: dict[str, float]
    """log p(right) − log p(wrong) in nats, by question."""
    texts: dict[str, float]
    """−log p per token in nats, by passage; a passage is read up to the model's context."""
    demonstrations: dict[str, float]
    """−log p per token of the assistant in nats, by the id of the held-out demonstration."""
    answers: dict[str, OpenAnswer]
    """Answers to the open questions, by question."""
    reasons: dict[str, str]
    """Why a measure is empty, or what was left out of it, by measure."""


class Limit(Record):
    """A measure and the change that raises an alarm."""

    name: str
    """Name of the measure on the page."""
    unit: str
    """``share``: the change is a difference; ``nats`` and ``perplexity``: the change is relative to before."""
    limit: float
    """Largest loss without an alarm; for a perplexity, a rise is a loss."""

    @property
    def stated(self) -> str:
        """The limit in words."""
        if self.unit == "share":
            return f"{100 * self.limit:.0f} points fewer"
        return f"{100 * self.limit:.0f} % {'more' if self.unit == 'perplexity' else 'less'}"


_LARGEST_LOSS = {"right": 0.05, "margins": 0.15, "answers": 0.15, "texts": 0.25, "demonstrations": 0.5}

LIMITS: dict[str, Limit] = {
    key: Limit(name=metric.title, unit=metric.unit, limit=_LARGEST_LOSS[key]) for key, metric in CAPABILITY.items()
}
"""Every measure; an alarm also needs an interval that excludes zero. Decision 28 has the numbers behind the limits."""


def load_capability(path: Path | None) -> CapabilitySet:
    """Read and check a capability file; None: the built-in one.

    Raises:
        DataError: the file is unreadable or empty, or a row is none of the three kinds; names line, fault and what was
            expected.
    """
    path = path or BUILT_IN
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise DataError(
            f"{path}: the capability set cannot be read ({reason}); correct capability.file, or set capability: null"
        ) from None
    choices: list[tuple[str, str, str]] = []
    questions: list[tuple[str, tuple[str, ...]]] = []
    texts: list[str] = []
    problems: list[str] = []
    first_lines: dict[tuple[str, ...], int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        fault, row = _parse(line)
        key = (*sorted(row), row.get("question") or row.get("text", ""))
        if not fault and first_lines.setdefault(key, number) != number:
            fault = f"repeats line {first_lines[key]}"
        if fault:
            problems.append(f"line {number}: {fault}")
        elif "text" in row:
            texts.append(row["text"])
        elif "keywords" in row:
            questions.append((row["question"], tuple(row["keywords"])))
        else:
            choices.append((row["question"], row["right"], row["wrong"]))
    if problems:
        remainder = [f"and {len(problems) - SHOWN_PROBLEMS} more"] if len(problems) > SHOWN_PROBLEMS else []
        listed = "\n".join(f"  {p}" for p in problems[:SHOWN_PROBLEMS] + remainder)
        raise DataError(
            f"{path}: {len(problems)} rows of the capability set are malformed; expected {ROW_FORMS}\n{listed}"
        )
    if not first_lines:
        raise DataError(f"{path}: the capability set is empty; expected rows {ROW_FORMS}, or set capability: null")
    return CapabilitySet(choices=tuple(choices), open=tuple(questions), texts=tuple(texts))


def _parse(line: str) -> tuple[str, dict]:
    """A row, or what is wrong with it."""
    try:
        row = json.loads(line)
    except ValueError as error:
        return f"not JSON ({error})", {}
    if not isinstance(row, dict):
        return f"a JSON object is expected, got {type(row).__name__}", {}
    if set(row) not in ({"question", "right", "wrong"}, {"question", "keywords"}, {"text"}):
        return f"has the keys {', '.join(map(str, row)) or '(none)'}", {}
    for key, value in row.items():
        parts = value if key == "keywords" and isinstance(value, list) else [value]
        if key == "keywords" and not (isinstance(value, list) and value):
            return f"keywords is {json.dumps(value)}, expected a list of words", {}
        if not all(isinstance(part, str) and part.strip() for part in parts):
            return f"{key} is {json.dumps(value)}, expected text that is not empty", {}
    if "right" in row and row["right"].strip() == row["wrong"].strip():
        return "right and wrong are the same", {}
    if "text" in row and len(words(row["text"])) < 2:
        return "text has fewer than two words", {}
    return "", row


def is_on_topic(answer: str, keywords: Sequence[str]) -> bool:
    """True: a word of the answer begins with one of the keywords.

    >>> is_on_topic("Boiling water, then leaves.", ["boil"]), is_on_topic("Parboil it.", ["boil"])
    (True, False)
    """
    return any(re.search(rf"\b{re.escape(word.lower())}", answer.lower()) for word in keywords)


def is_complete(answer: str) -> bool:
    """True: the answer has a whole sentence of three words or more, and does not repeat itself.

    >>> is_complete("Tea is a drink. It is"), is_complete("Tea is a"), is_complete("Tea.")
    (True, False, False)
    """
    sentences = re.findall(r"[^.!?]+[.!?]", answer)
    return any(len(words(sentence)) >= 3 for sentence in sentences) and repetition(answer) <= MAX_REPETITION


def summary(measure_name: str, model: Capability) -> float | None:
    """One number for a measure of a model: a share, a mean in nats or a perplexity; None if it was not measured."""
    values = _values(measure_name, model)
    if not values:
        return None
    mean = fmean(values.values())
    return math.exp(min(mean, LARGEST)) if LIMITS[measure_name].unit == "perplexity" else mean


def change(measure_name: str, before: Capability, after: Capability) -> Estimate:
    """Change of a measure on the items that both models have, with a 95 % interval.

    For shares it is after − before, for others after / before − 1. Items are resampled in pairs; the mean before is
    treated as exact.
    """
    values_before, values_after = _values(measure_name, before), _values(measure_name, after)
    shared = [key for key in values_before if key in values_after]
    if not shared:
        return Estimate(reason=_reason(measure_name, after) or _reason(measure_name, before))
    a, b = [values_before[key] for key in shared], [values_after[key] for key in shared]
    if LIMITS[measure_name].unit == "share":
        return measure(measure_name, "", a, b, better="up").change
    if LIMITS[measure_name].unit == "nats" and fmean(a) <= 0:
        return Estimate(
            n=len(shared), reason="wrong answers were as likely as right ones before, so there is nothing to lose"
        )

    def relative(difference: float) -> float:
        nats = LIMITS[measure_name].unit == "nats"
        return difference / fmean(a) if nats else math.expm1(min(difference, LARGEST))

    value = relative(fmean(b) - fmean(a))
    if len(shared) == 1:
        return Estimate(value=value, n=1, reason="one item gives no interval")
    low, high = map(relative, paired_bootstrap_interval(b, a))
    return Estimate(value=value, low=low, high=high, n=len(shared))


def exceeds(measure_name: str, difference: Estimate) -> bool:
    """True: a change is a loss beyond the limit, with an interval that excludes zero."""
    if difference.value is None or difference.low is None or difference.high is None:
        return False
    limit = LIMITS[measure_name].limit + 1e-9  # a change of exactly the limit is within it, whatever the rounding error
    if LIMITS[measure_name].unit == "perplexity":
        return difference.value > limit and difference.low > 0
    return difference.value < -limit and difference.high < 0


def capability_lines(before: Capability, after: Capability, *, names: tuple[str, str]) -> list[str]:
    """Lines that a training stage prints at its end: what changed, what could not be measured, and the alarms."""
    parts = []
    for key, limit in LIMITS.items():
        text_before, text_after = (value_text(limit.unit, summary(key, model)) for model in (before, after))
        difference = change(key, before, after)
        if difference.value is not None:
            parts.append(f"{limit.name} {text_before} → {text_after} ({change_text(limit.unit, difference)})")
    lines = [f"capability: {'; '.join(parts) or 'nothing could be measured'}"]
    lines += [f"capability, {LIMITS[key].name}: {reason}" for key, reason in after.reasons.items()]
    return lines + [f"ALARM: {alarm.message}" for alarm in _alarms(before, after, names).values()]


def capability_report(models: Mapping[str, Capability]) -> tuple[CapabilityReport, tuple[Alarm, ...]]:
    """The table of the page and the alarms that fired.

    An alarm is about one training stage; if no single stage exceeds a limit, it is about all stages together.

    Args:
        models: two or more by name, from the earliest to the latest.
    """
    names, measured = list(models), list(models.values())
    stage_alarms = {b: _alarms(models[a], models[b], (a, b)) for a, b in pairwise(names)}
    overall = _alarms(measured[0], measured[-1], (names[0], names[-1]))
    rows, alarms = [], []
    for key, limit in LIMITS.items():
        fired = {name: alarms_of_stage[key] for name, alarms_of_stage in stage_alarms.items() if key in alarms_of_stage}
        if not fired and key in overall:
            fired = {f"{names[0]} to {names[-1]}": overall[key]}
        alarms += fired.values()
        difference = change(key, measured[0], measured[-1])
        remarks = [difference.reason or _reason(key, measured[-1])]
        if key == "right" and is_guessing(measured[0]):
            remarks.append(f"{names[0]} is no better than guessing, so this measure cannot show a loss")
        rows.append(
            CapabilityRow(
                name=limit.name,
                unit=limit.unit,
                values=tuple(summary(key, model) for model in measured),
                change=difference,
                limit=limit.stated,
                fired=tuple(fired),
                reason="; ".join(filter(None, remarks)),
            )
        )
    return CapabilityReport(models=tuple(names), rows=tuple(rows)), tuple(alarms)


def is_guessing(model: Capability) -> bool:
    """True: the 95 % interval of a model's share of right answers is not entirely above one half."""
    values = _values("right", model).values()
    return bool(values) and wilson_interval(sum(values), len(values))[0] <= 0.5


def value_text(unit: str, value: float | None) -> str:
    """A value of a measure in words."""
    if value is None:
        return "–"
    return f"{100 * value:.0f} %" if unit == "share" else f"{value:.3g}"


def change_text(unit: str, difference: Estimate) -> str:
    """A change of a measure in words, with its interval."""
    if difference.value is None:
        return "–"
    interval = ""
    if difference.low is not None and difference.high is not None:
        interval = f" [{100 * difference.low:+.0f}, {100 * difference.high:+.0f}]"
    return f"{100 * difference.value:+.0f}{' points' if unit == 'share' else ' %'}{interval}"


def _values(measure_name: str, model: Capability) -> dict[str, float]:
    if measure_name == "right":
        return {key: float(margin > 0) for key, margin in model.margins.items()}
    if measure_name == "answers":
        return {key: float(a.on_topic and a.complete) for key, a in model.answers.items()}
    return getattr(model, measure_name)


def _reason(measure_name: str, model: Capability) -> str:
    return model.reasons.get("margins" if measure_name == "right" else measure_name, "")


def _alarms(before: Capability, after: Capability, names: tuple[str, str]) -> dict[str, Alarm]:
    """Losses beyond a limit, by measure."""
    fired = {}
    for key, limit in LIMITS.items():
        difference = change(key, before, after)
        if exceeds(key, difference):
            text_before, text_after = (value_text(limit.unit, summary(key, model)) for model in (before, after))
            message = f"{names[1]} is worse than {names[0]}: {limit.name} {text_before} → {text_after}, "
            message += f"{change_text(limit.unit, difference)} (limit {limit.stated})"
            fired[key] = Alarm(name=limit.name, message=message)
    return fired
