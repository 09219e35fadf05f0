"""What the screen shows is what is stored: random keys and clicks in several tabs, over a connection that fails.

Three projects: pairs and rankings; every kind of task, with two criteria, comments, rewrites and a training item; and
an adjudicator's work on such items. The connection loses requests and replies, answers with errors and with somebody
else's pages, delivers requests twice, and holds them back until later. Sessions end, and somebody signs in again in
another tab. Tabs go back and forward. Afterwards the connection is good again. Nobody reloads anything, and every tab
must show what is stored and be able to go on.
"""

import json
import os
import random
import time
from typing import Any

import pytest
from sqlalchemy import select

from trimtab.errors import ConflictError
from trimtab.storage.form import Form
from trimtab.storage.labels import Assignment
from trimtab.storage.schema import events, items, judgements, people, sessions

from .kit import PASSWORD, World
from .live import Server, join

pytestmark = pytest.mark.timeout(600)
KINDS = ("plain", "everything", "adjudication")
SEEDS = range(1)
MORE_SEEDS = range(1, int(os.environ.get("TRIMTAB_BROWSER_SEEDS", "12")))
STEPS = 45
OFTEN = ("digit", "digit", "digit", "enter", "enter", "fill", "fill")
SOMETIMES = ("click", "undo", "bad", "good", "comment", "rewrite", "escape", "arrow")
RARE = (
    "submit", "skip", "unsure", "flag", "release", "tab", "close", "reload", "change", "back", "forward", "expire",
    "board", "from", "control-enter", "auto", "raw", "other",
)  # fmt: skip

WATCH = """
window.shown = () => {
  const task = document.getElementById('task'), form = document.getElementById('form');
  if (task?.dataset.state !== 'task') return null;
  const rows = [...form.querySelectorAll('fieldset.row')].map(row => {
    const input = row.querySelector('input:checked');
    return { ...row.dataset, chosen: input ? { ...input.dataset } : null };
  });
  const rewrite = form.elements.rewrite;
  return {
    item: task.dataset.item, version: task.dataset.version, rows,
    comment: form.elements.comment.value, reason: form.elements.reason?.value ?? '',
    rewrite: rewrite?.value.trim() ? { of: rewrite.dataset.of ?? null, text: rewrite.value } : null,
    raw: [...document.querySelectorAll('.answer textarea.raw')].map(text => text.value),
    locked: form.querySelector('.choices').inert, reading: form.querySelector('.feedback') !== null,
  };
};
const report = (verdict, sent = false) => {
  const s = window.shown();
  if (s && (sent || !s.locked)) window.record(JSON.stringify({ ...s, verdict }));
};
window.addEventListener('keydown', e => {
  const typing = e.target.matches('textarea, select');
  if (e.key === 'Enter' && (!typing || e.ctrlKey)) report('judged');
  if (!typing && e.key === 's') report('skip');
  if (!typing && e.key === 'n') report('unsure');
}, true);
const VERDICTS = { submit: 'judged', skip: 'skip', unsure: 'unsure', 'send-flag': 'flag' };
window.addEventListener('click', e => {
  const verdict = VERDICTS[e.target.closest('[data-act]')?.dataset.act];
  if (verdict) report(verdict);
}, true);
for (const kind of ['keydown', 'click']) { // one choice submits, where somebody set that
  window.addEventListener(kind, () => { if (document.getElementById('auto-on')?.checked) report('judged', true); });
}
"""


CLICK_OPTION = "n => document.querySelectorAll('.choices:not([inert]) label.option')[n]?.click()"
CHOOSE_EACH = """numbers => {
  if (document.querySelector('.choices')?.inert) return;
  [...document.querySelectorAll('fieldset.row')].forEach((row, n) => {
    const options = row.querySelectorAll('label.option');
    options[numbers[n % numbers.length] % options.length].click();
  });
}"""
CLICK = "act => document.querySelector(`:is(.actions, .choices):not([inert]) [data-act=${act}]`)?.click()"
IDLE = "!document.querySelector('#work.busy')"
NOTHING_WAITS = "!Object.keys(localStorage).some(k => k.includes('/pending/'))"
ROUND = [
    {"prompt": "pair", "answers": ["yes", "no"]},
    {"prompt": "ranking", "answers": ["one", "two", "three"]},
    {"prompt": "thumb", "answers": ["fine"], "kind": "thumbs"},
    {"prompt": "steps", "kind": "steps", "steps": ["first", "second", "third"]},
]
TWO_CRITERIA = ({"name": "overall"}, {"name": "clear", "kind": "scale", "points": 3})


