"""Labels by AI judges, and by judges and people together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING

from trimtab.constitution import load_constitution
from trimtab.errors import DataError, Interrupted
from trimtab.feedback import (
    AgainstPeople,
    Hybrid,
    RouteConfig,
    RoutingReport,
    SimulationConfig,
    ensemble,
    label_hybrid,
    routing_lines,
    simulate,
)
from trimtab.feedback.callables import Utility
from trimtab.files import write_json
from trimtab.pipeline.impact import write_principles
from trimtab.pipeline.judge_result import read_judge_result
from trimtab.pipeline.judging import LocalJudge, compare_again, judge_items
from trimtab.pipeline.ui import Ui
from trimtab.records import Comparison, Judgement, read_records, to_plain, write_records
from trimtab.storage import read_record

if TYPE_CHECKING:
    from trimtab.pipeline.context import Context, Counts

ROUTING = "routing.json"
"""The report of hybrid labelling, in the folder of its labels."""

People = Callable[[Sequence[Comparison], int], Mapping[str, Judgement]]
"""Asks the n-th person about items, for :func:`~trimtab.feedback.label_hybrid`."""


def run_ai_label(context: Context) -> tuple[Counts, list[str]]:
    """Judge the sampled answers; with ``hybrid``, send items to people if the judge is unsure."""
    config, folder = context.config.label, context.folder("label")
    assert config is not None
    items = read_records(context.folder("sample") / "comparisons.jsonl", Comparison)
    constitution = load_constitution(context.data_path(context.config.constitution))
    people = people_so_far(context, items)
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
        replies=context.run.first.path / "replies",
    )
    write_principles(folder / "judge", constitution, people)
    overall = [j for result in judged.values() for j in result.judgements]
    counts: Counts = {"items": len(items), "judgements": len(overall), "source": config.source}
    counts["without_answer"] = sum(j.ranks is None and j.criterion == "overall" for j in overall)
    if config.source == "ai":
        write_records(folder / "judgements.jsonl", overall)
        return counts, ["judgements.jsonl"]
    cost = sum(result.cost for result in judged.values())

    def route(items: Sequence[Comparison], ask: People, judgements: Sequence[Judgement], left_out: Set[str]) -> Hybrid:
        judge = ensemble(items, overall)
        result = label_hybrid(items, judge, ask, config.route, given=judgements, left_out=left_out, ai_cost=cost)
        _write(result, folder, labels="judgements.jsonl")
        write_records(folder / "people.jsonl", judgements)
        compare_with_people(context, judgements)
        for line in routing_lines(result.report):
            context.ui.say(f"  {line}")
        return result

    labellers = context.config.people_of_hybrid
    if labellers == "app":
        result = _by_app(context, items, route)
    elif labellers == "simulated":
        utility = context.gold()
        assert utility is not None
        result = route(items, SimulatedPeople(utility, config.simulation, context.seed("label")), [], set())
        if result.queue:
            raise DataError(
                f"simulated annotators skipped {len(result.queue)} items ten times in a row; lower "
                f"label.simulation.skip_rate, which is {config.simulation.skip_rate:g}"
            )
    else:
        result = route(items, FilePeople(people), people, flagged(people, context.ui))
        if result.queue:
            raise Interrupted(
                f"{len(result.queue)} items wait for a person: {folder / 'queue.jsonl'}. Put their judgements into "
                f"{config.people} (label.people) and run the same command again; all judgements so far are stored"
            )
    report = result.report
    counts["judgements"], counts["left_out"] = len(result.judgements), len(items) - report.items
    counts |= {"labels_of_people": report.labels_of_people, "labels_saved": report.labels_saved}
    return counts, ["judgements.jsonl", "queue.jsonl", "audits.jsonl", "people.jsonl", ROUTING]


def route_folder(folder: Path, people: Sequence[Path], config: RouteConfig, ui: Ui) -> RoutingReport:
    """Route the labels in a folder made by ``trimtab judge``; writes them and returns the report.

    Raises:
        DataError: a file of judgements is missing or unusable, or no label would be left; nothing is written.
    """
    items = read_records(folder / "comparisons.jsonl", Comparison)
    pairs = [i for i in items if len(i.completions) == 2]
    if len(pairs) < len(items):
        ui.say(f"{len(items) - len(pairs)} items have more than two answers; left out, with their judgements")
    judge = ensemble(pairs, read_records(folder / "judgements.jsonl", Judgement))
    larger = {i.id for i in items if len(i.completions) > 2}
    judgements, notes = people_only(pairs, [j for j in people_named(people, items) if j.item not in larger])
    for line in notes:
        ui.say(line)
    cost = sum(entry.run.cost for entry in read_judge_result(folder).judges.values())
    result = label_hybrid(
        pairs, judge, FilePeople(judgements), config, given=judgements, left_out=flagged(judgements, ui), ai_cost=cost
    )
    labels = folder / "labels.jsonl"
    stored = read_records(labels, Judgement) if labels.exists() else []
    if stored and not result.judgements:
        raise DataError(
            f"{labels} holds {len(stored)} labels, and with these judgements by people none would be left. Nothing was "
            "written: name all files of judgements with --people, or delete labels.jsonl"
        )
    if len(result.judgements) < len(stored):
        ui.say(f"{len(result.judgements)} labels count now, {len(stored)} did before")
    _write(result, folder, labels=labels.name)
    return result.report


def _write(result: Hybrid, folder: Path, *, labels: str) -> None:
    write_records(folder / labels, result.judgements)
    write_records(folder / "queue.jsonl", result.queue)
    write_records(folder / "audits.jsonl", result.audits)
    write_json(folder / ROUTING, to_plain(result.report))


def read_routing(folder: Path) -> RoutingReport:
    """The report of hybrid labelling, from its folder.

    Raises:
        DataError: the file is missing, damaged, or no such report.
    """
    return read_record(folder / ROUTING, RoutingReport)


def compare_with_people(context: Context, people: Sequence[Judgement]) -> dict[str, AgainstPeople]:
    """Compare the judges and the principles with people's judgements so far, and rewrite both reports.

    The reports describe the labels and are not part of them, so they are not among the stage's outputs.
    """
    folder = context.folder("label") / "judge"
    write_principles(folder, load_constitution(context.data_path(context.config.constitution)), people)
    return compare_again(folder, people, seed=context.seed("judge"))


def people_so_far(context: Context, items: Sequence[Comparison]) -> list[Judgement]:
    """People's judgements of the items so far: from the file ``label.people``, or from the annotation app."""
    config = context.config.label
    assert config is not None
    source = config.people if config.source == "ai" else context.config.people_of_hybrid
    if source is None or source == "simulated":
        return []
    if source == "app":
        from trimtab.pipeline.people import AppPeople  # imports the database, which is needed only here

        with AppPeople(context, config.human) as app:
            judgements, _ = app.judgements(items)
    else:
        judgements, lines = read_people([Path(context.data_path(source))])
        for line in lines:
            context.ui.say(f"  {line}")
    people, lines = people_only(items, judgements)
    for line in lines:
        context.ui.say(f"  people ({source}): {line}")
    return people


