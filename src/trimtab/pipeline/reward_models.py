"""The reward models of a run: one, an ensemble on one trunk, and one that only judges; and how they are loaded.

Each model is a part of the ``reward`` stage with its own file; :mod:`trimtab.pipeline.reward_training` makes it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from trimtab.errors import DataError
from trimtab.models import PASS_TOKENS, Backbone, FrozenStates, Role, load_tensors
from trimtab.pipeline.config import RewardStageConfig
from trimtab.pipeline.context import Context, Counts
from trimtab.pipeline.reward_result import FIRST, RewardModel, read_trained
from trimtab.records import Preference
from trimtab.rollout import EnsembleConfig, ObjectiveScorer, RewardModels, RewardModelScorer
from trimtab.rollout.rewards import RewardFunction
from trimtab.storage import read_record
from trimtab.trainers import (
    HELDOUT,
    Ranking,
    score_rankings,
    split_holdout,
)

SMALLEST_PART = 8
"""Minimum number of prompts for a separate reward model."""

WORDS = "words"
"""Name of the bag of words."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One reward model of a run."""

    name: str
    """``reward`` is the first one; then ``member_2`` and so on, ``words``, ``heldout``."""
    places: list[int]
    """Indices of the preferences that it learns from."""

    @property
    def judges(self) -> bool:
        """True: the policy is not trained on it; it only judges."""
        return self.name == HELDOUT

    @property
    def file(self) -> str:
        """File of its weights in the stage's folder."""
        return weights_file(self.name)


def weights_file(name: str) -> str:
    """File of a reward model's weights in the stage's folder."""
    ending = "json" if name == WORDS else "safetensors"
    return f"weights.{ending}" if name == FIRST else f"weights-{name}.{ending}"


def reward_parts(config: RewardStageConfig, prompts: Sequence[str], train: Sequence[int], *, seed: int) -> list[Part]:
    """The models to train and the preferences that each learns from; the held-out one comes last.

    Args:
        config: the section ``reward``.
        prompts: id of each preference's prompt; preferences of a prompt stay together.
        train: indices of the preferences that are not held out.
        seed: seed of the halves.

    Raises:
        DataError: a model would learn from fewer than 8 prompts.
    """
    policy_indices, heldout_indices = list(train), list[int]()
    if config.split:
        policy_indices, heldout_indices = _halves(policy_indices, prompts, seed)
    ensemble = config.ensemble
    shares = [policy_indices]
    if ensemble is not None:
        halves = _halves(policy_indices, prompts, seed + 1) if ensemble.halves else (policy_indices, policy_indices)
        shares = [halves[number % 2] for number in range(ensemble.members)]
    names = [FIRST, *(f"member_{number + 1}" for number in range(1, len(shares)))]
    parts = [Part(name=name, places=share) for name, share in zip(names, shares, strict=True)]
    if ensemble is not None and ensemble.words:
        parts.append(Part(name=WORDS, places=policy_indices))
    if config.split:
        parts.append(Part(name=HELDOUT, places=heldout_indices))
    for part in parts if len(parts) > 1 else []:
        if (count := len({prompts[index] for index in part.places})) < SMALLEST_PART:
            raise DataError(
                f"the reward model {part.name!r} would learn from {count} of {len({prompts[i] for i in train})} "
                f"prompts; at least {SMALLEST_PART} are needed: collect more preferences, or set reward.split and "
                "reward.ensemble.halves to false"
            )
    return parts


def _halves(indices: Sequence[int], prompts: Sequence[str], seed: int) -> tuple[list[int], list[int]]:
    first, second = split_holdout([prompts[index] for index in indices], 0.5, seed)
    return [indices[i] for i in first], [indices[i] for i in second]


def reward_backbone(context: Context, trunk: Backbone | None) -> Backbone:
    """The model on which reward models are adapters: the policy's trunk, or a separate model."""
    config = context.config.reward
    assert config is not None
    if config.model is not None:
        return Backbone.load(config.model)
    return context.trunk() if trunk is None else trunk


def reward_role(context: Context, backbone: Backbone, name: str = FIRST) -> Role:
    """A reward model's role, weights not yet loaded."""
    config = context.config.reward
    assert config is not None
    seed = context.seed("reward" if name == FIRST else f"reward/{name}")
    return Role.trainable(backbone, name, config.adapter, seed=seed, scalar_head=True, heads=config.heads)


def combined_scores(
    config: EnsembleConfig, scored: Mapping[str, Sequence[Sequence[float]]], scales: Mapping[str, tuple[float, float]]
) -> list[list[float]]:
    """The combined score of every answer, without the held-out model."""
    normalised = [
        [[(x - mean) / std for x in row] for row in scored[name]]
        for name, (mean, std) in scales.items()
        if name != HELDOUT
    ]
    return [config.combine(torch.tensor(rows)).tolist() for rows in zip(*normalised, strict=True)]


