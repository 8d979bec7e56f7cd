"""Prediction runs: a row per input, the same results after interruptions, no patient data outside of DICOM results."""

import csv
import fcntl
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from monai_wscxr.commands.main import main
from monai_wscxr.data.radiograph.base import GATES
from monai_wscxr.data.transforms import radiograph_transforms
from monai_wscxr.errors import InputError
from monai_wscxr.model.artefact import load_model
from monai_wscxr.model.predictions import to_map
from monai_wscxr.model.predictor import predict_files
from monai_wscxr.prediction import tasks
from monai_wscxr.prediction.journal import NAME as JOURNAL
from monai_wscxr.prediction.options import Options
from monai_wscxr.prediction.run import predict
from monai_wscxr.report.predictions import COLUMNS
from tests.fuzz.mutations import mutate, small_seeds
from tests.helpers.chest_checks import refuse_unlike

PATIENT_FILES = ("b/3.dcm", "b/1.2.840.1", "b/lateral.dcm")


@pytest.fixture
def options(model_folder, inputs, tmp_path):
    """Function that makes options for the shared inputs; without worker processes by default."""

    def make(**changes):
        chosen = {
            "paths": (str(inputs),),
            "output": str(tmp_path / "out"),
            "workers": 0,
            "batch_size": 2,
            "progress": False,
        }
        return Options(model=str(model_folder), **{**chosen, **changes})

    return make


def rows(folder):
    with open(Path(folder) / "predictions.csv", newline="", encoding="utf-8") as file:
        header, *found = csv.reader(file)
    assert tuple(header) == COLUMNS
    return found


def tree(folder, without=()):
    """Read all files below a folder."""
    folder = Path(folder)
    files = {str(p.relative_to(folder)): p for p in sorted(folder.rglob("*")) if p.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if name not in without}


def secrets(patient):
    """Return the texts of the header, whole and in parts, in all encodings in which they could leak."""
    texts = {text for value in patient.values() for text in (value, *re.split(r"[\^, ]", value)) if len(text) > 5}
    return {text.encode(code, "ignore") for text in texts for code in ("utf-8", "latin-1", "utf-16-le")} | {
        json.dumps(text)[1:-1].encode() for text in texts
    }


def test_every_input_has_its_row_and_files(options, inputs, model_folder):
    summary = predict(options())
    found = rows(options().output)
    assert [os.path.relpath(r[0], inputs) for r in found] == [
        "0.png", "1.png", "2.png", "b/1.2.840.1", "b/3.dcm", "b/broken.png", "b/lateral.dcm",
    ]  # fmt: skip
    assert [(r[1], r[2]) for r in found] == [("ok", "")] * 5 + [
        ("rejected", "unreadable"),
        ("rejected", "lateral_view"),
    ]
    assert (summary.images, summary.rejected, summary.done_before) == (7, 2, 0)
    assert summary.flagged == sum(r[5] == "true" for r in found)
    written = set(tree(options().output))
    for number in range(5):
        assert {
            f"maps/{number:06d}.tiff",
            f"overlays/{number:06d}.png",
            f"report/pictures/{number:06d}-map.jpg",
        } <= written
    assert not any("000005" in name or "000006" in name for name in written)
    assert {"report/index.html", "predictions.json", JOURNAL} <= written


def test_finite_giants_are_one_rejected_row_and_the_run_goes_on(options, inputs, tmp_path):
    giant = np.random.default_rng(0).choice([-1.7e308, 1.7e308], (64, 64))
    nib.save(nib.Nifti1Image(giant, np.eye(4)), tmp_path / "giants.nii")
    paths = (str(inputs / "0.png"), str(tmp_path / "giants.nii"), str(inputs / "1.png"))
    summary = predict(options(paths=paths))
    assert [(r[1], r[2]) for r in rows(options().output)] == [("ok", ""), ("rejected", "not_finite"), ("ok", "")]
    assert (summary.images, summary.rejected) == (3, 1)


