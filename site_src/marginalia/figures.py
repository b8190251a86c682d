"""Figures of matplotlib: a house style, and SVG for a light and a dark page.

Imports matplotlib only where it is used: most of a site's work needs none of it.
"""

from __future__ import annotations

import io
import re
import time
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from marginalia.capture import Capture, after_import

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Six colours at least 3:1 against white and against #14161a, and far apart for every kind of
# colour vision (CIELAB distance 24 under simulated protanopia, deuteranopia and tritanopia).
CYCLE = ("#534fec", "#d07602", "#0d9ca8", "#cd1273", "#789d5e", "#9670dd")

INK, FAINT, GRID = "#24292f", "#57606a", "#d8dee4"
_DARK = {INK: "#e6edf3", FAINT: "#9aa4af", GRID: "#373e47"}
_ALMOST_BLACK = "#000001"  # stays as it is on a dark page

MAX_POINTS = 20_000  # of one artist: with more it becomes a picture
MAX_SVG = 250_000  # characters: in a longer one, artists with this many points become pictures
MANY_POINTS = 500

STYLE: dict[str, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": FAINT,
    "axes.facecolor": "none",
    "axes.grid": False,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": "medium",
    "axes3d.xaxis.panecolor": (0.5, 0.5, 0.5, 0.08),
    "axes3d.yaxis.panecolor": (0.5, 0.5, 0.5, 0.08),
    "axes3d.zaxis.panecolor": (0.5, 0.5, 0.5, 0.08),
    "boxplot.boxprops.color": INK,
    "boxplot.capprops.color": INK,
    "boxplot.flierprops.color": INK,
    "boxplot.flierprops.markeredgecolor": INK,
    "boxplot.whiskerprops.color": INK,
    "figure.dpi": 100,
    "figure.facecolor": "none",
    "figure.figsize": (6.0, 3.4),
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "grid.color": GRID,
    "hatch.color": INK,
    "image.cmap": "viridis",
    "legend.edgecolor": GRID,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "patch.edgecolor": INK,
    "savefig.dpi": 200,
    "svg.fonttype": "path",
    "svg.hashsalt": "marginalia",
    "svg.image_inline": True,
    "text.color": INK,
    "xtick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.color": FAINT,
    "ytick.labelcolor": INK,
}


@dataclass(slots=True)
class _Drawn:
    """What happened to a figure: the statement that drew on it last, and if it was shown since."""

    line: int
    shown: bool = False


