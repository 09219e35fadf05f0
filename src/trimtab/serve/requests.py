"""Request parameters, in three classes: supported, accepted without effect, and refused.

A parameter that would change an answer is obeyed or refused, never silently ignored. Parameters of the second class
concern the caller's account, not the answer.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from trimtab.records import Message
from trimtab.rollout.engine import AnswerSettings
from trimtab.serve.errors import ApiError
from trimtab.storage.form import whole_characters

Text = Annotated[str, StringConstraints(strict=True), AfterValidator(whole_characters)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
MOST_ANSWERS = 8
"""Largest ``n``."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class TextPart(_Part):
    """A part of a message."""

    type: Literal["text"]
    """Type of the part: only ``text`` is supported."""
    text: Text
    """The text."""


class ChatMessage(_Part):
    """One turn."""

    role: Literal["system", "developer", "user", "assistant"]
    """Who speaks; ``developer`` is read as ``system``."""
    content: Text | Annotated[list[TextPart], Field(min_length=1)]
    """The text."""
    name: Text | None = None
    """Accepted without effect."""
    refusal: Text | None = None
    """Part of an earlier answer; accepted without effect."""
    annotations: list[Any] | None = None
    """Part of an earlier answer; accepted without effect."""
    tool_calls: None = None
    """Refused."""
    function_call: None = None
    """Refused."""
    audio: None = None
    """Refused."""

    @property
    def message(self) -> Message:
        """The turn as a record."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Message(role="system" if self.role == "developer" else self.role, content=text)


class StreamOptions(_Part):
    """How an answer is streamed."""

    include_usage: bool | None = None
    """True: a last chunk reports the number of tokens."""
    include_obfuscation: Literal[False] | None = None
    """Padding is never sent, so only False is accepted."""


class TextFormat(_Part):
    """The only supported format."""

    type: Literal["text"]
    """Type of the format: only ``text`` is supported."""


class ModerationMode(_Part):
    """What to do with a flagged text."""

    mode: Literal["score", "block"]
    """Both values give a report; the server's settings decide whether a flagged text is blocked."""


class ModerationPolicy(_Part):
    """Modes for input and output."""

    input: ModerationMode | None = None
    """The conversation."""
    output: ModerationMode | None = None
    """The answer."""


class ModerationOptions(_Part):
    """Asks for the guard's verdicts."""

    model: Text
    """Accepted without effect: the server has one guard."""
    policy: ModerationPolicy | None = None
    """Accepted without effect: the server has its own policy."""


