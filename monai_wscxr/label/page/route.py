"""How the page's requests are answered: whom it serves, how much may be sent, security headers, and errors as JSON."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection
from http import HTTPStatus

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from monai_wscxr.data.radiograph.base import RadiographError
from monai_wscxr.errors import InputError
from monai_wscxr.label.archive.studies import UnknownImage
from monai_wscxr.label.messages import without_paths
from monai_wscxr.label.server.guard import Refusal, SameSite

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
    """A request that is answered with a refusal instead of a result."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


def page_route(hosts: Collection[str] | None) -> type[APIRoute]:
    """Create the route class of the page: it checks each request and answers each error.

    Args:
        hosts: names of the server, without port; None accepts any, see `SameSite`.
    """
    same_site = SameSite(hosts, protect_reads=True)

    class PageRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Awaitable[Response]]:  # type: ignore[override]
            answer = super().get_route_handler()

            async def handler(request: Request) -> Response:
                try:
                    foreign = same_site.refusal(request.method, request.headers)
                    if foreign is not None:
                        raise RefusedError(foreign)
                    response = await answer(await _limited(request))
                except Exception as error:
                    refusal = _refusal(error)
                    response = JSONResponse({"reason": refusal.reason, "message": refusal.message}, refusal.status)
                for name, value in HEADERS.items():
                    response.headers.setdefault(name, value)
                response.headers.setdefault("Cache-Control", "no-store")
                return response

            return handler

    return PageRoute


async def _limited(request: Request) -> Request:
    """Read the body of a request; stop as soon as it is too long, regardless of its Content-Length header."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY_LIMIT:
            message = f"a request may hold at most {BODY_LIMIT} bytes"
            raise RefusedError(Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too_large", message))

    async def replay() -> dict[str, object]:
        return {"type": "http.request", "body": bytes(body), "more_body": False}

    return Request(request.scope, replay)


def _refusal(error: Exception) -> Refusal:
    """Translate an error into an answer; unexpected errors go to the log, and the client learns nothing of them."""
    if isinstance(error, RefusedError):
        return error.refusal
    if isinstance(error, UnknownImage):
        return Refusal(HTTPStatus.NOT_FOUND, "unknown_image", "the collection has no image with this id")
    if isinstance(error, RequestValidationError):
        return Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, "invalid", _first_problem(error))
    if isinstance(error, HTTPException):  # the body could not be read at all
        return Refusal(HTTPStatus(error.status_code), "invalid", "the body is not valid JSON")
    if isinstance(error, RadiographError):
        return Refusal(HTTPStatus.CONFLICT, error.code, error.message)
    if isinstance(error, InputError):
        return Refusal(HTTPStatus.CONFLICT, getattr(error, "reason", "refused"), without_paths(str(error)))
    _log.error("a request to the labelling page failed", exc_info=error)
    return Refusal(HTTPStatus.INTERNAL_SERVER_ERROR, "internal", "the server met an unexpected error; see its log")


def _first_problem(error: RequestValidationError) -> str:
    """Name the first problem of the parameters or the body, without repeating the values that were sent."""
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return "the body is not valid JSON"
    where = ".".join(str(part) for part in first["loc"][1:]) or "the request"
    return f"{where}: {first['msg'].removeprefix('Value error, ')}"
