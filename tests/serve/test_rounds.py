"""The whole loop at toy size: constitution, guard, service, votes of simulated users over HTTP, and two more rounds."""

import itertools
import json
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.pipeline.small_rounds import Remembering, go, small_recipe
from trimtab.constitution import load_constitution
from trimtab.feedback.gold import friendly_utility
from trimtab.guard import GuardConfig
from trimtab.pipeline.guarding import train_and_report
from trimtab.pipeline.lineage import trace
from trimtab.pipeline.rounds import next_round
from trimtab.pipeline.withdraw import withdraw
from trimtab.records import Completion, Judgement, Prompt, read_records
from trimtab.serve.app import Service, Settings, create_app
from trimtab.serve.chat import ChatPage, add_chat, belongs_to_page, round_of
from trimtab.serve.constitution_guard import load_constitution_guard
from trimtab.serve.server import load_models
from trimtab.storage import RunFolder
from trimtab.storage.chat import ChatVotes
from trimtab.storage.database import Database
from trimtab.storage.labels import LabelStore

from .kit import KEY, Live

RESTRICTED = "Please tell me the home address of my former colleague."
KEYS = itertools.count()
MONTHS = ("May", "June", "July", "August", "March", "April", "October", "winter", "summer", "autumn")
ANIMALS = ("bird", "cat", "dog", "fish", "horse", "mouse", "fox", "owl", "hen", "cow", "bee", "bear")


@contextmanager
def service(run: RunFolder, models: list[str], guard: Path, project: Path) -> Iterator[Live]:
    """The run's models behind the guard, with the chat page."""
    served = load_models(str(run.path), models, runs=run.path.parent)
    checks = load_constitution_guard(guard, [m.backbone for m in served.values()])
    made = Service(models=served, settings=Settings(slots=4, queue=16, default_tokens=8), guard=checks)
    store = LabelStore(Database(f"sqlite:///{project / 'labels.db'}"))
    votes = ChatVotes(store, round_name=round_of(made), source="simulated")
    page = ChatPage(service=made, votes=votes, key="page-key-0123456789")
    app = create_app(made, key=KEY, free=belongs_to_page)
    add_chat(app, page, hosts={"127.0.0.1"})
    live = Live(made, app)
    live.page, live.users = page, []  # pyright: ignore
    try:
        yield live
    finally:
        for client in live.users:  # pyright: ignore[reportAttributeAccessIssue]
            client.close()
        live.stop()
        store.database.close()


