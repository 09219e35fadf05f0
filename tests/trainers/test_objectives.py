"""Reward models with several heads: what each learns, and the scores that rankings get."""

from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from pydantic import ValidationError

from trimtab.conformance.tabular import LinearReward
from trimtab.errors import DataError
from trimtab.models import AdapterConfig, Role
from trimtab.testing import tiny_backbone
from trimtab.trainers import OptimizerConfig, Ranking, RewardConfig, score_rankings, train_reward

from .rankings import ranking

TWO = ("helpful", "harmless")


def pair(number: int, first: int, second: int, better: int, head: int) -> Ranking:
    return Ranking(
        id=str(number), sequences=[[0, first], [0, second]], prompt_length=1, ranks=(better, 1 - better),
        probability=None, margin=None, weight=1.0, head=head,
    )  # fmt: skip


def planted(count: int = 300) -> tuple[torch.Tensor, torch.Tensor, list[Ranking]]:
    """Answers with six features; each criterion weighs them in its own way, and a third of the pairs lack one."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2 * count, 6, generator=generator, dtype=torch.float64)
    truth = torch.randn(2, 6, generator=generator, dtype=torch.float64) * 2
    rankings = []
    for n in range(count):
        gaps = (features[2 * n] - features[2 * n + 1]) @ truth.T
        won = torch.rand(2, generator=generator, dtype=torch.float64) < torch.sigmoid(gaps)
        for head in range(2):
            if n % 3 != head:  # the criterion that was not judged
                rankings.append(pair(n, 2 * n, 2 * n + 1, int(not won[head]), head))
    return features, truth, rankings


def test_each_head_learns_its_own_criterion():
    features, truth, rankings = planted()
    role = LinearReward(features, heads=2)
    steady = OptimizerConfig(lr=0.15, schedule="cosine", warmup=0.0, max_grad_norm=None)
    settings = RewardConfig(objectives=TWO, optimizer=steady, batch=1000, epochs=50, micro_batch_tokens=1 << 22)
    train_reward(cast(Any, role), rankings, settings, seed=0)
    alike = torch.nn.functional.cosine_similarity(role.scalar.weight.detach()[:, None], truth[None], dim=-1)
    assert float(alike.diagonal().min()) > 0.95 and float(alike[0, 1]) < 0.9


def test_rankings_are_scored_by_their_own_head():
    features, _, rankings = planted(30)
    role = LinearReward(features, heads=2)
    numbers = role.scalar(features).tolist()
    for given in (rankings, [r for r in rankings if r.head == 1]):
        wanted = [numbers[s[1]][r.head] for r in given for s in r.sequences]
        assert [x for row in score_rankings(cast(Any, role), given) for x in row] == pytest.approx(wanted, abs=1e-5)


def test_an_objective_without_a_label_is_named():
    features, _, rankings = planted(30)
    only = [r for r in rankings if r.head == 0]
    with pytest.raises(DataError, match="objective 'harmless': none of the 20 preferences"):
        train_reward(cast(Any, LinearReward(features, heads=2)), only, RewardConfig(objectives=TWO), seed=0)


def test_heads_of_a_language_model_are_saved_and_loaded():
    adapter = AdapterConfig(rank=4, alpha=8)
    role, other = (
        Role.trainable(tiny_backbone(), "reward", adapter, seed=1, scalar_head=True, heads=3) for _ in range(2)
    )
    chat = role.backbone.chat
    rankings = [replace(ranking(chat, n, (0, 1)), head=n % 3) for n in range(6)]
    config = RewardConfig(objectives=("a", "b", "c"), batch=2, head_init="probe")
    train_reward(role, rankings, config, seed=0)
    other.load_state(role.state())
    assert score_rankings(other, rankings) == score_rankings(role, rankings)
    assert role.scalar is not None and role.scalar.weight.shape == (3, role.backbone.width)
    assert len({round(float(w.norm()), 6) for w in role.scalar.weight.detach()}) == 3  # each head has a fit of its own


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objectives": ("helpful",)}, "one objective needs no head of its own"),
        ({"objectives": ("a", "a")}, "each can be named once"),
        ({"objectives": ("a", "b"), "length": {}}, "both use several heads"),
        ({"length": {}, "head_init": "probe"}, "head_init is 'probe'"),
        ({"annotators": ("tie",)}, "loss 'bradley_terry' knows none"),
        ({"annotators": ("tie",), "loss": "davidson", "tie": 0.5}, "tie is 0.5"),
        ({"annotators": ("tie",), "loss": "davidson", "objectives": ("a", "b")}, "votes by one criterion"),
    ],
)
def test_settings_that_contradict_each_other(settings: dict, message: str):
    with pytest.raises(ValidationError, match=message):
        RewardConfig.model_validate(settings)
