"""Banks in folders hold what was added and not removed, also after merging, compacting, damage and killed commands."""

import json
import os
import re
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch

from monai_wscxr.bank import folder as bank_folder
from monai_wscxr.bank.folder import BankFolder
from monai_wscxr.errors import InputError
from monai_wscxr.system.atomic import DiskFullError
from tests.helpers.hostile import NO_FILES, WRONG, fields, with_wrong, within

SETTINGS = {"backbone": "x", "neighbourhood": 5}


def features(names, seed=0):
    """Return features [n, 6, 4] that depend on the names of the images alone."""
    return torch.stack(
        [torch.randn(6, 4, generator=torch.Generator().manual_seed(seed + 1000 * ord(name))) for name in names]
    )


def rows_of(names, dtype=torch.float32):
    return features(names).to(dtype).reshape(-1, 4)


def made(path, *shards, dtype="float32", settings=SETTINGS):
    bank = BankFolder.create(path, settings, (2, 3), 4, dtype)
    for names in shards:
        bank.add(names, features(names))
    return bank


def everything(bank):
    source = bank.bank().rows
    return source.read(0, torch.empty(source.shape, dtype=source.dtype))


def flip(path, place=-9):
    content = bytearray(path.read_bytes())
    content[place] ^= 2
    path.write_bytes(content)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_images_come_back_in_order_also_from_another_process(tmp_path, dtype):
    made(tmp_path / "bank", "abc", "de", "f", dtype=dtype)
    bank = BankFolder(tmp_path / "bank")
    assert bank.digests() == list("abcdef")
    assert len(bank) == 36
    assert torch.equal(everything(bank), rows_of("abcdef", getattr(torch, dtype)))
    on_disk = bank.bank()
    assert (on_disk.files, on_disk.grid, len(on_disk)) == (tuple("abcdef"), (2, 3), 36)
    assert (bank.settings, bank.grid, bank.channels, bank.dtype) == (SETTINGS, (2, 3), 4, dtype)


def test_an_image_counts_once(tmp_path):
    bank = made(tmp_path / "bank", "abc", "bd", "a")
    assert bank.digests() == list("abcd")
    assert torch.equal(everything(bank), rows_of("abcd"))


def test_removed_images_are_gone_and_come_back_when_added_again(tmp_path):
    bank = made(tmp_path / "bank", "abc", "de")
    files = {path.name: path.read_bytes() for path in bank.path.glob("*.safetensors")}
    assert bank.remove(["b", "e", "z"]) == 2
    assert bank.remove(["b"]) == 0
    again = BankFolder(bank.path)
    assert again.digests() == list("acd")
    assert torch.equal(everything(again), rows_of("acd"))
    assert {path.name: path.read_bytes() for path in bank.path.glob("*.safetensors")} == files  # only the index changed
    again.add("be", features("be"))
    assert torch.equal(everything(again), rows_of("acdbe"))


def test_compacting_frees_the_space_and_keeps_the_rest(tmp_path):
    bank = made(tmp_path / "bank", "abc", "de", "fg")
    bank.remove("bfg")
    kept = bank.path / bank.entries[1].file
    before = kept.stat().st_ino
    assert bank.compact() > 2 * 96
    again = BankFolder(bank.path)
    assert sorted(again.digests()) == list("acde")
    assert torch.equal(everything(again), rows_of(again.digests()))
    assert kept.stat().st_ino == before
    assert len(list(bank.path.glob("*.safetensors"))) == 2
    assert all(entry.dead == [] for entry in again.entries)


