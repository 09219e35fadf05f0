"""The chat page: consent, votes, comparisons, withdrawal, and the page in a real browser."""

import io
import json
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import httpx
import pytest
from sqlalchemy import text

from trimtab.errors import ConflictError, DataError
from trimtab.feedback import aggregate
from trimtab.pipeline.tune_learning import Learned
from trimtab.records import Completion, Prompt
from trimtab.records.types import strict_pairs
from trimtab.serve.app import Service, Settings, create_app
from trimtab.serve.chat import HERE, ChatPage, add_chat, belongs_to_page, round_of
from trimtab.serve.tune import Phase
from trimtab.storage.chat import ERASED, REASONS, Ballot, ChatVotes, Choice, Shown
from trimtab.storage.database import Database
from trimtab.storage.labels import LabelStore
from trimtab.storage.snapshot import take_snapshot
from trimtab.web.exchange import comparisons_and_judgements, export_folder, export_zip
from trimtab.web.strings import catalogues

from .kit import KEY, MODEL, Live, WordGuard, served

PAGE_KEY = "page-key-0123456789"


class ChatServer(Live):
    """A server with the page, two models and a guard."""

    def __init__(self, folder: Path) -> None:
        self.store = LabelStore(Database(f"sqlite:///{folder}/labels.db"))
        models = {MODEL: served(), "toy-sft": served("toy-sft", seed=1)}
        service = Service(models=models, settings=Settings(slots=4, queue=8, default_tokens=12), guard=WordGuard())
        votes = ChatVotes(self.store, round_name=round_of(service), cap=5)
        self.page = ChatPage(service=service, votes=votes, key=PAGE_KEY, licence="CC BY 4.0")
        app = create_app(service, key=KEY, free=belongs_to_page)
        add_chat(app, self.page, hosts={"127.0.0.1"})
        super().__init__(service, app)

    @contextmanager
    def visitor(self, *, agreed: bool = True) -> Iterator[httpx.Client]:
        with httpx.Client(base_url=self.url, timeout=60, follow_redirects=True) as client:
            assert client.get(f"/chat/enter/{PAGE_KEY}").status_code == 200
            if agreed:
                assert client.post("/chat/consent", json={"version": self.page.version}).status_code == 200
            yield client


@pytest.fixture
def chat(tmp_path: Path) -> Iterator[ChatServer]:
    made = ChatServer(tmp_path)
    yield made
    made.stop()
    made.store.database.close()


def ask(client: httpx.Client, said: str, *, compare: bool = False) -> dict[str, Any]:
    """The last event, its texts checked against those of the others."""
    question = {"messages": [{"role": "user", "content": said}], "compare": compare}
    answer = client.post("/chat/answer", json=question)
    assert answer.status_code == 200, answer.text
    *pieces, end = [json.loads(part.removeprefix("data: ")) for part in answer.text.split("\n\n") if part]
    shown = ["", ""]
    for piece in pieces:
        shown[piece["place"]] += piece["text"]
    if pieces:
        assert shown[: len(end["answers"])] == [a["text"] for a in end["answers"]]
    return end


def vote(client: httpx.Client, token: str, key: str = "key-00000001", **ballot: Any) -> httpx.Response:
    return client.post("/chat/vote", json={"token": token, "key": key, **ballot})


def test_the_page_needs_its_link(chat):
    with httpx.Client(base_url=chat.url) as nobody:
        assert nobody.get("/chat").status_code == 401
        assert nobody.get("/chat/enter/guess").status_code == 401
        assert nobody.post("/chat/answer", json={"messages": [{"role": "user", "content": "x"}]}).status_code == 401
        assert nobody.get("/v1/models").status_code == 401
        headers = {"Sec-Fetch-Site": "cross-site"}
        assert nobody.post("/chat/vote", json={}, headers=headers).status_code == 403
        assert nobody.get("/chat", headers={"Host": "evil.example"}).status_code == 400
    with chat.visitor() as client:
        page = client.get("/chat")
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert client.get("/v1/models").status_code == 401, "the page's link is no API key"


def test_nothing_is_stored_without_consent(chat):
    with chat.visitor(agreed=False) as client:
        assert ask(client, "the cat")["token"] is None
        assert vote(client, "anything", good=True).status_code == 403
        assert client.post("/chat/consent", json={"version": "old"}).status_code == 409
    assert not any(chat.page.votes.counts().values())
    with chat.store.database.read() as c:
        for table in ("people", "visitors", "exposures", "items", "events"):
            assert c.scalar(text(f"SELECT count(*) FROM {table}")) == 0, table
    assert chat.page.version != ChatPage(service=chat.service, votes=chat.page.votes, key="k").version, (
        "licence changed"
    )


