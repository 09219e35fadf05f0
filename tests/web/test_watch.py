"""`trimtab watch`: what it reads from a run folder, what its server refuses, and what it tells."""

import json
import math
import os
import threading
import time
from dataclasses import replace

import pytest
from starlette.testclient import TestClient

from trimtab.cli.app import run_app
from trimtab.errors import ConfigError, DataError
from trimtab.storage import MetricsLog, RunFolder
from trimtab.storage.watched import Tail, WatchedRun, token_kl
from trimtab.web.watch import create_watch_app, send_new_alarms

from .runs import ATTACK, MadeRun, metrics, rollout

TOKEN = "a-secret"


def client(*runs: MadeRun, signed_in: bool = True) -> TestClient:
    made = TestClient(create_watch_app([WatchedRun(r.path) for r in runs], TOKEN), base_url="http://localhost:9")
    if signed_in:
        assert made.get("/", params={"token": TOKEN}).status_code == 200
    return made


# Reading ------------------------------------------------------------------------------------


def test_a_tail_reads_whole_lines_once_and_starts_again_when_the_file_is_written_anew(tmp_path):
    path = tmp_path / "rows.jsonl"
    tail = Tail(path)
    assert tail.refresh() == ([], 0)
    path.write_text('{"a": 1}\n{"a": 2}\n{"a"')
    assert tail.refresh() == ([{"a": 1}, {"a": 2}], 0)
    with open(path, "a") as file:
        file.write(': 3}\nnot json\n[1]\n{"a": 4}\n')
    assert tail.refresh() == ([{"a": number} for number in (1, 2, 3, 4)], 0)
    (tmp_path / "new").write_text('{"a": 9}\n')
    (tmp_path / "new").replace(path)
    assert tail.refresh() == ([{"a": 9}], 1)


