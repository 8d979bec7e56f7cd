"""Rows in files: any pieces in any order give the same numbers as in memory, with little resident memory."""

import os
import subprocess
import sys

import pytest
import torch

from monai_wscxr.bank.rows import BLOCK_ROWS, FileRows, RowsOnDisk, row_blocks, scratch_rows
from monai_wscxr.errors import InputError

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def on_disk(folder, matrices, before=24):
    """Write each matrix to a file of its own, after some other bytes."""
    files = []
    for number, matrix in enumerate(matrices):
        path = folder / f"{number}.bin"
        path.write_bytes(bytes(before) + matrix.view(torch.uint8).numpy().tobytes())
        files.append(RowsOnDisk(path, before, len(matrix)))
    return files


def pieces_of(generator, rows, count=40):
    """Choose random pieces of files with these numbers of rows; some are empty, some follow each other."""
    pieces = [[0, 0, rows[0]], [0, 2, 3], [0, 5, 4], [1, 0, 0]]
    for _ in range(count):
        file = int(torch.randint(len(rows), (), generator=generator))
        first = int(torch.randint(rows[file], (), generator=generator))
        pieces.append([file, first, int(torch.randint(rows[file] - first + 1, (), generator=generator))])
    return torch.tensor(pieces)


@pytest.mark.parametrize("dtype", DTYPES)
def test_pieces_read_and_gathered_are_those_of_the_matrices(tmp_path, dtype):
    g = torch.Generator().manual_seed(0)
    matrices = [torch.randn(n, 5, generator=g).to(dtype) for n in (50, 7, 1, 200)]
    pieces = pieces_of(g, [len(m) for m in matrices])
    source = FileRows(on_disk(tmp_path, matrices), pieces, 5, dtype)
    expected = torch.cat([matrices[file][first : first + count] for file, first, count in pieces.tolist()])
    n = len(expected)
    assert source.shape == (n, 5)
    assert torch.equal(source.read(0, torch.empty(n, 5, dtype=dtype)), expected)
    for first, count in [(0, 1), (n - 1, 1), (13, 200), (n, 0), (49, 2)]:
        assert torch.equal(source.read(first, torch.empty(count, 5, dtype=dtype)), expected[first : first + count])
    for index in (torch.randperm(n, generator=g), torch.randint(n, (5000,), generator=g), torch.empty(0).long()):
        assert torch.equal(source.gather(index), expected[index])
    assert torch.equal(torch.cat([block.clone() for block in row_blocks(source, 33)]), expected)
    assert [len(block) for block in row_blocks(source, 33)] == [len(block) for block in expected.split(33)]


def test_neighbouring_pieces_become_one(tmp_path):
    matrix = torch.arange(60.0).reshape(20, 3)
    files = on_disk(tmp_path, [matrix])
    source = FileRows(files, torch.tensor([[0, i, 1] for i in range(20)]), 3, torch.float32)
    read_into, reads = files[0].read_into, []
    files[0].read_into = lambda place, into: reads.append((place, len(into))) or read_into(place, into)
    assert torch.equal(source.read(0, torch.empty(20, 3)), matrix)
    assert reads == [(0, 20 * 3 * 4)]
    assert torch.equal(source.gather(torch.arange(20)), matrix)


@pytest.mark.parametrize("piece", [[0, 15, 6], [0, -1, 3], [0, 3, -1]])
def test_pieces_outside_their_file_are_refused(tmp_path, piece):
    with pytest.raises(ValueError, match="outside its file"):
        FileRows(on_disk(tmp_path, [torch.zeros(20, 3)]), torch.tensor([piece]), 3, torch.float32)


@pytest.mark.parametrize("index", [[20], [-1], [3, 100]])
def test_rows_that_do_not_exist_are_refused(tmp_path, index):
    source = FileRows(on_disk(tmp_path, [torch.zeros(20, 3)]), torch.tensor([[0, 0, 20]]), 3, torch.float32)
    with pytest.raises(IndexError):
        source.gather(torch.tensor(index))
    with pytest.raises(IndexError):
        source.read(19, torch.empty(2, 3))


@pytest.mark.parametrize("damage", ["gone", "short"])
def test_a_file_that_changes_meanwhile_is_an_error(tmp_path, damage):
    files = on_disk(tmp_path, [torch.zeros(20, 3)])
    source = FileRows(files, torch.tensor([[0, 0, 20]]), 3, torch.float32)
    path = files[0].file
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InputError, match=r"cannot be read|ends early"):
        source.read(0, torch.empty(20, 3))
    with pytest.raises(InputError, match=r"cannot be read|ends early"):
        source.gather(torch.tensor([19]))


