r"""TeX as latex2mathml reads it: the formulas of authors, in the words that it understands."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from latex2mathml import commands


class FaultError(Exception):
    """What is wrong with a formula."""


def readable(tex: str) -> str:
    """Put a formula into words that latex2mathml reads.

    Raises:
        FaultError: It is not TeX, or has an environment that is not known here.
    """
    _check(tex)
    # A backslash that ends a line is a space.
    tex = re.sub(r"(?<!\\)((?:\\\\)*)\\\n\s*", r"\1\\ ", tex)
    if r"\begin" not in tex:
        tex = _lines(tex)
    tex = re.sub(r"\\(begin|end)\s*\{([^}]*)\}", _environment, tex)
    tex = re.sub(r"\\\\\s*\[-?[\d.]+\s*[a-z]{2}\]", r"\\\\", tex)  # \\[2pt]
    tex = re.sub(r"\\arg(?![a-zA-Z])", r"\\operatorname{arg}", tex)
    tex = _rewrite(tex, r"\\tag\*?", lambda _, body: rf"\qquad\text{{({body})}}")
    tex = _rewrite(tex, r"\\(?:operatorname\*?|mathop)", _operator)
    tex = _rewrite(tex, r"\\text(?:bf|it|md|normal|rm|sf|tt|up)?", _text)
    return re.sub(rf"(?<=\d)(?=\s*(?:{_UNITS})(?![\]}}]))", "{}", tex)


# latex2mathml would read the "2 in" of "2 in_channels" as a length.
_UNITS = "in|mm|cm|pt|em|ex|pc|bp|dd|cc|sp|mu"


def _check(tex: str) -> None:
    depth = 0
    for _, depth in _braces(tex):
        if depth < 0:
            raise FaultError("a closing brace without an opening one")
    if depth:
        raise FaultError("an opening brace without a closing one")
    for name in re.findall(r"\\begin\s*\{([^}]*)\}", tex):
        if name not in _ENVIRONMENTS and rf"\{name}" not in commands.MATRICES:
            raise FaultError(f"unknown environment {name}")


def _braces(tex: str, start: int = 0) -> Iterator[tuple[int, int]]:
    """The index of each brace from `start` on, and how many are open behind it."""
    depth = 0
    for match in re.compile(r"\\.|[{}]", re.DOTALL).finditer(tex, start):
        if match[0] in "{}":
            depth += 1 if match[0] == "{" else -1
            yield match.start(), depth


# Environments that differ only in where they may stand.
_ENVIRONMENTS = {
    **dict.fromkeys(("align", "aligned", "split"), "align*"),
    **dict.fromkeys(("gather", "gather*", "gathered"), "displaylines"),
    **dict.fromkeys(("equation", "equation*"), ""),
}


def _lines(tex: str) -> str:
    r"""Outside an environment, `\\{` is an escaped `\{` and `\\` a new line of the formula."""
    tex = re.sub(r"\\\\(?=[{}])", r"\\", tex)
    outside = re.sub(r"\{[^{}]*\}", "", tex)
    return rf"\begin{{gather}}{tex}\end{{gather}}" if r"\\" in outside else tex


def _environment(match: re.Match[str]) -> str:
    name = _ENVIRONMENTS.get(match[2], match[2])
    return rf"\{match[1]}{{{name}}}" if name else ""


def _rewrite(tex: str, command: str, write: Callable[[str, str], str]) -> str:
    """Replace each `command{body}`, the inner ones first."""
    pattern = re.compile(rf"(?P<name>{command})(?![a-zA-Z])\s*(?=\{{)")
    for match in reversed(list(pattern.finditer(tex))):
        end = next(at for at, depth in _braces(tex, match.end()) if not depth)
        name = match["name"]
        tex = tex[: match.start()] + write(name, tex[match.end() + 1 : end]) + tex[end + 1 :]
    return tex


def _operator(name: str, body: str) -> str:
    kind = "tex-op" if name == r"\operatorname" else "tex-limits"
    content = body if name == r"\mathop" else rf"\mathrm{{{body}}}"
    return rf"\class{{{kind}}}{{{content}}}"


def _text(name: str, body: str) -> str:
    r"""A `\text` for each size in the body: `\text{\small A\tiny B}` is two."""
    pieces = re.split(rf"(\\(?:{_SIZES})(?![a-zA-Z])\s*)", body)
    out = [_plain(name, pieces[0])] if pieces[0] else []
    for size, piece in zip(pieces[1::2], pieces[2::2], strict=True):
        out.append(f"{{{size.strip()} {_plain(name, piece)}}}")
    return "".join(out)


_SIZES = "Huge|huge|LARGE|Large|large|normalsize|small|footnotesize|scriptsize|tiny"


def _plain(name: str, text: str) -> str:
    text = re.sub(r"(?<!\\)[{}]", "", " ".join(re.split(r"\s+", text)))
    text = re.sub(r"\\([_%&#${ ])", r"\1", text).replace(r"\}", BRACE)
    return rf"{name}{{{text.replace('~', ' ')}}}"


BRACE = "\ue000"  # latex2mathml ends a text at the first closing brace
