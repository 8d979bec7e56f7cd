"""The feature cache: features come back as they were written; damage and killed runs cost their own images alone."""

import json
import os
import shutil
import time
import zlib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from monai_wscxr.bank import cache as cache_module
from monai_wscxr.bank.cache import FeatureCache, cache_root, fingerprint
from monai_wscxr.bank.shard import Shard
from monai_wscxr.errors import InputError
from monai_wscxr.system.atomic import DiskFullError, write_text_atomic
from monai_wscxr.system.sealed import save_sealed
from tests.helpers.hostile import DEEP, NO_FILES, within

SETTINGS = {"size": 64, "layers": ["3"], "preprocessing": {"mean": [0.5], "std": [0.5]}}


def features(n, seed=0):
    return torch.randn(n, 6, 5, generator=torch.Generator().manual_seed(seed))


def shards(cache):
    return sorted(cache.folder.glob("*.safetensors"))


def shard_of(cache, digest):
    """Path of the shard that holds an image."""
    return next(path for path in shards(cache) if digest in Shard.open(path).digests)


def filled(root):
    """A cache with two shards: a b c, and d e."""
    cache = FeatureCache(SETTINGS, root)
    cache.write(["a", "b", "c"], features(3))
    cache.write(["d", "e"], features(2, seed=1))
    return cache


EVERYTHING = torch.cat([features(3), features(2, seed=1)])


def test_cache_folder_is_chosen_by_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("MONAI_WSCXR_CACHE", str(tmp_path / "here"))
    assert cache_root() == tmp_path / "here"
    cache = FeatureCache(SETTINGS)
    assert cache.folder == tmp_path / "here" / "features" / cache.fingerprint
    monkeypatch.delenv("MONAI_WSCXR_CACHE")
    assert "monai_wscxr" in str(cache_root())
    assert tmp_path not in cache_root().parents


def test_features_come_back_in_the_order_asked_for(tmp_path):
    cache = filled(tmp_path)
    assert len(cache) == 5
    assert "d" in cache
    assert "f" not in cache
    for reader in (cache, FeatureCache(SETTINGS, tmp_path)):
        assert torch.equal(reader.read("abcde"), EVERYTHING)
        assert torch.equal(reader.read(["e", "a", "d", "a"]), EVERYTHING[[4, 0, 3, 0]])
        assert reader.read(["b"]).dtype == torch.float32
    with pytest.raises(KeyError):
        cache.read(["a", "f"])
    with pytest.raises(KeyError):
        cache.read([])


def test_first_copy_counts_when_an_image_is_written_twice(tmp_path):
    cache = filled(tmp_path)
    cache.write(["a", "f"], features(2, seed=9))
    assert torch.equal(cache.read(["a"]), EVERYTHING[:1])
    assert torch.equal(cache.read(["f"]), features(2, seed=9)[1:])
    assert len(cache) == 6


def test_two_caches_on_one_folder_see_each_other_after_refresh(tmp_path):
    first, second = FeatureCache(SETTINGS, tmp_path), FeatureCache(SETTINGS, tmp_path)
    first.write(["a", "b", "c"], features(3))
    second.write(["d", "e"], features(2, seed=1))
    assert "d" not in first
    assert "a" not in second
    first.refresh()
    second.refresh()
    for cache in (first, second):
        assert len(cache) == 5
        assert torch.equal(cache.read("abcde"), EVERYTHING)


def test_fingerprint_depends_on_every_value_and_not_on_the_order_of_keys():
    base = fingerprint(SETTINGS)
    assert base == fingerprint(dict(reversed(SETTINGS.items())))
    changed = [
        {**SETTINGS, "size": 65},
        {**SETTINGS, "layers": ["2"]},
        {**SETTINGS, "layers": ["3", "2"]},
        {**SETTINGS, "layers": ["2", "3"]},
        {**SETTINGS, "preprocessing": {"mean": [0.5], "std": [0.51]}},
        {**SETTINGS, "another": None},
        {"size": 64},
    ]
    assert len({base, *map(fingerprint, changed)}) == len(changed) + 1


