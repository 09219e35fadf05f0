"""Penalties on whole answers, against numbers worked out by hand."""

import math

import pytest
import torch

from trimtab.algos import (
    overlong_penalty,
    penalise_missing_eos,
    reinforce_pp_advantage,
    reinforce_pp_baseline_advantage,
)
from trimtab.errors import ConfigError, TrainingError

NAN = math.nan
TWO, ENDED = torch.tensor([2.0, 2.0]), torch.tensor([True, False])


@pytest.mark.parametrize(
    ("mode", "penalty", "expected"),
    [("replace", -1.0, -1.0), ("subtract", -1.0, 1.0), ("subtract", 1.0, 1.0), ("replace", 0.0, 0.0)],
)
def test_missing_eos(mode, penalty: float, expected: float):
    """Trap 9: the second answer was cut."""
    assert penalise_missing_eos(TWO, ENDED, penalty=penalty, mode=mode).tolist() == [2.0, expected]


@pytest.mark.parametrize("mode", ["replace", "subtract"])
@pytest.mark.parametrize("score", [-7.0, -1.0, -0.5, 0.0, 3.0])
def test_being_cut_never_raises_a_score(mode, score: float):
    worth = penalise_missing_eos(torch.tensor([score, score]), ENDED, penalty=-1.0, mode=mode)
    assert worth[1] <= worth[0] == score


def test_replacing_also_replaces_a_useless_score():
    assert penalise_missing_eos(torch.tensor([2.0, NAN]), ENDED, penalty=-1.0).tolist() == [2.0, -1.0]


def test_missing_eos_refuses():
    with pytest.raises(ConfigError, match="penalty is nan"):
        penalise_missing_eos(TWO, ENDED, penalty=NAN)
    with pytest.raises(ConfigError, match="mode is 'drop'"):
        penalise_missing_eos(TWO, ENDED, penalty=-1.0, mode="drop")  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match=r"ended is torch\.float32"):
        penalise_missing_eos(TWO, TWO, penalty=-1.0)
    with pytest.raises(TrainingError, match="ended"):
        penalise_missing_eos(TWO, ENDED[:1], penalty=-1.0)


def test_overlong_penalty_of_the_paper():
    """L_max = 20,480 and L_cache = 4,096, as DAPO was trained (arXiv 2503.14476, section 4.1)."""
    lengths = torch.tensor([1, 16_384, 17_408, 18_432, 20_480])
    assert overlong_penalty(lengths, max_tokens=20_480, buffer=4096).tolist() == [0, 0, -0.25, -0.5, -1]


@pytest.mark.parametrize("buffer", [0, 9])
def test_overlong_buffer_that_cannot_be(buffer):
    with pytest.raises(ConfigError, match="set it from 1 to 8"):
        overlong_penalty(torch.tensor([3]), max_tokens=8, buffer=buffer)


def test_group_means_are_taken_off_at_the_last_token():
    """Totals 3 and 1: mean 2, so the first answer's last reward falls from 2 to 0 and the second's from 1 to −1."""
    rewards = torch.tensor([[0.0, 1.0, 2.0], [0.0, 1.0, 0.0]])
    mask = torch.tensor([[False, True, True], [False, True, False]])
    centred = torch.tensor([[0.0, 1.0, 0.0], [0.0, -1.0, 0.0]])
    advantages = reinforce_pp_baseline_advantage(rewards, mask, group=2)
    assert torch.equal(advantages, reinforce_pp_advantage(centred, mask))
    # to come: 1, 0 and −1; mean 0, variance 2/3
    assert advantages[mask].tolist() == pytest.approx([1.5**0.5, 0.0, -(1.5**0.5)])
    # an answer without a token is in no mean: the other one's group is itself, so its total becomes 0
    alone = torch.tensor([[False, True, True], [False, False, False]])
    assert reinforce_pp_baseline_advantage(rewards, alone, group=2)[alone].tolist() == pytest.approx(
        [1.0, -1.0], abs=1e-3
    )
    with pytest.raises(TrainingError, match="2 answers are no whole number of groups of 3"):
        reinforce_pp_baseline_advantage(rewards, mask, group=3)
