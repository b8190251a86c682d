"""A server of demos that outlives its builder: who meets it, and when it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from demos import alive, demo, wait_for, write
from marginalia import isolation

pytestmark = pytest.mark.skipif(not isolation.FORKS, reason="demos are not forked here")

# A guard is the demo's parent, and the server that of the guard.
SERVER = """
import os
print(open(f"/proc/{os.getppid()}/stat").read().rpartition(")")[2].split()[1])
"""


class Builders:
    """Processes that each run a page; they meet in a temporary folder of their own."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.folder = folder
        self._root = root
        self._servers: set[int] = set()

    def run(self, code: str = SERVER, *, standby: float = 60, **variables: str) -> str:
        """What the code prints as a demo."""
        write(self._root, page=demo(code))
        command = [sys.executable, "-m", "marginalia", "run", "page.py", "--standby", str(standby)]
        done = subprocess.run(
            command,
            cwd=self._root,
            env={**os.environ, "TMPDIR": str(self.folder), **variables},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout.rpartition("ran in")[0].strip()

    def server(self, *, standby: float = 60, **variables: str) -> int:
        """The process that a demo was forked from."""
        found = int(self.run(standby=standby, **variables))
        self._servers.add(found)
        return found

    def end(self) -> None:
        """Kill what still stands by."""
        for server in filter(alive, self._servers):
            os.kill(server, signal.SIGKILL)


@pytest.fixture
def builders(root: Path) -> Iterator[Builders]:
    with tempfile.TemporaryDirectory() as folder:  # its name is short: a socket's must be
        found = Builders(root, Path(folder))
        yield found
        found.end()


def test_it_serves_one_builder_after_another(builders: Builders) -> None:
    first = builders.server()
    assert alive(first)
    assert builders.server() == first
    assert builders.server(SOURCE_DATE_EPOCH="0") == first


def test_it_ends_when_nobody_comes(builders: Builders) -> None:
    server = builders.server(standby=0.2)
    assert wait_for(lambda: not alive(server))
    assert builders.server(standby=60) != server


def test_without_it_nothing_stays(builders: Builders) -> None:
    server = builders.server(standby=0)
    assert wait_for(lambda: not alive(server))
    assert [*builders.folder.glob("marginalia*")] == []


def test_one_that_was_started_otherwise_is_no_use(builders: Builders) -> None:
    """What is imported may depend on the environment."""
    assert builders.server() != builders.server(TORCH_SHOW_CPP_STACKTRACES="1")


def test_a_demo_has_the_environment_of_its_own_builder(builders: Builders) -> None:
    code = "import os\nprint(os.environ['SOURCE_DATE_EPOCH'])"
    assert [builders.run(code, SOURCE_DATE_EPOCH=day) for day in ("0", "1")] == ["0", "1"]


def test_one_that_is_gone_is_replaced(builders: Builders) -> None:
    server = builders.server()
    os.kill(server, signal.SIGKILL)
    assert wait_for(lambda: not alive(server))
    assert builders.server() != server


def test_a_folder_of_somebody_else_is_not_used(builders: Builders) -> None:
    """Who can put a socket there could say what a demo showed."""
    (builders.folder / f"marginalia.{os.getuid()}").mkdir(mode=0o777)
    (builders.folder / f"marginalia.{os.getuid()}").chmod(0o777)
    server = builders.server()
    assert wait_for(lambda: not alive(server))


def test_a_demo_is_no_builder(builders: Builders) -> None:
    """It would have demos without its own limits."""
    code = f"""
    import glob, socket
    [door] = glob.glob("{builders.folder}/marginalia.*/*")
    line = socket.socket(socket.AF_UNIX)
    line.connect(door)
    print(line.recv(1))
    """
    assert builders.run(code) == "b''"
