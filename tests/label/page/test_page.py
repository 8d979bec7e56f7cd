"""The labelling page's JSON interface: its answers, its refusals, and the calls that reach the workbench."""

import io
import json
import re
from html.parser import HTMLParser
from http.client import HTTPConnection
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from monai_wscxr.data.radiograph.read import read_radiograph
from monai_wscxr.report.overlay import colour_map
from tests.helpers.fake_workbench import FakeWorkbench, application, phantom_files, served
from tests.helpers.webdriver import until

API = "/wscxr/api"
STATIC = resources.files("monai_wscxr.label.page").joinpath("static")


@pytest.fixture
def workbench(phantoms):
    return FakeWorkbench(phantom_files(phantoms), seconds=0.05)


@pytest.fixture
def client(workbench):
    return client_of(workbench)


def client_of(workbench, address="http://127.0.0.1:8000", **options):
    return TestClient(application(workbench, **options), base_url=address, raise_server_exceptions=False)


def refusal(response, status):
    """Return the reason of a refused request, after checking the form that all refusals share."""
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"reason", "message"}
    assert re.fullmatch(r"[a-z][a-z_]+", body["reason"])
    assert len(body["message"]) > 10
    assert "Traceback" not in response.text
    return body["reason"]


def first(client, strategy="most_suspicious"):
    return client.get(f"{API}/queue", params={"strategy": strategy}).json()[0]


def test_status_and_queue_come_from_the_workbench(client, workbench):
    assert client.get(f"{API}/status").json() == workbench.status()
    page = client.get(f"{API}/queue", params={"strategy": "most_uncertain", "n": 5, "offset": 3}).json()
    assert page == workbench.queue("most_uncertain", 5, 3)
    assert client.get(f"{API}/queue").json() == workbench.queue("varied")
    assert [item["id"] for item in page] != [item["id"] for item in workbench.queue("most_suspicious", 5, 3)]


def test_pictures_of_one_image_have_one_size(client):
    image_id = first(client)["id"]
    grey = Image.open(io.BytesIO(client.get(f"{API}/items/{image_id}/radiograph.png").content))
    colour = Image.open(io.BytesIO(client.get(f"{API}/items/{image_id}/map.png").content))
    assert (grey.mode, colour.mode, colour.size) == ("L", "RGBA", grey.size)
    scale = np.asarray(Image.open(io.BytesIO(client.get(f"{API}/scale.png").content)))
    assert scale.shape == (1, 256, 4)
    assert (scale[0, :, 3] == np.arange(256)).all()  # opaque as a map is at this position
    assert (scale[0, :, :3] == colour_map(np.linspace(0, 1, 256))).all()


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ({"label": 0}, (0, None, False)),
        ({"label": 1, "class": "effusion"}, (1, "effusion", False)),
        ({"label": 1, "class": "  pleural \t effusion "}, (1, "pleural effusion", False)),
        ({"label": 1, "class": "Ödem"}, (1, "Ödem", False)),
        ({"label": 1, "class": "  "}, (1, None, False)),
        ({"label": None, "skipped": True}, (None, None, True)),
    ],
)
def test_labels_reach_the_workbench(client, workbench, sent, kept):
    item = first(client)
    after = client.put(f"{API}/items/{item['id']}/label", json=sent)
    assert after.status_code == 200
    assert workbench.labels == {item["id"]: kept}
    assert client.get(f"{API}/items/{item['id']}").json() == after.json()
    assert first(client)["id"] != item["id"]
    assert first(client, "labelled")["id"] == item["id"]
    client.put(f"{API}/items/{item['id']}/label", json={"label": None})
    assert workbench.labels == {}


@pytest.mark.parametrize(
    "sent",
    [
        {},
        {"label": 2},
        {"label": True},
        {"label": "1"},
        {"label": 0, "class": "effusion"},
        {"label": None, "class": "effusion"},
        {"label": 1, "class": "x" * 65},
        {"label": 1, "class": "a\x00b"},
        {"label": 1, "class": "a‮b"},
        {"label": 1, "class": 7},
        {"label": 1, "class": "a\ud800b"},
        {"label": 1, "class": "\u3164"},
        {"label": 1, "skipped": True},
        {"label": None, "skipped": "yes"},
        {"label": 1, "note": "unknown field"},
        [{"label": 1}],
        None,
    ],
    ids=repr,
)
def test_malformed_labels_are_refused(client, workbench, sent):
    content = None if sent is None else json.dumps(sent)
    headers = {"Content-Type": "application/json"}
    answer = client.put(f"{API}/items/{first(client)['id']}/label", content=content, headers=headers)
    assert refusal(answer, 422) == "invalid"
    assert workbench.calls == []


