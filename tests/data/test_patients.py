"""Which images are of one patient: datalist, names of collections, DICOM headers, and spellings."""

import logging
import os
import zlib
from pathlib import Path

import numpy as np
import pytest

from monai_wscxr.data import patients
from monai_wscxr.data.datalist import DatalistError, load_datalist
from monai_wscxr.data.patients import Mention, header_patients, identify, patient_key
from monai_wscxr.data.radiograph import head
from monai_wscxr.data.split import training_split
from tests.helpers.radiograph_files import WINDOW, dicom


def picture(path, number, **header):
    """Write a DICOM radiograph whose pixels depend on `number`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(number).integers(0, 255, (24, 24)).astype(np.uint8)
    dicom(path, values, **{**WINDOW, **header})
    return path


def names(*stated, folder="x"):
    return [Mention(f"{folder}/{number}.png", name, f"{number}.png") for number, name in enumerate(stated)]


@pytest.mark.parametrize(
    "spellings",
    [
        *(("001", "1", "1.0", " 1 ", "1.00"), ("P1", "p1", " P1 ", "P01", "P001"), ("SMITH 7", "Smith  7", "smith 07")),
        *(("\uff11\uff12", "12"), ("10000032.0", "10000032"), ("A-003-b", "a-3-B")),
    ],
)
def test_spellings_of_one_patient(spellings, caplog):
    assert len(set(map(patient_key, spellings))) == 1
    found = identify(names(*spellings), "list.csv")
    assert found == [min(s.strip() for s in spellings)] * len(spellings)
    assert "1 patient(s) are spelled in several ways" in caplog.text
    assert sum(f"{number}.png" in caplog.text for number in range(len(spellings))) == 2


@pytest.mark.parametrize(
    "different", [("1", "10", "100", "0"), ("1.5", "15", "1.05"), ("P1", "P10", "Q1"), ("IM-0115", "NORMAL2-IM-0115")]
)
def test_different_patients_stay_apart(different, caplog):
    assert identify(names(*different), "list.csv") == list(different)
    assert "spelled" not in caplog.text


def test_outer_blanks_are_no_guess(caplog):
    assert identify(names("P1", " P1 "), "x") == ["P1", "P1"]
    assert not caplog.records


def test_placeholders_in_a_table_are_no_patient(caplog):
    assert identify(names("nan", "Unknown", "n/a", "", None), "x") == [f"{n}.png" for n in range(5)]
    assert "3 image(s) have a placeholder" in caplog.text


def test_a_file_name_and_a_table_name_one_patient():
    mentions = [
        Mention("i/00003896_006.png", None, "a"),
        Mention("i/x.png", "3896", "b"),
        Mention("i/y.png", "3897", "c"),
    ]
    assert identify(mentions, "x") == ["00003896", "00003896", "3897"]


def test_headers_name_patients_in_digests_only(tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    files = [
        picture(tmp_path / "a.dcm", 1, PatientID="MRN-0042"),
        picture(tmp_path / "b", 2, PatientID=" mrn-42 "),
        picture(tmp_path / "c.png", 3, PatientID="MRN-0043"),  # the content decides, not the name
        picture(tmp_path / "d.dcm", 4, PatientID="ANONYMOUS"),
        picture(tmp_path / "e.dcm", 5, PatientID=""),
    ]
    found = identify([Mention(str(path), None, path.name) for path in files], "x")
    assert found[0] == found[1] != found[2]
    assert found[0].startswith("patient-")
    assert len({*found}) == 4
    assert found[3:] == ["d.dcm", "e.dcm"]
    assert not any("mrn" in text.lower() for text in (caplog.text, *found))
    stated = identify([Mention(str(files[0]), None, "a"), Mention("other.png", "mrn-42", "b")], "x")
    assert stated == ["mrn-42", "mrn-42"]


def test_deflated_and_bare_headers(tmp_path):
    number = b"\x10\x00\x20\x00LO\x04\x00P007"
    meta = b"\x02\x00\x10\x00UI\x16\x001.2.840.10008.1.2.1.99"
    start = b"\0" * 128 + b"DICM\x02\x00\x00\x00UL\x04\x00" + len(meta).to_bytes(4, "little") + meta
    packer = zlib.compressobj(wbits=-15)
    (tmp_path / "deflated").write_bytes(start + packer.compress(number) + packer.flush())
    (tmp_path / "bare").write_bytes(b"\x08\x00\x05\x00CS\x0a\x00ISO_IR 100" + number)
    packer = zlib.compressobj(wbits=-15)
    bomb = packer.compress(b"\x08\x00\x01\x00UN\0\0\xff\xff\xff\x7f" + bytes(2**26)) + packer.flush()
    (tmp_path / "bomb").write_bytes(start + bomb)
    (tmp_path / "torn").write_bytes(start[:150])
    found = header_patients([str(tmp_path / name) for name in ("deflated", "bare", "bomb", "torn", "missing")])
    assert {Path(file).name for file in found} == {"deflated", "bare"}
    assert len(set(found.values())) == 1


def test_headers_are_read_once_and_no_further_than_needed(tmp_path, monkeypatch):
    file = picture(tmp_path / "a.dcm", 1, PatientID="7")
    with open(file, "ab") as opened:
        opened.truncate(2**28)  # a sparse file of 256 MiB
    sizes = []
    parse = head._parse
    monkeypatch.setattr(head, "_parse", lambda content, tags: sizes.append(len(content)) or parse(content, tags))
    first = header_patients([str(file), str(file)])
    assert header_patients([str(file)]) == first
    assert len(first) == 1
    assert sizes == [132 + 2**20]
    os.mkfifo(tmp_path / "pipe.dcm")
    assert header_patients([str(tmp_path / "pipe.dcm")]) == {}


def test_progress_of_many_headers(tmp_path, monkeypatch, capsys):
    for number in range(3):
        picture(tmp_path / f"{number}.dcm", number, PatientID=str(number))
    files = [str(path) for path in tmp_path.iterdir()]
    header_patients(files[:1])
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(patients, "_SHOWN_FROM", 2)
    header_patients(files)
    assert capsys.readouterr().err == "patients: 3 of 3 images, 00:00\n"
    header_patients(files)  # known by now, so nothing takes time
    assert capsys.readouterr().err == ""


# ---- training stops when training and test share patients


def dataset(root, layout, same):
    """Write 4 normal, 2 abnormal and 3 test images; with `same`, the first test image is of a patient in training."""
    folders = [*["train/normal"] * 4, *["train/abnormal"] * 2, "test/normal", *["test/abnormal"] * 2]
    person = [*range(1, 7), 1 if same else 7, 8, 9]
    files, stated = [], [""] * 9
    for number, (folder, who) in enumerate(zip(folders, person, strict=True)):
        names_of = {
            "dicom": f"{number}.dcm",
            "dicom without suffix": f"1.2.840.{number}",
            "nih": f"{who:08d}_{number:03d}.png",
            "chexpert": f"patient{who:05d}/study{number}/view1_frontal.jpg",
            "mimic": f"p{10000000 + who}/s{50000000 + number}/{number}.jpg",
            "zhanglab": f"person{who}_virus_{number}.jpeg",
            "column": f"{number}.png",
        }
        header = {"PatientID": f"{'0' * (number % 3)}{who}"} if layout.startswith("dicom") else {}
        files.append(picture(root / folder / names_of[layout], number, **header))
        if layout == "column":
            stated[number] = f"{who}.0" if number % 2 else f"{who:03d}"
    return files, folders, stated


LAYOUTS = ["dicom", "dicom without suffix", "nih", "chexpert", "mimic", "zhanglab", "column"]


@pytest.mark.parametrize("as_table", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_shared_patients_stop_a_training(tmp_path, layout, as_table):
    if layout == "column":
        as_table = True
    for same in (False, True):
        root = tmp_path / str(same)
        files, folders, stated = dataset(root, layout, same)
        source = root
        if as_table:
            rows = [
                f"{file.relative_to(root)},{folder.partition('/')[0]},{int('abnormal' in folder)},{who}"
                for file, folder, who in zip(files, folders, stated, strict=True)
            ]
            (root / "list.csv").write_text("\n".join(["image,split,label,patient", *rows]))
            source = root / "list.csv"
        if same:
            with pytest.raises(DatalistError, match=r"1 patient\(s\) have images in training and in test"):
                training_split(source, 1)
            assert len(training_split(source, 1, allow_overlap=True).findings) == 1
        else:
            assert training_split(source, 1).findings == []


def test_images_of_one_patient_by_header_are_held_out_together(tmp_path):
    for number in range(12):
        picture(tmp_path / f"train/normal/{number}.dcm", number, PatientID=f"P{number // 3}")
    picture(tmp_path / "train/abnormal/a.dcm", 99, PatientID="Q")
    split = training_split(tmp_path, 1, holdout=0.3)
    assert len(split.held_out) == 3
    assert len({item["patient"] for item in split.held_out}) == 1
    assert len(load_datalist(tmp_path)["training"]) == 13


def test_headers_that_contradict_the_datalist_are_named(tmp_path, caplog):
    files = [picture(tmp_path / f"{n}.dcm", n, PatientID=one) for n, one in enumerate(("MRN1", "MRN1", "MRN2", "MRN3"))]
    stated = ["a", "b", "c", "c"]  # a table may join patients, and must not part one
    mentions = [Mention(str(file), name, file.name) for file, name in zip(files, stated, strict=True)]
    assert identify(mentions, "table.csv") == stated
    assert "table.csv: 1 patient(s) by DICOM header have several names" in caplog.text
    assert f"(first: {files[0]} and {files[1]})" in caplog.text
    assert "mrn" not in caplog.text.lower()


def test_headers_that_agree_or_hold_one_number_for_everybody_are_not_named(tmp_path, caplog):
    files = [picture(tmp_path / f"{n}.dcm", n, PatientID="TRIAL-7") for n in range(3)]
    identify([Mention(str(file), file.name, "x") for file in files], "x")
    files = [picture(tmp_path / f"n{n}.dcm", n, PatientID=f"N{n // 2}") for n in range(4)]
    identify([Mention(str(file), f"{n // 2}", "x") for n, file in enumerate(files)], "x")
    assert "several names" not in caplog.text
