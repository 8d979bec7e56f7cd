"""Banks in a single file: a matrix of rows in the safetensors format, written by this package or by another program."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from monai_wscxr.bank.header import read_header
from monai_wscxr.bank.rows import FileRows, RowsOnDisk
from monai_wscxr.errors import InputError
from monai_wscxr.system.atomic import DamagedError, replacing


def save_rows(path: str | Path, rows: Tensor) -> None:
    """Write rows [N, C] as the tensor `rows` of a safetensors file, atomically."""
    with replacing(Path(path)) as temporary:
        save_file({"rows": rows.contiguous()}, temporary)


class BankFile(FileRows):
    """Rows [N, C] in a safetensors file, read in blocks and never as a whole.

    Args:
        path: file written by `save_rows`, or any safetensors file that holds a floating-point matrix.
        name: name of the matrix.

    Raises:
        InputError: when the file cannot be read or holds no such matrix.
    """

    def __init__(self, path: str | Path, name: str = "rows") -> None:
        self.path = Path(path)
        try:
            entry = read_header(self.path).tensors.get(name)
            if entry is None or len(entry.shape) != 2 or min(entry.shape) < 1:
                raise DamagedError("it holds no such matrix of floating-point numbers")
        except DamagedError as error:
            raise InputError(
                f"{path}: cannot read a bank of rows [N, C] named {name!r} ({error}); write the file again, for instance "
                "with save_rows"
            ) from None
        rows, channels = entry.shape
        matrix = RowsOnDisk(self.path, entry.offset, rows)
        super().__init__([matrix], torch.tensor([[0, 0, rows]]), channels, entry.dtype)
