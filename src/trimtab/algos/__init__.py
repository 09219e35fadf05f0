"""The formulas of RLHF as pure functions: tensors and numbers in, tensors out; torch and nothing else.

Conventions, everywhere: column t of a ``[B, T]`` tensor is about token t itself (its log-probability
given what precedes it; the value of the state before it); rows are right-padded; ``response_mask`` is
bool and True means *the policy produced this token and it counts*. Losses come back per token or per
example; :func:`reduce_sum` divides them by the size of the whole optimiser step.

- ``preference``: DPO and its family, from judged answers.
- ``anchored``: APO, BCO, SPPO, EXO and NCA, which place each answer of a pair.
- ``opponents``: Nash-MD and XPO, which compare an answer with an opponent's.
- ``reward``: reward models, from pairs, rankings, ties and steps.
- ``length``: the correlation of rewards with the length of answers.
- ``advantages``: GAE, group baselines, whitening.
- ``policy``: PPO's losses, importance weights, what to watch.
- ``kl``: the divergence from a reference: in the reward, in the loss, per token; adaptive coefficient.
- ``scores``: penalties on whole answers.
- ``ensemble``: several reward models as one.
- ``scales``: a running scale of rewards, the price of a limit.
- ``masking``: what counts, and what it is divided by.
"""

from trimtab.algos.advantages import (
    bootstrapped_rewards,
    gae,
    gdpo_advantage,
    group_advantage,
    group_has_spread,
    reinforce_pp_advantage,
    reinforce_pp_baseline_advantage,
    rloo_advantage,
    whiten,
)
from trimtab.algos.anchored import apo_down_loss, apo_zero_loss, bco_loss, exo_loss, nca_loss, sppo_loss
from trimtab.algos.ensemble import ensemble_score, ensemble_spread
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
from trimtab.algos.length import length_correlation
from trimtab.algos.masking import last_true, masked_mean, masked_sum, reduce_sum
from trimtab.algos.opponents import mixture_logits, win_probability, xpo_loss
from trimtab.algos.policy import (
    approx_kl,
    cispo_loss,
    clip_fraction,
    clipped_policy_loss,
    clipped_value_loss,
    effective_sample_share,
    explained_variance,
    high_entropy_mask,
    masked_importance_weights,
    scale_gradient,
    sequence_log_ratio,
    truncated_importance_weights,
)
from trimtab.algos.preference import (
    answer_nll,
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
    vote_loss,
)
from trimtab.algos.scales import DualAscent, RunningScale
from trimtab.algos.scores import overlong_penalty, penalise_missing_eos

__all__ = [
    "AdaptiveKL",
    "DualAscent",
    "RunningScale",
    "answer_nll",
    "apo_down_loss",
    "apo_zero_loss",
    "approx_kl",
    "bco_loss",
    "best_of_n_kl",
    "best_of_n_kl_bound",
    "bootstrapped_rewards",
    "bradley_terry_loss",
    "cispo_loss",
    "clip_fraction",
    "clipped_policy_loss",
    "clipped_value_loss",
    "cpo_loss",
    "davidson_loss",
    "dpo_loss",
    "effective_sample_share",
    "ensemble_score",
    "ensemble_spread",
    "exo_loss",
    "explained_variance",
    "fit_ridge_bradley_terry",
    "gae",
    "gdpo_advantage",
    "group_advantage",
    "group_has_spread",
    "high_entropy_mask",
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
    "length_correlation",
    "masked_importance_weights",
    "masked_mean",
    "masked_sum",
    "mixture_logits",
    "nca_loss",
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
    "sequence_log_ratio",
    "simpo_loss",
    "sppo_loss",
    "truncated_importance_weights",
    "vote_loss",
    "whiten",
    "win_probability",
    "xpo_loss",
]
