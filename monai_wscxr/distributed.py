"""Several processes as one: who takes part, and what each has to do."""

from __future__ import annotations

import logging
import os

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from monai_wscxr.errors import InputError


def first_process() -> bool:
    """Whether this process writes: the only one, or rank 0 of several."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


def wait_for_all() -> None:
    """Go on when every process has come here; nothing to wait for with one."""
    if dist.is_available() and dist.is_initialized():
        dist.barrier()


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


def data_parallel(network: nn.Module, device: torch.device) -> nn.Module:
    """The same network with gradients averaged over all processes."""
    synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(network) if device.type == "cuda" else network
    return DistributedDataParallel(synchronised, device_ids=[device] if device.type == "cuda" else None)
