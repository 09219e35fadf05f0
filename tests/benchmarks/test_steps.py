"""The benchmark on a random model: what it counts, what it writes, and that a failure stays one row."""

import gzip
import io
import json
import resource
from pathlib import Path

import pytest
import torch

import benchmarks.measure
from benchmarks.measure import measure
from benchmarks.steps import DEFAULT_MODEL, main, markdown
from benchmarks.texts import preferences
from benchmarks.workloads import WORKLOADS, Settings, Workload
from trimtab.errors import DataError
from trimtab.models import Backbone, ModelConfig, embedded
from trimtab.testing import save_model, tiny_model

SMALL = {"batch": 4, "new_tokens": 6, "context": 192}
ADAPTERS = [{"adapter": "full"}, {"adapter": "lora"}, {"adapter": "lora", "top_layers": 1}]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    """A random model with enough context for the real workloads."""
    folder = tmp_path_factory.mktemp("bench") / "model"
    return str(save_model(folder, tiny_model(width=16, context=256)))


@pytest.fixture(scope="module")
def chat(model):
    return Backbone.load(ModelConfig(name=model, context=256)).chat


def settings(model: str, **fields) -> Settings:
    return Settings(**({"model": model, "repeats": 2, "threads": 1} | fields))


def pair_file(path: Path, count: int, words: int = 3) -> str:
    yes, no = " ".join(["yes"] * words), " ".join(["no"] * words)
    rows = [{"prompt": f"say {i}", "chosen": yes, "rejected": no} for i in range(count)]
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return str(path)


def test_the_workloads_are_those_promised():
    kinds = [(w.kind, w.batch) for w in WORKLOADS]
    wanted = [
        ("sft", 8), ("reward", 8), ("dpo", 8), ("rloo", 8), ("grpo", 8), ("ppo", 32), ("ppo", 32),
        ("decode", 8), ("decode", 32), ("decode", 64),
    ]  # fmt: skip
    assert kinds == [kind for kind in wanted for _ in range(1 if kind[0] == "decode" else 3)]
    assert {(w.adapter, w.top_layers) for w in WORKLOADS} == {("full", None), ("lora", None), ("lora", 10)}
    assert {w.context for w in WORKLOADS} == {256}
    assert {(w.new_tokens, w.epochs) for w in WORKLOADS if w.kind == "ppo"} == {(48, 4)}
    assert len({w.name for w in WORKLOADS}) == len(WORKLOADS)
    assert sum(w.shared_critic for w in WORKLOADS) == 3
    assert DEFAULT_MODEL == embedded.NAME


@pytest.mark.parametrize(
    "adapter",
    [ADAPTERS[0], pytest.param(ADAPTERS[1], marks=pytest.mark.slow), ADAPTERS[2]],
    ids=["full", "lora", "top"],
)
@pytest.mark.parametrize("kind", ["sft", "reward", "dpo", "rloo", "ppo", "decode"])
def test_each_kind_with_each_adapter(model, kind, adapter):
    workload = Workload(kind=kind, epochs=2, group=2 if kind == "rloo" else 1, **SMALL, **adapter)
    result = measure(workload, settings(model))
    assert len(result["seconds"]) == len(result["tokens"]) == 2  # three steps, the first dropped
    assert 0 < result["min"] <= result["median"] <= result["max"]
    assert result["median"] == pytest.approx(sum(result["seconds"]) / 2)
    assert 100 < result["loaded_mib"] <= result["peak_mib"]
    online = kind in ("rloo", "ppo")
    assert result["device"] == "cpu" and result["gpu_peak_mib"] is None
    assert set(result["phases"]) == ({"sample", "score", "infer", "update"} if online else set())
    if online:
        assert sum(result["phases"].values()) <= 2 * result["max"]
    if kind in ("ppo", "decode"):
        assert all(4 <= t <= 4 * 6 for t in result["tokens"])
    if kind == "rloo":
        assert all(8 <= t <= 8 * 6 for t in result["tokens"])
    rates = sorted(t / s for t, s in zip(result["tokens"], result["seconds"], strict=True))
    assert rates[0] <= result["tokens_per_second"] <= rates[1]


def test_tokens_of_a_step_are_counted_whole(model, tmp_path):
    """By hand: ``<start>user⏎ … <end>⏎<start>assistant⏎ … <end>`` through the tokenizer itself."""
    data = pair_file(tmp_path / "pairs.jsonl.gz", 4)
    chat = Backbone.load(ModelConfig(name=model, context=192)).chat
    length = {"yes": 0, "no": 0}
    for i in range(4):
        for word in length:
            text = f"<|im_start|>user\nsay {i}<|im_end|>\n<|im_start|>assistant\n{' '.join([word] * 3)}"
            length[word] += len(chat.tokenizer.encode(text)) + 1  # the end of the turn
    for kind, wanted in {"sft": length["yes"], "reward": length["yes"] + length["no"]}.items():
        workload = Workload(kind=kind, adapter="lora", **SMALL)
        assert measure(workload, settings(model, data=data))["tokens"] == [wanted] * 2


def test_made_up_texts_fit_differ_and_repeat(chat):
    workload = Workload(kind="ppo", adapter="lora", batch=64)
    pairs = preferences(chat, workload, None)
    assert pairs == preferences(chat, workload, None)
    assert len({p.prompt.id for p in pairs}) == 64
    sizes = [len(chat.answer(p.prompt.messages, c.text).tokens) for p in pairs for c in p.completions]
    assert max(sizes) <= 256 and max(len(chat.prompt(p.prompt.messages)) for p in pairs) <= 256 - 48
    assert min(sizes) < 128 < 200 < max(sizes)  # short and long ones


