"""What the search operators ask of their inputs."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import torch
from torch import Tensor

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def _check_matrix(rows: Tensor, name: str, operator: str) -> None:
    if rows.ndim != 2:
        raise ValueError(f"{operator}: {name} must be a matrix of rows [N, C], got shape {tuple(rows.shape)}")
    if rows.dtype not in DTYPES:
        raise ValueError(f"{operator}: {name} must be a floating-point tensor, got {rows.dtype}; convert it first")


def check_bank(bank: Tensor, operator: str) -> None:
    """Check a bank on its own; raise ValueError with the remedy otherwise."""
    _check_matrix(bank, "bank", operator)
    if bank.shape[0] == 0:
        raise ValueError(f"{operator}: the bank is empty, so nothing can be nearest; fill it with normal patches first")
    if bank.shape[1] == 0:
        raise ValueError(f"{operator}: the bank's rows have no channels")


def check_rows(query: Tensor, bank: Tensor, operator: str) -> None:
    """Check what all search operators ask of their two row matrices; raise ValueError with the remedy otherwise."""
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
    """Raise ValueError that counts the rows holding NaN or Inf."""
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
        sentence = re.search(r"(query|bank) holds NaN or Inf.*", str(error))
        if sentence is None:
            raise
        raise ValueError(sentence.group()) from None


def plain_errors() -> contextlib.AbstractContextManager[None]:
    """Turn the error that a compiled kernel raises for NaN or Inf into the ValueError of the reference.

    (A kernel can only raise RuntimeError. Under torch.compile it stays one: the kernel runs outside of this code.)
    """
    return contextlib.nullcontext() if torch.compiler.is_compiling() else _value_errors()


def no_gradient(operator: str):
    """A backward formula that says why there is none."""

    def backward(ctx, *grads):
        raise RuntimeError(
            f"{operator} has no gradient: the nearest row changes by jumps. Detach its inputs, "
            "or compute the distance to the returned rows with ordinary tensor operations"
        )

    return backward
