"""PackedBank: a bank prepared once for many searches.

Packing is the first step of every search: rows are centred and quantised to bytes, duplicates are found, and the norm of
the quantisation error is stored for every row. The bytes need a quarter of the memory of float32, and a search reads only
the few rows in full that the bytes cannot exclude. Packing does not affect results, because exact distances decide.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from monai_wscxr.ops import _library
from monai_wscxr.ops.checks import check_bank, check_finite, plain_errors

COLUMNS = 32  # rows per panel, kColumns of csrc/cpu/search.h
CODED_CHANNELS = 65_536  # further channels count as quantisation error
_VERSION = 1
_LEVELS = 127
_BLOCK = 4096


@dataclass(frozen=True)
class PackedBank:
    """Rows of a bank with their codes; `min_distance` and `mine_top_r` accept it in place of the rows.

    Attributes:
        rows: [N, C] the bank itself, float64, float32, float16 or bfloat16, on the CPU.
        codes: [panels, ceil(C / 4), 128] uint8; a panel holds 32 rows, with four channels of one row next to each other.
        columns: [panels, 4, 32] float32: |b~|^2 of each coded row b~, twice its scale, the norm of its residual, |b~|.
        centre: [C] float64, subtracted before quantisation.
        row: [panels * 32] int64, the bank row of each column; -1 for none. Duplicates of an earlier row have no column.
        layout: [6] int64: version, largest code, exponent of the unit, columns in use, N, C.
    """

    rows: Tensor
    codes: Tensor
    columns: Tensor
    centre: Tensor
    row: Tensor
    layout: Tensor

    @classmethod
    def pack(cls, rows: Tensor) -> PackedBank:
        """Pack a bank.

        Args:
            rows: [N, C], N >= 1, floating point, on the CPU, finite.

        Returns:
            The packed bank; it keeps a reference to `rows`.

        Raises:
            ValueError: on wrong shapes or types, an empty bank, rows that are not on the CPU, NaN or Inf.
        """
        check_bank(rows, "PackedBank")
        if rows.device.type != "cpu":
            raise ValueError(
                f"PackedBank: rows are on {rows.device}; banks are packed on the CPU, move them there first"
            )
        with plain_errors():
            return cls(rows, *torch.ops.monai_wscxr.pack_bank(rows))

    def __len__(self) -> int:
        return self.rows.shape[0]

    @property
    def shape(self) -> torch.Size:
        """Shape [N, C] of the rows."""
        return self.rows.shape

    @property
    def packed(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Arguments that the operators take in addition to the rows."""
        return self.codes, self.columns, self.centre, self.row, self.layout

    @property
    def nbytes(self) -> int:
        """Number of bytes of the rows and all packed data."""
        return sum(int(getattr(self, field.name).nbytes) for field in fields(self))


def _exponent(largest: float, double: bool) -> int:
    if largest == 0:
        return 0
    limit = 1000 if double else 100
    return max(-limit, min(limit, int(torch.tensor(largest, dtype=torch.float64).frexp().exponent) - 1))


def _reference(bank: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Pack in plain torch, in the layout of the compiled kernel; duplicates are kept."""
    check_bank(bank, "PackedBank")
    check_finite(bank, "bank")
    n, channels = bank.shape
    double = bank.dtype == torch.float64
    centre = torch.zeros(channels, dtype=torch.float64, device=bank.device)
    for block in torch.split(bank, _BLOCK):
        centre += block.double().sum(0) / n
    centre = centre if double else centre.float().double()
    exponent = _exponent(max(float((b.double() - centre).abs().max()) for b in torch.split(bank, _BLOCK)), double)
    panels, coded = -(-n // COLUMNS), min(channels, CODED_CHANNELS)
    depth = -(-coded // 4)
    codes = torch.full((panels * COLUMNS, depth * 4), _LEVELS + 1, dtype=torch.uint8, device=bank.device)
    columns = torch.zeros(4, panels * COLUMNS, device=bank.device)
    columns[0] = torch.inf
    for start in range(0, n, _BLOCK):
        y = torch.ldexp(bank[start : start + _BLOCK].double() - centre, torch.tensor(-exponent))
        scale = (y.abs().amax(1) / _LEVELS).float()
        scale = torch.where(scale > 1e-30, scale, 0)
        code = (
            torch.where(scale[:, None] > 0, y[:, :coded] / scale[:, None].double(), 0).round().clamp(-_LEVELS, _LEVELS)
        )
        y[:, :coded] -= code * scale[:, None].double()
        rows = slice(start, start + len(y))
        norm = scale.double() * code.norm(dim=1)
        codes[rows, :coded] = (code + _LEVELS + 1).to(torch.uint8)
        columns[0, rows], columns[1, rows] = norm.square().float(), 2 * scale
        columns[2, rows] = (y.norm(dim=1) * (1 + 1e-6)).float() + 1e-37
        columns[3, rows] = (norm * (1 + 1e-6)).float()
    row = torch.full((panels * COLUMNS,), -1, dtype=torch.int64, device=bank.device)
    row[:n] = torch.arange(n, device=bank.device)
    layout = torch.tensor([_VERSION, _LEVELS, exponent, n, n, channels], device=bank.device)
    words = codes.reshape(panels, COLUMNS, depth, 4).transpose(1, 2).reshape(panels, depth, 4 * COLUMNS)
    return words, columns.reshape(4, panels, COLUMNS).transpose(0, 1).contiguous(), centre, row, layout


def _fake(bank: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    check_bank(bank, "PackedBank")
    n, channels = bank.shape
    panels, depth = (n + COLUMNS - 1) // COLUMNS, (min(channels, CODED_CHANNELS) + 3) // 4
    return (
        bank.new_empty((panels, depth, 4 * COLUMNS), dtype=torch.uint8),
        bank.new_empty((panels, 4, COLUMNS), dtype=torch.float32),
        bank.new_empty(channels, dtype=torch.float64),
        bank.new_empty(panels * COLUMNS, dtype=torch.int64),
        bank.new_empty(6, dtype=torch.int64),
    )


_library.define("pack_bank", "(Tensor bank) -> (Tensor, Tensor, Tensor, Tensor, Tensor)", _reference, _fake)
