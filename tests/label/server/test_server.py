"""A client and a real server in its own environment: all of MONAI Label's interface that the server offers."""

import contextlib
import gzip
import io
import json
import shutil

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from monai_wscxr.data.phantom import write_phantoms
from tests.helpers.serving import label_server, multipart, needs_label_environment

pytestmark = needs_label_environment

SMALL = ["--set", "image_size=96", "--set", "neighbourhood=3", "--set", "epochs=3", "--set", "device=cpu"]
STRATEGIES = ("most_suspicious", "most_uncertain", "random")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Folder of 12 normal and 12 abnormal phantoms as studies, and 40 known normal images."""
    root = tmp_path_factory.mktemp("label")
    write_phantoms(root / "phantoms", 40, 1, 12, 3, size=96, progress=False)
    (root / "studies").mkdir()
    for path in (root / "phantoms" / "test").rglob("*.png"):
        kind = "normal" if path.parent.name == "normal" else path.parent.name
        shutil.copy(path, root / "studies" / f"{kind}-{path.name}")
    return root


class Server:
    """A server that can be restarted on the same studies; calls pass through to its client."""

    def __init__(self, data):
        self.data, self.stack, self.client = data, contextlib.ExitStack(), None

    def start(self):
        self.stack.close()
        options = ["--normals", self.data / "phantoms/train/normal", "--max_upload", "1", *SMALL]
        self.client = self.stack.enter_context(label_server(self.data / "studies", self.data / "log", *options))

    def __getattr__(self, name):
        return getattr(self.client, name)

    def __call__(self, *arguments, **named):
        return self.client(*arguments, **named)


@pytest.fixture(scope="module")
def server(data):
    started = Server(data)
    started.start()
    yield started
    started.stack.close()


def auc(client):
    """Compute the AUROC of the archive's ranking from the interface alone."""
    objects = client.json("GET", "/datastore/?output=all")["objects"].values()
    scores = [(e["anomaly_score"], not e["name"].startswith("normal")) for e in objects]
    pairs = [(a > n) + (a == n) / 2 for a, abnormal in scores if abnormal for n, other in scores if not other]
    return sum(pairs) / len(pairs)


