"""Answers concurrent requests: each step draws one token for every running answer, with the answer's own settings.

The engine shares its passes and drawing with the sampler (:mod:`trimtab.rollout.passes`,
:mod:`trimtab.rollout.drawing`) but has a different schedule. The sampler knows all prompts beforehand and reads many of
them at once. Here a long prompt must not stall the running answers, so a step reads at most :data:`PREFILL` tokens of
prompts.

Every answer has its own random stream, and a prompt is always read in the same pieces. So an answer does not depend on
the other requests, up to the last bits of floating point in the logits.
"""

import random
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from trimtab.errors import ConfigError, ModelError
from trimtab.models import Backbone
from trimtab.models.kernels import kernels
from trimtab.rollout.answer_text import AnswerText
from trimtab.rollout.drawing import invert, nucleus
from trimtab.rollout.passes import Passes

PREFILL = 128
"""Most prompt tokens that one step reads."""
GREEDY = 1e-4
"""Below this temperature the most likely token is taken: logits divided by less can overflow."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerSettings:
    """How one answer is drawn."""

    temperature: float = 1.0
    """Logits are divided by it; below :data:`GREEDY` the most likely token is taken."""
    top_p: float = 1.0
    """Draw from the smallest set of tokens with at least this mass."""
    max_new_tokens: int = 64
    """Longest answer, its end token included."""
    stop: tuple[str, ...] = ()
    """The answer ends before the first of these strings."""
    presence_penalty: float = 0.0
    """Subtracted from the logit of every token that the answer already contains."""
    frequency_penalty: float = 0.0
    """Subtracted from the logit of a token for each of its occurrences in the answer."""
    logprobs: int | None = None
    """Return log-probabilities of the drawn token and of this many most likely tokens; None: return none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenLogprobs:
    """Log-probabilities at one place of an answer, in nats, of the model itself, before any settings apply."""

    token: int
    """The drawn token."""
    logprob: float
    """Its log-probability."""
    top: tuple[tuple[int, float], ...]
    """The most likely tokens, most likely first."""


@dataclass(kw_only=True, eq=False)
class Answer:
    """One answer that is waiting or running."""

    settings: AnswerSettings
    """How it is drawn."""
    stream: random.Random
    """Its random stream, one number per token."""
    prompt_tokens: list[int] = field(default_factory=list)
    """Set when it is added to an engine."""
    tokens: list[int] = field(default_factory=list)
    """Tokens drawn so far, end token included."""
    prompt_states: Tensor | None = None
    """``[P, H]``, output of the recorded layer for the prompt; None: nothing is recorded."""
    started: bool = False
    """True: it has, or had, a slot."""
    ended: bool = False
    """True: no more tokens are drawn."""
    _text: AnswerText | None = None

    @property
    def length(self) -> int:
        """Tokens of prompt and answer."""
        return len(self.prompt_tokens) + len(self.tokens)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Drawn:
    """Result of one step for one answer."""

    answer: Answer
    """The answer."""
    token: int
    """The token that was drawn."""
    text: str
    """Text that can be shown now; it may be more or less than the token's text."""
    logprobs: tuple[TokenLogprobs, ...]
    """Log-probabilities of the tokens whose text is shown, if the answer's settings request them."""
    finish_reason: Literal["stop", "length"] | None
    """None: it continues."""
    state: Tensor | None
    """``[H]``, the recorded state of the token before it, from which the token was drawn; None: nothing is recorded."""


@dataclass(kw_only=True, eq=False)
class _Group:
    """Answers to one prompt, which is read once."""

    answers: list[Answer]
    cache: DynamicCache = field(default_factory=DynamicCache)
    read: int = 0
    states: list[Tensor] = field(default_factory=list)


