"""``trimtab guard``: trains a guard from files and settings, measures it, and explains single verdicts."""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from trimtab.constitution import Constitution
from trimtab.errors import ConfigError, DataError
from trimtab.files import write_atomic
from trimtab.guard.config import GuardConfig
from trimtab.guard.dataset import Example, read_examples
from trimtab.guard.evaluation import evaluate_answers, evaluate_requests, measure_cost
from trimtab.guard.guard import DecisionLog, Guard, OnError
from trimtab.guard.lexical import Lexical
from trimtab.guard.report import report_lines, write_guard_report
from trimtab.guard.result import GuardResult, SecondResult
from trimtab.guard.settings import GuardedModel, GuardSettings, OutputTraining, SecondTraining, TrainingFacts
from trimtab.guard.storage import read_settings, require_place, save_guard
from trimtab.guard.training import train_guard
from trimtab.models import Backbone, ModelConfig, model_identity
from trimtab.models.embedded import NAME
from trimtab.records import Message, Record
from trimtab.text import shorten, visible

_log = logging.getLogger(__name__)

HELD_OUT = "held_out.jsonl"
"""Examples that training did not see, in the guard's folder."""

Say = Callable[[str], None]


def train_and_report(
    constitution: Constitution,
    config: GuardConfig,
    out: Path,
    *,
    data: Sequence[Path] = (),
    model: str | None = None,
    context: int = 1024,
    probes: bool = True,
    say: Say = lambda _: None,
) -> list[str]:
    """Train a guard and write it with its report; returns the report's lines.

    Args:
        constitution: a constitution with a section ``guard``.
        config: settings of the training.
        out: folder of the guard.
        data: files of further examples.
        model: the model whose activations are read; None: the built-in model.
        context: the model's context in tokens.
        probes: False: no model is read.
        say: called with a line about each step.

    Raises:
        ConfigError: ``out`` contains files but no guard.
        ConfigError, DataError, ModelError: as for :func:`~trimtab.guard.training.train_guard`, and for loading a model.
    """
    require_place(out)
    extra = [example for path in data for example in read_examples(path)]
    named = ModelConfig(name=model or NAME, context=context)
    backbone = Backbone.load(named) if probes else None
    trained = train_guard(constitution, config, backbone=backbone, extra=extra, say=say)
    identity = None
    if backbone is not None:
        identity = GuardedModel(
            name=named.name, identity=model_identity(named), width=backbone.width, layers=len(backbone.layers)
        )
    second, output = trained.second, trained.output
    facts = TrainingFacts(
        constitution=constitution.name,
        guard_version=constitution.guard_version,
        config=config.model_dump(mode="json"),
        counts=trained.counts,
        layers=trained.layers,
        layer_scores={pooling: tuple(scores) for pooling, scores in trained.fitted.layer_scores.items()},
        second=second and SecondTraining(auroc=second.auroc, blocked=second.blocked),
        output=output and OutputTraining(layer_scores=tuple(output.layer_scores), delays=output.delays),
    )
    save_guard(
        out,
        trained.fitted.detector,
        second=second and second.stage,
        output=output and output.probe,
        rules=trained.rules,
        reasons={rule.id: rule.text for rule in constitution.guard},
        layer=trained.layer,
        model=identity,
        facts=facts,
    )
    write_atomic(out / HELD_OUT, "".join(json.dumps(asdict(e), ensure_ascii=False) + "\n" for e in trained.held_out))
    return report_lines(_report(Guard.load(out, backbone), trained.held_out, read_settings(out), out, say))


def evaluate_folder(
    folder: Path, out: Path | None, *, data: Sequence[Path], model: str | None, context: int, say: Say = lambda _: None
) -> GuardResult:
    """Measure a guard on its held-out examples or on examples from files, and write the report.

    Args:
        folder: folder of the guard.
        out: folder of the report; None: the guard's folder, only for its held-out examples.
        data: files of examples; empty: the guard's held-out examples.
        model: as in :func:`open_guard`.
        context: the model's context in tokens.
        say: called with a line about each step.

    Raises:
        ConfigError: the report on other data would replace the guard's own.
    """
    settings = read_settings(folder)
    if data and (out is None or out.resolve() == folder.resolve()):
        raise ConfigError(
            f"a report on other data would replace the one in {folder} on what the guard held out; name another folder "
            "with --out"
        )
    examples = [e for path in data or (folder / HELD_OUT,) for e in read_examples(path)]
    return _report(open_guard(folder, model, context), examples, settings, out or folder, say, data)


