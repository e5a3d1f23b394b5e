"""What a request can fail of, in the form that OpenAI's clients expect.

Clients of that make try again after 408, 409, 429 and everything from 500 up; a fault that is the client's
own and would only come again is therefore never one of these.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class ApiError(Exception):
    """An answer that is an error.

    status   of the HTTP response
    type     "invalid_request_error", "authentication_error", "rate_limit_error" or "server_error"
    code     the reason as a word
    param    the parameter at fault
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        type: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.type = type
        self.code = code
        self.param = param
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The error as JSON can say it: a client's own words may hold what UTF-8 cannot."""
        said = {"message": str(self), "type": self.type, "param": self.param, "code": self.code}
        return {
            "error": {
                name: None if text is None else text.encode("utf-8", "replace").decode()
                for name, text in said.items()
            }
        }


def refused(message: str, param: str | None, code: str | None = "invalid_value") -> ApiError:
    """400: a value that is not allowed."""
    return ApiError(message, param=param, code=code)


def unsupported(param: str, why: str) -> ApiError:
    """400: a parameter that would change the answer and is not honoured here."""
    return ApiError(f"{param} is not supported: {why}", param=param, code="unsupported_parameter")


def invalid_json(message: str) -> ApiError:
    """400: a body that is not one JSON object."""
    return ApiError(f"the body is not a JSON object: {message}", code="invalid_json")


def too_large(message: str, status: int = 413) -> ApiError:
    """413 or 431: a body or headers beyond the limits. The connection is closed: the rest stays unread."""
    return ApiError(message, status=status, code="request_too_large", headers={"Connection": "close"})


def unauthenticated() -> ApiError:
    """401: no key, or a wrong one."""
    return ApiError(
        "no valid API key: send the header Authorization: Bearer KEY",
        status=401,
        type="authentication_error",
        code="invalid_api_key",
        headers={"WWW-Authenticate": "Bearer"},
    )


def queue_full(waiting: int, seconds: int) -> ApiError:
    """429: as many requests run and wait as may."""
    return ApiError(
        f"the queue is full: {waiting} requests are in work; try again in {seconds} s",
        status=429,
        type="rate_limit_error",
        code="queue_full",
        headers={"Retry-After": str(seconds)},
    )


def unavailable(message: str, code: str) -> ApiError:
    """503: the server drains, or its engine is not there. Worth trying again."""
    return ApiError(message, status=503, type="server_error", code=code, headers={"Retry-After": "1"})


def shutting_down() -> ApiError:
    """503: no new requests, this server ends."""
    error = unavailable("the server is shutting down", "shutting_down")
    error.headers["Connection"] = "close"
    return error


def internal(message: str) -> ApiError:
    """500: a fault of ours that would come again."""
    return ApiError(
        message,
        status=500,
        type="server_error",
        code="internal_error",
        headers={"x-should-retry": "false"},
    )
