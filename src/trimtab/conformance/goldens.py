"""Values of every loss and estimator at one point, worked out from the papers' formulas without any implementation.

To hold another library's function against them, wrap it so that it takes a golden's inputs by name::

    from trimtab.conformance import hold

    def theirs(policy_chosen, policy_rejected, ref_chosen, ref_rejected, beta):
        return other_library.dpo(policy_chosen - policy_rejected, ref_chosen - ref_rejected, beta)

    print(hold("dpo", theirs))          # Held(name='dpo', got=(0.62095…,), expected=(0.62095…,), …, passed=True)

An estimator of the KL of one token is held by its value, and by its expected gradient as the loss of an answer of one
token: wrap it in :func:`expected_gradient`. A KL of whole answers is held by the factor of each token's score in its
gradient: wrap it in :func:`score_coefficients`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from trimtab import algos
from trimtab.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Golden:
    """A function's inputs and its value there."""

    inputs: Mapping[str, Any]
    """By the names of our own function; numbers become float64 tensors where ours takes tensors."""
    expected: tuple[float, ...]
    """Its result, flattened."""
    ours: Callable[..., Any]
    """Our function of the same inputs."""
    tolerance: float = 1e-8
    """Largest absolute difference that is rounding."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Held:
    """What a function gave, beside what it should have."""

    name: str
    got: tuple[float, ...]
    expected: tuple[float, ...]
    difference: float
    """Largest absolute difference."""
    passed: bool


def t(*values: float) -> Tensor:
    """A float64 tensor."""
    return torch.tensor(values, dtype=torch.float64)


_ALL3 = torch.ones(1, 3, dtype=torch.bool)
_PAIR = {
    "policy_chosen": t(-12.0), "policy_rejected": t(-15.0), "ref_chosen": t(-13.0), "ref_rejected": t(-14.5),
}  # fmt: skip
_FREE = {"policy_chosen": t(-12.0), "policy_rejected": t(-15.0)}
_SIZED = _FREE | {"chosen_lengths": t(10.0), "rejected_lengths": t(12.0)}
_SCORES = {"chosen": t(1.2), "rejected": t(0.4)}
_GROUP = t(1.0, 0.0, 0.0, 0.0)[None]


def _adapted_beta(beta: float, kl: float, target: float, sequences: int, horizon: float) -> float:
    adaptive = algos.AdaptiveKL(beta, target, horizon)
    adaptive.update(kl, sequences)
    return adaptive.value


def _ensemble_scores(scores: Sequence[Sequence[float]], penalty: float) -> Tensor:
    """Mean, lowest, and mean minus λ standard deviations."""
    rows = torch.tensor(scores, dtype=torch.float64)
    return torch.stack([algos.ensemble_score(rows, how, penalty=penalty) for how in ("mean", "worst", "penalised")])


def _ensemble_spread(scores: Sequence[Sequence[float]]) -> Tensor:
    return algos.ensemble_spread(torch.tensor(scores, dtype=torch.float64))


def _running_scale(batches: Sequence[Sequence[float]]) -> list[float]:
    scale = algos.RunningScale()
    return [scale.update(batch) for batch in batches]


def _prices(costs: Sequence[float], initial: float, limit: float, lr: float) -> list[float]:
    price = algos.DualAscent(initial, limit=limit, lr=lr)
    return [price.update(cost) for cost in costs]


def score_coefficients(
    function: Callable[[Tensor, Tensor, Tensor], Tensor], logprobs: Tensor, ref_logprobs: Tensor, response_mask: Tensor
) -> Tensor:
    """What each token's score ∇log π_t is multiplied by in the gradient of a loss.

    Args:
        function: (log π, log ref, mask), ``[B, T]`` each → loss of each token, as :func:`~trimtab.algos.kl_sequence`.
        logprobs: ``[B, T]``, nats.
        ref_logprobs: ``[B, T]``, nats.
        response_mask: ``[B, T]`` bool, True: counts.

    Returns:
        ``[B, T]``, nats.
    """
    leaf = logprobs.clone().requires_grad_()
    return torch.autograd.grad(function(leaf, ref_logprobs, response_mask).sum(), leaf)[0]


def expected_gradient(estimator: Callable[[Tensor, Tensor], Tensor], logits: Tensor, ref_logits: Tensor) -> Tensor:
    """Σ_a π(a)·∇k(a): where an estimator pulls as a loss, its actions drawn from π and only the loss differentiated.

    Args:
        estimator: (log π, log ref) of some actions → their k, as :func:`~trimtab.algos.kl_k2`.
        logits: ``[A]``, of π.
        ref_logits: ``[A]``, of the reference.

    Returns:
        ``[A]``, with respect to the logits.
    """
    leaf = logits.clone().requires_grad_()
    new = torch.log_softmax(leaf, 0)
    loss = (new.detach().exp() * estimator(new, torch.log_softmax(ref_logits, 0))).sum()
    return torch.autograd.grad(loss, leaf)[0]


_TIES = {"chosen": t(1.2, 1.2, 0.4), "rejected": t(0.4, 0.4, 1.2), "tie": torch.tensor([False, True, False])}
_VOTES = {"gap": t(0.8, 0.8, 0.8), "outcome": torch.tensor([0, 1, 2])}
_LENGTHS = {
    "scores": t(1.0, 2.0, 4.0, 7.0), "lengths": t(3.0, 5.0, 4.0, 9.0), "prompts": torch.tensor([0, 0, 0, 1])
}  # fmt: skip
_RANKED = t(1.2, 0.4, -0.3)[None]
_STEPS = torch.tensor([[True, False, True, True]])
_TOKENS = {"logprobs": t(-1.0, -2.0)[None], "ref_logprobs": t(-1.5, -1.0)[None]}
_LOGITS = {"logits": t(0.5, -0.2, 1.0), "ref_logits": t(0.0, 0.3, -0.4)}
_RATIOS = t(1.0, 1.1, 1.5, 0.5, 1.5, 0.5, 5.0)[None]
_CLIPPED = {
    "logprobs": _RATIOS.log(), "old_logprobs": torch.zeros_like(_RATIOS),
    "advantages": t(2.0, 2.0, 2.0, 2.0, -2.0, -2.0, -2.0)[None], "response_mask": _RATIOS > 0,
}  # fmt: skip

_RAGGED = torch.tensor([[True, True, False], [True, True, True]])
_SAMPLED = {  # ratios 0.5 and 6, product 3; 1, 3 and 2, product 6
    "logprobs": t(0.5, 6.0, 7.0, 1.0, 3.0, 2.0).log().view(2, 3), "sampler_logprobs": t(*[0.0] * 6).view(2, 3),
    "response_mask": _RAGGED,
}  # fmt: skip
_ANSWERS = {
    "logprobs": t(-1.0, -2.0, 9.0, -1.0, -1.0, -1.0).view(2, 3),
    "old_logprobs": t(-1.5, -1.0, -9.0, -1.3, -1.3, -1.0).view(2, 3), "response_mask": _RAGGED,
}  # fmt: skip
_WEIGHED = {
    "logprobs": t(-1.0, -2.0, -3.0)[None], "old_logprobs": (t(-1.0, -2.0, -3.0) - t(0.5, 1.0, 8.0).log())[None],
    "advantages": t(2.0, 2.0, -2.0)[None], "response_mask": _ALL3,
}  # fmt: skip


def _gspo_loss(logprobs: Tensor, old_logprobs: Tensor, response_mask: Tensor, advantages: Tensor, eps: float) -> Tensor:
    """GSPO's loss of each answer."""
    log_ratio = algos.sequence_log_ratio(logprobs, old_logprobs, response_mask)
    start = torch.zeros_like(log_ratio)
    losses = algos.clipped_policy_loss(log_ratio, start, advantages, response_mask, eps_low=eps, eps_high=eps)
    return algos.masked_mean(losses, response_mask, dim=1)


