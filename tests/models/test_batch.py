"""Padding, splitting and packing, on lists small enough to look at."""

from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trimtab.models import AdapterConfig, Batch, FrozenStates, Role, collate, pack, scatter
from trimtab.models.batch import block_diagonal_mask
from trimtab.testing import tiny_backbone

from ..kit import stir

CPU = torch.device("cpu")
lists = st.lists(st.lists(st.integers(1, 99), min_size=1, max_size=12), min_size=1, max_size=9)


def test_collate_pads_on_the_right():
    batch = collate([[5, 6, 7], [8]], [[False, True, True], [True]], CPU)
    assert batch.tokens.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch.response_mask.tolist() == [[False, True, True], [True, False, False]]
    assert batch.lengths.tolist() == [3, 1]


def test_scatter_puts_values_where_the_mask_is_true():
    mask = torch.tensor([[False, True, True, False], [False, False, True, False]])
    assert scatter([[1.0, 2.0], [3.0]], mask).tolist() == [[0, 1, 2, 0], [0, 0, 3, 0]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Marked(Batch):
    per_token: torch.Tensor
    per_row: torch.Tensor


def test_rows_are_cut_to_their_longest_with_the_fields_of_a_subclass():
    batch = collate([[1, 2, 3, 4], [5, 6], [7]], [[True] * 4, [True] * 2, [True]], CPU)
    marked = Marked(**vars(batch), per_token=torch.arange(12.0).view(3, 4), per_row=torch.tensor([1.0, 2.0, 3.0]))
    part = marked.rows(torch.tensor([2, 1]))
    assert part.tokens.tolist() == [[7, 0], [5, 6]]
    assert part.per_token.tolist() == [[8, 9], [4, 5]]
    assert part.per_row.tolist() == [3, 2]


@given(lists, st.integers(1, 40))
def test_micro_batches_hold_every_row_once_within_the_budget(sequences, budget):
    batch = collate(sequences, [[True] * len(s) for s in sequences], CPU)
    seen = []
    for index, part in batch.micro_batches(budget):
        assert part.size == 1 or part.tokens.numel() <= budget
        for row, i in enumerate(index.tolist()):
            seen.append(i)
            assert part.tokens[row, : int(part.lengths[row])].tolist() == sequences[i]
    assert sorted(seen) == list(range(len(sequences)))


@given(lists, st.integers(1, 30))
def test_packing_loses_nothing_and_respects_the_width(sequences, width):
    masks = [[i % 2 == 1 for i in range(len(s))] for s in sequences]
    batch = pack(sequences, masks, width, CPU)
    assert batch.tokens.shape[1] <= max(width, max(map(len, sequences)))
    segments, positions = batch.segments, batch.positions
    assert segments is not None and positions is not None
    for number, sequence in enumerate(sequences):
        place = segments == number
        assert batch.tokens[place].tolist() == sequence
        assert batch.response_mask[place].tolist() == masks[number]
        assert positions[place].tolist() == list(range(len(sequence)))
        assert place.any(dim=1).sum() == 1  # in one row
    assert int((segments >= 0).sum()) == sum(map(len, sequences))


def test_packing_fills_rows_longest_first():
    batch = pack([[1], [2, 2, 2], [3, 3], [4, 4]], [[True]] + [[True] * n for n in (3, 2, 2)], 4, CPU)
    assert batch.tokens.tolist() == [[2, 2, 2, 1], [3, 3, 4, 4]]


def test_block_diagonal_mask_by_hand():
    allowed = block_diagonal_mask(torch.tensor([[0, 0, 1, 1, -1]]))[0, 0].int().tolist()
    assert [row[:4] for row in allowed[:4]] == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]


# Shared prompts -----------------------------------------------------------------------------


