"""A page as a reader gets it: a real module, its real run, and HTML as Python-Markdown makes it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from lxml import html
from marginalia.demo import Output, Result
from marginalia.errors import SourceError
from marginalia.jobs import Job
from marginalia.links import Index
from marginalia.outputs import output_html
from marginalia.page import Context, Extras, Page, Prepared, error_page, render
from marginalia.paper import load
from marginalia.plugin import MarginaliaPlugin
from marginalia.rows import parse
from marginalia.runner import run_isolated
from marginalia.source import read_source, split_lines
from markdown import Markdown
from mkdocs.config.defaults import MkDocsConfig


def to_html(markdown: str) -> str:
    """What MkDocs makes of a page with the extensions of the plugin."""
    config = MkDocsConfig()
    config.load_dict({"site_name": "test", "docs_dir": str(Path(__file__).parent)})
    assert config.validate() == ([], [])
    MarginaliaPlugin().on_config(config)
    markdown = re.sub(r"\A---\n.*?\n---\n", "", markdown, flags=re.DOTALL)
    return Markdown(
        extensions=config.markdown_extensions, extension_configs=config.mdx_configs
    ).convert(markdown)


@dataclass(frozen=True)
class Shown:
    page: Page
    text: str
    html: str
    result: Result | None

    @property
    def tree(self) -> Any:
        return html.fromstring(f"<main>{self.html}</main>")

    def all(self, name: str) -> list[Any]:
        """The elements of a class, in order."""
        return list(self.tree.find_class(name))

    def one(self, name: str) -> Any:
        (found,) = self.all(name)
        return found

    def texts(self, name: str) -> list[str]:
        return [" ".join(element.text_content().split()) for element in self.all(name)]

    def line(self, number: int) -> Any:
        return self.tree.get_element_by_id(f"L{number}")

    def line_of(self, code: str) -> int:
        """The number of the only line that holds some code."""
        (number,) = [n for n, line in enumerate(split_lines(self.text), 1) if code in line]
        return number


Show = Callable[..., Shown]


@pytest.fixture(scope="module")
def show(tmp_path_factory: pytest.TempPathFactory) -> Show:
    """Write a module and give its page; `run` says whether its demo runs."""

    def make(source: str | bytes, *, run: bool = False, extras: Extras | None = None) -> Shown:
        root = tmp_path_factory.mktemp("papers")
        path = root / "topic" / "some_page.py"
        path.parent.mkdir()
        path.write_bytes(source if isinstance(source, bytes) else dedent(source).encode())
        text, paper = read_source(path), load(path, root)
        index = Index()
        index.add("topic.other", "class Other:\n    pass\n", "topic/other/")
        index.add(paper.module, text, paper.url)
        result = run_isolated(Job(path=path, root=root)) if run else None
        context = Context(index=index, address=lambda url: f"../../{url}", root=root)
        page = render(paper, text, parse(text, path), result, context, extras)
        return Shown(page, text, to_html(page.markdown), result)

    return make


def code_of(shown: Shown) -> str:
    """The text of the code column: what a reader who selects and copies it gets."""
    own = ".//text()[not(ancestor::*[@class='mg-ln' or @class='mg-shape'])]"
    return "\n".join("".join(line.xpath(own)) for line in shown.all("mg-line"))


# Code


NASTY = r'''
import re  # <script>alert(1)</script> & co

HTML = "<b>bold</b> &amp; &lt; &#10; <!-- no comment -->"
<<<
STARS = 2 ** 3 ** 2 * 4
TICKS = "`a` ``b`` ```"
EMPH = "***x*** __y__ _z_ [x](y) ![i](j) [^1] ~~s~~"
MATH = "$x^2$ $$y$$ \\(z\\) \begin{align}a\end{align}"
TEXT = """

# Not a heading

- not a list

    not indented code

```python
not a fence
```

<div markdown="1">

*not prose*

</div>

| a | b |
|---|---|

!!! note
    not one

