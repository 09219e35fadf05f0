"""The owner's pages of items: found, read, corrected, retired, restored and commented on; win rates by hand."""

import html
import json
import re

import pytest

from trimtab.errors import ConflictError
from trimtab.feedback import wilson_interval
from trimtab.records.annotation import Task
from trimtab.storage.database import Database
from trimtab.storage.form import Form
from trimtab.storage.labels import Assignment
from trimtab.storage.snapshot import load_snapshot, take_snapshot
from trimtab.web.dashboard import dashboard
from trimtab.web.exchange import FORMATS, render

from .kit import Browser, World, judge


def say(world: World, name: str, *, best: int | None = 0, key: str = "", **fields) -> str:
    """Somebody judges the next item in front of them; ``best`` None: a tie. Returns the item's id."""
    me = next((p.id for p in world.people.everybody() if p.name == name), None) or world.join(name).id
    item = world.store.next(me)
    assert isinstance(item, Assignment), item
    form = judge(item, f"{name}-{key}-{item.task.id[:20]}", best=best or 0, **fields)
    if best is None:
        form = form.model_copy(update={"answers": (form.answers[0].model_copy(update={"ranks": (0, 0)}),)})
    world.store.submit(me, form)
    return item.task.id


def listed(page) -> list[str]:
    return [
        html.unescape(q) for q in re.findall(r'<li><a href="/manage/item\?id=[^"]*" dir="auto">([^<]*)<', page.text)
    ]


def fields_of(page, action: str) -> dict[str, str]:
    """What a browser would send of a form: hidden fields, inputs and text areas."""
    form = re.search(rf'<form method="post" action="/manage/item/{action}".*?</form>', page.text, re.S)
    assert form, page.text
    inputs = re.findall(r'<input (?:type="hidden" )?name="([^"]+)"[^>]*? value="([^"]*)"', form[0])
    areas = re.findall(r'<textarea name="([^"]+)"[^>]*>\n?(.*?)</textarea>', form[0], re.S)
    return {name: html.unescape(value) for name, value in [*inputs, *areas]}


def test_items_are_found_by_text_state_and_batch(world: World):
    world.configure(overlap=2, gold_every=0)
    world.pairs(30)
    world.add(
        {"id": "own/id", "prompt": "Straße, 100% sicher?", "answers": ["ja", "ÄRGER_lich"], "batch": "two"},
        {"prompt": "sum", "kind": "steps", "steps": ["1 + 1 = 2", "so 3"], "batch": "two"},
        {"prompt": "known", "answers": ["x", "y"], "check": {"role": "gold", "ranks": [0, 1]}},
    )

    def ids(**wanted) -> list[str]:
        return [f.task.prompt.text for f in world.store.find(**wanted)[0]]

    first, more = world.store.find(limit=25)
    second, end = world.store.find(limit=25, after=more or 0)
    assert (len(first), len(second), end) == (25, 8, None)
    assert [f.number for f in first + second] == sorted(f.number for f in first + second)
    for text in ("straße", "ÄRGER", "ärger", "100%", "own/id", "JA straße"):
        assert ids(text=text) == ["Straße, 100% sicher?"], text
    assert ids(text="1 + 1") == ["sum"] and ids(text="question 29 no") == ["question 29"]
    assert ids(text="100_") == ids(text='"prompt"') == ids(text="compare") == [], "signs of SQL and JSON find nothing"
    assert ids(batch="two") == ["Straße, 100% sicher?", "sum"] and ids(batch="two", text="sum") == ["sum"]
    assert ids(state="check") == ["known"]
    world.configure(overlap=1, gold_every=0)
    uid = say(world, "ann")
    assert [f.task.id for f in world.store.find(state="done")[0]] == [uid]
    world.store.retire(uid, person=1)
    assert [f.task.id for f in world.store.find(state="retired")[0]] == [uid] and ids(state="done") == []
    counts = world.store.item_counts()
    assert (counts["open"], counts["done"], counts["retired"], counts["check"]) == (31, 0, 1, 1)


def test_the_list_is_paged_and_leads_to_the_items(here: World, visit):
    here.pairs(30)
    owner = visit("owner")
    first = owner.get("/manage/items?q=question")
    assert listed(first) == [f"question {i}" for i in range(25)]
    following = re.search(r'rel="next" href="([^"]*)"', first.text)
    assert following
    second = owner.get(html.unescape(following[1]))
    assert listed(second) == [f"question {i}" for i in range(25, 30)] and 'rel="next"' not in second.text
    assert "No item fits." in owner.get("/manage/items?q=nothing+like+it").text
    assert owner.get("/manage/items?q=%00").status_code == 422
    item = owner.get("/manage/item", params={"id": here.store.find()[0][0].task.id})
    assert "question 0" in item.text and "yes 0" in item.text