class Network:
    """What becomes of each request between the pages and the server."""

    def __init__(self, rng: random.Random) -> None:
        self.rng, self.good, self.held = rng, True, []

    def __call__(self, route: Any) -> None:
        fate = "pass" if self.good else self.rng.choice(
            ["pass", "pass", "lost", "reply lost", "error", "portal", "gateway", "twice", "late", "late"]
        )  # fmt: skip
        if fate == "pass":
            route.continue_()
        elif fate == "lost":
            route.abort()
        elif fate == "reply lost":
            route.fetch()
            route.abort()
        elif fate == "error":
            route.fulfill(status=500, json={"detail": "something broke"})
        elif fate == "portal":
            route.fulfill(status=200, content_type="text/html", body="<h1>Welcome to our hotel</h1>")
        elif fate == "gateway":
            route.fulfill(status=502, content_type="text/html", body="<h1>Bad gateway</h1>")
        elif fate == "twice":
            route.fetch()
            route.fulfill(response=route.fetch())
        else:
            self.held.append(route)

    def release(self) -> None:
        held, self.held = self.held, []
        self.rng.shuffle(held)
        for route in held:
            route.continue_()


def look(tab: Any, expression: str, argument: Any = None) -> Any:
    """Evaluate in a tab, again where it was just leaving its page."""
    error_kind = pytest.importorskip("playwright.sync_api").Error
    for _ in range(20):
        try:
            return tab.evaluate(expression, argument)
        except error_kind as error:
            if "context was destroyed" not in str(error) and "navigation" not in str(error):
                raise
            tab.wait_for_load_state()
    raise AssertionError(f"{tab.url} leaves its page again and again")


def until(tab: Any, condition: str, seconds: float = 120.0) -> None:
    """Wait for a condition in a tab; the pages' own policy forbids Playwright's way of doing so."""
    deadline = time.monotonic() + seconds
    while not look(tab, condition):
        assert time.monotonic() < deadline, condition
        tab.wait_for_timeout(100)


def stored(here: World) -> dict[str, tuple[int, str, Any]]:
    """By item: version, verdict, and the content of Robin's current judgement."""
    query = select(judgements.c.seq, judgements.c.verdict, items.c.uid, events.c.body).select_from(judgements)
    query = query.join(events, events.c.seq == judgements.c.seq).join(items, items.c.id == judgements.c.item_id)
    query = query.join(people, people.c.id == judgements.c.person_id).where(people.c.name == "Robin")
    with here.database.read() as c:
        return {row.uid: (row.seq, row.verdict, content_of(json.loads(row.body))) for row in c.execute(query)}


def every_event(here: World) -> set[tuple[str, str, Any]]:
    """(item, verdict, content) of every form of Robin's that was ever stored."""
    query = select(items.c.uid, events.c.body).join(items, items.c.id == events.c.item_id)
    query = query.join(people, people.c.id == events.c.person_id).where(people.c.name == "Robin")
    with here.database.read() as c:
        rows = c.execute(query.where(events.c.kind.in_(("judgement", "late", "adjudication")))).all()
    bodies = [(row.uid, json.loads(row.body)) for row in rows]
    return {(uid, body["verdict"], content_of(body)) for uid, body in bodies}


def content_of(body: dict[str, Any]) -> Any:
    """What a stored judgement says."""
    remark = body.get("comment", "")
    if body["verdict"] != "judged":
        return body.get("reason", ""), remark
    answers = []
    for answer in body.get("answers") or []:
        numbers = answer.get("ranks") or answer.get("scores")
        answers.append((answer.get("criterion", "overall"), tuple(numbers), round(answer.get("strength") or 0, 3)))
    rewrite = body.get("rewrite")
    better = (rewrite.get("of", 0), rewrite["text"]) if rewrite else None
    single = (body.get("good"), body.get("first_wrong"), body.get("reason", ""))
    return tuple(sorted(answers)), single, better, remark


