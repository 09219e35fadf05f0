"""A person's whole work in a real browser: Debian's chromium, driven by Playwright."""

import re
from typing import Any

import pytest

from trimtab.storage.form import Form

from .kit import World, judge
from .live import Server, join, shot

expect = pytest.importorskip("playwright.sync_api", reason="NOT TESTED: the pages in a browser; no playwright").expect
pytestmark = pytest.mark.timeout(240)


RICH = (
    "It depends on the *size* of the boat:\n\n1. Loosen the **tab screw**\n2. Turn it by 2°\n\n"
    "```python\ndef trim(angle):\n    return angle - 2  # degrees\n```\n\n| speed | tab |\n|---|---|\n| 5 kn | 2° |\n"
)
PLAIN = "Just push the rudder harder. See [the manual](http://example.org/manual) or ![x](http://example.org/x.png)."


def test_a_persons_whole_work_by_keyboard(page, server: Server, here: World):
    here.configure(title="Boat answers", overlap=1, gold_every=0, rewrite=True)
    here.store.set_guideline("# Guidelines\n\nPrefer answers that are **true**, then those that help.")
    turns = [
        {"role": "user", "content": "My boat pulls to the left."},
        {"role": "assistant", "content": "That is what a trim tab is for. Is it fast?"},
        {"role": "user", "content": "Yes. How do I set the tab?"},
    ]
    here.add({"prompt": turns, "answers": [RICH, PLAIN]})
    here.pairs(3)
    join(page, here)
    assert page.locator(".answer").count() == 2
    assert page.locator(".answer a, .answer img").count() == 0
    shot(page, "pair-light")
    page.keyboard.press("?")
    assert page.locator("#help").is_visible()
    shot(page, "help")
    page.keyboard.press("Escape")
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_contain_text("missing")
    page.keyboard.press("2")
    page.keyboard.press("r")
    editor = page.locator("textarea[name=rewrite]")
    expect(editor).to_be_focused()
    started = editor.input_value()
    assert started in (RICH, PLAIN)
    page.keyboard.type("Better. ")
    page.keyboard.press("Escape")
    page.keyboard.press("c")
    page.keyboard.type("close call")
    shot(page, "pair-rewrite")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#status")).to_have_text("Saved.")
    [(_, said)] = here.store.submissions()
    assert said.comment == "close call" and said.rewrite and "Better." in said.rewrite.text
    assert said.answers[0].ranks == (0, 1) and said.answers[0].strength == pytest.approx(2 / 3, abs=1e-3)
    assert said.rewrite.of == 0 and said.seconds is not None

    # undo, and the judgement comes back as it was
    page.keyboard.press("z")
    expect(page.locator("#status")).to_have_text("Taken back.")
    expect(page.locator("#count")).to_have_text("0")
    assert page.locator("textarea[name=comment]").input_value() == "close call"
    assert page.locator("#form input:checked").get_attribute("data-ranks") == "0,1"
    page.keyboard.press("7")
    page.keyboard.press("Enter")
    expect(page.locator("#count")).to_have_text("1")
    assert here.store.submissions()[0][1].answers[0].strength == 1.0

    # a draft survives a reload
    page.keyboard.press("c")
    page.keyboard.type("half a thought")
    page.reload()
    assert page.locator("textarea[name=comment]").input_value() == "half a thought"

    # the connection goes in the middle, and comes back
    server.stop()
    page.keyboard.press("4")
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_contain_text("No connection")
    shot(page, "offline")
    assert len(here.store.submissions()) == 1
    server.start()
    expect(page.locator("#status")).to_contain_text("your answer was saved", timeout=30_000)
    assert [s.comment for _, s in here.store.submissions()][-1] == "half a thought"

    # flag one, skip one, and it is finished
    page.keyboard.press("f")
    page.keyboard.press("ArrowDown")
    page.locator("[data-act=send-flag]").press("Enter")
    expect(page.locator("#count")).to_have_text("3")
    page.keyboard.press("s")
    expect(page.locator(".nothing h1")).to_have_text("Nothing left for you right now.")
    shot(page, "finished")
    assert [s.verdict for _, s in here.store.submissions()] == ["judged", "judged", "flag", "skip"]
    page.goto("/history")
    shot(page, "history")
    page.locator("tbody a").last.click()
    expect(page.locator(".notice")).to_be_visible()
    page.keyboard.press("1")
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_have_text("Saved.")
    assert len(here.store.submissions()) == 4


