"""Annotators' habits learned with a reward model: likelihoods, planted habits, and what the average annotator keeps."""

from importlib import import_module
from typing import Any, Literal, cast

import numpy as np
import pytest
import torch

from trimtab.algos import vote_loss
from trimtab.conformance.tabular import LinearReward
from trimtab.errors import TrainingError
from trimtab.feedback.annotator_facts import AnnotatorFacts
from trimtab.feedback.comparison_model import Parameters, Votes, outcome_logs, vote_probabilities
from trimtab.pipeline.annotator_votes import (
    annotator_lines,
    choose_taste,
    habit_rows,
    heldout_log_loss,
    population,
    taste_facts,
    with_taste,
)
from trimtab.pipeline.config import RewardStageConfig
from trimtab.trainers import Annotators, OptimizerConfig, PairVote, Population, Ranking, score_rankings, train_reward
from trimtab.trainers.annotators import VoteTable

MODELS: tuple[Literal["davidson", "rao_kupper"], ...] = ("davidson", "rao_kupper")


@pytest.mark.parametrize("model", MODELS)
def test_votes_have_the_aggregations_likelihood(model: Literal["davidson", "rao_kupper"]):
    rng = np.random.default_rng(0)
    gap, tau = rng.normal(0, 2, 30), rng.normal(-0.5, 0.5, 30)
    outcome = rng.integers(0, 3, 30)
    logs = outcome_logs(model, gap, tau)[0][np.arange(30), outcome]
    losses = vote_loss(torch.tensor(gap), torch.tensor(tau), torch.tensor(outcome), likelihood=model)
    assert losses.tolist() == pytest.approx((-logs).tolist(), rel=1e-5)


def test_an_outcome_that_is_none():
    with pytest.raises(TrainingError, match="an outcome is not 0"):
        vote_loss(torch.zeros(1), torch.zeros(1), torch.tensor([3]), likelihood="davidson")


def planted(votes: int = 3000) -> tuple[torch.Tensor, Parameters, list[Ranking]]:
    """Ten annotators with their own tie thresholds, skills and position biases on 60 answers with five features."""
    rng = np.random.default_rng(1)
    answers, people = 60, 10
    features = rng.normal(size=(answers, 5))
    skill = np.linspace(0.2, 1.8, people)
    truth = Parameters(
        score=features @ rng.normal(0, 1.0, 5),
        skill=rng.permutation(skill),
        tie=rng.permutation(np.linspace(-2.0, 1.0, people)),
        position=rng.permutation(np.linspace(-0.6, 1.0, people)),
    )
    first = rng.integers(0, answers, votes)
    arrays: dict[str, Any] = {
        "first": first, "second": (first + rng.integers(1, answers, votes)) % answers,
        "annotator": rng.integers(0, people, votes), "shown": rng.choice([-1.0, 1.0], votes), "weight": np.ones(votes),
        "answers": answers, "annotators": people, "outcome": np.zeros(votes, dtype=int),
    }  # fmt: skip
    given = Votes(**arrays)
    outcome = (rng.random(votes)[:, None] > vote_probabilities("davidson", given, truth).cumsum(1)).sum(1)
    rankings = [
        Ranking(
            id=str(n), sequences=[[0, int(given.first[n])], [0, int(given.second[n])]], prompt_length=1,
            ranks=((0, 1), (0, 0), (1, 0))[outcome[n]], probability=None, margin=None, weight=1.0,
            votes=(
                PairVote(
                    annotator=int(given.annotator[n]), first=0, second=1, outcome=int(outcome[n]),
                    shown=float(given.shown[n]), weight=1.0,
                ),
            ),
        )
        for n in range(votes)
    ]  # fmt: skip
    return torch.tensor(features), truth, rankings


def test_planted_habits_are_recovered_and_held_out_votes_are_better_explained():
    features, truth, rankings = planted()
    train, held = rankings[:2400], rankings[2400:]
    steady = OptimizerConfig(lr=0.2, schedule="cosine", warmup=0.0, max_grad_norm=None)
    config = RewardStageConfig(
        loss="davidson", annotators=("tie", "skill", "position"), optimizer=steady, batch=2400, epochs=40,
        micro_batch_tokens=1 << 22,
    )  # fmt: skip
    start, trials = population(config, train, annotators=10, seed=0)
    assert start.habits == ("tie", "position", "skill") and all(t.kept for t in trials)
    habits, role = Annotators(start), LinearReward(features)
    train_reward(cast(Any, role), train, config, seed=0, annotators=habits)
    learned = habits.population()
    for habit, least in (("tie", 0.9), ("skill", 0.7), ("position", 0.8)):
        assert np.corrcoef(learned.values[habit], getattr(truth, habit))[0, 1] > least, habit
    assert np.mean(learned.values["skill"]) == pytest.approx(1.0, abs=1e-5)
    scores = score_rankings(cast(Any, role), held)
    measured = heldout_log_loss(config, learned, held, scores, [r.id for r in held], annotators=10, seed=0)
    assert measured.votes == 600 and (measured.gain.low or 0.0) > 0
    assert measured.annotators == pytest.approx(measured.alike - (measured.gain.value or 0.0))
    # rewards are the average annotator's log-odds
    slope = np.polyfit(truth.score, role.scalar(features).detach().numpy()[:, 0], 1)[0]
    assert slope == pytest.approx(1.0, abs=0.25)
    rows = habit_rows(learned, [f"w{a}" for a in range(10)], train)
    assert sum(row.votes for row in rows) == 2400 and rows[3].tie == learned.values["tie"][3]


