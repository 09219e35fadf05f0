"""Blind readings: held-out answers of two models without their names, and the readers' judgements.

::

    runs/NAME/blind/
      FILE-DIGEST.key.json            the model of each answer, with the texts, which the run may sample again
      FILE-DIGEST.judgements.jsonl    Judgement records, only ever added to

The digest covers the models, their answers, the seed and the prompts chosen, so that a reading of other answers has
another key and no reading is ever overwritten.
"""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from trimtab.errors import ConfigError, DataError
from trimtab.evals import Reading, WinRow
from trimtab.feedback import clustered_wilson_interval
from trimtab.files import sha256_json, write_json
from trimtab.pipeline.blind_files import EMPTY, check_suffix, read_rows, same_text, write_rows
from trimtab.pipeline.config import RunConfig
from trimtab.pipeline.context import now
from trimtab.records import Comparison, Completion, Judgement, Prompt, Record, Rollout, read_records, write_records
from trimtab.records.types import content_id
from trimtab.storage import RunFolder, read_record

ORDER = ("base", "sft", "start", "best_of", "policy")
"""Models from the earliest to the latest; a comparison counts the wins of the later one."""

ReaderKind = Literal["human", "ai"]

YES, NO = {"yes", "y", "true", "1"}, {"no", "n", "false", "0"}
MAX_NAMED = 5
"""Ids named in a message; the others are counted."""


class BlindItem(Record):
    """One row of a reading."""

    id: str
    """Id shown to the reader; it does not reveal the order."""
    comparison: Comparison
    """The answers in the order of the key's models."""
    shown: tuple[int, int]
    """``shown[0]`` is the index, in the comparison's completions, of answer A, ``shown[1]`` that of answer B."""


class BlindKey(Record):
    """The model behind each answer."""

    name: str
    """Name of the reading: the file's name without suffix."""
    models: tuple[str, str]
    """The two models, the earlier one first."""
    seed: int
    """Seed of the order of rows and answers."""
    digest: str
    """SHA-256 of models, answers, seed and prompts."""
    answers: str
    """SHA-256 of all held-out answers of both models when the reading was made."""
    created_at: str
    """ISO 8601 in UTC."""
    items: tuple[BlindItem, ...]
    """The rows, in the order of the file."""

    def path(self, run: RunFolder, what: str) -> Path:
        """Path of one of the key's files in the run's folder."""
        return run.path / "blind" / f"{self.name}-{self.digest[:8]}.{what}"


# Writing ------------------------------------------------------------------------------------


def make_key(
    run: RunFolder, config: RunConfig, name: str, models: Sequence[str] | None, *, seed: int, prompts: int | None
) -> BlindKey:
    """Draw the order of rows and answers.

    Args:
        run: an evaluated run.
        config: its recipe.
        name: name of the reading.
        models: two of base, sft (in later rounds start), best_of and policy; None: the first and the last one that
            exist.
        seed: seed of the order.
        prompts: number of prompts, drawn at random; None: all.

    Raises:
        ConfigError: the run has no answers of a model, or a model is named twice.
    """
    sampled = [m for m in ORDER if (run.stage("evaluate") / f"answers-{m}.jsonl").exists()]
    first, last = _pair(config, sampled, models)
    answers = {m: load_answers(run, m) for m in (first, last)}
    pairs = list(zip(answers[first], answers[last], strict=True))
    draw = random.Random(f"blind|{seed}")
    draw.shuffle(pairs)
    pairs = pairs[: prompts or len(pairs)]
    current = answers_digest(answers.values())
    chosen = [first_answer.prompt.id for first_answer, _ in pairs]
    digest = sha256_json([name, first, last, seed, current, chosen])
    items = []
    for first_answer, last_answer in pairs:
        completions = (
            Completion(text=first_answer.text, model=first, finish_reason=first_answer.finish_reason),
            Completion(text=last_answer.text, model=last, finish_reason=last_answer.finish_reason),
        )
        shown = (0, 1) if draw.random() < 0.5 else (1, 0)
        comparison = Comparison.of(first_answer.prompt, completions)
        items.append(BlindItem(id=content_id(digest, first_answer.prompt.id)[:12], comparison=comparison, shown=shown))
    return BlindKey(
        name=name, models=(first, last), seed=seed, digest=digest, answers=current, created_at=now(), items=tuple(items)
    )  # fmt: skip


