"""What the table says that each method maximises is what its update climbs, with every answer as often as it is drawn.

The answers are the sixteen equally likely draws of a policy on a tree, and the groups are all groups of them, so that
a step's gradient is its expectation.
"""

import itertools
import re
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from trimtab.conformance.tabular import Tree
from trimtab.errors import ConfigError
from trimtab.records import Rollout
from trimtab.trainers import ONLINE, KLConfig, check_rl

from .tables import settings, step

TREE = Tree(actions=2, depth=2)
QUARTERS = torch.tensor([[1, 3], [2, 2], [1, 3]])
"""How many of four draws take each action, in each of the three states."""
POLICY = (QUARTERS / 4).log()
REFERENCE = torch.tensor([[0.4, -0.2], [-0.9, 0.6], [0.3, 0.5]])
GROUP = 2
CLAIM = re.compile(r"max (?:([\d.]+)·)?E\[reward\] − ([\d.]+)·KL\(π‖reference\)(?:, in the loss)?")


def draws() -> Tensor:
    """Every answer as often in sixteen draws as :data:`POLICY` says it, ``[16, 2]``."""
    rows = []
    for path in TREE.paths():
        states = TREE.states_on(path[None])[0]
        count = int(QUARTERS[states, path].prod())
        rows += [path] * count
    assert len(rows) == 16
    return torch.stack(rows)


def cases(*, also: bool = False) -> list[Any]:
    """Every method with a KL penalty, in each place that it allows; ``also``: the methods without one too."""
    listed_cases: list[Any] = []
    for name, row in ONLINE.items():
        if "kl" not in row.config.model_fields or not hasattr(row.config().kl, "place"):
            if also:
                listed_cases.append(pytest.param(name, {}, id=name))
            continue
        for place in ("reward", "loss"):
            for more in [{"whiten_advantages": True}, {"whiten_advantages": False}] if name == "ppo" else [{}]:
                penalty = {"kl": KLConfig(coefficient=0.5, place=place), **more}
                try:
                    check_rl(config_of(name, penalty), 256)
                except ConfigError as refused:
                    assert "divides rewards by their standard deviation" in str(refused)
                    continue
                label = "-".join([name, place, *("whitened" for whitened in more.values() if whitened)])
                listed_cases.append(pytest.param(name, penalty, id=label))
    return listed_cases


def config_of(name: str, more: dict[str, Any]) -> Any:
    kind = ONLINE[name].config
    grouped = "group" in kind.model_fields and kind.model_fields["group"].default > 1
    if ONLINE[name].opponent is not None:
        grouped = False
    given = {"group": GROUP} if grouped else {}
    if name == "dapo":
        given["resample"] = 0
    if name == "gspo":
        given["eps_high"] = None
    return settings(kind, TREE, prompts=16**GROUP if grouped or ONLINE[name].opponent else 16, **(given | more))


def gradient(config: Any, reward: Tensor, policy: Tensor = POLICY) -> Tensor:
    """−∇ of a step's loss; ``reward``: ``[4]``, of every answer."""
    pairs = torch.tensor(list(itertools.product(range(16), repeat=2)))
    opponent, every = ONLINE[config.method].opponent is not None, draws()
    if opponent:  # each answer meets each: the opponent's are the reference's quarters
        answers, others = every[pairs[:, 0]], every[pairs[:, 1]]
    else:
        answers, others = every[pairs.flatten()] if config.group > 1 else every, None

    def score(rollouts: Sequence[Rollout]) -> dict[str, list[float]]:
        return {"reward": [float(reward[2 * r.tokens[0] + r.tokens[1]]) for r in rollouts]}

    return -step(config, TREE, policy, REFERENCE, score, answers=answers, opponents=others)


def divergence(policy: Tensor) -> Tensor:
    """log π − log ref of every answer, ``[4]``."""
    return TREE.path_logprobs(policy) - TREE.path_logprobs(REFERENCE)


def exact(reward: Tensor, beta: float, share: float = 1.0) -> Tensor:
    """∇(share·E[reward] − β·KL(π‖ref)) at :data:`POLICY`."""
    leaf = POLICY.clone().requires_grad_()
    new = TREE.path_logprobs(leaf)
    return torch.autograd.grad(new.exp() @ (share * reward) - beta * (new.exp() @ divergence(leaf)), leaf)[0]


def cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.cosine_similarity(a.flatten(), b.flatten(), dim=0))


REWARD = torch.tensor([0.9, -0.4, 0.1, 0.6])


@pytest.mark.parametrize(("name", "penalty"), cases())
def test_a_method_that_is_said_to_maximise_reward_less_kl_does_so_and_no_other(name: str, penalty: dict[str, Any]):
    config = config_of(name, penalty)
    text = ONLINE[name].objective(config)
    claim = CLAIM.fullmatch(text)
    if ONLINE[name].opponent is not None:
        assert claim is None and "E[P(" in text  # a game; its end is an experiment of conformance
        return
    share, beta = (float(claim[1] or 1), float(claim[2])) if claim else (1.0, 0.5)
    assert beta == 0.5
    tilted = beta / share * divergence(POLICY) + 0.3  # the reward whose optimum is POLICY
    left = float(gradient(config, tilted).norm() / gradient(config, REWARD).norm())
    if claim is None:
        assert "σ" in text and left > 0.05, text
        return
    assert left < 1e-4, text
    assert cosine(gradient(config, REWARD), exact(REWARD, beta, share)) > 0.9999, text


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_the_text_does_not_call_a_per_token_estimator_the_kl(estimator: Any):
    config = config_of("rloo", {"kl": KLConfig(coefficient=0.5, place="loss", estimator=estimator)})
    text = ONLINE["rloo"].objective(config)
    assert CLAIM.fullmatch(text) is None and f"{estimator} of each token" in text
    nothing = torch.zeros(4)
    leash = exact(nothing, 0.5)
    assert (gradient(config, nothing) - leash).norm() > 0.05 * leash.norm()
    sequence = config_of("rloo", {"kl": KLConfig(coefficient=0.5, place="loss")})
    assert (gradient(sequence, nothing) - leash).norm() < 1e-4 * leash.norm()


BY_RANK = ("online_dpo", "rejection")
"""Methods that read only which answer is better."""


@pytest.mark.parametrize(("name", "penalty"), cases(also=True))
def test_larger_rewards_change_the_update_where_they_are_not_divided_by_their_deviation(
    name: str, penalty: dict[str, Any]
):
    config = config_of(name, penalty)
    once, tenfold = gradient(config, REWARD), gradient(config, 10 * REWARD)
    divided = "σ" in ONLINE[name].objective(config).replace("log σ", "") or name in BY_RANK
    if divided:
        assert torch.allclose(once, tenfold, rtol=2e-3, atol=1e-5)
    else:
        assert cosine(once, tenfold) < 0.999 or name == "xpo"
        assert not torch.allclose(once, tenfold, rtol=0.1)
    if penalty.get("kl") and penalty["kl"].place == "reward" and ONLINE[name].opponent is None:
        dear = config_of(name, penalty | {"kl": KLConfig(coefficient=5.0)})  # β in reward units: as large as before
        assert cosine(once, gradient(dear, 10 * REWARD)) > 0.9999


def test_the_units_of_beta_are_documented_for_every_method():
    """The setting's description names each method by the unit that its objective has."""
    words = KLConfig.model_fields["coefficient"].description or ""
    plain, rest = words.split("reward units for ")[1].split("; ", 1)
    of_group, of_batch = rest.split("of the batch")[0].split("of the group")[1], rest.split("of the batch")[1]
    named = {"reward": plain, "group": of_group, "batch": of_batch}
    listed = {unit: set(re.findall(r"``(\w+)``", part)) - {"whiten_advantages"} for unit, part in named.items()}
    in_table: dict[str, set[str]] = {"reward": set(), "group": set(), "batch": set()}
    for case in cases():
        name, penalty = case.values
        if penalty["kl"].place != "loss" or ONLINE[name].opponent is not None:
            continue
        text = ONLINE[name].objective(config_of(name, penalty))
        unit = "group" if "group σ" in text else "batch" if "σ of the batch" in text else "reward"
        in_table[unit].add(name)
    assert in_table["reward"] - {"ppo"} == listed["reward"]
    assert in_table["group"] == listed["group"] and in_table["batch"] == listed["batch"]
