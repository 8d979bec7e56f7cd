"""What the model says of one image, and the files that can be kept of it."""

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

from monai_wscxr.data.radiograph.read import Radiograph, quiet, read_radiograph
from monai_wscxr.label.archive.studies import Refused
from monai_wscxr.label.pictures import colour_scale, overlay_png, resized_map
from monai_wscxr.label.ranking import Scored
from monai_wscxr.model.artefact import TrainedModel


@dataclass(frozen=True)
class Predicted:
    """What a model says of an image.

    Attributes:
        file: the image.
        model: the model.
        scored: score, p-value, decision, peak.
        anomaly_map: [S, S] float32, over the whole image squashed to a square.
    """

    file: Path
    model: TrainedModel
    scored: Scored
    anomaly_map: NDArray[np.float32]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        calibration = self.model.calibration
        return {
            "anomaly_score": self.scored.anomaly_score,
            "p_value": self.scored.p_value,
            "abnormal": self.scored.abnormal,
            "threshold": calibration.threshold,
            "operating_point": calibration.false_positive_rate,
            "peak": list(self.scored.peak),
            "model_sha256": self.model.sha256,
        }


def map_nifti(found: Predicted, radiograph: Radiograph) -> bytes:
    """The anomaly map in the size of the image as gzipped float32 NIfTI, axes x, y as MONAI Label has them."""
    height, width = radiograph.image.shape
    values = resized_map(found.anomaly_map, (height, width))
    image: Any = nib.Nifti1Image(np.ascontiguousarray(values.T)[..., None], np.eye(4))
    return gzip.compress(image.to_bytes(), compresslevel=1, mtime=0)


def encoded_results(found: Predicted, allow: Collection[str] = ()) -> dict[str, bytes]:
    """All results of an image, by the kinds of `RESULT_SUFFIXES`.

    Raises:
        RadiographError: when the file cannot be read.
        Refused: when the header of a DICOM file does not allow results that refer to it, or highdicom is missing.
    """
    radiograph = read_radiograph(found.file, allow=allow)
    results = {
        "image": overlay_png(found.file, found.anomaly_map, found.model, allow),
        "map": map_nifti(found, radiograph),
    }
    if radiograph.format != "dicom":
        return results
    try:
        from monai_wscxr.report import dicom
    except ImportError as error:
        raise Refused("no_highdicom", "DICOM results need the package highdicom: pip install highdicom") from error
    calibration = found.model.calibration
    finding = dicom.Finding(
        anomaly_score=found.scored.anomaly_score,
        p_value=found.scored.p_value,
        abnormal=found.scored.abnormal,
        threshold=calibration.threshold,
        false_positive_rate=calibration.false_positive_rate,
        model_sha256=found.model.sha256,
        anomaly_map=found.anomaly_map,
        scale=colour_scale(found.model),
    )
    try:
        with quiet:
            made = dicom.encode_results(str(found.file), radiograph.image, finding, datetime.datetime.now())
    except Exception as error:  # odd headers fail in many ways, and the text of an error may quote them
        raise Refused(
            "header", f"the header of the image does not allow DICOM results ({type(error).__name__})"
        ) from error
    return {**results, **{{"map": "fraction"}.get(kind, kind): data for kind, data in made.items()}}