def content_on(screen: dict[str, Any], verdict: str = "judged") -> Any:
    """What a form on the screen says, as it is stored; None: a choice is missing."""
    if verdict != "judged":
        return screen["reason"] if verdict == "flag" else "", screen["comment"]
    if any(row["chosen"] is None for row in screen["rows"]):
        return None
    numbers: dict[str, list[int]] = {}
    strengths: dict[str, float] = {}
    ranked: list[str] = []
    good, first_wrong, reason, best = None, None, "", 0
    for row in screen["rows"]:
        name, chosen = row["criterion"], row["chosen"]
        if row["type"] == "pair":
            numbers[name] = [int(rank) for rank in chosen["ranks"].split(",")]
            strengths[name] = float(chosen["strength"] or 0)
            ranked.append(name)
        elif row["type"] == "rank":
            numbers.setdefault(name, []).append(int(chosen["rank"]))
            ranked.append(name)
        elif row["type"] == "scale":
            numbers.setdefault(name, []).append(int(chosen["score"]))
        elif row["type"] == "thumb":
            good = chosen["good"] == "true"
        elif row["type"] == "step":
            first_wrong = int(chosen["step"]) if chosen["step"] else None
        else:
            reason = chosen["cause"]
    for name in dict.fromkeys(ranked):
        levels = sorted(set(numbers[name]))
        numbers[name] = [levels.index(rank) for rank in numbers[name]]
    if ranked:
        best = numbers[ranked[0]].index(0)
    answers = tuple(sorted((name, tuple(n), round(strengths.get(name, 0), 3)) for name, n in numbers.items()))
    rewrite, better = screen["rewrite"], None
    if rewrite:
        of = best if rewrite["of"] is None else int(rewrite["of"])
        better = None if rewrite["text"] == screen["raw"][of] else (of, rewrite["text"])
    return answers, (good, first_wrong, reason), better, screen["comment"]


def sign_in(tab: Any) -> None:
    """Sign in again, in a tab that is closed afterwards."""
    tab.goto("/signin")
    tab.locator("input[name=name]").fill("Robin")
    tab.locator("input[type=password]").fill(PASSWORD)
    tab.keyboard.press("Enter")
    tab.wait_for_url("**/work")
    tab.close()


def fill_project(here: World, kind: str) -> list[str]:
    """Add the items; returns those that are not counted as work."""
    if kind == "plain":
        here.configure(overlap=1, gold_every=0)
        for number in range(6):
            here.add(*({**row, "prompt": f"{row['prompt']} {number}"} for row in ROUND[:2]))
        return []
    here.configure(
        overlap=1 if kind == "everything" else 2, gold_every=0, rewrite=True, criteria=TWO_CRITERIA,
    )  # fmt: skip
    uids = [uid for n in range(3) for uid in here.add(*({**row, "prompt": f"{row['prompt']} {n}"} for row in ROUND))]
    if kind == "everything":
        check = {"role": "training", "ranks": [0, 1], "explanation": "**Yes** is right."}
        return here.add({"prompt": "training", "answers": ["yes", "no"], "check": check})
    for number, name in enumerate(("Ann", "Ben")):  # who contradict each other everywhere
        person = here.join(name).id
        while isinstance(item := here.store.next(person), Assignment):
            here.store.submit(person, decided(item, f"{name}-{item.task.id}", number))
    assert len(here.store.disputed()) == len(uids)
    return []


def decided(item: Assignment, key: str, number: int) -> Form:
    """One of two opposite judgements of an item."""
    task, count = item.task, len(item.task.completions)
    form: dict[str, Any] = {"item": task.id, "key": key}
    if task.kind == "compare":
        ranks = [rank if number else count - 1 - rank for rank in item.shown_order]
        scores = {"criterion": "clear", "scores": [1 + number] * count}
        form["answers"] = [{"criterion": "overall", "ranks": ranks}, scores]
    elif task.kind == "thumbs":
        form["good"] = bool(number)
    elif number:
        form["first_wrong"] = 1
    return Form.model_validate(form)


