"""Small trainings of every kind, run by one rank or by several: the table of ``test_ranks.py``."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.kit import stir
from tests.ranks import die, on_ranks
from trimtab.errors import Interrupted
from trimtab.models import AdapterConfig, Backbone, ReferenceUpdateConfig, Role
from trimtab.rollout import EnsembleConfig, RewardModels, RewardModelScorer, SamplerConfig
from trimtab.testing import chat_messages, prompts, sentences, tiny_backbone
from trimtab.trainers import (
    ALONE,
    BcoConfig,
    Checkpoints,
    DapoConfig,
    DpoConfig,
    Group,
    GrpoConfig,
    KLConfig,
    KtoConfig,
    NashMdConfig,
    OnlineDpoConfig,
    OptimizerConfig,
    PpoConfig,
    ProcessConfig,
    PtxConfig,
    Ranking,
    RejectionConfig,
    RewardConfig,
    RlooConfig,
    RlRoles,
    Session,
    SftConfig,
    XpoConfig,
    answer_logprobs,
    judged_from_rankings,
    prepared_states,
    train_kto,
    train_preference,
    train_reward,
    train_rl,
    train_sft,
)
from trimtab.trainers.process import Solution, train_process
from trimtab.trainers.rl_optional import critic_on_policy

LORA = AdapterConfig(rank=4, alpha=8)
TOP = AdapterConfig(rank=4, alpha=8, top_layers=2)
DROPPED = AdapterConfig(rank=4, alpha=8, dropout=0.2)
FULL = AdapterConfig(kind="full")
MOVING = ReferenceUpdateConfig(every=1, alpha=0.5)
STEADY = OptimizerConfig(lr=1e-3, schedule="constant", warmup=0.0)
EIGHT_BITS = STEADY.model_copy(update={"state": "8bit"})
Result = dict[str, Any]


def precise(role: Role, double: bool) -> Role:
    """The role in double precision, if asked for, with its weights moved away from where they start."""
    if double:
        role.backbone.model.double()
        if role.scalar is not None:
            role.scalar.double()
    return stir(role, scale=0.03)


def result(session: Session, rows: list[dict], *roles: Role) -> Result:
    timeless = [{k: v for k, v in row.items() if not k.startswith("seconds/")} for row in rows]
    return {"weights": [role.state() for role in roles], "metrics": timeless}


def conversations(chat: Any, count: int) -> list[Any]:
    texts = [" ".join(text.split()[: 1 + i % 5]) for i, text in enumerate(sentences(count))]
    return [chat.conversation(chat_messages("sing", text)) for text in texts]


def rankings(chat: Any, count: int) -> list[Ranking]:
    rows = []
    for i, text in enumerate(sentences(count)):
        answers = [" ".join(text.split()[: 1 + (i + k) % 5]) for k in range(2 + i % 2)]
        head = chat.prompt(chat_messages(text, "x")[:1])
        sequences = [chat.conversation(chat_messages(text, answer)).tokens for answer in answers]
        rows.append(
            Ranking(
                id=f"r{i}", sequences=sequences, prompt_length=len(head), ranks=tuple(range(len(answers))),
                probability=None, margin=None, weight=1.0 + 0.5 * (i % 2),
            )
        )  # fmt: skip
    return rows


def sft(
    group: Group,
    double: bool,
    adapter: AdapterConfig,
    *,
    packing: bool = False,
    checkpointing: bool = False,
    architecture: Any = "llama",
    optimizer: OptimizerConfig = STEADY,
    **model: Any,
) -> Result:
    backbone = tiny_backbone(architecture, **model)
    if checkpointing:
        backbone = Backbone(backbone.model, backbone.chat, gradient_checkpointing=True)
    role = precise(Role.trainable(backbone, "sft", adapter, seed=1), double)
    rows: list[dict] = []
    session = Session(log=rows.append, group=group)
    examples = conversations(role.backbone.chat, 11)  # batches of 4, 4 and 3
    train_sft(
        role,
        examples,
        SftConfig(batch=4, micro_batch_tokens=20, optimizer=optimizer, packing=packing),
        seed=0,
        session=session,
    )
    return result(session, rows, role)


def reward(group: Group, double: bool, adapter: AdapterConfig, **settings: Any) -> Result:
    role = Role.trainable(tiny_backbone(), "reward", adapter, seed=1, scalar_head=True)
    role = precise(role, double)
    rows: list[dict] = []
    session = Session(log=rows.append, group=group)
    settings.setdefault("epochs", 1.0)
    config = RewardConfig(batch=4, micro_batch_tokens=30, optimizer=STEADY, **settings)
    train_reward(role, rankings(role.backbone.chat, 10), config, seed=0, session=session)
    return result(session, rows, role)


def process(group: Group, double: bool, adapter: AdapterConfig) -> Result:
    """Solutions with one to three judged steps, some of them soft; the last batch is uneven."""
    role = precise(Role.trainable(tiny_backbone(), "process", adapter, seed=1, scalar_head=True), double)
    solutions = []
    for i, row in enumerate(conversations(role.backbone.chat, 7)):
        ends = sorted({len(row.tokens) - 1 - k for k in range(1 + i % 3)})
        targets = [(1.0, 0.25, None)[(i + k) % 3] for k in range(len(ends))]
        solutions.append(Solution(id=f"s{i}", tokens=row.tokens, ends=ends, targets=targets))
    rows: list[dict] = []
    config = ProcessConfig(adapter=adapter, optimizer=STEADY, batch=4, micro_batch_tokens=20)
    train_process(role, solutions, config, seed=0, session=Session(log=rows.append, group=group))
    return result(Session(), rows, role)


def preference(group: Group, double: bool, config: Any) -> Result:
    trunk = tiny_backbone(tied=True)
    if double:
        trunk.model.double()
    policy, start = Role.trainable(trunk, "policy", config.adapter, seed=1), Role(trunk)
    reference = answer_logprobs(start, rankings(trunk.chat, 10))
    policy = precise(policy, double)
    rows: list[dict] = []
    session = Session(log=rows.append, group=group)
    pairs = rankings(trunk.chat, 10)
    train_preference(policy, pairs, config, reference=reference, seed=0, session=session, start=start)
    assert (trunk.shards is not None) == group.shards
    return result(session, rows, policy)


def kto(group: Group, double: bool, config: KtoConfig) -> Result:
    backbone = tiny_backbone()
    if double:
        backbone.model.double()
    policy = precise(Role.trainable(backbone, "policy", config.adapter, seed=1), double)
    rows: list[dict] = []
    session = Session(log=rows.append, group=group)
    answers = judged_from_rankings(rankings(backbone.chat, 10))[0]
    train_kto(policy, Role(backbone), answers, config, seed=0, session=session)
    assert (backbone.shards is not None) == group.shards
    return result(session, rows, policy)


def ensemble(group: Group, double: bool, trunk: Backbone) -> tuple[RewardModels, list[Role]]:
    """Two reward models that are climbed and one that judges, trained on one store of the trunk's frozen states."""
    names = ("reward", "member_2", "heldout")
    roles = [Role.trainable(trunk, name, TOP, seed=5 + i, scalar_head=True) for i, name in enumerate(names)]
    roles, data = [precise(role, double) for role in roles], rankings(trunk.chat, 8)
    states = prepared_states(roles[0], data, passes=math.inf, cache_mb=64, micro_batch_tokens=30)
    config = RewardConfig(batch=4, micro_batch_tokens=30, optimizer=STEADY, epochs=1.0)
    for number, role in enumerate(roles):
        own = data[:4] if number == 2 else data[4:]
        train_reward(role, own, config, seed=number, session=Session(group=group), states=states)
    scores: list[Any] = [RewardModelScorer(role, micro_batch_tokens=60).normalised for role in roles]
    *members, judge = zip(names, scores, strict=True)
    return RewardModels(dict(members), heldout=judge[1], config=EnsembleConfig(score="worst")), roles


