"""Papers are importable (`from attention.external_attention import …`); torch uses one thread."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from marginalia.store import Store

sys.path.insert(0, str(Path(__file__).parents[1] / "papers"))
torch.set_num_threads(1)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder for modules."""
    folder = (tmp_path / "papers").resolve()
    folder.mkdir()
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store(tmp_path / "store")


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """A pipe: who opens it to read waits for somebody who opens it to write, and vice versa."""
    path = tmp_path / "gate"
    os.mkfifo(path)
    return path


@pytest.fixture(autouse=True)
def _no_figure_stays_open() -> Iterator[None]:
    """A figure that one test leaves open would be an output of another one's demo."""
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")
