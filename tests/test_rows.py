"""The row grammar: what is a row, and that no byte of any file is lost."""

from __future__ import annotations

import ast
import codecs
import io
import json
import sys
import sysconfig
import tokenize
import warnings
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from marginalia.errors import SourceError
from marginalia.rows import Row, code_text, is_script, parse, trailing_comments
from marginalia.source import read_source, split_lines, symbols


def check(text: str) -> list[Row]:
    """Parse, and check what must hold for every file."""
    rows, lines = parse(text), split_lines(text)
    assert "".join(row.source for row in rows) == text
    starts = [1, *(row.end + 1 for row in rows)]
    assert [row.start for row in rows] == starts[:-1]
    assert starts[-1] == len(lines) + 1
    for row in rows:
        assert row.prose or row.code or len(rows) == 1
        assert (row.kind == "code") <= (not row.prose)
        assert bool(row.code) == {"front": False, "wide": False}.get(row.kind, bool(row.code))
        assert (row.kind == "doc") == bool(row.symbol)
        assert row.code == "".join(lines[n - 1] for n in row.code_lines).removeprefix("\ufeff")
        assert sorted(set(row.code_lines)) == list(row.code_lines)
        assert all(row.start <= n <= row.end for n in row.code_lines)
        if row.code:
            assert lines[row.code_lines[0] - 1].strip()
            assert lines[row.code_lines[-1] - 1].strip()
    code, numbers = code_text(text)
    assert code.count("\n") == len(numbers)
    assert set(numbers) <= set(range(1, len(lines) + 1))
    symbols(text)
    trailing_comments(text)
    return rows


def cut(text: str) -> list[tuple[str, str, str]]:
    """Each row's kind, prose and code, for a source that is indented in the test."""
    text = dedent(text).removeprefix("\n")
    return [(row.kind, row.prose, row.code) for row in check(text)]


# Rows


def test_a_touching_comment_is_beside_the_code_up_to_the_next_row() -> None:
    source = """
        a = 1

        # Why
        # it is two.
        b = 2

        c = 3
        # And this.
        d = 4
        """
    assert cut(source) == [
        ("code", "", "a = 1\n"),
        ("side", "Why\nit is two.", "b = 2\n\nc = 3\n"),
        ("side", "And this.", "d = 4\n"),
    ]


def test_a_detached_comment_is_wide_at_any_depth() -> None:
    source = """
        # # Title

        # Text

        x = 1
        def f():
            a = 1
            # Interlude

            b = 2
        # The end
        """
    assert cut(source) == [
        ("wide", "# Title", ""),
        ("wide", "Text", ""),
        ("code", "", "x = 1\n"),
        ("doc", "", "def f():\n    a = 1\n"),
        ("wide", "Interlude", ""),
        ("code", "", "    b = 2\n"),
        ("wide", "The end", ""),
    ]


def test_comments_inside_brackets_are_rows() -> None:
    source = """
        x = [
            # one
            1,

            # loose

            # two
            2,
        ]
        """
    assert cut(source) == [
        ("code", "", "x = [\n"),
        ("side", "one", "    1,\n"),
        ("wide", "loose", ""),
        ("side", "two", "    2,\n]\n"),
    ]


def test_a_definition_pairs_with_its_docstring_and_its_comment() -> None:
    source = '''
        # About the class.
        @decorate(
            1
        )
        class C(B):
            """
            What it is.

              Indented.
            """

            x = 1

            async def f(self):  # [b c]
                r"""How $\\pi$."""
                return 1

            y = 2
        z = 3
        '''
    assert cut(source) == [
        (
            "doc",
            "About the class.\n\nWhat it is.\n\n  Indented.",
            "@decorate(\n    1\n)\nclass C(B):\n    x = 1\n",
        ),
        ("doc", "How $\\pi$.", "    async def f(self):  # [b c]\n        return 1\n"),
        ("code", "", "    y = 2\n"),
        ("code", "", "z = 3\n"),
    ]
    assert [row.symbol for row in parse(dedent(source))] == ["C", "C.f", "", ""]


