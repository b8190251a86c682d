"""The notebook of a page: its prose and code as cells, its demo dedented, its outputs stored."""

from __future__ import annotations

import ast
import hashlib
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from marginalia.demo import Output, Result
from marginalia.effects import binds, reads
from marginalia.paper import Paper
from marginalia.rewrite import demo_of
from marginalia.rows import Row, is_script, parse
from marginalia.snippet import borrowed
from marginalia.source import plain_lines, tree_of
from marginalia.syntax import (
    dedent,
    end_of,
    inside_strings,
    is_dedentable,
    is_guard,
    is_text,
    start_of,
)

_METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {
        "codemirror_mode": {"name": "ipython", "version": 3},
        "file_extension": ".py",
        "mimetype": "text/x-python",
        "name": "python",
        "nbconvert_exporter": "python",
        "pygments_lexer": "ipython3",
    },
}


def notebook(text: str, paper: Paper, result: Result | None, root: Path | None = None) -> str:
    """Turn a module into a notebook with its outputs: see :class:`Notebook`."""
    return Notebook(text, paper, root).with_outputs(result)


class Notebook:
    """A module as a notebook that runs from top to bottom.

    A cell for the title, the docstring's prose, the module as jupytext's light format reads it,
    and one cell for each row of `demo()`, its comment above it as Markdown. A demo that cannot be
    taken apart (it returns early, or a name of its own hides one of the module's) is called.

    Args:
        text: The module's source; a notebook script is read as jupytext reads it.
        paper: What its front matter says.
        root: The folder that the imports of local modules start from: what is taken from those
            gets a cell of its own, for a reader has the notebook and not the folder.

    Raises:
        SourceError: The source does not parse.
    """

    def __init__(self, text: str, paper: Paper, root: Path | None = None) -> None:
        code, replaced = borrowed(text, path=paper.path, root=root)
        self._cells = _cells(text, paper, code)
        _bring(self._cells, code, replaced)

    def with_outputs(self, result: Result | None) -> str:
        """It as JSON in nbformat 4.5: the same input gives the same bytes.

        Args:
            result: What the demo showed; without it the cells have no outputs.
        """
        import nbformat  # slow to import, and most builds make no notebook

        cells = [replace(cell, outputs=[]) for cell in self._cells]
        if result:
            _store(cells, result)
        seen: Counter[tuple[str, str]] = Counter()
        made = []
        for cell in cells:
            seen[cell.kind, cell.source] += 1
            made.append(cell.made(seen[cell.kind, cell.source]))
        book = {"nbformat": 4, "nbformat_minor": 5, "metadata": _METADATA, "cells": made}
        return f"{nbformat.v4.writes(_node(book))}\n"  # type: ignore[no-untyped-call]


def _bring(cells: list[_Cell], code: str, replaced: Sequence[ast.stmt]) -> None:
    """Put what comes from local modules, which a reader does not have, below the imports."""
    taken = {ast.unparse(node) for node in replaced}
    place = 0
    for number, cell in enumerate(cells):
        if cell.kind == "code" and (kept := _without(cell.source, taken)) is not None:
            cell.source, place = kept, number + 1
    if place:
        lead = _Cell("markdown", "Taken from other modules of the same collection:")
        cells[place:place] = [lead, _Cell("code", code.rstrip("\n"))]
    cells[:] = [cell for cell in cells if cell.source]


def _without(source: str, imports: Collection[str]) -> str | None:
    """A cell without some imports; None if it has none of them."""
    try:
        body = ast.parse(source).body
    except SyntaxError:  # a command of IPython
        return None
    lines = source.split("\n")
    found = [node for node in body if ast.unparse(node) in imports]
    for node in reversed(found):
        del lines[start_of(node) - 1 : end_of(node)]
    return "\n".join(lines).strip("\n") if found else None


@dataclass(slots=True)
class _Cell:
    """A cell that is being made.

    Args:
        kind: `markdown` or `code` (or `raw`, in a notebook script).
        source: Its text.
        line: Where it is in the module, to tell which outputs are its own; 0 for no place.
        values: The lines of the statement whose value Jupyter shows below the cell.
        outputs: In nbformat.
        count: The place in the order of execution; 0 before it has run.
    """

    kind: str
    source: str
    line: int = 0
    values: range = range(0)
    outputs: list[Any] = field(default_factory=list)
    count: int = 0

    def made(self, number: int) -> Any:
        """The cell in nbformat; the number tells it from others of the same text."""
        key = f"{self.kind}\n{number}\n{self.source}"
        cell: dict[str, Any] = {
            "cell_type": self.kind,
            "id": hashlib.sha256(key.encode()).hexdigest()[:12],
            "metadata": {},
            "source": self.source,
        }
        if self.kind == "code":
            cell |= {"outputs": self.outputs, "execution_count": self.count or None}
        return _node(cell)


