"""Checks of the inputs that the search operators share."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import torch
from torch import Tensor

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def _check_matrix(rows: Tensor, name: str, operator: str) -> None:
    if rows.ndim != 2:
        raise ValueError(f"{operator}: {name} must be a matrix of rows [N, C], got shape {tuple(rows.shape)}")
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
        message = re.search(r"(query|bank) holds NaN or Inf.*", str(error))
        if message is None:
            raise
        raise ValueError(message.group()) from None


def plain_errors() -> contextlib.AbstractContextManager[None]:
    """Return a context that turns a kernel's error about NaN or Inf into the ValueError of the reference.

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
