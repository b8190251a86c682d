"""Formulas typeset: latex2mathml's tree is brought down to MathML Core, spaced as TeX does.

MathML Core is what browsers draw. What is added here is what a typesetter would do: the space that
TeX gives to operators, relations and punctuation, limits where the style has them, and characters
in place of alphabets.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import zip_longest
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree

from latex2mathml import commands
from latex2mathml.converter import Converter
from latex2mathml.symbols_parser import SYMBOLS_FILE, convert_symbol

from marginalia.errors import MarginaliaError
from marginalia.tex import BRACE, FaultError, readable

Element = ElementTree.Element


class MathError(MarginaliaError):
    """A formula that cannot be typeset.

    Args:
        tex: The formula.
        reason: What is wrong with it.
    """

    def __init__(self, tex: str, reason: str) -> None:
        super().__init__(f"{reason} in the formula: {' '.join(tex.split())}")
        self.tex = tex
        self.reason = reason


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
    return typeset(tex, display=display).html


@dataclass(frozen=True, slots=True)
class Formula:
    """A formula that is typeset."""

    html: str
    width: float  # about how wide it is, in em


@lru_cache(maxsize=16384)
def typeset(tex: str, *, display: bool) -> Formula:
    """Typeset a formula, as `to_mathml` does; also says how wide it is."""
    block = "block" if display else "inline"
    try:
        tree = Converter(display=block).convert_to_element(readable(tex))
        _mend(tree, "display" if display else "text")
    except FaultError as error:
        raise MathError(tex, str(error)) from error
    except Exception as error:  # latex2mathml also raises what its own mistakes raise
        raise MathError(tex, _reason(error)) from error
    tree.attrib = {"display": block, "alttext": " ".join(tex.split())}
    return Formula(ElementTree.tostring(tree, encoding="unicode"), _width(tree))


def _reason(error: Exception) -> str:
    words = re.findall("[A-Z][a-z]*", type(error).__name__.removesuffix("Error"))
    if type(error).__module__ == "latex2mathml.exceptions":
        return " ".join(words).lower()
    return "a command without its argument"


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
_GROWING = frozenset("|‖↑↓↕⇑⇓⇕")  # the other characters that stretch if nobody says no
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
    ",": (0, 3),
}
_BRACKETS = frozenset("()[]{}⟨⟩⌈⌉⌊⌋")  # no space, wherever they stand

_NAMED_SPACES = {
    "negativethinmathspace": "-0.1667em",
    "negativemediummathspace": "-0.2222em",
    "negativethickmathspace": "-0.2778em",
    "thinmathspace": "0.1667em",
    "thickmathspace": "0.2778em",
}
# The sizes of \big and its like as plain TeX has them.
_BIG = {"1.623em": "1.8em", "2.047em": "2.4em", "2.470em": "3em"}

# Elements whose children stand in a row, and those whose first child is a base.
_ROWS = frozenset(("math", "mrow", "mtd", "mstyle", "msqrt", "mpadded", "mphantom"))
_SCRIPTS = frozenset(("msub", "msup", "msubsup", "munder", "mover", "munderover"))
_ARITY = {
    **dict.fromkeys(("mfrac", "mroot", "msub", "msup", "munder", "mover"), 2),
    **dict.fromkeys(("msubsup", "munderover"), 3),
}
_LIMITS = {"msub": "munder", "msup": "mover", "msubsup": "munderover"}

_FUNCTIONS = frozenset(name[1:] for name in commands.FUNCTIONS)
_INTEGRALS = frozenset("∫∬∭∮∯∰")

# What latex2mathml leaves on an element for us, and we for ourselves; none of it goes out.
_ATOM = "tex-atom"
_HAS_LIMITS = "tex-limits"
_WORD = "tex-word"
_OURS = (_ATOM, _HAS_LIMITS, _WORD, "fence", "form", "class")


def _mend(math: Element, style: Style) -> None:
    _clean(math)
    _lay_out(math, style)
    _unwrap(math)
    for element in math.iter():
        for name in _OURS:
            element.attrib.pop(name, None)


def _clean(element: Element) -> None:
    """Make MathML Core of an element and of what is in it."""
    if _is_foreign(element):
        raise FaultError("a command that is not typeset here")
    _bracket_tables(element)
    if element.tag in ("mover", "munder") and len(element) == 2:
        _accent(element)
    if len(element) != _ARITY.get(element.tag, len(element)):
        raise FaultError("a command without its argument")
    if len(element):
        for child in element:
            _clean(child)
    elif element.tag in ("mi", "mo", "mn", "mtext"):
        _clean_leaf(element)
    if element.tag in _CLEANERS:
        _CLEANERS[element.tag](element)
    if element.tag in _ROWS:
        _join_words(element)


def _is_foreign(element: Element) -> bool:
    r"""latex2mathml knows more than is drawn here: `\mathrel`, `\xrightarrow`, `\cancel`."""
    return (
        (element.tag in ("mi", "mo") and len(element) > 0)
        or element.get("width", "").startswith("+")
        or element.get("notation", "box") != "box"
    )


def _bracket_tables(row: Element) -> None:
    """Group a matrix with its brackets, which grow with it and with nothing else."""
    for at, table in reversed(list(enumerate(row))):
        around = [row[at - 1], row[at + 1]] if 0 < at < len(row) - 1 else []
        if table.tag == "mtable" and around and all(map(_is_bracket, around)):
            group = Element("mrow")
            group.extend((around[0], table, around[1]))
            for bracket in around:
                bracket.attrib |= {"stretchy": "true", "fence": "true"}
            row[at - 1 : at + 2] = [group]


def _is_bracket(element: Element) -> bool:
    """Whether latex2mathml put this beside a matrix; the brackets of a formula do not stretch."""
    return element.tag == "mo" and "stretchy" not in element.attrib and bool(element.text)


def _clean_leaf(leaf: Element) -> None:
    raw = leaf.text or ""
    text = _character(html.unescape(raw)).replace(BRACE, "}")
    if re.search(r"\\[a-zA-Z]|^\\.", text):
        raise FaultError(f"unknown command {text.strip()}")
    # A lone `\mathrm{d}` comes as a character reference, everything else in ASCII as it is.
    upright = raw.startswith("&#x") and text.isascii() and text.isalpha()
    variant = "normal" if upright else leaf.attrib.pop("mathvariant", "")
    if variant == "normal" and leaf.tag == "mi":
        leaf.set(_WORD, variant)
        if len(text) == 1:
            leaf.set("mathvariant", variant)
    elif variant:
        leaf.set(_WORD, variant)
        text = "".join(_styled(c, variant) for c in text)
    leaf.text = text


def _character(text: str) -> str:
    r"""The delimiter that a `\big` was given as a command."""
    symbol = convert_symbol(text) if text.startswith("\\") else None
    return chr(int(symbol, 16)) if symbol else text


@cache
def _styled(character: str, variant: str) -> str:
    r"""The letter of an alphabet: browsers know no `mathvariant` but upright."""
    words = unicodedata.name(character, "").split()
    if not words or (not character.isalnum() and character not in "∇∂"):
        return character
    name = " ".join(w for w in words if w not in ("LATIN", "GREEK", "LETTER"))
    style = _ALPHABETS.get(variant, "")
    for prefix in (f"MATHEMATICAL {style} ", f"{style.replace('FRAKTUR', 'BLACK-LETTER')} "):
        try:
            return unicodedata.lookup(prefix + name)
        except KeyError:
            continue
    return character


_ALPHABETS = {
    "bold": "BOLD",
    "italic": "ITALIC",
    "bold-italic": "BOLD ITALIC",
    "double-struck": "DOUBLE-STRUCK",
    "script": "SCRIPT",
    "fraktur": "FRAKTUR",
    "sans-serif": "SANS-SERIF",
    "sans-serif-italic": "SANS-SERIF ITALIC",
    "monospace": "MONOSPACE",
}


def _clean_identifier(mi: Element) -> None:
    """An `mi`: a letter, a function, or an operator that latex2mathml took for a letter."""
    text = _BETTER.get(mi.text or "", mi.text or "")
    if text in _FUNCTIONS:
        mi.set(_ATOM, "op")
    elif text and not text.strip("′″‴⁗"):
        _clean_prime(mi, text)
    elif len(text) == 1:
        if _atom_of(text) != "ord" or text in _STAYS_OPERATOR:
            mi.tag = "mo"
            mi.attrib.pop("mathvariant", None)
            _clean_operator(mi)
        elif text == "∇" or unicodedata.name(text, "").startswith("GREEK CAPITAL"):
            mi.set("mathvariant", "normal")


def _clean_prime(mi: Element, text: str) -> None:
    """The font's prime is small and raised already, and so a superscript twice over."""
    mi.tag, mi.text, mi.attrib = "mpadded", None, {"voffset": "-.5em"}
    ElementTree.SubElement(mi, "mo", {"mathsize": "140%"}).text = text


