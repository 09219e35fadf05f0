"""Which weights an online run ends with: the rules by hand, and a whole run on a table."""

from pathlib import Path
from typing import Any, cast

import pytest
import torch

from trimtab.conformance.tabular import TabularRole, TabularSampler, Tree
from trimtab.errors import ConfigError, Interrupted
from trimtab.models import AdapterConfig
from trimtab.records import Prompt
from trimtab.rollout import SamplerConfig
from trimtab.trainers import (
    Checkpoints,
    Chosen,
    KLConfig,
    OptimizerConfig,
    RlooConfig,
    RlRoles,
    Selection,
    Session,
    check_rl,
    train_rl,
)


def followed(selection: Selection, scores: list[float], kls: list[float] | None = None) -> Selection:
    for place, score in enumerate(scores):
        kl = 0.0 if kls is None else kls[place]
        selection.add({"reward": -score, "reward/heldout": score, "kl": kl})
    return selection


def test_a_candidate_is_judged_by_five_steps_around_it():
    """Weights after c steps draw step c + 1; of eleven steps the sixth scores 5 and its neighbours 1."""
    selection = followed(Selection("heldout"), [0, 0, 0, 0, 1, 5, 1, 0, 0, 0, 0])
    assert selection.score(5) == pytest.approx(7 / 5) and selection.score(0) == 0.0
    assert selection.score(11) == 0.0  # no step follows the last weights: the mean of the last two
    assert selection.choose([0, 5, 10]) == 5 and selection.choose([0, 10]) == 0  # the earliest of equals
    assert followed(Selection("proxy"), [3, 2, 1]).choose([0, 3]) == 3  # −score is the proxy here


def test_the_newest_within_the_budget():
    selection = followed(Selection("last", budget=3.0), [0.0] * 8, [0, 1, 2, 3, 4, 5, 6, 7])
    assert selection.kl(3) == 3.0 and selection.choose([0, 2, 3, 4, 8]) == 3
    assert selection.stop() == "the KL to the reference is 6 nats per answer, above the budget of 3"
    assert followed(Selection("last", budget=3.0), [0.0] * 3, [1, 2, 3]).stop() is None
    best = followed(Selection("heldout", budget=2.0), [0, 0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 4, 5, 6, 7])
    assert best.choose([0, 1, 2, 6]) == 2  # the best score lies beyond


def test_patience_counts_steps_without_a_better_mean():
    """The mean around step place 3 is highest; three later places are judged after 9 steps."""
    scores = [0.0, 1, 2, 3, 2, 1, 0, 0, 0]
    patient = Selection("heldout", patience=3)
    stops = []
    for score in scores:
        followed(patient, [score])
        stops.append(patient.stop())
    assert stops[:8] == [None] * 8 and stops[8] == "the heldout score has not risen for 3 steps"


def test_patience_begins_after_a_critic_has_warmed_up():
    """While the policy stands still its score is noise: the first of six such steps happens to be the best."""
    scores = [1.0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    stops = {still: Selection("heldout", patience=3, still=still) for still in (0, 6)}
    ended = {still: next(i for i in range(1, 13) if followed(s, [scores[i - 1]]).stop()) for still, s in stops.items()}
    assert ended == {0: 6, 6: 12}


def test_checkpoints_that_may_still_be_chosen_are_needed():
    selection = followed(Selection("heldout"), [0, 3, 3, 3, 0, 0, 0, 0])
    assert selection.needed([0, 2, 4, 6, 8]) == {2, 6, 8}  # 2 is best; of 6 and 8 later steps are missing
    assert Selection("last").needed([1, 2]) == set()


def test_a_score_that_is_not_logged_is_asked_for():
    with pytest.raises(ConfigError, match=r"no reward named 'heldout' was logged; in a recipe set reward\.split: true"):
        Selection("heldout").add({"reward": 1.0, "kl": 0.0})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"patience": 3}, "patience is 3 and select 'last'"),
        ({"kl": KLConfig(target=5.0, budget=4.0)}, "kl.target is 5 and kl.budget 4 nats per answer"),
    ],
)
def test_settings_that_contradict_each_other(settings, message):
    with pytest.raises(ConfigError, match=message):
        check_rl(RlooConfig(**settings), prompts=64)


