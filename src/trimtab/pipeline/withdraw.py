"""Makes a run without some annotators' judgements: a new run folder, next to the run that was trained on them.

The new folder has the finished stages that do not depend on the judgements, and the labels without those of the
annotators. Its recipe names the annotators in ``label.without``, so its preferences and all later stages are computed
again. The old run does not change: it is the record of what was trained on what.
"""

import re
import shutil
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from trimtab.config import parse_config
from trimtab.errors import ConfigError, DataError
from trimtab.feedback.thresholds import Audit
from trimtab.files import sha256_file, write_atomic, write_folder, write_json
from trimtab.pipeline.config import RunConfig, dump_config, load_recipe
from trimtab.pipeline.reward_result import read_reward_result
from trimtab.pipeline.rounds import open_run, recipe_of
from trimtab.pipeline.run import RECIPE, PlannedRound, interruptible, plan_stages, prepared, run_round
from trimtab.pipeline.scale import require_one_process
from trimtab.pipeline.stages import stages_of
from trimtab.pipeline.ui import Ui
from trimtab.pipeline.vote_files import (
    MEASURED,
    REFUSALS,
    THUMBS,
    WrongRefusal,
    measure,
    read_measured,
    thumbs_of,
)
from trimtab.records import Comparison, Judgement, Preference, Rating, read_records, to_plain, write_records
from trimtab.storage import RunFolder, read_json

WITHDRAWN = "withdrawn.json"
"""File of the new run with the run it was made from and the annotators left out."""
COPIED = ("revise", "sft", "sample", "label")
"""Stages that do not depend on the judgements' aggregation. A first round without labels is copied as a whole."""
LONGEST = 100
"""Most characters of annotators' names in the name of the new folder."""
NAMED = 10
"""Most annotators named in a message."""


@dataclass(kw_only=True)
class RoundChange:
    """What the withdrawal changed in one round."""

    round: int
    """Number of the round."""
    judgements: int
    """Number of judgements removed."""
    copied: bool
    """True: the round's other labels are in the new run; False: its answers depend on an earlier round's policy and
    must be sampled and labelled again."""
    pairs_before: int = 0
    """Number of preferences before."""
    pairs_after: int = 0
    """Number of preferences after."""
    lost: list[str] = field(default_factory=list)
    """Ids of preferences without any judgement left, or whose answers tie now."""
    gained: int = 0
    """Number of preferences that tied before and do not now."""
    flipped: list[str] = field(default_factory=list)
    """Ids of preferences in which the order of two answers is reversed."""
    changed: int = 0
    """Number of other preferences whose soft label, margin or weight changed."""
    accuracy: dict[str, Any] = field(default_factory=dict)
    """Held-out accuracy of the reward model ``before`` and, if it was trained again, ``after``."""
    again: list[str] = field(default_factory=list)
    """Stages that must run again."""


