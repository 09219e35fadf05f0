"""Results by cohort of annotators: which model each prefers, where cohorts disagree, what other weightings would give.

A sample of annotators is rarely the population that a model serves. The win rate of a population in which cohort c has
the share w_c is Σ_c w_c · rate_c (post-stratification), where rate_c is the cohort's own win rate. It rests on the
judgements of these annotators alone: five people say little about everybody else in their cohort. Intervals resample
prompts, so they cover other prompts but not other people.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

from trimtab.errors import ConfigError
from trimtab.feedback.agreement import describe_left_out
from trimtab.feedback.intervals import Estimate, clustered_share, middle_95, resampled
from trimtab.feedback.model_wins import model_wins
from trimtab.feedback.votes import canonical_ranks, counting_judgements
from trimtab.records import Comparison, Judgement, Record

UNNAMED = "not named"
"""Cohort of annotators who named none, and of those whose cohort is too small to be shown."""


class CohortResult(Record):
    """One cohort."""

    name: str
    """Name that the annotators gave."""
    people: int
    """Annotators in it."""
    judgements: int
    """Their judgements that were used."""
    rate: Estimate
    """How often they prefer the model to its rival; a tie counts half."""
    agreement: Estimate
    """How often the cohort's majority on an item is also that of all other annotators, if both have one."""


class Population(Record):
    """Results of each cohort, and of the cohorts weighted together."""

    model: str | None
    """The model whose win rate is shown; None: no item names two models."""
    rival: str | None
    """The model it is compared with."""
    cohorts: tuple[CohortResult, ...]
    """The largest first."""
    disagreement: Estimate
    """Share of the items with a majority in at least two cohorts on which these majorities differ."""
    weightings: dict[str, Estimate]
    """Win rate under each weighting: ``as judged``, ``each cohort alike``, and ``as given``."""
    notes: tuple[str, ...]
    """What was left out or merged, and what the numbers do not cover."""


def population(
    items: Sequence[Comparison],
    judgements: Sequence[Judgement],
    *,
    by: str | None = None,
    models: tuple[str, str] | None = None,
    weights: Mapping[str, float] | None = None,
    least: int = 5,
    criterion: str = "overall",
    seed: int = 0,
) -> Population:
    """Results by cohort.

    Args:
        items: the judged items.
        judgements: with their annotators' cohorts; an adjudication replaces the other judgements of its item.
        by: which part of a cohort such as ``language=de, region=south`` counts; None: the whole name.
        models: the model and its rival; None: the two that were compared most often.
        weights: share of each cohort in another population; the sum must be above 0, and cohorts left out have share 0.
        least: fewest people in a cohort that is shown on its own.
        criterion: the criterion of the judgements to use.
        seed: of the bootstrap.

    Raises:
        ConfigError: a weight is negative or for a cohort that does not exist, all weights are 0, or all judgements
            were made by other criteria.
    """
    usable, refused = counting_judgements(items, judgements, criterion)
    used = [j for item_judgements in usable.values() for j in item_judgements]
    cohort, notes = _cohorts(used, by, least)
    if left_out_note := describe_left_out(len(judgements), dict((+refused).most_common())):
        notes.insert(0, left_out_note)
    first, second = models or _most_compared(items, judgements, criterion)
    by_item = {item.id: item for item in items}
    outcomes: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for j in used:
        outcome = _outcome(by_item[j.item], j, first, second)
        if outcome is not None:
            outcomes[cohort[j.annotator]].append((outcome, by_item[j.item].prompt.id))
    sizes = {name: sum(cohort[j.annotator] == name for j in used) for name in dict.fromkeys(cohort.values())}
    majorities = _majorities(usable, cohort)
    results = [
        CohortResult(
            name=name,
            people=sum(c == name for c in cohort.values()),
            judgements=size,
            rate=clustered_share(outcomes[name], reason="it compared no such answers"),
            agreement=_agreement(name, usable, cohort, by_item),
        )
        for name, size in sorted(sizes.items(), key=lambda pair: (-pair[1], pair[0]))
    ]
    comparable = {item: by_cohort for item, by_cohort in majorities.items() if len(by_cohort) > 1}
    differences = [
        (float(len(set(by_cohort.values())) > 1), by_item[item].prompt.id) for item, by_cohort in comparable.items()
    ]
    return Population(
        model=first or None,
        rival=second or None,
        cohorts=tuple(results),
        disagreement=clustered_share(differences, reason="no item has a majority in two cohorts"),
        weightings=_weightings({k: v for k, v in outcomes.items() if v}, weights, seed),
        notes=tuple(notes),
    )


def cohort_name(judgement: Judgement, by: str | None) -> str:
    """The cohort of a judgement, or the part of it that counts.

    >>> j = Judgement(id="1", item="i", annotator="a", source="human", shown_order=(0, 1), ranks=(0, 1),
    ...               cohort="language=de, region=south")
    >>> cohort_name(j, "language"), cohort_name(j, "age")
    ('de', 'not named')
    """
    if not judgement.cohort:
        return UNNAMED
    if by is None:
        return judgement.cohort
    parts = dict(part.split("=", 1) for part in judgement.cohort.split(", ") if "=" in part)
    return parts.get(by) or UNNAMED


def _cohorts(judgements: Sequence[Judgement], by: str | None, min_people: int) -> tuple[dict[str, str], list[str]]:
    """The cohort of each annotator, the last one they named; small cohorts are merged."""
    cohort_of = {j.annotator: cohort_name(j, by) for j in judgements}
    members: dict[str, int] = defaultdict(int)
    for name in cohort_of.values():
        members[name] += 1
    small_cohorts = {name for name, count in members.items() if count < min_people and name != UNNAMED}
    notes: list[str] = []
    if small_cohorts:
        people = sum(members[name] for name in small_cohorts)
        notes.append(
            f"{len(small_cohorts)} cohorts with fewer than {min_people} people each ({people} people) are shown as "
            f"{UNNAMED!r}"
        )
    return {annotator: UNNAMED if name in small_cohorts else name for annotator, name in cohort_of.items()}, notes


