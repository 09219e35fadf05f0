"""The update of XPO on a rollout batch: DPO on the policy's and the reference's answers, and exploration."""

import torch
from torch import Tensor

from trimtab.algos import masked_sum, xpo_loss
from trimtab.models import parts_of_like_size
from trimtab.trainers.learner import Metrics, Norms
from trimtab.trainers.rl_config import XpoConfig
from trimtab.trainers.rl_update import Update, minibatches, named, summary, token_metrics, too_far
from trimtab.trainers.rollout_batch import RolloutBatch


def xpo_update(update: Update[XpoConfig]) -> Metrics:
    """DPO on pairs of the policy's answer and the reference's answer, with exploration.

    Token metrics are over the policy's answers. Pairs with an empty answer are left out.

    Returns:
        metrics averaged over the optimiser steps; their number is ``updates``. ``gap`` is the mean of h,
        ``exploration`` the mean log-probability of the reference's answers.
    """
    config, batch, opponents = update.config, update.batch, update.opponents
    role, temperature = update.learners["policy"].role, config.sampler.temperature
    assert opponents is not None and batch.wins is not None
    usable = (batch.answered & opponents.answered).nonzero().squeeze(1).cpu()

    def loss(pair: tuple[RolloutBatch, RolloutBatch], norms: Norms) -> tuple[Tensor, Metrics]:
        own, other = pair
        assert own.wins is not None
        new, entropies = role.logprobs_and_entropies(own, temperature=temperature, states=update.states)
        policy_own = masked_sum(new, own.response_mask, dim=1)
        policy_other = role.logprobs(other, temperature=temperature, states=update.states).sum(dim=1)
        ref_own, ref_other = (masked_sum(x.reference_logprobs, x.response_mask, dim=1) for x in pair)
        losses = xpo_loss(policy_own, policy_other, ref_own, ref_other, own.wins, beta=config.beta, alpha=config.alpha)
        with torch.no_grad():
            gap = policy_own - ref_own - (policy_other - ref_other)
            right = torch.where(own.wins < 0.5, gap < 0, gap > 0).to(gap.dtype)
            metrics = token_metrics(new, entropies, own, norms) | {
                "accuracy": float(right.sum()) / norms.sequences,
                "gap": float(gap.sum()) / norms.sequences,
                "exploration": float(policy_other.sum()) / norms.sequences,
            }
        return losses.sum() / norms.sequences, metrics

    metrics_of_steps: list[Metrics] = []
    for index in minibatches(len(usable), config, update.seed):
        rows = usable[index]
        chosen = rows.to(batch.tokens.device)
        own, other = batch.rows(chosen), opponents.rows(chosen)
        norms = Norms(tokens=float(own.response_mask.sum()), sequences=own.size)
        parts = []
        for places in parts_of_like_size((own.lengths + other.lengths).tolist(), config.micro_batch_tokens):
            at = torch.tensor(places, device=chosen.device)
            parts.append(([update.ids[int(rows[i])] for i in places], (own.rows(at), other.rows(at))))
        metrics = update.learners["policy"].step(
            parts, loss, norms, skip=lambda metrics: too_far(config.kl.stop, metrics)
        )
        if too_far(config.kl.stop, metrics):
            return summary(metrics_of_steps, metrics, config.kl.stop)
        metrics_of_steps.append(named(metrics))
    return summary(metrics_of_steps, None, config.kl.stop)
