"""Runs a recipe stage by stage; skips finished stages and resumes interrupted ones.

A stage's fingerprint is the hash of its part of the configuration, the seed, the fingerprints of the stages it reads
from, and :data:`CODE`. Files that the configuration names enter by their content: data files, model folders, chat
templates, constitutions, and the source of functions. A stage with the same fingerprint and status ``done`` is skipped.
Otherwise it runs. If its fingerprint changed, the stages that read from it run too. The stages of a later round also
depend on the policy that the round starts from.
"""

import json
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from trimtab import fast_cpu
from trimtab.config import read_yaml
from trimtab.errors import ConfigError, Interrupted, NonFiniteError
from trimtab.feedback import load_callable
from trimtab.feedback.callables import source_digests
from trimtab.files import sha256_file, sha256_json, write_atomic, write_json
from trimtab.models import ModelConfig, model_identity
from trimtab.pipeline.capability import capability_set
from trimtab.pipeline.config import RunConfig, dump_config
from trimtab.pipeline.context import SHARED_STAGES, Context
from trimtab.pipeline.memory import fit_memory
from trimtab.pipeline.rates import fill_rates
from trimtab.pipeline.scale import ScaleConfig, joined, threads_of
from trimtab.pipeline.stages import STAGES, Stage, stages_of
from trimtab.pipeline.ui import Silent, Ui
from trimtab.process import peak_memory
from trimtab.records import Record
from trimtab.rollout import FunctionReward
from trimtab.storage import START, RunFolder, read_record, require_space
from trimtab.trainers import ALONE, Group

CODE = 8
"""Version of the results; incremented when a stage gives different results for equal inputs."""


RECIPE = "recipe.json"
"""File of a run with the path of its recipe."""


class RecipeNote(Record):
    """The content of :data:`RECIPE`."""

    recipe: str
    """Path of the recipe's file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Planned:
    """A stage and what a run would do with it."""

    stage: Stage
    """The stage."""
    fingerprint: str
    """Fingerprint for the current settings and inputs."""
    state: str
    """``done`` (will be skipped), ``continue`` (was interrupted), or ``run``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedRound:
    """A round and what a run would do in it."""

    run: RunFolder
    """The round's folder."""
    stages: list[Planned]
    """Its stages in order."""
    start: str | None = None
    """Fingerprint of the policy that it starts from; None: the first round."""


def plan_rounds(config: RunConfig, recipe: Path, run: RunFolder, until: str | None = None) -> list[PlannedRound]:
    """All rounds of a recipe, up to and including stage ``until`` of the last round that has it.

    Raises:
        ConfigError: ``until`` names a stage that this recipe does not have, a function cannot be imported, or a round's
            folder contains a round with other labels.
    """
    planned: list[PlannedRound] = []
    last = 1 if until in SHARED_STAGES else config.rounds
    for number in range(1, last + 1):
        start = None
        if planned:
            start = next(item.fingerprint for item in planned[-1].stages if item.stage.name == "align")
            check_labels(run.round(number))
        stages = plan_stages(config, recipe, run.round(number), until if number == last else None, start=start)
        planned.append(PlannedRound(run=run.round(number), stages=stages, start=start))
    return planned


def check_labels(run: RunFolder) -> None:
    """Refuse to replace a round that `trimtab round` made from votes.

    Raises:
        ConfigError: the round was made from votes; the message names its folder.
    """
    file = run.path / "config.yaml"
    source = (read_yaml(file).get("label") or {}).get("source") if file.is_file() else None
    if source == "votes" and run.is_finished("label"):
        raise ConfigError(
            f"{run.path} was made by `trimtab round` from votes, and this recipe would make round {run.number} from "
            f"other labels. Set rounds: {run.number - 1} and continue with `trimtab round {run.first.path}`, or give "
            "the run another name (--set name=...)"
        )


