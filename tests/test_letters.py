"""Letters name axes where they follow from the text and the recorded sizes, and nowhere else."""

from __future__ import annotations

import textwrap
from collections import defaultdict
from collections.abc import Collection
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from marginalia.demo import Result, Shape
from marginalia.errors import SourceError
from marginalia.jobs import Job
from marginalia.letters import letters
from marginalia.paper import load
from marginalia.runner import run_isolated

PAPERS = Path(__file__).parents[1] / "papers"
IMPORTS = "import torch\nfrom einops import einsum, rearrange, reduce, repeat\n"


SERIALS = count(1000)


def seen(line: int, name: str, *sizes: int, call: int = 1, object: int = 0, **more: Any) -> Shape:
    """A record as a run makes it, of one tensor: one of its own if no serial is given."""
    run = [call, object or next(SERIALS)]
    return Shape(line, name, list(sizes), "float32", "cpu", count=1, seen=[run], **more)


def labels(text: str, *shapes: Shape, declared: Collection[str] = ()) -> list[str]:
    """The labels of the shapes, in words; empty where there is none."""
    found = letters(textwrap.dedent(text).lstrip("\n"), shapes, declared)
    return [" ".join(found.get(index, ())) for index in range(len(shapes))]


def assigned(value: str, *sizes: int, declared: Collection[str] = ("b", "c")) -> str:
    """The label of `y = VALUE` in a function; `value` may end in a comment."""
    text = IMPORTS + "import math\nimport numpy as np\nfrom torch.nn import functional as F\n"
    text += "from einops.layers.torch import Rearrange, Reduce\n"
    text += f"def f(x):\n    y = {value}\n"
    return labels(text, seen(8, "y", *sizes), declared=declared)[0]


# Shape comments


@pytest.mark.parametrize(
    ("comment", "sizes", "label"),
    [
        ("[b c h w] -> [b c]", (2, 64, 9, 7), "b c h w"),
        ("[b, c, h, w] -> [b, c]", (2, 64, 9, 7), "b c h w"),
        ("[b c_in h' w'] -> [b]", (2, 64, 9, 7), "b c_in h' w'"),
        ("[b (h w) c] -> [b]", (2, 63, 5), "b h·w c"),
        ("[b 4*c h/2] -> [b]", (2, 64, 9), "b 4*c h/2"),
        ("[b 3 h w] -> [b]", (2, 3, 9, 7), "b 3 h w"),
        ("[... n d] -> [... n d]", (2, 3, 9, 7), "2 3 n d"),
        ("[b ... d] -> [b]", (2, 3, 9, 7), "b 3 9 d"),
        ("[... n d] -> [... n d]", (9, 7), "n d"),
        ("[b c] -> [b c], Eq. 3", (9, 7), "b c"),
        ("[b 3 h w] -> [b]", (2, 4, 9, 7), ""),
        ("[b c] -> [b]", (2, 4, 9), ""),
        ("[b ... c ... d] -> [b]", (2, 4, 9), ""),
        ("[n n] -> [n]", (4, 4), "n n"),
        ("[n n] -> [n]", (4, 5), ""),
        ("[] -> [b c]", (4, 5), ""),
        ("see [b c]", (4, 5), ""),
    ],
)
def test_a_comment_behind_a_signature_names_the_argument(
    comment: str, sizes: tuple[int, ...], label: str
) -> None:
    assert labels(f"def f(x):  # {comment}\n    return x\n", seen(1, "x", *sizes)) == [label]


def test_a_comment_names_tensor_arguments_and_results_in_order() -> None:
    text = """
    def f(
        self, heads: int, q: Tensor, mask: Tensor | None, k,
    ):  # [b n d], [n m], [b m d] -> [b n d], [n]
        if heads:
            return q, k[0, :, 0]
        return q
    """
    shapes = [
        seen(1, "q", 2, 5, 8),
        seen(1, "k", 2, 6, 8),
        seen(5, "return[0]", 2, 5, 8),
        seen(5, "return[1]", 5),
        seen(6, "return", 2, 5, 8),
    ]
    assert labels(text, *shapes) == ["b n d", "b m d", "b n d", "n", "b n d"]


