"""Studies in a folder, the file of their labels, and known normal images."""

import shutil

import pytest

from monai_wscxr.errors import InputError
from monai_wscxr.label.archive.folder import FolderStudies, LabelFile, known_normals
from monai_wscxr.label.archive.studies import Label, UnknownImage


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
