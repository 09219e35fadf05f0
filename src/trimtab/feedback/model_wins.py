"""How often each model's answers are preferred to other models' answers, from people's judgements."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from trimtab.feedback.intervals import Estimate, clustered_share
from trimtab.feedback.votes import canonical_ranks, counting_judgements
from trimtab.records import Comparison, Judgement

_Outcomes = dict[tuple[str, str], list[tuple[float, str]]]


@dataclass(frozen=True, kw_only=True)
class Wins:
    """How often one model's answers were preferred."""

    model: str
    """The model."""
    rival: str | None
    """The other model; None: all others together."""
    rate: Estimate
    """(wins + ties / 2) / comparisons, with a Wilson interval over prompts."""
    wins: int
    """Comparisons of two answers in which this model's answer was preferred."""
    ties: int
    """Comparisons in which the two answers were judged equal."""
    losses: int
    """Comparisons in which the other answer was preferred."""


@dataclass(frozen=True, kw_only=True)
class ModelWins:
    """Win rates of all models."""

    models: tuple[Wins, ...]
    """Each model against all others, best first."""
    pairs: tuple[Wins, ...]
    """Each pair of models once, in the order of ``models``."""
    used: int
    """Judgements that were used; one ranking of K answers gives several comparisons."""
    left_out: Mapping[str, int]
    """Number of judgements that were not used, by reason; together with ``used``, all judgements."""


def model_wins(
    items: Sequence[Comparison], judgements: Sequence[Judgement], *, criterion: str = "overall"
) -> ModelWins:
    """Win rates of the models whose answers were compared.

    Each judgement counts as one comparison for each pair of answers by different models; a tie counts half for both.
    The interval is :func:`~trimtab.feedback.intervals.clustered_wilson_interval`, with all comparisons of one prompt as
    a group. The decision of an adjudicator replaces the annotators' judgements.

    Args:
        items: the judged items.
        judgements: any number, of any items.
        criterion: the criterion of the judgements to use.

    Raises:
        ConfigError: all judgements were made by other criteria.

    >>> from trimtab.records import Completion, Prompt
    >>> answers = [Completion(text="yes", model="new"), Completion(text="no", model="old")]
    >>> item = Comparison.of(Prompt.from_text("Well?"), answers)
    >>> judgement = Judgement(id="1", item=item.id, annotator="a", source="human", shown_order=(1, 0), ranks=(1, 0))
    >>> wins = model_wins([item], [judgement])
    >>> [(w.model, w.wins, w.losses) for w in wins.models], wins.used
    ([('new', 1, 0), ('old', 0, 1)], 1)
    """
    usable, refused = counting_judgements(items, judgements, criterion)
    outcomes: _Outcomes = defaultdict(list)
    used = 0
    by_id = {item.id: item for item in items}
    for uid, item_judgements in usable.items():
        names = [answer.model for answer in by_id[uid].completions]
        named_pairs = [(i, j) for i, j in combinations(range(len(names)), 2) if names[i] and names[j]]
        rival_pairs = [(i, j) for i, j in named_pairs if names[i] != names[j]]
        if not rival_pairs:
            refused["both answers by the same model" if named_pairs else "answers that name no model"] += len(
                item_judgements
            )
            continue
        used += len(item_judgements)
        for ranks in map(canonical_ranks, item_judgements):
            for i, j in rival_pairs:
                outcome = 0.5 + 0.5 * ((ranks[i] < ranks[j]) - (ranks[i] > ranks[j]))
                outcomes[str(names[i]), str(names[j])].append((outcome, by_id[uid].prompt.id))
                outcomes[str(names[j]), str(names[i])].append((1 - outcome, by_id[uid].prompt.id))
    models, pairs = _tables(outcomes)
    return ModelWins(models=models, pairs=pairs, used=used, left_out=dict((+refused).most_common()))


def _tables(outcomes: _Outcomes) -> tuple[tuple[Wins, ...], tuple[Wins, ...]]:
    names = {model for model, _ in outcomes}
    overall = [
        _wins(model, None, [o for (name, _), results in outcomes.items() if name == model for o in results])
        for model in sorted(names)
    ]
    models = sorted(overall, key=lambda w: -(w.rate.value or 0.0))
    pairs = [
        _wins(first.model, second.model, outcomes[first.model, second.model])
        for first, second in combinations(models, 2)
        if (first.model, second.model) in outcomes
    ]
    return tuple(models), tuple(pairs)


def _wins(model: str, rival: str | None, outcomes: Sequence[tuple[float, str]]) -> Wins:
    counts = Counter(outcome for outcome, _ in outcomes)
    rate = clustered_share(outcomes)
    return Wins(model=model, rival=rival, rate=rate, wins=counts[1.0], ties=counts[0.5], losses=counts[0.0])
