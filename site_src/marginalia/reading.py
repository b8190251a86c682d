"""A module as the site must know it before any page is made; what was read once is remembered."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from marginalia.demo import has_demo
from marginalia.links import Definitions, definitions
from marginalia.memo import Memo, digest
from marginalia.paper import Paper, load, named
from marginalia.rows import parse
from marginalia.source import read_bytes, read_source


@dataclass(frozen=True, slots=True)
class Module:
    """A module that could be read.

    Attributes:
        paper: What its front matter says.
        text: Its source.
        has_demo: Whether it has something to run.
        definitions: What it defines and imports.
    """

    paper: Paper
    text: str
    has_demo: bool
    definitions: Definitions


def read(path: Path, root: Path, memo: Memo) -> Module:
    """Read a module.

    Args:
        path: Its file.
        root: The folder of modules.
        memo: Knows what an earlier build found in the same source.

    Raises:
        SourceError: It does not parse, or its front matter is wrong.
        OSError: It cannot be read.
    """
    text = read_source(path)
    content = digest(read_bytes(path))
    key = memo.key("module", path.relative_to(root).as_posix(), content)
    facts = memo.get(key)
    if facts is None:
        parse(text, path)  # what is wrong with its rows is said before anything is run
        paper = load(path, root)
        facts = _facts(paper, text)
        # Whether data files are there is asked each time: it is no matter of the source.
        if not paper.data:
            memo.put(key, facts)
    meta = dict(facts["meta"])
    if "date" in meta:
        meta["date"] = datetime.date.fromisoformat(meta["date"])
    return Module(
        named(path, root, facts["title"], facts["summary"], meta),
        text,
        facts["has_demo"],
        Definitions.from_json(facts["definitions"]),
    )


def _facts(paper: Paper, text: str) -> dict[str, Any]:
    """All that is read of a module, for JSON."""
    meta = dict(paper.meta)
    if paper.date:
        meta["date"] = paper.date.isoformat()
    return {
        "title": paper.title,
        "summary": paper.summary,
        "meta": meta,
        "has_demo": has_demo(text),
        "definitions": definitions(text, paper.path).to_json(),
    }
