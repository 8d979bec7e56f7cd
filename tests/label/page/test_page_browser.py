"""The labelling page in a real browser, by keyboard and mouse, against a server on loopback."""

import time

import pytest

from tests.helpers.fake_workbench import FakeWorkbench, phantom_files, served
from tests.helpers.webdriver import Browser, missing, until

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

SEEN = """
  const name = document.getElementById("name").textContent;
  return !document.getElementById("normal").disabled && name !== arguments[0] && name;
"""
ORDER = 'return [...document.querySelectorAll("#list .name")].map((name) => name.textContent)'
EXPECTED_MESSAGES = ("409 (Conflict)", "ERR_CONNECTION_REFUSED")  # logged by the browser for refused requests


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("browser")) as window:
        yield window


@pytest.fixture
def workbench(phantoms):
    return FakeWorkbench(phantom_files(phantoms), seconds=0.6)


@pytest.fixture
def page(browser, workbench):
    """The opened page with its first image on the screen; at the end its console must contain no error."""
    browser.messages()
    with served(workbench) as (address, port):
        browser.port = port
        browser.open(address)
        browser.until(SEEN, "")
        yield browser
        browser.open("about:blank")  # no request may be under way when the server ends
    assert [m for m in browser.messages() if not any(known in m for known in EXPECTED_MESSAGES)] == []
    browser.emulate()


def label(page, *keys):
    """Press keys that label the image on the screen, and wait for the next one."""
    name = page.text("#name")
    page.press(*keys)
    return page.until(SEEN, name)


def retrain(page):
    """Press the key that trains, once the page knows that no training is under way."""
    page.until('return !document.getElementById("train").hidden')
    page.press("r")


def text(page, selector):
    return " ".join(page.text(selector).split())


def test_label_five_by_keyboard_retrain_and_see_the_order_change(page, workbench):
    before = page.js(ORDER)
    assert before == [item["name"] for item in workbench.queue("most_suspicious")]
    for keys in (["a", *"effusion", "Enter"], ["n"], ["a", "Enter"], ["n"], ["s"]):
        label(page, *keys)
    given = [workbench.labels[call.split()[0]] for call in workbench.calls]
    normal, skipped, effusion = (0, None, False), (None, None, True), (1, "effusion", False)
    assert given == [effusion, normal, effusion, normal, skipped]  # the class stays for the next abnormal image
    until(lambda: text(page, "#progress-note") == f"5 of {len(workbench.files)}", "the labels are counted")
    assert text(page, "#train-note") == "4 new labels"
    workbench.seconds = 2.5
    retrain(page)
    page.until('return /step [34] of 4/.test(document.getElementById("train-stage").textContent)')
    assert 0.5 <= page.js('return document.getElementById("train-bar").value') < 1
    page.until('return !document.getElementById("changes").hidden')
    after = page.js(ORDER)
    assert after == [item["name"] for item in workbench.queue("most_suspicious")]
    assert set(after) == set(before[5:])
    assert after != before[5:]
    assert "Retrained with 4 new labels." in text(page, "#changes-text")
    first = workbench.changes()["moved"][0]
    assert text(page, "#moved .name") == first["name"]
    assert text(page, "#moved .ranks") == f"{first['rank_before']} → {first['rank_after']}"
    assert "Retrained with 4 new labels." in page.text("#announcer")
    assert text(page, "#train-note") == "up to date"
    assert page.until(SEEN, "") == after[0]  # no key was pressed, so the new first image is on the screen
    page.click("#moved button")
    page.until('return document.getElementById("name").textContent === arguments[0]', first["name"])


def test_a_training_that_ends_leaves_the_image_on_the_screen_alone(page, workbench):
    """When a training ends, an annotator who is labelling must not get another image under the next key press."""
    workbench.seconds = 1.5
    label(page, "a", "Enter")
    retrain(page)
    name = label(page, "n")
    page.until('return !document.getElementById("changes").hidden')
    assert page.until(SEEN, "") == name
    assert "you are looking at stays" in page.text("#said")
    top = next(item["name"] for item in workbench.queue("most_suspicious") if item["name"] != name)
    assert label(page, "n") == top
    assert len(workbench.labels) == 3


