"""A first recipe for a user's model, data and machine: complete, commented, accepted by ``trimtab plan``.

What is in the data decides what the recipe does:

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
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from transformers import AutoConfig

from trimtab.constitution import load_constitution
from trimtab.errors import ConfigError, DataError
from trimtab.feedback import load_callable
from trimtab.files import write_atomic
from trimtab.models import ModelConfig
from trimtab.models.layouts import window_of
from trimtab.models.loading import load_chat, longest_context, resolve
from trimtab.models.weights_check import adapter_base
from trimtab.pipeline.config import load_recipe
from trimtab.pipeline.memory import fit_memory
from trimtab.records import Demonstration, Message, Preference, Prompt, Rating, Record, load
from trimtab.records.check import FileCheck, check

Kind = Literal["preferences", "demonstrations", "ratings", "prompts"]
"""What a data file is used for."""

RECORDS: dict[Kind, type[Record]] = {
    "preferences": Preference,
    "ratings": Rating,
    "demonstrations": Demonstration,
    "prompts": Prompt,
}
"""Kinds of use with the records they need, the most informative first."""

MEASURED = 1000
"""Records whose tokens are counted."""

CONTEXTS = (128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
"""Lengths a recipe gets, in tokens."""

JUDGE = 400
"""Tokens of a question to a judge, without the prompt and the answers."""

HUB_ROWS = 1000
"""Rows of a hub data set that are looked at."""

CPU_ROWS = 2000
"""``data.limit`` of a recipe for a CPU."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """Where the run will take place."""

    kind: Literal["cpu", "gpu"]
    """Whether models run on an accelerator."""
    memory_gb: float | None
    """Its memory in 10⁹ bytes; None: unknown, and the recipe sets no limit."""

    @classmethod
    def here(cls) -> "Machine":
        """The machine this runs on; a tenth of its memory is left to others."""
        if torch.cuda.is_available():
            total = torch.cuda.get_device_properties(0).total_memory
            return cls(kind="gpu", memory_gb=math.floor(total * 0.9 / 1e8) / 10)
        try:
            total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        except (ValueError, OSError):
            return cls(kind="cpu", memory_gb=None)
        return cls(kind="cpu", memory_gb=math.floor(total * 0.9 / 1e8) / 10)

    def __str__(self) -> str:
        """As in ``cpu, 7.2 GB``."""
        return self.kind if self.memory_gb is None else f"{self.kind}, {self.memory_gb:g} GB"


@dataclass(frozen=True, kw_only=True, slots=True)
class Data:
    """A data file and what it holds."""

    source: str
    """Path or hub id."""
    kind: Kind
    """What it is used for."""
    report: FileCheck
    """Format, counts, lengths."""
    limited: bool
    """True: only the first rows of a hub data set were looked at."""
    format: str = "auto"
    """The format that was asked for."""

    @property
    def lines(self) -> list[str]:
        """What a person wants to know about it, in sentences."""
        report = self.report
        records = ", ".join(f"{count} {kind}s" for kind, count in report.records.items())
        name = self.source if self.limited else Path(self.source).name
        lines = [f"{name}: format {report.format}, {report.rows} rows, {records}"]
        if self.limited:
            lines.append(f"only the first {report.rows} rows of the hub data set were looked at")
        if report.refused:
            first = report.refused[0]
            lines.append(
                f"refused rows, which are not used: {len(report.refused)} (first: line {first.line}, "
                f"{first.reason}); `trimtab data check {self.source}` lists them"
            )
        if report.duplicates:
            lines.append(f"duplicate records: {report.duplicates}")
        if report.chosen_longer is not None:
            lines.append(f"the better answer is the longer one in {report.chosen_longer:.0%} of {report.pairs} pairs")
        return lines


def look_at(source: str, *, format: str = "auto", use: Kind | None = None) -> Data:
    """Read a data file and decide what it is for.

    Args:
        source: path or hub id.
        format: format of its rows, or ``auto``.
        use: what to use it for; None: the most informative use of its records.

    Raises:
        DataError: it cannot be read, or has nothing that can be used so.
    """
    hub = not os.path.exists(source)  # a name that no file can have is looked up there too
    report = check([source], format=format, limit=HUB_ROWS if hub else None).files[0]
    total = sum(report.records.values())
    kinds: dict[Kind, int] = {kind: report.records.get(r.__name__.lower(), 0) for kind, r in RECORDS.items()}
    kinds["prompts"] += report.records.get("comparison", 0)
    usable: list[Kind] = [kind for kind, count in kinds.items() if count and count >= 0.1 * total]
    if not usable:
        others = ", ".join(report.records) or "nothing"
        raise DataError(
            f"{source}: holds {others}, and none of {report.rows} rows can be trained on. Expected preferences, "
            f"ratings, demonstrations or prompts; `trimtab data check {source}` gives the reason for each row"
        )
    kind: Kind = use or usable[0]
    if kind not in usable:  # convertible, or refused here
        load(source, kind=RECORDS[kind], format=format, limit=HUB_ROWS if hub else None)
    if kind == "preferences" and report.pairs == report.identical_pairs:
        raise DataError(f"{source}: in no preference is one answer better than another, so there is nothing to learn")
    return Data(source=source, kind=kind, report=report, limited=hub, format=format)


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """What a recipe is written from: the answers to the questions of ``trimtab init``."""

    name: str
    """Name of the run."""
    model: str
    """Name, folder or hub id of the pretrained model."""
    machine: Machine
    """Where the run will take place."""
    data: Data | None = None
    """The data file; None: there is none, and ``behaviour`` is given."""
    behaviour: str | None = None
    """What the model should do, in words."""
    verifier: str | None = None
    """Dotted path of a function that scores answers."""
    chat_template: str | None = None
    """A chat template, for models without one."""

    def __post_init__(self) -> None:
        """Refuse answers that say too little.

        Raises:
            ConfigError: with what to add.
        """
        if self.behaviour is not None and not self.behaviour.strip():
            raise ConfigError("the behaviour is empty; say in a sentence what the model should do")
        if self.data is None and self.behaviour is None:
            raise ConfigError("a recipe needs data or a behaviour in words; give --data FILE or --behaviour TEXT")
        if self.data is None and self.verifier is not None:
            raise ConfigError("a verifier scores answers to prompts, and there are none; give --data FILE")
        if self.data is not None and self.data.kind == "prompts" and not (self.behaviour or self.verifier):
            raise ConfigError(
                f"{self.data.source} gives prompts only, so nothing says which answers are good; give --verifier "
                "package.module.function, which scores them, or --behaviour TEXT, by which an AI judge compares them"
            )

    @property
    def by_judge(self) -> bool:
        """True: an AI judge compares answers by the behaviour."""
        return (
            self.behaviour is not None
            and self.verifier is None
            and (self.data is None or self.data.kind in ("prompts", "demonstrations"))
        )


def write_starter(answers: Answers, recipe: Path, *, overwrite: bool = False) -> list[Path]:
    """Write the recipe, and the constitution and the prompts it needs beside it.

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
        files[_beside(recipe, "constitution.yaml")] = _constitution(answers.behaviour or "")
    if answers.data is None:
        rows = [json.dumps({"prompt": text}, ensure_ascii=False) for text in starter_prompts()]
        files[_beside(recipe, "prompts.jsonl")] = "\n".join(rows) + "\n"
    existing = [str(path) for path in files if path.exists()]
    if existing and not overwrite:
        raise ConfigError(f"{' and '.join(existing)} exists already; give another recipe file, or --force to overwrite")
    files[recipe] = _fitting(answers, recipe)
    for path, text in files.items():
        write_atomic(path, text)
    return list(files)


