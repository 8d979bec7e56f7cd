"""Images scored as they come: in order, with reasons between them, and independent of what passes the network with them."""

import numpy as np
import pytest
from PIL import Image

from monai_wscxr.data.radiograph.base import RadiographError
from monai_wscxr.prediction.network import open_network
from monai_wscxr.prediction.scoring import Score, Scorer


@pytest.fixture
def scorer(make_model, tmp_path):
    make_model(tmp_path / "model")
    made = Scorer(open_network(tmp_path / "model"), 1)
    yield made
    made.close()


def test_scores_and_reasons_keep_their_order_and_do_not_depend_on_each_other(scorer, phantoms, tmp_path):
    good = sorted(map(str, phantoms.glob("test/normal/*.png")))[:3]
    Image.fromarray(np.full((64, 64), 5, np.uint8)).save(tmp_path / "flat.png")
    paths = [good[0], str(tmp_path / "flat.png"), good[1], str(tmp_path / "missing.png"), good[2]]
    futures = [scorer.read(path) for path in paths]
    images = [scorer.loaded(path, future) for path, future in zip(paths, futures, strict=True)]
    found = scorer.score(images)
    assert [each.code if isinstance(each, RadiographError) else "" for each in found] == [
        "",
        "no_contrast",
        "",
        "not_found",
        "",
    ]
    alone = scorer.score([images[4]])[0]
    assert isinstance(alone, Score)
    assert alone.outcome == found[4].outcome
    assert (alone.prediction.patch_scores == found[4].prediction.patch_scores).all()
    assert alone.loaded.image.size == 0  # the network's input does not go back to a worker
    assert scorer.score([]) == []
    assert scorer.score([images[1]]) == [images[1]]
