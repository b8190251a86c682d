"""Results that are kept: free of line numbers, and valid only while the files they read are."""

from __future__ import annotations

import hashlib
import os
from bisect import bisect_right
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from marginalia import keys
from marginalia.contents import content
from marginalia.demo import Result, claim_source
from marginalia.dependencies import CHANGED, home
from marginalia.errors import SourceError
from marginalia.jobs import Job, inputs_of
from marginalia.memo import digest, plain
from marginalia.parcel import Parcel, pack
from marginalia.source import as_it_is, read_source
from marginalia.store import Store


@dataclass(frozen=True)
class Held:
    """A stored result as it stands in memory.

    Attributes:
        page: The page as it was.
        result: The result, with its line numbers.
        reads: The files that it read, and their digests.
        content: A digest of the result.
    """

    page: Page
    result: Result
    reads: dict[str, str]
    content: str


class Page:
    """A page's source as it is now; equal to another if both are the same."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, job: Job, view: keys.View | None = None) -> None:
        self.job = job
        self.inputs = inputs_of(job, view)
        self.text, self._lines = "", tuple[int, ...]()
        with suppress(SourceError):  # it cannot run either
            self.text = read_source(job.path)
            self._lines = keys.lines(self.text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Page) and (self.text, self.inputs) == (other.text, other.inputs)

    def same(self) -> bool:
        """Whether the source, and the code that it reaches, is still the same."""
        try:
            with as_it_is():
                return Page(self.job) == self
        except OSError:  # it is gone
            return False

    def parcel(self) -> Parcel:
        """Its files by value.

        Raises:
            OSError: One cannot be read any more.
        """
        project = Path(home(str(self.job.root.absolute())))
        return pack(self.job.path, self.job.root, self.inputs, project, digest(self.text))

    def to_code(self, line: int) -> int:
        """The number of a line among those of code, from 1: prose may move it, code may not."""
        return bisect_right(self._lines, line)

    def from_code(self, number: int) -> int:
        """The inverse of `to_code`."""
        return self._lines[number - 1] if number else 0


class Shelf:
    """Results in a store: free of line numbers, and valid only while the files they read are."""

    def __init__(self, store: Store, held: dict[str, Held] | None) -> None:
        self._store = store
        self._held = held
        self._hashes: dict[Path, str] = {}

    def get(self, page: Page) -> Held | None:
        """The result that running the page now would give, if it is kept."""
        name = str(page.job.path)
        kept = self._held.get(name) if self._held else None
        if kept is None or kept.page != page:
            if page.job.device == "cuda":
                self._store.get(_last_key(page))  # used now too: one is not kept without the other
            entry = self._store.get(page.inputs.key)
            if entry is None:
                return None
            result = self._result(page, entry)
            kept = Held(page, result, entry["reads"], digest(plain(result)))
        if any(self._hash(page, file) != content for file, content in kept.reads.items()):
            return None
        if self._held is not None:
            self._held[name] = kept
        return kept

    def last(self, page: Page) -> Result | None:
        """The result of the last run of the page's own code, whatever it reached then."""
        pointer = self._store.get(_last_key(page))
        entry = self._store.get(pointer["key"]) if pointer else None
        return self._result(page, entry) if entry else None

    def _result(self, page: Page, entry: dict[str, Any]) -> Result:
        """A kept result, with the line numbers and the sources that the page has now."""
        result = Result.from_json(_numbered(entry["result"], page.from_code))
        for claim in result.claims:
            claim.source = claim_source(page.text, claim)
        result.dependencies = {name: self._hash(page, name) for name in result.dependencies}
        return result

    def put(self, page: Page, result: Result) -> None:
        """Keep a result, unless it failed or its inputs changed while it ran."""
        if result.seconds:
            self._store.put(_history_key(page.job), {"seconds": result.seconds})
        if not result.ok or not page.same():
            return
        reads = {
            name: digest
            for name, digest in result.dependencies.items()
            if name in result.read
            or os.path.realpath(page.job.root / name) not in page.inputs.files
        }
        kept = _numbered(result.to_json(), page.to_code)
        self._store.put(page.inputs.key, {"result": kept, "reads": reads})
        if page.job.device == "cuda":
            self._store.put(_last_key(page), {"key": page.inputs.key})

    def only_here(self, page: Page, result: Result) -> list[str]:
        """What a demo met otherwise on another machine, if the page itself is still the same."""
        names = [
            name
            for name, digest in result.dependencies.items()
            if digest not in (CHANGED, self._hash(page, name))
        ]
        return names if names and page.same() else []

    def seconds(self, job: Job) -> float:
        """How long a job took last time; a new one may take any time, so it goes first."""
        entry = self._store.get(_history_key(job))
        return float(entry["seconds"]) if entry else float("inf")

    def _hash(self, page: Page, name: str) -> str:
        """The digest of a file that a demo reads; nothing if it is gone."""
        path = page.job.root / name
        if path not in self._hashes:
            self._hashes[path] = content(path)
        return self._hashes[path]


def _history_key(job: Job) -> str:
    name = os.path.relpath(job.path, job.root)
    return hashlib.sha256(os.fsencode(f"seconds of {name}")).hexdigest()


def _last_key(page: Page) -> str:
    """Where the key of the last run on a GPU is kept: of this code, for it places the outputs."""
    name = os.path.relpath(page.job.path, page.job.root)
    what = [name, page.inputs.code, page.job.shapes, page.job.seed, page.job.network]
    return hashlib.sha256(os.fsencode(f"last run on cuda of {what}")).hexdigest()


def _numbered(result: Mapping[str, Any], number: Callable[[int], int]) -> dict[str, Any]:
    """A copy of a result's JSON with every line number replaced."""

    def placed(record: Mapping[str, Any]) -> dict[str, Any]:
        return {
            name: number(value) if name in ("line", "end_line") else value
            for name, value in record.items()
        }

    lists = {name: [placed(one) for one in result[name]] for name in _PLACED}
    error = result["error"]
    if error:
        error = {**placed(error), "frames": [placed(frame) for frame in error["frames"]]}
    return {**result, **lists, "error": error}


_PLACED = ("outputs", "shapes", "claims")
