"""Writing a trained model as a folder that predicts without torch and MONAI, see `exported`."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import monai_wscxr
from monai_wscxr.errors import InputError
from monai_wscxr.features.runtime.converted import TOLERANCE, difference, pictures
from monai_wscxr.features.runtime.onnx_runtime import export_onnx
from monai_wscxr.features.runtime.sessions import OnnxSession
from monai_wscxr.features.runtime.torch_runtime import JoinedLayers, fold_normalisations
from monai_wscxr.model.artefact import load_model
from monai_wscxr.model.description import ARTEFACT, EXPORT, EXPORTED_NETWORK
from monai_wscxr.model.networks import CheckedNet, WSCXRNet
from monai_wscxr.prediction.exported import EXPORT_FORMAT
from monai_wscxr.system.atomic import write_together


@dataclass(frozen=True)
class Exported:
    """What was exported.

    Attributes:
        size: bytes of the files.
        difference: largest relative difference from torch on the pictures of the check, root mean square.
    """

    size: int
    difference: float


class _Folded(nn.Module):
    """Patch features whose backbone has its batch normalisations folded into convolutions.

    Args:
        network: the network of the features.
    """

    def __init__(self, network: WSCXRNet) -> None:
        super().__init__()
        self.features = network.features
        self.joined, _ = fold_normalisations(JoinedLayers(network.features))

    def forward(self, image: Tensor) -> Tensor:
        """Return the patch features [B, C, h, w] of images [B, 3 or 1, S, S]."""
        return self.features.aggregate(self.joined(image))


def export_model(folder: str | Path, output: str | Path) -> Exported:
    """Export a trained model and compare it with torch.

    Args:
        folder: output folder of a training.
        output: folder for the exported model: new, empty, or that of an earlier export, which is replaced.

    Raises:
        InputError: when the folder holds no model, the output folder holds something else, the network cannot be converted,
            or what it computes then differs from torch.
    """
    folder, output = Path(folder), Path(output)
    model = load_model(folder)
    precision = model.settings.get("precision", "float32")
    if precision != "float32":
        raise InputError(
            f"{folder} was calibrated in {precision}, and exported models compute in float32; train with --precision float32"
        )
    _check_output(output)
    network, size = model.network, model.preprocessing.image_size
    images = pictures(network.features.backbone, size)
    content = export_onnx(CheckedNet(network, _Folded(network)).eval(), images[:1])
    session = OnnxSession(content)
    with torch.inference_mode():
        scores, features = CheckedNet(network)(images)
    found = [[torch.from_numpy(part) for part in session(image.numpy())] for image in images.split(1)]
    own_scores, own_features = (torch.cat(parts) for parts in zip(*found, strict=True))
    apart = max(
        difference(own_scores, scores, [1]),
        difference(own_features[..., None, None], features[..., None, None], [features.shape[1]]),
    )
    if not apart <= TOLERANCE:
        raise InputError(
            f"{folder} cannot be exported: its scores would differ from those of torch by {apart:.1e} (relative), allowed are "
            f"{TOLERANCE:.0e}"
        )
    artefact = (folder / ARTEFACT).read_bytes()
    files = {EXPORTED_NETWORK: content, ARTEFACT: artefact}
    about = {
        "format": EXPORT_FORMAT,
        "code_version": monai_wscxr.__version__,
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
        "image": {"channels": images.shape[1], "size": size},
        "grid": {"rows": scores.shape[2], "columns": scores.shape[3]},
        "channels": features.shape[1],
        "difference": apart,
    }
    output.mkdir(parents=True, exist_ok=True)
    contents = {**files, EXPORT: json.dumps(about, indent=1).encode()}
    write_together({output / name: data for name, data in contents.items()})
    return Exported(sum(map(len, contents.values())), apart)


def _check_output(output: Path) -> None:
    """Check that a folder may take an exported model."""
    if output.exists() and not output.is_dir():
        raise InputError(f"{output} is a file; give a folder with --output")
    if output.is_dir() and any(output.iterdir()) and not (output / EXPORT).is_file():
        raise InputError(f"{output} is not empty and holds no exported model; give an empty or new folder")
