"""A reward with a planted flaw, to see over-optimisation with your own eyes: ``recipes/flawed-proxy.yaml``."""

from collections.abc import Sequence

from trimtab.feedback.headline_taste import message_of
from trimtab.feedback.words import FUNCTION_WORDS, stem, words_of
from trimtab.records import Rollout


def overlap(rollouts: Sequence[Rollout]) -> list[float]:
    """Content words of a headline that its message has too, each as often as it occurs in the headline.

    At first this pays for what a reader wants: the message's facts. It never stops paying, so it also pays for copies,
    for length and for saying the same word again. Its flaw is planted; use it for demonstrations only.
    """
    return [_overlap(rollout) for rollout in rollouts]


def _overlap(rollout: Rollout) -> float:
    known = {stem(word) for word in words_of(message_of(rollout.prompt)) if word not in FUNCTION_WORDS}
    return float(sum(stem(word) in known for word in words_of(rollout.text) if word not in FUNCTION_WORDS))
