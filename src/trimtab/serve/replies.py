"""The server's responses, in the format that strict clients expect: all required fields are present, even if null."""

import json
import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from trimtab.rollout.engine import TokenLogprobs
from trimtab.serve.guarding import Guard, Verdict
from trimtab.serve.spelling import Spelling
from trimtab.serve.worker import FinishReason, Update

DONE = b"data: [DONE]\n\n"


def event(content: Any) -> bytes:
    """One server-sent event."""
    return f"data: {json.dumps(content, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()


@dataclass(kw_only=True)
class Reply:
    """Builds the response bodies of one request: the chunks of a stream, or the whole body."""

    model: str
    """Name of the answering model."""
    fingerprint: str
    """Hash of the weights."""
    spelling: Spelling
    """Converts tokens to text and bytes, for log-probabilities."""
    logprobs: bool
    """Whether log-probabilities were requested."""
    include_usage: bool = False
    """Whether the stream ends with a chunk of token counts."""
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def first_chunk(self, index: int) -> dict[str, Any]:
        """The first chunk of an answer, with the role of its author."""
        return self._chunk([self._choice(index, {"role": "assistant", "content": "", "refusal": None})])

    def chunks(self, update: Update) -> Iterable[dict[str, Any]]:
        """The chunks of an update: one with its text, and one with its finish reason."""
        if update.text or update.logprobs:
            yield self._chunk([self._choice(update.index, {"content": update.text}, logprobs=update.logprobs)])
        if update.finish_reason is not None:
            yield self._chunk([self._choice(update.index, {}, reason=update.finish_reason)])

    def refusal_chunks(self, index: int, text: str) -> Iterable[dict[str, Any]]:
        """The chunks of a refusal, which replaces an answer."""
        yield self._chunk([self._choice(index, {"content": text, "refusal": text})])
        yield self._chunk([self._choice(index, {}, reason="content_filter")])

    def usage_chunk(self, usage: dict[str, Any]) -> dict[str, Any]:
        """The chunk with the token counts."""
        return self._chunk([]) | {"usage": usage}

    def moderation_chunk(self, moderation: dict[str, Any]) -> dict[str, Any]:
        """The chunk with the guard's verdicts."""
        return self._chunk([]) | {"moderation": moderation}

    def whole(
        self,
        choices: Sequence[tuple[str, Sequence[TokenLogprobs], FinishReason]],
        usage: dict[str, Any],
        *,
        refusal: str | None = None,
        moderation: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """The body of an answer that is not streamed.

        Args:
            choices: text, log-probabilities and finish reason of each answer.
            usage: from :func:`usage`.
            refusal: text that replaces the answers; None: the conversation was not blocked.
            moderation: the guard's verdicts; None: not requested.
        """
        choice_bodies = []
        for index, (text, logprobs, reason) in enumerate(choices):
            message = {"role": "assistant", "content": text, "refusal": refusal, "annotations": []}
            entries = self._logprobs(logprobs)
            choice_bodies.append({"index": index, "message": message, "logprobs": entries, "finish_reason": reason})
        body = self._head("chat.completion") | {"choices": choice_bodies, "usage": usage}
        return body if moderation is None else body | {"moderation": moderation}

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        chunk = self._head("chat.completion.chunk") | {"choices": choices}
        return chunk | {"usage": None} if self.include_usage else chunk

    def _choice(
        self,
        index: int,
        delta: dict[str, Any],
        *,
        logprobs: Sequence[TokenLogprobs] = (),
        reason: FinishReason | None = None,
    ) -> dict[str, Any]:
        entries = self._logprobs(logprobs) if logprobs else None
        return {"index": index, "delta": delta, "logprobs": entries, "finish_reason": reason}

    def _logprobs(self, logprobs: Sequence[TokenLogprobs]) -> dict[str, Any] | None:
        if not self.logprobs:
            return None
        return {"content": [self.spelling.entry(entry) for entry in logprobs], "refusal": None}


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, Any]:
    """The token counts, as the field ``usage`` of a response."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def refusal_text(verdict: Verdict) -> str:
    """The message for a person whose conversation was blocked."""
    return verdict.reason or "This request was blocked by the safety check."


def moderation_result(verdict: Verdict) -> dict[str, Any]:
    """One verdict in the format of ``/v1/moderations``."""
    return {
        "flagged": verdict.flagged,
        "categories": dict(verdict.categories),
        "category_scores": dict(verdict.scores),
        "category_applied_input_types": {name: ["text"] for name in verdict.scores},
    }


def moderation(guard: Guard, conversation: Verdict, answers: Sequence[Verdict]) -> dict[str, Any]:
    """The verdicts on a conversation and on its answers, as the field ``moderation`` of an answer."""

    def results(verdicts: Sequence[Verdict]) -> dict[str, Any]:
        entries = [moderation_result(v) | {"model": guard.version, "type": "moderation_result"} for v in verdicts]
        return {"type": "moderation_results", "model": guard.version, "results": entries}

    return {"input": results([conversation]), "output": results(answers)}
