"""Sampling, against Hugging Face's own generation and logits."""

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from trimtab.errors import DataError
from trimtab.models import AdapterConfig, Backbone, FrozenStates, Role, scatter
from trimtab.records import Prompt, Rollout, read_records, write_records
from trimtab.rollout import LocalSampler, SamplerConfig
from trimtab.rollout.drawing import nucleus
from trimtab.rollout.sampler import _shared_start
from trimtab.testing import prompts, tiny_backbone
from trimtab.trainers import tokens_of

from ..kit import stir

ARCHITECTURES = ["llama", "qwen2", "gpt2"]


def sample(
    backbone: Backbone,
    given_prompts: list[Prompt],
    *,
    group: int = 1,
    seed: int = 0,
    states: FrozenStates | None = None,
    **settings,
) -> list[Rollout]:
    adapter = settings.pop("adapter", None)
    config = SamplerConfig(**({"max_new_tokens": 12} | settings))
    return LocalSampler(backbone, config).generate(
        given_prompts, adapter=adapter, seed=seed, group=group, states=states
    )


def drawn(rollouts: list[Rollout]) -> dict[str, list[int]]:
    return {r.id: r.tokens for r in rollouts}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_what_the_trainer_computes(architecture, temperature):
    backbone = tiny_backbone(architecture)
    policy = stir(Role.trainable(backbone, "policy", AdapterConfig(rank=4, alpha=8), seed=1), scale=0.05)
    rollouts = sample(backbone, prompts(6), group=3, adapter="policy", temperature=temperature, slots=7)
    batch = tokens_of(rollouts, backbone.device)
    with torch.no_grad():
        again = policy.logprobs(batch, temperature=temperature)
        reference = Role(backbone).logprobs(batch, temperature=temperature)
    sampled = scatter([r.logprobs for r in rollouts], batch.response_mask)
    torch.testing.assert_close(sampled, again, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(again, reference, atol=1e-2)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_is_hugging_faces_token_by_token(architecture):
    backbone = tiny_backbone(architecture)
    rollouts = sample(backbone, prompts(5), temperature=0.0, max_new_tokens=20, slots=3)
    for rollout in rollouts:
        questions = torch.tensor([rollout.prompt_tokens])
        theirs = backbone.model.generate(
            questions, attention_mask=torch.ones_like(questions), do_sample=False, max_new_tokens=20,
        )[0, questions.shape[1] :].tolist()  # fmt: skip
        assert rollout.tokens == theirs
    batch = tokens_of(rollouts, backbone.device)
    sampled = scatter([r.logprobs for r in rollouts], batch.response_mask)
    torch.testing.assert_close(sampled, Role(backbone).logprobs(batch).detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (1.0, 0.6)])
def test_first_tokens_follow_the_softmax(temperature, top_p):
    """Pearson's χ² of 4,000 draws against probabilities from Hugging Face's logits."""
    backbone, questions, n = tiny_backbone(), prompts(1), 4000
    rollouts = sample(backbone, questions, group=n, temperature=temperature, top_p=top_p, max_new_tokens=1, slots=n)
    with torch.no_grad():
        logits = backbone.model(torch.tensor([rollouts[0].prompt_tokens])).logits[0, -1].double() / temperature
    wanted = torch.softmax(logits, dim=-1).tolist()
    if top_p < 1.0:
        nucleus_tokens, mass = set[int](), 0.0
        for token in sorted(range(len(wanted)), key=lambda t: -wanted[t]):
            nucleus_tokens.add(token)
            mass += wanted[token]
            if mass >= top_p:
                break
        wanted = [p / mass if t in nucleus_tokens else 0.0 for t, p in enumerate(wanted)]
    counts = [0] * len(wanted)
    for rollout in rollouts:
        token = rollout.tokens[0]
        counts[token] += 1
        assert rollout.logprobs[0] == pytest.approx(torch.tensor(wanted[token]).log().item(), abs=1e-4)
    common = [t for t, p in enumerate(wanted) if n * p >= 5]
    bins = [(counts[t], n * wanted[t]) for t in common]
    rest = n - sum(e for _, e in bins)
    if rest > 1:
        bins.append((n - sum(c for c, _ in bins), rest))
    statistic = sum((c - e) ** 2 / e for c, e in bins)
    freedom = len(bins) - 1
    assert abs(statistic - freedom) < 4 * (2 * freedom) ** 0.5  # χ² has mean k and variance 2k


