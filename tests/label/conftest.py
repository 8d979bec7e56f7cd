"""What the tests of the label server share."""

import shutil

import pytest
import timm
import torch


@pytest.fixture
def studies_folder(phantoms, tmp_path):
    """Folder of 4 normal and 4 abnormal phantoms, in subfolders."""
    folder = tmp_path / "studies"
    shutil.copytree(phantoms / "test", folder)
    return folder


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """Random weights of the small backbone timm/test_resnet: the same for every model, and nothing is downloaded."""
    file = tmp_path_factory.mktemp("weights") / "weights.pt"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save(timm.create_model("test_resnet", pretrained=False).state_dict(), file)
    return file
