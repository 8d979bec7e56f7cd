"""The page on a real workbench, and the tests' stand-in compared with it."""

import io

import pytest
from PIL import Image
from starlette.testclient import TestClient

from monai_wscxr.label.archive.folder import FolderStudies
from monai_wscxr.label.workbench import Workbench
from tests.helpers.fake_workbench import FakeWorkbench, application, phantom_files
from tests.helpers.webdriver import until

API = "/wscxr/api"


@pytest.fixture(scope="module")
def workbench(phantoms, tmp_path_factory):
    folder = tmp_path_factory.mktemp("workbench")
    options = {"image_size": 64, "device": "cpu", "epochs": 2}
    bench = Workbench(
        FolderStudies(phantoms / "test", folder / "labels.jsonl"),
        folder,
        phantoms / "train" / "normal",
        options=options,
    )
    bench.refresh()
    return bench


def test_the_stand_in_is_like_the_workbench(workbench, phantoms):
    """Every value that the stand-in gives the page also comes from the workbench, with the same type."""
    client = TestClient(application(workbench), base_url="http://127.0.0.1")
    fake = FakeWorkbench(phantom_files(phantoms / "test"), seconds=0.05)
    first = client.get(f"{API}/queue", params={"strategy": "most_suspicious"}).json()[0]
    pictures = [
        Image.open(io.BytesIO(client.get(f"{API}/items/{first['id']}/{name}.png").content))
        for name in ("radiograph", "map")
    ]
    assert [picture.mode for picture in pictures] == ["L", "RGBA"]
    assert pictures[0].size == pictures[1].size
    assert client.get(f"{API}/items/nothing").json()["reason"] == "unknown_image"
    assert client.post(f"{API}/train").json()["reason"] == "no_abnormal"
    sent = {"label": 1, "class": "effusion"}
    labelled = client.put(f"{API}/items/{first['id']}/label", json=sent).json()
    assert (labelled["label"], labelled["class"]) == (1, "effusion")
    assert client.get(f"{API}/status").json()["new_labels"] == 1
    assert client.post(f"{API}/train").status_code == 202
    until(lambda: client.get(f"{API}/train").json()["state"] == "done", "the training ends", 120)
    assert client.get(f"{API}/status").json()["new_labels"] == 0

    fake.set_label(next(iter(fake.files)), 1, "effusion")
    fake.start_training()
    until(lambda: fake.training()["state"] == "done", "the stand-in's training ends")
    for real, standin in (
        (workbench.status(), fake.status()),
        (workbench.queue("labelled")[0], fake.queue("labelled")[0]),
        (workbench.queue("most_uncertain")[0], fake.queue("most_uncertain")[0]),
        (workbench.training(), fake.training()),
        (workbench.changes(), fake.changes()),
        (workbench.changes()["moved"][0], fake.changes()["moved"][0]),
        (workbench.status()["model"], fake.status()["model"]),
        (workbench.status()["model"]["scale"], fake.status()["model"]["scale"]),
    ):
        assert set(standin) <= set(real)
        different = {key for key in standin if type(real[key]) is not type(standin[key])}
        assert different <= {"rank_before", "model_before", "operating_point"}
    scale = workbench.status()["model"]["scale"]
    assert scale["low"] <= scale["threshold"] < scale["high"]
