"""Several processes as one (torch.distributed): who takes part, who does what, and sums that do not depend on their number."""

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
    """Another process of the run has ended or does not answer."""


def process_count() -> int:
    """Number of processes of this run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_number() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if process_count() > 1 else 0


def first_process() -> bool:
    """Whether this process writes: the only one, or rank 0 of several."""
    return process_number() == 0


def join_processes(timeout: float = 30) -> torch.device:
    """Join the processes that torchrun started (NCCL with GPUs, gloo without); returns this process's device.

    Args:
        timeout: minutes that a process waits for the others before it gives up, > 0.

    Raises:
        InputError: when torchrun did not start this process.
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
    """Last step: nobody leaves before all are done."""
    wait_for_all()
    dist.destroy_process_group()


def data_parallel(network: nn.Module, device: torch.device) -> nn.Module:
    """The same network with gradients averaged over all processes."""
    synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(network) if device.type == "cuda" else network
    return DistributedDataParallel(synchronised, device_ids=[device] if device.type == "cuda" else None)


def wait_for_all() -> None:
    """Go on when every process has come here; nothing to wait for with one."""
    if process_count() > 1:
        together(dist.barrier)


def from_first(value: T) -> T:
    """The value of the first process, in every process: tensors and plain values; tensors come to the CPU."""
    if process_count() == 1:
        return value
    box: list[Any] = [value]
    together(lambda: dist.broadcast_object_list(box, src=0, device=_transport()))
    return box[0]


def share(items: Sequence[T]) -> list[T]:
    """The part of the items that is this process's: every so-manieth, so that all parts are alike."""
    return list(items[process_number() :: process_count()])


def row_share(rows: int) -> tuple[int, int]:
    """First row and end of this process's part of a bank; parts follow each other and differ by one row at most."""
    number, count = process_number(), process_count()
    return rows * number // count, rows * (number + 1) // count


def together(step: Callable[[], T]) -> T:
    """Run something that all processes have to do; one that is gone is told in a sentence.

    Raises:
        LostProcessError: when another process has ended or does not answer in time.
    """
    try:
        return step()
    except RuntimeError as error:
        explained = lost_process(error)
        if explained is None:
            raise
        raise explained from error


def lost_process(error: BaseException | None) -> LostProcessError | None:
    """What to tell when one of the errors on this chain says that another process is gone; None when none does."""
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
                f"process {process_number()} of {process_count()} waited for another one that has ended or does not answer "
                f"({str(error).splitlines()[0][:120]}). The first error above, or in the other machines' logs, is the cause. "
                "Whatever was finished is kept: give the same command again"
            )
        error = error.__cause__ or error.__context__
    return None


def _transport() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
