"""Headers of safetensors files: those of the reference implementation are understood, and damaged ones are refused."""

import json
import zlib
from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import save_file

from monai_wscxr.bank.header import read_header
from monai_wscxr.system.atomic import DamagedError
from tests.helpers.hostile import DEEP, NO_FILES, within

TENSORS = {
    "rows": torch.arange(15.0).reshape(5, 3),
    "half": torch.arange(4, dtype=torch.float16),
    "brain": torch.arange(6, dtype=torch.bfloat16).reshape(1, 2, 3),
    "double": torch.tensor(2.5, dtype=torch.float64),
    "empty": torch.zeros(0, 7),
    "counts": torch.arange(3),
    "mask": torch.tensor([True, False]),
}


def written(path, header, content=b"", length=None):
    """Write a file with this header, a JSON value or bytes, and return its path."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + content)
    return path


@contextmanager
def refused(match):
    """Expect a DamagedError whose one-sentence message names no path."""
    with pytest.raises(DamagedError, match=match) as caught:
        yield
    assert "/" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("metadata", [None, {"digests": '["a", "b"]', "made by": "Zoë"}])
def test_files_of_safetensors_itself_are_understood(tmp_path, metadata):
    path = tmp_path / "file"
    save_file(TENSORS, path, metadata)
    header = read_header(path)
    whole = path.read_bytes()
    assert set(header.tensors) == {"rows", "half", "brain", "double", "empty"}  # floating-point tensors only
    assert header.metadata == (metadata or {})
    assert header.crc32 == zlib.crc32(whole[: 8 + int.from_bytes(whole[:8], "little")])
    for name, entry in header.tensors.items():
        tensor = TENSORS[name]
        assert (entry.shape, entry.dtype) == (tuple(tensor.shape), tensor.dtype)
        found = torch.frombuffer(bytearray(whole + bytes(8)), dtype=torch.uint8, offset=entry.offset)
        assert torch.equal(found[: tensor.nbytes].view(tensor.dtype).reshape(tensor.shape), tensor), name


def test_a_file_without_tensors(tmp_path):
    save_file({}, tmp_path / "file")
    assert read_header(tmp_path / "file").tensors == {}


# --- truncated, over-long ------------------------------------------------------------------------------------------


def test_every_truncation_is_refused(tmp_path):
    path = tmp_path / "file"
    save_file(TENSORS, path)
    whole = path.read_bytes()
    for length in [*range(20), *range(20, len(whole) - 20, 37), *range(len(whole) - 20, len(whole))]:
        path.write_bytes(whole[:length])
        with refused("does not start with the length" if length < 8 else "is malformed|shorter or longer"):
            read_header(path)


@pytest.mark.parametrize("more", [1, 8, 1000])
def test_bytes_after_the_last_tensor_are_refused(tmp_path, more):
    path = tmp_path / "file"
    save_file(TENSORS, path)
    path.write_bytes(path.read_bytes() + bytes(more))
    with refused("shorter or longer than its header says"):
        read_header(path)


@pytest.mark.parametrize("length", [0, (100 << 20) + 1, 2**64 - 1])
def test_lengths_that_no_header_has_are_refused_without_reading(tmp_path, length):
    path = written(tmp_path / "file", {}, length=length)
    with refused("does not start with the length"):
        read_header(path)


@pytest.mark.parametrize("change", [-1, 1, 7])
def test_a_wrong_length_of_the_header_is_refused(tmp_path, change):
    header = {"rows": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
    path = written(tmp_path / "file", header, bytes(8), len(json.dumps(header)) + change)
    with refused("is malformed"):
        read_header(path)


# --- lying ---------------------------------------------------------------------------------------------------------


def entry(**changes):
    return {"rows": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24], **changes}}


def test_the_entry_of_these_tests_is_right(tmp_path):
    found = read_header(written(tmp_path / "file", entry(), bytes(24)))
    assert found.tensors["rows"].shape == (2, 3)


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": [2, 4]},
        {"shape": [6, 2]},
        {"shape": []},
        {"dtype": "F16"},
        {"dtype": "F64"},
        {"data_offsets": [4, 24]},
        {"data_offsets": [24, 0]},
    ],
)
def test_sizes_that_do_not_fit_shape_and_type_are_refused(tmp_path, changes):
    last = max(0, *changes.get("data_offsets", [0, 24]))
    with refused("contradicts itself about the size of 'rows'"):
        read_header(written(tmp_path / "file", entry(**changes), bytes(last)))


@pytest.mark.parametrize("content", [0, 23, 25, 48])
def test_other_sizes_of_the_file_are_refused(tmp_path, content):
    with refused("shorter or longer than its header says"):
        read_header(written(tmp_path / "file", entry(), bytes(content)))


def test_the_end_of_other_tensors_counts(tmp_path):
    header = {**entry(), "counts": {"dtype": "I64", "shape": [2], "data_offsets": [24, 40]}}
    assert set(read_header(written(tmp_path / "file", header, bytes(40))).tensors) == {"rows"}
    with refused("shorter or longer than its header says"):
        read_header(written(tmp_path / "file", header, bytes(24)))


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": [-2, -3]},
        {"shape": [2.0, 3]},
        {"shape": [True, 6]},
        {"shape": ["2", "3"]},
        {"shape": 6},
        {"shape": None},
        {"shape": {"2": 3}},
        {"data_offsets": [-24, 0]},
        {"data_offsets": [0.0, 24]},
        {"data_offsets": ["0", "24"]},
        {"data_offsets": [0, 24, 24]},
        {"data_offsets": [24]},
        {"data_offsets": "0 24"},
        {"dtype": ["F32"]},
    ],
)
def test_values_of_other_types_are_refused(tmp_path, changes):
    with refused("its header is malformed"):
        read_header(written(tmp_path / "file", entry(**changes), bytes(24)))


@pytest.mark.parametrize("missing", ["dtype", "shape", "data_offsets"])
def test_missing_keys_are_refused(tmp_path, missing):
    header = entry()
    del header["rows"][missing]
    with refused(f"its header is malformed .KeyError: '{missing}'"):
        read_header(written(tmp_path / "file", header, bytes(24)))


@pytest.mark.parametrize(
    "header",
    [
        b"\xff\xfe{}",
        b"{",
        b"{} {}",
        b"[" * 100_000,
        b'{"rows": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 1e999]}}',
        [],
        [1, 2],
        7,
        None,
        "rows",
        {"rows": 7},
        {"rows": [0, 24]},
        {"__metadata__": []},
        {"__metadata__": "digests"},
        {"__metadata__": {"digests": ["a"]}},
        {"__metadata__": {"count": 3}},
    ],
)
def test_what_is_no_header_is_refused(tmp_path, header):
    with refused("its header is malformed"):
        read_header(written(tmp_path / "file", header))


def test_a_file_that_cannot_be_read_has_a_reason(tmp_path):
    with refused("^No such file or directory$"):
        read_header(tmp_path / "missing")
    with refused("^Is a directory$"):
        read_header(tmp_path)


@pytest.mark.parametrize("make", NO_FILES)
def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path, make):
    make(tmp_path / "file")
    error = within(20, lambda: read_header(tmp_path / "file"))
    assert isinstance(error, DamagedError)
    assert "/" not in str(error)


PAIR = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    "second",
    [
        {"data_offsets": [0, 4]},
        {"data_offsets": [2, 6]},
        {"data_offsets": [8, 12]},
        {"dtype": "I8", "shape": [1], "data_offsets": [6, 5]},
        {"dtype": "I8", "shape": [1], "data_offsets": [1, 3]},
    ],
)
def test_tensors_that_overlap_or_leave_gaps_are_refused(tmp_path, second):
    header = {"a": PAIR, "b": {**PAIR, **second}}
    last = max(entry["data_offsets"][1] for entry in header.values())
    with refused("contradicts itself about the places of the tensors"):
        read_header(written(tmp_path / "file", header, bytes(last)))


@pytest.mark.parametrize(
    "text",
    [
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "a": {"dtype": "F32"}}',
        b'{"a": {"dtype": "F32", "dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [' + b"9" * 6000 + b'], "data_offsets": [0, 4]}}',
        b'{"a": ' + b"[" * 40 + b"]" * 40 + b"}",
        b'{"a": ' + b'{"b":' * DEEP + b"1" + b"}" * DEEP + b"}",
    ],
)
def test_json_that_is_not_strict_is_refused(tmp_path, text):
    with refused("its header is malformed .ValueError"):
        read_header(written(tmp_path / "file", text, bytes(4)))
