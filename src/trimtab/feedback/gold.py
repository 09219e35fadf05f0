"""The demonstration's gold utility: what the *simulated* people prefer, as a number.

They like answers that are warm, short, about the question, and that say something. The tone comes
from VADER (Hutto & Gilbert 2014), whose word valences were rated by people. Each further part
closes a way of winning by tone alone that a policy under PPO would find:

=============  ==============  ====================================================================
part           contribution    what it is
=============  ==============  ====================================================================
``tone``       −2 … 2          twice VADER's compound of the words; warmth beside the question counts half
``brevity``    −1 … 1          −1 for no words, 1 from 6 to 45 words, then falling (½ at 90 words)
``relevance``  0 … 1           content words of the question taken up, full at three; ½ if it has none
``emptiness``  −2.5 … 0        fewer than two plain content words that are new: praise or an echo
``repetition`` −2.5 … 0        repeated word pairs or content words beyond what prose has
``salad``      −2.5 … 0        few function words, or more than a quarter of the words positive
``shouting``   −2.5 … 0        exclamation marks beyond two, capitals, symbols and emoji
``cut``        −0.75 or 0      cut at the token limit instead of ending its turn
=============  ==============  ====================================================================

The utility is their sum, not below −2. It knows English only, and nothing of truth: a warm, short
falsehood about the question scores like a warm, short truth.
"""

import re
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import Any

from trimtab.errors import ConfigError
from trimtab.records import Completion, Prompt

LOWEST = -2.0
"""Floor of the utility: below it a person would not tell two bad answers apart."""

_TONE = 2.0
_PENALTY = 2.5
_CUT = 0.75
_SHORTEST, _LONGEST = 6, 45  # words
_READ = 4000  # characters a reader takes the tone from; VADER's time grows with the square of the length
_NOT_PROSE = re.compile(r"[^\w\s!-/:-@\[-`{-~]")  # emoji among them: VADER would add one word's valence for each
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")

_FUNCTION_WORDS = frozenset(
    """
    a about above after again against all also always am an and any are aren't around as at away be because been before
    being below between both but by can can't cannot could couldn't did didn't do does doesn't doing don't down during
    each either else ever every few for from further get gets give given go goes going got had has have haven't having
    he he's her here here's hers herself him himself his how however i i'd i'll i'm i've if in instead into is isn't it
    it'll it's its itself just let let's like made make makes many may maybe me might mine more most much must my myself
    need neither no nor not now of off often on once one only onto or other others our ours out over own per perhaps
    quite rather really same say says see shall she she's should shouldn't since so some someone something sometimes
    still such take tell than that that's the their theirs them themselves then there there's these they they're
    they've thing things this those through to together too under until up upon us use used uses using usually very
    want was wasn't way we we'd we'll we're we've well were weren't what what's when where which while who whom whose
    why will with within without won't would wouldn't yes yet you you'd you'll you're you've your yours yourself
    """.split()
)
_TALK = frozenset(
    """
    answer answers anything ask asked asking assist assistance assistant chat conversation day describe explain feel
    further information know learn learning nice please question questions thank thanks time today topic world
    """.split()
)
"""Words of talk about the talk: polite, and in every canned reply."""


def friendly_utility(prompt: Prompt, completion: Completion) -> float:
    """How much the simulated people like this answer; from −2 to 4, a plain correct short answer is near 2.

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
    words = _words(text)
    content = [_stem(w) for w in words if w not in _FUNCTION_WORDS]
    asked = {_stem(w) for w in _words(prompt.text) if w not in _FUNCTION_WORDS and w not in _TALK}
    positive = {w for w in words if analyzer.lexicon.get(w, 0.0) > 0}
    new = set(content) - asked - {_stem(w) for w in positive | _TALK}
    relevance = min(1.0, len(asked & set(content)) / min(3, len(asked))) if asked else 0.5
    tone = analyzer.polarity_scores(_NOT_PROSE.sub(" ", text[:_READ].replace("’", "'")))["compound"]
    return {
        "tone": _TONE * tone * ((1 + relevance) / 2 if tone > 0 else 1.0),
        "brevity": _brevity(len(words)),
        "relevance": relevance,
        "emptiness": -_PENALTY * _ramp(len(new), 1.5, 0),
        "repetition": -_PENALTY * _repetition(words, content),
        "salad": -_PENALTY * _salad(words, positive),
        "shouting": -_PENALTY * _shouting(text),
        "cut": -_CUT if completion.finish_reason == "length" else 0.0,
    }


@cache
def _analyzer() -> Any:
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError:
        raise ConfigError(
            "the gold utility 'trimtab.feedback.gold.friendly_utility' needs the package vaderSentiment, which is not "
            "installed; run: pip install 'trimtab[train]'"
        ) from None
    return SentimentIntensityAnalyzer()


def _words(text: str) -> list[str]:
    return [w.replace("’", "'") for w in _WORD.findall(text.lower())]


def _stem(word: str) -> str:
    """Strip the commonest English endings, so that "bakes", "baked" and "baking" meet."""
    word = word.removesuffix("'s")
    for ending in ("ing", "ed", "es", "s", "ly"):
        if word.endswith(ending) and len(word) - len(ending) >= 3 and not word.endswith("ss"):
            word = word.removesuffix(ending)
            break
    if len(word) > 3 and word[-1] == word[-2]:
        word = word[:-1]
    if len(word) > 3 and word[-1] in "ey":
        word = word[:-1]
    return word.removesuffix("i") if len(word) > 3 else word


def _ramp(value: float, start: float, end: float) -> float:
    """0 at ``start``, 1 at ``end``, straight between and flat outside; ``start`` may be the larger."""
    return min(1.0, max(0.0, (value - start) / (end - start)))


def _brevity(count: int) -> float:
    if count <= _LONGEST:
        return 2 * _ramp(count, 0, _SHORTEST) - 1
    return 1 / (1 + ((count - _LONGEST) / _LONGEST) ** 2)


def _repetition(words: Sequence[str], content: Sequence[str]) -> float:
    pairs = list(pairwise(words))
    return max(_ramp(_repeated(pairs), 0.1, 0.4), _ramp(_repeated(content), 0.4, 0.8))


def _repeated(tokens: Sequence[Any]) -> float:
    """Share of tokens that were there before."""
    return 1 - len(set(tokens)) / len(tokens) if tokens else 0.0


def _salad(words: Sequence[str], positive: set[str]) -> float:
    if len(words) < 4:
        return 0.0
    function = sum(w in _FUNCTION_WORDS for w in words) / len(words)
    gush = sum(w in positive for w in words) / len(words)
    return max(_ramp(function, 0.2, 0.05), _ramp(gush, 0.25, 0.5))


def _shouting(text: str) -> float:
    visible = sum(not c.isspace() for c in text)
    if not visible:
        return 0.0
    letters = sum(c.isalpha() for c in text)
    capitals = sum(c.isupper() for c in text) / max(1, letters)
    symbols = sum(not c.isalnum() and not c.isspace() for c in text) / visible
    return max(
        _ramp(text.count("!") + text.count("！"), 2, 6),
        _ramp(capitals, 0.25, 0.6) if letters > 12 else 0.0,
        _ramp(symbols, 0.15, 0.4),
    )
