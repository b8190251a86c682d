"""The letters of recorded shapes: what each axis of a tensor is called, where that is certain.

What the author says on a line (a shape comment, an einops pattern) names its axes. From there
letters follow a tensor object to other lines, and within a call of a function they follow sizes
that belong to one letter only. An axis whose letter is in doubt shows its number.

A record stands for every run of its line that gave the same shape, and knows the call and the
object of the first run only. So what is inferred for a line that ran more than once must agree
with every combination of shapes that its function was seen with.
"""

from __future__ import annotations

import ast
import math
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from marginalia.demo import Shape
from marginalia.rows import trailing_comments

_Axes = tuple[str, ...]  # as written: letters, numbers, products, one "..." and "?" for unknown
_Label = tuple[str | None, ...]  # None where nothing is known, "" where a letter was refused
_Group = tuple[int, str]  # a line and a name
_Sizes = frozenset[tuple[str, int]]  # letters and their sizes that may hold together
_Frame = tuple[int, int]  # a function and one call of it
_Function = ast.FunctionDef | ast.AsyncFunctionDef
_LEAVES = (ast.Return, ast.Break, ast.Continue)
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)

_MAX_COMBINED = 256  # combinations of shapes that are compared; beyond, nothing is inferred
_MAX_DISTINCT = 6  # a line with more shapes, or more runs, is not recorded in full
_MAX_RUNS = 1000


def letters(
    text: str, shapes: Sequence[Shape], declared: Collection[str]
) -> dict[int, tuple[str, ...]]:
    """Find the letters of the axes of recorded tensors.

    Args:
        text: The source that ran; its prose and comments may have changed since.
        shapes: What was recorded.
        declared: The letters that the module declares.

    Returns:
        Position in `shapes` -> for each axis its letter, or its size as text. Tensors without
        any letter are left out.

    Raises:
        SourceError: The running Python does not parse the text.
    """
    comments = trailing_comments(text)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an invalid escape is the author's affair
        tree = ast.parse(text.removeprefix("\ufeff"))
    source = _Source(tree, comments, declared, {(shape.line, shape.name) for shape in shapes})
    records = [_record(shape, source) for shape in shapes]
    found = _Inference(records, _stated_labels(records, source), source.arguments).labels()
    return {
        index: tuple(
            axis or str(size) for axis, size in zip(label, records[index].sizes, strict=True)
        )
        for index, label in sorted(found.items())
        if any(label)
    }


# What is written


_LETTER = re.compile(r"[^\W\d]\w*'*")
_WORD = re.compile(r"[^\W\d]\w*'*|\d+")
_PRODUCT = re.compile(r"(?:[^\W\d]\w*'*|\d+)(?:(?://|[*/+\-·×])(?:[^\W\d]\w*'*|\d+))+")
_PIECE = re.compile(r"(?:\([^()]*\)|[^\s()])+")
_BRACKETS = r"\[[^\[\]]*\](?:\s*,\s*\[[^\[\]]*\])*"
_ARROW = re.compile(rf"\s*({_BRACKETS})?\s*(?:->|→)\s*({_BRACKETS})(?=$|[\s,;.:(])([^\[\]]*)$")
_BRACKETED = re.compile(rf"\s*{_BRACKETS}\s*$")


def _is_letter(axis: str | None) -> bool:
    return bool(axis and _LETTER.fullmatch(axis))


def _comment_axes(text: str) -> _Axes | None:
    """The axes in `b c h w` or `b, c, 4*d, (h w)`; None if that is no shape."""
    text = text.replace("′", "'").replace("’", "'").replace("…", "...")
    pieces = re.split(r",(?![^()]*\))", text) if "," in text else _PIECE.findall(text)
    axes = [_comment_axis(piece.strip()) for piece in pieces]
    return _one_ellipsis([axis for axis in axes if axis]) if all(axes) else None


def _comment_axis(piece: str) -> str:
    """One axis as it is shown; empty if it is none."""
    if piece == "..." or _WORD.fullmatch(piece):
        return piece
    if piece.startswith("(") and piece.endswith(")"):
        return _composite(piece)
    joined = "".join(piece.split())
    return joined if _PRODUCT.fullmatch(joined) else ""


def _composite(piece: str) -> str:
    """`(h w)` as it is shown; empty if there is more in it than letters and numbers."""
    words = piece[1:-1].split()
    return ("·".join(words) or "1") if all(map(_WORD.fullmatch, words)) else ""


def _one_ellipsis(axes: Iterable[str]) -> _Axes | None:
    found = tuple(axes)
    return found if found.count("...") <= 1 else None


def _bracketed(text: str | None) -> list[_Axes | None]:
    """The axes of each bracket in `[b n d], [b m d]`."""
    return [_comment_axes(inside) for inside in re.findall(r"\[([^\[\]]*)\]", text or "")]


