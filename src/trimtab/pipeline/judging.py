"""Wires AI judges: the local model by log-probabilities, or an endpoint; one or several as an ensemble."""

import os
import time
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field

from trimtab.config import Config, parse_config
from trimtab.constitution import Constitution
from trimtab.errors import ConfigError, DataError
from trimtab.feedback import (
    JudgeConfig,
    Judged,
    Question,
    Reply,
    Verdict,
    against_people,
    ensemble,
    judge,
    people_lines,
    report_lines,
    run_facts,
)
from trimtab.feedback.endpoint import Endpoint, EndpointConfig
from trimtab.feedback.principles import changed_labels
from trimtab.files import write_atomic, write_json
from trimtab.models import Backbone, ModelConfig, model_identity
from trimtab.pipeline.ui import Ui
from trimtab.records import Comparison, Judgement, Prompt, Record, content_id, read_records, to_plain, write_records
from trimtab.records.importers import read
from trimtab.rollout import LocalSampler, SamplerConfig, option_logprobs
from trimtab.storage import Journal, read_json

CHUNK = 32
"""Questions whose replies are kept together; a killed local judge asks at most these again."""


class LocalJudge(Config):
    """A model in this process, by the log-probabilities of the options."""

    kind: Literal["local"] = "local"
    """What it is."""
    model: ModelConfig | None = None
    """Which; None: the recipe's pretrained model."""
    reason_tokens: int = Field(default=120, ge=1)
    """Longest chain of thought, in tokens."""


class EndpointJudge(EndpointConfig):
    """A model behind an OpenAI-compatible endpoint."""

    kind: Literal["endpoint"] = "endpoint"
    """What it is."""


JudgeSource = Annotated[LocalJudge | EndpointJudge, Field(discriminator="kind")]
"""One judge."""


class Judges(Config):
    """A file of judges: ``judges: {name: {kind: local}, other: {kind: endpoint, url: …, model: …}}``."""

    judges: dict[str, JudgeSource] = Field(min_length=1)
    """By name; the name is the annotator on their judgements. Several are an ensemble."""


class LocalAsk:
    """Asks the local model; an :data:`~trimtab.feedback.judge.Ask`.

    Args:
        backbone: the model, without adapter.
        name: what it is called in replies.
        reason_tokens: longest chain of thought.
    """

    def __init__(self, backbone: Backbone, name: str, *, reason_tokens: int = 120) -> None:
        self.backbone, self.name, self.reason_tokens = backbone, name, reason_tokens

    def __call__(self, questions: Sequence[Question], keep: Callable[[Mapping[str, Reply]], None]) -> None:
        """Ask all questions, in portions of :data:`CHUNK`."""
        for start in range(0, len(questions), CHUNK):
            keep(self._portion(questions[start : start + CHUNK]))

    def _portion(self, questions: Sequence[Question]) -> dict[str, Reply]:
        started = time.monotonic()
        chat = self.backbone.chat
        replies: dict[str, Reply] = {}
        fitting: list[tuple[Question, list[int]]] = []
        room = max((self.reason_tokens + 8 if q.reason else 8 for q in questions), default=0)
        for question in questions:
            try:
                tokens = chat.prompt(question.messages)
            except DataError:
                tokens = []
            if tokens and len(tokens) + room <= chat.context:
                fitting.append((question, tokens))
            else:
                replies[question.key] = Reply(failure="too long", model=self.name)
        thoughts = self._think([q for q, _ in fitting if q.reason])
        prompts, options = [], []
        for question, tokens in fitting:
            lead = f"{thoughts[question.key]}\nAnswer: " if question.reason else ""
            prompts.append(tokens + self._encode(lead.rstrip(" ")) if lead else tokens)
            options.append([self._encode(f"{' ' if lead else ''}{option}") for option in question.options])
        found = option_logprobs(self.backbone, prompts, options)
        seconds = round((time.monotonic() - started) / max(1, len(questions)), 4)
        for (question, tokens), logprobs in zip(fitting, found, strict=True):
            said = thoughts.get(question.key, "")
            replies[question.key] = Reply(
                probabilities=_normalised(logprobs),
                text=said,
                characters=len(said),
                model=self.name,
                tokens_in=len(tokens),
                seconds=seconds,
            )
        return replies

    def _think(self, questions: Sequence[Question]) -> dict[str, str]:
        """Chains of thought, greedily, without the answer they may end in."""
        if not questions:
            return {}
        sampler = LocalSampler(self.backbone, SamplerConfig(temperature=0.0, max_new_tokens=self.reason_tokens))
        prompts = [Prompt(id=q.key, messages=q.messages) for q in questions]
        rollouts = sampler.generate(prompts, adapter=None, seed=0)
        return {q.key: r.text.split("\nAnswer:")[0] for q, r in zip(questions, rollouts, strict=True)}

    def _encode(self, text: str) -> list[int]:
        return self.backbone.chat.tokenizer.encode(text, add_special_tokens=False)


