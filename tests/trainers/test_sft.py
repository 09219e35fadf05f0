"""Supervised fine-tuning: the loss by brute force, and what must not change the result."""

import re
from typing import Any

import pytest
import torch

from trimtab.errors import DataError, NonFiniteError
from trimtab.models import AdapterConfig, Encoded, Role
from trimtab.testing import chat_messages, sentences, tiny_backbone
from trimtab.trainers import OptimizerConfig, Session, SftConfig, mean_nll, train_sft
from trimtab.trainers.sft import step_indices, steps_of_examples

from ..kit import same_weights

FULL = AdapterConfig(kind="full")
LORA = AdapterConfig(rank=4, alpha=8)


def role(adapter: AdapterConfig = LORA, architecture: Any = "llama") -> Role:
    return Role.trainable(tiny_backbone(architecture), "sft", adapter, seed=1)


def examples(one: Role, count: int = 10) -> list[Encoded]:
    texts = [" ".join(text.split()[: 1 + i % 5]) for i, text in enumerate(sentences(count))]
    return [one.backbone.chat.conversation(chat_messages("sing", text)) for text in texts]


def trained(config: SftConfig, *, adapter: AdapterConfig = LORA, architecture="llama") -> tuple[Role, list[dict]]:
    one, rows = role(adapter, architecture), []
    train_sft(one, examples(one), config, seed=0, session=Session(log=rows.append))
    return one, rows


@torch.no_grad()
def nll_by_hand(one: Role, some: list[Encoded]) -> float:
    """Mean over all response tokens, one sequence at a time, Hugging Face's logits (adapters idle or none)."""
    losses = []
    for e in some:
        logprobs = torch.log_softmax(one.backbone.model(torch.tensor([e.tokens])).logits[0].double(), dim=-1)
        losses += [-float(logprobs[t - 1, e.tokens[t]]) for t, own in enumerate(e.response_mask) if own]
    return sum(losses) / len(losses)


def test_first_loss_is_the_mean_over_response_tokens():
    one, rows = trained(SftConfig(batch=10, epochs=1))
    fresh = role()
    fresh.backbone.activate(None)
    wanted = nll_by_hand(fresh, examples(fresh))
    assert rows[0]["loss"] == pytest.approx(wanted, abs=1e-5)
    assert rows[0]["tokens"] == sum(sum(e.response_mask) for e in examples(one))


def test_mean_nll_by_hand():
    one = role(FULL)
    some = examples(one)
    assert mean_nll(one, some) == pytest.approx(nll_by_hand(one, some), abs=1e-5)
    assert mean_nll(one, some, micro_batch_tokens=1) == pytest.approx(nll_by_hand(one, some), abs=1e-5)


@pytest.mark.parametrize("adapter", [LORA, FULL], ids=["lora", "full"])
def test_micro_batches_and_packing_do_not_change_the_result(adapter):
    """All at once, a few at a time, one at a time; packed and not: the same objective, the same weights."""
    settings = {"optimizer": OptimizerConfig(lr=1e-3, warmup=0.0), "epochs": 3, "batch": 8}
    whole, rows = trained(SftConfig(packing=False, micro_batch_tokens=10_000, **settings), adapter=adapter)
    for packing, budget in ((False, 60), (False, 1), (True, 10_000), (True, 60), (True, 1)):
        other, others = trained(SftConfig(packing=packing, micro_batch_tokens=budget, **settings), adapter=adapter)
        same_weights(whole, other)
        assert [r["loss"] for r in others] == pytest.approx([r["loss"] for r in rows], abs=1e-5)


@pytest.mark.parametrize("architecture", ["qwen2", "gpt2"])
def test_packing_on_other_architectures(architecture):
    settings = {"optimizer": OptimizerConfig(lr=1e-3, warmup=0.0), "epochs": 1, "batch": 8}
    one, rows = trained(SftConfig(packing=False, **settings), architecture=architecture)
    two, others = trained(SftConfig(packing=True, **settings), architecture=architecture)
    same_weights(one, two)
    assert [r["loss"] for r in others] == pytest.approx([r["loss"] for r in rows], abs=1e-5)


@pytest.mark.parametrize(("count", "batch"), [(10, 4), (8, 4), (3, 5), (1, 1), (7, 1)])
def test_every_epoch_sees_every_example_once(count, batch):
    per_epoch = -(-count // batch)
    epochs = [
        [i for place in range(per_epoch) for i in step_indices(count, batch, epoch * per_epoch + place, seed=5)]
        for epoch in range(3)
    ]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    if count > 5:
        assert epochs[0] != epochs[1]
        assert epochs[0][:batch] != step_indices(count, batch, 0, seed=6)


@pytest.mark.parametrize(("epochs", "steps"), [(0.1, 1), (0.5, 2), (1.0, 3), (2.0, 6)])
def test_number_of_steps(epochs, steps):
    _, rows = trained(SftConfig(batch=4, epochs=epochs))
    assert [r["step"] for r in rows] == list(range(1, steps + 1))


def test_seed_decides():
    states = []
    for seed in (0, 0, 1):
        one = role()
        train_sft(one, examples(one), SftConfig(batch=4), seed=seed, session=Session())
        states.append(one.state())
    assert all(torch.equal(states[0][n], states[1][n]) for n in states[0])
    assert not all(torch.equal(states[0][n], states[2][n]) for n in states[0])


@pytest.mark.parametrize("packing", [False, True])
def test_bad_example_is_named_and_no_weight_changes(packing):
    one = role(FULL)
    some = examples(one)
    here = next(t for t in some[7].tokens if not any(t in e.tokens for e in some if e is not some[7]))
    with torch.no_grad():
        one.backbone.model.get_input_embeddings().weight[here] = float("nan")
    before = one.state()
    config = SftConfig(packing=packing, micro_batch_tokens=60)
    with pytest.raises(NonFiniteError, match="the loss became nan at optimiser step 0; samples involved: ") as error:
        train_sft(one, some, config, seed=0, session=Session())
    named = re.findall(r"example (\d+)", str(error.value))
    assert "7" in named
    assert len(named) <= 4  # those that shared a micro-batch with it
    after = one.state()
    assert all(torch.equal(before[n].nan_to_num(), after[n].nan_to_num()) for n in before)


def test_nothing_to_learn_from():
    with pytest.raises(DataError, match="no demonstrations"):
        train_sft(role(), [], SftConfig(), seed=0, session=Session())


@pytest.mark.parametrize(("count", "batch", "total"), [(7, 3, 8), (5, 5, 1), (4, 9, 3), (10, 2, 4)])
def test_the_steps_of_an_example_are_those_that_saw_it(count: int, batch: int, total: int):
    seen = [step_indices(count, batch, step, seed=3) for step in range(total)]
    expected = [[step for step in range(total) if example in seen[step]] for example in range(count)]
    assert steps_of_examples(count, batch, total, seed=3) == expected
