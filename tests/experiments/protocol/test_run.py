"""The protocol on a few phantoms: cells, files, resuming after a stop, and errors."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from monai.bundle import create_workflow

from monai_wscxr.commands.main import main
from monai_wscxr.data.datalist import load_datalist
from monai_wscxr.errors import InputError
from monai_wscxr.evaluation.localisation import localisation_metrics
from monai_wscxr.experiments.baselines.common import normal_split
from monai_wscxr.experiments.protocol import run as run_module
from monai_wscxr.experiments.protocol.cells import run_cell
from monai_wscxr.experiments.protocol.chart import chart
from monai_wscxr.experiments.protocol.methods import KINDS, METHODS, effort_options, parse_efforts, parse_methods
from monai_wscxr.experiments.protocol.run import grid, run_protocol
from monai_wscxr.model.artefact import load_model
from monai_wscxr.model.predictor import predict_files
from monai_wscxr.model.scores import anomaly_map
from monai_wscxr.training.configs import described_options, find_configs
from monai_wscxr.training.once import training_workflow

LABELLED = tuple(name for name, kind in KINDS.items() if kind.labelled)
NORMAL = tuple(name for name in METHODS if name not in LABELLED)

OPTIONS = {"image_size": 64, "epochs": 2, "min_batches": 3, "false_positive_rate": 0.3, "device": "cpu"}

# with the defaults the four patches of such small images have equal features, and the highest quarter is the maximum
HALF = {"score_share": 0.5, "neighbourhood": 1}


def protocol(phantoms, folder, table="table1", **changes):
    arguments = {"k": [1], "seeds": 1, "options": OPTIONS, "progress": False, "effort": "smoke"}
    datasets = phantoms if isinstance(phantoms, dict) else str(phantoms)
    return run_protocol(table, datasets, folder, **{**arguments, **changes})


@pytest.fixture(scope="module")
def table1(phantoms, tmp_path_factory):
    """Output folder of a table 1 with all methods in the effort "smoke", as anyone can run it on phantoms."""
    folder = tmp_path_factory.mktemp("table1") / "out"
    protocol(phantoms, folder, command="the command", methods=METHODS)
    return folder


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def cell_of(folder, name):
    """Result of a method's cell at k = 1 with seed 0."""
    k = "_k1" if KINDS[name].labelled else ""
    return json.loads((folder / "cells" / f"{name}{k}_s0.json").read_text())


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


def test_every_row_says_what_was_trained(table1, phantoms):
    table = {row["method"]: row for row in rows(table1 / "results.csv")}
    cells = {name: cell_of(table1, name) for name in METHODS}
    for name, cell in cells.items():
        trained = cell["training"]
        assert trained["images"] == 17 + 4 * KINDS[name].labelled, name  # 3 of the 20 normal phantoms are held out
        assert 0 <= trained["processor_seconds"] < 60
        assert trained["network"]
        assert trained["network"].startswith("frozen efficientnet_lite0") != KINDS[name].images
        assert trained["shortened"] == (effort_options(find_configs(), name, "smoke") != {} and name != "patchcore")
        assert table[name]["effort"] == "smoke"
        assert table[name]["network"] == trained["network"]
    assert [cells["simplenet"]["training"][unit] for unit in ("epochs", "steps")] == [1, 3]
    assert [cells["cutpaste"]["training"][unit] for unit in ("epochs", "steps")] == [0, 2]
    assert min(cells[name]["training"]["processor_seconds"] for name in ("wscxr", "cutpaste", "anatpaste")) > 0.01
    text = (table1 / "results.md").read_text()
    assert "| SimpleNet, smoke effort | - | frozen efficientnet_lite0, linear adaptor" in text
    assert "| 1 epoch, 3 steps | 17 | " in text
    assert "| PatchCore | - | frozen efficientnet_lite0, coreset of " in text


