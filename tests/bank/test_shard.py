"""Shards: images come back as they were written, each is checked once, and damage costs one image."""

import zlib

import pytest
import torch
from safetensors.torch import load_file, save_file

from monai_wscxr.bank.shard import Shard, shard_rows, write_shard
from monai_wscxr.system.atomic import DamagedError


def features(n, dtype=torch.float32, seed=0):
    return torch.randn(n, 6, 5, generator=torch.Generator().manual_seed(seed)).to(dtype)


def read(shard, position):
    out = torch.empty(shard.shape[1:], dtype=shard.dtype)
    shard.read(position, out)
    return out


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_images_come_back_and_safetensors_reads_them(tmp_path, dtype):
    path, expected = tmp_path / "shard", features(3, dtype)
    for shard in (write_shard(path, ["a", "b", "c"], expected), Shard.open(path)):
        assert (shard.digests, shard.shape, shard.dtype) == (["a", "b", "c"], (3, 6, 5), dtype)
        assert shard.image_bytes == 30 * dtype.itemsize
        for position in (2, 0, 1):
            assert torch.equal(read(shard, position), expected[position])
    assert torch.equal(load_file(path)["features"], expected)


def test_rows_of_several_shards_in_any_order(tmp_path):
    first = write_shard(tmp_path / "1", ["a", "b"], features(2))
    second = write_shard(tmp_path / "2", ["c"], features(1, seed=1))
    rows = shard_rows([(second, 0), (first, 1), (second, 0), (first, 0)])
    expected = torch.cat([features(1, seed=1)[0], features(2)[1], features(1, seed=1)[0], features(2)[0]])
    assert torch.equal(rows.read(0, torch.empty(24, 5)), expected)


def test_a_damaged_image_leaves_the_others_usable(tmp_path):
    path = tmp_path / "shard"
    write_shard(path, ["a", "b", "c"], features(3))
    flip(path, -1 - 120)  # in the second of three images of 120 bytes
    shard = Shard.open(path)
    shard.verify(0)
    assert torch.equal(read(shard, 2), features(3)[2])
    for attempt in (shard.verify, lambda position: read(shard, position)):
        with pytest.raises(DamagedError, match="checksum of image 2 of 3 is wrong"):
            attempt(1)


def test_an_image_is_checked_once_unless_that_is_forgotten(tmp_path, monkeypatch):
    path, sums, crc32 = tmp_path / "shard", [], zlib.crc32
    shard = write_shard(path, ["a", "b"], features(2))
    monkeypatch.setattr(zlib, "crc32", lambda data: sums.append(len(data)) or crc32(data))
    shard.verify(0)
    assert sums == []  # this process has just written it
    flip(path, -1)
    shard.verify(1)
    shard.forget_checks()
    shard.verify(0)
    read(shard, 0)
    assert sums == [120]
    with pytest.raises(DamagedError):
        shard.verify(1)


@pytest.mark.parametrize(
    ("tensors", "metadata"),
    [
        ({"rows": features(2)}, {"digests": '["a", "b"]', "crc32": "[1, 2]"}),
        ({"features": features(2), "more": features(1)}, {"digests": '["a", "b"]', "crc32": "[1, 2]"}),
        ({"features": features(2)[0]}, {"digests": '["a", "b"]', "crc32": "[1, 2]"}),
        ({"features": features(2)}, {"digests": '["a", "b"]'}),
        ({"features": features(2)}, {"crc32": "[1, 2]"}),
        ({"features": features(2)}, {"digests": '["a"]', "crc32": "[1, 2]"}),
        ({"features": features(2)}, {"digests": '["a", "b"]', "crc32": "[1]"}),
        ({"features": features(2)}, {"digests": '[["a"], "b"]', "crc32": "[1, 2]"}),
        ({"features": features(2)}, {"digests": "[", "crc32": "[1, 2]"}),
        ({"features": features(2)}, {"digests": "2", "crc32": "2"}),
    ],
)
def test_other_safetensors_files_are_no_shards(tmp_path, tensors, metadata):
    save_file(tensors, tmp_path / "file", metadata)
    with pytest.raises(DamagedError, match="its header is not that of a shard"):
        Shard.open(tmp_path / "file")
