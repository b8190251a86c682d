"""Demos that really run: each test writes a page, runs it in a process of its own, and looks."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import logging
import os
import py_compile
import re
import shutil
import subprocess
import sys
import textwrap
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from marginalia.capture import after_import
from marginalia.demo import Claim, Failure, Output, Result, Shape, claim_source, has_demo, run


def forked(path: Path, **options: Any) -> Result:
    """What `run` gives in a forked process, which it may spoil."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python 3.12 warns of threads that some library started
        child = os.fork()
    if child == 0:
        try:
            warnings.resetwarnings()
            logging.root.handlers.clear()
            result = run(path, **options)
            with os.fdopen(writer, "w") as pipe:
                json.dump(result.to_json(), pipe)
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return Result.from_json(json.loads(text))


@dataclass
class Ran:
    """A result beside its source."""

    result: Result
    text: str

    def line(self, number: int) -> str:
        return self.text.splitlines()[number - 1].strip()

    def shown(self, kind: str = "stdout", mime: str = "text/plain") -> list[tuple[str, str]]:
        """The outputs of a kind, each with the source line it stands under."""
        found = [o for o in self.result.outputs if o.kind == kind]
        return [(self.line(o.line), o.data[mime]) for o in found]

    def shapes(self, name: str) -> list[list[int]]:
        return [shape.shape for shape in self.result.shapes if shape.name == name]

    def shape(self, name: str) -> Shape:
        (found,) = [shape for shape in self.result.shapes if shape.name == name]
        return found

    def claim(self) -> Claim:
        (found,) = self.result.claims
        return found

    def error(self) -> Failure:
        assert not self.result.ok
        assert self.result.error is not None
        return self.result.error


Page = Callable[..., Ran]


@pytest.fixture
def page(tmp_path: Path) -> Page:
    """Writes a page, or what is in its demo, and runs it."""

    def write_and_run(
        source: str = "", *, demo: str = "", name: str = "page.py", **options: Any
    ) -> Ran:
        text = textwrap.dedent(source)
        if demo:
            body = textwrap.indent(textwrap.dedent(demo).strip("\n"), "    ")
            text += f"\n\ndef demo():\n{body}\n"
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return Ran(forked(path, root=tmp_path, **options), text)

    return write_and_run


MODEL = """
    import torch
    from torch import nn
"""


# The run as a whole


def test_a_result_survives_json(page: Page) -> None:
    result = page(MODEL, demo="x = torch.ones(2)\nprint(x)\nassert x.sum() == 3").result
    assert not result.ok
    assert all([result.outputs, result.shapes, result.claims, result.error])
    assert Result.from_json(json.loads(json.dumps(result.to_json()))) == result


def test_a_file_without_a_demo_runs_nothing(page: Page) -> None:
    result = page("raise RuntimeError('imported')\n").result
    assert result == Result(ok=True)


def test_the_guard_does_not_fire_and_the_name_is_dotted(page: Page) -> None:
    source = """
        import sys
        if __name__ == "__main__":
            print("guard")
        def demo():
            print(__name__, sys.modules[__name__].demo is demo, __package__, sys.argv)
    """
    ran = page(source, name="topic/slug.py")
    ((_, text),) = ran.shown()
    assert text.startswith("topic.slug True topic ['/")


def test_has_demo() -> None:
    assert has_demo("def demo(): pass")
    assert has_demo("# %%\n1 + 1\n")
    assert not has_demo("def demonstrate(): pass")
    assert not has_demo("class A:\n    def demo(self): pass\n")
    assert not has_demo("async def demo(): pass")
    assert not has_demo("def demo(:")


def test_relative_imports_and_packages(page: Page, tmp_path: Path) -> None:
    (tmp_path / "topic").mkdir()
    (tmp_path / "topic" / "helper.py").write_text("VALUE = 7\n")
    (tmp_path / "shared.py").write_text("from topic.helper import VALUE as SHARED\n")
    source = "from .helper import VALUE\nfrom shared import SHARED\n"
    ran = page(source, demo="print(VALUE, SHARED)", name="topic/slug.py")
    assert ran.shown() == [("print(VALUE, SHARED)", "7 7\n")]
    assert list(ran.result.dependencies) == ["shared.py", "topic/helper.py"]


def test_a_folder_named_like_an_installed_package(page: Page) -> None:
    ran = page(demo="print(__name__)", name="yaml/page.py")
    assert ran.shown() == [("print(__name__)", "yaml.page\n")]


def test_seeds(page: Page) -> None:
    source = "import random\nimport numpy as np\nimport torch\nrandom.random()\ntorch.rand(3)\n"
    demo = "print(random.random(), np.random.rand(), torch.rand(1))"
    first, second = page(source, demo=demo), page(source, demo=demo)
    other = page(source, demo=demo, seed=1)
    assert first.shown() == second.shown() != other.shown()
    unused = page(source.replace("torch.rand(3)", "pass"), demo=demo)
    assert unused.shown() == first.shown()  # what an import draws does not count


def test_one_thread_and_no_input(page: Page) -> None:
    ran = page("import torch", demo="print(torch.get_num_threads())\ninput()")
    assert ran.shown() == [("print(torch.get_num_threads())", "1\n")]
    assert ran.error().type == "EOFError"


def test_device_and_measures(page: Page) -> None:
    result = page("import time", demo="time.sleep(0.02)").result
    assert result.device == "cpu"
    assert result.seconds >= 0.02
    assert result.peak_mb > 10


def test_dependencies(page: Page, tmp_path: Path) -> None:
    for name in ("read.txt", "ünread.txt", "bytes.bin", "changed.txt"):
        (tmp_path / name).write_text("data")
    (tmp_path / "late.py").write_text("")
    source = """
        import os
        from pathlib import Path
        here = Path(__file__).parent
        def demo():
            (here / "read.txt").read_text()
            os.close(os.open(here / "bytes.bin", os.O_RDONLY))
            (here / "made.txt").write_text("x")
            (here / "made.txt").read_text()
            with open(here / "changed.txt", "r+"): pass
            (here / "missing.txt").exists()
            import late
            open("/dev/null").close()
    """
    found = page(source).result.dependencies
    assert list(found) == ["bytes.bin", "late.py", "read.txt"]
    assert found["read.txt"] == "3a6eb0790f39ac87c94f3856b2dd2c5d110e6811602261a9a923d3bb23adc8b7"


def test_dependencies_that_are_compiled(page: Page, tmp_path: Path) -> None:
    for name in ("cached", "bare"):
        (tmp_path / f"{name}.py").write_text("")
    py_compile.compile(str(tmp_path / "cached.py"))
    py_compile.compile(str(tmp_path / "bare.py"), str(tmp_path / "bare.pyc"))
    (tmp_path / "bare.py").unlink()
    library = importlib.util.find_spec("markupsafe._speedups")
    assert library is not None
    assert library.origin
    shutil.copy(library.origin, tmp_path)
    found = page("import _speedups\nimport bare, cached", demo="pass").result
    assert list(found.dependencies) == [Path(library.origin).name, "bare.pyc", "cached.py"]