class Tabs:
    """Everything in front of Robin: the tabs, and what they reported."""

    def __init__(self, chromium: Any, server: Server, here: World, kind: str, rng: random.Random) -> None:
        self.here, self.rng, self.adjudicates = here, rng, kind == "adjudication"
        self.other = here.join("Other adjudicator", "adjudicator").id if self.adjudicates else 0
        self.uids = [task.id for _, task in here.store.tasks()]
        self.context = chromium.new_context(viewport={"width": 1280, "height": 800}, base_url=server.url)
        self.network, self.recorded, self.problems = Network(rng), [], []
        self.context.expose_binding("record", lambda _, text: self.recorded.append(json.loads(text)))
        self.context.add_init_script(WATCH)
        for path in ("work/submit", "work/undo", "work/next*", "adjudicate/submit", "adjudicate/task*"):
            self.context.route(f"**/{path}", self.network)
        self.tabs: list[Any] = []
        self.frozen: dict[int, Any] = {}
        self.signed_in = True
        join(self.open(), here, "adjudicator" if self.adjudicates else "annotator")
        if self.adjudicates:
            self.goto(self.tabs[0])

    def open(self) -> Any:
        tab = self.context.new_page()
        tab.set_default_timeout(60_000)
        tab.on("pageerror", lambda error: self.problems.append(str(error)))
        self.tabs.append(tab)
        return tab

    def goto(self, tab: Any, path: str | None = None) -> None:
        """Open a page; without ``path`` the work, for an adjudicator a random item that they may decide."""
        self.frozen.pop(id(tab), None)
        if path is None and self.adjudicates:
            free = [task.id for task, _ in self.here.store.disputed()] + list(stored(self.here))
            path = f"/adjudicate/item?id={self.rng.choice(free)}" if free else "/adjudicate"
        tab.goto(path or "/work")

    def act(self, act: str, tab: Any) -> None:
        rng, keyboard = self.rng, tab.keyboard
        keys = {"enter": "Enter", "skip": "s", "unsure": "n", "undo": "z", "escape": "Escape", "raw": "v"}
        if act in keys:
            keyboard.press(keys[act])
        elif act == "digit":
            keyboard.press(str(rng.randint(0, 7)))
        elif act == "arrow":
            keyboard.press(rng.choice(["ArrowUp", "ArrowDown"]))
        elif act == "control-enter":
            keyboard.press("Control+Enter")
        elif act == "click":
            look(tab, CLICK_OPTION, rng.randrange(12))
        elif act == "fill":
            look(tab, CHOOSE_EACH, [rng.randrange(12) for _ in range(5)])
        elif act in ("comment", "rewrite"):
            keyboard.press("c" if act == "comment" else "r")
            keyboard.type(rng.choice(["ab", "x", " ", "wz"]))
            if rng.random() < 0.2:
                keyboard.press("Control+a")
                keyboard.press("Delete")
            if rng.random() < 0.7:
                keyboard.press("Escape")
        elif act == "from":
            look(tab, CLICK, "rewrite-from")
        elif act == "submit":
            look(tab, CLICK, "submit")
        elif act == "flag":
            look(tab, CLICK, "flag")
            look(tab, CLICK, rng.choice(["send-flag", "cancel-flag"]))
        elif act == "board":
            look(tab, "() => { const box = document.querySelector('.by-hand'); if (box) box.open = true; }")
            look(tab, "() => document.querySelector('.choices:not([inert]) .chip')?.focus()")
            keyboard.press(rng.choice(["ArrowRight", "ArrowLeft"]))
        elif act == "auto":
            look(tab, "() => document.getElementById('auto-on')?.click()")
        elif act in ("bad", "good"):
            self.network.good = act == "good"
        elif act == "release":
            self.network.release()
        elif act == "other" and self.adjudicates:
            self.decide_elsewhere()
        else:
            self.navigate(act, tab)

    def navigate(self, act: str, tab: Any) -> None:
        if act == "tab" and len(self.tabs) < 3:
            self.goto(self.open())
        elif act == "close" and len(self.tabs) > 1:
            self.tabs.remove(tab)
            self.frozen.pop(id(tab), None)
            tab.close()
        elif act == "reload":
            self.goto(tab, None if self.adjudicates else "/work")
        elif act == "change" and (done := stored(self.here)):
            uid = self.rng.choice(sorted(done))
            self.goto(tab, f"/adjudicate/item?id={uid}" if self.adjudicates else f"/work?change={done[uid][0]}")
        elif act in ("back", "forward"):
            self.frozen.pop(id(tab), None)
            if act == "back":
                tab.go_back()
            else:
                tab.go_forward()
            if not look(tab, "document.getElementById('work') !== null"):
                self.goto(tab)
        elif act == "expire":
            with self.here.database.write() as c:
                c.execute(sessions.delete())
            self.signed_in = False

    def decide_elsewhere(self) -> None:
        """Another adjudicator settles an item, whoever looks at it."""
        waiting = self.here.store.disputed()
        if not waiting:
            return
        uid = self.rng.choice(waiting)[0].id
        try:
            item, _ = self.here.store.dispute(uid, self.other)
            self.here.store.adjudicate(self.other, decided(item, f"other-{uid}", 1))
        except ConflictError:
            return

    def sign_in_again(self) -> None:
        if self.signed_in or not (self.rng.random() < 0.3 or any("/signin" in t.url for t in self.tabs)):
            return
        sign_in(self.context.new_page())
        self.signed_in = True
        for tab in self.tabs:
            if "/signin" in tab.url:
                self.goto(tab)

    def check_waiting_forms(self) -> None:
        """A form that waits does not change on the screen."""
        for tab in self.tabs:
            screen = look(tab, "window.shown?.()")
            busy = look(tab, "document.getElementById('work')?.classList.contains('busy')")
            if not (screen and screen["locked"] and busy):
                self.frozen.pop(id(tab), None)
                continue
            key = (screen["item"], screen["version"])
            now = (key, screen["rows"], screen["comment"], screen["rewrite"])
            before = self.frozen.setdefault(id(tab), now)
            assert before[0] != key or before == now, screen
            self.frozen[id(tab)] = now

    def come_to_rest(self) -> None:
        """The connection is good again; nobody reloads anything."""
        self.network.good = True
        self.network.release()
        if not self.signed_in:
            sign_in(self.context.new_page())
        for tab in self.tabs:
            if "/signin" in tab.url:
                self.goto(tab)
        if self.adjudicates and not any(look(t, "document.getElementById('work') !== null") for t in self.tabs):
            self.goto(self.open())  # the list of items sends nothing
        for tab in self.tabs:
            look(tab, "() => { window.dispatchEvent(new Event('online')); }")
        for tab in self.tabs:
            until(tab, IDLE)
        until(self.tabs[0], NOTHING_WAITS)
        self.tabs[0].wait_for_timeout(1500)  # what tabs tell each other
        for tab in self.tabs:
            until(tab, IDLE)
            if (look(tab, "window.shown?.()") or {}).get("reading"):
                tab.bring_to_front()
                look(tab, "() => document.querySelector('[data-act=go-on]').click()")

    def check_screens(self, uncounted: list[str]) -> None:
        for number, tab in enumerate(self.tabs):
            done, screen = stored(self.here), look(tab, "window.shown?.()")
            if not self.adjudicates:
                counted = len(done.keys() - uncounted)
                assert tab.locator("#count").inner_text() == str(counted), number
                assert int(look(tab, "document.getElementById('of').textContent.match(/\\d+/)[0]")) >= counted
            if screen is None:
                continue
            if screen["version"] == "":
                assert screen["item"] not in done, (number, "shown as open, but stored")
                continue
            version, verdict, content = done[screen["item"]]
            assert screen["version"] == str(version), number
            drafts = look(tab, "i => Object.keys(localStorage).some(k => k.endsWith('/draft/' + i))", screen["item"])
            if verdict == "judged" and not drafts:
                assert content_on(screen) == content, number

    def check_all_go_on(self) -> None:
        """Every tab can store a judgement."""
        for number, tab in enumerate(self.tabs):
            tab.bring_to_front()
            look(tab, "() => { const box = document.getElementById('auto-on'); if (box?.checked) box.click(); }")
            look(tab, "() => document.activeElement?.blur()")
            screen = look(tab, "window.shown?.()")
            if screen is None:
                continue
            look(tab, CHOOSE_EACH, [number, number + 1])
            screen = look(tab, "window.shown()")
            content = content_on(screen)
            look(tab, CLICK, "submit")
            settled = "document.getElementById('task')?.dataset.state === 'settled'"
            deadline = time.monotonic() + 60
            while stored(self.here).get(screen["item"], ())[1:] != ("judged", content):
                if self.adjudicates and look(tab, settled):  # by the other adjudicator
                    break
                assert time.monotonic() < deadline, (number, tab.locator("#status").inner_text())
                tab.wait_for_timeout(100)
            tab.wait_for_timeout(500)


