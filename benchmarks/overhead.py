"""What a page costs over its bare demo: the medians of 20 runs, on this machine.

    python benchmarks/overhead.py [PAGE ...]

bare      the page's `demo()` in a process that has everything imported, figures drawn as SVG
recorded  the page imported and its demo run by `marginalia.demo`, in such a process
isolated  the same through `run_isolated`, in a process of its own
"""

from __future__ import annotations

import contextlib
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

from marginalia.demo import run
from marginalia.jobs import Job
from marginalia.runner import run_isolated

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
        preload.warm()
        heads = "".join(f"{head:>10}" for head in ("bare", "recorded", "isolated", "overhead"))
        print(f"{'page':24}{heads}   ms, median of {RUNS}")
        for page in pages:
            measure(page)


def measure(page: Path) -> None:
    job = Job(page, page.parent)
    result = run_isolated(job)
    if not result.ok:
        print(f"{page.name:24}failed: {result.error}")
        return
    demo = bare_demo(page)
    rounds = [  # in turns, so that a busy machine is fair to all
        (
            timed(demo),
            in_a_fork(lambda: run(page, root=page.parent)),
            timed(lambda: run_isolated(job)),
        )
        for _ in range(RUNS)
    ]
    bare, recorded, isolated = map(statistics.median, zip(*rounds, strict=True))
    columns = "".join(f"{value:10.1f}" for value in (bare, recorded, isolated, isolated - bare))
    print(f"{page.name:24}{columns}")


def bare_demo(page: Path) -> Callable[[], object]:
    """The demo as a function of no arguments, warmed up."""
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
        for number in pyplot.get_fignums():
            pyplot.figure(number).savefig(io.BytesIO(), format="svg")
        pyplot.close("all")

    call()
    return call


def timed(function: Callable[[], object]) -> float:
    """Milliseconds of a call."""
    start = time.perf_counter()
    function()
    return 1000 * (time.perf_counter() - start)


def in_a_fork(function: Callable[[], object]) -> float:
    """Milliseconds of a call that can be made once in a process."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, str(timed(function)).encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    with os.fdopen(reader) as file:
        return float(file.read())


if __name__ == "__main__":
    main()
