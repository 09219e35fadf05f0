"""How far annotators agree, and how far position or length alone explain what they say.

Every number is over pairs of answers (a ranking of K gives K(K−1)/2) and has a 95 % interval. The
interval is the percentile bootstrap over prompts, as votes on one prompt are not independent; where
that has no width, a proportion gets Wilson's interval with one observation per prompt.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from itertools import combinations
from random import Random

from trimtab.feedback.intervals import Estimate, wilson_interval
from trimtab.feedback.votes import leave_one_out, pair_votes, usable_judgements
from trimtab.records import Comparison, Judgement

_NO_OVERLAP = "no pair of answers was judged by two annotators"
_NO_WINNER = "no judgement has a winner"
_Sums = dict[Hashable, float]
_Statistic = Callable[[Mapping[Hashable, float]], float | None]


def krippendorff_alpha(units: Iterable[Sequence[Hashable]]) -> float | None:
    """Krippendorff's α for nominal values: 1 perfect, 0 chance, below 0 systematic disagreement.

    α = 1 − (n − 1) Σ_{c≠k} o_ck / Σ_{c≠k} n_c n_k, where a unit with m ≥ 2 values adds 1/(m − 1) to
    o_ck for each ordered pair of them; Krippendorff 2011, "Computing Krippendorff's
    Alpha-Reliability", section C.

    Args:
        units: the values given to each unit, by any number of annotators.

    Returns:
        α, or None where it is undefined: no unit with two values, or one value throughout.
    """
    return _alpha(_add(_coincidences(values) for values in units))


def _coincidences(values: Sequence[Hashable]) -> _Sums:
    if len(values) < 2:
        return {}
    counts = Counter(values)
    return {(c, k): m * (counts[k] - (c == k)) / (len(values) - 1) for c, m in counts.items() for k in counts}


def agreement_report(
    items: Sequence[Comparison],
    judgements: Sequence[Judgement],
    *,
    criterion: str = "overall",
    seed: int = 0,
    resamples: int = 1000,
) -> dict[str, Estimate]:
    """Estimate agreement and the two commonest biases. Nothing here raises on odd data; see ``reason``.

    Judgements that :func:`~trimtab.feedback.votes.usable_judgements` refuses are left out.

    Args:
        items: what was judged.
        judgements: any number, of any items.
        criterion: which judgements to look at.
        seed: of the bootstrap.
        resamples: of the bootstrap.

    Returns:
        By name:

        - ``raw_agreement``: two annotators said the same of a pair; a tie is an answer of its own.
        - ``leave_one_out``: an annotator who chose a winner chose that of the net vote of the others (½ if
          those are even): the ceiling for the accuracy of a reward model on single judgements.
        - ``krippendorff_alpha``: nominal, with first, second and tie as the values.
        - ``first_shown_wins``: of the pairs with a winner, the answer shown earlier won; .5 = no bias.
        - ``longest_wins``: of the pairs with a winner, the one with more characters won (½ if equal):
          the baseline that a reward model must beat.
    """
    usable, _ = usable_judgements(items, judgements, criterion)
    clusters = _sums_by_prompt(items, usable)
    statistics: dict[str, tuple[_Statistic, str, str]] = {
        "raw_agreement": (_ratio("same", "pairs"), "pairs", _NO_OVERLAP),
        "leave_one_out": (_ratio("sided", "others"), "others", f"{_NO_OVERLAP}, one of whom chose a winner"),
        "krippendorff_alpha": (_alpha, "pairs", _NO_OVERLAP),
        "first_shown_wins": (_ratio("earlier", "decided"), "decided", _NO_WINNER),
        "longest_wins": (_ratio("longer", "decided"), "decided", _NO_WINNER),
    }
    samples = _resample(clusters, {name: s for name, (s, _, _) in statistics.items()}, seed, resamples)
    total = _add(clusters)
    report = {}
    for name, (statistic, count, undefined) in statistics.items():
        value, n = statistic(total), round(total.get(count, 0))
        if value is None:
            reason = (
                undefined if not n else "all said the same throughout, so chance alone would give full agreement too"
            )
            report[name] = Estimate(value=None, low=None, high=None, n=n, reason=reason)
            continue
        low, high = _percentiles(samples[name])
        prompts = sum(sums.get(count, 0) > 0 for sums in clusters)
        if low < high:
            report[name] = Estimate(value=value, low=low, high=high, n=n)
        elif statistic is _alpha:
            reason = f"no interval: resampling {prompts} prompt(s) always gives the same value"
            report[name] = Estimate(value=value, low=None, high=None, n=n, reason=reason)
        else:
            low, high = wilson_interval(value * prompts, prompts)
            report[name] = Estimate(value=value, low=low, high=high, n=n)
    return report


def _sums_by_prompt(items: Sequence[Comparison], usable: Mapping[str, Sequence[Judgement]]) -> list[_Sums]:
    """All that the statistics are made of, summed over the votes on one prompt."""
    by_id = {item.id: item for item in items}
    rows: dict[str, list[_Sums]] = {}
    for item_id, i, j, votes in pair_votes(usable):
        item = by_id[item_id]
        counts = Counter(votes.values())
        sided = leave_one_out(votes)
        decided = counts[1] + counts[-1]
        longer = len(item.completions[i].text) - len(item.completions[j].text)
        row: _Sums = {
            "pairs": math.comb(len(votes), 2),
            "same": sum(math.comb(count, 2) for count in counts.values()),
            "others": len(sided),
            "sided": sum(sided.values()),
            "decided": decided,
            "longer": counts[1 if longer > 0 else -1] if longer else decided / 2,
        }
        rows.setdefault(item.prompt.id, []).append(row | _coincidences(list(votes.values())))
    for item_id, judgements in usable.items():
        earlier = sum(first < second for j in judgements for first, second in combinations(j.ranks or (), 2))
        rows[by_id[item_id].prompt.id].append({"earlier": earlier})
    return [_add(found) for found in rows.values()]


def _ratio(part: str, whole: str) -> _Statistic:
    return lambda sums: sums[part] / sums[whole] if sums.get(whole) else None


def _alpha(sums: Mapping[Hashable, float]) -> float | None:
    coincidences = {key: value for key, value in sums.items() if isinstance(key, tuple)}
    margins: defaultdict[Hashable, float] = defaultdict(float)
    for (c, _), o in coincidences.items():
        margins[c] += o
    n = sum(margins.values())
    expected = n * n - sum(m * m for m in margins.values())
    if expected <= 1e-9:
        return None
    return 1 - (n - 1) * sum(o for (c, k), o in coincidences.items() if c != k) / expected


def _add(rows: Iterable[_Sums]) -> _Sums:
    total: defaultdict[Hashable, float] = defaultdict(float)
    for row in rows:
        for key, value in row.items():
            total[key] += value
    return total


def _resample(
    clusters: Sequence[_Sums], statistics: Mapping[str, _Statistic], seed: int, resamples: int
) -> dict[str, list[float]]:
    """Values of each statistic over bootstrap samples of the clusters, where it is defined."""
    rng = Random(seed)
    columns = {key: [sums.get(key, 0.0) for sums in clusters] for key in _add(clusters)}
    values: dict[str, list[float]] = {name: [] for name in statistics}
    for _ in range(resamples if clusters else 0):
        drawn = rng.choices(range(len(clusters)), k=len(clusters))
        sums = {key: sum(map(column.__getitem__, drawn)) for key, column in columns.items()}
        for name, statistic in statistics.items():
            value = statistic(sums)
            if value is not None:
                values[name].append(value)
    return values


def _percentiles(values: Sequence[float]) -> tuple[float, float]:
    if not values:
        return 0.0, 0.0
    ordered = sorted(values)
    return ordered[int(0.025 * (len(ordered) - 1))], ordered[math.ceil(0.975 * (len(ordered) - 1))]
