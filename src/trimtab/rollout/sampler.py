"""From prompts to rollouts with a local model: continuous batching over preallocated slots.

A start that all prompts share, such as a system message, is computed once. Each distinct prompt is
prefilled once and its cache is copied to every answer of its group. A finished answer frees its slot
at once for the next waiting answer. Each token comes with its log-probability under exactly the
distribution it was drawn from.

Each answer has its own random stream, seeded with (seed, prompt id, index in the group), and takes
one uniform number per token. So an answer does not depend on the rest of the batch, up to the last
bits of floating point in the logits.
"""

import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from trimtab.models import Backbone, FrozenStates
from trimtab.models.batch import padded
from trimtab.models.cache import repeated
from trimtab.models.kernels import kernels
from trimtab.models.layouts import continued
from trimtab.records import Prompt, Rollout
from trimtab.rollout.drawing import answer_stream, invert, nucleus
from trimtab.rollout.passes import Passes
from trimtab.rollout.protocol import (
    SamplerConfig,
    ValueHead,
    encode_prompt,
    group_indices,
    is_complete,
    make_rollout,
)

PREFILL = 1024
"""Prompt tokens, padding included, of one prefill pass; prompts of similar length go together."""

SHORTEST_PREFIX = 4
"""Smallest number of shared first tokens that get a pass of their own."""


@dataclass(kw_only=True, eq=False)
class _Running:
    """One answer being decoded."""

    prompt: Prompt
    prompt_tokens: list[int]
    index: int
    """Place in its group."""
    stream: random.Random
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    prompt_states: Tensor | None = None
    """``[P, H]``, the frozen layers' states of the prompt; None: not recorded."""
    states: list[Tensor] = field(default_factory=list)
    """The frozen layers' states of each answer token read so far, ``[H]`` each."""
    ended: bool = False
    """True: its last token is drawn; if states are recorded, this token is still to be read."""

    @property
    def length(self) -> int:
        return len(self.prompt_tokens) + len(self.tokens)


@dataclass(frozen=True, kw_only=True)
class _Call:
    """State of one call of :meth:`LocalSampler.generate`."""

    passes: Passes
    """The model and its slots; it records the output of the highest frozen layer."""
    value_head: ValueHead | None


