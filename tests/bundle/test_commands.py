"""`monai-wscxr train | evaluate | infer` do what the bundle does, without MONAI's messages and with plain progress."""

import json
import logging
import re
import signal
import warnings

import pytest

from monai_wscxr.commands.main import main
from tests.helpers.bundle_runs import SMALL

OPTIONS = [text for name, value in SMALL.items() for text in (f"--{name}", str(value).lower())]


@pytest.fixture(autouse=True)
def same_signals_and_loggers():
    """Restore what a run of the bundle changes in its process."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    levels = {name: logging.getLogger(name).level for name in ("monai.bundle.workflows",)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def test_train_and_evaluate_give_what_the_bundle_gives(trained, phantoms, tmp_path, capsys):
    places = ["--dataset_dir", str(phantoms), "--output_dir", str(tmp_path / "run")]
    main(["train", *places, *OPTIONS])
    main(["evaluate", *places, "--device", "cpu"])
    ours, theirs = (json.loads((f / "artefact.json").read_text()) for f in (tmp_path / "run", trained))
    assert ours["model_sha256"] == theirs["model_sha256"]
    assert ours["settings"] == theirs["settings"]
    ours, theirs = (json.loads((f / "metrics.json").read_text())["honest"] for f in (tmp_path / "run", trained))
    assert ours == theirs
    said = capsys.readouterr()
    assert re.search(r"INFO threshold .*; model ", said.out)
    assert "\r" not in said.err
    assert re.search(r"(?m)^evaluating: 8 of 8 images, \d", said.err)


def test_a_compared_method_and_a_component_by_name(phantoms, tmp_path):
    main([
        "train", "--config_file", "simplenet.yaml", "--dataset_dir", str(phantoms), "--output_dir", str(tmp_path / "run"),
        "--simplenet-epochs", "2", *OPTIONS, "--method#noise", "0.25",
    ])  # fmt: skip
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["method"] == "simplenet"
    assert metrics["settings"]["simplenet_epochs"] == 2


def test_a_run_prints_nothing_but_its_own_lines(trained, phantoms, tmp_path, capsys):
    places = [
        "--dataset_dir",
        str(phantoms / "test"),
        "--output_dir",
        str(trained),
        "--result_dir",
        str(tmp_path / "out"),
    ]
    records: list[logging.LogRecord] = []  # MONAI's own handlers write to the standard output of before the test
    handler = logging.Handler()
    handler.emit = records.append
    logging.getLogger("monai.bundle.workflows").addHandler(handler)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        main(["infer", *places, "--device", "cpu"])
    logging.getLogger("monai.bundle.workflows").removeHandler(handler)
    assert [record.getMessage() for record in records] == []
    said = capsys.readouterr()
    assert re.fullmatch(r"\d\d:\d\d:\d\d INFO 8 images, .* results in .*\n", said.out)
    assert re.fullmatch(r"inferring: 8 of 8 images, [\d:]+\n", said.err)
    assert [
        str(w.message) for w in caught if issubclass(w.category, UserWarning)
    ] == []  # MONAI warns that YAML is code


def test_an_error_of_a_component_is_one_sentence(phantoms, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(
            [
                "train",
                "--dataset_dir",
                str(phantoms),
                "--output_dir",
                str(tmp_path / "run"),
                *OPTIONS,
                "--backbone",
                "densnet121",
            ]
        )
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: unknown backbone 'densnet121'")
    assert said.count("\n") == 1
    assert not (tmp_path / "run").exists()
