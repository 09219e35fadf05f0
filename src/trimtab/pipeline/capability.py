"""The capability check of SFT and alignment: what a model can do, measured before and after.

Questions are asked as a user would ask the recipe's model: through its chat template, with its system message. Only the
neutral passages are read without a template. The check uses no random numbers, so it does not change what training
computes. The model after one stage is the model before the next one, and is measured once.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from trimtab.errors import DataError
from trimtab.evals import (
    Capability,
    CapabilitySet,
    OpenAnswer,
    capability_lines,
    is_complete,
    is_on_topic,
    load_capability,
)
from trimtab.files import write_json
from trimtab.models import Chat, Encoded, Role, collate
from trimtab.pipeline.config import RunConfig
from trimtab.pipeline.context import Context
from trimtab.pipeline.small_results import read_capability, read_capability_after
from trimtab.records import Demonstration, Message, Prompt, read_records
from trimtab.rollout import LocalSampler, SamplerConfig

FILE = "capability.json"
"""File in the folder of a training stage: results before and after it, item by item."""

ANSWER = SamplerConfig(temperature=0.0, max_new_tokens=40)
"""Settings for answers to open questions."""

TOKENS = 1024
"""Padded tokens per forward pass."""

DEMONSTRATIONS = 16
"""Number of held-out demonstrations that are measured."""

BASE, SFT, POLICY = "the pretrained model", "the model after SFT", "the model after alignment"
ROUND_BEFORE = "the policy of the round before"
"""Name of this model on the console."""

T = TypeVar("T")


def capability_set(config: RunConfig, resolve_path: Callable[[str], str]) -> CapabilitySet | None:
    """The questions and texts of a recipe; None if it has no check. ``resolve_path`` looks up a data path.

    Raises:
        DataError: see :func:`~trimtab.evals.load_capability`.
    """
    if config.capability is None:
        return None
    return load_capability(None if config.capability.file is None else Path(resolve_path(config.capability.file)))


def _earlier_check(context: Context, stage: str) -> Path | None:
    """Folder of the stage that already measured the model that this stage starts from; None: no stage did."""
    if stage != "align":
        return None
    if context.run.number > 1:
        folder = context.run.earlier()[-1].stage("align")
        return folder if (folder / FILE).exists() else None
    return None if context.config.sft is None else context.folder("sft")


class CapabilityCheck:
    """The check of one training stage: create it before training, call :meth:`finish` after it.

    Args:
        context: context of the stage; with ``capability: null`` nothing is measured.
        stage: ``sft`` or ``align``.
        start: the model before training.
    """

    def __init__(self, context: Context, stage: str, start: Role) -> None:
        self._rows = capability_set(context.config, context.data_path)
        if self._rows is None:
            return
        self._context, self._path = context, context.folder(stage) / FILE
        earlier_check = _earlier_check(context, stage)
        earlier_name = ROUND_BEFORE if context.run.number > 1 else SFT
        self._names = (BASE if earlier_check is None else earlier_name, SFT if stage == "sft" else POLICY)
        heldout = context.folder("sft") / "heldout.jsonl"
        self._demonstrations = read_records(heldout, Demonstration) if context.config.sft is not None else []
        if earlier_check is not None:
            self._before = read_capability_after(earlier_check)
        elif self._path.exists():  # an earlier attempt was interrupted in training
            self._before = read_capability(self._path.parent).before
        else:
            self._before = self._measured(start)
            write_json(self._path, {"before": self._before.model_dump(), "after": None})

    def finish(self, role: Role) -> list[str]:
        """Measure the trained model and print what changed; returns the check's output files."""
        if self._rows is None:
            return []
        after = self._measured(role)
        write_json(self._path, {"before": self._before.model_dump(), "after": after.model_dump()})
        for line in capability_lines(self._before, after, names=self._names):
            self._context.ui.say(f"  {line}")
        return [FILE]

    def _measured(self, role: Role) -> Capability:
        assert self._rows is not None
        with self._context.ui.bar("capability check"):
            return measure_capability(role, self._rows, self._demonstrations)


@torch.no_grad()
def measure_capability(role: Role, rows: CapabilitySet, demonstrations: Sequence[Demonstration] = ()) -> Capability:
    """Measure a model on a capability set and on the first held-out demonstrations."""
    measurement = _Measurement(role)
    return Capability(
        margins=measurement.margins(rows.choices),
        texts=measurement.text_losses(rows.texts),
        demonstrations=measurement.demonstration_losses(demonstrations[:DEMONSTRATIONS]),
        answers=measurement.answers(rows.open),
        reasons=measurement.reasons,
    )


