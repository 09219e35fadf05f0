"""Every judgement is in an export or counted with a reason; strength, disputes, items from files, backups."""

import csv
import gzip
import io
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trimtab.cli.app import run_app
from trimtab.errors import ConfigError, DataError
from trimtab.records import Preference, load
from trimtab.records.annotation import Answer, Submission, Task, disagree, distance
from trimtab.storage.project import ProjectConfig
from trimtab.storage.snapshot import Snapshot, take_snapshot
from trimtab.storage.tasks import parse_task
from trimtab.web.exchange import FORMATS, render
from trimtab.web.items_file import read_items, tasks_in

from .kit import World, judge

TASKS = tuple(
    map(
        parse_task,
        (
            {"prompt": "pair", "answers": [{"text": "a", "model": "m1"}, "b"], "metadata": {"topic": "x"}},
            {"prompt": "three", "answers": ["a", "b", "c"]},
            {
                "prompt": "thumb",
                "answers": [{"text": "a", "model": "m1"}],
                "kind": "thumbs",
                "metadata": {"topic": "y"},
            },
            {"prompt": "steps", "steps": ["s1", "s2"], "kind": "steps"},
            {"prompt": "gold", "answers": ["a", "b"], "check": {"role": "gold", "ranks": [0, 1]}},
        ),
    )
)


@st.composite
def submissions(draw, number: int, task: Task, criteria: tuple[str, ...], adjudication: bool) -> Submission:
    order = tuple(draw(st.permutations(range(len(task.completions)))))
    verdict = "judged" if adjudication else draw(st.sampled_from(["judged", "judged", "skip", "unsure", "flag"]))
    fields: dict = {}
    if verdict == "judged" and task.kind == "compare":
        values = [draw(st.lists(st.integers(0, 2), min_size=len(order), max_size=len(order))) for _ in criteria]
        ranks = [tuple(sorted(set(v)).index(x) for x in v) for v in values]
        strength = draw(st.sampled_from([None, 1 / 3, 1.0])) if len(order) == 2 else None
        fields["answers"] = tuple(
            Answer(criterion=c, ranks=r, strength=strength if len(set(r)) > 1 else None)
            for c, r in zip(criteria, ranks, strict=True)
        )
    elif verdict == "judged":
        fields |= {"good": draw(st.booleans())} if task.kind == "thumbs" else {"first_wrong": 1}
    if verdict == "judged" and draw(st.booleans()):
        fields["rewrite"] = {"of": 0, "text": "better"}
    return Submission(
        id=f"s{number}", task=task.id, annotator=f"p{number}", shown_order=order, verdict=verdict,
        adjudication=adjudication, **fields,
    )  # fmt: skip


@st.composite
def snapshots(draw) -> Snapshot:
    some_criteria = draw(st.sampled_from([("overall",), ("helpful",), ("helpful", "honest")]))
    now = draw(st.sampled_from([some_criteria, ("new",)]))  # the owner may change the criteria afterwards
    everybody = [
        draw(submissions(number, draw(st.sampled_from(TASKS)), some_criteria, draw(st.integers(0, 5)) == 0))
        for number in range(draw(st.integers(0, 10)))
    ]
    return Snapshot(
        config=ProjectConfig.model_validate({"criteria": [{"name": name} for name in now]}),
        tasks=TASKS, submissions=tuple(everybody), guidelines=(), batches=(),
        retired=tuple(t.id for t in TASKS if draw(st.integers(0, 6)) == 0),
        excluded={"late": draw(st.integers(0, 2)), "undone": 1, "changed": 0},
    )  # fmt: skip


def ids_in(format: str, files: dict[str, bytes]) -> set[str]:
    """Ids of the judgements behind an export's rows."""
    if format == "csv":
        return {row["submission"] for row in csv.DictReader(io.StringIO(files["judgements.csv"].decode()))}
    name = {
        "trimtab": "submissions", "judgements": "judgements", "trl": "preferences", "ranking": "rankings",
        "unpaired": "ratings", "steps": "steps", "rewrites": "demonstrations",
    }[format]  # fmt: skip
    ids: set[str] = set()
    for row in map(json.loads, files[f"{name}.jsonl"].decode().splitlines()):
        one = row.get("submission") or row.get("metadata", {}).get("submission") or row["id"] if "id" in row else ""
        ids |= set(row.get("judgements", [])) or {row.get("submission") or one}
    return {name.partition("/")[0] for name in ids}


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(snapshots())
@pytest.mark.parametrize("format", FORMATS)
def test_used_and_dropped_make_up_all_judgements(format: str, snapshot: Snapshot):
    files = render(snapshot, format)
    manifest = json.loads(files["manifest.json"])
    assert manifest["judgements"] == len(snapshot.submissions) + sum(snapshot.excluded.values())
    assert manifest["used"] + sum(manifest["dropped"].values()) == manifest["judgements"]
    assert manifest["used"] == len(ids_in(format, files))