def test_compacting_leaves_what_another_process_is_adding_and_removes_old_leftovers(tmp_path):
    bank = made(tmp_path / "bank", "ab")
    for name, age in (("new", 0), ("old", 7200)):
        path = bank.path / f"{name}.safetensors"
        path.write_bytes(b"x")
        os.utime(path, (time.time() - age,) * 2)
    bank.compact()
    assert (bank.path / "new.safetensors").exists()
    assert not (bank.path / "old.safetensors").exists()
    assert torch.equal(everything(bank), rows_of("ab"))


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_merged_banks_hold_every_image_once(tmp_path, monkeypatch, dtype, links):
    first, second = made(tmp_path / "1", "abc", "de"), made(tmp_path / "2", "cfg", "h", dtype=dtype)
    second.remove("g")
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("another disk")))
    merged = BankFolder.create(tmp_path / "all", SETTINGS, (2, 3), 4)
    for bank in (first, second):
        merged.merge(bank)
    assert merged.digests() == list("abcdefh")
    expected = torch.cat([rows_of("abcde"), rows_of("fh", getattr(torch, dtype)).float()])
    assert torch.equal(everything(BankFolder(tmp_path / "all")), expected)
    for path in (tmp_path / "1").iterdir():  # the merged bank does not need its parts
        path.unlink()
    assert torch.equal(everything(BankFolder(tmp_path / "all")), expected)


@pytest.mark.parametrize("other", [{"backbone": "y", "neighbourhood": 5}, {"backbone": "x"}])
def test_banks_made_otherwise_are_not_merged(tmp_path, other):
    first, second = made(tmp_path / "1", "a"), made(tmp_path / "2", "b", settings=other)
    with pytest.raises(InputError, match="made with different settings"):
        first.merge(second)
    assert first.digests() == ["a"]


# --- damage, kills, several processes ------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [-1, -97, -3 * 96, 5, 60])
def test_every_damage_is_found_and_costs_its_shard_alone(tmp_path, place):
    bank = made(tmp_path / "bank", "abc", "de", "fgh")
    flip(bank.path / bank.entries[0].file, place)
    again = BankFolder(bank.path)
    found = again.verify()
    assert [(file, images) for file, _, images in found] == [(bank.entries[0].file, 3)]
    again.drop([found[0][0]])
    repaired = BankFolder(bank.path)
    assert repaired.digests() == list("defgh")
    repaired.add("abc", features("abc"))
    assert repaired.verify() == []
    assert torch.equal(everything(repaired), rows_of("defghabc"))


@pytest.mark.parametrize("what", ["gone", "short", "swapped"])
def test_a_shard_that_is_not_the_one_added_is_told(tmp_path, what):
    bank = made(tmp_path / "bank", "abc", "def")
    path, other = (bank.path / entry.file for entry in bank.entries)
    if what == "gone":
        path.unlink()
    elif what == "short":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        path.write_bytes(other.read_bytes())
    with pytest.raises(InputError, match=r"is damaged .*bank verify --drop"):
        BankFolder(bank.path).bank()
    assert len(BankFolder(bank.path).verify()) == 1


def test_compacting_damaged_images_does_not_spread_them(tmp_path):
    bank = made(tmp_path / "bank", "abc")
    bank.remove("b")
    flip(bank.path / bank.entries[0].file)
    again = BankFolder(bank.path)
    with pytest.raises(InputError, match="is damaged"):
        again.compact()
    assert BankFolder(bank.path).digests() == list("ac")


@pytest.mark.parametrize("change", ["add", "remove", "merge", "compact"])
def test_killed_before_the_index_is_written_leaves_the_bank_as_it_was(tmp_path, monkeypatch, change):
    bank, other = made(tmp_path / "bank", "abc"), made(tmp_path / "other", "x")
    bank.remove("a")
    before = (bank.path / "bank.json").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(bank_folder, "write_text_atomic", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        action = {
            "add": lambda: bank.add("d", features("d")),
            "remove": lambda: bank.remove("b"),
            "merge": lambda: bank.merge(other),
            "compact": bank.compact,
        }[change]
        with pytest.raises(KeyboardInterrupt):
            action()
    assert (bank.path / "bank.json").read_bytes() == before
    again = BankFolder(bank.path)
    assert again.digests() == ["b", "c"]
    assert torch.equal(everything(again), rows_of("bc"))


def test_several_writers_at_a_time_lose_nothing(tmp_path):
    made(tmp_path / "bank")
    names = "abcdefghijkl"

    def add(name):
        BankFolder(tmp_path / "bank").add([name], features(name))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add, names))
    bank = BankFolder(tmp_path / "bank")
    assert sorted(bank.digests()) == list(names)
    assert torch.equal(everything(bank), rows_of(bank.digests()))


