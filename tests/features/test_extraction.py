"""From files to banks: each image passes the network once, and unusable images are tolerated up to a share."""

import json
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

from monai_wscxr.bank import cache as cache_module
from monai_wscxr.bank.cache import fingerprint
from monai_wscxr.bank.feature_bank import BankOnDisk, FeatureBank
from monai_wscxr.bank.shard import Shard
from monai_wscxr.data.preprocessing import Preprocessing
from monai_wscxr.data.transforms import radiograph_transforms
from monai_wscxr.errors import InputError
from monai_wscxr.features.extraction import PatchExtractor
from monai_wscxr.features.patches import to_rows


@pytest.fixture
def make(make_features, tmp_path):
    """Return a function that builds an extractor with the cache of this test; `seen` lists what passes its network."""

    def build(cache=tmp_path / "cache", size=64, **options):
        features = options.pop("features", None) or make_features()
        preprocessing = options.pop("preprocessing", None) or Preprocessing(size, (0.4, 0.5, 0.6), (0.5, 0.6, 0.7))
        extractor = PatchExtractor(features, preprocessing, cache=cache, **{"progress": False, **options})
        extractor.seen = []
        forward = extractor.runner.forward

        def counted(batch):
            extractor.seen += [item["file"] for item in batch]
            return forward(batch)

        extractor.runner.forward = counted
        return extractor

    return build


