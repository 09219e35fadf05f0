"""The reward models of a run: one, an ensemble on one trunk, and one that only judges.

Each model is a part of the ``reward`` stage with a file of its own. Adapters of all parts are added before any is
trained, so that they share the states of the frozen layers.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev
from typing import Any

import torch

from trimtab.errors import DataError, NonFiniteError
from trimtab.evals import MemberErrors, evaluate_reward_model, member_errors
from trimtab.files import write_json
from trimtab.models import PASS_TOKENS, Backbone, FrozenStates, Role, load_tensors
from trimtab.pipeline.annotator_votes import annotator_lines, habit_rows, heldout_log_loss, population
from trimtab.pipeline.augmentation import AUGMENTED
from trimtab.pipeline.config import RewardStageConfig
from trimtab.pipeline.context import Context, Counts
from trimtab.pipeline.objectives import baselines, evaluations
from trimtab.records import Preference
from trimtab.rollout import EnsembleConfig, ObjectiveScorer, RewardModels, RewardModelScorer
from trimtab.rollout.rewards import RewardFunction
from trimtab.storage import read_json
from trimtab.trainers import (
    HELDOUT,
    Annotators,
    Population,
    Ranking,
    prepared_states,
    score_rankings,
    split_holdout,
    train_reward,
)

NORMALISE = 64
"""Number of training rankings whose rewards give the mean and standard deviation for normalisation."""

SMALLEST_PART = 8
"""Fewest prompts that a reward model of its own is trained on."""

FIRST, WORDS = "reward", "words"
"""Names of the first model and of the bag of words."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One reward model of a run."""

    name: str
    """``reward`` is the first one; then ``member_2`` and so on, ``words``, ``heldout``."""
    places: list[int]
    """The preferences that it learns from."""

    @property
    def judges(self) -> bool:
        """True: it is not trained on and only judges."""
        return self.name == HELDOUT

    @property
    def file(self) -> str:
        """File of its weights in the stage's folder."""
        return weights_file(self.name)


def weights_file(name: str) -> str:
    """File of a reward model's weights in the stage's folder."""
    ending = "json" if name == WORDS else "safetensors"
    return f"weights.{ending}" if name == FIRST else f"weights-{name}.{ending}"


def reward_parts(config: RewardStageConfig, prompts: Sequence[str], train: Sequence[int], *, seed: int) -> list[Part]:
    """The models to train and the preferences that each learns from; the held-out one comes last.

    Args:
        config: the section ``reward``.
        prompts: id of every preference's prompt; one prompt's preferences stay together.
        train: preferences that are not held out.
        seed: of the halves.

    Raises:
        DataError: a model would learn from fewer than 8 prompts.
    """
    climbed, aside = list(train), list[int]()
    if config.split:
        climbed, aside = _halves(climbed, prompts, seed)
    ensemble = config.ensemble
    shares = [climbed]
    if ensemble is not None:
        halves = _halves(climbed, prompts, seed + 1) if ensemble.halves else (climbed, climbed)
        shares = [halves[number % 2] for number in range(ensemble.members)]
    names = [FIRST, *(f"member_{number + 1}" for number in range(1, len(shares)))]
    parts = [Part(name=name, places=share) for name, share in zip(names, shares, strict=True)]
    if ensemble is not None and ensemble.words:
        parts.append(Part(name=WORDS, places=climbed))
    if config.split:
        parts.append(Part(name=HELDOUT, places=aside))
    for part in parts if len(parts) > 1 else []:
        if (count := len({prompts[place] for place in part.places})) < SMALLEST_PART:
            raise DataError(
                f"the reward model {part.name!r} would learn from {count} of {len({prompts[i] for i in train})} "
                f"prompts; at least {SMALLEST_PART} are needed: collect more preferences, or set reward.split and "
                "reward.ensemble.halves to false"
            )
    return parts


def _halves(places: Sequence[int], prompts: Sequence[str], seed: int) -> tuple[list[int], list[int]]:
    first, second = split_holdout([prompts[place] for place in places], 0.5, seed)
    return [places[i] for i in first], [places[i] for i in second]


def reward_backbone(context: Context, trunk: Backbone | None) -> Backbone:
    """What reward models are adapters on: the policy's trunk, or a model of their own."""
    config = context.config.reward
    assert config is not None
    if config.model is not None:
        return Backbone.load(config.model)
    return context.trunk() if trunk is None else trunk