class ChatRequest(_Part):
    """The body of ``POST /v1/chat/completions``."""

    model: Text
    """A model of ``/v1/models``."""
    messages: list[ChatMessage] = Field(min_length=1, max_length=2048)
    """The conversation; its last turn is not the assistant's."""
    n: int | None = Field(None, ge=1, le=MOST_ANSWERS)
    """Number of answers."""
    stream: bool | None = None
    """True: send the answer while it is drawn."""
    stream_options: StreamOptions | None = None
    """Options of a streamed response; only allowed with ``stream``."""
    max_tokens: int | None = Field(None, ge=1)
    """Older name of ``max_completion_tokens``."""
    max_completion_tokens: int | None = Field(None, ge=1)
    """Most tokens of an answer, including its end token."""
    temperature: Finite | None = Field(None, ge=0.0, le=2.0)
    """Default 1; below 0.0001 the most likely token is taken."""
    top_p: Finite | None = Field(None, gt=0.0, le=1.0)
    """Nucleus sampling: probability mass of the tokens to draw from; default 1."""
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    """Equal seeds give equal answers."""
    stop: Annotated[Text, Field(min_length=1)] | list[Annotated[Text, Field(min_length=1)]] | None = None
    """Up to four strings; the answer ends before the first of them."""
    presence_penalty: Finite | None = Field(None, ge=-2.0, le=2.0)
    """Subtracted from the logits of tokens that the answer contains."""
    frequency_penalty: Finite | None = Field(None, ge=-2.0, le=2.0)
    """Subtracted from a token's logit once for each time that the answer contains the token."""
    logprobs: bool | None = None
    """True: return the log-probabilities of the answer's tokens, before penalties, temperature and top-p."""
    top_logprobs: int | None = Field(None, ge=0, le=20)
    """Return log-probabilities of this many most likely tokens too; needs ``logprobs``."""
    moderation: ModerationOptions | None = None
    """If given, the response reports the guard's verdicts."""
    user: Text | None = None
    """Accepted without effect."""
    safety_identifier: Text | None = None
    """Accepted without effect."""
    prompt_cache_key: Text | None = None
    """Accepted without effect."""
    metadata: dict[str, Text] | None = None
    """Accepted without effect."""
    store: bool | None = None
    """Accepted without effect; the server stores nothing."""
    service_tier: Text | None = None
    """Accepted without effect."""
    response_format: TextFormat | None = None
    """Formats other than text are refused."""
    modalities: list[Literal["text"]] | None = None
    """Modalities other than text are refused."""
    tools: None = None
    """Refused."""
    tool_choice: None = None
    """Refused."""
    parallel_tool_calls: None = None
    """Refused."""
    functions: None = None
    """Refused."""
    function_call: None = None
    """Refused."""
    audio: None = None
    """Refused."""
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None
    """Refused unless empty."""

    @model_validator(mode="before")
    @classmethod
    def _whole_numbers(cls, data: Any) -> Any:
        """Convert whole floats: clients with a single number type write 1.0 for 1."""
        if isinstance(data, dict):
            return {k: int(v) if isinstance(v, float) and v.is_integer() else v for k, v in data.items()}
        return data

    @property
    def answers(self) -> int:
        """Number of answers requested."""
        return self.n or 1

    @property
    def turns(self) -> tuple[Message, ...]:
        """The conversation.

        Raises:
            ApiError: the conversation ends with an answer.
        """
        turns = tuple(message.message for message in self.messages)
        if turns[-1].role == "assistant":
            param = f"messages[{len(turns) - 1}]"
            raise ApiError(400, f"{param}: the last turn is the assistant's; end with the user's", param=param)
        return turns

    def settings(self, prompt_tokens: int, context: int, default: int) -> AnswerSettings:
        """Settings for drawing the answers.

        Args:
            prompt_tokens: length of the prompt.
            context: context length of the model.
            default: maximum length of an answer if the request gives none.

        Raises:
            ApiError: parameters contradict each other, or prompt and answer do not fit the context.
        """
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        if len(stop) > 4:
            raise ApiError(400, f"stop: {len(stop)} strings, but at most 4 are allowed", param="stop")
        if self.top_logprobs is not None and not self.logprobs:
            raise ApiError(400, "top_logprobs needs logprobs: true", param="top_logprobs")
        if self.stream_options is not None and not self.stream:
            raise ApiError(400, "stream_options needs stream: true", param="stream_options")
        room = context - prompt_tokens
        longest = self.max_completion_tokens or self.max_tokens
        if longest is not None and longest > room:
            name = "max_completion_tokens" if self.max_completion_tokens else "max_tokens"
            raise ApiError(
                400,
                f"the prompt has {prompt_tokens} tokens, and with {name} {longest} that exceeds the context of "
                f"{context} tokens; shorten the conversation, or ask for at most {room}",
                param=name,
                code="context_length_exceeded",
            )
        return AnswerSettings(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            max_new_tokens=longest or min(default, room),
            stop=stop,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            logprobs=(self.top_logprobs or 0) if self.logprobs else None,
        )


class ModerationRequest(_Part):
    """The body of ``POST /v1/moderations``."""

    input: Text | Annotated[list[Text | TextPart], Field(min_length=1, max_length=64)]
    """One or several texts."""
    model: Text | None = None
    """Accepted without effect: the server has one guard."""

    @property
    def texts(self) -> list[str]:
        """The texts."""
        if isinstance(self.input, str):
            return [self.input]
        return [part if isinstance(part, str) else part.text for part in self.input]