def test_an_item_says_who_said_what(here: World, visit):
    """Current words, changed ones and those taken back, each with its strength, comment and time."""
    here.configure(overlap=2, gold_every=0)
    uid = here.add({"prompt": "q", "answers": [{"text": "*a*", "model": "m-1"}, {"text": "b", "model": "m-2"}]})[0]
    owner = visit("owner")
    ann, ben = here.join("ann").id, here.join("ben").id
    form = judge(here.store.next(ann), "1", best=1, comment="close\ncall", seconds=3.0)
    answer = form.answers[0].model_copy(update={"strength": 0.3333})
    here.store.submit(ann, form.model_copy(update={"answers": (answer,)}))
    version = here.store.submissions()[0][0]
    here.store.submit(ann, judge(here.store.reopen(ann, version), "2", best=0, version=version))
    here.store.submit(ben, judge(here.store.next(ben), "3"))
    here.store.undo(ben, max(v for v, _ in here.store.submissions()))
    judged = here.store.item(uid).submissions
    assert [(s.name, s.state) for s in judged] == [("ann", "changed"), ("ann", "counts"), ("ben", "undone")]
    page = owner.get("/manage/item", params={"id": uid})
    rows = re.findall(r'<li class="(\w+)"><b>([^<]*)</b> (\w+)', page.text)
    assert rows == [
        ("changed", "B slightly better", "ann"),
        ("counts", "A better", "ann"),
        ("undone", "A better", "ben"),
    ]
    assert "close\ncall" in page.text and "strength 0.33" in page.text and "m-1" in page.text
    assert "<em>a</em>" in page.text, "texts are shown as annotators see them"
    assert re.search(r'<time datetime="2027-01-15T\d\d:\d\d:\d\dZ">', page.text)


def test_a_corrected_text_is_a_new_item(here: World, visit):
    here.configure(overlap=1, gold_every=0)
    uid = here.add({"id": "mine", "prompt": "What is 2+2?", "answers": ["5\r\n", "four"], "metadata": {"a": 1}})[0]
    here.pairs(1)
    say(here, "ann")
    before = here.store.item(uid).submissions[0].submission
    owner = visit("owner")
    page = owner.get("/manage/item", params={"id": uid})
    given = fields_of(page, "correct")
    assert given["answer.0"] == "5\r\n" and given["message.0"] == "What is 2+2?"

    unchanged = owner.post("/manage/item/correct", data=given | {"answer.0": "5\r\n", "reason": "none"})
    assert unchanged.status_code == 422 and "nothing differs" in unchanged.text
    empty = owner.post("/manage/item/correct", data=given | {"answer.1": " ", "reason": "because"})
    assert empty.status_code == 422 and "empty answer" in empty.text and 'value="because"' in empty.text
    assert here.store.progress().items == 2

    done = owner.post("/manage/item/correct", data=given | {"answer.0": "4\r\nor IV", "reason": "a typo"})
    assert done.status_code == 200 and str(done.url).startswith("http://testserver/manage/item?id=")
    old, new = here.store.item(uid), here.store.item(done.url.params["id"])
    assert old.summary.states == ("retired",) and old.summary.task.completions[0].text == "5\r\n"
    assert [s.submission for s in old.submissions] == [before]
    assert new.summary.task.completions[0].text == "4\nor IV" and new.summary.task.metadata == {"a": 1}
    assert new.summary.states == ("open",) and new.submissions == []
    assert new.summary.task.id == Task.of(new.summary.task.prompt, new.summary.task.completions).id
    assert [(e.kind, e.body) for e in new.log] == [("correction", {"of": uid, "reason": "a typo"})]
    assert [e.kind for e in old.log] == ["retire", "corrected"] and old.log[0].body == {"reason": "a typo"}
    assert f'href="/manage/item?id={uid}"' in done.text and "What is 2+2?" in done.text

    again = owner.post("/manage/item/correct", data=given | {"answer.0": "again"})
    assert again.status_code == 422 and "retired; restore it first" in again.text
    with pytest.raises(ConflictError, match="replaces this one; retire that first"):
        here.store.restore(uid, person=1)
    here.store.retire(new.summary.task.id, person=1)
    here.store.restore(uid, person=1)
    assert here.store.item(uid).summary.states == ("done",)


