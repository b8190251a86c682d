"""Write the page of the site on the benchmarks, from their results.

python benchmarks/report.py                      # site_src/docs/benchmarks.md
python benchmarks/report.py --out - --results results.json
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import environment
import live
import tools
import verdicts
from results import LABELS, SCALE_STEPS, STEPS, Results, ResultsError, median
from tools import OURS, STANDBY

OUT = environment.ROOT / "site_src" / "docs" / "benchmarks.md"


def page(results: Results) -> str:
    """The page, in Markdown."""
    parts = [_INTRO, _machine(results)]
    if results.names("builds"):
        parts += [_builds(results), _ratios(results)]
    if results.names("scale"):
        parts.append(_scale(results))
    if results.names("serve"):
        parts.append(_serve(results))
    parts += [_lost(results), _versions(results), _AGAIN]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


_INTRO = """
---
title: Benchmarks
description: How long builds take, beside other tools that run examples while a site is built
---

# Benchmarks

How long a build takes, how much memory, and what it runs again, beside other tools that run
examples while a site is built. Every table is computed from one run on one machine: ratios carry
over to another, seconds do not.
"""


def _machine(results: Results) -> str:
    facts = results.data["machine"]
    memory = f", {facts['memory_gb']:.0f} GB of memory" if "memory_gb" in facts else ""
    cores = f"{facts['cores']} core{'s' if facts['cores'] > 1 else ''}"
    loads = [
        cost["load"]
        for section in ("builds", "scale")
        for name in results.names(section)
        for row in results.rows(section, name)
        for cost in row.values()
        if isinstance(cost, dict) and "load" in cost
    ]
    day = date.fromisoformat(results.data["date"])
    text = f"Measured on {day.day} {day:%B %Y}: {facts['cpu']}, {cores}{memory}, {facts['system']}."
    if loads:
        most = f"{median(loads):.1f} (median) and {max(loads):.1f} at most"
        text += f" The 1-minute load of the machine before a build was {most}."
    return text


def _builds(results: Results) -> str:
    heads = ["", "cold", "no change", "one page", "helper", "ran / stale", "MB", "site MB"]
    measured = verdicts.measured(results)
    parts = {
        "count": results.data["builds"]["settings"]["examples"],
        "table": _table(heads, [_of_tool(results, tool) for tool in measured]),
        "rounds": _rounds(results, measured),
        "complete": _complete(results, measured),
    }
    return _BUILDS.format(**parts).rstrip("\n") + _failed(results, "builds")


_BUILDS = """
## {count} examples that run

Each has five cells of prose and five of code: a small torch module, printed shapes, thirty steps of
training, one figure. All import one helper. The same cells are written in the format of each tool.
Seconds, medians; less is better. {complete}

{table}

- **cold**: nothing is there but the sources. **no change**: the same build once more.
  **one page**: one number in the code of one example was changed. **helper**: the module that all
  examples import was changed.
- **ran / stale**: after the helper changed, examples that ran again, and pages that still show what
  the old helper printed. A tool that is quick and stale is not done.
- **MB**: the most memory of all processes of a build together, shared pages counted once (PSS).
  **site MB**: the size of the built site.
- **standing by**: the same with the option `standby`: the process that demos are forked from waits
  for the next build. **MB** has its memory in the cold build only, which starts it.
- Rounds are interleaved: each runs every tool once, each in another order. {rounds} Before a tool's
  first round it builds two examples, which is not counted. All have one Python, torch (with one
  thread) and Matplotlib; those on MkDocs have one theme with the same settings.
"""


def _of_tool(results: Results, tool: tools.Tool) -> list[str]:
    """A line of the table."""
    name = tool.name
    ran, stale = (verdicts.of_step(results, name, "helper", key) for key in ("ran", "stale"))
    return [
        f"**{tool.label}**" if name in (OURS, STANDBY) else tool.label,
        *(_number(verdicts.seconds(results, name, step)) for step in STEPS),
        f"{_number(ran, 0)} / {_number(stale, 0)}",
        _number(verdicts.memory(results, name), 0),
        _number(verdicts.size(results, name)),
    ]


def _rounds(results: Results, measured: Sequence[tools.Tool]) -> str:
    """How many rounds there are, in words."""
    counts = {tool.label: len(results.rows("builds", tool.name)) for tool in measured}
    most = max(counts.values(), default=0)
    fewer = "; ".join(f"{label}: {count}" for label, count in counts.items() if count < most)
    return f"There are {most} ({fewer})." if fewer else f"There are {most}."


def _complete(results: Results, measured: Sequence[tools.Tool]) -> str:
    """Whether the sites show all that there is to show, in words."""
    count = results.data["builds"]["settings"]["examples"]
    shown = {
        tool.label: verdicts.of_step(results, tool.name, "cold", "complete") or 0
        for tool in measured
    }
    less = [f"{label} on {pages:.0f} pages" for label, pages in shown.items() if pages < count]
    if not less:
        return "All show the output of every cell and the figure, on every page."
    return f"Not all show the output of every cell and the figure: {', '.join(less)} of {count}."


def _ratios(results: Results) -> str:
    lines = [
        [
            str(ratio),
            f"{ratio.target.peers}: {ratio.peer.label}",
            f"{ratio.value:.2f}",
            f"{ratio.target.most:g}",
            "yes" if ratio.is_met else "**no**",
        ]
        for ratio in verdicts.ratios(results)
    ]
    if not lines:
        return "There is no ratio: Marginalia or its peers were not measured."
    table = _table(("our time for a", "over that of", "ratio", "target", "met"), lines)
    return f"### What we aim at\n\n{table}"


def _scale(results: Results) -> str:
    lines, growths = [], []
    for renderer, label in tools.RENDERERS.items():
        for step in SCALE_STEPS:
            found = verdicts.growth(results, renderer, step)
            if found is None:
                continue
            if renderer == OURS and len(found.pages) > 1:
                growths.append(found)
            for pages, time, memory in zip(
                found.pages, found.milliseconds, found.memory, strict=True
            ):
                cells = [f"{pages:,}", _number(time * pages / 1000), _number(time)]
                lines.append([label, LABELS[step], *cells, _number(memory, 0)])
    table = _table(("", "", "pages", "s", "ms a page", "MB"), lines)
    text = _SCALE.format(table=table, growths="\n".join(f"- {found}" for found in growths))
    return text.rstrip("\n") + _failed(results, "scale")


_SCALE = """
## Pages that are only rendered