class LocalSampler:
    """Samples with a backbone in this process.

    Args:
        backbone: the model; which adapter it computes with is chosen per call.
        config: temperature, lengths, slots.
    """

    def __init__(self, backbone: Backbone, config: SamplerConfig) -> None:
        self.backbone = backbone
        self.config = config

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        adapter: str | None,
        seed: int,
        group: int = 1,
        weight_version: int = 0,
        states: FrozenStates | None = None,
        value_head: ValueHead | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Rollout]:
        """As :meth:`trimtab.rollout.Sampler.generate`."""
        waiting = self._waiting(prompts, group, seed)
        answers = [answer for members in waiting for answer in members]
        if not answers:
            return []
        states = states if states is not None and states.backbone is self.backbone and states.active else None
        slots = min(max(self.config.slots, group), len(answers))
        longest = max(len(answer.prompt_tokens) for answer in answers) + self.config.max_new_tokens
        finished = 0
        with self.backbone.merged(adapter), self.backbone.autocast(), kernels().sampling(self.backbone) as decoder:
            passes = Passes(
                self.backbone,
                slots,
                longest,
                decoder=decoder,
                recorded_layer=0 if states is None else self.backbone.frozen_layers,
            )
            call = _Call(passes=passes, value_head=value_head)
            draw = self._draw_in_slots if self.backbone.layouts.slots else self._draw_by_prompt
            for ended in draw(waiting, slots, call):
                for answer in ended:
                    if states is not None and answer.prompt_states is not None:
                        sequence = answer.prompt_tokens + answer.tokens
                        states.add(sequence, answer.prompt_states, torch.stack(answer.states))
                        answer.prompt_states, answer.states = None, []
                finished += len(ended)
                if progress is not None:
                    progress(finished, len(answers))
        return [
            make_rollout(
                self.backbone.chat,
                self.config,
                answer.prompt,
                index=answer.index,
                weight_version=weight_version,
                prompt_tokens=answer.prompt_tokens,
                tokens=answer.tokens,
                logprobs=answer.logprobs,
                values=answer.values,
            )
            for answer in answers
        ]

    def prompt_tokens(self, prompt: Prompt) -> list[int]:
        """Tokens that an answer to the prompt continues."""
        return encode_prompt(self.backbone.chat, prompt, self.config)

    def _draw_in_slots(self, waiting: deque[list[_Running]], slots: int, call: _Call) -> Iterator[list[_Running]]:
        """Draw many answers at once, in slots that are refilled as answers end; yields answers as they end.

        Prompts are read when a quarter of the slots, or enough for one prompt's answers, are free. Otherwise every
        running answer gets one more token.
        """
        group = max((len(members) for members in waiting), default=0)
        running: list[_Running] = []
        prefix, prefix_states = self._prefix([members[0].prompt_tokens for members in waiting], call)
        while waiting or running:
            free = slots - len(running)
            if waiting and (not running or free >= max(group, slots // 4)):
                started: list[list[_Running]] = []
                while waiting and free >= len(waiting[0]):
                    started.append(waiting.popleft())
                    free -= len(started[-1])
                for groups in _similar(started):
                    running += self._prefill(groups, call, len(running), prefix, prefix_states)
            else:
                self._decode(running, call)
            for answer in self._leaving(running, call):
                yield [answer]

    def _draw_by_prompt(self, waiting: deque[list[_Running]], _: int, call: _Call) -> Iterator[list[_Running]]:
        """Draw answers prompt by prompt, for models whose cache has no slots; yields each prompt's answers."""
        while waiting:
            members = waiting.popleft()
            self._draw_group(members, call)
            yield members

    def _draw_group(self, members: list[_Running], call: _Call) -> None:
        """Draw all answers to one prompt.

        Rows stay of equal length (a finished answer is continued with padding), so the model's own cache can be used.
        If that does not give the results of plain rows either, every token reads the whole row again.
        """
        tokens = torch.tensor([member.prompt_tokens for member in members], device=self.backbone.device)
        going = list(range(len(members)))
        cache: Any = None
        while going:
            unread = tokens if cache is None else tokens[:, -1:]
            states, cache = continued(self.backbone, unread, cache, keep=self.backbone.layouts.own_cache)
            hidden, answers = states[going, -1], [members[row] for row in going]
            self._evaluate(answers, hidden, call)
            self._draw(answers, self.backbone.head(hidden).float())
            drawn = torch.zeros_like(tokens[:, :1])
            drawn[going, 0] = torch.tensor([answer.tokens[-1] for answer in answers], device=tokens.device)
            tokens = torch.cat([tokens, drawn], dim=1)
            going = [row for row in going if not self._done(members[row])]

    def _waiting(self, prompts: Sequence[Prompt], group: int, seed: int) -> deque[list[_Running]]:
        """The answers to draw, one list per prompt."""
        waiting: deque[list[_Running]] = deque()
        for prompt, indices in zip(prompts, group_indices(prompts, group), strict=True):
            tokens = self.prompt_tokens(prompt)
            waiting.append(
                [
                    _Running(
                        prompt=prompt,
                        prompt_tokens=tokens,
                        index=index,
                        stream=answer_stream(seed, prompt.id, index),
                    )
                    for index in indices
                ]
            )
        return waiting

    def _leaving(self, running: list[_Running], call: _Call) -> Iterator[_Running]:
        """Take finished answers out of ``running``, and close the gaps that they leave in the cache."""
        slot = 0
        while slot < len(running):
            answer = running[slot]
            answer.ended = answer.ended or self._done(answer)
            unread = call.passes.recorded is not None and len(answer.states) < len(answer.tokens)
            if not answer.ended or unread:
                slot += 1
                continue
            last = running.pop()
            if slot < len(running):
                call.passes.cache.move(len(running), slot, last.length)
                running[slot] = last
            yield answer

    def _done(self, answer: _Running) -> bool:
        return is_complete(self.backbone.chat, self.config, answer.tokens)

    def _prefix(self, prompts: list[list[int]], call: _Call) -> tuple[DynamicCache, Tensor | None]:
        """Keys and values of the tokens that all prompts begin with, and the recorded states of these tokens.

        Empty for a single prompt, and if the prompts share too few tokens.
        """
        prefix = DynamicCache()
        shared = _shared_start(prompts)
        if shared < SHORTEST_PREFIX:
            return prefix, None
        tokens = torch.tensor([prompts[0][:shared]], device=self.backbone.device)
        _, states = call.passes.run(input_ids=tokens, past_key_values=prefix)
        return prefix, None if states is None else states[0]

    def _prefill(
        self,
        groups: list[list[_Running]],
        call: _Call,
        first_slot: int,
        prefix: DynamicCache,
        prefix_states: Tensor | None,
    ) -> list[_Running]:
        """Run the prompts once each, fork their caches into slots, draw the first token of every answer."""
        shared = prefix.get_seq_length()
        lengths = [len(members[0].prompt_tokens) for members in groups]
        tokens = padded([members[0].prompt_tokens[shared:] for members in groups]).to(self.backbone.device)
        prefill = repeated(prefix, len(groups))
        final, recorded = call.passes.run(input_ids=tokens, past_key_values=prefill)
        last = torch.tensor(lengths, device=tokens.device) - shared - 1
        hidden = final[torch.arange(len(groups), device=tokens.device), last]
        rows: list[int] = []
        answers: list[_Running] = []
        for row, members in enumerate(groups):
            if recorded is not None:
                own = recorded[row, : lengths[row] - shared]
                prompt_states = own.clone() if prefix_states is None else torch.cat([prefix_states, own])
                for member in members:
                    member.prompt_states = prompt_states
            for member in members:
                call.passes.cache.fill(first_slot + len(answers), prefill, row, lengths[row])
                answers.append(member)
                rows.append(row)
        chosen = torch.tensor(rows, device=hidden.device)
        self._evaluate(answers, hidden[chosen], call)
        self._draw(answers, self.backbone.head(hidden).float()[chosen])
        return answers

    def _decode(self, running: list[_Running], call: _Call) -> None:
        """Read the last token of every running answer, and draw one more for those that have not ended."""
        hidden, recorded = call.passes.read(
            [answer.tokens[-1] for answer in running], [answer.length - 1 for answer in running]
        )
        if call.passes.recorded is not None:
            assert recorded is not None
            for answer, state in zip(running, recorded, strict=True):
                answer.states.append(state)
        going = [row for row, answer in enumerate(running) if not answer.ended]
        if going:
            hidden = hidden if len(going) == len(running) else hidden[going]
            answers = [running[row] for row in going]
            self._evaluate(answers, hidden, call)
            self._draw(answers, self.backbone.head(hidden).float())

    def _evaluate(self, answers: list[_Running], hidden: Tensor, call: _Call) -> None:
        """Append the critic's value of the states before the next tokens; ``hidden``: ``[B, H]``."""
        if call.value_head is None:
            return
        with torch.autocast(hidden.device.type, enabled=False):
            values = call.value_head(hidden.float()).squeeze(-1)
        for answer, value in zip(answers, values.tolist(), strict=True):
            answer.values.append(value)

    def _draw(self, answers: list[_Running], logits: Tensor) -> None:
        """Draw one token per row by inverting the cumulative distribution at the row's next uniform number."""
        temperature, top_p = self.config.temperature, self.config.top_p
        if temperature == 0.0:
            tokens = logits.argmax(dim=-1)
        else:
            logits = logits if temperature == 1.0 else logits / temperature
            if top_p < 1.0:
                logits = nucleus(logits, top_p)
            uniform = torch.tensor([a.stream.random() for a in answers], dtype=torch.float64, device=logits.device)
            tokens = invert(logits, uniform)
        chosen = logits.gather(-1, tokens[:, None]).squeeze(-1) - torch.logsumexp(logits, dim=-1)
        for answer, token, logprob in zip(answers, tokens.tolist(), chosen.tolist(), strict=True):
            answer.tokens.append(token)
            answer.logprobs.append(logprob)


def _shared_start(prompts: list[list[int]]) -> int:
    """Number of first tokens that all prompts share, leaving at least one token of each; 0 for a single prompt."""
    if len(prompts) < 2:
        return 0
    first, last = min(prompts), max(prompts)  # these differ first, so all prompts share what these two share
    length = min(len(first), len(last)) - 1
    return next((i for i in range(length) if first[i] != last[i]), length)


def _similar(groups: list[list[_Running]]) -> Iterator[list[list[_Running]]]:
    """Groups with prompts of similar length, at most :data:`PREFILL` padded prompt tokens together (one at least)."""
    ordered, start = sorted(groups, key=lambda members: len(members[0].prompt_tokens)), 0
    for stop in range(1, len(ordered) + 1):
        if stop == len(ordered) or len(ordered[stop][0].prompt_tokens) * (stop + 1 - start) > PREFILL:
            yield ordered[start:stop]
            start = stop