def withdraw(
    path: Path, annotators: Sequence[str], out: Path | None = None, *, retrain: bool = False, ui: Ui | None = None
) -> tuple[RunFolder, list[RoundChange]]:
    """Make a run without some annotators' judgements.

    Args:
        path: the run's folder.
        annotators: their pseudonyms.
        out: folder of the new run; None: next to the old run, named after it and the annotators.
        retrain: True: train the first round's reward model again.
        ui: console.

    Returns:
        the new run, and what changed, by round.

    Raises:
        DataError: there is no run, or it has no judgement by one of the annotators.
        ConfigError: ``out`` exists and is not an interrupted withdrawal of these annotators, or is not a valid run
            name.
        StorageError: the run is being written.
    """
    require_one_process("trimtab data withdraw")
    run, ui = open_run(path), ui or Ui()
    config = load_recipe(path / "config.yaml")
    with run.lock(), interruptible() as stopping:
        rounds = [r for r in run.rounds() if r.number == 1 or r.is_finished("label")]
        counts = {r.number: Counter(str(v.annotator) for v in (*_judgements(r), *thumbs_of(r))) for r in rounds}
        _check_known(run, annotators, counts)
        out = out or _new_folder(path.resolve(), annotators)
        changes = [
            RoundChange(
                round=r.number,
                judgements=sum(counts[r.number][a] for a in annotators),
                copied=_has_independent_labels(r),
            )
            for r in rounds
        ]
        for earlier, change in pairwise(changes):
            change.copied &= earlier.copied
        copied = [r for r, change in zip(rounds, changes, strict=True) if change.copied]
        recipes = [_recipe_without(load_recipe(r.path / "config.yaml"), annotators, out.name) for r in copied]
        facts = {"from": config.name, "annotators": list(annotators), "rounds": [asdict(c) for c in changes]}
        facts["finished"] = False
        unfinished = (out / WITHDRAWN).is_file() and read_json(out / WITHDRAWN) == facts
        if out.exists() and not unfinished:
            raise ConfigError(f"{out}: exists; name a new folder with --out, or remove it and run the same command")

        def fill(folder: Path) -> None:
            write_json(folder / WITHDRAWN, facts)
            if (run.path / RECIPE).is_file():
                shutil.copy(run.path / RECIPE, folder / RECIPE)
            for r, settings in zip(copied, recipes, strict=True):
                _copy(r, RunFolder(folder / r.place), settings, annotators)

        for leftover in out.parent.glob(f".{out.name}.*.tmp"):  # left by a killed process; contains the texts
            shutil.rmtree(leftover)
        if not unfinished:
            write_folder(out, fill)
        new_run = RunFolder(out)
        recipe = recipe_of(run)
        with new_run.lock():
            for r, settings, change in zip(copied, recipes, changes, strict=False):
                new_round, resolved = new_run.round(r.number), prepared(settings)
                names = [stage.name for stage in stages_of(resolved, r.number)]
                targets = ("reward", "preferences") if retrain and r.number == 1 else ("preferences",)
                last_stage = next((name for name in targets if name in names), None)
                if last_stage is not None:
                    stages = plan_stages(resolved, recipe, new_round, last_stage)
                    run_round(resolved, recipe, PlannedRound(run=new_round, stages=stages), ui, stopping)
                _compare(change, r, new_round)
                change.again = [name for name in names if not new_round.is_finished(name)]
            for r, change in zip(rounds, changes, strict=True):
                if not change.copied:
                    change.again = [s.name for s in stages_of(load_recipe(r.path / "config.yaml"), r.number)]
            write_json(new_run.path / WITHDRAWN, facts | {"rounds": [asdict(c) for c in changes], "finished": True})
    return new_run, changes


def _new_folder(run: Path, annotators: Sequence[str]) -> Path:
    """Folder of the new run, named after the old one and the annotators."""
    names = "-".join(re.sub(r"[^A-Za-z0-9_.-]", "_", name) for name in annotators)
    return run.with_name(f"{run.name}-without-{names[:LONGEST]}")


def _judgements(run: RunFolder) -> list[Judgement]:
    return read_records(run.stage("label") / "judgements.jsonl", Judgement) if run.is_finished("label") else []


def _has_independent_labels(run: RunFolder) -> bool:
    """Whether the round's labels do not depend on the round before: labels of round 1, and votes on a service."""
    label = load_recipe(run.path / "config.yaml").label
    return run.number == 1 or (label is not None and label.source == "votes")


def _check_known(run: RunFolder, annotators: Sequence[str], counts: dict[int, Counter[str]]) -> None:
    counts_by_annotator = Counter(name for counted in counts.values() for name in counted.elements())
    unknown = [name for name in annotators if not counts_by_annotator[name]]
    if unknown or not annotators:
        named = ", ".join(name for name, _ in counts_by_annotator.most_common(NAMED))
        more = f" and {len(counts_by_annotator) - NAMED} more" if len(counts_by_annotator) > NAMED else ""
        raise DataError(
            f"{run.path}: no judgement by {' or '.join(map(repr, unknown))} is in this run"
            + (f"; its annotators are {named}{more}" if counts_by_annotator else "; it has no judgements")
        )


def _recipe_without(config: RunConfig, annotators: Sequence[str], name: str) -> RunConfig:
    values: dict[str, Any] = config.model_dump(mode="json") | {"name": name}
    if config.label is not None:
        values["label"]["without"] = sorted({*config.label.without, *annotators})
    return parse_config(RunConfig, values, where="the new run's recipe")


def _copy(source: RunFolder, target: RunFolder, config: RunConfig, annotators: Collection[str]) -> None:
    """Copy the stages that stay; labels are copied without those of the annotators."""
    write_atomic(target.path / "config.yaml", dump_config(config))
    for stage in COPIED if config.label is not None else [s.name for s in stages_of(config) if s.name != "report"]:
        if source.is_finished(stage):
            shutil.copytree(source.stage(stage), target.stage(stage))
    if config.label is not None:
        _remove_judgements(target.stage("label"), annotators)