def _normalised(logprobs: Sequence[float]) -> tuple[float, ...]:
    import torch

    return tuple(torch.tensor(logprobs, dtype=torch.float64).softmax(0).tolist())


def open_judge(
    source: LocalJudge | EndpointJudge, journal: MutableMapping[str, dict[str, Any]], default: ModelConfig
) -> tuple[Any, Any]:
    """The :data:`~trimtab.feedback.judge.Ask` of a judge, and its identity for question keys."""
    if isinstance(source, EndpointJudge):
        return Endpoint(source, journal), source.identity
    config = source.model or default
    identity = {"local": model_identity(config), "reason_tokens": source.reason_tokens}
    return _Lazy(config, source.reason_tokens), identity


class _Lazy:
    """Loads the model when the first question comes: where all are answered there is none."""

    def __init__(self, config: ModelConfig, reason_tokens: int) -> None:
        self.config, self.reason_tokens = config, reason_tokens

    def __call__(self, questions: Sequence[Question], keep: Callable[[Mapping[str, Reply]], None]) -> None:
        backbone = Backbone.load(self.config)
        LocalAsk(backbone, self.config.name, reason_tokens=self.reason_tokens)(questions, keep)


def judge_items(
    items: Sequence[Comparison],
    constitution: Constitution,
    judges: Mapping[str, LocalJudge | EndpointJudge],
    config: JudgeConfig,
    folder: Path,
    *,
    default: ModelConfig,
    ui: Ui,
    people: Sequence[Judgement] = (),
    seed: int = 0,
    replies: Path | None = None,
) -> dict[str, Judged]:
    """Let every judge judge all items; where an edited constitution was judged before, say how many labels changed.

    Args:
        items: what to judge.
        constitution: by what.
        judges: by name.
        config: how they are asked.
        folder: for verdicts, judgements and the report.
        default: the model of a local judge that names none.
        ui: console.
        people: labels to compare with, if there are any.
        seed: of intervals.
        replies: ``NAME/replies.jsonl`` here is each judge's journal, and another call asks only what is missing there;
            None: in ``folder``.
    """
    found: dict[str, Judged] = {}
    report: dict[str, Any] = {
        "constitution": {"name": constitution.name, "version": constitution.version},
        "settings": config.model_dump(mode="json"),
        "judges": {},
    }
    earlier = read_json(folder / "judge.json")["constitution"] if (folder / "judge.json").exists() else None
    edited = earlier is not None and earlier["version"] != constitution.version
    write_atomic(folder / "constitution.yaml", as_yaml(constitution))
    write_records(folder / "comparisons.jsonl", items)
    for name, source in judges.items():
        path = (replies or folder) / name / "replies.jsonl"
        with Journal(path) as journal, ui.bar(f"judge {name}") as bar:
            ask, identity = open_judge(source, journal, default)
            found[name] = judge(
                items, constitution, ask, config, name=name, identity=identity, journal=journal,
                progress=lambda done, total, bar=bar: bar.update(done, total),
            )  # fmt: skip
        verdicts = folder / name / "verdicts.jsonl"
        before = read_records(verdicts, Verdict) if edited and verdicts.exists() else None
        changed = None if before is None else changed_labels(before, found[name].verdicts)
        write_records(verdicts, found[name].verdicts)
        facts = run_facts(items, found[name])
        compared = against_people(items, found[name].judgements, people, seed=seed) if people else None
        report["judges"][name] = {"identity": identity, "run": facts, "people": compared, "edit": changed}
        report["judges"][name]["replies"] = os.path.relpath(path, folder)
        ui.say(f"  judge {name}:")
        for line in report_lines(facts, compared):
            ui.say(f"    {line}")
        if changed is not None:
            told = ", ".join(f"{kind} {count}" for kind, count in changed.items())
            ui.say(f"    labels since the constitution was edited: {told}")
    everything = [j for judged in found.values() for j in judged.judgements]
    write_records(folder / "judgements.jsonl", everything)
    if len(judges) > 1:
        compared = against_people(items, ensemble(items, everything), people, seed=seed) if people else None
        report["ensemble"] = {"judges": list(judges), "people": compared}
        ui.say("  all judges together:")
        for line in people_lines(compared):
            ui.say(f"    {line}")
    write_json(folder / "judge.json", plain(report))
    return found