def _most_compared(items: Sequence[Comparison], judgements: Sequence[Judgement], criterion: str) -> tuple[str, str]:
    pairs = model_wins(items, judgements, criterion=criterion).pairs
    best = max(pairs, key=lambda pair: pair.rate.n, default=None)
    return ("", "") if best is None else (best.model, str(best.rival))


def _outcome(item: Comparison, judgement: Judgement, model: str, rival: str) -> float | None:
    """1: the model's answer is preferred, ½: a tie, 0: its rival's; None: the two models were not compared."""
    names = [answer.model for answer in item.completions]
    if not model or names.count(model) != 1 or names.count(rival) != 1:
        return None
    ranks = canonical_ranks(judgement)
    model_rank, rival_rank = ranks[names.index(model)], ranks[names.index(rival)]
    return 0.5 + 0.5 * ((model_rank < rival_rank) - (model_rank > rival_rank))


def _majorities(usable: Mapping[str, Sequence[Judgement]], cohort: Mapping[str, str]) -> dict[str, dict[str, int]]:
    """Item → cohort → the answer that most of the cohort prefer, 1 the first, −1 the second; ties are left out."""
    majorities: dict[str, dict[str, int]] = {}
    for item, item_judgements in usable.items():
        votes: dict[str, int] = defaultdict(int)
        for j in item_judgements:
            votes[cohort[j.annotator]] += _vote(j)
        majorities[item] = {name: 1 if net > 0 else -1 for name, net in votes.items() if net and name != UNNAMED}
    return majorities


def _vote(judgement: Judgement) -> int:
    """1: the first of two answers is preferred, −1: the second; 0: a tie, or more than two answers."""
    ranks = canonical_ranks(judgement)
    return (ranks[0] < ranks[1]) - (ranks[0] > ranks[1]) if len(ranks) == 2 else 0


def _agreement(
    name: str,
    usable: Mapping[str, Sequence[Judgement]],
    cohort: Mapping[str, str],
    items: Mapping[str, Comparison],
) -> Estimate:
    """How often a cohort's majority is also that of all others."""
    agreements: list[tuple[float, str]] = []
    for item, item_judgements in usable.items():
        cohort_net = sum(_vote(j) for j in item_judgements if cohort[j.annotator] == name)
        others_net = sum(_vote(j) for j in item_judgements if cohort[j.annotator] != name)
        if cohort_net and others_net:
            agreements.append((float(cohort_net * others_net > 0), items[item].prompt.id))
    return clustered_share(agreements, reason="no item has a majority in it and among the others")


def _weightings(
    outcomes: Mapping[str, Sequence[tuple[float, str]]], population_weights: Mapping[str, float] | None, seed: int
) -> dict[str, Estimate]:
    """Win rates of populations."""
    if population_weights is not None:
        cohorts = set(outcomes)
        if unknown := sorted(set(population_weights) - cohorts):
            raise ConfigError(
                f"weight of {unknown[0]!r}: no such cohort has compared the models; there are "
                f"{', '.join(sorted(cohorts)) or 'none'}"
            )
        if (
            min(population_weights.values(), default=0.0) < 0
            or not 0 < math.fsum(population_weights.values()) < math.inf
        ):
            raise ConfigError(f"weights {dict(population_weights)}: expected numbers from 0, above 0 in sum")
    if not outcomes:
        return {}
    weights: dict[str, Mapping[str, float]] = {
        "as judged": {name: float(len(cohort_outcomes)) for name, cohort_outcomes in outcomes.items()},
        "each cohort alike": dict.fromkeys(outcomes, 1.0),
    }
    if population_weights is not None:
        weights["as given"] = population_weights
    return {name: _weighted(outcomes, w, seed) for name, w in weights.items()}


def _weighted(outcomes: Mapping[str, Sequence[tuple[float, str]]], weights: Mapping[str, float], seed: int) -> Estimate:
    """Σ w_c rate_c / Σ w_c with a percentile bootstrap over prompts; draws that lack a weighted cohort are left out."""
    total = math.fsum(weights.values())
    sums: dict[str, dict[str, tuple[float, int]]] = defaultdict(dict)
    for name, cohort_outcomes in outcomes.items():
        for value, prompt in cohort_outcomes:
            outcome_sum, count = sums[prompt].get(name, (0.0, 0))
            sums[prompt][name] = (outcome_sum + value, count + 1)

    def rate(prompts: Sequence[str]) -> float | None:
        mean = 0.0
        for name, weight in weights.items():
            cohort_sums = [sums[prompt][name] for prompt in prompts if name in sums[prompt]]
            if weight and not cohort_sums:
                return None
            if weight:
                mean += weight / total * math.fsum(a for a, _ in cohort_sums) / sum(n for _, n in cohort_sums)
        return mean

    all_prompts = list(sums)
    value = rate(all_prompts)
    assert value is not None, "every cohort here has outcomes"
    n = sum(len(outcomes[name]) for name, weight in weights.items() if weight)
    if len(all_prompts) == 1:
        return Estimate(value=value, n=n, reason="one prompt gives no interval")
    samples = resampled(all_prompts, rate, seed=seed)
    if not samples:
        return Estimate(value=value, n=n, reason="every cohort would have to be drawn at once")
    low, high = middle_95(samples)
    return Estimate(value=value, low=low, high=high, n=n)
