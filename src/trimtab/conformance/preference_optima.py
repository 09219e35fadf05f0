"""Experiment 3, continued: where list-wise DPO, length-normalised DPO, NCA and EXO end on all labels there can be."""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from trimtab.conformance.rows import Row, worst_row
from trimtab.conformance.tables import BETA, STEADY, F, gibbs, kl, ranking, train_on_rankings
from trimtab.conformance.tabular import Tree
from trimtab.trainers import DpoConfig, ExoConfig, NcaConfig, PairConfig, PlackettLuceConfig, Ranking

NAME = "3 preferences"


def preference_optima(seeds: Sequence[int]) -> Iterator[Row]:
    """Each method's own optimum, known in closed form, against where its trainer ends."""
    yield worst_row(NAME, "plackett_luce on rankings of three", "KL(π‖π*)", [_listwise(s) for s in seeds], high=1e-9)
    yield worst_row(
        NAME, "dpo, per token, answers of two tokens", "KL(π‖π* of β/2)", [_per_token(s) for s in seeds], high=1e-9
    )
    yield worst_row(NAME, "nca, β = 1, uniform reference", "KL(π‖2·ref·E p)", [_nca(s) for s in seeds], high=1e-9)
    yield worst_row(
        NAME,
        "exo on two answers",
        "distance of its log-odds from the known end",
        [_exo(s) for s in seeds],
        high=1e-6,
    )


def _instance(seed: int, count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2000 + seed)
    ref, reward = torch.randn(2, count, generator=generator, dtype=F)
    return torch.log_softmax(ref, 0), reward


def _end(tree: Tree, ref: Tensor, rankings: list[Ranking], kind: type, seed: int, **settings: Any) -> Tensor:
    """The policy's table after training on all the rankings at once."""
    config: PairConfig = kind(
        optimizer=STEADY, epochs=400, batch=len(rankings), holdout=0.0, micro_batch_tokens=1 << 20, **settings
    )
    return train_on_rankings(tree, ref, rankings, config, seed=seed)


def _listwise(seed: int) -> float:
    ref, reward = _instance(seed, 4)
    rankings = []
    for triple in itertools.permutations(range(4), 3):
        left, weight = reward[list(triple)], 1.0
        for place in range(3):  # the best is drawn first, then the best of the rest
            weight *= float(torch.softmax(left[place:], 0)[0])
        rankings.append(ranking([[i] for i in triple], weight))
    end = _end(Tree(actions=4), ref[None], rankings, PlackettLuceConfig, seed, beta=BETA)
    return kl(torch.log_softmax(end[0], 0), gibbs(ref, reward, BETA))


def _per_token(seed: int) -> float:
    tree = Tree(actions=2, depth=2)
    generator = torch.Generator().manual_seed(2100 + seed)
    ref = torch.randn(tree.states, 2, generator=generator, dtype=F)
    reward, paths = torch.randn(4, generator=generator, dtype=F), tree.paths().tolist()
    rankings = [
        ranking([paths[i], paths[j]], float(torch.sigmoid(reward[i] - reward[j])))
        for i, j in itertools.permutations(range(4), 2)
    ]
    end = _end(tree, ref, rankings, DpoConfig, seed, beta=2 * BETA, normalise=True)
    return kl(tree.path_logprobs(end), gibbs(tree.path_logprobs(ref), reward, BETA))


def _nca(seed: int, count: int = 4) -> float:
    """With a uniform reference and all pairs alike, π/ref is an answer's share of the wins over its share of all."""
    _, reward = _instance(seed, count)
    ref = torch.full((count,), -math.log(count), dtype=F)
    beats = torch.sigmoid(reward[:, None] - reward[None])
    rankings = [ranking([[i], [j]], float(beats[i, j])) for i, j in itertools.permutations(range(count), 2)]
    end = _end(Tree(actions=count), ref[None], rankings, NcaConfig, seed, beta=1.0)[0]
    wins = (beats.sum(1) - 0.5) / (count - 1)  # P(i beats another answer)
    return kl(torch.log_softmax(end, 0), torch.log(2 * wins) + ref)


def _exo(seed: int, eps: float = 0.05) -> float:
    """Of two answers: log-odds (2p − 1)·log((1 − ε)/ε)/β beyond the reference's."""
    ref, reward = _instance(seed, 2)
    often = float(torch.sigmoid(reward[0] - reward[1]))
    rankings = [ranking([[0], [1]], often), ranking([[1], [0]], 1 - often)]
    end = _end(Tree(actions=2), ref[None], rankings, ExoConfig, seed, beta=BETA, eps=eps)[0]
    goal = float(ref[0] - ref[1]) + (2 * often - 1) * math.log((1 - eps) / eps) / BETA
    return abs(float(end[0] - end[1]) - goal)
