"""The part of the table that takes seconds, on one seed; tables against plain sums; golden values."""

import itertools
import json
import math
from collections.abc import Callable

import pytest
import torch
from typer.testing import CliRunner

from trimtab.algos import kl_k2, kl_k3, kl_sequence, penalised_rewards
from trimtab.cli.app import app
from trimtab.conformance import GOLDENS, hold
from trimtab.conformance.games import PRICE, exploitability, fixed_point, game
from trimtab.conformance.label_experiments import preference_identities, process_and_outcome
from trimtab.conformance.off_policy import off_policy
from trimtab.conformance.preference_optima import preference_optima
from trimtab.conformance.rl_experiments import (
    MDP,
    _forward_optimum,
    divergence_gradients,
    estimators,
    gap_left,
    mdp_instance,
)
from trimtab.conformance.rows import Row, worst_row
from trimtab.conformance.tables import BETA, gibbs, kl, settings, train_table
from trimtab.conformance.tabular import TabularOpponent, TabularRole, TabularSampler, Tree
from trimtab.errors import ConfigError
from trimtab.models import collate
from trimtab.records import Prompt
from trimtab.trainers import KLConfig, RlooConfig

F = torch.float64


# Tables -------------------------------------------------------------------------------------


def test_a_tree_numbers_its_states_level_by_level():
    tree = Tree(actions=3, depth=3)
    assert tree.states == 1 + 3 + 9
    assert tree.states_on(torch.tensor([[2, 1, 0], [0, 0, 2]])).tolist() == [[0, 3, 4 + 7], [0, 1, 4 + 0]]
    every = tree.states_on(tree.paths())
    assert every[:, 2].unique().numel() == 9 and every.max() == 12


def test_path_probabilities_are_products_and_sum_to_one():
    tree = Tree(actions=3, depth=2)
    logits = torch.randn(4, 3, dtype=F, generator=torch.Generator().manual_seed(0))
    p = torch.softmax(logits, -1)
    by_hand = [p[0, a] * p[1 + a, b] for a in range(3) for b in range(3)]
    assert torch.allclose(tree.path_logprobs(logits).exp(), torch.stack(by_hand))
    assert float(torch.stack(by_hand).sum()) == pytest.approx(1.0)
    batch = collate([[0, 2, 1]], [[False, True, True]], torch.device("cpu"))
    result, entropies = TabularRole(tree, logits).logprobs_and_entropies(batch)
    assert result[0].tolist() == pytest.approx([0.0, math.log(p[0, 2]), math.log(p[3, 1])])
    assert float(entropies[0, 1]) == pytest.approx(-float((p[0] * p[0].log()).sum()))


def test_the_sampler_draws_from_the_table_and_reports_what_it_drew_with():
    tree = Tree(actions=2, depth=2)
    logits = torch.tensor([[0.3, -0.2], [1.0, 0.0], [-2.0, 0.5]], dtype=F)
    prompts = [Prompt.from_text(str(i)) for i in range(1000)]
    drawn = TabularSampler(TabularRole(tree, logits)).generate(prompts, adapter=None, seed=1, group=4, weight_version=0)
    counts = torch.zeros(4)
    for rollout in drawn:
        counts[rollout.tokens[0] * 2 + rollout.tokens[1]] += 1
    share = tree.path_logprobs(logits).exp()
    assert ((counts / 4000 - share).abs() < 4 * (share * (1 - share) / 4000).sqrt()).all()
    first = drawn[0]
    whole = float(tree.path_logprobs(logits)[first.tokens[0] * 2 + first.tokens[1]])
    assert sum(first.logprobs) == pytest.approx(whole, abs=1e-6)


def test_forward_optimum_is_where_its_gradient_vanishes():
    ref, reward = torch.log_softmax(torch.tensor([0.5, -0.2, 1.0], dtype=F), 0), torch.tensor([1.0, 0.0, 0.3], dtype=F)
    logits = _forward_optimum(ref, reward, 0.5).requires_grad_()
    new = torch.log_softmax(logits, 0)
    (new.exp() @ reward - 0.5 * (ref.exp() * (ref - new)).sum()).backward()
    assert logits.grad is not None and logits.grad.abs().max() < 1e-9


def test_the_identity_that_makes_regret_exact():
    g = torch.Generator().manual_seed(0)
    ref, pi = torch.log_softmax(torch.randn(2, 6, dtype=F, generator=g), -1)
    reward, beta = torch.randn(6, dtype=F, generator=g), 0.7
    best = gibbs(ref, reward, beta)

    def objective(p: torch.Tensor) -> float:
        return float(p.exp() @ reward) - beta * kl(p, ref)

    assert objective(best) - objective(pi) == pytest.approx(beta * kl(pi, best))


