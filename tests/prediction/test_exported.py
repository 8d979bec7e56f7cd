"""Exported models: the same results as with torch, in processes that have neither torch nor MONAI."""

import csv
import hashlib
import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from monai_wscxr.data.preprocessing import Preprocessing
from monai_wscxr.errors import InputError
from monai_wscxr.features.backbones import create_backbone
from monai_wscxr.features.patches import PatchFeatures
from monai_wscxr.model.artefact import save_model
from monai_wscxr.model.calibration import calibrate
from monai_wscxr.model.chest_check import ChestCheck
from monai_wscxr.model.drift import DriftReference
from monai_wscxr.model.local_map import LocalMap
from monai_wscxr.model.networks import Discriminator, WSCXRNet
from monai_wscxr.model.whitening import NormalWhitening
from monai_wscxr.prediction import exported
from monai_wscxr.prediction.export import export_model
from monai_wscxr.prediction.network import open_network
from monai_wscxr.prediction.options import Options
from monai_wscxr.prediction.run import predict
from tests.helpers.serving import Client, free_port
from tests.helpers.without_packages import FULL_ONLY, command, environment

IMAGES = 24  # drift needs 20


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folder of a model that has every part."""
    folder = tmp_path_factory.mktemp("trained")
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        features = PatchFeatures(
            create_backbone("timm/test_resnet", ("2", "3"), weights="none"), 3, None, "coarsest"
        ).eval()
        channels = features.channels
        rows = features(torch.rand(8, 3, 64, 64)).permute(0, 2, 3, 1).flatten(0, 2)
        whitening = NormalWhitening(channels)
        whitening.fit(rows, 0.1)
        discriminator = Discriminator(channels, 2, 8).eval()
        for name in ("opacity", "opacity_map"):
            getattr(discriminator, name).normal_(0, 0.1)
        discriminator.distance_weight.fill_(0.2)
        discriminator.regions.direction.normal_(0, 0.1)
        discriminator.regions.weight.fill_(0.5)
        network = WSCXRNet(features, discriminator, whitening).eval()
        images = torch.rand(40, 3, 64, 64)
        means, scores = features(images).mean((2, 3)), network(images)
    check = ChestCheck(np.zeros(channels), np.ones(channels), np.zeros((1, channels)), 1e9, np.ones(1))
    preprocessing = Preprocessing(64, features.backbone.mean, features.backbone.std, intensity="standardised")
    calibration = calibrate(scores.mean((1, 2, 3)).tolist(), [30.0])
    settings, training = {"k": 8}, {"normal_images": 40}
    parts = check, LocalMap.measure(scores), DriftReference.fit(means, means[:20])
    save_model(folder, network, preprocessing, calibration, 2.0, settings, training, 1.0, *parts)
    return folder


@pytest.fixture(scope="module")
def export(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "model"
    export_model(trained, folder)
    return folder


@pytest.fixture
def images(tmp_path, write_dicom):
    folder = tmp_path / "images"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(IMAGES):
        size = tuple(generator.integers(70, 150, 2))
        coarse = Image.fromarray(generator.integers(0, 256, (6, 6)).astype(np.uint8))
        levels = np.asarray(coarse.resize(size[::-1], Image.Resampling.BICUBIC))
        if number < 2:
            write_dicom(folder / f"{number:02}.dcm", levels)
        else:
            Image.fromarray(levels).save(folder / f"{number:02}.png")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    return folder


@pytest.fixture
def without_torch(tmp_path):
    return environment(tmp_path / "hook")


def rows(folder):
    with open(folder / "predictions.csv", newline="") as file:
        return list(csv.DictReader(file))


def everything(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("journal.jsonl", "index.html")
    }


def test_the_same_results_without_torch(trained, export, images, without_torch, tmp_path):
    allow = ["--allow", "suspicious_polarity"]
    given = ["predict", images, "--dicom", "--quiet", "--workers", "1", *allow]
    done = command(without_torch, *given, "--model", export, "--output", tmp_path / "slim")
    assert done.returncode == 3, done.stderr
    options = Options(str(trained), (str(images),), str(tmp_path / "torch"), runtime="torch", workers=1, dicom=True)
    options = replace(options, progress=False, allow=("suspicious_polarity",))
    predict(options)
    own, theirs = rows(tmp_path / "slim"), rows(tmp_path / "torch")
    assert len(own) == len(theirs) == IMAGES + 1
    assert {row["status"] for row in own} == {"ok", "rejected"}
    assert own[0]["drift"] != ""
    spread = np.std([float(row["anomaly_score"]) for row in theirs if row["status"] == "ok"])
    for mine, expected in zip(own, theirs, strict=True):
        score, wanted = mine.pop("anomaly_score"), expected.pop("anomaly_score")
        assert mine == expected
        assert score == wanted == "" or abs(float(score) - float(wanted)) < 1e-4 * spread
    for path in sorted((tmp_path / "torch" / "maps").iterdir()):
        expected = np.asarray(Image.open(path))
        found = np.asarray(Image.open(tmp_path / "slim" / "maps" / path.name))
        assert np.abs(found - expected).max() < 1e-3
        pictures = [Image.open(tmp_path / kind / "overlays" / f"{path.stem}.png") for kind in ("slim", "torch")]
        assert np.abs(np.subtract(*(np.asarray(picture, int) for picture in pictures))).max() <= 1
    assert len(list((tmp_path / "slim" / "dicom").iterdir())) == len(list((tmp_path / "torch" / "dicom").iterdir())) > 0

    # with the same runtime, everything after the network is equal to the last bit, whether torch is there or not
    predict(replace(options, model=str(export), output=str(tmp_path / "full"), runtime="auto"))
    assert everything(tmp_path / "full")["predictions.csv"] == everything(tmp_path / "slim")["predictions.csv"]
    unlike = {
        name
        for name, digest in everything(tmp_path / "slim").items()
        if everything(tmp_path / "full")[name] != digest and not name.startswith("dicom/")  # these hold the time
    }
    assert unlike == set()

    drift = command(without_torch, "drift", tmp_path / "slim", "--model", export, "--output", tmp_path / "drift")
    with_torch = json.loads((tmp_path / "torch" / "predictions.json").read_text())["drift"]
    assert drift.returncode == (1 if with_torch["named"] else 0), drift.stderr
    assert (tmp_path / "drift" / "drift.html").is_file()


def test_openvino_takes_the_same_folder(export):
    pytest.importorskip("openvino")
    images = np.random.default_rng(0).standard_normal((3, 3, 64, 64), np.float32)
    networks = [open_network(export, runtime=runtime) for runtime in exported.RUNTIMES]
    (scores, features), (others, other_features) = (network(images) for network in networks)
    np.testing.assert_allclose(scores, others, atol=1e-4 * scores.std())
    np.testing.assert_allclose(features, other_features, rtol=1e-4, atol=1e-5)
    assert [network.record()["name"] for network in networks] == list(exported.RUNTIMES)
    alone, _ = networks[0](images[1:2])
    assert np.array_equal(alone[0], scores[1])


def test_service_without_torch(export, images, without_torch):
    port = free_port()
    line = [sys.executable, "-m", "monai_wscxr", "serve", "--model", str(export), "--port", str(port), "--workers", "1"]
    with subprocess.Popen(line, env=without_torch, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert "HTTP service" in server.stdout.readline()
            server.stdout.readline()
            client = Client(port)
            body = (images / "05.png").read_bytes()
            for _ in range(100):
                try:
                    status, _, answer = client("POST", "/predict?map=npy", body)
                    break
                except OSError:
                    time.sleep(0.1)
            assert status == 200
            found = json.loads(answer)
            assert found["status"] == "ok"
            assert {"anomaly_score", "p_value", "site_p_value", "map"} <= found.keys()
        finally:
            server.terminate()
    assert server.returncode in (0, -signal.SIGTERM)


def test_what_the_full_package_is_needed_for_is_said_in_a_sentence(trained, export, images, without_torch, tmp_path):
    for arguments, words in (
        (("predict", images, "--model", trained, "--output", tmp_path / "p"), "or predict with an exported model"),
        (("train", "--dataset_dir", tmp_path, "--output_dir", tmp_path / "t"), "pip install 'monai-wscxr[full]'"),
        (("adapt", "--model", trained, "--normals", images, "--output", tmp_path / "a"), "'monai-wscxr[full]'"),
    ):
        done = command(without_torch, *arguments)
        assert done.returncode == 2, done.stderr
        assert words in done.stderr
        assert done.stderr.splitlines()[-1].startswith("error: ")
        assert "Traceback" not in done.stderr
    nothing = command(
        environment(tmp_path / "none", (*FULL_ONLY, "onnxruntime", "openvino")),
        *("predict", images, "--model", export, "--output", tmp_path / "p"),
    )
    assert nothing.returncode == 2
    assert "none is installed: pip install 'monai-wscxr[runtime]'" in nothing.stderr
    doctor = command(without_torch, "doctor")
    assert doctor.returncode == 0, doctor.stderr
    assert "monai-wscxr[full]" in doctor.stdout


def edited(folder, **values):
    content = json.loads((folder / "export.json").read_text())
    (folder / "export.json").write_text(json.dumps({**content, **values}))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: (f / "network.onnx").write_bytes((f / "network.onnx").read_bytes()[:-1] + b"x"), "SHA-256"),
        (lambda f: (f / "artefact.json").write_text((f / "artefact.json").read_text() + " "), "SHA-256"),
        (lambda f: (f / "network.onnx").unlink(), "cannot be read"),
        (lambda f: edited(f, format=2), "has format 2, this version of monai_wscxr reads format 1"),
        (lambda f: edited(f, channels=0), "is damaged"),
        (lambda f: edited(f, image={"channels": 1, "size": 64}), "contradict each other"),
        (lambda f: edited(f, grid={"rows": 5, "columns": 5}), "other results"),
        (lambda f: edited(f, surprise=1), "is damaged"),
        (lambda f: (f / "export.json").write_text("{"), "is damaged"),
    ],
)
def test_a_damaged_or_altered_folder_is_refused(export, tmp_path, change, words):
    folder = tmp_path / "model"
    shutil.copytree(export, folder)
    change(folder)
    with pytest.raises(InputError, match=words):
        open_network(folder)(np.zeros((1, 3, 64, 64), np.float32))


def test_an_onnx_file_that_is_none_is_refused(export, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(export, folder)
    (folder / "network.onnx").write_bytes(b"no network")
    files = json.loads((folder / "export.json").read_text())["files"]
    edited(folder, files={**files, "network.onnx": hashlib.sha256(b"no network").hexdigest()})
    for runtime in exported.RUNTIMES:
        with pytest.raises(InputError, match=f"the runtime {runtime} does not take"):
            open_network(folder, runtime=runtime)


def test_options_and_folders_that_do_not_suit(trained, export, tmp_path):
    with pytest.raises(InputError, match="exported models run on a CPU"):
        open_network(export, device="cuda")
    with pytest.raises(InputError, match="--runtime torch needs the output folder of the training"):
        open_network(export, runtime="torch")
    with pytest.raises(InputError, match="is an exported model, which predict, serve, node and drift take"):
        export_model(export, tmp_path / "again")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    with pytest.raises(InputError, match="is not empty and holds no exported model"):
        export_model(trained, tmp_path / "full")
    assert not (tmp_path / "full" / "export.json").exists()
