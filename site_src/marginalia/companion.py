"""The companion library: an installed package of annotated modules, read as source, never imported.

The package's own pages link to each other as `../transformers/mha.html#MHA`. These links are led
to our pages; what leads nowhere becomes plain text and is reported. Pictures stay where they are
(a page of ours asks no other host for anything): they turn into links.
"""

from __future__ import annotations

import functools
import importlib.util
import posixpath
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from importlib import metadata
from pathlib import Path
from typing import Any

from marginalia.errors import MarginaliaError
from marginalia.links import Definitions, Index, definitions
from marginalia.memo import Memo, digest
from marginalia.page import Context, Extras, Page, render
from marginalia.paper import Paper, front_matter, load, page_url
from marginalia.rows import Row, parse
from marginalia.source import read_source

# A formula or a code span may hold `[a](x)`: they are stepped over, not searched for links.
_SKIP = r"(?P<skip>```.*?```|`[^`\n]*`|\$\$.*?\$\$|\$[^$\n]+\$)"
_IMAGE = r"!\[(?P<alt>[^\]]*)\]\((?P<image>[^)\s]*)\)"
_LINK = r"\[(?P<text>(?:!\[[^\]]*\]\([^)]*\)|[^\[\]])*)\]\((?P<target>[^)\s]+(?: / [^)\s]+)?)\)"
_TOKENS = re.compile(f"{_SKIP}|{_LINK}|{_IMAGE}", re.DOTALL)
_ANCHOR = re.compile(r"""<a\s+(?:id|name)=["']?([\w.-]+)""")
_ARXIV = re.compile(r"arxiv\.org/(?:abs|pdf)/(\d{4}\.\d{4,5})")


@dataclass(frozen=True, slots=True)
class Library:
    """Where a package stands, and where it comes from.

    Attributes:
        name: Import name, `"labml_nn"`.
        folder: The installed package.
        version: Installed version.
        origin: Address of its own site, ends in "/".
        repository: Address of its source repository.
        licence: Name of its licence.
        authors: Its authors, as the package names them.
    """

    name: str
    folder: Path
    version: str
    origin: str
    repository: str
    licence: str
    authors: str


@dataclass(frozen=True, slots=True)
class Module:
    """One file of a library.

    Attributes:
        path: The file.
        name: Dotted import name.
        page: Its page, as a path below the library's folder: `"transformers/mha.md"`.
        title: From its front matter, else its first heading, else its name.
        text: The source.
        anchors: Ids one can link to on its page.
        arxiv: arXiv ids that its opening docstring names, in order.
        definitions: What it defines and imports.
    """

    path: Path
    name: str
    page: str
    title: str
    text: str
    anchors: frozenset[str]
    arxiv: tuple[str, ...]
    definitions: Definitions


@dataclass(frozen=True, slots=True)
class Dangling:
    """A link of the library that leads nowhere: which file has it, where it points."""

    module: str
    target: str


def find(name: str, origin: str, repository: str) -> Library:
    """The installed package `name`, found without importing it.

    Raises:
        MarginaliaError: It is not installed.
    """
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise MarginaliaError(f"the companion library {name} is not installed")
    about = metadata.metadata(name)
    licences = [c.rsplit(" :: ", 1)[1] for c in about.get_all("Classifier") or [] if "License" in c]
    return Library(
        name=name,
        folder=Path(spec.origin).parent,
        version=about["Version"],
        origin=origin,
        repository=repository,
        licence=", ".join(licences),
        authors=about["Author"] or "",
    )


def modules(library: Library, memo: Memo | None = None) -> list[Module]:
    """Every file of the library, packages before what they hold.

    Args:
        library: The library.
        memo: Knows what an earlier build found in the files.

    Raises:
        SourceError: A file does not parse.
    """
    files = sorted(
        library.folder.rglob("*.py"), key=lambda p: (p.parent.parts, p.stem != "__init__", p)
    )
    return [_module(library, path, memo) for path in files]


