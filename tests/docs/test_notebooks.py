"""The notebooks run from the first cell to the last, on phantoms, and are stored with outputs of the same kinds."""

import copy
import importlib.util
import json
import math
import tempfile

import pytest

from tests.helpers.pages import ROOT

FOLDER = ROOT / "docs" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
SPEC = importlib.util.spec_from_file_location("execute_notebooks", FOLDER / "execute.py")
execute_notebooks = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(execute_notebooks)


def check_first_model(names, text):
    assert names["figures"]["auroc"] > 0.6  # a real model, if a small one
    assert names["highest"].abnormal
    assert "# WSCXR chest X-ray anomaly detection: model card" in text
    assert "no_contrast" in text  # why the empty picture is rejected


def check_compare_methods(names, text):
    rows = [row for row in names["rows"] if (row["rules"], row["figure"]) == ("honest", "auroc")]
    assert {(row["method"], row["k_per_class"]) for row in rows} == {("wscxr", "1"), ("wscxr", "4"), ("patchcore", "-")}
    assert all(float(row["mean"]) > 0.6 for row in rows)
    assert "no regions" in text


def check_dicom(names, text):
    assert names["lateral"].reason == "lateral_view"
    assert math.isfinite(names["frontal"].score)
    assert {path.name.rpartition("-")[2] for path in names["written"]} == {
        "overlay.dcm",
        "map.dcm",
        "regions.dcm",
        "report.dcm",
    }
    assert (
        f"{names['frontal'].score:.3g}" in text.rpartition("report.dcm")[2]
    )  # the report holds the score of the session


def check_label_and_share(names, text):
    assert names["figures"]["auroc"] > 0.6
    assert names["result"].score == pytest.approx(
        names["second"].predict(names["archive"][names["order"][0]]).score, abs=1e-5
    )
    assert "patch scores: (1, 1, 3, 3)" in text
    assert "wscxr_phantoms/configs/inference.yaml" in text


CHECKS = {path.stem: globals()[f"check_{path.stem}"] for path in NOTEBOOKS}


def kinds(notebook):
    """Return the kinds of the outputs of each code cell: what was printed, and the types of values."""
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return [[sorted(output.get("data", [output["output_type"]])) for output in cell["outputs"]] for cell in cells]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_its_stored_outputs_are_those_of_a_run(path, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    stored = json.loads(path.read_text(encoding="utf-8"))
    fresh = copy.deepcopy(stored)
    names = execute_notebooks.execute(fresh)
    printed = [output.get("text", []) for cell in fresh["cells"] for output in cell.get("outputs", [])]
    values = [
        output.get("data", {}).get("text/plain", []) for cell in fresh["cells"] for output in cell.get("outputs", [])
    ]
    CHECKS[path.stem](names, "".join(line for text in [*printed, *values] for line in text))
    assert kinds(stored) == kinds(fresh)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_stored_notebook_is_valid_small_and_names_no_folder(path):
    text = path.read_text(encoding="utf-8")
    notebook = json.loads(text)
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    assert len(text) < 100_000
    assert tempfile.gettempdir() not in text
    assert str(ROOT) not in text
    counts = [cell["execution_count"] for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert counts == list(range(1, len(counts) + 1))
