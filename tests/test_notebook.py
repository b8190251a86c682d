from __future__ import annotations

import io
import json
from contextlib import redirect_stdout
from pathlib import Path
from textwrap import dedent
from typing import Any

import nbformat
import pytest
from marginalia.demo import Failure, Output, Result
from marginalia.notebook import notebook
from marginalia.paper import Paper, load

PAPERS = Path(__file__).parents[1] / "papers"
MODEL = PAPERS / "attention" / "squeeze_excitation.py"

MODULE = '''
"""
---
title: A small paper
authors: [A. Author, B. Author]
year: 2020
venue: CVPR
arxiv: "2001.00001"
code: https://example.org/code
---

What it is about.
"""

import math

# ## A heading
#
# of a page

# touches
SIZE = 3


class Box:
    """Stays with its class."""

    def get(self):
        # so does this

        return SIZE


# ## Demo


# Above the demo.
def demo() -> None:
    """What is shown."""
    box = Box()

    # **First.** One row.
    print(box.get())
    for n in range(2):
        # in a loop
        print(n)
    text = """
    kept"""

    # Detached.

    math.pi


if __name__ == "__main__":
    demo()
'''.lstrip()


def paper_of(text: str, tmp_path: Path, name: str = "small.py") -> Paper:
    path = tmp_path / name
    path.write_text(text)
    return load(path, tmp_path)


def made(text: str, tmp_path: Path, result: Result | None = None) -> list[Any]:
    text = dedent(text).lstrip("\n")
    written = notebook(text, paper_of(text, tmp_path), result)
    assert written == notebook(text, paper_of(text, tmp_path), result)
    read: Any = nbformat.reads(written, as_version=4)  # type: ignore[no-untyped-call]
    nbformat.validate(read)
    assert json.loads(written)["nbformat_minor"] == 5
    cells: list[Any] = read.cells
    assert len({cell.id for cell in cells}) == len(cells)
    return cells


def sources(cells: list[Any]) -> list[tuple[str, str]]:
    return [(cell.cell_type, cell.source) for cell in cells]


def test_cells(tmp_path: Path) -> None:
    cells = made(MODULE, tmp_path)
    assert sources(cells) == [
        (
            "markdown",
            "# A small paper\n\nA. Author, B. Author · CVPR 2020 · "
            "[arXiv:2001.00001](https://arxiv.org/abs/2001.00001) · "
            "[official code](https://example.org/code)",
        ),
        ("markdown", "What it is about."),
        ("code", "import math"),
        ("markdown", "## A heading\n\nof a page"),
        ("code", "# touches\nSIZE = 3"),
        (
            "code",
            'class Box:\n    """Stays with its class."""\n\n    def get(self):\n'
            "        # so does this\n\n        return SIZE",
        ),
        ("markdown", "## Demo"),
        ("markdown", "Above the demo.\n\nWhat is shown."),
        ("code", "box = Box()"),
        ("markdown", "**First.** One row."),
        (
            "code",
            "print(box.get())\nfor n in range(2):\n    # in a loop\n    print(n)\n"
            'text = """\n    kept"""',
        ),
        ("markdown", "Detached."),
        ("code", "math.pi"),
    ]
    assert all(not cell.outputs for cell in cells if cell.cell_type == "code")
    assert all(cell.execution_count is None for cell in cells if cell.cell_type == "code")


def line_of(text: str, part: str) -> int:
    return next(n for n, line in enumerate(text.splitlines(), 1) if part in line)


