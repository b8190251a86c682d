"""A demo's files by value, for a machine that knows nothing of the project.

A parcel holds the sources that the page reaches and the data files that it declares. A temporary
folder is then what the root of the file system is at home, with empty files where others lie beside
those; what a demo shows of that folder's name is dropped, so that a result says nothing of where it
was made.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from marginalia.keys import Inputs


@dataclass(frozen=True, slots=True)
class Parcel:
    """The files of one demo.

    Attributes:
        drive: Where the paths start, if the system has drives.
        root: The folder on the import path.
        page: The page's file.
        source: The SHA-256 of its text.
        files: Contents by path.
        executable: Those of the files that are programs.
        beside: What lies in their folders and those above, by name; a folder ends in a slash.
        libraries: Contents of sources that are imported from elsewhere, relative to `root`.
        needs: What the machine that runs it must have in common with the one that packed it.
    """

    drive: str
    root: str
    page: str
    source: str
    files: Mapping[str, bytes]
    executable: frozenset[str]
    beside: frozenset[str]
    libraries: Mapping[str, bytes]
    needs: Mapping[str, str]


def pack(path: Path, root: Path, inputs: Inputs, project: Path, source: str) -> Parcel:
    """Put all that a demo needs into a parcel.

    Args:
        path: The page's file.
        root: The folder on the import path.
        inputs: What the demo depends on.
        project: The folder of which the demo may see more than it is sent.
        source: The SHA-256 of the page's text.

    Raises:
        OSError: A file cannot be read.
    """
    path, root = path.absolute(), root.absolute()
    own, libraries = list[Path](), dict[str, bytes]()
    for file, folder in inputs.sources:
        if folder in (root, path.parent):
            own.append(_plain(file))
        else:
            libraries[file.relative_to(folder).as_posix()] = file.read_bytes()
    above = {folder for file in own for folder in file.parents if folder.is_relative_to(project)}
    folders = above.union(file.parent for file in own)
    return Parcel(
        drive=root.drive,
        root=_place(root),
        page=_place(path),
        source=source,
        files={_place(file): file.read_bytes() for file in own},
        executable=frozenset(_place(file) for file in own if file.stat().st_mode & stat.S_IXUSR),
        beside=frozenset(name for folder in folders for name in _names(folder)),
        libraries=libraries,
        needs=inputs.needs,
    )


def _plain(path: Path) -> Path:
    """A path without `..`; links in it stay."""
    return Path(os.path.normpath(path))


def _place(path: Path) -> str:
    """A path seen from the root of the file system."""
    plain = _plain(path)
    return plain.relative_to(plain.anchor).as_posix()


def _names(folder: Path) -> Iterator[str]:
    """What lies in a folder, as far as this can be seen."""
    for _, folders, files in islice(os.walk(folder), 1):
        yield from (f"{_place(folder / name)}/" for name in folders)
        yield from (_place(folder / name) for name in files)


@contextmanager
def unpacked(parcel: Parcel) -> Iterator[Path]:
    """A folder with the files, in place of the file system's root, for as long as this lasts.

    Raises:
        OSError: They cannot be written.
    """
    with tempfile.TemporaryDirectory(
        prefix="marginalia-parcel-", ignore_cleanup_errors=True
    ) as made:
        folder = Path(made).resolve()
        for name in parcel.beside:
            place = folder / name
            (place if name.endswith("/") else place.parent).mkdir(parents=True, exist_ok=True)
            if not name.endswith("/"):
                place.touch()
        for base, files in ((parcel.root, parcel.libraries), ("", parcel.files)):
            for name, content in files.items():
                file = folder / base / name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)
        for name in parcel.executable:
            (folder / name).chmod(0o700)
        yield folder


def at_home(parcel: Parcel, folder: Path, result: Mapping[str, Any]) -> dict[str, Any]:
    """A result as it would be at home: with the names of its folders, and what is read there.

    Args:
        parcel: What was unpacked.
        folder: Where.
        result: As JSON has it.
    """
    found, libraries = result["dependencies"], parcel.libraries
    dependencies = {name: digest for name, digest in found.items() if name not in libraries}
    read = [name for name in result["read"] if name not in libraries]
    renamed: dict[str, Any] = _renamed(dict(result), str(folder), parcel.drive)
    return renamed | {"dependencies": dependencies, "read": read}


def _renamed(value: Any, old: str, new: str) -> Any:
    """A copy of JSON with one string in place of another."""
    if isinstance(value, str):
        return value.replace(old, new)
    if isinstance(value, list):
        return [_renamed(item, old, new) for item in value]
    if isinstance(value, dict):
        return {name: _renamed(item, old, new) for name, item in value.items()}
    return value
