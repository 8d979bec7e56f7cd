"""A training on the command line that is told to stop, or that finds another one at work."""

import json
import signal
import subprocess
import sys
import time

import pytest

from monai_wscxr.errors import find_input_error
from monai_wscxr.system.signals import STOPPED
from tests.helpers.bundle_runs import CONFIGS, SMALL, run, workflow

LONG = {**SMALL, "epochs": 30, "min_batches": 60}


@pytest.fixture(scope="module")
def undisturbed(phantoms, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    run("train", phantoms, folder, **LONG)
    return json.loads((folder / "artefact.json").read_text())["model_sha256"]


@pytest.fixture
def training(phantoms, tmp_path):
    """A training process that has finished its first epoch, and its output folder."""
    command = [sys.executable, "-m", "monai.bundle", "run", "training", "--config_file", str(CONFIGS / "train.yaml")]
    command += ["--dataset_dir", str(phantoms), "--output_dir", str(tmp_path / "a run")]
    command += [text for key, value in LONG.items() for text in (f"--{key}", str(value))]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    folder = tmp_path / "a run"
    while not (folder / "training" / "epoch_0001.pt").exists() and process.poll() is None:
        time.sleep(0.01)
    yield process, folder
    process.kill()
    process.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_cleanly_and_the_printed_command_goes_on(training, phantoms, undisturbed, number):
    process, folder = training
    # while it is there, nobody else may write
    with pytest.raises(RuntimeError) as caught:
        workflow("train", phantoms, folder, **LONG)
    assert f"(process {process.pid} on " in str(find_input_error(caught.value))
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == STOPPED == 75, output
    assert f"stopped by {number.name}" in output
    assert "Traceback" not in output
    assert not list(folder.rglob("*.partial"))
    assert not (folder / "artefact.json").exists()
    if number == signal.SIGINT:  # once is enough for the long way
        return
    command = output.partition("Resume with:\n")[2].strip()
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "continuing after epoch" in done.stdout + done.stderr
    assert json.loads((folder / "artefact.json").read_text())["model_sha256"] == undisturbed


def test_training_starts_again_when_the_images_have_changed(phantoms, tmp_path):
    import shutil

    from ignite.engine import Events

    class StopError(Exception):
        pass

    def stop(engine):
        raise StopError

    data, folder = tmp_path / "data", tmp_path / "run"
    shutil.copytree(phantoms, data)
    first = workflow("train", data, folder)
    first.parser.get_parsed_content("train#trainer").add_event_handler(Events.EPOCH_COMPLETED, stop)
    with pytest.raises(RuntimeError):
        first.run()
    sorted((data / "train" / "normal").glob("*.png"))[2].unlink()
    run("train", data, folder)
    run("train", data, tmp_path / "new")
    ours, new = (json.loads((f / "artefact.json").read_text()) for f in (folder, tmp_path / "new"))
    assert ours["model_sha256"] == new["model_sha256"]
