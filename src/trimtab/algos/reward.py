"""Losses of reward models, one for each kind of judgement. Unreduced.

Shapes: P pairs, N rankings of up to K answers, B sequences of T tokens. Rewards in the model's own
units: e^Δ is the odds that the better answer wins. Masks: True = counts.
"""

import math
from collections.abc import Sequence
from typing import Literal, cast

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from trimtab.algos.checks import boolean, full, not_negative, positive, rows, same_shape, two_dimensional, within_unit
from trimtab.algos.masking import masked, masked_mean, masked_sum
from trimtab.algos.shapes import (
    MaskBT,
    MaskNK,
    MaskP,
    TensorB,
    TensorBT,
    TensorD,
    TensorN,
    TensorNK,
    TensorP,
    TensorP2,
    TensorPD,
)
from trimtab.errors import ConfigError, TrainingError

_NEVER = -1e30
"""Log-probability of what cannot happen; finite, so that gradients are finite."""

MAX_TIED = 12
"""Largest number of answers that may tie above the last place of a ranking in Plackett and Luce's loss."""


def bradley_terry_loss(
    chosen: TensorP,
    rejected: TensorP,
    *,
    margin: TensorP | None = None,
    probability: TensorP | None = None,
    centring: float = 0.0,
) -> TensorP:
    """Negative log-likelihood that the chosen answer beats the rejected one.

    L = −log σ(Δ), Δ = r_w − r_l − m; soft label p: −p·log σ(Δ) − (1 − p)·log σ(−Δ) with Δ = r_w − r_l − sign(p − ½)·m,
    so that the margin applies to the answer that is more likely the better one; centring: + η·(r_w + r_l)². Source:
    Bradley & Terry 1952; Ouyang et al. 2022 (arXiv 2203.02155), eq. 1; margin: Touvron et al. 2023 (arXiv 2307.09288);
    centring: Eisenstein et al. 2023 (arXiv 2312.09244), eq. 2.

    All pairs of one ranking are one element: average their losses, then sum over rankings, as
    :func:`ranking_loss` does.

    Args:
        chosen: ``[P]``, rewards of the better answers.
        rejected: ``[P]``, rewards of the worse ones.
        margin: ``[P]``, reward units the better answer must be ahead by (for p < ½ that is ``rejected``; for p = ½
            there is no margin); None: 0.
        probability: ``[P]``, P(chosen is better) in [0, 1]; None: 1.
        centring: η, 0 or above (0.01 is usual); pulls rewards towards 0, which no comparison determines.

    Returns:
        ``[P]``, nats.

    Raises:
        ConfigError: η below 0.
        TrainingError: shapes differ, or a probability is outside [0, 1].

    >>> round(float(bradley_terry_loss(torch.tensor([1.2]), torch.tensor([0.4]))), 6)
    0.371101
    """
    not_negative(centring=centring)
    given = {"margin": margin, "probability": probability}
    same_shape(chosen=chosen, rejected=rejected, **{name: t for name, t in given.items() if t is not None})
    chosen, rejected = full(chosen), full(rejected)
    probability = None if probability is None else within_unit("probability", probability)
    delta = chosen - rejected
    if margin is not None:
        delta = delta - (margin if probability is None else torch.sign(probability - 0.5) * margin)
    loss = -logsigmoid(delta)
    if probability is not None:
        loss = probability * loss - (1 - probability) * logsigmoid(-delta)
    return loss + centring * (chosen + rejected).square() if centring else loss


def ranking_pairs(ranks: Sequence[int]) -> TensorP2:
    """All strict pairs of a ranking; ties make no pair.

    Use it for one ranking at a time, if pairs also have a margin or a soft label; :func:`ranking_loss` takes
    many rankings at once.

    Source: bookkeeping of this package.

    Args:
        ranks: rank of each answer, lower is better, equal is a tie.

    Returns:
        ``[P, 2]`` int64, columns winner and loser, positions in ``ranks``.

    >>> ranking_pairs([1, 0, 1]).tolist()
    [[1, 0], [1, 2]]
    """
    pairs = [(i, j) for i, a in enumerate(ranks) for j, b in enumerate(ranks) if a < b]
    return torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)