def test_arguments_behind_a_tuple_of_tensors_have_no_certain_place() -> None:
    text = "def f(xs, y):  # [b c], [c] -> [b]\n    return y\n"
    assert labels(text, seen(1, "xs[0]", 2, 3), seen(1, "y", 3)) == ["", ""]


@pytest.mark.parametrize(
    ("comment", "label"),
    [
        ("b c", "b c"),
        ("[b, c]", "b c"),
        ("[2 c]", "2 c"),
        ("[3 c]", ""),
        ("b n", ""),  # n is no letter of this page
        ("b c c", ""),
        ("[12]", ""),
        ("see Section 3", ""),
    ],
)
def test_a_comment_behind_an_assignment_consists_of_known_letters(comment: str, label: str) -> None:
    assert assigned(f"x  # {comment}", 2, 64) == label


def test_a_product_must_be_the_product_of_its_letters() -> None:
    text = "def f(x):  # [b c] -> [4*b c//2]\n    return x\n"
    argument = seen(1, "x", 2, 7)
    assert labels(text, argument, seen(2, "return", 8, 3))[1] == "4*b c//2"
    assert labels(text, argument, seen(2, "return", 9, 3))[1] == "9 c//2"


def test_weights_have_letters_by_a_shape_comment_only() -> None:
    text = f"{IMPORTS}def f(x):\n    w = x  # [c d]\n    v = rearrange(x, 'c d -> c d')\n"
    known = {"c", "d"}
    weight = seen(4, "w", 3, 4, kind="parameter", object=5)
    other = seen(5, "v", 3, 4, kind="parameter", object=5)
    assert labels(text, weight, declared=known) == ["c d"]
    assert labels("def f(w):\n    v = w\n", seen(1, "w", 3, 4), other) == ["", ""]


# Patterns


@pytest.mark.parametrize(
    ("value", "sizes", "label"),
    [
        ("rearrange(x, 'b c h w -> b (h w) c')", (2, 63, 5), "b h·w c"),
        ("rearrange(x, 'b c -> b c 1 ()')", (2, 5, 1, 1), "b c 1 1"),
        ("rearrange(x, '... n d -> ... d n')", (2, 3, 5, 4), "2 3 d n"),
        ("rearrange(x, '... n d -> (...) d n')", (6, 5, 4), "6 d n"),
        ("rearrange(x, 'b (h two) -> two b h', two=2)", (2, 3, 5), "two b h"),
        ("reduce(x, 'b c h w -> b c', 'mean')", (2, 5), "b c"),
        ("repeat(x, 'b -> b 3')", (2, 3), "b 3"),
        ("repeat(x, 'b -> b 3')", (2, 4), ""),
        ("repeat(x, 'b -> b k', k=3)", (2, 3, 1), ""),
        ("einsum(x, x, 'b n d, b m d -> b n m')", (2, 5, 6), "b n m"),
        ("torch.einsum('bqd,bkd->bqk', x, x)", (2, 5, 6), "b q k"),
        ("torch.einsum('...qd,...kd->...qk', x, x)", (2, 5, 6), "2 q k"),
        ("Rearrange('b c h -> b (c h)')(x)", (2, 5), "b c·h"),
        ("Reduce('b c h -> b c', 'mean')(x)", (2, 5), "b c"),
        ("rearrange(x, 'b c -> c b').softmax(dim=0).float()", (2, 5), "c b"),
        ("F.relu(2 * rearrange(x, 'b c -> c b') / math.sqrt(3))", (2, 5), "c b"),
        ("-einsum(x, x, 'b n, b m -> n m') / x.shape[-1] ** 0.5", (2, 5), "n m"),
        ("rearrange(x, 'b c -> c b') + x", (2, 5), ""),
        ("rearrange(x, 'b c -> c b')[:2]", (2, 5), ""),
        ("rearrange(x, 'b c -> c b').mean(dim=0)", (2,), ""),
        ("f(rearrange(x, 'b c -> c b'))", (2, 5), ""),
    ],
)
def test_a_pattern_names_its_result(value: str, sizes: tuple[int, ...], label: str) -> None:
    assert assigned(value, *sizes, declared=()) == label


