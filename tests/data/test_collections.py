"""Readers of published collections on small copies with the tables' true columns."""

import gzip
import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from monai_wscxr.commands.main import main
from monai_wscxr.data.collections import READERS, Limits, Record, assemble, make_datalist, write_datalist
from monai_wscxr.data.collections.nih import read_boxes
from monai_wscxr.data.datalist import DatalistError, load_datalist

CHEXPERT = (
    "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,Edema,"
    "Consolidation,Pneumonia,Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,Support Devices"
)
NIH = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,OriginalImage[Width,Height],"
    "OriginalImagePixelSpacing[x,y],"
)
MIMIC_LABELS = (
    "subject_id,study_id,Atelectasis,Cardiomegaly,Consolidation,Edema,Enlarged Cardiomediastinum,Fracture,Lung Lesion,"
    "Lung Opacity,No Finding,Pleural Effusion,Pleural Other,Pneumonia,Pneumothorax,Support Devices"
)
MIMIC_METADATA = (
    "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns,StudyDate,StudyTime,"
    "ProcedureCodeSequence_CodeMeaning,ViewCodeSequence_CodeMeaning,PatientOrientationCodeSequence_CodeMeaning"
)


def picture(path, size=32):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (size, size), hash(path.name) % 200).save(path)


def lines(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join(rows) + "\n"
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)


def read(name, root, **policies):
    left_out = Counter()
    return {r.image.name: r for r in READERS[name](root, left_out, **policies)}, left_out


# ---- ZhangLab


@pytest.mark.parametrize("inner", ["", "chest_xray", "chest_xray/chest_xray"])
def test_zhanglab_as_published(tmp_path, inner):
    base = tmp_path / inner if inner else tmp_path
    picture(base / "train/NORMAL/IM-0115-0001.jpeg")
    picture(base / "train/PNEUMONIA/person1_bacteria_1.jpeg")
    picture(base / "train/PNEUMONIA/person1_bacteria_2.jpeg")
    picture(base / "test/NORMAL/NORMAL2-IM-0381-0001.jpeg")
    picture(base / "test/PNEUMONIA/person1_virus_6.jpeg")
    picture(base / "val/NORMAL/NORMAL2-IM-1427-0001.jpeg")
    picture(base / "val/PNEUMONIA/person1946_bacteria_4874.jpeg")
    (tmp_path / "__MACOSX" / "train").mkdir(parents=True)
    found, left_out = read("zhanglab", tmp_path)
    assert {n: (r.findings, r.patient, r.part) for n, r in found.items()} == {
        "IM-0115-0001.jpeg": ((), "IM-0115", "training"),
        "person1_bacteria_1.jpeg": (("bacteria",), "person1_bacteria", "training"),
        "person1_bacteria_2.jpeg": (("bacteria",), "person1_bacteria", "training"),
        "NORMAL2-IM-0381-0001.jpeg": ((), "NORMAL2-IM-0381", "test"),
        "person1_virus_6.jpeg": (("virus",), "person1_virus", "test"),
        # 8 and 8 of the training images, which Kaggle's copy has in a part of their own
        "NORMAL2-IM-1427-0001.jpeg": ((), "NORMAL2-IM-1427", "training"),
        "person1946_bacteria_4874.jpeg": (("bacteria",), "person1946_bacteria", "training"),
    }
    assert not left_out


def test_zhanglab_gives_its_official_split_by_one_command(tmp_path, capsys):
    """Kaggle's copy: what `protocol --datasets zhanglab=zhanglab.json` then compares is the published split."""
    base = tmp_path / "chest_xray"
    for number in range(6):
        picture(base / f"train/NORMAL/IM-{115 + number:04}-0001.jpeg")
        picture(base / f"train/PNEUMONIA/person{number}_{'bacteria' if number % 2 else 'virus'}_{number}.jpeg")
    picture(base / "train/PNEUMONIA/person900_virus_7.jpeg")
    picture(base / "val/NORMAL/NORMAL2-IM-1427-0001.jpeg")
    picture(base / "val/PNEUMONIA/person1946_bacteria_4874.jpeg")
    for number in range(3):
        picture(base / f"test/NORMAL/NORMAL2-IM-{number:04}-0001.jpeg")
        picture(base / f"test/PNEUMONIA/person{900 + number}_virus_{number}.jpeg")
    (tmp_path / "chest_xray" / "chest_xray" / "train").mkdir(parents=True)  # the nested copy
    main(["datalist", "zhanglab", str(tmp_path), "--output", str(tmp_path / "zhanglab.json")])
    out = capsys.readouterr().out
    assert "training: 14 images of 14 patients (4 bacteria, 7 normal, 3 virus)" in out
    assert "test: 6 images of 6 patients (3 normal, 3 virus)" in out
    assert "left out: 1 (patient is in the test part)" in out  # person900_virus
    parts = load_datalist(tmp_path / "zhanglab.json")
    assert {part: len(items) for part, items in parts.items()} == {"training": 14, "test": 6}
    patients = {part: {item["patient"] for item in items} for part, items in parts.items()}
    assert not patients["training"] & patients["test"]


