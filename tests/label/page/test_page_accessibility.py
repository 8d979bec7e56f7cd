"""The labelling page in a real browser breaks no rule of the accessibility checker and speaks to screen readers."""

import re

import pytest

from tests.helpers.accessibility import findings, reason_to_skip, spoken
from tests.helpers.fake_workbench import FakeWorkbench, phantom_files, served
from tests.helpers.webdriver import Browser

pytestmark = pytest.mark.skipif(reason_to_skip() is not None, reason=str(reason_to_skip()))
READY = 'return !document.getElementById("normal").disabled'


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("browser")) as window:
        yield window


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (1400, "dark"), (2560, "light")])
@pytest.mark.parametrize("model", [False, True])
def test_the_page_with_and_without_a_model(browser, phantoms, width, scheme, model):
    browser.emulate(width=width, height=900, prefers_color_scheme=scheme)
    with served(FakeWorkbench(phantom_files(phantoms), model=model, seconds=0.1)) as (address, _):
        browser.open(address)
        browser.until(READY)
        found = findings(browser)
        browser.open("about:blank")
    assert found == []


def test_the_help_and_the_entry_of_a_class(browser, phantoms):
    browser.emulate()
    with served(FakeWorkbench(phantom_files(phantoms), seconds=0.1)) as (address, _):
        browser.open(address)
        browser.until(READY)
        found = []
        for key in ("a", "?"):
            browser.press(key)
            found += findings(browser)
            browser.press("Escape")
        browser.open("about:blank")
    assert found == []


def test_what_a_screen_reader_is_told_while_labelling(browser, phantoms):
    browser.emulate()
    with served(FakeWorkbench(phantom_files(phantoms), seconds=0.1)) as (address, _):
        browser.open(address)
        browser.until(READY)
        told = spoken(browser)
        first, second = (name for role, name, _ in [t for t in told if t[0] == "option"][:2])
        assert re.fullmatch(r"rank 1 \S+\.png score \d+\.\d\d p \S+ flagged", first)
        assert [name for role, name, states in told if role == "option" and states.get("selected")] == [first]
        image = first.split()[2]
        assert ("image", f"Radiograph {image}") in [(role, name) for role, name, _ in told]
        shortcuts = {name: states["keyshortcuts"] for role, name, states in told if "keyshortcuts" in states}
        assert {"Normal N": "N", "Abnormal A": "A", "Skip S": "S", "Map": "O"}.items() <= shortcuts.items()
        browser.press("n")
        said = browser.until('return document.getElementById("announcer").textContent')
        assert said.startswith(f"{image}: normal. Next: rank 2, {second.split()[2]}, score ")
        live = browser.js('return document.getElementById("announcer").getAttribute("aria-live")')
        assert live == "polite"
        browser.open("about:blank")
