"""The context of a stage: configuration, folders, the console, and the models of earlier stages."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from trimtab.errors import DataError, TooLongError
from trimtab.feedback import Utility, load_callable
from trimtab.files import locate, storage_errors
from trimtab.models import AdapterConfig, Backbone, Chat, Role, leave_out, load_tensors
from trimtab.pipeline.config import RunConfig, load_recipe
from trimtab.pipeline.ui import Bar, Ui
from trimtab.records import Demonstration, Loaded, Preference, Prompt, Rating, load
from trimtab.storage import MetricsLog, RunFolder
from trimtab.trainers import ALONE, Checkpoints, Group, Session, held_out, step_seed

LISTED = 5
"""Most rows that a message about unrenderable rows names with the reason; all are counted."""

Counts = dict[str, Any]
"""What a stage reports: numbers of rows, pairs, drops, by name."""

UNREAD = 20
"""Most unread columns that a message names; all are counted."""

SAME_IN_ALL_ROUNDS = ("heldout", "evaluate", "examples", "reward", "reward halves")
"""Purposes whose seed does not depend on the round: all rounds hold out the same prompts and preferences, and are
compared with the same random numbers."""

SHARED_STAGES = ("revise", "sft")
"""Stages that only the first round has."""

K = TypeVar("K", Prompt, Demonstration, Preference, Rating)


@dataclass(kw_only=True)
class Context:
    """Everything a stage needs in addition to its own settings."""

    config: RunConfig
    """The resolved recipe."""
    recipe: Path
    """The recipe's file."""
    run: RunFolder
    """The run's folder."""
    ui: Ui
    """The console."""
    stop_requested: Callable[[], bool] = field(default=lambda: False)
    """True after Ctrl-C."""
    fingerprints: dict[str, str] = field(default_factory=dict)
    """Fingerprint of each stage of this run."""
    cached: set[str] = field(default_factory=set)
    """Stages whose earlier result was used."""
    group: Group = ALONE
    """The processes that run the current stage together."""
    scratch: dict[str, Path] = field(default_factory=dict)
    """Folder by stage for output of ranks other than the first; nothing reads it."""
    read: set[tuple[str, type]] = field(default_factory=set)
    """Data files, and types of records read from them, whose refused rows and unread columns were listed already."""

    def folder(self, stage: str) -> Path:
        """A stage's folder; for a stage that another rank writes, this rank's scratch folder."""
        return self.scratch.get(stage) or (self.run.first if stage in SHARED_STAGES else self.run).stage(stage)

    def seed(self, purpose: str) -> int:
        """The seed for a purpose; each purpose has its own, and most purposes have one for each round."""
        step = 0 if purpose in SAME_IN_ALL_ROUNDS else self.run.number - 1
        return step_seed(self.config.seed, purpose, step) % (1 << 31)

    @property
    def start(self) -> str:
        """Name of the model that alignment starts from: ``base``, ``sft``, or in later rounds ``start``."""
        return "start" if self.run.number > 1 else "base" if self.config.sft is None else "sft"

    @contextmanager
    def training(self, stage: str, title: str, *, part: str = "") -> Iterator[Session]:
        """Logging, checkpoints, stopping and a progress bar for a training stage; only the first rank logs.

        ``part``: for a stage that trains several models, the subfolder of this model.
        """
        if not self.group.first:
            checkpoints = self.checkpoints(stage, part)
            yield Session(checkpoints=checkpoints, stop_requested=self.stop_requested, group=self.group)
            return
        with self.ui.bar(title) as bar:
            session = StageSession(self, stage, bar, part)
            try:
                yield session
            finally:
                session.close()

    def checkpoints(self, stage: str, part: str = "") -> Checkpoints:
        """A stage's checkpoints, which the first rank writes and all ranks read; ``part`` as for :meth:`training`."""
        return Checkpoints(
            (self.run.first if stage in SHARED_STAGES else self.run).stage(stage) / "checkpoints" / part,
            self.fingerprints[stage],
            every=self.config.checkpoint_every,
            group=self.group,
        )

    def data_path(self, source: str) -> str:
        """A data source; a relative path is looked up in the current folder, then in the recipe's."""
        return locate(source, self.recipe.parent)

    def load(self, source: str, kind: type[K]) -> Loaded[K]:
        """Read a data file and, the first time in a run, print what was refused."""
        data = self.config.data
        loaded = load(self.data_path(source), kind=kind, format=data.format, limit=data.limit)
        if (source, kind) not in self.read:
            self.read.add((source, kind))
            self._announce(source, loaded)
        return loaded

    def _announce(self, source: str, loaded: Loaded[Any]) -> None:
        """Print what was refused, left out or not understood in a data file."""
        if loaded.refused:
            more = f" The first {LISTED}:" if len(loaded.refused) > LISTED else ""
            self.ui.say(
                f"  {source}: {len(loaded.refused)} of {loaded.rows} rows refused; "
                f"`trimtab data check {source} --json` lists all.{more}"
            )
            for refusal in loaded.refused[:LISTED]:
                self.ui.say(f"    line {refusal.line}: {refusal.reason}")
        if loaded.unread:
            names = ", ".join(f"{name[:40]!r} ({count})" for name, count in list(loaded.unread.items())[:UNREAD])
            more = f" and {len(loaded.unread) - UNREAD} more" if len(loaded.unread) > UNREAD else ""
            self.ui.say(f"  {source}: further columns, kept as metadata (rows): {names}{more}")
        for doubt, count in loaded.doubts.items():
            self.ui.say(f"  {source}: {count} rows: {doubt}")
        if loaded.duplicates:
            self.ui.say(f"  {source}: {loaded.duplicates} repeated prompts left out")

    def prompts(self, chat: Chat, room: int) -> tuple[list[Prompt], dict[str, int]]:
        """Prompts for sampling and alignment, without held-out prompts; and counts of those left out."""
        all_prompts, heldout = self._split_prompts()
        heldout_ids = {p.id for p in heldout} | {p.id for p in self.redteam_heldout()}
        remaining = [p for p in all_prompts if p.id not in heldout_ids]
        return self._fitting(remaining, chat, room, {"heldout": len(all_prompts) - len(remaining)})

    def heldout(self, chat: Chat, room: int) -> tuple[list[Prompt], dict[str, int]]:
        """Held-out prompts for the evaluation; and counts of those left out."""
        return self._fitting(self._split_prompts()[1], chat, room, {})

    def redteam_heldout(self) -> list[Prompt]:
        """Held-out red-team prompts for the balance of harmlessness and helpfulness."""
        source = self.config.data.redteam_heldout
        return list(self.load(source, Prompt).records) if source else []

    def fitting_redteam(self, chat: Chat, room: int) -> tuple[list[Prompt], dict[str, int]]:
        """Held-out red-team prompts that fit into the context with an answer; and counts of those left out."""
        return self._fitting(self.redteam_heldout(), chat, room, {})

    def set_aside(self) -> set[str]:
        """Content ids of the prompts for the evaluation; nothing is trained on them."""
        if self.config.evaluate is None:
            return set()
        return {Prompt.of(p.messages).id for p in self._split_prompts()[1]}

    def _split_prompts(self) -> tuple[list[Prompt], list[Prompt]]:
        data = self.config.data
        source = data.prompts or data.preferences or data.ratings
        all_prompts = list(self.load(source, Prompt).records) if source else []
        if data.heldout:
            return all_prompts, list(self.load(data.heldout, Prompt).records)
        heldout = held_out([p.id for p in all_prompts], data.heldout_share, self.seed("heldout"))
        return all_prompts, [all_prompts[i] for i in heldout]

    def _fitting(
        self, prompts: Sequence[Prompt], chat: Chat, room: int, counts: dict[str, int]
    ) -> tuple[list[Prompt], dict[str, int]]:
        """Leave out, and count, prompts that cannot be rendered or leave no room for an answer."""
        fitting: list[Prompt] = []
        left_out: dict[str, Any] = {"too_long": 0, "unrendered": {}}
        for prompt in prompts:
            try:
                if (length := len(chat.prompt(prompt.messages))) + room > chat.context:
                    raise TooLongError(f"{length} tokens and {room} of answer exceed model.context {chat.context}")
                fitting.append(prompt)
            except DataError as error:
                leave_out(left_out, prompt.id, error)
        counted = self.left_out(left_out, len(prompts), f"prompts (with {room} tokens of answer)")
        if not fitting:
            raise DataError(
                f"none of {len(prompts)} prompts can be asked: {left_out['too_long']} too long for model.context "
                f"{chat.context}{_reasons(left_out['unrendered'], ', ')}"
            )
        return fitting, counts | counted

    def left_out(self, left_out: Mapping[str, Any], total: int, rows: str) -> dict[str, int]:
        """Print which rows cannot be encoded and why; returns their number by reason.

        Args:
            left_out: rows left out, as :func:`trimtab.models.leave_out` fills it.
            total: number of all rows.
            rows: what the rows are called in the message.
        """
        long, unrendered = left_out["too_long"], left_out["unrendered"]
        if long or unrendered:
            self.ui.say(f"  of {total} {rows} {long} do not fit model.context{_reasons(unrendered, ', ')}; left out")
        return {"too_long": long, "unrendered": len(unrendered)}

    def gold(self) -> Utility | None:
        """The simulated gold utility, if the recipe names one."""
        return load_callable(self.config.gold) if self.config.gold else None

    def trunk(self, *, pretrained: bool = False) -> Backbone:
        """The model that this round starts from: pretrained weights, with SFT and the earlier rounds' policies merged.

        ``pretrained``: True: the pretrained weights alone.
        """
        backbone = Backbone.load(self.config.model)
        for name, folder, adapter in [] if pretrained else start_parts(self.run, self.config):
            _merge(backbone, name, adapter, folder)
        return backbone


