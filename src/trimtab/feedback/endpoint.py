"""A judge behind any OpenAI-compatible endpoint: ``POST {url}/chat/completions``.

Requests run concurrently under a rate limit, with time-outs, retries with backoff, and a cost cap. Each reply is
passed on as soon as it arrives. There are two kinds of failure:

- The endpoint answered, but the answer is unusable (empty, refused, neither option, too long), or the endpoint
  rejected this question as too long or against its rules. The reply is stored with its failure and counted, and the
  question is not asked again. A reply that was cut at a limit is asked again once that limit is raised.
- The endpoint did not answer (time-out, connection, HTTP 429 or 5xx, a body that is no chat completion, such as an
  HTML page or half a JSON object). The request is tried again with growing pauses; after the last attempt the run
  stops with the endpoint's own message, and the same command continues it.

If a model rejects ``max_tokens`` at the first request, ``max_completion_tokens`` is sent instead.

Requests of unknown cost (a time-out, a reply without usage, or one that cannot be read) count as the most they could
have cost. The journal includes these costs, so the cost cap applies to all runs together.
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
from typing import Any, NoReturn

import httpx
from pydantic import Field

from trimtab.config import Config
from trimtab.errors import ConfigError, JudgeError
from trimtab.feedback.judge import CUT, LOST, Question, Reply
from trimtab.feedback.reading import find_option, read_option
from trimtab.http import Retries, error_message, is_temporary, retry_after
from trimtab.records.literals import is_list

STORED_CHARACTERS = 4000
"""Number of characters of a reply that are stored; its whole length is stored too."""

TOP_LOGPROBS = 20
"""Number of log-probabilities requested at each token; the maximum of the protocol."""


class EndpointConfig(Config):
    """A judge's address, prices and limits."""

    url: str = Field(pattern=r"^https?://")
    """Base URL of the API, up to and including ``/v1``."""
    model: str = Field(min_length=1)
    """Name of the model at the endpoint."""
    key_env: str | None = "OPENAI_API_KEY"
    """Environment variable with the key; None: no key is sent. The key itself is never stored or logged."""
    temperature: float | None = Field(default=0.0, ge=0.0)
    """Sampling temperature of the replies; None: the model's own, for models that accept no other."""
    logprobs: bool = True
    """Request log-probabilities, which give soft labels; False for endpoints without them."""
    max_tokens: int = Field(default=8, ge=1)
    """Longest reply, in tokens. If it is raised later, only the questions with cut replies are asked again."""
    reason_tokens: int = Field(default=400, ge=1)
    """Longest reply with reasoning, in tokens; raised like ``max_tokens``."""
    concurrency: int = Field(default=8, ge=1)
    """Concurrent requests."""
    per_minute: float = Field(default=500.0, gt=0.0)
    """Most requests per minute."""
    timeout: float = Field(default=60.0, gt=0.0)
    """Seconds for a whole request, however slowly the reply arrives."""
    attempts: int = Field(default=6, ge=1)
    """Attempts for one question before the run stops."""
    backoff: float = Field(default=1.0, ge=0.0)
    """Seconds before the second attempt; doubles each time, up to 60, with jitter. A larger Retry-After is obeyed."""
    max_reply_bytes: int = Field(default=200_000, ge=1000)
    """Largest reply body; a larger one is not read to its end and counts as ``too long``."""
    price_in: float = Field(default=0.0, ge=0.0)
    """Price of a million input tokens."""
    price_out: float = Field(default=0.0, ge=0.0)
    """Price of a million output tokens."""
    max_cost: float | None = Field(default=None, ge=0.0)
    """Largest total cost of all runs that share a journal. A request that could exceed it is not sent. None: no
    limit."""

    @property
    def identity(self) -> dict[str, Any]:
        """Identifies the judge: model and sampling, but neither its address nor limits, which replies name."""
        return self.model_dump(include={"model", "temperature", "logprobs"})


