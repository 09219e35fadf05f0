"""Advantages: how much better than expected each action was. They are constants in the loss and have no gradient.

Shapes: B sequences, T tokens (right-padded), G prompts, K answers to each. Masks: True = counts.
Departures from the papers: GAE goes from one counting token to the next *counting* token, however
many masked ones (tool output, padding) lie between. A group without spread gets exactly 0; dividing
its rounding errors by a standard deviation of nearly 0 would give noise of size 1.
"""

from typing import Literal

import torch
from torch import Tensor

from trimtab.algos.checks import boolean, full, not_negative, places, positive, same_shape, two_dimensional
from trimtab.algos.masking import last_true, masked, masked_mean, masked_sum
from trimtab.algos.shapes import MaskB, MaskBT, MaskG, MaskGK, TensorB, TensorBT, TensorGK, TensorGKR, TensorR
from trimtab.errors import ConfigError, NonFiniteError, TrainingError


def gae(
    rewards: TensorBT,
    values: TensorBT,
    response_mask: MaskBT,
    *,
    gamma: float,
    lam: float,
    bootstrap: TensorB | None = None,
) -> tuple[TensorBT, TensorBT]:
    """Generalised advantage estimation, carried over tokens that do not count.

    δ_t = r_t + γ·V_{t+1} − V_t;  A_t = δ_t + γλ·A_{t+1};  R_t = A_t + V_t, with t + 1 the next token
    that counts. Source: Schulman et al. 2016 (arXiv 1506.02438), eq. 16 and section 3.

    A cut answer has no terminal state. With ``bootstrap=None`` its end is treated as terminal (V = 0
    after it), which fits a missing-EOS penalty. To treat the answer as unfinished instead, pass the
    critic's value after the last token for cut answers and 0 for ended ones.

    Args:
        rewards: ``[B, T]``, reward units.
        values: ``[B, T]``, reward units; the value of the state before token t is produced.
        response_mask: ``[B, T]`` bool, True: an action of the policy. Other tokens are skipped.
        gamma: γ, discount per action, in [0, 1].
        lam: λ, in [0, 1]; 0: one-step errors, 1: returns minus values.
        bootstrap: ``[B]``, value after the last action; None: 0 for all.

    Returns:
        advantages and returns, ``[B, T]``, 0 where the mask is False.

    Raises:
        ConfigError: γ or λ outside [0, 1].
        TrainingError: the shapes differ or are not ``[B, T]``, or the mask is not bool.

    >>> one = torch.ones(1, 3, dtype=torch.bool)
    >>> rewards, values = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[0.2, 0.4, 0.5]])
    >>> [round(a, 6) for a in gae(rewards, values, one, gamma=1.0, lam=0.5)[0][0].tolist()]
    [0.375, 0.35, 0.5]
    """
    same_shape(rewards=rewards, values=values, response_mask=response_mask)
    two_dimensional(rewards=rewards)
    for name, number in {"gamma": gamma, "lam": lam}.items():
        if not 0 <= number <= 1:
            raise ConfigError(f"{name} is {number}; set it between 0 and 1")
    rewards, values = full(masked(rewards.detach(), response_mask)), full(masked(values.detach(), response_mask))
    nothing = torch.zeros_like(values[:, 0])
    following, carried = nothing, nothing
    if bootstrap is not None:
        same_shape(bootstrap=bootstrap, sequences=nothing)
        following = bootstrap.detach().to(values.dtype)
    columns: list[Tensor] = []
    for reward, value, acts in zip(
        reversed(rewards.unbind(1)), reversed(values.unbind(1)), reversed(response_mask.unbind(1)), strict=True
    ):
        delta = reward + gamma * following - value
        carried = torch.where(acts, delta + gamma * lam * carried, carried)
        following = torch.where(acts, value, following)
        columns.append(carried)
    advantages = masked(torch.stack(columns[::-1], dim=1), response_mask)
    return advantages, advantages + values


