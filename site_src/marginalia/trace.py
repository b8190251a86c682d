"""Live shapes: which tensor each line of a page's own file made while its demo ran.

Hooks stand behind the statements that bind names, at the start of functions and around what they
return. Unlike `sys.settrace` they cost nothing elsewhere, see a statement exactly when it is done,
keep no frame and so no tensor alive, and step aside when a function is compiled or exported.
"""

from __future__ import annotations

import ast
import sys
import time
import types
import weakref
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count, islice
from typing import TYPE_CHECKING, Any, Literal

from marginalia.rewrite import (
    COMPREHENSIONS,
    SCOPES,
    Function,
    arguments,
    blocks,
    bound_names,
    hook,
    last_line,
    prologue,
    statement,
)
from marginalia.tensors import dtype_name, extent

if TYPE_CHECKING:
    import torch

MAX_SHAPES = 6  # distinct ones, for a name on a line
MAX_PARTS = 6  # of a tuple, a list, a dict or a module
MAX_SEEN = 1000  # runs of a line that are looked at: the rest cost nothing
MAX_LISTED = 200  # runs of one entry that are told apart
MAX_RANGES = 50  # tensors of one entry whose values are looked at
MAX_SCANNED = 50_000_000  # values that are looked at in all

Kind = Literal["tensor", "parameter"]


@dataclass(slots=True)
class Shape:
    """A tensor, as a line of the page's own file bound it.

    There is one for each line, name, shape and dtype.

    Attributes:
        line: Last line of the statement; the ``def`` line for an argument.
        name: Name as written (``z``, ``self.w``, ``parts[0]``), or ``return``.
        shape: Its sizes.
        dtype: Without the ``torch.`` in front.
        device: As torch names it.
        min: Least finite value, where one is known.
        max: Greatest finite value, where one is known.
        nan: How many values are not a number.
        kind: ``parameter`` for the weights of a module that was bound, else ``tensor``.
        count: How often it was seen, among the first thousand runs of the line.
        seen: For each of the first 200 times: the serial of the function call, 0 at the top level,
            and that of the tensor, the same for the same object. `count` tells if these are all.
        note: In words, where there is no single shape to show.
    """

    line: int
    name: str
    shape: list[int]
    dtype: str
    device: str
    min: float | None = None
    max: float | None = None
    nan: int = 0
    kind: Kind = "tensor"
    count: int = 0
    seen: list[list[int]] = field(default_factory=list)
    note: str = ""


@dataclass(slots=True)
class _Site:
    """A place in the code that shows tensors.

    Attributes:
        line: Where they are shown.
        names: Their names as written; ``self.x`` is looked up in the value given for ``self``.
        modules: Whether modules are shown by their weights, or not at all: where they are made,
            and not where they are used.
        seen: How often the place was reached.
    """

    line: int
    names: tuple[str, ...]
    modules: bool = True
    seen: int = 0


# Looking at values


def _joined(
    join: Callable[[float, float], float], known: float | None, new: float | None
) -> float | None:
    """The least or greatest of two values, either of which may be unknown."""
    return new if known is None else known if new is None else join(known, new)


def _resolved(name: str, value: Any) -> Any:
    """The value of ``self.w.x``, given that of ``self``: what is stored, no property is called.

    Raises:
        AttributeError: The value is not stored under this name.
    """
    for attribute in name.split(".")[1:]:
        value = _stored(value, attribute)
    return value


def _stored(thing: Any, name: str) -> Any:
    slot = getattr(type(thing), name, None)
    if isinstance(slot, types.MemberDescriptorType):
        return slot.__get__(thing)
    stored = object.__getattribute__(thing, "__dict__")
    for names in (stored, *(stored.get(g, {}) for g in ("_parameters", "_buffers", "_modules"))):
        if name in names:
            return names[name]
    raise AttributeError(name)


