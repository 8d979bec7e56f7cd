"""How often the intervals of an evaluation cover the true figure: python -m tests.benchmarks.intervals

Scores of normal and abnormal images are normally distributed, moved by 1.5 standard deviations. Where patients have several
images, half of the variance lies between patients. The true figures are known, so coverage is counted.
"""

import argparse

import numpy as np
from scipy.stats import norm

from monai_wscxr.evaluation.operating_points import operating_figures

MOVED = 1.5
SETTINGS = ((200, 300, 1), (100, 30, 1), (30, 100, 1), (60, 10, 1), (20, 10, 1), (60, 40, 3))


def main():
    """Print a table of coverages, mean widths and mean figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=400)
    parser.add_argument("--resamples", type=int, default=400)
    options = parser.parse_args()
    threshold = norm.ppf(0.95)
    true = {"auroc": norm.cdf(MOVED / 2**0.5), "own": norm.sf(threshold - MOVED)}
    true |= {f"at_{s}": norm.sf(norm.ppf(s / 100) - MOVED) for s in (90, 95)}
    print(
        "| patients: normal, abnormal; images each | "
        + " | ".join(f"{k} (true {v:.3f})" for k, v in true.items())
        + " |"
    )
    print("|" + "---|" * (1 + len(true)))
    for normal, abnormal, each in SETTINGS:
        found = {key: [] for key in true}
        for seed in range(options.runs):
            items, scores = draw(normal, abnormal, each, seed)
            points = operating_figures(items, scores, threshold, options.resamples, seed)["operating_points"]
            for key, values in found.items():
                figure = points[key] if key == "auroc" else points[key]["sensitivity"]
                covered = figure["low"] <= true[key] <= figure["high"]
                values.append((covered, figure["high"] - figure["low"], figure["value"]))
        cells = [f"{a:.3f}, width {b:.2f}, mean {c:.3f}" for a, b, c in (np.mean(found[key], axis=0) for key in true)]
        print(f"| {normal}, {abnormal}; {each} | " + " | ".join(cells) + " |", flush=True)


def draw(normal, abnormal, each, seed):
    """Items and scores of one run."""
    random = np.random.default_rng(seed)
    patients = np.repeat(np.arange(normal + abnormal), each)
    label = (patients >= normal).astype(int)
    of_patient, of_image = random.normal(size=normal + abnormal), random.normal(size=len(patients))
    share = 0.0 if each == 1 else 0.5
    scores = share**0.5 * of_patient[patients] + (1 - share) ** 0.5 * of_image + MOVED * label
    items = [
        {"image": "none", "label": y, "patient": str(p), "class": "normal" if y == 0 else "abnormal"}
        for y, p in zip(label.tolist(), patients.tolist(), strict=True)
    ]
    return items, scores.tolist()


if __name__ == "__main__":
    main()
