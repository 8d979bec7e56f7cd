"""Which requests the guard passes on and which it refuses, without MONAI Label."""

import asyncio
import base64
import json

import pytest

from monai_wscxr.errors import InputError
from monai_wscxr.label.server.guard import Guard, SameSite, host_name
from monai_wscxr.label.server.proxy import archive_path
from monai_wscxr.label.server.start import check_host, read_password


async def echo(scope, receive, send):
    """Read the whole body and answer with its length."""
    length, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise RuntimeError("SECRET PATH")
        length, more = length + len(message.get("body", b"")), message.get("more_body", False)
    if scope["path"] == "/wscxr/fail":
        raise RuntimeError("SECRET PATH")
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(length).encode()})


def ask(guard, method="GET", path="/info/", headers=None, body=b"", part=1000):
    """Return status and body of one request, whose body comes in parts, without a Content-Length unless given."""
    headers = {"host": "127.0.0.1:8000", **(headers or {})}
    parts = [body[i : i + part] for i in range(0, max(len(body), 1), part)]
    messages = [{"type": "http.request", "body": p, "more_body": n + 1 < len(parts)} for n, p in enumerate(parts)]
    sent = []

    async def receive():
        return messages.pop(0)

    async def send(message):
        sent.append(message)

    raw = [(k.encode(), v.encode()) for k, v in headers.items()]
    scope = {"type": "http", "method": method, "path": path, "headers": raw}
    asyncio.run(guard(scope, receive, send))
    return sent[0]["status"], b"".join(m.get("body", b"") for m in sent[1:])


def headers_of(guard, path, headers):
    """Return the headers of an answer by lower-case name."""
    sent = []

    async def receive():
        return {"type": "http.request", "body": b""}

    async def send(message):
        sent.append(message)

    raw = [(k.encode(), v.encode()) for k, v in {"host": "127.0.0.1:8000", **headers}.items()]
    asyncio.run(guard({"type": "http", "method": "GET", "path": path, "headers": raw}, receive, send))
    names = [name.decode().lower() for name, _ in sent[0]["headers"]]
    assert len(names) == len(set(names))
    return {name.decode().lower(): value.decode() for name, value in sent[0]["headers"]}