def test_scores_are_those_of_the_predictor(options, model_folder):
    predict(options(batch_size=3))
    model = load_model(model_folder)
    found = [r for r in rows(options().output) if r[1] == "ok"]
    expected = list(predict_files(model, [r[0] for r in found]))
    for row, p in zip(found, expected, strict=True):
        assert float(row[3]) == pytest.approx(p.anomaly_score, abs=2e-5)
        assert row[5] == str(p.abnormal).lower()
        assert row[6] == model.sha256
    described = json.loads((Path(options().output) / "predictions.json").read_text())
    assert described["model"]["threshold"] == model.calibration.threshold
    for number, p in enumerate(expected):
        entry = described["predictions"][number]
        assert entry["p_value"] == model.calibration.p_value(entry["anomaly_score"])
        stored = np.asarray(Image.open(Path(options().output) / entry["files"]["map"]))
        np.testing.assert_allclose(stored, to_map(model, p), atol=1e-4)


@pytest.mark.parametrize("kind", ["nifti", "npy", "none"])
def test_map_formats_hold_the_same_values(options, kind, tmp_path):
    predict(options())
    predict(options(maps=kind, overlays=False, report=False, output=str(tmp_path / "other")))
    written = tree(tmp_path / "other")
    if kind == "none":
        assert set(written) == {"predictions.csv", "predictions.json", JOURNAL}
        return
    expected = np.asarray(Image.open(tmp_path / "out" / "maps" / "000003.tiff"))
    if kind == "npy":
        values = np.load(tmp_path / "other" / "maps" / "000003.npy")
    else:
        values = nib.load(tmp_path / "other" / "maps" / "000003.nii.gz").get_fdata()[..., 0].T
    assert expected.dtype == np.float32
    np.testing.assert_array_equal(values, expected)


def test_worker_processes_give_the_same_files(options, tmp_path):
    predict(options())
    predict(options(workers=2, output=str(tmp_path / "parallel")))
    # only the journal may differ, in order and time
    assert tree(tmp_path / "parallel", [JOURNAL]) == tree(tmp_path / "out", [JOURNAL])


def test_results_do_not_depend_on_what_was_done_before(options, tmp_path, monkeypatch):
    """Stop after each batch and resume: the files are the same, and no finished input is read again."""
    predict(options(output=str(tmp_path / "whole")))
    expected = tree(tmp_path / "whole", [JOURNAL])
    read = tasks.read
    for stop in range(1, 4):
        asked = []

        def counted(path, asked=asked):
            asked.append(path)
            return read(path)

        from monai_wscxr.prediction import run

        finish, finished = run.Run._finish, []

        def stopping(self, *arguments, finish=finish, finished=finished, stop=stop):
            finish(self, *arguments)
            finished.append(1)
            if len(finished) == stop:
                raise KeyboardInterrupt

        output = str(tmp_path / f"stopped{stop}")
        with monkeypatch.context() as patched:
            patched.setattr(run.Run, "_finish", stopping)
            with pytest.raises(KeyboardInterrupt):
                predict(options(output=output))
        with monkeypatch.context() as patched:
            patched.setattr(tasks, "read", counted)
            summary = predict(options(output=output))
        assert summary.done_before == min(2 * stop, 7)
        assert len(asked) == 7 - summary.done_before
        assert tree(output, [JOURNAL]) == expected


def test_killed_process_goes_on(options, model_folder, inputs, tmp_path):
    """Kill the process with SIGKILL and give the same command again: the tables are the same byte for byte."""
    many = tmp_path / "many"
    many.mkdir()
    for number in range(60):
        (many / f"{number:02d}.png").write_bytes((inputs / f"{number % 3}.png").read_bytes())
    predict(options(paths=(str(many),), output=str(tmp_path / "whole"), batch_size=4))
    command = [sys.executable, "-m", "monai_wscxr", "predict", "--model", str(model_folder), str(many)]
    command += [
        "--output",
        str(tmp_path / "killed"),
        "--batch_size",
        "4",
        "--workers",
        "1",
        "--quiet",
        "--device",
        "cpu",
    ]
    package = Path(sys.modules["monai_wscxr"].__file__).parents[1]
    first = subprocess.Popen(command, cwd=package)
    journal = tmp_path / "killed" / JOURNAL
    while first.poll() is None:  # starting may take long on a busy machine
        if journal.exists() and journal.read_bytes().count(b"\n") >= 9:
            break
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.wait()
    done = journal.read_bytes().count(b"\n") - 1
    assert 8 <= done < 60
    second = subprocess.run(command, cwd=package, capture_output=True, text=True)
    assert second.returncode == 0, second.stderr
    assert f"{done} of them were done before" in second.stdout or f"{done - 1} of them" in second.stdout
    for name in ("predictions.csv", "predictions.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_full_or_forbidden_disk_is_one_sentence(options, monkeypatch, tmp_path):
    def full(path, data, durable):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tasks, "write_bytes_atomic", full)
    with pytest.raises(InputError, match=r"out cannot be written because the disk is full: .* are missing; make room"):
        predict(options())
    monkeypatch.undo()
    (tmp_path / "out" / "maps" / ".000001.tiff.abc.partial").write_bytes(b"half")
    predict(options())
    assert not list((tmp_path / "out").rglob(".*"))