def test_a_whole_session(data, server):
    info = server.json("GET", "/info/")
    assert list(info["models"]) == ["wscxr"]
    assert set(info["strategies"]) == set(STRATEGIES)
    assert server.json("POST", "/scoring/anomaly_score?run_sync=true") == {"images": 24, "scored": 24, "rejected": 0}
    objects = server.json("GET", "/datastore/?output=all")["objects"]
    by_name = {entry["name"]: image_id for image_id, entry in objects.items()}

    # inference with each kind of output
    image_id = by_name["effusion-" + next(n for n in by_name if n.startswith("effusion")).partition("-")[2]]
    status, headers, body = server.form("POST", f"/infer/wscxr?image={image_id}&output=json")
    assert status == 200
    result = json.loads(body)
    assert {"anomaly_score", "p_value", "abnormal", "threshold", "peak", "model_sha256"} <= set(result)
    assert result["anomaly_score"] == pytest.approx(objects[image_id]["anomaly_score"], rel=1e-5)
    status, headers, body = server.form("POST", f"/infer/wscxr?image={image_id}&output=image")
    assert status == 200
    nifti = nib.Nifti1Image.from_bytes(gzip.decompress(body))
    assert nifti.shape == (96, 96, 1)
    assert nifti.get_data_dtype() == np.float32
    status, headers, body = server.form(
        "POST", f"/infer/wscxr?image={image_id}&output=image", {"params": '{"result_extension": ".png"}'}
    )
    assert Image.open(io.BytesIO(body)).size == (96, 96)
    status, headers, body = server.form("POST", f"/infer/wscxr?image={image_id}&output=all")
    parts = multipart(headers, body)
    assert json.loads(parts["params"][1]) == result
    assert nib.Nifti1Image.from_bytes(gzip.decompress(parts["image"][1])).shape == (96, 96, 1)
    upload = (data / "studies" / objects[image_id]["name"]).read_bytes()
    status, _, body = server.form("POST", "/infer/wscxr?output=json", files={"file": ("x.png", upload)})
    assert json.loads(body)["anomaly_score"] == pytest.approx(result["anomaly_score"], rel=1e-5)

    # strategies
    first = {s: server.json("POST", f"/activelearning/{s}", {}) for s in STRATEGIES}
    assert first["most_suspicious"]["rank"] == 1
    assert all(set(entry) >= {"id", "name", "anomaly_score"} and "path" not in entry for entry in first.values())
    nearest = min(objects.values(), key=lambda e: abs(e["anomaly_score"] - result["threshold"]))
    assert first["most_uncertain"]["id"] == nearest["id"]

    # labels, accepted and refused
    assert server.label(image_id, {"image_label": 1, "class": "effusion"})[0] == 200
    assert server.json("GET", f"/datastore/label/info?label={image_id}&tag=final")["class"] == "effusion"
    normal_id = by_name[next(n for n in by_name if n.startswith("normal"))]
    for wrong, word in (
        ({"image_label": 2}, "0 (normal)"),
        ({"image_label": 0, "class": "nodule"}, "no class"),
        ({"image_label": 1, "class": "normal"}, "cannot be of class"),
        ({"label": 1}, "JSON object"),
        (b"{", "JSON object"),
    ):
        status, _, body = server.label(normal_id, wrong)
        assert status == 409, wrong
        assert word in json.loads(body)["detail"]
    copy = data / "phantoms/train/normal"
    shutil.copy(sorted(copy.iterdir())[0], data / "studies" / "copy.png")
    server.json("POST", "/scoring/anomaly_score?run_sync=true")
    objects = server.json("GET", "/datastore/?output=all")["objects"]
    copy_id = next(i for i, e in objects.items() if e["name"] == "copy.png")
    status, _, body = server.label(copy_id, {"image_label": 1})
    assert status == 409
    assert json.loads(body)["reason"] == "contradiction"
    (data / "studies" / "copy.png").unlink()
    server.json("POST", "/scoring/anomaly_score?run_sync=true")

    # training changes the model and improves the ranking
    before, quality = server.json("GET", "/info/")["train_stats"]["wscxr"]["model"], auc(server)
    for kind in ("nodule", "consolidation", "pneumothorax"):
        name = next(n for n in by_name if n.startswith(kind))
        assert server.label(by_name[name], {"image_label": 1, "class": kind})[0] == 200
    task = server.train()
    assert task["status"] == "DONE", task
    after = server.json("GET", "/info/")["train_stats"]["wscxr"]["model"]
    assert after["sha256"] != before["sha256"]
    assert after["abnormal"] == 4
    assert task["result"]["new_labels"] == 4
    assert auc(server) > quality
    assert auc(server) > 0.75


def test_after_a_restart_labels_model_and_order_are_there(data, server):
    scores = {i: e["anomaly_score"] for i, e in server.json("GET", "/datastore/?output=all")["objects"].items()}
    server.start()
    server.json("POST", "/scoring/anomaly_score?run_sync=true")
    objects = server.json("GET", "/datastore/?output=all")["objects"]
    classes = sorted(e["class"] for e in objects.values() if e["label"] == 1)
    assert classes == ["consolidation", "effusion", "nodule", "pneumothorax"]
    assert server.json("GET", "/datastore/")["completed"] == 4
    assert {i: e["anomaly_score"] for i, e in objects.items()} == pytest.approx(scores, rel=1e-4)


def test_the_models_of_the_server_run_with_predict(data, server, capsys):
    from monai_wscxr.commands.main import main

    model = data / "studies" / ".wscxr" / "model"
    paths = sorted(str(p) for p in (data / "studies").glob("*.png"))[:3]
    main(
        [
            "predict",
            *paths,
            "--model",
            str(model),
            "--output",
            str(data / "out"),
            "--workers",
            "0",
            "--no-report",
            "--quiet",
        ]
    )
    rows = (data / "out" / "predictions.csv").read_text().splitlines()
    scores = {e["name"]: e["anomaly_score"] for e in server.json("GET", "/datastore/?output=all")["objects"].values()}
    assert len(rows) == 4
    for row in rows[1:]:
        file, status, _, score, *_ = row.split(",")
        assert status == "ok"
        assert float(score) == pytest.approx(scores[file.rpartition("/")[2]], rel=1e-3, abs=1e-3)