def test_another_layout_of_zhanglabs_val_is_refused(tmp_path):
    picture(tmp_path / "train/NORMAL/IM-0115-0001.jpeg")
    picture(tmp_path / "test/NORMAL/IM-0001-0001.jpeg")
    picture(tmp_path / "val/IM-0116-0001.jpeg")
    with pytest.raises(DatalistError, match="val must hold the folders NORMAL and PNEUMONIA"):
        read("zhanglab", tmp_path)


def test_zhanglab_repacked(tmp_path):
    names = {
        "train/normal/NORMAL-28501-0001.jpeg": (0, "normal"),
        "train/abnormal/BACTERIA-7422-0001.jpeg": (1, "bacteria"),
        "train/abnormal/VIRUS-11-0001.jpeg": (1, "abnormal"),
        "test/abnormal/BACTERIA-40699-0001.jpeg": (1, "bacteria"),
    }
    for part in ("train", "test"):
        rows = [
            json.dumps({"filename": name, "label": label, "clsname": kind})
            for name, (label, kind) in names.items()
            if name.startswith(part)
        ]
        lines(tmp_path / "samples" / f"{part}.json", *rows)
    for name in names:
        picture(tmp_path / "images" / name)
    found, _ = read("zhanglab", tmp_path)
    assert found["VIRUS-11-0001.jpeg"].findings == ("virus",)
    assert found["BACTERIA-7422-0001.jpeg"].patient == "BACTERIA-7422"
    assert found["BACTERIA-40699-0001.jpeg"].part == "test"
    assert found["NORMAL-28501-0001.jpeg"].findings == ()


# ---- CheXpert


def chexpert(root):
    def row(number, view, **labels):
        names = CHEXPERT.split(",")[5:]
        cells = [str(labels.get(name.replace(" ", ""), "")) for name in names]
        path = f"CheXpert-v1.0-small/train/patient{number:05d}/study1/view1_{view.lower()}.jpg"
        picture(root / "CheXpert-v1.0-small" / path.partition("/")[2])
        return ",".join([path, "Female", "68", view, "AP" if view == "Frontal" else "", *cells])

    table = [
        row(1, "Frontal", NoFinding="1.0", SupportDevices="1.0"),
        row(2, "Lateral", NoFinding="1.0"),
        row(3, "Frontal", Edema="1.0", Cardiomegaly="0.0"),
        row(4, "Frontal", Edema="-1.0", NoFinding="1.0"),
        row(5, "Frontal", SupportDevices="1.0"),
        row(6, "Frontal", Pneumonia="-1.0", Fracture="1.0"),
    ]
    lines(root / "CheXpert-v1.0-small" / "train.csv", CHEXPERT, *table)
    return root / "CheXpert-v1.0-small"


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("exclude", {"patient00001": (), "patient00003": ("Edema",)}),
        (
            "negative",
            {"patient00001": (), "patient00003": ("Edema",), "patient00004": (), "patient00006": ("Fracture",)},
        ),
        (
            "positive",
            {
                "patient00001": (),
                "patient00003": ("Edema",),
                "patient00004": ("Edema",),
                "patient00006": ("Pneumonia", "Fracture"),
            },
        ),
    ],
)
def test_chexpert_policies(tmp_path, policy, expected):
    left_out = Counter()
    records = READERS["chexpert"](chexpert(tmp_path), left_out, uncertain=policy)
    assert {r.patient: r.findings for r in records} == expected
    assert all(r.image.is_file() for r in records)
    assert records[0].description == {"sex": "Female", "age": "68", "view": "AP"}
    assert left_out["lateral view"] == 1
    assert left_out["neither a finding nor No Finding"] == 1
    assert left_out["uncertain finding"] == (2 if policy == "exclude" else 0)