def _by_app(
    context: Context,
    items: Sequence[Comparison],
    route: Callable[[Sequence[Comparison], People, Sequence[Judgement], Set[str]], Hybrid],
) -> Hybrid:
    """Route items, let people in the annotation app judge the queued ones, and route again, until none is queued.

    Raises:
        Interrupted: people are not done; the message says where they judge.
        DataError: the project counts items as done, but has no usable judgement.
    """
    from trimtab.pipeline.people import AppPeople  # imports the database, which is needed only here

    assert context.config.label is not None
    with AppPeople(context, context.config.label.human) as app:
        items, reported, previous_queue = app.fit(items), 0, []
        while True:
            judgements, retired = app.judgements(items)
            if len(retired) > reported:
                context.ui.say(f"  {len(retired)} items were taken out of the annotation project and are left out")
            reported = len(retired)
            people, _ = people_only(items, judgements)
            result = route(items, FilePeople(people), people, retired)
            if not result.queue:
                return result
            queue = [(item.id, item.overlap) for item in result.queue]
            if queue == previous_queue:
                raise DataError(
                    f"{len(queue)} items wait for a person, though the annotation project counts them as done: "
                    "judgements by an AI, or without the criterion 'overall', do not count here; check the project's "
                    "criteria and imports"
                )
            previous_queue = queue
            for overlap in sorted({item.overlap for item in result.queue}):
                app.ask([item for item in result.queue if item.overlap == overlap], overlap)
            app.wait(result.queue)


def read_people(paths: Sequence[Path]) -> tuple[list[Judgement], list[str]]:
    """Judgements from files, and a line for each missing file, because nobody can judge before the queue exists."""
    missing = [f"{path}: there is no such file yet, so there are no judgements" for path in paths if not path.exists()]
    return [j for path in paths if path.exists() for j in read_records(path, Judgement)], missing