def reward_role(context: Context, backbone: Backbone, name: str = FIRST) -> Role:
    """A reward model's role, weights not yet loaded."""
    config = context.config.reward
    assert config is not None
    seed = context.seed("reward" if name == FIRST else f"reward/{name}")
    return Role.trainable(backbone, name, config.adapter, seed=seed, scalar_head=True, heads=config.heads)


def train_parts(
    context: Context,
    backbone: Backbone,
    parts: Sequence[Part],
    rankings: Sequence[Ranking],
    preferences: Sequence[Preference],
    *,
    annotators: Sequence[str] = (),
) -> tuple[dict[str, Any], list[str]]:
    """Train every part, normalise it, and measure all on the held-out preferences.

    ``annotators``: by number, where the rankings have votes that are explained one by one.

    Returns:
        the contents of ``reward.json``, and the files of the weights.

    Raises:
        NonFiniteError: a trained model gives NaN or infinite scores.
    """
    config, folder = context.config.reward, context.folder("reward")
    assert config is not None
    roles = {part.name: reward_role(context, backbone, part.name) for part in parts if part.name != WORDS}
    train = sorted({place for part in parts for place in part.places})
    states = None
    if len(roles) > 1:
        states = prepared_states(
            roles[FIRST],
            [rankings[i] for i in train],
            passes=math.inf,
            cache_mb=config.cache_mb,
            micro_batch_tokens=config.micro_batch_tokens,
        )
    words: dict[str, float] = {}
    people: dict[str, Any] | None = None
    for part in parts:
        if part.name == WORDS:
            from trimtab.evals.baselines import word_weights  # with SciPy, which takes a second

            words = word_weights([preferences[i] for i in part.places], seed=context.seed("reward"))
            write_json(folder / part.file, words)
            continue
        role, file = roles[part.name], folder / part.file
        earlier = context.run.stage("reward") / part.file
        if len(parts) > 1 and context.group.once(f"weights of {part.name}", earlier.exists):  # interrupted later
            role.load_state(load_tensors(earlier))
            continue
        title = "reward model" if len(parts) == 1 else f"reward model {part.name}"
        seed = context.seed("reward" if part.name == FIRST else f"reward/{part.name}")
        given = [rankings[i] for i in part.places]
        habits, trials = None, []
        if annotators:
            start, trials = population(config, given, annotators=len(annotators), seed=seed)
            habits = Annotators(start, role.backbone.device)
        with context.training("reward", title, part="" if part.name == FIRST else part.name) as session:
            own = train_reward(role, given, config, seed=seed, session=session, states=states, annotators=habits)
        if habits is not None and part.name == FIRST:
            people = _annotator_facts(habits.population(), trials, annotators, given)
        states = own if len(parts) == 1 else states
        role.save(file)

    def raw(part: Part, places: Sequence[int], known: FrozenStates | None) -> list[list[float]]:
        if part.name == WORDS:
            return [[_word_score(c.text, words) for c in preferences[i].completions] for i in places]
        return score_rankings(roles[part.name], [rankings[i] for i in places], states=known)

    scored = {part.name: raw(part, train[:NORMALISE], states) for part in parts}
    scales = {name: _scale(name, [x for row in rows for x in row]) for name, rows in scored.items()}
    mean, std = scales[FIRST]
    if config.ensemble is not None:
        mean, std = _scale("the ensemble", [x for row in _combined(config.ensemble, scored, scales) for x in row])
    facts: dict[str, Any] = {
        "mean": mean,
        "std": std,
        "evaluation": None,
        "models": [
            {
                "name": part.name,
                "file": part.file,
                "judges": part.judges,
                "mean": scales[part.name][0],
                "std": scales[part.name][1],
                "preferences": len(part.places),
            }
            for part in parts
        ],
        "errors": None,
    }
    if config.objectives:
        facts["objectives"] = {}
        for name in config.objectives:
            own_mean, own_std = _head_scale(context, name, rankings, train, roles[FIRST], states)
            facts["objectives"][name] = {"mean": own_mean, "std": own_std, "evaluation": None}
    learnt = set(train)
    strict = [i for i, p in enumerate(preferences) if i not in learnt and len(set(p.ranks)) > 1]
    if strict:
        heldout = {part.name: raw(part, strict, None) for part in parts}
        facts |= _measured(context, parts, heldout, scales, [preferences[i] for i in strict], preferences)
        for name, result in facts.pop("evaluations", {}).items():
            facts["objectives"][name]["evaluation"] = result
    elif len(parts) > 1:
        context.ui.say("  no preference was held out, so the models' errors are not compared; set reward.holdout")
    if people is not None:
        heldout_votes = [i for i in range(len(rankings)) if i not in learnt and rankings[i].votes]
        facts["annotators"] = _measured_habits(
            context, people, [rankings[i] for i in heldout_votes], [preferences[i] for i in heldout_votes],
            roles[FIRST], len(annotators),
        )  # fmt: skip
    return facts, [part.file for part in parts]


