"""Adaptation on phantoms: what the adapted model promises and records, and which folders are refused."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from monai_wscxr.adaptation import adapt, extractor_for
from monai_wscxr.commands.exit_status import UNUSABLE
from monai_wscxr.commands.main import main
from monai_wscxr.data.phantom import write_phantoms
from monai_wscxr.data.preprocessing import Preprocessing
from monai_wscxr.errors import InputError
from monai_wscxr.features.extraction import PatchExtractor
from monai_wscxr.model.artefact import load_model, save_model
from monai_wscxr.model.calibration import calibrate
from monai_wscxr.model.drift import DriftReference
from monai_wscxr.model.local_map import LocalMap
from monai_wscxr.model.networks import Discriminator, WSCXRNet, patch_maps
from monai_wscxr.model.predictor import predict_files
from monai_wscxr.model.scores import anomaly_score
from monai_wscxr.model.whitening import NormalWhitening
from monai_wscxr.prediction import Options, predict

SIZE = 64


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Folders `home` and `site` of normal phantoms; those of the site are flat and dark, as from another detector."""
    folder = tmp_path_factory.mktemp("sites")
    write_phantoms(folder / "data", 95, 1, 1, 1, size=SIZE, progress=False)
    files = sorted((folder / "data" / "train" / "normal").glob("*.png"))
    for name, some in (("home", files[:45]), ("site", files[45:])):
        (folder / name).mkdir()
        for file in some:
            shutil.copy(file, folder / name)
    for file in (folder / "site").iterdir():
        grey = np.asarray(Image.open(file)).astype(float)
        Image.fromarray((255 * (0.2 + 0.5 * (grey / 255) ** 2)).astype(np.uint8)).save(file)
    return folder


@pytest.fixture(scope="module")
def model_folder(images, make_module_features):
    """A model with whitening, local maps and a reference for drift, calibrated on 20 of the home images."""
    features = make_module_features()
    preprocessing = Preprocessing(SIZE, features.backbone.mean, features.backbone.std)
    extractor = PatchExtractor(features, preprocessing, cache=False, progress=False)
    items = [{"image": str(file)} for file in sorted((images / "home").iterdir())]
    normal, held_out = extractor.bank(items[:25]), extractor.bank(items[25:])
    whitening = NormalWhitening(features.channels)
    whitening.fit(normal.rows, 1.0)
    discriminator = Discriminator(features.channels, 1, zero_start=True)  # the score is the distance to the normals
    discriminator.distance_weight.fill_(1.0)
    network = WSCXRNet(features, discriminator, whitening).eval()
    maps = patch_maps(network.patch_scores, held_out)
    calibration = calibrate(anomaly_score(maps, 1.0)[:, 0].tolist(), [5.0])
    reference = DriftReference.fit(normal.images.mean((2, 3)), held_out.images.mean((2, 3)))
    folder = images / "model"
    folder.mkdir()
    digests = [extractor.digests[str(item["image"])] for item in items]
    save_model(
        folder,
        network,
        preprocessing,
        calibration,
        2.0,
        {"k": 8, "precision": "float32"},
        {"normal_images": 25, "abnormal_images": {}, "digests": digests},
        1.0,
        None,
        LocalMap.measure(maps),
        reference,
    )
    return folder


@pytest.fixture(scope="module")
def make_module_features():
    """Small patch feature network, the same on every call."""
    from monai_wscxr.features.backbones import create_backbone
    from monai_wscxr.features.patches import PatchFeatures

    def make():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return PatchFeatures(create_backbone("timm/test_resnet", ("3",), weights="none"), 3, None, "finest")

    return make


def site_files(images):
    return sorted((images / "site").iterdir())


def adapted(model_folder, files, output, **options):
    model = load_model(model_folder)
    extractor = extractor_for(model, cache=False, progress=False)
    return adapt(model, files, output, extractor, **options), load_model(output)


def test_the_adapted_model_keeps_its_rate_at_the_site(images, model_folder, tmp_path):
    files = site_files(images)
    done, model = adapted(model_folder, files[:25], tmp_path / "new")
    assert done.aligned
    assert done.drift.named
    assert model.calibration.basis == "site_normals"
    assert len(model.calibration.normal_scores) == 25
    before = [p.abnormal for p in predict_files(load_model(model_folder), files[25:])]
    after = list(predict_files(model, files[25:]))
    assert sum(before) >= 20  # of 25: the promise is worth nothing there
    assert sum(p.abnormal for p in after) <= 5
    assert np.mean([p.p_value for p in after]) > 0.3


