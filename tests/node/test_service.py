"""The HTTP service: results, maps, refusals, and requests that nobody should send."""

import base64
import io
import json
import socket
import threading
import time

import numpy as np
import pytest
import uvicorn
from PIL import Image

from monai_wscxr.commands.main import create_parser
from monai_wscxr.errors import InputError
from monai_wscxr.node import serve, service
from monai_wscxr.node.batching import Batcher
from monai_wscxr.node.serve import ServiceOptions, TimedProtocol, read_token
from monai_wscxr.node.service import Door, Service, create_application
from monai_wscxr.prediction.network import open_network
from monai_wscxr.prediction.scoring import Scorer
from tests.helpers.dicom_peers import PATIENT, dx
from tests.helpers.serving import Client, free_port

TOKEN = "0123456789abcdef0123"
LARGEST = 1 << 20


@pytest.fixture(scope="module")
def scorer(model):
    with_model = Scorer(open_network(model), 1, preload=["monai_wscxr.node.results"])
    yield with_model
    with_model.close()


@pytest.fixture(scope="module")
def start(scorer, tmp_path_factory):
    """Starts a service on a free port and returns a client; `places` and `token` may be given."""
    stops = []

    def make(token=None, places=8):
        batcher = Batcher(scorer, places, 4)
        made = Service(batcher, LARGEST, 4, tmp_path_factory.mktemp("service"))
        port = free_port()
        door = Door(create_application(made), made, token, {"localhost", "127.0.0.1"})
        configuration = uvicorn.Config(
            door,
            host="127.0.0.1",
            port=port,
            http=TimedProtocol,
            ws="none",
            log_level="critical",
            timeout_graceful_shutdown=1,
        )
        server = uvicorn.Server(configuration)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        end = time.monotonic() + 20
        while not server.started and time.monotonic() < end:
            time.sleep(0.01)
        stops.append((server, thread, batcher))
        client = Client(port)
        client.port, client.service, client.batcher = port, made, batcher
        return client

    yield make
    for server, thread, batcher in stops:
        server.should_exit = True
        thread.join(10)
        batcher.close()


@pytest.fixture(scope="module")
def client(start):
    return start()


def png(levels):
    file = io.BytesIO()
    Image.fromarray(levels).save(file, "PNG")
    return file.getvalue()


def dicom(levels, **header):
    file = io.BytesIO()
    dx(levels, **header).save_as(file, enforce_file_format=True)
    return file.getvalue()


def post(client, path, body, **headers):
    status, given, answer = client("POST", path, body, {"Content-Type": "application/octet-stream", **headers})
    return status, given, answer


def test_a_png_and_a_dicom_file_get_the_scores_of_the_model(client, levels, model, tmp_path):
    from monai_wscxr.prediction import load

    (tmp_path / "a.png").write_bytes(png(levels[0]))
    wanted = load(model).predict(str(tmp_path / "a.png"))
    status, headers, answer = post(client, "/predict", png(levels[0]))
    found = json.loads(answer)
    assert status == 200
    assert (found["status"], found["reason"], found["abnormal"]) == ("ok", "", wanted.abnormal)
    assert found["anomaly_score"] == pytest.approx(wanted.score, abs=1e-5)
    assert found["p_value"] == pytest.approx(wanted.p_value)
    assert 0 < found["site_p_value"] <= 1
    assert headers["X-Content-Type-Options"] == "nosniff"
    status, _, answer = post(client, "/predict", dicom(levels[0]))
    assert status == 200
    assert json.loads(answer)["status"] == "ok"
    assert not any(value.encode() in answer for value in PATIENT.values())


def test_maps(client, levels, model, tmp_path):
    from monai_wscxr.prediction import load

    (tmp_path / "a.png").write_bytes(png(levels[1]))
    wanted = load(model).predict(str(tmp_path / "a.png")).map
    status, _, answer = post(client, "/map?format=npy", png(levels[1]))
    assert status == 200
    np.testing.assert_allclose(np.load(io.BytesIO(answer), allow_pickle=False), wanted, atol=1e-5)
    status, headers, answer = post(client, "/map", png(levels[1]))
    assert headers["Content-Type"] == "image/png"
    assert Image.open(io.BytesIO(answer)).size == (64, 64)
    again = json.loads(post(client, "/predict?map=png", png(levels[1]))[2])
    assert base64.b64decode(again["map"]) == answer


