"""The feature cache: what is written comes back, damage and killed runs cost no more than they must, nothing leaks."""

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from monai_wscxr import store as store_module
from monai_wscxr.atomic import save_sealed, write_text_atomic
from monai_wscxr.errors import InputError
from monai_wscxr.store import FeatureStore, cache_root, fingerprint

SETTINGS = {"size": 64, "layers": ["3"], "preprocessing": {"mean": [0.5], "std": [0.5]}}


def features(n, seed=0):
    return torch.randn(n, 6, 5, generator=torch.Generator().manual_seed(seed))


def shards(store):
    return sorted(store.folder.glob("*.safetensors"))


def filled(root):
    """A store with two shards: a b c, and d e."""
    store = FeatureStore(SETTINGS, root)
    store.write(["a", "b", "c"], features(3))
    store.write(["d", "e"], features(2, seed=1))
    return store


EVERYTHING = torch.cat([features(3), features(2, seed=1)])


def test_cache_folder_is_chosen_by_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("MONAI_WSCXR_CACHE", str(tmp_path / "here"))
    assert cache_root() == tmp_path / "here"
    store = FeatureStore(SETTINGS)
    assert store.folder == tmp_path / "here" / "features" / store.fingerprint
    monkeypatch.delenv("MONAI_WSCXR_CACHE")
    assert "monai_wscxr" in str(cache_root())
    assert tmp_path not in cache_root().parents


def test_features_come_back_in_the_order_asked_for(tmp_path):
    store = filled(tmp_path)
    assert len(store) == 5
    assert "d" in store
    assert "f" not in store
    for reader in (store, FeatureStore(SETTINGS, tmp_path)):
        assert torch.equal(reader.read("abcde"), EVERYTHING)
        assert torch.equal(reader.read(["e", "a", "d", "a"]), EVERYTHING[[4, 0, 3, 0]])
        assert reader.read(["b"]).dtype == torch.float32
    with pytest.raises(KeyError):
        store.read(["a", "f"])
    with pytest.raises(KeyError):
        store.read([])


def test_first_copy_counts_when_an_image_is_written_twice(tmp_path):
    store = filled(tmp_path)
    store.write(["a", "f"], features(2, seed=9))
    assert torch.equal(store.read(["a"]), EVERYTHING[:1])
    assert torch.equal(store.read(["f"]), features(2, seed=9)[1:])
    assert len(store) == 6


def test_two_stores_on_one_folder_see_each_other_after_refresh(tmp_path):
    first, second = FeatureStore(SETTINGS, tmp_path), FeatureStore(SETTINGS, tmp_path)
    first.write(["a", "b", "c"], features(3))
    second.write(["d", "e"], features(2, seed=1))
    assert "d" not in first
    assert "a" not in second
    first.refresh()
    second.refresh()
    for store in (first, second):
        assert len(store) == 5
        assert torch.equal(store.read("abcde"), EVERYTHING)


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
    other = FeatureStore({**SETTINGS, "size": 128}, tmp_path)
    assert len(other) == 0
    assert json.loads((other.folder / "settings.json").read_text())["size"] == 128


# --- damage --------------------------------------------------------------------------------------------------------


def test_missing_shard_costs_its_own_images_only(tmp_path):
    store = filled(tmp_path)
    keep = store._where["d"][0]
    for path in shards(store):
        if path != keep:
            path.unlink()
    again = FeatureStore(SETTINGS, tmp_path)
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
    save_file({"features": features(3)}, path, {"digests": "[not json"})


@pytest.mark.parametrize("damage", [truncate, cut_header, empty, overwrite, without_digests, with_broken_digests])
def test_damaged_shard_is_put_aside_and_its_images_are_written_again(tmp_path, caplog, damage):
    store = filled(tmp_path)
    bad = store._where["a"][0]
    damage(bad)
    again = FeatureStore(SETTINGS, tmp_path)
    assert [d for d in "abcde" if d in again] == ["d", "e"]
    assert not bad.exists()
    assert bad.with_suffix(".damaged").exists()
    assert f"{bad} is damaged" in caplog.text
    again.write(["a", "b", "c"], features(3))
    assert torch.equal(FeatureStore(SETTINGS, tmp_path).read("abcde"), EVERYTHING)


def test_damaged_shard_that_another_run_has_put_aside(tmp_path, monkeypatch):
    store = filled(tmp_path)
    truncate(store._where["a"][0])
    rename = Path.rename

    def beaten(self, target):
        rename(self, target)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", beaten)
    assert len(FeatureStore(SETTINGS, tmp_path)) == 2


# --- writing that fails --------------------------------------------------------------------------------------------


def names(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), SafetensorError("I/O error: no space"), KeyboardInterrupt()]
)
def test_failed_shard_leaves_no_partial_file(tmp_path, monkeypatch, error):
    store = filled(tmp_path)
    before = names(tmp_path)

    def fail(tensors, path, metadata):
        Path(path).write_bytes(b"half a shard")
        raise error

    monkeypatch.setattr(store_module, "save_file", fail)
    expected = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else InputError
    with pytest.raises(expected) as caught:
        store.write(["f"], features(1))
    assert names(tmp_path) == before
    assert "f" not in store
    assert len(store) == 5
    if expected is InputError:
        assert "could not be written" in str(caught.value)
        assert "MONAI_WSCXR_CACHE" in str(caught.value)


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
    store = filled(tmp_path)
    save_file({"features": features(1)}, store.folder / "0123.partial", {"digests": '["z"]'})
    assert "z" not in FeatureStore(SETTINGS, tmp_path)
    assert (store.folder / "0123.partial").exists()


def test_disk_without_space_is_refused_with_numbers(tmp_path, monkeypatch):
    store = FeatureStore(SETTINGS, tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=3_000_000_000))
    store.check_space(100, 1_000_000)
    with pytest.raises(InputError, match=r"features of 5000 images need 5.00 GB .* only 3.00 GB are free"):
        store.check_space(5000, 1_000_000)
    with pytest.raises(InputError):  # some room must stay
        store.check_space(2999, 1_000_000)


def test_unwritable_cache_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("a file, not a folder")
    with pytest.raises(InputError, match=r"cannot be written .*; point MONAI_WSCXR_CACHE at a folder that can"):
        FeatureStore(SETTINGS, tmp_path / "file" / "cache")