def ranking_loss(rewards: TensorNK, ranks: TensorNK, mask: MaskNK | None = None) -> TensorN:
    """Bradley–Terry averaged over all pairs of a ranking, so that a prompt with many answers counts once.

    L = 1/|P| · Σ_{(w,l) ∈ P} −log σ(r_w − r_l), P all strict pairs, C(K, 2) of them without ties. Source:
    Ouyang et al. 2022 (arXiv 2203.02155), eq. 1 and section 3.5: the same pairs as separate examples,
    shuffled among other prompts, overfit within one pass.

    Args:
        rewards: ``[N, K]``, in any order.
        ranks: ``[N, K]``, lower is better, equal is a tie and makes no pair.
        mask: ``[N, K]`` bool, True: there is an answer in this place; None: in all.

    Returns:
        ``[N]``, nats per pair; 0 for a ranking without a strict pair (leave it out of the norm).

    Raises:
        TrainingError: the shapes differ or are not ``[N, K]``, or the mask is not bool.

    >>> round(float(ranking_loss(torch.tensor([[-0.3, 1.2, 0.4]]), torch.tensor([[3, 1, 2]]))), 6)
    0.325233
    """
    two_dimensional(rewards=rewards)
    same_shape(rewards=rewards, ranks=ranks)
    there = torch.ones_like(rewards, dtype=torch.bool) if mask is None else mask
    rewards = full(masked(rewards, there))
    pairs = (ranks[:, :, None] < ranks[:, None, :]) & there[:, :, None] & there[:, None, :]
    losses = -logsigmoid(rewards[:, :, None] - rewards[:, None, :])
    return masked_mean(losses.flatten(1), pairs.flatten(1), dim=1)


def plackett_luce_loss(rewards: TensorNK, mask: MaskNK | None = None, *, ranks: TensorNK | None = None) -> TensorN:
    """Negative log-likelihood of a whole ranking: the best is chosen first, then the best of the rest, and so on.

    L = −Σ_k [r_k − log Σ_{j≥k} e^{r_j}], answers in order, best first. Source: Plackett 1975; Luce 1959;
    Rafailov et al. 2023 (arXiv 2305.18290), appendix A.3. For two answers it is Bradley–Terry.

    A tie says nothing about the order of the tied answers, so the likelihood of a ranking with ties is the sum over all
    strict rankings that agree with it. Ties in the last place cost nothing: their likelihood is 1.

    Args:
        rewards: ``[N, K]``, each row from best to worst; in any order if ``ranks`` are given.
        mask: ``[N, K]`` bool, True: there is an answer in this place; None: in all.
        ranks: ``[N, K]``, lower is better, equal is a tie; None: the order of the row, without ties. Time and memory
            grow as 2 to the power of the largest number of answers tied above the last place.

    Returns:
        ``[N]``, nats, summed over the choices.

    Raises:
        TrainingError: the shapes differ or are not ``[N, K]``, the mask is not bool, or more than :data:`MAX_TIED`
            answers tie above the last place.

    >>> round(float(plackett_luce_loss(torch.tensor([[1.2, 0.4, -0.3]]))), 6)
    0.917481
    """
    two_dimensional(rewards=rewards)
    present = torch.ones_like(rewards, dtype=torch.bool) if mask is None else mask
    rewards = full(masked(rewards, present))
    if ranks is None:
        ranks = torch.arange(rewards.shape[-1], device=rewards.device).expand(rewards.shape)
    same_shape(rewards=rewards, ranks=ranks)
    not_better = present[:, None, :] & (ranks[:, None, :] >= ranks[:, :, None])
    not_worse = present[:, None, :] & (ranks[:, None, :] <= ranks[:, :, None])
    tied = present & ((not_better & not_worse).sum(-1) > 1)
    left = torch.where(not_better, rewards[:, None, :], torch.finfo(rewards.dtype).min).logsumexp(-1)
    loss = masked_sum(left - rewards, present & ~tied, dim=-1)
    last = torch.where(present, ranks, ranks.min()).amax(-1, keepdim=True)
    rows = (tied & (ranks < last)).any(-1).nonzero()[:, 0]
    if not len(rows):
        return loss
    shares = [_loss_of_ties(rewards[row, present[row]], ranks[row, present[row]]) for row in rows]
    return loss.index_add(0, rows, torch.stack(shares))


