"""Experiments 3, 5 and 7: preferences, reward models, process rewards."""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from trimtab.algos import process_reward_loss, process_score
from trimtab.conformance.rows import Row, worst_row
from trimtab.conformance.tables import BETA, STEADY, F, gibbs, kl, ranking, train_on_rankings
from trimtab.conformance.tabular import LinearReward, Tree
from trimtab.trainers import DpoConfig, IpoConfig, PairConfig, RewardConfig, train_reward

# 3 ------------------------------------------------------------------------------------------


def preference_identities(seeds: Sequence[int]) -> Iterator[Row]:
    """Eight answers and the whole population of labels, with and without one label in five flipped."""
    name, flips = "3 preferences", 0.2
    tree = Tree(actions=8)

    def instance(seed: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(2000 + seed)
        return torch.log_softmax(torch.randn(8, generator=generator, dtype=F), 0), torch.randn(
            8, generator=generator, dtype=F
        )

    def better(reward: Tensor) -> Tensor:
        return torch.sigmoid(reward[:, None] - reward[None])

    def end(config: PairConfig, seed: int, *, flipped: float = 0.0, by_ref: bool = False) -> Tensor:
        ref, reward = instance(seed)
        seen = (1 - flipped) * better(reward) + flipped * better(reward).T
        rankings = []
        for i, j in itertools.permutations(range(8), 2):  # labels that prefer i to j, by their share
            often = float(seen[i, j]) * (float((ref[i] + ref[j]).exp()) if by_ref else 1.0)
            rankings.append(ranking([[i], [j]], often))
        return torch.log_softmax(train_on_rankings(tree, ref[None], rankings, config, seed=seed)[0], 0)

    def fit(**more: Any) -> dict[str, Any]:
        return {"optimizer": STEADY, "epochs": 800, "batch": 64, "holdout": 0.0} | more

    def away(config: PairConfig, **more: Any) -> list[float]:
        return [kl(end(config, s, **more), gibbs(*instance(s), BETA)) for s in seeds]

    exact = DpoConfig(beta=BETA, **fit())
    yield worst_row(name, "dpo", "KL(π‖π*)", away(exact), high=1e-9)
    robust = DpoConfig(beta=BETA, label_smoothing=flips, smoothing="robust", **fit())
    yield worst_row(name, "robust dpo, 20 % flipped", "KL(π‖π*)", away(robust, flipped=flips), high=1e-9)
    believed = away(exact, flipped=flips)
    yield worst_row(name, "dpo, 20 % flipped", "KL(π‖π*): it believes the flips", believed, low=0.03, high=1.0)
    cautious = DpoConfig(beta=BETA, label_smoothing=flips, **fit())
    further = [c - d for c, d in zip(away(cautious, flipped=flips), believed, strict=True)]
    yield worst_row(name, "cdpo, 20 % flipped", "KL(π‖π*) beyond DPO's: more cautious", further, low=0.0, high=1.0)
    ipo, distances = IpoConfig(tau=BETA, **fit()), []
    for seed in seeds:
        ref, reward = instance(seed)
        wins = better(reward) @ ref.exp()  # E_{y'~ref} p(y beats y')
        distances.append(kl(end(ipo, seed, by_ref=True), torch.log_softmax(ref + wins / BETA, 0)))
    yield worst_row(name, "ipo", "KL(π‖ref·exp(E p/τ))", distances, high=1e-9)


# 5 ------------------------------------------------------------------------------------------


def reward_efficiency(seeds: Sequence[int], pairs: int = 8000) -> Iterator[Row]:
    """A linear Bradley–Terry model in ten dimensions: as efficient as theory allows, and calibrated."""
    name, size = "5 reward model", 10
    errors, ahead, off = [], [], []
    for seed in seeds:
        generator = torch.Generator().manual_seed(4000 + seed)
        true = torch.randn(size, generator=generator, dtype=F) / math.sqrt(size) * 1.5
        features = torch.randn(2 * pairs, size, generator=generator, dtype=F)
        gaps = features[0::2] - features[1::2]
        won = torch.rand(pairs, generator=generator, dtype=F) < torch.sigmoid(gaps @ true)
        rankings = [
            ranking([[2 * i], [2 * i + 1]], ranks=(0, 1) if first else (1, 0)) for i, first in enumerate(won.tolist())
        ]
        role = LinearReward(features)
        config = RewardConfig(
            optimizer=STEADY, batch=pairs, epochs=80, holdout=0.0, centring=0.0, micro_batch_tokens=1 << 22
        )
        train_reward(cast(Any, role), rankings, config, seed=seed)
        fitted = role.scalar.weight.detach()[0]
        chance = torch.sigmoid(gaps @ true)
        fisher = (gaps * (chance * (1 - chance))[:, None]).T @ gaps
        errors.append(float((fitted - true) @ fisher @ (fitted - true)) / size)
        fresh = torch.randn(200_000, size, generator=generator, dtype=F) * math.sqrt(2)
        truth, predicted = torch.sigmoid(fresh @ true), torch.sigmoid(fresh @ fitted)
        outcome = torch.rand(len(fresh), generator=generator, dtype=F) < truth
        bayes = torch.maximum(truth, 1 - truth)
        error = math.sqrt(float((bayes * (1 - bayes)).mean()) / len(fresh))
        ahead.append((float(((predicted > 0.5) == outcome).double().mean()) - float(bayes.mean())) / error)
        bins = (predicted * 10).long().clamp(max=9)
        totals = torch.zeros(10, dtype=F).index_add_(0, bins, predicted - truth)
        off.append(float(totals.abs().sum()) / len(fresh))
    mean, deviation = sum(errors) / len(errors), math.sqrt(2 / size / len(errors))
    yield worst_row(
        name,
        "Bradley–Terry",
        "Fisher-normalised error / D, mean; 1 ± 3 SE",
        [mean],
        low=1 - 3 * deviation,
        high=1 + 3 * deviation,
        seeds=len(seeds),
    )
    yield worst_row(name, "Bradley–Terry", "accuracy above Bayes, in standard errors", ahead, high=3.0)
    yield worst_row(name, "Bradley–Terry", "calibration error", off, high=0.01)


# 7 ------------------------------------------------------------------------------------------


def process_and_outcome(seeds: Sequence[int]) -> Iterator[Row]:
    """Six steps, each right three times in four; a wrong solution ends right by luck 15 times in 100. Best of 64.

    What a model sees of a step (and of the ending) is right or wrong plus noise; the process model learns
    from step labels, the outcome model from endings.
    """
    name, steps, signal = "7 process rewards", 6, 2.5
    by_process, by_outcome = [], []
    for seed in seeds:
        generator = torch.Generator().manual_seed(7000 + seed)

        def solutions(count: int, generator: torch.Generator = generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            right = torch.rand(count, steps, generator=generator) < 0.75
            ending = right.all(1) | (torch.rand(count, generator=generator) < 0.15)
            seen = signal * (2.0 * right - 1) + torch.randn(count, steps, generator=generator)
            seen_end = signal * (2.0 * ending - 1) + torch.randn(count, generator=generator)
            return right, ending, seen, seen_end

        right, ending, seen, seen_end = solutions(2000)
        process, outcome = _logistic(seen, right), _logistic(seen_end[:, None], ending[:, None])
        right, ending, seen, seen_end = solutions(2000 * 64)
        valid = right.all(1).view(-1, 64)
        mask = torch.ones(seen.shape, dtype=torch.bool)
        scores = process_score(process[0] * seen + process[1], mask).view(-1, 64)
        ends = (outcome[0] * seen_end + outcome[1]).view(-1, 64)
        rows = torch.arange(len(valid))
        by_process.append(float(valid[rows, scores.argmax(1)].double().mean()))
        by_outcome.append(float(valid[rows, ends.argmax(1)].double().mean()))
    share = 0.75**6 / (0.75**6 + (1 - 0.75**6) * 0.15)
    yield worst_row(
        name, "process reward model", "valid solutions among the best of 64", by_process, low=0.95, high=1.0
    )
    yield worst_row(
        name, "outcome reward model", f"valid solutions among the best of 64, {share:.3f} by calculation", by_outcome,
        low=share - 0.05, high=share + 0.05,
    )  # fmt: skip


def _logistic(seen: Tensor, right: Tensor) -> tuple[float, float]:
    """Slope and offset of a step's logit, by :func:`~trimtab.algos.process_reward_loss`."""
    weights = torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.Adam([weights], lr=0.1)
    mask = torch.ones(seen.shape, dtype=torch.bool)
    for _ in range(150):
        optimizer.zero_grad()
        process_reward_loss(weights[0] * seen + weights[1], right.float(), mask).sum().div(seen.numel()).backward()
        optimizer.step()
    slope, offset = weights.detach().tolist()
    return slope, offset
