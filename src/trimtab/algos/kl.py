"""The KL leash: estimators per token, the adaptive coefficient, and rewards with the penalty inside."""

import torch
from torch import Tensor

from trimtab.algos.masking import masked, same_shape
from trimtab.errors import ConfigError, TrainingError


def kl_k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """k1 = δ = log π − log ref: unbiased for KL(π‖ref) when tokens come from π; may be negative.

    Source: Schulman, "Approximating KL divergence" (2020). As a *loss* its expected gradient is 0.

    Args:
        logprobs: any shape, nats.
        ref_logprobs: same shape.
    """
    same_shape(logprobs=logprobs, ref_logprobs=ref_logprobs)
    return logprobs - ref_logprobs


def kl_k2(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """k2 = δ²/2 ≥ 0: biased value, and as a loss its expected gradient is ∇KL(π‖ref)."""
    return kl_k1(logprobs, ref_logprobs).square() / 2


def kl_k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """k3 = e^{−δ} − 1 + δ ≥ 0: unbiased value of KL(π‖ref); as a loss its gradient is ∇KL(ref‖π)."""
    delta = kl_k1(logprobs, ref_logprobs)
    return torch.expm1(-delta) + delta


class AdaptiveKL:
    """Moves β so that the KL per sequence stays near a target.

    β ← β · (1 + clip(KL/target − 1, ±0.2) · n / horizon)   (Ziegler et al. 2019, eq. 5)

    Args:
        initial: first β.
        target: KL per *sequence*, in nats.
        horizon: sequences for a full correction.

    >>> round(AdaptiveKL(0.2, 6.0, 10_000).update(9.0, 256), 6)
    0.201024
    """

    def __init__(self, initial: float, target: float, horizon: float) -> None:
        if target <= 0 or horizon <= 0 or initial < 0:
            raise ConfigError(f"initial {initial} must be ≥ 0, target {target} and horizon {horizon} > 0")
        self.value, self.target, self.horizon = initial, target, horizon

    def update(self, kl_per_sequence: float, n: int) -> float:
        """Take in the mean KL per sequence of ``n`` sequences; returns the new β."""
        error = min(max(kl_per_sequence / self.target - 1.0, -0.2), 0.2)
        self.value *= 1.0 + error * n / self.horizon
        return self.value

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint keeps."""
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Continue from :meth:`state_dict`."""
        self.value = float(state["value"])


def penalised_rewards(
    scores: Tensor,
    logprobs: Tensor,
    ref_logprobs: Tensor,
    response_mask: Tensor,
    *,
    beta: float,
    ended: Tensor | None = None,
    missing_eos_penalty: float | None = None,
    missing_eos_mode: str = "replace",
) -> Tensor:
    """Reward per token: −β·(log π − log ref) everywhere, plus the score at the last token that counts.

    Source: Ziegler et al. 2019; Ouyang et al. 2022, eq. 2.

    Args:
        scores: ``[B]``, reward units.
        logprobs: ``[B, T]``, nats, of the policy that sampled.
        ref_logprobs: ``[B, T]``.
        response_mask: ``[B, T]`` bool, True: the policy produced this token.
        beta: reward units per nat.
        ended: ``[B]`` bool, True: the answer ended its turn; needed for a missing-EOS penalty.
        missing_eos_penalty: what an answer gets that was cut; None: nothing happens to it.
        missing_eos_mode: ``replace``: the score becomes the penalty; ``subtract``: |penalty| is taken off.

    Returns:
        ``[B, T]``, zero where the mask is False.
    """
    same_shape(logprobs=logprobs, ref_logprobs=ref_logprobs, response_mask=response_mask)
    if missing_eos_penalty is not None:
        if ended is None:
            raise TrainingError("a missing-EOS penalty needs `ended`, which answers ended their turn")
        if missing_eos_mode not in ("replace", "subtract"):
            raise ConfigError(f"missing_eos_mode is {missing_eos_mode!r}; use 'replace' or 'subtract'")
        cut = (
            torch.full_like(scores, missing_eos_penalty)
            if missing_eos_mode == "replace"
            else scores - abs(missing_eos_penalty)
        )
        scores = torch.where(ended, scores, cut)
    rewards = -beta * masked(logprobs - ref_logprobs, response_mask)
    positions = torch.arange(response_mask.shape[1], device=response_mask.device)
    last = torch.where(response_mask, positions, -1).max(dim=1).values
    if bool((last < 0).any()):
        raise TrainingError("an answer has no token that counts, so its score has no place; drop empty answers first")
    return rewards.scatter_add(1, last[:, None], scores[:, None].to(rewards.dtype))
