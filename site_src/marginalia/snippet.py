"""Copy runnable: a piece of a module with exactly the imports and definitions that it needs.

The module is cut into blocks, the statements of its top level with the comment that touches them.
Each block binds, needs and changes names; the closure of a piece is the blocks that its names
lead to. Statements of `demo()` are blocks too, and come out dedented.
"""

from __future__ import annotations

import ast
import builtins
import difflib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path
from typing import Literal

from marginalia.effects import Changes, binds, is_seeding, needs
from marginalia.errors import MarginaliaError
from marginalia.source import plain_lines, read_source, symbols, tree_of
from marginalia.syntax import (
    dedent,
    end_of,
    inside_strings,
    is_dedentable,
    is_guard,
    is_text,
    module_uses,
    start_of,
)

_BUILTINS = frozenset(dir(builtins)) | {"__file__", "__path__", "__annotations__"}
_WIDTH = 100
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)

Kind = Literal["import", "definition", "guard", "text", "code"]
Dotted = tuple[str, ...]


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
    module = _load(text, str(path), root)
    chosen: _Choice | None
    if isinstance(target, str):
        chosen = _choose_symbol(module, target)
    else:
        chosen = _choose_lines(module, *target)
    return _Assembly(module, chosen).text() if chosen else ""


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
    module = _load(text, str(path), root)
    blocks = {block for block in module.top if block.kind not in ("text", "guard")}
    imports = {block for block in blocks if block.kind == "import"}
    return _Assembly(module, _Choice(blocks, imports)).borrowed()


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


class _Module:
    """A source, cut into blocks."""

    def __init__(self, text: str, path: str, root: Path | None) -> None:
        self.path = path
        self.root = root
        self.name, self.is_package = _module_name(path, root)
        self.source = text
        self.lines = plain_lines(text)
        self.tree = tree_of(text, path)
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
        elif any(isinstance(node, _DEFINITIONS) for node in nodes):
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


def _module_name(path: str, root: Path | None) -> tuple[Dotted, bool]:
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


