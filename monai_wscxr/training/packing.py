"""A MONAI bundle with a trained model, to pass on: weights, artefact, configurations, model card, licence, metadata."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from importlib import metadata as packages
from pathlib import Path
from typing import Any

import monai
import numpy as np
import torch
import yaml
from monai.bundle import ConfigParser, ckpt_export

import monai_wscxr
from monai_wscxr.errors import InputError
from monai_wscxr.model.artefact import TrainedModel, load_model
from monai_wscxr.model.description import ARTEFACT, WEIGHTS
from monai_wscxr.report.card import PRIVATE_SETTINGS, counts_alone, model_card, read_metrics
from monai_wscxr.system.atomic import DiskFullError, sync, write_text_atomic
from monai_wscxr.training.configs import default_values, find_configs

LARGEST_FILE = 25 << 20
"""Bytes of the largest file that MONAI's model zoo takes without a link to another place."""

_COPIED = ("train.yaml", "multi_gpu_train.yaml", "logging.conf")
_ARCHITECTURE = ("backbone", "features", "discriminator", "whitening")
_BACKBONES = "Weights of the frozen backbones come from their publishers"


def pack_bundle(
    model_folder: str | Path,
    output: str | Path,
    version: str = "0.1.0",
    changes: str = "first version",
    data_licence: str | Path | None = None,
    torchscript: bool = False,
) -> Path:
    """Make a MONAI bundle that holds a trained model.

    The bundle appears whole: it is written beside its folder and renamed. The folder of the training data is left out of the
    artefact; digests of the training images stay, so that an evaluation can refuse them as test images.

    Args:
        model_folder: output folder of a training; figures of its evaluation go to card and metadata.
        output: folder of the bundle, or a ZIP file NAME.zip or NAME_vVERSION.zip that holds the folder NAME: new, empty, or an
            earlier version of it, which is replaced.
        version: version of the bundle, three numbers with dots; higher than earlier ones.
        changes: what is new, for the changelog.
        data_licence: text file with the terms of the training images.
        torchscript: add `models/model.ts`.

    Returns:
        the folder of the bundle, or the ZIP file.

    Raises:
        InputError: on a folder without a model, a version that is none or is not higher, a folder that holds something else, or
            one that cannot be written.
    """
    place = Path(output).resolve()
    zipped = place.suffix.lower() == ".zip"
    changelog = {**_earlier_versions(place, zipped, version), version: changes}
    name = place.stem.removesuffix(f"_v{version}") if zipped else place.name
    terms = read_terms(data_licence)
    model = load_model(model_folder)
    metrics = read_metrics(model)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{place.name}.", suffix=".partial", dir=place.parent) as made:
            bundle = Path(made) / name
            _write(bundle, model, metrics, terms, version, changelog)
            if torchscript:
                _write_torchscript(bundle, model)
            if zipped:
                archive = shutil.make_archive(str(Path(made) / "archive"), "zip", root_dir=made, base_dir=name)
                Path(archive).replace(place)
                sync(place.parent)
            else:
                _replace(place, bundle, Path(made) / "before")
    except DiskFullError:
        raise
    except OSError as error:
        raise InputError(f"the bundle {place} cannot be written ({error})") from error
    return place


