"""Side by side: processes take turns, floors are counted as by hand, tables say what was measured."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import peers
from benchmarks.channel import Child, ChildFailed, environment
from benchmarks.floors import Phase, Shape, count, peaks
from benchmarks.peers import TARGETS, WORKLOADS, compare, floor_seconds, main, markdown, merge, rows, update_rows
from benchmarks.workloads import Settings, Workload
from trimtab.testing import save_model, tiny_model

SMALL = Shape(layers=2, width=4, heads=2, key_heads=1, head_size=2, inner=8, vocabulary=10)
P = 4 * 4 + 2 * 4 * 2 + 4 * 4 + 3 * 4 * 8
"""Weights in a layer's matrices: q, k and v, o, and the three of the MLP."""


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(save_model(tmp_path_factory.mktemp("peers") / "model", tiny_model(width=16, context=256)))


def fake_trl(folder, lines: list[str]):
    """An interpreter that reads what it is told and says what it is given, as TRL's side would."""
    script = folder / "python"
    script.write_text(
        f"#!{sys.executable}\nimport sys, json\nlog = open({str(folder / 'log')!r}, 'w')\n"
        f"for line in {lines!r}:\n    heard = sys.stdin.readline()\n    log.write(heard)\n    log.flush()\n"
        "    if line == 'die':\n        print('no memory left', file=sys.stderr)\n        sys.exit(3)\n"
        "    print(line, flush=True)\nsys.stdin.read()\n"
    )
    script.chmod(0o755)
    return script


def step(seconds: float) -> str:
    return json.dumps(
        {"seconds": seconds, "cpu_seconds": 2 * seconds, "metrics": {"loss": 1.5, "grad_norm": 2.5}, "peak_mib": 2048.0}
    )


@pytest.fixture
def known_peaks(monkeypatch):
    """The machine's peaks, not measured: that takes a process each time."""
    monkeypatch.setattr(peers, "_run", lambda arguments: json.dumps({"operations": 1e11, "bytes": 1e10}))


READY = json.dumps({"ready": True, "loaded_mib": 1024.0, "versions": {"trl": "1.2.3"}})


def test_the_page_and_the_targets_name_the_workloads_that_are_measured():
    page = (Path(__file__).parents[2] / "docs" / "benchmarks.md").read_text()
    table = re.findall(r"^\| ((?:sft|reward|dpo|rloo|grpo|ppo|decode) [^|]*?) \|", page, flags=re.M)
    names = [workload.name for workload in WORKLOADS]
    assert sorted(table) == sorted(names) and len(set(names)) == len(names)
    assert set(TARGETS) <= set(names)


def test_floor_of_fine_tuning_by_hand():
    """Two rows of 3 and 2 tokens, one and two of them answers: 5 tokens, which see 1+2+3 and 1+2."""
    batch = {"tokens": [[1, 2, 3], [4, 5]], "masks": [[False, False, True], [True, True]]}
    forward = 2 * (2 * P * 5 + 4 * 4 * 9) + 2 * 4 * 10 * 3
    update, optimiser = count(Workload(kind="sft", adapter="full", batch=2), batch, SMALL)
    assert update == Phase(name="update", operations=3 * forward)
    assert optimiser.bytes == 28 * (2 * P + 4 * 10)
    update, optimiser = count(Workload(kind="sft", adapter="lora", batch=2), batch, SMALL)
    adapters = 16 * ((4 + 4) + 2 * (4 + 2) + (4 + 4) + 3 * (4 + 8))
    assert update.operations == 2 * forward + 6 * 2 * adapters * 5
    assert optimiser.bytes == 28 * 2 * adapters


def test_floor_of_pairs_counts_the_prompt_once():
    """Prompt of 2, answers of 1 and 2: 5 tokens; the prompt sees 1+2, the answers 3, and 3+4."""
    batch = {"prompts": [[1, 2]], "chosen": [[3]], "rejected": [[4, 5]]}
    trunk = 2 * (2 * P * 5 + 4 * 4 * (3 + 3 + 7))
    assert count(Workload(kind="reward", adapter="full", batch=1), batch, SMALL)[0].operations == 3 * trunk
    whole = trunk + 2 * 4 * 10 * 3
    cached = count(Workload(kind="dpo", adapter="full", batch=1), batch, SMALL)
    apart = count(Workload(kind="dpo", adapter="full", batch=1, cached=False), batch, SMALL)
    assert [p.operations for p in cached] == [3 * whole, 0]
    assert [p.operations for p in apart] == [whole, 3 * whole, 0]


