"""A Python source as Python sees it: its text, its tokens, its tree and its symbols.

Whatever is said of a source starts from one scan of it, which is kept for the next who asks.
"""

from __future__ import annotations

import ast
import codecs
import inspect
import io
import json
import re
import sys
import threading
import token
import tokenize
import warnings
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Literal

from marginalia.docstrings import meant
from marginalia.errors import SourceError

SymbolKind = Literal["class", "function", "variable"]


@dataclass(frozen=True, slots=True)
class Symbol:
    """A definition found in a module.

    Args:
        name: Qualified by the classes (and functions) around it: `Model.forward`.
        kind: What is defined.
        start: First line, decorators included.
        end: Last line.
        line: The line of the name itself.
        column: 0-based column of the name, in characters.
        docstring: Cleaned of indentation; empty for a variable.
    """

    name: str
    kind: SymbolKind
    start: int
    end: int
    line: int
    column: int
    docstring: str


# Reading

_held: ContextVar[dict[Path, bytes] | None] = ContextVar("held", default=None)


@contextmanager
def held_still() -> Iterator[None]:
    """Give the same bytes of a file each time while this lasts, in this thread.

    What is made of a source that is saved meanwhile is that of one moment.
    """
    with _holding({}):
        yield


@contextmanager
def as_it_is() -> Iterator[None]:
    """Give the bytes that a file has now while this lasts, also within `held_still`."""
    with _holding(None):
        yield


@contextmanager
def _holding(files: dict[Path, bytes] | None) -> Iterator[None]:
    before = _held.set(files)
    try:
        yield
    finally:
        _held.reset(before)


@contextmanager
def deep_trees() -> Iterator[None]:
    """Let our own functions follow all that Python parses: a long sum is a deep tree."""
    usual = sys.getrecursionlimit()
    sys.setrecursionlimit(max(usual, _DEPTH))
    try:
        yield
    finally:
        sys.setrecursionlimit(usual)


_DEPTH = 20_000  # Python parses a sum of some thousand terms; each takes several calls


def read_bytes(path: Path) -> bytes:
    """The bytes of a source file.

    Raises:
        OSError: The file cannot be read.
    """
    held = _held.get()
    if held is None:
        return path.read_bytes()
    if path not in held:
        held[path] = path.read_bytes()
    return held[path]


def read_source(path: Path) -> str:
    """Read a source file so that encoding the text again gives its bytes.

    Args:
        path: A Python file in any encoding that it declares, or a notebook, which is turned into
            a percent script.

    Returns:
        The text, with its line ends and its byte order mark as they are.

    Raises:
        SourceError: The bytes are not text in the declared encoding, the encoding is unknown, or
            the notebook is broken or not in Python.
        OSError: The file cannot be read.
    """
    data = read_bytes(path)
    if path.suffix == ".ipynb":
        return _percent(path, _decode(path, data, "utf-8"))
    text = _decode(path, data, _encoding(path, data))
    if "\0" in text:
        raise SourceError(path, *_position(text[: text.index("\0")]), _NUL)
    return text


_NUL = "a null byte cannot be part of Python source"


def _decode(path: Path, data: bytes, encoding: str) -> str:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        place = _position(data[: error.start].decode(encoding, "replace"))
        reason = f"byte 0x{data[error.start]:02x} is not {encoding}: {error.reason}"
        raise SourceError(path, *place, reason) from error
    except (LookupError, UnicodeError) as error:  # a codec that is not for text
        raise SourceError(path, 1, 1, str(error)) from error


def _encoding(path: Path, data: bytes) -> str:
    """The encoding that the file declares (PEP 263)."""
    marked = data.startswith(codecs.BOM_UTF8)
    head = data.removeprefix(codecs.BOM_UTF8).replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    found = cookie(head.decode("latin-1").split("\n", 2))
    if not found:
        return "utf-8"
    number, declared = found
    place = path, number, declared.start(1) + 1
    try:
        name = codecs.lookup(declared[1]).name.removesuffix("-sig")
    except LookupError as error:
        raise SourceError(*place, f"unknown encoding: {declared[1]}") from error
    if marked and name != "utf-8":
        raise SourceError(*place, f"the byte order mark is UTF-8, so this is not {name}")
    return name


def cookie(lines: Sequence[str]) -> tuple[int, re.Match[str]] | None:
    """The line of the first two that declares an encoding, and where in it (PEP 263)."""
    for number, line in enumerate(lines[:2], 1):
        if declared := _COOKIE.match(line):
            return number, declared
        if not _NO_CODE.match(line):
            break
    return None


