"""Single votes for a reward model that learns annotators' habits and tastes (``reward.annotators``)."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from trimtab.errors import DataError
from trimtab.evals.baselines import surface_features
from trimtab.feedback import Estimate, paired_bootstrap_interval
from trimtab.feedback.annotator_facts import AnnotatorFacts, AnnotatorHabits, HeldoutVotes, TasteFacts, TasteTrial
from trimtab.feedback.votes import votes_on_pair
from trimtab.pipeline.config import RewardStageConfig
from trimtab.pipeline.context import Context
from trimtab.records import Judgement, Preference, read_records
from trimtab.trainers import PairVote, Population, Ranking
from trimtab.trainers.annotators import Habit

TASTE = "taste"
"""Name of the taste in ``reward.annotators``, next to the habits."""


def with_votes(
    context: Context, rankings: Sequence[Ranking], preferences: Sequence[Preference]
) -> tuple[list[Ranking], list[str]]:
    """The rankings with the votes behind each, and the annotators' names in the order of their numbers.

    All pairs of a ranking of K answers together count as K − 1 votes. If ``reward.annotators`` names the taste, votes
    contain the differences of the texts' surface features.

    Raises:
        DataError: there are no judgements, as with ready-made preferences.
    """
    files = [run.stage("label") / "judgements.jsonl" for run in (*context.run.earlier(), context.run)]
    judgements = {j.id: j for file in files if file.is_file() for j in read_records(file, Judgement)}
    numbers: dict[str, int] = {}
    config = context.config.reward
    learns_taste = config is not None and TASTE in config.annotators
    voted: list[Ranking] = []
    for ranking, preference in zip(rankings, preferences, strict=True):
        preference_judgements = [judgements[name] for name in preference.judgements if name in judgements]
        count = len(preference.completions)
        forms = [surface_features(c.text) if learns_taste else [] for c in preference.completions]
        votes = [
            PairVote(
                annotator=numbers.setdefault(judgement.annotator, len(numbers)),
                first=i,
                second=j,
                outcome=outcome,
                shown=shown,
                weight=share * 2 / count,
                apart=tuple(a - b for a, b in zip(forms[i], forms[j], strict=True)),
            )
            for judgement in preference_judgements
            if judgement.ranks is not None
            for i in range(count)
            for j in range(i + 1, count)
            for outcome, shown, share in votes_on_pair(judgement, i, j)
        ]
        voted.append(replace(ranking, votes=tuple(votes)))
    if not numbers:
        raise DataError(
            f"reward.annotators learns from single votes, and the judgements of {len(preferences)} preferences are not "
            "in stages/label/judgements.jsonl; run the label stage, or leave reward.annotators out"
        )
    return voted, list(numbers)


def population(config: RewardStageConfig, rankings: Sequence[Ranking], *, annotators: int, seed: int) -> Any:
    """Fit the annotators from their votes alone, with free scores of the answers.

    Returns:
        the :class:`~trimtab.trainers.Population` that training starts from, with the habits of ``config`` that lower
        the log-loss of votes in cross-validation, and all trials.
    """
    from trimtab.feedback.comparison_fit import HABITS, fit_comparisons  # imports NumPy and SciPy
    from trimtab.feedback.habit_selection import select_habits

    model = _likelihood(config)
    voted = [r for r in rankings if r.votes]
    votes, group = _vote_arrays(voted, annotators), _judgement_numbers(voted)
    names: list[Habit] = [habit for habit in HABITS if habit in config.annotators]
    habits, trials = select_habits(votes, model=model, habits=names, group=group, seed=seed)
    fit = fit_comparisons(votes, model=model, habits=habits)
    start = Population(
        habits=habits,
        common_tie=fit.common_tie,
        common_position=fit.common_position,
        deviations={habit: fit.deviations[habit] for habit in habits},
        values={habit: getattr(fit.parameters, habit).tolist() for habit in habits},
    )
    return start, trials


def choose_taste(
    config: RewardStageConfig, start: Population, rankings: Sequence[Ranking], *, annotators: int, seed: int
) -> Any:
    """A taste for annotators with enough votes, if it lowers the log-loss of votes in cross-validation.

    Returns:
        a :class:`~trimtab.feedback.taste.TasteChoice`; None: ``config`` does not ask for a taste.
    """
    if TASTE not in config.annotators:
        return None
    from trimtab.feedback.taste import select_taste  # imports NumPy and SciPy

    voted = [r for r in rankings if r.votes]
    return select_taste(
        _vote_arrays(voted, annotators),
        _feature_differences(voted),
        model=_likelihood(config),
        habits=start.habits,
        group=_judgement_numbers(voted),
        seed=seed,
    )


def with_taste(rankings: Sequence[Ranking], taste: Any) -> list[Ranking]:
    """The rankings, each vote with its annotator's :class:`~trimtab.feedback.taste.Taste` added; None: unchanged."""
    if taste is None:
        return list(rankings)
    import numpy as np

    voted = [r for r in rankings if r.votes]
    annotators = np.array([v.annotator for r in voted for v in r.votes], dtype=np.int64)
    offsets = iter(taste.offsets(_feature_differences(voted), annotators).tolist() if voted else ())
    return [replace(r, votes=tuple(replace(v, taste=next(offsets)) for v in r.votes)) for r in rankings]


