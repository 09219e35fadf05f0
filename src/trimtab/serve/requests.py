"""Request parameters, in three classes: supported, accepted without effect, and refused by name.

A parameter that would change an answer is either obeyed or refused; nothing is ignored silently. Parameters
of the second class concern the caller's account, never the answer.
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
    """Only text."""
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
    """Of an earlier answer; accepted without effect."""
    annotations: list[Any] | None = None
    """Of an earlier answer; accepted without effect."""
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
    """A last chunk counts the tokens."""
    include_obfuscation: Literal[False] | None = None
    """No padding is sent."""


class TextFormat(_Part):
    """The only format there is."""

    type: Literal["text"]
    """Text."""


class ModerationMode(_Part):
    """What is done with a flagged text."""

    mode: Literal["score", "block"]
    """Both report; whether a flagged text is blocked is the server's choice."""


class ModerationPolicy(_Part):
    """For input and output."""

    input: ModerationMode | None = None
    """The conversation."""
    output: ModerationMode | None = None
    """The answer."""


class ModerationOptions(_Part):
    """Asks for the guard's verdicts."""

    model: Text
    """Accepted without effect: the server has one guard."""
    policy: ModerationPolicy | None = None
    """Accepted without effect: the server's policy holds."""


class ChatRequest(_Part):
    """The body of ``POST /v1/chat/completions``."""

    model: Text
    """A model of ``/v1/models``."""
    messages: list[ChatMessage] = Field(min_length=1, max_length=2048)
    """The conversation; its last turn is not the assistant's."""
    n: int | None = Field(None, ge=1, le=MOST_ANSWERS)
    """Answers."""
    stream: bool | None = None
    """Send the answer as it is drawn."""
    stream_options: StreamOptions | None = None
    """Only with ``stream``."""
    max_tokens: int | None = Field(None, ge=1)
    """Older name of ``max_completion_tokens``."""
    max_completion_tokens: int | None = Field(None, ge=1)
    """Longest answer, its end token included."""
    temperature: Finite | None = Field(None, ge=0.0, le=2.0)
    """1 unless given; below 0.0001 the most likely token is taken."""
    top_p: Finite | None = Field(None, gt=0.0, le=1.0)
    """1 unless given."""
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    """Equal seeds give equal answers."""
    stop: Annotated[Text, Field(min_length=1)] | list[Annotated[Text, Field(min_length=1)]] | None = None
    """Up to four strings; the answer ends before the first of them."""
    presence_penalty: Finite | None = Field(None, ge=-2.0, le=2.0)
    """Taken from the logits of tokens that the answer has."""
    frequency_penalty: Finite | None = Field(None, ge=-2.0, le=2.0)
    """The same, for each time that the answer has a token."""
    logprobs: bool | None = None
    """Log-probabilities of the answer's tokens, of the model itself."""
    top_logprobs: int | None = Field(None, ge=0, le=20)
    """Also of so many most likely tokens; needs ``logprobs``."""
    moderation: ModerationOptions | None = None
    """Report the guard's verdicts."""
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
    """Other formats than text are refused."""
    modalities: list[Literal["text"]] | None = None
    """Others than text are refused."""
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
        """Clients that know one type of number write 1.0 for 1."""
        if isinstance(data, dict):
            return {k: int(v) if isinstance(v, float) and v.is_integer() else v for k, v in data.items()}
        return data

    @property
    def answers(self) -> int:
        """How many answers are requested."""
        return self.n or 1

    @property
    def turns(self) -> tuple[Message, ...]:
        """The conversation.

        Raises:
            ApiError: it ends with an answer.
        """
        turns = tuple(message.message for message in self.messages)
        if turns[-1].role == "assistant":
            where = f"messages[{len(turns) - 1}]"
            raise ApiError(400, f"{where}: the last turn is the assistant's; end with the user's", param=where)
        return turns

    def settings(self, prompt_tokens: int, context: int, default: int) -> AnswerSettings:
        """How its answers are drawn.

        Args:
            prompt_tokens: length of the prompt.
            context: of the model.
            default: maximum length of an answer where the request names none.

        Raises:
            ApiError: parameters that contradict each other, or prompt and answer do not fit the context.
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
    """A text, or several."""
    model: Text | None = None
    """Accepted without effect: the server has one guard."""

    @property
    def texts(self) -> list[str]:
        """The texts."""
        if isinstance(self.input, str):
            return [self.input]
        return [part if isinstance(part, str) else part.text for part in self.input]
