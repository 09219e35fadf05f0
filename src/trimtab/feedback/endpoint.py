"""A judge behind any OpenAI-compatible endpoint: ``POST {url}/chat/completions``.

Requests run concurrently under a rate limit, with time-outs, retries with backoff, and a cost cap. Each reply is
passed on as soon as it arrives. There are two kinds of failure:

- The endpoint answered, and the answer is unusable (empty, refused, neither option, not JSON, too long), or the
  endpoint rejected this question as too long or against its rules. The reply is stored with its failure, counted,
  and the question is not asked again.
- The endpoint did not answer (time-out, connection, HTTP 429 or 5xx). The request is tried again with growing
  pauses; after the last attempt the run stops with a message, and the same command continues it.

Requests of unknown cost (a time-out, a reply without usage, or one that cannot be read) count as the most they could
have cost. The journal holds these costs too, so the cost cap applies to all runs together.
"""

import asyncio
import bisect
import itertools
import json
import math
import os
import random
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import httpx
from pydantic import Field

from trimtab.config import Config
from trimtab.errors import ConfigError, JudgeError
from trimtab.feedback.judge import LOST, Question, Reply, find_option, read_option
from trimtab.http import Retries, is_temporary, retry_after

STORED_CHARACTERS = 4000
"""Characters of a reply that are stored, beside its whole length."""

TOP = 20
"""Log-probabilities asked for at each token; the most the protocol allows."""


class EndpointConfig(Config):
    """A judge's address, prices and limits."""

    url: str = Field(pattern=r"^https?://")
    """Base of the API, up to and including ``/v1``."""
    model: str = Field(min_length=1)
    """Name of the model there."""
    key_env: str | None = "OPENAI_API_KEY"
    """Environment variable with the key; None: no key is sent. The key itself is never stored or logged."""
    temperature: float = Field(default=0.0, ge=0.0)
    """Sampling temperature of the replies."""
    logprobs: bool = True
    """Request log-probabilities, which give soft labels; False for endpoints without them."""
    max_tokens: int = Field(default=8, ge=1)
    """Longest reply, in tokens."""
    reason_tokens: int = Field(default=400, ge=1)
    """Longest reply with reasoning, in tokens."""
    concurrency: int = Field(default=8, ge=1)
    """Concurrent requests."""
    per_minute: float = Field(default=500.0, gt=0.0)
    """Most requests per minute."""
    timeout: float = Field(default=60.0, gt=0.0)
    """Seconds for a whole request, however slowly the reply arrives."""
    attempts: int = Field(default=6, ge=1)
    """Requests for one question before the run stops."""
    backoff: float = Field(default=1.0, ge=0.0)
    """Seconds before the second attempt; doubles each time, up to 60, with jitter. A larger Retry-After is obeyed."""
    max_reply_bytes: int = Field(default=200_000, ge=1000)
    """Largest reply body; a larger one is not read to its end and counts as ``too long``."""
    price_in: float = Field(default=0.0, ge=0.0)
    """Price of a million input tokens."""
    price_out: float = Field(default=0.0, ge=0.0)
    """Price of a million output tokens."""
    max_cost: float | None = Field(default=None, ge=0.0)
    """Most that all runs on one journal may cost; no request starts that could exceed it. None: no limit."""

    @property
    def identity(self) -> dict[str, Any]:
        """Identifies the judge: model, sampling and limits (replies fail by them), but not the address."""
        return self.model_dump(include={"model", "temperature", "logprobs", *_LIMITS})


_LIMITS = ("max_tokens", "reason_tokens", "max_reply_bytes")
_TOO_LONG = re.compile(
    r"(?is)context_length|context length|context window|too long|too many tokens|\A(?!.*max_\w*tokens).*too large"
)
"""The question is too long. A ``max_tokens`` that is too large is a wrong setting, and stops the run."""
_FILTERED = re.compile(r"(?i)content_filter|content_policy|content management|content policy|responsibleai")