def _pair(config: RunConfig, sampled: Sequence[str], models: Sequence[str] | None) -> tuple[str, str]:
    if models is None:
        if len(sampled) < 2:
            raise ConfigError(f"a blind reading compares two models; this run has answers of {', '.join(sampled)} only")
        return sampled[0], sampled[-1]
    for model in models:
        if model == "base" and model not in sampled and config.evaluate and not config.evaluate.pretrained:
            raise ConfigError(
                "--models base: the model was not pretrained (evaluate.pretrained is false), so it was not sampled; "
                f"choose two of {', '.join(sampled)}"
            )
        if model not in sampled:
            raise ConfigError(f"--models {model}: this run has no such answers; choose two of {', '.join(sampled)}")
    if models[0] == models[1]:
        raise ConfigError(f"--models {' '.join(models)}: name two different models of {', '.join(sampled)}")
    first, last = sorted(models, key=ORDER.index)
    return first, last


def load_answers(run: RunFolder, model: str) -> list[Rollout]:
    """A model's held-out answers."""
    return read_records(run.stage("evaluate") / f"answers-{model}.jsonl", Rollout)


def answers_digest(answers: Iterable[Sequence[Rollout]]) -> str:
    """SHA-256 of the prompts and answers of several models."""
    return sha256_json([[[r.prompt.id, r.text] for r in rollouts] for rollouts in answers])


def write_reading(run: RunFolder, key: BlindKey, path: Path) -> None:
    """Write the key into the run's folder and the rows to ``path``.

    Raises:
        ConfigError: the suffix is neither ``.csv`` nor ``.jsonl``.
        DataError: ``path`` exists and contains judgements, or other data.
    """
    check_suffix(path)
    if path.exists():
        try:
            filled = sum(row.filled for row in read_rows(path))
        except DataError as error:
            raise DataError(f"{error}\n{path} is there already and was left as it is; name another file") from None
        if filled:
            raise DataError(
                f"{path}: {filled} rows are filled in already, so it was left as it is; read them with "
                f"`--read {path}`, or name another file"
            )
    write_key(run, key)
    rows = []
    for item in key.items:
        a, b = (item.comparison.completions[i].text or EMPTY for i in item.shown)
        rows.append({"id": item.id, "prompt": prompt_text(item.comparison.prompt), "A": a, "B": b})
    write_rows(path, rows)


def write_key(run: RunFolder, key: BlindKey) -> None:
    """Write the key; an existing key stays."""
    path = key.path(run, "key.json")
    if not path.exists():
        write_json(path, key.model_dump(mode="json", exclude_defaults=True))


def prompt_text(prompt: Prompt) -> str:
    """A prompt as a reader sees it: the message alone, or every turn with its speaker."""
    if len(prompt.messages) == 1:
        return prompt.text
    return "\n\n".join(f"{m.role}: {m.content}" for m in prompt.messages)


# Reading back -------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Readback:
    """The result of reading files back."""

    stored: int = 0
    """Number of new verdicts."""
    repeated: int = 0
    """Number of verdicts that were stored before, with the same content."""
    empty: int = 0
    """Number of rows without a verdict."""
    keys: dict[str, BlindKey] = field(default_factory=dict)
    """Readings that the verdicts belong to, by digest."""
    stale: tuple[BlindKey, ...] = ()
    """Readings whose answers were sampled again since."""


def load_keys(run: RunFolder) -> list[BlindKey]:
    """All readings of a run, oldest first."""
    lost = "restore it from a copy, or delete it and ask the readers again with `trimtab eval RECIPE --blind FILE`"
    keys = [read_record(path, BlindKey, next_step=lost) for path in (run.path / "blind").glob("*.key.json")]
    return sorted(keys, key=lambda key: (key.created_at, key.digest))


def load_judgements(run: RunFolder, key: BlindKey) -> list[Judgement]:
    """The readers' judgements so far."""
    path = key.path(run, "judgements.jsonl")
    return read_records(path, Judgement) if path.exists() else []


