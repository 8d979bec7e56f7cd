"""MONAI Label's interface as an application of its own, which holds nothing but the calls that this server offers.

MONAI Label's functions answer; what is different here is around them. They run in threads, so that a slow request holds up no
other one. JSON in a request is checked before they see it. Uploads are removed with their request, see `Uploads`.
"""

from __future__ import annotations

import inspect
import json
import os
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from enum import Enum
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Depends, FastAPI, File, Form, Response, UploadFile
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, StreamingResponse
from fastapi.routing import APIRoute
from fastapi.staticfiles import StaticFiles
from monailabel.config import RBAC_ANNOTATOR, RBAC_USER, settings
from monailabel.endpoints import activelearning, datastore, info, scoring, train
from monailabel.endpoints.user.auth import RBAC, User
from monailabel.utils.others.generic import get_mime_type
from requests_toolbelt import MultipartEncoder

from monai_wscxr.label.archive.studies import Refused
from monai_wscxr.label.server.proxy import PREFIX, ArchiveProxy, archive_path
from monai_wscxr.label.server.values import BadRequest, check_object, check_text, json_object

if TYPE_CHECKING:
    from monai_wscxr.label.app.main import WSCXRApp

STATIC = Path(inspect.getfile(datastore)).parent / "static"
_JSON_TEXTS = ("params", "info")  # parameters that hold JSON as text
_OWN = {("PUT", "/datastore/"), ("PUT", "/datastore/image"), ("PUT", "/datastore/label"), ("GET", "/datastore/image")}
_CLOSED = ("/datastore/dataset",)
_LARGEST_SYNCHRONOUS = 8  # trainings and scorings whose clients wait for the end
_DIGESTS = ("SHA256", "SHA512", "MD5")

_as_user = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))
_as_annotator = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ANNOTATOR))


class Output(str, Enum):
    """What an inference answers: the map, the numbers, or both."""

    image = "image"
    json = "json"
    all = "all"


def create_application(instance: WSCXRApp, archive: ArchiveProxy | None) -> FastAPI:
    """Create the application.

    Args:
        instance: the MONAI Label app.
        archive: the DICOMweb server of the studies; None for studies in a folder.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        instance.server_mode(True)
        instance.on_init_complete()
        yield

    app = FastAPI(
        title=settings.MONAI_LABEL_PROJECT_NAME,
        openapi_url="/openapi.json",
        docs_url=None,
        redoc_url="/docs",
        lifespan=lifespan,
    )
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    _add_monai_label(app)
    _add_inference(app, instance)
    _add_uploads(app, instance)
    _add_images(app, instance)
    _add_pages(app)
    if archive is not None:
        _add_archive(app, archive)
    return app


def _add_monai_label(app: FastAPI) -> None:
    """Add the calls that MONAI Label's own functions answer."""
    waiting = threading.BoundedSemaphore(_LARGEST_SYNCHRONOUS)
    for module in (info, train, activelearning, scoring, datastore):
        for route in module.router.routes:
            assert isinstance(route, APIRoute)
            methods = [method for method in sorted(route.methods or ()) if (method, route.path) not in _OWN]
            if route.path in _CLOSED or not methods:
                continue
            app.add_api_route(
                route.path,
                _checked(route.endpoint, waiting),
                methods=methods,
                tags=route.tags,
                summary=route.summary,
                include_in_schema=route.include_in_schema,
                deprecated=route.deprecated,
            )


def _checked(endpoint: Callable[..., Coroutine[Any, Any, Any]], waiting: threading.BoundedSemaphore) -> Any:
    """Wrap a function of MONAI Label, which never awaits anything, so that it runs in a thread with checked arguments."""

    def call(**arguments: Any) -> Any:
        for name, value in arguments.items():
            if name in _JSON_TEXTS and isinstance(value, str):
                json_object(value, name)
            elif isinstance(value, dict):
                _check_parameters(value, arguments)
            elif isinstance(value, str):
                check_text(value, name)
        _check_digest(arguments.get("check_sum"))
        if not arguments.get("run_sync"):
            return _result(endpoint(**arguments))
        if not waiting.acquire(blocking=False):
            raise Refused("busy", "too many requests are waiting for a training or scoring; leave run_sync out")
        try:
            return _result(endpoint(**arguments))
        finally:
            waiting.release()

    call.__name__, call.__doc__ = endpoint.__name__, endpoint.__doc__
    call.__signature__ = inspect.signature(endpoint)  # type: ignore[attr-defined]
    return call


def _check_parameters(value: dict[str, Any], arguments: dict[str, Any]) -> None:
    """Check the JSON body of a call of a task: names are text, and the parameters of each task are an object."""
    check_object(value, "the body")
    for name in ("model", "method", "strategy"):
        if not isinstance(value.get(name, ""), str):
            raise BadRequest(f"{name} must be text", "bad_json")
    if not any(name in arguments for name in ("model", "method", "strategy")):  # parameters by task
        for name, one in value.items():
            check_object(one, f"the parameters of {name}")


