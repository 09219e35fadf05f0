"""Padding, splitting and packing, on lists small enough to look at."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from trimtab.models import collate, pack, scatter
from trimtab.models.batch import block_diagonal_mask

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


def test_rows_are_cut_to_their_longest_with_their_columns():
    batch = collate([[1, 2, 3, 4], [5, 6], [7]], [[True] * 4, [True] * 2, [True]], CPU)
    batch.columns |= {"per_token": torch.arange(12.0).view(3, 4), "per_row": torch.tensor([1.0, 2.0, 3.0])}
    part = batch.rows(torch.tensor([2, 1]))
    assert part.tokens.tolist() == [[7, 0], [5, 6]]
    assert part.columns["per_token"].tolist() == [[8, 9], [4, 5]]
    assert part.columns["per_row"].tolist() == [3, 2]


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
    segments, positions = batch.columns["segments"], batch.columns["positions"]
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
