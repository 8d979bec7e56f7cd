"""Files on which a decoder may crash are tried in a worker before this process decodes them."""

import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from monai_wscxr.data import duplicates, isolation
from monai_wscxr.data.duplicates import pixel_digests
from monai_wscxr.data.isolation import Isolation, crash_of, may_crash
from monai_wscxr.data.preprocessing import Preprocessing
from monai_wscxr.data.radiograph.base import GATES
from monai_wscxr.data.radiograph.read import file_digest
from monai_wscxr.features import extraction
from tests.helpers.radiograph_files import WINDOW, dicom

decode, digest_of = isolation.decode, duplicates._pixel_digest


def crash_on_bad(file):
    """Crash on some files, and never in this process."""
    if Path(file).name.startswith("bad"):
        assert multiprocessing.parent_process() is not None
        os.kill(os.getpid(), signal.SIGSEGV)


def fragile_decode(file):
    crash_on_bad(file)
    decode(file)


def fragile_digest(file):
    crash_on_bad(file)
    return digest_of(file)


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    monkeypatch.setenv("MONAI_WSCXR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(duplicates, "_known", {})
    monkeypatch.setattr(isolation, "_crashed", {})
    monkeypatch.setattr(isolation, "_decoded", set())


@pytest.fixture
def files(tmp_path):
    """A PNG and three DICOM files, one of which crashes the decoder of these tests."""
    values = np.random.default_rng(0).integers(0, 256, (4, 70, 70)).astype(np.uint8)
    Image.fromarray(values[0]).save(tmp_path / "a.png")
    for number, name in enumerate(("b.dcm", "bad.dcm", "c.dcm"), 1):
        dicom(tmp_path / name, values[number], PatientID=name, **WINDOW)
    return [str(tmp_path / name) for name in ("a.png", "b.dcm", "bad.dcm", "c.dcm")]


def test_content_decides_what_may_crash(files, tmp_path):
    assert [may_crash(file) for file in files] == [False, True, True, True]
    os.rename(files[1], tmp_path / "named.png")
    assert may_crash(str(tmp_path / "named.png"))
    for name, content in (("empty", b""), ("text", b"words")):
        (tmp_path / name).write_bytes(content)
    assert not may_crash(str(tmp_path / "empty"))
    assert may_crash(str(tmp_path / "text"))
    assert not may_crash(str(tmp_path / "missing"))


def test_extraction_rejects_what_crashes_a_worker_and_tries_nothing_twice(files, make_features, monkeypatch, tmp_path):
    monkeypatch.setattr(extraction, "decode", fragile_decode)
    features = make_features()
    preprocessing = Preprocessing(64, features.backbone.mean, features.backbone.std)
    extractor = extraction.PatchExtractor(features, preprocessing, cache=False, max_bad_share=0.3, allow=GATES)
    bank = extractor.bank([{"image": file} for file in files])
    assert [Path(file).name for file in bank.files] == ["a.png", "b.dcm", "c.dcm"]
    assert [(Path(file).name, code) for file, code, _ in extractor.done.rejected] == [("bad.dcm", "crashed")]
    monkeypatch.setattr(Isolation, "__call__", lambda *_: pytest.fail("tried again"))
    again = extractor.bank([{"image": file} for file in files])
    assert torch.equal(again.rows, bank.rows)


def test_comparing_pixels_survives_a_crash_and_tells_extraction(files, monkeypatch):
    monkeypatch.setattr(duplicates, "_pixel_digest", fragile_digest)
    digests = {file: file_digest(file) for file in files}
    found = pixel_digests(digests, progress=False)
    assert found[files[2]] == digests[files[2]]  # that of its bytes
    assert all(found[file] == digest_of(file) for file in files if "bad" not in file)

    def never(file):
        raise AssertionError(file)

    for file in files:
        error = crash_of(digests[file], file, never)
        assert (error and error.code) == ("crashed" if "bad" in file else None)


def test_digests_from_an_earlier_run_need_no_trial(files, monkeypatch):
    digests = {file: file_digest(file) for file in files}
    pixel_digests(digests, progress=False)
    monkeypatch.setattr(isolation, "_decoded", set())
    monkeypatch.setattr(duplicates, "_known", {})
    monkeypatch.setattr(Isolation, "__call__", lambda *_: pytest.fail("tried again"))
    pixel_digests(digests, progress=False)
    assert isolation._decoded >= set(digests.values())
