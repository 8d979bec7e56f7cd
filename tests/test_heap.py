"""Freed memory leaves the process."""

import subprocess
import sys

import pytest

SCRIPT = """
import sys
from monai_wscxr import heap
def resident():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1]) >> 10
if heap._trim is None:
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