class _Measurement:
    """The parts of a capability check on one model, and why a part is incomplete.

    Args:
        role: the model.
    """

    def __init__(self, role: Role) -> None:
        self.role, self.chat = role, role.backbone.chat
        self.reasons: dict[str, str] = {}
        """By part: number of its items left out, and why."""

    def margins(self, choices: Sequence[tuple[str, str, str]]) -> dict[str, float]:
        """Log p of the right answer − log p of the wrong answer, in nats, by question."""
        pairs = [(question, text) for question, right, wrong in choices for text in (right, wrong)]
        encoded = self._usable("margins", pairs, lambda pair: self.chat.answer(question_turns(pair[0]), pair[1]))
        sums = response_logprobs(self.role, [e for _, e in encoded])
        logprobs = {pair: value for (pair, _), value in zip(encoded, sums, strict=True)}
        margins = {
            question: logprobs[question, right] - logprobs[question, wrong]
            for question, right, wrong in choices
            if (question, right) in logprobs and (question, wrong) in logprobs
        }
        return self._finite("margins", margins)

    def text_losses(self, texts: Sequence[str]) -> dict[str, float]:
        """Negative log-likelihood of plain texts, in nats per token."""
        encoded = self._usable("texts", texts, lambda text: encode_passage(self.chat, text))
        return self._finite("texts", dict(zip([text for text, _ in encoded], self._losses(encoded), strict=True)))

    def demonstration_losses(self, demonstrations: Sequence[Demonstration]) -> dict[str, float]:
        """Negative log-likelihood of the assistant's turns, in nats per token, by id."""
        encoded = self._usable(
            "demonstrations",
            demonstrations,
            lambda d: self.chat.conversation(d.messages, untrained=d.untrained),
            missing="no demonstrations were held out of SFT",
        )
        return self._finite("demonstrations", dict(zip([d.id for d, _ in encoded], self._losses(encoded), strict=True)))

    def answers(self, questions: Sequence[tuple[str, tuple[str, ...]]]) -> dict[str, OpenAnswer]:
        """Greedy answers to open questions; each question comes with the keywords of its topic."""
        usable = [item for item, _ in self._usable("answers", questions, self._encode_question)]
        rollouts = LocalSampler(self.role.backbone, ANSWER).generate(
            [Prompt.from_text(question) for question, _ in usable], adapter=self.role.adapter, seed=0
        )
        return {
            question: OpenAnswer(text=r.text, on_topic=is_on_topic(r.text, keywords), complete=is_complete(r.text))
            for (question, keywords), r in zip(usable, rollouts, strict=True)
        }

    def _usable(
        self,
        part: str,
        items: Sequence[T],
        encode: Callable[[T], Encoded | None],
        missing: str = "the capability set has no rows for it",
    ) -> list[tuple[T, Encoded]]:
        """The items that fit the context, each with its tokens; the others are counted."""
        if not items:
            self.reasons[part] = missing
        usable, reason = [], "they have fewer than two tokens"
        for item in items:
            try:
                if (encoded := encode(item)) is not None:
                    usable.append((item, encoded))
            except DataError as error:
                reason = str(error)
        if len(usable) < len(items):
            self.reasons[part] = f"{len(items) - len(usable)} of {len(items)} left out: {reason}"
        return usable

    def _encode_question(self, item: tuple[str, tuple[str, ...]]) -> Encoded:
        tokens = self.chat.prompt(question_turns(item[0]))
        if len(tokens) + ANSWER.max_new_tokens > self.chat.context:
            room = f"{len(tokens)} tokens and {ANSWER.max_new_tokens} of answer"
            raise DataError(f"a question of {room} does not fit model.context {self.chat.context}")
        return Encoded(tokens=tokens, response_mask=[])

    def _losses(self, items: Sequence[tuple[Any, Encoded]]) -> list[float]:
        sums = response_logprobs(self.role, [e for _, e in items])
        return [-value / sum(e.response_mask) for (_, e), value in zip(items, sums, strict=True)]

    def _finite(self, part: str, values: dict[str, float]) -> dict[str, float]:
        """The finite values; the others are counted."""
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        if len(finite) < len(values):
            self.reasons[part] = f"{len(values) - len(finite)} of {len(values)} log-probabilities are not finite"
        return finite


def question_turns(question: str) -> list[Message]:
    """A question as the user's turn."""
    return [Message(role="user", content=question)]


def encode_passage(chat: Chat, text: str) -> Encoded | None:
    """A text without a template, up to the context; None: it has fewer than two tokens."""
    tokens = chat.tokenizer.encode(text, add_special_tokens=False)[: chat.context]
    return Encoded(tokens=tokens, response_mask=[False] + [True] * (len(tokens) - 1)) if len(tokens) > 1 else None


def response_logprobs(role: Role, encoded: Sequence[Encoded]) -> list[float]:
    """Log p of each response in nats; equal prompts are computed once."""
    if not encoded:
        return []
    starts = [e.response_mask.index(True) for e in encoded]
    device = role.backbone.device
    batch = collate([e.tokens for e in encoded], [e.response_mask for e in encoded], device, prompt_lengths=starts)
    sums = torch.zeros(batch.size)
    for index, part in batch.micro_batches(TOKENS):
        sums[index.cpu()] = role.logprobs(part).sum(dim=1).cpu()
    return sums.tolist()
