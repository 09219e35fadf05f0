"""The whole run as one configuration: the sections and settings of a recipe.

A recipe is a complete YAML file without inheritance or interpolation. Relative paths of data, models and chat templates
are looked up from the current folder first, then from the recipe's own folder; ``~`` is the home folder.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, model_validator

from trimtab.config import Config, load_yaml, parse_config, read_yaml
from trimtab.constitution import DEFAULT
from trimtab.errors import ConfigError
from trimtab.evals import AlarmConfig, CapabilityConfig
from trimtab.feedback import AggregateConfig, JudgeConfig, RevisionConfig, RouteConfig, SimulationConfig
from trimtab.models import ModelConfig
from trimtab.pipeline.judging import JudgeName, JudgeSource, LocalJudge
from trimtab.pipeline.scale import ScaleConfig, check_scale
from trimtab.records.weights import WATCHED
from trimtab.rollout import EnsembleConfig, FunctionReward, ModelReward, RewardSource, SamplerConfig
from trimtab.trainers import (
    OFFLINE,
    ONLINE,
    DpoConfig,
    GdpoConfig,
    OfflineConfig,
    OnlineConfig,
    OpponentConfig,
    PairConfig,
    PolicyGradientConfig,
    PpoConfig,
    PreferenceConfig,
    RewardConfig,
    RlConfig,
    SftConfig,
    check_rl,
    methods_with,
)

REWARD_MODEL_CLIP = 5.0
"""Default of ``align.score_clip`` if the reward model is the only reward, in standard deviations of its training
answers' rewards."""


class DataConfig(Config):
    """Files or hub ids (``owner/name#part@split``)."""

    demonstrations: str | None = None
    """Conversations to imitate (SFT). From a preference file, the better answers are used."""
    preferences: str | None = None
    """Ready-made preferences; with them, ``sample`` and ``label`` are not needed."""
    ratings: str | None = None
    """Single answers with thumbs up or down, for ``align.method: kto``."""
    prompts: str | None = None
    """Prompts to sample answers to and to align on. Any format will do; only its prompts are read."""
    heldout: str | None = None
    """Prompts for the evaluation; nothing is trained on them."""
    redteam: str | None = None
    """Prompts that ask for something harmful, for critique and revision."""
    redteam_heldout: str | None = None
    """Held-out red-team prompts for the balance of harmless and helpful; nothing is trained on them."""
    format: str = "auto"
    """Format of the files; see ``trimtab data check --help``."""
    limit: int | None = Field(default=None, ge=1)
    """Read at most this many rows of each file."""
    heldout_share: float = Field(default=0.1, gt=0.0, lt=1.0)
    """Share of the prompts that is set aside for the evaluation if ``heldout`` is not given."""


class SampleConfig(Config):
    """Sampling of the answers to compare."""

    prompts: int | None = Field(default=None, ge=1)
    """How many prompts to use; None: all."""
    answers: int = Field(default=4, ge=2)
    """Answers per prompt."""
    sampler: SamplerConfig = SamplerConfig()
    """How the answers are sampled."""


class HumanConfig(Config):
    """People who compare the answers in the annotation app."""

    project: str | None = None
    """Folder of the annotation project; None: ``annotation`` in the run's folder."""
    database: str | None = None
    """URL of a PostgreSQL database; None: SQLite in the project's folder."""
    overlap: int = Field(default=1, ge=1, le=100)
    """How many people judge each item; with ``hybrid`` the router decides."""
    enough: float = Field(default=1.0, gt=0.0, le=1.0)
    """Share of the requested judgements at which the run continues; with ``hybrid`` always all of them."""
    wait_minutes: float = Field(default=0.0, ge=0.0)
    """How long the run waits for judgements; then it stops, and the same command continues it."""


class VotesConfig(Config):
    """What people said of answers that a service gave them."""

    project: str
    """Annotation project with votes of the chat page and judgements of the annotation app, or a folder written by
    ``trimtab data export --format judgements``."""
    database: str | None = None
    """URL of a PostgreSQL database; None: SQLite in the project's folder."""
    per_person: int = Field(default=200, ge=1)
    """Most comparisons of one person of the chat page that a round uses, and most thumbs, the earliest; the others are
    counted."""