def guard(**options):
    return Guard(echo, ["127.0.0.1", "localhost"], 5000, names={"/infer": {"wscxr"}}, **options)


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/info/", {}, 200),
        ("GET", "/", {}, 200),
        ("GET", "/wscxr/api/status", {}, 200),
        ("POST", "/infer/wscxr", {}, 200),
        ("POST", "/infer/other", {}, 404),
        ("POST", "/infer/wscxr/", {}, 200),
        ("POST", "/infer/other/", {}, 404),
        ("POST", "/infer/wsi/wscxr", {}, 404),
        ("POST", "/infer/wsi_v2/wscxr", {}, 404),
        ("POST", "/infer/anything/wscxr", {}, 404),
        ("POST", "/infer/", {}, 404),
        ("POST", "/infer", {}, 404),
        ("POST", "/batch/infer/wscxr", {}, 404),
        ("GET", "/datastore", {}, 200),
        ("GET", "/datastore/", {}, 200),
        ("GET", "/datastore/image", {}, 200),
        ("GET", "/datastore/image/info", {}, 200),
        ("GET", "/datastore/image/other", {}, 404),
        ("GET", "/datastore/dataset", {}, 404),
        ("GET", "/datastore/export", {}, 404),
        ("GET", "/info/more", {}, 404),
        ("POST", "/auth/token", {}, 404),
        ("GET", "/wscxr/a\u202eb", {}, 404),
        ("GET", "/wscxr/a\x00b", {}, 404),
        ("POST", "/reload", {}, 404),
        ("GET", "/logs/", {}, 404),
        ("GET", "/informal", {}, 404),
        ("GET", "/wscxr/../logs", {}, 404),
        ("GET", "/proxy/dicom/studies", {}, 404),
        ("GET", "/info/", {"host": "evil.example"}, 421),
        ("GET", "/info/", {"host": "localhost"}, 200),
        ("GET", "/info/", {"host": "[::1]:8000"}, 421),
        ("POST", "/train/wscxr", {"origin": "http://evil.example"}, 403),
        ("POST", "/train/wscxr", {"origin": "null"}, 403),
        ("POST", "/train/wscxr", {"origin": "http://127.0.0.1:8000"}, 200),
        ("GET", "/info/", {"origin": "http://evil.example"}, 403),
        ("GET", "/info/", {"origin": "http://127.0.0.1:8000"}, 200),
        ("GET", "/datastore/image", {"origin": "null"}, 403),
        ("HEAD", "/datastore/image", {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}, 403),
        ("GET", "/datastore/image", {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, 403),
        ("GET", "/datastore/image", {"sec-fetch-site": "same-site"}, 403),
        ("GET", "/datastore/image", {"sec-fetch-site": "same-origin", "sec-fetch-mode": "cors"}, 200),
        (
            "GET",
            "/wscxr/",
            {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"},
            200,
        ),
        (
            "GET",
            "/wscxr/",
            {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"},
            403,
        ),
        ("GET", "/wscxr/page.js", {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}, 403),
        ("POST", "/info/", {"content-length": "5001"}, 413),
        ("POST", "/info/", {"content-length": "many"}, 400),
    ],
)
def test_requests_are_passed_or_refused(method, path, headers, status):
    assert ask(guard(), method, path, headers)[0] == status


SITE = {"host": "127.0.0.1:8000"}


@pytest.mark.parametrize(
    ("method", "headers", "reads", "changes"),
    [
        ("GET", {}, None, None),
        ("POST", {}, None, None),  # a program, not a browser
        ("POST", {"origin": "http://127.0.0.1:8000", "sec-fetch-site": "same-origin"}, None, None),
        ("POST", {"origin": "HTTPS://127.0.0.1:8000"}, None, None),  # behind a TLS proxy
        ("GET", {"origin": "http://evil.example"}, "foreign_origin", None),
        ("GET", {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}, "foreign_origin", None),
        ("GET", {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, None, None),  # a link
        ("POST", {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, "foreign_origin", "foreign_origin"),
        ("PUT", {"sec-fetch-site": "same-site"}, "foreign_origin", "foreign_origin"),
        ("DELETE", {"origin": "null"}, "foreign_origin", "foreign_origin"),
        ("POST", {"origin": "http://127.0.0.1:9000"}, "foreign_origin", "foreign_origin"),
        ("POST", {"origin": "http://[::1"}, "foreign_origin", "foreign_origin"),
        ("GET", {"host": "evil.example"}, "foreign_host", "foreign_host"),
        ("POST", {"host": "evil.example", "origin": "http://evil.example"}, "foreign_host", "foreign_host"),
    ],
)
def test_one_rule_decides_on_host_and_origin(method, headers, reads, changes):
    """The expected refusals of a policy that protects reads too, and of one that protects changes only."""
    for protect_reads, reason in ((True, reads), (False, changes)):
        refusal = SameSite(["127.0.0.1"], protect_reads).refusal(method, SITE | headers)
        assert (refusal and refusal.reason) == reason
    assert SameSite(None, True).refusal("GET", {"host": "evil.example"}) is None


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("localhost", "localhost"),
        ("localhost:8000", "localhost"),
        ("[::1]:8000", "::1"),
        ("[::1]", "::1"),
        ("", None),
        ("[::1", None),
        ("::1", None),
        ("[evil]", None),
        ("me@localhost", None),
        ("localhost/evil", None),
        ("localhost:80:90", None),
        ("local host", None),
    ],
)
def test_a_malformed_host_is_no_name(header, name):
    assert host_name(header) == name


def test_a_body_that_grows_too_large_is_stopped_whatever_its_header_says():
    assert ask(guard(), "POST", body=bytes(5000)) == (200, b"5000")
    status, body = ask(guard(), "POST", body=bytes(5001))
    assert status == 413
    assert b"SECRET" not in body


def test_the_archive_is_only_read_and_never_left():
    proxy = guard(dicom_proxy=True)
    assert ask(proxy, "GET", "/proxy/dicom/qido/studies")[0] == 200
    assert ask(proxy, "POST", "/proxy/dicom/stow/studies")[0] == 404
    assert ask(proxy, "GET", "/proxy/dicom/../../system")[0] == 404


@pytest.mark.parametrize(
    "path",
    [
        "/studies",
        "/studies/",
        "/qido/studies/1.2.840.113/series",
        "/wado/studies/1.2/series/3.4/instances/5.6/frames/1,2",
        "/studies/1.2/metadata",
        "/bulk/7fe00010/1",
        "/patients~1/a_b-c",
    ],
)
def test_plain_dicomweb_paths_reach_the_archive(path):
    assert ask(guard(dicom_proxy=True), "GET", f"/proxy/dicom{path}")[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        "/%2e%2e/patients",  # what remains of %252e%252e
        "/%2E%2e/patients",
        "/..%2fpatients",
        "/%2f%2fevil.example",
        "/%5c..",
        "/..",
        "/../patients",
        "/studies/../../patients",
        "/./patients",
        "/.hidden",
        "/...",
        "//evil.example/",
        "/studies//patients",
        "/studies\\..\\patients",
        "/\\\\evil.example",
        "/@evil.example",
        "/:80",
        "/http:evil",
        "/studies?x=1",
        "/studies#x",
        "/studies;x",
        "/stu dies",
        "/studies\n",
        "/studies\r\nHost: evil",
        "/\uff0e\uff0e/patients",
        "/\u2025/patients",
        "/\ufffd",
        "/",
        "",
    ],
)
def test_no_other_path_reaches_the_archive(path):
    assert ask(guard(dicom_proxy=True), "GET", f"/proxy/dicom{path}")[0] == 404
    assert archive_path(f"/proxy/dicom{path}") is None