def test_the_docstring_of_a_class_speaks_for_its_initialiser() -> None:
    source = """
        class C:
            '''About.'''

            def __init__(self, x):
                self.x = x

                # Why.
                self.y = 2

        class D:
            '''About.'''

            z = 3

            def __init__(self):
                pass

        class E:
            '''About.'''

            def __init__(self):
                '''Make it.'''

        class F:
            def __init__(self):
                pass
        """
    init = "    def __init__(self):\n"
    assert cut(source) == [
        ("doc", "About.", "class C:\n    def __init__(self, x):\n        self.x = x\n"),
        ("side", "Why.", "        self.y = 2\n"),
        ("doc", "About.", "class D:\n    z = 3\n"),
        ("doc", "", f"{init}        pass\n"),
        ("doc", "About.", "class E:\n"),
        ("doc", "Make it.", init),
        ("doc", "", "class F:\n"),
        ("doc", "", f"{init}        pass\n"),
    ]
    assert [row.symbol for row in parse(dedent(source))][:3] == ["C", "", "D"]


def test_code_goes_on_after_a_nested_function() -> None:
    source = """
        def outer():
            def inner():
                pass

            # Why.
            a = 1
            def other(): return 2
            return a
        """
    assert cut(source) == [
        ("doc", "", "def outer():\n"),
        ("doc", "", "    def inner():\n        pass\n"),
        ("side", "Why.", "    a = 1\n"),
        ("doc", "", "    def other(): return 2\n"),
        ("code", "", "    return a\n"),
    ]
    names = [row.symbol for row in parse(dedent(source))]
    assert names == ["outer", "outer.inner", "", "outer.other", ""]


def test_comments_in_a_signature_and_its_decorators() -> None:
    source = '''
        @a
        # between
        @b
        def f(
            # the input
            x,
        ):
            # before the docstring

            """What it does."""
            return x
        '''
    assert cut(source) == [
        ("doc", "between\n\nbefore the docstring\n\nWhat it does.", "@a\n@b\ndef f(\n"),
        ("side", "the input", "    x,\n):\n    return x\n"),
    ]


def test_definitions_in_branches() -> None:
    source = """
        if a:
            def f(): pass
        else:
            # The other
            def f(): pass
        try:
            class C: x = 1
        except E:
            pass
        match x:
            # a case
            case [1, *_] if y:
                def g(): ...
            case _:
                pass
        """
    assert cut(source) == [
        ("code", "", "if a:\n"),
        ("doc", "", "    def f(): pass\n"),
        ("code", "", "else:\n"),
        ("doc", "The other", "    def f(): pass\n"),
        ("code", "", "try:\n"),
        ("doc", "", "    class C: x = 1\n"),
        ("code", "", "except E:\n    pass\nmatch x:\n"),
        ("side", "a case", "    case [1, *_] if y:\n"),
        ("doc", "", "        def g(): ...\n"),
        ("code", "", "    case _:\n        pass\n"),
    ]


def test_the_module_docstring_is_the_front_with_its_yaml() -> None:
    source = '''
        #!/usr/bin/env python
        # -*- coding: utf-8 -*-
        # Copyright somebody
        # and somebody else.
        r"""
        ---
        title: A
        ---

        Text
        """
        import a
        '''
    assert cut(source) == [
        ("code", "", "#!/usr/bin/env python\n# -*- coding: utf-8 -*-\n"),
        ("wide", "Copyright somebody\nand somebody else.", ""),
        ("front", "---\ntitle: A\n---\n\nText", ""),
        ("code", "", "import a\n"),
    ]