def read_back(run: RunFolder, paths: Sequence[Path], *, reader: str | None, kind: ReaderKind) -> Readback:
    """Check filled-in files and add their judgements to the run's; if any row is wrong, none is added.

    Args:
        run: the run whose answers were read.
        paths: files that were filled in, or folders of an annotation project.
        reader: reader of the rows that name none.
        kind: ``human`` or ``ai``: the readers of files.

    Raises:
        DataError: a row is wrong; the message lists every problem of every row.
    """
    keys = load_keys(run)
    if not keys:
        raise DataError(
            f"{run.path}: nothing was given to blind readers yet; write a file with `trimtab eval RECIPE --blind FILE`"
        )
    items_by_id = {item.id: (key, item) for key in keys for item in key.items}
    result = Readback()
    stored = {key.digest: {_judgement_key(j): j for j in load_judgements(run, key)} for key in keys}
    added: dict[str, list[Judgement]] = {}
    problems: list[str] = []
    for path in paths:
        if path.is_dir():
            judgements, may_change = _from_app(path, items_by_id), True
        else:
            judgements, may_change = _from_file(path, items_by_id, reader, kind, result, problems), False
        conflicts: list[str] = []
        for key, row_id, judgement in judgements:
            earlier = stored[key.digest].get(_judgement_key(judgement))
            result.keys[key.digest] = key
            if earlier is not None and _verdict(earlier) == _verdict(judgement):
                result.repeated += 1
            elif earlier is not None and not may_change:
                conflicts.append(f"{row_id} ({judgement.annotator})")
            else:
                stored[key.digest][_judgement_key(judgement)] = judgement
                added.setdefault(key.digest, []).append(judgement)
        if conflicts:
            problems.append(
                f"{path}: judged twice by the same reader with different verdicts: {_shortened(conflicts)}; "
                "make them agree, or give the second reading another name under reader"
            )
    if problems:
        raise DataError("nothing was stored:\n" + "\n".join(f"  {problem}" for problem in problems))
    for digest, judgements in added.items():
        key = result.keys[digest]
        write_records(key.path(run, "judgements.jsonl"), [*load_judgements(run, key), *judgements])
        result.stored += len(judgements)
    result.stale = tuple(key for key in result.keys.values() if not is_current(run, key))
    return result


def is_current(run: RunFolder, key: BlindKey) -> bool:
    """True if the run's held-out answers are still the answers that were read."""
    try:
        return answers_digest(load_answers(run, model) for model in key.models) == key.answers
    except DataError:
        return False


def _judgement_key(judgement: Judgement) -> tuple[str, str, str, str]:
    return judgement.source, judgement.annotator, judgement.item, judgement.criterion


def _verdict(judgement: Judgement) -> Any:
    """Ranks and scores in the order of the answers, not in that of the display."""
    assert judgement.ranks is not None
    by_answer = sorted(zip(judgement.shown_order, judgement.ranks, judgement.scores or judgement.ranks, strict=True))
    return [(rank, score) for _, rank, score in by_answer]