@pytest.mark.parametrize("content", [None, "{", "{}", '{"format": "another 7"}'])
def test_what_is_no_bank_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "bank.json").write_text(content)
    with pytest.raises(InputError, match=rf"{re.escape(str(tmp_path))} holds no bank"):
        BankFolder(tmp_path)


def test_a_new_bank_needs_an_empty_folder_and_a_known_type(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="not empty"):
        BankFolder.create(tmp_path, SETTINGS, (2, 3), 4)
    with pytest.raises(InputError, match="float32, float16, bfloat16, got 'int8'"):
        BankFolder.create(tmp_path / "new", SETTINGS, (2, 3), 4, "int8")


def test_an_empty_bank_has_no_rows_to_give(tmp_path):
    bank = made(tmp_path / "bank", "a")
    bank.remove("a")
    assert len(bank) == 0
    with pytest.raises(InputError, match="holds no image"):
        bank.bank()
    assert json.loads((bank.path / "bank.json").read_text())["rows"] == 0


# --- what nobody writes by accident --------------------------------------------------------------------------------


def index_of(path):
    return json.loads((path / "bank.json").read_text())


@pytest.mark.parametrize("wrong", WRONG)
def test_no_wrong_value_in_the_index_ends_in_a_traceback_or_another_bank(tmp_path, wrong):
    bank = made(tmp_path / "bank", "abc", "de")
    bank.remove("b")
    index, expected = index_of(bank.path), everything(BankFolder(bank.path))
    for place in fields(index):
        (bank.path / "bank.json").write_text(with_wrong(index, place, wrong))

        def use():
            again = BankFolder(bank.path)
            return again, again.bank(), again.verify()

        used = within(5, use)
        if isinstance(used, InputError):
            assert str(bank.path) in str(used)
            assert len(str(used)) < 600
            continue
        assert not isinstance(used, BaseException), (place, wrong, used)
        again, on_disk, damaged = used
        assert damaged == []
        rows = on_disk.rows
        same = torch.equal(rows.read(0, torch.empty(rows.shape, dtype=rows.dtype)), expected)
        assert same or place[0] == "shards", (place, wrong)  # another position may count as removed
        assert place[0] in ("settings", "shards")
        assert again.grid == (2, 3)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"grid": [-2, -3]}, r"grid\[0\] must be a whole number from 1"),
        ({"grid": [2, 3, 1]}, "grid must be a list of 2 values"),
        ({"channels": 0}, "channels must be a whole number"),
        ({"rows": 31}, "its shards hold 30 rows, but it counts 31"),
        ({"more": 1}, "more is not a known key"),
        ({"shards": "x"}, "shards must be a list"),
    ],
)
def test_an_index_that_contradicts_itself_is_refused(tmp_path, change, reason):
    bank = made(tmp_path / "bank", "abc", "de")
    (bank.path / "bank.json").write_text(json.dumps({**index_of(bank.path), **change}))
    with pytest.raises(InputError, match=f"bank.json is damaged .{reason}"):
        BankFolder(bank.path)