@pytest.mark.parametrize(
    "code",
    [
        'def f(): """x"""\n',
        'class C: "x"\n',
        'def f():\n    """x"""; y = 1\n',
        'def f(): \\\n    """x"""\n',
        'def f():\n    ("x"\n     "y")\n',
        'def f():\n    (\n"""x""")\n',
        'def f():\n    f"""{x}"""\n',
        'def f():\n    b"""x"""\n',
        'def f():\n    """x""" + ""\n',
        'def f():\n    x = 1\n    """y"""\n',
        'def f():\n    """x""" \\\n\n',
    ],
)
def test_a_string_that_shares_its_lines_or_is_no_docstring_stays_code(code: str) -> None:
    assert cut(code) == [("doc", "", code.rstrip("\n") + "\n")]


@pytest.mark.parametrize(
    ("docstring", "prose"),
    [
        ('"one"', "one"),
        ("'''one'''  # noqa: D400", "one"),
        ("'''one'''  # two", "one\n\ntwo"),
        ('U"é"', "é"),
        ('r"\\pi"', "\\pi"),
        ('"\\\\pi"', "\\pi"),
        ('"one " \\\n  "two"', "one two"),
        ('"""one\n\n    two\n      three\n    """', "one\n\ntwo\n  three"),
        ('"""\n# not a comment\n"""', "# not a comment"),
        ('""""""', ""),
    ],
)
def test_the_prose_of_a_docstring_is_what_python_reads(docstring: str, prose: str) -> None:
    assert cut(f"def f():\n    {docstring}\n    return 1\n") == [
        ("doc", prose, "def f():\n    return 1\n")
    ]


def test_comment_marks() -> None:
    source = """
        #Close
        #
        #  - indented
        #
        #     code
        #: documented
        ## twice
        #!not prose
        x = "# no comment"  # trailing
        """
    prose = "Close\n\n - indented\n\n    code\ndocumented\ntwice"
    code = '#!not prose\nx = "# no comment"  # trailing\n'
    assert cut(source) == [("side", prose, code)]


def test_bare_comments_separate() -> None:
    source = """
        # Text
        #
        a = 1
        #
        b = 2
        #
        #

        c = 3
        """
    assert cut(source) == [
        ("side", "Text", "a = 1\n"),
        ("code", "", "b = 2\n"),
        ("code", "", "c = 3\n"),
    ]


def test_a_change_of_depth_parts_two_comments() -> None:
    source = """
        if a:
            b = 1
            # last word
        # first word
        c = 2
        """
    assert cut(source) == [
        ("code", "", "if a:\n    b = 1\n"),
        ("wide", "last word", ""),
        ("side", "first word", "c = 2\n"),
    ]


@pytest.mark.parametrize(
    "pragma",
    [
        "# type: ignore",
        "# noqa",
        "# noqa: E501",
        "#noqa",
        "# fmt: off",
        "# ruff: noqa",
        "# pylint: disable=all",
        "# mypy: ignore-errors",
        "# pragma: no cover",
        "# isort: skip_file",
        "# vim: set ts=4",
    ],
)
def test_pragmas_are_code(pragma: str) -> None:
    source = f"# Why\n{pragma}\nx = 1\n# About f\n{pragma}\ndef f(): pass\n"
    assert cut(source) == [
        ("side", "Why", f"{pragma}\nx = 1\n"),
        ("doc", "About f", f"{pragma}\ndef f(): pass\n"),
    ]


@pytest.mark.parametrize("comment", ["# typed", "# noqab", "# pragmatic", "# formats: a", "# vi"])
def test_words_like_pragmas_are_prose(comment: str) -> None:
    assert cut(f"{comment}\nx = 1\n") == [("side", comment[2:], "x = 1\n")]


def test_percent_script() -> None:
    source = '''
        # ---
        # jupyter:
        #   jupytext:
        #     formats: py:percent
        # ---

        # %% [markdown]
        # # Title
        #
        # Text
        # %%
        # %matplotlib inline
        import a
        # %% A title {"tags": []}
        # why
        b = 1

        # %% [markdown]
        """
        *Text* in a string
        """

        # %% [markdown]
        # touching
        c = 2
        '''
    assert cut(source) == [
        ("wide", "# Title\n\nText", ""),
        ("code", "", "# %matplotlib inline\nimport a\n"),
        ("side", "why", "b = 1\n"),
        ("wide", "*Text* in a string", ""),
        ("wide", "touching", ""),
        ("code", "", "c = 2\n"),
    ]
    assert is_script(dedent(source))


