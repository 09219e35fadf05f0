"""The sampler protocol, and functions that all implementations share."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Literal, Protocol, runtime_checkable

from pydantic import Field
from torch import Tensor

from trimtab.config import Config
from trimtab.errors import TooLongError
from trimtab.models import Chat, FrozenStates
from trimtab.records import Prompt, Rollout

ValueHead = Callable[[Tensor], Tensor]
"""A critic's head on the policy's final hidden states: ``[B, H]`` float32 → ``[B, 1]``, reward units."""


class SamplerConfig(Config):
    """How answers are drawn."""

    engine: Literal["local", "vllm"] = "local"
    """``local``: with the model in this process. ``vllm``: with a vLLM engine in this process, which has its own copy
    of the weights and slightly different log-probabilities (see ``importance_cap``); tested on CPUs only."""
    temperature: float = Field(default=1.0, ge=0.0)
    """Logits are divided by it; 0 takes the most likely token (its log-probability is then reported at T = 1)."""
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    """Draw from the smallest set of tokens with at least this mass; 1: all tokens."""
    max_new_tokens: int = Field(default=64, ge=1)
    """Longest answer; a longer one is cut (finish_reason ``length``)."""
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """An answer ends where one of these strings appears, white space included (finish_reason ``stop``). The text of the
    answer ends before the string, its tokens end after it."""
    slots: int = Field(default=64, ge=1)
    """Answers decoded at the same time."""


class Sampler(Protocol):
    """Draws answers for the trainers."""

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
        """Draw ``group`` answers to each prompt.

        Args:
            prompts: what to answer.
            adapter: which adapter to draw with; None: the trunk.
            seed: equal seeds give equal answers.
            group: answers per prompt.
            weight_version: stored in each rollout.
            states: receives the frozen layers' states of each answer. A sampler without access to them adds nothing;
                they are then computed at first use.
            value_head: a critic's head on the policy's hidden states; its value before each token goes into
                :attr:`~trimtab.records.Rollout.values`. A sampler without access to the states leaves them empty.
            progress: called with (finished answers, all answers).

        Returns:
            rollouts ordered by prompt, then by index in the group, each with the log-probabilities of its tokens under
            the distribution they were drawn from.

        Raises:
            TooLongError: a prompt leaves no room for an answer in the context.
            DataError: the chat template cannot take a prompt.
        """
        ...


@runtime_checkable
class BackgroundSampler(Sampler, Protocol):
    """A sampler that draws in other processes, so this process can do other work meanwhile."""

    def start(
        self, prompts: Sequence[Prompt], *, adapter: str | None, seed: int, group: int = 1, weight_version: int = 0
    ) -> Callable[[], list[Rollout]]:
        """Start drawing with the current weights; the returned function waits for the answers.

        Arguments and errors are those of :meth:`Sampler.generate`.
        """
        ...


def by_prompt(prompts: Sequence[Prompt]) -> list[list[int]]:
    """Places of each distinct prompt, in the order of their first occurrence.

    One process must draw a prompt that occurs twice, so that its answers get successive indices.
    """
    places: dict[str, list[int]] = {}
    for place, prompt in enumerate(prompts):
        places.setdefault(prompt.id, []).append(place)
    return list(places.values())


def group_indices(prompts: Sequence[Prompt], group: int) -> Iterator[range]:
    """For each prompt, the indices of its ``group`` answers; a prompt that occurs twice gets different indices."""
    drawn: Counter[str] = Counter()
    for prompt in prompts:
        yield range(drawn[prompt.id], drawn[prompt.id] + group)
        drawn[prompt.id] += group


def encode_prompt(chat: Chat, prompt: Prompt, config: SamplerConfig) -> list[int]:
    """Tokens of a prompt.

    Raises:
        TooLongError: prompt and longest answer do not fit the context.
        DataError: the chat template cannot take the prompt.
    """
    tokens = chat.prompt(prompt.messages)
    if len(tokens) + config.max_new_tokens > chat.context:
        raise TooLongError(
            f"prompt {prompt.id} has {len(tokens)} tokens; with max_new_tokens {config.max_new_tokens} "
            f"that exceeds model.context {chat.context}; raise model.context or lower max_new_tokens"
        )
    return tokens


def stop_position(chat: Chat, tokens: Sequence[int], stop: Sequence[str]) -> int | None:
    """Where the first stop string begins in the text of an answer; None: there is none."""
    if not stop:
        return None
    text = chat.decode(tokens, strip=False)
    return min((place for string in stop if (place := text.find(string)) >= 0), default=None)


def is_complete(chat: Chat, config: SamplerConfig, tokens: Sequence[int]) -> bool:
    """True: an answer ends after these tokens."""
    return (
        len(tokens) >= config.max_new_tokens
        or tokens[-1] in chat.end_tokens
        or stop_position(chat, tokens, config.stop) is not None
    )


def make_rollout(
    chat: Chat,
    config: SamplerConfig,
    prompt: Prompt,
    *,
    index: int,
    weight_version: int,
    prompt_tokens: list[int],
    tokens: list[int],
    logprobs: list[float],
    values: Sequence[float] = (),
) -> Rollout:
    """The record of one answer: its text without template tokens and stop string, and how it ended."""
    stopped = stop_position(chat, tokens, config.stop)
    ended = tokens[-1] in chat.end_tokens or stopped is not None
    return Rollout(
        id=f"{prompt.id}/{weight_version}/{index}",
        prompt=prompt,
        prompt_tokens=prompt_tokens,
        tokens=tokens,
        logprobs=logprobs,
        values=list(values),
        text=chat.decode(tokens, strip=False)[:stopped].strip(),
        finish_reason="stop" if ended else "length",
        weight_version=weight_version,
    )
