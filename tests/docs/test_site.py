"""The documentation site builds without a warning, needs nothing from elsewhere, is accessible, and a broken link stops it."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from monai_wscxr.system.lazy import exported_names
from tests.helpers.accessibility import findings, reason_to_skip
from tests.helpers.pages import ROOT
from tests.helpers.webdriver import Browser
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


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT, folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_site_fetches_nothing_and_holds_all_pages(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    text = {page.relative_to(site).as_posix(): page.read_text(encoding="utf-8") for page in pages}
    fetched = r'<(?:script|img|iframe)[^>]*src="https?:|<link[^>]*rel="(?:stylesheet|preload)"[^>]*href="https?:'
    assert [page for page, content in text.items() if re.search(fetched, content)] == []
    # links out of docs/ lead to pages and copies of files on the site
    assert 'href="extension.html"' in text["contents.html"]
    assert 'href="training.html#options"' in text["contributing.html"]
    assert 'src="images/flow.svg"' in text["index.html"]
    assert (site / "files" / "bundles" / "wscxr_chest_xray" / "configs" / "train.yaml").is_file()
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
    for notebook in (ROOT / "docs" / "notebooks").glob("*.ipynb"):
        assert (site / "notebooks" / notebook.name).is_file()
        page = text[f"notebooks/{notebook.stem}.html"]
        pictures = sum(
            "image/png" in o.get("data", {})
            for c in json.loads(notebook.read_text())["cells"]
            for o in c.get("outputs", [])
        )
        assert len(re.findall(rf'src="{notebook.stem}_\d+\.png"', page)) == pictures
        assert len(list((site / "notebooks").glob(f"{notebook.stem}_*.png"))) == pictures
    assert 'href="notebooks/first_model.html"' in text["python.html"]
    assert not list(site.rglob("*.py"))
    assert "&gt;&gt;&gt;" in re.sub(r"<[^>]*>", "", text["reference.html"])


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("browser"), dark=False) as window:
        yield window


@pytest.mark.skipif(reason_to_skip() is not None, reason=str(reason_to_skip()))
@pytest.mark.parametrize(
    ("page", "width", "scheme"),
    [
        *(("index", width, scheme) for width in (390, 1400) for scheme in ("light", "dark")),
        *((page, *view) for page in ("predict", "notebooks/dicom") for view in ((390, "dark"), (1400, "light"))),
        *(("glossary", 390, "light"), ("commands", 1400, "dark")),
    ],
)
def test_a_page_of_the_site_breaks_no_rule_of_accessibility(browser, site, page, width, scheme):
    browser.emulate(width=width, height=900, prefers_color_scheme=scheme)
    browser.open((site / f"{page}.html").as_uri())
    browser.until("return document.readyState === 'complete'")
    expected = "slate" if scheme == "dark" else "default"
    browser.until(f"return document.body.dataset.mdColorScheme === '{expected}'")
    # tables of two columns have no words to put above the first
    assert [found for found in findings(browser) if found["rule"] != "empty-table-header"] == []
    assert browser.js("return document.documentElement.scrollWidth") <= width


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