def _loss_of_ties(rewards: Tensor, ranks: Tensor) -> Tensor:
    """The share of a ranking's tied answers in its loss, a scalar; rewards and ranks ``[K]``."""
    loss = rewards.new_zeros(())
    for place, rank in enumerate(ranks):
        group, worse = ranks == rank, ranks > rank
        count = int(group.sum())
        if count > 1 and worse.any() and not group[:place].any():  # once for each group
            if count > MAX_TIED:
                raise TrainingError(
                    f"{count} answers of a ranking tie above its last place, and Plackett-Luce takes at most "
                    f"{MAX_TIED}; use a loss of pairs"
                )
            loss = loss - _logprob_chosen_first(rewards[group], rewards[worse].logsumexp(0))
    return loss


def _logprob_chosen_first(group: Tensor, rest: Tensor) -> Tensor:
    """Log-probability that all answers of a group are chosen before the others, in any order; a scalar.

    ``reached[S]`` is the log-probability that the first |S| choices are the answers of the subset S of the group. It is
    the sum over the answer that was chosen last.

    Args:
        group: ``[M]``, rewards of the group.
        rest: scalar, log Σ e^r of the other answers.
    """
    subsets, bits = torch.arange(2 ** len(group), device=group.device), torch.arange(len(group), device=group.device)
    inside = (subsets[:, None] >> bits) % 2 == 1  # [2^M, M]
    before = subsets[:, None] ^ (1 << bits)
    left = torch.logaddexp(torch.where(inside, _NEVER, group).logsumexp(-1), rest)
    start = torch.where(subsets == 0, 0.0, _NEVER).to(group.dtype)
    reached = start
    for _ in bits:
        last = torch.where(inside, group + (reached - left)[before], _NEVER)
        reached = torch.where(subsets == 0, start, last.logsumexp(-1))
    return reached[-1]


def rao_kupper_loss(chosen: TensorP, rejected: TensorP, tie: MaskP, *, theta: float) -> TensorP:
    """Bradley–Terry with ties: a difference below log θ may go unnoticed.

    With λ = e^r: P(win) = λ_w/(λ_w + θλ_l), P(tie) = (θ² − 1)·λ_wλ_l/[(λ_w + θλ_l)(θλ_w + λ_l)]; computed as
    log P(win) = log σ(Δ − log θ), log P(tie) = log(θ² − 1) + log σ(Δ − log θ) + log σ(−Δ − log θ).
    Source: Rao & Kupper 1967.

    Args:
        chosen: ``[P]``, rewards; of the better answers, or of either one in a tie.
        rejected: ``[P]``.
        tie: ``[P]`` bool, True: judged equal.
        theta: θ, above 1; 1 would mean that ties never happen.

    Returns:
        ``[P]``, nats.

    Raises:
        ConfigError: θ not above 1, or infinite.
        TrainingError: the shapes differ, or ``tie`` is not bool.

    >>> r = torch.tensor([1.2, 1.2]), torch.tensor([0.4, 0.4])
    >>> [round(float(x), 4) for x in (-rao_kupper_loss(*r, torch.tensor([False, True]), theta=1.5)).exp()]
    [0.5974, 0.1721]
    """
    if not 1 < theta < math.inf:
        raise ConfigError(
            f"theta is {theta}; set it above 1 and finite, or use bradley_terry_loss where nothing is tied"
        )
    same_shape(chosen=chosen, rejected=rejected, tie=tie)
    boolean(tie=tie)
    delta, threshold = full(chosen) - full(rejected), math.log(theta)
    win = -logsigmoid(delta - threshold)
    return torch.where(tie, win - logsigmoid(-delta - threshold) - math.log(theta**2 - 1), win)


