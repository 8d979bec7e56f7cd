"""Limits of the worker processes in which the label server decodes."""

import numpy as np
import pytest

from monai_wscxr.data.preprocessing import Preprocessing
from monai_wscxr.data.radiograph.base import RadiographError
from monai_wscxr.data.transforms import radiograph_transforms
from monai_wscxr.label import decoding
from monai_wscxr.label.archive.studies import Refused
from monai_wscxr.label.decoding import Decoders, image_size, network_input
from tests.helpers.fragile import killed
from tests.helpers.radiograph_files import slow_jpeg


@pytest.fixture
def decoders():
    made = Decoders(Preprocessing(64))
    yield made
    made.close()


def test_a_slow_or_crashing_image_costs_itself_alone(decoders, phantoms, tmp_path, monkeypatch):
    good = sorted((phantoms / "train" / "normal").iterdir())[0]
    slow = tmp_path / "slow.jpg"
    slow.write_bytes(slow_jpeg())
    assert decoders.upload(good, image_size, str(good), ()) == (64, 64)
    monkeypatch.setattr(decoding, "SECONDS", 0.05)
    with pytest.raises(RadiographError) as error:
        decoders.upload(slow, image_size, str(slow), ())
    assert error.value.code == "too_slow"
    monkeypatch.undo()
    with pytest.raises(RadiographError) as error:
        decoders.upload(good, killed, str(good))
    assert error.value.code == "crashed"
    assert decoders.upload(good, image_size, str(good), ()) == (64, 64)


def test_workers_give_what_this_process_would_and_pass_errors_on(decoders, phantoms, tmp_path):
    good = sorted((phantoms / "train" / "normal").iterdir())[0]
    here = radiograph_transforms(Preprocessing(64))({"image": str(good)})["image"].numpy()
    assert np.array_equal(decoders.archive(good, network_input, str(good)), here)
    assert np.array_equal(decoders.transform({"image": str(good), "file": str(good)})["image"], here)
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    with pytest.raises(RadiographError) as error:
        decoders.upload(bad, network_input, str(bad))
    assert error.value.code == "unknown_format"


def test_too_many_waiting_requests_are_refused(decoders, phantoms):
    good = sorted((phantoms / "train" / "normal").iterdir())[0]
    for _ in range(decoding.LARGEST_QUEUE):
        decoders._places.acquire()
    with pytest.raises(Refused) as error:
        decoders.archive(good, image_size, str(good), ())
    assert error.value.reason == "busy"
    decoders._places.release()
    assert decoders.archive(good, image_size, str(good), ()) == (64, 64)