def test_other_settings_use_another_folder(tmp_path):
    filled(tmp_path)
    other = FeatureCache({**SETTINGS, "size": 128}, tmp_path)
    assert len(other) == 0
    assert json.loads((other.folder / "settings.json").read_text())["size"] == 128


# --- damage --------------------------------------------------------------------------------------------------------


def test_missing_shard_costs_its_own_images_only(tmp_path):
    cache = filled(tmp_path)
    keep = shard_of(cache, "d")
    for path in shards(cache):
        if path != keep:
            path.unlink()
    again = FeatureCache(SETTINGS, tmp_path)
    assert [d for d in "abcde" if d in again] == ["d", "e"]
    assert torch.equal(again.read(["e"]), EVERYTHING[4:])


def truncate(path):
    path.write_bytes(path.read_bytes()[:-8])


def cut_header(path):
    path.write_bytes(path.read_bytes()[:20])


def empty(path):
    path.write_bytes(b"")


def overwrite(path):
    path.write_bytes(os.urandom(500))


def without_digests(path):
    save_file({"features": features(3)}, path)


def with_broken_digests(path):
    save_file({"features": features(3)}, path, {"digests": "[not json", "crc32": "[1, 2, 3]"})


def without_checksums(path):
    save_file({"features": features(3)}, path, {"digests": '["a", "b", "c"]'})


def with_too_few_digests(path):
    save_file({"features": features(3)}, path, {"digests": '["a", "b"]', "crc32": "[1, 2]"})


def longer(path):
    path.write_bytes(path.read_bytes() + b"x")


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        cut_header,
        empty,
        overwrite,
        longer,
        without_digests,
        with_broken_digests,
        without_checksums,
        with_too_few_digests,
    ],
)
def test_damaged_shard_is_put_aside_and_its_images_are_written_again(tmp_path, caplog, damage):
    cache = filled(tmp_path)
    bad = shard_of(cache, "a")
    damage(bad)
    again = FeatureCache(SETTINGS, tmp_path)
    assert [d for d in "abcde" if d in again] == ["d", "e"]
    assert not bad.exists()
    assert bad.with_suffix(".damaged").exists()
    assert f"{bad} is damaged" in caplog.text
    again.write(["a", "b", "c"], features(3))
    assert torch.equal(FeatureCache(SETTINGS, tmp_path).read("abcde"), EVERYTHING)


