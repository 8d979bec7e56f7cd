"""Starting a label server: the workbench with the labelling page, alone or beside MONAI Label's interface, behind the guard."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from monai_wscxr.errors import InputError
from monai_wscxr.label.archive.open import is_address
from monai_wscxr.label.decoding import PRELOAD
from monai_wscxr.label.server.guard import LOOPBACK, Guard
from monai_wscxr.system.workers import start_server

if TYPE_CHECKING:
    from monai_wscxr.label.workbench import Workbench

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
        monailabel: offer MONAI Label's interface as well, for its clients and the OHIF viewer.
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
    monailabel: bool = False


@dataclass(frozen=True)
class Application:
    """An application for the guard.

    Attributes:
        app: the application, with the labelling page at /wscxr/.
        workbench: what it serves.
        names: known last parts of addresses, see `Guard`.
        dicom_proxy: whether the studies are on a DICOMweb server that clients read through this one.
        friends: origins of other sites whose pages may read (CORS).
    """

    app: Callable[[Any, Any, Any], Awaitable[None]]
    workbench: Workbench
    names: Mapping[str, Collection[str]] = field(default_factory=dict)
    dicom_proxy: bool = False
    friends: Sequence[str] = ()


def serve(options: ServerOptions) -> None:
    """Print the addresses of the server and run it until it is stopped.

    Raises:
        InputError: when it cannot listen on the address; see also `create_server`.
        KeyboardInterrupt: when it was stopped by Ctrl-C.
    """
    check_port(options.host, options.port)  # the imports below take seconds, with MONAI Label half a minute
    guarded, workbench = create_server(options)
    import uvicorn

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            workbench.stop()  # at once, because uvicorn first waits for running requests, also for a training
            super().handle_exit(sig, frame)

    scheme = "https" if options.certificate else "http"
    host = f"[{options.host}]" if ":" in options.host else options.host
    address = f"{scheme}://{host}:{options.port}"
    lines = [f"labelling page    {address}/wscxr/"]
    if options.monailabel:
        lines.append(f"MONAI Label       {address}/")
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


def create_server(options: ServerOptions) -> tuple[Guard, Workbench]:
    """Create the server with the labelling page, behind the guard; return it with the workbench.

    Raises:
        InputError: when an option cannot be used, or a package is not installed that the server needs.
    """
    password = read_password(options.password_file)
    monai_authentication = os.environ.get("MONAI_LABEL_AUTH_ENABLE", "").lower() in ("1", "true", "yes")
    check_host(options.host, password is not None or (options.monailabel and monai_authentication))
    start_server(PRELOAD)  # its imports take place while those of the server do
    if options.monailabel:
        from monai_wscxr.label.server.monai_label import create_application
    else:
        from monai_wscxr.label.server.page_server import create_application
    made = create_application(options)
    local = LOOPBACK if options.host in (*LOOPBACK, *_ANY_ADDRESS) else ()
    hosts = {options.host, *options.allow_host, *local}
    guard = Guard(made.app, hosts, options.max_upload << 20, password, made.names, made.dicom_proxy, made.friends)
    return guard, made.workbench


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
