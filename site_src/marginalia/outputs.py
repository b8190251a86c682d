"""What a run showed, as HTML: printed text, values, figures, claims, shapes, a traceback."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from html import escape

from ansi2html import Ansi2HTMLConverter
from markdown import Markdown

from marginalia.demo import Claim, Failure, Output, Shape
from marginalia.errors import MarginaliaError
from marginalia.typeset import to_mathml

# The richest form that a page can show comes first.
_RICHEST = (
    "text/html",
    "image/svg+xml",
    "image/png",
    "image/jpeg",
    "text/latex",
    "text/markdown",
    "text/plain",
)
_POINT = 4 / 3  # CSS pixels
_MARKDOWN = ("tables", "fenced_code", "sane_lists", "marginalia.mathml")

# What is larger than anybody writes is shown as it is: to typeset it could take hours.
_LONGEST = 20_000  # characters of Markdown or TeX
_MOST_STARTS = 200
# Python-Markdown looks for the end of each of these (links, tags, formulas, headings) on its own.
_STARTS = re.compile(r"[\[<]|\\[(b]|^ *=", re.MULTILINE)

# Colours and what else ansi2html knows of a terminal; all other control sequences show nothing.
_ESCAPE = re.compile(
    r"(\x1b(?:\[[\d;:]*[A-Za-z]|\([0B]))"
    r"|\x1b(?:[]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)|\[[0-?]*[ -/]*[@-~]|[ -/]*[0-OQ-WYZ\\`-~])?"
)

SaveFile = Callable[[str, bytes], str]
LetteredShape = tuple[Shape, tuple[str, ...]]


def output_html(output: Output, save: SaveFile) -> str:
    """One output, to stand under the statement that made it.

    Args:
        output: What came out.
        save: Keeps a file beside the page: name and content to an address.
    """
    if output.kind == "figure":
        return _figure(output, save)
    if output.kind == "warning":
        return _warning(output)
    if output.kind == "value":
        return _value(output)
    text = output.data.get("text/plain", "").rstrip("\n")
    return f'<pre class="mg-out mg-{output.kind}">{_ansi(text)}</pre>'


def claim_html(claim: Claim) -> str:
    """One checked condition: both sides, and where the paper says so."""
    mark = ("✓", "verified") if claim.ok else ("✗", "failed")
    cited = f' <span class="mg-source">{escape(claim.source)}</span>' if claim.source else ""
    state = "ok" if claim.ok else "bad"
    return (
        f'<div class="mg-claim mg-{state}"><span class="mg-mark"><span aria-hidden="true">'
        f"{mark[0]}</span> {mark[1]}</span> {values(claim)}{cited}</div>"
    )


def values(claim: Claim) -> str:
    """Both sides of a claim as they were measured, in HTML; once, if they read the same."""
    operator = escape(_OPERATORS.get(claim.operator, claim.operator))
    left, right = (f"<code>{escape(side)}</code>" for side in (claim.left, claim.right))
    if not claim.right:
        sides = f"{operator} {left}".strip()
    elif claim.operator == "≈" and claim.left == claim.right:
        sides = f"both {left}"
    else:
        sides = f"{left} {operator} {right}"
    times = f"checked {claim.times:,} times" if claim.times > 1 else ""
    asides = [
        f'<span class="mg-aside">{escape(part)}</span>' for part in (claim.note, times) if part
    ]
    return ", ".join([f'<span class="mg-values">{sides}</span>', *asides])


_OPERATORS = {"==": "=", "!=": "≠", "<=": "≤", ">=": "≥"}


def shapes_html(entries: Sequence[LetteredShape]) -> str:
    """The inlay after a line: each name it bound, with all shapes that it had.

    Args:
        entries: Shapes with the letters of their axes, `()` where none is known.
    """
    by_name: dict[str, list[LetteredShape]] = {}
    for entry in entries:
        by_name.setdefault(entry[0].name, []).append(entry)
    return "".join(_inlay(name, found) for name, found in by_name.items())


def _inlay(name: str, entries: Sequence[LetteredShape]) -> str:
    part = name.removeprefix("return")
    shown, said = name.removeprefix("self."), name
    if name.startswith("return"):
        shown, said = f"→{part}", f"returns{part}"
    axes = [_axes(*entry) + _nan(entry[0]) for entry in entries]
    first = axes[:1] if len(axes[0]) > _ROOM else axes[:_SHOWN]
    rest = axes[len(first) :]
    hidden = "".join(f'<span class="mg-more"> | {one}</span>' for one in rest)
    count = f'<span class="mg-count"> +{len(rest)}</span>' if rest else ""
    details = "\n".join(_details(*entry, alone=len(entries) == 1) for entry in entries)
    label = escape(f"{said}: " + "; ".join(_details(*entry, alone=False) for entry in entries))
    return (
        f'<button type="button" class="mg-shape" aria-label="{label}" '
        f'data-mg-detail="{escape(details)}"><i>{escape(shown)}</i> {" | ".join(first)}'
        f"{hidden}{count}</button>"
    )


# Shapes of one name on one line before the reader asks for more; one, if it is long.
_SHOWN = 2
_ROOM = 36


def _axes(shape: Shape, letters: tuple[str, ...]) -> str:
    if shape.note:
        return escape(shape.note)
    if not shape.shape:
        return "scalar"
    if not letters:
        return " × ".join(map(str, shape.shape))
    return " · ".join(
        f"<b>{escape(letter)}</b> {size}" if letter != str(size) else str(size)
        for letter, size in zip(letters, shape.shape, strict=True)
    )


def _nan(shape: Shape) -> str:
    return f' <b class="mg-nan">{shape.nan:,} NaN</b>' if shape.nan else ""


def _details(shape: Shape, letters: tuple[str, ...], *, alone: bool) -> str:
    """What stands in the tip: type, device, range; and the shape, if there are several."""
    parts = [] if alone else [re.sub(r"</?b>", "", _axes(shape, letters))]
    parts += [shape.dtype, shape.device]
    if shape.min is not None and shape.max is not None:
        same = shape.min == shape.max
        parts.append(f"all {shape.min:.4g}" if same else f"{shape.min:.4g} to {shape.max:.4g}")
    if shape.nan:
        parts.append(f"{shape.nan:,} NaN")
    if shape.count > 1:
        parts.append(f"seen {shape.count:,} times")
    return ", ".join(filter(None, parts))


def failure_html(failure: Failure) -> str:
    """A short traceback: the page's own frames, then what was raised."""
    frames = "".join(
        f'<li>line <a href="#L{f["line"]}">{f["line"]}</a> in '
        f"<code>{escape(f['function'])}</code>: <code>{escape(f['text'])}</code></li>"
        for f in failure.frames
    )
    trace = f"<ol>{frames}</ol>" if frames else ""
    message = f"<strong>{escape(failure.type)}</strong>: {escape(failure.message)}"
    return f'<div class="mg-error" role="alert">{trace}<p>{message}</p></div>'


