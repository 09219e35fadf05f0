"""The formulas of RLHF as pure functions: tensors and numbers in, tensors out; torch and nothing else.

Conventions, everywhere: column t of a ``[B, T]`` tensor is about token t itself (its log-probability
given what precedes it; the value of the state before it); rows are right-padded; ``response_mask`` is
bool and True means *the policy produced this token and it counts*. Losses come back per token or per
example; :func:`reduce_sum` divides them by the size of the whole optimiser step.

- ``preference``: DPO and its family, from judged answers.
- ``reward``: reward models, from pairs, rankings, ties and steps.
- ``advantages``: GAE, group baselines, whitening.
- ``policy``: PPO's losses, importance weights, what to watch.
- ``kl``: the divergence from a reference: in the reward, in the loss, per token; adaptive coefficient.
- ``scores``: penalties on whole answers.
- ``masking``: what counts, and what it is divided by.
"""

from trimtab.algos.advantages import (
    gae,
    group_advantage,
    group_has_spread,
    reinforce_pp_advantage,
    reinforce_pp_baseline_advantage,
    rloo_advantage,
    whiten,
)
from trimtab.algos.kl import (
    AdaptiveKL,
    best_of_n_kl,
    best_of_n_kl_bound,
    k3_clamped,
    kl_k1,
    kl_k2,
    kl_k3,
    kl_sequence,
    penalised_rewards,
)
from trimtab.algos.masking import last_true, masked_mean, masked_sum, reduce_sum
from trimtab.algos.policy import (
    approx_kl,
    clip_fraction,
    clipped_policy_loss,
    clipped_value_loss,
    explained_variance,
    scale_gradient,
    truncated_importance_weights,
)
from trimtab.algos.preference import (
    cpo_loss,
    dpo_loss,
    hinge_loss,
    ipo_loss,
    kto_loss,
    kto_reference_point,
    orpo_loss,
    simpo_loss,
)
from trimtab.algos.reward import (
    bradley_terry_loss,
    davidson_loss,
    fit_ridge_bradley_terry,
    plackett_luce_loss,
    process_reward_loss,
    process_score,
    ranking_loss,
    ranking_pairs,
    rao_kupper_loss,
)
from trimtab.algos.scores import overlong_penalty, penalise_missing_eos

__all__ = [
    "AdaptiveKL",
    "approx_kl",
    "best_of_n_kl",
    "best_of_n_kl_bound",
    "bradley_terry_loss",
    "clip_fraction",
    "clipped_policy_loss",
    "clipped_value_loss",
    "cpo_loss",
    "davidson_loss",
    "dpo_loss",
    "explained_variance",
    "fit_ridge_bradley_terry",
    "gae",
    "group_advantage",
    "group_has_spread",
    "hinge_loss",
    "ipo_loss",
    "k3_clamped",
    "kl_k1",
    "kl_k2",
    "kl_k3",
    "kl_sequence",
    "kto_loss",
    "kto_reference_point",
    "last_true",
    "masked_mean",
    "masked_sum",
    "orpo_loss",
    "overlong_penalty",
    "penalise_missing_eos",
    "penalised_rewards",
    "plackett_luce_loss",
    "process_reward_loss",
    "process_score",
    "ranking_loss",
    "ranking_pairs",
    "rao_kupper_loss",
    "reduce_sum",
    "reinforce_pp_advantage",
    "reinforce_pp_baseline_advantage",
    "rloo_advantage",
    "scale_gradient",
    "simpo_loss",
    "truncated_importance_weights",
    "whiten",
]
