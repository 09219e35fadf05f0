"""A first recipe for a user's model, data and machine: complete, commented, accepted by ``trimtab plan``.

The data determines what the recipe does:

==============================  =====================================================================================
data                            stages
==============================  =====================================================================================
preferences                     SFT on the better answers, reward model (as a judge), DPO
demonstrations                  SFT
ratings (thumbs)                KTO
prompts, a verifier             GRPO with the verifier as reward; SFT first where the data has answers
prompts, a behaviour in words   answers compared by an AI judge under the behaviour, reward model, DPO
a behaviour in words            the same, on questions written here
==============================  =====================================================================================
"""

import json
import math
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from trimtab.constitution import load_constitution
from trimtab.errors import ConfigError, DataError
from trimtab.feedback import load_callable
from trimtab.files import write_atomic
from trimtab.models import ModelConfig
from trimtab.models.layouts import window_of
from trimtab.models.loading import described_by, load_chat, longest_context
from trimtab.pipeline.config import load_recipe
from trimtab.pipeline.memory import fit_memory
from trimtab.pipeline.starter_facts import RECORDS, Answers, Data, Kind, Lengths
from trimtab.pipeline.starter_text import beside, recipe_text, starter_constitution, starter_prompts
from trimtab.records import Message, Prompt, load
from trimtab.records.check import check, prompt_and_answers

MEASURED = 1000
"""Maximum number of records whose tokens are counted."""