def test_floor_of_online_methods_by_hand():
    """One prompt of 2 tokens, two answers of 2: the last token of an answer is drawn and never run."""
    workload = Workload(kind="rloo", adapter="full", batch=1, group=2, new_tokens=2)
    sample, reference, update, _ = count(workload, {"prompts": [[1, 2]]}, SMALL)
    head = 2 * 4 * 10 * 4
    assert sample.operations == 2 * (2 * P * 4 + 4 * 4 * (3 + 3 + 3)) + head
    assert sample.bytes == 4 * (2 * P + 40) * 2
    assert reference.operations == 2 * (2 * P * 6 + 4 * 4 * (3 + 7 + 7)) + head
    assert update.operations == 3 * reference.operations
    workload = Workload(kind="ppo", adapter="full", batch=1, epochs=3, new_tokens=2)
    _, infer, update, optimiser = count(workload, {"prompts": [[1, 2]]}, SMALL)
    trunk, head = 2 * (2 * P * 4 + 4 * 4 * (3 + 7)), 2 * 4 * 10 * 2
    assert infer.operations == 3 * trunk + head
    assert update.operations == 3 * 3 * (2 * trunk + head)
    assert optimiser.bytes == 28 * (2 * P + 40) * 2 * 3
    frozen = count(
        Workload(kind="ppo", adapter="lora", top_layers=1, batch=1, new_tokens=2), {"prompts": [[1, 2]]}, SMALL
    )
    assert frozen[1].operations == 3 * trunk / 2 + head  # the lower layer ran while answers were drawn
    shared = count(
        Workload(kind="ppo", adapter="full", batch=1, new_tokens=2, shared_critic=True), {"prompts": [[1, 2]]}, SMALL
    )
    assert shared[1].operations == 2 * trunk + head  # so did what the critic is a head on


def test_what_all_begin_with_counts_once():
    """Rows of 3 and 4 tokens that begin with the same 2: 5 tokens, which see 1+2, 3, and 3+4."""
    batch = {"tokens": [[1, 2, 3], [1, 2, 4, 5]], "masks": [[False, False, True], [False, False, True, True]]}
    update, _ = count(Workload(kind="sft", adapter="full", batch=2), batch, SMALL)
    assert update.operations == 3 * (2 * (2 * P * 5 + 4 * 4 * 13) + 2 * 4 * 10 * 3)
    again, _ = count(Workload(kind="sft", adapter="full", batch=2), batch, SMALL, common=False)
    assert again.operations == 3 * (2 * (2 * P * 7 + 4 * 4 * 16) + 2 * 4 * 10 * 3)
    batch = {"prompts": [[1, 2], [1, 3]]}
    (sample,) = count(Workload(kind="decode", adapter="full", batch=2, new_tokens=2), batch, SMALL)
    assert sample.operations == 2 * (2 * P * 5 + 4 * 4 * (1 + 2 + 2 + 3 + 3)) + 2 * 4 * 10 * 4


def test_a_phase_takes_what_its_longer_part_takes():
    assert Phase(name="x", operations=10, bytes=30).seconds(peak=5, bandwidth=30) == 2
    assert Phase(name="x", operations=10, bytes=90).seconds(peak=5, bandwidth=30) == 3


def test_the_peaks_are_measured():
    outcome = peaks(threads=torch.get_num_threads())
    assert 1e9 < outcome["operations"] < 1e14 and 1e8 < outcome["bytes"] < 1e13


