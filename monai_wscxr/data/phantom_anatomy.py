"""The healthy patient of a phantom: pose, trunk, lungs, heart, vessels and bones as maps on a pixel grid.

`anatomy` makes a patient from a seed; `phantom` adds the lesion and the exposure. Random numbers are sampled in a fixed order,
and changing the order changes every patient.

Coordinates: in the patient frame x = 0 is the midline, x > 0 the patient's left (right in the image), and y runs from 0 (top)
to 1 (bottom). One unit is the width of an upright image, about `CM` centimetres. `side` is -1 for the patient's right and +1
for the left.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from PIL import Image
from scipy import ndimage

CM = 36.0  # centimetres per unit of length
MU = 0.2  # attenuation of soft tissue, 1/cm
MU_BONE = 0.45  # attenuation of bone above that of the soft tissue it displaces, 1/cm
AERATED = 0.74  # fraction of the lung that is air
VESSEL = 1.7  # attenuation of vessels relative to soft tissue; above 1 to keep them visible
SIDES = (-1, 1)


@dataclass(frozen=True)
class Grid:
    """Patient coordinates of every pixel centre, `x` and `y` float32 [n, n], and the transform from patient to image."""

    x: np.ndarray
    y: np.ndarray
    turn: np.ndarray  # [2, 2], patient to image
    shift: np.ndarray

    def windows(self, points: np.ndarray, margin: float) -> list[tuple[slice, slice]]:
        """Return the pixel windows that hold each set of points [k, m, 2] (x, y) with a margin in patient units."""
        n = self.x.shape[0]
        uv = (points - (0.0, 0.5)) @ self.turn.T + self.shift + 0.5
        low = np.clip(np.floor((uv.min(1) - margin) * n), 0, n).astype(int).tolist()
        high = np.clip(np.ceil((uv.max(1) + margin) * n), 0, n).astype(int).tolist()
        return [(slice(a[1], b[1]), slice(a[0], b[0])) for a, b in zip(low, high, strict=True)]


@dataclass
class Anatomy:
    """Maps on one grid, each float32 [n, n]; lengths along the beam in centimetres."""

    grid: Grid
    body: np.ndarray
    lungs: dict[int, np.ndarray]  # depth of aerated lung, by side
    vessels: np.ndarray
    line: np.ndarray  # attenuation line integral of the normal patient
    shape: LungShape


@dataclass(frozen=True)
class LungShape:
    """Outer contour of both lungs (an ellipse above `y0`, vertical walls below) and the domes of the diaphragm."""

    x0: float
    y0: float
    half_width: float
    height: float
    dome: dict[int, float]  # y of the top of the dome, by side
    droop: float

    def wall(self, y: np.ndarray | float) -> np.ndarray:
        """Return the distance of the lateral lung wall from the midline at level `y`."""
        up = np.minimum((np.asarray(y) - self.y0) / self.height, 0.0)
        return self.x0 + self.half_width * np.sqrt(np.maximum(1.0 - up**2, 0.0))

    def diaphragm(self, lateral: np.ndarray) -> np.ndarray:
        """Return the depth of the diaphragm below the top of its dome at distance `lateral` from the midline."""
        t = (lateral - 0.3 * self.half_width - self.x0) / self.half_width
        t2 = t * t
        return self.droop * np.where(t > 0, 2.6 * t2 + 2.0 * t2 * t2, 0.6 * t2)

    def inset(self, lateral: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return the approximate distance to the chest wall, positive inside."""
        dx, dy = lateral - self.x0, np.minimum(y - self.y0, 0.0)
        r = np.hypot(dx / self.half_width, dy / self.height) + 1e-6
        slope = np.hypot(dx / self.half_width**2, dy / self.height**2) / r + 1e-6
        return (1.0 - r) / slope