def online(group: Group, double: bool, config: Any, *, tied: bool = False, scored: str = "rule") -> Result:
    critic = isinstance(config, PpoConfig)
    roles = RlRoles.on(
        tiny_backbone(tied=tied), config.adapter, seed=1, critic=critic, shared_critic=critic_on_policy(config)
    )
    for role in (roles.reference, roles.critic):
        if double and role is not None:
            role.backbone.model.double()
            if role.scalar is not None:
                role.scalar.double()
    precise(roles.policy, double)
    texts: list[list[str]] = []

    def rule(rollouts: Any) -> dict[str, list[float]]:
        return {"rule": [float(sum(r.tokens) % 7) for r in rollouts]}

    scorer: Callable[..., Any] = rule
    if scored == "model":
        judge = stir(Role.trainable(roles.reference.backbone, "judge", TOP, seed=5, scalar_head=True))
        scorer = RewardModelScorer(judge, micro_batch_tokens=60)
    weights, judges = {}, list[Role]()
    if scored == "ensemble":
        models, judges = ensemble(group, double, roles.reference.backbone)
        weights = {"heldout": 0.0, "spread": 0.0}

        def combined(rollouts: Any) -> dict[str, list[float]]:
            return {"reward_model": models.reward(rollouts)} | models.watched(rollouts)

        scorer = combined

    rows: list[dict] = []
    session = Session(log=rows.append, group=group)

    def monitor(step: int, rollouts: Any) -> dict[str, float]:
        texts.append([r.text for r in rollouts])
        return {}

    chat = roles.policy.backbone.chat
    imitate = [(f"c{i}", e) for i, e in enumerate(conversations(chat, 5))]
    train_rl(
        roles, prompts(5), scorer, config, seed=3, session=session, imitate=imitate, monitor=monitor, weights=weights
    )
    assert (roles.reference.backbone.shards is not None) == group.shards
    trained = [role for role in (roles.policy, roles.critic, *judges) if role is not None]
    return result(session, rows, *trained) | {"texts": texts}


