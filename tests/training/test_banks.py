"""Banks of a training, prepared without an engine: what they hold, where they lie, what is refused."""

import pytest
import torch

from monai_wscxr.bank import BankOnDisk, FeatureBank
from monai_wscxr.data import Preprocessing, training_split
from monai_wscxr.errors import InputError
from monai_wscxr.features import PatchExtractor
from monai_wscxr.model import NormalWhitening, mine
from monai_wscxr.training import BankOptions, prepare_banks


@pytest.fixture
def make_extractor(make_features, tmp_path):
    def make(cache=True):
        features = make_features()
        preprocessing = Preprocessing(64, features.backbone.mean, features.backbone.std)
        return PatchExtractor(features, preprocessing, cache=tmp_path / "cache" if cache else False, progress=False)

    return make


def whitening_of(extractor):
    return NormalWhitening(extractor.features.channels)


def test_banks_are_whitened_and_the_mined_bank_is_kept_as_published(phantoms, make_extractor):
    split = training_split(phantoms, 1)
    extractor = make_extractor()
    plain = prepare_banks(make_extractor(), split)
    assert torch.equal(plain.normal.rows, extractor.bank(split.normal).rows)
    whitening = whitening_of(extractor)
    events = []
    banks = prepare_banks(
        extractor, split, whitening, BankOptions(retention=0.3), on_mining=lambda: events.append(extractor.done.reused)
    )
    assert events == [17 + 24]  # all features were known by then
    assert isinstance(banks.normal, FeatureBank)
    expected = whitening(plain.normal.rows)
    torch.testing.assert_close(banks.normal.rows, expected, rtol=1e-5, atol=1e-5)
    mined = mine(plain.normal, plain.abnormal, 0.3)
    assert torch.equal(banks.mined.bank.rows, mined.bank.rows)
    assert torch.equal(banks.mined.distance, mined.distance)
    torch.testing.assert_close(banks.mined_rows, whitening(mined.bank.rows), rtol=1e-5, atol=1e-5)
    assert (len(banks.normal.files), len(banks.held_out.files), len(banks.abnormal.files)) == (17, 3, 4)
    assert set(banks.seconds) == {"extraction", "mining"}


def test_a_bank_on_disk_holds_the_same_rows(phantoms, make_extractor):
    split = training_split(phantoms, 1)
    options = {"retention": 0.5, "copies": 1, "copied_normals": 5, "nuisance": 1.0}
    found = []
    for memory in (None, 1):
        extractor = make_extractor()
        whitening = whitening_of(extractor)
        found.append(prepare_banks(extractor, split, whitening, BankOptions(**options, bank_memory=memory)))
    in_memory, on_disk = found
    assert isinstance(on_disk.normal, BankOnDisk)
    assert torch.equal(on_disk.normal.load().rows, in_memory.normal.rows)
    assert torch.equal(on_disk.mined_rows, in_memory.mined_rows)
    assert on_disk.identity == in_memory.identity


def test_identity_follows_images_roles_and_settings(phantoms, make_extractor, make_features):
    one = prepare_banks(make_extractor(), training_split(phantoms, 1)).identity
    assert prepare_banks(make_extractor(), training_split(phantoms, 1)).identity == one
    assert prepare_banks(make_extractor(), training_split(phantoms, 1, seed=1)).identity != one
    features = make_features(neighbourhood=1)
    preprocessing = Preprocessing(64, features.backbone.mean, features.backbone.std)
    other = PatchExtractor(features, preprocessing, cache=False, progress=False)
    assert prepare_banks(other, training_split(phantoms, 1)).identity != one


def test_without_a_cache_a_bank_that_does_not_fit_is_refused_before_the_work(phantoms, make_extractor):
    extractor = make_extractor(cache=False)
    with pytest.raises(InputError, match="leave --cache on, so that the bank can stay on disk"):
        prepare_banks(extractor, training_split(phantoms, 1), options=BankOptions(bank_memory=1))
    assert extractor.done.extracted == 0


def test_release_drops_the_normal_bank_once(phantoms, make_extractor):
    banks = prepare_banks(make_extractor(), training_split(phantoms, 1))
    banks.release()
    assert not hasattr(banks, "normal")
    banks.release()


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"retention": 0}, "retention rate r must lie in"),
        ({"retention": 1.1}, "retention rate r must lie in"),
        ({"copies": -1}, "copies must be 0"),
        ({"copied_normals": 0}, "copied_normals at least 1"),
        ({"nuisance": float("nan")}, "nuisance at least 0"),
        ({"scope": "patient"}, "mining_scope must be all"),
    ],
)
def test_options_out_of_range_are_refused(values, reason):
    with pytest.raises(InputError, match=reason):
        BankOptions(**values)
