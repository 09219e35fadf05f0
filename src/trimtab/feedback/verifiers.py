"""Rewards that can be checked by rule: the right number, and instructions about form.

Both are ordinary reward functions: rollouts in, one number per rollout out. What is right comes with
the prompt (``prompt.metadata``), from the columns of the data file that readers do not use otherwise.
"""

import json
import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

from trimtab.errors import ScoringError
from trimtab.feedback.final_number import final_number
from trimtab.records import Rollout


def arithmetic(rollouts: Sequence[Rollout]) -> list[float]:
    r"""1 if the answer's final number equals the reference's, else 0.

    The reference is ``prompt.metadata["reference"]`` (or ``"answer"``). Of both, the number counts that
    :func:`~trimtab.feedback.final_number.final_number` finds: in ``\boxed{}``, after ``####``, after "answer is", or
    else the last one. 1,200 = 1200.0 = $1200; 1/2 = 0.5.

    Raises:
        ScoringError: a prompt has no reference, or a reference without a number.
    """
    return [float(final_number(r.text) == _reference_number(r)) for r in rollouts]


def _reference_number(rollout: Rollout) -> Fraction:
    known = rollout.prompt.metadata
    reference = known.get("reference", known.get("answer"))
    number = None if reference is None else final_number(str(reference))
    if number is None:
        raise ScoringError(
            f"prompt {rollout.prompt.id} has no reference number (metadata.reference is {reference!r}); the arithmetic "
            "reward needs data with a 'reference' or 'answer' column, for example question and answer rows"
        )
    return number


# Instructions about form ------------------------------------------------------------------


def instructions(rollouts: Sequence[Rollout]) -> list[float]:
    """Share of a prompt's instructions about form that the answer follows, from 0 to 1.

    Instructions are named as in IFEval (Zhou et al. 2023, arXiv 2311.07911): ``prompt.metadata`` has
    ``instruction_id_list`` and, in the same order, ``kwargs``. An empty answer follows none.

    Raises:
        ScoringError: a prompt has no instructions, or one that is not known here.
    """
    return [_followed(r) for r in rollouts]


def _followed(rollout: Rollout) -> float:
    known = rollout.prompt.metadata
    names, settings = known.get("instruction_id_list"), known.get("kwargs")
    if not isinstance(names, list) or not isinstance(settings, list) or not names or len(names) != len(settings):
        raise ScoringError(
            f"prompt {rollout.prompt.id} has no instructions to check: metadata needs instruction_id_list and kwargs, "
            f"two lists of equal length, and has {sorted(known)}"
        )
    right = 0
    for name, given in zip(names, settings, strict=True):
        if name not in INSTRUCTIONS:
            raise ScoringError(
                f"prompt {rollout.prompt.id}: instruction {name!r} is not known; known: {', '.join(INSTRUCTIONS)}"
            )
        wanted = {k: v for k, v in (given or {}).items() if v is not None}
        try:
            right += bool(rollout.text.strip()) and INSTRUCTIONS[name](rollout.text, **wanted)
        except (TypeError, KeyError) as error:
            raise ScoringError(f"prompt {rollout.prompt.id}: instruction {name!r} with {wanted}: {error}") from error
    return right / len(names)


def _compare(count: int, relation: str | None, wanted: int) -> bool:
    return count < wanted if relation == "less than" else count >= wanted


def _words(text: str) -> list[str]:
    return re.findall(r"[\w'’-]+", text)


def _sentences(text: str) -> int:
    return len([s for s in re.split(r"(?<=[.!?])[\"')\]]*\s+|\n{2,}", text.strip()) if s.strip()])


def _paragraphs(text: str, mark: str) -> list[str]:
    return [p for p in re.split(mark, text) if p.strip()]


def _occurrences(text: str, word: str) -> int:
    return len(re.findall(rf"(?<!\w){re.escape(word)}(?!\w)", text, flags=re.I))


def _is_json(text: str) -> bool:
    plain = re.sub(r"^```(?:json)?|```$", "", text.strip(), flags=re.I).strip()
    try:
        json.loads(plain)
    except ValueError:
        return False
    return True