def test_a_pending_answer_is_sent_by_the_next_page(page, server: Server, here: World):
    here.pairs(2)
    join(page, here)
    server.stop()
    page.keyboard.press("1")
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_contain_text("No connection")
    server.start()
    page.goto("/work")  # as after closing the browser
    expect(page.locator("#count")).to_have_text("1")
    assert len(here.store.submissions()) == 1


def test_a_page_that_was_overtaken_on_its_way_shows_what_is_stored(page, server: Server, here: World):
    here.configure(overlap=1, gold_every=0)
    here.pairs(2)
    join(page, here)
    first = page.locator("#task").get_attribute("data-item")
    page.keyboard.press("1")
    held: list[Any] = []
    page.route(f"{server.url}/work", lambda route: held.append((route, route.fetch())))
    page.evaluate("() => { setTimeout(() => location.reload(), 0); }")
    while not held:
        page.wait_for_timeout(20)
    page.keyboard.press("Enter")  # the old page is still there
    while not here.store.submissions():
        page.wait_for_timeout(20)
    page.wait_for_timeout(500)  # the reply comes to the old page
    route, answer = held.pop()
    assert first in answer.text()
    route.fulfill(response=answer)
    page.wait_for_load_state()
    expect(page.locator("#count")).to_have_text("1")
    expect(page.locator("#task")).not_to_have_attribute("data-version", "")
    expect(page.locator("#task")).to_have_attribute("data-item", first)  # with what was said of it
    assert page.locator("#form input:checked").get_attribute("data-ranks") == "0,1"


SWALLOWED = """() => {
  const event = new KeyboardEvent("keydown", { key: "ArrowDown", bubbles: true, cancelable: true });
  document.activeElement.dispatchEvent(event);
  return event.defaultPrevented;
}"""


def test_without_storage_in_the_browser(page, server: Server, here: World):
    """Private windows and full disks: what is on the page is sent all the same, also after a break."""
    here.configure(overlap=1, gold_every=0)
    here.pairs(2)
    join(page, here)
    page.add_init_script("Object.defineProperty(window, 'localStorage', { get() { throw new Error('forbidden'); } });")
    page.goto("/work")
    assert page.evaluate("() => { try { return !localStorage; } catch { return true; } }")
    server.stop()
    page.keyboard.press("1")
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_contain_text("No connection")
    page.keyboard.press("7")  # somebody impatient: the form that waits is locked, and sent again
    assert page.locator("#form input:checked").get_attribute("data-ranks") == "0,1"
    page.keyboard.press("Enter")
    server.start()
    expect(page.locator("#count")).to_have_text("1", timeout=30_000)
    [(_, said)] = here.store.submissions()
    assert said.answers[0].ranks == (0, 1)
    page.keyboard.press("1")
    page.keyboard.press("Enter")
    expect(page.locator("#count")).to_have_text("2")


