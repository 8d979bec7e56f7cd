"""Synthetic chest phantoms: the same patient every time, true masks, a clean folder of files."""

import hashlib

import numpy as np
import pytest
from PIL import Image

from monai_wscxr.data import phantom, phantom_anatomy
from monai_wscxr.data.phantom import LESIONS, make_phantom, write_phantoms

SIZE = 128
SEEDS = (0, 1, 2, 3, 4, 5)


def central_heart_and_lung(image):
    """Return the mean grey value of the lower mediastinum and of the middle of both lungs, in image coordinates."""
    n = image.shape[0]

    def mean(left, top, right, bottom):
        return image[int(top * n) : int(bottom * n), int(left * n) : int(right * n)].mean()

    lungs = 0.5 * (mean(0.22, 0.3, 0.36, 0.55) + mean(0.68, 0.25, 0.78, 0.42))
    return mean(0.46, 0.55, 0.58, 0.7), lungs


@pytest.mark.parametrize("lesion", [None, *LESIONS])
def test_same_arguments_same_pixels(lesion):
    first, second = make_phantom(7, SIZE, lesion), make_phantom(7, SIZE, lesion)
    assert np.array_equal(first.image, second.image)
    assert np.array_equal(first.mask, second.mask)
    assert first.lesion == lesion