def load_reward_models(
    context: Context,
    trunk: Backbone,
    micro_batch_tokens: int = PASS_TOKENS,
    states: FrozenStates | None = None,
    *,
    heldout: bool = False,
) -> RewardModels:
    """The trained reward models, each normalised over the same answers.

    ``heldout``: True: include the model that only judges, if the run has one.
    """
    config, folder = context.config.reward, context.folder("reward")
    assert config is not None
    result, backbone = read_trained(folder), reward_backbone(context, trunk)
    members: dict[str, RewardFunction] = {}
    judge: RewardFunction | None = None
    for model in result.models:
        if model.judges and not heldout:
            continue
        score = _load_model(context, backbone, model, micro_batch_tokens, states)
        if model.judges:
            judge = score
        else:
            members[model.name] = score
    combined = config.ensemble is not None
    return RewardModels(
        members,
        heldout=judge,
        config=config.ensemble,
        mean=result.mean if combined else 0.0,
        std=result.std if combined else 1.0,
    )


def load_objectives(
    context: Context, trunk: Backbone, micro_batch_tokens: int = PASS_TOKENS, states: FrozenStates | None = None
) -> ObjectiveScorer:
    """The trained reward model of several objectives, each normalised over its own training answers."""
    config, folder = context.config.reward, context.folder("reward")
    assert config is not None
    objectives = read_trained(folder, config.objectives).objectives
    role = reward_role(context, reward_backbone(context, trunk))
    role.load_state(load_tensors(folder / weights_file(FIRST)))
    scorer = RewardModelScorer(
        role, same_tokens=config.model is None, micro_batch_tokens=micro_batch_tokens, states=states
    )
    return ObjectiveScorer(scorer, {name: (objectives[name].mean, objectives[name].std) for name in config.objectives})


def _load_model(
    context: Context, backbone: Backbone, model: RewardModel, micro_batch_tokens: int, states: FrozenStates | None
) -> RewardFunction:
    """Normalised scores of one model."""
    assert context.config.reward is not None
    path = context.folder("reward") / model.file
    if model.name == WORDS:
        weights = read_record(path, dict[str, float])
        return lambda rollouts: [(word_score(r.text, weights) - model.mean) / model.std for r in rollouts]
    role = reward_role(context, backbone, model.name)
    role.load_state(load_tensors(path))
    scorer = RewardModelScorer(
        role,
        mean=model.mean,
        std=model.std,
        same_tokens=context.config.reward.model is None,
        micro_batch_tokens=micro_batch_tokens,
        states=states,
    )
    return scorer.normalised


def load_ranking_scorer(
    context: Context, backbone: Backbone
) -> tuple[Role, Callable[[Sequence[Ranking], Sequence[Preference]], list[list[float]]]]:
    """The first reward model's role, and a function that scores answers by the models that the policy is trained on."""
    config, folder = context.config.reward, context.folder("reward")
    assert config is not None
    models = [model for model in read_trained(folder).models if not model.judges]
    scales = {model.name: (model.mean, model.std) for model in models}
    roles = {model.name: reward_role(context, backbone, model.name) for model in models if model.name != WORDS}
    for model in models:
        if model.name in roles:
            roles[model.name].load_state(load_tensors(folder / model.file))
    words = {model.name: read_record(folder / model.file, dict[str, float]) for model in models if model.name == WORDS}

    def score(rankings: Sequence[Ranking], preferences: Sequence[Preference]) -> list[list[float]]:
        scored = {name: score_rankings(role, rankings) for name, role in roles.items()}
        for name, weights in words.items():
            scored[name] = [[word_score(c.text, weights) for c in p.completions] for p in preferences]
        return scored[FIRST] if config.ensemble is None else combined_scores(config.ensemble, scored, scales)

    return roles[FIRST], score


def word_score(text: str, weights: Mapping[str, float]) -> float:
    """Score of a text by the bag of words, :func:`trimtab.evals.baselines.word_score`."""
    from trimtab.evals import baselines  # imports NumPy

    return baselines.word_score(text, weights)


def counts_of(parts: Sequence[Part], held: Sequence[int]) -> Counts:
    """Counts that the stage reports about its parts."""
    train = {index for part in parts for index in part.places}
    counts: Counts = {"preferences": len(train), "held_out": len(held)}
    if len(parts) > 1:
        counts |= {f"preferences of {part.name}": len(part.places) for part in parts}
    return counts