def plan_stages(
    config: RunConfig, recipe: Path, run: RunFolder, until: str | None = None, *, start: str | None = None
) -> list[Planned]:
    """All stages of one round with their fingerprints and what would happen to them.

    Args:
        config: the resolved recipe.
        recipe: file of the recipe.
        run: the round's folder.
        until: last stage; None: all.
        start: fingerprint of the policy that a later round starts from.

    Raises:
        ConfigError: ``until`` names a stage this recipe does not have, or a function cannot be imported.
    """
    _check_callables(config)
    stages = stages_of(config, run.number)
    if until is not None:
        names = [s.name for s in stages]
        if until not in names:
            raise ConfigError(f"this recipe has no stage {until!r}; it has {', '.join(names)}")
        stages = stages[: names.index(until) + 1]
    if not stages:
        raise ConfigError("the recipe has no stage; add sft, reward, align or evaluate")
    context = Context(config=config, recipe=recipe, run=run, ui=Ui())
    if {"sft", "align"} & {stage.name for stage in stages}:
        capability_set(config, context.data_path)  # refuses a malformed one before anything is trained
    fingerprints: dict[str, str] = {} if start is None else {START: start}
    planned = []
    for stage in stages:
        fingerprints[stage.name] = _fingerprint(stage, context, fingerprints)
        if run.is_done(stage.name, fingerprints[stage.name]):
            state = "done"
        else:
            status = run.status(stage.name)
            unfinished = status is not None and status.fingerprint == fingerprints[stage.name]
            state = "continue" if unfinished else "run"
        planned.append(Planned(stage=stage, fingerprint=fingerprints[stage.name], state=state))
    return planned


def _check_callables(config: RunConfig) -> None:
    """Import every function that the recipe names, so that a wrong path fails before any training."""
    named = {f"rewards.{n}.path": s.path for n, s in (config.rewards or {}).items() if isinstance(s, FunctionReward)}
    if config.process is not None and config.process.rollouts is not None:
        named["process.rollouts.verifier"] = config.process.rollouts.verifier
    if config.label is not None and config.label.source in ("simulated", "hybrid"):
        named["label.simulation.parts"] = config.label.simulation.parts
    for key, path in ({"gold": config.gold} | named).items():
        if path is not None:
            try:
                load_callable(path)
            except ConfigError as error:
                raise ConfigError(f"{key}: {error}") from error


def run_recipe(
    config: RunConfig,
    recipe: Path,
    *,
    runs: Path = Path("runs"),
    until: str | None = None,
    ui: Ui | None = None,
    again: bool = False,
    alone: bool = False,
) -> RunFolder:
    """Run a recipe's rounds, up to and including stage ``until`` of the last one.

    With ``scale.kind: torchrun`` this process must be one of several (:mod:`trimtab.pipeline.scale`); all of them call
    this function.

    Args:
        config: the resolved recipe.
        recipe: file of the recipe; relative data paths are also looked up in its folder.
        runs: folder of all runs.
        until: last stage; None: all.
        ui: console.
        again: run the last stage even if it is done.
        alone: True: this process runs it by itself, whatever ``scale`` says.

    Raises:
        Interrupted: Ctrl-C; all finished work is kept, and the same command resumes the run.
        RankError: another process is missing or has stopped.
    """
    recipe, config = origin(recipe), prepared(config)
    with joined(ScaleConfig() if alone else config.scale) as group, ExitStack() as stack:
        ui = (ui or Ui()) if group.first else Silent()
        run = group.once("folder of the run", lambda: RunFolder(runs / config.name))
        group.once("lock of the run", lambda: stack.enter_context(run.lock()))
        stopping = stack.enter_context(interruptible(aloud=group.first))
        planned = plan_rounds(config, recipe, run, until)
        if group.first:
            require_space(run.path, 0.2)
            write_json(run.path / RECIPE, {"recipe": str(recipe.resolve())})
        for item in planned:
            redo = again and item is planned[-1]
            run_round(config, recipe, item, ui, stopping, again=redo, rounds=len(planned), group=group)
    return run


def origin(recipe: Path) -> Path:
    """The recipe's file; if ``recipe`` is a run's own copy, the original file, if it still exists."""
    if recipe.name == "config.yaml" and (number := RunFolder(recipe.parent, create=False).number) > 1:
        raise ConfigError(
            f"{recipe}: is the recipe of round {number}; run the run's own recipe, or `trimtab round` with its folder"
        )
    note = recipe.parent / RECIPE
    if recipe.name != "config.yaml" or not note.is_file():
        return recipe
    first = Path(read_record(note, RecipeNote, next_step="delete it, and name the recipe's own file once").recipe)
    return first if first.is_file() else recipe


