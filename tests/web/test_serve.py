"""`mkdocs serve` while somebody writes: a module that is broken for a moment, then mended."""

from __future__ import annotations

import glob
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import pytest
from demos import wait_for

if TYPE_CHECKING:
    from playwright.sync_api import Browser

PATIENCE = 60.0  # seconds until a page that does not come is an error
CONFIG = """
site_name: Mine
theme: {name: material}
plugins: [search, mkdocstrings: {handlers: {python: {paths: [papers]}}}, marginalia]
"""
HELPER = '''
"""
# A helper

Where it is explained.
"""


def double(x):
    """Twice as much."""
    # Adding is cheaper.
    return x + x
'''
USER = (
    '''
"""
# A user

Of [the helper][helper.double].
"""

# ## Much to read
'''
    + "\n".join(f"#\n# Paragraph {n}." for n in range(200))
    + """

from helper import double


def demo():
    print(double(4))
"""
)
GOOD = "def demo():\n    print('from the good page')\n"
FILES = {
    "papers/good.py": GOOD,
    "papers/helper.py": HELPER,
    "papers/user.py": USER,
    "papers/broken.py": '"""Mine."""\nx = = 1  # <b>\n',
    "docs/guide.md": "# Guide\n\nA word.\n",
    "mkdocs.yml": CONFIG,
}


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

    def count(self, message: str) -> int:
        """How often the log has a message."""
        return self.log.read_text().count(message)

    def save(self, name: str, old: str, new: str) -> None:
        """Edit a file; nobody sees half of it."""
        path, whole = self.folder / name, self.folder / "whole"
        text = path.read_text()
        assert old in text
        whole.write_text(text.replace(old, new))
        whole.replace(path)


@pytest.fixture
def served(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Served]:
    """A site that is served; a test may ask for files of its own beside or instead of ours."""
    for name, text in {**FILES, **getattr(request, "param", {})}.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
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


WHOLE = "Documentation built"


def test_only_what_changed_is_made_again(served: Served) -> None:
    served.until("user/", lambda page: "<pre" in page and ">8" in page)
    built = served.count(WHOLE)
    served.save("papers/helper.py", "is explained", "is told")
    assert "Where it is told" in served.until("helper/", lambda page: "is told" in page)
    served.save("papers/helper.py", "Adding is cheaper", "Adding is quick")
    served.until("helper/", lambda page: "is quick" in page)
    served.save("papers/helper.py", "return x + x", "return x + x + x")
    served.until("user/", lambda page: ">12" in page)
    served.save("papers/helper.py", "Twice as much", "Thrice")
    served.until("reference/helper/", lambda page: "Thrice" in page)
    served.save("papers/user.py", "Paragraph 7.", "Paragraph seven.")
    served.until("user/", lambda page: "Paragraph seven." in page)
    served.until("assets/_mkdocstrings.css", lambda text: ".doc" in text)
    assert served.count(WHOLE) == built

    served.save("docs/guide.md", "A word", "Two words")
    served.until("guide/", lambda page: "Two words" in page)
    served.save("papers/user.py", "# A user", "# The user")
    served.until("topics/papers/", lambda page: "The user" in page)
    (served.folder / "papers" / "helper.py").rename(served.folder / "papers" / "helping.py")
    served.save("papers/user.py", "helper", "helping")
    served.until("helping/", lambda page: "Thrice" in page)
    served.until("helper/", lambda page: page == "404")
    assert served.count(WHOLE) > built


