"""The command, as a shell or a script meets it: real processes, JSON, exit status."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from demos import wait_for

GOOD = '''
"""A page about doubling."""

import torch


# ## Doubling


def double(x):
    """Twice `x`."""
    # Adding is cheaper than multiplying.
    y = x + x
    return y


def demo() -> None:
    x = torch.ones(2, 3)
    y = double(x)
    print("sum", int(y.sum()))
    assert y.sum() == 12  # Eq. 1


if __name__ == "__main__":
    demo()
'''


def marginalia(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "marginalia", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dedent(text).lstrip("\n"), encoding="utf-8")
    return path


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return write(tmp_path / "double.py", GOOD)


def test_rows_join_to_the_file(good: Path) -> None:
    rows = json.loads(marginalia("rows", good).stdout)
    assert "".join(row["source"] for row in rows) == good.read_text()
    assert set(rows[0]) == {"start", "end", "kind", "prose", "code", "source"}
    assert (rows[0]["start"], rows[-1]["end"]) == (1, len(GOOD.strip().splitlines()))


def test_rows_of_a_broken_file_name_the_place(tmp_path: Path) -> None:
    broken = write(tmp_path / "broken.py", "x = 1\ny = = 2\n")
    done = marginalia("rows", broken)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"{broken}:2:5: invalid syntax" in done.stderr
    assert "Traceback" not in done.stderr


def test_run_gives_everything_as_json(good: Path) -> None:
    done = marginalia("run", good, "--json")
    result = json.loads(done.stdout)
    assert (done.returncode, result["ok"], result["error"]) == (0, True, None)
    assert {"ok", "seconds", "device", "outputs", "shapes", "claims", "error"} <= set(result)
    claim = result["claims"][0]
    assert (claim["left"], claim["right"], claim["ok"], claim["source"]) == (
        "12",
        "12",
        True,
        "Eq. 1",
    )
    line = GOOD.strip().splitlines().index("    y = x + x") + 1
    assert [s["shape"] for s in result["shapes"] if (s["line"], s["name"]) == (line, "y")] == [
        [2, 3]
    ]


def test_run_shows_output_and_claims(good: Path) -> None:
    done = marginalia("run", good)
    assert done.returncode == 0
    assert "sum 12" in done.stdout
    assert "y.sum() == 12  (Eq. 1)" in done.stdout


def test_a_false_claim_fails_with_its_values(tmp_path: Path) -> None:
    path = write(tmp_path / "false.py", "def demo():\n    n = 4\n    assert n == 5  # Table 2\n")
    done = marginalia("run", path, "--json")
    result = json.loads(done.stdout)
    claim = result["claims"][0]
    assert (done.returncode, result["ok"], claim["ok"]) == (1, False, False)
    assert (claim["left"], claim["right"]) == ("4", "5")
    assert (result["error"]["type"], result["error"]["line"]) == ("AssertionError", 3)


def test_a_demo_that_hangs_is_stopped(tmp_path: Path) -> None:
    path = write(tmp_path / "hang.py", "def demo():\n    while True:\n        pass\n")
    done = marginalia("run", path, "--json", "--timeout", 1)
    result = json.loads(done.stdout)
    assert done.returncode == 1
    assert "1 s, its limit" in result["error"]["message"]


def test_snippet_runs_alone(good: Path) -> None:
    done = marginalia("snippet", good, "double")
    assert done.returncode == 0
    assert "import torch" not in done.stdout
    names: dict[str, Any] = {}
    exec(done.stdout, names)
    assert names["double"](3) == 6


def test_snippet_of_an_unknown_symbol_names_the_near_one(good: Path) -> None:
    done = marginalia("snippet", good, "doubel")
    assert done.returncode == 1
    assert "double" in done.stderr


def test_build_makes_a_site_of_any_folder(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    write(folder / "helper.py", "SIZE = 3\n")
    write(
        folder / "uses.py", "from helper import SIZE\n\ndef demo():\n    assert SIZE == 3  # here\n"
    )
    write(
        folder / "script.py", "# %% [markdown]\n# # A script\n\n# %%\nprint('hello from a cell')\n"
    )
    out = tmp_path / "site"
    done = marginalia("build", folder, "-o", out, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    status = {page["source"]: page["status"] for page in report["pages"]}
    assert status == {"helper.py": "static", "script.py": "ran", "uses.py": "ran"}
    for page in report["pages"]:
        assert (out / page["url"] / "index.html").is_file()
    assert "hello from a cell" in (out / "script" / "index.html").read_text("utf-8")
    again = json.loads(marginalia("build", folder, "-o", out, "--json").stdout)
    assert {page["status"] for page in again["pages"]} == {"static", "cached"}


def test_build_names_every_broken_module_and_writes_the_rest(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    write(folder / "good.py", GOOD)
    write(folder / "broken.py", "def f(:\n    pass\n")
    write(folder / "raises.py", "def demo():\n    raise RuntimeError('on purpose')\n")
    out = tmp_path / "site"
    done = marginalia("build", folder, "-o", out, "--json")
    pages = {page["source"]: page for page in json.loads(done.stdout)["pages"]}
    assert done.returncode == 1
    assert {name for name, page in pages.items() if page["status"] == "failed"} == {
        "broken.py",
        "raises.py",
    }
    assert pages["broken.py"]["failures"] == [
        {"type": "SourceError", "message": "invalid syntax", "line": 1}
    ]
    assert pages["raises.py"]["failures"] == [
        {"type": "RuntimeError", "message": "on purpose", "line": 2}
    ]
    assert (out / "good" / "index.html").is_file()


@pytest.mark.parametrize(
    "arguments",
    [
        ["rows"],
        ["rows", "no/such/file.py"],
        ["no-such-command"],
        ["run", ".", "--timeout", "-1"],
        ["new", "onlyslug"],
    ],
)
def test_wrong_use_exits_with_2(arguments: list[str], tmp_path: Path) -> None:
    done = marginalia(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert "Usage" in done.stderr


@pytest.mark.parametrize("option", ["--timeout", "--cpu-time", "--standby"])
def test_a_limit_is_a_number(good: Path, option: str) -> None:
    done = marginalia("check", good, option, "nan")
    assert done.returncode == 2
    assert f"'{option}': nan is not a number" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
@pytest.mark.parametrize("options", [["build", "-o", "site"], ["serve", "--port", "0"]])
def test_who_is_ended_leaves_no_folder(
    options: list[str], number: signal.Signals, gate: Path, tmp_path: Path
) -> None:
    write(tmp_path / "mine" / "waits.py", f"def demo():\n    open({str(gate)!r}).read()\n")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    line = [sys.executable, "-m", "marginalia", *options, "mine"]
    variables = os.environ | {"TMPDIR": str(scratch)}
    with subprocess.Popen(line, cwd=tmp_path, env=variables, stderr=subprocess.DEVNULL) as process:
        try:
            wait_for(lambda: list(scratch.glob("marginalia-*/mkdocs.yml")))
            process.send_signal(number)
            assert process.wait(60) == 128 + number
        finally:
            process.kill()
    assert wait_for(lambda: not list(scratch.glob("marginalia-*")))


def test_a_file_that_cannot_be_read_is_one_failure(good: Path) -> None:
    (good.parent / "gone.py").symlink_to("nowhere.py")
    done = marginalia("check", good.parent)
    assert done.returncode == 1
    assert "1 of 2 modules are right" in done.stdout
    assert "gone.py" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["rows", "run", "snippet", "build", "serve", "new", "check"])
def test_help_has_an_example(command: str) -> None:
    done = marginalia(command, "--help")
    assert done.returncode == 0
    assert f"Example: marginalia {command} " in " ".join(done.stdout.split())


def test_a_new_paper_passes_its_check_at_once(tmp_path: Path) -> None:
    write(tmp_path / "mkdocs.yml", "site_name: x\n")
    done = marginalia("new", "attention/my-paper", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "papers/attention/my_paper.py").is_file()
    checked = marginalia("check", cwd=tmp_path)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "1 of 1 modules are right" in checked.stdout


def test_new_replaces_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "papers/attention/mine.py", "x = 1\n")
    done = marginalia("new", "attention/mine", cwd=tmp_path)
    assert done.returncode == 2
    assert "exists already" in done.stderr
    assert path.read_text() == "x = 1\n"
