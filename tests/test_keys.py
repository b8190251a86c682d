"""A key changes with everything that a demo's outputs depend on, and with nothing else."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import marginalia
import pytest
from marginalia import keys
from marginalia.jobs import Job
from marginalia.keys import inputs
from marginalia.runner import run_all
from marginalia.snippet import runnable
from marginalia.store import Store

PACKAGE = Path(marginalia.__file__).parent


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def key(root: Path, page: str = "topic/page.py", **options: object) -> str:
    return inputs(root / page, root, options).key


# Every way to import, as one page that says it and the file that it reaches.
IMPORTS = {
    "import helper": "helper.py",
    "import helper as h, os": "helper.py",
    "from helper import x": "helper.py",
    "from helper import *": "helper.py",
    "import pkg": "pkg/__init__.py",
    "import pkg.mod": "pkg/mod.py",
    "import pkg.mod as m": "pkg/__init__.py",
    "from pkg import mod": "pkg/mod.py",
    "from pkg import (\n    other,\n    mod,\n)": "pkg/mod.py",
    "from pkg.mod import x": "pkg/__init__.py",
    "from pkg.sub.deep import x": "pkg/sub/__init__.py",
    "import pkg.sub.deep": "pkg/sub/deep.py",
    "import pkg.reaches_up": "pkg/mod.py",
    "from pkg import reaches_far": "helper.py",
    "from bare.inner import x": "bare/inner.py",
    "from bare import inner": "bare/inner.py",
    "from . import beside": "topic/beside.py",
    "from .beside import x": "topic/beside.py",
    "from .. import helper": "helper.py",
    "from ..pkg import mod": "pkg/mod.py",
    "from topic import beside": "topic/beside.py",
    "import beside": "topic/beside.py",
    "def f():\n    import helper": "helper.py",
    "try:\n    import helper\nexcept ImportError:\n    helper = None": "helper.py",
    "if 0:\n    pass\nelse:\n    class C:\n        from helper import x": "helper.py",
}

PROJECT = {
    "helper.py": "x = 1\n",
    "unrelated.py": "x = 1\n",
    "pkg/__init__.py": "y = 1\n",
    "pkg/mod.py": "x = 1\n",
    "pkg/other.py": "",
    "pkg/reaches_up.py": "from . import mod\n",
    "pkg/reaches_far.py": "import pkg.sub.deep\n",
    "pkg/sub/__init__.py": "",
    "pkg/sub/deep.py": "from ...helper import x\nx = 1\n",
    "bare/inner.py": "x = 1\n",
    "topic/__init__.py": "",
    "topic/beside.py": "x = 1\n",
}


@pytest.mark.parametrize("statement", IMPORTS)
def test_a_helper_is_reached_by(tmp_path: Path, statement: str) -> None:
    write(tmp_path, PROJECT | {"topic/page.py": f"{statement}\n\n\ndef demo():\n    pass\n"})
    helper = tmp_path / IMPORTS[statement]
    before = key(tmp_path)
    text = helper.read_text()
    helper.write_text(f'"""Prose."""\n\n# More prose.\n{text}  # the end\n')
    assert key(tmp_path) == before
    write(tmp_path, {"unrelated.py": "x = 2\n", "topic/other_page.py": "import helper\n"})
    assert key(tmp_path) == before
    helper.write_text(f"{text}x = 2\n")
    assert key(tmp_path) != before
    helper.write_text(text)
    assert key(tmp_path) == before
    helper.unlink()
    assert key(tmp_path) != before


def test_packages_around_the_page_are_part_of_it(tmp_path: Path) -> None:
    write(tmp_path, {"a/__init__.py": "", "a/b/__init__.py": "", "a/b/page.py": "x = 1\n"})
    before = key(tmp_path, "a/b/page.py")
    write(tmp_path, {"a/__init__.py": "import os\n"})
    assert key(tmp_path, "a/b/page.py") != before


def test_circles_end(tmp_path: Path) -> None:
    write(tmp_path, {"a.py": "import b\n", "b.py": "import a, b\n"})
    assert key(tmp_path, "a.py") != key(tmp_path, "b.py")


def test_a_helper_that_appears_later(tmp_path: Path) -> None:
    write(tmp_path, {"page.py": "try:\n    import fast\nexcept ImportError:\n    fast = None\n"})
    before = key(tmp_path, "page.py")
    write(tmp_path, {"fast.py": ""})
    assert key(tmp_path, "page.py") != before


def test_the_place_of_the_project_is_no_input(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write(tmp_path / name, PROJECT | {"topic/page.py": "import pkg.reaches_far, beside\n"})
    assert key(tmp_path / "one") == key(tmp_path / "two")


def test_line_ends_and_encoding_marks_are_no_input(tmp_path: Path) -> None:
    write(tmp_path, {"page.py": "import helper\n\nx = 1\n", "helper.py": "x = 'ü'\n"})
    before = key(tmp_path, "page.py")
    (tmp_path / "page.py").write_bytes(b"\xef\xbb\xbfimport helper\r\n\r\nx = 1\r\n")
    (tmp_path / "helper.py").write_bytes("# coding: latin-1\nx = 'ü'\n".encode("latin-1"))
    assert key(tmp_path, "page.py") == before


@pytest.mark.parametrize("text", ["def demo(:\n", "x = '\udc80'\n", "x = 1\0\n", "# coding: no\n"])
def test_a_source_that_does_not_parse_has_a_key(tmp_path: Path, text: str) -> None:
    page = tmp_path / "page.py"
    page.write_bytes(text.encode("utf-8", "surrogatepass"))
    before = key(tmp_path, "page.py")
    page.write_text("x = 1\n")
    assert key(tmp_path, "page.py") != before


def test_bodies_of_prose_alone(tmp_path: Path) -> None:
    write(tmp_path, {"page.py": 'class E(Exception):\n    """Prose."""\n\nimport helper\n'})
    before = key(tmp_path, "page.py")
    write(tmp_path, {"helper.py": "x = 1\n"})
    assert key(tmp_path, "page.py") != before


def test_options_are_inputs(tmp_path: Path) -> None:
    write(tmp_path, {"page.py": "x = 1\n"})
    assert key(tmp_path, "page.py", seed=0) == key(tmp_path, "page.py", seed=0)
    assert key(tmp_path, "page.py", seed=0) != key(tmp_path, "page.py", seed=1)


def test_a_local_module_hides_an_installed_one(tmp_path: Path) -> None:
    write(tmp_path, {"page.py": "import yaml\n"})
    before = key(tmp_path, "page.py")
    write(tmp_path, {"yaml.py": ""})
    assert key(tmp_path, "page.py") != before


def test_a_bare_folder_does_not_hide_an_installed_package(tmp_path: Path) -> None:
    write(tmp_path, {"page.py": "import yaml\n", "yaml/note.md": ""})
    closure = keys._Closure(keys._Local((tmp_path,)), keys.View())
    closure.start(tmp_path / "page.py", tmp_path)
    assert closure.packages == {"yaml"}


def test_versions_come_from_the_distribution() -> None:
    assert [line.split()[0].lower() for line in keys.versions("yaml")] == ["pyyaml"]
    assert keys.versions("torch")[0].startswith("torch ")
    assert keys.versions("no_such_package_anywhere") == []


def test_a_package_used_from_its_sources_counts_with_its_code(tmp_path: Path) -> None:
    write(tmp_path / "lib", {"own_library/__init__.py": "x = 1\n"})
    write(tmp_path / "papers", {"page.py": "import own_library\n"})
    program = (
        "import sys; from pathlib import Path; from marginalia.keys import inputs;"
        "root = Path(sys.argv[1]); print(inputs(root / 'page.py', root, {}).key)"
    )

    def key_with_path() -> str:
        command = [sys.executable, "-c", program, str(tmp_path / "papers")]
        environment = {"PYTHONPATH": str(tmp_path / "lib")}
        return subprocess.run(
            command, env=environment, check=True, capture_output=True, text=True
        ).stdout

    before = key_with_path()
    assert key_with_path() == before
    write(tmp_path / "lib", {"own_library/__init__.py": "x = 2\n"})
    assert key_with_path() != before


def test_the_capture_code_is_an_input() -> None:
    """What the demo's process imports of ours, found independently: by importing it."""
    program = (
        "import sys, marginalia.worker, marginalia.demo;"
        "print([n for n in sys.modules if n.startswith('marginalia')])"
    )
    command = [sys.executable, "-c", program]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    loaded = {name.partition(".")[2] or "__init__" for name in ast.literal_eval(out)}
    closure = keys._Closure(keys._Local((PACKAGE.parent,), "marginalia"), keys.View())
    closure.start(PACKAGE / "worker.py", PACKAGE.parent)
    assert loaded <= {path.stem for path in closure.places}
    assert not {"runner", "plugin", "page", "keys"} & {path.stem for path in closure.places}


