"""What stands between the network and MONAI Label: who may ask, for what, how much; and answers that give nothing away."""

from __future__ import annotations

import base64
import binascii
import hmac
import json
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from monai_wscxr.data.radiograph.read import RadiographError
from monai_wscxr.errors import InputError
from monai_wscxr.label.archive.studies import Refused, UnknownImage

logger = logging.getLogger("monai_wscxr")

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

# what this server offers of MONAI Label; the rest (logs, uploads of weights, sessions, slides, reload) is not there
PREFIXES = ("/info", "/infer", "/train", "/activelearning", "/scoring", "/datastore", "/wscxr", "/ohif", "/static")
PAGES = ("/", "/openapi.json", "/docs", "/favicon.ico")
DICOM_PREFIX = "/proxy/dicom"
_CLOSED = ("/infer/wsi", "/datastore/dataset")
_SAFE = ("GET", "HEAD", "OPTIONS")


class Guard:
    """ASGI middleware.

    Refuses another Host than the server's own (so no web page can reach a local server under a name of its making), state
    changes that another site's page asks for, paths that this server does not offer, unknown names of models and
    strategies, and bodies above the limit. With a password every request needs it (HTTP Basic).

    Args:
        app: what is guarded.
        hosts: names and addresses under which this server is called, without port.
        largest_body: bytes.
        password: of every user, or None; the user's name does not matter.
        names: known last parts of paths, by the part before, for instance {"/infer": {"wscxr"}}.
        dicom_proxy: whether the studies are a DICOMweb server, so that OHIF may read from it.
        read_only: no change passes to a DICOMweb server either.
    """

    def __init__(
        self,
        app: Callable[[Scope, Receive, Send], Awaitable[None]],
        hosts: Collection[str],
        largest_body: int,
        password: str | None = None,
        names: Mapping[str, Collection[str]] | None = None,
        dicom_proxy: bool = False,
    ) -> None:
        self.app, self.hosts, self.largest_body = app, {h.lower() for h in hosts}, largest_body
        self.password, self.names, self.dicom_proxy = password, dict(names or {}), dicom_proxy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # nothing here speaks WebSocket; the server closes the connection
        headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}
        refusal = self._refusal(scope, headers)
        if refusal is not None:
            await _answer(send, *refusal)
            return
        await self._limited(scope, receive, send)

    def _refusal(self, scope: Scope, headers: Mapping[str, str]) -> tuple[int, str] | None:
        host = _host(headers.get("host", ""))
        if host not in self.hosts:
            return 421, "this server is not called by that name; start it with --host, or name it with --allow_host"
        if self.password is not None and not _has_password(headers.get("authorization", ""), self.password):
            return 401, "a password is needed"
        origin = headers.get("origin")
        if scope["method"] not in _SAFE and origin is not None and urlsplit(origin).netloc != headers.get("host"):
            return 403, "another site's page may not change anything here"
        if not self._offered(scope["path"], scope["method"]):
            return 404, "not found"
        try:
            length = int(headers.get("content-length") or 0)
        except ValueError:
            return 400, "bad Content-Length"
        if length > self.largest_body:
            return 413, self._too_large()
        return None

    def _too_large(self) -> str:
        return f"the request is larger than {self.largest_body} bytes"

    def _offered(self, path: str, method: str) -> bool:
        parts = path.split("/")
        if ".." in parts or "\\" in path or "\0" in path:
            return False
        if path.startswith(DICOM_PREFIX + "/"):
            return self.dicom_proxy and method in _SAFE
        if path in PAGES:
            return True
        if not any(path == p or path.startswith(p + "/") for p in PREFIXES):
            return False
        if any(path == p or path.startswith(p + "/") for p in _CLOSED):
            return False
        before, _, last = path.rpartition("/")
        return not (before in self.names and last and last not in self.names[before])

    async def _limited(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, and stop reading a body that turns out too large."""
        read, started, exceeded = 0, False, False

        async def counted() -> Message:
            nonlocal read, exceeded
            message = await receive()
            read += len(message.get("body", b""))
            if read > self.largest_body:
                exceeded = True
                return {"type": "http.disconnect"}
            return message

        async def watched(message: Message) -> None:
            nonlocal started
            if exceeded and not started:
                return
            if message["type"] == "http.response.start":
                started = True
                message = {**message, "headers": [*message.get("headers", []), (b"x-content-type-options", b"nosniff")]}
            await send(message)

        try:
            await self.app(scope, counted, watched)
        except Exception:
            # what the handlers of `explain` left over; they answer, this only keeps the trace out of the connection
            if not exceeded and not started:
                logger.exception("%s %s failed", scope["method"], scope["path"])
                await _answer(send, 500, "internal error; the server's log has it")
        if exceeded and not started:
            await _answer(send, 413, self._too_large())


def _host(header: str) -> str:
    """Name or address of a Host header, without port, in lower case."""
    name = header.strip().lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.rpartition(":")[0] if ":" in name else name


def _has_password(header: str, password: str) -> bool:
    kind, _, value = header.partition(" ")
    if kind.lower() != "basic":
        return False
    try:
        given = base64.b64decode(value, validate=True).partition(b":")[2]
    except (binascii.Error, ValueError):
        return False
    return hmac.compare_digest(given, password.encode())


async def _answer(send: Send, status: int, message: str) -> None:
    body = json.dumps({"detail": message}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b'Basic realm="monai_wscxr", charset="UTF-8"'))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


STATUS = {"read_only": 403, "unsupported": 405, "unknown": 404}


def explain(app: Any) -> None:
    """Let a FastAPI application answer this package's errors with a status and a sentence, and all others without a trace."""
    from fastapi import Request
    from fastapi.responses import JSONResponse

    def refused(request: Request, error: Exception) -> JSONResponse:
        reason = getattr(error, "reason", getattr(error, "code", "bad_input"))
        status = STATUS.get(reason, 409 if isinstance(error, Refused) else 422)
        return JSONResponse({"detail": str(error), "reason": reason, "message": str(error)}, status)

    def unreadable(request: Request, error: Exception) -> JSONResponse:
        code = getattr(error, "code", "unreadable")  # the sentence of a RadiographError begins with a path
        message = f"this file cannot be used as a radiograph ({code})"
        return JSONResponse({"detail": message, "reason": code, "message": message}, 422)

    def unknown(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"detail": str(error), "reason": "unknown_image", "message": str(error)}, 404)

    def malformed(request: Request, error: Exception) -> JSONResponse:
        message = "params is no valid JSON"
        return JSONResponse({"detail": message, "reason": "bad_json", "message": message}, 422)

    app.add_exception_handler(UnknownImage, unknown)
    app.add_exception_handler(RadiographError, unreadable)
    app.add_exception_handler(InputError, refused)
    app.add_exception_handler(json.JSONDecodeError, malformed)