class Figures:
    """The figures of one page.

    Args:
        capture: Where they go.
    """

    def __init__(self, capture: Capture) -> None:
        self._capture = capture
        self._drawn: WeakKeyDictionary[Figure, _Drawn] = WeakKeyDictionary()
        self._pyplot: types.ModuleType | None = None
        self._count = 0
        self._rendering = False
        self.seconds = 0.0

    def start(self) -> None:
        """Prepare matplotlib, when and if the demo imports it."""
        after_import("matplotlib", self._style)
        after_import("matplotlib.pyplot", self._take_pyplot)

    def show_all(self) -> None:
        """Show and close the open figures, each under the statement that drew on it last."""
        if self._pyplot is not None:
            drawn = [figure for figure in self._open() if _is_drawn(figure)]
            self._capture.make_room(sum(not self._of(figure).shown for figure in drawn))
            for figure in drawn:
                self._show(figure, self._of(figure).line)
            self._pyplot.close("all")

    def _style(self, matplotlib: types.ModuleType) -> None:
        from cycler import cycler

        matplotlib.rcdefaults()
        matplotlib.rcParams["backend"] = "agg"
        matplotlib.rcParams.update(STYLE | {"axes.prop_cycle": cycler(color=CYCLE)})
        matplotlib.use = lambda *_, **__: None  # type: ignore[attr-defined]  # there is no display

    def _take_pyplot(self, pyplot: types.ModuleType) -> None:
        from matplotlib.artist import Artist
        from matplotlib.figure import Figure

        self._pyplot = pyplot
        pyplot.switch_backend("agg")
        pyplot.show = self._show_now  # type: ignore[attr-defined]
        pyplot.switch_backend = lambda *_: None  # type: ignore[attr-defined]
        Figure.show = lambda figure, *_, **__: self._show_now(figure)  # type: ignore[method-assign]
        stale: Any = Artist.stale

        def set_stale(figure: Figure, value: bool) -> None:
            stale.fset(figure, value)
            if value and not self._rendering:
                if figure not in self._drawn:  # a new one; thousands would take all of its time
                    self._capture.make_room(1 + len(pyplot.get_fignums()))
                self._drawn[figure] = _Drawn(self._capture.line)

        Figure.stale = property(stale.fget, set_stale)  # type: ignore[assignment]
        self._capture.viewers.append(self._view)
        self._capture.on_cell.append(self.show_all)

    def _open(self) -> list[Figure]:
        assert self._pyplot is not None
        return [self._pyplot.figure(number) for number in self._pyplot.get_fignums()]

    def _of(self, figure: Figure) -> _Drawn:
        return self._drawn.setdefault(figure, _Drawn(self._capture.line))

    def _show_now(self, *figures: Any, **_: Any) -> None:
        """Show figures, or all that are open, under the statement that runs, and close them."""
        assert self._pyplot is not None
        for figure in [f for f in figures if hasattr(f, "savefig")] or self._open():
            self._show(figure, self._capture.line)
            self._pyplot.close(figure)

    def _view(self, value: Any) -> bool:
        """Show a value if it is a figure, which stays open; its parts are no news beside it."""
        from matplotlib.artist import Artist
        from matplotlib.figure import Figure

        if isinstance(value, Figure):
            self._show(value, self._capture.line)
            return True
        parts = value if isinstance(value, list | tuple) and value else [value]
        return all(isinstance(part, Artist) for part in parts)

    def _show(self, figure: Figure, line: int) -> None:
        """Put a figure under a line, once for each state of it."""
        drawn = self._of(figure)
        if drawn.shown or not _is_drawn(figure):
            return
        self._capture.make_room(1)  # before the time that drawing takes
        start = time.perf_counter()
        self._rendering = True
        before, self._capture.line = self._capture.line, line  # for warnings about glyphs
        try:
            self._count += 1
            data = render(figure, f"f{self._count}")
            self._capture.add("figure", data, line)
        finally:
            drawn.shown = True
            self._rendering = False
            self._capture.line = before
            self.seconds += time.perf_counter() - start


def _is_drawn(figure: Figure) -> bool:
    """Whether there is more to a figure than its ground."""
    return bool(figure.get_children()[1:])


def render(figure: Figure, name: str) -> dict[str, str]:
    """Draw a figure for both kinds of page.

    Args:
        figure: The figure; looks afterwards as before.
        name: Starts every ``id`` in it.

    Returns:
        ``image/svg+xml``, ``image/svg+xml;dark`` and its description ``alt``.
    """
    with _prepared(figure, MAX_POINTS):
        light = _cleaned(_svg(figure))
    if len(light) > MAX_SVG:
        with _prepared(figure, MANY_POINTS):
            light = _cleaned(_svg(figure))
    return {
        "image/svg+xml": _renamed(light, f"{name}-"),
        "image/svg+xml;dark": _renamed(_darkened(light), f"{name}d-"),
        "alt": describe(figure),
    }


# Drawing


def _svg(figure: Figure) -> str:
    """The figure with as little around it as can be, drawn once.

    Matplotlib draws twice for `bbox_inches="tight"`; here what is drawn is cropped.
    """
    import matplotlib

    fixed: Any = {key: value for key, value in STYLE.items() if key.startswith("svg.")}
    # Both are the whole figure, but round the last digits of places in their own way
    whole = figure.bbox_inches if figure.get_layout_engine() is None else None
    buffer = io.StringIO()
    with matplotlib.rc_context(fixed | _AS_IT_IS), _laid_out(figure):
        figure.savefig(
            buffer,
            format="svg",
            dpi=STYLE["savefig.dpi"],
            bbox_inches=whole,
            facecolor="auto",
            metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")),
        )
        left, bottom, width, height = _extent(figure)
    top = figure.bbox_inches.height * _POINTS - bottom - height
    box = f'width="{width}pt" height="{height}pt" viewBox="{left} {top:g} {width} {height}"'
    return _BOX.sub(box, buffer.getvalue(), count=1)


_AS_IT_IS = {
    "figure.autolayout": False,
    "figure.constrained_layout.use": False,
    "savefig.bbox": None,
}
_POINTS = 72  # an inch, in an SVG of Matplotlib
_PAD = 0.05  # inches
_BOX = re.compile(r'width="[^"]*" height="[^"]*" viewBox="[^"]*"')


