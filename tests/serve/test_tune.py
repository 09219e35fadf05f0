"""The tuning page over HTTP: simulated people who choose, kills, and a browser. Every person here is simulated."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest
import torch

from tests.pipeline.console import Remembering
from tests.pipeline.small_rounds import ADAPTER, go, small_recipe
from trimtab.pipeline.tune_learning import Predicted, tuned_rounds
from trimtab.pipeline.tuning import new_choices, train
from trimtab.serve.tune import Tuning, tune_app
from trimtab.storage import RunFolder
from trimtab.storage.database import Database
from trimtab.storage.labels import LabelStore
from trimtab.testing import save_model, tiny_model, tokenizer

from .kit import Live

DPO: dict[str, Any] = {"reward": None, "align": {"method": "dpo", "adapter": ADAPTER, "epochs": 1, "batch": 8}}


def restless_run(folder: Path, **sections: Any) -> RunFolder:
    """A run whose policy ends about half of its answers before the longest length, so that people can prefer that."""
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight[tokenizer().eos_token_id] *= 4.0
    save_model(folder / "model", model)
    run, _ = go(small_recipe(folder, sft=None, evaluate=None, **sections))
    return run


class LiveTuning(Live):
    """A tuning session in this process; rounds are made by a process beside it, or by ``train``."""

    def __init__(self, run: RunFolder, project: Path, *, every: int, train: Any = None, overrides: Any = ()) -> None:
        project.mkdir(exist_ok=True)
        self.store = LabelStore(Database(f"sqlite:///{project / 'labels.db'}"))
        self.told: list[str] = []
        self.tuning = Tuning(
            run=run, project=project, store=self.store, every=every, overrides=overrides, say=self.told.append
        )
        self.tuning.page.votes._source = "simulated"
        if train is not None:
            self.tuning._train = lambda loop: train()
        super().__init__(self.tuning.page.service, tune_app(self.tuning, hosts={"127.0.0.1"}))

    def stop(self) -> None:
        super().stop()
        self.store.database.close()


class SimulatedUser:
    """Chooses by a function of the two answers as they stand on the screen."""

    def __init__(self, url: str, key: str, choose: Callable[[list[dict[str, Any]]], str]) -> None:
        self.client = httpx.Client(base_url=url, timeout=120, follow_redirects=True)
        page = self.client.get(f"/chat/enter/{key}").text
        version = re.search(r'data-version="(\w+)"', page)
        assert version is not None
        self.client.post("/chat/consent", json={"version": version[1]}).raise_for_status()
        self.choose, self.number, self.stored = choose, 0, 0

    def answer(self) -> str:
        comparison = self.client.post("/chat/tune/next").raise_for_status().json()
        choice, self.number = self.choose(comparison["answers"]), self.number + 1
        vote = {"token": comparison["token"], "key": f"key-{self.number:08}", "choice": choice}
        self.client.post("/chat/vote", json=vote).raise_for_status()
        self.stored += 1
        return choice

    def progress(self) -> dict[str, Any]:
        return self.client.get("/chat/tune/progress").raise_for_status().json()


@contextmanager
def session(live: LiveTuning, choose: Any) -> Iterator[SimulatedUser]:
    user = SimulatedUser(live.url, live.tuning.page.key, choose)
    try:
        yield user
    finally:
        user.client.close()
        live.stop()


def goes_on(answers: list[dict[str, Any]]) -> str:
    """The taste of a simulated person who likes answers that did not end."""
    left, right = (answer["finish_reason"] == "length" for answer in answers)
    return "left" if left > right else "right" if right > left else "tie"


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> RunFolder:
    return restless_run(tmp_path_factory.mktemp("run"), **DPO)


def test_the_page_asks_stores_and_counts(finished, tmp_path):
    due: list[int] = []
    live = LiveTuning(finished, tmp_path, every=4, train=lambda: due.append(live.tuning.new))
    with session(live, lambda answers: "left") as user:
        with httpx.Client(base_url=live.url) as stranger:
            for method, path in (("get", "/chat/tune"), ("post", "/chat/tune/next"), ("get", "/chat/tune/progress")):
                assert getattr(stranger, method)(path).status_code == 401
            assert stranger.get("/v1/models").status_code == 401 and stranger.get("/openapi.json").status_code == 401
            stranger.get(f"/chat/enter/{live.tuning.page.key}")
            assert stranger.get("/chat/tune").status_code == 200
            assert stranger.post("/chat/tune/next").status_code == 403, "nothing is asked before consent"
        comparison = user.client.post("/chat/tune/next").json()
        first, second = (answer["text"] for answer in comparison["answers"])
        assert first != second and comparison["prompt"][0]["role"] == "user" and comparison["token"]
        assert user.progress() | {"examples": []} == {
            "phase": "asking", "problem": "", "new": 0, "every": 4, "round": 1, "verdict": "waiting", "choices": 0,
            "accuracy": None, "start": None, "gain": None, "rounds": [], "examples": [], "preferred": None,
        }  # fmt: skip
        for _ in range(3):
            user.answer()
        live.wait(lambda: user.progress()["new"] == 3)
        assert due == []
        user.answer()
        live.wait(lambda: due)
        assert due[0] == 4
        tasks = [task for _, task in live.store.tasks()]
        assert all(len(task.completions) == 2 and task.metadata["checkpoints"] for task in tasks)
        with ThreadPoolExecutor(2) as tabs:
            shown = [*tabs.map(lambda _: user.client.post("/chat/tune/next").json(), range(2))]
        votes = [{"token": shown[tab]["token"], "key": f"tab-{tab:08}", "choice": "left"} for tab in range(2)]
        assert [user.client.post("/chat/vote", json=vote).json()["new"] for vote in votes] == [True, True]
        assert {s.source for _, s in live.store.submissions()} == {"simulated"}
    assert live.tuning._make_round() is None and live.tuning._child is None, "no training begins after the end"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_training_that_fails_is_told_and_not_repeated_at_once(finished, tmp_path):
    live = LiveTuning(finished, tmp_path, every=4, overrides=("align.method=nonsense",))
    with session(live, lambda answers: "left") as user:
        for _ in range(4):
            user.answer()
        live.wait(lambda: user.progress()["problem"], seconds=300)
        assert "nonsense" in user.progress()["problem"] and live.told == [f"training failed: {live.tuning.problem}"]
        user.answer()
        time.sleep(0.5)
        assert user.progress()["phase"] == "asking" and user.progress()["new"] == 5 and len(live.told) == 1


LEARNER: dict[str, Any] = {
    "sample": {"prompts": 4, "answers": 2, "sampler": {"max_new_tokens": 6, "slots": 32}},
    "reward": {
        "adapter": {"kind": "lora", "rank": 8, "alpha": 16}, "optimizer": {"lr": 2e-2}, "epochs": 6, "batch": 8,
        "holdout": 0.1,
    },
}  # fmt: skip


def tuned_by(folder: Path, choose: Any, *, rounds: int) -> tuple[dict[str, Any], LiveTuning]:
    """A session over real HTTP; rounds are made by the session's thread, as its process makes them."""
    live = LiveTuning(restless_run(folder / "run", **LEARNER), folder / "votes", every=16)

    def make_round() -> None:
        train(live.tuning.run.path, live.tuning.project, ui=Remembering())

    live.tuning._make_round = make_round
    with session(live, choose) as user:
        for number in range(2, rounds + 2):
            while (state := user.progress())["phase"] == "asking" and state["round"] < number:
                user.answer()
            answered = 0
            while (state := user.progress())["round"] < number or state["phase"] != "asking":
                assert not state["problem"], state["problem"]
                answered += answered < 3 and bool(user.answer())  # the page answers while the model is trained
                time.sleep(0.1)
            assert answered, "it was asked during the training"
        for _ in range(4):  # the newest policy beside the one before
            user.answer()
        live.wait(lambda: user.progress()["preferred"] is not None)
        return user.progress(), live


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_taste_is_learned_and_the_page_says_so(tmp_path):
    state, live = tuned_by(tmp_path, goes_on, rounds=4)
    assert state["verdict"] == "learned" and state["accuracy"][1] > 0.5 and state["gain"][1] > 0, state
    assert state["examples"][0].keys() == {"prompt", "before", "after"} and state["preferred"]["n"] > 0
    assert live.told[-1].startswith("round 5: it has learned something of your taste")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_person_who_chooses_at_random_is_not_learned(tmp_path):
    draw = Random(0)
    state, live = tuned_by(tmp_path, lambda answers: draw.choice(["left", "right"]), rounds=4)
    assert state["verdict"] == "not_learned" and state["choices"] >= 40, state
    assert live.told[-1].startswith("round 5: it has not learned your taste")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_at_any_time_it_continues_and_nothing_acknowledged_is_lost(tmp_path):
    run = restless_run(tmp_path / "run", **DPO)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "trimtab", "tune", run.path, "--every", "6", "--port", str(port)]
    stored, children = 0, []
    for wait in (0.0, 1.0, 6.0, 12.0, None):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ) as server:
            assert server.stdout is not None
            line = server.stdout.readline()
            result = re.search(r"(http://\S+)/chat/enter/(\S+)", line)
            assert result is not None, line
            user = SimulatedUser(result[1], result[2], lambda answers: "right")
            for _ in range(8):
                user.answer()
            stored += user.stored
            if wait is None:
                until = time.monotonic() + 300
                while user.progress()["round"] < 2 or user.progress()["phase"] != "asking":
                    assert not user.progress()["problem"] and time.monotonic() < until, user.progress()
                    time.sleep(0.5)
            else:
                time.sleep(wait)
            children += subprocess.run(
                ["ps", "-o", "pid=", "--ppid", str(server.pid)], capture_output=True, text=True
            ).stdout.split()
            user.client.close()
            server.send_signal(signal.SIGKILL if wait is not None else signal.SIGINT)
            server.wait(60)
    until = time.monotonic() + 10
    while any(Path(f"/proc/{pid}/fd").exists() for pid in children) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(Path(f"/proc/{pid}/fd").exists() for pid in children), "no training outlives the page"
    store = LabelStore(Database(f"sqlite:///{run.path / 'tune'}/labels.db"))
    try:
        assert len(list(store.submissions())) == stored == 40
        rounds = tuned_rounds(run)
        files = [r.stage("label") / "judgements.jsonl" for r in run.rounds()[1:]]
        taken = sum(len(file.read_text().splitlines()) for file in files if file.is_file())
        assert rounds and taken + new_choices(run, store) == 40, "each choice trains one round or waits for the next"
    finally:
        store.database.close()


