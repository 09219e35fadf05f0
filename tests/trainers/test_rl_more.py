"""Online DPO, rejection sampling, PPO-ptx, dynamic sampling, overlong punishment, rewards at steps: by hand."""

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from trimtab.errors import ConfigError, NonFiniteError, ScoringError
from trimtab.models import AdapterConfig, Encoded, FrozenStates, Role
from trimtab.records import Rollout, read_records
from trimtab.rollout import LocalSampler, SamplerConfig
from trimtab.testing import WORDS, chat_messages, prompts, tiny_backbone
from trimtab.trainers import (
    CispoConfig,
    DapoConfig,
    DrGrpoConfig,
    GdpoConfig,
    GrpoConfig,
    GspoConfig,
    KLConfig,
    MissingEosConfig,
    OnlineDpoConfig,
    OptimizerConfig,
    PpoConfig,
    PtxConfig,
    ReinforcePpBaselineConfig,
    ReinforcePpConfig,
    RejectionConfig,
    RlConfig,
    RlooConfig,
    RlRoles,
    Session,
    check_rl,
    mean_nll,
    train_rl,
)
from trimtab.trainers.methods import ONLINE
from trimtab.trainers.rl_passes import run_passes
from trimtab.trainers.rollout_batch import tokens_of
from trimtab.trainers.scoring import Scored, answer_scores, score_rollouts

from ..kit import moved, same_weights, stir
from .rl_kit import LORA, SHORT
from .rl_kit import letters_and_length as letters


def run(settings: RlConfig, *, score=letters, roles: RlRoles | None = None, **more) -> tuple[RlRoles, list[dict]]:
    roles = roles or stirred(isinstance(settings, PpoConfig))
    rows: list[dict] = []
    train_rl(roles, prompts(9), score, settings, seed=2, session=Session(log=rows.append), **more)
    return roles, rows


def stirred(critic: bool = False, shared: bool = False) -> RlRoles:
    roles = RlRoles.on(tiny_backbone(), LORA, seed=1, critic=critic, shared_critic=shared)
    stir(roles.policy, scale=0.05, seed=1)
    return roles


def logprob(model, rollout: Rollout) -> float:
    start, tokens = len(rollout.prompt_tokens), rollout.prompt_tokens + rollout.tokens
    with torch.no_grad():
        full = torch.log_softmax(model(torch.tensor([tokens])).logits[0], dim=-1)[start - 1 : -1]
    return float(full.gather(-1, torch.tensor(rollout.tokens)[:, None]).sum())


# Online DPO, rejection sampling ---------------------------------------------------------------


@pytest.mark.parametrize("group", [2, 4])
def test_online_dpo_first_step_by_hand(group: int, tmp_path: Path):
    roles = stirred()
    _, [row] = run(OnlineDpoConfig(group=group, beta=0.3, **SHORT), roles=roles, samples=tmp_path)
    rollouts = read_records(tmp_path / "step-000000.jsonl", Rollout)
    roles.reference.backbone.activate(None)
    expected, right = [], []
    for start in range(0, len(rollouts), group):
        answers = sorted(rollouts[start : start + group], key=lambda r: r.rewards["letters"])
        worst, best = answers[0], answers[-1]
        assert best.rewards["letters"] > worst.rewards["letters"]
        model = roles.reference.backbone.model
        h = sum(best.logprobs) - sum(worst.logprobs) - (logprob(model, best) - logprob(model, worst))
        expected.append(math.log1p(math.exp(-0.3 * h)))
        right.append(h > 0)
    assert row["policy_loss"] == pytest.approx(sum(expected) / len(expected), rel=1e-3)
    assert row["accuracy"] == pytest.approx(sum(right) / len(right))
    assert row["flat_groups"] == 0 and row["mismatch"] == pytest.approx(0, abs=1e-4)


def test_rejection_imitates_the_best(tmp_path: Path):
    _, [row] = run(RejectionConfig(group=4, keep=2, **SHORT), samples=tmp_path)
    rollouts = read_records(tmp_path / "step-000000.jsonl", Rollout)
    best = []
    for start in range(0, len(rollouts), 4):
        answers = sorted(rollouts[start : start + 4], key=lambda r: -r.rewards["letters"])
        best += answers[:2]
    nll = -sum(sum(r.logprobs) for r in best) / sum(len(r.tokens) for r in best)
    assert row["policy_loss"] == pytest.approx(nll, rel=1e-3)


