"""`python -m monai_wscxr`: predictions, phantoms for trying things out, and a look at the installation.

Exit status: 0 when everything went well, 2 when what was given cannot be used, 3 when a prediction run rejected an image (its
results are complete), 130 when it was interrupted.
"""

from __future__ import annotations

import argparse
import logging
import platform
import shlex
import sys
from collections.abc import Sequence
from importlib import metadata

import monai_wscxr
from monai_wscxr.commands.bank import add_commands
from monai_wscxr.data.radiograph.base import GATES
from monai_wscxr.errors import InputError

SOME_REJECTED = 3
INTERRUPTED = 130
_PACKAGES = ("torch", "torchvision", "monai", "pytorch-ignite", "timm", "pydicom", "nibabel", "scikit-learn", "numpy")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; ends with status 2 and one sentence when what was given cannot be used."""
    parser = _parser()
    options = parser.parse_args(arguments)
    options.arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        status = options.run(options)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    if status:
        sys.exit(status)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m monai_wscxr", description=monai_wscxr.__doc__)
    parser.add_argument("--version", action="version", version=monai_wscxr.__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    phantom = commands.add_parser("phantom", help="write a data set of synthetic chest radiographs with lesions")
    phantom.add_argument("folder", help="new or empty folder")
    phantom.add_argument("--train-normal", type=int, default=160, metavar="N")
    phantom.add_argument("--train-abnormal", type=int, default=8, metavar="N", help="per kind of lesion")
    phantom.add_argument("--test-normal", type=int, default=40, metavar="N")
    phantom.add_argument("--test-abnormal", type=int, default=10, metavar="N", help="per kind of lesion")
    phantom.add_argument("--size", type=int, default=256, help="pixels per side")
    phantom.add_argument("--seed", type=int, default=0)
    phantom.set_defaults(run=_phantom)

    _datalist_parser(commands)
    _protocol_parser(commands)
    _add_predict(commands)
    add_commands(commands)

    doctor = commands.add_parser("doctor", help="say what is installed and which code runs each operator")
    doctor.set_defaults(run=_doctor)
    return parser


def _datalist_parser(commands: argparse._SubParsersAction) -> None:
    collection = commands.add_parser("datalist", help="a published collection as a patient-disjoint datalist")
    collection.add_argument("collection", choices=("zhanglab", "chexpert", "nih", "rsna", "vindr", "mimic"))
    collection.add_argument("folder", help="the collection as published, unpacked")
    collection.add_argument("--output", required=True, metavar="FILE.json")
    collection.add_argument("--train_normal", type=int, metavar="N", help="at most; all without it")
    collection.add_argument("--train_abnormal", type=int, metavar="N", help="at most, per class")
    collection.add_argument("--test_normal", type=int, metavar="N")
    collection.add_argument("--test_abnormal", type=int, metavar="N", help="at most, over all classes")
    collection.add_argument("--test_share", type=float, default=0.2, help="of the patients, without an official split")
    collection.add_argument("--boxed", action="store_true", help="abnormal test images with lesion boxes only")
    collection.add_argument("--seed", type=int, default=0)
    collection.add_argument("--skip_missing", action="store_true", help="take the images that are there")
    collection.add_argument("--uncertain", choices=("exclude", "positive", "negative"), help="chexpert, mimic")
    collection.add_argument("--view", choices=("all", "PA", "AP"), help="nih")
    collection.add_argument("--other", choices=("exclude", "include"), help="rsna: neither normal nor opaque")
    collection.add_argument("--readers", type=int, help="vindr: readers who must agree on a finding")
    collection.set_defaults(run=_datalist)


def _datalist(options: argparse.Namespace) -> None:
    from monai_wscxr.data.collections import Limits, make_datalist

    policies = {name: getattr(options, name) for name in ("uncertain", "view", "other", "readers")}
    limits = Limits(
        options.train_normal,
        options.train_abnormal,
        options.test_normal,
        options.test_abnormal,
        options.test_share,
        options.boxed,
        options.seed,
    )
    chosen = {name: value for name, value in policies.items() if value is not None}
    print(make_datalist(options.collection, options.folder, options.output, limits, options.skip_missing, **chosen))


def _protocol_parser(commands: argparse._SubParsersAction) -> None:
    protocol = commands.add_parser("protocol", help="the paper's tables on your data, compared methods included")
    protocol.add_argument(
        "table", choices=("table1", "table2"), help="methods at every k; mining and mixing on and off"
    )
    protocol.add_argument("--dataset_dir", required=True, metavar="DIR", help="folder or datalist with a test part")
    protocol.add_argument("--output_dir", required=True, metavar="OUT", help="new, or of the same protocol to go on")
    protocol.add_argument("--methods", default="wscxr,patchcore,simplenet,cutpaste", help="of table1")
    protocol.add_argument("--k", default="2,4,8,16", help="abnormal images per class")
    protocol.add_argument("--seeds", type=int, default=3, metavar="N", help="seeds 0 to N-1")
    protocol.add_argument("--backbone", help="see train.yaml; so are weights, image_size and device")
    protocol.add_argument("--weights", metavar="FILE")
    protocol.add_argument("--image_size", type=int)
    protocol.add_argument("--device")
    protocol.add_argument(
        "--set", action="append", default=[], metavar="OPTION=VALUE", help="another option of train.yaml"
    )
    protocol.add_argument("--bundle", metavar="DIR", help="folder of the bundle wscxr_chest_xray")
    protocol.add_argument("--keep_runs", action="store_true", help="keep every trained model")
    protocol.set_defaults(run=_protocol)


def _protocol(options: argparse.Namespace) -> None:
    import yaml

    from monai_wscxr.experiments.protocol import run_protocol

    chosen = {name: getattr(options, name) for name in ("backbone", "weights", "image_size", "device")}
    values = {name: value for name, value in chosen.items() if value is not None}
    for text in options.set:
        name, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--set {text}: give OPTION=VALUE, for instance --set epochs=10")
        values[name] = yaml.safe_load(value)
    try:
        numbers = [int(n) for n in options.k.split(",")]
    except ValueError as error:
        raise InputError(f"--k {options.k}: give whole numbers separated by commas, for instance 2,4,8,16") from error
    path = run_protocol(
        options.table,
        options.dataset_dir,
        options.output_dir,
        methods=options.methods.split(","),
        k=numbers,
        seeds=options.seeds,
        options=values,
        bundle=options.bundle,
        command=shlex.join(["python", "-m", "monai_wscxr", *options.arguments]),
        keep_runs=options.keep_runs,
    )
    print(path.read_text(encoding="utf-8"))
    print(f"in {path.parent.resolve()}: results.md, results.csv, summary.csv, results.svg, protocol.json")


def _add_predict(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    predict = commands.add_parser(
        "predict",
        help="apply a trained model to files, folders, DICOM studies",
        description="Apply a trained model. Exit status: 0 every image was predicted, 3 some were rejected (see "
        "predictions.csv), 2 the command cannot be run as given. A killed run goes on when the same command is given again.",
    )
    predict.add_argument("paths", nargs="+", metavar="PATH", help="image files, folders (searched), DICOMDIRs")
    predict.add_argument("--model", required=True, metavar="OUT", help="output folder of a training")
    predict.add_argument(
        "--output", required=True, metavar="DIR", help="folder for the results: new, or of the same run"
    )
    predict.add_argument(
        "--maps", default="tiff", choices=("nifti", "tiff", "npy", "none"), help="anomaly maps, 32-bit"
    )
    switch = argparse.BooleanOptionalAction
    predict.add_argument("--overlays", action=switch, default=True, help="map over radiograph as PNG")
    predict.add_argument("--report", action=switch, default=True, help="report/index.html")
    predict.add_argument("--dicom", action="store_true", help="results of DICOM images as DICOM (needs highdicom)")
    predict.add_argument("--workers", type=int, metavar="N", help="processes that decode and write; 0: none")
    predict.add_argument("--batch_size", type=int, default=16, metavar="N")
    predict.add_argument("--device", help="cpu or cuda; default: a GPU if there is one")
    predict.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="REASON",
        help=f"predict in spite of {', '.join(GATES)}; repeatable",
    )
    predict.add_argument(
        "--seconds", type=float, default=10.0, metavar="S", help="longest time to read a file, and 1 s per MiB"
    )
    predict.add_argument("--overwrite", action="store_true", help="replace another run in DIR")
    predict.add_argument("--quiet", action="store_true", help="no progress bar")
    predict.set_defaults(run=_predict)


def _predict(options: argparse.Namespace) -> int:
    from monai_wscxr.prediction.options import Options
    from monai_wscxr.prediction.run import predict

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    wanted = Options(
        model=options.model,
        paths=tuple(options.paths),
        output=options.output,
        maps=options.maps,
        overlays=options.overlays,
        report=options.report,
        dicom=options.dicom,
        workers=options.workers,
        batch_size=options.batch_size,
        device=options.device,
        allow=tuple(options.allow),
        seconds=options.seconds,
        overwrite=options.overwrite,
        progress=not options.quiet,
    )
    try:
        summary = predict(wanted)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return INTERRUPTED
    report = "; to look through them, open report/index.html there" if options.report else ""
    print("\n".join([*summary.sentences(), f"results in {options.output}{report}"]))
    return SOME_REJECTED if summary.rejected else 0


def _phantom(options: argparse.Namespace) -> None:
    from monai_wscxr.data.phantom import write_phantoms

    write_phantoms(
        options.folder,
        n_train_normal=options.train_normal,
        n_train_abnormal=options.train_abnormal,
        n_test_normal=options.test_normal,
        n_test_abnormal=options.test_abnormal,
        size=options.size,
        seed=options.seed,
    )
    print(f"phantoms in {options.folder}")


def _doctor(options: argparse.Namespace) -> None:
    import torch

    from monai_wscxr import ops
    from monai_wscxr.bank.cache import cache_root
    from monai_wscxr.data.radiograph.decoders import installed_decoders

    def line(name: str, value: object) -> None:
        print(f"{name:<16} {value}")

    line("monai_wscxr", monai_wscxr.__version__)
    line("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    for package in _PACKAGES:
        line(package, metadata.version(package))
    line("CPU threads", torch.get_num_threads())
    line("extension", ops.EXTENSION_STATE)
    if ops.EXTENSION is not None:
        line("  built with", ", ".join(f"{k} {v}" for k, v in ops.EXTENSION.build_info().items()))
        features = [name for name, there in ops.EXTENSION.cpu_capabilities().items() if there]
        line("  CPU", ", ".join(features) or "no vector extensions that kernels use")
    line("CUDA extension", ops.CUDA_EXTENSION_STATE)
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            line("GPU", f"{torch.cuda.get_device_name(index)}, {torch.cuda.mem_get_info(index)[1] / 2**30:.0f} GiB")
    else:
        line("GPU", "none that torch can use")
    for operator in ops.OPERATORS:
        for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
            chosen = ops.backend(operator, device)
            line(operator, f"{device}: {chosen.name} ({chosen.reason})")
    line("feature cache", cache_root())
    print("DICOM decoders")
    for syntax, library in installed_decoders().items():
        line(f"  {library}", syntax)