SAMPLER = SamplerConfig(max_new_tokens=6, slots=6)
STEP: dict[str, Any] = {
    "steps": 2, "prompts": 3, "group": 2, "epochs": 1, "missing_eos": None, "sampler": SAMPLER, "policy": STEADY,
    "micro_batch_tokens": 25, "guard": None,
}  # fmt: skip
PAIR: dict[str, Any] = {"batch": 4, "micro_batch_tokens": 30, "optimizer": STEADY, "epochs": 1.0}
ODD: dict[str, Any] = {"batch": 3, "micro_batch_tokens": 1}
TWICE: dict[str, Any] = {"epochs": 2.0}
ODD_STEP: dict[str, Any] = {"group": 1, "micro_batch_tokens": 1}
"""Three micro-batches: two ranks make different numbers of passes."""

CASES: dict[str, tuple[Callable[..., Result], tuple[Any, ...], dict[str, Any]]] = {
    "sft full tied": (sft, (FULL,), {"tied": True}),
    "sft lora dropout": (sft, (DROPPED,), {"dropout": 0.1}),
    "sft full dropout": (sft, (FULL,), {"dropout": 0.1, "checkpointing": True}),
    "sft full gpt2 packed": (sft, (FULL,), {"architecture": "gpt2", "packing": True}),
    "sft full 8 bits": (sft, (FULL,), {"optimizer": EIGHT_BITS, "width": 64}),
    "sft full qwen2": (sft, (FULL,), {"architecture": "qwen2", "tied": True}),
    "sft lora checkpointing": (sft, (DROPPED,), {"dropout": 0.1, "checkpointing": True, "tied": True}),
    "sft lora gpt2 packed": (sft, (LORA,), {"architecture": "gpt2", "packing": True}),
    "reward lora": (reward, (TOP,), {"centring": 0.01, "epochs": 2.0}),
    "reward full": (reward, (FULL,), {}),
    "reward probe davidson": (reward, (LORA,), {"head_init": "probe", "centring": 0.01}),
    "process lora": (process, (TOP,), {}),
    "process full": (process, (FULL,), {}),
    "dpo lora": (preference, (DpoConfig(adapter=TOP, **PAIR | TWICE),), {}),
    "dpo lora moving": (preference, (DpoConfig(adapter=TOP, reference_update=MOVING, **PAIR),), {}),
    "dpo full moving": (preference, (DpoConfig(adapter=FULL, reference_update=MOVING, **PAIR),), {}),
    "dpo full tied": (preference, (DpoConfig(adapter=FULL, **PAIR),), {}),
    "bco lora": (preference, (BcoConfig(adapter=LORA, **PAIR),), {}),
    "kto lora": (kto, (KtoConfig(adapter=TOP, **PAIR),), {}),
    "kto lora moving": (kto, (KtoConfig(adapter=LORA, reference_update=MOVING, **PAIR | ODD),), {}),
    "bco full": (preference, (BcoConfig(adapter=FULL, **PAIR | ODD),), {}),
    "kto full": (kto, (KtoConfig(adapter=FULL, **PAIR | ODD),), {}),
    "ppo lora ptx": (online, (PpoConfig(adapter=TOP, critic=STEADY, ptx=PtxConfig(batch=3), **STEP),), {}),
    "ppo lora reward model": (online, (PpoConfig(adapter=TOP, critic=STEADY, **STEP),), {"scored": "model"}),
    "ppo shared critic": (online, (PpoConfig(adapter=LORA, critic=STEADY, shared_critic=True, **STEP),), {}),
    "ppo full tied": (
        online, (PpoConfig(adapter=FULL, critic=STEADY, **STEP | ODD_STEP),), {"tied": True},
    ),
    "ppo full shared ptx": (
        online, (PpoConfig(adapter=FULL, critic=STEADY, shared_critic=True, ptx=PtxConfig(batch=3), **STEP),), {}
    ),
    "rloo full weighted": (online, (RlooConfig(adapter=FULL, importance_cap=2.0, minibatches=2, **STEP),), {}),
    "nash md full moving": (
        online, (NashMdConfig(adapter=FULL, mixture=0.4, reference_update=MOVING, **STEP),), {}
    ),
    "online dpo full": (online, (OnlineDpoConfig(adapter=FULL, **STEP),), {}),
    "xpo full": (online, (XpoConfig(adapter=FULL, **STEP),), {}),
    "rejection full": (online, (RejectionConfig(adapter=FULL, **STEP),), {}),
    "rloo lora": (online, (RlooConfig(adapter=TOP, **STEP),), {}),
    "grpo full": (online, (GrpoConfig(adapter=FULL, kl=KLConfig(coefficient=0.1, place="loss"), **STEP),), {}),
    "dapo lora": (online, (DapoConfig(adapter=LORA, resample=2, **STEP),), {}),
    "rloo weighted": (online, (RlooConfig(adapter=DROPPED, importance_cap=2.0, minibatches=2, **STEP),), {}),
    "online dpo": (online, (OnlineDpoConfig(adapter=TOP, **STEP),), {}),
    "rejection": (online, (RejectionConfig(adapter=TOP, **STEP),), {}),
    "nash md": (online, (NashMdConfig(adapter=TOP, mixture=0.4, **STEP),), {}),
    "rloo ensemble": (online, (RlooConfig(adapter=TOP, **STEP),), {"scored": "ensemble"}),
    "xpo": (online, (XpoConfig(adapter=TOP, **STEP),), {}),
}  # fmt: skip


