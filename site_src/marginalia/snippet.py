"""Copy runnable: a piece of a module with exactly the imports and definitions that it needs.

The module is cut into blocks, the statements of its top level with the comment that touches them.
Each block binds, needs and changes names; the closure of a piece is the blocks that its names
lead to. Statements of `demo()` are blocks too, and come out dedented.
"""

from __future__ import annotations

import ast
import builtins
import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Literal

from marginalia.effects import Changes, binds, is_seeding, needs, reads
from marginalia.errors import MarginaliaError
from marginalia.rows import read_source, symbols
from marginalia.syntax import (
    dedent,
    end_of,
    inside_strings,
    is_guard,
    is_text,
    module_uses,
    parse,
    plain_lines,
    start_of,
)

_BUILTINS = frozenset(dir(builtins)) | {"__file__", "__path__", "__annotations__"}
_WIDTH = 100

Kind = Literal["import", "definition", "guard", "text", "code"]
Path_ = tuple[str, ...]


def runnable(
    text: str, target: str | tuple[int, int], *, path: str | Path = "<source>", root: Path | None = None
) -> str:
    """Cut out a piece of a module so that it runs alone in a fresh interpreter.

    Args:
        text: The module.
        target: The qualified name of a definition (a method stands for its class), or the first
            and last line of a row. Lines inside `demo()` give these statements, dedented, below
            the earlier ones that they need; lines inside another definition give all of it.
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
    module = _load(text, str(path), root)
    if isinstance(target, str):
        chosen = _choose_symbol(module, target)
    else:
        chosen = _choose_lines(module, *target)
    if chosen is None:
        return ""
    return _Assembly(module, chosen).text()


# A module in blocks


@dataclass(eq=False, slots=True)
class _Block:
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
    paths: frozenset[Path_] = frozenset()
    changes: frozenset[str] = frozenset()
    keeps: bool = False  # seeds a random generator


class _Module:
    """A source, cut into blocks."""

    def __init__(self, text: str, path: str, root: Path | None) -> None:
        self.path = path
        self.root = root
        self.name, self.is_package = _module_name(path, root)
        self.source = text
        self.lines = plain_lines(text)
        self.tree = parse(text, path)
        self.demo = next(
            (n for n in self.tree.body if isinstance(n, ast.FunctionDef) and n.name == "demo"), None
        )
        inside = self.demo.body if self.demo else []
        self.inside = inside_strings(text)
        self.blocks = [*self._cut(self.tree.body, False), *self._cut(inside, True)]
        changes = Changes([*self.tree.body, *inside])
        for block in self.blocks:
            block.changes = frozenset(changes.of(block.nodes))

    def _cut(self, body: Sequence[ast.stmt], in_demo: bool) -> list[_Block]:
        blocks: list[_Block] = []
        for node in body:
            first = start_of(node)
            if blocks and first <= blocks[-1].end:
                blocks[-1].nodes.append(node)
                blocks[-1].end = max(blocks[-1].end, end_of(node))
            else:
                start = self._comment_above(first, blocks[-1].end if blocks else 0)
                blocks.append(_Block([node], start, first, end_of(node), "code", in_demo))
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

    def _describe(self, block: _Block, number: int) -> None:
        nodes = block.nodes
        if all(isinstance(node, ast.Import | ast.ImportFrom) for node in nodes):
            block.kind = "import"
            block.start = block.first
        elif any(_defines(node) for node in nodes):
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
        block.keeps = any(is_seeding(node) for node in nodes)

    @cached_property
    def top(self) -> list[_Block]:
        """The blocks that are not of the demo."""
        return [block for block in self.blocks if not block.in_demo]

    @cached_property
    def bound(self) -> dict[str, list[_Block]]:
        """Name -> the blocks of the module that bind it."""
        bound: dict[str, list[_Block]] = {}
        for block in self.top:
            for name in block.binds:
                bound.setdefault(name, []).append(block)
        for block in self.top:  # a function that declares a name global binds it when it is called
            for name in _declared_global(block.nodes):
                bound.setdefault(name, [block])
        return bound

    def closure(self, names: Iterable[str]) -> set[_Block]:
        """The blocks of the module that names lead to."""
        needed = set(names)
        kept: set[_Block] = set()
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

    def stars(self, needed: Iterable[str]) -> set[_Block]:
        """The star imports, if a name comes from nowhere else."""
        unknown = set(needed) - self.bound.keys() - _BUILTINS
        return {block for block in self.top if unknown and _is_star(block)}


@lru_cache(maxsize=64)
def _load(text: str, path: str, root: Path | None) -> _Module:
    return _Module(text, path, root)


def _module_name(path: str, root: Path | None) -> tuple[Path_, bool]:
    """The dotted name of a file below the root, and whether it is a package; empty elsewhere."""
    if root is None:
        return (), False
    try:
        parts = Path(path).resolve().relative_to(root.resolve()).with_suffix("").parts
    except ValueError:
        return (), False
    return (parts[:-1], True) if parts[-1:] == ("__init__",) else (parts, False)


def _is_comment(line: str, margin: int) -> bool:
    """Whether a line is a comment at a depth, and neither a cell marker nor the head of a file."""
    comment = line.strip()
    if not comment.startswith("#") or len(line) - len(line.lstrip()) != margin:
        return False
    mark = comment[1:].strip()
    return not (
        comment.startswith(("#!", "# %%", "#%%", "# +", "# In[")) or mark == "-" or "-*-" in mark
    )


def _defines(node: ast.AST) -> bool:
    """Whether a statement of the top level is or holds a definition, which wants room around it."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return True
    inner = (child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt))
    return any(_defines(child) for child in inner)


