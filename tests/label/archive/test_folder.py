"""Studies in a folder, the file of their labels, and known normal images."""

import errno
import hashlib
import json
import os
import resource
import shutil
import socket
import stat
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from monai_wscxr.errors import InputError
from monai_wscxr.label.archive import folder as folder_module
from monai_wscxr.label.archive.folder import FolderStudies, LabelFile, known_normals
from monai_wscxr.label.archive.studies import Label, Refused, UnknownImage
from tests.helpers.radiograph_files import WINDOW, dicom


def test_labels_outlive_a_process_that_is_killed_in_the_middle_of_a_line(tmp_path):
    file = LabelFile(tmp_path / "labels.jsonl")
    file.put("a", "a.png", Label.checked(1, " nodule "))
    file.put("b", "b.png", Label.checked(0))
    file.put("a", "a.png", None)
    file.put("c", "c.png", Label.checked(1))
    with open(tmp_path / "labels.jsonl", "ab") as opened:
        opened.write(b'{"id": "d", "na')
    again = LabelFile(tmp_path / "labels.jsonl")
    assert again.labels() == {"b": Label(0), "c": Label(1, "abnormal")}
    assert again.damaged.read_bytes() == b'{"id": "d", "na\n'
    again.put("e", "e.png", Label.checked(None, None, True))
    assert list(LabelFile(tmp_path / "labels.jsonl").labels()) == ["b", "c", "e"]


def test_ids_name_nothing_outside_the_folder(studies_folder, tmp_path):
    outside = tmp_path / "secret.png"
    shutil.copy(next(studies_folder.rglob("*.png")), outside)
    (studies_folder / "link.png").symlink_to(outside)
    (studies_folder / "loop.png").symlink_to(studies_folder / "loop.png")
    (studies_folder / "folder").symlink_to(tmp_path, target_is_directory=True)
    (studies_folder / ".hidden.png").write_bytes(outside.read_bytes())
    inside = studies_folder / "inside.png"
    inside.symlink_to(next(studies_folder.glob("normal/*.png")))
    studies = FolderStudies(studies_folder, tmp_path / "kept")
    names = {studies.name(i) for i in studies.ids()}
    assert len(names) == 9
    assert "inside.png" in names
    assert studies.outside == 2
    for wrong in ("../secret.png", str(outside), "", ".."):
        with pytest.raises(UnknownImage):
            studies.file(wrong)
    image_id = next(i for i in studies.ids() if studies.name(i) == "inside.png")
    inside.unlink()
    inside.symlink_to(outside)  # after the search
    with pytest.raises(UnknownImage):
        studies.file(image_id)


def test_images_are_those_of_the_listing_in_the_order_of_their_paths(studies_folder, tmp_path):
    picture = next(studies_folder.rglob("*.png")).read_bytes()
    for name in ("z.PNG", "a/first.png", "1.2.840.5", "__MACOSX/x.png", "notes.txt", "DICOMDIR"):
        path = studies_folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"no image" if name == "notes.txt" else picture)
    studies = FolderStudies(studies_folder, tmp_path / "kept")
    names = [studies.name(i) for i in studies.ids()]
    assert names == sorted(names)
    assert len(names) == 11
    assert {"z.PNG", "a/first.png", "1.2.840.5"} < set(names)


def test_the_work_folder_is_not_searched(studies_folder, tmp_path):
    studies = FolderStudies(studies_folder, studies_folder / "work")
    image_id = studies.ids()[0]
    assert studies.keep_results(image_id, {"image": b"PNG"}) == ["image"]
    assert studies.results(image_id)["image"].read_bytes() == b"PNG"
    studies.refresh()
    assert len(studies.ids()) == 8
    assert len(FolderStudies(studies_folder, studies_folder).ids()) == 9  # as one folder, it is searched all the same


def test_known_normals_come_from_a_data_set_or_any_folder(phantoms, tmp_path):
    assert len(known_normals(phantoms)) == 20
    assert len(known_normals(phantoms / "train" / "normal")) == 20
    with pytest.raises(InputError, match="nothing"):
        known_normals(tmp_path / "nothing")


def line(image_id, label=1, name=None, image_class="nodule"):
    entry = {"id": image_id, "name": name or f"{image_id}.png"}
    return {
        **entry,
        "label": {"image_label": label, "class": image_class, "skipped": False},
        "time": "2026-01-01T00:00:00",
    }


