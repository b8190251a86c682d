r"""The examples that the benchmarks build, in the format of each tool.

    python benchmarks/corpus.py examples FOLDER --n 40
    python benchmarks/corpus.py pages FOLDER --n 300

examples   N scripts that run: five cells of prose and five of code each, with printed shapes,
           thirty steps of training and one figure. All import a helper, `benchlib`.
pages      N modules that only have to be rendered: the same kind of prose and code, no demo. Each
           imports a class of the page before it. The same text lies beside them as Markdown.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

TOPICS = (
    "Scaled dot-product attention",
    "Gated MLP",
    "Low-rank adaptation",
    "Linear attention",
    "Rotary position embedding",
    "Mixture of experts router",
    "Patch embedding",
    "RMS normalisation",
)

HELPER = "benchlib.py"
HELPER_SOURCE = '''"""A module that every example imports."""

import time

import torch

VERSION = "v1"


def stamp():
    """What no other run has: a page with a new stamp shows a new run."""
    return time.time_ns()


def sinusoid(n, d):
    """Sines and cosines, [n d]."""
    position = torch.arange(n).unsqueeze(1)
    frequency = torch.exp(torch.arange(0, d, 2) * (-9.21 / d))
    table = torch.zeros(n, d)
    table[:, 0::2] = torch.sin(position * frequency)
    table[:, 1::2] = torch.cos(position * frequency)
    return table
'''

_ATTENTION = '''
class Block(nn.Module):
    """Scaled dot-product attention."""

    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)

    def forward(self, x):
        b, n, d = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        # Without the scale the softmax saturates as the width grows.
        weights = (q @ k.transpose(-2, -1) * (d // self.heads) ** -0.5).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).reshape(b, n, d))
'''

_GATED_MLP = '''
class Block(nn.Module):
    """One projection gates the other."""

    def __init__(self, dim, heads):
        super().__init__()
        hidden = dim * heads // 2
        self.gate = nn.Linear(dim, hidden, bias=False)
        self.up = nn.Linear(dim, hidden, bias=False)
        self.down = nn.Linear(hidden, dim, bias=False)

    def forward(self, x):
        # A gate that is near zero switches a channel off for this token only.
        gate = nn.functional.silu(self.gate(x))
        return self.down(gate * self.up(x))
'''

_LOW_RANK = '''
class Block(nn.Module):
    """A frozen linear map and a low-rank update."""

    def __init__(self, dim, heads):
        super().__init__()
        self.base = nn.Linear(dim, dim)
        self.base.requires_grad_(False)
        self.a = nn.Parameter(torch.randn(dim, heads) / dim**0.5)
        # Zero at the start: the first step is that of the frozen model.
        self.b = nn.Parameter(torch.zeros(heads, dim))

    def forward(self, x):
        return self.base(x) + x @ self.a @ self.b
'''

_LINEAR_ATTENTION = '''
class Block(nn.Module):
    """Normalise, then attend at a cost linear in the length."""

    def __init__(self, dim, heads):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(dim))
        self.q = nn.Linear(dim, dim, bias=False)
        self.k = nn.Linear(dim, dim, bias=False)
        self.v = nn.Linear(dim, dim, bias=False)

    def forward(self, x):
        h = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.scale
        # Keys meet values first, so no matrix has the square of the length.
        q, k, v = self.q(h).softmax(-1), self.k(h).softmax(-2), self.v(h)
        return x + q @ (k.transpose(-2, -1) @ v)
'''

BLOCKS = tuple(
    block.lstrip("\n") for block in (_ATTENTION, _GATED_MLP, _LOW_RANK, _LINEAR_ATTENTION)
)


@dataclass(frozen=True, slots=True)
class Cell:
    """Prose in Markdown, and the code that follows it."""

    prose: str
    code: str


@dataclass(frozen=True, slots=True)
class Example:
    """One script: a title, a sentence, and its cells."""

    name: str
    title: str
    intro: str
    cells: tuple[Cell, ...]


# Examples that run


def example(number: int) -> Example:
    """The example with a number; each differs from the others in widths, text and seed."""
    name, topic = f"ex{number:02d}", TOPICS[number % len(TOPICS)]
    dim, heads, length = 32 + 8 * (number % 4), 4, 16 + number
    setup = f"""import matplotlib.pyplot as plt
import torch
from torch import nn

from benchlib import VERSION, sinusoid, stamp

torch.manual_seed({number})
print("benchlib", VERSION, "ran at", stamp())
"""
    shapes = f"""block = Block({dim}, {heads})
x = sinusoid({length}, {dim}).unsqueeze(0).repeat(2, 1, 1)
y = block(x)
print("x", tuple(x.shape), "y", tuple(y.shape))
print("parameters:", sum(p.numel() for p in block.parameters()))
"""
    training = """trained = [p for p in block.parameters() if p.requires_grad]
