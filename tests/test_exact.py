"""A corpus: exactly what changed runs again, and no way to end a build loses or spoils anything."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from textwrap import dedent

import psutil
import pytest
from demos import alive, wait_for
from marginalia.assemble import Site, assemble
from marginalia.jobs import Job
from marginalia.options import Options
from marginalia.runner import run_all
from marginalia.store import Store

# Forty scripts


WAYS = {
    "import lib.helper": "lib.helper.VALUE",
    "from lib import helper": "helper.VALUE",
    "from lib.helper import VALUE": "VALUE",
    "from lib.middle import VALUE": "VALUE",
    "import lib.far": "lib.far.middle.VALUE",
    "from . import near": "near.VALUE",
    "from .near import VALUE": "VALUE",
    "import lib.far as f": "f.middle.VALUE",
    "import lib.other": "lib.other.VALUE",
    "import math": "math.pi",
}
REACHING = [way for way in WAYS if way not in ("import lib.other", "import math")]

LIBRARY = {
    "lib/helper.py": "VALUE = 'first value'\n",
    "lib/middle.py": "from lib.helper import VALUE\n",
    "lib/far.py": "from . import middle\n",
    "lib/other.py": "VALUE = 'other value'\n",
    "pages/near.py": "from lib.middle import VALUE\n",
}


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text).lstrip("\n"), encoding="utf-8")


def corpus(papers: Path) -> dict[str, str]:
    """Write forty scripts, four for each way to reach a helper or not; the way, by script."""
    write(papers, LIBRARY)
    ways = {}
    for number in range(40):
        way = [*WAYS][number % len(WAYS)]
        ways[f"pages/page{number}.py"] = way
        script = f"# %% [markdown]\n# # Page {number}\n\n# %%\n{way}\n\n# %%\nprint({WAYS[way]})\n"
        write(papers, {f"pages/page{number}.py": script})
    return ways


def ran(site: Site) -> set[str]:
    """The modules that were run; every other one that can be was kept."""
    assert not site.report.failed
    return {page.source for page in site.report.pages if page.status == "ran"}


def showing(site: Site, text: str) -> set[str]:
    shown = {source for source, page in site.pages.items() if f">{text}" in page}
    return {source.replace(".md", ".py") for source in shown if source.startswith("pages/page")}


def test_exactly_what_reaches_a_change_runs_again(tmp_path: Path) -> None:
    papers = tmp_path / "papers"
    ways = corpus(papers)
    options = Options(papers, tmp_path / "cache", workers=2)
    reaching = {page for page, way in ways.items() if way in REACHING}
    first = assemble(options)
    assert ran(first) == set(ways)
    assert showing(first, "first value") == reaching
    assert ran(assemble(options)) == set()

    write(papers, {"lib/helper.py": "VALUE = 'second value'\n"})
    second = assemble(options)
    assert ran(second) == reaching
    assert showing(second, "second value") == reaching
    assert showing(second, "first value") == set()

    write(papers, {"lib/helper.py": '"""Prose."""\n\n# More.\nVALUE = \'second value\'\n'})
    prose = papers / "pages/page3.py"
    prose.write_text(prose.read_text().replace("# # Page 3", "# # Another title\n#\n# And more."))
    write(papers, {"lib/unrelated.py": "VALUE = 1\n", "pages/data.csv": "1\n"})
    third = assemble(options)
    assert ran(third) == set()
    assert "Another title" in third.pages["pages/page3.md"]
    assert showing(third, "second value") == reaching


# The same site, anywhere


def mkdocs(folder: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "mkdocs", "build", "-f", str(folder / "mkdocs.yml"), *arguments]


def project(folder: Path, workers: int) -> None:
    corpus(folder / "papers")
    for page in sorted((folder / "papers/pages").glob("page[1-3]?.py")):
        page.unlink()  # ten are enough
    figure = "import matplotlib.pyplot as plt\nimport torch\n\n\ndef demo():\n"
    figure += "    plt.plot(torch.rand(9))\n    plt.show()\n    print(set('abcdef'), hash('x'))\n"
    write(folder, {"papers/pages/figure.py": figure, "docs/index.md": "# Home\n"})
    plugins = f"plugins: [search, marginalia: {{workers: {workers}}}]"
    config = f"site_name: Mine\ntheme: {{name: material, font: false}}\n{plugins}\n"
    write(folder, {"mkdocs.yml": config})


def built(folder: Path) -> dict[str, bytes]:
    """Every file of the site, by path."""
    env = os.environ | {"SOURCE_DATE_EPOCH": "1750000000", "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(mkdocs(folder), env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    site = folder / "site"
    paths = [path for path in site.rglob("*") if path.is_file()]
    return {path.relative_to(site).as_posix(): path.read_bytes() for path in paths}


def different(one: dict[str, bytes], other: dict[str, bytes]) -> list[str]:
    assert one.keys() == other.keys()
    return [name for name in one if one[name] != other[name]]


def test_the_same_inputs_give_the_same_bytes(tmp_path: Path) -> None:
    one, two, three = tmp_path / "one", tmp_path / "deep" / "two", tmp_path / "three"
    project(one, workers=1)
    project(two, workers=2)
    project(three, workers=2)
    first, second = built(one), built(two)
    shutil.copytree(one / ".cache", three / ".cache")
    assert different(first, built(three)) == []

    def timeless(site: dict[str, bytes]) -> dict[str, bytes]:
        """Without how long a demo took, which is part of what it showed."""
        return {name: re.sub(rb"ran in [\d.]+ s", b"", data) for name, data in site.items()}

    assert different(timeless(first), timeless(second)) == []


# Builds that end early


BUILDER = """
import resource
import sys
from pathlib import Path
from marginalia.jobs import Job
from marginalia.runner import run_all
from marginalia.store import Store

