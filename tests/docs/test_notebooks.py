"""The notebooks run from the first cell to the last, on phantoms, and are stored without results."""

import ast
import json
import tempfile

import pytest

from tests.helpers.pages import ROOT

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


def code_of(notebook):
    """Code of the cells, in order; plain Python, so that no kernel is needed to run it."""
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_runs(path, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    names: dict = {}
    shown = []
    for number, cell in enumerate(code_of(json.loads(path.read_text(encoding="utf-8")))):
        tree = ast.parse(cell, f"{path.name}, cell {number}")
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, tree.__class__.__name__, "exec"), names)
        if last is not None:
            shown.append(eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), names))
    assert names["figures"]["auroc"] > 0.6  # a real model, if a small one
    assert names["highest"].abnormal
    assert any(getattr(value, "size", None) == (96, 96) for value in shown)  # the picture of `plot`
    assert [value[2] != "" for value in shown if isinstance(value, tuple)] == [
        True
    ]  # an empty picture is rejected with a reason
    assert "# WSCXR chest X-ray anomaly detection: model card" in capsys.readouterr().out


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_is_stored_without_results(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
