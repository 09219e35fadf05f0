"""Stopped and continued is the same as never stopped: torch.equal on every weight."""

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch

from trimtab.errors import CheckpointError, Interrupted
from trimtab.models import AdapterConfig, Chat, Role
from trimtab.rollout import SamplerConfig
from trimtab.testing import chat_messages, prompts, sentences, tiny_backbone
from trimtab.trainers import (
    Checkpoints,
    DpoConfig,
    KLConfig,
    KtoConfig,
    OptimizerConfig,
    PpoConfig,
    Ranking,
    RewardConfig,
    RlRoles,
    Session,
    SftConfig,
    judged_from_rankings,
    reference_logprobs,
    train_kto,
    train_preference,
    train_reward,
    train_rl,
    train_sft,
)

ADAPTERS = {
    "lora": AdapterConfig(rank=4, alpha=8, dropout=0.1),
    "top": AdapterConfig(rank=4, alpha=8, top_layers=2),
    "full": AdapterConfig(kind="full"),
}
Trained = dict[str, torch.Tensor]


def sft(adapter: AdapterConfig, session: Session, _: Path) -> Trained:
    role = Role.trainable(tiny_backbone(dropout=0.1), "sft", adapter, seed=1)
    texts = [" ".join(text.split()[: 1 + i % 5]) for i, text in enumerate(sentences(20))]
    examples = [role.backbone.chat.conversation(chat_messages("sing", text)) for text in texts]
    train_sft(role, examples, SftConfig(batch=4, epochs=2, micro_batch_tokens=60), seed=0, session=session)
    return role.state()


def judged(chat: Chat) -> list[Ranking]:
    rankings = []
    for i, prompt in enumerate(prompts(20)):
        answers = [" ".join(text.split()[: 1 + (i + k) % 5]) for k, text in enumerate(sentences(3, start=5 * i))]
        sequences = [chat.answer(prompt.messages, text).tokens for text in answers]
        start = len(chat.prompt(prompt.messages))
        rankings.append(
            Ranking(
                id=str(i), sequences=sequences, prompt_length=start, ranks=(0, 1, 1), probability=None, margin=None,
                weight=1.0,
            )
        )  # fmt: skip
    return rankings


def reward(adapter: AdapterConfig, session: Session, _: Path) -> Trained:
    role = Role.trainable(tiny_backbone(), "reward", adapter, seed=1, scalar_head=True)
    config = RewardConfig(batch=4, epochs=2, micro_batch_tokens=200)
    train_reward(role, judged(role.backbone.chat), config, seed=0, session=session)
    return role.state()


def dpo(adapter: AdapterConfig, session: Session, folder: Path) -> Trained:
    trunk = tiny_backbone()
    policy, rankings = Role.trainable(trunk, "policy", adapter, seed=1), judged(trunk.chat)
    known = reference_logprobs(Role(trunk), rankings, folder)
    config = DpoConfig(batch=4, epochs=2, micro_batch_tokens=200)
    train_preference(policy, rankings, config, reference=known, seed=0, session=session)
    return policy.state()


def kto(adapter: AdapterConfig, session: Session, _: Path) -> Trained:
    trunk = tiny_backbone()
    policy, answers = Role.trainable(trunk, "policy", adapter, seed=1), judged_from_rankings(judged(trunk.chat))[0]
    config = KtoConfig(batch=12, epochs=2, micro_batch_tokens=200)
    train_kto(policy, Role(trunk), answers, config, seed=0, session=session)
    return policy.state()


def ppo(
    adapter: AdapterConfig, session: Session, folder: Path, shared_critic: bool = False, stop: float | None = None
) -> Trained:
    roles = RlRoles.on(tiny_backbone(), adapter, seed=1, shared_critic=shared_critic)
    config = PpoConfig(
        adapter=adapter, steps=6, prompts=4, sampler=SamplerConfig(max_new_tokens=6, slots=4),
        policy=OptimizerConfig(lr=1e-3), critic=OptimizerConfig(lr=1e-3), minibatches=2, epochs=1,
        kl=KLConfig(coefficient=0.1, target=0.5, horizon=20, stop=stop), micro_batch_tokens=60,
        shared_critic=shared_critic,
    )  # fmt: skip
    train_rl(
        roles, prompts(7), lambda rollouts: {"length": [len(r.text) / 10 for r in rollouts]}, config,
        seed=0, session=session, samples=folder / "samples",
    )  # fmt: skip
    return {f"policy/{k}": v for k, v in roles.policy.state().items()} | {
        f"critic/{k}": v for k, v in roles.critic.state().items()
    }