def test_maps_are_compared_with_masks(table1, phantoms):
    from monai_wscxr.data.masks import read_mask, resize_mask

    cells = {name: cell_of(table1, name) for name in METHODS}
    assert {name for name, cell in cells.items() if cell["pixel"]} == {
        *("wscxr", "patchcore", "simplenet", "squid", "ddad", "ddad_intra")
    }
    text = (table1 / "results.md").read_text()
    assert "## Localisation" in text
    assert "| SQUID, smoke effort (error of reconstruction, not evaluated in its publication) | - | " in text
    pixel = cells["patchcore"]["pixel"]
    assert f"| PatchCore | - | {pixel['pointing_game']:.3f} ({pixel['constant_map']['pointing_game']:.3f}) | " in text
    # the same from the images: distances to the nearest normal patch, upsampled and smoothed
    parser = training_workflow(
        str(phantoms), str(table1 / "unused"), OPTIONS, files=("train.yaml", "patchcore.yaml")
    ).parser
    extractor, method = parser.get_parsed_content("extractor"), parser.get_parsed_content("method")
    split = normal_split(str(phantoms), 0.15, 0)
    method.fit(extractor.bank(split.normal))
    bank = extractor.bank(split.test)
    distance = (
        torch.cdist(bank.rows.double(), method.bank.double()).min(1).values.reshape(len(bank.files), 1, *bank.grid)
    )
    maps = anomaly_map(distance.float(), (128, 128), 4.0 * 128 / 64)[:, 0]
    masks = [
        resize_mask(read_mask(item["mask"]), 128) if item["label"] else np.zeros((128, 128), bool)
        for item in split.test
    ]
    expected = localisation_metrics(masks, list(maps))
    for figure in ("auroc", "aupro", "percentile", "mirrored_percentile", "pointing_game"):
        assert pixel[figure] == pytest.approx(expected[figure], abs=1e-3), figure


def test_several_data_sets_stand_side_by_side(phantoms, tmp_path, monkeypatch):
    other = tmp_path / "other"
    shutil.copytree(phantoms, other)
    next(other.glob("test/normal/*.png")).unlink()
    words = f"--datasets one={phantoms},{other} --output_dir {tmp_path / 'out'}"
    words += " --methods nearest,discriminant --k 1,2 --seeds 1"
    words = ["protocol", "table1", *words.split(), "--image_size", "64", "--set", "false_positive_rate=0.3"]
    main(words)
    text = (tmp_path / "out" / "results.md").read_text()
    found = {name: rows(tmp_path / "out" / name / "summary.csv") for name in ("one", "other")}
    for key in (("nearest", "-"), ("discriminant", "1"), ("discriminant", "2")):
        figures = [
            next(
                float(row["mean"])
                for row in found[name]
                if (row["method"], row["k_per_class"], row["figure"]) == (*key, "auroc")
            )
            for name in ("one", "other")
        ]
        line = next(line for line in text.splitlines() if line.startswith(f"| {KINDS[key[0]].title} | {key[1]} |"))
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        assert [cells[2].split()[0], cells[5].split()[0]] == [f"{figure:.3f}" for figure in figures]
    assert "one: 24 to train from" in text.replace("**", "")
    assert "7 to test" in text
    monkeypatch.setattr(run_module, "run_cell", lambda *_: pytest.fail("a cell was run again"))
    main(words)


def test_names_of_data_sets_are_names_of_folders(phantoms, tmp_path, capsys):
    with pytest.raises(InputError, match="cannot be the name of a data set"):
        protocol({"../up": phantoms}, tmp_path / "out")
    for text, message in {"a=x,a=y": "a is there twice", "a=": "give NAME=DIR", "x,,y": "give NAME=DIR"}.items():
        with pytest.raises(SystemExit):
            main(["protocol", "table1", "--datasets", text, "--output_dir", str(tmp_path / "out")])
        assert message in capsys.readouterr().err


def test_efforts():
    efforts = parse_efforts("smoke, simplenet=paper")
    assert efforts["simplenet"] == "paper"
    assert {effort for name, effort in efforts.items() if name != "simplenet"} == {"smoke"}
    assert effort_options(find_configs(), "simplenet", "paper") == {"simplenet_epochs": 160}
    assert effort_options(find_configs(), "logistic", "paper") == {}
    assert parse_methods("patchcore,wscxr") == ["patchcore", "wscxr"]
    assert parse_methods("all") == list(METHODS)