def _beside(recipe: Path, ending: str) -> Path:
    return recipe.with_name(f"{recipe.stem}-{ending}")


def _fitting(answers: Answers, recipe: Path) -> str:
    """The recipe's text with the largest settings that fit into the machine's memory."""
    lengths = _lengths(answers)
    tries = [(64, False), (32, False), (16, True), (8, True)]
    if answers.machine.kind == "gpu":
        tries = [(256, False), (128, False), *tries]
    for slots, checkpointing in tries:
        text = _Writer(answers, recipe, lengths, slots, checkpointing).text()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / recipe.name
            path.write_text(text, encoding="utf-8")
            config = load_recipe(path)
            if answers.by_judge:  # a behaviour such as "TODO" is refused here
                rules = Path(folder) / "constitution.yaml"
                rules.write_text(_constitution(answers.behaviour or ""), encoding="utf-8")
                load_constitution(str(rules))
        try:
            fit_memory(config)
            return text
        except ConfigError:
            if slots == tries[-1][0]:
                raise
    raise AssertionError("the last try returns or raises")


# Lengths ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Lengths:
    """Token counts that decide ``model.context`` and the length of answers."""

    context: int
    """Of a prompt with its answer."""
    answer: int
    """``max_new_tokens``."""
    measured: int
    """Records counted."""
    too_long: int
    """Of these, longer than ``context``."""
    refused: int
    """Of these, refused by the chat template."""
    layers: int
    """Layers of the model."""


