"""A sampler with scripted answers, for testing rewards, judges and monitors without a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from trimtab.records import Prompt, Rollout


class FakeSampler:
    """Implements :class:`trimtab.rollout.Sampler` with answers from a function.

    Tokens are the UTF-8 bytes of the text, and every log-probability is −1 nat. So rollouts have the right shape, but a
    policy-gradient step on them means nothing.

    Args:
        answer: the text for a prompt and the index of the answer in its group; a text that ends in ``…`` counts as cut
            at the token limit (finish reason ``length``).

    Attributes:
        requests: the prompts of every call, in order.

    Example::

        sampler = FakeSampler(lambda prompt, index: prompt.text.upper())
        rollouts = sampler.generate([Prompt.from_text("hello")], adapter=None, seed=0, group=2)
    """

    def __init__(self, answer: Callable[[Prompt, int], str]) -> None:
        self.answer = answer
        self.requests: list[list[Prompt]] = []

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        adapter: str | None = None,
        seed: int = 0,
        group: int = 1,
        weight_version: int = 0,
        progress: Callable[[int, int], None] | None = None,
        **_: Any,
    ) -> list[Rollout]:
        """``group`` answers to each prompt, ordered by prompt; the adapter and the seed make no difference."""
        self.requests.append(list(prompts))
        rollouts: list[Rollout] = []
        for prompt in prompts:
            for index in range(group):
                text = self.answer(prompt, index)
                tokens = list(text.encode())
                rollouts.append(
                    Rollout(
                        id=f"{prompt.id}/{weight_version}/{index}",
                        prompt=prompt,
                        prompt_tokens=list(prompt.text.encode()),
                        tokens=tokens,
                        logprobs=[-1.0] * len(tokens),
                        text=text,
                        finish_reason="length" if text.endswith("…") else "stop",
                        weight_version=weight_version,
                    )
                )
            if progress is not None:
                progress(len(rollouts), len(prompts) * group)
        return rollouts
