"""What a stopped run prints, and who listens; tests/bundle/test_survival.py stops real ones."""

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from monai_wscxr.system import signals as interruption


@pytest.fixture(autouse=True)
def _keep_the_handlers():
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_the_command_survives_a_shell(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    words = ["python", "-m", "monai.bundle", "--config_file", "['a.yaml','b c.yaml']", "--weights", "$HOME/x"]
    monkeypatch.setattr(sys, "orig_argv", words)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert shlex.split(interruption.resume_command()) == ["cd", str(tmp_path), "&&", *words]


def test_a_worker_names_torchruns_command(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    parent = Path(f"/proc/{os.getppid()}/cmdline").read_text().split("\0")[:-1]
    assert shlex.split(interruption.resume_command())[3:] == parent
    monkeypatch.setattr(os, "getppid", lambda: 2**22 + 1)  # gone: its own command is better than none
    assert shlex.split(interruption.resume_command())[3:] == sys.orig_argv


@pytest.mark.parametrize(("rank", "listens"), [(None, True), ("0", True), ("3", False)])
def test_only_the_first_rank_listens(monkeypatch, rank, listens):
    monkeypatch.delenv("RANK", raising=False)
    if rank:
        monkeypatch.setenv("RANK", rank)
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        interruption.stop_cleanly()
        found = {number: signal.getsignal(number) for number in before}
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert all((handler is not signal.SIG_DFL) == listens for handler in found.values())
    assert len(set(found.values())) == 1


SCRIPT = """
import os, signal, time
from monai_wscxr.system.signals import stop_cleanly
stop_cleanly()
try:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
finally:
    print("cleaned up", flush=True)
    SECOND
"""


@pytest.mark.parametrize(("second", "status"), [("", 75), ("os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM)])
def test_the_first_signal_unwinds_and_the_second_ends_at_once(second, status):
    command = [sys.executable, "-c", SCRIPT.replace("SECOND", second)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == status
    assert done.stdout == "cleaned up\n"
    assert "stopped by SIGTERM; everything finished so far is kept. Resume with:\n  cd " in done.stderr
    assert "Traceback" not in done.stderr