@pytest.mark.parametrize("room", [0, 1, 60, 150])
@pytest.mark.parametrize("earlier", [0, 2])
def test_a_full_disk_in_the_middle_of_a_line_costs_that_label_alone(tmp_path, monkeypatch, room, earlier):
    """The first bytes of the line reach the file before the disk is full."""
    file = LabelFile(tmp_path / "labels.jsonl")
    for number in range(earlier):
        file.put(f"before{number}", "b.png", Label.checked(0))
    content = (tmp_path / "labels.jsonl").read_bytes() if earlier else b""
    write = os.write

    def until_full(descriptor, data):
        if not left:
            raise OSError(errno.ENOSPC, "No space left on device")
        part = bytes(data)[: left.pop()]
        if not part:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, part)

    left = [room]
    monkeypatch.setattr(os, "write", until_full)
    with pytest.raises(Refused, match="No space left on device") as error:
        file.put("lost", "l.png", Label.checked(1, "x" * 64))
    assert error.value.reason == "disk_full"
    assert "lost" not in file.labels()
    assert (tmp_path / "labels.jsonl").read_bytes() == content
    monkeypatch.setattr(os, "write", write)
    file.put("after", "a.png", Label.checked(1, "effusion"))
    again = LabelFile(tmp_path / "labels.jsonl")
    assert again.labels() == {**{f"before{n}": Label(0) for n in range(earlier)}, "after": Label(1, "effusion")}
    assert not again.damaged.exists()