class LabelConfig(Config):
    """Who compares the answers."""

    source: Literal["simulated", "human", "ai", "hybrid", "votes"] = "simulated"
    """``simulated``: simulated annotators with a gold utility, named as such on every label and page; ``human``: people
    in the annotation app; ``ai``: AI judges with the constitution; ``hybrid``: AI judges label items of which they are
    sure, and ``people`` the others; ``votes``: people's votes on answers of a service, which bring the answers with
    them."""
    simulation: SimulationConfig = SimulationConfig()
    """The simulated annotators."""
    human: HumanConfig = HumanConfig()
    """The annotation app, for ``human``, and for ``hybrid`` with people in the app."""
    votes: VotesConfig | None = None
    """Where the votes are, for ``votes``."""
    judges: dict[JudgeName, JudgeSource] | None = Field(default=None, min_length=1)
    """AI judges by name. Several form an ensemble: ``ai`` combines their judgements by ``aggregate``, ``hybrid`` by the
    mean of their probabilities. None: the recipe's pretrained model."""
    judge: JudgeConfig = JudgeConfig()
    """How the AI judges are asked."""
    route: RouteConfig = RouteConfig()
    """For ``hybrid``: which labels the AI gives and which people give."""
    people: str | None = None
    """For ``hybrid``: ``app``, people in the annotation app; ``simulated``, simulated annotators with the gold utility;
    or a file of people's judgements (JSON lines), which may grow while people label the queue and need not exist
    at first. None: ``simulated`` if the recipe has gold, otherwise ``app``. For ``ai``: a file of judgements with which
    the judges are compared; when it grows, only the reports are made again."""
    without: tuple[str, ...] = ()
    """Annotators whose judgements make no preference, for example because they have withdrawn."""
    aggregate: AggregateConfig = AggregateConfig()
    """How several judgements become one preference."""

    @property
    def by_ai(self) -> bool:
        """True: AI judges give labels, alone or beside people."""
        return self.source in ("ai", "hybrid")


class ReviseConfig(RevisionConfig):
    """Critique and revision of the model's answers to red-team prompts, before SFT."""

    prompts: int | None = Field(default=None, ge=1)
    """How many red-team prompts; None: all."""
    helpful: float | None = Field(default=None, gt=0.0)
    """Helpful demonstrations (``data.demonstrations``) mixed in, per revision; None, or without any revision: all of
    them."""
    sampler: SamplerConfig = SamplerConfig(temperature=0.7, max_new_tokens=96)
    """How answers, critiques and revisions are sampled."""
    judge: JudgeSource = LocalJudge()
    """The judge that decides whether a revision is better."""


class BalanceConfig(Config):
    """Harmlessness, helpfulness and preachiness before and after."""

    prompts: int | None = Field(default=None, ge=1)
    """How many held-out red-team prompts; None: all."""
    judge: JudgeSource = LocalJudge()
    """The judge that compares before with after, beside the measures by words."""


class RewardStageConfig(RewardConfig):
    """Training of the reward model, and its base model."""

    model: ModelConfig | None = None
    """Base model, for example a smaller one; None: an adapter on the policy's trunk after SFT."""
    ensemble: EnsembleConfig | None = None
    """Several reward models whose scores are combined; None: one."""
    split: bool = False
    """True: the split test. The prompts of the preferences are divided; what is trained on learns from one half, and a
    held-out reward model from the other. The latter judges every step (``reward/heldout``) and is never trained on."""

    @property
    def shares(self) -> list[float]:
        """The part of the preferences that each language model learns from; the held-out one comes last."""
        climbed = 0.5 if self.split else 1.0
        shares = [climbed]
        if self.ensemble is not None:
            shares = [climbed / (2 if self.ensemble.halves else 1)] * self.ensemble.members
        return shares + ([0.5] if self.split else [])


