"""Preferences as tokens: rankings of answers, pairs of their answers, and batches of rankings."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trimtab.algos import ranking_pairs
from trimtab.algos.reward import MAX_TIED
from trimtab.errors import DataError
from trimtab.models import Batch, Chat, Role, leave_out, parts_of_like_size
from trimtab.models.batch import collate_answers
from trimtab.records import Preference


@dataclass(frozen=True, kw_only=True, slots=True)
class PairVote:
    """One annotator's vote on two answers of a ranking."""

    annotator: int
    """Number of the annotator, from 0; −1: the average annotator."""
    first: int
    """Place of one answer in the ranking."""
    second: int
    """Place of the other answer."""
    outcome: int
    """0: the first is better; 1: a tie; 2: the second is."""
    shown: float
    """1: the first answer was shown before the second; −1: after it; 0: not known."""
    weight: float
    """Number of votes that it counts for; above 0."""
    apart: tuple[float, ...] = ()
    """Text features of the first answer minus those of the second, for a taste; empty if no taste is modelled."""
    taste: float = 0.0
    """Addition to the difference of the rewards from the annotator's taste; 0: no taste is known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranking:
    """One preference, encoded."""

    id: str
    """Id of the preference."""
    sequences: list[list[int]]
    """Tokens of prompt and answer, one list per answer."""
    prompt_length: int
    """Number of prompt tokens of each sequence."""
    ranks: tuple[int, ...]
    """Rank of each answer: 0 is best, equal ranks are a tie."""
    probability: float | None
    """Soft label P(first is better) of a pair, between 0 and 1; None: the ranks are certain. A label of exactly 0 or 1
    is certain and becomes ranks."""
    margin: float | None
    """Required difference of the rewards; None: none."""
    weight: float
    """Weight in the loss."""
    head: int = 0
    """The reward model's head that this label trains."""
    votes: tuple[PairVote, ...] = ()
    """The annotators' votes that the label was made from; empty if not known."""

    def __post_init__(self) -> None:
        if self.probability in (0.0, 1.0):
            object.__setattr__(self, "ranks", (0, 1) if self.probability else (1, 0))
            object.__setattr__(self, "probability", None)

    def pairs(self) -> Tensor:
        """Winner and loser of every strict pair of different answers, ``[P, 2]``; with a soft label, its two answers.

        Two answers with the same tokens always have the same reward, so they make no pair.
        """
        return _as_pairs(self._strict())

    def tied_pairs(self) -> Tensor:
        """Pairs of different answers of equal rank, ``[P, 2]``; none with a soft label, which includes ties."""
        return _as_pairs(self._tied())

    def _strict(self) -> list[tuple[int, int]]:
        places, ranks = range(len(self.ranks)), self.ranks
        pairs = (
            [(0, 1)]
            if self.probability is not None
            else [(i, j) for i in places for j in places if ranks[i] < ranks[j]]
        )
        return [(i, j) for i, j in pairs if self.sequences[i] != self.sequences[j]]

    def _tied(self) -> list[tuple[int, int]]:
        ranks = self.ranks if self.probability is None else ()
        tied = [(i, j) for i in range(len(ranks)) for j in range(i + 1, len(ranks)) if ranks[i] == ranks[j]]
        return [(i, j) for i, j in tied if self.sequences[i] != self.sequences[j]]

    def cast(self) -> list[PairVote]:
        """The votes on different answers; if there are none, the label as votes of the average annotator.

        In that case all pairs of K answers together count as K − 1 votes, times the ranking's weight.
        """
        if self.votes:
            return [v for v in self.votes if self.sequences[v.first] != self.sequences[v.second]]
        count = len(self.sequences)
        weight = self.weight * 2 / count
        votes = [(i, j, 0, weight) for i, j in self._strict()] + [(i, j, 1, weight) for i, j in self._tied()]
        if self.probability is not None:
            votes = [(i, j, k, w * share) for i, j, _, w in votes for k, share in self._shares() if share]
        return [PairVote(annotator=-1, first=i, second=j, outcome=k, shown=0.0, weight=w) for i, j, k, w in votes]

    def _shares(self) -> tuple[tuple[int, float], tuple[int, float]]:
        """Outcomes of a soft label and their shares; a probability of one half is a tie."""
        assert self.probability is not None
        if self.probability == 0.5:
            return (1, 1.0), (0, 0.0)
        return (0, self.probability), (2, 1 - self.probability)

    def best_first(self) -> list[int]:
        """Places of the answers from best to worst; with a soft label, in the given order.

        Of answers with the same tokens only the best is kept: an answer is not worse than itself.
        """
        places: dict[tuple[int, ...], int] = {}
        count = len(self.sequences)
        for place in range(count) if self.probability is not None else sorted(range(count), key=self.ranks.__getitem__):
            places.setdefault(tuple(self.sequences[place]), place)
        return list(places.values())