class StepEngine:
    """Draws answers step by step. Not thread-safe: make all calls from one thread.

    The model's weights must not change while the engine is open.

    Args:
        backbone: the model.
        adapter: which adapter to draw with; None: the trunk.
        slots: answers that run at the same time.
        length: tokens of the longest sequence, prompt included.
        recorded_layer: return the hidden states after this many layers; 0: return none.

    Raises:
        ModelError: the model cannot decode answers of different lengths together.
    """

    def __init__(
        self, backbone: Backbone, *, adapter: str | None, slots: int, length: int, recorded_layer: int = 0
    ) -> None:
        if not backbone.layouts.slots:
            reason = backbone.layouts.off.get("slots", "it has no cache with slots")
            raise ModelError(
                f"{type(backbone.model).__name__} cannot decode answers of different lengths together ({reason}); "
                "talk to it with `trimtab chat`, or serve another model"
            )
        if not 0 <= recorded_layer <= len(backbone.layers):
            raise ConfigError(f"layer {recorded_layer} is recorded but the model has {len(backbone.layers)} layers")
        self.backbone, self.slots, self.length = backbone, slots, length
        self._open = ExitStack()
        self._open.enter_context(backbone.merged(adapter))
        decoder = self._open.enter_context(kernels().sampling(backbone, recorded_layer=recorded_layer))
        self._passes = Passes(backbone, slots, length, decoder=decoder, recorded_layer=recorded_layer)
        self._waiting: deque[_Group] = deque()
        self._reading: deque[_Group] = deque()
        self._running: list[Answer] = []

    def close(self) -> None:
        """Restore the model's previous state. Running answers are lost."""
        self._open.close()

    # Requests -----------------------------------------------------------------------------

    def add(self, prompt_tokens: Sequence[int], answers: Sequence[Answer]) -> None:
        """Queue answers to one prompt.

        Raises:
            ConfigError: there are more answers than slots, or prompt and longest answer do not fit.
        """
        longest = max(answer.settings.max_new_tokens for answer in answers)
        if len(answers) > self.slots:
            raise ConfigError(f"{len(answers)} answers to one prompt, but the engine has {self.slots} slots")
        if not prompt_tokens or len(prompt_tokens) + longest > self.length:
            raise ConfigError(f"{len(prompt_tokens)} + {longest} tokens, but a slot has room for {self.length}")
        for answer in answers:
            answer.prompt_tokens = list(prompt_tokens)
            answer._text = AnswerText(self.backbone.chat, answer.settings.stop)
        self._waiting.append(_Group(answers=list(answers)))

    def cancel(self, answer: Answer) -> None:
        """Stop drawing an answer; its slot is free at the next step."""
        answer.ended = True
        for groups in (self._waiting, self._reading):
            for group in groups:
                if answer in group.answers:
                    group.answers.remove(answer)
                    if not group.answers:
                        groups.remove(group)
                    return
        if answer in self._running:
            self._leave(self._running.index(answer))

    @property
    def running(self) -> int:
        """Number of answers that have a slot."""
        return len(self._running) + sum(len(group.answers) for group in self._reading)

    @property
    def waiting(self) -> int:
        """Number of answers without a slot."""
        return sum(len(group.answers) for group in self._waiting)

    @property
    def cached(self) -> int:
        """Number of tokens in the key-value cache."""
        return sum(answer.length for answer in self._running) + sum(group.read for group in self._reading)

    # Steps --------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self) -> list[Drawn]:
        """Draw a token for each running answer, and read at most :data:`PREFILL` tokens of prompts."""
        drawn: list[Drawn] = []
        with self.backbone.autocast():
            if self._running:
                drawn += self._decode()
            drawn += self._prefill()
        for slot in range(len(self._running) - 1, -1, -1):
            if self._running[slot].ended:
                self._leave(slot)
        return drawn

    def _decode(self) -> list[Drawn]:
        running = self._running
        hidden, recorded = self._passes.read([a.tokens[-1] for a in running], [a.length - 1 for a in running])
        return list(self._draw(running, hidden, recorded))

    def _prefill(self) -> list[Drawn]:
        """Read prompts in pieces that do not depend on other requests; draw first tokens after finished prompts."""
        drawn: list[Drawn] = []
        budget = PREFILL
        while budget > 0:
            while self._waiting and self.running + len(self._waiting[0].answers) <= self.slots:
                for answer in self._waiting[0].answers:
                    answer.started = True
                self._reading.append(self._waiting.popleft())
            if not self._reading:
                break
            group = self._reading[0]
            prompt = group.answers[0].prompt_tokens
            piece = prompt[group.read : group.read + PREFILL]
            if len(piece) > budget:
                break
            budget -= len(piece)
            tokens = torch.tensor([piece], device=self.backbone.device)
            final, recorded = self._passes.run(input_ids=tokens, past_key_values=group.cache)
            group.read += len(piece)
            if recorded is not None:
                group.states.append(recorded[0])
            if group.read == len(prompt):
                self._reading.popleft()
                drawn += self._start(group, final[:, -1], recorded)
        return drawn

    def _start(self, group: _Group, hidden: Tensor, recorded: Tensor | None) -> list[Drawn]:
        """Fork a prompt's cache into the slots of its answers, and draw the first token of each."""
        count, states = len(group.answers), torch.cat(group.states) if group.states else None
        for answer in group.answers:
            self._passes.cache.fill(len(self._running), group.cache, 0, group.read)
            self._running.append(answer)
            answer.prompt_states = states
        last = None if recorded is None else recorded[:, -1].expand(count, -1)
        return list(self._draw(group.answers, hidden.expand(count, -1), last))

    def _draw(self, answers: Sequence[Answer], hidden: Tensor, recorded: Tensor | None) -> Iterator[Drawn]:
        logits = self.backbone.head(hidden).float()
        tokens = draw(logits, answers).tolist()
        logprobs = _logprobs(logits, answers, tokens)
        for row, (answer, token) in enumerate(zip(answers, tokens, strict=True)):
            answer.tokens.append(token)
            assert answer._text is not None
            ended = token in self.backbone.chat.end_tokens
            text, notes = ("", []) if ended else answer._text.push(token, logprobs.get(row))
            reason: Literal["stop", "length"] | None = None
            if ended or answer._text.stopped:
                reason = "stop"
            elif len(answer.tokens) >= answer.settings.max_new_tokens:
                reason = "length"
            if reason is not None:
                answer.ended = True
                rest, more = answer._text.end()
                text, notes = text + rest, notes + more
                reason = "stop" if answer._text.stopped else reason
            yield Drawn(
                answer=answer,
                token=token,
                text=text,
                logprobs=tuple(notes),
                finish_reason=reason,
                state=None if recorded is None else recorded[row],
            )

    def _leave(self, slot: int) -> None:
        """Free a slot and close the gap it leaves."""
        last = self._running.pop()
        if slot < len(self._running):
            self._passes.cache.move(len(self._running), slot, last.length)
            self._running[slot] = last