def prepared(config: RunConfig) -> RunConfig:
    """The recipe with learning rates and micro-batches filled in; threads and fast kernels are set for the process."""
    fast_cpu.install()
    config = fit_memory(fill_rates(config))
    threads = threads_of(config.threads)
    if threads is not None:
        torch.set_num_threads(threads)
    return config


def run_round(
    config: RunConfig,
    recipe: Path,
    planned: PlannedRound,
    ui: Ui,
    stopping: Sequence[bool],
    *,
    again: bool = False,
    rounds: int = 1,
    group: Group = ALONE,
) -> None:
    """Run the stages of one round; the caller holds the run's lock.

    Args:
        config: as :func:`prepared` returns it.
        recipe: file of the recipe.
        planned: the round.
        ui: console.
        stopping: its one entry becomes True after Ctrl-C.
        again: run the last stage even if it is done.
        rounds: number of rounds; with several the console says which one this is.
        group: the processes that run it together.
    """
    run, stages = planned.run, planned.stages
    if group.first:
        write_atomic(run.path / "config.yaml", dump_config(config))
    context = Context(config=config, recipe=recipe, run=run, ui=ui, stop_requested=lambda: stopping[0])
    context.fingerprints |= {} if planned.start is None else {START: planned.start}
    context.fingerprints |= {p.stage.name: p.fingerprint for p in stages}
    for number, item in enumerate(stages, 1):
        name, last = item.stage.name, number == len(stages)
        head = f"[{number}/{len(stages)}] {name}"
        if rounds > 1:
            head = f"[round {run.number} of {rounds}, {number}/{len(stages)}] {name}"
        if not group.once(f"begin of stage {name}", partial(_begin, context, item, head, redo=again and last)):
            context.cached.add(name)
            continue
        if item.stage.shared:
            context.group = group
            (_run_stage if group.first else _run_as_follower)(context, item.stage)
        else:
            context.group = ALONE
            group.once(f"stage {name}", partial(_run_stage, context, item.stage))
        if group.once(f"end of stage {name}", lambda: stopping[0]) and not (last and run.number >= rounds):
            raise Interrupted(f"stopped after stage {name}; the same command continues")
    if group.first and stages[-1].stage.name == "report":
        publish(run, ui)


def _begin(context: Context, item: Planned, head: str, *, redo: bool) -> bool:
    """Prepare a stage's folder; False: its result exists already. ``redo``: True: prepare it even then."""
    name, run, ui = item.stage.name, context.run, context.ui
    if item.state == "done" and not redo:
        ui.say(f"{head}: done before, skipped")
        return False
    if context.stop_requested():
        raise Interrupted(f"stopped before stage {name}; the same command continues")
    ui.say(f"{head}{': continuing' if item.state == 'continue' else ''}")
    needs = {n: context.fingerprints[n] for n in item.stage.needs if n in context.fingerprints}
    folder = run.begin(name, item.fingerprint, needs)
    if run.is_done(name, item.fingerprint) and not redo:  # restored from superseded/
        ui.say("  an earlier result under the same settings was taken back")
        return False
    write_atomic(folder / "config.yaml", dump_config(context.config))
    return True


def _run_stage(context: Context, stage: Stage) -> None:
    """Run a stage and write its status."""
    name, run, started = stage.name, context.run, time.monotonic()
    try:
        counts, outputs = stage.run(context)
        _wait_for_ranks(context, stage)
    except BaseException as error:
        run.add_seconds(name, time.monotonic() - started, memory_gb=peak_memory() / 1e9)
        if isinstance(error, NonFiniteError):
            raise NonFiniteError(f"{error}\n{_last_checkpoint(run.stage(name))}") from error
        raise
    seconds = time.monotonic() - started
    run.finish(name, seconds=seconds, counts=counts, outputs=outputs, memory_gb=peak_memory() / 1e9)
    summary = ", ".join(f"{k} {v}" for k, v in counts.items() if v not in (0, None))
    context.ui.say(f"  {seconds:.0f} s · {summary}")


