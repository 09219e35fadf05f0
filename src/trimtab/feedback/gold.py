"""The demonstration's gold utility: what the *simulated* people prefer, as a number.

They like answers that are warm, short, about the question, and that say something. The tone comes
from VADER (Hutto & Gilbert 2014), whose word valences were rated by people. Each of the other parts
closes a loophole: a way to win by tone alone that a policy under PPO would find.

=============  ==============  ====================================================================
part           contribution    what it is
=============  ==============  ====================================================================
``tone``       −2 … 2          twice VADER's compound score; if positive, it counts half at a relevance of 0
``brevity``    −1 … 1          −1 for no words, 1 from 6 to 45 words, then falling (½ at 90 words)
``relevance``  0 … 1           content words of the question in the answer, full at three; ½ if the question has none
``emptiness``  −2.5 … 0        fewer than two new content words that are not praise or small talk
``repetition`` −2.5 … 0        more repeated word pairs or content words than prose has
``salad``      −2.5 … 0        few function words, or more than a quarter of the words positive
``shouting``   −2.5 … 0        exclamation marks beyond two, capitals, symbols and emoji
``cut``        −0.75 or 0      cut at the token limit instead of ending its turn
=============  ==============  ====================================================================

The utility is their sum, but at least −2. It covers English only and does not check facts: a warm, short
falsehood about the question scores like a warm, short truth.
"""

import re
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from typing import Any

from trimtab.errors import ConfigError, install_hint
from trimtab.feedback.words import FUNCTION_WORDS, ramp, repetition, stem, words_of
from trimtab.records import Completion, Prompt

LOWEST = -2.0
"""Lowest utility: below it, a person would not tell two bad answers apart."""

_TONE_WEIGHT = 2.0
_PENALTY = 2.5
_CUT_PENALTY = 0.75
_MIN_WORDS, _MAX_WORDS = 6, 45  # words
_TONE_CHARACTERS = 4000  # characters that the tone is read from; VADER's time grows with the square of the length
_NOT_PROSE = re.compile(r"[^\w\s!-/:-@\[-`{-~]")  # includes emoji: VADER would add the valence of a word for each

_SMALL_TALK = frozenset(
    """
    answer answers anything ask asked asking assist assistance assistant chat conversation day describe explain feel
    further information know learn learning nice please question questions thank thanks time today topic world
    """.split()
)
"""Words about the conversation itself: polite, and in every canned reply."""


def friendly_utility(prompt: Prompt, completion: Completion) -> float:
    """Utility of an answer to the simulated annotators, from −2 to 4; a plain correct short answer is near 2.

    Raises:
        ConfigError: if ``vaderSentiment`` is not installed.
    """
    return max(LOWEST, sum(friendly_parts(prompt, completion).values()))


def friendly_parts(prompt: Prompt, completion: Completion) -> dict[str, float]:
    """The contributions to :func:`friendly_utility` by name, each in the range of the module's table.

    Raises:
        ConfigError: if ``vaderSentiment`` is not installed.
    """
    analyzer = _analyzer()
    text = completion.text
    answer_words = words_of(text)
    content_stems = [stem(w) for w in answer_words if w not in FUNCTION_WORDS]
    question_stems = {stem(w) for w in words_of(prompt.text) if w not in FUNCTION_WORDS and w not in _SMALL_TALK}
    positive = {w for w in answer_words if analyzer.lexicon.get(w, 0.0) > 0}
    new_stems = set(content_stems) - question_stems - {stem(w) for w in positive | _SMALL_TALK}
    relevance = (
        min(1.0, len(question_stems & set(content_stems)) / min(3, len(question_stems))) if question_stems else 0.5
    )
    tone = analyzer.polarity_scores(_NOT_PROSE.sub(" ", text[:_TONE_CHARACTERS].replace("’", "'")))["compound"]
    return {
        "tone": _TONE_WEIGHT * tone * ((1 + relevance) / 2 if tone > 0 else 1.0),
        "brevity": _brevity(len(answer_words)),
        "relevance": relevance,
        "emptiness": -_PENALTY * ramp(len(new_stems), 1.5, 0),
        "repetition": -_PENALTY * repetition(answer_words, content_stems),
        "salad": -_PENALTY * _salad(answer_words, positive),
        "shouting": -_PENALTY * _shouting(text),
        "cut": -_CUT_PENALTY if completion.finish_reason == "length" else 0.0,
    }


@cache
def _analyzer() -> Any:
    try:
        vader: Any = import_module("vaderSentiment.vaderSentiment")
    except ImportError:
        raise ConfigError(
            "the gold utility 'trimtab.feedback.gold.friendly_utility' needs the package vaderSentiment, which is not "
            f"installed; {install_hint('train')}"
        ) from None
    return vader.SentimentIntensityAnalyzer()


def _brevity(count: int) -> float:
    if count <= _MAX_WORDS:
        return 2 * ramp(count, 0, _MIN_WORDS) - 1
    return 1 / (1 + ((count - _MAX_WORDS) / _MAX_WORDS) ** 2)


def _salad(words: Sequence[str], positive: set[str]) -> float:
    if len(words) < 4:
        return 0.0
    function_share = sum(w in FUNCTION_WORDS for w in words) / len(words)
    positive_share = sum(w in positive for w in words) / len(words)
    return max(ramp(function_share, 0.2, 0.05), ramp(positive_share, 0.25, 0.5))


def _shouting(text: str) -> float:
    visible = sum(not c.isspace() for c in text)
    if not visible:
        return 0.0
    letters = sum(c.isalpha() for c in text)
    capitals = sum(c.isupper() for c in text) / max(1, letters)
    symbols = sum(not c.isalnum() and not c.isspace() for c in text) / visible
    return max(
        ramp(text.count("!") + text.count("！"), 2, 6),
        ramp(capitals, 0.25, 0.6) if letters > 12 else 0.0,
        ramp(symbols, 0.15, 0.4),
    )