opt = torch.optim.Adam(trained, lr=1e-2)
losses = []
for step in range(30):
    loss = (block(x) - x.roll(1, 1)).pow(2).mean()
    opt.zero_grad()
    loss.backward()
    opt.step()
    losses.append(loss.item())
print(f"first {losses[0]:.4f}  last {losses[-1]:.4f}")
"""
    figure = f"""fig, (left, right) = plt.subplots(1, 2, figsize=(8, 3))
left.plot(losses)
left.set(xlabel="step", ylabel="loss", title="{name}: loss")
with torch.no_grad():
    right.imshow(block(x)[0].numpy(), aspect="auto", cmap="viridis")
right.set_title("output")
fig.tight_layout()
plt.show()
"""
    return Example(
        name,
        f"Example {number:02d}: {topic}",
        f"A small implementation of *{topic.lower()}*, number {number} of the corpus, "
        "with shapes printed and a short training run.",
        (
            Cell(
                "## Setup\n\nImports and the seed. The helper `sinusoid` comes from a local "
                "module.",
                setup,
            ),
            Cell(_about(dim), BLOCKS[number % len(BLOCKS)]),
            Cell("## Shapes\n\nOne forward pass, with the shapes of the tensors printed.", shapes),
            Cell(
                "## A short training run\n\nThirty steps of Adam on a copy task; "
                "the loss must fall.",
                training,
            ),
            Cell(
                "## What it learned\n\nThe loss, and the output after training. "
                "See [the paper](https://arxiv.org/abs/1706.03762).",
                figure,
            ),
        ),
    )


def _about(dim: int) -> str:
    return (
        f"## The module\n\nFor queries $Q$, keys $K$ and values $V$ of width $d={dim}$:\n\n"
        r"$$\mathrm{Attention}(Q,K,V)=\mathrm{softmax}\left(\frac{QK^\top}{\sqrt{d}}\right)V$$"
        "\n\n- the projection has no bias,\n- the scale is applied before the softmax,\n"
        "- **no dropout** is used here."
    )


def gallery_rst(item: Example) -> str:
    """sphinx-gallery: a docstring as title, `# %%` blocks, reStructuredText."""
    title = f"{item.title}\n{'=' * len(item.title)}"
    return _gallery(title, item, _rst)


def gallery_markdown(item: Example) -> str:
    """mkdocs-gallery: the same with Markdown."""
    return _gallery(f"# {item.title}", item, str)


def _gallery(title: str, item: Example, write: Callable[[str], str]) -> str:
    head = f'"""\n{title}\n\n{write(item.intro)}\n"""\n'
    blocks = (f"\n# %%\n{_comment(write(cell.prose))}\n\n{cell.code}" for cell in item.cells)
    return head + "".join(blocks)


def percent(item: Example) -> str:
    """Jupytext's percent format, for mkdocs-jupyter, MyST-NB and Marginalia."""
    head = f"# %% [markdown]\n# # {item.title}\n#\n# {item.intro}\n"
    blocks = (
        f"\n# %% [markdown]\n{_comment(cell.prose)}\n\n# %%\n{cell.code}" for cell in item.cells
    )
    return head + "".join(blocks)


# It has no figures of its own: what is printed as HTML is shown.
_PRINT_FIGURE = """\
from base64 import b64encode  # markdown-exec: hide
from io import BytesIO  # markdown-exec: hide
file = BytesIO()  # markdown-exec: hide
fig.savefig(file, format="png")  # markdown-exec: hide
plt.close(fig)  # markdown-exec: hide
image = b64encode(file.getvalue()).decode()  # markdown-exec: hide
print(f'<img src="data:image/png;base64,{image}">')  # markdown-exec: hide
"""


def markdown_exec(item: Example) -> str:
    """Markdown with fences that markdown-exec runs, one session a page."""
    parts = [f"# {item.title}\n\n{item.intro}\n"]
    for cell in item.cells:
        code, shows = cell.code, 'result="text"'
        if "plt.show()\n" in code:
            code, shows = code.replace("plt.show()\n", _PRINT_FIGURE), 'html="on"'
        options = f'exec="on" source="above" session="{item.name}" {shows}'
        parts.append(f"\n{cell.prose}\n\n```python {options}\n{code}```\n")
    return "".join(parts)


def write_examples(
    folder: Path, numbers: Sequence[int], form: Callable[[Example], str], pattern: str
) -> None:
    """Write examples in one format.

    Args:
        folder: Where; it is made.
        numbers: Which.
        form: One of the formats above.
        pattern: Name of a file, such as `plot_{}.py`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        item = example(number)
        (folder / pattern.format(item.name)).write_text(form(item), encoding="utf-8")


def write_helper(folder: Path) -> Path:
    """Write the module that all examples import."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / HELPER
    path.write_text(HELPER_SOURCE, encoding="utf-8")
    return path


