"""What every paper module has to have. A new paper is tested by being there."""

import ast
import io
import os
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2] / "papers"
PAPERS = sorted(
    path
    for path in ROOT.rglob("*.py")
    if not any(part.startswith(("_", ".")) for part in path.relative_to(ROOT).parts)
)
KEYS = {
    "title": str,
    "authors": list,
    "year": int,
    "venue": str,
    "arxiv": str,
    "code": str,
    "topic": str,
    "tags": list,
    "zh": str,
    "note": str,
    "idea": str,
    "compare": dict,
    "cost": dict,
}
OF_A_PAPER = {"authors", "venue", "arxiv"}  # what a survey of ours has not
CPU_SECONDS = 5  # of a core that is not slower than that of RUN
RUN = """
import contextlib, importlib, io, sys, time, warnings
import torch
import torch._dynamo  # is slow, and there before a demo that a build runs
torch.set_num_threads(1)

def slowness():
    "How much slower this core is now, in Python or in Torch, than one that the rule is for."
    x = torch.ones(300, 300)
    start = time.process_time()
    sum(n * n for n in range(1_000_000))
    between = time.process_time()
    for _ in range(60):
        x = (x @ x).tanh()
    return max(1, (between - start) / 0.04, (time.process_time() - between) / 0.06)

said = io.StringIO()
with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
    module = importlib.import_module(sys.argv[1])
assert not said.getvalue(), f"importing prints {said.getvalue()!r}"
warnings.simplefilter("error")
before, start = slowness(), time.process_time()
module.demo()
seconds = time.process_time() - start
print("seconds", seconds / max(before, slowness()))
"""


@pytest.fixture(params=PAPERS, ids=lambda path: str(path.relative_to(ROOT)))
def paper(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture
def tree(paper: Path) -> ast.Module:
    return ast.parse(paper.read_text(encoding="utf-8"))


def front_matter(tree: ast.Module) -> dict[str, object]:
    docstring = ast.get_docstring(tree)
    assert docstring is not None
    assert docstring.startswith("---\n")
    return yaml.safe_load(docstring.split("---\n")[1])


def known_notes() -> dict[str, dict[str, object]]:
    notes = [yaml.safe_load(path.read_text("utf-8")) for path in ROOT.glob("*/notes.yaml")]
    return {note["id"]: note for topic in notes for note in topic}


def test_there_are_papers() -> None:
    assert PAPERS


def test_front_matter_is_complete(paper: Path, tree: ast.Module) -> None:
    meta = front_matter(tree)
    is_paper = known_notes()[meta["note"]]["kind"].startswith("paper")
    keys = set(KEYS) if is_paper else set(KEYS) - OF_A_PAPER
    assert keys <= set(meta), f"missing: {keys - set(meta)}"
    wrong = {key: meta[key] for key in keys if not isinstance(meta[key], KEYS[key])}
    assert not wrong
    assert all(meta[key] for key in keys), "a key is empty"
    assert meta["topic"] == paper.parent.name.replace("_", "-")
    assert meta["code"].startswith("https://")
    texts = [*meta.get("authors", ()), *meta["cost"].values(), *meta["compare"].values()]
    assert all(text and isinstance(text, str) for text in texts)


def test_its_notes_exist(tree: ast.Module) -> None:
    meta, known = front_matter(tree), known_notes()
    assert {meta["note"], *meta["compare"]} <= set(known)
    assert meta["note"] not in meta["compare"]


def test_letters_are_declared(tree: ast.Module) -> None:
    assert "\nLetters: `" in ast.get_docstring(tree)


def test_importing_runs_nothing(tree: ast.Module) -> None:
    """The top level has imports, definitions, constants and the guard of the demo."""
    *body, guard = tree.body[1:]
    assert ast.unparse(guard) == "if __name__ == '__main__':\n    demo()"
    allowed = ast.Import | ast.ImportFrom | ast.ClassDef | ast.FunctionDef | ast.Assign
    assert not [ast.unparse(node) for node in body if not isinstance(node, allowed)]
    for node in body:
        if isinstance(node, ast.Assign):
            assert not [ast.unparse(call) for call in ast.walk(node) if isinstance(call, ast.Call)]


def test_everything_public_has_a_docstring(tree: ast.Module) -> None:
    def public(body: list[ast.stmt]) -> list[ast.ClassDef | ast.FunctionDef]:
        kinds = ast.ClassDef | ast.FunctionDef
        return [n for n in body if isinstance(n, kinds) and not n.name.startswith("_")]

    nodes = public(tree.body)
    for node in list(nodes):
        if isinstance(node, ast.ClassDef):
            nodes += public(node.body)
    assert not [node.name for node in nodes if not ast.get_docstring(node)]


def test_lines_fit_the_code_column(paper: Path) -> None:
    lines = paper.read_text(encoding="utf-8").splitlines()
    assert not [line for line in lines if len(line) > 88]


def claims(tree: ast.Module) -> list[ast.stmt]:
    [demo] = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "demo"]
    statements = [node for node in ast.walk(demo) if isinstance(node, ast.Assert | ast.Expr)]
    return [
        node
        for node in statements
        if isinstance(node, ast.Assert)
        or ast.unparse(node).startswith(("torch.testing.assert_close(", "assert_close("))
    ]


def test_at_least_five_claims_and_each_names_its_source(paper: Path, tree: ast.Module) -> None:
    readline = io.StringIO(paper.read_text(encoding="utf-8")).readline
    comments = {
        token.start[0]: token.string
        for token in tokenize.generate_tokens(readline)
        if token.type == tokenize.COMMENT
    }
    found = claims(tree)
    assert len(found) >= 5
    assert not [ast.unparse(node) for node in found if node.end_lineno not in comments]


def test_demo_runs_alone_and_quickly(paper: Path, tmp_path: Path) -> None:
    """In a fresh process, on one thread, without a warning."""
    module = ".".join(paper.relative_to(ROOT).with_suffix("").parts)
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    run = subprocess.run(
        [sys.executable, "-c", RUN, module],
        env=os.environ | threads | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "agg"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert float(run.stdout.split("seconds")[-1]) < CPU_SECONDS
    assert not list(tmp_path.iterdir()), "the demo leaves files behind"
