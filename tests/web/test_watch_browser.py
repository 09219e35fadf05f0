"""`trimtab watch` in a real browser: live steps, their answers, alarms, lost connections, ten thousand steps."""

import json
import os
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest

from trimtab.storage.watched import WatchedRun
from trimtab.web.watch import create_watch_app

from .live import Server, shot
from .runs import ATTACK, MadeRun, metrics

expect = pytest.importorskip("playwright.sync_api", reason="NOT TESTED: the pages in a browser; no playwright").expect
pytestmark = pytest.mark.timeout(240)
TOKEN = "a-secret"


class WatchServer(Server):
    """The page of some runs; it forgets nothing between two starts."""

    def __init__(self, *runs: MadeRun) -> None:
        app = create_watch_app([WatchedRun(run.path) for run in runs], TOKEN)
        super().__init__(lambda: app)
        self.link = f"{self.url}/?token={TOKEN}"


@pytest.fixture
def serve() -> Iterator[Any]:
    """Serve made-up runs."""
    servers: list[WatchServer] = []

    def start(*runs: MadeRun) -> WatchServer:
        servers.append(WatchServer(*runs))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def tab(chromium: Any) -> Iterator[Any]:
    """Opens tabs; the test fails on errors in scripts and on breaches of the Content Security Policy."""
    problems: list[str] = []
    contexts = []

    def open_tab(**options: Any) -> Any:
        context = chromium.new_context(**({"viewport": {"width": 1280, "height": 800}} | options))
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda m: problems.append(m.text) if "Security" in m.text or "Refused" in m.text else None)
        return page

    yield open_tab
    for context in contexts:
        context.close()
    assert problems == []


def test_a_step_is_seen_within_two_seconds_of_being_logged(tab, serve, tmp_path):
    made = MadeRun(tmp_path / "run")
    server, page = serve(made), tab()
    page.goto(server.link)
    assert "token" not in page.url
    expect(page.locator("#waiting")).to_be_visible()
    made.step(1)
    expect(page.locator("#step-title")).to_have_text("Step 1")
    for step in (2, 3):
        started = time.monotonic()
        made.step(step)
        expect(page.locator("#step-title")).to_have_text(f"Step {step}")
        assert time.monotonic() - started < 2.0
    expect(page.locator("#runs")).to_contain_text("align, step 3 of 50 · running")
    made.finish()
    expect(page.locator("#runs")).to_contain_text("finished")


def test_the_answers_of_a_step_are_filtered_ordered_and_harmless(tab, serve, tmp_path):
    made = MadeRun(tmp_path / "run", steps=11)
    made.step(12, texts={7: ATTACK})
    server, page = serve(made), tab()
    page.goto(server.link)
    answers = page.locator("#answers .answer")
    expect(page.locator("#step-title")).to_have_text("Step 12")
    expect(answers).to_have_count(8)
    assert answers.first.inner_text() == ATTACK  # the best one, as text
    assert page.evaluate("document.body.dataset.hacked") is None
    page.locator("#order").select_option("worst")
    assert answers.first.inner_text() == "answer 0 of step 12"
    expect(page.locator("#answers .cut")).to_have_count(1)
    page.locator("#order").select_option("groups")
    expect(page.locator("#answers .group")).to_have_text(["Question 0 of step 12", "Question 1 of step 12"])
    page.locator("#order").select_option("random")
    shuffled = answers.all_inner_texts()
    page.locator("#histogram button:not([disabled])").first.click()
    expect(answers).to_have_text(["answer 0 of step 12"])
    expect(page.locator("#count")).to_have_text("1 of 1 in this bar shown")
    page.get_by_role("button", name="Show all answers").click()
    assert answers.all_inner_texts() == shuffled
    page.get_by_role("button", name="KL by token").first.click()
    expect(page.locator("#answers .answer").first.locator("span")).to_have_text(["t3", "t4", "t5"])
    shot(page, "watch-answers")

    # a click on a chart chooses its step, and new steps no longer take it away
    canvas = page.locator("canvas").first
    canvas.click(position={"x": canvas.bounding_box()["width"] - 8, "y": 40})
    expect(page.locator("#follow")).not_to_be_checked()
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#step-title")).to_have_text("Step 11")
    made.step(13)
    expect(page.locator("#runs")).to_contain_text("step 13")
    expect(page.locator("#step-title")).to_have_text("Step 11")
    page.locator("#number").fill("2")
    page.locator("#number").press("Enter")
    expect(page.locator("#answers .answer").first).to_have_text("answer 7 of step 2")
    page.get_by_text("All numbers of this step").click()
    expect(page.locator("#numbers")).to_contain_text("0.02")


