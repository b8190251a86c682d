"""Claims: conditions that a demo checks, with the values of both sides.

An ``assert`` keeps its meaning. Each operand goes through a hook that keeps its value, and the
whole condition goes through one that writes down how it ended::

    assert a < b, m        assert check(7, value(7, 0, a) < value(7, 1, b)), m
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from marginalia.rewrite import SCOPES, demo_of, hook, source_of
from marginalia.rows import trailing_comments
from marginalia.values import difference_of, summary


@dataclass(slots=True)
class Claim:
    """A condition that the demo checked.

    Attributes:
        line: First line of the statement.
        end_line: Its last line.
        text: Source of the condition, on one line.
        operator: What joins the sides (``==``, ``in``, ``≈``); empty for a plain truth value.
        left: Value of the left side, in short.
        right: Value of the right side, in short; all further operands of a chain.
        ok: Whether it held, every time.
        source: Trailing comment: where the paper says so.
        times: How often it was checked; the values are those of the last time, or of the failure.
        note: What else was measured: the largest difference of two tensors.
    """

    line: int
    end_line: int
    text: str
    operator: str
    left: str
    right: str
    ok: bool
    source: str = ""
    times: int = 1
    note: str = ""


def claim_source(text: str, claim: Claim) -> str:
    """The trailing comment of a claim, read from the source as it is now; the last one wins.

    Args:
        text: The source of the page.
        claim: A claim with the lines that it has in this text.

    Raises:
        SourceError: The text does not parse.
    """
    return _comment(trailing_comments(text), claim.line, claim.end_line)


def _comment(comments: Mapping[int, str], first: int, last: int) -> str:
    found = [comments[line] for line in range(first, last + 1) if comments.get(line)]
    return found[-1] if found else ""


# Conditions

_OPERATORS: dict[type[ast.cmpop], str] = {
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.Is: "is",
    ast.IsNot: "is not",
    ast.In: "in",
    ast.NotIn: "not in",
}

# Functions that compare their first two arguments and give a truth value
_COMPARE = {"allclose": "≈", "isclose": "≈", "equal": "==", "array_equal": "=="}
_LIBRARIES = ("torch", "np", "numpy", "math")

# Functions that raise if two values differ
_CHECKS = {
    "assert_close": "≈",
    "assert_allclose": "≈",
    "assert_almost_equal": "≈",
    "assert_array_almost_equal": "≈",
    "assert_array_equal": "==",
    "assert_equal": "==",
    "assert_array_less": "<",
}
_MISSING = "…"  # an operand that was never reached


@dataclass(frozen=True, slots=True)
class _Operand:
    slot: int


@dataclass(frozen=True, slots=True)
class _Chain:
    operators: tuple[str, ...]
    operands: tuple[_Operand, ...]


@dataclass(frozen=True, slots=True)
class _Not:
    part: _Condition


@dataclass(frozen=True, slots=True)
class _Joined:
    operator: str
    parts: tuple[_Condition, ...]


_Condition = _Operand | _Chain | _Not | _Joined
_Values = Mapping[int, str]


def _sides(condition: _Condition, values: _Values) -> tuple[str, str, str]:
    """What stands left of the operator, the operator, and what stands right of it."""
    match condition:
        case _Operand(slot):
            return values.get(slot, _MISSING), "", ""
        case _Chain((first, *others), (start, *operands)):
            shown = [values.get(operand.slot, _MISSING) for operand in operands]
            rest = (f" {o} {v}" for o, v in zip(others, shown[1:], strict=True))
            return values.get(start.slot, _MISSING), first, "".join((shown[0], *rest))
        case _Not(part):
            left, operator, right = _sides(part, values)
            return left, f"not {operator}".strip(), right
        case _Joined(operator, (first_part, *parts)):
            right = f" {operator} ".join(_written(part, values) for part in parts)
            return _written(first_part, values), operator, right
    raise AssertionError(condition)


def _written(condition: _Condition, values: _Values) -> str:
    left, operator, right = _sides(condition, values)
    if operator == "not":
        return f"not {left}"
    text = " ".join(part for part in (left, operator, right) if part)
    return f"({text})" if isinstance(condition, _Joined) else text


class _Slots:
    """Puts a hook around each operand of one condition."""

    def __init__(self, claim: int) -> None:
        self.claim = claim
        self.count = 0

    def wrap(self, node: ast.expr) -> tuple[ast.expr, _Condition]:
        """A condition with hooks in it, and how to read what they keep."""
        if isinstance(node, ast.Compare):
            kept = [self.keep(operand) for operand in (node.left, *node.comparators)]
            node.left, *node.comparators = [operand for operand, _ in kept]
            operators = tuple(_OPERATORS[type(operator)] for operator in node.ops)
            return node, _Chain(operators, tuple(operand for _, operand in kept))
        if isinstance(node, ast.BoolOp):
            wrapped = [self.wrap(value) for value in node.values]
            node.values = [value for value, _ in wrapped]
            operator = "and" if isinstance(node.op, ast.And) else "or"
            return node, _Joined(operator, tuple(part for _, part in wrapped))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            node.operand, part = self.wrap(node.operand)
            return node, _Not(part)
        if operator := _comparison(node):
            assert isinstance(node, ast.Call)
            first, second, *rest = node.args
            (first, left), (second, right) = self.keep(first), self.keep(second)
            node.args = [first, second, *rest]
            return node, _Chain((operator,), (left, right))
        return self.keep(node)

    def keep(self, node: ast.expr) -> tuple[ast.expr, _Operand]:
        """One operand with its hook."""
        slot = self.count
        self.count += 1
        return hook("value", self.claim, slot, node, at=node), _Operand(slot)


def _comparison(node: ast.expr) -> str:
    """The operator of a call such as ``torch.allclose(a, b)``; empty for other expressions."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return ""
    module = node.func.value
    plain = len(node.args) >= 2 and not any(isinstance(a, ast.Starred) for a in node.args[:2])
    known = isinstance(module, ast.Name) and module.id in _LIBRARIES
    return _COMPARE.get(node.func.attr, "") if plain and known else ""


