"""What the tools share: one virtual environment, one set of variables, one machine."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import venv
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PEERS = Path(__file__).with_name("peers.txt")
FOLDER = ROOT / ".cache" / "benchmarks"
# What decides which packages the environment holds.
_PINS = (PEERS, ROOT / "requirements.txt", ROOT / "pyproject.toml")


class Environment:
    """The programs that are compared, in `venv` below a folder that also takes what they build."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.venv = self.folder / "venv"
        self.work = self.folder / "work"
        self._stamp = self.venv / "pins.sha256"

    def claim(self) -> bool:
        """Take the folder for this process until it ends; False if another one has it."""
        if sys.platform == "win32":
            return True
        import fcntl

        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = (self.folder / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    @property
    def is_ready(self) -> bool:
        """Whether it holds what the pins ask for."""
        return self._stamp.is_file() and self._stamp.read_text() == _digest()

    def program(self, name: str) -> str:
        """The path of a program of the environment."""
        return str(self.venv / ("Scripts" if os.name == "nt" else "bin") / name)

    def setup(self) -> None:
        """Make the environment, unless it is there.

        Raises:
            subprocess.CalledProcessError: pip failed.
        """
        if self.is_ready:
            print(f"The tools are in {self.venv}")
            return
        print(f"Installing the tools into {self.venv}: some minutes the first time.", flush=True)
        venv.create(self.venv, clear=True, symlinks=os.name != "nt", with_pip=True)
        # In one call, so that the pins hold for what the tools ask for as well, torch above all.
        pip = [self.program("python"), "-m", "pip", "install", "--quiet"]
        pip += ["--disable-pip-version-check", "--requirement", str(PEERS), "--editable", str(ROOT)]
        subprocess.run(pip, check=True)
        self._stamp.write_text(_digest())

    def variables(self, site: Path) -> dict[str, str]:
        """The environment variables of a build: the same for every tool, nothing of the user's.

        Args:
            site: The site's folder; `lib` in it is on the import path.
        """
        caches = self.work / "user"
        path = os.pathsep.join((str(Path(self.program("x")).parent), os.environ.get("PATH", "")))
        made = {
            "PATH": path,
            "PYTHONPATH": str(site / "lib"),
            "XDG_CACHE_HOME": str(caches / "cache"),
            "IPYTHONDIR": str(caches / "ipython"),
            # Two threads that share a busy core wait for each other: the peers gain most by this.
            "OMP_NUM_THREADS": "1",
            "NO_MKDOCS_2_WARNING": "1",
        }
        kept = ("HOME", "LANG", "LC_ALL", "TMPDIR", "SYSTEMROOT")
        return {name: os.environ[name] for name in kept if name in os.environ} | made

    def versions(self, distributions: Iterable[str]) -> dict[str, str]:
        """The installed versions of some distributions, and Python's."""
        names = sorted(set(distributions), key=str.lower)
        code = "import importlib.metadata as m, json, sys\n"
        code += "print(json.dumps({n: m.version(n) for n in sys.argv[1:]}))"
        command = [self.program("python"), "-c", code, *names]
        found = subprocess.run(command, check=True, capture_output=True, text=True)
        return {"Python": platform.python_version(), **json.loads(found.stdout)}


def _digest() -> str:
    state = hashlib.sha256(f"{sys.version} {ROOT}".encode())
    for path in _PINS:
        state.update(path.read_bytes())
    return state.hexdigest()


def machine() -> dict[str, str | int | float]:
    """What a reader must know of the machine, and nothing that names it."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    facts: dict[str, str | int | float] = {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": platform.processor() or "unknown",
        "cores": cores or 1,
    }
    with suppress(OSError):
        found = re.search(r"(?m)^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text())
        facts["cpu"] = found[1].strip() if found else facts["cpu"]
        memory = re.search(r"MemTotal:\s*(\d+) kB", Path("/proc/meminfo").read_text())
        if memory:
            facts["memory_gb"] = round(int(memory[1]) / 2**20, 1)
    return facts


def commit() -> str:
    """The commit that is measured; empty outside of a checkout."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"]
    with suppress(OSError):
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    return ""
