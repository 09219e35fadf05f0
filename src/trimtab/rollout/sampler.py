"""Prompts to rollouts with the model at hand: continuous batching over preallocated slots.

What all prompts begin with (a system message, say) is computed once. Each distinct prompt is
prefilled once and its cache copied to every answer of its group. A finished answer frees its slot
at once; the next waiting answer takes it. The log-probability of every produced token is kept,
under exactly the distribution it was drawn from; so is, where it is wanted, what the layers below
all adapters gave for every token (:attr:`trimtab.models.Backbone.drawn`).

Each answer draws from a random stream of its own, made from (seed, prompt id, index in the
group), one uniform number per token. So an answer does not depend on what else is in the batch,
up to the last bits of floating point in the logits.
"""

import hashlib
import random
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor
from transformers.cache_utils import DynamicCache

from trimtab.config import Config
from trimtab.errors import TooLongError
from trimtab.models import Backbone
from trimtab.models.packed import packed
from trimtab.records import Prompt, Rollout
from trimtab.rollout.cache import SlotCache
from trimtab.rollout.decoder import LlamaDecoder, decodes

BLOCK = 256
"""Tokens per block of the vocabulary when a cumulative distribution is inverted."""


PREFILL = 1024
"""Prompt tokens, padding included, that are read at once; prompts of like length go together."""

SHORTEST_PREFIX = 4
"""A common start of fewer tokens is not worth a pass of its own."""


class SamplerConfig(Config):
    """How answers are drawn."""

    engine: Literal["local", "vllm"] = "local"
    """``local``: with the model in this process. ``vllm``: with vLLM on the same accelerator; its log-probabilities
    differ a little, so set ``importance_cap`` for training. Tested with a stand-in for vLLM only."""
    temperature: float = Field(default=1.0, ge=0.0)
    """Logits are divided by it; 0 takes the most likely token (its log-probability is then reported at T = 1)."""
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    """Draw from the smallest set of tokens with at least this mass; 1 = all tokens."""
    max_new_tokens: int = Field(default=64, ge=1)
    """An answer is cut here (finish_reason ``length``)."""
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """An answer ends where one of these appears (finish_reason ``stop``), white space as it is written; its text ends
    before it, its tokens after."""
    slots: int = Field(default=64, ge=1)
    """Answers decoded at the same time."""


class Sampler(Protocol):
    """What draws answers for the trainers."""

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        adapter: str | None,
        seed: int,
        group: int = 1,
        weight_version: int = 0,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Rollout]:
        """``group`` answers to each prompt, ordered by prompt, each with the log-probabilities it was drawn with."""
        ...


def make_sampler(backbone: Backbone, config: SamplerConfig) -> Sampler:
    """The sampler that ``config.engine`` names."""
    if config.engine == "vllm":
        from trimtab.rollout.vllm import VllmSampler

        return VllmSampler(backbone, config)
    return LocalSampler(backbone, config)


@dataclass(kw_only=True)
class _Running:
    """One answer being decoded."""

    prompt: Prompt
    prompt_tokens: list[int]
    index: int
    stream: random.Random
    settings: SamplerConfig
    ending: int | None = None
    """Where a stop string begins in the text, once one has appeared."""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    prompt_states: Tensor | None = None
    """``[P, H]``, what the frozen layers gave for the prompt, where that is kept."""
    states: list[Tensor] = field(default_factory=list)
    """The same for each token of the answer that was read, ``[H]`` each: all but the last."""
    ended: bool = False
    """Nothing more is drawn; its last token is yet to be read for its states."""

    @property
    def length(self) -> int:
        return len(self.prompt_tokens) + len(self.tokens)


class _Tap:
    """What comes out of the layer below all adapters, as it passes."""

    def __init__(self) -> None:
        self.states: Tensor | None = None
        """``[B, T, H]`` of the last pass, or ``[B, H]`` where it read one token of each row."""

    def __call__(self, _module: Any, _inputs: Any, output: Any) -> None:
        self.states = output[0] if isinstance(output, tuple) else output

    def take(self) -> Tensor:
        """Hand the states over."""
        assert self.states is not None
        taken, self.states = self.states, None
        return taken