@contextmanager
def _laid_out(figure: Figure) -> Iterator[None]:
    """What the layout engine of a figure does, done, and the figure without the engine.

    Matplotlib draws a figure that has one twice, even if it is one that does nothing, as
    `tight_layout` leaves behind.
    """
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    engine, canvas, dpi = figure.get_layout_engine(), figure.canvas, figure.dpi
    if engine is None:
        yield
        return
    try:
        figure.set_canvas(FigureCanvasSVG(figure))  # text has the size that it will be drawn in
        figure.dpi = _POINTS
        if figure.axes:
            with suppress(ValueError):  # as in Figure.draw
                engine.execute(figure)
        figure.dpi = dpi
        figure.set_layout_engine(None)
        yield
    finally:
        figure.dpi = dpi
        figure.set_canvas(canvas)
        figure.set_layout_engine(engine)


def _extent(figure: Figure) -> tuple[float, float, float, float]:
    """Left, bottom, width and height of what is drawn, in points."""
    from matplotlib.backends.backend_svg import RendererSVG

    dpi = figure.dpi
    try:
        figure.dpi = _POINTS
        renderer = RendererSVG(*figure.bbox.size, io.StringIO())  # type: ignore[no-untyped-call]
        box = figure.get_tightbbox(renderer).padded(_PAD)
    finally:
        figure.dpi = dpi
    left, bottom, width, height = (round(float(n) * _POINTS, 2) for n in box.bounds)
    return left, bottom, width, height


def _parts(figure: Figure) -> Iterator[Artist]:
    """Everything that the axes of a figure draw as data."""
    for axes in figure.axes:
        yield from (*axes.lines, *axes.collections, *axes.images, *axes.patches)


def _is_mapped(artist: Artist) -> bool:
    """Whether an artist is drawn, point by point, in the colours of a colour map."""
    from matplotlib.collections import Collection

    return isinstance(artist, Collection) and artist.get_array() is not None


_Undo = list[Callable[[], object]]


@contextmanager
def _prepared(figure: Figure, max_points: int) -> Iterator[None]:
    """White grounds made transparent, long data made pictures, dark data marked to stay dark."""
    undo: _Undo = []
    try:
        _clear(figure.patch, undo)
        for axes in figure.axes:
            _clear(axes.patch, undo)
            if (legend := axes.get_legend()) is not None:
                _clear(legend.get_frame(), undo)
            over_data = bool(axes.images) or any(_is_mapped(c) for c in axes.collections)
            for text in axes.texts:
                if over_data or text.get_bbox_patch() is not None:
                    _keep_text(text, undo)
        for part in _parts(figure):
            if _is_mapped(part):
                _keep_map(part, undo)
            if _size(part) > max_points:
                undo.append(partial(part.set_rasterized, part.get_rasterized()))
                part.set_rasterized(True)
        yield
    finally:
        for step in reversed(undo):
            step()


def _clear(patch: Any, undo: _Undo) -> None:
    """Make a white ground transparent; any other is meant, and stays."""
    from matplotlib.colors import to_hex

    colour = patch.get_facecolor()
    name = to_hex(colour)
    if colour[3] > 0 and (name == "#ffffff" or _is_dark_neutral(name)):
        undo.append(partial(patch.set_facecolor, colour))
        patch.set_facecolor("none" if name == "#ffffff" else _ALMOST_BLACK)


def _keep_text(text: Any, undo: _Undo) -> None:
    """Keep the colour of dark text that stands on data, which is the same on both pages."""
    from matplotlib.colors import to_hex

    colour = text.get_color()
    with suppress(ValueError):
        if to_hex(colour) in _DARK or _is_dark_neutral(to_hex(colour)):
            undo.append(partial(text.set_color, colour))
            text.set_color(_ALMOST_BLACK)


def _keep_map(artist: Any, undo: _Undo) -> None:
    """Keep the dark greys of a colour map: each becomes a hair bluer, so that it is no ink."""
    import numpy as np
    from matplotlib.colors import ListedColormap

    old = artist.get_cmap()
    colours = old(np.arange(old.N))
    grey = (np.ptp(colours[:, :3], axis=1) < 1 / 255) & (colours[:, 0] < 0x60 / 255)
    if grey.any():
        colours[grey, 2] += 1 / 255

        def put(colour_map: Any) -> None:
            with artist.callbacks.blocked():  # or its colour bar would be drawn anew
                artist.set_cmap(colour_map)

        undo.append(partial(put, old))
        put(ListedColormap(colours).with_extremes(under=colours[0], over=colours[-1], bad="none"))


