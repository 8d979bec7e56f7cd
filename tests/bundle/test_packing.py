"""Bundles that hold a trained model: whole, free of paths, accepted by the model zoo's checks, usable from their own folder."""

import csv
import json
import shutil
import zipfile

import pytest
import torch
from monai.bundle import ConfigWorkflow, create_workflow
from monai.bundle import load as load_bundle

from monai_wscxr.commands.main import main
from monai_wscxr.errors import InputError
from monai_wscxr.model.artefact import load_model
from monai_wscxr.model.predictor import predict_files
from monai_wscxr.training.packing import pack_bundle
from tests.helpers.zoo_check import MODES, check_bundle


@pytest.fixture(scope="module")
def packed(trained, tmp_path_factory):
    """The bundle of the trained model, with TorchScript."""
    terms = tmp_path_factory.mktemp("terms") / "terms.txt"
    terms.write_text("Phantoms, CC0.\n")
    folder = tmp_path_factory.mktemp("packed") / "wscxr_phantoms"
    return pack_bundle(trained, folder, data_licence=terms, torchscript=True)


@pytest.mark.parametrize("mode", MODES)
def test_the_model_zoo_accepts_it(packed, tmp_path, monkeypatch, mode):
    monkeypatch.chdir(tmp_path)  # a folder without images
    bundle = tmp_path / packed.name
    shutil.copytree(packed, bundle)
    check_bundle(bundle, mode, published=("wscxr_phantoms_v0.0.9",))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda bundle: (bundle / "LICENSE").unlink(), "LICENSE is missing"),
        (lambda bundle: (bundle / "models" / "model.pt").unlink(), "model.pt is missing"),
        (lambda bundle: _change(bundle, lambda described: described.update(version="0.2.0")), "lacks version 0.2.0"),
        (lambda bundle: _change(bundle, lambda described: described.pop("task")), "task"),
        (lambda bundle: _channels(bundle), "doesn't match"),
    ],
)
def test_the_check_refuses_other_bundles(packed, tmp_path, spoil, said):
    bundle = tmp_path / packed.name
    shutil.copytree(packed, bundle)
    spoil(bundle)
    with pytest.raises(ValueError, match=said):
        check_bundle(bundle, "full")


def _change(bundle, change):
    path = bundle / "configs" / "metadata.json"
    described = json.loads(path.read_text())
    change(described)
    path.write_text(json.dumps(described))


def _channels(bundle):
    _change(bundle, lambda described: described["network_data_format"]["outputs"]["pred"].update(num_channels=2))


def test_a_published_version_is_refused(packed):
    with pytest.raises(ValueError, match="published already"):
        check_bundle(packed, "min", published=("wscxr_phantoms_v0.1.0",))


def test_it_holds_what_it_should_and_no_path(packed, trained, phantoms):
    files = {str(path.relative_to(packed)) for path in packed.rglob("*") if path.is_file()} - {"eval/schema.json"}
    assert files == {
        "LICENSE",
        *(f"configs/{name}" for name in ("inference.yaml", "inference.json", "evaluate.yaml", "evaluate.json")),
        *(f"configs/{name}" for name in ("train.yaml", "multi_gpu_train.yaml", "logging.conf", "metadata.json")),
        *("docs/README.md", "docs/data_license.txt", "models/model.pt", "models/model.ts", "models/artefact.json"),
    }
    for name in files - {"models/model.pt", "models/model.ts"}:
        text = (packed / name).read_text()
        assert str(phantoms) not in text, name
        assert str(trained) not in text, name
    assert (packed / "docs" / "data_license.txt").read_text().startswith("Phantoms, CC0.\n\nWeights of the frozen")
    assert load_model(packed / "models").sha256 == load_model(trained).sha256
    described = json.loads((packed / "configs" / "metadata.json").read_text())
    assert described["version"] == "0.1.0"
    assert described["changelog"] == {"0.1.0": "first version"}
    assert described["network_data_format"]["inputs"]["image"]["spatial_shape"] == [64, 64]
    assert described["network_data_format"]["outputs"]["pred"]["spatial_shape"] == [2, 2]
    assert described["eval_metrics"]["auroc"] == json.loads((trained / "metrics.json").read_text())["honest"]["auroc"]
    assert described["required_packages_version"]["monai_wscxr"] == "0.1.0"


