"""What a page costs over its bare demo: the medians of 20 runs, on this machine.

    python benchmarks/overhead.py [PAGE ...]

The bare demo is a call of the page's `demo()` in a process that has everything imported and records
nothing; the page is `run_isolated`, with a process of its own, shapes, outputs and figures.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import io
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from marginalia import preload

os.environ.update(preload.ENVIRONMENT)  # before torch is imported

from marginalia.runner import Job, run_isolated

RUNS = 20

EMPTY = "def demo():\n    pass\n"
SMALL = """
import matplotlib.pyplot as plt
import torch
from torch import nn


def demo():
    torch.manual_seed(0)
    x = torch.randn(64, 32)
    y = x @ torch.randn(32, 1)
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        loss = (model(x) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    print(f"loss {losses[0]:.3f} to {losses[-1]:.3f}")
    assert losses[-1] < losses[0]
    _, ax = plt.subplots()
    ax.plot(losses)
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "empty.py").write_text(EMPTY)
        (folder / "small.py").write_text(SMALL)
        pages = [Path(page).resolve() for page in sys.argv[1:]]
        pages = pages or [folder / "empty.py", folder / "small.py"]
        run_isolated(Job(pages[0], pages[0].parent))  # starts the server
        print(f"{'page':24}{'bare':>10}{'isolated':>10}{'overhead':>10}   ms, median of {RUNS}")
        for page in pages:
            measure(page)


def measure(page: Path) -> None:
    job = Job(page, page.parent)
    result = run_isolated(job)
    if not result.ok:
        print(f"{page.name:24}failed: {result.error}")
        return
    isolated = median(lambda: run_isolated(job))
    bare = median(bare_demo(page))
    print(f"{page.name:24}{bare:10.1f}{isolated:10.1f}{isolated - bare:10.1f}")


def bare_demo(page: Path) -> Callable[[], object]:
    """The demo as a function of no arguments, warmed up."""
    preload.warm()
    sys.path.insert(0, str(page.parent))
    spec = importlib.util.spec_from_file_location(page.stem, page)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    from matplotlib import pyplot

    def call() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            module.demo()
        pyplot.close("all")

    call()
    return call


def median(function: Callable[[], object]) -> float:
    """Milliseconds of a call."""
    times = []
    for _ in range(RUNS):
        gc.collect()
        start = time.perf_counter()
        function()
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


if __name__ == "__main__":
    main()
