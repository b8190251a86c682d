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
import re
import sys
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec
from pathlib import Path
from typing import Any, NamedTuple

from marginalia import __version__
from marginalia.contents import content
from marginalia.errors import SourceError
from marginalia.memo import digest
from marginalia.rows import Reads, cell_ends, code_text, is_script, prose_read
from marginalia.source import Scan, read_bytes, read_source, scan_of, split_lines
from marginalia.syntax import end_of, start_of

FORMAT = 1  # of what is kept under a key
CAPTURE = "worker"  # the module of ours whose imports are the capture code
ALWAYS = ("torch", "numpy", "matplotlib")  # what the capture code itself shows on a page


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a demo's outputs depend on.

    Attributes:
        key: SHA-256 over all of it.
        code: SHA-256 over the code of the page's own file.
        files: The local files that are in the key, with links resolved.
        sources: The same files as they are named, each with the folder that it is imported from.
        needs: What a machine must have in common with this one, as `environment` has it: its own
            facts, and the versions of the packages that the demo imports.
    """

    key: str
    code: str
    files: frozenset[str]
    sources: tuple[tuple[Path, Path], ...]
    needs: Mapping[str, str]


def inputs(
    path: Path,
    root: Path,
    options: Mapping[str, Any],
    *,
    device: str = "",
    data: Iterable[Path] = (),
    view: View | None = None,
) -> Inputs:
    """Find the inputs of a page's demo.

    Args:
        path: The page's file.
        root: The folder on the import path.
        options: What else the outputs depend on.
        device: The one that the demo asks for; by default what this machine has. For ``"cuda"``
            builds of packages are no inputs: a machine without a GPU has others, or none.
        data: Files that the demo declares to read.
        view: The sources as others saw them; by default they are looked at anew.

    Raises:
        OSError: The file cannot be read.
    """
    path, root = path.absolute(), root.absolute()
    view = view or View()
    closure = _Closure(_Local((root, path.parent)), view)
    closure.start(path, root)
    named = [Path(os.path.normpath(file.absolute())) for file in data]  # links stay
    imported = {name: " ".join(versions(name)) for name in closure.packages}
    needs = imported | environment()
    if device == "cuda":
        needs = {name: public(version) for name, version in needs.items() if version}
    parts = {
        "format": FORMAT,
        "needs": needs,
        "device": device or device_kind(),
        "options": dict(options),
        "page": _Place.of(path, root).label,
        "code": sorted(closure.code()),
        "data": sorted((Path(os.path.relpath(f, root)).as_posix(), content(f)) for f in named),
    }
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    places = sorted((place.file, place.base) for place in closure.places.values())
    sources = (*places, *((file, root) for file in named))
    return Inputs(
        key=key,
        code=view.facts(path).code,
        files=frozenset(os.path.realpath(file) for file, _ in sources),
        sources=sources,
        needs=needs,
    )


def environment() -> dict[str, str]:
    """What every demo depends on but its sources: Python, the system, our code, main packages."""
    return {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "operating system": f"{sys.platform} {platform.machine()}",
        "marginalia": f"marginalia {__version__} ({capture_digest()[:12]})",
        **{name: " ".join(versions(name)) for name in ALWAYS},
    }


def differences(needs: Mapping[str, str]) -> list[str]:
    """In what this machine differs from one that has `needs`, in words.

    Builds of the same version count as the same.
    """
    for looked_up in (versions, _providers):  # a worker lives for days, and its packages change
        looked_up.cache_clear()
    here = environment()
    found = []
    for name, wanted in needs.items():
        have = here[name] if name in here else " ".join(versions(name))
        first = _at_first().get(name, have)
        if public(have) != public(wanted):
            found.append(f"{have or f'no {name}'} where {wanted or f'no {name}'} is needed")
        elif first != have:
            found.append(f"{have or f'no {name}'} since it was started with {first}: restart it")
    return found


@functools.cache
def _at_first() -> Mapping[str, str]:
    """The versions of the packages that demos are forked with, before the first one was."""
    return {name: " ".join(versions(name)) for name in (*ALWAYS, "einops")}  # as in `preload`


def public(version: str) -> str:
    """Versions without the labels of their builds: `torch 2.13.0+cpu` is `torch 2.13.0`."""
    return re.sub(r"\+[\w.]+", "", version)


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
    closure = _Closure(_Local((package.parent,), package.name), View())
    closure.start(package / f"{CAPTURE}.py", package.parent)
    code = sorted(closure.code(Reads.NOTHING))
    return hashlib.sha256(json.dumps(code).encode()).hexdigest()


class View:
    """The sources as they are while one thing is done: each is read once, and looked up once."""

    def __init__(self) -> None:
        self._facts: dict[Path, _Facts] = {}
        self._contents: dict[Path, str] = {}
        self._imports: dict[tuple[_Place, _Local], _Imported] = {}

    def content(self, file: Path) -> str:
        """The SHA-256 of a source; nothing if it cannot be read."""
        if file not in self._contents:
            with suppress(OSError):
                self._contents[file] = hashlib.sha256(read_bytes(file)).hexdigest()
        return self._contents.get(file, "")

    def facts(self, file: Path) -> _Facts:
        """What is in a file."""
        if file not in self._facts:
            self._facts[file] = _facts(file)
        return self._facts[file]

    def imported(self, place: _Place, local: _Local) -> _Imported:
        """What the import statements of a file run."""
        if (place, local) not in self._imports:
            found = _Imported(local)
            for statement in self.facts(place.file).imports:
                found.follow(statement, place)
            self._imports[place, local] = found
        return self._imports[place, local]


class _Place(NamedTuple):
    """A file, the folder that it is imported from, and its name in there."""

    file: Path
    base: Path
    label: str

    @classmethod
    def of(cls, file: Path, base: Path) -> _Place:
        inside = file.is_relative_to(base)
        return cls(file, base, file.relative_to(base).as_posix() if inside else file.name)


class _Local(NamedTuple):
    """Where local modules are looked for, in this order; `only` this top-level package, if any."""

    folders: tuple[Path, ...]
    only: str = ""


class _Imported:
    """What the import statements of one file run.

    Args:
        local: Where local modules are looked for.

    Attributes:
        places: Local files.
        packages: Top-level names that are neither local nor in the standard library.
    """

    def __init__(self, local: _Local) -> None:
        self.places: dict[Path, _Place] = {}
        self.packages: set[str] = set()
        self._local = local

    def follow(self, imported: _Import, place: _Place) -> None:
        """Add the files that one import statement runs."""
        if not imported.level:
            for parts in imported.targets():
                if self._local.only in ("", parts[0]):
                    self._search(parts)
            return
        parents = place.file.parents
        folder = parents[min(imported.level, len(parents)) - 1]
        for parts in imported.targets():
            self._add(_trail(folder, parts) or (), place.base)

    def _search(self, parts: tuple[str, ...]) -> None:
        """Add the files that a name leads to, and what it leads to if Python passes these by.

        A bare folder is a package only if nothing else has the name, and the page's own folder is
        on the import path only if the demo puts it there.
        """
        root = self._local.folders[0]
        found: list[Path] = []
        for folder in self._local.folders:
            found = _trail(folder, parts) or []
            if found:
                self._add(found, root if folder.is_relative_to(root) else folder)
                break
        sure = found and _module(root, parts[0])
        if sure or parts[0] in sys.stdlib_module_names or (found and _spec(parts[0]) is None):
            return
        sources = _development_folder(parts[0])
        if sources is None:
            self.packages.add(parts[0])
            return
        self._add(_trail(sources, parts) or (), sources)

    def _add(self, files: Iterable[Path], base: Path) -> None:
        for file in files:
            self.places.setdefault(file, _Place.of(file, base))


class _Closure:
    """The local files that a module reaches by import, and the other packages that they name.

    Args:
        local: Where local modules are looked for.
        view: The sources.

    Attributes:
        places: The files.
        packages: Top-level names that are neither local nor in the standard library.
    """

    def __init__(self, local: _Local, view: View) -> None:
        self.local = local
        self.view = view
        self.places: dict[Path, _Place] = {}
        self.packages: set[str] = set()
        self._waiting: list[_Place] = []

    def start(self, path: Path, root: Path) -> None:
        """Follow the imports of a file, and of the packages that it lies in."""
        self._add(_Place.of(path, root if path.is_relative_to(root) else path.parent))
        for folder in path.parents:
            if folder == root or not folder.is_relative_to(root):
                break
            package = folder / "__init__.py"
            if package.is_file():
                self._add(_Place.of(package, root))
        while self._waiting:
            found = self.view.imported(self._waiting.pop(), self.local)
            self.packages |= found.packages
            for other in found.places.values():
                self._add(other)

    def code(self, reads: Reads | None = None) -> list[tuple[str, str]]:
        """Labels of the files (the same wherever the project lies), and digests of their code.

        Args:
            reads: The prose that counts as code; by default what any of the files reads, for
                `helper.f.__doc__` is found in another file than the docstring.
        """
        if reads is None:
            reads = max(self.view.facts(file).reads for file in self.places)
        return [(place.label, self._digest(place.file, reads)) for place in self.places.values()]

    def _digest(self, file: Path, reads: Reads) -> str:
        if reads is Reads.SOURCE:
            return self.view.content(file)
        facts = self.view.facts(file)
        return facts.documented if reads is Reads.DOCSTRINGS else facts.code

    def _add(self, place: _Place) -> None:
        if place.file not in self.places:
            self.places[place.file] = place
            self._waiting.append(place)


def reached(path: Path, root: Path, view: View, *, prose: bool = True) -> list[tuple[str, str]]:
    """What a page may show of sources: all of its own, and statements of those that it imports.

    Args:
        path: The page's file.
        root: The folder on the import path.
        view: The sources.
        prose: Whether it shows its own prose; otherwise only statements, and no demo.

    Returns:
        Where they are, and digests.
    """
    closure = _Closure(_Local((root, path.parent)), view)
    closure.start(path, root)
    places = closure.places.values()
    whole = prose and any(view.facts(place.file).asks for place in places)

    def seen(file: Path) -> str:
        full = whole or (prose and file == path)
        return ("" if full else view.facts(file).shown) or view.content(file)

    return sorted((place.label, seen(place.file)) for place in places)


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
        documented: The same with its docstrings.
        reads: What its code may read of prose, here and in other files.
        lines: The lines of the file that the code's lines are.
        imports: What it imports.
        shown: Digest of what pages that import it may show of it.
        asks: Whether it may show the demo of another page.
    """

    code: str
    documented: str
    reads: Reads = Reads.NOTHING
    lines: tuple[int, ...] = ()
    imports: tuple[_Import, ...] = ()
    shown: str = ""
    asks: bool = False


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
        content = digest(text)
        self._used.add(content)
        if content not in self._facts:
            self._facts[content] = _read(text, content)
            self._new = True
        return self._facts[content]

    def recall(self, kept: Mapping[str, Any]) -> None:
        """Take over what `to_keep` gave to an earlier build."""
        for source, (code, documented, reads, lines, imports, *others) in kept.items():
            found = tuple(_Import(n, tuple(module), tuple(names)) for n, module, names in imports)
            facts = _Facts(code, documented, Reads(reads), tuple(lines), found, *others)
            self._facts.setdefault(source, facts)

    def to_keep(self) -> dict[str, Any] | None:
        """All that was used, for JSON; None if nothing of it is new."""
        if not self._new:
            return None
        self._new = False
        return {
            content: [
                *(facts.code, facts.documented, facts.reads, facts.lines),
                *([astuple(item) for item in facts.imports], facts.shown, facts.asks),
            ]
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
    content = hashlib.sha256(read_bytes(file)).hexdigest()
    return _Facts(content, content)


def _read(text: str, content: str) -> _Facts:
    try:
        code, numbers = code_text(text, reads=Reads.NOTHING)
        documented, _ = code_text(text, reads=Reads.DOCSTRINGS)
        scan = scan_of(text)
    except SourceError:
        return _Facts(content, content)  # its run will say what is wrong with it
    cells = _cells(scan.tree, text, numbers)
    imports = tuple(dict.fromkeys(_imports(scan.tree)))
    return _Facts(
        code=digest(f"{cells}\n{code}"),
        documented=digest(f"{cells}\n{documented}"),
        reads=prose_read(text),
        lines=numbers,
        imports=imports,
        shown=_shown(scan),
        asks=any("demo" in found.names for found in imports) or bool(_ASKS.search(text)),
    )


def _cells(tree: ast.Module, text: str, numbers: Sequence[int]) -> str:
    """Which lines of code end a cell: markers and blank lines are no code, yet decide what shows.

    Args:
        tree: The syntax tree of the source.
        text: The source.
        numbers: The lines of the file that the code's lines are.
    """
    if not is_script(text):
        return "module"
    ends, marked = cell_ends(tree.body, split_lines(text))
    code = set(numbers)
    last = [bisect_right(numbers, end_of(node)) for node in ends if node.lineno in code]
    return f"script {marked} {last}"


_ASKS = re.compile(r"\.\s*demo\b")  # a demo that is reached through its module


def _shown(scan: Scan) -> str:
    """A digest of the statements that others may bring along, with the comments that touch them.

    It says also which of them stand apart: blank lines are kept, and part what a comment speaks of.
    Other prose is shown on the module's own page only, and so is that of its demo.
    """
    lines = scan.lines
    texts = {text.start for text in (scan.docstring, *scan.texts) if text and text.lifted}
    parts: list[str] = []
    before = 0  # the last line of the statement above
    for node in scan.tree.body:
        top, last, code = start_of(node), end_of(node), ""
        if isinstance(node, ast.FunctionDef) and node.name == "demo":
            code = ast.unparse(node)
        elif node.lineno not in texts:
            while top - 1 > before and lines[top - 2].startswith("#"):
                top -= 1
            code = "\n".join(lines[top - 1 : last])
        parts += [_apart(lines[before : top - 1]), _apart(lines[top - 1 : last]), code]
        before = last
    return digest("\n".join(parts))


def _apart(lines: Sequence[str]) -> str:
    """How lines part those above from those below."""
    if any(not line.strip() for line in lines):
        return "blank"
    return "apart" if lines else ""


def _imports(tree: ast.Module) -> Iterator[_Import]:
    """Every import statement of a module, wherever it stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield _Import(0, tuple(alias.name.split(".")), ())
        elif isinstance(node, ast.ImportFrom):
            module = tuple(node.module.split(".")) if node.module else ()
            yield _Import(node.level, module, tuple(alias.name for alias in node.names))


@functools.cache
def _development_folder(name: str) -> Path | None:
    """The folder of a package that is used from its sources; None if it is installed or missing.

    An editable install, or a folder on PYTHONPATH: its version says nothing of its code.
    """
    spec = _spec(name)
    origin = Path(spec.origin) if spec and spec.origin else Path()
    installed = {"site-packages", "dist-packages"} & {*origin.parts}
    if spec is None or installed or not origin.is_absolute():
        return None
    return origin.parent.parent if spec.submodule_search_locations else origin.parent


@functools.cache
def _spec(name: str) -> ModuleSpec | None:
    """Where this process would import a top-level module from."""
    with suppress(ImportError, ValueError, AttributeError):
        return importlib.util.find_spec(name)
    return None


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