def test_two_processes_give_the_same(page: Page, tmp_path: Path) -> None:
    source = """
        import matplotlib.pyplot as plt
        import torch
        from torch import nn

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = nn.Linear(8, 8)

            def forward(self, x):
                y = self.layer(x)
                return y.softmax(-1)
    """
    demo = """
        y = Net()(torch.randn(4, 8))
        y
        object()
        assert y.sum() > 3
        plt.plot(y[0].detach(), label="$y$")
        plt.legend()
    """
    one = page(source, demo=demo).result.to_json()
    code = (
        "import json, sys; from pathlib import Path; from marginalia.demo import run;"
        "result = run(Path(sys.argv[1]), root=Path(sys.argv[1]).parent);"
        "print(json.dumps(result.to_json()))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "page.py")]
    other = json.loads(subprocess.check_output(command))
    for measured in ("seconds", "peak_mb"):
        del one[measured], other[measured]
    assert one == other


PLAIN = """
    import logging
    import sys

    def numbers(n):
        for i in range(n):
            print("making", i)
            yield i

    class Noisy:
        print("class body")
        def __enter__(self):
            print("enter")
        def __exit__(self, *args):
            print("exit")
            return True

    print("imported")

    def demo():
        "Doc."
        global shown
        shown = [1, 2]
        for i in numbers(3):
            if i == 1:
                continue
            print(f"{i=}", end=" ")
            print()
        else:
            print("done")
        with Noisy():
            print("inside")
            raise ValueError
        try:
            assert (n := len(shown)) == 3, f"n is {n}"
        except AssertionError as error:
            print("caught", error)
        finally:
            print("finally")
        match shown:
            case [first, *rest] if first < 2 < 3:
                print(first, rest)
        def inner(x):
            assert 0 < x <= 3 and not x == 2, x
            return lambda: print("inner", x)
        inner(1)()
        try:
            inner(2)
        except AssertionError as error:
            print(repr(error))
        sys.stdout.write("written\\n")
        print("a", "b", sep="\\n", file=sys.stdout, flush=True)
        print(sorted(locals()), [x for x in shown if (last := x)], last)
        sys.stdout.writelines(["x", "y\\n"])
        while shown:
            shown.pop(); print(len(shown))
        print(demo.__doc__, demo.__code__.co_firstlineno, demo.__name__)
        return

    if __name__ == "__main__":
        demo()
"""


def test_a_demo_does_what_it_does_in_a_plain_run(page: Page, tmp_path: Path) -> None:
    ran = page(PLAIN)
    assert ran.result.error is None
    plain = subprocess.run(
        [sys.executable, str(tmp_path / "page.py")], check=True, capture_output=True, text=True
    )
    shown = "".join(text for _, text in ran.shown())
    assert sorted(shown.split()) == sorted(plain.stdout.split())  # grouped by statement
    without = page(PLAIN, shapes=False)
    assert without.result.outputs == ran.result.outputs


# Text


def test_text_stands_under_the_statement_that_made_it(page: Page) -> None:
    ran = page(PLAIN)
    shown = ran.shown()
    assert shown == [
        ("class Noisy:", "class body\n"),
        ('print("imported")', "imported\n"),
        ("for i in numbers(3):", "making 0\nmaking 1\nmaking 2\n"),
        ('print(f"{i=}", end=" ")', "i=0 i=2 "),
        ("print()", "\n\n"),
        ('print("done")', "done\n"),
        ("with Noisy():", "enter\n"),
        ('print("inside")', "inside\n"),
        ("raise ValueError", "exit\n"),
        *shown[9:],
    ]
    assert ('print("caught", error)', "caught n is 2\n") in shown
    assert ("inner(1)()", "inner 1\n") in shown


def test_a_statement_of_several_lines_shows_under_its_last(page: Page) -> None:
    ran = page(
        "def say(*words):\n    print(*words)\n",
        demo="""
            say(
                "one",
                "two",
            )
            with (
                open("/dev/null")
                as file,
            ):

                # why
                say("three")
        """,
    )
    assert ran.shown() == [(")", "one two\n"), ('say("three")', "three\n")]


def test_streams_are_apart_and_in_order(page: Page) -> None:
    ran = page(
        "import sys",
        demo="""
            print("out"); print("err", file=sys.stderr); print("out again")
            sys.stderr.write("\\033[1mbold\\033[0m")
        """,
    )
    assert [(o.kind, o.data["text/plain"]) for o in ran.result.outputs] == [
        ("stdout", "out\nout again\n"),
        ("stderr", "err\n"),
        ("stderr", "\033[1mbold\033[0m"),
    ]


def test_text_that_python_does_not_write(page: Page) -> None:
    demo = """
        os.write(1, b"from the descriptor\\n")
        print("then print")
        subprocess.run(["echo", "from a process"])
        subprocess.run([sys.executable, "-c", "print('é' * 3)"], stdout=sys.stdout)
        libc.puts(b"from C")
        os.system("echo to stderr >&2")
        sys.stdout.buffer.write("bytes é\\n".encode())
        sys.__stdout__.write("the old stream\\n")
    """
    source = "import ctypes, os, subprocess, sys\nlibc = ctypes.CDLL(None)\n"
    ran = page(source, demo=demo)
    assert ran.result.error is None
    assert [text for _, text in ran.shown()] == [
        "from the descriptor\n",
        "then print\n",
        "from a process\n",
        "ééé\n",
        "from C\n",
        "bytes é\n",
        "the old stream\n",
    ]
    assert ran.shown()[0][0].startswith("os.write")
    assert ran.shown()[3][0].startswith("subprocess.run([sys")
    assert ran.shown("stderr") == [('os.system("echo to stderr >&2")', "to stderr\n")]


def test_text_of_forked_children_and_threads(page: Page) -> None:
    demo = """
        child = os.fork()
        if child == 0:
            print("child")
            os._exit(0)
        os.waitpid(child, 0)
        thread = threading.Thread(target=print, args=("thread",))
        thread.start()
        thread.join()
    """
    ran = page("import os, threading", demo=demo)
    assert "".join(text for _, text in ran.shown()) == "child\nthread\n"


def test_streams_are_like_real_ones(page: Page) -> None:
    demo = """
        print(sys.stdout.isatty(), sys.stdout.encoding, sys.stdout.fileno(), sys.stdout.writable())
        sys.stdout.reconfigure(line_buffering=True)
        with contextlib.redirect_stdout(io.StringIO()) as text:
            print("elsewhere")
        print(len(text.getvalue()))
        sys.stdout.close()
        print("still here")
        try:
            sys.stdout.write(3)
        except TypeError as error:
            print(error)
        print("\\ud800")
    """
    ran = page("import contextlib, io, sys", demo=demo)
    assert [text for _, text in ran.shown()] == [
        "False utf-8 1 True\n",
        "10\n",
        "still here\n",
        "write() argument must be str, not int\n",
    ]
    assert ran.error().type == "UnicodeEncodeError"


def test_endless_text_is_cut(page: Page) -> None:
    ran = page(demo="for _ in range(1000):\n    print('x' * 999)")
    ((_, text),) = ran.shown()
    assert len(text) < 250_000
    assert text.endswith("\n… 800,000 more characters\n")


def test_logging_goes_to_stderr(page: Page) -> None:
    demo = """
        logging.warning("careful")
        logging.getLogger("x").error("bad")
    """
    ran = page("import logging", demo=demo)
    assert [text for _, text in ran.shown("stderr")] == ["WARNING:root:careful\n", "ERROR:x:bad\n"]


def test_warnings(page: Page, tmp_path: Path) -> None:
    (tmp_path / "helper.py").write_text("import warnings\ndef f():\n    warnings.warn('helped')\n")
    source = """
        import warnings
        import helper
        def model(x):
            warnings.warn(f"about {x}", RuntimeWarning)
    """
    demo = """
        for _ in range(3):
            model(1)
        model(2)
        helper.f()
        warnings.warn("old", DeprecationWarning)
        with warnings.catch_warnings(record=True) as caught:
            warnings.warn("seen by the demo")
        print(len(caught))
        warnings.simplefilter("always")
        model(2)
    """
    ran = page(source, demo=demo)
    shown = [o.data for o in ran.result.outputs if o.kind == "warning"]
    assert [(d["category"], d["message"], d["place"]) for d in shown] == [
        ("RuntimeWarning", "about 1", "model"),
        ("RuntimeWarning", "about 2", "model"),
        ("UserWarning", "helped", "helper.py:3"),
        ("DeprecationWarning", "old", "demo"),
    ]
    assert ran.shown("warning")[0] == ("model(1)", "RuntimeWarning: about 1\n")
    assert ran.shown() == [("print(len(caught))", "1\n")]


# Values

RICH = """
    class Rich:
        def _repr_html_(self): return "<b>rich</b>"
        def _repr_latex_(self): return "$x$"
        def _repr_png_(self): return b"png"
        def _repr_svg_(self): return None
        def _repr_markdown_(self): raise ValueError
        def method(self): return self
    class Bundle:
        def _repr_mimebundle_(self, include=None, exclude=None):
            return {"text/html": "<i>bundle</i>", "application/json": {}}, {}
    class Anything:
        def __getattr__(self, name): return lambda *a: "pretended"
"""


def test_values_of_expressions(page: Page) -> None:
    demo = """
        "Doc."
        x = 3
        x
        x + 1, "a"
        [x].append(4)
        len([x])
        rich = Rich()
        rich
        rich.method()
        Bundle()
        Anything()
        x and print("said")
        [print(i) for i in range(2)]
        ...
        "a bare string"
        None
        if x:
            x.bit_length
        Rich
        object()
        return x
    """
    ran = page(RICH, demo=demo)
    assert ran.shown("value") == [
        ("x", "3"),
        ('x + 1, "a"', "(4, 'a')"),
        ("rich", "<page.Rich object>"),
        ("rich.method()", "<page.Rich object>"),
        ("Bundle()", "<page.Bundle object>"),
        ("x.bit_length", "<built-in method bit_length of int object>"),
        ("Rich", "<class 'page.Rich'>"),
        ("return x", "3"),
    ]
    values = [o.data for o in ran.result.outputs if o.kind == "value"]
    assert values[2] == {
        "text/html": "<b>rich</b>",
        "text/latex": "$x$",
        "image/png": "cG5n",
        "text/plain": "<page.Rich object>",
    }
    assert values[4]["text/html"] == "<i>bundle</i>"
    assert "application/json" not in values[4]


def test_display(page: Page) -> None:
    demo = """
        display(1, "two")
        display({"text/html": "<p>"}, raw=True)
        from IPython.display import HTML, Markdown, display as show
        show(HTML("<u>u</u>"))
        Markdown("*m*")
    """
    ran = page(demo=demo)
    assert [o.data for o in ran.result.outputs] == [
        {"text/plain": "1"},
        {"text/plain": "'two'"},
        {"text/html": "<p>"},
        {"text/html": "<u>u</u>", "text/plain": "<IPython.core.display.HTML object>"},
        {"text/markdown": "*m*", "text/plain": "<IPython.core.display.Markdown object>"},
    ]


def test_broken_values_do_not_end_the_demo(page: Page) -> None:
    source = """
        class Broken:
            def __repr__(self): raise ValueError
            def __bool__(self): raise ValueError
            def __eq__(self, other): raise ValueError
    """
    ran = page(source, demo="b = Broken()\nb\ndisplay(b)\nprint('on')")
    assert ran.result.ok
    assert [text for _, text in ran.shown("value")] == [
        "<Broken, whose repr raises ValueError>"
    ] * 2


SCRIPT = """
    # %% [markdown]
    # # A notebook
    # %%
    import torch
    x = torch.ones(2, 3)
    x.shape
    # %%
    x.shape
    y = x + 1  # silent
    # %%
    y.sum();
    # %%
    assert y.sum() == 12  # all of it
    def f(z):
        assert z
        print("in f")
        return z * 2
    f(2)
    # %%
    print(__name__)
    "a string of prose"
"""


def test_a_notebook_script_runs_its_top_level(page: Page) -> None:
    ran = page(SCRIPT)
    assert ran.result.error is None
    assert [(ran.line(o.line), o.kind, o.data["text/plain"]) for o in ran.result.outputs] == [
        ("x.shape", "value", "torch.Size([2, 3])"),
        ("f(2)", "stdout", "in f\n"),
        ("f(2)", "value", "4"),
        ("print(__name__)", "stdout", "__main__\n"),
    ]
    assert (ran.claim().text, ran.claim().source) == ("y.sum() == 12", "all of it")
    assert ran.shapes("y") == [[2, 3]]


def test_a_real_notebook(page: Page) -> None:
    cells = [
        {"cell_type": "code", "source": ["a = 6\n", "a * 7"]},
        {"cell_type": "markdown", "source": "prose"},
        {"cell_type": "code", "source": "raise ValueError('no')"},
    ]
    for cell in cells:
        cell |= {"metadata": {}}
        if cell["cell_type"] == "code":
            cell |= {"outputs": [], "execution_count": None}
    notebook = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 4}
    ran = page(json.dumps(notebook), name="notebook.ipynb")
    ((_, text),) = [(o.line, o.data["text/plain"]) for o in ran.result.outputs]
    assert text == "42"
    assert ran.error().frames[0]["text"] == "raise ValueError('no')"


