"""The whole run as one configuration: what a recipe may say.

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
from trimtab.evals import CapabilityConfig
from trimtab.feedback import AggregateConfig, JudgeConfig, RevisionConfig, RouteConfig, SimulationConfig
from trimtab.models import ModelConfig
from trimtab.pipeline.judging import JudgeName, JudgeSource, LocalJudge
from trimtab.rollout import FunctionReward, ModelReward, RewardSource, SamplerConfig
from trimtab.trainers import (
    ONLINE,
    DpoConfig,
    OfflineConfig,
    OnlineConfig,
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
"""``align.score_clip`` where only the reward model is climbed: spreads of the answers it was trained on."""


class DataConfig(Config):
    """Files or hub ids (``owner/name#part@split``)."""

    demonstrations: str | None = None
    """Conversations to imitate (SFT). A preference file gives its better answers."""
    preferences: str | None = None
    """Ready-made preferences; with them, ``sample`` and ``label`` are not needed."""
    ratings: str | None = None
    """Single answers with thumbs up or down, for ``align.method: kto``."""
    prompts: str | None = None
    """What to sample answers to, and to align on. Any format gives its prompts."""
    heldout: str | None = None
    """Prompts for the evaluation, kept away from everything else."""
    redteam: str | None = None
    """Prompts that ask for something harmful, for critique and revision."""
    redteam_heldout: str | None = None
    """Further ones for the balance of harmless and helpful, kept away from everything else."""
    format: str = "auto"
    """Format of the files; see ``trimtab data check --help``."""
    limit: int | None = Field(default=None, ge=1)
    """Read at most this many rows of each file."""
    heldout_share: float = Field(default=0.1, gt=0.0, lt=1.0)
    """Where ``heldout`` is not given: this share of the prompts is set aside."""


class SampleConfig(Config):
    """Answers to be compared."""

    prompts: int | None = Field(default=None, ge=1)
    """How many prompts to use; None: all."""
    answers: int = Field(default=4, ge=2)
    """Answers per prompt."""
    sampler: SamplerConfig = SamplerConfig()
    """How they are drawn."""


class HumanConfig(Config):
    """People who compare the answers in the annotation app."""

    project: str | None = None
    """Folder of the annotation project; None: ``annotation`` in the run's folder."""
    database: str | None = None
    """URL of a PostgreSQL database; None: SQLite in the project's folder."""
    overlap: int = Field(default=1, ge=1, le=100)
    """How many people judge each item; with ``hybrid`` the router says that."""
    enough: float = Field(default=1.0, gt=0.0, le=1.0)
    """The run goes on when this share of the judgements asked for is in; with ``hybrid`` all of them."""
    wait_minutes: float = Field(default=0.0, ge=0.0)
    """How long to wait for them; then the run stops, and the same command goes on later."""


class LabelConfig(Config):
    """Who compares the answers."""

    source: Literal["simulated", "human", "ai", "hybrid"] = "simulated"
    """``simulated``: annotators made from a gold utility, and every label and page says so; ``human``: people, in the
    annotation app; ``ai``: judges under the constitution; ``hybrid``: judges where they are sure, ``people`` where
    they are not."""
    simulation: SimulationConfig = SimulationConfig()
    """The simulated annotators."""
    human: HumanConfig = HumanConfig()
    """For ``human``, and ``hybrid`` with people in the app: how they are asked."""
    judges: dict[JudgeName, JudgeSource] | None = Field(default=None, min_length=1)
    """AI judges by name. Several are an ensemble: with ``ai`` their judgements are combined by ``aggregate``, with
    ``hybrid`` by the mean of their probabilities. None: the recipe's pretrained model."""
    judge: JudgeConfig = JudgeConfig()
    """How they are asked."""
    route: RouteConfig = RouteConfig()
    """For ``hybrid``: how labels are divided between AI and people."""
    people: str | None = None
    """For ``hybrid``: ``app``, people in the annotation app; ``simulated``, annotators who go by the gold utility; or a
    file of people's judgements (JSON lines), which may grow while they label the queue and need not exist before.
    None: ``simulated`` where the recipe has gold, otherwise ``app``. For ``ai``: a file of judgements the judges are
    compared with; when it grows, only the reports are made again."""
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
    """Helpful demonstrations (``data.demonstrations``) mixed in, for each revision; None, or where no revision was
    kept: all there are."""
    sampler: SamplerConfig = SamplerConfig(temperature=0.7, max_new_tokens=96)
    """How answers, critiques and revisions are drawn."""
    judge: JudgeSource = LocalJudge()
    """Who decides whether a revision is better."""


class BalanceConfig(Config):
    """Harmlessness, helpfulness and preachiness before and after."""

    prompts: int | None = Field(default=None, ge=1)
    """How many held-out red-team prompts; None: all."""
    judge: JudgeSource = LocalJudge()
    """Who compares before with after, beside the measures by words."""


class RewardStageConfig(RewardConfig):
    """Reward model training, and which model it is built on."""

    model: ModelConfig | None = None
    """None: an adapter on the policy's trunk after SFT. Otherwise a model of its own, smaller or different."""


class EvaluateConfig(Config):
    """Held-out comparison of the models."""

    prompts: int | None = Field(default=None, ge=1)
    """How many held-out prompts; None: all."""
    sampler: SamplerConfig = SamplerConfig()
    """How answers are drawn, for every model alike."""
    best_of: int | None = Field(default=None, ge=2)
    """Also compare with best-of-n: of this many answers of the start model the one the rewards like best; None: not."""
    pretrained: bool = True
    """False: ``model`` was not pretrained (its weights are random), so its answers are not compared with."""
    examples: int = Field(default=24, ge=1)
    """Examples shown on the page."""


class RunConfig(Config):
    """A recipe. Sections that are left out are stages that do not run."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run, and of its folder under ``runs/``."""
    about: str | None = Field(default=None, max_length=200)
    """One sentence for the page: what the model is to learn, for example "Summarise a message in one sentence."."""
    seed: int = Field(default=0, ge=0)
    """From which everything random is derived."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads; None: all cores. Part of the numbers: sums are added in another order with another count."""
    memory_gb: float | None = Field(default=None, gt=0.0)
    """Memory the run may take, in GB: sizes ``micro_batch_tokens`` of every stage that does not say its own. None: the
    stages' defaults."""
    model: ModelConfig = ModelConfig()
    """The pretrained model."""
    data: DataConfig = DataConfig()
    """What to learn from."""
    gold: str | None = None
    """Dotted path of a simulated gold utility (prompt, completion) → float; labels, monitors and evaluation use it."""
    constitution: str = DEFAULT
    """What AI judges and revisions go by: a YAML file, or ``default``."""
    revise: ReviseConfig | None = None
    """Critique and revision; its demonstrations join those of ``data`` in SFT."""
    sft: SftConfig | None = None
    """Supervised fine-tuning; left out: the pretrained model is the start."""
    sample: SampleConfig | None = None
    """Answers to compare."""
    label: LabelConfig | None = None
    """Who compares them."""
    reward: RewardStageConfig | None = None
    """Reward model."""
    rewards: dict[str, RewardSource] | None = Field(default=None, min_length=1)
    """What online alignment maximises, by name: the reward model (``kind: model``), Python functions (``function``) and
    endpoints (``http``), each with a weight. Left out: the reward model alone."""
    align: Annotated[RlConfig | PreferenceConfig, Field(discriminator="method")] | None = None
    """Alignment, by the method that ``align.method`` names: an online one maximises rewards of the policy's answers, an
    offline one learns from the preferences themselves."""
    evaluate: EvaluateConfig | None = None
    """Evaluation on held-out prompts."""
    balance: BalanceConfig | None = None
    """Harmlessness, helpfulness and preachiness of the first and the last model."""
    capability: CapabilityConfig | None = CapabilityConfig()
    """What the models can do before and after SFT and alignment: the page shows what alignment cost. ``null``: not
    checked."""
    checkpoint_every: int = Field(default=10, ge=1)
    """Steps between checkpoints."""

    @property
    def people_of_hybrid(self) -> str:
        """Who the people of hybrid labels are: ``simulated``, ``app``, or a file."""
        given = None if self.label is None else self.label.people
        return given or ("simulated" if self.gold else "app")

    @model_validator(mode="after")
    def _limit_a_reward_model(self) -> Self:
        """Far from its data a reward model may say anything; rewards of one's own mean what they say."""
        align = self.align
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
    """Refuse sections that cannot work together.

    Raises:
        ConfigError: with the sections and what to add or remove.
    """
    problems = []
    data = config.data
    if config.revise and not data.redteam:
        problems.append("revise needs data.redteam, the prompts whose answers are criticised")
    if config.revise and not config.sft:
        problems.append("revise needs sft, which learns from the revisions")
    if config.balance and not (data.redteam_heldout and config.evaluate and config.align):
        problems.append("balance needs data.redteam_heldout, evaluate and align: it compares the first and last model")
    people, by = (config.label.people, config.label.source) if config.label else (None, "")
    if by == "hybrid" and people and people not in ("app", "simulated") and not Path(people).suffix:
        problems.append(
            f"label.people is {people!r}; expected app, simulated, or a file of judgements (its name ends in .jsonl)"
        )
    if by == "hybrid" and people == "simulated" and not config.gold:
        problems.append("label.people is 'simulated' and needs gold, the utility simulated annotators go by")
    if people and (by in ("simulated", "human") or (by == "ai" and people in ("simulated", "app"))):
        problems.append(
            f"label.people is {people!r}, but label.source {by!r} asks nobody else; remove it, set source: hybrid, or "
            "with source: ai name a file of judgements to compare with"
        )
    if by == "hybrid" and config.people_of_hybrid == "app" and config.label:
        for name in ("overlap", "enough"):  # not by what was set: a resolved configuration sets everything
            if (value := getattr(config.label.human, name)) != 1:
                problems.append(
                    f"label.human.{name} is {value:g}, which is for source 'human'; with 'hybrid' the router says "
                    "who is asked, so leave it at 1"
                )
    if config.label and config.label.source == "hybrid" and config.sample and config.sample.answers != 2:
        problems.append(f"label.source 'hybrid' compares pairs; set sample.answers to 2, not {config.sample.answers}")
    if config.sft and not (data.demonstrations or data.preferences or config.revise):
        problems.append("sft needs data.demonstrations (or data.preferences, whose better answers it imitates)")
    if config.label and not config.sample:
        problems.append("label needs sample: there are no answers to compare")
    if config.sample and not data.prompts:
        problems.append("sample needs data.prompts")
    if config.label and config.label.source == "simulated" and not config.gold:
        problems.append("label.source is 'simulated' and needs gold, the utility simulated annotators go by")
    if config.label and data.preferences:
        problems.append("label and data.preferences both say where preferences come from; remove one")
    if config.reward and not (config.label or data.preferences):
        problems.append("reward needs preferences: a label section or data.preferences")
    online = config.align if isinstance(config.align, OnlineConfig) else None
    sources = config.rewards or {}
    if online and not (config.reward or sources):
        problems.append("align needs reward, or rewards that are not a model: there is nothing to maximise")
    models = [name for name, source in sources.items() if isinstance(source, ModelReward)]
    if models and not config.reward:
        problems.append(f"rewards.{models[0]} is the reward model and needs reward, the section that trains it")
    if len(models) > 1:
        problems.append(f"rewards {' and '.join(models)} are the same reward model; keep one")
    if sources and not online:
        problems.append("rewards are for online methods (align.method ppo, rloo, grpo, …); remove them or change align")
    if sources and all(source.weight == 0 for source in sources.values()):
        problems.append("the weight of all rewards is 0: there is nothing to maximise; set rewards.<name>.weight")
    stepwise = [n for n, source in sources.items() if isinstance(source, FunctionReward) and source.steps]
    if stepwise and online and not ONLINE[online.method].step_rewards:
        problems.append(
            f"rewards.{stepwise[0]}.steps places rewards at steps, but align.method {online.method!r} gives all tokens "
            f"of an answer the same advantage; use {', '.join(methods_with(step_rewards=True))}, or drop steps"
        )
    ptx = online.ptx if isinstance(online, PolicyGradientConfig) else None
    if ptx is not None and not (ptx.data or data.demonstrations):
        problems.append("align.ptx needs conversations: data.demonstrations or align.ptx.data")
    if isinstance(config.align, DpoConfig) and config.align.smoothing == "robust" and not config.align.label_smoothing:
        problems.append(
            "align.smoothing is 'robust' and align.label_smoothing 0: without a share of wrong labels nothing is "
            "smoothed; set align.label_smoothing, or drop align.smoothing"
        )
    if isinstance(config.align, OfflineConfig):
        rated = data.ratings is not None and config.align.method == "kto"
        if not (config.label or data.preferences or rated):
            also = " (or data.ratings)" if config.align.method == "kto" else ""
            problems.append(
                f"align.method {config.align.method!r} needs preferences: a label section or data.preferences{also}"
            )
        if rated and (config.label or data.preferences):
            problems.append("data.ratings and preferences both say what KTO learns from; remove one")
    if data.ratings and not (isinstance(config.align, OfflineConfig) and config.align.method == "kto"):
        problems.append("data.ratings is for align.method kto; remove it or change align")
    if online and not (data.prompts or data.preferences):
        problems.append("align needs data.prompts (or data.preferences, whose prompts it uses)")
    if config.evaluate and not (data.heldout or data.prompts or data.preferences or data.ratings):
        problems.append("evaluate needs data.heldout, data.prompts, data.preferences or data.ratings")
    if config.evaluate and not config.evaluate.pretrained and not (config.sft or config.align):
        problems.append("evaluate.pretrained is false and there is no sft and no align: no model is left to evaluate")
    if config.evaluate and config.evaluate.best_of and not (config.reward or sources):
        problems.append("evaluate.best_of needs reward or rewards: nothing says which answer is best")
    if config.evaluate and config.evaluate.best_of and config.evaluate.sampler.temperature == 0.0:
        problems.append("evaluate.best_of needs evaluate.sampler.temperature above 0: all n answers would be the same")
    if online:
        try:
            check_rl(online, prompts=1)
        except ConfigError as error:
            problems.append(f"align: {error}")
        reward = config.reward
        if (
            isinstance(online, PpoConfig)
            and online.critic_init == "reward_model"
            and (
                reward is None
                or reward.model is not None
                or reward.adapter != online.adapter
                or list(sources.values()) not in ([], [ModelReward()])
            )
        ):
            problems.append(
                "align.critic_init is 'reward_model', which needs the reward model on the policy's trunk with the same "
                "adapter settings (reward.adapter = align.adapter, no reward.model) as the only reward; or set "
                "critic_init: zero"
            )
        if online.sampler.max_new_tokens >= config.model.context:
            problems.append(
                f"align.sampler.max_new_tokens ({online.sampler.max_new_tokens}) leaves no room for a prompt in "
                f"model.context ({config.model.context})"
            )
    if problems:
        raise ConfigError("the recipe contradicts itself:\n" + "\n".join(f"  {p}" for p in problems))


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