def test_drafts_belong_to_their_items_and_ones_own_words_stay(page, server: Server, here: World):
    here.configure(overlap=1, gold_every=0, rewrite=True)
    here.pairs(3)
    join(page, here)
    page.keyboard.press("1")
    page.keyboard.press("Enter")
    expect(page.locator("#count")).to_have_text("1")
    page.keyboard.press("c")
    page.keyboard.type("half a thought")
    page.goto("/history")
    page.locator("tbody a").first.click()
    page.wait_for_url(re.compile("/work\\?change="))  # a key pressed before the page is there goes to the old one
    page.keyboard.press("7")
    page.keyboard.press("Enter")  # another item is changed in between
    expect(page.locator("#status")).to_have_text(re.compile("Saved|draft"))
    expect(page.locator("textarea[name=comment]")).to_have_value("half a thought")
    page.keyboard.press("1")
    page.keyboard.press("r")
    editor = page.locator("textarea[name=rewrite]")
    page.locator("[data-act=rewrite-from]").nth(1).click()  # untouched: the other answer takes its place
    before = editor.input_value()
    page.keyboard.type("Mine. ")
    page.locator("[data-act=rewrite-from]").nth(0).click()
    expect(page.locator("#status")).to_contain_text("is kept")
    assert sorted(editor.input_value()) == sorted(before + "Mine. ")


def test_words_of_an_older_version_do_not_come_back(page, server: Server, here: World):
    """Stored words belong to their version: they are no draft, and a draft may be that there are none."""
    here.configure(overlap=1, gold_every=0)
    here.pairs(1)
    join(page, here)
    page.keyboard.press("c")
    page.keyboard.type("first")
    page.keyboard.press("Escape")
    page.keyboard.press("1")
    page.keyboard.press("Enter")
    expect(page.locator(".nothing")).to_be_visible()
    path = f"/work?change={here.store.submissions()[0][0]}"
    other = page.context.new_page()
    for tab in (page, other):
        tab.goto(path)
        expect(tab.locator("textarea[name=comment]")).to_have_value("first")
    other.keyboard.press("c")
    other.keyboard.press("Control+a")
    other.keyboard.type("second")
    other.keyboard.press("Control+Enter")
    expect(page.locator("textarea[name=comment]")).to_have_value("second")
    page.keyboard.press("c")
    page.keyboard.press("Control+a")
    page.keyboard.press("Delete")
    page.goto(f"/work?change={here.store.submissions()[0][0]}")
    expect(page.locator("#status")).to_have_text("Your draft was restored.")
    expect(page.locator("textarea[name=comment]")).to_have_value("")
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_have_text("Saved.")
    assert here.store.submissions()[0][1].comment == ""


def disputed_pairs(here: World, count: int) -> list[str]:
    """Pairs on which two people contradict each other."""
    here.configure(overlap=2, gold_every=0)
    uids = here.pairs(count)
    for best, name in enumerate(("Ann", "Ben")):
        person = here.join(name).id
        for turn in range(count):
            here.store.submit(person, judge(here.store.next(person), f"{name}-{turn}", best=best))
    return uids


def test_an_adjudicators_page_shows_what_was_decided(page, server: Server, here: World):
    first, second = disputed_pairs(here, 2)
    join(page, here, "adjudicator", "Alex")
    other = page.context.new_page()
    for tab in (page, other):
        tab.goto(f"/adjudicate/item?id={first}")
    page.keyboard.type("13")  # the better answer, and why people disagree
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/item?id={second}")
    expect(other.locator("#form input:checked")).to_have_count(2)  # another tab shows the decision
    assert other.locator("fieldset.cause input:checked").get_attribute("data-cause") == "values"
    other.locator("fieldset.pair label.option").nth(6).click()
    other.keyboard.press("Enter")
    other.wait_for_url(f"**/item?id={second}")
    [decision] = [s for _, s in here.store.submissions() if s.adjudication]
    assert (decision.answers[0].ranks, decision.answers[0].strength, decision.reason) == ((1, 0), 1.0, "values")
    page.goto(f"/adjudicate/item?id={first}")  # and so does opening it again
    assert page.locator("fieldset.pair input:checked").get_attribute("data-ranks") == "1,0"
    boss = here.join("Other adjudicator", "adjudicator").id
    here.store.adjudicate(boss, judge(here.store.dispute(second, boss)[0], "settled"))
    other.keyboard.type("13")
    other.keyboard.press("Enter")
    expect(other.locator(".nothing h1")).to_have_text("There is nothing to decide here.")
    assert len([s for _, s in here.store.submissions() if s.adjudication]) == 2


