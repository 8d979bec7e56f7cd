"""Wrong commands: each is answered with one sentence, and nothing is written."""

import json
import socket

import pytest

from monai_wscxr.commands.exit_status import UNUSABLE
from monai_wscxr.commands.main import create_parser, main, one_spelling
from monai_wscxr.errors import InputError
from monai_wscxr.training.configs import find_configs
from monai_wscxr.training.options import check_options

TRAIN = str(find_configs() / "train.yaml")


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
    ],
)  # fmt: skip
def test_a_wrong_command_is_answered_with_one_sentence(tmp_path, monkeypatch, capsys, command, answer):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "baseline").mkdir()
    (tmp_path / "baseline" / "settings.json").write_text(json.dumps({"method": "patchcore"}))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        words = {"OUT": str(tmp_path / "out"), "BASELINE": "baseline", "PORT": str(taken.getsockname()[1])}
        with pytest.raises(SystemExit) as ended:
            main([words.get(word, word) for word in command.split()])
    assert ended.value.code == UNUSABLE
    said = capsys.readouterr().err
    assert answer in said
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("run_id", "option", "value", "answer"),
    [
        ("training", "--k", "eight", "--k must be a whole number, for instance 8; got 'eight'"),
        ("training", "--retention", "abc", "--retention must be a number"),
        ("training", "--overwrite", "perhaps", "--overwrite must be true or False"),
        ("training", "--strict", "false", "write False"),
        ("trainning", "--k", "8", "nothing to run by the name trainning; it has training"),
    ],
)
def test_a_wrong_value_or_run_id_of_the_bundle(run_id, option, value, answer):
    with pytest.raises(InputError) as caught:
        check_options(["run", run_id, "--config_file", TRAIN, option, value])
    assert answer in str(caught.value)


def test_values_that_are_right_pass():
    check_options(["run", "training", "--config_file", TRAIN, "--k", "2", "--retention", "1", "--overwrite", "true"])
    check_options(["run", "--config_file", TRAIN, "--run_id", "training", "--seed", "$1 + 1", "--strict", "False"])


def test_hyphens_and_underscores_are_the_same_option():
    given = ["phantom", "a-b", "--train-normal=3", "--no_x", "--no-x", "--", "--a-b"]
    assert one_spelling(given) == ["phantom", "a-b", "--train_normal=3", "--no-x", "--no-x", "--", "--a-b"]
    assert create_parser().parse_args(one_spelling(["phantom", "d", "--train-normal", "3"])).train_normal == 3
