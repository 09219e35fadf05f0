"""The text of a starter recipe and of the files beside it."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import yaml

from trimtab.pipeline.starter_facts import Answers, Kind, Lengths

CPU_ROWS = 2000
"""``data.limit`` of a recipe for a CPU."""


def beside(recipe: Path, ending: str) -> Path:
    """The path of a file that a recipe needs, beside it: ``recipe-ENDING``."""
    return recipe.with_name(f"{recipe.stem}-{ending}")


def recipe_text(answers: Answers, recipe: Path, lengths: Lengths, *, slots: int, checkpointing: bool) -> str:
    """The whole recipe."""
    return _Writer(answers, recipe, lengths, slots, checkpointing).text()


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
                f"constitution: {_quoted(beside(self.recipe, 'constitution.yaml').name)}"
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
                f"  prompts: {_quoted(beside(self.recipe, 'prompts.jsonl').name)}",
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


def starter_constitution(behaviour: str) -> str:
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
