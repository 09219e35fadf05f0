"""Values of every loss and estimator at one point, worked out from the papers' formulas without any implementation.

To hold another library's function against them, wrap it so that it takes a golden's inputs by name::

    from trimtab.conformance import hold

    def theirs(policy_chosen, policy_rejected, ref_chosen, ref_rejected, beta):
        return other_library.dpo(policy_chosen - policy_rejected, ref_chosen - ref_rejected, beta)

    print(hold("dpo", theirs))          # Held(name='dpo', got=(0.62095…,), expected=(0.62095…,), …, passed=True)
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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


def _moved_leash(beta: float, kl: float, target: float, sequences: int, horizon: float) -> float:
    leash = algos.AdaptiveKL(beta, target, horizon)
    leash.update(kl, sequences)
    return leash.value


GOLDENS: dict[str, Golden] = {
    "bradley_terry": Golden(inputs=_SCORES, expected=(0.371100666,), ours=algos.bradley_terry_loss),
    "bradley_terry, margin 1/3": Golden(
        inputs=_SCORES | {"margin": t(1 / 3)}, expected=(0.486792581,), ours=algos.bradley_terry_loss
    ),
    "bradley_terry, centred": Golden(
        inputs=_SCORES | {"centring": 0.01}, expected=(0.396700666,), ours=algos.bradley_terry_loss
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
    "hinge": Golden(inputs=_PAIR | {"beta": 0.1}, expected=(0.85,), ours=algos.hinge_loss),
    "kto": Golden(  # the chosen answer, then the rejected one; log-ratios 1 and −0.5
        inputs={
            "policy": t(-12.0, -15.0), "ref": t(-13.0, -14.5), "desirable": torch.tensor([True, False]),
            "reference_point": t(0.3)[0], "beta": 0.1,
        },
        expected=(0.482507142, 0.480010660),
        ours=algos.kto_loss,
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
    "adaptive kl": Golden(
        inputs={"beta": 0.2, "kl": 9.0, "target": 6.0, "sequences": 256, "horizon": 10_000.0}, expected=(0.201024,),
        ours=_moved_leash,
    ),
}  # fmt: skip
"""By name. ``GOLDENS["dpo"].inputs`` are what :func:`hold` passes."""


def hold(name: str, function: Callable[..., Any]) -> Held:
    """Call ``function`` with a golden's inputs and compare.

    Args:
        name: a key of :data:`GOLDENS`.
        function: takes the golden's inputs by name; returns a tensor, a number, or a sequence of numbers.

    Raises:
        ConfigError: there is no such golden, or the function returns as many numbers as nobody expects.
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
