"""Do radiographs come from where a model was calibrated? Drift of the image features.

P-values and the operating point hold for radiographs like the normals that calibrated them. Another detector, patient group or
way to export moves the features of *all* images, and then a promised rate of false alarms is worth nothing. The image features
(means of the patch features) are looked at in the leading principal components of the normals, without the directions in which
the training abnormals differ from them: many ill patients in a list are no drift.

Three things are computed from these coordinates:

* the shift of a set of images, for a decision about a whole list (`DriftReference.shift`);
* a conformal p-value of each image, small where it is unlike the normals in a way that is not the finding (`p_values`);
* over a stream, a test martingale over such p-values (`log_martingale`; Vovk, Nouretdinov, Gammerman, Testing exchangeability
  on-line, ICML 2003).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from monai_wscxr.errors import InputError
from monai_wscxr.model.encoding import decode_array, encode_array

LIMIT = 0.1
"""Shift, in variances of normal images, above which drift is named (docs/calibration.md says how it was chosen)."""
FEWEST_IMAGES = 20
"""Images of a list below which nothing is said about drift."""
_COMPONENTS = 32
_ABNORMAL_DIRECTIONS = 2
_TRIMMED = 0.2  # share of the images that the trimmed mean leaves out at either end
_FEWEST_NORMALS = 20
_FEWEST_HELD_OUT = 8
_PRIOR_IMAGES = 10  # weight of the average spread beside that of each coordinate at a new site
_POWERS = np.linspace(0.02, 0.98, 25)

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class DriftReference:
    """Image features of the normals that a model is calibrated on.

    Attributes:
        centre: [C], image features that have the coordinates 0.
        directions: [d, C]; the coordinates of an image are directions @ (its image features - centre).
        middle: [d], coordinates of a typical normal image.
        spread: [d], > 0, standard deviation of each coordinate over normal images.
        normals: [n, d], coordinates of the normal images that calibrate the model.
        distances: [n], square distances of these normals from the middle of other normals, see `square_distances`.
    """

    centre: Floats
    directions: Floats
    middle: Floats
    spread: Floats
    normals: Floats
    distances: Floats

    @classmethod
    def fit(cls, normal: ArrayLike, held_out: ArrayLike, abnormal: Sequence[ArrayLike] = ()) -> DriftReference | None:
        """Fit the coordinates to the training normals; the held-out normals are the reference.

        Args:
            normal: [n, C], image features of the training normals.
            held_out: [m, C], of the held-out normals.
            abnormal: [k, C] of the training abnormals of each class; what sets their means apart is left out.

        Returns:
            the reference, or None with fewer than 20 training normals or 8 held-out normals, or when all images are equal.
        """
        values, calibrating = _doubles(normal), _doubles(held_out)
        if len(values) < _FEWEST_NORMALS or len(calibrating) < _FEWEST_HELD_OUT:
            return None
        centre, spread = values.mean(0), values.std(0, ddof=1)
        if not float(spread.mean()) > 0:
            return None
        spread = np.maximum(spread, 1e-6 * spread.mean())
        count = min(_COMPONENTS, len(values) // 3, values.shape[1])
        _, singular, basis = np.linalg.svd((values - centre) / spread, full_matrices=False)
        sizes = singular[:count] / len(values) ** 0.5
        count = int((sizes > 1e-6 * sizes[0]).sum())
        directions = basis[:count] / sizes[:count, None] / spread
        if classes := [_doubles(part) for part in abnormal if len(np.asarray(part))]:
            means = np.stack([((part - centre) @ directions.T).mean(0) for part in classes])
            means = np.concatenate([means.mean(0, keepdims=True), means])
            apart = np.linalg.svd(means, full_matrices=False)[2][: min(_ABNORMAL_DIRECTIONS, len(classes), count - 1)]
            directions = directions - apart.T @ (apart @ directions)
        coordinates = (calibrating - centre) @ directions.T
        return cls(
            centre.astype(np.float32),
            directions.astype(np.float32),
            np.zeros(count, np.float32),
            np.ones(count, np.float32),
            coordinates.astype(np.float32),
            np.square(coordinates).sum(1).astype(np.float32),
        )

    def moved(self, coordinates: ArrayLike) -> DriftReference:
        """Return the reference of another site.

        Args:
            coordinates: [n, d] of images of the site, n >= 3.
        """
        values = _doubles(coordinates)
        count = len(values)
        variance = values.var(0, ddof=1)
        typical = max(float(variance.mean()), 1e-12)
        spread = np.sqrt((count * variance + _PRIOR_IMAGES * typical) / (count + _PRIOR_IMAGES))
        others = (values.sum(0) - values) / (count - 1)
        distances = np.square((values - others) / spread).sum(1)
        middle, scale, normals, far = (part.astype(np.float32) for part in (values.mean(0), spread, values, distances))
        return DriftReference(self.centre, self.directions, middle, scale, normals, far)

    def coordinates(self, image_features: ArrayLike) -> Floats:
        """Return the coordinates [B, d] of images with image features [B, C], not whitened."""
        found: Floats = np.matmul(np.asarray(image_features, np.float32) - self.centre, self.directions.T)
        return found

    @property
    def at_another_site(self) -> bool:
        """Whether this is a reference that `moved` returned; at the site of the training the middle is 0."""
        return bool(self.middle.any())

    def shift(self, coordinates: ArrayLike) -> float:
        """Return how far a set of images lies from the reference, in variances of normal images.

        The mean over the coordinates of the square difference between means, less what chance alone gives; about 0 for images
        of the same origin, however many.

        At the site of the training these are trimmed means: a fifth of the images at either end of each coordinate does not
        count, and the directions of the training abnormals are left out anyway. At another site nothing is known of how its
        abnormal images differ, so they may shift any trimmed mean. There the half of the images that lies nearest to the middle
        is compared with the nearest half of the normals, which abnormal images do not reach as long as they are no more than
        half; images of a third site are all far.

        Args:
            coordinates: [N, d], N >= 1; N >= 2 at another site.
        """
        found = np.asarray(coordinates, np.float32)
        if self.at_another_site:
            listed, normal = self._nearest_half(found), self._nearest_half(self.normals)
            means = listed.mean(0, dtype=np.float64), normal.mean(0, dtype=np.float64)
        else:
            listed, normal = found, self.normals
            means = _trimmed_mean(listed), _trimmed_mean(normal)
        difference = (means[0] - means[1]) / self.spread.astype(np.float64)
        return float(np.square(difference).mean()) - 1 / len(listed) - 1 / len(normal)

    def _nearest_half(self, coordinates: Floats) -> Floats:
        """Return the half of the images with coordinates [N, d] that lies nearest to the middle."""
        return coordinates[np.argsort(self.square_distances(coordinates), kind="stable")[: len(coordinates) // 2]]

    def limit(self, images: int) -> float:
        """Return the shift of a number of images, at least one, above which drift is named.

        It is `LIMIT`, or four standard deviations of what chance alone does, where there are so few images, normals or
        coordinates that this is more.
        """
        chance = (1 / images + 1 / len(self.normals)) * math.sqrt(2 / len(self.spread))
        return max(LIMIT, 4 * chance)

    def square_distances(self, coordinates: ArrayLike) -> Floats:
        """Return the square distance [N] of images with coordinates [N, d] from the middle, in units of the spread."""
        distances: Floats = np.square((np.asarray(coordinates, np.float32) - self.middle) / self.spread).sum(1)
        return distances

    def p_values(self, coordinates: ArrayLike) -> list[float]:
        """Return the p-value of each image with coordinates [N, d]: the share of normals, with itself, as far or farther."""
        ordered = np.sort(self.distances)
        farther = len(ordered) - np.searchsorted(ordered, self.square_distances(coordinates), side="left")
        values: list[float] = ((1 + farther) / (len(ordered) + 1)).tolist()
        return values

    def to_dict(self) -> dict[str, Any]:
        """Return the reference as JSON values; arrays are little-endian float32 in base64."""
        arrays = {name: encode_array(getattr(self, name)) for name in _ARRAYS}
        return {"channels": len(self.centre), "components": len(self.spread), **arrays}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DriftReference:
        """Build the reference from the values of `to_dict`.

        Raises:
            InputError: when the values are inconsistent.
        """
        try:
            channels, components = values["channels"], values["components"]
            parts = {name: decode_array(values[name]) for name in _ARRAYS}
            parts["directions"] = parts["directions"].reshape(components, channels)
            parts["normals"] = parts["normals"].reshape(-1, components)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"the reference for drift is damaged ({type(error).__name__})") from error
        fits = len(parts["centre"]) == channels and len(parts["spread"]) == len(parts["middle"]) == components
        fits = fits and len(parts["normals"]) == len(parts["distances"]) >= 1
        finite = all(np.isfinite(part).all() for part in parts.values())
        if not (fits and finite and (parts["spread"] > 0).all()):
            raise InputError("the reference for drift is damaged: its numbers must be finite and its spreads above 0")
        return cls(**parts)


@dataclass(frozen=True)
class Drift:
    """What a set of images says about drift.

    Attributes:
        images: number of images that were compared.
        shift: see `DriftReference.shift`; NaN when there are too few images or the model has no reference.
        limit: see `DriftReference.limit`.
    """

    images: int
    shift: float
    limit: float = LIMIT

    @property
    def named(self) -> bool | None:
        """Whether the images come from elsewhere than the normals that calibrated the model; None where that is unknown."""
        return None if math.isnan(self.shift) else self.shift > self.limit

    def sentence(self, model: str = "OUT") -> str:
        """Return what a reader must know, in one sentence without its full stop; "" when there is no drift, or none is known.

        Args:
            model: the model's folder, for the command that mends it.
        """
        if not self.named:
            return ""
        return (
            f"DRIFT: these {self.images} radiographs are unlike the normals that the model was calibrated on (shift "
            f"{self.shift:.2f}, limit {self.limit:.2g}), so p-values and flags cannot be relied on; adapt the model to "
            f"the site: monai-wscxr adapt --model {model} --normals DIR --output NEW"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the decision as JSON values."""
        return {
            "images": self.images,
            "shift": None if math.isnan(self.shift) else round(self.shift, 4),
            "limit": round(self.limit, 4),
            "named": self.named,
        }


