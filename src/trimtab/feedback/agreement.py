"""How far annotators agree, and how far position or length alone explain their judgements.

Every number is over pairs of answers (a ranking of K gives K(K−1)/2) and has a 95 % interval. The
interval is the percentile bootstrap over prompts, because votes on one prompt are not independent.
If the bootstrap interval has no width, a proportion gets Wilson's interval with one observation per
prompt.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from itertools import combinations
from random import Random
from typing import Any, cast

from trimtab.feedback.intervals import RESAMPLES, Estimate, middle_95, wilson_interval
from trimtab.feedback.votes import leave_one_out, pair_votes, require_criterion, signed_strength, usable_judgements
from trimtab.records import Comparison, Judgement

_NO_OVERLAP = "no pair of answers was judged by two annotators"
_NO_WINNER = "no judgement has a winner"
_NO_STRENGTH = "no pair of answers has a strength of preference from two annotators"
_NO_TRIAD = "there are no three answers to one prompt with a winner in each pair"
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


def interval_alpha(units: Iterable[Sequence[float]]) -> float | None:
    """Krippendorff's α for numbers, where a small difference is a small disagreement.

    α = 1 − (n − 1) Σ_u Σ_{i≠j} (v_i − v_j)² / (m_u − 1) / Σ_{i≠j} (v_i − v_j)², the first sums over the m_u ≥ 2 values
    of each unit, the last over all n values; Krippendorff 2011, section D, interval metric.

    Args:
        units: the numbers given to each unit, by any number of annotators.

    Returns:
        α, or None where it is undefined: no unit with two values, or one value throughout.
    """
    return _interval_alpha(_add(map(_squares, units)))


def _squares(values: Sequence[float]) -> _Sums:
    m = len(values)
    if m < 2:
        return {}
    total, squares = sum(values), sum(v * v for v in values)
    return {
        "numbers": m,
        "sum": total,
        "squares": squares,
        "squared differences": 2 * (m * squares - total * total) / (m - 1),
    }


def _interval_alpha(sums: Mapping[Hashable, float]) -> float | None:
    n = sums.get("numbers", 0.0)
    if not n:
        return None
    expected = 2 * (n * sums["squares"] - sums["sum"] ** 2)
    return None if expected <= 1e-9 else 1 - (n - 1) * sums["squared differences"] / expected


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
    resamples: int = RESAMPLES,
) -> dict[str, Estimate]:
    """Estimate agreement and the two most common biases; if a number cannot be estimated, ``reason`` says why.

    Adjudications are left out, and judgements that :func:`~trimtab.feedback.votes.usable_judgements` refuses;
    :func:`left_out` counts them.

    Args:
        items: the judged items.
        judgements: any number, of any items.
        criterion: the criterion of the judgements to use.
        seed: of the bootstrap.
        resamples: of the bootstrap.

    Returns:
        By name:

        - ``raw_agreement``: two annotators gave a pair the same label; a tie is a separate label.
        - ``leave_one_out``: an annotator who chose a winner chose that of the net vote of the others (½ if
          those are even): the ceiling for the accuracy of a reward model on single judgements.
        - ``krippendorff_alpha``: nominal, with first, second and tie as the values.
        - ``strength_alpha``: Krippendorff's for numbers, over the strengths of preference between two answers, from −1
          (the second is clearly better) over 0 (a tie) to 1: two annotators who both find a small difference disagree
          little. If any judgement has a strength, every tie counts as 0, and winners without a strength do not count.
        - ``cohen_kappa``: if exactly two annotators overlap; Cohen 1960, equation 1.
        - ``fleiss_kappa``: over the pairs with the most common number of annotators (2 or more), because it needs
          equal numbers; Fleiss 1971, equations 1 to 7.
        - ``gwet_ac1``: chance-corrected like κ, but also meaningful if nearly all labels are equal; Gwet 2008,
          equations 18 and 19, for any number of annotators. Categories: first, second, and tie if there is one.
        - ``first_shown_wins``: of the pairs with a winner, the answer shown earlier won; .5 = no bias.
        - ``longest_wins``: of the pairs with a winner, the one with more characters won (½ if equal):
          the baseline that a reward model must beat.
        - ``three_cycles``: of the triples of answers to one prompt with a net winner in each pair, the share that
          form a cycle (a over b over c over a); ¼ is expected if all winners are random.

    Raises:
        ConfigError: all judgements were made by other criteria.
    """
    require_criterion(judgements, criterion)
    usable, _ = usable_judgements(items, [j for j in judgements if not j.adjudication], criterion)
    clusters = _sums_by_prompt(items, usable)
    total = _add(clusters)
    raters = sorted({a for _, _, _, votes in pair_votes(usable) if len(votes) > 1 for a in votes})
    usual_count = _usual_count(total)
    statistics: dict[str, tuple[_Statistic, str, str]] = {
        "raw_agreement": (_ratio("same", "pairs"), "pairs", _NO_OVERLAP),
        "leave_one_out": (
            _ratio("leave-one-out hits", "leave-one-out votes"),
            "leave-one-out votes",
            f"{_NO_OVERLAP}, one of whom chose a winner",
        ),
        "krippendorff_alpha": (_alpha, "pairs", _NO_OVERLAP),
        "strength_alpha": (_interval_alpha, "numbers", _NO_STRENGTH),
        "cohen_kappa": (_cohen, "pairs", _NO_OVERLAP),
        "fleiss_kappa": (_fleiss(usual_count), f"of {usual_count}", _NO_OVERLAP),
        "gwet_ac1": (_ac1([-1, 0, 1] if total.get("rated 0") else [-1, 1]), "pairs", _NO_OVERLAP),
        "first_shown_wins": (_ratio("earlier", "decided"), "decided", _NO_WINNER),
        "longest_wins": (_ratio("longer", "decided"), "decided", _NO_WINNER),
        "three_cycles": (_ratio("cycles", "triads"), "triads", _NO_TRIAD),
    }
    if len(raters) > 2:
        reason = f"κ of Cohen is for two annotators, {len(raters)} overlap; see fleiss_kappa and krippendorff_alpha"
        statistics["cohen_kappa"] = (lambda sums: None, "none", reason)
    report = _estimates(statistics, clusters, seed, resamples)
    left_out_note = describe_left_out(len(judgements), left_out(items, judgements, criterion=criterion))
    if usable or not left_out_note:
        return report
    return {n: e.model_copy(update={"reason": f"{e.reason}; {left_out_note}"}) for n, e in report.items()}


def left_out(
    items: Sequence[Comparison], judgements: Sequence[Judgement], *, criterion: str = "overall"
) -> dict[str, int]:
    """Number of judgements that no statistic about annotators uses, by reason."""
    _, refused = usable_judgements(items, [j for j in judgements if not j.adjudication], criterion)
    refused["adjudication"] = sum(j.adjudication for j in judgements)
    return dict((+refused).most_common())


def describe_left_out(total: int, reasons: Mapping[str, int]) -> str:
    """The counts of :func:`left_out` in words; empty if nothing is left out.

    >>> describe_left_out(7, {"unknown item id": 7})
    '7 of 7 judgements left out: unknown item id (7)'
    """
    if not reasons:
        return ""
    listed = ", ".join(f"{reason} ({n})" for reason, n in reasons.items())
    return f"{sum(reasons.values())} of {total} judgements left out: {listed}"


def nominal_report(
    units: Iterable[tuple[str, Mapping[str, Hashable]]], *, seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, Estimate]:
    """Agreement on labels without an order: thumbs, or the first wrong step.

    Args:
        units: for each item its prompt, and the label of each annotator.
        seed: of the bootstrap over prompts.
        resamples: of the bootstrap.

    Returns:
        ``raw_agreement``, ``krippendorff_alpha`` and ``gwet_ac1`` as in :func:`agreement_report`; the categories of AC1
        are the values that were given.
    """
    rows: dict[str, list[_Sums]] = {}
    values: set[Hashable] = set()
    for prompt, ratings in units:
        counts = Counter(ratings.values())
        values |= set(counts)
        same = sum(math.comb(count, 2) for count in counts.values())
        row: _Sums = {"pairs": math.comb(len(ratings), 2), "same": same}
        rows.setdefault(prompt, []).append(row | _coincidences(list(ratings.values())) | _counts(ratings, counts))
    reason = "no item was judged by two annotators"
    statistics: dict[str, tuple[_Statistic, str, str]] = {
        "raw_agreement": (_ratio("same", "pairs"), "pairs", reason),
        "krippendorff_alpha": (_alpha, "pairs", reason),
        "gwet_ac1": (_ac1(sorted(values, key=str)), "pairs", reason),
    }
    return _estimates(statistics, [_add(group) for group in rows.values()], seed, resamples)


def _estimates(
    statistics: Mapping[str, tuple[_Statistic, str, str]], clusters: Sequence[_Sums], seed: int, resamples: int
) -> dict[str, Estimate]:
    total = _add(clusters)
    samples = _resample(clusters, {name: s for name, (s, _, _) in statistics.items()}, seed, resamples)
    report: dict[str, Estimate] = {}
    for name, (statistic, count, undefined) in statistics.items():
        value, n = statistic(total), round(total.get(count, 0))
        if value is None:
            reason = (
                undefined if not n else "all said the same throughout, so chance alone would give full agreement too"
            )
            report[name] = Estimate(value=None, low=None, high=None, n=n, reason=reason)
            continue
        low, high = middle_95(sorted(samples[name]), outwards=True) if samples[name] else (0.0, 0.0)
        prompts = sum(sums.get(count, 0) > 0 for sums in clusters)
        if low < high:
            report[name] = Estimate(value=value, low=low, high=high, n=n)
        elif name in ("krippendorff_alpha", "strength_alpha", "cohen_kappa", "fleiss_kappa", "gwet_ac1"):
            reason = f"no interval: resampling {prompts} prompt(s) always gives the same value"
            report[name] = Estimate(value=value, low=None, high=None, n=n, reason=reason)
        else:
            low, high = wilson_interval(value * prompts, prompts)
            report[name] = Estimate(value=value, low=low, high=high, n=n)
    return report


def _sums_by_prompt(items: Sequence[Comparison], usable: Mapping[str, Sequence[Judgement]]) -> list[_Sums]:
    """The terms of all statistics, summed over the votes on each prompt."""
    by_id = {item.id: item for item in items}
    rows: dict[str, list[_Sums]] = {}
    for item_id, i, j, votes in pair_votes(usable):
        item = by_id[item_id]
        counts = Counter(votes.values())
        hits = leave_one_out(votes)
        decided = counts[1] + counts[-1]
        longer = len(item.completions[i].text) - len(item.completions[j].text)
        row: _Sums = {
            "pairs": math.comb(len(votes), 2),
            "same": sum(math.comb(count, 2) for count in counts.values()),
            "leave-one-out votes": len(hits),
            "leave-one-out hits": sum(hits.values()),
            "decided": decided,
            "longer": counts[1 if longer > 0 else -1] if longer else decided / 2,
        }
        row |= _coincidences(list(votes.values())) | _counts(votes, counts)
        rows.setdefault(item.prompt.id, []).append(row)
    has_strengths = any(j.strength is not None for judgements in usable.values() for j in judgements)
    for item_id, judgements in usable.items():
        earlier = sum(first < second for j in judgements for first, second in combinations(j.ranks or (), 2))
        strengths = [v for j in judgements if (v := signed_strength(j)) is not None]
        item_sums: list[_Sums] = [{"earlier": earlier}]
        if has_strengths:
            item_sums.append(_squares(strengths))
        rows[by_id[item_id].prompt.id] += item_sums
    for prompt, net in _net_wins(by_id, usable).items():
        rows[prompt].append(_cycles(net))
    return [_add(group) for group in rows.values()]


def _counts(votes: Mapping[str, Hashable], counts: Counter[Any]) -> _Sums:
    """The terms of the κ family for one pair of answers."""
    m = len(votes)
    row: _Sums = {"units": 1}
    row |= {f"share {v}": n / m for v, n in counts.items()} | {f"rated {v}": n for v, n in counts.items()}
    if m > 1:
        same = sum(math.comb(n, 2) for n in counts.values()) / math.comb(m, 2)
        row |= {"paired": 1, "paired same": same, f"of {m}": 1, f"of {m} same": same}
        row |= {f"of {m} rated {v}": n for v, n in counts.items()}
    if m == 2:
        first, second = sorted(votes)
        row[f"table {votes[first]} {votes[second]}"] = 1
    return row


def _usual_count(total: Mapping[Hashable, float]) -> int:
    """The most common number of annotators, two or more, of a pair of answers."""
    counts = [
        (n, -int(key[3:]))
        for key, n in total.items()
        if isinstance(key, str) and key[:3] == "of " and key[3:].isdigit()
    ]
    return -max(counts)[1] if counts else 2


def _cohen(sums: Mapping[Hashable, float]) -> float | None:
    table = {(a, b): sums.get(f"table {a} {b}", 0.0) for a in (-1, 0, 1) for b in (-1, 0, 1)}
    n = sum(table.values())
    if not n:
        return None
    expected = sum(
        sum(table[v, b] for b in (-1, 0, 1)) * sum(table[a, v] for a in (-1, 0, 1)) / n**2 for v in (-1, 0, 1)
    )
    return _kappa(sum(table[v, v] for v in (-1, 0, 1)) / n, expected)


def _fleiss(m: int) -> _Statistic:
    def statistic(sums: Mapping[Hashable, float]) -> float | None:
        n = sums.get(f"of {m}", 0.0)
        if not n:
            return None
        expected = sum((sums.get(f"of {m} rated {v}", 0.0) / (n * m)) ** 2 for v in (-1, 0, 1))
        return _kappa(sums.get(f"of {m} same", 0.0) / n, expected)

    return statistic


def _ac1(values: Sequence[Hashable]) -> _Statistic:
    def statistic(sums: Mapping[Hashable, float]) -> float | None:
        if not sums.get("paired"):
            return None
        shares = [sums.get(f"share {v}", 0.0) / sums["units"] for v in values]
        expected = sum(p * (1 - p) for p in shares) / (max(2, len(values)) - 1)
        return _kappa(sums["paired same"] / sums["paired"], expected)

    return statistic


def _kappa(observed: float, expected: float) -> float | None:
    return None if expected > 1 - 1e-12 else (observed - expected) / (1 - expected)


def _net_wins(
    by_id: Mapping[str, Comparison], usable: Mapping[str, Sequence[Judgement]]
) -> dict[str, dict[tuple[str, str], int]]:
    """For each prompt, the net votes by which one answer's text beat another's, over all items."""
    wins: dict[str, dict[tuple[str, str], int]] = {}
    for item_id, i, j, votes in pair_votes(usable):
        item = by_id[item_id]
        a, b = item.completions[i].text, item.completions[j].text
        net = wins.setdefault(item.prompt.id, {})
        key, sign = ((a, b), 1) if a < b else ((b, a), -1)
        net[key] = net.get(key, 0) + sign * sum(votes.values())
    return wins


def _cycles(net: Mapping[tuple[str, str], int]) -> _Sums:
    texts = sorted({text for pair in net for text in pair})
    triads = cycles = 0
    for a, b, c in combinations(texts, 3):
        ab, bc, ac = net.get((a, b), 0), net.get((b, c), 0), net.get((a, c), 0)
        if ab and bc and ac:
            triads += 1
            cycles += (ab > 0) == (bc > 0) != (ac > 0)
    return {"triads": triads, "cycles": cycles}


def _ratio(part: str, whole: str) -> _Statistic:
    return lambda sums: sums[part] / sums[whole] if sums.get(whole) else None


def _alpha(sums: Mapping[Hashable, float]) -> float | None:
    coincidences = {cast("tuple[Hashable, Hashable]", key): n for key, n in sums.items() if isinstance(key, tuple)}
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
    """Values of each statistic over bootstrap samples of the clusters, as far as it is defined."""
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