@pytest.mark.parametrize("rows", [False, True])
def test_every_flipped_bit_is_found_and_costs_that_shard_alone(tmp_path, rows):
    for place in (0, 1, 119, 120, 359):  # bytes of the first, second and third image
        root = tmp_path / str(place)
        cache = filled(root)
        path = shard_of(cache, "a")
        content = bytearray(path.read_bytes())
        content[8 + int.from_bytes(content[:8], "little") + place] ^= 16
        path.write_bytes(content)
        again = FeatureCache(SETTINGS, root)
        assert torch.equal(again.read("de"), EVERYTHING[3:])
        others = [digest for i, digest in enumerate("abc") if i != place // 120]
        assert torch.equal(again.read(others), EVERYTHING[["abc".index(d) for d in others]])
        with pytest.raises(KeyError):
            (again.rows if rows else again.read)("abcde")
        assert [d for d in "abcde" if d in again] == ["d", "e"]
        assert path.with_suffix(".damaged").exists()


def test_images_are_checked_once(tmp_path, monkeypatch):
    filled(tmp_path)
    cache, sums = FeatureCache(SETTINGS, tmp_path), []
    crc32 = zlib.crc32
    monkeypatch.setattr(zlib, "crc32", lambda data: sums.append(len(data)) or crc32(data))
    cache.read("ab")
    cache.rows("abd")
    cache.read("abcde")
    assert sums == [120] * 5


def test_rows_in_files_are_the_images_in_the_order_asked_for(tmp_path):
    rows = filled(tmp_path).rows("eacba")
    expected = EVERYTHING[[4, 0, 2, 1, 0]].reshape(-1, 5)
    assert rows.shape == (30, 5)
    assert torch.equal(rows.read(0, torch.empty(30, 5)), expected)
    assert torch.equal(rows.gather(torch.tensor([29, 0, 7, 7])), expected[[29, 0, 7, 7]])


def test_old_leftovers_of_killed_runs_are_removed(tmp_path):
    cache = filled(tmp_path)
    for name, days in (("old", 2), ("new", 0)):
        path = cache.folder / f".{name}.partial"
        path.write_text("half a shard")
        os.utime(path, (time.time() - days * 86400,) * 2)
    FeatureCache(SETTINGS, tmp_path)
    assert [path.name for path in cache.folder.glob(".*.partial")] == [".new.partial"]


def test_damaged_shard_that_another_run_has_put_aside(tmp_path, monkeypatch):
    cache = filled(tmp_path)
    truncate(shard_of(cache, "a"))
    rename = Path.rename

    def beaten(self, target):
        rename(self, target)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", beaten)
    assert len(FeatureCache(SETTINGS, tmp_path)) == 2


# --- shards that fill as images arrive -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "shard_images", "sizes"), [(7, 3, [3, 3, 1]), (6, 3, [3, 3]), (2, 5, [2]), (0, 5, [])]
)
def test_images_are_written_in_full_shards_and_a_rest(tmp_path, images, shard_images, sizes):
    cache = FeatureCache(SETTINGS, tmp_path)
    digests, expected = [str(n) for n in range(images)], features(images)
    cache.write_all(zip(digests, expected, strict=True), images, shard_images)
    found = [Shard.open(path).digests for path in shards(cache)]
    assert sorted(map(len, found), reverse=True) == sizes
    assert sorted(digest for shard in found for digest in shard) == digests
    if images:
        assert torch.equal(FeatureCache(SETTINGS, tmp_path).read(digests), expected)


def test_full_shards_are_kept_when_the_features_end_in_an_error(tmp_path):
    def stream():
        for number, image in enumerate(features(8)):
            if number == 7:
                raise KeyboardInterrupt
            yield str(number), image

    cache = FeatureCache(SETTINGS, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        cache.write_all(stream(), 8, 3)
    again = FeatureCache(SETTINGS, tmp_path)
    assert [str(n) in again for n in range(8)] == [True] * 6 + [False] * 2
    assert torch.equal(again.read("012345"), features(8)[:6])


def test_a_shard_that_cannot_be_written_ends_the_stream(tmp_path, monkeypatch):
    given = []

    def stream():
        for number, image in enumerate(features(100)):
            given.append(number)
            yield str(number), image

    cache = FeatureCache(SETTINGS, tmp_path)
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(5, "I/O error")))
    with pytest.raises(InputError, match="could not be written"):
        cache.write_all(stream(), 100, 2)
    assert len(given) <= 6  # one shard waits and one is filled while the first one fails


# --- writing that fails --------------------------------------------------------------------------------------------


def names(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), OSError(5, "I/O error"), KeyboardInterrupt()]
)
def test_failed_shard_leaves_no_partial_file(tmp_path, monkeypatch, error):
    cache = filled(tmp_path)
    before = names(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(error))
    expected = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else InputError
    with pytest.raises(expected) as caught:
        cache.write(["f"], features(1))
    assert names(tmp_path) == before
    assert "f" not in cache
    assert torch.equal(cache.read("abcde"), EVERYTHING)
    if expected is InputError:
        assert "could not be written" in str(caught.value)
        assert "MONAI_WSCXR_CACHE" in str(caught.value)
    if getattr(error, "errno", None) == 28:
        assert "kB are missing" in str(caught.value)


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("write", [lambda p: write_text_atomic(p, "new"), lambda p: save_sealed(p, {"new": 1})])
def test_atomic_files_are_old_or_new_and_leave_nothing_else(tmp_path, monkeypatch, write, step):
    path = tmp_path / "file"
    write_text_atomic(path, "old")
    with monkeypatch.context() as patch:
        patch.setattr(os, step, lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space"):
            write(path)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]
    write(path)
    assert path.read_bytes() != b"old"
    assert names(tmp_path) == ["file"]


