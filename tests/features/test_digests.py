"""Digests of files: computed once, again when the file changes, and a reason where a file cannot be read."""

import os

import pytest

from monai_wscxr.data.radiograph.read import file_digest
from monai_wscxr.features import digests as module
from monai_wscxr.features.digests import FileDigests


@pytest.fixture
def computed(monkeypatch):
    """Paths whose digest was computed."""
    paths = []
    monkeypatch.setattr(module, "file_digest", lambda path: paths.append(path) or file_digest(path))
    return paths


def test_a_digest_is_computed_once_and_again_after_a_change(tmp_path, computed):
    file = tmp_path / "a.png"
    file.write_bytes(b"one")
    digests = FileDigests()
    first = digests.of(str(file))
    assert first == digests.of(str(file)) == file_digest(file)
    assert len(computed) == 1
    file.write_bytes(b"two")
    os.utime(file, (1, 1))
    assert digests.of(str(file)) == file_digest(file) != first
    assert len(computed) == 2
    assert digests.known == {str(file): file_digest(file)}


def test_a_digest_that_was_known_beforehand_is_trusted_until_the_file_changes(tmp_path, computed):
    file = tmp_path / "a.png"
    file.write_bytes(b"one")
    digests = FileDigests()
    digests.known[str(file)] = "known"
    assert digests.of(str(file)) == "known"
    assert computed == []
    os.utime(file, (1, 1))
    assert digests.of(str(file)) == file_digest(file)


def test_files_that_cannot_be_read_have_a_reason_without_a_path(tmp_path):
    names = ("a.png", "missing.png", "folder.png", "b.png")
    files = [str(tmp_path / name) for name in names]
    for file in (files[0], files[3]):
        with open(file, "w") as stream:
            stream.write(file)
    os.mkdir(files[2])
    digests = FileDigests()
    readable, rejected = digests.read(files, 2)
    assert readable == [files[0], files[3]]
    assert rejected == [
        (files[1], "not_found", "No such file or directory"),
        (files[2], "unreadable", "Is a directory"),
    ]
    assert set(digests.known) == set(readable)
