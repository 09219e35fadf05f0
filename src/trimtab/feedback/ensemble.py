"""Several AI judges as one."""

from collections.abc import Sequence

from trimtab.feedback.aggregate import aggregate
from trimtab.records import Comparison, Judgement


def ensemble(items: Sequence[Comparison], judgements: Sequence[Judgement]) -> list[Judgement]:
    """One judgement per item from those of several judges, under the name of all.

    Of two answers the probability is the mean of the judges', and the ranks follow from it; of more
    answers there are ranks only. One judge's judgements stay as they are.
    """
    overall = [j for j in judgements if j.criterion == "overall"]
    names = sorted({j.annotator for j in overall})
    if len(names) == 1:
        return overall
    first: dict[str, Judgement] = {}
    for judgement in overall:
        first.setdefault(judgement.item, judgement)
    made = []
    for preference in aggregate(items, overall).preferences:
        p = preference.probability
        update = {
            "id": "+".join(preference.judgements),
            "annotator": "+".join(names),
            "shown_order": tuple(range(len(preference.ranks))),
            "ranks": tuple(preference.ranks),
            "probability": p,
            "strength": None if p is None else round(abs(2 * p - 1), 6),
        }
        made.append(first[preference.id].model_copy(update=update))
    return made
