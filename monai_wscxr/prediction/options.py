"""Options and summary of a prediction run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from monai_wscxr.data.radiograph.gates import check_allowed
from monai_wscxr.errors import InputError
from monai_wscxr.model.drift import Drift
from monai_wscxr.report.maps import MAP_SUFFIXES

MAP_FORMATS = (*MAP_SUFFIXES, "none")


@dataclass(frozen=True)
class Options:
    """Options of a prediction run.

    Attributes:
        model: output folder of a training or of an export.
        paths: files, folders, DICOMDIRs.
        output: folder for the results.
        maps: format of the anomaly maps, one of `MAP_FORMATS`.
        overlays, report, dicom: whether to write overlays, HTML report and DICOM results.
        workers: processes that decode and write; 0 does everything in this process, None means one per core, at most 8.
        batch_size: images per pass of the network.
        device: "cpu" or "cuda"; None means a GPU if there is one.
        runtime: library that executes the backbone, see `open_network`.
        allow: reason codes of readable images that are predicted anyway, from `GATES`.
        seconds: time limit for reading a file, in seconds; one second more per MiB.
        overwrite: replace another run in `output`.
        progress: show a progress bar.
    """

    model: str
    paths: tuple[str, ...]
    output: str
    maps: str = "tiff"
    overlays: bool = True
    report: bool = True
    dicom: bool = False
    workers: int | None = None
    batch_size: int = 16
    device: str | None = None
    runtime: str = "auto"
    allow: tuple[str, ...] = ()
    seconds: float = 10.0
    overwrite: bool = False
    progress: bool = True

    def check(self) -> None:
        """Check the values of all options.

        Raises:
            InputError: on an invalid value; the message names the option and the valid values.
        """
        if self.maps not in MAP_FORMATS:
            raise InputError(f"--maps {self.maps} is not a format of maps; use {', '.join(MAP_FORMATS)}")
        if self.device is not None and self.device.partition(":")[0] not in ("cpu", "cuda"):
            raise InputError(f"--device {self.device} is not a device; use cpu or cuda")
        if self.batch_size < 1:
            raise InputError(f"--batch_size must be at least 1, got {self.batch_size}")
        if self.workers is not None and not 0 <= self.workers <= 256:
            raise InputError(f"--workers must lie between 0 and 256, got {self.workers}")
        if not self.seconds > 0:
            raise InputError(f"--seconds must be greater than 0, got {self.seconds:g}")
        try:
            check_allowed(self.allow)
        except ValueError as error:
            raise InputError(f"--allow: {error}") from error
        if self.dicom:
            try:
                from monai_wscxr.report import dicom  # noqa: F401
            except ImportError as error:
                raise InputError(
                    f"DICOM results need a package that is not installed ({error.name}); "
                    "install it with: pip install 'monai-wscxr[dicom]'"
                ) from error


@dataclass
class Summary:
    """Summary of a prediction run.

    Attributes:
        images, flagged, rejected: numbers of inputs of the whole run, including those of interrupted calls.
        done_before: number of inputs that interrupted calls had finished.
        seconds: wall time of this call after the model was loaded.
        decoding, network, writing: seconds of work in this call; decoding and writing are summed over workers.
        reasons: number of rejected inputs by reason code.
        without_dicom: number of predicted images without the requested DICOM results, by reason code.
        repeated: number of images with DICOM results that repeat an earlier image of the run.
        shared: number of images with DICOM results whose SOP Instance UID another picture of the run has, too.
        drift: comparison of the scored images with the normals that calibrated the model.
    """

    images: int = 0
    flagged: int = 0
    rejected: int = 0
    done_before: int = 0
    seconds: float = 0.0
    decoding: float = 0.0
    network: float = 0.0
    writing: float = 0.0
    reasons: dict[str, int] = field(default_factory=dict)
    without_dicom: dict[str, int] = field(default_factory=dict)
    repeated: int = 0
    shared: int = 0
    drift: Drift = field(default_factory=lambda: Drift(0, math.nan))

    def sentences(self, model: str = "OUT") -> list[str]:
        """Return the summary as sentences for the console; `model` is the model's folder, for a command that they name."""
        new = self.images - self.done_before
        work = self.decoding + self.network + self.writing or 1.0
        lines = [f"{self.images} images: {self.flagged} flagged, {self.rejected} rejected"]
        lines[0] += f" ({listed(self.reasons)})" if self.reasons else ""
        lines += self.dicom_sentences()
        if self.done_before:
            lines.append(f"{self.done_before} of them were done before")
        if new:
            lines.append(
                f"{new} images in {self.seconds:.1f} s, {new / self.seconds:.1f} images/s; of the work, decoding took "
                f"{self.decoding / work:.0%}, the network {self.network / work:.0%}, writing {self.writing / work:.0%}"
            )
        if sentence := self.drift.sentence(model):
            lines.append(sentence)
        return lines

    def dicom_sentences(self) -> list[str]:
        """Return what a reader must know about the DICOM results as sentences."""
        lines = []
        if self.without_dicom:
            lines.append(f"predicted without DICOM results: {listed(self.without_dicom)}")
        if self.repeated:
            images = "image repeats an earlier one" if self.repeated == 1 else "images repeat earlier ones"
            lines.append(f"{self.repeated} {images}; their DICOM results are the same objects")
        if self.shared:
            lines.append(
                f"{self.shared} images share their SOP Instance UID with a different picture; their DICOM results are "
                "distinct objects, but an archive keeps only one of the pictures they refer to"
            )
        return lines


def listed(reasons: Mapping[str, int]) -> str:
    """Return numbers by reason code as text."""
    return ", ".join(f"{count} {code}" for code, count in sorted(reasons.items()))
