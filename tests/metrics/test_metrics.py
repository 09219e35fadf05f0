"""Every number that is logged or shown has an entry in the table, and every entry is of a number that exists."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from trimtab.evals import PANELS, RewardModelEval, probe_table
from trimtab.evals.capability import LIMITS
from trimtab.evals.reward_model import BASELINES
from trimtab.feedback import agreement_report
from trimtab.metrics import AGREEMENT, CAPABILITY, GROUPS, PROBES, REWARD_MODEL, TRAINING, live_line, training_metric
from trimtab.models import AdapterConfig, Backbone, Role
from trimtab.records import Completion, Prompt, Rollout
from trimtab.records.annotation import StepLabel
from trimtab.records.weights import WATCHED
from trimtab.rollout import SamplerConfig
from trimtab.storage import MetricsLog, read_metrics
from trimtab.testing import chat_messages, prompts, tiny_backbone
from trimtab.trainers import (
    ConstraintConfig,
    DapoConfig,
    DpoConfig,
    KLConfig,
    KtoConfig,
    LengthConfig,
    NashMdConfig,
    OnlineDpoConfig,
    PpoConfig,
    ProcessConfig,
    PtxConfig,
    Ranking,
    RejectionConfig,
    RewardConfig,
    RlConfig,
    RlooConfig,
    RlRoles,
    Session,
    SftConfig,
    XpoConfig,
    answer_logprobs,
    encode_solutions,
    judged_from_rankings,
    train_kto,
    train_preference,
    train_process,
    train_reward,
    train_rl,
    train_sft,
)

ROOT = Path(__file__).parents[2]
LORA = AdapterConfig(rank=2)
COMMON = {
    "adapter": LORA,
    "steps": 1,
    "prompts": 2,
    "sampler": SamplerConfig(temperature=1.0, max_new_tokens=4),
    "guard": None,
}
ONLINE: dict[str, RlConfig] = {
    "ppo": PpoConfig(**COMMON),
    "ppo, everything on": PpoConfig(
        **COMMON, shared_critic=True, score_clip=1.0, ptx=PtxConfig(), epochs=2, kl=KLConfig(stop=0.5)
    ),
    "rloo": RlooConfig(**COMMON, group=2),
    "rloo, k3 in the loss": RlooConfig(**COMMON, group=2, kl=KLConfig(place="loss", estimator="k3")),
    "rloo, weights masked, cut answers left out": RlooConfig(
        **COMMON, group=2, missing_eos=None, overlong_filter=True, importance_cap=2.0, importance_beyond="mask"
    ),
    "rloo, a cost with a limit": RlooConfig(
        **COMMON, group=2, running_scale=True, constraint=ConstraintConfig(reward="half", limit=0.2)
    ),
    "rloo, answers one step old": RlooConfig(**COMMON, group=2, one_step_off=True),
    "dapo": DapoConfig(**COMMON, group=2, resample=1),
    "online_dpo": OnlineDpoConfig(**COMMON, group=2),
    "nash_md": NashMdConfig(**COMMON),
    "xpo": XpoConfig(**COMMON),
    "rejection": RejectionConfig(**COMMON, group=2, keep=1),
}


def rankings(backbone: Backbone) -> list[Ranking]:
    """Four pairs of answers."""
    made = []
    for number, prompt in enumerate(prompts(4)):
        head = backbone.chat.prompt(prompt.messages)
        both = [backbone.chat.answer(prompt.messages, text).tokens for text in ("a blue bird", "the sea")]
        made.append(
            Ranking(
                id=str(number),
                sequences=both,
                prompt_length=len(head),
                ranks=(0, 1),
                probability=None,
                margin=None,
                weight=1.0,
            )
        )
    return made


def half(rollouts: Sequence[Rollout]) -> dict[str, list[float]]:
    """A reward that differs within each group, and what several reward models would be asked beside it."""
    return {"half": [float(i % 2) for i in range(len(rollouts))]} | dict.fromkeys(WATCHED, [0.0] * len(rollouts))


def train_online(config: RlConfig, session: Session) -> None:
    backbone = tiny_backbone()
    ppo = isinstance(config, PpoConfig)
    roles = RlRoles.on(backbone, LORA, seed=0, critic=ppo, shared_critic=ppo and config.shared_critic)
    imitate = [("0", backbone.chat.conversation(chat_messages("sing", "a blue bird")))]
    train_rl(
        roles,
        prompts(4),
        half,
        config,
        seed=0,
        session=session,
        weights=dict.fromkeys(WATCHED, 0.0),
        monitor=lambda step, rollouts: {"gold": 0.0, "alarms": 0.0, "probe/flattery": 0.0},
        imitate=imitate,
    )


def train_offline(name: str, session: Session) -> None:
    backbone = tiny_backbone()
    pairs = rankings(backbone)
    scalar, heads = name.startswith(("reward", "process")), 2 if "length" in name else 1
    role = Role.trainable(backbone, name, LORA, seed=0, scalar_head=scalar, heads=heads)
    match name:
        case "sft":
            rows = [backbone.chat.conversation(chat_messages("sing", "a blue bird"))] * 2
            train_sft(role, rows, SftConfig(adapter=LORA, batch=2), seed=0, session=session)
        case "reward":
            train_reward(role, pairs, RewardConfig(adapter=LORA, batch=4), seed=0, session=session)
        case "reward, a head for length":
            config = RewardConfig(adapter=LORA, batch=4, length=LengthConfig())
            train_reward(role, pairs, config, seed=0, session=session)
        case "process":
            labels = [StepLabel(id=str(n), prompt=p, steps=("a", "b"), first_wrong=n) for n, p in enumerate(prompts(2))]
            solutions, _, _ = encode_solutions(backbone.chat, labels, "\n")
            train_process(role, solutions, ProcessConfig(adapter=LORA), seed=0, session=session)
        case "dpo":
            known = answer_logprobs(Role(backbone), pairs)
            train_preference(role, pairs, DpoConfig(adapter=LORA), reference=known, seed=0, session=session)
        case "kto":
            judged, _ = judged_from_rankings(pairs)
            train_kto(role, Role(backbone), judged, KtoConfig(adapter=LORA), seed=0, session=session)


OFFLINE = ("sft", "reward", "reward, a head for length", "process", "dpo", "kto")
TRAININGS: dict[str, Callable[[Session], None]] = {
    **{name: lambda session, c=config: train_online(c, session) for name, config in ONLINE.items()},
    **{name: lambda session, n=name: train_offline(n, session) for name in OFFLINE},
}


@pytest.fixture(scope="module")
def logged(tmp_path_factory) -> dict[str, set[str]]:
    """Keys in ``metrics.jsonl`` after each tiny training."""
    keys = {}
    for name, train in TRAININGS.items():
        folder = tmp_path_factory.mktemp("metrics")
        log = MetricsLog(folder, 0)
        train(Session(log=log))
        log.close()
        keys[name] = {key for row in read_metrics(folder / "metrics.jsonl") for key in row}
    return keys


@pytest.mark.parametrize("training", TRAININGS)
def test_every_logged_key_has_an_entry(training, logged):
    assert {"step", "time"} < logged[training]
    assert [key for key in sorted(logged[training]) if training_metric(key) is None] == []


def test_every_entry_is_logged_by_some_training(logged):
    keys = set.union(*logged.values())
    general = {"reward/NAME": "reward/half", "probe/NAME": "probe/flattery", "seconds/PHASE": "seconds/update"}
    assert [key for key in TRAINING if general.get(key, key) not in keys] == []


def test_the_live_line_shows_what_a_person_watches():
    line = live_line({"kl": 1.26, "reward": 0.5, "length": 12.0, "lr": 1e-4, "gold": -1.0})
    assert line == "reward +0.50 · gold (simulated) -1.00 · KL 1.3 nats · 12 tokens"


def test_the_pages_take_their_numbers_from_the_table():
    answer, prompt = Completion(text="a b c", finish_reason="stop"), Prompt.from_text("Say it.")
    assert list(probe_table([answer], [3], [prompt])) == list(PROBES)
    assert list(agreement_report([], [])) == list(AGREEMENT)
    assert {key: limit.name for key, limit in LIMITS.items()} == {key: m.title for key, m in CAPABILITY.items()}
    beside = {"ceiling", "outliers", "edits", *BASELINES}  # measured beside the pairs
    assert set(REWARD_MODEL) - beside < set(RewardModelEval.model_fields) and set(BASELINES) < set(REWARD_MODEL)
    charted = {key for key in PANELS if key in TRAINING}
    assert charted >= {"kl", "length", "entropy", "clip_fraction", "value_loss", "explained_variance", "gold"}
    assert all(PANELS[key] == (TRAINING[key].title, TRAINING[key].meaning) for key in charted)


def test_every_entry_says_what_to_do_and_is_on_the_page():
    page = (ROOT / "docs" / "reference" / "metrics.md").read_text()
    for _, table in GROUPS.values():
        for key, metric in table.items():
            assert metric.meaning and metric.unit and metric.good and metric.act, key
            assert metric.meaning.replace("|", "\\|") in page or metric.meaning in page, key