def _nth_paragraph(text: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    paragraphs = _paragraphs(text, r"\n\n")
    if len(paragraphs) != num_paragraphs or not 1 <= nth_paragraph <= len(paragraphs):
        return False
    words = _words(paragraphs[nth_paragraph - 1])
    return bool(words) and words[0].lower() == first_word.lower()


def _two_responses(text: str) -> bool:
    parts = [p.strip() for p in text.split("******")]
    return len(parts) == 2 and all(parts) and parts[0] != parts[1]


def _letters(text: str, letter: str, let_frequency: int, let_relation: str | None = None) -> bool:
    return _compare(text.lower().count(letter.lower()), let_relation, let_frequency)


def _capitals(text: str, capital_frequency: int, capital_relation: str | None = None) -> bool:
    return _compare(sum(word.isupper() for word in _words(text)), capital_relation, capital_frequency)


def _sections(text: str, section_spliter: str, num_sections: int) -> bool:
    return len(re.findall(rf"\s?{re.escape(section_spliter)}\s?\d+", text)) >= num_sections


def _keyword(text: str, keyword: str, frequency: int, relation: str | None = None) -> bool:
    return _compare(_occurrences(text, keyword), relation, frequency)


Check = Callable[..., Any]

INSTRUCTIONS: dict[str, Check] = {
    "punctuation:no_comma": lambda t: "," not in t,
    "length_constraints:number_words": lambda t, num_words, relation=None: _compare(
        len(_words(t)), relation, num_words
    ),
    "length_constraints:number_sentences": lambda t, num_sentences, relation=None: _compare(
        _sentences(t), relation, num_sentences
    ),
    "length_constraints:number_paragraphs": lambda t, num_paragraphs: len(_paragraphs(t, r"\*\*\*")) == num_paragraphs,
    "length_constraints:nth_paragraph_first_word": _nth_paragraph,
    "detectable_format:number_highlighted_sections": lambda t, num_highlights: (
        len(re.findall(r"\*[^\n*]*[^\s*][^\n*]*\*", t.replace("**", "*"))) >= num_highlights
    ),
    "detectable_format:number_bullet_lists": lambda t, num_bullets: (
        len(re.findall(r"^\s*(?:\*[^*]|-)", t, flags=re.M)) == num_bullets
    ),
    "detectable_format:title": lambda t: bool(re.search(r"<<[^\n<>]*[^\s<>][^\n<>]*>>", t)),
    "detectable_format:json_format": _is_json,
    "detectable_format:multiple_sections": _sections,
    "detectable_format:constrained_response": lambda t: any(
        f"My answer is {choice}." in t for choice in ("yes", "no", "maybe")
    ),
    "detectable_content:number_placeholders": lambda t, num_placeholders: (
        len(re.findall(r"\[[^\[\]]+\]", t)) >= num_placeholders
    ),
    "detectable_content:postscript": lambda t, postscript_marker: postscript_marker.lower() in t.lower(),
    "keywords:existence": lambda t, keywords: all(_occurrences(t, word) for word in keywords),
    "keywords:forbidden_words": lambda t, forbidden_words: not any(_occurrences(t, word) for word in forbidden_words),
    "keywords:frequency": _keyword,
    "keywords:letter_frequency": _letters,
    "change_case:english_capital": lambda t: t.isupper(),
    "change_case:english_lowercase": lambda t: t.islower(),
    "change_case:capital_word_frequency": _capitals,
    "startend:end_checker": lambda t, end_phrase: t.strip().strip("\"'").lower().endswith(end_phrase.strip().lower()),
    "startend:quotation": lambda t: len(t.strip()) > 1 and t.strip()[0] == '"' == t.strip()[-1],
    "combination:repeat_prompt": lambda t, prompt_to_repeat: (
        t.strip().lower().startswith(prompt_to_repeat.strip().lower())
    ),
    "combination:two_responses": _two_responses,
}
"""Checks by IFEval's names; ``language:response_language`` is missing, it needs a language detector."""
