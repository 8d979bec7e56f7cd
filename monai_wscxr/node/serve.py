"""The HTTP service from its options to its end."""

from __future__ import annotations

import asyncio
import logging
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from monai_wscxr.errors import InputError
from monai_wscxr.label.server.guard import LOOPBACK
from monai_wscxr.label.server.start import check_port
from monai_wscxr.node.addresses import is_loopback
from monai_wscxr.node.batching import Batcher
from monai_wscxr.node.service import Door, Service, create_application
from monai_wscxr.prediction.network import check_openable, open_network
from monai_wscxr.prediction.options import Options
from monai_wscxr.prediction.scoring import PRELOAD, Scorer
from monai_wscxr.system.workers import start_server

logger = logging.getLogger("monai_wscxr.node")

_PRELOAD = ("monai_wscxr.node.results",)
_SHORTEST_TOKEN = 16
_REQUEST_SECONDS = 20.0  # that the head of a request may take
_CONNECTIONS = 256


@dataclass(frozen=True)
class ServiceOptions:
    """Options of the service.

    Attributes:
        model: output folder of a training.
        host, port: address to listen on; port 0 takes a free one.
        token_file: file whose first line is the token of every request.
        certificate, key: PEM files for TLS.
        without_tls: whether another machine may connect without TLS.
        max_upload: largest body in MiB.
        places: images that may be under way.
        list: images in one request.
        workers, batch_size, device, runtime, allow, seconds: as of `predict`.
    """

    model: str
    host: str = "127.0.0.1"
    port: int = 8010
    token_file: str | None = None
    certificate: str | None = None
    key: str | None = None
    without_tls: bool = False
    max_upload: int = 64
    places: int = 32
    list: int = 16
    workers: int = 2
    batch_size: int = 8
    device: str | None = None
    runtime: str = "auto"
    allow: Sequence[str] = ()
    seconds: float = 10.0

    def check(self) -> None:
        """Check the options that need no file.

        Raises:
            InputError: when one cannot be used.
        """
        prediction(self).check()
        for name in ("workers", "max_upload", "places", "list"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name} must be at least 1, got {getattr(self, name)}")
        if bool(self.certificate) != bool(self.key):
            raise InputError("--certificate and --key belong together")
        if not is_loopback(self.host):
            if self.token_file is None:
                raise InputError(f"--host {self.host} lets other machines connect: give --token_file FILE")
            if self.certificate is None and not self.without_tls:
                raise InputError(
                    f"--host {self.host} lets other machines connect: give --certificate and --key for TLS, or --without_tls "
                    "if the network protects patient data by other means"
                )


def prediction(options: ServiceOptions) -> Options:
    """Return the options that the service shares with `predict`."""
    return Options(
        model=options.model,
        paths=(),
        output="",
        workers=options.workers,
        batch_size=options.batch_size,
        device=options.device,
        runtime=options.runtime,
        allow=tuple(options.allow),
        seconds=options.seconds,
    )


def read_token(file: str | None) -> str | None:
    """Read the token from a file; return None without a file.

    Raises:
        InputError: when the file cannot be read, or its first line is no token.
    """
    if file is None:
        return None
    try:
        lines = Path(file).read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--token_file {file} cannot be read ({type(error).__name__})") from error
    token = lines[0].strip() if lines else ""
    if len(token) < _SHORTEST_TOKEN or not token.isprintable() or " " in token:
        raise InputError(
            f"the first line of {file} must be a token of at least {_SHORTEST_TOKEN} ASCII characters without blanks, for "
            "instance from `openssl rand -hex 32`"
        )
    return token


class TimedProtocol(H11Protocol):
    """HTTP connections that are closed when the head of a request does not arrive in time."""

    _seen: Any = None
    _idle = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Watch a new connection."""
        super().connection_made(transport)
        self.loop.call_later(_REQUEST_SECONDS, self._look)

    def _look(self) -> None:
        """Close the connection if it has had no request under way since the last look."""
        if self.transport.is_closing():
            return
        idle = self.cycle is None or self.cycle.response_complete
        if idle and (self._idle or self.cycle is None) and self._seen is self.cycle:
            self.transport.close()
            return
        self._idle, self._seen = idle, self.cycle
        self.loop.call_later(_REQUEST_SECONDS, self._look)


def serve(options: ServiceOptions, ready: Callable[[str], None] = lambda address: None) -> None:
    """Run the service until it is stopped by SIGTERM or Ctrl-C; images under way are finished.

    Args:
        options: options of the service.
        ready: called with the address before it listens.

    Raises:
        InputError: when an option or the model cannot be used, or it cannot listen on the address.
    """
    options.check()
    check_openable(options.model, options.device, options.runtime)
    token = read_token(options.token_file)
    check_port(options.host, options.port)
    start_server((*PRELOAD, *_PRELOAD))  # imports in parallel with loading the model
    network = open_network(options.model, options.device, options.runtime)
    scorer = Scorer(network, options.workers, options.allow, options.seconds, _PRELOAD)
    batcher = Batcher(scorer, options.places, options.batch_size)
    folder = Path(tempfile.mkdtemp(prefix="monai_wscxr-serve-"))  # only its owner can open it
    try:
        service = Service(batcher, options.max_upload << 20, options.list, folder)
        door = Door(create_application(service), service, token, {*LOOPBACK, options.host})
        configuration = uvicorn.Config(
            door,
            host=options.host,
            port=options.port,
            http=TimedProtocol,
            ws="none",
            log_level="warning",
            access_log=False,
            server_header=False,
            limit_concurrency=_CONNECTIONS,
            timeout_keep_alive=10,
            timeout_graceful_shutdown=30,
            ssl_certfile=options.certificate,
            ssl_keyfile=options.key,
        )
        host = f"[{options.host}]" if ":" in options.host else options.host
        ready(f"{'https' if options.certificate else 'http'}://{host}:{options.port}/")
        uvicorn.Server(configuration).run()
    except (OSError, SystemExit) as error:
        raise InputError(
            f"the service could not start on {options.host}, port {options.port}, or with this certificate"
        ) from error
    finally:
        batcher.close()
        scorer.close()
        shutil.rmtree(folder, ignore_errors=True)