def start_parts(run: RunFolder, config: RunConfig) -> list[tuple[str, Path, AdapterConfig]]:
    """Stages whose weights a round starts from, in order: each stage's name, folder and adapter."""
    parts = [] if config.sft is None else [("sft", run.first.stage("sft"), config.sft.adapter)]
    for earlier in run.earlier():
        folder = earlier.stage("align")
        align = load_recipe(folder / "config.yaml").align
        assert align is not None, f"{folder}: made without align"
        parts.append(("align", folder, align.adapter))
    return parts


def _merge(backbone: Backbone, name: str, adapter: AdapterConfig, folder: Path) -> None:
    """Merge what a stage trained into a model's weights."""
    state = load_tensors(folder / "weights.safetensors")
    if adapter.kind == "full":
        Role(backbone, full=True).load_state(state)
        backbone.freeze()
        return
    Role.trainable(backbone, name, adapter, seed=0).load_state(state)
    backbone.merge(name)


def _reasons(unrendered: Mapping[str, str], prefix: str) -> str:
    """A message: how many rows cannot be rendered, and the first ones with their reasons; empty if there are none."""
    if not unrendered:
        return ""
    listed = "; ".join(f"{row}: {reason}" for row, reason in list(unrendered.items())[:LISTED])
    more = len(unrendered) - LISTED
    return f"{prefix}{len(unrendered)} cannot be rendered ({listed}{f'; and {more} more' if more > 0 else ''})"


