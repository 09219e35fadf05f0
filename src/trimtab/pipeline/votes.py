"""Votes on answers of a service as the labels of a round.

A vote is used once: votes that trained an earlier round of the run are left out. Thumbs make no pairs. A round with
``align.method: kto`` learns from them; other methods only count them.

How often one served model was preferred over another is measured only by comparisons, which are blind and in random
order; thumbs come from people who chose to give them. A comparison measures models that were trained before it, and
then trains the next.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from trimtab.errors import DataError
from trimtab.files import write_json
from trimtab.pipeline.config import LabelConfig, VotesConfig
from trimtab.pipeline.context import Context, Counts
from trimtab.pipeline.vote_files import (
    MEASURED,
    REFUSALS,
    THUMBS,
    MeasuredVotes,
    WrongRefusal,
    check_votes_folder,
    is_export,
    measure,
    measured_lines,
    thumbs_of,
)
from trimtab.records import Comparison, Judgement, Prompt, Rating, read_records, to_plain, write_records
from trimtab.records.annotation import judgements_of, rating_of
from trimtab.storage import RunFolder
from trimtab.storage.chat import UNJUSTIFIED_REFUSAL, record_round
from trimtab.storage.labels import open_store
from trimtab.storage.snapshot import (
    Snapshot,
    comparisons_and_judgements,
    take_snapshot,
    was_blocked,
    without_small_groups,
)

NO_COMPARISON = "on one answer, not a comparison"
"""Why thumbs are left out."""
CHAT = "chat-"
"""Prefix of the ids of items from the chat page."""


R = TypeVar("R", Comparison, Judgement)


@dataclass(kw_only=True)
class Collected:
    """Votes, and what was left out."""

    items: list[Comparison]
    """The answers that were compared."""
    judgements: list[Judgement]
    """The votes on them, oldest first."""
    thumbs: list[Rating] = field(default_factory=list)
    """Thumbs on single answers, oldest first."""
    refusals: list[WrongRefusal] = field(default_factory=list)
    """Refusals that people call unjustified."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Number of votes that are not among the judgements, by reason."""


def run_votes(context: Context) -> tuple[Counts, list[str]]:
    """Collect the votes that no earlier round of this run was trained on."""
    label = context.config.label
    assert label is not None and label.votes is not None
    config, folder = label.votes, context.folder("label")
    source = Path(context.data_path(config.project))
    check_votes_folder(config, source)
    exported = is_export(source)
    votes = _unused_votes(_of_export(source) if exported else _of_project(config, source), context, label)
    if not votes.thumbs and not any(j.ranks is not None for j in votes.judgements):
        raise DataError(
            f"{config.project}: no comparison in it can be learned from"
            f"{_reasons_text(votes.dropped)}. Serve two models (`trimtab serve {context.run.first.path} --model policy "
            "--model base --chat PROJECT`), let people compare their answers, and run the same command again"
        )
    write_records(folder / "comparisons.jsonl", votes.items)
    write_records(folder / "judgements.jsonl", votes.judgements)
    write_records(folder / THUMBS, votes.thumbs)
    write_records(folder / REFUSALS, votes.refusals)
    people = {v.annotator for v in (*votes.judgements, *votes.thumbs) if v.annotator is not None}
    measured = measure(votes.items, votes.judgements)
    stored = MeasuredVotes(pairs=tuple(measured), dropped=votes.dropped, project=config.project)
    write_json(folder / MEASURED, to_plain(stored))
    if not exported:
        with open_store(source, config.database) as store:
            record_round(store, f"{context.config.name}, round {context.run.number}", people)
    for line in measured_lines(measured):
        context.ui.say(f"  {line}")
    if votes.dropped:
        context.ui.say(f"  left out{_reasons_text(votes.dropped)}")
    if votes.refusals:
        context.ui.say(
            f"  {len(votes.refusals)} refusals that people call wrong wait for a person: {folder / REFUSALS}"
        )
    counts: Counts = {
        "items": len(votes.items),
        "judgements": len(votes.judgements),
        "people": len(people),
        "source": "+".join(sorted({v.source for v in (*votes.judgements, *votes.thumbs)})),
        "refusals": len(votes.refusals),
    }
    if votes.thumbs:
        counts["thumbs up"] = sum(t.good for t in votes.thumbs)
        down = Counter(t.reason or "no reason" for t in votes.thumbs if not t.good)
        counts |= {f"thumbs down: {reason}": count for reason, count in sorted(down.items())}
    counts |= {f"votes dropped: {reason}": count for reason, count in votes.dropped.items()}
    return counts, ["comparisons.jsonl", "judgements.jsonl", THUMBS, REFUSALS, MEASURED]


def _of_project(config: VotesConfig, folder: Path) -> Collected:
    with open_store(folder, config.database) as store:
        return of_snapshot(take_snapshot(store))