def test_light_script() -> None:
    source = """
        # + [markdown]
        # Text
        # -

        # + {"tags": ["x"]}
        a = 1

        b = 2
        # -

        c = 3
        # +
        d = 4
        """
    assert cut(source) == [
        ("wide", "Text", ""),
        ("code", "", "a = 1\n\nb = 2\n"),
        ("code", "", "c = 3\n"),
        ("code", "", "d = 4\n"),
    ]
    assert not is_script(dedent(source))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# %%\nx = 1\n", True),
        ("#%%\n", True),
        ("# %% [markdown]\n# x\n", True),
        ("# In[3]:\nx = 1\n", True),
        ("# In [3]:\nx = 1\n", True),
        ("# -*- coding: utf-8 -*-\n# ---\n# jupyter:\n#   a: 1\n# ---\n", True),
        ("# ---\n# title: a\n# ---\n", False),
        ("'''\n# %%\n'''\n", False),
        ("x = 1  # %%\n", False),
        ("# %%time\nx = 1\n", False),
        ("# 100 %% of it\n", False),
        ("# %%\nx = (\n", False),
        ("", False),
    ],
)
def test_is_script(text: str, expected: bool) -> None:
    assert is_script(text) is expected


def test_a_banner_is_no_notebook_header() -> None:
    assert cut("# ---\n# A title\n# ---\nx = 1\n") == [("side", "---\nA title\n---", "x = 1\n")]


@pytest.mark.parametrize("text", ["\n", "  \n\f\n", "# %%\n", "\ufeff", "#\n\n#\n", "''\n"])
def test_a_file_with_nothing_to_show_is_one_row(text: str) -> None:
    assert [(row.kind, row.prose, row.code, row.source) for row in check(text)] in (
        [("code", "", "", text)],
        [("front", "", "", text)],
    )


def test_an_empty_file_has_no_rows() -> None:
    assert check("") == []


def test_blank_lines_belong_to_the_row_above_but_not_to_its_code() -> None:
    rows = check("\n\n# Why\n\fx = 1\n\n  \n\n# More\ny = 2\n\n")
    assert [(row.start, row.end, row.code_lines) for row in rows] == [
        (1, 7, (4,)),
        (8, 10, (9,)),
    ]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends(end: str) -> None:
    text = f'"""Front"""{end}# Why{end}x = """{end}# text{end}{end}"""{end}# End'
    rows = check(text)
    assert [(row.kind, row.prose) for row in rows] == [
        ("front", "Front"),
        ("side", "Why"),
        ("wide", "End"),
    ]
    assert rows[1].code == f'x = """{end}# text{end}{end}"""{end}'
    assert code_text(text) == (code_text(text.replace(end, "\n"))[0], (3, 4, 5, 6))


@pytest.mark.parametrize("character", ["\x0b", "\x0c", "\x1c", "\x1d", "\x85", "\u2028", "\u2029"])
def test_only_line_ends_end_lines(character: str) -> None:
    text = f"# a{character}b\nx = 'a{character}b'\n# c\ny = 1\n"
    assert split_lines(text) == text.splitlines(keepends=True) or len(split_lines(text)) == 4
    assert [(row.start, row.prose) for row in check(text)] == [(1, f"a{character}b"), (3, "c")]


def test_a_backslash_joins_lines() -> None:
    assert cut("x = 1 \\\n# not alone\ny = 2\n") == [
        ("code", "", "x = 1 \\\n# not alone\ny = 2\n"),
    ]
    assert cut("# ends in \\\n# one\ny = 2\n") == [("side", "ends in \\\none", "y = 2\n")]


