"""How far the demos are: a bar on a terminal, a plain line for each elsewhere."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from marginalia.runner import Ran

Progress = Callable[[Ran, int, int], None]


@contextmanager
def reporter(log: logging.Logger) -> Iterator[Progress]:
    """A function to call after each demo, for as long as demos run.

    Args:
        log: Takes the plain lines where standard error is no terminal.
    """
    if not sys.stderr.isatty():
        yield lambda ran, done, total: log.info("[%d/%d] %s", done, total, _line(ran))
        return
    bar: Any = click.progressbar(
        length=0,
        label="Demos",
        show_pos=True,
        item_show_func=lambda ran: _line(ran) if ran else "",
        file=sys.stderr,
    )

    def step(ran: Ran, done: int, total: int) -> None:
        bar.length = total
        bar.update(done - bar.pos, ran)

    with bar:
        yield step


def _line(ran: Ran) -> str:
    name = ran.job.path.relative_to(ran.job.root).as_posix()
    return f"{name} {ran.status} in {ran.result.seconds:.1f} s"
