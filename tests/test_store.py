"""The store gives back what it was given, or nothing; never anything else."""

from __future__ import annotations

import math
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from marginalia.store import BLOB, GRACE, Store, StoreError

KEY, OTHER = "ab" * 32, "cd" * 32
FIGURE = "<svg>" + "x" * BLOB
ENTRY: dict[str, Any] = {
    "z": "order stays",
    "a": [1, 2.5, None, True, {"figure": FIGURE, "small": "<svg>"}],
    "odd": "\ud800 \x00 ü 中 " + "\ud800" * BLOB,
    "": {},
}


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "deep" / "store")


def test_gives_back_what_was_put(store: Store) -> None:
    assert store.get(KEY) is None
    store.put(KEY, ENTRY)
    entry = store.get(KEY)
    assert entry == ENTRY
    assert list(entry) == list(ENTRY)
    assert Store(store.folder).get(KEY) == ENTRY
    assert store.get(OTHER) is None


def test_numbers_survive(store: Store) -> None:
    store.put(KEY, {"numbers": [math.inf, 1e-300, 0.1, math.nan]})
    entry = store.get(KEY)
    assert entry is not None
    assert entry["numbers"][:3] == [math.inf, 1e-300, 0.1]
    assert math.isnan(entry["numbers"][3])


def test_a_caller_cannot_change_what_is_kept(store: Store) -> None:
    entry = {"list": [FIGURE]}
    store.put(KEY, entry)
    assert entry == {"list": [FIGURE]}
    entry["list"].append("later")
    assert store.get(KEY) == {"list": [FIGURE]}


def test_the_last_put_wins(store: Store) -> None:
    store.put(KEY, {"n": 1})
    store.put(KEY, {"n": 2})
    assert store.get(KEY) == {"n": 2}


def test_long_strings_are_kept_once(store: Store) -> None:
    store.put(KEY, {"a": FIGURE, "b": [FIGURE]})
    store.put(OTHER, {"c": FIGURE})
    assert len(files(store.folder / "objects")) == 1
    assert not [path for path in files(store.folder) if path.suffix == ".tmp"]


def test_an_entry_may_be_one_file(tmp_path: Path) -> None:
    store = Store(tmp_path / "whole", whole=True)
    store.put(KEY, ENTRY)
    [path] = files(store.folder)
    assert store.get(KEY) == ENTRY
    path.write_bytes(path.read_bytes().replace(b"x", b"y", 1))
    assert store.get(KEY) is None


DAMAGE = {
    "truncated": lambda data: data[: len(data) // 2],
    "emptied": lambda data: b"",
    "one byte": lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:],
    "other json": lambda data: b'{"entry": {}, "blobs": []}',
    "other checksum": lambda data: b"0" * 64 + b'\n{"entry": {}, "blobs": []}',
    "no json": lambda data: b"\xff\xfe",
    "no object": lambda data: b"[[[]]]",
    "bottomless": lambda data: b"[" * 100_000,
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("part", ["entries", "objects"])
def test_a_damaged_entry_is_not_there_and_can_be_put_again(
    store: Store, part: str, damage: str
) -> None:
    store.put(KEY, ENTRY)
    store.put(OTHER, {"n": 1})
    for path in files(store.folder / part):
        if path.stem != OTHER:
            path.write_bytes(DAMAGE[damage](path.read_bytes()))
    assert store.get(KEY) is None
    assert store.get(OTHER) == {"n": 1}
    store.put(KEY, ENTRY)
    assert store.get(KEY) == ENTRY


def test_a_missing_blob_is_a_missing_entry(store: Store) -> None:
    store.put(KEY, ENTRY)
    files(store.folder / "objects")[0].unlink()
    assert store.get(KEY) is None


@pytest.mark.parametrize("key", ["", "../../etc/passwd", "short", "AB" * 32, "ab" * 32 + "\n"])
def test_only_digests_are_keys(store: Store, key: str) -> None:
    with pytest.raises(ValueError, match="not a key"):
        store.get(key)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file/store, cannot be used"):
        Store(tmp_path / "file" / "store")


def test_a_folder_that_cannot_be_written_keeps_what_it_has(store: Store) -> None:
    store.put(KEY, {"n": 1})
    folder = store.folder / "entries" / OTHER[:2]
    folder.write_text("in the way")
    with pytest.raises(StoreError, match="cannot be used"):
        store.put(OTHER, ENTRY)
    assert store.get(KEY) == {"n": 1}


def test_writers_and_readers_at_once(store: Store) -> None:
    def work(number: int) -> bool:
        store.put(KEY, {"n": number, "figure": FIGURE + str(number % 3)})
        entry = store.get(KEY)
        return entry is not None and entry["figure"] == FIGURE + str(entry["n"] % 3)

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(work, range(200)))


def age(store: Store, key: str, seconds: float) -> None:
    path = store.folder / "entries" / key[:2] / f"{key}.json"
    os.utime(path, (time.time() - seconds,) * 2)


def test_what_is_put_after_the_size_was_looked_at_counts(store: Store) -> None:
    store.put(KEY, {"n": 1})
    assert store.prune(1000) == 0
    store.put(OTHER, {"long": "x" * 2000})
    assert store.prune(1000) > 0


def age_objects(store: Store) -> None:
    for path in files(store.folder / "objects"):
        os.utime(path, (time.time() - 2 * GRACE,) * 2)


def test_prune_drops_what_was_not_used_for_longest(store: Store) -> None:
    keys = [f"{number:064x}" for number in range(4)]
    for number, key in enumerate(keys):
        store.put(key, {"own": FIGURE + key, "shared": FIGURE})
        age(store, key, seconds=1000 * (len(keys) - number))
    age_objects(store)
    size = sum(path.stat().st_size for path in files(store.folder))
    assert store.get(keys[0]) is not None  # it is used again, so the second is now the oldest
    freed = store.prune(size - 1)
    assert [store.get(key) is not None for key in keys] == [True, False, True, True]
    assert sum(path.stat().st_size for path in files(store.folder)) == size - freed
    store.prune(0)
    assert files(store.folder) == []


def test_prune_keeps_all_that_fits(store: Store) -> None:
    store.put(KEY, ENTRY)
    age_objects(store)
    assert store.prune(10**9) == 0
    assert store.get(KEY) == ENTRY


def test_prune_spares_what_another_build_may_be_writing(store: Store) -> None:
    folder = store.folder / "objects" / "ab"
    folder.mkdir()
    for name, seconds in (("young", 0.0), ("old", 2 * GRACE)):
        (folder / name).write_text("x")
        os.utime(folder / name, (time.time() - seconds,) * 2)
    assert store.prune(0) == 1
    assert [path.name for path in files(store.folder)] == ["young"]