def _declared_global(nodes: Iterable[ast.stmt]) -> set[str]:
    return {
        name
        for node in nodes
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        for inner in ast.walk(node)
        if isinstance(inner, ast.Global)
        for name in inner.names
    }


def _is_star(block: _Block) -> bool:
    return any(
        alias.name == "*"
        for node in block.nodes
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    )


# What is wanted


@dataclass(slots=True)
class _Choice:
    """The blocks of a piece.

    Args:
        blocks: All that it needs, imports included.
        whole: Imports that are themselves asked for.
        call: Whether `demo()` has to be called at the end.
    """

    blocks: set[_Block]
    whole: set[_Block] = field(default_factory=set)
    call: bool = False


def _choose_symbol(module: _Module, target: str) -> _Choice:
    top = target.split(".")[0]
    listed = {symbol.name for symbol in symbols(module.source, module.path)}
    bound = {name for block in module.top if block.kind != "import" for name in block.binds}
    if target not in listed | bound:
        near = difflib.get_close_matches(target, sorted(listed | bound), n=3, cutoff=0.5)
        hint = f"; is it {' or '.join(near)}?" if near else ""
        raise MarginaliaError(f"{module.path}: there is no definition of {target}{hint}")
    choice = _Choice(module.closure([top]))
    if top == "demo":
        choice.blocks |= {b for b in module.top if b.kind == "guard" and b.needs == {"demo", "__name__"}}
    return choice


def _choose_lines(module: _Module, start: int, end: int) -> _Choice | None:
    code = [
        number
        for number in range(max(start, 1), min(end, len(module.lines)) + 1)
        if number in module.inside or not module.lines[number - 1].lstrip().startswith(("#", ""))
        or (module.lines[number - 1].strip() and not module.lines[number - 1].lstrip().startswith("#"))
    ]
    wanted = [
        block
        for block in module.top
        if block.kind != "text" and any(block.first <= number <= block.end for number in code)
    ]
    if not wanted:
        return None
    if [node for block in wanted for node in block.nodes] == [module.demo]:
        return _choose_in_demo(module, code)
    executed = [block for block in wanted if block.kind != "definition"]
    defined = [block for block in wanted if block.kind == "definition"]
    kept = _slice(module, module.top, executed) if executed else set()
    kept |= set(defined) | module.closure(name for block in defined for name in block.needs)
    return _Choice(kept, {block for block in wanted if block.kind == "import"})


def _choose_in_demo(module: _Module, code: Sequence[int]) -> _Choice:
    demo = [block for block in module.blocks if block.in_demo]
    wanted = [
        block
        for block in demo
        if block.kind != "text" and any(block.first <= number <= block.end for number in code)
    ]
    if not wanted:
        return _Choice(module.closure(["demo"]))
    kept = _slice(module, demo, wanted)
    outside = {name for block in kept for name in block.needs}
    closure = module.closure(outside - {name for block in kept for name in block.binds})
    if _stands_alone(module, kept, closure):
        return _Choice(kept | closure, {block for block in wanted if block.kind == "import"})
    return _Choice(module.closure(["demo"]), call=True)


def _stands_alone(module: _Module, kept: set[_Block], closure: set[_Block]) -> bool:
    """Whether statements of the demo mean the same outside of it."""
    local = {name for block in kept for name in block.binds}
    shared = {name for block in closure for name in block.binds | block.needs}
    body = [node for block in kept for node in block.nodes]
    return (
        module.demo is not None
        and not any(ast.iter_child_nodes(module.demo.args))
        and not local & shared
        and is_dedentable(body)
    )


def is_dedentable(body: Iterable[ast.stmt]) -> bool:
    """Whether the statements of a function are allowed at the top level of a module."""
    waiting: list[ast.AST] = list(body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Return | ast.Yield | ast.YieldFrom | ast.Await | ast.Nonlocal):
            return False
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            inner = (part for part in ast.walk(node) if isinstance(part, ast.Nonlocal))
            if any(inner):
                return False
        else:
            waiting += ast.iter_child_nodes(node)
    return True


def _slice(module: _Module, blocks: Sequence[_Block], wanted: Sequence[_Block]) -> set[_Block]:
    """Statements, and the earlier ones that give their names the values they have there."""
    kept = set(wanted)
    live = needs([node for block in wanted for node in block.nodes], set())
    live = _with_later_needs(module, blocks, live)
    last = blocks.index(wanted[-1])
    for block in reversed(blocks[:last]):
        if block in kept or block.kind in ("guard", "text"):
            continue
        if block.keeps or live & (block.binds | block.changes):
            kept.add(block)
            live = _with_later_needs(module, blocks, (live - block.certain) | block.needs)
    top = blocks is module.top
    return kept | (module.stars(live) if top else set())


def _with_later_needs(module: _Module, blocks: Sequence[_Block], live: set[str]) -> set[str]:
    """Names, and those that the functions among them need when they are called."""
    found: set[str] = set()
    waiting = set(live)
    while waiting:
        found |= waiting
        waiting = {
            name
            for block in (*blocks, *module.top)
            if waiting & block.binds and _is_deferred(block)
            for name in block.needs
        } - found
    return found


def _is_deferred(block: _Block) -> bool:
    deferred = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
    return any(isinstance(inner, deferred) for node in block.nodes for inner in ast.walk(node))
