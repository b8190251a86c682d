"""Links of a built site that lead nowhere in it."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from html import unescape
from typing import Literal
from urllib.parse import unquote

from marginalia.memo import Memo, digest


@dataclass(frozen=True, slots=True)
class Dangling:
    """A link of a built page that leads nowhere.

    Args:
        page: The page that has it.
        link: The link as it stands there.
        reason: What is missing: a page (or file), or an anchor on a page that exists.
    """

    page: str
    link: str
    reason: Literal["page", "anchor"]

    def __str__(self) -> str:
        return f"{self.page or 'index.html'}: no such {self.reason}: {self.link}"


_VALUE = r"""(?:"[^"]*+"|'[^']*+'|[^\s>"']++)"""
_OURS = r"(?i:(?:xlink:)?href|src|srcset|id|name)"
_RAW_TAGS = ("script", "style", "textarea", "title", "iframe")  # no tags inside
_RAW = f"(?i:{'|'.join(_RAW_TAGS)})"
_SKIPPED = rf"""
    [^<]++ | <!--.*?--> | <[!?/][^>]*+>       # text, comments, closing tags
    | <(?!{_RAW}\b)[a-zA-Z][^\s/>]*+            # tags that neither are a link nor can be led to
      (?: \s++ (?!{_OURS}[\s=/>])[^\s=/>]++ (?:\s*+=\s*+{_VALUE})?+ | / )*+ \s*+ >
"""
_TAG = r"""<(?P<tag>[a-zA-Z][^\s/>]*+)(?P<attributes>(?:[^>"']++|"[^"]*+"|'[^']*+')*+)>"""
_NEXT = re.compile(rf"(?:{_SKIPPED})*+ (?: {_TAG} | < | $ )", re.VERBOSE | re.DOTALL)
_ATTRIBUTE = re.compile(
    r"""\s([a-zA-Z][^\s=/>]*+)(?:\s*+=\s*+(?:"([^"]*+)"|'([^']*+)'|([^\s>"']++)))?+"""
)
# An address in a `srcset` goes on to a space, or to a comma at its end: one of `data:` has commas.
_CANDIDATE = re.compile(r"[\s,]*(\S*[^\s,])(?:\s[^,]*)?(?:,|$)")
_OTHER_PLACE = re.compile(r"[a-z][a-z0-9+.-]*:|//", re.IGNORECASE)


def dangling(
    html_by_url: Mapping[str, str] | Iterable[tuple[str, str]],
    files: Collection[str] | None = None,
    *,
    base: str = "/",
    memo: Memo | None = None,
) -> list[Dangling]:
    """Find the links of a built site that lead nowhere in it.

    Args:
        html_by_url: Every page: path from the site's root -> HTML, or pairs of these, so that not
            all pages are in memory. A path that ends in "/", and the empty one, is a folder's
            `index.html`.
        files: The paths of the other files; None to believe every link to one.
        base: The path at which the site is served, for links that start with "/".
        memo: Knows the links of pages that have not changed.

    Returns:
        The links that name a page, a file or an anchor of this site that is not there, in order of
        pages and of places on them, each once a page. Links to other sites are not looked at.
    """
    pages = html_by_url.items() if isinstance(html_by_url, Mapping) else html_by_url
    read = {_page_path(url): (url, *_read_once(html, memo)) for url, html in pages}
    anchors = {path: ids for path, (_, ids, _) in read.items()}
    others = None if files is None else {_page_path(path) for path in files}
    found: list[Dangling] = []
    for path, (url, _, links) in read.items():
        for link in links:
            reason = _missing(path, link, anchors, others, base)
            if reason:
                found.append(Dangling(url, link, reason))
    return found


def _page_path(url: str) -> str:
    path = url.lstrip("/")
    return path.removesuffix("index.html") if posixpath.basename(path) == "index.html" else path


def _read_once(html: str, memo: Memo | None) -> tuple[frozenset[str], list[str]]:
    """As `_read`, which takes a millisecond a page."""
    if memo is None:
        return _read(html)
    key = memo.key("links", digest(html))
    known = memo.get(key)
    if known is None:
        ids, links = _read(html)
        known = {"ids": sorted(ids), "links": links}
        memo.put(key, known)
    return frozenset(known["ids"]), known["links"]


def _read(html: str) -> tuple[frozenset[str], list[str]]:
    """The anchors and the links of a page."""
    ids: set[str] = set()
    links: dict[str, None] = {}
    place = 0
    while place < len(html) and (match := _NEXT.match(html, place)):
        place = match.end()
        tag = match["tag"]
        if tag:
            _read_tag(tag, match["attributes"], ids, links)
            if tag.lower() in _RAW_TAGS:
                closing = re.compile(rf"</{tag}\b", re.IGNORECASE).search(html, place)
                place = closing.start() if closing else len(html)
    return frozenset(ids), list(links)


def _read_tag(tag: str, attributes: str, ids: set[str], links: dict[str, None]) -> None:
    for name, double, single, bare in _ATTRIBUTE.findall(attributes):
        value = double or single or bare
        if "&" in value:
            value = unescape(value)
        name = name.lower()
        if name == "id" or (name == "name" and tag in ("a", "A")):
            ids.add(value)
        elif name in ("href", "src", "xlink:href"):
            links[value.strip()] = None
        elif name == "srcset":
            links.update(dict.fromkeys(_CANDIDATE.findall(value)))


def _missing(
    page: str,
    link: str,
    anchors: Mapping[str, frozenset[str]],
    files: Collection[str] | None,
    base: str,
) -> Literal["page", "anchor"] | None:
    if _OTHER_PLACE.match(link):
        return None
    place, _, anchor = link.partition("#")
    place = unquote(place.partition("?")[0])
    path = _joined(page, place, base) if place else page
    if path is None:
        return "page"
    if path not in anchors and f"{path}/" in anchors:
        path += "/"
    if path in anchors:
        anchor = unquote(anchor.partition(":~:")[0])
        return "anchor" if anchor not in ("", "top") and anchor not in anchors[path] else None
    is_file = posixpath.splitext(path)[1] not in ("", ".html")
    exists = is_file if files is None else path in files
    return None if exists else "page"


def _joined(page: str, place: str, base: str) -> str | None:
    """The path of a link from the site's root; None if it leads out of the site."""
    if place.startswith("/"):
        if not f"{place}/".startswith(base):
            return None
        path = place[len(base) :]
    else:
        path = posixpath.join(posixpath.dirname(page), place)
    normal = posixpath.normpath(path) if path else "."
    if normal == ".." or normal.startswith("../"):
        return None
    folder = place.endswith(("/", "/.", "/..")) or place in (".", "..")
    normal = "" if normal == "." else f"{normal}/" if folder else normal
    return _page_path(normal)
