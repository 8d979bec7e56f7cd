"""The commands `bank` and `check-precision`, run as from a shell."""

import argparse
import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from monai.bundle import ConfigParser

from monai_wscxr.bank.folder import BankFolder
from monai_wscxr.commands import bank as bank_command
from monai_wscxr.commands import main as cli
from monai_wscxr.commands.backbone_options import add_backbone_options
from monai_wscxr.data.radiograph.read import file_digest
from monai_wscxr.planning.precision import PrecisionCheck
from monai_wscxr.training.configs import find_configs

NETWORK = ["--backbone", "timm/test_resnet", "--weights", "none", "--image_size", "64"]
ADD = [*NETWORK, "--workers", "0"]  # reads in this process, which is quicker for a few files


@pytest.fixture(autouse=True)
def same_random_weights(monkeypatch):
    """Let every command of a test draw the same random weights for 'none'."""
    from monai_wscxr.features import backbones

    create = backbones.create_backbone

    def seeded(*args):
        torch.manual_seed(0)
        return create(*args)

    monkeypatch.setattr(backbones, "create_backbone", seeded)


def run(*arguments):
    cli.main([str(argument) for argument in arguments])


def test_a_bank_grows_shrinks_and_merges(tmp_path, normal_items, capsys):
    files = [item["image"] for item in normal_items]
    digests = [file_digest(file) for file in files]
    run("bank", "add", tmp_path / "a", *files[:5], *ADD)
    assert "5 images added, 0 were in the bank already" in capsys.readouterr().out
    run("bank", "add", tmp_path / "a", *files[3:7], *NETWORK)
    assert "2 images added, 5 were in the bank already" in capsys.readouterr().out
    run("bank", "add", tmp_path / "b", *files[6:9], *ADD)
    run("bank", "merge", tmp_path / "all", tmp_path / "a", tmp_path / "b")
    run("bank", "remove", tmp_path / "all", files[0], digests[8])
    run("bank", "compact", tmp_path / "all")
    capsys.readouterr()
    run("bank", "list", tmp_path / "all", "--digests")
    listed = capsys.readouterr().out
    assert "7 images" in listed
    assert sorted(listed.split()[-7:]) == sorted(digests[1:8])
    run("bank", "verify", tmp_path / "all")
    assert "shards are undamaged" in capsys.readouterr().out
    # the rows equal those of a bank to which the same images were added at once
    run("bank", "add", tmp_path / "once", *files[1:8], *ADD)
    merged, once = BankFolder(tmp_path / "all").bank(), BankFolder(tmp_path / "once").bank()
    order = torch.tensor([merged.files.index(name) for name in once.files])
    patches = len(merged) // 7
    rows = (order[:, None] * patches + torch.arange(patches)).flatten()
    assert torch.equal(merged.rows.gather(rows), once.rows.gather(torch.arange(len(once))))


def test_a_folder_gives_its_images_and_the_rest_is_counted(tmp_path, normal_items, capsys):
    folder = tmp_path / "in"
    (folder / ".git").mkdir(parents=True)
    for number, item in enumerate(normal_items[:3]):
        (folder / f"{number}.png").write_bytes(Path(item["image"]).read_bytes())
    (folder / "notes.txt").write_text("no image")
    (folder / "gone.png").symlink_to(tmp_path / "nowhere")
    run("bank", "add", tmp_path / "a", folder, *ADD, "--max_bad_share", "0.5")
    printed = capsys.readouterr()
    assert "3 images added, 0 were in the bank already" in printed.out
    assert "2 files or folders left out: 1 hidden, 1 not_an_image" in printed.err
    assert f"rejected (not_found): {folder / 'gone.png'}: No such file or directory" in printed.err


def test_damage_is_an_exit_status_and_is_dropped_when_asked(tmp_path, normal_items, capsys):
    run("bank", "add", tmp_path / "a", normal_items[0]["image"], *ADD)
    shard = next(Path(tmp_path / "a").glob("*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[-3] ^= 1
    shard.write_bytes(content)
    with pytest.raises(SystemExit, match="1"):
        run("bank", "verify", tmp_path / "a", "--drop")
    assert "the checksum of image 1 of 1 is wrong" in capsys.readouterr().out
    run("bank", "add", tmp_path / "a", normal_items[0]["image"], *ADD)
    run("bank", "verify", tmp_path / "a")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bank", "list", "nowhere"], "holds no bank"),
        (["bank", "remove", "BANK", "0000"], "nothing was removed"),
        (["bank", "add", "BANK", "nowhere.png", *ADD], "no file or folder nowhere.png"),
        (["bank", "add", "BANK", "IMAGE", *ADD, "--neighbourhood", "5"], "was made with other settings"),
        (["bank", "merge", "BANK", "BANK"], "not empty"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(tmp_path, normal_items, capsys, arguments, message):
    image, bank = normal_items[0]["image"], str(tmp_path / "a")
    run("bank", "add", bank, image, *ADD)
    arguments = [{"BANK": bank, "IMAGE": image}.get(argument, argument) for argument in arguments]
    with pytest.raises(SystemExit, match="2"):
        run(*arguments)
    assert message in capsys.readouterr().err


def test_precision_is_measured_and_refused_where_it_is_not_enough(phantoms, capsys):
    with pytest.raises(SystemExit, match="1"):
        run("check-precision", phantoms, *NETWORK, "--tolerance", "1e-9", "--json")
    found = json.loads(capsys.readouterr().out)
    assert not found["accepted"]
    assert "standard deviations of the normals' scores, allowed are 1e-09" in found["reasons"][0]
    assert 1e-5 < found["feature_error"] < 0.1
    assert 0 <= found["auroc"] <= 1
    assert 0 <= found["auroc_lower"] <= 1
    assert found["largest_change"] >= found["score_change"] > 0


def checked(**changes):
    """What a check found, in a case that is accepted."""
    values = {
        "precision": "bfloat16",
        "runtime": "torch 2",
        "feature_error": 0.5,  # decides nothing
        "whitened_error": 0.5,
        "score_change": 0.05,
        "largest_change": 0.2,
        "auroc": 0.9,
        "auroc_lower": 0.896,
        "speed": 1.5,
        "tolerance": 0.1,
        "auroc_tolerance": 0.005,
        "images": 20,
    }
    return PrecisionCheck(**{**values, **changes})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"score_change": 0.11}, "image scores change by 0.110"),
        ({"score_change": math.nan}, "image scores change by nan"),
        ({"auroc_lower": 0.894}, "the AUROC falls by 0.0060"),
        ({"speed": 0.9}, "it is not faster here"),
    ],
)
def test_scores_auroc_and_time_decide_about_a_precision(changes, reason):
    assert checked().accepted
    assert checked(auroc_lower=0.95).accepted
    (found,) = checked(**changes).reasons
    assert reason in found
    assert f"no: {found}" in checked(**changes).text()


