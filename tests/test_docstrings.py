"""TeX in docstrings, raw or not, and text that Python was meant to read."""

from __future__ import annotations

import ast

import pytest
from marginalia.docstrings import meant


def read(literal: str) -> str:
    return meant(ast.literal_eval(literal), literal)


@pytest.mark.filterwarnings("ignore::SyntaxWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("literal", "text"),
    [
        (r'"""A gain $\beta$ and $\frac{a}{b}$."""', r"A gain $\beta$ and $\frac{a}{b}$."),
        (r'"""$$\nu \\ \rho$$"""', r"$$\nu \\ \rho$$"),
        (r'"""say \"$\alpha$\"."""', r'say "$\alpha$".'),
        (r'r"""$\alpha \\ b$"""', r"$\alpha \\ b$"),
        (r'"""$\\alpha$, escaped as Python asks"""', r"$\alpha$, escaped as Python asks"),
        (r'"""a tab\t, a line\n, and \u03b2"""', "a tab\t, a line\n, and β"),
        (r'"one\tword" "two"', "one\twordtwo"),
    ],
)
def test_the_text_is_what_the_author_meant(literal: str, text: str) -> None:
    assert read(literal) == text
