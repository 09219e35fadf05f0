"""Export and import of whole projects, in our own format and those of other tools. Every export has a manifest.

::

    trimtab      tasks.jsonl, submissions.jsonl, project.json    everything; what `data import` reads back
    judgements   comparisons.jsonl, judgements.jsonl             one record for each criterion
    trl          preferences.jsonl                               rows of prompt, chosen, rejected
    ranking      rankings.jsonl                                  K answers with ranks and ties
    unpaired     ratings.jsonl                                   rows of prompt, completion, label
    steps        steps.jsonl                                     solutions with their first wrong step
    rewrites     demonstrations.jsonl                            rewritten answers as conversations
    csv          judgements.csv                                  one line for each pair, thumb or step label

Annotators appear by pseudonym. Groups of fewer annotators than the project's ``min_cell`` are not named. If an export
has metadata, owners' comments are in ``metadata`` as ``owner_comments``. ``project.json`` contains them with all
corrections as ``log``.

The manifest counts all ``judgements`` ever submitted, those ``used`` in the files, and the others in ``dropped`` by
reason: ``judgements`` = ``used`` + the sum of ``dropped``. A comparison by several criteria is one judgement. ``trl``
and ``ranking`` contain only the first criterion of the project; ``other_criteria`` counts the answers about the others,
and ``dropped_items`` the comparisons without a row.

Rows of ``trl`` have a ``margin`` if people were asked how clear the difference is; 0 in such a file means no margin.
"""

import csv
import hashlib
import io
import json
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from pydantic import ValidationError

from trimtab import __version__
from trimtab.config import parse_config
from trimtab.errors import DataError
from trimtab.feedback import AggregateConfig, aggregate
from trimtab.files import write_folder
from trimtab.records import Judgement, Preference, to_plain
from trimtab.records.annotation import (
    Submission,
    Task,
    TaskKind,
    demonstration_of,
    judgements_of,
    overall_ranks,
    rating_of,
    step_label_of,
)
from trimtab.records.trl import trl_rows
from trimtab.records.types import strict_pairs
from trimtab.storage.chat import record_export
from trimtab.storage.curation import comments_by_item
from trimtab.storage.labels import LabelStore
from trimtab.storage.project import ProjectConfig
from trimtab.storage.snapshot import (
    Snapshot,
    comparisons_and_judgements,
    load_snapshot,
    take_snapshot,
    was_blocked,
    without_small_groups,
)

FORMATS = ("trimtab", "judgements", "trl", "ranking", "unpaired", "steps", "rewrites", "csv")
_VERSION = 1
_LOG = ("item", "kind", "at", "person", "body")
"""Fields of an entry of ``log`` in ``project.json``."""


def export_folder(store: LabelStore, format: str, folder: Path) -> dict[str, Any]:
    """Write an export to a folder, all or nothing; returns the manifest. The store records the export.

    Raises:
        DataError: the folder exists and is not empty.
    """
    if folder.exists() and any(folder.iterdir()):
        raise DataError(f"{folder}: exists and is not empty; name a new folder")
    files = _files(store, format)

    def fill(target: Path) -> None:
        for name, data in files.items():
            (target / name).write_bytes(data)

    write_folder(folder, fill)
    record_export(store, str(folder), format)
    return json.loads(files["manifest.json"])


def export_zip(store: LabelStore, format: str, out: IO[bytes]) -> None:
    """Write an export as a zip file. The store records the export."""
    files = _files(store, format)
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data, zipfile.ZIP_DEFLATED)
    record_export(store, f"trimtab-{format}.zip", format)


