"""What moving a model to another site does, with and without adaptation: python -m tests.benchmarks.moves --help

For each draw some normal or unlabelled images of the site's test part adapt the model, and the rest of the test part is judged.
Features come from the cache, so hundreds of draws take minutes. Nothing is chosen here; docs/calibration.md has the figures.
"""

import argparse
import dataclasses
import itertools

import numpy as np
import torch

from monai_wscxr.adaptation import extractor_for
from monai_wscxr.adaptation.site import aligned_with, cross_fitted, patch_scores_of
from monai_wscxr.data.datalist import load_datalist
from monai_wscxr.evaluation.metrics import auroc
from monai_wscxr.model.artefact import load_model
from monai_wscxr.model.calibration import estimate_null, recalibrate
from monai_wscxr.model.drift import log_martingale, measure_drift, online_p_values
from monai_wscxr.model.scores import anomaly_score


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="output folder of a training")
    parser.add_argument("--site", required=True, help="folder or data list of the site, with a test part")
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--aligned_draws", type=int, default=200, help="draws with aligned features, which take longer")
    parser.add_argument("--normals", type=int, default=30, help="normal images per draw")
    parser.add_argument("--unlabelled", type=int, default=100, help="unlabelled images per draw")
    parser.add_argument("--images", type=int, default=50, help="images of a list that is tested for drift")
    parser.add_argument("--part", default="test", choices=("training", "test", "all"))
    options = parser.parse_args()
    torch.set_num_threads(2)
    site = Site(options)
    print(site.before(), flush=True)
    for line in itertools.chain(site.unlabelled(), site.drift(), site.normals()):
        print(line, flush=True)