def test_chexpert_needs_its_columns(tmp_path):
    lines(tmp_path / "train.csv", "Path,Sex", "a,b")
    with pytest.raises(DatalistError, match="has no column Frontal/Lateral"):
        read("chexpert", tmp_path)


# ---- NIH


def nih(root):
    rows = [
        ("00000001_000.png", "Cardiomegaly|Emphysema", "1", "PA"),
        ("00000002_000.png", "No Finding", "2", "PA"),
        ("00000003_000.png", "Infiltration", "3", "AP"),
        ("00000003_001.png", "No Finding", "3", "PA"),
        ("00000004_000.png", "No Finding", "4", "PA"),
    ]
    table = [f"{name},{labels},0,{who},58,M,{view},2682,2749,0.143,0.143," for name, labels, who, view in rows]
    lines(root / "Data_Entry_2017.csv", NIH, *table)
    for number, (name, *_) in enumerate(rows):
        picture(root / f"images_{number % 2 + 1:03d}" / "images" / name, 64)
    lines(root / "train_val_list.txt", "00000001_000.png", "00000002_000.png")
    lines(root / "test_list.txt", "00000003_000.png", "00000003_001.png", "00000004_000.png")
    lines(
        root / "BBox_List_2017.csv",
        "Image Index,Finding Label,Bbox [x,y,w,h],,,",
        "00000003_000.png,Infiltrate,10.5,20.0,8.0,16.0,,,",
        "00000003_000.png,Infiltrate,40.0,4.0,10.0,10.0,,,",
    )


def test_nih_with_its_lists_and_boxes(tmp_path):
    nih(tmp_path)
    found, _ = read("nih", tmp_path)
    assert found["00000001_000.png"].findings == ("Cardiomegaly", "Emphysema")
    assert found["00000001_000.png"].part == "training"
    assert found["00000003_000.png"].boxes == ((10.5, 20.0, 8.0, 16.0), (40.0, 4.0, 10.0, 10.0))
    assert found["00000003_001.png"].patient == "3"
    assert found["00000003_000.png"].description == {"sex": "M", "age": "58", "view": "AP"}
    assert read_boxes(tmp_path / "BBox_List_2017.csv")["00000003_000.png"][0][0] == "Infiltration"
    only, left_out = read("nih", tmp_path, view="PA")
    assert "00000003_000.png" not in only
    assert left_out["view is not PA"] == 1


def test_nih_boxes_become_masks_that_evaluation_reads(tmp_path):
    nih(tmp_path)
    lines(
        tmp_path / "BBox_List_2017.csv",
        "Image Index,Finding Label,Bbox [x,y,w,h],,,",
        "00000003_000.png,Infiltrate,160.0,320.0,128.0,256.0,,,",
        "00000003_000.png,Infiltrate,640.0,64.0,160.0,160.0,,,",
    )
    text = make_datalist("nih", tmp_path, tmp_path / "out" / "list.json", Limits(boxed=True))
    assert "lesion boxes: 2 on 1 test images" in text
    datalist = load_datalist(tmp_path / "out" / "list.json")
    (ill,) = [item for item in datalist["test"] if item["label"]]
    assert (ill["findings"], ill["sex"], ill["age"], ill["view"]) == (["Infiltration"], "M", "58", "AP")
    assert not any("findings" in item for item in datalist["test"] if not item["label"])
    mask = np.asarray(Image.open(ill["mask"]))
    expected = np.zeros((64, 64), np.uint8)  # a copy of 64 pixels; the boxes are in pixels of the 1,024 of the original
    expected[20:36, 10:18] = 255
    expected[4:14, 40:50] = 255
    assert np.array_equal(mask, expected)


def test_one_list_alone_is_refused(tmp_path):
    nih(tmp_path)
    (tmp_path / "test_list.txt").unlink()
    with pytest.raises(DatalistError, match="only one of"):
        read("nih", tmp_path)


# ---- RSNA


def rsna(root, mapping=True):
    lines(
        root / "stage_2_train_labels.csv",
        "patientId,x,y,width,height,Target",
        "a,,,,,0",
        "b,264.0,152.0,213.0,379.0,1",
        "b,562.0,152.0,256.0,453.0,1",
        "c,,,,,0",
    )
    lines(
        root / "stage_2_detailed_class_info.csv",
        "patientId,class",
        "a,Normal",
        "b,Lung Opacity",
        "b,Lung Opacity",
        "c,No Lung Opacity / Not Normal",
    )
    if mapping:
        entries = [{"subset_img_id": n, "img_id": f"0000000{i // 2}_00{i}.png"} for i, n in enumerate("abc")]
        (root / "pneumonia-challenge-dataset-mappings_2018.json").write_text(json.dumps(entries))


