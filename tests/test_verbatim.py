"""Code that is finished HTML passes Markdown as it stands; everything else is converted as ever."""

from __future__ import annotations

import markdown
import pytest

EXTENSIONS = ["attr_list", "md_in_html", "toc", "pymdownx.superfences"]

LINE = '<span class="mg-line" id="L1">a <b title="&lt;">*b*</b> &lt; $c$ [d](e.md) {#f}</span>'
CODE = f'<div class="mg-code" data-search-exclude><pre class="mg-pre">{LINE}&#10;</pre></div>'


def render(text: str, *more: str) -> str:
    return markdown.markdown(text, extensions=[*EXTENSIONS, *more])


def row(code: str) -> str:
    inside = f'<div markdown="1">\n\n*Prose* {{.x}}\n\n</div>\n\n{code}'
    return f'<div class="mg-rows" markdown="1">\n\n{inside}\n\n</div>\n\n## After'


@pytest.mark.parametrize("around", ["{}", "{}\n\nand *text*", row("{}").replace("{.x}", "{{.x}}")])
def test_code_is_not_touched(around: str) -> None:
    html = render(around.format(CODE), "marginalia.verbatim")
    assert html.count(CODE) == 1
    assert f"<p>{CODE}" not in html
    rest = render(around.format("<hr>"), "marginalia.verbatim")
    assert "".join(html.replace(CODE, "").split()) == "".join(rest.replace("<hr>", "").split())


def test_what_is_around_it_is_converted() -> None:
    html = render(row(CODE), "marginalia.verbatim")
    assert "<em>Prose</em>" in html
    assert '<h2 id="after">After</h2>' in html


@pytest.mark.parametrize(
    "text",
    [
        row('<div class="mg-code"><script>\nlet a = "<p>";\n</script></div>'),  # on several lines
        row('<div class="mg-code"><div>a</div>\n\n<div>*b*</div></div>'),
        '<div class="mg-code-of-others" markdown="1">*a*</div>',
        f"```html\n{CODE}\n```",
        f"    {CODE}",
        f"`{CODE}`",
        'Text\n{: #a name="b" }',
        "",
    ],
)
def test_nothing_else_is_touched(text: str) -> None:
    assert render(text, "marginalia.verbatim") == render(text)
