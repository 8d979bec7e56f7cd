"""Operating points with intervals, figures by finding, and figures by group of images.

Sensitivities at 90 and 95 % specificity have thresholds from the normal images of the judged set itself. They say what the
scores could do with a threshold that suits these images, and are no figures of the model's own threshold, which stand beside.

Intervals are of 95 %. Patients, not images, are resampled, and with them the thresholds (Efron's bootstrap; patients with
normal images, with abnormal ones and with both apart). Since a bootstrap of few images is too narrow, and of a share of 1 has
no width at all, the score interval of the same figure counts where it is wider (`model.proportions`), and so do the
sensitivities at both ends of the distribution-free interval of the threshold.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from monai_wscxr.data.description import AGE_BANDS, UNKNOWN, findings_of_item, groups_of_items
from monai_wscxr.evaluation.metrics import auroc
from monai_wscxr.evaluation.resampling import number_patients, resample_patients
from monai_wscxr.model.proportions import LEVEL, auroc_interval, effective_number, wilson_interval

SPECIFICITIES = (0.90, 0.95)
FEWEST_PATIENTS = 10
"""Patients with normal or with abnormal images below which a figure of these is marked as resting on few."""
FEWEST_ABOVE = 3
"""Patients with normal images expected above a threshold below which a sensitivity there is marked, see `SPECIFICITIES`."""
OTHERS = "others"
_MOST_ROWS = 20  # findings, or groups of one kind; the smallest beyond are joined
_RESAMPLES = 1000
_AT_CUTS = tuple(f"sensitivity_{100 * wanted:.0f}" for wanted in SPECIFICITIES)


def operating_figures(
    items: Sequence[Mapping[str, Any]],
    scores: Sequence[float],
    threshold: float,
    resamples: int = _RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Compute operating points, figures by finding and by group.

    Args:
        items: labelled datalist items, normal and abnormal ones.
        scores: anomaly score of each item.
        threshold: the model's operating point; an image is flagged when its score is greater.
        resamples: number of bootstrap resamples.
        seed: of the resamples.

    Returns:
        "operating_points", "findings" and "groups", JSON-like; docs/calibration.md describes them.
    """
    judged = _Judged(items, scores, threshold)
    normal, abnormal = ~judged.abnormal, judged.abnormal
    found = [findings_of_item(item) if item["label"] else () for item in items]
    names = _ordered(Counter(name for several in found for name in several))
    kept = set(names)
    masks = {
        name: np.array([name in several or (name == OTHERS and not kept.issuperset(several)) for several in found])
        & abnormal
        for name in names
    }
    if names == [UNKNOWN]:
        masks = {}
    groups = _group_masks(items)
    selections = [(normal, abnormal)]
    selections += [(normal, mask) for mask in masks.values()]
    selections += [(normal & mask, abnormal & mask) for kinds in groups.values() for mask in kinds.values()]
    resampled = judged.resampled(selections, resamples, seed)
    rows = [judged.row(*selection, values) for selection, values in zip(selections, resampled, strict=True)]
    whole, by_finding, by_group = rows[0], rows[1 : 1 + len(masks)], iter(rows[1 + len(masks) :])
    return {
        "operating_points": {
            "level": LEVEL,
            "resamples": resamples,
            "patients": len(set(judged.patients.tolist())),
            "auroc": whole["auroc"],
            "own": {
                "threshold": threshold,
                "specificity": float((judged.scores[normal] <= threshold).mean()),
                "sensitivity": whole["sensitivity"],
            },
            **{
                f"at_{100 * wanted:.0f}": {
                    "threshold": cut,
                    "specificity": float((judged.scores[normal] <= cut).mean()),
                    "sensitivity": whole[name],
                    "few_normal": (1 - wanted) * judged.healthy < FEWEST_ABOVE - 1e-9,
                }
                for (wanted, cut), name in zip(judged.cuts.items(), _AT_CUTS, strict=True)
            },
        },
        "findings": {
            name: _without(row, "normal", "few_normal", "false_positive_rate")
            for name, row in zip(masks, by_finding, strict=True)
        },
        "groups": {
            kind: {name: _without(next(by_group), *_AT_CUTS) for name in kinds} for kind, kinds in groups.items()
        },
    }


