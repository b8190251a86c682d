"""What is started before it is known to be needed, because it takes long to start."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable
from contextlib import suppress

from marginalia import isolation
from marginalia.options import Options

_DEMO = re.compile(rb"^(def demo\b|# ?%%)", re.MULTILINE)
_CHINESE = re.compile("[\u4e00-\u9fff]")  # has no spaces: a search index looks up its words
_QUIET = 1.0  # seconds that a server has for its first page
_BUILT = "built"  # a file whose date is that of the last build


def foresee(options: Options) -> None:
    """Start what demos are forked from, if one was saved since the last build.

    That takes as long as all that comes before the first demo. Nothing depends on it.
    """
    if options.standby:
        isolation.stand_by(options.standby)
    built = options.cache / _BUILT
    with suppress(OSError):
        since = built.stat().st_mtime_ns if built.exists() else 0
        saved = (p for p in options.papers.rglob("*.py") if p.stat().st_mtime_ns > since)
        if not options.scheduler and any(_DEMO.search(path.read_bytes()) for path in saved):
            isolation.prepare()


def remember(options: Options) -> None:
    """Note that a site was built now, if its cache can be written."""
    with suppress(OSError):
        (options.cache / _BUILT).touch()


def await_saves(pages: Iterable[str]) -> None:
    """Load, in a thread, what rendering needs and a server that took all from its cache has not.

    Args:
        pages: The text of the site's pages.
    """

    def load() -> None:
        import jupytext  # type: ignore[import-untyped]  # noqa: F401
        import nbformat  # noqa: F401

        if any(map(_CHINESE.search, pages)):
            import jieba  # type: ignore[import-untyped]

            jieba.initialize()

    timer = threading.Timer(_QUIET, load)
    timer.daemon = True
    timer.start()
