"""The protocol on a few phantoms: cells, files, resuming after a stop, and errors."""

import csv
import json
from pathlib import Path

import pytest
import torch
import torchvision
from monai.bundle import create_workflow

from monai_wscxr.commands.main import main
from monai_wscxr.data.datalist import load_datalist
from monai_wscxr.errors import InputError
from monai_wscxr.experiments.protocol import run as run_module
from monai_wscxr.experiments.protocol.cells import run_cell
from monai_wscxr.experiments.protocol.output import chart
from monai_wscxr.experiments.protocol.run import LABELLED, METHODS, grid, run_protocol
from monai_wscxr.model.artefact import load_model
from monai_wscxr.model.predictor import predict_files

NORMAL = tuple(method for method in METHODS if method not in LABELLED)

OPTIONS = {
    "image_size": 64,
    "epochs": 2,
    "min_batches": 3,
    "false_positive_rate": 0.3,
    "simplenet_epochs": 2,
    "steps": 20,
    "device": "cpu",
}
TABLE2 = {key: OPTIONS[key] for key in ("image_size", "epochs", "min_batches", "false_positive_rate", "device")}

# with the defaults the four patches of such small images have equal features, and the highest quarter is the maximum
HALF = {"score_share": 0.5, "neighbourhood": 1}


def protocol(phantoms, folder, table="table1", **changes):
    arguments = {"k": [1], "seeds": 1, "options": OPTIONS if table == "table1" else TABLE2, "progress": False}
    return run_protocol(table, str(phantoms), folder, **{**arguments, **changes})


@pytest.fixture(scope="module")
def table1(phantoms, tmp_path_factory):
    """Output folder of a small table 1."""
    folder = tmp_path_factory.mktemp("table1") / "out"
    protocol(phantoms, folder, command="the command")
    return folder


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_the_grid():
    names = [cell.name for cell in grid("table1", ["wscxr", "patchcore"], [4, 1, 4], 2)]
    assert names == ["wscxr_k1_s0", "wscxr_k4_s0", "patchcore_s0", "wscxr_k1_s1", "wscxr_k4_s1", "patchcore_s1"]
    assert [cell.name for cell in grid("table1", ["wscxr"], [1, 0], 1)] == ["wscxr_k0_s0", "wscxr_k1_s0"]
    names = [cell.name for cell in grid("table1", ["wscxr", "logistic", "nearest"], [1, 0], 1)]
    assert names == ["wscxr_k0_s0", "wscxr_k1_s0", "logistic_k1_s0", "nearest_s0"]
    ablation = grid("table2", ["wscxr"], [2], 1)
    assert [cell.name for cell in ablation] == [
        "wscxr_neither_k2_s0",
        "wscxr_mining_k2_s0",
        "wscxr_mixing_k2_s0",
        "wscxr_both_k2_s0",
    ]
    assert ablation[0].overrides == {"retention": 1, "alpha_min": 1, "alpha_max": 1}
    assert ablation[3].overrides == {}


def test_what_table1_leaves(table1):
    found = {(row["method"], row["k_per_class"]) for row in rows(table1 / "results.csv")}
    assert found == {(method, "1") for method in LABELLED} | {(method, "-") for method in NORMAL}
    text = (table1 / "results.md").read_text()
    assert "**per class**" in text
    assert "the command" in text
    assert "Honest" in text
    assert "optimistic" in text
    record = json.loads((table1 / "protocol.json").read_text())
    assert record["images"]["test"]["normal"] == 4
    assert set(record["packages"]) >= {"torch", "monai"}
    assert len(record["split"]) == 24
    assert (table1 / "results.svg").read_text().startswith("<svg")
    assert not (table1 / "runs").exists()
    summary = rows(table1 / "summary.csv")
    assert {row["rules"] for row in summary} == {"honest", "paper"}


