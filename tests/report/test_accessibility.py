"""Reports in a real browser break no rule of the accessibility checker, in both colour schemes and on a phone."""

import numpy as np
import pytest

from monai_wscxr.data.encoding import encode_jpeg
from monai_wscxr.model.calibration import ColourScale
from monai_wscxr.report.html import write_report
from monai_wscxr.report.run import PICTURES, write_run_report
from tests.helpers.accessibility import findings, reason_to_skip
from tests.helpers.webdriver import Browser
from tests.report.test_html import METRICS, SETTINGS, make_cases
from tests.report.test_run_report import ENTRIES, SCALE

pytestmark = pytest.mark.skipif(reason_to_skip() is not None, reason=str(reason_to_skip()))


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("browser"), dark=False) as window:
        yield window


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "index.html"
    cases = make_cases([0] * 6 + [1] * 6)
    return write_report(path, title="WSCXR evaluation", cases=cases, metrics=METRICS, settings=SETTINGS,
                        scale=ColourScale(0.0, 2.0, 1.0), threshold=1.0, notes=["Threshold: from 19 normals."])  # fmt: skip


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (1400, "light"), (1400, "dark"), (2560, "dark")])
def test_the_report_of_an_evaluation(browser, report, width, scheme):
    browser.emulate(width=width, height=900, prefers_color_scheme=scheme)
    browser.open(report.as_uri())
    assert findings(browser) == []


@pytest.mark.parametrize("width", [390, 1400])
def test_no_word_or_figure_is_broken_and_the_page_does_not_scroll_sideways(browser, report, width):
    browser.emulate(width=width, height=900)
    browser.open(report.as_uri())
    broken = """
      const found = [];
      for (const cell of document.querySelectorAll(".figures th, .figures td, .two th, .charts text")) {
        const walker = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT);
        for (let node = walker.nextNode(); node; node = walker.nextNode()) {
          for (const word of node.data.matchAll(/[^\\s-]+/g)) {
            const range = document.createRange();
            range.setStart(node, word.index);
            range.setEnd(node, word.index + word[0].length);
            if (range.getClientRects().length > 1) { found.push(word[0]); }
          }
        }
      }
      return found;
    """
    assert browser.js(broken) == []
    assert browser.js("return document.documentElement.scrollWidth") <= width


def test_a_fault_is_found(browser, report, tmp_path):
    page = tmp_path / "index.html"
    page.write_text(report.read_text().replace('<html lang="en">', "<html>").replace('alt="', 'data-alt="'))
    browser.emulate()
    browser.open(page.as_uri())
    assert {"html-has-lang", "image-alt"} <= {finding["rule"] for finding in findings(browser)}


@pytest.fixture(scope="module")
def run_report(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "index.html"
    (path.parent / "pictures").mkdir()
    for stem in ("000000", "000001", "000003"):
        for kind, _ in PICTURES:
            picture = encode_jpeg(np.full((40, 40), 99, np.uint8))
            (path.parent / "pictures" / f"{stem}-{kind}.jpg").write_bytes(picture)
    return write_run_report(path, ENTRIES, SCALE, 1.5, {"backbone": "x<y", "k": 8}, ["1 input was rejected."])


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (1400, "dark")])
@pytest.mark.parametrize("viewer", ["", "#image-000003"])
def test_the_report_of_a_prediction(browser, run_report, width, scheme, viewer):
    browser.emulate(width=width, height=900, prefers_color_scheme=scheme)
    browser.open("about:blank")  # another section of the same page would not load it again
    browser.open(run_report.as_uri() + viewer)
    assert browser.js("return document.getElementById('viewer').open") == bool(viewer)
    assert findings(browser) == []
