"""Starting the MONAI Label server: the app with the workbench, the labelling page, and the guard in front of both."""

from __future__ import annotations

import contextlib
import io
import ipaddress
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from monai_wscxr.errors import InputError
from monai_wscxr.label.archive.open import is_address
from monai_wscxr.label.decoding import PRELOAD
from monai_wscxr.label.server.guard import LOOPBACK, Guard
from monai_wscxr.system.workers import start_server

APP = Path(__file__).resolve().parents[1] / "app"
STOPPED_HARD = 130  # `commands.exit_status.INTERRUPTED`
_SHORTEST_PASSWORD = 8
_ANY_ADDRESS = ("0.0.0.0", "::")


@dataclass(frozen=True)
class ServerOptions:
    """Options of the server.

    Attributes:
        studies: folder of radiographs, or address of a DICOMweb server.
        normals: known normal images, see `Workbench`.
        model: output folder of a training to start with.
        work: folder for labels, models and results, see `open_studies`.
        modalities: modalities to list from a DICOMweb server, see `open_studies`.
        host: address to listen on.
        port: port to listen on.
        allow_host: further names of the server.
        password_file: file whose first line is the password of every request.
        certificate: TLS certificate, a PEM file.
        key: its private key.
        max_upload: largest request in MiB.
        read_only: refuse labels and trainings.
        seed: seed of trainings and of the random strategy.
        train_options: options of `train.yaml` for every training.
        bundle: folder of the bundle; None finds the one beside the package.
    """

    studies: str
    normals: str | None = None
    model: str | None = None
    work: str | None = None
    modalities: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    allow_host: Sequence[str] = ()
    password_file: str | None = None
    certificate: str | None = None
    key: str | None = None
    max_upload: int = 64
    read_only: bool = False
    seed: int = 0
    train_options: Mapping[str, Any] = field(default_factory=dict)
    bundle: str | None = None


def serve(options: ServerOptions) -> None:
    """Print the addresses of the server and run it until it is stopped.

    Raises:
        InputError: when it cannot listen on the address; see also `create_server`.
        KeyboardInterrupt: when it was stopped by Ctrl-C.
    """
    check_port(options.host, options.port)  # the imports below take half a minute
    guarded = create_server(options)
    import uvicorn
    from monailabel.interfaces.utils.app import app_instance

    workbench = app_instance().workbench

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            workbench.stop()  # at once, because uvicorn first waits for running requests, also for a training
            super().handle_exit(sig, frame)

    scheme = "https" if options.certificate else "http"
    host = f"[{options.host}]" if ":" in options.host else options.host
    address = f"{scheme}://{host}:{options.port}"
    lines = [f"labelling page    {address}/wscxr/", f"MONAI Label       {address}/"]
    if is_address(options.studies):
        lines.append(f"OHIF viewer       {address}/ohif/")
    print("\n".join([*lines, "stop with Ctrl-C"]), flush=True)
    configuration = uvicorn.Config(
        guarded,
        host=options.host,
        port=options.port,
        log_level="warning",
        server_header=False,
        ssl_certfile=options.certificate,
        ssl_keyfile=options.key,
    )
    try:
        Server(configuration).run()  # raises the signal again that stopped it
    except SystemExit as error:  # the log names the reason
        raise InputError(f"the server could not start at {address}; another program may be using the port") from error
    finally:
        if not workbench.close():
            os.write(2, b"stopped in the middle of a computation\n")
            os._exit(STOPPED_HARD)


def create_server(options: ServerOptions) -> Guard:
    """Create MONAI Label's application with the workbench and the labelling page, behind the guard.

    Raises:
        InputError: when an option cannot be used, or MONAI Label is not installed.
    """
    password = read_password(options.password_file)
    monai_authentication = os.environ.get("MONAI_LABEL_AUTH_ENABLE", "").lower() in ("1", "true", "yes")
    check_host(options.host, password is not None or monai_authentication)
    os.environ.setdefault("MONAI_LABEL_SESSIONS", "false")
    start_server(PRELOAD)  # its imports take place while those of MONAI Label do
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # MONAI Label prints its settings when it is imported
            from monailabel.config import settings
    except ImportError as error:
        raise InputError(
            f"MONAI Label is not installed here ({error}); `make label STUDIES=DIR` sets up an environment for it, or see "
            "monai_wscxr/label/requirements.txt"
        ) from error
    from fastapi import Depends
    from fastapi.middleware.cors import CORSMiddleware
    from monailabel.endpoints.user.auth import RBAC
    from monailabel.interfaces.utils.app import app_instance

    from monai_wscxr.label.page import router
    from monai_wscxr.label.server.application import create_application
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
    app = create_application(instance, archive)
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
    local = LOOPBACK if options.host in (*LOOPBACK, *_ANY_ADDRESS) else ()
    hosts = {options.host, *options.allow_host, *local}
    return Guard(app, hosts, options.max_upload << 20, password, names, archive is not None, friends)


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


def check_host(host: str, protected: bool) -> None:
    """Check that only this machine can reach a server without authentication.

    Args:
        host: address to listen on.
        protected: whether requests need a password or another authentication.

    Raises:
        InputError: when an unprotected server would listen on another address than the loopback's.
    """
    if protected or host == "localhost":
        return
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = False
    if not local:
        raise InputError(
            f"--host {host} lets other machines connect, and no password protects the server: give --password_file FILE, or "
            "switch on MONAI Label's own authentication (MONAI_LABEL_AUTH_ENABLE=true)"
        )


def check_port(host: str, port: int) -> None:
    """Check that a server can listen on a port.

    Raises:
        InputError: when the port is in use or may not be used, or the address is not one of this machine.
    """
    if not 0 <= port <= 65535:
        raise InputError(f"--port must lie between 0 and 65535, got {port}")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as uvicorn does
            probe.bind(address)
    except OSError as error:
        raise InputError(
            f"cannot listen on {host}, port {port} ({error.strerror or error}); choose another --port"
        ) from error


def read_password(file: str | None) -> str | None:
    """Read the password from a file; return None without a file.

    Raises:
        InputError: when the file cannot be read, or its first line has fewer than eight characters.
    """
    if file is None:
        return None
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--password_file {file} cannot be read ({type(error).__name__})") from error
    if not lines or len(lines[0]) < _SHORTEST_PASSWORD:
        raise InputError(f"the first line of {file} must be a password of at least eight characters")
    return lines[0]
