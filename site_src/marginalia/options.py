"""What a site is made from; little else is imported with it, so that a build can start early."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from marginalia.limits import DEFAULTS, Limits

CACHE_SIZE = 2000  # MB


@dataclass(frozen=True, slots=True)
class Options:
    """What a site is made from.

    Attributes:
        papers: The folder of modules, on the import path of their demos.
        cache: Where finished demos are kept.
        cache_size: MB of finished demos to keep; those used longest ago go first.
        workers: Demos at once.
        scheduler: Address of a Dask scheduler whose workers run the demos; by default this machine
            runs them.
        standby: Seconds that what demos are forked from waits for the next build.
        limits: What one demo may use, unless its page says otherwise.
        shapes: Whether to record shapes.
        companion: Whether to render the installed companion library.
        api: Whether to write pages for mkdocstrings.
        docs: Hand-written pages: guides, and the opening of the home page.
        site_name: Title of a home page that nobody wrote.
        directory_urls: Whether `a.md` becomes `a/` (else `a.html`).
    """

    papers: Path
    cache: Path
    workers: int
    cache_size: int = CACHE_SIZE
    scheduler: str = ""
    standby: float = 0.0
    limits: Limits = DEFAULTS
    shapes: bool = True
    companion: bool = False
    api: bool = False
    docs: Path | None = None
    site_name: str = "Annotated papers"
    directory_urls: bool = True


def default_workers() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