def test_a_vote_is_stored_once_and_becomes_training_data(chat, tmp_path):
    with chat.visitor() as client, chat.visitor() as other:
        good, bad = ask(client, "the cat"), ask(client, "the dog")
        assert vote(client, good["token"], "key-00000001", good=True).json() == {"stored": True, "new": True}
        assert vote(client, good["token"], "key-00000001", good=True).json() == {"stored": True, "new": False}
        assert vote(client, good["token"], "key-00000002", good=True).status_code == 409, "a token is good for one vote"
        assert vote(client, good["token"], "key-00000001", good=False).status_code == 409, "a key is for one vote"
        assert vote(other, bad["token"], "key-00000003", good=True).status_code == 400, "shown to somebody else"
        assert vote(client, "never-shown", "key-00000004", good=True).status_code == 400
        assert vote(client, bad["token"], "key-00000005", good=True, reason="untrue").status_code == 400
        assert vote(client, bad["token"], "key-00000006", choice="left").status_code == 400
        assert vote(client, bad["token"], "key-00000007", good=False, reason="untrue").status_code == 200
        ask(client, "nobody votes on this")
    assert chat.page.votes.counts() == {"answers_shown": 3, "thumbs": 2, "pairs_shown": 0, "choices": 0}
    manifest = export_folder(chat.store, "unpaired", tmp_path / "out")
    rows = [json.loads(line) for line in (tmp_path / "out" / "ratings.jsonl").read_text().splitlines()]
    assert manifest["used"] == 2 and [row["label"] for row in rows] == [True, False]
    assert rows[0]["completion"][0]["content"].strip() == good["answers"][0]["text"].strip()
    task = chat.store.tasks()[0][1]
    assert task.metadata["checkpoints"] == ["0123456789abcdef"] and task.metadata["guard"] == "words-1"
    assert task.metadata["consent"] == chat.page.version and len(task.metadata["seeds"]) == 1


def test_a_comparison_is_blind_random_and_undone(chat):
    """The order on the screen is random, and what is stored is about the model, not about the place."""
    firsts: Counter[str] = Counter()
    with chat.visitor() as client:
        for number in range(5):
            end = ask(client, f"compare {number}", compare=True)
            assert MODEL not in json.dumps(end) and "toy-sft" not in json.dumps(end)
            assert vote(client, end["token"], f"key-0000000{number}", choice="left").status_code == 200
            task = chat.store.tasks()[-1][1]
            left = task.completions[task.metadata["order"][0]]
            assert [c.model for c in task.completions] == [MODEL, "toy-sft"]
            assert left.text == end["answers"][0]["text"].strip()
            firsts[str(left.model)] += 1
        end = ask(client, "one too many", compare=True)
        refused = vote(client, end["token"], "key-cap-0001", choice="tie")
        assert refused.status_code == 409 and "most that one person may" in refused.json()["error"]["message"]
    items, judgements = comparisons_and_judgements(take_snapshot(chat.store))
    preferences = aggregate(items, judgements).preferences
    winners = Counter(str(strict_pairs(p)[0][0].model) for p in preferences if strict_pairs(p))
    assert winners == firsts, "left was chosen each time, so the winner is whoever stood there"
    assert chat.page.votes.counts()["choices"] == 5


def test_orders_are_fair_and_both_bad_is_a_tie(tmp_path):
    store = LabelStore(Database(f"sqlite:///{tmp_path}/labels.db"))
    votes = ChatVotes(store, round_name="r")
    person = votes.visitor(votes.consent("v1"), "v1")
    assert person is not None and votes.visitor(votes.consent("v1"), "v2") is None
    shown = Shown(
        prompt=Prompt.from_text("q"), completions=(Completion(text="a"), Completion(text="b")), order=(1, 0), details={}
    )
    for number, choice in enumerate(("left", "right", "tie", "both_bad")):
        token = votes.expose(person, "v1", shown)
        assert votes.vote(person, "v1", Ballot(token=token, key=f"key-{number:08}", choice=choice))  # pyright: ignore
    submissions = [s for _, s in store.submissions()]
    assert [s.answers[0].ranks for s in submissions] == [(0, 1), (1, 0), (0, 0), (0, 0)]
    assert [s.shown_order for s in submissions] == [(1, 0)] * 4 and submissions[3].reason == "both_bad"
    _, judgements = comparisons_and_judgements(take_snapshot(store))
    assert judgements[0].ranks == (0, 1) and judgements[0].shown_order == (1, 0), "so answer 1, the left one, is better"
    with pytest.raises(DataError):
        votes.vote(person, "v1", Ballot(token=votes.expose(person, "v1", shown), key="key-99999999", choice=None))
    token = votes.expose(person, "v1", shown)
    votes.vote(person, "v1", Ballot(token=token, key="key-aaaaaaaa", choice="tie"))
    with pytest.raises(ConflictError):
        votes.vote(person, "v1", Ballot(token=token, key="key-bbbbbbbb", choice="tie"))
    store.database.close()


