"""Run the demo of one page and keep what happened: its outputs, its shapes and its claims.

`run` turns its own process into one for demos: it takes over streams, seeds, import path, warnings.
It is meant to be called once in a process that ends soon after.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import linecache
import os
import random
import sys
import time
import traceback
import types
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.machinery import (
    BYTECODE_SUFFIXES,
    EXTENSION_SUFFIXES,
    SOURCE_SUFFIXES,
    ExtensionFileLoader,
    FileFinder,
    SourceFileLoader,
    SourcelessFileLoader,
)
from pathlib import Path
from typing import Any

from marginalia.capture import Capture, Marks, Output
from marginalia.claims import Claim, Claims, claim_source
from marginalia.dependencies import Dependencies
from marginalia.errors import SourceError
from marginalia.figures import Figures
from marginalia.limits import DEFAULTS, LimitError, Limits, peak_memory
from marginalia.memo import digest
from marginalia.rewrite import demo_of, install, prologue
from marginalia.rows import is_script
from marginalia.source import deep_trees, read_source, split_lines
from marginalia.trace import Shape, Trace

__all__ = [
    "Claim",
    "Failure",
    "Output",
    "Result",
    "Shape",
    "claim_source",
    "has_demo",
    "run",
    "today",
]

MAX_FRAMES = 20
MAX_MESSAGE = 10_000


@dataclass(slots=True)
class Failure:
    """Why a demo did not get to its end.

    Attributes:
        type: Name of the exception.
        message: Its text.
        line: Innermost line of the page's own file; 0 when the page's file has no part in it.
        frames: The page's own frames, outermost first: ``line``, ``function`` and ``text``.
    """

    type: str
    message: str
    line: int
    frames: list[dict[str, Any]] = field(default_factory=list)


@dataclass(slots=True)
class Result:
    """What a run showed: the whole content of a page that its source does not give.

    Attributes:
        ok: Whether the demo got to its end.
        seconds: Time of the demo itself, without imports and drawing.
        device: ``"cpu"`` or ``"cuda: NAME"``.
        outputs: What the demo put out, in order of lines.
        shapes: Tensors that lines of the page's own file made, in order of lines.
        claims: Conditions that the demo checked, in order of lines.
        error: Why it did not get to its end.
        dependencies: Local files and folders that were imported, read or looked for, with their
            SHA-256.
        read: Those of them that the demo asked for itself, and not Python for an import.
        peak_mb: Peak memory of the process.
        date: The day of the run, ISO, UTC; that of `SOURCE_DATE_EPOCH` where it is set.
    """

    ok: bool
    seconds: float = 0.0
    device: str = "cpu"
    outputs: list[Output] = field(default_factory=list)
    shapes: list[Shape] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    error: Failure | None = None
    dependencies: dict[str, str] = field(default_factory=dict)
    read: list[str] = field(default_factory=list)
    peak_mb: float = 0.0
    date: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and numbers, with the field names as keys."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Result:
        """The inverse of :meth:`to_json`.

        Raises:
            KeyError: A key is missing.
            TypeError: A key is unknown.
        """
        plain = dict(data)
        for name, kind in (("outputs", Output), ("shapes", Shape), ("claims", Claim)):
            plain[name] = [kind(**item) for item in plain[name]]
        plain["error"] = Failure(**plain["error"]) if plain["error"] else None
        return cls(**plain)


def has_demo(text: str) -> bool:
    """Whether a source has a demo: a function ``demo``, or the top level of a notebook script.

    Args:
        text: The source; one that does not parse has none.
    """
    try:
        tree = _parsed(text)
    except (SyntaxError, ValueError):
        return False
    return _shows_something(tree, text)


def _shows_something(tree: ast.Module, text: str) -> bool:
    return demo_of(tree) is not None or is_script(text)


def _parsed(text: str, filename: str = "<source>") -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an invalid escape is the author's affair
        return ast.parse(text.removeprefix("\ufeff"), filename)


def run(
    path: Path,
    *,
    root: Path,
    shapes: bool = True,
    seed: int = 0,
    limits: Limits = DEFAULTS,
    source: str = "",
) -> Result:
    """Run the demo of a page in this process.

    Args:
        path: The page's file.
        root: The folder on the import path; the module's name is relative to it.
        shapes: Whether to record the shapes of tensors.
        seed: For the random generators of Python, NumPy and torch.
        limits: How much it may print, and what to say when the system refuses it more.
        source: The SHA-256 that the page's text must have: somebody may be saving it.

    Returns:
        What happened. Whatever the demo does is part of it, and nothing is raised.
    """
    path, root = Path(path).absolute(), Path(root).absolute()
    try:
        text = read_source(path)
        tree = _parsed(text, str(path))
    except SourceError as error:
        return Result(False, error=_at_place("SyntaxError", error.reason, error.line, ""))
    except (SyntaxError, ValueError, OSError) as error:
        return Result(False, error=_failure(error, str(path), limits))
    if source and digest(text) != source:
        return Result(False, error=Failure("Changed", "its file was saved while it was to run", 0))
    if not _shows_something(tree, text):
        return Result(True)
    return _Run(path, root, text, tree, shapes=shapes, seed=seed, limits=limits).result()


class _Run:
    """One run, from the source to the result."""

    def __init__(
        self,
        path: Path,
        root: Path,
        text: str,
        tree: ast.Module,
        *,
        shapes: bool,
        seed: int,
        limits: Limits,
    ) -> None:
        self._path, self._root, self._text = path, root, text
        self._seed, self._limits = seed, limits
        self._script = is_script(text)
        self._name = _module_name(path, root)
        self._lines = split_lines(text)
        self._capture = Capture(str(path), root, self._name, tree, limits)
        self._figures = Figures(self._capture)
        self._claims = Claims(text)
        self._trace = Trace(self._lines) if shapes else None
        self._files = Dependencies(root)
        self._seconds = 0.0
        self._tree = tree
        self._first_line = next((node.lineno for node in tree.body[prologue(tree.body) :]), 1)

    def result(self) -> Result:
        """Run it, and gather what the parts have seen."""
        self._prepare()
        error: Failure | None = None
        self._capture.start()
        try:
            for step in (self._execute, self._figures.show_all):
                try:
                    step()
                except BaseException as raised:  # whatever a demo does is its result
                    error = error or _failure(raised, str(self._path), self._limits, self._lines)
                    if isinstance(raised, LimitError):
                        break  # it has had its share
        finally:
            self._capture.stop()
        dependencies, read = self._files.found(self._path)
        return Result(
            ok=error is None,
            seconds=round(self._seconds, 6),
            device=_device(),
            outputs=self._capture.found(),
            shapes=self._trace.found() if self._trace else [],
            claims=self._claims.found(),
            error=error,
            dependencies=dependencies,
            read=read,
            peak_mb=round(peak_memory(), 1),
            date=today(),
        )

    def _prepare(self) -> None:
        """Make the process one for demos."""
        self._files.watch()
        sys.path.insert(0, str(self._root))
        sys.argv = [str(self._path)]
        sys.stdin = Path(os.devnull).open(encoding="utf-8")  # noqa: SIM115  # the demo's, to the end
        sys.dont_write_bytecode = True  # sources may change faster than file times show
        sys.path_hooks.insert(0, self._finder)
        for folder in [*sys.path_importer_cache]:
            if folder.startswith(str(self._root)):
                del sys.path_importer_cache[folder]
        os.environ.setdefault("MPLBACKEND", "agg")
        linecache.cache[str(self._path)] = (
            len(self._text),
            None,  # never looked up again: a notebook's file is not its source
            list(self._lines),
            str(self._path),
        )
        self._figures.start()
        _settle_torch()

    def _finder(self, folder: str) -> FileFinder:
        """Finds local modules; their sources are compiled, for byte code may be older than it says.

        Raises:
            ImportError: It is no folder, or not below the root.
        """
        place = Path(folder).absolute()
        foreign = not place.is_relative_to(self._root) or "site-packages" in place.parts
        if foreign or not place.is_dir():
            raise ImportError
        return FileFinder(
            folder,
            (ExtensionFileLoader, EXTENSION_SUFFIXES),
            (_Compiling, SOURCE_SUFFIXES),
            (SourcelessFileLoader, BYTECODE_SUFFIXES),
        )

    def _execute(self) -> None:
        """Import the page, then call its demo."""
        code = self._compile()
        self._capture.line = self._first_line
        module = self._module()
        _set_seeds(self._seed)
        if self._script:
            self._timed(lambda: exec(code, vars(module)))
            return
        exec(code, vars(module))
        demo = demo_of(self._tree)
        self._capture.line = demo.lineno if demo else 0
        _set_seeds(self._seed)  # what an import draws must not change what the demo shows
        value = self._timed(module.demo)
        self._capture.show(value)

    def _compile(self) -> types.CodeType:
        """The code of the page with the hooks of all parts in it."""
        hooks = {**self._claims.hooks(), **self._capture.hooks()}
        with deep_trees():
            self._claims.rewrite(self._tree, script=self._script)
            Marks(self._lines).rewrite(self._tree, script=self._script)
            if self._trace:
                self._trace.rewrite(self._tree)
                hooks |= self._trace.hooks()
            tree, filename = ast.fix_missing_locations(self._tree), str(self._path)
        install(hooks)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return compile(tree, filename, "exec", dont_inherit=True, optimize=0)

    def _module(self) -> types.ModuleType:
        """The page as a module, known to Python but still empty.

        A script runs as ``__main__``, as a notebook does; a module under its own name.
        """
        _import_parents(self._name, self._path.parent)
        name = "__main__" if self._script else self._name
        module = types.ModuleType(name)
        module.__file__ = str(self._path)
        module.__package__ = self._name.rpartition(".")[0]
        if not self._script:
            module.__spec__ = importlib.util.spec_from_file_location(name, self._path)
        sys.modules[name] = sys.modules[self._name] = module
        return module

    def _timed(self, call: Callable[[], Any]) -> Any:
        """Call something and take its time, without that of looking at tensors and drawing."""
        spent, start = self._spent(), time.perf_counter()
        try:
            return call()
        finally:
            total = time.perf_counter() - start
            self._seconds = max(0.0, total - (self._spent() - spent))

    def _spent(self) -> float:
        return self._figures.seconds + (self._trace.seconds if self._trace else 0.0)


class _Compiling(SourceFileLoader):
    """A loader without byte code."""

    def path_stats(self, path: Any) -> Any:
        """Nothing is known of a source that its byte code could be compared with."""
        raise OSError


# The process


def _settle_torch() -> None:
    """One thread, and algorithms that give the same result each time."""
    import torch

    torch.set_num_threads(1)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


def _set_seeds(seed: int) -> None:
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)  # demos may use the old generator
    torch.manual_seed(seed)


def _device() -> str:
    """Where the demo computed."""
    import torch

    with suppress(Exception):
        initialized: Callable[[], bool] = torch.cuda.is_initialized
        if initialized() and torch.cuda.max_memory_allocated() > 0:
            return f"cuda: {torch.cuda.get_device_name()}"
    return "cpu"


# The module


def _module_name(path: Path, root: Path) -> str:
    """The dotted name under which a file is imported from a folder."""
    try:
        parts = path.relative_to(root).with_suffix("").parts
    except ValueError:
        return path.stem
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def _import_parents(name: str, folder: Path) -> None:
    """Import the packages that a module lies in, if they are where it is.

    A folder may have the name of an installed package; that one is left alone.
    """
    parent = name.rpartition(".")[0]
    if not parent:
        return
    with suppress(ImportError, ValueError, AttributeError):
        spec = importlib.util.find_spec(parent)
        places = spec.submodule_search_locations if spec else None
        if places and any(Path(place).absolute() == folder for place in places):
            importlib.import_module(parent)


def today() -> str:
    """The day, ISO, UTC; that of `SOURCE_DATE_EPOCH` where it is set."""
    seconds = float(os.environ.get("SOURCE_DATE_EPOCH") or time.time())
    return datetime.fromtimestamp(seconds, UTC).date().isoformat()


# Failures


def _failure(
    error: BaseException, filename: str, limits: Limits, lines: Sequence[str] = ()
) -> Failure:
    """An exception with the part of its traceback that belongs to the page."""
    kind = type(error).__name__
    if isinstance(error, SyntaxError) and error.filename == filename:
        text = (error.text or "").strip()
        return _at_place(kind, error.msg, error.lineno or 0, text)
    frames: list[dict[str, Any]] = [
        {"line": line, "function": frame.f_code.co_qualname, "text": _line(lines, line)}
        for frame, line in traceback.walk_tb(error.__traceback__)
        if frame.f_code.co_filename == filename
    ]
    innermost = frames[-1]["line"] if frames else 0
    if len(frames) > MAX_FRAMES:
        frames = frames[: MAX_FRAMES // 2] + frames[-MAX_FRAMES // 2 :]
    kind, message = limits.behind(error) or (kind, _message(error))
    return Failure(kind, message[:MAX_MESSAGE], innermost, frames)


def _at_place(kind: str, message: str, line: int, text: str) -> Failure:
    frames = [{"line": line, "function": "<module>", "text": text}] if line else []
    return Failure(kind, message, line, frames)


def _message(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        code = "" if error.code is None else f" ({error.code})"
        return f"the demo called sys.exit{code}"
    try:
        return str(error)
    except Exception:  # a broken exception is still one
        return ""


def _line(lines: Sequence[str], number: int) -> str:
    return lines[number - 1].strip() if 0 < number <= len(lines) else ""