def test_a_body_that_is_no_json_is_refused(client, workbench):
    address = f"{API}/items/{first(client)['id']}/label"
    answer = client.put(address, content=b"{label", headers={"Content-Type": "application/json"})
    assert refusal(answer, 422) == "invalid"
    assert "not valid JSON" in answer.json()["message"]
    answer = client.put(address, content=b"\xff", headers={"Content-Type": "application/json"})
    assert refusal(answer, 400) == "invalid"
    assert workbench.calls == []


@pytest.mark.parametrize(
    "asked",
    [{"strategy": "best"}, {"n": 0}, {"n": 501}, {"n": "many"}, {"offset": -1}],
    ids=repr,
)
def test_malformed_queues_are_refused(client, asked):
    parameters = {"strategy": "random"} | asked
    assert refusal(client.get(f"{API}/queue", params=parameters), 422) == "invalid"


@pytest.mark.parametrize("ending", ["", "/radiograph.png", "/map.png"])
@pytest.mark.parametrize("image_id", ["nothing", "..", "../../etc/passwd", "..%2f..%2fetc%2fpasswd", "%00", "a" * 5000])
def test_unknown_images_are_not_found(client, image_id, ending):
    assert refusal(client.get(f"{API}/items/{image_id}{ending}"), 404) in ("unknown_image", "unknown_address")


def test_an_unknown_image_takes_no_label(client, workbench):
    assert refusal(client.put(f"{API}/items/nothing/label", json={"label": 0}), 404) == "unknown_image"
    assert workbench.calls == []


