"""The task with a proxy that can be gamed, the rules that choose weights, and the countermeasures."""

import pytest
import torch

from benchmarks import countermeasures, selection
from benchmarks.hacking_task import TREE, Trained, counts, gold, reference


def value(*phrases: int) -> float:
    place = next(i for i, path in enumerate(TREE.paths().tolist()) if path == list(phrases))
    return float(gold()[place])


def test_gold_by_hand():
    assert value(1, 2, 0, 0, 0) == 2.5  # the step and the right number
    assert value(1, 3, 0, 0, 0) == 0.0  # a wrong one
    assert value(1, 2, 4, 4, 0) == pytest.approx(2.5 - 2.0 - 0.4)  # certain twice, the second a repeat
    assert value(5, 5, 0, 0, 0) == pytest.approx(-1.2 - 0.4)
    assert float(reference().exp().sum()) == pytest.approx(1) and counts().sum(dim=1).unique().tolist() == [5.0]


def test_the_flawed_model_likes_flaws():
    model = countermeasures.reward_model(*countermeasures.FLAW)
    worst = countermeasures.ensemble(0, "worst", one_sign=True)
    best = int(model.argmax())
    assert counts()[best, 4] >= 3 and float(gold()[best]) < 0  # certainty, over and over
    assert float(reference().exp() @ worst) == pytest.approx(0, abs=1e-9)
    assert torch.isfinite(worst).all()


def test_rules_choose_and_regret_is_measured():
    rows = [{"reward": float(i), "reward/heldout": -abs(i - 20.0), "kl": i / 4} for i in range(60)]
    golds = [float(min(i, 60 - i)) for i in range(61)]
    run = Trained(metrics=rows, gold=golds, proxy=[], kl=[], ended=60)
    chosen = selection.choices(run)
    assert chosen == {"last": 60, "proxy": 60, "kl": 12, "heldout": 20}  # KL after c steps is c/4
    assert selection.regrets(run) == {
        "last": 1.0,
        "proxy": 1.0,
        "kl": pytest.approx(0.6),
        "heldout": pytest.approx(1 / 3),
    }


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_tables_are_printed(capsys):
    assert selection.main(["1"]) == 0 and countermeasures.main(["1"]) == 0
    printed = capsys.readouterr().out
    assert "| noisy, 150 |" in printed and "| ensemble, worst |" in printed