def _feature_differences(rankings: Sequence[Ranking]) -> Any:
    """Differences of the features of each vote's answers, ``[N, F]``."""
    import numpy as np

    return np.array([v.apart for r in rankings for v in r.votes], dtype=np.float64)


def _judgement_numbers(rankings: Sequence[Ranking]) -> Any:
    """Number of each vote's judgement, ``[N]``: one annotator's votes on one ranking are one judgement."""
    import numpy as np

    numbers: dict[tuple[int, int], int] = {}
    keys = [(number, v.annotator) for number, r in enumerate(rankings) for v in r.votes]
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)


def taste_facts(choice: Any) -> TasteFacts:
    """The entry of ``reward.json`` about a :class:`~trimtab.feedback.taste.TasteChoice`: log-losses and decision."""
    return TasteFacts(
        annotators=choice.annotators,
        without=choice.without,
        trials=tuple(TasteTrial(deviation=deviation, log_loss=loss) for deviation, loss in choice.trials),
        used=choice.taste is not None,
        direction=None if choice.taste is None else choice.taste.direction.tolist(),
    )


def heldout_log_loss(
    config: RewardStageConfig,
    learned: Population,
    rankings: Sequence[Ranking],
    scores: Sequence[Sequence[float]],
    prompts: Sequence[str],
    *,
    annotators: int,
    seed: int,
) -> HeldoutVotes:
    """Log-loss of votes about held-out prompts by the trained rewards, with and without habits and tastes."""
    import numpy as np

    from trimtab.feedback.comparison_model import Parameters, vote_probabilities

    votes = _vote_arrays(rankings, annotators, shared=False)
    owners = [p for r, p in zip(rankings, prompts, strict=True) for _ in r.votes]
    rewards = np.array([s for row in scores for s in row])
    tastes = np.array([v.taste for r in rankings for v in r.votes])
    means = {"tie": learned.common_tie, "skill": 1.0, "position": learned.common_position}
    losses: dict[str, list[float]] = {}
    for name, habits in (("alike", ()), ("annotators", learned.habits)):
        values = {h: np.array(learned.values[h]) if h in habits else np.full(annotators, means[h]) for h in means}
        shift = tastes if name == "annotators" else 0.0
        shares = vote_probabilities(_likelihood(config), votes, Parameters(score=rewards, **values), shift=shift)
        losses[name] = (-np.log(shares[np.arange(len(votes)), votes.outcome])).tolist()
    low, high = paired_bootstrap_interval(losses["alike"], losses["annotators"], owners, seed=seed)
    mean = {name: float(np.average(values, weights=votes.weight)) for name, values in losses.items()}
    gain = Estimate(value=mean["alike"] - mean["annotators"], low=low, high=high, n=len(votes))
    return HeldoutVotes(votes=round(float(votes.weight.sum())), **mean, gain=gain)


