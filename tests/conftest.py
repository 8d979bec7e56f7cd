"""What the tests share: a cache folder of their own, a small data set of phantoms and a small trained model."""

import logging
import os
import shutil
import tempfile
from pathlib import Path

# Before torch is imported: threads that wait for one another must sleep, or shared cores make the suite ten times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch

SIZE = 64

# Files whose tests wait for other programs for more than ten seconds, the longest first. They begin first, so that processes
# that share the suite end together; `-m "not slow"` leaves them out.
SLOW = (
    "system/test_processes.py",
    "prediction/test_run.py",
    "bundle/test_training.py",
    "label/server/test_server.py",
    "label/archive/test_orthanc.py",
    "bundle/test_robustness.py",
    "fuzz/test_killing_labels.py",
    "bundle/test_survival.py",
    "planning/test_plan.py",
    "fuzz/test_killing_commands.py",
    "fuzz/test_requests.py",
    "fuzz/test_structured.py",
    "fuzz/test_killing.py",
    "fuzz/test_node_kills.py",
    "fuzz/test_fuzz.py",
    "bundle/test_results.py",
)


def pytest_collection_modifyitems(items):
    """Mark the slow files and put them first, in their order."""
    folder = Path(__file__).parent
    order = {folder / name: place for place, name in enumerate(SLOW)}
    for item in items:
        if item.path in order:
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: order.get(item.path, len(order)))


def pytest_configure(config):
    """No test, nor a program that it starts, may touch the user's feature cache."""
    folder = tempfile.mkdtemp(prefix="monai_wscxr-test-cache-")
    os.environ["MONAI_WSCXR_CACHE"] = folder
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


@pytest.fixture(autouse=True)
def same_log_handlers():
    """Restore the root logger after each test.

    A command called inside a test configures logging; its handler would go on writing to a stream that the test closed.
    """
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    for handler in [handler for handler in root.handlers if handler not in handlers]:
        root.removeHandler(handler)
    root.setLevel(level)


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory):
    """Folder of 32 phantoms: 20 normal and 4 abnormal to train, 4 and 4 to test, with masks."""
    from monai_wscxr.data.phantom import write_phantoms

    folder = tmp_path_factory.mktemp("phantoms") / "data"
    write_phantoms(folder, 20, 1, 4, 1, size=SIZE, progress=False)
    return folder


@pytest.fixture(scope="session")
def normal_items(phantoms):
    """Datalist items of the 20 normal training phantoms."""
    return [{"image": str(path)} for path in sorted(phantoms.glob("train/normal/*.png"))]


@pytest.fixture
def make_features():
    """Builds a small patch feature network, the same on every call: 4 x 4 patches of a 64-pixel image."""

    def make(layers=("3",), neighbourhood=3, aligned_channels=None, seed=0, align_to="finest"):
        from monai_wscxr.features.backbones import create_backbone
        from monai_wscxr.features.patches import PatchFeatures

        with torch.random.fork_rng():
            torch.manual_seed(seed)
            backbone = create_backbone("timm/test_resnet", layers, weights="none")
        return PatchFeatures(backbone, neighbourhood, aligned_channels, align_to)

    return make


@pytest.fixture
def make_model(make_features):
    """Writes an untrained but complete model to a folder and returns its network."""

    def make(folder, depth=2, bias=True, layers=("3",), seed=0, align_to="finest", backbone=None):
        from monai_wscxr.data.preprocessing import Preprocessing
        from monai_wscxr.features.patches import PatchFeatures
        from monai_wscxr.model.artefact import save_model
        from monai_wscxr.model.calibration import calibrate
        from monai_wscxr.model.networks import Discriminator, WSCXRNet

        features = make_features(layers, align_to=align_to) if backbone is None else PatchFeatures(backbone)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = WSCXRNet(features, Discriminator(features.channels, depth, 8, bias)).eval()
        preprocessing = Preprocessing(SIZE, features.backbone.mean, features.backbone.std)
        calibration = calibrate([0.1 * i for i in range(19)], [3.0])
        folder.mkdir(parents=True, exist_ok=True)
        save_model(folder, network, preprocessing, calibration, 2.0, {"k": 8}, {"normal_images": 20})
        return network

    return make
