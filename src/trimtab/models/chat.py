"""From conversations to tokens, with an exact mask of the tokens that the model itself produces.

A conversation is rendered with the model's chat template and encoded as a whole, so its tokens are those of
transformers' ``apply_chat_template``. The prompt is the rendering that asks the assistant to speak; an answer is what
the rendered conversation adds to it. The mask is True on the answer's tokens up to and including the first end-of-turn
token after its text, and False on everything else, such as the line break that a template puts after it.

Two things keep training and sampling on the same tokens:

- Every prompt is a prefix of what is trained. Where a tokenizer merges the last characters of a prompt with the first
  of an answer, the two are encoded separately, as in sampling.
- A template may show an earlier turn differently once a later one follows; thinking templates drop earlier thoughts.
  Such a turn is trained in a separate row, rendered as when the model writes it (:meth:`Chat.examples`).
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from trimtab.errors import DataError, ModelError, TooLongError
from trimtab.models.control import THOUGHT, ControlTokens, Thoughts
from trimtab.records import Message

FinishReason = Literal["stop", "length"] | None
"""How a sampled answer ended, as in :class:`trimtab.records.Completion`; None: it was not sampled here."""

_PROBE = "qprobeq"
_USER, _ANSWER = Message(role="user", content=_PROBE), Message(role="assistant", content=_PROBE)
_PROBES = {
    "user": [_USER],
    "assistant": [_USER, _ANSWER],
    "system": [Message(role="system", content=_PROBE), _USER.model_copy(update={"content": "a"})],
    "tool": [
        _USER.model_copy(update={"content": "a"}),
        _ANSWER.model_copy(update={"content": "b"}),
        Message(role="tool", content=_PROBE),
    ],
}
"""The shortest conversation with each role."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoded:
    """Tokens of one conversation."""

    tokens: list[int]
    """Token ids."""
    response_mask: list[bool]
    """True: the assistant produces this token, and it counts in losses and rewards."""


_OPENS = re.compile(r"\s*<(think|thinking|thought|reasoning)>")
"""A thought at the start of an answer."""


