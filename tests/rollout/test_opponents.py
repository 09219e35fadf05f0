"""The geometric mixture of policy and reference, token by token, against both models run by themselves."""

import pytest
import torch

from trimtab.algos import mixture_logits
from trimtab.errors import ConfigError
from trimtab.models import AdapterConfig, Role
from trimtab.rollout import MixtureOpponent, SamplerConfig
from trimtab.testing import prompts, tiny_backbone

from ..kit import stir

CONFIG = SamplerConfig(max_new_tokens=6, temperature=0.8, slots=3)


def roles(adapter: str = "lora", architecture: str = "llama") -> tuple[Role, Role]:
    backbone = tiny_backbone(architecture)
    config = AdapterConfig(kind="full") if adapter == "full" else AdapterConfig(rank=4, alpha=8)
    return stir(Role.trainable(backbone, "policy", config, seed=1)), Role(backbone)


def logits(role: Role, tokens: list[int]) -> torch.Tensor:
    role.backbone.activate(role.adapter)
    with torch.no_grad():
        return role.backbone.model(torch.tensor([tokens])).logits[0]


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_reported_log_probabilities_are_the_mixture_s(adapter: str, share: float):
    policy, reference = roles(adapter)
    drawn = MixtureOpponent(policy, reference, CONFIG, share=share).draw(prompts(3), seed=5, group=2, weight_version=4)
    assert len({r.id for r in drawn}) == 6 and all(r.id.endswith("/opponent") for r in drawn)
    assert [r.prompt.id for r in drawn] == [p.id for p in prompts(3) for _ in range(2)]
    assert {r.weight_version for r in drawn} == {4}
    for r in drawn:
        tokens, start = r.prompt_tokens + r.tokens, len(r.prompt_tokens)
        both = [torch.log_softmax(logits(role, tokens), -1)[start - 1 : -1] for role in (policy, reference)]
        mixed = torch.log_softmax(((1 - share) * both[0] + share * both[1]) / CONFIG.temperature, -1)
        expected = mixed.gather(-1, torch.tensor(r.tokens)[:, None]).squeeze(-1)
        assert r.logprobs == pytest.approx(expected.tolist(), abs=1e-4)


def test_whole_rows_give_the_same_answers_as_a_cache(monkeypatch: pytest.MonkeyPatch):
    policy, reference = roles()
    opponent = MixtureOpponent(policy, reference, CONFIG, share=0.5)
    cached = opponent.draw(prompts(3), seed=5)
    monkeypatch.setattr("trimtab.rollout.opponents._reader", lambda role, rows, room: _whole(role, rows))
    again = opponent.draw(prompts(3), seed=5)
    assert [r.tokens for r in again] == [r.tokens for r in cached]
    assert [r.tokens for r in opponent.draw(prompts(3), seed=6)] != [r.tokens for r in cached]


def test_an_answer_depends_on_its_prompt_and_place_alone():
    """So several processes that divide the prompts draw what one draws; a prompt given twice gets other answers."""
    policy, reference = roles()
    opponent = MixtureOpponent(policy, reference, CONFIG, share=0.5)
    first, second, third = prompts(3)
    together = opponent.draw([first, second, third], seed=5, group=2)
    apart = opponent.draw([second], seed=5, group=2) + opponent.draw([third, third], seed=5, group=2)
    assert [r.id for r in together[2:]] == [r.id for r in apart[:4]] and len({r.id for r in apart}) == 6
    assert [r.tokens for r in together[2:]] == [r.tokens for r in apart[:4]]
    assert [r.tokens for r in apart[4:]] != [r.tokens for r in apart[2:4]]


def _whole(role: Role, rows: list[list[int]]):
    from trimtab.rollout.opponents import _WholeRows

    return _WholeRows(role, rows)


def test_tokens_are_as_frequent_as_the_mixture_says():
    policy, reference = roles()
    with torch.no_grad():
        reference.backbone.head.weight *= 4  # far from uniform
    [prompt] = prompts(1)
    config = SamplerConfig(max_new_tokens=1, slots=500)
    drawn = MixtureOpponent(policy, reference, config, share=0.5).draw([prompt], seed=0, group=2000)
    tokens = drawn[0].prompt_tokens
    both = [logits(role, tokens)[-1:] for role in (policy, reference)]
    expected = torch.softmax(mixture_logits(*both, share=0.5), -1)[0]
    counts = torch.bincount(torch.tensor([r.tokens[0] for r in drawn]), minlength=len(expected)) / 2000
    assert float((counts - expected).abs().max()) < 4 * (0.25 / 2000) ** 0.5  # four standard errors at most


def test_a_share_beyond_a_mixture():
    with pytest.raises(ConfigError, match=r"share is 1\.5"):
        mixture_logits(torch.zeros(1, 2), torch.zeros(1, 2), share=1.5)
