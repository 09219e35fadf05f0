"""Measures what `trimtab tune` has learned about one person: models predict choices that they have not seen.

Before the choices of a batch train a round, two earlier models predict them: the newest model, and the model from
before the first choice. So every choice is held out once, and none is lost to a test set. A. P. Dawid calls this
prequential ("Present position and potential developments", JRSS A 147, 1984). People look at the page after every
batch, so the interval is valid at all times (:func:`trimtab.evals.anytime_interval`): for someone who chooses at
random, the probability of ever reading "learned" is at most 2.5 %.

In a run with a reward model, the reward model predicts. With an offline method, the policy predicts with its implicit
reward, log π(answer) − log π_start(answer), where the start is the policy from before the first choice. For the start
itself, the pretrained model takes the place of π_start.
"""

from collections.abc import Sequence
from statistics import fmean
from typing import Literal

from trimtab.errors import ConfigError, DataError
from trimtab.evals import anytime_interval
from trimtab.files import write_json
from trimtab.models import Role, load_tensors
from trimtab.pipeline.config import RunConfig, load_recipe
from trimtab.pipeline.context import Context
from trimtab.pipeline.learning import policy_role
from trimtab.pipeline.reward_models import load_ranking_scorer, reward_backbone
from trimtab.pipeline.rounds import recipe_of
from trimtab.pipeline.ui import Silent
from trimtab.records import Preference, Prompt, Record, read_records
from trimtab.rollout import LocalSampler, SamplerConfig
from trimtab.storage import RunFolder, read_record
from trimtab.trainers import OnlineConfig, answer_logprobs, encode_preferences

START = "tune.json"
"""File of a run with the number of the round from which tuning began."""
PREDICTED = "predicted.json"
"""File of a round with the predictions of its choices, and answers before and after it."""
FIXED_PROMPTS = 3
"""Number of fixed prompts whose answers before and after are shown."""


class TuneStart(Record):
    """Where tuning began."""

    round: int
    """The newest round at that time."""


class Predicted(Record):
    """Predictions of one round's choices by models that had not learned from them."""

    policy: str
    """Fingerprint of the round's policy."""
    newest: tuple[float, ...]
    """For each choice, 1: the model of the round before was right; 0: wrong; ½: it gave both answers the same score."""
    start: tuple[float, ...]
    """As ``newest``, for the model from before the first choice."""
    examples: tuple[tuple[str, str, str], ...]
    """Prompt, answer of the policy from before the first choice, answer of this round's policy; at temperature 0."""


class Learned(Record):
    """What is known about learning after some rounds."""

    verdict: Literal["waiting", "not_learned", "no_better", "learned"]
    """``waiting``: no model that learned from the person has been tested; ``not_learned``: the accuracy may be chance;
    ``no_better``: it is above chance, but may be no better than that of the model from before; ``learned``: it is above
    both."""
    choices: int
    """Number of choices that were predicted by a model that learned from earlier ones."""
    accuracy: tuple[float, float, float] | None
    """Share predicted correctly, with a 95 % interval that is valid after every round."""
    start: float | None
    """The share for the model from before the first choice, on the same choices."""
    gain: tuple[float, float, float] | None
    """Difference of the two shares, with an interval of the same kind."""


def check_tunable(config: RunConfig) -> None:
    """Refuse a recipe in which no model could predict choices.

    Raises:
        ConfigError: the recipe has neither a reward model nor an offline method.
    """
    if config.align is None:
        raise ConfigError("this recipe has no align section, so there is no policy to tune; add one")
    if isinstance(config.align, OnlineConfig) and config.reward is None:
        raise ConfigError(
            f"align.method {config.align.method} maximises functions only, so choices would train nothing; add a "
            "reward section, or use an offline method (align.method: dpo)"
        )


def first_round(run: RunFolder) -> int:
    """The round from which tuning began; the first call stores it."""
    if not (run.path / START).is_file():
        write_json(run.path / START, {"round": run.newest().number})
    return read_record(run.path / START, TuneStart).round


def tuned_rounds(run: RunFolder) -> list[RunFolder]:
    """The finished rounds since tuning began, oldest first."""
    return [run.round(number) for number in range(first_round(run) + 1, run.newest().number + 1)]


def predictions(round: RunFolder) -> Predicted | None:
    """The predictions of a round's choices; None: there are none, or the round has changed since."""
    status = round.status("align")
    if status is None or not (round.path / PREDICTED).is_file():
        return None
    stored = read_record(round.path / PREDICTED, Predicted)
    return stored if stored.policy == status.fingerprint else None