def test_format_strings() -> None:
    source = """
        # Why
        x = f"{a!r:>{width}} # {f'{b}'} {{"
        # More
        y = f'''{
        a}
        # text

        '''
        """
    assert cut(source) == [
        ("side", "Why", "x = f\"{a!r:>{width}} # {f'{b}'} {{\"\n"),
        ("side", "More", "y = f'''{\na}\n# text\n\n'''\n"),
    ]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="the syntax is new in Python 3.12")
def test_a_comment_in_a_format_string_is_code() -> None:
    source = 'x = f"""{\n# inner\na = }"""\ny = f"{f"{1}" # c\n}"\ntype T[A] = list[A]\n'
    assert cut(source) == [("code", "", source)]
    assert code_text(source)[0] == source
    assert [symbol.name for symbol in symbols(source)] == ["x", "y", "T"]


def test_a_long_chain_of_branches() -> None:
    branches = "".join(f"elif a == {n}:\n    # case {n}\n    b = {n}\n" for n in range(400))
    assert len(check(f"if a:\n    pass\n{branches}")) == 401


# Other views


def test_symbols_in_order_with_their_places() -> None:
    source = """
        A: int = 1
        B, (C, *D) = x
        if t:
            @é(lambda: 0)
            async  def f(a):
                inner = 1
                def g(): ...
        else:
            def f(): ...
        @(
            d
        )
        class K(f):
            '''Doc

            more'''
            E = F = 1
            class L:
                def m(self): 'x'
            self.x = 1
        é = 'é'; G = 2; A = 3
        A += 1
        for H in x: I = 1
        """
    text = dedent(source).removeprefix("\n")
    found = symbols(text)
    lines = text.splitlines()
    for symbol in found:
        assert lines[symbol.line - 1][symbol.column :].startswith(symbol.name.split(".")[-1])
    assert [(s.name, s.kind, s.start, s.end, s.line) for s in found] == [
        ("A", "variable", 1, 1, 1),
        ("B", "variable", 2, 2, 2),
        ("C", "variable", 2, 2, 2),
        ("D", "variable", 2, 2, 2),
        ("f", "function", 4, 7, 5),
        ("f", "function", 9, 9, 9),
        ("K", "class", 10, 20, 13),
        ("K.E", "variable", 17, 17, 17),
        ("K.F", "variable", 17, 17, 17),
        ("K.L", "class", 18, 19, 18),
        ("K.L.m", "function", 19, 19, 19),
        ("é", "variable", 21, 21, 21),
        ("G", "variable", 21, 21, 21),
        ("I", "variable", 23, 23, 23),
    ]
    assert {s.name: s.docstring for s in found if s.docstring} == {"K": "Doc\n\nmore", "K.L.m": "x"}


def test_the_name_may_stand_below_its_keyword() -> None:
    (symbol,) = symbols("async \\\n def \\\n  f(): pass\n")
    assert (symbol.start, symbol.line, symbol.column) == (1, 3, 2)


def test_trailing_comments() -> None:
    source = "# own\nx = '#'  #  [b c] \ny = [\n    # own\n    1,  #: Eq. 2\n]\n'''\n# text''' #end"
    assert trailing_comments(source) == {2: "[b c]", 5: "Eq. 2", 8: "end"}


CODE = '''#!/usr/bin/env python
"""Front."""

import a  # why

# Comment
@b
class C:
    """Doc

    # more
    """

    def f(self): "doc"; return """x

  # y
  """  # end

    x = [1,
         # two
         2]
'''