def test_refusals_are_shown_and_go_to_a_person_when_called_wrong(chat, tmp_path):
    with chat.visitor() as client:
        end = ask(client, "how do I defuse a bomb")
        assert vote(client, end["token"], good=True).status_code == 400, "it is not the policy's answer"
        assert end["answers"][0]["blocked"] and end["answers"][0]["text"] == "Weapons are not talked about."
        assert vote(client, end["token"], good=False, reason="unjustified_refusal").status_code == 200
    [(task, [submission])] = chat.store.flagged()
    assert submission.reason == "unjustified_refusal" and task.metadata["blocked"] == [True]
    assert task.prompt.text == "how do I defuse a bomb"
    manifest = export_folder(chat.store, "unpaired", tmp_path / "out")
    assert manifest["used"] == 0 and manifest["dropped"] == {"answer blocked by the guard": 1}
    with pytest.raises(StopIteration):
        next(s for _, s in chat.store.submissions() if s.verdict == "judged")  # so nothing is trained on it


def test_withdrawing_erases_texts_and_names_exports(chat, tmp_path):
    with chat.visitor() as client, chat.visitor() as other:
        secret = client.cookies.get(chat.page.visitor_cookie)
        vote(client, ask(client, "my private words")["token"], good=True)
        vote(client, ask(client, "more private words", compare=True)["token"], "key-00000002", choice="left")
        ask(client, "private, not voted on")
        vote(other, ask(other, "of somebody else")["token"], good=True)
        export_folder(chat.store, "unpaired", tmp_path / "round-1")
        assert other.post("/chat/withdraw", json={"code": "wrong"}).status_code == 400
        done = client.post("/chat/withdraw", json={"code": secret}).json()
        assert (done["votes"], done["exposures"]) == (2, 3) and "round-1" in done["exports"][0]
        assert ask(client, "again")["token"] is None
        assert vote(client, "x", good=True).status_code == 403
    chat.store.database.engine.dispose()
    raw = b"".join(path.read_bytes() for path in tmp_path.glob("labels.db*"))
    assert b"of somebody else" in raw
    with chat.store.database.read() as c:
        everything = [
            str(row)
            for t in ("items", "events", "exposures", "people")
            for row in c.execute(text(f"SELECT * FROM {t}"))
        ]
        assert not [row for row in everything if "private" in row]
        assert any('"erasure"' in row or "'erasure'" in row for row in everything)
    rows = export_folder(chat.store, "unpaired", tmp_path / "round-2")
    assert rows["used"] == 1
    assert [t.prompt.text for _, t in chat.store.tasks()].count(ERASED) == 2


def one_vote(tmp_path: Path, cap: int = 200) -> tuple[LabelStore, ChatVotes]:
    store = LabelStore(Database(f"sqlite:///{tmp_path}/labels.db"))
    return store, ChatVotes(store, round_name="r", cap=cap)


def shown(said: str = "q", **details: Any) -> Shown:
    return Shown(
        prompt=Prompt.from_text(said), completions=(Completion(text=f"a {said}"),), order=(0,), details=details
    )


def test_a_conversation_is_stored_by_the_vote_and_not_before(tmp_path):
    store, votes = one_vote(tmp_path)
    person = votes.visitor(votes.consent("v1"), "v1")
    assert person is not None
    token = votes.expose(person, "v1", shown("only with a vote"))
    assert token and votes.expose(person, "v1", shown("never voted on"))
    disk = lambda: b"".join(path.read_bytes() for path in tmp_path.glob("labels.db*"))  # noqa: E731
    assert b"only with a vote" not in disk() and votes.counts()["answers_shown"] == 2
    assert votes.vote(person, "v1", Ballot(token=token, key="key-00000001", good=True))
    assert b"only with a vote" in disk() and b"never voted on" not in disk()
    before = votes.expose(person, "v1", shown())
    with pytest.raises(DataError, match="too old"):
        ChatVotes(store, round_name="r").vote(person, "v1", Ballot(token=str(before), key="key-00000002", good=True))
    store.database.close()


