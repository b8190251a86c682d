"""What statements change in place.

A snippet that runs alone needs not only the statements that bind its names but also those that
change what the names stand for: `STAGES.append(…)`, `x[0] = 1`, `torch.set_default_dtype(…)`,
`optimizer.step()`. Python cannot say for certain what a call changes, so this errs on the side of
keeping: a method called for its effect changes its object, and whatever that was made from. A call
whose result is kept changes what the body of the function changes, where that is in the same file.
"""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from marginalia.effects import needs, reads
from marginalia.syntax import Definition

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


def is_seeding(node: ast.stmt) -> bool:
    """Whether a statement does nothing but seed a random generator."""
    if isinstance(node, ast.Expr) or (
        isinstance(node, ast.Assign) and all(getattr(t, "id", "") == "_" for t in node.targets)
    ):
        call = node.value
        return isinstance(call, ast.Call) and bool(_SEEDS.match(_called(call)))
    return False


_Place = int | str  # of an argument: its position (-1 is the object of a method) or its keyword
_ANY = "*"


@dataclass(frozen=True, slots=True)
class _Callable:
    """A function, by what calls of it name: `f`, `.method`, or the class for its `__init__`."""

    name: str
    node: ast.FunctionDef | ast.AsyncFunctionDef
    owner: str = ""  # what a method names its object

    @property
    def parameters(self) -> dict[str, set[_Place]]:
        """Name -> the arguments that it stands for."""
        arguments = self.node.args
        places: dict[str, set[_Place]] = {one.arg: {one.arg} for one in arguments.kwonlyargs}
        positional = [*arguments.posonlyargs, *arguments.args]
        for position, one in enumerate(positional, -1 if self.owner else 0):
            places[one.arg] = {position, one.arg}
        return places | {one.arg: {_ANY} for one in (arguments.vararg, arguments.kwarg) if one}


