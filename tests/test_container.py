"""The container file: pinned, unprivileged, and everything that it copies, installs and runs exists."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import entry_points, metadata
from pathlib import Path

import pytest

from monai_wscxr.commands.main import create_parser
from tests.helpers.pages import code_lines

ROOT = Path(__file__).parents[1]
PROJECT = metadata("monai-wscxr")
MADE = {"dist/*.whl": "make wheel"}  # what is copied besides files of the repository, and the command that makes it


def stages():
    """Return the instructions of each stage of the container file as pairs of word and rest."""
    lines = [
        line for line in (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines() if not line.startswith("#")
    ]
    found: list[list[tuple[str, str]]] = []
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        if line.strip():
            word, _, rest = line.strip().partition(" ")
            if word == "FROM":
                found.append([])
            found[-1].append((word, " ".join(rest.split())))
    return found


def rest_of(stage, word):
    return [rest for found, rest in stage if found == word]


def test_the_bases_are_pinned_and_of_a_python_that_the_package_supports():
    for stage in stages():
        image = rest_of(stage, "FROM")[0].split()[0]
        version = re.fullmatch(r"python:3\.(\d+)\.\d+-slim-bookworm", image)  # bookworm: glibc 2.36
        assert version, image
        assert int(version[1]) >= int(PROJECT["Requires-Python"].removeprefix(">=3."))


def test_everything_that_is_copied_exists_and_is_sent_to_the_builder():
    sent = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert sent[0] == "*"
    commands = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()[:5]
    for stage in stages():
        for source in (word for rest in rest_of(stage, "COPY") if "--from" not in rest for word in rest.split()[:-1]):
            assert f"!{source}" in sent
            assert (ROOT / source).is_file() or any(MADE[source] in line for line in commands), source


def test_what_is_installed_are_the_wheel_with_extras_that_it_has_and_torch_for_cpus():
    installed = " ".join(rest_of(stages()[0], "RUN"))
    (extras,) = re.findall(r'"\$\{wheel\}\[([\w,-]+)\]"', installed)
    assert set(extras.split(",")) <= set(PROJECT.get_all("Provides-Extra"))
    assert installed.count("pip install") == installed.count("--constraint /build/constraints.txt") == 2
    (index,) = rest_of(stages()[0], "ARG")
    assert '--index-url "${TORCH_INDEX}" torch torchvision' in installed
    address = index.removeprefix("TORCH_INDEX=")
    assert address.startswith("https://")
    for page in ("README.md", "docs/container.md"):
        assert address in (ROOT / page).read_text(encoding="utf-8"), page


def test_the_command_runs_without_privileges():
    last = stages()[-1]
    (user,) = rest_of(last, "USER")
    assert int(user) >= 1000
    assert f"--uid {user} " in " ".join(rest_of(last, "RUN"))
    assert [word for word, _ in last[last.index(("USER", user)) :]] == ["USER", "WORKDIR", "ENTRYPOINT", "CMD"]
    (program,) = json.loads(rest_of(last, "ENTRYPOINT")[0])
    assert program in entry_points(group="console_scripts").names


def test_the_commands_of_the_page_are_those_of_the_program():
    lines = [line for line in code_lines(ROOT / "docs" / "container.md") if line.startswith("docker run")]
    assert len(lines) >= 2
    for line in lines:
        words = shlex.split(line)
        create_parser().parse_args(words[words.index("monai-wscxr") + 1 :])


def test_hadolint_has_no_complaint():
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not installed: it is in the extra `lint`")
    subprocess.run([hadolint, ROOT / "Dockerfile"], check=True)


@pytest.mark.slow
def test_the_image_is_built_and_starts():
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "info"], capture_output=True, timeout=60, check=False).returncode:
        pytest.skip("no container builder here")
    if not list((ROOT / "dist").glob("*.whl")):
        pytest.skip("make wheel has not been run")
    subprocess.run([docker, "build", "-q", "-t", "monai-wscxr-test", "."], cwd=ROOT, check=True, timeout=1800)
    run = [docker, "run", "--rm", "monai-wscxr-test", "doctor"]
    said = subprocess.run(run, capture_output=True, text=True, check=True, timeout=120).stdout
    assert "a compiled CPU kernel is registered" in said
