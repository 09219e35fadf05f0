"""A conversation with the model of a run, or with any model."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from trimtab import fast_cpu
from trimtab.errors import ConfigError, TooLongError
from trimtab.models import Backbone, ModelConfig, load_tensors
from trimtab.models.loading import longest_context
from trimtab.pipeline.config import load_recipe
from trimtab.pipeline.context import Context
from trimtab.pipeline.learning import policy_role
from trimtab.pipeline.ui import Silent
from trimtab.records import Message, Prompt
from trimtab.rollout import LocalSampler, SamplerConfig
from trimtab.storage import RunFolder
from trimtab.text import visible

CONTEXT = 2048
"""Most tokens of a conversation with a bare model, if the model's context allows as many."""


def open_model(target: str, *, which: str, runs: Path) -> tuple[Backbone, str | None]:
    """The model that ``target`` names, and its adapter (None: the trunk alone).

    Args:
        target: a run's folder, a recipe, a model folder or a hub id.
        which: model of a run: ``base``, ``sft``, ``policy`` (the newest round's), or ``round-N``, the policy of round
            N.
        runs: folder of all runs, for recipes.

    Raises:
        ConfigError: the run has no such model yet.
    """
    fast_cpu.install()
    path = Path(target)
    recipe = path / "config.yaml" if (path / "config.yaml").is_file() else path
    if not recipe.is_file():
        if not path.exists() and (runs / target / "config.yaml").is_file():
            raise ConfigError(
                f"{target!r} is not a model; to use the run of this name, give its folder: {runs / target}"
            )
        context = min(longest_context(target) or CONTEXT, CONTEXT)
        return Backbone.load(ModelConfig(name=target, context=context)), None
    config = load_recipe(recipe)
    folder = path if recipe != path else runs / config.name
    run = RunFolder(folder, create=False)
    if re.fullmatch(r"round-[1-9]\d*", which):
        run, which = run.round(int(which.removeprefix("round-"))), "policy"
    elif which == "policy" and run.number == 1:
        run = run.newest()
    elif which == "sft":
        run = run.first
    if run.number > 1 and (stage_recipe := run.stage("align") / "config.yaml").is_file():
        config = config.model_copy(update={"align": load_recipe(stage_recipe).align})
    run_context = Context(config=config, recipe=recipe, run=run, ui=Silent())
    stage = {"base": None, "sft": "sft", "policy": "align"}.get(which, "")
    if stage == "" or (stage and not (run_context.folder(stage) / "weights.safetensors").exists()):
        raise ConfigError(f"{run.path} has no model {which!r} yet; run `trimtab run {target}` or use --model base")
    backbone = run_context.trunk(pretrained=which == "base")
    if which != "policy":
        return backbone, None
    role = policy_role(run_context, backbone)
    role.load_state(load_tensors(run_context.folder("align") / "weights.safetensors"))
    return role.backbone, role.adapter


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """One answer, safe to print on a terminal."""

    text: str
    """The answer; control characters are made visible."""
    cut: bool
    """True: the answer was cut before it ended."""
    forgotten: int
    """Number of oldest turns that were dropped because the context was full."""
    unfinished: bool
    """True: the thinking did not end, so there is no answer, and the conversation is unchanged."""
    limit: int
    """Longest answer, in tokens, from now on."""
    raised: bool
    """True: the limit was raised because the thinking was cut."""


@dataclass(kw_only=True)
class Talk:
    """A conversation with a model."""

    sampler: LocalSampler
    """Samples the answers."""
    adapter: str | None
    """Adapter of the model; None: the trunk alone."""
    turns: list[Message] = field(default_factory=list)
    """The conversation so far."""
    count: int = 0
    """Number of answers given, so that each has its own seed."""

    @classmethod
    def open(cls, target: str, *, which: str, runs: Path, temperature: float, max_new_tokens: int) -> "Talk":
        """Load what ``target`` names.

        Raises:
            ConfigError: the run has no such model yet.
        """
        backbone, adapter = open_model(target, which=which, runs=runs)
        room = backbone.chat.context // 2
        sampling = SamplerConfig(temperature=temperature, max_new_tokens=min(max_new_tokens, room), slots=1)
        return cls(sampler=LocalSampler(backbone, sampling), adapter=adapter)

    def reset(self) -> None:
        """Forget the conversation."""
        self.turns.clear()

    @property
    def room(self) -> int:
        """Most tokens of an answer: half the context."""
        return self.sampler.backbone.chat.context // 2

    def answer(self, text: str) -> Reply:
        """Answer a message. When the context is full, the oldest turns are dropped and counted.

        If the thinking is cut, the limit is doubled and the message answered again, until the thinking ends or fills
        half the context. Unfinished thinking is not an answer and is not added to the conversation.

        Raises:
            TooLongError: this turn alone does not fit the context.
            DataError: the chat template cannot render the conversation.
        """
        turns = [*self.turns, Message(role="user", content=text)]
        forgotten, initial_limit = 0, self.sampler.config.max_new_tokens
        while True:
            try:
                rollout = self.sampler.generate([Prompt.of(turns)], adapter=self.adapter, seed=self.count)[0]
            except TooLongError:
                if len(turns) < 3:
                    raise
                turns, forgotten = turns[2:], forgotten + 2
                continue
            unfinished = self.sampler.backbone.chat.unfinished_thought(turns, rollout.text)
            cut, limit = rollout.finish_reason == "length", self.sampler.config.max_new_tokens
            if not (unfinished and cut and limit < self.room):
                break
            longer = self.sampler.config.model_copy(update={"max_new_tokens": min(2 * limit, self.room)})
            self.sampler.config = longer
        self.count += 1
        if not unfinished:
            self.turns = [*turns, Message(role="assistant", content=rollout.text)]
        return Reply(
            text=visible(rollout.text),
            cut=cut,
            forgotten=forgotten,
            unfinished=unfinished,
            limit=limit,
            raised=limit > initial_limit,
        )