root, folder = map(Path, sys.argv[1:3])


def say(ran):
    print(ran.job.path.stem, ran.status, flush=True)


def build(*names):
    pages = [root / f"{name}.py" for name in names] or sorted(root.glob("*.py"))
    jobs = [Job(page, root) for page in pages]
    run_all(jobs, store=Store(folder), workers=2, done=say)


"""


def builder(tmp_path: Path, root: Path, code: str = "build()") -> list[str]:
    (tmp_path / "builder.py").write_text(BUILDER + code)
    return [sys.executable, str(tmp_path / "builder.py"), str(root), str(tmp_path / "store")]


def statuses(root: Path, store: Path) -> dict[str, str]:
    jobs = [Job(page, root) for page in sorted(root.glob("*.py"))]
    return {one.job.path.stem: one.status for one in run_all(jobs, store=Store(store), workers=2)}


def whole(folder: Path) -> None:
    """See that everything in a store can be read."""
    entries = [path.stem for path in folder.glob("entries/*/*.json")]
    assert entries
    store = Store(folder)
    assert [key for key in entries if store.get(key) is None] == []


def kin(process: subprocess.Popen[str]) -> list[int]:
    return [child.pid for child in psutil.Process(process.pid).children(recursive=True)]


@pytest.mark.parametrize(
    ("end", "after"),
    [
        (signal.SIGINT, 2),
        (signal.SIGTERM, 1),
        (signal.SIGTERM, 4),
        (signal.SIGKILL, 1),
        (signal.SIGKILL, 5),
    ],
)
def test_a_build_that_is_ended_keeps_what_was_finished(
    tmp_path: Path, gate: Path, end: signal.Signals, after: int
) -> None:
    root = tmp_path / "papers"
    sleeps = [f"time.sleep(0.{n})" for n in range(6)]
    codes = [*sleeps, *2 * [f"open({str(gate)!r}).read()"]]  # the last two wait for ever
    pages = {f"page{n}.py": f"import time\n\n\ndef demo():\n    {c}\n" for n, c in enumerate(codes)}
    write(root, pages)
    with subprocess.Popen(builder(tmp_path, root), stdout=-1, stderr=-1, text=True) as process:
        assert process.stdout is not None
        finished = [process.stdout.readline().split()[0] for _ in range(after)]
        started = kin(process)
        process.send_signal(end)
        process.communicate(timeout=60)
    assert process.returncode != 0
    assert len(started) >= 1
    wait_for(lambda: not [one for one in started if alive(one)])
    gate.unlink()
    gate.touch()
    whole(tmp_path / "store")
    status = statuses(root, tmp_path / "store")
    assert {status[name] for name in finished} == {"cached"}
    assert len(finished) <= Counter(status.values())["cached"] < 8
    assert set(status.values()) == {"cached", "ran"}


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_a_site_s_build_that_is_ended_leaves_no_process(
    tmp_path: Path, end: signal.Signals
) -> None:
    write(
        tmp_path,
        {
            "papers/hangs.py": "import time\n\n\ndef demo():\n    time.sleep(50)\n",
            "papers/good.py": "def demo():\n    print('well')\n",
            "docs/index.md": "# Home\n",
            "mkdocs.yml": "site_name: Mine\ntheme: {name: material}\nplugins: [marginalia]\n",
        },
    )
    with subprocess.Popen(
        mkdocs(tmp_path), stdout=-1, stderr=-1, text=True, start_new_session=True
    ) as process:
        assert process.stderr is not None
        while "good.py ran" not in (line := process.stderr.readline()):
            assert line
        wait_for(lambda: len(kin(process)) >= 2)  # the server and a demo's guard at least
        started = kin(process)
        process.send_signal(end)
        process.communicate(timeout=60)
    assert process.returncode not in (0, -signal.SIGTERM)
    wait_for(lambda: not [one for one in started if alive(one)])
    assert not (tmp_path / "site").exists()
    write(tmp_path, {"papers/hangs.py": "def demo():\n    pass\n"})
    site = assemble(Options(tmp_path / "papers", tmp_path / ".cache/marginalia", workers=2))
    assert ran(site) == {"hangs.py"}


def test_a_full_disk_is_an_error_and_spoils_nothing(tmp_path: Path) -> None:
    root = tmp_path / "papers"
    write(
        root,
        {
            "a.py": "def demo():\n    print('small')\n",
            "b.py": "def demo():\n    print('x' * 100_000)\n",
        },
    )
    # A limit on the size of files stands for the disk: only of the builder, not of its demos.
    full = "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))"
    command = builder(tmp_path, root, f"build('a')\n{full}\nbuild()")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout.split() == ["a", "ran", "a", "cached"]
    last = done.stderr.strip().splitlines()[-1]
    assert "StoreError: the folder of finished runs, " in last
    assert "cannot be used" in last
    assert "File too large" in last
    whole(tmp_path / "store")
    assert not [*(tmp_path / "store").rglob("*.tmp")]
    assert statuses(root, tmp_path / "store") == {"a": "cached", "b": "ran"}
    assert statuses(root, tmp_path / "store") == {"a": "cached", "b": "cached"}


def test_two_builds_in_two_processes_share_a_store(tmp_path: Path) -> None:
    root = tmp_path / "papers"
    write(root, {f"page{n}.py": f"def demo():\n    print('{n}' * 9000)\n" for n in range(8)})
    command = builder(tmp_path, root)
    both = [subprocess.Popen(command, stdout=-1, stderr=-1, text=True) for _ in range(2)]
    for process in both:
        with process:
            said, complaints = process.communicate(timeout=120)
        assert process.returncode == 0, complaints
        assert len(said.splitlines()) == 8
        assert "failed" not in said
    whole(tmp_path / "store")
    assert set(statuses(root, tmp_path / "store").values()) == {"cached"}


def test_what_was_not_used_for_longest_goes_when_the_store_is_full(tmp_path: Path) -> None:
    papers = tmp_path / "papers"
    write(papers, {f"page{n}.py": f"def demo():\n    print('{n}' * 150_000)\n" for n in range(9)})
    ample = Options(papers, tmp_path / "cache", workers=2)
    small = Options(papers, tmp_path / "cache", workers=2, cache_size=1)
    assert len(ran(assemble(ample))) == 9
    assert len(ran(assemble(small))) == 0  # they were there, and then they went
    kept = 9 - len(ran(assemble(ample)))
    assert 1 <= kept * 150_000 <= 2**20
