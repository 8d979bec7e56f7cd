"""Errors of this package as JSON answers of MONAI Label's interface."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from monai_wscxr.data.radiograph.base import RadiographError
from monai_wscxr.errors import InputError
from monai_wscxr.label.archive.studies import Refused, UnknownImage
from monai_wscxr.label.messages import without_paths
from monai_wscxr.system.atomic import DiskFullError, as_disk_full

if TYPE_CHECKING:
    from fastapi import FastAPI

_STATUS = {"read_only": 403, "unsupported": 405, "unknown": 404, "busy": 503, "disk_full": 507, "not_stored": 507}


def answer_errors(app: FastAPI) -> None:
    """Let an application answer this package's errors with a status, a reason and a message.

    No answer holds a stack trace, the path of a file, or a value of the request.
    """
    from fastapi import Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse

    def answer(status: int, reason: str, message: str) -> JSONResponse:
        message = without_paths(message)
        return JSONResponse({"detail": message, "reason": reason, "message": message}, status)

    def refused(request: Request, error: Exception) -> JSONResponse:
        reason = getattr(error, "reason", getattr(error, "code", "bad_input"))
        if isinstance(error, DiskFullError):
            reason = "disk_full"
        conflict = isinstance(error, Refused | RadiographError)
        return answer(_STATUS.get(reason, 409 if conflict else 422), reason, str(error))

    def unknown(request: Request, error: Exception) -> JSONResponse:
        return answer(404, "unknown_image", str(error))

    def malformed(request: Request, error: Exception) -> JSONResponse:
        return answer(422, "bad_json", "params is not valid JSON")

    def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][:2]) or "the request"
        return answer(422, "invalid", f"{where}: {first['msg']}".encode("ascii", "replace").decode())

    def failed(request: Request, error: Exception) -> JSONResponse:
        full = as_disk_full(error)
        if full is None:
            raise error
        return answer(507, "disk_full", str(full))

    app.add_exception_handler(UnknownImage, unknown)
    app.add_exception_handler(InputError, refused)
    app.add_exception_handler(json.JSONDecodeError, malformed)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(OSError, failed)
