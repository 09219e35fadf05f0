"""Answers unlike the training answers: covariance, distances, limit."""

import pytest
import torch

from trimtab.errors import TrainingError
from trimtab.trainers.outliers import known_answers, shrunk_covariance, squared_distances


def test_the_covariance_is_ledoit_and_wolfs():
    covariance = pytest.importorskip("sklearn.covariance", reason="NOT TESTED: scikit-learn is not installed")
    for rows in (8, 60):
        x = torch.randn(rows, 12, generator=torch.Generator().manual_seed(rows), dtype=torch.float64)
        x = x * torch.linspace(0.2, 3, 12)
        theirs = covariance.LedoitWolf().fit(x.numpy()).covariance_
        assert shrunk_covariance(x).numpy() == pytest.approx(theirs, abs=1e-9)


def test_far_answers_are_outliers_and_like_answers_are_not():
    draw = torch.Generator().manual_seed(0)
    train = torch.randn(400, 6, generator=draw, dtype=torch.float64)
    known = known_answers(train, range(400))
    assert float(known.outliers(torch.randn(400, 6, generator=draw, dtype=torch.float64)).double().mean()) < 0.06
    assert bool(known.outliers(train[:5] + 10).all())
    assert squared_distances(torch.tensor([[3.0, 4.0]]), torch.zeros(2), torch.eye(2)).tolist() == [25.0]
    with pytest.raises(TrainingError, match="at least 20"):
        known_answers(train[:10], range(10))
    with pytest.raises(TrainingError, match="to 1 prompts"):
        known_answers(train, ["one"] * 400)


def test_new_answers_are_outliers_as_often_as_the_limit_says_where_answers_to_a_prompt_are_alike():
    """Two answers to a prompt share four fifths of their variance; 60 dimensions, 100 prompts."""
    draw = torch.Generator().manual_seed(0)

    def answers(prompts: int) -> torch.Tensor:
        shared = 2 * torch.randn(prompts, 1, 60, generator=draw, dtype=torch.float64)
        alike = (shared + torch.randn(prompts, 2, 60, generator=draw, dtype=torch.float64)).reshape(-1, 60)
        return alike * torch.logspace(0, -2, 60, dtype=torch.float64)

    prompts = [i // 2 for i in range(200)]
    shares = [known_answers(answers(100), prompts).outliers(answers(500)).double().mean() for _ in range(20)]
    assert float(sum(shares)) / 20 < 0.06  # 1 %, and the error of a quantile of 100 answers
