"""Wrong commands: each is answered with one sentence, and nothing is written."""

import argparse
import json
import socket
import subprocess
import sys

import pytest
from monai.bundle import ConfigParser

from monai_wscxr.commands.exit_status import UNUSABLE
from monai_wscxr.commands.main import create_parser, main, one_spelling
from monai_wscxr.errors import InputError
from monai_wscxr.training.configs import described_options, find_configs
from monai_wscxr.training.options import check_options
from tests.helpers.pages import ROOT, rows

TRAIN, PATCHCORE = (str(find_configs() / name) for name in ("train.yaml", "patchcore.yaml"))


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        ("predct x", "did you mean predict?"),
        ("predict x --model /nope --output OUT", "/nope holds no trained model"),
        ("predict x --model BASELINE --output OUT", "output of the compared method patchcore"),
        ("predict x --modell m --output OUT", "--model"),
        ("predict x --model m --output OUT --map tiff", "did you mean --maps"),
        ("predict x --model m --output OUT --maps tif", "did you mean tiff"),
        ("predict x --model m --output OUT --batch_size many", "invalid int value: 'many'"),
        ("predict x --model m --output OUT --batch_size 0", "--batch_size must be at least 1"),
        ("predict x --model m --output OUT --device tpu", "--device tpu is not a device"),
        ("predict", "the following arguments are required"),
        ("phantom OUT more", "'more' is one argument too many"),
        ("phantom OUT --train-norml 3", "did you mean --train_normal"),
        ("bank lst b", "did you mean list"),
        ("label . --port PORT", "choose another --port"),
        ("label . --port 70000", "--port must lie between"),
        ("protocol table3 --dataset_dir d --output_dir OUT", "did you mean table"),
        ("protocol table1 --dataset_dir d --output_dir OUT --k two", "give whole numbers separated by commas"),
        ("protocol table1 --dataset_dir d --output_dir OUT --set imagesize=256", "did you mean image_size"),
        ("label . --set imagesize=256", "did you mean image_size"),
        ("label . --set seed=3", "seed cannot be set for all trainings"),
        ("simulate d OUT --set imagesize=256", "did you mean image_size"),
        ("trian --dataset_dir d --output_dir OUT", "did you mean train?"),
        ("train --output_dir OUT", "the following arguments are required: --dataset_dir"),
        ("train --dataset_dir d --output_dir OUT --k eight", "--k: must be a whole number, got 'eight'"),
        ("train --dataset_dir d --output_dir OUT --retention abc", "--retention: must be a number, got 'abc'"),
        ("train --dataset_dir d --output_dir OUT --overwrite perhaps", "must be true or false, got 'perhaps'"),
        ("train --dataset_dir d --output_dir OUT --retentoin 0.3", "did you mean --retention"),
        ("train --dataset_dir d --output_dir OUT --train#trainer#epochs 3", "did you mean --train#trainer"),
        ("train --dataset_dir d --output_dir OUT --config_file", "--config_file: expected one argument"),
        ("train --dataset_dir d --output_dir OUT --config_file nope.yaml", "nope.yaml does not exist; the bundle has anat"),
        ("train --dataset_dir d --output_dir OUT --config_file BROKEN", "broken.yaml cannot be read"),
        ("train --dataset_dir d --output_dir OUT --config_file EMPTY", "empty.yaml holds no options"),
        ("train --dataset_dir d --output_dir OUT --coreset 0.2", "unknown option --coreset"),
        ("train --dataset_dir /nope --output_dir OUT", "--dataset_dir /nope does not exist"),
        ("train --dataset_dir . --output_dir OUT --device tpu", "--device tpu is not a device"),
        ("evaluate --dataset_dir . --output_dir /nope", "/nope holds no trained model"),
        ("infer --dataset_dir /nope --output_dir OUT", "--dataset_dir /nope does not exist"),
        ("infer --dataset_dir . --output_dir OUT --max_cases 3", "unknown option --max_cases"),
        ("card --model /nope", "/nope holds no trained model"),
        ("bundle pack --model m", "the following arguments are required: --output"),
    ],
)  # fmt: skip
def test_a_wrong_command_is_answered_with_one_sentence(tmp_path, monkeypatch, capsys, command, answer):
    monkeypatch.setattr("signal.signal", lambda *_: None)  # a run of the bundle would keep its handlers
    monkeypatch.chdir(tmp_path)
    (tmp_path / "baseline").mkdir()
    (tmp_path / "baseline" / "settings.json").write_text(json.dumps({"method": "patchcore"}))
    (tmp_path / "broken.yaml").write_text("k: [")
    (tmp_path / "empty.yaml").write_text("")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        words = {
            "OUT": str(tmp_path / "out"),
            "BASELINE": "baseline",
            "BROKEN": "broken.yaml",
            "EMPTY": "empty.yaml",
            "PORT": str(taken.getsockname()[1]),
        }
        with pytest.raises(SystemExit) as ended:
            main([words.get(word, word) for word in command.split()])
    assert ended.value.code == UNUSABLE
    said = capsys.readouterr().err
    assert answer in said
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("row", rows(ROOT / "docs" / "exit_codes.md", "Wrong commands"), ids=lambda row: row[0])
def test_the_table_of_wrong_commands(tmp_path, monkeypatch, capsys, row):
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(row[0].strip("`").split())
    assert ended.value.code == UNUSABLE
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    for part in row[1].split("…"):
        assert part in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("run_id", "option", "value", "answer"),
    [
        ("training", "--k", "eight", "--k must be a whole number, for instance 8; got 'eight'"),
        ("training", "--retention", "abc", "--retention must be a number"),
        ("training", "--overwrite", "perhaps", "--overwrite must be true or false"),
        ("trainning", "--k", "8", "nothing to run by the name trainning; it has training"),
    ],
)
def test_a_wrong_value_or_run_id_of_the_bundle(run_id, option, value, answer):
    with pytest.raises(InputError) as caught:
        check_options(["run", run_id, "--config_file", TRAIN, option, value])
    assert answer in str(caught.value)


