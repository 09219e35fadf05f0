"""Metrics of a rollout batch that every online method logs."""

import math
from collections.abc import Sequence
from statistics import fmean, pvariance

from trimtab.algos import DualAscent, effective_sample_share, explained_variance, kl_k1, masked_mean, masked_sum
from trimtab.trainers.learner import Metrics
from trimtab.trainers.rl_config import PolicyGradientConfig, RlConfig
from trimtab.trainers.rl_optional import constraint_of, leaves_out_cut, scales_scores, score_clip_of
from trimtab.trainers.rollout_batch import RolloutBatch
from trimtab.trainers.scoring import Scored, whole_rewards


def describe(
    scored: Scored, batch: RolloutBatch, config: RlConfig, beta: float, price: DualAscent | None = None
) -> Metrics:
    """Means over the batch. ``price`` is a constraint's price at the time when the answers were scored.

    KL is per answer, in nats. ``empty`` counts the answers without a token; they have no reward.
    """
    rollouts, mask = scored.rollouts, batch.response_mask
    n, answered = len(rollouts), [r for r in rollouts if r.tokens]
    totals = [total for total, r in zip(scored.totals, rollouts, strict=True) if r.tokens]
    more: Metrics = {}
    limit = constraint_of(config)
    if limit is not None and price is not None:  # the price changes, so the reward is shown without it
        totals = [t + price.value * r.rewards[limit.reward] for t, r in zip(totals, answered, strict=True)]
        more["multiplier"] = price.value
    kl = masked_sum(kl_k1(batch.old_logprobs, batch.reference_logprobs), mask)
    if scales_scores(config):
        more["reward_scale"] = scored.scale
    if batch.values is not None and batch.returns is not None and bool(mask.any()):
        more["value"] = float(masked_mean(batch.values, mask))
        more["explained_variance"] = float(explained_variance(batch.values, batch.returns, mask))
    if batch.wins is not None:
        more["win"] = float(batch.wins.mean())
    if scored.resampled is not None:
        more["resampled"] = float(scored.resampled)
    if config.group > 1:
        placed = [sorted(at.items()) for at in scored.placed]
        earned = list(zip(batch.scores.tolist(), placed, strict=True))
        groups = [
            [e for e, r in zip(earned[i : i + config.group], rollouts[i : i + config.group], strict=True) if r.tokens]
            for i in range(0, n, config.group)
        ]
        sizes = [sum(bool(r.tokens) for r in rollouts[i : i + config.group]) for i in range(0, n, config.group)]
        more["reward_std_prompt"] = _spread_within(totals, sizes)
        more["flat_groups"] = sum(all(e == g[0] for e in g) for g in groups) / len(groups)
    if (clip := score_clip_of(config)) is not None:
        more["score_clipped"] = float((whole_rewards(scored).abs() > clip).float().mean())
    if leaves_out_cut(config):
        more["filtered"] = sum(r.finish_reason != "stop" for r in answered) / n
    if isinstance(config, PolicyGradientConfig) and config.importance_beyond == "mask" and batch.importance is not None:
        more["importance_masked"] = float(masked_mean(batch.importance == 0, mask))
    if isinstance(config, PolicyGradientConfig) and batch.importance is not None and answered:
        level = config.importance_level
        more["importance_ess"] = float(
            effective_sample_share(batch.old_logprobs, batch.sampled_logprobs, mask, level=level)
        )
    names = sorted({name for r in answered for name in r.rewards})
    mean = sum(totals) / max(len(totals), 1)
    return {
        "reward": mean,
        "reward_std": math.sqrt(sum((t - mean) ** 2 for t in totals) / max(len(totals), 1)),
        **{f"reward/{name}": sum(r.rewards[name] for r in answered) / len(answered) for name in names},
        "kl": float(kl) / n,
        "beta": beta,
        "length": float(mask.sum()) / n,
        "ended": sum(r.finish_reason == "stop" for r in rollouts) / n,
        "distinct": len({r.text for r in rollouts}) / n,
        "empty": float(n - len(answered)),
        **more,
    }


def _spread_within(values: Sequence[float], sizes: Sequence[int]) -> float:
    """√ of the mean within-group variance; ``sizes`` are those of consecutive groups, and empty ones are left out."""
    each = iter(values)
    groups = [[next(each) for _ in range(size)] for size in sizes if size]
    return math.sqrt(fmean(pvariance(group) for group in groups)) if groups else 0.0