def test_judgements_that_were_changed_late_or_taken_back_are_counted(here: World):
    here.configure(overlap=1, gold_every=0)
    here.pairs(3)
    me = here.join("me").id
    receipt, item = here.store.submit(me, judge(here.store.next(me), "1"))
    receipt, item = here.store.submit(
        me, judge(here.store.reopen(me, receipt.version), "2", best=1, version=receipt.version)
    )
    receipt, _ = here.store.submit(me, judge(item, "3"))
    here.store.undo(me, receipt.version)
    snapshot = take_snapshot(here.store)
    assert snapshot.excluded == {"late": 0, "undone": 1, "changed": 1} and len(snapshot.submissions) == 1
    manifest = json.loads(render(snapshot, "trl")["manifest.json"])
    assert (manifest["judgements"], manifest["used"]) == (3, 1)


def pair_snapshot(*values: tuple[tuple[int, int], float | None], adjudication: bool = False) -> Snapshot:
    """Judgements of the first task in canonical order: ranks and strength."""
    everybody = tuple(
        Submission(
            id=f"s{n}", task=TASKS[0].id, annotator=f"p{n}", shown_order=(0, 1), verdict="judged",
            answers=(Answer(ranks=ranks, strength=strength),), adjudication=adjudication and n == len(values) - 1,
        )
        for n, (ranks, strength) in enumerate(values)
    )  # fmt: skip
    return Snapshot(
        config=ProjectConfig(), tasks=TASKS, submissions=everybody, guidelines=(), batches=(), retired=(), excluded={}
    )


def test_rows_have_margin_models_and_metadata(tmp_path: Path):
    snapshot = pair_snapshot(((0, 1), 1.0), ((0, 1), 0.5), ((1, 0), 0.25))
    files = render(snapshot, "trl")
    row = json.loads(files["preferences.jsonl"])
    assert row["margin"] == pytest.approx((1 + 0.5 - 0.25) / 3, abs=1e-6)
    assert (row["chosen_model"], row["rejected_model"], row["adjudicated"]) == ("m1", None, False)
    assert row["metadata"] == {"topic": "x"}
    (tmp_path / "p.jsonl").write_bytes(files["preferences.jsonl"])
    [record] = load(tmp_path / "p.jsonl", kind=Preference).records
    assert record.margin == row["margin"]
    ranking = json.loads(render(snapshot, "ranking")["rankings.jsonl"])
    assert ranking["margin"] == row["margin"] and ranking["metadata"] == {"topic": "x"}
    settled = render(pair_snapshot(((0, 1), 1.0), ((1, 0), 0.5), adjudication=True), "trl")
    row = json.loads(settled["preferences.jsonl"])
    assert row["adjudicated"] and row["margin"] == 0.5 and row["judgements"] == ["s1"]
    assert json.loads(settled["manifest.json"])["dropped"] == {"settled by an adjudicator": 1}
    [line] = csv.DictReader(io.StringIO(render(pair_snapshot(((0, 1), 1.0)), "csv")["judgements.csv"].decode()))
    assert (line["models"], line["metadata"], line["strength"]) == ('["m1", ""]', '{"topic": "x"}', "1.0")


@pytest.mark.parametrize(
    ("values", "apart"),
    [
        ([((0, 1), 1.0), ((1, 0), 1.0)], 1.0),
        ([((0, 1), 0.25), ((1, 0), 0.25)], 0.25),
        ([((0, 1), None), ((1, 0), None)], 1.0),
        ([((0, 1), 1.0), ((0, 0), None)], 0.5),
        ([((0, 1), 0.5), ((0, 1), 0.5)], 0.0),
    ],
)
def test_how_far_people_are_apart(values, apart):
    assert distance(TASKS[0], pair_snapshot(*values).submissions) == pytest.approx(apart)


