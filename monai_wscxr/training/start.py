"""First steps of the bundle's workflows: plain errors, checked options, fixed seeds; the optimiser by name."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from monai.utils import set_determinism
from torch import nn

from monai_wscxr.errors import InputError, find_input_error, show_input_errors_plainly
from monai_wscxr.ops import EXTENSION, EXTENSION_STATE
from monai_wscxr.system.atomic import as_disk_full
from monai_wscxr.system.processes import lost_process
from monai_wscxr.system.signals import stop_cleanly
from monai_wscxr.training.options import check_options, from_command_line, set_values

logger = logging.getLogger("monai_wscxr")


def start_run(dataset_dir: Any, output_dir: Any, device: Any, seed: Any = 0, images_later: bool = False) -> None:
    """Check the options of a workflow before long work starts, then make the run reproducible.

    Args:
        dataset_dir, output_dir, device, seed: options of the configuration.
        images_later: leave `dataset_dir` to the run, for a workflow that can be initialised without images.

    Raises:
        InputError: on a missing or unknown option, or a device that is not there.
    """
    if from_command_line():
        show_input_errors_plainly(lambda error: find_input_error(error) or as_disk_full(error) or lost_process(error))
        stop_cleanly()
        set_values(check_options(sys.argv[1:]))  # MONAI takes the text "false" for true
    if not images_later:
        check_dataset_dir(dataset_dir)
    if not output_dir:
        raise InputError("--output_dir is missing; see the commands in the README")
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise InputError(f"--device {device} is not a device; use cpu or cuda") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda was asked for, but torch sees no CUDA device here; use --device cpu")
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise InputError(f"--seed must be a whole number from 0 to 4294967295, got {seed!r}")
    set_determinism(seed=seed)
    if EXTENSION is None:
        logger.warning("%s; torch's own code runs instead: the same results, slower", EXTENSION_STATE)


def check_dataset_dir(dataset_dir: Any) -> None:
    """Check that the option `dataset_dir` names something that exists.

    Raises:
        InputError: otherwise.
    """
    if not dataset_dir:
        raise InputError("--dataset_dir is missing; see the commands in the README")
    if not Path(dataset_dir).exists():
        raise InputError(f"--dataset_dir {dataset_dir} does not exist")


@contextlib.contextmanager
def quiet_training() -> Iterator[None]:
    """Silence messages of trainings below a warning, for a caller that shows progress itself."""
    loggers = [name for name in logging.root.manager.loggerDict if name.partition(".")[0] in ("ignite", "monai")]
    levels = {name: logging.getLogger(name).level for name in ["monai_wscxr", *loggers]}
    for name in levels:  # MONAI's loggers have levels of their own, and warn that there is no file of logging settings
        logging.getLogger(name).setLevel(logging.ERROR if name.startswith("monai.") else logging.WARNING)
    try:
        yield
    finally:
        sys.stderr.flush()
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def create_optimizer(
    name: str, parameters: Iterable[nn.Parameter], learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """Create the optimiser of the discriminator by name.

    Raises:
        InputError: when it is neither SGD nor Adam.
    """
    if name == "SGD":
        return torch.optim.SGD(parameters, learning_rate, weight_decay=weight_decay)
    if name == "Adam":
        return torch.optim.Adam(parameters, learning_rate, weight_decay=weight_decay)
    raise InputError(f"optimizer_name must be SGD or Adam (the authors' choice), got {name!r}")
