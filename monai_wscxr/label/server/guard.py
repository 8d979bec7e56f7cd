"""Which requests reach the server: the host names, origins, passwords, addresses and sizes that it accepts."""

from __future__ import annotations

import base64
import binascii
import hmac
import json
import logging
import re
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, MutableMapping
from http import HTTPStatus
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from monai_wscxr.label.server.proxy import PREFIX, archive_path

logger = logging.getLogger("monai_wscxr")

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

LOOPBACK = ("localhost", "127.0.0.1", "::1")
# everything that this server offers; all other addresses are closed, also those that MONAI Label may add
_CALLS = re.compile(
    "/(?:info|(?:train|scoring)(?:/[^/]+)?|(?:infer|activelearning)/[^/]+"
    "|datastore(?:/(?:image|label)(?:/info)?|/updatelabelinfo)?)/?"
)
_PAGES = re.compile(r"/|/openapi\.json|/docs|/favicon\.ico|/(?:wscxr|ohif|static)(?:/.*)?")
# what every answer says to browsers: other sites may neither embed nor frame it, and its type is as stated
_HEADERS = {
    b"x-content-type-options": b"nosniff",
    b"cross-origin-resource-policy": b"same-origin",
    b"content-security-policy": b"frame-ancestors 'none'",
    b"x-frame-options": b"DENY",
    b"referrer-policy": b"no-referrer",
}
_SAFE = ("GET", "HEAD", "OPTIONS")
_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^\s@/?#\\:\[\]]+))(?::\d*)?")


class Refusal(NamedTuple):
    """Why a request is refused.

    Attributes:
        status: HTTP status, 400 or above.
        reason: short code for programs.
        message: one sentence for people.
    """

    status: HTTPStatus
    reason: str
    message: str


class SameSite:
    """Decides by Host, Origin and fetch metadata whether a request may come from a web page of another site.

    The server listens on the annotator's machine, where every web site that the annotator has open can reach it. The Host
    header must be a name of the server, so no foreign name that resolves to this machine gets through (DNS rebinding). A
    browser also names the site of the page that sends a request; that must be the server's own. Programs other than browsers
    send neither Origin nor fetch metadata and pass.

    Args:
        hosts: names and addresses of the server, without port; None accepts any, for a server behind another check.
        protect_reads: whether pages of other sites may not read either. Following a link to a page is always allowed.
        friends: origins of other sites whose pages may read, "*" for all.
    """

    def __init__(self, hosts: Collection[str] | None, protect_reads: bool, friends: Collection[str] = ()) -> None:
        self.hosts = None if hosts is None else frozenset(host.lower() for host in hosts)
        self.protect_reads, self.friends = protect_reads, frozenset(origin.lower() for origin in friends)

    def refusal(self, method: str, headers: Mapping[str, str], page: bool = True) -> Refusal | None:
        """Return why a request is refused, or None if it may pass.

        Args:
            method: HTTP method, in capitals.
            headers: request headers, by lower-case name.
            page: whether the address is a page, to which other sites may link.
        """
        host = headers.get("host", "").strip().lower()
        if self.hosts is not None and host_name(host) not in self.hosts:
            names = ", ".join(sorted(self.hosts))
            return Refusal(
                HTTPStatus.MISDIRECTED_REQUEST,
                "foreign_host",
                f"this server answers only to {names}; use one of these names, or start it with --allow_host NAME",
            )
        friend = method in _SAFE and bool({"*", headers.get("origin", "").lower()} & self.friends)
        if (self.protect_reads or method not in _SAFE) and not friend and _from_other_site(method, headers, host, page):
            return Refusal(
                HTTPStatus.FORBIDDEN,
                "foreign_origin",
                "the request comes from a page of another site, which may not use this server",
            )
        return None


def host_name(header: str) -> str | None:
    """Return the name or address in a lower-case Host header, without port; None when it is malformed."""
    match = _HOST.fullmatch(header)
    return None if match is None else match[1] or match[2]


def _from_other_site(method: str, headers: Mapping[str, str], host: str, page: bool) -> bool:
    """Tell whether a browser sent a request for a page of another site, unless it follows a link to a page."""
    opens = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest", "document") == "document"
    follows_link = page and method == "GET" and opens
    if headers.get("sec-fetch-site") in ("cross-site", "same-site") and not follows_link:
        return True
    origin = headers.get("origin")
    if origin is None:
        return False
    try:
        return (
            urlsplit(origin).netloc.lower() != host
        )  # without the scheme, which a TLS proxy in front of the server changes
    except ValueError:
        return True


