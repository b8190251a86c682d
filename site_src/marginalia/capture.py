"""What a demo puts out: text, values and warnings, under the statement that made them.

A hook before each statement of the demo says which one runs. What Python writes arrives at once;
what C code and other processes write to the file descriptors is picked up at the next statement.
"""

from __future__ import annotations

import ast
import base64
import builtins
import codecs
import ctypes
import importlib.abc
import importlib.util
import io
import os
import re
import sys
import tempfile
import types
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any, Literal, TextIO

from marginalia.limits import MB, LimitError, Limits, Reason
from marginalia.rewrite import blocks, demo_of, hook, last_line, prologue, statement
from marginalia.rows import cell_ends
from marginalia.values import scrubbed

Kind = Literal["stdout", "stderr", "warning", "value", "figure"]

MAX_TEXT = 200_000  # characters of one stream under one statement
MAX_OUTPUTS = 500
WRITE = 64  # bytes that every write counts at least: one without end may be of single letters
MAX_CHECKED = 1000  # runs of a statement before which the file descriptors are looked at

_RICH = {
    "_repr_html_": "text/html",
    "_repr_svg_": "image/svg+xml",
    "_repr_png_": "image/png",
    "_repr_jpeg_": "image/jpeg",
    "_repr_markdown_": "text/markdown",
    "_repr_latex_": "text/latex",
}
_SHOWN = (*_RICH.values(), "text/plain")


@dataclass(slots=True)
class Output:
    """One thing that a statement put out.

    Attributes:
        line: Last line of the statement; of its header, if it contains others.
        kind: Where it came from.
        data: MIME type -> text; pictures other than SVG in base 64. Figures have ``image/svg+xml``,
            ``image/svg+xml;dark`` and a text alternative ``alt``; text is in ``text/plain``,
            terminal colours kept; warnings also have ``category``, ``message`` and ``place``.
    """

    line: int
    kind: Kind
    data: dict[str, str] = field(default_factory=dict)


# Values


def rich(value: Any) -> dict[str, str]:
    """What a value says about how to show it, as in a notebook; empty if it says nothing."""
    if isinstance(value, type):
        return {}
    data: dict[str, str] = {}
    with suppress(Exception):
        bundle = _asked(value, "_repr_mimebundle_")
        bundle = bundle[0] if isinstance(bundle, tuple) else bundle or {}
        data = {kind: _text(kind, item) for kind, item in bundle.items() if kind in _SHOWN}
    for name, kind in _RICH.items():
        with suppress(Exception):
            item = None if kind in data else _asked(value, name)
            item = item[0] if isinstance(item, tuple) else item
            if item is not None:
                data[kind] = _text(kind, item)
    return data


def _asked(value: Any, name: str) -> Any:
    """What a method of the value's class gives; instances may pretend to have any method."""
    method = getattr(type(value), name, None)
    return None if method is None else method(value)


def _text(kind: str, item: str | bytes) -> str:
    """Text as it is, and bytes of pictures in base 64."""
    if isinstance(item, bytes):
        return item.decode() if kind == "image/svg+xml" else base64.b64encode(item).decode()
    return str(item)


def plain(value: Any) -> str:
    """The ``repr`` of a value, without addresses, which differ from run to run."""
    try:
        return scrubbed(repr(value))[:MAX_TEXT]
    except Exception as error:  # a broken repr must not end the demo
        return f"<{type(value).__name__}, whose repr raises {type(error).__name__}>"


# Streams


class _Stream(io.TextIOBase):
    """`sys.stdout` or `sys.stderr` while a demo runs.

    Args:
        kind: Which of them.
        descriptor: What stands behind it.
        write: Where text goes.
    """

    encoding = "utf-8"
    errors = "strict"
    newlines = None
    line_buffering = True
    mode = "w"

    def __init__(self, kind: Kind, descriptor: int, write: Callable[[Kind, str], None]) -> None:
        self.name = f"<{kind}>"
        self.forked = False
        self.buffer = _Bytes(self)
        self._kind = kind
        self._descriptor = descriptor
        self._write = write
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def write(self, text: str) -> int:
        """Take text, with the errors that a file would raise."""
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        data = b"" if text.isascii() else text.encode()  # raises for lone surrogates
        if self.forked:  # the parent reads what its children write behind the stream
            os.write(self._descriptor, data or text.encode())
        elif text:
            self._write(self._kind, text)
        return len(text)

    def write_bytes(self, data: bytes) -> None:
        """Take what was written to the stream's buffer."""
        self.write(self._decode(data))

    def fileno(self) -> int:
        return self._descriptor

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return False

    def close(self) -> None:
        """Stay open: a demo that closes the stream may still be written about."""

    def reconfigure(self, **_: Any) -> None:
        """Accept what a real stream accepts."""


