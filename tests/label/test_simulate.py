"""A small simulation through the command, and one that is continued."""

import json
import re

import numpy as np
import pytest

from monai_wscxr.commands.main import main
from monai_wscxr.data.datalist import load_datalist
from monai_wscxr.errors import InputError
from monai_wscxr.label.simulate import split_archive
from monai_wscxr.label.simulation_figures import paired_difference
from monai_wscxr.label.workbench import Workbench

SMALL = ["--set", "image_size=64", "--set", "neighbourhood=3", "--set", "epochs=1", "--set", "min_batches=3"]
SMALL += ["--set", "backbone=timm/test_resnet", "--set", "device=cpu", "--set", "copies=0"]


def test_the_archive_holds_whole_patients_and_the_first_image_to_label(phantoms):
    training = load_datalist(phantoms)["training"]
    known, archive, first = split_archive(training, 8, 0)
    assert len(known) + len(archive) == len(training)
    assert {item["label"] for item in known} == {0}
    assert sum(item["label"] == 0 for item in archive) == 8
    assert not {item["patient"] for item in known} & {item["patient"] for item in archive if item["label"] == 0}
    assert first in archive
    assert first["label"] == 1
    assert split_archive(training[::-1], 8, 0) == (known, archive, first)
    assert split_archive(training, 8, 1) != (known, archive, first)
    with pytest.raises(InputError, match="archive_normal"):
        split_archive(training, 20, 0)


def test_a_simulation_runs_once_and_its_results_are_written(phantoms, weights, tmp_path, capsys, monkeypatch):
    rounds = ["--rounds", "1", "--per_round", "2", "--draws"]
    arguments = ["simulate", str(phantoms), str(tmp_path), *SMALL, "--set", f"weights={weights}", *rounds, "1"]
    main(arguments)
    shown = capsys.readouterr().out
    assert shown.startswith("| round | labelled | varied")
    assert "`monai-wscxr simulate" in shown
    assert shown.rstrip("\n") == (tmp_path / "results.md").read_text().rstrip("\n")
    record = json.loads((tmp_path / "simulation.json").read_text())
    assert set(record["rounds"]) == {"varied-0", "most_suspicious-0", "random-0"}
    for rounds in record["rounds"].values():
        assert [row["labelled"] for row in rounds] == [1, 3]
        assert all(0 <= row["auroc"] <= 1 for row in rounds)
    # all strategies start from the same split and the same first label
    assert len({rounds[0]["auroc"] for rounds in record["rounds"].values()}) == 1
    assert "<svg" in (tmp_path / "results.svg").read_text()

    record["rounds"]["random-0"][1]["auroc"] = 0.125  # a finished run is not simulated again
    (tmp_path / "simulation.json").write_text(json.dumps(record))
    main(arguments)
    assert "0.125" in capsys.readouterr().out
    assert "minus that of random" not in shown  # one draw says nothing about chance
    # another draw of two strategies joins what is there
    main([*arguments[:-1], "2", "--strategies", "varied,random"])
    shown = capsys.readouterr().out
    assert "| 1 | 3 |" in shown
    assert re.search(r"\| round \| varied \|\n\|---\|---\|\n\| 0 \| \+0\.000 \(\+0\.000 to \+0\.000\) \|", shown)
    again = json.loads((tmp_path / "simulation.json").read_text())
    assert set(again["rounds"]) == {"varied-0", "most_suspicious-0", "random-0", "varied-1", "random-1"}
    assert again["rounds"]["random-0"] == record["rounds"]["random-0"]
    assert "minus that of random" in (tmp_path / "differences.svg").read_text()
    # with every second round measured, labelling at random trains for these alone; with fewer rounds a run is simulated again
    trained = []
    train = Workbench.train
    monkeypatch.setattr(Workbench, "train", lambda bench: trained.append(bench) or train(bench))
    folder = tmp_path / "sparse"
    sparse = ["simulate", str(phantoms), str(folder), *arguments[3:-6], "--strategies", "varied,random", "--draws", "1"]
    main([*sparse, "--rounds", "2", "--every", "2"])
    assert "\n| 1 | " not in capsys.readouterr().out
    rounds = json.loads((folder / "simulation.json").read_text())["rounds"]
    assert [row["round"] for row in rounds["random-0"]] == [row["round"] for row in rounds["varied-0"]] == [0, 2]
    assert [row["labelled"] for row in rounds["random-0"]] == [1, 3]
    assert len(trained) == 2 + 3
    main([*sparse, "--rounds", "2", "--strategies", "random"])
    again = json.loads((folder / "simulation.json").read_text())["rounds"]["random-0"]
    assert [row["auroc"] for row in again if row["round"] != 1] == [row["auroc"] for row in rounds["random-0"]]
    assert len(again) == 3
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "--set", "epochs=2"])
    assert stopped.value.code == 2
    assert "other settings" in capsys.readouterr().err


def test_paired_differences_have_the_interval_of_student():
    base = np.array([[0.5, 0.60], [0.7, 0.70], [0.6, 0.65]])
    mean, low, high = paired_difference(base + np.array([[0.01], [0.02], [0.03]]), base)
    assert mean == pytest.approx([0.02, 0.02])
    half = 4.302653 * 0.01 / 3**0.5  # quantile 0.975 of t with two degrees of freedom
    assert high - mean == pytest.approx([half, half])
    assert mean - low == pytest.approx([half, half])
