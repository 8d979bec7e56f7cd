"""The report of a prediction in a real browser, by keyboard alone and as a screen reader hears it."""

import numpy as np
import pytest

from monai_wscxr.data.encoding import encode_jpeg
from monai_wscxr.report.run import PICTURES, write_run_report
from tests.helpers.accessibility import spoken
from tests.helpers.webdriver import Browser, missing
from tests.report.test_run_report import ENTRIES, SCALE

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))
ACTIVE = "return document.activeElement.id || document.activeElement.textContent.trim()"
OPEN = "return document.getElementById('viewer').open"
IMAGE = "return document.querySelector('#viewer img[data-kind=overlay]')"


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "index.html"
    (path.parent / "pictures").mkdir()
    ramp = np.tile(np.linspace(0, 255, 64).astype(np.uint8), (64, 1))
    for entry in ENTRIES:
        for kind, _ in PICTURES if entry.stem else ():
            (path.parent / "pictures" / f"{entry.stem}-{kind}.jpg").write_bytes(encode_jpeg(ramp))
    return write_run_report(path, ENTRIES, SCALE, 1.5, {"k": 8}, ["1 input was rejected."])


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("browser"), dark=False) as window:
        yield window


@pytest.fixture
def page(browser, report):
    browser.open("about:blank")
    browser.open(report.as_uri())
    return browser


def tab_to(page, wanted, most=40):
    """Press Tab until the focused element has this id or text."""
    for _ in range(most):
        page.press("Tab")
        if page.js(ACTIVE) == wanted:
            return
    raise AssertionError(f"Tab does not reach {wanted}")


def test_sort_and_filter_by_keyboard(page):
    tab_to(page, "Rejected (1)")
    page.press("Enter")
    assert page.text("#case-count") == "1 of 4 images"
    page.press("Shift+Tab", "Shift+Tab", "Shift+Tab")
    assert page.js(ACTIVE) == "All (4)"
    page.press("Space")
    assert page.text("#case-count") == "4 of 4 images"
    tab_to(page, "Image")  # the head of the column
    page.press("Enter")
    head = page.js("return document.activeElement.closest('th').getAttribute('aria-sort')")
    names = page.js(
        "return Array.from(document.querySelectorAll('#case-table tbody th')).map((c) => c.textContent.trim())"
    )
    assert head == "ascending"
    assert names == sorted(names)


def test_open_move_and_close_the_viewer_by_keyboard(page):
    names = page.js("return Array.from(document.querySelectorAll('#case-table a')).map((a) => a.textContent.trim())")
    tab_to(page, names[0])
    page.press("Enter")
    assert page.js(OPEN)
    assert page.js(ACTIVE) == "viewer-next"
    assert page.text("#viewer-title") == names[0]
    page.press("ArrowRight")
    assert page.text("#viewer-title") == names[1]
    page.press("ArrowLeft")
    page.press("ArrowLeft")  # nothing before the first
    assert page.text("#viewer-title") == names[0]
    page.press("ArrowRight")
    page.press("Escape")
    assert not page.js(OPEN)
    assert page.js(ACTIVE) == names[1]  # where reading goes on


def test_zoom_and_window_by_keyboard(page):
    tab_to(page, page.js("return document.querySelector('#case-table a').textContent.trim()"))
    page.press("Enter")
    width = "return document.querySelector('#viewer img[data-kind=radiograph]').getBoundingClientRect().width"
    before = page.js(width)
    page.press("+", "+")
    assert page.js(width) == pytest.approx(2.25 * before)
    assert page.text("#viewer-zoom") == "225 %"
    title = page.text("#viewer-title")
    page.press("Shift+ArrowRight")
    assert page.text("#viewer-title") == title  # moved the picture, not to the next one
    moved = page.js(f"{IMAGE}.style.transform")
    assert moved.startswith("translate(-12.5%, 0%)")
    page.press("Shift+ArrowRight", "Shift+ArrowRight", "Shift+ArrowRight", "Shift+ArrowRight", "Shift+ArrowRight")
    assert page.js(f"{IMAGE}.style.transform").startswith("translate(-62.5%, 0%)")  # the edge of the picture
    page.press("0")
    assert page.js(width) == pytest.approx(before)
    tab_to(page, "viewer-brightness")
    page.press("ArrowRight", "ArrowRight")
    assert page.text("#viewer-title") == title  # the slider moved
    assert "brightness(110%)" in page.js(f"{IMAGE}.style.filter")
    assert page.js("return document.querySelector('#viewer img[data-kind=map]').style.filter") == ""
    tab_to(page, "viewer-reset")
    page.press("Enter")
    assert "brightness(100%) contrast(100%)" in page.js(f"{IMAGE}.style.filter")
    page.press("Escape")
    assert not page.js(OPEN)


def test_zoomed_pictures_move_with_the_mouse_together(page):
    page.js("document.querySelector('#case-table a').click()")
    page.press("+", "+")
    box = page.js("return document.querySelector('.frame').getBoundingClientRect().toJSON()")
    centre = (round(box["x"] + box["width"] / 2), round(box["y"] + box["height"] / 2))
    page.drag(centre, (centre[0] + 40, centre[1] + 20))
    shifts = page.js(
        "return Array.from(document.querySelectorAll('#viewer img[data-kind]')).map((i) => i.style.transform)"
    )
    assert len(set(shifts)) == 1
    x, y = (float(part) for part in shifts[0].removeprefix("translate(").partition(")")[0].replace("%", "").split(","))
    assert x == pytest.approx(100 * 40 / box["width"], abs=1)
    assert y == pytest.approx(100 * 20 / box["height"], abs=1)


def test_what_a_screen_reader_is_told(page):
    heard = spoken(page)
    roles = [role for role, _, _ in heard]
    assert "main" in roles
    assert ("navigation", "Sections") in [(role, name) for role, name, _ in heard]
    columns = [name for role, name, _ in heard if role == "columnheader"]
    assert columns == ["Image", "Score", "p-value", "Decision"]
    assert next(state for role, name, state in heard if (role, name) == ("button", "All (4)"))["pressed"] == "true"
    page.js("document.querySelector('#case-table a').click()")
    heard = spoken(page)
    title = page.text("#viewer-title")
    (state,) = [state for role, name, state in heard if (role, name) == ("dialog", title)]
    assert state["modal"]
    pictures = [name for role, name, _ in heard if role == "image"]
    assert [f"{words} of {title}" for _, words in PICTURES] == pictures[:3]
    assert pictures[3].startswith("Colour scale from ")
    assert not [role for role, _, _ in heard if role == "columnheader"]  # the page behind a modal dialog is silent
    sliders = [name for role, name, _ in heard if role == "slider"]
    assert sliders == ["Brightness", "Contrast"]
    buttons = [name for role, name, _ in heard if role == "button"]
    assert buttons == ["← Previous", "Next →", "Close", "Zoom out", "Fit", "Zoom in", "Reset"]
    assert any("flagged" in name for role, name, _ in heard if role in ("StaticText", "status"))
