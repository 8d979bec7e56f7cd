"""Cross-validation on training images: its splits, the same training as the bundle, and its command."""

import json
import re
import shutil

import pytest
import torch

from monai_wscxr.commands.main import main
from monai_wscxr.errors import InputError
from monai_wscxr.experiments import cross_validation
from monai_wscxr.experiments.cross_validation import RandomSplit, SplitFeatures, random_split, train
from monai_wscxr.experiments.cross_validation.maps import CHANGES
from monai_wscxr.experiments.cross_validation.training import bank_of, training_options
from monai_wscxr.features.copies import ALTERED, copy_features
from monai_wscxr.features.extraction import PatchExtractor
from monai_wscxr.model.mining import mine
from monai_wscxr.model.nuisance import nuisance_of
from tests.helpers.bundle_runs import workflow


def items():
    normal = [{"image": f"n{i}", "label": 0, "class": "normal", "patient": f"p{i // 3}"} for i in range(60)]
    ill = [{"image": f"a{i}", "label": 1, "class": "ab"[i % 2], "patient": f"q{i // 2}"} for i in range(24)]
    return ill + normal


def test_splits_keep_patients_apart_and_nest():
    listed = items()
    for seed in range(20):
        split = random_split(listed, [1, 2, 4], seed)
        assert split == random_split(listed, [1, 2, 4], seed)
        patient = [i["patient"] for i in listed]
        assert not {patient[i] for i in split.normal} & {patient[i] for i in split.held_out}
        assert sorted(split.normal + split.held_out) == list(range(24, 84))
        assert 15 <= len(split.held_out) <= 17
        for k in (1, 2, 4):
            few, unseen = split.few_shot[k], split.unseen[k]
            assert sorted(listed[i]["class"] for i in few) == ["a"] * k + ["b"] * k
            assert not {patient[i] for i in few} & {patient[i] for i in unseen}
            assert len(unseen) == sum(i["label"] == 1 and i["patient"] not in {patient[j] for j in few} for i in listed)
        assert set(split.few_shot[1]) <= set(split.few_shot[2]) <= set(split.few_shot[4])
    assert random_split(listed, [1], 0) != random_split(listed, [1], 1)
    with pytest.raises(InputError, match="leaves no abnormal image"):
        random_split(listed, [12], 0)
    with pytest.raises(InputError, match="k must be 1 or more, got 0"):
        random_split(listed, [1, 0], 0)


def test_it_trains_what_the_bundle_trains(phantoms, tmp_path):
    """Training in cross-validation gives the weights of the bundle's training on the same split."""
    started = workflow("train", phantoms, tmp_path / "run")
    started.run()
    banks = started.parser.get_parsed_content("train#trainer").state.banks
    trained = started.parser.get_parsed_content("network").discriminator
    options = training_options(started.parser.get())
    ours = train(options, banks.normal, banks.mined_rows)
    torch.testing.assert_close(ours.layers[-1].weight, trained.layers[-1].weight, rtol=1e-4, atol=1e-7)


def test_mined_rows_are_those_of_mine(phantoms, make_features):
    from monai_wscxr.data.preprocessing import Preprocessing

    features = make_features()
    preprocessing = Preprocessing(64, features.backbone.mean, features.backbone.std)
    extractor = PatchExtractor(features, preprocessing, cache=False, progress=False)
    files = sorted(phantoms.glob("train/*/*.png"))[:8] + sorted(phantoms.glob("train/abnormal/*/*.png"))
    own = extractor.bank([{"image": str(f)} for f in files])
    bank = own.images
    made = copy_features(extractor, own.files, ALTERED, 2).unflatten(1, own.grid).permute(0, 3, 1, 2)
    n = len(files)
    split = RandomSplit(list(range(6)), [6, 7], {1: [n - 1], 2: [n - 1, n - 2]}, {1: [n - 2], 2: [n - 3]})
    data = SplitFeatures(split, bank, {}, [made[0::2], made[1::2]], range(n), torch.zeros(n).numpy())
    for k, retention in ((1, 0.3), (2, 0.5), (2, 1.0)):
        few = bank_of(bank[split.few_shot[k]])
        for scope in ("all", "image"):
            assert torch.equal(data.mined(k, retention, scope), mine(data.normal, few, retention, scope).bank.rows)
    options = {"copies": 2, "nuisance": 3.0, "copied_normals": 6}
    normal = extractor.bank([{"image": str(f)} for f in files[:6]])
    torch.testing.assert_close(
        data.nuisance(options), 3 * nuisance_of(extractor, normal, 6, 2).covariance, rtol=1e-5, atol=1e-9
    )


def test_the_command_writes_a_table_and_never_opens_the_test_part(phantoms, tmp_path, monkeypatch, capsys):
    source = tmp_path / "data"
    shutil.copytree(phantoms, source)
    for path in source.glob("test/*/*"):
        if path.is_file():
            path.write_bytes(b"unreadable")
    for name in ("consolidation", "nodule"):  # a second image of each class, for validation
        twin = next((phantoms / "test" / "abnormal" / name).glob("*.png"))
        shutil.copy(twin, source / "train" / "abnormal" / name / "more.png")
    small = {"image_size": 64, "epochs": 1, "min_batches": 2, "backbone": "timm/test_resnet", "weights": "none"}
    small |= {"layers": ["2", "3"], "batch_size": 64}
    out = tmp_path / "out"
    arguments = [str(source), str(out), "--k", "1", "--draws", "2", "--options", json.dumps(small)]
    arguments += ["--variants", "maximum; no distance"]
    main(["cross-validate", *arguments])
    table = (out / "table.md").read_text().splitlines()
    assert [line.split("|")[1].strip() for line in table[2:]] == ["default", "maximum", "no distance"]
    assert len((out / "shifts.md").read_text().splitlines()) == 2 + len(CHANGES)
    kept = json.loads((out / "default.json").read_text())["result"]
    assert len(kept["maximum"]["1"]["as they are"]) == 2
    monkeypatch.setattr(cross_validation.CrossValidation, "run", None)  # a second call only reads
    main(["cross-validate", *arguments])
    for wrong, reason in (
        (["--k", "1", "--options", '{"image_sise": 64}'], "unknown option image_sise: did you mean image_size"),
        (["--variants", "magic"], "there is no variant 'magic'"),
    ):
        with pytest.raises(SystemExit) as end:
            main(["cross-validate", str(source), str(out), *wrong])
        assert end.value.code == 2
        assert re.search(reason, capsys.readouterr().err)
