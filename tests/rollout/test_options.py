"""Scores with shared beginnings are those of separate forward passes."""

import random

import pytest
import torch

from trimtab.models import AdapterConfig, Role
from trimtab.rollout import option_logprobs
from trimtab.testing import tiny_backbone

from ..kit import stir


def separate(backbone, prompt: list[int], option: list[int]) -> float:
    """By the plain model, one sequence at a time."""
    with torch.no_grad():
        logits = backbone.model(torch.tensor([prompt + option])).logits[0]
    logprobs = logits.log_softmax(-1)
    return sum(float(logprobs[len(prompt) - 1 + n, token]) for n, token in enumerate(option))


def questions(seed: int, common: int, groups: int, each: int) -> tuple[list[list[int]], list[list[list[int]]]]:
    r = random.Random(seed)

    def some(low: int, high: int) -> list[int]:
        return [r.randrange(200) for _ in range(r.randint(low, high))]

    start, prompts = some(common, common), []
    for _ in range(groups):
        middle = some(9, 20)
        prompts += [start + middle + some(1, 12) for _ in range(each)]
    r.shuffle(prompts)
    return prompts, [[[7], [8, 9], [8, 10, 11]] for _ in prompts]


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2"])
@pytest.mark.parametrize(("common", "groups", "each"), [(30, 5, 4), (0, 3, 2), (2, 1, 1), (12, 6, 1)])
def test_equal_to_separate_passes(architecture, common: int, groups: int, each: int):
    backbone = tiny_backbone(architecture)
    prompts, options = questions(0, common, groups, each)
    for budget in (64, 4096):
        result = option_logprobs(backbone, prompts, options, micro_batch_tokens=budget)
        for prompt, given, scores in zip(prompts, options, result, strict=True):
            assert scores == pytest.approx([separate(backbone, prompt, option) for option in given], abs=1e-4)


def test_prompts_that_are_alike_or_begin_another():
    backbone = tiny_backbone()
    prompts = [[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6, 7], [1], [9, 8]]
    options = [[[5]], [[6, 7]], [[5]], [[2, 3]], [[1], [1]]]
    result = option_logprobs(backbone, prompts, options)
    for prompt, given, scores in zip(prompts, options, result, strict=True):
        assert scores == pytest.approx([separate(backbone, prompt, o) for o in given], abs=1e-4)
    assert option_logprobs(backbone, [], []) == []


def test_longer_than_a_tree_and_with_an_adapter():
    backbone = tiny_backbone(context=1300)
    r = random.Random(1)
    long = [r.randrange(200) for _ in range(1100)]
    prompts, options = [long, [*long[:600], 1, 2], [*long[:20], 5]], [[[3]], [[3]], [[3]]]
    role = stir(Role.trainable(backbone, "judge", AdapterConfig(rank=4, alpha=8, top_layers=2), seed=0))
    for adapter in (None, role.adapter):
        result = option_logprobs(backbone, prompts, options, adapter=adapter)
        backbone.activate(adapter)
        assert [s for (s,) in result] == pytest.approx([separate(backbone, p, [3]) for p in prompts], abs=1e-4)


def test_results_are_told_pass_by_pass_and_once():
    told: list[dict[int, list[float]]] = []
    prompts, options = questions(0, 10, 6, 2)
    backbone = tiny_backbone()
    result = option_logprobs(backbone, prompts, options, micro_batch_tokens=32, report=lambda x: told.append(dict(x)))
    assert len(told) > 1 and sum(map(len, told)) == len(prompts)
    assert {k: v for part in told for k, v in part.items()} == dict(enumerate(result))


def test_what_many_begin_with_runs_once():
    """Three principles of 24 tokens, each with 20 questions of 6 to 9 tokens, after a common start of 30."""
    backbone, r = tiny_backbone(), random.Random(3)
    common = [r.randrange(200) for _ in range(30)]
    principles = [[n, *(r.randrange(200) for _ in range(23))] for n in range(3)]
    prompts = [common + p + [r.randrange(200) for _ in range(r.randint(6, 9))] for p in principles for _ in range(20)]
    options = [[[7], [8]]] * len(prompts)
    read = 0

    def count(module, args, kwargs):
        nonlocal read
        read += kwargs["input_ids"].numel()

    hook = backbone.model.base_model.register_forward_pre_hook(count, with_kwargs=True)
    result = option_logprobs(backbone, prompts, options)
    hook.remove()
    assert 30 + 3 * 24 + 60 * 6 <= read <= 30 + 3 * 24 + 60 * 9
    for prompt, scores in zip(prompts, result, strict=True):
        assert scores == pytest.approx([separate(backbone, prompt, [o]) for o in (7, 8)], abs=1e-4)