def _declared_global(nodes: Iterable[ast.stmt]) -> set[str]:
    return {
        name
        for node in nodes
        if isinstance(node, _DEFINITIONS)
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
    found = symbols(module.source, module.path)
    listed = {symbol.name for symbol in found}
    bound = {name for block in module.top if block.kind != "import" for name in block.binds}
    functions = tuple(f"{symbol.name}." for symbol in found if symbol.kind == "function")
    if target not in listed | bound and not target.startswith(functions):
        near = difflib.get_close_matches(target, sorted(listed | bound), n=3, cutoff=0.5)
        hint = f"; is it {' or '.join(near)}?" if near else ""
        raise MarginaliaError(f"{module.path}: there is no definition of {target}{hint}")
    return _choose_demo(module) if top == "demo" else _Choice(module.closure([top]))


def _choose_demo(module: _Module) -> _Choice:
    """The whole demo, and what starts it."""
    starts = {b for b in module.top if b.kind == "guard" and b.needs == {"demo", "__name__"}}
    return _Choice(module.closure(["demo"]) | starts)


def _choose_lines(module: _Module, start: int, end: int) -> _Choice | None:
    code = [number for number in range(start, end + 1) if module.has_code(number)]
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
    kept = _slice(module, module.top, executed) if executed else set()
    kept.update(wanted)
    bound = {name for block in kept for name in block.binds}
    kept |= module.closure({name for block in kept for name in block.needs} - bound)
    return _Choice(kept, {block for block in wanted if block.kind == "import"})


def _choose_in_demo(module: _Module, code: Sequence[int]) -> _Choice:
    demo = [block for block in module.blocks if block.in_demo]
    wanted = [
        block
        for block in demo
        if block.kind != "text" and any(block.first <= number <= block.end for number in code)
    ]
    if not wanted:
        return _choose_demo(module)
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
    return module.demo is not None and not local & shared and is_dedentable(module.demo, body)


def _slice(module: _Module, blocks: Sequence[_Block], wanted: Sequence[_Block]) -> set[_Block]:
    """Statements, and the earlier ones that give their names the values they have there."""
    kept = set(wanted)
    deferred = _deferred([*blocks, *module.top])
    live = _with_deferred(needs([n for block in wanted for n in block.nodes], set()), deferred)
    for block in reversed(blocks[: blocks.index(wanted[-1])]):
        if block in kept or block.kind in ("guard", "text"):
            continue
        if block.keeps or live & (block.binds | block.changes):
            kept.add(block)
            live = _with_deferred((live - block.certain) | block.needs, deferred)
    return kept


def _deferred(blocks: Iterable[_Block]) -> dict[str, set[str]]:
    """Name of a function or class -> the names that are looked up when it is called."""
    found: dict[str, set[str]] = {}
    for block in blocks:
        if block.deferred:
            for name in block.binds:
                found.setdefault(name, set()).update(block.needs)
    return found


def _with_deferred(live: set[str], deferred: Mapping[str, set[str]]) -> set[str]:
    found: set[str] = set()
    waiting = live
    while waiting:
        found |= waiting
        waiting = {need for name in waiting for need in deferred.get(name, ())} - found
    return found


# Local modules


@dataclass(frozen=True, slots=True)
class _Taken:
    """What an alias of an import takes from a local module: a name of it, or the module itself."""

    module: str
    name: str  # empty for the module


class _Locals:
    """The local modules that a piece takes names from, and what it takes."""

    def __init__(self, module: _Module, choice: _Choice) -> None:
        self.main = module
        self.choice = choice
        self.left: set[str] = set()  # modules whose import has to stay
        self._loaded: dict[str, _Module | None] = {}
        self._find()
        while clash := self._clash():
            self.left.add(clash)
            self._find()

    def _find(self) -> None:
        """Follow the imports of local modules from the piece, until nothing new is needed."""
        self.kept: dict[_Module, set[_Block]] = {self.main: self.choice.blocks}
        self.asked: dict[_Module, set[str]] = {self.main: set()}
        self.order: dict[_Module, set[_Module]] = {}
        waiting = [self.main]
        while waiting:
            module = waiting.pop()
            for taken, alias in self._all_taken(module):
                other = self.load(taken.module)
                if other is None:
                    continue
                self.order.setdefault(module, set()).add(other)
                names = {taken.name} if taken.name else self.attributes(module, alias)
                before = self.asked.setdefault(other, set())
                if names - before or other not in self.kept:
                    before |= names
                    self.kept[other] = other.closure(before)
                    waiting.append(other)

    def _all_taken(self, module: _Module) -> Iterator[tuple[_Taken, str]]:
        for block in self.kept[module]:
            if block.kind == "import":
                for node, alias in self.aliases(module, block):
                    taken = self.taken(module, node, alias)
                    if taken:
                        yield taken, _bound_by(alias)

    def load(self, name: str) -> _Module | None:
        """A local module, unless its import has to stay."""
        if name not in self._loaded:
            path = self.file(name)
            is_other = path is not None and path.resolve() != Path(self.main.path).resolve()
            self._loaded[name] = self._read(path) if path and is_other else None
        return None if name in self.left else self._loaded[name]

    def _read(self, path: Path) -> _Module:
        return _load(read_source(path), str(path), self.main.root)

    def file(self, name: str) -> Path | None:
        """The file of a local module."""
        if self.main.root is None or not name:
            return None
        base = self.main.root.joinpath(*name.split("."))
        files = (base / "__init__.py", base.with_name(f"{base.name}.py"))  # in Python's order
        return next((path for path in files if path.is_file()), None)

    def needed(self, module: _Module) -> set[str]:
        """The names that the kept blocks of a module need from it."""
        names = {name for block in self.kept[module] for name in block.needs}
        return names | self.asked[module]

    def paths(self, module: _Module) -> set[Dotted]:
        """The dotted names that the kept blocks of a module need from it."""
        paths = {path for block in self.kept[module] for path in block.paths}
        return paths | {(name,) for name in self.asked[module]}

    def attributes(self, module: _Module, name: str) -> set[str]:
        """What is taken from a module that goes by a name."""
        return {path[1] for path in self.paths(module) if path[0] == name and len(path) > 1}

    def aliases(
        self, module: _Module, block: _Block
    ) -> list[tuple[ast.Import | ast.ImportFrom, ast.alias]]:
        """The names of an import that are needed."""
        found = []
        needed = self.needed(module)
        for node in block.nodes:
            if isinstance(node, ast.Import | ast.ImportFrom):
                for alias in node.names:
                    whole = block in self.choice.whole or alias.name == "*"
                    if whole or _is_future(node) or self._is_needed(module, node, alias, needed):
                        found.append((node, alias))
        return found

    def _is_needed(
        self,
        module: _Module,
        node: ast.Import | ast.ImportFrom,
        alias: ast.alias,
        needed: set[str],
    ) -> bool:
        name = _bound_by(alias)
        if name not in needed or isinstance(node, ast.ImportFrom) or alias.asname:
            return name in needed
        # `import a` and `import a.b` bind the same name: keep what the code says more of.
        rivals = [
            tuple(rival.name.split("."))
            for block in self.kept[module]
            for other in block.nodes
            if isinstance(other, ast.Import)
            for rival in other.names
            if _bound_by(rival) == name and not rival.asname
        ]
        mine = tuple(alias.name.split("."))
        for path in self.paths(module):
            if path[0] == name:
                fitting = [rival for rival in rivals if path[: len(rival)] == rival]
                if mine == max(fitting, key=len, default=mine):
                    return True
        return False

    def taken(
        self, module: _Module, node: ast.Import | ast.ImportFrom, alias: ast.alias
    ) -> _Taken | None:
        """What an alias takes from a local module, if that can be put in its place."""
        name = _bound_by(alias)
        if isinstance(node, ast.Import):
            if alias.asname is None and "." in alias.name:
                return None
            return self._whole(module, alias.name, name)
        source = _source(module, node)
        if alias.name == "*":
            return None
        other = self.load(source)
        if other and alias.name in other.bound:
            return _Taken(source, alias.name)
        return self._whole(module, f"{source}.{alias.name}", name)

    def _whole(self, module: _Module, source: str, name: str) -> _Taken | None:
        """A module as an object: only attributes that it defines are read from it."""
        other = self.load(source)
        if other is None:
            return None
        uses = [
            use
            for block in self.kept[module]
            for use in module_uses(block.nodes)
            if use.name == name and use.loads
        ]
        readable = all(
            len(use.path) > 1
            and use.path[1] in other.bound
            and isinstance(getattr(use.nodes[1], "ctx", None), ast.Load)
            for use in uses
        )
        return _Taken(source, "") if readable and uses else None

    def _clash(self) -> str | None:
        """A module that cannot be put with the others.

        It uses a name of theirs for something else, has to know its own file, or is part of a
        circle of imports.
        """
        try:
            TopologicalSorter(self.order).prepare()
        except CycleError as error:
            return ".".join(error.args[1][0].name)
        meanings: dict[str, tuple[str, ...]] = {}
        for module in self.kept:
            for name, meaning in self._meanings(module):
                if meanings.setdefault(name, meaning) != meaning and module is not self.main:
                    return ".".join(module.name)
            if module is not self.main and any("__file__" in b.needs for b in self.kept[module]):
                return ".".join(module.name)
        return None

    def _meanings(self, module: _Module) -> Iterator[tuple[str, tuple[str, ...]]]:
        here = ".".join(module.name)
        for block in self.kept[module]:
            if block.kind == "import":
                for node, alias in self.aliases(module, block):
                    taken = self.taken(module, node, alias)
                    plain = ("", _source(module, node), _from(alias)) if not taken else ()
                    meaning = self._meaning(taken) if taken else plain
                    yield _bound_by(alias), meaning
                    if taken and not taken.name:
                        yield "SimpleNamespace", ("", "types", "SimpleNamespace")
            else:
                yield from ((name, (here, name)) for name in block.binds)
        for name in self.needed(module) - module.bound.keys():
            if name in _BUILTINS:
                yield name, ("builtins", name)

    def _meaning(self, taken: _Taken) -> tuple[str, ...]:
        """The definition behind a name that is taken, through any number of imports."""
        other = self.load(taken.module)
        for block in other.bound.get(taken.name, ()) if other else ():
            for node in block.nodes if block.kind == "import" else ():
                if other and isinstance(node, ast.Import | ast.ImportFrom):
                    for alias in node.names:
                        if _bound_by(alias) == taken.name:
                            further = self.taken(other, node, alias)
                            if further and further != taken:
                                return self._meaning(further)
                            return ("", _source(other, node), _from(alias))
        return (taken.module, taken.name)


def _bound_by(alias: ast.alias) -> str:
    return alias.asname or alias.name.split(".")[0]


def _from(alias: ast.alias) -> str:
    return alias.name if alias.asname else alias.name.split(".")[0]


def _is_future(node: ast.Import | ast.ImportFrom) -> bool:
    return isinstance(node, ast.ImportFrom) and node.module == "__future__"


def _source(module: _Module, node: ast.Import | ast.ImportFrom) -> str:
    """The absolute name of the module that `from … import` names."""
    if isinstance(node, ast.Import):
        return ""
    if not node.level:
        return node.module or ""
    up = node.level - module.is_package
    package = module.name[: len(module.name) - up] if up <= len(module.name) else ()
    return ".".join((*package, *([node.module] if node.module else []))) if module.name else ""


# Putting it together


@dataclass(slots=True)
class _Piece:
    """Lines of the result, and where they are from: places of one file keep their distance."""

    lines: list[str]
    kind: Literal["import", "definition", "code"]
    module: _Module | None = None
    start: int = 0
    end: int = 0


class _Assembly:
    """Writes the chosen blocks in the order in which they run."""

    def __init__(self, module: _Module, choice: _Choice) -> None:
        self.module = module
        self.choice = choice
        self.locals = _Locals(module, choice)
        self.pieces: list[_Piece] = []
        self.future: _Piece | None = None
        self.imported: set[tuple[str, str, str | None]] = set()
        self.written: set[_Module] = set()
        self.pending: list[tuple[_Taken, str, _Module]] = []

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
                for node, alias in self.locals.aliases(self.module, block):
                    kinds[node].add(bool(self.locals.taken(self.module, node, alias)))
                replaced += [node for node, taken in kinds.items() if taken == {True}]
        return _joined([p for p in self.pieces if p.module is not self.module]), replaced

    def _write(self, module: _Module) -> None:
        self.written.add(module)
        kept = self.locals.kept[module]
        futures = [node for node in module.tree.body if _is_future_statement(node)]
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

    def _write_block(self, module: _Module, block: _Block) -> None:
        start = block.start if self._is_explained(module, block) else block.first
        lines = dedent(module.lines, start, block.end, module.inside)
        stays = sorted({path for node in block.imports for path in self._stays(module, node)})
        lines = [*(f"# needs {path} from this site" for path in stays), *lines]
        kind: Literal["definition", "code"] = "definition" if block.kind == "definition" else "code"
        self.pieces.append(_Piece(lines, kind, module, block.start, block.end))

    def _is_explained(self, module: _Module, block: _Block) -> bool:
        """Whether all that the comment above a block speaks of is in the snippet."""
        blocks = module.blocks[module.blocks.index(block) :]
        for before, following in pairwise(blocks):
            new_row = following.start != following.first or following.in_demo != block.in_demo
            if new_row or following.start > before.end + 1 or before.kind == "definition":
                break
            if following not in self.locals.kept[module]:
                return False
        return True

    def _stays(self, module: _Module, node: ast.Import | ast.ImportFrom) -> Iterator[str]:
        """The local modules of an import that is inside of a statement."""
        for alias in node.names:
            yield from self._file_of(module, node, alias)

    def _file_of(
        self, module: _Module, node: ast.Import | ast.ImportFrom, alias: ast.alias
    ) -> Iterator[str]:
        source = _source(module, node)
        names = [f"{source}.{alias.name}", source] if source else [alias.name]
        for name in names:
            path = self.locals.file(name)
            if path and self.module.root:
                yield path.relative_to(self.module.root).as_posix()
                return

    def _write_import(self, module: _Module, block: _Block) -> None:
        rest: dict[ast.Import | ast.ImportFrom, list[ast.alias]] = {}
        for node, alias in self.locals.aliases(module, block):
            taken = None if _is_future(node) else self.locals.taken(module, node, alias)
            if taken:
                self.pending.append((taken, _bound_by(alias), module))
                continue
            key = (_source(module, node), alias.name, alias.asname)
            if key not in self.imported and not _is_future(node):
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
            other = self.locals.load(taken.module)
            if other is None:
                continue
            if other not in self.written:
                self._write(other)
            if not taken.name:
                self._write_namespace(name, self.locals.attributes(module, name))
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


def _lines_of(module: _Module, node: ast.stmt) -> list[str]:
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


def _is_future_statement(node: ast.stmt) -> bool:
    return isinstance(node, ast.ImportFrom) and _is_future(node)


def _annotates(node: ast.AST) -> bool:
    return any(
        isinstance(inner, ast.AnnAssign)
        or getattr(inner, "annotation", None)
        or getattr(inner, "returns", None)
        for inner in ast.walk(node)
    )
