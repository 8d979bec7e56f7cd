"""A client and a real server in its own environment: all of MONAI Label's interface that the server offers."""

import contextlib
import gzip
import io
import json
import shutil
import subprocess
import threading
import time

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from monai_wscxr.data.phantom import write_phantoms
from tests.helpers.radiograph_files import slow_jpeg
from tests.helpers.serving import (
    PYTHON,
    ROOT,
    descendants,
    label_server,
    multipart,
    needs_label_environment,
    stopped,
)

pytestmark = needs_label_environment

SMALL = ["--set", "image_size=96", "--set", "neighbourhood=3", "--set", "epochs=3", "--set", "device=cpu"]
STRATEGIES = ("varied", "most_suspicious", "most_uncertain", "random")


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

    # training changes the model, and the ranking stays good
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
    assert auc(server) > max(0.75, quality - 0.05)  # synthetic opacities made the first model almost as good


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


@pytest.fixture
def with_model(server):
    """The server with scores of all images, and an abnormal one labelled."""
    server.json("POST", "/scoring/anomaly_score?run_sync=true")
    objects = server.json("GET", "/datastore/?output=all")["objects"]
    abnormal = next(image_id for image_id, entry in objects.items() if not entry["name"].startswith("normal"))
    assert server.label(abnormal, {"image_label": 1, "class": "effusion"})[0] == 200
    return server


def wait_until(condition, limit=120):
    """Wait for something that happens in another process."""
    end = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < end, "it has not happened"
        time.sleep(0.02)


def test_nobody_waits_for_an_upload_that_is_being_decoded(data, with_model):
    """The processes that decode are stopped, so the upload is under way for as long as the test wants."""
    uploads, answers = data / "studies/.wscxr/uploads", []
    good = next((data / "studies").glob("normal*.png")).read_bytes()

    def send():
        answers.append(with_model.form("POST", "/infer/wscxr?output=json", files={"file": ("x.png", good)}))

    busy = threading.Thread(target=send)
    with stopped(descendants(with_model.process.pid)):
        busy.start()
        wait_until(lambda: list(uploads.iterdir()))
        for _ in range(5):
            assert with_model.json("GET", "/wscxr/api/status")["images"] == 24
        assert with_model("GET", "/wscxr/")[0] == 200
        assert len(list(uploads.iterdir())) == 1
        assert answers == []
    busy.join(120)
    status, _, body = answers[0]
    # on a busy machine the limit of 10 s may have passed before the processes went on
    assert status == 200 or json.loads(body)["reason"] == "too_slow", body
    wait_until(lambda: not list(uploads.iterdir()))


def test_nobody_waits_for_an_upload_that_is_being_sent(data, with_model):
    good = next((data / "studies").glob("normal*.png")).read_bytes()
    with with_model.sending("/infer/wscxr?output=json", "x.png", good) as finish:
        for _ in range(5):
            assert with_model.json("GET", "/wscxr/api/status")["images"] == 24
        assert finish() == 200


def test_an_image_that_takes_too_long_is_given_up(data, with_model):
    picture = slow_jpeg()
    assert len(picture) < 1_000_000
    status, _, body = with_model.form("POST", "/infer/wscxr?output=json", files={"file": ("x.jpg", picture)})
    assert status in (409, 422), body  # given up after the limit, or refused before its many scans are decoded
    assert json.loads(body)["reason"] in ("too_slow", "unreadable")
    assert list((data / "studies/.wscxr/uploads").iterdir()) == []
    good = next((data / "studies").glob("normal*.png")).read_bytes()
    assert with_model.form("POST", "/infer/wscxr?output=json", files={"file": ("x.png", good)})[0] == 200


def test_the_status_is_answered_during_a_training(with_model):
    """A status counts that was asked for and answered between two looks at the same training, both before its end."""
    busy, answered = threading.Thread(target=with_model.train), 0
    busy.start()
    wait_until(lambda: with_model.json("GET", "/wscxr/api/train")["state"] == "running" or not busy.is_alive())
    while with_model.json("GET", "/wscxr/api/train")["state"] == "running":
        assert with_model.json("GET", "/wscxr/api/status")["images"] == 24
        answered += with_model.json("GET", "/wscxr/api/train")["state"] == "running"
    busy.join(120)
    assert with_model.json("GET", "/wscxr/api/train")["state"] == "done"
    assert answered >= 3


def test_uploads_are_removed_with_their_request(data, server):
    uploads = data / "studies/.wscxr/uploads"
    good = next((data / "studies").glob("normal*.png")).read_bytes()
    for sent in (b"", b"no picture" * 30000, good[:-200], good):
        for method, path in (
            ("POST", "/infer/wscxr?output=json"),
            ("POST", "/infer/wscxr?output=image"),
            ("POST", "/infer/wscxr?output=dicom_seg"),
            ("POST", "/infer/other"),
            ("PUT", "/datastore/image"),
        ):
            for params in ("{}", "[1]", "{no json", '{"result_extension": "x"}', '{"image": "/etc/passwd"}'):
                server.form(method, path, {"params": params}, {"file": ("x.png", sent)})
                assert list(uploads.iterdir()) == [], (method, path, params)
        server.form("PUT", "/datastore/label?image=nothing&tag=final", {}, {"label": ("a.json", sent)})
        assert list(uploads.iterdir()) == []
    added = data / "studies" / "uploaded"
    assert len(list(added.iterdir())) == 1
    shutil.rmtree(added)
    server.json("POST", "/scoring/anomaly_score?run_sync=true")


