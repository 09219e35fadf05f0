"""A run's blind readings by cohort of readers."""

from collections.abc import Mapping

from trimtab.feedback.populations import Population, population
from trimtab.pipeline.blind import is_current, load_judgements, load_keys
from trimtab.records import Comparison, Judgement
from trimtab.storage import RunFolder

Judged = tuple[list[Comparison], list[Judgement]]


def blind_judgements(run: RunFolder) -> Judged:
    """The blind readings of a run's current answers."""
    items: dict[str, Comparison] = {}
    judgements: list[Judgement] = []
    for key in load_keys(run):
        if is_current(run, key):
            items |= {item.comparison.id: item.comparison for item in key.items}
            judgements += load_judgements(run, key)
    return list(items.values()), judgements


def run_population(run: RunFolder, names: Mapping[str, str]) -> Population | None:
    """Blind readings by cohort, for the page; None: no reader named a cohort.

    Args:
        run: the run whose answers were read.
        names: the page's name for each model.
    """
    items, judgements = blind_judgements(run)
    if not any(j.cohort for j in judgements):
        return None
    result = population(items, [j for j in judgements if j.criterion == "overall"])
    called = {field: names.get(str(getattr(result, field)), getattr(result, field)) for field in ("model", "rival")}
    return result.model_copy(update=called)
