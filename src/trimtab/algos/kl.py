"""Divergence from the reference: estimators per token, the loss of whole answers, the adaptive coefficient.

Shapes: B sequences, T tokens (right-padded; column t is about token t itself). Masks: True = counts.
δ = log π − log ref of a token drawn from π. There are two ways to penalise KL(π‖ref), and they have the same gradient:

- in the reward: −β·k1 of each token (:func:`penalised_rewards`);
- in the loss: β times :func:`kl_sequence`, ∇ = E Σ_t ∇log π_t · Σ_{s≥t} δ_s.

:func:`kl_k1`, :func:`kl_k2` and :func:`kl_k3` are about one token. As a *value* k1 and k3 are unbiased for its
KL(π‖ref). As a *loss* they have the expected gradients 0, ∇KL(π‖ref) and ∇KL(ref‖π) only where an answer is a single
token. In a longer answer per-token k2 gives E Σ_t ∇log π_t · δ_t: each token is penalised for its own divergence, but
not for the divergence of the tokens it leads to. k3 has the same gap. A policy trained with either can drift to states
where the divergence is large. Source: Tang & Munos 2025 (arXiv 2506.09477); measured in
docs/explanation/conformance.md.

Departure from Schulman: k3 is limited, as in verl and OpenRLHF.
"""

import math

import torch
from torch import Tensor

from trimtab.algos.checks import boolean, full, not_negative, same_shape, two_dimensional
from trimtab.algos.masking import last_true, masked, masked_mean
from trimtab.algos.shapes import MaskBT, TensorB, TensorBT
from trimtab.errors import ConfigError, NonFiniteError


def kl_k1(logprobs: Tensor, ref_logprobs: Tensor, response_mask: Tensor | None = None) -> Tensor:
    """k1 = δ = log π − log ref: unbiased for KL(π‖ref), of either sign; as a loss its expected gradient is 0.

    Source: Schulman 2020 ("Approximating KL Divergence").

    Args:
        logprobs: any shape, nats, of tokens drawn from π.
        ref_logprobs: same shape, nats, of the same tokens; a constant.
        response_mask: same shape, bool, True: counts; None: all do.

    Returns:
        same shape, nats, 0 where the mask is False.

    Raises:
        TrainingError: the shapes differ, or the mask is not bool.
    """
    same_shape(logprobs=logprobs, ref_logprobs=ref_logprobs)
    delta = full(logprobs) - full(ref_logprobs.detach())
    return delta if response_mask is None else masked(delta, response_mask)


def kl_k2(logprobs: Tensor, ref_logprobs: Tensor, response_mask: Tensor | None = None) -> Tensor:
    """k2 = δ²/2, δ = log π − log ref: never negative, biased.

    As a loss its expected gradient is that of one token's KL(π‖ref) in the state it was drawn in. For an answer of one
    token that is ∇KL(π‖ref). For longer ones it is not: the divergence of later tokens is left out. Use
    :func:`kl_sequence` there.

    Source: Schulman 2020 ("Approximating KL Divergence"); as a loss: Tang & Munos 2025 (arXiv 2506.09477).

    Args:
        logprobs: any shape, nats, of tokens drawn from π.
        ref_logprobs: same shape, nats, of the same tokens; a constant.
        response_mask: same shape, bool, True: counts; None: all do.

    Returns:
        same shape, nats, 0 where the mask is False.

    Raises:
        TrainingError: the shapes differ, or the mask is not bool.
    """
    return kl_k1(logprobs, ref_logprobs, response_mask).square() / 2


K3_LOG_RATIO = 20.0
"""|δ| is limited to this in k3, nats."""

K3_LARGEST = 10.0
"""Largest k3 of a token, nats; beyond it there is no gradient."""


def kl_k3(logprobs: Tensor, ref_logprobs: Tensor, response_mask: Tensor | None = None) -> Tensor:
    """k3 = e^{−δ} − 1 + δ, δ = log π − log ref: never negative; unbiased for KL(π‖ref) below its limit of 10 nats.

    As a loss its expected gradient is, for an answer of one token, ∇KL(ref‖π); for longer ones it is the sum of that
    over the states π visits, which is the gradient of no KL between answers (:func:`kl_sequence` is). Without a limit,
    δ = −90 gives infinity. δ is limited to ±20 and k3 to 10, as in verl (``low_var_kl``) and OpenRLHF; a token at a
    limit has no gradient. :func:`k3_clamped` counts them.

    Source: Schulman 2020 ("Approximating KL Divergence"); used as a loss by GRPO, Shao et al. 2024, eq. 4.

    Args:
        logprobs: any shape, nats, of tokens drawn from π.
        ref_logprobs: same shape, nats, of the same tokens; a constant.
        response_mask: same shape, bool, True: counts; None: all do.

    Returns:
        same shape, nats, in [0, 10], 0 where the mask is False.

    Raises:
        TrainingError: the shapes differ, or the mask is not bool.

    >>> [round(float(k), 4) for k in kl_k3(torch.tensor([-1.0, -91.0]), torch.tensor([-1.5, -1.0]))]
    [0.1065, 10.0]
    """
    delta = kl_k1(logprobs, ref_logprobs, response_mask).clamp(-K3_LOG_RATIO, K3_LOG_RATIO)
    return (torch.expm1(-delta) + delta).clamp(max=K3_LARGEST)


