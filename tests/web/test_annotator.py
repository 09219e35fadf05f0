"""The annotator's side without a browser: instructions, training, history, passwords, and where the app is reached."""

import re

import pytest

from trimtab.errors import ConfigError
from trimtab.storage.form import Form
from trimtab.storage.own import own_work, remaining
from trimtab.storage.people import MIN_PASSWORD
from trimtab.web.server import Project, serve

from .kit import PASSWORD, Browser, World, judge

TRAINING = {"role": "training", "ranks": [0, 1], "explanation": "Because it is **true**."}


def test_instructions_come_before_the_first_item_and_once(here: World, visit):
    here.store.set_guideline("Prefer what is *true*.")
    here.pairs(2)
    client = visit("annotator")
    page = client.get("/work").text
    assert "Prefer what is <em>true</em>" in page and 'id="task"' not in page
    with here.database.read() as c:
        assert not c.exec_driver_sql("SELECT * FROM leases").all()  # nothing waits while somebody reads
    assert client.fill("/work/start").status_code == 200
    assert 'id="task"' in client.get("/work").text
    here.store.set_guideline("Prefer what is *kind*.")
    assert 'id="task"' in client.get("/work").text


def test_without_guidelines_and_training_there_is_nothing_to_read_first(here: World, visit):
    here.pairs(1)
    assert 'id="task"' in visit("annotator").get("/work").text


def test_training_comes_first_shows_the_right_answer_and_counts_nowhere(here: World, visit):
    here.configure(overlap=1, gold_every=0)
    here.add({"prompt": "t", "answers": ["yes", "no"], "check": TRAINING})
    here.add({"prompt": "q", "answers": ["yes", "no"], "check": {"role": "qualification", "ranks": [0, 1]}})
    here.pairs(2)
    client = visit("annotator")
    assert "Practice items first: 1" in client.get("/work").text
    client.fill("/work/start")
    person, seen = here.people.everybody()[0].id, []
    for number in range(4):
        task = client.get("/work/next").json()
        assert task["judged"] == max(0, number - 1)
        item = here.store.next(person)
        assert not isinstance(item, str)
        seen.append(item.task.check.role if item.task.check else None)
        form = judge(item, str(number), best=int(number == 0)).model_dump(mode="json", exclude_defaults=True)
        reply = client.submit("/work/submit", form).json()
        again = client.submit("/work/submit", form).json()
        assert again["feedback"] == reply["feedback"]  # a reply that got lost comes again
        if number == 0:
            order = item.shown_order
            best = "AB"[order.index(0)]
            assert "Not as expected" in reply["feedback"] and f"Expected: {best} &gt; " in reply["feedback"]
            assert "Because it is <strong>true</strong>." in reply["feedback"]
        else:
            assert reply["feedback"] is None
    assert seen == ["training", "qualification", None, None]
    assert own_work(here.database, person).judged == 3 and remaining(here.database, person) == 0
    assert here.store.progress().done == 2 and here.people.everybody()[0].qualified


def test_progress_counts_what_is_left_for_this_person(here: World, visit):
    here.configure(overlap=1, gold_every=0)
    here.pairs(3)
    other = here.join("other").id
    here.store.next(other)  # one is theirs
    client = visit("annotator")
    reply = client.get("/work/next").json()
    assert (reply["judged"], reply["total"]) == (0, 2)


def test_history_says_what_was_said(here: World, visit):
    here.configure(overlap=1, gold_every=0)
    client = visit("annotator")
    person = here.people.everybody()[0].id
    here.pairs(1)
    here.add(
        {"prompt": "k", "answers": ["one", "two", "three"]},
        {"prompt": "t", "answers": ["fine"], "kind": "thumbs"},
        {"prompt": "s", "kind": "steps", "steps": ["1 + 1 = 3", "so 3"]},
        {"prompt": "flagged", "answers": ["a", "b"]},
    )

    def send(key: str, **values):
        item = here.store.next(person)
        assert not isinstance(item, str)
        client.submit("/work/submit", {"item": item.task.id, "key": f"test-key-{key}", **values})

    send("1", answers=[{"criterion": "overall", "ranks": [1, 0], "strength": 0.3333}], comment="close")
    send("2", answers=[{"criterion": "overall", "ranks": [1, 0, 1]}])
    send("3", good=False)
    send("4", first_wrong=0)
    send("5", verdict="flag", reason="harmful")
    page = client.get("/history").text
    for words in ("B slightly better", "“close”", "B &gt; A = C", "👎 Bad", "Step 1 is wrong", "flagged: harmful"):
        assert words in page, words
    assert page.count('<time datetime="2027-') == 5


