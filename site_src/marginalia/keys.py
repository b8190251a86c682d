"""What a demo's outputs depend on, found without running it: the key under which they are kept.

Imports are followed with the syntax tree, so the key of a page is there before anything is
imported. What only the run shows (data files, modules imported by computed names) is no part of the
key: the runner keeps it beside the outputs.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import astuple, dataclass
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

from marginalia.errors import SourceError
from marginalia.rows import code_text, is_script
from marginalia.source import read_source, tree_of

FORMAT = 1  # of what is kept under a key
CAPTURE = "worker"  # the module of ours whose imports are the capture code
ALWAYS = ("torch", "numpy", "matplotlib")  # what the capture code itself shows on a page


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a demo's outputs depend on.

    Attributes:
        key: SHA-256 over all of it.
        files: The local files whose code is in the key, with links resolved.
    """

    key: str
    files: frozenset[str]


def inputs(path: Path, root: Path, options: Mapping[str, Any]) -> Inputs:
    """Find the inputs of a page's demo.

    Args:
        path: The page's file.
        root: The folder on the import path.
        options: What else the outputs depend on.

    Raises:
        OSError: The file cannot be read.
    """
    path, root = path.absolute(), root.absolute()
    closure = _Closure([root, path.parent])
    closure.start(path, root)
    packages = {name: versions(name) for name in {*closure.packages, *ALWAYS}}
    parts = {
        "format": FORMAT,
        "python": [platform.python_implementation(), *sys.version_info[:3]],
        "system": [sys.platform, platform.machine()],
        "device": device_kind(),
        "capture": capture_digest(),
        "options": dict(options),
        "packages": packages,
        "page": _label(path, root),
        "code": sorted(closure.code),
    }
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    return Inputs(key, frozenset(os.path.realpath(file) for file in closure.files))


def device_kind() -> str:
    """``"cuda"`` if a demo would find a GPU, else ``"cpu"``; leaves the GPU itself alone.

    A process that initialised CUDA must not be forked from, and importing torch takes a second, so
    this only looks for the driver's device files.
    """
    if os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1"):
        return "cpu"
    if sys.platform == "win32":
        driver = Path(os.environ.get("SYSTEMROOT", r"C:\Windows"), "System32", "nvcuda.dll")
        return "cuda" if driver.exists() else "cpu"
    devices = (*Path("/dev").glob("nvidia[0-9]*"), Path("/dev/kfd"), Path("/dev/dxg"))
    return "cuda" if any(device.exists() for device in devices) else "cpu"


@functools.cache
def capture_digest() -> str:
    """A digest of our own code that runs in a demo's process: it shapes what is recorded."""
    package = Path(__file__).parent
    closure = _Closure([package.parent], only=package.name)
    closure.start(package / f"{CAPTURE}.py", package.parent)
    return hashlib.sha256(json.dumps(sorted(closure.code)).encode()).hexdigest()


class _Closure:
    """The local files that a module reaches by import, and the other packages that they name.

    Args:
        folders: Where local modules are looked for, in this order.
        only: Follow no top-level package but this.

    Attributes:
        code: Labels of the files (the same wherever the project lies), and digests of their code.
        files: The files.
        packages: Top-level names that are neither local nor in the standard library.
    """

    def __init__(self, folders: list[Path], only: str = "") -> None:
        self.folders = folders
        self.only = only
        self.code: list[tuple[str, str]] = []
        self.files: set[Path] = set()
        self.packages: set[str] = set()
        self._waiting: list[tuple[Path, Path]] = []

    def start(self, path: Path, root: Path) -> None:
        """Follow the imports of a file, and of the packages that it lies in."""
        self._add(path, root if path.is_relative_to(root) else path.parent)
        for folder in path.parents:
            if folder == root or not folder.is_relative_to(root):
                break
            self._add(folder / "__init__.py", root)
        while self._waiting:
            file, base = self._waiting.pop()
            facts = _facts(file)
            self.code.append((_label(file, base), facts.code))
            for imported in facts.imports:
                self._follow(imported, file, base)

    def _add(self, file: Path, base: Path) -> None:
        if file not in self.files and file.is_file():
            self.files.add(file)
            self._waiting.append((file, base))

    def _follow(self, imported: _Import, file: Path, base: Path) -> None:
        """Add the files that one import statement runs."""
        if imported.level:
            folder = file.parents[min(imported.level, len(file.parents)) - 1]
            for parts in imported.targets():
                for found in _trail(folder, parts) or ():
                    self._add(found, base)
            return
        for parts in imported.targets():
            if not self.only or parts[0] == self.only:
                self._search(parts)

    def _search(self, parts: tuple[str, ...]) -> None:
        for folder in self.folders:
            found = _trail(folder, parts)
            if found is not None:
                for file in found:
                    self._add(file, folder)
                if found:
                    return
        # A bare folder is a namespace package only if nothing else has the name.
        if parts[0] in sys.stdlib_module_names:
            return
        sources = _development_folder(parts[0])
        if sources is None:
            self.packages.add(parts[0])
            return
        for file in _trail(sources, parts) or ():
            self._add(file, sources)


def _label(file: Path, base: Path) -> str:
    return file.relative_to(base).as_posix() if file.is_relative_to(base) else file.name


