"""A folder of plain files that keeps JSON by key: never corrupt, safe for concurrent builds.

``entries/ab/<key>.json`` is a line with the checksum of the next one, which is JSON. Long strings
(figures, mostly) are taken out of it and kept once each, as ``objects/ab/<SHA-256>``. Every file
appears whole or not at all, and is checked when it is read: whatever is wrong with it, the entry
then just is not there.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from marginalia.errors import MarginaliaError

BLOB = 4096  # characters: longer strings leave the manifest
GRACE = 3600.0  # seconds: a younger file may belong to an entry that is still being written

_KEY = re.compile(r"[0-9a-f]{8,128}")
_Path = list[str | int]


class StoreError(MarginaliaError):
    """The folder of the store cannot be used."""


class Store:
    """JSON objects by key, in a folder.

    Args:
        folder: Where; made if it is missing.
        whole: Whether each entry is one file, for strings that no other entry has.

    Raises:
        StoreError: The folder cannot be made.
    """

    def __init__(self, folder: Path, *, whole: bool = False) -> None:
        self.folder = folder
        self._whole = whole
        self._size_at_most: int | None = None  # but for what other builds put meanwhile
        self._entries = folder / "entries"
        self._objects = folder / "objects"
        try:
            self._entries.mkdir(parents=True, exist_ok=True)
            self._objects.mkdir(exist_ok=True)
        except OSError as error:
            raise _unusable(folder, error) from error

    def get(self, key: str) -> dict[str, Any] | None:
        """What was last put under a key.

        Args:
            key: Hexadecimal digits.

        Returns:
            A new object, or None if there is none or any part of it is missing or damaged.
        """
        path = self._entry(key)
        try:
            body = _checked(path.read_bytes())
            entry: dict[str, Any] = body["entry"]
            for place, digest in body["blobs"]:
                _set(entry, place, self._blob(digest))
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            return None
        with suppress(OSError):  # a store that may only be read still serves
            os.utime(path)
        return entry

    def put(self, key: str, entry: dict[str, Any]) -> None:
        """Keep an object, in place of what the key had.

        Args:
            key: Hexadecimal digits.
            entry: What JSON can hold.

        Raises:
            StoreError: It cannot be written; what the key had is then still there.
        """
        blobs: list[tuple[_Path, str]] = []
        if not self._whole:
            entry = json.loads(_dump(entry))  # the caller's stays as it is
            blobs = [(place, self._keep(text)) for place, text in _long_strings(entry, [])]
            for place, _ in blobs:
                _set(entry, place, None)
        body = _dump({"entry": entry, "blobs": blobs})
        self._write(self._entry(key), _sha256(body).encode() + b"\n" + body)

    def _keep(self, text: str) -> str:
        """Keep a long string; returns its digest."""
        data = text.encode("utf-8", "surrogatepass")
        digest = _sha256(data)
        # A blob that is there already is written again: it may be damaged, or about to go.
        self._write(self._objects / digest[:2] / digest, data)
        return digest

    def size(self) -> int:
        """Bytes of all files."""
        return sum(s.st_size for part in (self._objects, self._entries) for _, s in _files(part))

    def prune(self, max_bytes: int) -> int:
        """If the store is too large, drop what no entry needs and the entries longest unused.

        Files younger than `GRACE` that no entry needs may be another build's next entry: they stay.

        Args:
            max_bytes: Size of the entries and their blobs together.

        Returns:
            How many bytes were freed.

        Raises:
            StoreError: The folder cannot be read.
        """
        try:
            if self._size_at_most is None or self._size_at_most > max_bytes:
                self._size_at_most = self.size()
            if self._size_at_most <= max_bytes:
                return 0
            self._size_at_most = None
            return self._prune(max_bytes)
        except OSError as error:
            raise _unusable(self.folder, error) from error

    def _prune(self, max_bytes: int) -> int:
        """Entries from the newest on are kept while they fit, with the blobs they name."""
        kept, size, freed, full = set[str](), 0, 0, False
        entries = [(path, stat) for path, stat in _files(self._entries) if path.suffix == ".json"]
        for path, stat in sorted(entries, key=lambda item: item[1].st_mtime, reverse=True):
            blobs = {name: self._size(name) for name in self._names(path) - kept}
            more = stat.st_size + sum(blobs.values())
            full = full or size + more > max_bytes
            if full:
                freed += _remove(path, stat)
            else:
                size += more
                kept.update(blobs)
        old = time.time() - GRACE
        for folder in (self._objects, self._entries):
            for path, stat in _files(folder):
                if path.name not in kept and path.suffix != ".json" and stat.st_mtime < old:
                    freed += _remove(path, stat)
        return freed

    def _names(self, path: Path) -> set[str]:
        """The blobs of a manifest; none if it is damaged."""
        try:
            return {str(digest) for _, digest in _checked(path.read_bytes())["blobs"]}
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            return set()

    def _size(self, digest: str) -> int:
        try:
            return (self._objects / digest[:2] / digest).stat().st_size
        except OSError:
            return 0

    def _entry(self, key: str) -> Path:
        if not _KEY.fullmatch(key):
            raise ValueError(f"not a key: {key!r}")
        return self._entries / key[:2] / f"{key}.json"

    def _blob(self, digest: str) -> str:
        data = (self._objects / digest[:2] / digest).read_bytes()
        if _sha256(data) != digest:
            raise ValueError(f"damaged: {digest}")
        return data.decode("utf-8", "surrogatepass")

    def _write(self, path: Path, data: bytes) -> None:
        """A file that is whole from the moment it has its name."""
        temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
        if self._size_at_most is not None:
            self._size_at_most += len(data)
        try:
            try:
                _write(temporary, data)
                temporary.replace(path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
        except OSError as error:
            raise _unusable(self.folder, error) from error


def _unusable(folder: Path, error: OSError) -> StoreError:
    return StoreError(f"the folder of finished runs, {folder}, cannot be used: {error}")


def _write(path: Path, data: bytes) -> None:
    """Write a file, and make its folder if there is none."""
    try:
        path.write_bytes(data)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def _checked(data: bytes) -> dict[str, Any]:
    """The JSON of an entry's file.

    Raises:
        ValueError: It is damaged.
    """
    checksum, _, body = data.partition(b"\n")
    if checksum.decode("ascii", "replace") != _sha256(body):
        raise ValueError("damaged")
    found: dict[str, Any] = json.loads(body)
    return found


def _dump(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode("ascii")


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _long_strings(value: Any, place: _Path) -> Iterator[tuple[_Path, str]]:
    """Every long string, and the keys and indices that lead to it."""
    if isinstance(value, str) and len(value) > BLOB:
        yield place, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _long_strings(item, [*place, key])
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _long_strings(item, [*place, index])


def _set(value: Any, place: _Path, item: Any) -> None:
    """Put an item where `place` leads."""
    *way, last = place
    for step in way:
        value = value[step]
    value[last] = item


def _files(folder: Path) -> list[tuple[Path, os.stat_result]]:
    """The files of a store's folder; those that vanish meanwhile are not there."""
    found = []
    for path in sorted(folder.glob("*/*")):
        with suppress(FileNotFoundError):
            found.append((path, path.stat()))
    return found


def _remove(path: Path, stat: os.stat_result) -> int:
    """Remove a file unless it was used since; how many bytes went."""
    try:
        if path.stat().st_mtime_ns != stat.st_mtime_ns:
            return 0
        path.unlink()
    except FileNotFoundError:
        return 0
    return stat.st_size