def test_values_that_are_right_pass():
    run = ["run", "training", "--config_file", TRAIN]
    assert check_options([*run, "--k", "2", "--retention", "1", "--overwrite", "true"]) == {"overwrite": True}
    assert check_options([*run, "--progress", "FALSE", "--strict"]) == {"progress": False}
    assert check_options(["run", "--config_file", TRAIN, "--seed", "$1 + 1", "--strict", "False"]) == {"strict": False}


def test_a_word_for_false_is_false_in_the_whole_configuration():
    parser = ConfigParser({
        "progress": "false",
        "strict": "true",
        "start": ["$options.set_values({'progress': False, 'strict': True})", "$repr(@progress)"],
        "used": {"_target_": "dict", "shown": "@progress", "also": "$not @progress", "strict": "@strict"},
        "imports": ["$from monai_wscxr.training import options"],
    })  # fmt: skip
    assert parser.get_parsed_content("start")[1] == "False"
    assert parser.get_parsed_content("used") == {"shown": False, "also": True, "strict": True}


def test_hyphens_and_underscores_are_the_same_option():
    given = ["phantom", "a-b", "--train-normal=3", "--no_x", "--no-x", "--", "--a-b"]
    assert one_spelling(given) == ["phantom", "a-b", "--train_normal=3", "--no-x", "--no-x", "--", "--a-b"]
    assert create_parser().parse_args(one_spelling(["phantom", "d", "--train-normal", "3"])).train_normal == 3


def test_help_of_the_workflows_lists_every_option_with_its_default_and_imports_no_torch():
    code = (
        "import sys; from monai_wscxr.commands.main import main\n"
        "try: main(sys.argv[1:])\nfinally: print('torch' in sys.modules)"
    )
    command = ["train", "--config_file", "simplenet.yaml", "--help"]
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, check=True)
    said = " ".join(done.stdout.split())
    assert said.endswith("False")
    for option in described_options(find_configs() / "train.yaml"):
        assert f"--{option.name} " in said
        assert f"{option.comment} ({option.default_text})".removesuffix(" ()") in said
    assert "--simplenet_epochs N passes over the normal images, as published (40 times 4) (default: 160)" in said


def test_help_on_the_command_line_of_monai_lists_the_options(capsys):
    with pytest.raises(SystemExit) as ended:
        check_options(["run", "training", "--config_file", f"['{TRAIN}','{PATCHCORE}']", "--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert "--k                    abnormal images per class; 0: train on normal images alone, the score is" in said
    assert "distance to them (default: 8)" in said
    assert "--coreset" in said


@pytest.mark.parametrize(
    ("file", "option", "text", "value"),
    [
        ("train.yaml", "k", "3", 3),
        ("train.yaml", "retention", "1", 1.0),
        ("train.yaml", "overwrite", "True", True),
        ("train.yaml", "progress", "false", False),
        ("train.yaml", "allow", "lateral_view,not_upright", ["lateral_view", "not_upright"]),
        ("train.yaml", "allow", "['lateral_view']", ["lateral_view"]),
        ("train.yaml", "allow", "[]", []),
        ("train.yaml", "layers", "['3','4']", ["3", "4"]),
        ("train.yaml", "cache", "false", False),
        ("train.yaml", "cache", "/some/where", "/some/where"),
        ("train.yaml", "bank_memory", "1000", 1000),
        ("train.yaml", "backbone", "densenet121", "densenet121"),
        ("train.yaml", "seed", "$1 + 1", "$1 + 1"),
        ("train.yaml", "train#trainer#max_epochs", "3", 3),
        ("inference.yaml", "result_dir", "out", "out"),
    ],
)
def test_values_of_options(file, option, text, value):
    name = {"train.yaml": "train", "inference.yaml": "infer"}[file]
    given = one_spelling([name, "--dataset_dir", "d", "--output_dir", "o", f"--{option}", text])
    assert vars(create_parser().parse_args(given))[f"option {option}"] == value


def test_a_switch_needs_no_value():
    given = create_parser().parse_args(["train", "--dataset_dir", "d", "--output_dir", "o", "--overwrite"])
    assert vars(given)["option overwrite"] is True
    assert "option k" not in vars(given)  # the file keeps its defaults


def test_every_default_is_in_the_help():
    text = " ".join(label_parser().format_help().split())
    for shown in (
        "(default: 8000)",
        "(default: 127.0.0.1)",
        "(default: 64)",
        "(default: DX,CR)",
        "default: STUDIES/.wscxr",
    ):
        assert text.count(shown) == 1


def label_parser():
    action = next(a for a in create_parser()._actions if isinstance(a, argparse._SubParsersAction))
    return action.choices["label"]