def test_what_was_found_in_sources_can_be_kept() -> None:
    text = "from ..a.b import c, d\nimport e\n\n# Prose.\nx = 1\n"
    first, second = keys.Memory(), keys.Memory()
    first.of("not used again\n")
    found = first.of(text)
    assert found.lines == (1, 2, 5)
    second.recall(json.loads(json.dumps(first.to_keep())))
    assert second.of(text) == found
    assert second.to_keep() is None
    second.of("y = 1\n")
    kept = second.to_keep()
    assert kept is not None
    assert len(kept) == 2


def test_finding_the_device_imports_nothing_heavy() -> None:
    program = "import sys; from marginalia import runner, keys; keys.device_kind()"
    command = [sys.executable, "-c", f"{program}; assert 'torch' not in sys.modules"]
    subprocess.run(command, check=True)


@pytest.mark.parametrize("visible", ["", "-1"])
def test_a_hidden_gpu_is_none(monkeypatch: pytest.MonkeyPatch, visible: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert keys.device_kind() == "cpu"


def test_data_files_are_inputs_by_content(tmp_path: Path) -> None:
    write(tmp_path, {"page.py": "x = 1\n", "data.csv": "1", "same.csv": "1"})

    def found(*names: str) -> keys.Inputs:
        return inputs(tmp_path / "page.py", tmp_path, {}, data=[tmp_path / name for name in names])

    before = found("data.csv")
    assert found().key != before.key != found("same.csv").key
    assert str(tmp_path / "data.csv") in before.files
    write(tmp_path, {"data.csv": "2"})
    assert found("data.csv").key != before.key
    write(tmp_path, {"data.csv": "1"})
    assert found("data.csv") == before
    (tmp_path / "data.csv").unlink()
    assert found("data.csv").key != before.key


def test_a_device_that_a_page_asks_for_is_the_same_input_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, {"page.py": "import torch\n"})

    def key_on(machine: str, build: str, device: str) -> str:
        monkeypatch.setattr(keys, "device_kind", lambda: machine)
        monkeypatch.setattr(keys, "versions", lambda name: [f"{name} 1.2{build}"])
        return inputs(tmp_path / "page.py", tmp_path, {}, device=device).key

    assert key_on("cpu", "+cpu", "cuda") == key_on("cuda", "+cu130", "cuda")
    assert key_on("cpu", "+cpu", "cpu") == key_on("cuda", "+cpu", "cpu")
    assert key_on("cpu", "+cpu", "") == key_on("cpu", "+cpu", "cpu")
    assert len({key_on("cpu", "+cpu", device) for device in ("cpu", "cuda")}) == 2
    assert key_on("cpu", "+cpu", "") != key_on("cpu", "+cu130", "")
    assert key_on("cpu", "", "") != key_on("cuda", "", "")


