"""Trained models on disk: loading restores them, and inconsistent files are refused with a one-line message."""

import json
import time
import zipfile

import pytest
import torch

import monai_wscxr
from monai_wscxr.errors import InputError
from monai_wscxr.model.artefact import load_model, save_model
from monai_wscxr.model.chest_check import ChestCheck
from monai_wscxr.model.description import ARTEFACT, WEIGHTS
from tests.helpers.hostile import NO_FILES, WRONG, at, fields, with_wrong, within


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
    assert model.network.discriminator.neighbourhood == network.features.neighbourhood
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
    edit(tmp_path, lambda d: d.update(format=8, code_version="9.1"))
    message = refusal(tmp_path)
    assert "has format 8, this version of monai_wscxr reads format 7" in message
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
    expected = f"{key} is missing" if value == "missing" else f"{key} must be "
    assert f"{tmp_path / ARTEFACT} is damaged ({expected}" in message


@pytest.mark.parametrize(
    ("part", "change", "reason"),
    [
        ("features", {"neighbourhood": 4}, "must be odd"),
        ("features", {"aligned_channels": 5}, "does not fit the network"),
        ("features", {"align_to": "nowhere"}, "align_to must be"),
        ("features", {"unknown": 5}, "features.unknown is not a known key"),
        ("discriminator", {"width": 16}, "does not fit the network"),
        ("preprocessing", {"image_size": 7}, "whole number from 32 to 4096"),
        ("preprocessing", {"colour": 7}, "preprocessing.colour is not a known key"),
        ("preprocessing", {"intensity": "loud"}, "intensity must be one of"),
        ("whitening", {"active": True}, "does not fit the network"),
        ("whitening", {"kind": "cholesky"}, "whitening.kind is not a known key"),
        ("calibration", {"normal_scores": []}, "calibration.normal_scores must be a list of 1 to"),
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
    expected = "NaN is not allowed" if share != share else "score_share must be a finite number from 0 to 1"
    assert expected in refusal(tmp_path)


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


# --- what nobody writes by accident --------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_value_in_any_field_is_refused_or_changes_nothing(make_model, tmp_path, wrong):
    network = make_model(tmp_path)
    path = tmp_path / ARTEFACT
    good = json.loads(path.read_text())
    good["calibration"]["normal_scores"] = good["calibration"]["normal_scores"][-3:]  # fewer places to try
    channels = network.features.channels
    check = ChestCheck(torch.zeros(channels), torch.ones(channels), torch.ones(1, channels), 3.0, torch.tensor([2.0]))
    good["chest_check"] = check.to_dict()
    image = torch.randn(1, 3, 64, 64)
    path.write_text(json.dumps(good))
    before = load_model(tmp_path)
    for place in fields(good):
        if json.dumps(at(good, place)) == wrong:
            continue
        path.write_text(with_wrong(good, place, wrong))
        started = time.process_time()
        try:
            model, message = load_model(tmp_path), None
        except InputError as error:
            model, message = None, str(error)
        assert time.process_time() - started < 2, (place, wrong)
        if model is None:
            assert str(tmp_path) in message
            assert len(message) < 600
            continue
        assert place[0] in MAY_CHANGE or wrong in MAY_BE.get(place, ()), (place, wrong)
        with torch.inference_mode():
            assert torch.equal(model.network(image), network(image))
        if wrong not in MAY_BE.get(place, ()):
            assert (model.preprocessing, model.calibration) == (before.preprocessing, before.calibration)
            assert (model.map_sigma, model.score_share) == (before.map_sigma, before.score_share)
            assert model.chest_check.to_dict() == check.to_dict()


# records of the training, which inference does not use
MAY_CHANGE = ("code_version", "settings", "training")
# values that are allowed, although another one was written; only a checksum could tell
MAY_BE = {
    ("chest_check",): ("null",),
    ("chest_check", "distance_limit"): ("0.5", "1e9", "1000000000"),
    ("chest_check", "likeness_limits"): ("[null]",),
    ("chest_check", "likeness_limits", 0): ("null", "0.5", "1e9", "1000000000"),
    ("preprocessing", "reader_chain"): ('"x"', '"../x"'),
    ("map_sigma",): ("0", "0.5"),
    ("score_share",): ("0", "0.5"),
    ("calibration", "false_positive_rate"): ("0.5",),
    ("calibration", "colour_low"): ("-1", "0", "0.5", "-1e300"),
    ("calibration", "colour_high"): ("1e9", "1000000000"),
    ("calibration", "normal_scores", 0): ("-1", "0", "0.5", "-1e300"),
    **{("preprocessing", "mean", i): ("0", "0.5", "-1") for i in range(3)},
    **{("preprocessing", "std", i): ("0.5",) for i in range(3)},
}


@pytest.mark.parametrize(
    ("part", "change", "reason"),
    [
        ("discriminator", {"depth": 10**9}, "discriminator.depth must be a whole number from 1 to 64, got 1000000000"),
        ("discriminator", {"depth": 64, "width": 65536}, "does not fit the network"),
        ("discriminator", {"depth": True}, "discriminator.depth must be a whole number"),
        ("features", {"aligned_channels": 65536}, "does not fit the network"),
        ("features", {"neighbourhood": 10**9 + 1}, "features.neighbourhood must be a whole number from 1 to 255"),
        ("backbone", {"layers": "3"}, "backbone.layers must be a list"),
        ("backbone", {"layers": [3]}, r"backbone.layers[0] must be a printable string"),
        ("backbone", {"layers": ["3"] * 65}, "backbone.layers must be a list of 1 to 64 values"),
        ("backbone", {"sha256": "0" * 64}, "does not hold the weights that artefact.json describes"),
        ("preprocessing", {"std": [0.5, 0.0, 0.5]}, "preprocessing.std[1] must be a finite number from 1e-06"),
        ("calibration", {"normal_scores": [1.0, 0.5]}, "calibration.normal_scores must be in ascending order"),
        ("calibration", {"normal_scores": [0.5, "1"]}, "calibration.normal_scores[1] must be a finite number"),
        ("calibration", {"false_positive_rate": 1}, "false_positive_rate must lie in (0, 1)"),
    ],
)
def test_what_is_out_of_range_is_refused_before_anything_is_built(make_model, tmp_path, part, change, reason):
    make_model(tmp_path)
    edit(tmp_path, lambda d: d[part].update(change))
    started = time.process_time()
    assert reason in refusal(tmp_path)
    assert time.process_time() - started < 2


def test_a_long_description_is_refused_without_parsing_it(make_model, tmp_path):
    make_model(tmp_path)
    edit(tmp_path, lambda d: d["training"].update(more="x" * (33 << 20)))
    assert "it has more than 33,554,432 bytes" in refusal(tmp_path)


def test_duplicate_keys_are_refused(make_model, tmp_path):
    make_model(tmp_path)
    path = tmp_path / ARTEFACT
    path.write_text(path.read_text().replace('"map_sigma": 2.0', '"map_sigma": 2.0, "map_sigma": 3.0'))
    assert "the key 'map_sigma' occurs twice" in refusal(tmp_path)


def test_values_that_loading_would_refuse_are_not_saved(make_model, tmp_path):
    network = make_model(tmp_path / "good")
    good = load_model(tmp_path / "good")
    for sigma, settings in ((float("nan"), {}), (-1.0, {}), (1.0, {"rate": float("inf")})):
        (tmp_path / "bad").mkdir(exist_ok=True)
        with pytest.raises(InputError, match="the trained model cannot be saved"):
            save_model(tmp_path / "bad", network, good.preprocessing, good.calibration, sigma, settings, {})
        assert not list((tmp_path / "bad").iterdir())


@pytest.mark.parametrize("make", NO_FILES)
@pytest.mark.parametrize("name", [ARTEFACT, WEIGHTS])
def test_what_is_no_regular_file_is_refused_without_waiting(make_model, tmp_path, make, name):
    make_model(tmp_path / "run")
    (tmp_path / "run" / name).unlink()
    make(tmp_path / "run" / name)
    error = within(20, lambda: load_model(tmp_path / "run"))
    assert isinstance(error, InputError)
    assert "holds no trained model" in str(error)


def compressed(path, state):
    torch.save(state, path)
    with zipfile.ZipFile(path) as archive:
        entries = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries:
            archive.writestr(name, content)


def saved(change):
    def write(path, state):
        change(state)
        torch.save(state, path)

    return write


KEY = "discriminator.distance_weight"
WEIGHTS_FILES = {
    "compressed": (compressed, "larger in memory than on the disk"),
    "old_format": (
        lambda path, state: torch.save(state, path, _use_new_zipfile_serialization=False),
        "cannot be loaded as a model",
    ),
    "nan": (saved(lambda s: s.update({KEY: torch.tensor(torch.nan)})), f"{KEY} holds NaN or Inf"),
    "expanded": (saved(lambda s: s.update({KEY: torch.zeros(()).expand(10**6, 10**6)})), "but the file holds fewer"),
    "double": (saved(lambda s: s.update({KEY: s[KEY].double()})), "does not fit the network"),
    "sparse": (saved(lambda s: s.update({KEY: torch.ones(3).to_sparse()})), "is no dense tensor"),
    "meta": (saved(lambda s: s.update({KEY: torch.empty((), device="meta")})), "is no dense tensor"),
    "number": (saved(lambda s: s.update({KEY: 0.0})), "is no dense tensor"),
    "number_as_name": (saved(lambda s: s.update({7: s[KEY]})), "it holds no tensors by name"),
    "unknown": (saved(lambda s: s.update({"discriminator.more": s[KEY]})), "does not fit the network"),
    "missing": (saved(lambda s: s.pop(KEY)), "does not fit the network"),
}


@pytest.mark.parametrize("case", WEIGHTS_FILES)
def test_weights_that_torch_save_would_not_write_so(make_model, tmp_path, case):
    make_model(tmp_path)
    write, reason = WEIGHTS_FILES[case]
    write(tmp_path / WEIGHTS, torch.load(tmp_path / WEIGHTS))
    message = refusal(tmp_path)
    assert reason in message
    assert str(tmp_path / WEIGHTS) in message
