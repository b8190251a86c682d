"""Builds, measured: every tool on the same examples, and many pages that are only rendered."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import corpus
import measure
import tools
from environment import Environment
from results import LABELS, SCALE_STEPS, STEPS, Results
from tools import Tool

LIMIT = 3600.0  # seconds for one build
CHANGED = 7  # the example that is changed between two builds
# What the five cells of an example print, as a page shows it.
_PRINTED = (
    r"benchlib v\d",
    r"x \(2, \d+, \d+\)",
    r"parameters: \d",
    r"first \d\.\d{4}\s+last \d\.\d{4}",
)


def compare(
    results: Results,
    environment: Environment,
    chosen: Sequence[Tool],
    *,
    rounds: int,
    slow_rounds: int,
) -> None:
    """Measure every tool once a round, each round in another order.

    A tool that fails is reported, and the others are measured.
    """
    count = results.data["builds"]["settings"]["examples"]
    for number, tool in _turns(chosen, rounds):
        row = results.row("builds", tool.name, number)
        if row.get("done") or (tool.slow and number > slow_rounds):
            continue
        if not results.rows("builds", tool.name):
            _warm(environment, tool)
        print(f"round {number} of {rounds}: {tool.label}", flush=True)
        row.clear()
        try:
            _measure_tool(results, environment, tool, row, count)
        except measure.CommandError as error:
            row["error"] = str(error)
            print(f"  {error}", flush=True)
        results.save()


def _turns(chosen: Sequence[Tool], rounds: int) -> Iterator[tuple[int, Tool]]:
    for number in range(1, rounds + 1):
        first = (number - 1) % len(chosen)
        for tool in (*chosen[first:], *chosen[:first]):
            yield number, tool


def _warm(environment: Environment, tool: Tool) -> None:
    """One build that is not measured: it finds the fonts and brings files into memory."""
    site = _empty(environment, f"warm-{tool.name}")
    corpus.write_helper(site / "lib")
    tool.lay_out(site, 2)
    try:
        _build(environment, site, tool.command)
    except measure.CommandError as error:
        print(f"  {error}", flush=True)


def _measure_tool(
    results: Results, environment: Environment, tool: Tool, row: dict[str, Any], count: int
) -> None:
    site = _empty(environment, tool.name)
    helper = corpus.write_helper(site / "lib")
    tool.lay_out(site, count)
    example = site / tool.example.format(corpus.example(CHANGED).name)
    runs: frozenset[str] = frozenset()
    for step in STEPS:
        if step == "page":
            _replace(example, "range(30)", "range(31)")
        elif step == "helper":
            _replace(helper, 'VERSION = "v1"', 'VERSION = "v2"')
        row[step] = _build(environment, site, tool.command)
        shown = look(site / "site", "v2" if step == "helper" else "v1")
        row[step] |= {"complete": shown.complete, "stale": shown.stale}
        row[step]["ran"], runs = len(shown.runs - runs), shown.runs
        if step == "cold":
            files = [path.stat().st_size for path in (site / "site").rglob("*") if path.is_file()]
            row["site_mb"], row["site_files"] = round(sum(files) / 2**20, 2), len(files)
        results.save()
        _tell(step, row[step])
    row["done"] = True


def _build(environment: Environment, site: Path, command: Sequence[str]) -> dict[str, Any]:
    """Run a build; returns what it took."""
    program = environment.program(command[0])
    log = site / "build.log"
    return asdict(
        measure.run((program, *command[1:]), site, environment.variables(site), log, LIMIT)
    )


def _replace(path: Path, old: str, new: str) -> None:
    text = path.read_text("utf-8")
    if old not in text:
        raise measure.CommandError(f"{path} has no {old!r} to change")
    path.write_text(text.replace(old, new), encoding="utf-8")


@dataclass(frozen=True, slots=True)
class Shown:
    """What the pages of a built site show.

    Attributes:
        complete: Pages with the outputs of all cells and the figure.
        stale: Pages with what another version of the helper printed.
        runs: The stamps of the runs.
    """

    complete: int
    stale: int
    runs: frozenset[str]


def look(site: Path, version: str) -> Shown:
    """Read all pages of a site."""
    complete = stale = 0
    runs: set[str] = set()
    for path in site.rglob("*.html"):
        page = path.read_text("utf-8", "replace")
        text = re.sub(r"<[^>]*>", "", page)
        complete += "<img" in page and all(re.search(part, text) for part in _PRINTED)
        stale += "benchlib v" in text and f"benchlib {version}" not in text
        runs |= set(re.findall(r"ran at (\d+)", text))
    return Shown(complete, stale, frozenset(runs))


def _tell(step: str, cost: dict[str, Any]) -> None:
    memory = f", {cost['peak_mb']:.0f} MB" if cost["peak_mb"] else ""
    ran = f", {cost['ran']} ran" if cost.get("ran") else ""
    print(f"  {LABELS[step]}: {cost['seconds']:.1f} s{memory}{ran}", flush=True)


def _empty(environment: Environment, name: str) -> Path:
    site = environment.work / name
    shutil.rmtree(site, ignore_errors=True)
    site.mkdir(parents=True)
    return site


# Many pages


def scale(
    results: Results, environment: Environment, counts: Sequence[int], *, rounds: int
) -> None:
    """Measure cold builds and builds without a change of sites whose pages are only rendered."""
    for number in range(1, rounds + 1):
        for count in counts:
            for renderer in tools.RENDERERS:
                row = results.row("scale", f"{renderer} {count}", number)
                if row.get("done"):
                    continue
                print(f"round {number} of {rounds}: {tools.RENDERERS[renderer]}, {count} pages")
                row.clear()
                try:
                    _measure_scale(results, environment, renderer, count, row)
                except measure.CommandError as error:
                    row["error"] = str(error)
                    print(f"  {error}", flush=True)
                results.save()


def _measure_scale(
    results: Results, environment: Environment, renderer: str, count: int, row: dict[str, Any]
) -> None:
    site = _empty(environment, f"scale-{renderer}")
    tools.lay_out_pages(renderer, site, count)
    for step in SCALE_STEPS:
        row[step] = _build(environment, site, tools.MKDOCS)
        results.save()
        _tell(step, row[step])
    row["pages"] = sum(1 for _ in (site / "site").rglob("page*/index.html"))
    row["done"] = row["pages"] == count
    if not row["done"]:
        raise measure.CommandError(f"the site has {row['pages']} of {count} pages")
