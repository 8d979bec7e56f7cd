"""A short run of the structured fuzzing; `python -m tests.fuzz.structured` runs longer."""

import numpy as np
import pytest

from tests.fuzz import structured
from tests.fuzz.structures import _KINDS, files


def test_files_repeat_and_have_many_kinds():
    made = [[files(np.random.default_rng(n)) for n in range(200)] for _ in range(2)]
    assert made[0] == made[1]
    assert len({suffix for suffix, _ in made[0]}) > 8


@pytest.mark.parametrize("kind", _KINDS[:4], ids=lambda kind: kind.__name__)
def test_some_files_of_each_kind_are_good(kind, tmp_path):
    from monai_wscxr.data.radiograph.base import GATES, RadiographError
    from monai_wscxr.data.radiograph.read import read_radiograph

    good = 0
    for number in range(40):
        suffix, data = kind(np.random.default_rng(number))
        path = tmp_path / f"{number}{suffix}"
        path.write_bytes(data[: 2**20])
        try:
            read_radiograph(path, allow=GATES)
            good += 1
        except RadiographError:
            continue
    assert 2 <= good < 40


def test_lying_files_have_their_rows_and_reasons():
    pytest.importorskip("highdicom", reason="the extra dicom is not installed")
    tally = structured.fuzz(120, seed=1, chunk=60)
    assert tally.problems == []
    assert tally.inputs == 120
    assert tally.reasons["unreadable"] > 20
    assert sum(number for reason, number in tally.reasons.items() if reason.startswith("ok")) > 10
