"""The journal: records come back, an incomplete or damaged line costs only itself, other runs are refused."""

import pytest

from monai_wscxr.errors import InputError
from monai_wscxr.prediction.journal import NAME, Journal, check_idle

IDENTITY = {"model": "abc", "options": [1, 2]}


def record(number, **more):
    return {"number": number, "file": f"ü{number}\n", "score": 0.1 + number / 3, **more}


@pytest.fixture
def begun(tmp_path):
    journal = Journal(tmp_path, IDENTITY, {"began": "then"})
    journal.append([record(0), record(1)])
    journal.append([record(2)])
    journal.close()
    return tmp_path


def opened(folder, identity=IDENTITY):
    journal = Journal(folder, identity, {"began": "now"})
    journal.close()
    return journal


def test_records_come_back_exactly(begun):
    journal = opened(begun)
    assert journal.records == {n: record(n) for n in range(3)}
    assert journal.extra == {"began": "then"}


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_torn_end_is_cut_off_and_written_again(begun, cut):
    content = (begun / NAME).read_bytes()
    (begun / NAME).write_bytes(content[:-cut])
    journal = Journal(begun, IDENTITY, {})
    assert journal.records == {n: record(n) for n in range(2)}
    journal.append([record(2), record(3)])
    journal.close()
    assert opened(begun).records == {n: record(n) for n in range(4)}


def test_damaged_line_costs_itself_alone(begun, caplog):
    lines = (begun / NAME).read_bytes().splitlines(keepends=True)
    lines[2] = lines[2].replace(b"0.43", b"0.53")
    (begun / NAME).write_bytes(b"".join(lines))
    assert sorted(opened(begun).records) == [0, 2]
    assert "has damaged lines (1)" in caplog.text


def test_damaged_head_and_other_runs_are_refused(begun):
    with pytest.raises(InputError, match=r"another prediction run \(model: abc there, xyz now\)"):
        opened(begun, {**IDENTITY, "model": "xyz"})
    with pytest.raises(InputError, match=r"another prediction run \(other inputs\)"):
        opened(begun, {**IDENTITY, "inputs": "ab" * 32})
    content = (begun / NAME).read_bytes()
    (begun / NAME).write_bytes(b"x" + content[1:])
    with pytest.raises(InputError, match=r"first line .* is damaged"):
        opened(begun)


def test_journal_of_another_version_is_refused(begun, monkeypatch):
    monkeypatch.setattr("monai_wscxr.prediction.journal._FORMAT", 99)
    with pytest.raises(InputError, match="another version of monai_wscxr; start again with --overwrite"):
        opened(begun)


def test_one_process_at_a_time(begun):
    journal = Journal(begun, IDENTITY, {})
    with pytest.raises(InputError, match="another prediction is running"):
        opened(begun)
    with pytest.raises(InputError, match="another prediction is running"):
        check_idle(begun)
    journal.close()
    check_idle(begun)
    opened(begun)


def test_the_later_record_counts(begun):
    journal = Journal(begun, IDENTITY, {})
    journal.append([record(1, again=True)])
    journal.close()
    assert opened(begun).records[1]["again"] is True