# Rows ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("experiment", "count"),
    [
        (estimators, None),
        (divergence_gradients, None),
        (preference_identities, 1),
        (preference_optima, 1),
        (process_and_outcome, None),
        (off_policy, None),
    ],
)
def test_fast_experiments_pass(experiment, count: int | None):
    """``count``: the first rows alone, because each trains a policy; the others are in the slow test below."""
    rows = list(itertools.islice(experiment([0]), count))
    assert rows and [r for r in rows if not r.passed] == []


@pytest.mark.slow
@pytest.mark.parametrize("experiment", [preference_identities, preference_optima])
def test_all_rows_of_the_preference_experiments_pass(experiment):
    rows = list(experiment([0]))
    assert len(rows) > 1 and [r for r in rows if not r.passed] == []


def test_a_sampled_bandit_goes_to_its_optimum():
    g = torch.Generator().manual_seed(3)
    ref, reward = torch.log_softmax(torch.randn(8, dtype=F, generator=g), 0), torch.randn(8, dtype=F, generator=g)
    config = settings(RlooConfig, steps=150, lr=0.1, samples=128, kl=KLConfig(coefficient=0.5))
    roles = train_table(Tree(actions=8), ref[None], reward, config, seed=0)
    end = torch.log_softmax(roles.policy.logits[0].detach(), 0)  # type: ignore[attr-defined]
    assert kl(ref, gibbs(ref, reward, 0.5)) > 0.3 and kl(end, gibbs(ref, reward, 0.5)) < 0.02


@pytest.mark.parametrize(
    ("kl_config", "low", "high"),
    [
        (KLConfig(coefficient=0.2), 0.15, 0.35),
        (KLConfig(coefficient=0.2, place="loss"), 0.15, 0.35),
        (KLConfig(coefficient=0.2, place="loss", estimator="k2"), 0.55, 1.0),
    ],
    ids=["reward", "sequence", "per-token k2"],
)
def test_only_the_kl_of_whole_answers_sees_the_price_of_the_second_token(kl_config, low, high):
    """A, then a word of 2 %, earns 1; B earns ½; β = .2: π*(A) = .245 (Z_A = .5·(.02·e⁵ + .98), Z_B = .5·e^2.5)."""
    z_a, z_b = 0.5 * (0.02 * math.exp(5) + 0.98), 0.5 * math.exp(2.5)
    assert z_a / (z_a + z_b) == pytest.approx(0.245, abs=5e-4)
    ref = torch.tensor([[0.5, 0.5], [0.02, 0.98], [0.5, 0.5]], dtype=F).log()
    config = settings(RlooConfig, steps=120, lr=0.1, samples=256, depth=2, kl=kl_config)
    roles = train_table(Tree(actions=2, depth=2), ref, torch.tensor([1.0, 0.0, 0.5, 0.5]), config, seed=0)
    end = torch.softmax(roles.policy.logits[0].detach(), 0)  # type: ignore[attr-defined]
    assert low < float(end[0]) < high


