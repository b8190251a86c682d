"""Where papers live, and how a new one starts."""

from __future__ import annotations

import keyword
import re
from pathlib import Path

# A demo that runs as it stands: an author changes something that works.
_TEMPLATE = '''r"""
---
title: {title}
authors: []
year:
venue:
arxiv:
topic: {topic}
tags: []
note:
idea: the idea in a line
compare:
---

Which problem does the paper see, which idea does it have, what does it cost, what
do I lose, and where in the paper is it?

Letters: `b` batch, `c` channels, `h w` height and width.
"""

import torch
from einops import reduce
from torch import Tensor, nn

# ## The idea


class {name}(nn.Module):
    """What it computes, with the symbols of the paper: $y = x / \\sum x$."""

    def forward(self, x: Tensor) -> Tensor:  # [b c h w] -> [b c h w]
        # A comment that touches code is the prose beside it: say *why*.
        total = reduce(x, "b c h w -> b c 1 1", "sum")

        return x / total


# ## Demo


def demo() -> None:
    """What the paper claims, checked."""
    torch.manual_seed(0)
    x = torch.rand(2, 8, 5, 7)
    y = {name}()(x)

    # An assert is a claim: the page shows both sides, and its comment as the source.
    assert y.shape == x.shape  # Section 3
    torch.testing.assert_close(y.sum((2, 3)), torch.ones(2, 8))  # Eq. 1


if __name__ == "__main__":
    demo()
'''


def find_root(path: Path) -> Path:
    """The folder that must be on the import path for the module at `path`.

    It is the folder `papers` beside a `mkdocs.yml` above the module, else the module's own folder.
    """
    path = path.resolve()
    for folder in path.parents:
        if folder.name == "papers" and (folder.parent / "mkdocs.yml").is_file():
            return folder
    return path.parent


def create(papers: Path, name: str) -> Path:
    """Write a module that already runs.

    Args:
        papers: The folder of modules.
        name: `topic/slug`, both in lower case; hyphens become underscores.

    Returns:
        The new file.

    Raises:
        ValueError: The name has another form, or the file exists.
    """
    parts = name.removesuffix(".py").replace("-", "_").split("/")
    if len(parts) != 2 or not all(_is_module_name(part) for part in parts):
        raise ValueError(f"{name!r} is not of the form topic/slug, such as attention/my_paper")
    topic, slug = parts
    path = papers / topic / f"{slug}.py"
    if path.exists():
        raise ValueError(f"{path} exists already")
    words = slug.split("_")
    text = _TEMPLATE.format(
        title=" ".join(words).capitalize(),
        topic=topic.replace("_", "-"),
        name="".join(word.capitalize() for word in words),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def _is_module_name(part: str) -> bool:
    return re.fullmatch(r"[a-z][a-z0-9_]*", part) is not None and not keyword.iskeyword(part)