def test_an_alarm_leads_to_the_answers_behind_it(tab, serve, tmp_path):
    made = MadeRun(tmp_path / "run", steps=5)
    server, page = serve(made), tab()
    page.goto(server.link)
    expect(page.locator("#step-title")).to_have_text("Step 5")
    expect(page.locator("#alarms")).to_be_hidden()
    made.alarm(3)
    expect(page.locator("#alarms-title")).to_have_text("Alarms (1)")
    expect(page.locator("#alarm-list")).to_contain_text("Read the answers; raise align.kl.coefficient.")
    page.get_by_role("button", name="Read the 3 answers behind it").click()
    expect(page.locator("#step-title")).to_have_text("Step 3")
    expect(page.locator("#answers .answer")).to_have_count(3)
    expect(page.locator("#count")).to_have_text("3 answers behind the alarm")
    shot(page, "watch-alarm")
    for step in (4, 5, 5, 5):
        made.alarm(step)
    expect(page.locator("#alarms-title")).to_have_text("Alarms (5)")
    expect(page.locator("#alarm-list li")).to_have_count(3)  # the charts stay in sight
    page.get_by_role("button", name="Show all 5 alarms").click()
    expect(page.locator("#alarm-list li")).to_have_count(5)
    expect(page.locator("#all-alarms")).to_be_hidden()


def test_a_lost_connection_comes_back(tab, serve, tmp_path):
    made = MadeRun(tmp_path / "run", steps=2)
    server, page = serve(made), tab()
    page.goto(server.link)
    expect(page.locator("#connection")).to_have_text("live")
    server.stop()
    expect(page.locator("#connection")).to_contain_text("connection lost")
    made.step(3)
    server.start()
    expect(page.locator("#step-title")).to_have_text("Step 3", timeout=20_000)
    expect(page.locator("#connection")).to_have_text("live")


def test_ten_thousand_steps_load_in_a_second_and_stay_smooth(tab, serve, tmp_path):
    made = MadeRun(tmp_path / "run", total=10_000)
    rows = "".join(json.dumps({"time": 0.0, **metrics(step)}) + "\n" for step in range(1, 10_000))
    (made.stage / "metrics.jsonl").write_text(rows)
    made.step(10_000)
    server, page = serve(made), tab()
    page.goto(server.link)  # the browser and the server have started
    expect(page.locator("#step-title")).to_have_text("Step 10000")
    page.reload(wait_until="commit")
    expect(page.locator("#step-title")).to_have_text("Step 10000")
    busy = max(1.0, os.getloadavg()[0])  # processes that share the machine
    loaded = page.evaluate("performance.now()")
    assert loaded < 1000 * busy
    times = page.evaluate(
        "() => { const t = []; for (let i = 0; i < 20; i++) { const s = performance.now(); "
        "for (const c of board.charts) { c.hover = 100 * i; c.draw(); } t.push(performance.now() - s); } "
        "return t.sort((a, b) => a - b)[10]; }"
    )
    assert times < 33 * busy, "milliseconds to draw all charts once"
    made.step(10_001)
    expect(page.locator("#step-title")).to_have_text("Step 10001", timeout=4000)
    print(f"loaded in {loaded:.0f} ms, all charts drawn in {times:.1f} ms, load {busy:.1f}")


def test_two_runs_are_drawn_over_each_other_on_a_screen_and_on_a_phone(tab, serve, tmp_path):
    one, two = MadeRun(tmp_path / "one", steps=30), MadeRun(tmp_path / "two", steps=20)
    for step in (12, 20, 21, 22):
        one.alarm(step)
    two.alarm(15)
    two.step(21, texts={7: "a long answer. " * 40})
    two.finish()
    server = serve(one, two)
    for name, options in {
        "desktop": {},
        "dark": {"color_scheme": "dark"},
        "phone": {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "device_scale_factor": 2},
    }.items():
        page = tab(**options)
        page.goto(server.link)
        expect(page.locator("#runs li")).to_have_count(2)
        expect(page.locator("#runs")).to_contain_text("two align, step 21 of 50 · finished")
        expect(page.locator("#step-title")).to_have_text("Step 30")
        expect(page.locator("#alarm-list li p:first-child")).to_contain_text(["step 22", "step 21", "step 20"])
        values = page.locator("[data-key=kl] .value")
        expect(values).to_have_text("0.3 · – at 30")
        page.locator("#which").select_option("1")
        expect(page.locator("#step-title")).to_have_text("Step 21")  # this run has no step 30
        expect(values).to_have_text("0.21 · 0.21 at 21")
        expect(page.locator("#answers .answer").first).to_have_text(re.compile("a long answer"))
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing sticks out at the side"
        page.locator("#add").select_option("seconds/sample")
        expect(page.locator("[data-key='seconds/sample'] .value")).to_have_text("1 · 1 at 21")
        shot(page, f"watch-{name}")
        page.locator("[data-key='seconds/sample'] button").click()
        expect(page.locator("[data-key='seconds/sample']")).to_have_count(0)
