r"""TeX math in Markdown becomes MathML while the site is built: `$x$`, `$$x$$`, `\begin{align}`.

pymdownx.arithmatex finds the formulas, latex2mathml translates them. What this file adds is what
a typesetter would do: the TeX is put into words that latex2mathml understands, and its tree is
brought down to MathML Core, which is what browsers draw, with the spacing that TeX gives to
operators, relations and punctuation.
"""

from __future__ import annotations

import html
import logging
import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

from latex2mathml import commands
from latex2mathml.converter import Converter
from latex2mathml.symbols_parser import SYMBOLS_FILE, convert_symbol
from markdown import Markdown
from markdown.util import AtomicString
from pymdownx.arithmatex import (
    RE_BRACKET_BLOCK,
    RE_BRACKET_INLINE,
    RE_DOLLAR_BLOCK,
    RE_SMART_DOLLAR_INLINE,
    RE_TEX_BLOCK,
    ArithmatexExtension,
    BlockArithmatexProcessor,
    InlineArithmatexPattern,
)

from marginalia.errors import MarginaliaError

log = logging.getLogger("mkdocs.plugins.marginalia")

Element = ElementTree.Element


class MathError(MarginaliaError):
    """A formula that cannot be typeset.

    Args:
        tex: The formula.
        reason: What is wrong with it.
    """

    def __init__(self, tex: str, reason: str):
        super().__init__(f"{reason} in the formula: {' '.join(tex.split())}")
        self.tex = tex
        self.reason = reason


@lru_cache(maxsize=16384)
def to_mathml(tex: str, *, display: bool) -> str:
    """Typeset a formula.

    Args:
        tex: The formula, without the dollars around it.
        display: Whether it stands on a line of its own.

    Returns:
        A `<math>` element for HTML; its `alttext` is the TeX.

    Raises:
        MathError: The formula is not TeX, or uses a command that is not known here.
    """
    return _typeset(tex, display).html


@dataclass(frozen=True, slots=True)
class _Formula:
    html: str
    width: float  # about how wide it is, in em


@lru_cache(maxsize=16384)
def _typeset(tex: str, display: bool) -> _Formula:
    _check_braces(tex)
    prepared = _prepare(tex)
    try:
        tree = Converter(display="block" if display else "inline").convert_to_element(prepared)
    except Exception as error:  # latex2mathml also raises what its own mistakes raise
        raise MathError(tex, _reason(error)) from error
    try:
        _Mender(display).mend(tree)
    except _Leftover as error:
        raise MathError(tex, str(error)) from error
    tree.attrib = {"display": "block" if display else "inline", "alttext": " ".join(tex.split())}
    text = ElementTree.tostring(tree, encoding="unicode")
    return _Formula(text, _width(tree))


def _reason(error: Exception) -> str:
    words = re.findall("[A-Z][a-z]*", type(error).__name__.removesuffix("Error"))
    if type(error).__module__ == "latex2mathml.exceptions":
        return " ".join(words).lower()
    return "a command without its argument"


def _check_braces(tex: str) -> None:
    depth = 0
    for mark in re.findall(r"\\.|[{}]", tex, re.DOTALL):
        depth += {"{": 1, "}": -1}.get(mark, 0)
        if depth < 0:
            raise MathError(tex, "a closing brace without an opening one")
    if depth:
        raise MathError(tex, "an opening brace without a closing one")
    for name in re.findall(r"\\begin\s*\{([^}]*)\}", tex):
        if name not in _ENVIRONMENTS and rf"\{name}" not in commands.MATRICES:
            raise MathError(tex, f"unknown environment {name}")


# TeX that latex2mathml does not read, in words that it does

# Environments that differ only in where they may stand.
_ENVIRONMENTS = {
    "align": "align*",
    "aligned": "align*",
    "alignat": "align*",
    "alignedat": "align*",
    "eqnarray": "align*",
    "eqnarray*": "align*",
    "flalign": "align*",
    "flalign*": "align*",
    "split": "align*",
    "equation": "",
    "equation*": "",
    "gather": "displaylines",
    "gather*": "displaylines",
    "gathered": "displaylines",
    "multline": "displaylines",
    "multline*": "displaylines",
    "dcases": "cases",
}