def test_a_pattern_names_the_value_it_takes() -> None:
    text = f"""{IMPORTS}
def f(x, y):
    z = x[0]
    return rearrange(z, "b (h w) -> b h w", h=3), einsum(x, y, "n d, m d -> n m")
"""
    shapes = [
        seen(4, "x", 5, 4),
        seen(4, "y", 6, 4),
        seen(5, "z", 2, 12),
        seen(6, "return[0]", 2, 3, 4),
        seen(6, "return[1]", 5, 6),
    ]
    assert labels(text, *shapes) == ["n d", "m d", "b h·w", "b h w", "n m"]


@pytest.mark.parametrize(
    "between",
    ["if x.sum() > 0:\n        z = z.T", "if x is None:\n        return x", "z, _ = z.T, 0"],
)
def test_a_value_that_may_be_another_has_no_letters(between: str) -> None:
    text = f"{IMPORTS}def f(x):\n    z = x[0]\n    {between}\n    y = rearrange(z, 'b c -> c b')\n"
    line = text.count("\n")
    assert labels(text, seen(4, "z", 3, 3), seen(line, "y", 3, 3)) == ["", "c b"]


# The same tensor


def test_a_tensor_keeps_its_letters_from_line_to_line_and_call_to_call() -> None:
    text = """
    def f(x):  # [b c] -> [b c]
        return x
    def g(t):
        parts = f(t), 1
        q = parts
    """
    shapes = [
        seen(1, "x", 2, 3, object=7, call=5),
        seen(3, "t", 2, 3, object=7, call=4),
        seen(5, "q[0]", 2, 3, object=7, call=4),
        seen(5, "other", 4, 9, call=4),
    ]
    assert labels(text, *shapes) == ["b c", "b c", "b c", ""]


def test_letters_from_elsewhere_that_clash_are_dropped_and_those_written_here_stay() -> None:
    text = f"""{IMPORTS}
def f(x):  # [b c] -> [b c]
    return x
def g(u):
    v = rearrange(u, "b h -> h b")
    r = f(v)
    s = f(r)
def h(u):
    r = f(u)
    s = f(u)
"""
    returned = [
        seen(5, "return", 9, 2, object=1, call=2),
        seen(5, "return", 8, 2, object=2, call=3),
    ]
    in_g = [seen(7, "v", 5, 3), seen(8, "r", 9, 2, object=1)]
    assert labels(text, *returned, *in_g) == ["b c", "b c", "h b", "9 c"]
    in_h = [seen(11, "r", 9, 2, object=1, call=7), seen(12, "s", 8, 2, object=2, call=7)]
    assert labels(text, *returned, *in_h) == ["b c", "b c", "9 c", "8 c"]


# Sizes


SIZES = "def f(x):  # [b c h w] -> [b]\n    y = x.relu()\n    return y.sum()\n"


def by_size(argument: tuple[int, ...], *others: tuple[int, ...]) -> list[str]:
    """The labels of tensors in a call with a labelled argument."""
    shapes = [seen(2, f"y{n}", *sizes) for n, sizes in enumerate(others)]
    return labels(SIZES, seen(1, "x", *argument), *shapes)[1:]


def test_a_size_that_one_letter_has_names_an_axis() -> None:
    assert by_size((2, 64, 9, 7), (2, 64, 9, 7), (64,), (2, 1, 9, 7)) == [
        "b c h w",
        "c",
        "b 1 h w",
    ]


def test_an_axis_whose_size_two_letters_have_shows_its_number() -> None:
    assert by_size((2, 64, 9, 9), (2, 64, 9, 9)) == ["b c 9 9"]


