"""AdamW with 8-bit moments: against torch's AdamW, a published table and a search of all codes; saved, and counted."""

import pytest
import torch

from trimtab.errors import CheckpointError
from trimtab.models import AdapterConfig, Role
from trimtab.testing import tiny_backbone
from trimtab.trainers import Checkpoints, Learner, Norms, OptimizerConfig
from trimtab.trainers.eight_bits import BLOCK, AdamW8bit, decode, encode, moment_bytes, table

from .test_learner import batch_of, nll

FULL = AdapterConfig(kind="full")
EIGHT = OptimizerConfig(lr=1e-3, schedule="constant", warmup=0.0, state="8bit")
SETTINGS = {"lr": 1e-3, "betas": (0.9, 0.999), "weight_decay": 0.1}


def wide(rows: int, columns: int, seed: int) -> torch.Tensor:
    """Numbers of both signs whose magnitudes span eight decades."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=draw) * 10 ** (-8 * torch.rand(rows, columns, generator=draw))


# Codes ------------------------------------------------------------------------------------


def test_the_table_is_the_published_one_up_to_its_largest_value():
    signed, unsigned = table(signed=True), table(signed=False)
    published = [-0.992968738079071, -0.9789062738418579, -0.96484375, -0.9507812261581421]  # of bitsandbytes
    assert (0.99296875 * signed)[:4].tolist() == pytest.approx(published, rel=1e-6)
    assert (0.99296875 * signed)[128].item() == pytest.approx(5.5e-7)
    for values, size in ((signed, 1), (unsigned, 2)):
        assert len(values) == 255 and bool((values.diff() > 0).all()) and values[-1] == 1
        for decade in range(7):
            inside = (values > 0.1 * 1.009 * 10.0 ** (decade - 6)) & (values <= 1.008 * 10.0 ** (decade - 6))
            assert int(inside.sum()) == size * 2**decade
    assert torch.equal(signed, -signed.flip(0)) and unsigned[0] == 0


@pytest.mark.parametrize("signed", [True, False])
def test_every_number_gets_the_nearest_code_of_its_block(signed: bool):
    values = wide(5, BLOCK + 50, seed=1)
    values = values if signed else values.abs()
    values[2, :BLOCK], values[3, 7] = 0.0, 0.0
    values[4, :BLOCK] = torch.linspace(0.3, 1, BLOCK)
    codes, scales = encode(values, signed=signed)
    assert codes.dtype == torch.uint8 and codes.shape == values.shape and scales.shape == (5, 2)
    result = decode(codes, scales, signed=signed)
    for row in range(5):
        for start in (0, BLOCK):
            block, decoded = values[row, start : start + BLOCK], result[row, start : start + BLOCK]
            candidates = table(signed=signed) * block.abs().max()
            nearest = candidates[(block[:, None] - candidates).abs().argmin(dim=1)]
            if not signed:  # a positive number stays positive
                nearest = torch.where(block > 0, nearest.maximum(candidates[1]), nearest)
            assert torch.allclose((decoded - block).abs(), (nearest - block).abs(), rtol=1e-4, atol=0)
            assert float(decoded.abs().max()) == float(block.abs().max())
            assert bool((decoded[block == 0] == 0).all())


def test_blocks_know_nothing_of_each_other():
    values = wide(3, 2 * BLOCK, seed=2)
    other = values.clone()
    other[1, BLOCK + 5] = 1e6
    (codes, scales), (others, other_scales) = encode(values, signed=True), encode(other, signed=True)
    changed = torch.zeros(3, 2 * BLOCK, dtype=torch.bool)
    changed[1, BLOCK:] = True
    assert torch.equal(codes[~changed], others[~changed]) and not torch.equal(codes[changed], others[changed])
    assert int((scales != other_scales).sum()) == 1


# Steps ------------------------------------------------------------------------------------


def steps(gradients: list[torch.Tensor], start: torch.Tensor, kind: type) -> torch.Tensor:
    weight = torch.nn.Parameter(start.clone())
    optimizer = kind([weight], **SETTINGS)
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
    return weight.detach()


@pytest.mark.parametrize("shape", [(64, 100), (8, 40, 20), (2000, 3), (5000,), (10, 10)])
def test_the_first_step_is_that_of_32_bits(shape: tuple[int, ...]):
    start, gradient = torch.randn(shape), torch.randn(shape)
    eight, reference = (steps([gradient], start, kind) for kind in (AdamW8bit, torch.optim.AdamW))
    assert torch.allclose(eight - start, reference - start, rtol=1e-4, atol=1e-7)


def test_small_weights_keep_moments_of_32_bits():
    gradients = [torch.randn(40, 100) for _ in range(5)]  # fewer than 4,096 numbers
    eight, reference = (steps(gradients, torch.zeros(40, 100), kind) for kind in (AdamW8bit, torch.optim.AdamW))
    assert torch.allclose(eight, reference, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(("decades", "within"), [(0, 0.03), (1, 0.07), (3, 0.15)])
def test_two_hundred_steps_end_near_those_of_32_bits(decades: int, within: float):
    """The distance to where torch's AdamW ends, as a share of its way; gradients drift, with twice as much noise.

    Their sizes differ by so many decades within a block.
    """
    draw = torch.Generator().manual_seed(3)
    sizes = 10 ** (-decades * torch.rand(16, 2 * BLOCK, generator=draw))
    drift = torch.randn(16, 2 * BLOCK, generator=draw)
    gradients = [sizes * (drift + 2 * torch.randn(drift.shape, generator=draw)) for _ in range(200)]
    start = torch.zeros_like(drift)
    eight, reference = (steps(gradients, start, kind) for kind in (AdamW8bit, torch.optim.AdamW))
    assert 0 < float((eight - reference).norm() / reference.norm()) < within


def test_a_gradient_that_came_once_makes_no_step_above_the_rate():
    """Its v is 1e-10 of the block's largest, which 8 bits would make 0: then Adam would divide by ε."""
    gradients = [torch.ones(16, BLOCK) for _ in range(60)]
    gradients[0][:, 0] = 1e-5
    for gradient in gradients[1:]:
        gradient[:, 0] = 0.0
    eight, reference = (steps(gradients, torch.zeros(16, BLOCK), kind) for kind in (AdamW8bit, torch.optim.AdamW))
    assert 0 < float(reference[:, 0].abs().max()) <= float(eight[:, 0].abs().max()) <= 60 * SETTINGS["lr"]


