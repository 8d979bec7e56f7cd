"""Memory of machine and process, against tables that are known and an allocation that is made."""

import subprocess
import sys
from pathlib import Path

import pytest

from monai_wscxr.system import memory

HELD = """
from monai_wscxr.system.memory import peak_memory, reset_peak_memory, resident_memory
before = resident_memory()
held = b"x" * (200 << 20)
print(resident_memory() - before, peak_memory() - before)
del held
reset_peak_memory()
print(resident_memory() - before, peak_memory() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_an_allocation_shows_in_resident_and_peak_memory():
    done = subprocess.run([sys.executable, "-c", HELD], capture_output=True, text=True, check=True)
    held, peak, freed, after_reset = (int(number) for number in done.stdout.split())
    assert 190 << 20 < held < 230 << 20
    assert held <= peak
    assert freed < 50 << 20
    assert after_reset < 50 << 20


@pytest.mark.parametrize(
    ("limit", "used", "expected"),
    [
        (None, None, 3000 * 1024),
        ("max", "5", 3000 * 1024),
        ("2000000", "500000", 1500000),
        ("2000000", "2500000", 0),
        ("99000000", "0", 3000 * 1024),
        ("2000000", "nonsense", 3000 * 1024),
    ],
)
def test_free_memory_is_within_the_limit_of_a_container(monkeypatch, limit, used, expected):
    tables = {
        "/proc/meminfo": "MemTotal: 9000 kB\nMemAvailable: 3000 kB\n",
        "/sys/fs/cgroup/memory.max": limit,
        "/sys/fs/cgroup/memory.current": used,
    }

    def read(self):
        if tables.get(str(self)) is None:
            raise FileNotFoundError(self)
        return tables[str(self)]

    monkeypatch.setattr(Path, "read_text", read)
    assert memory.available_memory() == expected


def test_without_proc_half_of_the_physical_memory_counts(monkeypatch):
    def read(self):
        raise FileNotFoundError(self)

    monkeypatch.setattr(Path, "read_text", read)
    monkeypatch.setattr("os.sysconf", lambda name: {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1000}[name])
    assert memory.available_memory() == 4096 * 500
    monkeypatch.setattr("resource.getrusage", lambda _: type("Usage", (), {"ru_maxrss": 7000}))
    monkeypatch.setattr(sys, "platform", "linux")
    assert memory.peak_memory() == 7000 * 1024
    monkeypatch.setattr(sys, "platform", "darwin")
    assert memory.peak_memory() == 7000