def _clean_operator(mo: Element) -> None:
    mo.text = text = _BETTER.get(mo.text or "", mo.text or "")
    if (len(text) > 1 and text.replace(" ", "").isalpha()) or re.fullmatch(r"\w+\s\w+", text):
        mo.tag = "mi"  # \max, \argmin
        mo.attrib.pop("movablelimits", None)
        mo.set(_ATOM, "op")
        mo.set(_HAS_LIMITS, "")
        return
    atom = _atom_of(text)
    if atom == "ord" and text not in _STAYS_OPERATOR:
        mo.tag = "mi"
        if text == "∇":
            mo.set("mathvariant", "normal")
    elif atom == "op":
        if text not in _INTEGRALS:
            mo.set(_HAS_LIMITS, "")
    elif "minsize" in mo.attrib:
        size = _BIG.get(mo.attrib["minsize"], mo.attrib["minsize"])
        mo.attrib |= {"minsize": size, "maxsize": size, "stretchy": "true"}
    elif mo.get("fence") != "true" and (atom in ("open", "close") or text in _GROWING):
        mo.set("stretchy", "false")


# What math fonts draw at the right size and height.
_BETTER = {"*": "∗", "~": "∼"}


@cache
def _unicode_classes() -> dict[str, Atom]:
    """The class that Unicode's math report gives to each symbol, from latex2mathml's table."""
    classes: dict[str, Atom] = {}
    for line in Path(SYMBOLS_FILE).read_text(encoding="utf-8").splitlines():
        fields = line.split("^")
        if not line.startswith("#") and len(fields) > 4 and fields[4] in _CLASSES:
            classes.setdefault(chr(int(fields[0], 16)), _CLASSES[fields[4]])
    return classes


