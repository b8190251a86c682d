"""What a piece of a module takes from the local modules that it imports.

What is used of them can stand in the place of the import, unless that would mean something else:
then the import stays.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from marginalia.blocks import BUILTINS, Block, Dotted, Module, load
from marginalia.choice import Choice
from marginalia.source import read_source
from marginalia.syntax import module_uses


@dataclass(frozen=True, slots=True)
class Taken:
    """What an alias of an import takes from a local module: a name of it, or the module itself."""

    module: str
    name: str  # empty for the module


class Neighbours:
    """The local modules that a piece takes names from, and what it takes.

    Args:
        module: The module of the piece.
        choice: The piece.
        root: The folder that the imports of local modules start from.
    """

    def __init__(self, module: Module, choice: Choice, root: Path | None) -> None:
        self.main = module
        self.root = root
        self.choice = choice
        self.left: set[str] = set()  # modules whose import has to stay
        self._loaded: dict[str, Module | None] = {}
        self._find()
        while clash := self._clash():
            self.left.add(clash)
            self._find()

    def _find(self) -> None:
        """Follow the imports of local modules from the piece, until nothing new is needed."""
        self.kept: dict[Module, set[Block]] = {self.main: self.choice.blocks}
        self.asked: dict[Module, set[str]] = {self.main: set()}
        self.order: dict[Module, list[Module]] = {}
        waiting = [self.main]
        while waiting:
            module = waiting.pop()
            for taken, alias in self._all_taken(module):
                other = self.load(taken.module)
                if other is None:
                    continue
                self.order.setdefault(module, []).append(other)
                names = {taken.name} if taken.name else self.attributes(module, alias)
                before = self.asked.setdefault(other, set())
                if names - before or other not in self.kept:
                    before |= names
                    self.kept[other] = other.closure(before)
                    waiting.append(other)

    def _all_taken(self, module: Module) -> Iterator[tuple[Taken, str]]:
        for block in module.blocks:  # in order: the same modules stay each time
            if block.kind == "import" and block in self.kept[module]:
                for node, alias in self.aliases(module, block):
                    taken = self.taken(module, node, alias)
                    if taken:
                        yield taken, bound_by(alias)

    def load(self, name: str) -> Module | None:
        """A local module, unless its import has to stay."""
        if name not in self._loaded:
            path, parts = self.file(name), tuple(name.split("."))
            is_other = path is not None and path.resolve() != Path(self.main.path).resolve()
            other = load(read_source(path), str(path), parts) if path and is_other else None
            self._loaded[name] = other
        return None if name in self.left else self._loaded[name]

    def file(self, name: str) -> Path | None:
        """The file of a local module."""
        if self.root is None or not name:
            return None
        base = self.root.joinpath(*name.split("."))
        files = (base / "__init__.py", base.with_name(f"{base.name}.py"))  # in Python's order
        return next((path for path in files if path.is_file()), None)

    def needed(self, module: Module) -> set[str]:
        """The names that the kept blocks of a module need from it."""
        names = {name for block in self.kept[module] for name in block.needs}
        return names | self.asked[module]

    def paths(self, module: Module) -> set[Dotted]:
        """The dotted names that the kept blocks of a module need from it."""
        paths = {path for block in self.kept[module] for path in block.paths}
        return paths | {(name,) for name in self.asked[module]}

    def attributes(self, module: Module, name: str) -> set[str]:
        """What is taken from a module that goes by a name."""
        return {path[1] for path in self.paths(module) if path[0] == name and len(path) > 1}

    def aliases(
        self, module: Module, block: Block
    ) -> list[tuple[ast.Import | ast.ImportFrom, ast.alias]]:
        """The names of an import that are needed."""
        found = []
        needed = self.needed(module)
        for node in block.nodes:
            if isinstance(node, ast.Import | ast.ImportFrom):
                for alias in node.names:
                    whole = block in self.choice.whole or alias.name == "*"
                    if whole or is_future(node) or self._is_needed(module, node, alias, needed):
                        found.append((node, alias))
        return found

    def _is_needed(
        self,
        module: Module,
        node: ast.Import | ast.ImportFrom,
        alias: ast.alias,
        needed: set[str],
    ) -> bool:
        name = bound_by(alias)
        if name not in needed or isinstance(node, ast.ImportFrom) or alias.asname:
            return name in needed
        # `import a` and `import a.b` bind the same name: keep what the code says more of.
        rivals = [
            tuple(rival.name.split("."))
            for block in self.kept[module]
            for other in block.nodes
            if isinstance(other, ast.Import)
            for rival in other.names
            if bound_by(rival) == name and not rival.asname
        ]
        mine = tuple(alias.name.split("."))
        for path in self.paths(module):
            if path[0] == name:
                fitting = [rival for rival in rivals if path[: len(rival)] == rival]
                if mine == max(fitting, key=len, default=mine):
                    return True
        return False

    def taken(
        self, module: Module, node: ast.Import | ast.ImportFrom, alias: ast.alias
    ) -> Taken | None:
        """What an alias takes from a local module, if that can be put in its place."""
        name = bound_by(alias)
        if isinstance(node, ast.Import):
            if alias.asname is None and "." in alias.name:
                return None
            return self._whole(module, alias.name, name)
        source = source_of(module, node)
        if alias.name == "*":
            return None
        other = self.load(source)
        if other and alias.name in other.bound:
            return Taken(source, alias.name)
        return self._whole(module, f"{source}.{alias.name}", name)

    def _whole(self, module: Module, source: str, name: str) -> Taken | None:
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
        return Taken(source, "") if readable and uses else None

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

    def _meanings(self, module: Module) -> Iterator[tuple[str, tuple[str, ...]]]:
        here = ".".join(module.name)
        for block in self.kept[module]:
            if block.kind == "import":
                for node, alias in self.aliases(module, block):
                    taken = self.taken(module, node, alias)
                    plain = ("", source_of(module, node), _from(alias)) if not taken else ()
                    meaning = self._meaning(taken) if taken else plain
                    yield bound_by(alias), meaning
                    if taken and not taken.name:
                        yield "SimpleNamespace", ("", "types", "SimpleNamespace")
            else:
                yield from ((name, (here, name)) for name in block.binds)
        for name in self.needed(module) - module.bound.keys():
            if name in BUILTINS:
                yield name, ("builtins", name)

    def _meaning(self, taken: Taken) -> tuple[str, ...]:
        """The definition behind a name that is taken, through any number of imports."""
        other = self.load(taken.module)
        for block in other.bound.get(taken.name, ()) if other else ():
            for node in block.nodes if block.kind == "import" else ():
                if other and isinstance(node, ast.Import | ast.ImportFrom):
                    for alias in node.names:
                        if bound_by(alias) == taken.name:
                            further = self.taken(other, node, alias)
                            if further and further != taken:
                                return self._meaning(further)
                            return ("", source_of(other, node), _from(alias))
        return (taken.module, taken.name)


def bound_by(alias: ast.alias) -> str:
    """The name that an import binds."""
    return alias.asname or alias.name.split(".")[0]


def _from(alias: ast.alias) -> str:
    return alias.name if alias.asname else alias.name.split(".")[0]


def is_future(node: ast.stmt) -> bool:
    """Whether a statement is `from __future__ import …`."""
    return isinstance(node, ast.ImportFrom) and node.module == "__future__"


def source_of(module: Module, node: ast.Import | ast.ImportFrom) -> str:
    """The absolute name of the module that `from … import` names."""
    if isinstance(node, ast.Import):
        return ""
    if not node.level:
        return node.module or ""
    up = node.level - module.is_package
    package = module.name[: len(module.name) - up] if up <= len(module.name) else ()
    return ".".join((*package, *([node.module] if node.module else []))) if module.name else ""
