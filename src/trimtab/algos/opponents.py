"""Methods that compare an answer of the policy with an answer of an opponent: the reference, or a mixture with it.

Shapes: B pairs of answers, V tokens of the vocabulary. Log-probabilities in nats, of whole answers *summed* over
response tokens.
"""

import torch
from torch import Tensor

from trimtab.algos.checks import full, not_negative, positive, same_shape
from trimtab.algos.preference import dpo_loss
from trimtab.algos.shapes import TensorB
from trimtab.errors import ConfigError


def win_probability(scores: TensorB, opponent_scores: TensorB, *, log_odds: float = 1.0) -> TensorB:
    """P(an answer beats its opponent's) under Bradley–Terry: σ(κ·(s − s')).

    Source: Bradley & Terry 1952, as in Ouyang et al. 2022 (arXiv 2203.02155), eq. 1.

    Args:
        scores: ``[B]``, reward units, of the policy's answers.
        opponent_scores: ``[B]``.
        log_odds: κ, log-odds of winning per reward unit, above 0.

    Returns:
        ``[B]``, in [0, 1]; no gradient.

    Raises:
        ConfigError: κ is not above 0.
        TrainingError: the shapes differ.

    >>> win_probability(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 0.0]), log_odds=2.0)
    tensor([0.8808, 0.5000])
    """
    positive(log_odds=log_odds)
    same_shape(scores=scores, opponent_scores=opponent_scores)
    return torch.sigmoid(log_odds * (full(scores) - full(opponent_scores))).detach()


def mixture_logits(policy: Tensor, reference: Tensor, *, share: float) -> Tensor:
    """Logits of the geometric mixture of two policies at one token, π^(1−m)·ref^m / Z.

    (1 − m)·z + m·z_ref. The normalisers of both policies are constants of a row, so logits can be used instead of
    log-probabilities. Source: Munos et al. 2024 (Nash-MD, arXiv 2312.00886), section 7, the mixture per token.

    Args:
        policy: ``[B, V]``, logits z.
        reference: ``[B, V]``, logits z_ref.
        share: m in [0, 1], the reference's share; the paper's β.

    Returns:
        ``[B, V]``.

    Raises:
        ConfigError: the share is outside [0, 1].
        TrainingError: the shapes differ.

    >>> mixture_logits(torch.tensor([[0.0, 2.0]]), torch.tensor([[1.0, 0.0]]), share=0.25).tolist()
    [[0.25, 1.5]]
    """
    if not 0 <= share <= 1:
        raise ConfigError(f"share is {share}; the reference's share of a mixture is in [0, 1]")
    same_shape(policy=policy, reference=reference)
    return torch.lerp(full(policy), full(reference), share)


def xpo_loss(
    policy_own: TensorB,
    policy_other: TensorB,
    ref_own: TensorB,
    ref_other: TensorB,
    probability: TensorB,
    *,
    beta: float,
    alpha: float,
) -> TensorB:
    """Exploratory preference optimisation: DPO on an answer of the policy and one of the reference, plus exploration.

    p·L(h) + (1 − p)·L(−h) + α·log π(y'), L(h) = −log σ(β·h), h = log π/ref of the policy's answer y minus that of the
    reference's answer y'. The last term makes the reference's answers less likely, so probability moves to answers the
    reference would not give. Source: Xie et al. 2024 (arXiv 2405.21046), algorithm 1, whose labels are drawn with
    probability p; here p weighs both labels, which is the mean of that loss over the label.

    Args:
        policy_own: ``[B]``, log π(y), nats.
        policy_other: ``[B]``, log π(y').
        ref_own: ``[B]``, log ref(y).
        ref_other: ``[B]``, log ref(y').
        probability: ``[B]``, p, in [0, 1]: P(y is better than y').
        beta: β, reward units per nat, above 0.
        alpha: α, weight of the exploration, 0 or more.

    Returns:
        ``[B]``, nats.

    Raises:
        ConfigError: β or α outside its range.
        TrainingError: the shapes differ, or a probability is outside [0, 1].

    >>> pair = [torch.tensor([x]) for x in (-12.0, -15.0, -13.0, -14.5, 0.75)]
    >>> round(float(xpo_loss(*pair, beta=0.1, alpha=0.01)), 6)
    0.508457
    """
    not_negative(alpha=alpha)
    losses = dpo_loss(policy_own, policy_other, ref_own, ref_other, beta=beta, probability=probability)
    return losses + alpha * full(policy_other)
