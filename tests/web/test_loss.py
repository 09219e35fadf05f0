"""What the screen shows is what is stored: random keys and clicks in several tabs, over a connection that fails.

Pairs and rankings come in turn. The connection loses requests and replies, answers with errors and with somebody else's
pages, delivers requests twice, and holds them back until later. Sessions end, and somebody signs in again in another
tab. Tabs go back and forward. Afterwards the connection is good again. Nobody reloads anything, and every tab must show
what is stored and be able to go on.
"""

import json
import os
import random
import time
from typing import Any

import pytest
from sqlalchemy import select

from trimtab.storage.schema import events, items, judgements, sessions

from .kit import PASSWORD, World
from .live import Server, join

pytestmark = pytest.mark.timeout(600)
SEEDS = range(int(os.environ.get("TRIMTAB_BROWSER_SEEDS", "4")))
STEPS = 40
RARE = ("submit", "skip", "release", "tab", "close", "reload", "change", "back", "forward", "expire")

WATCH = """
window.shown = () => {
  const task = document.getElementById('task');
  if (task?.dataset.state !== 'task') return null;
  const rows = [...document.querySelectorAll('fieldset.row')];
  const checked = rows.map(row => row.querySelector('input:checked')?.dataset);
  return {
    item: task.dataset.item, version: task.dataset.version, complete: checked.every(Boolean),
    said: checked.map(d => d ? [d.ranks ?? d.rank, d.strength] : null),
    locked: document.querySelector('.choices').inert,
  };
};
const report = verdict => {
  const s = window.shown();
  if (s && !s.locked) window.record(JSON.stringify({ ...s, verdict }));
};
window.addEventListener('keydown', e => {
  if (e.target.matches('textarea')) return;
  if (e.key === 'Enter') report('judged');
  if (e.key === 's') report('skip');
}, true);
window.addEventListener('click', e => { if (e.target.closest('[data-act=submit]')) report('judged'); }, true);
"""


CLICK_OPTION = "n => document.querySelectorAll('.choices:not([inert]) label.option')[n]?.click()"
CHOOSE_IN_TURN = """
[...document.querySelectorAll('fieldset.row')].forEach((row, n) => row.querySelectorAll('label.option')[n].click())
"""
IDLE = "!document.querySelector('#work.busy')"


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


def until(tab: Any, condition: str, seconds: float = 120.0) -> None:
    """Wait for a condition in a tab; the pages' own policy forbids Playwright's way of doing so."""
    deadline = time.monotonic() + seconds
    while not tab.evaluate(condition):
        assert time.monotonic() < deadline, condition
        tab.wait_for_timeout(100)


def stored(here: World) -> dict[str, tuple[int, str, Any]]:
    """By item: version, verdict, and what was said of the only criterion, of everybody's current word."""
    query = select(judgements.c.seq, judgements.c.verdict, items.c.uid, events.c.body).select_from(judgements)
    query = query.join(events, events.c.seq == judgements.c.seq).join(items, items.c.id == judgements.c.item_id)
    with here.database.read() as c:
        return {row.uid: (row.seq, row.verdict, said_in(row.body)) for row in c.execute(query)}


def every_event(here: World) -> set[tuple[str, str, Any]]:
    """(item, verdict, said) of every form that was ever stored."""
    query = select(items.c.uid, events.c.body).join(items, items.c.id == events.c.item_id)
    with here.database.read() as c:
        rows = c.execute(query.where(events.c.kind.in_(("judgement", "late")))).all()
    return {(row.uid, json.loads(row.body)["verdict"], said_in(row.body)) for row in rows}


def said_in(body: str) -> Any:
    answers = json.loads(body).get("answers") or []
    return (tuple(answers[0]["ranks"]), round(answers[0].get("strength") or 0, 3)) if answers else None


def said_on(screen: dict[str, Any]) -> Any:
    """What the rows of a form say, as it is stored: of a pair one row, of a ranking one for each answer."""
    if None in screen["said"]:
        return None
    ranks = [int(rank) for shown, _ in screen["said"] for rank in shown.split(",")]
    levels = sorted(set(ranks))
    return tuple(map(levels.index, ranks)), round(float(screen["said"][0][1] or 0), 3)


def sign_in(tab: Any) -> None:
    """Sign in again, in a tab that is closed afterwards."""
    tab.goto("/signin")
    tab.locator("input[name=name]").fill("Robin")
    tab.locator("input[type=password]").fill(PASSWORD)
    tab.keyboard.press("Enter")
    tab.wait_for_url("**/work")
    tab.close()