def bootstrapped_rewards(
    rewards: TensorBT, last_values: TensorB, cut: MaskB, response_mask: MaskBT, *, gamma: float
) -> TensorBT:
    """Rewards in which a cut answer also earns the critic's value after its last token.

    r_T ← r_T + γ·V_{T+1} for cut answers, T their last token. GAE of these rewards is GAE with V_{T+1} as the value
    after the end (``bootstrap`` of :func:`gae`). Source: partial-episode bootstrapping, Pardo et al. 2018 (arXiv
    1712.00378), section 4.

    Args:
        rewards: ``[B, T]``, reward units.
        last_values: ``[B]``, reward units, the critic's value of the state after the last token.
        cut: ``[B]`` bool, True: the answer was cut, so its end is not the end of the episode.
        response_mask: ``[B, T]`` bool, True: an action of the policy. A row without any is unchanged.
        gamma: γ, discount per action, in [0, 1].

    Returns:
        ``[B, T]``; no gradient.

    Raises:
        ConfigError: γ outside [0, 1].
        TrainingError: the shapes differ, or a mask is not bool.

    >>> rewards, one = torch.tensor([[0.0, 1.0]]), torch.ones(1, 2, dtype=torch.bool)
    >>> bootstrapped_rewards(rewards, torch.tensor([2.0]), torch.tensor([True]), one, gamma=0.5).tolist()
    [[0.0, 2.0]]
    """
    if not 0 <= gamma <= 1:
        raise ConfigError(f"gamma is {gamma}; set it between 0 and 1")
    same_shape(rewards=rewards, response_mask=response_mask)
    same_shape(last_values=last_values, cut=cut, sequences=response_mask[:, 0])
    boolean(response_mask=response_mask, cut=cut)
    earned, rows = full(rewards.detach()).clone(), (cut & response_mask.any(dim=1)).nonzero().squeeze(1)
    earned[rows, last_true(response_mask[rows])] += gamma * full(last_values.detach())[rows]
    return earned


def rloo_advantage(rewards: TensorGK, mask: MaskGK | None = None) -> TensorGK:
    """REINFORCE leave-one-out: each answer against the mean of the *others* in its group; unbiased.

    A_i = R_i − mean_{j≠i} R_j = k/(k − 1) · (R_i − mean R). Source: Kool et al. 2019; Ahmadian et al.
    2024 (arXiv 2402.14740), section 2.3.

    Args:
        rewards: ``[G, K]``, reward units, one row per prompt.
        mask: ``[G, K]`` bool, True: this answer counts (not empty, its reward not NaN); None: all do.
            k is the number that counts; an answer that is alone in its group gets 0.

    Returns:
        ``[G, K]``, 0 where the mask is False.

    Raises:
        ConfigError: K < 2.
        NonFiniteError: a reward that counts is NaN or infinite.
        TrainingError: the shapes differ, or the mask is not bool.

    >>> [round(a, 3) for a in rloo_advantage(torch.tensor([[1.0, 0.0, 0.0, 0.0]]))[0].tolist()]
    [1.0, -0.333, -0.333, -0.333]
    """
    deviation, k = _deviation(rewards, mask)
    return deviation * k / (k - 1).clamp(min=1)


def group_advantage(
    rewards: TensorGK,
    mask: MaskGK | None = None,
    *,
    std: Literal["sample", "population", "none"] = "sample",
    eps: float = 1e-6,
) -> TensorGK:
    """Group-relative advantage of GRPO: deviation from the group's mean in units of its spread.

    A_i = (R_i − mean R)/(s + ε). Source: Shao et al. 2024 (arXiv 2402.03300), section 4.1.2, which does
    not say which standard deviation; ``sample`` is what the common implementations compute. ``none``
    (s + ε replaced by 1): Dr.GRPO, Liu et al. 2025 (arXiv 2503.20783), section 3.2. Dividing by s is
    not an unbiased estimate of the gradient, not even up to scale; :func:`rloo_advantage` is.

    Args:
        rewards: ``[G, K]``, reward units, one row per prompt.
        mask: ``[G, K]`` bool, True: this answer counts; None: all do.
        std: ``sample`` (divides by k − 1), ``population`` (by k) or ``none``.
        eps: ε, reward units, 0 or above.

    Returns:
        ``[G, K]``, 0 where the mask is False and in groups without spread.

    Raises:
        ConfigError: K < 2, ε below 0, or an unknown ``std``.
        NonFiniteError: a reward that counts is NaN or infinite.
        TrainingError: the shapes differ, or the mask is not bool.

    >>> rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    >>> {s: [round(a, 3) for a in group_advantage(rewards, std=s)[0, :2].tolist()] for s in ("sample", "none")}
    {'sample': [1.5, -0.5], 'none': [0.75, -0.25]}
    """
    if std not in ("sample", "population", "none"):
        raise ConfigError(f"std is {std!r}; use 'sample', 'population' or 'none'")
    not_negative(eps=eps)
    deviation, k = _deviation(rewards, mask)
    if std == "none":
        return deviation
    squares = deviation.square().sum(1, keepdim=True)
    scale = (squares / (k if std == "population" else k - 1).clamp(min=1)).sqrt()
    return torch.where(scale > 0, deviation / (scale + eps), deviation)


