"""What statements do to names: which they read, bind for sure, and change in place.

A snippet that runs alone needs not only the statements that bind its names but also those that
change what the names stand for: `STAGES.append(…)`, `x[0] = 1`, `torch.set_default_dtype(…)`,
`optimizer.step()`. Python cannot say for certain what a call changes, so this errs on the side of
keeping: a method called for its effect changes its object, and whatever that was made from.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from marginalia.syntax import bindings, module_uses

_IN_PLACE = re.compile(
    r"^[^_](?:.*[^_])?_$|^(?:next|pop|popitem|popleft|setdefault|shuffle|heap\w+)$"
)
_CONFIGURES = re.compile(
    r"^(?:add|append|apply|basicConfig|configure|disable|enable|extend|filter|init|insert|install"
    r"|load|manual_seed|patch|register|reset|seed|set|simplefilter|update|use)"
)
_SEEDS = re.compile(r"^(?:manual_seed(?:_all)?|seed|(?:set_)?(?:random_|all_)?seeds?|seed_\w+)$")
# What these give is not made of what they take.
_FRESH = re.compile(
    r"^(?:all|any|bool|copy|deepcopy|dim|float|format|int|isinstance|item|len|numel|range|repr"
    r"|size|str|tolist|type)$"
)
_SAME_MEMORY = frozenset(("as_tensor", "asarray", "from_numpy", "rearrange"))


def reads(nodes: Iterable[ast.AST]) -> set[str]:
    """The names of the module that some code reads, wherever in it."""
    return {use.name for use in module_uses(nodes) if use.loads}


def binds(nodes: Iterable[ast.AST]) -> set[str]:
    """The names that some statements bind; a deleted name is not bound."""
    return {
        name
        for name, binders in bindings(nodes).items()
        if not all(isinstance(getattr(binder, "ctx", None), ast.Del) for binder in binders)
    }


def needs(statements: Iterable[ast.stmt], bound: set[str]) -> set[str]:
    """The names that statements read before they bind them.

    Args:
        statements: Statements in the order in which they run.
        bound: Names that are bound before; those that the statements bind for sure are added.
    """
    needed: set[str] = set()
    for statement in statements:
        needed |= _NEEDS.get(type(statement), _of_simple)(statement, bound)
    return needed


def _of_simple(node: ast.AST, bound: set[str]) -> set[str]:
    needed = reads([node])
    if isinstance(node, ast.Delete):
        deleted = {target.id for target in node.targets if isinstance(target, ast.Name)}
        needed = (needed | deleted) - bound
        bound -= deleted
        return needed
    needed -= bound
    bound |= binds([node])
    return needed


def _of_for(node: ast.For, bound: set[str]) -> set[str]:
    needed = reads([node.iter, node.target]) - bound
    needed |= needs(node.body, bound | binds([node.target]))
    return needed | needs(node.orelse, set(bound))


def _of_while(node: ast.While, bound: set[str]) -> set[str]:
    needed = _of_simple(node.test, bound)
    return needed | needs(node.body, set(bound)) | needs(node.orelse, set(bound))


def _of_if(node: ast.If, bound: set[str]) -> set[str]:
    needed = _of_simple(node.test, bound)
    body, orelse = set(bound), set(bound)
    needed |= needs(node.body, body) | needs(node.orelse, orelse)
    bound |= body & orelse
    return needed


def _of_with(node: ast.With, bound: set[str]) -> set[str]:
    needed: set[str] = set()
    for item in node.items:
        needed |= reads([item]) - bound
        bound |= binds([item])
    return needed | needs(node.body, bound)


def _of_try(node: ast.Try, bound: set[str]) -> set[str]:
    body = set(bound)
    needed = needs(node.body, body) | needs(node.orelse, body)
    ways = [body]
    for handler in node.handlers:
        way = bound | ({handler.name} if handler.name else set())
        needed |= reads([handler.type] if handler.type else []) - bound
        needed |= needs(handler.body, way)
        ways.append(way)
    bound |= set.intersection(*ways)
    return needed | needs(node.finalbody, bound)


def _of_match(node: ast.Match, bound: set[str]) -> set[str]:
    needed = _of_simple(node.subject, bound)
    for case in node.cases:
        way = bound | binds([case.pattern])
        guard = [case.guard] if case.guard else []
        needed |= (reads([case.pattern, *guard]) - way) | needs(case.body, way)
    return needed


_NEEDS: dict[type[ast.stmt], Callable[..., set[str]]] = {
    ast.For: _of_for,
    ast.AsyncFor: _of_for,
    ast.While: _of_while,
    ast.If: _of_if,
    ast.With: _of_with,
    ast.AsyncWith: _of_with,
    ast.Try: _of_try,
    ast.TryStar: _of_try,
    ast.Match: _of_match,
}


def is_seeding(node: ast.stmt) -> bool:
    """Whether a statement does nothing but seed a random generator."""
    if isinstance(node, ast.Expr) or (
        isinstance(node, ast.Assign) and all(getattr(t, "id", "") == "_" for t in node.targets)
    ):
        call = node.value
        return isinstance(call, ast.Call) and bool(_SEEDS.match(_called(call)))
    return False


# Changes in place


@dataclass(slots=True)
class Changes:
    """Follows what the statements of a module (and of its demo) change in place.

    Args:
        statements: All of them, in order: they say what kind of thing a name is, and which name
            was made from which.
    """

    statements: Iterable[ast.stmt]
    _packages: dict[str, str] = field(default_factory=dict)  # imported name -> package
    _definitions: dict[str, set[str]] = field(default_factory=dict)  # -> what a call changes
    _made_from: dict[str, set[str]] = field(default_factory=dict)
    _same_as: dict[str, set[str]] = field(default_factory=dict)  # shares its memory

    def __post_init__(self) -> None:
        functions: list[ast.AST] = []
        for node in _executed(self.statements):
            if isinstance(node, ast.Import | ast.ImportFrom):
                self._note_import(node)
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                self._definitions[node.name] = set()
                functions.append(node)
        for node in _executed(self.statements):
            for target, value in _assignments(node):
                self._note(target, value)
        for function in functions:
            self._note_function(function)

    def of(self, statements: Iterable[ast.stmt]) -> set[str]:
        """The names whose objects some statements change."""
        found: set[str] = set()
        for name, deeply in self._direct(statements):
            found |= self._reach(name, deeply)
        return found

    def _note_import(self, node: ast.Import | ast.ImportFrom) -> None:
        for alias in node.names:
            source = alias.name if isinstance(node, ast.Import) else node.module or alias.name
            self._packages[alias.asname or alias.name.split(".")[0]] = source.split(".")[0]

    def _is_data(self, name: str) -> bool:
        return name not in self._packages and name not in self._definitions

    def _note(self, target: str, value: ast.expr) -> None:
        call = value if isinstance(value, ast.Call) else None
        if isinstance(value, ast.Constant | ast.Compare) or (call and _FRESH.match(_called(call))):
            return
        names = {part.id for part in ast.walk(value) if isinstance(part, ast.Name)}
        self._made_from.setdefault(target, set()).update(filter(self._is_data, names))
        if call and _called(call) == "clone":
            return
        same = call.args[0] if call and call.args and _called(call) in _SAME_MEMORY else value
        root = _root(same)
        if root and self._is_data(root):
            self._same_as.setdefault(target, set()).add(root)
            self._same_as.setdefault(root, set()).add(target)

    def _note_function(self, function: ast.AST) -> None:
        body: list[ast.stmt] = getattr(function, "body", [])
        outer = {
            name
            for node in ast.walk(function)
            if isinstance(node, ast.Global)
            for name in node.names
        }
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            changed = {name for name, _ in self._direct(body)}
            self._definitions[function.name] |= outer | (changed & reads([function]))

    def _reach(self, name: str, deeply: bool) -> set[str]:
        package = self._packages.get(name)
        if package:
            return {other for other, its in self._packages.items() if its == package}
        reached: set[str] = set()
        waiting = [name]
        while waiting:
            at = waiting.pop()
            if at not in reached:
                reached.add(at)
                waiting += self._same_as.get(at, ())
                waiting += self._made_from.get(at, ()) if deeply else ()
        return reached

    def _direct(self, statements: Iterable[ast.stmt]) -> Iterator[tuple[str, bool]]:
        """Names that are changed, and whether what they were made from may be changed too."""
        for node in _executed(statements):
            for target in _targets(node):
                root = _root(target)
                if root and not isinstance(target, ast.Name):
                    yield root, False
            if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
                yield node.target.id, False
            if isinstance(node, ast.Call):
                yield from self._by_call(node, statement=False)
            elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
                yield from self._by_call(node.value, statement=True)

    def _by_call(self, call: ast.Call, *, statement: bool) -> Iterator[tuple[str, bool]]:
        called, root = _called(call), _root(call.func)
        in_place = bool(_IN_PLACE.match(called))
        given = [name for argument in call.args if (name := _root(argument))]
        data = [name for name in given if self._is_data(name)]
        if called in ("setattr", "delattr"):
            yield from ((name, True) for name in given[:1])
        elif root in self._packages:
            if statement and _CONFIGURES.match(called):
                yield root, True
            yield from ((name, True) for name in data if in_place)
        elif root in self._definitions:
            if statement:
                changed = self._definitions[root] | ({root} - {called})
                yield from ((name, True) for name in (*data, *changed))
        elif isinstance(call.func, ast.Name):
            yield from ((name, True) for name in (data if in_place else [])[:1])
            if statement and root and root in self._made_from:
                yield root, True
        elif root and (statement or in_place):
            yield root, True


def _executed(nodes: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """The nodes that run when the statements do: not the bodies of what they define."""
    waiting = list(nodes)[::-1]
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            waiting += list(ast.iter_child_nodes(node))[::-1]


def _called(call: ast.Call) -> str:
    """The last identifier of what is called."""
    name: str = getattr(call.func, "attr", getattr(call.func, "id", ""))
    return name


def _root(node: ast.AST) -> str | None:
    """The name at the start of `a.b[c].d(e)`."""
    while not isinstance(node, ast.Name):
        if isinstance(node, ast.Attribute | ast.Subscript | ast.Starred | ast.Await):
            node = node.value
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            node = node.func
        else:
            return None
    return node.id


def _targets(node: ast.AST) -> list[ast.expr]:
    targets: list[ast.expr] = []
    if isinstance(node, ast.Assign | ast.Delete):
        targets = list(node.targets)
    elif isinstance(node, ast.AugAssign | ast.AnnAssign | ast.For | ast.AsyncFor):
        targets = [node.target]
    elif isinstance(node, ast.withitem) and node.optional_vars:
        targets = [node.optional_vars]
    return [part for target in targets for part in _flat(target)]


def _flat(target: ast.expr) -> list[ast.expr]:
    if isinstance(target, ast.Tuple | ast.List):
        return [part for item in target.elts for part in _flat(item)]
    return _flat(target.value) if isinstance(target, ast.Starred) else [target]


def _assignments(node: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    """Names that are bound, each with what it is made from."""
    if isinstance(node, ast.Assign):
        for target in node.targets:
            yield from _pairs(target, node.value)
    elif isinstance(node, ast.AnnAssign | ast.NamedExpr) and node.value:
        yield from _pairs(node.target, node.value)
    elif isinstance(node, ast.For | ast.AsyncFor):
        yield from _pairs(node.target, node.iter)
    elif isinstance(node, ast.withitem) and node.optional_vars:
        yield from _pairs(node.optional_vars, node.context_expr)


def _pairs(target: ast.expr, value: ast.expr) -> Iterator[tuple[str, ast.expr]]:
    both = (target, value)
    if all(isinstance(side, ast.Tuple | ast.List) for side in both):
        targets, values = (getattr(side, "elts", []) for side in both)
        starred = any(isinstance(item, ast.Starred) for item in (*targets, *values))
        if len(targets) == len(values) and not starred:
            for left, right in zip(targets, values, strict=True):
                yield from _pairs(left, right)
            return
    for part in _flat(target):
        if isinstance(part, ast.Name):
            yield part.id, value
