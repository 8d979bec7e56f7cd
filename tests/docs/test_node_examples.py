"""The examples of a node beside an Orthanc: they parse, what they run exists, and their names fit together."""

import http.server
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading

import pytest
import yaml

from monai_wscxr.commands.main import create_parser
from monai_wscxr.node.archives import DicomArchive
from monai_wscxr.node.run import NodeOptions
from tests.helpers.pages import ROOT
from tests.helpers.serving import ORTHANC

EXAMPLES = ROOT / "docs" / "examples"
SETTINGS = json.loads((EXAMPLES / "orthanc" / "orthanc.json").read_text())
UNIT = EXAMPLES / "wscxr-node.service"


def node_options(words):
    """The words after `monai-wscxr node`, checked as the command would."""
    given = create_parser().parse_args(["node", *words])
    names = NodeOptions.__dataclass_fields__
    options = NodeOptions(**{name: value for name, value in vars(given).items() if name in names})
    options.check()
    return options


def fits_the_archive(options):
    """The node and the archive know each other."""
    title, host, port = SETTINGS["DicomModalities"]["WSCXR"]
    assert (title, host, port) == (options.title, options.host, options.port)
    archive = DicomArchive.parsed(options.title, options.archive)
    assert (archive.title, archive.port) == (SETTINGS["DicomAet"], SETTINGS["DicomPort"])
    assert list(options.accept) == [f"{SETTINGS['DicomAet']}@127.0.0.1"]


def test_the_unit():
    lines = dict(line.split("=", 1) for line in UNIT.read_text().splitlines() if "=" in line and line[0] != "#")
    program, command, *words = shlex.split(lines["ExecStart"])
    assert (program, command) == ("/opt/wscxr/bin/monai-wscxr", "node")
    options = node_options(words)
    fits_the_archive(options)
    assert options.folder.startswith(f"/var/lib/{lines['StateDirectory']}/")
    assert lines["KillMode"] == "mixed"


def test_systemd_knows_every_line_of_the_unit(tmp_path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace("/opt/wscxr/bin/monai-wscxr", sys.executable))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", copy], capture_output=True, text=True)
    assert [line for line in done.stderr.splitlines() if UNIT.name in line] == []


def test_the_compose_file():
    services = yaml.safe_load((EXAMPLES / "compose.yaml").read_text())["services"]
    command, *words = services["node"]["command"]
    assert command == "node"
    fits_the_archive(node_options(words))
    assert services["node"]["network_mode"] == "service:archive"  # one loopback for both
    for service in services.values():
        folder = EXAMPLES / service["build"].get("context", ".")
        for files in re.findall(r"^COPY (.*) \S+$", service["build"]["dockerfile_inline"], re.MULTILINE):
            assert all((folder / file).exists() for file in files.split())
    node = services["node"]["build"]["dockerfile_inline"]
    [package] = re.findall(r'pip install --no-cache-dir "(\S+)"', node)
    assert f'node = ["{package}", ' in (ROOT / "pyproject.toml").read_text()
    container = (ROOT / "Dockerfile").read_text()
    program, user = re.findall(r"(/\S+)/pip", node)[0], re.findall(r"USER (\d+)", node)[0]
    assert program in container
    assert f"USER {user}\n" in container
    assert 'ENTRYPOINT ["monai-wscxr"]' in container


def test_orthanc_knows_every_setting(tmp_path):
    if ORTHANC is None:
        pytest.skip("no Orthanc: apt-get install orthanc")
    subprocess.run([ORTHANC, f"--config={tmp_path / 'all.json'}"], check=True, capture_output=True)
    known = set(re.findall(r'^\s*(?://\s*)?"(\w+)"\s*:', (tmp_path / "all.json").read_text(), re.MULTILINE))
    assert set(SETTINGS) - known == set()


def test_the_lua_script_is_lua_and_sends_to_a_modality_that_exists():
    script = EXAMPLES / "orthanc" / "route.lua"
    assert f"/modalities/{next(iter(SETTINGS['DicomModalities']))}/store" in script.read_text()
    compiler = next(filter(None, map(shutil.which, ("luac", "luac5.4", "luac5.3", "luac5.1"))), None)
    if compiler is None:
        pytest.skip("no compiler for Lua")
    subprocess.run([compiler, "-p", script], check=True)


def test_failed_transfers_are_started_again():
    if shutil.which("jq") is None or shutil.which("curl") is None:
        pytest.skip("jq or curl is not installed")
    jobs = [
        {"ID": "a", "State": "Failure", "Type": "DicomModalityStore"},
        {"ID": "b", "State": "Success", "Type": "DicomModalityStore"},
        {"ID": "c", "State": "Failure", "Type": "Archive"},
    ]
    posted = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self, content):
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self):
            assert self.path == "/jobs?expand"
            self.answer(json.dumps(jobs).encode())

        def do_POST(self):
            posted.append(self.path)
            self.answer(b"{}")

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        script = EXAMPLES / "orthanc" / "resubmit.sh"
        assert os.access(script, os.X_OK)
        subprocess.run([script, f"http://127.0.0.1:{server.server_address[1]}"], check=True, timeout=30)
    finally:
        server.shutdown()
        server.server_close()
    assert posted == ["/jobs/a/resubmit"]