@pytest.mark.parametrize("settings", [OnlineDpoConfig(**SHORT), RejectionConfig(group=3, **SHORT)])
def test_equal_answers_teach_nothing(settings):
    roles = stirred()
    before = roles.policy.state()
    _, [row] = run(settings, roles=roles, score=lambda rollouts: {"one": [1.0] * len(rollouts)})
    assert row["flat_groups"] == 1.0 and "policy_loss" not in row
    assert all(torch.equal(after, before[name]) for name, after in roles.policy.state().items())


@pytest.mark.parametrize("kind", [OnlineDpoConfig, RejectionConfig])
def test_micro_batches_change_nothing(kind):
    ends = []
    for tokens in (1, 10_000):
        settings = kind(group=4, **(SHORT | {"micro_batch_tokens": tokens, "steps": 2, "minibatches": 2}))
        ends.append(run(settings)[0].policy)
    moved(ends[0], RlRoles.on(tiny_backbone(), settings.adapter, seed=1).policy)
    same_weights(*ends)


def test_rejection_trains_at_temperature_one(tmp_path: Path):
    """As Llama 2 and RAFT fine-tune; what is drawn and measured is at the sampler's temperature."""
    settings = RejectionConfig(group=4, **(SHORT | {"sampler": SamplerConfig(max_new_tokens=8, temperature=0.6)}))
    roles = stirred()
    roles.policy.backbone.activate(roles.policy.adapter)
    before = copy.deepcopy(roles.policy.backbone.model)
    _, [row] = run(settings, roles=roles, samples=tmp_path)
    rollouts = read_records(tmp_path / "step-000000.jsonl", Rollout)
    best = [
        max(rollouts[start : start + 4], key=lambda r: r.rewards["letters"]) for start in range(0, len(rollouts), 4)
    ]
    with torch.no_grad():
        nll = -sum(logprob(before, r) for r in best) / sum(len(r.tokens) for r in best)
    drawn = -sum(sum(r.logprobs) for r in best) / sum(len(r.tokens) for r in best)
    assert row["policy_loss"] == pytest.approx(nll, rel=1e-3) and abs(nll - drawn) > 0.05
    assert row["mismatch"] == pytest.approx(0.0, abs=1e-4) and row["approx_kl"] == pytest.approx(0.0, abs=1e-4)


@pytest.mark.parametrize("settings", [OnlineDpoConfig(group=4), RejectionConfig(group=4)], ids=lambda c: c.method)
def test_both_raise_the_reward(settings):
    backbone = tiny_backbone()
    with torch.no_grad():
        backbone.head.weight *= 3
    roles = RlRoles.on(backbone, AdapterConfig(rank=8, alpha=16), seed=1, critic=False)
    fast = OptimizerConfig(lr=1e-2, schedule="constant")
    more = {"steps": 15, "prompts": 16, "policy": fast, "sampler": SamplerConfig(max_new_tokens=8)}
    settings = settings.model_copy(update=SHORT | more | {"micro_batch_tokens": 4096})

    def even(rollouts: Sequence[Rollout]) -> dict[str, list[float]]:
        return {"even": [2 * sum(t % 2 == 0 for t in r.tokens) / len(r.tokens) - 1 for r in rollouts]}

    _, rows = run(settings, roles=roles, score=even)
    assert rows[-1]["reward"] > rows[0]["reward"] + 0.4


