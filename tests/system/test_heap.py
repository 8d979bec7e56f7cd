"""Freed memory leaves the process."""

import subprocess
import sys

import pytest

SCRIPT = """
import sys
from monai_wscxr.system import heap
def resident():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1]) >> 10
if heap._library is None:
    print("no glibc"); sys.exit()
# every hundredth piece stays, so that the heap cannot shrink from its end
kept = [bytearray(b"x" * 50_000) for _ in range(4000)][::100]
before = resident(); heap.give_back(); print(before - resident())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_freed_memory_leaves_the_process():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    if "no glibc" in done.stdout:
        pytest.skip("another C library than glibc")
    assert int(done.stdout) > 100  # MB of 200


REUSED = """
import resource, sys, threading
import torch
from monai_wscxr.system import heap
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.empty(6 << 20).fill_(1)  # 24 MiB: larger than any hole that an import leaves in the heap
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
def resident():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1]) >> 10
torch.set_num_threads(1)
heap.give_back_large_blocks()
outside = faults()
with heap.reused():
    with heap.reused():
        faults()
    heap.give_back_large_blocks()  # must not undo it
    inside = faults()
    held = [torch.ones(2 << 20) for _ in range(10)]
    del held
    before = resident()
print(outside, inside, before - resident())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc")
def test_blocks_are_reused_while_it_lasts_and_go_back_afterwards():
    done = subprocess.run([sys.executable, "-c", REUSED], capture_output=True, text=True, check=True)
    outside, inside, returned = map(int, done.stdout.split())
    assert outside > 20 * 6000  # 6,144 pages of 4 KiB a time
    assert inside < outside / 10
    assert returned > 50  # MB of 80
