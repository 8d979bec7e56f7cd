"""The report of a prediction run: a row per input, escaped texts, and a viewer that works in a browser."""

import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest

from monai_wscxr.data.encoding import encode_jpeg
from monai_wscxr.model.calibration import ColourScale
from monai_wscxr.report.run import PICTURES, Entry, write_run_report

SCALE = ColourScale(0.5, 4.0, 1.5)
ENTRIES = [
    Entry("ward/<b>a&b</b>.png", "000000", 0.75, 0.4, False),
    Entry("ward/b.dcm", "000001", 3.25, 0.0004, True),
    Entry("ward/c.dcm", None, None, None, None, "lateral_view: not <i>frontal</i>."),
    Entry("ward/d.png", "000003", 2.0, 0.02, True),
]


class Page(HTMLParser):
    """Parser that collects start tags with their attributes, and the texts of the table's rows."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.rows, self._inside = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "tbody":
            self._inside = "data-groups" in str(self.rows) or not self.rows
        if tag == "tr" and "data-groups" in dict(attrs):
            self.rows.append((dict(attrs), []))

    def handle_data(self, data):
        if self.rows:
            self.rows[-1][1].append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def page(tmp_path):
    settings = {"backbone": "x<y", "k": 8}
    path = write_run_report(
        tmp_path / "report" / "index.html", ENTRIES, SCALE, 1.5, settings, ["1 input was rejected."]
    )
    return path


def test_every_input_has_its_row_most_abnormal_first(page):
    parsed = Page(page.read_text(encoding="utf-8"))
    groups = [(row["data-groups"], row.get("data-stem")) for row, _ in parsed.rows]
    assert groups == [("flagged", "000001"), ("flagged", "000003"), ("not-flagged", "000000"), ("rejected", None)]
    texts = [" ".join(words) for _, words in parsed.rows]
    assert "b.dcm" in texts[0]
    assert "3.250" in texts[0]
    assert "< 0.001" in texts[0]
    assert "<b>a&b</b>.png" in texts[2]
    assert "lateral_view: not <i>frontal</i>." in texts[3]
    assert "n/a" in texts[3]
    assert "2 of 4 images flagged" in page.read_text(encoding="utf-8")


def test_folder_that_all_share_is_said_once(page, tmp_path):
    text = page.read_text(encoding="utf-8")
    assert "Names are paths below <code>ward/</code>" in text
    assert "ward/" not in text[text.index("<tbody>") : text.index("</tbody>")]
    for names, folder in (
        (["/a/b/c.png", "/a/b/d/e.png"], "/a/b/"),
        (["/a/b/c.png", "/a/bc/c.png"], ""),  # a common prefix of a name is not a folder; "/a/" is too short
        (["/data/x/b.png", "/data/xy/b.png"], "/data/"),
        (["c.png", "/a/b/d.png"], ""),
        (["/a/b/c.png"], ""),
        (["/a/b/c.png"] * 2, "/a/b/"),
    ):
        entries = [Entry(name, None, None, None, None, "empty: x.") for name in names]
        text = write_run_report(tmp_path / "index.html", entries, SCALE, 1.5, {}).read_text(encoding="utf-8")
        assert ("Names are paths below" in text) == bool(folder)
        assert all(f'<th scope="row">{name[len(folder) :]}</th>' in text for name in names)


def test_filters_count_what_they_show(page):
    text = page.read_text(encoding="utf-8")
    assert re.findall(r'data-filter="([\w-]+)"[^>]*>([^<]+)<', text) == [
        ("all", "All (4)"),
        ("flagged", "Flagged (2)"),
        ("not-flagged", "Not flagged (1)"),
        ("rejected", "Rejected (1)"),
    ]


def test_nothing_is_fetched_from_elsewhere(page):
    text = page.read_text(encoding="utf-8")
    parsed = Page(text)
    policy = next(a["content"] for a in parsed.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert "http" not in policy
    for attributes in [*parsed.all("img"), *parsed.all("a"), *parsed.all("link"), *parsed.all("script")]:
        for name in ("src", "href"):
            assert re.match(r"(pictures/|#|data:|$)", attributes.get(name, "")), attributes
    assert not parsed.all("link")


def test_names_of_the_viewer_are_there_for_screen_readers(page):
    parsed = Page(page.read_text(encoding="utf-8"))
    [dialog] = parsed.all("dialog")
    assert dialog["aria-labelledby"] == "viewer-title"
    assert [a["data-words"] for a in parsed.all("img") if "data-kind" in a] == [words for _, words in PICTURES]
    assert all("alt" in a for a in parsed.all("img"))
    assert all(a.get("scope") in ("col", "row") for a in parsed.all("th"))
    assert all(a.get("type") == "button" for a in parsed.all("button"))


def test_run_of_rejected_inputs_alone(tmp_path):
    path = write_run_report(tmp_path / "index.html", [ENTRIES[2]], SCALE, 1.5, {})
    assert "0 of 1 image flagged" in path.read_text(encoding="utf-8")


def test_browser_opens_the_viewer_from_a_file(page, tmp_path):
    browser = shutil.which("chromium") or pytest.skip("chromium is not installed")
    (page.parent / "pictures").mkdir()
    for kind, _ in PICTURES:
        (page.parent / "pictures" / f"000003-{kind}.jpg").write_bytes(encode_jpeg(np.full((40, 40), 99, np.uint8)))
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--virtual-time-budget=3000", "--dump-dom", f"{page.as_uri()}#image-000003"]
    try:
        dom = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    except subprocess.TimeoutExpired:
        pytest.skip("chromium does not answer here")
    if not dom:
        pytest.skip("chromium does not run here")
    assert re.search(r'<dialog id="viewer"[^>]* open', dom)
    assert '<h2 id="viewer-title">d.png</h2>' in dom
    assert 'alt="Radiograph of d.png"' in dom
    assert "Score 2.000, p-value 0.020, flagged. Image 2 of 3 shown." in dom
    assert "4 of 4 images" in dom
    for button, at_end in (("previous", "false"), ("next", "false")):
        assert re.search(f'<button[^>]*id="viewer-{button}"[^>]*aria-disabled="{at_end}"', dom)