_COOKIE = re.compile(r"[ \t\f]*#.*?coding[:=][ \t]*([-\w.]+)", re.ASCII)
_NO_CODE = re.compile(r"[ \t\f]*(?:#|$)")


def _position(before: str) -> tuple[int, int]:
    """The line and 1-based column of the character that follows the text `before`."""
    lines = split_lines(before) or [""]
    if lines[-1].endswith(("\n", "\r")):
        lines.append("")
    return len(lines), len(lines[-1].removeprefix("\ufeff")) + 1


def _percent(path: Path, text: str) -> str:
    """The notebook as a percent script."""
    import jupytext  # type: ignore[import-untyped]  # slow to import, and few sources are notebooks
    import nbformat

    try:
        json.loads(text)
        with _quiet():
            notebook = nbformat.reads(text, as_version=4)  # type: ignore[no-untyped-call]
            script = str(jupytext.writes(notebook, fmt="py:percent"))
        metadata = notebook.metadata
        kernel = metadata.get("kernelspec", {}).get("language", "python")
        language = metadata.get("language_info", {}).get("name", kernel)
    except json.JSONDecodeError as error:
        reason = f"the notebook is not JSON: {error.msg}"
        raise SourceError(path, error.lineno, error.colno, reason) from error
    except Exception as error:  # nbformat documents no closed set of errors for a broken file
        reason = str(error).partition("\n")[0]
        raise SourceError(path, 1, 1, f"not a notebook: {reason}") from error
    if language not in ("python", "ipython"):
        raise SourceError(path, 1, 1, f"the notebook is in {language}, not in Python")
    return script


_WARNINGS = threading.Lock()  # catch_warnings swaps a global, and sources are read in threads


@contextmanager
def _quiet() -> Iterator[None]:
    with _WARNINGS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def split_lines(text: str) -> list[str]:
    r"""Split where Python ends a line (`\n`, `\r\n`, `\r`) and keep the line ends."""
    return _LINE.findall(text)


_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")


def plain_lines(text: str) -> list[str]:
    """The lines of a source without line ends and byte order mark."""
    return [line.rstrip("\r\n") for line in split_lines(text.removeprefix("\ufeff"))]


def is_cell_marker(comment: str) -> bool:
    """Whether a comment at the start of a line begins a cell of a percent or nbconvert script."""
    return bool(_CELL_MARKER.match(comment))


def is_light_marker(comment: str) -> bool:
    """The same for the beginnings and ends of cells in a light script, which need not be there."""
    return bool(_LIGHT_MARKER.match(comment))


_CELL_MARKER = re.compile(r"#\s*%%+(?:\s.*|\[.*)?$|# In ?\[[ \d]*\]:?\s*$")
_LIGHT_MARKER = re.compile(r"# ?\+\s*(?:\[\w+\].*|\{.*\}|[\w.]+=.*)?$|# ?-\s*$")


# What Python sees


@dataclass(frozen=True, slots=True)
class Comment:
    """A comment, and where it stands."""

    line: int
    column: int
    text: str  # with its mark
    own: bool  # alone on its line


@dataclass(frozen=True, slots=True)
class Text:
    """A string statement that Python evaluates for its text alone: a docstring."""

    start: int
    column: int
    end: int
    end_column: int
    text: str
    lifted: bool  # it has its lines to itself, so it can leave the code


@dataclass(frozen=True, slots=True)
class Definition:
    """A class or a function at any depth: what is listed of it, and the lines of its header."""

    symbol: Symbol
    head: int  # the line of `def` or `class`, below the decorators
    colon: int  # the last line of the header
    docstring: Text | None


@dataclass(slots=True)
class Tokens:
    """What only the tokens of a source tell."""

    comments: dict[int, Comment] = field(default_factory=dict)
    strings: list[tuple[int, int]] = field(default_factory=list)  # those of several lines
    starts: list[int] = field(default_factory=list)  # of logical lines
    ends: list[int] = field(default_factory=list)
    names: dict[int, tuple[int, int]] = field(default_factory=dict)  # `def` line -> place of name

    def opens(self, line: int) -> bool:
        """Whether a logical line starts here."""
        at = bisect_right(self.starts, line) - 1
        return at >= 0 and self.starts[at] == line


@dataclass(frozen=True, slots=True)
class Scan:
    """All that is read from a source at once."""

    tree: ast.Module
    lines: list[str]  # without line ends and byte order mark
    tokens: Tokens
    docstring: Text | None
    texts: list[Text]  # other string statements at the top level
    definitions: list[Definition]
    symbols: list[Symbol]


