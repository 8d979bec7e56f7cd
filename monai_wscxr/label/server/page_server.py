"""The labelling page on its own: FastAPI and the workbench, without MONAI Label."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from monai_wscxr.errors import InputError
from monai_wscxr.label.archive.open import open_studies
from monai_wscxr.label.server.start import Application, ServerOptions
from monai_wscxr.label.server.upkeep import keep_up
from monai_wscxr.label.workbench import Workbench


def create_application(options: ServerOptions) -> Application:
    """Create an application with the labelling page at /wscxr/ and nothing else.

    Raises:
        InputError: when an option cannot be used, or a package is not installed.
    """
    try:
        from fastapi import FastAPI
        from fastapi.responses import RedirectResponse

        from monai_wscxr.label.page import router

        studies, work = open_studies(options.studies, options.work, options.modalities)
    except ImportError as error:
        raise InputError(
            f"the labelling page needs a package that is not installed ({error.name}): pip install 'monai-wscxr[label]'"
        ) from error
    workbench = Workbench(
        studies,
        work,
        options.normals,
        options.model,
        options.train_options,
        options.seed,
        options.read_only,
        options.bundle,
    )
    workbench.decoders.start()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        keep_up(workbench)
        yield

    app = FastAPI(openapi_url=None, lifespan=lifespan)

    @app.get("/", include_in_schema=False)
    def page() -> RedirectResponse:
        return RedirectResponse("/wscxr/")

    app.include_router(router(workbench, hosts=None), prefix="/wscxr")
    return Application(app, workbench)
