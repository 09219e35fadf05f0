"""Ranks that hold a part of every weight, or of every frozen weight, train what one process trains, and write it."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.ranks import die, on_ranks
from tests.trainers.ranked import (
    CASES,
    EIGHT_BITS,
    FULL,
    LORA,
    STEADY,
    TOP,
    apart,
    check_equal,
    conversations,
    precise,
    sft_until,
)
from trimtab.errors import DataError, RankError, StorageError
from trimtab.models import Backbone, Batch, Chat, FrozenStates, Role, collate
from trimtab.models.sharded import is_sharded, part, save_whole
from trimtab.testing import tiny_backbone, tiny_model, tokenizer
from trimtab.trainers import ALONE, Group, Learner, Norms, OptimizerConfig

QUICK = ["reward full", "bco full", "kto full", "ppo full tied", "process full", "sft full 8 bits", "dpo lora"]
"""SFT with moments of 32 bits is below, where it stops and continues."""


def test_two_ranks_with_half_of_the_weights_each_equal_one():
    check_equal([2], QUICK, double=True, shards=True)


@pytest.mark.slow
@pytest.mark.parametrize("double", [False, True], ids=["float32", "float64"])
@pytest.mark.parametrize("full", [False, True], ids=["adapters", "all weights"])
def test_every_trainer_on_two_and_three_ranks_equals_one(double: bool, full: bool):
    check_equal([2, 3], [case for case in CASES if ("full" in case) == full], double, shards=True)


# What a rank holds ------------------------------------------------------------------------


def held(group: Group, folder: Path) -> dict:
    """One step of a tied model with a scalar head; what this rank holds and what it says about its gradients."""
    role = Role.trainable(tiny_backbone(tied=True), "reward", FULL, seed=1, scalar_head=True)
    role = precise(role, double=True)
    learner = Learner(role, STEADY.model_copy(update={"max_grad_norm": 0.05}), 2, group=group)
    rows = conversations(role.backbone.chat, 3)  # on two ranks the second one makes a pass that counts nothing
    device = role.backbone.device

    def scores(tokens: torch.Tensor) -> torch.Tensor:
        assert role.scalar is not None
        return role.scalar(role.backbone.hidden(tokens, adapter=None)).sum()

    parts = [([str(i)], torch.tensor([row.tokens], device=device)) for i, row in enumerate(rows)]
    metrics = learner.step(parts, lambda tokens, norms: (scores(tokens), {}), Norms(tokens=1, sequences=1))
    tensors = learner.parameters | learner.optimizer_tensors()
    with role.gathered():
        tied = role.backbone.head.weight is role.backbone.model.get_input_embeddings().weight
        plain = not is_sharded(role.backbone.head.weight)
        with torch.no_grad():
            for _, tokens in parts[: 1 + group.rank]:  # the ranks make different numbers of passes
                scores(tokens)
    path = folder / f"{group.size}.safetensors"
    save_whole(path if group.first else None, tensors)
    return {
        "metrics": metrics,
        "numbers": {name: part(t).numel() for name, t in tensors.items()},
        "tied": tied,
        "plain": plain,
        "state": role.state() | learner.optimizer_state(),
    }


def test_each_rank_holds_its_part_and_the_first_one_writes_the_whole(tmp_path: Path):
    one, (first, second) = held(ALONE, tmp_path), on_ranks(2, held, tmp_path, shards=True)
    assert first["tied"] and first["plain"] and one["metrics"]["grad_norm"] > 1
    for name, number in one["numbers"].items():
        whole_there = name.startswith(("head.", "step")) or ".head." in name or "/head." in name
        expected = 2 * number if whole_there else number
        assert first["numbers"][name] + second["numbers"][name] == expected, name
        assert whole_there or max(first["numbers"][name], second["numbers"][name]) <= number // 2 + 32, name
    for rank in (first, second):
        assert rank["metrics"] == pytest.approx(one["metrics"], rel=1e-12)
        for name, values in one["state"].items():
            assert torch.allclose(rank["state"][name], values, rtol=1e-10, atol=1e-12), name
    written, reference = load_file(tmp_path / "2.safetensors"), tmp_path / "plain.safetensors"
    save_file(first["state"], reference)
    expected = load_file(reference)
    assert written.keys() == expected.keys() == load_file(tmp_path / "1.safetensors").keys()
    for name, values in expected.items():
        assert written[name].dtype == values.dtype and torch.equal(written[name], values), name


# Adapters on a sharded trunk -----------------------------------------------------------------


def batch_of(backbone: Backbone, *numbers: int) -> Batch:
    rows = [conversations(backbone.chat, 4)[number] for number in numbers]
    return collate([row.tokens for row in rows], [row.response_mask for row in rows], backbone.device)


def learner_of(role: Role, group: Group) -> Learner:
    return Learner(role, STEADY, 2, group=group)


def step_of(learner: Learner, *, states: FrozenStates | None = None) -> None:
    """A step of three micro-batches: on two ranks the second one makes a pass that counts nothing."""
    role = learner.role
    parts = [([str(number)], batch_of(role.backbone, number)) for number in range(3)]
    learner.step(
        parts, lambda part, norms: (-role.logprobs(part, states=states).sum(), {}), Norms(tokens=1, sequences=3)
    )


def adapters(group: Group) -> dict:
    """A second adapter comes on a trunk that is sharded with the first; then the first becomes part of the trunk."""
    role = precise(Role.trainable(tiny_backbone(tied=True), "first", TOP, seed=1), double=True)
    backbone, learner = role.backbone, learner_of(role, group)
    assert group.shards or backbone.shards is None
    numbers = {name: part(weight).numel() for name, weight in backbone.model.named_parameters()}
    step_of(learner)
    batch = batch_of(backbone, 3)
    with torch.no_grad():
        adapted, reference = role.logprobs(batch), Role(backbone).logprobs(batch)
        with backbone.merged("first"):  # this rank alone, and the second one twice
            merged, *_ = [Role(backbone).logprobs(batch) for _ in range(1 + group.rank)]
        restored = Role(backbone).logprobs(batch)
        second = Role.trainable(backbone, "second", LORA, seed=2)
        untrained = second.logprobs(batch)
        backbone.merge("first")
        after_merge = Role(backbone).logprobs(batch)
    step_of(learner_of(second, group))
    return {
        "numbers": numbers,
        "pairs": [(adapted, merged), (adapted, after_merge), (reference, restored), (reference, untrained)],
        "values": {"adapted": adapted, "trained": second.logprobs(batch).detach(), **second.state()},
    }


def test_adapters_are_whole_on_a_trunk_of_which_each_rank_holds_a_part():
    one, ranks = adapters(ALONE), on_ranks(2, adapters, shards=True)
    for name, number in one["numbers"].items():
        first, second = (rank["numbers"][name] for rank in ranks)
        assert first + second == (2 * number if ".lora_" in name else number), name
        assert ".lora_" in name or max(first, second) <= number // 2 + 32, name
    for rank in (one, *ranks):
        assert not torch.equal(*(pair[0] for pair in rank["pairs"][1:3]))  # the adapter has learned something
        for left, right in rank["pairs"]:
            torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-6)
        for name, values in one["values"].items():
            assert torch.allclose(rank["values"][name].double(), values.double(), rtol=1e-10, atol=1e-10), name


def frozen(group: Group) -> dict:
    """Which layers run on a sharded trunk with stores of frozen states that are empty, of this rank alone, complete."""
    role = precise(Role.trainable(tiny_backbone(), "top", TOP, seed=1), double=True)
    backbone, learner, ran = role.backbone, learner_of(role, group), []
    backbone.layers[0].register_forward_hook(lambda *_: ran.append(1))

    def runs(states: FrozenStates) -> int:
        ran.clear()
        step_of(learner, states=states)
        return len(ran)

    own = FrozenStates(backbone)
    with backbone.gathered():
        inside = own.of(batch_of(backbone, group.rank))
    complete, short = FrozenStates(backbone), FrozenStates(backbone, limit=5)
    for states in (complete, short):
        states.fill([batch_of(backbone, 0, 1), batch_of(backbone, 2)])
    counts = [runs(states) for states in (FrozenStates(backbone), own, complete, short)]
    missing = "none"
    try:
        role.logprobs(batch_of(backbone, 3), states=complete)
    except AssertionError as error:
        missing = str(error)
    return {"inside": inside, "counts": counts, "hits": complete.hits, "missing": missing, "state": role.state()}


def test_frozen_layers_are_skipped_on_a_sharded_trunk_only_where_every_rank_skips_them():
    one, ranks = frozen(ALONE), on_ranks(2, frozen, shards=True)
    assert one["counts"] == [3, 2, 0, 3]  # one store has the states of one sequence
    for rank in ranks:
        assert rank["counts"] == [2, 2, 0, 2] and rank["hits"] == 2  # each makes two passes
        assert "train on sequences that are not in their store" in rank["missing"]
        for name, values in one["state"].items():
            assert torch.allclose(rank["state"][name], values, rtol=1e-10, atol=1e-12), name
    assert torch.allclose(ranks[0]["inside"], one["inside"], rtol=1e-12)


def narrow(group: Group) -> dict:
    """Adapters in float32 on a trunk in bfloat16."""
    backbone = Backbone(tiny_model(), Chat(tokenizer(), context=128), dtype=torch.bfloat16, frozen_dtype=torch.bfloat16)
    role = precise(Role.trainable(backbone, "narrow", LORA, seed=1), double=False)
    learner = learner_of(role, group)
    for _ in range(2):
        step_of(learner)
    return {"weights": [role.state()], "frozen": backbone.head.weight.dtype}


@pytest.mark.slow
def test_sharding_a_trunk_in_bfloat16_changes_no_bit():
    replicated, sharded = (on_ranks(2, narrow, shards=shards)[1] for shards in (False, True))
    assert replicated["frozen"] == sharded["frozen"] == torch.bfloat16
    assert apart(replicated, sharded) == 0.0


# Files ------------------------------------------------------------------------------------


def no_disk(group: Group, path: Path) -> str:
    role = Role.trainable(tiny_backbone(), "sft", FULL, seed=1)
    learner = Learner(role, STEADY, 1, group=group)
    try:
        save_whole(path if group.first else None, learner.parameters)
    except StorageError as error:
        return str(error)
    return "none"


def test_a_file_that_cannot_be_written_keeps_no_rank_waiting(tmp_path: Path):
    said, other = on_ranks(2, no_disk, tmp_path / "missing" / "x.safetensors", deadline=20.0, shards=True)
    assert "x.safetensors: cannot be written" in said and other == "none"


# Stopping and continuing ------------------------------------------------------------------


def sft_full(group: Group, folder: Path, stop_after: int | None, optimizer: OptimizerConfig) -> dict:
    return sft_until(group, folder, stop_after, full=True, optimizer=optimizer)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", [STEADY, EIGHT_BITS], ids=["32 bits", "8 bits"])
def test_a_run_continues_bit_for_bit_on_two_ranks_and_within_rounding_on_one_then_three(
    tmp_path: Path, optimizer: OptimizerConfig
):
    alone, parts = sft_full(ALONE, tmp_path / "alone", None, optimizer), tmp_path / "parts"
    whole = on_ranks(2, sft_full, tmp_path / "whole", None, optimizer, shards=True)[0]
    assert apart(alone, whole) <= 1e-10
    on_ranks(2, sft_full, parts, 2, optimizer, shards=True)
    written = sorted(path.name for path in (parts / "step-000002").iterdir())
    assert written == ["sft.optimizer.safetensors", "sft.safetensors", "state.json"]
    shutil.copytree(parts, tmp_path / "again")
    again = on_ranks(2, sft_full, tmp_path / "again", None, optimizer, shards=True)[0]
    assert again["metrics"] == whole["metrics"][2:]
    assert apart(whole, again) == 0.0
    sft_full(ALONE, parts, 4, optimizer)
    third = on_ranks(3, sft_full, parts, None, optimizer, shards=True)
    assert [row["step"] for row in third[2]["metrics"]] == [5, 6]
    assert apart(alone, third[0]) <= 1e-10


def stops_in_a_pass(group: Group, stop: Callable[[], None]) -> None:
    role = Role.trainable(tiny_backbone(), "sft", FULL, seed=1)
    learner = Learner(role, STEADY, 1, group=group)
    tokens = torch.zeros(1, 4, dtype=torch.int64)

    def loss(part: torch.Tensor, norms: Norms) -> tuple[torch.Tensor, dict[str, float]]:
        if group.rank == 1:
            stop()
        return role.backbone.hidden(part, adapter=None).sum(), {}

    learner.step([(["a"], tokens), (["b"], tokens)], loss, Norms(tokens=1, sequences=1))


def find_a_bad_row() -> None:
    raise DataError("a bad row")


@pytest.mark.slow  # the other rank waits until the deadline
def test_an_error_of_one_rank_inside_a_pass_is_told_on_all():
    waited, own = on_ranks(2, stops_in_a_pass, find_a_bad_row, deadline=10.0, shards=True)
    assert isinstance(own, DataError) and str(own) == "a bad row"
    assert isinstance(waited, RankError) and "rank 1 stopped" in str(waited) and "DataError: a bad row" in str(waited)


def test_a_rank_that_dies_inside_a_pass_is_named():
    error, killed = on_ranks(2, stops_in_a_pass, die, deadline=20.0, shards=True)
    assert killed == "exit -9"
    assert isinstance(error, RankError) and "rank 1" in str(error), error
    assert "micro-batches of optimiser step 1" in str(error)
