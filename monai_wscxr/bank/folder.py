"""A bank in a folder: shards and an index. It grows, shrinks and merges without any feature being computed twice.

`bank.json` lists the shards with their images, bytes and a checksum of their headers, which in turn hold the digest and
checksum of every image. A removed image, or a second copy of one, is an entry in the index ("dead"); `compact` rewrites the
shards that hold many of them. The index is written last and replaced in one step, so a killed command leaves the bank as it
was, and at most files that no index mentions. What nobody may know of a patient is not there: no path, no name, no header.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from monai_wscxr.bank.feature_bank import BankOnDisk
from monai_wscxr.bank.shard import Shard, shard_rows, write_shard
from monai_wscxr.errors import InputError
from monai_wscxr.system.atomic import DamagedError, replacing, write_text_atomic

FORMAT = "monai_wscxr bank 1"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_INDEX = "bank.json"


@dataclass
class Entry:
    """A shard in the index: file name, number of images, bytes, CRC-32 of its header, positions that do not count."""

    file: str
    images: int
    bytes: int
    header_crc32: int
    dead: list[int] = field(default_factory=list)


class BankFolder:
    """A bank of whole images in a folder.

    Args:
        path: a folder made by `create`.

    Attributes:
        settings: what the features were made with (see `PatchExtractor.settings`).
        grid: patch rows and columns (h, w) of one image.
        channels: C.
        dtype: name of the type of the rows.

    Raises:
        InputError: when it is no such folder or of another version.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._shards: dict[str, Shard] = {}
        self._load()

    def _load(self) -> None:
        try:
            index = json.loads((self.path / _INDEX).read_text(encoding="utf-8"))
            if index["format"] != FORMAT:
                raise ValueError(f"its format is {index['format']!r}, this version reads {FORMAT!r}")
            self.settings: dict[str, Any] = index["settings"]
            h, w = index["grid"]
            self.grid = (int(h), int(w))
            self.channels, self.dtype = int(index["channels"]), str(index["dtype"])
            DTYPES[self.dtype]
            self.entries = [Entry(**entry) for entry in index["shards"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{self.path} holds no bank ({error}); make one with `bank add` or `bank merge`"
            ) from error

    @classmethod
    def create(
        cls, path: str | Path, settings: dict[str, Any], grid: tuple[int, int], channels: int, dtype: str = "float32"
    ) -> BankFolder:
        """An empty bank in a new or empty folder.

        Raises:
            InputError: when the folder holds something, or on an unknown type.
        """
        path = Path(path)
        if dtype not in DTYPES:
            raise InputError(f"the type of a bank must be one of {', '.join(DTYPES)}, got {dtype!r}")
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise InputError(f"{path} is there already and not empty; choose another folder")
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
        """One process at a time changes the index, from what it is now."""
        with open(self.path / ".lock", "w") as lock:
            with contextlib.suppress(ImportError):  # no such locks on Windows
                import fcntl

                fcntl.flock(lock, fcntl.LOCK_EX)
            self._load()
            yield
            self._save()

    def shard(self, entry: Entry) -> Shard:
        """The opened shard of an entry.

        Raises:
            InputError: when it is damaged, missing, or not the one that was added.
        """
        if entry.file not in self._shards:
            path = self.path / entry.file
            try:
                shard = Shard.open(path)
                if path.stat().st_size != entry.bytes or shard.header_crc32 != entry.header_crc32:
                    raise DamagedError("its header is not the one that was added")
                if shard.shape[1:] != (self.grid[0] * self.grid[1], self.channels) or shard.dtype != DTYPES[self.dtype]:
                    raise DamagedError("its shape or type is another")
            except DamagedError as error:
                raise InputError(
                    f"the shard {path} is damaged ({error}): `bank verify --drop` takes what is damaged out of the bank, "
                    "then `bank add` the images again"
                ) from error
            self._shards[entry.file] = shard
        return self._shards[entry.file]

    def places(self) -> list[tuple[Shard, int]]:
        """Shard and position of every image, in order."""
        found = []
        for entry in self.entries:
            shard, dead = self.shard(entry), set(entry.dead)
            found += [(shard, position) for position in range(entry.images) if position not in dead]
        return found

    def digests(self) -> list[str]:
        """Digests of the images, in order."""
        return [shard.digests[position] for shard, position in self.places()]

    def __len__(self) -> int:
        """Rows."""
        return self.grid[0] * self.grid[1] * sum(entry.images - len(entry.dead) for entry in self.entries)

    def bank(self) -> BankOnDisk:
        """The rows, read when they are needed; an image's name is its digest.

        Raises:
            InputError: when the bank is empty.
        """
        places = self.places()
        if not places:
            raise InputError(f"the bank {self.path} holds no image")
        names = tuple(shard.digests[position] for shard, position in places)
        return BankOnDisk(shard_rows(places), names, self.grid)

    def add(self, digests: Sequence[str], features: Tensor) -> None:
        """Add a shard of images; those that are there already do not count twice.

        Args:
            digests: of n images.
            features: [n, h*w, C], of any floating type; stored in the bank's.
        """
        name = self._new_shard(digests, features)
        with self._changing():
            self._enter(name)

    def _new_shard(self, digests: Sequence[str], features: Tensor) -> str:
        name = f"{uuid.uuid4().hex}.safetensors"
        write_shard(self.path / name, digests, features.to(DTYPES[self.dtype]))
        return name

    def _enter(self, name: str, dead: Iterable[int] = ()) -> None:
        """Enter a shard that lies in the folder; inside of `_changing`."""
        path, known, gone = self.path / name, set(self.digests()), set(dead)
        shard = Shard.open(path)
        for position, digest in enumerate(shard.digests):
            if digest in known:
                gone.add(position)
            elif position not in gone:
                known.add(digest)
        self.entries.append(Entry(name, shard.shape[0], path.stat().st_size, shard.header_crc32, sorted(gone)))

    def remove(self, digests: Iterable[str]) -> int:
        """Take images out, by an entry in the index; returns how many there were."""
        wanted, removed = set(digests), 0
        with self._changing():
            for entry in self.entries:
                for position, digest in enumerate(self.shard(entry).digests):
                    if digest in wanted and position not in entry.dead:
                        entry.dead = sorted([*entry.dead, position])
                        removed += 1
        return removed

    def merge(self, other: BankFolder) -> None:
        """Add the images of another bank: its shards as hard links where the disk is the same, otherwise as copies.

        Raises:
            InputError: when the features were made otherwise or have another shape.
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
                with self._changing():
                    self._enter(name, entry.dead)
            elif len(entry.dead) < entry.images:
                self.add(*other._living(entry))

    def _living(self, entry: Entry) -> tuple[list[str], Tensor]:
        """Digests and features [n, h*w, C] of the images of a shard that count, checked while they are read."""
        shard, dead = self.shard(entry), set(entry.dead)
        living = [position for position in range(entry.images) if position not in dead]
        features = torch.empty(len(living), *shard.shape[1:], dtype=shard.dtype)
        for place, position in enumerate(living):
            try:
                shard.read(position, features[place])
            except DamagedError as error:
                raise InputError(
                    f"the shard {shard.path} is damaged ({error}); `bank verify --drop` takes it out"
                ) from error
        return [shard.digests[position] for position in living], features

    def compact(self, share: float = 0.0) -> int:
        """Rewrite shards of which more than `share` is dead, and remove files that no index mentions.

        Returns:
            bytes freed.
        """
        before, replaced = _folder_bytes(self.path), set()
        for entry in [entry for entry in self.entries if len(entry.dead) > share * entry.images]:
            name = self._new_shard(*self._living(entry)) if len(entry.dead) < entry.images else None
            with self._changing():
                self.entries = [e for e in self.entries if e.file != entry.file]
                replaced.add(entry.file)
                if name is not None:
                    self._enter(name)
        mentioned = {entry.file for entry in self.entries}
        for path in [*self.path.glob("*.safetensors"), *self.path.glob(".*.partial")]:
            # a young file that no index mentions may be about to be entered by another process
            if path.name in replaced or (path.name not in mentioned and time.time() - path.stat().st_mtime > 3600):
                path.unlink()
        return before - _folder_bytes(self.path)

    def verify(self, progress: Any = None) -> list[tuple[str, str, int]]:
        """Read everything and compare it with its checksums.

        Args:
            progress: called with 1 after every shard.

        Returns:
            (file, what is wrong, images lost) of each damaged shard.
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
        """Take whole shards out of the index, whatever state they are in; `compact` removes their files."""
        gone = set(files)
        with self._changing():
            self.entries = [entry for entry in self.entries if entry.file not in gone]


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        with replacing(target, source.stat().st_size) as temporary:
            shutil.copyfile(source, temporary)


def _folder_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.iterdir() if file.is_file())