@pytest.mark.parametrize("levels", [1, 2, 3, 4])
def test_history_names_the_strength_as_the_form_did(here: World, visit, levels: int):
    here.configure(overlap=1, gold_every=0, strength=levels)
    here.pairs(levels)
    client = visit("annotator")
    names = {1: ["better"], 2: ["slightly better", "much better"], 3: ["slightly better", "better", "much better"]}
    names[4] = ["barely better", *names[3]]
    for number in range(levels):
        item = client.get("/work/next").json()["item"]
        answer = {"criterion": "overall", "ranks": [0, 1]}
        if levels > 1:
            answer["strength"] = round((number + 1) / levels, 4)
        client.submit("/work/submit", {"item": item, "key": f"test-key-{number}", "answers": [answer]})
    page = client.get("/history").text
    for name in names[levels]:
        assert f"<td>A {name}" in page


def test_ones_own_password_can_be_changed(here: World, visit):
    client = visit("annotator")
    name = here.people.everybody()[0].name
    elsewhere = here.people.sign_in(name, PASSWORD)
    wrong = client.fill("/profile/password", old="not the password", password="another password")
    assert wrong.status_code == 422 and "current password is wrong" in wrong.text
    short = client.fill("/profile/password", old=PASSWORD, password="x" * (MIN_PASSWORD - 1))
    assert short.status_code == 422
    assert here.people.session(elsewhere) is not None
    done = client.fill("/profile/password", old=PASSWORD, password="another password")
    assert done.status_code == 200 and "was changed" in done.text
    assert here.people.session(elsewhere) is None  # signed out everywhere else, and still in here
    assert client.learn().get("/work").status_code == 200
    assert here.people.sign_in(name, "another password")
    for _ in range(20):
        client.fill("/profile/password", old="guess", password="another password")
    assert client.fill("/profile/password", old="another password", password="a third password").status_code == 429


@pytest.mark.parametrize("cut", [False, True])
def test_under_a_path_behind_a_proxy(here: World, cut: bool):
    """Whether the proxy passes the path on or cuts it off, pages and redirects stay under it."""
    here.join("olga", "owner")
    app = here.app(public_url="https://example.org/teams/labels/")
    client = Browser(app, base_url="http://app:8765")
    base = "" if cut else "/teams/labels"
    seen = client.get(base + "/", headers={"accept": "text/html"}, follow_redirects=False)
    assert (seen.status_code, seen.headers["location"]) == (303, "/teams/labels/signin")
    origin = {"Origin": "https://example.org"}
    login = {"name": "olga", "password": PASSWORD}
    answer = client.post(base + "/signin", data=login, headers=origin, follow_redirects=False)
    assert answer.headers["location"] == "/teams/labels/"
    assert "Path=/teams/labels" in answer.headers["set-cookie"]
    client.headers["Cookie"] = answer.headers["set-cookie"].split(";")[0]
    for path in (
        "/work",
        "/history",
        "/profile",
        "/manage",
        "/manage/items",
        "/manage/people",
        "/adjudicate",
        "/guidelines",
    ):
        page = client.get(base + path).text
        for link in re.findall(r'(?:href|src|action)="(/[^"]*)"', page):
            assert link.startswith("/teams/labels/"), (path, link)
        assert f'href="/teams/labels{path}" aria-current' in page
    assert client.get(base + "/static/app.js").status_code == 200
    assert 'data-base="/teams/labels"' in client.get(base + "/work").text


def test_behind_a_proxy_any_host_name_is_answered(here: World):
    """The docs promise it: many proxies send their own name for us."""
    client = Browser(here.app(public_url="https://labels.example.org"))
    for host in ("app", "app:8765", "10.0.0.7", "labels.example.org", "[::1]:8765", "upstream_labels"):
        assert client.get("/signin", headers={"Host": host}).status_code == 200, host


@pytest.mark.parametrize(
    "url", ["https://example.org/work", "https://example.org/static/x", "https://example.org/x?y=1"]
)
def test_paths_that_cannot_be_told_from_ours_are_refused(here: World, url: str):
    with pytest.raises(ConfigError, match=r"path"):
        serve(Project(store=here.store, people=here.people), public_url=url)


def test_an_adjudicator_goes_on_to_the_next_item_and_says_why_only_where_people_disagree(here: World, visit):
    here.configure(overlap=2, gold_every=0)
    first, second, third = here.pairs(3)
    for number, name in enumerate(("one", "two")):
        person = here.join(name).id
        for turn in range(3):
            item = here.store.next(person)
            assert not isinstance(item, str)
            form = judge(item, str(turn), best=number)
            if item.task.id == third:
                form = Form(item=third, key=f"test-key-{turn}", verdict="flag", reason="broken")
            here.store.submit(person, form)
    client = visit("adjudicator")
    assert "Why do they disagree?" in client.get(f"/adjudicate/item?id={first}").text
    assert "Why do they disagree?" not in client.get(f"/adjudicate/item?id={third}").text
    answers = [{"criterion": "overall", "ranks": [0, 1]}]
    went = []
    for uid in (first, second, third):
        reply = client.submit("/adjudicate/submit", {"item": uid, "key": f"test-key-{uid}", "answers": answers})
        went.append(reply.json()["to"])
    assert went == [f"/adjudicate/item?id={second}", f"/adjudicate/item?id={third}", "/adjudicate"]