def _atom_of(character: str) -> Atom:
    return _ATOMS.get(character) or _unicode_classes().get(character, "ord")


def _accent(element: Element) -> None:
    """An accent or a brace: which character, and whether it grows with its base."""
    mark = element[1]
    text = html.unescape(mark.text or "")
    if mark.tag != "mo" or len(mark) or text not in _MARKS:
        return
    plain = "stretchy" not in mark.attrib and "accent" not in element.attrib
    wide = plain and text in _WIDE
    mark.text = (_WIDE if wide else _NARROW).get(text, text)
    mark.attrib = {"stretchy": "true" if wide else "false"}
    mark.tag = "accent"  # so that nothing takes it for an operator of the row
    element.set(_ATOM, "ord")
    if text not in _SMALL:
        element.set("accent" if element.tag == "mover" else "accentunder", "true")


# What the font has for an accent that stays as it is, and for one that grows with its base.
_NARROW = {"^": "ˆ", "~": "˜"}
_WIDE = {"^": "\u0302", "―": "\u203e", **{mark: mark for mark in "→←↔⎴⎵⏜⏝⏞⏟"}}
_SMALL = frozenset("→←↔⎴⎵⏜⏝⏞⏟")  # these are set in the size of scripts
_MARKS = frozenset(html.unescape(text) for text, _ in commands.DIACRITICS.values())


def _clean_space(space: Element) -> None:
    space.attrib = {"width": _NAMED_SPACES.get(space.get("width", ""), space.get("width", "0"))}


def _clean_style(style: Element) -> None:
    color = style.attrib.pop("mathcolor", "")
    if color:
        ink = f"var(--mg-tex-{color},{color})" if color.isalpha() else color
        style.set("style", f"color:{ink}")


def _clean_enclosure(enclosure: Element) -> None:
    enclosure.tag, enclosure.attrib = "mrow", {"style": "border:1px solid;padding:.2em .3em"}