def test_rsna(tmp_path):
    rsna(tmp_path)
    found, left_out = read("rsna", tmp_path)
    assert set(found) == {"a.dcm", "b.dcm"}
    assert found["b.dcm"].boxes == ((264.0, 152.0, 213.0, 379.0), (562.0, 152.0, 256.0, 453.0))
    assert found["a.dcm"].patient == found["b.dcm"].patient == "00000000"
    assert left_out["neither normal nor lung opacity"] == 1
    assert read("rsna", tmp_path, other="include")[0]["c.dcm"].findings == ("Not Normal",)


def test_rsna_names_a_row_without_its_box(tmp_path):
    rsna(tmp_path)
    lines(tmp_path / "stage_2_train_labels.csv", "patientId,x,y,width,height,Target", "b,,152.0,213.0,379.0,1")
    with pytest.raises(DatalistError, match="b has Target 1 without a box"):
        read("rsna", tmp_path)


def test_rsna_without_the_mapping_says_so(tmp_path):
    rsna(tmp_path, mapping=False)
    found, left_out = read("rsna", tmp_path)
    assert found["a.dcm"].patient != found["b.dcm"].patient
    assert any("mapping" in reason for reason in left_out)


# ---- VinDr-CXR


def vindr(root):
    train = [
        "n,No finding,R1,,,,",
        "n,No finding,R2,,,,",
        "one,Nodule/Mass,R1,10,20,30,60",
        "one,No finding,R2,,,,",
        "two,Pleural effusion,R1,1.5,2.5,11.5,22.5",
        "two,Pleural effusion,R2,2,3,12,23",
        "two,Pleural effusion,R2,2,3,12,23",
    ]
    header = "image_id,class_name,rad_id,x_min,y_min,x_max,y_max"
    lines(root / "annotations" / "annotations_train.csv", header, *train)
    test = ["t,Cardiomegaly,10,10,20,20", "u,No finding,,,,"]
    lines(root / "annotations" / "annotations_test.csv", header.replace(",rad_id", ""), *test)
    for part, names in (("train", ("n", "one", "two")), ("test", ("t", "u"))):
        for name in names:
            picture(root / part / f"{name}.png")


def test_vindr_needs_readers_who_agree(tmp_path):
    vindr(tmp_path)
    found, left_out = read("vindr", tmp_path)
    assert {n: r.findings for n, r in found.items()} == {
        "n.png": (),
        "two.png": ("Pleural effusion",),
        "t.png": ("Cardiomegaly",),
        "u.png": (),
    }
    assert found["two.png"].boxes[0] == (1.5, 2.5, 10.0, 20.0)
    assert left_out["findings of too few readers"] == 1
    assert found["t.png"].part == "test"
    assert read("vindr", tmp_path, readers=1)[0]["one.png"].findings == ("Nodule/Mass",)


def test_vindr_diagnoses_without_a_box_are_not_normal(tmp_path):
    vindr(tmp_path)
    header = "image_id,rad_id,Nodule/Mass,Pleural effusion,Cardiomegaly,Tuberculosis,No finding"
    labels = ["n,R1,0,0,0,0,1", "n,R2,0,0,0,1,0", "one,R1,1,0,0,0,0", "one,R2,0,0,0,0,1", "two,R1,0,1,0,0,0"]
    lines(tmp_path / "annotations" / "image_labels_train.csv", header, *labels)
    test = ["t,0,0,1,0,0", "u,0,0,0,0,1"]
    lines(tmp_path / "annotations" / "image_labels_test.csv", header.replace("rad_id,", ""), *test)
    found, left_out = read("vindr", tmp_path)
    assert set(found) == {"two.png", "t.png", "u.png"}
    assert left_out["diagnosis of the whole image without a box"] == 1