@pytest.mark.parametrize("method", METHODS)
def test_efforts_set_options_that_the_configuration_has(method):
    file = find_configs() / KINDS[method].configuration
    known = {option.name: option.default for option in described_options(file)}
    efforts = [effort_options(find_configs(), method, effort) for effort in ("paper", "reduced", "smoke")]
    for options in efforts:
        assert set(options) <= set(known)
    own = [all(known[name] == value for name, value in options.items()) for options in efforts]
    assert own[0] or own[1]  # the file's own values are published or reduced ones


def test_a_cell_of_another_effort_is_not_taken(phantoms, tmp_path):
    protocol(phantoms, tmp_path / "out", methods=["nearest"], effort="smoke")
    with pytest.raises(InputError, match="with another effort"):
        protocol(phantoms, tmp_path / "out", methods=["nearest"], effort="paper")


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
    protocol(phantoms, tmp_path / "out", methods=["wscxr"], k=[0, 1])
    assert [row["k_per_class"] for row in rows(tmp_path / "out" / "results.csv")] == ["0", "1"]
    cell = json.loads((tmp_path / "out" / "cells" / "wscxr_k0_s0.json").read_text())
    assert min(cell["scores"]) > 0  # distances
    text = (tmp_path / "out" / "results.md").read_text()
    assert "| WSCXR, smoke effort | 0 |" in text
    assert "| WSCXR, smoke effort | 1 |" in text


def test_a_stopped_run_goes_on(phantoms, tmp_path, monkeypatch):
    ran = []

    def stop_at_the_third(experiment, cell):
        if len(ran) == 2:
            raise KeyboardInterrupt
        ran.append(cell.name)
        return run_cell(experiment, cell)

    monkeypatch.setattr(run_module, "run_cell", stop_at_the_third)
    methods = ["patchcore", "simplenet", "cutpaste_reduced"]
    with pytest.raises(KeyboardInterrupt):
        protocol(phantoms, tmp_path / "out", methods=methods)
    assert {path.stem for path in (tmp_path / "out" / "cells").iterdir()} == set(ran)

    def count(experiment, cell):
        ran.append(cell.name)
        return run_cell(experiment, cell)

    monkeypatch.setattr(run_module, "run_cell", count)
    protocol(phantoms, tmp_path / "out", methods=methods)
    assert ran == ["patchcore_s0", "simplenet_s0", "cutpaste_reduced_s0"]


def test_results_of_two_protocols_are_never_mixed(table1, phantoms):
    with pytest.raises(InputError, match="another options"):
        protocol(phantoms, table1, options={**OPTIONS, "epochs": 3})


def test_a_damaged_cell_is_named(phantoms, tmp_path):
    path = tmp_path / "out" / "cells" / "patchcore_s0.json"
    path.parent.mkdir(parents=True)
    path.write_text("{")
    with pytest.raises(InputError, match=r"patchcore_s0\.json is damaged"):
        protocol(phantoms, tmp_path / "out", methods=["patchcore"])


def test_wscxr_scores_are_those_of_the_trained_model(phantoms, tmp_path):
    protocol(phantoms, tmp_path / "out", methods=["wscxr"], options={**OPTIONS, **HALF}, keep_runs=True)
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
        options = {**OPTIONS, **changes}
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
    drawn = chart({("wscxr", 1): perfect, ("patchcore", None): perfect}, {"wscxr": "WSCXR", "patchcore": "PatchCore"})
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
        ({"effort": "quick"}, "unknown effort 'quick'; the efforts are paper, reduced, smoke"),
        ({"effort": "reduced,simplnet=paper"}, "unknown method 'simplnet'"),
        ({"effort": "simplenet=paper"}, "give one effort for all methods"),
        ({"effort": "paper,smoke"}, "give one effort for all methods"),
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
