"""The files that a demo depends on, as the process that it runs in sees them."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from marginalia.contents import content

CHANGED = "changed"  # in place of a digest


class Dependencies:
    """The user's own files and folders that a run imports, reads, lists or looks for.

    Those in the folder that holds the root count. Of other processes nothing is seen.

    Args:
        root: The folder on the import path.
    """

    def __init__(self, root: Path) -> None:
        self._roots = dict.fromkeys((str(root), os.path.realpath(root)))
        self._homes = tuple(map(home, self._roots))
        self._foreign = tuple(
            os.path.join(prefix, "")  # noqa: PTH118
            for prefix in (sys.prefix, sys.base_prefix, tempfile.gettempdir(), _HERE)
            if not any(Path(root).is_relative_to(prefix) for root in self._roots)
        )
        self._found: dict[str, tuple[int, ...]] = {}  # as they were at first
        self._read: set[str] = set()
        self._written: set[str] = set()

    def watch(self) -> None:
        """Note every file that is opened from now on, for the rest of the process."""
        sys.addaudithook(self._audit)

    def _audit(self, event: str, args: tuple[Any, ...]) -> None:
        # Of imports, only those of compiled modules have a file here: the others open theirs
        name = args[1] if event == "import" else args[0] if event in _READS else None
        if not isinstance(name, str | bytes | os.PathLike):
            return
        with suppress(Exception):  # an error here would be one of the demo
            name = os.path.abspath(os.fsdecode(name))  # noqa: PTH100  # called for every file
            importing = sys._getframe(1).f_code.co_filename.startswith(_IMPORTERS)
            if event == "open" and _writes(*args[1:3]):
                self._written.add(name)
            elif self._is_local(name := _source(name)) and not (importing and event in _LISTS):
                self._found.setdefault(name, _state(name))
                if not importing:
                    self._read.add(name)

    def _is_local(self, name: str) -> bool:
        """Whether a file is one of the user's own."""
        if not name.startswith(self._homes) or name.startswith(self._foreign):
            return False
        return _FOREIGN.isdisjoint(Path(name).parts)

    def found(self, page: Path) -> tuple[dict[str, str], list[str]]:
        """What the run needed and did not make itself.

        Returns:
            Path relative to the root -> SHA-256: none for what is not there, and one that never
            fits for what has changed since. Which of them the demo asked for itself, and not
            Python for an import.
        """
        read = sorted(self._read - self._written)
        hashes = {}
        for name in sorted(self._found.keys() - self._written):
            if name != str(page) or name in read:
                changed = self._found[name] != _state(name)
                hashes[self._relative(name)] = CHANGED if changed else content(Path(name))
        return hashes, [self._relative(name) for name in read]

    def _relative(self, name: str) -> str:
        inside = (root for root in self._roots if name.startswith(root + os.sep))
        return Path(os.path.relpath(name, next(inside, next(iter(self._roots))))).as_posix()


_HERE = str(Path(__file__).parent)
_IMPORTERS = ("<frozen importlib.", os.path.dirname(importlib.__file__))  # noqa: PTH120
_LISTS = ("os.listdir", "os.scandir")
_READS = ("open", "sqlite3.connect", *_LISTS)
_FOREIGN = {"site-packages", "dist-packages", "__pycache__"}


def home(root: str) -> str:
    """The folder whose files count: that of the project, or where others have theirs too, ours.

    Args:
        root: The folder on the import path.
    """
    parent = Path(root).parent
    others = {parent.anchor, os.path.expanduser("~"), os.path.realpath("/tmp")}  # noqa: PTH111
    return os.path.join(root if str(parent) in others else parent, "")  # noqa: PTH118


def _state(name: str) -> tuple[int, ...]:
    """What a file's content cannot change without; nothing if it is not there."""
    try:
        found = os.stat(name)  # noqa: PTH116  # called for every file
    except OSError:
        return ()
    return found.st_ino, found.st_mtime_ns, found.st_size


def _writes(mode: object, flags: object) -> bool:
    """Whether a file is opened to write, by what an audit event says."""
    if isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR):
        return True
    return isinstance(mode, str) and bool(set(mode) & set("wxa+"))


def _source(name: str) -> str:
    """The source of a module whose byte code is read; any other file is its own."""
    if name.endswith(".pyc"):
        with suppress(ValueError):  # there is only byte code
            return importlib.util.source_from_cache(name)
    return name
