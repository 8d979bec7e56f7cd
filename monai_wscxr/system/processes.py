"""Work shared by several processes (torch.distributed): joining, dividing the work, exchanging values, lost processes."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from monai_wscxr.errors import InputError

T = TypeVar("T")


class LostProcessError(InputError):
    """Another process of the run has ended or does not respond."""


def process_count() -> int:
    """Return the number of processes of this run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_number() -> int:
    """Return the number (rank) of this process, from 0."""
    return dist.get_rank() if process_count() > 1 else 0


def first_process() -> bool:
    """Return whether this is the only process or rank 0: the one that writes files."""
    return process_number() == 0


def join_processes(timeout: float = 30) -> torch.device:
    """Join the processes that torchrun started (NCCL with GPUs, gloo without), and return the device of this process.

    Args:
        timeout: minutes to wait for another process before giving up, > 0.

    Raises:
        InputError: when torchrun did not start this process, or the timeout is not positive.
    """
    if not dist.is_torchelastic_launched():
        raise InputError(
            "multi_gpu_train.yaml needs several processes: start it with torchrun, see the bundle's README"
        )
    if not timeout > 0:
        raise InputError(f"timeout must be more than 0 minutes, got {timeout}")
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if on_gpu else "gloo", timeout=timedelta(minutes=timeout))
    if dist.get_rank() > 0:
        logging.getLogger("monai_wscxr").setLevel(logging.WARNING)
    return device


def leave() -> None:
    """Wait until all processes are done, then leave the group; the last step of a run."""
    wait_for_all()
    dist.destroy_process_group()


def data_parallel(network: nn.Module, device: torch.device) -> nn.Module:
    """Wrap a network so that its gradients are averaged over all processes.

    Args:
        network: network on `device`; its batch normalisations are synchronised on a GPU.
        device: device of this process.
    """
    synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(network) if device.type == "cuda" else network
    return DistributedDataParallel(synchronised, device_ids=[device] if device.type == "cuda" else None)


def wait_for_all() -> None:
    """Wait until every process has reached this call; return at once when there is only one."""
    if process_count() > 1:
        together(dist.barrier)


def from_first(value: T) -> T:
    """Return the value of the first process in every process.

    Args:
        value: value that can be pickled; its tensors should be on the CPU.
    """
    if process_count() == 1:
        return value
    box: list[Any] = [value]
    together(lambda: dist.broadcast_object_list(box, src=0, device=_transport()))
    return box[0]


def share(items: Sequence[T]) -> list[T]:
    """Return the items of this process: every n-th one of n processes, so that all get similar items."""
    return list(items[process_number() :: process_count()])


def row_share(rows: int) -> tuple[int, int]:
    """Return first row and end of the part of a bank that belongs to this process.

    The parts are consecutive, and their sizes differ by one row at most.
    """
    number, count = process_number(), process_count()
    return rows * number // count, rows * (number + 1) // count


def together(step: Callable[[], T]) -> T:
    """Run a step in which all processes take part, and return its result.

    Raises:
        LostProcessError: when another process has ended or does not respond in time.
    """
    try:
        return step()
    except RuntimeError as error:
        explained = lost_process(error)
        if explained is None:
            raise
        raise explained from error


def lost_process(error: BaseException | None) -> LostProcessError | None:
    """Find out whether an error was caused by a lost process.

    Args:
        error: error with its chain of causes.

    Returns:
        The error to show, or None when no error on the chain is a sign of a lost process.
    """
    if process_count() == 1:
        return None
    signs = (
        "connection closed by peer",
        "connection reset by peer",
        "broken pipe",
        "timed out",
        "timeout",
        "heartbeat",
    )
    while error is not None:
        text = str(error).lower()
        if isinstance(error, dist.DistError) or any(sign in text for sign in signs):
            return LostProcessError(
                f"process {process_number()} of {process_count()} waited for another one that has ended or does not respond "
                f"({str(error).splitlines()[0][:120]}). The first error above, or in the logs of the other machines, is the "
                "cause. Everything finished so far is kept: run the same command again"
            )
        error = error.__cause__ or error.__context__
    return None


def _transport() -> torch.device:
    """Return the device through which values are exchanged."""
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