@pytest.mark.parametrize("seed", range(2))
def test_only_the_kl_of_whole_answers_closes_the_gap_of_the_token_mdp(seed: int):
    """Ascent with exact expectations, over all 1,024 answers: per-token k2 leaves about a third of it open."""
    ref, reward = mdp_instance(seed)
    paths = MDP.paths()
    states, mask = MDP.states_on(paths), torch.ones(paths.shape, dtype=torch.bool)

    def tokens(logits: torch.Tensor) -> torch.Tensor:
        return torch.log_softmax(logits, -1)[states].gather(-1, paths[..., None]).squeeze(-1)

    base = tokens(ref)

    def in_the_reward(new: torch.Tensor) -> torch.Tensor:
        earned = penalised_rewards(reward, new, base, mask, beta=BETA)
        return (earned.flip(1).cumsum(1).flip(1) * new).sum(1)

    def in_the_loss(divergence: Callable[..., torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda new: reward * new.sum(1) - BETA * divergence(new, base, mask).sum(1)

    def end(gain: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        logits = ref.clone().requires_grad_()
        search = torch.optim.Adam([logits], lr=0.1)
        for _ in range(200):
            new = tokens(logits)
            search.zero_grad()
            (-new.sum(1).exp().detach() @ gain(new)).backward()
            search.step()
        return logits.detach()

    leash, sequence, k2, k3 = (
        end(gain) for gain in (in_the_reward, in_the_loss(kl_sequence), in_the_loss(kl_k2), in_the_loss(kl_k3))
    )
    assert torch.allclose(leash, sequence, atol=1e-6)
    assert gap_left(sequence, ref, reward) < 0.01
    assert 0.2 < gap_left(k2, ref, reward) < 0.6 and gap_left(k3, ref, reward) > 0.1


def test_a_row_shows_the_worst_seed_and_fails_outside_its_bounds():
    row = worst_row("1", "a", "b", [0.1, 0.5, 0.2], high=0.4)
    assert row.value == 0.5 and not row.passed and row.seeds == 3
    assert worst_row("1", "a", "b", [0.3, 0.9], low=0.2, high=1.0).value in (0.3, 0.9)
    assert worst_row("1", "a", "b", [0.1, 0.9], low=0.2, high=math.inf).value == 0.1
    assert row.as_json()["low"] is None and json.dumps(row.as_json())


def test_the_command_prints_the_table_and_fails_with_a_row(monkeypatch: pytest.MonkeyPatch, tmp_path):
    row = Row(experiment="1 x", algorithm="RLOO", measure="error", value=1e-3, low=-math.inf, high=1e-2, seeds=2)
    bad = Row(experiment="1 x", algorithm="GRPO", measure="error", value=0.1, low=-math.inf, high=1e-2, seeds=2)
    monkeypatch.setattr("trimtab.conformance.conformance", lambda seeds, long: iter([row]))
    out = tmp_path / "table.json"
    good = CliRunner().invoke(app, ["doctor", "--conformance", "--seeds", "2", "--out", str(out)])
    assert good.exit_code == 0 and "pass  RLOO: error: 0.001  (≤ 0.01; 2 seeds)" in good.output
    assert json.loads(out.read_text())["rows"][0]["passed"] is True
    monkeypatch.setattr("trimtab.conformance.conformance", lambda seeds, long: iter([row, bad]))
    failed = CliRunner().invoke(app, ["doctor", "--conformance", "--json"])
    assert failed.exit_code == 1 and [r["passed"] for r in json.loads(failed.output)] == [True, False]


# Goldens ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GOLDENS)
def test_our_own_functions_hold(name: str):
    held = hold(name, GOLDENS[name].ours)
    assert held.passed, held


def test_another_librarys_loss_is_held_against_them():
    def theirs(policy_chosen, policy_rejected, ref_chosen, ref_rejected, beta):
        gap = (policy_chosen - ref_chosen) - (policy_rejected - ref_rejected)
        return -torch.nn.functional.logsigmoid(beta * gap)

    assert hold("dpo", theirs).passed
    averaged = lambda **x: 23.603402778  # noqa: E731  log-ratios averaged over length: the other form of IPO
    assert hold("ipo, per token", averaged).passed
    assert not hold("ipo", averaged).passed and hold("ipo", averaged).difference == pytest.approx(23.6034 - 12.25)
    with pytest.raises(ConfigError, match="there is no golden 'dop'; there are bradley_terry"):
        hold("dop", theirs)
    with pytest.raises(ConfigError, match=r"gave 1 numbers for 'kto', expected 2; return losses unreduced"):
        hold("kto", lambda **x: 0.5)


# Games --------------------------------------------------------------------------------------


def test_the_end_of_a_game_solves_its_equation_and_cannot_be_gained_against():
    ref, beats = game(2)
    assert torch.allclose(beats + beats.T, torch.ones(4, 4, dtype=F))
    nash = fixed_point(ref, beats, 0.0)
    assert torch.allclose(nash, torch.log_softmax(ref + beats @ nash.exp() / PRICE, 0))
    assert exploitability(nash, ref, beats) == pytest.approx(0.0, abs=1e-9) and exploitability(ref, ref, beats) > 0.1
    mixed = fixed_point(ref, beats, 0.5)
    opponent = torch.log_softmax((mixed + ref) / 2, 0)
    assert torch.allclose(mixed, torch.log_softmax(ref + beats @ opponent.exp() / PRICE, 0))
    assert kl(mixed, nash) > 1e-3


def test_a_tabular_opponent_draws_from_the_mixture():
    tree, logits = Tree(actions=3), torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 2.0]], dtype=F)
    policy, reference = (TabularRole(tree, row[None]) for row in logits)
    drawn = TabularOpponent(policy, reference, 0.25).draw([Prompt.from_text("a")] * 3000, seed=1)
    share = torch.bincount(torch.tensor([r.tokens[0] for r in drawn]), minlength=3) / 3000
    expected = torch.softmax(torch.tensor([1.5, 0.0, 0.5], dtype=F), 0)
    assert float((share - expected).abs().max()) < 0.04
