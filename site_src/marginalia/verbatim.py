"""The code of our pages, finished HTML of one line each, passes Markdown as it stands.

`md_in_html` would take every tag of it apart and put them together again, and MkDocs would parse it
for anchors: most of the time that the conversion of a page takes.
"""

from __future__ import annotations

import re
from typing import Any

from markdown import Markdown
from markdown.extensions import Extension
from markdown.preprocessors import Preprocessor
from markdown.util import ETX, STX

_START = '<div class="mg-code"'
_END = "</div>"
_MARK = f"{STX}marginalia{ETX}"  # Markdown takes these characters out of what people write
_ANCHOR = re.compile(r"""\s(?:id|name)=(?:"[^"]*"|'[^']*'|[^\s"'>]+)""")


class _Stash(Preprocessor):
    def run(self, lines: list[str]) -> list[str]:
        """Put code where Markdown keeps finished HTML; only its anchors are left for MkDocs."""
        return [self._kept(line) if _is_whole(line) else line for line in lines]

    def _kept(self, line: str) -> str:
        anchors = "".join(f"<a{anchor}>" for anchor in _ANCHOR.findall(line))
        return f"{self.md.htmlStash.store(line)}{_MARK}{anchors}"


class _Unmark(Preprocessor):
    def run(self, lines: list[str]) -> list[str]:
        """Remove the anchors, which MkDocs has seen."""
        return [line.partition(_MARK)[0] for line in lines]


def _is_whole(line: str) -> bool:
    """Whether a line is code of ours from its first tag to its last."""
    is_ours = line.startswith(_START) and line.endswith(_END)
    return is_ours and line.count("<div") == line.count(_END)


class VerbatimExtension(Extension):
    """Python-Markdown extension. It has no options."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802
        """Register around MkDocs's search for anchors (21), before `html_block` (20)."""
        md.preprocessors.register(_Stash(md), "marginalia-stash", 21.5)
        md.preprocessors.register(_Unmark(md), "marginalia-unmark", 20.5)


def makeExtension(**kwargs: Any) -> VerbatimExtension:  # noqa: N802
    """Return the extension, as Python-Markdown asks for it."""
    return VerbatimExtension(**kwargs)
