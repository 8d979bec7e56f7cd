"""The page in a real browser, served by `monai-wscxr label` without MONAI Label, which trains in earnest."""

import json

import pytest

from monai_wscxr.data.phantom import write_phantoms
from tests.helpers.serving import page_server
from tests.helpers.webdriver import Browser, missing, until

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

SMALL = {
    "image_size": 64,
    "neighbourhood": 3,
    "epochs": 2,
    "min_batches": 5,
    "copies": 0,
    "opacities": 0,
    "device": "cpu",
}
SEEN = """
  const name = document.getElementById("name").textContent;
  return !document.getElementById("normal").disabled && name !== arguments[0] && name;
"""


def test_label_by_keyboard_undo_retrain_and_see_why(tmp_path, weights):
    phantoms = tmp_path / "phantoms"
    write_phantoms(phantoms, 12, 1, 4, 2, size=64, progress=False)
    chosen = {**SMALL, "backbone": "timm/test_resnet", "weights": weights}
    options = [part for name, value in chosen.items() for part in ("--set", f"{name}={value}")]
    options += ["--normals", phantoms / "train/normal", "--work", tmp_path / "work"]
    with page_server(phantoms / "test", tmp_path / "log", *options) as client, Browser(tmp_path / "browser") as page:
        page.open(f"{client.base}/wscxr/")

        def label(*keys):
            name = page.text("#name")
            page.press(*keys)
            return name, page.until(SEEN, name)

        first = page.until(SEEN, "")
        page.until('return document.getElementById("why").textContent.startsWith("Suspicious, and ")')
        model = client.json("GET", "/wscxr/api/status")["model"]
        assert model["abnormal"] == 0

        named, second = label("a", *"effusion", "Enter")
        assert named == first
        label("n")
        page.press("u")  # takes the second label back
        page.until('return document.getElementById("name").textContent === arguments[0]', second)
        until(lambda: client.json("GET", "/wscxr/api/status")["labels"]["normal"] == 0, "the label is withdrawn")
        assert page.text("#why").startswith("Suspicious, and ")
        _, third = label("n")

        page.press("r")
        until(lambda: client.json("GET", "/wscxr/api/status")["model"]["sha256"] != model["sha256"], "a new model", 120)
        page.until('return !document.getElementById("changes").hidden')
        assert " ".join(page.text("#train-note").split()) == "up to date"
        assert "trained" in page.text("#model")
        assert "1 abnormal" in page.text("#model")
        queue = client.json("GET", "/wscxr/api/queue")
        page.until('return document.getElementById("name").textContent === arguments[0]', queue[0]["name"])
        assert page.text("#why") == f"{queue[0]['why']}."
        assert {entry["name"] for entry in queue}.isdisjoint({first, second})
        assert third in {entry["name"] for entry in queue}
        page.open("about:blank")
        assert page.messages() == []
    decisions = [json.loads(line) for line in (tmp_path / "work" / "labels.jsonl").read_text().splitlines()]
    assert [(decision["label"] or {}).get("image_label") for decision in decisions] == [1, 0, None, 0]
    assert "Traceback" not in (tmp_path / "log").read_text()
