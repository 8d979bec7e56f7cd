"""Datalists from every source, and the patient in a file name."""

import json
import logging
import os
from pathlib import Path

import pytest

from monai_wscxr.data.columns import COLUMNS, mistaken
from monai_wscxr.data.datalist import DatalistError, load_datalist, load_with_rest, patient_of


def put(root, *names, content=None):
    """Write files with different content, or all with `content`, and return their folder."""
    for name in names:
        path = Path(root) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode() if content is None else content)
    return Path(root)


def brief(items, root):
    """Return items as (image relative to root, label, class, patient)."""
    return [(Path(i["image"]).relative_to(root).as_posix(), i["label"], i["class"], i["patient"]) for i in items]


def item(image, label=0, name=None, patient=None):
    return {
        "image": str(image),
        "label": label,
        "class": name or ("normal", "abnormal")[label],
        "patient": patient or str(image),
    }


def csv_file(root, text):
    (Path(root) / "list.csv").write_text(text, encoding="utf-8")
    return Path(root) / "list.csv"


def json_file(root, content):
    (Path(root) / "list.json").write_text(json.dumps(content), encoding="utf-8")
    return Path(root) / "list.json"


# ---- folders


def test_folder_with_classes_and_masks(tmp_path):
    put(
        tmp_path,
        "train/normal/b.png",
        "train/normal/a.JPG",
        "train/abnormal/mass/m.nii.gz",
        "train/abnormal/x.dcm",
        "test/normal/n.png",
        "test/abnormal/mass/deep/q.nii.gz",
        "test/abnormal/mass/p.jpeg",
        "masks/test/abnormal/mass/p.png",
        "masks/test/abnormal/mass/deep/q.png",
        "masks/train/abnormal/x.png",
    )
    datalist = load_datalist(tmp_path)
    assert list(datalist) == ["training", "test"]
    assert brief(datalist["training"], tmp_path) == [
        ("train/abnormal/mass/m.nii.gz", 1, "mass", "train/abnormal/mass/m.nii.gz"),
        ("train/abnormal/x.dcm", 1, "abnormal", "train/abnormal/x.dcm"),
        ("train/normal/a.JPG", 0, "normal", "train/normal/a.JPG"),
        ("train/normal/b.png", 0, "normal", "train/normal/b.png"),
    ]
    masks = {Path(i["image"]).name: i.get("mask") for i in datalist["test"]}
    folder = tmp_path / "masks/test/abnormal/mass"
    assert masks == {"n.png": None, "p.jpeg": str(folder / "p.png"), "q.nii.gz": str(folder / "deep/q.png")}
    assert not any("mask" in i for i in datalist["training"])


def test_folder_as_published(tmp_path):
    put(
        tmp_path,
        "Train/NORMAL/IM-0115-0001-0001.jpeg",
        "Train/NORMAL/NORMAL2-IM-0381-0001.jpeg",
        "Train/PNEUMONIA/person63_bacteria_306.jpeg",
        "Train/PNEUMONIA/person1_virus_6.jpeg",
        "Train/PNEUMONIA/other.jpeg",
        "Train/PNEUMONIA/VIRUS-1000467-0001.jpeg",
        "val/NORMAL/v.jpeg",
        "__MACOSX/train/NORMAL/v.jpeg",
        "Train/NORMAL/.hidden.jpeg",
        "Train/.thumbnails/t.jpeg",
        "Train/NORMAL/Thumbs.db",
    )
    datalist = load_datalist(tmp_path)
    assert datalist["test"] == []
    assert brief(datalist["training"], tmp_path) == [
        ("Train/NORMAL/IM-0115-0001-0001.jpeg", 0, "normal", "IM-0115"),
        ("Train/NORMAL/NORMAL2-IM-0381-0001.jpeg", 0, "normal", "NORMAL2-IM-0381"),
        ("Train/PNEUMONIA/VIRUS-1000467-0001.jpeg", 1, "virus", "VIRUS-1000467"),
        ("Train/PNEUMONIA/other.jpeg", 1, "pneumonia", "Train/PNEUMONIA/other.jpeg"),
        ("Train/PNEUMONIA/person1_virus_6.jpeg", 1, "virus", "person1_virus"),
        ("Train/PNEUMONIA/person63_bacteria_306.jpeg", 1, "bacteria", "person63_bacteria"),
    ]


