"""Several runs on one page: finished, unfinished, and what cannot be compared."""

import json
from pathlib import Path

import pytest
import yaml

from tests.evals.toy import toy_report
from trimtab.cli.app import run_app
from trimtab.evals.charts import percent
from trimtab.pipeline.run_comparison import against_first, differing, read_run, render_comparison
from trimtab.records import Prompt, Rollout, write_records


def made(folder: Path, gold: list[float], *, utility: str | None = "a.b", lr: float = 0.1, steps: int = 3) -> Path:
    """A run's folder as a finished run leaves it, without its report."""
    align, evaluate = folder / "stages" / "align", folder / "stages" / "evaluate"
    for stage in (align, evaluate):
        stage.mkdir(parents=True)
    (folder / "config.yaml").write_text(
        yaml.safe_dump({"name": folder.name, "gold": utility, "align": {"policy": {"lr": lr}}})
    )
    rows = [{"step": i, "time": i, "reward": i, "gold": i / 2, "kl": i / 10} for i in range(1, steps + 1)]
    (align / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 9, "rew')
    rollouts = [
        Rollout(
            id=str(i), prompt=Prompt.from_text(f"q {i}"), prompt_tokens=[1], tokens=[2], logprobs=[-1.0], text="a",
            finish_reason="stop", weight_version=0, rewards={"gold": value},
        )
        for i, value in enumerate(gold)
    ]  # fmt: skip
    write_records(evaluate / "answers-policy.jsonl", rollouts)
    return folder


def test_two_runs_on_a_page(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    made(tmp_path / "a", [0.0, 1.0, 2.0, 3.0]), made(tmp_path / "b", [1.0, 2.0, 2.0, 2.0], lr=0.2)
    (tmp_path / "a" / "report.json").write_text(toy_report().model_dump_json())
    assert run_app(["report", "a", "b"]) == 0
    page = (tmp_path / "comparison.html").read_text()
    assert percent(0.625) in page  # two wins, a tie and a loss
    assert (
        "align.policy.lr" in page and "has no report yet" in page and page.count("<svg") >= 4 and "<script" not in page
    )
    runs = [read_run(Path("a")), read_run(Path("b"))]
    [row] = against_first(runs)
    assert (row.win.wins, row.win.ties, row.win.losses) == (2, 1, 1) and row.gain.value == 0.25
    assert differing(runs) == {"align.policy.lr": ["0.1", "0.2"]} and len(runs[0].metrics) == 3
    for arguments, message in (
        (["a", "a"], "named twice"),
        (["a", "b", "c", "d", "e"], "at most 4"),
        (["a", "nothing"], "no run; expected a folder"),
        (["a", "b", "--set", "x=1"], "for a recipe"),
    ):
        assert run_app(["report", *arguments]) != 0
        assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"gold": [1.0], "utility": None}, "no gold utility in common"),
        ({"gold": []}, "no held-out prompt in common"),
        ({"gold": [float("inf")]}, "not all answers have a score"),
    ],
)
def test_what_cannot_be_compared_is_said(tmp_path, other, reason):
    runs = [read_run(made(tmp_path / "a", [0.0])), read_run(made(tmp_path / "b", **other, steps=0))]
    assert reason in against_first(runs)[0].reason
    assert reason in render_comparison(runs)