def test_a_planted_taste_is_fitted_before_training_and_stays_out_of_the_rewards():
    """Two annotators want the third feature, two want it not; the scores do not depend on it."""
    rng = np.random.default_rng(3)
    answers, people, count = 30, 4, 1800
    features = rng.normal(size=(answers, 3))
    truth = features @ np.array([1.0, -1.0, 0.0])
    likes = np.array([1.5, 1.5, -1.5, -1.5])
    rankings = []
    for n in range(count):
        i, j = (int(x) for x in rng.choice(answers, 2, replace=False))
        who, apart = int(rng.integers(0, people)), features[i] - features[j]
        gap = truth[i] - truth[j] + likes[who] * apart[2]
        shares = np.exp(outcome_logs("davidson", np.array([gap]), np.array([-1.0]))[0][0])
        vote = PairVote(
            annotator=who, first=0, second=1, outcome=int(rng.choice(3, p=shares / shares.sum())), shown=0.0,
            weight=1.0, apart=tuple(apart.tolist()),
        )  # fmt: skip
        ranks = ((0, 1), (0, 0), (1, 0))[vote.outcome]
        rankings.append(
            Ranking(
                id=str(n), sequences=[[0, i], [0, j]], prompt_length=1, ranks=ranks, probability=None, margin=None,
                weight=1.0, votes=(vote,),
            )
        )  # fmt: skip
    train, held = rankings[:1400], rankings[1400:]
    steady = OptimizerConfig(lr=0.3, schedule="cosine", warmup=0.0, max_grad_norm=None)
    config = RewardStageConfig(
        loss="davidson", annotators=("taste",), optimizer=steady, batch=1400, epochs=20, micro_batch_tokens=1 << 22
    )
    start, _ = population(config, train, annotators=people, seed=0)
    choice = choose_taste(config, start, train, annotators=people, seed=0)
    assert start.habits == () and choice.annotators == people and taste_facts(choice).used
    tasted = with_taste(train, choice.taste)
    offsets = np.array([r.votes[0].taste for r in tasted])
    wanted = np.array([likes[r.votes[0].annotator] * r.votes[0].apart[2] for r in train])
    assert np.corrcoef(offsets, wanted)[0, 1] > 0.95
    role, habits = LinearReward(torch.tensor(features)), Annotators(start)
    train_reward(cast(Any, role), tasted, config, seed=0, annotators=habits)
    learned = role.scalar(torch.tensor(features)).detach().numpy()[:, 0]
    assert np.corrcoef(learned, truth)[0, 1] > 0.98
    scores = score_rankings(cast(Any, role), held)
    measured = heldout_log_loss(
        config, habits.population(), with_taste(held, choice.taste), scores, [r.id for r in held], annotators=people,
        seed=0,
    )  # fmt: skip
    assert (measured.gain.low or 0.0) > 0 and measured.alike > measured.annotators
    facts = AnnotatorFacts(
        habits=(), trials=(), common={}, annotators=(), heldout=None, taste=taste_facts(choice)
    )  # fmt: skip
    lines = annotator_lines(facts)
    assert "4 annotators with 50 votes or more" in lines[-1] and "used in training" in lines[-1]
    assert choose_taste(config.model_copy(update={"annotators": ("tie",)}), start, train, annotators=4, seed=0) is None
    assert with_taste(train, None) == train


