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
import torch
from numpy.typing import NDArray
from torch import Tensor

from monai_wscxr.errors import InputError
from monai_wscxr.model.encoding import decode_tensor, encode_tensor

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

    centre: Tensor
    directions: Tensor
    middle: Tensor
    spread: Tensor
    normals: Tensor
    distances: Tensor

    @classmethod
    def fit(cls, normal: Tensor, held_out: Tensor, abnormal: Sequence[Tensor] = ()) -> DriftReference | None:
        """Fit the coordinates to the training normals; the held-out normals are the reference.

        Args:
            normal: [n, C], image features of the training normals.
            held_out: [m, C], of the held-out normals.
            abnormal: [k, C] of the training abnormals of each class; what sets their means apart is left out.

        Returns:
            the reference, or None with fewer than 20 training normals or 8 held-out normals, or when all images are equal.
        """
        if len(normal) < _FEWEST_NORMALS or len(held_out) < _FEWEST_HELD_OUT:
            return None
        values = normal.double().cpu()
        centre, spread = values.mean(0), values.std(0)
        if not float(spread.mean()) > 0:
            return None
        spread = spread.clamp_min(1e-6 * float(spread.mean()))
        count = min(_COMPONENTS, len(values) // 3, values.shape[1])
        _, singular, basis = torch.linalg.svd((values - centre) / spread, full_matrices=False)
        sizes = singular[:count] / len(values) ** 0.5
        count = int((sizes > 1e-6 * sizes[0]).sum())
        directions = basis[:count] / sizes[:count, None] / spread
        if classes := [part.double().cpu() for part in abnormal if len(part)]:
            means = torch.stack([((part - centre) @ directions.T).mean(0) for part in classes])
            means = torch.cat([means.mean(0, keepdim=True), means])
            apart = torch.linalg.svd(means, full_matrices=False)[2][
                : min(_ABNORMAL_DIRECTIONS, len(classes), count - 1)
            ]
            directions = directions - apart.T @ (apart @ directions)
        coordinates = (held_out.double().cpu() - centre) @ directions.T
        return cls(
            centre.float(),
            directions.float(),
            torch.zeros(count),
            torch.ones(count),
            coordinates.float(),
            coordinates.square().sum(1).float(),
        )

    def moved(self, coordinates: Tensor) -> DriftReference:
        """Return the reference of another site.

        Args:
            coordinates: [n, d] of images of the site, n >= 3.
        """
        values = coordinates.double().cpu()
        count = len(values)
        variance = values.var(0)
        typical = variance.mean().clamp_min(1e-12)
        spread = ((count * variance + _PRIOR_IMAGES * typical) / (count + _PRIOR_IMAGES)).sqrt()
        others = (values.sum(0) - values) / (count - 1)
        distances = ((values - others) / spread).square().sum(1)
        return DriftReference(
            self.centre, self.directions, values.mean(0).float(), spread.float(), values.float(), distances.float()
        )

    def coordinates(self, image_features: Tensor) -> Tensor:
        """Return the coordinates [B, d] of images with image features [B, C], not whitened."""
        return (image_features.detach().cpu().float() - self.centre) @ self.directions.T

    @property
    def at_another_site(self) -> bool:
        """Whether this is a reference that `moved` returned; at the site of the training the middle is 0."""
        return bool(self.middle.any())

    def shift(self, coordinates: Tensor) -> float:
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
        if self.at_another_site:
            listed, normal = self._nearest_half(coordinates), self._nearest_half(self.normals)
            means = listed.double().mean(0), normal.double().mean(0)
        else:
            listed, normal = coordinates, self.normals
            means = _trimmed_mean(listed), _trimmed_mean(normal)
        difference = (means[0] - means[1]) / self.spread.double()
        return float(difference.square().mean()) - 1 / len(listed) - 1 / len(normal)

    def _nearest_half(self, coordinates: Tensor) -> Tensor:
        """Return the half of the images with coordinates [N, d] that lies nearest to the middle."""
        return coordinates[self.square_distances(coordinates).argsort(stable=True)[: len(coordinates) // 2]]

    def limit(self, images: int) -> float:
        """Return the shift of a number of images, at least one, above which drift is named.

        It is `LIMIT`, or four standard deviations of what chance alone does, where there are so few images, normals or
        coordinates that this is more.
        """
        chance = (1 / images + 1 / len(self.normals)) * math.sqrt(2 / len(self.spread))
        return max(LIMIT, 4 * chance)

    def square_distances(self, coordinates: Tensor) -> Tensor:
        """Return the square distance [N] of images with coordinates [N, d] from the middle, in units of the spread."""
        return ((coordinates - self.middle) / self.spread).square().sum(1)

    def p_values(self, coordinates: Tensor) -> list[float]:
        """Return the p-value of each image with coordinates [N, d]: the share of normals, with itself, as far or farther."""
        ordered = np.sort(self.distances.numpy())
        found = self.square_distances(coordinates).numpy()
        farther = len(ordered) - np.searchsorted(ordered, found, side="left")
        values: list[float] = ((1 + farther) / (len(ordered) + 1)).tolist()
        return values

    def to_dict(self) -> dict[str, Any]:
        """Return the reference as JSON values; tensors are little-endian float32 in base64."""
        tensors = {name: encode_tensor(getattr(self, name)) for name in _TENSORS}
        return {"channels": len(self.centre), "components": len(self.spread), **tensors}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DriftReference:
        """Build the reference from the values of `to_dict`.

        Raises:
            InputError: when the values are inconsistent.
        """
        try:
            channels, components = values["channels"], values["components"]
            parts = {name: decode_tensor(values[name]) for name in _TENSORS}
            parts["directions"] = parts["directions"].reshape(components, channels)
            parts["normals"] = parts["normals"].reshape(-1, components)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"the reference for drift is damaged ({type(error).__name__})") from error
        fits = len(parts["centre"]) == channels and len(parts["spread"]) == len(parts["middle"]) == components
        fits = fits and len(parts["normals"]) == len(parts["distances"]) >= 1
        finite = all(bool(torch.isfinite(part).all()) for part in parts.values())
        if not (fits and finite and bool((parts["spread"] > 0).all())):
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


def measure_drift(reference: DriftReference | None, coordinates: Tensor) -> Drift:
    """Compare images with coordinates [N, d] with the reference; rejected images must not be among them."""
    if reference is None or len(coordinates) < FEWEST_IMAGES:
        return Drift(len(coordinates), math.nan)
    return Drift(len(coordinates), reference.shift(coordinates), reference.limit(len(coordinates)))


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


_TENSORS = ("centre", "directions", "middle", "spread", "normals", "distances")


def _trimmed_mean(values: Tensor) -> Tensor:
    """Return the mean of each column, in float64, without a fifth of the rows at either end."""
    cut = int(_TRIMMED * len(values))
    return values.double().sort(0).values[cut : len(values) - cut].mean(0)