[ref]: https://example.org
*[HTML]: no abbreviation
"""


def tabbed():
	if TEXT:
		return	"\t"


CHINESE = "注意力 é ü 😀 \u200b"
STASH = "wzxhzdk:0 klzzwxh:0001 &quot; ' \""
_ = re.sub("<", ">", HTML) if 1 < 2 > 1 else {"a": [1][0]}
'''.replace("<<<\n", "\x0c\n")


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_code_survives_whatever_it_holds(show: Show, end: str) -> None:
    shown = show(NASTY.replace("\n", end).encode())
    rows = parse(shown.text)
    code = "".join(row.code for row in rows)
    assert re.sub("\r\n?", "\n", code).rstrip("\n") == code_of(shown).rstrip("\n")
    assert shown.tree.xpath("//script[not(contains(@class, 'mg-snippets'))]") == []
    assert shown.tree.xpath("//h1[not(@id='some-page')] | //h2 | //table | //math | //strong") == []


def test_lines_keep_the_numbers_of_the_file(show: Show) -> None:
    shown = show(NASTY)
    lines = split_lines(shown.text)
    numbers = [int(line.get("id")[1:]) for line in shown.all("mg-line")]
    assert numbers == [n for row in parse(shown.text) for n in row.code_lines]
    tabbed = shown.line(shown.line_of("if TEXT"))
    assert tabbed.text_content() == lines[shown.line_of("if TEXT") - 1].rstrip("\n")
    assert tabbed.find_class("mg-ln")[0].get("href") == f"#{tabbed.get('id')}"


def test_every_row_and_symbol_has_an_anchor(show: Show) -> None:
    shown = show("""
        SIZE = 3


        class Gate:
            # Why.
            def get(self):
                return SIZE


        # ## Demo


        def demo():
            pass


        WIDTH, HEIGHT = 1, 2
        SIZE = 4
    """)
    for row in parse(shown.text):
        if row.code.strip():
            assert shown.tree.xpath(f"//*[@id='r{row.start}']"), row
    for name in ("SIZE", "Gate", "Gate.get", "demo", "WIDTH", "HEIGHT"):
        (anchor,) = shown.tree.xpath(f"//*[@id='{name}']")
        assert name.split(".")[-1] in anchor.getparent().text_content()
    ids = shown.tree.xpath("//@id")
    assert len(ids) == len(set(ids))


def test_names_lead_to_their_definitions(show: Show) -> None:
    shown = show("""
        from torch import nn
        from topic.other import Other


        def make():
            return Other(), nn.Linear


        make()
    """)
    links = {
        (link.text_content(), link.getparent().get("id")): link for link in shown.all("mg-link")
    }
    other = links["Other", f"L{shown.line_of('return Other')}"]
    assert (other.get("href"), other.get("title")) == (
        "../../topic/other/#Other",
        "topic.other.Other",
    )
    assert links["make", "L10"].get("href") == "#make"
    linear = links["Linear", f"L{shown.line_of('return Other')}"]
    assert linear.get("href").startswith("https://docs.pytorch.org/")
    assert linear.get("rel") == "noopener"


# Prose


def test_prose_is_markdown(show: Show) -> None:
    shown = show('''
        """A page.

        | head | of a table |
        |------|------------|
        | a    | $x_1$      |

        A footnote[^1], a [link](https://example.org/a_b_c), ![a picture](data:,), <kbd>Ctrl</kbd>.

        [^1]: Its text.
        """

        # !!! warning "Mind"
        #
        #     A box with `code` and $y^2$.

        # Why *beside* what, and
        #
        # - a list
        # - of two
        #
        # ```python
        # fenced = 1  # no heading
        # ```
        x = 1
    ''')
    tree = shown.tree
    assert tree.xpath("//table//td//*[local-name()='math']")
    assert tree.xpath("//a[@href='https://example.org/a_b_c']/text()") == ["link"]
    assert tree.xpath("//img/@alt") == ["a picture"]
    assert tree.xpath("//kbd/text()") == ["Ctrl"]
    assert "Its text." in shown.one("footnote").text_content()
    box = shown.one("admonition")
    assert box.xpath("./p[@class='admonition-title']/text()") == ["Mind"]
    assert box.xpath(".//code/text()") == ["code"]
    assert box.xpath(".//*[local-name()='math']")
    row = shown.one("mg-pair")
    assert row.xpath(".//em/text()") == ["beside"]
    assert [item.text for item in row.xpath(".//li")] == ["a list", "of two"]
    assert "fenced = 1  # no heading" in row.find_class("highlight")[0].text_content()


def test_display_math_of_prose_is_typeset(show: Show) -> None:
    shown = show("""
        # $$y = \\sum_i x_i$$
        #
        # \\begin{align}
        # a &= b \\\\
        # c &= d
        # \\end{align}
        x = 1
    """)
    assert len(shown.tree.xpath("//*[local-name()='math']")) == 2
    assert shown.all("mg-math-error") == []
    assert "$" not in shown.one("mg-pair").text_content()


def test_headings_are_real_and_leave_no_level_out(show: Show) -> None:
    shown = show('''
        """
        # A title

        Text.

        #### Deep at once
        """

        # ## Second

        # ##### Too deep ##

        # ## Why C#

        class Gate:
            """# Gate

            ```
            # no heading
            ~~~
            # nor this
            ```
            """
    ''')
    headings = shown.tree.xpath("//h1 | //h2 | //h3 | //h4 | //h5 | //h6")
    assert [(h.tag, h.text) for h in headings] == [
        ("h1", "A title"),
        ("h2", "Deep at once"),
        ("h2", "Second"),
        ("h3", "Too deep"),
        ("h2", "Why C#"),
        ("h2", "Gate"),
    ]
    assert all(heading.get("id") for heading in headings)


def test_google_sections_are_lists_of_definitions(show: Show) -> None:
    shown = show('''
        def scale(x, factor=2):
            """Makes `x` larger.

            Args:
                x: What *grows*, $x > 0$.
                factor: How much;
                    on two lines.

            Returns:
                The product.

            Raises:
                ValueError: `factor` is 0.
            """
            return x * factor
    ''')
    prose = shown.one("mg-prose")
    titles = [t.text for t in prose.xpath(".//p[@class='mg-section']")]
    assert titles == ["Arguments", "Returns", "Raises"]
    assert [t.text_content() for t in prose.xpath(".//dt")] == ["x", "factor", "ValueError"]
    about = [" ".join(d.text_content().split()) for d in prose.xpath(".//dd")]
    assert about[1:] == ["How much; on two lines.", "factor is 0."]
    assert prose.xpath(".//dd//em/text()") == ["grows"]
    assert "The product." in prose.text_content()
    assert "Args:" not in prose.text_content()


def test_the_head_shows_the_front_matter(show: Show) -> None:
    shown = show(
        '''
        """
        ---
        title: "A & B: <i>on</i> it"
        authors: [Ann <a>, Bo & Co]
        year: 2020
        venue: ICML
        arxiv: "1234.56789"
        code: https://example.org/code?a=1&b=2
        zh: 注意力
        idea: less & more
        cost:
          time: $O(n)$
        ---
        Text.

        Letters: `b` batch, `h w` height and width.
        """
        ''',
        extras=Extras(crumbs=(("Topics", "topics/index.md"), ("T", "topics/t.md"))),
    )
    assert shown.texts("mg-zh") == ["注意力"]
    assert shown.texts("mg-idea") == ["less & more"]
    assert "A & B" in shown.tree.xpath("//h1")[0].text_content()
    facts = shown.one("mg-facts")
    assert [item.text_content() for item in facts][:4] == [
        "Ann <a>, Bo & Co",
        "ICML 2020",
        "arXiv 1234.56789",
        "official code",
    ]
    assert "https://example.org/code?a=1&b=2" in facts.xpath(".//a/@href")
    assert shown.one("mg-crumb").xpath("./a/@href") == ["../../topics/", "../../topics/t/"]
    key = shown.one("mg-key")
    assert [term.text_content() for term in key.xpath(".//dt")] == ["Time", "Letters"]
    assert key.xpath(".//*[local-name()='math']")
    assert key.xpath(".//code/text()") == ["b", "h", "w"]
    assert "Letters:" not in shown.tree.text_content()


@pytest.mark.parametrize(
    ("changes", "lines"),
    [(("", ""), ["A · B"]), (("halves $n$ & more", ""), ["A halves n & more", "B"])],
)
def test_papers_to_compare_with(show: Show, changes: tuple[str, str], lines: list[str]) -> None:
    near = [("A", "topics/a.md", changes[0]), ("B", "topics/b.md#x", changes[1])]
    shown = show("x = 1\n", extras=Extras(compare=tuple(near)))
    key = shown.one("mg-key")
    assert key.xpath(".//dt/text()") == ["Compare with"]
    assert [" ".join(dd.text_content().split()) for dd in key.xpath(".//dd")] == lines
    assert key.xpath(".//a/@href") == ["../topics/a.md", "../topics/b.md#x"]


# What a run showed


RUN = '''
"""A demo of everything.

Letters: `b` batch, `c` channels.
"""

import sys
import warnings

import matplotlib.pyplot as plt
import torch
from torch import nn


class Rich:
    def _repr_html_(self):
        return "<em class='rich'>rich</em>"


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(5))

    def forward(self, x):  # [b c] -> [b c]
        y = x.relu()
        z = y.sum()
        hole = (y - y) / (y - y)
        return y


def demo():
    print("<b>&amp;</b> **no**")
    print("\\x1b[31mred\\x1b[0m <i>")
    print("error <u>", file=sys.stderr)
    warnings.warn("careful <x>")
    layer = Layer()
    for n in (2, 3, 4):
        layer(torch.ones(n, 5))
    Rich()
    fig, ax = plt.subplots(figsize=(3, 2))
    ax.plot([1, 2])
    plt.show()
    tag = "<td>"
    assert tag == "<td>"  # Table 1, <b>bold</b>
    assert len(tag) < 10
    print("last")
'''


@pytest.fixture(scope="module")
def everything(show: Show) -> Shown:
    shown = show(RUN, run=True)
    assert shown.result is not None
    assert shown.result.ok, shown.result.error
    return shown


def after(shown: Shown, code: str) -> list[str]:
    """The text of what stands between a line and the next one."""
    place = shown.line(shown.line_of(code)).getparent()
    found = []
    for element in place.itersiblings():
        if element.tag == "pre" and "mg-pre" in element.get("class"):
            break
        found.append(" ".join(element.text_content().split()))
    return found


def test_outputs_stand_under_their_statements(everything: Shown) -> None:
    assert after(everything, 'print("<b>') == ["<b>&amp;</b> **no**"]
    assert after(everything, "\\x1b[31mred") == ["red <i>"]
    assert after(everything, "file=sys.stderr") == ["error <u>"]
    assert after(everything, "warnings.warn") == ["UserWarning careful <x>"]
    assert after(everything, "    Rich()") == ["rich"]
    assert after(everything, 'print("last")') == ["last"]


def test_printed_markup_is_text_and_rich_values_are_html(everything: Shown) -> None:
    outputs = everything.tree.xpath("//pre[contains(@class, 'mg-out')]")
    assert not [e for pre in outputs for e in pre.iter("b", "i", "u", "x", "strong")]
    assert everything.tree.xpath("//em[@class='rich']/text()") == ["rich"]


def test_terminal_colours_become_spans(everything: Shown) -> None:
    (red,) = [pre for pre in everything.all("mg-stdout") if "red" in pre.text_content()]
    assert [(span.text, bool(span.get("class"))) for span in red.iter("span")] == [("red", True)]
    assert "\x1b" not in everything.html


def output_of(kind: Any, mime: str, content: str) -> str:
    """The HTML of an output that has one form."""
    return output_html(Output(1, kind, {mime: content}), lambda name, _: name)


def output_text(kind: str, mime: str, content: str) -> str:
    """What a reader sees of it if it is shown as text."""
    (element,) = html.fragments_fromstring(output_of(kind, mime, content))
    assert not element.xpath(".//p | .//math")
    return str(element.text_content())


@pytest.mark.parametrize(
    ("printed", "shown"),
    [
        ("\x1b]8;;https://example.org\x07link\x1b]8;;\x1b\\.\x1b]0;title\x07", "link."),
        ("\x1b[2K\x1b[?25l\x1b[1;31mred\x1b[0m\x1b(0q\x1b(B\x1bM <i>", "red─ <i>"),
        ("\x1b]8;;" * 33_000, "]8;;" * 33_000),
        ("\x1b]8;;a\x07" * 33_000, ""),
        ("\x1b\x1b]\x07]8;;" * 33_000, "]8;;" * 33_000),
    ],
)
def test_control_sequences_of_a_terminal_are_no_text(printed: str, shown: str) -> None:
    assert output_text("stdout", "text/plain", printed) == shown


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("text/markdown", "[" * 1_000),
        ("text/markdown", "[" * 60_000),
        ("text/markdown", "$a$ " * 60_000),
        ("text/markdown", "1. " * 5_000),  # lists in lists: deeper than Python goes
        ("text/latex", "x" * 60_000),
    ],
)
def test_what_nobody_has_written_is_shown_as_it_is(kind: str, text: str) -> None:
    assert output_text("value", kind, text) == text


def test_a_table_of_links_and_formulas_is_markdown() -> None:
    table = "| a | b |\n|---|---|\n" + "| [x](y) | $z$ |\n" * 100
    assert output_of("value", "text/markdown", table).count("</math>") == 100


def test_figures_are_files_in_light_and_dark(everything: Shown) -> None:
    pictures = everything.one("mg-figure").findall("img")
    assert [picture.get("class") for picture in pictures] == ["mg-light", "mg-dark"]
    files = [
        everything.page.files[picture.get("src").removeprefix("../../")] for picture in pictures
    ]
    assert all(b"<svg" in svg for svg in files)
    assert files[0] != files[1]
    for picture in pictures:
        assert picture.get("alt")
        assert 200 < int(picture.get("width")) < 300
        assert 100 < int(picture.get("height")) < 200


def test_a_claim_shows_both_sides_and_its_source(everything: Shown) -> None:
    (first,) = after(everything, 'assert tag == "<td>"')
    assert first == "✓ verified '<td>' = '<td>' Table 1, <b>bold</b>"
    (second,) = after(everything, "assert len(tag)")
    assert second == "✓ verified 4 < 10"


def test_the_table_lists_every_claim(everything: Shown) -> None:
    rows = everything.one("mg-claims").xpath(".//tbody/tr")
    line = everything.line_of('assert tag == "<td>"')
    assert [[cell.text_content() for cell in row] for row in rows] == [
        ['✓ tag == "<td>"', "'<td>' = '<td>'", "Table 1, <b>bold</b>", str(line)],
        ["✓ len(tag) < 10", "4 < 10", "", str(line + 1)],
    ]
    assert rows[0].xpath(".//a/@href") == [f"#L{line}"]
    assert everything.tree.xpath("//h2[@id='checked']")
    badge = everything.one("mg-badge")
    assert (badge.text, badge.get("href")) == ("✓ 2 claims checked", "#checked")


def inlays(shown: Shown, code: str) -> dict[str, str]:
    found = shown.line(shown.line_of(code)).find_class("mg-shape")
    texts = [" ".join(inlay.text_content().split()) for inlay in found]
    return {text.split()[0]: text for text in texts}


def test_shapes_stand_after_their_line(everything: Shown) -> None:
    assert inlays(everything, "self.weight = ") == {"weight": "weight 5"}
    assert inlays(everything, "y = x.relu()") == {"y": "y b 2 · c 5 | b 3 · c 5 | b 4 · c 5 +1"}
    assert inlays(everything, "z = y.sum()") == {"z": "z scalar"}
    assert "10 NaN" in inlays(everything, "hole =")["hole"]
    assert inlays(everything, "return y")["→"].startswith("→ b 2 · c 5")
    (inlay,) = everything.line(everything.line_of("z = y.sum()")).find_class("mg-shape")
    assert "float32" in inlay.get("data-mg-detail")
    assert inlay.get("aria-label").startswith("z: ")


def test_code_with_inlays_is_still_the_code(everything: Shown) -> None:
    code = "".join(row.code for row in parse(everything.text))
    assert code_of(everything).rstrip("\n") == code.rstrip("\n")


def test_a_prepared_page_keeps_nothing_of_a_result(tmp_path: Path) -> None:
    path = tmp_path / "page.py"
    path.write_text("def demo():\n    print('shown')\n    assert 1 + 1 == 2\n")
    text, paper = read_source(path), load(path, tmp_path)
    rows, result = parse(text, path), run_isolated(Job(path=path, root=tmp_path))
    context = Context(index=Index(), address=lambda url: f"../{url}", root=tmp_path)
    prepared = Prepared(paper, text, rows, context)
    shown = prepared.with_result(result, ran="ran on <Monday>", notice="Of *last* year.")
    assert "<li>ran on &lt;Monday&gt;</li>" in shown.markdown
    assert shown.markdown.index("\n\nOf *last* year.\n\n") < shown.markdown.index("mg-rows")
    assert b'"shown\\n"' in shown.files["page/page.ipynb"]
    assert prepared.with_result(None) == render(paper, text, rows, None, context)
    assert prepared.with_result(result) == render(paper, text, rows, result, context)


def test_shapes_can_be_switched_off(show: Show) -> None:
    source = '"""\n---\nshapes: {}\n---\n"""\nimport torch\n\ndef demo():\n    x = torch.ones(2)\n'
    assert show(source.format("true"), run=True).texts("mg-shape") == ["x 2"]
    off = show(source.format("false"), run=True)
    assert (off.all("mg-shape"), off.all("mg-shapes-toggle")) == ([], [])


def test_a_failing_claim_is_marked_and_its_traceback_stands_at_its_line(show: Show) -> None:
    shown = show(
        """
        def check(n):
            assert n == 5, "no <b>five</b>"


        def demo():
            n = 4
            print("before")
            assert n == 5  # Table 2
            print("never")
        """,
        run=True,
    )
    claim, error = after(shown, "assert n == 5  #")
    assert claim == "✗ failed 4 = 5 Table 2"
    assert "AssertionError" in error
    line = shown.line_of("assert n == 5  #")
    assert shown.all("mg-error")[0].xpath(".//a/@href") == [f"#L{line}"]
    assert after(shown, "never") == []
    badge = shown.one("mg-badge")
    assert badge.text == "✗ failed"
    assert shown.tree.xpath(f"//*[@id='{badge.get('href')[1:]}']")
    ids = shown.tree.xpath("//@id")
    assert len(ids) == len(set(ids))


def test_markup_in_a_traceback_is_text(show: Show) -> None:
    shown = show(
        """
        def fall(text):
            raise ValueError(f"<b>{text}</b> *x* $y$\\n\\n# two\\n\\n- one")


        def demo():
            fall("<script>alert(1)</script>")
        """,
        run=True,
    )
    for error in shown.all("mg-error"):
        assert "<b><script>alert(1)</script></b> *x* $y$" in error.text_content()
        assert not list(error.iter("b", "script", "em", "h1", "math"))
        assert [frame.text_content() for frame in error.xpath(".//li")] == [
            'line 7 in demo: fall("<script>alert(1)</script>")',
            'line 3 in fall: raise ValueError(f"<b>{text}</b> *x* $y$\\n\\n# two\\n\\n- one")',
        ]
    assert len(shown.all("mg-error")) == 2


def test_printed_paragraphs_stay_in_their_box(show: Show) -> None:
    shown = show('def demo():\n    print("one\\n\\n# two\\n\\n</pre>\\n<p>three")\n', run=True)
    (box,) = shown.all("mg-stdout")
    assert box.text_content() == "one\n\n# two\n\n</pre>\n<p>three"


LINES = "<style>\n/* a */\n\n# b {\n  top: 0 }\n</style>\n\n<script>\n// *a*\n\ngo();\n</script>"


def test_styles_and_scripts_of_a_value_keep_their_lines(show: Show) -> None:
    source = "class T:\n    def _repr_html_(self):\n        return {}\n\n\ndef demo():\n    T()\n"
    shown = show(source.format(repr(LINES + "\n\n<p>a\n\n*b*")), run=True)
    assert f"<style>{shown.tree.xpath('string(//style)')}</style>" in LINES
    assert f"<script>{shown.tree.xpath('string(//script[not(@class)])')}</script>" in LINES
    assert shown.one("mg-rich").text_content().endswith("a\n\n*b*")


def test_a_value_in_markdown_is_set(show: Show) -> None:
    text = "| a | b |\n| --- | ---: |\n| *x* | $n^2$ |\n\n```\n*y*\n```"
    source = "class T:\n    def _repr_markdown_(self):\n        return {}\n\n\ndef demo(): T()\n"
    box = show(source.format(repr(text)), run=True).one("mg-rich")
    assert box.xpath(".//thead//th/text()") == ["a", "b"]
    assert box.xpath(".//td/em/text()") == ["x"]
    assert box.xpath(".//td//*[local-name()='msup']")
    assert box.xpath("string(.//pre)") == "*y*\n"


# Copying


def test_a_function_within_a_function_is_copied_with_it(show: Show) -> None:
    shown = show("""
        def scale(factor):
            def times(x):
                \"\"\"The product.\"\"\"
                return factor * x

            return times


        def demo():
            def twice(x):
                \"\"\"The double.\"\"\"
                return scale(2)(x)

            assert twice(3) == 6
        """)
    snippets = json.loads(shown.one("mg-snippets").text)
    assert snippets
    for snippet in snippets:
        assert "return factor * x" in snippet
        exec(compile(snippet, "snippet", "exec"), {"__name__": "__main__"})


def test_snippets_survive_closing_tags(show: Show) -> None:
    shown = show("""
        CLOSE = "</script><script>alert(1)</script><!--"


        def get():
            return CLOSE
    """)
    data = json.loads(shown.one("mg-snippets").text)
    for button in shown.all("mg-run-copy"):
        assert (
            'CLOSE = "</script><script>alert(1)</script><!--"'
            in data[int(button.get("data-mg-snippet"))]
        )
    assert len(shown.all("mg-run-copy")) == 2
    assert len(shown.tree.xpath("//script")) == 1


@pytest.mark.parametrize(
    "source",
    [
        "x = 'é\u2028'\r\n".encode(),
        b"\xef\xbb\xbfx = 1\n",
        "# -*- coding: latin-1 -*-\nx = 'é'\n".encode("latin-1"),
    ],
    ids=["crlf", "bom", "latin-1"],
)
def test_the_download_is_the_file(show: Show, source: bytes) -> None:
    shown = show(source)
    assert shown.page.files["topic/some-page/some_page.py"] == source
    hrefs = shown.one("mg-facts").xpath(".//a/@href")
    assert {f"../../{name}" for name in shown.page.files} <= set(hrefs)


# What cannot be read


def test_an_error_page_shows_place_reason_and_lines() -> None:
    text = "a = 1\nb = '\u2028'\n<script> = *x*\nc = 4\n"
    shown = html.fromstring(
        to_html(error_page("my/broken_file.py", SourceError("x.py", 3, 1, "no <b>good</b>"), text))
    )
    assert shown.xpath("//h1/text()") == ["my/broken_file.py"]
    (alert,) = shown.xpath("//*[@role='alert']")
    assert "line 3, column 1: no <b>good</b>" in alert.text_content()
    (excerpt,) = shown.find_class("mg-out")
    marked = [line for line in excerpt.text_content().split("\n") if line.startswith("→")]
    assert [line.split(maxsplit=2)[1:] for line in marked] == [["3", "<script> = *x*"]]
    assert not list(shown.iter("script", "b", "em"))


def test_a_negated_claim_reads_as_one(show: Show) -> None:
    shown = show("def demo():\n    found = False\n    assert not found  # Eq. 2\n", run=True)
    assert "not False" in shown.one("mg-claim").text_content()