def test_extensionless_dicom_is_found_by_content(tmp_path):
    put(tmp_path, "train/normal/IM1", "train/normal/1.2.840.10008", content=b"\0" * 128 + b"DICM")
    put(tmp_path, "train/normal/README", "train/normal/notes.txt", "train/normal/empty.7")
    (tmp_path / "train/normal/empty.7").write_bytes(b"")
    names = [Path(i["image"]).name for i in load_datalist(tmp_path)["training"]]
    assert names == ["1.2.840.10008", "IM1"]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ([], "neither train nor test.*no folders.*train/normal"),
        (["images/a.png"], "neither train nor test.*it holds images"),
        (["train/normal/a.gif", "train/normal/b.gif"], r"no images; it holds 2 x \.gif.*\.png"),
        (["train/abnormal/a.png"], "no normal training image among 1"),
        (["test/normal/a.png"], "no normal training image among 0"),
        (["train/normal/a.png", "train/bacteria/b.png"], "bacteria is not allowed here"),
        (["train/normal/a.png", "train/b.png"], r"b\.png is not allowed here"),
        (["train/normal/a.png", "training/normal/b.png"], "both mean training"),
        (["train/normal/a.png", "train/abnormal/Normal/b.png"], "cannot be the name of an abnormal class"),
    ],
)
def test_folder_errors(tmp_path, files, words):
    put(tmp_path, *files)
    with pytest.raises(DatalistError, match=words):
        load_datalist(tmp_path)


def test_source_errors(tmp_path):
    with pytest.raises(DatalistError, match="no such folder or file"):
        load_datalist(tmp_path / "nowhere")
    put(tmp_path, "list.txt")
    with pytest.raises(DatalistError, match=r"a folder, a \.json or a \.csv"):
        load_datalist(tmp_path / "list.txt")


# ---- JSON and CSV


def test_json_and_csv_give_the_same(tmp_path):
    put(tmp_path, "i/a.png", "i/person7_virus_9.png", "i/t.png", "m/t.png", "i/v.png")
    rows = [
        {"image": "i/a.png", "label": 0, "patient": "P1"},
        {"image": "i/person7_virus_9.png", "label": 1, "class": "virus"},
    ]
    last = {"image": str(tmp_path / "i/t.png"), "label": 1, "mask": "m/t.png"}
    from_json = load_datalist(json_file(tmp_path, {"name": "x", "training": rows, "test": [last]}))
    text = "\ufeffimage,split,label,class,patient,mask\ni/a.png,train,0,,P1,\n\ni/v.png,val,0,,,\n"
    text += f"i/person7_virus_9.png,Training,1,virus,,\n{tmp_path}/i/t.png,test,1,,,m/t.png\n"
    assert load_datalist(csv_file(tmp_path, text)) == from_json
    assert from_json["training"] == [
        item(tmp_path / "i/a.png", 0, "normal", "P1"),
        item(tmp_path / "i/person7_virus_9.png", 1, "virus", "person7_virus"),
    ]
    assert from_json["test"] == [{**item(tmp_path / "i/t.png", 1), "mask": str(tmp_path / "m/t.png")}]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no header"),
        ("a.png,train,0\n", "no header.*image,split,label"),
        ("image;split;label\na.png;train;0\n", "separated by commas"),
        ("image,split\na.png,train\n", "missing: 'label'"),
        ("image,split,label,pateint\na.png,train,0,5\n", "unknown: 'pateint' .did you mean 'patient'.*allowed: image"),
        ("image,split,lable\na.png,train,0\n", "unknown: 'lable' .did you mean 'label'.*missing: 'label'"),
        ("image,split,label,Patient\na.png,train,0,5\n", "did you mean 'patient'"),
        ("image,split,label,patient_id\na.png,train,0,5\n", "did you mean 'patient'"),
        ("image,split,label,mask_path\na.png,train,0,5\n", "did you mean 'mask'"),
        ("image,image,split,label\n", "named twice"),
        ("image,split,label\na.png,train,2\n", "row 2: label is '2'; allowed are 0"),
        ("image,split,label\na.png,train,\n", "row 2: label is ''"),
        ("image,split,label\na.png,holdout,0\n", "split is 'holdout'; allowed are train and test"),
        ("image,split,label\na.png,train,0,9\n", "row 2 has 4 cells, the header 3"),
        ("image,split,label\n,train,0\n", "image is ''"),
        ("image,split,label\na.png,train,0\n./a.png,train,0\n", "1 image.* listed more than once in training"),
        ("image,split,label,class\na.png,train,1,normal\n", "class 'normal' contradicts label 1"),
        ("image,split,label,class\na.png,train,0,mass\n", "class 'mass' contradicts label 0"),
        ("image,split,label\na.png,test,0\n", "no normal training image"),
        (
            "image,split,label\n" + "".join(f"x{i}.png,train,0\n" for i in range(5)),
            r"5 of 5 files.*x2\.png; and 2 more",
        ),
        ("image,split,label,mask\na.png,train,1,m.png\n", r"1 of 2 files do not exist.*m\.png"),
    ],
)
def test_csv_errors(tmp_path, text, words):
    put(tmp_path, "a.png")
    with pytest.raises(DatalistError, match=words):
        load_datalist(csv_file(tmp_path, text))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([], "expected"),
        ({"test": []}, "expected"),
        ({"training": ["a.png"]}, "item 0 of training is str"),
        ({"training": [], "test": {}}, "'test' is dict"),
        ({"training": [{"image": "a.png", "label": True}]}, "label is True"),
        ({"training": [{"image": "a.png", "label": 0.5}]}, "label is 0.5"),
        ({"training": [{"image": "a.png", "label": [0]}]}, r"label is \[0\]"),
        ({"training": [{"image": "a.png"}]}, "missing: 'label'"),
        ({"training": [{"image": "a.png", "label": 0, "clas": 1}]}, "unknown: 'clas' .did you mean 'class'"),
        ({"training": [{"image": "a.png", "label": 0, "split": "test"}]}, "has the key 'split'"),
        (
            {"training": [{"image": "a.png", "label": 0, "patient": ["P"]}]},
            "patient is list; expected a text or a number",
        ),
        ({"training": [], "tset": []}, "unknown key 'tset'. Did you mean 'test'"),
        ({"training": [], "holdout": []}, "unknown key 'holdout'. Allowed are training and test"),
        ({"training": [], "test": [], "testing": []}, "two keys mean test"),
        ({"training": [{"image": 5, "label": 0}]}, "image is 5"),
    ],
)
def test_json_errors(tmp_path, content, words):
    put(tmp_path, "a.png")
    with pytest.raises(DatalistError, match=words):
        load_datalist(json_file(tmp_path, content))
    (tmp_path / "list.json").write_text("{broken")
    with pytest.raises(DatalistError, match="not valid JSON"):
        load_datalist(tmp_path / "list.json")


