"""Labels from untrusted values."""

import pickle

import pytest

from monai_wscxr.label.archive.studies import Label, Refused


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ((2,), "bad_label"),
        ((True,), "bad_label"),
        ((1.0,), "bad_label"),
        (("1",), "bad_label"),
        ((None,), "bad_label"),
        ((0, "nodule"), "contradiction"),
        ((1, "Normal"), "contradiction"),
        ((1, "a/b"), "bad_class"),
        ((1, "x" * 65), "bad_class"),
        ((1, 5), "bad_class"),
        ((1, "line\nbreak"), "bad_class"),
        ((1, None, True), "contradiction"),
        ((None, None, 1), "bad_label"),
    ],
)
def test_a_wrong_label_is_refused_with_its_reason(values, reason):
    with pytest.raises(Refused) as error:
        Label.checked(*values)
    assert error.value.reason == reason


REFUSED_CLASSES = {
    "a lone surrogate": "\ud800",
    "a surrogate in the middle": "effu\udfffsion",
    "a null byte": "a\0b",
    "a line break": "a\nb",
    "a carriage return": "a\rb",
    "a control character": "a\x1bb",
    "a C1 control character": "a\x85b",
    "a line separator": "a\u2028b",
    "a bidi override": "a\u202eb",
    "a bidi isolate": "a\u2066b",
    "a zero-width space": "a\u200bb",
    "a byte order mark": "\ufeffnodule",
    "a soft hyphen": "a\u00adb",
    "a tag character": "a\U000e0041",
    "a private character": "a\ue000",
    "an unassigned character": "a\U000e0fff",
    "letters that are drawn as nothing": "\u3164\u115f",
    "an empty braille pattern": "\u2800",
    "a slash": "a/b",
    "a backslash": "a\\b",
    "65 characters": "x" * 65,
    "a million characters": "x" * 10**6,
    "no text": ["effusion"],
    "a number": 5,
    "a truth value": True,
}


@pytest.mark.parametrize("name", REFUSED_CLASSES.values(), ids=REFUSED_CLASSES.keys())
def test_a_class_that_is_no_printable_name_is_refused(name):
    for label in (0, 1):
        with pytest.raises(Refused) as error:
            Label.checked(label, name)
        assert error.value.reason == "bad_class"
        str(error.value).encode("utf-8")


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("Pleuraerguss", "Pleuraerguss"),
        ("Ödem", "Ödem"),
        ("肺炎", "肺炎"),
        ("  pleural \t effusion ", "pleural effusion"),
        ("pleural\u00a0effusion", "pleural effusion"),
        ("x" * 64, "x" * 64),
        ("", "abnormal"),
        (" \u2003\t", "abnormal"),
        (None, "abnormal"),
    ],
)
def test_a_class_keeps_its_characters_and_loses_repeated_spaces(given, kept):
    assert Label.checked(1, given).image_class == kept


def test_a_refusal_passes_between_processes():
    again = pickle.loads(pickle.dumps(Refused("no_model", "there is no model yet")))
    assert (again.reason, str(again)) == ("no_model", "there is no model yet")