def test_changed_and_lost_files_are_done_again(options, inputs, tmp_path):
    predict(options())
    (tmp_path / "out" / "maps" / "000001.tiff").unlink()
    picture = np.asarray(Image.open(inputs / "2.png"))
    Image.fromarray(picture[:, ::-1].copy()).save(inputs / "2.png")
    before = rows(options().output)
    summary = predict(options())
    assert summary.done_before == 5
    after = rows(options().output)
    assert (tmp_path / "out" / "maps" / "000001.tiff").exists()
    assert before[2][3] != after[2][3]
    assert [r for n, r in enumerate(before) if n != 2] == [r for n, r in enumerate(after) if n != 2]


def test_files_that_a_power_failure_cut_short_are_done_again(options, tmp_path):
    predict(options())
    before = tree(tmp_path / "out")
    for name, length in (("maps/000001.tiff", 0), ("report/pictures/000003-map.jpg", 700)):
        os.truncate(tmp_path / "out" / name, length)
    assert predict(options()).done_before == 5
    assert tree(tmp_path / "out", [JOURNAL]) == {name: data for name, data in before.items() if name != JOURNAL}


def test_results_below_the_input_folder_are_no_inputs(options, inputs, tmp_path):
    output = str(inputs / "b" / "results")
    assert predict(options(output=output)).images == 7
    assert predict(options(output=output)).done_before == 7
    assert predict(options(output=str(tmp_path / "elsewhere"))).images == 7