def _einops_axes(text: str) -> _Axes | None:
    """The axes of one side of an einops pattern, or of one of its inputs."""
    pieces = re.findall(r"\([^()]*\)|[^\s()]+", text.replace("…", "..."))
    return _one_ellipsis(
        piece if piece == "..." or _WORD.fullmatch(piece) else _composite(piece) or "?"
        for piece in pieces
    )


def _einsum_axes(text: str) -> _Axes | None:
    """The axes of one tensor of `torch.einsum`, a letter each."""
    return _one_ellipsis(re.findall(r"\.\.\.|[A-Za-z]", text))


@dataclass(frozen=True, slots=True)
class _Pattern:
    """A call that names axes: those of its result, and those of each argument it takes."""

    inputs: list[tuple[ast.expr, _Axes | None]]
    output: _Axes | None


_KEEPS_SHAPE = re.compile(
    "abs|bfloat16|bool|celu|clone|contiguous|cos|cpu|cuda|detach|double|dropout|elu|erf|exp|float"
    "|gelu|half|int|log|log_softmax|long|neg|relu_?|requires_grad_|rsqrt|sigmoid|silu|sin|softmax"
    "|softplus|sqrt|square|tanh|to"
)


class _Names:
    """What the imported names of a module stand for.

    Args:
        tree: The module.
    """

    def __init__(self, tree: ast.Module) -> None:
        self._full: dict[str, str] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and not node.level:
                for alias in node.names:
                    self._full[alias.asname or alias.name] = f"{node.module}.{alias.name}"
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    top = alias.name.partition(".")[0]
                    self._full[alias.asname or top] = alias.name if alias.asname else top

    def pattern(self, node: ast.expr) -> _Pattern | None:
        """The pattern that names the axes of a value, if nothing around it changes its shape."""
        while (inner := self._unwrapped(node)) is not None:
            node = inner
        return self.call(node) if isinstance(node, ast.Call) else None

    def call(self, node: ast.Call) -> _Pattern | None:
        """The pattern of a call of einops or `torch.einsum`."""
        name = self._name(node.func)
        package, _, function = name.rpartition(".")
        if isinstance(node.func, ast.Call):
            layer = self._name(node.func.func)
            known = layer.startswith("einops.layers.") and layer.endswith((".Rearrange", ".Reduce"))
            return _pattern(node.func, node.args[:1], _einops_axes) if known else None
        if name == "torch.einsum":
            return _pattern(node, node.args[1:], _einsum_axes)
        if package.partition(".")[0] != "einops":
            return None
        if function == "einsum":
            return _pattern(node, node.args[:-1], _einops_axes)
        known = function in ("rearrange", "reduce", "repeat")
        return _pattern(node, node.args[:1], _einops_axes) if known else None

    def axes(self, node: ast.Call) -> Iterator[_Axes]:
        """All that a call of einops, or of one of its layers, says."""
        if self._name(node.func).startswith("einops.layers."):
            node = ast.Call(node, [ast.Constant(None)], [])
        if pattern := self.call(node):
            yield from (axes for _, axes in pattern.inputs if axes)
            yield from [pattern.output] if pattern.output else []

    def _name(self, node: ast.expr) -> str:
        """The full name of what an expression refers to; empty if nothing was imported."""
        if isinstance(node, ast.Name):
            return self._full.get(node.id, "")
        if isinstance(node, ast.Attribute) and (owner := self._name(node.value)):
            return f"{owner}.{node.attr}"
        return ""

    def _unwrapped(self, node: ast.expr) -> ast.expr | None:
        """The value inside an operation that keeps shapes."""
        if isinstance(node, ast.UnaryOp) and not isinstance(node.op, ast.Not):
            return node.operand
        if isinstance(node, ast.BinOp) and not isinstance(node.op, ast.MatMult):
            if self._is_scalar(node.right):
                return node.left
            return node.right if self._is_scalar(node.left) else None
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            return None
        if not _KEEPS_SHAPE.fullmatch(node.func.attr):
            return None
        name = self._name(node.func)
        if not name:
            return node.func.value
        return node.args[0] if name.startswith("torch.") and node.args else None

    def _is_scalar(self, node: ast.expr) -> bool:
        """Whether an expression is a number, for certain."""
        if isinstance(node, ast.Constant):
            return isinstance(node.value, int | float)
        if isinstance(node, ast.UnaryOp):
            return self._is_scalar(node.operand)
        if isinstance(node, ast.BinOp):
            return self._is_scalar(node.left) and self._is_scalar(node.right)
        if isinstance(node, ast.Subscript):
            sizes, index = node.value, node.slice
            of_shape = isinstance(sizes, ast.Attribute) and sizes.attr == "shape"
            return of_shape and not isinstance(index, ast.Slice)
        return isinstance(node, ast.Call) and self._name(node.func).startswith("math.")