def _comment(text: str) -> str:
    return "\n".join(f"# {line}".rstrip() for line in text.split("\n"))


def _rst(text: str) -> str:
    """Markdown to reStructuredText, as far as this corpus goes."""
    text = re.sub(r"(?m)^## (.*)$", lambda m: f"{m[1]}\n{'-' * len(m[1])}", text)
    text = re.sub(r"(?m)^\$\$(.*)\$\$$", r".. math:: \1", text)
    text = re.sub(r"`([^`]+)`", r"``\1``", text)
    text = re.sub(r"(?<![\\$])\$([^$\n]+)\$", r":math:`\1`", text)
    return re.sub(r"\[([^\]]+)\]\(([^)]+)\)", r"`\1 <\2>`_", text)


# Pages that are rendered

GROUP = 50  # pages of one topic


def page(number: int) -> Example:
    """The page with a number."""
    topic, group = TOPICS[number % len(TOPICS)], number // GROUP
    first = number % GROUP == 0
    before = f"from {page_folder(group)}.{page_name(number - 1)} import Block{number - 1}"
    imports = "import torch\nfrom torch import nn\n" + ("" if first else f"\n{before}\n")
    base = "PREVIOUS = None\n" if first else f"PREVIOUS = Block{number - 1}\n"
    cells = [Cell("## What it takes\n\nNothing but torch.", imports)]
    for offset, heading in enumerate(("The module", "A variant", "Another variant")):
        block = BLOCKS[(number + offset) % len(BLOCKS)]
        name = f"Block{number}{'ABC'[offset] if offset else ''}"
        prose = _about(32 + offset) if not offset else f"## {heading}\n\n{_remark(number, offset)}"
        cells.append(Cell(prose, block.replace("class Block", f"class {name}")))
    cells.append(Cell("## What it follows\n\nThe page before this one.", base))
    intro = f"Page {number} of the corpus is about *{topic.lower()}*. {_remark(number, 0)}"
    return Example(page_name(number), f"{topic}, number {number}", intro, tuple(cells))


def _remark(number: int, offset: int) -> str:
    other = TOPICS[(number + offset + 3) % len(TOPICS)].lower()
    return (
        f"It costs $O(n^{{{offset + 1}}} d)$ for {number + 2} tokens of width $d$, and is read "
        f"best beside {other}: what the one gains in *range*, the other pays for in `memory`. "
        "The code below says **how**; the comments say why."
    )


def page_name(number: int) -> str:
    """A module's name."""
    return f"page{number:04d}"


def page_folder(group: int) -> str:
    """A topic's folder."""
    return f"topic{group:02d}"


def module(item: Example) -> str:
    """A module of Marginalia's: a docstring, detached comments as prose, no demo."""
    head = f'r"""\n# {item.title}\n\n{item.intro}\n"""\n'
    blocks = (f"\n{_comment(cell.prose)}\n\n{cell.code}" for cell in item.cells)
    return head + "".join(blocks)


def markdown(item: Example) -> str:
    """The same text for a tool that only renders Markdown."""
    head = f"# {item.title}\n\n{item.intro}\n"
    blocks = (f"\n{cell.prose}\n\n```python\n{cell.code}```\n" for cell in item.cells)
    return head + "".join(blocks)


def write_pages(folder: Path, count: int, form: Callable[[Example], str], suffix: str) -> None:
    """Write pages in one format, in a folder for each topic."""
    for number in range(count):
        place = folder / page_folder(number // GROUP)
        place.mkdir(parents=True, exist_ok=True)
        item = page(number)
        (place / f"{item.name}{suffix}").write_text(form(item), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=("examples", "pages"))
    parser.add_argument("folder", type=Path, help="where to write; one folder for each format")
    parser.add_argument("--n", type=int, default=40, help="how many (40)")
    arguments = parser.parse_args()
    folder, numbers = arguments.folder, range(arguments.n)
    if arguments.kind == "examples":
        write_helper(folder / "lib")
        write_examples(folder / "gallery-rst", numbers, gallery_rst, "plot_{}.py")
        write_examples(folder / "gallery-markdown", numbers, gallery_markdown, "plot_{}.py")
        write_examples(folder / "percent", numbers, percent, "{}.py")
        write_examples(folder / "markdown-exec", numbers, markdown_exec, "{}.md")
    else:
        write_pages(folder / "modules", arguments.n, module, ".py")
        write_pages(folder / "markdown", arguments.n, markdown, ".md")
    print(f"{arguments.n} {arguments.kind} in each format below {folder}")


if __name__ == "__main__":
    main()
