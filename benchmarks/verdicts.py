"""What the results say: medians, ratios to peers, growth with the site, and where others win."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import live
import tools
from results import LABELS, SCALE_STEPS, STEPS, Results, median
from tools import OURS, PLAIN, STANDBY, Tool


@dataclass(frozen=True, slots=True)
class Target:
    """What we want to be: our time over that of the fastest of some peers.

    Attributes:
        step: The build that is compared.
        most: The ratio that we aim at.
        peers: Whom we are compared with.
        has: Whether a tool is one of them.
        ours: Which of our rows is meant.
    """

    step: str
    most: float
    peers: str
    has: Callable[[Tool], bool]
    ours: str = OURS


TARGETS = (
    Target("cold", 0.6, "the fastest peer", lambda tool: True),
    Target(
        "unchanged",
        0.7,
        "the fastest peer on MkDocs that keeps results",
        lambda tool: tool.mkdocs and tool.caches,
    ),
    Target("page", 0.4, "the fastest peer", lambda tool: True),
    Target("page", 0.4, "the fastest peer", lambda tool: True, ours=STANDBY),
)
FLAT = 1.2  # milliseconds a page on the largest site over those on the smallest


# Medians


def measured(results: Results) -> list[Tool]:
    """The tools with a complete round."""
    return [tool for tool in tools.TOOLS if results.rows("builds", tool.name)]


def peers_of_ours(results: Results) -> list[Tool]:
    """Those of them that are not ours."""
    return [tool for tool in measured(results) if tool.name not in (OURS, STANDBY)]


def of_step(results: Results, name: str, step: str, key: str) -> float | None:
    """The median of one thing that was measured in a build."""
    return median(row[step][key] for row in results.rows("builds", name))


def seconds(results: Results, name: str, step: str) -> float | None:
    """How long a build takes."""
    return of_step(results, name, step, "seconds")


def memory(results: Results, name: str) -> float | None:
    """The peak of all builds of a round, in MB."""
    peaks = [[row[step]["peak_mb"] for step in STEPS] for row in results.rows("builds", name)]
    return median(max(filter(None, peak), default=None) for peak in peaks)


def size(results: Results, name: str) -> float | None:
    """MB of the built site."""
    return median(row["site_mb"] for row in results.rows("builds", name))


def reload(results: Results, renderer: str, edit: str) -> float | None:
    """Seconds from a save to the page, or to the first build (`start`)."""
    times = [row[edit] for row in results.rows("serve", renderer)]
    return median(one for time in times for one in (time if isinstance(time, list) else [time]))


# Ratios


@dataclass(frozen=True, slots=True)
class Ratio:
    """How a target was met."""

    target: Target
    peer: Tool
    value: float

    def __str__(self) -> str:
        option = " with `standby`" if self.target.ours == STANDBY else ""
        return LABELS[self.target.step] + option

    @property
    def is_met(self) -> bool:
        """Whether we are where we want to be."""
        return self.value <= self.target.most


def ratios(results: Results) -> list[Ratio]:
    """Our time over the fastest peer's, for every target that can be computed."""
    found = []
    for target in TARGETS:
        ours = seconds(results, target.ours, target.step)
        peers = [
            (theirs, tool)
            for tool in peers_of_ours(results)
            if target.has(tool)
            if (theirs := seconds(results, tool.name, target.step))
        ]
        if ours and peers:
            fastest, peer = min(peers, key=lambda pair: pair[0])
            found.append(Ratio(target, peer, ours / fastest))
    return found


# Growth


@dataclass(frozen=True, slots=True)
class Growth:
    """How a step grows from the smallest site to the largest.

    Attributes:
        step: The build.
        pages: The sizes of the sites.
        milliseconds: A page, at each size.
        memory: MB at each size.
    """

    step: str
    pages: list[int]
    milliseconds: list[float]
    memory: list[float | None]

    @property
    def is_flat(self) -> bool:
        """Whether a page costs no more on the largest site than on the smallest, or little."""
        return self.milliseconds[-1] <= FLAT * self.milliseconds[0]

    @property
    def is_lean(self) -> bool:
        """Whether memory grows less than the number of pages; true where it is not known."""
        first, last = self.memory[0], self.memory[-1]
        if not first or not last or len(self.pages) == 1:
            return True
        return last / first < self.pages[-1] / self.pages[0]

    def __str__(self) -> str:
        ratio = self.milliseconds[-1] / self.milliseconds[0]
        text = (
            f"A {LABELS[self.step]} takes {ratio:.2f} times as long a page with "
            f"{self.pages[-1]:,} pages as with {self.pages[0]:,}; we want at most {FLAT:g}."
        )
        first, last = self.memory[0], self.memory[-1]
        if first and last:
            pages = f"{self.pages[-1] / self.pages[0]:.1f} times the pages"
            text += f" It needs {last / first:.1f} times the memory for {pages}."
        return text


