"""Trained models on disk: loading restores them, and inconsistent files are refused with a one-line message."""

import json

import pytest
import torch

import monai_wscxr
from monai_wscxr.errors import InputError
from monai_wscxr.model.artefact import ARTEFACT, WEIGHTS, load_model


def refusal(folder):
    """Return the error message of `load_model`."""
    with pytest.raises(InputError) as caught:
        load_model(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 500
    return message


def edit(folder, change):
    """Change the artefact on disk."""
    path = folder / ARTEFACT
    description = json.loads(path.read_text())
    change(description)
    path.write_text(json.dumps(description))


@pytest.mark.parametrize(
    ("depth", "bias", "layers", "align_to"),
    [
        (1, True, ("3",), "finest"),
        (1, False, ("3",), "finest"),
        (3, True, ("3", "2"), "finest"),
        (1, True, ("3", "2"), "coarsest"),
    ],
)
def test_loaded_model_gives_equal_scores(make_model, tmp_path, depth, bias, layers, align_to):
    network = make_model(tmp_path, depth, bias, layers, align_to=align_to)
    model = load_model(tmp_path)
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model.network(image), network(image))
    assert not any(m.training for m in model.network.modules())
    assert model.preprocessing.image_size == 64
    assert model.preprocessing.mean == network.features.backbone.mean
    assert model.calibration.normal_scores == tuple(0.1 * i for i in range(19))
    assert (model.map_sigma, model.settings, model.folder) == (2.0, {"k": 8}, tmp_path)
    assert model.network.features.neighbourhood == network.features.neighbourhood
    assert load_model(str(tmp_path)).sha256 == model.sha256


def test_description_holds_all_that_inference_needs(make_model, tmp_path):
    make_model(tmp_path)
    description = json.loads((tmp_path / ARTEFACT).read_text())
    assert description["code_version"] == monai_wscxr.__version__
    assert description["backbone"]["name"] == "timm/test_resnet"
    assert len(description["backbone"]["sha256"]) == len(description["model_sha256"]) == 64
    assert description["features"] == {"neighbourhood": 3, "aligned_channels": None, "align_to": "finest"}
    assert description["discriminator"] == {"depth": 2, "width": 8, "bias": True}
    assert description["training"] == {"normal_images": 20}
    assert sorted(p.name for p in tmp_path.iterdir()) == [ARTEFACT, WEIGHTS]


@pytest.mark.parametrize("name", [ARTEFACT, WEIGHTS])
def test_missing_file(make_model, tmp_path, name):
    make_model(tmp_path)
    (tmp_path / name).unlink()
    assert f"{tmp_path} holds no trained model" in refusal(tmp_path)
    assert "holds no trained model" in refusal(tmp_path / "nowhere")


def test_newer_format(make_model, tmp_path):
    make_model(tmp_path)
    edit(tmp_path, lambda d: d.update(format=4, code_version="9.1"))
    message = refusal(tmp_path)
    assert "has format 4, this version of monai_wscxr reads format 3" in message
    assert "written by version 9.1" in message


@pytest.mark.parametrize("content", ["", "{", "[]", "3", "null", "{}", '{"form": 1}', "\0\0"])
def test_description_that_is_no_description(make_model, tmp_path, content):
    make_model(tmp_path)
    (tmp_path / ARTEFACT).write_text(content)
    assert f"{tmp_path / ARTEFACT} is damaged" in refusal(tmp_path)


def test_one_changed_weight(make_model, tmp_path):
    make_model(tmp_path)
    state = torch.load(tmp_path / WEIGHTS)
    key = next(key for key in state if key.startswith("discriminator"))
    state[key].view(-1)[0] += 1e-6
    torch.save(state, tmp_path / WEIGHTS)
    assert "does not hold the weights that artefact.json describes" in refusal(tmp_path)


def test_weights_of_another_run(make_model, tmp_path):
    make_model(tmp_path / "a")
    make_model(tmp_path / "b", seed=1)
    (tmp_path / "b" / WEIGHTS).replace(tmp_path / "a" / WEIGHTS)
    assert "the two files come from different runs" in refusal(tmp_path / "a")


