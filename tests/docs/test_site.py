"""The documentation site builds without a warning, needs nothing from elsewhere, and a broken link stops it."""

import os
import re
import shutil
import subprocess
import sys

import pytest

from monai_wscxr.system.lazy import exported_names
from tests.helpers.pages import ROOT
from tests.test_exports import PACKAGES

pytest.importorskip("material", reason="the documentation site needs the extra `docs`")
SOURCES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "LICENSE", "CITATION.cff", "mkdocs.yml")


def build(folder, site):
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)],
        cwd=folder,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_site_builds_and_fetches_nothing(tmp_path):
    done = build(ROOT, tmp_path / "site")
    assert done.returncode == 0, done.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 30
    text = {page.relative_to(tmp_path / "site").as_posix(): page.read_text(encoding="utf-8") for page in pages}
    fetched = r'<(?:script|img|iframe)[^>]*src="https?:|<link[^>]*rel="(?:stylesheet|preload)"[^>]*href="https?:'
    assert [page for page, content in text.items() if re.search(fetched, content)] == []
    # links out of docs/ lead to pages and copies of files on the site
    assert 'href="extension.html"' in text["contents.html"]
    assert 'href="training.html#options"' in text["contributing.html"]
    assert 'src="images/flow.svg"' in text["index.html"]
    assert (tmp_path / "site" / "files" / "bundles" / "wscxr_chest_xray" / "configs" / "train.yaml").is_file()
    words = " ".join(re.sub(r"<[^>]*>", "", text["commands.html"]).split())
    assert (
        "abnormal images per class; 0: train on normal images alone, the score is the distance to them (default: 8)"
        in words
    )
    assert 'id="bundle-pack"' in text["commands.html"]
    assert "the probability that the new image has" not in text["reference.html"]  # the text of a module, not of a name
    assert ">Model.predict<" in text["reference.html"]
    for package in PACKAGES:
        for name in exported_names(f"monai_wscxr.{package}"):
            if not name.isupper():
                assert f">{name}<" in text["reference.html"], name
    assert (tmp_path / "site" / "notebooks" / "first_model.ipynb").is_file()


@pytest.mark.parametrize("link", ["nowhere.md", "predict.md#nothing-here", "../csrc/nothing.md"])
def test_a_broken_link_stops_the_build(tmp_path, link):
    for name in ("docs", "bundles"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in SOURCES:
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "csrc").mkdir()
    shutil.copy(ROOT / "csrc" / "README.md", tmp_path / "csrc")
    with open(tmp_path / "docs" / "python.md", "a") as page:
        page.write(f"\nSee [this]({link}).\n")
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode != 0
    assert link.rpartition("/")[2].rpartition("#")[2] in done.stderr
