"""The benchmarks: one corpus in every format, and a page that says what the numbers say."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import corpus
import jupytext
import pytest
import report
import tools
import verdicts
from builds import look
from marginalia.paper import discover, load
from marginalia.rows import parse
from marginalia.source import read_source
from results import SCALE_STEPS, STEPS, Results, ResultsError

NUMBERS = range(2 * len(corpus.TOPICS))


# The corpus


def code_of(cells: tuple[corpus.Cell, ...]) -> list[str]:
    return [cell.code.strip() for cell in cells]


def gallery_blocks(text: str) -> list[str]:
    """The code of `# %%` blocks, as the galleries cut them: a comment first, then code."""
    blocks = re.split(r"(?m)^# %%$", text)[1:]
    return [re.sub(r"\A\n(?:#.*\n)+", "", block).strip() for block in blocks]


@pytest.mark.parametrize("number", NUMBERS)
def test_every_format_has_the_same_code(number: int) -> None:
    item = corpus.example(number)
    code = code_of(item.cells)

    assert len(code) == 5
    assert gallery_blocks(corpus.gallery_rst(item)) == code
    assert gallery_blocks(corpus.gallery_markdown(item)) == code
    percent = jupytext.reads(corpus.percent(item), "py:percent").cells
    assert [cell.source for cell in percent if cell.cell_type == "code"] == code
    fences = re.findall(r"(?ms)^```python [^\n]*\n(.*?)^```$", corpus.markdown_exec(item))
    shown = [re.sub(r"(?m)^.*# markdown-exec: hide\n", "", fence) for fence in fences]
    # Its last cell prints the figure instead of showing it.
    assert [fence.strip() for fence in shown] == [
        *code[:-1],
        code[-1].removesuffix("plt.show()").strip(),
    ]


@pytest.mark.parametrize("number", NUMBERS)
def test_every_format_has_the_same_prose(number: int) -> None:
    item = corpus.example(number)
    prose = [f"# {item.title}\n\n{item.intro}", *(cell.prose for cell in item.cells)]

    percent = jupytext.reads(corpus.percent(item), "py:percent").cells
    assert [cell.source for cell in percent if cell.cell_type == "markdown"] == prose
    fenced = re.split(r"(?ms)^```python .*?^```$", corpus.markdown_exec(item))
    assert [text.strip() for text in fenced if text.strip()] == [
        f"{prose[0]}\n\n{prose[1]}",
        *prose[2:],
    ]
    rst = corpus.gallery_rst(item)
    for heading in re.findall(r"(?m)^## (.*)$", "\n".join(prose)):
        assert f"# {heading}\n# {'-' * len(heading)}\n" in rst


def test_examples_differ() -> None:
    assert len({corpus.percent(corpus.example(number)) for number in NUMBERS}) == len(NUMBERS)


@pytest.mark.parametrize("tool", tools.TOOLS, ids=lambda tool: tool.name)
def test_a_site_holds_its_examples_and_can_be_edited(tool: tools.Tool, tmp_path: Path) -> None:
    tool.lay_out(tmp_path, 3)

    for number in range(3):
        example = tmp_path / tool.example.format(corpus.example(number).name)
        assert "range(30)" in example.read_text()  # what the benchmark changes
    assert not (tmp_path / tool.example.format(corpus.example(3).name)).exists()


def test_pages_are_the_same_text_in_both_forms(tmp_path: Path) -> None:
    count = corpus.GROUP + 2  # two topics
    modules = tools.lay_out_pages(tools.OURS, tmp_path / "ours", count)
    plain = tools.lay_out_pages(tools.PLAIN, tmp_path / "plain", count)

    papers = discover(modules)
    assert len(papers) == count
    for path in papers:
        text, markdown = read_source(path), path.relative_to(modules).with_suffix(".md")
        code = "".join(re.findall(r"(?ms)^```python\n(.*?)^```$", (plain / markdown).read_text()))
        body = ast.parse(text).body[1:]  # without the docstring
        assert [ast.unparse(node) for node in body] == [
            ast.unparse(node) for node in ast.parse(code).body
        ]
        title = load(path, modules).title
        assert (plain / markdown).read_text().startswith(f"# {title}\n")
        assert len([row for row in parse(text, path) if row.kind == "wide"]) >= 5


def test_a_look_at_a_site_counts_what_it_shows(tmp_path: Path) -> None:
    outputs = "benchlib v1 ran at 17 x (2, 16, 32) parameters: 9600 first 0.5004  last 0.0060"
    whole = f"<pre>{outputs}</pre><img src='figure.png'>"
    (tmp_path / "whole.html").write_text(whole.replace("ran at", "<b>ran</b> at"))
    (tmp_path / "no_figure.html").write_text(f"<pre>{outputs.replace('17', '18')}</pre>")
    (tmp_path / "changed.html").write_text(whole.replace("v1", "v2").replace("0.0060", ""))
    (tmp_path / "index.html").write_text("<p>benchlib is a module")

    first, second = look(tmp_path, "v1"), look(tmp_path, "v2")

    assert (first.complete, first.stale, first.runs) == (1, 1, {"17", "18"})
    assert second.stale == 2


# The page


def build(seconds: float, *, stale: int = 0, ran: int = 0, peak: float = 100.0) -> dict[str, Any]:
    return {
        "seconds": seconds,
        "peak_mb": peak,
        "load": 0.5,
        "ran": ran,
        "stale": stale,
        "complete": 8,
    }


def rounds(*times: tuple[float, ...], stale: int = 0, peak: float = 100.0) -> dict[str, Any]:
    """A row for each tuple of the seconds of all steps."""
    return {
        str(number): {
            **{step: build(s, stale=stale, peak=peak) for step, s in zip(STEPS, time, strict=True)},
            "site_mb": 5.0,
            "site_files": 10,
            "done": True,
        }
        for number, time in enumerate(times, 1)
    }


def scaled(seconds: float, peak: float) -> dict[str, Any]:
    return {"1": {**{step: build(seconds, peak=peak) for step in SCALE_STEPS}, "done": True}}


@pytest.fixture
def results(tmp_path: Path) -> Results:
    builds = {
        # Medians: 12, 1, 4 and 1; the helper is stale.
        "sphinx-gallery": rounds((12, 1, 4, 1), (11, 1, 4, 1), (90, 1, 4, 1), stale=8),
        "mkdocs-gallery": rounds((16, 2, 5, 2), stale=8),
        "markdown-exec": rounds((10, 9.5, 10, 10), peak=80),
        "marginalia": rounds((5, 1.6, 1.5, 5), peak=90),
    }
    return Results(
        tmp_path / "results.json",
        {
            "format": 1,
            "machine": {"system": "Linux x86_64", "cpu": "A CPU", "cores": 2, "memory_gb": 24.0},
            "versions": {"Python": "3.11.7", "torch": "2.13.0"},
            "commit": "abc1234",
            "date": "2026-11-22",
            "builds": {"settings": {"examples": 8}, "rows": builds},
            "scale": {
                "settings": {"pages": [300, 3000]},
                "rows": {
                    "marginalia 300": scaled(3.0, 100),
                    "marginalia 3000": scaled(45.0, 400),
                    "material 300": scaled(6.0, 50),
                    "material 3000": scaled(36.0, 90),
                },
            },
            "serve": {
                "settings": {"pages": 300, "edits": 3},
                "rows": {
                    name: {"1": {"start": start, "done": True, **edits}}
                    for name, start, edits in (
                        ("marginalia", 5.0, {"prose": [3, 1, 2], "code": [4], "burst": [5]}),
                        ("material", 9.0, {"prose": [1, 1, 1], "code": [6], "burst": [7]}),
                    )
                },
            },
        },
    )


def test_ratios_are_over_the_fastest_peer_that_counts(results: Results) -> None:
    found = {ratio.target.step: ratio for ratio in verdicts.ratios(results)}

    assert found["cold"].peer.name == "markdown-exec"
    assert found["cold"].value == pytest.approx(5 / 10)
    # Sphinx-Gallery is faster and not on MkDocs; markdown-exec keeps nothing.
    assert found["unchanged"].peer.name == "mkdocs-gallery"
    assert found["unchanged"].value == pytest.approx(1.6 / 2)
    assert found["page"].peer.name == "sphinx-gallery"
    assert found["page"].value == pytest.approx(1.5 / 4)
    assert [found[step].is_met for step in ("cold", "unchanged", "page")] == [True, False, True]


def test_what_is_lost_is_computed(results: Results) -> None:
    assert verdicts.lost(results) == [
        "Rebuild without a change: 1.6 s. Better: Sphinx-Gallery (1.0 s, with 8 stale pages).",
        "Rebuild after the shared helper changed: 5.0 s. Better: Sphinx-Gallery (1.0 s, with 8 "
        "stale pages), mkdocs-gallery (2.0 s, with 8 stale pages).",
        "Peak memory: 90.0 MB. Better: markdown-exec (80.0 MB).",
        "The target for a rebuild without a change is missed: 0.80 of the time of mkdocs-gallery, "
        "and we want 0.7.",
        *(
            line
            for step in ("cold build", "rebuild without a change")
            for line in (
                f"A {step} of 3,000 pages: 15.0 ms a page; Material for MkDocs takes 12.0 ms for "
                "its own.",
                f"A page costs more on a large site. A {step} takes 1.50 times as long a page with "
                "3,000 pages as with 300; we want at most 1.2. It needs 4.0 times the memory for "
                "10.0 times the pages.",
            )
        ),
        "While serving, a sentence of a page: 2.00 s; Material for MkDocs takes 1.00 s.",
    ]


def test_the_page_shows_medians_and_what_is_lost(results: Results) -> None:
    text = report.page(results)

    assert text.startswith("---\ntitle: Benchmarks\n")
    assert "22 November 2026: A CPU, 2 cores, 24 GB of memory, Linux x86_64." in text
    assert "| Sphinx-Gallery | 12.0 | 1.0 | 4.0 | 1.0 | 0 / 8 | 100 | 5.0 |\n" in text
    assert "| **Marginalia** | 5.0 | 1.6 | 1.5 | 5.0 | 0 / 0 | 90 | 5.0 |\n" in text
    assert "| Marginalia | cold build | 3,000 | 45.0 | 15.0 | 400 |" in text
    assert "| a sentence of a page | 2.00 | 1.00 |" in text
    assert "There are 3 (mkdocs-gallery: 1; markdown-exec: 1; Marginalia: 1)." in text
    assert "All show the output of every cell and the figure, on every page." in text
    assert all(f"- {line}\n" in text for line in verdicts.lost(results))
    assert "torch 2.13.0" in text


def test_a_tool_that_shows_less_is_named(results: Results) -> None:
    results.data["builds"]["rows"]["markdown-exec"]["1"]["cold"]["complete"] = 7
    assert "the figure: markdown-exec on 7 pages of 8." in report.page(results)


def test_a_round_that_is_not_complete_does_not_count(results: Results) -> None:
    rows = results.data["builds"]["rows"]
    rows["marginalia"]["2"] = {"cold": build(500)}
    rows["mkdocs-jupyter"] = {"1": {"error": "mkdocs ended with status 1"}}

    assert verdicts.seconds(results, "marginalia", "cold") == 5
    assert "- mkdocs-jupyter failed in a round, which is not counted." in report.page(results)


def test_a_page_can_be_written_of_a_part(results: Results) -> None:
    for section in ("builds", "scale", "serve"):
        part = Results(results.path, {**results.data})
        for other in {"builds", "scale", "serve"} - {section}:
            del part.data[other]
        assert "## Where we lose" in report.page(part)


# Results


def test_an_interrupted_run_is_continued(results: Results) -> None:
    results.save()
    again = Results.load(results.path)

    again.begin("builds", {"examples": 8}, resume=True)
    assert again.row("builds", "mkdocs-gallery", 1)["done"]
    with pytest.raises(ResultsError, match="--resume"):
        again.begin("builds", {"examples": 40}, resume=True)
    again.begin("builds", {"examples": 40}, resume=False)
    assert again.names("builds") == []
    assert again.names("scale") == results.names("scale")


def test_other_versions_are_not_mixed(results: Results) -> None:
    results.save()
    facts = {name: results.data[name] for name in ("machine", "versions", "commit")}

    assert Results.open(results.path, facts, resume=True).names("builds")
    with pytest.raises(ResultsError, match="another commit"):
        Results.open(results.path, {**facts, "commit": "def5678"}, resume=True)
    fresh = Results.open(results.path, {**facts, "commit": "def5678"}, resume=False)
    assert fresh.names("builds") == []
    (kept,) = (path for path in results.path.parent.glob("*.json") if path != results.path)
    assert Results.load(kept).names("builds")
