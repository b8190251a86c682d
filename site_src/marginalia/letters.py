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
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from marginalia.demo import Shape
from marginalia.rows import trailing_comments

_Axes = tuple[str, ...]  # as written: letters, numbers, products, one "..." and "?" for unknown
_Label = tuple[str | None, ...]  # None where nothing is known, "" where a letter was refused
_Group = tuple[int, str]  # a line and a name
_Sizes = frozenset[tuple[str, int]]  # letters and their sizes that may hold together
_Function = ast.FunctionDef | ast.AsyncFunctionDef

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
    found = _Inference(records, _stated(records, source), source.arguments).labels()
    return {
        index: tuple(axis or str(size) for axis, size in zip(label, sizes, strict=True))
        for index, label in sorted(found.items())
        if any(label) and (sizes := records[index].sizes) is not None
    }


# What is written


_LETTER = re.compile(r"[^\W\d]\w*'*")
_WORD = re.compile(r"[^\W\d]\w*'*|\d+")
_PRODUCT = re.compile(r"(?:[^\W\d]\w*'*|\d+)(?:(?://|[*/+\-·×])(?:[^\W\d]\w*'*|\d+))+")
_PIECE = re.compile(r"(?:\([^()]*\)|[^\s()])+")
_BRACKETS = r"\[[^\[\]]*\](?:\s*,\s*\[[^\[\]]*\])*"
_ARROW = re.compile(rf"\s*({_BRACKETS})?\s*(?:->|→)\s*({_BRACKETS})(?=$|[\s,;.:(])([^\[\]]*)$")
_PLAIN = re.compile(rf"\s*({_BRACKETS})\s*$")


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


_KEEPS_SHAPE = frozenset(
    "abs bfloat16 bool celu clone contiguous cos cpu cuda detach double dropout elu erf exp float"
    " gelu half int log log_softmax long neg relu relu_ requires_grad_ rsqrt sigmoid silu sin"
    " softmax softplus sqrt square tanh to".split()
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
        if node.func.attr not in _KEEPS_SHAPE:
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
    node: ast.Call, inputs: Sequence[ast.expr], axes: type[None] | object
) -> _Pattern | None:
    raise NotImplementedError