TRAINERS: dict[str, Callable[[AdapterConfig, Session, Path], Trained]] = {
    "sft": sft,
    "reward": reward,
    "ppo": ppo,
    "ppo with a shared critic": partial(ppo, shared_critic=True),
    "ppo with kl.stop": partial(ppo, stop=3e-5),
    "dpo": dpo,
    "kto": kto,
}
TIMES = {"time", "seconds/sample", "seconds/score", "seconds/infer", "seconds/update"}


def session(folder: Path, rows: list[dict[str, Any]], *, stop_after: int | None = None, every: int = 2) -> Session:
    return Session(
        log=lambda row: rows.append({k: v for k, v in row.items() if k not in TIMES}),
        checkpoints=Checkpoints(folder / "checkpoints", "same", every=every),
        stop_requested=lambda: stop_after is not None and rows[-1]["step"] == stop_after,
    )


Undisturbed = Callable[[str, str], tuple[Trained, list[dict[str, Any]]]]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """Weights and logged rows of a trainer with an adapter that nothing stops; each is trained once."""

    @cache
    def trained(name: str, adapter: str) -> tuple[Trained, list[dict[str, Any]]]:
        folder, rows = tmp_path_factory.mktemp("straight"), []
        return TRAINERS[name](ADAPTERS[adapter], session(folder, rows, every=100), folder), rows

    return trained


@pytest.mark.parametrize("name", TRAINERS)
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_stopped_twice_and_continued_is_bit_for_bit_the_same(name, adapter, undisturbed: Undisturbed, tmp_path: Path):
    train, pieces = TRAINERS[name], []
    wanted, straight = undisturbed(name, adapter)
    total = len(straight)
    assert total == (6 if name.startswith("ppo") else 10)
    for stop_after in (3, 5):
        with pytest.raises(Interrupted, match=rf"stopped after step {stop_after} of {total}; the state is saved"):
            train(ADAPTERS[adapter], session(tmp_path, pieces, stop_after=stop_after), tmp_path)
    result = train(ADAPTERS[adapter], session(tmp_path, pieces), tmp_path)
    assert pieces == straight  # every logged number as well
    assert name != "ppo with kl.stop" or any(row["kl_stopped"] for row in straight)
    assert result.keys() == wanted.keys()
    assert [k for k in wanted if not torch.equal(result[k], wanted[k])] == []


@pytest.mark.parametrize("name", TRAINERS)
def test_killed_between_checkpoints_repeats_from_the_last_one(name, undisturbed: Undisturbed, tmp_path: Path):
    """The process dies in step 5; the newest checkpoint is of step 4."""
    train, pieces = TRAINERS[name], []
    wanted, straight = undisturbed(name, "lora")

    class Killed(BaseException):
        pass

    dying = session(tmp_path, pieces, every=4)
    record = dying.log

    def die(row: dict[str, Any]) -> None:
        record(row)
        if row["step"] == 5:
            raise Killed

    dying.log = die
    with pytest.raises(Killed):
        train(ADAPTERS["lora"], dying, tmp_path)
    rest: list[dict[str, Any]] = []
    result = train(ADAPTERS["lora"], session(tmp_path, rest, every=4), tmp_path)
    assert rest == straight[4:]
    assert [k for k in wanted if not torch.equal(result[k], wanted[k])] == []


@pytest.mark.parametrize("name", TRAINERS)
def test_checkpoint_of_other_settings_is_refused(name, tmp_path: Path):
    pieces: list[dict[str, Any]] = []
    with pytest.raises(Interrupted):
        TRAINERS[name](ADAPTERS["lora"], session(tmp_path, pieces, stop_after=2), tmp_path)
    other = session(tmp_path, pieces)
    other.checkpoints = Checkpoints(tmp_path / "checkpoints", "changed")
    with pytest.raises(CheckpointError, match="made under another configuration or other data"):
        TRAINERS[name](ADAPTERS["lora"], other, tmp_path)
    with pytest.raises(CheckpointError, match="weights do not fit"):
        TRAINERS[name](AdapterConfig(rank=2), session(tmp_path, pieces), tmp_path)
