"""Call the operators directly with random malformed arguments: `python -m tests.ops.malformed_calls CALLS SEED KIND`.

KIND is `kernel` or `reference`. Most calls start from valid arguments, of which one to three are damaged; some are left as
they are. Every call must return or raise an exception. A kernel that reads or writes out of bounds ends the process, here or
under the sanitizers. Results of calls that return are read completely, so that the sanitizers see them.
"""

import random
import sys
from collections import Counter

import torch

if __name__ == "__main__" and sys.argv[3:] == ["reference"]:
    sys.modules["monai_wscxr._C"] = None  # as if it had not been built

from monai_wscxr.ops import OPERATORS, PackedBank, backend
from monai_wscxr.ops.min_distance import nothing_found

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
OTHERS = (torch.int64, torch.int32, torch.uint8, torch.bool, torch.complex64)
INTEGERS = (-(2**63), -(2**31), -2, -1, 0, 1, 2, 3, 5, 31, 33, 2**31, 2**32, 2**62, 2**63 - 2, 2**63 - 1, 2**63, 2**64)
NUMBERS = (-1.0, -1e-30, 0.0, 0.5, 1.0, 1.0000001, 1e300, float("nan"), float("inf"), -float("inf"))


def rows(rng, n, channels, dtype):
    return (torch.randn(n, channels, generator=rng) * 3).to(dtype)


def valid(operator, draw, rng):
    """Return valid arguments of an operator."""
    channels = draw.choice((1, 2, 3, 4, 5, 15, 16, 17, 33, 70))
    n, m = draw.choice((0, 1, 2, 3, 12, 40)), draw.choice((1, 2, 31, 32, 33, 70))
    dtype = draw.choice(FLOATS)
    query, bank = rows(rng, n, channels, dtype), rows(rng, m, channels, draw.choice(FLOATS))
    if draw.random() < 0.2:
        bank[m // 2 :] = bank[: m - m // 2].clone()  # duplicates
    if operator in ("mixup", "mixup_into"):
        arguments = [query, rows(rng, m, channels, dtype), draw.randrange(2**63), draw.randrange(2**63), 0.1, 1.0]
        return arguments + ([torch.empty_like(query)] if operator == "mixup_into" else [])
    if operator == "coreset":
        return [rows(rng, m, channels, draw.choice(FLOATS[:2])), draw.randint(1, m), draw.randrange(m)]
    if operator == "pack_bank":
        return [bank]
    packed = PackedBank.pack(bank).packed if "packed" in operator else ()
    if operator in ("search_block", "search_packed"):
        return [query, bank, *packed, *nothing_found(query), draw.choice((0, 7))]
    return [query, bank, *packed] + ([draw.randint(0, n)] if operator.startswith("mine") else [])


def damaged(value, draw, rng):
    """Return a malformed variant of an argument."""
    if not isinstance(value, torch.Tensor):
        return draw.choice((*INTEGERS, *NUMBERS, None, "one", torch.ones(2)) if isinstance(value, int) else NUMBERS)
    if value.layout != torch.strided or value.device.type != "cpu":
        return value  # damaged before
    kind = draw.randrange(14)
    shape = list(value.shape)
    if kind == 0 and shape:  # another size
        place = draw.randrange(len(shape))
        shape[place] = draw.choice((0, 1, 2, shape[place] + 1, max(shape[place] - 1, 0), 4 * shape[place] + 3))
        return torch.ones(shape, dtype=value.dtype)
    if kind == 1:
        return value[None]
    if kind == 2:
        return value.flatten()
    if kind == 3:
        return value.to(draw.choice((*FLOATS, *OTHERS)))
    if kind == 4 and value.ndim == 2:
        return value.T.contiguous().T  # the same values in another order in memory
    if kind == 5 and value.ndim:
        return value.repeat_interleave(2, dim=-1)[..., ::2]
    if kind == 6:
        return value.new_ones(()).expand(shape)
    if kind == 7:
        return value.to("meta")
    if kind == 8 and value.numel():  # other values
        changed = value.clone().flatten()
        place = draw.randrange(len(changed))
        if value.dtype.is_floating_point:
            changed[place] = draw.choice((float("nan"), float("inf"), -float("inf"), -1.0, 6e4, 0.0))
        elif value.dtype == torch.int64:
            changed[place] = draw.choice(INTEGERS[:-2])
        return changed.reshape(shape)
    if kind == 9 and value.numel() and value.dtype != torch.bool:  # random bits
        noise = torch.randint(0, 256, (value.numel() * value.element_size(),), dtype=torch.uint8, generator=rng)
        return noise.view(value.dtype).reshape(shape)
    if kind == 10 and value.ndim == 2 and value.dtype in FLOATS:
        return value.to_sparse()
    if kind == 11:
        return value.new_empty(0)
    if kind == 12:
        return draw.choice((None, 3, "tensor", [value]))
    return torch.as_strided(torch.ones(64, dtype=value.dtype), (draw.randint(0, 4), draw.randint(0, 4)), (1, 3))


def call(operator, draw, rng):
    """Make one call; return the name of its exception, or "returned"."""
    arguments = valid(operator, draw, rng)
    for _ in range(draw.choice((0, 1, 1, 1, 2, 3))):
        place = draw.randrange(len(arguments))
        arguments[place] = damaged(arguments[place], draw, rng)
    if operator == "mixup_into" and draw.random() < 0.2:  # the result overlaps with an input
        whole = arguments[draw.randrange(2)]
        dense = isinstance(whole, torch.Tensor) and whole.layout == torch.strided and whole.ndim
        arguments[-1] = whole[: draw.randint(0, 9)] if dense else whole
    try:
        results = getattr(torch.ops.monai_wscxr, operator)(*arguments)
    except Exception as error:
        return type(error).__name__
    for result in results if isinstance(results, (tuple, list)) else (results,):
        if result.device.type == "cpu":
            result.double().sum()
    return "returned"


def main(calls, seed):
    torch.set_num_threads(1)
    draw, rng = random.Random(seed), torch.Generator().manual_seed(seed)
    outcomes = Counter()
    for number in range(calls):
        operator = OPERATORS[number % len(OPERATORS)]
        outcomes[operator, call(operator, draw, rng)] += 1
    for (operator, outcome), count in sorted(outcomes.items()):
        print(operator, outcome, count)
    print("calls", calls)


if __name__ == "__main__":
    implementation = {"kernel": "compiled"}.get(sys.argv[3], sys.argv[3])
    assert backend("min_distance").name == implementation, backend("min_distance")
    main(int(sys.argv[1]), int(sys.argv[2]))