def _pattern(
    node: ast.Call, inputs: Sequence[ast.expr], axes: Callable[[str], _Axes | None]
) -> _Pattern | None:
    """The pattern among the arguments of a call, with what it says of the `inputs`."""
    values = [*node.args, *(keyword.value for keyword in node.keywords)]
    texts = [value.value for value in values if isinstance(value, ast.Constant)]
    found = [text for text in texts if isinstance(text, str) and "->" in text]
    if len(found) != 1 or any(isinstance(value, ast.Starred) for value in inputs):
        return None
    left, _, right = found[0].partition("->")
    sides = left.split(",")
    pairs = zip(inputs, map(axes, sides), strict=True) if len(inputs) == len(sides) else ()
    return _Pattern(list(pairs), axes(right))


class _Source:
    """What a source says of the axes of its variables, and where these live.

    Args:
        tree: The module.
        comments: Its trailing comments, by line.
        declared: The letters that it declares.
        recorded: The lines and names that are known to hold tensors.

    Attributes:
        stated: For a line and a name the axes it should have, the most certain first.
        arguments: The lines and names that are arguments of functions.
    """

    def __init__(
        self,
        tree: ast.Module,
        comments: Mapping[int, str],
        declared: Collection[str],
        recorded: Collection[_Group],
    ) -> None:
        self.stated: dict[_Group, list[_Axes]] = defaultdict(list)
        self.arguments: set[_Group] = set()
        self._comments = comments
        self._names = _Names(tree)
        self._functions = [node for node in ast.walk(tree) if isinstance(node, _Function)]
        self._known = {*declared, *self._letters_of_calls(tree), *self._letters_of_signatures()}
        steps = [step for scope in (tree, *self._functions) for step in _steps(scope)]
        ends = Counter(step.line for step in steps)
        steps = [step for step in steps if ends[step.line] == 1]
        for step in steps:
            self._read_comment(step)
        for function in self._functions:
            self._read_signature(function, recorded)
        for step in steps:
            self._read_pattern(step)
        for step in steps:
            self._read_inputs(step)

    def scope(self, line: int) -> int:
        """The function that a line belongs to, as the line of its `def`; 0 for none."""
        holding = (f.lineno for f in self._functions if f.lineno <= line <= (f.end_lineno or 0))
        return max(holding, default=0)

    def _letters_of_calls(self, tree: ast.Module) -> Iterator[str]:
        calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
        for axes in (axes for call in calls for axes in self._names.axes(call)):
            yield from (axis for axis in axes if _is_letter(axis))
            yield from (part for axis in axes for part in axis.split("·") if _is_letter(part))

    def _letters_of_signatures(self) -> Iterator[str]:
        for function in self._functions:
            for axes in (axes for side in self._signature(function) for axes in side if axes):
                yield from (part for axis in axes for part in _WORD.findall(axis))

    def _signature(self, function: _Function) -> tuple[list[_Axes | None], list[_Axes | None]]:
        """What the shape comment behind a signature says of arguments and results."""
        for line in range(function.lineno, max(function.body[0].lineno, function.lineno + 1)):
            if found := _ARROW.match(self._comments.get(line, "")):
                arguments = _bracketed(found[1])
                return [] if arguments == [()] else arguments, _bracketed(found[2])
        return [], []

    def _read_signature(self, function: _Function, recorded: Collection[_Group]) -> None:
        names = _arguments(function)
        self.arguments |= {
            group for group in recorded if group[0] == function.lineno and _root(group[1]) in names
        }
        arguments, results = self._signature(function)
        tensors = _tensors(function, names, recorded)
        for name, axes in zip(tensors, arguments, strict=False):
            self._state((function.lineno, name), axes)
        returns = [step.line for step in _steps(function) if isinstance(step.node, ast.Return)]
        for line in returns:
            if len(results) == 1:
                self._state((line, "return"), results[0])
            elif _parts(line, recorded) == set(range(len(results))):
                for index, axes in enumerate(results):
                    self._state((line, f"return[{index}]"), axes)

    def _read_comment(self, step: _Step) -> None:
        """A shape comment behind an assignment or a `return`."""
        text = self._comments.get(step.line, "")
        if arrow := _ARROW.match(text):
            found = [] if arrow[3].strip() else _bracketed(arrow[2])
        else:
            found = _bracketed(text) if _BRACKETED.match(text) else [_comment_axes(text)]
        names = step.names()
        if isinstance(step.node, ast.Return) and len(found) > 1:
            names = [f"return[{index}]" for index in range(len(found))]
        if len(names) != len(found):
            return
        for name, axes in zip(names, found, strict=True):
            if axes and all(self._is_known(axis) for axis in axes):
                self._state((step.line, name), axes)

    def _is_known(self, axis: str) -> bool:
        words = _WORD.findall(axis)
        return axis == "..." or all(word.isdigit() or word in self._known for word in words)

    def _read_pattern(self, step: _Step) -> None:
        for name, value in step.values():
            if pattern := self._names.pattern(value):
                self._state((step.line, name), pattern.output)

    def _read_inputs(self, step: _Step) -> None:
        for _, value in step.values():
            pattern = self._names.pattern(value)
            for node, axes in pattern.inputs if pattern else ():
                if isinstance(node, ast.Name) and (line := step.bound(node.id)):
                    self._state((line, node.id), axes)

    def _state(self, group: _Group, axes: _Axes | None) -> None:
        if axes:
            self.stated[group].append(axes)