def scan_of(text: str, path: str | Path = "<source>") -> Scan:
    """Read the tokens and the tree of a source; every view of it starts here.

    Raises:
        SourceError: The running Python does not parse the text.
    """
    try:
        return _scan_cached(text)
    except SyntaxError as error:  # also indentation and tabs
        place = max(error.lineno or 1, 1), max(error.offset or 1, 1)
        raise SourceError(path, *place, error.msg) from error
    except tokenize.TokenError as error:
        reason, (line, column) = error.args
        raise SourceError(path, line, column + 1, reason) from error
    except UnicodeEncodeError as error:
        place = _position(text.removeprefix("\ufeff")[: error.start])
        raise SourceError(path, *place, "a lone surrogate is not text") from error
    except (RecursionError, MemoryError) as error:
        raise SourceError(path, 1, 1, "too deeply nested for Python to parse") from error


def tree_of(text: str, path: str | Path = "<source>") -> ast.Module:
    """The syntax tree of a source; it belongs to all who ask, so nobody changes it.

    Args:
        text: The source, with any line ends.
        path: Its name, for errors.

    Raises:
        SourceError: The running Python does not parse the text.
    """
    return scan_of(text, path).tree


def symbols(text: str, path: str | Path = "<source>") -> list[Symbol]:
    """List the definitions of a module and of its classes, in order.

    A variable is listed where it is first assigned. What functions define inside is not listed.

    Args:
        text: The source.
        path: Its name, for errors.

    Returns:
        Functions, classes and variables with their places.

    Raises:
        SourceError: The running Python does not parse the text.
    """
    return list(scan_of(text, path).symbols)


@lru_cache(maxsize=64)  # of most sites all modules, which are asked for in turn, step by step
def _scan_cached(text: str) -> Scan:
    if "\0" in text:
        line, column = _position(text[: text.index("\0")])
        raise SyntaxError(_NUL, ("", line, column, None))
    lines = plain_lines(text)
    with _quiet():  # an invalid escape is the author's affair, when it runs
        tree = ast.parse(text.removeprefix("\ufeff"))
    tokens = _tokens(lines)
    docstring = _docstring(tree, tokens, lines)
    later = tree.body[1:] if docstring else tree.body
    texts = [found for node in later if (found := _text(node, tokens, lines))]
    return Scan(tree, lines, tokens, docstring, texts, *_definitions(tree, tokens, lines))


def _named(*names: str) -> frozenset[int]:
    return frozenset(getattr(token, name) for name in names if hasattr(token, name))


_FORMAT_START = _named("FSTRING_START", "TSTRING_START")
_FORMAT_END = _named("FSTRING_END", "TSTRING_END")
_LAYOUT = _named("INDENT", "DEDENT", "NL", "ENDMARKER", "ENCODING")


def _tokens(lines: list[str]) -> Tokens:
    """Find comments, logical lines, long strings and the names that are defined."""
    text = "\n".join([*lines, "", ""])  # two ends, for a file that ends in a backslash
    tokens = Tokens()
    formats: list[int] = []  # the lines of the format strings that are open
    opened = 0  # the first line of the logical line that is open
    naming = False
    for kind, string, (line, column), (last, _), _ in tokenize.generate_tokens(
        io.StringIO(text).readline
    ):
        if kind == token.COMMENT:
            if not formats:  # inside one a comment is part of what `=` prints
                own = not lines[line - 1][:column].strip() and not _continues(lines, line, tokens)
                tokens.comments[line] = Comment(line, column, string, own)
            continue
        if kind == token.NEWLINE and opened:
            tokens.ends.append(line)
            opened = 0
        if kind == token.NEWLINE or kind in _LAYOUT:
            continue
        if not opened:
            opened = line
            tokens.starts.append(line)
        if kind in _FORMAT_START:
            formats.append(line)
        elif kind in _FORMAT_END:
            first = formats.pop()
            if last > first:
                tokens.strings.append((first, last))
        elif kind == token.STRING and last > line:
            tokens.strings.append((line, last))
        elif kind == token.NAME and naming:
            tokens.names[opened] = line, column
            naming = False
        elif kind == token.NAME and string in ("def", "class"):
            naming = True
    return tokens


def _continues(lines: list[str], line: int, tokens: Tokens) -> bool:
    """Whether a backslash joins this line to the one above."""
    return line > 1 and lines[line - 2].endswith("\\") and line - 1 not in tokens.comments