@pytest.mark.parametrize("seed", SEEDS)
def test_the_screen_shows_what_is_stored(chromium, server: Server, here: World, seed: int):
    rng = random.Random(seed)
    here.configure(overlap=1, gold_every=0)
    for number in range(6):  # pairs and rankings in turn
        here.pairs(1, prompt=f"pair {number}")
        here.add({"prompt": f"ranking {number}", "answers": [f"one {number}", f"two {number}", f"three {number}"]})
    context = chromium.new_context(viewport={"width": 1280, "height": 800}, base_url=server.url)
    network, recorded, problems = Network(rng), [], []
    context.expose_binding("record", lambda _, text: recorded.append(json.loads(text)))
    context.add_init_script(WATCH)
    context.route("**/work/submit", network)
    context.route("**/work/undo", network)
    context.route("**/work/next*", network)

    def open_tab() -> Any:
        tab = context.new_page()
        tab.set_default_timeout(60_000)
        tab.on("pageerror", lambda error: problems.append(str(error)))
        tabs.append(tab)
        return tab

    tabs: list[Any] = []
    join(open_tab(), here)
    frozen: dict[int, Any] = {}
    signed_in = True
    for _ in range(STEPS):
        tab = rng.choice(tabs)
        act = rng.choice([*["digit", "enter"] * 5, *["click", "undo", "bad", "good"] * 2, *RARE])
        if act == "digit":
            tab.keyboard.press(str(rng.randint(1, 7)))
        elif act == "enter":
            tab.keyboard.press("Enter")
        elif act == "click":
            tab.evaluate(CLICK_OPTION, rng.randrange(9))
        elif act == "submit":
            tab.evaluate("document.querySelector('.actions:not([inert]) [data-act=submit]')?.click()")
        elif act in ("skip", "undo"):
            tab.keyboard.press({"skip": "s", "undo": "z"}[act])
        elif act in ("bad", "good"):
            network.good = act == "good"
        elif act == "release":
            network.release()
        elif act == "tab" and len(tabs) < 3:
            open_tab().goto("/work")
        elif act == "close" and len(tabs) > 1:
            tabs.remove(tab)
            frozen.pop(id(tab), None)
            tab.close()
        elif act == "reload":
            frozen.pop(id(tab), None)
            tab.goto("/work")
        elif act == "change":
            done = stored(here)
            if done:
                frozen.pop(id(tab), None)
                tab.goto(f"/work?change={rng.choice(sorted(done.values()))[0]}")
        elif act in ("back", "forward"):
            frozen.pop(id(tab), None)
            if act == "back":
                tab.go_back()
            else:
                tab.go_forward()
            if not tab.url.startswith(f"{server.url}/work"):
                tab.goto("/work")
        elif act == "expire":
            with here.database.write() as c:
                c.execute(sessions.delete())
            signed_in = False
        if not signed_in and (rng.random() < 0.3 or any("/signin" in t.url for t in tabs)):
            sign_in(context.new_page())
            signed_in = True
            for t in tabs:
                if "/signin" in t.url:
                    frozen.pop(id(t), None)
                    t.goto("/work")
        for t in tabs:  # a form that waits does not change on the screen
            screen = t.evaluate("window.shown?.()")
            busy = t.evaluate("document.getElementById('work')?.classList.contains('busy')")
            if screen and screen["locked"] and busy:
                key = (screen["item"], screen["version"])
                before = frozen.setdefault(id(t), (key, screen["said"]))
                if before[0] == key:
                    assert before[1] == screen["said"], (seed, screen)
                else:
                    frozen[id(t)] = (key, screen["said"])
            else:
                frozen.pop(id(t), None)

    network.good = True
    network.release()
    if not signed_in:
        sign_in(context.new_page())
    for tab in tabs:
        tab.evaluate("window.dispatchEvent(new Event('online'))")
    for tab in tabs:  # nobody reloads anything
        until(tab, IDLE)
    until(tabs[0], "!Object.keys(localStorage).some(k => k.includes('/pending/'))")
    tabs[0].wait_for_timeout(1500)  # what tabs tell each other
    for tab in tabs:
        until(tab, IDLE)
    said = {(r["item"], r["verdict"], said_on(r) if r["verdict"] == "judged" else None) for r in recorded}
    assert every_event(here) <= said, seed  # nothing is stored that did not stand on a screen when it was sent
    for number, tab in enumerate(tabs):
        done, screen = stored(here), tab.evaluate("window.shown()")
        assert tab.locator("#count").inner_text() == str(len(done)), (seed, number)
        if screen is None:
            continue
        if screen["version"] == "":
            assert screen["item"] not in done, (seed, number, "shown as open, but stored")
        else:
            version, verdict, words = done[screen["item"]]
            assert screen["version"] == str(version), (seed, number)
            drafts = tab.evaluate("i => Object.keys(localStorage).some(k => k.endsWith('/draft/' + i))", screen["item"])
            if verdict == "judged" and not drafts:
                assert said_on(screen) == words, (seed, number)
    for number, tab in enumerate(tabs):  # every tab can go on
        tab.bring_to_front()
        screen = tab.evaluate("window.shown()")
        if screen is None:
            continue
        if len(screen["said"]) > 1:
            tab.evaluate(CHOOSE_IN_TURN)
        else:
            tab.keyboard.press("6")
        tab.keyboard.press("Enter")
        words = ((0, 1, 2), 0) if len(screen["said"]) > 1 else ((1, 0), 0.667)
        deadline = time.monotonic() + 60
        while stored(here).get(screen["item"], ())[1:] != ("judged", words):
            assert time.monotonic() < deadline, (seed, number, tab.locator("#status").inner_text())
            tab.wait_for_timeout(100)
        tab.wait_for_timeout(500)
    context.close()
    assert problems == []
