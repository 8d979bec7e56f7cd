"""What the operator tests share: devices, the list of search samples, and a recorder of tensor operations."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from monai_wscxr import ops

F64, F32, F16, BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16
COPIES = 16


def near_copies(g, channels=320):
    """16 copies of each of 12 rows and queries beside them, all 1e-3 apart relative to the norm."""
    rows = torch.randn(12, channels, generator=g).repeat_interleave(COPIES, 0)
    bank = rows * (1 + 1e-3 * torch.randn(rows.shape, generator=g))
    return bank[::2] * (1 + 1e-3 * torch.randn(bank[::2].shape, generator=g)), bank


def clustered(g, n_query=40, n_bank=150, channels=320):
    """Like patch features: not negative, sparse, on a few directions, in tight clusters."""
    centres = torch.randn(6, 20, generator=g)
    directions = torch.randn(20, channels, generator=g)

    def rows(n):
        latent = centres[torch.randint(6, (n,), generator=g)] + 0.05 * torch.randn(n, 20, generator=g)
        return torch.relu(latent @ directions)

    return rows(n_query), rows(n_bank)


def grid(g, n_query=90, n_bank=200, channels=3):
    """Small integers: most queries have several nearest rows at exactly the same distance."""
    draw = [torch.randint(-2, 3, (n, channels), generator=g).float() for n in (n_query, n_bank)]
    return draw[0], draw[1]


def normal(g, n_query, n_bank, channels, query_type=F32, bank_type=F32):
    query, bank = torch.randn(n_query, channels, generator=g), torch.randn(n_bank, channels, generator=g)
    return query.to(query_type), bank.to(bank_type)


def duplicates(g):
    bank = torch.randn(70, 33, generator=g).repeat(2, 1)
    return bank[torch.randperm(140, generator=g)[:50]], bank


def identical_bank(g):
    return torch.randn(20, 5, generator=g), torch.randn(1, 5, generator=g).repeat(60, 1)


def scaled(g, factor, dtype=F32):
    query, bank = normal(g, 20, 30, 4, F64, F64)
    return (query * factor).to(dtype), (bank * factor).to(dtype)


def overflowing(g, value, dtype):
    """Coordinates of +-value: distances are 0 or overflow."""
    query, bank = normal(g, 12, 20, 4)
    return query.sign().to(dtype) * value, bank.sign().to(dtype) * value


def far_origin(g):
    query, bank = normal(g, 40, 60, 33, F64, F64)
    return (query + 1e4).float(), (bank + 1e4).float()


def mixed_magnitudes(g):
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
    query, bank = SEARCHES[name](torch.Generator().manual_seed(20240611))
    if device != "cpu":  # .to() makes an expanded tensor dense; the copies keep the other strides
        query, bank = query.to(device), bank.to(device)
    return query, bank


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, and torch sees none")
    return request.param


@pytest.fixture(params=SEARCHES)
def searched(request, device):
    """(query, bank) of one sample of the shared list, on the device."""
    return build(request.param, device)


@pytest.fixture
def sample(device):
    """Build one sample of the shared list by name."""
    return lambda name: build(name, device)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(7)


@pytest.fixture
def kernels():
    """Choose the instruction set of searches by name; put back afterwards."""
    before = ops.EXTENSION.search_kernels()
    yield ops.EXTENSION.use_search_kernels
    ops.EXTENSION.use_search_kernels(before)


class Recorder(TorchDispatchMode):
    """Notes the size of every tensor that an operation returns and the type of every matrix product."""

    PRODUCTS = (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm, torch.ops.aten.baddbmm)

    def __init__(self):
        super().__init__()
        self.largest = 0
        self.product_types = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
                if func.overloadpacket in self.PRODUCTS:
                    self.product_types.add(tensor.dtype)
        return result


@pytest.fixture
def recorder():
    return Recorder()


@pytest.fixture
def matmul_precision():
    """torch with its matmul precision switches, put back afterwards."""
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
    before = [matmul.fp32_precision for matmul in backends]
    yield torch
    for matmul in backends:
        matmul.fp32_precision = "ieee"
    torch.set_float32_matmul_precision("highest")
    for matmul, precision in zip(backends, before, strict=True):
        matmul.fp32_precision = precision


@pytest.fixture
def compile_counted():
    """torch.compile(fullgraph, aot_eager) of a function, and the counter of its compilations."""
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()

    def compile_function(function):
        counter = CompileCounterWithBackend("aot_eager")
        return torch.compile(function, fullgraph=True, backend=counter), counter

    yield compile_function
    torch._dynamo.reset()