def davidson_loss(chosen: TensorP, rejected: TensorP, tie: MaskP, *, nu: float) -> TensorP:
    """Bradley–Terry with ties: a tie is a third outcome, most likely between equals.

    With λ = e^r, D = λ_w + λ_l + ν√(λ_wλ_l): P(win) = λ_w/D, P(tie) = ν√(λ_wλ_l)/D. Source: Davidson 1970.

    Args:
        chosen: ``[P]``, rewards; of the better answers, or of either one in a tie.
        rejected: ``[P]``.
        tie: ``[P]`` bool, True: judged equal.
        nu: ν, above 0; between equals P(tie) = ν/(2 + ν).

    Returns:
        ``[P]``, nats.

    Raises:
        ConfigError: ν not above 0, or infinite.
        TrainingError: the shapes differ, or ``tie`` is not bool.

    >>> r = torch.tensor([1.2, 1.2]), torch.tensor([0.4, 0.4])
    >>> [round(float(x), 4) for x in (-davidson_loss(*r, torch.tensor([False, True]), nu=0.5)).exp()]
    [0.5604, 0.1878]
    """
    positive(nu=nu)
    same_shape(chosen=chosen, rejected=rejected, tie=tie)
    boolean(tie=tie)
    chosen, rejected = full(chosen), full(rejected)
    between = (chosen + rejected) / 2 + math.log(nu)
    total = torch.stack([chosen, rejected, between]).logsumexp(0)
    return total - torch.where(tie, between, chosen)


def vote_loss(
    gap: TensorP, tau: TensorP, outcome: TensorP, *, likelihood: Literal["davidson", "rao_kupper"]
) -> TensorP:
    """Negative log-likelihood of single votes with ties, where each vote has its own tie parameter.

    With the gap d: Davidson, P(first) : P(tie) : P(second) = e^{d/2} : e^τ : e^{−d/2}, so ν = e^τ; Rao–Kupper,
    P(first) = σ(d − η), P(second) = σ(−d − η), P(tie) the rest, with η = e^τ = log θ. Source: Davidson 1970; Rao &
    Kupper 1967. An annotator's habits are in d and τ: d = γ·(r_first − r_second) + b, with the skill γ and the bias b
    for the answer that was shown earlier.

    Args:
        gap: ``[P]``, d.
        tau: ``[P]``, τ.
        outcome: ``[P]`` int64; 0: the first answer was called better; 1: a tie; 2: the second was.
        likelihood: which of the two.

    Returns:
        ``[P]``, nats.

    Raises:
        TrainingError: the shapes differ, or an outcome is not 0, 1 or 2.

    >>> d, even = torch.tensor([0.8, 0.8]), torch.tensor([0.5, 0.5]).log()
    >>> [round(float(x), 4) for x in (-vote_loss(d, even, torch.tensor([0, 1]), likelihood="davidson")).exp()]
    [0.5604, 0.1878]
    """
    same_shape(gap=gap, tau=tau, outcome=outcome)
    if not bool(((outcome >= 0) & (outcome <= 2)).all()):
        raise TrainingError("an outcome is not 0 (the first is better), 1 (a tie) or 2 (the second is better)")
    gap, tau = full(gap), full(tau)
    if likelihood == "davidson":
        logits = torch.stack([gap / 2, tau, -gap / 2])
        return logits.logsumexp(0) - logits.gather(0, outcome[None])[0]
    eta = tau.exp()
    first, second = logsigmoid(gap - eta), logsigmoid(-gap - eta)
    tie = 2 * eta + torch.log(-torch.expm1(-2 * eta)) + first + second
    return -torch.stack([first, tie, second]).gather(0, outcome[None])[0]


def fit_ridge_bradley_terry(gaps: TensorPD, targets: TensorP, weights: TensorP, *, penalty: float) -> TensorD:
    """Coefficients of a linear Bradley–Terry model with a ridge penalty, by eight steps of Newton's method.

    argmin_v Σ w·[softplus(z) − p·z] + ½·λ·|v|² with z = gaps @ v. Source: Le Cessie & van Houwelingen 1992 (ridge
    logistic regression).

    Args:
        gaps: ``[P, D]``, features of the first answer minus those of the second.
        targets: ``[P]``, p: probability that the first is better, in [0, 1].
        weights: ``[P]``, w.
        penalty: λ, above 0, in units of one pair's loss.

    Returns:
        ``[D]``, v.

    Raises:
        ConfigError: λ not above 0.
        TrainingError: shapes differ, or a probability is outside [0, 1].
    """
    positive(penalty=penalty)
    two_dimensional(gaps=gaps)
    same_shape(targets=targets, weights=weights, pairs=gaps[:, 0])
    targets = within_unit("target", targets)
    v = gaps.new_zeros(gaps.shape[1])
    eye = penalty * torch.eye(gaps.shape[1], dtype=gaps.dtype, device=gaps.device)
    for _ in range(8):
        share = torch.sigmoid(gaps @ v)
        gradient = gaps.T @ (weights * (share - targets)) + penalty * v
        hessian = (gaps * (weights * share * (1 - share))[:, None]).T @ gaps + eye
        v = v - cast(TensorD, torch.linalg.solve(hessian, gradient))  # pyright: ignore[reportUnknownMemberType]
    return v