def _clean_table(table: Element) -> None:
    """Alignment and rules by style: browsers know no `columnalign` and no `rowlines`."""
    pairs = table.attrib.pop("displaystyle", "") == "true"
    columns, rows = (table.get(name, "").split() for name in ("columnlines", "rowlines"))
    table.attrib = {"displaystyle": "true"} if pairs else {}
    for at, row in enumerate(table):
        for column, cell in enumerate(row):
            side = cell.attrib.pop("columnalign", "")
            css = [_SIDES[side]] if side in _SIDES else []
            if pairs and side:
                css.append(f"padding-{side}:0")
                css += ["padding-left:2em"] if side == "right" and column else []
            css += ["border-right:1px solid"] if columns[column : column + 1] == ["solid"] else []
            css += ["border-bottom:1px solid"] if rows[at : at + 1] == ["solid"] else []
            if css:
                cell.set("style", ";".join(css))
            _open_cell(cell, side)


def _open_cell(cell: Element, side: str) -> None:
    """Say that a relation at the start of a cell of `align` has something before it."""
    if side == "left" and len(cell) and cell[0].tag == "mi" and not cell[0].text:
        cell.remove(cell[0])
        cell.set(_ATOM, "ord")


# Chromium moves a formula within its cell only by its own word for it.
_SIDES = {"left": "text-align:left", "right": "text-align:-webkit-right"}

_CLEANERS: dict[str, Callable[[Element], None]] = {
    "mi": _clean_identifier,
    "mo": _clean_operator,
    "mspace": _clean_space,
    "mstyle": _clean_style,
    "menclose": _clean_enclosure,
    "mtable": _clean_table,
}


def _join_words(row: Element) -> None:
    r"""The letters of a `\mathrm{word}` are one identifier."""
    previous: Element | None = None
    for child in list(row):
        word = child.get(_WORD)
        if previous is not None and word and child.tag == "mi" and previous.get(_WORD) == word:
            previous.text = (previous.text or "") + (child.text or "")
            previous.attrib.pop("mathvariant", None)  # more than one letter is upright anyway
            row.remove(child)
        else:
            previous = child if child.tag == "mi" and word else None


def _lay_out(element: Element, style: Style) -> None:
    """Put limits where the style has them, and space between the atoms of each row."""
    kind = element.get("class", "")
    if kind in ("tex-op", "tex-limits"):
        element.set(_ATOM, "op")
        if kind == "tex-limits":
            element.set(_HAS_LIMITS, "")
    for index, child in enumerate(element):
        _lay_out(child, _style_inside(element, index, style))
    if element.tag in _SCRIPTS:
        _place_limits(element, style)
    if element.tag in _ROWS and element.tag != "mstyle":
        _space(element, style)


def _style_inside(element: Element, index: int, style: Style) -> Style:
    if element.tag == "mfrac":
        return "text" if style == "display" else "script"
    if element.tag in _SCRIPTS or element.tag == "mroot":
        return "script" if index else style
    if "displaystyle" in element.attrib:
        return "display" if element.get("displaystyle") == "true" else "text"
    return "text" if element.tag == "mtable" and style == "display" else style


def _place_limits(element: Element, style: Style) -> None:
    base = element[0]
    while base.tag == "mstyle" and len(base) == 1:
        base = base[0]
    if _HAS_LIMITS not in base.attrib:
        return
    if style == "display":
        element.tag = _LIMITS.get(element.tag, element.tag)
    elif base.tag == "mo" and element.tag not in _LIMITS:
        base.set("movablelimits", "false")  # the author asked for limits


@dataclass(slots=True)
class _Item:
    """An atom of a row.

    Attributes:
        element: What it is.
        row: What it stands in: the row, or a colour within the row.
        left: How it looks to the atom before it.
        right: How it looks to the atom after it.
    """

    element: Element
    row: Element
    left: Atom
    right: Atom


def _items(row: Element) -> Iterator[_Item]:
    for child in row:
        if child.tag == "mstyle":
            yield from _items(child)
        elif child.tag != "mspace":
            yield _Item(child, row, *_sides(child))


def _sides(element: Element) -> tuple[Atom, Atom]:
    atom = element.get(_ATOM)
    if atom:
        return atom, atom  # type: ignore[return-value]
    if element.tag == "mo":
        atom = _atom_of(element.text or "")
        return atom, atom
    if element.tag in _SCRIPTS:
        return _sides(element[0])
    if element.tag == "mrow" and len(element) and element[0].get("fence") == "true":
        return "open", "close"
    return "ord", "ord"