def grouped() -> Batch:
    """Two answers to prompt (7, 8, 9), one to (5, 6), one more to the first; lengths differ."""
    rows = [([7, 8, 9], [1, 2]), ([7, 8, 9], [3]), ([5, 6], [4, 4, 4]), ([7, 8, 9], [2, 2, 2, 2])]
    return collate(
        [p + a for p, a in rows],
        [[False] * len(p) + [True] * len(a) for p, a in rows],
        torch.device("cpu"),
        prompt_lengths=[len(p) for p, _ in rows],
    )


def test_a_prompt_is_laid_out_once():
    batch = grouped()
    shared = batch.shared_prompts
    assert shared is not None
    assert shared.tokens[0].tolist() == [7, 8, 9, 1, 2, 3, 2, 2, 2, 2]
    assert shared.positions[0].tolist() == [0, 1, 2, 3, 4, 3, 3, 4, 5, 6]
    assert shared.tokens[1, :5].tolist() == [5, 6, 4, 4, 4]
    looks = shared.attention[0, 0]
    assert looks[5].nonzero().flatten().tolist() == [0, 1, 2, 5]  # the one token of the second answer
    assert looks[7].nonzero().flatten().tolist() == [0, 1, 2, 6, 7]
    assert looks[2].nonzero().flatten().tolist() == [0, 1, 2]
    packed = shared.tokens[..., None].float()
    real = torch.arange(batch.tokens.shape[1]) < batch.lengths[:, None]
    assert (shared.unpack(packed).squeeze(-1)[real] == batch.tokens[real]).all()
    assert torch.equal(shared.pack(shared.unpack(packed))[0], packed[0])


def test_rows_without_a_common_prompt_are_left_alone():
    batch = grouped()
    assert batch.rows(torch.tensor([0, 2])).shared_prompts is None
    assert batch.rows(torch.tensor([0, 1])).shared_prompts is not None
    assert replace(batch, prompt_lengths=None).shared_prompts is None


def test_micro_batches_keep_groups_together_and_count_a_prompt_once():
    batch = grouped()
    assert [i.tolist() for i, _ in batch.micro_batches(10)] == [[0, 1, 3], [2]]  # 3 + 2 + 1 + 4 tokens come first
    assert [i.tolist() for i, _ in batch.micro_batches(20)] == [[0, 1, 3, 2]]
    assert sorted(sorted(i.tolist()) for i, _ in batch.micro_batches(6)) == [[0, 1], [2], [3]]
    assert [i.tolist() for i, _ in batch.micro_batches(1)] == [[3], [0], [2], [1]]


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2"])
@pytest.mark.parametrize("top", [None, 1])
def test_shared_prompts_give_the_same_numbers_and_gradients(architecture, top):
    rows = [([11, 12, 13, 14], [15, 16]), ([11, 12, 13, 14], [17]), ([5, 6, 7], [14, 15, 16]), ([5, 6, 7], [18])]
    tokens, masks = [p + a for p, a in rows], [[False] * len(p) + [True] * len(a) for p, a in rows]
    results = []
    for lengths in (None, [len(p) for p, _ in rows]):
        backbone = tiny_backbone(architecture)
        config = AdapterConfig(rank=4, alpha=8, top_layers=top)
        role = stir(Role.trainable(backbone, "it", config, seed=0, scalar_head=True), scale=0.1)
        batch = collate(tokens, masks, torch.device("cpu"), prompt_lengths=lengths)
        assert (batch.shared_prompts is None) == (lengths is None)
        states = FrozenStates(backbone)
        logprobs, entropies = role.logprobs_and_entropies(batch, states=states)
        values, scores = role.values(batch, states=states), role.scores(batch, states=states)
        (logprobs.sum() + values.square().sum() + scores.square().sum()).backward()
        gradients = torch.cat([p.grad.flatten() for p in role.parameters().values()])
        results.append((logprobs, entropies, values, scores, gradients))
    for plain, shared in zip(*results, strict=True):
        assert torch.allclose(plain, shared, rtol=1e-4, atol=1e-5)
