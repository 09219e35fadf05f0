"""Whole projects out and in: our own format, and those of other tools. Every export has a manifest.

::

    trimtab      tasks.jsonl, submissions.jsonl, project.json    everything; what `data import` reads back
    judgements   comparisons.jsonl, judgements.jsonl             one record for each criterion
    trl          preferences.jsonl                               rows of prompt, chosen, rejected
    ranking      rankings.jsonl                                  K answers with ranks and ties
    unpaired     ratings.jsonl                                   rows of prompt, completion, label
    steps        steps.jsonl                                     solutions with their first wrong step
    rewrites     demonstrations.jsonl                            rewritten answers as conversations
    csv          judgements.csv                                  one line for each pair, thumb or step label

Annotators appear by pseudonym. Groups of fewer annotators than the project's ``min_cell`` are not
named. What is not in a file is counted in the manifest with the reason.
"""

import csv
import hashlib
import io
import json
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

from pydantic import ValidationError

from trimtab import __version__
from trimtab.config import parse_config
from trimtab.errors import DataError
from trimtab.feedback import AggregateConfig, aggregate, settled
from trimtab.files import write_folder
from trimtab.records import Comparison, Judgement, to_plain
from trimtab.records.annotation import (
    Submission,
    Task,
    demonstration_of,
    judgements_of,
    overall_ranks,
    rating_of,
    step_label_of,
)
from trimtab.records.types import Message
from trimtab.storage.labels import LabelStore
from trimtab.storage.project import ProjectConfig
from trimtab.storage.snapshot import Snapshot, load_snapshot, take_snapshot, without_small_groups

FORMATS = ("trimtab", "judgements", "trl", "ranking", "unpaired", "steps", "rewrites", "csv")
_VERSION = 1


def export_folder(store: LabelStore, format: str, folder: Path) -> dict[str, Any]:
    """Write an export to a folder, whole or not at all; returns the manifest.

    Raises:
        DataError: the folder exists and is not empty.
    """
    if folder.exists() and any(folder.iterdir()):
        raise DataError(f"{folder}: exists and is not empty; name a new folder")
    files = _files(store, format)

    def fill(aside: Path) -> None:
        for name, data in files.items():
            (aside / name).write_bytes(data)

    write_folder(folder, fill)
    return json.loads(files["manifest.json"])


def export_zip(store: LabelStore, format: str, out: IO[bytes]) -> None:
    """Write an export as a zip file."""
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in _files(store, format).items():
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data, zipfile.ZIP_DEFLATED)


def import_folder(store: LabelStore, folder: Path) -> dict[str, int]:
    """Fill an empty project from an export in our own format.

    Raises:
        DataError: not such an export, or a file is not what the manifest says.
        ConflictError: the project is not empty.
    """
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        files = {name: (folder / Path(name).name).read_bytes() for name in manifest["files"]}
        if manifest["format"] != "trimtab" or manifest["version"] != _VERSION:
            raise DataError(
                f"{folder}: holds format {manifest['format']!r} version {manifest['version']}; 'trimtab' version "
                f"{_VERSION} is needed: export with --format trimtab"
            )
        for name, data in files.items():
            if hashlib.sha256(data).hexdigest() != manifest["files"][name]["sha256"]:
                raise DataError(f"{folder / name}: was changed since it was exported; export it again")
        project = json.loads(files["project.json"])
        snapshot = Snapshot(
            config=parse_config(ProjectConfig, project["config"], where=str(folder / "project.json")),
            tasks=tuple(Task.model_validate_json(line) for line in _lines(files["tasks.jsonl"])),
            submissions=tuple(Submission.model_validate_json(line) for line in _lines(files["submissions.jsonl"])),
            guidelines=tuple(project["guidelines"]),
            batches=tuple(project["batches"]),
            retired=tuple(project["retired"]),
            excluded={},
        )
    except OSError as error:
        raise DataError(
            f"{error.filename}: cannot be read ({error.strerror}); give a folder made by data export"
        ) from None
    except (KeyError, TypeError, AttributeError, ValidationError, ValueError) as error:
        raise DataError(f"{folder}: not an export of ours ({type(error).__name__}: {str(error)[:200]})") from None
    known = {task.id for task in snapshot.tasks}
    strangers = sum(s.task not in known for s in snapshot.submissions)
    if strangers:
        raise DataError(f"{folder}: {strangers} submissions are about tasks that are not in it")
    return load_snapshot(store, snapshot)


def comparisons_and_judgements(snapshot: Snapshot) -> tuple[list[Comparison], list[Judgement]]:
    """What statistics and aggregation take; checks (gold, attention, qualification) are left out."""
    tasks = {t.id: t for t in snapshot.tasks if t.check is None and t.id not in set(snapshot.retired)}
    items = [c for t in tasks.values() if (c := t.comparison) is not None]
    judgements = [j for s in snapshot.submissions if s.task in tasks for j in judgements_of(tasks[s.task], s)]
    return items, judgements