def test_equal_seeds_equal_answers_and_others_differ():
    backbone, questions = tiny_backbone(), prompts(4)
    first = sample(backbone, questions, group=2, seed=3)
    assert first == sample(backbone, questions, group=2, seed=3)
    assert drawn(first) != drawn(sample(backbone, questions, group=2, seed=4))


@pytest.mark.parametrize("slots", [1, 2, 3, 5, 64])
def test_answer_does_not_depend_on_its_company(slots):
    backbone, questions = tiny_backbone(), prompts(7)
    everyone = sample(backbone, questions, slots=64)
    assert drawn(sample(backbone, questions, slots=slots)) == drawn(everyone)
    assert drawn(sample(backbone, questions[::-1], slots=slots)) == drawn(everyone)
    alone = [r for p in questions for r in sample(backbone, [p], slots=slots)]
    assert drawn(alone) == drawn(everyone)
    for a, b in zip(alone, everyone, strict=True):
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)


def test_groups_fork_one_prompt():
    backbone, questions = tiny_backbone(), prompts(3)
    four, two = sample(backbone, questions, group=4, slots=5), sample(backbone, questions, group=2, slots=64)
    assert [r.prompt.id for r in four] == [p.id for p in questions for _ in range(4)]
    assert [r.id for r in four] == [f"{p.id}/0/{i}" for p in questions for i in range(4)]
    assert drawn(two).items() <= drawn(four).items()
    for start in range(0, 12, 4):
        assert len({tuple(r.tokens) for r in four[start : start + 4]}) == 4


def test_group_larger_than_the_slots():
    backbone, questions = tiny_backbone(), prompts(2)
    assert drawn(sample(backbone, questions, group=5, slots=2)) == drawn(sample(backbone, questions, group=5, slots=64))


def test_finish_reasons_and_length_limit():
    backbone = tiny_backbone()
    rollouts = sample(backbone, prompts(16), group=4, max_new_tokens=30)
    ends = backbone.chat.end_tokens
    assert {r.finish_reason for r in rollouts} == {"stop", "length"}
    for rollout in rollouts:
        assert not ends & set(rollout.tokens[:-1])
        assert len(rollout.logprobs) == len(rollout.tokens) <= 30
        assert rollout.prompt_tokens == backbone.chat.prompt(rollout.prompt.messages)
        assert rollout.text == backbone.chat.decode(rollout.tokens)
        if rollout.finish_reason == "stop":
            assert rollout.tokens[-1] in ends
        else:
            assert len(rollout.tokens) == 30 and rollout.tokens[-1] not in ends