# ---- MIMIC


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_mimic(tmp_path, suffix):
    stem = "mimic-cxr-2.0.0"
    label = dict.fromkeys(MIMIC_LABELS.split(",")[2:], "")

    def study(number, **values):
        return ",".join(["10000032", str(number), *{**label, **values}.values()])

    lines(
        tmp_path / f"{stem}-chexpert.csv{suffix}",
        MIMIC_LABELS,
        study(1, **{"No Finding": "1.0"}),
        study(2, Edema="1.0"),
        study(3, Edema="-1.0"),
    )
    shots = [("a", 1, "PA", "train"), ("b", 1, "LATERAL", "train"), ("c", 2, "AP", "test"), ("d", 3, "AP", "train")]
    lines(
        tmp_path / f"{stem}-metadata.csv{suffix}",
        MIMIC_METADATA,
        *(f"{n},10000032,{s},CHEST,{v},3056,2544,21800506,213014.531,,," for n, s, v, _ in shots),
    )
    lines(
        tmp_path / f"{stem}-split.csv{suffix}",
        "dicom_id,study_id,subject_id,split",
        *(f"{n},{s},10000032,{p}" for n, s, _, p in shots),
    )
    found, left_out = read("mimic", tmp_path)
    assert set(found) == {"a.jpg", "c.jpg"}
    assert found["a.jpg"].image == tmp_path / "files/p10/p10000032/s1/a.jpg"
    assert (found["c.jpg"].part, found["c.jpg"].findings, found["c.jpg"].patient) == ("test", ("Edema",), "10000032")
    assert left_out["not a frontal view"] == left_out["uncertain finding"] == 1


# ---- what they share


def many(part=None):
    return [
        Record(tmp, ("Edema",) if n % 3 else (), f"p{n // 4}", part and ("test" if n % 7 == 0 else "training"))
        for n, tmp in ((n, __import__("pathlib").Path(f"/images/{n:03d}.png")) for n in range(200))
    ]


@pytest.mark.parametrize("part", [None, "own"])
def test_no_patient_is_on_both_sides(part):
    datalist = assemble(many(part))
    sides = [{item["patient"] for item in items} for items in datalist.parts.values()]
    assert not sides[0] & sides[1]
    assert all(sides)
    if part:  # the collection's own test part is kept whole
        assert len(datalist.parts["test"]) == 29
        assert datalist.left_out["patient is in the test part"] > 0


def test_draws_repeat_and_follow_the_seed():
    limits = Limits(train_normal=10, train_abnormal=5, test_normal=4, test_abnormal=4)
    first, again = assemble(many(), limits), assemble(many()[::-1], limits)
    other = assemble(many(), Limits(10, 5, 4, 4, seed=1))
    assert first.parts == again.parts
    assert first.parts != other.parts
    assert Counter(i["class"] for i in first.parts["training"]) == {"normal": 10, "Edema": 5}
    assert Counter(i["label"] for i in first.parts["test"]) == {0: 4, 1: 4}


def test_several_findings_go_to_the_rarest_class():
    from pathlib import Path

    records = [Record(Path(f"{n}.png"), ("Edema",), f"e{n}", "training") for n in range(3)]
    records += [
        Record(Path("both.png"), ("Edema", "Fracture"), "x", "training"),
        Record(Path("n.png"), (), "n", "training"),
    ]
    (item,) = [i for i in assemble(records).parts["training"] if i["image"] == "both.png"]
    assert item["class"] == "Fracture"


def test_missing_images_stop_the_command_unless_allowed(tmp_path):
    nih(tmp_path)
    next(tmp_path.rglob("00000002_000.png")).unlink()
    with pytest.raises(DatalistError, match="1 of 5 images"):
        make_datalist("nih", tmp_path, tmp_path / "list.json")
    with pytest.raises(DatalistError, match="no normal training image"):  # it was the only one
        make_datalist("nih", tmp_path, tmp_path / "list.json", skip_missing=True)


def test_the_command(tmp_path, capsys):
    nih(tmp_path)
    main(["datalist", "nih", str(tmp_path), "--output", str(tmp_path / "list.json")])
    assert "training: 2 images of 2 patients (1 Cardiomegaly, 1 normal)" in capsys.readouterr().out
    assert len(load_datalist(tmp_path / "list.json")["test"]) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nih", "nowhere"], "is not a folder"),
        (["nih", ".", "--uncertain", "positive"], "nih has no option uncertain"),
        (["chexpert", "."], "train.csv is missing"),
        (["zhanglab", "."], "holds neither"),
        (["nih", ".", "--train_normal", "0"], "at least 1"),
    ],
)
def test_what_is_refused_in_one_sentence(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["datalist", *arguments, "--output", "list.json"])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_a_written_datalist_is_one_that_training_takes(tmp_path):
    nih(tmp_path)
    from monai_wscxr.data.collections.nih import read_nih

    write_datalist(tmp_path / "x.json", assemble(read_nih(tmp_path, Counter())))
    datalist = load_datalist(tmp_path / "x.json")
    assert {i["class"] for i in datalist["training"]} == {"normal", "Cardiomegaly"}
