"""Offline losses that anchor each answer of a pair, not only the difference between the two. Per pair.

Shapes: B pairs. ``*_chosen`` and ``*_rejected`` are log π(y|x) of whole answers, *summed* over response tokens, nats.
Throughout, r_w = β·(log π_w − log ref_w), r_l likewise, π trained, ref a constant, w chosen, l rejected. DPO depends on
r_w − r_l alone and may lower both; all of these losses except EXO depend on both separately.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from trimtab.algos.checks import full, positive, same_shape, within_unit
from trimtab.algos.shapes import TensorB
from trimtab.errors import ConfigError, TrainingError


def apo_zero_loss(
    policy_chosen: TensorB, policy_rejected: TensorB, ref_chosen: TensorB, ref_rejected: TensorB, *, beta: float
) -> TensorB:
    """Anchored preference optimisation, zero: raise the chosen answer above the reference, lower the rejected one.

    1 − σ(r_w) + σ(r_l). Source: D'Oosterlinck et al. 2024 (arXiv 2408.06266), eq. 7. For data whose chosen answers are
    better than the model's own.

    Args:
        policy_chosen: ``[B]``, nats, summed over tokens.
        policy_rejected: ``[B]``.
        ref_chosen: ``[B]``.
        ref_rejected: ``[B]``.
        beta: β, per nat, above 0.

    Returns:
        ``[B]``, in (0, 2).

    Raises:
        ConfigError: β not above 0.
        TrainingError: the shapes differ.

    >>> round(float(apo_zero_loss(*[torch.tensor([x]) for x in (-12.0, -15.0, -13.0, -14.5)], beta=0.1)), 6)
    0.962523
    """
    chosen, rejected = _rewards(policy_chosen, policy_rejected, ref_chosen, ref_rejected, beta)
    return torch.sigmoid(-chosen) + torch.sigmoid(rejected)


def apo_down_loss(
    policy_chosen: TensorB, policy_rejected: TensorB, ref_chosen: TensorB, ref_rejected: TensorB, *, beta: float
) -> TensorB:
    """Anchored preference optimisation, down: lower both answers, the rejected one more.

    σ(r_w) + 1 − σ(r_w − r_l). Source: D'Oosterlinck et al. 2024 (arXiv 2408.06266), eq. 8. For data whose chosen
    answers are worse than the model's own.

    Args:
        policy_chosen: ``[B]``, nats, summed over tokens.
        policy_rejected: ``[B]``.
        ref_chosen: ``[B]``.
        ref_rejected: ``[B]``.
        beta: β, per nat, above 0.

    Returns:
        ``[B]``, in (0, 2).

    Raises:
        ConfigError: β not above 0.
        TrainingError: the shapes differ.

    >>> round(float(apo_down_loss(*[torch.tensor([x]) for x in (-12.0, -15.0, -13.0, -14.5)], beta=0.1)), 6)
    0.987549
    """
    chosen, rejected = _rewards(policy_chosen, policy_rejected, ref_chosen, ref_rejected, beta)
    return torch.sigmoid(chosen) + torch.sigmoid(rejected - chosen)


def bco_loss(
    policy_chosen: TensorB,
    policy_rejected: TensorB,
    ref_chosen: TensorB,
    ref_rejected: TensorB,
    shift: Tensor,
    *,
    beta: float,
) -> TensorB:
    """Binary classifier optimisation: the reward is the logit of a classifier of chosen and rejected answers.

    −log σ(r_w − δ) − log σ(−(r_l − δ)), an upper bound of the DPO loss, tightest at δ = ½·(E r_w + E r_l). Source: Jung
    et al. 2024 (arXiv 2404.04656).

    Args:
        policy_chosen: ``[B]``, nats, summed over tokens.
        policy_rejected: ``[B]``.
        ref_chosen: ``[B]``.
        ref_rejected: ``[B]``.
        shift: a scalar, nats: ½·(log π_w/ref_w + log π_l/ref_l) averaged over the whole optimiser step; δ is β times
            it. A constant.
        beta: β, per nat, above 0.

    Returns:
        ``[B]``, nats.

    Raises:
        ConfigError: β not above 0.
        TrainingError: the shapes differ, or the shift is not a scalar.

    >>> pair = [torch.tensor([x]) for x in (-12.0, -15.0, -13.0, -14.5)]
    >>> round(float(bco_loss(*pair, torch.tensor(0.25), beta=0.1)), 6)
    1.3127
    """
    if shift.dim() != 0:
        raise TrainingError(f"shift has shape {list(shift.shape)}; expected one scalar for the whole step")
    chosen, rejected = _rewards(policy_chosen, policy_rejected, ref_chosen, ref_rejected, beta)
    delta = beta * full(shift.detach())
    return -logsigmoid(chosen - delta) - logsigmoid(delta - rejected)


def sppo_loss(
    policy_chosen: TensorB,
    policy_rejected: TensorB,
    ref_chosen: TensorB,
    ref_rejected: TensorB,
    *,
    beta: float,
    probability: TensorB | None = None,
) -> TensorB:
    """Self-play preference optimisation: regress each log-ratio on the answer's win probability.

    (log π_w/ref_w − (p − ½)/β)² + (log π_l/ref_l + (p − ½)/β)², p = P(chosen is better). Source: Wu et al. 2024 (arXiv
    2405.00675), eq. 4.7, with η = 1/β, summed over both answers. With certain labels log-ratios converge to ±1/(2β).

    Args:
        policy_chosen: ``[B]``, nats, summed over tokens.
        policy_rejected: ``[B]``.
        ref_chosen: ``[B]``.
        ref_rejected: ``[B]``.
        beta: β, per nat, above 0 (0.001 in the paper).
        probability: ``[B]``, soft labels P(chosen is better) in [0, 1]; None: 1.

    Returns:
        ``[B]``, nats².

    Raises:
        ConfigError: β not above 0.
        TrainingError: shapes differ, or a probability is outside [0, 1].

    >>> round(float(sppo_loss(*[torch.tensor([x]) for x in (-12.0, -15.0, -13.0, -14.5)], beta=0.1)), 6)
    36.25
    """
    positive(beta=beta)
    chosen, rejected = _rewards(policy_chosen, policy_rejected, ref_chosen, ref_rejected, 1.0)
    goal = torch.full_like(chosen, 0.5 / beta)
    if probability is not None:
        same_shape(policy_chosen=policy_chosen, probability=probability)
        goal = (within_unit("probability", probability) - 0.5) / beta
    return (chosen - goal).square() + (rejected + goal).square()


def exo_loss(
    policy_chosen: TensorB,
    policy_rejected: TensorB,
    ref_chosen: TensorB,
    ref_rejected: TensorB,
    *,
    beta: float,
    eps: float = 1e-3,
) -> TensorB:
    """Efficient exact optimisation: the reverse KL between what the policy prefers and what the label says.

    q·log(q/(1 − ε)) + (1 − q)·log((1 − q)/ε), q = σ(r_w − r_l). Source: Ji et al. 2024 (arXiv 2402.00856), eq. 16. DPO
    is the forward KL of these distributions. At the minimum r_w − r_l = log((1 − ε)/ε).

    Args:
        policy_chosen: ``[B]``, nats, summed over tokens.
        policy_rejected: ``[B]``.
        ref_chosen: ``[B]``.
        ref_rejected: ``[B]``.
        beta: β, per nat, above 0.
        eps: ε, in (0, 0.5): the share of labels that may be wrong; the loss is infinite at 0.

    Returns:
        ``[B]``, nats, 0 or above.

    Raises:
        ConfigError: β not above 0, or ε outside (0, 0.5).
        TrainingError: the shapes differ.

    >>> round(float(exo_loss(*[torch.tensor([x]) for x in (-12.0, -15.0, -13.0, -14.5)], beta=0.1)), 6)
    2.505517
    """
    if not 0 < eps < 0.5:
        raise ConfigError(f"eps is {eps}; set it above 0 and below 0.5 (0.001 is usual)")
    chosen, rejected = _rewards(policy_chosen, policy_rejected, ref_chosen, ref_rejected, beta)
    gap = chosen - rejected
    right, wrong = logsigmoid(gap), logsigmoid(-gap)
    log_right = torch.log1p(torch.tensor(-eps, dtype=gap.dtype, device=gap.device))
    log_wrong = torch.log(torch.tensor(eps, dtype=gap.dtype, device=gap.device))
    return right.exp() * (right - log_right) + wrong.exp() * (wrong - log_wrong)


def nca_loss(
    policy_chosen: TensorB, policy_rejected: TensorB, ref_chosen: TensorB, ref_rejected: TensorB, *, beta: float
) -> TensorB:
    """Noise-contrastive alignment: tell chosen answers from those of the reference.

    −log σ(r_w) − ½·log σ(−r_w) − ½·log σ(−r_l). Source: Chen et al. 2024 (arXiv 2402.05369), algorithm for preference
    data with K = 2. With pairs drawn from the reference and β = 1, the minimum is
    π(y) = 2·ref(y)·P(y beats an answer of ref).

    Args:
        policy_chosen: ``[B]``, nats, summed over tokens.
        policy_rejected: ``[B]``.
        ref_chosen: ``[B]``.
        ref_rejected: ``[B]``.
        beta: β, per nat, above 0.

    Returns:
        ``[B]``, nats.

    Raises:
        ConfigError: β not above 0.
        TrainingError: the shapes differ.

    >>> round(float(nca_loss(*[torch.tensor([x]) for x in (-12.0, -15.0, -13.0, -14.5)], beta=0.1)), 6)
    1.350825
    """
    chosen, rejected = _rewards(policy_chosen, policy_rejected, ref_chosen, ref_rejected, beta)
    return -logsigmoid(chosen) - 0.5 * (logsigmoid(-chosen) + logsigmoid(-rejected))


def _rewards(
    policy_chosen: Tensor, policy_rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float
) -> tuple[Tensor, Tensor]:
    """r_w and r_l of the module docstring, ``[B]`` each."""
    positive(beta=beta)
    same_shape(
        policy_chosen=policy_chosen, policy_rejected=policy_rejected, ref_chosen=ref_chosen, ref_rejected=ref_rejected
    )
    chosen = full(policy_chosen) - full(ref_chosen.detach())
    return beta * chosen, beta * (full(policy_rejected) - full(ref_rejected.detach()))