_TOO_LONG = re.compile(
    r"(?is)context_length|context length|context window|too long|too many tokens|\A(?!.*max_\w*tokens).*too large"
)
"""The question is too long. A ``max_tokens`` that is too large is a wrong setting, and stops the run."""
_FILTERED = re.compile(r"(?i)content_filter|content_policy|content management|content policy|responsibleai")
_OUTPUT_LIMIT_REACHED = re.compile(r"(?i)could not finish the message because max_\w*tokens|output limit was reached")
"""The reply would be longer than allowed; some models report this with an error instead of a cut reply."""
_UNKNOWN_MAX_TOKENS = re.compile(
    r"(?is)\buse\W+max_completion_tokens\b|\bmax_tokens\b.*(?:not supported|unsupported|not permitted|deprecated)|"
    r"(?:unsupported|unrecogni[sz]ed|unknown|unexpected|extra_forbidden|not permitted).*\bmax_tokens\b"
)
"""The model does not know ``max_tokens``."""


class _NoAnswer(Exception):
    """One attempt failed; another may succeed after ``wait`` seconds. ``billed``: the failed one may cost something."""

    def __init__(self, reason: str, wait: float = 0.0, *, billed: bool = False) -> None:
        super().__init__(reason)
        self.wait, self.billed = wait, billed


class _Unusable(Exception):
    """The endpoint refuses this one question: a failure of :data:`~trimtab.feedback.judge.FAILURES` and its words."""

    def __init__(self, failure: str, message: str, limit: str = "") -> None:
        super().__init__(message)
        self.failure, self.limit = failure, limit