def _vote_arrays(rankings: Sequence[Ranking], annotators: int, *, shared: bool = True) -> Any:
    """Votes as arrays; ``shared``: True: equal answers to a prompt are one answer; False: all answers are different."""
    import numpy as np

    from trimtab.feedback.comparison_model import Votes

    nodes_by_tokens: dict[tuple[int, ...], int] = {}
    rows: list[tuple[int, int, int, int]] = []
    numbers: list[tuple[float, float]] = []
    start = 0
    for ranking in rankings:
        nodes = list(range(start, start + len(ranking.sequences)))
        start += len(nodes)
        if shared:
            nodes = [nodes_by_tokens.setdefault(tuple(s), len(nodes_by_tokens)) for s in ranking.sequences]
        for vote in ranking.votes:
            rows.append((nodes[vote.first], nodes[vote.second], vote.outcome, vote.annotator))
            numbers.append((vote.shown, vote.weight))
    integers = np.array(rows, dtype=np.int64).reshape(-1, 4)
    floats = np.array(numbers, dtype=np.float64).reshape(-1, 2)
    return Votes(
        first=integers[:, 0],
        second=integers[:, 1],
        outcome=integers[:, 2],
        annotator=integers[:, 3],
        shown=floats[:, 0],
        weight=floats[:, 1],
        answers=len(nodes_by_tokens) if shared else start,
        annotators=annotators,
    )


def _likelihood(config: RewardStageConfig) -> Literal["davidson", "rao_kupper"]:
    assert config.loss in ("davidson", "rao_kupper")  # the section refuses others
    return config.loss


def habit_rows(learned: Population, names: Sequence[str], rankings: Sequence[Ranking]) -> tuple[AnnotatorHabits, ...]:
    """Each annotator's habits at the end of training."""
    votes = [0.0] * len(names)
    for ranking in rankings:
        for vote in ranking.votes:
            votes[vote.annotator] += vote.weight
    return tuple(
        AnnotatorHabits(
            annotator=name, votes=round(votes[a]), **{habit: learned.values[habit][a] for habit in learned.habits}
        )
        for a, name in enumerate(names)
    )  # fmt: skip


def annotator_lines(facts: AnnotatorFacts) -> list[str]:
    """Lines about the fit of annotators."""
    lines = [
        "log-loss of a vote that was not fitted: "
        + ", ".join(f"{' + '.join(t.habits) or 'annotators alike'} {t.log_loss:.4f}" for t in facts.trials)
    ]
    lines.append(f"habits that lower it and are used in training: {', '.join(facts.habits) or 'none'}")
    if facts.taste:
        lines.append(_taste_line(facts.taste))
    if heldout := facts.heldout:
        gain = heldout.gain
        lines.append(
            f"log-loss of {heldout.votes} votes about held-out prompts: {heldout.alike:.4f} with annotators alike, "
            f"{heldout.annotators:.4f} with their habits; gain {gain.value:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]"
        )
    return lines


def _taste_line(taste: TasteFacts) -> str:
    """A line about the decision on a taste, with both log-losses."""
    if not taste.trials:
        return f"no taste: {taste.annotators} annotators have 50 votes, and at least two are needed"
    best = min(trial.log_loss for trial in taste.trials)
    decision = "used in training" if taste.used else "not used"
    return (
        f"a taste of {taste.annotators} annotators with 50 votes or more: log-loss of a vote that was not fitted "
        f"{taste.without:.4f} without, {best:.4f} with; {decision}"
    )