def _files(store: LabelStore, format: str) -> dict[str, bytes]:
    snapshot = take_snapshot(store)
    submissions, hidden = without_small_groups(snapshot.submissions, snapshot.config.min_cell)
    snapshot = Snapshot(**{**vars(snapshot), "submissions": submissions})
    dropped: Counter[str] = Counter()
    if snapshot.excluded["late"]:
        dropped["came after the slot had gone to somebody else"] = snapshot.excluded["late"]
    if snapshot.excluded["undone"]:
        dropped["taken back by the annotator"] = snapshot.excluded["undone"]
    files, rows = _WRITERS[format](snapshot, dropped)
    manifest = {
        "format": format,
        "version": _VERSION,
        "trimtab": __version__,
        "title": snapshot.config.title,
        "tasks": len(snapshot.tasks),
        "submissions": len(snapshot.submissions),
        "verdicts": dict(Counter(s.verdict for s in snapshot.submissions)),
        "sources": dict(Counter(s.source for s in snapshot.submissions)),
        "annotators": len({s.annotator for s in snapshot.submissions}),
        "guidelines": [g["name"] for g in snapshot.guidelines],
        "min_cell": snapshot.config.min_cell,
        "groups_hidden": hidden,
        "dropped": dict(dropped),
        "files": {
            name: {"sha256": hashlib.sha256(data).hexdigest(), "rows": rows[name]} for name, data in files.items()
        },
    }
    return files | {"manifest.json": (json.dumps(manifest, indent=2, ensure_ascii=False) + "\n").encode()}


Written = tuple[dict[str, bytes], dict[str, int]]


def _native(snapshot: Snapshot, dropped: Counter[str]) -> Written:
    project = {
        "config": json.loads(snapshot.config.model_dump_json()),
        "guidelines": list(snapshot.guidelines),
        "batches": list(snapshot.batches),
        "retired": list(snapshot.retired),
    }
    text = json.dumps(project, indent=2, ensure_ascii=False) + "\n"
    made = _jsonl(
        {"tasks.jsonl": map(to_plain, snapshot.tasks), "submissions.jsonl": map(to_plain, snapshot.submissions)}
    )
    return made[0] | {"project.json": text.encode()}, made[1] | {"project.json": 1}


def _judgements(snapshot: Snapshot, dropped: Counter[str]) -> Written:
    items, judgements = comparisons_and_judgements(snapshot)
    _count_left_out(snapshot, dropped, {"compare"})
    return _jsonl({"comparisons.jsonl": map(to_plain, items), "judgements.jsonl": map(to_plain, judgements)})


def _preferences(snapshot: Snapshot, dropped: Counter[str]) -> Any:
    items, judgements = comparisons_and_judgements(snapshot)
    _count_left_out(snapshot, dropped, {"compare"})
    criterion = snapshot.config.criteria[0].name
    result = aggregate(items, settled(judgements), config=AggregateConfig(criterion=criterion))
    dropped.update({f"item: {reason}": n for reason, n in result.dropped.items()})
    dropped.update({f"judgement: {reason}": n for reason, n in result.dropped_judgements.items()})
    return result.preferences


def _trl(snapshot: Snapshot, dropped: Counter[str]) -> Written:
    rows = []
    for p in _preferences(snapshot, dropped):
        prompt = [m.model_dump() for m in p.prompt.messages]
        for i, better in enumerate(p.completions):
            for j, worse in enumerate(p.completions):
                if p.ranks[i] < p.ranks[j]:
                    row = {"prompt": prompt, "chosen": _turn(better.text), "rejected": _turn(worse.text)}
                    rows.append(row | {"item": p.id, "source": p.source})
    return _jsonl({"preferences.jsonl": rows})


def _ranking(snapshot: Snapshot, dropped: Counter[str]) -> Written:
    return _jsonl({"rankings.jsonl": map(to_plain, _preferences(snapshot, dropped))})


def _unpaired(snapshot: Snapshot, dropped: Counter[str]) -> Written:
    _count_left_out(snapshot, dropped, {"thumbs"})
    ratings = [r for task, s in _pairs(snapshot) if (r := rating_of(task, s)) is not None]
    rows = (
        {
            "prompt": [m.model_dump() for m in r.prompt.messages],
            "completion": _turn(r.completion.text),
            "label": r.good,
            "annotator": r.annotator,
            "source": r.source,
        }
        for r in ratings
    )
    return _jsonl({"ratings.jsonl": rows})


def _steps(snapshot: Snapshot, dropped: Counter[str]) -> Written:
    _count_left_out(snapshot, dropped, {"steps"})
    labels = [label for task, s in _pairs(snapshot) if (label := step_label_of(task, s)) is not None]
    return _jsonl({"steps.jsonl": ({"first_wrong": None} | to_plain(label) for label in labels)})