class LocalSampler:
    """Samples with a backbone in this process.

    Args:
        backbone: the model; what it computes with is chosen per call by ``adapter``.
        config: temperature, lengths, slots.
    """

    def __init__(self, backbone: Backbone, config: SamplerConfig) -> None:
        self.backbone = backbone
        self.config = config
        self.value_head: torch.nn.Module | None = None
        """A critic on the policy's own states (``[B, H]`` → ``[B, 1]``), whose values are then kept beside the
        log-probabilities: the states they are of pass by here."""
        self._decodes: bool | None = None

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        adapter: str | None,
        seed: int,
        group: int = 1,
        weight_version: int = 0,
        progress: Callable[[int, int], None] | None = None,
        settings: Mapping[str, SamplerConfig] | None = None,
    ) -> list[Rollout]:
        """Sample ``group`` answers to each prompt.

        Args:
            prompts: what to answer.
            adapter: whose weights; None: the trunk.
            seed: equal seeds give equal answers.
            group: answers per prompt.
            weight_version: stored in each rollout.
            progress: called with (finished answers, all answers).
            settings: for the prompts whose ids are named, how they are answered (``slots`` is not read).

        Returns:
            rollouts ordered by prompt, then by index in the group.

        Raises:
            TooLongError: a prompt leaves no room in the context.
            DataError: the chat template cannot take a prompt.
        """
        context = self.backbone.chat.context
        waiting: deque[list[_Running]] = deque()
        running: list[_Running] = []
        order: dict[int, int] = {}
        asked: Counter[str] = Counter()
        finished: dict[int, Rollout] = {}
        for prompt in prompts:
            tokens = self.backbone.chat.prompt(prompt.messages)
            own = (settings or {}).get(prompt.id, self.config)
            if len(tokens) + own.max_new_tokens > context:
                raise TooLongError(
                    f"prompt {prompt.id} has {len(tokens)} tokens; with max_new_tokens {own.max_new_tokens} "
                    f"that exceeds model.context {context}; raise model.context or lower max_new_tokens"
                )
            members = [
                _Running(prompt=prompt, prompt_tokens=tokens, index=i, stream=_stream(seed, prompt.id, i), settings=own)
                for i in range(asked[prompt.id], asked[prompt.id] + group)
            ]
            asked[prompt.id] += group  # a prompt given twice gets different answers
            for member in members:
                order[id(member)] = len(order)
            waiting.append(members)
        total = len(order)
        if total == 0:
            return []
        everyone = [member for members in waiting for member in members]  # keeps ids alive
        slots = min(max(self.config.slots, group), total)
        longest = max(len(m.prompt_tokens) + m.settings.max_new_tokens for m in everyone)
        cache = SlotCache(len(self.backbone.layers), slots, longest)

        def finish(answer: _Running) -> None:
            if answer.prompt_states is not None and self.backbone.drawn is not None:
                states = torch.stack(answer.states)
                self.backbone.drawn.keep(answer.prompt_tokens + answer.tokens, answer.prompt_states, states)
                answer.prompt_states, answer.states = None, []
            ended = answer.tokens[-1] in self.backbone.chat.end_tokens or answer.ending is not None
            finished[order[id(answer)]] = Rollout(
                id=f"{answer.prompt.id}/{weight_version}/{answer.index}",
                prompt=answer.prompt,
                prompt_tokens=answer.prompt_tokens,
                tokens=answer.tokens,
                logprobs=answer.logprobs,
                values=answer.values,
                text=self.backbone.chat.decode(answer.tokens, strip=False)[: answer.ending].strip(),
                finish_reason="stop" if ended else "length",
                weight_version=weight_version,
            )
            if progress is not None:
                progress(len(finished), total)

        def done(answer: _Running) -> bool:
            if answer.settings.stop:
                text = self.backbone.chat.decode(answer.tokens, strip=False)
                found = [place for stop in answer.settings.stop if (place := text.find(stop)) >= 0]
                answer.ending = min(found, default=None)
            return (
                len(answer.tokens) >= answer.settings.max_new_tokens
                or answer.ending is not None
                or answer.tokens[-1] in self.backbone.chat.end_tokens
            )

        with (
            self.backbone.merged(adapter),
            self.backbone.autocast(),
            self._laid_out() as decoder,
            self._tapped() as tap,
        ):
            prefix, before = self._prefix([members[0].prompt_tokens for members in waiting], tap)
            while waiting or running:
                free = slots - len(running)
                if waiting and (not running or free >= max(group, slots // 4)):
                    started: list[list[_Running]] = []
                    while waiting and free >= len(waiting[0]):
                        started.append(waiting.popleft())
                        free -= len(started[-1])
                    for groups in _alike(started):
                        running += self._prefill(groups, prefix, cache, len(running), tap, before)
                else:
                    self._decode(running, cache, decoder, tap)
                slot = 0
                while slot < len(running):  # close the gaps finished answers leave
                    answer = running[slot]
                    answer.ended = answer.ended or done(answer)
                    unread = tap is not None and len(answer.states) < len(answer.tokens)
                    if not answer.ended or unread:  # where states are kept, its last token is read before it leaves
                        slot += 1
                        continue
                    finish(answer)
                    last = running.pop()
                    if slot < len(running):
                        cache.move(len(running), slot, last.length)
                        running[slot] = last
        return [finished[i] for i in range(total)]

    @contextmanager
    def _tapped(self) -> Iterator[_Tap | None]:
        """What the frozen layers give, caught on the way; None where there are none or nobody wants it."""
        below = self.backbone.tap
        if below == 0:
            yield None
            return
        tap = _Tap()
        hook = self.backbone.layers[below - 1].register_forward_hook(tap)
        try:
            yield tap
        finally:
            hook.remove()

    def _prefix(self, prompts: list[list[int]], tap: _Tap | None) -> tuple[DynamicCache, Tensor | None]:
        """Keys and values of the tokens that all prompts begin with, and the tapped states of these tokens.

        Empty for one prompt, or few such tokens.
        """
        prefix = DynamicCache()
        shared = 0
        if len(prompts) > 1:
            first, last = min(prompts), max(prompts)  # the two that differ first: what they share, all share
            length = min(len(first), len(last)) - 1  # at least one token is left to read each answer's start from
            shared = next((i for i in range(length) if first[i] != last[i]), length)
        if shared >= SHORTEST_PREFIX:
            tokens = torch.tensor([prompts[0][:shared]], device=self.backbone.device)
            self.backbone.model.base_model(input_ids=tokens, past_key_values=prefix, use_cache=True)
            return prefix, None if tap is None else tap.take()[0]
        return prefix, None

    def _prefill(
        self,
        groups: list[list[_Running]],
        prefix: DynamicCache,
        cache: SlotCache,
        first_slot: int,
        tap: _Tap | None,
        before: Tensor | None,
    ) -> list[_Running]:
        """Run the prompts once each, fork their caches into slots, draw the first token of every answer."""
        shared = prefix.get_seq_length()
        lengths = [len(members[0].prompt_tokens) for members in groups]
        tokens = torch.zeros(len(groups), max(lengths) - shared, dtype=torch.int64)
        for row, members in enumerate(groups):
            tokens[row, : lengths[row] - shared] = torch.tensor(members[0].prompt_tokens[shared:])
        tokens = tokens.to(self.backbone.device)
        prefill = DynamicCache()
        if shared:
            everyone = (len(groups), -1, -1, -1)
            layers: list[Any] = prefix.layers
            for number, layer in enumerate(layers):
                prefill.update(layer.keys.expand(*everyone), layer.values.expand(*everyone), number)
        output = self.backbone.model.base_model(input_ids=tokens, past_key_values=prefill, use_cache=True)
        last = torch.tensor(lengths, device=tokens.device) - shared - 1
        states = output.last_hidden_state[torch.arange(len(groups), device=tokens.device), last]
        rows: list[int] = []
        answers: list[_Running] = []
        tapped = None if tap is None else tap.take()
        for row, members in enumerate(groups):
            if tapped is not None:
                own = tapped[row, : lengths[row] - shared]
                prompt_states = own.clone() if before is None else torch.cat([before, own])
                for member in members:
                    member.prompt_states = prompt_states
            for member in members:
                cache.fill(first_slot + len(answers), prefill, row, lengths[row])
                answers.append(member)
                rows.append(row)
        chosen = torch.tensor(rows, device=states.device)
        self._value(answers, states[chosen])
        self._draw(answers, self.backbone.head(states).float()[chosen])
        return answers

    @contextmanager
    def _laid_out(self) -> Iterator[LlamaDecoder | None]:
        """Weights laid out for few rows at a time, and the model written out for them where it is of that kind."""
        if self._decodes is None:
            self._decodes = decodes(self.backbone)
        if self._decodes:
            with packed(self.backbone.head):
                yield LlamaDecoder(self.backbone.model.base_model, tap=self.backbone.tap)
        else:
            with packed(self.backbone.model) if self.backbone.dtype == torch.float32 else nullcontext():
                yield None

    def _decode(
        self, running: list[_Running], cache: SlotCache, decoder: LlamaDecoder | None, tap: _Tap | None
    ) -> None:
        """Read the last token of every running answer, and draw one more for those that have not ended."""
        device = self.backbone.device
        where = torch.tensor([answer.length - 1 for answer in running], device=device)
        tokens = torch.tensor([answer.tokens[-1] for answer in running], device=device)
        if decoder is not None:
            states = decoder(tokens, where, cache)
            tapped = decoder.tapped
        else:
            seen = int(where.max()) + 1
            cache.place(where, seen)
            mask = torch.arange(seen, device=device)[None, :] <= where[:, None]
            output = self.backbone.model.base_model(
                input_ids=tokens[:, None],
                position_ids=where[:, None],
                attention_mask=mask[:, None, None, :],
                past_key_values=cache,
                use_cache=True,
            )
            states = output.last_hidden_state[:, 0]
            tapped = None if tap is None else tap.take()[:, 0]
        if tapped is not None:
            for answer, state in zip(running, tapped, strict=True):
                answer.states.append(state)
        going = [row for row, answer in enumerate(running) if not answer.ended]
        if going:
            states = states if len(going) == len(running) else states[going]
            answers = [running[row] for row in going]
            self._value(answers, states)
            self._draw(answers, self.backbone.head(states).float())

    def _value(self, answers: list[_Running], states: Tensor) -> None:
        """Keep what the critic, if there is one here, says of the states before the next tokens, ``[B, H]``."""
        if self.value_head is None:
            return
        with torch.autocast(states.device.type, enabled=False):
            values = self.value_head(states.float()).squeeze(-1)
        for answer, value in zip(answers, values.tolist(), strict=True):
            answer.values.append(value)

    def _draw(self, answers: list[_Running], logits: Tensor) -> None:
        """Draw one token per row by inverting the cumulative distribution at the row's next uniform number."""
        kinds: dict[tuple[float, float], list[int]] = {}
        for row, answer in enumerate(answers):
            kinds.setdefault((answer.settings.temperature, answer.settings.top_p), []).append(row)
        for (temperature, top_p), rows in kinds.items():
            mine = [answers[row] for row in rows]
            part = logits if len(kinds) == 1 else logits[rows]
            if temperature == 0.0:
                tokens = part.argmax(dim=-1)
            else:
                part = part if temperature == 1.0 else part / temperature
                if top_p < 1.0:
                    part = _nucleus(part, top_p)
                uniform = torch.tensor([a.stream.random() for a in mine], dtype=torch.float64, device=part.device)
                tokens = _invert(part, uniform)
            chosen = part.gather(-1, tokens[:, None]).squeeze(-1) - torch.logsumexp(part, dim=-1)
            for answer, token, logprob in zip(mine, tokens.tolist(), chosen.tolist(), strict=True):
                answer.tokens.append(token)
                answer.logprobs.append(logprob)


def _alike(groups: list[list[_Running]]) -> Iterator[list[list[_Running]]]:
    """Groups with prompts about as long, at most :data:`PREFILL` padded tokens of them together (one at least)."""
    ordered, start = sorted(groups, key=lambda members: len(members[0].prompt_tokens)), 0
    for stop in range(1, len(ordered) + 1):
        if stop == len(ordered) or len(ordered[stop][0].prompt_tokens) * (stop + 1 - start) > PREFILL:
            yield ordered[start:stop]
            start = stop


def _invert(logits: Tensor, uniform: Tensor) -> Tensor:
    """The token at which the cumulative distribution passes ``uniform``: ``[B, V]``, ``[B]`` → ``[B]``.

    In two steps, first among blocks of the vocabulary and then inside one, so that no cumulative sum runs
    over the whole of it.
    """
    rows, size = logits.shape
    shares = torch.exp(logits - logits.max(dim=-1, keepdim=True).values)
    padded = torch.nn.functional.pad(shares, (0, -size % BLOCK)).view(rows, -1, BLOCK)
    blocks = padded.sum(dim=-1).double().cumsum(dim=-1)
    # Scaling by the total, not dividing by it, absorbs rounding: a uniform number < 1 always falls inside.
    goal = uniform * blocks[:, -1]
    block = torch.searchsorted(blocks, goal[:, None], right=True).clamp(max=blocks.shape[1] - 1)
    before = torch.where(block > 0, blocks.gather(1, (block - 1).clamp(min=0)), 0.0)
    inside = padded.gather(1, block[..., None].expand(-1, 1, BLOCK)).squeeze(1).double().cumsum(dim=-1)
    place = torch.searchsorted(inside, goal[:, None] - before, right=True)
    # Rounding between the two sums can step past the block's last token that has any probability.
    last = (padded.gather(1, block[..., None].expand(-1, 1, BLOCK)).squeeze(1) > 0).long()
    last = BLOCK - 1 - last.flip(-1).argmax(dim=-1, keepdim=True)
    return (block * BLOCK + torch.minimum(place, last)).squeeze(1)


def _nucleus(logits: Tensor, top_p: float) -> Tensor:
    """Logits of the smallest set of most likely tokens with mass ≥ ``top_p``; −∞ for the others."""
    ordered, index = logits.sort(dim=-1, descending=True)
    mass = torch.softmax(ordered, dim=-1)
    kept = torch.where(mass.cumsum(dim=-1) - mass < top_p, ordered, torch.full_like(ordered, -torch.inf))
    return torch.empty_like(logits).scatter(-1, index, kept)


def _stream(seed: int, prompt_id: str, index: int) -> random.Random:
    digest = hashlib.sha256(f"{seed}|{prompt_id}|{index}".encode()).digest()
    return random.Random(int.from_bytes(digest[:8], "big"))