UNUSABLE = {
    "list": "[1]",
    "number": "1",
    "text": '"x"',
    "null": "null",
    "deep list": "[" * 100_000,
    "deep object": '{"a":' * 5000 + "1" + "}" * 5000,
    "nested": '{"a": ' + "[" * 30 + "]" * 30 + "}",
    "NaN": '{"a": NaN}',
    "infinite": '{"a": 1e999}',
    "half a character": '{"a": "\\ud800"}',
}


@pytest.mark.parametrize("text", UNUSABLE.values(), ids=UNUSABLE.keys())
def test_json_that_is_no_usable_object_is_422_everywhere_and_changes_nothing(server, text):
    objects = server.json("GET", "/datastore/?output=all")["objects"]
    image_id = next(iter(objects))
    before = server.json("GET", f"/datastore/image/info?image={image_id}")
    for method, path, name in (
        ("POST", f"/infer/wscxr?image={image_id}", "params"),
        ("PUT", f"/datastore/image/info?image={image_id}", "info"),
        ("PUT", f"/datastore/label/info?label={image_id}&tag=final", "info"),
        ("PUT", f"/datastore/updatelabelinfo?label={image_id}&tag=final", "params"),
    ):
        status, _, body = server.form(method, path, {name: text})
        assert status == 422, (path, status, body)
        assert json.loads(body)["reason"] == "bad_json"
    label = ("a.json", b'{"image_label": 0}')
    assert server.form("PUT", f"/datastore/label?image={image_id}", {"params": text}, {"label": label})[0] == 422
    refused = server.label(image_id, text.encode())
    assert refused[0] in (409, 422), refused
    for path in ("/activelearning/random", "/train/wscxr", "/train/", "/scoring/anomaly_score", "/scoring/"):
        if text == "null":  # no parameters
            continue
        status, _, body = server("POST", path, text.encode(), {"Content-Type": "application/json"})
        assert status in (400, 422), (path, status, body)
    assert server.json("GET", f"/datastore/image/info?image={image_id}") == before
    assert server.json("GET", "/datastore/?output=all")["objects"] == objects


def test_half_a_character_in_a_label_or_a_note_is_refused_and_nothing_breaks(server):
    image_id = next(iter(server.json("GET", "/datastore/?output=all")["objects"]))
    for name in ("\ud800", "a\u202eb", "a\x00b", "x" * 65, "\u3164"):
        status, _, body = server.label(image_id, {"image_label": 1, "class": name})
        assert (status, json.loads(body)["reason"]) == (409, "bad_class")
        body = json.dumps({"label": 1, "class": name}).encode()
        sent = server("PUT", f"/wscxr/api/items/{image_id}/label", body, {"Content-Type": "application/json"})
        assert sent[0] == 422
    assert server.form("PUT", f"/datastore/image/info?image={image_id}", {"info": '{"strategy": 5}'})[0] == 422
    for sent in (b'{"client_id": "\\ud800"}', b'{"strategy": ["random"]}', b'{"strategy": {}}'):
        status, _, _ = server("POST", "/activelearning/random", sent, {"Content-Type": "application/json"})
        assert status == 422
    for path in ("/wscxr/api/status", "/datastore/?output=all", f"/datastore/image/info?image={image_id}", "/info/"):
        assert server("GET", path)[0] == 200
    assert server.json("POST", "/activelearning/random", {})["id"]


def test_what_monai_label_offers_and_this_server_does_not_is_closed(data, server):
    image_id = next(iter(server.json("GET", "/datastore/?output=all")["objects"]))
    for method, path in (
        ("POST", f"/infer/wsi/wscxr?image={image_id}"),
        ("POST", f"/infer/wsi_v2/wscxr?image={image_id}"),
        ("POST", "/batch/infer/wscxr"),
        ("GET", "/batch/infer"),
        ("GET", "/logs/gpu"),
        ("GET", "/model/info/wscxr"),
        ("GET", "/session/x"),
        ("GET", "/proxy/dicom/%252e%252e/patients"),
    ):
        assert server(method, path)[0] == 404, path
    listed = server.json("GET", "/openapi.json")["paths"]
    assert {path.split("/")[1] for path in listed} <= {
        "info", "infer", "train", "activelearning", "scoring", "datastore", "wscxr"
    }  # fmt: skip
    assert not any("wsi" in path for path in listed)
    assert server.form("POST", f"/infer/wscxr?image={image_id}&session_id=x")[0] == 405
    assert server.form("POST", "/infer/wscxr")[0] == 422


def test_the_tests_of_the_archive_proxy_pass_in_the_environment_of_the_server():
    command = [str(PYTHON), "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/label/server/test_proxy.py"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout
