"""Samples of queries and banks that are difficult for a nearest-row search, and a naive float64 search as the reference."""

import numpy as np
import torch

F64, F32, F16, BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16
COPIES = 16
# "float64, rounded once to float32": half a unit in the last place, and another half where two float64 sums differ
ONE_ROUNDING = 2.0**-23
SMALLEST = 2.0**-149


def near_copies(g, channels=320):
    """Return 16 near-copies of each of 12 rows and queries next to them, all about 1e-3 apart relative to the norm."""
    rows = torch.randn(12, channels, generator=g).repeat_interleave(COPIES, 0)
    bank = rows * (1 + 1e-3 * torch.randn(rows.shape, generator=g))
    return bank[::2] * (1 + 1e-3 * torch.randn(bank[::2].shape, generator=g)), bank


def clustered(g, n_query=40, n_bank=150, channels=320):
    """Return rows like patch features: non-negative, sparse, along a few directions, in tight clusters."""
    centres = torch.randn(6, 20, generator=g)
    directions = torch.randn(20, channels, generator=g)

    def rows(n):
        latent = centres[torch.randint(6, (n,), generator=g)] + 0.05 * torch.randn(n, 20, generator=g)
        return torch.relu(latent @ directions)

    return rows(n_query), rows(n_bank)


def grid(g, n_query=90, n_bank=200, channels=3):
    """Return small integers: most queries have several nearest rows at exactly the same distance."""
    draw = [torch.randint(-2, 3, (n, channels), generator=g).float() for n in (n_query, n_bank)]
    return draw[0], draw[1]


def normal(g, n_query, n_bank, channels, query_type=F32, bank_type=F32):
    """Return normally distributed queries and bank rows."""
    query, bank = torch.randn(n_query, channels, generator=g), torch.randn(n_bank, channels, generator=g)
    return query.to(query_type), bank.to(bank_type)


def duplicates(g):
    """Return a bank that holds every row twice, and some of its rows as queries."""
    bank = torch.randn(70, 33, generator=g).repeat(2, 1)
    return bank[torch.randperm(140, generator=g)[:50]], bank


def identical_bank(g):
    """Return a bank of one row repeated 60 times."""
    return torch.randn(20, 5, generator=g), torch.randn(1, 5, generator=g).repeat(60, 1)


def scaled(g, factor, dtype=F32):
    """Return normal rows times `factor`."""
    query, bank = normal(g, 20, 30, 4, F64, F64)
    return (query * factor).to(dtype), (bank * factor).to(dtype)


def overflowing(g, value, dtype):
    """Return coordinates of +-value: distances are 0 or overflow."""
    query, bank = normal(g, 12, 20, 4)
    return query.sign().to(dtype) * value, bank.sign().to(dtype) * value


def far_origin(g):
    """Return rows that differ little compared with their distance to the origin."""
    query, bank = normal(g, 40, 60, 33, F64, F64)
    return (query + 1e4).float(), (bank + 1e4).float()


def mixed_magnitudes(g):
    """Return rows whose norms span thirty orders of magnitude."""
    query, bank = normal(g, 30, 64, 8)
    return query * 10.0 ** torch.arange(-15, 15)[:, None], bank * 10.0 ** (torch.arange(64) % 28 - 14)[:, None]


SEARCHES = {
    "random": lambda g: normal(g, 37, 53, 33),
    "clustered": clustered,
    "grid": grid,
    "grid_half": lambda g: tuple(rows.to(F16) for rows in grid(g)),
    "duplicates": duplicates,
    "near_copies": near_copies,
    "near_copies_half": lambda g: tuple(rows.to(BF16) for rows in near_copies(g, 64)),
    "constant_rows": lambda g: tuple(rows[:, :1].expand(-1, 33).contiguous() for rows in normal(g, 30, 40, 33)),
    "identical_bank": identical_bank,
    "huge_1e18": lambda g: scaled(g, 1e18),
    "overflow_float32": lambda g: overflowing(g, 3e38, F32),
    "overflow_float64": lambda g: overflowing(g, 1e200, F64),
    "overflow_float64_centre": lambda g: overflowing(g, 1.7e308, F64),
    "tiny_1e-30": lambda g: scaled(g, 1e-30),
    "subnormal_1e-42": lambda g: scaled(g, 1e-42),
    "mixed_magnitudes": mixed_magnitudes,
    "far_origin": far_origin,
    "one_bank_row": lambda g: normal(g, 20, 1, 33),
    "one_query": lambda g: normal(g, 1, 50, 33),
    "channels_1": lambda g: normal(g, 40, 60, 1),
    "channels_3": lambda g: normal(g, 40, 60, 3),
    "channels_1024": lambda g: normal(g, 24, 48, 1024),
    "transposed": lambda g: (normal(g, 33, 1, 20)[0].T, normal(g, 33, 1, 41)[0].T),
    "strided": lambda g: tuple(rows[::2, 1::3] for rows in normal(g, 40, 60, 33)),
    "expanded": lambda g: tuple(rows[:1].expand(9, -1) for rows in normal(g, 2, 2, 33)),
    "float64": lambda g: normal(g, 30, 40, 33, F64, F64),
    "float16": lambda g: normal(g, 30, 40, 33, F16, F16),
    "bfloat16": lambda g: normal(g, 30, 40, 33, BF16, BF16),
    "float64_on_float32": lambda g: normal(g, 30, 40, 33, F64, F32),
    "float16_on_float32": lambda g: normal(g, 30, 40, 33, F16, F32),
    "float32_on_bfloat16": lambda g: normal(g, 30, 40, 33, F32, BF16),
    "float16_on_bfloat16": lambda g: normal(g, 30, 40, 33, F16, BF16),
}


def build(name: str, device: str):
    """Return (query, bank) of one sample on the device."""
    query, bank = SEARCHES[name](torch.Generator().manual_seed(20240611))
    if device != "cpu":  # .to() makes an expanded tensor dense; other strides are kept
        query, bank = query.to(device), bank.to(device)
    return query, bank


def naive_squared(query, bank):
    """Return squared distances [Nq, Nb] in float64, computed one query row at a time."""
    query, bank = query.cpu().double().numpy(), bank.cpu().double().numpy()
    with np.errstate(over="ignore"):
        return np.stack([((row - bank) ** 2).sum(axis=1) for row in query])


def assert_nearest(query, bank, distance, index):
    """Check for every query the row of the float64 minimum (the lowest of equals) and its distance, rounded once."""
    assert distance.shape == index.shape == query.shape[:1]
    assert (distance.dtype, index.dtype) == (torch.float32, torch.int64)
    assert distance.device == index.device == query.device
    squared = naive_squared(query, bank)
    least, first = squared.min(axis=1), squared.argmin(axis=1)  # argmin returns the first of equals
    # Rows that float64 rounding cannot tell apart: none among integers and copies, very few among real numbers.
    rounding = 4 * (bank.shape[1] + 2) * 2.0**-53
    rival = squared <= (least * (1 + rounding))[:, None]
    doubtful = (rival & (squared != least[:, None])).any(axis=1)
    assert doubtful.mean() <= 0.02, "the sample decides too little"
    found = index.cpu().numpy()
    assert np.array_equal(found[~doubtful], first[~doubtful])
    assert rival[np.arange(len(found)), found].all()
    with np.errstate(over="ignore"):
        expected = np.sqrt(least).astype(np.float32).astype(np.float64)
    np.testing.assert_allclose(distance.cpu().double().numpy(), expected, rtol=ONE_ROUNDING, atol=SMALLEST)