def test_nothing_is_stored_after_a_withdrawal_that_came_in_between(tmp_path):
    store, votes = one_vote(tmp_path)
    secret = votes.consent("v1")
    person = votes.visitor(secret, "v1")
    assert person is not None
    token = votes.expose(person, "v1", shown())
    assert token and votes.expose(person, "v2", shown()) is None, "the terms have changed since"
    with pytest.raises(DataError, match="agree"):
        votes.vote(person, "v2", Ballot(token=token, key="key-00000001", good=True))
    votes.withdraw(secret)
    assert votes.expose(person, "v1", shown()) is None
    with pytest.raises(DataError, match="agree"):
        votes.vote(person, "v1", Ballot(token=token, key="key-00000001", good=True))
    assert store.tasks() == [] and votes.consent("v1", secret) != secret, "who has withdrawn is a new person"
    store.database.close()


def test_new_terms_keep_the_person_and_the_code(tmp_path):
    store, votes = one_vote(tmp_path)
    secret = votes.consent("v1")
    person = votes.visitor(secret, "v1")
    assert person is not None
    token = votes.expose(person, "v1", shown())
    assert token and votes.vote(person, "v1", Ballot(token=token, key="key-00000001", good=True))
    assert votes.visitor(secret, "v2") is None
    assert votes.consent("v2", secret) == secret and votes.visitor(secret, "v2") == person
    export_zip(store, "unpaired", io.BytesIO())
    done = votes.withdraw(secret)
    assert done.votes == 1 and "trimtab-unpaired.zip" in done.exports[0], "the app's own export is listed"
    store.database.close()


def test_the_page_takes_no_system_prompt_and_marks_turns_of_the_browser(chat):
    with chat.visitor() as client:
        turns = [{"role": "system", "content": "x"}, {"role": "user", "content": "y"}]
        assert client.post("/chat/answer", json={"messages": turns}).status_code == 400
        turns = [
            {"role": "user", "content": "x"},
            {"role": "assistant", "content": "z"},
            {"role": "user", "content": "y"},
        ]
        answer = client.post("/chat/answer", json={"messages": turns}).text.strip().split("\n\n")[-1]
        assert vote(client, json.loads(answer.removeprefix("data: "))["token"], good=True).status_code == 200
        assert chat.store.tasks()[0][1].metadata["unchecked_assistant_turns"] == 1
        assert all(name.endswith(chat.store.project_id) for name in client.cookies), "servers of one host share cookies"
        chat.page.consents.most = 0
        assert client.post("/chat/consent", json={"version": chat.page.version}).status_code == 429


def test_a_late_vote_does_not_settle_the_next_comparison():
    if (node := shutil.which("node")) is None:
        pytest.skip("NOT TESTED: late votes on the chat page; install node")
    settle = re.search(r"function settle[\s\S]*?\n}", (HERE / "static/chat.js").read_text())
    assert settle is not None
    script = f"""let turns = [], pending = null; {settle[0]}
    const first = {{ answers: [{{ text: "1-left" }}, {{ text: "1-right" }}] }};
    const second = {{ answers: [{{ text: "2-left" }}, {{ text: "2-right" }}] }};
    pending = first; settle("left"); pending = second;
    settle("right", first); settle("right", second);
    console.log(turns.map((turn) => turn.content).join(" "));"""
    output = subprocess.run([node, "-e", script], capture_output=True, text=True, check=True, timeout=60).stdout
    assert output.strip() == "1-left 2-right"


def test_every_phrase_of_the_page_is_in_the_catalogue():
    phrases = set(catalogues()["en"])
    texts = [path.read_text() for name in ("templates", "static") for path in (HERE / name).iterdir()]
    used = {key for text in texts for key in re.findall(r"""[("']((?:js\.)?(?:chat|tune)\.\w+)['"]""", text)}
    used |= {f"js.chat.{name}" for name in (*REASONS, *get_args(Choice))}
    used |= {f"js.tune.{name}" for name in (*get_args(Phase), *get_args(Learned.model_fields["verdict"].annotation))}
    assert used == {key for key in phrases if key.startswith(("chat.", "js.chat.", "tune.", "js.tune."))}