# Figures

PLOT = "import matplotlib.pyplot as plt\n"


def test_a_figure_in_two_variants(page: Page) -> None:
    demo = """
        fig, ax = plt.subplots()
        ax.plot([1, 2], label="first")
        ax.plot([2, 1], color="black")
        print("between")
        ax.set(xlabel="$n$", ylabel="loss", title="Training")
        ax.legend()
        print("after")
    """
    ran = page(PLOT, demo=demo)
    (figure,) = [o for o in ran.result.outputs if o.kind == "figure"]
    assert ran.line(figure.line) == "ax.legend()"
    light, dark = figure.data["image/svg+xml"], figure.data["image/svg+xml;dark"]
    assert figure.data["alt"] == "Training: loss over n: first"
    for svg in (light, dark):
        assert svg.startswith("<svg")
        assert ET.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"
        assert "<style" not in svg
        assert "#534fec" in svg  # data keep their colour
    assert "#ffffff" not in light
    assert "#24292f" in light
    assert "#24292f" not in dark
    assert "#000000" in light
    assert "#000000" not in dark


def test_ids_in_figures_are_unique_on_a_page(page: Page) -> None:
    demo = """
        for i in range(2):
            plt.figure()
            plt.plot([0, i], "o-")
            plt.show()
    """
    ran = page(PLOT, demo=demo)
    svgs = [
        o.data[kind] for o in ran.result.outputs for kind in ("image/svg+xml", "image/svg+xml;dark")
    ]
    assert len(svgs) == 4
    ids = [name for svg in svgs for name in re.findall(r'\bid="([^"]+)"', svg)]
    assert ids
    assert len(ids) == len(set(ids))
    for svg in svgs:
        used = set(re.findall(r'(?:url\(|href=")#([^")]+)', svg))
        assert used == set(re.findall(r'\bid="([^"]+)"', svg))