@pytest.mark.parametrize("config", ["inference.yaml", "inference.json"])
def test_inference_runs_from_its_own_folder(packed, phantoms, tmp_path, monkeypatch, config):
    bundle = tmp_path / "anywhere"
    shutil.copytree(packed, bundle)
    monkeypatch.chdir(bundle)
    workflow = create_workflow(
        config_file=f"configs/{config}", workflow_type="infer", run_id="inferring", device="cpu", progress=False,
        dataset_dir=str(phantoms / "test"),
    )  # fmt: skip
    workflow.run()
    with open(bundle / "eval" / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    expected = list(predict_files(load_model(packed / "models"), [row["file"] for row in rows]))
    assert len(rows) == 8
    for row, prediction in zip(rows, expected, strict=True):
        assert float(row["anomaly_score"]) == pytest.approx(prediction.anomaly_score, abs=1e-5)
    assert len(list((bundle / "eval" / "overlays").iterdir())) == 8


def test_a_zip_file_unpacks_to_the_folder_that_monai_loads(trained, phantoms, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["bundle", "pack", "--model", str(trained), "--output", "wscxr_phantoms_v0.1.0.zip"])
    assert "wscxr_phantoms/models/model.pt" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["wscxr_phantoms_v0.1.0.zip"]
    shutil.unpack_archive("wscxr_phantoms_v0.1.0.zip", tmp_path)
    network = load_bundle("wscxr_phantoms", bundle_dir=tmp_path, workflow_type="inference", device="cpu").eval()
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(network(image), load_model(trained).network(image))
    monkeypatch.chdir("wscxr_phantoms")
    workflow = ConfigWorkflow(
        "configs/inference.yaml", workflow_type="infer", run_id="inferring", device="cpu", progress=False,
        dataset_dir=str(phantoms / "test" / "normal"),
    )  # fmt: skip
    workflow.initialize()
    workflow.run()
    with open(tmp_path / "wscxr_phantoms" / "eval" / "predictions.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == len(list((phantoms / "test" / "normal").iterdir()))


def test_a_zip_file_is_replaced_by_a_higher_version_alone(trained, tmp_path):
    file = tmp_path / "model.zip"
    pack_bundle(trained, file)
    with pytest.raises(InputError, match=r"holds version 0\.1\.0; give a higher one"):
        pack_bundle(trained, file)
    pack_bundle(trained, file, "0.2.0", "more images")
    with zipfile.ZipFile(file) as archive:
        described = json.loads(archive.read("model/configs/metadata.json"))
    assert described["changelog"] == {"0.2.0": "more images", "0.1.0": "first version"}
    file.write_bytes(b"no archive")
    with pytest.raises(InputError, match="is no packed bundle; give a new file"):
        pack_bundle(trained, file)
    assert file.read_bytes() == b"no archive"


def test_inference_without_images_says_so(packed, monkeypatch):
    monkeypatch.chdir(packed)
    workflow = create_workflow(config_file="configs/inference.yaml", workflow_type="infer", run_id="inferring")
    with pytest.raises(RuntimeError) as caught:
        workflow.run()
    assert "--dataset_dir is missing" in str(caught.value.__cause__)


def test_evaluation_runs_from_its_own_folder(packed, trained, phantoms, tmp_path, monkeypatch):
    bundle = tmp_path / "anywhere"
    shutil.copytree(packed, bundle)
    monkeypatch.chdir(bundle)
    workflow = create_workflow(
        config_file="configs/evaluate.yaml", workflow_type="infer", run_id="evaluating", device="cpu", progress=False,
        dataset_dir=str(phantoms),
    )  # fmt: skip
    workflow.run()
    found, before = (json.loads((f / "metrics.json").read_text())["honest"] for f in (bundle / "eval", trained))
    assert found == pytest.approx(before, abs=1e-5)


def test_monai_loads_the_network_with_its_weights(packed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # not the folder of the bundle
    network = load_bundle(packed.name, bundle_dir=packed.parent, workflow_type="inference", device="cpu").eval()
    scripted, described, _ = load_bundle(packed.name, bundle_dir=packed.parent, load_ts_module=True, device="cpu")
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = load_model(packed / "models").network(image)
        torch.testing.assert_close(network(image), expected, rtol=0, atol=0)
        torch.testing.assert_close(scripted(image), expected, rtol=0, atol=1e-5)
    assert described["version"] == "0.1.0"


def test_a_new_version_keeps_the_changelog(trained, tmp_path):
    folder = pack_bundle(trained, tmp_path / "bundle")
    with pytest.raises(InputError, match=r"holds version 0\.1\.0; give a higher one"):
        pack_bundle(trained, folder)
    (folder / "stale.txt").write_text("of the first version")
    pack_bundle(trained, folder, "0.10.0", "more images")
    with pytest.raises(InputError, match=r"holds version 0\.10\.0"):
        pack_bundle(trained, folder, "0.9.0", "text order would let this pass")
    described = json.loads((folder / "configs" / "metadata.json").read_text())
    assert described["changelog"] == {"0.10.0": "more images", "0.1.0": "first version"}
    assert not (folder / "stale.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ("--model TRAINED --output TAKEN", "is not empty and holds no packed bundle"),
        ("--model TRAINED --output NEW --version one", "--version must be three numbers"),
        ("--model TRAINED --output NEW --data_licence nowhere.txt", "--data_licence nowhere.txt cannot be read"),
        ("--model EMPTY --output NEW", "holds no trained model"),
        ("--model TRAINED --output TAKEN/file", "is a file"),
        ("--model TRAINED --output TAKEN/file/bundle", "cannot be written"),
    ],
)
def test_what_cannot_be_packed_is_one_sentence(trained, tmp_path, capsys, words, answer):
    (tmp_path / "empty").mkdir()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("precious")
    places = {"TRAINED": trained, "TAKEN": tmp_path / "taken", "NEW": tmp_path / "new", "EMPTY": tmp_path / "empty"}
    given = [
        str(places.get(word.partition("/")[0], word)) + word[word.find("/") :] * ("/" in word) for word in words.split()
    ]
    with pytest.raises(SystemExit) as ended:
        main(["bundle", "pack", *given])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert answer in said
    assert said.count("\n") == 1
    assert not (tmp_path / "new").exists()
    assert (tmp_path / "taken" / "file").read_text() == "precious"


def test_the_command_lists_what_it_made(trained, tmp_path, capsys):
    main(["bundle", "pack", "--model", str(trained), "--output", str(tmp_path / "bundle")])
    said = capsys.readouterr().out
    assert "models/model.pt" in said
    assert said.endswith(f"bundle bundle 0.1.0 in {tmp_path / 'bundle'}\n")