def _figure(output: Output, save: SaveFile) -> str:
    pictures = []
    for scheme, mime in (("light", "image/svg+xml"), ("dark", "image/svg+xml;dark")):
        svg = output.data[mime]
        address = save(f"figure-{scheme}.svg", svg.encode())
        size = {
            side: round(float(n) * (1 if unit == "px" else _POINT)) for side, n, unit in _sizes(svg)
        }
        attributes = "".join(f' {side}="{pixels}"' for side, pixels in size.items())
        alt = escape(output.data.get("alt", "Figure"))
        pictures.append(
            f'<img class="mg-{scheme}" src="{escape(address)}" alt="{alt}"{attributes} '
            'loading="lazy">'
        )
    return f'<div class="mg-out mg-figure">{"".join(pictures)}</div>'


def _sizes(svg: str) -> list[tuple[str, str, str]]:
    head = svg[: svg.find(">", svg.find("<svg")) + 1]
    return re.findall(r'\s(width|height)="([\d.]+)(pt|px|)"', head)


def _warning(output: Output) -> str:
    data = output.data
    kind, text = data.get("category", "Warning"), data.get("message") or data.get("text/plain", "")
    return f'<div class="mg-out mg-warning"><strong>{escape(kind)}</strong> {escape(text)}</div>'


def _value(output: Output) -> str:
    mime = next((kind for kind in _RICHEST if kind in output.data), "text/plain")
    content = output.data.get(mime, "")
    if mime == "text/markdown":
        mime, content = _from_markdown(content)
    if mime in ("text/html", "image/svg+xml"):
        frame = '<div class="mg-out mg-rich" tabindex="0" role="region" aria-label="Value">'
        return f"{frame}{content}</div>"
    if mime.startswith("image/"):
        alt = escape(output.data.get("text/plain", "Picture"))
        return f'<div class="mg-out"><img src="data:{mime};base64,{content}" alt="{alt}"></div>'
    if mime == "text/latex":
        return f'<div class="mg-out">{_formula(content)}</div>'
    return f'<pre class="mg-out mg-value">{_ansi(content)}</pre>'


def _from_markdown(text: str) -> tuple[str, str]:
    """Markdown as HTML, with its type; as the text that it is where nobody can have written it."""
    if len(text) <= _LONGEST and len(_STARTS.findall(text)) <= _MOST_STARTS:
        with suppress(RecursionError):
            return "text/html", Markdown(extensions=_MARKDOWN).convert(text)
    return "text/plain", text


def _formula(latex: str) -> str:
    with suppress(MarginaliaError):
        if len(latex) <= _LONGEST:
            return to_mathml(latex.strip().strip("$").strip(), display=True)
    return f"<code>{escape(latex)}</code>"


def _ansi(text: str) -> str:
    """Text for a terminal as HTML."""
    if "\x1b" not in text:
        return escape(text, quote=False)
    coloured = _ESCAPE.sub(r"\1", text)
    return Ansi2HTMLConverter(inline=False, escaped=True).convert(coloured, full=False)