def growth(results: Results, renderer: str, step: str) -> Growth | None:
    """How long a step takes on sites of every size; None if it was not measured."""
    if "scale" not in results.data:
        return None
    rows = {
        count: results.rows("scale", f"{renderer} {count}")
        for count in results.data["scale"]["settings"]["pages"]
    }
    sizes = [count for count in rows if rows[count]]
    times = [median(row[step]["seconds"] for row in rows[count]) or 0.0 for count in sizes]
    peaks = [median(row[step]["peak_mb"] for row in rows[count]) for count in sizes]
    milliseconds = [1000 * time / count for time, count in zip(times, sizes, strict=True)]
    return Growth(step, sizes, milliseconds, peaks) if sizes else None


# Where we lose


def lost(results: Results) -> list[str]:
    """Every comparison that another tool wins, and every target that is missed, in words."""
    return [*_lost_builds(results), *_lost_scale(results), *_lost_serve(results)]


def _lost_builds(results: Results) -> Iterator[str]:
    for step in STEPS:
        yield from _better(
            results,
            LABELS[step],
            "s",
            partial(seconds, results, step=step),
            partial(of_step, results, step=step, key="stale"),
        )
    yield from _better(results, "peak memory", "MB", partial(memory, results))
    yield from _better(results, "size of the site", "MB", partial(size, results))
    for ratio in ratios(results):
        if not ratio.is_met:
            yield (
                f"The target for a {ratio} is missed: {ratio.value:.2f} of the "
                f"time of {ratio.peer.label}, and we want {ratio.target.most:g}."
            )
    if stale := of_step(results, OURS, "helper", "stale"):
        yield f"After the helper changed, {stale:.0f} of our pages are stale."


def _better(
    results: Results,
    label: str,
    unit: str,
    value: Callable[[str], float | None],
    stale: Callable[[str], float | None] = lambda name: None,
) -> Iterator[str]:
    """A sentence that names the tools that are better than ours, if there are any."""
    ours = value(OURS)
    winners = []
    for tool in peers_of_ours(results):
        theirs = value(tool.name)
        if ours and theirs and theirs < ours:
            pages = stale(tool.name)
            note = f", with {pages:.0f} stale pages" if pages else ""
            winners.append(f"{tool.label} ({theirs:.1f} {unit}{note})")
    if winners:
        opening = label[0].upper() + label[1:]
        yield f"{opening}: {ours:.1f} {unit}. Better: {', '.join(winners)}."


def _lost_scale(results: Results) -> Iterator[str]:
    for step in SCALE_STEPS:
        ours, plain = growth(results, OURS, step), growth(results, PLAIN, step)
        if ours is None:
            continue
        if plain and plain.pages == ours.pages and plain.milliseconds[-1] < ours.milliseconds[-1]:
            yield (
                f"A {LABELS[step]} of {ours.pages[-1]:,} pages: {ours.milliseconds[-1]:.1f} ms a "
                f"page; {tools.RENDERERS[PLAIN]} takes {plain.milliseconds[-1]:.1f} ms for its own."
            )
        if not ours.is_flat:
            yield f"A page costs more on a large site. {ours}"
        if not ours.is_lean:
            yield f"Memory grows as fast as the site, or faster. {ours}"


def _lost_serve(results: Results) -> Iterator[str]:
    for edit, label in live.WAITS.items():
        ours, plain = reload(results, OURS, edit), reload(results, PLAIN, edit)
        if ours and plain and plain < ours:
            other = tools.RENDERERS[PLAIN]
            yield f"While serving, {label}: {ours:.2f} s; {other} takes {plain:.2f} s."