def test_undo_takes_back_one_label_after_the_other(page, workbench):
    names = page.js(ORDER)
    label(page, "n")
    label(page, "s")
    page.press("u")
    page.until('return document.getElementById("name").textContent === arguments[0]', names[1])
    assert page.text("#why") == "Suspicious, and unlike the images labelled so far."
    until(lambda: len(workbench.labels) == 1, "the skip is taken back")
    page.press("u")
    page.until('return document.getElementById("name").textContent === arguments[0]', names[0])
    until(lambda: workbench.labels == {}, "the label is taken back")
    assert page.js('return document.getElementById("undo").disabled')


def test_only_an_image_on_the_screen_takes_a_label(page, workbench):
    name = page.text("#name")
    draw = workbench.radiograph_png
    workbench.radiograph_png = lambda image_id: (time.sleep(1.0), draw(image_id))[1]
    page.press(*["j"] * 5)  # beyond what was fetched ahead
    page.press("n", "n")
    page.until('return document.getElementById("said").textContent.includes("Wait until the image is shown")')
    assert workbench.calls == []
    page.until(SEEN, name)
    page.press("n")
    until(lambda: len(workbench.calls) == 1, "the label arrives")


def test_the_class_can_be_chosen_and_the_entry_left(page, workbench):
    page.press("a")
    assert page.js("return document.activeElement.id") == "class-name"
    page.press("Escape")
    assert page.js('return document.getElementById("class-entry").hidden')
    page.press("a", "n", "o")  # letters are text here, no commands
    assert page.js('return [...document.querySelectorAll("#class-list li")].map((o) => o.textContent)') == ["nodule"]
    label(page, "ArrowDown", "Enter")
    assert list(workbench.labels.values()) == [(1, "nodule", False)]


def test_the_view_by_keys_and_mouse(page):
    look = """
      const style = (id) => getComputedStyle(document.getElementById(id));
      return {map: !document.getElementById("map").hidden, peak: !document.getElementById("peak").hidden,
        filter: style("radiograph").filter, width: document.getElementById("picture").offsetWidth,
        contrast: Number(document.getElementById("contrast").value),
        brightness: Number(document.getElementById("brightness").value),
        slope: Number(document.querySelector("#window feFuncR").getAttribute("slope"))};
    """
    page.until('return document.getElementById("map-text").textContent !== ""')
    assert (page.js(look)["map"], page.js(look)["peak"]) == (False, True)  # the model knows no abnormal image
    assert page.text("#map-text") == "Map off until the model knows an abnormal image; the button Map (O) shows it."
    page.press("o")
    assert page.text("#map-text") == ""
    start = page.js(look)
    assert (start["map"], start["peak"], start["filter"]) == (True, True, "none")
    page.press("o", "p")
    assert (page.js(look)["map"], page.js(look)["peak"]) == (False, False)
    page.press("o", "p", "i")
    inverted = page.js(look)
    assert (inverted["map"], inverted["peak"], inverted["slope"]) == (True, True, -1)
    assert inverted["filter"] != "none"
    page.press("+", "+")
    assert page.js(look)["width"] == pytest.approx(1.96 * start["width"], abs=2)
    page.press("0")
    assert page.js(look) == start | {"slope": 1}
    page.drag((600, 300), (660, 270))
    assert (page.js(look)["contrast"], page.js(look)["brightness"]) == (20, 10)
    page.click("#reset")
    assert page.js(look)["filter"] == "none"


