"""The context of a stage: configuration, folders, the console, and the models of earlier stages."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from trimtab.errors import DataError
from trimtab.feedback import Utility, load_callable
from trimtab.files import storage_errors
from trimtab.models import Backbone, Chat, Role, load_tensors
from trimtab.pipeline.config import RunConfig
from trimtab.pipeline.ui import Bar, Ui
from trimtab.records import Demonstration, Loaded, Preference, Prompt, Rating, load
from trimtab.storage import MetricsLog, RunFolder
from trimtab.trainers import Checkpoints, Session, split_holdout, step_seed

Counts = dict[str, Any]
"""What a stage says about itself: rows, pairs, drops, by name."""

K = TypeVar("K", Prompt, Demonstration, Preference, Rating)


@dataclass(kw_only=True)
class Context:
    """Everything a stage needs beside its own settings."""

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

    def folder(self, stage: str) -> Path:
        """A stage's folder."""
        return self.run.stage(stage)

    def seed(self, purpose: str) -> int:
        """The seed for a purpose; each purpose has its own."""
        return step_seed(self.config.seed, purpose, 0) % (1 << 31)

    @contextmanager
    def training(self, stage: str, title: str) -> Iterator["StageSession"]:
        """Logging, checkpoints, stopping and a progress bar for a training stage."""
        with self.ui.bar(title) as bar:
            session = StageSession(self, stage, bar)
            try:
                yield session
            finally:
                session.close()

    def data_path(self, source: str) -> str:
        """A data source with relative paths looked up here first, then beside the recipe."""
        if Path(source).exists():
            return source
        beside = self.recipe.parent / source
        return str(beside) if beside.exists() else source

    def load(self, source: str, kind: type[K]) -> Loaded[K]:
        """Read a data file and say what was refused."""
        data = self.config.data
        loaded = load(self.data_path(source), kind=kind, format=data.format, limit=data.limit)
        if loaded.refused:
            first = loaded.refused[0]
            self.ui.say(
                f"  {source}: {len(loaded.refused)} of {loaded.rows} rows refused (first: line {first.line}, "
                f"{first.reason}); `trimtab data check {source}` lists all"
            )
        if loaded.duplicates:
            self.ui.say(f"  {source}: {loaded.duplicates} repeated prompts left out")
        return loaded

    def prompts(self, chat: Chat, room: int) -> tuple[list[Prompt], dict[str, int]]:
        """Prompts for sampling and alignment, without held-out ones; and counts of those left out."""
        everything, held = self._split_prompts()
        known = {p.id for p in held} | {p.id for p in self.redteam_heldout()}
        remaining = [p for p in everything if p.id not in known]
        return self._fitting(remaining, chat, room, {"heldout": len(everything) - len(remaining)})

    def heldout(self, chat: Chat, room: int) -> tuple[list[Prompt], dict[str, int]]:
        """Prompts for evaluation."""
        return self._fitting(self._split_prompts()[1], chat, room, {})

    def redteam_heldout(self) -> list[Prompt]:
        """Held-out red-team prompts for the balance of harmless and helpful."""
        source = self.config.data.redteam_heldout
        return list(self.load(source, Prompt).records) if source else []

    def fitting_redteam(self, chat: Chat, room: int) -> tuple[list[Prompt], dict[str, int]]:
        """Held-out red-team prompts that fit into the context with an answer."""
        return self._fitting(self.redteam_heldout(), chat, room, {})

    def set_aside(self) -> set[str]:
        """Content ids of the prompts for the evaluation; nothing is trained on them."""
        if self.config.evaluate is None:
            return set()
        return {Prompt.of(p.messages).id for p in self._split_prompts()[1]}

    def _split_prompts(self) -> tuple[list[Prompt], list[Prompt]]:
        data = self.config.data
        source = data.prompts or data.preferences or data.ratings
        everything = list(self.load(source, Prompt).records) if source else []
        if data.heldout:
            return everything, list(self.load(data.heldout, Prompt).records)
        _, held = split_holdout([p.id for p in everything], data.heldout_share, self.seed("heldout"))
        return everything, [everything[i] for i in held]

    def _fitting(
        self, prompts: Sequence[Prompt], chat: Chat, room: int, counts: dict[str, int]
    ) -> tuple[list[Prompt], dict[str, int]]:
        """Leave out, and count, prompts that do not fit into the context together with an answer."""
        kept, long = [], 0
        for prompt in prompts:
            try:
                fits = len(chat.prompt(prompt.messages)) + room <= chat.context
            except DataError:
                fits = False
            if fits:
                kept.append(prompt)
            else:
                long += 1
        if long:
            self.ui.say(
                f"  {long} of {len(prompts)} prompts are too long for model.context {chat.context} with {room} tokens "
                "of answer; left out"
            )
        if not kept:
            raise DataError(f"no prompt fits: {len(prompts)} read, {long} too long for model.context {chat.context}")
        return kept, counts | {"too_long": long}

    def gold(self) -> Utility | None:
        """The simulated gold utility, if the recipe names one."""
        return load_callable(self.config.gold) if self.config.gold else None

    def trunk(self, *, with_sft: bool = True) -> Backbone:
        """The pretrained model, with the weights of SFT merged in."""
        backbone = Backbone.load(self.config.model)
        if self.config.sft is None or not with_sft:
            return backbone
        state = load_tensors(self.folder("sft") / "weights.safetensors")
        if self.config.sft.adapter.kind == "full":
            Role(backbone, full=True).load_state(state)
            for parameter in backbone.model.parameters():
                parameter.requires_grad_(False)
            return backbone
        role = Role.trainable(backbone, "sft", self.config.sft.adapter, seed=0)
        role.load_state(state)
        backbone.merge("sft")
        return backbone


class StageSession(Session):
    """A session that logs to the stage's folder and moves its bar."""

    def __init__(self, context: Context, stage: str, bar: Bar) -> None:
        folder = context.folder(stage)
        self._bar, self._folder = bar, folder
        self._metrics: MetricsLog | None = None
        self._board: Any = None
        self._total = 0
        super().__init__(
            log=self._log,
            checkpoints=Checkpoints(
                folder / "checkpoints", context.fingerprints[stage], every=context.config.checkpoint_every
            ),
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
    """A TensorBoard writer that drops events after step ``done``; None where TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=done + 1)


def now() -> str:
    """The time in UTC, ISO 8601."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