@pytest.fixture
def bad(tmp_path, normal_items):
    """Items that cannot be used: a truncated file, a text file, and a missing one."""
    whole = Path(normal_items[0]["image"]).read_bytes()
    (tmp_path / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("not a picture")
    return [{"image": str(tmp_path / name)} for name in ("truncated.png", "text.png", "missing.png")]


def by_hand(extractor, items):
    """Compute the rows of items one image at a time, without extractor or cache."""
    transform = radiograph_transforms(extractor.preprocessing)
    with torch.no_grad():
        return torch.cat([to_rows(extractor.features(transform(dict(item))["image"][None])) for item in items])


# --- what comes out ------------------------------------------------------------------------------------------------


def test_rows_are_those_of_each_image_in_the_order_of_the_items(make, normal_items):
    items = [normal_items[i] for i in (7, 3, 11, 0, 19)]
    extractor = make(batch_size=2)
    bank = extractor.bank(items)
    expected = by_hand(extractor, items)
    assert bank.grid == (4, 4)
    assert bank.files == tuple(item["image"] for item in items)
    assert bank.rows.dtype == torch.float32
    assert float((bank.rows - expected).abs().max()) < 1e-4 * float(expected.abs().max())
    assert bank.origin(16 * 2 + 4 * 1 + 3) == (items[2]["image"], 1, 3)
    assert not bank.rows.is_inference()


@pytest.mark.parametrize("batch_size", [1, 3, 16])
@pytest.mark.parametrize("read_threads", [1, 4])
def test_without_a_cache_the_same_rows(make, normal_items, batch_size, read_threads):
    cached = make(batch_size=batch_size).bank(normal_items[:7])
    again = make(batch_size=batch_size).bank(normal_items[:7])
    extractor = make(cache=False, batch_size=batch_size, read_threads=read_threads)
    assert extractor.cache is None
    plain = extractor.bank(normal_items[:7])
    assert torch.equal(cached.rows, plain.rows)
    assert torch.equal(again.rows, plain.rows)
    assert cached.files == again.files == plain.files


def test_duplicates_have_their_rows_each(make, normal_items, tmp_path):
    copy = tmp_path / "copy.png"  # other name, same bytes
    copy.write_bytes(Path(normal_items[1]["image"]).read_bytes())
    items = [normal_items[0], normal_items[1], normal_items[0], {"image": str(copy)}]
    for cache in (tmp_path / "cache", tmp_path / "cache", False):
        extractor = make(cache=cache)
        bank = extractor.bank(items)
        assert bank.files == tuple(item["image"] for item in items)
        first, second, third, fourth = bank.rows.split(16)
        assert torch.equal(first, third)
        assert torch.equal(second, fourth)
        assert not torch.equal(first, second)
        assert len(extractor.seen) in (0, 2)  # copies pass the network once, or come from the cache


# --- the cache -----------------------------------------------------------------------------------------------------


def test_second_run_extracts_nothing(make, normal_items):
    first = make()
    bank = first.bank(normal_items)
    assert (first.done.extracted, first.done.reused) == (20, 0)
    assert len(first.seen) == 20
    second = make()
    again = second.bank(normal_items)
    assert (second.done.extracted, second.done.reused) == (0, 20)
    assert second.seen == []
    assert torch.equal(again.rows, bank.rows)
    first.bank(normal_items[:5])
    assert (first.done.extracted, first.done.reused) == (20, 5)
    assert first.done.seconds > 0


def test_known_and_new_images_keep_their_order(make, normal_items):
    make().bank(normal_items[::2])
    extractor = make()
    bank = extractor.bank(normal_items)
    assert sorted(extractor.seen) == [item["image"] for item in normal_items[1::2]]
    expected = by_hand(extractor, normal_items)
    assert float((bank.rows - expected).abs().max()) < 1e-4 * float(expected.abs().max())


def test_missing_and_damaged_shards_are_extracted_again(make, normal_items):
    first = make(batch_size=2, shard_images=4)
    bank = first.bank(normal_items)
    shards = sorted(first.cache.folder.glob("*.safetensors"))
    assert len(shards) == 5
    shards[0].unlink()
    shards[1].write_bytes(shards[1].read_bytes()[:-100])
    extractor = make()
    assert torch.equal(extractor.bank(normal_items).rows, bank.rows)
    assert (extractor.done.extracted, extractor.done.reused) == (8, 12)
    assert len(list(first.cache.folder.glob("*.damaged"))) == 1
    assert make().bank(normal_items).files == bank.files


def test_killed_run_loses_at_most_one_shard(make, normal_items):
    extractor = make(batch_size=2, shard_images=4)
    forward, calls = extractor.runner.forward, []

    def killed(batch):
        calls.append(batch)
        if len(calls) == 14:
            raise KeyboardInterrupt
        return forward(batch)

    extractor.runner.forward = killed
    with pytest.raises(KeyboardInterrupt):
        extractor.bank(normal_items)
    again = make()
    again.bank(normal_items)
    assert (again.done.extracted, again.done.reused) == (8, 12)


def test_fingerprint_changes_with_everything_that_makes_the_features(make, make_features, normal_items):
    def settings(**options):
        return make(cache=False, **options).settings()

    base = settings()
    assert fingerprint(base) == fingerprint(settings())
    assert json.loads(json.dumps(base)) == base
    other = make_features(("3",))
    other.backbone.name = "timm/another"
    changed = {
        "image size": settings(size=96),
        "mean": settings(preprocessing=Preprocessing(64, (0.4, 0.5, 0.7), (0.5, 0.6, 0.7))),
        "std": settings(preprocessing=Preprocessing(64, (0.4, 0.5, 0.6), (0.5, 0.6, 0.8))),
        "weights": settings(features=make_features(seed=1)),
        "layers": settings(features=make_features(("4",))),
        "more layers": settings(features=make_features(("3", "4"))),
        "common resolution": settings(features=make_features(("3", "4"), align_to="coarsest")),
        "order of layers": settings(features=make_features(("4", "3"))),
        "neighbourhood": settings(features=make_features(neighbourhood=5)),
        "aligned channels": settings(features=make_features(aligned_channels=8)),
        "backbone": settings(features=other),
        "precision": settings(precision="bfloat16"),
    }
    prints = {what: fingerprint(values) for what, values in changed.items()}
    assert len({fingerprint(base), *prints.values()}) == len(prints) + 1, prints
    chain = {**base, "preprocessing": {**base["preprocessing"], "reader_chain": "0"}}
    assert fingerprint(chain) != fingerprint(base)


def test_nothing_of_a_patient_is_in_the_cache(make, tmp_path):
    folder = tmp_path / "doe_jane_1970"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 4096, (80, 70), dtype=np.uint16)
    Image.fromarray((pixels >> 4).astype(np.uint8)).save(folder / "doe_jane.png")
    ds = pydicom.Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = DigitalXRayImageStorageForPresentation
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = generate_uid()
    ds.PatientName, ds.PatientID, ds.StudyDescription = "Doe^Jane", "MRN-4711", "Chest of Jane"
    ds.Rows, ds.Columns = pixels.shape
    ds.SamplesPerPixel, ds.PixelRepresentation, ds.PhotometricInterpretation = 1, 0, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 12, 11
    ds.PixelData = pixels.tobytes()
    ds.save_as(folder / "doe_jane.dcm", enforce_file_format=True)
    extractor = make()
    bank = extractor.bank([{"image": str(path)} for path in sorted(folder.iterdir())])
    assert len(bank.files) == 2
    written = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert len(written) >= 2
    for path in written:
        content = (str(path.relative_to(tmp_path / "cache")).encode() + path.read_bytes()).lower()
        for secret in (b"jane", b"doe", b"4711", b"chest", b".dcm", b".png", str(tmp_path).encode().lower()):
            assert secret not in content, path