class EvaluateConfig(Config):
    """Held-out comparison of the models."""

    prompts: int | None = Field(default=None, ge=1)
    """How many held-out prompts; None: all."""
    sampler: SamplerConfig = SamplerConfig()
    """How answers are sampled, the same for every model."""
    best_of: int | None = Field(default=None, ge=2)
    """Also compare with best-of-n: the answer with the highest reward of this many by the start model; None: do not."""
    gain: bool = True
    """True: edit the answers of the start model and of the policy and score them again, which shows what the gain in
    reward is made of; up to seven further reward calls per answer. False: do not."""
    pretrained: bool = True
    """False: ``model`` was not pretrained (its weights are random), so it is left out of the comparison."""
    examples: int = Field(default=24, ge=1)
    """Examples shown on the page."""


class RunConfig(Config):
    """A recipe. A stage whose section is left out does not run."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run, and of its folder under ``runs/``."""
    about: str | None = Field(default=None, max_length=200)
    """One sentence for the page: what the model is to learn, for example "Summarise a message in one sentence."."""
    seed: int = Field(default=0, ge=0)
    """Seed of everything random in the run."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads of each process; None: all cores, divided among the processes. Results depend on it: another count
    adds sums in another order."""
    memory_gb: float | None = Field(default=None, gt=0.0)
    """Memory of each process, in GB: sets ``micro_batch_tokens`` of each stage whose section leaves it out. None: the
    stages' defaults."""
    rounds: int = Field(default=1, ge=1, le=100)
    """How often answers are sampled, labelled and learned from. Each round starts from the policy of the one before,
    which is also the reference of its KL penalty; its reward model learns from the preferences of all rounds."""
    model: ModelConfig = ModelConfig()
    """The pretrained model."""
    data: DataConfig = DataConfig()
    """The data files."""
    gold: str | None = None
    """Dotted path of a simulated gold utility (prompt, completion) → float; labels, monitors and evaluation use it."""
    constitution: str = DEFAULT
    """Principles for AI judges and revisions: a YAML file, or ``default``."""
    revise: ReviseConfig | None = None
    """Critique and revision; SFT learns from its demonstrations and those of ``data``."""
    sft: SftConfig | None = None
    """Supervised fine-tuning; left out: training starts from the pretrained model."""
    sample: SampleConfig | None = None
    """Sampling of the answers to compare."""
    label: LabelConfig | None = None
    """Who compares the answers."""
    reward: RewardStageConfig | None = None
    """Reward model."""
    rewards: dict[str, RewardSource] | None = Field(default=None, min_length=1)
    """Rewards that online alignment maximises, by name: the reward model (``kind: model``), Python functions
    (``function``) and endpoints (``http``), each with a weight. Left out: the reward model alone."""
    align: Annotated[RlConfig | PreferenceConfig, Field(discriminator="method")] | None = None
    """Alignment, by the method that ``align.method`` names: an online one maximises rewards of the policy's answers, an
    offline one learns from the preferences themselves."""
    evaluate: EvaluateConfig | None = None
    """Evaluation on held-out prompts."""
    balance: BalanceConfig | None = None
    """Harmlessness, helpfulness and preachiness of the first and the last model."""
    capability: CapabilityConfig | None = CapabilityConfig()
    """Check of the models' capabilities before and after SFT and alignment: the page shows what alignment cost.
    ``null``: no check."""
    alarms: AlarmConfig | None = AlarmConfig()
    """Alarms while a policy trains online: signs of reward hacking in its answers, with one error budget for the run.
    ``null``: none."""
    checkpoint_every: int = Field(default=10, ge=1)
    """Steps between checkpoints."""
    scale: ScaleConfig = ScaleConfig()
    """One process or several."""

    @property
    def learns_from_thumbs(self) -> bool:
        """True: labels are votes, and the method learns from single answers, so thumbs train it."""
        votes = self.label is not None and self.label.source == "votes"
        return votes and self.align is not None and self.align.method == "kto"

    @property
    def people_of_hybrid(self) -> str:
        """Who labels beside the AI: ``simulated``, ``app``, or a file."""
        given = None if self.label is None else self.label.people
        return given or ("simulated" if self.gold else "app")

    @model_validator(mode="after")
    def _limit_a_reward_model(self) -> Self:
        """Clip a reward model, which is unreliable far from its data; custom rewards are not clipped."""
        align = self.align
        if isinstance(align, GdpoConfig):  # has no score to clip
            return self
        if isinstance(align, PolicyGradientConfig) and "score_clip" not in align.model_fields_set:
            alone = all(isinstance(source, ModelReward) for source in (self.rewards or {}).values())
            clip = REWARD_MODEL_CLIP if alone else None
            object.__setattr__(self, "align", align.model_copy(update={"score_clip": clip}))
        return self