def test_an_image_without_a_score_is_a_result_with_a_reason(client, levels):
    for body, reason in (
        (dicom(levels[0], ViewPosition="LL"), "lateral_view"),
        (png(np.full((64, 64), 9, np.uint8)), "no_contrast"),
        (png(levels[0])[:500], "unreadable"),
        (b"no picture", "unknown_format"),
    ):
        status, _, answer = post(client, "/predict", body)
        assert status == 200
        assert json.loads(answer)["reason"] == reason
        assert json.loads(answer)["status"] == "rejected"
    assert post(client, "/map", b"no picture")[0] == 422


def test_several_images_in_one_request(client, levels):
    texts = [base64.b64encode(body).decode() for body in (png(levels[0]), b"x", dicom(levels[2]))]
    status, _, answer = post(client, "/predict/list", json.dumps({"images": texts}).encode())
    assert status == 200
    found = json.loads(answer)["results"]
    assert [one["status"] for one in found] == ["ok", "rejected", "ok"]
    assert found[0] == json.loads(post(client, "/predict", png(levels[0]))[2])


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"images": []}',
        b'{"images": [1]}',
        b'{"images": ["%"]}',
        b'{"images": ["aGk="], "more": 1}',
        b'{"images": ["aGk=", "aGk=", "aGk=", "aGk=", "aGk="]}',
        b'{"images": NaN}',
        b"\xff\xfe",
        b"[" * 100_000,
    ],
)
def test_lists_that_are_none(client, body):
    status, _, answer = post(client, "/predict/list", body)
    assert status == 422
    assert json.loads(answer)["reason"] == "bad_images"


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/predict", b"", 400),
        ("POST", "/predict?map=gif", b"x", 422),
        ("POST", "/map?format=%00", b"x", 422),
        ("GET", "/predict", None, 405),
        ("GET", "/docs", None, 404),
        ("GET", "/../etc/passwd", None, 404),
        ("DELETE", "/health", None, 405),
    ],
)
def test_requests_that_are_refused(client, method, path, body, status):
    found, _, answer = client(method, path, body)
    assert found == status
    assert set(json.loads(answer)) == {"reason", "message"}
    assert "Traceback" not in answer.decode()


def test_a_body_that_is_too_large_is_refused_before_it_is_sent(client):
    assert client.headers_only("POST", "/predict", {"Content-Length": str(LARGEST + 1)}) == 413


def test_pages_of_other_sites_get_nothing(client, levels):
    for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
        assert post(client, "/predict", png(levels[0]), **headers)[0] in (403, 421)


def test_the_token(start, levels):
    guarded = start(token=TOKEN)
    assert guarded("GET", "/health")[0] == 200
    for headers in (
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": "Bearer \xff"},
    ):
        status, given, _ = post(guarded, "/predict", png(levels[0]), **headers)
        assert status == 401
        assert given["WWW-Authenticate"] == "Bearer"
        assert guarded("GET", "/metrics", headers=headers)[0] == 401
    assert post(guarded, "/predict", png(levels[0]), Authorization=f"Bearer {TOKEN}")[0] == 200


def test_what_it_says_about_itself(client, levels):
    post(client, "/predict", png(levels[3]))
    assert client.json("GET", "/health") == {"status": "ok"}
    assert client.json("GET", "/model")["image_size"] == 64
    description = client.json("GET", "/openapi.json")
    assert set(description["paths"]) == {"/predict", "/predict/list", "/map", "/model", "/health", "/metrics"}
    metrics = client("GET", "/metrics")[2].decode()
    assert 'monai_wscxr_service_images_total{outcome="ok"}' in metrics
    assert 'monai_wscxr_service_requests_total{status="200"}' in metrics
    assert "monai_wscxr_service_drift_shift" in metrics


