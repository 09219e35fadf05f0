"""Continues answers that have begun; used to label steps from rollouts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from trimtab.errors import TooLongError
from trimtab.models import Backbone
from trimtab.records import Prompt, Rollout
from trimtab.rollout.protocol import SamplerConfig, encode_prompt
from trimtab.rollout.sampler import LocalSampler


class ContinuingSampler(LocalSampler):
    """Draws the rest of answers whose beginning is given.

    Args:
        backbone: the model.
        config: temperature, lengths, slots.
        begun: beginning of the answer to each prompt, by the prompt's id, including the separator after its last step.
    """

    def __init__(self, backbone: Backbone, config: SamplerConfig, begun: Mapping[str, str]) -> None:
        super().__init__(backbone, config)
        self.begun = dict(begun)

    def prompt_tokens(self, prompt: Prompt) -> list[int]:
        """Tokens of the prompt and of the answer's beginning."""
        chat, text = self.backbone.chat, self.begun[prompt.id]
        head = encode_prompt(chat, prompt, self.config)
        tokens = head + chat.answer_tokens(prompt.messages, text, "length")
        if len(tokens) + self.config.max_new_tokens > chat.context:
            raise TooLongError(
                f"prompt {prompt.id} and the beginning of its answer have {len(tokens)} tokens; with max_new_tokens "
                f"{self.config.max_new_tokens} that exceeds model.context {chat.context}; raise model.context"
            )
        return tokens


def continuations(
    backbone: Backbone,
    config: SamplerConfig,
    starts: Sequence[tuple[Prompt, str]],
    *,
    tries: int,
    seed: int,
    adapter: str | None = None,
    divide: Callable[[list[Prompt], Callable[[Sequence[Prompt]], list[Rollout]]], list[Rollout]] | None = None,
) -> list[list[Rollout]]:
    """Complete each begun answer ``tries`` times; a rollout's text is the whole answer.

    Args:
        backbone: the model.
        config: how the rest is drawn.
        starts: prompts, each with the beginning of an answer.
        tries: number of completions of each start.
        seed: equal seeds give equal completions.
        adapter: which adapter to draw with; None: the trunk.
        divide: (prompts, function) → calls the function with parts of the prompts in several processes and returns the
            answers to all prompts in order. None: this process draws them all.
    """
    named = [p.model_copy(update={"id": f"{p.id}#{number}"}) for number, (p, _) in enumerate(starts)]
    begun = {prompt.id: text for prompt, (_, text) in zip(named, starts, strict=True)}
    sampler = ContinuingSampler(backbone, config, begun)
    draw = partial(sampler.generate, adapter=adapter, seed=seed, group=tries)
    drawn = draw(named) if divide is None else divide(named, draw)
    drawn = [replace(rollout, text=begun[rollout.prompt.id] + rollout.text) for rollout in drawn]
    return [drawn[start : start + tries] for start in range(0, len(drawn), tries)]
