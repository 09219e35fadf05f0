"""Measures a guard on texts that its training did not see: requests, attacks, answers, and the cost of checks."""

import time
from collections.abc import Sequence
from statistics import fmean, median

import numpy as np

from trimtab.errors import DataError
from trimtab.feedback.calibration import reliability
from trimtab.guard.activations import read
from trimtab.guard.attacks import ATTACKS
from trimtab.guard.dataset import PLAIN, Example, attacked, ordinary
from trimtab.guard.guard import Guard, Judgement
from trimtab.guard.normalise import readings
from trimtab.guard.output import AnswerStates, OutputProbe, alarm
from trimtab.guard.result import (
    AnswerResult,
    Cost,
    Family,
    HoldBackSize,
    NotMeasured,
    OnsetTable,
    PassingAttack,
    RequestCalibration,
    RequestResult,
    Share,
    Shares,
    SubjectShare,
)
from trimtab.guard.scores import auroc, share
from trimtab.guard.stream import HOLD_BACK, leaked
from trimtab.guard.training import answer_states, plant
from trimtab.records import Message


def evaluate_requests(
    guard: Guard, examples: Sequence[Example], *, trained_on: Sequence[str] = (), seed: int = 0
) -> RequestResult:
    """Shares of blocked restricted and refused harmless requests, plain and in each attack's disguise.

    Args:
        guard: the guard, with the model it needs.
        examples: requests that training did not see; disguised ones count only in their own family.
        trained_on: attack families that training saw; the others are held out.
        seed: seed of the attacks.

    Raises:
        DataError: there is no restricted or no harmless plain request.
    """
    plain = [e for e in examples if e.kind == "request" and e.family == PLAIN]
    if {e.restricted for e in plain} != {True, False}:
        raise DataError("an evaluation needs restricted and harmless requests that are not disguised; give both")
    judged_plain = guard.judge(guard.prepare([e.text for e in plain]))
    families: dict[str, Family] = {}
    passing: list[PassingAttack] = []
    for family in (PLAIN, *ATTACKS):
        texts, judged = plain, judged_plain
        if family != PLAIN:
            texts = attacked(plain, [family], seed=seed)
            texts += (e for e in examples if e.kind == "request" and e.family == family)
            judged = guard.judge(guard.prepare([e.text for e in texts]))
        shares = _shares([(j.blocked, e) for j, e in zip(judged, texts, strict=True)])
        first_stage = [(j.first > guard.detector.threshold, e) for j, e in zip(judged, texts, strict=True)]
        families[family] = Family(
            **dict(shares),
            held_out=family != PLAIN and family not in trained_on,
            first_stage=None if guard.second is None else _shares(first_stage),
            below_plain=_rate(families.get(PLAIN, shares)) - _rate(shares),
        )
        passed = [(j, e) for j, e in zip(judged, texts, strict=True) if e.restricted and not j.blocked]
        if family != PLAIN and passed:
            judgement, example = min(passed, key=lambda pair: pair[0].score.value)
            passing.append(
                PassingAttack(
                    family=family, text=example.text, score=judgement.score.value, threshold=judgement.threshold,
                    passes=len(passed) / sum(e.restricted for e in texts),
                )
            )  # fmt: skip
    scores, labels = [j.score.value for j in judged_plain], [int(e.restricted) for e in plain]
    bins, error = reliability(scores, labels)
    return RequestResult(
        escalated=None if guard.second is None else _escalated(plain, judged_plain),
        auroc=auroc(scores, labels),
        calibration=RequestCalibration(ece=error, bins=tuple(bins)),
        rules=_rule_accuracy(
            guard, [e for j, e in zip(judged_plain, plain, strict=True) if j.blocked and e.restricted]
        ),
        families=families,
        succeeds=max(passing, key=lambda attack: attack.passes, default=None),
        unread=sum(bool(readings(e.text)[1]) for e in plain),
    )


def _shares(outcomes: Sequence[tuple[bool, Example]]) -> Shares:
    """Shares of blocked restricted and of refused harmless texts."""
    return Shares(
        blocked=_by_subject([(blocked, e) for blocked, e in outcomes if e.restricted]),
        refused=_by_subject([(blocked, e) for blocked, e in outcomes if not e.restricted]),
    )


def _rate(shares: Shares) -> float:
    assert shares.blocked.value is not None  # every family has a restricted text for each plain one
    return shares.blocked.value


def _escalated(texts: Sequence[Example], judged: Sequence[Judgement]) -> dict[str, SubjectShare]:
    """Share of texts that the second stage read, by kind."""
    kinds = {
        "ordinary": ordinary(texts),
        "harmless": [not e.restricted for e in texts],
        "restricted": [e.restricted for e in texts],
    }
    return {
        name: _by_subject([(j.escalated, e) for j, e, k in zip(judged, texts, keep, strict=True) if k])
        for name, keep in kinds.items()
    }