def _lengths(answers: Answers) -> Lengths:
    model = ModelConfig(name=answers.model, context=10**9, chat_template=answers.chat_template)
    chat = load_chat(model)
    name = resolve(answers.model)
    shape: Any = AutoConfig.from_pretrained(adapter_base(name) or name).get_text_config()
    cap = 2048 if answers.machine.kind == "cpu" else 8192
    built_for = min(n for n in (longest_context(answers.model), window_of(shape), cap) if n)
    longest_answer = 128 if answers.machine.kind == "cpu" else 512
    totals: list[int] = []
    prompts: list[int] = []
    spoken: list[int] = []
    refused = 0
    for prompt, texts in _conversations(answers.data):
        try:
            head = len(chat.prompt(prompt))
            bodies = [len(chat.answer_tokens(prompt, text)) for text in texts]
        except DataError:
            refused += 1
            continue
        prompts.append(head)
        spoken += bodies
        totals.append(head + max(bodies, default=0))
    if answers.data is not None and not totals:
        raise DataError(
            f"{answers.data.source}: the chat template of {answers.model} refuses all {refused} conversations"
        )
    answer = min(max(32, _up(_high(spoken), 16)), longest_answer) if spoken else min(96, longest_answer)
    if answers.verifier is not None:
        answer = longest_answer  # room to think before the result
    need = max(_high(totals) if totals else 0, _high(prompts) + answer if prompts else 64 + answer)
    if answers.by_judge:
        need = max(need, (_high(prompts) if prompts else 64) + 2 * answer + JUDGE)
    context = next((n for n in CONTEXTS if n >= need), CONTEXTS[-1])
    context = min(context, built_for)
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
    """Prompts with their answers, a sample spread over the file."""
    if data is None:
        return [(Prompt.from_text(text).messages, []) for text in starter_prompts()]
    kind: type[Any] = RECORDS[data.kind]
    records = load(data.source, kind=kind, format=data.format, limit=HUB_ROWS if data.limited else None).records
    step = max(1, len(records) // MEASURED)
    pairs: list[tuple[Sequence[Message], list[str]]] = []
    for record in records[::step][:MEASURED]:
        match record:
            case Preference():
                pairs.append((record.prompt.messages, [c.text for c in record.completions]))
            case Rating():
                pairs.append((record.prompt.messages, [record.completion.text]))
            case Demonstration() if record.messages[-1].role == "assistant" and len(record.messages) > 1:
                pairs.append((record.messages[:-1], [record.messages[-1].content]))
            case Prompt():
                pairs.append((record.messages, []))
    return pairs


def _high(values: Sequence[int]) -> int:
    """95 % of the values are not larger (nearest rank)."""
    ordered = sorted(values)
    return ordered[math.ceil(0.95 * len(ordered)) - 1]


def _up(value: int, step: int) -> int:
    return -(-value // step) * step


# Text -------------------------------------------------------------------------------------


class _Writer:
    """Puts the recipe's sections together."""

    def __init__(self, answers: Answers, recipe: Path, lengths: Lengths, slots: int, checkpointing: bool) -> None:
        self.answers, self.recipe, self.lengths = answers, recipe, lengths
        self.slots, self.checkpointing = slots, checkpointing
        self.gpu = answers.machine.kind == "gpu"
        data = answers.data
        self.kind: Kind = "prompts" if data is None else data.kind
        self.rows = len(starter_prompts()) if data is None else sum(data.report.records.values())
        self.limit = (
            CPU_ROWS if not self.gpu and (self.rows > CPU_ROWS or (data is not None and data.limited)) else None
        )
        used = min(self.rows, self.limit or self.rows)
        self.batch = max(2, min(16, used // 8))
        self.learns_answers = self.kind in ("preferences", "demonstrations")

    def text(self) -> str:
        """The whole recipe."""
        parts = [self.head(), self.model(), self.data()]
        if self.answers.by_judge:
            parts.append(
                "# The rule of the AI judge, in the file beside this one. Edit it before the run.\n"
                f"constitution: {_quoted(_beside(self.recipe, 'constitution.yaml').name)}"
            )
        if self.learns_answers:
            parts.append(self.sft())
        if self.answers.by_judge:
            parts += [self.sample(), self.label()]
        if self.answers.by_judge or (self.kind == "preferences" and self.answers.verifier is None):
            parts.append(self.reward())
        parts += [*self.align(), self.evaluate()]
        return "\n\n".join(parts) + "\n"

    def head(self) -> str:
        source = "no data file" if self.answers.data is None else "; ".join(self.answers.data.lines)
        lines = _wrapped(
            f"Written by `trimtab init` for {self.answers.machine}. Data: {source}. Every setting is explained in the "
            "reference of the configuration; what is left out has a default."
        )
        lines += [
            f"#   trimtab plan {self.recipe.name}    what a run would do, with estimates of time and memory",
            f"#   trimtab run {self.recipe.name}     the run; stop it at any time, the same command continues",
        ]
        lines.append(f"name: {self.answers.name}  # results go to runs/{self.answers.name}/")
        about = self.answers.behaviour
        if about and len(about) <= 200:
            lines.append(f"about: {_quoted(about)}  # shown on the report")
        lines.append("seed: 0")
        memory = self.answers.machine.memory_gb
        if memory is not None:
            lines.append(f"memory_gb: {memory:g}  # the run may take this much; sizes the micro-batches")
        return "\n".join(lines)

    def model(self) -> str:
        lengths = self.lengths
        note = "tokens of a prompt with its answer"
        if self.answers.by_judge:
            note += ", and of a question to the judge about two answers"
        if self.answers.data is not None:
            note += f"; {lengths.too_long} of {lengths.measured} conversations looked at are longer and are left out"
        if lengths.refused:
            note += f", and the chat template refuses {lengths.refused}"
        lines = [
            "model:",
            f"  name: {_quoted(self._model())}",
            f"  # {note}",
            f"  context: {lengths.context}",
        ]
        if self.answers.chat_template is not None:
            lines.append(f"  chat_template: {_quoted(self.answers.chat_template)}")
        if self.checkpointing:
            lines.append("  gradient_checkpointing: true  # less memory for about a third more time")
        return "\n".join(lines)

    def data(self) -> str:
        data = self.answers.data
        lines = ["data:"]
        if data is None:
            lines += [
                '  # Questions to start with. Replace them by what your users ask: one {"prompt": ...} a line.',
                f"  prompts: {_quoted(_beside(self.recipe, 'prompts.jsonl').name)}",
            ]
        else:
            source = _quoted(self._path(data.source))
            lines.append(f"  {self.kind}: {source}")
            if self.kind == "demonstrations":
                lines.append(f"  prompts: {source}  # the questions of the same file")
            if data.format != "auto":
                lines.append(f"  format: {data.format}")
        if self.limit is not None:
            lines.append(f"  limit: {self.limit}  # rows to read; a CPU is slow. Remove it to use all of them")
        lines.append("  heldout_share: 0.1  # prompts kept away from training, for the evaluation")
        return "\n".join(lines)

    def _model(self) -> str:
        """The model's name; a folder is looked up in the current one, so a recipe elsewhere needs its full path."""
        elsewhere = self.recipe.parent.resolve() != Path.cwd()
        folder = Path(self.answers.model)
        return str(folder.resolve()) if elsewhere and folder.is_dir() else self.answers.model

    def _path(self, source: str) -> str:
        """A path that the recipe's folder or the current one resolves; a hub id stays as it is."""
        path = Path(source)
        if not os.path.exists(source):
            return source
        folder = self.recipe.parent.resolve()
        return os.path.relpath(path.resolve(), folder) if path.resolve().is_relative_to(folder) else str(path.resolve())

    def adapter(self) -> str:
        top = max(1, self.lengths.layers // 2)
        layers = "" if self.gpu else f", top_layers: {top}"
        return f"{{kind: lora, rank: 16, alpha: 32{layers}}}"

    def sampler(self, temperature: float = 0.7) -> str:
        return f"{{temperature: {temperature}, max_new_tokens: {self.lengths.answer}, slots: {self.slots}}}"

    def sft(self) -> str:
        what = "the better answers" if self.kind == "preferences" else "the demonstrations"
        top = "" if self.gpu else " on the upper half of the layers, which saves time on a CPU"
        return "\n".join(
            [
                f"# Supervised fine-tuning on {what}, with adapters{top}.",
                "sft:",
                f"  adapter: {self.adapter()}",
                "  epochs: 1",
                f"  batch: {self.batch}",
            ]
        )

    def sample(self) -> str:
        return "\n".join(
            [
                "# The model answers each prompt twice; the answers are compared below.",
                "sample:",
                f"  prompts: {min(self.rows, 1000 if self.gpu else 200)}",
                "  answers: 2",
                f"  sampler: {self.sampler(1.0)}",
            ]
        )

    def label(self) -> str:
        return "\n".join(
            [
                *_wrapped(
                    "Which answer is better, by an AI judge under the constitution above. The judge here is the model "
                    "itself; a model of less than a few billion parameters judges badly. Better: a large model behind "
                    "an OpenAI-compatible endpoint (uncomment), or people (source: human, then `trimtab annotate`)."
                ),
                "label:",
                "  source: ai",
                "  judge: {mode: direct, principles: 2}",
                "  # judges:",
                '  #   large: {kind: endpoint, url: "https://HOST/v1", model: NAME}',
            ]
        )

    def reward(self) -> str:
        return "\n".join(
            [
                "# A reward model of the same preferences. DPO does not need it; the evaluation compares models by it.",
                "reward:",
                f"  adapter: {self.adapter()}",
                "  epochs: 1",
                f"  batch: {self.batch}",
            ]
        )

    def align(self) -> list[str]:
        if self.answers.verifier is not None:
            return [self.verified()]
        if self.kind == "ratings":
            return [
                "# KTO learns from single answers that were liked or not.\nalign:\n  method: kto\n"
                f"  adapter: {self.adapter()}\n  beta: 0.1  # larger: stay closer to the start\n  epochs: 1\n"
                f"  batch: {self.batch}"
            ]
        if self.kind == "preferences" or self.answers.by_judge:
            return [
                "# DPO learns from the preferences directly.\nalign:\n  method: dpo\n"
                f"  adapter: {self.adapter()}\n  beta: 0.1  # larger: stay closer to the start\n  epochs: 1\n"
                f"  batch: {self.batch}"
            ]
        return []

    def verified(self) -> str:
        steps, prompts, group = (200, 32, 8) if self.gpu else (20, 8, 4)
        return "\n".join(
            [
                "# The verifier scores each answer; GRPO makes the better answers of a group likelier.",
                "rewards:",
                f"  verifier: {{kind: function, path: {self.answers.verifier}}}",
                "",
                "align:",
                "  method: grpo",
                f"  adapter: {self.adapter()}",
                f"  steps: {steps}",
                f"  prompts: {prompts}  # a step",
                f"  group: {group}  # answers a prompt",
                f"  sampler: {self.sampler(1.0)}",
                "  missing_eos: {value: 0.0}  # reward of an answer that was cut",
            ]
        )

    def evaluate(self) -> str:
        temperature = 1.0 if self.answers.verifier else 0.7
        return "\n".join(
            [
                *_wrapped(
                    "Answers of all models to held-out prompts, side by side on the report. To let a person judge them "
                    f"blind: trimtab eval {self.recipe.name} --blind reading.csv"
                ),
                "evaluate:",
                f"  prompts: {200 if self.gpu else 48}  # at most",
                f"  sampler: {self.sampler(temperature)}",
            ]
        )


def _wrapped(text: str, width: int = 112) -> list[str]:
    """A comment of several lines."""
    lines, line = [], "#"
    for word in text.split():
        if len(line) + len(word) >= width:
            lines.append(line)
            line = "#"
        line += f" {word}"
    return [*lines, line]


def _quoted(text: str) -> str:
    """A YAML string: bare where that is safe, otherwise in quotes."""
    plain = re.fullmatch(r"[A-Za-z0-9_./][A-Za-z0-9_./@-]*", text) is not None and yaml.safe_load(text) == text
    return text if plain else json.dumps(text, ensure_ascii=False)


def run_name(text: str) -> str:
    """A name for a run made of a file's name or the first words of a behaviour."""
    words = re.findall(r"[A-Za-z0-9]+", text)
    return "-".join(words[:4]).lower()[:40] or "run"


def _constitution(behaviour: str) -> str:
    """A constitution of two principles: the behaviour, and that requests are still fulfilled."""
    wish = " ".join(behaviour.split())
    values = {
        "name": "starter",
        "principles": [
            {
                "id": "behaviour",
                "text": f"The answer does what was asked of the assistant: {wish}",
                "critique": f"Say where your answer above does not do this: {wish}",
                "revision": f"Rewrite your answer so that it does this: {wish}",
                "twin": "An answer may do this in its own words.",
                "weight": 2.0,
                "tags": ["behaviour"],
            },
            {
                "id": "gives-what-was-asked",
                "text": "The answer gives the person what they asked for, completely enough to be used.",
                "critique": "Say where your answer above misses or only half gives what was asked for.",
                "revision": "Rewrite your answer so that it gives what was asked for.",
                "twin": "A short answer to a short question is complete.",
                "weight": 1.0,
                "tags": ["helpful"],
            },
        ],
    }
    head = (
        "# Rules for the AI judge, written by `trimtab init` from a behaviour in words. Say precisely what a better\n"
        "# answer does; add principles of your own. `trimtab constitution check FILE` checks the file.\n"
    )
    return head + yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=110)


_TASKS: tuple[Callable[[str], str], ...] = (
    lambda topic: f"Explain {topic} to a beginner.",
    lambda topic: f"Give me three tips about {topic}.",
    lambda topic: f"What do people often get wrong about {topic}?",
    lambda topic: f"Write a short note to a friend about {topic}.",
    lambda topic: f"I know nothing about {topic}. Where do I start?",
    lambda topic: f"What is good and what is bad about {topic}?",
    lambda topic: f"Summarise what matters about {topic} in two sentences.",
    lambda topic: f"Can you help me with {topic}?",
)
_TOPICS = (
    "cooking for many guests",
    "learning a language",
    "saving money",
    "growing tomatoes",
    "sleeping well",
    "travelling by train",
    "a job interview",
    "looking after a cat",
    "running a first race",
    "keeping a diary",
    "buying a used bicycle",
    "speaking in public",
    "making friends in a new town",
    "caring for houseplants",
    "repairing clothes",
    "planning a week",
)


def starter_prompts() -> list[str]:
    """Everyday questions, for a behaviour without data."""
    return [task(topic) for topic in _TOPICS for task in _TASKS]
