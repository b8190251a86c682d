"""What statements do to names: which they read, and which they bind for sure."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable

from marginalia.syntax import bindings, module_uses


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
