"""Trains a run's reward models: each part, its scale, and the accuracy of all on held-out preferences.

Each model is a part of the ``reward`` stage with its own file. Adapters of all parts are added before any is trained,
so that they share the states of the frozen layers.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean, pstdev
from typing import Any

from trimtab.errors import NonFiniteError
from trimtab.evals import MemberErrors, RewardModelEval, evaluate_reward_model, member_errors
from trimtab.feedback.annotator_facts import AnnotatorFacts
from trimtab.files import write_json
from trimtab.models import Backbone, FrozenStates, Role, load_tensors
from trimtab.pipeline.annotator_votes import (
    annotator_lines,
    choose_taste,
    habit_rows,
    heldout_log_loss,
    population,
    taste_facts,
    with_taste,
)
from trimtab.pipeline.augmentation import AUGMENTED
from trimtab.pipeline.context import Context
from trimtab.pipeline.objectives import baselines, evaluations
from trimtab.pipeline.reward_models import WORDS, Part, combined_scores, reward_role, word_score
from trimtab.pipeline.reward_result import FIRST, Objective, RewardModel, RewardResult
from trimtab.records import Preference
from trimtab.trainers import Annotators, Population, Ranking, prepared_states, score_rankings, train_reward

NORMALISE = 64
"""Number of training rankings whose rewards give the mean and standard deviation for normalisation."""


def train_parts(
    context: Context,
    backbone: Backbone,
    parts: Sequence[Part],
    rankings: Sequence[Ranking],
    preferences: Sequence[Preference],
    *,
    annotators: Sequence[str] = (),
) -> tuple[RewardResult, list[str]]:
    """Train every part, normalise it, and measure all on the held-out preferences.

    ``annotators``: names by number, if the rankings have single votes.

    Returns:
        the result, and the files of the weights.

    Raises:
        NonFiniteError: a trained model gives NaN or infinite scores.
    """
    config = context.config.reward
    assert config is not None
    data = _Data(parts=parts, rankings=rankings, preferences=preferences)
    trained = _train(context, backbone, data, annotators)
    scores = {part.name: trained.scores(part, data.train[:NORMALISE], data) for part in parts}
    scales = {name: _scale(name, [x for row in rows for x in row]) for name, rows in scores.items()}
    mean, std = scales[FIRST]
    if config.ensemble is not None:
        mean, std = _scale("the ensemble", [x for row in combined_scores(config.ensemble, scores, scales) for x in row])
    evaluation, by_objective, errors = None, {}, None
    heldout = [i for i, p in enumerate(preferences) if i not in data.learned and len(set(p.ranks)) > 1]
    if heldout:
        heldout_scores = {part.name: trained.scores(part, heldout, data, stored=False) for part in parts}
        chosen = [preferences[i] for i in heldout]
        evaluation, by_objective, errors = _measured(context, parts, heldout_scores, scales, chosen, preferences)
    elif len(parts) > 1:
        context.ui.say("  no preference was held out, so the models' errors are not compared; set reward.holdout")
    facts = None
    if trained.annotators is not None:
        facts = _measured_habits(context, trained.annotators, data, trained.roles[FIRST], len(annotators))
    result = RewardResult(
        mean=mean,
        std=std,
        evaluation=evaluation,
        models=tuple(_model(part, *scales[part.name]) for part in parts),
        errors=errors,
        objectives={
            name: _objective(context, name, data, trained, by_objective.get(name)) for name in config.objectives
        },
        annotators=facts,
    )
    return result, [part.file for part in parts]


@dataclass(frozen=True, kw_only=True)
class _Data:
    """The preferences that the parts learn from or are measured on."""

    parts: Sequence[Part]
    rankings: Sequence[Ranking]
    preferences: Sequence[Preference]

    @cached_property
    def train(self) -> list[int]:
        """Sorted indices of the preferences that any part learns from."""
        return sorted({index for part in self.parts for index in part.places})

    @cached_property
    def learned(self) -> set[int]:
        """The indices of :attr:`train` as a set."""
        return set(self.train)


@dataclass(frozen=True, kw_only=True)
class _Differences:
    """Differences between annotators that a model learned."""

    facts: AnnotatorFacts
    """Facts for ``reward.json``, without the log-loss of held-out votes."""
    population: Population
    """The annotators' habits."""
    taste: Any
    """The annotators' :class:`~trimtab.feedback.taste.Taste`; None: no taste is used."""


