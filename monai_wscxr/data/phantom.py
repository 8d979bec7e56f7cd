"""Synthetic frontal chest radiographs ("phantoms") with lesions and their masks.

A phantom is a simple projection image. Thickness maps in centimetres give attenuation line integrals, these an exposure with
scatter and quantum noise, and a logarithm and a display curve turn the exposure into grey values. Lesions add or remove
attenuation before the exposure, so ribs and vessels show through them. Phantoms are for demonstrations, tests and figures;
they do not replace images of patients when performance is reported.

`phantom_anatomy` makes the patient and defines the coordinates; this module adds lesions, exposes and writes files.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

from monai_wscxr.data.phantom_anatomy import (
    AERATED,
    CM,
    MU,
    SIDES,
    VESSEL,
    Anatomy,
    anatomy,
    ball,
    ellipse,
    resized,
    step,
    stream,
    texture,
)
from monai_wscxr.errors import InputError
from monai_wscxr.system.atomic import replacing
from monai_wscxr.system.progress import counted

LESIONS: tuple[str, ...] = ("consolidation", "nodule", "effusion", "pneumothorax")

SIZE_RANGE = (32, 4096)
FINE = 192  # smallest side in pixels of the grid of the anatomy, which is then averaged down
NOTICEABLE = 0.022  # smallest change of the grey value that counts as lesion in the mask


@dataclass(frozen=True)
class Phantom:
    """One synthetic radiograph.

    Attributes:
        image: float32 [size, size] in [0, 1], air dark.
        mask: bool [size, size], True where the lesion changes the image noticeably; all False for a normal image.
        lesion: a name in `LESIONS`, or None for a normal image.
    """

    image: np.ndarray
    mask: np.ndarray
    lesion: str | None


def _consolidation(rng: np.random.Generator, a: Anatomy, side: int) -> np.ndarray:
    """Return the change of the line integral by a diffuse filling of one lobe with dark air bronchograms."""
    level = rng.uniform(0.32, a.shape.dome[side] - 0.06)
    lateral = rng.uniform(0.45, 0.75) * float(a.shape.wall(level))
    axes = (rng.uniform(0.06, 0.12), rng.uniform(0.07, 0.15))
    squared = ellipse(a.grid, (side * lateral, level), axes, rng.uniform(-0.6, 0.6))
    ragged = np.sqrt(squared) + 0.2 * texture(rng, a.line.shape[0], (6, 12, 24, 48), 0.8)
    weight = step(1.25 - ragged, 0.0, 0.75)
    if rng.random() < 0.4:  # a fissure limits it from below
        fissure = level + rng.uniform(0.3, 0.7) * axes[1] + rng.normal(0, 0.2) * (a.grid.x - side * lateral)
        weight = weight * step(fissure - a.grid.y, -0.006, 0.008)
    clumps = 1.0 + 0.2 * texture(rng, a.line.shape[0], (16, 32, 64))
    fluid = rng.uniform(0.55, 0.85) * AERATED * (a.lungs[-1] + a.lungs[1]) * clumps
    return MU * weight * (fluid - 2.6 * a.vessels)


def _nodule(rng: np.random.Generator, a: Anatomy, side: int) -> np.ndarray:
    """Return the change of the line integral by a solid, slightly lobulated nodule in aerated lung."""
    radius = rng.uniform(0.042, 0.08)
    level = rng.uniform(0.27, a.shape.dome[side] - radius - 0.01)
    inner = 0.1 + 0.09 * (side > 0 and level > 0.48) + 0.3 * radius
    outer = float(a.shape.wall(level)) - 1.1 * radius
    centre = (side * (inner + rng.uniform(0.15, 0.95) * max(outer - inner, 0.0)), level)
    squared = ellipse(a.grid, centre, (radius, radius * rng.uniform(0.85, 1.1)), rng.uniform(0, 3))
    around = np.arctan2(a.grid.y - centre[1], a.grid.x - centre[0])
    lobes = sum(rng.normal(0, 0.05) * np.cos(k * around + rng.uniform(0, 6.3)) for k in (2, 3, 5))
    path = CM * 2 * radius * ball(squared * (1.0 + lobes)) ** 1.3
    return MU * rng.uniform(1.6, 2.2) * AERATED * np.minimum(path, a.lungs[-1] + a.lungs[1])


def _effusion(rng: np.random.Generator, a: Anatomy, side: int) -> np.ndarray:
    """Return the change of the line integral by pleural fluid that fills the costophrenic angle and climbs the lateral wall."""
    height, climb = rng.uniform(0.1, 0.38), rng.uniform(2.0, 4.0)
    reach = float(a.shape.wall(1.0))
    lateral = np.clip((side * a.grid.x - 0.06) / (reach - 0.06), 0.0, 1.05)
    foot = a.shape.dome[side] + 0.6 * a.shape.droop
    surface = foot - height * (0.35 + 0.65 * lateral**climb) + 0.004 * texture(rng, a.line.shape[0], (8, 16))
    weight = step(a.grid.y - surface, -0.014, 0.02 + 0.1 * height)
    lung = a.lungs[side]
    return MU * weight * (0.88 * AERATED * lung + 0.6 * step(lung, 0.3, 2.0))


def _pneumothorax(rng: np.random.Generator, a: Anatomy, side: int) -> np.ndarray:
    """Return the change of the line integral by air around a lung that collapses towards its hilum, with a pleural line."""
    shrink, floor = rng.uniform(0.6, 0.86), rng.uniform(0.6, 0.85)
    lateral, y, level = side * a.grid.x, a.grid.y, 0.47
    across = shrink + (1.0 - shrink) * step(y, level, floor)
    warped_y = np.where(y < level, (y - level) / (0.1 + 0.9 * shrink) + level, y)
    inset = a.shape.inset((lateral - a.shape.x0) / across + a.shape.x0, warped_y) * across
    lung = a.lungs[side]
    pocket = step(-inset, -0.002, 0.004)
    pleura = np.exp(-np.square(inset / 0.0035)) * step(lung, 1.0, 4.0) * (across < 0.97)
    lost = (1.0 - AERATED) * lung + (1.2 + VESSEL * a.vessels) * step(lung, 0.5, 4.0)
    denser = rng.uniform(0.004, 0.012) * AERATED * lung * (1.0 - step(across, 0.9, 1.0))
    return MU * (0.9 * pleura - pocket * lost + (1.0 - pocket) * denser)


def _broad_blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Apply a Gaussian blur of large `sigma` (in image widths), computed on a coarse copy."""
    coarse = resized(image, 64, Image.Resampling.BOX)
    return resized(ndimage.gaussian_filter(coarse, 64 * sigma, mode="nearest"), image.shape[0])


