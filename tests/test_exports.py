"""The public names of the packages: all there, listed once, and pinned."""

import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import monai_wscxr
from monai_wscxr.system.lazy import exported_names

ROOT = Path(monai_wscxr.__file__).parent
PACKAGES = sorted(stub.parent.relative_to(ROOT).as_posix().replace("/", ".") for stub in ROOT.rglob("__init__.pyi"))
EXPORTED = {
    "bank": {
        "BankFile",
        "BankFolder",
        "BankOnDisk",
        "FeatureBank",
        "FeatureCache",
        "FileRows",
        "RowSource",
        "cache_root",
        "farthest",
        "nearest",
        "plan_search",
        "save_rows",
    },
    "data": {
        "DatalistError",
        "LoadMaskd",
        "LoadRadiographd",
        "NormaliseChannelsd",
        "Preprocessing",
        "Radiograph",
        "RadiographLoader",
        "RadiographError",
        "RadiographStream",
        "ResizeRadiographd",
        "StandardiseIntensityd",
        "TrainingSplit",
        "load_datalist",
        "radiograph_transforms",
        "read_radiograph",
        "training_split",
        "write_phantoms",
    },
    "data.collections": {"READERS", "Limits", "Record", "assemble", "make_datalist", "write_datalist"},
    "data.radiograph": {"Radiograph", "RadiographError", "read_radiograph"},
    "evaluation": {
        "EvaluationHandler",
        "InferenceHandler",
        "ProgressHandler",
        "epoch_network",
        "evaluation_items",
        "honest_metrics",
        "inference_items",
        "localisation_metrics",
        "paper_metrics",
    },
    "experiments.cross_validation": {
        "CrossValidation",
        "RandomSplit",
        "SplitFeatures",
        "VARIANTS",
        "cross_validate",
        "random_split",
        "train",
    },
    "experiments.protocol": {"EFFORTS", "METHODS", "TABLES", "parse_methods", "run_protocol"},
    "experiments.baselines": {
        "AnatPaste",
        "CutPaste",
        "CutPasteReduced",
        "Ddad",
        "DiscriminantAnalysis",
        "GreyImages",
        "ImageMethod",
        "ImageReader",
        "LabelledMethod",
        "LogisticClassifier",
        "Method",
        "NearestNormal",
        "PatchCore",
        "SimpleNet",
        "Squid",
        "labelled_split",
        "normal_split",
        "run_image_method",
        "run_method",
    },
    "adaptation": {"Adaptation", "adapt", "extractor_for"},
    "features": {
        "Backbone",
        "Inference",
        "PatchExtractor",
        "PatchFeatures",
        "ThreadParallel",
        "create_backbone",
        "to_rows",
    },
    "model": {
        "Calibration",
        "CheckedNet",
        "ColourScale",
        "Discriminator",
        "HingeLoss",
        "Mined",
        "MixingInferer",
        "NormalWhitening",
        "PatchBatches",
        "Prediction",
        "TrainedModel",
        "WSCXRNet",
        "anomaly_map",
        "anomaly_score",
        "build_network",
        "calibrate",
        "collate",
        "load_model",
        "mine",
        "predict_files",
        "prediction_network",
        "prepare_patch_batch",
        "save_model",
    },
    "planning": {"Plan", "check_precision", "make_plan"},
    "prediction": {"Model", "Options", "Result", "load", "predict", "train"},
    "report": {
        "Case",
        "Entry",
        "choose_cases",
        "encode_map",
        "heatmap",
        "model_card",
        "outline",
        "write_predictions",
        "write_report",
        "write_run_report",
    },
    "system": {"data_parallel", "join_processes", "leave"},
    "training": {
        "ArtefactHandler",
        "BankOptions",
        "DistanceHandler",
        "EpochLogHandler",
        "EpochStateHandler",
        "ImageFeatures",
        "MiningHandler",
        "NormalsOnlyHandler",
        "OpacityHandler",
        "RegionHandler",
        "RunFolder",
        "ScoresAndLabels",
        "ThreadsHandler",
        "TrainingBanks",
        "check_calibration_options",
        "check_dataset_dir",
        "check_normals_only",
        "check_opacity_options",
        "check_score_options",
        "create_optimizer",
        "distance_weight",
        "kept_epochs",
        "pack_bundle",
        "prepare_banks",
        "release_banks",
        "run_settings",
        "start_run",
        "train_once",
        "training_workflow",
    },
}


def test_the_exported_names_are_these():
    assert {package: set(exported_names(f"monai_wscxr.{package}")) for package in PACKAGES} == EXPORTED


@pytest.mark.parametrize("package", PACKAGES)
def test_every_exported_name_exists_and_hides_no_module(package):
    module = importlib.import_module(f"monai_wscxr.{package}")
    names = exported_names(module.__name__)
    assert module.__all__ == sorted(names) == dir(module)
    modules = {found.name for found in pkgutil.iter_modules(module.__path__)}
    assert not modules & set(names)
    for name, defined in names.items():
        assert getattr(module, name) is getattr(importlib.import_module(defined), name)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        module.nothing  # noqa: B018


def test_configurations_name_exported_names_only():
    named = set()
    for path in sorted((ROOT.parent / "bundles" / "wscxr_chest_xray" / "configs").glob("*.yaml")):
        text = re.sub(r"(?m)^\s*#.*$|\s#.*$", "", path.read_text())
        named |= set(re.findall(r"\bmonai_wscxr\.((?:[a-z_]+\.)+)(\w+)", text))
    assert len(named) > 20
    for package, name in named:
        assert name in exported_names(f"monai_wscxr.{package.rstrip('.')}"), f"{package}{name}"