def test_settings_that_contradict():
    with pytest.raises(ConfigError, match="keep is 4 of group 4 answers: nothing is rejected"):
        check_rl(RejectionConfig(group=4, keep=4), 3)
    with pytest.raises(ConfigError, match="overlong_buffer is 65 tokens but answers have 64 at most"):
        check_rl(DapoConfig(overlong_buffer=65), 3)
    with pytest.raises(ConfigError, match=r"kl\.estimator is 'k3' and kl.place is 'reward', where"):
        check_rl(RlooConfig(kl=KLConfig(estimator="k3")), 3)
    with pytest.raises(ConfigError, match="k1 has no gradient in expectation, so no β steers"):
        check_rl(RlooConfig(kl=KLConfig(place="loss", estimator="k1", target=6.0)), 3)
    with pytest.raises(ConfigError, match=r"missing_eos\.mode is 'subtract' and its value 0: nothing is subtracted"):
        check_rl(RejectionConfig(missing_eos=MissingEosConfig(mode="subtract", value=0.0)), 3)
    with pytest.raises(ConfigError, match="no conversations to imitate"):
        run(RlooConfig(ptx=PtxConfig(), **SHORT))


# PPO-ptx ------------------------------------------------------------------------------------


def named(spoken: Sequence[Encoded]) -> list[tuple[str, Encoded]]:
    return [(f"talk-{i}", one) for i, one in enumerate(spoken)]


def test_ptx_goes_by_the_runs_seed_and_names_a_conversation_by_its_id(monkeypatch: pytest.MonkeyPatch):
    """Each pass over five conversations, two at a time, has each once; another seed has another order."""
    from trimtab.trainers import rl_update

    seen: list[str] = []
    original = rl_update._imitations

    def watched(*arguments):
        parts = original(*arguments)
        seen.extend(name for names, _ in parts for name in names)
        return parts

    monkeypatch.setattr(rl_update, "_imitations", watched)
    settings = RlooConfig(ptx=PtxConfig(batch=2), **(SHORT | {"steps": 3, "kl": KLConfig(coefficient=0.0)}))
    orders = []
    for seed in (2, 3):
        roles = stirred()
        chat = roles.policy.backbone.chat
        spoken = [chat.conversation(chat_messages(f"say {w}", f"{w} and tea")) for w in WORDS[:5]]
        seen.clear()
        train_rl(roles, prompts(9), letters, settings, seed=seed, imitate=named(spoken))
        assert sorted(seen) == [f"talk-{i}" for i in range(5)]
        orders.append([set(seen[:2]), set(seen[2:4])])
    assert orders[0] != orders[1]


@pytest.mark.parametrize("shared", [False, True], ids=["own critic", "shared critic"])
def test_ptx_adds_the_conversations_likelihood(shared):
    roles = stirred(critic=True, shared=shared)
    chat = roles.policy.backbone.chat
    spoken = [chat.conversation(chat_messages(f"say {w}", f"{w} {w} and tea")) for w in WORDS[:5]]
    start = mean_nll(roles.policy, spoken)
    base = SHORT | {"kl": KLConfig(coefficient=0.0), "shared_critic": shared}
    _, [row] = run(
        PpoConfig(ptx=PtxConfig(coefficient=0.5, batch=5), **(base | {"epochs": 1})), roles=roles, imitate=named(spoken)
    )
    plain = run(PpoConfig(**(base | {"epochs": 1})), roles=stirred(critic=True, shared=shared))[1][0]
    assert row["ptx_nll"] == pytest.approx(start, rel=1e-4)
    assert row["policy_loss"] == pytest.approx(plain["policy_loss"] + 0.5 * start, rel=1e-4)
    assert row["value_loss"] == pytest.approx(plain["value_loss"], rel=1e-5)  # the critic does not imitate


def test_ptx_keeps_what_was_said_likely():
    after = {}
    for ptx in (None, PtxConfig(coefficient=1.0, batch=5)):
        roles = stirred()
        chat = roles.policy.backbone.chat
        spoken = [chat.conversation(chat_messages(f"say {w}", f"{w} {w} and tea")) for w in WORDS[:5]]
        run(RlooConfig(ptx=ptx, **(SHORT | {"steps": 8})), roles=roles, imitate=named(spoken))
        after[ptx is None] = mean_nll(roles.policy, spoken)
    assert after[False] < after[True] - 0.2


# DAPO ---------------------------------------------------------------------------------------


