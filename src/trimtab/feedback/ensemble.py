"""Combines several AI judges into one."""

import math
from collections.abc import Sequence

from trimtab.feedback.aggregate import AggregateConfig, aggregate
from trimtab.records import Comparison, Judgement, Preference


def ensemble(items: Sequence[Comparison], judgements: Sequence[Judgement]) -> list[Judgement]:
    """One judgement per item from several judges, under the names of the judges that answered.

    Items that no judge answered are left out. For two answers the probability is the mean of the judges', and
    the ranks follow from it; contradictions are ties. For more answers there are only ranks. The judgements of
    a single judge are unchanged.
    """
    overall = [j for j in judgements if j.criterion == "overall"]
    if len({j.annotator for j in overall}) == 1:
        return overall
    by_id = {j.id: j for j in overall}
    preferences = aggregate(items, overall, config=AggregateConfig(keep_tied=True)).preferences
    return [
        _combined_judgement(preference, [by_id[name] for name in preference.judgements]) for preference in preferences
    ]


def _combined_judgement(preference: Preference, parts: Sequence[Judgement]) -> Judgement:
    p = preference.probability
    principles = (name for j in parts for name in (j.principle or "").split(",") if name)
    return Judgement(
        id="+".join(j.id for j in parts),
        item=preference.id,
        annotator="+".join(sorted(j.annotator for j in parts)),
        source="ai",
        shown_order=tuple(range(len(preference.ranks))),
        ranks=preference.ranks,
        strength=None if p is None else round(abs(2 * p - 1), 6),
        probability=p,
        principle=",".join(dict.fromkeys(principles)),
        guideline=parts[0].guideline,
        seconds=round(math.fsum(j.seconds or 0.0 for j in parts), 3),
    )
