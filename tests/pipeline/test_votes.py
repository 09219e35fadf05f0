"""Votes as labels: what is left out and counted, and how often a served model was preferred."""

import json
from pathlib import Path

import pytest

from trimtab.errors import ConfigError, DataError
from trimtab.guard.dataset import read_examples
from trimtab.pipeline.config import VotesConfig, load_recipe
from trimtab.pipeline.context import Context
from trimtab.pipeline.lineage import trace
from trimtab.pipeline.rounds import next_round
from trimtab.pipeline.ui import Silent
from trimtab.pipeline.vote_files import REFUSALS, WrongRefusal, measure
from trimtab.pipeline.votes import of_snapshot, run_votes
from trimtab.pipeline.withdraw import withdraw
from trimtab.records import Comparison, Completion, Judgement, Prompt, Rating, read_records, write_records
from trimtab.storage import RunFolder
from trimtab.storage.chat import Ballot, ChatVotes, Shown
from trimtab.storage.database import Database
from trimtab.storage.labels import LabelStore
from trimtab.storage.snapshot import take_snapshot
from trimtab.web.exchange import export_folder

from .console import Remembering
from .small_rounds import ADAPTER, go, small_recipe


class Page:
    """A chat page without a server: two models, whose answers are what the test says. Visitors are simulated."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.store = LabelStore(Database(f"sqlite:///{folder / 'labels.db'}"))
        self.votes = ChatVotes(self.store, round_name="chat-1", source="simulated")
        self.count = 0

    def visitor(self) -> tuple[int, str]:
        secret = self.votes.consent("v1")
        person = self.votes.visitor(secret, "v1")
        assert person is not None
        return person, secret

    def vote(self, person: int, answers: list[str], *, blocked: bool = False, **ballot) -> None:
        self.count += 1
        models = [Completion(text=text, model=name) for text, name in zip(answers, ("new", "old"), strict=False)]
        details = {"checkpoints": ["a" * 16, "b" * 16][: len(answers)], "blocked": [blocked] * len(answers)}
        details |= {"guard": "g1" if blocked else None}
        shown = Shown(
            prompt=Prompt.from_text(f"question {self.count}"),
            completions=tuple(models),
            order=(1, 0)[: len(answers)] if len(answers) > 1 else (0,),
            details=details,
        )
        token = self.votes.expose(person, "v1", shown)
        assert token is not None
        assert self.votes.vote(person, "v1", Ballot(token=token, key=f"key-{self.count:08}", **ballot))


@pytest.fixture
def page(tmp_path: Path):
    made = Page(tmp_path / "votes")
    yield made
    made.store.database.close()


def context_of(tmp_path: Path, project: Path, *, per_person: int = 200) -> Context:
    votes = {"project": str(project), "per_person": per_person}
    recipe = small_recipe(tmp_path / "recipe", sample=None, label={"source": "votes", "votes": votes})
    run = RunFolder(tmp_path / "runs" / "toy")
    run.begin("label", "f")
    return Context(config=load_recipe(recipe), recipe=recipe, run=run, ui=Silent())


def test_what_is_left_out_is_counted(page: Page, tmp_path: Path):
    first, _ = page.visitor()
    second, secret = page.visitor()
    for choice in ("left", "right", "tie"):
        page.vote(first, ["a", "b"], choice=choice)
    page.vote(first, ["one answer"], good=True)
    page.vote(first, ["I cannot say."], good=False, reason="unjustified_refusal")
    page.vote(first, ["Blocked."], blocked=True, good=False, reason="unjustified_refusal")
    page.vote(second, ["c", "d"], choice="both_bad")
    page.votes.withdraw(secret)
    collected = of_snapshot(take_snapshot(page.store))
    assert collected.dropped == {"on one answer, not a comparison": 1, "called a wrong refusal, for a person": 2}
    # The screen showed the old model's answer first: left is a vote for old, right for new.
    order = (1, 0)
    assert [(j.shown_order, j.ranks) for j in collected.judgements] == [(order, r) for r in ((0, 1), (1, 0), (0, 0))]
    assert {j.source for j in collected.judgements} == {"simulated"}
    assert [(r.text, r.guard) for r in collected.refusals] == [("question 5", None), ("question 6", "g1")]


def test_votes_train_once_and_withdrawal_names_the_run(page: Page, tmp_path: Path):
    person, secret = page.visitor()
    stranger, other = page.visitor()
    page.vote(person, ["a", "b"], choice="left")
    page.vote(person, ["x"], good=False, reason="unjustified_refusal")
    page.vote(stranger, ["y"], good=True)
    context = context_of(tmp_path, page.folder)
    counts, files = run_votes(context)
    assert counts["judgements"] == 1 and counts["people"] == 1 and counts["source"] == "simulated"
    label = context.folder("label")
    assert all((label / name).is_file() for name in files)
    [refusal] = read_records(label / REFUSALS, WrongRefusal)
    assert refusal.text == "question 2"
    row = json.loads((label / REFUSALS).read_text())
    file = tmp_path / "reviewed.jsonl"
    file.write_text(json.dumps(row))
    with pytest.raises(DataError, match='"restricted": true'):
        read_examples(file)  # nobody has decided yet
    file.write_text(json.dumps(row | {"restricted": False}))
    [benign] = read_examples(file)
    assert benign.text == "question 2" and not benign.restricted and benign.kind == "request"
    context.run = context.run.round(2)
    context.run.begin("label", "f")
    with pytest.raises(DataError, match=r"no comparison in it can be learned from: .*1 used in an earlier round"):
        run_votes(context)
    page.vote(person, ["c", "d"], choice="right")
    counts, _ = run_votes(context)
    assert counts["judgements"] == 1 and counts["votes dropped: used in an earlier round"] == 1
    assert counts["refusals"] == 0, "the refusal is in round 1's file"
    assert [text.split(" ", 2)[2] for text in page.votes.withdraw(secret).runs] == ["toy, round 1", "toy, round 2"]
    assert page.votes.withdraw(other).runs == ()


def test_thumbs_train_a_round_of_kto(page: Page, tmp_path: Path):
    kto = {"method": "kto", "adapter": ADAPTER, "epochs": 1, "batch": 8}
    recipe = small_recipe(tmp_path / "recipe", sft=None, evaluate=None, reward=None, align=kto)
    run, _ = go(recipe)
    person, secret = page.visitor()
    other, _ = page.visitor()
    for number in range(8):
        page.vote(person, [f"answer {number}"], good=True)
        page.vote(other, [f"wrong {number}"], good=False, reason="untrue" if number else "")
    page.vote(person, ["I cannot say."], good=False, reason="unjustified_refusal")
    ui = Remembering()
    made = next_round(run.path, page.folder, ui=ui)
    label, align = (made.status(stage) for stage in ("label", "align"))
    assert label is not None and align is not None and label.counts is not None and align.counts is not None
    down = {"thumbs up": 8, "thumbs down: no reason": 1, "thumbs down: untrue": 7}
    assert down.items() <= label.counts.items() and label.counts["judgements"] == 0 and label.counts["people"] == 2
    assert label.counts["votes dropped: called a wrong refusal, for a person"] == 1
    assert align.counts["thumbs"] + align.counts["thumbs_held_out"] == 16 and align.counts["thumbs"] > 10
    thumbs = read_records(made.stage("label") / "thumbs.jsonl", Rating)
    traced = [trace(run, t.id) for t in thumbs]
    assert sum(bool(t.policies) for t in traced) == align.counts["thumbs"]
    with pytest.raises(DataError, match="16 used in an earlier round"):
        next_round(run.path, page.folder)
    assert page.votes.withdraw(secret).runs[0].endswith("toy, round 2")
    gone = thumbs[0].annotator
    assert gone is not None
    new, _ = withdraw(run.path, [gone], tmp_path / "recipe" / "runs" / "without", ui=ui)
    assert gone not in (new.round(2).stage("label") / "thumbs.jsonl").read_text()


def test_an_export_gives_the_same_votes_and_repeated_ones_count_once(page: Page, tmp_path: Path):
    person, _ = page.visitor()
    for choice in ("left", "right"):
        page.vote(person, ["a", "b"], choice=choice)
    export_folder(page.store, "judgements", tmp_path / "out")
    file = tmp_path / "out" / "judgements.jsonl"
    votes = read_records(file, Judgement)
    write_records(file, [*votes, votes[0], votes[1].model_copy(update={"id": "odd", "item": "elsewhere"})])
    context = context_of(tmp_path, tmp_path / "out")
    counts, _ = run_votes(context)
    assert read_records(context.folder("label") / "judgements.jsonl", Judgement) == votes
    assert counts["votes dropped: repeated in the file"] == 1
    assert counts["votes dropped: on an answer that is not in comparisons.jsonl"] == 1
    write_records(file, [vote.model_copy(update={"id": f"{vote.id}-changed", "ranks": (0, 1)}) for vote in votes])
    context.run = context.run.round(2)
    context.run.begin("label", "f")
    with pytest.raises(DataError, match=f"{len(votes)} used in an earlier round"):
        run_votes(context)
    write_records(file, [*votes, votes[0].model_copy(update={"ranks": (1, 0)})])
    with pytest.raises(DataError, match=rf"two different records have the id {votes[0].id!r}"):
        run_votes(context)


def test_a_persons_cap_is_that_of_a_round_and_who_withdrew_is_left_out(page: Page, tmp_path: Path):
    person, _ = page.visitor()
    gone, _ = page.visitor()
    for _ in range(3):
        page.vote(person, ["a", "b"], choice="left")
    context = context_of(tmp_path, page.folder, per_person=2)
    counts, _ = run_votes(context)
    assert (counts["judgements"], counts["votes dropped: beyond 2 votes of one person"]) == (2, 1)
    page.vote(gone, ["c", "d"], choice="left")
    page.vote(gone, ["x"], good=False, reason="unjustified_refusal")
    name = [s.annotator for s in take_snapshot(page.store).submissions][-1]
    assert context.config.label is not None
    label = context.config.label.model_copy(update={"without": (name,)})
    context.config = context.config.model_copy(update={"label": label})
    context.run = context.run.round(2)
    context.run.begin("label", "f")
    counts, _ = run_votes(context)
    assert counts["judgements"] == 1, "the third vote, which round 1 had no room for"
    assert counts["votes dropped: used in an earlier round"] == 2 and counts["refusals"] == 0
    assert counts["votes dropped: of annotators in label.without"] == 1
    assert "question 4" not in (context.folder("label") / "comparisons.jsonl").read_text()


def test_a_project_that_is_none(tmp_path: Path):
    with pytest.raises(DataError, match=r"holds neither labels\.db nor judgements\.jsonl"):
        run_votes(context_of(tmp_path, tmp_path / "nothing"))
    half = tmp_path / "half"
    half.mkdir()
    (half / "judgements.jsonl").write_text("")
    with pytest.raises(DataError, match=r"half: holds judgements\.jsonl without comparisons\.jsonl.*export"):
        run_votes(context_of(tmp_path, half))


def test_win_rates_are_of_checkpoints_and_count_ties_half():
    def item(uid: str, checkpoint: str) -> Comparison:
        answers = (Completion(text="a", model="new"), Completion(text="b", model="old"))
        prompt = Prompt.from_text(uid)
        return Comparison(
            id=uid, prompt=prompt, completions=answers, metadata={"checkpoints": [checkpoint, "cccccccc0"]}
        )

    items = [item(f"i{n}", "aaaaaaaa1" if n < 8 else "bbbbbbbb2") for n in range(9)]
    ranks = [(0, 1)] * 5 + [(0, 0)] * 2 + [(1, 0)] + [(0, 1)]
    votes = [
        Judgement(id=str(n), item=i.id, annotator="v", source="human", shown_order=(0, 1), ranks=r)
        for n, (i, r) in enumerate(zip(items, ranks, strict=True))
    ]
    rows = {(r.model, r.rival): r for r in measure(items, votes)}
    row = rows["new (aaaaaaaa)", "old (cccccccc)"]
    assert (row.wins, row.ties, row.losses, row.n, row.rate) == (5, 2, 1, 8, 0.75)
    assert row.low < 0.75 < row.high and row.equal_length is None, "fewer than 20 votes"
    assert rows["new (bbbbbbbb)", "old (cccccccc)"].n == 1


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"label": {"source": "votes"}}, r"needs label\.votes\.project"),
        ({"label": {"source": "votes", "votes": {"project": "p"}}}, "about answers that people saw; remove sample"),
        (
            {"sample": None, "label": {"source": "votes", "votes": {"project": "p"}}, "rounds": 2},
            "with `trimtab round`",
        ),
        ({"label": {"source": "simulated", "votes": {"project": "p"}}}, "label.votes is for label.source 'votes'"),
    ],
)
def test_settings_that_contradict_each_other(tmp_path: Path, sections: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        load_recipe(small_recipe(tmp_path, **sections))


def test_the_default_cap_is_that_of_the_chat_page():
    assert VotesConfig(project="p").per_person == 200
