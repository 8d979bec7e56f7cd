"""Linear mixing of normal and mined abnormal patches (Eq. 6) with a counter-based random stream.

Row i of a call takes its random numbers from Philox4x32-10 (Salmon et al., Parallel random numbers: as easy as 1, 2, 3,
SC 2011) with key `seed` and counter `offset + i`. The abnormal patch and the mixing factor of a row therefore do not
depend on the device, the number of threads or processes, or the batch size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from monai_wscxr.ops import _library
from monai_wscxr.ops.checks import plain_errors

_MASK = 0xFFFFFFFF
_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def mixup(
    normal: Tensor,
    abnormal: Tensor,
    seed: int,
    offset: int = 0,
    alpha_min: float = 0.1,
    alpha_max: float = 1.0,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Mix each normal row with a random abnormal row: alpha * m_a + (1 - alpha) * m_n (Eq. 6).

    `source` and `alpha` are bit-identical on all devices. Differentiable with respect to both row matrices.

    Args:
        normal: [N, C] normal patch features, floating point; N may be 0.
        abnormal: [M, C] mined abnormal patch features of the same type and device, M >= 1; drawn with replacement.
        seed: key of the random stream, in [0, 2^63).
        offset: position of the first row in the stream, in [0, 2^63); row i uses position offset + i.
        alpha_min: smallest mixing factor, in [0, alpha_max].
        alpha_max: largest mixing factor, in [alpha_min, 1].
        out: contiguous [N, C] tensor for the mixed rows that shares no memory with the inputs; has no gradient. For
            large results most time is spent on allocating fresh memory, so loops should reuse one tensor.

    Returns:
        mixed [N, C] of the inputs' type, source [N] int64 into `abnormal`, alpha [N] float32 in [alpha_min, alpha_max].

    Raises:
        ValueError: on wrong shapes, types or devices, no abnormal row, numbers outside their ranges, an `out` that does
            not fit or shares memory with the rows, or an `out` when a gradient is required.

    Example:
        >>> normal, abnormal = torch.zeros(4, 2), torch.ones(1, 2)
        >>> mixed, source, alpha = mixup(normal, abnormal, seed=7)
        >>> torch.equal(mixed[:, 0], alpha), source.tolist()
        (True, [0, 0, 0, 0])
        >>> torch.equal(mixup(normal[2:], abnormal, seed=7, offset=2)[0], mixed[2:])  # a row depends on its position alone
        True
    """
    _check(normal, abnormal, seed, offset, alpha_min, alpha_max)
    if out is None:
        result: tuple[Tensor, Tensor, Tensor]
        result = torch.ops.monai_wscxr.mixup(normal, abnormal, seed, offset, alpha_min, alpha_max)
        return result
    _check_out(normal, out)
    if torch.is_grad_enabled() and (normal.requires_grad or abnormal.requires_grad or out.requires_grad):
        raise ValueError("mixup: out has no gradient; detach the rows, or omit out")
    with plain_errors():
        source, alpha = torch.ops.monai_wscxr.mixup_into(normal, abnormal, seed, offset, alpha_min, alpha_max, out)
    return out, source, alpha


def _check(normal: Tensor, abnormal: Tensor, seed: int, offset: int, alpha_min: float, alpha_max: float) -> None:
    """Check the arguments of `mixup` except for `out`."""
    for name, rows in (("normal", normal), ("abnormal", abnormal)):
        if rows.ndim != 2 or rows.dtype not in _DTYPES or rows.layout != torch.strided:
            raise ValueError(f"mixup: {name} must be [N, C] floating point, got {tuple(rows.shape)} {rows.dtype}")
    if normal.shape[1] != abnormal.shape[1] or normal.dtype != abnormal.dtype or normal.device != abnormal.device:
        raise ValueError(
            "mixup: normal and abnormal must agree in channels, type and device, got "
            f"{normal.shape[1]} {normal.dtype} {normal.device} and {abnormal.shape[1]} {abnormal.dtype} {abnormal.device}"
        )
    if abnormal.shape[0] == 0:
        raise ValueError("mixup: there is no abnormal row to mix in; mine at least one")
    if not 0 <= alpha_min <= alpha_max <= 1:
        raise ValueError(f"mixup: need 0 <= alpha_min <= alpha_max <= 1, got {alpha_min} and {alpha_max}")
    if not 0 <= seed < 2**63 or not 0 <= offset < 2**63:
        raise ValueError(f"mixup: seed and offset must lie in [0, 2^63), got {seed} and {offset}")


