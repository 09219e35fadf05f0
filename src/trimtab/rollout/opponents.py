"""Answers of an opponent of the policy: the reference, or the geometric mixture of both at each token.

The mixture reads every token with both models, each with its own cache, without merged adapters or packed weights. So
an answer costs somewhat more than two answers of the policy. A model whose cache has no slots reads the whole row again
for every token.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from trimtab.algos import mixture_logits
from trimtab.models import Role
from trimtab.models.batch import padded
from trimtab.records import Prompt, Rollout
from trimtab.rollout.drawing import answer_stream, invert
from trimtab.rollout.passes import Passes
from trimtab.rollout.protocol import SamplerConfig, encode_prompt, group_indices, is_complete, make_rollout
from trimtab.rollout.sampler import LocalSampler


class Opponent(Protocol):
    """Draws the answers that the policy's are compared with."""

    def draw(self, prompts: Sequence[Prompt], *, seed: int, group: int = 1, weight_version: int = 0) -> list[Rollout]:
        """``group`` answers to each prompt, ordered by prompt.

        Each has the log-probabilities of its tokens under the distribution they were drawn from.
        """
        ...


class MixtureOpponent:
    """Draws from π^(1−m)·ref^m, normalised at each token.

    The answers are drawn in this process, whatever ``sampler.engine`` is.

    Args:
        policy: π, with its weights as they are at each call.
        reference: ref, which may follow the policy.
        config: temperature, lengths, slots; ``top_p`` must be 1.
        share: m in [0, 1]; 0 is the policy itself, 1 the reference.
    """

    def __init__(self, policy: Role, reference: Role, config: SamplerConfig, *, share: float) -> None:
        self.policy, self.reference, self.config, self.share = policy, reference, config, share

    @torch.no_grad()
    def draw(self, prompts: Sequence[Prompt], *, seed: int, group: int = 1, weight_version: int = 0) -> list[Rollout]:
        """As :meth:`Opponent.draw`."""
        if self.share in (0.0, 1.0):
            role = self.policy if self.share == 0.0 else self.reference
            with role.computing():
                sampler = LocalSampler(role.backbone, self.config)
                rollouts = sampler.generate(
                    prompts, adapter=role.adapter, seed=seed, group=group, weight_version=weight_version
                )
        else:
            groups = enumerate(group_indices(prompts, group))
            places = [(number, index) for number, indices in groups for index in indices]
            rollouts = []
            for start in range(0, len(places), self.config.slots):
                rollouts += self._mixed(prompts, places[start : start + self.config.slots], seed, weight_version)
        return [replace(r, id=f"{r.id}/opponent") for r in rollouts]

    def _mixed(
        self, prompts: Sequence[Prompt], places: Sequence[tuple[int, int]], seed: int, weight_version: int
    ) -> list[Rollout]:
        """Draw the answers at ``places``, (prompt, index in its group), together."""
        config, chat = self.config, self.policy.backbone.chat
        rows = [encode_prompt(chat, prompts[number], config) for number, _ in places]
        streams = [answer_stream(seed, prompts[number].id, index) for number, index in places]
        tokens: list[list[int]] = [[] for _ in places]
        logprobs: list[list[float]] = [[] for _ in places]
        readers = [_reader(role, rows, config.max_new_tokens) for role in (self.policy, self.reference)]
        going = list(range(len(places)))
        while going:
            logits = mixture_logits(*(reader.next_logits(tokens) for reader in readers), share=self.share)
            logits = logits[going] / config.temperature
            uniform = torch.tensor([streams[row].random() for row in going], dtype=torch.float64, device=logits.device)
            drawn = invert(logits, uniform)
            chosen = logits.gather(-1, drawn[:, None]).squeeze(-1) - torch.logsumexp(logits, dim=-1)
            for row, token, logprob in zip(going, drawn.tolist(), chosen.tolist(), strict=True):
                tokens[row].append(token)
                logprobs[row].append(logprob)
            going = [row for row in going if not is_complete(chat, config, tokens[row])]
        return [
            make_rollout(
                chat,
                config,
                prompts[number],
                index=index,
                weight_version=weight_version,
                prompt_tokens=rows[row],
                tokens=tokens[row],
                logprobs=logprobs[row],
            )
            for row, (number, index) in enumerate(places)
        ]


class _Reader(Protocol):
    """One model reading rows that grow."""

    def next_logits(self, tokens: list[list[int]]) -> Tensor:
        """Logits of the next token of each row, ``[B, V]`` float32, given the tokens drawn so far."""
        ...


def _reader(role: Role, prompts: list[list[int]], room: int) -> _Reader:
    return _CachedRows(role, prompts, room) if role.backbone.layouts.slots else _WholeRows(role, prompts)


class _CachedRows:
    """Reads each token once. A row that has ended reads its last token again, at the same place."""

    def __init__(self, role: Role, prompts: list[list[int]], room: int) -> None:
        self.role, self.prompts = role, prompts
        self.passes = Passes(role.backbone, len(prompts), max(map(len, prompts)) + room)

    def next_logits(self, tokens: list[list[int]]) -> Tensor:
        with self.role.computing(), self.role.backbone.autocast():
            hidden = self._read_prompts() if not tokens[0] else self._read_last(tokens)
            return self.role.backbone.head(hidden).float()

    def _read_prompts(self) -> Tensor:
        prefill, tokens = DynamicCache(), padded(self.prompts).to(self.role.backbone.device)
        states, _ = self.passes.run(input_ids=tokens, past_key_values=prefill)
        for row, prompt in enumerate(self.prompts):
            self.passes.cache.fill(row, prefill, row, len(prompt))
        return states[range(len(self.prompts)), [len(prompt) - 1 for prompt in self.prompts]]

    def _read_last(self, tokens: list[list[int]]) -> Tensor:
        where = [len(prompt) + len(answer) - 1 for prompt, answer in zip(self.prompts, tokens, strict=True)]
        return self.passes.read([answer[-1] for answer in tokens], where)[0]


class _WholeRows:
    """Reads the whole row for every token."""

    def __init__(self, role: Role, prompts: list[list[int]]) -> None:
        self.role, self.prompts = role, prompts

    def next_logits(self, tokens: list[list[int]]) -> Tensor:
        rows = [prompt + answer for prompt, answer in zip(self.prompts, tokens, strict=True)]
        backbone = self.role.backbone
        with self.role.computing(), backbone.autocast():
            states = backbone.hidden(padded(rows).to(backbone.device), adapter=self.role.adapter)
            return backbone.head(states[range(len(rows)), [len(row) - 1 for row in rows]]).float()