def test_a_label_that_the_disk_does_not_confirm_is_not_acknowledged(tmp_path, monkeypatch):
    file = LabelFile(tmp_path / "labels.jsonl")
    file.put("a", "a.png", Label.checked(0))
    before = (tmp_path / "labels.jsonl").read_bytes()

    def fail(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(Refused) as error:
        file.put("a", "a.png", None)
    assert error.value.reason == "not_stored"
    assert str(tmp_path) not in str(error.value)
    assert file.labels() == {"a": Label(0)}
    assert (tmp_path / "labels.jsonl").read_bytes() == before


def test_a_limit_of_file_sizes_acts_like_a_full_disk(tmp_path):
    file = LabelFile(tmp_path / "labels.jsonl")
    file.put("a", "a.png", Label.checked(0))
    size = (tmp_path / "labels.jsonl").stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, hard))
    try:
        with pytest.raises(Refused):
            file.put("b", "b.png", Label.checked(1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "labels.jsonl").stat().st_size == size
    file.put("c", "c.png", Label.checked(1))
    assert list(LabelFile(tmp_path / "labels.jsonl").labels()) == ["a", "c"]


DAMAGED = {
    "no JSON": b"what is this",
    "half a line": b'{"id": "x", "name": "x.png", "label": {"image_la',
    "bytes that are no UTF-8": b'{"id": "\xff\xfe", "label": null}',
    "zeros": bytes(100),
    "deep nesting": b"[" * 100_000,
    "a list": b"[1, 2]",
    "no id": b'{"label": null}',
    "an id that is no text": b'{"id": 5, "label": null}',
    "no label": b'{"id": "x"}',
    "a class with a surrogate": json.dumps(line("x", image_class="\ud800")).encode(),
    "a class with a line break": json.dumps(line("x", image_class="a\nb")).encode(),
    "a class of 65 characters": json.dumps(line("x", image_class="y" * 65)).encode(),
    "a label that is no label": json.dumps(line("x", label=7)).encode(),
    "a label of the wrong type": b'{"id": "x", "label": [1]}',
    "a number too large": b'{"id": "x", "label": ' + b"9" * 5000 + b"}",
}


@pytest.mark.parametrize("bad", DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_line_is_set_aside_and_named_and_stops_nothing(tmp_path, bad, caplog):
    path = tmp_path / "labels.jsonl"
    good = [json.dumps(line(name)).encode() for name in ("a", "b")]
    path.write_bytes(good[0] + b"\n" + bad + b"\n" + good[1] + b"\n")
    file = LabelFile(path)
    assert list(file.labels()) == ["a", "b"]
    assert path.read_bytes() == good[0] + b"\n" + good[1] + b"\n"
    assert file.damaged.read_bytes() == bad + b"\n"
    assert "1 damaged lines were moved to" in caplog.text
    LabelFile(path)
    assert file.damaged.read_bytes() == bad + b"\n"


def test_a_label_that_an_earlier_version_glued_to_half_a_line_is_recovered(tmp_path):
    path = tmp_path / "labels.jsonl"
    path.write_bytes(b'{"id": "lost", "name": "l.p' + json.dumps(line("kept")).encode() + b"\n")
    file = LabelFile(path)
    assert file.labels() == {"kept": Label(1, "nodule")}
    assert file.damaged.read_bytes() == b'{"id": "lost", "name": "l.p\n'
    assert LabelFile(path).labels() == {"kept": Label(1, "nodule")}


def unkeyed(name):
    return hashlib.blake2b(os.fsencode(name), digest_size=8).hexdigest()


def test_ids_are_keyed_stay_over_restarts_and_differ_between_work_folders(studies_folder, tmp_path):
    first, again, other = (FolderStudies(studies_folder, tmp_path / name) for name in ("one", "one", "two"))
    assert first.ids() == again.ids()
    assert not set(first.ids()) & set(other.ids())
    assert not {unkeyed(first.name(i)) for i in first.ids()} & set(first.ids())
    assert stat.S_IMODE((tmp_path / "one/secret").stat().st_mode) == 0o600
    # what trains must not depend on the key
    assert [first.patient(i) for i in first.ids()] == [other.patient(i) for i in other.ids()]
    (tmp_path / "one/secret").write_bytes(b"short")
    with pytest.raises(InputError, match="damaged"):
        FolderStudies(studies_folder, tmp_path / "one")


def test_labels_and_results_under_ids_of_earlier_versions_are_found_again(studies_folder, tmp_path):
    odd = os.fsdecode(b"odd\xff.png")
    shutil.copy(next(studies_folder.rglob("*.png")), studies_folder / odd)
    names = sorted(str(p.relative_to(studies_folder)) for p in studies_folder.rglob("*.png"))
    work = tmp_path / "work"
    (work / "results" / unkeyed(names[0])).mkdir(parents=True)
    (work / "results" / unkeyed(names[0]) / "image.png").write_bytes(b"PNG")
    shown = [os.fsencode(name).decode("utf-8", "backslashreplace") for name in names]
    entries = [line(unkeyed(name), name=text) for name, text in zip(names, shown, strict=True)]
    del entries[1]["name"]
    entries += [line(unkeyed("away.png"), name="away.png")]
    (work / "labels.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    studies = FolderStudies(studies_folder, work)
    assert {studies.name(i) for i in studies.labels()} == set(shown)
    image_id = next(i for i in studies.ids() if studies.name(i) == shown[0])
    assert studies.results(image_id)["image"].read_bytes() == b"PNG"
    for i in studies.ids()[:3]:
        studies.put(i, None)
    again = FolderStudies(studies_folder, work)
    assert set(again.labels()) == set(again.ids()[3:])
    shutil.copy(next(studies_folder.rglob("*.png")), studies_folder / "away.png")
    again.refresh()
    assert "away.png" in {again.name(i) for i in again.labels()}
    # a lost key changes the ids, and the names still tell whose labels they are
    (work / "secret").unlink()
    renewed = FolderStudies(studies_folder, work)
    assert not set(renewed.ids()) & set(again.ids())
    assert {renewed.name(i) for i in renewed.labels()} == {again.name(i) for i in again.labels()}


def test_only_regular_files_are_images(studies_folder, tmp_path):
    os.mkfifo(studies_folder / "pipe.png")
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(studies_folder / "s.dcm"))
    (studies_folder / "directory.png").mkdir()
    (studies_folder / "linked.png").symlink_to(studies_folder / "pipe.png")
    studies = FolderStudies(studies_folder, tmp_path / "kept")
    listening.close()
    assert len(studies.ids()) == 8
    assert studies.irregular in (0, 3)  # 0 where the listing has left them out
    image_id = studies.ids()[0]
    path = studies.file(image_id)
    path.unlink()
    os.mkfifo(path)  # after the search
    with pytest.raises(UnknownImage):
        studies.file(image_id)


def test_known_normals_of_one_patient_are_one_patient(tmp_path):
    folder, levels = tmp_path / "normals", np.arange(48 * 48, dtype=np.uint16).reshape(48, 48)
    folder.mkdir()
    for number, patient in enumerate(("MRN-7", "mrn-7 ", "MRN-8")):
        dicom(folder / f"{number}.dcm", levels + number, PatientID=patient, **WINDOW)
    for name in ("00000001_000.png", "00000001_001.png", "x.png", "y.png"):
        Image.fromarray(levels.astype(np.uint8)).save(folder / name)
    items = {Path(item["image"]).name: item["patient"] for item in known_normals(folder)}
    assert items["0.dcm"] == items["1.dcm"] != items["2.dcm"]
    assert items["00000001_000.png"] == items["00000001_001.png"] == "00000001"
    assert items["x.png"] != items["y.png"]
    # an image of the archive is of the same patient
    archive = FolderStudies(folder, tmp_path / "kept")
    ids = {archive.name(image_id): image_id for image_id in archive.ids()}
    assert archive.patient(ids["0.dcm"]) == items["0.dcm"]


def test_a_file_that_a_full_disk_left_empty_is_still_new(tmp_path, monkeypatch):
    """The entry of the file reaches the disk with the first label that does."""
    file, synced = LabelFile(tmp_path / "labels.jsonl"), []
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
        with pytest.raises(
            Refused, match=r"\(No space left on device: .* kB are missing\); the earlier labels are intact"
        ):
            file.put("a", "a.png", Label.checked(0))
    monkeypatch.setattr(folder_module, "sync", synced.append)
    for _ in range(2):
        file.put("a", "a.png", Label.checked(0))
    assert synced == [tmp_path]