def cut_at(normal_scores: NDArray[np.float64], specificity: float) -> float:
    """Return the lowest of the normal scores that, as a threshold, has at least a given specificity among them."""
    ordered = np.sort(normal_scores)
    flagged = math.floor((1 - specificity) * len(ordered) + 1e-9)
    return float(ordered[len(ordered) - 1 - flagged])


class _Judged:
    """Labels, scores and patients of the judged images.

    Attributes:
        abnormal: [n] bool.
        scores: [n] float64.
        patients: [n] number of the patient of each image.
        healthy: number of patients with normal images.
        threshold: the model's.
        cuts: thresholds by specificity, from the normal images.
    """

    def __init__(self, items: Sequence[Mapping[str, Any]], scores: Sequence[float], threshold: float) -> None:
        self.abnormal = np.array([bool(item["label"]) for item in items])
        self.scores, self.threshold = np.asarray(scores, dtype=np.float64), threshold
        self.patients = number_patients(items)
        self.healthy = len(set(self.patients[~self.abnormal].tolist()))
        self.cuts = {wanted: cut_at(self.scores[~self.abnormal], wanted) for wanted in SPECIFICITIES}

    def row(
        self, normal: NDArray[np.bool_], abnormal: NDArray[np.bool_], resampled: NDArray[np.float64]
    ) -> dict[str, Any]:
        """Return the figures of some normal and abnormal images; a figure without images is None.

        Args:
            normal, abnormal: [n], the images.
            resampled: [resamples, 3], their AUROC and sensitivities at `SPECIFICITIES` in each resample, NaN for none.
        """
        patients = [len(set(self.patients[mask])) for mask in (normal, abnormal)]
        area = None
        if normal.any() and abnormal.any():
            both = normal | abnormal
            value = auroc(self.abnormal[both], self.scores[both])
            area = _figure(value, auroc_interval(value, *patients), resampled[:, 0])
        found = {
            "normal": int(normal.sum()),
            "abnormal": int(abnormal.sum()),
            "few_normal": patients[0] < FEWEST_PATIENTS,
            "few_abnormal": patients[1] < FEWEST_PATIENTS,
            "auroc": area,
            "false_positive_rate": self._share(normal, self.threshold),
            "sensitivity": self._share(abnormal, self.threshold),
        }
        for n, (name, (wanted, cut)) in enumerate(zip(_AT_CUTS, self.cuts.items(), strict=True), start=1):
            found[name] = figure = self._share(abnormal, cut, resampled[:, n])
            if figure is not None:
                ends = [float((self.scores[abnormal] > end).mean()) for end in self._cut_interval(wanted)]
                figure.update(low=min(figure["low"], ends[1]), high=max(figure["high"], ends[0]))
        return found

    def _cut_interval(self, specificity: float) -> tuple[float, float]:
        """Return the normal scores between which the true threshold lies by the binomial distribution, the lower one first.

        Where few patients decide a threshold, a bootstrap never sees scores beyond theirs. The upper end is at most the highest
        score.
        """
        ordered = np.sort(self.scores[~self.abnormal])
        ranks = binom.ppf([(1 - LEVEL) / 2, (1 + LEVEL) / 2], self.healthy, specificity)  # of order statistics, from 1
        ranks = ranks + np.array([0, 1])
        places = np.clip(np.rint(ranks / self.healthy * len(ordered)) - 1, 0, len(ordered) - 1)
        low, high = ordered[places.astype(int)]
        return float(low), float(high)

    def _share(
        self, mask: NDArray[np.bool_], cut: float, resampled: NDArray[np.float64] | None = None
    ) -> dict[str, float] | None:
        """Return the share of some images above a threshold with its interval; None without images."""
        if not mask.any():
            return None
        above = self.scores[mask] > cut
        independent = effective_number(above.tolist(), self.patients[mask].tolist())
        share = float(above.mean())
        return _figure(share, wilson_interval(share, independent), resampled)

    def resampled(
        self, selections: Sequence[tuple[NDArray[np.bool_], NDArray[np.bool_]]], resamples: int, seed: int
    ) -> list[NDArray[np.float64]]:
        """Return AUROC and sensitivities at `SPECIFICITIES` of each selection in each resample: [resamples, 3]; NaN is none."""
        normal, abnormal = np.flatnonzero(~self.abnormal), np.flatnonzero(self.abnormal)
        normal = normal[np.argsort(self.scores[normal], kind="stable")]
        ordered, ill = self.scores[normal], self.scores[abnormal]
        below = np.searchsorted(ordered, ill, "left"), np.searchsorted(ordered, ill, "right")
        parts: list[list[NDArray[np.float64]]] = [[] for _ in selections]
        for counts in resample_patients(self.abnormal, self.patients, resamples, seed):
            healthy, sick = counts[:, normal], counts[:, abnormal]  # [r, normal], [r, abnormal]
            cuts = [_resampled_cut(ordered, healthy, wanted) for wanted in SPECIFICITIES]
            found = [ill[None] > cut[:, None] for cut in cuts]
            ranks: dict[bytes, NDArray[np.float64]] = {}  # findings share their normal images
            for part, (chosen_normal, chosen_abnormal) in zip(parts, selections, strict=True):
                mine, weights = chosen_abnormal[abnormal], chosen_normal[normal]
                key = np.packbits(weights).tobytes()
                if key not in ranks:
                    ranks[key] = _ranks(healthy * weights, *below)
                drawn = sick * mine
                total = drawn.sum(1)
                with np.errstate(invalid="ignore", divide="ignore"):
                    shares = [(drawn * each).sum(1) / total for each in (np.where(drawn > 0, ranks[key], 0), *found)]
                part.append(np.stack(shares, axis=1))
        return [np.concatenate(part) for part in parts]


