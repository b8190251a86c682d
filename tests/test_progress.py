"""What a build says while it runs and afterwards: on a terminal, in a log, to a machine."""

from __future__ import annotations

import json
import logging
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from codecs import getincrementaldecoder
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from demos import HELLO, demo, wait_for, waiting_at, write
from marginalia import __version__
from marginalia.demo import Failure, Result
from marginalia.jobs import Job, Plan, Ran
from marginalia.progress import reporter
from marginalia.report import PageReport, Report
from marginalia.tally import Tally

SITE = "site_name: Test\nplugins:\n  - marginalia:\n      report: out/report.json\n"
FAILS = demo("x = 1\nassert x == 2")
SLEEPS = demo("import time\ntime.sleep(1000)")

# A builder whose log is that of MkDocs; `long` is what it takes for a long demo, in seconds.
BUILDER = """
import logging, sys
from pathlib import Path
from marginalia import progress
from marginalia.limits import Limits
from marginalia.jobs import Job
from marginalia.runner import run_all
from marginalia.store import Store

root, serving, long = Path(sys.argv[1]), sys.argv[2] == "serve", float(sys.argv[3])
progress.LONG = progress.SLOW = long
progress.PAUSE = 0.01
log = logging.getLogger("mkdocs.plugins.test")
logging.basicConfig(level="INFO", format="%(levelname)s %(message)s")
pages = sorted(root.glob("*.py"))
jobs = [Job(page, root, device="cuda" if "cuda" in page.stem else "") for page in pages]
with progress.reporter(log, serving=serving) as reporter:
    def done(ran):
        log.info("page of %s", ran.job.path.stem)
    store = Store(root.parent / "store")
    run_all(jobs, store=store, workers=2, progress=reporter, done=done)
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "papers"
    folder.mkdir()
    (tmp_path / "builder.py").write_text(BUILDER)
    (tmp_path / "mkdocs.yml").write_text(SITE)
    (tmp_path / "docs").mkdir()
    return folder


def command(root: Path, how: str = "build", long: float = 30) -> list[str]:
    return [sys.executable, str(root.parent / "builder.py"), str(root), how, str(long)]


def log_of(root: Path, how: str = "build", long: float = 30, **environment: str) -> list[str]:
    """What the build says of demos where standard error is no terminal."""
    done = subprocess.run(
        command(root, how, long),
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **environment},
    )
    assert done.stdout == ""
    return [line for line in done.stderr.splitlines() if not line.startswith("INFO page of")]


# In a log


def test_a_log_has_a_line_for_each_demo_that_ran(root: Path) -> None:
    write(root, a=HELLO, b=HELLO)
    log_of(root)
    write(root, c=FAILS, d=HELLO)
    first, *ran, last = log_of(root)
    assert first == "INFO 2 of 4 demos are in the store"
    assert [line[:10] for line in ran] == ["INFO [3/4]", "INFO [4/4]"]
    assert re.search(r"\] [cd].py (failed|ran) in \d+\.\d s \(1 left, about \d+ s\)$", ran[0])
    assert re.search(r"\] [cd].py (failed|ran) in \d+\.\d s$", ran[1])
    assert re.fullmatch(
        r"INFO 4 demos: 1 ran, 2 from the store, 1 failed, in \d+\.\d s",
        last,
    )


def test_what_the_store_has_takes_one_line(root: Path) -> None:
    write(root, a=HELLO, b=HELLO)
    log_of(root)
    assert log_of(root) == ["INFO 2 demos: 2 from the store"]
    assert log_of(root, "serve") == []
    write(root, b=HELLO + "x = 1\n")
    assert log_of(root, "serve")[0] == "INFO 1 of 2 demos are in the store"


def test_a_demo_without_its_gpu_is_named(root: Path) -> None:
    write(root, a=HELLO, cuda=HELLO)
    lines = log_of(root, CUDA_VISIBLE_DEVICES="")
    assert lines[0] == "INFO [1/2] cuda.py skipped: it needs a GPU"
    assert lines[1].startswith("INFO [2/2] a.py ran")
    assert lines[2].startswith("INFO 2 demos: 1 ran, 1 skipped, in ")


def test_the_slowest_are_named_with_their_memory(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    for seconds, named in ((range(1, 4), (3, 2)), (range(9), (8, 7, 6, 5, 4))):
        rans = [ran(f"page{n}.py", n) for n in seconds]
        with reporter(logging.getLogger("mkdocs.plugins.test")) as told:
            told.planned(Plan([], {one.job: 1 for one in rans}, 2))
            for one in rans:
                told.finished(one)
        slowest = [line for line in caplog.messages if "slowest" in line]
        assert slowest == [f"slowest: page{n}.py, {n}.0 s, 7 MB" for n in named]
        caplog.clear()


def test_a_log_says_that_a_demo_is_still_running(root: Path, gate: Path) -> None:
    write(root, slow=demo(f"open({str(gate)!r}).read()"))
    with subprocess.Popen(command(root, long=0.2), stderr=subprocess.PIPE, text=True) as build:
        assert build.stderr is not None
        line = build.stderr.readline()
        with waiting_at(gate):
            pass
        build.communicate(timeout=60)
    assert re.fullmatch(r"INFO slow.py has been running for \d+ s; its limit is 60 s\n", line)


def test_forced_colours_make_no_terminal(root: Path) -> None:
    write(root, a=HELLO)
    lines = log_of(root, FORCE_COLOR="1", TTY_COMPATIBLE="1")
    assert lines[0].startswith("INFO [1/1] a.py ran")
    assert "\x1b" not in "".join(lines)


# On a terminal


class Terminal:
    """A terminal of 80 columns, and what has been written to it."""

    def __init__(self, master: int) -> None:
        self._master = master
        self._decode = getincrementaldecoder("utf-8")().decode
        self.text = ""

    def read(self) -> None:
        """Take what there is."""
        while select.select([self._master], [], [], 0)[0]:
            try:
                data = os.read(self._master, 65536)
            except OSError:  # the other end is closed
                return
            if not data:
                return
            self.text += self._decode(data)

    def shows(self, pattern: str) -> bool:
        """Whether something was shown, colours aside."""
        self.read()
        return re.search(pattern, re.sub(r"\x1b\[[\d;]*m", "", self.text)) is not None

    def press(self, key: str) -> None:
        os.write(self._master, key.encode())

    def screen(self) -> list[str]:
        """The lines as they stand in the end."""
        lines, row, column = [""], 0, 0
        for token in re.findall(r"\x1b\[[?\d;]*[A-Za-z]|[\r\n]|[^\x1b\r\n]+", self.text):
            if token == "\n":
                row += 1
                lines += [""] * (row + 1 - len(lines))
            elif token == "\r":
                column = 0
            elif token[0] != "\x1b":
                lines[row] = lines[row][:column].ljust(column) + token
                column += len(token)
            elif token[-1] == "A":
                row -= int(token[2:-1] or 1)
            elif token[-1] == "K":
                lines[row] = "" if token[2:-1] == "2" else lines[row][:column]
        return [line.rstrip() for line in lines if line.strip()]


@contextmanager
def on_a_terminal(command: list[str]) -> Iterator[tuple[Terminal, subprocess.Popen[bytes]]]:
    """Run a command on a terminal of its own."""
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"}
    take = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    with subprocess.Popen(
        [sys.executable, "-c", f"{take} os.execv(sys.argv[1], sys.argv[1:])", *command],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=environment,
        start_new_session=True,
    ) as process:
        os.close(slave)
        terminal = Terminal(master)
        try:
            yield terminal, process
        finally:
            process.kill()
    terminal.read()
    os.close(master)


def ended(terminal: Terminal, process: subprocess.Popen[bytes]) -> bool:
    """Whether a command has ended; what it writes meanwhile is read, for it would wait."""
    terminal.read()
    return process.poll() is not None


def test_a_terminal_has_a_bar_while_demos_run(root: Path, gate: Path) -> None:
    write(root, a=HELLO, b=HELLO)
    log_of(root)
    write(root, c=FAILS, waits=demo(f"open({str(gate)!r}).read()"))
    with on_a_terminal(command(root)) as (terminal, build):
        facts = r"3/4 2 from the store, 1 failed, about \d+ s left *\r?\n  waits \d+ s"
        assert wait_for(lambda: terminal.shows(rf"Demos [━╸╺ ]+ {facts}")), terminal.text
        with waiting_at(gate):
            pass
        assert wait_for(lambda: ended(terminal, build))
    screen = terminal.screen()
    assert sorted(screen[:3]) == [f"INFO page of {name}" for name in ("a", "b", "c")]
    assert screen[3].startswith("INFO 4 demos: 1 ran, 2 from the store, 1 failed, in ")
    assert screen[4:] == ["INFO page of waits"]
    assert terminal.text.rindex("\x1b[?25h") > terminal.text.rindex("\x1b[?25l")  # the cursor


def test_a_terminal_has_no_bar_when_nothing_runs(root: Path) -> None:
    write(root, a=HELLO)
    log_of(root)
    with on_a_terminal(command(root)) as (terminal, build):
        assert wait_for(lambda: ended(terminal, build))
    assert terminal.text == "INFO 1 demo: 1 from the store\r\nINFO page of a\r\n"


@pytest.mark.parametrize("key", ["\x03", ""])
def test_an_interrupted_build_leaves_a_clean_terminal(root: Path, key: str) -> None:
    write(root, sleeps=SLEEPS)
    with on_a_terminal(command(root)) as (terminal, build):
        assert wait_for(lambda: terminal.shows(r"sleeps \d+ s")), terminal.text
        if key:
            terminal.press(key)
        else:
            build.send_signal(signal.SIGTERM)
        assert wait_for(lambda: ended(terminal, build))
    assert build.returncode != 0
    screen = terminal.screen()
    assert not [line for line in screen if "Demos" in line or "sleeps" in line], screen
    assert terminal.text.rindex("\x1b[?25h") > terminal.text.rindex("\x1b[?25l")  # the cursor


# How long it takes


def ran(name: str, seconds: float) -> Ran:
    return Ran(Job(Path(name), Path()), Result(True, seconds=seconds, peak_mb=7), "ran")


def jobs(**seconds: float) -> dict[Job, float]:
    return {Job(Path(name), Path()): value for name, value in seconds.items()}


def test_the_time_left_is_that_of_last_time_between_the_workers() -> None:
    inf = float("inf")
    assert Tally(Plan([], jobs(a=4, b=3, c=3), 2)).seconds_left() == 5
    assert Tally(Plan([], jobs(a=9, b=1), 2)).seconds_left() == 9  # one demo has one worker
    assert Tally(Plan([ran("x", 6)], jobs(a=2, b=inf), 1)).seconds_left() == 6
    assert Tally(Plan([], jobs(a=inf), 1)).seconds_left() is None
    assert Tally(Plan([], jobs(a=2), None)).seconds_left() is None  # it is the executor's


def test_what_runs_counts_for_what_is_left_of_it() -> None:
    tally = Tally(Plan([], jobs(a=1000, b=0.001), 1))
    a, b = jobs(a=0, b=0)
    tally.start(a)
    tally.start(b)
    time.sleep(0.01)
    assert 900 < (tally.seconds_left() or 0) < 1000
    tally.finish(ran("a", 1000))
    assert tally.seconds_left() == 0
    assert [job for job, _ in tally.running()] == [b]


# For machines


PAGE_KEYS = {"source", "url", "status", "seconds", "peak_mb", "device", "claims", "failures"}
KEYS = {"version", "folder", "seconds", "workers", "totals", "pages"}


def checked(report: dict[str, Any]) -> dict[str, Any]:
    """Its pages by source, once it is seen to have the form of a report."""
    assert set(report) == KEYS
    assert report["version"] == __version__
    assert list(report["totals"]) == ["ran", "cached", "failed", "stored", "skipped", "static"]
    assert sum(report["totals"].values()) == len(report["pages"])
    for page in report["pages"]:
        assert set(page) == PAGE_KEYS
        assert bool(page["failures"]) == (page["status"] == "failed")
    return {page["source"]: page for page in report["pages"]}


def mkdocs(root: Path, *options: str) -> subprocess.CompletedProcess[str]:
    arguments = [sys.executable, "-m", "mkdocs", "build", *options]
    return subprocess.run(arguments, cwd=root.parent, capture_output=True, text=True, check=False)


def marginalia(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "marginalia", *arguments]
    return subprocess.run(line, cwd=root.parent, capture_output=True, text=True, check=False)


def test_a_build_writes_its_report_also_when_it_fails(root: Path) -> None:
    claims = "x = 1\nassert x == 1\nassert x < 2"
    write(root, good=demo(claims), bad=FAILS, broken="x = = 1\n", plain="x = 1\n")
    build = mkdocs(root)
    assert build.returncode == 1
    report = json.loads((root.parent / "out" / "report.json").read_text())
    pages = checked(report)
    assert {name: page["status"] for name, page in pages.items()} == {
        "bad.py": "failed",
        "broken.py": "failed",
        "good.py": "ran",
        "plain.py": "static",
    }
    assert (report["folder"], report["totals"]["failed"]) == ("papers", 2)
    good = pages["good.py"]
    assert (good["url"], good["device"], good["claims"]) == ("good/", "cpu", 2)
    assert good["peak_mb"] > 1
    (failure,) = pages["bad.py"]["failures"]
    assert (failure["type"], failure["line"]) == ("AssertionError", 3)
    assert pages["broken.py"]["failures"][0]["line"] == 1
    (root / "broken.py").unlink()
    write(root, bad=HELLO)
    assert mkdocs(root, "--strict").returncode == 0
    again = checked(json.loads((root.parent / "out" / "report.json").read_text()))
    assert {name: page["status"] for name, page in again.items()} == {
        "bad.py": "ran",
        "good.py": "cached",
        "plain.py": "static",
    }
    assert again["good.py"]["seconds"] == good["seconds"]


def test_no_report_of_an_earlier_build_is_left(root: Path) -> None:
    write(root, good=HELLO)
    (root.parent / "out").mkdir()
    (root.parent / "out" / "report.json").write_text("{}")
    (root / "topics.yaml").write_text("- [")
    build = mkdocs(root)
    assert build.returncode == 1, build.stderr
    assert not (root.parent / "out" / "report.json").exists()


def test_a_report_is_text_whatever_is_said_in_it(tmp_path: Path) -> None:
    failure = Failure("Error", "half \ud800, two halves \ud83d\ude00", 1)
    page = PageReport("no\udcfftext.py", "no-text/", "failed", failures=(failure,))
    Report(pages=[page]).write(tmp_path / "report.json")
    found = checked(json.loads((tmp_path / "report.json").read_bytes()))
    message = found["no\ufffdtext.py"]["failures"][0]["message"]
    assert message == "half \ufffd, two halves \N{GRINNING FACE}"


@pytest.mark.parametrize("place", ["taken", "mkdocs.yml/report.json"])
def test_a_report_that_cannot_be_written_is_the_user_s_to_mend(root: Path, place: str) -> None:
    write(root, good=HELLO)
    (root.parent / "taken").mkdir()
    (root.parent / "mkdocs.yml").write_text(SITE.replace("out/report.json", place))
    build = mkdocs(root)
    assert build.returncode == 1
    assert f"{place}` cannot be written: " in build.stderr
    assert "Traceback" not in build.stderr


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_file_name_need_not_be_text(root: Path, options: list[str]) -> None:
    path = Path(os.fsdecode(os.fsencode(root) + b"/no\xfftext.py"))
    path.write_text("x = = 1\n")
    line = [sys.executable, "-m", "marginalia", "check", "papers", *options]
    variables = os.environ | {"PYTHONIOENCODING": "utf-8:strict"}
    check = subprocess.run(line, cwd=root.parent, env=variables, capture_output=True, check=False)
    assert check.returncode == 1
    assert b"Traceback" not in check.stderr
    if options:
        assert list(checked(json.loads(check.stdout))) == ["papers/no\ufffdtext.py"]
    else:
        assert "papers/no\\udcfftext.py" in check.stdout.decode()


def test_failures_end_the_log_as_an_editor_finds_them(root: Path) -> None:
    write(root, bad=FAILS, broken="x = = 1\n")
    lines = mkdocs(root).stderr.splitlines()
    errors = [line for line in lines if line.startswith("ERROR")]
    assert lines[-3:-1] == errors or lines[-2:] == errors
    assert re.search(r" papers/bad\.py:3: AssertionError: .*x == 2", errors[0])
    assert errors[1].endswith(" papers/broken.py:1: SourceError: invalid syntax")


def test_commands_print_the_same_form(root: Path) -> None:
    write(root, good=demo("assert 1 + 1 == 2"), bad=FAILS, broken="x = = 1\n")
    built = checked(json.loads(marginalia(root, "build", "papers", "-o", "site", "--json").stdout))
    check = marginalia(root, "check", "papers", "--json")
    assert check.returncode == 1
    found = checked(json.loads(check.stdout))
    for name, page in built.items():
        same = found[f"papers/{name}"]
        for key in ("url", "status", "device", "claims", "failures"):
            assert page[key] == same[key]
    run = json.loads(marginalia(root, "run", "papers/bad.py", "--json").stdout)
    assert set(run) > PAGE_KEYS | {"version", "outputs", "shapes", "error"}
    assert run["failures"] == built["bad.py"]["failures"]
    assert (run["source"], run["status"]) == ("papers/bad.py", "failed")
