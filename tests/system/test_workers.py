"""Worker processes: results and errors are returned; a crash, an endless loop or too much memory costs one task."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from monai_wscxr.data.radiograph.base import RadiographError
from monai_wscxr.system.workers import WorkerLostError, WorkerPool


def _nothing():
    pass


def _fail():
    raise RadiographError("empty", "nothing in it.")


def _crash():
    os.kill(os.getpid(), signal.SIGSEGV)


def _allocate(mebibytes):
    return int(np.ones(mebibytes << 20, np.uint8)[::4096].sum())


def _noise():
    os.write(1, b"secret")
    os.write(2, b"secret")


class _NoPickleError(Exception):
    def __reduce__(self):
        raise TypeError


def _odd():
    raise _NoPickleError


@pytest.fixture(scope="module")
def pool():
    with WorkerPool(2, _nothing, seconds=2.0, memory=200 << 20) as pool:
        yield pool


def test_results_and_errors(pool, capfd):
    futures = [pool.submit(divmod, n, 3, urgent=n % 2 == 0) for n in range(20)]
    assert [f.result() for f in futures] == [divmod(n, 3) for n in range(20)]
    with pytest.raises(RadiographError, match="nothing in it"):
        pool.submit(_fail).result()
    with pytest.raises(RuntimeError, match="_NoPickleError"):
        pool.submit(_odd).result()
    pool.submit(_noise).result()
    captured = capfd.readouterr()
    assert "secret" not in captured.out + captured.err


def test_crash_and_loop_cost_one_task(pool):
    futures = [
        pool.submit(function, *values) for function, *values in ((_crash,), (time.sleep, 60), (abs, -1), (_crash,))
    ]
    with pytest.raises(WorkerLostError) as crashed:
        futures[0].result()
    began = time.monotonic()
    with pytest.raises(WorkerLostError) as slow:
        futures[1].result()
    assert time.monotonic() - began < 10
    assert (crashed.value.too_slow, slow.value.too_slow) == (False, True)
    assert futures[2].result() == 1
    with pytest.raises(WorkerLostError):
        pool.submit(time.sleep, 1.0, seconds=0.1).result()
    pool.submit(time.sleep, 2.5, seconds=20.0).result()  # the limit of the pool is 2 s
    assert pool.submit(abs, -2).result() == 2


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited on Linux only")
def test_memory_is_limited(pool):
    assert pool.submit(_allocate, 100).result() == 100 * 256
    with pytest.raises(MemoryError):
        pool.submit(_allocate, 400).result()


def test_without_processes_everything_happens_here():
    with WorkerPool(0, _nothing) as here:
        assert here.submit(os.getpid).result() == os.getpid()
        with pytest.raises(RadiographError):
            here.submit(_fail).result()


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_processes_end_with_the_one_that_started_them():
    program = (
        "import os, time\n"
        "from monai_wscxr.system.workers import WorkerPool\n"
        "if __name__ == '__main__':\n"
        "    pool = WorkerPool(2, int)\n"
        "    print(*{pool.submit(os.getpid).result() for _ in range(8)}, flush=True)\n"
        "    [pool.submit(time.sleep, 0.2) for _ in range(50)]\n"
        "    time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    workers = [int(pid) for pid in parent.stdout.readline().split()]
    parent.kill()
    parent.wait()
    assert workers
    for _ in range(100):
        if not any(os.path.exists(f"/proc/{pid}") for pid in workers):
            return
        time.sleep(0.1)
    pytest.fail("a worker process outlives the run")


def shout(text):
    """Print like a C library."""
    os.write(2, text)
    os.write(1, text)
    return text


def test_tasks_in_this_process_are_silent_and_output_comes_back(capfd):
    with WorkerPool(0, int) as pool:
        assert pool.submit(shout, b"loud").result() == b"loud"
        future = pool.submit(os.write, 10**6, b"no such descriptor")
        assert isinstance(future.exception(), OSError)
        print("afterwards", flush=True)
    assert capfd.readouterr() == ("afterwards\n", "")