class Guard:
    """ASGI middleware that passes on the requests that the server accepts and answers the others.

    It refuses requests from pages of other sites (see `SameSite`), addresses that this server does not offer, unknown names of
    models and strategies, and bodies that are too large. With a password every request needs it (HTTP Basic). Every answer,
    also of the application, carries headers against embedding by other sites.

    Args:
        app: the application behind the guard.
        hosts: names and addresses of this server, without port.
        largest_body: largest body in bytes.
        password: one password for all users, or None; user names do not matter.
        names: known last parts of addresses by the part before, for instance {"/infer": {"wscxr"}}.
        dicom_proxy: whether the studies are on a DICOMweb server, from which OHIF may read through this one.
        friends: origins of other sites whose pages may read (CORS).
    """

    def __init__(
        self,
        app: Callable[[Scope, Receive, Send], Awaitable[None]],
        hosts: Collection[str],
        largest_body: int,
        password: str | None = None,
        names: Mapping[str, Collection[str]] | None = None,
        dicom_proxy: bool = False,
        friends: Collection[str] = (),
    ) -> None:
        self.app, self.largest_body = app, largest_body
        self.same_site = SameSite(hosts, protect_reads=True, friends=friends)
        self.password, self.names, self.dicom_proxy = password, dict(names or {}), dicom_proxy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # the server has no WebSockets
            await receive()
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}
        refusal = self._refusal(scope["method"], scope["path"], headers)
        if refusal is not None:
            await _answer(send, *refusal)
            return
        await self._pass_on(scope, receive, send)

    def _refusal(self, method: str, path: str, headers: Mapping[str, str]) -> tuple[int, str] | None:
        """Return status and message of a refusal, or None."""
        foreign = self.same_site.refusal(method, headers, _PAGES.fullmatch(path) is not None)
        if foreign is not None:
            return foreign.status, foreign.message
        if self.password is not None and not _has_password(headers.get("authorization", ""), self.password):
            return 401, "a password is needed"
        if not self._offers(path, method):
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

    def _offers(self, path: str, method: str) -> bool:
        """Tell whether the server offers an address."""
        if ".." in path.split("/") or "\\" in path or not path.isprintable():
            return False
        if path.startswith(PREFIX + "/"):
            return self.dicom_proxy and method in _SAFE and archive_path(path) is not None
        if _PAGES.fullmatch(path):
            return True
        if not _CALLS.fullmatch(path):
            return False
        before, _, last = path.removesuffix("/").rpartition("/")
        return not (before in self.names and last not in self.names[before])

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application; stop when the body becomes too large, regardless of its Content-Length header."""
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
                message = {**message, "headers": _protected(message.get("headers", []))}
            await send(message)

        try:
            await self.app(scope, counted, watched)
        except Exception:
            # errors without a handler of their own: the stack trace goes to the log, never to the client
            if not exceeded and not started:
                logger.exception("%s %s failed", scope["method"], scope["path"])
                await _answer(send, 500, "internal error; see the server's log")
        if exceeded and not started:
            await _answer(send, 413, self._too_large())


def _protected(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Add `_HEADERS` to those of an answer; one that the answer has already stays, it is stricter."""
    given = list(headers)
    present = {name.lower() for name, _ in given}
    return given + [(name, value) for name, value in _HEADERS.items() if name not in present]


def _has_password(header: str, password: str) -> bool:
    """Check the password in an Authorization header, in constant time."""
    kind, _, value = header.partition(" ")
    if kind.lower() != "basic":
        return False
    try:
        given = base64.b64decode(value, validate=True).partition(b":")[2]
    except (binascii.Error, ValueError):
        return False
    return hmac.compare_digest(given, password.encode())


async def _answer(send: Send, status: int, message: str) -> None:
    """Send a JSON answer {"detail": message}."""
    body = json.dumps({"detail": message}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b'Basic realm="monai_wscxr", charset="UTF-8"'))
    await send({"type": "http.response.start", "status": int(status), "headers": _protected(headers)})
    await send({"type": "http.response.body", "body": body})
