"""TeX becomes MathML: what a formula looks like, and what Markdown makes of it."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import markdown
import pytest
from marginalia.errors import MarginaliaError
from marginalia.rows import parse
from marginalia.source import read_source
from marginalia.typeset import MathError, to_mathml

ASSETS = Path(__file__).parents[1] / "site_src/marginalia/assets"
PAPERS = Path(__file__).parents[1] / "papers"
EXTENSIONS = [
    "tables", "md_in_html", "admonition", "toc", "footnotes", "pymdownx.superfences",
    "marginalia.mathml",
]  # fmt: skip


def render(text: str) -> str:
    return markdown.markdown(text, extensions=EXTENSIONS)


def inside(tex: str, *, display: bool = False) -> str:
    """What is in the <math> of a formula."""
    found = re.fullmatch(r"<math [^>]*>(.*)</math>", to_mathml(tex, display=display), re.DOTALL)
    assert found
    return found[1]


# Formulas


@pytest.mark.parametrize(
    ("tex", "expected"),
    [
        ("x", "<mi>x</mi>"),
        (r"\mathrm{model}", "<mi>model</mi>"),
        (r"\mathrm{d}x", '<mi mathvariant="normal">d</mi><mi>x</mi>'),
        (r"\Delta\partial", '<mi mathvariant="normal">Δ</mi><mi>∂</mi>'),
        (r"\mathbf{x}\pmb{\omega}\mathbb{R}", "<mi>𝐱</mi><mi>𝛚</mi><mi>ℝ</mi>"),
        (r"\mathcal{LB}\mathfrak{C}", "<mi>ℒℬ</mi><mi>ℭ</mi>"),
        (r"\epsilon\varepsilon\phi\varphi", "<mi>ϵ</mi><mi>ε</mi><mi>ϕ</mi><mi>φ</mi>"),
        ("a<b", "<mi>a</mi><mo>&lt;</mo><mi>b</mi>"),
        (r"a \sim b", '<mi>a</mi><mo>∼</mo><mi>b</mi>'),
        (r"x^\top", "<msup><mi>x</mi><mi>⊤</mi></msup>"),
        (r"\text{if } x_0", "<mtext>if\xa0</mtext><msub><mi>x</mi><mn>0</mn></msub>"),
        (r"\text{a\_b {c}}", "<mtext>a_b\xa0c</mtext>"),
        (r"a \odot b", '<mi>a</mi><mo lspace=".2222em" rspace=".2222em">⊙</mo><mi>b</mi>'),
        ("2 in", "<mn>2</mn><mi>i</mi><mi>n</mi>"),
    ],
)  # fmt: skip
def test_symbols(tex: str, expected: str) -> None:
    assert inside(tex) == expected


@pytest.mark.parametrize(
    ("tex", "expected"),
    [
        ("a-b", "<mi>a</mi><mo>−</mo><mi>b</mi>"),
        ("-b", '<mo lspace="0" rspace="0">−</mo><mi>b</mi>'),
        ("a=-b", '<mi>a</mi><mo>=</mo><mo lspace="0" rspace="0">−</mo><mi>b</mi>'),
        (
            "2^{a-1}",
            "<msup><mn>2</mn><mrow>"
            '<mi>a</mi><mo lspace="0" rspace="0">−</mo><mn>1</mn></mrow></msup>',
        ),
        (
            "a|b",
            '<mi>a</mi><mo stretchy="false" lspace="0" rspace="0">|</mo><mi>b</mi>',
        ),
        (
            r"2\log x",
            '<mn>2</mn><mspace width=".1667em" /><mi>log</mi><mspace width=".1667em" /><mi>x</mi>',
        ),
        (
            r"\log(x)",
            '<mi>log</mi><mo stretchy="false">(</mo><mi>x</mi><mo stretchy="false">)</mo>',
        ),
        (
            r"\operatorname{clip} x",
            '<mi>clip</mi><mspace width=".1667em" /><mi>x</mi>',
        ),
        ("10{,}000", '<mn>10</mn><mo lspace="0" rspace="0">,</mo><mn>000</mn>'),
    ],
)
def test_operators_are_spaced_as_tex_spaces_them(tex: str, expected: str) -> None:
    assert inside(tex) == expected


def test_limits_stand_below_only_where_the_style_has_room() -> None:
    for tex, operator in ((r"\max_x", "<mi>max</mi>"), (r"\operatorname*{KL}_x", "<mi>KL</mi>"),
                          (r"\mathop{\mathbb{E}}_x", "<mi>𝔼</mi>")):  # fmt: skip
        assert inside(tex, display=True) == f"<munder>{operator}<mi>x</mi></munder>"
        assert inside(tex) == f"<msub>{operator}<mi>x</mi></msub>"
    assert inside(r"\left(\sum_x\right)", display=True).count("<munder>") == 1
    assert inside(r"\frac{\sum_x}{2}", display=True).count("<munder>") == 0
    assert 'movablelimits="false"' in inside(r"\sum\limits_x")


def test_accents_stay_or_grow() -> None:
    assert inside(r"\hat x") == (
        '<mover accent="true"><mi>x</mi><mo stretchy="false">ˆ</mo></mover>'
    )
    assert '<mo stretchy="true">\u203e</mo>' in inside(r"\overline{x+y}")
    assert '<mo stretchy="true">→</mo>' in inside(r"\overrightarrow{AB}")
    assert '<mo stretchy="false">→</mo>' in inside(r"\vec{v}")


def test_brackets_have_the_size_that_was_asked_for() -> None:
    big = 'minsize="2.4em" maxsize="2.4em" stretchy="true"'
    assert inside(r"\bigg[x\bigg]") == f"<mo {big}>[</mo><mi>x</mi><mo {big}>]</mo>"
    assert inside(r"\left(x\right)") == (
        '<mrow><mo stretchy="true">(</mo><mi>x</mi><mo stretchy="true">)</mo></mrow>'
    )
    matrix = inside(r"\begin{pmatrix}a\\b\end{pmatrix}^2")
    assert matrix.startswith('<msup><mrow><mo stretchy="true">(</mo><mtable>')


def test_columns_of_align_meet_at_the_relation() -> None:
    cells = re.findall("<mtd[^>]*>", inside(r"\begin{align}a &= b \\ c &= d\end{align}"))
    right, left = "text-align:-webkit-right;padding-right:0", "text-align:left;padding-left:0"
    assert cells == [f'<mtd style="{right}">', f'<mtd style="{left}">'] * 2
    assert '<mo lspace=".2778em" rspace=".2778em">=</mo>' in inside(
        r"\begin{aligned}a &= b\end{aligned}"
    )


def test_a_colour_has_a_readable_variant_for_each_scheme() -> None:
    assert inside(r"\textcolor{lightgreen}{x}+y") == (
        '<mstyle style="color:var(--mg-tex-lightgreen,lightgreen)"><mi>x</mi></mstyle>'
        "<mo>+</mo><mi>y</mi>"
    )
    assert (ASSETS / "a-fonts.css").read_text("utf-8").count("--mg-tex-lightgreen:") == 2


def test_other_commands() -> None:
    assert inside(r"\coloneqq x").count("≔") == 1
    assert "<mtext>(1)</mtext>" in inside(r"a \tag{1}")
    assert inside(r"a \\ b", display=True).count("<mtr>") == 2
    assert "2pt" not in inside(r"a \\[2pt] b", display=True)
    assert "border:1px solid" in inside(r"\boxed{a}")
    assert "\\" not in inside("a\\\nb")  # a space, where a line ends on a backslash
    assert inside("a \\\\\nb", display=True).count("<mtr>") == 2
    assert inside(r"\text{\small A\tiny B}") == (
        '<mstyle mathsize="0.85em"><mtext>A</mtext></mstyle>'
        '<mstyle mathsize="0.5em"><mtext>B</mtext></mstyle>'
    )


def test_the_tex_is_kept_for_readers_but_is_no_text() -> None:
    math = to_mathml("\\frac{a}{b}\n< c", display=True)
    assert math.startswith(r'<math display="block" alttext="\frac{a}{b} &lt; c">')
    assert r"\frac" not in re.sub("<[^>]*>", "", math)


@pytest.mark.parametrize(
    ("tex", "reason"),
    [
        (r"\foo{x}", r"unknown command \foo"),
        (r"x_\foo", r"unknown command \foo"),
        (r"\text{\foo}", r"unknown command \foo"),
        (r"\begin{foo}x\end{foo}", "unknown environment foo"),
        ("{x", "an opening brace without a closing one"),
        ("x}", "a closing brace without an opening one"),
        (r"\frac{x}", "a command without its argument"),
        (r"\left( x", "extra left or missing right"),
        ("a_b_c", "double subscripts"),
        (r"\mathrel{a}", "a command that is not typeset here"),
        (r"\cancel{a}", "a command that is not typeset here"),
        (r"a \xrightarrow{b} c", "a command that is not typeset here"),
    ],
)
def test_a_formula_that_is_not_tex_is_an_error_that_names_it(tex: str, reason: str) -> None:
    with pytest.raises(MathError) as caught:
        to_mathml(tex, display=False)
    assert str(caught.value) == f"{reason} in the formula: {tex}"
    assert (caught.value.tex, caught.value.reason) == (tex, reason)
    assert isinstance(caught.value, MarginaliaError)


# Markdown

X = to_mathml("x", display=False)
BLOCK = f'<div class="mg-math">{to_mathml("x", display=True)}</div>'


@pytest.mark.parametrize("tex", ["$x$", r"\(x\)"])
def test_inline(tex: str) -> None:
    assert render(f"so {tex}, and") == f"<p>so {X}, and</p>"
    assert render(tex) == f"<p>{X}</p>"
    assert render(f"**{tex}**_b_") == f"<p><strong>{X}</strong><em>b</em></p>"


@pytest.mark.parametrize("tex", ["$$x$$", "$$\nx\n$$", r"\[x\]"])
def test_block(tex: str) -> None:
    assert render(f"a\n\n{tex}\n\nb") == f"<p>a</p>\n{BLOCK}\n<p>b</p>"


def test_an_environment_is_a_block() -> None:
    page = render("\\begin{align}\na &= b_1 \\\\\n c &= d_2\n\\end{align}")
    assert page.startswith('<div class="mg-math"><math display="block"')
    assert page.count("<mtr>") == 2


def test_blank_lines_in_an_environment() -> None:
    page = render("so\n\n\\begin{align}\n\na &= b \\\\\n\nc &= d\n\n\\end{align}\n\nand")
    assert page.count("<mtr>") == 2
    assert page.startswith("<p>so</p>")
    assert page.endswith("<p>and</p>")
    assert render("\\begin{align}\n\na") == "<p>\\begin{align}</p>\n<p>a</p>"


def test_text_between_two_formulas_is_text() -> None:
    assert "where" in re.sub("<[^>]*>", "", render("$$a$$\nwhere\n$$b$$"))
    assert render("$$a$$\nwhere\n$$b$$").count("<math") == 2


def test_a_block_within_a_paragraph_splits_no_paragraph() -> None:
    math = to_mathml("x", display=True)
    assert render("so\n$$x$$\nand") == (f'<p>so\n<span class="mg-math">{math}</span>\nand</p>')


def test_where_markdown_nests() -> None:
    for text in (
        '<div class="mg-prose" markdown="1">\nso $x$\n</div>',
        "| a | b |\n|---|---|\n| $x$ | 2 |",
        "* one $x$\n* two",
        "1. one\n\n    $x$",
        "!!! note\n    so $x$",
        "a[^1]\n\n[^1]: so $x$",
        "## The $x$ gate",
        "> so $x$",
    ):
        assert X in render(text), text
    for text in (
        '<div class="mg-prose" markdown="1">\n\nso\n\n$$x$$\n\n</div>',
        "* one\n\n    $$x$$\n\n* two",
        "!!! note\n\n    $$x$$",
    ):
        assert BLOCK in render(text), text


def test_the_table_of_contents_has_the_symbols_and_no_markup() -> None:
    md = markdown.Markdown(extensions=EXTENSIONS)
    html = md.convert(r"## The $x_i$ gate" "\n\n## Cost: $O(n^2)$")
    assert [token["name"] for token in md.toc_tokens] == ["The xi gate", "Cost: O(n2)"]
    assert [token["id"] for token in md.toc_tokens] == ["the-xi-gate", "cost-on2"]
    assert html.count("<math") == 2


@pytest.mark.parametrize(
    "text",
    [
        "`$x$`",
        "```\n$x$\n```",
        "    $x$",
        r"\$x\$",
        "$5 and $6",
        "$5-$6",
        "costs $ 5 $ now",
        "one $ only",
    ],
)
def test_what_is_not_math(text: str) -> None:
    page = render(text)
    assert "<math" not in page
    assert "$" in page
    assert "\\" not in page


def test_markdown_leaves_the_formula_alone() -> None:
    assert to_mathml("a_1 * b_2 * c", display=False) in render("$a_1 * b_2 * c$")
    assert to_mathml(r"\{a\} \\ b", display=False) in render(r"$\{a\} \\ b$")
    assert to_mathml("a<b>c", display=False) in render("$a<b>c$")


def test_only_a_wide_formula_stops_the_tab_key() -> None:
    assert 'tabindex="0" role="group" aria-label="Formula"' in render(
        "$$" + " + ".join(f"x_{i}" for i in range(9)) + r"+ \frac{a + b + c + d + e}{2}$$"
    )
    assert "tabindex" not in render(r"$$y = \frac{a + b + c + d + e}{a + b + c + d + e} x$$")


def test_a_broken_formula_is_shown_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        page = render("so $\\foo<1$\n\n$$\\frac{1}$$")
    assert '<code class="mg-math-error" title="unknown command \\foo">\\foo&lt;1</code>' in page
    assert '<div class="mg-math"><code class="mg-math-error"' in page
    assert [(r.name, r.getMessage()) for r in caplog.records] == [
        ("mkdocs.plugins.marginalia", r"a command without its argument in the formula: \frac{1}"),
        ("mkdocs.plugins.marginalia", r"unknown command \foo in the formula: \foo<1"),
    ]


# Corpora


def prose(root: Path) -> Iterator[str]:
    for path in sorted(root.rglob("*.py")):
        yield from (row.prose for row in parse(read_source(path), path) if row.prose)


def roots() -> list[Path]:
    spec = find_spec("labml_nn")
    companion = [Path(p) for p in spec.submodule_search_locations or ()] if spec else []
    return [PAPERS, *companion]


@pytest.mark.parametrize("root", roots(), ids=lambda p: p.name)
def test_every_formula_of_the_collection_is_typeset(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    md = markdown.Markdown(extensions=EXTENSIONS)
    pages = [md.reset().convert(text) for text in prose(root) if "$" in text or r"\begin" in text]
    assert [record.getMessage() for record in caplog.records] == []
    text = re.sub("<(?:pre|code).*?</(?:pre|code)>|<[^>]*>", "", "".join(pages), flags=re.DOTALL)
    # A formula of labml's has a blank before its last dollar and so is text.
    assert set(re.findall(r"\\[a-zA-Z]+", text)) <= {r"\otimes"}


# Fonts


def test_every_font_that_is_named_is_there() -> None:
    css = (ASSETS / "a-fonts.css").read_text("utf-8")
    named = set(re.findall(r'url\("([^"]*)"\)', css))
    assert named == {f"fonts/{path.name}" for path in (ASSETS / "fonts").glob("*.woff2")}
    assert css.count("@font-face") == css.count("font-display: swap") == len(named)
    assert "http" not in css


def test_fonts_are_small_and_licensed() -> None:
    files = list((ASSETS / "fonts").iterdir())
    assert sum(path.stat().st_size for path in files) < 900_000
    licences = [path.read_text("utf-8") for path in files if path.name.endswith("license.txt")]
    assert len(licences) == 3
    assert all("SIL Open Font License, Version 1.1" in text for text in licences)