def _rewrites(snapshot: Snapshot, dropped: Counter[str]) -> Written:
    tasks = {t.id: t for t in snapshot.tasks if t.check is None and t.id not in set(snapshot.retired)}
    demonstrations = [d for s in snapshot.submissions if s.task in tasks and (d := demonstration_of(tasks[s.task], s))]
    dropped["no rewritten answer, or of a check or a retired item"] = len(snapshot.submissions) - len(demonstrations)
    return _jsonl({"demonstrations.jsonl": map(to_plain, demonstrations)})


_COLUMNS = (
    "submission task kind annotator source verdict criterion first second ranks scores strength good first_wrong "
    "reason comment guideline seconds cohort adjudication created_at"
).split()


def _csv(snapshot: Snapshot, dropped: Counter[str]) -> Written:
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    writer.writerow(_COLUMNS)
    count = 0
    out_of_use = set(snapshot.retired)
    if left_out := sum(s.task in out_of_use for s in snapshot.submissions):
        dropped["item retired"] = left_out
    for task, s in _pairs(snapshot, checks=True):
        common = {
            "submission": s.id, "task": task.id, "kind": task.kind, "annotator": s.annotator, "source": s.source,
            "verdict": s.verdict, "reason": s.reason, "comment": s.comment, "guideline": s.guideline,
            "seconds": s.seconds, "cohort": s.cohort, "adjudication": s.adjudication, "created_at": s.created_at,
            "good": s.good, "first_wrong": s.first_wrong,
        }  # fmt: skip
        rows: list[dict[str, Any]] = [{}]
        if s.answers:
            rows = []
            for a in s.answers:
                one = s.model_copy(update={"answers": (a,)})
                row = {"criterion": a.criterion, "ranks": overall_ranks(task, one), "strength": a.strength}
                row |= {"first": s.shown_order[0], "second": s.shown_order[1]}
                rows.append(row | ({"scores": _canonical(s.shown_order, a.scores)} if a.scores else {}))
        for row in rows:
            writer.writerow([_cell((common | row).get(name)) for name in _COLUMNS])
            count += 1
    return {"judgements.csv": out.getvalue().encode()}, {"judgements.csv": count}


def _canonical(order: tuple[int, ...], values: tuple[int, ...]) -> tuple[int, ...]:
    by_answer = dict(zip(order, values, strict=True))
    return tuple(by_answer[i] for i in range(len(order)))


def _cell(value: Any) -> Any:
    """A spreadsheet must not take a comment for a formula (OWASP, "CSV injection")."""
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    if isinstance(value, str) and value[:1] in tuple("=+-@＝＋－＠\t\r\n"):
        return "'" + value
    return value


def _pairs(snapshot: Snapshot, *, checks: bool = False) -> list[tuple[Task, Submission]]:
    out = set(snapshot.retired)
    tasks = {t.id: t for t in snapshot.tasks if t.id not in out and (checks or t.check is None)}
    settled = {s.task for s in snapshot.submissions if s.adjudication}
    return [
        (tasks[s.task], s)
        for s in snapshot.submissions
        if s.task in tasks and (checks or s.adjudication or s.task not in settled)
    ]


def _count_left_out(snapshot: Snapshot, dropped: Counter[str], kinds: set[str]) -> None:
    tasks = {t.id: t for t in snapshot.tasks}
    out = set(snapshot.retired)
    settled = {s.task for s in snapshot.submissions if s.adjudication}
    for s in snapshot.submissions:
        task = tasks[s.task]
        if task.check is not None:
            dropped["check item"] += 1
        elif task.id in out:
            dropped["item retired"] += 1
        elif task.kind not in kinds:
            dropped[f"other kind of task: {task.kind}"] += 1
        elif "compare" not in kinds and s.task in settled and not s.adjudication:
            dropped["settled by an adjudicator"] += 1
        elif s.verdict != "judged" and "compare" not in kinds:
            dropped[f"not judged: {s.verdict}"] += 1


def _turn(text: str) -> list[dict[str, str]]:
    return [Message(role="assistant", content=text).model_dump()]


def _jsonl(files: Mapping[str, Iterable[Any]]) -> Written:
    made, rows = {}, {}
    for name, values in files.items():
        lines = [json.dumps(value, ensure_ascii=False) + "\n" for value in values]
        made[name], rows[name] = "".join(lines).encode(), len(lines)
    return made, rows


def _lines(data: bytes) -> list[str]:
    return [line for line in data.decode().split("\n") if line.strip()]


_WRITERS = {
    "trimtab": _native,
    "judgements": _judgements,
    "trl": _trl,
    "ranking": _ranking,
    "unpaired": _unpaired,
    "steps": _steps,
    "rewrites": _rewrites,
    "csv": _csv,
}
assert tuple(_WRITERS) == FORMATS