def _prepare(tex: str) -> str:
    tex = _restore_escapes(tex)
    tex = re.sub(r"(?<!\\)%.*", "", tex)
    tex = re.sub(r"\\(begin|end)\s*\{([^}]*)\}", _environment, tex)
    tex = re.sub(r"\\begin\{align\*\}\s*\{\d+\}", r"\\begin{align*}", tex)
    tex = re.sub(r"\\\\\s*\[-?[\d.]+\s*[a-z]{2}\]", r"\\\\", tex)
    tex = re.sub(r"\\(?:nonumber|notag)\b|\\label\s*\{[^}]*\}", "", tex)
    tex = re.sub(r"\\(?:math)?colon(?:eq(?:q)?|equals)\b", r"\\coloneqq ", tex)
    tex = _rewrite(tex, r"\\tag\*?", lambda _, body: rf"\qquad\text{{({body})}}")
    tex = _rewrite(tex, r"\\(?:operatorname\*?|operatornamewithlimits|mathop)", _operator)
    tex = _rewrite(tex, r"\\(?:text(?:bf|it|md|normal|rm|sf|tt|up)?|mbox|emph)", _text)
    return re.sub(rf"(?<=\d)(?=\s*(?:{_UNITS})(?![\]}}]))", "{}", tex)


# latex2mathml would read the "2 in" of "2 in_channels" as a length.
_UNITS = "in|mm|cm|pt|em|ex|pc|bp|dd|cc|sp|mu"


def _environment(match: re.Match[str]) -> str:
    name = _ENVIRONMENTS.get(match[2], match[2])
    return rf"\{match[1]}{{{name}}}" if name else ""


def _restore_escapes(tex: str) -> str:
    r"""Undo what Python did to TeX in a docstring that is not raw: `\beta` is a backspace there."""
    for character, letter in _CONTROL.items():
        tex = tex.replace(character, letter)
    return _EATEN.sub(lambda m: ("\\t" if m["t"] else "\\r" if m["r"] else "\\n") + m[0].lstrip(), tex)


_CONTROL = {"\a": r"\a", "\b": r"\b", "\v": r"\v", "\f": r"\f"}
_EATEN = re.compile(
    r"(?:^|\s+)(?:(?P<t>ext(?:bf|it|rm|color)?(?=\{)|heta\b|imes\b|ilde\b|anh\b|(?<=\s\s)au\b)"
    r"|(?P<r>ightarrow\b|Vert\b|vert\b)|(?P<n>abla\b))"
)


def _rewrite(tex: str, command: str, write: Callable[[str, str], str]) -> str:
    """Replace each `command{body}`, the inner ones first."""
    pattern = re.compile(rf"(?P<name>{command})(?![a-zA-Z])\s*(?=\{{)")
    for match in reversed(list(pattern.finditer(tex))):
        end = _closing(tex, match.end())
        name = match["name"]
        tex = tex[: match.start()] + write(name, tex[match.end() + 1 : end]) + tex[end + 1 :]
    return tex


def _closing(tex: str, at: int) -> int:
    """The index of the brace that closes the one at `at`; braces are known to match."""
    depth = 0
    for match in re.compile(r"\\.|[{}]", re.DOTALL).finditer(tex, at):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth == 0:
            return match.start()
    raise MathError(tex, "an opening brace without a closing one")


def _operator(name: str, body: str) -> str:
    kind = "tex-op" if name == r"\operatorname" else "tex-limits"
    return rf"\class{{{kind}}}{{{body if name == r'\mathop' else rf'\mathrm{{{body}}}'}}}"


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
    text = re.sub(r"\\([_%&#${ ])", r"\1", text).replace(r"\}", _BRACE)
    return rf"{name}{{{text.replace('~', ' ')}}}"


_BRACE = "\ue000"  # latex2mathml ends a text at the first closing brace

# From latex2mathml's tree to MathML Core, spaced as TeX does

