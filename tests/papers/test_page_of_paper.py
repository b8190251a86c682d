"""What the page of every paper offers: snippets and a notebook that run, shapes that show."""

from __future__ import annotations

import ast
import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import nbformat
import pytest
from marginalia.demo import Result
from marginalia.jobs import Job
from marginalia.notebook import notebook
from marginalia.paper import load
from marginalia.rows import parse
from marginalia.runner import run_isolated
from marginalia.snippet import runnable
from marginalia.source import read_source, symbols
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2] / "papers"
PAPERS = sorted(path for path in ROOT.rglob("*.py") if not path.name.startswith("_"))


@pytest.fixture(scope="module", params=PAPERS, ids=lambda path: path.stem)
def paper(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture(scope="module")
def result(paper: Path) -> Result:
    return run_isolated(Job(path=paper, root=ROOT))


def targets(text: str) -> Iterator[str | tuple[int, int]]:
    """Everything that has a button "Copy runnable"."""
    yield from (symbol.name for symbol in symbols(text))
    yield from ((row.code_lines[0], row.code_lines[-1]) for row in parse(text) if row.code_lines)


def is_size(value: ast.expr | None) -> bool:
    """Whether it is `x.shape[i]`: a number, not a tensor."""
    return (
        isinstance(value, ast.Subscript)
        and isinstance(value.value, ast.Attribute)
        and value.value.attr == "shape"
    )


def test_every_snippet_runs_alone(paper: Path) -> None:
    text = read_source(paper)
    snippets = {runnable(text, target, path=paper, root=ROOT) for target in targets(text)} - {""}
    for snippet in snippets:
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile(snippet, "<snippet>", "exec"), {"__name__": "pasted"})
        plt.close("all")


def test_the_notebook_runs(paper: Path, result: Result, tmp_path: Path) -> None:
    text = read_source(paper)
    made = notebook(text, load(paper, ROOT), result, ROOT)
    read: Any = nbformat.reads(made, as_version=4)  # type: ignore[no-untyped-call]
    NotebookClient(read, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in read.cells for output in cell.get("outputs", ())]
    assert any("image/png" in output.get("data", {}) for output in outputs)


def test_every_claim_holds(result: Result) -> None:
    assert result.ok, result.error
    assert all(claim.ok for claim in result.claims)


def test_every_step_of_forward_shows_its_shape(paper: Path, result: Result) -> None:
    text = read_source(paper)
    shown = {shape.line for shape in result.shapes}
    missing = [
        ast.unparse(statement)
        for function in ast.walk(ast.parse(text))
        if isinstance(function, ast.FunctionDef) and function.name == "forward"
        for statement in ast.walk(function)
        if isinstance(statement, ast.Assign | ast.AugAssign | ast.Return)
        and statement.end_lineno not in shown
        and not is_size(statement.value)
    ]
    assert missing == []