def test_maps_come_with_the_first_abnormal_label_unless_they_were_switched_off(page, workbench):
    page.until('return document.getElementById("map-text").textContent !== ""')
    label(page, "a", "Enter")
    retrain(page)
    page.until('return !document.getElementById("map").hidden')
    assert page.js('return getComputedStyle(document.getElementById("scale")).opacity') == "0.7"  # as the map
    page.press("o")
    label(page, "a", "Enter")
    retrain(page)
    page.until('return document.getElementById("model").textContent.includes("2 abnormal")')
    assert page.js('return document.getElementById("map").hidden')


def test_a_phone_stays_at_the_radiograph(page):
    page.emulate(width=390, height=844)
    address = page.js("return location.href")
    page.open("about:blank")
    page.open(address)
    page.until(SEEN, "")
    assert page.js("return scrollY") == 0
    for _ in range(9):
        page.press("j")
    assert page.js("return scrollY") == 0
    inside = """
      const row = document.querySelector('[aria-selected="true"]').getBoundingClientRect();
      const box = document.getElementById("list").parentElement.getBoundingClientRect();
      return row.top >= box.top - 1 && row.bottom <= box.bottom + 1;
    """
    assert page.js(inside)


def test_the_strategies_and_the_labelled_images(page, workbench):
    label(page, "a", "Enter")
    assert page.text("#why") == "Suspicious, and unlike the images labelled so far."
    for strategy, why in (
        ("most_uncertain", "Near the operating point."),
        ("random", "Drawn at random."),
        ("labelled", ""),
    ):
        page.click(f'input[value="{strategy}"]')
        wanted = [item["name"] for item in workbench.queue(strategy)]
        until(lambda wanted=wanted: page.js(ORDER) == wanted, f"the queue is {strategy}")
        until(lambda why=why: page.text("#why") == why, f"the page says why: {why}")
    page.until(SEEN, "")
    assert text(page, "#list .badge") == "abnormal"
    page.press("n")  # another judgement
    until(lambda: list(workbench.labels.values()) == [(0, None, False)], "the label is replaced")


def test_everything_can_be_reached_by_tab_and_shows_it(page):
    page.js("document.activeElement.blur()")
    reached = []
    for _ in range(40):
        page.press("Tab")
        focus = page.js("""
          const e = document.activeElement, shown = e.matches(".strategies input") ? e.nextElementSibling : e;
          const style = getComputedStyle(shown), ring = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2;
          return [e.id || e.value || e.tagName, ring];
        """)
        if focus[0] == "BODY":
            break
        reached.append(focus)
    assert all(visible for _, visible in reached), reached
    names = [name for name, _ in reached]
    for wanted in (
        "help-open",
        "varied",
        "list",
        "overlay",
        "opacity",
        "brightness",
        "normal",
        "abnormal",
        "skip",
        "train",
    ):
        assert wanted in names


def test_help_lists_the_keys_and_switches_them_off(page, workbench):
    page.press("?")
    assert page.js('return document.getElementById("help").open')
    page.press("n")  # no command while the help is open
    page.click("#single-keys")
    page.press("Escape", "n")
    assert not page.js('return document.getElementById("help").open')
    page.press("ArrowDown")  # arrows stay
    page.until('return document.querySelector("#row-1[aria-selected=true]") !== null')
    assert workbench.calls == []
    page.press("?")
    page.click("#single-keys")
    page.press("Escape")
    label(page, "n")
    assert len(workbench.calls) == 1


def test_words_and_bar_of_a_score(page):
    page.js("""return import("/wscxr/words.js").then((words) => { window.words = words; })""")
    said = {
        (0.05, 39): "About 1 of 20 normal images scores this high",
        (0.025, 39): "At most 1 of 40 normal images scores this high",
        (0.1, 9): "At most 1 of 10 normal images scores this high",
        (0.3, 39): "About 30 of 100 normal images score this high",
        (0.75, 39): "75 of 100 normal images score this high or higher",
        (1.0, 39): "100 of 100 normal images score this high or higher",
        (None, 39): "",
    }
    for (p, held_out), words in said.items():
        assert page.js("return words.pWords(arguments[0], arguments[1])", p, held_out) == words
    bar = {0.5: 0, 1: 0, 1.5: 0.25, 2: 0.5, 3: 0.75, 5: 0.875}
    for score, place in bar.items():
        assert page.js("return words.onScale(arguments[0], {low: 1, threshold: 2, high: 3})", score) == place, score
    assert page.js("return words.onScale(2, {low: 2, threshold: 2, high: 3})") == 0