def _as_pairs(pairs: Sequence[tuple[int, int]]) -> Tensor:
    return torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)


@dataclass(frozen=True, kw_only=True, slots=True)
class PairTable:
    """All strict pairs of several rankings, optionally with the tied pairs.

    Legend: P pairs. Answers are numbered across all rankings.
    """

    better: Tensor
    """``[P]`` int64, number of the better answer (with a soft label, the first)."""
    worse: Tensor
    """``[P]`` int64, number of the other answer."""
    weights: list[float]
    """Weight of each pair: its ranking's, divided by the ranking's number of pairs."""
    probabilities: list[float]
    """P(better is better); 1 where the ranks are certain."""
    margins: list[float]
    """Required difference of the rewards; 0 if none is given."""
    rankings: list[int]
    """Place of each pair's ranking."""
    tied: list[bool]
    """True: both answers have the same rank."""

    @classmethod
    def of(cls, rankings: Sequence[Ranking], *, ties: bool = False) -> "PairTable":
        """The pairs of these rankings; with ``ties`` also those of equal rank."""
        pairs: list[tuple[int, int]] = []
        weights: list[float] = []
        probabilities: list[float] = []
        margins: list[float] = []
        owners: list[int] = []
        tied: list[bool] = []
        start = 0
        for number, ranking in enumerate(rankings):
            own = ranking._strict()
            tied += [False] * len(own)
            if ties:
                equal = ranking._tied()
                own += equal
                tied += [True] * len(equal)
            pairs += [(start + i, start + j) for i, j in own]
            weights += [ranking.weight / max(1, len(own))] * len(own)
            probabilities += [1.0 if ranking.probability is None else ranking.probability] * len(own)
            margins += [ranking.margin or 0.0] * len(own)  # a margin is for a pair of answers, and a tie has none
            owners += [number] * len(own)
            start += len(ranking.sequences)
        index = _as_pairs(pairs)
        return cls(
            better=index[:, 0],
            worse=index[:, 1],
            weights=weights,
            probabilities=probabilities,
            margins=margins,
            rankings=owners,
            tied=tied,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class RankingBatch:
    """Whole rankings, and the tokens of all their answers in order."""

    rankings: list[Ranking]
    tokens: Batch
    places: list[int]
    """Place of each ranking among those that the batch was made from."""

    @property
    def ids(self) -> list[str]:
        """Ids of the preferences, for messages."""
        return [r.id for r in self.rankings]


def encode_preferences(
    chat: Chat, preferences: Sequence[Preference], *, ties: bool = False, objectives: Sequence[str] = ()
) -> tuple[list[Ranking], list[Preference], dict[str, Any]]:
    """Rankings as tokens, their preferences, and the number left out, by reason.

    - ``too_long``: does not fit the context.
    - ``tied``: all answers have the same rank; usable with ``ties``.
    - ``identical``: the answers that differ in rank have the same tokens. ``identical_pairs`` counts such pairs in
      rankings that also have other pairs; these rankings are kept.
    - ``unrendered``: why the chat template cannot render a preference, by id.

    With ``objectives``, a preference trains the head at the place of its criterion in ``objectives``.
    """
    rankings, used = [], []
    left_out: dict[str, Any] = {"too_long": 0, "tied": 0, "identical": 0, "identical_pairs": 0, "unrendered": {}}
    for preference in preferences:
        messages = preference.prompt.messages
        try:
            head = chat.prompt(messages)
            encoded = [chat.answer(messages, c.text, c.finish_reason) for c in preference.completions]
            if not all(any(e.response_mask) for e in encoded):
                raise DataError("an answer was cut before its first word")
        except DataError as error:
            leave_out(left_out, preference.id, error)
            continue
        ranking = Ranking(
            id=preference.id,
            sequences=[e.tokens for e in encoded],
            prompt_length=len(head),
            ranks=preference.ranks,
            probability=preference.probability,
            margin=preference.margin,
            weight=preference.weight,
            head=objectives.index(preference.criterion) if objectives else 0,
        )
        strict = 1 if ranking.probability is not None else len(ranking_pairs(ranking.ranks))
        usable = len(ranking.pairs())
        if not usable and not (ties and len(ranking.tied_pairs())):
            left_out["identical" if strict else "tied"] += 1
            continue
        left_out["identical_pairs"] += strict - usable
        used.append(preference)
        rankings.append(ranking)
    return rankings, used, left_out


def learnable(rankings: Sequence[Ranking], *, ties: bool = False) -> list[int]:
    """Places of the rankings with a better and a different, worse answer; with ``ties`` also of those with a tie."""
    return [i for i, r in enumerate(rankings) if len(r.pairs()) or (ties and len(r.tied_pairs()))]


def check_ties(rankings: Sequence[Ranking], setting: str, instead: str) -> None:
    """Refuse rankings with more ties above the last place than Plackett and Luce's loss takes.

    Args:
        rankings: to be learned from.
        setting: that asks for the loss, for the message.
        instead: what to use instead.

    Raises:
        DataError: there is such a ranking; names the first.
    """
    for ranking in rankings:
        ranks = [ranking.ranks[place] for place in ranking.best_first()] if ranking.probability is None else [0, 1]
        tied = max((ranks.count(rank) for rank in ranks if rank < ranks[-1]), default=0)
        if tied > MAX_TIED:
            raise DataError(
                f"preference {ranking.id}: {tied} answers tie above the last place, and {setting} takes at most "
                f"{MAX_TIED}; rank them, leave some out, or use {instead}"
            )


def split_holdout(ids: Sequence[str], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices to train on and to hold out; all entries with the same id are on the same side.

    Raises:
        DataError: no entry is left to train on.
    """
    held = held_out(ids, share, seed)
    if ids and len(held) == len(ids):
        raise DataError(f"a holdout of {share:g} leaves none of {len(set(ids))} entries to train on; lower it")
    return sorted(set(range(len(ids))).difference(held)), held


def held_out(ids: Sequence[str], share: float, seed: int) -> list[int]:
    """Indices to hold out; all entries with the same id are held out together."""
    unique = sorted(set(ids))
    random.Random(f"{seed}|holdout").shuffle(unique)
    held = set(unique[: round(len(unique) * share)])
    return [i for i, name in enumerate(ids) if name in held]


def tokens_of_rankings(rankings: Sequence[Ranking], device: torch.device) -> Batch:
    """A batch of every answer of every ranking, in order; a ranking's prompt is computed once."""
    pairs = [(s[: r.prompt_length], s[r.prompt_length :]) for r in rankings for s in r.sequences]
    return collate_answers(pairs, device)


def ranking_batches(rankings: Sequence[Ranking], micro_batch_tokens: int, role: Role) -> list[RankingBatch]:
    """Batches of rankings of similar size, at most ``micro_batch_tokens`` (or one ranking); a prompt counts once."""
    batches = []
    for places in parts_of_like_size([packed_size(r) for r in rankings], micro_batch_tokens):
        group = [rankings[place] for place in places]
        tokens = tokens_of_rankings(group, role.backbone.device)
        batches.append(RankingBatch(rankings=group, tokens=tokens, places=places))
    return batches


def packed_size(ranking: Ranking) -> int:
    """Number of tokens of a ranking if its prompt is computed once."""
    return ranking.prompt_length + sum(len(s) - ranking.prompt_length for s in ranking.sequences)


def by_ranking(values: Sequence[float], rankings: Sequence[Ranking]) -> list[list[float]]:
    """One number per answer, as a list for each ranking."""
    each = iter(values)
    return [[next(each) for _ in r.sequences] for r in rankings]
