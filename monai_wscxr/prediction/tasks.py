"""What a worker process does for one image: read it, and later write its results."""

from __future__ import annotations

import dataclasses
import datetime
import gzip
import io
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from monai_wscxr.data.encoding import encode_jpeg, encode_png
from monai_wscxr.data.radiograph.base import find_radiograph_error, quiet
from monai_wscxr.data.radiograph.read import read_radiograph
from monai_wscxr.data.transforms import radiograph_transforms
from monai_wscxr.model.artefact import TrainedModel
from monai_wscxr.model.networks import WSCXRNet
from monai_wscxr.model.predictor import Prediction, to_map
from monai_wscxr.report.overlay import THRESHOLD_COLOUR, ColourScale, grey_levels, heatmap, outline, overlay
from monai_wscxr.system.atomic import write_bytes_atomic

MAP_FORMATS = ("nifti", "tiff", "npy", "none")
_MAP_ENDINGS = {"nifti": "nii.gz", "tiff": "tiff", "npy": "npy"}


@dataclass(frozen=True)
class Wanted:
    """Which files a run writes.

    Attributes:
        folder: output folder.
        maps: one of `MAP_FORMATS`.
        overlays, pictures, dicom: overlays as PNG, pictures of the report, DICOM results.
        allow: gates of the loader that stay open.
        began: when the run was begun, ISO format; the content time of DICOM results.
    """

    folder: str
    maps: str = "tiff"
    overlays: bool = True
    pictures: bool = True
    dicom: bool = False
    allow: tuple[str, ...] = ()
    began: str = ""


@dataclass(frozen=True)
class Loaded:
    """One image as a worker hands it over.

    Attributes:
        image: network input, float32 [3, S, S].
        radiograph: float32 [S, S] in [0, 1].
        padding: bool [S, S], True where the file has padding; None without any.
        rows, columns: size of the picture in the file.
        format, polarity, intensity: how it was read, see `Radiograph`.
        seconds: spent on it.
    """

    image: NDArray[np.float32]
    radiograph: NDArray[np.float32]
    padding: NDArray[np.bool_] | None
    rows: int
    columns: int
    format: str
    polarity: str
    intensity: str
    seconds: float


@dataclass(frozen=True)
class Written:
    """What became of one image.

    Attributes:
        files: names relative to the output folder, by what they are.
        sizes: bytes of each. Files are not synced one by one, which costs more than all the rest; the same command given
            again after a power failure knows by their size what did not reach the disk.
        note: why something that was wanted could not be written; empty otherwise.
        seconds: spent on it.
    """

    files: dict[str, str]
    sizes: dict[str, int]
    note: str
    seconds: float


class _Setup:
    """Of this process: the model without its network, the transform and what to write."""

    def __init__(self, model: TrainedModel, wanted: Wanted) -> None:
        self.model, self.wanted = model, wanted
        self.load = radiograph_transforms(
            model.preprocessing, keep_radiograph=True, allow=wanted.allow, keep_source=True
        )
        self.scale = colour_scale(model)


_setup: _Setup | None = None


def colour_scale(model: TrainedModel) -> ColourScale:
    """The one colour scale of a model."""
    calibration = model.calibration
    return ColourScale(calibration.colour_low, calibration.colour_high, calibration.threshold)


def without_network(model: TrainedModel) -> TrainedModel:
    """The model as workers get it: all but the network, which stays in the process that predicts."""
    return dataclasses.replace(model, network=cast(WSCXRNet, torch.nn.Identity()))


def prepare(model: TrainedModel, wanted: Wanted) -> None:
    """Set up this process; called once before `read` and `write`."""
    global _setup
    torch.set_num_threads(1)
    _setup = _Setup(model, wanted)


def prepare_here(model: TrainedModel, wanted: Wanted) -> None:
    """`prepare` for a run without worker processes, which keeps the threads of its network."""
    global _setup
    _setup = _Setup(model, wanted)


def read(path: str) -> Loaded:
    """Read one image.

    Raises:
        RadiographError: when it cannot be used.
    """
    began = time.perf_counter()
    assert _setup is not None
    try:
        loaded: Any = _setup.load({"image": path})
    except Exception as error:
        raise find_radiograph_error(error) or error from None
    source = loaded["source"]
    size = _setup.model.preprocessing.image_size
    return Loaded(
        image=loaded["image"].numpy(),
        radiograph=loaded["radiograph"][0].clamp(0, 1).numpy(),
        padding=None if source.padding is None else _resized(source.padding, size),
        rows=source.image.shape[0],
        columns=source.image.shape[1],
        format=source.format,
        polarity=source.polarity,
        intensity=source.intensity,
        seconds=time.perf_counter() - began,
    )


