"""The row grammar: any Python source becomes rows of prose beside code, and nothing is lost.

Tokens and the syntax tree say what each line is (its role), the roles say where rows open, and a
row runs until the next one opens. Other views of a source come from the same scan: its symbols,
its trailing comments, and its code without prose.
"""

from __future__ import annotations

import ast
import codecs
import inspect
import io
import json
import re
import threading
import token
import tokenize
import warnings
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from functools import lru_cache
from pathlib import Path
from typing import Literal

from marginalia.docstrings import meant
from marginalia.errors import SourceError

RowKind = Literal["front", "wide", "doc", "side", "code"]
SymbolKind = Literal["class", "function", "variable"]


@dataclass(frozen=True, slots=True)
class Row:
    """Some lines of a file: prose and the code it stands beside.

    Args:
        start: First line, 1-based.
        end: Last line, inclusive.
        kind: `front` is the module docstring; `wide` a detached comment, which spans the page;
            `doc` a signature, its docstring and the code up to the next row; `side` a comment
            that touches code; `code` has no prose.
        prose: Markdown, without comment marks or docstring indentation.
        code: The lines of the code column as they stand, without blank lines at either end.
        source: The exact text of the row; joined over all rows it is the file.
        code_lines: The line number of each line of `code`.
        symbol: The qualified name when the row opens a class or a function.
    """

    start: int
    end: int
    kind: RowKind
    prose: str
    code: str
    source: str
    code_lines: tuple[int, ...]
    symbol: str = ""


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
    data = path.read_bytes()
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
    for number, line in enumerate(head.split(b"\n", 2)[:2], 1):
        text = line.decode("latin-1")
        if cookie := _COOKIE.match(text):
            place = path, number, cookie.start(1) + 1
            try:
                name = codecs.lookup(cookie[1]).name.removesuffix("-sig")
            except LookupError as error:
                raise SourceError(*place, f"unknown encoding: {cookie[1]}") from error
            if marked and name != "utf-8":
                raise SourceError(*place, f"the byte order mark is UTF-8, so this is not {name}")
            return name
        if not _NO_CODE.match(text):
            break
    return "utf-8"


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

# What Python sees


@dataclass(frozen=True, slots=True)
class _Comment:
    line: int
    column: int
    text: str  # with its mark
    own: bool  # alone on its line


@dataclass(frozen=True, slots=True)
class _Text:
    """A string statement that Python evaluates for its text alone: a docstring."""

    start: int
    column: int
    end: int
    end_column: int
    text: str
    lifted: bool  # it has its lines to itself, so it can leave the code


@dataclass(frozen=True, slots=True)
class _Definition:
    symbol: Symbol
    head: int  # the line of `def` or `class`, below the decorators
    colon: int  # the last line of the header
    docstring: _Text | None


@dataclass(slots=True)
class _Tokens:
    comments: dict[int, _Comment] = field(default_factory=dict)
    strings: list[tuple[int, int]] = field(default_factory=list)  # those of several lines
    starts: list[int] = field(default_factory=list)  # of logical lines
    ends: list[int] = field(default_factory=list)
    names: dict[int, tuple[int, int]] = field(default_factory=dict)  # `def` line -> place of name

    def opens(self, line: int) -> bool:
        """Whether a logical line starts here."""
        at = bisect_right(self.starts, line) - 1
        return at >= 0 and self.starts[at] == line


@dataclass(frozen=True, slots=True)
class _Scan:
    lines: list[str]  # without line ends and byte order mark
    tokens: _Tokens
    docstring: _Text | None
    texts: list[_Text]  # other string statements at the top level
    definitions: list[_Definition]
    symbols: list[Symbol]