Modules with prose and code and no demo, so that rendering is what is measured: for Marginalia as
modules whose prose stands beside the code and whose imports are links; for Material the same text
as Markdown. No page stands in the navigation: Material's takes time with the square of its length.

{table}

{growths}
"""


def _serve(results: Results) -> str:
    settings = results.data["serve"]["settings"]
    columns = [name for name in tools.RENDERERS if results.rows("serve", name)]
    lines = [
        [label, *(_number(verdicts.reload(results, name, edit), 2) for name in columns)]
        for edit, label in live.WAITS.items()
    ]
    table = _table(("", *(tools.RENDERERS[name] for name in columns)), lines)
    return _SERVE.format(table=table, **settings).rstrip("\n") + _failed(results, "serve")


_SERVE = """
## Seconds from a save to the page

`mkdocs serve` on {pages} pages: from the last save until a browser that waits for a reload has the
page with the new text; medians of {edits}. With Marginalia the demo of the edited code runs;
Material shows the same code as text. MkDocs looks for changed files every half second, which is
part of its time; Marginalia hears of them from the system.

{table}
"""


def _lost(results: Results) -> str:
    found = verdicts.lost(results)
    items = "\n".join(f"- {line}" for line in found) or "Nowhere in what was measured."
    return f"## Where we lose\n\nComputed from the tables above.\n\n{items}"


def _versions(results: Results) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in results.data["versions"].items())
    commit = results.data.get("commit")
    measured = f"\n\nMarginalia was measured at commit `{commit}`." if commit else ""
    return f"## Versions\n\nAll in one environment: {versions}.{measured}"


_AGAIN = """
## Run it again

```sh
make bench                                # set up, measure (an hour or so), write this page
python benchmarks/run.py all --resume     # go on with an interrupted run
python benchmarks/run.py builds --help    # one part only, fewer examples, fewer rounds
```

The tools get an environment of their own in `.cache/benchmarks`, where the sites and the results
are, too. `benchmarks/peers.txt` pins them, `benchmarks/tools.py` has their settings,
`benchmarks/corpus.py` writes the examples.
"""


def _failed(results: Results, section: str) -> str:
    """A line for each tool of which a round failed."""
    found = [
        f"\n- {_label(name)} failed in a round, which is not counted."
        for name in results.names(section)
        for row in results.data[section]["rows"][name].values()
        if "error" in row
    ]
    return "".join(dict.fromkeys(found))


def _label(name: str) -> str:
    if name in tools.BY_NAME:
        return tools.BY_NAME[name].label
    renderer, _, count = name.partition(" ")
    return f"{tools.RENDERERS[renderer]} ({count} pages)" if count else tools.RENDERERS[renderer]


def _table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    columns = zip(*lines, strict=True) if lines else [[] for _ in heads]
    rule = ["---:" if all(map(_is_number, column)) else "---" for column in columns]
    return "\n".join(f"| {' | '.join(line)} |" for line in (heads, rule, *lines))


def _is_number(cell: str) -> bool:
    return bool(cell) and set(cell) <= set("0123456789.,–/ ")


def _number(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=environment.FOLDER / "results.json")
    parser.add_argument("--out", default=str(OUT), help="the page; - for standard output")
    arguments = parser.parse_args()
    try:
        text = page(Results.load(arguments.results))
    except ResultsError as error:
        sys.exit(str(error))
    if arguments.out == "-":
        print(text, end="")
        return
    out = Path(arguments.out)
    out.write_text(text, encoding="utf-8")
    print(f"The page is {out}")
    if out == OUT and out.name not in (environment.ROOT / "mkdocs.yml").read_text("utf-8"):
        print("It stands in no navigation yet: add `- Benchmarks: benchmarks.md` to mkdocs.yml")


if __name__ == "__main__":
    main()
