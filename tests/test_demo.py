"""Demos that really run: each test writes a page, runs it in a process of its own, and looks."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import textwrap
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from marginalia.demo import Claim, Failure, Output, Result, Shape, claim_source, has_demo, run

Page = Callable[..., Result]


def forked(path: Path, **options: Any) -> Result:
    """What `run` gives in a forked process, which it may spoil."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python 3.12 warns of threads that some library started
        child = os.fork()
    if child == 0:
        try:
            warnings.resetwarnings()
            result = run(path, **options)
            with os.fdopen(writer, "w") as pipe:
                json.dump(result.to_json(), pipe)
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return Result.from_json(json.loads(text))


@pytest.fixture
def page(tmp_path: Path) -> Page:
    """Writes a page (or what is in its demo) and runs it."""

    def run_page(
        source: str = "", *, demo: str = "", name: str = "page.py", **options: Any
    ) -> Result:
        text = textwrap.dedent(source)
        if demo:
            body = textwrap.indent(textwrap.dedent(demo).strip("\n"), "    ")
            text += f"\n\ndef demo() -> None:\n{body}\n"
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        run_page.text = text  # type: ignore[attr-defined]
        return forked(path, root=tmp_path, **options)

    return run_page


def texts(result: Result, kind: str = "stdout") -> list[tuple[str, str]]:
    """The outputs of a kind: the source line that each stands under, and its text."""
    return [(o.line, o.data["text/plain"]) for o in result.outputs if o.kind == kind]


def under(page: Page, outputs: list[tuple[int, str]]) -> list[tuple[str, str]]:
    """The same with the source line in place of its number."""
    lines = page.text.splitlines()  # type: ignore[attr-defined]
    return [(lines[line - 1].strip(), text) for line, text in outputs]
