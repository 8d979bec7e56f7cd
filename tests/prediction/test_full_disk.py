"""Full disks: `predict` and `bank add` end with one sentence that says how much is missing, and resume to the same result."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from monai_wscxr.bank.folder import BankFolder
from monai_wscxr.commands.main import main
from monai_wscxr.prediction.journal import NAME as JOURNAL
from tests.helpers.small_disks import small_disk

SHARES = (0.0, 0.03, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.97)  # of the room that the command needs
SENTENCE = re.compile(r"error: [^\n]*missing[^\n]*\n")


def tree(folder):
    """Read all files of a run but its journal, whose stamps and order may differ."""
    files = sorted(p for p in Path(folder).rglob("*") if p.is_file() and p.name != JOURNAL)
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def room(folder):
    """Return the bytes that the files of a folder take on a tmpfs."""
    return sum(-(-p.stat().st_size // 4096) * 4096 for p in Path(folder).rglob("*") if p.is_file())


def fails(arguments, capsys):
    """Run a command that must end with status 2 and a sentence that names the missing bytes; returns both."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([str(a) for a in arguments])
    printed = capsys.readouterr().err
    assert ended.value.code == 2, printed
    last = printed[printed.rindex("error: ") :]
    assert SENTENCE.fullmatch(last), printed
    assert "Traceback" not in printed
    amounts = re.findall(r"([\d.]+) [kM]B are missing", last)
    assert len(amounts) == 1, last
    assert float(amounts[0]) > 0, last
    number, unit = re.search(r"([\d.]+) ([kM])B are missing", last).groups()
    return last, float(number) * (1e3 if unit == "k" else 1e6)


@pytest.fixture
def studies(inputs, tmp_path, write_dicom):
    """Twelve images, half of them DICOM files."""
    folder = tmp_path / "studies"
    folder.mkdir()
    levels = np.asarray(Image.open(inputs / "0.png"))
    for number in range(6):
        write_dicom(folder / f"{number}.dcm", np.roll(levels, number), SOPInstanceUID=f"1.2.3.{number}")
        shutil.copy(inputs / f"{number % 3}.png", folder / f"p{number}.png")
    return folder


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("share", SHARES)
def test_predict_on_a_full_disk(model_folder, studies, tmp_path, capsys, monkeypatch, share):
    pytest.importorskip("highdicom", reason="the extra dicom is not installed")
    from monai_wscxr.prediction import run

    began = run.datetime.datetime(2026, 1, 2, 3, 4, 5)

    class Clock:  # the time of creation is part of DICOM results
        class datetime:  # noqa: N801
            now = staticmethod(lambda: began)

    monkeypatch.setattr(run, "datetime", Clock)
    command = ["predict", studies, "--model", model_folder, "--dicom", "--workers", "0", "--quiet", "--batch_size", "2"]
    command += ["--allow", "unlike_a_chest"]
    main([str(a) for a in [*command, "--output", tmp_path / "whole"]])
    needed = room(tmp_path / "whole")
    with small_disk(tmp_path / "disk", max(4096, int(share * needed) // 4096 * 4096)) as disk:
        output = disk.folder / "out"
        message, missing = fails([*command, "--output", output], capsys)
        assert str(output) in message
        wanted = needed - int(share * needed)
        assert wanted / 3 - 2e5 < missing < 3 * wanted + 2e5  # an estimate from what is known by then
        fails([*command, "--output", output], capsys)  # nothing has changed, so it fails again
        disk.resize(2 * needed)
        main([str(a) for a in [*command, "--output", output]])
        assert tree(output) == tree(tmp_path / "whole")


@pytest.mark.parametrize("share", SHARES)
def test_bank_add_on_a_full_disk(normal_items, tmp_path, capsys, monkeypatch, share):
    from monai_wscxr.commands import bank as command_module
    from monai_wscxr.features import backbones

    create, extractor_of = backbones.create_backbone, command_module.extractor_of

    def seeded(*arguments):
        torch.manual_seed(0)
        return create(*arguments)

    def small(options):
        extractor = extractor_of(options)
        extractor.shard_images = 3
        return extractor

    monkeypatch.setattr(backbones, "create_backbone", seeded)
    monkeypatch.setattr(command_module, "extractor_of", small)
    images = [item["image"] for item in normal_items[:12]]
    command = [
        "bank",
        "add",
        "BANK",
        *images,
        "--backbone",
        "timm/test_resnet",
        "--weights",
        "none",
        "--workers",
        "0",
        "--image_size",
        "64",
    ]

    def add(bank):
        return [bank if part == "BANK" else part for part in command]

    main([str(a) for a in add(tmp_path / "whole")])
    needed = room(tmp_path / "whole")
    expected = BankFolder(tmp_path / "whole").bank()
    with small_disk(tmp_path / "disk", max(4096, int(share * needed) // 4096 * 4096)) as disk:
        bank = disk.folder / "bank"
        fails(add(bank), capsys)
        kept = BankFolder(bank).digests() if (bank / "bank.json").exists() else []
        disk.resize(2 * needed)
        main([str(a) for a in add(bank)])
        assert BankFolder(bank).digests()[: len(kept)] == kept
        found = BankFolder(bank).bank()
        assert found.files == expected.files
        everything = torch.arange(len(expected))
        assert torch.equal(found.rows.gather(everything), expected.rows.gather(everything))