def test_machines_differ_in_versions_but_not_in_builds() -> None:
    here = keys.environment() | {"yaml": keys.versions("yaml")[0]}
    assert keys.differences(here) == []
    torch = here["torch"].partition("+")[0]
    assert keys.differences(here | {"torch": f"{torch}+another"}) == []
    assert keys.differences({"torch": "torch 0.1", "yaml": "", "nothing": "nothing 1"}) == [
        f"{here['torch']} where torch 0.1 is needed",
        f"{here['yaml']} where no yaml is needed",
        "no nothing where nothing 1 is needed",
    ]


@pytest.mark.parametrize(
    ("distribution", "module"), [("fakery", "fakery"), ("py-fakery", "fakery")]
)
def test_a_package_that_is_replaced_while_a_worker_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, distribution: str, module: str
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    for number in (1, 2):
        with installed(tmp_path, distribution, number, module):
            assert keys.differences({module: f"{distribution} {number}"}) == []
            assert keys.differences({module: f"{distribution} 9"}) == [
                f"{distribution} {number} where {distribution} 9 is needed"
            ]
    assert keys.differences({module: ""}) == []


def test_a_package_that_demos_are_forked_with_is_not_replaced_while_a_worker_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert keys.differences({}) == []
    first = keys.versions("einops")[0]
    monkeypatch.syspath_prepend(str(tmp_path))
    with installed(tmp_path, "einops", 99, "einops"):
        assert keys.differences({"einops": "einops 99"}) == [
            f"einops 99 since it was started with {first}: restart it"
        ]
    assert keys.differences({"einops": first}) == []