def load_recipe(path: Path, overrides: list[str] | None = None) -> RunConfig:
    """Read a recipe and apply ``--set key.path=value`` overrides.

    Raises:
        ConfigError: unreadable, not a mapping, unknown keys (nearest named), wrong types, contradictions.
    """
    values = read_yaml(path, hint="; recipes that ship are in recipes/")
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a recipe is a mapping of sections, got {type(values).__name__}")
    for item in overrides or []:
        override(values, item)
    config = parse_config(RunConfig, values, where=str(path), beside=path.parent)
    check_recipe(config)
    return config


def check_recipe(config: RunConfig) -> None:
    """Refuse sections that cannot work together. Each section has a function that yields what contradicts it.

    Raises:
        ConfigError: with the sections and what to add or remove.
    """
    problems = [problem for check in _CHECKS for problem in check(config)]
    if problems:
        raise ConfigError("the recipe contradicts itself:\n" + "\n".join(f"  {p}" for p in problems))


def _check_scale(config: RunConfig) -> Iterator[str]:
    yield from check_scale(config.scale)


def _check_data(config: RunConfig) -> Iterator[str]:
    data = config.data
    learns_from_ratings = isinstance(config.align, OfflineConfig) and config.align.method == "kto"
    if config.label and data.preferences:
        yield "label and data.preferences both say where preferences come from; remove one"
    if data.ratings and not learns_from_ratings:
        yield "data.ratings is for align.method kto; remove it or change align"
    if data.ratings and learns_from_ratings and (config.label or data.preferences):
        yield "data.ratings and preferences both say what KTO learns from; remove one"


def _check_revise(config: RunConfig) -> Iterator[str]:
    if config.revise is None:
        return
    if not config.data.redteam:
        yield "revise needs data.redteam, the prompts whose answers are criticised"
    if not config.sft:
        yield "revise needs sft, which learns from the revisions"


def _check_sft(config: RunConfig) -> Iterator[str]:
    if config.sft and not (config.data.demonstrations or config.data.preferences or config.revise):
        yield "sft needs data.demonstrations (or data.preferences, whose better answers it imitates)"


def _check_sample(config: RunConfig) -> Iterator[str]:
    if config.sample and not config.data.prompts:
        yield "sample needs data.prompts"


def _check_label(config: RunConfig) -> Iterator[str]:
    label = config.label
    if label is None:
        return
    if label.source == "votes":
        yield from _check_votes(label, config)
    elif not config.sample:
        yield "label needs sample: there are no answers to compare"
    elif label.votes:
        yield f"label.votes is for label.source 'votes', and the source is {label.source!r}; remove it"
    if label.source == "simulated" and not config.gold:
        yield "label.source is 'simulated' and needs gold, the simulated annotators' utility"
    if label.source == "hybrid":
        yield from _check_hybrid(label, config)
    elif label.people and (label.source != "ai" or label.people in ("simulated", "app")):
        yield (
            f"label.people is {label.people!r}, but label.source {label.source!r} asks nobody else; remove it, set "
            "source: hybrid, or with source: ai name a file of judgements to compare with"
        )


def _check_votes(label: LabelConfig, config: RunConfig) -> Iterator[str]:
    if label.votes is None:
        yield "label.source is 'votes' and needs label.votes.project, where the votes are"
    if config.sample:
        yield "label.source is 'votes', which are about answers that people saw; remove sample"
    if config.rounds > 1:
        yield (
            f"label.source is 'votes' and rounds {config.rounds}: people vote on a round's policy once it is served; "
            "set rounds: 1, and start each further round with `trimtab round`"
        )


