"""Measures checkpoints on suites: log-probabilities of given answers, and greedy answers scored by verifiers."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from trimtab.errors import ConfigError, DataError, NonFiniteError, ScoringError
from trimtab.evals.balance import declines
from trimtab.evals.suite_results import SuiteResults
from trimtab.evals.suites import LIKELIHOOD, Outcome, Suite, SuiteItem
from trimtab.feedback.callables import load_callable
from trimtab.feedback.verifiers import arithmetic, instructions
from trimtab.models import Encoded, Role
from trimtab.pipeline.capability import encode_passage, question_turns, response_logprobs
from trimtab.pipeline.talk import open_model
from trimtab.records import Prompt, Rollout
from trimtab.rollout import LocalSampler, SamplerConfig
from trimtab.rollout.rewards import HttpReward, http_reward, numbers
from trimtab.storage import RunFolder

SUITES = "suites"
"""Folder of results in a run's folder."""

Judge = Callable[[Sequence[Rollout]], Any]
"""Maps rollouts to one number each."""

FAILURES = 3
"""If a judge fails this many times in a row from the first answer on, it is not asked again."""


def open_target(target: str, *, runs: Path) -> Role:
    """The model that a target names: a model folder, a hub id, a run's folder (its policy) or ``RUN:MODEL``.

    Raises:
        ConfigError: the run has no such model yet.
    """
    path, which = split_target(target)
    backbone, adapter = open_model(path, which=which, runs=runs)
    return Role(backbone, adapter=adapter)


def split_target(target: str) -> tuple[str, str]:
    """A target's path or hub id, and the name of the run's model.

    >>> split_target("runs/quickstart:sft"), split_target("runs/quickstart")
    (('runs/quickstart', 'sft'), ('runs/quickstart', 'policy'))
    """
    path, colon, which = target.rpartition(":")
    return (target, "policy") if not colon or Path(target).exists() else (path, which)


def run_of(target: str) -> RunFolder | None:
    """The run that a target belongs to; None: the target is not a run's folder."""
    path = Path(split_target(target)[0])
    return RunFolder(path, create=False).first if (path / "config.yaml").is_file() else None


def fingerprint(run: RunFolder, which: str) -> str:
    """Fingerprint of the stage that made a model of a run; empty: there is none."""
    if which == "base":
        return ""
    if which == "sft":
        status = run.first.status("sft")
    elif which.startswith("round-"):
        status = run.round(int(which.removeprefix("round-"))).status("align")
    else:
        status = run.newest().status("align")
    return "" if status is None else status.fingerprint


def suites_of(run: RunFolder) -> tuple[SuiteResults | None, str]:
    """Results on a run's checkpoints for its page; or None and the reason, which is empty if nothing was measured."""
    file = run.path / SUITES / "suites.json"
    if not file.is_file():
        return None, ""
    try:
        results = SuiteResults.model_validate_json(file.read_text(encoding="utf-8"))
    except ValueError:
        return None, f"{file} is of another version of trimtab; measure the suites again with trimtab eval."
    if any(fingerprint(run, which) != stored for which, stored in results.checkpoints.values()):
        return (
            None,
            f"Models were trained again since suites were measured ({file}); measure them again with trimtab eval.",
        )
    return results, ""


def load_judge(name: str) -> Judge:
    """A judge of answers, by the URL of an endpoint (as in ``rewards`` with ``kind: http``) or a dotted path."""
    if name.startswith(("http://", "https://")):
        return http_reward(HttpReward(url=name))
    if "." not in name:
        raise ConfigError(f"--judge {name}: expected the URL of an endpoint, or a function as package.module.function")
    return load_callable(name)