def _module(library: Library, path: Path, memo: Memo | None) -> Module:
    relative = path.relative_to(library.folder).with_suffix("")
    package = relative.name == "__init__"
    dotted = relative.parent.parts if package else relative.parts
    text = read_source(path)
    find = functools.partial(_facts, library, path, text)
    key = memo.key("library module", relative.as_posix(), digest(text)) if memo else ""
    facts = memo.ask(key, find) if memo else find()
    return Module(
        path=path,
        name=".".join((library.name, *dotted)),
        page=(relative.with_name("index") if package else relative).as_posix() + ".md",
        title=facts["title"],
        text=text,
        anchors=frozenset(facts["anchors"]),
        arxiv=tuple(facts["arxiv"]),
        definitions=Definitions.from_json(facts["definitions"]),
    )


def _facts(library: Library, path: Path, text: str) -> dict[str, Any]:
    """What the other pages need to know of a file."""
    rows = parse(text, path)
    prose = "\n".join(row.prose for row in rows)
    opening = next((row.prose for row in rows if row.kind == "front"), "")
    found = definitions(text, path)
    return {
        "title": re.sub(_LINK, r"\g<text>", load(path, library.folder).title),
        "anchors": sorted({*_ANCHOR.findall(prose), *found.symbols}),
        "arxiv": list(dict.fromkeys(_ARXIV.findall(opening))),
        "definitions": found.to_json(),
    }


def localise(
    library: Library, module: Module, known: Mapping[str, Module], dangling: list[Dangling]
) -> tuple[Row, ...]:
    """The module's rows with every link led to one of our pages, to the web, or to plain text.

    Args:
        library: The library.
        module: The module whose prose is read.
        known: All modules of the library by `page`.
        dangling: Collects the links that lead nowhere.

    Returns:
        The rows; only their prose differs.
    """

    def lead(match: re.Match[str]) -> str:
        if match["skip"] is not None:
            return match["skip"]
        if match["text"] is None:
            return _picture(library, module, match["alt"], match["image"])
        text = re.sub(_IMAGE, lambda image: image["alt"], match["text"]).strip()
        target, whole = _target(module, match["target"], known)
        if not whole:
            dangling.append(Dangling(module.name, match["target"]))
        return f"[{text}]({target})" if target else text

    rows = parse(module.text, module.path)
    return tuple(replace(row, prose=_TOKENS.sub(lead, row.prose)) for row in rows)


def _target(module: Module, link: str, known: Mapping[str, Module]) -> tuple[str, bool]:
    """Where a link leads from the module's page ("" for nowhere), and whether that is all it asks.

    A link to a missing place on an existing page still leads to that page.
    """
    if re.match(r"[a-z][a-z+.-]*:", link):
        return link, True
    path, _, anchor = link.replace(" ", "").partition("#")
    here = posixpath.dirname(module.page)
    page = _page(posixpath.normpath(posixpath.join(here, path)), known) if path else module.page
    if not page:
        return "", False
    relative = posixpath.relpath(page, here or ".") if path else ""
    if not anchor or anchor in known[page].anchors:
        return f"{relative}#{anchor}" if anchor else relative, True
    return relative, False


def _page(path: str, known: Mapping[str, Module]) -> str:
    """The page that a path of the library's own site stands for, "" when there is none."""
    stem = re.sub(r"(/?__init__)?\.(html|py)$", "", path)
    return next(
        (p for p in (f"{stem}.md", posixpath.normpath(f"{stem}/index.md")) if p in known), ""
    )


def _picture(library: Library, module: Module, alt: str, source: str) -> str:
    """A link to a picture that is not in the package: nothing is loaded from another host."""
    if not re.match(r"https?:", source):
        source = library.origin + posixpath.normpath(
            posixpath.join(posixpath.dirname(module.page), source)
        )
    return f"[Picture: {alt or 'untitled'}]({source})"