def test_a_decision_that_was_not_sent_is_sent_by_the_next_page(page, server: Server, here: World):
    [uid] = disputed_pairs(here, 1)
    join(page, here, "adjudicator", "Alex")
    page.goto(f"/adjudicate/item?id={uid}")
    server.stop()
    page.keyboard.type("13")
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_contain_text("No connection")
    other = page.context.new_page()
    page.close()
    server.start()
    other.goto(f"/adjudicate/item?id={uid}")
    other.wait_for_url("**/adjudicate")
    assert here.store.disputed() == []


def test_arrows_scroll_and_an_adjudicator_has_the_keys_that_apply(page, server: Server, here: World):
    here.configure(overlap=2, gold_every=0)
    [uid, *_] = here.pairs(2)
    me = here.join("me").id
    here.store.next(me)
    here.store.submit(me, Form(item=uid, key="test-key-1", verdict="flag", reason="broken"))
    join(page, here, "adjudicator", "Alex")
    assert page.locator(".answer[tabindex='0']").count() == 2
    page.keyboard.press("1")
    assert page.evaluate(SWALLOWED)  # one row: arrows scroll the answers
    page.locator(".answer").first.focus()
    assert not page.evaluate(SWALLOWED)  # inside an answer they scroll that one
    page.goto(f"/adjudicate/item?id={uid}")
    assert not page.evaluate(SWALLOWED)  # one row, as nobody disagrees: arrows scroll the page
    page.locator("input[type=radio]").first.focus()
    assert not page.evaluate(SWALLOWED)  # among radio buttons they choose
    for letter in "fsn":
        page.keyboard.press(letter)
    expect(page.locator("#status")).to_have_text("")


def test_a_reply_that_was_overtaken_says_nothing_new(page, server: Server, here: World):
    here.configure(overlap=1, gold_every=0)
    here.pairs(2)
    join(page, here)
    held: list[Any] = []
    page.route("**/work/submit", lambda route: held.append((route, route.fetch())))
    page.keyboard.press("6")
    page.keyboard.press("Enter")
    while not held:
        page.wait_for_timeout(20)
    other, third = page.context.new_page(), page.context.new_page()
    for tab in (other, third):  # both at the next item
        tab.goto("/work")
        expect(tab.locator("#count")).to_have_text("1")
    other.keyboard.press("z")
    for tab in (other, third):
        expect(tab.locator("#count")).to_have_text("0")
    other.close()  # it would ask again
    route, answer = held.pop()
    route.fulfill(response=answer)
    expect(page.locator("#status")).to_have_text("Saved.")
    third.wait_for_timeout(300)  # what tabs tell each other
    assert [tab.locator("#count").inner_text() for tab in (page, third)] == ["0", "0"]


def test_ranking_by_dragging_and_by_keys(page, server: Server, here: World):
    here.configure(
        overlap=1, gold_every=0, criteria=({"name": "overall"}, {"name": "clear", "kind": "scale", "points": 3})
    )
    here.add(*({"prompt": f"q{i}", "answers": ["one", "two", "three", "four"]} for i in range(2)))
    join(page, here)
    page.locator(".by-hand summary").click()
    for letter, lane in ((0, 1), (1, 0), (2, 1), (3, 2)):
        chip = page.locator(f"[data-chip='{letter}']").bounding_box()
        goal = page.locator(f".lane[data-rank='{lane}']").bounding_box()
        page.mouse.move(chip["x"] + 5, chip["y"] + 5)
        page.mouse.down()
        page.mouse.move(goal["x"] + goal["width"] / 2, goal["y"] + goal["height"] / 2, steps=4)
        page.mouse.up()
    shot(page, "ranking")
    for row in page.locator("fieldset.row.scale").all():
        row.locator("label").nth(2).click()
    page.locator("[data-act=submit]").click()
    expect(page.locator("#status")).to_have_text("Saved.")
    first, second = here.store.submissions()[0][1].answers
    assert first.ranks == (1, 0, 1, 2) and second.scores == (3, 3, 3, 3)
    page.keyboard.type("11223333")
    page.keyboard.press("Enter")
    expect(page.locator("#count")).to_have_text("2")
    assert here.store.submissions()[1][1].answers[0].ranks == (0, 0, 1, 1)


