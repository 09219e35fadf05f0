"""Sets up AI judges: a local model that judges by log-probabilities, or an endpoint; one judge or an ensemble.

Only a local judge imports torch.
"""

import os
import time
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import Field

from trimtab.config import Config, parse_config, read_yaml
from trimtab.constitution import Constitution
from trimtab.errors import ConfigError, DataError, TooLongError
from trimtab.feedback import (
    AgainstPeople,
    Ask,
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
from trimtab.files import write_atomic
from trimtab.models import ModelConfig
from trimtab.pipeline.judge_result import (
    FILE,
    ConstitutionVersion,
    JudgeEntry,
    JudgeResult,
    Together,
    read_judge_result,
    write_judge_result,
)
from trimtab.pipeline.ui import Ui
from trimtab.records import Comparison, Judgement, Prompt, Record, content_id, read_records, to_plain, write_records
from trimtab.records.importers import read
from trimtab.storage import Journal

if TYPE_CHECKING:
    from trimtab.models import Backbone

QUESTIONS_TOGETHER = 2048
"""Questions tokenised and batched together. Replies are stored after each forward pass."""

REASONED_TOGETHER = 32
"""Questions answered together with reasoning; a killed judge repeats at most these."""


class LocalJudge(Config):
    """A model in this process, which judges by the log-probabilities of the options."""

    kind: Literal["local"] = "local"
    """Kind of judge."""
    model: ModelConfig | None = None
    """The judge's model; None: the recipe's pretrained model."""
    reason_tokens: int = Field(default=120, ge=1)
    """Longest chain of thought, in tokens."""


class EndpointJudge(EndpointConfig):
    """A model behind an OpenAI-compatible endpoint."""

    kind: Literal["endpoint"] = "endpoint"
    """Kind of judge."""


JudgeSource = Annotated[LocalJudge | EndpointJudge, Field(discriminator="kind")]
"""One judge."""


JudgeName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")]
"""Name of the judge's folder, and of the annotator on its judgements."""


class Judges(Config):
    """A file of judges: ``judges: {name: {kind: local}, other: {kind: endpoint, url: …, model: …}}``."""

    judges: dict[JudgeName, JudgeSource] = Field(min_length=1)
    """Judges by name. Several form an ensemble."""


class LocalAsk:
    """Asks a local model; an :data:`~trimtab.feedback.judge.Ask`.

    Args:
        backbone: the model, without adapter.
        name: the model's name in replies.
        reason_tokens: longest chain of thought.
    """

    def __init__(self, backbone: "Backbone", name: str, *, reason_tokens: int = 120) -> None:
        from trimtab.rollout import LocalSampler, SamplerConfig

        self.backbone, self.name, self.reason_tokens = backbone, name, reason_tokens
        self.thinker = LocalSampler(backbone, SamplerConfig(temperature=0.0, max_new_tokens=reason_tokens))

    def __call__(self, questions: Sequence[Question], keep: Callable[[Mapping[str, Reply]], None]) -> None:
        """Ask all questions; replies come in the order that costs least.

        Raises:
            DataError: the model's chat template refuses the conversation, with and without a system message.
        """
        size = REASONED_TOGETHER if any(q.reason for q in questions) else QUESTIONS_TOGETHER
        for start in range(0, len(questions), size):
            self._ask_together(questions[start : start + size], keep)

    def _ask_together(self, questions: Sequence[Question], keep: Callable[[Mapping[str, Reply]], None]) -> None:
        from trimtab.rollout import option_logprobs

        fitting: list[tuple[Question, list[int]]] = []
        for question in questions:
            answer_tokens = self.reason_tokens + 8 if question.reason else 8
            try:
                tokens = self._tokens(question)
            except TooLongError:
                tokens = []
            if tokens and len(tokens) + answer_tokens <= self.backbone.chat.context:
                fitting.append((question, tokens))
            else:
                keep({question.key: Reply(failure="too long", model=self.name)})
        started = time.monotonic()
        thoughts = self._think([q for q, _ in fitting if q.reason])
        prompts, options = [], []
        for question, tokens in fitting:
            lead = f"{thoughts[question.key]}\nAnswer: " if question.reason else ""
            prompts.append(tokens + self._encode(lead.rstrip(" ")) if lead else tokens)
            options.append([self._encode(f"{' ' if lead else ''}{option}") for option in question.options])

        def keep_replies(logprobs: Mapping[int, Sequence[float]]) -> None:
            nonlocal started
            seconds, started = time.monotonic() - started, time.monotonic()
            replies = {}
            for index, numbers in logprobs.items():
                question, tokens = fitting[index]
                thought = thoughts.get(question.key, "")
                replies[question.key] = Reply(
                    probabilities=_normalised(numbers),
                    text=thought,
                    characters=len(thought),
                    model=self.name,
                    tokens_in=len(tokens),
                    seconds=round(seconds / len(logprobs), 4),
                )
            keep(replies)

        option_logprobs(self.backbone, prompts, options, report=keep_replies)

    def _tokens(self, question: Question) -> list[int]:
        """The question as tokens; special tokens come from the template only."""
        chat = self.backbone.chat
        try:
            return chat.prompt(question.messages)
        except TooLongError:
            raise
        except DataError:  # some templates have no system role
            if question.messages[0].role != "system" or len(question.messages) < 2:
                raise
            system, first, *rest = question.messages
            return chat.prompt([first.model_copy(update={"content": f"{system.content}\n\n{first.content}"}), *rest])

    def _think(self, questions: Sequence[Question]) -> dict[str, str]:
        """Chains of thought by greedy decoding, without the answer at their end."""
        if not questions:
            return {}
        prompts = [Prompt(id=q.key, messages=q.messages) for q in questions]
        rollouts = self.thinker.generate(prompts, adapter=None, seed=0)
        return {q.key: r.text.split("\nAnswer:")[0] for q, r in zip(questions, rollouts, strict=True)}

    def _encode(self, text: str) -> list[int]:
        return self.backbone.chat.tokenizer.encode(text, add_special_tokens=False)


def _normalised(logprobs: Sequence[float]) -> tuple[float, ...]:
    import torch

    return tuple(torch.tensor(logprobs, dtype=torch.float64).softmax(0).tolist())


def open_judge(
    source: LocalJudge | EndpointJudge, journal: MutableMapping[str, dict[str, Any]], default: ModelConfig
) -> tuple[Ask, dict[str, Any]]:
    """The :data:`~trimtab.feedback.judge.Ask` of a judge, and its identity for question keys."""
    if isinstance(source, EndpointJudge):
        return Endpoint(source, journal), source.identity
    from trimtab.models import model_identity

    config = source.model or default
    identity = {
        "local": model_identity(config),
        **config.model_dump(mode="json", include={"context", "chat_template", "system"}),
        "reason_tokens": source.reason_tokens,
    }
    return _Lazy(config, source.reason_tokens), identity


class _Lazy:
    """Loads the model at the first question, so that no model is loaded if the journal answers all."""

    def __init__(self, config: ModelConfig, reason_tokens: int) -> None:
        self.config, self.reason_tokens = config, reason_tokens

    def __call__(self, questions: Sequence[Question], keep: Callable[[Mapping[str, Reply]], None]) -> None:
        from trimtab import fast_cpu
        from trimtab.models import Backbone

        fast_cpu.install()
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
    """Have every judge judge all items; if the constitution was edited, report how many labels changed.

    Args:
        items: the items.
        constitution: the principles.
        judges: judges by name.
        config: how the judges are prompted.
        folder: folder of verdicts, judgements and the report.
        default: the model of a local judge that names none.
        ui: console.
        people: people's labels to compare with.
        seed: seed of the intervals.
        replies: folder with each judge's journal, ``NAME/replies.jsonl``; questions answered there are not asked
            again. None: ``folder``.
    """
    judged_by: dict[str, Judged] = {}
    entries: dict[str, JudgeEntry] = {}
    edited = _edited(folder, constitution)
    write_atomic(folder / "constitution.yaml", as_yaml(constitution))
    write_records(folder / "comparisons.jsonl", items)
    for name, source in judges.items():
        path = (replies or folder) / name / "replies.jsonl"
        with Journal(path) as journal, ui.bar(f"judge {name}") as bar:
            ask, identity = open_judge(source, journal, default)
            judged = judge(
                items, constitution, ask, config, name=name, identity=identity, journal=journal, progress=bar.update
            )
        judged_by[name] = judged
        changed = _changed(_verdicts(folder, name), judged) if edited else None
        facts = run_facts(items, judged)
        compared = against_people(items, judged.judgements, people, seed=seed) if people else None
        entries[name] = JudgeEntry(
            identity=identity, run=facts, people=compared, edit=changed, replies=os.path.relpath(path, folder)
        )
        _say_judge(ui, name, report_lines(facts, compared), changed)
    # Only after all judges: if a process is killed earlier, the next one can still compare with the labels before an
    # edit.
    for name, judged in judged_by.items():
        write_records(_verdicts(folder, name), judged.verdicts)
    all_judgements = [j for judged in judged_by.values() for j in judged.judgements]
    write_records(folder / "judgements.jsonl", all_judgements)
    combined = None
    if len(judges) > 1:
        compared = against_people(items, ensemble(items, all_judgements), people, seed=seed) if people else None
        combined = Together(judges=tuple(judges), people=compared)
        ui.say("  all judges together:")
        for line in people_lines(compared):
            ui.say(f"    {line}")
    version = ConstitutionVersion(name=constitution.name, version=constitution.version)
    settings = config.model_dump(mode="json")
    write_judge_result(folder, JudgeResult(constitution=version, settings=settings, judges=entries, ensemble=combined))
    return judged_by


def _verdicts(folder: Path, judge: str) -> Path:
    """File of a judge's verdicts."""
    return folder / judge / "verdicts.jsonl"


def _edited(folder: Path, constitution: Constitution) -> bool:
    """True: the judgements in the folder follow another version of the constitution."""
    return (folder / FILE).exists() and read_judge_result(folder).constitution.version != constitution.version


def _changed(earlier: Path, judged: Judged) -> dict[str, int] | None:
    """Number of labels that differ from the earlier verdicts, by kind; None: there are no earlier verdicts."""
    return changed_labels(read_records(earlier, Verdict), judged.verdicts) if earlier.exists() else None


def _say_judge(ui: Ui, name: str, lines: Sequence[str], changed: Mapping[str, int] | None) -> None:
    ui.say(f"  judge {name}:")
    for line in lines:
        ui.say(f"    {line}")
    if changed is not None:
        changes = ", ".join(f"{kind} {count}" for kind, count in changed.items())
        ui.say(f"    labels since the constitution was edited: {changes}")


def compare_again(folder: Path, people: Sequence[Judgement], *, seed: int = 0) -> dict[str, AgainstPeople]:
    """Compare the judges of a folder written by :func:`judge_items` with newer judgements by people.

    Returns:
        the result of :func:`~trimtab.feedback.against_people` by judge, and of all together; empty without people.
    """
    if not people:
        return {}
    items = read_records(folder / "comparisons.jsonl", Comparison)
    judgements = read_records(folder / "judgements.jsonl", Judgement)
    result = read_judge_result(folder)
    comparisons, entries, combined = {}, {}, result.ensemble
    for name, entry in result.judges.items():
        by_judge = [j for j in judgements if j.annotator == name]
        comparisons[name] = against_people(items, by_judge, people, seed=seed)
        entries[name] = entry.model_copy(update={"people": comparisons[name]})
    if combined is not None:
        compared = comparisons["all together"] = against_people(items, ensemble(items, judgements), people, seed=seed)
        combined = combined.model_copy(update={"people": compared})
    write_judge_result(folder, result.model_copy(update={"judges": entries, "ensemble": combined}))
    return comparisons


def plain(value: Any) -> Any:
    """Nested records as JSON values."""
    if isinstance(value, Record):
        return to_plain(value)
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, list | tuple) else value


