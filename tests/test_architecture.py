"""The package has no import circle and keeps the direction of the design's arrows."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import marginalia

PACKAGE = Path(marginalia.__file__).parent

# From the bottom up: a module may import those that stand before it, and none after.
ORDER = [
    ["errors"],
    ["rows", "paper", "store"],
]


def imports_of(path: Path) -> set[str]:
    """The modules of ours that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("marginalia.")}
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if (node.level == 1 and module) or module.startswith("marginalia."):
                found.add(module.removeprefix("marginalia.").split(".")[0])
            elif node.level == 1 or module == "marginalia":
                found |= {alias.name for alias in node.names}
    return found & {p.stem for p in PACKAGE.glob("*.py")}


GRAPH = {p.stem: imports_of(p) for p in PACKAGE.glob("*.py") if not p.stem.startswith("__")}


def test_no_import_circle() -> None:
    assert len(list(TopologicalSorter(GRAPH).static_order())) == len(GRAPH)