def test_figures_by_finding(table1, phantoms):
    from sklearn.metrics import roc_auc_score

    items = load_datalist(str(phantoms))["test"]
    classes = {item["class"] for item in items if item["label"]}
    table = rows(table1 / "findings.csv")
    assert {(row["method"], row["finding"]) for row in table} == {
        (method, name) for method in (*LABELLED, *NORMAL) for name in classes
    }
    cell = json.loads((table1 / "cells" / "patchcore_s0.json").read_text())
    for name in classes:
        kept = [n for n, item in enumerate(items) if item["class"] in ("normal", name)]
        area = roc_auc_score([items[n]["label"] for n in kept], [cell["scores"][n] for n in kept])
        found = [cell["scores"][n] > cell["honest"]["threshold_95"] for n in kept if items[n]["label"]]
        [row] = [row for row in table if row["method"] == "patchcore" and row["finding"] == name]
        assert float(row["auroc"]) == pytest.approx(area, abs=1e-6)
        assert float(row["sensitivity_95"]) == pytest.approx(sum(found) / len(found), abs=1e-6)
        assert row["images"] == str(len(found))
        assert f"| {name} | {len(found)} | " in (table1 / "results.md").read_text()


def test_figures_follow_from_the_cells_scores(table1, phantoms):
    from sklearn.metrics import roc_auc_score

    labels = [0] * 4 + [1] * 4
    cell = json.loads((table1 / "cells" / "patchcore_s0.json").read_text())
    datalist = load_datalist(str(phantoms))
    assert sorted(item["label"] for item in datalist["test"]) == labels
    y = [item["label"] for item in datalist["test"]]
    assert cell["honest"]["auroc"] == pytest.approx(roc_auc_score(y, cell["scores"]))


def test_k_of_0_is_a_row_of_its_own(phantoms, tmp_path):
    protocol(phantoms, tmp_path / "out", methods=["wscxr"], k=[0, 1], options=TABLE2)
    assert [row["k_per_class"] for row in rows(tmp_path / "out" / "results.csv")] == ["0", "1"]
    cell = json.loads((tmp_path / "out" / "cells" / "wscxr_k0_s0.json").read_text())
    assert min(cell["scores"]) > 0  # distances
    text = (tmp_path / "out" / "results.md").read_text()
    assert "| WSCXR | 0 |" in text
    assert "| WSCXR | 1 |" in text


def test_a_stopped_run_goes_on(phantoms, tmp_path, monkeypatch):
    ran = []

    def stop_at_the_third(experiment, cell):
        if len(ran) == 2:
            raise KeyboardInterrupt
        ran.append(cell.name)
        return run_cell(experiment, cell)

    monkeypatch.setattr(run_module, "run_cell", stop_at_the_third)
    methods = ["patchcore", "simplenet", "cutpaste"]
    with pytest.raises(KeyboardInterrupt):
        protocol(phantoms, tmp_path / "out", methods=methods)
    assert {path.stem for path in (tmp_path / "out" / "cells").iterdir()} == set(ran)

    def count(experiment, cell):
        ran.append(cell.name)
        return run_cell(experiment, cell)

    monkeypatch.setattr(run_module, "run_cell", count)
    protocol(phantoms, tmp_path / "out", methods=methods)
    assert ran == ["patchcore_s0", "simplenet_s0", "cutpaste_s0"]


def test_results_of_two_protocols_are_never_mixed(table1, phantoms):
    with pytest.raises(InputError, match="another options"):
        protocol(phantoms, table1, options={**OPTIONS, "epochs": 3})


def test_a_damaged_cell_is_named(phantoms, tmp_path):
    path = tmp_path / "out" / "cells" / "patchcore_s0.json"
    path.parent.mkdir(parents=True)
    path.write_text("{")
    with pytest.raises(InputError, match=r"patchcore_s0\.json is damaged"):
        protocol(phantoms, tmp_path / "out", methods=["patchcore"], options=TABLE2)


def test_wscxr_scores_are_those_of_the_trained_model(phantoms, tmp_path):
    protocol(phantoms, tmp_path / "out", methods=["wscxr"], options={**TABLE2, **HALF}, keep_runs=True)
    cell = json.loads((tmp_path / "out" / "cells" / "wscxr_k1_s0.json").read_text())
    model = load_model(tmp_path / "out" / "runs" / "wscxr_k1_s0")
    files = [item["image"] for item in load_datalist(str(phantoms))["test"]]
    direct = [p.anomaly_score for p in predict_files(model, files)]
    assert cell["scores"] == pytest.approx(direct, abs=1e-4)
    assert cell["honest"]["threshold"] == model.calibration.threshold


