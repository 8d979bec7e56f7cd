"""Tasks of the worker processes: read an image, and later write its results."""

from __future__ import annotations

import dataclasses
import datetime
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from monai_wscxr.data.encoding import encode_jpeg, encode_png
from monai_wscxr.data.preprocessing import Preprocessing, RadiographLoader, normalise_channels
from monai_wscxr.data.radiograph.base import find_radiograph_error, quiet
from monai_wscxr.data.radiograph.read import read_radiograph
from monai_wscxr.model.artefact import TrainedModel
from monai_wscxr.model.calibration import ColourScale
from monai_wscxr.model.networks import WSCXRNet
from monai_wscxr.model.predictor import Prediction, to_map
from monai_wscxr.report.maps import MAP_SUFFIXES, encode_map
from monai_wscxr.report.overlay import THRESHOLD_COLOUR, grey_levels, heatmap, outline, overlay
from monai_wscxr.system.atomic import write_bytes_atomic

if TYPE_CHECKING:
    from monai_wscxr.report.dicom import DicomResults


@dataclass(frozen=True)
class OutputOptions:
    """Files that a run writes.

    Attributes:
        folder: output folder.
        maps: format of the anomaly maps, one of `MAP_FORMATS`.
        overlays, pictures, dicom: whether to write overlays (PNG), pictures of the report and DICOM results.
        allow: reason codes of readable images that are predicted anyway, from `GATES`.
        began: start of the run in ISO format, the time of creation of DICOM results.
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
    """One image that a worker has read.

    Attributes:
        image: the preprocessed image before its channels are normalised, float32 [1, S, S]; `network_input` does that.
        radiograph: the preprocessed image, float32 [S, S] in [0, 1].
        padding: bool [S, S], True where the file has padding; None without padding.
        rows, columns: size of the image in the file.
        format, polarity, intensity, acquired: how the file was read, see `Radiograph`.
        seconds: time spent reading.
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
    acquired: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Written:
    """Results of one image on disk.

    Attributes:
        files: names of the files, relative to the output folder, by kind.
        sizes: size of each file in bytes. Files are not synced one by one, which would dominate the run time; after a power
            failure their sizes tell which of them did not reach the disk.
        without_dicom: reason code and message when requested DICOM results could not be made; the code is one of
            `report.dicom_header.REASONS`.
        instance, results: see `report.dicom.DicomResults`; "" for an image without DICOM results.
        seconds: time spent writing.
    """

    files: dict[str, str]
    sizes: dict[str, int]
    without_dicom: tuple[str, str] | None
    instance: str
    results: str
    seconds: float


class _Setup:
    """State of this process: the model without its network, the output options and the transform that reads images."""

    def __init__(self, model: TrainedModel, output: OutputOptions) -> None:
        self.model, self.output = model, output
        self.load = RadiographLoader(
            model.preprocessing, keep_radiograph=True, allow=output.allow, keep_source=True, normalise=False
        )


_setup: _Setup | None = None


def without_network(model: TrainedModel) -> TrainedModel:
    """Return the model for worker processes, without the network, which stays in the predicting process."""
    return dataclasses.replace(model, network=cast(WSCXRNet, torch.nn.Identity()))


def prepare(model: TrainedModel, output: OutputOptions) -> None:
    """Initialise a worker process; to be called once before `read` and `write`."""
    torch.set_num_threads(1)
    prepare_here(model, output)


def prepare_here(model: TrainedModel, output: OutputOptions) -> None:
    """Initialise this process for a run without worker processes; the network keeps its threads."""
    global _setup
    _setup = _Setup(model, output)


def network_input(preprocessing: Preprocessing, loaded: Loaded) -> Tensor:
    """Return the network input [C, S, S] of an image that a worker has read."""
    return normalise_channels(torch.from_numpy(loaded.image), preprocessing.mean, preprocessing.std)