def _rule_accuracy(guard: Guard, blocked: Sequence[Example]) -> SubjectShare:
    with_rule = [e for e in blocked if e.rule]
    correct = [guard.rules is not None and guard.rules.nearest(e.text) == e.rule for e in with_rule]
    return _by_subject(list(zip(correct, with_rule, strict=True)))


def evaluate_answers(
    guard: Guard, examples: Sequence[Example], *, count: int = 60, seed: int = 1
) -> AnswerResult | NotMeasured:
    """Measure answers with a planted onset: harmless sentences, then restricted ones from a known token on.

    Args:
        guard: the guard, with an output probe and its model.
        examples: held-out sentences and requests.
        count: number of answers to assemble.
        seed: seed of the draw.
    """
    sentences = [e for e in examples if e.kind == "answer"]
    if guard.output is None or guard.backbone is None:
        return NotMeasured(reason="the guard does not check answers")
    if {e.restricted for e in sentences} != {True, False}:
        return NotMeasured(reason="there are no held-out sentences of both kinds")
    requests = [e for e in examples if e.kind == "request"]
    planted = plant(guard.backbone, sentences, requests, count, seed=seed)
    states = answer_states(guard.backbone, planted, guard.layers, adapter=guard.adapter)
    return AnswerResult(**dict(onset_table(guard.output, states)), sentences=len(sentences))


def onset_table(output: OutputProbe, answers: Sequence[AnswerStates], *, layer: int = 0) -> OnsetTable:
    """Delay, leakage and false alarms on answers with a known onset.

    Args:
        output: the probe.
        answers: answers with states ``[T, L, H]``.
        layer: index in ``states`` of the layer that the probe reads.
    """
    alarms = [
        alarm(output.token_scores(a.states[:, layer]).tolist(), output.smoothing, output.threshold) for a in answers
    ]
    planted = [(a, t) for a, t in zip(answers, alarms, strict=True) if a.onset is not None]
    harmless = [t for a, t in zip(answers, alarms, strict=True) if a.onset is None]
    delays = [t - a.onset for a, t in planted if a.onset is not None and t is not None and t >= a.onset]
    rows = []
    for size in HOLD_BACK:
        tokens = [leaked(a.onset or 0, t, size, len(a.states)) for a, t in planted]
        rows.append(HoldBackSize(size=size, leaks=_share([n > 0 for n in tokens]), tokens=fmean(tokens)))
    return OnsetTable(
        planted=len(planted),
        harmless=len(harmless),
        delay=median(delays) if delays else None,
        early=_share([t is not None and t < (a.onset or 0) for a, t in planted]),
        false_alarms=_share([t is not None for t in harmless]),
        missed=_share([t is None for _, t in planted]),
        hold_back=tuple(rows),
    )


def measure_cost(guard: Guard, texts: Sequence[str]) -> Cost:
    """CPU time to check a request and to score a decoding step, and the size of the weights."""
    times = []
    for text in texts:
        start = time.process_time()
        guard.check([Message(role="user", content=text)])
        times.append(1000 * (time.process_time() - start))
    second = []
    if guard.second is not None and guard.backbone is not None:
        for text in texts:
            start = time.process_time()
            guard.second.model.logits(guard.backbone, [text], adapter=guard.adapter)
            second.append(1000 * (time.process_time() - start))
    step = None
    if guard.output is not None and guard.backbone is not None:
        _, states = next(read(guard.backbone, [[guard.backbone.chat.end_token] * 2], guard.layers))
        batch = {guard.output.layer: states[None, :, 0].repeat(8, 1, 1)}
        start = time.process_time()
        for _ in range(200):
            guard.token_scores(batch)
        step = 1000 * (time.process_time() - start) / 200
    return Cost(
        request=median(times),
        step=step,
        output_bytes=0 if guard.output is None else int(np.asarray(guard.output.probe.weights).nbytes),
        second=median(second) if second else None,
        second_bytes=0 if guard.second is None else guard.second.model.size,
    )


def _by_subject(outcomes: Sequence[tuple[bool, Example]]) -> SubjectShare:
    groups = [example.group for _, example in outcomes]
    return SubjectShare(**dict(_share([outcome for outcome, _ in outcomes], groups)), groups=len(set(groups)))


def _share(outcomes: Sequence[bool], groups: Sequence[str] | None = None) -> Share:
    estimate = share(outcomes, groups)
    return Share(value=estimate.value, low=estimate.low, high=estimate.high, n=estimate.n)
