"""A guard around a model: checks requests before the model answers, and answers while it writes them.

A server uses it like this::

    guard = Guard.load(Path("guard"), backbone)
    verdict = guard.check(messages)               # before sampling; a blocked request is not answered
    with layer_states(backbone, guard.layers) as states:  # around the decoding steps; guard.layers may be empty
        checks = [guard.start() for _ in answers]
        ...                                       # one decoding step, which fed each answer's newest token
        scores = guard.token_scores(states, rows) # rows: which row of the step is which answer
        for check, token, score in zip(checks, tokens, scores):
            send(check.step(token, score))        # the tokens that may go out now
            if check.verdict is not None: ...     # stopped: close the stream
        send(check.finish([last_token]))

A token's states exist only after it has been fed to the model, one step after it was sampled. The last token of an
answer is never fed; pass it to :meth:`AnswerCheck.finish`.
"""

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from torch import Tensor

from trimtab.errors import ConfigError, DataError, StorageError, TrimtabError
from trimtab.files import storage_errors
from trimtab.guard.activations import pooled_texts
from trimtab.guard.detector import Detector, Prepared, Score, prepare
from trimtab.guard.lexical import Rules
from trimtab.guard.output import OutputProbe
from trimtab.guard.second import SecondStage
from trimtab.guard.stream import HoldBack, Smoothed
from trimtab.models import Backbone
from trimtab.records import Message