def read(path: str) -> Loaded:
    """Read and preprocess one image.

    Raises:
        RadiographError: when the image cannot be used.
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
        acquired=source.acquired,
    )


def write(number: int, path: str, prediction: Prediction, loaded: Loaded) -> Written:
    """Write the results of one image; each file is either complete or absent.

    Args:
        number: number of the input; file names contain nothing else.
        path: the image, whose header DICOM results refer to.
        prediction: prediction with its patch scores.
        loaded: the image as `read` returned it.
    """
    began = time.perf_counter()
    assert _setup is not None
    output = _setup.output
    stem = f"{number:06d}"
    anomaly_map = map_of(prediction, loaded)
    results: dict[str, tuple[str, bytes]] = {}  # kind to file name and contents
    if output.maps != "none":
        results["map"] = f"maps/{stem}.{MAP_SUFFIXES[output.maps]}", encode_map(anomaly_map, output.maps)
    if output.overlays or output.pictures:
        results |= _pictures(stem, loaded.radiograph, anomaly_map)
    without_dicom, instance, identity = None, "", ""
    if output.dicom and loaded.format != "dicom":
        without_dicom = "not_dicom", "the image is not a DICOM file, so it belongs to no patient or study"
    elif output.dicom:
        made = dicom_results(path, prediction, anomaly_map, datetime.datetime.fromisoformat(output.began))
        if isinstance(made, tuple):
            without_dicom = made
        else:
            instance, identity = made.instance, made.results
            results |= {f"dicom_{kind}": (f"dicom/{stem}-{kind}.dcm", data) for kind, data in made.objects.items()}
    for name, data in results.values():
        write_bytes_atomic(Path(output.folder) / name, data, durable=False)
    files = {kind: name for kind, (name, _) in results.items()}
    sizes = {kind: len(data) for kind, (_, data) in results.items()}
    return Written(files, sizes, without_dicom, instance, identity, time.perf_counter() - began)


def colour_scale() -> ColourScale:
    """Return the colour scale of the model."""
    assert _setup is not None
    return _setup.model.colour_scale


def map_of(prediction: Prediction, loaded: Loaded) -> NDArray[np.float32]:
    """Compute the anomaly map [S, S] of an image, with the low end of the colour scale where the file has padding."""
    assert _setup is not None
    anomaly_map = to_map(_setup.model, prediction)
    if loaded.padding is not None:  # nothing was measured there, and nothing is drawn at the low end
        anomaly_map = np.where(loaded.padding, np.float32(_setup.model.colour_scale.low), anomaly_map)
    return anomaly_map


def _pictures(
    stem: str, radiograph: NDArray[np.float32], anomaly_map: NDArray[np.float32]
) -> dict[str, tuple[str, bytes]]:
    """Draw the overlay and the pictures of the report; returns names and contents of the files by kind."""
    assert _setup is not None
    model, output = _setup.model, _setup.output
    results = {}
    coloured = overlay(radiograph, anomaly_map, model.colour_scale)
    if output.overlays:
        results["overlay"] = f"overlays/{stem}.png", encode_png(coloured, quick=True)
    if output.pictures:
        above = anomaly_map >= model.calibration.map_line
        pictures = {
            "radiograph": grey_levels(radiograph),
            "map": outline(heatmap(anomaly_map, model.colour_scale), above, THRESHOLD_COLOUR),
            "overlay": outline(coloured, above, THRESHOLD_COLOUR),
        }
        for kind, picture in pictures.items():
            results[f"picture_{kind}"] = f"report/pictures/{stem}-{kind}.jpg", encode_jpeg(picture)
    return results


def dicom_results(
    path: str, prediction: Prediction, anomaly_map: NDArray[np.float32], created: datetime.datetime
) -> DicomResults | tuple[str, str]:
    """Create the DICOM results of an image.

    Args:
        path: the image.
        prediction: its prediction.
        anomaly_map: float32 [S, S], see `map_of`.
        created: date and time of creation.

    Returns:
        the results, or reason code and message when the header does not allow them.
    """
    from monai_wscxr.report import dicom, dicom_header

    assert _setup is not None
    model = _setup.model
    finding = dicom.Finding(
        anomaly_score=prediction.anomaly_score,
        p_value=prediction.p_value,
        abnormal=prediction.abnormal,
        threshold=model.calibration.threshold,
        false_positive_rate=model.calibration.supported_rate,
        model_sha256=model.sha256,
        anomaly_map=anomaly_map,
        scale=model.colour_scale,
    )
    # read again: only DICOM results need the image in full size
    image = read_radiograph(path, allow=_setup.output.allow).image
    try:
        with quiet:
            return dicom.encode_results(path, image, finding, created)
    except dicom_header.HeaderError as error:
        return error.code, str(error)
    except Exception as error:  # unusual headers fail in many ways, and the error's text may quote them
        return "header", f"the header of the image does not allow them ({type(error).__name__})"


def _resized(mask: NDArray[np.bool_], size: int) -> NDArray[np.bool_]:
    """Resize a mask to [size, size]; a pixel is masked if at least half of its area is."""
    share = Image.fromarray(np.ascontiguousarray(mask, dtype=np.float32))
    return np.asarray(share.resize((size, size), Image.Resampling.BOX)) >= 0.5