def test_metadata_change_in_place_and_the_log_keeps_them(here: World, visit):
    uid = here.add({"prompt": "q", "answers": ["a", {"text": "b", "model": "old"}], "metadata": {"k": "ä"}})[0]
    owner = visit("owner")
    given = fields_of(owner.get("/manage/item", params={"id": uid}), "correct")
    assert given["model.1"] == "old" and '"ä"' in given["metadata"]
    for nonsense in ("[1]", "{", "3"):
        answer = owner.post("/manage/item/correct", data=given | {"metadata": nonsense})
        assert answer.status_code == 422 and "not a JSON object" in answer.text
    owner.post("/manage/item/correct", data=given | {"metadata": '{"k": 2}', "model.0": "new", "reason": "r"})
    one = here.store.item(uid)
    assert one.summary.task.metadata == {"k": 2} and [c.model for c in one.summary.task.completions] == ["new", "old"]
    assert one.log[0].kind == "amend"
    assert one.log[0].body["before"] == {"metadata": {"k": "ä"}, "prompt_metadata": {}, "models": [None, "old"]}
    stale = owner.post("/manage/item/correct", data=given | {"model.0": "other"})
    assert stale.status_code == 409, "somebody else changed it since the page was opened"


def test_a_correction_that_is_there_already_is_refused(here: World, visit):
    first, second = here.pairs(2)
    task = here.store.task(first)
    other = here.store.task(second)
    same = task.model_copy(update={"prompt": other.prompt, "completions": other.completions})
    with pytest.raises(ConflictError, match="has exactly this text"):
        here.store.correct(task, same, person=here.join("o", "owner").id)
    assert here.store.item(first).summary.states == ("open",)


def test_steps_are_corrected_with_their_answer(here: World, visit):
    uid = here.add({"prompt": "q", "kind": "steps", "steps": ["one", "two"]})[0]
    owner = visit("owner")
    given = fields_of(owner.get("/manage/item", params={"id": uid}), "correct")
    done = owner.post("/manage/item/correct", data=given | {"step.1": "2", "reason": "r"})
    task = here.store.task(done.url.params["id"])
    assert task.steps == ("one", "2") and task.completions[0].text == "one\n2"


def test_retired_items_are_restored_with_their_judgements(world: World):
    world.configure(overlap=2, gold_every=0)
    uid = world.pairs(1)[0]
    say(world, "ann", best=0)
    say(world, "ben", best=1)
    assert world.store.progress().disputed == 1
    world.store.retire(uid, person=1, reason="broken")
    world.store.retire(uid, person=1, reason="twice")
    assert world.store.progress().items == 0 and world.store.find(state="disputed")[0] == []
    assert world.store.batches()[0]["done"] == 0, "judgements of retired items are not progress"
    world.store.restore(uid, person=1, reason="not broken")
    assert world.store.progress().disputed == 1 and world.store.progress().done == 2
    assert [(e.kind, e.body["reason"]) for e in world.store.item(uid).log] == [
        ("retire", "broken"),
        ("restore", "not broken"),
    ]
    world.configure(overlap=3, gold_every=0)
    assert say(world, "cem") == uid, "a restored item is queued again"


def test_a_restored_item_is_offered_to_those_who_went_past_it(world: World):
    world.configure(overlap=2, gold_every=0)
    first, boss = world.pairs(3)[0], world.join("boss", "owner").id
    world.store.retire(first, person=boss)
    assert {say(world, "ann", key="1"), say(world, "ann", key="2")} == {f.task.id for f in world.store.find()[0]} - {
        first
    }
    world.store.restore(first, person=boss)
    assert say(world, "ann", key="3") == first