@pytest.mark.slow
def test_sides_take_turns_from_the_same_batch(model, tmp_path, monkeypatch):
    measured = iter([3e11, 1e11, 2e11])
    monkeypatch.setattr(peers, "_run", lambda _: json.dumps({"operations": next(measured), "bytes": 1e10}))
    fake = fake_trl(tmp_path, [READY, step(9.0), step(1.0), step(3.0)])
    settings = Settings(model=model, repeats=2, threads=1, full_length=True)
    workload = Workload(kind="rloo", adapter="lora", batch=2, group=2, new_tokens=3)
    outcome = compare(workload, settings, {"TRL 1.2.3": fake}, minutes=1, answer_seconds=280)
    ours, theirs = outcome["sides"]["ours"], outcome["sides"]["TRL 1.2.3"]
    assert ours["error"] is None and len(ours["seconds"]) == 2 and ours["peak_mib"] >= ours["loaded_mib"] > 100
    assert (
        theirs["seconds"] == [1.0, 3.0]
        and theirs["median"] == 2.0
        and theirs["cpu_median"] == 4.0
        and theirs["warm_up_seconds"] == 9.0
    )
    assert theirs["first"] == {"loss": 1.5, "grad_norm": 2.5} and theirs["peak_mib"] == 2048.0
    heard = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert heard[0]["full_length"] and heard[0]["micro_batch"] == 4 and heard[0]["beta"] == 0.05
    assert [len(answer) for _, answer in heard[1]["answers"]] == [3] * 4  # none ended, and these are ours
    assert heard[2:] == [{}, {}]
    assert floor_seconds({"phases": outcome["phases"], "peaks": outcome["peaks"]}) > 0
    assert outcome["peaks"]["operations"] == 2e11 and not list(measured)  # before, between and after two repeats


@pytest.mark.parametrize(
    "kind", ["sft", *(pytest.param(k, marks=pytest.mark.slow) for k in ("reward", "dpo", "decode"))]
)
def test_our_side_of_each_kind(model, tmp_path, kind, known_peaks):
    fake = fake_trl(tmp_path, [READY, step(1.0), step(1.0)])
    settings = Settings(model=model, repeats=1, threads=1, full_length=True)
    workload = Workload(kind=kind, adapter="full", batch=2, new_tokens=3, cached=kind != "dpo")
    ours = compare(workload, settings, {"TRL": fake}, minutes=1, answer_seconds=280)["sides"]["ours"]
    assert ours["error"] is None and ours["median"] > 0
    assert ours["first"].get("tokens") == (6 if kind == "decode" else ours["first"].get("tokens"))


@pytest.mark.slow
def test_a_side_that_fails_is_noted_and_ours_goes_on(model, tmp_path, known_peaks):
    fake = fake_trl(tmp_path, [READY, "die"])
    settings = Settings(model=model, repeats=1, threads=1)
    workload = Workload(kind="sft", adapter="lora", batch=2)
    sides = compare(workload, settings, {"TRL": fake}, minutes=1, answer_seconds=280)["sides"]
    assert sides["TRL"]["error"] == "exit code 3: no memory left" and "median" not in sides["TRL"]
    assert sides["ours"]["median"] > 0


def test_a_child_that_takes_too_long_is_ended():
    child = Child([sys.executable, "-c", "import time; time.sleep(60)"], environment(), seconds=0.2)
    with pytest.raises(ChildFailed, match=r"killed: .* more than 0 s"):
        child.ask({})
    child.close()


def result(name: str, kind: str, ours: float | None, trl: float | None, **more) -> dict:
    sides = {"ours": {"error": None, "seconds": [ours], "median": ours, "cpu_median": ours, "peak_mib": 1024.0}}
    if trl is not None:
        sides["TRL 1.14.2"] = {
            "error": None,
            "seconds": [trl],
            "median": trl,
            "cpu_median": trl,
            "peak_mib": 3072.0,
            **more,
        }
    phases = [{"name": "update", "operations": 1e12, "bytes": 0.0}]
    peaks = {"operations": 1e12, "bytes": 1e10}
    common = {"phases": phases, "peaks": peaks, "measured_peaks": [{"operations": 8e11}, {"operations": 1.2e12}]}
    common["update_operations"] = 1e12
    return {"name": name, "date": "2026-01-02T03:04:05", "workload": {"kind": kind}, "sides": sides, **common}


def report(*results: dict) -> dict:
    return {
        "commands": ["python -m benchmarks.peers"], "date": "2026-01-02T03:04:05+00:00", "results": list(results),
        "machine": {"processor": "Abacus", "cores": 2, "memory_gib": 8.0, "system": "Linux", "load_before": 0.1},
        "settings": {"model": "tiny", "repeats": 3, "threads": 2, "data": "/home/me/pairs.jsonl.gz"},
        "versions": {"torch": "2"},
    }  # fmt: skip


