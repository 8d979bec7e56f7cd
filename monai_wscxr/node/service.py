"""HTTP service: an image or DICOM file in, score, p-value, decision and map out.

Errors are JSON, `{"reason": code, "message": sentence}`: 400 for a request that is not understood, 401 without the token, 403
and 421 for requests from other sites, 404 and 405 for other addresses and methods, 408 for a body that does not arrive, 413 for
one that is too long, 422 for wrong values, 503 with Retry-After when too many images are under way. An image that cannot be
scored is no error: its result has the status "rejected" and a reason code.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import logging
import os
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

import monai_wscxr
from monai_wscxr.data.radiograph.base import RadiographError
from monai_wscxr.label.server.guard import SameSite
from monai_wscxr.node import results
from monai_wscxr.node.batching import Batcher
from monai_wscxr.node.measures import SHARES, Sample, drift, metrics_text, quantiles
from monai_wscxr.prediction.scoring import Score
from monai_wscxr.report.page import DISCLAIMER
from monai_wscxr.system.strict_json import parse_json

logger = logging.getLogger("monai_wscxr.node")

_BODY_SECONDS = 60.0  # that a body may take to arrive, and one more per MiB
_TASK_SECONDS = 60.0
_LISTS_AT_ONCE = 2  # requests with several images, which are in memory
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}
_RESULT = {
    "type": "object",
    "required": ["status", "reason"],
    "properties": {
        "status": {"enum": ["ok", "rejected"]},
        "reason": {"type": "string", "description": "reason code of a rejected image, otherwise empty"},
        "message": {"type": "string"},
        "anomaly_score": {"type": "number"},
        "p_value": {"type": "number"},
        "abnormal": {"type": "boolean"},
        "site_p_value": {
            "type": "number",
            "description": "small where the image is unlike the normals of the calibration",
        },
        "map": {"type": "string", "format": "byte", "description": "PNG or NPY in base64, if asked for"},
    },
}
_ANSWER: dict[int | str, dict[str, Any]] = {
    200: {"description": "result", "content": {"application/json": {"schema": _RESULT}}}
}
_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "results in the order of the images",
        "content": {
            "application/json": {
                "schema": {"type": "object", "properties": {"results": {"type": "array", "items": _RESULT}}}
            }
        },
    }
}
_BINARY = {
    "required": True,
    "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
}
_LIST = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["images"],
                "properties": {
                    "images": {"type": "array", "items": {"type": "string", "format": "byte", "description": "base64"}}
                },
            }
        }
    },
}


class RefusedError(Exception):
    """A request that is answered with an error.

    Attributes:
        status, reason: HTTP status and short code.
    """

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status, self.reason = status, reason


class Service:
    """The handlers of the service, and what they share.

    Args:
        batcher: scores the images.
        largest_body: in bytes.
        largest_list: images in one request.
        folder: private folder for images under way.
    """

    def __init__(self, batcher: Batcher, largest_body: int, largest_list: int, folder: Path) -> None:
        self.batcher, self.largest_body, self.largest_list, self.folder = batcher, largest_body, largest_list, folder
        self.statuses: Counter[int] = Counter()
        self._lists = asyncio.Semaphore(_LISTS_AT_ONCE)

    async def one(self, request: Request, kind: str | None) -> tuple[Score | RadiographError, bytes | None]:
        """Score the image in a body; return the score, and the map in a format ("png" or "npy") if one is asked for."""
        self._take(1)
        try:
            with _PrivateFile(self.folder) as path:
                size = 0
                with open(path, "wb") as file:
                    async for chunk in self._body(request):
                        size += len(chunk)
                        await asyncio.to_thread(file.write, chunk)
                if not size:
                    raise RefusedError(400, "no_image", "the body is empty; send the bytes of an image")
                return await self._score(path, kind)
        finally:
            self.batcher.give_back(1)

    async def several(self, request: Request, kind: str | None) -> list[dict[str, Any]]:
        """Score the images of a JSON body; return their results."""
        if self._lists.locked():
            raise self._busy()
        async with self._lists:
            content = bytearray()
            async for chunk in self._body(request):
                content += chunk
            images = await asyncio.to_thread(self._parsed, bytes(content))
            del content
            self._take(len(images))
            try:
                return list(await asyncio.gather(*(self._result_of(image, kind) for image in images)))
            finally:
                self.batcher.give_back(len(images))

    async def _result_of(self, image: bytes, kind: str | None) -> dict[str, Any]:
        with _PrivateFile(self.folder) as path:
            await asyncio.to_thread(path.write_bytes, image)
            return result(*await self._score(path, kind))

    def _take(self, count: int) -> None:
        if count > self.batcher.places:
            raise RefusedError(422, "too_many_images", f"at most {self.batcher.places} images may be under way")
        if not self.batcher.take(count):
            raise self._busy()

    def _busy(self) -> RefusedError:
        return RefusedError(503, "busy", "too many images are under way; come again later")

    def _parsed(self, content: bytes) -> list[bytes]:
        try:
            value = parse_json(content)
            texts = value["images"] if isinstance(value, dict) and set(value) == {"images"} else None
            if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
                raise ValueError('send {"images": [...]} with at least one image in base64')
            if len(texts) > self.largest_list:
                raise ValueError(f"send at most {self.largest_list} images in one request")
            return [base64.b64decode(text, validate=True) for text in texts]
        except binascii.Error:
            raise RefusedError(422, "bad_images", "an image is not in base64") from None
        except ValueError as error:
            message = (
                f"the body is not as expected: {error}" if len(str(error)) < 200 else "the body is not as expected"
            )
            raise RefusedError(422, "bad_images", message) from None

    async def _body(self, request: Request) -> Any:
        """Yield the parts of a body, which must arrive in time and not be too long."""
        read, until = 0, time.monotonic() + _BODY_SECONDS
        parts = request.stream().__aiter__()
        while True:
            try:
                left = until + read / 2**20 - time.monotonic()
                chunk = await asyncio.wait_for(anext(parts), max(0.0, left))
            except StopAsyncIteration:
                return
            except asyncio.TimeoutError:  # another class than TimeoutError before Python 3.11
                raise RefusedError(408, "too_slow", "the body did not arrive in time") from None
            read += len(chunk)
            if read > self.largest_body:
                raise RefusedError(413, "too_large", f"a body may have at most {self.largest_body} bytes")
            yield chunk

    async def _score(self, path: Path, kind: str | None) -> tuple[Score | RadiographError, bytes | None]:
        score = await asyncio.wrap_future(self.batcher.submit(str(path)))
        if kind is None or not isinstance(score, Score):
            return score, None
        task = self.batcher.scorer.submit(results.encoded_map, score, kind, seconds=_TASK_SECONDS)
        return score, await asyncio.wrap_future(task)

    def metrics(self) -> str:
        """Return metrics in the text format of Prometheus."""
        batcher = self.batcher
        latency: list[Sample] = [
            ({"quantile": f"{share:g}"}, value)
            for share, value in zip(SHARES, quantiles(list(batcher.seconds)), strict=True)
            if value is not None
        ]
        shift = drift(batcher.scorer.model, list(batcher.outcomes))["shift"]
        images: list[Sample] = [({"outcome": code}, count) for code, count in sorted(batcher.counts.items())]
        requests: list[Sample] = [({"status": str(s)}, count) for s, count in sorted(self.statuses.items())]
        return metrics_text(
            [
                ("service_images_total", "counter", "Images by outcome: ok or reason code", images),
                ("service_requests_total", "counter", "Requests by status", requests),
                ("service_latency_seconds", "gauge", "From arrival to the score, recent images", latency),
                ("service_under_way", "gauge", "Images under way", [({}, batcher.taken)]),
                ("service_places", "gauge", "Largest number of images under way", [({}, batcher.places)]),
                ("service_drift_shift", "gauge", "Shift of recent images", [] if shift is None else [({}, shift)]),
            ]
        )


class _PrivateFile:
    """A file in a folder that ends with the block."""

    def __init__(self, folder: Path) -> None:
        descriptor, name = tempfile.mkstemp(dir=folder)
        os.close(descriptor)
        self.path = Path(name)

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *error: object) -> None:
        self.path.unlink(missing_ok=True)


def result(score: Score | RadiographError, picture: bytes | None = None) -> dict[str, Any]:
    """Return a score, or the reason why there is none, as JSON values."""
    if isinstance(score, RadiographError):
        return {"status": "rejected", "reason": score.code, "message": score.message}
    outcome = {name: value for name, value in score.outcome.items() if name not in ("acquired", "site_coordinates")}
    encoded = {} if picture is None else {"map": base64.b64encode(picture).decode()}
    return {"status": "ok", "reason": "", **outcome, **encoded}


def create_application(service: Service) -> FastAPI:
    """Create the application of the service, without its guard."""
    model = service.batcher.scorer.model
    app = FastAPI(
        title="WSCXR",
        version=monai_wscxr.__version__,
        description=f"Anomaly scores of chest radiographs. {DISCLAIMER}",
        docs_url=None,  # its page would load scripts from another site
        redoc_url=None,
    )
    picture = Query(
        default=None, alias="map", pattern="^(png|npy)$", description="the map: a picture, or float32 [S, S]"
    )
    form = Query(default="png", alias="format", pattern="^(png|npy)$", description="a picture, or float32 [S, S]")

    @app.post("/predict", responses=_ANSWER, openapi_extra={"requestBody": _BINARY}, response_model=None)
    async def predict(request: Request, kind: str | None = picture) -> Response:
        """Score one image: the body is a DICOM, PNG, JPEG, TIFF, BMP or NIfTI file."""
        return JSONResponse(result(*await service.one(request, kind)))

    @app.post("/predict/list", responses=_ANSWERS, openapi_extra={"requestBody": _LIST}, response_model=None)
    async def predict_list(request: Request, kind: str | None = picture) -> Response:
        """Score several images, in base64."""
        return JSONResponse({"results": await service.several(request, kind)})

    @app.post("/map", openapi_extra={"requestBody": _BINARY}, response_model=None)
    async def map_of_image(request: Request, kind: str = form) -> Response:
        """Return the anomaly map of one image, or status 422 with the reason when there is none."""
        score, content = await service.one(request, kind)
        if isinstance(score, RadiographError) or content is None:
            return JSONResponse(result(score), status_code=422)
        return Response(content, media_type="image/png" if kind == "png" else "application/octet-stream")

    @app.get("/model", response_model=None)
    async def about() -> Response:
        """Describe the model and its operating point."""
        return JSONResponse(
            {
                "sha256": model.sha256,
                "version": monai_wscxr.__version__,
                "threshold": model.calibration.threshold,
                "false_positive_rate": model.calibration.supported_rate,
                "image_size": model.preprocessing.image_size,
                "use": DISCLAIMER,
            }
        )

    @app.get("/health", response_model=None)
    async def health() -> Response:
        """Tell whether images are scored."""
        alive = service.batcher.alive
        return JSONResponse({"status": "ok" if alive else "failed"}, status_code=200 if alive else 503)

    @app.get("/metrics", response_model=None)
    async def metrics() -> Response:
        """Return metrics in the text format of Prometheus."""
        text = await asyncio.to_thread(service.metrics)
        return Response(text, media_type="text/plain; version=0.0.4")

    @app.exception_handler(RefusedError)
    async def refused(request: Request, error: RefusedError) -> Response:
        headers = {"Retry-After": str(service.batcher.wait_seconds())} if error.status == 503 else {}
        return _error(error.status, error.reason, str(error), headers)

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> Response:
        return _error(error.status_code, "not_found" if error.status_code == 404 else "bad_request", str(error.detail))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        names = ", ".join(sorted({str(entry["loc"][-1]) for entry in error.errors()}))
        return _error(422, "bad_value", f"not allowed values of: {names}")

    return app


def _error(status: int, reason: str, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"reason": reason, "message": message}, status_code=status, headers=dict(headers or {}))


Scope = dict[str, Any]
Send = Callable[[Any], Awaitable[None]]


class Door:
    """ASGI middleware: who may come in, and headers of every answer.

    With a token every request but that for /health needs it (`Authorization: Bearer TOKEN`). Without one the service is for
    programs on this machine: the Host header must be a name of the loopback, and pages of web sites get nothing.

    Args:
        app: the application.
        service: counts the answers.
        token: or None.
        hosts: names of this server for requests without a token.
    """

    def __init__(self, app: Any, service: Service, token: str | None, hosts: Collection[str]) -> None:
        self.app, self.service, self.token = app, service, token
        self.same_site = SameSite(hosts if token is None else None, protect_reads=True)

    async def __call__(self, scope: Scope, receive: Any, send: Send) -> None:
        """Pass a request on, or answer it."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
            return
        started = False

        async def watched(message: Any) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                self.service.statuses[message["status"]] += 1
                message["headers"] = [
                    *message.get("headers", []),
                    *((name.lower().encode(), value.encode()) for name, value in _HEADERS.items()),
                ]
            await send(message)

        headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}
        answer = self._refusal(scope, headers)
        if answer is not None:
            await answer(scope, receive, watched)
            return
        try:
            await self.app(scope, receive, watched)
        except Exception as error:  # its text may quote what came; the trace goes nowhere
            logger.error("%s ended with %s", scope["path"], type(error).__name__)
            if not started:
                await _error(500, "internal", "internal error; see the log of the service")(scope, receive, watched)

    def _refusal(self, scope: Scope, headers: Mapping[str, str]) -> JSONResponse | None:
        foreign = self.same_site.refusal(scope["method"], headers, page=False)
        if foreign is not None:
            return _error(foreign.status, foreign.reason, foreign.message)
        if self.token is not None and scope["path"] != "/health" and not _has_token(headers, self.token):
            return _error(401, "no_token", "this request needs the token", {"WWW-Authenticate": "Bearer"})
        length = headers.get("content-length", "0")
        if not length.isascii() or not length.isdigit():
            return _error(HTTPStatus.BAD_REQUEST, "bad_request", "bad Content-Length")
        if int(length[:20]) > self.service.largest_body:
            limit = self.service.largest_body
            return _error(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too_large", f"a body may have at most {limit} bytes")
        return None


def _has_token(headers: Mapping[str, str], token: str) -> bool:
    """Check the token of a request, in constant time."""
    kind, _, value = headers.get("authorization", "").partition(" ")
    return kind.lower() == "bearer" and hmac.compare_digest(value.strip().encode("latin-1"), token.encode())
