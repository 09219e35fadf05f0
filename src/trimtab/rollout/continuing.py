"""Answers that have begun, continued by the model: what labels of steps from rollouts need."""

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
        begun: beginning of the answer to each prompt, by the prompt's id, with the separator of its last step.
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
    """``tries`` ways in which the model ends each begun answer; a rollout's text is the whole answer.

    Args:
        backbone: the model.
        config: how the rest is drawn.
        starts: prompts, and the beginning of an answer to each.
        tries: rests for each start.
        seed: equal seeds give equal rests.
        adapter: whose weights; None: the trunk.
        divide: calls its second argument with prompts of its first, in several processes; returns the answers to all
            prompts in order. None: this process draws them all.
    """
    named = [p.model_copy(update={"id": f"{p.id}#{number}"}) for number, (p, _) in enumerate(starts)]
    begun = {prompt.id: text for prompt, (_, text) in zip(named, starts, strict=True)}
    sampler = ContinuingSampler(backbone, config, begun)
    draw = partial(sampler.generate, adapter=adapter, seed=seed, group=tries)
    drawn = draw(named) if divide is None else divide(named, draw)
    drawn = [replace(rollout, text=begun[rollout.prompt.id] + rollout.text) for rollout in drawn]
    return [drawn[start : start + tries] for start in range(0, len(drawn), tries)]