def as_yaml(constitution: Constitution) -> str:
    """A constitution as YAML; reading it gives the same constitution."""
    return yaml.safe_dump(constitution.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110)


def read_judges(path: Path) -> dict[str, LocalJudge | EndpointJudge]:
    """A file of judges.

    Raises:
        ConfigError: the file is unreadable, has unknown keys, or contains no judge.
    """
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected judges: {{name: {{kind: local}}}}")
    return dict(parse_config(Judges, values, where=str(path), beside=path.parent).judges)


def read_items(source: str, *, format: str, limit: int | None) -> tuple[list[Comparison], list[Judgement], list[str]]:
    """Items from any data file with two or more answers to a prompt, and the labels in the file.

    Answers of a preference are reordered so that their order does not reveal which is better. Rows with fewer than two
    answers are counted in the lines.

    Returns:
        the items, the labels (one per preference, source as in the file), and lines for the console.
    """
    loaded = read(source, kind=Record, format=format, limit=limit)
    items: dict[str, Comparison] = {}
    labels: list[Judgement] = []
    too_few = repeated = 0
    for record in loaded.records:
        if isinstance(record, Judgement):
            labels.append(record)
            continue
        answers = list(getattr(record, "completions", ()))
        if len(answers) < 2:
            too_few += 1
            continue
        prompt: Prompt = getattr(record, "prompt")  # noqa: B009
        order = list(range(len(answers)))
        if not isinstance(record, Comparison):
            order.sort(key=lambda i: content_id("order", answers[i].text))
        item = record if isinstance(record, Comparison) else Comparison.of(prompt, [answers[i] for i in order])
        repeated += item.id in items
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
    lines = []
    if loaded.refused:
        lines.append(
            f"{source}: {len(loaded.refused)} of {loaded.rows} rows refused (first: {loaded.refused[0].reason})"
        )
    if too_few:
        lines.append(f"{source}: {too_few} records have fewer than two answers; left out")
    if repeated:
        lines.append(f"{source}: {repeated} repeated items; judged once")
    if not items:
        raise DataError(f"{source}: nothing to judge: no row has a prompt with two answers")
    return list(items.values()), labels, lines
