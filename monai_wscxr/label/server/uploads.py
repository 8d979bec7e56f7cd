"""Uploaded files: each lies in the folder of uploads for as long as its request takes, however the request ends."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


class Uploads:
    """Folder of uploads, which only this user can open.

    Args:
        folder: the folder; leftovers of earlier servers in it are removed.
    """

    def __init__(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700, parents=True)
        self.folder = folder.resolve()

    @contextmanager
    def received(self, content: BinaryIO | None) -> Iterator[Path | None]:
        """Provide an upload as a file with a name of the server's choice, and remove the file at the end.

        Args:
            content: the upload; without one, None is provided.

        Raises:
            OSError: when the file cannot be written.
        """
        if content is None:
            yield None
            return
        path = self.folder / uuid.uuid4().hex
        try:
            with open(path, "xb") as file:
                shutil.copyfileobj(content, file)
            yield path
        finally:
            path.unlink(missing_ok=True)
