"""English words as simulated readers see them: tokens, stems, function words, and repetition."""

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
"""A word; an inner apostrophe belongs to it."""

FUNCTION_WORDS = frozenset(
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


def words_of(text: str) -> list[str]:
    """Lower-case words; an inner apostrophe is kept, other punctuation removed."""
    return [w.replace("’", "'") for w in WORD.findall(text.lower())]


def stem(word: str) -> str:
    """Strip the most common English endings, so that "bakes", "baked" and "baking" have the same stem."""
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


def ramp(value: float, start: float, end: float) -> float:
    """0 at ``start``, 1 at ``end``, linear in between and constant outside; ``start`` may be the larger."""
    return min(1.0, max(0.0, (value - start) / (end - start)))


def repetition(tokens: Sequence[str], content: Sequence[str]) -> float:
    """From 0 to 1: how far repeated word pairs or repeated content words exceed what prose has."""
    pairs = list(pairwise(tokens))
    return max(ramp(_repeated_share(pairs), 0.1, 0.4), ramp(_repeated_share(content), 0.4, 0.8))


def _repeated_share(tokens: Sequence[Any]) -> float:
    """Share of tokens that repeat an earlier one."""
    return 1 - len(set(tokens)) / len(tokens) if tokens else 0.0