class Companion:
    """A library as a part of our site.

    Args:
        library: The installed package.
        folder: Where its pages stand on the site.
        index: Takes in its definitions.
        memo: Knows what an earlier build found in its files.

    Attributes:
        modules: Its files.
        dangling: Links that lead nowhere, as pages are made.
        content: A digest of its files.
    """

    def __init__(
        self, library: Library, folder: str, index: Index, memo: Memo | None = None
    ) -> None:
        self.library = library
        self.folder = folder
        self.modules = modules(library, memo)
        self.content = digest("".join(digest(module.text) for module in self.modules))
        self.dangling: list[Dangling] = []
        self._known = {module.page: module for module in self.modules}
        self._about: dict[str, list[Module]] = {}
        for module in self.modules:
            index.add(module.name, module.definitions, self.url_of(module), kind="companion")
        # A module that names few papers is about them; one that names many lists them.
        for module in sorted(self.modules, key=lambda m: (len(m.arxiv), m.name.count("."), m.name)):
            for arxiv in module.arxiv:
                self._about.setdefault(arxiv, []).append(module)

    @property
    def index_source(self) -> str:
        """The Markdown file of its opening page."""
        return f"{self.folder}/index.md"

    def source_of(self, module: Module) -> str:
        """The Markdown file of a module's page."""
        return f"{self.folder}/{module.page}"

    def url_of(self, module: Module) -> str:
        """The address of a module's page, from the site's root."""
        return page_url(self.source_of(module))

    def about(self, arxiv: str, limit: int = 4) -> list[tuple[str, str]]:
        """Title and source file of the modules that are about a paper."""
        return [(m.title, self.source_of(m)) for m in self._about.get(arxiv, [])[:limit]]

    def page(
        self,
        module: Module,
        index: Index,
        address: Callable[[str], str],
        ours: Sequence[tuple[str, str]] = (),
    ) -> Page:
        """The page of a module.

        Args:
            module: One of `modules`.
            index: The definitions of the site.
            address: Addresses of the site, seen from the page.
            ours: Title and source file of our pages on the same papers.
        """
        rows = localise(self.library, module, self._known, self.dangling)
        front = next((row.prose for row in rows if row.kind == "front"), "")
        paper = Paper(
            path=module.path,
            module=module.name,
            url=self.url_of(module),
            title="Companion library" if module.page == "index.md" else module.title,
            summary=front_matter(front, module.path)[1],
            meta={},
        )
        inner = "" if module.page != "index.md" else self._contents()
        above = [self._origin(module), self._ours(module, ours), inner]
        extras = Extras(
            crumbs=tuple(self._crumbs(module)),
            before_rows="\n\n".join(filter(None, above)),
            meta={
                "search": {"boost": 0.2},
                "description": f"{module.name}, annotated by its authors",
            },
        )
        context = Context(index=index, address=address, snippets=False)
        return render(paper, module.text, rows, None, context, extras)

    def _crumbs(self, module: Module) -> Iterator[tuple[str, str]]:
        parts = re.sub(r"(/index)?\.md$", "", module.page).split("/")
        for depth in range(len(parts) if module.page != "index.md" else 0):
            page = "/".join([*parts[:depth], "index.md"])
            if page in self._known:
                name = "Companion library" if depth == 0 else self._known[page].title
                yield name, f"{self.folder}/{page}"

    def _origin(self, module: Module) -> str:
        library = self.library
        there = library.origin + module.page.removesuffix(".md") + ".html"
        file = module.path.relative_to(library.folder.parent).as_posix()
        return (
            '<p class="mg-origin">Companion library: '
            f'<a href="{escape(there)}" rel="noopener">this page at its origin</a>, '
            f'<a href="{escape(library.repository)}" rel="noopener">{escape(library.name)} '
            f"{escape(library.version)}</a>, {escape(file)}, by {escape(library.authors)}, "
            f"{escape(library.licence)}. Rendered from the installed package; it was not run.</p>"
        )

    def _ours(self, module: Module, ours: Sequence[tuple[str, str]]) -> str:
        if not ours:
            return ""
        here = posixpath.dirname(self.source_of(module))
        links = ", ".join(f"[{title}]({posixpath.relpath(page, here)})" for title, page in ours[:4])
        return f"On our site: {links}"

    def _contents(self) -> str:
        """Every module of the package, as its folders have them."""
        lines = ["## All modules", ""]
        for module in self.modules[1:]:
            depth = module.name.count(".") - 1
            lines.append(f"{'    ' * depth}- [{module.title}]({module.page})")
        return "\n".join(lines)


def labml(index: Index, memo: Memo | None = None, folder: str = "companion") -> Companion:
    """The annotated papers of labml.ai, as they are installed.

    Raises:
        MarginaliaError: `labml_nn` is not installed.
    """
    repository = "https://github.com/labmlai/annotated_deep_learning_paper_implementations"
    library = find("labml_nn", "https://nn.labml.ai/", repository)
    return Companion(library, folder, index, memo)