def test_outputs_go_to_the_cell_of_their_line(tmp_path: Path) -> None:
    loop, value = line_of(MODULE, "print(n)"), line_of(MODULE, "math.pi")
    result = Result(
        ok=True,
        outputs=[
            Output(line_of(MODULE, "print(box"), "stdout", {"text/plain": "3\n"}),
            Output(loop, "stdout", {"text/plain": "0\n"}),
            Output(loop, "warning", {"text/plain": "Careful", "category": "UserWarning"}),
            Output(loop, "stderr", {"text/plain": "and more\n"}),
            Output(
                loop,
                "figure",
                {"image/svg+xml": "<svg/>", "image/svg+xml;dark": "<svg id='d'/>", "alt": "A plot"},
            ),
            Output(loop, "value", {"text/html": "<b>1</b>", "text/plain": "1"}),
            Output(value, "value", {"text/plain": "3.14"}),
        ],
    )
    cells = [cell for cell in made(MODULE, tmp_path, result) if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert [len(cell.outputs) for cell in cells] == [0, 0, 0, 0, 4, 1]
    out, err, figure, shown = cells[4].outputs
    assert (out.name, out.text) == ("stdout", "3\n0\n")
    assert (err.name, err.text) == ("stderr", "Careful\nand more\n")
    assert figure.data == {"image/svg+xml": "<svg/>", "text/plain": "A plot"}
    assert shown.output_type == "display_data"
    assert shown.data == {"text/html": "<b>1</b>", "text/plain": "1"}
    assert cells[5].outputs[0].output_type == "execute_result"
    assert cells[5].outputs[0].execution_count == 6


def test_a_failure_is_the_last_that_ran(tmp_path: Path) -> None:
    error = Failure("ValueError", "no", line_of(MODULE, "print(n)"))
    result = Result(ok=False, error=error)
    cells = [cell for cell in made(MODULE, tmp_path, result) if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == [1, 2, 3, 4, 5, None]
    assert cells[4].outputs[0].ename == "ValueError"


@pytest.mark.parametrize(
    "body",
    [
        "    if K:\n        return\n    print(K)",
        "    yield K",
        "    K = 2",
        "    len = 2",
        "    n = 0\n    def g():\n        nonlocal n\n        n = 1",
    ],
)
def test_a_demo_that_cannot_be_taken_apart_is_called(tmp_path: Path, body: str) -> None:
    text = f'K = [1]\nprint(len(K))\n\n\ndef demo():\n    """Text."""\n{body}\n\n\nL = 1\n'
    result = Result(ok=True, outputs=[Output(8, "stdout", {"text/plain": "1\n"})])
    cells = made(text, tmp_path, result)
    assert [cell.source for cell in cells[-3:]] == [
        "L = 1",
        f'def demo():\n    """Text."""\n{body}',
        "demo()",
    ]
    assert cells[-1].outputs[0].text == "1\n"


def test_definitions_below_the_demo_come_before_it(tmp_path: Path) -> None:
    text = """
        # ## Shown

        def demo():
            print(later())

        def later():
            return 1
    """
    assert sources(made(text, tmp_path))[1:] == [
        ("code", "def later():\n    return 1"),
        ("markdown", "## Shown"),
        ("code", "print(later())"),
    ]


def test_without_a_demo_or_front_matter(tmp_path: Path) -> None:
    assert sources(made("# # A title\n#\n# Text.\n\nx = 1\n", tmp_path))[-1] == ("code", "x = 1")
    cells = made('"""\n# Some title\n\nText.\n"""\nx = 1\n', tmp_path)
    assert sources(cells) == [
        ("markdown", "# Some title"),
        ("markdown", "Text."),
        ("code", "x = 1"),
    ]


def test_a_script_keeps_its_cells(tmp_path: Path) -> None:
    text = """
        # %% [markdown]
        # # A script
        #
        # Text.

        # %%
        x = 1
        print(x)

        # %%
        y = 2

        x + y
    """
    written = dedent(text).lstrip("\n")
    outputs = [
        Output(line_of(written, "print"), "stdout", {"text/plain": "1\n"}),
        Output(line_of(written, "x + y"), "value", {"text/plain": "3"}),
    ]
    cells = made(text, tmp_path, Result(ok=True, outputs=outputs))
    assert sources(cells) == [
        ("markdown", "# A script\n\nText."),
        ("code", "x = 1\nprint(x)"),
        ("code", "y = 2\n\nx + y"),
    ]
    assert cells[1].outputs[0].text == "1\n"
    assert cells[2].outputs[0].output_type == "execute_result"


def test_an_edit_keeps_the_ids_of_other_cells(tmp_path: Path) -> None:
    before = {cell.source: cell.id for cell in made(MODULE, tmp_path)}
    after = {
        cell.source: cell.id
        for cell in made(MODULE.replace("import math\n", "import math\nimport os\n"), tmp_path)
    }
    shared = before.keys() & after.keys()
    assert len(shared) == len(before) - 1
    assert all(before[source] == after[source] for source in shared)


def test_what_local_modules_give_comes_along(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "a.py").write_text(
        "import math\n\nTWO = 2\n\n\ndef unused(): ...\n\n\n"
        "def area(r):\n    return math.pi * r**TWO\n"
    )
    text = dedent("""
        import json
        from parts.a import area as surface

        # A part.

        def demo():
            print(json.dumps(round(surface(1), 2)))
        """).lstrip("\n")
    paper = paper_of(text, tmp_path)
    alone = nbformat.reads(notebook(text, paper, None), as_version=4)  # type: ignore[no-untyped-call]
    assert ("code", text[: text.index("\n\n")]) in sources(alone.cells)
    read: Any = nbformat.reads(notebook(text, paper, None, tmp_path), as_version=4)  # type: ignore[no-untyped-call]
    code = [cell.source for cell in read.cells if cell.cell_type == "code"]
    assert code[0] == "import json"
    assert "unused" not in "".join(code)
    namespace: dict[str, Any] = {}
    with redirect_stdout(io.StringIO()) as said:
        exec("\n".join(code), namespace)
    assert said.getvalue() == "3.14\n"


def test_a_name_of_the_demo_hides_none_of_what_comes_along(tmp_path: Path) -> None:
    (tmp_path / "parts.py").write_text(
        "def half(x):\n    return x / 2\n\n\ndef f(x):\n    return half(x)\n"
    )
    text = "from parts import f\n\n\ndef demo():\n    half = f(3)\n    print(half, f(half))\n"
    paper = paper_of(text, tmp_path)
    read: Any = nbformat.reads(notebook(text, paper, None, tmp_path), as_version=4)  # type: ignore[no-untyped-call]
    code = [cell.source for cell in read.cells if cell.cell_type == "code"]
    assert code[-1] == "demo()"
    with redirect_stdout(io.StringIO()) as said:
        exec("\n".join(code), {})
    assert said.getvalue() == "1.5 0.75\n"


def test_the_cells_are_those_of_the_last_demo(tmp_path: Path) -> None:
    text = """
    # Old.
    def demo():
        print("old")


    # New.
    def demo():
        print("new")
    """
    ran = [cell.source for cell in made(text, tmp_path) if "print" in cell.source]
    assert ran == ['# Old.\ndef demo():\n    print("old")', 'print("new")']
