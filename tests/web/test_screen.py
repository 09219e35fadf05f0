"""The page for judging: what can be seen without scrolling, keys on every keyboard, one choice that submits."""

import random
import time
from typing import Any

import pytest

from .kit import World, judge
from .live import Server, join, shot

pytestmark = pytest.mark.timeout(400)

WORDS = (
    "the boat turns when you push the tab and water pulls it back so try a small change first then watch how fast "
    "she goes before you touch anything else because most people set far too much and wonder why it feels heavy"
).split()


def prose(rng: random.Random, words: int) -> str:
    """A text of about so many words, with the breaks, lists and code that models write."""
    parts: list[str] = []
    while words > 0:
        count = min(words, rng.randint(8, 35))
        sentence = " ".join(rng.choice(WORDS) for _ in range(count)).capitalize() + "."
        parts.append(rng.choice(["", "", "", "- ", "1. ", "**Note:** "]) + sentence)
        words -= count
    return rng.choice([" ", "\n\n"]).join(parts)


def realistic(rng: random.Random, answers: int) -> dict[str, Any]:
    """An item with the lengths of assistants' conversations: a question of 5 to 45 words, answers of 10 to 160."""
    turns = []
    for _ in range(rng.choice([0, 0, 0, 1, 2])):
        turns += [("user", prose(rng, rng.randint(5, 30))), ("assistant", prose(rng, rng.randint(15, 90)))]
    turns.append(("user", prose(rng, rng.randint(5, 45))))
    texts = [f"{n} {prose(rng, rng.randint(10, 160))}" for n in range(answers)]
    return {"prompt": [{"role": role, "content": text} for role, text in turns], "answers": texts}


SEEN = """() => {
  const inside = (el, box) => {
    const r = el.getBoundingClientRect();
    if (r.top < -1 || r.left < -1 || r.bottom > innerHeight + 1 || r.right > innerWidth + 1 || !r.height) return false;
    for (let p = el.parentElement; p; p = p.parentElement) {
      if (getComputedStyle(p).overflowY === 'visible') continue;
      const outer = p.getBoundingClientRect();
      if (r.top < outer.top - 1 || r.bottom > outer.bottom + 1) return false;
    }
    const top = document.elementFromPoint(r.left + r.width / 2, r.top + r.height / 2);
    return top !== null && (el.contains(top) || top.contains(el));
  };
  const turns = [...document.querySelectorAll('.turn.user')];
  return {
    question: inside(turns[turns.length - 1].querySelector('.md')),
    choices: [...document.querySelectorAll('#form label.option')].every(o => inside(o)),
    submit: inside(document.querySelector('[data-act=submit]')),
    answers: [...document.querySelectorAll('.answers')].every(a => a.getBoundingClientRect().height >= 100),
    still: document.documentElement.scrollHeight <= innerHeight + 1,
    narrow: document.documentElement.scrollWidth <= innerWidth,
  };
}"""


@pytest.mark.parametrize("size", [(1280, 800), (390, 844)])
def test_question_choices_and_button_on_one_screen(page, server: Server, here: World, size: tuple[int, int]):
    """Thirty realistic items, pairs and rankings of three to five; without scrolling."""
    rng = random.Random(7)
    here.configure(overlap=1, gold_every=0, rewrite=True)
    here.add(*(realistic(rng, 2 if n < 18 else rng.choice([3, 4, 5])) for n in range(30)))
    page.set_viewport_size({"width": size[0], "height": size[1]})
    join(page, here)
    whole, missing = 0, []
    for number in range(30):
        seen = page.evaluate(SEEN)
        whole += all(seen.values())
        if not all(seen.values()):
            missing.append((number, [k for k, v in seen.items() if not v]))
        if number in (0, 20, 29):
            shot(page, f"screen-{size[0]}-{number}")
        item = page.locator("#task").get_attribute("data-item")
        page.keyboard.press("s")
        deadline = time.monotonic() + 30
        while number < 29 and page.evaluate("document.getElementById('task').dataset.item") == item:
            assert time.monotonic() < deadline
            page.wait_for_timeout(20)
    print(f"{size}: {whole} of 30 whole; missing: {missing}")
    assert whole >= 28, missing


PRESS = """([key, code, more]) => document.body.dispatchEvent(
  new KeyboardEvent('keydown', { key, code, bubbles: true, cancelable: true, ...more }))"""


