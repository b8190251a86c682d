"""Measure Marginalia beside the tools that run examples while a site is built.

    python benchmarks/run.py setup      the tools, in an environment of their own
    python benchmarks/run.py builds     all tools on the same 40 examples
    python benchmarks/run.py scale      300, 1,000 and 3,000 pages that are only rendered
    python benchmarks/run.py serve      seconds from a save to the new page in the browser
    python benchmarks/run.py all        the three, after each other

Results are written to `.cache/benchmarks/results.json` after every step; an interrupted run goes on
with `--resume`. `benchmarks/report.py` writes the page of the site from them. Measure on a machine
that does nothing else: the 1-minute load before each build is kept with it.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path

import builds
import environment
import live
import results
import tools


def main() -> None:
    arguments = _parser().parse_args()
    place = environment.Environment(arguments.folder)
    if not place.claim():
        sys.exit(f"another run uses {place.folder}: wait for its end, or choose another --folder")
    # Ended in any way, it ends what it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended; --resume goes on from here"))
    try:
        if arguments.what == "setup":
            place.setup()
            return
        if not place.is_ready:
            sys.exit("the tools are not installed: python benchmarks/run.py setup")
        _measure(arguments, place)
    except results.ResultsError as error:
        sys.exit(f"{error}")
    except subprocess.CalledProcessError as error:
        sys.exit(f"pip failed with status {error.returncode}; what it wrote says why")
    except KeyboardInterrupt:
        sys.exit("interrupted; --resume goes on from here")


def _measure(arguments: argparse.Namespace, place: environment.Environment) -> None:
    path = arguments.results or place.folder / "results.json"
    chosen = [tool for tool in tools.TOOLS if not arguments.only or tool.name in arguments.only]
    packages = [package for tool in tools.TOOLS for package in tool.packages]
    facts = {
        "machine": environment.machine(),
        "versions": place.versions([*packages, "torch", "matplotlib"]),
        "commit": environment.commit(),
    }
    resume = arguments.resume
    found = results.Results.open(path, facts, resume=resume)
    found.data["date"] = date.today().isoformat()
    if arguments.what in ("builds", "all"):
        found.begin("builds", {"examples": arguments.n}, resume=resume)
        slow = arguments.slow_rounds or arguments.rounds
        builds.compare(found, place, chosen, rounds=arguments.rounds, slow_rounds=slow)
    if arguments.what in ("scale", "all"):
        found.begin("scale", {"pages": arguments.pages}, resume=resume)
        builds.scale(found, place, arguments.pages, rounds=arguments.rounds)
    if arguments.what in ("serve", "all"):
        count = arguments.pages[0]
        found.begin("serve", {"pages": count, "edits": arguments.edits}, resume=resume)
        live.measure_all(found, place, count=count, edits=arguments.edits)
    print(f"Results are in {path}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("setup", "builds", "scale", "serve", "all"))
    parser.add_argument("--n", type=_at_least(builds.CHANGED + 1), default=40, help="examples (40)")
    parser.add_argument("--rounds", type=_at_least(1), default=3, help="medians of so many (3)")
    parser.add_argument(
        "--slow-rounds", type=_at_least(1), help="rounds of the tools that take minutes (all)"
    )
    names = tuple(tool.name for tool in tools.TOOLS)
    parser.add_argument(
        "--only", nargs="+", choices=names, metavar="TOOL", help=f"of {', '.join(names)}"
    )
    parser.add_argument(
        "--pages",
        type=_counts,
        default=[300, 1000, 3000],
        metavar="N,N",
        help="sizes for `scale` (300,1000,3000); `serve` takes the first",
    )
    parser.add_argument("--edits", type=_at_least(1), default=10, help="of each kind (10)")
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted run")
    parser.add_argument(
        "--folder", type=Path, default=environment.FOLDER, help="environment, sites and results"
    )
    parser.add_argument("--results", type=Path, help="the JSON (results.json in the folder)")
    return parser


def _counts(text: str) -> list[int]:
    return [_at_least(8)(part) for part in text.split(",")]  # page 7 is edited


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.strip().isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} is not a number from {least} up")
        return int(text)

    return number


if __name__ == "__main__":
    main()