class _Bytes(io.BufferedIOBase):
    """The bytes side of a stream."""

    def __init__(self, stream: _Stream) -> None:
        self._stream = stream

    def write(self, data: Any) -> int:
        self._stream.write_bytes(bytes(data))
        return len(data)

    def writable(self) -> bool:
        return True


class _Descriptor:
    """A file descriptor that leads into a file of ours until it is given back.

    Args:
        number: 1 or 2.
    """

    def __init__(self, number: int) -> None:
        self._number = number
        self._old = os.dup(number)
        file, name = tempfile.mkstemp()
        os.close(file)
        writer = os.open(name, os.O_WRONLY | os.O_APPEND)
        self._reader = os.open(name, os.O_RDONLY)
        with suppress(OSError):  # an open file cannot be deleted everywhere
            Path(name).unlink()
        os.dup2(writer, number)
        os.close(writer)
        self.skipped = 0  # bytes that the last call of `news` left out
        self._at = 0
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def news(self) -> str:
        """What was written since the last call."""
        end = os.lseek(self._reader, 0, os.SEEK_END)
        if end <= self._at:
            return ""
        os.lseek(self._reader, self._at, os.SEEK_SET)
        data = os.read(self._reader, min(end - self._at, MAX_TEXT))
        self.skipped = end - self._at - len(data)
        self._at = end
        return self._decode(data).replace("\r\n", "\n")

    def restore(self) -> None:
        """Give the descriptor back."""
        os.dup2(self._old, self._number)
        os.close(self._old)
        os.close(self._reader)


# The whole of it


@dataclass(slots=True)
class _Written:
    """Text of one stream under one statement, as it grows."""

    output: Output
    parts: list[str] = field(default_factory=list)
    size: int = 0

    def add(self, text: str) -> None:
        """Keep text as far as there is room."""
        room = MAX_TEXT - self.size
        self.size += len(text)
        if room > 0:
            self.parts.append(text[:room])

    def finished(self) -> Output:
        """The output with its text."""
        left_out = self.size - MAX_TEXT
        note = f"\n… {left_out:,} more characters\n" if left_out > 0 else ""
        self.output.data["text/plain"] = "".join(self.parts) + note
        return self.output