def plain(value: Any) -> Any:
    """Nested records as JSON values."""
    if isinstance(value, Record):
        return to_plain(value)
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, list | tuple) else value


def as_yaml(constitution: Constitution) -> str:
    """A constitution as a file that reads back as itself."""
    return yaml.safe_dump(constitution.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110)


def read_judges(path: Path) -> dict[str, LocalJudge | EndpointJudge]:
    """A file of judges.

    Raises:
        ConfigError: unreadable, unknown keys, no judge in it.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected judges: {{name: {{kind: local}}}}")
    return dict(parse_config(Judges, values, where=str(path)).judges)


def read_items(source: str, *, format: str, limit: int | None) -> tuple[list[Comparison], list[Judgement], list[str]]:
    """Items from any data file with two or more answers to a prompt, and the labels it holds.

    Answers of a preference are put into an order that does not depend on which is better, so that place tells
    nothing. Rows with one answer or none are counted in what is said.

    Returns:
        items, labels (one per preference, source as in the file), and lines to say.
    """
    loaded = read(source, kind=Record, format=format, limit=limit)
    items: dict[str, Comparison] = {}
    labels: list[Judgement] = []
    other = again = 0
    for record in loaded.records:
        if isinstance(record, Judgement):
            labels.append(record)
            continue
        answers = list(getattr(record, "completions", ()))
        if len(answers) < 2:
            other += 1
            continue
        prompt: Prompt = getattr(record, "prompt")  # noqa: B009
        order = list(range(len(answers)))
        if not isinstance(record, Comparison):
            order.sort(key=lambda i: content_id("order", answers[i].text))
        item = record if isinstance(record, Comparison) else Comparison.of(prompt, [answers[i] for i in order])
        again += item.id in items
        items.setdefault(item.id, item)
        ranks = getattr(record, "ranks", None)
        if ranks is not None:
            ranked = tuple(ranks[i] for i in order)
            labels.append(
                Judgement(
                    id=content_id("label", source, item.id, len(labels)),
                    item=item.id,
                    annotator=f"labels-{len(labels)}",
                    source=getattr(record, "source", "imported"),
                    shown_order=tuple(range(len(answers))),
                    ranks=ranked,
                )
            )
    said = []
    if loaded.refused:
        said.append(
            f"{source}: {len(loaded.refused)} of {loaded.rows} rows refused (first: {loaded.refused[0].reason})"
        )
    if other:
        said.append(f"{source}: {other} records have fewer than two answers; left out")
    if again:
        said.append(f"{source}: {again} items stand there again; judged once")
    if not items:
        raise DataError(f"{source}: nothing to judge: no row has a prompt with two answers")
    return list(items.values()), labels, said