def _check_out(normal: Tensor, out: Tensor) -> None:
    """Check shape, type and device of `out` of `mixup`."""
    if out.shape != normal.shape or out.dtype != normal.dtype or out.device != normal.device or not out.is_contiguous():
        raise ValueError(
            f"mixup: out must be contiguous, {tuple(normal.shape)} {normal.dtype} on {normal.device} like the normal rows, "
            f"got {tuple(out.shape)} {out.dtype} on {out.device}"
        )


def _check_apart(normal: Tensor, abnormal: Tensor, out: Tensor) -> None:
    """Check that `out` of `mixup` shares no memory with the rows."""
    if _overlap(out, normal) or _overlap(out, abnormal):
        raise ValueError("mixup: out shares memory with the rows that are mixed; give a tensor of its own")


def _overlap(a: Tensor, b: Tensor) -> bool:
    """Return whether the memory between the first and the last number of one tensor overlaps with that of another."""
    if a.numel() == 0 or b.numel() == 0 or a.device != b.device or a.device.type == "meta":
        return False
    begin_a, begin_b = a.data_ptr(), b.data_ptr()
    return begin_a < begin_b + _extent(b) and begin_b < begin_a + _extent(a)


def _extent(tensor: Tensor) -> int:
    """Return the number of bytes from the first to the last number of a tensor."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()


def philox(counter: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute Philox4x32-10 of 64-bit counters (upper two counter words 0) under a 64-bit key.

    Args:
        counter: [N] int64.
        seed: key, in [0, 2^63).

    Returns:
        Four int64 tensors [N] that hold the 32-bit words.
    """
    words = (counter & _MASK, (counter >> 32) & _MASK, torch.zeros_like(counter), torch.zeros_like(counter))
    return philox_rounds(words, seed & _MASK, (seed >> 32) & _MASK)