TREE = Tree(actions=4)
PROXY = [0.0, 1.0, 1.0, 3.0]
JUDGE = [0.0, 1.0, 1.0, -3.0]
"""A judge that likes what the proxy likes, except for the answer that it likes best."""


def train(
    folder: Path | None, *, stop_after: int | None = None, **settings: Any
) -> tuple[Any, list[dict], list[Any], Any]:
    """RLOO on four answers, of which the best by proxy is rare at first; the weights after every step."""
    start = torch.tensor([[1.0, 1.0, 1.0, -2.0]])
    policy = TabularRole(TREE, start)
    rows: list[dict] = []
    weights = [policy.state()["table"]]

    def log(metrics: dict) -> None:
        rows.append(metrics)
        weights.append(policy.state()["table"])

    limits: dict[str, Any] = {"kl": KLConfig(coefficient=0.0)} | settings
    config = RlooConfig(
        adapter=AdapterConfig(kind="full"), steps=24, prompts=16, group=4, sampler=SamplerConfig(max_new_tokens=1),
        missing_eos=None, guard=None, policy=OptimizerConfig(lr=0.15, schedule="constant", warmup=0.0),
        **limits,
    )  # fmt: skip
    end = train_rl(
        cast(Any, RlRoles)(policy=policy, reference=TabularRole(TREE, start), critic=None),
        [Prompt.from_text(str(i)) for i in range(16)],
        lambda rollouts: {
            "proxy": [PROXY[r.tokens[0]] for r in rollouts],
            "heldout": [JUDGE[r.tokens[0]] for r in rollouts],
        },
        config,
        seed=0,
        session=Session(
            log=log,
            checkpoints=None if folder is None else Checkpoints(folder, "test", every=4),
            stop_requested=lambda: len(rows) == stop_after,
        ),
        weights={"heldout": 0.0},
        sampler=TabularSampler(policy),
    )
    return end, rows, weights, policy


def test_a_run_ends_with_the_weights_that_the_judge_likes_best(tmp_path: Path):
    end, rows, weights, policy = train(tmp_path, select="heldout")
    rule = Selection("heldout")
    for row in rows:
        rule.add(row)
    best = rule.choose([0, 4, 8, 12, 16, 20, 24])
    assert isinstance(end, Chosen) and end.step == best and 0 < best < 24 and end.ended == 24
    assert torch.equal(policy.state()["table"], weights[best])
    assert rows[-1]["reward"] > rows[best]["reward"]  # the proxy went on rising: the judge weighs nothing in it
    assert rows[-1]["reward/heldout"] < rows[best]["reward/heldout"]


def test_an_interrupted_run_makes_the_same_choice(tmp_path: Path):
    whole, _, weights, _ = train(tmp_path / "whole", select="heldout")
    with pytest.raises(Interrupted):
        train(tmp_path / "cut", select="heldout", stop_after=18)
    end, _, _, policy = train(tmp_path / "cut", select="heldout")
    assert end == whole and torch.equal(policy.state()["table"], weights[end.step])


def test_budget_and_patience_end_a_run_early(tmp_path: Path):
    end, rows, weights, policy = train(tmp_path / "budget", kl=KLConfig(coefficient=0.0, budget=0.1))
    assert isinstance(end, Chosen) and end.ended == len(rows) < 24 and "above the budget of 0.1" in end.reason
    assert torch.equal(policy.state()["table"], weights[end.step]) and rows[-1]["kl"] > 0.1
    patient, rows, _, _ = train(tmp_path / "patience", select="heldout", patience=4)
    assert patient.ended == len(rows) < 24 and "has not risen for 4 steps" in patient.reason


def test_the_last_weights_need_no_checkpoints_and_others_do():
    end, rows, weights, policy = train(None)
    assert end is None and len(rows) == 24 and torch.equal(policy.state()["table"], weights[-1])
    with pytest.raises(ConfigError, match="select is 'proxy', which needs checkpoints"):
        train(None, select="proxy")
