"""File systems of a few pages or megabytes, for tests of full disks."""

import contextlib
import subprocess

import pytest


class SmallDisk:
    """A mounted file system in memory whose size can be changed.

    Args:
        folder: where it is mounted; must exist.
        size: in bytes.
    """

    def __init__(self, folder, size):
        self.folder = folder
        _mount(f"size={size}", folder)

    def resize(self, size):
        """Change its size in bytes; what is on it stays."""
        _mount(f"remount,size={size}", self.folder)


@contextlib.contextmanager
def small_disk(folder, size):
    """Mount a small disk at a new folder; skips the test where mounting is not allowed."""
    folder.mkdir()
    try:
        disk = SmallDisk(folder, size)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a tmpfs cannot be mounted here ({error}); run as root to test full disks")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def _mount(options, folder):
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True, capture_output=True)
