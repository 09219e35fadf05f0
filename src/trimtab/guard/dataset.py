"""Training data of a guard: the constitution's twins in templates, disguises of them, and rows from files.

Twins share a group, and a disguised text keeps its group. Splitting by group therefore keeps a restricted subject, its
harmless twin and all their forms on one side.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Literal

from trimtab.constitution import Constitution
from trimtab.errors import ConfigError, DataError
from trimtab.guard.attacks import ATTACKS
from trimtab.guard.normalise import normalise
from trimtab.records import content_id

PLAIN = "plain"
"""Family of a text that is not disguised."""

REQUESTS = (
    "Tell me {subject}.",
    "Please tell me {subject}.",
    "Can you tell me {subject}?",
    "I would like to know {subject}.",
    "I need to know {subject}, quickly please.",
    "Do you know {subject}? I have asked everywhere.",
    "Explain {subject} step by step.",
    "Hello! Could you find out {subject} for me? Thank you.",
    "I am writing a letter and have to mention {subject}. What do I put there?",
    "My friend says you know {subject}. Is that right?",
    "Question: {subject}?",
    "Forget the small talk and give me {subject}.",
)
"""Templates of a request about a subject."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One text for training or evaluation."""

    text: str
    """The text."""
    restricted: bool
    """True: a guard must block it."""
    kind: Literal["request", "answer"] = "request"
    """``request``: a user's text; ``answer``: a sentence of a model's answer."""
    rule: str | None = None
    """The guard rule that the text belongs to, also as a harmless twin; None: the data name no rule."""
    group: str
    """A pair of twins, or a source; a split keeps all texts of a group on one side."""
    family: str = PLAIN
    """``plain``, or the attack that disguised it."""


def from_constitution(constitution: Constitution) -> list[Example]:
    """Requests for each restricted and each allowed subject in every template, and the sentences of answers.

    Raises:
        ConfigError: the constitution has no guard rules.
    """
    if not constitution.guard:
        raise ConfigError(
            f"the constitution {constitution.name!r} has no section 'guard', so there is nothing to restrict; add one "
            "(`trimtab constitution show` prints an example)"
        )
    examples = []
    for rule in constitution.guard:
        for number, twin in enumerate(rule.twins):
            for subject, restricted in ((twin.restricted, True), (twin.allowed, False)):
                for frame in REQUESTS:
                    text = frame.format(subject=subject)
                    group = f"{rule.id}/{number}"
                    examples.append(Example(text=text, restricted=restricted, rule=rule.id, group=group))
        for sentences, restricted in ((rule.answers.restricted, True), (rule.answers.allowed, False)):
            for number, text in enumerate(sentences):
                group = f"{rule.id}/answer {number}"
                examples.append(
                    Example(text=text, restricted=restricted, kind="answer", rule=rule.id, group=group)
                )  # fmt: skip
    return examples


def read_examples(path: Path) -> list[Example]:
    """Read a JSON Lines file with ``text``, ``restricted`` and, if known, ``kind``, ``rule``, ``group`` and ``family``.

    Rows without a group are grouped by their normalised text in lower case.

    Raises:
        DataError: the file cannot be read or is empty, or a row is invalid; the message names the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); give a JSON Lines file in UTF-8") from None
    examples = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            text, restricted = row["text"], row["restricted"]
            kind = row.get("kind", "request")
        except (ValueError, KeyError, TypeError, AttributeError):
            row, text, restricted, kind = {}, None, None, None
        if not isinstance(text, str) or not text.strip() or not isinstance(restricted, bool):
            raise DataError(
                f'{path}, line {number}: expected an object such as {{"text": "…", "restricted": true}}; correct it'
            )
        if kind not in ("request", "answer"):
            raise DataError(f"{path}, line {number}: kind is {kind!r}, expected 'request' or 'answer'; correct it")
        group = str(row.get("group") or content_id(normalise(text).lower()))
        family = str(row.get("family") or PLAIN)
        examples.append(
            Example(text=text, restricted=restricted, kind=kind, rule=row.get("rule"), group=group, family=family)
        )
    if not examples:
        raise DataError(f"{path}: no row; give at least one")
    return examples


def attacked(examples: Iterable[Example], families: Sequence[str], *, seed: int) -> list[Example]:
    """Each example in each family's disguise, harmless twins too, so that a guard does not block disguises as such.

    Raises:
        ConfigError: a family is unknown.
    """
    unknown = [name for name in families if name not in ATTACKS]
    if unknown:
        raise ConfigError(f"{unknown[0]!r} is no attack family; there are {', '.join(ATTACKS)}")
    result = []
    for example in examples:
        for family in families:
            draw = Random(content_id("attack", seed, family, example.text))
            result.append(replace(example, text=ATTACKS[family](example.text, draw), family=family))
    return result


def deduplicated(examples: Sequence[Example]) -> tuple[list[Example], int, int]:
    """Examples without repetitions; texts are compared normalised and in lower case.

    Returns:
        the remaining examples; the number of repetitions left out; the number of texts left out because they occur both
        as restricted and as harmless.
    """
    by_text: dict[tuple[str, str, str], list[Example]] = {}
    for example in examples:
        by_text.setdefault((example.kind, example.family, normalise(example.text).lower()), []).append(example)
    unique = [repeats[0] for repeats in by_text.values() if len({e.restricted for e in repeats}) == 1]
    contradictory = len(by_text) - len(unique)
    return unique, len(examples) - len(by_text), contradictory


def ordinary(examples: Sequence[Example]) -> list[bool]:
    """True for examples that represent everyday traffic: harmless plain requests whose group has no restricted text.

    Twins are False, because they share words with a restricted subject.
    """
    restricted = {e.group for e in examples if e.restricted}
    return [
        e.kind == "request" and e.family == PLAIN and not e.restricted and e.group not in restricted for e in examples
    ]


def split(examples: Sequence[Example], share: float, *, seed: int) -> tuple[list[Example], list[Example]]:
    """Split into training and held-out examples; all examples of a group are on the same side.

    Groups are drawn within each rule and kind. At least one is held out where there are two or more, so the evaluation
    covers every such rule.

    Args:
        examples: all examples.
        share: share of the groups that is held out.
        seed: seed of the draw.
    """
    by_stratum: dict[tuple[str, str], list[str]] = {}
    for example in examples:
        groups = by_stratum.setdefault((example.rule or "", example.kind), [])
        if example.group not in groups:
            groups.append(example.group)
    heldout_groups: set[str] = set()
    for stratum, groups in sorted(by_stratum.items()):
        if len(groups) >= 2:
            count = min(len(groups) - 1, max(1, round(share * len(groups))))
            heldout_groups.update(Random(content_id("split", seed, *stratum)).sample(sorted(groups), count))
    return [e for e in examples if e.group not in heldout_groups], [e for e in examples if e.group in heldout_groups]
