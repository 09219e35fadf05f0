"""The stages, in order, each from files to files.

revise → sft → sample → label → preferences → reward → process → align → evaluate → balance → report. A stage reads only
what earlier stages wrote, so a run that was stopped and resumed gives the same results.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from trimtab.evals import BUILT_IN
from trimtab.pipeline.config import RunConfig
from trimtab.pipeline.constitutional import constitution_path, run_balance, run_revise
from trimtab.pipeline.context import SHARED_STAGES, Context, Counts
from trimtab.pipeline.costs import (
    StageCost,
    align_cost,
    balance_cost,
    evaluate_cost,
    label_cost,
    no_cost,
    preferences_cost,
    process_cost,
    revise_cost,
    reward_cost,
    sample_cost,
    sft_cost,
)
from trimtab.pipeline.evaluation import run_evaluate
from trimtab.pipeline.labelling import run_label, run_preferences, run_sample
from trimtab.pipeline.learning import run_align, run_reward, run_sft
from trimtab.pipeline.process import run_process
from trimtab.pipeline.reporting import run_report
from trimtab.storage import START
from trimtab.trainers import PolicyGradientConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """A named step of the pipeline."""

    name: str
    """Name of the stage and of its folder."""
    needs: tuple[str, ...]
    """Stages whose outputs it reads, if the recipe has them."""
    settings: Callable[[RunConfig], Any]
    """The part of the configuration that it depends on; None: the recipe does not have this stage."""
    sources: Callable[[RunConfig], list[str | None]]
    """Data files it reads."""
    run: Callable[[Context], tuple[Counts, list[str]]]
    """Runs the stage; returns counts and the names of its output files."""
    cost: StageCost
    """Estimates its cost."""
    shared: bool = False
    """True: all ranks run it and divide its work; False: the first rank runs it alone."""


def _section(name: str, *extra_keys: str) -> Callable[[RunConfig], Any]:
    def settings(config: RunConfig) -> Any:
        section = getattr(config, name)
        if section is None:
            return None
        extra = {key: getattr(config, key) for key in extra_keys}
        return {name: _used_settings(section)} | {
            k: _plain(v) for k, v in extra.items() if v is not None or k != "rewards"
        }

    return settings


def _used_settings(section: Any) -> dict[str, Any]:
    """A section's settings without the precision of moments if it is 32 bits, the precision before it was a setting."""
    values = _plain(section)
    for name in ("optimizer", "policy", "critic"):
        optimizer = values.get(name)
        if isinstance(optimizer, dict) and optimizer.get("state") == "32bit":
            values[name] = {key: value for key, value in optimizer.items() if key != "state"}
    return values


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else value


def _preference_sources(config: RunConfig) -> list[str | None]:
    """Preferences, and the files that determine which prompts are set aside for the evaluation."""
    return [config.data.preferences, config.data.prompts, config.data.heldout] if config.data.preferences else []


def _demonstration_sources(config: RunConfig) -> list[str | None]:
    """Demonstrations, and the prompts from which some are set aside if there is no file of held-out prompts."""
    data = config.data
    if data.demonstrations is None:
        return _preference_sources(config)
    return [data.demonstrations, *([data.prompts] if config.evaluate is not None and data.heldout is None else [])]


def _imitated(config: RunConfig) -> list[str | None]:
    ptx = config.align.ptx if isinstance(config.align, PolicyGradientConfig) else None
    return [] if ptx is None else [ptx.data or config.data.demonstrations]


def _preferences_settings(config: RunConfig) -> Any:
    named = () if config.reward is None else config.reward.objectives
    objectives = {"objectives": list(named)} if named else {}
    if config.label is not None:
        excluded = {"without": sorted(config.label.without)} if config.label.without else {}
        excluded |= {"thumbs": True} if config.learns_from_thumbs else {}
        return {"aggregate": config.label.aggregate.model_dump(mode="json")} | excluded | objectives
    read = {"limit": config.data.limit, "format": config.data.format} | objectives
    return read if config.data.preferences else None


def _label_settings(config: RunConfig) -> Any:
    """Only settings that the labels depend on, so that settings of unused annotators do not trigger relabelling."""
    label = config.label
    if label is None:
        return None
    labellers = config.people_of_hybrid if label.source == "hybrid" else label.source
    used = (
        {"source"}
        | ({"judges", "judge"} if label.by_ai else set())
        | ({"route"} if label.source == "hybrid" else set())
    )
    used |= {"simulated": {"simulation"}, "human": {"human"}, "app": {"human"}, "votes": {"votes"}}.get(
        labellers, set()
    )
    values: dict[str, Any] = {"label": label.model_dump(mode="json", include=used), "people": labellers}
    if "human" in used:
        del values["label"]["human"]["wait_minutes"]
    values |= {"thumbs": True} if config.learns_from_thumbs else {}
    return values | ({"gold": config.gold} if labellers == "simulated" else {})