def ask(port, method, address, body=None):
    """Send one request with the address exactly as given; the test client would decode it twice."""
    connection = HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request(method, address, body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


def test_ids_are_opaque(workbench):
    """Ids may contain dots, slashes and other characters; each reaches the workbench unchanged."""
    file = next(iter(workbench.files.values()))
    ids = ["1.2.840.113619.2/5", "a b/ü?x=1#2%2F.dcm", "label", "map.png", "radiograph.png/label"]
    workbench.files = dict.fromkeys(ids, file)
    with served(workbench) as (_, port):
        for odd in ids:
            quoted = "".join(f"%{byte:02X}" for byte in odd.encode())
            assert ask(port, "GET", f"{API}/items/{quoted}")[1]["id"] == odd
            assert ask(port, "PUT", f"{API}/items/{quoted}/label", b'{"label": 1}')[0] == 200
    assert list(workbench.labels) == ids


def test_what_the_workbench_refuses_is_a_conflict(client, workbench):
    image_id = first(client)["id"]
    assert refusal(client.post(f"{API}/train"), 409) == "no_abnormal"
    workbench.unreadable[image_id] = ("undecodable", "The file is no image that can be decoded.")
    assert refusal(client.get(f"{API}/items/{image_id}/radiograph.png"), 409) == "undecodable"
    assert refusal(client.put(f"{API}/items/{image_id}/label", json={"label": 1}), 409) == "unreadable"
    workbench.read_only = True
    assert refusal(client.put(f"{API}/items/{image_id}/label", json={"label": 0}), 409) == "read_only"
    assert refusal(client.post(f"{API}/train"), 409) == "read_only"
    assert workbench.labels == {}


def test_an_unreadable_file_is_explained_without_its_path(client, workbench, monkeypatch, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n and nothing")
    monkeypatch.setattr(workbench, "radiograph_png", lambda image_id: read_radiograph(broken))
    answer = client.get(f"{API}/items/{first(client)['id']}/radiograph.png")
    assert refusal(answer, 409) == "unreadable"
    assert "damaged" in answer.json()["message"]
    assert "broken.png" not in answer.text


def test_training_runs_once_and_changes_the_order(client, workbench):
    before = [item["id"] for item in client.get(f"{API}/queue", params={"strategy": "most_suspicious"}).json()]
    assert client.get(f"{API}/changes").json() is None
    client.put(f"{API}/items/{before[-1]}/label", json={"label": 1})
    workbench.seconds = 0.5
    started = client.post(f"{API}/train")
    assert (started.status_code, started.json()["state"]) == (202, "running")
    assert refusal(client.post(f"{API}/train"), 409) == "busy"
    until(lambda: client.get(f"{API}/train").json()["state"] == "done", "the training ends")
    changes = client.get(f"{API}/changes").json()
    assert changes["new_labels"] == 1
    assert changes["moved"]
    after = client.get(f"{API}/queue", params={"strategy": "most_suspicious"}).json()
    assert [item["id"] for item in after] != before[:-1]


def test_without_a_model_there_is_no_map(phantoms):
    client = client_of(FakeWorkbench(phantom_files(phantoms), model=False))
    item = first(client)
    assert item["anomaly_score"] is None
    assert refusal(client.get(f"{API}/items/{item['id']}/map.png"), 409) == "no_model"
    assert client.get(f"{API}/items/{item['id']}/radiograph.png").status_code == 200


def test_long_bodies_are_refused_before_they_are_read_whole(client, workbench):
    address = f"{API}/items/{first(client)['id']}/label"
    assert refusal(client.put(address, json={"label": 1, "class": "x" * 5000}), 413) == "too_large"

    def endless():  # without a length in the header
        for _ in range(1000):
            yield b" " * 1024

    assert refusal(client.put(address, content=endless()), 413) == "too_large"
    assert workbench.calls == []


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://example.org"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:9999"},
        {"Origin": "http://localhost:8000"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"},
    ],
    ids=repr,
)
def test_pages_of_other_sites_change_nothing(client, workbench, headers):
    item = first(client)
    workbench.set_label(item["id"], 1)
    workbench.calls.clear()
    assert (
        refusal(client.put(f"{API}/items/{item['id']}/label", json={"label": 0}, headers=headers), 403)
        == "foreign_origin"
    )
    assert refusal(client.post(f"{API}/train", headers=headers), 403) == "foreign_origin"
    assert workbench.calls == []
    assert workbench.training()["state"] == "idle"


@pytest.mark.parametrize("address", ["/status", "/queue?strategy=random", "/items/ID/radiograph.png", "/changes"])
def test_pages_of_other_sites_read_nothing(client, address):
    """By default MONAI Label allows CORS requests from every origin, so a browser would pass the answers on."""
    address = API + address.replace("ID", first(client)["id"])
    for headers in ({"Origin": "https://example.org"}, {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}):
        assert refusal(client.get(address, headers=headers), 403) == "foreign_origin"


def test_the_page_itself_and_links_to_it_pass(client):
    item = first(client)
    own = {"Origin": "http://127.0.0.1:8000", "Sec-Fetch-Site": "same-origin"}
    assert client.put(f"{API}/items/{item['id']}/label", json={"label": 0}, headers=own).status_code == 200
    behind_tls = {"Origin": "https://127.0.0.1:8000"}
    assert client.put(f"{API}/items/{item['id']}/label", json={"label": 0}, headers=behind_tls).status_code == 200
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert client.get("/wscxr/", headers=link).status_code == 200


@pytest.mark.parametrize(
    "host", ["example.org", "127.0.0.1.example.org:8000", "localhost.", "", "[::1", "127.0.0.1@example.org"]
)
def test_foreign_host_names_are_refused(client, host):
    assert refusal(client.get(f"{API}/status", headers={"Host": host}), 421) == "foreign_host"


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1", "[::1]:8000"])
def test_names_of_this_machine_pass(client, host):
    assert client.get(f"{API}/status", headers={"Host": host}).status_code == 200


def test_other_names_pass_when_they_are_given(workbench):
    assert client_of(workbench, "http://reading-room", hosts=["reading-room"]).get(f"{API}/status").status_code == 200
    assert client_of(workbench, "http://anything", hosts=None).get(f"{API}/status").status_code == 200
    assert refusal(client_of(workbench, hosts=["reading-room"]).get(f"{API}/status"), 421) == "foreign_host"


def test_errors_of_the_server_tell_the_log_and_not_the_client(client, workbench, monkeypatch, caplog):
    def broken():
        raise RuntimeError("secret in /home/someone")

    monkeypatch.setattr(workbench, "training", broken)
    answer = client.get(f"{API}/train")
    assert refusal(answer, 500) == "internal"
    assert "secret" not in answer.text
    assert "secret" in caplog.text


def test_every_answer_carries_the_safety_headers(client):
    item = first(client)
    for address in (
        "",
        "page.js",
        "nothing",
        "api/status",
        "api/items/x",
        f"api/items/{item['id']}/map.png",
        "api/queue",
    ):
        headers = client.get(f"/wscxr/{address}").headers
        policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
        assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] in ("no-store", "private, no-cache")
        assert "access-control-allow-origin" not in headers