def test_votes_of_one_judgement_are_tested_together(monkeypatch: pytest.MonkeyPatch):
    """All three pairs of an annotator's ranking of three answers are one group, and count as two votes."""
    pairs = ((0, 1), (0, 2), (1, 2))
    rankings = [
        Ranking(
            id=str(n), sequences=[[0, 3 * n + k] for k in range(3)], prompt_length=1, ranks=(0, 1, 2), probability=None,
            margin=None, weight=1.0,
            votes=tuple(
                PairVote(
                    annotator=a, first=i, second=j, outcome=0, shown=1.0, weight=2 / 3, apart=(float(i), float(j))
                )
                for a in people
                for i, j in pairs
            ),
        )
        for n, people in enumerate(((0, 1), (), (1, 0)))
    ]  # fmt: skip
    groups: list[list[int]] = []

    def watched(module: str, name: str) -> None:
        original = getattr(import_module(module), name)

        def call(*given: Any, group: Any, **settings: Any) -> Any:
            groups.append(group.tolist())
            return original(*given, group=group, **settings)

        monkeypatch.setattr(f"{module}.{name}", call)

    watched("trimtab.feedback.habit_selection", "select_habits")
    watched("trimtab.feedback.taste", "select_taste")
    config = RewardStageConfig(loss="davidson", annotators=("tie", "taste"))
    start, _ = population(config, rankings, annotators=2, seed=0)
    choose_taste(config, start, rankings, annotators=2, seed=0)
    assert groups == [[n // 3 for n in range(12)]] * 2
    assert [row.votes for row in habit_rows(start, ["w0", "w1"], rankings)] == [4, 4]
    scores = [[0.0, 0.1, 0.2]] * 3
    held = heldout_log_loss(config, start, rankings, scores, ["a", "b", "c"], annotators=2, seed=0)
    assert held.votes == 8 and held.gain.n == 12


def test_an_offset_is_added_to_the_difference_of_the_rewards():
    vote = PairVote(annotator=0, first=0, second=1, outcome=0, shown=0.0, weight=1.0, taste=0.7)
    ranking = Ranking(
        id="a", sequences=[[0, 1], [0, 2]], prompt_length=1, ranks=(0, 1), probability=None, margin=None, weight=1.0,
        votes=(vote,),
    )  # fmt: skip
    start = Population(habits=("skill",), deviations={"skill": 0.5}, values={"skill": [2.0, 0.0]})
    votes = VoteTable.of([ranking], torch.device("cpu"))
    loss = Annotators(start).loss(torch.tensor([0.5, 0.2]), votes, "davidson")
    wanted = -outcome_logs("davidson", np.array([2.0 * (0.5 - 0.2 + 0.7)]), np.array([0.0]))[0][0, 0]
    assert float(loss.detach()) == pytest.approx(wanted, rel=1e-5)


def test_alike_annotators_get_no_habits():
    """Habits that do not lower held-out log-loss are not used."""
    _, truth, rankings = planted(900)
    rng = np.random.default_rng(5)
    alike = []
    for r in rankings:
        gap = truth.score[r.sequences[0][1]] - truth.score[r.sequences[1][1]]
        shares = np.exp(outcome_logs("davidson", np.array([gap]), np.array([-0.5]))[0][0])
        vote = PairVote(
            annotator=int(rng.integers(0, 10)), first=0, second=1, outcome=int(rng.choice(3, p=shares / shares.sum())),
            shown=1.0, weight=1.0,
        )  # fmt: skip
        alike.append(Ranking(**{**{n: getattr(r, n) for n in r.__slots__}, "votes": (vote,)}))
    config = RewardStageConfig(loss="davidson", annotators=("skill",))
    start, trials = population(config, alike, annotators=10, seed=0)
    assert start.habits == () and [t.kept for t in trials] == [True, False]
    assert Annotators(start).population().values == {}


def test_unknown_annotators_and_copies_are_the_average_annotator():
    start = Population(
        habits=("tie", "skill"), common_tie=-0.4, common_position=0.3, deviations={"tie": 1.0, "skill": 0.5},
        values={"tie": [0.0, 1.0], "skill": [0.5, 1.5]},
    )  # fmt: skip
    annotators = Annotators(start)
    whole = Ranking(
        id="a", sequences=[[0, 1], [0, 2]], prompt_length=1, ranks=(1, 0), probability=None, margin=None, weight=2.0
    )
    soft = Ranking(
        id="b", sequences=[[0, 1], [0, 2]], prompt_length=1, ranks=(0, 1), probability=0.5, margin=None, weight=1.0
    )
    votes = VoteTable.of([whole, soft], torch.device("cpu"))
    assert votes.outcome.tolist() == [0, 1] and votes.weight.tolist() == [2.0, 1.0]
    assert (votes.first.tolist(), votes.second.tolist()) == ([1, 2], [0, 3])
    scores = torch.tensor([0.5, 1.5, 0.0, 0.0])
    wanted = 2 * vote_loss(torch.tensor([1.0]), torch.tensor([-0.4]), torch.tensor([0]), likelihood="davidson")
    wanted += vote_loss(torch.tensor([0.0]), torch.tensor([-0.4]), torch.tensor([1]), likelihood="davidson")
    assert float(annotators.loss(scores, votes, "davidson").detach()) == pytest.approx(float(wanted))
    saved_state = annotators.state()
    other = Annotators(start)
    other.load_state(saved_state)
    assert other.population() == annotators.population()
    assert annotators.population().values["tie"] == pytest.approx([0.0, 1.0])
    # ½ Σ (θ/σ)²: ties (0.4, 1.4) from μ_τ = −0.4, skills ±0.5 from 1, μ_τ itself and μ_b
    penalty = (0.4**2 + 1.4**2 + 2 * 1.0**2 + (0.4 / 10) ** 2 + (0.3 / 0.5) ** 2) / 2
    assert float(annotators.penalty().detach()) == pytest.approx(penalty)