def _scan(text: str, path: str | Path) -> _Scan:
    """Read the tokens and the tree of a source; every function here starts from it.

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


@lru_cache(maxsize=16)
def _scan_cached(text: str) -> _Scan:
    if "\0" in text:
        line, column = _position(text[: text.index("\0")])
        raise SyntaxError(_NUL, ("", line, column, None))
    text = text.removeprefix("\ufeff")
    lines = [line.rstrip("\r\n") for line in split_lines(text)]
    with _quiet():  # an invalid escape is the author's affair, when it runs
        tree = ast.parse(text)
    tokens = _tokens(lines)
    docstring = _docstring(tree, tokens, lines)
    later = tree.body[1:] if docstring else tree.body
    texts = [found for node in later if (found := _text(node, tokens, lines))]
    return _Scan(lines, tokens, docstring, texts, *_definitions(tree, tokens, lines))


def _named(*names: str) -> frozenset[int]:
    return frozenset(getattr(token, name) for name in names if hasattr(token, name))


_FORMAT_START = _named("FSTRING_START", "TSTRING_START")
_FORMAT_END = _named("FSTRING_END", "TSTRING_END")
_LAYOUT = _named("INDENT", "DEDENT", "NL", "ENDMARKER", "ENCODING")


def _tokens(lines: list[str]) -> _Tokens:
    """Find comments, logical lines, long strings and the names that are defined."""
    text = "\n".join([*lines, "", ""])  # two ends, for a file that ends in a backslash
    tokens = _Tokens()
    formats: list[int] = []  # the lines of the format strings that are open
    opened = 0  # the first line of the logical line that is open
    naming = False
    for kind, string, (line, column), (last, _), _ in tokenize.generate_tokens(
        io.StringIO(text).readline
    ):
        if kind == token.COMMENT:
            if not formats:  # inside one a comment is part of what `=` prints
                own = not lines[line - 1][:column].strip() and not _continues(lines, line, tokens)
                tokens.comments[line] = _Comment(line, column, string, own)
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


def _continues(lines: list[str], line: int, tokens: _Tokens) -> bool:
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
    tree: ast.Module, tokens: _Tokens, lines: list[str]
) -> tuple[list[_Definition], list[Symbol]]:
    """The classes and functions at any depth, and the symbols outside functions."""
    definitions: list[_Definition] = []
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
    tokens: _Tokens,
    lines: list[str],
) -> _Definition:
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
    return _Definition(symbol, tokens.starts[head], tokens.ends[head], docstring)


_Documented = ast.Module | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def _docstring(node: _Documented, tokens: _Tokens, lines: list[str]) -> _Text | None:
    return _text(node.body[0], tokens, lines) if node.body else None


def _text(node: ast.stmt, tokens: _Tokens, lines: list[str]) -> _Text | None:
    """The statement as a text, if it is nothing but a string."""
    if not (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    ):
        return None
    end = node.end_lineno or node.lineno
    column = _column(lines[node.lineno - 1], node.col_offset)
    end_column = _column(lines[end - 1], node.end_col_offset or 0)
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
    return _Text(node.lineno, column, end, end_column, text, lifted)


def _column(line: str, offset: int) -> int:
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
                column=_column(lines[target.lineno - 1], target.col_offset),
                docstring="",
            )


# The role of a line


class _Role(Enum):
    BLANK = auto()
    HIDDEN = auto()  # a cell marker or the notebook header: neither prose nor code
    PROSE = auto()  # an own-line comment
    CELL = auto()  # the same in a Markdown cell, where it is prose whatever it touches
    TEXT = auto()  # a string that is prose
    CODE = auto()


_PRAGMA = re.compile(
    r"#!|#\s*(?:(?:type|fmt|ruff|pylint|mypy|isort|pyright|pytype|flake8|yapf|cython|vim?):"
    r"|noqa\b|pragma(?::|\s+no\b)|-\*-)"
)
_MAGIC = re.compile(r"#\s?(?:%{1,2}[a-zA-Z_]|!\s*\w)")  # a command of IPython, turned off
_MARKER = re.compile(
    r"#\s*%%+(?:\s.*|\[.*)?$"  # percent format
    r"|# ?\+\s*(?:\[\w+\].*|\{.*\}|[\w.]+=.*)?$|# ?-$"  # light format
    r"|# In ?\[[ \d]*\]:?\s*$"  # nbconvert
)
_PERCENT = re.compile(r"#\s*%%+(?:\s|\[|$)|# In ?\[")
_MARKDOWN = re.compile(r"\[(?:markdown|md|raw)\]")
_FOREIGN = re.compile(r"%%.*\blanguage=")  # a cell in another language, all of it in comments
_HEADER_KEY = re.compile(r"#\s*[a-z][\w-]*:")


def _roles(scan: _Scan) -> list[_Role]:
    """What each line is; the line numbers are the indices, so there is one entry at either end."""
    roles = [_Role.CODE if line.strip() else _Role.BLANK for line in scan.lines]
    roles = [_Role.BLANK, *roles, _Role.BLANK]
    for first, last in scan.tokens.strings:
        roles[first : last + 1] = [_Role.CODE] * (last + 1 - first)
    header, script = _header(scan), _is_script(scan)
    markdown = foreign = False
    texts = {text.start: text for text in scan.texts if text.lifted}
    for line in range(1, len(scan.lines) + 1):
        comment = scan.tokens.comments.get(line)
        if comment and comment.own:
            if line in header:
                roles[line] = _Role.HIDDEN
            elif not comment.column and _MARKER.match(comment.text):
                roles[line] = _Role.HIDDEN
                markdown = bool(_MARKDOWN.search(comment.text))
                foreign = bool(_FOREIGN.search(comment.text))
            elif not foreign and not _is_code(comment, scan, script):
                roles[line] = _Role.CELL if markdown else _Role.PROSE
        elif markdown and line in texts:
            _mark_text(roles, texts[line])
    for docstring in (scan.docstring, *(found.docstring for found in scan.definitions)):
        if docstring and docstring.lifted:
            _mark_text(roles, docstring)
    return roles


def _mark_text(roles: list[_Role], text: _Text) -> None:
    roles[text.start : text.end + 1] = [_Role.TEXT] * (text.end + 1 - text.start)


def _is_code(comment: _Comment, scan: _Scan, script: bool) -> bool:
    """Whether an own-line comment speaks to a tool and not to the reader."""
    if _PRAGMA.match(comment.text):
        return True
    if script and not comment.column and _MAGIC.match(comment.text):
        return True
    return comment.line in _cookie(scan)


def _cookie(scan: _Scan) -> range:
    """The line of the coding cookie, if there is one."""
    for number, line in enumerate(scan.lines[:2], 1):
        if _COOKIE.match(line):
            return range(number, number + 1)
        if not _NO_CODE.match(line):
            break
    return range(0)


def _header(scan: _Scan) -> range:
    """The lines of the notebook header: YAML in comments between `# ---` lines at the top."""
    comments, line = scan.tokens.comments, 1
    while line <= len(scan.lines) and (
        not scan.lines[line - 1].strip()
        or line in _cookie(scan)
        or (line in comments and comments[line].text.startswith("#!"))
    ):
        line += 1
    first = line
    if not _is_fence(comments.get(first)):
        return range(0)
    if first + 1 not in comments or not _HEADER_KEY.match(comments[first + 1].text):
        return range(0)
    for line in range(first + 1, len(scan.lines) + 1):
        if line not in comments or not comments[line].own:
            break
        if _is_fence(comments[line]):
            return range(first, line + 1)
    return range(0)


def _is_fence(comment: _Comment | None) -> bool:
    return comment is not None and comment.own and comment.text.rstrip() == "# ---"


def _is_script(scan: _Scan) -> bool:
    comments = scan.tokens.comments
    if any(re.match(r"#\s+(?:jupyter|jupytext):", comments[line].text) for line in _header(scan)):
        return True
    return any(
        comment.own and not comment.column and _PERCENT.match(comment.text)
        for comment in comments.values()
    )


# Prose


def _uncomment(comment: _Comment, cell: bool = False) -> str:
    """The text of a comment: its marks and one space are taken off, the rest of the line stays."""
    text = comment.text[1:] if cell else comment.text.lstrip("#")
    if comment.text.startswith("#:"):
        text = text[1:]
    return text.removeprefix(" ")


def _paragraphs(parts: Iterable[str]) -> str:
    return "\n\n".join(part for part in parts if part)


@dataclass(frozen=True, slots=True)
class _Block:
    """Own-line comments one below the other at the same depth."""

    first: int
    last: int
    text: str
    role: _Role


def _blocks(scan: _Scan, roles: list[_Role]) -> list[_Block]:
    blocks: list[_Block] = []
    group: list[_Comment] = []
    for line in range(1, len(scan.lines) + 2):
        comment = scan.tokens.comments.get(line) if _is_prose(roles[line]) else None
        if group and (comment is None or comment.column != group[-1].column):
            blocks.append(_block(group, roles[group[0].line]))
            group = []
        if comment:
            group.append(comment)
    return blocks


def _is_prose(role: _Role) -> bool:
    return role is _Role.PROSE or role is _Role.CELL


def _block(group: list[_Comment], role: _Role) -> _Block:
    text = "\n".join(_uncomment(comment, role is _Role.CELL) for comment in group)
    lines = [line if line.strip() else "" for line in text.split("\n")]
    return _Block(group[0].line, group[-1].line, "\n".join(lines).strip("\n"), role)


# Rows


def parse(text: str, path: str | Path = "<source>") -> list[Row]:
    """Cut a source into rows.

    Args:
        text: The whole file, with any line ends, as `read_source` returns it.
        path: Its name, for errors.

    Returns:
        Rows that cover the file from its first line to its last, without a gap.

    Raises:
        SourceError: The running Python does not parse the text.
    """
    scan = _scan(text, path)
    sources = split_lines(text)
    if not sources:
        return []
    roles = _roles(scan)
    openings = _openings(scan, roles)
    starts = sorted(openings)
    rows: list[Row] = []
    waiting = 1  # the first line that no row has yet
    for start, following in zip(starts, [*starts[1:], len(sources) + 1], strict=True):
        opening = openings[start]
        code = _code_lines(roles, start, following - 1)
        if opening.prose or code:
            rows.append(_row(opening, waiting, following - 1, code, sources))
            waiting = following
    if waiting <= len(sources):
        rest = _row(_Opening("code"), waiting, len(sources), (), sources)
        last = rows.pop() if rows else None
        rows.append(replace(last, end=rest.end, source=last.source + rest.source) if last else rest)
    return rows


def _row(opening: _Opening, start: int, end: int, code: tuple[int, ...], sources: list[str]) -> Row:
    return Row(
        start=start,
        end=end,
        kind=opening.kind,
        prose=opening.prose,
        code="".join(sources[line - 1] for line in code).removeprefix("\ufeff"),
        source="".join(sources[start - 1 : end]),
        code_lines=code,
        symbol=opening.symbol,
    )


def _code_lines(roles: list[_Role], start: int, end: int) -> tuple[int, ...]:
    """The lines of code, and the blank ones that part two of them and nothing else."""
    code: list[int] = []
    for line in range(start, end + 1):
        if roles[line] is _Role.CODE:
            between = range(code[-1] + 1 if code else line, line)
            if all(roles[blank] is _Role.BLANK for blank in between):
                code += between
            code.append(line)
    return tuple(code)


@dataclass(frozen=True, slots=True)
class _Opening:
    """What the row that starts at a line is."""

    kind: RowKind
    prose: str = ""
    symbol: str = ""


def _openings(scan: _Scan, roles: list[_Role]) -> dict[int, _Opening]:
    """The lines at which rows start."""
    openings: dict[int, _Opening] = {}
    ended: list[int] = []  # last lines after which code belongs to nothing above it
    headings = _Headings(scan, roles)
    for block in _blocks(scan, roles):
        if headings.take(block):
            continue
        if not block.text:  # a separator
            openings[block.first] = _Opening("code")
        elif block.role is _Role.PROSE and roles[block.last + 1] is _Role.CODE:
            openings[block.first] = _Opening("side", block.text)
        else:
            openings[block.first] = _Opening("wide", block.text)
            ended.append(block.last)
    openings |= headings.openings()
    ended += [definition.symbol.end for definition in scan.definitions]
    if scan.docstring and scan.docstring.lifted:
        openings[scan.docstring.start] = _Opening("front", _prose(scan.docstring, scan))
        ended.append(scan.docstring.end)
    for text in scan.texts:
        if roles[text.start] is _Role.TEXT:
            openings[text.start] = _Opening("wide", _prose(text, scan))
            ended.append(text.end)
    for line, role in enumerate(roles):
        if role is _Role.HIDDEN:
            openings.setdefault(line, _Opening("code"))
    following = _following(roles)
    for line in ended:
        if roles[following[line + 1]] is _Role.CODE:
            openings.setdefault(following[line + 1], _Opening("code"))
    openings.setdefault(1, _Opening("code"))
    return openings


def _following(roles: list[_Role]) -> list[int]:
    """For each line the first one from there on that holds anything (the last index if none)."""
    following = [len(roles) - 1] * (len(roles) + 1)
    for line in range(len(roles) - 2, 0, -1):
        empty = roles[line] in (_Role.BLANK, _Role.HIDDEN)
        following[line] = following[line + 1] if empty else line
    return following


def _prose(text: _Text, scan: _Scan) -> str:
    """A docstring, and the remark behind it on its last line, which would show nowhere else."""
    comment = scan.tokens.comments.get(text.end)
    remark = _uncomment(comment) if comment and not _PRAGMA.match(comment.text) else ""
    return _paragraphs([text.text, remark])


class _Headings:
    """The rows that definitions open, and the comments that belong to them.

    A comment belongs to a definition when it touches it from above, stands between its decorators
    or comes before its docstring; comments inside the brackets of a signature are rows of their
    own.
    """

    def __init__(self, scan: _Scan, roles: list[_Role]) -> None:
        self.scan = scan
        self.tops = [self._top(definition, roles) for definition in scan.definitions]
        self.comments: list[list[str]] = [[] for _ in scan.definitions]
        self.above = {top: number for number, top in enumerate(self.tops)}
        self.within: dict[int, int] = {}
        for number, definition in enumerate(scan.definitions):
            inside = list(range(definition.symbol.start, definition.head))
            if definition.docstring and definition.docstring.lifted:
                inside += range(definition.colon + 1, definition.docstring.start)
            self.within.update(dict.fromkeys(inside, number))

    def _top(self, definition: _Definition, roles: list[_Role]) -> int:
        """The definition's first line, or that of the pragmas that touch it."""
        comments, top = self.scan.tokens.comments, definition.symbol.start
        column = len(indent := self.scan.lines[top - 1]) - len(indent.lstrip())
        while (
            (comment := comments.get(top - 1))
            and comment.own
            and comment.column == column
            and roles[top - 1] is _Role.CODE
        ):
            top -= 1
        return top

    def take(self, block: _Block) -> bool:
        """Whether the block belongs to a definition; if so, it is kept for its row."""
        number = self.within.get(block.first)
        if number is None and block.role is _Role.PROSE:
            number = self.above.get(block.last + 1)
            if number is not None:
                self.tops[number] = block.first
        if number is None:
            return False
        self.comments[number].append(block.text)
        return True

    def openings(self) -> dict[int, _Opening]:
        """The row of each definition, by its first line."""
        openings = {}
        for definition, top, prose in zip(
            self.scan.definitions, self.tops, self.comments, strict=True
        ):
            if definition.docstring and definition.docstring.lifted:
                prose.append(_prose(definition.docstring, self.scan))
            openings[top] = _Opening("doc", _paragraphs(prose), definition.symbol.name)
        return openings


