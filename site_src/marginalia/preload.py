"""What a process has before a demo runs in it: the environment, and the slow imports done."""

from __future__ import annotations

import gc
import hashlib
import importlib
import io
import os
import stat
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from platformdirs import user_cache_path

# What must stand before the interpreter starts. Everything here shapes results: one thread for each
# library (a second one, made in a parent, hangs forked children), one order of sets, no display.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "NUMEXPR_NUM_THREADS": "1",
    "VECLIB_MAXIMUM_THREADS": "1",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # without it cuBLAS may differ from run to run
    "MPLBACKEND": "agg",
    "PYTHONHASHSEED": "0",
    "PYTHONIOENCODING": "utf-8",
    # Byte code is dated to the second: a helper that is edited twice in one would run as it was.
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # asking for a GPU must not make forked children lose it
    "COLUMNS": "88",  # the width that libraries print for
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",  # larger pages of memory: a fork has fewer to copy
}

# A builder's habits that would change what a demo shows; -O would even drop its asserts.
UNWANTED = ("PYTHONOPTIMIZE", "PYTHONWARNINGS", "PYTHONDEVMODE", "PYTHONINSPECT", "LINES")


# Libraries that many papers use, where they are installed.
COMMON = ("einops.layers.torch",)


def environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """The environment of a process that runs demos, from that of the builder."""
    kept = {name: value for name, value in inherited.items() if name not in UNWANTED}
    return kept | ENVIRONMENT | {"MPLCONFIGDIR": str(_fonts())}


def _fonts() -> Path:
    """Where Matplotlib keeps its list of fonts.

    It would do so where the user's settings are. Neither those nor a list that another installation
    left behind may change a figure. And if it cannot write there, it leaves a new folder each time.
    """
    installation = hashlib.sha256(sys.prefix.encode()).hexdigest()[:8]
    folder = user_cache_path("marginalia") / f"matplotlib-{installation}"
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    with suppress(OSError):
        return private_folder() / folder.name
    return folder


def private_folder() -> Path:
    """A folder of this user among the temporary ones, which stays.

    Raises:
        OSError: It cannot be made, or somebody else could put something there.
    """
    user = os.getuid() if sys.platform != "win32" else 0
    folder = Path(tempfile.gettempdir()) / f"marginalia.{user}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    owned = sys.platform == "win32" or (found.st_uid == user and not found.st_mode & 0o077)
    if not stat.S_ISDIR(found.st_mode) or not owned:
        raise PermissionError(f"others may write into {folder}")
    return folder


def warm() -> None:
    """Import what nearly every demo needs, so that a child forked from here has it.

    Imports nothing of the project and leaves CUDA alone; starts no thread.
    """
    gc.disable()  # a third of the time would go into looking at what all stays
    _import_all()
    gc.freeze()  # children would copy every page that the collector marks
    gc.enable()


def _import_all() -> None:
    import matplotlib
    import torch

    torch.set_num_threads(1)
    torch.optim.Adam(torch.nn.Linear(2, 2).parameters())  # loads torch._dynamo, which is slow
    matplotlib.use("agg")

    from matplotlib import pyplot

    figure, axes = pyplot.subplots()
    axes.plot([0, 1], label="fonts are found and kept")
    axes.legend()
    figure.savefig(io.BytesIO(), format="svg")
    pyplot.close(figure)

    import marginalia.demo  # noqa: F401  # the capture code, so that no child compiles it

    for name in COMMON:
        with suppress(ImportError):
            importlib.import_module(name)


def os_threads() -> int:
    """How many threads the operating system sees in this process; 1 where it does not say."""
    try:
        return len([*Path("/proc/self/task").iterdir()])
    except OSError:
        return 1