def test_a_tensor_with_a_size_of_no_letter_has_none() -> None:
    assert by_size((2, 64, 9, 7), (2, 4), (2, 2), (63, 64)) == ["", "", ""]


def test_letters_do_not_meet_by_chance() -> None:
    text = f"""{IMPORTS}
def f(x):
    q = rearrange(x, "b k -> b k")
    v = rearrange(x, "n d -> n d")
    w = x
"""
    shapes = [seen(5, "q", 2, 16), seen(6, "v", 50, 8), seen(7, "w", 50, 16)]
    assert labels(text, *shapes) == ["b k", "n d", ""]


def test_sizes_must_agree_in_every_call_that_was_seen() -> None:
    def calls(second: tuple[int, ...], y: tuple[int, ...]) -> list[str]:
        return labels(
            SIZES.replace("[b c h w]", "[b c]"),
            seen(1, "x", 2, 3),
            seen(1, "x", *second, call=2),
            seen(2, "y", 2, 3),
            seen(2, "y", *y, call=2),
        )[2:]

    assert calls((4, 5), (4, 5)) == ["b c", "b c"]
    assert calls((4, 5), (5, 4)) == ["", ""]
    assert calls((4, 5), (4, 6)) == ["", ""]


def test_one_run_decides_what_the_others_leave_open() -> None:
    text = SIZES.replace("[b c h w]", "[b c]")
    shapes = [
        seen(1, "x", 3, 3),
        seen(1, "x", 1, 4, call=2),
        seen(1, "x", 2, 5, call=3),
        seen(2, "y", 3, 3),
        seen(2, "y", 1, 4, call=2),
    ]
    assert labels(text, *shapes[:4])[3] == ""
    assert labels(text, *shapes)[3:] == ["b c", "b c"]


def test_every_run_of_a_record_counts() -> None:
    text = SIZES.replace("[b c h w]", "[b c]")
    arguments = [seen(1, "x", 2, 3), seen(1, "x", 3, 2, call=2)]
    once, twice = seen(2, "y", 2, 3), seen(2, "y", 2, 3)
    twice.seen.append([2, next(SERIALS)])
    assert labels(text, *arguments, once)[2] == "b c"
    assert labels(text, *arguments, twice)[2] == ""

    text = "def f(x):  # [b c] -> [b]\n    return x\ndef g(t):\n    return t\n"
    known, same = seen(1, "x", 2, 3, object=5, call=2), seen(3, "t", 2, 3, object=5)
    assert labels(text, known, same)[1] == "b c"
    same.seen.append([3, next(SERIALS)])
    assert labels(text, known, same)[1] == ""


def test_a_letter_that_arrives_later_puts_others_in_doubt() -> None:
    text = """
    def f(x):  # [b h] -> [b]
        r = g(x)
        y = r.relu()
    def g(u):  # [b w] -> [b]
        v = u * 2
        return v
    """
    shapes = [
        seen(1, "x", 2, 9),
        seen(2, "r", 2, 9, object=6),
        seen(3, "y", 2, 9),
        seen(4, "u", 2, 9, call=2),
        seen(6, "return", 2, 9, object=6, call=2),
    ]
    assert labels(text, *shapes)[1:3] == ["b 9", "b 9"]


def test_an_ellipsis_stands_for_the_same_axes_in_all_tensors_of_a_pattern() -> None:
    text = f"""{IMPORTS}
def f(x):
    q = rearrange(x, "n (b h k) -> b h n k", b=1, h=2)
    return g(q, q.double())
def g(q, k):
    return einsum(q, k, "... n k, ... m k -> ... n m")
"""
    shapes = [
        seen(5, "q", 1, 2, 7, 8, object=5),
        seen(7, "q", 1, 2, 7, 8, object=5, call=2),
        seen(7, "k", 1, 2, 7, 8, call=2),
        seen(8, "return", 1, 2, 7, 7, call=2),
    ]
    assert labels(text, *shapes) == ["b h n k", "b h n k", "b h m k", "b h n m"]