def _tensors(name: str, value: Any) -> Iterator[tuple[str, Any, Kind]]:
    """The tensors in a value, by name; a module with many weights stands for all of them."""
    import torch

    if not isinstance(value, torch.nn.Module):
        yield from islice(_parts(name, value, depth=2), MAX_PARTS)
        return
    weights = list(torch.nn.Module.named_parameters(value))
    if len(weights) > MAX_PARTS:
        yield name, value, "parameter"
    else:
        for part, weight in weights:
            yield f"{name}.{part}", weight, "parameter"


def _parts(name: str, value: Any, depth: int) -> Iterator[tuple[str, Any, Kind]]:
    import torch

    if isinstance(value, torch.Tensor):
        yield name, value, "parameter" if isinstance(value, torch.nn.Parameter) else "tensor"
    elif depth:
        for part, item in islice(_items(value), 64):
            yield from _parts(name + part, item, depth - 1)


def _items(value: Any) -> Iterator[tuple[str, Any]]:
    """The items of a builtin container, with how each is written behind its name."""
    if isinstance(value, tuple):
        # Named tuples say their names, and so do torch's, as in `x.max(0).values`
        fields = getattr(value, "_fields", ()) or getattr(value, "__match_args__", ())
        names = [f".{name}" for name in fields] or (f"[{i}]" for i in count())
        yield from zip(names, tuple.__iter__(value), strict=False)
    elif type(value) is list:
        yield from ((f"[{i}]", item) for i, item in enumerate(value))
    elif type(value) in (dict, OrderedDict):
        yield from ((f"[{key!r}]", item) for key, item in value.items())


def _described(line: int, name: str, found: Any, kind: Kind) -> Shape:
    """An entry without serials and range.

    Raises:
        TypeError: A size is symbolic: to ask for its value would change what is compiled.
    """
    import torch

    if isinstance(found, torch.nn.Module):
        weights = list(torch.nn.Module.parameters(found))
        total = sum(weight.numel() for weight in weights)
        note = f"{len(weights):,} tensors, {total:,} values"
        first = weights[0]
        return Shape(line, name, [], dtype_name(first), str(first.device), kind=kind, note=note)
    sizes = list(found.shape)
    if any(type(size) is not int for size in sizes):
        raise TypeError(sizes)
    return Shape(line, name, sizes, dtype_name(found), str(found.device), kind=kind)