def test_comments_say_who_and_when_and_are_exported(here: World, visit, tmp_path):
    here.configure(overlap=1, gold_every=0)
    uid = here.add({"prompt": "q", "answers": ["a", "b"], "metadata": {"k": 1}})[0]
    say(here, "ann")
    owner = visit("owner")
    here.clock.now = 1_800_000_000.0
    page = owner.fill("/manage/item/comment", item=uid, text="=odd\r\nbut <b>fine</b>")
    assert "=odd\nbut &lt;b&gt;fine&lt;/b&gt;" in page.text
    assert owner.fill("/manage/item/comment", item=uid, text=" ").status_code == 422
    assert owner.fill("/manage/item/comment", item=uid, text="x" * 10_001).status_code == 422
    assert [f.comments for f in here.store.find()[0]] == [1] and "comments: 1" in owner.get("/manage/items").text
    by = here.store.item(uid).log[0].pseudonym
    comment = {"at": 1_800_000_000.0, "by": by, "text": "=odd\nbut <b>fine</b>"}
    snapshot = take_snapshot(here.store)
    for format, name in (("trl", "preferences"), ("ranking", "rankings"), ("judgements", "comparisons")):
        assert '"owner_comments": [{"at": 1800000000.0' in render(snapshot, format)[f"{name}.jsonl"].decode(), format
    assert b"owner_comments" in render(snapshot, "csv")["judgements.csv"]
    assert b"owner_comments" not in render(snapshot, "trimtab")["tasks.jsonl"]
    copy = World(Database(f"sqlite:///{tmp_path}/copy/labels.db"))
    load_snapshot(copy.store, snapshot)
    assert take_snapshot(copy.store).log == snapshot.log and copy.store.item(uid).log[0].body["text"] == comment["text"]
    copy.database.close()


@pytest.mark.parametrize("format", FORMATS)
def test_exports_add_up_with_retired_and_corrected_items(here: World, format: str):
    here.configure(overlap=2, gold_every=0)
    owner = here.join("boss", "owner").id
    here.pairs(4)
    for name in ("ann", "ben"):
        for turn in range(4):
            say(here, name, key=str(turn), best=turn % 2)
    retired, corrected, restored, _ = [f.task for f in here.store.find()[0]]
    here.store.retire(retired.id, person=owner)
    answers = (corrected.completions[0].model_copy(update={"text": "other"}), corrected.completions[1])
    here.store.correct(corrected, corrected.model_copy(update={"completions": answers}), person=owner)
    here.store.retire(restored.id, person=owner)
    here.store.restore(restored.id, person=owner)
    say(here, "ann", key="new")
    manifest = json.loads(render(take_snapshot(here.store), format)["manifest.json"])
    assert manifest["judgements"] == 9 == manifest["used"] + sum(manifest["dropped"].values())
    if format != "trimtab":
        assert manifest["dropped"]["item retired"] == 4


def test_only_owners_come_here_and_only_from_our_pages(here: World, visit):
    uid = here.pairs(1)[0]
    paths = [f"/manage/item/{action}" for action in ("comment", "retire", "restore", "correct")]
    for role in ("annotator", "adjudicator"):
        person: Browser = visit(role)
        assert person.get("/manage/item", params={"id": uid}).status_code == 403
        assert all(person.fill(path, item=uid, text="x", reason="x").status_code == 403 for path in paths)
    owner = visit("owner")
    assert all(owner.post(path, data={"item": uid, "text": "x"}).status_code == 403 for path in paths)
    other = {"Origin": "https://example.org"}
    data = {"item": uid, "text": "x", "csrf": owner.csrf}
    assert all(owner.post(path, data=data, headers=other).status_code == 403 for path in paths)
    assert here.store.item(uid).log == [] and here.store.item(uid).summary.states == ("open",)
    assert owner.get("/manage/item?id=nobody").status_code == 422


def test_win_rates_by_hand(here: World, visit):
    """m beats n twice and ties once on three prompts; one item names no model, one was settled, one is retired."""
    here.configure(overlap=1, gold_every=0)
    models = [{"text": "a", "model": "m"}, {"text": "b", "model": "n"}]
    here.add(*({"prompt": f"q{i}", "answers": models} for i in range(4)), {"prompt": "bare", "answers": ["a", "b"]})
    for turn, best in enumerate((0, 0, None, 1, 0)):
        say(here, "ann", key=str(turn), best=best)
    last = here.store.submissions()[3][1].task
    here.store.retire(last, person=1)
    shown = dashboard(here.store, here.people, {})
    m, n = shown.wins.models
    assert (m.model, m.rival, m.wins, m.ties, m.losses) == ("m", None, 2, 1, 0) and (n.wins, n.losses) == (0, 2)
    low, high = wilson_interval(2.5, 3)
    assert (m.rate.value, m.rate.n) == (2.5 / 3, 3) and (m.rate.low, m.rate.high) == pytest.approx((low, high))
    assert shown.wins.used == 3 and shown.wins.left_out == {"item retired": 1, "answers that name no model": 1}
    assert shown.left_out == {"item retired": 1} and shown.sampled == 5
    text = visit("owner").get("/manage").text
    assert "3 judgements used. Left out: retired items 1, no model named 1." in text
    assert "4 judgements used. Left out: retired items 1." in text
    german = visit("owner").get("/manage", headers={"Accept-Language": "de"})
    assert german.status_code == 200