def test_flat_groups_are_replaced_by_other_prompts(tmp_path: Path):
    questions = prompts(9)
    dull = {p.id for p in questions[:6]}

    def score(rollouts: Sequence[Rollout]) -> dict[str, list[float]]:
        return {"it": [0.0 if r.prompt.id in dull else float(i) for i, r in enumerate(rollouts)]}

    settings = DapoConfig(group=2, resample=5, **(SHORT | {"prompts": 3}))
    _, [row] = run(settings, score=score, samples=tmp_path)
    saved = read_records(tmp_path / "step-000000.jsonl", Rollout)
    assert {r.prompt.id for r in saved} == {p.id for p in questions[6:]}  # only these three prompts have spread
    assert len(saved) == 6 and row["flat_groups"] == 0 and row["resampled"] >= 3
    assert [saved[i].prompt.id == saved[i + 1].prompt.id for i in (0, 2, 4)] == [True] * 3
    _, [none] = run(settings.model_copy(update={"resample": 0}), score=score)
    assert none["flat_groups"] > 0 and "resampled" not in none


def test_resampling_ends_when_prompts_run_out():
    flat = lambda rollouts: {"it": [0.0] * len(rollouts)}  # noqa: E731
    _, [row] = run(DapoConfig(group=2, resample=9, **(SHORT | {"prompts": 4})), score=flat)
    assert row["resampled"] == 5 and row["flat_groups"] == 1.0  # 4 + 4 + 1 of the nine prompts were drawn


def test_an_interrupted_step_with_resampling_is_the_same_again(tmp_path: Path):
    settings = DapoConfig(group=2, **(SHORT | {"steps": 2}))
    score = lambda rollouts: {"it": [float(r.tokens[0] % 2) for r in rollouts]}  # noqa: E731
    ends = [run(settings, score=score, samples=tmp_path / "a")[0]]
    for path in (tmp_path / "a").glob("step-000001*"):
        path.unlink()
    ends.append(run(settings, score=score, samples=tmp_path / "a")[0])
    ends.append(run(settings, score=score, samples=tmp_path / "b")[0])
    states = [e.policy.state() for e in ends]
    assert all(torch.equal(states[0][name], other[name]) for other in states[1:] for name in other)


def rollout(count: int, finish: str = "stop", number: int = 0) -> Rollout:
    return Rollout(
        id=f"p/0/{number}", prompt=prompts(1)[0], prompt_tokens=[5], tokens=[7] * count, logprobs=[0.0] * count,
        text="x", finish_reason=finish, weight_version=0,
    )  # fmt: skip


def test_overlong_answers_are_punished_softly():
    # Yu et al. 2025, eq. 13, with L_max 8 and L_cache 4: 0 up to 4 tokens, then −1/4 a token
    settings = DapoConfig(overlong_buffer=4, **SHORT)
    some = [rollout(n) for n in (1, 4, 5, 6, 8)]
    worth = answer_scores(settings, Scored(rollouts=some, totals=[1.0] * 5, placed=[{}] * 5))
    assert worth.tolist() == pytest.approx([1.0, 1.0, 0.75, 0.5, 0.0])


@pytest.mark.parametrize("missing_eos", [None, MissingEosConfig(), MissingEosConfig(mode="subtract"), "default"])
@pytest.mark.parametrize("raw", [-6.0, -1.0, 0.0, 1.0, 4.0])
def test_being_cut_is_never_better_than_ending_just_before_the_limit(raw: float, missing_eos):
    """A wrong answer of DAPO's paper has −1: ended at 99 of 100 tokens −1.95, cut −2; also when cut by the context."""
    long = {"sampler": SamplerConfig(max_new_tokens=100), "overlong_buffer": 20}
    if missing_eos != "default":
        long["missing_eos"] = missing_eos
    some = [*(rollout(n) for n in (70, 80, 90, 99, 100)), rollout(100, "length"), rollout(60, "length")]
    *ended, cut, by_context = answer_scores(
        DapoConfig(**long), Scored(rollouts=some, totals=[raw] * 7, placed=[{}] * 7)
    ).tolist()
    assert ended == pytest.approx([raw, raw, raw - 0.5, raw - 0.95, raw - 1.0])
    assert cut <= ended[-1] + 1e-6 and by_context == cut
    if missing_eos in (None, "default"):
        assert cut == pytest.approx(raw - 1.0)  # eq. 13 alone, as in the paper and in verl


