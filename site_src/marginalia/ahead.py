"""What is started before a build knows what it needs, because it takes long to start."""

from __future__ import annotations

import re
from contextlib import suppress

from marginalia import isolation
from marginalia.options import Options

_DEMO = re.compile(rb"^(def demo\b|# ?%%)", re.MULTILINE)
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
    """Note that a site was built now."""
    (options.cache / _BUILT).touch()