def test_keys_of_every_keyboard(page, server: Server, here: World):
    """By what a key types, in any script, and by its place where it types no Latin letter."""
    here.configure(overlap=1, gold_every=0)
    here.pairs(3)
    join(page, here)

    def press(key: str, code: str, **more: bool) -> None:
        page.evaluate(PRESS, [key, code, more])

    def chosen() -> str | None:
        return page.evaluate("document.querySelector('#form input:checked')?.value ?? null")

    for key, code, value in [
        ("1", "Digit1", "0"), ("&", "Digit1", "0"), ("é", "Digit2", "1"), ('"', "Digit3", "2"), ("(", "Digit5", "4"),
        ("١", "Digit1", "0"), ("٣", "Digit3", "2"), ("۵", "Digit5", "4"), ("६", "Digit6", "5"), ("７", "Digit7", "6"),
        ("4", "Numpad4", "3"), ("ě", "Digit2", "1"), ("2", "KeyW", "1"), ("Process", "Digit6", "5"),
    ]:  # fmt: skip
        page.evaluate("for (const i of document.querySelectorAll('#form input')) i.checked = false")
        press(key, code)
        assert chosen() == value, (key, code)
    page.evaluate("for (const i of document.querySelectorAll('#form input')) i.checked = false")
    for key, code in [("End", "Numpad1"), ("!", "F1"), ("x", "KeyX")]:
        press(key, code)
    press("1", "Digit1", altKey=True)
    press("1", "Digit1", ctrlKey=True)
    press("1", "Digit1", repeat=True)
    assert chosen() is None
    guidelines = page.locator("#guidelines")
    for key, code in [("п", "KeyG"), ("g", "KeyG"), ("G", "KeyU"), ("ل", "KeyG"), ("ע", "KeyG"), ("γ", "KeyG")]:
        was = guidelines.is_visible()
        press(key, code)
        assert guidelines.is_visible() != was, (key, code)
    was = guidelines.is_visible()
    press("i", "KeyG")  # Dvorak: this key has another letter
    assert guidelines.is_visible() == was
    for key, code, more in [
        ("?", "Digit7", {}),
        ("؟", "Slash", {}),
        (",", "Slash", {"shiftKey": True}),
        ("?", "Minus", {}),
    ]:
        press(key, code, **more)
        assert page.locator("#help").is_visible(), (key, code)
        page.keyboard.press("Escape")
    assert chosen() is None
    press("1", "Digit1")
    press("Enter", "Enter")
    page.wait_for_selector("#status.good")
    press("я", "KeyZ")  # Russian: undo
    page.wait_for_timeout(1000)
    assert here.store.submissions() == []
    press("z", "KeyW")  # AZERTY: by letter
    assert page.locator("#status").inner_text() == "There is nothing to take back."
    for key, code in [("ы", "KeyS"), ("т", "KeyN")]:
        press(key, code)
        page.wait_for_timeout(1000)
    assert [s.verdict for _, s in here.store.submissions()] == ["skip", "unsure"]


PRESS_AGAIN = """() => {
  const status = document.getElementById("status");
  new MutationObserver((_, observer) => {
    if (!status.classList.contains("good")) return;
    observer.disconnect();
    const press = new KeyboardEvent("keydown", { key: "7", code: "Digit7", bubbles: true });
    document.body.dispatchEvent(press);
    window.pressedAgain = true;
  }).observe(status, { attributes: true });
}"""
"""Presses 7 as soon as the choice is stored: a second press that was meant for the item before."""


def test_one_choice_submits_where_somebody_wants_that(page, server: Server, here: World):
    expect = pytest.importorskip("playwright.sync_api").expect
    here.configure(overlap=1, gold_every=0)
    here.pairs(2)
    here.add({"prompt": "r", "answers": ["one", "two", "three"]})
    join(page, here)
    page.keyboard.press("1")
    page.wait_for_timeout(300)
    assert here.store.submissions() == []
    page.keyboard.press("?")
    page.locator("#auto-on").check()
    page.keyboard.press("Escape")
    page.evaluate(PRESS_AGAIN)  # in the page, so that a slow test does not press late
    page.keyboard.press("7")
    page.wait_for_selector("#status.good")
    page.wait_for_timeout(100)
    assert page.evaluate("window.pressedAgain") is True
    assert len(here.store.submissions()) == 1
    page.wait_for_timeout(600)
    page.locator("#form label.option").nth(3).click()
    expect(page.locator("#count")).to_have_text("2")
    page.wait_for_timeout(600)
    page.keyboard.press("1")
    page.keyboard.press("2")
    page.wait_for_timeout(300)
    assert len(here.store.submissions()) == 2
    page.keyboard.press("3")
    page.wait_for_selector(".nothing")
    rankings = [s.answers[0].ranks for _, s in here.store.submissions()]
    assert rankings == [(1, 0), (0, 0), (0, 1, 2)]