@dataclass(frozen=True, kw_only=True)
class _Trained:
    """The parts of a run after training."""

    roles: Mapping[str, Role]
    """Language models by the name of their part."""
    words: Mapping[str, float]
    """Weight of each word in the bag of words; empty without one."""
    states: FrozenStates | None
    """States of the frozen layers for the training rankings."""
    annotators: _Differences | None
    """What the first part learned about annotators; None: the model does not distinguish them."""

    def scores(self, part: Part, indices: Sequence[int], data: _Data, *, stored: bool = True) -> list[list[float]]:
        """Raw scores of the answers at these indices; ``stored``: True: use the training rankings' stored states."""
        if part.name == WORDS:
            return [[word_score(c.text, self.words) for c in data.preferences[i].completions] for i in indices]
        states = self.states if stored else None
        return score_rankings(self.roles[part.name], [data.rankings[i] for i in indices], states=states)


def _train(context: Context, backbone: Backbone, data: _Data, annotators: Sequence[str]) -> _Trained:
    """Train each part and save its weights; parts that were trained before an interruption are loaded."""
    config, folder = context.config.reward, context.folder("reward")
    assert config is not None
    several = len(data.parts) > 1
    roles = {part.name: reward_role(context, backbone, part.name) for part in data.parts if part.name != WORDS}
    states = None
    if len(roles) > 1:
        states = prepared_states(
            roles[FIRST],
            [data.rankings[i] for i in data.train],
            passes=math.inf,
            cache_mb=config.cache_mb,
            micro_batch_tokens=config.micro_batch_tokens,
        )
    words: dict[str, float] = {}
    differences: _Differences | None = None
    for part in data.parts:
        if part.name == WORDS:
            from trimtab.evals.baselines import word_weights  # imports SciPy, which takes a second

            words = word_weights([data.preferences[i] for i in part.places], seed=context.seed("reward"))
            write_json(folder / part.file, words)
            continue
        role, earlier = roles[part.name], context.run.stage("reward") / part.file
        if several and context.group.once(f"weights of {part.name}", earlier.exists):
            role.load_state(load_tensors(earlier))
            continue
        rankings = [data.rankings[i] for i in part.places]
        part_states, learned = _train_part(context, role, part, rankings, states, annotators, several=several)
        differences = differences if learned is None else learned
        states = states if several else part_states
        role.save(folder / part.file)
    return _Trained(roles=roles, words=words, states=states, annotators=differences)


def _train_part(
    context: Context,
    role: Role,
    part: Part,
    rankings: Sequence[Ranking],
    states: FrozenStates | None,
    annotators: Sequence[str],
    *,
    several: bool,
) -> tuple[FrozenStates, _Differences | None]:
    """Train one language model in place.

    Returns:
        the states of its frozen layers, and what it learned about annotators if it is the first part.
    """
    config = context.config.reward
    assert config is not None
    first = part.name == FIRST
    seed = context.seed("reward" if first else f"reward/{part.name}")
    habits, trials, choice = None, [], None
    if annotators:
        start, trials = population(config, rankings, annotators=len(annotators), seed=seed)
        choice = choose_taste(config, start, rankings, annotators=len(annotators), seed=seed)
        rankings = with_taste(rankings, choice and choice.taste)
        habits = Annotators(start, role.backbone.device)
    title = f"reward model {part.name}" if several else "reward model"
    with context.training("reward", title, part="" if first else part.name) as session:
        trained_states = train_reward(
            role, rankings, config, seed=seed, session=session, states=states, annotators=habits
        )
    if habits is None or not first:
        return trained_states, None
    learned = habits.population()
    facts = AnnotatorFacts(
        habits=learned.habits,
        trials=tuple(trials),
        common={"tie": learned.common_tie, "position": learned.common_position},
        annotators=habit_rows(learned, annotators, rankings),
        heldout=None,
        taste=choice and taste_facts(choice),
    )
    return trained_states, _Differences(facts=facts, population=learned, taste=choice and choice.taste)


def _model(part: Part, mean: float, std: float) -> RewardModel:
    return RewardModel(
        name=part.name, file=part.file, judges=part.judges, mean=mean, std=std, preferences=len(part.places)
    )