def _slopes(loss: Callable[..., Tensor], logprobs: Tensor, **inputs: Any) -> Tensor:
    """d/d log π of the sum of a loss."""
    leaf = logprobs.clone().requires_grad_()
    return torch.autograd.grad(loss(leaf, **inputs).sum(), leaf)[0]


GOLDENS: dict[str, Golden] = {
    "bradley_terry": Golden(inputs=_SCORES, expected=(0.371100666,), ours=algos.bradley_terry_loss),
    "bradley_terry, margin 1/3": Golden(
        inputs=_SCORES | {"margin": t(1 / 3)}, expected=(0.486792581,), ours=algos.bradley_terry_loss
    ),
    "bradley_terry, margin 1 and soft labels": Golden(  # P(first is better) 0, ¼, ½, ¾
        inputs={"chosen": t(*[1.2] * 4), "rejected": t(*[0.4] * 4), "margin": t(*[1.0] * 4),
                "probability": t(0.0, 0.25, 0.5, 0.75)},
        expected=(1.952977611, 1.502977611, 0.771100666, 0.748138869),
        ours=algos.bradley_terry_loss,
    ),
    "bradley_terry, centred": Golden(
        inputs=_SCORES | {"centring": 0.01}, expected=(0.396700666,), ours=algos.bradley_terry_loss
    ),
    "ranking, all pairs": Golden(
        inputs={"rewards": _RANKED, "ranks": torch.tensor([[0, 1, 2]])}, expected=(0.325233331,),
        ours=algos.ranking_loss,
    ),
    "plackett_luce": Golden(inputs={"rewards": _RANKED}, expected=(0.917481122,), ours=algos.plackett_luce_loss),
    "rao_kupper": Golden(  # the better answer won, it was a tie, the worse one won
        inputs=_TIES | {"theta": 1.5}, expected=(0.515212057, 1.759553698, 1.467485192), ours=algos.rao_kupper_loss
    ),
    "davidson": Golden(
        inputs=_TIES | {"nu": 0.5}, expected=(0.579132093, 1.672279273, 1.379132093), ours=algos.davidson_loss
    ),
    "vote, davidson": Golden(  # a gap of 0.8; the first answer was better, it was a tie, the second was better
        inputs=_VOTES | {"tau": t(0.5, 0.5, 0.5).log(), "likelihood": "davidson"},
        expected=(0.579132093, 1.672279273, 1.379132093), ours=algos.vote_loss,
    ),
    "vote, rao_kupper": Golden(
        inputs=_VOTES | {"tau": t(1.5, 1.5, 1.5).log().log(), "likelihood": "rao_kupper"},
        expected=(0.515212057, 1.759553698, 1.467485192), ours=algos.vote_loss,
    ),
    "length correlation": Golden(  # three answers to one prompt, one to another
        inputs=_LENGTHS, expected=(0.327326835,), ours=lambda **x: t(algos.length_correlation(**x)[0]),
    ),
    "length correlation, slope": Golden(
        inputs=_LENGTHS, expected=(-0.233804882, 0.350707323, -0.116902441, 0.0),
        ours=lambda **x: algos.length_correlation(**x)[1],
    ),
    "process": Golden(  # P(right) is ¾ at each of three steps: one was right, one wrong, one right in half of the tries
        inputs={"logits": t(1.0, 9.0, 1.0, 1.0)[None] * math.log(3), "labels": t(1.0, 0.0, 0.0, 0.5)[None],
                "step_mask": _STEPS},
        expected=(0.287682072, 0.0, 1.386294361, 0.836988217),
        ours=algos.process_reward_loss,
    ),
    "process score": Golden(
        inputs={"logits": t(1.0, 9.0, 1.0, 1.0)[None] * math.log(3), "step_mask": _STEPS}, expected=(0.421875,),
        ours=algos.process_score,
    ),
    "dpo": Golden(inputs=_PAIR | {"beta": 0.1}, expected=(0.620957048,), ours=algos.dpo_loss),
    "cdpo": Golden(
        inputs=_PAIR | {"beta": 0.1, "label_smoothing": 0.1}, expected=(0.635957048,), ours=algos.dpo_loss
    ),
    "robust dpo": Golden(
        inputs=_PAIR | {"beta": 0.1, "label_smoothing": 0.1, "smoothing": "robust"},
        expected=(0.602207048,),
        ours=algos.dpo_loss,
    ),
    "ipo": Golden(inputs=_PAIR | {"tau": 0.1}, expected=(12.25,), ours=algos.ipo_loss),
    "ipo, per token": Golden(  # log-ratios 1 of 10 tokens and −0.5 of 12
        inputs=_PAIR | {"tau": 0.1, "chosen_lengths": t(10.0), "rejected_lengths": t(12.0)}, expected=(23.603402778,),
        ours=algos.ipo_loss,
    ),
    "dpo, per token": Golden(  # log-ratios 1 of 10 tokens and −0.5 of 12
        inputs=_PAIR | {"beta": 0.1, "chosen_lengths": t(10.0), "rejected_lengths": t(12.0)}, expected=(0.686088934,),
        ours=algos.dpo_loss,
    ),
    "likelihood per token": Golden(
        inputs={"logprobs": t(-12.0, -15.0), "lengths": t(10.0, 12.0)}, expected=(1.2, 1.25), ours=algos.answer_nll
    ),
    "plackett_luce, last places tied": Golden(  # only the best is known
        inputs={"rewards": _RANKED, "ranks": torch.tensor([[0, 1, 1]])},
        expected=(0.514295073,),
        ours=algos.plackett_luce_loss,
    ),
    "apo, zero": Golden(inputs=_PAIR | {"beta": 0.1}, expected=(0.962523416,), ours=algos.apo_zero_loss),
    "apo, down": Golden(inputs=_PAIR | {"beta": 0.1}, expected=(0.987549342,), ours=algos.apo_down_loss),
    "bco": Golden(inputs=_PAIR | {"beta": 0.1, "shift": t(0.25)[0]}, expected=(1.312700282,), ours=algos.bco_loss),
    "sppo": Golden(inputs=_PAIR | {"beta": 0.1}, expected=(36.25,), ours=algos.sppo_loss),
    "sppo, soft label": Golden(  # P(chosen is better) ¾: goals ±2.5
        inputs=_PAIR | {"beta": 0.1, "probability": t(0.75)}, expected=(6.25,), ours=algos.sppo_loss
    ),
    "exo": Golden(inputs=_PAIR | {"beta": 0.1, "eps": 1e-3}, expected=(2.505516556,), ours=algos.exo_loss),
    "nca": Golden(inputs=_PAIR | {"beta": 0.1}, expected=(1.350824814,), ours=algos.nca_loss),
    "hinge": Golden(inputs=_PAIR | {"beta": 0.1}, expected=(0.85,), ours=algos.hinge_loss),
    "kto": Golden(  # the chosen answer, then the rejected one; log-ratios 1 and −0.5
        inputs={
            "policy": t(-12.0, -15.0), "ref": t(-13.0, -14.5), "desirable": torch.tensor([True, False]),
            "reference_point": t(0.3)[0], "beta": 0.1,
        },
        expected=(0.482507142, 0.480010660),
        ours=algos.kto_loss,
    ),
    "kto, reference point": Golden(
        inputs={"policy_mismatched": t(-1.0, -2.0), "ref_mismatched": t(-2.0, -2.5)}, expected=(0.75,),
        ours=algos.kto_reference_point,
    ),
    "simpo": Golden(inputs=_SIZED | {"beta": 2.0, "gamma": 1.0}, expected=(1.241153875,), ours=algos.simpo_loss),
    "orpo": Golden(inputs=_SIZED | {"lam": 0.1}, expected=(1.265837225,), ours=algos.orpo_loss),
    "cpo": Golden(inputs=_FREE | {"beta": 0.1, "alpha": 0.0}, expected=(0.554355244,), ours=algos.cpo_loss),
    "gae": Golden(
        inputs={
            "rewards": t(0.0, 0.0, 1.0)[None], "values": t(0.2, 0.4, 0.5)[None], "response_mask": _ALL3, "gamma": 1.0,
            "lam": 0.5,
        },
        expected=(0.375, 0.35, 0.5),
        ours=lambda **inputs: algos.gae(**inputs)[0],
    ),
    "gae across a mask": Golden(  # an action, 20 tokens of a tool, an action with reward 1
        inputs={
            "rewards": t(0.0, *[7.0] * 20, 1.0)[None], "values": t(0.5, *[7.0] * 20, 0.5)[None],
            "response_mask": torch.tensor([[True, *[False] * 20, True]]), "gamma": 1.0, "lam": 0.95,
        },
        expected=(0.475, *[0.0] * 20, 0.5),
        ours=lambda **inputs: algos.gae(**inputs)[0],
    ),
    "whiten": Golden(
        inputs={"x": t(1.0, 3.0, 99.0)[None], "mask": torch.tensor([[True, True, False]])}, expected=(-1.0, 1.0, 0.0),
        ours=algos.whiten,
    ),
    "reinforce++": Golden(
        inputs={
            "rewards": torch.stack([t(1.0, 2.0, 4.0), t(0.0, 9.0, 9.0)]),
            "response_mask": torch.tensor([[True, True, True], [True, False, False]]), "gamma": 0.5,
        },
        expected=(0.152498570, 0.762492852, 0.762492852, -1.677484274, 0.0, 0.0),
        ours=algos.reinforce_pp_advantage,
    ),
    "reinforce++ with baseline": Golden(  # totals 3 and 1; to come: 1, 0 and −1
        inputs={
            "rewards": torch.stack([t(1.0, 2.0), t(1.0, 9.0)]), "group": 2,
            "response_mask": torch.tensor([[True, True], [True, False]]),
        },
        expected=(1.224744862, 0.0, -1.224744862, 0.0),
        ours=algos.reinforce_pp_baseline_advantage,
    ),
    "missing EOS, replaced": Golden(  # an answer that ended, two that were cut
        inputs={"scores": t(2.0, 2.0, -3.0), "ended": torch.tensor([True, False, False]), "penalty": -1.0},
        expected=(2.0, -1.0, -3.0), ours=algos.penalise_missing_eos,
    ),
    "missing EOS, subtracted": Golden(
        inputs={"scores": t(2.0, 2.0, -3.0), "ended": torch.tensor([True, False, False]), "penalty": -1.0,
                "mode": "subtract"},
        expected=(2.0, 1.0, -4.0), ours=algos.penalise_missing_eos,
    ),
    "overlong": Golden(
        inputs={"lengths": t(3.0, 5.0, 6.0, 8.0), "max_tokens": 8, "buffer": 4}, expected=(0.0, -0.25, -0.5, -1.0),
        ours=algos.overlong_penalty,
    ),
    "clipped policy": Golden(
        inputs=_CLIPPED, expected=(-2.0, -2.2, -2.4, -1.0, 3.0, 1.6, 10.0), ours=algos.clipped_policy_loss
    ),
    "clipped policy, two ends, dual clip": Golden(
        inputs=_CLIPPED | {"eps_low": 0.2, "eps_high": 0.28, "dual_clip": 3.0},
        expected=(-2.0, -2.2, -2.56, -1.0, 3.0, 1.6, 6.0),
        ours=algos.clipped_policy_loss,
    ),
    "clipped value": Golden(
        inputs={
            "values": t(0.5, 1.0, 0.0, 0.6, 2.0)[None], "old_values": t(*[0.5] * 5)[None],
            "returns": t(*[1.0] * 5)[None], "response_mask": torch.ones(1, 5, dtype=torch.bool), "eps": 0.2,
        },
        expected=(0.125, 0.045, 0.5, 0.08, 0.5),
        ours=algos.clipped_value_loss,
    ),
    "truncated importance weights": Golden(
        inputs={
            "logprobs": t(0.5, 1.0, 3.0)[None].log(), "sampler_logprobs": t(0.0, 0.0, 0.0)[None],
            "response_mask": _ALL3, "cap": 2.0,
        },
        expected=(0.5, 1.0, 2.0),
        ours=algos.truncated_importance_weights,
    ),
    "truncated importance weights, of answers": Golden(
        inputs=_SAMPLED | {"cap": 3.5, "level": "sequence"}, expected=(3.0, 3.0, 0.0, 3.5, 3.5, 3.5),
        ours=algos.truncated_importance_weights,
    ),
    "masked importance weights": Golden(
        inputs=_SAMPLED | {"cap": 5.0, "floor": 0.6}, expected=(0.0, 0.0, 0.0, 1.0, 3.0, 2.0),
        ours=algos.masked_importance_weights,
    ),
    "masked importance weights, of answers": Golden(
        inputs=_SAMPLED | {"cap": 5.0, "level": "sequence"}, expected=(3.0, 3.0, 0.0, 0.0, 0.0, 0.0),
        ours=algos.masked_importance_weights,
    ),
    "effective sample share": Golden(
        inputs=_SAMPLED, expected=(12.5**2 / (5 * 50.25),), ours=algos.effective_sample_share
    ),
    "effective sample share, of answers": Golden(
        inputs=_SAMPLED | {"level": "sequence"}, expected=(0.9,), ours=algos.effective_sample_share
    ),
    "high entropy": Golden(  # the third of five is the limit
        inputs={"entropies": t(0.3, 2.0, 9.0, 0.1, 1.0, 0.5).view(2, 3),
                "response_mask": torch.tensor([[True, True, False], [True, True, True]]), "share": 0.6},
        expected=(0.0, 1.0, 0.0, 0.0, 1.0, 1.0), ours=algos.high_entropy_mask,
    ),
    "gspo, log-ratio": Golden(
        inputs=_ANSWERS, expected=(-0.25, -0.25, 0.0, 0.2, 0.2, 0.2), ours=algos.sequence_log_ratio
    ),
    "gspo, coefficients of the scores": Golden(  # of answers with advantages 2 and 1; the second is clipped
        inputs=_ANSWERS | {"advantages": t(2.0, 2.0, 2.0, 1.0, 1.0, 1.0).view(2, 3), "eps": 0.2},
        expected=(-0.778800783, -0.778800783, 0.0, 0.0, 0.0, 0.0), ours=partial(_slopes, _gspo_loss),
    ),
    "cispo": Golden(  # ratios ½, 1 and 8, the last one's weight cut to 5
        inputs=_WEIGHED | {"eps_low": 1.0, "eps_high": 4.0}, expected=(1.0, 4.0, -30.0), ours=algos.cispo_loss
    ),
    "cispo, coefficients of the scores": Golden(
        inputs=_WEIGHED | {"eps_low": 1.0, "eps_high": 4.0}, expected=(-1.0, -2.0, 10.0),
        ours=partial(_slopes, algos.cispo_loss),
    ),
    "bootstrapped rewards": Golden(  # a cut answer of two tokens, one that ended
        inputs={"rewards": t(0.0, 1.0, 9.0, 0.0, 0.0, 1.0).view(2, 3), "last_values": t(3.0, 3.0),
                "cut": torch.tensor([True, False]), "gamma": 0.5,
                "response_mask": torch.tensor([[True, True, False], [True, True, True]])},
        expected=(0.0, 2.5, 9.0, 0.0, 0.0, 1.0), ours=algos.bootstrapped_rewards,
    ),
    "k1": Golden(inputs=_TOKENS, expected=(0.5, -1.0), ours=algos.kl_k1),
    "k2": Golden(inputs=_TOKENS, expected=(0.125, 0.5), ours=algos.kl_k2),
    "k3": Golden(inputs=_TOKENS, expected=(0.106530660, 0.718281828), ours=algos.kl_k3),
    "k3, limited": Golden(  # δ = −90, −2, 12
        inputs={"logprobs": t(-91.0, -3.0, -1.0), "ref_logprobs": t(-1.0, -1.0, -13.0)},
        expected=(10.0, 4.389056099, 10.0), ours=algos.kl_k3,
    ),
    "k3, share at its limit": Golden(
        inputs={"logprobs": t(-91.0, -3.0, -1.0, -1.0), "ref_logprobs": t(-1.0, -1.0, -13.0, -1.0),
                "response_mask": torch.tensor([True, True, True, False])},
        expected=(0.666666667,), ours=algos.k3_clamped, tolerance=1e-7,
    ),
    "sequence KL": Golden(
        inputs=_TOKENS | {"response_mask": torch.ones(1, 2, dtype=torch.bool)}, expected=(0.5, -1.0),
        ours=algos.kl_sequence,
    ),
    "sequence KL, coefficients of the scores": Golden(  # what is still to come: ½ − 1, −1
        inputs=_TOKENS | {"response_mask": torch.ones(1, 2, dtype=torch.bool)}, expected=(-0.5, -1.0),
        ours=partial(score_coefficients, algos.kl_sequence),
    ),
    "k1, expected gradient": Golden(
        inputs=_LOGITS, expected=(0.0, 0.0, 0.0), ours=partial(expected_gradient, algos.kl_k1)
    ),
    "k2, expected gradient": Golden(
        inputs=_LOGITS, expected=(-0.099794651, -0.207437925, 0.307232576),
        ours=partial(expected_gradient, algos.kl_k2),
    ),
    "k3, expected gradient": Golden(
        inputs=_LOGITS, expected=(-0.013172187, -0.289065278, 0.302237465),
        ours=partial(expected_gradient, algos.kl_k3),
    ),
    "penalised rewards": Golden(
        inputs={"scores": t(1.0), "response_mask": torch.ones(1, 2, dtype=torch.bool), "beta": 0.5} | _TOKENS,
        expected=(-0.25, 1.5),
        ours=algos.penalised_rewards,
    ),
    "best of n, KL": Golden(  # of four draws from two and from ten equally likely answers
        inputs={"selected_logprobs": t(0.5, 0.1).log(), "n": 4}, expected=(0.499123919, 0.634870281),
        ours=algos.best_of_n_kl,
    ),
    "best of n, bound": Golden(inputs={"n": 4}, expected=(0.636294361,), ours=algos.best_of_n_kl_bound),
    "rloo": Golden(inputs={"rewards": _GROUP}, expected=(1.0, -1 / 3, -1 / 3, -1 / 3), ours=algos.rloo_advantage),
    "group, sample std": Golden(
        inputs={"rewards": _GROUP}, expected=(1.5, -0.5, -0.5, -0.5), tolerance=1e-5,
        ours=lambda rewards: algos.group_advantage(rewards, std="sample"),
    ),
    "group, population std": Golden(
        inputs={"rewards": _GROUP}, expected=(1.7320508, -0.5773503, -0.5773503, -0.5773503), tolerance=1e-5,
        ours=lambda rewards: algos.group_advantage(rewards, std="population"),
    ),
    "group, no std": Golden(
        inputs={"rewards": _GROUP}, expected=(0.75, -0.25, -0.25, -0.25),
        ours=lambda rewards: algos.group_advantage(rewards, std="none"),
    ),
    "win probability": Golden(
        inputs={"scores": t(1.0, 0.0), "opponent_scores": t(0.0, 0.0), "log_odds": 2.0},
        expected=(0.8807970780, 0.5), ours=algos.win_probability,
    ),
    "mixture of logits": Golden(
        inputs={"policy": t(0.0, 2.0)[None], "reference": t(1.0, 0.0)[None], "share": 0.25}, expected=(0.25, 1.5),
        ours=algos.mixture_logits,
    ),
    "xpo": Golden(
        inputs={
            "policy_own": t(-12.0), "policy_other": t(-15.0), "ref_own": t(-13.0), "ref_other": t(-14.5),
            "probability": t(0.75), "beta": 0.1, "alpha": 0.01,
        },
        expected=(0.5084570475,), ours=algos.xpo_loss,
    ),
    "gdpo": Golden(  # two rewards, of which the second is ten times as large
        inputs={"rewards": t(1.0, 10.0, 1.0, 0.0, 0.0, 10.0).view(1, 3, 2), "weights": t(1.0, 1.0)},
        expected=(1.414213562, -0.707106781, -0.707106781), tolerance=1e-5, ours=algos.gdpo_advantage,
    ),
    "running scale": Golden(
        inputs={"batches": ((1.0, 3.0), (5.0, 7.0))}, expected=(1.0, 2.236067977), ours=_running_scale
    ),
    "dual ascent": Golden(
        inputs={"costs": (1.5, 0.0, 0.0), "initial": 0.1, "limit": 0.5, "lr": 0.2}, expected=(0.3, 0.2, 0.1),
        ours=_prices,
    ),
    "ensemble score": Golden(
        inputs={"scores": [[1.0, 3.0], [3.0, 3.0]], "penalty": 0.5}, expected=(2.0, 3.0, 1.0, 3.0, 1.5, 3.0),
        ours=_ensemble_scores,
    ),
    "ensemble spread": Golden(
        inputs={"scores": [[1.0, 3.0], [3.0, 3.0]]}, expected=(1.0, 0.0), ours=_ensemble_spread,
    ),
    "adaptive kl": Golden(
        inputs={"beta": 0.2, "kl": 9.0, "target": 6.0, "sequences": 256, "horizon": 10_000.0}, expected=(0.201024,),
        ours=_adapted_beta,
    ),
}  # fmt: skip
"""By name. ``GOLDENS["dpo"].inputs`` are what :func:`hold` passes."""


