"""A parcel holds all that a demo needs, and says nothing of where it was unpacked."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from marginalia.keys import inputs
from marginalia.parcel import Parcel, at_home, pack, unpacked
from marginalia.runner import Job, OtherMachineError, run_all, run_parcel
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
    return pack(root / page, root, inputs(root / page, root, {}, data=data))


def test_it_holds_what_the_page_reaches(project: Path) -> None:
    root = project / "papers"
    reached = {"topic/__init__.py", "topic/page.py", "helper.py"}
    parcel = packed(root)
    assert (parcel.home, parcel.root, parcel.page) == (str(root), ".", "topic/page.py")
    assert parcel.files.keys() == reached
    beside = packed(root, data=(root / "topic" / "../../data/a.csv",))
    assert (beside.home, beside.root, beside.page) == (
        str(project),
        "papers",
        "papers/topic/page.py",
    )
    assert beside.files.keys() == {"data/a.csv"} | {f"papers/{name}" for name in reached}
    assert beside.files["data/a.csv"] == b"1"
    assert not beside.libraries


def test_it_lies_elsewhere_as_it_lies_at_home(project: Path) -> None:
    parcel = packed(project / "papers", data=(project / "data/a.csv",))
    with unpacked(parcel) as folder:
        files = {path.relative_to(folder).as_posix() for path in folder.rglob("*.*")}
        assert files == set(parcel.files)
        assert (folder / "papers/helper.py").read_text() == PROJECT["papers/helper.py"]
    assert not folder.exists()


def test_a_result_comes_home(project: Path) -> None:
    parcel = packed(project / "papers")
    result = {
        "outputs": [{"data": {"text/plain": "in /tmp/elsewhere/helper.py"}}],
        "dependencies": {"helper.py": "0"},
        "read": ["helper.py"],
        "ok": True,
    }
    theirs = {
        "dependencies": {"../theirs": "1", "helper.py": "0"},
        "read": ["../theirs", "helper.py"],
    }
    home = at_home(parcel, Path("/tmp/elsewhere"), result | theirs)
    text = f"in {project}/papers/helper.py"
    assert home == result | {"outputs": [{"data": {"text/plain": text}}]}


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
