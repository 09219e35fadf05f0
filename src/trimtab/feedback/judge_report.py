"""Report on a judge run: biases, failures, agreement with people, calibration.

:func:`run_facts` needs the verdicts of a run (both orders of every pair); :func:`against_people` needs judgements
only, so it also takes a judge's votes from elsewhere. Intervals are 95 %, clustered by prompt.
"""

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from itertools import chain
from statistics import fmean
from typing import Any, Literal

from trimtab.constitution import speaks_to_judge
from trimtab.feedback.calibration import Bin, brier, cross_fitted, reliability
from trimtab.feedback.intervals import Estimate, clustered_share, middle_95, resampled
from trimtab.feedback.judge import Judged, combine
from trimtab.feedback.votes import pair_votes, usable_judgements
from trimtab.records import Comparison, Judgement, Record

OUTCOMES = ("first", "tie", "second")
"""Who won a pair, in the item's own order of answers."""


class Biases(Record):
    """Biases of a judge that saw pairs in both orders."""

    position_bias: Estimate
    """Share of all questions, in either order, in which the answer shown first won; .5: no bias."""
    flip_rate: Estimate
    """Share of pairs for which the two orders named different winners."""
    longer_wins: Estimate
    """Share of the pairs with a winner and answers of different length in which the longer one won."""


class JudgeRun(Biases):
    """Biases, failures and cost of one judge's run."""

    items: int
    """Items judged."""
    unusable: int
    """Items without an answer."""
    replies: int
    """Replies that were used."""
    asked: int
    """Questions asked in this run; the others had been answered before."""
    failures: dict[str, int]
    """Replies without an answer, by kind (:data:`~trimtab.feedback.FAILURES`)."""
    cut: dict[str, int] | None = None
    """Replies that were cut, by the limit that cut them; None: the report is by an early version."""
    hard: int
    """Replies without log-probabilities, read from their text."""
    items_that_speak_to_the_judge: int
    """Items with an answer that seems to address the judge."""
    tokens: dict[Literal["in", "out"], int]
    """Tokens of all questions and of all replies."""
    cost: float
    """Cost of the replies and of requests without a reply."""
    seconds: float
    """Time of all replies."""
    models: tuple[str, ...]
    """Models that replied, by name."""


class Calibration(Record):
    """Calibration of a judge's probabilities."""

    ece: float
    """Expected calibration error."""
    brier: float
    """Mean squared difference from people's votes; a judge that always says ½ gets ¼ on certain labels."""
    bins: tuple[Bin, ...]
    """Reliability plot."""


class AgainstPeople(Record):
    """One judge against the net vote of people; an estimate without any pair gives the reason."""

    pairs: int
    """Pairs that both judged."""
    accuracy: Estimate
    """Share of pairs with the same winner, among the pairs where both have a winner."""
    agreement: Estimate
    """Share of pairs with the same outcome: first, tie or second."""
    half_credit: Estimate
    """The same, but a pair on which either side has a tie counts half."""
    lean: Estimate
    """Share of the pairs with a human winner where the judge's mean probability favours that winner, however little."""
    kappa: Estimate
    """Cohen's κ of the three outcomes."""
    longest: Estimate
    """Baseline: share of the pairs with a human winner where the longer answer is that winner."""
    confusion: dict[str, dict[str, int]]
    """Number of pairs by the judge's outcome and people's, each one of :data:`OUTCOMES`."""
    calibration: dict[str, Calibration] | None
    """``as said``, and after cross-fitted ``temperature`` and ``isotonic`` fits; None: fewer than two prompts."""


def run_facts(items: Sequence[Comparison], judged: Judged) -> JudgeRun:
    """Biases, failures and cost of one judge's run."""
    by_id = {item.id: item for item in items}
    wins: list[tuple[float, str]] = []
    flips: list[tuple[float, str]] = []
    longer: list[tuple[float, str]] = []
    groups: dict[str, list[Any]] = {}
    for verdict in judged.verdicts:
        groups.setdefault(verdict.item, []).append(verdict)
        if verdict.first is None or verdict.second is None or not verdict.ordered:
            continue
        prompt = by_id[verdict.item].prompt.id
        wins += [(first_wins(verdict.first), prompt), (first_wins(1 - verdict.second), prompt)]
        flips.append((float(verdict.contradicts), prompt))
    for item, group in groups.items():
        answers = by_id[item].completions
        for (i, j), (p, _, _) in combine(group).items():
            length_difference = len(answers[i].text) - len(answers[j].text)
            if p != 0.5 and length_difference:
                longer.append((float((p > 0.5) == (length_difference > 0)), by_id[item].prompt.id))
    overall = [j for j in judged.judgements if j.criterion == "overall"]
    replies = list(judged.replies.values())
    return JudgeRun(
        position_bias=clustered_share(wins, reason="no pair has an answer in both orders"),
        flip_rate=clustered_share(flips, reason="no pair has an answer in both orders"),
        longer_wins=clustered_share(longer, reason="no pair of different length has a winner"),
        items=len(overall),
        unusable=sum(j.ranks is None for j in overall),
        replies=len(replies),
        asked=judged.asked,
        failures=dict(Counter(r.failure for r in replies if r.failure)),
        cut=dict(Counter(r.limit for r in replies if r.limit)),
        hard=sum(r.hard for r in replies),
        items_that_speak_to_the_judge=sum(any(speaks_to_judge(c.text) for c in i.completions) for i in items),
        tokens={"in": sum(r.tokens_in for r in replies), "out": sum(r.tokens_out for r in replies)},
        cost=judged.cost,
        seconds=math.fsum(r.seconds for r in replies),
        models=tuple(sorted({r.model for r in replies if r.model})),
    )


