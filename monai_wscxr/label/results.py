"""Predictions of single images, and the files that they are stored as."""

from __future__ import annotations

import datetime
import gzip
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from monai_wscxr.data.radiograph.base import Radiograph, quiet
from monai_wscxr.data.radiograph.read import read_radiograph
from monai_wscxr.features.extraction import PatchExtractor
from monai_wscxr.label.archive.studies import Refused
from monai_wscxr.label.pictures import overlay_png, resized_map
from monai_wscxr.label.ranking import ImageScore, patch_scores, score_images
from monai_wscxr.model.artefact import TrainedModel
from monai_wscxr.model.networks import anomaly_map
from monai_wscxr.model.predictor import check_images


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


def predict_image(model: TrainedModel, extractor: PatchExtractor, file: Path, keep: bool = True) -> ImagePrediction:
    """Predict one image.

    Args:
        model: the model.
        extractor: patch features of files, as the model was trained on.
        file: the image.
        keep: whether its features go to the feature cache.

    Raises:
        Refused: when the file cannot be used, or is unlike a chest radiograph; the reason is a reason code.
    """
    if keep:
        _, features, rejected = extractor.usable([str(file)], "image")
    else:
        features, rejected = extractor.passed([str(file)])
    if rejected:
        _, code, message = rejected[0]
        raise Refused(code, message)
    refusal = check_images(model, features.mean(1), extractor.allow)[0]
    if refusal is not None:
        raise Refused(refusal.code, refusal.message)
    patches = patch_scores(model, features, extractor.grid)
    size = model.preprocessing.image_size
    values = anomaly_map(patches[None], (size, size), model.map_sigma)[0, 0].numpy()
    return ImagePrediction(file, model, score_images(model, features, extractor.grid)[0], values)


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
        from monai_wscxr.report import dicom
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
    except dicom.HeaderError as error:
        raise Refused("header", f"the header of the image does not allow DICOM results: {error}") from error
    except Exception as error:  # headers fail in many ways, and an error message may quote them
        raise Refused(
            "header", f"the header of the image does not allow DICOM results ({type(error).__name__})"
        ) from error
    return {**results, **{{"map": "fraction"}.get(kind, kind): data for kind, data in made.objects.items()}}