def train(group: Group, case: str, double: bool) -> Result:
    """Run a case; what it gave."""
    work, arguments, settings = CASES[case]
    torch.manual_seed(0)
    return work(group, double, *arguments, **settings)


def apart(one: Result, other: Result) -> float:
    """The largest difference of any weight."""
    return float(differences(one, other).max())


def differences(one: Result, other: Result) -> torch.Tensor:
    """The difference of each weight."""
    assert [w.keys() for w in one["weights"]] == [w.keys() for w in other["weights"]]
    pairs = [(a[name], b[name]) for a, b in zip(one["weights"], other["weights"], strict=True) for name in a]
    return torch.cat([(a.double() - b.double()).abs().flatten() for a, b in pairs])


def trains(group: Group, cases: list[str], double: bool) -> list[Result]:
    """Several cases, one after the other."""
    return [train(group, case, double) for case in cases]


def check_equal(sizes: list[int], cases: list[str], double: bool, *, shards: bool = False) -> None:
    """Ranks end where one ends, with equal metrics and sampled texts.

    In float32 without GPT-2: the gradient of its key biases is zero but for rounding, which Adam makes a step of.
    """
    cases = [case for case in cases if double or "gpt2" not in case]
    alone = {case: train(ALONE, case, double) for case in cases}
    for size in sizes:
        ranks = on_ranks(size, trains, cases, double, shards=shards)
        for rank, results in enumerate(ranks):
            assert isinstance(results, list), results
            for case, one in zip(cases, results, strict=True):
                distance = differences(alone[case], one)
                where = f"{case}: rank {rank} of {size} is off by {float(distance.max()):g}"
                if double:
                    assert float(distance.max()) <= 1e-10, where
                else:  # Adam divides a gradient of almost 0 by its own size, rounding included: up to a whole step
                    assert float((distance > 1e-6).double().mean()) <= 1e-3, where
                    assert float(distance.max()) <= 1e-3, where
                assert apart(ranks[0][cases.index(case)], one) == 0.0, f"{case}: ranks 0 and {rank} differ"
                for row, other in zip(alone[case]["metrics"], one["metrics"], strict=True):
                    assert other == pytest.approx(row, rel=1e-4, abs=1e-5)
        for case, one in zip(cases, ranks[0], strict=True):
            assert one.get("texts") == alone[case].get("texts")