def measure_suite(role: Role, suite: Suite, *, max_new_tokens: int, judge: Judge | None = None) -> dict[str, Outcome]:
    """A model's outcome on each item of a suite.

    Items that do not fit the model's context, or on which a judge fails, have an outcome with a reason instead of a
    value.

    Raises:
        ConfigError: the suite needs a judge, but there is none.
    """
    if judge is None and any(item.kind == "judged" for item in suite.items):
        raise ConfigError(
            f"the suite {suite.name!r} is scored by a judge; give one with --judge URL or --judge module.function"
        )
    with_answers = [item for item in suite.items if item.kind in LIKELIHOOD]
    open_items = [item for item in suite.items if item.kind not in LIKELIHOOD]
    outcomes = _likelihoods(role, with_answers) | _answers(role, open_items, max_new_tokens, judge)
    return {item.id: outcomes[item.id] for item in suite.items}


@torch.no_grad()
def _likelihoods(role: Role, items: Sequence[SuiteItem]) -> dict[str, Outcome]:
    """Differences of log-probabilities, and −log p per token of passages."""
    chat, reasons = role.backbone.chat, {}
    rows: dict[tuple[str, str], Encoded] = {}
    for item in items:
        texts = item.options or (item.prompt,)
        try:
            for text in texts:
                turns = question_turns(item.prompt)
                encoded = encode_passage(chat, text) if item.kind == "text" else chat.answer(turns, text)
                if encoded is None:
                    raise DataError("the passage has fewer than two tokens")
                rows[item.id, text] = encoded
        except DataError as error:
            reasons[item.id] = str(error)
    logprobs = dict(zip(rows, response_logprobs(role, list(rows.values())), strict=True))
    outcomes = {}
    for item in items:
        if item.id in reasons:
            outcomes[item.id] = Outcome(reason=reasons[item.id])
            continue
        if item.kind == "text":
            key = (item.id, item.prompt)
            value = -logprobs[key] / sum(rows[key].response_mask)
        else:
            right, wrong = (logprobs[item.id, option] for option in item.options)
            value = right - wrong
        outcomes[item.id] = Outcome(value=value) if math.isfinite(value) else _not_finite(value)
    return outcomes


def _not_finite(value: float) -> Outcome:
    return Outcome(reason=f"the number is not finite ({value})")


def _answers(role: Role, items: Sequence[SuiteItem], max_new_tokens: int, judge: Judge | None) -> dict[str, Outcome]:
    """Greedy answers, scored one by one, so that a failure affects only one item."""
    chat, outcomes, fitting = role.backbone.chat, {}, []
    for item in items:
        try:
            length = len(chat.prompt(question_turns(item.prompt)))
            if length + max_new_tokens > chat.context:
                raise DataError(f"{length} tokens and {max_new_tokens} of answer exceed the context of {chat.context}")
            fitting.append(item)
        except DataError as error:
            outcomes[item.id] = Outcome(reason=str(error))
    prompts = [Prompt(id=i.id, messages=tuple(question_turns(i.prompt)), metadata=i.metadata) for i in fitting]
    sampling = SamplerConfig(temperature=0.0, max_new_tokens=max_new_tokens)
    rollouts = LocalSampler(role.backbone, sampling).generate(prompts, adapter=role.adapter, seed=0)
    scored = failed = 0
    for item, rollout in zip(fitting, rollouts, strict=True):
        if item.kind == "judged" and failed >= FAILURES and not scored:
            outcomes[item.id] = Outcome(text=rollout.text, reason="the judge failed on every answer before")
            continue
        try:
            outcomes[item.id] = Outcome(value=_score(item, rollout, judge), text=rollout.text)
            scored += 1
        except (ScoringError, NonFiniteError) as error:
            outcomes[item.id] = Outcome(text=rollout.text, reason=str(error).splitlines()[0])
            failed += 1
    return outcomes


def _score(item: SuiteItem, rollout: Rollout, judge: Judge | None) -> float:
    """The value of an answer."""
    if item.kind in ("harmful", "benign"):
        return float(declines(rollout.text))
    if item.kind == "arithmetic":
        return arithmetic([rollout])[0]
    if item.kind == "instructions":
        return instructions([rollout])[0]
    assert judge is not None
    try:
        values = judge([rollout])
    except (ScoringError, NonFiniteError):
        raise
    except Exception as error:  # a user's judge may raise anything
        raise ScoringError(f"the judge raised {type(error).__name__}") from error
    return numbers("judge", values, [rollout])[0]
