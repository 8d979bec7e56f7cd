"""The model in a Python session: train, load, and predict paths, arrays, PIL images and pydicom data sets."""

from __future__ import annotations

import functools
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import pydicom
import torch
from numpy.typing import NDArray
from PIL import Image

from monai_wscxr.data.preprocessing import RadiographLoader
from monai_wscxr.errors import InputError, find_input_error
from monai_wscxr.features.parallel import ThreadParallel
from monai_wscxr.model.artefact import TrainedModel, load_model
from monai_wscxr.model.predictions import Prediction, to_map
from monai_wscxr.model.predictor import predict_files, prediction_network
from monai_wscxr.report.overlay import overlay

Picture = str | os.PathLike[str] | NDArray[Any] | Image.Image | pydicom.Dataset
"""What can be predicted: a file, an array [H, W], a PIL image or a pydicom data set."""


@dataclass(frozen=True, eq=False)
class Result:
    """Result for one image.

    Attributes:
        file: path of the image; its number in the list, such as "image 0", when it was no file.
        reason: reason code of a rejected image, otherwise "".
        score: anomaly score, higher is more abnormal; NaN for a rejected image.
        p_value: calibrated on held-out normal images, in (0, 1]; NaN for a rejected image.
        abnormal: whether the score exceeds the operating point; False for a rejected image.
        map: anomaly map [S, S], float32, S being the size of the network's input; None for a rejected image.
    """

    file: str
    reason: str
    score: float
    p_value: float
    abnormal: bool
    map: NDArray[np.float32] | None
    _model: TrainedModel
    _source: Path
    _folder: tempfile.TemporaryDirectory[str]  # holds the files of arrays as long as a result refers to them

    def plot(self) -> Image.Image:
        """Draw the anomaly map over the radiograph, [S, S] pixels in colour; a notebook shows what is returned.

        Raises:
            InputError: for a rejected image.
        """
        if self.map is None:
            raise InputError(f"{self.file} was rejected ({self.reason}); it has no anomaly map to draw")
        loaded: Any = RadiographLoader(self._model.preprocessing, keep_radiograph=True)({"image": str(self._source)})
        radiograph = np.clip(loaded["radiograph"][0], 0, 1)
        return Image.fromarray(overlay(radiograph, self.map, self._model.colour_scale))


class Model:
    """A trained model.

    Args:
        trained: the loaded model.
        runtime: library that executes the backbone, see `Inference`.

    Attributes:
        trained: the loaded model, with network, preprocessing, calibration and settings.
    """

    def __init__(self, trained: TrainedModel, runtime: str = "auto") -> None:
        self.trained, self.runtime = trained, runtime

    @functools.cached_property
    def _network(self) -> ThreadParallel:
        """The network, ready for prediction."""
        return prediction_network(self.trained, self.runtime)

    def __repr__(self) -> str:
        """Return the folder and the hash of the weights."""
        return f"Model({str(self.trained.folder)!r}, sha256 {self.trained.sha256[:12]})"

    @overload
    def predict(self, images: Picture, batch_size: int = ...) -> Result: ...

    @overload
    def predict(self, images: list[Any] | tuple[Any, ...], batch_size: int = ...) -> list[Result]: ...

    def predict(self, images: Picture | list[Any] | tuple[Any, ...], batch_size: int = 16) -> Result | list[Result]:
        """Predict one image, or a list of images in order.

        An image is read as a file is (`read_radiograph`), with the same checks. Arrays have air dark: floats lie in [0, 1]
        and are rounded to 16 bits, unsigned integers of 8 or 16 bits use their whole range.

        Args:
            images: a path, an array [H, W], a PIL image, a pydicom data set, or a list or tuple of these.
            batch_size: images per pass of the network, at least 1.

        Raises:
            InputError: on an array of another shape, type or range, or another kind of object.
        """
        several = isinstance(images, (list, tuple))
        folder = tempfile.TemporaryDirectory(prefix="monai_wscxr-")
        pictures: list[Any] = list(images) if isinstance(images, (list, tuple)) else [images]
        files = [_as_file(picture, number, Path(folder.name)) for number, picture in enumerate(pictures)]
        names = [
            str(picture) if isinstance(picture, (str, os.PathLike)) else f"image {number}"
            for number, picture in enumerate(pictures)
        ]
        found = predict_files(self.trained, files, batch_size, network=self._network)
        results = [self._result(*each, folder) for each in zip(names, files, found, strict=True)]
        return results if several else results[0]

    def decision_function(self, images: list[Any] | tuple[Any, ...], batch_size: int = 16) -> NDArray[np.float64]:
        """Return how far the scores lie above the operating point, as scikit-learn's classifiers do.

        Args:
            images: list or tuple, as in `predict`.
            batch_size: images per pass of the network, at least 1.

        Returns:
            score minus threshold [N]; above 0 is abnormal, NaN for a rejected image.

        Raises:
            InputError: as `predict`.
        """
        threshold = self.trained.calibration.threshold
        return np.array([result.score - threshold for result in self.predict(list(images), batch_size)], np.float64)

    def _result(
        self, name: str, file: Path, prediction: Prediction, folder: tempfile.TemporaryDirectory[str]
    ) -> Result:
        anomaly_map = to_map(self.trained, prediction) if prediction.status == "ok" else None
        return Result(
            name,
            prediction.reason,
            prediction.anomaly_score,
            prediction.p_value,
            prediction.abnormal,
            anomaly_map,
            self.trained,
            file,
            folder,
        )