def test_no_kl_penalty_in_rewards_that_a_groups_deviation_divides():
    for kind in (GrpoConfig, DapoConfig):
        for std in ("sample", "population"):
            with pytest.raises(ConfigError, match=r"kl\.place is 'reward' and (grpo|dapo) divides.*set kl.place: loss"):
                check_rl(kind(std=std, kl=KLConfig(coefficient=0.01)), 3)
        check_rl(kind(kl=KLConfig(coefficient=0.0)), 3)
        check_rl(kind(kl=KLConfig(coefficient=0.1, place="loss")), 3)
    for kind in (RlooConfig, DrGrpoConfig, ReinforcePpConfig, ReinforcePpBaselineConfig, PpoConfig):
        check_rl(kind(kl=KLConfig(coefficient=0.1)), 3)


def test_the_default_kl_in_the_loss_is_that_of_whole_answers():
    for kind in (GrpoConfig, ReinforcePpBaselineConfig, DrGrpoConfig, DapoConfig):
        kl = kind().kl
        assert kl.place == "loss" and kl.estimator in (None, "sequence")
    assert RlooConfig().kl.place == PpoConfig().kl.place == ReinforcePpConfig().kl.place == "reward"


def test_the_share_of_limited_scores_is_logged():
    """A limit that is met must be seen to be met; where there is none, the log has none."""
    score = lambda rollouts: {"it": [float(i) for i in range(len(rollouts))]}  # noqa: E731
    base = SHORT | {"prompts": 2}
    _, [row] = run(RlooConfig(group=2, score_clip=1.5, **base), score=score)
    assert row["score_clipped"] == 0.5  # 2 and 3 of 0, 1, 2, 3
    assert "score_clipped" not in run(RlooConfig(group=2, **base), score=score)[1][0]


def test_clip_comes_before_the_missing_end():
    settings = RlooConfig(**(SHORT | {"missing_eos": MissingEosConfig(value=-3.0), "score_clip": 2.0}))
    scored = Scored(rollouts=[rollout(2), rollout(2, "length")], totals=[9.0, 9.0], placed=[{}, {}])
    assert answer_scores(settings, scored).tolist() == [2.0, -3.0]
    off = settings.model_copy(update={"missing_eos": MissingEosConfig(value=-3.0, mode="subtract")})
    assert answer_scores(off, scored).tolist() == [2.0, -1.0]


def test_groups_that_differ_in_step_rewards_only_are_not_flat():
    def score(rollouts: Sequence[Rollout]) -> dict[str, list]:
        """One answer of the first prompt earns 2 at its first token, all others 1; as wholes they earn nothing."""
        return {"it": [[(0, 2.0 if i == 1 else 1.0)] for i in range(len(rollouts))]}

    settings = ReinforcePpBaselineConfig(group=2, **(SHORT | {"prompts": 2, "missing_eos": None}))
    _, [row] = run(settings, score=score)
    assert row["flat_groups"] == 0.5


def test_a_missing_end_leaves_step_rewards_alone():
    settings = PpoConfig(**(SHORT | {"missing_eos": MissingEosConfig(value=-3.0)}))
    cut = [rollout(2, "length")]
    scores = score_rollouts(cut, lambda rs: {"steps": [[(0, 1.0)]], "whole": [0.5]}, {}, 0)
    assert answer_scores(settings, scores).tolist() == [-3.0] and scores.placed == [{0: 1.0}]


# Which tokens count -------------------------------------------------------------------------