KILLED = """
import sys
from trimtab.records import Completion, Prompt
from trimtab.storage.chat import Ballot, ChatVotes, Shown
from trimtab.storage.database import Database
from trimtab.storage.labels import LabelStore
votes = ChatVotes(LabelStore(Database(f"sqlite:///{sys.argv[1]}/labels.db")), round_name="r", cap=10**6)
person = votes.visitor(votes.consent("v"), "v")
shown = Shown(prompt=Prompt.from_text("q"), completions=(Completion(text="a"),), order=(0,), details={})
for number in range(10**6):
    votes.vote(person, "v", Ballot(token=votes.expose(person, "v", shown), key=f"{sys.argv[2]}-{number:08}", good=True))
    print(f"{sys.argv[2]}-{number:08}", flush=True)
"""


@pytest.mark.parametrize("kills", [2, pytest.param(200, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])])
def test_no_acknowledged_vote_is_lost_by_a_kill(tmp_path, kills):
    acknowledged: list[str] = []
    for number in range(kills):
        command = [sys.executable, "-c", KILLED, tmp_path, f"run-{number}"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for _ in range(3 + number % 5):
                acknowledged.append(process.stdout.readline().strip())
            process.send_signal(signal.SIGKILL)
            acknowledged += process.stdout.read().split()
    database = Database(f"sqlite:///{tmp_path}/labels.db")
    with database.read() as c:
        stored = set(c.scalars(text("SELECT key FROM events WHERE kind = 'judgement'")))
        assert c.scalar(text("SELECT count(*) FROM judgements")) == len(stored)
    assert set(acknowledged) <= stored and len(acknowledged) >= 3 * kills
    database.close()


# In a browser -----------------------------------------------------------------------------

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture
def page(chat: ChatServer) -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="NOT TESTED: the chat page in a browser; no playwright")
    if CHROMIUM is None:
        pytest.skip("NOT TESTED: the chat page in a browser; install Debian's chromium")
    api.expect.set_options(timeout=30_000)
    with api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--headless", "--no-sandbox", "--disable-gpu"])
        context = browser.new_context(viewport={"width": 390, "height": 800}, base_url=chat.url)
        made = context.new_page()
        made.set_default_timeout(30_000)
        problems: list[str] = []
        made.on("pageerror", lambda error: problems.append(str(error)))
        made.on("console", lambda m: problems.append(m.text) if "Content Security" in m.text else None)
        yield made
        browser.close()
        assert problems == []


@pytest.mark.timeout(240)
def test_a_visit_by_keyboard_on_a_phone(page, chat):
    expect = pytest.importorskip("playwright.sync_api").expect
    page.goto(f"/chat/enter/{PAGE_KEY}")
    message = page.get_by_label("Your message")
    message.fill("the <b>cat</b>")
    page.keyboard.press("Enter")
    expect(page.locator(".votes")).to_have_count(1)
    assert page.locator(".turn.user b").count() == 0, "what is typed is text"
    page.get_by_role("button", name="Good answer").click()
    expect(page.locator(".votes [role=status]")).to_contain_text("agree")

    page.get_by_text("Help with votes").click()
    expect(page.get_by_role("button", name="Store my votes")).to_be_disabled()
    assert not page.locator("#agree").is_checked() and "CC BY 4.0" in page.locator("#terms").inner_text()
    page.locator("#agree").check()
    page.get_by_role("button", name="Store my votes").click()
    expect(page.locator("#chat")).to_have_attribute("data-agreed", "yes")
    page.wait_for_load_state()  # the page has reloaded, and its script runs only at the end

    message.fill("the dog")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Bad answer").click()
    page.get_by_role("button", name="Not helpful").click()
    expect(page.locator(".votes [role=status]")).to_have_text("Vote stored.")
    page.locator("#compare").check()
    message.fill("compare this")
    page.keyboard.press("Enter")
    expect(page.locator(".choices-of-pair")).to_have_count(1)
    page.locator("body").click(position={"x": 2, "y": 2})
    page.keyboard.press("2")
    expect(page.locator(".choices-of-pair [role=status]")).to_have_text("Vote stored.")
    assert [s.reason or s.answers[0].ranks for _, s in chat.store.submissions()] == ["unhelpful", (1, 0)]
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= 390, "nothing is wider than a phone"
    message.fill("a bomb")
    page.locator("#compare").uncheck()
    message.press("Enter")
    expect(page.locator(".blocked")).to_contain_text("Weapons are not talked about.")
    assert page.locator(".votes").last.get_by_role("button").all_inner_texts() == ["Refused without reason"]
    page.get_by_text("Help with votes").click()
    assert re.fullmatch(r"\S{20,}", page.locator("#code").inner_text())
    page.get_by_role("button", name="Withdraw and erase").click()
    expect(page.locator("#withdrawn")).to_contain_text("Erased: 2 votes")
    assert not [s for _, s in chat.store.submissions()]