@dataclass(frozen=True)
class _Exposure:
    """Parameters of acquisition and display of one radiograph."""

    scatter: float
    detail: float  # strength of the local contrast enhancement
    blur: float  # detector blur, in image widths
    noise: float
    low: float  # grey level of the darkest lung
    high: float  # grey level of the whitest bone
    gamma: float

    @classmethod
    def sample(cls, rng: np.random.Generator) -> _Exposure:
        """Sample the parameters uniformly within fixed bounds."""
        bounds = ((0.03, 0.065), (0.25, 0.45), (0.0008, 0.0016), (0.008, 0.018), (0.1, 0.18), (0.86, 0.95), (0.85, 1.2))
        return cls(*(rng.uniform(*pair) for pair in bounds))

    def detect(self, line: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the logarithmic detector signal of line integrals before and after local contrast enhancement."""
        beam = np.exp(-ndimage.gaussian_filter(line, self.blur * line.shape[0], truncate=3.0))
        signal = -np.log(beam + self.scatter * np.minimum(_broad_blur(beam, 0.08), 0.3))
        return signal, signal + self.detail * (signal - _broad_blur(np.maximum(signal, 1.0), 0.05))

    def display(self, signal: np.ndarray, enhanced: np.ndarray, window: tuple[float, float]) -> np.ndarray:
        """Return grey values in [0, 1]; `window` holds the signals that become `low` and `high`."""
        grey = self.low + (self.high - self.low) * (enhanced - window[0]) / (window[1] - window[0])
        grey = np.where(grey > 0.8, 0.8 + 0.2 * np.tanh((grey - 0.8) / 0.2), grey)
        grey = np.where(grey < 0.1, 0.1 * np.exp(np.minimum(grey / 0.1 - 1.0, 0.0)), grey)
        return np.clip(grey, 0.0, 1.0) ** self.gamma * step(signal, 0.02, 0.5)


def _collimation(rng: np.random.Generator, n: int) -> np.ndarray:
    """Return the part of the beam that passes the collimator, 0 to 1: some images get a narrow dark border."""
    edges = rng.uniform(-0.06, 0.02, 4)
    tilt = rng.normal(0, 0.008)
    v, u = np.meshgrid(*[(np.arange(n) + 0.5) / n] * 2, indexing="ij")
    u, v = u + tilt * (v - 0.5), v - tilt * (u - 0.5)
    inside = np.minimum.reduce([u - edges[0], v - edges[1], 1 - edges[2] - u, 1 - edges[3] - v])
    return step(inside, 0.0, 0.004)


def _without_specks(mask: np.ndarray) -> np.ndarray:
    """Remove the connected components of a mask that are smaller than a tenth of the largest one."""
    parts, _ = ndimage.label(mask)
    areas = np.bincount(parts.ravel())
    areas[0] = 0
    return (areas >= max(0.1 * areas.max(), 1.0))[parts]


def _averaged(image: np.ndarray, factor: int) -> np.ndarray:
    """Average blocks of `factor` x `factor` pixels."""
    n = image.shape[0] // factor
    return image.reshape(n, factor, n, factor).mean((1, 3)) if factor > 1 else image


_LESION_CHANGES: dict[str, Callable[[np.random.Generator, Anatomy, int], np.ndarray]] = {
    "consolidation": _consolidation,
    "nodule": _nodule,
    "effusion": _effusion,
    "pneumothorax": _pneumothorax,
}


def _integer(name: str, value: Any, low: int, high: int | None = None) -> int:
    """Check that an argument is an integer in its range."""
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole or int(value) < low or (high is not None and int(value) > high):
        allowed = f"of {low} or more" if high is None else f"from {low} to {high}"
        raise InputError(f"{name} must be an integer {allowed}, got {value!r}")
    return int(value)


def make_phantom(seed: int, size: int = 256, lesion: str | None = None) -> Phantom:
    """Make one phantom; the same arguments always give the same pixels.

    Patient, pose and exposure depend only on `seed`, so another `size` or `lesion` shows the same patient. Only the quantum
    noise is sampled per pixel and depends on `size`.

    Args:
        seed: the patient, an integer of 0 or more.
        size: width and height in pixels, 32 to 4096.
        lesion: a name in `LESIONS`, or None for a normal image.

    Returns:
        The image, the mask of the lesion and its name.

    Raises:
        InputError: for an argument out of range or an unknown lesion.
    """
    seed, size = _integer("seed", seed, 0), _integer("size", size, *SIZE_RANGE)
    if lesion is not None and lesion not in LESIONS:
        raise InputError(f"lesion must be None or one of {', '.join(LESIONS)}, got {lesion!r}")
    factor = -(-FINE // size)
    patient = anatomy(seed, size * factor)
    normal = _averaged(patient.line, factor)
    mask = np.zeros((size, size), bool)
    exposure = _Exposure.sample(stream(seed, 1))
    beam = _collimation(stream(seed, 2), size)
    signal, enhanced = exposure.detect(normal)
    black, white = np.percentile(enhanced[signal > 1.0], (3, 97))
    window = (float(black), float(white))
    if lesion is not None:
        rng = stream(seed, 3, LESIONS.index(lesion))
        side = int(rng.choice(SIDES))
        delta = _averaged(_LESION_CHANGES[lesion](rng, patient, side), factor)
        healthy = exposure.display(signal, enhanced, window)
        signal, enhanced = exposure.detect(np.maximum(normal + delta, 0.0))
        change = np.abs(exposure.display(signal, enhanced, window) - healthy) * beam * (np.abs(delta) > 0.02)
        mask = _without_specks(ndimage.gaussian_filter(change, 0.006 * size) > NOTICEABLE)
    grain = stream(seed, 4, size).standard_normal((size, size), np.float32)
    enhanced = enhanced + exposure.noise * np.exp(0.35 * np.minimum(signal, 4.5)) * grain
    image = exposure.display(signal, enhanced, window) * beam
    return Phantom(image.astype(np.float32), mask, lesion)


def _write_png(pixels: np.ndarray, path: Path) -> None:
    """Write 8-bit grey pixels in one step, so that the file is complete or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, durable=False) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")


