"""Papers are importable (`from attention.external_attention import …`); torch uses one thread."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from marginalia.store import Store

sys.path.insert(0, str(Path(__file__).parents[1] / "papers"))
torch.set_num_threads(1)
settings.load_profile("ci")  # the same examples in each run, however long they take

# What is ignored here is ignored by the processes that tests start and interrupt: a shell starts
# jobs in the background like that, and `nohup`.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)


@pytest.fixture(scope="session", autouse=True)
def _cache_of_our_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The user's would be found by a later run, whose folders have the same names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


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
