"""Names in a syntax tree: where each is bound, and which of them mean something of the module.

Python decides by scope what a name means: a parameter `nn` hides the module's import `nn`, a
variable of a comprehension is seen nowhere else, and the body of a class is not seen by its
methods. Everything that follows a name to its definition starts here.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from marginalia.source import scan_of

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(eq=False, slots=True)
class Scope:
    """A stretch of code with names of its own.

    Args:
        kind: Comprehensions, lambdas and type parameters are `function` scopes too.
        node: The class, function or lambda; None for the others.
        parent: The scope around it; None for the module.
        bound: Name -> the nodes that bind it: names, definitions, imports, parameters, handlers.
        outer: Names that are declared global here.
    """

    kind: Literal["module", "class", "function"]
    node: ast.AST | None = None
    parent: Scope | None = None
    bound: dict[str, list[ast.AST]] = field(default_factory=dict)
    outer: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Use:
    """One occurrence of a name, with the attributes taken from it.

    Args:
        path: `("torch", "nn", "Linear")` for `torch.nn.Linear`.
        nodes: The expressions that end each part of the path.
        scope: Where the name is bound; the module's scope also for names that are bound nowhere.
        loads: Whether the name itself is read, not only bound or deleted.
        quoted: Whether it stands in an annotation that is a string, and so has no true place.
    """

    path: tuple[str, ...]
    nodes: tuple[ast.expr, ...]
    scope: Scope
    loads: bool
    quoted: bool

    @property
    def name(self) -> str:
        """The first part of the path."""
        return self.path[0]


def uses(nodes: Iterable[ast.AST], module: Scope | None = None) -> list[Use]:
    """Find every name in some statements of a module's top level.

    Args:
        nodes: The statements.
        module: The scope they stand in, if the caller needs to know it again.

    Returns:
        The names in them, however deep, in the order in which Python meets them.
    """
    reader = _Reader(module or Scope("module"))
    for node in nodes:
        reader.visit(node)
    return reader.found


def module_uses(nodes: Iterable[ast.AST]) -> list[Use]:
    """The `uses` that mean a name of the module's own scope (or a builtin)."""
    return [use for use in uses(nodes) if use.scope.kind == "module"]


def bindings(nodes: Iterable[ast.AST]) -> dict[str, list[ast.AST]]:
    """Name -> the nodes that bind it, for some statements of one scope."""
    binder = _Binder()
    for node in nodes:
        binder.visit(node)
    return binder.bound


def start_of(node: ast.AST) -> int:
    """The first line of a statement, its decorators included."""
    decorators: list[ast.expr] = getattr(node, "decorator_list", [])
    line: int = getattr(node, "lineno", 1)
    return min([line, *(decorator.lineno for decorator in decorators)])


def end_of(node: ast.AST) -> int:
    """The last line of a statement."""
    line: int = getattr(node, "end_lineno", None) or start_of(node)
    return line


def is_guard(node: ast.AST) -> bool:
    """Whether a statement is `if __name__ == "__main__":`."""
    return isinstance(node, ast.If) and any(
        isinstance(part, ast.Name) and part.id == "__name__" for part in ast.walk(node.test)
    )


