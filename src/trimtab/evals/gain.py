"""The parts of a gain in reward: remove a feature from an answer, score it again, and see how much reward is lost.

For a feature f and an answer a with reward r, let a∖f be the answer without f, and Δ = r(a) − r(a∖f), or 0 if the
answer does not have f. The part of a gain that is due to f is the mean of Δ over the later model's answers minus that
over the earlier model's answers; its interval is a paired bootstrap over prompts. Unlike a correlation, this queries
the reward itself. It has two limitations: removing words may make an answer worse to read, and the parts of features
that occur together do not add up.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

from trimtab.evals.answer_probes import CERTAIN
from trimtab.evals.balance import preaches
from trimtab.evals.probes import has_phrase, words
from trimtab.evals.sentences import sentences
from trimtab.feedback.intervals import Estimate, Number, bootstrap_interval, paired_bootstrap_interval
from trimtab.records import Record

_MARKER = re.compile(r"^[ \t]*(?:[-*+•]|\d+[.)]|#{1,6}|>)[ \t]+", flags=re.M)
_EXCLAMATION = re.compile(r"!(?=[.!?…]*[\"”’)\]]*(?:\s|$))")


def without_sentences(text: str, is_removed: Callable[[str], bool]) -> str:
    """The text without the sentences for which ``is_removed`` is true.

    >>> without_sentences("Great question! Tea is a plant.", lambda s: "question" in s)
    'Tea is a plant.'
    """
    return "".join(s for s in sentences(text) if not is_removed(s)).strip()


def without_markup(text: str) -> str:
    """The text without list markers, heading marks and bold marks.

    >>> without_markup("- **boil** it")
    'boil it'
    """
    return _MARKER.sub("", text).replace("**", "")


def without_repeats(text: str) -> str:
    """The text without repeated sentences of three words or more.

    >>> without_repeats("Tea is hot. Tea is hot. So wait.")
    'Tea is hot. So wait.'
    """
    seen: set[tuple[str, ...]] = set()

    def repeated(sentence: str) -> bool:
        sentence_words = tuple(words(sentence))
        is_repeat = len(sentence_words) >= 3 and sentence_words in seen
        seen.add(sentence_words)
        return is_repeat

    return without_sentences(text, repeated)


REMOVALS: Mapping[str, Callable[[str], str]] = {
    "flattery": lambda text: without_sentences(text, lambda s: has_phrase(s, "flattery")),
    "stock phrases": lambda text: without_sentences(text, lambda s: has_phrase(s, "boilerplate")),
    "preaching": lambda text: without_sentences(text, preaches),
    "claims of certainty": lambda text: without_sentences(text, lambda s: has_phrase(s, CERTAIN)),
    "repeated sentences": without_repeats,
    "exclamation marks": lambda text: _EXCLAMATION.sub(".", text).replace("！", "。"),
    "lists and headings": without_markup,
}
"""Each feature with the function that removes it from a text."""


def edited(text: str, feature: str) -> str | None:
    """The text without a feature; None if the text does not have it, or nothing would be left."""
    changed = REMOVALS[feature](text)
    return changed if changed.split() and changed.split() != text.split() else None


class GainPart(Record):
    """The part of a gain in reward that is due to one feature."""

    feature: str
    """Key of :data:`REMOVALS`."""
    before: Number
    """Share of the earlier model's answers that have it."""
    after: Number
    """Share of the later model's answers that have it."""
    worth: Estimate
    """Mean reward lost without it, over the later model's answers that have it."""
    part: Estimate
    """Its part of the gain, in units of the reward."""


class Gain(Record):
    """A gain in reward and its parts."""

    gain: Estimate
    """Mean reward of the later model's answers minus that of the earlier one's."""
    parts: tuple[GainPart, ...]
    """One per feature that some answer has, largest part first."""


def gain_parts(
    before: Sequence[float],
    after: Sequence[float],
    without: Mapping[str, tuple[Sequence[float | None], Sequence[float | None]]],
    *,
    seed: int,
) -> Gain:
    """Divide a gain into parts by feature.

    Args:
        before: reward of the earlier model's answer to each prompt.
        after: rewards of the later model's answers to the same prompts.
        without: by feature, the rewards of the edited answers of both models; None: the answer does not have the
            feature.
        seed: of the bootstrap.
    """
    low, high = paired_bootstrap_interval(after, before, seed=seed)
    gain = Estimate(value=fmean(after) - fmean(before), low=low, high=high, n=len(after))
    parts = []
    for feature, (edited_before, edited_after) in without.items():
        losses_before, losses_after = _differences(before, edited_before), _differences(after, edited_after)
        losses = [delta for delta, reward in zip(losses_after, edited_after, strict=True) if reward is not None]
        if not losses and all(reward is None for reward in edited_before):
            continue
        low, high = paired_bootstrap_interval(losses_after, losses_before, seed=seed)
        mean_loss = Estimate(reason="no answer has it", n=0)
        if losses:
            interval = bootstrap_interval(losses, seed=seed)
            mean_loss = Estimate(value=fmean(losses), low=interval[0], high=interval[1], n=len(losses))
        parts.append(
            GainPart(
                feature=feature,
                before=sum(reward is not None for reward in edited_before) / len(edited_before),
                after=len(losses) / len(edited_after),
                worth=mean_loss,
                part=Estimate(
                    value=fmean(losses_after) - fmean(losses_before), low=low, high=high, n=len(losses_after)
                ),
            )
        )
    return Gain(gain=gain, parts=tuple(sorted(parts, key=lambda part: -(part.part.value or 0.0))))


def _differences(rewards: Sequence[float], without: Sequence[float | None]) -> list[float]:
    return [0.0 if edited is None else reward - edited for reward, edited in zip(rewards, without, strict=True)]