# In a learner -----------------------------------------------------------------------------


def learner_of(settings: OptimizerConfig) -> Learner:
    return Learner(Role.trainable(tiny_backbone(width=64), "policy", FULL, seed=0), settings, 8)


def train(learner: Learner, count: int) -> list[float]:
    batch = batch_of(learner.role)
    norms = Norms(tokens=float(batch.response_mask.sum()), sequences=6)
    return [learner.step([(["all"], batch)], nll(learner.role), norms)["loss"] for _ in range(count)]


def test_a_language_model_learns_as_with_32_bits():
    eight = train(learner_of(EIGHT), 30)
    reference = train(learner_of(EIGHT.model_copy(update={"state": "32bit"})), 30)
    assert reference[-1] < 0.5 * reference[0]
    assert eight[-1] != reference[-1] and eight[-1] == pytest.approx(reference[-1], rel=0.01)


def test_a_run_continues_bit_for_bit_and_not_with_another_precision(tmp_path):
    whole, first = learner_of(EIGHT), learner_of(EIGHT)
    train(whole, 5)
    train(first, 3)
    Checkpoints(tmp_path, "f").save(3, {"policy": first})
    second = learner_of(EIGHT)
    assert Checkpoints(tmp_path, "f").restore({"policy": second})[0] == 3
    train(second, 2)
    a, b = (one.role.state() | one.optimizer_state() for one in (whole, second))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    reference = learner_of(EIGHT.model_copy(update={"state": "32bit"}))
    with pytest.raises(CheckpointError, match=r"state: 8bit, and the optimiser has state: 32bit; restore the old"):
        Checkpoints(tmp_path, "f").restore({"policy": reference})
    train(reference, 1)
    with pytest.raises(CheckpointError, match=r"with state: 32bit, and the optimiser has state: 8bit"):
        learner_of(EIGHT).load_optimizer_state(reference.optimizer_state())


@pytest.mark.parametrize("adapter", [FULL, AdapterConfig(rank=32)])
def test_the_plan_counts_what_is_held(adapter: AdapterConfig):
    """Bytes of the moments of large weights, of a model and of adapters."""
    learner = Learner(Role.trainable(tiny_backbone(width=256, layers=1), "policy", adapter, seed=0), EIGHT, 8)
    train(learner, 1)
    large = {name for name, p in learner.parameters.items() if p.dim() > 1 and p.numel() >= 4096}
    tensors = {k: t for k, t in learner.optimizer_tensors().items() if k.split("/")[-1] in large and "step/" not in k}
    held = sum(t.numel() * t.element_size() for t in tensors.values())
    numbers = sum(learner.parameters[name].numel() for name in large)
    counted = numbers * moment_bytes(columns=256 if adapter.kind == "full" else adapter.rank)
    assert numbers > 10 * BLOCK and 0.9 * counted <= held <= counted
