"""Training through the bundle: what it leaves, that it repeats, continues and spreads over processes exactly."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from ignite.engine import Events
from safetensors import safe_open

from monai_wscxr.bank.cache import cache_root
from monai_wscxr.bank.feature_bank import BankOnDisk
from monai_wscxr.model.artefact import load_model
from tests.helpers.bundle_runs import CONFIGS, SMALL, run, workflow


def artefact(folder):
    return json.loads((folder / "artefact.json").read_text())


def test_it_leaves_a_model_that_loads_and_says_how_it_was_made(trained, phantoms):
    described = artefact(trained)
    model = load_model(trained)
    assert model.sha256 == described["model_sha256"]
    assert described["settings"]["k"] == 1
    assert described["training"]["abnormal_images"] == {
        "consolidation": 1,
        "effusion": 1,
        "nodule": 1,
        "pneumothorax": 1,
    }
    assert described["training"]["normal_images"] + described["training"]["held_out_images"] == 20
    assert set(described["training"]["seconds"]) == {"extraction", "mining", "training"}
    assert len(list((trained / "training").glob("epoch_*.pt"))) == 3
    # 64-pixel images give 2 x 2 patches; r = 0.5 of 4 images
    assert described["training"]["mined_patches"] == int(0.5 * 4 * 4)
    assert str(phantoms) not in json.dumps(described["training"])  # digests, no paths


def test_a_second_run_extracts_nothing_and_gives_the_same_model(trained, phantoms, tmp_path):
    again = run("train", phantoms, tmp_path / "again")
    done = again.parser.get_parsed_content("extractor").done
    assert (done.extracted, done.reused) == (0, 24)
    assert artefact(tmp_path / "again")["model_sha256"] == artefact(trained)["model_sha256"]


def test_another_seed_gives_another_model(trained, phantoms, tmp_path):
    run("train", phantoms, tmp_path / "other", seed=1)
    assert artefact(tmp_path / "other")["model_sha256"] != artefact(trained)["model_sha256"]


def test_a_bank_that_stays_on_disk_gives_the_same_model(trained, phantoms, tmp_path):
    streamed = workflow("train", phantoms, tmp_path / "streamed", bank_memory=1)
    streamed.run()
    banks = streamed.parser.get_parsed_content("train#trainer").state.banks
    assert isinstance(banks.normal, BankOnDisk)
    streamed.finalize()
    assert not hasattr(banks, "normal")  # the largest thing in memory is not kept to the end of the process
    assert not len(streamed.parser.get_parsed_content("train#dataset").rows)
    assert artefact(tmp_path / "streamed")["model_sha256"] == artefact(trained)["model_sha256"]


def test_without_a_cache_the_model_is_the_same(trained, phantoms, tmp_path):
    run("train", phantoms, tmp_path / "run", cache=False)
    assert artefact(tmp_path / "run")["model_sha256"] == artefact(trained)["model_sha256"]


@pytest.mark.parametrize("stop_after", [1, 3])
def test_an_interrupted_run_continues_to_the_same_model(trained, phantoms, tmp_path, stop_after):
    class StopError(Exception):
        pass

    def stop(engine):
        if engine.state.epoch == stop_after:
            raise StopError

    first = workflow("train", phantoms, tmp_path / "run")
    first.parser.get_parsed_content("train#trainer").add_event_handler(Events.EPOCH_COMPLETED, stop)
    with pytest.raises(RuntimeError) as caught:
        first.run()
    assert isinstance(caught.value.__cause__, StopError)
    assert not (tmp_path / "run" / "artefact.json").exists()
    second = run("train", phantoms, tmp_path / "run")
    trainer = second.parser.get_parsed_content("train#trainer")
    assert trainer.state.epoch == 3
    assert artefact(tmp_path / "run")["model_sha256"] == artefact(trained)["model_sha256"]


def test_two_processes_train_what_one_does(trained, phantoms, tmp_path):
    both = f"['{CONFIGS}/train.yaml','{CONFIGS}/multi_gpu_train.yaml']"
    options = {key: value for key, value in SMALL.items() if key != "device"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["-m", "monai.bundle", "run", "training", "--config_file", both]
    command += ["--dataset_dir", str(phantoms), "--output_dir", str(tmp_path / "run")]
    command += [text for key, value in options.items() for text in (f"--{key}", str(value))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    one, two = load_model(trained), load_model(tmp_path / "run")
    for key, value in one.network.state_dict().items():
        torch.testing.assert_close(two.network.state_dict()[key], value, rtol=1e-4, atol=1e-6)
    assert two.calibration.normal_scores == pytest.approx(one.calibration.normal_scores, abs=1e-4)


def test_a_run_without_the_compiled_extension_gives_the_same_numbers(trained, phantoms, tmp_path):
    overrides = {**SMALL, "dataset_dir": str(phantoms), "output_dir": str(tmp_path / "run")}
    script = f"""