def test_a_refusal_is_said_in_words(page):
    page.press("r")
    page.until('return document.getElementById("said").textContent.includes("at least one image labelled abnormal")')


def test_a_failed_training_is_told_and_can_be_repeated(page, workbench):
    workbench.fails = True
    label(page, "a", "Enter")
    page.press("r")
    page.until('return document.getElementById("train-failed").innerText.includes("The disk is full")')
    workbench.fails = False
    page.press("r")
    page.until('return !document.getElementById("changes").hidden')
    assert page.js('return document.getElementById("train-failed").hidden')


def test_a_lost_server_is_told_and_found_again(browser, workbench):
    with served(workbench) as (address, port):
        browser.open(address)
        browser.until(SEEN, "")
    browser.press("n")
    browser.until('return !document.getElementById("gone").hidden')
    assert browser.js('return document.getElementById("normal").disabled')
    assert workbench.labels == {}
    with served(workbench, port):
        browser.click("#gone-retry")
        browser.until('return document.getElementById("gone").hidden')
        browser.until(SEEN, "")
        label(browser, "n")
        assert len(workbench.labels) == 1
        browser.open("about:blank")


def test_read_only_and_unreadable_and_nothing_there(browser, phantoms, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    workbench = FakeWorkbench([broken, *phantom_files(phantoms)[:2]])
    with served(workbench) as (address, _):
        browser.open(address)
        browser.until(SEEN, "")
        label(browser, "n")
        browser.press("s")
        browser.until('return document.getElementById("stage-text").innerText.includes("can be decoded")')
        assert browser.js('return document.getElementById("normal").disabled')
        browser.press("n")
        browser.until('return document.getElementById("said").textContent.includes("can only be skipped")')
        browser.press("s")
        until(lambda: len(workbench.labels) == 3, "the unreadable image is skipped")
        browser.click('input[value="random"]')
        browser.until('return document.getElementById("list-empty").innerText.includes("labelled or skipped")')
        browser.open("about:blank")
    for model in (False, True):
        workbench = FakeWorkbench(phantom_files(phantoms)[:2] if model else [], model=model, read_only=True)
        with served(workbench) as (address, _):
            browser.open(address)
            browser.until('return !document.getElementById("read-only").hidden')
            assert browser.js('return document.getElementById("drift").hidden')
            if model:
                browser.until(
                    'return document.getElementById("map-text").textContent !== ""'
                )  # the map is there, but off
                assert browser.js('return document.getElementById("train").disabled')
                browser.press("n")
                assert "read-only" in browser.text("#said")
            else:
                browser.until('return document.getElementById("list-empty").innerText.includes("No images")')
            browser.open("about:blank")


def test_drift_is_named_on_the_page(browser, phantoms):
    workbench = FakeWorkbench(phantom_files(phantoms)[:2])
    workbench.drift = True
    with served(workbench) as (address, _):
        browser.open(address)
        browser.until('return !document.getElementById("drift").hidden')
        assert "p-values and flags cannot be relied on" in browser.text("#drift")
        browser.open("about:blank")


@pytest.mark.parametrize(("width", "height"), [(1280, 800), (1024, 768), (820, 1180), (600, 900)])
def test_nothing_is_cut_off(page, width, height):
    page.emulate(width, height)
    assert page.js("return document.documentElement.scrollWidth <= innerWidth")
    outside = """
      const wide = (e) => e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).overflowX === "visible";
      return [...document.querySelectorAll("button, label, .tools, .decide, .strategies, .verdict")].filter(wide)
        .map((e) => e.id || e.className || e.textContent);
    """
    assert page.js(outside) == []