# The pass over the tree


class Claims:
    """The claims of one page: finds them in its tree, and keeps how they went.

    Args:
        text: The source of the page.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._comments = trailing_comments(text)
        self._kept: list[_Kept] = []
        self._values: dict[int, dict[int, Any]] = {}

    def rewrite(self, tree: ast.Module, *, script: bool) -> None:
        """Put hooks into the claims of a tree.

        Args:
            tree: The page's tree, changed in place.
            script: Whether its claims stand at the top level and not in ``demo``.
        """
        pass_ = _Pass(self, tree, top_level=script)
        if script:
            tree.body = [pass_.visit(node) for node in tree.body]
        elif demo := demo_of(tree):
            demo.body = [pass_.visit(node) for node in demo.body]

    def hooks(self) -> dict[str, Callable[..., Any]]:
        """What the rewritten code calls."""
        return {
            "value": self._value,
            "check": self._check,
            "message": self._message,
            "close": self._close,
        }

    def found(self) -> list[Claim]:
        """The claims that were checked, in order of lines."""
        checked = [kept.finished() for kept in self._kept if kept.claim.times]
        return sorted(checked, key=lambda claim: claim.line)

    def add(self, statement: ast.expr | ast.stmt, condition: ast.expr) -> int:
        """Make room for a claim; gives its number."""
        first, last = statement.lineno, statement.end_lineno or statement.lineno
        source = _comment(self._comments, first, last)
        text = source_of(condition, self._text)
        claim = Claim(first, last, text, "", "", "", True, source, times=0)
        self._kept.append(_Kept(claim))
        return len(self._kept) - 1

    def reads(self, number: int, condition: _Condition) -> None:
        """Say how the values of a claim join to a condition."""
        self._kept[number].condition = condition

    def _value(self, number: int, slot: int, value: Any) -> Any:
        self._values.setdefault(number, {})[slot] = value
        return value

    def _check(self, number: int, result: Any) -> bool:
        values = self._values.pop(number, {})
        ok = bool(result)
        self._kept[number].ended(ok, values)
        return ok

    def _message(self, number: int) -> str:
        claim = self._kept[number].finished()
        values = f"left {claim.left}, right {claim.right}" if claim.right else f"it is {claim.left}"
        return f"{claim.text}: {values}"

    def _close(self, number: int, function: Any, *args: Any, **kwargs: Any) -> Any:
        """Call a function, and keep the call as a claim if it checks that two values agree."""
        operator = _checks(function)
        sides = _arguments(args, kwargs)
        if not operator or sides is None:
            return function(*args, **kwargs)
        kept, values = self._kept[number], dict(enumerate(sides))
        kept.condition = _Chain((operator,), (_Operand(0), _Operand(1)))
        ok = False
        try:
            result = function(*args, **kwargs)
            ok = True
        finally:
            if ok or isinstance(sys.exception(), AssertionError):
                kept.ended(ok, values)
                kept.differs(*sides)
        return result


@dataclass(slots=True)
class _Kept:
    """A claim while the demo runs: plain numbers stay as they are until somebody reads them."""

    claim: Claim
    condition: _Condition = field(default_factory=lambda: _Operand(0))
    values: dict[int, Any] = field(default_factory=dict)
    difference: float | None = None

    def ended(self, ok: bool, values: Mapping[int, Any]) -> None:
        """Count one check; the values of a failure stay."""
        self.claim.times += 1
        if self.claim.ok:
            self.claim.ok = ok
            self.values = {
                slot: value if type(value) in _PLAIN else _Text(summary(value))
                for slot, value in values.items()
            }

    def differs(self, left: Any, right: Any) -> None:
        """Note the largest difference so far."""
        difference = difference_of(left, right)
        if difference is not None:
            self.difference = max(difference, self.difference or 0.0)
            self.claim.note = f"largest difference {self.difference:.2g}"

    def finished(self) -> Claim:
        """The claim with its values in words."""
        shown = {
            slot: value if isinstance(value, _Text) else summary(value)
            for slot, value in self.values.items()
        }
        claim = self.claim
        claim.left, claim.operator, claim.right = _sides(self.condition, shown)
        return claim


class _Text(str):
    """A value in words already."""


_PLAIN = (bool, int, float, str, type(None))


def _checks(function: Any) -> str:
    """The operator of a function that raises if two values differ; empty for other functions."""
    module = str(getattr(function, "__module__", ""))
    if not module.startswith(("torch.testing", "numpy.testing")):
        return ""
    return _CHECKS.get(getattr(function, "__name__", ""), "")


def _arguments(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, Any] | None:
    """The two values that a check compares, by place or by any of their usual names."""
    names = ("actual", "x", "desired", "expected", "y")
    named = {name: kwargs[name] for name in names if name in kwargs}
    both = (*args[:2], *named.values())
    return (both[0], both[1]) if len(both) >= 2 else None


class _Pass(ast.NodeTransformer):
    """Puts the hooks of claims into statements.

    Args:
        claims: Where the claims are kept.
        tree: The whole module, for its imports.
        top_level: Whether functions and classes are left alone.
    """

    def __init__(self, claims: Claims, tree: ast.Module, *, top_level: bool) -> None:
        self._claims = claims
        self._names = set(_CHECKS) | _aliases(tree)
        self._top_level = top_level

    def visit(self, node: ast.AST) -> Any:
        if self._top_level and isinstance(node, SCOPES):
            return node
        return super().visit(node)

    def visit_Assert(self, node: ast.Assert) -> ast.Assert:
        number = self._claims.add(node, node.test)
        self.generic_visit(node)
        condition, reads = _Slots(number).wrap(node.test)
        self._claims.reads(number, reads)
        node.test = hook("check", number, condition, at=node)
        node.msg = node.msg or hook("message", number, at=node)
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        called = node.func
        name = called.id if isinstance(called, ast.Name) else getattr(called, "attr", "")
        if name not in self._names:
            return self.generic_visit(node)
        number = self._claims.add(node, node)
        self.generic_visit(node)
        call = hook("close", number, node.func, at=node)
        call.args += node.args
        call.keywords = node.keywords
        return call


def _aliases(tree: ast.Module) -> set[str]:
    """Other names under which the module imports the functions that check."""
    return {
        alias.asname
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname and alias.name in _CHECKS
    }