def write_phantoms(
    folder: str | os.PathLike[str],
    n_train_normal: int = 160,
    n_train_abnormal: int = 8,
    n_test_normal: int = 40,
    n_test_abnormal: int = 10,
    size: int = 256,
    seed: int = 0,
    lesions: Sequence[str] = LESIONS,
    progress: bool = True,
) -> None:
    """Write a data set of phantoms as 8-bit grey PNG; every image shows another patient.

    Images go to `train/normal`, `train/abnormal/<lesion>`, `test/normal` and `test/abnormal/<lesion>`, lesion masks (0 or 255)
    to `masks/<split>/abnormal/<lesion>` under the name of their image. Patient i of a class does not depend on the counts, so
    a larger data set contains the smaller one.

    Args:
        folder: new or empty folder; created with its parents.
        n_train_normal: normal training images.
        n_train_abnormal: abnormal training images per lesion.
        n_test_normal: normal test images.
        n_test_abnormal: abnormal test images per lesion.
        size: width and height in pixels, 32 to 4096.
        seed: the data set, an integer of 0 or more.
        lesions: different names in `LESIONS`, at least one.
        progress: show a progress bar.

    Raises:
        InputError: when the folder is a file or not empty, or an argument is out of range.
    """
    counts = {
        ("train", "normal"): _integer("n_train_normal", n_train_normal, 0),
        ("train", "abnormal"): _integer("n_train_abnormal", n_train_abnormal, 0),
        ("test", "normal"): _integer("n_test_normal", n_test_normal, 0),
        ("test", "abnormal"): _integer("n_test_abnormal", n_test_abnormal, 0),
    }
    seed, size = _integer("seed", seed, 0), _integer("size", size, *SIZE_RANGE)
    if not lesions or len(set(lesions)) < len(lesions) or set(lesions) - set(LESIONS):
        raise InputError(f"lesions must be different names from {', '.join(LESIONS)}, at least one; got {lesions!r}")
    root = Path(folder)
    if root.exists() and not root.is_dir():
        raise InputError(f"{root} is a file; name a new or an empty folder for the phantoms")
    if root.is_dir() and any(root.iterdir()):
        raise InputError(f"{root} is not empty; name a new folder for the phantoms, or empty this one first")
    root.mkdir(parents=True, exist_ok=True)

    jobs = [
        (split, lesion, i)
        for (split, kind), count in counts.items()
        for lesion in ((None,) if kind == "normal" else lesions)
        for i in range(count)
    ]
    for split, lesion, i in counted(jobs, "phantoms", progress):
        # The seed of a patient is a 64-bit hash of split, class and number, so splits, classes and data sets share no patient.
        place = (("train", "test").index(split), 0 if lesion is None else 1 + LESIONS.index(lesion), i)
        patient = np.random.SeedSequence(seed, spawn_key=place).generate_state(1, np.uint64)[0]
        phantom = make_phantom(int(patient), size, lesion)
        below = Path(split, "normal") if lesion is None else Path(split, "abnormal", lesion)
        name = f"{split}_{lesion or 'normal'}_{i:04d}.png"
        _write_png(np.round(255 * phantom.image).astype(np.uint8), root / below / name)
        if lesion is not None:
            _write_png(255 * phantom.mask.astype(np.uint8), root / "masks" / below / name)