def test_where_figures_go(page: Page) -> None:
    demo = """
        plt.plot([1, 2])
        plt.show()
        dropped = plt.figure()
        plt.plot([1])
        plt.close(dropped)
        late, ax = plt.subplots()
        early, other = plt.subplots()
        other.plot([3])
        ax.plot([1])
        shown = plt.figure()
        plt.plot([1])
        shown
        empty = plt.figure()
        print(len(plt.get_fignums()))
    """
    ran = page(PLOT, demo=demo)
    lines = [ran.line(o.line) for o in ran.result.outputs if o.kind == "figure"]
    assert lines == ["plt.show()", "other.plot([3])", "ax.plot([1])", "shown"]
    assert ran.shown()[0][1] == "4\n"


def test_figures_before_a_failure_are_kept(page: Page) -> None:
    ran = page(PLOT, demo="plt.plot([1, 2])\nraise ValueError")
    assert [o.kind for o in ran.result.outputs] == ["figure"]
    assert ran.error().type == "ValueError"


def test_a_figure_that_cannot_be_drawn_is_a_failure(page: Page) -> None:
    error = page(PLOT, demo="plt.plot([1, 2])\nplt.title('$\\\\wrong{$')").error()
    assert error.type == "ValueError"
    assert "wrong" in error.message


def test_dark_text_on_an_image_stays_dark(page: Page) -> None:
    demo = """
        fig, ax = plt.subplots()
        ax.set_axis_off()
        ax.imshow([[0, 1]], cmap="gray")
        ax.text(1, 0, "dark on light")
        fig, ax = plt.subplots()
        ax.set_axis_off()
        mesh = ax.pcolormesh([[0, 1], [2, 3]], cmap="gray")
        fig.colorbar(mesh)
    """
    ran = page(PLOT, demo=demo)
    text, mesh = (o.data["image/svg+xml;dark"] for o in ran.result.outputs)
    assert "#000001" in text
    assert "#e6edf3" not in text
    assert "#000001" in mesh


def test_heavy_figures_become_pictures(page: Page) -> None:
    demo = """
        plt.figure()
        plt.scatter(np.random.rand(30000), np.random.rand(30000))
        x = np.linspace(0, 6)
        y = np.outer(np.sin(x), np.cos(x))
        plt.figure().add_subplot(projection="3d").plot_surface(*np.meshgrid(x, x), y)
    """
    ran = page(PLOT + "import numpy as np\n", demo=demo)
    for output in ran.result.outputs:
        assert "data:image/png;base64" in output.data["image/svg+xml"]
        assert len(output.data["image/svg+xml"]) < 250_000


@pytest.mark.parametrize("layout", ["none", "tight", "constrained"])
def test_a_figure_with_a_layout_is_drawn_once_and_keeps_it(page: Page, layout: str) -> None:
    demo = f"""
        figure, axes = plt.subplots(layout={layout!r})
        axes.set_ylabel("y")
        engine, canvas, drawn = figure.get_layout_engine(), figure.canvas, []
        canvas.mpl_connect("draw_event", drawn.append)
        display(figure)
        kept = figure.get_layout_engine() is engine and figure.canvas is canvas
        print(len(drawn), kept, figure.dpi)
    """
    shown = page(PLOT, demo=demo).shown()
    assert ("print(len(drawn), kept, figure.dpi)", "1 True 100.0\n") in shown


def test_asking_for_a_module_is_not_importing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "imported_late.py").write_text("x = 1")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    seen: list[int] = []
    after_import("imported_late", lambda module: seen.append(module.x))
    assert importlib.util.find_spec("imported_late")
    assert seen == []
    importlib.import_module("imported_late")
    assert seen == [1]
    after_import("imported_late", lambda module: seen.append(2))
    assert seen == [1, 2]


def test_the_style_does_not_depend_on_where_it_runs(page: Page) -> None:
    demo = """
        print(plt.get_backend().lower(), plt.rcParams["axes.spines.top"])
        plt.switch_backend("TkAgg")
        plt.plot([1])
    """
    ran = page("import matplotlib\nmatplotlib.use('QtAgg')\n" + PLOT, demo=demo)
    assert ran.shown()[0][1] == "agg False\n"
    assert [o.kind for o in ran.result.outputs] == ["stdout", "figure"]


def luminance(colour: str) -> float:
    def linear(value: float) -> float:
        return value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4

    red, green, blue = (linear(int(colour[i : i + 2], 16) / 255) for i in (1, 3, 5))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_data_colours_are_seen_on_both_grounds() -> None:
    from marginalia.figures import CYCLE

    for colour in CYCLE:
        for ground in ("#ffffff", "#14161a"):
            low, high = sorted((luminance(colour), luminance(ground)))
            assert (high + 0.05) / (low + 0.05) >= 3


# Shapes


