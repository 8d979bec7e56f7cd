"""Draws of images from a collection: over patients, by names that are unique, whatever the order of the tables."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from monai_wscxr.data.collections import Limits, Record, assemble, make_datalist
from monai_wscxr.data.collections.common import _distinct_names, _hash
from monai_wscxr.data.datalist import DatalistError

SEEDS = range(12)


def chexpert(root, patients=400, reverse=False):
    """Write 400 normal patients as CheXpert has them: every third has a second view, every fifth a second study."""
    from tests.data.test_collections import CHEXPERT

    rows = []
    for number in range(patients):
        for study in range(1, 2 + (number % 5 == 0)):
            for view in range(1, 2 + (number % 3 == 0)):
                file = f"train/patient{number:05d}/study{study}/view{view}_frontal.jpg"
                (root / file).parent.mkdir(parents=True, exist_ok=True)
                (root / file).touch()
                rows.append(f"CheXpert-v1.0/{file},F,60,Frontal,AP,1.0" + "," * 13)
    (root / "train.csv").write_text("\n".join([CHEXPERT, *(rows[::-1] if reverse else rows)]) + "\n")
    return root


def drawn(root, output, seed, count=40):
    make_datalist("chexpert", root, output, Limits(train_normal=count, seed=seed))
    return json.loads(output.read_text())["training"]


def test_chexpert_draws_patients_all_over_the_table(tmp_path):
    root, output = chexpert(tmp_path / "CheXpert-v1.0"), tmp_path / "list.json"
    draws = [[item["patient"] for item in drawn(root, output, seed)] for seed in SEEDS]
    assert all(len(set(draw)) == 40 for draw in draws)  # one image of each patient
    assert len({tuple(draw) for draw in draws}) == len(draws)
    places = np.array([[int(patient[-5:]) for patient in draw] for draw in draws])
    # the mean of 40 places out of 0 to 399 lies at 199.5 with a standard error of 17
    assert np.abs(places.mean(1) - 199.5).max() < 4 * 17
    assert abs(places.mean() - 199.5) < 3 * 17 / len(draws) ** 0.5
    overlap = [len(set(a) & set(b)) for a in draws for b in draws if a is not b]
    assert 1 < np.mean(overlap) < 9  # 5 of 40 by chance: 40 x 40 / (400 x 0.8)


def test_the_order_of_the_table_and_the_place_of_the_folder_do_not_matter(tmp_path):
    first = drawn(chexpert(tmp_path / "a"), tmp_path / "a.json", 3)
    again = drawn(chexpert(tmp_path / "elsewhere" / "b", reverse=True), tmp_path / "b.json", 3)
    tails = [[Path(item["image"]).parts[-3:] for item in items] for items in (first, again)]
    assert tails[0] == tails[1]


def test_second_images_come_after_all_patients():
    records = [Record(Path(f"{p}-{n}.png"), (), f"p{p}", "training") for p in range(10) for n in range(5)]
    items = assemble(records, Limits(train_normal=24)).parts["training"]
    counts = Counter(item["patient"] for item in items)
    assert sorted(counts.values()) == [2] * 6 + [3] * 4
    # without patients first, images count alone: that is how ZhangLab is drawn
    images = assemble(records, Limits(train_normal=24), draw_patients=False).parts["training"]
    by_name = sorted(records, key=lambda record: _hash("limit", 0, record.image.name))[:24]
    assert {item["image"] for item in images} == {str(record.image) for record in by_name}


def test_names_take_as_many_folders_as_they_need():
    assert list(_distinct_names([Path("/x/a.png"), Path("/x/b.png")]).values()) == ["a.png", "b.png"]
    images = [Path("/d/p1/s1/v.jpg"), Path("/d/p2/s1/v.jpg"), Path("/d/p2/s2/v.jpg")]
    assert list(_distinct_names(images).values()) == ["p1/s1/v.jpg", "p2/s1/v.jpg", "p2/s2/v.jpg"]
    assert _distinct_names([]) == {}


@pytest.mark.parametrize("seed", range(6))
def test_equal_names_in_classes_and_parts(seed):
    """The copy of ZhangLab in folders may number the files of every folder alike."""
    records = [
        Record(Path(f"/data/{part}/{n:03d}/1.png"), ("Edema",) if ill else (), f"{part}{n}", part)
        for part in ("training", "test")
        for n in range(100)
        for ill in [n % 2]
    ]
    limits = Limits(10, 10, 10, 10, seed=seed)
    for draw_patients in (True, False):
        datalist = assemble(records, limits, draw_patients=draw_patients)
        assert datalist == assemble(records[::-1], limits, draw_patients=draw_patients)
        places = [int(Path(i["image"]).parts[-2]) for items in datalist.parts.values() for i in items]
        assert max(places) > 70


def test_repeated_rows_count_once_and_contradictions_are_refused():
    normal = Record(Path("a.png"), (), "1", "training")
    datalist = assemble([normal, normal])
    assert len(datalist.parts["training"]) == 1
    assert datalist.left_out["listed more than once"] == 1
    with pytest.raises(DatalistError, match=r"contradict themselves about a\.png: no finding of patient 1.*Edema"):
        assemble([normal, Record(Path("a.png"), ("Edema",), "1", "training")])


def test_two_nih_files_of_one_name(tmp_path):
    from tests.data.test_collections import nih, picture, read

    nih(tmp_path)
    copy = tmp_path / "images" / "00000001_000.png"
    copy.parent.mkdir()
    copy.write_bytes(next(tmp_path.glob("images_*/images/00000001_000.png")).read_bytes())
    assert read("nih", tmp_path)[0]["00000001_000.png"].image == copy
    picture(copy, 32)
    with pytest.raises(DatalistError, match=r"00000001_000\.png have one name but different content"):
        read("nih", tmp_path)


def test_mimic_labels_belong_to_patient_and_study(tmp_path):
    from tests.data.test_collections import MIMIC_LABELS, lines, read

    stem = "mimic-cxr-2.0.0"
    names = MIMIC_LABELS.split(",")

    def labels(subject, finding):
        return ",".join([subject, "7", *("1.0" if name == finding else "" for name in names[2:])])

    lines(tmp_path / f"{stem}-chexpert.csv", MIMIC_LABELS, labels("10", "No Finding"), labels("11", "Edema"))
    lines(tmp_path / f"{stem}-metadata.csv", "dicom_id,subject_id,study_id,ViewPosition", "a,10,7,PA", "b,11,7,PA")
    lines(tmp_path / f"{stem}-split.csv", "dicom_id,split", "a,train", "b,train")
    found, _ = read("mimic", tmp_path)
    assert {name: record.findings for name, record in found.items()} == {"a.jpg": (), "b.jpg": ("Edema",)}