def _trail(folder: Path, parts: tuple[str, ...]) -> list[Path] | None:
    """The files that importing a dotted name from a folder runs, as far as the name has modules.

    Returns:
        None if the folder knows nothing of the name; an empty list for a folder without files.
    """
    files: list[Path] = []
    for index, part in enumerate(parts):
        package = folder / part
        module = _module(folder, part)
        if module is not None:
            files.append(module)
        elif not package.is_dir():
            return files if index else None
        if module is None or module.name == "__init__.py":
            folder = package
        else:
            break
    return files


def _module(folder: Path, name: str) -> Path | None:
    """The file that runs when a name is imported from a folder, in Python's order."""
    endings = (f"{name}/__init__.py", *(name + suffix for suffix in EXTENSION_SUFFIXES))
    for ending in (*endings, f"{name}.py"):
        if (folder / ending).is_file():
            return folder / ending
    return None


@dataclass(frozen=True, slots=True)
class _Import:
    """`from ..a.b import c, d` is level 2, module ("a", "b"), names ("c", "d")."""

    level: int
    module: tuple[str, ...]
    names: tuple[str, ...]

    def targets(self) -> Iterator[tuple[str, ...]]:
        """Every dotted name that may be a module."""
        if self.module:
            yield self.module
        for name in self.names:
            yield (*self.module, name)


@dataclass(frozen=True, slots=True)
class _Facts:
    """What is found in one file.

    Attributes:
        code: Digest of its code.
        lines: The lines of the file that the code's lines are.
        imports: What it imports.
    """

    code: str
    lines: tuple[int, ...] = ()
    imports: tuple[_Import, ...] = ()


class Memory:
    """What was found in sources, by their content: reading one takes some milliseconds.

    Pages share helpers, a server sees each page again and again, and most of the pages of a build
    are those of the last one.
    """

    def __init__(self) -> None:
        self._facts: dict[str, _Facts] = {}
        self._used: set[str] = set()
        self._new = False

    def of(self, text: str) -> _Facts:
        """What is in a source."""
        content = _digest(text)
        self._used.add(content)
        if content not in self._facts:
            self._facts[content] = _read(text, content)
            self._new = True
        return self._facts[content]

    def key(self) -> str:
        """The key to keep a memory under: it is good for one Python and one marginalia."""
        state = hashlib.sha256(f"{FORMAT} {sys.version}".encode())
        for file in sorted(Path(__file__).parent.glob("*.py")):
            state.update(file.read_bytes())
        return state.hexdigest()

    def recall(self, kept: Mapping[str, Any]) -> None:
        """Take over what `to_keep` gave to an earlier build."""
        for content, (code, lines, imports) in kept.items():
            found = tuple(_Import(n, tuple(module), tuple(names)) for n, module, names in imports)
            self._facts.setdefault(content, _Facts(code, tuple(lines), found))

    def to_keep(self) -> dict[str, Any] | None:
        """All that was used, for JSON; None if nothing of it is new."""
        if not self._new:
            return None
        self._new = False
        return {
            content: [facts.code, facts.lines, [astuple(item) for item in facts.imports]]
            for content, facts in self._facts.items()
            if content in self._used
        }


memory = Memory()


def lines(text: str) -> tuple[int, ...]:
    """The lines that hold code: what moves when prose is edited."""
    return memory.of(text).lines


def _facts(file: Path) -> _Facts:
    """What is in a file; of one that is not Python source, its digest."""
    with suppress(SourceError):
        if file.suffix in (".py", ".ipynb"):
            return memory.of(read_source(file))
    return _Facts(hashlib.sha256(file.read_bytes()).hexdigest())


def _read(text: str, content: str) -> _Facts:
    try:
        code, numbers = code_text(text)
        tree = tree_of(text)
    except SourceError:
        return _Facts(content)  # its run will say what is wrong with it
    # The marker of a notebook script is no code, yet it decides what runs.
    kind = "script" if is_script(text) else "module"
    return _Facts(_digest(f"{kind}\n{code}"), numbers, tuple(dict.fromkeys(_imports(tree))))


def _imports(tree: ast.Module) -> Iterator[_Import]:
    """Every import statement of a module, wherever it stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield _Import(0, tuple(alias.name.split(".")), ())
        elif isinstance(node, ast.ImportFrom):
            module = tuple(node.module.split(".")) if node.module else ()
            yield _Import(node.level, module, tuple(alias.name for alias in node.names))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


@functools.cache
def _development_folder(name: str) -> Path | None:
    """The folder of a package that is used from its sources; None if it is installed or missing.

    An editable install, or a folder on PYTHONPATH: its version says nothing of its code.
    """
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError):
        return None
    origin = Path(spec.origin) if spec and spec.origin else Path()
    installed = {"site-packages", "dist-packages"} & {*origin.parts}
    if spec is None or installed or not origin.is_absolute():
        return None
    return origin.parent.parent if spec.submodule_search_locations else origin.parent


@functools.cache
def versions(name: str) -> list[str]:
    """The installed distributions that provide a top-level module: ``["torch 2.9.0"]``."""
    try:
        found = importlib.metadata.distribution(name)
        if name in (found.read_text("top_level.txt") or name).split():
            return [f"{name} {found.version}"]
    except importlib.metadata.PackageNotFoundError:
        pass
    providers = sorted(set(_providers().get(name, ())))
    return [f"{provider} {importlib.metadata.version(provider)}" for provider in providers]


@functools.cache
def _providers() -> Mapping[str, list[str]]:
    """Reading what every installed distribution provides takes a quarter of a second."""
    return importlib.metadata.packages_distributions()