def test_every_binding_shows_its_tensor(page: Page) -> None:
    source = """
        import torch
        from torch import nn

        class Net(nn.Module):
            SCALE = torch.ones(1)

            def __init__(self):
                super().__init__()
                self.w = nn.Parameter(torch.ones(3, 4))
                self.register_buffer("b", torch.zeros(4))
                self.layer = nn.Linear(4, 5)
                self.many = nn.Sequential(*(nn.Linear(4, 4) for _ in range(4)))

            def forward(self, x, *rest, flag=None, **named):
                h = (
                    x
                    @ self.w
                )
                h += self.b
                a, (b, *c) = h, (h[0], h[0], h[1])
                self.cache = self.cached = h.detach()
                annotated: torch.Tensor = h[:, :2]
                declared: torch.Tensor
                for row in h[:1]: last = row
                with torch.no_grad() as nothing, torch.enable_grad():
                    inner = h.t()
                if (best := h.max(dim=1)).values.any():
                    pass
                match [h, h.t()]:
                    case [first, second]:
                        swapped = second
                parts = {"k": h, "list": [h[0]]}
                top = h.topk(1)
                h[0] = 1
                return self.layer(
                    h
                ), parts
    """
    ran = page(
        source, demo="net = Net()\nout = net(torch.ones(2, 3), torch.ones(7), k=torch.ones(8))"
    )
    assert ran.result.error is None
    expected = {
        "self.w": [3, 4],
        "self.layer.weight": [5, 4],
        "self.layer.bias": [5],
        "x": [2, 3],
        "rest[0]": [7],
        "named['k']": [8],
        "a": [2, 4],
        "b": [4],
        "self.cache": [2, 4],
        "self.cached": [2, 4],
        "annotated": [2, 2],
        "row": [4],
        "last": [4],
        "inner": [4, 2],
        "first": [2, 4],
        "second": [4, 2],
        "swapped": [4, 2],
        "parts['k']": [2, 4],
        "parts['list'][0]": [4],
        "return[0]": [2, 5],
        "return[1]['k']": [2, 4],
        "out[0]": [2, 5],
    }
    assert {name: ran.shape(name).shape for name in expected} == expected
    assert [ran.line(s.line) for s in ran.result.shapes if s.name == "h"] == [")", "h += self.b"]
    assert ran.shape("self.many").note == "8 tensors, 80 values"
    assert (
        ran.shape("x").line
        == ran.text.splitlines().index("    def forward(self, x, *rest, flag=None, **named):") + 1
    )
    assert ran.line(ran.shape("return[0]").line) == "), parts"
    kinds = {s.name: s.kind for s in ran.result.shapes}
    assert kinds["self.w"] == kinds["self.many"] == "parameter"
    assert kinds["self.cache"] == "tensor"
    assert not {"self", "declared", "nothing", "SCALE"} & set(kinds)
    assert ran.shapes("best.values") == [[2]]


def test_modules_show_their_weights_where_they_are_made(page: Page) -> None:
    source = """
        import torch
        from torch import nn
        def make(layer):
            return layer
    """
    demo = """
        made = make(nn.Linear(2, 3))
        for used in [made]:
            x = used(torch.ones(1, 2))
        relu = nn.ReLU()
        pair, other = made, [made, x]
    """
    ran = page(source, demo=demo)
    names = [shape.name for shape in ran.result.shapes]
    assert names == ["made.weight", "made.bias", "x", "pair.weight", "pair.bias", "other[1]"]


def test_ranges_and_serials(page: Page) -> None:
    demo = """
        x = torch.tensor([1.0, float("nan"), -2.5, float("inf")])
        same = x
        other = x.clone()
        ints = torch.tensor([3, -4])
        truth = ints > 0
        half = torch.tensor([0.5, 1.5], dtype=torch.bfloat16)
        empty = torch.empty(0, 3)
        strided = torch.arange(10.0)[1::3]
        expanded = torch.ones(1).expand(1000, 1000)
        meta = torch.empty(2, device="meta")
        comp = torch.ones(2) * 1j
        scalar = torch.tensor(7)
        huge = torch.zeros(1).expand(10**7)
        grad = torch.ones(2, requires_grad=True) * 3
        nans = torch.full((2,), float("nan"))
    """
    ran = page(MODEL, demo=demo)
    assert ran.result.error is None

    def seen(name: str) -> tuple[float | None, float | None, int]:
        return ran.shape(name).min, ran.shape(name).max, ran.shape(name).nan

    assert seen("x") == (-2.5, 1.0, 1)
    assert seen("ints") == (-4, 3, 0)
    assert seen("truth") == (0, 1, 0)
    assert seen("half") == (0.5, 1.5, 0)
    assert seen("strided") == (1, 7, 0)
    assert seen("expanded") == (1, 1, 0)
    assert seen("scalar") == (7, 7, 0)
    assert seen("grad") == (3, 3, 0)
    assert seen("nans") == (None, None, 2)
    for name in ("empty", "meta", "comp", "huge"):
        assert seen(name) == (None, None, 0)
    assert (ran.shape("half").dtype, ran.shape("meta").device) == ("bfloat16", "meta")
    ((_, x),), ((_, same),), ((_, other),) = (ran.shape(n).seen for n in ("x", "same", "other"))
    assert x == same != other


def test_several_shapes_of_one_line(page: Page) -> None:
    demo = """
        for n in range(1, 20):
            y = torch.ones(n)
            z = torch.ones(2)
        def f(x):
            return x
        f(z), f(z), f(y)
    """
    ran = page(MODEL, demo=demo)
    assert ran.shapes("y") == [[n] for n in range(1, 7)]
    assert ran.shape("z").count == 19
    first, other = (s for s in ran.result.shapes if s.name == "x")
    assert (first.count, other.count) == (2, 1)
    (call, z), (later, same), (latest, y) = *first.seen, *other.seen
    assert call < later < latest
    assert z == same != y


def test_the_first_runs_of_a_line_are_told_apart(page: Page) -> None:
    demo = """
        def f(x):
            y = x + 1
        for _ in range(300):
            f(torch.ones(3))
    """
    ran = page(MODEL, demo=demo)
    x, y = ran.shape("x"), ran.shape("y")
    assert (x.count, len(x.seen)) == (y.count, len(y.seen)) == (300, 200)
    assert [call for call, _ in x.seen] == [call for call, _ in y.seen]
    assert len({call for call, _ in x.seen}) == 200
    assert Result.from_json(json.loads(json.dumps(ran.result.to_json()))) == ran.result


def test_the_top_level_is_no_call(page: Page) -> None:
    source = """
        import torch
        def f(x):
            return x
        for _ in range(3):
            y = f(torch.ones(3))
    """
    ran = page(source, demo="pass")
    assert [call for call, _ in ran.shape("y").seen] == [0, 0, 0]
    assert 0 not in [call for call, _ in ran.shape("x").seen]