class Changes:
    """Follows what the statements of a module (and of its demo) change in place.

    Args:
        statements: All of them, in order: they say what kind of thing a name is, and which name
            was made from which.
    """

    def __init__(self, statements: Iterable[ast.stmt]) -> None:
        self._packages: dict[str, str] = {}  # imported name -> package
        self._definitions: set[str] = set()
        self._variables: set[str] = set()
        # What is called, as in `_Callable` -> the names of the module, the arguments it changes.
        self._outside: dict[str, set[str]] = {}
        self._given: dict[str, set[_Place]] = {}
        self._made_from: dict[str, set[str]] = {}
        self._same_as: dict[str, set[str]] = {}  # shares its memory
        self._owner = ""
        self._bodies: list[_Body] = []
        self._learn(list(_executed(statements)))
        self._settle()

    def _learn(self, nodes: Sequence[ast.AST]) -> None:
        found: list[_Callable] = []
        for node in nodes:
            if isinstance(node, ast.Import | ast.ImportFrom):
                self._note_import(node)
            elif isinstance(node, Definition):
                self._definitions.add(node.name)
                found += _callables(node)
        for node in nodes:
            for target, value in _assignments(node):
                self._variables.add(target)
                self._note(target, value)
        self._bodies = [self._body(called) for called in found]

    def _body(self, called: _Callable) -> _Body:
        """What is known inside of a function before anything is known of the others."""
        declared = (part.names for part in ast.walk(called.node) if isinstance(part, ast.Global))
        self._outside[called.name] = self._outside.get(called.name, set()).union(*declared)
        inside = Changes(())
        inside._packages |= self._packages
        inside._definitions |= self._definitions
        inside._variables |= called.parameters.keys()
        inside._owner = called.owner
        steps = [list(_executed([statement])) for statement in called.node.body]
        inside._learn([node for step in steps for node in step])
        bound: set[str] = set()
        rebound = []
        for statement in called.node.body:
            rebound.append(frozenset(bound))
            needs([statement], bound)
            bound -= {name for name in bound if name in inside._same_as.get(name, ())}
        return _Body(called, inside, reads([called.node]), list(zip(steps, rebound, strict=True)))

    def _settle(self) -> None:
        """Find out what calls change: one function may call another, above it or below it."""
        while sum(self._note_body(body) for body in self._bodies):
            pass

    def of(self, statements: Iterable[ast.stmt]) -> set[str]:
        """The names whose objects some statements change."""
        return self._changed(_executed(statements))

    def _changed(self, nodes: Iterable[ast.AST]) -> set[str]:
        found: set[str] = set()
        for name, deeply in self._direct(nodes):
            found |= self._reach(name, deeply)
        return found

    def _note_import(self, node: ast.Import | ast.ImportFrom) -> None:
        for alias in node.names:
            source = alias.name if isinstance(node, ast.Import) else node.module or alias.name
            self._packages[alias.asname or alias.name.split(".")[0]] = source.split(".")[0]

    def _is_data(self, name: str) -> bool:
        if name in self._packages or name in self._definitions:
            return False
        return name in self._variables or not hasattr(builtins, name)

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
        if call and isinstance(call.func, ast.Attribute) and _is_name(call.func.value, self._owner):
            return  # `self.layer(x)` makes something new
        if root and self._is_data(root):
            self._same_as.setdefault(target, set()).add(root)
            self._same_as.setdefault(root, set()).add(target)

    def _note_body(self, body: _Body) -> bool:
        """Note what a call changes; whether there is more of it than was known."""
        name, parameters = body.called.name, body.called.parameters
        inside = body.inside
        inside._outside |= self._outside
        inside._given |= self._given
        inside._settle()
        outside: set[str] = set()
        changed: set[str] = set()
        for nodes, rebound in body.steps:
            outside |= {other for other, _ in self._direct(nodes)} & body.reads
            changed |= inside._changed(nodes) - rebound
        given = {place for other in changed & parameters.keys() for place in parameters[other]}
        known = self._outside.get(name, set()), self._given.get(name, set())
        self._outside[name], self._given[name] = known[0] | outside, known[1] | given
        return not (outside <= known[0] and given <= known[1])

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

    def _direct(self, nodes: Iterable[ast.AST]) -> Iterator[tuple[str, bool]]:
        """Names that are changed, and whether what they were made from may be changed too."""
        for node in nodes:
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
        values = (*call.args, *(keyword.value for keyword in call.keywords))
        given = [name for value in values if (name := _root(value))]
        data = [name for name in given if self._is_data(name)]
        if called in ("setattr", "delattr"):
            yield from ((name, True) for name in given[:1])
        elif root in self._packages:
            if statement and _CONFIGURES.match(called):
                yield root, True
            yield from ((name, True) for name in data if in_place)
        elif root in self._definitions:
            if statement:
                yield from ((name, True) for name in (*data, *({root} - {called})))
        elif isinstance(call.func, ast.Name):
            yield from ((name, True) for name in (data if in_place else [])[:1])
            if statement and root and root in self._made_from:
                yield root, True
        elif root and (statement or in_place):
            yield root, True
        if root not in self._packages:
            yield from ((name, True) for name in self._by_body(call, root))

    def _by_body(self, call: ast.Call, root: str | None) -> Iterator[str]:
        """What the body of the function that is called changes, if it is in the file."""
        given: list[tuple[_Place | None, ast.expr]] = [(-1, call.func), *enumerate(call.args)]
        given += [(keyword.arg, keyword.value) for keyword in call.keywords]
        for body in self._run_by(call):
            yield from self._outside.get(body, ())
            places = self._given.get(body, set())
            unsure = _ANY in places or (root in self._definitions and root != body)
            for place, value in given if places else ():
                if unsure or place in places or isinstance(value, ast.Starred):
                    yield from filter(self._is_data, _parts(value))

    def _run_by(self, call: ast.Call) -> list[str]:
        """The functions that a call may run, as `_Callable` names them."""
        name = _called(call)
        if isinstance(call.func, ast.Attribute):
            return [f".{name}"]
        if name in self._definitions:
            return [name]
        return [".__call__", ".forward"] if self._is_data(name) else []


@dataclass(frozen=True, slots=True)
class _Body:
    """A function, and what its body does.

    Args:
        called: It.
        inside: What is known of the names in it.
        reads: The names of the module that it reads.
        steps: The nodes of each of its statements, and the names that the statements before bind.
    """

    called: _Callable
    inside: Changes
    reads: set[str]
    steps: list[tuple[list[ast.AST], frozenset[str]]]


def _executed(nodes: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """The nodes that run when the statements do: not the bodies of what they define."""
    waiting = list(nodes)[::-1]
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            waiting += list(ast.iter_child_nodes(node))[::-1]


def _callables(node: Definition) -> Iterator[_Callable]:
    """A function, or the methods of a class."""
    if not isinstance(node, ast.ClassDef):
        yield _Callable(node.name, node)
        return
    for method in _executed(node.body):
        if isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef):
            parameters = [*method.args.posonlyargs, *method.args.args]
            static = any(_is_name(part, "staticmethod") for part in method.decorator_list)
            owner = parameters[0].arg if parameters and not static else ""
            name = node.name if method.name == "__init__" else f".{method.name}"
            yield _Callable(name, method, owner)


def _is_name(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


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


def _parts(node: ast.expr) -> set[str]:
    """The names that a value is, or is made of: all of them in `[a, b]` and in `f(a, b)`."""
    root = _root(node)
    return {root} if root else {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}


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