def _check_hybrid(label: LabelConfig, config: RunConfig) -> Iterator[str]:
    people = label.people
    if people and people not in ("app", "simulated") and not Path(people).suffix:
        yield f"label.people is {people!r}; expected app, simulated, or a file of judgements (its name ends in .jsonl)"
    if people == "simulated" and not config.gold:
        yield "label.people is 'simulated' and needs gold, the simulated annotators' utility"
    if config.people_of_hybrid == "app":
        for name in ("overlap", "enough"):  # by value and not by model_fields_set: a resolved recipe sets everything
            if (value := getattr(label.human, name)) != 1:
                yield (
                    f"label.human.{name} is {value:g}, but only source 'human' uses it; with 'hybrid' the router "
                    "decides who is asked, so leave it at 1"
                )
    if config.sample and config.sample.answers != 2:
        yield f"label.source 'hybrid' compares pairs; set sample.answers to 2, not {config.sample.answers}"


def _check_rounds(config: RunConfig) -> Iterator[str]:
    missing = [name for name in ("label", "align") if getattr(config, name) is None]
    if config.rounds > 1 and missing:
        yield (
            f"rounds is {config.rounds}, and a round labels new answers and aligns on them: the recipe has no "
            f"{' and no '.join(missing)}; add {'it' if len(missing) == 1 else 'them'}, or set rounds: 1"
        )


def _check_reward(config: RunConfig) -> Iterator[str]:
    if config.reward and not (config.label or config.data.preferences):
        yield "reward needs preferences: a label section or data.preferences"
    label, sample = config.label, config.sample
    if config.reward and config.reward.ties and label is not None and sample is not None and sample.answers == 2:
        if label.aggregate.labels == "soft" or not label.aggregate.keep_tied:
            yield (
                f"reward.loss {config.reward.loss!r} learns from ties, and no preference of two answers will be one: "
                "ties become soft labels of one half, or are dropped. Set label.aggregate.labels: hard and "
                "label.aggregate.keep_tied: true, or reward.loss: bradley_terry"
            )
    yield from _check_several_models(config)


def _check_several_models(config: RunConfig) -> Iterator[str]:
    """An ensemble, and a held-out reward model."""
    reward, sources = config.reward, config.rewards or {}
    several = reward is not None and (reward.split or reward.ensemble is not None)
    if reward is not None and several:
        setting = "reward.split" if reward.split else "reward.ensemble"
        if reward.adapter.kind == "full":
            yield (
                f"{setting} trains several reward models on one trunk, and reward.adapter.kind 'full' would copy it "
                "for each; use lora"
            )
        if sources and not any(isinstance(source, ModelReward) for source in sources.values()):
            yield (
                f"{setting} is for runs that maximise the reward model; add it to rewards (kind: model), or leave "
                f"{setting} out"
            )
        for name in WATCHED:
            if name in sources:
                yield f"rewards.{name} has the name of a number that {setting} logs; choose another name"
    align = config.align
    if isinstance(align, OnlineConfig) and align.select == "heldout" and not (reward and reward.split):
        own = sources.get("heldout")
        if own is None or own.weight != 0:
            yield (
                "align.select is 'heldout' and there is no held-out reward model; set reward.split: true, or name a "
                "reward 'heldout' with weight 0"
            )


def _check_rewards(config: RunConfig) -> Iterator[str]:
    sources = config.rewards
    if not sources:
        return
    align = config.align
    models = [name for name, source in sources.items() if isinstance(source, ModelReward)]
    if models and not config.reward:
        yield f"rewards.{models[0]} is the reward model and needs reward, the section that trains it"
    if len(models) > 1:
        yield f"rewards {' and '.join(models)} are the same reward model; keep one"
    if not isinstance(align, OnlineConfig):
        yield "rewards are for online methods (align.method ppo, rloo, grpo, …); remove them or change align"
    if all(source.weight == 0 for source in sources.values()):
        yield "the weight of all rewards is 0: there is nothing to maximise; set rewards.<name>.weight"
    stepwise = [name for name, source in sources.items() if isinstance(source, FunctionReward) and source.steps]
    if stepwise and isinstance(align, OnlineConfig) and not ONLINE[align.method].step_rewards:
        yield (
            f"rewards.{stepwise[0]}.steps places rewards at steps, but align.method {align.method!r} gives all tokens "
            f"of an answer the same advantage; use {', '.join(methods_with(step_rewards=True))}, or drop steps"
        )