def of_snapshot(snapshot: Snapshot) -> Collected:
    """The comparisons of a project, and wrong refusals."""
    submissions, _ = without_small_groups(snapshot.submissions, snapshot.config.min_cell)
    items, _ = comparisons_and_judgements(snapshot)
    tasks, retired = {task.id: task for task in snapshot.tasks}, set(snapshot.retired)
    comparable = {item.id for item in items}
    collected = Collected(items=items, judgements=[])
    for s in submissions:
        task = tasks[s.task]
        if s.verdict == "flag" and s.reason == UNJUSTIFIED_REFUSAL and s.task not in retired:
            collected.refusals.append(
                WrongRefusal(
                    vote=s.id,
                    annotator=s.annotator,
                    text=task.prompt.text,
                    answers=tuple(c.text for c in task.completions),
                    models=tuple(c.model for c in task.completions),
                    guard=task.metadata.get("guard") if was_blocked(task) else None,
                )
            )
            collected.dropped["called a wrong refusal, for a person"] += 1
        elif s.task in retired:
            collected.dropped["answer withdrawn or taken out"] += 1
        elif task.check is not None:
            collected.dropped["check item"] += 1
        elif s.task not in comparable:
            collected.dropped[NO_COMPARISON] += 1
            if (rating := rating_of(task, s)) is not None:
                collected.thumbs.append(rating)
        else:
            collected.judgements += judgements_of(task, s)
    return collected


def _of_export(folder: Path) -> Collected:
    """The votes in an export.

    Raises:
        DataError: two different records share an id, or a file is damaged.
    """
    collected = Collected(items=[], judgements=[])
    collected.items, _ = _unique(read_records(folder / "comparisons.jsonl", Comparison), folder / "comparisons.jsonl")
    votes, repeated = _unique(read_records(folder / "judgements.jsonl", Judgement), folder / "judgements.jsonl")
    item_ids = {item.id for item in collected.items}
    collected.dropped["repeated in the file"] += repeated
    for j in votes:
        if j.item not in item_ids:
            collected.dropped["on an answer that is not in comparisons.jsonl"] += 1
        else:
            collected.judgements.append(j)
    return collected


def _unique(records: Iterable[R], file: Path) -> tuple[list[R], int]:
    """The records without repetitions, and the number of repetitions."""
    unique: dict[str, R] = {}
    repeated = 0
    for record in records:
        if unique.setdefault(record.id, record) != record:
            raise DataError(
                f"{file}: two different records have the id {record.id!r}; export the project again with `trimtab data "
                "export`, and do not join files by hand"
            )
        repeated += unique[record.id] is not record
    return list(unique.values()), repeated


def used_before(rounds: Iterable[RunFolder]) -> set[tuple[str, str, str]]:
    """The opinions (see :func:`opinion`) that rounds have used."""
    files = (run.stage("label") / "judgements.jsonl" for run in rounds)
    return {opinion(j) for file in files if file.is_file() for j in read_records(file, Judgement)}


def opinion(judgement: Judgement) -> tuple[str, str, str]:
    """Key of a judgement that stays the same when the person changes it."""
    return judgement.item, judgement.annotator, judgement.criterion


def _unused_votes(collected: Collected, context: Context, label: LabelConfig) -> Collected:
    """The votes that this round may use, and their answers.

    A change of a judgement that an earlier round used is not a new vote. The cap on one person's votes is applied last,
    so votes of earlier rounds do not count towards it.
    """
    assert label.votes is not None
    used_opinions = used_before(context.run.earlier())
    known_refusals: set[str] = set()
    for folder in (run.stage("label") for run in context.run.earlier()):
        if (folder / REFUSALS).is_file():
            known_refusals |= {r.vote for r in read_records(folder / REFUSALS, WrongRefusal)}
    heldout_prompts, limit = context.set_aside(), label.votes.per_person
    thumbs = collected.thumbs if context.config.learns_from_thumbs else []
    used_thumbs = {t.id for run in context.run.earlier() for t in thumbs_of(run)}
    heldout_items = {item.id for item in collected.items if Prompt.of(item.prompt.messages).id in heldout_prompts}
    votes: list[Judgement] = []
    dropped, votes_by_annotator = Counter(collected.dropped), Counter[str]()
    for j in collected.judgements:
        if j.annotator in label.without:
            dropped["of annotators in label.without"] += 1
        elif opinion(j) in used_opinions:
            dropped["used in an earlier round"] += 1
        elif j.item in heldout_items:
            dropped["about a held-out prompt"] += 1
        elif j.item.startswith(CHAT) and votes_by_annotator[j.annotator] >= limit:
            dropped[f"beyond {limit} votes of one person"] += 1
        else:
            votes_by_annotator[j.annotator] += 1
            votes.append(j)
    dropped[NO_COMPARISON] -= len(thumbs)
    thumbs_by_annotator, new_thumbs = Counter[str](), []
    for t in thumbs:
        if t.annotator in label.without:
            dropped["of annotators in label.without"] += 1
        elif t.id in used_thumbs:
            dropped["used in an earlier round"] += 1
        elif Prompt.of(t.prompt.messages).id in heldout_prompts:
            dropped["about a held-out prompt"] += 1
        elif thumbs_by_annotator[str(t.annotator)] >= limit:
            dropped[f"beyond {limit} thumbs of one person"] += 1
        else:
            thumbs_by_annotator[str(t.annotator)] += 1
            new_thumbs.append(t)
    items = {j.item for j in votes}
    return Collected(
        items=[item for item in collected.items if item.id in items],
        judgements=votes,
        thumbs=new_thumbs,
        refusals=[r for r in collected.refusals if r.vote not in known_refusals and r.annotator not in label.without],
        dropped=+dropped,
    )


def _reasons_text(dropped: Mapping[str, int]) -> str:
    return ": " + ", ".join(f"{count} {reason}" for reason, count in dropped.items()) if dropped else ""