def test_what_is_served_is_what_is_built(served: Served) -> None:
    """After some edits, page by page, and the search index too."""
    served.until("user/", lambda page: ">8" in page)
    built = served.count(WHOLE)
    served.save("papers/helper.py", "# A helper", "# An old helper")
    served.save("papers/helper.py", "double(x)", "double(x, y=2)")
    served.until("helper/", lambda page: "y=2" in page or "An old helper" in page)
    served.save("papers/helper.py", "x + x", "y * x")
    served.save("papers/user.py", "double(4)", "double(5, 3)")
    served.until("user/", lambda page: ">15" in page)
    assert served.count(WHOLE) == built
    command = [sys.executable, "-m", "mkdocs", "build", "-q", "--no-strict", "-d", "built"]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    subprocess.run(command, cwd=served.folder, env=environment, capture_output=True, check=False)
    site = served.folder / "built"
    pages = [path for path in site.rglob("*.html") if path.name != "404.html"]
    assert len(pages) > 8
    for path in pages:
        url = path.relative_to(site).as_posix().removesuffix("index.html")
        as_built = without_reload(path.read_text())
        served.until(url, lambda page, as_built=as_built: without_reload(page) == as_built)
    index = (site / "search" / "search_index.json").read_text()
    served.until("search/search_index.json", lambda text: text == index)


ENDLESS = """
'''
---
timeout: 600
---
'''


def demo():
    open("endless", "w").close()
    while True:
        pass
"""


@pytest.mark.parametrize("served", [{"papers/good.py": ENDLESS}], indirect=True)
def test_a_demo_without_end_gives_way_to_its_next_version(served: Served) -> None:
    started = f"{tempfile.gettempdir()}/marginalia-*/**/endless"
    wait_for(lambda: glob.glob(started, recursive=True))  # noqa: PTH207  # folders come and go
    served.save("papers/good.py", "while True:\n        pass", "print('from the good page')")
    served.until("good/", lambda page: "from the good page" in page)


TAGGED = {
    "mkdocs.yml": CONFIG.replace("search,", "search, tags,"),
    "papers/helper.py": HELPER.replace('"""\n#', '"""\n---\ntags: [alpha]\n---\n\n#', 1),
    "docs/tags.md": "# Tags\n\n<!-- material/tags -->\n",
}


@pytest.mark.parametrize("served", [TAGGED], indirect=True)
def test_what_other_plugins_make_of_all_pages_is_made_again(served: Served) -> None:
    served.until("tags/", lambda page: "alpha" in page)
    served.save("papers/helper.py", "[alpha]", "[omega]")
    page = served.until("tags/", lambda page: "omega" in page)
    assert "alpha" not in page
    index = served.until("search/search_index.json", lambda text: "omega" in text)
    assert index.count("Where it is explained.") == 1