@dataclass(frozen=True, slots=True)
class _Step:
    """A statement that binds names or returns, with the blocks it stands in.

    Args:
        node: The statement.
        function: The function whose step it is.
        before: What runs before it in its block and in the `with` blocks around it, nearest last.
        whole: Whether these reach back to the start of the function.
    """

    node: ast.Assign | ast.AnnAssign | ast.AugAssign | ast.Return
    function: _Function | None
    before: tuple[ast.stmt, ...]
    whole: bool

    @property
    def line(self) -> int:
        """Where its tensors are recorded."""
        return self.node.end_lineno or self.node.lineno

    def names(self) -> list[str]:
        """The names that it binds, as they are recorded."""
        if isinstance(self.node, ast.Return):
            return ["return"]
        return [name for target in self._targets() for name in _bound(target)]

    def _targets(self) -> list[ast.expr]:
        if isinstance(self.node, ast.Return):
            return []
        return self.node.targets if isinstance(self.node, ast.Assign) else [self.node.target]

    def values(self) -> Iterator[tuple[str, ast.expr]]:
        """The names that it binds, each with the expression that is its value."""
        value = self.node.value
        if value is None or isinstance(self.node, ast.AugAssign):
            return
        items = value.elts if isinstance(value, ast.Tuple) else []
        if isinstance(self.node, ast.Return):
            yield "return", value
            yield from ((f"return[{index}]", item) for index, item in enumerate(items))
            return
        for target in (
            self.node.targets if isinstance(self.node, ast.Assign) else [self.node.target]
        ):
            if not isinstance(target, ast.Tuple | ast.List):
                yield from ((name, value) for name in _bound(target))
            elif len(target.elts) == len(items) and not _starred([*target.elts, *items]):
                for part, item in zip(target.elts, items, strict=True):
                    yield from ((name, item) for name in _bound(part))

    def bound(self, name: str) -> int:
        """The line that is sure to have bound the value that a name has here; 0 if none is."""
        for node in reversed(self.before):
            if name in _stored(node):
                simple = isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign)
                return (node.end_lineno or 0) if simple else 0
            if any(
                isinstance(part, ast.Return | ast.Break | ast.Continue) for part in _inside(node)
            ):
                return 0
        if self.function is None or not self.whole or name not in _arguments(self.function):
            return 0
        return self.function.lineno


def _steps(scope: ast.Module | _Function) -> Iterator[_Step]:
    """The statements of a function, or of a module, that bind names or return."""
    function = None if isinstance(scope, ast.Module) else scope
    blocks: list[tuple[list[ast.stmt], tuple[ast.stmt, ...], bool]] = [(scope.body, (), True)]
    while blocks:
        block, before, whole = blocks.pop()
        for node in block:
            if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign | ast.Return):
                yield _Step(node, function, before, whole)
            elif isinstance(node, ast.With):
                named = any(item.optional_vars for item in node.items)
                blocks.append((node.body, () if named else before, whole and not named))
            elif not isinstance(node, (*_FUNCTIONS, ast.ClassDef)):
                blocks += [(inner, (), False) for inner in _blocks(node)]
            before = (*before, node)


def _blocks(node: ast.stmt) -> Iterator[list[ast.stmt]]:
    for name in ("body", "orelse", "finalbody"):
        if inner := getattr(node, name, None):
            yield inner
    for part in (*getattr(node, "handlers", ()), *getattr(node, "cases", ())):
        yield part.body


def _inside(node: ast.stmt) -> Iterator[ast.AST]:
    """A statement and what it contains, functions left out."""
    waiting: list[ast.AST] = [node]
    while waiting:
        part = waiting.pop()
        yield part
        if not isinstance(part, (*_FUNCTIONS, ast.Lambda, ast.ClassDef)):
            waiting += ast.iter_child_nodes(part)


def _stored(node: ast.stmt) -> set[str]:
    """The names that a statement may bind."""
    parts = (part for part in _inside(node) if isinstance(part, ast.Name))
    return {part.id for part in parts if not isinstance(part.ctx, ast.Load)}