@pytest.mark.parametrize(
    ("name", "patient"),
    [
        ("person63_bacteria_306.jpeg", "person63_bacteria"),
        ("person63_virus_118.jpeg", "person63_virus"),
        ("a/b/person1_virus_6.png", "person1_virus"),
        ("IM-0115-0001-0001.jpeg", "IM-0115"),
        ("IM-0115-0001.jpeg", "IM-0115"),
        ("NORMAL2-IM-0381-0001.nii.gz", "NORMAL2-IM-0381"),
        ("BACTERIA-1008087-0001.jpeg", "BACTERIA-1008087"),
        ("VIRUS-1008087-0001.jpeg", "VIRUS-1008087"),
        ("NORMAL-1008087-0001.jpeg", "NORMAL-1008087"),
        ("person63.jpeg", None),
        ("00000001_000.png", "00000001"),
        ("images_001/00030805_012_flipped.jpg", "00030805"),
        ("20240131_001.png", None),
        ("CheXpert-v1.0/train/patient00001/study1/view1_frontal.jpg", "patient00001"),
        ("patient64541_study1_view1_frontal.jpg", "patient64541"),
        ("view1_frontal.jpg", None),
        ("files/p10/p10000032/s50414267/02aa804e-bde0afdd.jpg", "10000032"),
        ("p10000032_s50414267_02aa804e.png", "10000032"),
    ],
)
def test_patient_of(name, patient):
    assert patient_of(name) == patient


# ---- what is not read


def test_keys_of_a_json_file(tmp_path):
    put(tmp_path, "a.png", "t.png", "v.png")
    normal, test = {"image": "a.png", "label": 0}, {"image": "t.png", "label": 1}
    usual = load_datalist(json_file(tmp_path, {"training": [normal], "test": [test]}))
    assert [len(items) for items in usual.values()] == [1, 1]
    other = {"name": "x", "labels": {"0": "normal"}, "Train": [normal], "TESTING": [test], "validation": [normal, test]}
    loaded = load_with_rest(json_file(tmp_path, other))
    assert loaded.parts == usual
    assert loaded.summary() == "2 files or folders left out: 2 validation_part"
    (tmp_path / "list.json").write_text('{"training": [], "training": []}')
    with pytest.raises(DatalistError, match="key 'training' occurs twice"):
        load_datalist(tmp_path / "list.json")


