"""What says nothing about disease must hardly move a score: phantoms, perturbed."""

import random
from statistics import median

import pytest
import torch

from monai_wscxr.data.perturbation import PERTURBATIONS
from monai_wscxr.data.phantom import write_phantoms
from monai_wscxr.data.transforms import LoadRadiographd, ResizeRadiographd, radiograph_transforms
from monai_wscxr.evaluation.metrics import auroc
from monai_wscxr.model.artefact import load_model
from monai_wscxr.model.scores import anomaly_score
from tests.helpers.bundle_runs import run

SIZE = 192
ALLOWED = {  # mean movement of a score as a share of the gap between normal and abnormal
    "flip": 0.3,
    "brighter": 0.3,
    "darker": 0.3,
    "flatter": 0.05,
    "harder": 0.3,
    "collimated": 0.6,
    "lettered": 0.4,
    "shifted": 0.4,
}


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """Scores of test phantoms by name of the perturbation, and their labels."""
    folder = tmp_path_factory.mktemp("robust")
    write_phantoms(folder / "data", 120, 6, 24, 6, size=SIZE, progress=False)
    run("train", folder / "data", folder / "run", image_size=SIZE, k=6, epochs=2, min_batches=100, neighbourhood=3)
    model = load_model(folder / "run")
    files = sorted((folder / "data" / "test").glob("normal/*.png")) + sorted(
        (folder / "data" / "test" / "abnormal").glob("*/*.png")
    )
    steps = radiograph_transforms(model.preprocessing).transforms

    def scores(perturb):
        rng, inputs = random.Random(0), []
        for file in files:
            image = {"image": str(file)}
            for step in (LoadRadiographd("image"), ResizeRadiographd("image", SIZE)):
                image = step(image)
            image["image"] = perturb(image["image"], rng)
            for step in steps[2:]:
                image = step(image)
            inputs.append(image["image"])
        with torch.inference_mode():
            return anomaly_score(model.network(torch.stack(inputs)), model.score_share)[:, 0].tolist()

    labels = [int("abnormal" in file.parts) for file in files]
    own = scores(lambda image, rng: image)
    return labels, own, {name: scores(PERTURBATIONS[name]) for name in ALLOWED}


def test_the_model_is_worth_testing(scored):
    labels, own, _ = scored
    assert auroc(labels, own) > 0.9


@pytest.mark.parametrize("name", ALLOWED)
def test_scores_hardly_move(scored, name):
    labels, own, perturbed = scored
    gap = median(s for s, y in zip(own, labels, strict=True) if y) - median(
        s for s, y in zip(own, labels, strict=True) if not y
    )
    moved = [abs(a - b) for a, b in zip(perturbed[name], own, strict=True)]
    assert sum(moved) / len(moved) <= ALLOWED[name] * gap
    assert auroc(labels, perturbed[name]) >= auroc(labels, own) - 0.1