def measure_drift(reference: DriftReference | None, coordinates: ArrayLike) -> Drift:
    """Compare images with coordinates [N, d] with the reference; rejected images must not be among them."""
    places = np.asarray(coordinates, np.float32)
    if reference is None or len(places) < FEWEST_IMAGES:
        return Drift(len(places), math.nan)
    return Drift(len(places), reference.shift(places), reference.limit(len(places)))


def online_p_values(reference: NDArray[Any], stream: NDArray[Any], seed: int = 0) -> NDArray[np.float64]:
    """Return the p-values of a stream, each against the reference and the stream up to and with itself.

    Ties are broken at random. While stream and reference are exchangeable these p-values are independent and uniform.

    Args:
        reference: [n], square distances of the normals that calibrate.
        stream: [T], square distances of the stream, in order.
        seed: of the tie-breaking.
    """
    generator = np.random.default_rng(seed)
    seen = np.concatenate([reference, stream]).astype(np.float64)
    values = np.empty(len(stream))
    for t in range(len(stream)):
        known = seen[: len(reference) + t + 1]
        equal = (known == known[-1]).sum()
        values[t] = ((known > known[-1]).sum() + generator.random() * equal) / len(known)
    return values


def log_martingale(p_values: NDArray[Any]) -> NDArray[np.float64]:
    """Return the base-10 logarithm of a test martingale after each p-value of a stream.

    It starts at 1 and bets on small p-values: the mean over e of the products of e p^(e - 1). While the stream is exchangeable
    with the reference, the probability that it ever reaches 1 / a is at most a (Ville's inequality).

    Args:
        p_values: [T] in (0, 1], as of `online_p_values`.
    """
    logs = np.log(np.clip(np.asarray(p_values, dtype=np.float64), 1e-12, 1))
    products = np.log(_POWERS)[:, None] + (_POWERS - 1)[:, None] * logs[None]
    total = np.cumsum(products, axis=1)  # [E, T]
    highest = total.max(0, initial=-np.inf)
    result: NDArray[np.float64] = (highest + np.log(np.exp(total - highest).mean(0))) / math.log(10)
    return result


_ARRAYS = ("centre", "directions", "middle", "spread", "normals", "distances")


def _doubles(values: ArrayLike) -> NDArray[np.float64]:
    return np.asarray(values, np.float64)


def _trimmed_mean(values: Floats) -> NDArray[np.float64]:
    """Return the mean of each column, in float64, without a fifth of the rows at either end."""
    cut = int(_TRIMMED * len(values))
    mean: NDArray[np.float64] = np.sort(values, axis=0)[cut : len(values) - cut].mean(0, dtype=np.float64)
    return mean
