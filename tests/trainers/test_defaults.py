"""Learning rates that nobody set: by stage, by what is trained, by width."""

import re
from pathlib import Path

import pytest

from trimtab.errors import ConfigError
from trimtab.models import AdapterConfig, Role
from trimtab.testing import chat_messages, prompts, tiny_backbone
from trimtab.trainers import Learner, OptimizerConfig, RlooConfig, RlRoles, Session, SftConfig, train_rl, train_sft
from trimtab.trainers.defaults import RATES, default_lr, with_lr

ROOT = Path(__file__).parents[2]


def test_a_wider_model_learns_more_slowly_and_a_narrow_one_no_faster():
    assert default_lr("sft", "lora", 576) == default_lr("sft", "lora", 32) == RATES["sft"]["lora"]
    assert default_lr("sft", "lora", 4 * 576) == pytest.approx(RATES["sft"]["lora"] / 4)
    assert default_lr("policy", "full", 5760) == pytest.approx(RATES["policy"]["full"] / 10)


def test_the_guide_has_the_table():
    table = (
        (ROOT / "docs" / "how-to" / "choose-a-method.md").read_text().split("## Learning rates")[1].split("\n## ")[0]
    )
    rows = re.findall(r"^\| `(\w+)` \|[^|]*\| (\S+) \| (\S+) \|$", table, flags=re.M)
    assert {name: {"lora": float(lora), "full": float(full)} for name, lora, full in rows} == RATES


@pytest.mark.parametrize(("kind", "sft", "policy"), [("lora", 3e-4, 3e-4), ("full", 3e-5, 1e-5)])
def test_trainers_called_directly_use_them(kind, sft, policy):
    """By the role that is trained, whatever the configuration says of its adapter."""
    adapter, rows = AdapterConfig(kind=kind, rank=4), []
    session = Session(log=rows.append)
    at_once = {"schedule": "constant", "warmup": 0.0}
    backbone = tiny_backbone()
    examples = [backbone.chat.conversation(chat_messages("sing", "a blue bird"))]
    role = Role.trainable(backbone, "sft", adapter, seed=0)
    train_sft(role, examples, SftConfig(optimizer=OptimizerConfig(**at_once)), seed=0, session=session)
    roles = RlRoles.on(tiny_backbone(), adapter, seed=1, critic=False)
    settings = RlooConfig(adapter=adapter, steps=1, prompts=2, group=2, policy=OptimizerConfig(**at_once))
    train_rl(
        roles, prompts(2), lambda rs: {"it": [float(i) for i in range(len(rs))]}, settings, seed=0, session=session
    )
    assert [row["lr"] for row in rows] == pytest.approx([sft, policy])


def test_a_rate_that_is_set_stays_and_a_learner_alone_has_none():
    role = Role.trainable(tiny_backbone(), "sft", AdapterConfig(), seed=0)
    assert with_lr(OptimizerConfig(lr=0.5), "sft", role).lr == 0.5
    assert with_lr(OptimizerConfig(), "critic", role).lr == RATES["critic"]["lora"]
    with pytest.raises(ConfigError, match="lr is None, and only the trainers know a default"):
        Learner(role, OptimizerConfig(), 5)