def test_win_rates_of_rankings_and_settled_items(here: World):
    """Three answers give three comparisons, two by one model give none of their own; a decision replaces the others."""
    here.configure(overlap=1, gold_every=0)
    answers = [{"text": "a", "model": "m"}, {"text": "b", "model": "m"}, {"text": "c", "model": "n"}]
    here.add({"prompt": "q", "answers": answers})
    me, boss = here.join("ann").id, here.join("boss", "adjudicator").id
    item = here.store.next(me)
    assert isinstance(item, Assignment)
    by_answer = (0, 2, 1)  # a, then c, then b
    ranks = tuple(by_answer[i] for i in item.shown_order)
    form = {"item": item.task.id, "key": "key-one-1", "answers": [{"criterion": "overall", "ranks": ranks}]}
    here.store.submit(me, Form.model_validate(form))
    wins = dashboard(here.store, here.people, {}).wins
    assert [(w.model, w.wins, w.losses) for w in wins.pairs] == [("m", 1, 1)] and wins.used == 1
    version = here.store.submissions()[0][0]
    here.store.submit(
        me,
        Form.model_validate(
            {"item": item.task.id, "key": "key-one-2", "version": version, "verdict": "flag", "reason": "r"}
        ),
    )
    dispute, _ = here.store.dispute(item.task.id, boss)
    ranks = tuple((1, 2, 0)[i] for i in dispute.shown_order)
    here.store.adjudicate(boss, Form.model_validate(form | {"key": "key-two-1", "answers": [{"ranks": ranks}]}))
    shown = dashboard(here.store, here.people, {})
    assert [(w.model, w.wins, w.losses) for w in shown.wins.pairs] == [("n", 2, 0)]
    assert shown.wins.used == 1 and shown.wins.left_out == {"settled by an adjudicator": 1}
    assert shown.left_out == {"not ranked: flag": 1, "adjudication": 1}


@pytest.mark.timeout(240)
@pytest.mark.parametrize("size", [(1280, 800), (390, 844)])
def test_an_owner_finds_corrects_and_comments_by_keyboard(page, server, here: World, size: tuple[int, int]):
    from .live import join, shot

    here.configure(overlap=1, gold_every=0)
    here.pairs(30)
    uid = here.add({"prompt": "a haiku", "answers": ["one\ntwo  **bold**", "three"]})[0]
    page.set_viewport_size({"width": size[0], "height": size[1]})
    join(page, here, "owner", "Olga")
    page.goto("/manage/items")
    shot(page, f"items-{size[0]}")
    assert page.locator("ul.items li").first.bounding_box()["y"] < size[1], "the first item is on the first screen"
    page.get_by_label("Words in the question").fill("HAIKU two")
    page.keyboard.press("Enter")
    page.wait_for_url("**q=HAIKU**")
    assert page.locator("ul.items li").count() == 1
    page.locator("ul.items a").focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/manage/item?id=*")
    assert page.locator(".answer strong").inner_text() == "bold" and page.locator(".answer .typed").first.is_hidden()
    page.keyboard.press("v")
    assert page.locator(".answer .typed").first.is_visible()
    shot(page, f"item-{size[0]}")
    page.get_by_label("Comment (owners").fill("check this v")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_selector("#log li")
    assert "check this v" in page.locator("#log li").inner_text() and "UTC" not in page.locator("#log li").inner_text()
    page.locator("details.correct summary").focus()
    page.keyboard.press("Enter")
    answer = page.locator("textarea[name='answer.0']")
    assert answer.input_value() == "one\ntwo  **bold**"
    answer.fill("one\ntwo\nthree")
    page.locator("details.correct input[name=reason]").fill("a line was missing")
    shot(page, f"correct-{size[0]}")
    page.keyboard.press("Enter")
    page.wait_for_url(lambda url: "/manage/item?id=" in url and uid not in url)
    assert "Replaces" in page.locator("#log").inner_text()
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
    assert here.store.item(uid).summary.states == ("retired",)