def test_keys_scroll_the_answers_and_the_raw_text_is_one_key_away(page, server: Server, here: World):
    here.configure(overlap=1, gold_every=0)
    here.add({"prompt": "q", "answers": ["**long** " + "one\n" * 200, "**other** " + "two\n" * 200]})
    join(page, here)
    where = "[...document.querySelectorAll('.answer')].map(a => a.scrollTop)"
    assert page.evaluate(where) == [0, 0]
    page.keyboard.press("Space")
    first = page.evaluate(where)
    assert min(first) > 100
    page.keyboard.press("PageDown")
    assert min(page.evaluate(where)) > first[0]
    page.keyboard.press("Shift+Space")
    page.keyboard.press("ArrowUp")
    assert max(page.evaluate(where)) < 2 * first[0]
    assert "**" not in page.locator(".answers").inner_text()
    page.keyboard.press("v")
    assert page.locator(".answers").inner_text().count("**") == 4
    page.reload()
    assert page.locator(".answers").inner_text().count("**") == 4  # kept
    shot(page, "as-typed")


def progress_on(page: Any) -> str:
    """ "12 of 40", as it stands on the page."""
    assert page.locator(".progress").is_visible()
    return " ".join(page.locator(".progress").inner_text().split())


def test_how_far_one_is_stands_on_the_page(page, server: Server, here: World):
    """Of one's own items: judged, skipped and flagged ones, and those still to come; whatever others do meanwhile."""
    expect = pytest.importorskip("playwright.sync_api").expect
    here.configure(overlap=2, gold_every=0)
    here.pairs(40)
    join(page, here)
    assert progress_on(page) == "0 of 40"
    robin = next(p for p in here.people.everybody() if p.name == "Robin").id
    other = here.join("Other").id
    for person, verdicts in ((robin, ["judged"] * 9 + ["skip", "unsure", "flag"]), (other, ["judged"] * 20)):
        for number, verdict in enumerate(verdicts):
            item = here.store.next(person)
            more = {"verdict": verdict, "answers": (), "reason": "broken"} if verdict != "judged" else {}
            here.store.submit(person, judge(item, f"{person}-{number}", **more))
    page.goto("/work")
    assert progress_on(page) == "12 of 40"
    page.keyboard.press("1")
    page.keyboard.press("Enter")
    expect(page.locator("#count")).to_have_text("13")
    assert progress_on(page) == "13 of 40"
    page.keyboard.press("z")
    expect(page.locator("#count")).to_have_text("12")
    assert progress_on(page) == "12 of 40"
    here.people.profile(robin, language="de", cohort={})
    page.goto("/work")
    assert progress_on(page) == "12 von 40"


SIDES = """() => [...document.querySelectorAll('.answer p, .answer li')].map(block => {
  const outer = block.getBoundingClientRect(), range = document.createRange();
  range.selectNodeContents(block);
  const side = line => line.left - outer.left > outer.right - line.right ? 'right' : 'left';
  return [...range.getClientRects()].map(side);
})"""
LOCAL_TIME = """at => new Date(at).toLocaleString('en', {
  dateStyle: 'medium', timeStyle: 'short', timeZone: 'Asia/Kolkata' })"""


def test_times_are_local_and_lines_have_their_own_direction(chromium, server: Server, here: World):
    here.configure(overlap=1, gold_every=0)
    here.add({"prompt": "שלום\nhello", "answers": ["עברית `a < b` עוד\n\nEnglish.\nעברית\n\n- שלום\n- hi", "x"]})
    context = chromium.new_context(base_url=server.url, timezone_id="Asia/Kolkata", locale="en-GB")
    page = context.new_page()
    join(page, here)
    sides = page.evaluate(SIDES)
    flat = [side for lines in sides for side in lines]
    assert "right" in flat and "left" in flat
    inline = page.locator(".answer code").first
    assert inline.evaluate("e => getComputedStyle(e).direction + getComputedStyle(e).unicodeBidi") == "ltrisolate"
    page.keyboard.press("1")
    page.keyboard.press("Enter")
    page.wait_for_selector(".nothing")
    created = here.store.submissions()[0][1].created_at
    page.goto("/history")
    local = page.evaluate(LOCAL_TIME, created)
    assert page.locator("time").inner_text() == local
    context.close()
