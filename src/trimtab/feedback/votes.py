"""Turns judgements into votes: undoes the display order, and counts judgements that cannot be used."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

from trimtab.errors import ConfigError
from trimtab.records import Comparison, Judgement


def canonical_ranks(judgement: Judgement) -> tuple[int, ...]:
    """Ranks in the order of the item's completions, with the display order undone.

    Args:
        judgement: one with ranks.

    Returns:
        ``ranks[i]`` is the rank of ``completions[i]``; 0 = best, equal = tie.

    >>> shown = {"shown_order": (2, 0, 1), "ranks": (0, 1, 1)}
    >>> canonical_ranks(Judgement(id="j", item="i", annotator="a", source="human", **shown))
    (1, 1, 0)
    """
    assert judgement.ranks is not None, "only a ranked judgement has ranks"
    by_answer = dict(zip(judgement.shown_order, judgement.ranks, strict=True))
    return tuple(by_answer[i] for i in range(len(by_answer)))


def signed_strength(judgement: Judgement) -> float | None:
    """How strongly the item's first answer is preferred to its second, from −1 to 1; a tie is 0.

    None if there are more than two answers, if a winner has no strength, or if the judgement has a probability, which
    is more precise.

    >>> common = {"id": "j", "item": "i", "annotator": "a", "source": "human"}
    >>> signed_strength(Judgement(shown_order=(1, 0), ranks=(0, 1), strength=0.25, **common))
    -0.25
    """
    if judgement.ranks is None or len(judgement.ranks) != 2 or judgement.probability is not None:
        return None
    first, second = canonical_ranks(judgement)
    if first == second:
        return 0.0
    if judgement.strength is None:
        return None
    return judgement.strength if first < second else -judgement.strength


def first_better(judgement: Judgement | None) -> float | None:
    """P(the item's first answer is better) by a judgement of two answers; None if it has no ranks."""
    if judgement is None or judgement.ranks is None:
        return None
    if judgement.probability is not None:
        return judgement.probability if judgement.shown_order[0] == 0 else 1 - judgement.probability
    first, second = canonical_ranks(judgement)
    return 0.5 if first == second else float(first < second)


def votes_on_pair(judgement: Judgement, i: int, j: int) -> list[tuple[int, float, float]]:
    """The outcome of a ranked judgement for two of the item's answers.

    Returns:
        (outcome, shown, share) of each vote. ``outcome``: 0 if answer i is better, 1 for a tie, 2 if j is better.
        ``shown``: 1 if i was shown before j, −1 if after. ``share``: 1 for a whole vote; a judgement with a probability
        gives each answer a part of the vote.

    >>> common = {"id": "j", "item": "i", "annotator": "a", "source": "human"}
    >>> votes_on_pair(Judgement(shown_order=(1, 0), ranks=(0, 1), **common), 0, 1)
    [(2, -1.0, 1.0)]
    """
    shown = 1.0 if judgement.shown_order.index(i) < judgement.shown_order.index(j) else -1.0
    share = first_better(judgement) if judgement.probability is not None else None
    if share is not None:
        return [(outcome, shown, part) for outcome, part in ((0, share), (2, 1 - share)) if part]
    ranks = canonical_ranks(judgement)
    return [(1 - (ranks[i] < ranks[j]) + (ranks[i] > ranks[j]), shown, 1.0)]


def settled(judgements: Sequence[Judgement]) -> list[Judgement]:
    """The judgements that count for training: an adjudication replaces all others of its item and criterion."""
    adjudicated = {(j.item, j.criterion) for j in judgements if j.adjudication and j.ranks is not None}
    return [j for j in judgements if j.adjudication or (j.item, j.criterion) not in adjudicated]


def require_criterion(judgements: Sequence[Judgement], criterion: str) -> None:
    """Refuse a criterion by which nothing was ranked, if something was ranked by others.

    Raises:
        ConfigError: nothing was ranked by this criterion; the message lists the others.
    """
    criteria = sorted({j.criterion for j in judgements if j.ranks is not None})
    if criteria and criterion not in criteria:
        raise ConfigError(
            f"criterion {criterion!r}: none of {len(judgements)} judgements is about it; "
            f"choose one of {', '.join(criteria)}"
        )


def usable_judgements(
    items: Sequence[Comparison], judgements: Sequence[Judgement], criterion: str = "overall"
) -> tuple[dict[str, list[Judgement]], Counter[str]]:
    """Group the usable judgements by item, and count the others by reason.

    A judgement cannot be used if it has another criterion (a skip or flag is about all criteria), if its item is not in
    ``items``, if it has no ranks, if its number of answers is not the item's, or if its annotator had ranked the item
    before: the first ranking counts.

    Returns:
        Usable judgements by item id, in the order given; and the number of refused judgements by reason. Together they
        are all of ``judgements``.
    """
    answer_counts = {item.id: len(item.completions) for item in items}
    usable: dict[str, list[Judgement]] = {}
    refused: Counter[str] = Counter()
    seen: set[tuple[str, str]] = set()
    for judgement in judgements:
        key = (judgement.item, judgement.annotator)
        if judgement.criterion != criterion and not (judgement.ranks is None and judgement.criterion == "overall"):
            refused[f"criterion is not {criterion!r}"] += 1
        elif judgement.item not in answer_counts:
            refused["unknown item id"] += 1
        elif judgement.ranks is None:
            refused[f"not ranked: {judgement.verdict}"] += 1
        elif len(judgement.ranks) != answer_counts[judgement.item]:
            refused["wrong number of answers"] += 1
        elif key in seen:
            refused["annotator had ranked the item before"] += 1
        else:
            seen.add(key)
            usable.setdefault(judgement.item, []).append(judgement)
    return usable, refused


def counting_judgements(
    items: Sequence[Comparison], judgements: Sequence[Judgement], criterion: str
) -> tuple[dict[str, list[Judgement]], Counter[str]]:
    """As :func:`usable_judgements`, for the judgements that :func:`settled` keeps.

    Raises:
        ConfigError: all judgements were made by other criteria.
    """
    require_criterion(judgements, criterion)
    settled_judgements = settled(judgements)
    usable, refused = usable_judgements(items, settled_judgements, criterion)
    refused["settled by an adjudicator"] += len(judgements) - len(settled_judgements)
    return usable, refused


def pair_votes(usable: Mapping[str, Sequence[Judgement]]) -> Iterator[tuple[str, int, int, dict[str, int]]]:
    """Break rankings into pairs of answers.

    Yields:
        (item id, i, j, votes) for all i < j, where ``votes[annotator]`` is 1 if completion i was
        ranked better than j, −1 if worse and 0 for a tie.
    """
    for item, judgements in usable.items():
        ranks = {j.annotator: canonical_ranks(j) for j in judgements}
        for i, j in combinations(range(len(judgements[0].shown_order)), 2):
            yield item, i, j, {a: (r[i] < r[j]) - (r[i] > r[j]) for a, r in ranks.items()}


def leave_one_out(votes: Mapping[str, int]) -> dict[str, float]:
    """Whether each annotator who chose a winner sided with the net vote of the others.

    Args:
        votes: 1, 0 (tie) or −1 by annotator.

    Returns:
        By annotator: 1 (yes), 0 (no) or ½ (the others are even). Annotators who saw a tie or are alone are left out.

    >>> leave_one_out({"a": 1, "b": 1, "c": -1, "d": 0})
    {'a': 0.5, 'b': 0.5, 'c': 0.0}
    """
    net = sum(votes.values())
    if len(votes) < 2:
        return {}
    return {a: 0.5 if net == v else float((net - v) * v > 0) for a, v in votes.items() if v}