class StageSession(Session):
    """A session that logs to the stage's folder and moves its progress bar."""

    def __init__(self, context: Context, stage: str, bar: Bar, part: str = "") -> None:
        folder = context.folder(stage) / part
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        self._bar, self._folder = bar, folder
        self._metrics: MetricsLog | None = None
        self._board: Any = None
        self._total = 0
        super().__init__(
            log=self._log,
            checkpoints=context.checkpoints(stage, part),
            group=context.group,
            stop_requested=context.stop_requested,
            planned=self._plan,
        )

    def _plan(self, done: int, total: int) -> None:
        self._total = total
        self._metrics = MetricsLog(self._folder, done)
        self._board = _tensorboard(self._folder / "tensorboard", done)
        self._bar.start(done, total)

    def _log(self, metrics: dict[str, float]) -> None:
        assert self._metrics is not None
        self._metrics(metrics)
        if self._board is not None:
            with storage_errors(self._folder):
                for name, value in metrics.items():
                    self._board.add_scalar(name, value, int(metrics["step"]))
        self._bar.update(int(metrics["step"]), self._total, metrics)

    def close(self) -> None:
        """Flush the metrics."""
        with storage_errors(self._folder):
            for sink in (self._metrics, self._board):
                if sink is not None:
                    sink.close()


def _tensorboard(folder: Path, done: int) -> Any:
    """A TensorBoard writer that drops events after step ``done``; None if TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=done + 1)


def now() -> str:
    """The time in UTC, ISO 8601."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
