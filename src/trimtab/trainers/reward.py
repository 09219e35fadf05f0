"""Reward model: Bradley–Terry over all pairs of a ranking, one ranking one batch element.

L = (1/N) Σ_prompts w · mean over its strict pairs of [−log σ(r_w − r_l)] (InstructGPT: all C(K,2)
pairs of a prompt belong to one element, shuffled pairs overfit within a pass). Ties make no pair.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import softplus

from trimtab.algos import bradley_terry_loss, ranking_pairs
from trimtab.config import Config
from trimtab.errors import DataError
from trimtab.models import (
    PASS_TOKENS,
    AdapterConfig,
    Batch,
    Chat,
    LowerCache,
    Role,
    collate,
    leave_out,
    parts_of_like_size,
)
from trimtab.records import Preference
from trimtab.trainers.checkpoint import seed_step
from trimtab.trainers.defaults import with_lr
from trimtab.trainers.learner import Learner, Metrics, Norms, OptimizerConfig
from trimtab.trainers.progress import Session
from trimtab.trainers.sft import step_indices


class RewardConfig(Config):
    """Reward model training."""

    adapter: AdapterConfig = AdapterConfig()
    """What is trained."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """How."""
    epochs: float = Field(default=1.0, gt=0.0)
    """Passes over the preferences."""
    batch: int = Field(default=16, ge=1)
    """Prompts (rankings) per optimiser step."""
    head_init: Literal["random", "probe"] = "random"
    """``random``: as published; ``probe``: the best head for the untrained features, found before training. With a few
    hundred preferences that spares the adapters from following a random direction first."""
    centring: float = Field(default=0.0, ge=0.0)
    """Weight of (r_w + r_l)², which keeps rewards around zero."""
    holdout: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Share of prompts kept out of training, to measure accuracy and calibration."""
    micro_batch_tokens: int = Field(default=512, ge=1)
    """Padded tokens held in memory at once; one ranking at least."""
    cache_mb: float = Field(default=1024.0, ge=0.0)
    """Memory for what frozen lower layers give, so that they run once and not once per pass."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranking:
    """One preference, encoded."""

    id: str
    """Id of the preference."""
    sequences: list[list[int]]
    """Prompt and answer, tokens, one per answer."""
    prompt_length: int
    """How many tokens of each sequence are the prompt."""
    ranks: tuple[int, ...]
    """0 = best, equal = tie."""
    probability: float | None
    """Soft label P(first is better) of a pair; None: the ranks are certain."""
    margin: float | None
    """Required distance in reward units; None: none."""
    weight: float
    """Weight in the loss."""

    def pairs(self) -> Tensor:
        """Winner and loser of every strict pair of different answers, ``[P, 2]``; of a soft label its two answers.

        Two answers of the same tokens have the same reward whatever the weights are, so they make no pair.
        """
        found = torch.tensor([[0, 1]]) if self.probability is not None else ranking_pairs(self.ranks)
        differ = [self.sequences[a] != self.sequences[b] for a, b in found.tolist()]
        return found[torch.tensor(differ, dtype=torch.bool)]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Part:
    batch: Batch
    rankings: list[Ranking]


def encode_preferences(
    chat: Chat, preferences: Sequence[Preference]
) -> tuple[list[Ranking], list[Preference], dict[str, Any]]:
    """Rankings as tokens, the preferences they come from, and how many were left out, by reason.

    ``too_long``: does not fit the context; ``tied``: all answers have one rank; ``identical``: the answers that differ
    in rank do not differ in words. ``identical_pairs`` are such pairs in rankings that have others too; those stay.
    ``unrendered`` holds the reason for each preference, by id, that the chat template cannot take.
    """
    rankings, kept = [], []
    left_out: dict[str, Any] = {"too_long": 0, "tied": 0, "identical": 0, "identical_pairs": 0, "unrendered": {}}
    for preference in preferences:
        asked = preference.prompt.messages
        try:
            head = chat.prompt(asked)
            encoded = [chat.answer(asked, c.text, c.finish_reason) for c in preference.completions]
            if not all(any(e.response_mask) for e in encoded):
                raise DataError("an answer was cut before its first word")
        except DataError as error:
            leave_out(left_out, preference.id, error)
            continue
        ranking = Ranking(
            id=preference.id,
            sequences=[e.tokens for e in encoded],
            prompt_length=len(head),
            ranks=preference.ranks,
            probability=preference.probability,
            margin=preference.margin,
            weight=preference.weight,
        )
        strict = 1 if ranking.probability is not None else len(ranking_pairs(ranking.ranks))
        usable = len(ranking.pairs())
        if not usable:
            left_out["identical" if strict else "tied"] += 1
            continue
        left_out["identical_pairs"] += strict - usable
        kept.append(preference)
        rankings.append(ranking)
    return rankings, kept, left_out


def split_holdout(ids: Sequence[str], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices to train on and to hold out; all entries with one id fall on the same side."""
    unique = sorted(set(ids))
    random.Random(f"{seed}|holdout").shuffle(unique)
    held = set(unique[: round(len(unique) * share)])
    train = [i for i, name in enumerate(ids) if name not in held]
    return train, [i for i, name in enumerate(ids) if name in held]