def k3_clamped(logprobs: Tensor, ref_logprobs: Tensor, response_mask: Tensor) -> Tensor:
    """Share of tokens whose k3 is at its limit, so that they have no gradient in :func:`kl_k3`.

    mean of [k3 ≥ 10]. Source: the limit of verl and OpenRLHF.

    Args:
        logprobs: any shape, nats, of tokens drawn from π.
        ref_logprobs: same shape, nats, of the same tokens.
        response_mask: same shape, bool, True: counts.

    Returns:
        a scalar in [0, 1], a mean over the tokens that count.

    Raises:
        TrainingError: the shapes differ, or the mask is not bool.
    """
    return masked_mean(kl_k3(logprobs.detach(), ref_logprobs, response_mask) >= K3_LARGEST, response_mask)


def kl_sequence(
    logprobs: TensorBT,
    ref_logprobs: TensorBT,
    response_mask: MaskBT,
    *,
    old_logprobs: TensorBT | None = None,
) -> TensorBT:
    """KL(π‖ref) of whole answers as a loss: a token is penalised for its own divergence and for all later ones.

    The gradient is Σ_t ∇log π_t · Σ_{s≥t} w_s·δ_s, with δ_s = log π_s − log ref_s and the off-policy factor
    w_s = Π_{u≤s} π_u/π_old,u, all constants; its expectation over answers drawn from π_old is exactly ∇KL(π‖ref). The
    value of token s is w_s·δ_s; summed over an answer it is unbiased for KL(π‖ref). Source: Tang & Munos 2025
    (arXiv 2506.09477). Reduce it like the policy loss: summed over an answer's tokens (or divided by a constant) it is
    the KL; divided by the answer's own length it is weighted like the advantages of a method that does so (GRPO).

    The variance of w_s grows with the length of an answer. For many updates from one batch of long answers, use the
    penalty in the reward (:func:`penalised_rewards`) or stop early.

    Args:
        logprobs: ``[B, T]``, nats, of the policy that is trained.
        ref_logprobs: ``[B, T]``, nats; a constant.
        response_mask: ``[B, T]`` bool, True: the policy produced this token.
        old_logprobs: ``[B, T]``, nats, of the policy that sampled; a constant. None: π itself, w_s = 1.

    Returns:
        ``[B, T]``, nats, 0 where the mask is False.

    Raises:
        TrainingError: shapes differ or are not ``[B, T]``, or the mask is not bool.

    >>> new = torch.tensor([[-1.0, -2.0]], requires_grad=True)  # δ = 0.5, −1
    >>> kl_sequence(new, torch.tensor([[-1.5, -1.0]]), torch.ones(1, 2, dtype=torch.bool)).sum().backward()
    >>> new.grad.tolist()
    [[-0.5, -1.0]]
    """
    two_dimensional(response_mask=response_mask)
    fixed = logprobs.detach()
    divergence = kl_k1(fixed, ref_logprobs, response_mask)
    if old_logprobs is not None:
        # At most e²⁰, like every ratio (see trimtab.algos.policy).
        divergence = divergence * kl_k1(fixed, old_logprobs, response_mask).cumsum(dim=1).clamp(max=20.0).exp()
    to_come = divergence.flip(1).cumsum(dim=1).flip(1)
    score = full(masked(logprobs, response_mask))
    return divergence + to_come * (score - score.detach())


