"""Copy runnable: a piece of a module with exactly the imports and definitions that it needs.

The blocks that the piece needs, and those that stand for imports of local modules, are written in
the order in which they run. Statements of `demo()` come out dedented.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

from marginalia.blocks import Block, Module, load, name_below
from marginalia.choice import Choice, choose_lines, choose_symbol
from marginalia.neighbours import Neighbours, Taken, bound_by, is_future, source_of
from marginalia.syntax import dedent, end_of, start_of

_WIDTH = 100


def runnable(
    text: str,
    target: str | tuple[int, int],
    *,
    path: str | Path = "<source>",
    root: Path | None = None,
) -> str:
    """Cut out a piece of a module so that it runs alone in a fresh interpreter.

    Args:
        text: The module.
        target: The qualified name of a definition (a method stands for its class, a function
            within a function for the outer one), or the first and last line of a row. Lines
            inside `demo()` give these statements, dedented, below the earlier ones that they need;
            lines inside another definition give all of it.
        path: The module's file, for errors and for what it imports relatively.
        root: The folder that the imports of local modules start from. What is used of a local
            module is then part of the result; where that cannot be done its import stays, with a
            comment that says so.

    Returns:
        Source that ends in one newline; empty when the lines hold no code.

    Raises:
        SourceError: The module, or a local one that it needs, does not parse.
        MarginaliaError: There is no such definition.
    """
    if root and any(part in ("site-packages", "dist-packages") for part in root.resolve().parts):
        root = None  # an installed package can be imported wherever the result runs
    module = load(text, str(path), name_below(str(path), root))
    chosen: Choice | None
    if isinstance(target, str):
        chosen = choose_symbol(module, target)
    else:
        chosen = choose_lines(module, *target)
    return _Assembly(module, chosen, root).text() if chosen else ""


def borrowed(
    text: str, *, path: str | Path = "<source>", root: Path | None = None
) -> tuple[str, list[ast.stmt]]:
    """What a module takes from local modules, to put in the place of its imports of them.

    Args:
        text: The module.
        path: The module's file, for errors and for what it imports relatively.
        root: The folder that the imports of local modules start from.

    Returns:
        The definitions, which need the module's other imports above them, and the imports that they
        stand for; an import stays where `runnable` would leave it, too.

    Raises:
        SourceError: The module, or a local one that it needs, does not parse.
    """
    module = load(text, str(path), name_below(str(path), root))
    blocks = {block for block in module.top if block.kind not in ("text", "guard")}
    imports = {block for block in blocks if block.kind == "import"}
    return _Assembly(module, Choice(blocks, imports), root).borrowed()


@dataclass(slots=True)
class _Piece:
    """Lines of the result, and where they are from: places of one file keep their distance."""

    lines: list[str]
    kind: Literal["import", "definition", "code"]
    module: Module | None = None
    start: int = 0
    end: int = 0


class _Assembly:
    """Writes the chosen blocks in the order in which they run."""

    def __init__(self, module: Module, choice: Choice, root: Path | None) -> None:
        self.module = module
        self.choice = choice
        self.neighbours = Neighbours(module, choice, root)
        self.pieces: list[_Piece] = []
        self.future: _Piece | None = None
        self.imported: set[tuple[str, str, str | None]] = set()
        self.written: set[Module] = set()
        self.pending: list[tuple[Taken, str, Module]] = []

    def text(self) -> str:
        """The whole snippet."""
        self._write(self.module)
        if self.choice.call:
            self.pieces.append(_Piece(["demo()"], "code"))
        return _joined([self.future, *self.pieces] if self.future else self.pieces)

    def borrowed(self) -> tuple[str, list[ast.stmt]]:
        """The part of it that is not of the module, and the imports that it stands for."""
        self._write(self.module)
        replaced: list[ast.stmt] = []
        for block in self.module.top:
            if block in self.choice.whole:
                kinds: dict[ast.stmt, set[bool]] = defaultdict(set)
                for node, alias in self.neighbours.aliases(self.module, block):
                    kinds[node].add(bool(self.neighbours.taken(self.module, node, alias)))
                replaced += [node for node, taken in kinds.items() if taken == {True}]
        return _joined([p for p in self.pieces if p.module is not self.module]), replaced

    def _write(self, module: Module) -> None:
        self.written.add(module)
        kept = self.neighbours.kept[module]
        futures = [node for node in module.tree.body if is_future(node)]
        if futures and not self.future and any(_annotates(n) for b in kept for n in b.nodes):
            lines = [line for node in futures for line in _lines_of(module, node)]
            self.future = _Piece(lines, "import", module, 1, end_of(futures[-1]))
        for block in module.blocks:
            if block in kept:
                if block.kind == "import":
                    self._write_import(module, block)
                else:
                    self._write_pending()
                    self._write_block(module, block)
        self._write_pending()

    def _write_block(self, module: Module, block: Block) -> None:
        start = block.start if self._is_explained(module, block) else block.first
        lines = dedent(module.lines, start, block.end, module.inside)
        stays = sorted({path for node in block.imports for path in self._stays(module, node)})
        lines = [*(f"# needs {path} from this site" for path in stays), *lines]
        kind: Literal["definition", "code"] = "definition" if block.kind == "definition" else "code"
        self.pieces.append(_Piece(lines, kind, module, block.start, block.end))

    def _is_explained(self, module: Module, block: Block) -> bool:
        """Whether all that the comment above a block speaks of is in the snippet."""
        blocks = module.blocks[module.blocks.index(block) :]
        for before, following in pairwise(blocks):
            new_row = following.start != following.first or following.in_demo != block.in_demo
            if new_row or following.start > before.end + 1 or before.kind == "definition":
                break
            if following not in self.neighbours.kept[module]:
                return False
        return True

    def _stays(self, module: Module, node: ast.Import | ast.ImportFrom) -> Iterator[str]:
        """The local modules of an import that is inside of a statement."""
        for alias in node.names:
            yield from self._file_of(module, node, alias)

    def _file_of(
        self, module: Module, node: ast.Import | ast.ImportFrom, alias: ast.alias
    ) -> Iterator[str]:
        source = source_of(module, node)
        names = [f"{source}.{alias.name}", source] if source else [alias.name]
        for name in names:
            path = self.neighbours.file(name)
            if path and self.neighbours.root:
                yield path.relative_to(self.neighbours.root).as_posix()
                return

    def _write_import(self, module: Module, block: Block) -> None:
        rest: dict[ast.Import | ast.ImportFrom, list[ast.alias]] = {}
        for node, alias in self.neighbours.aliases(module, block):
            taken = None if is_future(node) else self.neighbours.taken(module, node, alias)
            if taken:
                self.pending.append((taken, bound_by(alias), module))
                continue
            key = (source_of(module, node), alias.name, alias.asname)
            if key not in self.imported and not is_future(node):
                self.imported.add(key)
                rest.setdefault(node, []).append(alias)
        for node, aliases in rest.items():
            stays = {path for alias in aliases for path in self._file_of(module, node, alias)}
            lines = [f"# needs {path} from this site" for path in sorted(stays)]
            complete = len(aliases) == len(node.names) and len(block.nodes) == 1
            lines += _lines_of(module, node) if complete else _import_of(node, aliases)
            self.pieces.append(_Piece(lines, "import", module, block.start, block.end))

    def _write_pending(self) -> None:
        """Write what the imports of local modules stand for."""
        pending, self.pending = self.pending, []
        for taken, name, module in pending:
            other = self.neighbours.load(taken.module)
            if other is None:
                continue
            if other not in self.written:
                self._write(other)
            if not taken.name:
                self._write_namespace(name, self.neighbours.attributes(module, name))
            elif taken.name != name:
                self.pieces.append(_Piece([f"{name} = {taken.name}"], "code"))

    def _write_namespace(self, name: str, attributes: set[str]) -> None:
        key = ("types", "SimpleNamespace", None)
        if key not in self.imported:
            self.imported.add(key)
            self.pieces.append(_Piece(["from types import SimpleNamespace"], "import"))
        values = ", ".join(f"{attribute}={attribute}" for attribute in sorted(attributes))
        self.pieces.append(_Piece([f"{name} = SimpleNamespace({values})"], "code"))


def _joined(pieces: Sequence[_Piece]) -> str:
    lines: list[str] = []
    for number, piece in enumerate(pieces):
        if number:
            lines += [""] * _gap(pieces[number - 1], piece)
        lines += piece.lines
    return "".join(f"{line}\n" for line in lines)


def _gap(before: _Piece, after: _Piece) -> int:
    """The blank lines between two pieces."""
    kinds = {before.kind, after.kind}
    if "definition" in kinds:
        return 2
    if before.module is not after.module or after.module is None:
        return 0 if kinds == {"import"} else 1
    between = after.module.lines[before.end : after.start - 1]
    return 1 if len(kinds) > 1 or not all(line.strip() for line in between) else 0


def _lines_of(module: Module, node: ast.stmt) -> list[str]:
    first, last = start_of(node), end_of(node)
    return dedent(module.lines, first, last, module.inside)


def _import_of(node: ast.Import | ast.ImportFrom, aliases: Sequence[ast.alias]) -> list[str]:
    """An import of some of the names of another."""
    part: ast.stmt
    if isinstance(node, ast.Import):
        part = ast.Import(list(aliases))
    else:
        part = ast.ImportFrom(node.module, list(aliases), node.level)
    line = ast.unparse(part)
    if len(line) <= _WIDTH or isinstance(node, ast.Import):
        return [line]
    head = line.partition(" import ")[0]
    return [f"{head} import (", *(f"    {ast.unparse(alias)}," for alias in aliases), ")"]


def _annotates(node: ast.AST) -> bool:
    return any(
        isinstance(inner, ast.AnnAssign)
        or getattr(inner, "annotation", None)
        or getattr(inner, "returns", None)
        for inner in ast.walk(node)
    )