def without_reload(page: str) -> str:
    """A page without what a server adds to it: its own address, and the script that reloads it."""
    page = re.sub(r'<link rel="(canonical|prev|next)"[^>]*>|http://127[^"]*', "", page)
    page = re.sub(r"<script[^>]*>[^<]*livereload.*?</script>", "", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", page)


HOLDING = {
    "mkdocs.yml": CONFIG + "hooks: [hold.py]\n",
    "hold.py": '''
import logging
import time
from pathlib import Path

HERE = Path(__file__).parent
logging.getLogger("mkdocs.livereload").setLevel("DEBUG")  # so that it says what it hears


def on_env(env, **_):
    """Stay in a build that has read everything, for as long as a test likes."""
    while (HERE / "hold").exists():
        (HERE / "held").touch()
        time.sleep(0.02)
''',
}


def while_held(folder: Path, save: Callable[[], None]) -> None:
    """Save something while a build stays where it is, then let it go on."""
    wait_for((folder / "held").exists)
    save()
    (folder / "hold").unlink()


@pytest.mark.parametrize("served", [HOLDING | {"hold": ""}], indirect=True)
@pytest.mark.parametrize(
    ("url", "edit"),
    [
        ("helper/", ("papers/helper.py", "is explained", "is told")),
        ("guide/", ("docs/guide.md", "A word", "It is told")),
    ],
)
def test_what_is_saved_during_the_first_build_is_shown(
    served: Served, url: str, edit: tuple[str, str, str]
) -> None:
    while_held(served.folder, lambda: served.save(*edit))
    served.until(url, lambda page: "is told" in page)


@pytest.mark.parametrize("served", [HOLDING], indirect=True)
def test_what_is_saved_during_a_rebuild_is_shown(served: Served) -> None:
    served.until("user/", lambda page: ">8" in page)
    (served.folder / "hold").touch()
    served.save("papers/helper.py", "is explained", "is told")
    while_held(served.folder, lambda: served.save("papers/helper.py", "is told", "is said"))
    served.until("helper/", lambda page: "is said" in page)


@pytest.mark.parametrize("served", [{"papers/part/page.py": GOOD}], indirect=True)
@pytest.mark.parametrize("remove", [shutil.rmtree, lambda folder: folder.rename("elsewhere")])
def test_the_pages_of_a_folder_go_with_it(
    served: Served, remove: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(served.folder)
    served.until("part/page/", lambda page: "from the good page" in page)
    remove(served.folder / "papers" / "part")
    served.until("part/page/", lambda page: page == "404")


LINKED = {
    "mkdocs.yml": CONFIG.replace("search,", "search, autorefs,"),
    "papers/helper.py": HELPER + "\n\n# ## On doubles\n#\n# ## On sums {#sums}\n",
    "docs/guide.md": "# Guide\n\n[It][on-doubles], [it][on-pairs], [it][sums], "
    "[it][helper.double], [it][helper.twice].\n",
}


@pytest.mark.parametrize("served", [LINKED], indirect=True)
@pytest.mark.parametrize(
    ("edit", "before", "after"),
    [
        (("On doubles", "On pairs"), 'helper/#on-doubles"', 'helper/#on-pairs"'),
        (("On sums", "On adding"), 'title="On sums"', 'title="On adding"'),
        (("def double", "def twice"), '#helper.double"', '#helper.twice"'),
    ],
)
def test_links_follow_what_they_name(
    served: Served, edit: tuple[str, str], before: str, after: str
) -> None:
    """Links of autorefs, on a page that is not saved itself."""
    served.until("guide/", lambda page: before in page and after not in page)
    built = served.count(WHOLE)
    served.save("papers/helper.py", "is explained", "is told")
    served.until("helper/", lambda page: "is told" in page)
    assert served.count(WHOLE) == built
    served.save("papers/helper.py", *edit)
    served.until("guide/", lambda page: after in page and before not in page)


@pytest.mark.parametrize("served", [HOLDING], indirect=True)
def test_a_burst_of_edits_is_one_rebuild(served: Served) -> None:
    def burst() -> None:
        for number in range(5):
            served.save("papers/user.py", f"Paragraph {number}.", f"Edit {number}.")
        last = served.folder / "papers" / "last.txt"
        last.touch()
        wait_for(lambda: served.count(str(last)))  # the server has heard of all that was before

    served.until("user/", lambda page: ">8" in page)
    (served.folder / "hold").touch()
    served.save("papers/helper.py", "is explained", "is told")
    while_held(served.folder, burst)
    wait_for(lambda: served.count("Reloading browsers") > 1)
    served.until("user/", lambda page: "Edit 4." in page)
    served.save("papers/helper.py", "is told", "is said")
    served.until("helper/", lambda page: "is said" in page)
    assert served.count("Detected file changes") == 3  # held, for the burst, and the last


def test_the_reader_stays_where_she_is(served: Served, browser: Browser) -> None:
    """The page that is open shows what was saved, at the same height."""
    served.until("user/", lambda page: ">8" in page)
    page = browser.new_page()
    page.goto(served.address + "user/")
    page.evaluate("window.scrollTo(0, 3000)")
    page.wait_for_function("window.scrollY == 3000")
    served.save("papers/user.py", "Paragraph 100.", "Paragraph one hundred.")
    page.wait_for_function("document.body.innerText.includes('Paragraph one hundred.')")
    page.wait_for_function("Math.abs(window.scrollY - 3000) < 5")
    page.close()