def test_more_images_than_places_are_refused_with_a_time_to_come_again(start, levels, monkeypatch):
    small = start(places=2)
    held = threading.Event()
    read = small.batcher.scorer.read

    def slow(path):
        held.wait(10)
        return read(path)

    monkeypatch.setattr(small.batcher.scorer, "read", lambda path: _later(slow, path))
    answers = []
    threads = [
        threading.Thread(target=lambda: answers.append(post(small, "/predict", png(levels[0])))) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    end = time.monotonic() + 10
    while len(answers) < 4 and time.monotonic() < end:
        time.sleep(0.01)
    assert [status for status, _, _ in answers] == [503] * 4
    assert all(1 <= int(headers["Retry-After"]) <= 60 for _, headers, _ in answers)
    texts = json.dumps({"images": [base64.b64encode(png(levels[0])).decode()] * 3}).encode()
    assert post(small, "/predict/list", texts)[0] == 422  # more than would ever fit
    held.set()
    for thread in threads:
        thread.join(20)
    assert sorted(status for status, _, _ in answers) == [200, 200, 503, 503, 503, 503]
    assert post(small, "/predict", png(levels[0]))[0] == 200
    assert small.batcher.taken == 0


def _later(function, path):
    """Call a function that returns a future in a thread."""
    from concurrent.futures import Future

    found = Future()
    threading.Thread(target=lambda: found.set_result(function(path).result())).start()
    return found


def test_slow_and_broken_connections(start, levels, monkeypatch):
    monkeypatch.setattr(service, "_BODY_SECONDS", 0.5)
    monkeypatch.setattr(serve, "_REQUEST_SECONDS", 0.4)
    slow = start()
    body = socket.create_connection(("127.0.0.1", slow.port), timeout=10)
    body.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nabc")
    assert body.recv(100).startswith(b"HTTP/1.1 408")
    head = socket.create_connection(("127.0.0.1", slow.port), timeout=10)
    head.sendall(b"POST /predict HTTP/1.1\r\nHost: loc")
    silent = socket.create_connection(("127.0.0.1", slow.port), timeout=10)
    assert head.recv(100) == silent.recv(100) == b""
    for text in (
        b"\0" * 100,
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
    ):
        broken = socket.create_connection(("127.0.0.1", slow.port), timeout=10)
        broken.sendall(text)
        assert broken.recv(100)[9:12] in (b"400", b"421", b"")
        broken.close()
    gone = socket.create_connection(("127.0.0.1", slow.port), timeout=10)
    gone.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nabc")
    gone.close()
    assert post(slow, "/predict", png(levels[0]))[0] == 200
    end = time.monotonic() + 10
    while slow.batcher.taken and time.monotonic() < end:
        time.sleep(0.02)
    assert slow.batcher.taken == 0
    assert not list(slow.service.folder.iterdir())
    for connection in (body, head, silent):
        connection.close()


def test_a_service_that_cannot_score_any_more_says_so(scorer, tmp_path):
    batcher = Batcher(scorer, 2)
    batcher.close()
    assert not batcher.take(1)
    app = create_application(Service(batcher, LARGEST, 4, tmp_path))
    from starlette.testclient import TestClient

    with TestClient(app) as inside:
        assert inside.get("/health").status_code == 503
        assert inside.post("/predict", content=b"x").status_code == 503


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"host": "0.0.0.0"}, "--token_file"),
        ({"host": "0.0.0.0", "token_file": "t"}, "--without_tls"),
        ({"certificate": "c"}, "belong together"),
        ({"workers": 0}, "--workers"),
        ({"places": 0}, "--places"),
        ({"allow": ("all",)}, "--allow"),
    ],
)
def test_options_that_cannot_be_used(change, message):
    with pytest.raises(InputError, match=message):
        ServiceOptions("model", **change).check()


def test_tokens_that_are_none(tmp_path):
    for content in ("", "short", "with a blank in the middle of it", "é" * 20):
        (tmp_path / "token").write_text(content)
        with pytest.raises(InputError, match="token"):
            read_token(str(tmp_path / "token"))
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    assert read_token(str(tmp_path / "token")) == TOKEN
    assert read_token(None) is None


def test_the_command_has_the_options_of_the_service():
    given = vars(create_parser().parse_args(["serve", "--model", "m"]))
    chosen = {name: given[name] for name in ServiceOptions.__dataclass_fields__}
    assert ServiceOptions(**{**chosen, "allow": tuple(chosen["allow"])}) == ServiceOptions("m")
