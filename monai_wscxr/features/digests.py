"""Content digests of image files, by which the feature cache knows an image."""

from __future__ import annotations

import os
from collections.abc import Sequence

from monai_wscxr.data.radiograph.read import file_digest
from monai_wscxr.data.stream import Rejected
from monai_wscxr.system.progress import ahead

_READ_AHEAD = 256  # files


class FileDigests:
    """Digests of files, each computed once for as long as the file does not change.

    Attributes:
        known: digest by path. Digests that were computed elsewhere may be added; they are trusted until the file changes.
    """

    def __init__(self) -> None:
        self.known: dict[str, str] = {}
        self._stamps: dict[str, tuple[int, int]] = {}

    def of(self, file: str) -> str:
        """Return the digest of a file.

        Raises:
            OSError: when the file cannot be read.
        """
        stat = os.stat(file)
        stamp = stat.st_mtime_ns, stat.st_size
        if file not in self.known or self._stamps.get(file, stamp) != stamp:
            self.known[file] = file_digest(file)
        self._stamps[file] = stamp
        return self.known[file]

    def read(self, files: Sequence[str], threads: int) -> tuple[list[str], list[Rejected]]:
        """Compute the digests of files in threads.

        Args:
            files: paths.
            threads: number of threads that read, at least 1.

        Returns:
            The files that could be read, in order, and (file, reason code, message) of the others.
        """

        def attempt(file: str) -> str | OSError:
            try:
                return self.of(file)
            except OSError as error:
                return error

        readable: list[str] = []
        rejected: list[Rejected] = []
        for file, result in zip(files, ahead(attempt, files, threads, _READ_AHEAD), strict=True):
            if isinstance(result, OSError):
                code = "not_found" if isinstance(result, FileNotFoundError) else "unreadable"
                rejected.append((file, code, result.strerror or str(result)))
            else:
                readable.append(file)
        return readable, rejected
