"""The stream: items in order, unusable files listed with reasons that name no path, other errors passed on."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from monai_wscxr.data import stream as stream_module
from monai_wscxr.data.preprocessing import Preprocessing
from monai_wscxr.data.radiograph.base import RadiographError, find_radiograph_error
from monai_wscxr.data.stream import RadiographStream
from monai_wscxr.data.transforms import radiograph_transforms
from tests.helpers.radiograph_files import png


@pytest.fixture
def items(tmp_path):
    """Five items, of which numbers 1 and 3 cannot be used."""
    generator = np.random.default_rng(0)
    for number in (0, 2, 4):
        png(tmp_path / f"{number}.png", generator.integers(0, 256, (40, 40), dtype=np.uint8))
    (tmp_path / "1.png").write_bytes((tmp_path / "0.png").read_bytes()[:200])
    return [{"image": str(tmp_path / f"{number}.png"), "number": number} for number in range(5)]


@pytest.mark.parametrize("options", [{}, {"threads": 1, "depth": 1}])  # worker processes: test_extraction.py
def test_items_come_in_order_and_the_others_are_listed(items, options):
    stream = RadiographStream(items, radiograph_transforms(Preprocessing(32)), **options)
    assert len(stream) == 5
    for _ in range(2):  # a second pass lists them once
        loaded = list(stream)
        assert [item["number"] for item in loaded] == [0, 2, 4]
        assert [item["file"] for item in loaded] == [items[number]["image"] for number in (0, 2, 4)]
        assert all(item["image"].shape == (3, 32, 32) for item in loaded)
        assert [(file, code) for file, code, _ in stream.rejected] == [
            (items[1]["image"], "unreadable"),
            (items[3]["image"], "not_found"),
        ]
        assert stream.rejected[1][2] == "there is no such file. Give the path of one image file."
        assert not any(file in message for file, _, message in stream.rejected)


def test_other_errors_are_passed_on(items):
    def fail(item):
        raise KeyError("number")

    with pytest.raises(KeyError):
        list(RadiographStream(items, fail))
    with pytest.raises(TypeError):
        list(RadiographStream(items, lambda item: torch.zeros(item)))


def test_the_radiograph_error_is_found_among_the_causes():
    inner, outer = RadiographError("empty", "no pixels"), RuntimeError("applying transform")
    outer.__cause__ = inner
    assert find_radiograph_error(outer) is find_radiograph_error(inner) is inner
    assert find_radiograph_error(ValueError()) is None


def fragile(item):
    """Load like a decoder that crashes on one file and is slow on another."""
    name = Path(item["image"]).name
    if name == "crash.png":
        os.kill(os.getpid(), signal.SIGSEGV)
    if name == "slow.png":
        time.sleep(60)
    return radiograph_transforms(Preprocessing(32))(item)


def test_a_file_that_crashes_or_holds_up_a_worker_is_one_of_the_rejected(items, tmp_path, monkeypatch):
    monkeypatch.setattr(stream_module, "time_limit", lambda file: 2.0 if Path(file).name == "slow.png" else 60.0)
    for name in ("crash.png", "slow.png"):
        (tmp_path / name).write_bytes(b"x")
        items.insert(2, {"image": str(tmp_path / name), "number": name})
    here = RadiographStream([item for item in items if item["number"] in (0, 1, 4)], fragile)
    expected = {item["number"]: item for item in here}
    stream = RadiographStream(items, fragile, workers=2, depth=2)
    loaded = {item["number"]: item for item in stream}
    assert list(loaded) == [0, 2, 4]
    assert all(torch.equal(loaded[number]["image"], expected[number]["image"]) for number in (0, 4))
    assert [(Path(file).name, code) for file, code, _ in stream.rejected] == [
        ("1.png", "unreadable"),
        ("slow.png", "too_slow"),
        ("crash.png", "crashed"),
        ("3.png", "not_found"),
    ]
