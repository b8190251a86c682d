"""A module in blocks: the statements of its top level, each with the comment that touches it.

Each block binds, needs and changes names; the closure of names is the blocks that they lead to.
Statements of `demo()` are blocks too.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Literal

from marginalia.changes import Changes, is_seeding
from marginalia.effects import binds, needs
from marginalia.rewrite import demo_of
from marginalia.source import is_cell_marker, is_light_marker, plain_lines, tree_of
from marginalia.syntax import (
    Definition,
    end_of,
    inside_strings,
    is_guard,
    is_text,
    module_uses,
    start_of,
)

BUILTINS = frozenset(dir(builtins)) | {"__file__", "__path__", "__annotations__"}
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)

Kind = Literal["import", "definition", "guard", "text", "code"]
Dotted = tuple[str, ...]


@dataclass(eq=False, slots=True)
class Block:
    """Statements that share lines.

    Args:
        nodes: The statements.
        start: First line, the touching comment included.
        first: First line of code.
        end: Last line.
        kind: `text` is a docstring, `guard` is `if __name__ == "__main__"`.
        in_demo: Whether it is a statement of `demo()`.
        binds: Names that it binds.
        certain: Those that it binds whatever happens.
        needs: Names that it reads before it binds them.
        paths: The dotted names in it that start at a name of the module.
        changes: Names whose objects it changes.
        imports: The imports in it.
        deferred: Whether it holds a function, which needs its names only when it is called.
        keeps: Whether it seeds a random generator, and so is kept in any case.
    """

    nodes: list[ast.stmt]
    start: int
    first: int
    end: int
    kind: Kind
    in_demo: bool
    binds: frozenset[str] = frozenset()
    certain: frozenset[str] = frozenset()
    needs: frozenset[str] = frozenset()
    paths: frozenset[Dotted] = frozenset()
    changes: frozenset[str] = frozenset()
    imports: list[ast.Import | ast.ImportFrom] = field(default_factory=list)
    deferred: bool = False
    keeps: bool = False


class Module:
    """A source, cut into blocks.

    Args:
        text: The source.
        path: Its file, for errors.
        name: The parts of the dotted name that it is imported by; empty if there is none.
    """

    def __init__(self, text: str, path: str, name: Dotted) -> None:
        self.path = path
        self.name = name
        self.is_package = Path(path).name == "__init__.py"
        self.source = text
        self.lines = plain_lines(text)
        self.tree = tree_of(text, path)
        self.demo = demo_of(self.tree)
        inside = self.demo.body if self.demo else []
        self.inside = inside_strings(text)
        self.blocks = [*self._cut(self.tree.body, False), *self._cut(inside, True)]
        changes = Changes([*self.tree.body, *inside])
        for block in self.blocks:
            block.changes = frozenset(changes.of(block.nodes))

    def _cut(self, body: Sequence[ast.stmt], in_demo: bool) -> list[Block]:
        blocks: list[Block] = []
        for node in body:
            first = start_of(node)
            if blocks and first <= blocks[-1].end:
                blocks[-1].nodes.append(node)
                blocks[-1].end = max(blocks[-1].end, end_of(node))
            else:
                start = self._comment_above(first, blocks[-1].end if blocks else 0)
                blocks.append(Block([node], start, first, end_of(node), "code", in_demo))
        for number, block in enumerate(blocks):
            self._describe(block, number)
        return blocks

    def _comment_above(self, first: int, floor: int) -> int:
        """The first line of the comment that touches a statement, if there is one."""
        margin = len(self.lines[first - 1]) - len(self.lines[first - 1].lstrip())
        start = first
        while start - 1 > floor and _is_comment(self.lines[start - 2], margin):
            start -= 1
        return start

    def _describe(self, block: Block, number: int) -> None:
        nodes = block.nodes
        if all(isinstance(node, ast.Import | ast.ImportFrom) for node in nodes):
            block.kind = "import"
            block.start = block.first
        elif any(isinstance(node, Definition) for node in nodes):
            block.kind = "definition"
        elif is_guard(nodes[0]) and not block.in_demo:
            block.kind = "guard"
        elif all(is_text(node) for node in nodes) and not number:
            block.kind = "text"
        certain: set[str] = set()
        block.needs = frozenset(needs(nodes, certain))
        block.certain = frozenset(certain)
        block.binds = frozenset(binds(nodes))
        found = (use.path for use in module_uses(nodes) if use.loads)
        block.paths = frozenset(path for path in found if path[0] in block.needs)
        inner = [part for node in nodes for part in ast.walk(node)]
        block.deferred = any(isinstance(part, _FUNCTIONS) for part in inner)
        block.imports = [part for part in inner if isinstance(part, ast.Import | ast.ImportFrom)]
        block.keeps = any(is_seeding(node) for node in nodes)

    def has_code(self, number: int) -> bool:
        """Whether a line is more than a comment."""
        if not 1 <= number <= len(self.lines):
            return False
        line = self.lines[number - 1].strip()
        return number in self.inside or bool(line and not line.startswith("#"))

    @cached_property
    def top(self) -> list[Block]:
        """The blocks that are not of the demo."""
        return [block for block in self.blocks if not block.in_demo]

    @cached_property
    def bound(self) -> dict[str, list[Block]]:
        """Name -> the blocks of the module that bind it."""
        bound: dict[str, list[Block]] = {}
        for block in self.top:
            for name in block.binds:
                bound.setdefault(name, []).append(block)
        for block in self.top:  # a function that declares a name global binds it when it is called
            for name in _declared_global(block.nodes):
                bound.setdefault(name, [block])
        return bound

    def closure(self, names: Iterable[str]) -> set[Block]:
        """The blocks of the module that names lead to."""
        needed = set(names)
        kept: set[Block] = set()
        size = -1
        while size != len(kept):
            size = len(kept)
            for block in self.top:
                if block not in kept and block.kind not in ("guard", "text"):
                    weak = any(block in self.bound.get(name, ()) for name in needed - block.binds)
                    if weak or needed & (block.binds | block.changes):
                        kept.add(block)
                        needed |= block.needs
        return kept | self.stars(needed)

    def stars(self, needed: Iterable[str]) -> set[Block]:
        """The star imports, if a name comes from nowhere else."""
        unknown = set(needed) - self.bound.keys() - BUILTINS
        return {block for block in self.top if unknown and _is_star(block)}


@lru_cache(maxsize=64)
def load(text: str, path: str, name: Dotted) -> Module:
    """A `Module`; it belongs to all who ask, so nobody changes it."""
    return Module(text, path, name)


def name_below(path: str, root: Path | None) -> Dotted:
    """The parts of the dotted name of a file below the root; empty elsewhere."""
    if root is None:
        return ()
    try:
        parts = Path(path).resolve().relative_to(root.resolve()).with_suffix("").parts
    except ValueError:
        return ()
    return parts[:-1] if parts[-1:] == ("__init__",) else parts


def _is_comment(line: str, margin: int) -> bool:
    """Whether a line is a comment at a depth, and neither a cell marker nor the head of a file."""
    comment = line.strip()
    if not comment.startswith("#") or len(line) - len(line.lstrip()) != margin:
        return False
    is_marker = not margin and (is_cell_marker(comment) or is_light_marker(comment))
    return not (is_marker or comment.startswith("#!") or "-*-" in comment)


def _declared_global(nodes: Iterable[ast.stmt]) -> set[str]:
    return {
        name
        for node in nodes
        if isinstance(node, Definition)
        for inner in ast.walk(node)
        if isinstance(inner, ast.Global)
        for name in inner.names
    }


def _is_star(block: Block) -> bool:
    return any(
        alias.name == "*"
        for node in block.nodes
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    )