def gdpo_advantage(
    rewards: TensorGKR,
    weights: TensorR,
    mask: MaskGK | None = None,
    *,
    std: Literal["sample", "population"] = "sample",
    eps: float = 1e-6,
) -> TensorGK:
    """GDPO: each of several rewards is normalised in its group before they are added, then the sum over the batch.

    A_i = whiten(Σ_r w_r·(R_{i,r} − mean R_r)/(s_r + ε)), whitened over all answers of the batch. With
    :func:`group_advantage` of the weighted sum, a reward that varies less than another has little effect, and answers
    with different rewards can get the same advantage. Source: Liu et al. 2026 (arXiv 2601.05242), eq. 4 to 6.

    Args:
        rewards: ``[G, K, R]``, each reward in its own units.
        weights: ``[R]``, w_r, positive or negative.
        mask: ``[G, K]`` bool, True: this answer counts; None: all do.
        std: ``sample`` or ``population``, as in :func:`group_advantage`.
        eps: ε, as there.

    Returns:
        ``[G, K]``, 0 where the mask is False.

    Raises:
        ConfigError: K < 2, ε below 0, or an unknown ``std``.
        NonFiniteError: a reward that counts is NaN or infinite.
        TrainingError: the shapes differ, or the mask is not bool.

    >>> rewards = torch.tensor([[[1.0, 10.0], [1.0, 0.0], [0.0, 10.0]]])  # the second answer lacks the larger reward
    >>> [round(a, 2) for a in gdpo_advantage(rewards, torch.ones(2))[0].tolist()]
    [1.41, -0.71, -0.71]
    """
    if rewards.dim() != 3 or rewards.shape[2:] != weights.shape:
        raise TrainingError(
            f"rewards have shape {list(rewards.shape)} and weights {list(weights.shape)}; expected [prompts, answers "
            "per prompt, rewards] and [rewards]"
        )
    counts = torch.ones(rewards.shape[:2], dtype=torch.bool, device=rewards.device) if mask is None else mask
    parts = [w * group_advantage(r, counts, std=std, eps=eps) for w, r in zip(weights, rewards.unbind(2), strict=True)]
    return whiten(torch.stack(parts).sum(0), counts)


def group_has_spread(rewards: TensorGK, mask: MaskGK | None = None) -> MaskG:
    """Which groups can teach anything: not all answers that count have the same reward.

    max R > min R. Source: dynamic sampling of DAPO, Yu et al. 2025 (arXiv 2503.14476), eq. 11, which
    draws other prompts instead of the rest.

    Args:
        rewards: ``[G, K]``.
        mask: ``[G, K]`` bool, True: this answer counts; None: all do.

    Returns:
        ``[G]`` bool, True: the group has spread.

    Raises:
        ConfigError: K < 2.
        NonFiniteError: a reward that counts is NaN or infinite.
        TrainingError: the shapes differ, or the mask is not bool.

    >>> group_has_spread(torch.tensor([[1.0, 0.0], [0.1, 0.1]])).tolist()
    [True, False]
    """
    return _spread(*_counted(rewards, mask))


def reinforce_pp_advantage(
    rewards: TensorBT, response_mask: MaskBT, *, gamma: float = 1.0, eps: float = 1e-8
) -> TensorBT:
    """REINFORCE++: the reward still to come, whitened over the whole batch; no critic, no groups.

    A_t = Σ_{s≥t} γ^{s−t} r_s, then (A − mean)/std over all counting tokens of the batch. Source: Hu et
    al. 2025 (arXiv 2501.03262), section on global advantage normalisation. Its variant with a baseline:
    :func:`reinforce_pp_baseline_advantage`.

    Args:
        rewards: ``[B, T]``, reward units, with the KL penalty inside (:func:`~trimtab.algos.penalised_rewards`).
        response_mask: ``[B, T]`` bool, True: an action of the policy.
        gamma: γ, in [0, 1].
        eps: as in :func:`whiten`.

    Returns:
        ``[B, T]``, 0 where the mask is False.

    Raises:
        ConfigError: γ outside [0, 1], or ε not above 0.
        TrainingError: the shapes differ or are not ``[B, T]``, or the mask is not bool.
    """
    to_come, _ = gae(rewards, torch.zeros_like(rewards), response_mask, gamma=gamma, lam=1.0)
    return whiten(to_come, response_mask, eps=eps)