def test_code_text() -> None:
    code, lines = code_text(CODE)
    assert code.splitlines() == [
        "import a",
        "@b",
        "class C:",
        '    def f(self): ; return """x',
        "",
        "  # y",
        '  """',
        "    x = [1,",
        "         2]",
    ]
    assert lines == (4, 7, 8, 14, 15, 16, 17, 19, 21)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("# why", "# because"),
        ("  # why", ""),
        ("# Comment\n", ""),
        ("# Comment", "\n\n# %%\n\n# Other\n# comment"),
        ("Front.", "---\ntitle: x\n---\n"),
        ('"""Front."""\n', ""),
        ("# more", "less"),
        ('"doc"', "r'''Doc'''"),
        ("# two", "# 2"),
        ("         # two\n", "\n"),
        ("\n", "\r\n"),
        ("#!/usr/bin/env python", "\ufeff# noqa"),
        ("class C:", "class C:   "),
    ],
)
def test_prose_is_no_part_of_the_code(old: str, new: str) -> None:
    assert old in CODE
    assert code_text(CODE.replace(old, new))[0] == code_text(CODE)[0]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("import a", "import  a"),
        ("@b\n", ""),
        ("    x =", "    x  ="),
        ("# y", "# z"),
        ("x\n\n  #", "x\n  #"),
        ("x\n\n  #", "x \n\n  #"),
        ('y\n  """', 'y\n   """'),
        ('"doc"', 'b"doc"'),
        ("2]", "3]"),
    ],
)
def test_every_change_of_code_counts(old: str, new: str) -> None:
    assert old in CODE
    assert code_text(CODE.replace(old, new))[0] != code_text(CODE)[0]


def test_code_that_reads_its_docstrings_keeps_them() -> None:
    source = '"""A\n\nB"""\n# c\nprint(__doc__)  # d\n'
    assert code_text(source) == ('"""A\n\nB"""\nprint(__doc__)\n', (1, 2, 3, 5))
    source = "# c\n\nprint(inspect.getsource(f))  # d\n"
    assert code_text(source) == (source, (1, 2, 3))
    assert code_text("'__doc__'\nx = 1  # __doc__ getsource\n") == ("x = 1\n", (2,))


# Reading