@pytest.mark.parametrize(
    "kind", [pytest.param("plain", marks=pytest.mark.slow), *KINDS[1:]]
)  # the other kinds cover this one
@pytest.mark.parametrize("seed", [*SEEDS, *(pytest.param(n, marks=pytest.mark.slow) for n in MORE_SEEDS)])
def test_the_screen_shows_what_is_stored(chromium, server: Server, here: World, kind: str, seed: int):
    rng = random.Random(f"{kind}/{seed}")
    uncounted = fill_project(here, kind)
    robin = Tabs(chromium, server, here, kind, rng)
    for _ in range(STEPS):
        robin.act(rng.choice([*OFTEN * 4, *SOMETIMES * 2, *RARE]), rng.choice(robin.tabs))
        robin.sign_in_again()
        robin.check_waiting_forms()
        for tab in robin.tabs:
            if robin.adjudicates and tab.url.endswith("/adjudicate"):
                robin.goto(tab)
    robin.come_to_rest()
    verdicts = {(r["item"], r["verdict"], content_on(r, r["verdict"])) for r in robin.recorded}
    assert every_event(here) <= verdicts  # nothing is stored that did not stand on a screen when it was sent
    robin.check_screens(uncounted)
    robin.check_all_go_on()
    robin.context.close()
    assert robin.problems == []