# In a browser -----------------------------------------------------------------------------

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.timeout(240)
def test_choosing_by_keyboard_on_a_phone(finished, tmp_path, monkeypatch):
    api = pytest.importorskip("playwright.sync_api", reason="NOT TESTED: the tuning page in a browser; no playwright")
    if CHROMIUM is None:
        pytest.skip("NOT TESTED: the tuning page in a browser; install Debian's chromium")
    stored = [
        Predicted(policy="p", newest=(0.0,) * 8, start=(0.0,) * 8, examples=()),
        Predicted(
            policy="p", newest=(1.0,) * 30, start=(0.0, 1.0) * 15,
            examples=(("What is a <b>trim tab</b>?", "A tab.", "A small flap that steers a rudder."),),
        ),
    ]  # fmt: skip
    live = LiveTuning(finished, tmp_path, every=40, train=lambda: None)
    shots = os.environ.get("TRIMTAB_SCREENSHOTS")

    def shot(page: Any, name: str) -> None:
        if shots:
            page.screenshot(path=f"{shots}/{name}.png", full_page=True)

    try:
        with api.sync_playwright() as p:
            browser = p.chromium.launch(executable_path=CHROMIUM, args=["--headless", "--no-sandbox", "--disable-gpu"])
            page = browser.new_context(viewport={"width": 390, "height": 800}, base_url=live.url).new_page()
            page.set_default_timeout(30_000)
            api.expect.set_options(timeout=30_000)
            problems: list[str] = []
            page.on("pageerror", lambda error: problems.append(str(error)))
            page.on("console", lambda m: problems.append(m.text) if "Content Security" in m.text else None)
            page.goto(f"/chat/enter/{live.tuning.page.key}")
            api.expect(page.locator("#verdict")).to_contain_text("Nothing can be said yet")
            assert page.locator("#terms").get_attribute("open") is not None and page.locator(".pair").count() == 0
            shot(page, "tune-consent")
            page.locator("#agree").check()
            page.get_by_role("button", name="Store my votes").click()
            api.expect(page.locator(".choices-of-pair")).to_have_count(1)
            shot(page, "tune-asking")
            for key in ("1", "2", "3"):
                page.evaluate("document.querySelector('.choices-of-pair').dataset.old = 'yes'")
                page.keyboard.press(key)
                api.expect(page.locator(".choices-of-pair:not([data-old])")).to_have_count(1)
            api.expect(page.locator("#phase")).to_contain_text("2 of 40")
            ranks = [s.answers[0].ranks for _, s in live.store.submissions()]
            assert ranks == [(0, 1), (1, 0), (0, 0)]
            requests: list[str] = []
            page.on("request", lambda request: requests.append(request.url.rpartition("/")[2]))
            page.evaluate("document.querySelectorAll('[data-choice=left]').forEach((b) => { b.click(); b.click(); })")
            api.expect(page.locator("#phase")).to_contain_text("3 of 40")
            api.expect(page.locator(".choices-of-pair")).to_have_count(1)
            assert requests.count("vote") == 2 and requests.count("next") == 1, "pressed twice, it is one vote"
            monkeypatch.setattr("trimtab.serve.tune.tuned_rounds", lambda run: [run.round(2), run.round(3)])
            monkeypatch.setattr("trimtab.serve.tune.predictions", lambda round: stored[round.number - 2])
            live.tuning._refresh()
            api.expect(page.locator("#verdict")).to_contain_text("Learned: it predicted 100 %")
            assert page.locator("#examples b").count() == 0, "prompts are text"
            assert page.evaluate("document.documentElement.scrollWidth") <= 390, "nothing is wider than a phone"
            shot(page, "tune-learned")
            page.emulate_media(color_scheme="dark")
            page.set_viewport_size({"width": 1100, "height": 900})
            shot(page, "tune-dark")
            browser.close()
            assert problems == []
    finally:
        live.stop()
