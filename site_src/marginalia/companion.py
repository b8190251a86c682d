"""The companion library: an installed package of annotated modules, read as source, never imported.

The package's own pages link to each other as `../transformers/mha.html#MHA`. These links are led
to our pages; what leads nowhere becomes plain text and is reported. Pictures stay where they are
(a page of ours asks no other host for anything): they turn into links.
"""

from __future__ import annotations

import importlib.util
import posixpath
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

from marginalia.errors import MarginaliaError
from marginalia.rows import Row, parse, read_source, symbols

# A formula or a code span may hold `[a](x)`: they are stepped over, not searched for links.
_SKIP = r"(?P<skip>```.*?```|`[^`\n]*`|\$\$.*?\$\$|\$[^$\n]+\$)"
_IMAGE = r"!\[(?P<alt>[^\]]*)\]\((?P<image>[^)\s]*)\)"
_LINK = r"\[(?P<text>(?:!\[[^\]]*\]\([^)]*\)|[^\[\]])*)\]\((?P<target>[^)\s]+)\)"
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
        text: The source.
        rows: Its rows, links in the prose not yet led to our pages.
        anchors: Ids one can link to on its page.
        arxiv: arXiv ids that its opening docstring names, in order.
    """

    path: Path
    name: str
    page: str
    text: str
    rows: tuple[Row, ...]
    anchors: frozenset[str]
    arxiv: tuple[str, ...]


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


def modules(library: Library) -> list[Module]:
    """Every file of the library, packages before what they hold.

    Raises:
        SourceError: A file does not parse.
    """
    files = sorted(library.folder.rglob("*.py"), key=lambda p: (p.parent.parts, p.stem != "__init__", p))
    return [_module(library, path) for path in files]


def _module(library: Library, path: Path) -> Module:
    relative = path.relative_to(library.folder).with_suffix("")
    package = relative.name == "__init__"
    dotted = relative.parent.parts if package else relative.parts
    text = read_source(path)
    rows = tuple(parse(text, path))
    prose = "\n".join(row.prose for row in rows)
    opening = next((row.prose for row in rows if row.kind == "front"), "")
    return Module(
        path=path,
        name=".".join((library.name, *dotted)),
        page=(relative.with_name("index") if package else relative).as_posix() + ".md",
        text=text,
        rows=rows,
        anchors=frozenset(_ANCHOR.findall(prose)) | {s.name for s in symbols(text, path)},
        arxiv=tuple(dict.fromkeys(_ARXIV.findall(opening))),
    )


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

    return tuple(replace(row, prose=_TOKENS.sub(lead, row.prose)) for row in module.rows)


def _target(module: Module, link: str, known: Mapping[str, Module]) -> tuple[str, bool]:
    """Where a link leads from the module's page ("" for nowhere), and whether that is all it asks.

    A link to a missing place on an existing page still leads to that page.
    """
    if re.match(r"[a-z][a-z+.-]*:", link):
        return link, True
    path, _, anchor = link.partition("#")
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
    return next((p for p in (f"{stem}.md", posixpath.normpath(f"{stem}/index.md")) if p in known), "")


def _picture(library: Library, module: Module, alt: str, source: str) -> str:
    """A link to a picture that is not in the package: nothing is loaded from another host."""
    if not re.match(r"https?:", source):
        source = library.origin + posixpath.normpath(
            posixpath.join(posixpath.dirname(module.page), source)
        )
    return f"[Picture: {alt or 'untitled'}]({source})"


def by_arxiv(all_modules: Iterable[Module], limit: int = 4) -> Callable[[str], list[Module]]:
    """A look-up from an arXiv id to the modules whose opening text names it.

    A module that names few papers is about them; one that names many is a table of contents.
    """
    found: dict[str, list[Module]] = {}
    for module in sorted(all_modules, key=lambda m: (len(m.arxiv), m.name.count("."), m.name)):
        for arxiv in module.arxiv:
            found.setdefault(arxiv, []).append(module)
    return lambda arxiv: found.get(arxiv, [])[:limit]