@pytest.mark.parametrize("other", [{"depth": 1}, {"depth": 3}, {"bias": False}, {"layers": ("3", "2")}])
def test_weights_of_another_architecture(make_model, tmp_path, other):
    make_model(tmp_path / "a")
    make_model(tmp_path / "b", **other)
    (tmp_path / "b" / WEIGHTS).replace(tmp_path / "a" / WEIGHTS)
    message = refusal(tmp_path / "a")
    assert "does not fit the network that artefact.json describes" in message
    assert "tensors are missing, unknown or of another shape" in message


def test_backbone_mismatch(make_model, tmp_path):
    make_model(tmp_path)
    edit(tmp_path, lambda d: d["backbone"].update(name="efficientnet_lite0"))
    assert "does not fit the network that artefact.json describes" in refusal(tmp_path)
    edit(tmp_path, lambda d: d["backbone"].update(name="timm/test_resnat"))
    assert "unknown backbone" in refusal(tmp_path)
    edit(tmp_path, lambda d: d["backbone"].update(name="timm/test_resnet", layers=["7"]))
    assert "no layer '7'" in refusal(tmp_path)


@pytest.mark.parametrize(
    "key",
    [
        *("backbone", "features", "whitening", "discriminator", "calibration", "preprocessing", "map_sigma"),
        *("score_share", "model_sha256", "settings"),
    ],
)
@pytest.mark.parametrize("value", ["missing", None])
def test_description_without_one_of_its_parts(make_model, tmp_path, key, value):
    make_model(tmp_path)
    edit(tmp_path, lambda d: d.pop(key) if value == "missing" else d.update({key: None}))
    message = refusal(tmp_path)
    expected = ("cannot be loaded as a model", "does not hold the weights", "score_share must lie in")
    assert any(part in message for part in expected)


@pytest.mark.parametrize(
    ("part", "change", "reason"),
    [
        ("features", {"neighbourhood": 4}, "must be odd"),
        ("features", {"aligned_channels": 5}, "does not fit the network"),
        ("features", {"align_to": "nowhere"}, "align_to must be"),
        ("features", {"unknown": 5}, "cannot be loaded as a model"),
        ("discriminator", {"width": 16}, "does not fit the network"),
        ("preprocessing", {"image_size": 7}, "whole number from 32 to 4096"),
        ("preprocessing", {"colour": 7}, "cannot be loaded as a model"),
        ("preprocessing", {"intensity": "loud"}, "intensity must be one of"),
        ("whitening", {"active": True}, "does not fit the network"),
        ("whitening", {"kind": "cholesky"}, "cannot be loaded as a model"),
        ("calibration", {"normal_scores": []}, "calibration is damaged"),
        ("calibration", {"threshold": 0.5}, "calibration is damaged"),
    ],
)
def test_tampered_description(make_model, tmp_path, part, change, reason):
    make_model(tmp_path)
    edit(tmp_path, lambda d: d[part].update(change))
    assert reason in refusal(tmp_path)


@pytest.mark.parametrize("share", [-0.1, 1.5, "all", True, float("nan")])
def test_unknown_pooling_of_the_score(make_model, tmp_path, share):
    make_model(tmp_path)
    edit(tmp_path, lambda d: d.update(score_share=share))
    assert "score_share must lie in [0, 1]" in refusal(tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "list", "numbers", "pickle"])
def test_damaged_weights_file(make_model, tmp_path, damage):
    make_model(tmp_path)
    path = tmp_path / WEIGHTS
    content = path.read_bytes()
    if damage in ("truncated", "empty", "text"):
        path.write_bytes({"truncated": content[: len(content) // 2], "empty": b"", "text": b"some text"}[damage])
    else:
        torch.save({"list": [1, 2], "numbers": {"a": 1}, "pickle": Tampered()}[damage], path)
    assert str(path) in refusal(tmp_path)


class Tampered:
    """A class that must not be unpickled."""