def _check_digest(text: str | None) -> None:
    """Check that a digest names an algorithm that MONAI Label computes."""
    if text and ":" in text and text.split(":")[0] not in _DIGESTS:
        raise BadRequest(f"check_sum starts with one of {', '.join(_DIGESTS)}, followed by a colon")


def _result(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Return the result of a coroutine that never waits."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    coroutine.close()
    raise RuntimeError("a function of MONAI Label waits, which is not expected")


def _add_inference(app: FastAPI, instance: WSCXRApp) -> None:
    @app.post("/infer/{model}", summary=f"{RBAC_USER}Run Inference for supported model", tags=["Infer"])
    def infer(
        model: str,
        image: str = "",
        session_id: str = "",
        params: Annotated[str, Form()] = "{}",
        file: Annotated[UploadFile | None, File()] = None,
        output: Output | None = None,
        user: User = _as_user,
    ) -> Response:
        options = json_object(params, "params")
        if session_id:
            raise Refused("unsupported", "this server has no sessions")
        if file is None and not image:
            raise BadRequest("name an image by its id, or send a file")
        with instance.uploads.received(None if file is None else file.file) as upload:
            request = {"model": model, "image": image if upload is None else str(upload), **options}
            name, content, result = instance.encoded_inference(request)
        if output == Output.json:
            return JSONResponse(result)
        if output == Output.image:
            headers = {"content-disposition": f'attachment; filename="{name}"'}
            return Response(content, media_type=get_mime_type(name), headers=headers)
        numbers = json.dumps(result)
        fields = {"params": (None, numbers, "application/json"), "image": (name, content, get_mime_type(name))}
        encoder = MultipartEncoder(fields=fields)
        return Response(encoder.to_string(), media_type=encoder.content_type)


def _add_uploads(app: FastAPI, instance: WSCXRApp) -> None:
    def add_image(
        file: Annotated[UploadFile, File()],
        image: str | None = None,
        params: Annotated[str, Form()] = "{}",
        user: User = _as_annotator,
    ) -> dict[str, str]:
        options = json_object(params, "params")
        with instance.uploads.received(file.file) as upload:
            return {"image": instance.datastore().add_image(image or "", str(upload), options)}

    summary = f"{RBAC_ANNOTATOR}Upload new Image"
    app.put("/datastore/image", summary=summary, tags=["Datastore"])(add_image)
    app.put("/datastore/", summary=summary, tags=["Datastore"], include_in_schema=False, deprecated=True)(add_image)

    @app.put("/datastore/label", summary=f"{RBAC_ANNOTATOR}Save Finished Label", tags=["Datastore"])
    def save_label(
        image: str,
        label: Annotated[UploadFile, File()],
        params: Annotated[str, Form()] = "{}",
        tag: str = "final",
        user: User = _as_annotator,
    ) -> dict[str, Any]:
        options = json_object(params, "params")
        with instance.uploads.received(label.file) as upload:
            label_id = instance.datastore().save_label(image, str(upload), tag or "final", options)
        return {**(instance.on_save_label(image, label_id) or {}), "image": image, "label": label_id}


def _add_images(app: FastAPI, instance: WSCXRApp) -> None:
    @app.get("/datastore/image", summary=f"{RBAC_USER}Download Image", tags=["Datastore"])
    def download_image(image: str, user: User = _as_user) -> FileResponse:
        path = instance.workbench.studies.file(image)
        name = os.fsencode(path.name).decode("utf-8", "backslashreplace")
        return FileResponse(path, media_type=get_mime_type(name), filename=name)


def _add_pages(app: FastAPI) -> None:
    viewer = STATIC / "ohif"
    files = {path.relative_to(viewer).as_posix() for path in viewer.rglob("*") if path.is_file()}

    @app.get("/ohif/{path:path}", include_in_schema=False)
    def ohif(path: str, user: User = _as_user) -> FileResponse:
        file = viewer / (path if path in files else "index.html")  # the viewer's own addresses lead to its start page
        return FileResponse(file, media_type=get_mime_type(str(file)))

    @app.get("/", include_in_schema=False)
    def calls() -> HTMLResponse:
        page = get_swagger_ui_html(openapi_url="/openapi.json", title=f"{app.title} - APIs")
        text = bytes(page.body).decode()
        return HTMLResponse(
            text.replace("showExtensions: true,", "showExtensions: true, defaultModelsExpandDepth: -1,")
        )

    @app.get("/favicon.ico", include_in_schema=False)
    def favicon() -> FileResponse:
        return FileResponse(STATIC / "favicon.ico", media_type="image/x-icon")


def _add_archive(app: FastAPI, archive: ArchiveProxy) -> None:
    @app.get(PREFIX + "/{path:path}", include_in_schema=False)
    def read(path: str, user: User = _as_user) -> Response:
        wanted = archive_path(f"{PREFIX}/{path}")
        if wanted is None:
            return JSONResponse({"detail": "not found"}, HTTPStatus.NOT_FOUND)
        answer = archive.get(wanted)
        if answer is None:
            return JSONResponse({"detail": "the DICOMweb server does not answer as expected"}, HTTPStatus.BAD_GATEWAY)
        return StreamingResponse(answer.content, answer.status, dict(answer.headers))
