"""Digests of decoded pixels, which tell that two files show the same picture even if their bytes differ.

Pixels are compared as `read_radiograph` returns them, rounded to 8 bits (16 for pictures of low contrast). So a JPEG and the
PNG made of it are equal, and so are an 8-bit and a 16-bit copy of one picture; a resized or recompressed copy is not.

Every image has to be decoded for this once, in a worker process if a decoder may crash on it (`isolation`). The digests
are then kept in `<cache>/pixels/CHAIN.txt`, a line for each file with the digest of its bytes and that of its pixels; the
file holds no path and nothing of a header.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from monai_wscxr.data.isolation import Isolation, may_crash, note
from monai_wscxr.data.radiograph.base import GATES, RadiographError
from monai_wscxr.data.radiograph.read import READER_CHAIN, file_digest, read_radiograph
from monai_wscxr.system.cache_folder import cache_root
from monai_wscxr.system.progress import ahead, progress_bar

logger = logging.getLogger("monai_wscxr")

_LINE = re.compile(r"([0-9a-f]{32}) ([0-9a-f]{32})")
_THREADS = 4
_AT_ONCE = 256  # digests per write to the cache; an interrupted run loses no more
_SHOWN_FROM = 100  # images to decode; fewer take about a second

_known: dict[str, str] = {}  # pixel digest by file digest, of this process
_lock = threading.Lock()


def fill_file_digests(paths: Iterable[str], digests: dict[str, str]) -> None:
    """Add the digests of the files that are missing in `digests`.

    Raises:
        OSError: when a file cannot be read.
    """
    missing = sorted(set(paths) - digests.keys())
    with ThreadPoolExecutor() as pool:  # hashing and reading both release the interpreter lock
        digests.update(zip(missing, pool.map(file_digest, missing), strict=True))


def pixel_digests(
    digests: Mapping[str, str], cache: str | os.PathLike[str] | bool | None = None, progress: bool = True
) -> dict[str, str]:
    """Return a digest of the pixels of each file.

    Args:
        digests: digest of the bytes by file, see `file_digest`.
        cache: cache folder; None takes `cache_root()`, False none.
        progress: show a progress bar when many images have to be decoded.

    Returns:
        Digests by file. That of a file that cannot be read as a radiograph is the digest of its bytes.
    """
    store = None if cache is False else Path(cache_root() if cache in (None, True) else str(cache)) / "pixels"
    wanted = {digest: file for file, digest in digests.items()}  # equal bytes are decoded once
    with _lock:
        if store is not None and not _known.keys() >= wanted.keys():
            _known.update(_read(store))
        missing = [(wanted[digest], digest) for digest in sorted(wanted.keys() - _known.keys())]
    for digest in wanted.keys() & _known.keys():
        note(digest)  # has been decoded by this run or an earlier one
    new: dict[str, str] = {}
    threads = min(_THREADS, os.cpu_count() or 1)
    shown = progress and len(missing) >= _SHOWN_FROM
    with progress_bar(len(missing), "comparing pixels", shown) as bar, Isolation(_pixel_digest, threads) as isolation:

        def look(one: tuple[str, str]) -> str | None:
            return _isolated_digest(*one, isolation)

        for (_, digest), pixels in zip(missing, ahead(look, missing, threads, 2 * threads), strict=True):
            bar.update()
            with _lock:
                _known[digest] = pixels or digest
            if pixels is not None:
                new[digest] = pixels
            if store is not None and len(new) >= _AT_ONCE:
                _append(store, new)
                new = {}
    if store is not None and new:
        _append(store, new)
    with _lock:
        return {file: _known[digest] for file, digest in digests.items()}


def _isolated_digest(file: str, digest: str, isolation: Isolation) -> str | None:
    """Return the digest of a file's pixels as `_pixel_digest` does, computed in a worker if a decoder may crash on it."""
    if not may_crash(file):
        return _pixel_digest(file)
    try:
        found: str | None = isolation(file)
    except RadiographError as error:  # extraction names the file and this reason
        note(digest, error)
        return None
    note(digest)
    return found


def _pixel_digest(file: str) -> str | None:
    """Return the digest of a file's pixels, or None when it cannot be read; training names those later with their reason."""
    try:
        image = read_radiograph(file, allow=GATES).image
    except (RadiographError, OSError):
        return None
    levels = 255 if float(image.max() - image.min()) > 0.25 else 65535
    rounded = np.rint(image * np.float32(levels)).astype(np.uint8 if levels == 255 else np.uint16)
    digest = hashlib.blake2b(f"{rounded.shape}:".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(rounded).data)
    return digest.hexdigest()


def _read(store: Path) -> dict[str, str]:
    """Read the digests that earlier runs have kept; lines that are damaged are skipped."""
    try:
        text = (store / f"{READER_CHAIN}.txt").read_text(encoding="ascii", errors="replace")
    except FileNotFoundError:
        return {}
    except OSError as error:
        logger.warning(
            "the pixel digests in %s cannot be read (%s); the images are decoded again", store, error.strerror
        )
        return {}
    return dict(found.groups() for line in text.splitlines() if (found := _LINE.fullmatch(line)))  # type: ignore[misc]


def _append(store: Path, new: Mapping[str, str]) -> None:
    """Append digests in one write, so that runs that append at the same time do not mix their lines."""
    lines = "".join(f"\n{digest} {pixels}" for digest, pixels in new.items()) + "\n"  # an earlier line may be torn
    try:
        store.mkdir(parents=True, exist_ok=True)
        with open(store / f"{READER_CHAIN}.txt", "ab", buffering=0) as file:
            file.write(lines.encode())
    except OSError as error:
        logger.warning("pixel digests cannot be kept in %s (%s); the next run decodes again", store, error.strerror)