def _statements(tree: ast.Module) -> Iterator[tuple[ast.AST, str, bool]]:
    """Every statement in order, with the prefix of its names and whether a function holds it.

    Expressions are never entered, and nothing recurses: a long `elif` chain is a deep tree.
    """
    stack: list[tuple[ast.AST, str, bool]] = [(tree, "", False)]
    while stack:
        node, prefix, local = stack.pop()
        yield node, prefix, local
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            prefix, local = f"{prefix}{node.name}.", True
        elif isinstance(node, ast.ClassDef):
            prefix = f"{prefix}{node.name}."
        children: list[ast.AST] = []
        for part in ("body", "handlers", "cases", "orelse", "finalbody"):
            children += getattr(node, part, ())
        stack += [(child, prefix, local) for child in reversed(children)]


def _definitions(
    tree: ast.Module, tokens: Tokens, lines: list[str]
) -> tuple[list[Definition], list[Symbol]]:
    """The classes and functions at any depth, and the symbols outside functions."""
    definitions: list[Definition] = []
    found: dict[str, Symbol] = {}  # definitions are kept by place, variables by name
    for node, prefix, local in _statements(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            definition = _definition(node, prefix, tokens, lines)
            definitions.append(definition)
            if not local:
                found[f"{definition.head}"] = definition.symbol
        elif not local:
            for variable in _variables(node, prefix, lines):
                found.setdefault(variable.name, variable)
    return definitions, list(found.values())


def _definition(
    node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef,
    prefix: str,
    tokens: Tokens,
    lines: list[str],
) -> Definition:
    head = bisect_right(tokens.starts, node.lineno) - 1
    start = tokens.starts[head]
    if node.decorator_list:  # the line of the `@`, which a bracket can part from its expression
        start = tokens.starts[bisect_right(tokens.starts, node.decorator_list[0].lineno) - 1]
    line, column = tokens.names[tokens.starts[head]]
    symbol = Symbol(
        name=prefix + node.name,
        kind="class" if isinstance(node, ast.ClassDef) else "function",
        start=start,
        end=node.end_lineno or node.lineno,
        line=line,
        column=column,
        docstring=ast.get_docstring(node) or "",
    )
    docstring = _docstring(node, tokens, lines)
    return Definition(symbol, tokens.starts[head], tokens.ends[head], docstring)


_Documented = ast.Module | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def _docstring(node: _Documented, tokens: Tokens, lines: list[str]) -> Text | None:
    return _text(node.body[0], tokens, lines) if node.body else None


def _text(node: ast.stmt, tokens: Tokens, lines: list[str]) -> Text | None:
    """The statement as a text, if it is nothing but a string."""
    if not (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    ):
        return None
    end = node.end_lineno or node.lineno
    column = column_of(lines[node.lineno - 1], node.col_offset)
    end_column = column_of(lines[end - 1], node.end_col_offset or 0)
    after = lines[end - 1][end_column:].strip()
    lifted = (
        not lines[node.lineno - 1][:column].strip()
        and tokens.opens(node.lineno)
        and lines[node.lineno - 1][column] != "("
        and (not after or after.startswith("#"))
    )
    typed = [*lines[node.lineno - 1 : end - 1], lines[end - 1][:end_column]]
    typed[0] = typed[0][column:]
    text = inspect.cleandoc(meant(node.value.value, "\n".join(typed)))
    return Text(node.lineno, column, end, end_column, text, lifted)


def column_of(line: str, offset: int) -> int:
    """The syntax tree counts columns in bytes of UTF-8; this counts characters."""
    return offset if line.isascii() else len(line.encode()[:offset].decode())


def _variables(node: ast.AST, prefix: str, lines: list[str]) -> Iterator[Symbol]:
    """The names that an assignment binds."""
    targets: list[ast.expr] = []
    if isinstance(node, ast.Assign):
        targets = node.targets[::-1]
    elif isinstance(node, ast.AnnAssign):
        targets = [node.target]
    elif type(node).__name__ == "TypeAlias":  # since Python 3.12
        targets = [getattr(node, "name")]  # noqa: B009  # the type is unknown to Python 3.11
    while targets:
        target = targets.pop()
        if isinstance(target, ast.Tuple | ast.List):
            targets += target.elts[::-1]
        elif isinstance(target, ast.Starred):
            targets.append(target.value)
        elif isinstance(target, ast.Name) and isinstance(node, ast.stmt):
            yield Symbol(
                name=prefix + target.id,
                kind="variable",
                start=node.lineno,
                end=node.end_lineno or node.lineno,
                line=target.lineno,
                column=column_of(lines[target.lineno - 1], target.col_offset),
                docstring="",
            )
