"""Adapts a constitution's guard (:mod:`trimtab.guard`) to the server's guard protocol.

The guard reads requests with its own model, so they never wait for the answering model. Answers are judged from the
states that the answering model computes anyway. A token's states exist one step after it is drawn, when it has been
read, so a token is judged when the next one arrives. The last token of an answer is therefore never judged, and an
answer of one token is sent unjudged; its request was checked.
"""

import logging
import math
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from trimtab.errors import ConfigError
from trimtab.guard import guard as guards
from trimtab.guard.storage import read_settings
from trimtab.models import Backbone
from trimtab.pipeline.guarding import open_guard
from trimtab.records import Message
from trimtab.serve.guarding import Verdict

_log = logging.getLogger(__name__)

RESTRICTED = "restricted"
"""The category of every verdict; a blocked request also has the most similar rule as a category."""


class ConstitutionGuard:
    """Implements :class:`trimtab.serve.guarding.Guard` with a trained guard of a constitution.

    Args:
        guard: the trained guard; its model is not shared with the server.
        hold_back: delay of an answer in tokens: a token is sent when this many later tokens have been judged.
    """

    def __init__(self, guard: guards.Guard, *, hold_back: int = 16) -> None:
        self.guard = guard
        self.version = guard.version
        self.layer = guard.layers[0] if guard.layers else 0
        self.hold_back = hold_back + 1 if guard.layers else 0  # the newest token has not been judged yet
        self.fail_open = guard.on_error == "open"
        self._reading = threading.Lock()

    def check_prompt(self, messages: Sequence[Message]) -> Verdict:
        """Judge a conversation; on a failure, the guard's ``on_error`` decides whether to block it."""
        with self._reading:
            verdict = self.guard.check(messages)
        scores, categories = {RESTRICTED: verdict.score}, {RESTRICTED: verdict.blocked}
        if verdict.rule is not None:
            scores[verdict.rule], categories[verdict.rule] = verdict.score, verdict.blocked
        return Verdict(flagged=verdict.blocked, scores=scores, categories=categories, reason=_refusal_text(verdict))

    def start_answer(self, messages: Sequence[Message], prompt_states: Tensor | None) -> "Watch":
        """Start watching an answer; the states of the prompt are not used."""
        return Watch(self.guard)


class Watch:
    """Judges each token of one answer when the next one arrives.

    Args:
        guard: the guard with the probe and the threshold.
    """

    def __init__(self, guard: guards.Guard) -> None:
        self._guard, self._check = guard, guard.start(hold_back=0)
        self._unjudged: int | None = None

    def feed(self, tokens: Sequence[int], states: Tensor | None) -> Verdict:
        """Judge the preceding tokens, from whose states these tokens were drawn.

        Args:
            tokens: the next tokens of the answer.
            states: ``[len(tokens), H]``, the states that each was drawn from; None: the guard does not judge answers.
        """
        for index, token in enumerate(tokens):
            if self._unjudged is not None:
                self._check.step(self._unjudged, self._token_score(states, index))
            self._unjudged = token
        stopped = self._check.verdict
        if stopped is not None:
            return Verdict(
                flagged=True,
                scores={RESTRICTED: self._score()},
                categories={RESTRICTED: True},
                reason=_refusal_text(stopped),
            )
        return Verdict(flagged=False, scores={RESTRICTED: self._score()}, categories={RESTRICTED: False})

    def _token_score(self, states: Tensor | None, index: int) -> float | None:
        """The probe's score of one state; None: no state, which is a failure if the guard judges answers."""
        if states is None or self._guard.output is None:
            return None
        return self._guard.token_scores({self._guard.output.layer: states[None, index : index + 1]})[0]

    def _score(self) -> float:
        """The score of the answer so far between 0 and 1; 0.5 at the threshold."""
        if self._guard.output is None or self._check.score is None:
            return 0.0
        distance = self._check.score - self._guard.output.threshold
        return 1 / (1 + math.exp(-max(-50.0, min(50.0, distance))))


def _refusal_text(verdict: guards.Verdict) -> str:
    """The message for the person who asked; empty: the server's default sentence."""
    return f"This request was blocked. The rule: {verdict.reason}" if verdict.reason else ""


@torch.no_grad()
def same_weights(first: Backbone, second: Backbone) -> bool:
    """Whether two models have parameters of equal names and values, compared in the less precise type of the two."""
    parameters, other_parameters = dict(first.model.named_parameters()), dict(second.model.named_parameters())
    if parameters.keys() != other_parameters.keys():
        return False
    for name, parameter in parameters.items():
        pair = parameter.detach().cpu(), other_parameters[name].detach().cpu()
        dtype = max((tensor.dtype for tensor in pair), key=lambda t: torch.finfo(t).eps)
        if not torch.equal(pair[0].to(dtype), pair[1].to(dtype)):
            return False
    return True


def load_constitution_guard(
    folder: Path,
    models: Sequence[Backbone],
    *,
    hold_back: int = 16,
    on_error: Literal["closed", "open"] = "closed",
    log: Path | None = None,
) -> ConstitutionGuard:
    """Load a trained guard for the server.

    Args:
        folder: folder written by ``trimtab guard train``.
        models: the answering models. A warning is logged if the guard was trained on other weights.
        hold_back: see :class:`ConstitutionGuard`.
        on_error: whether a failure of the guard blocks (``closed``) or lets pass (``open``).
        log: file that each decision is appended to, without text; None: no file.

    Raises:
        CheckpointError: there is no guard in the folder, or it is damaged.
        ConfigError: the guard judges answers by hidden states of a model with another shape than an answering model.
    """
    decisions = None if log is None else guards.DecisionLog(log)
    guard = open_guard(folder, on_error=on_error, log=decisions)
    model = read_settings(folder).model
    for backbone in models if guard.layers else ():
        assert model is not None  # answers are judged by the states of one
        if (backbone.width, len(backbone.layers)) != (model.width, model.layers):
            raise ConfigError(
                f"the guard in {folder} judges answers by the states of {model.name} ({model.layers} layers of "
                f"width {model.width}), but the model that answers has {len(backbone.layers)} layers of width "
                f"{backbone.width}; train a guard with `trimtab guard train --model` on the model that answers, or one "
                "with --no-probes"
            )
        if guard.backbone is not None and not same_weights(guard.backbone, backbone):
            _log.warning(
                "the guard in %s was trained on the weights of %s and the model that answers has others (further "
                "training, or an adapter); its scores of answers and their threshold were not measured on them; export "
                "the served model with `trimtab model export` and train a guard on it",
                folder, model.name,
            )  # fmt: skip
    return ConstitutionGuard(guard, hold_back=hold_back)