def first_wins(p: float) -> float:
    """1 if the answer shown first wins at this probability, 0 if it loses, ½ if neither wins."""
    return 0.5 if p == 0.5 else float(p > 0.5)


def against_people(
    items: Sequence[Comparison],
    judgements: Sequence[Judgement],
    people: Sequence[Judgement],
    *,
    criterion: str = "overall",
    seed: int = 0,
) -> AgainstPeople:
    """One judge against the net vote of people on the same pairs.

    Args:
        items: the judged items.
        judgements: by the judge, one per item.
        people: judgements by people, any number per item.
        criterion: the criterion of the judgements to use.
        seed: of the bootstrap and of the folds.
    """
    items_by_id = {item.id: item for item in items}
    by_judge = _votes(items, judgements, criterion)
    by_people = _votes(items, people, criterion)
    keys = [key for key in by_judge if key in by_people]
    prompts = [items_by_id[key[0]].prompt.id for key in keys]
    judge_outcomes = [_outcome(by_judge[k][0]) for k in keys]
    people_outcomes = [_outcome(by_people[k][0]) for k in keys]
    reason = "the judge and people have no pair in common"
    decided = [
        (float(a == b), g)
        for a, b, g in zip(judge_outcomes, people_outcomes, prompts, strict=True)
        if "tie" not in (a, b)
    ]
    agreements = [(float(a == b), g) for a, b, g in zip(judge_outcomes, people_outcomes, prompts, strict=True)]
    half_credits = [
        (0.5 if "tie" in (a, b) else float(a == b), g)
        for a, b, g in zip(judge_outcomes, people_outcomes, prompts, strict=True)
    ]
    favours_winner = [
        (0.5 if by_judge[k][1] == 0.5 else float((by_judge[k][1] > 0.5) == (b == "first")), g)
        for k, b, g in zip(keys, people_outcomes, prompts, strict=True)
        if b != "tie"
    ]
    longest_wins: list[tuple[float, str]] = []
    for (item, i, j), b, g in zip(keys, people_outcomes, prompts, strict=True):
        length_difference = len(items_by_id[item].completions[i].text) - len(items_by_id[item].completions[j].text)
        if b != "tie":
            longest_wins.append((0.5 if not length_difference else float((length_difference > 0) == (b == "first")), g))
    calibration = None
    p, y = [by_judge[k][1] for k in keys], [by_people[k][1] for k in keys]
    if len(set(prompts)) >= 2:
        probabilities = {"as said": p}
        for method in ("temperature", "isotonic"):
            probabilities[method] = cross_fitted(method, p, y, prompts, seed=seed)
        calibration = {name: _calibration(values, y) for name, values in probabilities.items()}
    outcomes = list(zip(judge_outcomes, people_outcomes, strict=True))
    return AgainstPeople(
        pairs=len(keys),
        accuracy=clustered_share(decided, reason=reason if not keys else "no pair has a winner for both"),
        agreement=clustered_share(agreements, reason=reason),
        half_credit=clustered_share(half_credits, reason=reason),
        lean=clustered_share(favours_winner, reason=reason if not keys else "people have no winner anywhere"),
        kappa=_kappa(outcomes, prompts, seed, reason),
        longest=clustered_share(longest_wins, reason=reason),
        confusion={a: {b: outcomes.count((a, b)) for b in OUTCOMES} for a in OUTCOMES},
        calibration=calibration,
    )


def _calibration(p: Sequence[float], y: Sequence[float]) -> Calibration:
    bins, ece = reliability(p, y)
    return Calibration(ece=ece, brier=brier(p, y), bins=tuple(bins))


def cohen_kappa(pairs: Sequence[tuple[Hashable, Hashable]]) -> float | None:
    """Cohen's κ = (p_o − p_e) / (1 − p_e) of two raters; None if chance alone would always agree.

    >>> cohen_kappa([("y", "y")] * 20 + [("y", "n")] * 5 + [("n", "y")] * 10 + [("n", "n")] * 15)
    0.4
    """
    n = len(pairs)
    first, second = Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
    expected = sum(first[k] * second[k] for k in first) / n**2 if n else 1.0
    if math.isclose(expected, 1.0):
        return None
    return round((sum(a == b for a, b in pairs) / n - expected) / (1 - expected), 12)


