"""Messages for people who use the server over the network: without the folders of the machine."""

from __future__ import annotations

import os
import re
from pathlib import Path

_PATH = re.compile(r"(?<![\w:/.])/(?:[^/\s'\"]+/)+")
_hidden: set[str] = set()


def hide_folders(*folders: str | Path | None) -> None:
    """Name folders that `without_paths` removes from messages, also where they contain spaces."""
    for folder in folders:
        if folder is not None:
            _hidden.update({os.path.abspath(folder), os.path.realpath(folder)} - {"/"})


def without_paths(message: str) -> str:
    """Return a message in which only the last part of each absolute path is left."""
    for folder in sorted(_hidden, key=len, reverse=True):
        message = message.replace(folder + "/", "").replace(folder, os.path.basename(folder))
    return _PATH.sub(lambda match: "" if os.path.isdir("/" + match[0].split("/")[1]) else match[0], message)
