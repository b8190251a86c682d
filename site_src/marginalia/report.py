"""What a build did, page by page: lines for people, JSON for machines."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from marginalia import __version__
from marginalia.demo import Failure
from marginalia.errors import SourceError
from marginalia.jobs import Ran
from marginalia.runner import whole_text

Status = Literal["ran", "cached", "failed", "stored", "skipped", "static"]


@dataclass(frozen=True, slots=True)
class PageReport:
    """What happened to one module.

    Attributes:
        source: The file, relative to the folder of modules.
        url: Its page, relative to the site.
        status: `"static"` has no demo; `"cached"` has not changed since it last ran. What needs a
            GPU that this build did not have shows an earlier run if it is `"stored"`, and nothing
            if it was `"skipped"`.
        seconds: Time of the demo, also if an earlier build ran it.
        peak_mb: Peak memory of its process, in MB.
        device: Where it ran: `"cpu"` or `"cuda: NAME"`; empty if it did not.
        claims: How many of its claims hold.
        failures: Why it failed.
    """

    source: str
    url: str
    status: Status
    seconds: float = 0.0
    peak_mb: float = 0.0
    device: str = ""
    claims: int = 0
    failures: tuple[Failure, ...] = ()

    @classmethod
    def of(cls, source: str, url: str, ran: Ran) -> PageReport:
        """What happened to a module that has a demo."""
        result = ran.result
        failures = []
        if ran.status == "failed":
            failures = [result.error or Failure("Failed", "the demo did not say why", 0)]
        return cls(
            source,
            url,
            ran.status,
            result.seconds,
            result.peak_mb,
            "" if ran.status == "skipped" else result.device,
            sum(claim.ok for claim in result.claims),
            tuple(failures),
        )

    def to_json(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and numbers, with the field names as keys."""
        return {
            "source": self.source,
            "url": self.url,
            "status": self.status,
            "seconds": round(self.seconds, 3),
            "peak_mb": self.peak_mb,
            "device": self.device,
            "claims": self.claims,
            "failures": [
                {"type": failure.type, "message": failure.message, "line": failure.line}
                for failure in self.failures
            ],
        }


@dataclass(slots=True)
class Report:
    """What happened to the whole site.

    Attributes:
        folder: That of the modules.
        pages: One report for each module.
        seconds: Time to read the modules, run the demos and write the pages' Markdown.
        workers: Demos at once; None where a cluster decides.
    """

    folder: Path = Path()
    pages: list[PageReport] = field(default_factory=list)
    seconds: float = 0.0
    workers: int | None = None

    @property
    def failed(self) -> list[PageReport]:
        """The modules that are not right."""
        return [page for page in self.pages if page.status == "failed"]

    @property
    def totals(self) -> dict[Status, int]:
        """How many pages have each status."""
        found = Counter(page.status for page in self.pages)
        return {status: found[status] for status in get_args(Status)}

    def failures(self) -> list[str]:
        """A text for each failure: `file:line: type: message`, the file as an editor finds it."""
        return [
            f"{_place(self.folder / page.source, failure.line)}: {failure.type}: {failure.message}"
            for page in self.failed
            for failure in page.failures
        ]

    def to_json(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and numbers: what `--json` prints."""
        return {
            "version": __version__,
            "folder": _near(self.folder),
            "seconds": round(self.seconds, 3),
            "workers": self.workers,
            "totals": self.totals,
            "pages": [page.to_json() for page in self.pages],
        }

    def write(self, path: Path) -> None:
        """Write the JSON to a file, whose folder is made if it is missing.

        Raises:
            OSError: It cannot be written.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{json_text(self.to_json())}\n", encoding="utf-8")


def json_text(data: Any) -> str:
    """JSON for every program: halves of characters, as file names have them, are replaced.

    Args:
        data: Plain dicts, lists, strings and numbers.
    """
    return whole_text(json.dumps(data, ensure_ascii=False, indent=1))


def failure_of(error: Exception) -> Failure:
    """An exception as the failure of a page."""
    if isinstance(error, SourceError):
        return Failure(type(error).__name__, error.reason, error.line)
    return Failure(type(error).__name__, str(error), 0)


def _place(path: Path, line: int) -> str:
    return f"{_near(path)}:{line}" if line else _near(path)


def _near(path: Path) -> str:
    """A path as it is named from the current folder, if it is below that."""
    here = Path.cwd()
    full = Path(os.path.abspath(path))  # noqa: PTH100  # a link stays what it is
    return full.relative_to(here).as_posix() if full.is_relative_to(here) else full.as_posix()
