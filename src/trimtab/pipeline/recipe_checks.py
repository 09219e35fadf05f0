"""Checks that the sections of a recipe can work together.

Each section has a function that yields contradictions: the value, what was expected, and what to change. A value that
is wrong in itself is refused earlier, by the section's own class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from trimtab.errors import ConfigError
from trimtab.evals import AlarmConfig
from trimtab.feedback import AggregateConfig
from trimtab.pipeline.scale import check_scale
from trimtab.records.weights import WATCHED
from trimtab.rollout import FunctionReward, ModelReward, ProcessReward, RewardSource
from trimtab.trainers import (
    OFFLINE,
    ONLINE,
    DpoConfig,
    OfflineConfig,
    OnlineConfig,
    OpponentConfig,
    PairConfig,
    PolicyGradientConfig,
    PpoConfig,
    check_rl,
    methods_with,
)

if TYPE_CHECKING:  # config.py imports this module
    from trimtab.pipeline.config import LabelConfig, RunConfig


def check_recipe(config: RunConfig) -> None:
    """Refuse sections that cannot work together.

    Raises:
        ConfigError: the recipe contradicts itself; the message names the sections and what to add or remove.
    """
    problems = [problem for check in _CHECKS for problem in check(config)]
    if problems:
        raise ConfigError("the recipe contradicts itself:\n" + "\n".join(f"  {p}" for p in problems))


def _check_scale(config: RunConfig) -> Iterator[str]:
    yield from check_scale(config.scale)
    if not config.scale.shard:
        return
    trained = {name: getattr(config, name) for name in ("sft", "reward", "process", "align")}
    sections = {name: section for name, section in trained.items() if section is not None}
    if not sections:
        yield (
            "scale.shard is true and no section trains a model; add sft, reward, process or align, or set scale.shard: "
            "false"
        )
    for name, section in sections.items():
        if section.adapter.kind == "lora" and section.adapter.experts:
            yield (
                f"scale.shard is true and {name}.adapter.experts is true, which is untested with sharded weights; set "
                "experts: false, or scale.shard: false"
            )
    align = config.align
    if isinstance(align, OnlineConfig) and align.sampler.engine == "vllm":
        yield (
            "scale.shard is true and align.sampler.engine 'vllm', which is untested with sharded weights; set "
            "engine: local, or scale.shard: false"
        )


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
            f"label.people is {label.people!r}, but label.source {label.source!r} asks no one else; remove it, set "
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
        for name in ("overlap", "enough"):  # by value, because a resolved recipe sets all fields
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
    votes = config.reward is not None and bool(config.reward.annotators)
    pairs = label is not None and sample is not None and sample.answers == 2
    if config.reward and config.reward.ties and not votes and label is not None and pairs:
        if label.aggregate.labels == "soft" or not label.aggregate.keep_tied:
            yield (
                f"reward.loss {config.reward.loss!r} learns from ties, and no preference of two answers will be one: "
                "ties become soft labels of one half, or are dropped. Set label.aggregate.labels: hard and "
                "label.aggregate.keep_tied: true, or reward.loss: bradley_terry"
            )
    yield from _check_several_models(config)
    yield from _check_objectives(config)
    yield from _check_annotators(config)


def _check_objectives(config: RunConfig) -> Iterator[str]:
    """Check a reward model of several criteria."""
    reward, label, sources = config.reward, config.label, config.rewards or {}
    objectives = () if reward is None else reward.objectives
    named = {name: s.objective for name, s in sources.items() if isinstance(s, ModelReward)}
    for name, objective in named.items():
        if objective is not None and objective not in objectives:
            names = ", ".join(objectives) or "none"
            yield f"rewards.{name}.objective is {objective!r}, and reward.objectives names {names}; correct one of them"
        if objective is None and objectives:
            yield f"rewards.{name} is a model of several objectives; set objective to one of {', '.join(objectives)}"
    if reward is None or not objectives:
        return
    used = [objective for objective in named.values() if objective is not None]
    for objective in sorted({o for o in used if used.count(o) > 1}):
        yield f"the objective {objective!r} is named by {used.count(objective)} rewards; keep one"
    if isinstance(config.align, OnlineConfig) and not sources:
        yield (
            "reward.objectives gives several rewards, and nothing weighs them; add rewards, for example "
            f"{{{objectives[0]}: {{kind: model, objective: {objectives[0]}, weight: 1}}}}"
        )
    if isinstance(config.align, OfflineConfig):
        yield (
            f"reward.objectives makes preferences of several criteria, and align.method {config.align.method!r} learns "
            "from preferences of one; leave objectives out, or use an online method"
        )
    if config.evaluate and config.evaluate.best_of and not sources:
        yield "evaluate.best_of needs one reward, and reward.objectives gives several; add rewards, or drop best_of"
    if reward.split or reward.ensemble is not None:
        setting = "reward.split" if reward.split else "reward.ensemble"
        yield f"reward.objectives is for one reward model, and {setting} trains several; leave one out"
    if label is None:
        return
    if label.aggregate.criterion != AggregateConfig().criterion:
        yield (
            f"label.aggregate.criterion is {label.aggregate.criterion!r} and reward.objectives names the criteria; "
            "leave criterion out"
        )
    if label.source in ("simulated", "hybrid"):
        clause = "simulated annotators judge" if label.source == "simulated" else "the router knows"
        yield f"reward.objectives needs judgements by several criteria, and {clause} one, overall; change label.source"


def _check_annotators(config: RunConfig) -> Iterator[str]:
    """Check learning from single votes, and margins."""
    reward, label = config.reward, config.label
    if reward is not None and reward.annotators:
        if label is None:
            yield "reward.annotators learns from single votes, and data.preferences has none; add label, or drop it"
        elif not label.aggregate.keep_tied:
            yield (
                "reward.annotators learns from ties too, and items whose votes are all ties would be dropped; set "
                "label.aggregate.keep_tied: true"
            )
        if reward.split or reward.ensemble is not None:
            setting = "reward.split" if reward.split else "reward.ensemble"
            yield f"reward.annotators is for one reward model, and {setting} trains several; leave one out"
        if label is not None and label.aggregate.weighting != "equal":
            yield (
                f"label.aggregate.weighting is {label.aggregate.weighting!r}, and reward.annotators learns how far "
                "each annotator can be trusted; leave weighting out"
            )
    if label is None or label.aggregate.margin in (0.0, AggregateConfig().margin):
        return
    margin = f"label.aggregate.margin is {label.aggregate.margin:g}"
    if reward is not None and reward.annotators:
        yield f"{margin}, and reward.annotators explains each vote by itself, without margins; leave margin out"
    elif label.source == "ai":
        yield f"{margin}, and AI judges give probabilities instead of strengths, so no margin comes of it; leave it out"
    elif config.sample is not None and config.sample.answers > 2:
        yield f"{margin}, which is for two answers, and sample.answers is {config.sample.answers}; leave margin out"


def _check_several_models(config: RunConfig) -> Iterator[str]:
    """Check an ensemble, and a held-out reward model."""
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
        heldout_reward = sources.get("heldout")
        if heldout_reward is None or heldout_reward.weight != 0:
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
    if len(models) > 1 and not (config.reward and config.reward.objectives):
        yield f"rewards {' and '.join(models)} are the same reward model; keep one"
    if not isinstance(align, OnlineConfig):
        yield "rewards are for online methods (align.method ppo, rloo, grpo, …); remove them or change align"
    if all(source.weight == 0 for source in sources.values()):
        yield "the weight of all rewards is 0: there is nothing to maximise; set rewards.<name>.weight"
    process = [name for name, source in sources.items() if isinstance(source, ProcessReward)]
    if process and not config.process:
        yield f"rewards.{process[0]} is the process reward model and needs process, the section that trains it"
    stepwise = [name for name, source in sources.items() if _is_per_step(source)]
    if stepwise and isinstance(align, OnlineConfig) and not ONLINE[align.method].step_rewards:
        yield (
            f"rewards.{stepwise[0]} places rewards at steps, but align.method {align.method!r} gives all tokens of an "
            f"answer the same advantage; use {', '.join(methods_with(step_rewards=True))}, or one number per answer "
            "(leave steps out; for the process reward model score: minimum)"
        )


def _is_per_step(source: RewardSource) -> bool:
    """True: the reward is earned at the ends of steps."""
    if isinstance(source, ProcessReward):
        return source.score == "steps"
    return isinstance(source, FunctionReward) and source.steps is not None


def _check_process(config: RunConfig) -> Iterator[str]:
    process, data = config.process, config.data
    if process is None:
        if data.steps is not None:
            yield "data.steps is for the process reward model; add a process section, or drop it"
        return
    if data.steps is None and process.rollouts is None:
        yield "process needs solutions with judged steps: data.steps, or process.rollouts to make them"
    if process.rollouts is not None and not (data.prompts or data.preferences):
        yield "process.rollouts needs data.prompts to solve"


def soft_labels_expected(config: RunConfig) -> str | None:
    """The settings that make the ``label`` section give soft labels; None: it need not give them."""
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
        alternative = " (or data.ratings)" if align.method == "kto" else ""
        yield f"align.method {align.method!r} needs preferences: a label section or data.preferences{alternative}"
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
        yield (
            f"align.method {align.method!r} needs reward, or rewards that are not a model: nothing says which answers "
            "are good. Train a reward model (reward) on preferences, which label gives to sampled answers, or name a "
            "function or an endpoint in rewards"
        )
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
    single = reward is not None and reward.model is None and reward.ensemble is None and reward.heads == 1
    same_adapter = single and reward is not None and reward.adapter == align.adapter
    return same_adapter and sources in ([], [ModelReward()])


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
    _check_process,
    _check_offline,
    _check_soft_labels,
    _check_online,
    _check_evaluate,
    _check_balance,
)