def train_reward(
    role: Role, rankings: Sequence[Ranking], config: RewardConfig, *, seed: int, session: Session | None = None
) -> LowerCache:
    """Train ``role`` (with scalar head) in place.

    Returns:
        what frozen layers gave for the rankings, for scoring them (:func:`score_rankings`).

    Raises:
        DataError: no ranking has two different answers of different rank.
        NonFiniteError: the loss became NaN or infinite.
    """
    session = session or Session()
    usable = [r for r in rankings if len(r.pairs())]
    if not usable:
        raise DataError(
            f"none of the {len(rankings)} preferences has a better and a different, worse answer, so there is nothing "
            "to learn; check the labels with `trimtab data check`"
        )
    per_epoch = -(-len(usable) // config.batch)
    total = max(1, round(per_epoch * config.epochs))
    learner = Learner(role, with_lr(config.optimizer, "reward", role), total)
    probed = min(1.0, PROBE_RANKINGS / len(usable)) if config.head_init == "probe" else 0.0
    cache = fill_lower_cache(
        role,
        usable,
        passes=config.epochs + probed,
        cache_mb=config.cache_mb,
        micro_batch_tokens=config.micro_batch_tokens,
    )
    done = session.checkpoints.restore({"reward": learner})[0] if session.checkpoints else 0
    if done == 0 and config.head_init == "probe":
        probe_reward_head(role, usable, cache, config.micro_batch_tokens)
    elif done == 0:
        init_reward_head(role, seed)
    session.planned(done, total)
    for step in range(done, total):
        seed_step(seed, "reward", step)
        chosen = [usable[i] for i in step_indices(len(usable), config.batch, step, seed)]
        norms = Norms(tokens=0, sequences=sum(r.weight for r in chosen))
        parts = _micro_batches(chosen, config.micro_batch_tokens, role)
        metrics = learner.step(parts, lambda part, norms: _loss(role, part, norms, config, cache), norms)
        session.log({"step": step + 1, **metrics})
        session.after_step(step + 1, total, lambda c, s=step + 1: c.save(s, {"reward": learner}))
    return cache


def init_reward_head(role: Role, seed: int) -> None:
    """Normal weights with standard deviation 1/√(d + 1) (Stiennon et al. 2020), zero bias."""
    assert role.scalar is not None
    generator = torch.Generator().manual_seed(seed)
    width = role.scalar.weight.shape[1]
    with torch.no_grad():
        role.scalar.weight.copy_(torch.randn(1, width, generator=generator) / (width + 1) ** 0.5)
        role.scalar.bias.zero_()


PROBE_RANKINGS = 512
"""At most so many rankings decide about the first head."""

PENALTIES = (3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)
"""Ridge penalties that cross-validation chooses from, in units of one ranking's loss."""


@torch.no_grad()
def probe_reward_head(
    role: Role, rankings: Sequence[Ranking], cache: LowerCache, token_budget: int = PASS_TOKENS
) -> None:
    """Set the head to a penalised Bradley–Terry fit on the features as they are, before any weight is trained.

    Linear probing, then fine-tuning: Kumar et al. 2022 (arXiv 2202.10054). A head at random sends the first steps of
    the adapters in a random direction, which costs features that a small data set cannot teach again. Features are
    standardised; the penalty is chosen by four-fold cross-validation over rankings.
    """
    assert role.scalar is not None
    chosen = list(rankings[:PROBE_RANKINGS])
    flat = [s for r in chosen for s in r.sequences]
    batch = _answers(role, chosen)
    features = torch.empty(len(flat), role.backbone.width, dtype=torch.float64)
    for index, part in batch.micro_batches(token_budget):
        cache.fill(part, [str(flat[i]) for i in index.tolist()], role.backbone.lower)
        features[index.cpu()] = role.last_hidden(part).double().cpu()
    mean, std = features.mean(dim=0), features.std(dim=0).clamp(min=1e-6)
    features = (features - mean) / std
    gaps, targets, weights, owners = [], [], [], []
    start = 0
    for number, ranking in enumerate(chosen):
        soft, pairs = ranking.probability, ranking.pairs() + start
        gaps.append(features[pairs[:, 0]] - features[pairs[:, 1]])
        targets += [1.0 if soft is None else soft] * len(pairs)
        weights += [ranking.weight / len(pairs)] * len(pairs)
        owners += [number] * len(pairs)
        start += len(ranking.sequences)
    gap, owner = torch.cat(gaps), torch.tensor(owners)
    target, weight = torch.tensor(targets, dtype=torch.float64), torch.tensor(weights, dtype=torch.float64)

    def missed(penalty: float) -> float:
        total = 0.0
        for fold in range(4):
            out = owner % 4 == fold
            if bool(out.any()) and bool((~out).any()):
                z = gap[out] @ fit_ridge_bradley_terry(gap[~out], target[~out], weight[~out], penalty)
                total += float((weight[out] * (softplus(z) - target[out] * z)).sum())
        return total

    penalty = min(PENALTIES, key=missed)
    head = fit_ridge_bradley_terry(gap, target, weight, penalty) / std
    role.scalar.weight.copy_(head[None])
    role.scalar.bias.fill_(-float(head @ mean))


def fit_ridge_bradley_terry(gaps: Tensor, targets: Tensor, weights: Tensor, penalty: float) -> Tensor:
    """The v that minimises Σ w·[softplus(z) − p·z] + ½·λ·|v|² with z = gaps @ v, by Newton's method.

    Args:
        gaps: ``[P, D]`` float64, features of the first answer minus those of the second.
        targets: ``[P]``, p: probability that the first is better.
        weights: ``[P]``, w.
        penalty: λ, above 0.

    Returns:
        ``[D]`` float64.
    """
    v = gaps.new_zeros(gaps.shape[1])
    eye = penalty * torch.eye(gaps.shape[1], dtype=gaps.dtype)
    for _ in range(8):
        share = torch.sigmoid(gaps @ v)
        gradient = gaps.T @ (weights * (share - targets)) + penalty * v
        hessian = (gaps * (weights * share * (1 - share))[:, None]).T @ gaps + eye
        v = v - torch.linalg.solve(hessian, gradient)
    return v


@torch.no_grad()
def score_rankings(
    role: Role, rankings: Sequence[Ranking], *, cache: LowerCache | None = None, token_budget: int = PASS_TOKENS
) -> list[list[float]]:
    """Raw reward of every answer of every ranking; ``cache``: what frozen layers gave for some of them."""
    flat = [sequence for r in rankings for sequence in r.sequences]
    if not flat:
        return []
    batch = _answers(role, rankings)
    scores = torch.empty(len(flat))
    cache = cache or LowerCache(0.0)
    for index, part in batch.micro_batches(token_budget):
        cache.fill(part, [str(flat[i]) for i in index.tolist()], role.backbone.lower)
        scores[index.cpu()] = role.scores(part).cpu()
    values = iter(scores.tolist())
    return [[next(values) for _ in r.sequences] for r in rankings]


def packed_size(ranking: Ranking) -> int:
    """Tokens of a ranking when its prompt is computed once."""
    return ranking.prompt_length + sum(len(s) - ranking.prompt_length for s in ranking.sequences)


def _answers(role: Role, rankings: Sequence[Ranking]) -> Batch:
    """Every answer of every ranking, one after the other; no token is a response here."""
    flat = [s for r in rankings for s in r.sequences]
    lengths = [r.prompt_length for r in rankings for _ in r.sequences]
    return collate(flat, [[False] * len(s) for s in flat], role.backbone.device, prompt_lengths=lengths)


def _micro_batches(chosen: Sequence[Ranking], token_budget: int, role: Role) -> list[tuple[list[str], _Part]]:
    """Whole rankings of similar size, up to the token budget; a prompt counts once."""
    parts = []
    for places in parts_of_like_size([packed_size(r) for r in chosen], token_budget):
        group = [chosen[place] for place in places]
        parts.append(([r.id for r in group], _Part(batch=_answers(role, group), rankings=group)))
    return parts


def fill_lower_cache(
    role: Role, rankings: Sequence[Ranking], *, passes: float, cache_mb: float, micro_batch_tokens: int
) -> LowerCache:
    """What frozen layers give for every sequence, filled before the first step and always in the same batches.

    The last bits of a matrix product depend on what is in the batch; filled as training goes, a continued run
    would read other bits than one that was never stopped. Nothing is kept for one pass.
    """
    if passes <= 1 or cache_mb == 0 or role.backbone.frozen_layers == 0:
        return LowerCache(0.0)
    cache = LowerCache(cache_mb)
    sequences, batch = [s for r in rankings for s in r.sequences], _answers(role, rankings)
    for index, part in batch.micro_batches(micro_batch_tokens):
        cache.fill(part, [str(sequences[i]) for i in index.tolist()], role.backbone.lower)
        if cache.full:
            break
    return cache


def _loss(role: Role, part: _Part, norms: Norms, config: RewardConfig, cache: LowerCache) -> tuple[Tensor, Metrics]:
    keys = [str(s) for r in part.rankings for s in r.sequences]
    cache.fill(part.batch, keys, role.backbone.lower)
    scores = role.scores(part.batch)
    pairs, weights, probabilities, margins = [], [], [], []
    start = 0
    for ranking in part.rankings:
        soft, found = ranking.probability, ranking.pairs()
        pairs.append(found + start)
        weights += [ranking.weight / len(found) / norms.sequences] * len(found)
        probabilities += [1.0 if soft is None else soft] * len(found)
        margins += [ranking.margin or 0.0] * len(found)
        start += len(ranking.sequences)
    index = torch.cat(pairs).to(scores.device)
    weight, probability = scores.new_tensor(weights), scores.new_tensor(probabilities)
    winner, loser = scores[index[:, 0]], scores[index[:, 1]]
    losses = bradley_terry_loss(
        winner,
        loser,
        margin=scores.new_tensor(margins) if any(margins) else None,
        probability=probability if any(p != 1.0 for p in probabilities) else None,
        centring=config.centring,
    )
    with torch.no_grad():
        right = torch.where(probability < 0.5, winner <= loser, winner > loser).to(scores.dtype)
        accuracy = float((weight * right).sum())
    return (weight * losses).sum(), {"accuracy": accuracy, "pairs": len(index)}
