"""What roles compute, against Hugging Face's own logits one sequence at a time."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from trimtab.errors import ModelError
from trimtab.models import AdapterConfig, Backbone, Batch, Role, collate, head, pack
from trimtab.testing import chat_messages, sentences, tiny_backbone

from ..kit import stir

ARCHITECTURES = ["llama", "qwen2", "gpt2"]
LORA = AdapterConfig(rank=4, alpha=8)


def encoded(backbone: Backbone, count: int = 5) -> tuple[list[list[int]], list[list[bool]]]:
    """Conversations of different lengths, the assistant's tokens True."""
    texts = [" ".join(text.split()[: 2 + i]) for i, text in enumerate(sentences(count))]
    result = [backbone.chat.conversation(chat_messages("sing", text)) for text in texts]
    return [e.tokens for e in result], [e.response_mask for e in result]


def batch_of(backbone: Backbone, count: int = 5) -> Batch:
    return collate(*encoded(backbone, count), backbone.device)


@torch.no_grad()
def by_hand(model, tokens: list[int], temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Log p of every token but the first, and the entropy before it, ``[T - 1]`` each."""
    full = torch.log_softmax(model(torch.tensor([tokens])).logits[0, :-1].double() / temperature, dim=-1)
    return full[torch.arange(len(tokens) - 1), tokens[1:]], -(full.exp() * full).sum(-1)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_and_entropies_are_the_models(architecture, temperature):
    backbone = tiny_backbone(architecture)
    tokens, masks = encoded(backbone)
    logprobs, entropies = Role(backbone).logprobs_and_entropies(batch_of(backbone), temperature=temperature)
    for row, (sequence, mask) in enumerate(zip(tokens, masks, strict=True)):
        wanted, spread = by_hand(backbone.model, sequence, temperature)
        for t, own in enumerate(mask):
            if own:
                assert logprobs[row, t] == pytest.approx(float(wanted[t - 1]), abs=1e-4)
                assert entropies[row, t] == pytest.approx(float(spread[t - 1]), abs=1e-4)
            else:
                assert logprobs[row, t] == entropies[row, t] == 0
        assert (logprobs[row, len(sequence) :] == 0).all()


def test_adapter_is_the_textbook_formula():
    """Against a copy of the model whose weights are W + (alpha / rank) · B·A, added by hand."""
    backbone = tiny_backbone()
    policy = stir(Role.trainable(backbone, "policy", AdapterConfig(rank=4, alpha=12), seed=1))
    plain = tiny_backbone().model
    parameters = policy.parameters()
    result = 0
    with torch.no_grad():
        for name, module in plain.named_modules():
            if f"{name}.lora_A.adapter.weight" in parameters:
                a, b = (parameters[f"{name}.lora_{x}.adapter.weight"] for x in "AB")
                module.weight += 12 / 4 * b @ a
                result += 1
    assert result == 3 * 7  # every linear map of every layer
    tokens, masks = encoded(backbone)
    logprobs = policy.logprobs(batch_of(backbone))
    for row, (sequence, mask) in enumerate(zip(tokens, masks, strict=True)):
        wanted = by_hand(plain, sequence)[0]
        first = mask.index(True)
        torch.testing.assert_close(
            logprobs[row, first : len(sequence)].double(), wanted[first - 1 :], rtol=1e-4, atol=1e-4
        )


def gradients(one: Role, batch: Batch) -> dict[str, Tensor]:
    for parameter in one.parameters().values():
        parameter.grad = None
    one.logprobs(batch).sum().backward()
    return {name: p.grad.clone() for name, p in one.parameters().items() if p.grad is not None}


def close(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_head_in_chunks_changes_nothing(monkeypatch: pytest.MonkeyPatch):
    policy = stir(Role.trainable(tiny_backbone(), "policy", LORA, seed=1))
    batch = batch_of(policy.backbone)
    whole, entropies = policy.logprobs_and_entropies(batch)
    gradient = gradients(policy, batch)
    monkeypatch.setattr(head, "TABLE", 3 * policy.backbone.head.weight.shape[0])
    pieces, pieces_entropies = policy.logprobs_and_entropies(batch)
    torch.testing.assert_close(pieces, whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(pieces_entropies, entropies, rtol=1e-5, atol=1e-5)
    close(gradients(policy, batch), gradient)
    with torch.no_grad():
        torch.testing.assert_close(policy.logprobs(batch), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_padding_is_never_seen(architecture):
    backbone = tiny_backbone(architecture)
    batch = batch_of(backbone)
    filler = torch.full((batch.size, 17), 9)
    wide = replace(
        batch,
        tokens=torch.cat([batch.tokens, filler], dim=1),
        response_mask=torch.cat([batch.response_mask, torch.zeros_like(filler, dtype=torch.bool)], dim=1),
    )
    width = batch.tokens.shape[1]
    one = Role(backbone)
    torch.testing.assert_close(one.logprobs(wide)[:, :width], one.logprobs(batch), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_packed_rows_are_separate_rows(architecture, kind):
    backbone = tiny_backbone(architecture)
    trained = stir(Role.trainable(backbone, "policy", AdapterConfig(kind=kind, rank=4, alpha=8), seed=1), scale=0.03)
    tokens, masks = encoded(backbone, 6)
    separate = collate(tokens, masks, backbone.device)
    packed = pack(tokens, masks, 64, backbone.device)
    assert packed.size < separate.size
    apart, together = trained.logprobs(separate), trained.logprobs(packed)
    for number, sequence in enumerate(tokens):
        ours = together[packed.segments == number]
        torch.testing.assert_close(ours, apart[number, : len(sequence)], rtol=1e-4, atol=1e-5)
    close(gradients(trained, packed), gradients(trained, separate))


def test_packed_neighbours_do_not_talk():
    backbone = tiny_backbone()
    tokens, masks = encoded(backbone, 4)
    changed = [tokens[0], [(t + 7) % 300 for t in tokens[1]], *tokens[2:]]
    before = pack(tokens, masks, 128, backbone.device)
    after = pack(changed, masks, 128, backbone.device)
    segments = before.segments
    assert before.size == 1 and segments is not None
    a, b = Role(backbone).logprobs(before), Role(backbone).logprobs(after)
    assert torch.equal(a[segments != 1], b[segments != 1])
    assert not torch.allclose(a[segments == 1], b[segments == 1])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_values_and_scores_stand_where_they_should(architecture):
    """Value t reads the state at t − 1; the score reads the last real token."""
    backbone = tiny_backbone(architecture)
    critic = stir(Role.trainable(backbone, "critic", LORA, seed=1, scalar_head=True))
    tokens, masks = encoded(backbone)
    batch = batch_of(backbone)
    values, scores = critic.values(batch).detach(), critic.scores(batch).detach()
    assert critic.scalar is not None
    for row, (sequence, mask) in enumerate(zip(tokens, masks, strict=True)):
        with torch.no_grad():
            states = backbone.hidden(torch.tensor([sequence]), adapter="critic")[0]
            numbers = (states @ critic.scalar.weight[0] + critic.scalar.bias).tolist()
        assert float(scores[row]) == pytest.approx(numbers[-1], abs=1e-4)
        for t, own in enumerate(mask):
            assert float(values[row, t]) == pytest.approx(numbers[t - 1] if own else 0.0, abs=1e-4)
        assert (values[row, len(sequence) :] == 0).all()


def test_fresh_heads_say_zero():
    critic = Role.trainable(tiny_backbone(), "critic", LORA, seed=1, scalar_head=True)
    assert (critic.values(batch_of(critic.backbone)) == 0).all()


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_state_round_trip(kind):
    config = AdapterConfig(kind=kind, rank=4, alpha=8)
    trained = stir(Role.trainable(tiny_backbone(), "policy", config, seed=1, scalar_head=True))
    other = Role.trainable(tiny_backbone(seed=5 if kind == "full" else 0), "another", config, seed=2, scalar_head=True)
    batch = batch_of(trained.backbone)
    assert not torch.equal(trained.scores(batch), other.scores(batch))
    state = trained.state()
    other.load_state(state)
    assert torch.equal(trained.scores(batch), other.scores(batch))
    assert torch.equal(trained.logprobs(batch), other.logprobs(batch))
    with torch.no_grad():
        next(iter(trained.parameters().values())).zero_()
    name = next(iter(state))
    assert torch.equal(other.state()[name], state[name])  # a copy, not a view


def test_state_that_does_not_fit():
    one = Role.trainable(tiny_backbone(), "policy", LORA, seed=1)
    wide = Role.trainable(tiny_backbone(), "policy", AdapterConfig(rank=8), seed=1)
    high = Role.trainable(tiny_backbone(), "policy", AdapterConfig(rank=4, top_layers=1), seed=1)
    before = one.state()
    with pytest.raises(ModelError, match=r"lora_A.* is \(8, 32\), expected \(4, 32\)"):
        one.load_state(wide.state())
    with pytest.raises(ModelError, match=r"weights do not fit: 28 names differ"):
        one.load_state(high.state())
    assert all(torch.equal(before[name], value) for name, value in one.state().items())


def test_full_fine_tuning_trains_a_copy():
    backbone = tiny_backbone()
    before = {name: p.clone() for name, p in backbone.model.named_parameters()}
    trained = stir(Role.trainable(backbone, "policy", AdapterConfig(kind="full"), seed=1))
    assert trained.backbone is not backbone
    assert all(torch.equal(p, before[name]) for name, p in backbone.model.named_parameters())
    assert not any(p.requires_grad for p in backbone.model.parameters())
    assert set(trained.parameters()) == set(before)


def test_tied_embeddings_are_trained_once():
    trained = Role.trainable(tiny_backbone(tied=True), "policy", AdapterConfig(kind="full"), seed=1)
    assert "lm_head.weight" not in trained.parameters()
    stir(trained)
    model = trained.backbone.model
    assert model.lm_head.weight is model.model.embed_tokens.weight
    tokens, masks = encoded(trained.backbone)
    logprobs = trained.logprobs(collate(tokens, masks, trained.backbone.device))
    wanted = by_hand(model, tokens[0])[0]
    assert float(logprobs.detach()[0, len(tokens[0]) - 1]) == pytest.approx(float(wanted[-1]), abs=1e-4)