def test_defaults_of_backbone_options_are_those_of_a_training():
    parser = argparse.ArgumentParser()
    add_backbone_options(parser)
    options = vars(parser.parse_args([]))
    configuration = ConfigParser.load_config_file(str(find_configs() / "train.yaml"))
    names = {"backbone", "weights", "layers", "neighbourhood", "align_to", "image_size", "runtime"}
    assert {name: options[name] for name in names} == {name: configuration[name] for name in names}


def broken(folder, count):
    """Write files that are no pictures, each with other bytes."""
    folder.mkdir()
    for number in range(count):
        (folder / f"broken{number}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes([number]))
    return folder


@pytest.fixture
def small_shards(monkeypatch):
    """Let banks be filled in shards of three images."""
    extractor_of = bank_command.extractor_of

    def small(options):
        extractor = extractor_of(options)
        extractor.shard_images = 3
        return extractor

    monkeypatch.setattr(bank_command, "extractor_of", small)


def test_unusable_images_are_counted_over_the_whole_command(tmp_path, normal_items, capsys, small_shards):
    """Two broken files in one shard of three are a tenth of the images, not two thirds."""
    good = [item["image"] for item in normal_items[:18]]
    folder = broken(tmp_path / "broken", 2)
    run("bank", "add", tmp_path / "a", folder, *good, *ADD, "--max_bad_share", "0.1")
    printed = capsys.readouterr()
    assert "18 images added" in printed.out
    assert printed.err.count("rejected (unreadable)") == 2


def test_unusable_images_of_all_shards_count_together(tmp_path, normal_items, capsys, small_shards):
    paths = [item["image"] for item in normal_items[:12]]
    for number, file in enumerate(sorted(broken(tmp_path / "broken", 3).iterdir())):
        paths.insert(4 * number, str(file))
    with pytest.raises(SystemExit) as ended:
        run("bank", "add", tmp_path / "a", *paths, *ADD, "--max_bad_share", "0.15")
    assert ended.value.code == 2
    assert "3 of 15 images cannot be used, more than the allowed share of 15%" in capsys.readouterr().err


def test_nothing_but_unusable_images_makes_no_bank(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        run("bank", "add", tmp_path / "a", broken(tmp_path / "b", 2), *ADD, "--max_bad_share", "1")
    assert ended.value.code == 2
    assert "none of the 2 images can be used; first: " in capsys.readouterr().err


def test_a_merge_without_room_says_so_before_it_copies_and_leaves_nothing(tmp_path, normal_items, capsys, monkeypatch):
    for name, part in (("a", normal_items[:2]), ("b", normal_items[2:4])):
        run("bank", "add", tmp_path / name, *[item["image"] for item in part], *ADD)
    capsys.readouterr()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=4096))
    with pytest.raises(SystemExit) as ended:
        run("bank", "merge", tmp_path / "all", tmp_path / "a", tmp_path / "b", "--dtype", "float16")
    assert ended.value.code == 2
    said = capsys.readouterr().err
    shards = [next((tmp_path / name).glob("*.safetensors")).stat().st_size for name in "ab"]
    needed = 2 * -(-(shards[0] / 2) // 4096) * 4096 + 6 * 4096
    assert f"{math.ceil(needed / 1e3)} kB are needed, 5 kB are free" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    monkeypatch.undo()


def test_a_merge_that_is_done_may_be_given_again_and_another_one_may_not(tmp_path, normal_items, capsys):
    for name, part in (("a", normal_items[:3]), ("b", normal_items[2:5]), ("c", normal_items[5:6])):
        run("bank", "add", tmp_path / name, *[item["image"] for item in part], *ADD)
    run("bank", "merge", tmp_path / "all", tmp_path / "a", tmp_path / "b")
    first = capsys.readouterr().out.splitlines()[-1]
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "all").iterdir()}
    run("bank", "merge", tmp_path / "all", tmp_path / "a", tmp_path / "b")  # killed before it could say so
    assert capsys.readouterr().out.splitlines() == [first]
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "all").iterdir()} == before
    for other in (["b", "a"], ["a", "b", "c"], ["a", "b", "--dtype", "float16"]):
        with pytest.raises(SystemExit):
            run("bank", "merge", tmp_path / "all", *[tmp_path / name if len(name) == 1 else name for name in other])
        assert "exists already and is not empty" in capsys.readouterr().err
