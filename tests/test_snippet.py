from __future__ import annotations

import ast
import builtins
import dis
import io
import re
import types
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from textwrap import dedent
from typing import Any

import matplotlib as mpl
import pytest
from marginalia.blocks import load
from marginalia.errors import MarginaliaError, SourceError
from marginalia.rows import parse
from marginalia.snippet import runnable
from marginalia.source import symbols

MODEL = Path(__file__).parents[1] / "papers" / "attention" / "squeeze_excitation.py"


def cut(source: str, target: str | tuple[int, int]) -> str:
    return runnable(dedent(source).lstrip("\n"), target)


def row(source: str, text: str) -> str:
    """What the line that contains a text gives."""
    source = dedent(source).lstrip("\n")
    lines = source.splitlines()
    number = next(n for n, line in enumerate(lines, 1) if text in line)
    return runnable(source, (number, number))


def run(code: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(compile(code, "<snippet>", "exec", dont_inherit=True), names)
    return names


def printed(code: str) -> str:
    with redirect_stdout(io.StringIO()) as out:
        run(code)
    return out.getvalue()


def same(result: str, expected: str) -> bool:
    assert result == dedent(expected).lstrip("\n")
    return True


# Definitions


def test_only_what_the_names_lead_to() -> None:
    source = '''
        """A module."""

        import math
        import os, sys
        from collections import OrderedDict, deque

        LIMIT = 3
        OTHER = 4


        def unused():
            return OTHER


        def helper(x):
            return math.floor(x) + LIMIT


        class Box:
            def get(self):
                return helper(len(sys.argv)), deque()
    '''
    expected = """
        import math
        import sys
        from collections import deque

        LIMIT = 3


        def helper(x):
            return math.floor(x) + LIMIT


        class Box:
            def get(self):
                return helper(len(sys.argv)), deque()
    """
    assert same(cut(source, "Box"), expected)
    assert cut(source, "Box.get") == cut(source, "Box")
    assert cut(source, "OTHER") == "OTHER = 4\n"


def test_where_names_are_needed() -> None:
    source = """
        A = B = C = D = E = F = G = 1
        class Meta(type): pass
        class Base: pass
        def mark(value): return lambda x: x

        @mark(A)
        class Child(Base, metaclass=Meta):
            size = B

            def f(self, x=C, *, y: D = E):
                return f"{F:{G}}"
    """
    result = cut(source, "Child")
    assert result.startswith("A = B = C = D = E = F = G = 1\n\n\nclass Meta")
    assert run(result)["Child"]().f(1) == "1"
    assert "class Base" in result


@pytest.mark.parametrize(
    ("body", "needed"),
    [
        ("def f(X): return X", False),
        ("def f(*X): return X", False),
        ("def f():\n    X = 1\n    return X", False),
        ("def f():\n    def g(): return X\n    X = 1\n    return g()", False),
        ("def f(): return lambda X: X", False),
        ("def f(): return [X for X in []]", False),
        ("def f(): return [y for y in X]", True),
        ("def f(): return [X for X in X]", True),
        ("def f(): return [y for y in [] for z in X]", True),
        ("def f(): return {X: 1 for y in []}", True),
        ("def f():\n    [X := y for y in []]\n    return X", False),
        ("def f():\n    for X in []: pass\n    return X", False),
        ("def f():\n    try: pass\n    except E as X: pass\n    return X", False),
        ("def f():\n    with o() as X: pass\n    return X", False),
        ("def f():\n    import X\n    return X", False),
        ("def f():\n    from a import b as X\n    return X", False),
        ("def f(v):\n    match v:\n        case {'k': [*X]}: return X", False),
        ("def f(v):\n    match v:\n        case {**X}: return X", False),
        ("def f(v):\n    match v:\n        case X.y: return 1", True),
        ("def f(v):\n    match v:\n        case X(a=1) as y: return y", True),
        ("def f():\n    global X\n    X = 1", False),
        ("def f():\n    global X\n    return X", True),
        ("def f():\n    X += 1", False),
        ("def f():\n    class X: pass\n    return X", False),
        ("def f():\n    def X(): pass\n    return X", False),
        ("def f():\n    del X", False),
        ("class f:\n    X = 1\n    y = X", False),
        ("class f:\n    X = 1\n    def g(self): return X", True),
        ("class f:\n    X = X", True),
        ("class f:\n    X = 1\n    y = [X for _ in range(1)]", True),
        ("class f:\n    def X(self): return X", True),
        ("def f(a=lambda X: X): pass", False),
        ("def f(a=lambda y=X: y): pass", True),
        ("def f(a: 'X'): pass", True),
        ("def f(a: 'list[X]') -> None: pass", True),
        ("def f(a: Literal['X']): pass", False),
        ("def f(): return 'X', obj.X", False),
        ("def f():  # X\n    '''X'''", False),
        ("async def f():\n    async for X in y: return X", False),
        ("def f():\n    def g():\n        nonlocal X\n        X = 1\n    X = 2", False),
    ],
)
def test_scopes(body: str, needed: bool) -> None:
    result = runnable(f"X = 0\n\n\n{body}\n", "f")
    assert (result == f"X = 0\n\n\n{body}\n") is needed
    assert (result == f"{body}\n") is not needed


def test_a_class_before_python_binds_its_name() -> None:
    source = """
        from torch import nn


        class A:
            nn = nn.Linear
            layer = nn
    """
    assert same(cut(source, "A"), source)


def test_changes_in_place_are_kept() -> None:
    source = """
        import torch
        from torch import nn

        STAGES = [1]
        SIZES = {}
        OTHERS = []
        STAGES.append(2)
        SIZES["a"] = STAGES
        OTHERS.append(3)
        STAGES += [4]
        for n in range(3):
            STAGES.append(n)
        torch.set_default_dtype(torch.float64)
        print(STAGES)


        class Net(nn.Module):
            pass


        Net.depth = 3
        setattr(Net, "width", len(STAGES))
    """
    assert same(
        cut(source, "STAGES"),
        """
        STAGES = [1]
        STAGES.append(2)
        STAGES += [4]
        for n in range(3):
            STAGES.append(n)
        """,
    )
    assert same(cut(source, "OTHERS"), "OTHERS = []\nOTHERS.append(3)\n")
    net = cut(source, "Net")
    assert "set_default_dtype" in net
    assert "Net.depth = 3" in net
    assert 'setattr(Net, "width"' in net
    assert "OTHERS" not in net
    assert "SIZES" not in net
    assert "print" not in net


def test_functions_that_change_the_module() -> None:
    source = """
        CACHE = {}
        TABLE = None


        def fill():
            CACHE["a"] = 1


        def make():
            global TABLE
            TABLE = [1]


        fill()
        make()


        def read():
            return CACHE["a"], TABLE
    """
    assert same(cut(source, "read"), source)
    names = run(cut(source, "read"))
    assert names["read"]() == (1, [1])


def test_a_name_bound_only_by_global() -> None:
    source = """
        def make():
            global TABLE
            TABLE = [1]


        make()


        def read():
            return TABLE
    """
    assert run(cut(source, "read"))["read"]() == [1]


def test_blocks_come_whole() -> None:
    source = """
        import sys
        from typing import TYPE_CHECKING

        try:
            from fast import dot
        except ImportError:
            dot = None

        if TYPE_CHECKING:
            from torch import Tensor, nn

        if sys.version_info >= (3, 8):
            def norm(x): return dot
        else:
            def norm(x): return None


        def f(x: "Tensor"):
            return norm(x)
    """
    assert same(cut(source, "f"), source)


def test_all_definitions_of_a_name() -> None:
    source = """
        from typing import overload

        @overload
        def f(x: int) -> int: ...
        @overload
        def f(x: str) -> str: ...
        def f(x): return x
        x = 1
        x = x + 1
        del x
    """
    assert cut(source, "f").count("def f") == 3
    assert same(cut(source, "x"), "x = 1\nx = x + 1\n")


def test_imports_are_cut_to_size() -> None:
    source = """
        import os.path as p
        import xml.dom
        import xml.etree.ElementTree
        import xml
        from a.b import (
            one,  # the first
            two as zwei,
            three,
        )
        from c import d, e  # both

        def f(): return p.x, xml.etree.ElementTree.parse, zwei, three
        def g(): return d, e
        def h(): return xml
    """
    assert same(
        cut(source, "f"),
        """
        import os.path as p
        import xml.etree.ElementTree
        from a.b import two as zwei, three


        def f(): return p.x, xml.etree.ElementTree.parse, zwei, three
        """,
    )
    assert same(cut(source, "g"), "from c import d, e  # both\n\n\ndef g(): return d, e\n")
    assert cut(source, "h").startswith("import xml\n\n")


def test_a_long_import_stays_readable() -> None:
    names = [f"a_rather_long_name_{n}" for n in range(9)]
    result = runnable(f"from m import {', '.join(names)}\ndef f(): {'; '.join(names[1:])}\n", "f")
    assert result.startswith(f"from m import (\n    {names[1]},\n")
    assert max(map(len, result.splitlines()[:9])) < 100


def test_star_imports_only_for_unknown_names() -> None:
    source = "from math import *\nimport os\n\ndef f(): return floor(1)\ndef g(): return os, len\n"
    assert cut(source, "f") == "from math import *\n\n\ndef f(): return floor(1)\n"
    assert cut(source, "g") == "import os\n\n\ndef g(): return os, len\n"


def test_the_future_comes_first_and_only_for_annotations() -> None:
    source = """
        # An example.
        from __future__ import annotations

        import os

        from torch import Tensor


        def f(x: Tensor) -> Tensor:
            return os.sep


        def g(x):
            return x
    """
    assert same(
        cut(source, "f"),
        """
        from __future__ import annotations

        import os

        from torch import Tensor


        def f(x: Tensor) -> Tensor:
            return os.sep
        """,
    )
    assert cut(source, "g").startswith("def g")


def test_comments_and_room() -> None:
    source = """
        #!/usr/bin/env python
        # -*- coding: utf-8 -*-
        # All we need.
        import math  # numbers

        # # A heading

        # Touches.
        A = 1
        # %% a cell
        B = A  # trails
        C = math.pi

        # Why.
        # Because.
        @staticmethod
        def f():
            # Inside.
            return A, B, C


        D = f  # last
    """
    assert same(
        cut(source, "D"),
        """
        import math  # numbers

        # Touches.
        A = 1
        B = A  # trails
        C = math.pi


        # Why.
        # Because.
        @staticmethod
        def f():
            # Inside.
            return A, B, C


        D = f  # last
        """,
    )


@pytest.mark.parametrize("marker", ["# %%", "#%% a", "# In [3]:", "# In[ ]:", "# +", "# -"])
def test_cell_markers_are_no_comments(marker: str) -> None:
    assert row(f"{marker}\nA = 1\n", "A = 1") == "A = 1\n"


def test_the_last_demo_is_the_demo() -> None:
    source = """
        def demo():
            print("old")


        def demo():
            new = 1
            print(new)
    """
    assert row(source, "print(new)") == "new = 1\nprint(new)\n"


def test_line_ends_and_marks() -> None:
    source = "\ufeffimport os\r\nA = '''x\r\n  y'''\r\nB = A, os\r\n"
    assert runnable(source, "B") == "import os\n\nA = '''x\n  y'''\nB = A, os\n"


def test_unknown_symbols() -> None:
    source = "import os\nclass Encoder:\n    def forward(self): pass\n"
    with pytest.raises(MarginaliaError, match=r"^m\.py: .* of Encodr; is it Encoder or "):
        runnable(source, "Encodr", path="m.py")
    with pytest.raises(MarginaliaError, match=r"Encoder\.forward"):
        runnable(source, "Encoder.forwad")
    with pytest.raises(MarginaliaError, match=r"no definition of os$"):
        runnable(source, "os")
    with pytest.raises(SourceError, match=r"^m\.py:1:"):
        runnable("def (", "f", path="m.py")


# Lines


DEMO = """
    import random

    import torch
    from torch import nn

    SCALE = 2


    class Net(nn.Module):
        def forward(self, x):
            return x * SCALE


    def demo() -> None:
        \"\"\"Shows it.\"\"\"
        torch.manual_seed(0)

        # **Make.** A net.
        net, other = Net(), 3
        x = torch.ones(2)
        y = net(x)
        print(y)

        # **Change.** In place.
        y[0] = 7
        net.eval()
        net.scale = other
        v = x[0]
        v.add_(1)
        with torch.no_grad():
            z = y + 1
            print("nested", z)

        text = '''
        kept
          as it is'''

        print("last", z, x)
        print("said", text)
        print("net", net)


    if __name__ == "__main__":
        demo()
"""


def test_a_demo_row_brings_what_it_needs() -> None:
    expected = """
        import torch
        from torch import nn

        SCALE = 2


        class Net(nn.Module):
            def forward(self, x):
                return x * SCALE


        torch.manual_seed(0)

        net, other = Net(), 3
        x = torch.ones(2)
        y = net(x)

        y[0] = 7
        v = x[0]
        v.add_(1)
        with torch.no_grad():
            z = y + 1
            print("nested", z)

        print("last", z, x)
    """  # without the comments: they speak of statements that are not all there
    result = row(DEMO, '"last"')
    assert same(result, expected)
    run(result)


def test_a_demo_row_dedents_code_but_not_text() -> None:
    result = row(DEMO, '"said"')
    assert same(
        result,
        "import torch\n\ntorch.manual_seed(0)\n\n"
        "text = '''\n    kept\n      as it is'''\n\nprint(\"said\", text)\n",
    )


def test_nested_demo_lines_give_the_statement() -> None:
    assert row(DEMO, '"nested"').endswith('    z = y + 1\n    print("nested", z)\n')


def test_calls_on_a_needed_object_are_kept() -> None:
    result = row(DEMO, '"net"')
    assert "net.eval()\nnet.scale = other\n" in result
    assert "y[0]" not in result


def test_the_signature_of_the_demo_alone_gives_all_of_it() -> None:
    assert row(DEMO, "def demo") == cut(DEMO, "demo")
    assert cut(DEMO, "demo").endswith('\n\n\nif __name__ == "__main__":\n    demo()\n')
    assert "import random" not in cut(DEMO, "demo")


def test_training_reaches_the_model() -> None:
    source = """
        import torch


        def demo():
            model = torch.nn.Linear(2, 1)
            unused = torch.nn.Linear(2, 1)
            data = torch.ones(3, 2)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            for step in range(3):
                loss = model(data).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            for step in range(2):
                unused.bias
            print("result", model.bias)
    """
    result = row(source, '"result"')
    assert "optimizer.step()" in result
    assert "unused" not in result
    run(result)


TRAINING = """
    class Model:
        def __init__(self):
            self.w = [0]
            self.seen = 0

        def fit(self, n):
            self.w[0] += n
            return n

        def again(self, n):
            return self.fit(n)

        def __call__(self, x):
            self.seen = x
            return x

        def predict(self, x):
            y = self.scale(x)
            y += 1
            return y

        def scale(self, x):
            return x * 2

        @staticmethod
        def reset(model):
            model.w[0] = 9


    class Optimizer:
        def __init__(self, parameters):
            self.parameters = parameters

        def step(self):
            self.parameters[0] += 1


    LOG = []


    def note(text):
        LOG.append(text)
        return text


    def step(model, optimizer):
        optimizer.step()
        return model.w[0]


    def train(model, steps):
        return [step(model, Optimizer(model.w)) for _ in range(steps)]


    def outer(*, model):
        return train(model, 2)


    def every(*models):
        for one in models:
            one.w[0] += 1
        return len(models)


    def first(items, value):
        view = items
        view[0] = value
        return value


    def count(model, items):
        items = list(items)
        items[0] = 5
        total = model.seen + 1
        total += 1
        return total


    def demo():
        m = Model()
        opt = Optimizer(m.w)
        items = [3]
        STEP
        print(SHOWN)
"""


@pytest.mark.parametrize(
    ("statement", "shown"),
    [
        ("loss = step(m, opt)", "m.w"),
        ("loss = train(m, 2)", "m.w"),
        ("loss = train(steps=2, model=m)", "m.w"),
        ("train(steps=2, model=m)", "m.w"),
        ("losses = [train(m, 1) for _ in range(2)]", "m.w"),
        ("loss = outer(model=m)", "m.w"),
        ("n = every(Model(), m)", "m.w"),
        ("n = every(*[Model()], m)", "m.w"),
        ("loss = m.fit(1)", "m.w"),
        ("loss = m.again(1)", "m.w"),
        ("y = m(2)", "m.seen"),
        ("n = Model.reset(m)", "m.w"),
        ("n = m.reset(m)", "m.w"),
        ("n = first(items, 4)", "items"),
        ("if first(items, 4): pass", "items"),
        ("text = note('a')", "LOG"),
    ],
)
def test_a_call_whose_result_is_kept_changes_what_it_is_given(statement: str, shown: str) -> None:
    source = dedent(TRAINING.replace("STEP", statement).replace("SHOWN", shown)).lstrip("\n")
    result = row(source, f"print({shown})")
    assert printed(result) == printed(f"{source}\n\ndemo()\n")


@pytest.mark.parametrize(
    ("statement", "shown"),
    [
        ("y = m.predict(1)", "m.w"),
        ("n = count(m, items)", "m.w"),
        ("n = count(m, items)", "items"),
        ("n = first(items, m)", "m.w"),
        ("y = m(items)", "items"),
        ("other = Optimizer(items)", "items"),
    ],
)
def test_a_call_that_changes_nothing_is_left_out(statement: str, shown: str) -> None:
    source = TRAINING.replace("STEP", statement).replace("SHOWN", shown)
    assert statement not in row(source, f"print({shown})")


def test_a_loop_variable_needs_no_earlier_loop() -> None:
    source = """
        def demo():
            for i in range(3):
                print("first", i)
            for i in range(4):
                print("second", i)
    """
    assert row(source, '"second"') == 'for i in range(4):\n    print("second", i)\n'


def test_what_is_bound_later_cannot_be_changed_before() -> None:
    source = """
        def demo():
            x = []
            for item in [x]:
                item.append(1)
            for n in range(2):
                y = [n]
            for item in [y]:
                print("y", item)
    """
    assert row(source, '"y"').startswith("for n in range(2):\n    y = [n]\nfor item in [y]:\n")


def test_the_last_binding_counts() -> None:
    source = """
        def demo():
            x = [0]
            x.append(1)
            y = x
            x = [2]
            k = 1
            def f():
                return k
            k = 2
            print("y", y)
            print("x", x)
            print("f", f())
    """
    assert row(source, '"x"') == 'x = [2]\nprint("x", x)\n'
    assert "x = [2]" not in row(source, '"y"')
    assert "x.append(1)" in row(source, '"y"')
    assert "k = 2" in row(source, '"f"')


@pytest.mark.parametrize(
    "body",
    [
        "    if K:\n        return\n    print(K)",
        "    n = 0\n    def g():\n        nonlocal n\n        n = 1\n    g()\n    print(K)",
        "    other = 3\n    K2 = f(other)\n    sum = 0\n    print(K, K2, sum)",
    ],
)
def test_a_demo_that_cannot_be_dedented_is_called(body: str) -> None:
    source = f"K = 1\ndef f(x):\n    return sum([x, K])\n\ndef demo():\n{body}\n"
    number = source.count("\n")
    result = runnable(source, (number, number))
    if "return\n" in body:  # the row itself can be: what comes before it is not needed
        assert result == "K = 1\n\nprint(K)\n"
        number = source.splitlines().index("        return") + 1
        result = runnable(source, (number, number))
    elif "nonlocal" in body:
        assert result == "K = 1\n\nprint(K)\n"
        number -= 1
        result = runnable(source, (number, number))
    assert result.endswith("\n\n\ndemo()\n")
    run(result)


def test_lines_of_other_definitions_and_of_the_top_level() -> None:
    source = """
        import os

        A = os.sep
        B = 1


        class Box:
            # Only a comment.

            def get(self):
                return A, C


        C = 3
        # Detached.

        A = A + C
        D = A
        A = None
    """
    assert row(source, "return A, C") == cut(source, "Box")
    assert row(source, "D = A").splitlines() == [
        *("import os", "", "A = os.sep", "", "C = 3", "", "A = A + C", "D = A")
    ]
    assert row(source, "# Only") == ""
    assert row(source, "# Detached") == ""
    assert row(source, "import os") == "import os\n"
    assert cut(source, (100, 200)) == ""


def test_a_docstring_is_no_code() -> None:
    assert runnable('"""Text.\n\nMore.\n"""\nimport os\n', (1, 4)) == ""


def test_scripts_are_sliced_like_a_demo() -> None:
    source = """
        # %%
        import torch
        x = torch.zeros(3)
        # %%
        x[0] = 1
        y = 2
        # %%
        print("row", x)
        # %%
        x[1] = 5
    """
    assert same(
        row(source, '"row"'),
        """
        import torch

        x = torch.zeros(3)
        x[0] = 1
        print("row", x)
        """,
    )


# Local modules


@pytest.fixture
def papers(tmp_path: Path) -> Path:
    (tmp_path / "attention").mkdir()
    (tmp_path / "attention" / "gate.py").write_text(
        dedent("""
        import math
        from attention.base import WIDTH as w, Base
        from . import extra

        SCALE = 2


        class Gate(Base):
            def get(self):
                return math.floor(SCALE * w + extra.bonus())


        def unused():
            return SCALE
        """)
    )
    (tmp_path / "attention" / "base.py").write_text("WIDTH = 5\n\n\nclass Base:\n    pass\n")
    (tmp_path / "attention" / "extra.py").write_text("def bonus():\n    return 0.5\n")
    (tmp_path / "helper.py").write_text("import os\n\n\ndef clash():\n    return os.sep\n")
    return tmp_path


def in_papers(papers: Path, source: str, target: str) -> str:
    path = papers / "attention" / "main.py"
    path.write_text(dedent(source).lstrip("\n"))
    return runnable(path.read_text(), target, path=path, root=papers)


def test_local_definitions_take_the_place_of_imports(papers: Path) -> None:
    source = """
        import torch

        from attention.gate import Gate as G

        SIZE = 3


        def f():
            return G().get() + SIZE
    """
    expected = """
        import math

        WIDTH = 5


        class Base:
            pass


        w = WIDTH


        def bonus():
            return 0.5


        from types import SimpleNamespace

        extra = SimpleNamespace(bonus=bonus)

        SCALE = 2


        class Gate(Base):
            def get(self):
                return math.floor(SCALE * w + extra.bonus())


        G = Gate

        SIZE = 3


        def f():
            return G().get() + SIZE
    """
    result = in_papers(papers, source, "f")
    assert same(result, expected)
    assert run(result)["f"]() == 13


def test_a_local_module_as_an_object(papers: Path) -> None:
    source = """
        import helper as h


        def f():
            return h.clash()
    """
    result = in_papers(papers, source, "f")
    assert "h = SimpleNamespace(clash=clash)" in result
    assert run(result)["f"]()


@pytest.mark.parametrize(
    ("imports", "use"),
    [
        ("import helper", "vars(helper)"),
        ("import attention.base", "attention.base.WIDTH"),
        ("from helper import clash\nos = 3", "clash(), os"),
        ("import helper", "setattr(helper, 'x', 1)"),
    ],
)
def test_what_cannot_be_inlined_stays(papers: Path, imports: str, use: str) -> None:
    result = in_papers(papers, f"{imports}\n\n\ndef f():\n    return {use}\n", "f")
    file = "attention/base.py" if "attention" in imports else "helper.py"
    first = imports.splitlines()[0]
    assert result.startswith(f"# needs {file} from this site\n{first}\n")


def test_imports_inside_of_functions_are_told(papers: Path) -> None:
    source = "def f():\n    from helper import clash\n    return clash()\n"
    assert in_papers(papers, source, "f") == f"# needs helper.py from this site\n{source}"


def test_a_local_import_of_the_demo(papers: Path) -> None:
    source = "def demo():\n    from attention.base import WIDTH\n    print(WIDTH)\n"
    path = papers / "page.py"
    path.write_text(source)
    assert runnable(source, (3, 3), path=path, root=papers) == "WIDTH = 5\n\nprint(WIDTH)\n"


def test_a_circle_of_local_modules_is_cut_at_the_same_place_each_time(papers: Path) -> None:
    for name, imported in (("one", "two"), ("two", "three"), ("three", "one")):
        text = f"import {imported}\n\n\ndef {name}_f():\n    return {imported}.{imported}_f\n"
        (papers / f"{name}.py").write_text(text)
    source = "".join(f"from {name} import {name}_f\n" for name in ("three", "one", "two"))
    found = set()
    for number in range(20):
        text = f"{source}\nN = {number}\n\n\ndef f():\n    return one_f, two_f, three_f\n"
        found.add(in_papers(papers, text, "f"))
        load.cache_clear()
    assert len(found) == 1


def test_without_a_root_imports_stay(papers: Path) -> None:
    source = "from attention.base import Base\n\n\nclass A(Base):\n    pass\n"
    assert runnable(source, "A") == source
    assert in_papers(papers, source, "A") == (
        "class Base:\n    pass\n\n\nclass A(Base):\n    pass\n"
    )


def test_local_modules_that_import_each_other(papers: Path) -> None:
    (papers / "one.py").write_text("import two\n\ndef f(n):\n    return n and two.g(n - 1)\n")
    (papers / "two.py").write_text("import one\n\ndef g(n):\n    return n and one.f(n - 1)\n")
    source = "from one import f\n\n\ndef h():\n    return f(3)\n"
    result = in_papers(papers, source, "h")
    assert result == f"# needs one.py from this site\n{source}"


@pytest.mark.parametrize("place", ["real.py", "../outside.py"])
def test_a_local_module_that_is_a_link(papers: Path, place: str) -> None:
    """It goes by the name that it is imported by; one whose names clash stays."""
    root = papers / "root"
    root.mkdir()
    target = root / place
    target.write_text("WIDTH = 10\n\n\ndef f():\n    return WIDTH\n")
    (root / "link.py").symlink_to(target)
    source = "from link import f\n\nWIDTH = 5\n\n\ndef g():\n    return WIDTH + f()\n"
    page = root / "page.py"
    page.write_text(source)
    result = runnable(source, "g", path=page, root=root)
    assert result == f"# needs link.py from this site\n{source}"


def test_a_local_module_that_does_not_parse(papers: Path) -> None:
    (papers / "broken.py").write_text("x = (\n")
    with pytest.raises(SourceError, match=r"broken\.py:1:"):
        in_papers(papers, "from broken import x\ny = x\n", "y")


# The model module


TEXT = MODEL.read_text()
TARGETS = [
    *(symbol.name for symbol in symbols(TEXT)),
    *((found.start, found.end) for found in parse(TEXT)),
]


@pytest.fixture(autouse=True, scope="module")
def _headless() -> None:
    mpl.use("Agg")


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_everything_of_the_model_module_runs(target: str | tuple[int, int]) -> None:
    result = runnable(TEXT, target)
    names = run(result)
    if result:
        assert result.endswith("\n")
        assert not result.endswith("\n\n")
        assert missing_names(result) == set()
        assert result == runnable(TEXT, target)
    if isinstance(target, str):
        assert target.split(".")[0] in names


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_nothing_of_it_can_be_taken_away(target: str | tuple[int, int]) -> None:
    result = runnable(TEXT, target)
    for name, shorter in without_one(result):
        if name not in asked_for(target):
            assert name in missing_names(shorter), f"{name} is not needed"


def asked_for(target: str | tuple[int, int]) -> set[str]:
    """The top-level names that the target itself is about."""
    if isinstance(target, str):
        return {target.split(".")[0]}
    start, end = target
    names = {s.name.split(".")[0] for s in symbols(TEXT) if s.start <= end and s.end >= start}
    lines = "\n".join(TEXT.splitlines()[start - 1 : end])
    return names | set(re.findall(r"\w+", lines)) if "import" in lines else names


def missing_names(code: str) -> set[str]:
    """The global names that a source uses and does not define, by its byte code."""
    used: set[str] = set()
    bound: set[str] = set()
    waiting = [compile(code, "<snippet>", "exec", dont_inherit=True)]
    while waiting:
        compiled = waiting.pop()
        local = set()
        for step in dis.get_instructions(compiled):
            if step.opname == "STORE_NAME":
                local.add(step.argval)
            elif step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
                used |= {step.argval} - local
        if compiled.co_name == "<module>":
            bound = local
        waiting += [value for value in compiled.co_consts if isinstance(value, types.CodeType)]
    return used - bound - set(dir(builtins))


def without_one(code: str) -> Iterator[tuple[str, str]]:
    """The source without each of its imported names and definitions, one at a time.

    Annotations are taken to be evaluated, whatever the source says.
    """
    code = code.replace("from __future__ import annotations\n", "")
    for number, node in enumerate(ast.parse(code).body):
        if isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                tree = ast.parse(code)
                statement = tree.body[number]
                assert isinstance(statement, ast.Import | ast.ImportFrom)
                statement.names = [a for a in statement.names if a.name != alias.name]
                if not statement.names:
                    tree.body.pop(number)
                yield alias.asname or alias.name.split(".")[0], ast.unparse(tree)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            tree = ast.parse(code)
            tree.body.pop(number)
            yield node.name, ast.unparse(tree)
