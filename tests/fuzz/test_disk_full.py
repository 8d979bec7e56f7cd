"""The short version of full disks; `python -m tests.fuzz.disk_full` is the long one."""

import subprocess
import sys
from pathlib import Path

import pytest


def test_commands_on_full_disks_say_what_is_missing_and_end_at_the_same_results():
    # a process of its own: it forks, which must not happen where other tests have computed before
    words = ["-m", "tests.fuzz.disk_full", "--commands", "compact", "--sizes", "2", "--moments", "1", "--seed", "1"]
    done = subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    if done.returncode == 2:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stdout + done.stderr
    assert "compact: 3 full disks in" in done.stdout
    assert "0 problems" in done.stdout