def _report(
    guard: Guard,
    examples: Sequence[Example],
    settings: GuardSettings,
    out: Path,
    say: Say,
    data: Sequence[Path] = (),
) -> GuardResult:
    facts, config = settings.facts, GuardConfig(**settings.facts.config)
    say(f"measuring on {len(examples)} examples")
    requests = [e.text for e in examples if e.kind == "request"]
    second = None
    if guard.second is not None:
        assert facts.second is not None
        second = SecondResult(
            band=guard.second.band, escalate=config.escalate, threshold=guard.second.threshold, training=facts.second
        )
    result = GuardResult(
        version=guard.version,
        data=tuple(path.name for path in data),
        constitution=facts.constitution,
        guard_version=facts.guard_version,
        budget=config.budget,
        threshold=guard.detector.threshold,
        second=second,
        requests=evaluate_requests(guard, examples, trained_on=config.attacks, seed=config.seed),
        answers=evaluate_answers(guard, examples, seed=config.seed + 1),
        cost=measure_cost(guard, requests[:50]),
    )
    write_guard_report(result, out)
    return result


def open_guard(
    folder: Path,
    model: str | None = None,
    context: int = 1024,
    *,
    on_error: OnError = "closed",
    log: DecisionLog | None = None,
) -> Guard:
    """A guard with the model that it reads (None: the model of its training); warns if the weights differ.

    Raises:
        CheckpointError: there is no guard in the folder, or it is damaged.
        ConfigError: the model has another shape.
    """
    settings = read_settings(folder)
    backbone = None
    if settings.model is not None:
        config = ModelConfig(name=model or settings.model.name, context=context)
        backbone = Backbone.load(config)
        if model_identity(config) != settings.model.identity:
            _log.warning(
                "the guard in %s was trained on the activations of %s and reads those of %s, whose files differ; its "
                "probes and thresholds were not measured on it; train the guard again on this model",
                folder, settings.model.name, config.name,
            )  # fmt: skip
    return Guard.load(folder, backbone, on_error=on_error, log=log)


class ExplainedView(Record):
    """One reading of a request."""

    name: str
    """See :mod:`trimtab.guard.normalise`."""
    text: str
    """Beginning of the text, with invisible characters shown."""
    members: dict[str, float]
    """Calibrated log-odds of each member."""


class Explanation(Record):
    """How a guard reads one request; see :class:`~trimtab.guard.guard.Verdict`."""

    blocked: bool
    """True: the request is not answered."""
    score: float
    """Calibrated probability that it is restricted."""
    threshold: float
    """A higher score is blocked."""
    rule: str | None
    """Id of the rule that a blocked request resembles most."""
    reason: str | None
    """Text of that rule."""
    view: str
    """Name of the view with the highest score."""
    views: tuple[ExplainedView, ...]
    """All views."""
    words: tuple[tuple[str, float], ...]
    """The words that move the lexical member's log-odds most in that view, and their contributions."""
    escalated: bool
    """True: the second stage read the request."""
    adapter: float | None
    """Log-odds of the second stage; None: it did not read the request."""
    error: str | None
    """A failure of the guard."""


def explain_request(folder: Path, text: str, *, model: str | None, context: int) -> Explanation:
    """How a guard reads one request: verdict, each view with its members' log-odds, and the strongest words.

    Raises:
        DataError: the text is empty.
    """
    if not text.strip():
        raise DataError("the request is empty; give a text to explain")
    guard = open_guard(folder, model, context)
    verdict = guard.check([Message(role="user", content=text)])
    prepared = guard.prepare([text])[0]
    by_member = {m.name: m.calibrated([prepared])[0] for m in guard.detector.members}
    views = tuple(
        ExplainedView(
            name=view.name,
            text=visible(shorten(view.text, characters=300, lines=6)[0]),
            members={name: float(values[i]) for name, values in by_member.items()},
        )
        for i, view in enumerate(prepared.views)
    )
    lexical = next(m.model for m in guard.detector.members if isinstance(m.model, Lexical))
    highest = next(v for v in prepared.views if v.name == verdict.view)
    return Explanation(
        blocked=verdict.blocked, score=verdict.score, threshold=verdict.threshold, rule=verdict.rule,
        reason=verdict.reason, view=verdict.view, views=views, words=tuple(lexical.strongest(highest.text)),
        escalated=verdict.escalated, adapter=(verdict.members or {}).get("adapter"), error=verdict.error,
    )  # fmt: skip