def test_tracing_keeps_nothing_alive(page: Page) -> None:
    source = """
        import gc, torch, weakref
        def f(x):
            y = x + 1
            gone = weakref.ref(y)
            del y
            assert gone() is None
            return gone
    """
    demo = """
        x = torch.ones(3)
        ref = weakref.ref(x)
        del x
        assert ref() is None
        for i in range(100):
            t = torch.ones(1)
            f(t)
        before = torch.ones(1)
        serials = {id(before)}
    """
    assert page(source, demo=demo).result.error is None


def test_what_tracing_must_not_touch(page: Page) -> None:
    source = """
        import torch
        from torch import nn
        from torch.overrides import TorchFunctionMode
        from torch.utils._python_dispatch import TorchDispatchMode

        class Net(nn.Module):
            def forward(self, x):
                y = x * 2
                parts = [y, y.t()]
                return y + 1

        class Dispatched(TorchDispatchMode):
            calls = []
            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                self.calls.append(str(func))
                return func(*args, **(kwargs or {}))

        class Called(TorchFunctionMode):
            calls = []
            def __torch_function__(self, func, types, args=(), kwargs=None):
                self.calls.append(getattr(func, "__name__", ""))
                return func(*args, **(kwargs or {}))
    """
    demo = """
        net, x = Net(), torch.ones(2, 2, requires_grad=True)
        with Dispatched(), Called():
            y = net(x)
        print(Dispatched.calls, Called.calls)
        print(torch.jit.trace(net, x).graph.str().count("aten::"))
        print(len(list(torch.fx.symbolic_trace(net).graph.nodes)))
        print(torch.compile(net, backend="eager", fullgraph=True)(x).shape)
        print(torch.vmap(net)(torch.ones(3, 2, 2)).shape)
        print(torch.func.grad(lambda v: net(v).sum())(x).sum())
        print(torch.func.jvp(net, (x,), (x,))[1].shape)
        n = torch.export.Dim("n")
        exported = torch.export.export(net, (torch.ones(4, 2),), dynamic_shapes={"x": {0: n}})
        print(len(list(exported.graph.nodes)))
        state = torch.get_rng_state()
        z = torch.ones(5)
        print(bool((state == torch.get_rng_state()).all()), x._version)
    """
    plain = page(source, demo=demo, shapes=False)
    traced = page(source, demo=demo)
    assert plain.result.error is None
    assert traced.shown() == plain.shown()
    assert traced.shown()[0][1].startswith("['aten.mul.Tensor'")


def test_unusual_tensors_and_values_are_survived(page: Page) -> None:
    source = """
        import warnings
        import torch
        from torch import nn

        class Sub(torch.Tensor):
            pass

        class Odd(torch.Tensor):
            @classmethod
            def __torch_function__(cls, func, types, args=(), kwargs=None):
                raise RuntimeError("no")

        class Touchy:
            __slots__ = ("x",)
            @property
            def p(self):
                raise RuntimeError("a property was called")
            @p.setter
            def p(self, value):
                pass
            def __getattr__(self, name):
                raise RuntimeError("asked for " + name)
            def __eq__(self, other):
                raise RuntimeError("compared")
            __hash__ = None

        class Unfinished(nn.Module):
            def __init__(self):
                self = object()
    """
    demo = """
        warnings.simplefilter("ignore")
        sub = torch.ones(2).as_subclass(Sub)
        odd = torch.ones(3).as_subclass(Odd)
        sparse = torch.eye(3).to_sparse()
        csr = torch.eye(3).to_sparse_csr()
        quantised = torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)
        nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
        jagged = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)
        conj = (torch.ones(2) * 1j).conj()
        neg = conj.imag
        touchy = Touchy()
        touchy.x = torch.ones(4)
        touchy.p = torch.ones(4)
        unfinished = Unfinished()
        lazy = nn.LazyLinear(3)
        cycle = []
        cycle.append(cycle)
        packed = nn.utils.rnn.pack_sequence([torch.ones(2, 1)])
        out = nn.LSTM(1, 2)(torch.ones(3, 1))
        big = [torch.ones(1)] * 100
        param = nn.Parameter(torch.ones(2))
    """
    ran = page(source, demo=demo)
    assert ran.result.error is None
    assert ran.shapes("sub") == [[2]]
    assert ran.shapes("sparse") == [[3, 3]]
    assert ran.shapes("touchy.x") == [[4]]
    assert ran.shapes("packed.data") == [[2, 1]]
    assert ran.shapes("out[1][0]") == [[1, 2]]
    assert len([s for s in ran.result.shapes if s.name.startswith("big")]) == 6
    assert (ran.shape("neg").min, ran.shape("param").kind) == (None, "parameter")


def test_functions_of_every_kind_run_as_before(page: Page) -> None:
    source = """
        from __future__ import annotations
        import asyncio, functools, inspect, torch
        from dataclasses import dataclass

        def generator(x):
            y = x * 2
            yield y
            return y

        async def coroutine(x):
            y = x + 1
            return y

        @functools.lru_cache
        def cached(n):
            "Docstring."
            t = torch.ones(n)
            return t

        @torch.jit.script
        def scripted(x):
            y = x + 1
            return y

        class Double(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                y = x * 2
                return y
            @staticmethod
            def backward(ctx, g):
                h = g * 2
                return h

        @dataclass
        class Point:
            x: int = 1
            def moved(self, dx):
                self.x += dx
                return self

        class Private:
            def __init__(self, __secret):
                self.__hidden = __secret
                __local = torch.ones(3)
                self.total = __local.sum()
            def __call__(self): return locals()

        def outer():
            count = 0
            def inner():
                nonlocal count
                count += 1
                return count
            return inner(), inner()

        def unbound(flag):
            if flag:
                value = torch.ones(1)
            try:
                return value
            except UnboundLocalError:
                return "unbound"

        def hooked(module, args, output):
            doubled = output * 2
            return doubled
    """
    demo = """
        print([y.sum() for y in generator(torch.ones(2))], inspect.isgeneratorfunction(generator))
        print(asyncio.run(coroutine(torch.ones(1))), inspect.iscoroutinefunction(coroutine))
        print(cached(2) is cached(2), cached.__doc__, inspect.getsource(cached).count("__mg"))
        print(scripted(torch.ones(1)))
        x = torch.ones(2, requires_grad=True)
        Double.apply(x).sum().backward()
        print(x.grad, Point().moved(2), Private(3)().keys(), outer(), unbound(True), unbound(False))
        layer = torch.nn.Identity()
        layer.register_forward_hook(hooked)
        print(layer(torch.ones(1)), [v := 3, v], (lambda q: q + 1)(2))
        print(sorted(k for k in globals() if "mg" in k), inspect.signature(unbound))
        data = torch.utils.data.TensorDataset(torch.arange(4.0))
        print([b for b, in torch.utils.data.DataLoader(data, batch_size=2, num_workers=1)])
    """
    traced = page(source, demo=demo)
    assert traced.result.error is None
    assert traced.shown() == page(source, demo=demo, shapes=False).shown()
    assert traced.shapes("h") == [[2]]
    assert traced.shapes("doubled") == [[1]]


