"""Measure the check that an image shows a chest: detected pictures of other things, and refused radiographs.

    python tests/benchmarks/unlike_a_chest.py MODEL --real NAME=FOLDER_OR_CSV[:PART] ... --spoil NAME=... [--photos FOLDER]

MODEL is the output folder of a training. Every image of a `--real` source is checked as it is; of the `--spoil` sources, one
image in EVERY is turned, inverted, cut to its low byte and squeezed into a strip. A source is a folder or a CSV data list,
whose PART is "train" or "test". Other pictures are made from random numbers or come from pydicom, pydicom-data, scikit-learn
and the folder `--photos`. Prints a Markdown row per kind: number of images, and how many of them are refused by the gates of
the reader (all pictures are PNG, so no header helps), by the check of the features alone, and by either.
"""

from __future__ import annotations

import argparse
import csv
import random
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from monai_wscxr.data.listing import list_images
from monai_wscxr.data.radiograph.base import GATES, RadiographError
from monai_wscxr.data.radiograph.read import read_radiograph
from monai_wscxr.data.transforms import radiograph_transforms
from monai_wscxr.model.artefact import TrainedModel, load_model
from monai_wscxr.model.predictor import prediction_network

Pictures = Iterator[tuple[str, np.ndarray]]


def source_files(source: str) -> list[Path]:
    """Return the images of a folder, or of a part of a CSV data list."""
    path, _, part = source.partition(":")
    if not path.endswith(".csv"):
        return list(list_images([path]).images)
    with open(path, newline="") as table:
        rows = [row for row in csv.DictReader(table) if not part or row["split"] == part]
    return [Path(path).parent / row["image"] for row in rows]


def spoilt(files: list[Path], rng: np.random.Generator) -> Pictures:
    """Yield kind and picture of every way to spoil radiographs."""
    for number, file in enumerate(files):
        image = read_radiograph(file, allow=GATES).image
        yield "inverted", 1 - image
        yield "upside down", image[::-1]
        yield "turned by 180 degrees", image[::-1, ::-1]
        yield "turned by 90 degrees", np.rot90(image, 1 if number % 2 else -1)
        large = np.asarray(Image.fromarray(image * 4095).resize((1024, 1024), Image.Resampling.BICUBIC))
        noisy = np.clip(large + rng.normal(0, 4, large.shape), 0, 4095)
        yield "low byte of 12 bits", (noisy.astype(np.int64) & 255) / 255
        yield "mirrored (accepted)", image[:, ::-1]
        if number % 5 == 0:
            size = (20000, 100) if number % 2 else (100, 20000)
            yield "strip of 20,000 x 100", np.asarray(Image.fromarray(image).resize(size))


def drawn(rng: np.random.Generator) -> Pictures:
    """Yield kind and picture of images made from random numbers."""
    y, x = np.mgrid[0:512, 0:512] / 511 - 0.5
    for number in range(12):
        side = int(rng.choice([64, 224, 512, 1024]))
        yield "white noise", rng.random((side, side))
        yield "white noise", np.clip(0.5 + 0.15 * rng.standard_normal((side, side)), 0, 1)
        angle = rng.uniform(0, 2 * np.pi)
        yield "gradient", stretched(np.cos(angle) * x + np.sin(angle) * y)
        yield "gradient", stretched(np.hypot(x - rng.uniform(-0.3, 0.3), y) * (1 if number % 2 else -1))
        yield "almost uniform", np.clip(0.5 + 0.01 * rng.standard_normal((512, 512)), 0, 1)
        yield "checkerboard", (np.floor(x * 2 ** (number / 2 + 1)) + np.floor(y * 2 ** (number / 2 + 1))) % 2
        page = Image.new("L", (512, 512), 255 * (number % 2))
        for line in range(30):
            ImageDraw.Draw(page).text((10, 16 * line), f"line {line} of page {number} " * 4, 255 * (1 - number % 2))
        yield "page of text", np.asarray(page) / 255
    yield "uniform", np.full((512, 512), 0.5)


def stretched(image: np.ndarray) -> np.ndarray:
    """Map the smallest value to 0 and the largest to 1."""
    return (image - image.min()) / np.ptp(image)


