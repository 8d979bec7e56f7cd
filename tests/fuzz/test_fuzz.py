"""A short fuzzing run with fixed seeds; `python -m tests.fuzz.fuzzing` runs longer."""

import numpy as np
import pytest
from pydicom.data import get_testdata_file

from tests.fuzz.fuzzing import fuzz
from tests.fuzz.mutations import mutate, small_seeds

pytestmark = pytest.mark.skipif(
    get_testdata_file("RG1_UNCR.dcm", download=False) is None, reason="pydicom-data is not installed"
)


def test_seeds_are_readable_and_mutations_repeat(tmp_path):
    from monai_wscxr.data.radiograph.read import read_radiograph

    seeds = small_seeds()
    assert len(seeds) == 26
    for name, data in seeds.items():
        (tmp_path / name).write_bytes(data)
        read_radiograph(tmp_path / name, allow=["other_body_part", "suspicious_polarity"])
        made = [mutate(data, name, np.random.default_rng(7)) for _ in range(2)]
        assert made[0] == made[1]


def test_broken_files_have_their_rows_and_reasons():
    tally = fuzz(300, seed=1, large_share=0.0, chunk=150)
    assert tally.inputs == 300
    assert tally.problems == []
    assert tally.reasons["unreadable"] > 30
    assert tally.reasons["ok"] > 10
    assert not {"crashed", "too_slow"} & set(tally.reasons)