def _measured_habits(
    context: Context,
    people: dict[str, Any],
    rankings: Sequence[Ranking],
    preferences: Sequence[Preference],
    role: Role,
    annotators: int,
) -> dict[str, Any]:
    """The annotators' facts without their population, with the log-loss of the held-out votes where there are any."""
    config, learned = context.config.reward, people.pop("population")
    assert config is not None
    if rankings:
        people["heldout"] = heldout_log_loss(
            config,
            learned,
            rankings,
            score_rankings(role, rankings),
            [p.prompt.id for p in preferences],
            annotators=annotators,
            seed=context.seed("reward"),
        )
    for line in annotator_lines(people):
        context.ui.say(f"  {line}")
    return people


def _annotator_facts(
    learned: Population, trials: Sequence[Any], names: Sequence[str], rankings: Sequence[Ranking]
) -> dict[str, Any]:
    """What ``reward.json`` says of annotators, and for now the population itself."""
    return {
        "habits": list(learned.habits),
        "trials": [trial.model_dump(mode="json") for trial in trials],
        "common": {"tie": learned.common_tie, "position": learned.common_position},
        "annotators": habit_rows(learned, names, rankings),
        "heldout": None,
        "population": learned,
    }


def _head_scale(
    context: Context,
    objective: str,
    rankings: Sequence[Ranking],
    train: Sequence[int],
    role: Role,
    states: FrozenStates | None,
) -> tuple[float, float]:
    """Mean and standard deviation of one objective's scores over answers it was trained on."""
    assert context.config.reward is not None
    head = context.config.reward.objectives.index(objective)
    own = [rankings[i] for i in train if rankings[i].head == head][:NORMALISE]
    return _scale(objective, [x for row in score_rankings(role, own, states=states) for x in row])


def _combined(
    config: EnsembleConfig, scored: Mapping[str, Sequence[Sequence[float]]], scales: Mapping[str, tuple[float, float]]
) -> list[list[float]]:
    """The combined score of every answer; the held-out model has no part in it."""
    normalised = [
        [[(x - mean) / std for x in row] for row in scored[name]]
        for name, (mean, std) in scales.items()
        if name != HELDOUT
    ]
    return [config.combine(torch.tensor(rows)).tolist() for rows in zip(*normalised, strict=True)]


