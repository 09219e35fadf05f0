"""Reward model: Bradley–Terry over all pairs of a ranking. Each ranking is one batch element.

L = (1/N) Σ_prompts w · mean over its strict pairs of [−log σ(r_w − r_l)]

As in InstructGPT, all C(K,2) pairs of a prompt are in one batch element; shuffled pairs overfit within one pass. A tie
makes no pair, except with the likelihoods that model ties (Davidson, Rao–Kupper). Plackett–Luce uses a ranking as a
whole.
"""

from collections.abc import Sequence
from functools import partial

import torch

from trimtab.errors import DataError
from trimtab.models import PASS_TOKENS, FrozenStates, Role
from trimtab.trainers.annotators import Annotators, Population, vote_weight
from trimtab.trainers.checkpoint import seed_step
from trimtab.trainers.defaults import with_lr
from trimtab.trainers.learner import Learner, Norms
from trimtab.trainers.length_head import length_terms
from trimtab.trainers.progress import Session
from trimtab.trainers.rankings import Ranking, by_ranking, check_ties, learnable, ranking_batches, tokens_of_rankings
from trimtab.trainers.reward_config import RewardConfig
from trimtab.trainers.reward_heads import PROBE_RANKINGS, init_reward_head, probe_reward_head
from trimtab.trainers.reward_losses import StepTerms, reward_loss, rewards_of
from trimtab.trainers.sft import step_indices


def train_reward(
    role: Role,
    rankings: Sequence[Ranking],
    config: RewardConfig,
    *,
    seed: int,
    session: Session | None = None,
    states: FrozenStates | None = None,
    annotators: Annotators | None = None,
) -> FrozenStates:
    """Train ``role``, which has a scalar head, in place.

    Args:
        role: the reward model.
        rankings: what it learns from.
        config: settings.
        seed: seed of the initial head, of the order of the rankings and of dropout.
        session: logging, checkpoints, stopping; None: logs and saves nothing.
        states: states of the backbone's frozen layers for these rankings, from :func:`prepared_states`, to share among
            several models on one trunk; None: they are computed here.
        annotators: with ``config.annotators``, the annotators' habits, also trained in place; None: all annotators are
            alike.

    Returns:
        the states of frozen layers for the rankings, for scoring them (:func:`score_rankings`).

    Raises:
        DataError: no ranking has two different answers of different rank, or the loss learns from ties and there are
            none.
        NonFiniteError: the loss became NaN or infinite.
    """
    session = session or Session()
    usable = [rankings[i] for i in learnable(rankings, ties=config.ties)]
    _check_usable(usable, len(rankings), config)
    per_epoch = -(-len(usable) // config.batch)
    total = max(1, round(per_epoch * config.epochs))
    learner = Learner(role, with_lr(config.optimizer, "reward", role), total, group=session.group)
    probed = min(1.0, PROBE_RANKINGS / len(usable)) if config.head_init == "probe" else 0.0
    if states is None:
        states = prepared_states(
            role,
            usable,
            passes=config.epochs + probed,
            cache_mb=config.cache_mb,
            micro_batch_tokens=config.micro_batch_tokens,
        )
    if config.annotators and annotators is None:
        annotators = Annotators(Population(), role.backbone.device)
    also = [] if annotators is None else [annotators.learner(total, session.group)]
    learners = {"reward": learner} | ({"annotators": also[0]} if also else {})
    done = session.checkpoints.restore(learners)[0] if session.checkpoints else 0
    if done == 0 and config.head_init == "probe":
        probe_reward_head(role, usable, states, config.micro_batch_tokens)
    elif done == 0:
        init_reward_head(role, seed)
    votes = vote_weight(usable) if annotators else 0.0
    session.planned(done, total)
    for step in range(done, total):
        seed_step(seed, "reward", step)
        chosen = [usable[i] for i in step_indices(len(usable), config.batch, step, seed)]
        sequences = vote_weight(chosen) if annotators else sum(r.weight for r in chosen)
        parts = ranking_batches(chosen, config.micro_batch_tokens, role)
        terms = StepTerms(
            strict=sum(r.weight for r in chosen if len(r.pairs())),
            length=None if config.length is None else length_terms(role, parts, states),
            annotators=annotators,
            votes=votes,
        )
        metrics = learner.step(
            [(part.ids, part) for part in parts],
            partial(reward_loss, role, config=config, terms=terms, states=states),
            Norms(tokens=0, sequences=sequences),
            also=also,
        )
        session.log({"step": step + 1, **metrics})
        session.after_step(step + 1, total, lambda to, finished: to.save(finished, learners))
    return states


def _check_usable(usable: Sequence[Ranking], count: int, config: RewardConfig) -> None:
    """Refuse rankings that teach the loss or a head nothing. ``count`` is the number of rankings before filtering."""
    if not any(len(r.pairs()) for r in usable):
        raise DataError(
            f"none of the {count} preferences has a better and a different, worse answer, so there is nothing "
            "to learn; check the labels with `trimtab data check`"
        )
    for head, name in enumerate(config.objectives):
        if not any(r.head == head and len(r.pairs()) for r in usable):
            raise DataError(
                f"objective {name!r}: none of the {len(usable)} preferences to train on has a better and a worse "
                "answer by it; collect judgements by this criterion, or leave it out of reward.objectives"
            )
    if config.ties and not config.annotators and not any(len(r.tied_pairs()) for r in usable):
        soft = sum(r.probability is not None for r in usable)
        raise DataError(
            f"reward.loss {config.loss!r} learns from ties, and none of the {len(usable)} preferences to train on has "
            f"two different answers of equal rank ({soft} are soft labels, in which a tie is a share); keep ties with "
            "label.aggregate.keep_tied: true and, for two answers, label.aggregate.labels: hard, or use reward.loss: "
            "bradley_terry"
        )
    if config.loss == "plackett_luce":
        check_ties(usable, "reward.loss 'plackett_luce'", "reward.loss bradley_terry, which learns from pairs")


def prepared_states(
    role: Role, rankings: Sequence[Ranking], *, passes: float, cache_mb: float, micro_batch_tokens: int
) -> FrozenStates:
    """States of frozen layers for every sequence, computed before the first step and always in the same batches.

    The last bits of a matrix product depend on the other rows of its batch. If states were computed during training, a
    resumed run would get other bits than an uninterrupted one. For a single pass nothing is stored.
    """
    states = FrozenStates.within(role.backbone, 0.0 if passes <= 1 else cache_mb)
    if states.limit and states.active:
        batch = tokens_of_rankings(rankings, role.backbone.device)
        states.fill(part for _, part in batch.micro_batches(micro_batch_tokens))
    return states


@torch.no_grad()
def score_rankings(
    role: Role,
    rankings: Sequence[Ranking],
    *,
    states: FrozenStates | None = None,
    micro_batch_tokens: int = PASS_TOKENS,
) -> list[list[float]]:
    """Raw reward of each answer from its ranking's head; ``states``: those that :func:`train_reward` returned."""
    if not rankings:
        return []
    batch = tokens_of_rankings(rankings, role.backbone.device)
    assert role.scalar is not None
    numbers = torch.empty(batch.size, len(role.scalar.weight))
    for index, part in batch.micro_batches(micro_batch_tokens):
        numbers[index.cpu()] = role.head_scores(part, states=states).to(numbers)
    return by_ranking(rewards_of(numbers, rankings).tolist(), rankings)