def import_folder(store: LabelStore, folder: Path) -> dict[str, int]:
    """Fill an empty project from an export in our own format.

    Raises:
        DataError: the folder is no such export, or a file does not match the manifest.
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
            log=tuple({name: entry[name] for name in _LOG} for entry in project.get("log", ())),
            excluded={},
        )
    except OSError as error:
        raise DataError(
            f"{error.filename}: cannot be read ({error.strerror}); give a folder made by data export"
        ) from None
    except (KeyError, TypeError, AttributeError, ValidationError, ValueError) as error:
        raise DataError(f"{folder}: not an export of ours ({type(error).__name__}: {str(error)[:200]})") from None
    task_ids = {task.id for task in snapshot.tasks}
    unknown_tasks = sum(s.task not in task_ids for s in snapshot.submissions)
    if unknown_tasks:
        raise DataError(f"{folder}: {unknown_tasks} submissions are about tasks that are not in it")
    return load_snapshot(store, snapshot)


def _files(store: LabelStore, format: str) -> dict[str, bytes]:
    return render(take_snapshot(store), format)


def render(snapshot: Snapshot, format: str) -> dict[str, bytes]:
    """The files of an export by name, including its ``manifest.json``."""
    submissions, hidden = without_small_groups(snapshot.submissions, snapshot.config.min_cell)
    tasks = snapshot.tasks if format == "trimtab" else tuple(_with_comments(snapshot))
    snapshot = replace(snapshot, submissions=submissions, tasks=tasks)
    dropped = Counter({_EXCLUSION_REASONS[name]: count for name, count in snapshot.excluded.items() if count})
    written = _WRITERS[format](snapshot, dropped)
    files, rows = written.files, written.rows
    total = len(snapshot.submissions) + sum(snapshot.excluded.values())
    assert written.used + dropped.total() == total, f"{format}: {written.used} + {dropped} of {total}"
    manifest = {
        "format": format,
        "version": _VERSION,
        "trimtab": __version__,
        "title": snapshot.config.title,
        "tasks": len(snapshot.tasks),
        "submissions": len(snapshot.submissions),
        "judgements": total,
        "used": written.used,
        "verdicts": dict(Counter(s.verdict for s in snapshot.submissions)),
        "sources": dict(Counter(s.source for s in snapshot.submissions)),
        "annotators": len({s.annotator for s in snapshot.submissions}),
        "guidelines": [g["name"] for g in snapshot.guidelines],
        "min_cell": snapshot.config.min_cell,
        "groups_hidden": hidden,
        "dropped": dict(+dropped),
        **written.counts,
        "files": {
            name: {"sha256": hashlib.sha256(data).hexdigest(), "rows": rows[name]} for name, data in files.items()
        },
    }
    return files | {"manifest.json": (json.dumps(manifest, indent=2, ensure_ascii=False) + "\n").encode()}


def _with_comments(snapshot: Snapshot) -> Iterable[Task]:
    """The tasks with owners' comments as ``owner_comments`` in their metadata."""
    comments = comments_by_item(snapshot.log)
    for task in snapshot.tasks:
        if task.id in comments:
            task = task.model_copy(update={"metadata": task.metadata | {"owner_comments": comments[task.id]}})
        yield task


_EXCLUSION_REASONS = {
    "late": "came after the slot had been given to another annotator",
    "undone": "taken back by the annotator",
    "changed": "changed by the annotator later",
}


@dataclass(kw_only=True)
class _Written:
    """The files of one format."""

    files: dict[str, bytes]
    rows: dict[str, int]
    """Number of rows by file name."""
    used: int
    """Number of judgements in the files."""
    counts: dict[str, Any] = field(default_factory=dict)
    """Further entries of the manifest."""


def _native(snapshot: Snapshot, dropped: Counter[str]) -> _Written:
    project = {
        "config": json.loads(snapshot.config.model_dump_json()),
        "guidelines": list(snapshot.guidelines),
        "batches": list(snapshot.batches),
        "retired": list(snapshot.retired),
        "log": list(snapshot.log),
    }
    text = json.dumps(project, indent=2, ensure_ascii=False) + "\n"
    written = _jsonl(
        {"tasks.jsonl": map(to_plain, snapshot.tasks), "submissions.jsonl": map(to_plain, snapshot.submissions)},
        used=len(snapshot.submissions),
    )
    written.files["project.json"], written.rows["project.json"] = text.encode(), 1
    return written


def _judgements(snapshot: Snapshot, dropped: Counter[str]) -> _Written:
    items, judgements = comparisons_and_judgements(snapshot)
    used = len(_usable(snapshot, dropped, "compare"))
    files = {"comparisons.jsonl": map(to_plain, items), "judgements.jsonl": map(to_plain, judgements)}
    return _jsonl(files, used=used)


