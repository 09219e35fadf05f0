"""A reward with a planted flaw, to demonstrate over-optimisation: ``recipes/flawed-proxy.yaml``."""

from collections.abc import Sequence

from trimtab.feedback.headline_taste import message_of
from trimtab.feedback.words import FUNCTION_WORDS, stem, words_of
from trimtab.records import Rollout


def overlap(rollouts: Sequence[Rollout]) -> list[float]:
    """Number of content words of a headline that its message contains; repetitions in the headline count.

    At first this rewards what a reader wants: the message's facts. It has no upper limit, so it also rewards copies,
    length and repeated words. Its flaw is planted; use it for demonstrations only.
    """
    return [_overlap(rollout) for rollout in rollouts]


def _overlap(rollout: Rollout) -> float:
    message_stems = {stem(word) for word in words_of(message_of(rollout.prompt)) if word not in FUNCTION_WORDS}
    return float(sum(stem(word) in message_stems for word in words_of(rollout.text) if word not in FUNCTION_WORDS))
