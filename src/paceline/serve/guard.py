"""What stands in front of every route: keys, limits of headers and bodies, and errors in one form.

Everything but /health needs a key where keys are set; unknown paths too. The decision is made on the path
that the router sees, never on a URL put together from headers.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
from collections.abc import Sequence
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from paceline.serve.failures import ApiError, internal, too_large, unauthenticated
from paceline.serve.stream import ClientGone

log = logging.getLogger(__name__)

MAX_BODY = 4 << 20
MAX_UNREAD = 16 * MAX_BODY
"""A body that is refused is read to its end up to here, and forgotten: a client that is still sending when
the connection is closed would never see why."""
MAX_HEADER_BYTES = 32 << 10
MAX_HEADERS = 100
BODY_TIMEOUT_S = 30.0
PUBLIC = ("/health",)


class Guard:
    """The outermost application.

    keys: accepted in `Authorization: Bearer KEY`; none accepts everybody
    """

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self._app = app
        self._keys = [_digest(key.encode()) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def sending(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._check(scope, receive)
            await self._app(scope, receive, sending)
        except ClientGone:
            pass
        except ApiError as error:
            if not started:
                await error_response(error)(scope, receive, send)
        except Exception:
            log.exception("a fault of the server")
            if started:
                return  # the response is broken off, which closes the connection
            await error_response(internal("a fault of the server; its log has more"))(scope, receive, send)

    async def _check(self, scope: Scope, receive: Receive) -> None:
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        size = sum(len(name) + len(value) + 4 for name, value in headers)
        if size > MAX_HEADER_BYTES or len(headers) > MAX_HEADERS:
            await _whole_body(Request(scope, receive))
            raise too_large(
                f"{len(headers)} headers with {size} bytes; "
                f"allowed are {MAX_HEADERS} with {MAX_HEADER_BYTES}",
                status=431,
            )
        if self._keys and scope["path"] not in PUBLIC and self.owner(headers) is None:
            raise unauthenticated()

    def owner(self, headers: Sequence[tuple[bytes, bytes]]) -> str | None:
        """A name for whose key this is, not the key; None for no valid key. All keys are always compared."""
        given = next((value for name, value in headers if name == b"authorization"), b"")
        scheme, _, key = given.partition(b" ")
        digest = _digest(key.strip())
        found = None
        for known in self._keys:
            if hmac.compare_digest(known, digest) and scheme.lower() == b"bearer":
                found = hashlib.sha256(known).hexdigest()[:16]
        return found


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


async def body_of(request: Request) -> bytes:
    """The body of a request with JSON. Raises ApiError: 415, 413, or 408 for a client that does not go on;
    ClientGone for one that went away."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(
            f"the content type must be application/json, got {kind[:60]!r}",
            status=415,
            code="unsupported_media_type",
        )
    body, size = await _whole_body(request)
    if size > MAX_BODY:
        raise too_large(f"the body has more than {MAX_BODY} bytes")
    return body


async def _whole_body(request: Request) -> tuple[bytes, int]:
    """The body up to MAX_BODY bytes, and how many there were. Raises ApiError, ClientGone."""
    body = bytearray()
    size = 0
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for chunk in request.stream():
                size += len(chunk)
                if size <= MAX_BODY:
                    body += chunk
                elif size > MAX_UNREAD:
                    break
    except ClientDisconnect:
        raise ClientGone from None
    except TimeoutError:
        raise ApiError(
            f"the body did not come within {BODY_TIMEOUT_S:.0f} s",
            status=408,
            code="request_timeout",
            headers={"Connection": "close"},
        ) from None
    return bytes(body), size


def json_response(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A response with JSON. Lone surrogates, which no UTF-8 can hold, never reach this."""
    return Response(msgspec.json.encode(content), status, headers, "application/json")


def error_response(error: ApiError) -> Response:
    """The response for an error."""
    return json_response(error.body(), error.status, error.headers)


async def on_api_error(request: Request, error: Exception) -> Response:
    """Handler for the application."""
    assert isinstance(error, ApiError), "it is registered for these"
    return error_response(error)


async def on_http_error(request: Request, error: Exception) -> Response:
    """Handler for what the router raises: no such path, no such method."""
    assert isinstance(error, HTTPException), "it is registered for these"
    codes = {404: "not_found", 405: "method_not_allowed"}
    said = {
        404: "there is no such path; /openapi.json has those there are",
        405: f"this path does not take {request.method[:20]}",
    }
    status = error.status_code
    return error_response(
        ApiError(
            said.get(status, str(error.detail)),
            status=status,
            code=codes.get(status, "http_error"),
            headers=dict(error.headers or {}),
        )
    )
