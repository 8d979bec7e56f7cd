"""Predictions of single images, and the files that they are stored as."""

from __future__ import annotations

import dataclasses
import datetime
import gzip
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from monai_wscxr.data.radiograph.base import Radiograph, quiet
from monai_wscxr.data.radiograph.read import read_radiograph
from monai_wscxr.features.extraction import PatchExtractor
from monai_wscxr.label.archive.studies import Refused
from monai_wscxr.label.pictures import overlay_png, resized_map
from monai_wscxr.label.ranking import ImageScore, patch_scores, score_images
from monai_wscxr.model.artefact import TrainedModel
from monai_wscxr.model.predictor import check_images, to_maps
from monai_wscxr.prediction import tasks


@dataclass(frozen=True)
class ImagePrediction:
    """A model's prediction for one image.

    Attributes:
        file: the image.
        model: the model.
        score: score, p-value, decision, peak.
        anomaly_map: float32 [S, S]; covers the whole image, resized to a square.
    """

    file: Path
    model: TrainedModel
    score: ImageScore
    anomaly_map: NDArray[np.float32]

    def to_dict(self) -> dict[str, Any]:
        """Return score, operating point and model as JSON values."""
        calibration = self.model.calibration
        return {
            "anomaly_score": self.score.anomaly_score,
            "p_value": self.score.p_value,
            "abnormal": self.score.abnormal,
            "threshold": calibration.threshold,
            "operating_point": calibration.supported_rate,
            "peak": list(self.score.peak),
            "model_sha256": self.model.sha256,
        }


def predict_image(model: TrainedModel, extractor: PatchExtractor, file: Path) -> ImagePrediction:
    """Predict an image of the archive; its features come from the feature cache or go there.

    Args:
        model: the model.
        extractor: patch features of files, as the model was trained on.
        file: the image.

    Raises:
        Refused: when the file cannot be used, or is unlike a chest radiograph; the reason is a reason code.
    """
    _, features, rejected = extractor.usable([str(file)], "image")
    if rejected:
        _, code, message = rejected[0]
        raise Refused(code, message)
    return predict_features(model, extractor, file, features)


def predict_features(model: TrainedModel, extractor: PatchExtractor, file: Path, features: Tensor) -> ImagePrediction:
    """Predict an image by its patch features [1, h*w, C]; further arguments as of `predict_image`.

    Raises:
        Refused: when the image is unlike a chest radiograph.
    """
    refusal = check_images(model, features.mean(1), extractor.allow)[0]
    if refusal is not None:
        raise Refused(refusal.code, refusal.message)
    patches = patch_scores(model, features, extractor.grid)
    values = to_maps(model, patches)[0].numpy()
    return ImagePrediction(file, model, score_images(model, features, extractor.grid)[0], values)


def without_network(prediction: ImagePrediction) -> ImagePrediction:
    """Return a prediction for worker processes, without the model's network."""
    return dataclasses.replace(prediction, model=tasks.without_network(prediction.model))


def shown_result(
    prediction: ImagePrediction, suffix: str, allow: Collection[str] = ()
) -> tuple[bytes, tuple[int, int]]:
    """Encode the anomaly map as a file, see `map_nifti` and `overlay_png`.

    Args:
        prediction: the model's prediction.
        suffix: ".png" for the map over the radiograph, otherwise ".nii.gz".
        allow: reason codes of readable images to accept, see `read_radiograph`.

    Returns:
        Content of the file; width and height of the image in pixels.

    Raises:
        RadiographError: when the file cannot be read.
    """
    radiograph = read_radiograph(prediction.file, allow=allow)
    height, width = radiograph.image.shape
    if suffix == ".png":
        return overlay_png(prediction.file, prediction.anomaly_map, prediction.model, allow), (width, height)
    return map_nifti(prediction, radiograph), (width, height)


def map_nifti(prediction: ImagePrediction, radiograph: Radiograph) -> bytes:
    """Encode the anomaly map at the size of the image as gzipped float32 NIfTI, axes x, y as in MONAI Label."""
    height, width = radiograph.image.shape
    values = resized_map(prediction.anomaly_map, (height, width))
    image: Any = nib.Nifti1Image(np.ascontiguousarray(values.T)[..., None], np.eye(4))
    return gzip.compress(image.to_bytes(), compresslevel=1, mtime=0)


def encoded_results(prediction: ImagePrediction, allow: Collection[str] = ()) -> dict[str, bytes]:
    """Encode all results of an image, by the kinds of `RESULT_SUFFIXES`.

    Args:
        prediction: the model's prediction.
        allow: reason codes of readable images to accept, see `read_radiograph`.

    Raises:
        RadiographError: when the file cannot be read.
        Refused: when the header of a DICOM file does not allow results that refer to it, or highdicom is missing.
    """
    radiograph = read_radiograph(prediction.file, allow=allow)
    results = {
        "image": overlay_png(prediction.file, prediction.anomaly_map, prediction.model, allow),
        "map": map_nifti(prediction, radiograph),
    }
    if radiograph.format != "dicom":
        return results
    try:
        from monai_wscxr.report import dicom, dicom_header
    except ImportError as error:
        raise Refused("no_highdicom", "DICOM results need the package highdicom: pip install highdicom") from error
    calibration = prediction.model.calibration
    finding = dicom.Finding(
        anomaly_score=prediction.score.anomaly_score,
        p_value=prediction.score.p_value,
        abnormal=prediction.score.abnormal,
        threshold=calibration.threshold,
        false_positive_rate=calibration.supported_rate,
        model_sha256=prediction.model.sha256,
        anomaly_map=prediction.anomaly_map,
        scale=prediction.model.colour_scale,
    )
    try:
        with quiet:
            made = dicom.encode_results(str(prediction.file), radiograph.image, finding, datetime.datetime.now())
    except dicom_header.HeaderError as error:
        raise Refused("header", f"the header of the image does not allow DICOM results: {error}") from error
    except Exception as error:  # headers fail in many ways, and an error message may quote them
        raise Refused(
            "header", f"the header of the image does not allow DICOM results ({type(error).__name__})"
        ) from error
    return {**results, **{{"map": "fraction"}.get(kind, kind): data for kind, data in made.objects.items()}}
