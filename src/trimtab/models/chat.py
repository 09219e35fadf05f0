"""Conversations to tokens, with an exact mask of what the model itself has to say.

A conversation is rendered with the model's chat template turn by turn. What is added between
"the template asks the assistant to speak" and "the assistant has spoken" is the assistant's
turn. The pieces are tokenised separately, exactly as they are met when sampling: prompt first,
then the answer. The mask is True on the answer's tokens up to and including the end-of-turn
token, and False on everything else, such as the line break a template puts after it.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from trimtab.errors import DataError, ModelError, TooLongError
from trimtab.records import Message


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoded:
    """Tokens of one conversation."""

    tokens: list[int]
    """Token ids."""
    response_mask: list[bool]
    """True: the assistant produces this token, and it counts in losses and rewards."""


class Chat:
    """Renders conversations for one model.

    Args:
        tokenizer: a tokenizer with a chat template.
        system: system message for conversations that bring none; None leaves it to the template.
        context: longest sequence in tokens.
        extra_end_tokens: further ids that end a turn (a model's generation config may name several).
    """

    def __init__(
        self, tokenizer: Any, *, context: int, system: str | None = None, extra_end_tokens: Sequence[int] = ()
    ) -> None:
        self.tokenizer = tokenizer
        self.context = context
        self.system = system
        self.end_tokens = frozenset({tokenizer.eos_token_id, *extra_end_tokens})
        self.end_token = self._find_end_token()

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Tokens up to and including the header after which the assistant speaks.

        Raises:
            TooLongError: longer than the context leaves room for one token of answer.
            DataError: the chat template refuses the conversation.
        """
        tokens = self._tokenize(self._render(self._with_system(messages), ask=True))
        if len(tokens) >= self.context:
            raise TooLongError(
                f"a prompt has {len(tokens)} tokens but model.context is {self.context}; raise model.context or "
                "shorten the prompt (nothing is truncated silently)"
            )
        return tokens

    def answer(self, prompt: Sequence[Message], text: str) -> Encoded:
        """Prompt and one answer, ended by the end-of-turn token; the mask is True on the answer only."""
        head = self.prompt(prompt)
        body = self.answer_tokens(prompt, text)
        return self._checked(Encoded(tokens=head + body, response_mask=[False] * len(head) + [True] * len(body)))

    def answer_tokens(self, prompt: Sequence[Message], text: str) -> list[int]:
        """Tokens of an answer as the model would produce it, end-of-turn included."""
        turns = self._with_system(prompt)
        asked = self._render(turns, ask=True)
        spoken = self._render([*turns, Message(role="assistant", content=text)], ask=False)
        return self._split_end(self._difference(asked, spoken))[0]

    def conversation(self, messages: Sequence[Message], *, untrained: Collection[int] = ()) -> Encoded:
        """A whole conversation; the mask is True on every assistant turn, end-of-turn included.

        Args:
            messages: the turns.
            untrained: places of assistant turns on which the mask is False.
        """
        turns = self._with_system(messages)
        tokens: list[int] = []
        mask: list[bool] = []
        done = ""
        for index, message in enumerate(turns):
            if message.role != "assistant":
                continue
            asked = self._render(turns[:index], ask=True)
            spoken = self._render(turns[: index + 1], ask=False)
            between = self._tokenize(self._difference(done, asked))
            body, rest = self._split_end(self._difference(asked, spoken))
            tokens += between + body + rest
            counts = index - (len(turns) - len(messages)) not in untrained  # a system turn may have come in front
            mask += [False] * len(between) + [counts] * len(body) + [False] * len(rest)
            done = spoken
        while mask and not mask[-1]:  # what follows the last answer teaches nothing
            tokens.pop()
            mask.pop()
        return self._checked(Encoded(tokens=tokens, response_mask=mask))

    def decode(self, tokens: Sequence[int], *, strip: bool = True) -> str:
        """The text of an answer, template tokens removed and, unless told otherwise, the white space at its ends."""
        body = list(tokens[:-1]) if tokens and tokens[-1] in self.end_tokens else list(tokens)
        text = self.tokenizer.decode(body, skip_special_tokens=True)
        return text.strip() if strip else text

    def _with_system(self, messages: Sequence[Message]) -> list[Message]:
        if self.system is not None and messages[0].role != "system":
            return [Message(role="system", content=self.system), *messages]
        return list(messages)

    def _render(self, messages: Sequence[Message], *, ask: bool) -> str:
        plain = [m.model_dump() for m in messages]
        try:
            return self.tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=ask)
        except Exception as error:
            roles = ", ".join(m.role for m in messages)
            raise DataError(f"the chat template refuses this conversation (roles: {roles}): {error}") from error

    def _difference(self, before: str, after: str) -> str:
        if not after.startswith(before):
            raise ModelError(
                "this chat template rewrites earlier turns when a later one is added, so the assistant's tokens "
                "cannot be told exactly; set model.chat_template to one that only appends"
            )
        return after[len(before) :]

    def _tokenize(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def _split_end(self, text: str) -> tuple[list[int], list[int]]:
        """Tokens of an assistant turn up to its end token, and those the template adds after it."""
        tokens = self._tokenize(text)
        last = max((i for i, token in enumerate(tokens) if token in self.end_tokens), default=None)
        if last is None:
            return [*tokens, self.end_token], []
        return tokens[: last + 1], tokens[last + 1 :]

    def _find_end_token(self) -> int:
        probe = [Message(role="user", content="a"), Message(role="assistant", content="b")]
        turn = self._tokenize(self._difference(self._render(probe[:1], ask=True), self._render(probe, ask=False)))
        ends = [token for token in turn if token in self.end_tokens]
        return ends[-1] if ends else self.tokenizer.eos_token_id

    def _checked(self, encoded: Encoded) -> Encoded:
        if len(encoded.tokens) > self.context:
            raise TooLongError(
                f"a conversation has {len(encoded.tokens)} tokens but model.context is {self.context}; raise "
                "model.context or drop the row (nothing is truncated silently)"
            )
        return encoded
