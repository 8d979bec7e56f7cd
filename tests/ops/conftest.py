"""Fixtures of the operator tests: devices, search samples, and a recorder of tensor operations."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from monai_wscxr import ops
from tests.helpers.search_samples import SEARCHES, build


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, and torch sees none")
    return request.param


@pytest.fixture(params=SEARCHES)
def searched(request, device):
    """Return (query, bank) of every sample of the shared list, on the device."""
    return build(request.param, device)


@pytest.fixture
def sample(device):
    """Return a function that builds one sample of the shared list by name."""
    return lambda name: build(name, device)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(7)


@pytest.fixture
def kernels():
    """Return a function that chooses the instruction set by name; restored afterwards."""
    before = ops.EXTENSION.search_kernels()
    yield ops.EXTENSION.use_search_kernels
    ops.EXTENSION.use_search_kernels(before)


class Recorder(TorchDispatchMode):
    """Records the size of the largest tensor that an operation returns, and the types of matrix products."""

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
    """Return torch, and restore its matmul precision switches afterwards."""
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
    """Return a function that compiles another one as a full graph, and counts the compilations."""
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()

    def compile_function(function):
        counter = CompileCounterWithBackend("aot_eager")
        return torch.compile(function, fullgraph=True, backend=counter), counter

    yield compile_function
    torch._dynamo.reset()