def _preferences(snapshot: Snapshot, dropped: Counter[str]) -> tuple[list[Preference], dict[str, Any]]:
    """Preferences by the project's first criterion, and counts for the manifest."""
    criterion = snapshot.config.criteria[0].name
    judgements: list[Judgement] = []
    other_criteria: Counter[str] = Counter()
    for task, submission in _usable(snapshot, dropped, "compare"):
        all_judgements = judgements_of(task, submission)
        chosen = next((j for j in all_judgements if j.criterion == criterion or j.ranks is None), None)
        other_criteria.update(j.criterion for j in all_judgements if j is not chosen)
        if chosen is None:
            dropped[f"no answer about criterion {criterion!r}"] += 1
        else:
            judgements.append(chosen)
    items = comparisons_and_judgements(snapshot)[0]
    result = aggregate(items, judgements, config=AggregateConfig(criterion=criterion))
    dropped.update({reason.removeprefix("item dropped: "): n for reason, n in result.dropped_judgements.items()})
    return list(result.preferences), {"other_criteria": dict(other_criteria), "dropped_items": result.dropped}


def _trl(snapshot: Snapshot, dropped: Counter[str]) -> _Written:
    preferences, counts = _preferences(snapshot, dropped)
    decided = {s.task for s in snapshot.submissions if s.adjudication}
    with_margin = any(p.margin is not None for p in preferences)
    rows = [
        row
        | ({"margin": p.margin or 0.0} if with_margin else {})
        | {
            "chosen_model": better.model,
            "rejected_model": worse.model,
            "item": p.id,
            "source": p.source,
            "adjudicated": p.id in decided,
            "judgements": p.judgements,
            "metadata": p.prompt.metadata | p.metadata,
        }
        for p in preferences
        for row, (better, worse) in zip(trl_rows(p), strict_pairs(p), strict=True)
    ]
    used = 0
    for preference in preferences:
        if strict_pairs(preference):
            used += len(preference.judgements)
        else:  # the ranks are tied although the probability is not ½
            dropped["all answers tied"] += len(preference.judgements)
    return _jsonl({"preferences.jsonl": rows}, used=used, **counts)


def _ranking(snapshot: Snapshot, dropped: Counter[str]) -> _Written:
    preferences, counts = _preferences(snapshot, dropped)
    used = sum(len(p.judgements) for p in preferences)
    return _jsonl({"rankings.jsonl": map(to_plain, preferences)}, used=used, **counts)


def _unpaired(snapshot: Snapshot, dropped: Counter[str]) -> _Written:
    rows = []
    for task, s in _judged(snapshot, dropped, "thumbs"):
        rating = rating_of(task, s)
        assert rating is not None, "a judged thumb says good or bad"
        rows += [row | _origin(task, s) for row in trl_rows(rating)]
    return _jsonl({"ratings.jsonl": rows}, used=len(rows))


def _steps(snapshot: Snapshot, dropped: Counter[str]) -> _Written:
    rows = []
    for task, s in _judged(snapshot, dropped, "steps"):
        label = step_label_of(task, s)
        assert label is not None, "a judged steps task has a label"
        rows.append({"first_wrong": None} | to_plain(label) | _origin(task, s))
    return _jsonl({"steps.jsonl": rows}, used=len(rows))


def _rewrites(snapshot: Snapshot, dropped: Counter[str]) -> _Written:
    demonstrations = []
    for task, s in _usable(snapshot, dropped, None):
        demonstration = demonstration_of(task, s)
        if demonstration is None:
            dropped["no rewritten answer"] += 1
        else:
            demonstrations.append(to_plain(demonstration))
    return _jsonl({"demonstrations.jsonl": demonstrations}, used=len(demonstrations))


def _origin(task: Task, submission: Submission) -> dict[str, Any]:
    """Who labelled one answer, and which one."""
    return {
        "item": task.id,
        "submission": submission.id,
        "annotator": submission.annotator,
        "source": submission.source,
        "adjudicated": submission.adjudication,
        "model": task.completions[0].model,
        "metadata": task.prompt.metadata | task.metadata,
    }


_COLUMNS = (
    "submission task kind annotator source verdict criterion first second ranks scores strength good first_wrong "
    "reason comment guideline seconds cohort adjudication created_at models metadata"
).split()


