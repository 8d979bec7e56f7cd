"""What the bundle's configurations call before long work starts: plain errors and checked options."""

from __future__ import annotations

import contextlib
import difflib
import inspect
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from monai.bundle import ConfigParser
from monai.bundle import run as bundle_run
from monai.utils import set_determinism
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from monai_wscxr.errors import InputError, show_input_errors_plainly

_OWN = {name for name in inspect.signature(bundle_run).parameters if name != "override"}
_TRACKING = {"tracking_uri", "experiment_name", "run_name", "save_execute_config", "is_not_rank0"}


def start(dataset_dir: Any, output_dir: Any, device: Any, seed: Any = 0) -> None:
    """First step of every workflow: check what was asked for, then make the run reproducible.

    Raises:
        InputError: on a missing or unknown option, or a device that is not there.
    """
    if from_command_line():
        show_input_errors_plainly()
        check_options(sys.argv[1:])
    for name, value in (("dataset_dir", dataset_dir), ("output_dir", output_dir)):
        if not value:
            raise InputError(f"--{name} is missing; see the commands in the README")
    if not Path(dataset_dir).exists():
        raise InputError(f"--dataset_dir {dataset_dir} does not exist")
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise InputError(f"--device {device} is not a device; use cpu or cuda") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda was asked for, but torch sees no CUDA device here; use --device cpu")
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise InputError(f"--seed must be a whole number from 0 to 4294967295, got {seed!r}")
    set_determinism(seed=seed)


def from_command_line() -> bool:
    """Whether this process is `python -m monai.bundle ...`."""
    return Path(sys.argv[0]).parts[-3:] == ("monai", "bundle", "__main__.py")


def find_configs(bundle: str | Path | None = None) -> Path:
    """The folder with `train.yaml`: of the bundle given, or of the one beside the package.

    Raises:
        InputError: when there is none.
    """
    root = Path(bundle) if bundle else Path(__file__).resolve().parents[1] / "bundles" / "wscxr_chest_xray"
    configs = root / "configs"
    if not (configs / "train.yaml").is_file():
        raise InputError(f"{configs} has no train.yaml; give the folder of the bundle wscxr_chest_xray with --bundle")
    return configs


@contextlib.contextmanager
def quiet_training() -> Iterator[None]:
    """Trainings say nothing below a warning, for a caller that shows how far they are by itself."""
    loggers = [name for name in logging.root.manager.loggerDict if name.partition(".")[0] in ("ignite", "monai")]
    levels = {name: logging.getLogger(name).level for name in ["monai_wscxr", *loggers]}
    for name in levels:  # MONAI's own have a level each, and warn of what is meant here: no file of logging settings
        logging.getLogger(name).setLevel(logging.ERROR if name.startswith("monai.") else logging.WARNING)
    try:
        yield
    finally:
        sys.stderr.flush()
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def join_processes() -> torch.device:
    """Join the processes that torchrun started (NCCL with GPUs, gloo without); returns this process's device.

    Raises:
        InputError: when torchrun did not start this process.
    """
    if not dist.is_torchelastic_launched():
        raise InputError(
            "multi_gpu_train.yaml needs several processes: start it with torchrun, see the bundle's README"
        )
    on_gpu = torch.cuda.is_available()
    if not dist.is_initialized():
        dist.init_process_group("nccl" if on_gpu else "gloo")
    if dist.get_rank() > 0:
        logging.getLogger("monai_wscxr").setLevel(logging.WARNING)
    if not on_gpu:
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    return device


def distributed(network: nn.Module, device: torch.device) -> nn.Module:
    """The same network with gradients averaged over all processes."""
    synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(network) if device.type == "cuda" else network
    return DistributedDataParallel(synchronised, device_ids=[device] if device.type == "cuda" else None)


def create_optimizer(
    name: str, parameters: Iterable[nn.Parameter], learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """The optimiser of the discriminator by name.

    Raises:
        InputError: when it is neither SGD nor Adam.
    """
    if name == "SGD":
        return torch.optim.SGD(parameters, learning_rate, weight_decay=weight_decay)
    if name == "Adam":
        return torch.optim.Adam(parameters, learning_rate, weight_decay=weight_decay)
    raise InputError(f"optimizer_name must be SGD or Adam (the authors' choice), got {name!r}")


def check_options(arguments: Sequence[str]) -> None:
    """Refuse options that the configuration does not have; MONAI would take them in and ignore them.

    Args:
        arguments: of `python -m monai.bundle run`, without the program's name.

    Raises:
        InputError: with the unknown option and what comes close.
    """
    given = _options(arguments)
    files = given.get("config_file")
    if not files:
        return
    parser = ConfigParser()
    parser.read_config([f.strip("'\" ") for f in files.strip("[]").split(",")])
    known = [str(key) for key in parser.get()]
    for name in given:
        if name in _OWN | _TRACKING or name.replace("#", "::") in parser:
            continue
        close = difflib.get_close_matches(name, known, n=3)
        hint = f"did you mean --{', --'.join(close)}?" if close else "see the top of the configuration file for all"
        raise InputError(f"unknown option --{name}: {hint}")


def _options(arguments: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for position, argument in enumerate(arguments):
        if argument.startswith("--"):
            name, equals, value = argument[2:].partition("=")
            following = arguments[position + 1] if position + 1 < len(arguments) else ""
            found[name.replace("-", "_") if "_" not in name else name] = value if equals else following
    return found
