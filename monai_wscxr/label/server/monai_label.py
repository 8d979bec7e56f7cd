"""MONAI Label's interface with the labelling page beside it."""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path
from typing import Any

from monai_wscxr.errors import InputError
from monai_wscxr.label.archive.open import is_address
from monai_wscxr.label.server.start import Application, ServerOptions

APP = Path(__file__).resolve().parents[1] / "app"


def create_application(options: ServerOptions) -> Application:
    """Create MONAI Label's application with the workbench and the labelling page.

    Raises:
        InputError: when an option cannot be used, or MONAI Label is not installed.
    """
    os.environ.setdefault("MONAI_LABEL_SESSIONS", "false")
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # MONAI Label prints its settings when it is imported
            from monailabel.config import settings
    except ImportError as error:
        raise InputError(
            f"MONAI Label is not installed here ({error}); `make label STUDIES=DIR MONAI_LABEL=1` sets up an environment "
            "for it, or see monai_wscxr/label/requirements.txt. The labelling page does without: leave --monailabel out"
        ) from error
    from fastapi import Depends
    from fastapi.middleware.cors import CORSMiddleware
    from monailabel.endpoints.user.auth import RBAC
    from monailabel.interfaces.utils.app import app_instance

    from monai_wscxr.label.page import router
    from monai_wscxr.label.server.application import create_application as monai_label_application
    from monai_wscxr.label.server.errors import answer_errors
    from monai_wscxr.label.server.proxy import ArchiveProxy

    settings.MONAI_LABEL_APP_DIR = str(APP)
    settings.MONAI_LABEL_STUDIES = options.studies
    settings.MONAI_LABEL_APP_CONF = _app_configuration(options)
    settings.MONAI_LABEL_SERVER_PORT = options.port
    instance = app_instance()
    instance.workbench.decoders.start()
    archive = None
    if is_address(options.studies):
        user, word = settings.MONAI_LABEL_DICOMWEB_USERNAME, settings.MONAI_LABEL_DICOMWEB_PASSWORD
        prefixes = {
            name: getattr(settings, f"MONAI_LABEL_{name.upper()}_PREFIX") or "" for name in ("qido", "wado", "stow")
        }
        archive = ArchiveProxy(options.studies, (user, word) if user and word else None, prefixes)
    app = monai_label_application(instance, archive)
    friends = [str(origin).rstrip("/") for origin in settings.MONAI_LABEL_CORS_ORIGINS or ()]
    if friends:
        app.add_middleware(
            CORSMiddleware, allow_origins=friends, allow_credentials=True, allow_methods=["*"], allow_headers=["*"]
        )
    answer_errors(app)
    annotators = [Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ANNOTATOR))]
    app.include_router(router(instance.workbench, hosts=None), prefix="/wscxr", dependencies=annotators)
    offered = instance.info()
    names = {
        "/infer": offered["models"],
        "/train": offered["trainers"],
        "/scoring": offered["scoring"],
        "/activelearning": offered["strategies"],
    }
    return Application(app, instance.workbench, names, archive is not None, friends)


def _app_configuration(options: ServerOptions) -> dict[str, Any]:
    """Collect what the app in `label/app` reads from MONAI Label's configuration, where options of `train.yaml` are text."""
    import yaml

    values = {
        "normals": options.normals,
        "model": options.model,
        "work": options.work,
        "modalities": options.modalities,
        "read_only": options.read_only,
        "seed": options.seed,
        "bundle": options.bundle,
        "options": yaml.safe_dump(dict(options.train_options)) if options.train_options else None,
    }
    return {name: value for name, value in values.items() if value not in (None, "", False)}