def _shortened(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + more


_ItemsById = Mapping[str, tuple[BlindKey, BlindItem]]
_KeyedJudgements = list[tuple[BlindKey, str, Judgement]]


def _from_file(
    path: Path, items_by_id: _ItemsById, reader: str | None, kind: ReaderKind, result: Readback, problems: list[str]
) -> _KeyedJudgements:
    """The judgements of a file; adds what is wrong with its rows to ``problems``."""
    try:
        rows = read_rows(path)
    except DataError as error:
        problems.append(str(error))
        return []
    if not any(row.filled for row in rows):
        problems.append(f"{path}: none of {len(rows)} rows is filled in; write A, B or tie under preferred")
        return []
    faults: dict[str, list[str]] = {}
    judgements: _KeyedJudgements = []
    for row in rows:
        row_id = row.values["id"]
        if row_id not in items_by_id:
            faults.setdefault("no such answers in this run (unknown id)", []).append(row_id or f"line {row.line}")
            continue
        key, item = items_by_id[row_id]
        texts = [item.comparison.completions[i].text for i in item.shown]
        cells = (row.values["A"], row.values["B"])
        if any(cell and not same_text(cell, text) for cell, text in zip(cells, texts, strict=True)):
            faults.setdefault("A or B is not the answer that was written there", []).append(row_id)
            continue
        preferred = row.values["preferred"].lower()
        if preferred not in ("", "a", "b", "tie"):
            text = f"{row_id} ({row.values['preferred']!r})"
            faults.setdefault("preferred is neither A, B nor tie", []).append(text)
            continue
        sensible = [row.values["sensible_A"].lower(), row.values["sensible_B"].lower()]
        if any(sensible) and not all(cell in YES | NO for cell in sensible):
            faults.setdefault("sensible_A and sensible_B need yes or no, both or neither", []).append(row_id)
            continue
        if not preferred and not any(sensible):
            result.empty += 1
            result.keys[key.digest] = key
            continue
        name = row.values["reader"] or reader
        if not name:
            faults.setdefault("no reader is named; fill in the column reader, or pass --reader NAME", []).append(row_id)
            continue
        row_judgements = _judgements(key, item, preferred, sensible, name, kind, row.values["comment"])
        judgements += [(key, row_id, judgement) for judgement in row_judgements]
        result.empty += not preferred
    problems += [f"{path}: {problem}: {_shortened(ids)}" for problem, ids in faults.items()]
    return judgements


def _judgements(
    key: BlindKey, item: BlindItem, preferred: str, sensible: Sequence[str], reader: str, kind: ReaderKind, comment: str
) -> list[Judgement]:
    """One record for the preference, and one for whether the answers are sensible."""

    def record(criterion: str, ranks: tuple[int, ...], scores: tuple[float, ...] | None = None) -> Judgement:
        return Judgement(
            id=content_id("blind", key.digest, item.id, kind, reader, criterion, ranks),
            item=item.comparison.id, annotator=reader, source=kind, shown_order=item.shown, ranks=ranks, scores=scores,
            criterion=criterion, comment=comment, created_at=now(),
        )  # fmt: skip

    records = []
    if preferred:
        records.append(record("overall", {"a": (0, 1), "b": (1, 0), "tie": (0, 0)}[preferred]))
    if any(sensible):
        good = [cell in YES for cell in sensible]
        ranks = tuple(int(any(good) and not g) for g in good)
        records.append(record("sensible", ranks, tuple(float(g) for g in good)))
    return records


# The annotation app -------------------------------------------------------------------------


def put_in_app(run: RunFolder, key: BlindKey) -> tuple[Path, int, int]:
    """Add the answers to the run's project for blind reading; returns its folder, items added and left out.

    Equal answers cannot be shown to people there and are left out.
    """
    from trimtab.records.annotation import Task
    from trimtab.storage.labels import open_store

    write_key(run, key)
    folder = run.path / "blind-annotation"
    folder.mkdir(parents=True, exist_ok=True)
    tasks = []
    for item in key.items:
        texts = [item.comparison.completions[i].text for i in item.shown]
        tasks.append(Task.of(item.comparison.prompt, texts, id=item.id, batch=f"{key.name}-{key.digest[:8]}"))
    with open_store(folder) as store:
        added, refused = store.add(tasks)
    return folder, added, sum("duplicate" not in r.reason for r in refused)


def _from_app(folder: Path, items_by_id: _ItemsById) -> _KeyedJudgements:
    """People's judgements in an annotation project; of a changed judgement, the newest version."""
    from trimtab.records.annotation import OVERALL, judgements_of
    from trimtab.storage.labels import open_store
    from trimtab.storage.snapshot import take_snapshot

    if not (folder / "labels.db").is_file():
        raise DataError(f"{folder}: holds no labels.db; name a filled-in file or the folder of an annotation project")
    with open_store(folder) as store:
        snapshot = take_snapshot(store)
    tasks = {task.id: task for task in snapshot.tasks if task.id in items_by_id and task.id not in snapshot.retired}
    judgements: _KeyedJudgements = []
    for submission in snapshot.submissions:
        for judgement in judgements_of(tasks[submission.task], submission) if submission.task in tasks else []:
            if judgement.ranks is None or judgement.criterion != OVERALL or judgement.source != "human":
                continue
            key, item = items_by_id[submission.task]
            order = tuple(item.shown[i] for i in judgement.shown_order)
            judgements.append(
                (key, item.id, judgement.model_copy(update={"item": item.comparison.id, "shown_order": order}))
            )
    return judgements


# For the page -------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class BlindResults:
    """Results of blind readings of the answers on the page."""

    rows: tuple[WinRow, ...] = ()
    """Win rates, people first; the judge is described in words."""
    readings: tuple[Reading, ...] = ()
    """Each reader's own result; models by their keys."""
    stale: tuple[str, ...] = ()
    """Names of readings with judgements about answers that were sampled again since."""


def blind_results(run: RunFolder) -> BlindResults:
    """Win rates by blind readers: of each reader, and of all readers of a kind who read the same two models."""
    readings: list[Reading] = []
    stale: list[str] = []
    verdicts_by_models: dict[tuple[ReaderKind, str, str], list[_Verdict]] = {}
    for key in load_keys(run):
        judgements = load_judgements(run, key)
        if not judgements:
            continue
        if not is_current(run, key):
            stale.append(key.name)
            continue
        prompts = {item.comparison.id: item.comparison.prompt.id for item in key.items}
        for (kind, reader), judged in _by_reader(judgements).items():
            verdicts = [_outcome(j, prompts[j.item]) for j in judged if j.criterion == "overall"]
            if verdicts:
                verdicts_by_models.setdefault((kind, *key.models), []).extend(verdicts)
                readings.append(_reading(key, reader, kind, verdicts, [j for j in judged if j.criterion != "overall"]))
    rows = []
    for (kind, first, last), verdicts in sorted(verdicts_by_models.items(), key=lambda entry: entry[0][0] != "human"):
        numbers = _numbers(verdicts)
        worst = tuple(dict.fromkeys(v.prompt for v in verdicts if v.won == 0.0))
        judge = _judge(kind, [v.reader for v in verdicts])
        rows.append(WinRow(model=last, against=first, judge=judge, **numbers, worst=worst[:MAX_NAMED]))
    return BlindResults(rows=tuple(rows), readings=tuple(readings), stale=tuple(stale))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Verdict:
    prompt: str
    reader: str
    won: float  # 1: the later model's answer was preferred; 0.5: tie


def _by_reader(judgements: Sequence[Judgement]) -> dict[tuple[ReaderKind, str], list[Judgement]]:
    """Each reader's judgements, the last one of each item and criterion."""
    latest = {_judgement_key(j): j for j in judgements}
    readers: dict[tuple[ReaderKind, str], list[Judgement]] = {}
    for judgement in latest.values():
        kind: ReaderKind = "ai" if judgement.source == "ai" else "human"
        readers.setdefault((kind, judgement.annotator), []).append(judgement)
    return readers


def _outcome(judgement: Judgement, prompt: str) -> _Verdict:
    assert judgement.ranks is not None
    first, last = (judgement.ranks[judgement.shown_order.index(i)] for i in (0, 1))
    won = 0.5 if first == last else float(last < first)
    return _Verdict(prompt=prompt, reader=judgement.annotator, won=won)


def _reading(
    key: BlindKey, reader: str, kind: ReaderKind, verdicts: Sequence[_Verdict], sensible: Sequence[Judgement]
) -> Reading:
    counts = {}
    for index, model in enumerate(key.models):
        scores = [j.scores[j.shown_order.index(index)] for j in sensible if j.scores is not None]
        if scores:
            counts[model] = (round(sum(scores)), len(scores))
    first, last = key.models
    return Reading(
        reader=reader, kind=kind, model=last, against=first, unread=len(key.items) - len(verdicts),
        sensible=counts, name=key.name, **_numbers(verdicts),
    )  # fmt: skip


def _numbers(verdicts: Sequence[_Verdict]) -> dict[str, Any]:
    """Win rate with its interval, clustered by prompt; a tie counts half. ``n`` counts prompts, the others verdicts."""
    outcomes = [v.won for v in verdicts]
    low, high = clustered_wilson_interval(outcomes, [v.prompt for v in verdicts])
    counts = {"wins": outcomes.count(1.0), "ties": outcomes.count(0.5), "losses": outcomes.count(0.0)}
    return {"rate": fmean(outcomes), "low": low, "high": high, "n": len({v.prompt for v in verdicts}), **counts}


def _judge(kind: ReaderKind, readers: Sequence[str]) -> str:
    """The readers in words, as the continuation of "judged by"."""
    names = list(dict.fromkeys(readers))
    singular, plural = ("a person", "people") if kind == "human" else ("a language model", "language models")
    return f"{names[0]}, {singular} reading blind" if len(names) == 1 else f"{len(names)} {plural} reading blind"


def say_readback(result: Readback, run: RunFolder, say: Callable[[str], Any]) -> None:
    """Report what was stored and what is missing, reading by reading.

    Raises:
        DataError: all judgements are about answers that were sampled again since; they are stored.
    """
    say(f"{result.stored} verdicts stored, {result.repeated} were there already, {result.empty} rows are empty")
    for key in result.keys.values():
        for (_, reader), reader_judgements in _by_reader(load_judgements(run, key)).items():
            judged = sum(j.criterion == "overall" for j in reader_judgements)
            say(f"  {key.name}, {reader}: {judged} of {len(key.items)} pairs judged")
    if not result.stale:
        return
    names = ", ".join(key.name for key in result.stale)
    text = (
        f"{names}: the answers were made again since this reading was written, so the page cannot show it; nothing was "
        f"deleted, the judgements are in {run.path / 'blind'}. Take the old settings back, or write a new reading with "
        "--blind"
    )
    if len(result.stale) == len(result.keys):
        raise DataError(text)
    say(text)