def soft_labels_expected(config: RunConfig) -> str | None:
    """Why the ``label`` section is certain to give soft labels, as settings; None: it need not."""
    label = config.label
    if label is None or config.sample is None or config.sample.answers != 2 or label.aggregate.labels == "hard":
        return None
    if label.aggregate.method != "majority":
        return f"label.aggregate.method is {label.aggregate.method!r}"
    if label.aggregate.smoothing:
        return f"label.aggregate.smoothing is {label.aggregate.smoothing:g}"
    return f"label.source is {label.source!r}, whose judges give probabilities" if label.by_ai else None


def _check_soft_labels(config: RunConfig) -> Iterator[str]:
    align, reason = config.align, soft_labels_expected(config)
    if reason is None or not isinstance(align, PairConfig):
        return
    if not OFFLINE[align.method].soft_labels:
        yield (
            f"{reason} and sample.answers 2, which gives soft labels, and align.method {align.method!r} has no formula "
            f"for them; set label.aggregate.labels: hard, or use {' or '.join(methods_with(soft_labels=True))}"
        )
    elif isinstance(align, DpoConfig) and (align.nll or align.label_smoothing):
        name = "nll" if align.nll else "label_smoothing"
        yield (
            f"{reason} and sample.answers 2, which gives soft labels, and align.{name} is for certain ones; set "
            f"label.aggregate.labels: hard, or align.{name}: 0"
        )


def _check_offline(config: RunConfig) -> Iterator[str]:
    align, data = config.align, config.data
    if not isinstance(align, OfflineConfig):
        return
    if not (config.label or data.preferences or (data.ratings and align.method == "kto")):
        also = " (or data.ratings)" if align.method == "kto" else ""
        yield f"align.method {align.method!r} needs preferences: a label section or data.preferences{also}"
    if align.reference_update is not None and not OFFLINE[align.method].reference:
        yield (
            f"align.reference_update is set and align.method {align.method!r} has no reference; leave it out, or use "
            "align.method dpo"
        )
    if isinstance(align, DpoConfig) and align.smoothing == "robust" and not align.label_smoothing:
        yield (
            "align.smoothing is 'robust' and align.label_smoothing 0: without a share of wrong labels nothing is "
            "smoothed; set align.label_smoothing, or drop align.smoothing"
        )


def _check_online(config: RunConfig) -> Iterator[str]:
    align, data = config.align, config.data
    if not isinstance(align, OnlineConfig):
        return
    if not (config.reward or config.rewards):
        yield "align needs reward, or rewards that are not a model: there is nothing to maximise"
    if not (data.prompts or data.preferences):
        yield "align needs data.prompts (or data.preferences, whose prompts it uses)"
    if isinstance(align, OpponentConfig) and align.preference == "given":
        yield (
            "align.preference is 'given', which is for trimtab.trainers.train_rl: a recipe's evaluation scores each "
            "answer alone, and such a reward needs pairs; use preference: bradley_terry"
        )
    ptx = align.ptx if isinstance(align, PolicyGradientConfig) else None
    if ptx is not None and not (ptx.data or data.demonstrations):
        yield "align.ptx needs conversations: data.demonstrations or align.ptx.data"
    yield from _check_constraint(config, align)
    alarms = config.alarms
    if alarms is not None and alarms.baseline >= align.steps and alarms.baseline != AlarmConfig().baseline:
        yield (
            f"alarms.baseline is {alarms.baseline} of {align.steps} steps: no step is left to compare with the first "
            "ones, so no alarm can be raised; lower it, or set alarms: null"
        )
    try:
        check_rl(align, prompts=1)
    except ConfigError as error:
        yield f"align: {error}"
    if isinstance(align, PpoConfig) and align.critic_init == "reward_model" and not _reward_fits_critic(config, align):
        yield (
            "align.critic_init is 'reward_model', which needs the reward model on the policy's trunk with the same "
            "adapter settings (reward.adapter = align.adapter, no reward.model) as the only reward; or set "
            "critic_init: zero"
        )
    if align.sampler.max_new_tokens >= config.model.context:
        yield (
            f"align.sampler.max_new_tokens ({align.sampler.max_new_tokens}) leaves no room for a prompt in "
            f"model.context ({config.model.context})"
        )


