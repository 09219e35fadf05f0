"""What a guard reaches on texts that its training did not see: requests, attacks, answers, and its cost."""

import time
from collections.abc import Sequence
from statistics import fmean, median
from typing import Any

import numpy as np

from trimtab.errors import DataError
from trimtab.feedback.calibration import reliability
from trimtab.feedback.intervals import Estimate
from trimtab.guard.activations import read
from trimtab.guard.attacks import ATTACKS
from trimtab.guard.dataset import PLAIN, Example, attacked, ordinary
from trimtab.guard.guard import Guard, Judgement
from trimtab.guard.normalise import readings
from trimtab.guard.output import AnswerStates, OutputProbe, alarm
from trimtab.guard.scores import auroc, share
from trimtab.guard.stream import HOLD_BACK, leaked
from trimtab.guard.training import answer_states, plant
from trimtab.records import Message


def evaluate_requests(
    guard: Guard, examples: Sequence[Example], *, trained_on: Sequence[str] = (), seed: int = 0
) -> dict[str, Any]:
    """Blocking and refusals on requests, plain and in each attack's disguise.

    Args:
        guard: with the model it needs.
        examples: requests that training did not see; disguised ones are left to their own family.
        trained_on: attack families that training saw; the others are held out.
        seed: of the attacks.

    Returns:
        ``families``: for ``plain`` and each attack the blocked share of restricted and of harmless texts, each an
        :class:`~trimtab.feedback.intervals.Estimate` with an interval that counts subjects (``group``) and their number
        ``groups``, whether the family was held out, by how much its blocked share is ``below_plain``, and with a second
        stage both shares by the ``first_stage`` alone; ``auroc`` and ``calibration`` of the plain ones; ``rules``:
        blocked restricted texts whose rule was named rightly; ``unread``: plain texts of which the guard reads only a
        part; ``succeeds``: a restricted text in the disguise that passes most often, with its score; ``escalated``: by
        kind of plain text the share that the second stage read, None without one.

    Raises:
        DataError: there is no restricted or no harmless plain request.
    """
    plain = [e for e in examples if e.kind == "request" and e.family == PLAIN]
    if {e.restricted for e in plain} != {True, False}:
        raise DataError("an evaluation needs restricted and harmless requests that are not disguised; give both")
    families: dict[str, Any] = {}
    passing: list[tuple[float, str, Example, Judgement]] = []
    result: dict[str, Any] = {"escalated": None}
    for family in (PLAIN, *ATTACKS):
        texts = plain if family == PLAIN else attacked(plain, [family], seed=seed)
        texts = [*texts, *(e for e in examples if e.kind == "request" and e.family == family and family != PLAIN)]
        judged = guard.judge(guard.prepare([e.text for e in texts]))
        outcomes = [(j.blocked, e) for j, e in zip(judged, texts, strict=True)]
        families[family] = _shares(outcomes) | {"held_out": family != PLAIN and family not in trained_on}
        if guard.second is not None:
            alone = [j.first > guard.detector.threshold for j in judged]
            families[family]["first_stage"] = _shares(list(zip(alone, texts, strict=True)))
        passed = [(j, e) for j, e in zip(judged, texts, strict=True) if e.restricted and not j.blocked]
        if family != PLAIN and passed:
            judgement, example = min(passed, key=lambda pair: pair[0].score.value)
            passing.append((len(passed) / sum(e.restricted for e in texts), family, example, judgement))
        if family == PLAIN:
            result |= _of_plain(guard, texts, judged)
    for row in families.values():
        row["below_plain"] = families[PLAIN]["blocked"]["value"] - row["blocked"]["value"]
    result["families"] = families
    result["succeeds"] = None
    result["unread"] = sum(bool(readings(e.text)[1]) for e in plain)
    if passing:
        rate, family, example, judgement = max(passing, key=lambda row: row[0])
        result["succeeds"] = {
            "family": family, "text": example.text, "score": judgement.score.value, "threshold": judgement.threshold,
            "passes": rate,
        }  # fmt: skip
    return result


def _shares(outcomes: Sequence[tuple[bool, Example]]) -> dict[str, Any]:
    """Blocked restricted and refused harmless texts."""
    return {
        "blocked": _by_subject([(blocked, e) for blocked, e in outcomes if e.restricted]),
        "refused": _by_subject([(blocked, e) for blocked, e in outcomes if not e.restricted]),
    }


def _of_plain(guard: Guard, texts: Sequence[Example], judged: Sequence[Judgement]) -> dict[str, Any]:
    """AUROC, calibration, rules and escalations of texts that are not disguised."""
    scores, labels = [j.score.value for j in judged], [int(e.restricted) for e in texts]
    bins, error = reliability(scores, labels)
    result: dict[str, Any] = {
        "auroc": auroc(scores, labels),
        "calibration": {"ece": error, "bins": [{n: getattr(b, n) for n in b.__slots__} for b in bins]},
        "rules": _named(guard, [e for j, e in zip(judged, texts, strict=True) if j.blocked and e.restricted]),
    }
    if guard.second is not None:
        kinds = {
            "ordinary": ordinary(texts),
            "harmless": [not e.restricted for e in texts],
            "restricted": [e.restricted for e in texts],
        }
        result["escalated"] = {
            name: _by_subject([(j.escalated, e) for j, e, k in zip(judged, texts, keep, strict=True) if k])
            for name, keep in kinds.items()
        }
    return result