def test_disk_without_space_is_found_before_work_starts(make, normal_items, monkeypatch):
    extractor = make()
    asked = []
    monkeypatch.setattr(extractor.cache, "check_space", lambda *numbers: asked.append(numbers))
    extractor.bank(normal_items[:4])
    assert asked == [(4, 4 * 16 * extractor.features.channels)]
    extractor.bank(normal_items[:4])
    assert len(asked) == 1  # nothing is missing any more


# --- bad images ----------------------------------------------------------------------------------------------------


def test_bad_images_are_listed_and_skipped(make, normal_items, bad):
    items = [bad[0], *normal_items[:4], bad[1], *normal_items[4:8], bad[2]]
    for cache_run in range(2):
        extractor = make(max_bad_share=0.3)
        bank = extractor.bank(items)
        assert bank.files == tuple(item["image"] for item in normal_items[:8])
        rejected = {file: (code, message) for file, code, message in extractor.done.rejected}
        assert {file: code for file, (code, _) in rejected.items()} == {
            bad[0]["image"]: "unreadable",
            bad[1]["image"]: "unknown_format",
            bad[2]["image"]: "not_found",
        }
        assert rejected[bad[2]["image"]][1] == "No such file or directory"  # messages name no path
        assert (extractor.done.extracted, extractor.done.reused) == ((8, 0), (0, 8))[cache_run]
    expected = by_hand(extractor, normal_items[:8])
    assert float((bank.rows - expected).abs().max()) < 1e-4 * float(expected.abs().max())


def test_share_of_bad_images_is_the_largest_allowed(make, normal_items, bad):
    items = [*normal_items[:18], *bad[:2]]
    assert len(make(max_bad_share=0.1).bank(items).files) == 18
    with pytest.raises(InputError, match=r"2 of 20 normals cannot be used, more than the allowed share of 9%; first: "):
        make(max_bad_share=0.09).bank(items, "normals")


@pytest.mark.parametrize("which", [0, 1, 2])
def test_too_many_bad_images_end_the_run_early(make, normal_items, bad, which):
    extractor = make(max_bad_share=0.0, batch_size=1)
    with pytest.raises(InputError) as caught:
        extractor.bank([normal_items[0], bad[which], *normal_items[1:]])
    assert len(extractor.seen) <= 1  # the network did not run over the other 19
    assert bad[which]["image"] in str(caught.value)
    assert "--max_bad_share" in str(caught.value)


def test_no_usable_image_is_an_error_whatever_is_allowed(make, bad):
    with pytest.raises(InputError, match="none of the 3 images can be used; first: "):
        make(max_bad_share=1.0).bank(bad)
    with pytest.raises(InputError, match="none of the 0 test images can be used"):
        make().bank([], "test images")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_network_that_gives_nan_is_refused(make, normal_items, value):
    extractor = make()
    network = extractor.network
    extractor.network = lambda image: network(image).index_fill(2, torch.tensor(1), value)
    with pytest.raises(InputError, match=r"timm/test_resnet gives NaN or Inf for .*normal_0000\.png"):
        extractor.bank(normal_items[:3])
    assert list(extractor.cache.folder.glob("*.safetensors")) == []


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_share_outside_its_range_is_refused(make, share):
    with pytest.raises(InputError, match=r"max_bad_share must lie in \[0, 1\]"):
        make(max_bad_share=share)


@pytest.mark.parametrize("damage", ["flip a bit", "cut short"])
def test_a_shard_damaged_later_is_found_when_it_is_read_and_alone_made_again(make, normal_items, caplog, damage):
    first = make(shard_images=4)
    bank = first.bank(normal_items)
    shards = sorted(first.cache.folder.glob("*.safetensors"))
    later = make()  # has read the headers before the damage
    content = bytearray(shards[2].read_bytes())
    if damage == "flip a bit":
        content[-1000] ^= 4
        shards[2].write_bytes(content)
    else:
        shards[2].write_bytes(content[:-8])
    assert torch.equal(later.bank(normal_items).rows, bank.rows)
    assert (later.done.extracted, later.done.reused) == (4, 16)
    assert f"{shards[2]} is damaged" in caplog.text
    assert all(path.exists() == (path != shards[2]) for path in shards)
    assert len(later.seen) == 4
    fresh = make()
    fresh.bank(normal_items)
    assert fresh.seen == []


