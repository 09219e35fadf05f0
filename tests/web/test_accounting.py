"""Every judgement is in an export or counted with its reason, whatever the project holds."""

import csv
import io
import json
import random
from typing import Any

import pytest

from trimtab.records.annotation import Submission, Task
from trimtab.storage.project import ProjectConfig
from trimtab.storage.snapshot import Snapshot
from trimtab.storage.tasks import parse_tasks
from trimtab.web.exchange import FORMATS, render

CONFIG = ProjectConfig(criteria=[{"name": "helpful"}, {"name": "brief"}], min_cell=2)
ROWS = [
    {"id": "pair", "prompt": "q", "answers": ["a", "b"]},
    {"id": "other pair", "prompt": "q2", "answers": ["a", "=b"], "metadata": {"topic": "x"}},
    {"id": "three", "prompt": "q3", "answers": ["a", "b", "c"]},
    {"id": "gold", "prompt": "q4", "answers": ["a", "b"], "check": {"role": "gold", "ranks": [0, 1]}},
    {"id": "thumb", "prompt": "q5", "answers": ["a"], "kind": "thumbs"},
    {"id": "steps", "prompt": "q6", "steps": ["s", "t"], "kind": "steps"},
    {"id": "chat-1", "prompt": "q7", "answers": ["no", "b"], "metadata": {"blocked": [True, False]}},
]


def submission(rng: random.Random, task: Task, number: int) -> Submission:
    """A form that somebody may have sent about a task."""
    verdict = rng.choice(["judged"] * 4 + ["skip", "flag", "unsure"])
    count = len(task.completions) if task.kind == "compare" else 1
    values: dict[str, Any] = {"shown_order": tuple(rng.sample(range(count), count)), "verdict": verdict}
    if verdict == "judged" and task.kind == "compare":
        named = rng.choice([("helpful", "brief"), ("helpful",), ("brief",)])
        ranks = [[rng.randrange(2) for _ in range(count)] for _ in named]
        values["answers"] = [
            {"criterion": name, "ranks": [rank - min(given) for rank in given]}
            | (
                {"strength": rng.choice([0.3, 1.0])}
                if count == 2 and len(set(given)) == 2 and rng.random() < 0.5
                else {}
            )
            for name, given in zip(named, ranks, strict=True)
        ]
        if rng.random() < 0.3:
            values["rewrite"] = {"of": 0, "text": "better"}
    elif verdict == "judged":
        values |= {"good": rng.random() < 0.5} if task.kind == "thumbs" else {"first_wrong": rng.choice([None, 0, 1])}
    return Submission(
        id=f"s{number}",
        task=task.id,
        annotator=f"w{rng.randrange(4)}",
        source=rng.choice(["human", "simulated"]),
        cohort=rng.choice([None, "region=north", "language=de"]),
        comment=rng.choice(["", "=1+1", "two\nlines"]),
        adjudication=rng.random() < 0.2,
        **values,
    )


@pytest.mark.parametrize("format", FORMATS)
def test_used_and_dropped_are_all(format: str) -> None:
    tasks = tuple(task for task in parse_tasks(ROWS) if isinstance(task, Task))
    assert len(tasks) == len(ROWS)
    for seed in range(40):
        account(format, tasks, random.Random(seed), seed)


def account(format: str, tasks: tuple[Task, ...], rng: random.Random, count: int) -> None:
    submissions = tuple(submission(rng, rng.choice(tasks), number) for number in range(count))
    snapshot = Snapshot(
        config=CONFIG,
        tasks=tasks,
        submissions=submissions,
        guidelines=(),
        batches=(),
        retired=tuple(task.id for task in tasks if rng.random() < 0.15),
        excluded={"late": rng.randrange(3), "undone": rng.randrange(3), "changed": rng.randrange(3)},
    )
    files = render(snapshot, format)
    manifest = json.loads(files["manifest.json"])
    assert manifest["judgements"] == count + sum(snapshot.excluded.values())
    assert manifest["used"] + sum(manifest["dropped"].values()) == manifest["judgements"]
    assert all(number > 0 for number in manifest["dropped"].values())
    for name, facts in manifest["files"].items():
        if name.endswith(".jsonl"):
            assert facts["rows"] == len(files[name].splitlines())
    named = in_files(format, files)
    assert named is None or (len(named) == manifest["used"] and named <= {s.id for s in submissions})


def in_files(format: str, files: dict[str, bytes]) -> set[str] | None:
    """Ids of the judgements that an export names; None: it names none."""
    if format == "csv":
        return {row["submission"] for row in csv.DictReader(io.StringIO(files["judgements.csv"].decode()))}
    name = {"trl": "preferences", "ranking": "rankings", "unpaired": "ratings", "steps": "steps"}.get(format)
    name = {"judgements": "judgements", "trimtab": "submissions"}.get(format, name)
    if name is None:
        return None
    rows = [json.loads(line) for line in files[f"{name}.jsonl"].decode().split("\n") if line]
    ids = [
        one
        for row in rows
        for one in (row["judgements"] if "judgements" in row else [row.get("submission", row.get("id"))])
    ]
    return {one.partition("/")[0].partition("#")[0] for one in ids}
