"""Divergence from the reference: estimators per token, the adaptive coefficient, rewards with the penalty inside.

Shapes: B sequences, T tokens (right-padded; column t is about token t itself). Masks: True = counts.
All three estimators look only at tokens drawn from π. As a *value* k1 and k3 are unbiased for
KL(π‖ref); as a *loss* their expected gradients are different things (0, ∇KL(π‖ref) and ∇KL(ref‖π)
for k1, k2 and k3), so inside a loss only k2 penalises KL(π‖ref). Inside the reward k1 is right.
"""

import math

import torch
from torch import Tensor

from trimtab.algos.checks import boolean, full, not_negative, same_shape, two_dimensional
from trimtab.algos.masking import last_true, masked
from trimtab.algos.shapes import MaskBT, TensorB, TensorBT
from trimtab.errors import ConfigError, NonFiniteError


def kl_k1(logprobs: Tensor, ref_logprobs: Tensor, response_mask: Tensor | None = None) -> Tensor:
    """k1 = δ = log π − log ref: unbiased for KL(π‖ref), of either sign; as a loss it teaches nothing.

    Source: Schulman 2020 ("Approximating KL Divergence").

    Args:
        logprobs: any shape, nats, of tokens drawn from π.
        ref_logprobs: same shape, nats, of the same tokens.
        response_mask: same shape, bool, True: counts; None: all do.

    Returns:
        same shape, nats, 0 where the mask is False.

    Raises:
        TrainingError: the shapes differ, or the mask is not bool.
    """
    same_shape(logprobs=logprobs, ref_logprobs=ref_logprobs)
    delta = full(logprobs) - full(ref_logprobs)
    return delta if response_mask is None else masked(delta, response_mask)


def kl_k2(logprobs: Tensor, ref_logprobs: Tensor, response_mask: Tensor | None = None) -> Tensor:
    """k2 = δ²/2, δ = log π − log ref: never negative, biased; as a loss its expected gradient is ∇KL(π‖ref).

    Source: Schulman 2020 ("Approximating KL Divergence").

    Args:
        logprobs: any shape, nats, of tokens drawn from π.
        ref_logprobs: same shape, nats, of the same tokens.
        response_mask: same shape, bool, True: counts; None: all do.

    Returns:
        same shape, nats, 0 where the mask is False.

    Raises:
        TrainingError: the shapes differ, or the mask is not bool.
    """
    return kl_k1(logprobs, ref_logprobs, response_mask).square() / 2


def kl_k3(logprobs: Tensor, ref_logprobs: Tensor, response_mask: Tensor | None = None) -> Tensor:
    """k3 = e^{−δ} − 1 + δ, δ = log π − log ref: never negative, unbiased; as a loss it gives ∇KL(ref‖π).

    Source: Schulman 2020 ("Approximating KL Divergence"); used as a loss by GRPO, Shao et al. 2024, eq. 4.

    Args:
        logprobs: any shape, nats, of tokens drawn from π.
        ref_logprobs: same shape, nats, of the same tokens.
        response_mask: same shape, bool, True: counts; None: all do.

    Returns:
        same shape, nats, 0 where the mask is False.

    Raises:
        TrainingError: the shapes differ, or the mask is not bool.
    """
    delta = kl_k1(logprobs, ref_logprobs, response_mask)
    return torch.expm1(-delta) + delta


class AdaptiveKL:
    """Moves β so that the KL *per sequence* stays near a target.

    β ← β · (1 + clip(KL/target − 1, ±0.2) · n/horizon). Source: Ziegler et al. 2019 (arXiv 1909.08593),
    section 2.2. Both KL and target are summed over a sequence's tokens: a KL per token beside a target per
    sequence sends β to 0.

    Args:
        initial: first β, reward units per nat; 0 stays 0.
        target: KL per sequence to steer to, nats.
        horizon: sequences that a full correction takes.

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
            ConfigError: the batch is so large against the horizon that β could reach 0 in one step.
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
        """What a checkpoint keeps: β. Target and horizon belong to the configuration."""
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

    r_t = −β·(log π_t − log ref_t) + [t is the last True]·score. Source: Ziegler et al. 2019, eq. 2; Ouyang
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

    Often quoted as an equality; it is one only if no answer is ever drawn twice. Source: Beirami et al.
    2024 (arXiv 2401.01879), section 3.

    Args:
        n: answers drawn, 1 or more.

    Raises:
        ConfigError: n is not a whole number from 1 on.

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
        ConfigError: n is not a whole number from 1 on.

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
