"""`monai-wscxr node`: a DICOM node that receives radiographs, scores them and sends the results back."""

from __future__ import annotations

import argparse
import logging
import threading
import warnings

from monai_wscxr.commands.backbone_options import add_runtime_option
from monai_wscxr.commands.parsers import Commands
from monai_wscxr.data.radiograph.base import GATES
from monai_wscxr.errors import InputError


def add_parser(commands: Commands) -> None:
    """Add the command to the program's parser."""
    node = commands.add_parser(
        "node",
        help="DICOM node: radiographs in by C-STORE, results back to the archive",
        description="Receive radiographs (CR, DX) by C-STORE, score them and send results, or the reason why there are none, "
        "to an archive. Everything received is on the disk before it is acknowledged; a killed node goes on when it is started "
        "again. Needs pip install 'monai-wscxr[node]'. Exit status: 0 stopped by SIGTERM or Ctrl-C, 2 cannot run as given.",
    )
    node.add_argument("--model", required=True, metavar="OUT", help="output folder of a training or an export")
    node.add_argument("--folder", required=True, metavar="DIR", help="folder of the queue: new, or that of a node")
    node.add_argument("--archive", metavar="TITLE@HOST:PORT", help="archive that gets the results by C-STORE")
    node.add_argument("--stow", metavar="URL", help="archive that gets the results by STOW-RS")
    node.add_argument("--title", default="WSCXR", help="AE title of the node")
    node.add_argument("--host", default="127.0.0.1", help="address to listen on; any but this machine's own needs TLS")
    node.add_argument("--port", type=int, default=11112, help="port to listen on")
    node.add_argument(
        "--accept",
        action="append",
        default=[],
        metavar="TITLE[@ADDRESS]",
        help="who may send: AE title (* for any), address or network; repeatable; default: everybody on this machine",
    )
    node.add_argument("--certificate", metavar="PEM", help="TLS certificate of the node, with its --key")
    node.add_argument("--key", metavar="PEM", help="private key of --certificate")
    node.add_argument("--authority", metavar="PEM", help="authority that must have signed the certificates of others")
    node.add_argument("--archive_tls", action="store_true", help="speak TLS with --archive")
    node.add_argument("--without_tls", action="store_true", help="talk to other machines without TLS")
    node.add_argument("--commit", action="store_true", help="ask the archive for storage commitment of the results")
    node.add_argument("--status_port", type=int, default=11180, help="port of the status page on 127.0.0.1")
    node.add_argument("--workers", type=int, default=2, metavar="N", help="processes that decode and write")
    node.add_argument("--batch_size", type=int, default=8, metavar="N", help="most images per pass of the network")
    node.add_argument("--device", help="cpu or cuda; default: a GPU if there is one")
    add_runtime_option(node)
    node.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="REASON",
        help=f"score images in spite of a reason: {', '.join(GATES)}; repeatable",
    )
    node.add_argument(
        "--seconds", type=float, default=10.0, metavar="S", help="time limit for reading, plus 1 s per MiB"
    )
    node.add_argument("--queue", type=int, default=10_000, metavar="N", help="images that may wait")
    node.add_argument("--reserve", type=int, default=1024, metavar="MB", help="room that stays free on the disk")
    node.add_argument("--largest", type=int, default=512, metavar="MB", help="largest image that is taken")
    node.add_argument("--associations", type=int, default=64, metavar="N", help="most associations at a time")
    node.add_argument(
        "--days", type=float, default=30.0, metavar="N", help="days that images are recognised when sent again"
    )
    node.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the node until it is stopped."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("monai_wscxr.node").setLevel(logging.INFO)
    try:
        import pynetdicom  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"the node needs a package that is not installed ({error.name}): pip install 'monai-wscxr[node]'"
        ) from error
    for name in ("pynetdicom", "pydicom"):  # their messages and warnings quote what they receive
        logging.getLogger(name).propagate = False
    warnings.simplefilter("ignore")
    threading.excepthook = _thread_ended
    from monai_wscxr.node.run import Node, NodeOptions, stopping

    names = NodeOptions.__dataclass_fields__
    node = Node(NodeOptions(**{name: value for name, value in vars(options).items() if name in names}))
    with stopping(node.stop):
        node.run(
            lambda: print(
                f"DICOM node {options.title} on {options.host}, port {node.receiver.port}\n"
                f"status page http://127.0.0.1:{node.status.port}/\nstop with Ctrl-C",
                flush=True,
            )
        )
    return 0


def _thread_ended(arguments: threading.ExceptHookArgs) -> None:
    """Log the error that ended a thread by its type: its text may quote what was received."""
    logging.getLogger("monai_wscxr.node").error("a thread ended with %s", arguments.exc_type.__name__)
