"""How each annotator works: agreement with others, biases, speed. These are reasons to look closer, not verdicts."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import combinations
from statistics import median

from trimtab.feedback.intervals import Estimate, clustered_share, median_interval, wilson_interval
from trimtab.feedback.votes import leave_one_out, pair_votes, require_criterion, usable_judgements
from trimtab.records import Comparison, Judgement, Record

FAST_SECONDS = 3.0
"""A ranking made in fewer seconds is suspicious, unless the project sets another limit."""


class AnnotatorReport(Record):
    """One annotator's statistics; each share has a 95 % interval, clustered by prompt."""

    annotator: str
    """Pseudonym."""
    judgements: int
    """Number of usable rankings."""
    agreement: Estimate
    """Share of pairs on which the others' net vote names the same winner; ½ if the others are even."""
    first_shown_wins: Estimate
    """Share of the pairs with a winner in which the answer shown earlier won; ½ is no bias."""
    longest_wins: Estimate
    """Share of the pairs with a winner in which the longer answer won."""
    seconds: Estimate
    """Median time for an item."""
    fast: Estimate
    """Share of judgements faster than the limit."""


def annotator_reports(
    items: Sequence[Comparison],
    judgements: Sequence[Judgement],
    *,
    criterion: str = "overall",
    fast_seconds: float = FAST_SECONDS,
) -> list[AnnotatorReport]:
    """One report for each annotator, by pseudonym. Adjudications are left out.

    Args:
        items: the judged items.
        judgements: any number, of any items.
        criterion: the criterion of the judgements to use.
        fast_seconds: a judgement made in fewer seconds counts as suspiciously fast.

    Raises:
        ConfigError: all judgements were made by other criteria.
    """
    require_criterion(judgements, criterion)
    usable, _ = usable_judgements(items, [j for j in judgements if not j.adjudication], criterion)
    by_id = {item.id: item for item in items}
    agreement_hits: defaultdict[str, list[tuple[float, str]]] = defaultdict(list)
    longer_wins: defaultdict[str, list[tuple[float, str]]] = defaultdict(list)
    for item_id, i, j, votes in pair_votes(usable):
        item = by_id[item_id]
        for annotator, hit in leave_one_out(votes).items():
            agreement_hits[annotator].append((hit, item.prompt.id))
        length_difference = len(item.completions[i].text) - len(item.completions[j].text)
        for annotator, vote in votes.items():
            if vote:
                hit = 0.5 if not length_difference else float((length_difference > 0) == (vote > 0))
                longer_wins[annotator].append((hit, item.prompt.id))
    first_shown: defaultdict[str, list[tuple[float, str]]] = defaultdict(list)
    by_annotator: defaultdict[str, list[Judgement]] = defaultdict(list)
    for item_id, judgements_of_item in usable.items():
        for judgement in judgements_of_item:
            by_annotator[judgement.annotator].append(judgement)
            for earlier, later in combinations(judgement.ranks or (), 2):
                if earlier != later:
                    first_shown[judgement.annotator].append((float(earlier < later), by_id[item_id].prompt.id))
    reports: list[AnnotatorReport] = []
    for annotator, rankings in sorted(by_annotator.items()):
        seconds, fast = speed([j.seconds for j in rankings], fast_seconds)
        reports.append(
            AnnotatorReport(
                annotator=annotator,
                judgements=len(rankings),
                agreement=clustered_share(
                    agreement_hits[annotator], reason="no one else judged this annotator's items"
                ),
                first_shown_wins=clustered_share(first_shown[annotator], reason="no winner was chosen"),
                longest_wins=clustered_share(longer_wins[annotator], reason="no winner was chosen"),
                seconds=seconds,
                fast=fast,
            )
        )
    return reports


def speed(seconds: Iterable[float | None], fast_seconds: float = FAST_SECONDS) -> tuple[Estimate, Estimate]:
    """Median time, and the share of judgements faster than the limit; unknown times are left out."""
    times = [t for t in seconds if t is not None]
    if not times:
        unknown = Estimate(reason="no times are known")
        return unknown, unknown
    low, high = median_interval(times) or (None, None)
    reason = "" if low is not None else f"no interval: {len(times)} times, six are needed"
    median_time = Estimate(value=median(times), low=low, high=high, n=len(times), reason=reason)
    fast = sum(t < fast_seconds for t in times)
    low, high = wilson_interval(fast, len(times))
    return median_time, Estimate(value=fast / len(times), low=low, high=high, n=len(times))
