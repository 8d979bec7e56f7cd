"""Uploaded files: each lies in the folder of uploads for as long as its request takes, however the request ends."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from monai_wscxr.system.atomic import full_disk, is_disk_full


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
            DiskFullError: when there is no room for it.
            OSError: when the file cannot be written for another reason.
        """
        if content is None:
            yield None
            return
        path = self.folder / uuid.uuid4().hex
        try:
            try:
                with open(path, "xb") as file:
                    shutil.copyfileobj(content, file)
            except OSError as error:
                if not is_disk_full(error):
                    raise
                path.unlink(missing_ok=True)
                raise full_disk(self.folder, content.seek(0, os.SEEK_END), "the upload") from error
            yield path
        finally:
            path.unlink(missing_ok=True)
