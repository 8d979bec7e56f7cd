"""What the tests of the node and the service share: a small model and phantoms."""

import pytest
import torch

from tests.helpers.dicom_peers import phantom_levels


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """Folder of a small model that is complete, with a reference for drift."""
    from monai_wscxr.data.transforms import Preprocessing
    from monai_wscxr.features.backbones import create_backbone
    from monai_wscxr.features.patches import PatchFeatures
    from monai_wscxr.model.artefact import save_model
    from monai_wscxr.model.calibration import calibrate
    from monai_wscxr.model.drift import DriftReference
    from monai_wscxr.model.networks import Discriminator, WSCXRNet

    folder = tmp_path_factory.mktemp("model")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        features = PatchFeatures(create_backbone("timm/test_resnet", ("3",), weights="none"), 3, None, "finest")
        network = WSCXRNet(features, Discriminator(features.channels, 2, 8, True)).eval()
        reference = DriftReference.fit(torch.randn(40, features.channels), torch.randn(12, features.channels))
    preprocessing = Preprocessing(64, features.backbone.mean, features.backbone.std)
    calibration = calibrate([0.1 * i for i in range(19)], [3.0])
    save_model(folder, network, preprocessing, calibration, 2.0, {"k": 8}, {"normal_images": 20}, drift=reference)
    return folder


@pytest.fixture(scope="session")
def levels(tmp_path_factory):
    """Grey levels of six phantoms, uint8 [64, 64]."""
    return phantom_levels(tmp_path_factory.mktemp("phantoms"), 6)