def load(folder: str | os.PathLike[str], device: str | torch.device = "cpu", runtime: str = "auto") -> Model:
    """Load a trained model.

    Args:
        folder: output folder of a training.
        device: "cpu" or "cuda".
        runtime: library that executes the backbone, see `Inference`.

    Raises:
        InputError: when the folder holds no model, or a damaged one.
    """
    return Model(load_model(Path(folder), device), runtime)


def train(dataset: str | os.PathLike[str], output: str | os.PathLike[str], **options: Any) -> Model:
    """Train a model and load it; the same call continues an interrupted training.

    Args:
        dataset: folder or data list, see docs/training.md.
        output: folder for the model: new, or that of the same run.
        options: options of `train.yaml`, for instance `k=8`.

    Raises:
        InputError: on an unknown option, or when options, images, memory or disk do not allow the training.
    """
    # slow to import, and a loaded model predicts without MONAI
    from monai.bundle import ConfigParser

    from monai_wscxr.training.configs import find_configs, option_names, unknown_option
    from monai_wscxr.training.once import train_once
    from monai_wscxr.training.start import quiet_training

    configuration = ConfigParser.load_config_file(str(find_configs() / "train.yaml"))
    known = set(option_names(configuration)) - {"dataset_dir", "output_dir"} | {"device"}
    for name in options:
        if name not in known:
            raise unknown_option(name, known)
    try:
        with quiet_training():
            train_once(Path(dataset), Path(output), options)
        return load(output)
    except Exception as error:  # MONAI wraps the errors of a configuration
        found = find_input_error(error)
        if found is None:
            raise
        raise found from None


def _as_file(picture: Any, number: int, folder: Path) -> Path:
    """Return the file of a picture, written to `folder` if it is none."""
    if isinstance(picture, (str, os.PathLike)):
        return Path(picture)
    if isinstance(picture, pydicom.Dataset):
        path = folder / f"{number}.dcm"
        try:
            picture.save_as(path, enforce_file_format=True)
        except Exception as error:  # pydicom raises errors of every type, and their text may quote the header
            raise InputError(
                f"image {number}: the data set cannot be written as a DICOM file ({type(error).__name__}); it needs its "
                "file meta information, as pydicom.dcmread returns it"
            ) from None
        return path
    path = folder / f"{number}.png"
    if isinstance(picture, Image.Image) and picture.mode != "F":
        picture.save(path)
    else:
        Image.fromarray(_stored(np.asarray(picture), number)).save(path)
    return path


def _stored(array: NDArray[Any], number: int) -> NDArray[Any]:
    """Return an array as it is stored in a PNG file: uint8 or uint16."""
    if array.ndim != 2 or array.size == 0:
        raise InputError(f"image {number}: give an array [H, W], got one of shape {list(array.shape)}")
    if array.dtype in (np.uint8, np.uint16):
        return array
    if not np.issubdtype(array.dtype, np.floating):
        raise InputError(f"image {number}: give floats in [0, 1], uint8 or uint16, got {array.dtype}")
    if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
        raise InputError(f"image {number}: floats must lie in [0, 1], air dark; scale the array first")
    return np.round(array.astype(np.float64) * 65535).astype(np.uint16)