def _size(artist: Any) -> int:
    """How many points an artist draws."""
    if hasattr(artist, "get_xdata"):
        return len(artist.get_xdata(orig=False))
    if not hasattr(artist, "get_paths"):
        return 0
    values = artist.get_array()
    sizes = (len(artist.get_offsets()), len(artist.get_paths()))
    return max(*sizes, 0 if values is None else values.size)


# The text of the SVG


def _cleaned(text: str) -> str:
    """Only the element itself, without what a page could trip over."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>|<defs/>", "", text, flags=re.DOTALL)
    # matplotlib's style sheet is for `*`: in a page it would hit everything
    text, found = re.subn(r"<style[^>]*>\*\{[^<]*</style>", "", text)
    if found:
        text = text.replace("<svg", '<svg stroke-linejoin="round" stroke-linecap="butt"', 1)
    text = re.sub(r"<defs>\s*</defs>", "", text)
    return re.sub(r"\n\s*", "\n", text).strip() + "\n"


def _is_dark_neutral(colour: str) -> bool:
    return colour[1:3] == colour[3:5] == colour[5:7] and int(colour[1:3], 16) < 0x60


def _darkened(svg: str) -> str:
    """The same figure for a dark page: ink and all dark greys become light."""

    def swap(match: re.Match[str]) -> str:
        colour = match[0]
        if _is_dark_neutral(colour):
            return "#" + 3 * f"{255 - int(colour[1:3], 16):02x}"
        return _DARK.get(colour, colour)

    # Black is what SVG fills with by default, so matplotlib does not say it
    svg = svg.replace("<svg", '<svg fill="#000000"', 1)
    return re.sub(r"#[0-9a-f]{6}\b", swap, svg)


def _renamed(svg: str, prefix: str) -> str:
    """Every ``id`` that something refers to as a prefix and a number; the others gone.

    Matplotlib's own are digests of coordinates, which may differ by less than is drawn.
    """
    used = dict.fromkeys(re.findall(r'(?:url\(|href=")#([^")]+)', svg))
    new = {name: f"{prefix}{number}" for number, name in enumerate(used, 1)}

    def identify(match: re.Match[str]) -> str:
        return f' id="{new[match[1]]}"' if match[1] in new else ""

    svg = re.sub(r'\sid="([^"]*)"', identify, svg)
    return re.sub(r'(url\(|href=")#([^")]+)', lambda match: f"{match[1]}#{new[match[2]]}", svg)


# The description


def describe(figure: Figure) -> str:
    """A figure in words: titles, what its axes say, and its legends."""
    suptitle = figure.get_suptitle()
    panels = [words for axes in figure.axes if (words := _panel(axes))]
    sentences = [_words(suptitle)] if suptitle else []
    if len(figure.axes) > 1 and len(panels) > 1:
        sentences.append(f"{len(panels)} panels")
    sentences += panels
    return ". ".join(sentence.rstrip(".") for sentence in sentences if sentence) or "Figure"


def _panel(axes: Axes) -> str:
    """One axes in words: what is written on it, or else what is drawn."""
    x, y = _words(axes.get_xlabel()), _words(axes.get_ylabel())
    labels = " over ".join(part for part in (y, x) if part)
    parts = [_words(axes.get_title()), labels]
    legend = axes.get_legend()
    if legend is not None:
        parts.append(", ".join(_words(text.get_text()) for text in legend.get_texts()))
    return ": ".join(part for part in parts if part) or _contents(axes)


def _contents(axes: Axes) -> str:
    """What is drawn on axes that say nothing; empty for a colour bar."""
    if hasattr(axes, "_colorbar"):
        return ""
    kinds: dict[str, Any] = {"line": axes.lines, "image": axes.images, "bar": axes.patches}
    counts = [(kind, len(found)) for kind, found in kinds.items() if found]
    words = [f"{count} {kind}{'s' * (count > 1)}" for kind, count in counts]
    return " and ".join(words) or "plot"


def _words(text: str) -> str:
    """Text on one line, without the dollars of formulas."""
    return " ".join(text.replace("$", "").split())