def _bound(target: ast.expr) -> Iterator[str]:
    """The names in a target, as they are recorded."""
    if isinstance(target, ast.Tuple | ast.List):
        for part in target.elts:
            yield from _bound(part)
    elif isinstance(target, ast.Starred):
        yield from _bound(target.value)
    elif isinstance(target, ast.Name):
        yield target.id
    elif isinstance(target, ast.Attribute):
        yield from (f"{name}.{target.attr}" for name in _bound(target.value))


def _starred(nodes: Iterable[ast.expr]) -> bool:
    return any(isinstance(node, ast.Starred) for node in nodes)


def _arguments(function: _Function) -> dict[str, ast.expr | None]:
    """The arguments of a function with their annotations, without `self`."""
    spec = function.args
    named = [*spec.posonlyargs, *spec.args]
    named = named[1:] if named and named[0].arg in ("self", "cls") else named
    rest = (spec.vararg, *spec.kwonlyargs, spec.kwarg)
    return {arg.arg: arg.annotation for arg in (*named, *rest) if arg}


def _tensors(
    function: _Function, names: Mapping[str, ast.expr | None], recorded: Collection[_Group]
) -> Iterator[str]:
    """The arguments that are tensors, in order, as far as that is certain."""
    here = {name for line, name in recorded if line == function.lineno}
    for name, annotation in names.items():
        if any(_root(other) == name != other for other in here):
            return  # a tuple or the like, of who knows how many
        if name in here or (annotation and "Tensor" in ast.unparse(annotation)):
            yield name


def _root(name: str) -> str:
    return re.split(r"[.\[]", name, maxsplit=1)[0]


def _parts(line: int, recorded: Collection[_Group]) -> set[int]:
    """The places of the tensors in the tuple that a line returns."""
    matches = (re.fullmatch(r"return\[(\d+)\]", name) for at, name in recorded if at == line)
    return {int(match[1]) for match in matches if match}


# What was recorded


@dataclass(frozen=True, slots=True)
class _Record:
    """What the inference uses of a recorded shape.

    Args:
        group: Its line and name; one with several shapes has several records.
        sizes: Its sizes.
        scope: The function it belongs to.
        call: The call in which it was seen first.
        object: The tensor that was seen first.
        count: How often it was seen.
        inferable: Whether its letters may come from elsewhere than its own line.
    """

    group: _Group
    sizes: tuple[int, ...]
    scope: int
    call: int
    object: int
    count: int
    inferable: bool

    @property
    def frame(self) -> _Frame:
        """The call in which it was seen first, with its function."""
        return self.scope, self.call


def _record(shape: Shape, source: _Source) -> _Record:
    scope = source.scope(shape.line)
    return _Record(
        group=(shape.line, shape.name),
        sizes=tuple(shape.shape),
        scope=scope,
        call=shape.call if scope else 0,
        object=shape.object,
        count=shape.count,
        inferable=shape.kind == "tensor" and not shape.note and bool(shape.shape),
    )


def _stated_labels(records: Sequence[_Record], source: _Source) -> dict[int, _Label]:
    """The labels that records have from what is written on their own lines."""
    labels = {}
    for index, record in enumerate(records):
        for axes in source.stated.get(record.group, ()):
            label = _fitted(axes, record.sizes)
            if label and any(label):
                labels[index] = label
                break
    return labels


def _fitted(axes: _Axes, sizes: tuple[int, ...]) -> _Label | None:
    """Axes as the label of a tensor; None if they do not fit its sizes."""
    if "..." in axes:
        missing = len(sizes) - len(axes) + 1
        at = axes.index("...")
        axes = (*axes[:at], *("?",) * missing, *axes[at + 1 :])
    if len(axes) != len(sizes):
        return None
    known: dict[str, int] = {}
    for axis, size in zip(axes, sizes, strict=True):
        if known.setdefault(axis, size) != size and axis != "?":
            return None
        if axis.isdigit() and int(axis) != size:
            return None
    return tuple(None if axis == "?" or axis.isdigit() else axis for axis in axes)


def _values(axis: str, sizes: Mapping[str, int]) -> set[int]:
    """The sizes that a product or quotient of letters may have; empty if that is unknown."""
    names: dict[str, Fraction] = {}

    def renamed(match: re.Match[str]) -> str:
        name = f"_{len(names)}"
        word = match[0]
        names[name] = Fraction(int(word) if word.isdigit() else sizes.get(word, -1))
        return name

    text = _WORD.sub(renamed, axis.replace("·", "*").replace("×", "*"))
    if any(value < 0 for value in names.values()):
        return set()
    value = _computed(ast.parse(text, mode="eval").body, names)
    return set() if value is None else {math.floor(value), math.ceil(value)}