Style = Literal["display", "text", "script"]
Atom = Literal["ord", "op", "bin", "rel", "open", "close", "punct", "inner"]

_CLASSES: dict[str, Atom] = {
    "B": "bin", "V": "bin", "R": "rel", "O": "open", "C": "close", "P": "punct", "L": "op",
}  # fmt: skip
# Where TeX differs from Unicode's classes.
_ATOMS: dict[str, Atom] = {
    **dict.fromkeys("/|‖\\!?.′″‴⁗%&#@$∂∀∃∇¬∞∅√", "ord"),
    **dict.fromkeys("…⋯⋱", "inner"),
    **dict.fromkeys(":∣∥≔≜", "rel"),
    **dict.fromkeys("∗*+−-", "bin"),
    **dict.fromkeys(",;", "punct"),
    **dict.fromkeys("([{⟨⌈⌊", "open"),
    **dict.fromkeys(")]}⟩⌉⌋", "close"),
}
_STAYS_OPERATOR = frozenset("/|‖\\!?.…⋯⋱⋮%")

# The space between two atoms, in 18ths of an em; in brackets where scripts have none.
# Rows and columns in the order of _ORDER.
_ORDER: tuple[Atom, ...] = ("ord", "op", "bin", "rel", "open", "close", "punct", "inner")
_SPACES = {
    row.split()[0]: dict(zip(_ORDER, row.split()[1:], strict=True))
    for row in (
        "ord    0   3  (4) (5)  0   0   0  (3)",
        "op     3   3   0  (5)  0   0   0  (3)",
        "bin   (4) (4)  0   0  (4)  0   0  (4)",
        "rel   (5) (5)  0   0  (5)  0   0  (5)",
        "open   0   0   0   0   0   0   0   0",
        "close  0   3  (4) (5)  0   0   0  (3)",
        "punct (3) (3)  0  (3) (3) (3) (3) (3)",
        "inner (3)  3  (4) (5) (3)  0  (3) (3)",
    )
}
# What browsers do without being told (MathML Core's operator dictionary).
_DEFAULTS = {
    **dict.fromkeys("=<>≤≥≠≈∼∈→←", (5, 5)),
    **dict.fromkeys("+−", (4, 4)),
    **dict.fromkeys("()[]{}", (0, 0)),
    ",": (0, 3),
}

_ROWS = frozenset(("math", "mrow", "mtd", "mstyle", "msqrt", "mpadded", "mphantom"))
_SCRIPTS = frozenset(("msub", "msup", "msubsup", "munder", "mover", "munderover"))
_ARITY = {
    "mfrac": 2, "mroot": 2, "msub": 2, "msup": 2, "munder": 2, "mover": 2,
    "msubsup": 3, "munderover": 3,
}  # fmt: skip
_UNDER = {"msub": "munder", "msup": "mover", "msubsup": "munderover"}
_BESIDE = {under: beside for beside, under in _UNDER.items()}

_FUNCTIONS = frozenset(name[1:] for name in commands.FUNCTIONS)
_LIMIT_FUNCTIONS = frozenset(name[1:] for name in commands.LIMIT)
_INTEGRALS = frozenset("∫∬∭∮∯∰")

# The character that stretches or sits well as an accent in OpenType math fonts.
_ACCENTS = {
    "^": "\u02c6", "~": "\u02dc", "\u2015": "\u00af", "`": "\u0060",
}  # fmt: skip
_WIDE = frozenset("\u2015→←↔⎴⎵⏜⏝⏞⏟")
_BRACES_OVER = frozenset("⎴⎵⏜⏝⏞⏟")

_NAMED_SPACES = {
    "negativethinmathspace": "-0.1667em",
    "negativemediummathspace": "-0.2222em",
    "negativethickmathspace": "-0.2778em",
    "thinmathspace": "0.1667em",
    "thickmathspace": "0.2778em",
}
_BIG = {"1.2em": "1.2em", "1.623em": "1.8em", "2.047em": "2.4em", "2.470em": "3em"}

_STRIKES = {
    "box": "border:1px solid;padding:.2em .3em",
    "updiagonalstrike": _strike if False else "",
}