OnError = Literal["closed", "open"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """A guard's decision about a request or an answer."""

    blocked: bool
    """True: do not answer, or stop."""
    score: float
    """Request: calibrated probability that it is restricted. Answer: smoothed log-odds at this token."""
    threshold: float
    """A higher score is blocked."""
    rule: str | None = None
    """The guard rule that a blocked request resembles most; None: not blocked, or the guard knows no rules."""
    reason: str | None = None
    """The text of that rule, for people."""
    view: str = "raw"
    """The reading of the text with the highest score; see :mod:`trimtab.guard.normalise`."""
    members: Mapping[str, float] | None = None
    """Calibrated log-odds of each member on that view."""
    escalated: bool = False
    """True: the second stage read the request; score and threshold are those of both stages together."""
    token: int | None = None
    """Answer: index of the token at which it was stopped."""
    error: str | None = None
    """A failure of the guard. ``blocked`` then follows ``on_error``, but what was blocked before the failure stays
    blocked."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgement:
    """A guard's decision about one text of a request."""

    score: Score
    """Score of the first stage, or of both stages if the text was escalated."""
    threshold: float
    """A higher score is blocked."""
    first: float
    """Score of the first stage."""
    escalated: bool
    """True: the score of the first stage is in the band of the second."""

    @property
    def blocked(self) -> bool:
        """True: the text is blocked."""
        return self.score.value > self.threshold


class DecisionLog:
    """Appends each decision to a JSON Lines file, by default without the text.

    Args:
        path: the file.
        text: True: the text of requests is logged too. Tell your users, because these are their words.
    """

    def __init__(self, path: Path, *, text: bool = False) -> None:
        self.path, self.text = path, text

    def write(self, guard: str, kind: str, verdict: Verdict, text: str) -> None:
        """Add one line: time, guard version, kind (``request`` or ``answer``) and the verdict."""
        row: dict[str, Any] = {
            "time": round(time.time(), 3), "guard": guard, "kind": kind, "blocked": verdict.blocked,
            "score": round(verdict.score, 6), "threshold": round(verdict.threshold, 6), "rule": verdict.rule,
            "view": verdict.view, "escalated": verdict.escalated, "token": verdict.token, "error": verdict.error,
        }  # fmt: skip
        if self.text:
            row["text"] = text
        with storage_errors(self.path), open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


class Guard:
    """Checks requests and answers. Made by training or :meth:`load`; safe to use from several threads.

    Args:
        detector: the detector of requests.
        second: the second stage, for requests that the detector is in doubt about; None: the detector decides alone.
        output: the detector of answers; None: answers are not checked.
        rules: names the rule of a blocked request; None: there are no rules.
        reasons: text of each rule by id.
        version: identifies the guard in logs and votes.
        backbone: the model that probes and the second stage read; None: the guard has neither.
        layer: the layer that request probes read, 1 … number of layers.
        adapter: the adapter whose weights are used; None: the trunk.
        on_error: whether a failure of the guard blocks (``closed``) or lets pass (``open``).
        log: logs decisions; None: no log.
    """

    def __init__(
        self,
        detector: Detector,
        *,
        second: SecondStage | None = None,
        output: OutputProbe | None = None,
        rules: Rules | None = None,
        reasons: Mapping[str, str] | None = None,
        version: str = "",
        backbone: Backbone | None = None,
        layer: int | None = None,
        adapter: str | None = None,
        on_error: OnError = "closed",
        log: DecisionLog | None = None,
    ) -> None:
        if (layer is not None or second is not None) and backbone is None:
            raise ConfigError(
                "this guard reads the activations of a model and was given none; name the model that it was trained "
                "with, or train a guard with --no-probes and without --escalate"
            )
        self.detector, self.second, self.output, self.rules = detector, second, output, rules
        self.reasons, self.version = dict(reasons or {}), version
        self.backbone, self.layer, self.adapter = backbone, layer, adapter
        self.on_error, self.log = on_error, log
        self._reading = threading.Lock()  # a pass through the model collects its states with hooks

    @classmethod
    def load(
        cls,
        folder: Path,
        backbone: Backbone | None = None,
        *,
        adapter: str | None = None,
        on_error: OnError = "closed",
        log: DecisionLog | None = None,
    ) -> Self:
        """Load a guard written by :func:`trimtab.guard.storage.save_guard`; arguments as for the class.

        Raises:
            CheckpointError: there is no guard in the folder, or it is damaged.
            ConfigError: the guard reads a model, and none was given, or one of another width or depth.
        """
        from trimtab.guard.storage import load_guard

        parts = load_guard(folder, backbone)
        return cls(**vars(parts), backbone=backbone, adapter=adapter, on_error=on_error, log=log)

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers that a server has to read while it decodes; empty: answers are not checked."""
        return () if self.output is None else (self.output.layer,)

    def check(self, messages: Sequence[Message]) -> Verdict:
        """Check a request: every turn, the user's turns together, and the whole conversation.

        The assistant's turns count too, because the client sends them and may have written them. Texts in the band of
        the second stage are escalated, unless the first stage blocks a text with a score above the band.

        The method never raises. A failure, also of the log, a score that is NaN or infinite, and a text that was not
        read in full become a verdict by ``on_error`` with ``error`` set, unless another text is blocked. If the second
        stage fails, a request that the first stage would block is blocked.
        """
        turns = [m.content for m in messages if m.content.strip()]
        user_turns = [m.content for m in messages if m.role == "user" and m.content.strip()]
        texts = list(dict.fromkeys([*turns, "\n".join(user_turns), "\n".join(turns)])) if turns else []
        texts = [text for text in texts if text]
        verdict = self._guarded(lambda: self._request(texts), self.detector.threshold)
        return self._logged("request", verdict, "\n".join(texts))

    def _request(self, texts: Sequence[str]) -> Verdict:
        if not texts:
            return Verdict(blocked=False, score=0.0, threshold=self.detector.threshold)
        prepared, error = self.prepare(texts), None
        tables = self.detector.tables(prepared)
        judged = self._judged(prepared, tables)
        if any(j.escalated for j in judged) and not any(j.blocked and not j.escalated for j in judged):
            try:
                judged = self._escalate(prepared, tables, judged)
            except Exception as failure:
                if not any(j.blocked for j in judged):
                    raise
                error = f"the second stage failed and the first one blocks: {_error_text(failure)}"
        if not (all(np.isfinite(table).all() for table in tables) or any(j.blocked for j in judged)):
            raise DataError("the guard computed NaN or infinity for a request; train the guard again on this model")
        highest = max(range(len(texts)), key=lambda i: (judged[i].blocked, judged[i].score.value))
        score, blocked = judged[highest].score, judged[highest].blocked
        unread = next((p.unread for p in prepared if p.unread), "")
        if unread and not blocked:
            raise DataError(unread)
        rule = None
        if blocked and self.rules is not None:
            rule = self.rules.nearest(next(v.text for v in prepared[highest].views if v.name == score.view))
        return Verdict(
            blocked=blocked,
            score=score.value,
            threshold=judged[highest].threshold,
            rule=rule,
            reason=self.reasons.get(rule) if rule else None,
            view=score.view,
            members=score.members,
            escalated="adapter" in score.members,
            error=error,
        )

    def prepare(self, texts: Sequence[str]) -> list[Prepared]:
        """Texts in the form that the members read."""
        return prepare(texts, None if self.layer is None else self.read)

    def judge(self, prepared: Sequence[Prepared]) -> list[Judgement]:
        """Decide about each text separately, with both stages.

        Raises:
            DataError: the second stage computed NaN or infinity.
        """
        tables = self.detector.tables(prepared)
        return self._escalate(prepared, tables, self._judged(prepared, tables))

    def _judged(self, prepared: Sequence[Prepared], tables: Sequence[np.ndarray]) -> list[Judgement]:
        """Decisions of the first stage."""
        scores = [self.detector.score(text, table) for text, table in zip(prepared, tables, strict=True)]
        return [
            Judgement(
                score=score,
                threshold=self.detector.threshold,
                first=score.value,
                escalated=self.second is not None and self.second.band.holds(score.value),
            )
            for score in scores
        ]

    def _escalate(
        self, prepared: Sequence[Prepared], tables: Sequence[np.ndarray], judged: Sequence[Judgement]
    ) -> list[Judgement]:
        """Decisions of both stages; the second stage reads the escalated texts."""
        result = list(judged)
        rows = [i for i, j in enumerate(judged) if j.escalated]
        if self.second is None or self.backbone is None or not rows:
            return result
        odds = [self.detector.log_odds(tables[i]) for i in rows]
        with self._reading:
            scores = self.second.scores([prepared[i] for i in rows], odds, self.backbone, adapter=self.adapter)
        for i, joint in zip(rows, scores, strict=True):
            members = {m.name: float(z) for m, z in zip(self.detector.members, tables[i][:, joint.view], strict=True)}
            score = Score(
                value=joint.value, view=prepared[i].views[joint.view].name, members=members | {"adapter": joint.adapter}
            )
            result[i] = replace(judged[i], score=score, threshold=self.second.threshold)
        return result

    def read(self, texts: Sequence[str]) -> list[Tensor]:
        """Pooled states of texts at the layer of the request probes, ``[1 + W, P, 1, H]`` each."""
        assert self.backbone is not None and self.layer is not None
        with self._reading:
            return pooled_texts(self.backbone, texts, [self.layer], adapter=self.adapter)

    def token_scores(self, states: Mapping[int, Tensor], rows: Sequence[int] | None = None) -> list[float]:
        """Log-odds of the newest token of each answer, in one product for the whole step.

        Args:
            states: states by layer, ``[B, T, H]``, from :func:`trimtab.guard.activations.layer_states`; the last
                position is the newest token's.
            rows: rows of the step, in the order of the result; None: all.

        Returns:
            one score per row; zeros for ``rows`` if the guard does not check answers.
        """
        if self.output is None:
            return [0.0] * len(rows or ())
        newest = states[self.output.layer][:, -1]
        newest = newest if rows is None else newest[list(rows)]
        return self.output.token_scores(newest.detach().float().cpu().numpy()).tolist()

    def start(self, *, hold_back: int = 16, text: str = "") -> "AnswerCheck":
        """A check of one answer.

        Args:
            hold_back: tokens that wait for the verdict on later ones.
            text: text to log with a stopped answer, if the log includes text.
        """
        return AnswerCheck(self, hold_back, lambda verdict: self._logged("answer", verdict, text))

    def _guarded(self, decide: Callable[[], Verdict], threshold: float) -> Verdict:
        try:
            return decide()
        except Exception as error:  # whatever the error, there must be a verdict
            closed = self.on_error == "closed"
            return Verdict(blocked=closed, score=1.0 if closed else 0.0, threshold=threshold, error=_error_text(error))

    def _logged(self, kind: str, verdict: Verdict, text: str) -> Verdict:
        """Log a decision; if it cannot be written, that is a failure of the guard."""
        try:
            if self.log is not None:
                self.log.write(self.version, kind, verdict, text)
        except StorageError as error:
            return replace(verdict, blocked=verdict.blocked or self.on_error == "closed", error=str(error))
        return verdict


def _error_text(error: Exception) -> str:
    return str(error) if isinstance(error, TrimtabError) else f"{type(error).__name__}: {error}"


class AnswerCheck:
    """The check of one answer: takes each token with its score and returns the tokens that may go out.

    Made by :meth:`Guard.start`.
    """

    def __init__(self, guard: Guard, hold_back: int, write: Callable[[Verdict], Verdict]) -> None:
        self._guard, self._write = guard, write
        self.buffer = HoldBack(hold_back if guard.output is not None else 0)
        self._smoothed = None if guard.output is None else Smoothed(guard.output.smoothing)
        self._count = 0
        self.verdict: Verdict | None = None
        """The verdict that stopped the answer; None: the answer was not stopped."""
        self.score: float | None = None
        """Smoothed log-odds of the answer so far."""

    def step(self, token: int, score: float | None) -> list[int]:
        """Judge a token and return those that may be sent now.

        Args:
            token: the generated id; pass all tokens in order, exactly as they will be sent.
            score: the token's score from :meth:`Guard.token_scores`. None or NaN is a failure of the guard: ``closed``
                stops the answer, ``open`` lets the token pass unjudged. A guard without an output probe ignores it.
        """
        position, self._count = self._count, self._count + 1
        output, blocked, error = self._guard.output, False, None
        if output is not None and self._smoothed is not None:
            if score is None or not np.isfinite(score):
                blocked, error = self._guard.on_error == "closed", f"token {position} came with the score {score}"
            else:
                self.score = self._smoothed.step(score)
                blocked = self.score > output.threshold
        released = self.buffer.push(token, blocked=blocked)
        if blocked and self.verdict is None:
            assert output is not None
            score = self.score or 0.0
            self.verdict = self._write(
                Verdict(blocked=True, score=score, threshold=output.threshold, token=position, error=error)
            )
        return released

    def finish(self, last: Sequence[int] = ()) -> list[int]:
        """End the answer and return the tokens that may still go out.

        Args:
            last: tokens at the end whose states were never computed. They are released unless the answer was stopped.
        """
        return [] if self.verdict is not None else [*self.buffer.finish(), *last]