def draw(logits: Tensor, answers: Sequence[Answer]) -> Tensor:
    """One token per row with each answer's settings, ``[B, V]`` → ``[B]``; takes one number of each random stream."""
    settings = [answer.settings for answer in answers]
    penalised = [row for row, s in enumerate(settings) if s.presence_penalty or s.frequency_penalty]
    if penalised:
        logits = logits.clone()
        for row in penalised:
            tokens, counts = torch.tensor(answers[row].tokens, dtype=torch.int64, device=logits.device).unique(
                return_counts=True
            )
            s = settings[row]
            logits[row, tokens] -= s.presence_penalty + s.frequency_penalty * counts.to(logits.dtype)
    greedy = logits.argmax(dim=-1)
    random_rows = [s.temperature >= GREEDY for s in settings]
    if not any(random_rows):
        return greedy
    column = [[s.temperature if at_random else 1.0] for s, at_random in zip(settings, random_rows, strict=True)]
    scaled = logits / torch.tensor(column, dtype=logits.dtype, device=logits.device)
    cut = [row for row, s in enumerate(settings) if s.top_p < 1.0 and random_rows[row]]
    if cut:
        shares = torch.tensor([[settings[row].top_p] for row in cut], dtype=logits.dtype, device=logits.device)
        scaled[cut] = nucleus(scaled[cut], shares)
    uniform = torch.tensor([a.stream.random() for a in answers], dtype=torch.float64, device=logits.device)
    return torch.where(torch.tensor(random_rows, device=logits.device), invert(scaled, uniform), greedy)


def _logprobs(logits: Tensor, answers: Sequence[Answer], tokens: Sequence[int]) -> dict[int, TokenLogprobs]:
    """Log-probabilities for the rows whose settings request them."""
    given: dict[int, TokenLogprobs] = {}
    for row, answer in enumerate(answers):
        count = answer.settings.logprobs
        if count is None:
            continue
        row_logprobs = torch.log_softmax(logits[row], dim=-1)
        best = row_logprobs.topk(min(count, len(row_logprobs)))
        top = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        given[row] = TokenLogprobs(token=tokens[row], logprob=float(row_logprobs[tokens[row]]), top=top)
    return given
