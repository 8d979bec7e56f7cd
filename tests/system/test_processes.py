"""Two and four processes give the bank, the mined bank and the model of one; when a process dies, the others end."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from monai_wscxr.errors import InputError, find_input_error
from monai_wscxr.ops import min_distance
from monai_wscxr.system import processes
from monai_wscxr.training.start import show_input_errors_plainly
from tests.helpers.ranks import KINDS, banks

ROOT = Path(__file__).parents[2]


def ranks(case, world, folder, timeout=300, gpu=False):
    """Run a case, over gloo or over NCCL with a GPU for each rank; return exit statuses and output of its ranks."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "tests.helpers.ranks", case, str(world), str(folder)]
    environment = {**os.environ, **({} if gpu else {"CUDA_VISIBLE_DEVICES": ""})}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=timeout, check=False, env=environment, cwd=ROOT
    )
    assert "statuses" in done.stdout, done.stdout + done.stderr
    return json.loads(done.stdout.rpartition("statuses")[2]), done.stdout + done.stderr


def found(folder, world):
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world)]


@pytest.mark.parametrize("world", [2, 4])
def test_sharded_search_is_that_of_one_process(tmp_path, world):
    check_search(tmp_path, world)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 1, reason="needs a CUDA device")
def test_sharded_search_over_nccl_is_that_of_one_process(tmp_path):
    check_search(tmp_path, torch.cuda.device_count(), gpu=True)


def check_search(tmp_path, world, gpu=False):
    statuses, output = ranks("search", world, tmp_path, gpu=gpu)
    assert statuses == [0] * world, output
    for result in found(tmp_path, world):
        for kind in KINDS:
            distance, index = min_distance(*banks(kind))
            for name in (kind, f"{kind} in a file"):
                assert torch.equal(result[name][0], distance), name
                assert torch.equal(result[name][1], index), name


def test_the_test_data_have_near_ties():
    """Without them, the test above would also pass if distances were reduced after rounding."""
    query, bank = banks("float64")
    distance, index = min_distance(query, bank)
    assert bool((index >= 37).all())
    assert bool((index < 74).all())
    assert torch.equal(distance, min_distance(query, bank[:37])[0])


@pytest.fixture(scope="module")
def one(tmp_path_factory, phantoms):
    """Results of a training with one process."""
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "data").symlink_to(phantoms)
    statuses, output = ranks("training", 1, folder / "1")
    assert statuses == [0], output
    return found(folder / "1", 1)[0], folder


@pytest.mark.parametrize("world", [2, 4])
def test_several_processes_train_what_one_does(one, world):
    alone, folder = one
    statuses, output = ranks("training", world, folder / str(world))
    assert statuses == [0] * world, output
    results = found(folder / str(world), world)
    assert (
        alone["forwarded"] == 24 + 3 * 17
    )  # the images; of each normal image in the bank two copies and one with an opacity
    passed = [r["forwarded"] for r in results]
    assert sum(passed) == alone["forwarded"]  # no image passed a network twice
    assert max(passed) - min(passed) <= 3  # the three copies of one image
    for result in results:
        assert torch.equal(result["rows"], alone["rows"])
        assert torch.equal(result["mined"], alone["mined"])
        assert result["origin"] == alone["origin"]
        assert torch.equal(result["distance"], alone["distance"])
        assert result["counts"] == alone["counts"] == (24, 0)
        for key, value in alone["state"].items():
            torch.testing.assert_close(result["state"][key], value, rtol=1e-4, atol=1e-6)
    for step, losses in enumerate(zip(*(r["losses"] for r in results), strict=True)):
        assert sum(losses) / world == pytest.approx(alone["losses"][step], rel=1e-4)
    states = [r["state"] for r in results]
    assert all(torch.equal(states[0][key], state[key]) for state in states for key in state)


def test_a_rank_that_dies_ends_the_others_with_a_sentence(one):
    _, folder = one
    statuses, output = ranks("dying", 2, folder / "dying", timeout=120)
    assert statuses == [3, -9], output
    message = (folder / "dying" / "0.txt").read_text()
    assert "process 0 of 2 waited for another one that has ended" in message
    assert "run the same command again" in message


def test_one_process_waits_for_nobody():
    assert processes.process_count() == 1
    assert processes.first_process()
    assert processes.row_share(7) == (0, 7)
    assert processes.share([1, 2, 3]) == [1, 2, 3]
    assert processes.from_first("value") == "value"
    processes.wait_for_all()
    assert processes.lost_process(RuntimeError("Connection closed by peer")) is None


def test_other_errors_of_a_step_stay_what_they_are():
    def step():
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit") as caught:
        processes.together(step)
    assert find_input_error(caught.value) is None


def test_joining_without_torchrun_is_refused(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    with pytest.raises(InputError, match="start it with torchrun"):
        processes.join_processes()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    with pytest.raises(InputError, match="more than 0 minutes"):
        processes.join_processes(0)


def test_an_explanation_replaces_the_stack_trace(monkeypatch, capsys):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    show_input_errors_plainly(lambda error: InputError("a peer is gone"))
    sys.excepthook(RuntimeError, RuntimeError("gloo"), None)
    assert capsys.readouterr().err == "\nerror: a peer is gone\n"