def _label_sources(config: RunConfig) -> list[str | None]:
    if config.label is None or not config.label.by_ai:
        return []
    file = config.label.source == "hybrid" and config.people_of_hybrid not in ("app", "simulated")
    return [constitution_path(config), config.people_of_hybrid if file else None]


def _process_sources(config: RunConfig) -> list[str | None]:
    """Labels of steps, and for rollouts the prompts and the files that determine which prompts are set aside."""
    data = config.data
    return [data.steps, data.prompts or data.preferences or data.ratings, data.heldout]


def _report_sources(config: RunConfig) -> list[str | None]:
    """Judgements with which AI judges are compared; they are not labels."""
    return [config.label.people] if config.label is not None and config.label.source == "ai" else []


def _capability_source(config: RunConfig) -> list[str | None]:
    """The capability set; the checked stages depend on its content."""
    return [] if config.capability is None else [config.capability.file or str(BUILT_IN)]


STAGES: tuple[Stage, ...] = (
    Stage(
        name="revise",
        needs=(),
        settings=_section("revise", "model"),
        sources=lambda c: [c.data.redteam, c.data.redteam_heldout, c.data.demonstrations, constitution_path(c)],
        run=run_revise,
        cost=revise_cost,
    ),
    Stage(
        name="sft",
        needs=("revise",),
        settings=_section("sft", "model"),
        sources=lambda c: [
            *_demonstration_sources(c),
            *_capability_source(c),
        ],
        run=run_sft,
        cost=sft_cost,
        shared=True,
    ),
    Stage(
        name="sample",
        needs=("sft", START),
        settings=_section("sample", "model"),
        sources=lambda c: [c.data.prompts, c.data.heldout, c.data.redteam_heldout],
        run=run_sample,
        cost=sample_cost,
        shared=True,
    ),
    Stage(
        name="label",
        needs=("sample",),
        settings=_label_settings,
        sources=_label_sources,
        run=run_label,
        cost=label_cost,
    ),
    Stage(
        name="preferences",
        needs=("sample", "label"),
        settings=_preferences_settings,
        sources=_preference_sources,
        run=run_preferences,
        cost=preferences_cost,
    ),
    Stage(
        name="reward",
        needs=("sft", START, "preferences"),
        settings=_section("reward", "model"),
        sources=lambda c: [],
        run=run_reward,
        cost=reward_cost,
        shared=True,
    ),
    Stage(
        name="process",
        needs=("sft", START),
        settings=_section("process", "model"),
        sources=_process_sources,
        run=run_process,
        cost=process_cost,
        shared=True,
    ),
    Stage(
        name="align",
        needs=("sft", START, "preferences", "reward", "process"),
        settings=_section("align", "model", "gold", "rewards"),
        sources=lambda c: [
            c.data.prompts or c.data.preferences or c.data.ratings,
            c.data.heldout,
            c.data.redteam_heldout,
            *_imitated(c),
            c.data.ratings,
            *_capability_source(c),
        ],
        run=run_align,
        cost=align_cost,
        shared=True,
    ),
    Stage(
        name="evaluate",
        needs=("sft", START, "reward", "process", "align"),
        settings=_section("evaluate", "model", "gold", "rewards"),
        sources=lambda c: [c.data.prompts or c.data.preferences or c.data.ratings, c.data.heldout],
        run=run_evaluate,
        cost=evaluate_cost,
    ),
    Stage(
        name="balance",
        needs=("sft", START, "align", "evaluate"),
        settings=_section("balance", "model"),
        sources=lambda c: [c.data.redteam_heldout, constitution_path(c)],
        run=run_balance,
        cost=balance_cost,
    ),
    Stage(
        name="report",
        needs=("revise", "sft", "sample", "label", "preferences", "reward", "process", "align", "evaluate", "balance"),
        settings=lambda c: {"name": c.name} | ({"about": c.about} if c.about else {}) if c.evaluate else None,
        sources=_report_sources,
        run=run_report,
        cost=no_cost,
    ),
)
"""All stages in order."""


def stages_of(config: RunConfig, number: int = 1) -> list[Stage]:
    """The stages that a round of this recipe has; only the first round has ``revise`` and ``sft``."""
    shared = SHARED_STAGES if number > 1 else ()
    return [stage for stage in STAGES if stage.settings(config) is not None and stage.name not in shared]