def _computed(node: ast.expr, names: Mapping[str, Fraction]) -> Fraction | None:
    if isinstance(node, ast.Name):
        return names[node.id]
    if not isinstance(node, ast.BinOp):
        return None
    left, right = _computed(node.left, names), _computed(node.right, names)
    if left is None or right is None:
        return None
    if isinstance(node.op, ast.Add):
        return left + right
    if isinstance(node.op, ast.Sub):
        return left - right
    if isinstance(node.op, ast.Mult):
        return left * right
    if not right:
        return None
    return Fraction(left // right) if isinstance(node.op, ast.FloorDiv) else left / right


# What follows


class _Inference:
    """Spreads letters from the lines that state them.

    Args:
        records: What was recorded.
        stated: The labels of those whose own lines say them.
        arguments: The lines and names that are arguments of functions.
    """

    def __init__(
        self,
        records: Sequence[_Record],
        stated: dict[int, _Label],
        arguments: Collection[_Group],
    ) -> None:
        self._records = records
        self._arguments = arguments
        self._members: dict[_Group, list[int]] = defaultdict(list)
        self._same: dict[int, list[int]] = defaultdict(list)
        for index, record in enumerate(records):
            self._members[record.group].append(index)
            if record.object and record.inferable:
                self._same[record.object].append(index)
        self._stated = self._checked(self._consistent(stated))
        self._said: dict[_Frame, dict[str, int]] = defaultdict(dict)
        for index, label in self._stated.items():
            self._said[records[index].frame].update(self._letters(index, label))
        self._dropped: dict[_Frame, set[str]] = defaultdict(set)
        self._roots = dict(self._stated)  # what does not come from the same object
        self._labels: dict[int, _Label] = {}
        self._scopes: dict[int, list[_Group]] = {}
        self._combinations: dict[tuple[int, int | None, _Group], frozenset[_Sizes] | None] = {}

    def labels(self) -> dict[int, _Label]:
        """The label of every record that has one.

        Every round starts from what the last one found. A label may lose letters from round to
        round but never gains any, so this ends.
        """
        found: dict[int, _Label] = {}
        refused: set[int] = set()
        while True:
            self._labels = {**found, **self._stated}
            self._combinations.clear()
            self._scopes.clear()
            self._drop_letters(found)
            proposed, roots = self._proposed()
            following = {
                index: _common(found.get(index, label), label)
                for index, label in proposed.items()
                if index not in refused
            }
            following = {index: label for index, label in following.items() if any(label)}
            refused |= found.keys() - following.keys()
            roots = {i: _shared(roots[i], label) for i, label in following.items() if i in roots}
            roots = {**roots, **self._stated}
            if (following, roots) == (found, self._roots):
                return self._labels
            found, self._roots = following, roots

    def _drop_letters(self, inferred: Mapping[int, _Label]) -> None:
        """Note the letters that came to a call from elsewhere with two sizes."""
        sizes: dict[_Frame, dict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
        for index, label in inferred.items():
            frame = self._records[index].frame
            for letter, size in self._letters(index, label):
                if letter not in self._said[frame]:
                    sizes[frame][letter].add(size)
        for frame, known in sizes.items():
            self._dropped[frame] |= {letter for letter, found in known.items() if len(found) > 1}

    # What contradicts itself

    def _consistent(self, labels: dict[int, _Label]) -> dict[int, _Label]:
        """Labels without the letters that have two sizes in one call."""
        known: dict[_Frame, dict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
        for index, label in labels.items():
            for letter, size in self._letters(index, label):
                known[self._records[index].frame][letter].add(size)
        dropped: set[tuple[_Frame, str]] = set()
        for frame, sizes in known.items():
            for letter, values in sizes.items():
                possible = self._earlier(labels, frame, letter)
                if len(values) > 1 or (possible and not values <= possible):
                    dropped.add((frame, letter))
        return {
            index: tuple(
                "" if axis and (self._records[index].frame, axis) in dropped else axis
                for axis in label
            )
            for index, label in labels.items()
        }

    def _earlier(self, labels: Mapping[int, _Label], frame: _Frame, letter: str) -> set[int]:
        """The sizes that a letter may have in a call by an argument whose shape was seen before."""
        for group in self._arguments:
            members = [i for i in self._members[group] if self._records[i].scope == frame[0]]
            if any(self._records[i].call == frame[1] for i in members) or self._is_cut_off(group):
                continue
            earlier = (i for i in members if self._records[i].call < frame[1] and i in labels)
            sizes = [pair for index in earlier for pair in self._letters(index, labels[index])]
            if found := {size for name, size in sizes if name == letter}:
                return found
        return set()

    def _checked(self, labels: dict[int, _Label]) -> dict[int, _Label]:
        """Labels without those in which a product is not the product of its letters."""
        known: dict[_Frame, dict[str, int]] = defaultdict(dict)
        for index, label in labels.items():
            known[self._records[index].frame].update(self._letters(index, label))
        return {
            index: label
            for index, label in labels.items()
            if all(
                _is_letter(axis) or not axis or size in (_values(axis, known[frame]) or {size})
                for frame in [self._records[index].frame]
                for axis, size in zip(label, self._records[index].sizes, strict=True)
            )
        }

    def _letters(self, index: int, label: _Label) -> Iterator[tuple[str, int]]:
        """The single letters of a label with their sizes."""
        for axis, size in zip(label, self._records[index].sizes, strict=True):
            if axis and _is_letter(axis):
                yield axis, size

    # One round

    def _proposed(self) -> tuple[dict[int, _Label], dict[int, _Label]]:
        """The labels that follow now, and what of them follows from sizes."""
        proposed: dict[int, _Label] = {}
        roots: dict[int, _Label] = {}
        for members in self._alike():
            by_object = _agreed({i: label for i in members if (label := self._by_object(i))})
            by_size = _agreed({i: label for i in members if (label := self._by_size(i))})
            if len(by_size) < len(members):
                by_size = {}
            joined = {
                index: _filled(by_object.get(index), by_size.get(index))
                for index in (by_size or by_object)
            }
            proposed |= {i: label for i, label in _agreed(joined).items() if any(label)}
            roots |= by_size
        return proposed, roots

    def _alike(self) -> Iterator[list[int]]:
        """The records of a line and a name that have the same rank and state no label."""
        for members in self._members.values():
            by_rank: dict[int, list[int]] = defaultdict(list)
            for index in members:
                if self._records[index].inferable and index not in self._stated:
                    by_rank[len(self._records[index].sizes)].append(index)
            yield from by_rank.values()

    def _by_object(self, index: int) -> _Label | None:
        """The label that the same tensor has elsewhere, without the letters that are in doubt."""
        label = self._inherited(index)
        record = self._records[index]
        own, others = self._own(record), self._others(record)
        if label is None or own is None or others is None:
            return None
        dropped, said = self._dropped[record.frame], self._said[record.frame]
        label = tuple(
            "" if axis and (axis in dropped or said.get(axis, size) != size) else axis
            for axis, size in zip(label, record.sizes, strict=True)
        )
        for combination in own:
            label = _without_clashes(label, record.sizes, combination)
        for combination in others:  # those that a run with these sizes cannot have had do not count
            if _by_size(record.sizes, combination):
                label = _without_clashes(label, record.sizes, combination)
        return label

    def _inherited(self, index: int) -> _Label | None:
        """The label that the same tensor has elsewhere, preferably in the same call."""
        record = self._records[index]
        others = [
            other
            for other in self._same.get(record.object, ())
            if other != index
            and any(self._roots.get(other, ()))
            and self._records[other].sizes == record.sizes
        ]
        here = [other for other in others if self._records[other].frame == record.frame]
        label: _Label | None = None
        for other in here or others:  # what was refused there is unknown here
            label = _united(label, tuple(axis or None for axis in self._roots[other]))
        return label

    def _by_size(self, index: int) -> _Label | None:
        """The label whose letters have the sizes of a tensor in its call, and no others have.

        One other tensor of the call must have all these sizes, so that two letters which never
        meet do not come together by chance.
        """
        record = self._records[index]
        own, others = self._own(record), self._others(record)
        if own is None or others is None or not self._has_like(record):
            return None
        label: _Label | None = None
        for combination in own:
            seen = _by_size(record.sizes, combination)
            if seen is None:
                return None
            label = seen if label is None else _common(label, seen)
        for combination in others:
            seen = _by_size(record.sizes, combination)
            if label is not None and seen is not None:
                label = _common(label, seen)
        dropped = self._dropped[record.frame]
        return label and tuple("" if axis in dropped else axis for axis in label)

    def _has_like(self, record: _Record) -> bool:
        """Whether a labelled tensor of the same call has all the sizes of this one."""
        return any(
            _has_sizes(self._records[index].sizes, record.sizes)
            for group in self._labelled(record.scope)
            if group != record.group
            for index in self._possible(group, record.call) or ()
        )

    # Which sizes hold together

    def _own(self, record: _Record) -> frozenset[_Sizes] | None:
        """What the letters may have been in the call that a record is from."""
        return self._combined(record.scope, record.call, record.group)

    def _others(self, record: _Record) -> frozenset[_Sizes] | None:
        """What they may have been in other calls that the record stands for."""
        if record.count == 1:
            return frozenset()
        return self._combined(record.scope, None, record.group)

    def _combined(self, scope: int, call: int | None, without: _Group) -> frozenset[_Sizes] | None:
        """The sizes that the letters of a function may have together; None if that is unknown.

        Args:
            scope: The function.
            call: One call of it; None for any that was recorded.
            without: A line and name that has no say.
        """
        key = scope, call, without
        if key not in self._combinations:
            self._combinations[key] = self._combine(scope, call, without)
        return self._combinations[key]

    def _combine(self, scope: int, call: int | None, without: _Group) -> frozenset[_Sizes] | None:
        combined: set[_Sizes] = {frozenset()}
        for group in self._labelled(scope):
            if group == without:
                continue
            possible = self._possible(group, call)
            if possible is None:
                return None
            options = {self._sizes(index) for index in possible}
            combined = {
                joined
                for sizes in combined
                for joined in [sizes | o for o in options if _agree(sizes, o)] or [sizes]
            }
            if len(combined) > _MAX_COMBINED:
                return None
        return frozenset(combined)

    def _labelled(self, scope: int) -> list[_Group]:
        """The lines and names of a function that have labels."""
        if scope not in self._scopes:
            self._scopes[scope] = sorted(
                {
                    self._records[index].group
                    for index in self._labels
                    if self._records[index].scope == scope
                }
            )
        return self._scopes[scope]

    def _possible(self, group: _Group, call: int | None) -> list[int] | None:
        """The labelled records of a line and name that a call may have; None if that is unknown.

        A call that has none of its own had a shape that was seen before.
        """
        members = self._members[group]
        if call is not None:
            here = [i for i in members if self._records[i].call == call]
            if not here and self._is_cut_off(group):
                return None
            before = [i for i in members if self._records[i].call < call]
            members = here or (before if group in self._arguments else members)
        return [index for index in members if index in self._labels]

    def _sizes(self, index: int) -> _Sizes:
        """The letters of a label with their sizes; an empty one for sizes without a letter."""
        pairs = zip(self._labels[index], self._records[index].sizes, strict=True)
        return frozenset((axis or "", size) for axis, size in pairs if not axis or _is_letter(axis))

    def _is_cut_off(self, group: _Group) -> bool:
        """Whether a line and name may have had shapes that are not among the records."""
        members = self._members[group]
        runs = sum(self._records[index].count for index in members)
        return runs >= _MAX_RUNS or len(members) >= _MAX_DISTINCT


def _agree(some: _Sizes, others: _Sizes) -> bool:
    """Whether no letter has two sizes."""
    known = dict(some)
    return all(not letter or known.get(letter, size) == size for letter, size in others)


def _by_size(sizes: tuple[int, ...], combination: _Sizes) -> _Label | None:
    """The letters that sizes stand for; None if a size belongs to none, or a letter comes twice.

    A size that several letters have, or one that was refused, gives no letter.
    """
    owners: dict[int, set[str]] = defaultdict(set)
    for letter, size in combination:
        owners[size].add(letter)
    if any(size != 1 and size not in owners for size in sizes):
        return None
    label = tuple(
        next(iter(owners[size])) or None if size != 1 and len(owners[size]) == 1 else None
        for size in sizes
    )
    given = [axis for axis in label if axis]
    return label if len(given) == len(set(given)) else None


def _common(label: _Label, other: _Label) -> _Label:
    """A label with the letters that two agree on."""
    return tuple(a if a == b else "" for a, b in zip(label, other, strict=True))


def _shared(label: _Label, other: _Label) -> _Label:
    """A label without the letters that another does not have."""
    return tuple(a if a == b else None for a, b in zip(label, other, strict=True))


def _united(label: _Label | None, other: _Label) -> _Label:
    """A label with the letters of two, except where they differ."""
    if label is None:
        return other
    return tuple(
        a or b if a == b or not (a and b) else "" for a, b in zip(label, other, strict=True)
    )


def _filled(label: _Label | None, other: _Label | None) -> _Label:
    """A label with the letters of another where it knows nothing."""
    if label is None or other is None:
        return label or other or ()
    return tuple(b if a is None else a for a, b in zip(label, other, strict=True))


def _has_sizes(sizes: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether a shape has the wanted sizes above 1: all of its own, or some in the same order."""
    own, needed = ([size for size in some if size > 1] for some in (sizes, wanted))
    rest = iter(own)
    return sorted(own) == sorted(needed) or all(size in rest for size in needed)


def _without_clashes(label: _Label, sizes: tuple[int, ...], combination: _Sizes) -> _Label:
    """A label without the letters that have another size in the same call."""
    known = dict(combination)
    return tuple(
        "" if axis and known.get(axis, size) != size else axis
        for axis, size in zip(label, sizes, strict=True)
    )


def _agreed(labels: Mapping[int, _Label]) -> dict[int, _Label]:
    """The labels of one line and name, each axis with the same letter in all or with none."""
    columns = zip(*labels.values(), strict=True)
    axes = [{axis for axis in column if axis is not None} for column in columns]
    return {
        index: tuple(
            "" if len(found) > 1 or "" in found else axis
            for axis, found in zip(label, axes, strict=True)
        )
        for index, label in labels.items()
    }