def _remove_judgements(label: Path, annotators: Collection[str]) -> None:
    """Remove the annotators' judgements, and the texts that came with them, from a folder of labels."""
    stored = read_records(label / "judgements.jsonl", Judgement)
    judgements = [j for j in stored if j.annotator not in annotators]
    write_records(label / "judgements.jsonl", judgements)
    status = read_json(label / "status.json")
    counts = status["counts"] | {"judgements": len(judgements)}
    if (label / "people.jsonl").is_file():  # labels by AI judges and people
        people = read_records(label / "people.jsonl", Judgement)
        write_records(label / "people.jsonl", [j for j in people if j.annotator not in annotators])
        withdrawn_items = {j.item for j in (*people, *stored) if j.annotator in annotators}
        audits = read_records(label / "audits.jsonl", Audit)
        write_records(label / "audits.jsonl", [audit for audit in audits if audit.item not in withdrawn_items])
    if (label / REFUSALS).is_file():  # votes came with their texts
        refusals = [r for r in read_records(label / REFUSALS, WrongRefusal) if r.annotator not in annotators]
        write_records(label / REFUSALS, refusals)
        if (label / THUMBS).is_file():
            thumbs = [t for t in read_records(label / THUMBS, Rating) if t.annotator not in annotators]
            write_records(label / THUMBS, thumbs)
        judged = {j.item for j in judgements}
        items = [item for item in read_records(label / "comparisons.jsonl", Comparison) if item.id in judged]
        write_records(label / "comparisons.jsonl", items)
        measured = read_measured(label).model_copy(update={"pairs": tuple(measure(items, judgements))})
        write_json(label / MEASURED, to_plain(measured))
        people = {j.annotator for j in judgements}
        counts |= {"items": len(items), "people": len(people), "refusals": len(refusals)}
    outputs = {name: sha256_file(label / name) for name in status["outputs"]}
    write_json(label / "status.json", status | {"counts": counts, "outputs": outputs})


def _preferences(run: RunFolder) -> dict[str, Preference]:
    """A run's preferences by id; empty before they are made."""
    if not run.is_finished("preferences"):
        return {}
    return {p.id: p for p in read_records(run.stage("preferences") / "preferences.jsonl", Preference)}


def _compare(change: RoundChange, old: RunFolder, new: RunFolder) -> None:
    """Fill in which preferences changed, and the reward models' accuracy."""
    before, after = _preferences(old), _preferences(new)
    change.pairs_before, change.pairs_after = len(before), len(after)
    change.lost = [uid for uid in before if uid not in after]
    change.gained = sum(uid not in before for uid in after)
    common = [(before[uid], after[uid]) for uid in before if uid in after]
    change.flipped = [a.id for a, b in common if _flipped(a, b)]
    compared = ("probability", "margin", "weight", "ranks")
    differ = sum(any(getattr(a, name) != getattr(b, name) for name in compared) for a, b in common)
    change.changed = differ - len(change.flipped)
    for when, r in (("before", old), ("after", new)):
        if r.is_finished("reward"):
            evaluation = read_reward_result(r.stage("reward")).evaluation
            if evaluation is not None:
                change.accuracy[when] = evaluation.accuracy.model_dump(mode="json")


def _flipped(before: Preference, after: Preference) -> bool:
    """Whether an answer that was better than another is worse now."""
    indices = range(len(before.ranks))
    return any(
        (before.ranks[i] < before.ranks[j]) and (after.ranks[i] > after.ranks[j]) for i in indices for j in indices
    )


def lines(new_run: RunFolder, changes: Sequence[RoundChange]) -> list[str]:
    """What changed and what to run, in words."""
    out = []
    for c in changes:
        if not c.copied:
            out.append(
                f"round {c.round}: {c.judgements} judgements of theirs; its answers came from a policy that is trained "
                f"anew, so they are sampled and labelled again: {', '.join(c.again)}"
            )
            continue
        out.append(
            f"round {c.round}: {c.judgements} judgements taken out; {c.pairs_before} pairs before, {c.pairs_after} now "
            f"({len(c.lost)} lost, {c.gained} gained, {len(c.flipped)} flipped, {c.changed} with another strength)"
        )
        for when, accuracy in c.accuracy.items():
            if accuracy["value"] is not None:
                interval = f"[{accuracy['low']:.1%}, {accuracy['high']:.1%}]"
                out.append(f"  reward model {when}: {accuracy['value']:.1%} {interval} of held-out pairs")
        out.append(f"  to run again: {', '.join(c.again)}")
    command = f"trimtab run {new_run.path / 'config.yaml'} --runs {new_run.path.parent}"
    out.append(f"{new_run.path}: the old run stays as it is. Train the new one with `{command}`")
    if any(c.copied and c.round > 1 for c in changes):
        out.append(f"and then its further rounds with `trimtab round {new_run.path}`")
    return out