def test_ratios_are_against_the_faster_and_against_full_ppo():
    slower = {"error": None, "seconds": [9.0], "median": 9.0, "cpu_median": 9.0, "peak_mib": 1.0}
    first = result("sft 8, full", "sft", 2.0, 5.0)
    first["sides"]["TRL 1.16.0"] = slower
    ppo, lora = result("ppo 32, full", "ppo", 10.0, 40.0), result("ppo 32, lora top 10", "ppo", 4.0, None)
    cells = {row[0]: row for row in rows(report(first, ppo, lora))}
    assert cells["sft 8, full"] == (
        "sft 8, full",
        "2",
        "5 (1.14.2)",
        "2.50×",
        "2.50×",
        "1.5×",
        "1.0",
        "3.0",
        "1",
        "50%",
    )
    assert cells["ppo 32, full"][3] == "4.00×" and cells["ppo 32, lora top 10"][3] == "10.00×"
    alone = rows(report(result("sft 8, lora", "sft", 2.0, None)))
    assert alone == [("sft 8, lora", "2", "–", "–", "–", "", "1.0", "–", "1", "50%")]


def test_the_page_names_what_it_was_made_with():
    equal = result("sft 8, full", "sft", 2.0, 5.0, first={"loss": 1.25, "grad_norm": 0.5})
    failed = result("dpo 8, full", "dpo", 2.0, None)
    failed["sides"]["TRL 1.16.0"] = {"error": "killed: out of memory", "seconds": [], "peak_mib": 0.0}
    text = markdown(report(equal, failed))
    assert "| sft 8, full | TRL 1.14.2 | 1.25 | 0.5 |" in text and "matrix product 1000 GFLOP/s" in text
    assert "- dpo 8, full, TRL 1.16.0: killed: out of memory" in text
    assert "`pairs.jsonl.gz`" in text and "/home/me" not in text and "Abacus, 2 cores (2 threads used)" in text


def test_the_update_is_held_against_the_peak():
    whole = result("sft 8, full", "sft", 2.0, None)
    whole["phases"].append({"name": "optimiser", "operations": 0.0, "bytes": 1e9})
    whole["update_operations"] = 1.1e12  # of the least, and what is computed again
    online = result("rloo 8×4, full", "rloo", 9.0, None)
    online["phases"].append({"name": "sample", "operations": 5e12, "bytes": 0.0})
    online["sides"]["ours"]["metrics"] = {"seconds/update": 4.0}
    apart = result("decode 8, full", "decode", 3.0, None)
    apart["phases"] = [{"name": "sample", "operations": 1e12, "bytes": 0.0}]
    assert update_rows(report(whole, online, apart)) == [
        ("sft 8, full", "2", "550", "1000 (800–1200)", "55%"),
        ("rloo 8×4, full", "4", "250", "1000 (800–1200)", "25%"),
    ]


def test_an_earlier_run_keeps_its_other_workloads():
    old = report(result("sft 8, full", "sft", 9.0, None), result("reward 8, full", "reward", 1.0, None))
    new = report(result("sft 8, full", "sft", 2.0, None))
    assert len(merge(new, old)["commands"]) == 2
    merged = merge(new, old)["results"]
    assert [(r["name"], r["sides"]["ours"]["median"]) for r in merged] == [
        ("sft 8, full", 2.0),
        ("reward 8, full", 1.0),
    ]


def test_command_line_writes_after_every_workload(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(peers, "compare", lambda w, *_, **__: result(w.name, w.kind, 2.0, None))
    out, page = tmp_path / "peers.json", tmp_path / "peers.md"
    line = ["--model", "x", "--alone", "--made-up", "--json", str(out), "--out", str(page), "--adapter", "full"]
    assert main([*line, "--only", "sft"]) == 0
    assert main([*line, "--only", "reward", "--add"]) == 0
    assert [r["name"] for r in json.loads(out.read_text())["results"]] == ["sft 8, full", "reward 8, full"]
    assert "| reward 8, full | 2 |" in page.read_text() and "sft 8, full" in capsys.readouterr().out
    assert "[peers.json](peers.json)" in page.read_text()


def test_options_that_leave_nothing_are_refused(capsys):
    assert main(["--model", "x", "--made-up", "--named", "sft 8, full", "--adapter", "lora"]) == 2
    assert "leave no workload" in capsys.readouterr().err


@pytest.mark.parametrize("line", [["--only", "sft,chat"], ["--trl", "0.1"], ["--repeats", "none"]])
def test_wrong_options_are_refused(line, capsys):
    with pytest.raises(SystemExit):
        main(line)
    assert repr(line[1].split(",")[-1]) in capsys.readouterr().err