def test_pairs_of_a_file_that_do_not_fit_are_passed_over(chat, tmp_path):
    short, long = pair_file(tmp_path / "a.jsonl.gz", 5), pair_file(tmp_path / "b.jsonl.gz", 5, words=300)
    workload = Workload(kind="reward", adapter="lora", batch=5)
    assert len(preferences(chat, workload, short)) == 5
    with pytest.raises(DataError, match="only 0 pairs fit 256 tokens but 'reward 5, lora' needs 5"):
        preferences(chat, workload, long)


def test_shared_data_gives_pairs_that_fit(chat):
    file = Path(__file__).parents[3] / "shared/data/pairwise/hh-harmless-base.jsonl.gz"
    if not file.exists():
        pytest.skip(f"REAL DATA NOT TESTED: {file.name} is not in ../shared/data/pairwise")
    pairs = preferences(chat, Workload(kind="ppo", adapter="lora", batch=4), str(file))
    assert len(pairs) == 4 and all(len(chat.prompt(p.prompt.messages)) <= 256 - 48 for p in pairs)


def test_command_line_measures_apart_and_writes(model, tmp_path, capsys):
    """One run of the command: a process for the workload, whose memory is not this process's."""
    held = torch.ones(150_000_000)  # 572 MiB here, none of them there
    out, page = tmp_path / "steps.json", tmp_path / "docs" / "benchmarks.md"
    line = ["--model", model, "--only", "sft", "--adapter", "full", "--repeats", "1", "--threads", "1"]
    assert main([*line, "--json", str(out), "--out", str(page)]) == 0
    report = json.loads(out.read_text())
    assert set(report) == {"command", "date", "machine", "versions", "settings", "results"}
    assert set(report["machine"]) == {"processor", "cores", "memory_gib", "system", "load_before"}
    assert report["versions"]["torch"] == torch.__version__
    assert report["settings"] == {
        "model": model, "repeats": 1, "threads": 1, "data": None, "full_length": False
    }  # fmt: skip
    (result,) = report["results"]
    assert set(result) == {
        "name", "workload", "error", "seconds", "tokens", "median", "min", "max", "tokens_per_step",
        "tokens_per_second", "phases", "setup_seconds", "loaded_mib", "peak_mib", "gpu_peak_mib", "device",
    }  # fmt: skip
    assert result["name"] == "sft 8, full" and result["workload"]["batch"] == 8 and result["error"] is None
    here = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    assert here - result["peak_mib"] > held.nbytes / 2**20 - 200
    text = page.read_text()
    assert f"python -m benchmarks.steps --model {model} --only sft" in text
    assert "| sft 8, full |" in text and "shared" in text and report["machine"]["processor"] in text
    assert "sft 8, full" in capsys.readouterr().out


def test_a_failed_workload_is_a_row(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("benchmarks.steps.run_python", lambda *_: FailedChild())
    page = tmp_path / "page.md"
    assert main(["--only", "ppo", "--out", str(page)]) == 1
    assert page.read_text().count("killed by signal 9") == 6
    assert "| ppo 32, full | failed | – |" in page.read_text()
    assert "ppo 32, lora top 10: killed by signal 9" in capsys.readouterr().err


class FailedChild:
    returncode, stdout, stderr = -9, "", ""


def test_an_error_of_ours_says_what_to_do(model, monkeypatch, capsys):
    request = {
        "workload": {"kind": "sft", "adapter": "lora", "batch": 8},
        "settings": {"model": model, "repeats": 1, "threads": 1, "data": "nowhere.jsonl"},
    }
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(request)))
    assert benchmarks.measure.main() == DataError.exit_code
    assert "nowhere.jsonl: no such file" in capsys.readouterr().err


@pytest.mark.parametrize("line", [["--only", "sft,kto"], ["--repeats", "0"], ["--adapter", "qlora"]])
def test_wrong_options_are_refused(line, capsys):
    with pytest.raises(SystemExit):
        main(line)
    assert repr(line[1].split(",")[-1]) in capsys.readouterr().err


def test_page_shows_phases_of_ppo():
    result = {
        "name": "ppo 32, lora", "error": None, "device": "cpu", "median": 12.34, "min": 12.0, "max": 13.0,
        "tokens_per_step": 1500, "tokens_per_second": 121.6, "setup_seconds": 0.25, "loaded_mib": 900.4,
        "peak_mib": 2000.6, "phases": {"sample": 3.0, "score": 1.0, "infer": 2.5, "update": 5.84},
    }  # fmt: skip
    report = {
        "command": "python -m benchmarks.steps", "date": "2026-01-02T03:04:05+00:00", "results": [result],
        "machine": {"processor": "Abacus", "cores": 2, "memory_gib": 8.0, "system": "Linux", "load_before": 0.1},
        "settings": {"model": "tiny", "repeats": 3, "threads": 2, "data": "/home/me/pairs.jsonl"},
        "versions": {"torch": "2"},
    }  # fmt: skip
    text = markdown(report)
    assert "| ppo 32, lora | 12.3 | 12–13 | 1500 | 122 | 0.25 | 900 | 2001 |" in text
    assert "| ppo 32, lora | 3 | 1 | 2.5 | 5.84 |" in text
    assert "`pairs.jsonl`" in text and "/home/me" not in text
    assert "2026-01-02" in text and "Abacus, 2 cores (2 threads used), 8.0 GiB memory" in text
