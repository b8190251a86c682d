"""What the passes over a page's syntax tree share: calls to hooks, blocks, and how lines count.

A pass (see `capture`, `claims`, `trace`) adds calls of hooks to the tree before it is compiled.
Hooks are builtins with reserved names, so that no namespace of the page shows them.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

Function = ast.FunctionDef | ast.AsyncFunctionDef
SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def install(hooks: Mapping[str, Callable[..., Any]]) -> None:
    """Make hooks reachable from the page's code."""
    for name, hook in hooks.items():
        setattr(builtins, _hidden(name), hook)


def hook(name: str, *args: int | bool | ast.expr, at: ast.AST) -> ast.Call:
    """The call of a hook, with the place of another node.

    Args:
        name: The hook's name in `install`.
        *args: Constants, and expressions that stand where they stood before.
        at: Where the call says that it is.
    """
    values = [arg if isinstance(arg, ast.expr) else ast.Constant(arg) for arg in args]
    call = ast.Call(ast.Name(_hidden(name), ast.Load()), values, [])
    for node in (call, call.func, *values):
        if not hasattr(node, "lineno"):
            ast.copy_location(node, at)
    return call


def statement(name: str, *args: int | bool | ast.expr, at: ast.AST) -> ast.Expr:
    """The call of a hook as a statement."""
    return ast.copy_location(ast.Expr(hook(name, *args, at=at)), at)


def _hidden(name: str) -> str:
    return f"__mg_{name}__"


def demo_of(tree: ast.Module) -> ast.FunctionDef | None:
    """The module's function ``demo``: the last one, as in Python."""
    found = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "demo"]
    return found[-1] if found else None


def blocks(node: ast.stmt) -> Iterator[list[ast.stmt]]:
    """The lists of statements in a compound statement; those of a function or class are its own."""
    if isinstance(node, SCOPES):
        return
    for name in ("body", "orelse", "finalbody"):
        if block := getattr(node, name, None):
            yield block
    for part in (*getattr(node, "handlers", ()), *getattr(node, "cases", ())):
        yield part.body


def prologue(body: Sequence[ast.stmt]) -> int:
    """How many statements must stay first: the docstring and imports from ``__future__``."""
    count = 0
    for node in body:
        docstring = count == 0 and isinstance(node, ast.Expr) and _is_text(node.value)
        future = isinstance(node, ast.ImportFrom) and node.module == "__future__"
        if not docstring and not future:
            break
        count += 1
    return count


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def bound_names(target: ast.expr) -> Iterator[tuple[str, str]]:
    """The names in a target, as written, each with the variable that it starts from."""
    if isinstance(target, ast.Tuple | ast.List):
        for part in target.elts:
            yield from bound_names(part)
    elif isinstance(target, ast.Starred):
        yield from bound_names(target.value)
    elif isinstance(target, ast.Name):
        yield target.id, target.id
    elif isinstance(target, ast.Attribute):
        for name, root in bound_names(target.value):
            yield f"{name}.{target.attr}", root


def arguments(function: Function) -> list[ast.arg]:
    """The arguments of a function, without `self`."""
    spec = function.args
    named = [*spec.posonlyargs, *spec.args]
    named = named[1:] if named and named[0].arg in ("self", "cls") else named
    return [arg for arg in (*named, spec.vararg, *spec.kwonlyargs, spec.kwarg) if arg]


def last_line(node: ast.stmt, lines: Sequence[str]) -> int:
    """The line under which a statement's own effects go: its last, or that of its header."""
    inner = _first_inner_line(node)
    if inner is None:
        return node.end_lineno or node.lineno
    line = max(inner - 1, node.lineno)
    while line > node.lineno and lines[line - 1].partition("#")[0].strip() == "":
        line -= 1
    return line


def _first_inner_line(node: ast.stmt) -> int | None:
    """Where the body of a compound statement starts."""
    if isinstance(node, ast.Match):
        return node.cases[0].pattern.lineno
    body = getattr(node, "body", None)
    return min(first_line(n) for n in body) if body else None


def first_line(node: ast.stmt) -> int:
    """The first line of a statement, decorators included."""
    decorators = getattr(node, "decorator_list", [])
    return min(node.lineno, *(n.lineno for n in decorators)) if decorators else node.lineno


def source_of(node: ast.expr, text: str) -> str:
    """An expression as it was written if it has one line, else on one line."""
    segment = ast.get_source_segment(text, node)
    return segment if segment and "\n" not in segment and "\r" not in segment else ast.unparse(node)
