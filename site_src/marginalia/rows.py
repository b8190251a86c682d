"""The row grammar: any Python source becomes rows of prose beside code, and nothing is lost.

A scan of the source says what each line is (its role), the roles say where rows open, and a row
runs until the next one opens. Other views of a source come from the same scan: its trailing
comments, and its code without prose.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum, IntEnum, auto
from pathlib import Path
from typing import Literal

from marginalia.errors import SourceError
from marginalia.rewrite import prologue
from marginalia.source import (
    Comment,
    Definition,
    Scan,
    Text,
    cookie,
    is_cell_marker,
    is_light_marker,
    scan_of,
    split_lines,
)

RowKind = Literal["front", "wide", "doc", "side", "code"]


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
_MARKDOWN = re.compile(r"\[(?:markdown|md|raw)\]")
_FOREIGN = re.compile(r"%%.*\blanguage=")  # a cell in another language, all of it in comments
_HEADER_KEY = re.compile(r"#\s*[a-z][\w-]*:")


def _roles(scan: Scan) -> list[_Role]:
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
            elif not comment.column and _is_marker(comment.text):
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


def _is_marker(comment: str) -> bool:
    return is_cell_marker(comment) or is_light_marker(comment)


def _mark_text(roles: list[_Role], text: Text) -> None:
    roles[text.start : text.end + 1] = [_Role.TEXT] * (text.end + 1 - text.start)


def _is_code(comment: Comment, scan: Scan, script: bool) -> bool:
    """Whether an own-line comment speaks to a tool and not to the reader."""
    if _PRAGMA.match(comment.text):
        return True
    if script and not comment.column and _MAGIC.match(comment.text):
        return True
    return comment.line == _cookie_line(scan)


def _cookie_line(scan: Scan) -> int:
    """The line of the coding cookie; 0 if there is none."""
    found = cookie(scan.lines)
    return found[0] if found else 0


def _header(scan: Scan) -> range:
    """The lines of the notebook header: YAML in comments between `# ---` lines at the top."""
    comments, line = scan.tokens.comments, 1
    while line <= len(scan.lines) and (
        not scan.lines[line - 1].strip()
        or line == _cookie_line(scan)
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


def _is_fence(comment: Comment | None) -> bool:
    return comment is not None and comment.own and comment.text.rstrip() == "# ---"


def _is_script(scan: Scan) -> bool:
    comments = scan.tokens.comments
    if any(re.match(r"#\s+(?:jupyter|jupytext):", comments[line].text) for line in _header(scan)):
        return True
    return any(
        comment.own and not comment.column and is_cell_marker(comment.text)
        for comment in comments.values()
    )


# Prose


def _uncomment(comment: Comment, cell: bool = False) -> str:
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


def _blocks(scan: Scan, roles: list[_Role]) -> list[_Block]:
    blocks: list[_Block] = []
    group: list[Comment] = []
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


def _block(group: list[Comment], role: _Role) -> _Block:
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
    scan = scan_of(text, path)
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


def _openings(scan: Scan, roles: list[_Role]) -> dict[int, _Opening]:
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


def _prose(text: Text, scan: Scan) -> str:
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

    def __init__(self, scan: Scan, roles: list[_Role]) -> None:
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

    def _top(self, definition: Definition, roles: list[_Role]) -> int:
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
        documented: dict[str, int] = {}  # what has a docstring, and the line on which it ends
        for definition, top, prose in zip(
            self.scan.definitions, self.tops, self.comments, strict=True
        ):
            name = definition.symbol.name
            if definition.docstring and definition.docstring.lifted:
                prose.append(_prose(definition.docstring, self.scan))
                documented[name] = definition.docstring.end
            owner = name.removesuffix(".__init__")
            end = documented.get(owner) if owner != name and not prose else None
            # An initialiser without prose, just below the docstring of its class, which speaks
            # for both, stands beside it.
            if end is None or any(line.strip() for line in self.scan.lines[end : top - 1]):
                openings[top] = _Opening("doc", _paragraphs(prose), name)
        return openings


# Other views of a source


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
    comments = scan_of(text, path).tokens.comments
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
        return _is_script(scan_of(text))
    except SourceError:
        return False


def cell_ends(body: Sequence[ast.stmt], lines: Sequence[str]) -> tuple[list[ast.stmt], bool]:
    """Find where the cells of a notebook script end.

    Args:
        body: The statements of its top level.
        lines: The lines of the source.

    Returns:
        The last statement of each cell, and whether markers part the cells, not blank lines.
    """
    marks = [number for number, line in enumerate(lines, 1) if is_cell_marker(line)]
    ends = []
    for node, following in zip(body, [*body[1:], None], strict=True):
        last = node.end_lineno or node.lineno
        until = following.lineno if following else len(lines) + 1
        if marks:
            parted = any(last < mark < until for mark in marks)
        else:
            parted = any(not line.strip() for line in lines[last : until - 1])
        if parted or following is None:
            ends.append(node)
    return ends, bool(marks)


class Reads(IntEnum):
    """What code may read, and show, of the prose around it."""

    NOTHING = 0
    DOCSTRINGS = 1
    SOURCE = 2  # comments, or the numbers of lines


_READS_DOCSTRINGS = re.compile(r"\b(?:__doc__|getdoc)\b")
_READS_SOURCE = re.compile(
    # source, or docstrings with the comments or the numbers of lines around them
    r"\b(?:(?:getsource|getsourcelines|getcomments|findsource|linecache|pydoc|doctest|__file__"
    # the numbers of lines
    r"|\w*lineno|__code__|co_lines|co_positions|_getframe|currentframe|getframeinfo|gi_frame"
    r"|inspect\.stack|import .*\bdis"
    # tracebacks, warnings and records of a log, which say where they come from
    r"|traceback|excepthook|exc_info|stack_info|faulthandler|unittest\.main|pytest\.main"
    r"|record=True|formatwarning|captureWarnings|loguru"
    # what torch notes of the origin of operations; and it goes by comments
    r"|export|stack_trace|print_readable|detect_anomaly"
    r"|torch(?:\.| import [\w\s,()]*\b)(?:jit|onnx|_dynamo))\b"
    r"|help\(|exception\()"
)
# The folder that the code is in says nothing of it.
_FOLDER = re.compile(
    r"\bPath\(__file__\)(?:\.(?:resolve|absolute)\(\))?\.(?:parents?|with_name)\b"
    r"|\bdirname\((?:os\.path\.)?(?:(?:abspath|realpath)\()?__file__\b"
)


def prose_read(text: str, path: str | Path = "<source>") -> Reads:
    """Tell what the code of a source may read of prose, in whatever file it stands.

    Args:
        text: The source.
        path: Its name, for errors.

    Raises:
        SourceError: The running Python does not parse the text.
    """
    code = "\n".join(_without_prose(scan_of(text, path), docstrings=False).values())
    if _READS_SOURCE.search(_FOLDER.sub("", code)):
        return Reads.SOURCE
    return Reads.DOCSTRINGS if _READS_DOCSTRINGS.search(code) else Reads.NOTHING


def code_text(
    text: str, path: str | Path = "<source>", *, reads: Reads | None = None
) -> tuple[str, tuple[int, ...]]:
    r"""Reduce a source to what can change its behaviour: no comments, docstrings or blank lines.

    Args:
        text: The source.
        path: Its name, for errors.
        reads: The prose that can change it too; by default what the code itself reads.

    Returns:
        The code with `\n` line ends, and for each of its lines its line number in the file. Two
        sources that differ only in prose have the same code.

    Raises:
        SourceError: The running Python does not parse the text.
    """
    scan = scan_of(text, path)
    reads = prose_read(text, path) if reads is None else reads
    if reads is Reads.SOURCE:
        code = dict(enumerate(scan.lines, 1))
    else:
        code = _without_prose(scan, docstrings=reads is Reads.DOCSTRINGS)
    return "".join(f"{line}\n" for line in code.values()), tuple(code)


def _without_prose(scan: Scan, *, docstrings: bool) -> dict[int, str]:
    """Line number -> what is left of the line."""
    lines = dict(enumerate(scan.lines, 1))
    for comment in scan.tokens.comments.values():
        lines[comment.line] = lines[comment.line][: comment.column]
    found = (scan.docstring, *(definition.docstring for definition in scan.definitions))
    removed = [] if docstrings else [*filter(None, found), *_idle(scan)]
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
    inside = {n + 1 for n, line in left.items() if n in verbatim or line.endswith("\\")}
    return {n: line for n, line in left.items() if line or n in verbatim or n in inside}


def _idle(scan: Scan) -> list[Text]:
    """The strings at the top level that do nothing there.

    In a script they may end a cell. The first statement is where outputs start, and a string is not
    allowed to come before an import from ``__future__``.
    """
    if _is_script(scan):
        return []
    first = scan.tree.body[prologue(scan.tree.body) :][:1]
    return [text for text in scan.texts if text.lifted and text.start > first[0].lineno]


def _string_lines(scan: Scan, removed: list[Text]) -> set[int]:
    """The lines whose end lies inside a string: their spaces count."""
    gone = {line for text in removed for line in range(text.start, text.end)}
    ends = {line for first, last in scan.tokens.strings for line in range(first, last)}
    return ends - gone