class AdaptiveKL:
    """Moves β so that the KL *per sequence* stays near a target.

    β ← β · (1 + clip(KL/target − 1, ±0.2) · n/horizon). Source: Ziegler et al. 2019 (arXiv 1909.08593),
    section 2.2. Both KL and target are summed over a sequence's tokens: a KL per token with a target per
    sequence would drive β to 0.

    Args:
        initial: first β, reward units per nat; 0 stays 0.
        target: target KL per sequence, nats.
        horizon: number of sequences over which a full correction is made.

    Raises:
        ConfigError: β below 0, target or horizon not above 0, or one of them infinite.

    >>> round(AdaptiveKL(0.2, 6.0, 10_000).update(9.0, 256), 6)
    0.201024
    """

    def __init__(self, initial: float, target: float, horizon: float) -> None:
        if not (0 <= initial < math.inf and 0 < target < math.inf and 0 < horizon < math.inf):
            raise ConfigError(
                f"KL coefficient {initial}, target {target}, horizon {horizon}; "
                "set the coefficient to 0 or above, target and horizon above 0, all finite"
            )
        self.value, self.target, self.horizon = initial, target, horizon

    def update(self, kl_per_sequence: float, n: int) -> float:
        """Take in the mean KL per sequence of a batch and return the new β.

        Args:
            kl_per_sequence: nats, mean over ``n`` sequences.
            n: sequences in the batch.

        Raises:
            ConfigError: the batch is so large relative to the horizon that β could reach 0 in one step.
            NonFiniteError: the KL is NaN or infinite; β is left as it was.
        """
        if not math.isfinite(kl_per_sequence):
            raise NonFiniteError(
                f"the KL per sequence is {kl_per_sequence}; look at the log-probabilities of this step"
            )
        if 0.2 * n >= self.horizon:
            raise ConfigError(f"the KL horizon is {self.horizon} for batches of {n}; set it above {0.2 * n:g}")
        error = min(max(kl_per_sequence / self.target - 1.0, -0.2), 0.2)
        self.value *= 1.0 + error * n / self.horizon
        return self.value

    def state_dict(self) -> dict[str, float]:
        """State for a checkpoint: β. Target and horizon belong to the configuration."""
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Continue from :meth:`state_dict`."""
        self.value = float(state["value"])


def penalised_rewards(
    scores: TensorB,
    logprobs: TensorBT,
    ref_logprobs: TensorBT,
    response_mask: MaskBT,
    *,
    beta: float,
) -> TensorBT:
    """Reward per token: the KL penalty everywhere, plus the score at the last token the policy produced.

    r_t = −β·(log π_t − log ref_t) + [t is the last True]·score. Source: Ziegler et al. 2019; Ouyang
    et al. 2022 (arXiv 2203.02155), eq. 2. Penalties on whole answers come before:
    :func:`~trimtab.algos.penalise_missing_eos`, :func:`~trimtab.algos.overlong_penalty`.

    Args:
        scores: ``[B]``, reward units, of whole answers.
        logprobs: ``[B, T]``, nats, of the policy that sampled.
        ref_logprobs: ``[B, T]``, nats.
        response_mask: ``[B, T]`` bool, True: the policy produced this token (EOS included).
        beta: β, reward units per nat, 0 or above.

    Returns:
        ``[B, T]``, 0 where the mask is False; no gradient.

    Raises:
        ConfigError: β below 0.
        TrainingError: shapes differ or are not ``[B, T]``, the mask is not bool, or an answer has no token that counts.

    >>> one = torch.ones(1, 2, dtype=torch.bool)
    >>> penalised_rewards(torch.tensor([1.0]), torch.zeros(1, 2), torch.tensor([[0.5, 1.0]]), one, beta=0.5).tolist()
    [[0.25, 1.5]]
    """
    not_negative(beta=beta)
    same_shape(logprobs=logprobs, ref_logprobs=ref_logprobs, response_mask=response_mask)
    two_dimensional(response_mask=response_mask)
    boolean(response_mask=response_mask)
    same_shape(scores=scores, sequences=response_mask[:, 0])
    scores = full(scores.detach())
    last = last_true(response_mask)
    penalty = beta * kl_k1(logprobs.detach(), ref_logprobs.detach(), response_mask)
    positions = torch.arange(response_mask.shape[1], device=response_mask.device)
    return torch.where(positions == last[:, None], scores[:, None], 0.0) - penalty


def best_of_n_kl_bound(n: int) -> float:
    """Upper bound of the KL between best-of-n and the policy it samples from: log n − (n − 1)/n, in nats.

    It is often quoted as an equality, which is true only if no answer is ever drawn twice. Source: Beirami et al.
    2024 (arXiv 2401.01879), section 3.

    Args:
        n: answers drawn, 1 or more.

    Raises:
        ConfigError: n is not an integer of 1 or more.

    >>> round(best_of_n_kl_bound(4), 6)
    0.636294
    """
    if not (n >= 1 and n % 1 == 0):
        raise ConfigError(f"n is {n}; best-of-n draws a whole number of answers, 1 or more")
    return math.log(n) - (n - 1) / n


def best_of_n_kl(selected_logprobs: TensorB, n: int) -> TensorB:
    """KL between best-of-n and the policy it samples from, estimated from the answers it selected.

    With ε = π(selected):  (1 − ε)ⁿ·[log n + (n − 1)·log(1 − ε) − (n − 1)/n]
    + (1 − (1 − ε)ⁿ)·log[(1 − (1 − ε)ⁿ)/ε]. Source: Beirami et al. 2024 (arXiv 2401.01879), section 4.
    Average it over prompts. For long answers (ε → 0) it becomes the bound.

    Args:
        selected_logprobs: ``[B]``, nats, log π(y|x) of each selected answer, summed over its tokens.
        n: answers drawn per prompt, 1 or more.

    Returns:
        ``[B]`` float64, nats; no gradient.

    Raises:
        ConfigError: n is not an integer of 1 or more.

    >>> best_of_n_kl(torch.tensor([0.5]).log(), 4).round(decimals=6).tolist()
    [0.499124]
    """
    bound = best_of_n_kl_bound(n)
    # Clamped where float64 still resolves both ε and 1 − ε; the estimate is flat beyond either end.
    log_eps = selected_logprobs.detach().double().clamp(-600.0, -1e-15)
    log_rest = torch.log1p(-torch.exp(log_eps))  # log(1 − ε)
    missed = torch.exp(n * log_rest)  # (1 − ε)ⁿ
    hit = -torch.expm1(n * log_rest)
    return missed * (bound + (n - 1) * log_rest) + hit * (torch.log(hit) - log_eps)