@contextmanager
def installed(folder: Path, name: str, version: int, module: str) -> Iterator[None]:
    """While this lasts, a distribution is in a folder of the import path."""
    made = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    made.mkdir()
    (made / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (made / "top_level.txt").write_text(f"{module}\n")
    os.utime(folder, (version, version))  # the folder's time tells that it changed
    try:
        yield
    finally:
        shutil.rmtree(made)
        os.utime(folder, (0, 0))


# Prose that counts


@pytest.mark.parametrize(
    "reading",
    [
        "print(helper.f.__doc__)",
        "inspect.getdoc(helper.f)",
        "print(inspect.getsource(helper.f))",
        "help(helper.f)",
        "doctest.testmod(helper)",
    ],
)
@pytest.mark.parametrize(("reader", "read"), [("page", "helper"), ("helper", "page")])
def test_docstrings_of_one_file_that_another_may_read(
    tmp_path: Path, reading: str, reader: str, read: str
) -> None:
    other = 'def f():\n    """Doc one."""\n'
    files = {"page.py": "import helper\n", "helper.py": "x = 1\n", "far.py": "x = 1\n"}
    files["helper.py"] += "import far\n"
    files[f"{read}.py"] += other
    files[f"{reader}.py"] += f"{reading}\n"
    write(tmp_path, files)
    before = key(tmp_path, "page.py")
    write(tmp_path, {f"{read}.py": files[f"{read}.py"].replace("one", "two")})
    assert key(tmp_path, "page.py") != before
    write(tmp_path, files | {"far.py": '"""Far."""\n\nx = 1\n'})
    assert key(tmp_path, "page.py") != before
    write(tmp_path, files)
    assert key(tmp_path, "page.py") == before


@pytest.mark.parametrize(
    ("code", "counts"),
    [
        ("print(inspect.getsource(f))", True),
        ("traceback.print_exc()", True),
        ("log.exception('no')", True),
        ("logging.basicConfig(format='%(lineno)d %(message)s')", True),
        ("print(f.__code__.co_firstlineno)", True),
        ("print(f.__code__)", True),
        ("import dis; dis.dis(f)", True),
        ("print(torch.export.export(model, inputs))", True),
        ("from torch import export, nn", True),
        ("print(torch.jit.script(f).graph)", True),
        ("with warnings.catch_warnings(record=True) as caught: print(caught[0])", True),
        ("print(Path(__file__).read_text())", True),
        ("subprocess.run(['wc', '-l', __file__])", True),
        ("print(f.__doc__)", False),  # comments and places are none of it
        ("parser.add_argument('-x', help='more')", False),
        ("data = Path(__file__).parent / 'data'", False),
        ("data = Path(__file__).resolve().parents[1]", False),
        ("data = Path(__file__).with_name('data.csv')", False),
        ("data = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'data')", False),
        ("warnings.warn('old')", False),
        ("exporter, traceback_of, distance = 1, 2, 3", False),
        ("x = 1  # inspect.getsource, traceback", False),
    ],
)
def test_comments_and_places_count_only_where_they_may_show(
    tmp_path: Path, code: str, counts: bool
) -> None:
    write(tmp_path, {"page.py": f"import helper\n\n{code}\n", "helper.py": "x = 1\n"})
    before = key(tmp_path, "page.py")
    write(tmp_path, {"helper.py": "# Moved.\n\nx = 1\n"})
    assert (key(tmp_path, "page.py") != before) == counts
    write(tmp_path, {"helper.py": "x = 1\n"})
    write(tmp_path, {"page.py": f"import helper\n\n# Prose.\n\n{code}\n"})
    assert (key(tmp_path, "page.py") != before) == counts


PERCENT = """
# %% [markdown]
# # Title

# %%
x = 1
x + 1
x + 2
def f():
    '''Doc.'''
x + 4

# %% [markdown]
# Prose.

# %%
x + 3
"""

LIGHT = """
# ---
# jupyter:
#   jupytext: {}
# ---

# # Title

x = 1
x + 1
x + 2

# Prose.

x + 3
"""


@pytest.mark.parametrize(
    ("script", "old", "new", "counts"),
    [
        (PERCENT, "x + 1\n", "x + 1\n\n# %%\n", True),
        (PERCENT, "x + 1\n", "x + 1\n# %% [markdown]\n# More.\n# %%\n", True),
        (PERCENT, "\n# %% [markdown]\n# Prose.\n\n# %%\n", "", True),
        (PERCENT, "x + 4\n", "# %%\nx + 4\n", True),
        (PERCENT, "    '''Doc.'''\n", "    '''Doc.\n\n    More.\n    '''\n", False),
        (PERCENT, "x + 1\n", "x + 1\n\n", False),
        (PERCENT, "x + 1\n", "x + 1  # two\n# and\n", False),
        (PERCENT, "Prose.", "Other prose.\n#\n# More of it.\n\n# %% [markdown]\n# Yes.", False),
        (PERCENT, "# # Title", '"""Title"""', False),
        (PERCENT, "\nx = 1", "# A comment\n\nx = 1", False),
        (LIGHT, "x + 1\n", "x + 1\n\n", True),
        (LIGHT, "x + 1\n", "x + 1\n\n# More.\n", True),
        (LIGHT, "\n# Prose.\n\n", "# Prose.\n", True),
        (LIGHT, "x + 1\n", "x + 1\n# More.\n", False),
        (LIGHT, "# Prose.", "# Prose.\n\n\n# More.", False),
        (LIGHT, "# Prose.\n", "# Prose.\n\n# %%\n", True),  # markers also end figures
    ],
)
def test_where_the_cells_of_a_script_end(
    tmp_path: Path, script: str, old: str, new: str, counts: bool
) -> None:
    assert old in script
    write(tmp_path, {"page.py": script})
    before = key(tmp_path, "page.py")
    write(tmp_path, {"page.py": script.replace(old, new, 1)})
    assert (key(tmp_path, "page.py") != before) == counts


def test_a_cell_that_is_split_runs_again(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")

    def values() -> list[tuple[int, str]]:
        (ran,) = run_all([Job(page, tmp_path)], store=store, workers=1)
        return [(output.line, output.data["text/plain"]) for output in ran.result.outputs]

    page = tmp_path / "page.py"
    page.write_text("# %%\nx = 1\nx + 1\nx + 2\n")
    assert values() == [(4, "3")]
    page.write_text("# %%\nx = 1\nx + 1\n\n# %%\nx + 2\n")
    assert values() == [(3, "2"), (6, "3")]


@pytest.mark.parametrize(
    ("old", "new", "counts"),
    [
        ("of `k`", "that `k` has", False),
        ('"""Doc of `k`."""\n', "", False),
        ("prose.\n", "prose.\n\nMore.\n", False),
        ('"""Doc of `k`."""', 'f"""{print(1)}"""', True),
        ('"""Doc of `k`."""', '"""Doc of `k`.""".upper()', True),
        ('"""Doc of `k`."""', 'j = """Doc of `k`."""', True),
        ("j = 1", "j = 2", True),
        ("import a\n", '"Where what is printed on the way to the page goes."\nimport a\n', True),
        ("import a\n", 'import a\n"""Doc of `a`."""\n', False),
        ("from __future__", '"""Not at the top."""\nfrom __future__', True),  # a syntax error
    ],
)
def test_a_string_alone_does_nothing(tmp_path: Path, old: str, new: str, counts: bool) -> None:
    text = (
        '"""A page."""\nfrom __future__ import annotations\nimport a\n\n'
        'k = 1\n"""Doc of `k`."""\n\n"""\nMore prose.\n"""\n"one of"; "two of"; j = 1\nprint(k)\n'
    )
    assert old in text
    write(tmp_path, {"page.py": text})
    before = key(tmp_path, "page.py")
    write(tmp_path, {"page.py": text.replace(old, new, 1)})
    assert (key(tmp_path, "page.py") != before) == counts


def test_a_blank_line_ends_a_line_that_a_backslash_continues(tmp_path: Path) -> None:
    write(tmp_path, {"page.py": "a = x = 2\nx = a \\\n-a\n"})
    before = key(tmp_path, "page.py")
    write(tmp_path, {"page.py": "a = x = 2\nx = a \\\n\n-a\n"})
    assert key(tmp_path, "page.py") != before


# Names that mean something else where the demo runs


@pytest.mark.parametrize(
    ("page", "imported"),
    [
        ("topic/yaml.py", "import yaml\n"),  # the page's own folder is not on the import path
        ("page.py", "from yaml import nodes\n"),  # a package comes before a bare folder
    ],
)
def test_a_file_with_the_name_of_an_installed_package(
    tmp_path: Path, page: str, imported: str
) -> None:
    write(tmp_path, {page: imported, "yaml/nodes.py": ""})
    assert inputs(tmp_path / page, tmp_path, {}).needs["yaml"] == keys.versions("yaml")[0]


def test_a_helper_that_moves(tmp_path: Path) -> None:
    fallback = "try:\n    import fast\nexcept ImportError:\n    fast = None\n"
    write(tmp_path, {"topic/page.py": fallback, "topic/fast.py": ""})
    before = key(tmp_path)
    (tmp_path / "topic/fast.py").rename(tmp_path / "fast.py")
    assert key(tmp_path) != before


# What a page may show


REACHED = '''
"""A page."""

# ## A section
#
# PROSE


def double(x):
    """Twice `x`."""
    return x + x


def demo():
    # Two and two.
    assert double(2) == 4
'''


@pytest.mark.parametrize(
    ("old", "new", "is_shown"),
    [
        ("PROSE", "Other prose.", False),
        ("A page.", "The page.", False),
        ("Two and two.", "Twice two.", False),
        ("PROSE", "PROSE\n#\n# More of it.", False),
        ("Twice `x`.", "`x` two times.", True),
        ("double(x)", "double(x: int)", True),
    ],
)
def test_what_shows_no_prose_depends_on_none(
    tmp_path: Path, old: str, new: str, is_shown: bool
) -> None:
    """A page of the API, say: docstrings are all that it shows of the words."""
    found = []
    for text in (REACHED, REACHED.replace(old, new)):
        (tmp_path / "page.py").write_text(text)
        page = tmp_path / "page.py"
        without = keys.reached(page, tmp_path, keys.View(), prose=False)
        found.append((without, keys.reached(page, tmp_path, keys.View())))
    (before, all_before), (after, all_after) = found
    assert (before != after) == is_shown
    assert all_before != all_after


BORROWED = """
import helper


def demo():
    print(helper.both)
"""


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("a = 1\nb = 2\n", "a = 1\n\nb = 2\n"),
        ("a = 1\n'''One'''\nb = 2\n", "a = 1\n'''One\n\nTwo'''\nb = 2\n"),
        ("# Why\na = 1\nc = 3\nb = 2\n", "# Why\na = 1\n\nc = 3\nb = 2\n"),
        ("# Why\na = 1\n'''One'''\nb = 2\n", "# Why\na = 1\nb = 2\n"),
        (
            "# Why\nif 1:\n    a = 1\nc = 3\nb = 2\n",
            "# Why\nif 1:\n    a = 1\n    # c\nc = 3\nb = 2\n",
        ),
        ("a = 1\ndef demo():\n    pass\nb = 2\n", "a = 1\ndef demo():\n\n    pass\nb = 2\n"),
    ],
)
def test_how_the_statements_of_a_helper_stand(tmp_path: Path, before: str, after: str) -> None:
    """A snippet keeps what is blank between them, and the comments that all belong to it."""
    page = tmp_path / "page.py"
    page.write_text(BORROWED)
    shown, digests = [], []
    for text in (before, after):
        (tmp_path / "helper.py").write_text(f"{text}both = a + b\n")
        shown.append(runnable(BORROWED, "demo", path=page, root=tmp_path))
        digests.append(keys.reached(page, tmp_path, keys.View()))
    assert shown[0] != shown[1]
    assert digests[0] != digests[1]


@pytest.mark.parametrize("names", ["demo", "(\n    demo,\n)"])
def test_comments_of_a_demo_that_is_imported(tmp_path: Path, names: str) -> None:
    page, helper = tmp_path / "page.py", tmp_path / "helper.py"
    page.write_text(f"from helper import {names}\n\ndemo()\n")
    found = []
    for comment in ("one", "two"):
        helper.write_text(f"def demo():\n    print(1)  # {comment}\n")
        found.append(keys.reached(page, tmp_path, keys.View()))
    assert found[0] != found[1]