def test_the_artefact_tells_both_sites(images, model_folder, tmp_path):
    files = site_files(images)[:25]
    done, model = adapted(model_folder, files, tmp_path / "new")
    original = load_model(model_folder)
    assert model.training == original.training
    assert model.settings == original.settings
    assert model.site["model_sha256"] == original.sha256
    assert model.site["images"] == 25
    assert model.site["threshold"] == original.calibration.threshold
    assert model.site["flagged_before"] == done.flagged_before
    assert len(model.site["digests"]) == 25
    assert set(model.site["digests"]) < model.known_digests
    assert set(original.training["digests"]) < model.known_digests
    assert model.sha256 == done.sha256 != original.sha256
    words = " ".join(done.sentences())
    assert "25 normal images; they are unlike the normals of the training" in words
    assert "features aligned with the site" in words


def test_without_alignment_the_weights_stay(images, model_folder, tmp_path):
    done, model = adapted(model_folder, site_files(images)[:25], tmp_path / "new", align=False)
    original = load_model(model_folder)
    assert not done.aligned
    assert model.sha256 == original.sha256
    scores = sorted(p.anomaly_score for p in predict_files(original, site_files(images)[:25]))
    np.testing.assert_allclose(model.calibration.normal_scores, scores, rtol=1e-5)


def test_calibrating_scores_come_from_models_that_did_not_see_the_image(images, model_folder, tmp_path):
    """An image that is odd by itself must not have aligned the model that scores it."""
    files = site_files(images)[:25]
    done, model = adapted(model_folder, files, tmp_path / "new")
    seen = sorted(p.anomaly_score for p in predict_files(model, files))
    assert model.calibration.normal_scores[-1] > seen[-1]
    assert done.after == model.calibration


def test_unlabelled_images_calibrate_and_align_nothing(images, model_folder, tmp_path):
    files = site_files(images)
    done, model = adapted(model_folder, files, tmp_path / "new", unlabelled=True)
    original = load_model(model_folder)
    assert model.sha256 == original.sha256
    assert not done.aligned
    assert model.calibration.basis == "site_unlabelled"
    assert sum(p.abnormal for p in predict_files(model, files)) <= 8
    assert "if at most half of the images are abnormal" in done.after.rate_text


@pytest.mark.parametrize("unlabelled", [False, True])
def test_too_few_images_are_refused(images, model_folder, tmp_path, unlabelled):
    files = site_files(images)[: 49 if unlabelled else 19]
    with pytest.raises(InputError, match="are too few to adapt to a site"):
        adapted(model_folder, files, tmp_path / "new", unlabelled=unlabelled)
    assert not (tmp_path / "new").exists()


def test_copies_count_once(images, model_folder, tmp_path):
    files = site_files(images)[:19]
    (tmp_path / "more").mkdir()
    copies = [shutil.copy(file, tmp_path / "more") for file in files]
    with pytest.raises(InputError, match="19 usable normal images are too few"):
        adapted(model_folder, [*files, *copies], tmp_path / "new")


def test_images_of_the_training_are_refused(images, model_folder, tmp_path):
    with pytest.raises(InputError, match="45 of 45 images took part in training"):
        adapted(model_folder, sorted((images / "home").iterdir()), tmp_path / "new")


def test_an_adapted_model_is_not_adapted_again(images, model_folder, tmp_path):
    adapted(model_folder, site_files(images)[:25], tmp_path / "new")
    with pytest.raises(InputError, match="adapted to a site already"):
        adapted(tmp_path / "new", site_files(images)[25:], tmp_path / "newer")


def test_images_that_the_model_flags_at_its_own_site_are_no_normals(images, model_folder, tmp_path):
    model = json.loads((model_folder / "artefact.json").read_text())
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    low = model["calibration"]["normal_scores"][0] - 1.0  # a threshold below every score
    model["calibration"] |= {"normal_scores": [low], "threshold": low}
    (folder / "artefact.json").write_text(json.dumps(model))
    trained_on = set(model["training"].pop("digests"))
    model["training"]["digests"] = []
    (folder / "artefact.json").write_text(json.dumps(model))
    files = sorted((images / "home").iterdir())
    assert trained_on
    with pytest.raises(InputError, match="they seem to be abnormal"):
        adapted(folder, files, tmp_path / "new")
    done, _ = adapted(folder, files, tmp_path / "new", accept_flagged=True)
    assert done.flagged_before == 1