def test_cut_answers_are_left_out_of_the_loss_and_count_in_the_baseline(tmp_path: Path):
    """By hand: RLOO's advantages from all four answers of a prompt, the loss from those that ended."""
    longer = SHORT | {"sampler": SamplerConfig(max_new_tokens=24, slots=5), "kl": KLConfig(coefficient=0.0)}
    settings = RlooConfig(group=4, overlong_filter=True, **longer)
    _, [row] = run(settings, samples=tmp_path)
    rollouts = read_records(tmp_path / "step-000000.jsonl", Rollout)
    ended = [r.finish_reason == "stop" for r in rollouts]
    assert 0 < sum(ended) < len(ended)
    total = 0.0
    for i, one in enumerate(rollouts):
        others = [r.rewards["letters"] for j, r in enumerate(rollouts) if j != i and j // 4 == i // 4]
        if ended[i]:
            total -= (one.rewards["letters"] - sum(others) / 3) * len(one.tokens)
    assert row["policy_loss"] == pytest.approx(total / sum(ended), rel=1e-3)
    assert row["filtered"] == pytest.approx(1 - sum(ended) / len(ended))
    roles = stirred()
    before = roles.policy.state()
    never = settings.model_copy(update={"sampler": SamplerConfig(max_new_tokens=1, slots=5)})
    _, [none] = run(never, roles=roles)
    assert none["filtered"] == 1 - none["ended"] == 1.0 and none["updates"] == 0
    assert all(torch.equal(after, before[name]) for name, after in roles.policy.state().items())


def test_only_the_least_certain_tokens_are_trained_on(tmp_path: Path):
    settings = RlooConfig(group=4, entropy_top=0.3, **SHORT, kl=KLConfig(coefficient=0.0))
    roles = stirred()
    roles.policy.backbone.activate(roles.policy.adapter)
    before = copy.deepcopy(roles.policy.backbone.model)
    _, [row] = run(settings, roles=roles, samples=tmp_path)
    rollouts = read_records(tmp_path / "step-000000.jsonl", Rollout)
    entropies: list[list[float]] = []
    for one in rollouts:
        with torch.no_grad():
            full = torch.log_softmax(before(torch.tensor([one.prompt_tokens + one.tokens])).logits[0], dim=-1)
        full = full[len(one.prompt_tokens) - 1 : -1]
        entropies.append((-(full.exp() * full).sum(-1)).tolist())
    ranked = sorted((h for row_ in entropies for h in row_), reverse=True)
    limit = ranked[math.ceil(0.3 * len(ranked)) - 1]
    total = 0.0
    for i, one in enumerate(rollouts):
        others = [r.rewards["letters"] for j, r in enumerate(rollouts) if j != i and j // 4 == i // 4]
        advantage = one.rewards["letters"] - sum(others) / 3
        total -= advantage * sum(h >= limit - 1e-5 for h in entropies[i])
    assert row["policy_loss"] == pytest.approx(total / len(rollouts), rel=1e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (RlooConfig(overlong_filter=True), "overlong_filter is true and missing_eos penalises cut answers"),
        (PpoConfig(bootstrap_cut=True), "bootstrap_cut is true and missing_eos penalises cut answers"),
        (PpoConfig(bootstrap_cut=True, overlong_filter=True, missing_eos=None), "both true: answers that are left out"),
        (RlooConfig(importance_level="sequence"), "importance_level is sequence and importance_cap is not set"),
        (RlooConfig(importance_beyond="mask"), "importance_beyond is mask and importance_cap is not set"),
        (RlooConfig(importance_cap=2.0, importance_floor=0.5), "importance_beyond 'truncate', which has no lower end"),
        (
            RlooConfig(importance_cap=0.5, importance_floor=0.5, importance_beyond="mask"),
            "importance_cap 0.5: nothing lies between them",
        ),
        (GspoConfig(entropy_top=0.2), "entropy_top is 0.2 and method 'gspo'"),
        (CispoConfig(dual_clip=3.0), "dual_clip is 3 and method 'cispo'"),
        (GspoConfig(kl=KLConfig(coefficient=0.1)), "gspo divides rewards by their standard deviation"),
    ],
)
def test_settings_of_weights_that_contradict(settings, message):
    with pytest.raises(ConfigError, match=message):
        check_rl(settings, 3)


# Rewards at steps ---------------------------------------------------------------------------


def test_step_rewards_count_at_their_tokens():
    some = [rollout(4), rollout(3, number=1)]
    scores = score_rollouts(
        some, lambda rs: {"steps": [[(1, 1.0), (3, -0.5)], [(0, 2.0)]], "whole": [0.25, 0.5]}, {"steps": 2.0}, 0
    )
    assert scores.placed == [{1: 2.0, 3: -1.0}, {0: 4.0}]
    assert scores.totals == pytest.approx([2 * 0.5 + 0.25, 2 * 2.0 + 0.5])
    assert not some[0].rewards and not some[0].step_rewards  # records are not written into
    first = scores.rollouts[0]
    assert first.rewards == {"steps": 0.5, "whole": 0.25} and first.step_rewards == {"steps": [(1, 1.0), (3, -0.5)]}
    assert answer_scores(RlooConfig(**SHORT), scores).tolist() == pytest.approx([0.25, 0.5])


def test_step_rewards_reach_the_advantages_of_earlier_tokens_only():
    """With γ = λ = 1, no KL penalty and a critic of zeros, an advantage is the sum of the rewards still to come."""
    seen = {}

    def score(rollouts: Sequence[Rollout]) -> dict[str, list]:
        return {"second": [[(1, 1.0)] if len(r.tokens) > 1 else [] for r in rollouts]}

    def watch(config, rewards, values, mask):
        seen["rewards"], seen["mask"] = rewards, mask
        seen["result"] = ppo.advantages(config, rewards, values, mask)
        return seen["result"]

    ppo = ONLINE["ppo"]
    settings = PpoConfig(whiten_advantages=False, lam=1.0, **(SHORT | {"kl": KLConfig(coefficient=0.0)}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ONLINE, "ppo", replace(ppo, advantages=watch))
        run(settings, score=score)
    for rewards, mask, advantages in zip(seen["rewards"], seen["mask"], seen["result"][0], strict=True):
        count = int(mask.sum())
        expected = [1.0, 1.0][:count] + [0.0] * (count - 2) if count > 1 else [0.0]
        assert advantages[mask].tolist() == pytest.approx(expected)
        assert float(rewards.sum()) == (count > 1)


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ([(0, 1.0), (9, 1.0)], ScoringError, "placed after token 9 of sample p/0/0, whose answer has 2 tokens"),
        ([(-1, 1.0)], ScoringError, "placed after token -1 of sample p/0/0"),
        ([(0.5, 1.0)], ScoringError, r"pairs with whole numbers as places \(got \[\(0\.5, 1\.0\)\]\)"),
        ([(0, "1")], ScoringError, "'it' is '1' for sample p/0/0"),
        ([(0, 1e300)], NonFiniteError, r"'it' is 1e\+300 for sample p/0/0"),
        ([(0, math.nan)], NonFiniteError, "'it' is nan for sample p/0/0"),
        ([0.5, 1.0], ScoringError, r"pairs with whole numbers as places \(got \[0\.5, 1\.0\]\)"),
    ],
)
def test_step_rewards_that_cannot_be(value, error, message):
    with pytest.raises(error, match=message):
        score_rollouts([rollout(2)], lambda rs: {"it": [value]}, {}, 0)


