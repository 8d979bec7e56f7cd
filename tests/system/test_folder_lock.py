"""One process at a time writes to an output folder; a process that has ended blocks no other one."""

import errno
import fcntl
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from monai_wscxr.errors import InputError
from monai_wscxr.system.atomic import DiskFullError
from monai_wscxr.system.folder_lock import NAME, lock_folder
from tests.helpers.small_disks import small_disk

HOLD = """
import sys, time, pathlib
from monai_wscxr.system.folder_lock import lock_folder
lock = lock_folder(pathlib.Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_another_process_is_refused_by_name(tmp_path, holder):
    with pytest.raises(InputError) as caught:
        lock_folder(tmp_path)
    assert f"process {holder.pid} on {socket.gethostname()}, since 2" in str(caught.value)
    assert "another --output_dir" in str(caught.value)
    assert json.loads((tmp_path / NAME).read_text())["pid"] == holder.pid  # the refused attempt changed nothing


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_the_lock_of_a_dead_process_blocks_nobody(tmp_path, holder, how):
    holder.send_signal(how)
    holder.wait()
    assert json.loads((tmp_path / NAME).read_text())["pid"] == holder.pid
    lock = lock_folder(tmp_path)
    assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid()
    del lock


def free(folder):
    probe = (
        "import sys, pathlib; from monai_wscxr.system.folder_lock import lock_folder; "
        "lock_folder(pathlib.Path(sys.argv[1]))"
    )
    return subprocess.run([sys.executable, "-c", probe, str(folder)], capture_output=True, check=False).returncode == 0


def test_one_process_shares_its_lock_and_lets_go_with_the_last_object(tmp_path):
    first = lock_folder(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path)
    second = lock_folder(tmp_path / "link")
    assert first is second
    del first
    assert not free(tmp_path)
    del second
    gc.collect()
    assert free(tmp_path)


def test_a_forked_child_neither_keeps_nor_drops_the_lock(tmp_path):
    lock = lock_folder(tmp_path)
    child = os.fork()
    if child == 0:
        time.sleep(30)
        os._exit(0)
    try:
        assert not free(tmp_path)
        del lock
        gc.collect()
        assert free(tmp_path)  # although the child of the holder is still running
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_file_system_without_locks_causes_a_warning(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOLCK, "No locks available")))
    lock_folder(tmp_path)
    assert "has no locks (No locks available)" in caplog.text


@pytest.mark.filterwarnings("error")
def test_a_lock_without_room_says_what_is_missing_and_is_not_held(tmp_path, capfd):
    with small_disk(tmp_path / "disk", 8192) as disk:
        (disk.folder / "ballast").write_bytes(bytes(8192))
        with pytest.raises(DiskFullError, match=r"\.lock could not be written .* are missing"):
            lock_folder(disk.folder)
        gc.collect()
        (disk.folder / "ballast").unlink()
        assert free(disk.folder)
        lock = lock_folder(disk.folder)
        assert not free(disk.folder)
        lock.release()
    assert "ignored" not in capfd.readouterr().err
