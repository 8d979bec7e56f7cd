"""Pseudonyms of patients in an archive."""

import numpy as np
import pytest

from monai_wscxr.label.archive.folder import FolderStudies
from monai_wscxr.label.archive.patients import hashed_patient


@pytest.mark.parametrize("other", ["P007", " p7", "p007 "])
def test_spellings_of_a_patient_have_one_pseudonym(other):
    assert hashed_patient(other) == hashed_patient("P7")
    assert hashed_patient("P8") != hashed_patient("P7")


@pytest.mark.parametrize("number", ["", "  ", "anonymous", "N/A"])
def test_placeholders_name_no_patient(number):
    assert hashed_patient(number) is None


def test_the_folders_of_a_collection_name_the_patient(tmp_path):
    from PIL import Image

    for study in (1, 2):
        folder = tmp_path / "studies" / "patient00001" / f"study{study}"
        folder.mkdir(parents=True)
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / "view1_frontal.jpg")
    studies = FolderStudies(tmp_path / "studies", tmp_path / "work")
    assert [studies.patient(image_id) for image_id in studies.ids()] == ["patient00001"] * 2