@pytest.mark.parametrize(
    ("for_first", "for_second", "ties", "majority", "disputed"),
    [(2, 1, 0, 1.0, True), (2, 1, 0, 0.66, False), (2, 1, 0, 0.67, True), (1, 1, 5, 0.6, True), (3, 0, 1, 1.0, False)],
)
def test_a_majority_settles_an_item(for_first, for_second, ties, majority, disputed):
    values = [((0, 1), None)] * for_first + [((1, 0), None)] * for_second + [((0, 0), None)] * ties
    assert disagree(TASKS[0], pair_snapshot(*values).submissions, majority=majority) == disputed


def test_disputes_come_worst_first_and_follow_the_majority(here: World):
    here.configure(overlap=3, gold_every=0)
    uids = here.pairs(3)
    strengths = dict(zip(uids, (1 / 3, 1.0, 2 / 3), strict=True))
    for name, best in (("a", 0), ("b", 1), ("c", 0)):
        me = here.join(name).id
        item, turn = here.store.next(me), 0
        while not isinstance(item, str):
            turn += 1
            form = judge(item, f"{name}-{turn}", best=best).model_dump()
            form["answers"][0]["strength"] = strengths[item.task.id]
            _, item = here.store.submit(me, judge(item, f"{name}-{turn}").model_validate(form))
    assert [task.id for task, _ in here.store.disputed()] == [uids[1], uids[2], uids[0]]
    here.configure(overlap=3, gold_every=0, majority=0.6)
    assert here.store.disputed() == []
    here.configure(overlap=3, gold_every=0, majority=0.9)
    assert len(here.store.disputed()) == 3


ROWS = [
    {"prompt": "q", "answers": ["a", "b"], "batch": "second"},
    {"prompt": "q2", "steps": ["a", "b"], "kind": "steps"},
]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("items.jsonl", LINES.encode()),
        ("ITEMS.JSONL", LINES.encode()),
        ("items.jsonl.gz", gzip.compress(LINES.encode(), mtime=0)),
        ("items.json", json.dumps(ROWS, indent=2).encode()),
        ("items.json", json.dumps({"items": ROWS}).encode()),
        ("items.json.gz", gzip.compress(json.dumps(ROWS).encode(), mtime=0)),
        ("bom.jsonl", b"\xef\xbb\xbf" + LINES.encode()),
    ],
)
def test_our_items_are_read_from_every_kind_of_file(tmp_path: Path, name: str, data: bytes):
    (tmp_path / name).write_bytes(data)
    first, second = read_items(str(tmp_path / name))
    assert isinstance(first, Task) and first.batch == "second"
    assert isinstance(second, Task) and second.kind == "steps"
    if b"items" not in data[:10]:
        assert tasks_in(data) == [first, second]


def test_a_packed_upload_has_a_limit(monkeypatch):
    monkeypatch.setattr("trimtab.web.items_file.MOST_BYTES", 10)
    with pytest.raises(DataError, match="send it in parts"):
        tasks_in(gzip.compress(LINES.encode(), mtime=0))


def test_a_backup_asks_before_it_overwrites(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("items.jsonl").write_text(LINES)
    assert run_app(["annotate", "p", "--items", "items.jsonl", "--no-serve"]) == 0
    Path("copy.db").write_text("precious")
    assert run_app(["data", "backup", "p", "copy.db"]) != 0
    assert "exists" in capsys.readouterr().err and Path("copy.db").read_text() == "precious"
    assert run_app(["data", "backup", "p", "copy.db", "--force"]) == 0
    assert Path("copy.db").read_bytes().startswith(b"SQLite")
    assert run_app(["data", "backup", "p", "p/labels.db", "--force"]) != 0
    assert run_app(["data", "backup", "p", "p"]) != 0


def test_agreement_says_what_it_leaves_out_and_refuses_unknown_criteria(here: World, tmp_path: Path, capsys):
    from trimtab.feedback import agreement_report, left_out
    from trimtab.records import Comparison, Judgement

    common = {"annotator": "a", "source": "human", "shown_order": (0, 1), "ranks": (0, 1)}
    strangers = [Judgement(id=f"j{i}", item=f"gone{i}", **common) for i in range(7)]
    assert left_out([], strangers) == {"unknown item id": 7}
    report = agreement_report([], strangers)
    assert "7 of 7 judgements left out: unknown item id (7)" in report["raw_agreement"].reason
    item = Comparison.of(TASKS[0].prompt, ["a", "b"])
    with pytest.raises(ConfigError, match=r"'nope'.*overall"):
        agreement_report([item], [Judgement(id="j", item=item.id, **common)], criterion="nope")
    here.pairs(1)
    project = str(here.database_folder())
    assert run_app(["agreement", project, "--criterion", "nope"]) != 0
    assert "overall" in capsys.readouterr().err