class Endpoint:
    """Asks questions over HTTP; an :data:`~trimtab.feedback.judge.Ask`.

    Args:
        config: address and settings.
        journal: replies of earlier runs, which give the money spent and the model that answered.

    Raises:
        ConfigError: the environment variable with the key is not set, or a price is needed for the cost cap.
    """

    def __init__(self, config: EndpointConfig, journal: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        self.config = config
        earlier_replies = list((journal or {}).values())
        self._cut_replies = {
            key.partition(CUT)[0]: r for key, r in (journal or {}).items() if CUT in key and self._would_be_cut_again(r)
        }
        self.spent = math.fsum(float(reply.get("cost", 0.0)) for reply in earlier_replies)
        """Total cost, earlier runs included."""
        self.model = next((str(reply["model"]) for reply in earlier_replies if reply.get("model")), None)
        """The model's name in the endpoint's first reply."""
        self._headers: dict[str, str] = {}
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
        self._limit_name = "max_tokens"
        self._reserved = 0.0
        self._next_start = 0.0

    def __call__(self, questions: Sequence[Question], keep: Callable[[Mapping[str, Reply]], None]) -> None:
        """Ask all questions, except those whose reply was cut earlier at the present limit or a larger one.

        Raises:
            JudgeError: the endpoint does not answer, the key is refused, the cost cap is reached, or a different model
                answers than before. All earlier replies have been passed to ``keep``.
        """
        keep({q.key: Reply.model_validate(self._cut_replies[q.key]) for q in questions if q.key in self._cut_replies})
        asyncio.run(self._ask_all([q for q in questions if q.key not in self._cut_replies], keep))

    def _would_be_cut_again(self, reply: Mapping[str, Any]) -> bool:
        """True: the reply was cut and its limit has not been raised, so it would be cut again."""
        name, _, value = str(reply.get("limit", "")).partition("=")
        return value.isdecimal() and int(value) >= getattr(self.config, name, math.inf)

    async def _ask_all(self, questions: Sequence[Question], keep: Callable[[Mapping[str, Reply]], None]) -> None:
        remaining = iter(questions)
        problems: list[BaseException] = []
        self._next_start = 0.0
        limits = httpx.Limits(max_connections=self.config.concurrency)
        async with httpx.AsyncClient(timeout=None, limits=limits, headers=self._headers, trust_env=True) as client:

            async def worker() -> None:
                for question in remaining:
                    if problems:
                        return
                    try:
                        keep({question.key: await self._ask(client, question, problems, keep)})
                    except BaseException as error:  # the other requests finish, then the first error is raised
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
            cost_bound = await self._reserve(question, problems)
            try:
                await self._wait_for_rate_limit()
                if problems:
                    raise _Stopped
                async with asyncio.timeout(config.timeout):
                    body = await self._post(client, question)
                reply = self._read(body, question, time.monotonic() - started, cost_bound)
                self.spent += reply.cost
                if not self._same_model(reply):
                    keep(_cost_record(question, reply.cost))
                    raise JudgeError(
                        f"{config.url}: this reply came from {reply.model!r}, earlier ones from {self.model!r}. Two "
                        "judges must not be mixed under one name: name a fixed version in model, or start another "
                        "folder. Earlier replies are kept, this one is not counted"
                    )
                return reply
            except TimeoutError:
                error, charge = _NoAnswer(f"no complete reply within {config.timeout:g} s"), cost_bound
            except httpx.LocalProtocolError:
                raise JudgeError(f"{config.url}: the request cannot be sent; check the url and the key") from None
            except httpx.HTTPError as problem:
                error = _NoAnswer(f"{type(problem).__name__}: {problem}")
                charge = 0.0 if isinstance(problem, httpx.ConnectError) else cost_bound
            except _Unusable as problem:
                return Reply(
                    failure=problem.failure, text=str(problem), limit=problem.limit, model=self.model or "", at=_now()
                )
            except _NoAnswer as problem:
                error, charge = problem, cost_bound if problem.billed else 0.0
            finally:
                self._reserved -= cost_bound
            reason = str(error)
            self.spent += charge
            keep(_cost_record(question, charge))
            if attempt + 1 < config.attempts:
                pause = self._retries.pause(attempt) * (0.5 + self._random.random())
                await asyncio.sleep(max(pause, error.wait))
                if problems:
                    raise _Stopped
        raise JudgeError(
            f"{config.url}: {reason}, {config.attempts} times in a row for one question. Everything answered so far is "
            "kept; check the endpoint, or lower per_minute and concurrency, and run the same command again"
        )

    async def _wait_for_rate_limit(self) -> None:
        """Wait until the rate limit allows this request."""
        now = time.monotonic()
        start = max(now, self._next_start)
        self._next_start = start + 60.0 / self.config.per_minute
        await asyncio.sleep(start - now)

    async def _post(self, client: httpx.AsyncClient, question: Question) -> bytes:
        """Send one request; return the body of a reply with status 200."""
        config = self.config
        limit, _ = self._limit(question)
        request: dict[str, Any] = {
            "model": config.model,
            "messages": [m.model_dump() for m in question.messages],
            self._limit_name: getattr(config, limit),
        }
        if config.temperature is not None:
            request["temperature"] = config.temperature
        if config.logprobs:
            request |= {"logprobs": True, "top_logprobs": TOP_LOGPROBS}
        url = f"{config.url.rstrip('/')}/chat/completions"
        async with client.stream("POST", url, json=request) as response:
            body = bytearray()
            async for part in response.aiter_bytes():
                body += part
                if len(body) > config.max_reply_bytes:
                    break
            status = response.status_code
            wait = retry_after(response.headers.get("retry-after"))
        if status == 200:
            return bytes(body)
        raw = bytes(body[:STORED_CHARACTERS]).decode("utf-8", "replace")
        if status in (400, 422) and "max_tokens" in request and _UNKNOWN_MAX_TOKENS.search(raw):
            self._limit_name = "max_completion_tokens"
            await self._wait_for_rate_limit()
            return await self._post(client, question)
        self._refuse(status, raw, self._message(body), wait, question)

    def _refuse(self, status: int, raw: str, message: str, wait: float, question: Question) -> NoReturn:
        """Raise for a status other than 200: another attempt, a failure of this question, or the end of the run."""
        config = self.config
        reply = f"HTTP {status}{': ' if message else ''}{message}"
        if status == 429 and "insufficient_quota" in raw:
            raise JudgeError(
                f"{config.url}: {reply}. Everything answered so far is kept; raise the quota and run the same command "
                "again"
            )
        if is_temporary(status):
            raise _NoAnswer(reply, wait)
        if status in (401, 403):
            key_name = config.key_env or "no key is sent"
            raise JudgeError(f"{config.url}: {reply}: it refuses the key ({key_name}); set a valid one and run again")
        if status in (400, 413, 422):
            if _OUTPUT_LIMIT_REACHED.search(raw):
                raise _Unusable("cut", message, "=".join(map(str, self._limit(question))))
            for failure, pattern in (("too long", _TOO_LONG), ("refused", _FILTERED)):
                if pattern.search(raw):
                    raise _Unusable(failure, message)
        hint = ""
        if status in (400, 422) and "temperature" in message:
            hint = "; set temperature: null if it accepts none"
        elif status in (400, 422) and config.logprobs:
            hint = "; set logprobs: false if it cannot give log-probabilities"
        raise JudgeError(f"{config.url}: {reply} (model {config.model!r}){hint}")

    def _limit(self, question: Question) -> tuple[str, int]:
        """The setting that limits the reply to a question, and its value in tokens."""
        name = "reason_tokens" if question.reason else "max_tokens"
        return name, getattr(self.config, name)

    def _message(self, body: bytes | bytearray) -> str:
        """The endpoint's message in a reply that is not a completion, with the key removed."""
        return error_message(bytes(body), hide=self._headers.get("Authorization", "").removeprefix("Bearer "))

    def _read(self, body: bytes, question: Question, seconds: float, cost_bound: float) -> Reply:
        """The reply in a body; without usage it is charged the most it can cost.

        Raises:
            _NoAnswer: the body is not a chat completion.
        """
        facts: dict[str, Any] = {"seconds": round(seconds, 3), "at": _now(), "cost": cost_bound}
        if len(body) > self.config.max_reply_bytes and body.lstrip().startswith(b"{"):
            beginning = body[:STORED_CHARACTERS].decode("utf-8", "replace")
            limit = f"max_reply_bytes={self.config.max_reply_bytes}"
            facts |= {"text": beginning, "characters": len(body), "model": self.model or "", "limit": limit}
            return Reply(failure="too long", **facts)
        try:
            values = json.loads(body)
            choice = values["choices"][0]
            message, finish_reason = choice["message"], choice.get("finish_reason")
            text = _content(message.get("content"))
            is_error = values.get("error") or choice.get("error") or finish_reason == "error"
            if (
                is_error
                or not isinstance(text or "", str)
                or (text is None and not (finish_reason or message.get("refusal")))
            ):
                raise ValueError("no completion")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
            raise _NoAnswer(f"HTTP 200 without a whole chat completion: {self._message(body)}", billed=True) from None
        text = text or ""
        tokens_in, tokens_out = _usage(values)
        if tokens_in:
            facts["cost"] = (tokens_in * self.config.price_in + tokens_out * self.config.price_out) / 1e6
        facts |= {
            "tokens_in": tokens_in,
            "tokens_out": tokens_out,
            "model": str(values.get("model") or self.config.model),
        }
        facts |= {"text": text[:STORED_CHARACTERS], "characters": len(text)}
        if finish_reason == "content_filter" or message.get("refusal"):
            return Reply(failure="refused", **facts)
        option_match, failure = find_option(text, question.options, reason=question.reason)
        if finish_reason == "length" and _is_open(text, option_match, failure, reason=question.reason):
            return Reply(failure="cut", limit="=".join(map(str, self._limit(question))), **facts)
        option, failure = read_option(text, question.options, reason=question.reason)
        if option is None:
            return Reply(failure=failure, **facts)
        try:
            probabilities = option_probabilities(
                choice.get("logprobs"), question.options, option, reason=question.reason
            )
        except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError):
            probabilities = None
        if probabilities is not None:
            return Reply(probabilities=probabilities, **facts)
        return Reply(probabilities=tuple(float(o == option) for o in question.options), hard=True, **facts)

    def _same_model(self, reply: Reply) -> bool:
        self.model = self.model or reply.model or None
        return reply.model in ("", self.model)

    async def _reserve(self, question: Question, problems: Sequence[object]) -> float:
        """Reserve the most that a request can cost; if reservations exceed the cap, wait for requests in flight."""
        config = self.config
        input_tokens = sum(len(m.content.encode()) + 16 for m in question.messages)  # a token is at least one byte
        _, output_tokens = self._limit(question)
        cost_bound = (input_tokens * config.price_in + output_tokens * config.price_out) / 1e6
        cap = math.inf if config.max_cost is None else config.max_cost
        while self.spent + self._reserved + cost_bound > cap:
            if self.spent + cost_bound > cap:
                raise JudgeError(
                    f"the cost cap of {cap:g} is reached: {self.spent:.4g} spent, and the next request could cost up "
                    f"to {cost_bound:.2g}. Everything answered is kept; raise max_cost to continue"
                )
            await asyncio.sleep(0.01)
            if problems:
                raise _Stopped
        self._reserved += cost_bound
        return cost_bound