def philox_rounds(
    words: tuple[Tensor, Tensor, Tensor, Tensor], key0: int, key1: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Apply the ten rounds to 32-bit words held in int64. Products wrap as signed numbers; their 64 bits are correct."""
    c0, c1, c2, c3 = words
    for _ in range(10):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _MASK) ^ c1 ^ key0,
            p1 & _MASK,
            ((p0 >> 32) & _MASK) ^ c3 ^ key1,
            p0 & _MASK,
        )
        key0, key1 = (key0 + 0x9E3779B9) & _MASK, (key1 + 0xBB67AE85) & _MASK
    return c0, c1, c2, c3


def _below(low: Tensor, high: Tensor, n: int) -> Tensor:
    """Compute floor(u * n / 2^64), an index below n, for u = high * 2^32 + low by multiplication of 32-bit limbs."""
    n_low, n_high = n & _MASK, n >> 32
    carry = (((low * n_low) >> 32) & _MASK) + ((high * n_low) & _MASK) + ((low * n_high) & _MASK)
    upper = (((high * n_low) >> 32) & _MASK) + (((low * n_high) >> 32) & _MASK) + high * n_high
    return upper + (carry >> 32)


def draw(
    n: int, m: int, seed: int, offset: int, alpha_min: float, alpha_max: float, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Draw the random part of `mixup`: source [n] int64 in [0, m) and alpha [n] float32."""
    counter = torch.arange(n, dtype=torch.int64, device=device) + offset
    w0, w1, w2, _ = philox(counter, seed)
    source = _below(w0, w1, m)
    uniform = (w2 >> 8).to(torch.float32) * 2.0**-24  # exact, in [0, 1)
    low = torch.tensor(alpha_min, dtype=torch.float32, device=device)
    high = torch.tensor(alpha_max, dtype=torch.float32, device=device)
    # Product and sum are rounded separately. Kernels must not fuse them, or the last bit differs.
    return source, torch.minimum(low + (high - low) * uniform, high)


def _reference(
    normal: Tensor, abnormal: Tensor, seed: int, offset: int, alpha_min: float, alpha_max: float
) -> tuple[Tensor, Tensor, Tensor]:
    _check(normal, abnormal, seed, offset, alpha_min, alpha_max)
    source, alpha = draw(normal.shape[0], abnormal.shape[0], seed, offset, alpha_min, alpha_max, normal.device)
    compute = torch.float64 if normal.dtype == torch.float64 else torch.float32
    weight = alpha[:, None].to(compute)
    mixed = weight * abnormal[source].to(compute) + (1 - weight) * normal.to(compute)
    return mixed.to(normal.dtype), source, alpha


def _into_reference(
    normal: Tensor, abnormal: Tensor, seed: int, offset: int, alpha_min: float, alpha_max: float, mixed: Tensor
) -> tuple[Tensor, Tensor]:
    _check(normal, abnormal, seed, offset, alpha_min, alpha_max)
    _check_out(normal, mixed)
    _check_apart(normal, abnormal, mixed)
    rows, source, alpha = _reference(normal, abnormal, seed, offset, alpha_min, alpha_max)
    mixed.copy_(rows)
    return source, alpha


def _into_fake(
    normal: Tensor, abnormal: Tensor, seed: int, offset: int, alpha_min: float, alpha_max: float, mixed: Tensor
) -> tuple[Tensor, Tensor]:
    results = _fake(normal, abnormal, seed, offset, alpha_min, alpha_max)
    _check_out(normal, mixed)
    return results[1:]


def _fake(
    normal: Tensor, abnormal: Tensor, seed: int, offset: int, alpha_min: float, alpha_max: float
) -> tuple[Tensor, Tensor, Tensor]:
    _check(normal, abnormal, seed, offset, alpha_min, alpha_max)
    n = normal.shape[0]
    return (
        torch.empty_like(normal, memory_format=torch.contiguous_format),
        normal.new_empty(n, dtype=torch.int64),
        normal.new_empty(n, dtype=torch.float32),
    )


def _setup_context(
    ctx: Any, inputs: tuple[Tensor, Tensor, int, int, float, float], output: tuple[Tensor, Tensor, Tensor]
) -> None:
    _, source, alpha = output
    ctx.rows = inputs[1].shape[0]
    ctx.save_for_backward(source, alpha)
    ctx.mark_non_differentiable(source, alpha)


def _backward(
    ctx: Any, grad_mixed: Tensor, grad_source: Tensor, grad_alpha: Tensor
) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
    source, alpha = ctx.saved_tensors
    weight = alpha[:, None].to(grad_mixed.dtype)
    grad_abnormal = None
    if ctx.needs_input_grad[1]:
        grad_abnormal = grad_mixed.new_zeros(ctx.rows, grad_mixed.shape[1]).index_add(0, source, weight * grad_mixed)
    grad_normal = (1 - weight) * grad_mixed if ctx.needs_input_grad[0] else None
    return grad_normal, grad_abnormal, None, None, None, None


_library.define(
    "mixup",
    "(Tensor normal, Tensor abnormal, int seed, int offset, float alpha_min, float alpha_max)"
    " -> (Tensor, Tensor, Tensor)",
    _reference,
    _fake,
)
_library.define_autograd("mixup", _backward, _setup_context)
_library.define(
    "mixup_into",
    "(Tensor normal, Tensor abnormal, int seed, int offset, float alpha_min, float alpha_max, Tensor(a!) mixed)"
    " -> (Tensor, Tensor)",
    _into_reference,
    _into_fake,
)
