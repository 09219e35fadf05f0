"""One trunk for several roles: nobody's training moves anybody else's numbers."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GraniteConfig

from trimtab.errors import CheckpointError, ConfigError
from trimtab.models import AdapterConfig, Backbone, Batch, Chat, FrozenStates, Role, collate
from trimtab.testing import chat_messages, sentences, tiny_backbone, tokenizer
from trimtab.trainers import Learner, Norms, OptimizerConfig

from ..kit import stir


def lora(top: int | None = None, **more) -> AdapterConfig:
    return AdapterConfig(**({"rank": 4, "alpha": 8.0, "top_layers": top} | more))


def batch_of(backbone: Backbone) -> Batch:
    result = [backbone.chat.conversation(chat_messages("sing", text)) for text in sentences(4)]
    return collate([e.tokens for e in result], [e.response_mask for e in result], backbone.device)


def train(one: Role, batch: Batch, steps: int = 3) -> None:
    learner = Learner(one, OptimizerConfig(lr=1e-2), steps)
    norms = Norms(tokens=float(batch.response_mask.sum()), sequences=batch.size)

    def loss(part: Batch, norms: Norms):
        if one.scalar is not None:
            return (one.scores(part) - 3.0).square().sum() / norms.sequences, {}
        return -one.logprobs(part).sum() / norms.tokens, {}

    for _ in range(steps):
        learner.step([(["all"], batch)], loss, norms)


def test_reference_stays_while_policy_and_critic_train():
    trunk = tiny_backbone()
    policy = Role.trainable(trunk, "policy", lora(), seed=1)
    critic = Role.trainable(trunk, "critic", lora(), seed=2, scalar_head=True)
    reference, batch = Role(trunk), batch_of(trunk)
    fixed = reference.logprobs(batch)
    assert torch.equal(policy.logprobs(batch), fixed)  # B is zero: it starts as the trunk
    train(critic, batch)
    assert torch.equal(policy.logprobs(batch), fixed)
    train(policy, batch)
    moved = critic.scores(batch)
    assert not torch.allclose(policy.logprobs(batch), fixed, atol=1e-3)
    assert torch.equal(reference.logprobs(batch), fixed)
    train(policy, batch)
    assert torch.equal(critic.scores(batch), moved)


def test_equal_seeds_give_equal_adapters():
    states = [Role.trainable(tiny_backbone(), "policy", lora(), seed=s).state() for s in (1, 1, 2)]
    assert all(torch.equal(states[0][n], states[1][n]) for n in states[0])
    assert not all(torch.equal(states[0][n], states[2][n]) for n in states[0])


def test_adding_an_adapter_leaves_the_random_stream_alone():
    trunk = tiny_backbone()
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    trunk.add_adapter("policy", lora(), seed=1)
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_merged_computes_the_adapter_and_puts_every_bit_back(architecture):
    trunk = tiny_backbone(architecture)
    policy = stir(Role.trainable(trunk, "policy", lora(), seed=1))
    batch, reference = batch_of(trunk), Role(trunk)
    adapted, plain = policy.logprobs(batch), reference.logprobs(batch)
    before = {name: p.detach().clone() for name, p in trunk.model.named_parameters()}
    with trunk.merged("policy"):
        torch.testing.assert_close(reference.logprobs(batch), adapted, rtol=1e-4, atol=1e-4)
    with pytest.raises(RuntimeError, match="on purpose"), trunk.merged("policy"):
        raise RuntimeError("on purpose")
    assert all(torch.equal(p, before[name]) for name, p in trunk.model.named_parameters())
    assert torch.equal(reference.logprobs(batch), plain)
    assert torch.equal(policy.logprobs(batch), adapted)


def test_merged_none_is_the_reference():
    trunk = tiny_backbone()
    policy, batch = stir(Role.trainable(trunk, "policy", lora(), seed=1)), batch_of(trunk)
    plain = Role(trunk).logprobs(batch)
    policy.logprobs(batch)
    with trunk.merged(None):
        direct = trunk.model.base_model(input_ids=batch.tokens, use_cache=False).last_hidden_state
    assert torch.equal(direct, trunk.hidden(batch.tokens, adapter=None))
    assert torch.equal(Role(trunk).logprobs(batch), plain)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_merge_folds_one_adapter_in_for_good(architecture):
    trunk = tiny_backbone(architecture)
    sft, batch = stir(Role.trainable(trunk, "sft", lora(), seed=1)), batch_of(trunk)
    adapted = sft.logprobs(batch)
    trunk.merge("sft")
    torch.testing.assert_close(Role(trunk).logprobs(batch), adapted, rtol=1e-4, atol=1e-4)
    policy = Role.trainable(trunk, "policy", lora(1), seed=2)  # the next stage builds on it
    torch.testing.assert_close(policy.logprobs(batch), adapted, rtol=1e-4, atol=1e-4)
    assert not any("sft" in name for name, _ in trunk.model.named_parameters())


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_two_halves_are_the_whole(architecture):
    trunk = tiny_backbone(architecture, layers=4)
    policy = stir(Role.trainable(trunk, "policy", lora(1), seed=1))
    critic = stir(Role.trainable(trunk, "critic", lora(2), seed=2, scalar_head=True))
    assert trunk.frozen_layers == 2  # below the lowest adapter of all
    batch = batch_of(trunk)
    whole = policy.logprobs(batch), critic.values(batch), Role(trunk).logprobs(batch)
    states = FrozenStates(trunk)
    frozen = states.of(batch)
    assert frozen is not None and not frozen.requires_grad
    halves = (
        policy.logprobs(batch, states=states),
        critic.values(batch, states=states),
        Role(trunk).logprobs(batch, states=states),
    )
    assert (states.hits, states.computed) == (3 * batch.size, batch.size)
    for a, b in zip(halves, whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    policy.logprobs(batch, states=states).sum().backward()
    assert all(p.grad is not None for p in policy.parameters().values())


def test_training_above_never_changes_below():
    trunk = tiny_backbone()
    policy, batch = Role.trainable(trunk, "policy", lora(1), seed=1), batch_of(trunk)
    before = trunk.frozen_hidden(batch)
    train(policy, batch)
    assert torch.equal(before, trunk.frozen_hidden(batch))


# States of frozen layers ---------------------------------------------------------------------------


def cut_trunk() -> Backbone:
    trunk = tiny_backbone()
    Role.trainable(trunk, "policy", lora(1), seed=1)
    return trunk


def test_states_stop_at_the_limit_and_stay_as_they_are():
    states, prompt = FrozenStates(cut_trunk(), limit=20), torch.zeros(4, 2)
    for number in range(3):
        states.add([1, 2, 3, 4, number, number], prompt, torch.full((2, 2), float(number)))
    assert len(states) == 3 and not states.full
    states.add([1, 2, 3, 4, 0, 0], prompt, torch.full((2, 2), 7.0))  # the same sequence again is counted once
    states.add([9] * 3, torch.zeros(3, 2))  # would be 21 tokens
    assert states.full and len(states) == 3 and states.get([9] * 3) is None
    states.add([9] * 2, torch.zeros(2, 2))  # would fit, but a resumed run must have the same contents
    assert len(states) == 3
    known = states.get([1, 2, 3, 4, 0, 0])
    assert known is not None and known.shape == (6, 2) and known[-1, 0] == 7.0
    states.clear()
    states.add([9] * 20, torch.zeros(10, 2), torch.zeros(10, 2))
    assert len(states) == 1 and not states.full


def test_a_state_is_computed_once_and_the_rest_of_a_batch_beside_it():
    trunk = cut_trunk()
    batch, states = batch_of(trunk), FrozenStates(trunk)
    whole = FrozenStates(trunk).of(batch)
    states.of(batch.rows(torch.tensor([1, 2])))
    assert (states.hits, states.computed) == (0, 2)
    result = states.of(batch)
    assert (states.hits, states.computed) == (2, 4)
    again = states.of(batch)
    assert (states.hits, states.computed) == (6, 4) and again is not None and result is not None and whole is not None
    for row, length in enumerate(batch.lengths.tolist()):
        assert torch.equal(result[row, :length], again[row, :length])
        torch.testing.assert_close(result[row, :length], whole[row, :length], rtol=1e-4, atol=1e-5)


def test_states_without_room_are_computed_each_time():
    trunk = cut_trunk()
    batch, states = batch_of(trunk), FrozenStates(trunk, limit=0)
    assert torch.equal(states.of(batch), states.of(batch))
    assert (len(states), states.hits, states.computed) == (0, 0, 2 * batch.size)


def test_another_adapter_or_a_merge_empties_the_store():
    trunk = tiny_backbone(layers=4)
    states, batch = FrozenStates(trunk), batch_of(trunk)
    assert states.of(batch) is None and not states.active  # no adapter: nothing is known to be frozen
    Role.trainable(trunk, "policy", lora(1), seed=1)
    states.of(batch)
    assert len(states) == batch.size
    stir(Role.trainable(trunk, "critic", lora(2), seed=2))
    assert states.active and states.get(batch.tokens[0, : int(batch.lengths[0])].tolist()) is None
    assert len(states) == 0
    alone = cut_trunk()
    states = FrozenStates(alone)
    states.of(batch)
    assert len(states) == batch.size
    alone.merge("policy")
    assert states.of(batch) is None and len(states) == 0


def test_another_backbones_states_are_not_used():
    trunk, other = cut_trunk(), cut_trunk()
    states, batch = FrozenStates(other), batch_of(trunk)
    assert torch.equal(Role(trunk).logprobs(batch, states=states), Role(trunk).logprobs(batch))
    assert (states.hits, states.computed) == (0, 0)


def test_states_on_disk_come_back_bit_for_bit(tmp_path: Path):
    trunk = cut_trunk()
    batch, states = batch_of(trunk), FrozenStates(trunk, limit=int(batch_of(trunk).lengths[:3].sum()))
    states.of(batch)
    rows = [row[:n] for row, n in zip(batch.tokens.tolist(), batch.lengths.tolist(), strict=True)]
    states.save(tmp_path / "a.safetensors", rows)
    again = FrozenStates(trunk, limit=states.limit)
    again.load(tmp_path / "a.safetensors", rows)
    assert len(again) == len(states) < batch.size and again.full == states.full is True
    for row in rows:
        known, loaded = states.get(row), again.get(row)
        assert (known is None) == (loaded is None)
        assert known is None or loaded is None or torch.equal(known, loaded)
    (tmp_path / "a.safetensors").write_bytes(b"cut")
    with pytest.raises(CheckpointError, match="damaged or missing"):
        again.load(tmp_path / "a.safetensors", rows)


def test_trunk_that_cannot_be_cut_is_used_whole():
    trunk = tiny_backbone("gpt2")
    policy = Role.trainable(trunk, "policy", lora(1), seed=1)
    batch = batch_of(trunk)
    assert trunk.frozen_layers == 0
    assert FrozenStates(trunk).of(batch) is None
    train(policy, batch)
    assert not torch.equal(policy.logprobs(batch), Role(trunk).logprobs(batch))


def test_cut_that_would_change_the_numbers_is_not_made():
    """Granite multiplies what comes out of the embedding, and would do so a second time after the cut."""

    def granite(multiplier: float) -> Backbone:
        config = GraniteConfig(
            vocab_size=320, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2,
            num_key_value_heads=1, initializer_range=0.2, embedding_multiplier=multiplier,
        )  # fmt: skip
        torch.manual_seed(0)
        trunk = Backbone(AutoModelForCausalLM.from_config(config).eval(), Chat(tokenizer(), context=64))
        trunk.add_adapter("policy", lora(1), seed=1)
        return trunk

    assert granite(1.0).frozen_layers == 2
    assert granite(3.0).frozen_layers == 0


def test_more_layers_than_there_are():
    with pytest.raises(ConfigError, match="top_layers is 4 but the model has 3 layers; use 1 to 3"):
        tiny_backbone().add_adapter("policy", lora(4), seed=1)


def test_dropout_is_on_in_training_only():
    trunk = tiny_backbone()
    policy, batch = stir(Role.trainable(trunk, "policy", lora(dropout=0.5), seed=1)), batch_of(trunk)
    calm = policy.logprobs(batch)
    assert torch.equal(policy.logprobs(batch), calm)
    policy.train(True)
    assert not torch.equal(policy.logprobs(batch), calm)
    policy.train(False)
    assert torch.equal(policy.logprobs(batch), calm)


def test_dropout_of_the_trunk_is_on_only_where_all_of_it_trains():
    trunk = tiny_backbone(dropout=0.5)
    adapter = Role.trainable(trunk, "policy", lora(), seed=1)
    whole = Role.trainable(tiny_backbone(dropout=0.5), "policy", AdapterConfig(kind="full"), seed=1)
    batch = batch_of(trunk)
    calm = adapter.logprobs(batch)
    adapter.train(True)
    assert torch.equal(adapter.logprobs(batch), calm)
    whole.train(True)
    assert not torch.equal(whole.logprobs(batch), calm)
    whole.train(False)
    assert torch.equal(whole.logprobs(batch), calm)


@pytest.mark.parametrize("adapter", [lora(), lora(1), AdapterConfig(kind="full")], ids=["lora", "top layer", "full"])
def test_checkpointing_gives_the_same_gradients_and_keeps_less(adapter):
    saved_bytes, gradients = [], []
    for checkpointing in (False, True):
        trunk = tiny_backbone()
        trunk = Backbone(trunk.model, trunk.chat, gradient_checkpointing=checkpointing)
        policy, batch = stir(Role.trainable(trunk, "policy", adapter, seed=1)), batch_of(trunk)
        policy.train(True)
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.numel()) or t, lambda t: t):
            loss = policy.logprobs(batch).sum()
        loss.backward()
        policy.train(False)
        saved_bytes.append(sum(sizes))
        gradients.append({name: p.grad for name, p in policy.parameters().items()})
    assert saved_bytes[1] < saved_bytes[0]
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-5, atol=1e-6, msg=name)