class _NoAnswer(Exception):
    """One attempt failed; worth another."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


class _Unusable(Exception):
    """The endpoint refuses this one question: a failure of :data:`~trimtab.feedback.judge.FAILURES` and its words."""

    def __init__(self, failure: str, message: str) -> None:
        super().__init__(message)
        self.failure = failure


class Endpoint:
    """Asks questions over HTTP; an :data:`~trimtab.feedback.judge.Ask`.

    Args:
        config: where and how.
        journal: replies of earlier runs, for what was spent and which model answered.

    Raises:
        ConfigError: the environment variable with the key is not set, or a price is needed for the cost cap.
    """

    def __init__(self, config: EndpointConfig, journal: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        self.config = config
        known = list((journal or {}).values())
        self.spent = math.fsum(float(reply.get("cost", 0.0)) for reply in known)
        """Total cost, earlier runs included."""
        self.model = next((str(reply["model"]) for reply in known if reply.get("model")), None)
        """The model's name in the endpoint's first reply."""
        self._headers = {}
        if config.key_env is not None:
            key = os.environ.get(config.key_env, "").strip()
            if not key:
                raise ConfigError(
                    f"the judge at {config.url} needs a key in the environment variable {config.key_env}, which is not "
                    "set; set it, or key_env: null for an endpoint without one"
                )
            if not (key.isascii() and key.isprintable()):
                raise ConfigError(
                    f"the key in the environment variable {config.key_env} contains characters that no key has (line "
                    "breaks or letters beyond ASCII); set it again"
                )
            self._headers["Authorization"] = f"Bearer {key}"
        if config.max_cost is not None and config.price_in == config.price_out == 0:
            raise ConfigError(
                "max_cost needs price_in and price_out (per million tokens); without prices the cost is unknown"
            )
        self._retries = Retries(attempts=config.attempts, backoff=config.backoff, factor=2.0)
        self._random = random.Random(0)
        self._reserved = 0.0
        self._next = 0.0

    def __call__(self, questions: Sequence[Question], keep: Callable[[Mapping[str, Reply]], None]) -> None:
        """Ask all questions.

        Raises:
            JudgeError: it does not answer, its key is refused, the cost cap is reached, or another model answers than
                before. Every reply until then was handed to ``keep``.
        """
        asyncio.run(self._ask_all(questions, keep))

    async def _ask_all(self, questions: Sequence[Question], keep: Callable[[Mapping[str, Reply]], None]) -> None:
        waiting = iter(questions)
        problems: list[BaseException] = []
        self._next = 0.0
        limits = httpx.Limits(max_connections=self.config.concurrency)
        async with httpx.AsyncClient(timeout=None, limits=limits, headers=self._headers, trust_env=True) as client:

            async def worker() -> None:
                for question in waiting:
                    if problems:
                        return
                    try:
                        keep({question.key: await self._ask(client, question, problems, keep)})
                    except BaseException as error:  # the others finish what they began, then the first one is raised
                        problems.append(error)
                        return

            await asyncio.gather(*(worker() for _ in range(min(self.config.concurrency, len(questions)))))
        for error in problems:
            if not isinstance(error, _Stopped):
                raise error

    async def _ask(
        self,
        client: httpx.AsyncClient,
        question: Question,
        problems: Sequence[object],
        keep: Callable[[Mapping[str, Reply]], None],
    ) -> Reply:
        config = self.config
        reason = "it was not asked"
        started = time.monotonic()
        for attempt in range(config.attempts):
            most = await self._reserve(question, problems)
            try:
                await self._turn()
                if problems:
                    raise _Stopped
                async with asyncio.timeout(config.timeout):
                    body = await self._post(client, question)
                reply = self._read(body, question, time.monotonic() - started, most)
                self.spent += reply.cost
                if not self._same_model(reply):
                    keep(_lost(question, reply.cost))
                    raise JudgeError(
                        f"{config.url}: this reply came from {reply.model!r}, earlier ones from {self.model!r}. Two "
                        "judges must not be mixed under one name: name a fixed version in model, or start another "
                        "folder. Earlier replies are kept, this one is not counted"
                    )
                return reply
            except TimeoutError:
                error, bill = _NoAnswer(f"no complete reply within {config.timeout:g} s"), most
            except httpx.LocalProtocolError:
                raise JudgeError(f"{config.url}: the request cannot be sent; check the url and the key") from None
            except httpx.HTTPError as problem:
                error = _NoAnswer(f"{type(problem).__name__}: {problem}")
                bill = 0.0 if isinstance(problem, httpx.ConnectError) else most
            except _Unusable as problem:
                return Reply(failure=problem.failure, text=str(problem), model=self.model or "", at=_now())
            except _NoAnswer as problem:
                error, bill = problem, 0.0
            finally:
                self._reserved -= most
            reason = str(error)
            self.spent += bill
            keep(_lost(question, bill))
            if attempt + 1 < config.attempts:
                pause = self._retries.pause(attempt) * (0.5 + self._random.random())
                await asyncio.sleep(max(pause, error.wait))
                if problems:
                    raise _Stopped
        raise JudgeError(
            f"{config.url}: {reason}, {config.attempts} times in a row for one question. Everything answered so far is "
            "kept; check the endpoint, or lower per_minute and concurrency, and run the same command again"
        )

    async def _turn(self) -> None:
        """Wait for this request's place under the rate limit."""
        now = time.monotonic()
        begin = max(now, self._next)
        self._next = begin + 60.0 / self.config.per_minute
        await asyncio.sleep(begin - now)

    async def _post(self, client: httpx.AsyncClient, question: Question) -> bytes:
        """One request; the body of a reply with status 200."""
        config = self.config
        request: dict[str, Any] = {
            "model": config.model,
            "messages": [m.model_dump() for m in question.messages],
            "temperature": config.temperature,
            "max_tokens": config.reason_tokens if question.reason else config.max_tokens,
        }
        if config.logprobs:
            request |= {"logprobs": True, "top_logprobs": TOP}
        url = f"{config.url.rstrip('/')}/chat/completions"
        async with client.stream("POST", url, json=request) as response:
            body = bytearray()
            async for part in response.aiter_bytes():
                body += part
                if len(body) > config.max_reply_bytes:
                    break
            status = response.status_code
            if is_temporary(status):
                raise _NoAnswer(f"HTTP {status}", retry_after(response.headers.get("retry-after")))
            if status in (401, 403):
                named = config.key_env or "no key is sent"
                raise JudgeError(f"{url}: HTTP {status}: it refuses the key ({named}); set a valid one and run again")
            if status != 200:
                message = bytes(body[:2000]).decode("utf-8", "replace")
                if status in (400, 413, 422):
                    for failure, words in (("too long", _TOO_LONG), ("refused", _FILTERED)):
                        if words.search(message):
                            raise _Unusable(failure, message)
                message = message[:300]
                hint = "; set logprobs: false if it cannot give log-probabilities" if config.logprobs else ""
                raise JudgeError(f"{url}: HTTP {status} for model {config.model!r}: {message}{hint}")
        return bytes(body)

    def _read(self, body: bytes, question: Question, seconds: float, most: float) -> Reply:
        """The reply in a body, whatever it contains; without usage it counts as the most it can cost."""
        facts: dict[str, Any] = {"seconds": round(seconds, 3), "at": _now(), "cost": most}
        if len(body) > self.config.max_reply_bytes:
            start = body[:STORED_CHARACTERS].decode("utf-8", "replace")
            return Reply(failure="too long", text=start, characters=len(body), model=self.model or "", **facts)
        try:
            values = json.loads(body)
            choice = values["choices"][0]
            text = choice["message"]["content"] or ""
            usage = values.get("usage") or {}
            tokens_in, tokens_out = (int(usage.get(k) or 0) for k in ("prompt_tokens", "completion_tokens"))
            model = str(values.get("model") or self.config.model)
            if not isinstance(text, str):
                raise TypeError("content is not text")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
            start = body[:STORED_CHARACTERS].decode("utf-8", "replace")
            return Reply(failure="malformed", text=start, characters=len(body), model=self.model or "", **facts)
        if tokens_in:
            facts["cost"] = (tokens_in * self.config.price_in + tokens_out * self.config.price_out) / 1e6
        facts |= {"tokens_in": tokens_in, "tokens_out": tokens_out, "model": model}
        facts |= {"text": text[:STORED_CHARACTERS], "characters": len(text)}
        if choice.get("finish_reason") == "content_filter" or choice["message"].get("refusal"):
            return Reply(failure="refused", **facts)
        option, failure = read_option(text, question.options, reason=question.reason)
        if option is None:
            return Reply(failure=failure, **facts)
        try:
            soft = option_probabilities(choice.get("logprobs"), question.options, option, reason=question.reason)
        except (ValueError, KeyError, TypeError, AttributeError):
            soft = None
        if soft is not None:
            return Reply(probabilities=soft, **facts)
        return Reply(probabilities=tuple(float(o == option) for o in question.options), hard=True, **facts)

    def _same_model(self, reply: Reply) -> bool:
        self.model = self.model or reply.model or None
        return reply.model in ("", self.model)

    async def _reserve(self, question: Question, problems: Sequence[object]) -> float:
        """Reserve the most a request can cost; if the reservations exceed the cap, wait for requests in flight."""
        config = self.config
        read = sum(len(m.content.encode()) + 16 for m in question.messages)  # a token is at least one byte
        written = config.reason_tokens if question.reason else config.max_tokens
        most = (read * config.price_in + written * config.price_out) / 1e6
        cap = math.inf if config.max_cost is None else config.max_cost
        while self.spent + self._reserved + most > cap:
            if self.spent + most > cap:
                raise JudgeError(
                    f"the cost cap of {cap:g} is reached: {self.spent:.4g} spent, and the next request could cost up "
                    f"to {most:.2g}. Everything answered is kept; raise max_cost to go on"
                )
            await asyncio.sleep(0.01)
            if problems:
                raise _Stopped
        self._reserved += most
        return most