def test_both_columns_are_those_of_the_bundles_own_evaluation(phantoms, tmp_path):
    """Scores from shared features give the metrics of the bundle's evaluation from files, all epochs included."""
    published = {"whiten": False, "distance_share": 0, "score_share": 0}
    for name, changes in {"new": HALF, "published": published}.items():
        options = {**TABLE2, **changes}
        protocol(phantoms, tmp_path / name, methods=["wscxr"], options=options, keep_runs=True)
        cell = json.loads((tmp_path / name / "cells" / "wscxr_k1_s0.json").read_text())
        folder = tmp_path / name / "runs" / "wscxr_k1_s0"
        configs = Path(__file__).parents[3] / "bundles" / "wscxr_chest_xray" / "configs"
        evaluation = create_workflow(
            config_file=str(configs / "evaluate.yaml"),
            workflow_type="infer",
            run_id="evaluating",
            dataset_dir=str(phantoms),
            output_dir=str(folder),
            device="cpu",
        )
        evaluation.run()
        evaluation.finalize()
        metrics = json.loads((folder / "metrics.json").read_text())
        for figure in ("auroc", "accuracy", "f1", "sensitivity", "specificity", "threshold"):
            assert cell["honest"][figure] == pytest.approx(metrics["honest"][figure]), figure
        for figure, value in metrics["paper"].items():
            assert cell["paper"][figure] == pytest.approx(value, abs=1e-5), figure


def test_a_chart_of_perfect_figures():
    perfect = {"honest": {"auroc": {"mean": 1.0, "sd": 0.0, "low": 1.0, "high": 1.0}}}
    drawn = chart({("wscxr", 1): perfect, ("patchcore", None): perfect})
    assert drawn.startswith("<svg")
    assert "nan" not in drawn


def test_table2_says_which_way_it_falls(phantoms, tmp_path):
    text = protocol(phantoms, tmp_path / "out", "table2").read_text()
    for name in ("neither", "mining only", "mixing only", "mining and mixing"):
        assert f"| {name} | 1 |" in text
    assert text.count("k = 1: mining and mixing") == 3
    assert any(word in text for word in (": higher", ": lower", ": not distinguishable"))


def test_densenet121_from_a_local_weights_file(phantoms, tmp_path):
    torch.manual_seed(0)
    torch.save(torchvision.models.densenet121(weights=None).state_dict(), tmp_path / "densenet121.pth")
    words = "--methods wscxr,patchcore --k 1 --seeds 1 --image_size 64 --device cpu --backbone densenet121"
    words += " --set epochs=1 --set min_batches=2 --set false_positive_rate=0.3"
    folders = ["--dataset_dir", str(phantoms), "--output_dir", str(tmp_path / "out")]
    main(["protocol", "table1", *folders, *words.split(), "--weights", str(tmp_path / "densenet121.pth")])
    record = json.loads((tmp_path / "out" / "protocol.json").read_text())
    assert record["options"]["backbone"] == "densenet121"
    assert "--backbone densenet121" in record["command"]
    assert len(rows(tmp_path / "out" / "results.csv")) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ["padim"]}, "unknown methods: padim"),
        ({"k": [-1]}, "k must be 0 or more in table1"),
        ({"table": "table2", "k": [0]}, "k must be 1 or more in table2"),
        ({"seeds": 0}, "seeds 1 or more"),
        ({"options": {"retantion": 1}}, "did you mean retention"),
        ({"options": {"seed": 1}}, "cannot be set for all trainings"),
        ({"bundle": "nowhere"}, "has no train.yaml"),
    ],
)
def test_what_is_refused(phantoms, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        protocol(phantoms, tmp_path / "out", **changes)


def test_there_must_be_a_test_part(phantoms, tmp_path):
    listing = {"training": [{"image": str(p), "label": 0} for p in Path(phantoms).glob("train/normal/*.png")]}
    (tmp_path / "list.json").write_text(json.dumps(listing))
    with pytest.raises(InputError, match="needs normal and abnormal test images"):
        protocol(tmp_path / "list.json", tmp_path / "out")


@pytest.mark.parametrize(
    ("arguments", "message"), [(["--k", "1,x"], "whole numbers"), (["--set", "epochs"], "OPTION=VALUE")]
)
def test_the_command_refuses_in_one_sentence(phantoms, tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit) as ended:
        main(["protocol", "table1", "--dataset_dir", str(phantoms), "--output_dir", str(tmp_path / "o"), *arguments])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
