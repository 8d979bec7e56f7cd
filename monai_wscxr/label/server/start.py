"""`python -m monai_wscxr.label STUDIES`: the MONAI Label server with the workbench, and the page to work in."""

from __future__ import annotations

import argparse
import contextlib
import io
import ipaddress
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monai_wscxr.errors import InputError
from monai_wscxr.label.archive.open import is_address

APP = Path(__file__).parent / "app"
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m monai_wscxr.label", description=__doc__)
    parser.add_argument("studies", help="folder of radiographs, or address of a DICOMweb server")
    parser.add_argument("--normals", metavar="DIR", help="known normal images: a folder, or a data set's training part")
    parser.add_argument("--model", metavar="OUT", help="output folder of a training to begin with")
    parser.add_argument("--work", metavar="DIR", help="for labels, models and results; default: STUDIES/.wscxr")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; others than this machine need a password"
    )
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--allow_host", action="append", default=[], metavar="NAME", help="another name of this server")
    parser.add_argument(
        "--password_file", metavar="FILE", help="its first line is the password that every request needs"
    )
    parser.add_argument("--certificate", metavar="PEM", help="TLS certificate, and its --key")
    parser.add_argument("--key", metavar="PEM")
    parser.add_argument("--max_upload", type=int, default=64, metavar="MB", help="largest request")
    parser.add_argument("--modalities", default="DX,CR", help="of a DICOMweb server")
    parser.add_argument("--read_only", action="store_true", help="take no labels, train nothing")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], metavar="OPTION=VALUE", help="an option of train.yaml")
    parser.add_argument("--bundle", metavar="DIR", help="folder of the bundle wscxr_chest_xray")
    return parser


def check_host(host: str, protected: bool) -> None:
    """Only this machine may reach a server without a password.

    Raises:
        InputError: when `host` is another address than the loopback's and nothing protects the server.
    """
    if protected or host == "localhost":
        return
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = False
    if not local:
        raise InputError(
            f"--host {host} lets other machines in, and nothing asks them who they are: give --password_file FILE, or switch "
            "MONAI Label's own authentication on (MONAI_LABEL_AUTH_ENABLE=true)"
        )


def read_password(file: str | None) -> str | None:
    """The password, or None without a file.

    Raises:
        InputError: when the file cannot be read or its first line has fewer than eight characters.
    """
    if file is None:
        return None
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--password_file {file} cannot be read ({type(error).__name__})") from error
    if not lines or len(lines[0]) < 8:
        raise InputError(f"the first line of {file} must be a password of at least eight characters")
    return lines[0]


def build(options: argparse.Namespace) -> Any:
    """The guarded application.

    Raises:
        InputError: when something given cannot be used.
    """
    password = read_password(options.password_file)
    monai_authentication = os.environ.get("MONAI_LABEL_AUTH_ENABLE", "").lower() in ("1", "true", "yes")
    check_host(options.host, password is not None or monai_authentication)
    os.environ.setdefault("MONAI_LABEL_SESSIONS", "false")
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            from monailabel.app import app
    except ImportError as error:
        raise InputError(
            f"MONAI Label is not installed here ({error}); `make label STUDIES=DIR` sets up an environment for it, or see "
            "monai_wscxr/label/requirements.txt"
        ) from error
    from fastapi import Depends
    from fastapi.middleware.cors import CORSMiddleware
    from monailabel.config import settings
    from monailabel.endpoints.user.auth import RBAC
    from monailabel.interfaces.utils.app import app_instance

    from monai_wscxr.label.server.guard import Guard, explain

    values = {
        "normals": options.normals,
        "model": options.model,
        "work": options.work,
        "modalities": options.modalities,
        "read_only": options.read_only,
        "seed": options.seed,
        "bundle": options.bundle,
        "options": "\n".join(": ".join(text.split("=", 1)) for text in options.set),
    }
    settings.MONAI_LABEL_APP_DIR = str(APP)
    settings.MONAI_LABEL_STUDIES = options.studies
    settings.MONAI_LABEL_APP_CONF = {name: value for name, value in values.items() if value not in (None, "", False)}
    settings.MONAI_LABEL_SERVER_PORT = options.port
    if not settings.MONAI_LABEL_CORS_ORIGINS:  # MONAI Label would let every site in
        app.user_middleware = [m for m in app.user_middleware if m.cls is not CORSMiddleware]
    instance = app_instance()
    explain(app)
    _mount_page(app, instance.workbench, [Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ANNOTATOR))])
    own = instance.info()
    names = {
        "/infer": own["models"],
        "/train": own["trainers"],
        "/scoring": own["scoring"],
        "/activelearning": own["strategies"],
    }
    hosts = {options.host, *options.allow_host, *(LOOPBACK if options.host in (*LOOPBACK, "0.0.0.0", "::") else ())}
    return Guard(app, hosts, options.max_upload << 20, password, names, is_address(options.studies))


def _mount_page(app: Any, workbench: Any, dependencies: list[Any]) -> None:
    from monai_wscxr.label.page import router

    app.include_router(router(workbench, hosts=None), prefix="/wscxr", dependencies=dependencies)  # Guard checks hosts


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    for name in ("httpx", "monailabel"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        guarded = build(options)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    import uvicorn

    scheme = "https" if options.certificate else "http"
    shown = f"[{options.host}]" if ":" in options.host else options.host
    address = f"{scheme}://{shown}:{options.port}"
    lines = [f"page to work in   {address}/wscxr/", f"MONAI Label       {address}/"]
    if is_address(options.studies):
        lines.append(f"OHIF viewer       {address}/ohif/")
    print("\n".join([*lines, "stop with Ctrl-C"]), flush=True)
    uvicorn.run(
        guarded,
        host=options.host,
        port=options.port,
        log_level="warning",
        server_header=False,
        ssl_certfile=options.certificate,
        ssl_keyfile=options.key,
    )


if __name__ == "__main__":
    main()