@pytest.mark.parametrize(
    "name",
    ["../x.safetensors", "/etc/x.safetensors", "a/b.safetensors", "a\\b.safetensors", ".x.safetensors", "bank.json"],
)
def test_a_shard_outside_of_the_folder_is_refused(tmp_path, name):
    bank = made(tmp_path / "bank", "abc")
    index = index_of(bank.path)
    (tmp_path / "x.safetensors").write_bytes((bank.path / index["shards"][0]["file"]).read_bytes())
    index["shards"][0]["file"] = name
    (bank.path / "bank.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"shards\[0\].file must be a file name ending in .safetensors"):
        BankFolder(bank.path)


@pytest.mark.parametrize(
    ("dead", "allowed"), [([0, 1], True), ([1, 0], False), ([1, 1], False), ([3], False), ([-1], False), ([0.0], False)]
)
def test_positions_of_removed_images(tmp_path, dead, allowed):
    bank = made(tmp_path / "bank", "abc")
    index = index_of(bank.path)
    index["shards"][0]["dead"], index["rows"] = dead, 6 * (3 - len(dead))
    (bank.path / "bank.json").write_text(json.dumps(index))
    if allowed:
        assert BankFolder(bank.path).digests() == ["c"]
    else:
        with pytest.raises(InputError, match="dead"):
            BankFolder(bank.path)


def test_a_shard_listed_twice_or_with_more_images_than_it_has(tmp_path):
    bank = made(tmp_path / "bank", "abc")
    index = index_of(bank.path)
    twice = {**index, "shards": index["shards"] * 2, "rows": 36}
    (bank.path / "bank.json").write_text(json.dumps(twice))
    with pytest.raises(InputError, match="lists a shard twice"):
        BankFolder(bank.path)
    more = {**index, "shards": [{**index["shards"][0], "images": 4}], "rows": 24}
    (bank.path / "bank.json").write_text(json.dumps(more))
    with pytest.raises(InputError, match=r"it holds 3 images, bank.json lists 4"):
        BankFolder(bank.path).bank()


@pytest.mark.parametrize("make", NO_FILES)
@pytest.mark.parametrize("name", ["shard", "bank.json", ".lock"])
def test_what_is_no_regular_file_is_named_without_waiting(tmp_path, make, name):
    bank = made(tmp_path / "bank", "abc", "de")
    path = bank.path / (bank.entries[0].file if name == "shard" else name)
    path.unlink()
    make(path)
    if name == "shard":
        found = within(20, lambda: BankFolder(bank.path).verify())
        assert [(file, images) for file, _, images in found] == [(path.name, 3)]
        within(20, lambda: BankFolder(bank.path).drop([path.name]))
        assert BankFolder(bank.path).digests() == ["d", "e"]
        assert isinstance(within(20, BankFolder(bank.path).compact), int)
    else:
        error = within(20, lambda: BankFolder(bank.path).add("f", features("f")))
        assert isinstance(error, InputError)
        assert str(path) in str(error) or "holds no bank" in str(error)


def test_a_lock_that_is_a_link_does_not_empty_its_target(tmp_path):
    bank = made(tmp_path / "bank", "abc")
    (tmp_path / "precious").write_text("kept")
    (bank.path / ".lock").unlink()
    (bank.path / ".lock").symlink_to(tmp_path / "precious")
    with pytest.raises(InputError, match=r"\.lock cannot be opened"):
        bank.add("d", features("d"))
    assert (tmp_path / "precious").read_text() == "kept"


def test_numbers_that_are_not_finite_are_found(tmp_path):
    bank = made(tmp_path / "bank", "abc")
    broken = features("de")
    broken[0, 2, 1] = torch.nan
    with pytest.raises(InputError, match="hold NaN or Inf"):
        bank.add("de", broken)
    half = made(tmp_path / "half", dtype="float16")
    with pytest.raises(InputError, match=r"hold NaN or Inf as torch\.float16"):
        half.add("a", features("a") + 1e6)


def test_what_a_killed_creation_leaves_does_not_count(tmp_path):
    (tmp_path / ".bank.json.0123abcd.partial").write_text('{"format')
    BankFolder.create(tmp_path, {}, (1, 1), 4)
    assert BankFolder(tmp_path).channels == 4
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").touch()
    with pytest.raises(InputError, match="not empty"):
        BankFolder.create(tmp_path / "other", {}, (1, 1), 4)


# ---- full disks


def full(*_):
    raise DiskFullError("no room")


def files(bank):
    return sorted(path.name for path in bank.path.glob("*.safetensors"))


@pytest.mark.parametrize("change", ["add", "merge", "compact"])
def test_a_shard_that_cannot_be_entered_does_not_stay(tmp_path, monkeypatch, change):
    bank, other = made(tmp_path / "bank", "abc"), made(tmp_path / "other", "x")
    bank.remove("a")
    before = files(bank)
    action = {"add": lambda: bank.add("d", features("d")), "merge": lambda: bank.merge(other), "compact": bank.compact}
    with monkeypatch.context() as patch:
        patch.setattr(bank_folder, "write_text_atomic", full)
        with pytest.raises(DiskFullError):
            action[change]()
    assert files(bank) == before
    assert bank.digests() == ["b", "c"]  # the object, too, is as the disk
    action[change]()
    assert (
        BankFolder(bank.path).digests()
        == {"add": ["b", "c", "d"], "merge": ["b", "c", "x"], "compact": ["b", "c"]}[change]
    )


def test_a_shard_stays_that_was_entered_before_the_error(tmp_path, monkeypatch):
    bank = made(tmp_path / "bank", "a")
    write = bank_folder.write_text_atomic
    monkeypatch.setattr(bank_folder, "write_text_atomic", lambda *given: (write(*given), full()))
    with pytest.raises(DiskFullError):
        bank.add("b", features("b"))
    assert torch.equal(everything(BankFolder(bank.path)), rows_of("ab"))


def test_compacting_frees_what_it_can_before_the_disk_is_full(tmp_path, monkeypatch):
    bank = made(tmp_path / "bank", "abcd", "efgh", "ij", "klmn")
    bank.remove("aeijk")
    _, second, dead, last = (entry.file for entry in bank.entries)
    sizes = {entry.file: entry.bytes for entry in bank.entries}
    write, written = bank_folder.write_shard, []

    def until_full(path, *given):
        assert dead not in files(bank)  # what needs no room went first
        if written:
            full()
        written.append(path)
        return write(path, *given)

    monkeypatch.setattr(bank_folder, "write_shard", until_full)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    with pytest.raises(DiskFullError, match="2 shards without their dead images could not be written") as error:
        bank.compact()
    assert files(bank) == sorted([written[0].name, second, last])
    # each shard takes a block, its predecessor frees one, and so does the index
    assert all(size < 4096 for size in sizes.values())
    assert "9 kB are needed, 0 kB are free: 9 kB are missing" in str(error.value)
    monkeypatch.undo()
    again = BankFolder(bank.path)
    again.compact()
    assert again.digests() == list("bcdfghlmn")
    assert torch.equal(everything(again), rows_of("bcdfghlmn"))


def test_shards_that_other_banks_share_free_nothing(tmp_path, monkeypatch):
    bank = made(tmp_path / "bank", "ab", "cd")
    os.link(bank.path / bank.entries[0].file, tmp_path / "shared")
    bank.remove("ac")
    alone, shared = bank._peak(bank.entries[1:]), bank._peak(bank.entries)
    assert (alone, shared) == (2 * 4096, 3 * 4096)


def test_a_lock_that_cannot_be_created_for_lack_of_room_says_so(tmp_path, monkeypatch):
    bank = made(tmp_path / "bank", "a")
    monkeypatch.setattr(os, "open", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(DiskFullError, match=r"\.lock could not be written .* are missing"):
        bank.remove("a")


def test_merging_takes_room_for_what_cannot_be_shared(tmp_path):
    bank, same, half = made(tmp_path / "1", "a"), made(tmp_path / "2", "b"), made(tmp_path / "3", "c", dtype="float16")
    assert bank.merging_takes(same) == 0
    assert bank.merging_takes(half) == 4096
