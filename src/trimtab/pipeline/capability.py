"""The capability check around SFT and alignment: what a model can do, measured before and after.

Questions are asked as a user would ask the recipe's model: through its chat template and with its system message. Only
the neutral passages are read without a template. Nothing random is drawn, so training gives the same numbers with the
check and without it. The model after one stage is the model before the next one and is measured once.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

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
from trimtab.models import Encoded, Role, collate
from trimtab.pipeline.config import RunConfig
from trimtab.pipeline.context import Context
from trimtab.records import Demonstration, Message, Prompt, read_records
from trimtab.rollout import LocalSampler, SamplerConfig
from trimtab.storage import read_json

FILE = "capability.json"
"""File in the folder of a training stage: results before and after it, item by item."""

ANSWER = SamplerConfig(temperature=0.0, max_new_tokens=40)
"""How open questions are answered."""

TOKENS = 1024
"""Padded tokens of a forward pass."""

DEMONSTRATIONS = 16
"""Number of held-out demonstrations that are measured."""

BASE, SFT, POLICY = "the pretrained model", "the model after SFT", "the model after alignment"
ROUND_BEFORE = "the policy of the round before"
"""What the console calls the models."""

T = TypeVar("T")


def capability_set(config: RunConfig, where: Callable[[str], str]) -> CapabilitySet | None:
    """The questions and texts of a recipe; None where it has no check. ``where`` looks up a data path.

    Raises:
        DataError: see :func:`~trimtab.evals.load_capability`.
    """
    if config.capability is None:
        return None
    return load_capability(None if config.capability.file is None else Path(where(config.capability.file)))


def _checked_before(context: Context, stage: str) -> Path | None:
    """Folder of the stage that measured, after training, the model that this one starts from; None: there is none."""
    if stage != "align":
        return None
    if context.run.number > 1:
        folder = context.run.earlier()[-1].stage("align")
        return folder if (folder / FILE).exists() else None
    return None if context.config.sft is None else context.folder("sft")


class CapabilityCheck:
    """The check of one training stage: made before training, finished after it.

    Args:
        context: of the stage; with ``capability: null`` nothing is measured.
        stage: ``sft`` or ``align``.
        start: the model before training.
    """

    def __init__(self, context: Context, stage: str, start: Role) -> None:
        self._rows = capability_set(context.config, context.data_path)
        if self._rows is None:
            return
        self._context, self._path = context, context.folder(stage) / FILE
        before = _checked_before(context, stage)
        earlier = ROUND_BEFORE if context.run.number > 1 else SFT
        self._names = (BASE if before is None else earlier, SFT if stage == "sft" else POLICY)
        heldout = context.folder("sft") / "heldout.jsonl"
        self._demonstrations = read_records(heldout, Demonstration) if context.config.sft is not None else []
        if before is not None:
            self._before = Capability.model_validate(read_json(before / FILE)["after"])
        elif self._path.exists():  # an earlier attempt was interrupted in training
            self._before = Capability.model_validate(read_json(self._path)["before"])
        else:
            self._before = self._measured(start)
            write_json(self._path, {"before": self._before.model_dump(), "after": None})

    def finish(self, role: Role) -> list[str]:
        """Measure the trained model and say what changed; returns the stage's further output files."""
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
    chat, reasons = role.backbone.chat, {}

    def usable(key: str, items: Sequence[T], encode: Callable[[T], Encoded | None], missing: str) -> list:
        """The items that fit, each with its tokens; the others are counted."""
        if not items:
            reasons[key] = missing
        fitting, why = [], ""
        for item in items:
            try:
                if (encoded := encode(item)) is not None:
                    fitting.append((item, encoded))
            except DataError as error:
                why = str(error)
        if len(fitting) < len(items):
            left = len(items) - len(fitting)
            reasons[key] = f"{left} of {len(items)} left out: {why or 'they have fewer than two tokens'}"
        return fitting

    def finite(key: str, values: dict[str, float]) -> dict[str, float]:
        finite_values = {name: value for name, value in values.items() if math.isfinite(value)}
        if len(finite_values) < len(values):
            reasons[key] = f"{len(values) - len(finite_values)} of {len(values)} log-probabilities are not finite"
        return finite_values

    def turns_of(question: str) -> list[Message]:
        return [Message(role="user", content=question)]

    none = "the capability set has no rows for it"
    margins, pairs = {}, [(q, text) for q, right, wrong in rows.choices for text in (right, wrong)]
    encoded = usable("margins", pairs, lambda pair: chat.answer(turns_of(pair[0]), pair[1]), none)
    sums = response_logprobs(role, [e for _, e in encoded])
    given = {pair: value for (pair, _), value in zip(encoded, sums, strict=True)}
    for question, right, wrong in rows.choices:
        if (question, right) in given and (question, wrong) in given:
            margins[question] = given[question, right] - given[question, wrong]

    def passage(text: str) -> Encoded | None:
        tokens = chat.tokenizer.encode(text, add_special_tokens=False)[: chat.context]
        return Encoded(tokens=tokens, response_mask=[False] + [True] * (len(tokens) - 1)) if len(tokens) > 1 else None

    def nll(encoded_items: list) -> list[float]:
        sums = response_logprobs(role, [e for _, e in encoded_items])
        return [-value / sum(e.response_mask) for (_, e), value in zip(encoded_items, sums, strict=True)]

    texts = usable("texts", rows.texts, passage, none)
    heldout = usable(
        "demonstrations",
        demonstrations[:DEMONSTRATIONS],
        lambda d: chat.conversation(d.messages, untrained=d.untrained),
        "no demonstrations were held out of SFT",
    )

    def with_room(item: tuple[str, tuple[str, ...]]) -> Encoded:
        tokens = chat.prompt(turns_of(item[0]))
        if len(tokens) + ANSWER.max_new_tokens > chat.context:
            room = f"{len(tokens)} tokens and {ANSWER.max_new_tokens} of answer"
            raise DataError(f"a question of {room} does not fit model.context {chat.context}")
        return Encoded(tokens=tokens, response_mask=[])

    questions = [item for item, _ in usable("answers", rows.open, with_room, none)]
    rollouts = LocalSampler(role.backbone, ANSWER).generate(
        [Prompt.from_text(question) for question, _ in questions], adapter=role.adapter, seed=0
    )
    return Capability(
        margins=finite("margins", margins),
        texts=finite("texts", dict(zip([t for t, _ in texts], nll(texts), strict=True))),
        demonstrations=finite("demonstrations", dict(zip([d.id for d, _ in heldout], nll(heldout), strict=True))),
        answers={
            question: OpenAnswer(text=r.text, on_topic=is_on_topic(r.text, keywords), complete=is_complete(r.text))
            for (question, keywords), r in zip(questions, rollouts, strict=True)
        },
        reasons=reasons,
    )


def response_logprobs(role: Role, encoded: Sequence[Encoded]) -> list[float]:
    """Log p of each response in nats; equal prompts are computed once."""
    if not encoded:
        return []
    starts = [e.response_mask.index(True) for e in encoded]
    device = role.backbone.device
    batch = collate([e.tokens for e in encoded], [e.response_mask for e in encoded], device, prompt_lengths=starts)
    out = torch.zeros(batch.size)
    for index, part in batch.micro_batches(TOKENS):
        out[index.cpu()] = role.logprobs(part).sum(dim=1).cpu()
    return out.tolist()
