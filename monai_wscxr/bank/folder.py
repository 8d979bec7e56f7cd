"""Banks in folders: shards and an index. They grow, shrink and merge without computing any feature twice.

`bank.json` lists the shards with their images, bytes and the checksum of their headers, which in turn hold the digest and
checksum of every image. Removed images, and second copies of an image, are listed in the index as "dead"; `compact` rewrites
the shards that contain them. The index is written last and replaced in one step, so a killed command leaves the bank as it
was, plus at most a file that no index lists. A bank holds nothing about a patient: no path, no name, no header of an image.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from monai_wscxr.bank.feature_bank import BankOnDisk
from monai_wscxr.bank.shard import Shard, shard_rows, write_shard
from monai_wscxr.errors import InputError
from monai_wscxr.system.atomic import (
    DamagedError,
    DiskFullError,
    full_disk,
    is_disk_full,
    on_disk,
    replacing,
    write_text_atomic,
)
from monai_wscxr.system.regular_files import read_regular
from monai_wscxr.system.strict_json import any_object, ascending, integer, list_of, one_of, parse_json, record, text

FORMAT = "monai_wscxr bank 1"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_INDEX = "bank.json"
_LARGEST_INDEX = 256 << 20  # bytes
_MOST_SHARDS = 1 << 20
_MOST_IMAGES = 1 << 24  # per shard

_check_index = record(
    {
        "format": one_of(FORMAT),
        "settings": any_object,
        "grid": list_of(integer(1, 1 << 12), 2, 2),
        "channels": integer(1, 1 << 20),
        "dtype": one_of(*DTYPES),
        "rows": integer(0, (1 << 63) - 1),
        "shards": list_of(
            record(
                {
                    # the name of a file in the folder, never a path
                    "file": text(
                        255, r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.safetensors", "a file name ending in .safetensors"
                    ),
                    "images": integer(1, _MOST_IMAGES),
                    "bytes": integer(1, (1 << 63) - 1),
                    "header_crc32": integer(0, (1 << 32) - 1),
                    "dead": list_of(integer(0, _MOST_IMAGES), 0, _MOST_IMAGES),
                }
            ),
            0,
            _MOST_SHARDS,
        ),
    }
)


def _read_index(path: Path) -> dict[str, Any]:
    """Read and check `bank.json`.

    Raises:
        OSError: when it cannot be read.
        ValueError: when it is not the index of a bank, or contradicts itself.
    """
    index: dict[str, Any] = parse_json(read_regular(path, _LARGEST_INDEX))
    if isinstance(index, dict) and index.get("format", FORMAT) != FORMAT:
        raise ValueError(f"its format is {index['format']!r:.40}, this version reads {FORMAT!r}")
    _check_index(index, "")
    living, names = 0, set()
    for place, entry in enumerate(index["shards"]):
        dead = entry["dead"]
        if not ascending(dead) or len(set(dead)) != len(dead) or (dead and dead[-1] >= entry["images"]):
            raise ValueError(f"shards[{place}].dead must hold different positions of its images in ascending order")
        living += entry["images"] - len(dead)
        names.add(entry["file"])
    if len(names) != len(index["shards"]):
        raise ValueError("it lists a shard twice")
    h, w = index["grid"]
    if index["rows"] != living * h * w:
        raise ValueError(f"its shards hold {living * h * w} rows, but it counts {index['rows']}")
    return index


@dataclass
class Entry:
    """A shard in the index.

    Attributes:
        file: file name.
        images: number of images.
        bytes: size of the file.
        header_crc32: CRC-32 of the header.
        dead: positions of the images that do not count: removed ones, and second copies.
    """

    file: str
    images: int
    bytes: int
    header_crc32: int
    dead: list[int] = field(default_factory=list)


class BankFolder:
    """A bank of whole images in a folder.

    Args:
        path: folder made by `create`.

    Attributes:
        entries: shards of the index.
        settings: everything the features depend on besides the image, see `PatchExtractor.settings`.
        grid: patch rows and columns (h, w) of one image.
        channels: C.
        dtype: name of the type of the rows.

    Raises:
        InputError: when the folder holds no bank, or one of another version.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._shards: dict[str, Shard] = {}
        self._load()

    def _load(self) -> None:
        try:
            index = _read_index(self.path / _INDEX)
        except FileNotFoundError as error:
            raise InputError(
                f"{self.path} holds no bank ({error}); make one with `monai-wscxr bank add` or `monai-wscxr bank merge`"
            ) from error
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise InputError(
                f"{self.path} holds no bank: {self.path / _INDEX} is damaged ({reason}); restore it from a copy, or make a "
                "bank with `monai-wscxr bank add`"
            ) from error
        self.settings: dict[str, Any] = index["settings"]
        h, w = index["grid"]
        self.grid: tuple[int, int] = (h, w)
        self.channels: int = index["channels"]
        self.dtype: str = index["dtype"]
        self.entries = [Entry(**entry) for entry in index["shards"]]

    @classmethod
    def create(
        cls, path: str | Path, settings: dict[str, Any], grid: tuple[int, int], channels: int, dtype: str = "float32"
    ) -> BankFolder:
        """Create an empty bank.

        Args:
            path: new or empty folder; what a killed `create` has left there does not count.
            settings, grid, channels, dtype: see `BankFolder`.

        Raises:
            InputError: when the folder is not empty, or on an unknown type.
        """
        path = Path(path)
        if dtype not in DTYPES:
            raise InputError(f"the type of a bank must be one of {', '.join(DTYPES)}, got {dtype!r}")
        if path.exists() and (not path.is_dir() or any(not _is_remainder(file) for file in path.iterdir())):
            raise InputError(f"{path} exists already and is not empty; choose another folder")
        path.mkdir(parents=True, exist_ok=True)
        bank = cls.__new__(cls)
        bank.path, bank.settings, bank.grid, bank.channels, bank.dtype = path, settings, grid, channels, dtype
        bank.entries, bank._shards = [], {}
        bank._save()
        return bank

    def _save(self) -> None:
        index = {
            "format": FORMAT,
            "settings": self.settings,
            "grid": list(self.grid),
            "channels": self.channels,
            "dtype": self.dtype,
            "rows": len(self),
            "shards": [asdict(entry) for entry in self.entries],
        }
        write_text_atomic(self.path / _INDEX, json.dumps(index))

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        """Lock the index, read it anew, and write it afterwards: one process at a time changes it."""
        with _open_lock(self.path / ".lock") as lock:
            with contextlib.suppress(ImportError):  # Windows has no such locks
                import fcntl

                fcntl.flock(lock, fcntl.LOCK_EX)
            self._load()
            try:
                yield
                self._save()
            except BaseException:
                with contextlib.suppress(InputError):
                    self._load()  # what is not on the disk does not count
                raise

    def shard(self, entry: Entry) -> Shard:
        """Open the shard of an entry.

        Raises:
            InputError: when it is damaged, missing, or not the one that was added.
        """
        if entry.file not in self._shards:
            path = self.path / entry.file
            try:
                shard = Shard.open(path)
                if path.stat().st_size != entry.bytes or shard.header_crc32 != entry.header_crc32:
                    raise DamagedError("its header is not the one that was added")
                if shard.shape[0] != entry.images:
                    raise DamagedError(f"it holds {shard.shape[0]} images, {_INDEX} lists {entry.images}")
                if shard.shape[1:] != (self.grid[0] * self.grid[1], self.channels) or shard.dtype != DTYPES[self.dtype]:
                    raise DamagedError("its shape or type is not that of the bank")
            except DamagedError as error:
                raise InputError(
                    f"the shard {path} is damaged ({error}): remove it with `monai-wscxr bank verify --drop`, then add its "
                    "images again with `monai-wscxr bank add`"
                ) from error
            self._shards[entry.file] = shard
        return self._shards[entry.file]

    def places(self) -> list[tuple[Shard, int]]:
        """Return shard and position of every image, in order."""
        found = []
        for entry in self.entries:
            shard, dead = self.shard(entry), set(entry.dead)
            found += [(shard, position) for position in range(entry.images) if position not in dead]
        return found

    def digests(self) -> list[str]:
        """Return the digests of the images, in order."""
        return [shard.digests[position] for shard, position in self.places()]

    def __len__(self) -> int:
        """Return the number of rows."""
        return self.grid[0] * self.grid[1] * sum(entry.images - len(entry.dead) for entry in self.entries)

    def bank(self) -> BankOnDisk:
        """Return the bank; its rows stay on disk, and its files are named by their digests.

        Raises:
            InputError: when the bank is empty, or a shard is damaged.
        """
        places = self.places()
        if not places:
            raise InputError(f"the bank {self.path} holds no image")
        names = tuple(shard.digests[position] for shard, position in places)
        return BankOnDisk(shard_rows(places), names, self.grid)

    def add(self, digests: Sequence[str], features: Tensor) -> None:
        """Add a shard of images; an image that is in the bank already does not count twice.

        Args:
            digests: digests of n images.
            features: [n, h*w, C] of any floating-point type; stored in that of the bank.
        """
        name = self._new_shard(digests, features)
        with self._listed(name), self._changing():
            self._enter(name)

    @contextlib.contextmanager
    def _listed(self, name: str) -> Iterator[None]:
        """Enter a new shard during the block; remove its file if that fails, as nothing would ever use it."""
        try:
            yield
        except BaseException:
            if all(entry.file != name for entry in self.entries):
                (self.path / name).unlink(missing_ok=True)
            raise

    def _new_shard(self, digests: Sequence[str], features: Tensor) -> str:
        name = f"{uuid.uuid4().hex}.safetensors"
        write_shard(self.path / name, digests, features.to(DTYPES[self.dtype]))
        return name

    def _enter(self, name: str, dead: Iterable[int] = ()) -> None:
        """Enter a shard of the folder into the index, inside of `_changing`."""
        path, known, gone = self.path / name, set(self.digests()), set(dead)
        shard = Shard.open(path)
        for position, digest in enumerate(shard.digests):
            if digest in known:
                gone.add(position)
            elif position not in gone:
                known.add(digest)
        self.entries.append(Entry(name, shard.shape[0], path.stat().st_size, shard.header_crc32, sorted(gone)))

    def remove(self, digests: Iterable[str]) -> int:
        """Remove images in the index alone, and return how many were removed."""
        wanted, removed = set(digests), 0
        with self._changing():
            for entry in self.entries:
                for position, digest in enumerate(self.shard(entry).digests):
                    if digest in wanted and position not in entry.dead:
                        entry.dead = sorted([*entry.dead, position])
                        removed += 1
        return removed

    def merge(self, other: BankFolder) -> None:
        """Add the images of another bank; its shards become hard links, or copies where the file systems differ.

        Raises:
            InputError: when the features have other settings or another shape, or a shard is damaged.
        """
        if self.settings != other.settings or (self.grid, self.channels) != (other.grid, other.channels):
            different = [
                key for key in {*self.settings, *other.settings} if self.settings.get(key) != other.settings.get(key)
            ]
            raise InputError(
                f"{other.path} and {self.path} were made with different settings ({', '.join(sorted(different)) or 'shape'}); "
                "their rows cannot be compared"
            )
        for entry in other.entries:
            if self.dtype == other.dtype:
                other.shard(entry)
                name = f"{uuid.uuid4().hex}.safetensors"
                _link(other.path / entry.file, self.path / name)
                with self._listed(name), self._changing():
                    self._enter(name, entry.dead)
            elif len(entry.dead) < entry.images:
                self.add(*other._living(entry))

    def merging_takes(self, other: BankFolder) -> int:
        """Return the number of bytes that merging another bank takes on the disk: those of shards that cannot be shared."""
        if self.dtype == other.dtype and self.path.stat().st_dev == other.path.stat().st_dev:
            return 0
        share = DTYPES[self.dtype].itemsize / DTYPES[other.dtype].itemsize
        return sum(on_disk(share * entry.bytes) for entry in other.entries)

    def _living(self, entry: Entry) -> tuple[list[str], Tensor]:
        """Read and check the images of a shard that are not dead; return their digests and features [n, h*w, C]."""
        shard, dead = self.shard(entry), set(entry.dead)
        living = [position for position in range(entry.images) if position not in dead]
        features = torch.empty(len(living), *shard.shape[1:], dtype=shard.dtype)
        for place, position in enumerate(living):
            try:
                shard.read(position, features[place])
            except DamagedError as error:
                raise InputError(
                    f"the shard {shard.path} is damaged ({error}); remove it with `monai-wscxr bank verify --drop`"
                ) from error
        return [shard.digests[position] for position in living], features

    def compact(self, share: float = 0.0) -> int:
        """Rewrite the shards of whose images more than `share` are dead, and remove files that the index does not list.

        Shards without any living image go first and every replaced file goes at once, so the disk needs room for one shard.

        Returns:
            Number of bytes freed.

        Raises:
            DiskFullError: when there is no room for the next shard; what has been compacted by then stays so.
        """
        before = _folder_bytes(self.path)
        due = [entry for entry in self.entries if len(entry.dead) > share * entry.images]
        due.sort(key=lambda entry: len(entry.dead) < entry.images)
        for number, entry in enumerate(due):
            try:
                self._compact(entry)
            except DiskFullError as error:
                left = due[number:]
                raise full_disk(self.path, self._peak(left), f"{len(left)} shards without their dead images") from error
        listed = {entry.file for entry in self.entries}
        for path in [*self.path.glob("*.safetensors"), *self.path.glob(".*.partial")]:
            # another process may be about to enter a young file that is not listed yet
            status = path.lstat()
            old = path.name not in listed and time.time() - status.st_mtime > 3600
            if old and not stat.S_ISDIR(status.st_mode):
                path.unlink()
        return before - _folder_bytes(self.path)

    def _compact(self, entry: Entry) -> None:
        """Replace one shard by one with its living images, if there are any, and remove its file."""
        name = self._new_shard(*self._living(entry)) if len(entry.dead) < entry.images else None
        with contextlib.nullcontext() if name is None else self._listed(name), self._changing():
            self.entries = [e for e in self.entries if e.file != entry.file]
            if name is not None:
                self._enter(name)
        (self.path / entry.file).unlink(missing_ok=True)

    def _peak(self, due: Sequence[Entry]) -> int:
        """Return the number of free bytes that compacting these shards in this order takes at some moment."""
        held = peak = 0
        for entry in due:
            held += on_disk(entry.bytes * (entry.images - len(entry.dead)) / entry.images)
            peak = max(peak, held)
            path = self.path / entry.file
            if path.exists() and path.stat().st_nlink == 1:  # a file shared with another bank takes its room further on
                held -= on_disk(entry.bytes)
        return peak + on_disk((self.path / _INDEX).stat().st_size)

    def verify(self, progress: Callable[[int], object] | None = None) -> list[tuple[str, str, int]]:
        """Read every image and compare it with its checksum.

        Args:
            progress: called with 1 after every shard.

        Returns:
            File name, reason and number of lost images of each damaged shard.
        """
        damaged = []
        for entry in self.entries:
            try:
                shard = self.shard(entry)
                shard.forget_checks()
                for position in range(entry.images):
                    shard.verify(position)
            except (InputError, DamagedError) as error:
                damaged.append((entry.file, str(error), entry.images - len(entry.dead)))
            if progress is not None:
                progress(1)
        return damaged

    def drop(self, files: Iterable[str]) -> None:
        """Remove whole shards, damaged or not, from the index; `compact` removes their files.

        Args:
            files: file names of the shards.
        """
        gone = set(files)
        with self._changing():
            self.entries = [entry for entry in self.entries if entry.file not in gone]


def _is_remainder(file: Path) -> bool:
    """Tell whether a file is an index that was not written to its end."""
    return file.name.startswith(f".{_INDEX}.") and file.name.endswith(".partial")


def _link(source: Path, target: Path) -> None:
    """Make `target` a hard link to `source`, or a copy where that is impossible."""
    try:
        os.link(source, target)
    except OSError:
        with replacing(target, source.stat().st_size) as temporary:
            shutil.copyfile(source, temporary)


def _open_lock(path: Path) -> IO[str]:
    """Open a file for locking, without following a link or waiting for a pipe.

    Raises:
        InputError: when it cannot be opened.
        DiskFullError: when it cannot be created.
    """
    try:
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        if is_disk_full(error):
            raise full_disk(path.parent, 1, str(path)) from error
        raise InputError(f"{path} cannot be opened ({error.strerror}), so the bank cannot be changed") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InputError(f"{path} is not a regular file, so the bank cannot be changed; remove it")
    return os.fdopen(descriptor, "r+")


def _folder_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.iterdir() if file.is_file())