def _named(guard: Guard, blocked: Sequence[Example]) -> dict[str, Any]:
    known = [e for e in blocked if e.rule]
    right = [guard.rules is not None and guard.rules.nearest(e.text) == e.rule for e in known]
    return _by_subject(list(zip(right, known, strict=True)))


def evaluate_answers(guard: Guard, examples: Sequence[Example], *, count: int = 60, seed: int = 1) -> dict[str, Any]:
    """Planted onset: harmless sentences, then restricted ones from a known token on, fed to the model.

    Args:
        guard: with an output probe and its model.
        examples: held-out sentences and requests.
        count: answers to put together.
        seed: of the draw.

    Returns:
        as :func:`onset_table`, and ``sentences``: how many the answers are made of; with ``reason`` alone where nothing
        can be measured.
    """
    sentences = [e for e in examples if e.kind == "answer"]
    if guard.output is None or guard.backbone is None:
        return {"reason": "the guard does not check answers"}
    if {e.restricted for e in sentences} != {True, False}:
        return {"reason": "there are no held-out sentences of both kinds"}
    requests = [e for e in examples if e.kind == "request"]
    planted = plant(guard.backbone, sentences, requests, count, seed=seed)
    states = answer_states(guard.backbone, planted, guard.layers, adapter=guard.adapter)
    return onset_table(guard.output, states) | {"sentences": len(sentences)}


def onset_table(output: OutputProbe, answers: Sequence[AnswerStates], *, layer: int = 0) -> dict[str, Any]:
    """Delay, leakage and false alarms on answers with a known onset.

    Args:
        output: the probe.
        answers: with states ``[T, L, H]``.
        layer: index in ``states`` of the layer that the probe reads.

    Returns:
        ``planted``, ``harmless``: how many answers; ``delay``: median tokens from onset to alarm, among those with an
        alarm; ``early``: share of planted answers with an alarm before the onset; ``false_alarms``: share of harmless
        answers with one; ``missed``: share of planted ones without any; ``hold_back``: for each size the share of
        planted answers of which a restricted token goes out, and the mean number of such tokens.
    """
    alarms = [
        alarm(output.token_scores(a.states[:, layer]).tolist(), output.smoothing, output.threshold) for a in answers
    ]
    planted = [(a, t) for a, t in zip(answers, alarms, strict=True) if a.onset is not None]
    harmless = [t for a, t in zip(answers, alarms, strict=True) if a.onset is None]
    late = [t - a.onset for a, t in planted if a.onset is not None and t is not None and t >= a.onset]
    rows = []
    for size in HOLD_BACK:
        tokens = [leaked(a.onset or 0, t, size, len(a.states)) for a, t in planted]
        rows.append({"size": size, "leaks": _plain(share([n > 0 for n in tokens])), "tokens": fmean(tokens)})
    return {
        "planted": len(planted),
        "harmless": len(harmless),
        "delay": median(late) if late else None,
        "early": _plain(share([t is not None and t < (a.onset or 0) for a, t in planted])),
        "false_alarms": _plain(share([t is not None for t in harmless])),
        "missed": _plain(share([t is None for _, t in planted])),
        "hold_back": rows,
    }


def measure_cost(guard: Guard, texts: Sequence[str]) -> dict[str, Any]:
    """CPU time of a request's check and of one token's, and the size of the weights.

    Returns:
        ``request``: median CPU milliseconds of :meth:`~trimtab.guard.guard.Guard.check`; ``step``: CPU milliseconds of
        :meth:`~trimtab.guard.guard.Guard.token_scores` for a step of 8 answers, None without an output probe;
        ``output_bytes``: size of the output probe's weights; ``second``: median CPU milliseconds of the second
        stage for one reading (view) of a request, measured on the raw text of all of them, None without one; a check
        takes it for each reading whose score is above the band's lower end; ``second_bytes``: size of its weights.
    """
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
    return {
        "request": median(times),
        "step": step,
        "output_bytes": 0 if guard.output is None else int(np.asarray(guard.output.probe.weights).nbytes),
        "second": median(second) if second else None,
        "second_bytes": 0 if guard.second is None else guard.second.model.size,
    }


def _by_subject(outcomes: Sequence[tuple[bool, Example]]) -> dict[str, Any]:
    groups = [example.group for _, example in outcomes]
    return _plain(share([outcome for outcome, _ in outcomes], groups)) | {"groups": len(set(groups))}


def _plain(estimate: Estimate) -> dict[str, Any]:
    return {name: getattr(estimate, name) for name in ("value", "low", "high", "n")}