def test_partial_files_of_a_killed_run_are_not_read(tmp_path):
    cache = filled(tmp_path)
    save_file({"features": features(1)}, cache.folder / "0123.partial", {"digests": '["z"]'})
    assert "z" not in FeatureCache(SETTINGS, tmp_path)
    assert (cache.folder / "0123.partial").exists()


def test_disk_without_space_is_refused_with_numbers(tmp_path, monkeypatch):
    cache = FeatureCache(SETTINGS, tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=3_000_000_000))
    cache.check_space(100, 1_000_000)
    with pytest.raises(InputError, match=r"features of 5000 images need 5.00 GB .* only 3.00 GB are free"):
        cache.check_space(5000, 1_000_000)
    with pytest.raises(InputError):  # a reserve stays free
        cache.check_space(2999, 1_000_000)


def test_unwritable_cache_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("a file, not a folder")
    with pytest.raises(InputError, match=r"cannot be written .*; point MONAI_WSCXR_CACHE at a folder that can"):
        FeatureCache(SETTINGS, tmp_path / "file" / "cache")


# --- what nobody writes by accident --------------------------------------------------------------------------------


@pytest.mark.parametrize("make", NO_FILES)
@pytest.mark.parametrize("suffix", ["safetensors", "damaged"])
def test_what_is_no_regular_file_is_set_aside_and_the_rest_is_used(tmp_path, make, suffix):
    cache = filled(tmp_path)
    make(cache.folder / "0.safetensors")
    if suffix == "damaged":
        make(cache.folder / "0.damaged")  # the name that it would get is taken
    again = within(20, lambda: FeatureCache(SETTINGS, tmp_path))
    assert torch.equal(again.read("abcde"), EVERYTHING)
    assert not os.path.lexists(cache.folder / "0.safetensors")
    assert len(list(cache.folder.glob("0*.damaged"))) == (2 if suffix == "damaged" else 1)


@pytest.mark.parametrize("make", NO_FILES)
def test_a_shard_that_is_replaced_while_it_is_open_costs_its_images(tmp_path, make):
    cache = filled(tmp_path)
    for shard in cache._shards.values():
        shard.forget_checks()
    path = shard_of(cache, "a")
    path.unlink()
    make(path)
    assert isinstance(within(20, lambda: cache.read("abcde")), KeyError)
    assert torch.equal(cache.read("de"), EVERYTHING[3:])
    assert "a" not in cache


def test_a_damaged_shard_that_cannot_be_renamed_is_ignored(tmp_path, monkeypatch, caplog):
    cache = filled(tmp_path)
    truncate(shard_of(cache, "a"))

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "rename", refuse)
    again = FeatureCache(SETTINGS, tmp_path)
    again.refresh()
    assert torch.equal(again.read("de"), EVERYTHING[3:])
    assert caplog.text.count("cannot be renamed (Permission denied)") == 1


def shard_bytes(tensor, digests, checksums):
    header = {
        "__metadata__": {"digests": digests, "crc32": checksums},
        "features": {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [0, tensor.nbytes]},
    }
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + tensor.numpy().tobytes()


def checksums_of(tensor):
    return json.dumps([zlib.crc32(image.numpy().tobytes()) for image in tensor])