def _csv(snapshot: Snapshot, dropped: Counter[str]) -> _Written:
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    writer.writerow(_COLUMNS)
    count = used = 0
    tasks, retired = {t.id: t for t in snapshot.tasks}, set(snapshot.retired)
    for s in snapshot.submissions:
        task = tasks[s.task]
        if s.task in retired:
            dropped["item retired"] += 1
            continue
        if was_blocked(task):
            dropped["answer blocked by the guard"] += 1
            continue
        used += 1
        metadata = task.prompt.metadata | task.metadata
        models = [c.model or "" for c in task.completions]
        common = {
            "submission": s.id, "task": task.id, "kind": task.kind, "annotator": s.annotator, "source": s.source,
            "verdict": s.verdict, "reason": s.reason, "comment": s.comment, "guideline": s.guideline,
            "seconds": s.seconds, "cohort": s.cohort, "adjudication": s.adjudication, "created_at": s.created_at,
            "good": s.good, "first_wrong": s.first_wrong,
            "models": json.dumps(models, ensure_ascii=False) if any(models) else None,
            "metadata": json.dumps(metadata, ensure_ascii=False) if metadata else None,
        }  # fmt: skip
        rows: list[dict[str, Any]] = [{}]
        if s.answers:
            rows = []
            for a in s.answers:
                single = s.model_copy(update={"answers": (a,)})
                row = {"criterion": a.criterion, "ranks": overall_ranks(task, single), "strength": a.strength}
                row |= {"first": s.shown_order[0], "second": s.shown_order[1]}
                rows.append(row | ({"scores": _canonical(s.shown_order, a.scores)} if a.scores else {}))
        for row in rows:
            writer.writerow([_cell((common | row).get(name)) for name in _COLUMNS])
            count += 1
    return _Written(files={"judgements.csv": out.getvalue().encode()}, rows={"judgements.csv": count}, used=used)


def _canonical(order: tuple[int, ...], values: tuple[int, ...]) -> tuple[int, ...]:
    by_answer = dict(zip(order, values, strict=True))
    return tuple(by_answer[i] for i in range(len(order)))


def _cell(value: Any) -> Any:
    """Quote text that a spreadsheet would take for a formula (OWASP, "CSV injection")."""
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    if isinstance(value, str) and value[:1] in tuple("=+-@＝＋－＠\t\r\n"):
        return "'" + value
    return value


def _usable(snapshot: Snapshot, dropped: Counter[str], kind: TaskKind | None) -> list[tuple[Task, Submission]]:
    """Submissions about items in use, of one kind of task or of all; counts the others in ``dropped``."""
    tasks, retired = {t.id: t for t in snapshot.tasks}, set(snapshot.retired)
    usable = []
    for s in snapshot.submissions:
        task = tasks[s.task]
        if task.check is not None:
            dropped["check item"] += 1
        elif task.id in retired:
            dropped["item retired"] += 1
        elif kind is not None and task.kind != kind:
            dropped[f"other kind of task: {task.kind}"] += 1
        elif was_blocked(task):
            dropped["answer blocked by the guard"] += 1
        else:
            usable.append((task, s))
    return usable


def _judged(snapshot: Snapshot, dropped: Counter[str], kind: TaskKind) -> list[tuple[Task, Submission]]:
    """As :func:`_usable`, but only judged ones; an adjudicator's decision replaces the annotators' judgements."""
    settled = {s.task for s in snapshot.submissions if s.adjudication}
    judged = []
    for task, s in _usable(snapshot, dropped, kind):
        if s.task in settled and not s.adjudication:
            dropped["settled by an adjudicator"] += 1
        elif s.verdict != "judged":
            dropped[f"not judged: {s.verdict}"] += 1
        else:
            judged.append((task, s))
    return judged


def _jsonl(files: Mapping[str, Iterable[Any]], *, used: int, **counts: Any) -> _Written:
    contents, rows = {}, {}
    for name, values in files.items():
        lines = [json.dumps(value, ensure_ascii=False) + "\n" for value in values]
        contents[name], rows[name] = "".join(lines).encode(), len(lines)
    return _Written(files=contents, rows=rows, used=used, counts=counts)


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
