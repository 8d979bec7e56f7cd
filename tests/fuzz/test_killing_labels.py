"""The short version of killing a workbench; `python -m tests.fuzz.killing_labels` is the long one."""

import subprocess
import sys
from pathlib import Path


def test_no_acknowledged_label_is_lost_when_a_workbench_is_killed():
    # a process of its own: it forks, which must not happen where other tests have computed before
    command = [sys.executable, "-m", "tests.fuzz.killing_labels", "--kills", "4", "--seed", "1"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=600, check=False, cwd=Path(__file__).parents[2]
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 kills in" in done.stdout
    assert "0 problems" in done.stdout