class Capture:
    """The outputs of one page.

    Args:
        filename: The page's file, as its code objects name it.
        root: The folder that places of warnings are relative to.
        name: The page's module name.
        tree: Its syntax tree.
        limits: How much it may print.
    """

    def __init__(
        self, filename: str, root: Path, name: str, tree: ast.Module, limits: Limits
    ) -> None:
        self.line = 0
        self._limits = limits
        self._printed = 0
        self.on_cell: list[Callable[[], None]] = []
        self.viewers: list[Callable[[Any], bool]] = []
        self._filename = filename
        self._root = root
        self._name = name
        self._functions = list(_functions(tree))
        self._outputs: list[Output | _Written] = []
        self._streams: dict[tuple[int, Kind], _Written] = {}
        self._warned: set[tuple[object, ...]] = set()
        self._runs: dict[int, int] = {}
        self._descriptors: dict[Kind, _Descriptor] = {}
        self._restored: list[tuple[Any, str, Any]] = []

    def hooks(self) -> dict[str, Callable[..., Any]]:
        """What the rewritten code calls."""
        return {"at": self._at, "show": self.show, "cell": self._cell}

    def found(self) -> list[Output]:
        """The outputs in order of lines; those of one line in order of time."""
        done = [o.finished() if isinstance(o, _Written) else o for o in self._outputs]
        return sorted(done, key=lambda output: output.line)

    def add(self, kind: Kind, data: dict[str, str], line: int | None = None) -> None:
        """Put something under a statement.

        Args:
            kind: What it is.
            data: MIME type -> text.
            line: The statement's last line; by default, that of the one which runs.
        """
        self._collect()
        self.make_room(1)
        self._outputs.append(Output(self.line if line is None else line, kind, data))

    def make_room(self, count: int) -> None:
        """See whether there is room for a number of outputs.

        Raises:
            LimitError: There is not.
        """
        count += len(self._outputs)
        if count > MAX_OUTPUTS:
            says = f"it shows {count} figures, values and warnings"
            says += f", and a page has room for {MAX_OUTPUTS}"
            raise LimitError(Reason("OutputLimit", says))

    def display(self, *values: Any, raw: bool = False, **_: Any) -> None:
        """Show values as a notebook does: the builtin ``display`` of demos, and IPython's."""
        for value in values:
            if raw:
                shown = {k: _text(k, item) for k, item in dict(value).items() if k in _SHOWN}
                self.add("value", shown)
            elif not any(viewer(value) for viewer in self.viewers):
                self.add("value", {**rich(value), "text/plain": plain(value)})

    def show(self, value: Any, always: bool = True) -> None:
        """Show the value of an expression, if it has one.

        Args:
            value: The value; None is nothing to show.
            always: Whether to show also a value that has nothing but a ``repr``.
        """
        if value is None or any(viewer(value) for viewer in self.viewers):
            return
        data = rich(value)
        if data or always:
            self.add("value", {**data, "text/plain": plain(value)})

    # Hooks

    def _at(self, line: int) -> None:
        """A statement starts."""
        runs = self._runs.get(line, 0)
        if runs < MAX_CHECKED:
            self._runs[line] = runs + 1
            self._collect()
            self._end_of_output()
        self.line = line

    def _cell(self) -> None:
        """A cell of a notebook script ends."""
        for callback in self.on_cell:
            callback()

    # Text

    def write(self, kind: Kind, text: str) -> None:
        """Take text of a stream.

        Raises:
            LimitError: It was too much.
        """
        self._collect()
        self._append(kind, text)
        self._end_of_output()

    def _end_of_output(self) -> None:
        printed = self._printed / MB
        if printed > self._limits.output:
            raise LimitError(self._limits.reason("output", printed))

    def _append(self, kind: Kind, text: str) -> None:
        self._printed += max(WRITE, len(text))
        written = self._streams.get((self.line, kind))
        if written is None:
            written = self._streams[self.line, kind] = _Written(Output(self.line, kind))
            self._outputs.append(written)
        written.add(text)

    def _collect(self) -> None:
        """Take what was written to the file descriptors; the statement that runs wrote it."""
        for kind, descriptor in self._descriptors.items():
            if news := descriptor.news():
                self._append(kind, news)
                self._printed += descriptor.skipped

    # Installation

    def start(self) -> None:
        """Take over the streams, the warnings and ``display`` of this process."""
        for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
            with suppress(Exception):
                stream.flush()  # type: ignore[union-attr]
        numbers: dict[Kind, int] = {"stdout": 1, "stderr": 2}
        self._descriptors = {kind: _Descriptor(number) for kind, number in numbers.items()}
        _unbuffer_c()
        streams = {kind: _Stream(kind, n, self.write) for kind, n in numbers.items()}
        for kind, stream in streams.items():
            self._set(sys, kind, stream)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=lambda: _mark_forked(streams.values()))
        self._set(warnings, "showwarning", self._warning)
        _reset_filters(self._name)
        self._set(builtins, "display", self.display)
        after_import("IPython.core.display_functions", self._take_display)
        after_import("IPython.display", self._take_display)

    def stop(self) -> None:
        """Give everything back, and take the last of the text."""
        for stream in (sys.__stdout__, sys.__stderr__):
            with suppress(Exception):
                stream.flush()  # type: ignore[union-attr]
        self._collect()
        for owner, name, old in reversed(self._restored):
            setattr(owner, name, old)
        for descriptor in self._descriptors.values():
            descriptor.restore()
        self._descriptors = {}

    def _set(self, owner: Any, name: str, value: Any) -> None:
        self._restored.append((owner, name, getattr(owner, name, None)))
        setattr(owner, name, value)

    def _take_display(self, module: types.ModuleType) -> None:
        if hasattr(module, "display"):
            module.display = self.display  # type: ignore[attr-defined]

    # Warnings

    def _warning(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if file is not None:
            file.write(warnings.formatwarning(message, category, filename, lineno, line))
            return
        key = (str(message), category, filename, lineno)
        if key in self._warned:
            return
        self._warned.add(key)
        text, place = str(message), self._place(filename, lineno)
        data = {"text/plain": f"{category.__name__}: {text}\n", "category": category.__name__}
        self.add("warning", {**data, "message": text, "place": place})

    def _place(self, filename: str, line: int) -> str:
        """Where a warning comes from: a function of the page, or a file, as seen from its package.

        Lines of the page itself are left out: they change whenever its prose does.
        """
        if filename == self._filename:
            around = [name for first, last, name in self._functions if first <= line <= last]
            return around[-1] if around else "<module>"
        if Path(filename).parent == Path(__file__).parent:
            return ""  # raised while a figure was drawn
        parts = Path(filename).parts
        for folder in ("site-packages", "dist-packages"):
            if folder in parts:
                return f"{'/'.join(parts[parts.index(folder) + 1 :])}:{line}"
        with suppress(ValueError):
            return f"{Path(filename).relative_to(self._root).as_posix()}:{line}"
        return f"{Path(filename).name}:{line}"


def _functions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[int, int, str]]:
    """First line, last line and qualified name of every function, outer ones first."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = prefix + node.name
            if not isinstance(node, ast.ClassDef):
                yield node.lineno, node.end_lineno or node.lineno, name
            yield from _functions(node, f"{name}.")
        else:
            yield from _functions(node, prefix)


def _mark_forked(streams: Iterable[_Stream]) -> None:
    for stream in streams:
        stream.forked = True


def _unbuffer_c() -> None:
    """Let C code write at once, as it does to a terminal."""
    with suppress(Exception):
        library = ctypes.CDLL(None)
        for name in ("stdout", "stderr"):
            name = f"__{name}p" if sys.platform == "darwin" else name
            library.setvbuf(ctypes.c_void_p.in_dll(library, name), None, 2, 0)  # _IONBF


def _reset_filters(module: str) -> None:
    """Show each warning once, and deprecations that the page itself causes, as for a script."""
    warnings.filters[:] = [  # type: ignore[index]
        entry for entry in warnings.filters if entry[1:] != (None, Warning, None, 0)
    ]
    warnings.filterwarnings("default", category=DeprecationWarning, module=f"{re.escape(module)}$")


# Modules that are imported late


def after_import(name: str, callback: Callable[[types.ModuleType], None]) -> None:
    """Call back when a module is imported, or now if it already is.

    Args:
        name: Of the module.
        callback: Gets the module, whose code has run.
    """
    if name in sys.modules:
        callback(sys.modules[name])
    else:
        sys.meta_path.insert(0, _Watcher(name, callback))


class _Watcher(importlib.abc.MetaPathFinder):
    """Finds one module, as the others do, and calls back when it is there."""

    def __init__(self, name: str, callback: Callable[[types.ModuleType], None]) -> None:
        self._name = name
        self._callback = callback
        self._asking = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self._name or self._asking:
            return None
        self._asking = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._asking = False
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def exec_module(module: types.ModuleType) -> None:
                load(module)
                sys.meta_path.remove(self)
                self._callback(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


# The pass over the tree


class Marks:
    """Puts the hooks of `Capture` into a tree.

    Args:
        lines: The lines of the source.
    """

    def __init__(self, lines: Sequence[str]) -> None:
        self._lines = lines

    def rewrite(self, tree: ast.Module, *, script: bool) -> None:
        """Say before each statement of the demo that it runs, and show its values.

        Args:
            tree: The page's tree, changed in place.
            script: Whether the top level is the demo, cell by cell.
        """
        demo = None if script else demo_of(tree)
        if script:
            self._cells(tree.body)
        if demo is not None:
            self._values(demo.body)
            self._mark(demo.body)
        self._mark(tree.body)

    def _mark(self, body: list[ast.stmt], loop: int = 0) -> None:
        """Put a hook before each statement of a block, in place.

        Args:
            body: The block.
            loop: The line of the innermost loop, to which ``continue`` goes back.
        """
        first = prologue(body)
        marked = body[:first]
        for node in body[first:]:
            line = last_line(node, self._lines)
            if not isinstance(node, ast.Pass | ast.Break | ast.Global | ast.Nonlocal):
                goes_back = isinstance(node, ast.Continue) and loop
                marked.append(statement("at", loop if goes_back else line, at=node))
            marked.append(node)
            inner = line if isinstance(node, _LOOPS) else loop
            for block in blocks(node):
                self._mark(block, inner)
            if isinstance(node, (*_LOOPS, ast.With, ast.AsyncWith)):
                node.body.append(statement("at", line, at=node.body[-1]))
        body[:] = marked

    def _values(self, body: list[ast.stmt]) -> None:
        """Show what the expression statements of a demo are worth."""
        for node in body:
            if isinstance(node, ast.Expr) and not isinstance(node.value, _SILENT):
                always = not isinstance(node.value, _QUIET)
                node.value = hook("show", node.value, always, at=node)
            for block in blocks(node):
                self._values(block)

    def _cells(self, body: list[ast.stmt]) -> None:
        """Show the value of the last expression of each cell, and end the cell."""
        found, marked = cell_ends(body, self._lines)
        ends = set(found)
        done: list[ast.stmt] = []
        for node in body:
            done.append(node)
            if node in ends and isinstance(node, ast.Expr) and not self._hidden(node):
                node.value = hook("show", node.value, True, at=node)
            if node in ends and marked:
                done.append(statement("cell", at=node))
        body[:] = done

    def _hidden(self, node: ast.Expr) -> bool:
        """Whether an expression is text, or ends in a semicolon."""
        line = self._lines[(node.end_lineno or node.lineno) - 1].encode()
        semicolon = line[node.end_col_offset or 0 :].lstrip().startswith(b";")
        return semicolon or isinstance(node.value, _SILENT)


_LOOPS = (ast.For, ast.While, ast.AsyncFor)

_SILENT = (ast.Constant, ast.Await, ast.Yield, ast.YieldFrom)

# Expressions that are there for what they do: shown only if their value knows how to
_QUIET = (
    ast.Call,
    ast.BoolOp,
    ast.IfExp,
    ast.NamedExpr,
    ast.ListComp,
    ast.SetComp,
    ast.DictComp,
    ast.GeneratorExp,
)