def _resampled_cut(
    ordered: NDArray[np.float64], counts: NDArray[np.float64], specificity: float
) -> NDArray[np.float64]:
    """Return `cut_at` for each resample, [r]; `ordered` [n] ascending occur `counts` [r, n] times."""
    total = counts.sum(1, keepdims=True)
    above = total - np.cumsum(counts, axis=1)
    return ordered[np.argmax(above <= (1 - specificity) * total + 1e-9, axis=1)]


def _ranks(counts: NDArray[np.float64], below: NDArray[np.int64], not_above: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the share of normal images that score lower than each abnormal one, ties half; [r, abnormal], NaN for none."""
    cumulative = np.concatenate([np.zeros((len(counts), 1)), np.cumsum(counts, axis=1)], axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (cumulative[:, below] + cumulative[:, not_above]) / (2 * cumulative[:, -1:])


def _without(row: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Return a row without some of its figures."""
    return {name: value for name, value in row.items() if name not in names}


def _figure(
    value: float, score_interval: tuple[float, float], resampled: NDArray[np.float64] | None = None
) -> dict[str, float]:
    """Return a figure with the wider of its score interval and its percentile interval over resamples."""
    low, high = score_interval
    known = np.empty(0) if resampled is None else resampled[np.isfinite(resampled)]
    if len(known):
        ends = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        low, high = min(low, float(ends[0])), max(high, float(ends[1]))
    return {"value": value, "low": low, "high": high}


def _group_masks(items: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, NDArray[np.bool_]]]:
    """Return the images [n] of each group, by kind; a kind in which all images are alike is left out."""
    found: dict[str, dict[str, NDArray[np.bool_]]] = {}
    for kind, names in groups_of_items(items).items():
        counts = Counter(names)
        if len(counts) < 2:
            continue
        kept = _ordered(counts)
        if kind == "age":
            kept = [name for name in (*AGE_BANDS, UNKNOWN) if name in counts]
        found[kind] = {
            name: np.array([other == name or (name == OTHERS and other not in kept) for other in names])
            for name in kept
        }
    return found


def _ordered(counts: Counter[str]) -> list[str]:
    """Return names, the most frequent first, beyond `_MOST_ROWS` joined as others, and unknown last."""
    names = [
        name
        for name, _ in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
        if name not in (UNKNOWN, OTHERS)
    ]
    joined = len(names) > _MOST_ROWS or OTHERS in counts
    return [*names[:_MOST_ROWS], *([OTHERS] if joined else []), *([UNKNOWN] if UNKNOWN in counts else [])]
