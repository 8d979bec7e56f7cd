"""The short version of killing trainings; `python -m tests.fuzz.killing` is the long one."""

import subprocess
import sys
from pathlib import Path


def test_killed_trainings_end_at_the_model_of_an_undisturbed_one():
    # a process of its own: it forks, which must not happen where other tests have computed before
    command = [sys.executable, "-m", "tests.fuzz.killing", "--kills", "5", "--seed", "1"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=600, check=False, cwd=Path(__file__).parents[2]
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 kills in" in done.stdout
    models = done.stdout.split("models: ")[1].split()[0]
    assert len(models) == 64  # one hash, no comma