def _votes(
    items: Sequence[Comparison], judgements: Sequence[Judgement], criterion: str
) -> dict[tuple[str, int, int], tuple[float, float]]:
    """For each pair the net vote (its sign is the winner) and the mean probability that the first is better."""
    usable, _ = usable_judgements(items, judgements, criterion)
    judgement_of = {item: {j.annotator: j for j in judgements_of_item} for item, judgements_of_item in usable.items()}
    votes: dict[tuple[str, int, int], tuple[float, float]] = {}
    for item, i, j, by_annotator in pair_votes(usable):
        probabilities: list[float] = []
        for annotator, vote in by_annotator.items():
            judgement = judgement_of[item][annotator]
            if judgement.probability is None:
                probabilities.append((vote + 1) / 2)
            else:
                probabilities.append(
                    judgement.probability if judgement.shown_order[0] == 0 else 1 - judgement.probability
                )
        votes[item, i, j] = (float(sum(by_annotator.values())), fmean(probabilities))
    return votes


def _outcome(net: float) -> str:
    return "first" if net > 0 else "second" if net < 0 else "tie"


def _kappa(outcomes: Sequence[tuple[str, str]], prompts: Sequence[str], seed: int, reason: str) -> Estimate:
    """:func:`cohen_kappa` with a percentile bootstrap over prompts."""
    value = cohen_kappa(outcomes)
    if value is None:
        explanation = "one outcome throughout: chance alone would agree" if outcomes else reason
        return Estimate(n=len(outcomes), reason=explanation)
    by_prompt: dict[str, list[tuple[str, str]]] = {}
    for outcome, prompt in zip(outcomes, prompts, strict=True):
        by_prompt.setdefault(prompt, []).append(outcome)
    samples = resampled(
        list(by_prompt.values()), lambda groups: cohen_kappa(list(chain.from_iterable(groups))), seed=seed
    )
    low, high = middle_95(samples, outwards=True) if samples else (None, None)
    return Estimate(value=value, low=low, high=high, n=len(outcomes))


def report_lines(run: JudgeRun, people: AgainstPeople | None = None) -> list[str]:
    """The report in words, one line each."""
    lines = [
        f"{run.items} items judged, {run.unusable} without an answer; {run.asked} of "
        f"{run.replies} questions asked now, the others had been answered before",
        *bias_lines(run),
        "failures: " + (", ".join(f"{k} {n}" for k, n in run.failures.items()) or "none"),
    ]
    for limit, count in (run.cut or {}).items():
        lines.append(f"{count} replies were cut at {limit}; raise it and run again: only these are asked again")
    if run.hard:
        lines.append(f"{run.hard} replies without log-probabilities, read from their text")
    if run.items_that_speak_to_the_judge:
        lines.append(f"{run.items_that_speak_to_the_judge} items have an answer that seems to address the judge")
    if run.cost:
        lines.append(f"cost {run.cost:.4g}, {run.tokens['in']} tokens in, {run.tokens['out']} out")
    return [*lines, *people_lines(people)]


def bias_lines(biases: Biases) -> list[str]:
    """Position bias, flips and length in words."""
    return [
        f"position bias: the answer shown first wins {shown(biases.position_bias)}; .5 is none",
        f"flips when the order is swapped: {shown(biases.flip_rate)}",
        f"the longer answer wins: {shown(biases.longer_wins)}",
    ]


def people_lines(people: AgainstPeople | None) -> list[str]:
    """The result of :func:`against_people` in words."""
    if people is None:
        return ["agreement with people: there are no labels by people"]
    lines = [
        f"agreement with people on {people.pairs} pairs: {shown(people.accuracy)} where both name a winner, "
        f"κ {shown(people.kappa, share=False)}",
        f"  by the sign of its lean: {shown(people.lean)}; the longest answer would get {shown(people.longest)}",
    ]
    if people.calibration:
        errors = ", ".join(f"{name} {values.ece:.3f}" for name, values in people.calibration.items())
        lines.append(f"calibration error (ECE): {errors}")
    if people.lean.low is not None and people.lean.low <= 0.5:
        lines.append("  this judge is not distinguishable from a coin here: do not train on its labels alone")
    return lines


def shown(estimate: Estimate, *, share: bool = True) -> str:
    """An estimate in words: value, interval and number, or why there is none."""
    if estimate.value is None:
        return f"unknown ({estimate.reason})"
    template = "{:.1%}" if share else "{:.2f}"
    values = [template.format(x) for x in (estimate.value, estimate.low, estimate.high) if x is not None]
    interval = f" [{values[1]}, {values[2]}]" if len(values) == 3 else ""
    return f"{values[0]}{interval} of {estimate.n}"