def _measured(
    context: Context,
    parts: Sequence[Part],
    heldout: Mapping[str, Sequence[Sequence[float]]],
    scales: Mapping[str, tuple[float, float]],
    chosen: Sequence[Preference],
    preferences: Sequence[Preference],
) -> dict[str, Any]:
    """Accuracy of the score that is trained on, and the errors of all models, on held-out preferences."""
    assert context.config.reward is not None
    ensemble = context.config.reward.ensemble
    scores = heldout[FIRST] if ensemble is None else _combined(ensemble, heldout, scales)
    climbed = sorted({place for part in parts if not part.judges for place in part.places})
    simple = baselines(chosen, [p for p in (preferences[i] for i in climbed) if AUGMENTED not in p.metadata])
    result = evaluate_reward_model(chosen, scores, baselines=simple)
    if result.accuracy.value is not None:
        context.ui.say(
            f"  held-out accuracy {result.accuracy.value:.1%} on {result.pairs} pairs "
            f"({', '.join(f'{b.name} {b.accuracy.value:.1%}' for b in result.baselines)})"
        )
    each: dict[str, Any] = {}
    if context.config.reward.objectives:
        for name, own in evaluations(chosen, scores, simple):
            each[name] = own.model_dump(mode="json")
            context.ui.say(f"  {name}: held-out accuracy {own.accuracy.value:.1%} on {own.pairs} pairs")
    errors = member_errors(chosen, heldout, seed=context.seed("reward")) if len(parts) > 1 else None
    if errors is not None:
        for line in error_lines(errors):
            context.ui.say(f"  {line}")
    return {
        "evaluation": result.model_dump(mode="json"),
        "evaluations": each,
        "errors": None if errors is None else errors.model_dump(mode="json"),
    }


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
    """Mean and standard deviation of scores, the latter not below 0.001.

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


def load_reward_models(
    context: Context,
    trunk: Backbone,
    micro_batch_tokens: int = PASS_TOKENS,
    states: FrozenStates | None = None,
    *,
    heldout: bool = False,
) -> RewardModels:
    """The trained reward models, each normalised over the same answers.

    ``heldout``: True: with the one that only judges, if the run has one.
    """
    config, folder = context.config.reward, context.folder("reward")
    assert config is not None
    facts, backbone = read_json(folder / "reward.json"), reward_backbone(context, trunk)
    members: dict[str, RewardFunction] = {}
    judge: RewardFunction | None = None
    for entry in facts["models"]:
        if entry["judges"] and not heldout:
            continue
        score = _load_model(context, backbone, entry, micro_batch_tokens, states)
        if entry["judges"]:
            judge = score
        else:
            members[entry["name"]] = score
    combined = config.ensemble is not None
    return RewardModels(
        members,
        heldout=judge,
        config=config.ensemble,
        mean=facts["mean"] if combined else 0.0,
        std=facts["std"] if combined else 1.0,
    )


def load_objectives(
    context: Context, trunk: Backbone, micro_batch_tokens: int = PASS_TOKENS, states: FrozenStates | None = None
) -> ObjectiveScorer:
    """The trained reward model of several objectives, each normalised over its own training answers."""
    config, folder = context.config.reward, context.folder("reward")
    assert config is not None
    role = reward_role(context, reward_backbone(context, trunk))
    role.load_state(load_tensors(folder / weights_file(FIRST)))
    scorer = RewardModelScorer(
        role, same_tokens=config.model is None, micro_batch_tokens=micro_batch_tokens, states=states
    )
    scales = read_json(folder / "reward.json")["objectives"]
    return ObjectiveScorer(scorer, {name: (scales[name]["mean"], scales[name]["std"]) for name in config.objectives})


def _load_model(
    context: Context, backbone: Backbone, entry: dict[str, Any], micro_batch_tokens: int, states: FrozenStates | None
) -> RewardFunction:
    """Normalised scores of one model."""
    assert context.config.reward is not None
    path, mean, std = context.folder("reward") / entry["file"], entry["mean"], entry["std"]
    if entry["name"] == WORDS:
        weights = read_json(path)
        return lambda rollouts: [(_word_score(r.text, weights) - mean) / std for r in rollouts]
    role = reward_role(context, backbone, entry["name"])
    role.load_state(load_tensors(path))
    scorer = RewardModelScorer(
        role,
        mean=mean,
        std=std,
        same_tokens=context.config.reward.model is None,
        micro_batch_tokens=micro_batch_tokens,
        states=states,
    )
    return scorer.normalised


def load_ranking_scorer(
    context: Context, backbone: Backbone
) -> tuple[Role, Callable[[Sequence[Ranking], Sequence[Preference]], list[list[float]]]]:
    """The first reward model's role, and the scores of preferences' answers by the models that are trained on."""
    config, folder = context.config.reward, context.folder("reward")
    assert config is not None
    entries = [entry for entry in read_json(folder / "reward.json")["models"] if not entry["judges"]]
    scales = {entry["name"]: (entry["mean"], entry["std"]) for entry in entries}
    roles = {
        entry["name"]: reward_role(context, backbone, entry["name"]) for entry in entries if entry["name"] != WORDS
    }
    for entry in entries:
        if entry["name"] in roles:
            roles[entry["name"]].load_state(load_tensors(folder / entry["file"]))
    words = {entry["name"]: read_json(folder / entry["file"]) for entry in entries if entry["name"] == WORDS}

    def score(rankings: Sequence[Ranking], preferences: Sequence[Preference]) -> list[list[float]]:
        scored = {name: score_rankings(role, rankings) for name, role in roles.items()}
        for name, weights in words.items():
            scored[name] = [[_word_score(c.text, weights) for c in p.completions] for p in preferences]
        return scored[FIRST] if config.ensemble is None else _combined(config.ensemble, scored, scales)

    return roles[FIRST], score


def _word_score(text: str, weights: dict[str, float]) -> float:
    from trimtab.evals.baselines import word_score  # with NumPy

    return word_score(text, weights)


def counts_of(parts: Sequence[Part], held: Sequence[int]) -> Counts:
    """What the stage says about its parts."""
    train = {place for part in parts for place in part.places}
    counts: Counts = {"preferences": len(train), "held_out": len(held)}
    if len(parts) > 1:
        counts |= {f"preferences of {part.name}": len(part.places) for part in parts}
    return counts