import sys
sys.modules["monai_wscxr._C"] = sys.modules["monai_wscxr._C_cuda"] = None
from monai.bundle import run
run("training", config_file={str(CONFIGS / "train.yaml")!r}, **{overrides!r})
from monai_wscxr import ops
assert ops.EXTENSION is None
assert all(ops.backend(name).name == "reference" for name in ops.OPERATORS)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert artefact(tmp_path / "run")["model_sha256"] == artefact(trained)["model_sha256"]


def test_the_cache_holds_no_path_and_no_name(trained, phantoms):
    shards = list(cache_root().rglob("*.safetensors"))
    assert shards
    for path in shards:
        with safe_open(path, framework="pt") as shard:
            assert "phantom" not in json.dumps(shard.metadata())
    for path in cache_root().rglob("settings.json"):
        assert "train" not in path.read_text()


def test_a_deeper_discriminator_and_other_layers_train_and_load(phantoms, tmp_path):
    run("train", phantoms, tmp_path / "run", depth=2, width=16, layers=["3"], align_to="finest", retention=1.0)
    described = artefact(tmp_path / "run")
    assert described["discriminator"] == {"depth": 2, "width": 16, "bias": True}
    assert described["backbone"]["layers"] == ["3"]
    assert described["training"]["mined_patches"] == 4 * 4 * 4
    run("evaluate", phantoms, tmp_path / "run")
    assert (tmp_path / "run" / "metrics.json").exists()


def test_the_papers_backbone_trains_from_a_local_weights_file(phantoms, tmp_path):
    import torchvision

    weights = tmp_path / "densenet121.pth"
    torch.manual_seed(0)
    torch.save(torchvision.models.densenet121(weights=None).state_dict(), weights)
    run("train", phantoms, tmp_path / "run", backbone="densenet121", weights=str(weights), epochs=1)
    assert artefact(tmp_path / "run")["backbone"]["name"] == "densenet121"
    weights.unlink()  # the model carries its weights
    assert load_model(tmp_path / "run").network.features.channels == 1024


def test_unreadable_images_are_listed_and_the_run_goes_on(phantoms, tmp_path, capsys):
    data = tmp_path / "data"
    shutil.copytree(phantoms, data)
    broken = sorted((data / "train" / "normal").glob("*.png"))[3]
    broken.write_bytes(broken.read_bytes()[:200])
    run("train", data, tmp_path / "run", max_bad_share=0.2)
    rejected = artefact(tmp_path / "run")["training"]["rejected"]
    assert [code for code, _ in rejected] == ["unreadable"]
    assert broken.name not in json.dumps(artefact(tmp_path / "run"))  # the artefact names no file; the log does
    assert f"rejected (unreadable): {broken}: " in capsys.readouterr().out


def test_tensorboard_gets_the_loss_when_asked(phantoms, tmp_path):
    pytest.importorskip("tensorboard")
    run("train", phantoms, tmp_path / "run", tensorboard=True)
    assert list((tmp_path / "run" / "tensorboard").glob("events.*"))


def test_validation_may_run_less_often_than_every_epoch(phantoms, tmp_path, capsys):
    run("train", phantoms, tmp_path / "run", val_interval=2)
    lines = [line for line in capsys.readouterr().out.splitlines() if " INFO epoch " in line]
    assert [("separation" in line) for line in lines] == [False, True, False]
    # the epochs that are kept are those and the last one, and the model does not depend on which are
    assert [p.name for p in sorted((tmp_path / "run" / "training").glob("*.pt"))] == ["epoch_0002.pt", "epoch_0003.pt"]
    run("train", phantoms, tmp_path / "every")
    assert artefact(tmp_path / "run")["model_sha256"] == artefact(tmp_path / "every")["model_sha256"]
