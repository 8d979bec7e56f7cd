"""Files are replaced as a whole or not at all; messages about a full disk name the missing bytes."""

import errno
import os
import re
import resource
import shutil
import stat
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from monai_wscxr.errors import InputError
from monai_wscxr.system import atomic
from monai_wscxr.system.atomic import (
    DamagedError,
    DiskFullError,
    as_disk_full,
    full_disk,
    missing_text,
    remove_partials,
    replacing,
    require_space,
    write_bytes_atomic,
    write_text_atomic,
    write_together,
)
from monai_wscxr.system.sealed import load_sealed, save_sealed, torch_bytes


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_file_and_folder_are_synced_before_and_after_the_rename(tmp_path, monkeypatch):
    order = []
    replace, fsync = os.replace, os.fsync

    def synced(descriptor):
        order.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    monkeypatch.setattr(os, "replace", lambda a, b: (order.append("rename"), replace(a, b)))
    monkeypatch.setattr(os, "fsync", synced)
    write_bytes_atomic(tmp_path / "file", b"new")
    assert order[0].endswith(".partial")
    assert order[1:] == ["rename", str(tmp_path)]


def test_text_is_written_as_it_is_and_others_may_read_it(tmp_path):
    path = write_text_atomic(tmp_path / "a.txt", "Zwölf\r\nacht\n")
    assert path.read_bytes() == "Zwölf\r\nacht\n".encode()
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_says_what_is_missing_and_keeps_the_old_file(tmp_path, monkeypatch, number):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000_000))
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(number, os.strerror(number))))
    with pytest.raises(DiskFullError) as caught:
        write_bytes_atomic(path, bytes(5_000_000))
    message = str(caught.value)
    assert isinstance(caught.value, InputError)
    assert caught.value.errno == number
    # the bytes of the temporary file become free again and count as free: 5 MB are needed, 1 + 5 MB are available
    assert ("5.0 MB are needed, 6.0 MB are free" if number == errno.ENOSPC else "quota is used up") in message
    assert "kB are missing" in message
    assert "intact" in message
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_missing_bytes_on_a_real_small_disk(tmp_path):
    """A limit of the file size takes the place of a small disk: the kernel itself refuses the write."""
    script = f"""
import resource, signal, pathlib
from monai_wscxr.system.atomic import write_bytes_atomic, DiskFullError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, resource.RLIM_INFINITY))
path = pathlib.Path({str(tmp_path / "file")!r})
write_bytes_atomic(path, b"old")
try:
    write_bytes_atomic(path, bytes(5_000_000))
except DiskFullError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "not be larger than 2.0 MB" in done.stdout
    assert "3.0 MB are missing" in done.stdout
    assert (tmp_path / "file").read_bytes() == b"old"
    assert names(tmp_path) == ["file"]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY  # of this process


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("mount") is None, reason="needs the right to mount a tmpfs")
def test_missing_bytes_on_a_small_tmpfs(tmp_path):
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path], check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        path = tmp_path / "file"
        write_bytes_atomic(path, b"o" * 400_000)
        with pytest.raises(DiskFullError, match=r"3\.0 MB are needed, 648 kB are free: 2\.4 MB are missing"):
            write_bytes_atomic(path, bytes(3_000_000))
        assert path.read_bytes() == b"o" * 400_000
        assert names(tmp_path) == ["file"]
        write_bytes_atomic(path, b"fits")
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_other_errors_stay_what_they_are(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_bytes_atomic(tmp_path / "missing" / "file", b"")
    writing = replacing(tmp_path / "file")
    writing.__enter__().write_bytes(b"half")
    assert not writing.__exit__(KeyError, KeyError(), None)
    assert names(tmp_path) == []


def test_files_that_belong_together_appear_in_order_or_not_at_all(tmp_path, monkeypatch):
    first, second = tmp_path / "z_weights", tmp_path / "a_description"
    renamed = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (renamed.append(b.name), replace(a, b)))
    write_together({first: b"1", second: b"2"})
    assert renamed == ["z_weights", "a_description"]
    real, written = atomic.sync, []

    def full_at_the_second(path):
        written.append(path)
        if len(written) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path)

    monkeypatch.setattr(atomic, "sync", full_at_the_second)
    with pytest.raises(DiskFullError):
        write_together({first: b"10", second: b"20"})
    assert (first.read_bytes(), second.read_bytes()) == (b"1", b"2")
    assert names(tmp_path) == ["a_description", "z_weights"]


STATE = {"epoch": 3, "w": torch.arange(400.0), "nested": {"lr": 1e-3, "steps": [1, 2]}}


def test_sealed_values_come_back_and_torch_reads_them_too(tmp_path):
    save_sealed(tmp_path / "state.pt", STATE)
    for value in (
        load_sealed(tmp_path / "state.pt"),
        torch.load(tmp_path / "state.pt", map_location="cpu", weights_only=True),
    ):
        assert torch.equal(value.pop("w"), STATE["w"])
        assert value == {k: v for k, v in STATE.items() if k != "w"}


@pytest.mark.parametrize("length", [0, 1, 39, 40, 100, -41, -1])
def test_a_sealed_file_cut_short_is_damaged(tmp_path, length):
    path = tmp_path / "state.pt"
    save_sealed(path, STATE)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(DamagedError, match="is damaged"):
        load_sealed(path)


def test_every_flipped_bit_is_noticed(tmp_path):
    path = tmp_path / "state.pt"
    save_sealed(path, STATE)
    whole = path.read_bytes()
    for position in [*range(0, len(whole), 97), len(whole) - 1, len(whole) - 33]:
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :])
        with pytest.raises(DamagedError):
            load_sealed(path)
    path.write_bytes(whole)
    assert load_sealed(path)["epoch"] == 3


def test_an_unsealed_file_and_a_missing_one_are_damaged(tmp_path):
    write_bytes_atomic(tmp_path / "state.pt", torch_bytes(STATE))
    with pytest.raises(DamagedError):
        load_sealed(tmp_path / "state.pt")
    with pytest.raises(DamagedError, match="cannot be read"):
        load_sealed(tmp_path / "nothing.pt")


def test_space_is_asked_for_beforehand(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=30_000_000))
    require_space(tmp_path, 10_000_000, "the model")
    with pytest.raises(
        DiskFullError, match=r"the model needs 100\.0 MB .* only 30\.0 MB are free: 86\.8 MB are missing"
    ):
        require_space(tmp_path, 100_000_000, "the model")


def test_partial_files_of_killed_runs_are_removed_and_nothing_else(tmp_path):
    for name in (".model.pt.1234abcd.partial", "mine.partial", "model.pt"):
        (tmp_path / name).write_text("x")
    remove_partials(tmp_path)
    assert names(tmp_path) == ["mine.partial", "model.pt"]


def test_what_is_missing_is_whole_blocks_and_never_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=8192))
    assert missing_text(tmp_path, 8193) == "9 kB are needed, 9 kB are free: 5 kB are missing"
    assert missing_text(tmp_path, 100).endswith("5 kB are missing")
    # a folder that does not exist yet lies on the disk of the one above it
    error = full_disk(tmp_path / "new" / "bank", 3_000_000_000, "the bank")
    assert str(error) == (
        f"the bank could not be written because the disk of {tmp_path / 'new' / 'bank'} is full (3.0 GB are needed, 9 kB are "
        "free: 3.0 GB are missing); make room and give the same command again"
    )


def test_a_disk_without_room_for_one_more_file_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_files=1000, f_favail=0))
    assert "can hold no more files" in missing_text(tmp_path, 100)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_files=0, f_favail=0))  # file systems without inodes
    assert "are missing" in missing_text(tmp_path, 100)


def test_a_full_disk_is_found_among_the_causes(tmp_path):
    raw = OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "folder"))
    outer = RuntimeError("wrapped")
    outer.__cause__ = raw
    assert re.fullmatch(
        rf"{tmp_path}/folder could not be written .* are missing\); make room .*", str(as_disk_full(outer))
    )
    assert "at least 5 kB are missing" in str(as_disk_full(OSError(errno.EDQUOT, "Disk quota exceeded")))
    named = full_disk(tmp_path, 1, "x")
    outer.__cause__ = named
    assert as_disk_full(outer) is named
    for other in (None, OSError(errno.EFBIG, "it has more than 5 bytes"), OSError(errno.EIO, "x"), ValueError("x")):
        assert as_disk_full(other) is None
