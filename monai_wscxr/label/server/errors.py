"""Errors of this package as JSON answers of MONAI Label's interface."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from monai_wscxr.errors import InputError
from monai_wscxr.label.archive.studies import Refused, UnknownImage

if TYPE_CHECKING:
    from fastapi import FastAPI

_STATUS = {"read_only": 403, "unsupported": 405, "unknown": 404}


def answer_errors(app: FastAPI) -> None:
    """Let an application answer this package's errors with a status, a reason and a message, without a stack trace."""
    from fastapi import Request
    from fastapi.responses import JSONResponse

    def answer(status: int, reason: str, message: str) -> JSONResponse:
        return JSONResponse({"detail": message, "reason": reason, "message": message}, status)

    def refused(request: Request, error: Exception) -> JSONResponse:
        reason = getattr(error, "reason", getattr(error, "code", "bad_input"))
        return answer(_STATUS.get(reason, 409 if isinstance(error, Refused) else 422), reason, str(error))

    def unknown(request: Request, error: Exception) -> JSONResponse:
        return answer(404, "unknown_image", str(error))

    def malformed(request: Request, error: Exception) -> JSONResponse:
        return answer(422, "bad_json", "params is not valid JSON")

    app.add_exception_handler(UnknownImage, unknown)
    app.add_exception_handler(InputError, refused)
    app.add_exception_handler(json.JSONDecodeError, malformed)