def hold(name: str, function: Callable[..., Any]) -> Held:
    """Call ``function`` with a golden's inputs and compare.

    Args:
        name: a key of :data:`GOLDENS`.
        function: takes the golden's inputs by name; returns a tensor, a number, or a sequence of numbers.

    Raises:
        ConfigError: there is no such golden, or the function returns an unexpected number of numbers.
    """
    golden = GOLDENS.get(name)
    if golden is None:
        raise ConfigError(f"there is no golden {name!r}; there are {', '.join(GOLDENS)}")
    got = tuple(_numbers(function(**golden.inputs)))
    if len(got) != len(golden.expected):
        raise ConfigError(
            f"the function gave {len(got)} numbers for {name!r}, expected {len(golden.expected)}; return losses "
            "unreduced, one per example"
        )
    apart = [abs(a - b) for a, b in zip(got, golden.expected, strict=True)]
    difference = max(apart) if all(map(math.isfinite, apart)) else math.inf
    return Held(
        name=name, got=got, expected=golden.expected, difference=difference, passed=difference <= golden.tolerance
    )


def _numbers(result: Any) -> Sequence[float]:
    if isinstance(result, Tensor):
        return result.detach().double().flatten().tolist()
    return [float(result)] if hasattr(result, "__float__") else [float(value) for value in result]
