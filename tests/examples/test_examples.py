"""The examples run, stay short, and print what they promise."""

import json
import runpy
from collections.abc import Callable
from pathlib import Path

import pytest

from trimtab.testing import save_model, sentences

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Run an example as a script, here: ``run(name, *arguments)`` returns what it prints."""

    def script(name: str, *arguments: str) -> str:
        monkeypatch.setattr("sys.argv", [name, *arguments])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return script


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda p: p.name)
def test_under_forty_lines(path):
    assert len(path.read_text().splitlines()) < 40


def test_there_are_three():
    assert len(list(EXAMPLES.glob("*.py"))) == 3


def test_ppo_with_your_reward(run, tmp_path):
    printed = run("ppo_with_your_reward.py", str(save_model(tmp_path / "model")), "2")
    assert printed.count("KL") == 2 and printed.count("→") == 4


def test_train_on_your_preferences(run, tmp_path):
    rows = [
        {"prompt": p, "chosen": f"{a} thank you", "rejected": a}
        for p, a in zip(sentences(20, words=4), sentences(20, start=300), strict=True)
    ]
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    printed = run("train_on_your_preferences.py", str(file), str(save_model(tmp_path / "model")))
    assert "20 preferences in format trl-preference, 0 rows refused" in printed and "held-out accuracy" in printed


def test_labels_to_agreement_and_pairs(run):
    printed = run("labels_to_agreement_and_pairs.py")
    assert "What is a trim tab? (0, 1) 1.0 from ann-0, bob-0" in printed
    assert "raw_agreement        0.67" in printed  # two of three items judged alike
