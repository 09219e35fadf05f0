"""Adds altered copies of preferences, so that a reward model learns not to reward form instead of content.

A copy of a preference has the prompt, the best answer and an edit of that answer. The inserted texts differ from those
of :mod:`trimtab.evals.edits`, which test a reward model. Source of the kinds: answers of other prompts and tied pairs,
Liu et al. 2024 (RRM, arXiv 2409.13156); tied pairs that differ in form only, Srivastava et al. 2025 (Crome, arXiv
2506.16507).
"""

import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from pydantic import Field

from trimtab.config import Config
from trimtab.evals.sentences import sentences
from trimtab.records import Completion, Preference

AUGMENTED = "augmented"
"""Key of a copy's metadata with its kind."""

PRAISE = (
    "That is a great thing to ask.",
    "I really admire your curiosity!",
    "You are so smart for bringing this up.",
    "Excellent, excellent question.",
    "What an insightful thought, I am impressed.",
    "It is a pleasure to help someone as thoughtful as you.",
)
FILLER = (
    "Of course, every situation is different and one should keep an open mind.",
    "There is a lot more that could be said about this topic.",
    "In the end, it all comes together in one way or another.",
    "It is important to look at this from more than one side.",
    "I hope that this gives you a general idea of the matter.",
    "As with many things in life, context is what counts.",
)
CONTRACTIONS = {
    "can't": "cannot",
    "don't": "do not",
    "doesn't": "does not",
    "didn't": "did not",
    "isn't": "is not",
    "aren't": "are not",
    "wasn't": "was not",
    "won't": "will not",
    "wouldn't": "would not",
    "shouldn't": "should not",
    "it's": "it is",
    "i'm": "I am",
    "you're": "you are",
    "they're": "they are",
    "we're": "we are",
    "i've": "I have",
    "you've": "you have",
    "i'll": "I will",
    "you'll": "you will",
}
_CONTRACTED = re.compile(r"\b(" + "|".join(CONTRACTIONS) + r")\b", re.IGNORECASE)


class AugmentConfig(Config):
    """Altered copies of training preferences, each kind as a share of the preferences; 0: none of this kind."""

    shuffled: float = Field(default=0.0, ge=0.0, le=1.0)
    """Another prompt's best answer loses against the best one."""
    flattery: float = Field(default=0.0, ge=0.0, le=1.0)
    """The best answer with a sentence of praise before it loses against the same answer without it."""
    padding: float = Field(default=0.0, ge=0.0, le=1.0)
    """The best answer with sentences without content loses."""
    repetition: float = Field(default=0.0, ge=0.0, le=1.0)
    """The best answer, said twice, loses."""
    neutral: float = Field(default=0.0, ge=0.0, le=1.0)
    """The best answer with each sentence on its own line, or without contractions, ties with the best answer: as a tie
    if the loss has ties, otherwise as a soft label of one half."""

    @property
    def shares(self) -> dict[str, float]:
        """Share of each kind."""
        return {kind: getattr(self, kind) for kind in type(self).model_fields}


def praise(text: str, draw: random.Random) -> str:
    """Add a sentence of praise before the answer."""
    return f"{draw.choice(PRAISE)} {text}"


def fill(text: str, draw: random.Random) -> str:
    """Add two sentences without content after the answer."""
    return f"{text} {' '.join(draw.sample(FILLER, 2))}"


def repeat(text: str, draw: random.Random) -> str:
    """Repeat the whole answer."""
    return f"{text} {text}"


def restyle(text: str, draw: random.Random) -> str:
    """Write out contractions; if there are none, put each sentence on its own line."""

    def written_out(match: re.Match[str]) -> str:
        full = CONTRACTIONS[match[0].lower()]
        return full[0].upper() + full[1:] if match[0][0].isupper() else full

    expanded = _CONTRACTED.sub(written_out, text)
    return expanded if expanded != text else "\n".join(s.strip() for s in sentences(text.strip()))


EDITS: Mapping[str, Callable[[str, random.Random], str]] = {
    "flattery": praise,
    "padding": fill,
    "repetition": repeat,
    "neutral": restyle,
}
"""Edits of an answer, by kind."""


def augmented(
    preferences: Sequence[Preference], config: AugmentConfig, *, ties: bool, seed: int
) -> tuple[list[Preference], list[int], dict[str, int]]:
    """Copies of a share of the preferences.

    Args:
        preferences: the training preferences.
        config: share of each kind.
        ties: True: neutral edits are ties; False: soft labels of one half.
        seed: seed of the choice of preferences and sentences.

    Returns:
        the copies, which keep the ids of the judgements; the index of each copy's preference; and counts: copies of
        each kind, and ``KIND not possible`` for edits that would change nothing or need another prompt.
    """
    copies: list[Preference] = []
    origins: list[int] = []
    counts: Counter[str] = Counter()
    by_prompt: dict[str, str] = {}
    for p in preferences:
        by_prompt.setdefault(p.prompt.id, _best(p).text)
    for kind, share in config.shares.items():
        draw = random.Random(f"{seed}|{kind}")
        for i in sorted(draw.sample(range(len(preferences)), round(share * len(preferences)))):
            p = preferences[i]
            best = _best(p)
            if kind == "shuffled":
                other_texts = [text for prompt, text in by_prompt.items() if prompt != p.prompt.id]
                text = draw.choice(other_texts) if other_texts else best.text
            else:
                text = EDITS[kind](best.text, draw)
            if text == best.text:
                counts[f"{kind} not possible"] += 1
                continue
            tie = kind == "neutral"
            copies.append(
                p.model_copy(
                    update={
                        "id": f"{p.id}/{kind}",
                        "completions": (best, Completion(text=text, finish_reason=best.finish_reason)),
                        "ranks": (0, 0) if tie else (0, 1),
                        "probability": 0.5 if tie and not ties else None,
                        "margin": None,
                        "metadata": p.metadata | {AUGMENTED: kind},
                    }
                )
            )
            origins.append(i)
            counts[kind] += 1
    return copies, origins, dict(counts)


def _best(preference: Preference) -> Completion:
    """The answer that is most likely best."""
    p = preference.probability
    best = preference.ranks.index(min(preference.ranks)) if p is None else int(p < 0.5)
    return preference.completions[best]
