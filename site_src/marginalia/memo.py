"""What pure functions gave, by the content of what they were given: kept for the next build.

A page whose sources, results and surroundings are those of the last build is taken from here
instead of being made again. Nothing in here is precious: without it the build gives the same.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from marginalia.store import Store, StoreError

log = logging.getLogger("mkdocs.plugins.marginalia")

_PAGES = "pages"  # a folder for what is not worth as much as a finished demo
_INSTALLED = (".dist-info", ".egg-info")


class Memo:
    """Answers by the content of the question.

    Args:
        store: Where they are kept between builds.
        resident: Whether to hold them in memory as well, for a server that asks again and again.

    Attributes:
        objects: What others hold in memory from build to build; None if nothing is to be held.
    """

    def __init__(self, store: Store, *, resident: bool = False) -> None:
        self.objects: dict[str, Any] | None = {} if resident else None
        self._store = store
        self._held: dict[str, dict[str, Any]] | None = {} if resident else None
        self._held_before: dict[str, dict[str, Any]] = {}
        self._warned = False

    @classmethod
    def of(cls, cache: Path, *, resident: bool = False) -> Memo:
        """What is kept in the cache of a site, beside its finished demos.

        Raises:
            StoreError: The folder cannot be made.
        """
        return cls(Store(cache / _PAGES, whole=True), resident=resident)

    def start(self) -> None:
        """Begin a build: of what is held, what neither it nor the last one asks for is let go."""
        if self._held is not None:
            self._held_before, self._held = self._held, {}

    def key(self, question: str, *parts: Any) -> str:
        """The key of an answer: equal if the question, its parts and all that could answer it are.

        Args:
            question: What is asked.
            parts: What the answer depends on: JSON, or data classes.
        """
        return digest(plain([environment(), question, *parts]))

    def get(self, key: str) -> dict[str, Any] | None:
        """The answer, if it is known. It is shared: do not change it."""
        if self._held is None:
            return self._store.get(key)
        if key not in self._held:
            answer = self._held_before.get(key) or self._store.get(key)
            if answer is None:
                return None
            self._held[key] = answer
        return self._held[key]

    def put(self, key: str, answer: dict[str, Any]) -> None:
        """Keep an answer that JSON can hold, if its folder can be written."""
        with self._not_precious():
            self._store.put(key, answer)
        if self._held is not None:
            self._held[key] = answer

    def prune(self, max_bytes: int) -> None:
        """Forget the answers that nobody asked for longest, until the others fit."""
        with self._not_precious():
            self._store.prune(max_bytes)

    def ask(self, key: str, answer: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The answer; it is found out if it is not known."""
        known = self.get(key)
        if known is None:
            known = answer()
            self.put(key, known)
        return known

    @contextmanager
    def _not_precious(self) -> Iterator[None]:
        """Go on if the folder cannot be changed; the first time, say so."""
        try:
            yield
        except StoreError as error:
            if not self._warned:
                log.warning("pages are not kept for the next build: %s", error)
            self._warned = True


def plain(value: Any) -> str:
    """JSON of plain values and data classes: the same text for the same content."""
    return json.dumps(value, default=_fields, sort_keys=True)


def _fields(value: Any) -> dict[str, Any]:
    """A data class as JSON has it; `dataclasses.asdict` would copy all of it."""
    return {field.name: getattr(value, field.name) for field in fields(value)}


def digest(data: bytes | str) -> str:
    """SHA-256, in hexadecimal digits."""
    data = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
    return hashlib.sha256(data).hexdigest()


@functools.cache
def environment() -> str:
    """A digest of all code that makes pages: Python, our own modules, what is installed."""
    state = hashlib.sha256(sys.version.encode())
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        state.update(path.read_bytes())
    installed = {
        entry.name
        for folder in map(Path, sys.path)
        if folder.is_dir()
        for entry in folder.iterdir()
        if entry.name.endswith(_INSTALLED)
    }
    state.update("\n".join(sorted(installed)).encode())
    return state.hexdigest()
