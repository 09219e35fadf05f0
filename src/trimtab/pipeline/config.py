"""The whole run as one configuration: the sections and settings of a recipe.

A recipe is a complete YAML file without inheritance or interpolation. Relative paths of data, models and chat templates
are looked up from the current folder first, then from the recipe's own folder; ``~`` is the home folder.
"""

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
from trimtab.pipeline.augmentation import AugmentConfig
from trimtab.pipeline.judging import JudgeName, JudgeSource, LocalJudge
from trimtab.pipeline.recipe_checks import check_recipe
from trimtab.pipeline.scale import ScaleConfig
from trimtab.rollout import EnsembleConfig, ModelReward, RewardSource, SamplerConfig
from trimtab.trainers import (
    GdpoConfig,
    PolicyGradientConfig,
    PreferenceConfig,
    ProcessConfig,
    RewardConfig,
    RlConfig,
    SftConfig,
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
    steps: str | None = None
    """Solutions whose first wrong step is known, for the process reward model: the export ``steps`` of the annotation
    app, ProcessBench, BIG-Bench Mistake, or TRL's stepwise supervision."""
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
    """Share of the prompts that is set aside for the evaluation if ``heldout`` is left out."""


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
    """The run continues once this share of the requested judgements is there; ``hybrid`` always waits for all."""
    wait_minutes: float = Field(default=0.0, ge=0.0)
    """How long the run waits for judgements; then it stops, and the same command continues it."""


class VotesConfig(Config):
    """People's votes on the answers of a service."""

    project: str
    """Annotation project with votes of the chat page and judgements of the annotation app, or a folder written by
    ``trimtab data export --format judgements``."""
    database: str | None = None
    """URL of a PostgreSQL database; None: SQLite in the project's folder."""
    per_person: int = Field(default=200, ge=1)
    """Largest number of comparisons, and of thumbs, of one person on the chat page that a round uses. The earliest are
    used; the others are only counted."""


class LabelConfig(Config):
    """Who compares the answers."""

    source: Literal["simulated", "human", "ai", "hybrid", "votes"] = "simulated"
    """``simulated``: simulated annotators with a gold utility, named as such on every label and page; ``human``: people
    in the annotation app; ``ai``: AI judges with the constitution; ``hybrid``: AI judges label the items that they are
    sure about, and ``people`` label the others; ``votes``: people's votes on the answers of a service; the votes
    contain the answers."""
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
    """How the AI judges are prompted."""
    route: RouteConfig = RouteConfig()
    """For ``hybrid``: which labels the AI gives and which people give."""
    people: str | None = None
    """For ``hybrid``: ``app``, people in the annotation app; ``simulated``, simulated annotators with the gold utility;
    or a file of people's judgements (JSON lines). The file need not exist at first and may grow while people label the
    queue. None: ``simulated`` if the recipe has gold, otherwise ``app``. For ``ai``: a file of judgements to compare
    the judges with; when it grows, only the reports are made again."""
    without: tuple[str, ...] = ()
    """Annotators whose judgements are not used, for example because they have withdrawn."""
    aggregate: AggregateConfig = AggregateConfig()
    """How several judgements become one preference."""

    @property
    def by_ai(self) -> bool:
        """True: AI judges give labels, alone or together with people."""
        return self.source in ("ai", "hybrid")


class ReviseConfig(RevisionConfig):
    """Critique and revision of the model's answers to red-team prompts, before SFT."""

    prompts: int | None = Field(default=None, ge=1)
    """How many red-team prompts; None: all."""
    helpful: float | None = Field(default=None, gt=0.0)
    """Number of helpful demonstrations (``data.demonstrations``) mixed in for each revision. All of them with None, or
    if there is no revision."""
    sampler: SamplerConfig = SamplerConfig(temperature=0.7, max_new_tokens=96)
    """How answers, critiques and revisions are sampled."""
    judge: JudgeSource = LocalJudge()
    """The judge that decides whether a revision is better."""


class BalanceConfig(Config):
    """Harmlessness, helpfulness and preachiness before and after."""

    prompts: int | None = Field(default=None, ge=1)
    """How many held-out red-team prompts; None: all."""
    judge: JudgeSource = LocalJudge()
    """The judge that compares the models before and after, in addition to the measures by phrases."""


class RewardStageConfig(RewardConfig):
    """Training of the reward model, and its base model."""

    model: ModelConfig | None = None
    """Base model, for example a smaller one; None: an adapter on the policy's trunk after SFT."""
    ensemble: EnsembleConfig | None = None
    """Several reward models whose scores are combined; None: one."""
    augment: AugmentConfig | None = None
    """Altered copies of training preferences, which teach the reward model not to reward form; None: none."""
    split: bool = False
    """True: the split test. The prompts of the preferences are divided into two halves. The reward model that the
    policy is trained on learns from one, a held-out reward model from the other. The held-out one scores every step
    (``reward/heldout``); the policy is never trained on it."""

    @property
    def shares(self) -> list[float]:
        """The part of the preferences that each language model learns from; the held-out one comes last."""
        policy_share = 0.5 if self.split else 1.0
        shares = [policy_share]
        if self.ensemble is not None:
            shares = [policy_share / (2 if self.ensemble.halves else 1)] * self.ensemble.members
        return shares + ([0.5] if self.split else [])


class RolloutLabelsConfig(Config):
    """Labels of steps from rollouts (Math-Shepherd): a step is as good as the model's continuations of it."""

    verifier: str
    """Dotted path of a function that takes rollouts and returns one score for each, above 0.5 if the answer is
    right."""
    prompts: int | None = Field(default=None, ge=1)
    """How many of the prompts to use; None: all."""
    answers: int = Field(default=4, ge=1)
    """Solutions drawn per prompt, whose steps are labelled."""
    tries: int = Field(default=8, ge=1)
    """Continuations drawn from each step."""
    labels: Literal["soft", "hard"] = "soft"
    """``soft``: the share of tries that ended right; ``hard``: 1 if one did."""
    least: float = Field(default=0.2, ge=0.0, le=1.0)
    """The run stops if the share of right solutions is below this. If the model solves almost nothing, every step would
    be labelled wrong."""
    sampler: SamplerConfig = SamplerConfig()
    """How solutions and their continuations are drawn."""


class ProcessStageConfig(ProcessConfig):
    """Training of the process reward model, an adapter on the policy's trunk after SFT."""

    rollouts: RolloutLabelsConfig | None = None
    """Labels from rollouts, in addition to those of ``data.steps``; None: none."""


class EvaluateConfig(Config):
    """Held-out comparison of the models."""

    prompts: int | None = Field(default=None, ge=1)
    """How many held-out prompts; None: all."""
    sampler: SamplerConfig = SamplerConfig()
    """How answers are sampled, the same for every model."""
    best_of: int | None = Field(default=None, ge=2)
    """Also compare with best-of-n: of this many answers by the start model, the one with the highest reward; None: do
    not."""
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
    threads: int | None = Field(default=None, ge=1, le=4096)
    """CPU threads of each process; None: all cores, divided among the processes. Results depend on the number of
    threads, because it changes the order of sums."""
    memory_gb: float | None = Field(default=None, gt=0.0)
    """Memory of each process, in GB: sets ``micro_batch_tokens`` of each stage whose section leaves it out. None: the
    stages' defaults."""
    rounds: int = Field(default=1, ge=1, le=100)
    """How many times answers are sampled, labelled and learned from. Each round starts from the previous round's
    policy, which is also the reference of its KL penalty. Its reward model learns from the preferences of all
    rounds."""
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
    process: ProcessStageConfig | None = None
    """Process reward model: the probability that a step is right, for each step of an answer."""
    rewards: dict[str, RewardSource] | None = Field(default=None, min_length=1)
    """Rewards that online alignment maximises, by name: the reward model (``kind: model``), the process reward model
    (``process``), Python functions (``function``) and endpoints (``http``), each with a weight. Left out: the reward
    model alone."""
    align: Annotated[RlConfig | PreferenceConfig, Field(discriminator="method")] | None = None
    """Alignment, by the method that ``align.method`` names. Online methods maximise rewards of the policy's answers;
    offline methods learn from the preferences themselves."""
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
        """Who labels in addition to the AI: ``simulated``, ``app``, or a file."""
        source = None if self.label is None else self.label.people
        return source or ("simulated" if self.gold else "app")

    @model_validator(mode="after")
    def _limit_a_reward_model(self) -> Self:
        """Clip a reward model, which is unreliable far from its data; custom rewards are not clipped."""
        align = self.align
        if isinstance(align, GdpoConfig):  # GDPO has no score to clip
            return self
        if isinstance(align, PolicyGradientConfig) and "score_clip" not in align.model_fields_set:
            only_models = all(isinstance(source, ModelReward) for source in (self.rewards or {}).values())
            clip = REWARD_MODEL_CLIP if only_models else None
            object.__setattr__(self, "align", align.model_copy(update={"score_clip": clip}))
        return self


def load_recipe(path: Path, overrides: list[str] | None = None) -> RunConfig:
    """Read a recipe and apply ``--set key.path=value`` overrides.

    Raises:
        ConfigError: the file is unreadable or not a mapping, or has unknown keys (the message names the nearest), wrong
            types or contradictions.
    """
    values = read_yaml(path, hint="; recipes that ship are in recipes/")
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a recipe is a mapping of sections, got {type(values).__name__}")
    for item in overrides or []:
        override(values, item)
    config = parse_config(RunConfig, values, where=str(path), beside=path.parent)
    check_recipe(config)
    return config


def override(values: dict[str, Any], item: str) -> None:
    """Set one ``key.path=value`` in nested values; the value is YAML.

    Raises:
        ConfigError: ``item`` is not of that form, or a value is in the place of a section.
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