def test_thumbs_and_steps(page, server: Server, here: World):
    here.configure(overlap=1, gold_every=0)
    here.add(
        {"prompt": "q", "answers": ["fine"], "kind": "thumbs"},
        {"prompt": "What is 2 + 3 · 4?", "kind": "steps", "steps": ["3 · 4 = 12", "2 + 12 = 15", "So it is 15."]},
    )
    join(page, here)
    page.keyboard.press("2")
    page.keyboard.press("Enter")
    expect(page.locator("#count")).to_have_text("1")
    shot(page, "steps")
    here.store.set_guideline("Only **real** mistakes.")
    page.keyboard.press("s")
    expect(page.locator(".nothing")).to_be_visible()
    page.keyboard.press("z")
    expect(page.locator("#guidelines strong")).to_have_text("real")  # new guidelines open beside the task
    page.keyboard.press("2")
    page.keyboard.press("Enter")
    expect(page.locator("#count")).to_have_text("2")
    thumb, steps = (s for _, s in here.store.submissions())
    assert (thumb.good, steps.first_wrong) == (False, 1)


@pytest.mark.parametrize("theme", ["light", "dark", "contrast"])
@pytest.mark.parametrize("width", [390, 1280])
def test_readable_everywhere(page, server: Server, here: World, theme: str, width: int):
    """Text against its ground: 4.5 : 1 (WCAG 2.2, 1.4.3); nothing wider than the screen; targets of 24 px (2.5.8)."""
    here.configure(overlap=1, gold_every=0, rewrite=True)
    here.add({"prompt": "How do I set the tab?", "answers": [RICH, PLAIN]})
    page.set_viewport_size({"width": width, "height": 800})
    page.emulate_media(color_scheme="dark" if theme == "dark" else "light", reduced_motion="reduce")
    join(page, here, "owner", "Olga")
    if theme == "contrast":
        page.evaluate("localStorage.setItem('trimtab/theme', 'contrast')")
    one = f"/manage/item?id={here.store.find()[0][0].task.id}"
    for path in (
        "/work",
        "/manage",
        "/manage/items",
        one,
        "/manage/people",
        "/manage/settings",
        "/profile",
        "/history",
        "/adjudicate",
    ):
        page.goto(path)
        shot(page, f"{theme}-{width}{path.replace('/', '-')}")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path
        assert page.evaluate(POOR_CONTRAST, 7 if theme == "contrast" else 4.5) == [], path
        assert page.evaluate(SMALL_TARGETS) == [], path
        assert page.evaluate(UNNAMED) == [], path


POOR_CONTRAST = """least => {
  const rgb = s => { const m = s.match(/[\\d.]+/g).map(Number); return m.length > 3 ? m : [...m, 1]; };
  const light = c => c.slice(0, 3).map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const ground = el => {
    for (; el; el = el.parentElement) {
      const c = rgb(getComputedStyle(el).backgroundColor);
      if (c[3] === 1) return c;
    }
    return [255, 255, 255, 1];
  };
  const bad = [];
  for (const el of document.querySelectorAll('body *')) {
    const own = [...el.childNodes].some(n => n.nodeType === 3 && n.data.trim());
    if (!own || !el.checkVisibility() || el.closest('.skip, option')) continue;
    const a = light(rgb(getComputedStyle(el).color)), b = light(ground(el));
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    const text = el.textContent.trim().slice(0, 30);
    if (ratio < least) bad.push(`${el.tagName}.${el.className} "${text}" ${ratio.toFixed(2)}`);
  }
  return bad;
}"""
SMALL_TARGETS = """() => [...document.querySelectorAll('button, select, textarea, nav a, label.option')]
  .filter(el => el.checkVisibility())
  .filter(el => el.getBoundingClientRect().height < 24 || el.getBoundingClientRect().width < 24)
  .map(el => el.outerHTML.slice(0, 80))"""