@pytest.mark.parametrize(
    ("data", "encoding"),
    [
        (b"", "utf-8"),
        (b"\xef\xbb\xbfx = '\xc3\xa9'\r\ny = 1\r", "utf-8"),
        (b"\xef\xbb\xbf# coding: utf-8\nx = '\xc3\xa9'", "utf-8"),
        (b"# -*- coding: latin-1 -*-\nx = '\xe9'\n", "latin-1"),
        (b"#!/usr/bin/python\r# vim: set fileencoding=cp1252 :\rx = '\x80'\r", "cp1252"),
        (b"\f\n# coding=koi8-r\nx = '\xc0'\x0c\n", "koi8-r"),
        (b"x = 1\n# coding: nonsense\n", "utf-8"),
        (b"x = '# coding: nonsense'\r# coding: nonsense\r", "utf-8"),
    ],
)
def test_encoding_again_gives_the_bytes(data: bytes, encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    path.write_bytes(data)
    text = read_source(path)
    check(text)
    assert text.encode(encoding) == data
    assert ast.dump(ast.parse(data)) == ast.dump(ast.parse(text.removeprefix("\ufeff")))


def test_the_byte_order_mark_is_in_the_source_and_not_in_the_code() -> None:
    (row,) = check("\ufeffx = 1\n")
    assert (row.source, row.code) == ("\ufeffx = 1\n", "x = 1\n")
    assert symbols("\ufeffx = 1\n")[0].column == 0


@pytest.mark.parametrize(
    ("data", "line", "column", "reason"),
    [
        (b"x = 1\r\ny = '\xc3\xa9\xff'\n", 2, 7, "byte 0xff is not utf-8"),
        (b"\xef\xbb\xbf'\xff'", 1, 2, "byte 0xff is not utf-8"),
        (b"\n#  coding: klingon\n", 2, 12, "unknown encoding: klingon"),
        (b"\xef\xbb\xbf# coding: latin-1\n", 1, 11, "byte order mark"),
        (b"# coding: rot13\n", 1, 1, "not a text encoding"),
        (b"x = 1\ry = '\0'", 2, 6, "null byte"),
    ],
)
def test_what_cannot_be_read_is_an_error_with_its_place(
    data: bytes, line: int, column: int, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.py"
    path.write_bytes(data)
    with pytest.raises(SourceError, match=reason) as error:
        read_source(path)
    assert (error.value.path, error.value.line, error.value.column) == (str(path), line, column)


@pytest.mark.parametrize("view", [parse, symbols, trailing_comments, code_text])
@pytest.mark.parametrize(
    ("text", "line", "column", "reason"),
    [
        ("x = 1\n\ny = (\n", 3, 5, "never closed"),
        ("x\r\r\ny = é $\r", 3, 7, "invalid"),
        ("\ufeffx = )", 1, 5, "unmatched"),
        ("if x:\n  y\n z\n", 3, 3, "unindent"),
        ("if x:\npass", 2, 1, "expected an indented block"),
        ("def f():\n    x = 'a\n", 2, 9, "unterminated string"),
        ("x = 1\ny = '\0'", 2, 6, "null byte"),
        ("\ufeffx = '\ud800'", 1, 6, "surrogate"),
        ("x = " + "-" * 100_000 + "1", 1, 1, "too deeply nested"),
    ],
)
def test_what_does_not_parse_is_an_error_with_its_place(
    text: str, line: int, column: int, reason: str, view: Callable[[str, str], object]
) -> None:
    with pytest.raises(SourceError, match=reason) as error:
        view(text, "x.py")
    assert str(error.value).startswith(f"x.py:{line}:{column}: ")


def test_an_invalid_escape_is_no_warning_here() -> None:
    assert cut("x = '\\ '\n") == [("code", "", "x = '\\ '\n")]


def notebook(*cells: tuple[str, str], language: str = "python") -> str:
    return json.dumps(
        {
            "nbformat": 4,
            "nbformat_minor": 4,
            "metadata": {"language_info": {"name": language}},
            "cells": [
                {"cell_type": kind, "metadata": {}, "source": source}
                | ({"outputs": [], "execution_count": None} if kind == "code" else {})
                for kind, source in cells
            ],
        }
    )


def test_a_notebook_becomes_rows(tmp_path: Path) -> None:
    path = tmp_path / "x.ipynb"
    cells = [
        ("markdown", "# Title\n\nText"),
        ("code", "%matplotlib inline\n!ls\nimport a\n\n# why\nb = 1"),
        ("code", "%%bash\nls"),
        ("markdown", "End"),
    ]
    path.write_text(notebook(*cells), encoding="utf-8")
    text = read_source(path)
    assert is_script(text)
    assert cut(text) == [
        ("wide", "# Title\n\nText", ""),
        ("code", "", "# %matplotlib inline\n# !ls\nimport a\n"),
        ("side", "why", "b = 1\n"),
        ("code", "", "# ls\n"),
        ("wide", "End", ""),
    ]


@pytest.mark.parametrize(
    ("text", "place", "reason"),
    [
        ('{\n "a": }', "2:7", "not JSON"),
        ("[]", "1:1", "not a notebook"),
        ("{}", "1:1", "not a notebook"),
        (notebook(language="R"), "1:1", "in R, not in Python"),
    ],
)
def test_a_broken_notebook_is_an_error(text: str, place: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "x.ipynb"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SourceError, match=reason) as error:
        read_source(path)
    assert f".ipynb:{place}: " in str(error.value)


# Any file


def stdlib(shard: int, shards: int) -> list[Path]:
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [path for path in sorted(root.rglob("*.py")) if "site-packages" not in path.parts]
    return files[shard::shards]


@pytest.mark.parametrize("shard", range(4))
def test_the_standard_library_is_lossless(shard: int) -> None:
    files = stdlib(shard, 4)
    assert files
    for path in files:
        try:
            text = read_source(path)
            check(text)
        except SourceError:
            with pytest.raises((SyntaxError, ValueError)):
                ast.parse(path.read_bytes())
            continue
        data = path.read_bytes()
        marked = data.startswith(codecs.BOM_UTF8)
        encoding = "utf-8" if marked else tokenize.detect_encoding(io.BytesIO(data).readline)[0]
        assert text.encode(encoding) == data


COMMENTS = st.sampled_from(
    ["# why", "#", "# %%", "# %% [markdown]", "# +", "# -", "#: x", "# noqa", "# ## H", "#\\"]
)
SIMPLE = st.sampled_from(
    [
        "x = 1",
        "x = [\n# in\n1,\n\n  # loose\n\n2]",
        "pass  # c",
        "f'''{x}\n# no\n\n'''",
        "y = '''\n  # no\n'''  # yes",
        "x = 1; y = 2",
        "x = \\\n  1",
        "x = '\\\n'",
        '"""text\n# no\n"""',
        "z = 'é\u2028'  # ö\u2028",
    ]
)
HEADERS = st.sampled_from(
    [
        "def f():",
        "@d\n# c\n@e(\n1)\ndef f(a,\n# p\nb):",
        "class C(B):  # c",
        "async def g(): # g",
        "if x:",
        "for x in y:",
        "try:",
        "with a as b:",
        "while x: # w",
    ]
)
DOCSTRINGS = st.sampled_from(['"""d"""', "'''\n  d\n\n  e'''", '"d" \\\n  "e"', '("d")', '"d"; x'])


@st.composite
def blocks(draw: st.DrawFn, depth: int = 0) -> str:
    """The lines of a block, indented by its depth."""
    indent = draw(st.sampled_from([" ", "\t", "    "])) if depth else ""
    parts: list[str] = []

    def add(text: str) -> None:
        parts.append(text)

    if draw(st.booleans()):
        add(draw(COMMENTS))
    if draw(st.integers(0, 2)) == 0:
        add(draw(DOCSTRINGS))
    for _ in range(draw(st.integers(0, 4))):
        kind = draw(st.integers(0, 5))
        if kind == 0:
            add("")
        elif kind == 1:
            add(draw(COMMENTS))
        elif kind == 2 and depth < 3:
            header = draw(HEADERS)
            add(header)
            add(draw(blocks(depth + 1)))
            if header == "try:":
                add("finally: pass")
        elif kind == 3:
            add(draw(st.sampled_from(["\f", "  ", "\t"])))
        else:
            add(draw(SIMPLE))
    add(draw(SIMPLE))
    return indented("\n".join(parts), indent)


def indented(text: str, indent: str) -> str:
    """Indent the lines that are no inside of a string."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    inside: set[int] = set()
    try:
        for found in tokens:
            if found.type == tokenize.STRING:
                inside.update(range(found.start[0] + 1, found.end[0] + 1))
    except (tokenize.TokenError, IndentationError):
        pass
    lines = text.split("\n")
    return "\n".join(
        line if number in inside or not line.strip() else indent + line
        for number, line in enumerate(lines, 1)
    )


def python_parses(text: str) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            ast.parse(text.removeprefix("\ufeff"))
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return False
    return True


@settings(max_examples=150, deadline=None)
@given(blocks(), st.sampled_from(["\n", "\r\n", "\r"]), st.booleans(), st.sampled_from(["", "\n"]))
def test_generated_sources_are_lossless(text: str, end: str, mark: bool, last: str) -> None:
    source = ("\ufeff" if mark else "") + (text + last).replace("\n", end)
    if python_parses(source):
        check(source)
        reworded = source.replace("# why", "# because\u2028").replace("# yes", "#")
        assert code_text(reworded) == code_text(source)


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="#'\"\\\r\n\f\t :()x=1fé\u2028\ufeff;@%+-", max_size=40))
def test_any_text_parses_or_is_refused_with_its_place(text: str) -> None:
    if python_parses(text):
        check(text)
    else:
        with pytest.raises(SourceError) as error:
            parse(text)
        assert 1 <= error.value.line <= len(split_lines(text)) + 1
        assert error.value.column >= 1
