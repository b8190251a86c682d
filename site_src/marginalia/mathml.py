r"""TeX math in Markdown becomes MathML while the site is built: `$x$`, `$$x$$`, `\begin{align}`.

pymdownx.arithmatex finds the formulas; a broken one is shown as it stands, and logged.
"""

from __future__ import annotations

import html
import logging
import re
from typing import Any
from xml.etree.ElementTree import Element, SubElement

from markdown import Markdown
from markdown.util import AtomicString
from pymdownx.arithmatex import (  # type: ignore[import-untyped]
    RE_BRACKET_BLOCK,
    RE_BRACKET_INLINE,
    RE_SMART_DOLLAR_INLINE,
    ArithmatexExtension,
    BlockArithmatexProcessor,
    InlineArithmatexPattern,
)

from marginalia.typeset import MathError, to_mathml, typeset

log = logging.getLogger("mkdocs.plugins.marginalia")

# In em: a formula up to this wide fits beside the margins of a phone.
_FITS = 16.0


def _block_html(tex: str) -> str:
    try:
        formula = typeset(tex, display=True)
    except MathError as error:
        return f'<div class="mg-math">{_broken(error)}</div>'
    # What scrolls must be reachable without a mouse; what does not must not stop the tab key.
    focus = ' tabindex="0" role="group" aria-label="Formula"' if formula.width > _FITS else ""
    return f'<div class="mg-math"{focus}>{formula.html}</div>'


def _inline_html(tex: str) -> str:
    try:
        return to_mathml(tex, display=False)
    except MathError as error:
        return _broken(error)


def _broken(error: MathError) -> str:
    log.warning("%s", error)
    reason, tex = html.escape(error.reason), html.escape(error.tex, quote=False)
    return f'<code class="mg-math-error" title="{reason}">{tex}</code>'


class _Inline(InlineArithmatexPattern):  # type: ignore[misc]
    r"""`$..$` and `\(..\)`; also `$$..$$` and its like where text goes on around them."""

    def __init__(self, pattern: str, md: Markdown, *, display: bool) -> None:
        super().__init__(pattern, {})
        self.stash = md.htmlStash
        self.display = display

    def handleMatch(self, m: re.Match[str], data: str) -> tuple[Any, int, int]:  # noqa: N802
        """Typeset what was found and keep it from the rest of Markdown."""
        if self.display:
            tex = next(filter(None, map(m.groupdict().get, ("math", "math2", "math3"))))
            formula = _block_html(tex).replace("<div", "<span", 1).removesuffix("</div>")
            return self.stash.store(f"{formula}</span>"), m.start(0), m.end(0)
        groups = m.groups()
        if groups[0] or groups[3]:  # escaped backslashes before a dollar
            return super().handleMatch(m, data)  # type: ignore[no-any-return]
        return self.stash.store(_inline_html(groups[2] or groups[5])), m.start(0), m.end(0)


class _Block(BlockArithmatexProcessor):  # type: ignore[misc]
    r"""`$$..$$`, `\[..\]` and environments that are a block of their own."""

    def test(self, parent: Element, block: str) -> bool:
        """Whether a formula starts here; an environment may go on behind blank lines."""
        return super().test(parent, block) or block.startswith(r"\begin{")

    def run(self, parent: Element, blocks: list[str]) -> bool:
        """Typeset the block, or leave it to others where the environment has no end."""
        begun = _BEGIN.match(blocks[0])
        end = rf"\end{{{begun[1]}}}" if begun else ""
        count = next((n for n, block in enumerate(blocks, 1) if end in block), 0)
        text = "\n".join(blocks[:count])
        if not count or not super().test(parent, text):
            return False
        blocks[:count] = [text]
        return bool(super().run(parent, blocks))

    def generic_output(self, parent: Element, math: str) -> None:
        """Put the typeset formula into the page."""
        stash = self.parser.md.htmlStash
        paragraph = SubElement(parent, "p")
        paragraph.text = AtomicString(stash.store(_block_html(math)))


class MathMLExtension(ArithmatexExtension):  # type: ignore[misc]
    """Python-Markdown extension: TeX to MathML. It has no options."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802
        """Put our processors in the place of arithmatex's."""
        super().extendMarkdown(md)
        # Else a paragraph that is one formula would lose its <p>.
        md.block_level_elements = [t for t in md.block_level_elements if t != "math"]
        inline = f"(?:{_INLINE_DOLLAR}|{RE_BRACKET_INLINE})"
        blocks = "|".join((_DOLLARS, RE_BRACKET_BLOCK, _ENVIRONMENT))
        md.inlinePatterns.register(_Inline(inline, md, display=False), "arithmatex-inline", 189.9)
        within = _Inline(rf"(?s)(?<![\\$])(?:{blocks})", md, display=True)
        md.inlinePatterns.register(within, "marginalia-display", 189.95)
        block = _Block(rf"(?s)^(?:{blocks})[ ]*$", {"generic": True}, md)
        md.parser.blockprocessors.register(block, "arithmatex-block", 79.9)


_BEGIN = re.compile(r"\\begin\{([a-z]+\*?)\}")
# As arithmatex has them, but over at the first end, so that text between two formulas is text.
_DOLLARS = r"[$]{2}(?P<math>(?:\\.|[^\\$]|\$(?!\$))+?)[$]{2}"
_ENVIRONMENT = (
    r"(?P<math2>\\begin\{(?P<env>[a-z]+\*?)\}"
    r"(?:(?!\\end\{(?P=env)\})(?:\\.|[^\\]))+\\end\{(?P=env)\})"
)
# As in Pandoc: no digit after the closing dollar, so `$5-$6` are prices.
_INLINE_DOLLAR = RE_SMART_DOLLAR_INLINE.removesuffix(")") + r"(?!\d))"


def makeExtension(**kwargs: Any) -> MathMLExtension:  # noqa: N802
    """Return the extension, as Python-Markdown asks for it."""
    return MathMLExtension(**kwargs)