def read_terms(file: str | Path | None) -> str:
    """Read the terms of the training images; "" for None.

    Raises:
        InputError: when the file cannot be read as text.
    """
    if file is None:
        return ""
    try:
        return Path(file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--data_licence {file} cannot be read ({error})") from error


def _earlier_versions(place: Path, zipped: bool, version: str) -> dict[str, str]:
    """Return the changelog of a bundle that lies in a folder or ZIP file; {} for a new one."""
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        raise InputError(f"--version must be three numbers with dots, for instance 0.2.0; got {version!r}")
    if not zipped and place.exists() and not place.is_dir():
        raise InputError(f"{place} is a file; give a folder with --output, or a name that ends with .zip")
    if not place.exists() or (place.is_dir() and not any(place.iterdir())):
        return {}
    what = "file" if zipped else "folder"
    try:
        read = _read_archive if zipped else _read_folder
        found, whole = read(place)
        earlier = {str(name): str(text) for name, text in json.loads(found)["changelog"].items()}
        latest = max(earlier, key=_numbers)
    except (OSError, ValueError, KeyError, AttributeError, TypeError, StopIteration, zipfile.BadZipFile):
        known = "is no packed bundle" if zipped else "is not empty and holds no packed bundle"
        raise InputError(f"{place} {known}; give a new {what} with --output") from None
    if not whole:
        raise InputError(f"{place} holds a bundle without a model of this package; give a new {what} with --output")
    if _numbers(version) <= _numbers(latest):
        raise InputError(
            f"{place} holds version {latest}; give a higher one with --version, and --changes for the changelog"
        )
    return earlier


def _read_folder(folder: Path) -> tuple[str, bool]:
    """Return the metadata of the bundle in a folder, and whether it holds a model of this package."""
    text = (folder / "configs" / "metadata.json").read_text(encoding="utf-8")
    return text, (folder / "models" / ARTEFACT).is_file()


def _read_archive(file: Path) -> tuple[str, bool]:
    """Return the metadata of the bundle in a ZIP file, and whether it holds a model of this package."""
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        name = next(name for name in names if re.fullmatch(r"[^/]+/configs/metadata\.json", name))
        return archive.read(name).decode(), f"{name.partition('/')[0]}/models/{ARTEFACT}" in names


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _write(
    bundle: Path,
    model: TrainedModel,
    metrics: Mapping[str, Any] | None,
    terms: str,
    version: str,
    changelog: Mapping[str, str],
) -> None:
    """Write all files of a bundle except TorchScript."""
    for name in ("configs", "docs", "models"):
        (bundle / name).mkdir(parents=True)
    _write_model(bundle / "models", model)
    _write_configs(bundle / "configs", json.loads((bundle / "models" / ARTEFACT).read_text(encoding="utf-8")))
    described = _metadata(model, metrics, version, changelog)
    write_text_atomic(bundle / "configs" / "metadata.json", json.dumps(described, indent=4))
    source = find_configs().parent
    shutil.copyfile(source / "LICENSE", bundle / "LICENSE")
    card = model_card(model, metrics, default_values(), terms)
    write_text_atomic(bundle / "docs" / "README.md", card + _commands(bundle.name))
    backbones = (source / "docs" / "data_license.txt").read_text(encoding="utf-8")
    backbones = backbones[backbones.index(_BACKBONES) :]
    stated = terms or "The terms of the training images were not stated."
    write_text_atomic(bundle / "docs" / "data_license.txt", f"{stated}\n\n{backbones}")


def _write_model(folder: Path, model: TrainedModel) -> None:
    """Copy the weights and the artefact, without what names folders and files of the machine that trained."""
    shutil.copyfile(model.folder / WEIGHTS, folder / WEIGHTS)
    description = json.loads((model.folder / ARTEFACT).read_text(encoding="utf-8"))
    settings = {name: value for name, value in description["settings"].items() if name not in PRIVATE_SETTINGS}
    if isinstance(settings.get("weights"), str):
        settings["weights"] = Path(settings["weights"]).name
    training = dict(description["training"])
    training["rejected"] = [[code, ""] for code, _ in training.get("rejected") or []]
    training["overlap"] = counts_alone(training.get("overlap") or [])
    content = {**description, "settings": settings, "training": training}
    write_text_atomic(folder / ARTEFACT, json.dumps(content, indent=1))
    load_model(folder)


def _write_configs(folder: Path, description: Mapping[str, Any]) -> None:
    """Write the configurations; those of evaluation and inference take the model from the bundle itself."""
    source = find_configs()
    for name in _COPIED:
        shutil.copyfile(source / name, folder / name)
    own = {"model_dir": "$@bundle_root + '/models'", "output_dir": "$@bundle_root + '/eval'"}
    architecture = {part: description[part] for part in _ARCHITECTURE}
    network = yaml.safe_dump(
        {"network_def": {"_target_": "monai_wscxr.model.build_network", "description": architecture}}, sort_keys=False
    )
    for name in ("evaluate.yaml", "inference.yaml"):
        text = (source / name).read_text(encoding="utf-8")
        for key, value in {**own, **({"result_dir": "'@output_dir'"} if "\nresult_dir:" in text else {})}.items():
            text = _with_value(text, key, value)
        text = _replaced_once(text, r"(?m)^network_def: .*\n", network)
        text = _replaced_once(text, r"\A(?:#.*\n)+", _HEADERS[name])
        write_text_atomic(folder / name, text)
        # monai.bundle.load looks for JSON
        content = json.dumps(ConfigParser.load_config_file(str(folder / name)), indent=2)
        write_text_atomic((folder / name).with_suffix(".json"), content)


_HEADERS = {
    "evaluate.yaml": "# Evaluate the model of this bundle on the test part of a data set; results go to eval/:\n"
    "#   python -m monai.bundle run evaluating --config_file configs/evaluate.yaml --dataset_dir DIR\n",
    "inference.yaml": "# Apply the model of this bundle to radiographs; results go to eval/:\n"
    "#   python -m monai.bundle run inferring --config_file configs/inference.yaml --dataset_dir DIR\n",
}
_COMMENTS = {"output_dir": "folder for the results", "model_dir": "folder with model.pt and artefact.json"}


def _with_value(text: str, key: str, value: str) -> str:
    """Return the text of a configuration with another value of an option."""
    comment = f"  # {_COMMENTS[key]}" if key in _COMMENTS else ""
    return _replaced_once(text, rf"(?m)^{key}: .*\n", f"{key}: {value}{comment}\n")


def _replaced_once(text: str, pattern: str, by: str) -> str:
    found, count = re.subn(pattern, lambda _: by, text)
    if count != 1:
        raise RuntimeError(f"the bundle's configuration has {count} places for {pattern}")
    return found


def _metadata(
    model: TrainedModel, metrics: Mapping[str, Any] | None, version: str, changelog: Mapping[str, str]
) -> dict[str, Any]:
    """Return the metadata: that of the bundle, with version, installed packages, figures and the model's shapes."""
    described = json.loads((find_configs() / "metadata.json").read_text(encoding="utf-8"))
    size, channels = model.preprocessing.image_size, len(model.preprocessing.mean)
    with torch.inference_mode():
        height, width = model.network(torch.zeros(1, channels, size, size)).shape[-2:]
    described |= {
        "version": version,
        "changelog": dict(sorted(changelog.items(), key=lambda item: _numbers(item[0]), reverse=True)),
        "monai_version": monai.__version__.partition("+")[0],
        "pytorch_version": torch.__version__.partition("+")[0],
        "numpy_version": np.__version__,
        "required_packages_version": {
            **{
                name: packages.version(name).partition("+")[0]
                for name in described["required_packages_version"]
                if name != "monai_wscxr"
            },
            "monai_wscxr": monai_wscxr.__version__,
        },
        "data_source": _source(model),
        "eval_metrics": {}
        if metrics is None
        else {key: metrics["honest"][key] for key in ("auroc", "sensitivity", "specificity")},
    }
    image = described["network_data_format"]["inputs"]["image"]
    image |= {
        "num_channels": channels,
        "spatial_shape": [size, size],
        "value_range": [
            round(min((0 - m) / s for m, s in zip(model.preprocessing.mean, model.preprocessing.std, strict=True)), 3),
            round(max((1 - m) / s for m, s in zip(model.preprocessing.mean, model.preprocessing.std, strict=True)), 3),
        ],
        "channel_def": {str(channel): "grey" for channel in range(channels)},
    }
    described["network_data_format"]["outputs"]["pred"]["spatial_shape"] = [height, width]
    return dict(described)


def _source(model: TrainedModel) -> str:
    record = model.training
    abnormal = sum((record.get("abnormal_images") or {}).values())
    normal, held_out = (record.get(name, "unknown") for name in ("normal_images", "held_out_images"))
    return f"{normal} normal and {abnormal} abnormal radiographs, {held_out} normal ones held out"


def _commands(name: str) -> str:
    return "\n".join(
        [
            "",
            "## Commands",
            "",
            "In the folder of this bundle, with the Python package `monai_wscxr` installed:",
            "",
            "```",
            "python -m monai.bundle run inferring  --config_file configs/inference.yaml --dataset_dir DIR",
            "python -m monai.bundle run evaluating --config_file configs/evaluate.yaml  --dataset_dir DIR",
            "monai-wscxr predict --model models PATH... --output DIR",
            "python -m monai.bundle ckpt_export network_def --filepath models/model.ts --ckpt_file models/model.pt \\",
            "  --meta_file configs/metadata.json --config_file configs/inference.yaml",
            "```",
            "",
            "From Python, beside the folder of this bundle:",
            "",
            "```python",
            "import monai_wscxr, monai.bundle",
            f'result = monai_wscxr.load("{name}/models").predict("radiograph.png")',
            f'network = monai.bundle.load("{name}", bundle_dir=".", workflow_type="inference", device="cpu")',
            "```",
            "",
        ]
    )


def _write_torchscript(bundle: Path, model: TrainedModel) -> None:
    """Write `models/model.ts`: the network alone, from a preprocessed image to patch scores."""
    configs = bundle / "configs"
    ckpt_export(
        net_id="network_def",
        filepath=str(bundle / "models" / "model.ts"),
        ckpt_file=str(bundle / "models" / WEIGHTS),
        meta_file=str(configs / "metadata.json"),
        config_file=str(configs / "inference.yaml"),
        bundle_root=str(bundle),
    )


def _replace(folder: Path, bundle: Path, before: Path) -> None:
    """Put the finished bundle in the place of its folder; an earlier version leaves only when the new one is there."""
    if folder.exists():
        folder.rename(before)
    try:
        bundle.rename(folder)
    except BaseException:  # Ctrl-C, too: the folder around both is about to be removed
        if before.exists():
            before.rename(folder)
        raise
    sync(folder.parent)