def test_readers_at_the_same_time_get_each_row_once_in_a_list_of_their_own(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"step": step} | metrics(step)) + "\n" for step in range(3000)))
    for _ in range(3):
        tail, start, counts = Tail(path), threading.Barrier(3), []

        def read(tail=tail, start=start, counts=counts):
            start.wait()
            rows, _ = tail.refresh()
            counts.append(len(rows))
            rows.clear()

        threads = [threading.Thread(target=read) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert counts == [3000] * 3 and len(tail.refresh()[0]) == 3000


def test_series_gives_new_rows_only_and_all_of_them_after_the_run_was_continued(tmp_path):
    made = MadeRun(tmp_path / "run", steps=5)
    run = WatchedRun(made.path)
    first = run.series("align", ["kl", "nothing"])
    assert first["steps"] == [1, 2, 3, 4, 5]
    assert first["columns"] == {"kl": [0.01, 0.02, 0.03, 0.04, 0.05], "nothing": [None] * 5}
    assert set(first["keys"]) == set(metrics(1)) - {"step"}
    made.step(6)
    more = run.series("align", ["kl"], start=5, generation=first["generation"])
    assert (more["start"], more["steps"]) == (5, [6])
    MetricsLog(made.stage, 3).close()  # a continued run drops the steps after its checkpoint
    again = run.series("align", ["kl"], start=6, generation=more["generation"])
    assert (again["start"], again["steps"]) == (0, [1, 2, 3])


def test_numbers_that_are_not_finite_are_gaps_and_others_have_five_digits(tmp_path):
    made = MadeRun(tmp_path / "run")
    made.log({"step": 1, "reward": math.nan, "kl": 1.23456789, "length": math.inf})
    assert WatchedRun(made.path).row("align", 1) | {"time": 0} == {
        "time": 0, "step": 1, "reward": None, "kl": 1.2346, "length": None,
    }  # fmt: skip


def test_states_of_a_running_a_killed_and_a_finished_run(tmp_path):
    made = MadeRun(tmp_path / "run", steps=2)
    run = WatchedRun(made.path)
    assert [(s["stage"], s["state"], s["steps"]) for s in run.stages()] == [("align", "running", 2)]
    made.stop()
    assert run.stages()[0]["state"] == "interrupted"
    assert (made.path / ".lock").read_text() == str(os.getpid())  # as if the pid were used again
    made.finish()
    assert run.stages()[0]["state"] == "done" and not run.is_running()


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(DataError, match="no run; expected a folder that `trimtab run` made"):
        WatchedRun(tmp_path)
    with pytest.raises(ConfigError, match="one to 4 runs, got 0"):
        create_watch_app([], TOKEN)


def test_kl_of_tokens_sums_to_that_of_the_answer():
    assert token_kl(rollout(1, 0)) == pytest.approx([0.1, 0.2, -0.4])
    assert token_kl(replace(rollout(1, 0), reference_logprobs=[])) is None


# The server ---------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/api/runs", "/api/series", "/api/step?step=1", "/api/events"])
def test_nothing_is_told_without_the_link(tmp_path, path):
    asker = client(MadeRun(tmp_path / "run", steps=1), signed_in=False)
    assert asker.get(path).status_code == 401
    assert asker.get(path, headers={"Cookie": "trimtab_watch=guess"}).status_code == 401
    assert asker.get("/", params={"token": "guess"}).status_code == 401


def test_other_host_names_are_refused_and_the_policy_allows_no_script_but_ours(tmp_path):
    asker = client(MadeRun(tmp_path / "run", steps=1))
    assert asker.get("/api/runs", headers={"Host": "evil.example"}).status_code == 400
    page = asker.get("/")
    assert "script-src 'self'" in page.headers["content-security-policy"]
    assert "unsafe" not in page.headers["content-security-policy"] and "style=" not in page.text
    assert asker.get("/", params={"token": TOKEN}, follow_redirects=False).headers["set-cookie"].count("HttpOnly") == 1


def test_a_step_has_its_numbers_and_answers_with_weighted_rewards(tmp_path):
    asker = client(MadeRun(tmp_path / "run", steps=2))
    told = asker.get("/api/step", params={"step": 2}).json()
    assert told["numbers"]["kl"] == 0.02 and told["missing"] == ""
    assert told["prompts"] == ["Question 0 of step 2", "Question 1 of step 2"]
    last = told["answers"][7]
    assert (last["reward"], last["rewards"], last["prompt"]) == (1.4, {"model": 0.7}, 1)
    assert last["kl"] == pytest.approx(-0.1)
    assert asker.get("/api/tokens", params={"step": 2, "index": 0}).json() == [["t3", 0.1], ["t4", 0.2], ["t5", -0.4]]


def test_hidden_characters_of_a_model_are_named(tmp_path):
    made = MadeRun(tmp_path / "run")
    made.step(1, texts={0: "safe\u202etxt.exe", 1: ATTACK})
    answers = client(made).get("/api/step", params={"step": 1}).json()["answers"]
    assert answers[0]["text"] == "safe⟦RLO⟧txt.exe"
    assert answers[1]["text"] == ATTACK  # the page shows it as text


def test_what_is_missing_or_damaged_is_said(tmp_path):
    made = MadeRun(tmp_path / "run", steps=2)
    (made.stage / "samples" / "step-000000.jsonl").unlink()
    (made.stage / "samples" / "step-000001.jsonl").write_text('{"id": "cut')
    asker = client(made)
    assert "step 1 are not on the disk" in asker.get("/api/step", params={"step": 1}).json()["missing"]
    damaged = asker.get("/api/step", params={"step": 2}).json()
    assert "not a Rollout" in damaged["missing"] and damaged["numbers"]["kl"] == 0.02
    assert asker.get("/api/tokens", params={"step": 1, "index": 0}).status_code == 404
    for file in (made.stage / "samples").iterdir():
        file.unlink()
    (made.stage / "samples").rmdir()  # as with DPO, which samples no answers
    assert "no answers are kept" in asker.get("/api/step", params={"step": 2}).json()["missing"]
    assert asker.get("/api/series", params={"run": 3}).status_code == 404
    assert asker.get("/api/series", params={"stage": "../../x"}).status_code == 400


def test_a_run_that_has_just_begun_is_shown(tmp_path):
    run = RunFolder(tmp_path / "run")
    (run.path / "config.yaml").write_text("name: run\n")
    app = create_watch_app([WatchedRun(run.path)], TOKEN)
    asker = TestClient(app, base_url="http://localhost:9")
    asker.get("/", params={"token": TOKEN})
    [state] = asker.get("/api/runs").json()
    assert (state["stages"], state["alarms"], state["running"]) == ([], [], False)
    assert asker.get("/api/series", params={"keys": "reward"}).json()["steps"] == []


def test_each_new_alarm_is_sent_once(tmp_path):
    made, sent = MadeRun(tmp_path / "run", steps=1), []
    made.alarm(1)  # raised before the page was started
    app = create_watch_app([WatchedRun(made.path)], TOKEN, notify=sent.append)
    send_new_alarms(app)
    assert sent == []
    made.alarm(2)
    send_new_alarms(app)
    send_new_alarms(app)
    assert [(row["event"], row["run"], row["step"]) for row in sent] == [("alarm", "run", 2)]


def test_once_prints_stages_and_alarms(tmp_path, capsys):
    made = MadeRun(tmp_path / "run", steps=3)
    made.alarm(2)
    assert run_app(["watch", str(made.path), "--once"]) == 0
    printed = capsys.readouterr().out
    assert "align: running, 3 steps" in printed and "ALARM (alarm) at step 2: flattery: 40 %" in printed
    assert run_app(["watch", str(tmp_path), "--once"]) == 3


@pytest.mark.parametrize(("url", "message"), [("ftp://x", "not a URL"), ("http://x/y", "TRIMTAB_WEBHOOK_SECRET")])
def test_a_webhook_that_cannot_work_is_refused(tmp_path, capsys, monkeypatch, url, message):
    monkeypatch.delenv("TRIMTAB_WEBHOOK_SECRET", raising=False)
    made = MadeRun(tmp_path / "run")
    assert run_app(["watch", str(made.path), "--webhook", url]) == 2
    assert message in capsys.readouterr().err


def test_ten_thousand_steps_are_told_in_little_time(tmp_path):
    made = MadeRun(tmp_path / "run")
    rows = "".join(json.dumps({"time": 0.0, **metrics(step)}) + "\n" for step in range(1, 10_001))
    (made.stage / "metrics.jsonl").write_text(rows)
    asker, started = client(made), time.process_time()
    told = asker.get("/api/series", params={"keys": "reward,kl,length,ended,distinct"}).json()
    assert len(told["steps"]) == 10_000 and time.process_time() - started < 2.0
    more = asker.get("/api/series", params={"keys": "reward", "start": 10_000, "generation": told["generation"]})
    assert len(more.content) < 5_000