def test_unreadable_images_are_counted_or_refuse(images, model_folder, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    done, model = adapted(model_folder, [*site_files(images)[:25], bad], tmp_path / "new")
    assert [code for _, code, _ in done.rejected] == ["unknown_format"]
    assert model.site["rejected"] == 1
    worse = [tmp_path / f"{n}.png" for n in range(5)]
    for file in worse:
        file.write_bytes(b"no image")
    with pytest.raises(InputError, match="cannot be used"):
        adapted(model_folder, [*site_files(images)[:25], *worse], tmp_path / "newer")


def predicted(model_folder, paths, output):
    """Predict files and return summary, rows, description and report."""
    options = Options(
        str(model_folder), tuple(map(str, paths)), str(output), "none", False, True, workers=0, progress=False
    )
    summary = predict(options)
    with open(output / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    description = json.loads((output / "predictions.json").read_text())
    return summary, rows, description, (output / "report" / "index.html").read_text()


def test_predict_names_drift_in_table_report_json_and_last_line(images, model_folder, tmp_path, capsys):
    files = site_files(images)
    summary, rows, description, report = predicted(model_folder, files[25:], tmp_path / "before")
    assert {row["drift"] for row in rows} == {"true"}
    assert description["drift"]["named"] is True
    assert description["drift"]["images"] == 25
    assert len(description["predictions"][0]["site_coordinates"]) == load_model(model_folder).drift.spread.numel()
    sentence = f"monai-wscxr adapt --model {model_folder} --normals DIR"
    assert sentence in report
    assert sentence in " ".join(summary.sentences(str(model_folder)))
    options = ["--model", model_folder, "--output", tmp_path / "again", "--maps", "none", "--workers", 0, "--quiet"]
    _, said = run(capsys, "predict", *files[25:], *options, "--no-overlays", "--no-report")
    assert said.strip().splitlines()[-1].startswith("DRIFT: these 25 radiographs")

    adapted(model_folder, files[:25], tmp_path / "new")
    summary, rows, description, report = predicted(tmp_path / "new", files[25:], tmp_path / "after")
    assert {row["drift"] for row in rows} == {"false"}
    assert description["drift"]["named"] is False
    assert "DRIFT" not in report
    assert "25 normals of the site" in report

    _, rows, description, report = predicted(model_folder, files[25:40], tmp_path / "few")
    assert {row["drift"] for row in rows} == {""}
    assert description["drift"]["named"] is None


def test_drift_is_the_same_after_an_interruption(images, model_folder, tmp_path):
    files = site_files(images)[25:]
    whole = predicted(model_folder, files, tmp_path / "whole")[2]
    predicted(model_folder, files, tmp_path / "cut")
    journal = tmp_path / "cut" / "journal.jsonl"
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:12]))
    again = predicted(model_folder, files, tmp_path / "cut")[2]
    assert again == whole


def run(capsys, *words):
    """Run a command and return its status and what it said."""
    try:
        main([str(word) for word in words])
        status = 0
    except SystemExit as ended:
        status = ended.code
    said = capsys.readouterr()
    return status, said.out + said.err


def test_the_command_adapts_and_what_it_wrote_predicts(images, model_folder, tmp_path, capsys):
    options = ["--model", model_folder, "--output", tmp_path / "new", "--quiet"]
    status, said = run(capsys, "adapt", "--normals", images / "site", *options)
    assert status == 0
    assert "50 normal images" in said
    assert f"monai-wscxr predict PATH --model {tmp_path / 'new'}" in said
    status, said = run(capsys, "adapt", "--normals", images / "site", *options)
    assert (status, "--overwrite to replace" in said) == (UNUSABLE, True)
    assert run(capsys, "adapt", "--normals", images / "site", *options, "--overwrite")[0] == 0


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["--normals", "/nowhere"], "/nowhere"),
        (["--normals", "EMPTY"], "no radiographs found"),
        (["--normals", "MIXED"], "contains a folder of abnormal images"),
        (["--normals", "SITE", "--unlabelled", "SITE"], "not allowed with argument"),
        ([], "one of the arguments --normals --unlabelled is required"),
        (["--normals", "SITE", "--output", "MODEL"], "is the model itself"),
        (["--normals", "SITE", "--allow", "everything"], "--allow"),
    ],
)
def test_a_wrong_command_is_answered_with_one_sentence(images, model_folder, tmp_path, capsys, words, answer):
    (tmp_path / "empty").mkdir()
    shutil.copytree(images / "data" / "train", tmp_path / "mixed")
    known = {"EMPTY": tmp_path / "empty", "MIXED": tmp_path / "mixed", "SITE": images / "site", "MODEL": model_folder}
    given = ["adapt", "--model", model_folder, "--output", tmp_path / "new", *(known.get(word, word) for word in words)]
    status, said = run(capsys, *given)
    assert status == UNUSABLE
    assert answer in said
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert not (tmp_path / "new").exists()