class User:
    """A simulated user, who prefers the answer with the higher utility."""

    def __init__(self, live: Live) -> None:
        self.client = httpx.Client(base_url=live.url, timeout=120, follow_redirects=True)
        live.users.append(self.client)  # pyright: ignore[reportAttributeAccessIssue]
        self.client.get("/chat/enter/page-key-0123456789").raise_for_status()
        agreed = self.client.post("/chat/consent", json={"version": live.page.version})  # pyright: ignore
        self.code = agreed.json()["code"]

    def ask(self, text: str, *, compare: bool = True) -> dict:
        question = {"messages": [{"role": "user", "content": text}], "compare": compare}
        answer = self.client.post("/chat/answer", json=question)
        answer.raise_for_status()
        return json.loads([part for part in answer.text.split("\n\n") if part][-1].removeprefix("data: "))

    def vote(self, token: str, **ballot: object) -> None:
        key = f"key-{next(KEYS):08}"
        stored = self.client.post("/chat/vote", json={"token": token, "key": key, **ballot})
        assert stored.status_code == 200, stored.text

    def compare(self, questions: Iterator[str]) -> None:
        """Vote on the first question that the guard lets pass."""
        text = next(questions)
        while (end := self.ask(text))["answers"][0]["blocked"]:
            text = next(questions)
        prompt = Prompt.from_text(text)
        left, right = (friendly_utility(prompt, Completion(text=a["text"])) for a in end["answers"])
        self.vote(end["token"], choice="left" if left > right else "right" if right > left else "tie")

    def withdraw(self) -> dict:
        return self.client.post("/chat/withdraw", json={"code": self.code}).json()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_constitution_guard_service_votes_two_rounds_and_the_lineage_of_a_vote(tmp_path: Path):
    guard, project = tmp_path / "guard", tmp_path / "votes"
    train_and_report(load_constitution("default"), GuardConfig(budget=0.02), guard, probes=False)
    recipe = small_recipe(tmp_path / "run")
    run, _ = go(recipe, "model.context=128")
    questions = iter([f"What does a {word} eat in {month}?" for month in MONTHS for word in ANIMALS])

    with service(run, ["policy", "base"], guard, project) as live:
        users = [User(live) for _ in range(3)]
        for user in users:
            for _ in range(8):
                user.compare(questions)
        blocked = users[0].ask(RESTRICTED, compare=False)
        assert blocked["answers"][0]["blocked"]
        users[0].vote(blocked["token"], good=False, reason="unjustified_refusal")
        users[1].vote(users[1].ask(next(questions), compare=False)["token"], good=True)
        early = User(live)
        early.compare(questions)
        assert early.withdraw()["runs"] == [], "no run has been trained on it"

    ui = Remembering()
    second = next_round(run.path, project, ui=ui)
    votes = read_records(second.stage("label") / "judgements.jsonl", Judgement)
    assert len(votes) == 24 and {j.source for j in votes} == {"simulated"}
    assert set(Counter(j.annotator for j in votes).values()) == {8}
    told = json.loads((second.stage("label") / "votes.json").read_text())
    assert told["dropped"] == {"on one answer, not a comparison": 1, "called a wrong refusal, for a person": 1}
    [refusal] = (second.stage("label") / "refusals.jsonl").read_text().splitlines()
    assert json.loads(refusal)["text"] == RESTRICTED
    [pair] = told["pairs"]
    assert pair["n"] == 24 == pair["wins"] + pair["ties"] + pair["losses"] and 0 <= pair["low"] <= pair["high"] <= 1
    assert pair["rate"] == pytest.approx((pair["wins"] + pair["ties"] / 2) / 24)
    assert any(line.strip().startswith("blind votes prefer toy-") for line in ui.lines)

    with service(run, ["policy", "round-1"], guard, project) as live:
        people = [User(live) for _ in range(2)]
        for user in people:
            for _ in range(10):
                user.compare(questions)
        with sqlite3.connect(project / "labels.db") as database:
            [(newest,)] = database.execute("select body from items order by id desc limit 1").fetchall()
        assert "toy-policy" in newest and "toy-round-1" in newest
    third = next_round(run.path, project, ui=ui)
    assert third.number == 3 and run.newest().number == 3
    told = json.loads((third.stage("label") / "votes.json").read_text())
    assert told["dropped"]["used in an earlier round"] == 24 and told["pairs"][0]["n"] == 20
    report = json.loads((run.path / "report.json").read_text())
    assert [row["round"] for row in report["rounds"]] == [1, 2, 3]
    assert [row["label_source"] for row in report["rounds"]] == ["simulated"] * 3

    used = next(j for j in votes if trace(run, j.id).get("reward_models"))
    result = trace(run, used.id)
    assert result["judgements"][0]["round"] == 2 and [p["round"] for p in result["policies"]] == [2, 3]
    assert {f["round"] for f in result["figures"] if f["figure"] == "win_rate"} == {2, 3}

    with service(run, ["policy"], guard, project) as live:
        again = User(live)
        again.client.cookies.clear()
        answer = httpx.post(
            f"{live.url}/chat/withdraw", json={"code": users[0].code}, cookies=dict(people[0].client.cookies)
        )
    done = answer.json()
    assert done["votes"] == 9 and [text.split(" ", 2)[2] for text in done["runs"]] == ["toy, round 2"]
    person = next(j.annotator for j in votes)
    made, changes = withdraw(run.path, [person], tmp_path / "run" / "runs" / "toy-without", ui=ui)
    assert [c.copied for c in changes] == [True, True, True] and changes[1].judgements == 8
    left = read_records(made.round(2).stage("label") / "judgements.jsonl", Judgement)
    assert len(left) == 16 and person not in {j.annotator for j in left}
    assert person not in (made.round(2).stage("label") / "comparisons.jsonl").read_text()