def test_another_seed_is_another_patient():
    inner = slice(SIZE // 8, -SIZE // 8)  # without the collimated border, which also changes
    images = [make_phantom(seed, SIZE).image[inner, inner].ravel() for seed in SEEDS]
    alike = np.corrcoef(images)[~np.eye(len(SEEDS), dtype=bool)]
    assert alike.max() < 0.97, "one patient exposed twice correlates by 0.99"
    assert alike.min() > 0.5, "all are chests"


@pytest.mark.parametrize("lesion", [None, *LESIONS])
@pytest.mark.parametrize("size", [32, 45, 128, 257])
def test_dtype_shape_and_range(size, lesion):
    made = make_phantom(3, size, lesion)
    assert made.image.shape == made.mask.shape == (size, size)
    assert made.image.dtype == np.float32
    assert made.mask.dtype == np.bool_
    assert np.isfinite(made.image).all()
    assert made.image.min() >= 0.0
    assert made.image.max() <= 1.0
    assert made.image.max() - made.image.min() > 0.7, "uses most of the grey scale"


@pytest.mark.parametrize("lesion", [None, "nodule", "effusion"])
def test_size_changes_resolution_only(lesion):
    large, small = make_phantom(5, 512, lesion), make_phantom(5, 256, lesion)
    halved = large.image.reshape(256, 2, 256, 2).mean((1, 3))
    assert np.corrcoef(halved.ravel(), small.image.ravel())[0, 1] > 0.97
    assert np.abs(halved - small.image).mean() < 0.02
    if lesion is not None:
        mask = large.mask[::2, ::2]
        assert (mask & small.mask).sum() > 0.85 * (mask | small.mask).sum()


@pytest.mark.parametrize("seed", SEEDS)
def test_air_is_dark_and_lungs_are_darker_than_the_heart(seed):
    image = make_phantom(seed, SIZE).image
    heart, lungs = central_heart_and_lung(image)
    corner = image[:4, :4].mean()
    assert corner < 0.1
    assert heart > 0.5
    assert corner < lungs < heart - 0.25


def test_normal_has_an_empty_mask():
    made = make_phantom(0, SIZE)
    assert made.lesion is None
    assert not made.mask.any()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("lesion", LESIONS)
def test_lesion_changes_the_same_patient_inside_its_mask_only(lesion, seed):
    normal, ill = make_phantom(seed, SIZE), make_phantom(seed, SIZE, lesion)
    change = ill.image - normal.image
    assert 0.002 < ill.mask.mean() < 0.2
    assert normal.image[ill.mask].min() > 0.03, "the mask lies within the body"
    assert np.abs(change)[~ill.mask].mean() < 0.004
    assert np.abs(change)[ill.mask].mean() > 0.04
    sign = -1 if lesion == "pneumothorax" else 1
    assert sign * change[ill.mask].mean() > 0.04


@pytest.mark.parametrize("lesion", LESIONS)
def test_lesions_vary_in_place_and_extent(lesion):
    masks = [make_phantom(seed, 64, lesion).mask for seed in range(12)]
    columns = [np.nonzero(mask)[1].mean() for mask in masks]
    areas = [mask.sum() for mask in masks]
    assert min(columns) < 28
    assert max(columns) > 36, "both lungs occur"
    assert max(areas) > 1.3 * min(areas)


def test_mask_specks_are_dropped():
    mask = np.zeros((20, 20), bool)
    mask[2:8, 2:8] = mask[12:14, 12:14] = mask[18, 18] = True
    kept = phantom._without_specks(mask)
    assert kept[2:8, 2:8].all()
    assert kept[12:14, 12:14].all()
    assert kept.sum() == 40
    assert not phantom._without_specks(np.zeros((5, 5), bool)).any()


def test_pneumothorax_pocket_has_no_vessels():
    anatomy = phantom_anatomy.anatomy(2, 256)
    changed = anatomy.line + phantom._pneumothorax(phantom_anatomy.stream(2, 9), anatomy, 1)
    free = anatomy.line + phantom._pneumothorax(phantom_anatomy.stream(2, 9), _without_vessels(anatomy), 1)
    erased = free - changed  # what the pocket takes away because vessels run there
    pocket = erased > 1e-4
    assert pocket.sum() > 50
    expected = phantom_anatomy.MU * phantom_anatomy.VESSEL * anatomy.vessels[pocket]
    assert np.median(erased[pocket] / expected) == pytest.approx(1.0, abs=0.05)


def _without_vessels(anatomy):
    return phantom_anatomy.Anatomy(
        anatomy.grid, anatomy.body, anatomy.lungs, np.zeros_like(anatomy.vessels), anatomy.line, anatomy.shape
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantoms") / "new" / "data"
    write_phantoms(folder, 5, 2, 3, 1, size=48, seed=11, progress=False)
    return folder


def test_layout_and_counts(written):
    def count(below):
        return len(list((written / below).glob("*.png")))

    assert count("train/normal") == 5
    assert count("test/normal") == 3
    for lesion in LESIONS:
        assert count(f"train/abnormal/{lesion}") == 2
        assert count(f"test/abnormal/{lesion}") == 1
    files = [path for path in written.rglob("*") if path.is_file()]
    assert len(files) == 8 + 2 * 3 * len(LESIONS), "nothing else is left behind"


def test_every_abnormal_image_has_its_mask(written):
    for image in written.glob("*/abnormal/*/*.png"):
        mask = Image.open(written / "masks" / image.relative_to(written))
        assert mask.mode == Image.open(image).mode == "L"
        assert mask.size == (48, 48)
        assert set(np.unique(mask)) == {0, 255}


def test_every_image_is_another_patient(written):
    images = [path for path in written.rglob("*.png") if "masks" not in path.parts]
    digests = {hashlib.sha256(Image.open(path).tobytes()).hexdigest() for path in images}
    assert len(digests) == len(images) == 8 + 3 * len(LESIONS)


def test_no_patient_seed_is_drawn_twice(tmp_path, monkeypatch):
    seeds = []

    def remember(seed, size, lesion):
        seeds.append(seed)
        blank = np.zeros((size, size), np.float32)
        return phantom.Phantom(blank, blank > 0, lesion)

    monkeypatch.setattr(phantom, "make_phantom", remember)
    write_phantoms(tmp_path / "a", 30, 10, 30, 10, size=32, seed=0, progress=False)
    write_phantoms(tmp_path / "b", 30, 10, 30, 10, size=32, seed=1, progress=False)
    assert len(set(seeds)) == len(seeds) == 2 * (60 + 20 * len(LESIONS))


def test_larger_data_set_contains_the_smaller(written, tmp_path):
    write_phantoms(tmp_path, 1, 0, 1, 2, size=48, seed=11, lesions=("nodule",), progress=False)
    for path in ("train/normal/train_normal_0000.png", "test/abnormal/nodule/test_nodule_0000.png"):
        assert (tmp_path / path).read_bytes() == (written / path).read_bytes()
    assert not (tmp_path / "train/abnormal").exists()


def test_refuses_a_folder_in_use(tmp_path):
    kept = tmp_path / "kept.txt"
    kept.write_text("mine")
    with pytest.raises(ValueError, match=r"not empty.*new folder") as error:
        write_phantoms(tmp_path, 1, 1, 1, 1, size=32, progress=False)
    assert str(tmp_path) in str(error.value)
    assert list(tmp_path.iterdir()) == [kept]
    with pytest.raises(ValueError, match=r"kept\.txt is a file"):
        write_phantoms(kept, 1, 1, 1, 1, size=32, progress=False)


def test_a_failed_write_leaves_no_partial_file(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_phantoms(tmp_path, 1, 0, 0, 0, size=32, progress=False)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": -1}, "seed must be an integer of 0 or more, got -1"),
        ({"seed": 1.5}, "seed must be an integer"),
        ({"seed": True}, "seed must be an integer"),
        ({"seed": 0, "size": 31}, "size must be an integer from 32 to 4096, got 31"),
        ({"seed": 0, "size": 4097}, "size must be an integer from 32 to 4096, got 4097"),
        ({"seed": 0, "lesion": "fracture"}, "lesion must be None or one of consolidation, .*got 'fracture'"),
    ],
)
def test_make_phantom_rejects(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_phantom(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_train_normal": -1}, "n_train_normal must be an integer of 0 or more, got -1"),
        ({"n_test_abnormal": 2.0}, "n_test_abnormal must be an integer"),
        ({"size": 8}, "size must be an integer from 32 to 4096, got 8"),
        ({"seed": -3}, "seed must be an integer of 0 or more, got -3"),
        ({"lesions": ()}, "lesions must be different names"),
        ({"lesions": "nodule"}, "lesions must be different names"),
        ({"lesions": ("nodule", "nodule")}, "lesions must be different names"),
        ({"lesions": ("nodule", "fracture")}, "fracture"),
    ],
)
def test_write_phantoms_rejects_before_it_writes(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        write_phantoms(tmp_path / "new", **arguments, progress=False)
    assert not (tmp_path / "new").exists()
