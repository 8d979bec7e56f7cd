"""The weekly report of the node: weeks, rates, drift, reasons, the command that adapts; as page, JSON and command."""

import datetime
import json
import re

import pytest
import torch

from monai_wscxr.commands.main import main
from monai_wscxr.errors import InputError
from monai_wscxr.model.artefact import load_model
from monai_wscxr.node.queue import Queue
from monai_wscxr.node.status import Status
from monai_wscxr.node.weekly import stored_rows, weekly
from monai_wscxr.report.weekly import weekly_page


@pytest.fixture(scope="module")
def trained(model):
    return load_model(model)


def rows_of(trained, day, count, flagged=0, shift=0.0, reasons=(), device="Digital One"):
    """Rows of images that arrived on a day of November 2026."""
    at = datetime.datetime(2026, 11, day, 12, tzinfo=datetime.timezone.utc).timestamp()
    generator = torch.Generator().manual_seed(day)
    normals = trained.drift.normals
    places = normals[torch.randint(len(normals), (count,), generator=generator)] + shift
    outcomes = [
        {"site_coordinates": place, "abnormal": n < flagged, "acquired": {"device": device, "view": "PA"}}
        for n, place in enumerate(places.tolist())
    ]
    rows = [{"received": at, "reason": "", "outcome": outcome} for outcome in outcomes]
    return rows + [{"received": at, "reason": code, "outcome": {}} for code in reasons]


def test_weeks_are_summed_up_and_the_latest_one_speaks(trained):
    rows = rows_of(trained, 18, 60, 20, reasons=["lateral_view"] * 3 + ["no_contrast"]) + rows_of(trained, 11, 40, 2)
    report = weekly(rows, trained)
    first, last = report.weeks
    assert (first.name, first.received, first.rate.scored, first.rate.verdict) == ("2026-W46", 40, 40, "within")
    assert (last.name, last.received, last.rate.flagged, last.rate.verdict) == ("2026-W47", 64, 20, "above")
    assert last.rate.low < 20 / 60 < last.rate.high
    assert dict(last.reasons) == {"lateral_view": 3, "no_contrast": 1}
    assert [week.drift.named for week in report.weeks] == [False, False]
    assert report.command is None
    assert "more than the operating point promises" in report.sentences()[0]
    assert report.promised == trained.calibration.supported_rate == 0.05
    assert [week.name for week in weekly(rows, trained, weeks=1).weeks] == ["2026-W47"]


def test_drift_is_named_by_week_and_device_with_the_command_that_adapts(trained):
    rows = rows_of(trained, 11, 40) + rows_of(trained, 18, 40, shift=3.0, device="Other <Two>")
    report = weekly(rows, trained)
    assert [week.drift.named for week in report.weeks] == [False, True]
    assert [(g.name, g.drift.named) for g in report.groups["device"]] == [("Digital One", False), ("Other <Two>", True)]
    assert report.command == f"monai-wscxr adapt --model {trained.folder} --normals DIR --output NEW"
    page = weekly_page(report, trained.colour_scale)
    assert f"<pre><code>{report.command}</code></pre>" in page
    assert "<Two>" not in page
    # a week with few images does not hide the drift of the one before
    late = weekly([*rows, *rows_of(trained, 25, 5)], trained)
    assert late.weeks[-1].drift.named is None
    assert late.command == report.command


def test_few_images_or_none_say_so(trained):
    assert weekly([], trained).sentences() == ["No image has been scored yet."]
    assert "No image has been scored yet." in weekly_page(weekly([], trained), trained.colour_scale)
    report = weekly(rows_of(trained, 18, 0, reasons=["crashed"]), trained)
    assert report.weeks[0].rate.to_dict()["flagged_share"] is None
    assert "no image scored" in report.sentences()[0]
    assert "takes 20 images" in report.sentences()[-1]
    weekly_page(report, trained.colour_scale)


@pytest.fixture
def queue(tmp_path, trained):
    """A queue of a running node that has scored 30 images unlike the normals, and refused one."""
    found = Queue(tmp_path / "queue")
    for number, row in enumerate(rows_of(trained, 18, 30, 9, shift=3.0, reasons=["lateral_view"])):
        file = found.incoming / "a.part"
        file.write_bytes(b"image")
        found.receive(f"1.2.{number}", file, str(number))
        [item] = found.to_score(1)
        found.scored(item, [], row["outcome"], row["reason"])
    yield found
    found.close()


def test_the_command_reads_the_queue_of_a_running_node(queue, model, tmp_path, capsys):
    arguments = ["node-report", "--folder", str(queue.folder), "--model", str(model), "--output", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 1
    lines = capsys.readouterr().out.splitlines()
    assert "30.0%" in lines[0]
    assert f"monai-wscxr adapt --model {model} --normals DIR --output NEW" in lines
    values = json.loads((tmp_path / "out" / "node_report.json").read_text())
    assert values["weeks"][-1]["reasons"] == {"lateral_view": 1}
    assert values["adapt"] in (tmp_path / "out" / "node_report.html").read_text()
    assert re.fullmatch(r"\d{4}-W\d\d", values["weeks"][-1]["week"])
    running = stored_rows(queue.folder)
    queue.close()
    assert stored_rows(queue.folder) == running  # and of one that has stopped
    assert len(running) == 31


def test_the_status_shows_the_report(queue, trained):
    more = {"archive_failures": 0, "rejected_associations": 0, "open_associations": 0}
    status = Status(queue, trained, lambda: more)
    assert 'href="/weekly"' in status.page()
    assert "lateral_view" in status.weekly_page()
    assert status.weekly().to_dict()["drift"] is True


def test_folders_that_hold_no_queue_are_refused(tmp_path, model, capsys):
    with pytest.raises(InputError, match="holds no queue"):
        stored_rows(tmp_path)
    (tmp_path / "queue.sqlite").write_text("something else, and long enough to be no database at all" * 9)
    with pytest.raises(InputError, match="cannot be read"):
        stored_rows(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["node-report", "--folder", str(tmp_path), "--model", str(model), "--weeks", "0"])
    assert ended.value.code == 2
    assert "--weeks" in capsys.readouterr().err
