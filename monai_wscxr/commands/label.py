"""`monai-wscxr label`: a server with a web page to label, rank and retrain, alone or with MONAI Label's interface."""

from __future__ import annotations

import argparse
import logging

from monai_wscxr.commands.parsers import Commands, option_values


def add_parser(commands: Commands) -> None:
    """Add the command to the program's parser."""
    label = commands.add_parser(
        "label",
        help="server to label, rank and retrain",
        description="Start a server with a page to label radiographs, rank an archive and retrain; with --monailabel also "
        "for MONAI Label's clients (`make label STUDIES=DIR MONAI_LABEL=1` sets up the environment for that).",
    )
    label.add_argument("studies", metavar="STUDIES", help="folder of radiographs, or address of a DICOMweb server")
    label.add_argument("--normals", metavar="DIR", help="known normal images: a folder, or a data set's training part")
    label.add_argument("--model", metavar="OUT", help="output folder of a training to start with")
    label.add_argument("--work", metavar="DIR", help="folder for labels, models and results; default: STUDIES/.wscxr")
    label.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; any but this machine's own needs a password"
    )
    label.add_argument("--port", type=int, default=8000, help="port to listen on (default: %(default)s)")
    label.add_argument("--allow_host", action="append", default=[], metavar="NAME", help="another name of this server")
    label.add_argument("--password_file", metavar="FILE", help="its first line is the password of every request")
    label.add_argument("--certificate", metavar="PEM", help="TLS certificate, with its --key")
    label.add_argument("--key", metavar="PEM", help="private key of --certificate")
    label.add_argument("--max_upload", type=int, default=64, metavar="MB", help="largest request")
    label.add_argument("--modalities", default="DX,CR", help="modalities to list from a DICOMweb server")
    label.add_argument("--read_only", action="store_true", help="refuse labels and trainings")
    label.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the trainings (default: %(default)s)")
    label.add_argument("--set", action="append", default=[], metavar="OPTION=VALUE", help="an option of train.yaml")
    label.add_argument("--bundle", metavar="DIR", help="folder of the bundle wscxr_chest_xray")
    label.add_argument("--monailabel", action="store_true", help="offer MONAI Label's interface as well")
    label.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Run the server until it is stopped."""
    from monai_wscxr.training.configs import check_settable, find_configs

    train_options = option_values(options.set)
    check_settable(train_options, [find_configs(options.bundle) / "train.yaml"])
    from monai_wscxr.label.server.start import ServerOptions, serve

    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    for name in ("httpx", "monailabel"):
        logging.getLogger(name).setLevel(logging.WARNING)
    serve(
        ServerOptions(
            studies=options.studies,
            normals=options.normals,
            model=options.model,
            work=options.work,
            modalities=options.modalities,
            host=options.host,
            port=options.port,
            allow_host=options.allow_host,
            password_file=options.password_file,
            certificate=options.certificate,
            key=options.key,
            max_upload=options.max_upload,
            read_only=options.read_only,
            seed=options.seed,
            train_options=train_options,
            bundle=options.bundle,
            monailabel=options.monailabel,
        )
    )
