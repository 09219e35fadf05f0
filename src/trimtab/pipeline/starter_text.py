"""The text of a starter recipe and of the files next to it."""

import json
import os
import re
from pathlib import Path

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from trimtab.pipeline.starter_facts import Answers, Kind, Lengths

CPU_ROWS = 2000
"""``data.limit`` of a recipe for a CPU."""


def beside(recipe: Path, ending: str) -> Path:
    """The path of a file next to a recipe that needs it: ``recipe-ENDING``."""
    return recipe.with_name(f"{recipe.stem}-{ending}")


def recipe_text(answers: Answers, recipe: Path, lengths: Lengths, *, slots: int, checkpointing: bool) -> str:
    """The whole recipe: the template ``starter.jinja`` with its values."""
    data, gpu = answers.data, answers.machine.kind == "gpu"
    kind: Kind = "prompts" if data is None else data.kind
    rows = len(starter_prompts()) if data is None else sum(data.report.records.values())
    limit = CPU_ROWS if not gpu and (rows > CPU_ROWS or (data is not None and data.limited)) else None
    layers = "" if gpu else f", top_layers: {max(1, lengths.layers // 2)}"

    def sampler(temperature: float) -> str:
        return f"{{temperature: {temperature}, max_new_tokens: {lengths.answer}, slots: {slots}}}"

    return _template().render(
        answers=answers,
        recipe=recipe.name,
        lengths=lengths,
        checkpointing=checkpointing,
        gpu=gpu,
        kind=kind,
        rows=rows,
        limit=limit,
        batch=max(2, min(16, min(rows, limit or rows) // 8)),
        header=f"Written by `trimtab init` for {answers.machine}. Data: "
        f"{'no data file' if data is None else '; '.join(data.lines)}. Every setting is explained in the reference of "
        "the configuration; what is left out has a default.",
        about=answers.behaviour if answers.behaviour and len(answers.behaviour) <= 200 else None,
        model=_model(answers.model, recipe),
        context_note=_context_note(answers, lengths),
        source=None if data is None else _path(data.source, recipe),
        prompts_file=beside(recipe, "prompts.jsonl").name,
        constitution_file=beside(recipe, "constitution.yaml").name,
        adapter=f"{{kind: lora, rank: 16, alpha: 32{layers}}}",
        sampler=sampler,
        readers="Answers of all models to held-out prompts, side by side on the report. To let a person judge them "
        f"blind: trimtab eval {recipe.name} --blind reading.csv",
    )


def _template() -> Template:
    """The recipe's template, with the filters it uses."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"comment": lambda text: "\n".join(_wrapped(text)), "quoted": _quoted}
    return environment.get_template("starter.jinja")


def _context_note(answers: Answers, lengths: Lengths) -> str:
    """A note on what ``model.context`` counts."""
    note = "tokens of a prompt with its answer"
    if answers.by_judge:
        note += ", and of a question to the judge about two answers"
    if answers.data is not None:
        note += f"; {lengths.too_long} of {lengths.measured} conversations looked at are longer and are left out"
    if lengths.refused:
        note += f", and the chat template refuses {lengths.refused}"
    return note


def _model(name: str, recipe: Path) -> str:
    """The model's name; a recipe in another folder needs a model folder's full path."""
    in_other_folder = recipe.parent.resolve() != Path.cwd()
    return str(Path(name).resolve()) if in_other_folder and Path(name).is_dir() else name


def _path(source: str, recipe: Path) -> str:
    """A path that can be found from the recipe's folder or the current one; a hub id is unchanged."""
    if not os.path.exists(source):
        return source
    path, folder = Path(source).resolve(), recipe.parent.resolve()
    return os.path.relpath(path, folder) if path.is_relative_to(folder) else str(path)


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
    """A YAML string: unquoted if that is safe, otherwise in quotes."""
    is_plain = re.fullmatch(r"[A-Za-z0-9_./][A-Za-z0-9_./@-]*", text) is not None and yaml.safe_load(text) == text
    return text if is_plain else json.dumps(text, ensure_ascii=False)


def run_name(text: str) -> str:
    """A name for a run, made from a file's name or the first words of a behaviour."""
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


_TASKS = (
    "Explain {} to a beginner.",
    "Give me three tips about {}.",
    "What do people often get wrong about {}?",
    "Write a short note to a friend about {}.",
    "I know nothing about {}. Where do I start?",
    "What is good and what is bad about {}?",
    "Summarise what matters about {} in two sentences.",
    "Can you help me with {}?",
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
    return [task.format(topic) for topic in _TOPICS for task in _TASKS]