def test_a_letter_with_two_sizes_in_one_call_is_dropped() -> None:
    text = f"{IMPORTS}def f(x):  # [b c] -> [b]\n    y = rearrange(x, 'b h -> b h')\n    z = y\n"
    shapes = [seen(3, "x", 2, 3), seen(4, "y", 4, 5), seen(5, "z", 2, 3)]
    assert labels(text, *shapes) == ["2 c", "4 h", "2 c"]


def test_the_top_level_is_one_call() -> None:
    text = f"{IMPORTS}x = reduce(x, 'b c h -> b c', 'max')\ny = x.relu()\n"
    assert labels(text, seen(3, "x", 2, 3, call=0), seen(4, "y", 2, 3, call=0)) == ["b c", "b c"]


# As a whole


def test_a_source_that_does_not_parse_is_an_error() -> None:
    with pytest.raises(SourceError, match="<source>:1:"):
        letters("def f(:\n", [], ())


def test_modules_scalars_and_lines_that_are_gone_have_no_letters() -> None:
    text = "def f(x):  # [b] -> [b]\n    return x\n"
    module = seen(1, "x", kind="parameter", note="12 tensors")
    assert letters(text, [module, seen(2, "return"), seen(99, "z", 3)], ()) == {}


MODULE = """
import torch
from einops import rearrange
from torch import Tensor


def split(x: Tensor) -> tuple[Tensor, Tensor]:  # [b n d] -> [b n d], [b n]
    norm = x.norm(dim=-1)
    return x / norm[..., None], norm


def demo() -> None:
    x = torch.randn(2, 5, 7)
    pair = split(x)
    unit, norm = pair
    pixels = rearrange(x, "b n d -> b (n d)")
    gram = x.flatten(1) @ pixels.T
"""


def labelled(result: Result, path: Path, root: Path) -> dict[tuple[str, str], set[str]]:
    """The labels of a run: those of each name in each line of the source."""
    assert result.ok, result.error
    text = path.read_text(encoding="utf-8")
    found = letters(text, result.shapes, load(path, root).letters)
    lines: dict[tuple[str, str], set[str]] = defaultdict(set)
    for index, shape in enumerate(result.shapes):
        line = text.split("\n")[shape.line - 1].strip()
        lines[line, shape.name].add(" ".join(found.get(index, ())))
    return lines


def test_letters_of_a_run(tmp_path: Path) -> None:
    path = tmp_path / "page.py"
    path.write_text(MODULE, encoding="utf-8")
    found = labelled(run_isolated(Job(path, tmp_path)), path, tmp_path)
    assert {name: label for (_, name), (label,) in found.items()} == {
        "x": "b n d",
        "norm": "b n",
        "return[0]": "b n d",
        "return[1]": "b n",
        "pair[0]": "b n d",
        "pair[1]": "b n",
        "unit": "b n d",
        "pixels": "b n·d",
        "gram": "",
    }


def test_letters_of_a_paper() -> None:
    path = PAPERS / "attention" / "squeeze_excitation.py"
    result = run_isolated(Job(path, PAPERS))
    found = labelled(result, path, PAPERS)
    assert found["z = self.squeeze(u)", "z"] == {"b c"}
    assert found["s = self.excite(z)", "s"] == {"b c"}
    assert found["hidden = self.w1(z).relu()  # b c/r", "hidden"] == {"b c/r"}
    assert found[
        'pixels = rearrange(u, "b c h w -> b c (h w)")[..., torch.randperm(63)]', "pixels"
    ] == {"b c h·w"}
    assert found["louder = u.clone()", "louder"] == {"b c h w"}
    assert found["return images, tip, label", "return[1]"] == {"b"}

    declared = load(path, PAPERS).letters
    for index, label in letters(path.read_text(encoding="utf-8"), result.shapes, declared).items():
        sizes = result.shapes[index].shape
        assert len(label) == len(sizes)
        assert all(
            not axis.isdigit() or int(axis) == n for axis, n in zip(label, sizes, strict=True)
        )
