"""The length head: its loss by hand, and what it does to annotators who like long answers."""

from typing import Any, cast

import pytest
import torch

from trimtab.algos import length_correlation
from trimtab.conformance.tabular import LinearReward
from trimtab.trainers import OptimizerConfig, Ranking, RewardConfig, Session, score_rankings, train_reward
from trimtab.trainers.length_head import LengthConfig, length_terms
from trimtab.trainers.rankings import ranking_batches
from trimtab.trainers.reward_heads import init_reward_head

F = torch.float64


def test_slope_is_the_derivative_and_the_correlation_is_pearsons_within_prompts():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(12, generator=generator, dtype=F).requires_grad_(True)
    lengths = torch.rand(12, generator=generator, dtype=F) * 50
    prompts = torch.arange(12) // 3
    rho, slope = length_correlation(scores.detach(), lengths, prompts)
    centred = [x - torch.stack([x[prompts == p].mean() for p in range(4)])[prompts] for x in (scores, lengths)]
    wanted = torch.corrcoef(torch.stack(centred))[0, 1]  # both have mean 0, so Pearson's needs no more
    wanted.backward()
    assert rho == pytest.approx(float(wanted.detach()))
    torch.testing.assert_close(slope, scores.grad)
    assert float(slope @ scores.detach()) == pytest.approx(0.0, abs=1e-9)


def test_without_spread_there_is_no_correlation():
    rho, slope = length_correlation(torch.zeros(4), torch.arange(4.0), torch.tensor([0, 0, 1, 1]))
    assert rho == 0.0 and not slope.any()


def planted(count: int, seed: int) -> tuple[torch.Tensor, list[Ranking], torch.Tensor, torch.Tensor]:
    """Pairs judged by quality and, twice as much, by length; the model sees noisy signs of both."""
    generator = torch.Generator().manual_seed(seed)
    quality = torch.randn(2 * count, generator=generator, dtype=F)
    words = torch.randint(1, 30, (2 * count,), generator=generator)
    wide = (words - 15.0).to(F) / 8
    noise = torch.randn(2 * count, 3, generator=generator, dtype=F)
    features = torch.cat([(quality + 0.2 * noise[:, 0])[:, None], (wide + 0.2 * noise[:, 1])[:, None], noise[:, 2:]], 1)
    gap = (quality + 2 * wide)[0::2] - (quality + 2 * wide)[1::2]
    won = torch.rand(count, generator=generator, dtype=F) < torch.sigmoid(gap)
    rankings = [
        Ranking(
            id=str(n), sequences=[[0, i, *[0] * int(words[i] - 1)] for i in (2 * n, 2 * n + 1)], prompt_length=1,
            ranks=(0, 1) if won[n] else (1, 0), probability=None, margin=None, weight=1.0,
        )
        for n in range(count)
    ]  # fmt: skip
    return features, rankings, quality, words


def fitted(length: LengthConfig | None, rows: list[dict], **settings: Any) -> tuple[LinearReward, Any]:
    features, rankings, quality, words = planted(400, 0)
    role = LinearReward(features, heads=1 if length is None else 2)
    steady = OptimizerConfig(lr=0.1, schedule="cosine", warmup=0.0, max_grad_norm=None)
    config = RewardConfig(length=length, optimizer=steady, **{"batch": 400, "epochs": 60} | settings)
    train_reward(cast(Any, role), rankings, config, seed=0, session=Session(log=rows.append))
    return role, (features, rankings, quality, words)


def test_the_reward_no_longer_follows_length_and_quality_decides():
    """Annotators with a length bias: correlation falls, accuracy where length says nothing rises."""
    whole = {"micro_batch_tokens": 1 << 22}
    rows: list[dict] = []
    measured = {}
    for name, length in (("plain", None), ("length", LengthConfig())):
        role, (_, rankings, quality, words) = fitted(length, rows, **whole)
        scores = torch.tensor(score_rankings(cast(Any, role), rankings)).flatten()
        rho, _ = length_correlation(scores, words.float(), torch.arange(len(scores)) // 2)
        gaps, longer = (quality[0::2] - quality[1::2]), words[0::2] - words[1::2]
        better_is_longer = (gaps > 0) == (longer > 0)
        right = (gaps > 0) == (scores[0::2] > scores[1::2])
        halves = [float(right[side].double().mean()) for side in (better_is_longer, ~better_is_longer)]
        measured[name] = rho, sum(halves) / 2
    assert measured["plain"][0] > 0.8 and abs(measured["length"][0]) < 0.1
    assert measured["length"][1] > measured["plain"][1] + 0.2
    last = rows[-1]
    assert abs(last["length_correlation"]) < 0.1 and last["length_head_correlation"] > 0.9


def test_the_first_loss_by_hand_however_it_is_cut():
    losses = []
    for budget in (1 << 22, 100):
        rows: list[dict] = []
        settings = {"batch": 20, "epochs": 0.05, "micro_batch_tokens": budget}
        _, (features, rankings, _, words) = fitted(LengthConfig(correlation=0.7, orthogonality=0.3), rows, **settings)
        losses.append(rows[0]["loss"])
    fresh = LinearReward(features, heads=2)
    init_reward_head(cast(Any, fresh), 0)
    from trimtab.trainers.sft import step_indices

    chosen = [rankings[i] for i in step_indices(400, 20, 0, 0)]
    numbers = fresh.scalar(features).detach()
    places = [s[1] for r in chosen for s in r.sequences]
    owner = torch.arange(40) // 2
    of = [length_correlation(numbers[places, head], words[places].to(F), owner)[0] for head in (0, 1)]
    both = numbers.sum(1)
    ordered = [[r.sequences[r.ranks.index(rank)][1] for rank in (0, 1)] for r in chosen]
    nll = [float(torch.nn.functional.softplus(both[worse] - both[better])) for better, worse in ordered]
    cosine = abs(float(torch.nn.functional.cosine_similarity(*fresh.scalar.weight.detach(), dim=0)))
    wanted = sum(nll) / 20 + 0.7 * (abs(of[0]) - of[1]) + 0.3 * cosine
    assert losses == pytest.approx([wanted, wanted], abs=1e-6)
    parts = ranking_batches(chosen, 100, cast(Any, fresh))
    assert len(parts) > 3 and length_terms(cast(Any, fresh), parts, None).of_quality == pytest.approx(of[0])
