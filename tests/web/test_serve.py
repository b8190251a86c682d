"""`mkdocs serve` while somebody writes: a module that is broken for a moment, then mended."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import pytest

PATIENCE = 60.0  # seconds until a page that does not come is an error
GOOD = "def demo():\n    print('from the good page')\n"


@dataclass(frozen=True)
class Served:
    folder: Path
    address: str
    log: Path

    def until(self, url: str, shown: Callable[[str], bool]) -> str:
        """The page, as soon as it shows what it should; fails with the last page and the log."""
        end = time.monotonic() + PATIENCE
        page = ""
        while time.monotonic() < end:
            try:
                with urlopen(self.address + url, timeout=10) as answer:
                    page = answer.read().decode()
            except HTTPError as error:
                with error:
                    page = f"{error.code}"
            except (URLError, OSError):
                page = "no answer"
            if shown(page):
                return page
            time.sleep(0.2)
        article = page.partition("<article")[2][:1500] or page[:1500]
        pytest.fail(f"{url} is not as it should be:\n{article}\n{self.log.read_text()[-3000:]}")


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    papers = tmp_path / "papers"
    papers.mkdir()
    (tmp_path / "docs").mkdir()
    (papers / "good.py").write_text(GOOD)
    (papers / "broken.py").write_text('"""Mine."""\nx = = 1  # <b>\n')
    config = "site_name: Mine\ntheme: {name: material}\nplugins: [marginalia]\n"
    (tmp_path / "mkdocs.yml").write_text(config)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path / "serve.log"
    command = [sys.executable, "-m", "mkdocs", "serve", "-a", f"127.0.0.1:{port}"]
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            cwd=tmp_path,
            env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield Served(tmp_path, f"http://127.0.0.1:{port}/", log)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_a_broken_module_is_shown_until_it_is_mended(served: Served) -> None:
    page = served.until("broken/", lambda page: "mg-error" in page)
    assert "line 2, column 5" in page
    assert "invalid syntax" in page
    assert "x = = 1  # &lt;b&gt;" in page
    assert "from the good page" in served.until("good/", lambda page: "mg-stdout" in page)

    mended = "def demo():\n    print('mended')\n    assert 1 + 1 == 3  # Eq. 1\n"
    (served.folder / "papers" / "broken.py").write_text(mended)
    page = served.until("broken/", lambda page: "mg-claim" in page)
    assert "mended" in page
    assert "mg-claim mg-bad" in page
    assert 'id="mg-failed"' in page

    (served.folder / "papers" / "new.py").write_text('"""A page that is new."""\n')
    assert "A page that is new." in served.until("new/", lambda page: "<article" in page)
    assert "from the good page" in served.until("good/", lambda page: "mg-stdout" in page)
