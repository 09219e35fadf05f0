"""A reward that is no finite number is refused by every online method, with its name, its value and its sample."""

import decimal
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from trimtab.conformance.tabular import Tree
from trimtab.errors import NonFiniteError, ScoringError
from trimtab.records import Rollout
from trimtab.rollout import FunctionReward, NamedRewards
from trimtab.trainers import ONLINE

from .tables import settings, step

TREE = Tree(actions=3)
LOGITS = torch.zeros(1, 3)

VALUES: list[tuple[Any, type[Exception], str]] = [
    (1e300, NonFiniteError, "is 1e+300 for"),
    (-1e15, NonFiniteError, "is -1e+15 for"),
    (10**400, NonFiniteError, "is inf for"),
    (math.nan, NonFiniteError, "is nan for"),
    (-math.inf, NonFiniteError, "is -inf for"),
    (torch.tensor(math.nan), NonFiniteError, "is nan for"),
    (np.float32("inf"), NonFiniteError, "is inf for"),
    (None, ScoringError, "is None for"),
    ("0.5", ScoringError, "is '0.5' for"),
    (np.str_("0.5"), ScoringError, "is np.str_('0.5') for"),
    ("", ScoringError, "is '' for"),
    (b"1", ScoringError, "is b'1' for"),
    ("good", ScoringError, "is 'good' for"),
    (1j, ScoringError, "is 1j for"),
    ({"score": 1.0}, ScoringError, "is {'score': 1.0} for"),
    (torch.zeros(2), ScoringError, "is tensor([0., 0.]) for"),
]
"""One answer's reward among good ones."""

RESULTS: list[tuple[Any, str]] = [
    (None, "returned None"),
    (0.5, "returned 0.5"),
    (np.float64(0.5), "returned np.float64(0.5)"),
    (torch.tensor(0.5), "returned tensor(0.5"),
    ("0101", "returned '0101' (str)"),
    (b"0101", "returned b'0101' (bytes)"),
    ({"0": 1.0, "1": 2.0, "2": 1.0, "3": 0.0}, "(dict)"),
    ({0.0, 1.0, 2.0, 3.0}, "(set)"),
    ([], "has 0 values for 4 answers"),
    ([0.0, 1.0, 2.0], "has 3 values for 4 answers"),
    ([0.0] * 5, "has 5 values for 4 answers"),
    (torch.zeros(4, 2), "is tensor([0., 0.]) for"),
]
"""The result as a whole, for four answers."""


def as_components(results: Any) -> Any:
    """A scorer of one's own, as the Python API takes it."""
    return lambda rollouts: {"kind": results(rollouts)}


def as_recipe(results: Any) -> Any:
    """A function that a recipe names."""
    return NamedRewards({"kind": FunctionReward(path="my.rewards.kind")}, {"kind": results})


@pytest.mark.parametrize("scorer", [as_components, as_recipe])
@pytest.mark.parametrize("method", ONLINE)
def test_no_method_trains_on_it(method: str, scorer: Any):
    kind = ONLINE[method].config
    size = 4 if "group" in kind.model_fields and kind.model_fields["group"].default > 1 else 1
    config: Any = settings(kind, TREE, prompts=4 // size, **({"group": size} if size > 1 else {}))

    def run(results: Any) -> None:
        step(config, TREE, LOGITS, LOGITS, scorer(results))

    for value, error, message in VALUES:
        named: list[str] = []

        def one_bad(rollouts: Sequence[Rollout], value: Any = value, named: list[str] = named) -> list[Any]:
            named.append(rollouts[2].id)
            return [value if row == 2 else row / 4 for row in range(len(rollouts))]

        with pytest.raises(error, match=f"reward 'kind' {re.escape(message)} sample") as refused:
            run(one_bad)
        assert f"sample {named[0]}" in str(refused.value), value
    if ONLINE[method].opponent is None:
        for result, message in RESULTS:
            with pytest.raises(ScoringError, match=f"reward 'kind' .*{re.escape(message)}"):
                run(lambda rollouts, result=result: result)


GOOD = [
    1,
    0.5,
    True,
    np.float32(0.5),
    np.int64(2),
    torch.tensor(0.5),
    torch.tensor([0.5]),
    decimal.Decimal("0.5"),
    -9e14,
]


@pytest.mark.parametrize("scorer", [as_components, as_recipe])
def test_any_kind_of_number_and_of_sequence_is_taken(scorer: Any):
    config = settings(ONLINE["rloo"].config, TREE, prompts=1, group=len(GOOD))

    def gradient(results: Any) -> torch.Tensor:
        return step(config, TREE, LOGITS, LOGITS, scorer(results))

    def always(values: Any) -> Any:
        return lambda _: values

    plain, counted = [float(value) for value in GOOD], [float(n) for n in range(len(GOOD))]
    for results, floats in (
        (always(GOOD), plain),
        (always(tuple(GOOD)), plain),
        (lambda _: iter(GOOD), plain),
        (lambda rollouts: (plain[i] for i, _ in enumerate(rollouts)), plain),
        (lambda rollouts: np.arange(len(rollouts)), counted),
        (lambda rollouts: torch.arange(len(rollouts)), counted),
    ):
        expected = gradient(always(floats))
        assert expected.abs().max() > 0
        torch.testing.assert_close(gradient(results), expected, rtol=0, atol=0)


def test_a_generator_that_fails_on_its_way_is_a_function_that_fails():
    def results(rollouts: Sequence[Rollout]):
        yield 1.0
        raise KeyError("lexicon")

    config = settings(ONLINE["rloo"].config, TREE, prompts=1, group=4)
    for scorer in (as_components, as_recipe):
        with pytest.raises(ScoringError, match=r"raised KeyError.*'lexicon'"):
            step(config, TREE, LOGITS, LOGITS, scorer(results))