UNNAMED = """() => [...document.querySelectorAll('input:not([type=hidden]), select, textarea:not([hidden]), button')]
  .filter(el => el.checkVisibility() && !el.labels?.length && !el.getAttribute('aria-label') && !el.textContent.trim())
  .map(el => el.outerHTML.slice(0, 80))"""


def test_what_models_write_cannot_run(page, server: Server, here: World):
    """Scripts in prompts, answers, guidelines, names and titles are shown as text; and the CSP holds."""
    here.configure(title="<script>hit('title')</script>", overlap=1, gold_every=0, rewrite=True)
    attacks = [
        "<script>hit(1)</script>",
        "<img src=x onerror=hit(2)>",
        "[x](javascript:hit(3))",
        "![x](http://127.0.0.1:1/leak.png)",
        "<svg/onload=hit(4)>",
        "```\n</code></pre><script>hit(5)</script>\n```",
        "</textarea><script>hit(6)</script>",
        "<a href='data:text/html,<script>hit(7)</script>'>x</a>",
        '"><b onmouseover=hit(8)>',
        "{{ 7*7 }}${7*7}<%= 7*7 %>",
    ]
    here.store.set_guideline("\n\n".join(attacks))
    here.add({"prompt": "\n".join(attacks), "answers": ["\n\n".join(attacks), attacks[6] + " other"]})
    requests: list[str] = []
    page.on("request", lambda r: requests.append(r.url))
    page.add_init_script("window.hits = []; window.hit = n => window.hits.push(n);")
    join(page, here, name="<script>hit('name')</script>")
    page.keyboard.press("g")
    page.keyboard.press("1")
    page.keyboard.press("r")
    assert page.evaluate("window.hits") == []
    assert "49" not in page.locator(".prompt").inner_text()
    assert page.locator("main script, main img, main a, main svg").count() == 0
    blocked = page.evaluate(
        """() => new Promise(done => {
          document.addEventListener('securitypolicyviolation', event => done(event.effectiveDirective));
          const s = document.createElement('script'); s.textContent = 'hit(9)'; document.body.append(s);
        })"""
    )
    assert blocked.startswith("script-src") and page.evaluate("window.hits") == []
    page.problems.clear()  # the browser's own note about that
    assert all(url.startswith(server.url) for url in requests), requests


def test_an_adjudicator_settles_a_dispute_by_keyboard(page, server: Server, here: World):
    here.configure(title="Boat answers", overlap=2, gold_every=0)
    here.add({"prompt": "How do I set the tab?", "answers": [RICH, PLAIN]})
    one, two = here.join("Ann").id, here.join("Bob").id
    here.store.submit(one, judge(here.store.next(one), "1", best=0, comment="It says how far to turn it."))
    here.store.submit(two, judge(here.store.next(two), "2", best=1))
    join(page, here, "adjudicator", "Judy")
    page.goto("/adjudicate")
    expect(page.locator("#main")).to_contain_text("How do I set the tab?")
    expect(page.locator("#main li .hint")).to_have_text("Judgements: 2")
    shot(page, "adjudicate")
    page.get_by_role("link", name="Decide").click()
    expect(page.locator(".said")).to_contain_text("It says how far to turn it.")
    shot(page, "adjudicate-item")
    page.keyboard.press("6")  # B better
    page.keyboard.press("2")  # unclear guidelines
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile("/adjudicate$"))
    assert here.store.disputed() == []
    [settled] = [s for _, s in here.store.submissions() if s.adjudication]
    assert settled.reason == "guideline" and settled.answers[0].strength == pytest.approx(2 / 3, abs=1e-3)
