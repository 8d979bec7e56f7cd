"""Checks of the arguments of the operators.

The Python functions call them, and so do the references and the fake implementations: operators can also be called
directly, as `torch.ops.monai_wscxr.*`. Compiled kernels have the same checks in csrc/tensor_checks.h.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import torch
from torch import Tensor

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
NO_ROW = 2**63 - 1  # index of a query without a nearest row


def _check_matrix(rows: Tensor, name: str, operator: str) -> None:
    if rows.ndim != 2:
        raise ValueError(f"{operator}: {name} must be a matrix of rows [N, C], got shape {tuple(rows.shape)}")
    if rows.layout != torch.strided:
        raise ValueError(f"{operator}: {name} must be a dense tensor, got {rows.layout}; convert it with to_dense()")
    if rows.dtype not in DTYPES:
        raise ValueError(f"{operator}: {name} must be a floating-point tensor, got {rows.dtype}; convert it first")


def check_bank(bank: Tensor, operator: str) -> None:
    """Check that a bank is a floating-point matrix with at least one row and one channel.

    Args:
        bank: tensor to check, expected [N, C].
        operator: name of the calling operator, for the message.

    Raises:
        ValueError: if it is not.
    """
    _check_matrix(bank, "bank", operator)
    if bank.shape[0] == 0:
        raise ValueError(f"{operator}: the bank is empty, so nothing can be nearest; fill it with normal patches first")
    if bank.shape[1] == 0:
        raise ValueError(f"{operator}: the bank's rows have no channels")


def check_rows(query: Tensor, bank: Tensor, operator: str) -> None:
    """Check that query and bank are matrices of equal width on one device, and that the bank is not empty.

    Args:
        query: tensor to check, expected [Nq, C].
        bank: tensor to check, expected [Nb, C].
        operator: name of the calling operator, for the message.

    Raises:
        ValueError: if they are not.
    """
    for name, rows in (("query", query), ("bank", bank)):
        _check_matrix(rows, name, operator)
    if query.shape[1] != bank.shape[1] or query.shape[1] == 0:
        raise ValueError(
            f"{operator}: query and bank must have the same number of channels (at least 1), "
            f"got {query.shape[1]} and {bank.shape[1]}; were they made with the same backbone and layers?"
        )
    if query.device != bank.device:
        raise ValueError(f"{operator}: query is on {query.device} but bank on {bank.device}; move one of them")
    check_bank(bank, operator)


def check_found(
    query: Tensor, bank: Tensor, squared: Tensor, index: Tensor, first_row: int | torch.SymInt, operator: str
) -> None:
    """Check the result of earlier blocks that a search of one block starts from.

    Args:
        query: [Nq, C], checked already.
        bank: [Nb, C], the block, checked already.
        squared: tensor to check, expected [Nq] float64.
        index: tensor to check, expected [Nq] int64.
        first_row: index of the block's first row in the larger bank, expected at least 0.
        operator: name of the calling operator, for the message.

    Raises:
        ValueError: if the types, shapes or devices differ, or the row numbers of the block lie outside [0, 2^63 - 1).
    """
    for name, tensor, dtype in (("squared", squared, torch.float64), ("index", index, torch.int64)):
        if tensor.ndim != 1 or tensor.dtype != dtype or tensor.shape[0] != query.shape[0]:
            raise ValueError(
                f"{operator}: {name} must hold one {dtype} number for each of the {query.shape[0]} query rows, got "
                f"{tuple(tensor.shape)} {tensor.dtype}"
            )
        if tensor.device != query.device:
            raise ValueError(f"{operator}: {name} is on {tensor.device} but query on {query.device}; move one of them")
    if first_row < 0 or first_row >= NO_ROW - bank.shape[0]:
        raise ValueError(
            f"{operator}: first_row must be at least 0, and all rows of the block below 2^63 - 1, got {first_row}"
        )


def check_start(squared: Tensor, index: Tensor, operator: str) -> None:
    """Check that squared distances and rows are such that an earlier block or `nothing_found` can give.

    Raises:
        ValueError: on a negative squared distance or row, NaN, or a distance without a row.
    """
    if not bool(((squared >= 0) & (index >= 0) & ((index != NO_ROW) | squared.isinf())).all()):
        raise ValueError(f"{operator}: squared and index must come from an earlier block or from nothing_found")


def check_count(query: Tensor, k: int | torch.SymInt) -> None:
    """Check that the number of rows to mine lies between 0 and the number of query rows.

    Raises:
        ValueError: if it does not.
    """
    if k < 0 or k > query.shape[0]:
        raise ValueError(f"mine_top_r: k must lie between 0 and {query.shape[0]}, got {k}")


def check_finite(rows: Tensor, name: str) -> None:
    """Check that a matrix holds neither NaN nor Inf.

    Raises:
        ValueError: if it does, with the number of affected rows.
    """
    if not bool(torch.isfinite(rows).all()):
        bad = int((~torch.isfinite(rows)).any(dim=1).sum())
        raise ValueError(
            f"{name} holds NaN or Inf in {bad} of {rows.shape[0]} rows; distances to them mean nothing. "
            "Look for damaged images or a broken weights file"
        )


@contextlib.contextmanager
def _value_errors() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        message = re.search(r"((query|bank) holds NaN or Inf|mixup: out shares memory).*", str(error))
        if message is None:
            raise
        raise ValueError(message.group()) from None


def plain_errors() -> contextlib.AbstractContextManager[None]:
    """Return a context that turns a kernel's error about values or memory into the ValueError of the reference.

    Kernels can only raise RuntimeError. Under torch.compile it is not translated, because the kernel runs outside of the
    context.
    """
    return contextlib.nullcontext() if torch.compiler.is_compiling() else _value_errors()


def no_gradient(operator: str) -> Callable[..., NoReturn]:
    """Return a backward function that raises an error explaining why the operator has no gradient."""

    def backward(ctx: Any, *grads: Tensor) -> NoReturn:
        raise RuntimeError(
            f"{operator} has no gradient: the index of the nearest row is not differentiable. Detach its inputs, "
            "or compute the distance to the returned rows with ordinary tensor operations"
        )

    return backward