def test_scratch_rows_are_the_function_of_each_block_and_leave_no_file(tmp_path):
    matrix = torch.randn(BLOCK_ROWS + 100, 4, generator=torch.Generator().manual_seed(0))
    source = FileRows(on_disk(tmp_path, [matrix]), torch.tensor([[0, 0, len(matrix)]]), 4, torch.float32)
    weight = torch.randn(4, 4)
    sizes = []

    def function(rows, out):
        sizes.append(len(rows))
        out.copy_(rows @ weight)

    scratch = scratch_rows(source, function, tmp_path / "scratch")
    assert sizes == [BLOCK_ROWS, 100]
    expected = torch.cat([block @ weight for block in matrix.split(BLOCK_ROWS)])
    assert torch.equal(scratch.read(0, torch.empty_like(expected)), expected)
    assert torch.equal(scratch.gather(torch.tensor([8200, 3])), expected[[8200, 3]])
    assert list((tmp_path / "scratch").iterdir()) == []


FULL = """
import resource, sys, torch
from pathlib import Path
from monai_wscxr.errors import InputError
from monai_wscxr.bank.rows import FileRows, RowsOnDisk, scratch_rows
path = Path(sys.argv[1])
source = FileRows([RowsOnDisk(path, 0, 20000)], torch.tensor([[0, 0, 20000]]), 10, torch.float32)
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))
try:
    scratch_rows(source, lambda rows, out: out.copy_(rows), path.parent)
except InputError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="file size limits are POSIX")
def test_a_full_disk_names_the_missing_bytes(tmp_path):
    path = tmp_path / "rows.bin"
    path.write_bytes(bytes(800_000))
    run = subprocess.run([sys.executable, "-c", FULL, str(path)], capture_output=True, text=True, check=True)
    assert "has no room for the whitened bank" in run.stdout
    assert "bytes are missing" in run.stdout
    assert os.listdir(tmp_path) == ["rows.bin"]


HELD = """
import sys, torch
from pathlib import Path
from monai_wscxr.bank import BankOnDisk
from monai_wscxr.system.memory import peak_memory, reset_peak_memory, resident_memory
from monai_wscxr.bank.rows import FileRows, RowsOnDisk, row_blocks
torch.set_num_threads(1)
rows = FileRows([RowsOnDisk(Path(sys.argv[1]), 0, 400_000)], torch.tensor([[0, 0, 400_000]]), 256, torch.float32)
bank = BankOnDisk(rows, tuple(map(str, range(4000))), (10, 10))
reset_peak_memory()
before = resident_memory()
kept = [block.double().sum(1) for block in row_blocks(bank.rows)]
print(peak_memory() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
def test_a_pass_with_small_results_does_not_come_to_hold_the_bank(tmp_path):
    path = tmp_path / "rows.bin"
    path.write_bytes(bytes(400_000 * 1024))
    run = subprocess.run([sys.executable, "-c", HELD, str(path)], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 100e6, f"{int(run.stdout) / 1e6:.0f} MB of a file of 410 MB, in blocks of 8 MB"


RESIDENT = """
import sys, torch
from pathlib import Path
from monai_wscxr.system.memory import peak_memory, reset_peak_memory, resident_memory
from monai_wscxr.bank.rows import FileRows, RowsOnDisk
source = FileRows([RowsOnDisk(Path(sys.argv[1]), 0, 400_000)], torch.tensor([[0, 0, 400_000]]), 256, torch.float32)
order = torch.randperm(400_000)
source.gather(order[:100])
reset_peak_memory()
before = resident_memory()
for index in order.split(20_000):
    source.gather(index)
print(peak_memory() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
def test_gathering_a_large_file_leaves_it_out_of_memory(tmp_path):
    path = tmp_path / "rows.bin"
    with open(path, "wb") as file:
        for _ in range(10):
            file.write(bytes(40_000 * 1024))
    run = subprocess.run([sys.executable, "-c", RESIDENT, str(path)], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 200e6, f"{int(run.stdout) / 1e6:.0f} MB of a file of 410 MB, in steps of 20 MB"


@pytest.mark.skipif(sys.platform != "linux", reason="bytes read are taken from /proc")
def test_rows_from_all_over_an_archive_larger_than_memory_are_read_alone(tmp_path, monkeypatch):
    """With read-ahead, a few hundred scattered rows would read the whole file, each time if it does not fit into memory."""
    rows, channels = 64_000, 256
    path = tmp_path / "rows.bin"
    path.write_bytes(os.urandom(1 << 20) * 64)
    index = torch.randperm(rows, generator=torch.Generator().manual_seed(0))[:300]

    def read_from_disk(free):
        monkeypatch.setattr("monai_wscxr.bank.rows.available_memory", lambda: free)
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        source = FileRows([RowsOnDisk(path, 0, rows)], torch.tensor([[0, 0, rows]]), channels, torch.float32)
        before = bytes_read()
        found = source.gather(index)
        return found, bytes_read() - before

    def bytes_read():
        with open("/proc/self/io") as table:
            return int(next(line for line in table if line.startswith("read_bytes")).split()[1])

    (small, alone), (large, together) = read_from_disk(1 << 20), read_from_disk(1 << 40)
    assert torch.equal(small.view(torch.int32), large.view(torch.int32))
    if not together:
        pytest.skip("this file system reads no blocks of a disk")
    assert alone <= 300 * 2 * 4096 < together
