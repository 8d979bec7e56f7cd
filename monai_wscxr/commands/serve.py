"""`monai-wscxr serve`: HTTP service that scores radiographs."""

from __future__ import annotations

import argparse
import logging
import warnings

from monai_wscxr.commands.backbone_options import add_runtime_option
from monai_wscxr.commands.parsers import Commands
from monai_wscxr.data.radiograph.base import GATES
from monai_wscxr.errors import InputError


def add_parser(commands: Commands) -> None:
    """Add the command to the program's parser."""
    serve = commands.add_parser(
        "serve",
        help="HTTP service: a radiograph in, score, p-value, decision and map out",
        description="Score radiographs over HTTP. POST /predict takes an image or DICOM file; /openapi.json has the rest. "
        "Needs pip install 'monai-wscxr[serve]'. Exit status: 0 stopped, 2 cannot run as given.",
    )
    serve.add_argument("--model", required=True, metavar="OUT", help="output folder of a training or an export")
    serve.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; any but this machine's own needs a token"
    )
    serve.add_argument("--port", type=int, default=8010, help="port to listen on")
    serve.add_argument("--token_file", metavar="FILE", help="its first line is the token of every request")
    serve.add_argument("--certificate", metavar="PEM", help="TLS certificate, with its --key")
    serve.add_argument("--key", metavar="PEM", help="private key of --certificate")
    serve.add_argument("--without_tls", action="store_true", help="let other machines connect without TLS")
    serve.add_argument("--max_upload", type=int, default=64, metavar="MB", help="largest request")
    serve.add_argument(
        "--places", type=int, default=32, metavar="N", help="images that may be under way; more get status 503"
    )
    serve.add_argument("--list", type=int, default=16, metavar="N", help="most images in one request")
    serve.add_argument("--workers", type=int, default=2, metavar="N", help="processes that decode and draw")
    serve.add_argument("--batch_size", type=int, default=8, metavar="N", help="most images per pass of the network")
    serve.add_argument("--device", help="cpu or cuda; default: a GPU if there is one")
    add_runtime_option(serve)
    serve.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="REASON",
        help=f"score images in spite of a reason: {', '.join(GATES)}; repeatable",
    )
    serve.add_argument(
        "--seconds", type=float, default=10.0, metavar="S", help="time limit for reading, plus 1 s per MiB"
    )
    serve.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the service until it is stopped."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("pydicom").propagate = False  # its messages and warnings quote what it reads
    warnings.simplefilter("ignore")
    try:
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"the service needs a package that is not installed ({error.name}); install it with: pip install "
            "'monai-wscxr[serve]'"
        ) from error
    from monai_wscxr.node.serve import ServiceOptions, serve

    names = ServiceOptions.__dataclass_fields__
    chosen = ServiceOptions(**{name: value for name, value in vars(options).items() if name in names})
    serve(chosen, lambda address: print(f"HTTP service {address}\nstop with Ctrl-C", flush=True))
    return 0