def _measured_habits(
    context: Context, learned: _Differences, data: _Data, role: Role, annotators: int
) -> AnnotatorFacts:
    """The annotators' facts, with the log-loss of the held-out votes if there are any."""
    config, facts = context.config.reward, learned.facts
    assert config is not None
    indices = [i for i, ranking in enumerate(data.rankings) if i not in data.learned and ranking.votes]
    if indices:
        rankings = with_taste([data.rankings[i] for i in indices], learned.taste)
        heldout = heldout_log_loss(
            config,
            learned.population,
            rankings,
            score_rankings(role, rankings),
            [data.preferences[i].prompt.id for i in indices],
            annotators=annotators,
            seed=context.seed("reward"),
        )
        facts = facts.model_copy(update={"heldout": heldout})
    for line in annotator_lines(facts):
        context.ui.say(f"  {line}")
    return facts


def _objective(
    context: Context, objective: str, data: _Data, trained: _Trained, evaluation: RewardModelEval | None
) -> Objective:
    """One objective, with the scale of its scores over training answers."""
    assert context.config.reward is not None
    head = context.config.reward.objectives.index(objective)
    rankings = [data.rankings[i] for i in data.train if data.rankings[i].head == head][:NORMALISE]
    scores = score_rankings(trained.roles[FIRST], rankings, states=trained.states)
    mean, std = _scale(objective, [x for row in scores for x in row])
    return Objective(mean=mean, std=std, evaluation=evaluation)


def _measured(
    context: Context,
    parts: Sequence[Part],
    heldout: Mapping[str, Sequence[Sequence[float]]],
    scales: Mapping[str, tuple[float, float]],
    chosen: Sequence[Preference],
    preferences: Sequence[Preference],
) -> tuple[RewardModelEval, dict[str, RewardModelEval], MemberErrors | None]:
    """Accuracy of the policy's reward score and of each objective, and the errors of all models together."""
    assert context.config.reward is not None
    ensemble = context.config.reward.ensemble
    scores = heldout[FIRST] if ensemble is None else combined_scores(ensemble, heldout, scales)
    policy_indices = sorted({index for part in parts if not part.judges for index in part.places})
    simple = baselines(chosen, [p for p in (preferences[i] for i in policy_indices) if AUGMENTED not in p.metadata])
    result = evaluate_reward_model(chosen, scores, baselines=simple)
    if result.accuracy.value is not None:
        context.ui.say(
            f"  held-out accuracy {result.accuracy.value:.1%} on {result.pairs} pairs "
            f"({', '.join(f'{b.name} {b.accuracy.value:.1%}' for b in result.baselines)})"
        )
    by_objective = dict(evaluations(chosen, scores, simple)) if context.config.reward.objectives else {}
    for name, objective in by_objective.items():
        context.ui.say(f"  {name}: held-out accuracy {objective.accuracy.value:.1%} on {objective.pairs} pairs")
    errors = member_errors(chosen, heldout, seed=context.seed("reward")) if len(parts) > 1 else None
    if errors is not None:
        for line in error_lines(errors):
            context.ui.say(f"  {line}")
    return result, by_objective, errors


def error_lines(errors: MemberErrors) -> list[str]:
    """The errors of several models in words."""
    rates = ", ".join(f"{name} {rate:.1%}" for name, rate in zip(errors.names, errors.error_rates, strict=True))
    lines = [f"held-out pairs ranked wrongly: {rates}"]
    correlation, effective = errors.correlation, errors.effective
    if correlation.value is None or effective.value is None:
        return [*lines, f"correlation of errors unknown: {correlation.reason}"]

    def ends(low: float | None, high: float | None) -> str:
        return "" if low is None or high is None else f" [{low:.2f}, {high:.2f}]"

    return [
        *lines,
        f"correlation of errors {correlation.value:.2f}{ends(correlation.low, correlation.high)} on {correlation.n} "
        f"pairs: the {len(errors.names)} models are worth {effective.value:.2f}{ends(effective.low, effective.high)} "
        "independent ones",
    ]


def _scale(name: str, values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation of scores; the latter is at least 0.001.

    Raises:
        NonFiniteError: a score is NaN or infinite.
    """
    bad = next((x for x in values if not math.isfinite(x)), None)
    if bad is not None:
        raise NonFiniteError(
            f"the reward model {name!r} gives the score {bad} for an answer it was trained on; lower "
            "reward.optimizer.lr and train it again"
        )
    return fmean(values), max(pstdev(values), 1e-3)