class Chat:
    """Renders conversations for one model.

    Control tokens that people or models write in a message are encoded as text: only the template opens and closes
    turns (:class:`trimtab.models.control.ControlTokens`).

    Args:
        tokenizer: a tokenizer with a chat template.
        system: system message for conversations without one; None leaves it to the template.
        context: longest sequence in tokens.
        extra_end_tokens: further ids that end a turn (a model's generation config may name several).

    Raises:
        ModelError: the template cannot render a user and an assistant turn; an answer does not begin with the text
            that the template writes to ask for one; turns end with text that is not a token of this tokenizer; or the
            template writes text before an answer that its prompt lacks.
    """

    def __init__(
        self, tokenizer: Any, *, context: int, system: str | None = None, extra_end_tokens: Sequence[int] = ()
    ) -> None:
        self.tokenizer = tokenizer
        self.context = context
        self.system = system
        self.thoughts = Thoughts(str(tokenizer.chat_template))
        self.end_tokens = frozenset({tokenizer.eos_token_id, *extra_end_tokens})
        added = {int(i): token for i, token in tokenizer.added_tokens_decoder.items()}
        special = {t.content for t in added.values() if t.special} | {str(t) for t in tokenizer.all_special_tokens}
        frames, self._left_out = self._probe_roles()
        frame = "\0".join(frames)
        framing = {t.content for t in added.values() if t.content in frame and not THOUGHT.fullmatch(t.content)}
        self._control = ControlTokens(tokenizer, special | framing)
        self.end_token = self._find_end_token()
        self.end_tokens |= {self.end_token}
        self._silent = {i for i, t in added.items() if t.content in special and not THOUGHT.fullmatch(t.content)}
        self._silent |= self.end_tokens
        self._check_encoding()

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Tokens up to and including the header after which the assistant speaks.

        Raises:
            TooLongError: the prompt leaves no room for one token of answer in the context.
            DataError: the chat template cannot take the conversation.
        """
        tokens = self._control.encode(self._render(self._with_system(messages), ask=True))
        if len(tokens) >= self.context:
            raise TooLongError(
                f"a prompt has {len(tokens)} tokens but model.context is {self.context}; raise model.context or "
                "shorten the prompt (nothing is truncated silently)"
            )
        return tokens

    def answer(self, prompt: Sequence[Message], text: str, finish_reason: FinishReason = None) -> Encoded:
        """Prompt and one answer (see :meth:`answer_tokens`); the mask is True on the answer only."""
        head = self.prompt(prompt)
        body = self.answer_tokens(prompt, text, finish_reason)
        return self._checked(Encoded(tokens=head + body, response_mask=[False] * len(head) + [True] * len(body)))

    def answer_tokens(self, prompt: Sequence[Message], text: str, finish_reason: FinishReason = None) -> list[int]:
        """Tokens of an answer as the model would produce it.

        Args:
            prompt: the conversation before the answer.
            text: the answer.
            finish_reason: None: rendered by the template, which may add an empty thought or trim it. ``stop``: sampled,
                so the text follows the prompt as it was drawn. ``length``: likewise, but without an end-of-turn token,
                because the model never produced one. None with a thought that is opened but not closed: as ``length``.

        Raises:
            DataError: the chat template cannot take the conversation, or needs a thought that the answer lacks.
        """
        turns = self._with_system(prompt)
        prompt_text = self._render(turns, ask=True)
        cut = finish_reason == "length" or (finish_reason is None and self.thoughts.opened(text) is not None)
        rendered = finish_reason is None and not cut
        added = self._rendered(turns, prompt_text, text) if rendered else self._drawn(turns, prompt_text, text, cut=cut)
        body = self._continuation(prompt_text, added)
        return body if cut else self._ended(body)

    def unfinished_thought(self, prompt: Sequence[Message], text: str) -> bool:
        """Whether an answer is only a thought: one that does not end, or one with nothing after it.

        The thought may begin in the prompt, or with a common mark (``<think>``) that the template does not know.
        """
        if (unknown := _OPENS.match(text)) is not None:
            return not text.partition(f"</{unknown[1]}>")[2].strip()
        if self.thoughts.opened(text) is not None or self.thoughts.ends(text):
            return True
        turns = self._with_system(prompt)
        opened = self.thoughts.opened(self._header(turns, self._render(turns, ask=True))) is not None
        return opened and not self.thoughts.closed(text)

    def conversation(self, messages: Sequence[Message], *, untrained: Collection[int] = ()) -> Encoded:
        """A whole conversation up to its last answer; the mask is True on assistant turns, end-of-turn included.

        A turn that the template renders differently once another follows is not in the mask; see :meth:`examples`.
        """
        return self.examples(messages, untrained=untrained)[0]

    def examples(self, messages: Sequence[Message], *, untrained: Collection[int] = ()) -> list[Encoded]:
        """Examples from a demonstration: every assistant turn, once, as the model would write it.

        Args:
            messages: the conversation.
            untrained: indices of assistant turns that are context only; the mask is False on them.

        Returns:
            the whole conversation; and for each earlier answer that it does not render as the model would write it,
            the conversation up to that answer, with the mask on that answer only.

        Raises:
            TooLongError: the conversation is longer than the context.
            DataError: there is no turn to train, the chat template cannot take the conversation, or a thought is
                opened and not closed.
        """
        turns = self._with_system(messages)
        added = len(turns) - len(messages)  # 1 where the recipe's system message was put in front
        rows = []
        for place, message in enumerate(turns):
            if message.role != "assistant" or place - added in untrained:
                continue
            if not place:
                raise DataError(
                    "the conversation begins with an answer, which no prompt asks for; put a turn before it, mark it "
                    "with train: false, or set model.system"
                )
            if (mark := self.thoughts.opened(message.content)) is not None:
                raise DataError(f"an answer opens a thought with {mark} and does not close it; complete or remove it")
            rows.append(self.answer(turns[:place], message.content))
        if not rows:
            raise DataError("a conversation without an assistant turn to train on teaches nothing")
        tokens, mask, alone = rows[-1].tokens, list(rows[-1].response_mask), []
        for row in rows[:-1]:
            end = len(row.tokens)
            if tokens[:end] == row.tokens:
                mask[:end] = [shown or own for shown, own in zip(mask[:end], row.response_mask, strict=True)]
            else:
                alone.append(row)
        return [Encoded(tokens=tokens, response_mask=mask), *alone]

    def decode(self, tokens: Sequence[int], *, strip: bool = True) -> str:
        """The text of an answer without template tokens and, by default, without white space at its ends.

        Marks of thoughts are part of the text, even if they are special tokens.
        """
        text = self.tokenizer.decode([t for t in tokens if t not in self._silent], skip_special_tokens=False)
        return text.strip() if strip else text

    def token_texts(self) -> list[str]:
        """The text of each token alone, by id; a part of a character shows as the replacement character."""
        ids = range(len(self.tokenizer))
        return self.tokenizer.batch_decode([[i] for i in ids], clean_up_tokenization_spaces=False)

    def _with_system(self, messages: Sequence[Message]) -> list[Message]:
        if self.system is not None and messages[0].role != "system":
            return [Message(role="system", content=self.system), *messages]
        return list(messages)

    def _apply(self, messages: Sequence[Message], *, ask: bool) -> str:
        plain = [m.model_dump() for m in messages]
        return self.tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=ask)

    def _render(self, messages: Sequence[Message], *, ask: bool) -> str:
        """The rendered conversation, with control tokens in its messages hidden."""
        roles = ", ".join(m.role for m in messages)
        for role in self._left_out & {m.role for m in messages if m.content}:
            raise DataError(f"the chat template leaves out the {role} turn of this conversation (roles: {roles})")
        hidden = [
            m.model_copy(update={"content": self._control.hide(m.content, thoughts=m.role == "assistant")})
            for m in messages
        ]
        try:
            return self._apply(hidden, ask=ask)
        except Exception as error:
            raise DataError(f"the chat template refuses this conversation (roles: {roles}): {error}") from error

    def _rendered(self, turns: Sequence[Message], prompt_text: str, text: str) -> str:
        """The text that the template adds to ``prompt_text`` for an answer, end of turn included."""
        answer = Message(role="assistant", content=text)
        if (added := self._behind(turns, prompt_text, answer)) is not None:
            return added
        header = self._header(turns, prompt_text)
        mark = self.thoughts.opened(header)
        if mark is not None and not self.thoughts.closed(text):
            raise DataError(
                f"the chat template opens a thought ({mark}) when it asks for an answer, and this answer closes none; "
                "give answers with their thoughts, or set model.chat_template to one that opens no thought"
            )
        if mark is None and self.thoughts.closed(text):
            raise DataError(
                "the chat template ends the thought when it asks for an answer, and this answer brings one; remove the "
                "thought, or set model.chat_template to one that lets the model think"
            )
        if mark is not None and text.lstrip().startswith(mark):
            text = text.lstrip()[len(mark) :]
            text = text.lstrip("\n") if prompt_text.endswith("\n") else text
        if mark is None and (added := self._behind(turns[-1:], None, answer)) is not None:
            return added
        return self._drawn(turns, prompt_text, text, cut=False)

    def _drawn(self, turns: Sequence[Message], prompt_text: str, text: str, *, cut: bool) -> str:
        """The text that an unchanged answer adds to ``prompt_text``, with its end of turn unless it was cut."""
        added = self._behind(turns, prompt_text, _ANSWER) or self._behind(turns[-1:], None, _ANSWER)
        lead, _, after = (added or self._render([*turns, _ANSWER], ask=False)).rpartition(_PROBE)
        lead = "" if added is None else lead
        if (thought := self.thoughts.first(lead)) is not None:  # answers without thoughts; drawn ones have their own
            lead = lead[:thought].rstrip()
        return lead + self._control.hide(text, thoughts=True) + ("" if cut else after)

    def _behind(self, turns: Sequence[Message], prompt_text: str | None, answer: Message) -> str | None:
        """The text that the template adds to the prompt of ``turns`` for an answer; None: the prompt itself changes.

        Some templates move the system message to the last turn, which is no longer the last once it is answered. The
        addition is then taken from a rendering of the last turn alone.
        """
        try:
            prompt = self._render(turns, ask=True) if prompt_text is None else prompt_text
            spoken = self._render([*turns, answer], ask=False)
        except DataError:
            if prompt_text is None:
                return None
            raise
        return spoken[len(prompt) :] if spoken.startswith(prompt) else None

    def _header(self, turns: Sequence[Message], prompt_text: str) -> str:
        """The text that the template writes to ask for an answer."""
        if not self.thoughts.marks:
            return ""
        header = prompt_text[_common(self._render(turns, ask=False), prompt_text) :]
        if header or not turns:
            return header
        # a template that asks for an answer whether told to or not
        last = turns[-1].model_copy(update={"content": _PROBE})
        return self._render([*turns[:-1], last], ask=True).rpartition(_PROBE)[2]

    def _continuation(self, prompt_text: str, added: str) -> list[int]:
        """Tokens of ``added`` after ``prompt_text``.

        If the tokenizer would merge the two, ``added`` is encoded after other characters instead of alone, because
        SentencePiece would put a space before it.
        """
        for before in (prompt_text, "a", ".", "\n"):
            head, whole = self._control.encode(before), self._control.encode(before + added)
            if whole[: len(head)] == head:
                return whole[len(head) :]
        raise DataError(
            f"the tokens of an answer cannot be told from those of its prompt (it begins with "
            f"{self._control.plain(added)[:20]!r})"
        )

    def _ended(self, tokens: list[int]) -> list[int]:
        """An answer's tokens up to its end token; one is added if the template has none."""
        end = next((i for i, token in enumerate(tokens) if token in self.end_tokens), None)
        return [*tokens, self.end_token] if end is None else tokens[: end + 1]

    def _probe_roles(self) -> tuple[list[str], set[str]]:
        """The shortest conversations as the template renders them, and the roles that it leaves out."""
        frames, left_out = [], set()
        for role, messages in _PROBES.items():
            try:
                frames.append(self._apply(messages, ask=messages[-1].role != "assistant"))
            except Exception as error:
                if role in ("user", "assistant"):
                    raise ModelError(
                        f"the chat template cannot render a conversation of user and assistant ({error}); set "
                        "model.chat_template to one that can"
                    ) from error
                continue
            if _PROBE not in frames[-1]:
                left_out.add(role)
        if left_out & {"user", "assistant"}:
            raise ModelError(
                f"the chat template leaves out turns of {' and '.join(sorted(left_out))}; set model.chat_template to "
                "one that writes them"
            )
        return frames, left_out

    def _find_end_token(self) -> int:
        """The token that ends an assistant turn: the first that the template writes after every answer."""
        prompt_text, spoken = self._render([_USER], ask=True), self._render([_USER, _ANSWER], ask=False)
        before, _, after = spoken.rpartition(_PROBE)
        rest = prompt_text[_common(prompt_text, before) :]
        if rest and self.thoughts.first(rest) is None:
            raise ModelError(
                f"the chat template asks for an answer with {prompt_text[-40:]!r} but writes {before[-40:]!r} before "
                "one, so the model would see another prompt than in training; set model.chat_template to "
                "one that writes the same text"
            )
        lead = before[_common(prompt_text, before) :]
        if self.thoughts.first(lead) is None and (letters := self._control.letters(lead).strip()):
            raise ModelError(
                f"the chat template asks for an answer with {prompt_text[-40:]!r} and puts {lead!r} before one, so the "
                f"letters {letters!r} would be taken for a part of it; set model.chat_template to one that asks with "
                "all that it puts before an answer"
            )
        try:
            later = self._render([_USER, _ANSWER, _USER], ask=False).split(_PROBE)[2]
        except (DataError, IndexError):
            later = after
        always, last = self._control.written(after[: _common(after, later)]), self._control.written(after)
        ends = [end for end in always if end[1] in self.end_tokens] or always
        ends = ends or [end for end in last if end[1] in self.end_tokens]
        letters = self._control.letters(after[: ends[0][0]] if ends else after).strip()
        if letters:
            raise ModelError(
                f"the chat template ends an assistant's turn with {letters!r}, which is no token of this tokenizer, so "
                "the model would learn to write these letters; set model.chat_template to the one this model was "
                "trained with, or add the token to the tokenizer"
            )
        return ends[0][1] if ends else self.tokenizer.eos_token_id

    def _check_encoding(self) -> None:
        """Refuse a tokenizer that does not encode its control tokens to their ids."""
        for messages, ask in (([_USER], True), ([_USER, _ANSWER], False)):
            plain = [m.model_dump() for m in messages]
            expected = self.tokenizer.apply_chat_template(
                plain, tokenize=True, return_dict=False, add_generation_prompt=ask
            )
            if self._control.encode(self._render(messages, ask=ask)) != expected:
                raise ModelError(
                    "this tokenizer does not read all control tokens that the chat template writes as tokens (they may "
                    "be set to single_word), so turns could not be told from text; mend added_tokens in tokenizer.json"
                )

    def _checked(self, encoded: Encoded) -> Encoded:
        if len(encoded.tokens) > self.context:
            raise TooLongError(
                f"a conversation has {len(encoded.tokens)} tokens but model.context is {self.context}; raise "
                "model.context or drop the row (nothing is truncated silently)"
            )
        return encoded


def leave_out(left_out: dict[str, Any], row: str, error: DataError) -> None:
    """Record a row that cannot be encoded: count it in ``too_long``, or store its reason in ``unrendered`` by id."""
    if isinstance(error, TooLongError):
        left_out["too_long"] = left_out.get("too_long", 0) + 1
    else:
        left_out.setdefault("unrendered", {})[row] = str(error)


def _common(a: str, b: str) -> int:
    """Length of the common beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
