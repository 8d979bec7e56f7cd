"""Examples run: those in docstrings, and the Python blocks of the pages."""

import doctest
import importlib
import re

import pytest

import monai_wscxr
from tests.helpers.bundle_runs import SMALL
from tests.helpers.pages import PAGES, ROOT, name

MODULES = sorted(
    path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
    for path in (ROOT / "monai_wscxr").rglob("*.py")
    if ">>>" in path.read_text(encoding="utf-8")
)
# blocks that need what the tests do not install: page -> why
NOT_RUN = {"docs/backbones.md": "downloads weights of torchxrayvision"}
BLOCKS = [
    (page, number, block)
    for page in PAGES
    for number, block in enumerate(re.findall(r"(?ms)^```python\n(.*?)^```", page.read_text(encoding="utf-8")))
]


@pytest.mark.parametrize("module", MODULES)
def test_examples_of_docstrings(module):
    loaded = importlib.import_module(module)
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    said: list[str] = []
    for test in doctest.DocTestFinder(exclude_empty=True).find(loaded, module):
        runner.run(test, out=said.append)
    tried = runner.summarize(verbose=False).attempted
    assert tried > 0
    assert said == []


def test_every_operator_has_an_example():
    assert {f"monai_wscxr.ops.{operator}" for operator in ("coreset", "min_distance", "mine_top_r", "mixup")} <= set(
        MODULES
    )


@pytest.mark.parametrize(
    ("page", "block"), [(p, b) for p, _, b in BLOCKS], ids=[f"{name(p)}-{n}" for p, n, _ in BLOCKS]
)
def test_python_of_the_pages(page, block, phantoms, tmp_path, monkeypatch):
    if name(page) in NOT_RUN:
        pytest.skip(NOT_RUN[name(page)])
    train = monai_wscxr.train
    monkeypatch.setattr(
        monai_wscxr, "train", lambda data, output, **options: train(data, output, **{**options, **SMALL}), raising=False
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / "DIR").symlink_to(phantoms)
    (tmp_path / "radiograph.dcm").symlink_to(next((phantoms / "test" / "normal").glob("*.png")))  # names do not matter
    exec(compile(block, name(page), "exec"), {"__name__": "__main__"})


def test_blocks_that_are_not_run_exist():
    assert set(NOT_RUN) <= {name(page) for page, _, _ in BLOCKS}