class Trace:
    """The shapes of one page: puts hooks into its tree, and keeps what they see.

    Args:
        lines: The lines of the source.
    """

    def __init__(self, lines: Sequence[str]) -> None:
        self._lines = lines
        self._sites: list[_Site] = []
        self._shapes: dict[tuple[object, ...], Shape] = {}
        self._distinct: Counter[tuple[int, str]] = Counter()
        self._objects: dict[int, tuple[weakref.ref[object], int]] = {}
        self._serials = count(1)
        self._calls: dict[int, tuple[types.CodeType, int]] = {}
        self._call_serials = count(1)
        self._scanned = 0
        self.seconds = 0.0

    def rewrite(self, tree: ast.Module) -> None:
        """Put hooks into a tree, in place."""
        _Pass(self._lines, self._sites).module(tree)

    def hooks(self) -> dict[str, Callable[..., Any]]:
        """What the rewritten code calls."""
        import torch

        compiling = torch.compiler.is_compiling
        sites, calls, look = self._sites, self._calls, self._look
        frame = sys._getframe

        def call_of(running: types.FrameType) -> int:
            code, call = calls.get(id(running), (None, 0))
            return call if code is running.f_code else 0  # a frame that is gone had this address

        # A compiler that reads these functions must find the test first: it drops what follows.
        def bind(number: int, *values: Any) -> None:
            if compiling():
                return
            site = sites[number]
            site.seen += 1
            if site.seen <= MAX_SEEN:
                look(site, values, call_of(frame(1)))

        def enter(number: int, *values: Any) -> None:
            if compiling():
                return
            site = sites[number]
            site.seen += 1
            running, call = frame(1), next(self._call_serials)
            calls[id(running)] = running.f_code, call
            if site.seen <= MAX_SEEN:
                look(site, values, call)

        def through(number: int, value: Any) -> Any:
            if compiling():
                return value
            site = sites[number]
            site.seen += 1
            if site.seen <= MAX_SEEN:
                look(site, (value,), call_of(frame(1)))
            return value

        return {"bind": bind, "enter": enter, "through": through}

    def found(self) -> list[Shape]:
        """What was seen, in order of lines."""
        return sorted(self._shapes.values(), key=lambda shape: shape.line)

    def _look(self, site: _Site, values: tuple[Any, ...], call: int) -> None:
        """Note the tensors among values; what cannot be looked at is left out."""
        import torch

        start = time.perf_counter()
        for name, value in zip(site.names, values, strict=True):
            with suppress(Exception), torch._C.DisableTorchFunction():
                value = _resolved(name, value)
                if isinstance(value, torch.nn.Module) and not site.modules:
                    continue
                for part, tensor, kind in _tensors(name, value):
                    self._note(site.line, part, tensor, kind, call)
        self.seconds += time.perf_counter() - start

    def _note(self, line: int, name: str, found: Any, kind: Kind, call: int) -> None:
        shape = _described(line, name, found, kind)
        key = (line, name, tuple(shape.shape), shape.dtype, shape.note)
        if key not in self._shapes:
            if self._distinct[line, name] == MAX_SHAPES:
                return
            self._distinct[line, name] += 1
        shape = self._shapes.setdefault(key, shape)
        shape.count += 1
        if shape.count <= MAX_LISTED:
            shape.seen.append([call, self._serial(found)])
        if shape.count <= MAX_RANGES and not shape.note:
            self._scan(shape, found)

    def _scan(self, shape: Shape, tensor: torch.Tensor) -> None:
        """Widen the range of an entry to the values of one more tensor."""
        size = tensor.numel()
        if self._scanned + size > MAX_SCANNED:
            return
        with suppress(Exception):
            if seen := extent(tensor):
                self._scanned += size
                shape.min = _joined(min, shape.min, seen.min)
                shape.max = _joined(max, shape.max, seen.max)
                shape.nan = max(shape.nan, seen.nan)

    def _serial(self, thing: object) -> int:
        """A number for an object, without keeping it alive: its address may be used again."""
        known = self._objects.get(id(thing))
        if known is not None and known[0]() is thing:
            return known[1]
        serial = next(self._serials)
        self._objects[id(thing)] = (weakref.ref(thing), serial)
        return serial


# The pass over the tree


class _Pass:
    """Puts hooks behind, before and into the statements that bind names."""

    def __init__(self, lines: Sequence[str], sites: list[_Site]) -> None:
        self._lines = lines
        self._sites = sites

    def module(self, tree: ast.Module) -> None:
        """Rewrite a module in place."""
        first = prologue(tree.body)
        _Walrus(self._lines, self._site).block(tree.body)
        tree.body[first:] = self._block(tree.body[first:])

    def _site(self, line: int, *names: str, modules: bool = True) -> int:
        self._sites.append(_Site(line, names, modules))
        return len(self._sites) - 1

    def _block(self, body: list[ast.stmt]) -> list[ast.stmt]:
        """A list of statements with hooks in it, and in all that they contain."""
        done: list[ast.stmt] = []
        for node in body:
            self._inside(node)
            done.append(node)
            if isinstance(node, ast.Return) and node.value:
                site = self._site(last_line(node, self._lines), "return", modules=False)
                node.value = hook("through", site, node.value, at=node.value)
            done += self._bind(last_line(node, self._lines), _assigned(node), node)
        return done

    def _inside(self, node: ast.stmt) -> None:
        """Rewrite what a statement contains."""
        if isinstance(node, Function):
            self._function(node)
        elif isinstance(node, ast.ClassDef):
            self._definitions(node.body)
        line = last_line(node, self._lines)
        bound = self._bind(line, _bound_by_header(node), node, modules=False)
        for block in blocks(node):
            block[:] = self._block(block)
        if bound and isinstance(node, ast.For | ast.With):
            node.body[:0] = bound
        for case in node.cases if isinstance(node, ast.Match) else ():
            line = case.pattern.end_lineno or node.lineno
            case.body[:0] = self._bind(line, _captured(case), node, modules=False)

    def _definitions(self, body: list[ast.stmt]) -> None:
        """Rewrite the functions among statements, and leave the statements alone."""
        for node in body:
            if isinstance(node, Function):
                self._function(node)
            elif isinstance(node, ast.ClassDef):
                self._definitions(node.body)
            for block in blocks(node):
                self._definitions(block)

    def _function(self, node: Function) -> None:
        if _compiles_elsewhere(node):
            return
        if isinstance(node, ast.AsyncFunctionDef) or _is_generator(node):
            self._definitions(node.body)
            return
        first = prologue(node.body)
        names = [arg.arg for arg in arguments(node)]
        site = self._site(node.lineno, *names, modules=False)
        values = [ast.Name(name, ast.Load()) for name in names]
        _Walrus(self._lines, self._site).block(node.body)
        enter = statement("enter", site, *values, at=node)
        node.body[first:] = [enter, *self._block(node.body[first:])]

    def _bind(
        self, line: int, targets: Sequence[ast.expr], at: ast.stmt, *, modules: bool = True
    ) -> list[ast.stmt]:
        """The hook behind a statement that binds targets; none if they have no names."""
        named = {name: root for target in targets for name, root in bound_names(target)}
        if not named:
            return []
        roots = [ast.Name(root, ast.Load()) for root in named.values()]
        return [statement("bind", self._site(line, *named, modules=modules), *roots, at=at)]


