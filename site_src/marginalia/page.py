"""One page: rows and what a run showed, as Markdown with HTML rows, and the files beside it.

The Markdown is builder-neutral. Prose stays Markdown inside `markdown="1"` cells, so headings,
links and admonitions are the builder's; code is HTML on one line, which Markdown leaves alone.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

from marginalia.code_html import highlighted
from marginalia.demo import Claim, Result
from marginalia.errors import SourceError
from marginalia.letters import letters
from marginalia.links import Index, Link
from marginalia.notebook import Notebook
from marginalia.outputs import claim_html, failure_html, output_html, shapes_html, values
from marginalia.paper import Paper, page_url
from marginalia.prose import Headings, sections
from marginalia.rows import Row
from marginalia.snippet import runnable
from marginalia.source import Symbol, read_bytes, split_lines, symbols


@dataclass(frozen=True, slots=True)
class Page:
    """A rendered page.

    Attributes:
        markdown: Its Markdown, with YAML meta.
        files: Site path -> content of what lies beside it: source, notebook, figures.
    """

    markdown: str
    files: dict[str, bytes]

    def to_json(self) -> dict[str, Any]:
        """It as JSON, each byte of a file as a character."""
        files = {name: content.decode("latin-1") for name, content in self.files.items()}
        return {"markdown": self.markdown, "files": files}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Page:
        """The inverse of :meth:`to_json`."""
        files = {name: content.encode("latin-1") for name, content in data["files"].items()}
        return cls(data["markdown"], files)


@dataclass(frozen=True, slots=True)
class Context:
    """What a page needs to know of its site.

    Attributes:
        index: The definitions of all modules.
        root: The folder on the import path; None for a library that is not run.
        address: The address of a page of the site, seen from this page: from `"topics/x/#y"`.
        snippets: Whether to offer runnable snippets, source and notebook.
    """

    index: Index
    address: Callable[[str], str]
    root: Path | None = None
    snippets: bool = True


@dataclass(frozen=True, slots=True)
class Extras:
    """Parts of a page that come from the collection.

    Attributes:
        crumbs: Title and source file of the pages above.
        compare: Title and source file of the papers to compare with, and what they do
            differently.
        before_rows: Markdown that stands above the rows.
        after_rows: Markdown that stands below the table of claims.
        api: Address of the API page from the site's root, "" without one.
        meta: Further page meta.
    """

    crumbs: tuple[tuple[str, str], ...] = ()
    compare: tuple[tuple[str, str, str], ...] = ()
    before_rows: str = ""
    after_rows: str = ""
    api: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)


def render(
    paper: Paper,
    text: str,
    rows: Sequence[Row],
    result: Result | None,
    context: Context,
    extras: Extras | None = None,
) -> Page:
    """Render one module.

    Args:
        paper: The module, as its front matter has it.
        text: Its source.
        rows: Its rows; their prose may have been edited since they were parsed from `text`.
        result: What its demo showed; None without a demo.
        context: The site around it.
        extras: What the collection adds.
    """
    return Prepared(paper, text, rows, context, extras).with_result(result)


def error_page(title: str, error: SourceError, text: str) -> str:
    """A page that could not be made: where and why, with the lines of the source around it."""
    lines = [line.rstrip("\r\n") for line in split_lines(text)]
    first = max(error.line - 4, 0)
    excerpt = "\n".join(
        f"{'→' if n == error.line else ' '} {n:4}  {line}"
        for n, line in enumerate(lines[first : error.line + 3], first + 1)
    )
    place = f"line {error.line}, column {error.column}"
    return (
        f"---\ntitle: {json.dumps(title)}\n---\n\n# {title}\n\n"
        f'<div class="mg-error" role="alert"><p><strong>This page cannot be made</strong>, '
        f"{place}: {escape(error.reason)}</p></div>\n\n"
        f'<pre class="mg-out">{_one_line(escape(excerpt, quote=False))}</pre>\n'
    )


@dataclass(frozen=True, slots=True)
class _Cells:
    """A row as it is whatever the demo shows.

    Attributes:
        opening: Its start, up to its code.
        lines: The numbers of its lines of code.
        tools: The buttons above them.
    """

    opening: str
    lines: tuple[int, ...]
    tools: str


class Prepared:
    """All of a page that can be made before its demo has run, which is most of the work.

    Args:
        paper: The module, as its front matter has it.
        text: Its source.
        rows: Its rows; their prose may have been edited since they were parsed from `text`.
        context: The site around it.
        extras: What the collection adds.
    """

    def __init__(
        self,
        paper: Paper,
        text: str,
        rows: Sequence[Row],
        context: Context,
        extras: Extras | None = None,
    ) -> None:
        self.paper, self.text = paper, text
        self.context, self.extras = context, extras or Extras()
        self._anchors = _anchors(symbols(text, paper.path))
        self._names = set(chain.from_iterable(self._anchors.values()))
        self._snippets = _Snippets(paper, text, context)
        self._headings = Headings(title=paper.title, taken={"checked", "mg-failed", *self._names})
        # In the order of the page, which its headings depend on.
        self.meta = self._meta()
        self.head = self._head()
        self.facts = self._facts()
        self.summary = self._summary()
        self.key = self._key()
        self.rows = [cells for row in rows if row.kind != "front" and (cells := self._cells(row))]
        self.sections = self._headings.sections
        links = context.index.links(paper.module, text)
        self.lines = [
            self._line(number, line)
            for number, line in enumerate(highlighted(text, links, self._href), 1)
        ]
        self.snippets = self._snippets.data()
        self.notebook = Notebook(text, paper, context.root) if context.snippets else None

    def with_result(self, result: Result | None, *, ran: str = "", notice: str = "") -> Page:
        """The page.

        Args:
            result: What its demo showed; None without a demo.
            ran: Where and when the demo ran, in words.
            notice: What a reader must know of it, in Markdown.
        """
        return _Renderer(self, result, ran, notice).page()

    # Above the rows

    def _meta(self) -> str:
        paper = self.paper
        meta: dict[str, Any] = {"title": paper.title, "hide": ["navigation"]}
        if paper.idea:
            meta["description"] = paper.idea
        meta |= self.extras.meta
        return f"---\n{yaml.safe_dump(meta, allow_unicode=True, sort_keys=False)}---"

    def _head(self) -> str:
        paper = self.paper
        crumbs = " › ".join(
            f'<a href="{escape(self._to(page))}">{escape(title)}</a>'
            for title, page in self.extras.crumbs
        )
        parts = [
            f'<p class="mg-crumb">{crumbs}</p>' if crumbs else "",
            f"# {paper.title}",
            f'<p class="mg-zh" lang="zh">{escape(paper.zh)}</p>' if paper.zh else "",
            f'<p class="mg-idea">{escape(paper.idea)}</p>' if paper.idea else "",
        ]
        return "\n\n".join(filter(None, parts))

    def _facts(self) -> list[str]:
        paper = self.paper
        facts = [
            ", ".join(map(escape, paper.authors)),
            " ".join(filter(None, [escape(paper.venue), str(paper.year or "")])),
            _outside(f"https://arxiv.org/abs/{paper.arxiv}", f"arXiv {paper.arxiv}")
            if paper.arxiv
            else "",
            _outside(paper.code, paper.code_label) if paper.code else "",
        ]
        if self.context.snippets:
            stem = paper.module.rsplit(".", 1)[-1]
            facts.append(f'<a href="{escape(self.beside(f"{stem}.py"))}" download>source</a>')
            facts.append(f'<a href="{escape(self.beside(f"{stem}.ipynb"))}" download>notebook</a>')
        if self.extras.api:
            facts.append(f'<a href="{escape(self.context.address(self.extras.api))}">API</a>')
        return facts

    def _summary(self) -> str:
        return self._markdown(self.paper.text)

    def _markdown(self, prose: str) -> str:
        """Prose fitted into the page; an anchor of its own for a symbol would stand twice."""
        prose = _ANCHOR.sub(lambda match: "" if match[1] in self._names else match[0], prose)
        return sections(self._headings.fit(prose))

    def _key(self) -> str:
        paper = self.paper
        facts = [(label.capitalize(), [str(value)]) for label, value in paper.cost.items()]
        if paper.letters:
            words = " · ".join(f"`{letter}` {word}" for letter, word in paper.letters.items())
            facts.append(("Letters", [words]))
        if self.extras.compare:
            facts.append(("Compare with", self._near()))
        if not facts:
            return ""
        cells = "\n".join(
            f'<div markdown="1"><dt>{escape(label)}</dt>'
            + "".join(f'<dd markdown="span">{value}</dd>' for value in values)
            + "</div>"
            for label, values in facts
        )
        return f'<dl class="mg-key" markdown="1">\n{cells}\n</dl>'

    def _near(self) -> list[str]:
        """The papers to compare with: in one line, or in one each that says what they change."""
        near = [
            (f"[{title}]({self._markdown_link(page)})", change)
            for title, page, change in self.extras.compare
        ]
        if any(change for _, change in near):
            return [f"{link} {change}".strip() for link, change in near]
        return [" · ".join(link for link, _ in near)]

    # The rows

    def _cells(self, row: Row) -> _Cells | None:
        prose = self._markdown(row.prose).strip()
        if not prose and not row.code:
            return None
        kind = "wide" if row.kind == "wide" else "pair" if prose else "bare"
        opening = f'<div class="mg-row mg-{kind}" id="r{row.start}" markdown="1">'
        if prose:
            opening += f'\n\n<div class="mg-prose" markdown="1">\n\n{prose}\n\n</div>'
        if not row.code:
            return _Cells(opening, (), "")
        return _Cells(opening, row.code_lines, self._buttons(row))

    def _line(self, number: int, code: str) -> str:
        """A line of code up to where the shapes of its tensors go."""
        names = self._anchors.get(number, ())
        target = "".join(f'<span id="{escape(name)}"></span>' for name in names)
        return (
            f'<span class="mg-line" id="L{number}">{target}<a class="mg-ln" href="#L{number}" '
            f'tabindex="-1" aria-label="Line {number}" data-n="{number}"></a>{code}'
        )

    def _buttons(self, row: Row) -> str:
        first, last = row.code_lines[0], row.code_lines[-1]
        where = f"line {first}" if first == last else f"lines {first} to {last}"
        link = f'<a class="mg-permalink" href="#r{row.start}" aria-label="Link to {where}">#</a>'
        copy = f'<button type="button" class="mg-copy" aria-label="Copy {where}">Copy</button>'
        number = self._snippets.add(row)
        if number is not None:
            copy += (
                f'<button type="button" class="mg-run-copy" data-mg-snippet="{number}" '
                f'aria-label="Copy runnable: {where} with what they need">Copy runnable</button>'
            )
        return f'<div class="mg-tools">{link}{copy}</div>'

    # Addresses and files

    def _href(self, link: Link) -> str:
        if link.kind == "external":
            return link.url
        page, _, anchor = link.url.partition("#")
        return f"#{anchor}" if page == self.paper.url else self.context.address(link.url)

    def _to(self, source: str) -> str:
        """The address of a Markdown file of the site, for raw HTML."""
        return self.context.address(page_url(source))

    def _markdown_link(self, source: str) -> str:
        return posixpath.relpath(source, posixpath.dirname(self.paper.src_uri) or ".")

    def beside(self, name: str) -> str:
        """The address of a file beside the page."""
        return self.context.address(self.paper.url + name)


class _Renderer:
    """A prepared page with what its demo showed, from the top to the bottom."""

    def __init__(self, prepared: Prepared, result: Result | None, ran: str, notice: str) -> None:
        self.prepared, self.result = prepared, result
        self.ran, self.notice = ran, notice
        self.files: dict[str, bytes] = {}
        self.claims = result.claims if result else []
        self.after = self._after_lines()
        self.inlays = self._inlays()

    def page(self) -> Page:
        prepared, extras = self.prepared, self.prepared.extras
        top = [prepared.meta, prepared.head, self._facts(), prepared.summary, prepared.key]
        above = [self.notice, extras.before_rows, self._contents(), self._switch()]
        rows = [self._failure(), self._rows(), self._table(), extras.after_rows]
        parts = [*top, *above, *rows, prepared.snippets]
        if prepared.notebook:
            self._downloads(prepared.notebook)
        return Page("\n\n".join(part for part in parts if part) + "\n", self.files)

    # Above the rows

    def _facts(self) -> str:
        facts = [*self.prepared.facts, self._badge(), escape(self.ran)]
        items = "".join(f"<li>{fact}</li>" for fact in facts if fact)
        return f'<ul class="mg-facts">{items}</ul>' if items else ""

    def _badge(self) -> str:
        if self.result is None:
            return ""
        if not self.result.ok:
            return '<a class="mg-badge mg-bad" href="#mg-failed">✗ failed</a>'
        count = len(self.claims)
        if not count:
            return ""
        return f'<a class="mg-badge" href="#checked">✓ {_count(count, "claim")} checked</a>'

    def _failure(self) -> str:
        if self.result is None or self.result.ok or self.result.error is None:
            return ""
        return f'<div id="mg-failed">{failure_html(self.result.error)}</div>'

    def _contents(self) -> str:
        """Where the sections of the rows are: two columns leave no room for a sidebar."""
        found = self.prepared.sections + ([("checked", "Checked claims")] if self.claims else [])
        if len(found) < 3:
            return ""
        items = "".join(f'<li><a href="#{name}">{escape(text)}</a></li>' for name, text in found)
        return f'<nav class="mg-toc" aria-label="On this page"><ul>{items}</ul></nav>'

    def _switch(self) -> str:
        if not self.inlays:
            return ""
        return (
            '<div class="mg-switches"><button type="button" class="mg-shapes-toggle" '
            'aria-pressed="true">Shapes</button></div>'
        )

    # The rows

    def _rows(self) -> str:
        body = "\n\n".join(map(self._row, self.prepared.rows))
        return f'<div class="mg-rows" markdown="1">\n\n{body}\n\n</div>'

    def _row(self, cells: _Cells) -> str:
        code = self._code(cells) if cells.lines else ""
        return "\n\n".join(filter(None, [cells.opening, code, "</div>"]))

    def _code(self, cells: _Cells) -> str:
        blocks: list[str] = []
        lines: list[str] = []

        def close() -> None:
            if lines:
                code = "&#10;".join(lines)
                blocks.append(f'<pre class="mg-pre" tabindex="0">{code}</pre>')
                lines.clear()

        for number in cells.lines:
            lines.append(f"{self.prepared.lines[number - 1]}{self.inlays.get(number, '')}</span>")
            if number in self.after:
                close()
                blocks += self.after[number]
        close()
        # A library's code would drown its prose, and ours, in the search.
        search = "" if self.prepared.context.snippets else " data-search-exclude"
        body = cells.tools + _one_line("".join(blocks))
        return f'<div class="mg-code"{search}>{body}</div>'

    def _inlays(self) -> dict[int, str]:
        prepared = self.prepared
        if self.result is None or not prepared.paper.shapes:
            return {}
        found = self.result.shapes
        named = letters(prepared.text, found, prepared.paper.letters)
        by_line = defaultdict(list)
        for number, shape in enumerate(found):
            by_line[shape.line].append((shape, named.get(number, ())))
        return {line: shapes_html(entries) for line, entries in by_line.items()}

    def _after_lines(self) -> dict[int, list[str]]:
        """What stands under a line: outputs of its statement, then its claim."""
        after: dict[int, list[str]] = defaultdict(list)
        if self.result is None:
            return after
        for number, output in enumerate(self.result.outputs, 1):
            after[output.line].append(output_html(output, self._saver(number)))
        for claim in self.claims:
            after[claim.end_line].append(claim_html(claim))
        if self.result.error and self.result.error.line:
            after[self.result.error.line].append(failure_html(self.result.error))
        return after

    # Below the rows

    def _table(self) -> str:
        if not self.claims:
            return ""
        columns = ("Claim", "Measured here", "Source", "Line")
        head = "".join(f'<th scope="col">{column}</th>' for column in columns)
        body = "".join(self._claim_row(claim) for claim in self.claims)
        return (
            "## What was checked when this page was built {#checked}\n\n"
            '<div class="mg-table" tabindex="0" role="region" aria-label="Checked claims">'
            f'<table class="mg-claims"><thead><tr>{head}</tr></thead>'
            f"<tbody>{body}</tbody></table></div>"
        )

    def _claim_row(self, claim: Claim) -> str:
        mark = '<span class="mg-mark" role="img" aria-label="verified">✓</span>'
        if not claim.ok:
            mark = '<span class="mg-mark mg-bad" role="img" aria-label="failed">✗</span>'
        return (
            f"<tr><td>{mark} <code>{escape(claim.text)}</code></td><td>{values(claim)}</td>"
            f"<td>{escape(claim.source)}</td>"
            f'<td><a href="#L{claim.line}">{claim.line}</a></td></tr>'
        )

    # Files

    def _downloads(self, book: Notebook) -> None:
        paper = self.prepared.paper
        stem = paper.module.rsplit(".", 1)[-1]
        is_source = paper.path.suffix == ".py"
        source = read_bytes(paper.path) if is_source else self.prepared.text.encode()
        self._save(f"{stem}.py", source)
        self._save(f"{stem}.ipynb", book.with_outputs(self.result).encode())

    def _save(self, name: str, content: bytes) -> str:
        self.files[self.prepared.paper.url + name] = content
        return self.prepared.beside(name)

    def _saver(self, number: int) -> Callable[[str, bytes], str]:
        def save(name: str, content: bytes) -> str:
            stem, _, suffix = name.rpartition(".")
            return self._save(f"{stem}-{number}.{suffix}", content)

        return save


class _Snippets:
    """The runnable snippets of a page: each is kept once, rows refer to it by number."""

    def __init__(self, paper: Paper, text: str, context: Context) -> None:
        self._paper, self._text, self._context = paper, text, context
        self._numbers: dict[str, int] = {}

    def add(self, row: Row) -> int | None:
        """The number of the snippet for a row, or None when it has none."""
        if not self._context.snippets or not row.code_lines:
            return None
        target = row.symbol or (row.code_lines[0], row.code_lines[-1])
        code = runnable(self._text, target, path=self._paper.path, root=self._context.root)
        return self._numbers.setdefault(code, len(self._numbers)) if code.strip() else None

    def data(self) -> str:
        """All of them, for the script of the page."""
        if not self._numbers:
            return ""
        plain = json.dumps(list(self._numbers), ensure_ascii=False).replace("<", "\\u003c")
        return f'<script type="application/json" class="mg-snippets">{plain}</script>'


def _anchors(found: Iterable[Symbol]) -> dict[int, list[str]]:
    """Line -> the names that are defined there; where a name is defined again has no anchor."""
    anchors: dict[int, list[str]] = defaultdict(list)
    for name, line in {symbol.name: symbol.line for symbol in reversed(list(found))}.items():
        anchors[line].append(name)
    return anchors


# Where a browser reads no `&#10;`.
_VERBATIM = re.compile(r"(<style\b.*?</style|<script\b.*?</script)", re.DOTALL | re.IGNORECASE)

# How modules of the labml site name a place.
_ANCHOR = re.compile(r"""<a\s+(?:id|name)=["']?([\w.-]+)["']?\s*>\s*</a>""")


def _one_line(html: str) -> str:
    """HTML that Markdown passes over: no line of it can be taken for Markdown."""
    parts = _VERBATIM.split(html.replace("\r", ""))
    parts[::2] = [part.replace("\n", "&#10;").replace("\t", "&#9;") for part in parts[::2]]
    return "".join(parts)


def _outside(url: str, text: str) -> str:
    return f'<a href="{escape(url)}" rel="noopener">{escape(text)}</a>'


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("s" if number != 1 else "")
