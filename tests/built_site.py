"""A finished site, for tests that read it or open it in a browser."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class BuiltSite:
    """A folder of pages and what the builder printed."""

    folder: Path
    log: str

    @cached_property
    def pages(self) -> dict[str, str]:
        """HTML by address, relative to the site."""
        return {
            path.relative_to(self.folder).as_posix(): path.read_text(encoding="utf-8")
            for path in self.folder.rglob("*.html")
        }


def build(builder: str, out: Path) -> BuiltSite:
    """Build our site strictly with `python -m builder`, or fail with its output."""
    command = [sys.executable, "-m", builder, "build", "--strict", "-f", str(ROOT / "mkdocs.yml")]
    done = subprocess.run(
        [*command, "-d", str(out)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    log = done.stdout + done.stderr
    assert done.returncode == 0, log[-5000:]
    return BuiltSite(out, log)