def test_a_run_that_is_going_on_is_not_replaced(options, tmp_path):
    predict(options())
    with open(tmp_path / "out" / JOURNAL, "rb") as running:
        fcntl.flock(running, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another prediction is running"):
            predict(options(overwrite=True))
    assert len(rows(options().output)) == 7


def test_folder_of_another_run_is_refused_and_can_be_replaced(options, make_model, tmp_path):
    predict(options())
    for changes, words in (
        ({"batch_size": 3}, "batch_size: 2 there, 3 now"),
        ({"maps": "npy"}, "maps: tiff there, npy now"),
        ({"allow": ("lateral_view",)}, "allow:"),
        ({"paths": options().paths * 2}, "other inputs"),
    ):
        with pytest.raises(InputError, match=words):
            predict(options(**changes))
    make_model(tmp_path / "model", seed=1)
    with pytest.raises(InputError, match="other model"):
        predict(options())
    predict(options(maps="npy", overwrite=True))
    assert sorted(p.suffix for p in (tmp_path / "out" / "maps").iterdir()) == [".npy"] * 5


def test_foreign_folder_is_left_alone(options, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(InputError, match="holds no prediction run"):
            predict(options(overwrite=overwrite))
    assert tree(tmp_path / "out") == {"thesis.txt": b"years of work"}


def test_gates_open_on_demand(options, inputs):
    predict(options(allow=("lateral_view",)))
    assert {os.path.basename(r[0]): r[1] for r in rows(options().output)}["lateral.dcm"] == "ok"


def test_a_picture_unlike_a_chest_is_a_rejected_row_without_files(options, inputs, model_folder, tmp_path):
    model = load_model(model_folder)
    image = radiograph_transforms(model.preprocessing)({"image": str(inputs / "1.png")})["image"]
    with torch.inference_mode():
        feature = model.network.features(image[None]).mean((2, 3))[0]
    predict(options(output=str(tmp_path / "before")))
    refuse_unlike(model_folder, feature, 1e-9)  # accepts this image alone
    summary = predict(options(batch_size=3))
    assert summary.reasons == {"unlike_a_chest": 4, "lateral_view": 1, "unreadable": 1}
    before = rows(tmp_path / "before")
    for row, unchecked in zip(rows(options().output), before, strict=True):
        name = os.path.basename(row[0])
        assert row[1:3] == (
            ["ok", ""] if name == "1.png" else unchecked[1:3] if unchecked[2] else ["rejected", "unlike_a_chest"]
        )
    assert [p.name for p in (tmp_path / "out" / "maps").iterdir()] == ["000001.tiff"]
    found = json.loads((tmp_path / "out" / "predictions.json").read_text())["predictions"]
    message = next(p["message"] for p in found if p["reason"] == "unlike_a_chest")
    assert "allow unlike_a_chest" in message
    assert predict(options(batch_size=3)).done_before == 7
    allowed = predict(options(output=str(tmp_path / "allowed"), allow=("unlike_a_chest",)))
    assert allowed.reasons == {"lateral_view": 1, "unreadable": 1}
    assert rows(tmp_path / "allowed") == before
    with pytest.raises(InputError, match="other"):
        predict(options(batch_size=3, output=str(tmp_path / "before")))


@pytest.mark.filterwarnings("ignore:Invalid value for VR CS")
def test_dicomdir_is_predicted(options, dicomdir, inputs):
    predict(options(paths=(str(dicomdir),)))
    found = rows(options().output)
    assert [(r[1], r[2]) for r in found] == [("ok", ""), ("rejected", "lateral_view")] + [
        ("rejected", "outside_folder")
    ] * 4


def test_padding_is_left_out_of_maps(options, phantoms, tmp_path, write_dicom, model_folder):
    levels = np.asarray(Image.open(next(phantoms.glob("test/normal/*.png"))))
    levels = (levels / (levels.max() / 254)).astype(np.uint8)
    levels[:32] = 255  # written as 0 by the fixture
    path = write_dicom(tmp_path / "padded.dcm", levels, PixelPaddingValue=0)
    predict(options(paths=(str(path),), maps="npy"))
    low = load_model(model_folder).calibration.colour_low
    values = np.load(tmp_path / "out" / "maps" / "000000.npy")
    assert (values[:32] == np.float32(low)).all()
    assert len(np.unique(values[33:])) > 100


def test_decoder_that_crashes_or_hangs_costs_its_image(options, inputs, tmp_path):
    """Worker processes import a module that makes reading crash on one image and hang on another."""
    trap = tmp_path / "trap" / "sitecustomize.py"
    trap.parent.mkdir()
    trap.write_text(
        "import os, time\n"
        "import monai_wscxr.data.preprocessing as t\n"
        "read = t.read_radiograph\n"
        "def trapped(path, **options):\n"
        "    if str(path).endswith('1.png'): os.kill(os.getpid(), 11)\n"
        "    if str(path).endswith('2.png'): time.sleep(60)\n"
        "    return read(path, **options)\n"
        "t.read_radiograph = trapped\n"
    )
    package = Path(sys.modules["monai_wscxr"].__file__).parents[1]
    command = [sys.executable, "-m", "monai_wscxr", "predict", "--model", options().model, str(inputs), "--output"]
    command += [options().output, "--workers", "1", "--quiet", "--seconds", "3"]
    environment = {**os.environ, "PYTHONPATH": f"{trap.parent}{os.pathsep}{package}"}
    done = subprocess.run(command, cwd=package, env=environment, capture_output=True, text=True)
    assert done.returncode == 3, done.stderr
    found = {os.path.basename(r[0]): (r[1], r[2]) for r in rows(options().output)}
    assert found["1.png"] == ("rejected", "crashed")
    assert found["2.png"] == ("rejected", "too_slow")
    assert found["0.png"] == found["3.dcm"] == ("ok", "")


@pytest.mark.filterwarnings("ignore")
def test_nothing_of_a_patient_leaves_but_in_dicom(
    options, inputs, dicomdir, tmp_path, capfd, caplog, write_dicom, patient
):
    """Search all outputs, the cache, logs and messages for the texts of the headers in several encodings."""
    caplog.set_level(logging.DEBUG)
    levels = np.asarray(Image.open(inputs / "0.png"))
    for number, changes in enumerate(
        (
            {"Modality": "Q%7&!~#X@4711"},
            {"BodyPartExamined": "JOERGE ZWOELFER"},
            {"PhotometricInterpretation": "ZZ-99881"},
            {"WindowCenter": None, "SpecificCharacterSet": "Zwölfer"},
            {"StudyInstanceUID": "ZZ-99881"},
            {"ViewPosition": "ZZ-99881"},
        )
    ):
        try:
            write_dicom(inputs / "b" / f"odd{number}.dcm", levels, **changes)
        except ValueError:
            continue
    paths = (str(inputs), str(dicomdir))
    caplog.clear()  # pydicom has logged warnings while the inputs were written
    capfd.readouterr()
    summary = predict(options(paths=paths, workers=2, dicom=True, maps="nifti"))
    assert summary.rejected >= 4
    (tmp_path / "log.txt").write_text(caplog.text + "".join(capfd.readouterr()), encoding="utf-8")
    places = [tmp_path / "out", Path(os.environ["MONAI_WSCXR_CACHE"]), tmp_path / "log.txt"]
    files = [p for place in places for p in ([place] if place.is_file() else place.rglob("*")) if p.is_file()]
    searched = [p for p in files if p.suffix != ".dcm"]
    assert len(searched) > 20
    for path in searched:
        content = path.read_bytes()
        if path.suffix == ".gz":
            import gzip

            content += gzip.decompress(content)
        for secret in secrets(patient):
            assert secret not in content, (path, secret)
            assert secret not in str(path).replace(str(tmp_path), "").encode()
    assert any(secret in (inputs / "b" / "3.dcm").read_bytes() for secret in secrets(patient))
    results = [p for p in files if p.suffix == ".dcm"]
    assert results
    for path in results:
        assert re.fullmatch(r"\d{6}-(overlay|map|regions|report)\.dcm", path.name)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_pipe_does_not_stop_a_run(options, inputs, workers):
    os.mkfifo(inputs / "pipe.png")
    summary = predict(options(workers=workers))
    assert (summary.images, summary.rejected) == (8, 3)
    assert ["rejected", "unreadable"] in [r[1:3] for r in rows(options().output) if r[0].endswith("pipe.png")]


def test_decoders_are_silent_without_worker_processes(model_folder, tmp_path):
    """Broken files of all formats in a process of their own: nothing but the summary is printed."""
    seeds = small_seeds()
    if not seeds:
        pytest.skip("pydicom-data is not installed")
    folder = tmp_path / "broken"
    folder.mkdir()
    generator = np.random.default_rng(5)
    for number in range(80):
        name = sorted(seeds)[number % len(seeds)]
        (folder / f"{number:02d}-{name}").write_bytes(mutate(seeds[name], name, generator))
    command = [sys.executable, "-m", "monai_wscxr", "predict", "--model", str(model_folder), str(folder), "--output"]
    command += [str(tmp_path / "out"), "--workers", "0", "--quiet", "--maps", "none", "--no-report", "--no-overlays"]
    package = Path(sys.modules["monai_wscxr"].__file__).parents[1]
    done = subprocess.run(command, cwd=package, capture_output=True, text=True)
    assert done.returncode == 3
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 3
    assert sum(r[2] == "unreadable" for r in rows(tmp_path / "out")) > 10


def test_command_line(options, inputs, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base = ["predict", "--model", options().model, "--workers", "0", "--quiet", "--output", "out"]
    with pytest.raises(SystemExit) as ended:
        main([*base, str(inputs)])
    assert ended.value.code == 3
    assert "7 images:" in capsys.readouterr().out
    main([*base[:-1], "good", str(inputs / "0.png")])  # no exit: status 0
    for wrong, words in (
        (["nowhere"], "nowhere does not exist"),
        ([str(inputs), "--allow", "lateral"], "unknown gate 'lateral'"),
        ([str(inputs), "--batch_size", "0"], "--batch_size must be at least 1"),
        ([str(inputs), "--device", "abacus"], "is not a device"),
    ):
        with pytest.raises(SystemExit) as ended:
            main([*base, *wrong])
        assert ended.value.code == 2
        assert words in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore")
def test_missing_dicom_results_have_their_reason_in_the_table(options, inputs, tmp_path, write_dicom):
    levels = np.asarray(Image.open(inputs / "0.png"))
    folder = tmp_path / "studies"
    folder.mkdir()
    shutil.copy(inputs / "0.png", folder / "a.png")
    write_dicom(folder / "b.dcm", levels, AccessionNumber="A" * 21)
    write_dicom(folder / "c.dcm", levels, StudyInstanceUID="")
    write_dicom(folder / "d.dcm", levels)
    summary = predict(options(paths=(str(folder),), dicom=True))
    found = rows(options().output)
    assert [(r[1], r[2]) for r in found] == [
        ("ok", "not_dicom"), ("ok", "identity_too_long"), ("ok", "invalid_uid"), ("ok", ""),
    ]  # fmt: skip
    assert all(r[3] for r in found)
    assert summary.rejected == 0
    assert summary.without_dicom == {"not_dicom": 1, "identity_too_long": 1, "invalid_uid": 1}
    words = "predicted without DICOM results: 1 identity_too_long, 1 invalid_uid, 1 not_dicom"
    assert words in summary.sentences()
    assert words[1:] in (tmp_path / "out" / "report" / "index.html").read_text()
    described = json.loads((tmp_path / "out" / "predictions.json").read_text())["predictions"]
    assert "AccessionNumber is longer than the 16 characters" in described[1]["note"]
    assert "StudyInstanceUID" in described[2]["note"]
    assert [p.name[:6] for p in sorted((tmp_path / "out" / "dicom").iterdir())] == ["000003"] * 4
    assert predict(options(paths=(str(folder),), dicom=True)).without_dicom == summary.without_dicom


@pytest.mark.filterwarnings("ignore")
def test_images_that_share_an_instance_uid_are_told_apart(options, inputs, tmp_path, write_dicom):
    pydicom = pytest.importorskip("pydicom")
    first, second = (np.asarray(Image.open(inputs / f"{n}.png")) for n in (0, 1))
    folder = tmp_path / "studies"
    folder.mkdir()
    write_dicom(folder / "a.dcm", first, SOPInstanceUID="1.2.3.4")
    shutil.copy(folder / "a.dcm", folder / "b.dcm")
    write_dicom(folder / "c.dcm", second, SOPInstanceUID="1.2.3.4")
    write_dicom(folder / "d.dcm", second, SOPInstanceUID="1.2.3.5")
    summary = predict(options(paths=(str(folder),), dicom=True, workers=1))
    assert (summary.repeated, summary.shared) == (1, 2)
    described = json.loads((tmp_path / "out" / "predictions.json").read_text())["predictions"]
    notes = [entry.get("note", "") for entry in described]
    assert str(folder / "c.dcm") in notes[0]
    assert "different image" in notes[0]
    assert str(folder / "a.dcm") in notes[1]
    assert "same objects" in notes[1]
    assert str(folder / "a.dcm") in notes[2]
    assert notes[3] == ""
    assert not {"instance", "results"} & {key for entry in described for key in entry}
    uids = [pydicom.dcmread(tmp_path / "out" / "dicom" / f"00000{n}-report.dcm").SOPInstanceUID for n in range(4)]
    assert uids[0] == uids[1]
    assert len(set(uids)) == 3
    page = (tmp_path / "out" / "report" / "index.html").read_text()
    assert "1 image repeats an earlier one" in page
    assert "2 images share their SOP Instance UID" in page


def test_dicom_without_highdicom_names_the_extra(options, monkeypatch):
    monkeypatch.setitem(sys.modules, "highdicom", None)
    monkeypatch.delitem(sys.modules, "monai_wscxr.report.dicom", raising=False)
    monkeypatch.delattr("monai_wscxr.report.dicom", raising=False)
    with pytest.raises(InputError, match=r"pip install 'monai-wscxr\[dicom\]'"):
        predict(options(dicom=True))


def test_model_of_another_reading_chain_is_refused(options, model_folder):
    description = json.loads((model_folder / "artefact.json").read_text())
    description["preprocessing"]["reader_chain"] = "1"
    (model_folder / "artefact.json").write_text(json.dumps(description))
    for workers in (0, 1):
        with pytest.raises(InputError, match="read by chain 1, but this installation reads with chain"):
            predict(options(workers=workers))


def test_gate_names_reach_the_help():
    from monai_wscxr.commands.main import create_parser

    text = (
        next(a for a in create_parser()._subparsers._actions if a.dest != "help" and a.choices)
        .choices["predict"]
        .format_help()
    )
    assert all(gate in re.sub(r"\s+", " ", text).replace("- ", "-") for gate in GATES)
