"""Source text to HTML, line by line: one Pygments pass a file, so that every row is a cut of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape

from pygments.lexers.python import PythonLexer
from pygments.token import STANDARD_TYPES, Token, _TokenType

from marginalia.links import Link

_PLAIN = (Token.Text, Token.Text.Whitespace, Token.Name, Token.Punctuation)


def highlighted(text: str, links: Iterable[Link], href: Callable[[Link], str]) -> list[str]:
    """The HTML of each line of a source, without line ends.

    Args:
        text: The whole source.
        links: Names that lead to their definition.
        href: The address of a link, seen from the page.

    Returns:
        One string a line; line `n` of the file is item `n - 1`.
    """
    by_line: Mapping[int, list[Link]] = defaultdict(list)
    for link in links:
        by_line[link.line].append(link)
    return [
        "".join(_line(tokens, by_line.get(number, ()), href))
        for number, tokens in enumerate(_tokens(text), 1)
    ]


def _tokens(text: str) -> list[list[tuple[_TokenType, str]]]:
    """The tokens of each line; one that spans lines is cut at their ends."""
    normal = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    lines: list[list[tuple[_TokenType, str]]] = [[]]
    lexer = PythonLexer(stripnl=False, ensurenl=False)
    for kind, value in lexer.get_tokens(normal):
        first, *others = value.split("\n")
        lines[-1].append((kind, first))
        lines += [[(kind, other)] for other in others]
    return lines


def _line(
    tokens: Iterable[tuple[_TokenType, str]], links: Sequence[Link], href: Callable[[Link], str]
) -> Iterable[str]:
    starts = {link.column: link for link in links}
    column = 0
    for kind, value in tokens:
        if not value:
            continue
        link = starts.get(column)
        if link and link.end_column == column + len(value):
            yield _linked(kind, value, link, href(link))
        else:
            yield _span(kind, value)
        column += len(value)


def _linked(kind: _TokenType, value: str, link: Link, address: str) -> str:
    outside = ' rel="noopener"' if link.kind == "external" else ""
    return (
        f'<a class="mg-link mg-link-{link.kind}" href="{escape(address)}" '
        f'title="{escape(link.title)}"{outside}>{_span(kind, value)}</a>'
    )


def _span(kind: _TokenType, value: str) -> str:
    if kind in _PLAIN:
        return escape(value, quote=False)
    name = [STANDARD_TYPES[part] for part in kind.split() if part in STANDARD_TYPES][-1]
    return f'<span class="{name}">{escape(value, quote=False)}</span>' if name else escape(value)
