"""What every request to the page passes: who may ask, how much may be sent, and how a refusal reads.

The server listens on this machine, where every web site that the annotator has open can reach it too. Three things keep
such a site out: the Host header must be a name of this machine (a foreign name that resolves to it, "DNS rebinding", is
refused), the Origin header and the fetch metadata must not be another site's, and pages of other sites cannot frame this one.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection
from http import HTTPStatus
from urllib.parse import urlsplit

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute

from monai_wscxr.data.radiograph.base import RadiographError
from monai_wscxr.errors import InputError
from monai_wscxr.label.archive.studies import UnknownImage

THIS_MACHINE = ("localhost", "127.0.0.1", "::1")
BODY_LIMIT = 4096  # bytes; a label takes about a hundred

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}

_log = logging.getLogger(__name__)


class RefusedError(Exception):
    """A request that is answered with a reason instead of a result.

    Attributes:
        status: HTTP status, 400 or above.
        reason: short code for programs.
        message: one sentence for people.
    """

    def __init__(self, status: HTTPStatus, reason: str, message: str) -> None:
        super().__init__(message)
        self.status, self.reason, self.message = status, reason, message


def guarded(hosts: Collection[str] | None) -> type[APIRoute]:
    """A route class that guards each of its requests.

    Args:
        hosts: host names under which the server may be addressed, without port; None for any.
    """
    allowed = None if hosts is None else frozenset(name.lower() for name in hosts)

    class GuardedRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Awaitable[Response]]:  # type: ignore[override]
            answer = super().get_route_handler()

            async def handler(request: Request) -> Response:
                try:
                    _check_host(request, allowed)
                    _check_origin(request)
                    response = await answer(await _limited(request))
                except Exception as error:
                    response = _refusal(error)
                for name, value in HEADERS.items():
                    response.headers.setdefault(name, value)
                response.headers.setdefault("Cache-Control", "no-store")
                return response

            return handler

    return GuardedRoute


def _check_host(request: Request, allowed: Collection[str] | None) -> None:
    if allowed is None:
        return
    try:
        name = urlsplit("//" + request.headers.get("host", "")).hostname
    except ValueError:
        name = None
    if name not in allowed:
        raise RefusedError(
            HTTPStatus.MISDIRECTED_REQUEST,
            "foreign_host",
            f"this server answers only as {', '.join(sorted(allowed))}; open it under one of these names",
        )


def _check_origin(request: Request) -> None:
    """Refuse what another site's page sends; programs send neither header and pass."""
    origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site")
    followed_link = request.method == "GET" and request.headers.get("sec-fetch-mode") == "navigate"
    foreign = site in ("cross-site", "same-site") and not followed_link
    if origin is not None:
        # the scheme is left out: a proxy that adds TLS in front of this server changes it
        foreign = foreign or urlsplit(origin).netloc.lower() != request.headers.get("host", "").lower()
    if foreign:
        raise RefusedError(
            HTTPStatus.FORBIDDEN,
            "foreign_origin",
            "the request comes from a page of another site, which may not use this",
        )


async def _limited(request: Request) -> Request:
    """The request with its body read, or a refusal as soon as the body is too long, whatever length was announced."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY_LIMIT:
            raise RefusedError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too_large", f"a request may hold at most {BODY_LIMIT} bytes"
            )

    async def replay() -> dict[str, object]:
        return {"type": "http.request", "body": bytes(body), "more_body": False}

    return Request(request.scope, replay)


def _refusal(error: Exception) -> JSONResponse:
    if isinstance(error, UnknownImage):
        error = RefusedError(HTTPStatus.NOT_FOUND, "unknown_image", "the collection has no image with this id")
    elif isinstance(error, RequestValidationError):
        error = RefusedError(HTTPStatus.UNPROCESSABLE_ENTITY, "invalid", _sentence(error))
    elif isinstance(error, RadiographError):  # its own sentence begins with a path
        error = RefusedError(HTTPStatus.CONFLICT, error.code, f"the file cannot be used as a radiograph ({error.code})")
    elif isinstance(error, InputError):
        error = RefusedError(HTTPStatus.CONFLICT, getattr(error, "reason", "refused"), str(error))
    elif not isinstance(error, RefusedError):
        _log.error("a request to the labelling page failed", exc_info=error)
        error = RefusedError(
            HTTPStatus.INTERNAL_SERVER_ERROR, "internal", "the server met an error of its own; its log has the details"
        )
    return JSONResponse({"reason": error.reason, "message": error.message}, error.status)


def _sentence(error: RequestValidationError) -> str:
    """The first thing that is wrong with the parameters or the body; values that came in are not repeated."""
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return "the body is not valid JSON"
    where = ".".join(str(part) for part in first["loc"][1:]) or "the request"
    return f"{where}: {first['msg'].removeprefix('Value error, ')}"