def test_a_line_is_looked_at_a_thousand_times(page: Page) -> None:
    """Or hot loops would be slow."""
    source = """
        import torch

        def step(x):
            y = x + 1
            return y
    """
    demo = """
        sum = torch.zeros(1)
        for _ in range(3000):
            sum = step(sum)
        print(int(sum))
    """
    ran = page(source, demo=demo)
    assert ran.shown() == [("print(int(sum))", "3000\n")]
    assert [ran.shape(name).count for name in ("x", "y", "return")] == 3 * [1000]


# Claims


def test_both_sides_of_a_claim(page: Page) -> None:
    demo = """
        extra = 28_088_024
        assert extra == 28088024  # Table 1
    """
    claim = page(demo=demo).claim()
    assert claim == Claim(
        line=5,
        end_line=5,
        text="extra == 28088024",
        operator="==",
        left="28,088,024",
        right="28,088,024",
        ok=True,
        source="Table 1",
        times=1,
    )


ONES = "tensor [2 64] in (1, 1)"


@pytest.mark.parametrize(
    ("condition", "sides"),
    [
        ("1 < 2 < 3", ("1", "<", "2 < 3")),
        ("not 0", ("0", "not", "")),
        ("not 1 == 2", ("1", "not ==", "2")),
        ("1 in [1, 2]", ("1", "in", "[1, 2]")),
        ("None is None", ("None", "is", "None")),
        ("'a' not in 'bcd'", ("'a'", "not in", "'bcd'")),
        ("[1]", ("[1]", "", "")),
        ("1 > 0 and 2 > 1", ("1 > 0", "and", "2 > 1")),
        ("1 > 0 or 2 > 1", ("1 > 0", "or", "… > …")),
        ("0.1 + 0.2 != 0.3", ("0.3", "!=", "0.3")),
        ("1e-9 < 123456.0", ("1e-09", "<", "123,456")),
        ("t.all()", ("True", "", "")),
        ("t.sum() == 128", ("128", "==", "128")),
        ("(t / 3).shape == (2, 64)", ("[2 64]", "==", "(2, 64)")),
        ("(t != t + 1).numpy().any()", ("True", "", "")),
        (
            "torch.allclose(t, t + 1e-9)",
            ("tensor [2 64] in (1, 1)", "≈", "tensor [2 64] in (1, 1)"),
        ),
        ("torch.equal(t, t)", ("tensor [2 64] in (1, 1)", "==", "tensor [2 64] in (1, 1)")),
        ("isinstance(t, torch.Tensor)", ("True", "", "")),
        ("{'a': 1, 'b': t}", ("{'a': 1, 'b': tensor [2 64] in (1, 1)}", "", "")),
        ("(1,) == (1,)", ("(1,)", "==", "(1,)")),
        ("set() == set()", ("set()", "==", "set()")),
        ("{2, 1} == {1, 2}", ("{1, 2}", "==", "{1, 2}")),
        ("range(1000) != list(range(1000))", None),
        ("'x' * 500", None),
        ("len([k := 3, k]) == 2", ("2", "==", "2")),
        ("all(i < 5 for i in range(3))", ("True", "", "")),
        ("int is int", ("int", "is", "int")),
        ("np.float32(0.5) == np.ones(3).mean() / 2", ("0.5", "==", "0.5")),
        ("np.arange(3) is not None", ("array [3] in (0, 2)", "is not", "None")),
        ("torch.float32 != torch.float64", ("torch.float32", "!=", "torch.float64")),
        ("demo", ("<function demo>", "", "")),
    ],
)
def test_values_of_conditions(page: Page, condition: str, sides: tuple[str, ...] | None) -> None:
    ran = page(
        "import numpy as np\nimport torch\nt = torch.ones(2, 64)\n", demo=f"assert {condition}"
    )
    assert ran.result.error is None
    claim = ran.claim()
    assert (claim.ok, claim.text) == (True, condition)
    if sides:
        assert (claim.left, claim.operator, claim.right) == sides
    assert len(claim.left) + len(claim.right) < 300


def test_a_failing_claim_says_its_values(page: Page) -> None:
    ran = page(demo="extra = 4\nassert extra == 5  # Eq. 1\nassert False")
    claim = ran.claim()
    assert (claim.ok, claim.left, claim.right, claim.source) == (False, "4", "5", "Eq. 1")
    error = ran.error()
    assert (error.type, error.message) == ("AssertionError", "extra == 5: left 4, right 5")
    assert error.line == claim.line
    assert error.frames == [
        {"line": claim.line, "function": "demo", "text": "assert extra == 5  # Eq. 1"}
    ]


def test_a_message_of_its_own_is_kept(page: Page) -> None:
    ran = page(demo="n = 4\nassert not n, f'n is {n}'")
    assert ran.error().message == "n is 4"
    assert page(demo="assert [], 'empty'").error().message == "empty"
    assert page(demo="assert []").error().message == "[]: it is []"


def test_operands_run_once_and_only_if_needed(page: Page) -> None:
    source = """
        calls = []
        def say(x):
            calls.append(x)
            return x
    """
    demo = """
        assert say(1) < say(2) < say(3)
        assert say(4) or say(5)
        assert not (say(6) > say(7) > say(8))
        assert True, say("message")
        print(calls)
    """
    ran = page(source, demo=demo)
    assert ran.shown() == [("print(calls)", "[1, 2, 3, 4, 6, 7]\n")]
    chain = ran.result.claims[2]
    assert (chain.left, chain.operator, chain.right) == ("6", "not >", "7 > …")


def test_a_claim_in_a_loop_counts(page: Page) -> None:
    demo = """
        def check(n):
            assert n < 7  # nested, but in the demo
        for i in range(5):
            check(i)
            assert i < 3
    """
    nested, looped = page(demo=demo).result.claims
    assert (nested.times, nested.left, nested.source) == (4, "3", "nested, but in the demo")
    assert (looped.times, looped.left, looped.ok) == (4, "3", False)


def test_claims_are_those_of_the_demo(page: Page) -> None:
    source = """
        def helper(x):
            assert x
        assert True
        class C:
            def demo(self):
                assert self
    """
    assert page(source, demo="helper(1); C().demo()\nif 0:\n    assert 1").result.claims == []