def sft_until(
    group: Group,
    folder: Path,
    stop_after: int | None,
    kill_at: int | None = None,
    *,
    full: bool = False,
    optimizer: OptimizerConfig = STEADY,
) -> Result:
    """Six steps with a checkpoint after each, until so many are done; ``full``: of all weights, in float64."""
    if full:
        width = 64 if optimizer.state == "8bit" else 32  # enough for 8 bits
        backbone = tiny_backbone(tied=True, dropout=0.1, width=width)
        role = precise(Role.trainable(backbone, "sft", FULL, seed=1), double=True)
    else:
        role = Role.trainable(tiny_backbone(), "sft", AdapterConfig(rank=4, alpha=8, dropout=0.1), seed=1)
    rows: list[dict] = []

    def stop() -> bool:  # only one rank is asked to stop; all of them do
        return group.rank == group.size - 1 and stop_after is not None and rows[-1]["step"] >= stop_after

    def log(metrics: dict) -> None:
        rows.append(metrics)
        if kill_at is not None and group.rank == 1 and metrics["step"] == kill_at:
            die()

    session = Session(
        log=log,
        checkpoints=Checkpoints(folder, "f", every=1, group=group),
        stop_requested=stop,
        group=group,
    )
    config = SftConfig(batch=4, epochs=2, micro_batch_tokens=20, optimizer=optimizer, packing=False)
    try:
        train_sft(role, conversations(role.backbone.chat, 11), config, seed=0, session=session)
    except Interrupted:
        pass
    return result(session, rows, role)
