"""Prose of a module, fitted into a page: one order of headings, docstring sections set as lists."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from griffe import Docstring, DocstringSection, DocstringSectionKind, Parser
from markdown.extensions.toc import slugify, unique

_FENCE = re.compile(r"^\s*(`{3,}|~{3,})")
_HEADING = re.compile(r"^(#{1,6})\s+(.*?)(?:\s+#+)?\s*$")
_SECTION = re.compile(
    r"^(Args|Arguments|Params|Parameters|Returns|Raises|Yields|Attributes|Examples?|Notes?):\s*$",
    re.M,
)


class Headings:
    """Keeps the headings of a page in order: one title, and no level left out.

    Args:
        title: The page's title: a first heading that repeats it is dropped.
        taken: Ids that stand on the page already.

    Attributes:
        sections: Id and text of the headings of the second level so far.
    """

    def __init__(self, title: str, taken: Iterable[str] = ()) -> None:
        self.sections: list[tuple[str, str]] = []
        self._title = title
        self._level = 1
        self._ids = set(taken)

    def fit(self, prose: str) -> str:
        """The prose with its headings at a level that may follow the ones before it."""
        if "#" not in prose:
            return prose
        return "\n".join(self._lines(prose.split("\n")))

    def _lines(self, lines: list[str]) -> Iterator[str]:
        fence = ""  # the one that is open
        for line in lines:
            found = _FENCE.match(line)
            if found and not fence:
                fence = found[1]
            elif found and found[1].startswith(fence) and found[1] == line.strip():
                fence = ""
            heading = None if fence else _HEADING.match(line)
            if heading is None:
                yield line
            elif _plain(heading[2]) != self._title:
                self._level = max(2, min(len(heading[1]), self._level + 1))
                text = re.sub(r"#(?=#*$)", r"\\#", heading[2])  # which would go as a closing mark
                yield f"{'#' * self._level} {text}{self._anchor(heading[2])}"

    def _anchor(self, heading: str) -> str:
        """An id for a heading that has none: the same one whatever the builder's rules are."""
        if heading.endswith("}"):
            return ""
        text = _plain(heading)
        anchor = unique(slugify(text, "-"), self._ids)
        if self._level == 2:
            self.sections.append((anchor, text))
        return f" {{#{anchor}}}"


def _plain(heading: str) -> str:
    """A heading without its links and emphasis."""
    return re.sub(r"\[(.*?)\]\([^)]*\)|[*`]", r"\1", heading).strip()


def sections(prose: str) -> str:
    """Google-style sections of a docstring as Markdown definition lists; other prose as it is."""
    if not _SECTION.search(prose):
        return prose
    parsed = Docstring(prose).parse(Parser.google, warnings=False)
    return "\n\n".join(_section(section) for section in parsed)


def _section(section: DocstringSection) -> str:
    value = section.value
    if section.kind is DocstringSectionKind.text:
        return str(value)
    if section.kind is DocstringSectionKind.examples:
        examples = (_example(kind, text) for kind, text in value)
        return "\n\n".join(["Example\n{.mg-section}", *examples])
    if section.kind is DocstringSectionKind.admonition:
        text = "\n".join(f"    {line}" for line in value.description.split("\n"))
        return f"!!! {value.kind}\n\n{text}"
    title = section.title or _TITLES.get(section.kind, section.kind.value.capitalize())
    return f"{title}\n{{.mg-section}}\n\n" + "\n\n".join(_item(item) for item in value)


_TITLES = {
    DocstringSectionKind.parameters: "Arguments",
    DocstringSectionKind.returns: "Returns",
    DocstringSectionKind.raises: "Raises",
    DocstringSectionKind.yields: "Yields",
    DocstringSectionKind.attributes: "Attributes",
}


def _example(kind: DocstringSectionKind, text: str) -> str:
    return f"```pycon\n{text}\n```" if kind is DocstringSectionKind.examples else text


def _item(item: object) -> str:
    name = getattr(item, "name", "") or ""
    annotation = getattr(item, "annotation", None)
    description = str(getattr(item, "description", "")).replace("\n", "\n    ")
    term = " ".join(f"`{part}`" for part in (name, annotation) if part)
    return f"{term}\n:   {description}" if term else description