def predict_choices(run: RunFolder, number: int) -> Predicted:
    """Predict a finished round's choices with models of earlier rounds, answer the fixed prompts, and write both."""
    trained, first, previous = run.round(number), run.round(first_round(run)), run.round(number - 1)
    status = trained.status("align")
    assert status is not None
    preferences = read_records(trained.stage("preferences") / "preferences.jsonl", Preference)
    newest = _correct_predictions(previous, first, preferences)
    predicted = Predicted(
        policy=status.fingerprint,
        newest=newest,
        start=newest if previous.number == first.number else _correct_predictions(first, first, preferences),
        examples=_examples(first, trained),
    )
    write_json(trained.path / PREDICTED, predicted.model_dump(mode="json"))
    return predicted


def learned(rounds: Sequence[Predicted]) -> Learned:
    """Summarise the predictions of all rounds, oldest first.

    The model from before the first choice predicted the first round's choices, so they say nothing about learning.
    """
    newest = [x for predicted in rounds[1:] for x in predicted.newest]
    start = [x for predicted in rounds[1:] for x in predicted.start]
    if not newest:
        return Learned(verdict="waiting", choices=0, accuracy=None, start=None, gain=None)
    low, high = anytime_interval(newest)
    halves = [(1 + a - b) / 2 for a, b in zip(newest, start, strict=True)]
    gain_low, gain_high = (2 * end - 1 for end in anytime_interval(halves))
    verdict = "not_learned" if low <= 0.5 else "learned" if gain_low > 0 else "no_better"
    return Learned(
        verdict=verdict,
        choices=len(newest),
        accuracy=(fmean(newest), low, high),
        start=fmean(start),
        gain=(fmean(newest) - fmean(start), gain_low, gain_high),
    )


def _context(run: RunFolder) -> Context:
    config = load_recipe(run.path / "config.yaml")
    if (stage_recipe := run.stage("align") / "config.yaml").is_file():
        config = config.model_copy(update={"align": load_recipe(stage_recipe).align})
    return Context(config=config, recipe=recipe_of(run.first), run=run, ui=Silent())


def _correct_predictions(model: RunFolder, first: RunFolder, preferences: Sequence[Preference]) -> tuple[float, ...]:
    """For each preference with one winner of two: whether the model of a round prefers the chosen answer."""
    context = _context(model)
    if context.config.reward is not None:
        role, score = load_ranking_scorer(context, reward_backbone(context, None))
        rankings, used, _ = encode_preferences(role.backbone.chat, preferences)
        scores = score(rankings, used) if rankings else []
    else:
        rankings, used, _ = encode_preferences(context.trunk().chat, preferences)
        policy, reference = _policy(context), _policy(_context(first))
        if model.number == first.number:
            reference = Role(context.trunk())
        ratios = zip(answer_logprobs(policy, rankings), answer_logprobs(reference, rankings), strict=True)
        scores = [[a - b for a, b in zip(*pair, strict=True)] for pair in ratios]
    outcomes = []
    for preference, values in zip(used, scores, strict=True):
        if len(set(preference.ranks)) < 2:
            continue
        best, worst = (preference.ranks.index(edge(preference.ranks)) for edge in (min, max))
        outcomes.append(float(values[best] > values[worst]) + (values[best] == values[worst]) / 2)
    return tuple(outcomes)


def _policy(context: Context) -> Role:
    role = policy_role(context, context.trunk())
    role.load_state(load_tensors(context.folder("align") / "weights.safetensors"))
    return role


def fixed_prompts(context: Context, role: Role, room: int) -> list[Prompt]:
    """The prompts whose answers are shown: held-out ones or, if there are none, the last of the others."""
    try:
        prompts, _ = context.heldout(role.backbone.chat, room)
    except DataError:  # the recipe has no held-out prompts
        prompts = context.prompts(role.backbone.chat, room)[0][-FIXED_PROMPTS:]
    return prompts[:FIXED_PROMPTS]


def _examples(first: RunFolder, trained: RunFolder) -> tuple[tuple[str, str, str], ...]:
    """The fixed prompts with the answers of two rounds' policies."""
    texts: list[list[str]] = []
    prompts: list[Prompt] = []
    for run in (first, trained):
        context = _context(run)
        role, sampling = _policy(context), answering(run)
        greedy = sampling.model_copy(update={"temperature": 0.0, "slots": FIXED_PROMPTS})
        prompts = prompts or fixed_prompts(context, role, sampling.max_new_tokens)
        sampler = LocalSampler(role.backbone, greedy)
        texts.append([r.text for r in sampler.generate(prompts, adapter=role.adapter, seed=0)])
    return tuple(zip((p.text for p in prompts), *texts, strict=True))


def answering(run: RunFolder) -> SamplerConfig:
    """The sampler settings of a run's recipe: those of ``sample``, of an online ``align``, or of ``evaluate``."""
    config = load_recipe(run.first.path / "config.yaml")  # a round from votes has no section sample
    for section in (config.sample, config.align, config.evaluate):
        sampler = getattr(section, "sampler", None)
        if sampler is not None:
            return sampler
    return SamplerConfig()
