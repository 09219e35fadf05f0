"""Advantages from rewards."""

import torch
from torch import Tensor

from trimtab.algos.masking import masked, masked_mean, same_shape


def gae(
    rewards: Tensor, values: Tensor, response_mask: Tensor, *, gamma: float, lam: float, bootstrap: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation, carried over tokens that do not count.

    δ_t = r_t + γ·V_{t+1} − V_t;  A_t = δ_t + γλ·A_{t+1};  returns R_t = A_t + V_t, with t + 1 the *next
    token that counts*. Source: Schulman et al. 2016, eq. 11–16.

    Args:
        rewards: ``[B, T]``.
        values: ``[B, T]``, value of the state before token t.
        response_mask: ``[B, T]`` bool, True: an action. False positions are jumped over, not stepped through.
        gamma: discount per action.
        lam: λ.
        bootstrap: ``[B]``, value after the last action; None: 0, the end is terminal.

    Returns:
        advantages and returns, ``[B, T]``, zero where the mask is False.
    """
    same_shape(rewards=rewards, values=values, response_mask=response_mask)
    rewards, values = masked(rewards, response_mask), masked(values, response_mask)
    batch, steps = rewards.shape
    following = torch.zeros(batch, dtype=values.dtype, device=values.device) if bootstrap is None else bootstrap
    carried = torch.zeros(batch, dtype=values.dtype, device=values.device)
    out = torch.zeros_like(values)
    for t in range(steps - 1, -1, -1):
        here = response_mask[:, t]
        delta = rewards[:, t] + gamma * following - values[:, t]
        carried = torch.where(here, delta + gamma * lam * carried, carried)
        following = torch.where(here, values[:, t], following)
        out[:, t] = torch.where(here, carried, out[:, t])
    return out, masked(out + values, response_mask)


def whiten(x: Tensor, mask: Tensor, *, shift_mean: bool = True, eps: float = 1e-8) -> Tensor:
    """(x − mean)/√(var + ε) over the True positions of the whole batch; population variance.

    ``shift_mean=False`` adds the mean back, as the original does; ``True`` does not.
    """
    mean = masked_mean(x, mask)
    variance = masked_mean((x - mean).square(), mask)
    scaled = (x - mean) * torch.rsqrt(variance + eps)
    return masked(scaled if shift_mean else scaled + mean, mask)