def test_progress_and_weight_version():
    seen = []
    rollouts = LocalSampler(tiny_backbone(), SamplerConfig(max_new_tokens=3)).generate(
        prompts(3),
        adapter=None,
        seed=0,
        group=2,
        weight_version=7,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert {r.weight_version for r in rollouts} == {7}
    assert seen == [(i, 6) for i in range(1, 7)]


def test_rollouts_survive_a_file(tmp_path: Path):
    rollouts = sample(tiny_backbone(), prompts(3), group=2)
    rollouts[0].rewards["reward_model"] = 0.1 + 0.2
    write_records(tmp_path / "rollouts.jsonl", rollouts)
    assert read_records(tmp_path / "rollouts.jsonl", Rollout) == rollouts  # log-probabilities to the last bit


def test_sampling_leaves_weights_and_random_stream_alone():
    backbone = tiny_backbone()
    stir(Role.trainable(backbone, "policy", AdapterConfig(rank=4), seed=1))
    before = {name: p.detach().clone() for name, p in backbone.model.named_parameters()}
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    sample(backbone, prompts(2), adapter="policy")
    assert torch.equal(torch.rand(2), expected)
    assert all(torch.equal(p, before[name]) for name, p in backbone.model.named_parameters())


def test_no_prompts_no_answers():
    assert sample(tiny_backbone(), []) == []


def test_prompt_that_leaves_no_room():
    backbone, [prompt] = tiny_backbone(context=64), prompts(1)
    room = 64 - len(backbone.chat.prompt(prompt.messages))
    assert len(sample(backbone, [prompt], max_new_tokens=room)) == 1
    with pytest.raises(DataError, match=rf"prompt {prompt.id} has \d+ tokens.*exceeds model\.context 64"):
        sample(backbone, [prompt], max_new_tokens=room + 1)


def test_nucleus_by_hand():
    logprobs = torch.tensor([[0.15, 0.5, 0.05, 0.3]]).log()
    for top_p, expected in ((0.45, [0, 1, 0, 0]), (0.7, [0, 0.625, 0, 0.375]), (0.81, [15 / 95, 50 / 95, 0, 30 / 95])):
        torch.testing.assert_close(nucleus(logprobs, top_p).softmax(-1), torch.tensor([expected], dtype=torch.float32))


def test_a_prompt_given_twice_gets_two_answers():
    backbone, [prompt] = tiny_backbone(), prompts(1)
    twice = sample(backbone, [prompt, prompt], max_new_tokens=12)
    assert twice[0].tokens != twice[1].tokens and twice[0].id != twice[1].id
    assert [r.tokens for r in sample(backbone, [prompt], group=2, max_new_tokens=12)] == [r.tokens for r in twice]


def test_what_all_prompts_begin_with_runs_once(monkeypatch: pytest.MonkeyPatch):
    backbone, questions, shapes = tiny_backbone(), prompts(5), []
    base, forward = backbone.model.base_model, backbone.model.base_model.forward

    def count(*args, **kwargs):
        shapes.append(tuple(kwargs["input_ids"].shape))
        return forward(*args, **kwargs)

    tokens = [backbone.chat.prompt(p.messages) for p in questions]
    shared = next(i for i in range(min(map(len, tokens))) if len({t[i] for t in tokens}) > 1)
    assert shared >= 4
    sampler = LocalSampler(backbone, SamplerConfig(max_new_tokens=4))
    sampler.generate(questions[:1], adapter=None, seed=0)  # the first call looks how the model is decoded
    monkeypatch.setattr(base, "forward", count)
    together = sampler.generate(questions, adapter=None, seed=0)
    assert shapes[:2] == [(1, shared), (5, max(map(len, tokens)) - shared)]
    monkeypatch.setattr("trimtab.rollout.sampler.SHORTEST_PREFIX", 1000)
    shapes.clear()
    assert drawn(sampler.generate(questions, adapter=None, seed=0)) == drawn(together)
    assert shapes[0] == (5, max(map(len, tokens)))


def test_prompts_where_one_is_the_start_of_the_other():
    assert _shared_start([[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6, 7]]) == 5
    assert _shared_start([[1, 2, 3, 4, 5, 6]] * 3) == 5
    assert _shared_start([[1, 2, 3, 4, 5, 6], [1, 2, 3, 9, 9, 9]]) == 3
    assert _shared_start([[1, 2, 3]]) == 0


# What frozen layers give on the way ---------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
@pytest.mark.parametrize(
    "settings",
    [
        {"group": 3, "slots": 4},
        {"slots": 3, "temperature": 0.7},
        {"group": 2, "max_new_tokens": 1},
        {"group": 2, "slots": 5, "stop": ("e", "a")},
    ],
)
def test_states_of_frozen_layers_are_those_of_a_pass_of_their_own(architecture, settings):
    plain, trunk, questions = tiny_backbone(architecture), tiny_backbone(architecture), prompts(6)
    stir(Role.trainable(trunk, "other", AdapterConfig(rank=4, alpha=8, top_layers=1), seed=1))
    none, states = FrozenStates(plain), FrozenStates(trunk)
    rollouts = sample(trunk, questions, states=states, **settings)
    # Reading the last token changes no answer.
    assert drawn(rollouts) == drawn(sample(plain, questions, states=none, **settings))
    assert len(none) == 0 and len(states) == len({tuple(r.prompt_tokens + r.tokens) for r in rollouts})
    batch = tokens_of(rollouts, trunk.device)
    result, expected = states.of(batch), FrozenStates(trunk).of(batch)
    assert (states.hits, states.computed) == (batch.size, 0)
    assert result is not None and expected is not None
    for row, length in enumerate(batch.lengths.tolist()):
        torch.testing.assert_close(result[row, :length], expected[row, :length], rtol=1e-4, atol=1e-5)


def test_states_of_some_rows_only():
    trunk, questions = tiny_backbone(), prompts(6)
    Role.trainable(trunk, "other", AdapterConfig(rank=4, alpha=8, top_layers=1), seed=1)
    whole, half = FrozenStates(trunk), FrozenStates(trunk)
    rollouts = sample(trunk, questions, group=2, states=whole)
    sample(trunk, questions[1:4], group=2, states=half)
    batch = tokens_of(rollouts, trunk.device)
    results = [states.of(batch) for states in (whole, half, FrozenStates(trunk))]
    assert half.hits == 6 and half.computed == 6
    for row, length in enumerate(batch.lengths.tolist()):
        for other in results[1:]:
            torch.testing.assert_close(other[row, :length], results[0][row, :length], rtol=1e-4, atol=1e-5)


def test_an_error_leaves_no_hook_behind():
    trunk = tiny_backbone()
    Role.trainable(trunk, "other", AdapterConfig(rank=4, alpha=8, top_layers=1), seed=1)

    def fails(states: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("on purpose")

    sampler = LocalSampler(trunk, SamplerConfig(max_new_tokens=4))
    with pytest.raises(RuntimeError, match="on purpose"):
        sampler.generate(prompts(2), adapter=None, seed=0, states=FrozenStates(trunk), value_head=fails)
    assert not any(layer._forward_hooks for layer in trunk.layers)


# Stop strings --------------------------------------------------------------------------------------


def test_an_answer_ends_at_a_stop_string():
    backbone, questions = tiny_backbone(), prompts(6)
    free = LocalSampler(backbone, SamplerConfig(max_new_tokens=24)).generate(questions, adapter=None, seed=3)
    target = next(r for r in free if len(r.text) > 8)
    stop = target.text[4:6]
    bound = LocalSampler(backbone, SamplerConfig(max_new_tokens=24, stop=(stop, "never said"))).generate(
        questions, adapter=None, seed=3
    )
    for one, other in zip(free, bound, strict=True):
        if stop in one.text:
            assert other.text == one.text[: one.text.index(stop)].strip()
            assert other.tokens == one.tokens[: len(other.tokens)]  # what was drawn is the same, up to the stop
            assert stop in backbone.chat.decode(other.tokens) and stop not in backbone.chat.decode(other.tokens[:-1])
            assert other.finish_reason == "stop"
        else:
            assert other.tokens == one.tokens


def test_white_space_can_be_a_stop_string():
    """A line break ends the answer when it is drawn, not when something follows it."""
    backbone, questions = tiny_backbone(), prompts(48)

    def said(tokens: list[int]) -> str:
        return backbone.chat.decode(tokens, strip=False)

    free = LocalSampler(backbone, SamplerConfig(max_new_tokens=24)).generate(questions, adapter=None, seed=3)
    bound = LocalSampler(backbone, SamplerConfig(max_new_tokens=24, stop=("\n",))).generate(
        questions, adapter=None, seed=3
    )
    stopped = [o for f, o in zip(free, bound, strict=True) if "\n" in said(f.tokens)]
    assert stopped
    for other in stopped:
        assert other.finish_reason == "stop"
        assert "\n" in said(other.tokens) and "\n" not in said(other.tokens[:-1])
        assert other.text == said(other.tokens).partition("\n")[0].strip()
    with pytest.raises(ValidationError, match="at least 1 character"):
        SamplerConfig(stop=("",))