def _node(value: dict[str, Any]) -> Any:
    """It as nbformat has it, whose own makers validate each piece, which takes long."""
    import nbformat

    return nbformat.from_dict(value)  # type: ignore[no-untyped-call]


def _output(kind: str, **parts: Any) -> Any:
    return _node({"output_type": kind, **parts})


# Cells


def _cells(text: str, paper: Paper, brought: str) -> list[_Cell]:
    tree = tree_of(text, paper.path)
    lines = plain_lines(text)
    opening = end_of(tree.body[0]) if tree.body and is_text(tree.body[0]) else 0
    if is_script(text):
        cells = _read(lines, opening + 1, len(lines), "py")
        titled = not opening and cells and cells[0].kind == "markdown"
        return cells if titled else [*_title(paper), *cells]
    demo = demo_of(tree)
    lines = _without_guard(lines, tree)
    if demo is None:
        return [*_title(paper), *_read(lines, opening + 1, len(lines))]
    rows = parse(text, paper.path)
    before = _read(lines, opening + 1, _top(demo, rows) - 1)
    after = _read(lines, end_of(demo) + 1, len(lines))
    heading: list[_Cell] = []
    while after and before and before[-1].kind == "markdown":
        heading.insert(0, before.pop())
    return [*_title(paper), *before, *after, *heading, *_of_demo(text, tree, demo, rows, brought)]


def _title(paper: Paper) -> list[_Cell]:
    """The title with what the front matter says of the paper, and the text below it."""
    facts = [", ".join(paper.authors), " ".join(str(x) for x in (paper.venue, paper.year) if x)]
    if paper.arxiv:
        facts.append(f"[arXiv:{paper.arxiv}](https://arxiv.org/abs/{paper.arxiv})")
    if paper.code:
        facts.append(f"[{paper.code_label}]({paper.code})")
    about = " · ".join(fact for fact in facts if fact)
    heading = f"# {paper.title}"
    summary = paper.summary.strip().removeprefix(heading).strip()
    cells = [_Cell("markdown", f"{heading}\n\n{about}" if about else heading)]
    return [*cells, _Cell("markdown", summary)] if summary else cells


def _without_guard(lines: list[str], tree: ast.Module) -> list[str]:
    """The lines, those of `if __name__ == "__main__":` left blank."""
    lines = list(lines)
    for node in tree.body:
        if is_guard(node):
            lines[start_of(node) - 1 : end_of(node)] = [""] * (end_of(node) + 1 - start_of(node))
    return lines


def _read(lines: Sequence[str], first: int, last: int, format_: str = "py:light") -> list[_Cell]:
    """Part of a module as jupytext reads it."""
    import jupytext  # type: ignore[import-untyped]  # slow to import, and not every build needs it

    part = [*lines[first - 1 : last], ""]
    if first == 1:
        part[:2] = ["" if _COOKIE.match(line) else line for line in part[:2]]
    cells: list[_Cell] = []
    at = 0
    above = "\n\n" if first > 1 else ""  # else `# Encoding: sines` is taken for a cookie
    for cell in jupytext.reads(above + "\n".join(part), format_).cells:
        if cell.source.strip():
            head = cell.source.split("\n")[0]
            found = next((n for n in range(at, len(part)) if part[n] == head), None)
            at = at if found is None else found + 1
            cells.append(_Cell(cell.cell_type, cell.source, first + at - 1 if at else first))
            _note_value(cells[-1])
    return cells


# An encoding is the file's, not the notebook's, and jupytext takes none but `utf-8`, so spelt.
_COOKIE = re.compile(r"[ \t\f]*#.*?coding[:=][ \t]*[-_.a-zA-Z0-9]+")


def _note_value(cell: _Cell) -> None:
    """Find the statement whose value Jupyter shows, in a cell that is not of the demo."""
    try:
        body = ast.parse(cell.source).body if cell.kind == "code" else []
    except SyntaxError:  # a command of IPython
        return
    if body and isinstance(body[-1], ast.Expr):
        offset = cell.line - 1
        cell.values = range(offset + body[-1].lineno, offset + end_of(body[-1]) + 1)