def process_reward_loss(logits: TensorBT, labels: TensorBT, step_mask: MaskBT) -> TensorBT:
    """Cross-entropy of "this step is right" at the end of every step of a solution.

    L_t = −y·log σ(z_t) − (1 − y)·log σ(−z_t). Source: Lightman et al. 2023 (arXiv 2305.20050), section 2.6;
    soft labels: Wang et al. 2023 (Math-Shepherd, arXiv 2312.08935), section 3.3.

    Args:
        logits: ``[B, T]``, of P(the step that ends here is right).
        labels: ``[B, T]``, 1 right, 0 wrong, between: the share of tries that succeeded from here.
        step_mask: ``[B, T]`` bool, True: a judged step ends at this token.

    Returns:
        ``[B, T]``, nats, 0 where the mask is False.

    Raises:
        TrainingError: shapes differ, the mask is not bool, or a label that counts is outside [0, 1].
    """
    same_shape(logits=logits, labels=labels, step_mask=step_mask)
    logits = full(masked(logits, step_mask))
    labels = within_unit("label", masked(labels, step_mask)).to(logits.dtype)
    return masked(binary_cross_entropy_with_logits(logits, labels, reduction="none"), step_mask)


Aggregation = Literal["product", "minimum", "last", "mean"]
"""How the probabilities of steps become the score of a solution."""


def process_score(logits: TensorBT, step_mask: MaskBT, *, how: Aggregation = "product") -> TensorB:
    """Score of a whole solution from the probabilities that its steps are right.

    Π_t σ(z_t), min_t σ(z_t), σ(z_T) of the last step, or the mean (1/T) Σ_t σ(z_t). Source: Lightman et al. 2023 (arXiv
    2305.20050), section 2.6 and appendix F (product, minimum); Zhang et al. 2025 (arXiv 2501.07301) compares product,
    minimum and last.

    Args:
        logits: ``[B, T]``, of P(the step that ends here is right).
        step_mask: ``[B, T]`` bool, True: a step ends at this token.
        how: ``product`` (favours short solutions), ``minimum``, ``last`` (a good last step hides an earlier mistake) or
            ``mean`` (many right steps outweigh a wrong one).

    Returns:
        ``[B]``, in [0, 1].

    Raises:
        ConfigError: an unknown ``how``.
        TrainingError: shapes differ, the mask is not bool, or a solution has no step; its empty product
            of 1 would be the highest score.

    >>> steps = torch.tensor([[0.9, 0.5]]).logit(), torch.ones(1, 2, dtype=torch.bool)
    >>> [round(float(process_score(*steps, how=h)), 4) for h in ("product", "minimum", "last", "mean")]
    [0.45, 0.5, 0.5, 0.7]
    """
    if how not in ("product", "minimum", "last", "mean"):
        raise ConfigError(f"how is {how!r}; use 'product', 'minimum', 'last' or 'mean'")
    two_dimensional(logits=logits)
    logs = masked(logsigmoid(full(masked(logits, step_mask))), step_mask)
    without_step = ~step_mask.any(1)
    if bool(without_step.any()):
        raise TrainingError(
            f"solutions {rows(without_step)} have no step end, so nothing to score; drop them or mark their last token"
        )
    if how == "mean":
        return masked(logs.exp(), step_mask).sum(1) / step_mask.sum(1)
    if how == "last":
        places = torch.arange(logs.shape[1], device=logs.device)
        last = torch.where(step_mask, places, -1).argmax(1)
        return logs.gather(1, last[:, None]).squeeze(1).exp()
    return (logs.sum(1) if how == "product" else logs.amin(1)).exp()
