"""The plan: it scales as the work does, and its numbers are those of what it says."""

import json

import pytest
import torch

from monai_wscxr.commands import main as cli
from monai_wscxr.planning.plan import Plan, Stage, plan_training
from monai_wscxr.planning.timing import Cost, timed
from monai_wscxr.system.memory import available_memory, peak_memory, resident_memory


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plan")
    rows = torch.rand(4096, 16, generator=torch.Generator().manual_seed(0))

    def plan(count, memory):
        return {s.name: s for s in plan_training(count, 16, (4, 4), 64, memory, 1, sample=rows, folder=folder)}

    return plan(200_000, 10**12), plan(200_000, 1), plan(2_000_000, 10**12)


def test_stages_grow_with_the_bank(planned):
    small, _, large = planned
    for name in ("mining", "statistics", "training"):
        assert 2 < large[name].cpu_seconds / small[name].cpu_seconds < 50  # ten, but for what else runs here
        assert large[name].memory > small[name].memory
    grown = large["statistics"].memory - small["statistics"].memory
    assert grown == pytest.approx(1_800_000 * (16 * 4 + 8), abs=60e6)  # the bank and where its rows came from


def test_a_bank_on_disk_takes_disk_instead_of_memory(planned):
    inside, on_disk, _ = planned
    assert on_disk["statistics"].disk == 200_000 * 16 * 4
    assert inside["statistics"].disk == 0
    assert "passes" in on_disk["training"].note


def test_the_table_says_what_to_expect(planned):
    table = Plan(list(planned[0].values()), 200_000, 16, True).table()
    assert "a training, in nine of ten runs:" in table
    stages = [Stage("mining", 100.0, 100.0, 10**9), Stage("prediction", 1e6, 1e6, 1)]
    low, high = Plan(stages, 1, 1, True).expected("seconds")
    assert low < 100 < high < 1000  # predictions are no part of a training


def test_calibration_leaves_nothing(tmp_path):
    plan_training(1000, 8, (2, 2), 8, 1, 1, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_costs_are_medians_and_scale():
    cost = timed(lambda: sum(range(1000)), least=0.01)
    assert 0 <= cost.seconds < 1
    double = cost * 2 + Cost(1, 1)
    assert double.seconds == pytest.approx(2 * cost.seconds + 1)
    assert 0 < resident_memory() <= peak_memory()
    assert available_memory() > 10**8


def test_command_prints_every_stage(capsys):
    options = ["plan", "--images", "5000", "--image_size", "64", "--backbone", "timm/test_resnet", "--weights", "none"]
    cli.main([*options, "--json"])
    plan = json.loads(capsys.readouterr().out)
    names = [stage["name"] for stage in plan["stages"]]
    assert names == ["start", "reading", "network", "mining", "statistics", "training", "prediction"]
    assert plan["rows"] % 4250 == 0  # 15 % are held out
    assert all(stage["seconds"] >= 0 and stage["memory"] > 10**8 for stage in plan["stages"])
    assert plan["stages"][2]["disk"] == (5016 + 600) * 4 * plan["channels"] * plan["rows"] // 4250
    trained = [stage for stage in plan["stages"] if stage["name"] != "prediction"]
    for quantity in ("seconds", "cpu_seconds"):
        assert plan[quantity] == pytest.approx(sum(stage[quantity] for stage in trained))
    for part in (plan, *plan["stages"]):
        for quantity, (low, high) in part["expected"].items():
            assert low <= part[quantity] <= high
    assert plan["stages"][0]["cpu_seconds"] > 0
    assert plan["assumptions"]


def test_command_refuses_what_makes_no_training(capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["plan", "--images", "1"])
    assert "at least 2 normal images" in capsys.readouterr().err