CONTEXTS = (128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
"""Context lengths that a recipe may get, in tokens."""

JUDGE = 400
"""Tokens of a question to a judge, without the prompt and the answers."""

HUB_ROWS = 1000
"""Maximum number of rows of a hub data set that are read."""


def look_at(source: str, *, format: str = "auto", use: Kind | None = None) -> Data:
    """Read a data file and decide what to use it for.

    Args:
        source: path or hub id.
        format: format of its rows, or ``auto``.
        use: what to use it for; None: the most informative use of its records.

    Raises:
        DataError: the file cannot be read, or contains nothing for this use.
    """
    hub = not os.path.exists(source)  # names that are no file are looked up on the hub
    report = check([source], format=format, limit=HUB_ROWS if hub else None).files[0]
    total = sum(report.records.values())
    kinds: dict[Kind, int] = {kind: report.records.get(r.__name__.lower(), 0) for kind, r in RECORDS.items()}
    kinds["prompts"] += report.records.get("comparison", 0)
    usable: list[Kind] = [kind for kind, count in kinds.items() if count and count >= 0.1 * total]
    if not usable:
        contents = ", ".join(report.records) or "nothing"
        raise DataError(
            f"{source}: holds {contents}, and none of {report.rows} rows can be trained on. Expected preferences, "
            f"ratings, demonstrations or prompts; `trimtab data check {source}` gives the reason for each row"
        )
    kind: Kind = use or usable[0]
    if kind not in usable:  # convert, or refuse
        load(source, kind=RECORDS[kind], format=format, limit=HUB_ROWS if hub else None)
    if kind == "preferences" and report.pairs == report.identical_pairs:
        raise DataError(f"{source}: in no preference is one answer better than another, so there is nothing to learn")
    return Data(source=source, kind=kind, report=report, limited=hub, format=format)


def write_starter(answers: Answers, recipe: Path, *, overwrite: bool = False) -> list[Path]:
    """Write the recipe and, next to it, the constitution and the prompts that it needs.

    Returns:
        The files written, the recipe first.

    Raises:
        ConfigError: a file exists and ``overwrite`` is false, the verifier cannot be imported, or the model does not
            fit into the machine's memory.
        ModelError: the model has no usable tokenizer or chat template.
    """
    if answers.verifier is not None:
        load_callable(answers.verifier)
    files: dict[Path, str] = {recipe: ""}
    if answers.by_judge:
        files[beside(recipe, "constitution.yaml")] = starter_constitution(answers.behaviour or "")
    if answers.data is None:
        rows = [json.dumps({"prompt": text}, ensure_ascii=False) for text in starter_prompts()]
        files[beside(recipe, "prompts.jsonl")] = "\n".join(rows) + "\n"
    existing = [str(path) for path in files if path.exists()]
    if existing and not overwrite:
        raise ConfigError(f"{' and '.join(existing)} exists already; give another recipe file, or --force to overwrite")
    files[recipe] = _fitting(answers, recipe)
    for path, text in files.items():
        write_atomic(path, text)
    return list(files)


def _fitting(answers: Answers, recipe: Path) -> str:
    """The recipe's text with the largest settings that fit into the machine's memory."""
    lengths = _lengths(answers)
    options = [(64, False), (32, False), (16, True), (8, True)]
    if answers.machine.kind == "gpu":
        options = [(256, False), (128, False), *options]
    for slots, checkpointing in options:
        text = recipe_text(answers, recipe, lengths, slots=slots, checkpointing=checkpointing)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / recipe.name
            path.write_text(text, encoding="utf-8")
            config = load_recipe(path)
            if answers.by_judge:  # refuses a behaviour such as "TODO"
                rules = Path(folder) / "constitution.yaml"
                rules.write_text(starter_constitution(answers.behaviour or ""), encoding="utf-8")
                load_constitution(str(rules))
        try:
            fit_memory(config)
            return text
        except ConfigError:
            if slots == options[-1][0]:
                raise
    raise AssertionError("the last try returns or raises")


# Lengths ----------------------------------------------------------------------------------


def _lengths(answers: Answers) -> Lengths:
    model = ModelConfig(name=answers.model, context=10**9, chat_template=answers.chat_template)
    chat = load_chat(model)
    shape: Any = AutoConfig.from_pretrained(described_by(answers.model)).get_text_config()
    cap = 2048 if answers.machine.kind == "cpu" else 8192
    context_limit = min(n for n in (longest_context(answers.model), window_of(shape), cap) if n)
    longest_answer = 128 if answers.machine.kind == "cpu" else 512
    totals: list[int] = []
    prompt_lengths: list[int] = []
    answer_lengths: list[int] = []
    refused = 0
    for prompt, texts in _conversations(answers.data):
        try:
            head = len(chat.prompt(prompt))
            bodies = [len(chat.answer_tokens(prompt, text)) for text in texts]
        except DataError:
            refused += 1
            continue
        prompt_lengths.append(head)
        answer_lengths += bodies
        totals.append(head + max(bodies, default=0))
    if answers.data is not None and not totals:
        raise DataError(
            f"{answers.data.source}: the chat template of {answers.model} refuses all {refused} conversations"
        )
    answer = (
        min(max(32, _round_up(_p95(answer_lengths), 16)), longest_answer) if answer_lengths else min(96, longest_answer)
    )
    if answers.verifier is not None:
        answer = longest_answer  # leave room for thinking before the result
    needed = max(_p95(totals) if totals else 0, _p95(prompt_lengths) + answer if prompt_lengths else 64 + answer)
    if answers.by_judge:
        needed = max(needed, (_p95(prompt_lengths) if prompt_lengths else 64) + 2 * answer + JUDGE)
    context = next((n for n in CONTEXTS if n >= needed), CONTEXTS[-1])
    context = min(context, context_limit)
    answer = min(answer, context // 2)
    return Lengths(
        context=context,
        answer=answer,
        measured=len(totals) + refused,
        too_long=sum(total > context for total in totals),
        refused=refused,
        layers=shape.num_hidden_layers,
    )


def _conversations(data: Data | None) -> list[tuple[Sequence[Message], list[str]]]:
    """Prompts with their answers: a sample spread over the file."""
    if data is None:
        return [(Prompt.from_text(text).messages, []) for text in starter_prompts()]
    kind: type[Any] = RECORDS[data.kind]
    records = load(data.source, kind=kind, format=data.format, limit=HUB_ROWS if data.limited else None).records
    step = max(1, len(records) // MEASURED)
    pairs: list[tuple[Sequence[Message], list[str]]] = []
    for record in records[::step][:MEASURED]:
        prompt, answers = prompt_and_answers(record)
        if prompt and (answers or isinstance(record, Prompt)):
            pairs.append((prompt, answers))
    return pairs


def _p95(values: Sequence[int]) -> int:
    """The 95th percentile of the values (nearest rank)."""
    ordered = sorted(values)
    return ordered[math.ceil(0.95 * len(ordered)) - 1]


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step
