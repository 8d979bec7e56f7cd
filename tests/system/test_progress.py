"""Progress bars, and results that threads compute ahead of their use."""

import re
import threading
import time
from pathlib import Path

import pytest
import torch

import monai_wscxr
from monai_wscxr.system.progress import ahead, counted, progress_bar


def test_a_progress_bar_is_silent_when_asked(capsys):
    with progress_bar(3, "phantoms", shown=False) as bar:
        bar.update(3)
    assert capsys.readouterr().err == ""
    with progress_bar(3, "phantoms") as bar:
        bar.update(3)
    assert "phantoms" in capsys.readouterr().err


@pytest.mark.parametrize(("terminal", "interval"), [(True, 0.1), (False, 15.0)])
def test_a_log_file_gets_few_lines(monkeypatch, terminal, interval):
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal, raising=False)
    with progress_bar(3, "phantoms") as bar:
        assert bar.mininterval == interval


def test_counted_items_come_in_order_and_are_shown_in_plain_lines(capsys):
    assert list(counted([3, 1, 2], "phantoms")) == [3, 1, 2]
    said = capsys.readouterr().err
    assert "\r" not in said
    assert "phantoms: 3 of 3 images" in said


def test_no_other_module_draws_bars_of_its_own():
    package = Path(monai_wscxr.__file__).parent
    calls = {file.name for file in package.rglob("*.py") if re.search(r"\bt(qdm|range)\(", file.read_text())}
    assert calls == {"progress.py"}


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("depth", [1, 3, 50])
def test_results_come_in_order(threads, depth):
    def slow(number):
        time.sleep(0.002 * (number % 3))  # later items may be done first
        return number * number

    assert list(ahead(slow, range(20), threads, depth)) == [n * n for n in range(20)]
    assert list(ahead(slow, [], threads, depth)) == []


def test_threads_are_single_threaded_and_the_caller_is_not_changed():
    before = torch.get_num_threads()
    found = set(ahead(lambda _: (torch.get_num_threads(), threading.get_ident()), range(8), 2, 8))
    assert {threads for threads, _ in found} == {1}
    assert threading.get_ident() not in {thread for _, thread in found}
    assert torch.get_num_threads() == before


def test_items_are_taken_no_further_than_the_depth():
    taken = []

    def items():
        for number in range(100):
            taken.append(number)
            yield number

    results = ahead(lambda number: number, items(), 2, 5)
    for used in range(1, 10):
        next(results)
        assert len(taken) == used + 4
    results.close()
    assert len(taken) == 13


def test_several_items_run_at_a_time():
    barrier = threading.Barrier(3, timeout=20)  # broken unless three calls meet
    assert len(list(ahead(lambda _: barrier.wait(), range(6), 3, 6))) == 6


def test_an_error_comes_out_in_its_turn_and_drops_what_has_not_begun():
    begun = []

    def fail_at_two(number):
        begun.append(number)
        if number == 2:
            raise KeyError(number)
        time.sleep(0.02)
        return number

    results = ahead(fail_at_two, range(100), 1, 50)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(KeyError):
        next(results)
    assert len(begun) < 25  # of 52 that were handed to the thread


def test_a_closed_generator_drops_what_has_not_begun():
    begun, release = [], threading.Event()

    def wait(number):
        begun.append(number)
        if number:
            release.wait(20)

    results = ahead(wait, range(100), 2, 60)
    next(results)
    closing = threading.Thread(target=results.close)
    closing.start()
    time.sleep(0.05)
    release.set()
    closing.join()
    assert len(begun) <= 4
