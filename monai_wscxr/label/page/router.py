"""The labelling page and its JSON interface as one FastAPI router.

Answers are JSON, errors `{"reason": code, "message": sentence}`: 404 for an unknown image or address, 409 for a request that
the workbench refuses, 422 for a malformed request, 413 for a body that is too long, 403 and 421 for requests from other sites.
No answer holds a stack trace or a path.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Collection
from http import HTTPStatus
from importlib import resources
from typing import Annotated, Any, Literal, Protocol

import numpy as np
from fastapi import APIRouter, Header, Query, Response
from fastapi.responses import JSONResponse
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, StrictBool, field_validator, model_validator

from monai_wscxr.label.archive.studies import class_name
from monai_wscxr.label.page.route import RefusedError, page_route
from monai_wscxr.label.server.guard import LOOPBACK, Refusal
from monai_wscxr.report.overlay import colour_map

Strategy = Literal["varied", "most_suspicious", "most_uncertain", "random", "labelled"]
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


class WorkbenchLike(Protocol):
    """The methods of `monai_wscxr.label.workbench.Workbench` that the page calls."""

    def status(self) -> dict[str, Any]: ...
    def queue(self, strategy: str, n: int = 50, offset: int = 0) -> list[dict[str, Any]]: ...
    def item(self, image_id: str) -> dict[str, Any]: ...
    def radiograph_png(self, image_id: str) -> bytes: ...
    def map_png(self, image_id: str) -> bytes: ...
    def set_label(
        self, image_id: str, label: int | None, image_class: str | None = None, skipped: bool = False
    ) -> dict[str, Any]: ...
    def start_training(self) -> dict[str, Any]: ...
    def training(self) -> dict[str, Any]: ...
    def changes(self) -> dict[str, Any] | None: ...


class LabelBody(BaseModel):
    """Body of a request that labels an image: 0 normal, 1 abnormal with an optional class, null for none, or skipped."""

    model_config = ConfigDict(extra="forbid")

    label: Annotated[int, Field(strict=True, ge=0, le=1)] | None
    image_class: str | None = Field(default=None, alias="class")
    skipped: StrictBool = False

    @field_validator("image_class")
    @classmethod
    def _name(cls, value: str | None) -> str | None:
        return class_name(value)

    @model_validator(mode="after")
    def _consistent(self) -> LabelBody:
        if self.image_class is not None and self.label != 1:
            raise ValueError("only an abnormal image (label 1) has a class")
        if self.skipped and self.label is not None:
            raise ValueError("a skipped image has no label; send label null")
        return self


def router(workbench: WorkbenchLike, hosts: Collection[str] | None = LOOPBACK) -> APIRouter:
    """Create the page's routes, to be included with a prefix: `app.include_router(router(workbench), prefix="/wscxr")`.

    Args:
        workbench: studies, labels and model; its methods are called in worker threads.
        hosts: names of the server, without port. None accepts any, for a server that checks them itself (`Guard`).
    """
    routes = APIRouter(route_class=page_route(hosts), tags=["WSCXR labelling page"])
    _add_api(routes, workbench)
    _add_pictures(routes, workbench)
    _add_files(routes)
    return routes


def _add_api(routes: APIRouter, workbench: WorkbenchLike) -> None:
    @routes.get("/api/status")
    def status() -> JSONResponse:
        return JSONResponse(workbench.status())

    @routes.get("/api/queue")
    def queue(
        strategy: Strategy = "varied",
        n: Annotated[int, Query(ge=1, le=500)] = 50,
        offset: Annotated[int, Query(ge=0)] = 0,
    ) -> JSONResponse:
        return JSONResponse(workbench.queue(strategy, n, offset))

    @routes.put("/api/items/{image_id:path}/label")
    def set_label(image_id: str, label: LabelBody) -> JSONResponse:
        return JSONResponse(workbench.set_label(image_id, label.label, label.image_class, label.skipped))

    @routes.post("/api/train", status_code=HTTPStatus.ACCEPTED)
    def start_training() -> JSONResponse:
        return JSONResponse(workbench.start_training(), HTTPStatus.ACCEPTED)

    @routes.get("/api/train")
    def training() -> JSONResponse:
        return JSONResponse(workbench.training())

    @routes.get("/api/changes")
    def changes() -> JSONResponse:
        return JSONResponse(workbench.changes())


def _add_pictures(routes: APIRouter, workbench: WorkbenchLike) -> None:
    def picture(image_id: str, draw: Callable[[str], bytes], known: str | None) -> Response:
        model = (workbench.status()["model"] or {}).get("sha256") or "none"
        return _tagged(draw(image_id), "image/png", known, model)

    @routes.get("/api/items/{image_id:path}/radiograph.png")
    def radiograph(image_id: str, if_none_match: Annotated[str | None, Header()] = None) -> Response:
        return picture(image_id, workbench.radiograph_png, if_none_match)

    @routes.get("/api/items/{image_id:path}/map.png")
    def anomaly_map(image_id: str, if_none_match: Annotated[str | None, Header()] = None) -> Response:
        return picture(image_id, workbench.map_png, if_none_match)

    @routes.get("/api/items/{image_id:path}")  # after the longer addresses, which it would match too
    def item(image_id: str) -> JSONResponse:
        return JSONResponse(workbench.item(image_id))

    # as opaque as the maps themselves, so that the legend follows the opacity that the page gives both
    position = np.linspace(0.0, 1.0, 256)[None]
    ramp = np.concatenate([colour_map(position), np.rint(255 * position).astype(np.uint8)[..., None]], axis=2)
    buffer = io.BytesIO()
    Image.fromarray(ramp).save(buffer, format="PNG")
    scale = buffer.getvalue()

    @routes.get("/api/scale.png")
    def colour_scale(if_none_match: Annotated[str | None, Header()] = None) -> Response:
        return _tagged(scale, "image/png", if_none_match, "scale")


def _add_files(routes: APIRouter) -> None:
    """Add the page's own files, read once; any other name is unknown, so no address leads out of their folder."""
    files = {
        file.name: (file.read_bytes(), _TYPES["." + file.name.rsplit(".", 1)[1]])
        for file in resources.files(__package__).joinpath("static").iterdir()
    }

    @routes.get("/", include_in_schema=False)
    def page(if_none_match: Annotated[str | None, Header()] = None) -> Response:
        return _tagged(*files["index.html"], if_none_match, "page")

    @routes.api_route("/{address:path}", methods=["GET", "POST", "PUT", "PATCH", "DELETE"], include_in_schema=False)
    def file(address: str, if_none_match: Annotated[str | None, Header()] = None) -> Response:
        if address not in files:
            raise RefusedError(Refusal(HTTPStatus.NOT_FOUND, "unknown_address", "there is nothing at this address"))
        return _tagged(*files[address], if_none_match, "page")


def _tagged(content: bytes, kind: str, known: str | None, key: str) -> Response:
    """Answer with `content`, or with 304 if the browser already has it.

    The tag includes a hash of the content, so a replaced file never looks unchanged.

    Args:
        content: the body.
        kind: media type.
        known: the request's If-None-Match header.
        key: first part of the tag; for pictures the model's hash.
    """
    tag = f'"{key[:16]}-{hashlib.sha256(content).hexdigest()[:16]}"'
    headers = {"ETag": tag, "Cache-Control": "private, no-cache"}  # browsers keep it but ask again each time
    if known is not None and tag in (part.strip().removeprefix("W/") for part in known.split(",")):
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    return Response(content, media_type=kind, headers=headers)