def _run_as_follower(context: Context, stage: Stage) -> None:
    """Run a stage together with the first rank: the work is divided, and files that this rank writes are discarded."""
    with tempfile.TemporaryDirectory(prefix="trimtab-") as folder:
        context.scratch = {stage.name: Path(folder)}
        stage.run(context)
        _wait_for_ranks(context, stage)
    context.scratch = {}


def _wait_for_ranks(context: Context, stage: Stage) -> None:
    """Wait until all ranks have their results, since finishing a stage removes checkpoints that they may be reading."""
    context.group.gather(f"results of stage {stage.name}", lambda: None)


def publish(run: RunFolder, ui: Ui) -> None:
    """Copy the page of the newest round that has one to the run's folder."""
    first = run.first
    pages = [r.stage("report") for r in first.rounds()[: run.newest().number]]
    finished = [folder for folder in pages if (folder / "report.html").is_file()]
    for name in ("report.html", "report.json") if finished else ():
        page = (finished[-1] / name).read_bytes()
        if not (first.path / name).is_file() or (first.path / name).read_bytes() != page:
            write_atomic(first.path / name, page)


def _last_checkpoint(folder: Path) -> str:
    """A sentence: from which checkpoint to continue after a number became NaN or infinite."""
    checkpoints = sorted((folder / "checkpoints").glob("step-*"))
    return (
        f"last good checkpoint: {checkpoints[-1]}"
        if checkpoints
        else "there is no checkpoint yet; the stage starts again"
    )


def _fingerprint(stage: Stage, context: Context, earlier: dict[str, str]) -> str:
    config = context.config
    sources = []
    for source in stage.sources(config):
        if source is not None:
            path = Path(context.data_path(source))
            sources.append(sha256_file(path) if path.is_file() else source)
    data = {"limit": config.data.limit, "format": config.data.format, "heldout_share": config.data.heldout_share}
    value = {
        "code": CODE,
        "stage": stage.name,
        "settings": _with_content(json.loads(json.dumps(stage.settings(config), default=str))),
        "seed": config.seed,
        "threads": config.threads,
        "model": model_identity(config.model),
        "sources": sources,
        "data": data if sources else None,
        "needs": {name: earlier[name] for name in stage.needs if name in earlier},
    }
    return sha256_json(value)


def _with_content(settings: Any) -> Any:
    """A stage's settings, with the content of the models and functions that they name."""
    if isinstance(settings, list):
        return [_with_content(inner) for inner in settings]
    if not isinstance(settings, dict):
        return settings
    if settings.keys() == ModelConfig.model_fields.keys():
        identity = model_identity(ModelConfig.model_validate(settings))
        return settings | {"name": None, "chat_template": None, "identity": identity}
    values = {name: _with_content(inner) for name, inner in settings.items()}
    paths = [settings.get(name) for name in ("gold", "verifier", "parts")]
    paths.append(settings["path"] if settings.get("kind") == "function" else None)
    sources = [source_digests(path) for path in paths if isinstance(path, str)]  # a reward may be named like a setting
    return values | {"source": sources} if sources else values


@contextmanager
def interruptible(*, aloud: bool = True) -> Iterator[Sequence[bool]]:
    """The first Ctrl-C requests a stop at the next safe place (the entry becomes True); the second stops at once.

    ``aloud``: True: print a message.
    """
    stopping = [False]

    def request_stop(_: int, __: FrameType | None) -> None:
        if stopping[0]:
            raise KeyboardInterrupt
        stopping[0] = True
        if aloud:
            print("\nstopping after this step (Ctrl-C again to stop at once) …", file=sys.stderr)

    try:
        previous_handler = signal.signal(signal.SIGINT, request_stop)
    except ValueError:  # not the main thread
        yield stopping
        return
    try:
        yield stopping
    finally:
        signal.signal(signal.SIGINT, previous_handler)


__all__ = ["CODE", "STAGES", "Planned", "PlannedRound", "plan_rounds", "plan_stages", "run_recipe"]