class _Stopped(Exception):
    """Another request stopped the run; this one was not answered."""


def _lost(question: Question, cost: float) -> dict[str, Reply]:
    """The cost of a request without a reply, under a key that no question has; nothing if it cost nothing."""
    at = time.time_ns()
    return {f"{question.key}{LOST}{at}": Reply(failure="malformed", cost=cost, at=_now())} if cost else {}


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def option_probabilities(
    logprobs: Mapping[str, Any] | None, options: Sequence[str], found: str, *, reason: bool = False
) -> tuple[float, ...] | None:
    """P(option) from the log-probabilities of a reply, normalised over the options.

    At the token with which the words state the option, the probabilities of all listed tokens that read as an option
    are added up. An option missing from the list is not impossible: the list is cut. It gets the most it could have,
    min(smallest listed, 1 − sum of listed), so the judge never looks surer than it was.

    Args:
        logprobs: ``choices[0].logprobs`` of the protocol.
        options: what could be answered.
        found: the option the words named (:func:`~trimtab.feedback.judge.read_option`).
        reason: the judge thought first.

    Returns:
        None if the tokens do not state that option.
    """
    tokens = (logprobs or {}).get("content") or []
    stated, _ = find_option("".join(t["token"] for t in tokens), options, reason=reason)
    if stated is None:
        return None
    ends = list(itertools.accumulate(len(t["token"]) for t in tokens))
    place = tokens[bisect.bisect_right(ends, stated.start(1))]
    if _plain(place["token"]) != found:
        return None
    listed = {t["token"]: math.exp(float(t["logprob"])) for t in [*(place.get("top_logprobs") or []), place]}
    mass = dict.fromkeys(options, 0.0)
    for token, p in listed.items():
        if _plain(token) in mass:
            mass[_plain(token)] += p
    rest = max(0.0, min(min(listed.values()), 1 - math.fsum(listed.values())))
    filled = [mass[o] or rest for o in options]
    total = math.fsum(filled)
    if not (math.isfinite(total) and total > 0):
        return None
    return tuple(p / total for p in filled)


def _plain(token: str) -> str:
    return token.strip(" \n\t()[]*\"'.:")