def reinforce_pp_baseline_advantage(
    rewards: TensorBT, response_mask: MaskBT, *, group: int, gamma: float = 1.0, eps: float = 1e-8
) -> TensorBT:
    """REINFORCE++ with baseline: first subtracts each group's mean total from its answers, at their last token.

    r_last ← r_last − mean over the group of Σ_t r_t, then :func:`reinforce_pp_advantage`. Source: Hu et al. 2025
    (arXiv 2501.03262), REINFORCE++-baseline.

    Args:
        rewards: ``[B, T]``, reward units; every ``group`` consecutive rows answer one prompt.
        response_mask: ``[B, T]`` bool, True: an action of the policy. A row without any is in no group's mean.
        group: answers per prompt; B is a multiple of it.
        gamma: γ, in [0, 1].
        eps: as in :func:`whiten`.

    Returns:
        ``[B, T]``, 0 where the mask is False.

    Raises:
        ConfigError: γ outside [0, 1], or ε not above 0.
        TrainingError: the shapes differ or are not ``[B, T]``, the mask is not bool, or B is not a multiple of
            ``group``.
    """
    same_shape(rewards=rewards, response_mask=response_mask)
    two_dimensional(rewards=rewards)
    if group < 1 or len(rewards) % group:
        raise TrainingError(f"{len(rewards)} answers are no whole number of groups of {group}; pass whole groups")
    answered = response_mask.any(dim=1)
    totals = masked_sum(rewards, response_mask, dim=1)
    baseline = masked_mean(totals.view(-1, group), answered.view(-1, group), dim=1).repeat_interleave(group)
    centred = full(rewards).clone()
    centred[answered.nonzero().squeeze(1), last_true(response_mask[answered])] -= baseline[answered]
    return reinforce_pp_advantage(centred, response_mask, gamma=gamma, eps=eps)


def whiten(
    x: Tensor,
    mask: Tensor,
    *,
    shift_mean: bool = True,
    eps: float = 1e-8,
    variance: Literal["population", "sample"] = "population",
) -> Tensor:
    """Scale to variance 1 and, unless told otherwise, mean 0, over everything that counts.

    (x − mean)/√(var + ε), plus the mean again if ``shift_mean`` is False (rewards: their zero has a
    meaning). Source: Ziegler et al. 2019, ``whiten`` of the published code (lm-human-preferences),
    population variance. Call it with the whole batch; separate micro-batches or ranks would be whitened
    differently.

    Args:
        x: any shape, usually ``[B, T]``.
        mask: same shape, bool, True: counts.
        shift_mean: True: the mean is removed for good; False: it is added back.
        eps: ε, in units of the variance, above 0; it avoids dividing by 0 if nothing varies.
        variance: ``population`` divides by n, ``sample`` by n − 1 (1 if n = 1).

    Returns:
        ``x``'s shape, 0 where the mask is False.

    Raises:
        ConfigError: ε not above 0, or an unknown ``variance``.
        TrainingError: the shapes differ, or the mask is not bool.

    >>> x, mask = torch.tensor([1.0, 3.0, 99.0]), torch.tensor([True, True, False])
    >>> [[round(v, 4) for v in whiten(x, mask, shift_mean=shift).tolist()] for shift in (True, False)]
    [[-1.0, 1.0, 0.0], [1.0, 3.0, 0.0]]
    """
    positive(eps=eps)
    if variance not in ("population", "sample"):
        raise ConfigError(f"variance is {variance!r}; use 'population' or 'sample'")
    x = full(masked(x, mask))
    mean = masked_mean(x, mask)
    squares = masked_sum((x - mean).square(), mask)
    count = mask.sum() - int(variance == "sample")
    scaled = (x - mean) * torch.rsqrt(squares / count.clamp(min=1) + eps)
    return masked(scaled if shift_mean else scaled + mean, mask)


def _counted(rewards: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Rewards ``[G, K]``, 0 where they do not count, and the mask; refuses invalid groups and rewards."""
    if rewards.dim() != 2:
        raise TrainingError(f"rewards have shape {list(rewards.shape)}; expected [prompts, answers per prompt]")
    if rewards.shape[1] < 2:
        raise ConfigError(f"groups have {rewards.shape[1]} answer(s) per prompt; a group baseline needs at least 2")
    counts = torch.ones_like(rewards, dtype=torch.bool) if mask is None else mask
    rewards = full(masked(rewards.detach(), counts))
    bad = ~torch.isfinite(rewards)
    if bool(bad.any()):
        group, answer = places(bad)[0]
        raise NonFiniteError(
            f"the reward of answer {answer} in group {group} is {float(rewards[group, answer])} and would spoil the "
            "whole group; mend the reward function, or leave the answer out with the mask"
        )
    return rewards, counts


def _deviation(rewards: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """R_i − mean of what counts in its group, ``[G, K]``, exactly 0 without spread; and how many count, ``[G, 1]``."""
    rewards, counts = _counted(rewards, mask)
    deviation = rewards - masked_mean(rewards, counts, dim=1)[:, None]
    return masked(deviation, counts & _spread(rewards, counts)[:, None]), counts.sum(1, keepdim=True)


def _spread(rewards: Tensor, counts: Tensor) -> Tensor:
    """Whether max R > min R over what counts, ``[G]`` bool."""
    return torch.where(counts, rewards, -torch.inf).amax(1) > torch.where(counts, rewards, torch.inf).amin(1)