def _top(demo: ast.FunctionDef, rows: Iterable[Row]) -> int:
    """The first line of the demo, the comment that touches it included."""
    return next((row.start for row in rows if _opens(row, demo)), start_of(demo))


def _opens(row: Row, demo: ast.FunctionDef) -> bool:
    """Whether it is the row of the demo, and not of an earlier function of that name."""
    return row.symbol == "demo" and row.start <= start_of(demo) <= row.end


def _of_demo(
    text: str,
    tree: ast.Module,
    demo: ast.FunctionDef,
    rows: Sequence[Row],
    brought: str,
) -> list[_Cell]:
    lines, inside = plain_lines(text), inside_strings(text)
    body = demo.body[1:] if is_text(demo.body[0]) else demo.body
    others = [node for node in tree.body if node is not demo] + ast.parse(brought).body
    clash = binds(body) & (binds(others) | reads(others))
    if clash or not is_dedentable(demo, body):
        source = "\n".join(lines[start_of(demo) - 1 : end_of(demo)])
        return [_Cell("code", source), _Cell("code", "demo()", start_of(demo))]
    cells: list[_Cell] = []
    for row, following in _segments(demo, body, rows):
        if row.prose and (row.kind in ("side", "wide") or _opens(row, demo)):
            cells.append(_Cell("markdown", row.prose))
        statements = [n for n in body if row.start <= start_of(n) < following]
        if statements:
            first, last = start_of(statements[0]), end_of(statements[-1])
            cell = _Cell("code", "\n".join(dedent(lines, first, last, inside)), first)
            if isinstance(statements[-1], ast.Expr):
                cell.values = range(statements[-1].lineno, last + 1)
            cells.append(cell)
    return cells


def _segments(
    demo: ast.FunctionDef, body: Sequence[ast.stmt], rows: Iterable[Row]
) -> list[tuple[Row, int]]:
    """The rows that part statements of the demo, each with the line where the next one starts.

    A row inside of a statement is a comment within a loop or the like: it stays in the code.
    """
    within = {n for node in body for n in range(start_of(node) + 1, end_of(node) + 1)}
    inside = [
        row
        for row in rows
        if _opens(row, demo)
        or (start_of(demo) < row.start <= end_of(demo) and row.start not in within)
    ]
    ends = [*(row.start for row in inside[1:]), end_of(demo) + 1]
    return list(zip(inside, ends, strict=True))


# Outputs


def _store(cells: Sequence[_Cell], result: Result) -> None:
    """Put each output into the cell of its line."""
    code = [cell for cell in cells if cell.kind == "code"]
    placed = sorted((cell for cell in code if cell.line), key=lambda cell: cell.line)
    failed = _at(placed, result.error.line) if result.error else None
    for count, cell in enumerate(code, 1):
        cell.count = count
        if cell is failed:
            break
    for output in result.outputs:
        place = _at(placed, output.line)
        if place:
            _add(place, output)
    if result.error and failed:
        error = result.error
        failed.outputs.append(
            _output(
                "error",
                ename=error.type,
                evalue=error.message,
                traceback=[f"{error.type}: {error.message}"],
            )
        )


def _at(placed: Sequence[_Cell], line: int) -> _Cell | None:
    """The cell of a line: the last one that starts before it."""
    number = bisect_right([cell.line for cell in placed], line)
    return placed[max(number - 1, 0)] if placed else None


def _add(cell: _Cell, output: Output) -> None:
    if output.kind in ("stdout", "stderr", "warning"):
        name = "stdout" if output.kind == "stdout" else "stderr"
        text = output.data.get("text/plain", "")
        if output.kind == "warning" and not text.endswith("\n"):
            text += "\n"
        last = cell.outputs[-1] if cell.outputs else None
        if last and last.output_type == "stream" and last.name == name:
            last.text += text
        else:
            cell.outputs.append(_output("stream", name=name, text=text))
        return
    data = {kind: value for kind, value in output.data.items() if _is_shown(kind)}
    if output.kind == "figure" and output.data.get("alt"):
        data.setdefault("text/plain", output.data["alt"])
    if output.line in cell.values and output.kind == "value":
        count = cell.count or None
        made = _output("execute_result", data=data, metadata={}, execution_count=count)
    else:
        made = _output("display_data", data=data, metadata={})
    cell.outputs.append(made)


def _is_shown(kind: str) -> bool:
    """Whether a part of an output is a format, and not a note of ours or the dark variant."""
    return "/" in kind and ";" not in kind
