"""APO, BCO, SPPO, EXO, NCA: what each pulls where, at and away from the reference; and what they refuse."""

import math

import pytest
import torch

from trimtab.algos import apo_down_loss, apo_zero_loss, bco_loss, dpo_loss, exo_loss, nca_loss, sppo_loss
from trimtab.errors import ConfigError, TrainingError

REF = torch.tensor([-13.0], dtype=torch.float64), torch.tensor([-14.5], dtype=torch.float64)
LOSSES = {
    "apo_zero": apo_zero_loss, "apo_down": apo_down_loss, "sppo": sppo_loss, "exo": exo_loss, "nca": nca_loss,
    "bco": lambda *x, **more: bco_loss(*x, torch.tensor(0.0, dtype=torch.float64), **more),
}  # fmt: skip


def slopes(loss, chosen: float = -13.0, rejected: float = -14.5, **more) -> tuple[float, float]:
    """dL/d log π of both answers."""
    pair = [torch.tensor([x], dtype=torch.float64, requires_grad=True) for x in (chosen, rejected)]
    w, l = torch.autograd.grad(loss(*pair, *REF, beta=0.2, **more).sum(), pair)  # noqa: E741
    return w.item(), l.item()


@pytest.mark.parametrize(
    ("name", "expected"),
    [  # at the reference, where r_w = r_l = 0, from the derivatives of the papers' formulas; β = .2
        ("apo_zero", (-0.2 / 4, 0.2 / 4)),
        ("apo_down", (0.2 / 4 - 0.2 / 4, 0.2 / 4)),
        ("bco", (-0.2 / 2, 0.2 / 2)),
        ("sppo", (-1 / 0.2, 1 / 0.2)),
        ("exo", (-0.2 / 4 * math.log(999), 0.2 / 4 * math.log(999))),
        ("nca", (-0.2 / 2 + 0.2 / 4, 0.2 / 4)),
    ],
)
def test_first_step_from_the_reference(name: str, expected: tuple[float, float]):
    assert slopes(LOSSES[name]) == pytest.approx(expected, abs=1e-12)


def test_apo_down_lowers_both_answers_once_the_pair_is_apart():
    w, l = slopes(apo_down_loss, chosen=-11.0, rejected=-18.0)  # noqa: E741
    assert w > 0 and l > 0  # a step downhill lowers both


def test_nca_holds_the_chosen_answer_near_the_reference():
    """Where DPO still pushes, NCA pulls an answer back that has risen far."""
    far = dict(chosen=-1.0, rejected=-14.5)
    assert slopes(nca_loss, **far)[0] > 0 > slopes(dpo_loss, **far)[0]


def test_bco_is_an_upper_bound_of_dpo_and_tightest_in_the_middle():
    g = torch.Generator().manual_seed(0)
    pair = [torch.randn(64, generator=g, dtype=torch.float64) * 5 for _ in range(4)]
    dpo = dpo_loss(*pair, beta=0.3)
    for shift in (-1.0, 0.0, 2.0):
        assert (bco_loss(*pair, torch.tensor(shift, dtype=torch.float64), beta=0.3) >= dpo).all()
    one = [x[:1] for x in pair]
    middle = float((one[0] - one[2] + one[1] - one[3]) / 2)
    values = [float(bco_loss(*one, torch.tensor(middle + d, dtype=torch.float64), beta=0.3)) for d in (-0.5, 0.0, 0.5)]
    assert values[1] == min(values)


def test_exo_is_zero_where_the_policy_prefers_as_the_label_says():
    gap = math.log(0.95 / 0.05) / 0.2
    pair = torch.tensor([-13.0 + gap], dtype=torch.float64), torch.tensor([-14.5], dtype=torch.float64)
    assert float(exo_loss(*pair, *REF, beta=0.2, eps=0.05)) == pytest.approx(0.0, abs=1e-12)
    assert slopes(exo_loss, chosen=-13.0 + gap, eps=0.05) == pytest.approx((0.0, 0.0), abs=1e-12)


def test_sppo_with_soft_labels_is_the_mean_over_hard_ones_up_to_a_constant():
    """Σ_labels P(label)·(r − goal)² = (r − mean goal)² + variance: the gradients agree."""
    for p in (0.0, 0.3, 1.0):
        soft = slopes(sppo_loss, chosen=-12.0, probability=torch.tensor([p], dtype=torch.float64))
        won, lost = slopes(sppo_loss, chosen=-12.0), slopes(sppo_loss, chosen=-12.0, probability=torch.zeros(1))
        assert soft == pytest.approx([p * a + (1 - p) * b for a, b in zip(won, lost, strict=True)])


@pytest.mark.parametrize("name", LOSSES)
def test_what_is_refused(name: str):
    two, three = torch.zeros(2), torch.zeros(3)
    with pytest.raises(ConfigError, match="beta is 0"):
        LOSSES[name](two, two, two, two, beta=0.0)
    with pytest.raises(TrainingError, match="shapes differ"):
        LOSSES[name](two, three, two, two, beta=0.1)


def test_values_outside_their_range():
    two = torch.zeros(2)
    with pytest.raises(ConfigError, match=r"eps is 0\.5; set it above 0 and below 0\.5"):
        exo_loss(two, two, two, two, beta=0.1, eps=0.5)
    with pytest.raises(TrainingError, match="expected one scalar for the whole step"):
        bco_loss(two, two, two, two, two, beta=0.1)
    with pytest.raises(TrainingError, match=r"probability is 1\.5"):
        sppo_loss(two, two, two, two, beta=0.1, probability=torch.tensor([0.5, 1.5]))
