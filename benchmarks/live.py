"""How long a reader of `mkdocs serve` waits for a save: the seconds until the new text is there.

The page is polled as a browser does it: it waits at the livereload address that is written into the
page, and loads the page again when that answers.
"""

from __future__ import annotations

import http.client
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import corpus
import measure
import tools
from environment import Environment
from results import Results

START_LIMIT = 600.0  # seconds until the first build is served
LIMIT = 180.0  # seconds until an edit is there
BURST = 5  # saves, one right after the other
PAUSE = 0.05  # seconds between them
SETTLE = 1.0  # seconds between two edits, so that none is taken for a part of the last

EDITS = {
    "prose": "a sentence of a page",
    "code": "code of a page with a small demo",
    "burst": f"{BURST} saves of a page, {PAUSE * 1000:.0f} ms apart",
}
WAITS = {"start": "the first build", **EDITS}

_PAGE = corpus.page_folder(0) + "/" + corpus.page_name(7)
_TOKEN = "SAVED-0"  # what an edit changes; it is looked for in the page
_DEMO_MODULE = '''r"""
# A page with a small demo

It prints what was saved.
"""

import torch


def demo():
    x = torch.ones(2, 3)
    print("SAVED-0", float(x.sum()))
'''
_DEMO_MARKDOWN = """# A page with a small demo

It shows what was saved.

```python
import torch


def demo():
    x = torch.ones(2, 3)
    print("SAVED-0", float(x.sum()))
```
"""


@dataclass(frozen=True, slots=True)
class _Source:
    """A file to edit, and the path of its page."""

    file: Path
    url: str

    def save(self, token: str) -> None:
        text = self.file.read_text("utf-8")
        self.file.write_text(re.sub(r"SAVED-\d+", token, text), encoding="utf-8")


def measure_all(results: Results, environment: Environment, *, count: int, edits: int) -> None:
    """Serve the same pages with ours and with plain Material, and edit them."""
    for renderer, label in tools.RENDERERS.items():
        row = results.row("serve", renderer, 1)
        if row.get("done"):
            continue
        print(f"serving {count} pages with {label}", flush=True)
        row.clear()
        try:
            _measure(results, environment, renderer, row, count, edits)
        except measure.CommandError as error:
            row["error"] = str(error)
            print(f"  {error}", flush=True)
        results.save()


def _measure(
    results: Results,
    environment: Environment,
    renderer: str,
    row: dict[str, Any],
    count: int,
    edits: int,
) -> None:
    site = environment.work / f"serve-{renderer}"
    shutil.rmtree(site, ignore_errors=True)
    site.mkdir(parents=True)
    pages = tools.lay_out_pages(renderer, site, count)
    prose, code = _sources(pages, ours=renderer == tools.OURS)
    with _served(environment, site) as server:
        row["start"] = round(server.wait_for(prose.url, _TOKEN, START_LIMIT), 3)
        print(f"  first build: {row['start']:.1f} s", flush=True)
        for edit in EDITS:
            source = code if edit == "code" else prose
            saves = BURST if edit == "burst" else 1
            row[edit] = [round(server.edit(source, saves), 3) for _ in range(edits)]
            results.save()
            middle = sorted(row[edit])[len(row[edit]) // 2]
            print(f"  {EDITS[edit]}: {middle:.2f} s", flush=True)
    row["done"] = True


def _sources(pages: Path, *, ours: bool) -> tuple[_Source, _Source]:
    """A page of the corpus with a word to change, and a page with a demo."""
    suffix = ".py" if ours else ".md"
    prose = (pages / _PAGE).with_suffix(suffix)
    text = prose.read_text("utf-8")
    prose.write_text(text.replace("is read best", f"is read ({_TOKEN}) best"), encoding="utf-8")
    code = (pages / corpus.page_folder(0) / "demonstration").with_suffix(suffix)
    code.write_text(_DEMO_MODULE if ours else _DEMO_MARKDOWN, encoding="utf-8")
    place = f"/{corpus.page_folder(0)}/"
    return _Source(prose, f"/{_PAGE}/"), _Source(code, f"{place}demonstration/")


class _Server:
    """A browser's view of `mkdocs serve`."""

    def __init__(self, port: int, process: subprocess.Popen[bytes], log: Path) -> None:
        self._port = port
        self._process = process
        self._log = log
        self.number = 0

    def edit(self, source: _Source, saves: int) -> float:
        """Save a file; the seconds from the last save until its page has the new text.

        Raises:
            CommandError: It is not there within the limit.
        """
        try:
            return self._edit(source, saves)
        except OSError as error:
            raise measure.CommandError(f"{source.url}: {error} (see {self._log})") from None

    def _edit(self, source: _Source, saves: int) -> float:
        time.sleep(SETTLE)
        epoch, request = self._livereload(self._get(source.url, LIMIT))
        for _ in range(saves):
            self.number += 1
            token = f"SAVED-{self.number}"
            source.save(token)
            start = time.perf_counter()
            time.sleep(PAUSE if saves > 1 else 0)
        deadline = start + LIMIT
        while time.perf_counter() < deadline:
            answer = self._get(f"/livereload/{epoch}/{request}", deadline - time.perf_counter())
            if int(answer) > epoch:
                page = self._get(source.url, LIMIT)
                if token in page:
                    return time.perf_counter() - start
                epoch, request = self._livereload(page)
        where = f"{source.url} has no {token}"
        raise measure.CommandError(f"{where} after {LIMIT:g} s (see {self._log})")

    def wait_for(self, url: str, text: str, limit: float) -> float:
        """Seconds until a page is served."""
        start = time.perf_counter()
        while time.perf_counter() - start < limit:
            if self._process.poll() is not None:
                tail = self._log.read_text("utf-8", "replace")[-2000:]
                raise measure.CommandError(f"mkdocs serve ended (see {self._log}):\n{tail}")
            with suppress(OSError):
                if text in self._get(url, 10):
                    return time.perf_counter() - start
            time.sleep(0.05)
        raise measure.CommandError(f"{url} is not served after {limit:g} s (see {self._log})")

    def _get(self, path: str, limit: float) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=max(limit, 1))
        try:
            connection.request("GET", path)
            return connection.getresponse().read().decode("utf-8", "replace")
        finally:
            connection.close()

    def _livereload(self, page: str) -> tuple[int, int]:
        """What the page's script would ask with."""
        found = re.search(r"livereload\((\d+), ?(\d+)\)", page)
        if not found:
            raise measure.CommandError("the page that is served has no script that reloads it")
        return int(found[1]), int(found[2])


@contextmanager
def _served(environment: Environment, site: Path) -> Iterator[_Server]:
    """`mkdocs serve` on a free port; it is ended with the block, and all that it started."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [environment.program("mkdocs"), "serve", "--quiet", "--livereload"]
    command += ["--dev-addr", f"127.0.0.1:{port}"]
    log = site / "serve.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=site,
            env=environment.variables(site),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            yield _Server(port, process, log)
        finally:
            with suppress(subprocess.TimeoutExpired):
                process.send_signal(signal.SIGINT)
                process.wait(10)
            measure.end(process)