def test_functions_that_check(page: Page) -> None:
    source = """
        import numpy as np
        import numpy.testing as npt
        import torch
        import torch.testing
        from numpy.testing import assert_array_equal
        from torch.testing import assert_close as close
        def assert_equal(*args): pass
    """
    demo = """
        a = torch.ones(2, 3, requires_grad=True)
        torch.testing.assert_close(a + 1e-7, a)  # Eq. 2
        close(
            actual=a,  # why
            expected=a,
        )  # Eq. 3
        npt.assert_allclose(np.ones(2), np.ones(2) + 1e-9)
        assert_array_equal([1, 2], [1, 2])
        assert_equal(1, 2)
        torch.testing.assert_close({"a": a}, {"a": a})
        torch.testing.assert_close(a, a + 1, msg="far")
    """
    ran = page(source, demo=demo)
    claims = ran.result.claims
    assert [(c.operator, c.ok, c.source) for c in claims] == [
        ("≈", True, "Eq. 2"),
        ("≈", True, "Eq. 3"),
        ("≈", True, ""),
        ("==", True, ""),
        ("≈", True, ""),
        ("≈", False, ""),
    ]
    assert claims[0].text == "torch.testing.assert_close(a + 1e-7, a)"
    assert (claims[0].left, claims[0].note) == (
        "tensor [2 3] in (1, 1)",
        "largest difference 1.2e-07",
    )
    assert claims[1].text == "close(actual=a, expected=a)"
    assert claims[3].left == "[1, 2]"
    assert claims[5].note == "largest difference 1"
    assert ran.error().message == "far"
    assert [frame["function"] for frame in ran.error().frames] == ["demo"]


def test_the_source_of_a_claim_is_read_again() -> None:
    text = "def demo():\n    assert (  # first\n        1\n    )  # last\n    assert 2\n"
    claim = Claim(2, 4, "1", "", "1", "", True)
    assert claim_source(text, claim) == "last"
    assert claim_source(text.replace("  # last", ""), claim) == "first"
    assert claim_source(text, Claim(5, 5, "2", "", "2", "", True)) == ""


# Failures


def test_a_failure_shows_the_frames_of_the_page(page: Page, tmp_path: Path) -> None:
    (tmp_path / "helper.py").write_text("def call(f):\n    f()\n")
    source = """
        import helper
        def inner():
            raise ValueError("what went wrong")
    """
    error = page(source, demo="print('before')\nhelper.call(inner)").error()
    assert (error.type, error.message) == ("ValueError", "what went wrong")
    assert [(f["function"], f["text"]) for f in error.frames] == [
        ("demo", "helper.call(inner)"),
        ("inner", 'raise ValueError("what went wrong")'),
    ]
    assert error.line == error.frames[-1]["line"]


def test_output_before_a_failure_is_kept(page: Page) -> None:
    ran = page(demo="print('before')\n1 / 0\nprint('never')")
    assert ran.shown() == [("print('before')", "before\n")]
    assert ran.error().type == "ZeroDivisionError"


@pytest.mark.parametrize(
    ("statement", "kind", "message"),
    [
        ("sys.exit()", "SystemExit", "the demo called sys.exit"),
        ("sys.exit(0)", "SystemExit", "the demo called sys.exit (0)"),
        ("sys.exit('reason')", "SystemExit", "the demo called sys.exit (reason)"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt", ""),
        ("raise Unspeakable", "Unspeakable", ""),
        ("demo()", "RecursionError", "maximum recursion depth exceeded"),
    ],
)
def test_ways_to_end(page: Page, statement: str, kind: str, message: str) -> None:
    source = """
        import sys
        class Unspeakable(BaseException):
            def __str__(self): raise ValueError
    """
    error = page(source, demo=statement).error()
    assert error.type == kind
    assert error.message.startswith(message)
    assert len(error.frames) <= 20


def test_a_module_that_cannot_be_imported(page: Page) -> None:
    ran = page("import no_such_module", demo="pass")
    assert (ran.error().type, ran.error().line) == ("ModuleNotFoundError", 1)
    assert ran.error().frames[0]["function"] == "<module>"


def test_a_source_that_does_not_parse(page: Page, tmp_path: Path) -> None:
    error = page("def demo():\n    x = (\n").error()
    assert (error.type, error.line) == ("SyntaxError", 2)
    error = page("def demo():\n    return = 1\n").error()
    assert error.frames == [{"line": 2, "function": "<module>", "text": "return = 1"}]
    error = page("def demo():\n    pass\nbreak\n").error()  # only the compiler finds this
    assert (error.type, error.line) == ("SyntaxError", 3)
    (tmp_path / "latin.py").write_bytes(b"# \xff\ndef demo(): pass\n")
    assert forked(tmp_path / "latin.py", root=tmp_path).error is not None
    assert forked(tmp_path / "missing.py", root=tmp_path).error is not None


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_newlines_and_marks(tmp_path: Path, newline: str) -> None:
    lines = ["# é", "def demo():", "    assert 1 == 1  # one", "    print('é')", ""]
    path = tmp_path / "page.py"
    path.write_bytes(b"\xef\xbb\xbf" + newline.join(lines).encode())
    result = forked(path, root=tmp_path)
    assert result.error is None
    assert result.outputs == [Output(4, "stdout", {"text/plain": "é\n"})]
    assert (result.claims[0].line, result.claims[0].source) == (3, "one")


# The model page

PAPERS = Path(__file__).parents[1] / "papers"
MODEL_PAGE = PAPERS / "attention" / "squeeze_excitation.py"


@pytest.fixture(scope="module")
def model_page() -> Ran:
    return Ran(forked(MODEL_PAGE, root=PAPERS), MODEL_PAGE.read_text())


def test_the_model_page_keeps_its_claims(model_page: Ran) -> None:
    assert model_page.result.error is None
    claims = model_page.result.claims
    asserts = re.findall(r"^    (?:assert |torch\.testing)", model_page.text, re.MULTILINE)
    assert len(claims) == len(asserts) >= 6
    assert all(claim.ok and claim.source for claim in claims)
    assert claims[0].left == claims[0].right == "2,514,944"


def test_the_model_page_shows_every_tensor(model_page: Ran) -> None:
    """Each line of `gate` and `forward` that binds or returns a tensor, and their arguments."""
    shown = {(shape.line, shape.name) for shape in model_page.result.shapes}
    for function in ast.walk(ast.parse(model_page.text)):
        if isinstance(function, ast.FunctionDef) and function.name in ("gate", "forward"):
            if function.args.args[1].arg == "x":
                continue  # the demo builds this one without computing
            assert (function.lineno, "u") in shown
            for node in ast.walk(function):
                if isinstance(node, ast.Assign):
                    assert (node.end_lineno, ast.unparse(node.targets[0])) in shown
                elif isinstance(node, ast.Return):
                    assert (node.end_lineno, "return") in shown


def test_the_model_page_draws(model_page: Ran) -> None:
    (figure,) = [o for o in model_page.result.outputs if o.kind == "figure"]
    assert set(figure.data) == {"image/svg+xml", "image/svg+xml;dark", "alt"}
    assert "gate over channel" in figure.data["alt"]