LYING = {
    "deep_digests": (features(1), "[" * DEEP + "]" * DEEP, "[1]"),
    "deep_checksums": (features(1), '["x"]', "[" * DEEP + "]" * DEEP),
    "negative_checksum": (features(1), '["x"]', "[-1]"),
    "text_checksum": (features(1), '["x"]', '["1"]'),
    "infinite_checksum": (features(1), '["x"]', "[Infinity]"),
    "no_images": (torch.zeros(0, 6, 5), "[]", "[]"),
    "no_patches": (torch.zeros(1, 0, 5), '["x"]', "[0]"),
    "no_channels": (torch.zeros(1, 6, 0), '["x"]', "[0]"),
    "surrogate": (features(1), '["\\ud800"]', checksums_of(features(1))),
    "line_break": (features(1), '["a\\nb"]', checksums_of(features(1))),
}


@pytest.mark.parametrize("case", LYING)
def test_headers_that_lie_are_set_aside_and_the_rest_is_used(tmp_path, case):
    cache = filled(tmp_path)
    (cache.folder / "0.safetensors").write_bytes(shard_bytes(*LYING[case]))
    again = within(20, lambda: FeatureCache(SETTINGS, tmp_path))
    assert len(again) == 5
    assert torch.equal(again.read("abcde"), EVERYTHING)
    assert (cache.folder / "0.damaged").exists()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("rows", [False, True])
def test_numbers_that_are_not_finite_are_damage_in_spite_of_a_right_checksum(tmp_path, bad, rows):
    cache = filled(tmp_path)
    broken = features(2, seed=5)
    broken[1, 3, 2] = bad
    (cache.folder / "0.safetensors").write_bytes(shard_bytes(broken, '["x", "y"]', checksums_of(broken)))
    again = FeatureCache(SETTINGS, tmp_path)
    assert torch.equal(again.read("x"), broken[:1])
    with pytest.raises(KeyError):
        (again.rows if rows else again.read)("xya")
    assert "x" not in again
    assert torch.equal(again.read("abcde"), EVERYTHING)


def test_features_that_are_not_finite_are_not_written(tmp_path):
    cache = filled(tmp_path)
    broken = features(2)
    broken[1, 0, 0] = torch.nan
    with pytest.raises(InputError, match=r"features of 1 of 2 images hold NaN or Inf .*image y"):
        cache.write(["x", "y"], broken)
    assert len(shards(cache)) == 2


@pytest.mark.parametrize("shape", [(1, 5, 6), (1, 6, 4), (1, 3, 10)])
def test_a_shard_of_another_shape_is_set_aside(tmp_path, shape):
    cache = filled(tmp_path)
    other = torch.ones(shape)
    (cache.folder / "0.safetensors").write_bytes(shard_bytes(other, '["x"]', checksums_of(other)))
    again = FeatureCache(SETTINGS, tmp_path)
    for read in (again.read, again.rows):
        with pytest.raises(KeyError):
            read("abx")
    assert torch.equal(again.read("abcde"), EVERYTHING)
    assert (cache.folder / "0.damaged").exists()


def test_an_old_folder_with_the_name_of_a_partial_file_does_no_harm(tmp_path):
    cache = filled(tmp_path)
    folder = cache.folder / ".x.partial"
    folder.mkdir()
    os.utime(folder, (0, 0))
    assert torch.equal(FeatureCache(SETTINGS, tmp_path).read("abcde"), EVERYTHING)


def test_a_full_disk_names_the_room_for_all_images_that_are_left(tmp_path, monkeypatch):
    cache, write, written = FeatureCache(SETTINGS, tmp_path), cache_module.write_shard, []

    def until_full(*given):
        if written:
            raise DiskFullError("no room for this shard")
        written.append(given)
        return write(*given)

    monkeypatch.setattr(cache_module, "write_shard", until_full)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    stream = ((str(number), image) for number, image in enumerate(features(10)))
    with pytest.raises(
        DiskFullError, match=r"the features of 8 images could not be written .* are missing.*MONAI_WSCXR_CACHE"
    ):
        cache.write_all(stream, 10, 2)
    assert "0" in FeatureCache(SETTINGS, tmp_path)