def test_additional_columns_are_named_once(tmp_path, caplog):
    caplog.set_level(logging.INFO, "monai_wscxr")
    put(tmp_path, "a.png", "b.png")
    table = "image,split,label,colour,boxes,mass,\n" + "".join(
        f'{name}.png,train,0,grey,"[[1, 2]]",0,\n' for name in "ab"
    )
    from_csv = load_datalist(csv_file(tmp_path, table))
    entries = [{"image": f"{name}.png", "label": 0, "fold": 1, "weight": 3} for name in "ab"]
    assert load_datalist(json_file(tmp_path, {"training": entries})) == from_csv
    lines = [record.getMessage() for record in caplog.records if "additional col" in record.getMessage()]
    assert lines == [
        f"{tmp_path}/list.csv: additional columns that are not read: 'colour', 'boxes', 'mass', ''",
        f"{tmp_path}/list.json: additional columns that are not read: 'fold', 'weight'",
    ]


@pytest.mark.parametrize(
    ("name", "column"),
    [
        *(("pateint", "patient"), ("patientID", "patient"), ("Patient Id", "patient"), ("subject_id", "patient")),
        *(("masks", "mask"), ("lesion_mask", "mask"), ("class_name", "class"), ("classes", "class"), ("clss", "class")),
        *(
            (name, None)
            for name in ("view", "sex", "age", "mass", "glass", "fold", "patient_age", "class_weight", "", "stage")
        ),
    ],
)
def test_mistyped_columns(name, column):
    assert mistaken(name, ["image", "split", "label", name]) == column
    assert mistaken(name, COLUMNS) is None  # ours are all there


def test_what_a_folder_leaves_out_is_counted(tmp_path, caplog):
    put(tmp_path, "train/normal/a.png", "test/abnormal/mass/t.png", "masks/test/abnormal/mass/t.png")
    assert load_with_rest(tmp_path).summary() == ""
    put(
        tmp_path,
        *("val/normal/v.png", "tset/normal/x.png", "loose.png", "README.md", "train/notes.txt", "train/.thumbs/t.png"),
        *("masks/test/abnormal/mass/t.jpg.png", "masks/test/normal/n.png"),
    )
    put(tmp_path / "elsewhere", "m.png")
    (tmp_path / "train/abnormal").mkdir()
    (tmp_path / "train/abnormal/mass").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    os.mkfifo(tmp_path / "train/normal/pipe.png")
    loaded = load_with_rest(tmp_path)
    assert sorted((path.relative_to(tmp_path).as_posix(), reason) for path, reason in loaded.left_out) == [
        ("README.md", "not_an_image"),
        ("elsewhere", "not_a_part"),
        ("loose.png", "not_a_part"),
        ("masks/test/abnormal/mass/t.jpg.png", "mask_without_image"),
        ("masks/test/normal/n.png", "mask_without_image"),
        ("train/.thumbs", "hidden"),
        ("train/abnormal/mass", "linked_folder"),
        ("train/normal/pipe.png", "not_a_file"),
        ("train/notes.txt", "not_an_image"),
        ("tset", "not_a_part"),
        ("val", "validation_part"),
    ]
    (warning,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "11 files or folders left out: 3 not_a_part, 2 not_an_image, 2 mask_without_image" in warning.getMessage()


def test_folders_that_cannot_be_opened(tmp_path, monkeypatch):
    put(tmp_path, "train/normal/a.png", "train/abnormal/mass/m.png")
    walk, closed = os.walk, str(tmp_path / "train/abnormal")

    def walk_closed(top, onerror=None, **options):
        if str(top) == closed:
            onerror(PermissionError(13, "Permission denied", closed))
            return iter(())
        return walk(top, onerror=onerror, **options)

    monkeypatch.setattr(os, "walk", walk_closed)
    assert load_with_rest(tmp_path).left_out == ((Path(closed), "unreadable_folder"),)
    listed = Path.iterdir

    def closed_iterdir(self):
        if self.name == "train":
            raise PermissionError(13, "Permission denied", str(self))
        return listed(self)

    monkeypatch.setattr(Path, "iterdir", closed_iterdir)
    with pytest.raises(DatalistError, match=r"train: cannot be opened \(Permission denied\)"):
        load_datalist(tmp_path)


def test_rows_for_validation_are_counted(tmp_path):
    put(tmp_path, "a.png", "v.png")
    loaded = load_with_rest(csv_file(tmp_path, "image,split,label\na.png,train,0\nv.png,val,0\n"))
    assert loaded.left_out == ((tmp_path / "v.png", "validation_part"),)