def is_text(node: ast.AST) -> bool:
    """Whether a statement is nothing but a string: a docstring."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def is_dedentable(function: ast.FunctionDef, body: Iterable[ast.stmt]) -> bool:
    """Whether Python allows statements of a function at the top level, and runs them alike.

    Args:
        function: The function: its parameters and decorators have no counterpart there.
        body: The statements.
    """
    waiting: list[ast.AST] = list(body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Return | ast.Yield | ast.YieldFrom | ast.Await):
            return False
        if isinstance(node, Definition | ast.Lambda):
            # What is nonlocal to a function inside would have to be global.
            if any(isinstance(part, ast.Nonlocal) for part in ast.walk(node)):
                return False
        else:
            waiting += ast.iter_child_nodes(node)
    return not function.decorator_list and not any(ast.iter_child_nodes(function.args))


def inside_strings(text: str) -> frozenset[int]:
    """The lines that start inside a string, whose indentation therefore is part of a value."""
    strings = scan_of(text).tokens.strings
    return frozenset(line for first, last in strings for line in range(first + 1, last + 1))


def dedent(lines: Sequence[str], first: int, last: int, inside: frozenset[int]) -> list[str]:
    """Take the indentation of the first line off a range of lines.

    Args:
        lines: The file, as `source.plain_lines` gives it.
        first: First line of the range, 1-based.
        last: Last line, inclusive.
        inside: What `inside_strings` says: these lines stay as they are.

    Returns:
        The lines. One that is indented less loses what it has.
    """
    margin = len(lines[first - 1]) - len(lines[first - 1].lstrip())
    result = []
    for number in range(first, last + 1):
        line = lines[number - 1]
        if number not in inside:
            indent = len(line) - len(line.lstrip())
            line = line[min(margin, indent) :]
        result.append(line)
    return result


class _Binder(ast.NodeVisitor):
    """Collects what a scope binds; it does not enter the scopes inside."""

    def __init__(self) -> None:
        self.bound: dict[str, list[ast.AST]] = {}
        self.outer: set[str] = set()
        self.nonlocals: set[str] = set()

    def add(self, name: str | None, node: ast.AST) -> None:
        if name is not None:
            self.bound.setdefault(name, []).append(node)

    def visit_Name(self, node: ast.Name) -> None:
        if not isinstance(node.ctx, ast.Load):
            self.add(node.id, node)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self.add(node.name, node)
        for outside in (*node.decorator_list, *_defaults(node.args)):
            self.visit(outside)

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815  # ast names it

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self.add(node.name, node)
        for outside in (*node.decorator_list, *node.bases, *node.keywords):
            self.visit(outside)

    def visit_Lambda(self, node: ast.Lambda) -> None:
        for outside in _defaults(node.args):
            self.visit(outside)

    def visit_ListComp(self, node: ast.expr) -> None:
        for part in ast.walk(node):  # `:=` binds outside of the comprehension
            if isinstance(part, ast.NamedExpr):
                self.add(part.target.id, part.target)

    visit_SetComp = visit_DictComp = visit_GeneratorExp = visit_ListComp  # noqa: N815  # ast names it

    def visit_Import(self, node: ast.Import | ast.ImportFrom) -> None:
        for alias in node.names:
            if alias.name != "*":
                self.add(alias.asname or alias.name.split(".")[0], node)

    visit_ImportFrom = visit_Import  # noqa: N815  # ast names it

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> None:
        self.add(node.name, node)
        self.generic_visit(node)

    def visit_MatchAs(self, node: ast.MatchAs | ast.MatchStar) -> None:
        self.add(node.name, node)
        self.generic_visit(node)

    visit_MatchStar = visit_MatchAs  # noqa: N815  # ast names it

    def visit_MatchMapping(self, node: ast.MatchMapping) -> None:
        self.add(node.rest, node)
        self.generic_visit(node)

    def visit_Global(self, node: ast.Global) -> None:
        self.outer.update(node.names)

    def visit_Nonlocal(self, node: ast.Nonlocal) -> None:
        self.nonlocals.update(node.names)


def _defaults(arguments: ast.arguments) -> Iterator[ast.expr]:
    yield from arguments.defaults
    yield from (default for default in arguments.kw_defaults if default)


def _parameters(arguments: ast.arguments) -> Iterator[ast.arg]:
    yield from (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)
    yield from (extra for extra in (arguments.vararg, arguments.kwarg) if extra)


class _Reader(ast.NodeVisitor):
    """Walks through scopes and resolves each name where it stands."""

    def __init__(self, module: Scope) -> None:
        self.scope = module
        self.found: list[Use] = []
        self.annotation = False
        self.quoted = False

    def _use(self, node: ast.expr, name: ast.Name, loads: bool) -> None:
        nodes: list[ast.expr] = [node]
        path: list[str] = []
        while isinstance(last := nodes[-1], ast.Attribute):
            path.append(last.attr)
            nodes.append(last.value)
        path.append(name.id)
        scope = self._bound_in(name.id)
        self.found.append(Use(tuple(path[::-1]), tuple(nodes[::-1]), scope, loads, self.quoted))

    def _bound_in(self, name: str) -> Scope:
        scope, innermost = self.scope, True
        while scope.parent is not None:
            if name in scope.outer:
                break
            if name in scope.bound and (innermost or scope.kind != "class"):
                return scope
            scope, innermost = scope.parent, False
        while scope.parent is not None:
            scope = scope.parent
        return scope

    def visit_Name(self, node: ast.Name) -> None:
        self._use(node, node, isinstance(node.ctx, ast.Load))

    def visit_Attribute(self, node: ast.Attribute) -> None:
        root = node.value
        while isinstance(root, ast.Attribute):
            root = root.value
        if isinstance(root, ast.Name):
            self._use(node, root, loads=True)
        else:
            self.visit(root)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        if isinstance(node.target, ast.Name):
            self._use(node.target, node.target, loads=True)
        else:
            self.visit(node.target)
        self.visit(node.value)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self.visit(node.target)
        self._annotate(node.annotation)
        if node.value:
            self.visit(node.value)

    def _annotate(self, node: ast.expr | None) -> None:
        if node is not None:
            self.annotation = True
            self.visit(node)
            self.annotation = False

    def visit_Constant(self, node: ast.Constant) -> None:
        if self.annotation and isinstance(node.value, str):
            try:
                inner = ast.parse(node.value.strip(), mode="eval").body
            except (SyntaxError, ValueError):
                return
            before, self.quoted = self.quoted, True
            self.visit(inner)
            self.quoted = before

    def visit_Subscript(self, node: ast.Subscript) -> None:
        self.visit(node.value)
        before = self.annotation
        called = getattr(node.value, "attr", getattr(node.value, "id", ""))
        self.annotation = before and called != "Literal"  # whose strings are values
        self.visit(node.slice)
        self.annotation = before

    def _enter(self, node: ast.AST | None, inside: Iterable[ast.AST]) -> Scope:
        binder = _Binder()
        for part in inside:
            binder.visit(part)
        for name in binder.outer | binder.nonlocals:
            binder.bound.pop(name, None)
        return Scope("function", node, self.scope, binder.bound, binder.outer)

    def _type_parameters(self, node: ast.AST) -> None:
        """Open the scope of `def f[T]`; Python has it since 3.12."""
        parameters: list[ast.AST] = getattr(node, "type_params", [])
        if parameters:
            self.scope = self._enter(None, [])
            for parameter in parameters:
                self.scope.bound[getattr(parameter, "name", "")] = [parameter]
                self.generic_visit(parameter)

    def visit_TypeAlias(self, node: ast.AST) -> None:
        before = self.scope
        self.visit(node.name)  # type: ignore[attr-defined]  # unknown to Python 3.11
        self._type_parameters(node)
        self.visit(node.value)  # type: ignore[attr-defined]
        self.scope = before

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        before = self.scope
        for outside in (*node.decorator_list, *_defaults(node.args)):
            self.visit(outside)
        self._type_parameters(node)
        for parameter in _parameters(node.args):
            self._annotate(parameter.annotation)
        self._annotate(node.returns)
        self.scope = self._enter(node, node.body)
        for parameter in _parameters(node.args):
            self.scope.bound.setdefault(parameter.arg, []).insert(0, parameter)
        for statement in node.body:
            self.visit(statement)
        self.scope = before

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815  # ast names it

    def visit_Lambda(self, node: ast.Lambda) -> None:
        before = self.scope
        for outside in _defaults(node.args):
            self.visit(outside)
        self.scope = self._enter(node, [node.body])
        for parameter in _parameters(node.args):
            self.scope.bound.setdefault(parameter.arg, []).insert(0, parameter)
        self.visit(node.body)
        self.scope = before

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        before = self.scope
        for outside in node.decorator_list:
            self.visit(outside)
        self._type_parameters(node)
        for base in (*node.bases, *node.keywords):
            self.visit(base)
        self.scope = Scope("class", node, self.scope)
        for statement in node.body:
            self._in_class(statement)
        self.scope = before

    def _in_class(self, statement: ast.stmt) -> None:
        """A class body sees the names that it has bound so far: `nn = nn` reads the module's."""
        binder = _Binder()
        binder.visit(statement)
        compound = hasattr(statement, "body") and not isinstance(statement, Definition)
        if not compound:
            self.visit(statement)
        self.scope.outer |= binder.outer
        for name, nodes in binder.bound.items():
            self.scope.bound.setdefault(name, []).extend(nodes)
        if compound:
            self.visit(statement)

    def _comprehend(self, generators: list[ast.comprehension], *results: ast.expr) -> None:
        before = self.scope
        self.visit(generators[0].iter)
        self.scope = self._enter(None, [generator.target for generator in generators])
        for number, generator in enumerate(generators):
            self.visit(generator.target)
            if number:
                self.visit(generator.iter)
            for condition in generator.ifs:
                self.visit(condition)
        for result in results:
            self.visit(result)
        self.scope = before

    def visit_ListComp(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp) -> None:
        self._comprehend(node.generators, node.elt)

    visit_SetComp = visit_GeneratorExp = visit_ListComp  # noqa: N815  # ast names it

    def visit_DictComp(self, node: ast.DictComp) -> None:
        self._comprehend(node.generators, node.key, node.value)