class _Stopped(Exception):
    """Another request stopped the run; this one was not answered."""


def _cost_record(question: Question, cost: float) -> dict[str, Reply]:
    """The cost of a request without a reply, under a key that no question has; nothing if it cost nothing."""
    timestamp = time.time_ns()
    return {f"{question.key}{LOST}{timestamp}": Reply(failure="malformed", cost=cost, at=_now())} if cost else {}


def _content(content: Any) -> Any:
    """The text of a message that may have several parts; other parts, such as thoughts, are left out."""
    if not is_list(content):
        return content
    return "".join(part["text"] for part in content if part.get("type") in ("text", "output_text"))


def _usage(values: Mapping[str, Any]) -> tuple[int, int]:
    """Tokens read and written; 0 if the reply does not say."""
    try:
        return int(values["usage"]["prompt_tokens"] or 0), int(values["usage"].get("completion_tokens") or 0)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return 0, 0


def _is_open(text: str, option_match: re.Match[str] | None, failure: str, *, reason: bool) -> bool:
    """Whether the rest of a truncated reply could change its verdict.

    It could not if the reply refused, or states its option on a separate line or before the cut ("Answer: A, because
    it"). "Answer A" may continue "is worse".
    """
    if option_match is None:
        return reason or failure != "refused"
    remainder = text[option_match.end(1) :]
    if option_match.end() < len(text):
        return False
    if re.search(r"\w", remainder):
        return re.fullmatch(r"[\w\s]+", remainder) is not None  # "A is better" may continue "in style"
    return re.search(r"\w", option_match.string[option_match.start() : option_match.start(1)]) is not None


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def option_probabilities(
    logprobs: Mapping[str, Any] | None, options: Sequence[str], chosen: str, *, reason: bool = False
) -> tuple[float, ...] | None:
    """P(option) from the log-probabilities of a reply, normalised over the options.

    At the token that states the option, the probabilities of all listed tokens that
    :func:`~trimtab.feedback.reading.read_option` reads as an option are summed per option: with A .40, b .35 and B .10,
    A has .40 / .85. An option missing from the list is not impossible, because the list is cut. It gets the most it
    could have, min(smallest listed, 1 − sum of listed), so the judge never looks surer than it was.

    Args:
        logprobs: ``choices[0].logprobs`` of the protocol.
        options: the possible answers.
        chosen: the option the words named (:func:`~trimtab.feedback.reading.read_option`).
        reason: True: the judge reasoned before it answered.

    Returns:
        None if the tokens do not state that option.
    """
    tokens: list[dict[str, Any]] = (logprobs or {}).get("content") or []
    option_match, _ = find_option("".join(t["token"] for t in tokens), options, reason=reason)
    if option_match is None:
        return None
    token_ends = list(itertools.accumulate(len(t["token"]) for t in tokens))
    position = bisect.bisect_right(token_ends, option_match.start(1))
    option_token, prefix = tokens[position], "".join(t["token"] for t in tokens[:position])

    def option(token: str) -> str | None:
        return read_option(prefix + token, options, reason=reason)[0]

    if option(option_token["token"]) != chosen:
        return None
    candidates: list[dict[str, Any]] = list(option_token.get("top_logprobs") or ())
    if option_token["token"] not in [t["token"] for t in candidates]:
        candidates.append(option_token)
    probabilities = [math.exp(float(t["logprob"])) for t in candidates]
    mass_by_option = dict.fromkeys(options, 0.0)
    for token, p in zip(candidates, probabilities, strict=True):
        if (named_option := option(token["token"])) is not None:
            mass_by_option[named_option] += p
    unlisted_probability = max(0.0, min(min(probabilities), 1 - math.fsum(probabilities)))
    masses = [mass_by_option[o] or unlisted_probability for o in options]
    total = math.fsum(masses)
    if not (math.isfinite(total) and total > 0):
        return None
    return tuple(p / total for p in masses)