# Other views of a source


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
    return list(_scan(text, path).symbols)


def trailing_comments(text: str, path: str | Path = "<source>") -> dict[int, str]:
    """Find the comments that stand behind code.

    Args:
        text: The source.
        path: Its name, for errors.

    Returns:
        Line number -> the comment without its mark.

    Raises:
        SourceError: The running Python does not parse the text.
    """
    comments = _scan(text, path).tokens.comments
    return {line: _uncomment(found).strip() for line, found in comments.items() if not found.own}


def is_script(text: str) -> bool:
    """Tell whether a source is a notebook script, whose top level is its demo.

    Args:
        text: The source.

    Returns:
        Whether it has cell markers (`# %%`) or the header that jupytext writes; a source that
        does not parse is no script.
    """
    if not re.search(r"%%|# In ?\[|# ---", text):
        return False
    try:
        return _is_script(_scan(text, "<source>"))
    except SourceError:
        return False


_READS_DOCSTRINGS = re.compile(r"\b(?:__doc__|getdoc|doctest)\b")
_READS_SOURCE = re.compile(r"\b(?:getsource|getsourcelines|getcomments|findsource|linecache)\b")


def code_text(text: str, path: str | Path = "<source>") -> tuple[str, tuple[int, ...]]:
    r"""Reduce a source to what can change its behaviour: no comments, docstrings or blank lines.

    Docstrings stay if the code reads them, and everything stays if it reads its own source.

    Args:
        text: The source.
        path: Its name, for errors.

    Returns:
        The code with `\n` line ends, and for each of its lines its line number in the file. Two
        sources that differ only in prose have the same code.

    Raises:
        SourceError: The running Python does not parse the text.
    """
    scan = _scan(text, path)
    code = _without_prose(scan, docstrings=False)
    everything = "\n".join(code.values())
    if _READS_SOURCE.search(everything):
        code = dict(enumerate(scan.lines, 1))
    elif _READS_DOCSTRINGS.search(everything):
        code = _without_prose(scan, docstrings=True)
    return "".join(f"{line}\n" for line in code.values()), tuple(code)


