"""Labels from untrusted values."""

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