def _space(row: Element, style: Style) -> None:
    items = list(_items(row))
    before: Atom | None = "ord" if row.get(_ATOM) and row.tag == "mtd" else None
    _settle_signs(items, before)
    spaces: dict[Element, list[int]] = {
        core: [0, 0] for item in items if (core := _core(item.element)) is not None
    }
    for index, item in enumerate(items):
        width = _distance(before, item.left, style)
        last = _core(items[index - 1].element) if index else None
        core = _core(item.element)
        if last is not None and (before in ("bin", "rel", "punct", "op") or core is None):
            spaces[last][1] = width
        elif core is not None:
            spaces[core][0] = width
        elif width:
            at = list(item.row).index(item.element)
            item.row.insert(at, Element("mspace", width=_em(width)))
        before = item.right
    edges = {id(edge) for item in items for edge in (item.row[0], item.row[-1])}
    for core, (left, right) in spaces.items():
        usual = _DEFAULTS.get(core.text or "") if id(core) not in edges else None
        if (left, right) != usual and not (core.text in _BRACKETS and left == right == 0):
            core.attrib |= {"lspace": _em(left), "rspace": _em(right)}


def _settle_signs(items: list[_Item], before: Atom | None) -> None:
    """A binary operator without two sides is a sign."""
    previous: _Item | None = None
    for item in items:
        last = previous.right if previous else before
        if item.left == "bin" and last in (None, "op", "bin", "rel", "open", "punct"):
            item.left = item.right = "ord"
        elif previous and last == "bin" and item.left in ("rel", "close", "punct"):
            previous.left = previous.right = "ord"
        previous = item
    if previous and previous.right == "bin":
        previous.left = previous.right = "ord"


def _distance(left: Atom | None, right: Atom, style: Style) -> int:
    if left is None:
        return 0
    space = _SPACES[left][right]
    if space.startswith("("):
        return 0 if style == "script" else int(space[1:-1])
    return int(space)


def _core(element: Element) -> Element | None:
    """The operator whose space is that of the whole element."""
    if element.tag == "mo":
        return element
    if element.tag in _SCRIPTS and _ATOM not in element.attrib:
        return _core(element[0])
    return None


def _em(width: int) -> str:
    return f"{width / 18:.4f}".rstrip("0").rstrip(".").lstrip("0") + "em" if width else "0"


def _unwrap(element: Element) -> None:
    """Take out the rows that group nothing."""
    for index, child in reversed(list(enumerate(element))):
        _unwrap(child)
        if child.tag == "accent":
            child.tag = "mo"
        if child.tag != "mrow" or "style" in child.attrib:
            continue
        if element.tag in _ROWS and not any(c.get("fence") == "true" for c in child):
            element[index : index + 1] = list(child)
        elif len(child) == 1:
            element[index] = child[0]


def _width(element: Element) -> float:
    """About how wide a tree is, in em."""
    inside = [_width(child) for child in element]
    if element.tag == "mfrac":
        return max(inside)
    if element.tag in ("msub", "msup", "msubsup"):
        return inside[0] + 0.65 * max(inside[1:])
    if element.tag in ("munder", "mover", "munderover"):
        return max(inside[0], *(0.7 * width for width in inside[1:]))
    if element.tag == "mtable":
        columns = [[_width(c) for c in column if c is not None] for column in zip_longest(*element)]
        return sum(max(column) + 0.8 for column in columns)
    root = 0.9 if element.tag in ("msqrt", "mroot") else 0
    return root + sum(inside) + _leaf_width(element)


def _leaf_width(leaf: Element) -> float:
    spaces = [leaf.get(name, "0").removesuffix("em") for name in ("width", "lspace", "rspace")]
    own = sum(float(space) for space in spaces if re.fullmatch(r"-?[\d.]+", space))
    if leaf.tag == "mo" and "lspace" not in leaf.attrib:
        own += sum(_DEFAULTS.get(leaf.text or "", (0, 0))) / 18
    return own + (0.4 if leaf.text in _SLIM else 0.6 * len(leaf.text or ""))


_SLIM = _BRACKETS | frozenset("|.,;:′″!ijltfr")