def test_methods_with_one_advantage_per_answer_refuse_step_rewards():
    with pytest.raises(ConfigError, match=r"'rloo' gives all tokens of an answer the same advantage; use .*ppo"):
        run(RlooConfig(**SHORT), score=lambda rs: {"it": [[(0, 1.0)] for _ in rs]})


# Empty answers --------------------------------------------------------------------------------


class Empties(LocalSampler):
    """Some answers come back without a token, as from a sampler elsewhere that strips the end of a turn.

    ``empty``: numbers of those answers, a set for each step in turn.
    """

    def __init__(self, backbone, config, *, empty: Sequence[set[int]]) -> None:
        super().__init__(backbone, config)
        self.empty = iter(empty)

    def generate(self, prompts, **more):
        rollouts, empty = super().generate(prompts, **more), next(self.empty)
        return [
            replace(r, tokens=[], logprobs=[], values=[], text="") if i in empty else r for i, r in enumerate(rollouts)
        ]


def with_empties(settings: RlConfig, *empty: set[int], **more) -> tuple[RlRoles, list[dict]]:
    roles = stirred(isinstance(settings, PpoConfig))
    sampler = Empties(roles.policy.backbone, settings.sampler, empty=empty)
    return run(settings, roles=roles, sampler=sampler, **more)


ALL_ONLINE = [row.config for row in ONLINE.values()]


