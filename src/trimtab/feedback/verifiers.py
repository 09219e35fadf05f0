"""Rewards that are checked by rule: the right number, and instructions about form.

Both are ordinary reward functions: rollouts in, one number per rollout out. The reference comes with the
prompt: ``prompt.metadata`` has the columns of the data file that readers do not use otherwise.
"""

import json
import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

from trimtab.errors import ScoringError
from trimtab.feedback.final_number import final_number
from trimtab.records import Rollout
from trimtab.records.literals import is_list


def arithmetic(rollouts: Sequence[Rollout]) -> list[float]:
    r"""1 if the answer's final number equals the reference's, else 0.

    The reference is ``prompt.metadata["reference"]`` (or ``"answer"``). In both texts,
    :func:`~trimtab.feedback.final_number.final_number` finds the number: in ``\boxed{}``, after ``####``, after
    "answer is", or else the last one. 1,200 = 1200.0 = $1200; 1/2 = 0.5.

    Raises:
        ScoringError: a prompt has no reference, or a reference without a number.
    """
    return [float(final_number(r.text) == _reference_number(r)) for r in rollouts]


def _reference_number(rollout: Rollout) -> Fraction:
    metadata = rollout.prompt.metadata
    reference = metadata.get("reference", metadata.get("answer"))
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
        ScoringError: a prompt has no instructions, or an unknown one.
    """
    return [_followed_share(r) for r in rollouts]


def _followed_share(rollout: Rollout) -> float:
    metadata = rollout.prompt.metadata
    names, settings = metadata.get("instruction_id_list"), metadata.get("kwargs")
    if not is_list(names) or not is_list(settings) or not names or len(names) != len(settings):
        raise ScoringError(
            f"prompt {rollout.prompt.id} has no instructions to check: metadata needs instruction_id_list and kwargs, "
            f"two lists of equal length, and has {sorted(metadata)}"
        )
    followed = 0
    arguments: dict[str, Any] | None
    for name, arguments in zip(names, settings, strict=True):
        if name not in INSTRUCTIONS:
            raise ScoringError(
                f"prompt {rollout.prompt.id}: instruction {name!r} is not known; known: {', '.join(INSTRUCTIONS)}"
            )
        given_arguments = {k: v for k, v in (arguments or {}).items() if v is not None}
        try:
            followed += bool(rollout.text.strip()) and INSTRUCTIONS[name](rollout.text, **given_arguments)
        except (TypeError, KeyError) as error:
            raise ScoringError(
                f"prompt {rollout.prompt.id}: instruction {name!r} with {given_arguments}: {error}"
            ) from error
    return followed / len(names)


def _compare(count: int, relation: str | None, limit: int) -> bool:
    return count < limit if relation == "less than" else count >= limit


def _words(text: str) -> list[str]:
    return re.findall(r"[\w'’-]+", text)


def _sentences(text: str) -> int:
    return len([s for s in re.split(r"(?<=[.!?])[\"')\]]*\s+|\n{2,}", text.strip()) if s.strip()])


def _paragraphs(text: str, separator: str) -> list[str]:
    return [p for p in re.split(separator, text) if p.strip()]


def _occurrences(text: str, word: str) -> int:
    return len(re.findall(rf"(?<!\w){re.escape(word)}(?!\w)", text, flags=re.I))


def _is_json(text: str) -> bool:
    without_fences = re.sub(r"^```(?:json)?|```$", "", text.strip(), flags=re.I).strip()
    try:
        json.loads(without_fences)
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


def _no_comma(text: str) -> bool:
    return "," not in text


def _number_of_words(text: str, num_words: int, relation: str | None = None) -> bool:
    return _compare(len(_words(text)), relation, num_words)


def _number_of_sentences(text: str, num_sentences: int, relation: str | None = None) -> bool:
    return _compare(_sentences(text), relation, num_sentences)


def _number_of_paragraphs(text: str, num_paragraphs: int) -> bool:
    return len(_paragraphs(text, r"\*\*\*")) == num_paragraphs


def _highlights(text: str, num_highlights: int) -> bool:
    return len(re.findall(r"\*[^\n*]*[^\s*][^\n*]*\*", text.replace("**", "*"))) >= num_highlights


def _bullets(text: str, num_bullets: int) -> bool:
    return len(re.findall(r"^\s*(?:\*[^*]|-)", text, flags=re.M)) == num_bullets


def _title(text: str) -> bool:
    return bool(re.search(r"<<[^\n<>]*[^\s<>][^\n<>]*>>", text))


def _constrained(text: str) -> bool:
    return any(f"My answer is {choice}." in text for choice in ("yes", "no", "maybe"))


def _placeholders(text: str, num_placeholders: int) -> bool:
    return len(re.findall(r"\[[^\[\]]+\]", text)) >= num_placeholders


def _postscript(text: str, postscript_marker: str) -> bool:
    return postscript_marker.lower() in text.lower()


def _keywords(text: str, keywords: Sequence[str]) -> bool:
    return all(_occurrences(text, word) for word in keywords)


def _no_forbidden(text: str, forbidden_words: Sequence[str]) -> bool:
    return not any(_occurrences(text, word) for word in forbidden_words)


def _ends_with(text: str, end_phrase: str) -> bool:
    return text.strip().strip("\"'").lower().endswith(end_phrase.strip().lower())


def _quoted(text: str) -> bool:
    return len(text.strip()) > 1 and text.strip()[0] == '"' == text.strip()[-1]


def _repeats_prompt(text: str, prompt_to_repeat: str) -> bool:
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


INSTRUCTIONS: dict[str, Callable[..., bool]] = {
    "punctuation:no_comma": _no_comma,
    "length_constraints:number_words": _number_of_words,
    "length_constraints:number_sentences": _number_of_sentences,
    "length_constraints:number_paragraphs": _number_of_paragraphs,
    "length_constraints:nth_paragraph_first_word": _nth_paragraph,
    "detectable_format:number_highlighted_sections": _highlights,
    "detectable_format:number_bullet_lists": _bullets,
    "detectable_format:title": _title,
    "detectable_format:json_format": _is_json,
    "detectable_format:multiple_sections": _sections,
    "detectable_format:constrained_response": _constrained,
    "detectable_content:number_placeholders": _placeholders,
    "detectable_content:postscript": _postscript,
    "keywords:existence": _keywords,
    "keywords:forbidden_words": _no_forbidden,
    "keywords:frequency": _keyword,
    "keywords:letter_frequency": _letters,
    "change_case:english_capital": str.isupper,
    "change_case:english_lowercase": str.islower,
    "change_case:capital_word_frequency": _capitals,
    "startend:end_checker": _ends_with,
    "startend:quotation": _quoted,
    "combination:repeat_prompt": _repeats_prompt,
    "combination:two_responses": _two_responses,
}
"""Checks by IFEval's names; ``language:response_language`` is missing, because it needs a language detector."""