def people_named(paths: Sequence[Path], items: Sequence[Comparison]) -> list[Judgement]:
    """Judgements from files that a user names; each must exist, and be empty or have judgements of these items.

    Raises:
        DataError: a file is missing or damaged, or people judged none of these items in it.
    """
    judgements: list[Judgement] = []
    for path in paths:
        if not path.exists():
            raise DataError(
                f"{path}: there is no such file; check its name, or leave it out until there are judgements. Nothing "
                "was written"
            )
        read = read_records(path, Judgement)
        people, lines = people_only(items, read)
        if read and not people:
            raise DataError(f"{path}: no judgement in it counts here: {'; '.join(lines)}. Nothing was written")
        judgements += read
    return judgements


def people_only(items: Sequence[Comparison], judgements: Sequence[Judgement]) -> tuple[list[Judgement], list[str]]:
    """Judgements of these items by people (or simulated ones), at most one per person and item, and lines on the rest.

    If someone judged an item twice, an adjudication counts, otherwise the first ranking
    (:func:`~trimtab.feedback.usable_judgements`). The same judgement in two files counts once.
    """
    names = {item.id for item in items}
    counted: dict[tuple[str, str], Judgement] = {}
    refused: Counter[str] = Counter()
    unknown: list[str] = []
    for j in {j.id: j for j in judgements}.values():
        key = (j.item, j.annotator)
        if j.source == "ai":
            refused["are an AI's and do not count as people's"] += 1
        elif j.item not in names:
            unknown.append(j.item)
        elif j.criterion != "overall":
            refused["are by another criterion than 'overall'; left out"] += 1
        else:
            if key in counted:
                refused["are further judgements by an annotator who had judged the item; the first ranking counts"] += 1
            if key not in counted or _order(j) < _order(counted[key]):
                counted[key] = j
    lines = [f"{count} judgements {reason}" for reason, count in refused.items()]
    if unknown:
        lines.append(f"{len(unknown)} judgements are of no item here; left out: {_quoted_ids(unknown)}")
    return list(counted.values()), lines


def _quoted_ids(ids: Sequence[str], limit: int = 5) -> str:
    """The first few different ids, and the number of further ones."""
    different = list(dict.fromkeys(ids))
    more = f" and {len(different) - limit} more" if len(different) > limit else ""
    return ", ".join(map(repr, different[:limit])) + more


def _order(judgement: Judgement) -> tuple[bool, bool]:
    """Order of judgements of one item: adjudications, then rankings, then skips."""
    return judgement.ranks is None, not judgement.adjudication


def flagged(people: Sequence[Judgement], ui: Ui) -> set[str]:
    """Items that were flagged and not ranked, which retires them in a file of judgements; prints their number."""
    flagged_items = {j.item for j in people if j.verdict == "flag"} - {j.item for j in people if j.ranks is not None}
    if flagged_items:
        ui.say(f"{len(flagged_items)} items were flagged and not ranked; left out")
    return flagged_items


class SimulatedPeople:
    """Simulated annotators as people; each question about an item goes to a different annotator."""

    def __init__(self, utility: Utility, config: SimulationConfig, seed: int) -> None:
        self.utility, self.config, self.seed = utility, config, seed

    def __call__(self, items: Sequence[Comparison], number: int) -> Mapping[str, Judgement]:
        """Answer all items at once; a skipped item goes to up to nine other annotators, then stays queued."""
        judgements: dict[str, Judgement] = {}
        for attempt in range(10):
            seed = (self.config.seed + self.seed + number * 7919 + attempt * 104729) % (1 << 31)
            config = self.config.model_copy(update={"overlap": 1, "seed": seed})
            unanswered = [i for i in items if i.id not in judgements or judgements[i.id].ranks is None]
            judgements |= {j.item: j for j in simulate(unanswered, self.utility, config)} if unanswered else {}
        return {item: j.model_copy(update={"annotator": f"{j.annotator}-{number}"}) for item, j in judgements.items()}


class FilePeople:
    """People's judgements from a file or the annotation app, as :func:`people_only` returns them.

    Adjudications come first, then rankings, then skips, each in the given order. Items without a judgement wait.
    """

    def __init__(self, judgements: Sequence[Judgement]) -> None:
        self.by_item: dict[str, list[Judgement]] = {}
        for judgement in sorted(judgements, key=_order):
            self.by_item.setdefault(judgement.item, []).append(judgement)

    def __call__(self, items: Sequence[Comparison], number: int) -> Mapping[str, Judgement]:
        """The available judgements."""
        available = {i.id: self.by_item.get(i.id, []) for i in items}
        return {item: judgements[number] for item, judgements in available.items() if len(judgements) > number}