def step(value: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return a smooth step from 0 at `low` to 1 at `high`."""
    t = np.clip((value - low) / (high - low), 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def _chord(squared: np.ndarray, radius: np.ndarray | float) -> np.ndarray:
    """Return the path length through a round bar of `radius` at a squared distance from its axis."""
    return 2.0 * np.sqrt(np.maximum(radius * radius - squared, 0.0))


def _tube(squared: np.ndarray, radius: np.ndarray | float) -> np.ndarray:
    """Return the path length through the wall of a hollow bone, which shows two bright edges."""
    return _chord(squared, radius) - 0.7 * _chord(squared, 0.72 * radius)


def _table(y: np.ndarray, knots: list[tuple[float, float]], smooth: float = 0.025) -> np.ndarray:
    """Return a smooth curve through `knots` (y, value), evaluated at `y`."""
    at = np.linspace(-0.5, 1.5, 401)
    values = np.interp(at, [knot[0] for knot in knots], [knot[1] for knot in knots])
    return np.interp(y, at, ndimage.gaussian_filter1d(values, smooth / 0.005)).astype(np.float32)


def resized(image: np.ndarray, size: int, how: Image.Resampling = Image.Resampling.BICUBIC) -> np.ndarray:
    """Return a float32 copy of a square image, resized to `size` pixels a side."""
    return np.asarray(Image.fromarray(image.astype(np.float32)).resize((size, size), how))


def stream(seed: int, *key: int) -> np.random.Generator:
    """Return the random numbers of one `key` of a patient, independent of all other keys."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def texture(rng: np.random.Generator, size: int, octaves: tuple[int, ...], fall: float = 0.7) -> np.ndarray:
    """Return correlated noise [size, size] of about unit variance, with the same pattern at any size."""
    total = np.zeros((size, size), np.float32)
    for i, cells in enumerate(octaves):
        total += fall**i * resized(rng.standard_normal((cells, cells)), size)
    return total / math.sqrt(sum(fall ** (2 * i) for i in range(len(octaves))))


def ellipse(grid: Grid, centre: tuple[float, float], axes: tuple[float, float], tilt: float = 0.0) -> np.ndarray:
    """Return the squared elliptic radius (1 on the edge), with axes rotated by `tilt` radians."""
    dx, dy = grid.x - centre[0], grid.y - centre[1]
    c, s = math.cos(tilt), math.sin(tilt)
    return ((c * dx + s * dy) / axes[0]) ** 2 + ((c * dy - s * dx) / axes[1]) ** 2


def ball(squared_radius: np.ndarray) -> np.ndarray:
    """Return the thickness of a ball as a fraction of its diameter, from the squared radius of `ellipse`."""
    return np.sqrt(np.maximum(1.0 - squared_radius, 0.0))


def _bars(grid: Grid, ends: np.ndarray, radii: np.ndarray, hollow: bool = False) -> np.ndarray:
    """Return the path length through straight round bars; where bars cross, the longest counts.

    Args:
        grid: grid of the map.
        ends: [k, 2, 2]: bar, end, (x, y).
        radii: [k, 2]: radius at each end.
        hollow: make tubular bones instead of solid bars.

    Returns:
        Lengths in units of the patient frame, float32 [n, n].
    """
    ends, radii = np.asarray(ends, np.float32), np.asarray(radii, np.float32)
    out = np.zeros_like(grid.x)
    least = 0.8 / grid.x.shape[0]
    along = ends[:, 1] - ends[:, 0]
    along_per_length = along / (np.square(along).sum(1, keepdims=True) + 1e-9)
    for k, window in enumerate(grid.windows(ends, float(radii.max()) * 1.1 + 1.5 * least)):
        x, y = grid.x[window] - ends[k, 0, 0], grid.y[window] - ends[k, 0, 1]
        t = x * along_per_length[k, 0] + y * along_per_length[k, 1]
        np.minimum(np.maximum(t, 0, out=t), 1, out=t)
        squared = np.square(x - t * along[k, 0]) + np.square(y - t * along[k, 1])
        radius = radii[k, 0] + t * (radii[k, 1] - radii[k, 0])
        # A bar thinner than a pixel is made wider and fainter, or it would break up into dots.
        drawn = np.maximum(radius, least)
        length = _tube(squared, drawn) if hollow else _chord(squared, drawn) * (radius / drawn)
        np.maximum(out[window], length, out=out[window])
    return out


def _grid(rng: np.random.Generator, n: int) -> Grid:
    """Sample the pose of the patient and return the grid of n x n pixels."""
    angle, scale = rng.normal(0, 0.022), rng.uniform(1.08, 1.22)
    shift = rng.normal(0, (0.015, 0.012))
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    v, u = np.meshgrid(*[(np.arange(n) + 0.5) / n - 0.5] * 2, indexing="ij")
    back = np.linalg.inv(turn)
    x = back[0, 0] * (u - shift[0]) + back[0, 1] * (v - shift[1])
    y = back[1, 0] * (u - shift[0]) + back[1, 1] * (v - shift[1]) + 0.5
    return Grid(x.astype(np.float32), y.astype(np.float32), turn, shift)


def _body(rng: np.random.Generator, grid: Grid, wall: float) -> np.ndarray:
    """Return the thickness of trunk, neck and arms in cm; `wall` is half the width of the rib cage."""
    fat = rng.uniform(0.05, 0.1)
    flank, shoulder = wall + fat, rng.uniform(0.1, 0.14)
    lateral = np.abs(grid.x)
    neck = [(-0.01, 0.14), (shoulder - 0.05, 0.2), (shoulder, 0.36), (shoulder + 0.06, 0.5)]
    trunk = [(0.3, flank + 0.06), (0.42, flank), (0.7, flank - 0.005), (1.0, flank + 0.01)]
    half = _table(grid.y, [*neck, *trunk])
    depth = _table(grid.y, [(-0.2, 11.0), (0.1, 12.5), (0.2, 16.0), (0.42, 20.5), (0.75, 21.5), (1.0, 22.0)])
    depth *= rng.uniform(0.94, 1.06) + 0.8 * (fat - 0.07)
    body = depth * np.sqrt(ball((lateral / half) ** 2) * (lateral < half))
    reach = rng.uniform(0.56, 0.68)
    arms = [[[side * 0.47, shoulder + 0.1], [side * reach, 0.8]] for side in SIDES]
    body = np.maximum(body, 0.9 * CM * _bars(grid, np.array(arms), np.array([[0.075, 0.065]] * 2)))
    if rng.random() < 0.45:
        fullness, level = rng.uniform(1.0, 3.0), rng.uniform(0.6, 0.68)
        for side in SIDES:
            body += fullness * ball(ellipse(grid, (side * 0.2, level), (0.15, 0.14), side * 0.3)) ** 1.6
    return body


def _lung_shape(rng: np.random.Generator) -> LungShape:
    """Sample the contour of the lungs."""
    half_width, base = rng.uniform(0.21, 0.245), rng.uniform(0.73, 0.79)
    apex, rise = rng.uniform(0.135, 0.165), rng.uniform(0.015, 0.04)
    y0 = base - rng.uniform(0.03, 0.08)
    return LungShape(0.097, y0, half_width, y0 - apex, {-1: base - rise, 1: base}, rng.uniform(0.05, 0.075))


def _aeration(grid: Grid, shape: LungShape, side: int, depth: float) -> np.ndarray:
    """Return the depth of one lung in cm, without subtracting heart and mediastinum."""
    lateral = side * grid.x
    inset = shape.inset(lateral, grid.y)
    above = shape.dome[side] + shape.diaphragm(lateral) - grid.y
    rim = 1.0 - np.square(1.0 - np.clip(inset / 0.14, 0.0, 1.0))
    front = step(above, -0.006, 0.012) * (0.72 + 0.28 * step(above, 0.0, 0.1))
    recess = 0.2 * step(above, -0.11, 0.0)  # lung behind the dome of the diaphragm
    thin = _table(grid.y, [(0.1, 0.5), (0.2, 0.66), (0.4, 0.93), (0.55, 1.0)])
    return depth * thin * np.sqrt(rim) * np.maximum(front, recess) * step(lateral, 0.0, 0.02)


def _central(rng: np.random.Generator, grid: Grid, dome: float) -> np.ndarray:
    """Return the fraction of the lung depth that heart, great vessels and mediastinum occupy, 0 to 1."""
    size, lean = rng.uniform(0.86, 1.05), rng.uniform(0.5, 0.8)
    level, arch = dome - rng.uniform(0.1, 0.12), rng.uniform(0.3, 0.33)
    blobs = [
        ellipse(grid, (0.066, level), (0.17 * size, 0.13 * size), lean),
        ellipse(grid, (-0.015, level + 0.005), (0.095 * size, 0.135)),
        ellipse(grid, (0.047, arch), (0.042 * size, 0.05)),
        ellipse(grid, (0.04, 0.5 * (level + arch)), (0.06, 0.13), -0.15),
        ellipse(grid, (0.0, dome + 0.02), (0.16, 0.06)),
    ]
    knots = ((-0.2, 0.13), (0.13, 0.1), (0.2, 0.078), (0.28, 0.066), (0.5, 0.06), (0.8, 0.07))
    wide = rng.uniform(0.9, 1.15)
    strip = ((grid.x + 0.006) / _table(grid.y, [(y, wide * half) for y, half in knots])) ** 2
    melt = 5.0  # a soft minimum smooths the creases between the parts
    joined = sum(np.exp(-melt * np.minimum(squared, 4.0)) for squared in [*blobs, strip])
    inside = 1.0 + np.log(joined) / melt
    return 0.94 * np.clip(inside / 0.55, 0.0, 1.0) ** 0.4


def _spine(rng: np.random.Generator, grid: Grid) -> np.ndarray:
    """Return the bone of the vertebral column in cm, with discs, pedicles and spinous processes."""
    bend = rng.normal(0, 0.006) * np.sin(np.pi * (grid.y + rng.uniform(0, 1)))
    pitch, start = rng.uniform(0.052, 0.06), rng.uniform(0, 1)
    phase = (grid.y * (1.06 - 0.06 * grid.y)) / pitch + start
    phase = 2.0 * np.abs(phase - np.round(phase))  # 0 in the middle of a body, 1 in a disc
    half = 0.037 + 0.014 * np.clip(grid.y, 0, 1)
    across = (grid.x - bend) / half
    body = step(1.0 - np.abs(across), -0.15, 0.35) * (
        0.9 + 0.25 * step(phase, 0.45, 0.7) - 0.6 * step(phase, 0.7, 0.95)
    )
    pedicle = np.exp(-(((np.abs(across) - 0.62) / 0.16) ** 2) - (phase / 0.4) ** 2)
    process = np.exp(-((across / 0.13) ** 2) - ((phase - 0.6) / 0.35) ** 2)
    return 0.6 * body + 0.45 * pedicle + 0.35 * process


def _ribs(rng: np.random.Generator, grid: Grid, shape: LungShape) -> np.ndarray:
    """Return the bone of ten pairs of ribs in cm: tilted rings with the posterior half above the anterior half."""
    bone = np.zeros_like(grid.x)
    first, pitch = rng.uniform(0.215, 0.235), rng.uniform(0.066, 0.074)
    slant, width, tilt = rng.uniform(0.85, 1.2), rng.uniform(0.0135, 0.0165), rng.normal(0, 0.02)
    for i in range(10):
        centre = first + pitch * i * (1.0 + 0.004 * i) + rng.normal(0, 0.002)
        wide = float(shape.wall(centre)) + 0.004
        tall = slant * (0.05 + 0.012 * min(i, 7))
        (window,) = grid.windows(np.array([[[-wide, centre - tall], [wide, centre + tall]]]), 0.04)
        x = grid.x[window]
        y = grid.y[window] - centre - tilt * x - rng.normal(0, 0.03) * x
        r = np.hypot(x / wide, y / tall) + 1e-6
        distance = (r - 1.0) * r / (np.hypot(x / wide**2, y / tall**2) + 1e-6)
        lateral = np.minimum(np.abs(x) / wide, 1.0)
        back = step(-y, -0.01, 0.01)
        weight = back * step(np.abs(x), 0.02, 0.045) + (0.55 if i < 7 else 0.1) * (1 - back) * step(lateral, 0.42, 0.6)
        girth = width * (1.0 + 0.25 * (1 - back) - 0.25 * (i == 0))
        bone[window] += weight * _tube(distance * distance, girth) * (1.0 + 0.5 * lateral**8) * (0.45 if i > 7 else 1.0)
    return CM * bone * (1.0 + 0.12 * texture(rng, bone.shape[0], (48, 96)))


def _shoulder_girdle(rng: np.random.Generator, grid: Grid) -> np.ndarray:
    """Return the bone of clavicles, scapulae and humeri in cm."""
    t = np.linspace(0, 1, 9)
    girth = 0.016 - 0.006 * np.sin(np.pi * t)
    thin = np.zeros_like(grid.x)
    tubes, heads = [], []
    for side in SIDES:
        lift, sag = rng.normal(0.055, 0.018), rng.normal(0, 0.006)
        y = 0.228 + sag - lift * t + 0.02 * np.sin(2 * np.pi * t) * (1 - 0.4 * t)
        collar = np.stack([side * (0.036 + 0.31 * t), y], 1)
        head = np.array([side * rng.uniform(0.415, 0.435), rng.uniform(0.175, 0.2)])
        tubes += [*pairwise(collar), (head, np.array([side * 0.56, 0.62]))]
        heads.append((head, np.add(head, (side * 0.012, 0.01))))
        swing = rng.uniform(-0.02, 0.02)
        blade = ellipse(grid, (side * (0.335 + swing), 0.3), (0.13, 0.05), side * 1.8)
        border = np.exp(-(((blade - 0.9) / 0.15) ** 2)) * step(0.36 + swing - side * grid.x, 0.0, 0.05)
        thin += 0.2 * step(1.0 - blade, 0.0, 0.4) + 0.3 * border
    radii = [*pairwise(girth), (0.024, 0.02)] * 2
    bone = _bars(grid, np.array(tubes), np.array(radii), hollow=True)
    return CM * np.maximum(bone, 0.35 * _bars(grid, np.array(heads), np.full((2, 2), 0.042))) + thin


def _vessel_tree(rng: np.random.Generator, side: int) -> Iterator[tuple[np.ndarray, np.ndarray, float]]:
    """Yield the segments (start, end, radius at the start) of the vessels of one hilum."""
    root = np.array([side * 0.07, 0.45 - 0.015 * side])
    branches = [(root, a + rng.normal(0, 0.12), rng.uniform(0.0085, 0.0125)) for a in np.linspace(-1.35, 1.4, 7)]
    while branches:
        start, angle, radius = branches.pop()
        for _ in range(3):
            angle += rng.normal(0, 0.14)
            length = rng.uniform(0.022, 0.04)
            end = start + length * np.array([side * np.cos(angle), np.sin(angle)])
            yield start, end, radius
            start, radius = end, 0.86 * radius
        if radius > 0.0028:
            fork = rng.uniform(0.25, 0.55)
            branches.append((start, angle + fork, radius * rng.uniform(0.65, 0.9)))
            branches.append((start, angle - fork, radius * rng.uniform(0.65, 0.9)))


def _vessels(rng: np.random.Generator, grid: Grid) -> np.ndarray:
    """Return the soft-tissue path of the lung vessels in cm, with denser hila."""
    segments = [segment for side in SIDES for segment in _vessel_tree(rng, side)]
    starts, ends, radii = (np.array(part) for part in zip(*segments, strict=True))
    length = _bars(grid, np.stack([starts, ends], 1), np.stack([radii, 0.86 * radii], 1))
    hila = np.zeros_like(grid.x)
    for side in SIDES:
        hila += np.exp(-1.2 * ellipse(grid, (side * 0.085 + 0.008, 0.455 - 0.015 * side), (0.04, 0.06), -side * 0.3))
    return CM * length + 1.6 * hila


def _airways(rng: np.random.Generator, grid: Grid) -> np.ndarray:
    """Return the path of air in the trachea and the main bronchi in cm."""
    carina, lean = np.array([rng.normal(-0.004, 0.003), rng.uniform(0.385, 0.41)]), rng.normal(0, 0.006)
    right, left = np.add(carina, (-0.055, 0.05)), np.add(carina, (0.07, 0.045))
    ends = [[(lean, -0.2), carina], [carina, right], [carina, left]]
    return CM * _bars(grid, np.array(ends), np.array([(0.022, 0.02), (0.015, 0.012), (0.013, 0.01)]))


def _abdominal_gas(rng: np.random.Generator, grid: Grid, shape: LungShape) -> np.ndarray:
    """Return the path of air in stomach and bowel in cm; many patients have none."""
    gas = np.zeros_like(grid.x)
    wobble = 0.3 * texture(rng, grid.x.shape[0], (10, 20))
    top = shape.dome[1]
    for chance, centre, axes in (
        (0.6, (rng.uniform(0.12, 0.18), top + rng.uniform(0.05, 0.07)), (rng.uniform(0.05, 0.08), 0.045)),
        (0.4, (rng.uniform(0.0, 0.25), top + rng.uniform(0.17, 0.22)), (0.07, 0.028)),
    ):
        if rng.random() < chance:
            gas = np.maximum(gas, rng.uniform(2.5, 5.0) * ball(ellipse(grid, centre, axes, -0.2) + wobble))
    below = step(grid.y - top - shape.diaphragm(grid.x), 0.008, 0.03)
    return gas * below


def anatomy(seed: int, n: int) -> Anatomy:
    """Make the patient of a seed on a grid of n x n pixels."""
    rng = stream(seed, 0)
    grid, shape = _grid(rng, n), _lung_shape(rng)
    body = _body(rng, grid, shape.x0 + shape.half_width)
    central = _central(rng, grid, shape.dome[1])
    depth = rng.uniform(12.5, 14.5)
    room = np.maximum(body - 4.0, 0.0)
    lungs = {side: np.minimum(_aeration(grid, shape, side, depth), room) * (1 - central) for side in SIDES}
    aerated = lungs[-1] + lungs[1]
    inside = step(aerated, 0.3, 3.5)
    vessels = _vessels(rng, grid) * inside
    bone = _spine(rng, grid) + _ribs(rng, grid, shape) + _shoulder_girdle(rng, grid)
    gas = _airways(rng, grid) + _abdominal_gas(rng, grid, shape)
    tissue = body * (1.0 + 0.012 * texture(rng, n, (5, 9, 17, 33), 0.75))
    parenchyma = 1.0 + 0.045 * texture(rng, n, (12, 40, 80, 120), 0.85)
    line = MU * (tissue - AERATED * aerated * parenchyma - gas + VESSEL * vessels)
    line += MU_BONE * bone * step(body, 0.5, 3.0)
    return Anatomy(grid, body, lungs, vessels, np.maximum(line, 0.0).astype(np.float32), shape)
