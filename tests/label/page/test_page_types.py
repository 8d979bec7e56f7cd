"""The types that the page's JavaScript is checked against: they must say what the server answers and what index.html holds."""

import re
from html.parser import HTMLParser
from importlib import resources

import pytest

from tests.helpers.fake_workbench import FakeWorkbench, phantom_files
from tests.helpers.webdriver import until

PAGE = resources.files("monai_wscxr.label.page")
TAGS = {
    "button": "Button",
    "dialog": "Dialog",
    "form": "Form",
    "img": "Image",
    "input": "Input",
    "progress": "Progress",
}
JSON_TYPES = {
    "string": (str,),
    "string[]": (list,),
    "[number, number]": (list,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}


def interfaces():
    """Fields of each interface in types.d.ts: {interface: {field: type}}, inherited fields included."""
    text = re.sub(r"/\*.*?\*/|//[^\n]*", "", PAGE.joinpath("types.d.ts").read_text(), flags=re.S)
    found = {}
    for name, parent, body in re.findall(r"export interface (\w+)(?: extends (\w+))? \{(.*?)\n\}", text, re.S):
        fields = re.findall(r'^  "?([\w-]+)"?: (.+);$', body, re.M)
        assert len(fields) == len([line for line in body.splitlines() if line.strip()]), name
        found[name] = found.get(parent, {}) | dict(fields)
    return found


INTERFACES = interfaces()


def check(value, kind, where):
    """Fail unless a JSON value has the type that types.d.ts gives it."""
    for part in kind.split(" | "):
        element = part.removesuffix("[]")
        if element in INTERFACES:
            listed = value if part != element else [value]
            if isinstance(listed, list) and all(isinstance(entry, dict) for entry in listed):
                for entry in listed:
                    for field, field_kind in INTERFACES[element].items():
                        assert field in entry, f"{where}.{field}: not in the answer"
                        check(entry[field], field_kind, f"{where}.{field}")
                return
        elif part.startswith('"') or part.isdigit():
            if str(value) == part.strip('"') and not isinstance(value, bool):
                return
        elif isinstance(value, JSON_TYPES[part]) and isinstance(value, bool) == (part == "boolean"):
            return
    pytest.fail(f"{where}: {value!r} is not of type {kind}")


@pytest.mark.parametrize("model", [False, True])
def test_answers_have_the_declared_types(phantoms, tmp_path, model):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    workbench = FakeWorkbench([broken, *phantom_files(phantoms)], model=model, seconds=0.05)
    states = [workbench.training()]
    check(workbench.status(), "Status", "status")
    check(workbench.changes(), "Changes | null", "changes")
    first, second, *_ = (item["id"] for item in workbench.queue("most_suspicious"))
    check(workbench.set_label(first, 1, "effusion"), "Item", "item")
    check(workbench.set_label(second, None, skipped=True), "Item", "item")
    states.append(workbench.start_training())
    until(lambda: states.append(workbench.training()) or states[-1]["state"] == "done", "the training ends")
    for state in states:
        check(state, "Training", "training")
    check(workbench.status(), "Status", "status")
    check(workbench.changes(), "Changes", "changes")
    for strategy in ("most_suspicious", "labelled"):
        check(workbench.queue(strategy), "Item[]", strategy)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (None, "number"),
        (True, "number"),
        (1, "boolean"),
        ("other", '"idle" | "running"'),
        ({"low": 0.0, "threshold": 1.0}, "Scale"),
        ({"low": 0.0, "threshold": 1.0, "high": None}, "Scale"),
        ([{"normal": 1}], "Counts[]"),
    ],
)
def test_other_types_are_noticed(value, kind):
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        check(value, kind, "value")


def test_elements_have_the_declared_types():
    class Elements(HTMLParser):
        def handle_starttag(self, tag, attributes):
            if "id" in dict(attributes):
                tags[dict(attributes)["id"]] = tag

    tags: dict[str, str] = {}
    Elements().feed(PAGE.joinpath("static", "index.html").read_text())
    declared = INTERFACES["Elements"]
    assert {i: f"HTML{TAGS.get(tags[i], '')}Element" for i in declared} == declared