def write(number: int, path: str, prediction: Prediction, loaded: Loaded) -> Written:
    """Write the results of one image; every file is complete or not there.

    Args:
        number: of the input; file names carry nothing else.
        path: of the image, from which DICOM results take the patient and study they belong to.
        prediction: with its patch scores.
        loaded: what `read` gave.
    """
    began = time.perf_counter()
    assert _setup is not None
    wanted, scale = _setup.wanted, _setup.scale
    folder, stem = Path(wanted.folder), f"{number:06d}"
    anomaly_map = to_map(_setup.model, prediction)
    if loaded.padding is not None:  # no measurement was made there: the low end of the scale, where nothing is drawn
        anomaly_map = np.where(loaded.padding, np.float32(scale.low), anomaly_map)
    files: dict[str, str] = {}
    sizes: dict[str, int] = {}

    def keep(what: str, name: str, data: bytes) -> None:
        write_bytes_atomic(folder / name, data, durable=False)
        files[what], sizes[what] = name, len(data)

    if wanted.maps != "none":
        keep("map", f"maps/{stem}.{_MAP_ENDINGS[wanted.maps]}", encode_map(anomaly_map, wanted.maps))
    coloured = overlay(loaded.radiograph, anomaly_map, scale) if wanted.overlays or wanted.pictures else None
    if wanted.overlays and coloured is not None:
        keep("overlay", f"overlays/{stem}.png", encode_png(coloured, quick=True))
    if wanted.pictures and coloured is not None:
        above = anomaly_map >= _setup.model.calibration.threshold
        pictures = {
            "radiograph": grey_levels(loaded.radiograph),
            "map": outline(heatmap(anomaly_map, scale), above, THRESHOLD_COLOUR),
            "overlay": outline(coloured, above, THRESHOLD_COLOUR),
        }
        for what, picture in pictures.items():
            keep(f"picture_{what}", f"report/pictures/{stem}-{what}.jpg", encode_jpeg(picture))
    note = ""
    if wanted.dicom and loaded.format != "dicom":
        note = "no DICOM results: the image is no DICOM file, so there is no patient or study they could belong to"
    elif wanted.dicom:
        try:
            results = _dicom_results(path, prediction, anomaly_map)
        except Exception as error:  # odd headers fail in many ways, and the text of an error may quote them
            note = f"no DICOM results: the header of the image does not allow them ({type(error).__name__})"
            results = {}
        for what, data in results.items():
            keep(f"dicom_{what}", f"dicom/{stem}-{what}.dcm", data)
    return Written(files, sizes, note, time.perf_counter() - began)


def encode_map(anomaly_map: NDArray[np.float32], kind: str) -> bytes:
    """A map [S, S] as the bytes of a file: 32-bit TIFF, NPY, or NIfTI with axes x, y (gzip without a time)."""
    values = np.ascontiguousarray(anomaly_map, dtype=np.float32)
    buffer = io.BytesIO()
    if kind == "tiff":
        Image.fromarray(values).save(buffer, format="TIFF")
    elif kind == "npy":
        np.save(buffer, values, allow_pickle=False)
    else:
        image: Any = nib.Nifti1Image(np.ascontiguousarray(values.T)[..., None], np.eye(4))
        return gzip.compress(image.to_bytes(), compresslevel=1, mtime=0)
    return buffer.getvalue()


def _dicom_results(path: str, prediction: Prediction, anomaly_map: NDArray[np.float32]) -> dict[str, bytes]:
    from monai_wscxr.report import dicom

    assert _setup is not None
    calibration = _setup.model.calibration
    finding = dicom.Finding(
        anomaly_score=prediction.anomaly_score,
        p_value=prediction.p_value,
        abnormal=prediction.abnormal,
        threshold=calibration.threshold,
        false_positive_rate=calibration.false_positive_rate,
        model_sha256=_setup.model.sha256,
        anomaly_map=anomaly_map,
        scale=_setup.scale,
    )
    # read again: only this one result needs the picture in full size
    image = read_radiograph(path, allow=_setup.wanted.allow).image
    began = datetime.datetime.fromisoformat(_setup.wanted.began)
    with quiet:
        return dicom.encode_results(path, image, finding, began)


def _resized(mask: NDArray[np.bool_], size: int) -> NDArray[np.bool_]:
    """A mask at another size: where at least half of a pixel is masked."""
    share = Image.fromarray(np.ascontiguousarray(mask, dtype=np.float32))
    return np.asarray(share.resize((size, size), Image.Resampling.BOX)) >= 0.5