@pytest.mark.parametrize("kind", ALL_ONLINE, ids=lambda kind: kind.model_fields["method"].default)
def test_an_empty_answer_is_counted_and_the_run_goes_on(kind):
    """In step after step one of 12 (of its group of 4), a whole group, all, and one: NaN reaches no weight."""

    def per_token(rollouts: Sequence[Rollout]) -> dict[str, list[float]]:
        return {"it": [sum(t % 7 for t in r.tokens) / len(r.tokens) for r in rollouts]}  # fails on an empty answer

    empty = [{1}, {4, 5, 6, 7}, set(range(12)), {1}]
    group = 1 if "group" not in kind.model_fields or kind in (PpoConfig, ReinforcePpConfig) else 4
    base = SHORT | {"group": group, "steps": len(empty), "prompts": 12 // group, "missing_eos": MissingEosConfig()}
    base |= {"resample": 0} if kind is DapoConfig else {}  # else a group of empty answers is replaced
    if kind in (DapoConfig, GdpoConfig, OnlineDpoConfig, RejectionConfig):  # equal penalties teach nothing
        base["missing_eos"] = None
    roles, rows = with_empties(kind(**base), *empty, score=per_token, monitor=lambda _, rs: {"n": float(len(rs))})
    assert [row["empty"] for row in rows] == [1, 4, 12, 1]
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert all(bool(torch.isfinite(weight).all()) for weight in roles.policy.state().values())
    assert all(row["n"] == 12 for row in rows)  # the monitor is shown the empty ones too
    assert [row["updates"] >= 1 for row in rows] == [True, True, False, True]


@pytest.mark.parametrize("kind", [RlooConfig, GrpoConfig, DrGrpoConfig, ReinforcePpBaselineConfig])
def test_an_empty_answer_is_in_no_groups_mean(kind, monkeypatch: pytest.MonkeyPatch):
    """The advantages of the other three are those of a group of three."""
    seen = []
    name = kind.model_fields["method"].default
    row = ONLINE[name]

    def watch(config, rewards, values, mask):
        advantages, returns = row.advantages(config, rewards, values, mask)
        seen.append((rewards.sum(1), advantages, mask))
        return advantages, returns

    monkeypatch.setitem(ONLINE, name, replace(row, advantages=watch))
    with_empties(kind(group=4, **(SHORT | {"prompts": 1, "kl": KLConfig(coefficient=0.0, place="loss")})), {2})
    ((totals, advantages, mask),) = seen
    assert mask.any(1).tolist() == [True, True, False, True] and bool((advantages[2] == 0).all())
    r = totals[mask.any(1)].tolist()
    mean = sum(r) / 3
    if kind is ReinforcePpBaselineConfig:
        flat = [x - mean for x, n in zip(r, mask.sum(1)[mask.any(1)].tolist(), strict=True) for _ in range(n)]
        middle = sum(flat) / len(flat)
        spread = math.sqrt(sum((x - middle) ** 2 for x in flat) / len(flat))
        wanted = [(x - mean - middle) / spread for x in r]
    else:
        scale = {"rloo": 2 / 3, "dr_grpo": 1.0}.get(name) or math.sqrt(sum((x - mean) ** 2 for x in r) / 2)
        wanted = [(x - mean) / scale for x in r]
    first = [float(row[m][0]) for row, m in zip(advantages, mask, strict=True) if bool(m.any())]
    assert first == pytest.approx(wanted, rel=1e-3)


def test_the_entropy_limit_is_over_the_answers_that_count():
    """Cut answers are filtered: half of the tokens of the whole answer are trained on, whatever the cut one's are."""
    one = Role(tiny_backbone())
    rollouts = [rollout(4), replace(rollout(6, number=1), finish_reason="length")]
    settings = RlooConfig(group=2, entropy_top=0.5, overlong_filter=True, missing_eos=None)
    batch = tokens_of(rollouts, one.backbone.device)
    passes = run_passes(one, one, None, batch, rollouts, settings, FrozenStates(one.backbone))
    assert passes.uncertain is not None and passes.uncertain.sum(dim=1).tolist() == [2, 0]