class _Walrus(ast.NodeTransformer):
    """Puts hooks into the `:=` of one scope."""

    def __init__(self, lines: Sequence[str], site: Callable[..., int]) -> None:
        self._lines = lines
        self._site = site
        self._line = 0

    def block(self, body: list[ast.stmt]) -> None:
        """Rewrite the statements of a scope in place."""
        body[:] = [self.visit(node) for node in body]

    def visit(self, node: ast.AST) -> Any:
        if isinstance(node, (*SCOPES, *COMPREHENSIONS)):
            return node
        if isinstance(node, ast.stmt):
            self._line = last_line(node, self._lines)
        return super().visit(node)

    def visit_NamedExpr(self, node: ast.NamedExpr) -> ast.NamedExpr:
        self.generic_visit(node)
        site = self._site(self._line, node.target.id)
        node.value = hook("through", site, node.value, at=node.value)
        return node


def _assigned(node: ast.stmt) -> list[ast.expr]:
    """What a statement has bound when it is done."""
    if isinstance(node, ast.Assign):
        return node.targets
    if isinstance(node, ast.AugAssign) or (isinstance(node, ast.AnnAssign) and node.value):
        return [node.target]
    return []


def _bound_by_header(node: ast.stmt) -> list[ast.expr]:
    """What a `for` or `with` has bound when its body starts."""
    if isinstance(node, ast.For):
        return [node.target]
    if isinstance(node, ast.With):
        return [item.optional_vars for item in node.items if item.optional_vars]
    return []


def _captured(case: ast.match_case) -> list[ast.expr]:
    """What a pattern has bound when its body starts."""
    captures = (n for n in ast.walk(case.pattern) if isinstance(n, ast.MatchAs | ast.MatchStar))
    return [ast.Name(capture.name, ast.Store()) for capture in captures if capture.name]


def _is_generator(node: Function) -> bool:
    """Whether a function itself yields; one inside it does not count."""
    waiting: list[ast.AST] = list(node.body)
    while waiting:
        part = waiting.pop()
        if isinstance(part, ast.Yield | ast.YieldFrom):
            return True
        if not isinstance(part, SCOPES):
            waiting += ast.iter_child_nodes(part)
    return False


def _compiles_elsewhere(node: Function) -> bool:
    """Whether a decorator hands the function to a compiler that might not know our hooks."""
    names = (
        getattr(part, "id", "") or getattr(part, "attr", "")
        for decorator in node.decorator_list
        for part in ast.walk(decorator)
    )
    return any("jit" in name or name in ("vectorize", "guvectorize", "stencil") for name in names)
