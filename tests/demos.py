"""Demos written to files and run: what the tests of the runner share."""

from __future__ import annotations

import json
import os
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from marginalia.demo import Result
from marginalia.jobs import Job, Ran
from marginalia.runner import run_isolated

T = TypeVar("T")

HELLO = "def demo():\n    print('hello')\n"


def write(root: Path, **pages: str) -> None:
    """Write modules; the code is cleaned of indentation."""
    for name, text in pages.items():
        (root / f"{name}.py").write_text(textwrap.dedent(text).lstrip("\n"), encoding="utf-8")


def demo(code: str) -> str:
    """A module whose demo is `code`; its first line is line 2."""
    return "def demo():\n" + textwrap.indent(textwrap.dedent(code).strip("\n"), "    ") + "\n"


def run(root: Path, code: str, **options: Any) -> Result:
    """Run some code as a demo."""
    write(root, page=demo(code))
    return run_isolated(Job(root / "page.py", root, **options))


def printed(result: Result) -> str:
    assert result.ok, result.error
    return "".join(o.data["text/plain"] for o in result.outputs if o.kind == "stdout").strip()


def content(result: Result) -> str:
    """All that a page shows of a result except how long it took and what memory."""
    data = result.to_json()
    for name in ("seconds", "peak_mb"):
        data.pop(name)
    return json.dumps(data)


def statuses(rans: list[Ran]) -> dict[str, str]:
    return {ran.job.path.stem: ran.status for ran in rans}


def wait_for(condition: Callable[[], T], seconds: float = 60) -> T:
    """Wait until something holds; it is an error if that takes too long."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.02)
    return found


@contextmanager
def waiting_at(gate: Path) -> Iterator[None]:
    """While this lasts, a demo that reads the gate waits; it is an error if none comes."""
    writer = wait_for(lambda: _opened(gate))
    try:
        yield
    finally:
        os.close(writer)


def _opened(gate: Path) -> int:
    """What can be written to; 0 as long as nobody reads."""
    with suppress(OSError):
        return os.open(gate, os.O_WRONLY | os.O_NONBLOCK)
    return 0


def alive(process: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
    return "Z" not in stat.rpartition(")")[2].split()[0]