class Site:
    """Features and scores of a site's images under one model."""

    def __init__(self, options):
        self.options, self.model = options, load_model(options.model)
        extractor = extractor_for(self.model, progress=False, max_bad_share=0.2)
        parts = ("training", "test") if options.part == "all" else (options.part,)
        datalist = load_datalist(options.site)
        items = [
            item for part in parts for item in datalist[part]
        ]  # images that the model was trained on are left out below
        known = self.model.known_digests
        used, rows, _ = extractor.usable([str(item["image"]) for item in items])
        labels = {str(item["image"]): item["label"] for item in items}
        keep = [n for n, file in enumerate(used) if extractor.digest(file) not in known]
        self.rows, self.grid = rows[keep], extractor.grid
        self.labels = np.array([labels[used[n]] for n in keep])
        self.scores = self.of(self.model.network, self.rows)
        self.normal, self.abnormal = np.flatnonzero(self.labels == 0), np.flatnonzero(self.labels == 1)
        self.places = self.model.drift.coordinates(self.rows.mean(1))

    def of(self, network, rows):
        """Anomaly scores [n] of features."""
        return anomaly_score(patch_scores_of(network, rows, self.grid), self.model.score_share)[:, 0].numpy()

    def rates(self, calibration, scores, without):
        """Shares of the normal and abnormal images that are flagged, apart from those in `without`."""
        rest = np.setdiff1d(np.flatnonzero(np.isfinite(scores)), without)
        flagged = scores[rest] > calibration.threshold
        return flagged[self.labels[rest] == 0].mean(), flagged[self.labels[rest] == 1].mean()

    def auroc(self, scores, without=()):
        """AUROC apart from the images in `without`."""
        rest = np.setdiff1d(np.flatnonzero(np.isfinite(scores)), without)
        return auroc(self.labels[rest], scores[rest])

    def before(self):
        """The model as it is."""
        normal, abnormal = self.rates(self.model.calibration, self.scores, [])
        return (
            f"{len(self.normal)} normal and {len(self.abnormal)} abnormal images; as trained: normals flagged {normal:.3f}, "
            f"abnormals found {abnormal:.3f}, AUROC {self.auroc(self.scores):.3f}"
        )

    def normals(self):
        """Adaptation with normal images, with the features as they are and aligned."""
        generator = np.random.default_rng(0)
        for aligned in (False, True):
            found, gain = [], []
            for _ in range(self.options.aligned_draws if aligned else self.options.draws):
                chosen = generator.choice(self.normal, self.options.normals, replace=False)
                rows, scores = self.rows[chosen], self.scores
                if aligned:
                    judged = np.union1d(
                        generator.permutation(self.normal)[:130], generator.permutation(self.abnormal)[:100]
                    )
                    scores = np.full(len(self.labels), np.nan)
                    scores[judged] = self.of(aligned_with(self.model.network, rows), self.rows[judged])
                    maps = cross_fitted(self.model.network, rows, self.grid)
                    own = anomaly_score(maps, self.model.score_share)[:, 0].tolist()
                else:
                    own = scores[chosen].tolist()
                calibration = recalibrate(self.model.calibration, own, own)
                found.append(self.rates(calibration, scores, chosen))
                known = np.where(np.isfinite(scores), self.scores, np.nan)
                gain.append(self.auroc(scores, chosen) - self.auroc(known, chosen))
            normal, abnormal = np.array(found).T
            # standard error of the AUROC itself, which the gain must not fall below
            error = (1 / len(self.normal) + 1 / len(self.abnormal)) ** 0.5 / 12**0.5
            yield (
                f"{self.options.normals} normals, {'aligned' if aligned else 'not aligned'}: normals flagged "
                f"{normal.mean():.3f} (90th percentile {np.quantile(normal, 0.9):.3f}), abnormals found {abnormal.mean():.3f}, "
                f"AUROC {np.mean(gain):+.4f} (worst {np.min(gain):+.4f}, standard error of the AUROC up to {error:.3f})"
            )

    def unlabelled(self):
        """Adaptation with unlabelled images, by prevalence."""
        generator = np.random.default_rng(0)
        count = min(self.options.unlabelled, int(0.8 * len(self.normal)))  # some normals are left to judge
        for prevalence in (0.0, 0.1, 0.3, 0.5):
            found = []
            ill = round(prevalence * count)
            for _ in range(self.options.draws):
                chosen = np.concatenate(
                    [
                        generator.choice(self.normal, count - ill, replace=False),
                        generator.choice(self.abnormal, ill, replace=False),
                    ]
                )
                calibration = estimate_null(self.model.calibration, self.scores[chosen].tolist())
                found.append(self.rates(calibration, self.scores, chosen))
            normal, abnormal = np.array(found).T
            yield (
                f"{count} unlabelled, {prevalence:.0%} abnormal: normals flagged {normal.mean():.3f} (90th percentile "
                f"{np.quantile(normal, 0.9):.3f}), abnormals found {abnormal.mean():.3f}"
            )

    def drift(self):
        """How often drift is named, before and after adaptation, by prevalence; and the martingale of normal images."""
        generator = np.random.default_rng(0)
        count = self.options.images
        for prevalence in (0.0, 0.3, 0.5, 1.0):
            ill = round(prevalence * count)
            before, after = [], []
            for _ in range(self.options.draws):
                own = generator.choice(self.normal, self.options.normals, replace=False)
                rest = np.setdiff1d(self.normal, own)
                chosen = np.concatenate(
                    [
                        generator.choice(rest, count - ill, replace=False),
                        generator.choice(self.abnormal, ill, replace=False),
                    ]
                )
                before.append(measure_drift(self.model.drift, self.places[chosen]).shift)
                adapted = dataclasses.replace(self.model, drift=self.model.drift.moved(self.places[own]))
                after.append(measure_drift(adapted.drift, self.places[chosen]))
            named = np.mean(np.array(before) > 0.1)
            yield (
                f"{count} images, {prevalence:.0%} abnormal: drift named in {named:.3f} of the lists "
                f"(shift {np.mean(before):.3f}, largest {np.max(before):.3f}); after adaptation with {self.options.normals} "
                f"normals in {np.mean([d.named for d in after]):.3f}"
            )
        highest = []
        reference = self.model.drift.distances.numpy()
        for _ in range(self.options.draws):
            chosen = generator.choice(self.normal, min(count, len(self.normal)), replace=False)
            stream = self.model.drift.square_distances(self.places[chosen]).numpy()
            highest.append(log_martingale(online_p_values(reference, stream, int(generator.integers(1 << 30)))).max())
        share = np.mean(np.array(highest) >= 2)
        yield (
            f"martingale over {count} normal images: reaches 100 in {share:.3f} of the streams "
            f"(median of the highest: 10^{np.median(highest):.1f})"
        )


if __name__ == "__main__":
    main()
