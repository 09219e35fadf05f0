"""Labels by AI judges, and by judges and people together."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from trimtab.constitution import load_constitution
from trimtab.errors import DataError, Interrupted
from trimtab.feedback import Hybrid, SimulationConfig, ensemble, label_hybrid, routing_lines, simulate
from trimtab.feedback.callables import Utility
from trimtab.files import write_json
from trimtab.pipeline.context import Context, Counts
from trimtab.pipeline.impact import write_principles
from trimtab.pipeline.judging import LocalJudge, judge_items, plain
from trimtab.records import Comparison, Judgement, read_records, write_records

People = Callable[[Sequence[Comparison], int], Mapping[str, Judgement]]
"""Asks the n-th person about items, as :func:`~trimtab.feedback.label_hybrid` does."""


def run_ai_label(context: Context) -> tuple[Counts, list[str]]:
    """Judge the sampled answers; with ``hybrid``, send to people what the judge is not sure of."""
    config, folder = context.config.label, context.folder("label")
    assert config is not None
    items = read_records(context.folder("sample") / "comparisons.jsonl", Comparison)
    constitution = load_constitution(context.data_path(context.config.constitution))
    people = _people_so_far(context, items)
    judged = judge_items(
        items,
        constitution,
        config.judges or {"judge": LocalJudge()},
        config.judge.model_copy(update={"seed": context.seed("judge") + config.judge.seed}),
        folder / "judge",
        default=context.config.model,
        ui=context.ui,
        people=people,
        seed=context.seed("judge"),
        replies=context.run.path / "replies",
    )
    write_principles(folder / "judge", constitution, people)
    overall = [j for found in judged.values() for j in found.judgements]
    counts: Counts = {"items": len(items), "judgements": len(overall), "source": config.source}
    counts["without_answer"] = sum(j.ranks is None and j.criterion == "overall" for j in overall)
    files = ["judgements.jsonl", "judge/judge.json", "judge/principles.json"]
    if config.source == "ai":
        write_records(folder / "judgements.jsonl", overall)
        return counts, files
    cost = sum(found.cost for found in judged.values())

    def route(pairs: Sequence[Comparison], asker: People) -> Hybrid:
        result = label_hybrid(pairs, ensemble(pairs, overall), asker, config.route, ai_cost=cost)
        write_records(folder / "judgements.jsonl", result.judgements)
        write_records(folder / "queue.jsonl", result.queue)
        write_records(folder / "audits.jsonl", result.audits)
        write_json(folder / "routing.json", plain(result.report))
        for line in routing_lines(result.report):
            context.ui.say(f"  {line}")
        return result

    who = context.config.people_of_hybrid
    if who == "app":
        result = _by_app(context, items, route)
    elif who == "simulated":
        utility = context.gold()
        assert utility is not None
        result = route(items, SimulatedPeople(utility, config.simulation, context.seed("label")))
    else:
        result = route(items, FilePeople(people))
    if result.queue:
        raise Interrupted(
            f"{len(result.queue)} items wait for a person now: {folder / 'queue.jsonl'}. Put their judgements into "
            f"{config.people} (label.people) and run the same command again; what was judged is kept"
        )
    report = result.report
    counts["judgements"], counts["left_out"] = len(result.judgements), len(items) - report["items"]
    counts |= {"labels_of_people": report["labels_of_people"], "labels_saved": report["labels_saved"]}
    return counts, [*files, "queue.jsonl", "audits.jsonl", "routing.json"]


def _people_so_far(context: Context, items: Sequence[Comparison]) -> list[Judgement]:
    """What people have said of the items already: in the file ``label.people``, or in the annotation app."""
    config = context.config.label
    assert config is not None
    source = config.people if config.source == "ai" else context.config.people_of_hybrid
    if source is None or source == "simulated":
        return []
    if source == "app":
        from trimtab.pipeline.people import AppPeople  # with the database, which only this needs

        with AppPeople(context, config.human) as app:
            given, _ = app.said(items)
    else:
        given = read_records(Path(context.data_path(source)), Judgement)
    people, said = people_only(items, given)
    for line in said:
        context.ui.say(f"  people ({source}): {line}")
    return people


def _by_app(
    context: Context, items: Sequence[Comparison], route: Callable[[Sequence[Comparison], People], Hybrid]
) -> Hybrid:
    """Route, let people in the annotation app judge what waits for them, and route again, until nothing waits.

    Raises:
        Interrupted: people are not done; it says where they judge.
    """
    from trimtab.pipeline.people import AppPeople  # with the database, which only this needs

    assert context.config.label is not None
    with AppPeople(context, context.config.label.human) as app:
        items, told, before = app.fit(items), 0, -1
        while True:
            given, retired = app.said(items)
            if len(retired) > told:
                context.ui.say(f"  {len(retired)} items were taken out of the annotation project and are left out")
            people, _ = people_only(items, given)
            result = route([item for item in items if item.id not in retired], FilePeople(people))
            if not result.queue:
                return result
            if len(given) == before and len(retired) == told:
                raise DataError(
                    f"{len(result.queue)} items wait for a person, though the annotation project counts them as done: "
                    "judgements by an AI, or without the criterion 'overall', are no answer here; see the project's "
                    "criteria and imports"
                )
            told, before = len(retired), len(given)
            for overlap in sorted({item.overlap for item in result.queue}):
                app.ask([item for item in result.queue if item.overlap == overlap], overlap)
            app.wait(result.queue)


def people_only(items: Sequence[Comparison], judgements: Sequence[Judgement]) -> tuple[list[Judgement], list[str]]:
    """The judgements that people (or simulated ones) gave of these items, and what to say of the others."""
    names = {item.id for item in items}
    kept = [j for j in judgements if j.source != "ai" and j.item in names]
    machine = sum(j.source == "ai" for j in judgements)
    said = [f"{machine} judgements are an AI's and do not count as people's"] if machine else []
    if other := len(judgements) - machine - len(kept):
        said.append(f"{other} judgements are of no item here; left out")
    return kept, said


class SimulatedPeople:
    """Simulated annotators as people: the n-th person asked about an item is another one than the (n−1)-th."""

    def __init__(self, utility: Utility, config: SimulationConfig, seed: int) -> None:
        self.utility, self.config, self.seed = utility, config, seed

    def __call__(self, items: Sequence[Comparison], number: int) -> Mapping[str, Judgement]:
        """Everybody answers at once; for one who skips another one is asked, and after ten the item waits."""
        found: dict[str, Judgement] = {}
        for again in range(10):
            seed = (self.config.seed + self.seed + number * 7919 + again * 104729) % (1 << 31)
            config = self.config.model_copy(update={"overlap": 1, "seed": seed})
            left = [i for i in items if i.id not in found or found[i.id].ranks is None]
            found |= {j.item: j for j in simulate(left, self.utility, config)} if left else {}
        return {item: j.model_copy(update={"annotator": f"{j.annotator}-{number}"}) for item, j in found.items()}


class FilePeople:
    """People's judgements of a file or of the annotation app, one per person and item; what is missing waits.

    An adjudicator comes first, then who ranked, then who skipped; otherwise the order is the one given.
    """

    def __init__(self, judgements: Sequence[Judgement]) -> None:
        self.by_item: dict[str, list[Judgement]] = {}
        for judgement in sorted(judgements, key=lambda j: (j.ranks is None, not j.adjudication)):
            mine = self.by_item.setdefault(judgement.item, [])
            if judgement.criterion == "overall" and judgement.annotator not in {j.annotator for j in mine}:
                mine.append(judgement)

    def __call__(self, items: Sequence[Comparison], number: int) -> Mapping[str, Judgement]:
        """The judgements that are there."""
        found = {i.id: self.by_item.get(i.id, []) for i in items}
        return {item: mine[number] for item, mine in found.items() if len(mine) > number}
