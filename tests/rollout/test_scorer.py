"""A reward model as a scorer: which tokens it reads, and how its numbers are scaled."""

import dataclasses

import pytest
import torch

from trimtab.models import AdapterConfig, Role
from trimtab.records import Rollout
from trimtab.rollout import LocalSampler, RewardModelScorer, SamplerConfig
from trimtab.testing import prompts, tiny_backbone

from ..kit import stir


@pytest.fixture(scope="module")
def reward() -> Role:
    config = AdapterConfig(rank=4, alpha=8, top_layers=2)
    return stir(Role.trainable(tiny_backbone(), "reward", config, seed=1, scalar_head=True), scale=0.2)


@pytest.fixture(scope="module")
def rollouts(reward: Role) -> list[Rollout]:
    sampler = LocalSampler(reward.backbone, SamplerConfig(max_new_tokens=20))
    return sampler.generate(prompts(12), adapter=None, seed=0, group=2)


@torch.no_grad()
def alone(reward: Role, tokens: list[int]) -> float:
    assert reward.scalar is not None
    state = reward.backbone.hidden(torch.tensor([tokens]), adapter=reward.adapter)[0, -1]
    return float(reward.scalar(state))


def test_sees_exactly_the_tokens_that_were_produced(reward, rollouts):
    wanted = [alone(reward, r.prompt_tokens + r.tokens) for r in rollouts]
    assert RewardModelScorer(reward).raw(rollouts).tolist() == pytest.approx(wanted, abs=1e-5)
    small = RewardModelScorer(reward, micro_batch_tokens=1)(rollouts)["reward_model"]
    assert small == pytest.approx(wanted, abs=1e-5)


def test_normalised_by_mean_and_standard_deviation(reward, rollouts):
    wanted = [(alone(reward, r.prompt_tokens + r.tokens) - 0.5) / 2.0 for r in rollouts]
    assert RewardModelScorer(reward, mean=0.5, std=2.0)(rollouts) == {"reward_model": pytest.approx(wanted, abs=1e-5)}


def test_model_with_its_own_tokenizer_reads_the_text(reward, rollouts):
    """The answer is rendered anew: an answer in other tokens but the same words scores the same."""
    chat = reward.backbone.chat
    spelled = [*(t for c in "warm tea" for t in chat.tokenizer.encode(c)), chat.end_token]
    whole = [*chat.tokenizer.encode("warm tea"), chat.end_token]
    assert spelled != whole
    one, other = (
        dataclasses.replace(rollouts[0], tokens=tokens, text="warm tea", finish_reason="stop")
        for tokens in (spelled, whole)
    )
    by_text = RewardModelScorer(reward, same_tokens=False)
    assert by_text.raw([one]).item() == by_text.raw([other]).item()
    assert by_text.raw([one]).item() == pytest.approx(alone(reward, other.prompt_tokens + whole), abs=1e-5)
    by_token = RewardModelScorer(reward)
    assert by_token.raw([one]).item() != pytest.approx(by_token.raw([other]).item(), abs=1e-3)


def test_cut_answer_is_not_shown_an_end_it_never_had(reward, rollouts):
    chat = reward.backbone.chat
    tokens = chat.tokenizer.encode("warm tea")
    cut = dataclasses.replace(rollouts[0], tokens=tokens, text="warm tea", finish_reason="length")
    wanted = alone(reward, cut.prompt_tokens + tokens)
    for same in (True, False):
        assert RewardModelScorer(reward, same_tokens=same).raw([cut]).item() == pytest.approx(wanted, abs=1e-5)


def test_nothing_to_score(reward):
    assert RewardModelScorer(reward)([]) == {"reward_model": []}
