"""The package has no import circle and keeps the direction of the design's arrows."""

from __future__ import annotations

import ast
from pathlib import Path

import marginalia

PACKAGE = Path(marginalia.__file__).parent

# From the bottom up. A module may import those of the layers before its own, and no others.
LAYERS = [
    ["contents", "docstrings", "errors", "external", "limits", "prose", "rewrite", "tensors"],
    ["source", "tex"],
    [
        "notes",
        "options",
        "paper",
        "scaffold",
        "store",
        "trace",
        "typeset",
        "usage",
        "values",
    ],
    ["collection", "mathml", "memo", "rows", "syntax", "verbatim"],
    ["claims", "effects", "keys"],
    ["parcel"],
    ["api", "capture", "catalog", "changes", "dangling", "dependencies", "links"],
    ["blocks", "code_html", "figures", "templates"],
    ["choice", "demo"],
    ["neighbours"],
    ["snippet"],
    ["jobs", "notebook", "outputs", "patterns", "preload", "sandbox"],
    ["letters", "reading", "shelf"],
    ["page", "standby", "worker"],
    ["companion", "isolation"],
    ["ahead", "runner"],
    ["cluster", "report", "tally"],
    ["assemble", "progress", "reuse"],
    ["rebuild"],
    ["building"],
    ["plugin", "standalone"],
    ["cli"],
]
LAYER = {name: number for number, names in enumerate(LAYERS) for name in names}


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


def test_every_module_has_its_layer() -> None:
    assert set(GRAPH) == set(LAYER)


def test_imports_point_down() -> None:
    up = [(name, other) for name in GRAPH for other in GRAPH[name] if LAYER[other] >= LAYER[name]]
    assert up == []


def packages_of(path: Path) -> set[str]:
    """The top-level packages that a file imports, anywhere in it."""
    return {
        name.split(".")[0]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else _names(node))
        if name
    }


def test_the_core_knows_no_builder() -> None:
    builders = {"mkdocs", "properdocs", "material"}
    knowing = ("building", "plugin", "rebuild", "reuse", "standalone")
    for path in PACKAGE.glob("*.py"):
        assert path.stem in knowing or not packages_of(path) & builders, path


def test_only_one_module_knows_dask() -> None:
    knowing = [p.stem for p in PACKAGE.glob("*.py") if packages_of(p) & {"dask", "distributed"}]
    assert knowing == ["cluster"]


def _names(node: ast.Import) -> list[str]:
    return [alias.name for alias in node.names]
