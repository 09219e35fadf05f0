"""Scores of several reward models as one, by hand."""

import pytest
import torch

from trimtab.algos import ensemble_score, ensemble_spread
from trimtab.errors import ConfigError, NonFiniteError, TrainingError

SCORES = torch.tensor([[1.0, 0.0], [3.0, 0.0], [5.0, -6.0]])
"""Three members, two answers: means 3 and −2; standard deviations √(8/3) and √8, with 1/M."""


def test_three_combinations_by_hand():
    assert ensemble_score(SCORES, "mean").tolist() == [3.0, -2.0]
    assert ensemble_score(SCORES, "worst").tolist() == [1.0, -6.0]
    wanted = [3.0 - 0.5 * (8 / 3) ** 0.5, -2.0 - 0.5 * 8**0.5]
    assert ensemble_score(SCORES, "penalised", penalty=0.5).tolist() == pytest.approx(wanted)
    assert ensemble_spread(SCORES).tolist() == pytest.approx([(8 / 3) ** 0.5, 8**0.5])


def test_one_member_is_itself():
    assert ensemble_score(SCORES[:1], "penalised").tolist() == [1.0, 0.0]
    assert ensemble_spread(SCORES[:1]).tolist() == [0.0, 0.0]


def test_what_is_refused():
    with pytest.raises(NonFiniteError, match="member 2 of 3 gave a score that is NaN"):
        ensemble_score(torch.tensor([[1.0], [float("nan")], [1.0]]), "mean")
    with pytest.raises(ConfigError, match="'best'; use 'mean', 'worst' or 'penalised'"):
        ensemble_score(SCORES, "best")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="penalty is -1"):
        ensemble_score(SCORES, "penalised", penalty=-1)
    with pytest.raises(TrainingError, match="two dimensions"):
        ensemble_score(SCORES[0], "mean")
    with pytest.raises(TrainingError, match="without members"):
        ensemble_score(SCORES[:0], "mean")