def _without_prose(scan: _Scan, *, docstrings: bool) -> dict[int, str]:
    """Line number -> what is left of the line."""
    lines = dict(enumerate(scan.lines, 1))
    for comment in scan.tokens.comments.values():
        lines[comment.line] = lines[comment.line][: comment.column]
    found = (scan.docstring, *(definition.docstring for definition in scan.definitions))
    removed = [] if docstrings else [docstring for docstring in found if docstring]
    for docstring in removed:
        if docstring.end > docstring.start:
            lines[docstring.end] = lines[docstring.end][docstring.end_column :]
            for line in range(docstring.start + 1, docstring.end):
                lines[line] = ""
            lines[docstring.start] = lines[docstring.start][: docstring.column]
        else:
            only = lines[docstring.start]
            lines[docstring.start] = only[: docstring.column] + only[docstring.end_column :]
    verbatim = _string_lines(scan, removed)
    left = {n: line if n in verbatim else line.rstrip() for n, line in lines.items()}
    inside = {n + 1 for n in verbatim}
    return {n: line for n, line in left.items() if line or n in verbatim or n in inside}


def _string_lines(scan: _Scan, removed: list[_Text]) -> set[int]:
    """The lines whose end lies inside a string: their spaces count."""
    gone = {line for text in removed for line in range(text.start, text.end)}
    ends = {line for first, last in scan.tokens.strings for line in range(first, last)}
    return ends - gone
