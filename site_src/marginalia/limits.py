"""What one demo may use, and what is said of a demo that wants more."""

from __future__ import annotations

import dis
import errno
import math
import re
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import ClassVar, NamedTuple

MB = 2**20  # bytes
SLACK = 512  # MB that a process may reserve and not use, for the stacks of threads say
GPU_SLACK = 8192  # MB, where a driver reserves some as well
MOST_CPU = 2**32  # seconds of processor time: the system's own numbers end not far from here
CPU_SLACK = 2  # seconds for whoever watches all of a demo's processes to come first

_KINDS = {
    "timeout": "TimeLimit",
    "cpu_time": "CpuLimit",
    "memory": "MemoryLimit",
    "output": "OutputLimit",
    "processes": "ProcessLimit",
}
_USED = {
    "timeout": "it was still running after {1} s, its limit",
    "cpu_time": "it used {0} s of processor time, and its limit is {1} s",
    "memory": "it used {0} MB, and its limit is {1} MB",
    "output": "it put out {0} MB, and its limit is {1} MB",
    "processes": "it had {0} processes at once, and {1} is the most",
}


class Reason(NamedTuple):
    """Why a demo was ended, in place of an exception's type and message."""

    type: str
    message: str


class LimitError(BaseException):
    """Ends a demo from inside; no `except Exception` of a demo may keep it."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Limits:
    """What one demo, with all threads and processes that it starts, may use.

    The names of the fields are those of the plugin's options and of the front matter's keys.

    Attributes:
        timeout: Seconds of wall-clock time.
        cpu_time: Seconds of processor time.
        memory: MB of memory; what processes share counts once between them.
        output: MB that are printed, MB of files that are written, MB of what is kept for the page.
        processes: How many at once; the same for all demos.
    """

    timeout: float = 60.0
    cpu_time: float = 120.0
    memory: float = 4096.0
    output: float = 64.0
    processes: ClassVar[int] = 256

    def with_those_of(self, page: Mapping[str, float]) -> Limits:
        """These limits, with a page's own in their place."""
        return replace(self, **page)

    def reason(self, name: str, used: float) -> Reason:
        """Why a demo was ended that used this much.

        Args:
            name: The limit.
            used: In the unit of the limit.
        """
        says = _USED[name].format(_number(used), _number(getattr(self, name)))
        return Reason(_KINDS[name], f"{says} {_where(name)}".rstrip())

    def behind(self, error: BaseException) -> Reason | None:
        """The limit that an exception is about, if it is about one.

        Args:
            error: What a demo ended with.
        """
        if isinstance(error, LimitError):
            return error.reason
        if isinstance(error, OSError) and error.errno == errno.EFBIG:
            return self.reason("output", self._largest_file())
        if not (_is_restricted() and _lacks_memory(error)):
            return None
        limit = f"its limit, {_number(self.memory)} MB {_where('memory')}"
        says = f"it used {_number(peak_memory())} MB and wanted more than was left of {limit}"
        return Reason(_KINDS["memory"], f"{says}: {error}".removesuffix(": "))

    def restrict(self) -> None:
        """Let the system refuse this process what is far over the limits.

        It does so for each process alone, at once and without a word: `usage` sees them all
        together. Where the system has no such thing, nothing happens.
        """
        if sys.platform == "win32":
            return
        import resource

        drivers = ("nvidiactl", "kfd", "dxg")
        has_gpu = any(Path("/dev", driver).exists() for driver in drivers)
        bounds = {
            resource.RLIMIT_CORE: 0.0,
            resource.RLIMIT_CPU: min(time.process_time() + self.cpu_time + CPU_SLACK, MOST_CPU),
            resource.RLIMIT_DATA: _reserved()
            + (self.memory + (GPU_SLACK if has_gpu else SLACK)) * MB,
            resource.RLIMIT_FSIZE: self._largest_file() * MB,
        }
        for kind, bound in bounds.items():
            _, most = resource.getrlimit(kind)
            known = most != resource.RLIM_INFINITY
            resource.setrlimit(kind, (math.ceil(min(bound, most if known else 2**62)), most))

    def _largest_file(self) -> float:
        """In MB; memory that processes share is a file, too."""
        return self.memory + self.output


DEFAULTS = Limits()
NAMES = tuple(field.name for field in fields(Limits))


def _number(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _where(name: str) -> str:
    return f"({name}: in the front matter, or in mkdocs.yml)" if name in NAMES else ""


def _is_restricted() -> bool:
    """Whether the system refuses this process memory that it has."""
    if sys.platform == "win32":
        return False
    import resource

    return resource.getrlimit(resource.RLIMIT_DATA)[0] != resource.RLIM_INFINITY


def peak_memory() -> float:
    """The most MB that this process had at a time; 0 where the system does not say."""
    if sys.platform == "win32":
        return 0.0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (MB if sys.platform == "darwin" else 1024)


def _reserved() -> int:
    """The bytes that `RLIMIT_DATA` counts in this process already."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    found = re.search(r"^VmData:\s*(\d+) kB", status, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def _lacks_memory(error: BaseException) -> bool:
    """Whether an exception is the system's refusal of memory, and not raised by Python code."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is not None:
        code = trace.tb_frame.f_code.co_code
        if dis.opname[code[trace.tb_lasti]] == "RAISE_VARARGS":
            return False
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    torch_says = re.search(r"can't allocate memory|bad_alloc", str(error))
    return isinstance(error, MemoryError) or bool(torch_says)
