"""Offline preference losses: a policy learns from judged answers, without sampling. Per example.

Shapes: B pairs (or B single answers for KTO). ``*_chosen`` and ``*_rejected`` are log π(y|x) of whole
answers, *summed* over response tokens (``masked_sum(logprobs, response_mask, dim=1)``); where a paper
averages over tokens, the function takes the lengths and divides by them. Throughout,

    h = (log π_w − log π_l) − (log ref_w − log ref_l),  π trained, ref a constant, w chosen, l rejected.

Most of these losses are the Bradley–Terry loss of a reward that the policy implies, and are written that way.
Departures from the papers: ORPO's average log-probability is kept one rounding step below 0, where
the odds would be infinite.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import relu

from trimtab.algos.checks import boolean, full, not_negative, positive, rows, same_shape, within_unit
from trimtab.algos.reward import bradley_terry_loss
from trimtab.algos.shapes import MaskB, TensorB
from trimtab.errors import ConfigError, TrainingError


def dpo_loss(
    policy_chosen: TensorB,
    policy_rejected: TensorB,
    ref_chosen: TensorB,
    ref_rejected: TensorB,
    *,
    beta: float,
    label_smoothing: float = 0.0,
    smoothing: Literal["conservative", "robust"] = "conservative",
    probability: TensorB | None = None,
    chosen_lengths: TensorB | None = None,
    rejected_lengths: TensorB | None = None,
) -> TensorB:
    """Direct preference optimisation: Bradley–Terry on the reward β·log(π/ref) that the policy implies.

    L(h) = −log σ(β·h). Source: Rafailov et al. 2023 (arXiv 2305.18290), eq. 7. If a share ε of the labels is
    flipped: ``conservative``, (1 − ε)·L(h) + ε·L(−h), Mitchell 2023 (cDPO), eq. 3, stays cautious;
    ``robust``, [(1 − ε)·L(h) − ε·L(−h)]/(1 − 2ε), Chowdhury et al. 2024 (arXiv 2403.00409), is unbiased
    for the loss under the true labels and may be negative. With lengths each answer's log-ratio is divided by its
    tokens, h = log(π_w/ref_w)/|y_w| − log(π_l/ref_l)/|y_l|: length-normalised DPO, Lambert et al. 2024 (Tülu 3, arXiv
    2411.15124), where β is per nat per token (5 in the paper).

    Args:
        policy_chosen: ``[B]``, nats, summed over tokens.
        policy_rejected: ``[B]``.
        ref_chosen: ``[B]``.
        ref_rejected: ``[B]``.
        beta: β, reward units per nat, above 0.
        label_smoothing: ε, in [0, 0.5).
        smoothing: which of the two; without ε it makes no difference.
        probability: ``[B]``, soft labels P(chosen is better) in [0, 1]: p·L(h) + (1 − p)·L(−h); None: 1.
        chosen_lengths: ``[B]``, response tokens, 1 or more; None, as is ``rejected_lengths``: sums.
        rejected_lengths: ``[B]``.

    Returns:
        ``[B]``, nats.

    Raises:
        ConfigError: β or ε outside its range, an unknown ``smoothing``, or both ε and soft labels.
        TrainingError: shapes differ, a length is below 1, only one of the lengths is given, or a probability is outside
            [0, 1].

    >>> pair = [torch.tensor([x]) for x in (-12.0, -15.0, -13.0, -14.5)]
    >>> round(float(dpo_loss(*pair, beta=0.1)), 6)
    0.620957
    >>> flips = {"beta": 0.1, "label_smoothing": 0.1}
    >>> [round(float(dpo_loss(*pair, **flips, smoothing=s)), 6) for s in ("conservative", "robust")]
    [0.635957, 0.602207]
    """
    positive(beta=beta)
    if not 0 <= label_smoothing < 0.5:
        raise ConfigError(f"label_smoothing is {label_smoothing}; it is the share of flipped labels, in [0, 0.5)")
    if smoothing not in ("conservative", "robust"):
        raise ConfigError(f"smoothing is {smoothing!r}; use 'conservative' or 'robust'")
    if label_smoothing and probability is not None:
        raise ConfigError("label_smoothing beside soft labels: these say already how sure they are; use one of them")
    h = _log_ratio_gap(policy_chosen, policy_rejected, ref_chosen, ref_rejected, chosen_lengths, rejected_lengths)
    reward, zero = beta * h, torch.zeros_like(h)
    if not label_smoothing:
        return bradley_terry_loss(reward, zero, probability=probability)
    if smoothing == "conservative":
        return bradley_terry_loss(reward, zero, probability=torch.full_like(h, 1 - label_smoothing))
    right, flipped = bradley_terry_loss(reward, zero), bradley_terry_loss(zero, reward)
    return ((1 - label_smoothing) * right - label_smoothing * flipped) / (1 - 2 * label_smoothing)


def ipo_loss(
    policy_chosen: TensorB,
    policy_rejected: TensorB,
    ref_chosen: TensorB,
    ref_rejected: TensorB,
    *,
    tau: float,
    chosen_lengths: TensorB | None = None,
    rejected_lengths: TensorB | None = None,
    probability: TensorB | None = None,
) -> TensorB:
    """Identity preference optimisation: regress the gap on a fixed value, so certain labels cannot make it infinite.

    (h − 1/(2τ))²; soft label p: p·(h − 1/(2τ))² + (1 − p)·(h + 1/(2τ))². Source: Azar et al. 2023
    (arXiv 2310.12036), eq. 17, where log-probabilities are sums over tokens. With lengths each answer's log-ratio is
    divided by its tokens, h = log(π_w/ref_w)/|y_w| − log(π_l/ref_l)/|y_l|: the form that the authors say their
    experiments used, and that TRL has. τ has a different meaning in each: the gap of an answer, or of a token.

    Args:
        policy_chosen: ``[B]``, nats, summed over tokens.
        policy_rejected: ``[B]``.
        ref_chosen: ``[B]``; a constant, as is ``ref_rejected``.
        ref_rejected: ``[B]``.
        tau: τ, preference units per nat (with lengths: per nat per token), above 0.
        chosen_lengths: ``[B]``, response tokens, 1 or more; None, as is ``rejected_lengths``: sums.
        rejected_lengths: ``[B]``.
        probability: ``[B]``, soft labels P(chosen is better) in [0, 1]; None: 1.

    Returns:
        ``[B]``, nats² (with lengths: per token²).

    Raises:
        ConfigError: τ not above 0.
        TrainingError: shapes differ, a length is below 1, only one of the lengths is given, or a probability is outside
            [0, 1].

    >>> pair = [torch.tensor([x]) for x in (-12.0, -15.0, -13.0, -14.5)]
    >>> round(float(ipo_loss(*pair, tau=0.1)), 6)
    12.25
    >>> lengths = {"chosen_lengths": torch.tensor([10.0]), "rejected_lengths": torch.tensor([12.0])}
    >>> round(float(ipo_loss(*pair, tau=0.1, **lengths)), 4)
    23.6034
    """
    positive(tau=tau)
    h = _log_ratio_gap(policy_chosen, policy_rejected, ref_chosen, ref_rejected, chosen_lengths, rejected_lengths)
    loss = (h - 1 / (2 * tau)).square()
    if probability is None:
        return loss
    same_shape(policy_chosen=policy_chosen, probability=probability)
    probability = within_unit("probability", probability)
    return probability * loss + (1 - probability) * (h + 1 / (2 * tau)).square()


def hinge_loss(
    policy_chosen: TensorB, policy_rejected: TensorB, ref_chosen: TensorB, ref_rejected: TensorB, *, beta: float
) -> TensorB:
    """Hinge on the implied reward: pairs ahead by 1/β nats or more have no gradient.

    max(0, 1 − β·h). Source: Liu et al. 2023 (RSO, arXiv 2309.06657), hinge-norm loss of section 3.

    Args:
        policy_chosen: ``[B]``, nats, summed over tokens.
        policy_rejected: ``[B]``.
        ref_chosen: ``[B]``.
        ref_rejected: ``[B]``.
        beta: β, reward units per nat, above 0 (the paper's γ).

    Returns:
        ``[B]``, reward units.

    Raises:
        ConfigError: β not above 0.
        TrainingError: the shapes differ.

    >>> round(float(hinge_loss(*[torch.tensor([x]) for x in (-12.0, -15.0, -13.0, -14.5)], beta=0.1)), 6)
    0.85
    """
    positive(beta=beta)
    return relu(1 - beta * _log_ratio_gap(policy_chosen, policy_rejected, ref_chosen, ref_rejected))


def kto_loss(
    policy: TensorB,
    ref: TensorB,
    desirable: MaskB,
    reference_point: Tensor,
    *,
    beta: float,
    weight_desirable: float = 1.0,
    weight_undesirable: float = 1.0,
) -> TensorB:
    """Kahneman–Tversky optimisation: learn from single answers that were liked or not.

    With r = log π − log ref: λ_D·(1 − σ(β(r − z))) if liked, λ_U·(1 − σ(β(z − r))) if not. Source:
    Ethayarajh et al. 2024 (arXiv 2402.01306), eq. 7.

    Args:
        policy: ``[B]``, nats, summed over tokens.
        ref: ``[B]``.
        desirable: ``[B]`` bool, True: liked.
        reference_point: z, a scalar in nats, from :func:`kto_reference_point` over the whole step.
        beta: β, above 0.
        weight_desirable: λ_D, above 0.
        weight_undesirable: λ_U, above 0. The paper (eq. 8) recommends λ_D·(number liked)/(λ_U·number not) in
            [1, 4/3].

    Returns:
        ``[B]``, between 0 and the weight.

    Raises:
        ConfigError: β or a weight not above 0.
        TrainingError: shapes differ, z is not a scalar, or ``desirable`` is not bool.

    >>> answers = torch.tensor([-12.0, -15.0]), torch.tensor([-13.0, -14.5])
    >>> loss = kto_loss(*answers, torch.tensor([True, False]), torch.tensor(0.3), beta=0.1)
    >>> [round(x, 6) for x in loss.tolist()]
    [0.482507, 0.480011]
    """
    positive(beta=beta, weight_desirable=weight_desirable, weight_undesirable=weight_undesirable)
    same_shape(policy=policy, ref=ref, desirable=desirable)
    boolean(desirable=desirable)
    if reference_point.dim() != 0:
        raise TrainingError(
            f"reference_point has shape {list(reference_point.shape)}; expected one scalar for the whole step, "
            "see kto_reference_point"
        )
    ahead = beta * (full(policy) - full(ref.detach()) - reference_point.detach())
    return torch.where(desirable, weight_desirable * torch.sigmoid(-ahead), weight_undesirable * torch.sigmoid(ahead))


def kto_reference_point(policy_mismatched: TensorB, ref_mismatched: TensorB) -> Tensor:
    """Reference point of KTO: how far the policy has moved overall, measured on answers to other prompts.

    z = max(0, mean(log π(y'|x) − log ref(y'|x))), y' the next answer in the batch that is to another prompt than x,
    no gradient. Source: Ethayarajh et al. 2024 (arXiv 2402.01306), section 4.1. Call it once per optimiser
    step with all mismatched pairs; computed from a micro-batch, it would depend on how the step is cut.

    Args:
        policy_mismatched: ``[B]``, nats, summed over tokens.
        ref_mismatched: ``[B]``.

    Returns:
        a scalar, nats, 0 or above.

    Raises:
        TrainingError: the shapes differ, or there is no pair.

    >>> float(kto_reference_point(torch.tensor([-1.0, -2.0]), torch.tensor([-2.0, -2.5])))
    0.75
    """
    same_shape(policy_mismatched=policy_mismatched, ref_mismatched=ref_mismatched)
    if policy_mismatched.numel() == 0:
        raise TrainingError("there is no mismatched pair to take KTO's reference point from; use at least 2 examples")
    return (full(policy_mismatched.detach()) - full(ref_mismatched.detach())).mean().clamp(min=0)


def orpo_loss(
    policy_chosen: TensorB, policy_rejected: TensorB, chosen_lengths: TensorB, rejected_lengths: TensorB, *, lam: float
) -> TensorB:
    """Odds-ratio preference optimisation: fine-tuning on the chosen answer and preference in one, no reference.

    NLL_w/|y_w| − λ·log σ(log odds_w − log odds_l), odds = P/(1 − P), P = exp(log π(y|x)/|y|). Source: Hong
    et al. 2024 (arXiv 2403.07691), eq. 6 and 7.

    Args:
        policy_chosen: ``[B]``, nats, summed over tokens.
        policy_rejected: ``[B]``.
        chosen_lengths: ``[B]``, response tokens, 1 or more.
        rejected_lengths: ``[B]``.
        lam: λ, above 0.

    Returns:
        ``[B]``, nats.

    Raises:
        ConfigError: λ not above 0.
        TrainingError: shapes differ, or a length is below 1.

    >>> pair = [torch.tensor([x]) for x in (-12.0, -15.0, 10.0, 12.0)]
    >>> round(float(orpo_loss(*pair, lam=0.1)), 6)
    1.265837
    """
    positive(lam=lam)
    chosen, rejected = _per_token(policy_chosen, policy_rejected, chosen_lengths, rejected_lengths)
    return -chosen + lam * bradley_terry_loss(_log_odds(chosen), _log_odds(rejected))


def simpo_loss(
    policy_chosen: TensorB,
    policy_rejected: TensorB,
    chosen_lengths: TensorB,
    rejected_lengths: TensorB,
    *,
    beta: float,
    gamma: float,
) -> TensorB:
    """Simple preference optimisation: the reward is the average log-probability, so it does not grow with length.

    −log σ(β·log π_w/|y_w| − β·log π_l/|y_l| − γ). Source: Meng et al. 2024 (arXiv 2405.14734), eq. 6.

    Args:
        policy_chosen: ``[B]``, nats, summed over tokens.
        policy_rejected: ``[B]``.
        chosen_lengths: ``[B]``, response tokens, 1 or more.
        rejected_lengths: ``[B]``.
        beta: β, reward units per nat per token, above 0 (2 to 10).
        gamma: γ, the margin in reward units, 0 or above; not the ratio γ/β that some tables give.

    Returns:
        ``[B]``, nats.

    Raises:
        ConfigError: β not above 0, or γ below 0.
        TrainingError: shapes differ, or a length is below 1.

    >>> pair = [torch.tensor([x]) for x in (-12.0, -15.0, 10.0, 12.0)]
    >>> round(float(simpo_loss(*pair, beta=2.0, gamma=1.0)), 6)
    1.241154
    """
    positive(beta=beta)
    not_negative(gamma=gamma)
    chosen, rejected = _per_token(policy_chosen, policy_rejected, chosen_lengths, rejected_lengths)
    return bradley_terry_loss(beta * chosen, beta * rejected, margin=torch.full_like(chosen, gamma))


def cpo_loss(
    policy_chosen: TensorB,
    policy_rejected: TensorB,
    *,
    beta: float,
    alpha: float = 1.0,
    mean_length: float | None = None,
) -> TensorB:
    """Contrastive preference optimisation: DPO under a uniform reference, stabilised by fine-tuning.

    −log σ(β(log π_w − log π_l)) + α·NLL_w. Source: Xu et al. 2024 (arXiv 2401.08417), section 3. NLL is
    −log π_w, summed over tokens as in the paper. In the authors' code it is the mean over all chosen tokens of a batch:
    Σ NLL / Σ|y|. With ``mean_length`` = Σ|y|/B of the whole optimiser step, the mean of the losses equals that; a
    long answer then weighs more than a short one. The two forms differ by this length, so choose
    ``alpha`` for one of them.

    Args:
        policy_chosen: ``[B]``, nats, summed over tokens.
        policy_rejected: ``[B]``.
        beta: β, reward units per nat, above 0.
        alpha: α, 0 or above; 0: the preference part alone.
        mean_length: response tokens of a chosen answer, averaged over the whole optimiser step (with the weights of the
            loss, if there are any); None: the NLL stays a sum.

    Returns:
        ``[B]``, nats.

    Raises:
        ConfigError: β or the mean length not above 0, or α below 0.
        TrainingError: shapes differ.

    >>> round(float(cpo_loss(torch.tensor([-12.0]), torch.tensor([-15.0]), beta=0.1, alpha=0.0)), 6)
    0.554355
    """
    positive(beta=beta)
    not_negative(alpha=alpha)
    nll = -full(policy_chosen)
    if mean_length is not None:
        positive(mean_length=mean_length)
        nll = nll / mean_length
    return bradley_terry_loss(beta * full(policy_chosen), beta * full(policy_rejected)) + alpha * nll


def answer_nll(logprobs: TensorB, lengths: TensorB) -> TensorB:
    """Negative log-likelihood of an answer per token: −log π(y|x)/|y|.

    Adding α times this for the chosen answer to the DPO loss keeps the chosen answer likely; DPO alone may lower the
    likelihood of both. Source: Pang et al. 2024 (iterative RPO, arXiv 2404.19733), eq. 1, with α = 1.

    Args:
        logprobs: ``[B]``, nats, summed over tokens.
        lengths: ``[B]``, response tokens, 1 or more.

    Returns:
        ``[B]``, nats per token.

    Raises:
        TrainingError: the shapes differ, or a length is below 1.

    >>> answer_nll(torch.tensor([-12.0]), torch.tensor([10.0])).tolist()
    [1.2000000476837158]
    """
    same_shape(logprobs=logprobs, lengths=lengths)
    _at_least_one("lengths", lengths)
    return -full(logprobs) / lengths


def _log_ratio_gap(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    chosen_lengths: Tensor | None = None,
    rejected_lengths: Tensor | None = None,
) -> Tensor:
    """The h of the module docstring, ``[B]``; with lengths, each log-ratio is divided by its answer's length."""
    same_shape(
        policy_chosen=policy_chosen, policy_rejected=policy_rejected, ref_chosen=ref_chosen, ref_rejected=ref_rejected
    )
    if (chosen_lengths is None) != (rejected_lengths is None):
        raise TrainingError("only one of chosen_lengths and rejected_lengths is given; pass both, or neither for sums")
    if chosen_lengths is not None and rejected_lengths is not None:
        chosen, rejected = _per_token(
            full(policy_chosen) - full(ref_chosen.detach()),
            full(policy_rejected) - full(ref_rejected.detach()),
            chosen_lengths,
            rejected_lengths,
        )
        return chosen - rejected
    return full(policy_chosen) - full(policy_rejected) - (full(ref_chosen) - full(ref_rejected)).detach()


def _per_token(
    policy_chosen: Tensor, policy_rejected: Tensor, chosen_lengths: Tensor, rejected_lengths: Tensor
) -> tuple[Tensor, Tensor]:
    """Average log-probabilities of both answers."""
    same_shape(
        policy_chosen=policy_chosen,
        policy_rejected=policy_rejected,
        chosen_lengths=chosen_lengths,
        rejected_lengths=rejected_lengths,
    )
    _at_least_one("chosen_lengths", chosen_lengths)
    _at_least_one("rejected_lengths", rejected_lengths)
    return full(policy_chosen) / chosen_lengths, full(policy_rejected) / rejected_lengths


def _at_least_one(name: str, lengths: Tensor) -> None:
    bad = ~(lengths >= 1)
    if bool(bad.any()):
        raise TrainingError(f"{name} is below 1 in rows {rows(bad)}; an empty answer has no average, drop these pairs")


def _log_odds(average: Tensor) -> Tensor:
    """log[P/(1 − P)] of P = e^average."""
    average = average.clamp(max=-torch.finfo(average.dtype).eps)
    return average - torch.log(-torch.expm1(average))