def test_what_is_not_there_is_404_and_nothing_leaves_the_studies(data, server, tmp_path):
    outside = tmp_path / "outside.png"
    shutil.copy(next((data / "studies").glob("*.png")), outside)
    (data / "studies" / "link.png").symlink_to(outside)
    server.json("POST", "/scoring/anomaly_score?run_sync=true")
    objects = server.json("GET", "/datastore/?output=all")["objects"]
    assert all(e["name"] != "link.png" for e in objects.values())
    (data / "studies" / "link.png").unlink()
    for wrong in ("nothing", "../outside.png", str(outside), "/etc/passwd", "%2e%2e%2fx"):
        for method, path in (
            ("POST", f"/infer/wscxr?image={wrong}&output=json"),
            ("GET", f"/datastore/image?image={wrong}"),
            ("GET", f"/datastore/image/info?image={wrong}"),
            ("GET", f"/datastore/label?label={wrong}&tag=final"),
        ):
            status, _, body = server.form(method, path) if method == "POST" else server(method, path)
            assert status == 404, (method, path, status, body)
        assert server.label(wrong, {"image_label": 0})[0] == 404
    overridden = server.form(
        "POST", "/infer/wscxr?image=x&output=json", {"params": json.dumps({"image": str(outside)})}
    )
    assert overridden[0] == 404
    for path in ("/infer/other?image=x", "/train/other", "/scoring/other", "/activelearning/other"):
        assert server.form("POST", path)[0] == 404, path
    for method, path in (
        ("GET", "/logs/"),
        ("GET", "/model/wscxr"),
        ("PUT", "/session/"),
        ("POST", "/reload"),
        ("GET", "/proxy/dicom/qido/studies"),
        ("GET", "/datastore/dataset"),
    ):
        assert server(method, path)[0] == 404, path


def test_answers_carry_no_trace_and_no_path(data, server):
    bad = server.form("POST", "/infer/wscxr?image=x", {"params": "{no json"})
    assert bad[0] == 422
    removal = server("DELETE", "/datastore/image?id=x")
    assert removal[0] == 405
    upload = server.form("POST", "/infer/wscxr?output=json", files={"file": ("x.png", b"no picture")})
    assert upload[0] == 409
    assert json.loads(upload[2])["reason"] == "unknown_format"
    assert "none of the known formats" in json.loads(upload[2])["detail"]
    for _, _, body in (bad, removal, upload):
        assert b"Traceback" not in body
        assert str(data).encode() not in body
        assert b"/uploads/" not in body


def test_large_requests_other_sites_and_other_names_are_refused(data, server):
    status, headers, _ = server("GET", "/info/", headers={"Origin": "http://evil.example"})
    assert status == 403
    assert headers["Access-Control-Allow-Origin"] is None
    image_id = server.json("GET", "/datastore/?output=all")["objects"].popitem()[0]
    for address in (f"/datastore/image?image={image_id}", "/datastore/image?image=nothing"):
        assert server("GET", address, headers={"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"})[0] == 403
        assert server("GET", address, headers={"Origin": "null"})[0] == 403
    for address in (f"/datastore/image?image={image_id}", "/", "/wscxr/", "/static/favicon.ico", "/nothing"):
        headers = server("GET", address)[1]
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert server("POST", "/train/wscxr", headers={"Origin": "http://evil.example"})[0] == 403
    assert server("GET", "/info/", headers={"Host": "evil.example"})[0] == 421
    assert server.headers_only("POST", "/infer/wscxr", {"Content-Length": str(2 << 20)}) == 413
    assert server.json("GET", "/info/")["name"] == "WSCXR"
