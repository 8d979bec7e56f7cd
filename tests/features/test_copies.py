"""Altered copies: what they depend on, which images are copied, and their cache."""

import shutil

import pytest
import torch

from monai_wscxr.bank.shard import Shard
from monai_wscxr.data.preprocessing import Preprocessing
from monai_wscxr.errors import InputError
from monai_wscxr.features.copies import ALTERED, Alteration, copied_images, copy_features, kept
from monai_wscxr.features.extraction import PatchExtractor


@pytest.fixture
def extractor(make_features, tmp_path):
    features = make_features()
    preprocessing = Preprocessing(64, features.backbone.mean, features.backbone.std, intensity="standardised")
    return PatchExtractor(features, preprocessing, cache=tmp_path / "cache", progress=False)


def files_of(bank):
    return list(bank.files)


@pytest.mark.parametrize("pooled", [False, True])
def test_a_copy_depends_on_the_image_and_its_number_alone(extractor, normal_items, pooled):
    bank = extractor.bank(normal_items[:4])
    both = copy_features(extractor, files_of(bank), ALTERED, 2, pooled)
    again = copy_features(extractor, files_of(bank)[::-1], ALTERED, 2, pooled)
    patches = 1 if pooled else extractor.grid[0] * extractor.grid[1]
    assert both.shape == (8, patches, extractor.features.channels)
    assert torch.equal(both.unflatten(0, (4, 2)), again.unflatten(0, (4, 2)).flip(0))
    assert not torch.equal(both[0], both[1])
    extractor.cache = None  # computed anew, the copies are the same
    torch.testing.assert_close(copy_features(extractor, files_of(bank), ALTERED, 2, pooled), both, rtol=0, atol=1e-5)


def test_copies_that_nothing_altered_are_the_images(extractor, normal_items):
    bank = extractor.bank(normal_items[:5])
    same = copy_features(extractor, files_of(bank), Alteration("none", 1, lambda image, seed: image), 1)
    torch.testing.assert_close(same.flatten(0, 1), bank.rows)


def test_cached_copies_are_not_made_again(extractor, normal_items, monkeypatch):
    bank = extractor.bank(normal_items[:3])
    extractor.shard_images = 4  # two shards
    forward, passed = extractor.runner.forward, []
    monkeypatch.setattr(extractor.runner, "forward", lambda batch: passed.extend(batch) or forward(batch))
    first = copy_features(extractor, files_of(bank), ALTERED, 2)
    assert len(passed) == 6
    folder = next(p for p in extractor.cache.folder.parent.iterdir() if p != extractor.cache.folder)
    assert sorted(len(Shard.open(path).digests) for path in folder.glob("*.safetensors")) == [2, 4]
    assert torch.equal(copy_features(extractor, files_of(bank), ALTERED, 2), first)
    assert len(passed) == 6
    copy_features(extractor, files_of(bank), Alteration("altered", 3, ALTERED.change), 2)  # another version
    assert len(passed) == 12


def test_a_result_is_kept_for_its_key_and_extractor(extractor, make_features):
    made = []

    def make():
        made.append(object())
        return made[-1]

    first = kept(extractor, "a", [1, 2], make)
    assert kept(extractor, "a", [1, 2], make) is first
    assert kept(extractor, "b", [1, 2], make) is made[1]
    assert kept(extractor, "a", [1, 3], make) is made[2]
    assert kept(extractor, "a", [1, 2], make) is made[3]  # only the latest is kept
    other = PatchExtractor(make_features(), extractor.preprocessing, cache=False, progress=False)
    assert kept(other, "a", [1, 2], make) is made[4]
    assert kept(extractor, "a", [1, 2], make) is made[3]


def test_the_copied_images_hardly_depend_on_the_others(extractor, normal_items):
    bank = extractor.bank(normal_items[:8])
    chosen = copied_images(extractor, bank.files, 3)
    digests = [extractor.digests[file] for file in bank.files]
    assert [digests[n] for n in chosen] == sorted(digests)[:3]
    rest = [file for n, file in enumerate(bank.files) if n != chosen[1]]
    again = [rest[n] for n in copied_images(extractor, rest, 3)]
    assert set(again) > {bank.files[chosen[0]], bank.files[chosen[2]]}
    assert len(copied_images(extractor, rest, 100)) == 7


def test_a_file_that_vanished_is_named(extractor, normal_items, tmp_path):
    gone = tmp_path / "gone.png"
    shutil.copy(normal_items[0]["image"], gone)
    extractor.bank([{"image": str(gone)}])
    gone.unlink()
    with pytest.raises(InputError, match="cannot be read now"):
        copy_features(extractor, [str(gone)], ALTERED, 1)
