"""The short version of killing commands; `python -m tests.fuzz.killing_commands` is the long one."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.killing_commands import COMMANDS


def test_killed_commands_end_at_the_results_of_undisturbed_ones():
    pytest.importorskip("highdicom", reason="the extra dicom is not installed")
    # a process of its own: it forks, which must not happen where other tests have computed before
    words = [
        sys.executable,
        "-m",
        "tests.fuzz.killing_commands",
        "--kills",
        "2",
        "--seed",
        "1",
        "--commands",
        *COMMANDS,
    ]
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=600, check=False, cwd=Path(__file__).parents[2]
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for command in COMMANDS:
        assert f"{command}: 2 kills in" in done.stdout
    assert "0 problems" in done.stdout