def photographs(folder: Path | None, rng: np.random.Generator) -> Pictures:
    """Yield photographs of scikit-learn, whole and in parts, and those of a folder."""
    from sklearn.datasets import load_sample_images

    for colour in load_sample_images().images:
        grey = np.asarray(Image.fromarray(colour).convert("L")) / 255
        yield "photograph (scikit-learn)", grey
        for _ in range(10):
            side = int(rng.integers(150, 400))
            top, left = (int(rng.integers(0, length - side)) for length in grey.shape)
            yield "photograph (scikit-learn)", grey[top : top + side, left : left + side]
    for file in sorted(folder.iterdir()) if folder else ():
        if file.suffix.lower() in (".png", ".jpg", ".jpeg"):
            with Image.open(file) as picture:
                yield f"picture of {folder.name if folder else ''}", np.asarray(picture.convert("L")) / 255


def dicom_pictures() -> Pictures:
    """Yield the images of pydicom and pydicom-data with at least 32 pixels per side: CT, MR, ultrasound, a hand, a chest."""
    import data_store
    import pydicom

    roots = (Path(pydicom.__file__).parent / "data", Path(data_store.__file__).parent)
    for file in sorted(path for root in roots for path in root.rglob("*") if path.is_file()):
        try:
            data = pydicom.dcmread(file)
            image = np.squeeze(data.pixel_array.astype(float))
        except Exception:  # files that are no images, or damaged on purpose
            continue
        while image.ndim > 2:
            image = image.mean(-1) if image.shape[-1] in (3, 4) else image[len(image) // 2]
        low, high = np.percentile(image, [0.5, 99.5])
        if image.ndim < 2 or min(image.shape) < 32 or high <= low:
            continue
        image = np.clip((image - low) / (high - low), 0, 1)
        kind = {"RG1": "chest (pydicom-data, accepted)", "RG3": "hand (pydicom-data)"}.get(file.name[:3])
        inverted = data.get("PhotometricInterpretation") == "MONOCHROME1"
        yield kind or f"{data.get('Modality', 'other')} (pydicom)", 1 - image if inverted else image


def measure(model: TrainedModel, files: list[Path]) -> tuple[int, int, int]:
    """Return how many files the reader refuses, the check refuses, and one of both refuses."""
    assert model.chest_check is not None
    network = prediction_network(model)
    transform = radiograph_transforms(model.preprocessing, allow=GATES)
    gated = radiograph_transforms(model.preprocessing)
    by_reader = by_check = by_either = 0
    for file in files:
        reader = check = False
        try:
            read_image(gated, file)
        except RadiographError:
            reader = True
        try:
            image = read_image(transform, file)
        except RadiographError:
            check = False
        else:
            _, means = network(image[None])
            check = model.chest_check.refusals(means)[0] is not None
        by_reader, by_check, by_either = by_reader + reader, by_check + check, by_either + (reader or check)
    return by_reader, by_check, by_either


def read_image(transform: object, file: Path) -> torch.Tensor:
    """Return the network input of a file.

    Raises:
        RadiographError: when the file cannot be used.
    """
    from monai_wscxr.data.radiograph.base import find_radiograph_error

    try:
        return transform({"image": str(file)})["image"]  # type: ignore[operator]
    except Exception as error:
        raise find_radiograph_error(error) or error from None


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--real", action="append", default=[], metavar="NAME=SOURCE")
    parser.add_argument("--spoil", action="append", default=[], metavar="NAME=SOURCE")
    parser.add_argument("--every", type=int, default=10, help="share of the images that are spoilt: one in EVERY")
    parser.add_argument("--photos", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    model = load_model(options.model)
    rng = np.random.default_rng(0)
    kinds: dict[str, list[Path]] = {}
    for name, _, source in (given.partition("=") for given in options.real):
        kinds[f"**{name}**, as it is"] = source_files(source)
    with tempfile.TemporaryDirectory() as folder:

        def keep(kind: str, picture: np.ndarray) -> None:
            place = Path(folder) / f"{sum(map(len, kinds.values()))}-{random.getrandbits(32)}.png"
            Image.fromarray((np.clip(picture, 0, 1) * 255).round().astype(np.uint8)).save(place)
            kinds.setdefault(kind, []).append(place)

        for name, _, source in (given.partition("=") for given in options.spoil):
            for kind, picture in spoilt(source_files(source)[:: options.every], rng):
                keep(f"{name}, {kind}", picture)
        for pictures in (drawn(rng), photographs(options.photos, rng), dicom_pictures()):
            for kind, picture in pictures:
                keep(kind, picture)
        print("| images | number | reader | check | either |\n|---|---|---|---|---|", flush=True)
        for kind, files in kinds.items():
            print(f"| {kind} | {len(files)} | {' | '.join(map(str, measure(model, files)))} |", flush=True)


if __name__ == "__main__":
    main()
