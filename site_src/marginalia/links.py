"""Where names are defined: links from code, references from prose."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, Literal

from marginalia import external
from marginalia.memo import digest, plain
from marginalia.source import Symbol, column_of, plain_lines, symbols, tree_of
from marginalia.syntax import Scope, Use, bindings, uses

LinkKind = Literal["local", "paper", "companion", "external"]

_Parts = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Link:
    """A name in the code, and where it is defined.

    Args:
        line: 1-based line.
        column: 0-based column of the last identifier of a dotted name, in characters.
        end_column: Where that identifier ends.
        url: From the site's root, or a whole address for what is not of this site.
        title: The qualified name; without the module for what is on the same page.
        kind: `local` is the same page, `companion` the companion library.
    """

    line: int
    column: int
    end_column: int
    url: str
    title: str
    kind: LinkKind


@dataclass(frozen=True, slots=True)
class _Target:
    url: str
    title: str
    kind: LinkKind
    module: str = ""  # the module of ours that defines it
    symbol: Symbol | None = None
    page: bool = False  # it is a whole module


@dataclass(frozen=True, slots=True)
class _Import:
    """What an import statement binds a name to."""

    level: int
    source: _Parts  # the module it is taken from; empty for `import x` and `from . import x`
    name: _Parts


# The bindings of a name: an import, or None for anything else.
_Bindings = tuple[_Import | None, ...]


@dataclass(frozen=True, slots=True)
class Definitions:
    """What a module defines and imports, as far as links need it.

    Attributes:
        symbols: What it defines, by name.
        bound: For each name of the module, the imports that bind it.
        bases: For each class, the names of its bases.
    """

    symbols: Mapping[str, Symbol]
    bound: Mapping[str, _Bindings]
    bases: Mapping[str, Sequence[_Parts]]

    def to_json(self) -> dict[str, Any]:
        """It as JSON."""
        return {
            "symbols": [astuple(symbol) for symbol in self.symbols.values()],
            "bound": {
                name: [found and astuple(found) for found in bound]
                for name, bound in self.bound.items()
            },
            "bases": dict(self.bases),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Definitions:
        """The inverse of :meth:`to_json`."""
        found = (Symbol(*values) for values in data["symbols"])
        return cls(
            {symbol.name: symbol for symbol in found},
            {
                name: tuple(_Import(i[0], tuple(i[1]), tuple(i[2])) if i else None for i in bound)
                for name, bound in data["bound"].items()
            },
            {name: [tuple(base) for base in bases] for name, bases in data["bases"].items()},
        )


def definitions(text: str, path: str | Path = "<source>") -> Definitions:
    """Find what a source defines and imports.

    Raises:
        SourceError: The source does not parse.
    """
    tree = tree_of(text, path)
    absent = _assigned_none(tree)  # what a failed import leaves: `torch = None`
    return Definitions(
        {symbol.name: symbol for symbol in reversed(symbols(text, path))},
        {
            bound: _imports([node for node in nodes if node not in absent], bound)
            for bound, nodes in bindings(tree.body).items()
        },
        {
            node.name: [use.path for use in uses(node.bases)]
            for node in tree.body
            if isinstance(node, ast.ClassDef)
        },
    )


class _Module:
    """A module of the site. Its tree is not kept: a site has hundreds of them."""

    def __init__(self, name: str, found: Definitions, url: str, kind: LinkKind) -> None:
        self.name = name
        self.parts: _Parts = tuple(name.split("."))
        self.url = url
        self.kind = kind
        self.symbols, self.bound, self.bases = found.symbols, found.bound, found.bases

    def imports(self, name: str) -> _Bindings:
        """What binds a name, unless the module defines a function or class of that name."""
        symbol = self.symbols.get(name)
        return () if symbol and symbol.kind != "variable" else self.bound.get(name, ())


def _assigned_none(tree: ast.Module) -> set[ast.AST]:
    return {
        target
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Constant)
        and node.value.value is None
        for target in node.targets
    }


def _imports(nodes: Iterable[ast.AST], name: str) -> _Bindings:
    return tuple(_import(node, name) for node in nodes)


def _import(node: ast.AST, name: str) -> _Import | None:
    if isinstance(node, ast.Import):
        for alias in node.names:
            if alias.asname == name:
                return _Import(0, (), tuple(alias.name.split(".")))
        return _Import(0, (), (name,))
    if isinstance(node, ast.ImportFrom):
        source = tuple(node.module.split(".")) if node.module else ()
        for alias in node.names:
            if (alias.asname or alias.name) == name:
                return _Import(node.level, source, (alias.name,))
    return None


class Index:
    """The definitions of many modules."""

    def __init__(self) -> None:
        self._modules: dict[str, _Module] = {}
        self._packages: set[str] = set()
        self._by_last: dict[str, Counter[_Parts]] = {}  # a module may be named as a symbol
        self._binding: dict[str, set[str]] = {}  # name -> modules that import it or give it bases
        self._said: dict[str, tuple[str, set[str]]] = {}

    def add(
        self, module: str, source: str | Definitions, url: str, kind: LinkKind = "paper"
    ) -> None:
        """Take in the definitions of a module; one that is there already is replaced.

        Args:
            module: Dotted import name.
            source: Its text, or what was found in it.
            url: Its page, from the site's root.
            kind: `"paper"`, or `"companion"` for the companion library.

        Raises:
            SourceError: The source does not parse.
        """
        found = definitions(source, module) if isinstance(source, str) else source
        added = _Module(module, found, url, kind)
        self.remove(module)
        self._modules[module] = added
        for name in {*found.bound, *found.bases}:
            self._binding.setdefault(name, set()).add(module)
        self._packages.update(".".join(added.parts[:n]) for n in range(1, len(added.parts)))
        for parts in self._names(added):
            self._by_last.setdefault(parts[-1], Counter())[parts] += 1

    def remove(self, module: str) -> None:
        """Forget a module; one that is not there is no error."""
        removed = self._modules.pop(module, None)
        self._said.clear()
        if removed:
            for parts in self._names(removed):
                self._by_last[parts[-1]] -= Counter([parts])

    def said_of(self, words: Iterable[str]) -> str:
        """All that a text's links depend on: two indexes that say the same of its words link alike.

        Args:
            words: The words of the text.

        Returns:
            A digest of the definitions whose last names are among the words, and of those that
            these are imported from or inherit from.
        """
        waiting, seen = [*words], set[str]()
        said = []
        while waiting:
            word = waiting.pop()
            if word not in seen:
                seen.add(word)
                facts, others = self._about(word)
                said.append(facts)
                waiting += others
        return digest("".join(sorted(said)))

    def _about(self, word: str) -> tuple[str, set[str]]:
        """A digest of what the index knows of a last name, and the names that this leads to."""
        if word not in self._said:
            facts: list[Any] = []
            others: set[str] = set()
            for parts in sorted(self._by_last.get(word, ())):
                target = self._find(parts)
                facts.append(target and [parts, target.url, target.kind, target.page])
            here = sorted(self._binding.get(word, set()) & self._modules.keys())
            for module in map(self._modules.__getitem__, here):
                bound = [found for found in module.imports(word) if found]
                bases = module.bases.get(word, ())
                if bound or bases:
                    facts.append([module.name, bound, bases])
                    others.update(part for found in bound for part in (*found.source, *found.name))
                    others.update(base[-1] for base in bases)
            self._said[word] = digest(plain(facts)) if facts else "", others
        return self._said[word]

    @staticmethod
    def _names(module: _Module) -> Iterator[_Parts]:
        yield module.parts
        for name in module.symbols:
            yield (*module.parts, *name.split("."))

    def resolve(self, qualified: str) -> tuple[str, str] | None:
        """Find what a cross-reference in prose means.

        Args:
            qualified: A qualified name, or enough of its end to be the only one:
                `"attention.squeeze_excitation.SqueezeExcite"`, `"SqueezeExcite.gate"`.

        Returns:
            Url and title; None when it is unknown, or when several definitions have that name. A
            definition in a paper comes before one in the companion library.
        """
        parts = tuple(qualified.split("."))
        target = self._find(parts) or self._find_ending(parts)
        return (target.url, target.title) if target else None

    def _find_ending(self, parts: _Parts) -> _Target | None:
        ending = [p for p in self._by_last.get(parts[-1], ()) if p[-len(parts) :] == parts]
        targets = [target for found in ending if (target := self._find(found))]
        for kind in ("paper", "companion"):
            of_kind = [target for target in targets if target.kind == kind]
            if of_kind:
                return of_kind[0] if len(of_kind) == 1 else None
        return None

    def _find(self, parts: _Parts, seen: frozenset[_Parts] = frozenset()) -> _Target | None:
        """What a whole qualified name means; imports are followed to the definition."""
        if parts in seen:
            return None
        for cut in range(len(parts), 0, -1):
            module = self._modules.get(".".join(parts[:cut]))
            if module:
                return self._find_in(module, parts[cut:], seen | {parts})
        name = ".".join(parts)
        url = external.find(name)
        return _Target(url, name, "external", page=external.is_module(name)) if url else None

    def _find_in(self, module: _Module, rest: _Parts, seen: frozenset[_Parts]) -> _Target | None:
        if not rest:
            return _Target(module.url, module.name, module.kind, module.name, page=True)
        name = ".".join(rest)
        symbol = module.symbols.get(name)
        if symbol:
            title = f"{module.name}.{name}"
            return _Target(f"{module.url}#{name}", title, module.kind, module.name, symbol)
        imported = self._imported(module, module.imports(rest[0]))
        if imported:
            return self._find((*imported, *rest[1:]), seen)
        return self._inherited(module, rest, seen)

    def _inherited(self, module: _Module, rest: _Parts, seen: frozenset[_Parts]) -> _Target | None:
        """A method that a class has from its bases, as far as they are indexed."""
        for base in module.bases.get(rest[0], ()) if len(rest) == 2 else ():
            found = self._find((*self._of_module(module, base), rest[1]), seen)
            if found and found.kind != "external":
                return found
        return None

    def _of_module(self, module: _Module, path: _Parts) -> _Parts:
        """The full name of a path that starts at a name of the module; empty if there is none."""
        imported = self._imported(module, module.imports(path[0]))
        if imported:
            return (*imported, *path[1:])
        return (*module.parts, *path) if path[0] in module.symbols else ()

    def _imported(self, module: _Module, bound: _Bindings) -> _Parts:
        """What an imported name stands for; empty unless all that binds it agrees."""
        meanings = {self._meaning(module, found) for found in bound}
        return meanings.pop() if len(meanings) == 1 else ()

    def _meaning(self, module: _Module, found: _Import | None) -> _Parts:
        if found is None:
            return ()
        if not found.level:
            return (*found.source, *found.name)
        inside = found.level - (module.name in self._packages)
        package = module.parts[: len(module.parts) - inside] if inside >= 0 else module.parts
        return (*package, *found.source, *found.name) if package else ()

    def links(self, module: str, text: str) -> list[Link]:
        """Find where the names in a module's code are defined.

        A name that a function, class or comprehension binds for itself has no link, whatever it
        is called; neither has one in a comment or a string.

        Args:
            module: Its dotted import name.
            text: Its source, as it is shown; the module need not be indexed.

        Returns:
            The links in order; at most one starts at a place.

        Raises:
            SourceError: The source does not parse.
        """
        here = _Module(module, definitions(text, module), "", "paper")
        page = _Page(here, tree_of(text, module), plain_lines(text))
        found: dict[tuple[int, int], Link] = {}
        for link in (*self._of_names(page), *self._of_imports(page)):
            found.setdefault((link.line, link.column), link)
        return [found[place] for place in sorted(found)]

    def _of_names(self, page: _Page) -> Iterator[Link]:
        for use in uses(page.tree.body):
            if not use.loads or use.quoted:
                continue
            qualified = self._qualify(page.module, use)
            skipped = len(qualified) - len(use.path)
            for length in range(len(use.path), 0, -1):
                target = self._find(qualified[: skipped + length]) if qualified else None
                if target and not target.page:
                    yield from page.link(use.nodes[length - 1], use.path[length - 1], target)
                    break

    def _qualify(self, here: _Module, use: Use) -> _Parts:
        """The full name of a use, or nothing if it is a variable.

        Its last parts are those of the use, but for `self`, which stands for the class, and for a
        name imported as another.
        """
        scope = use.scope
        if scope.kind == "module":
            return self._of_module(here, use.path)
        if scope.kind == "class":
            around = _class_path(scope)
            return (*here.parts, *around, *use.path) if around else ()
        imported = self._imported(here, _imports(scope.bound[use.name], use.name))
        if imported:
            return (*imported, *use.path[1:])
        around = _class_of_self(scope, use.name) if len(use.path) > 1 else ()
        qualified = (*here.parts, *around, *use.path[1:2])
        method = self._find(qualified) if around else None
        is_method = method and method.symbol and method.symbol.kind != "variable"
        return (*qualified, *use.path[2:]) if is_method else ()

    def _of_imports(self, page: _Page) -> Iterator[Link]:
        here = page.module
        for node in ast.walk(page.tree):
            if isinstance(node, ast.ImportFrom):
                if node.module:
                    source = _Import(node.level, (), tuple(node.module.split(".")))
                    target = self._find(self._meaning(here, source))
                    yield from page.link_source(node, node.module, target)
                for alias in node.names:
                    bound = _import(node, alias.asname or alias.name)
                    target = self._find(self._meaning(here, bound))
                    yield from page.link(alias, alias.name, target)
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    target = self._find(tuple(alias.name.split(".")))
                    yield from page.link(alias, alias.name, target)


@dataclass(frozen=True, slots=True)
class _Page:
    """The module whose code is linked."""

    module: _Module
    tree: ast.Module
    lines: list[str]

    def link(self, node: ast.expr | ast.alias, name: str, target: _Target | None) -> Iterator[Link]:
        """The link of the last identifier of a name, unless the source does not have it there.

        (Python 3.11 gives no true places to what stands in an f-string.)
        """
        last = name.split(".")[-1]
        line = node.lineno
        if isinstance(node, ast.Attribute):
            line = node.end_lineno or line
            end = self.column(line, node.end_col_offset or 0)
        else:
            end = self.column(line, node.col_offset) + len(name)
        if target and self.lines[line - 1 : line] and self.lines[line - 1][:end].endswith(last):
            yield self.made(line, end - len(last), end, target)

    def link_source(
        self, node: ast.ImportFrom, name: str, target: _Target | None
    ) -> Iterator[Link]:
        """The link of `x` in `from a.x import y`, which has no node of its own."""
        start = self.column(node.lineno, node.col_offset)
        source = re.compile(rf"from\s+\.*{re.escape(name)}(?=\s)")
        match = source.match(self.lines[node.lineno - 1], start)
        if target and match:
            end = match.end()
            yield self.made(node.lineno, end - len(name.split(".")[-1]), end, target)

    def made(self, line: int, column: int, end: int, target: _Target) -> Link:
        if target.module != self.module.name:
            return Link(line, column, end, target.url, target.title, target.kind)
        title = target.title.removeprefix(f"{target.module}.")
        return Link(line, column, end, target.url, title, "local")

    def column(self, line: int, offset: int) -> int:
        return column_of(self.lines[line - 1], offset) if line <= len(self.lines) else offset


def _class_path(scope: Scope | None) -> _Parts:
    """The qualified name of a class scope; empty inside a function, where nothing has an anchor."""
    names: list[str] = []
    while scope and scope.parent:
        if isinstance(scope.node, ast.ClassDef):
            names.append(scope.node.name)
        elif scope.node:
            return ()
        scope = scope.parent
    return tuple(names[::-1])


def _class_of_self(scope: Scope, name: str) -> _Parts:
    """The class that the first parameter of a method stands for, in the method's scope."""
    method, around = scope.node, scope.parent
    while around and around.kind == "function" and not around.node:
        around = around.parent
    if not isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef) or not around:
        return ()
    parameters = [*method.args.posonlyargs, *method.args.args]
    static = any(getattr(d, "id", "") == "staticmethod" for d in method.decorator_list)
    if around.kind != "class" or static or not parameters or scope.bound[name] != parameters[:1]:
        return ()
    return _class_path(around)