@pytest.mark.parametrize(
    ("path", "headers"),
    [("/info/", {}), ("/wscxr/fail", {}), ("/nothing", {}), ("/info/", {"host": "evil.example"}), ("/wscxr/", {})],
)
def test_every_answer_forbids_embedding(path, headers):
    sent = headers_of(guard(), path, headers)
    assert sent["cross-origin-resource-policy"] == "same-origin"
    assert sent["x-content-type-options"] == "nosniff"
    assert "frame-ancestors 'none'" in sent["content-security-policy"]


def test_a_stricter_policy_of_the_page_stays():
    async def strict(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"Content-Security-Policy", b"strict")]})
        await send({"type": "http.response.body", "body": b""})

    sent = headers_of(Guard(strict, ["127.0.0.1"], 5000), "/wscxr/", {})
    assert sent["content-security-policy"] == "strict"


def test_a_site_that_cors_names_may_read_and_change_nothing():
    friendly = guard(friends=["https://viewer.example"])
    for method, path, origin, status in (
        ("GET", "/info/", "https://viewer.example", 200),
        ("OPTIONS", "/info/", "https://viewer.example", 200),
        ("POST", "/train/wscxr", "https://viewer.example", 403),
        ("GET", "/info/", "https://evil.example", 403),
    ):
        headers = {"origin": origin, "sec-fetch-site": "cross-site"}
        assert ask(friendly, method, path, headers)[0] == status


def test_a_web_socket_is_closed():
    sent = []

    async def receive():
        return {"type": "websocket.connect"}

    async def send(message):
        sent.append(message)

    asyncio.run(guard()({"type": "websocket", "path": "/info/", "headers": []}, receive, send))
    assert [message["type"] for message in sent] == ["websocket.close"]


def test_a_password_is_asked_for_everywhere():
    closed = guard(password="correct horse")
    assert ask(closed)[0] == 401
    for given, status in (("correct horse", 200), ("wrong", 401), ("", 401)):
        header = "Basic " + base64.b64encode(f"me:{given}".encode()).decode()
        assert ask(closed, headers={"authorization": header})[0] == status
    assert ask(closed, headers={"authorization": "Basic ***"})[0] == 401
    assert ask(closed, headers={"authorization": "Bearer correct horse"})[0] == 401


def test_an_unforeseen_error_gives_nothing_away():
    status, body = ask(guard(), path="/wscxr/fail")
    assert status == 500
    assert json.loads(body)["detail"].startswith("internal error")
    assert b"SECRET" not in body


def test_other_machines_are_let_in_with_a_password_only(tmp_path):
    for host in ("127.0.0.1", "::1", "localhost", "127.5.5.5"):
        check_host(host, False)
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.org", ""):
        with pytest.raises(InputError, match="password_file"):
            check_host(host, False)
        check_host(host, True)
    file = tmp_path / "password"
    for content in ("", "short\n"):
        file.write_text(content)
        with pytest.raises(InputError, match="eight characters"):
            read_password(str(file))
    file.write_text("long enough\nsecond line")
    assert read_password(str(file)) == "long enough"
    with pytest.raises(InputError, match="cannot be read"):
        read_password(str(tmp_path / "missing"))
