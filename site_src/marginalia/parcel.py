"""A demo's files by value, for a machine that knows nothing of the project.

A parcel holds the sources that the page reaches and the data files that it declares. Unpacked, they
lie in a temporary folder as they lie at home; what a demo then shows of that folder's name becomes
the name of the folder at home, so that a result says nothing of where it was made.
"""

from __future__ import annotations

import os
import posixpath
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from marginalia.keys import Inputs


@dataclass(frozen=True, slots=True)
class Parcel:
    """The files of one demo.

    Attributes:
        home: The folder around all files, on the machine that packed them.
        root: The folder on the import path, relative to `home`.
        page: The page's file, relative to `home`.
        files: Contents by path, relative to `home`.
        libraries: Contents of sources that are imported from elsewhere, relative to `root`.
        needs: What the machine that runs it must have in common with the one that packed it.
    """

    home: str
    root: str
    page: str
    files: Mapping[str, bytes]
    libraries: Mapping[str, bytes]
    needs: Mapping[str, str]


def pack(path: Path, root: Path, inputs: Inputs) -> Parcel:
    """Put all that a demo needs into a parcel.

    Args:
        path: The page's file.
        root: The folder on the import path.
        inputs: What the demo depends on.

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
    path, root = _plain(path), _plain(root)
    home = Path(os.path.commonpath([root, *(file.parent for file in (path, *own))]))
    return Parcel(
        home=str(home),
        root=root.relative_to(home).as_posix(),
        page=path.relative_to(home).as_posix(),
        files={file.relative_to(home).as_posix(): file.read_bytes() for file in own},
        libraries=libraries,
        needs=inputs.needs,
    )


def _plain(path: Path) -> Path:
    """A path without `..`; links in it stay."""
    return Path(os.path.normpath(path))


@contextmanager
def unpacked(parcel: Parcel) -> Iterator[Path]:
    """A folder with the files, in place of `home`, for as long as this lasts.

    Raises:
        OSError: They cannot be written.
    """
    with tempfile.TemporaryDirectory(
        prefix="marginalia-parcel-", ignore_cleanup_errors=True
    ) as name:
        folder = Path(name).resolve()
        for base, files in ((parcel.root, parcel.libraries), ("", parcel.files)):
            for place, content in files.items():
                file = folder / base / place
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)
        yield folder


def at_home(parcel: Parcel, folder: Path, result: Mapping[str, Any]) -> dict[str, Any]:
    """A result as it would be at home: with its folder's name, and what is read there.

    Args:
        parcel: What was unpacked.
        folder: Where.
        result: As JSON has it.
    """

    def is_ours(name: str) -> bool:  # the machine has files, too, beside the folder
        place = posixpath.normpath(posixpath.join(parcel.root, name))
        inside = not name.startswith("../") or place in parcel.files
        return inside and name not in parcel.libraries

    dependencies = {n: digest for n, digest in result["dependencies"].items() if is_ours(n)}
    read = [name for name in result["read"] if is_ours(name)]
    renamed: dict[str, Any] = _renamed(dict(result), str(folder), parcel.home.rstrip("/"))
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
