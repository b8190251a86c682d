"""A parcel holds all that a demo needs, and says nothing of where it was unpacked."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from marginalia.jobs import Job, key
from marginalia.keys import inputs
from marginalia.parcel import Parcel, at_home, pack, unpacked
from marginalia.runner import OtherMachineError, run_all, run_parcel
from marginalia.store import Store


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


PROJECT = {
    "papers/topic/__init__.py": "",
    "papers/topic/page.py": "import helper\n\n\ndef demo():\n    print(helper.x, __file__)\n",
    "papers/helper.py": "x = 'well'\n",
    "papers/unrelated.py": "",
    "data/a.csv": "1",
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    write(tmp_path, PROJECT)
    return tmp_path


def packed(root: Path, page: str = "topic/page.py", data: tuple[Path, ...] = ()) -> Parcel:
    return pack(root / page, root, inputs(root / page, root, {}, data=data), root.parent, "")


def place(path: Path) -> str:
    """A path as a parcel has it."""
    return path.relative_to("/").as_posix()


def test_it_holds_what_the_page_reaches(project: Path) -> None:
    root = project / "papers"
    reached = {place(root / name) for name in ("topic/__init__.py", "topic/page.py", "helper.py")}
    parcel = packed(root)
    assert (parcel.root, parcel.page) == (place(root), place(root / "topic/page.py"))
    assert parcel.files.keys() == reached
    beside = packed(root, data=(root / "topic" / "../../data/a.csv",))
    data = place(project / "data/a.csv")
    assert beside.files.keys() == {data} | reached
    assert beside.files[data] == b"1"
    assert not beside.libraries


def listing(folder: Path) -> set[tuple[str, bool]]:
    return {(path.name, path.is_dir()) for path in folder.iterdir()}


def test_it_lies_elsewhere_as_it_lies_at_home(project: Path) -> None:
    (project / "data" / "tool.sh").write_text("#!/bin/sh\n")
    (project / "data" / "tool.sh").chmod(0o755)
    data = (project / "data/a.csv", project / "data/tool.sh")
    parcel = packed(project / "papers", data=data)
    with unpacked(parcel) as folder:
        there = folder / place(project)
        helper = there / "papers/helper.py"
        assert helper.read_text() == PROJECT["papers/helper.py"]
        assert os.access(there / "data/tool.sh", os.X_OK)
        assert not os.access(helper, os.X_OK)
        for name in (".", "papers", "papers/topic", "data"):
            assert listing(there / name) == listing(project / name)
    assert not folder.exists()


def test_a_result_comes_home(project: Path) -> None:
    parcel = packed(project / "papers")
    result = {
        "outputs": [{"data": {"text/plain": f"in /tmp/elsewhere{project}/papers/helper.py"}}],
        "dependencies": {"helper.py": "0"},
        "read": ["helper.py"],
        "ok": True,
    }
    home = at_home(parcel, Path("/tmp/elsewhere"), result)
    text = f"in {project}/papers/helper.py"
    assert home == result | {"outputs": [{"data": {"text/plain": text}}]}


# What only the machine has that packed it

READS = {
    "lists its own folder": ("sorted(path.name for path in here.iterdir())", []),
    "looks for a file": ("(here / 'secret.txt').exists()", []),
    "says where it is": ("here.parents[1].name, __file__", []),
    "reads a declared file": ("(here / '../../data/a.csv').read_text()", []),
    "lists a declared folder": ("list((here / '../../data').glob('*.csv'))", []),
    "reads a file": ("(here / 'secret.txt').read_text()", ["papers/topic/secret.txt"]),
    "lists a folder": ("list((here / 'images').glob('*.txt'))", ["papers/topic/images/*"]),
    "looks into a folder": ("list((here / '../../other').glob('*'))", ["other/*"]),
    "misses a file": ("open(here / 'images/one.txt')", ["papers/topic/images/one.txt"]),
    "imports by a computed name": (
        "importlib.import_module('un' + 'related').y",
        ["papers/unrelated.py"],
    ),
}


@pytest.mark.parametrize("name", READS)
def test_a_demo_that_needs_what_only_this_machine_has(project: Path, name: str) -> None:
    code, needs = READS[name]
    root = project / "papers"
    write(
        project,
        {
            "papers/topic/secret.txt": "secret",
            "papers/topic/images/one.txt": "one",
            "papers/unrelated.py": "y = 1\n",
            "other/x.txt": "x",
            "papers/topic/page.py": "import importlib\nfrom pathlib import Path\n\n\n"
            f"def demo():\n    here = Path(__file__).parent\n    print({code})\n",
        },
    )
    job = Job(root / "topic/page.py", root, data=(project / "data/a.csv",))
    store = Store(project / "store")
    with ThreadPoolExecutor(1) as threads:
        (there,) = run_all([job], store=store, workers=1, executor=threads)
        assert (there.status, store.get(key(job)) is None) == (
            ("failed", True) if needs else ("ran", False)
        )
    if needs:
        assert there.result.error is not None
        assert [need for need in needs if f"`{project / need}`" in there.result.error.message]
        assert "name it in `data:`" in there.result.error.message
    else:
        (here,) = run_all([job], store=Store(project / "own"), workers=1)
        assert here.status == "ran"
        assert there.result.outputs == here.result.outputs


def test_paths_may_be_relative(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project / "data")
    root = Path("../papers")
    job = Job(root / "topic/page.py", root)
    with ThreadPoolExecutor(1) as threads:
        store = Store(project / "store")
        (ran,) = run_all([job], store=store, workers=1, executor=threads)
    assert ran.result.outputs[0].data["text/plain"].split() == [
        "well",
        str(project / "papers/topic/page.py"),
    ]
    assert set(ran.result.dependencies) == {"helper.py", "topic/__init__.py"}


def test_a_machine_with_other_versions_refuses_it(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = project / "papers"
    parcel = packed(root)
    monkeypatch.setattr("platform.python_version", lambda: "4.0.0")
    with pytest.raises(OtherMachineError, match=r"has CPython 4\.0\.0 where CPython 3"):
        run_parcel(Job(root / "topic/page.py", root), parcel)