@pytest.mark.parametrize("name", ["radiograph.png", "map.png"])
def test_browsers_keep_pictures_until_the_model_changes(client, workbench, name):
    address = f"{API}/items/{first(client)['id']}/{name}"
    answer = client.get(address)
    tag = answer.headers["etag"]
    assert tag.startswith(f'"{workbench.model["sha256"][:16]}-')
    for known in (tag, f"W/{tag}", f'"other", {tag}'):
        again = client.get(address, headers={"If-None-Match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert client.get(address, headers={"If-None-Match": '"other"'}).content == answer.content
    workbench.model["sha256"] = "f" * 64
    assert client.get(address, headers={"If-None-Match": tag}).status_code == 200


def test_a_replaced_file_does_not_look_unchanged(client, workbench):
    image_id = first(client)["id"]
    address = f"{API}/items/{image_id}/radiograph.png"
    tag = client.get(address).headers["etag"]
    workbench.pixels[image_id] = 1 - workbench.pixels[image_id]
    assert client.get(address, headers={"If-None-Match": tag}).status_code == 200


def test_the_page_and_its_files(client):
    page = client.get("/wscxr/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert client.get("/wscxr").url.path == "/wscxr/"
    assert client.get("/wscxr/", headers={"If-None-Match": page.headers["etag"]}).status_code == 304
    for file in STATIC.iterdir():
        answer = client.get(f"/wscxr/{file.name}")
        assert answer.content == file.read_bytes()
        assert answer.headers["content-type"].split("/")[0] in ("text", "image")


def test_no_address_leaves_the_folder(workbench):
    outside = [
        "../router.py",
        "%2e%2e/router.py",
        "..%2frouter.py",
        "./../../page/router.py",
        "static/page.css",
        "page.css/",
    ]
    outside += ["/etc/passwd", "%2fetc/passwd", "page.css%00", "..%5crouter.py", "%252e%252e/router.py", "__init__.py"]
    with served(workbench) as (_, port):
        for address in outside:
            status, body = ask(port, "GET", f"/wscxr/{address}")
            assert (status, body["reason"]) == (404, "unknown_address"), address


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_other_methods_find_nothing(client, method):
    assert refusal(client.request(method, "/wscxr/"), 404) == "unknown_address"
    assert refusal(client.request(method, f"{API}/status"), 404) == "unknown_address"


class _Elements(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []
        self.feed(STATIC.joinpath("index.html").read_text())

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


def test_the_markup_holds_no_script_no_style_and_no_foreign_address():
    for tag, attributes in _Elements().found:
        assert tag != "style"
        assert tag != "script" or attributes["src"]
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
        assert not [v for name, v in attributes.items() if name in ("src", "href", "action") and ":" in v]
    for file in STATIC.iterdir():
        assert not re.search(r"https?://(?!www\.w3\.org/)|eval\(|innerHTML|document\.write", file.read_text()), (
            file.name
        )


def test_what_the_scripts_look_for_is_in_the_markup():
    ids = [attributes["id"] for _, attributes in _Elements().found if "id" in attributes]
    assert len(ids) == len(set(ids))
    for file in STATIC.iterdir():
        if file.name.endswith(".js"):
            wanted = set(re.findall(r'(?:by|getElementById)\("([a-z-]+)"\)', file.read_text()))
            assert wanted <= set(ids), file.name
    for _, attributes in _Elements().found:
        for name in ("aria-labelledby", "aria-controls", "for"):
            assert set((attributes.get(name) or "").split()) <= set(ids)


def test_the_files_are_installed_with_the_package():
    assert '"monai_wscxr.label.page" = ["static/*"]' in Path(__file__).parents[3].joinpath("pyproject.toml").read_text()
    assert all(file.is_file() for file in STATIC.iterdir())


def _colours():
    """Read the colour variables of the style sheet for each of its surroundings: light, dark, viewer."""
    text = STATIC.joinpath("page.css").read_text()
    light, dark = re.findall(r":root \{(.*?)\}", text, re.S)
    (viewer,) = re.findall(r"^\.viewer \{\n(.*?)\}", text, re.S | re.M)
    read = {
        name: dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6});", part))
        for name, part in (("light", light), ("dark", dark), ("viewer", viewer))
    }
    return read | {"viewer": read["dark"] | read["viewer"]}


def _luminance(colour):
    channels = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(one, other):
    """Return the contrast ratio of two colours by WCAG 2.2."""
    high, low = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("surroundings", ["light", "dark", "viewer"])
def test_page_contrast(surroundings):
    """WCAG AA: text has a contrast of 4.5 to 1 on every background, control borders and score bar marks of 3 to 1."""
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    colours = _colours()[surroundings]
    for text in ("ink", "muted", "normal", "abnormal", "skipped", "bad"):
        for ground in ("paper", "panel", "raised", "chosen"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    assert contrast(colours["on-accent"], colours["accent"]) >= 4.5
    assert contrast(colours["paper"], colours["bad"]) >= 4.5
    for mark in ("edge", "accent"):
        for ground in ("paper", "panel", "raised"):
            assert contrast(colours[mark], colours[ground]) >= 3, (mark, ground)
    assert contrast(colours["bar-flagged"], colours["line"]) >= 3


def test_json_never_holds_what_is_no_number(client, workbench, monkeypatch):
    monkeypatch.setattr(workbench, "changes", lambda: {"seconds": float("nan")})
    assert refusal(client.get(f"{API}/changes"), 500) == "internal"
    json.loads(client.get(f"{API}/status").text, parse_constant=pytest.fail)