def _check_constraint(config: RunConfig, align: OnlineConfig) -> Iterator[str]:
    limit = align.constraint if isinstance(align, PolicyGradientConfig) else None
    if limit is None:
        return
    source = (config.rewards or {}).get(limit.reward)
    if source is None:
        names = ", ".join(config.rewards or {}) or "the reward model alone"
        yield (
            f"align.constraint.reward is {limit.reward!r} and rewards has {names}; name the reward that is the cost, "
            "beside another one to maximise"
        )
    elif len(config.rewards or {}) == 1:
        yield f"align.constraint.reward is {limit.reward!r}, the only reward: nothing is left to maximise; add one"
    elif source.weight != 1:
        yield (
            f"rewards.{limit.reward}.weight is {source.weight:g} and align.constraint sets its weight to minus the "
            "price; leave the weight out"
        )


def _reward_fits_critic(config: RunConfig, align: PpoConfig) -> bool:
    """True if the critic can start as a copy of the reward model."""
    reward, sources = config.reward, list((config.rewards or {}).values())
    single = reward is not None and reward.model is None and reward.ensemble is None
    on_the_trunk = single and reward is not None and reward.adapter == align.adapter
    return on_the_trunk and sources in ([], [ModelReward()])


def _check_evaluate(config: RunConfig) -> Iterator[str]:
    evaluate, data = config.evaluate, config.data
    if evaluate is None:
        return
    if not (data.heldout or data.prompts or data.preferences or data.ratings):
        yield "evaluate needs data.heldout, data.prompts, data.preferences or data.ratings"
    if not evaluate.pretrained and not (config.sft or config.align):
        yield "evaluate.pretrained is false and there is no sft and no align: no model is left to evaluate"
    if evaluate.best_of and not (config.reward or config.rewards):
        yield "evaluate.best_of needs reward or rewards: nothing says which answer is best"
    if evaluate.best_of and evaluate.sampler.temperature == 0.0:
        yield "evaluate.best_of needs evaluate.sampler.temperature above 0: all n answers would be the same"


def _check_balance(config: RunConfig) -> Iterator[str]:
    if config.balance and not (config.data.redteam_heldout and config.evaluate and config.align):
        yield "balance needs data.redteam_heldout, evaluate and align: it compares the first and last model"


_CHECKS: tuple[Callable[[RunConfig], Iterator[str]], ...] = (
    _check_scale,
    _check_data,
    _check_revise,
    _check_sft,
    _check_sample,
    _check_label,
    _check_rounds,
    _check_reward,
    _check_rewards,
    _check_offline,
    _check_soft_labels,
    _check_online,
    _check_evaluate,
    _check_balance,
)


def override(values: dict[str, Any], item: str) -> None:
    """Set one ``key.path=value`` in nested values; the value is YAML.

    Raises:
        ConfigError: not of that form, or a value where a section is needed.
    """
    key, equals, text = item.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {item!r}: expected key.path=value, for example --set align.steps=10")
    *parents, last = key.split(".")
    current = values
    for name in parents:
        if current.get(name) is None:
            current[name] = {}
        current = current[name]
        if not isinstance(current, dict):
            raise ConfigError(f"--set {item!r}: {name!r} is a value, not a section")
    try:
        current[last] = load_yaml(text)
    except (yaml.YAMLError, ValueError):
        raise ConfigError(f"--set {item!r}: {text!r} is not a YAML value") from None


def dump_config(config: RunConfig) -> str:
    """The resolved configuration as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
