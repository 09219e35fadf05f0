"""Errors in the format of OpenAI's clients, whatever raised them."""

from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from trimtab.errors import DataError, StorageError, TooLongError, TrimtabError


class ErrorDetail(BaseModel):
    """The fields of an error."""

    message: str
    """Description for people: what is wrong, what is expected, and the next step."""
    type: str
    """Kind of error, such as ``invalid_request_error``."""
    param: str | None
    """Request parameter that caused the error; None: no single parameter did."""
    code: str | None
    """Machine-readable reason, such as ``context_length_exceeded``; None: there is none."""


class ErrorBody(BaseModel):
    """The body of every response with a status of 400 or above."""

    error: ErrorDetail
    """The fields of the error."""


class ApiError(Exception):
    """An error that the client receives with an HTTP status.

    Args:
        status: HTTP status.
        message: what is wrong, what is expected, and the next step.
        param: request parameter that caused the error; None: no single parameter did.
        code: machine-readable reason; None: there is none.
        retry_after: seconds after which to try again; None: not stated.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.retry_after = status, message, param, code, retry_after

    @property
    def body(self) -> dict[str, Any]:
        """The JSON body of the response."""
        kind = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}.get(self.status)
        kind = kind or ("server_error" if self.status >= 500 else "invalid_request_error")
        error = {"message": _sendable(self.message), "type": kind, "param": _sendable(self.param), "code": self.code}
        return {"error": error}

    def response(self) -> Response:
        """The HTTP response with this error."""
        headers = {"WWW-Authenticate": "Bearer"} if self.status == 401 else {}
        if self.retry_after is not None:
            headers["Retry-After"] = str(self.retry_after)
        return JSONResponse(self.body, status_code=self.status, headers=headers)


def _sendable(text: str | None) -> str | None:
    """A text that may quote the request, without lone surrogates, which UTF-8 cannot encode."""
    return None if text is None else text.encode("utf-8", "replace").decode()


REFUSED = {
    "tools": "this server calls no tools; leave the parameter out",
    "tool_choice": "this server calls no tools; leave the parameter out",
    "parallel_tool_calls": "this server calls no tools; leave the parameter out",
    "functions": "this server calls no functions; leave the parameter out",
    "function_call": "this server calls no functions; leave the parameter out",
    "response_format": "this server does not constrain answers to a format; use {'type': 'text'} or leave it out",
    "audio": "this server answers in text only; leave the parameter out",
    "modalities": "this server answers in text only; use ['text'] or leave it out",
    "logit_bias": "this server takes no logit bias; leave the parameter out",
    "tool_calls": "this server calls no tools, so a conversation cannot hold tool calls",
}
"""Unsupported request parameters that would change an answer, with the message that refuses them."""


def invalid_request(error: RequestValidationError) -> ApiError:
    """The first problem of a request, without quoting its content."""
    problem = error.errors()[0]
    parts = [p for p in problem["loc"][1:] if isinstance(p, int) or not p.startswith(("function-", "Chat", "list["))]
    path = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in parts).removeprefix(".")
    for name in (str(p) for p in parts):
        if name in REFUSED and problem["type"] != "missing":
            param = path[: path.index(name) + len(name)]
            return ApiError(400, f"{param}: {REFUSED[name]}", param=param, code="unsupported_parameter")
    if problem["type"] == "extra_forbidden":
        return ApiError(400, f"Unrecognized request argument supplied: {path[:200]}", param=path[:200])
    if problem["type"] == "json_invalid" or not path:
        return ApiError(400, "the body is not the JSON object that is expected; see /openapi.json")
    return ApiError(400, f"{path[:200]}: {problem['msg']}", param=path[:200])


def of_trimtab(error: TrimtabError) -> ApiError:
    """A trimtab error as an API error."""
    if isinstance(error, TooLongError):
        return ApiError(400, str(error), param="messages", code="context_length_exceeded")
    if isinstance(error, StorageError):
        return ApiError(503, str(error))
    return ApiError(400 if isinstance(error, DataError) else 500, str(error))


async def handle(request: Request, error: Exception) -> Response:
    """The error response to any exception."""
    if isinstance(error, RequestValidationError):
        return invalid_request(error).response()
    if isinstance(error, TrimtabError):
        return of_trimtab(error).response()
    if isinstance(error, HTTPException):
        return _of_http(request, error).response()
    if isinstance(error, ApiError):
        return error.response()
    return ApiError(500, "the server failed; its log says why").response()


def add_error_handlers(app: FastAPI) -> None:
    """Register :func:`handle` for every exception."""
    for kind in (ApiError, TrimtabError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, handle)


def _of_http(request: Request, error: HTTPException) -> ApiError:
    route = f"{request.method} {request.url.path[:200]}"
    if error.status_code == 404:
        return ApiError(
            404, f"Unknown request URL: {route}; this server has POST /v1/chat/completions", code="unknown_url"
        )
    if error.status_code == 405:
        return ApiError(405, f"{route}: this method is not allowed here", code="method_not_allowed")
    return ApiError(error.status_code, "the body cannot be read as JSON in UTF-8")