def test_a_disk_that_damages_everything_ends_the_run(make, normal_items, monkeypatch):
    extractor = make()
    monkeypatch.setattr(cache_module, "write_shard", damaging(cache_module.write_shard))
    with pytest.raises(InputError, match="damaged again and again; check the disk"):
        extractor.bank(normal_items[:3])


def damaging(write):
    def written(path, digests, features):
        write(path, digests, features)
        content = bytearray(path.read_bytes())
        content[-5] ^= 1
        path.write_bytes(content)
        return Shard.open(path)

    return written


def test_features_do_not_depend_on_what_else_is_extracted(make, normal_items):
    together = make(cache=False).bank(normal_items).rows.split(16)
    alone = make(cache=False)
    for place in (0, 7, 19):
        assert torch.equal(alone.bank([normal_items[place]]).rows, together[place])


def test_a_bank_on_disk_holds_the_same_rows(make, normal_items):
    extractor = make(shard_images=6)
    items = [*normal_items[5:], *normal_items[:5], normal_items[2]]
    bank = extractor.bank(items)
    on_disk = extractor.bank_on_disk(items)
    assert isinstance(on_disk, BankOnDisk)
    assert (on_disk.files, on_disk.grid, len(on_disk)) == (bank.files, bank.grid, len(bank))
    assert torch.equal(on_disk.rows.gather(torch.arange(len(bank))), bank.rows)
    for ours, theirs in zip(on_disk.maps(8), bank.maps(8), strict=True):
        assert torch.equal(ours, theirs)
        assert ours.stride() == theirs.stride()  # sums in the same order, so the same bits
    loaded = on_disk.load()
    assert isinstance(loaded, FeatureBank)
    assert torch.equal(loaded.rows, bank.rows)
    assert torch.equal(loaded.file_index, bank.file_index)
    with pytest.raises(InputError, match="leave --cache on"):
        make(cache=False).bank_on_disk(items)


def test_damage_to_a_bank_on_disk_is_found_before_it_is_used(make, normal_items):
    bank = make(shard_images=4).bank(normal_items)
    extractor = make()
    path = sorted(extractor.cache.folder.glob("*.safetensors"))[1]
    content = bytearray(path.read_bytes())
    content[-77] ^= 1
    path.write_bytes(content)
    on_disk = extractor.bank_on_disk(normal_items)
    assert torch.equal(on_disk.rows.gather(torch.arange(len(bank))), bank.rows)
    assert extractor.done.extracted == 4


def test_copies_of_an_unusable_image_are_unusable(make, normal_items, bad, tmp_path):
    copy = tmp_path / "copy.png"
    copy.write_bytes(Path(bad[0]["image"]).read_bytes())
    extractor = make(max_bad_share=0.5)
    bank = extractor.bank([bad[0], *normal_items[:4], {"image": str(copy)}])
    assert len(bank.files) == 4
    assert [(file, code) for file, code, _ in extractor.done.rejected] == [
        (bad[0]["image"], "unreadable"),
        (str(copy), "unreadable"),
    ]
    assert len({message for _, _, message in extractor.done.rejected}) == 1


def test_worker_processes_give_the_same(make, normal_items, bad):
    items = [*normal_items[:3], bad[1], *normal_items[3:6]]
    threads = make(cache=False, max_bad_share=0.5)
    processes = make(cache=False, max_bad_share=0.5, read_workers=2)
    assert torch.equal(processes.bank(items).rows, threads.bank(items).rows)
    assert processes.done.rejected == threads.done.rejected


@pytest.mark.parametrize("option", ["batch_size", "read_threads", "shard_images"])
def test_counts_below_one_are_refused(make, option):
    with pytest.raises(InputError, match="must be at least 1"):
        make(**{option: 0})


def test_another_reading_chain_is_refused(make):
    with pytest.raises(InputError, match="chain 0"):
        make(preprocessing=Preprocessing(64, reader_chain="0"))


def test_what_a_gate_let_pass_does_not_come_back_from_the_cache(make, normal_items, tmp_path):
    picture = 255 - np.asarray(Image.open(normal_items[0]["image"]).convert("L"))
    Image.fromarray(picture).save(tmp_path / "negative.png")
    items = [*normal_items[:8], {"image": str(tmp_path / "negative.png")}]
    assert len(make(allow=["suspicious_polarity"], max_bad_share=0.2).bank(items).files) == 9
    strict = make(max_bad_share=0.2)
    assert len(strict.bank(items).files) == 8
    assert [code for _, code, _ in strict.done.rejected] == ["suspicious_polarity"]
