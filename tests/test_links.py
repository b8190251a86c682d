from __future__ import annotations

import functools
import importlib
from pathlib import Path
from textwrap import dedent

import pytest
from marginalia import external
from marginalia.dangling import Dangling, dangling
from marginalia.errors import SourceError
from marginalia.links import Index

MODEL = Path(__file__).parents[1] / "papers" / "attention" / "squeeze_excitation.py"
TORCH = "https://docs.pytorch.org/docs/stable/"


def linked(source: str, index: Index | None = None, module: str = "a.page") -> dict[str, str]:
    """`line:identifier` -> url, for a module at `page/`."""
    source = dedent(source).lstrip("\n")
    index = index or Index()
    index.add(module, source, "page/")
    lines = source.splitlines()
    found = index.links(module, source)
    assert found == sorted(found, key=lambda link: (link.line, link.column))
    return {
        f"{link.line}:{lines[link.line - 1][link.column : link.end_column]}": link.url
        for link in found
    }


# Links from code


def test_names_lead_to_definitions() -> None:
    source = """
        from torch import nn
        import torch.nn.functional as F

        SIZE = 3


        class Gate(nn.Module):
            size = SIZE

            def get(self, x):
                return F.relu(x) + self.size + self.layer(x)

            def all(self, xs):
                return [self.get(x) for x in xs]


        def make():
            gate = Gate()
            return gate.get(SIZE), Gate.get
    """
    assert linked(source) == {
        "1:torch": TORCH + "torch.html",
        "1:nn": TORCH + "nn.html",
        "2:functional": TORCH + "nn.functional.html",
        "7:Module": TORCH + "generated/torch.nn.Module.html",
        "8:SIZE": "page/#SIZE",
        "11:relu": TORCH + "generated/torch.nn.functional.relu.html",
        "14:get": "page/#Gate.get",
        "18:Gate": "page/#Gate",
        "19:SIZE": "page/#SIZE",
        "19:get": "page/#Gate.get",
    }


@pytest.mark.parametrize(
    "body",
    [
        "def f(nn): return nn.Linear",
        "def f():\n    nn = 1\n    return nn.Linear",
        "f = lambda nn: nn.Linear",
        "f = [nn.Linear for nn in []]",
        "def f():\n    for nn in []: nn.Linear",
        "def f():\n    try: pass\n    except E as nn: nn.Linear",
        "x = 'nn.Linear'  # nn.Linear",
        "x: 'nn.Linear' = 1",
        "nn.linear",
        "nn.Made.Up",
        "obj.nn.Linear",
        "make().nn.Linear",
        "nn",
    ],
)
def test_no_link_is_better_than_a_wrong_one(body: str) -> None:
    assert not [key for key in linked(f"from torch import nn\n{body}\n") if key[0] != "1"]


def test_a_class_has_its_own_names_first() -> None:
    source = (
        "from torch import nn\nclass A:\n    x = nn.ReLU\n    def nn(self): pass\n    y = nn.ReLU\n"
    )
    assert linked(source)["3:ReLU"] == TORCH + "generated/torch.nn.ReLU.html"
    assert linked(source)["5:nn"] == "page/#A.nn"


def test_self_is_the_class_only_in_its_methods() -> None:
    source = """
        class A:
            def f(self): return self.f
            def g(this): return this.f, (lambda: this.f)
            @classmethod
            def h(cls): return cls.f
            @staticmethod
            def i(self): return self.f
            def j(self, other):
                other.f
                self = other
                return self.f
        def k(self): return self.f
    """
    assert linked(source) == {
        "2:f": "page/#A.f",
        "3:f": "page/#A.f",
        "5:f": "page/#A.f",
    }


def test_the_longest_known_part_of_a_path() -> None:
    source = "import torch\nSTAGES = []\nSTAGES.append(torch.Tensor.shape.fget)\n"
    assert linked(source) == {
        "1:torch": TORCH + "torch.html",
        "3:STAGES": "page/#STAGES",
        "3:Tensor": TORCH + "tensors.html",
    }


def test_columns_are_characters() -> None:
    source = '"""é"""\nfrom torch import nn\nx = "ééé𝔸", nn . Linear\ny = f"{nn.ReLU}{1}"\n'
    index = Index()
    links = [link for link in index.links("m", source) if link.line > 2]
    assert (links[0].line, links[0].column, links[0].end_column) == (3, 17, 23)
    assert all(source.splitlines()[3][k.column : k.end_column] == "ReLU" for k in links[1:])


def test_line_ends_and_marks() -> None:
    source = "\ufefffrom torch import nn\r\nx = '''\r\n'''\rnn.Linear\r"
    assert [(k.line, k.column) for k in Index().links("m", source)][-1] == (4, 3)


def test_imports_inside_of_functions() -> None:
    source = "def f():\n    from einops import rearrange as r\n    return r\n"
    url = "https://einops.rocks/api/rearrange/"
    assert linked(source)["3:r"] == url
    assert linked(source)["2:rearrange"] == url


def test_conflicting_imports_have_no_link() -> None:
    either = "try:\n    {}\nexcept ImportError:\n    {}\n{}\n"
    two = either.format("from einops import reduce", "from torch import sum as reduce", "reduce")
    assert "5:reduce" not in linked(two)
    absent = either.format("import torch", "torch = None", "torch.zeros")
    assert linked(absent)["5:zeros"] == TORCH + "generated/torch.zeros.html"
    own = either.format("from einops import reduce", "def reduce(): pass", "reduce")
    assert linked(own)["5:reduce"] == "page/#reduce"


def library() -> Index:
    index = Index()
    index.add("labml_nn", "", "lib/", "companion")
    index.add("labml_nn.mha", "class MHA:\n    def heads(self): pass\n", "lib/mha/", "companion")
    index.add("labml_nn.models", "from .mha import MHA\n", "lib/models/", "companion")
    index.add("b.gates", "from torch import nn\nclass Gate:\n    def get(self): pass\n", "gates/")
    return index


def test_other_pages() -> None:
    source = """
        import labml_nn.mha
        from b.gates import Gate, nn as layers
        from b import gates
        from labml_nn.models import MHA
        from . import missing


        class Mine(Gate):
            def f(self):
                return self.get, MHA.heads, gates.Gate, labml_nn.mha.MHA, layers.ReLU
    """
    index = library()
    assert linked(source, index) == {
        "1:mha": "lib/mha/",
        "2:gates": "gates/",
        "2:Gate": "gates/#Gate",
        "2:nn": TORCH + "nn.html",
        "3:gates": "gates/",
        "4:models": "lib/models/",
        "4:MHA": "lib/mha/#MHA",
        "8:Gate": "gates/#Gate",
        "10:get": "gates/#Gate.get",
        "10:heads": "lib/mha/#MHA.heads",
        "10:Gate": "gates/#Gate",
        "10:MHA": "lib/mha/#MHA",
        "10:ReLU": TORCH + "generated/torch.nn.ReLU.html",
    }
    kinds = {link.kind for link in index.links("a.page", dedent(source).lstrip("\n"))}
    assert kinds == {"paper", "companion", "external"}


def test_relative_imports() -> None:
    index = library()
    index.add("labml_nn.sub", "", "lib/sub/", "companion")
    index.add("labml_nn.sub.deep", "from ..mha import MHA\nMHA\n", "lib/deep/", "companion")
    source = "from ..mha import MHA\nMHA\n"
    assert [k.url for k in index.links("labml_nn.sub.deep", source)] == [
        "lib/mha/",
        "lib/mha/#MHA",
        "lib/mha/#MHA",
    ]
    package = "from .deep import MHA\n"
    assert index.links("labml_nn.sub", package)[-1].url == "lib/mha/#MHA"
    assert index.links("labml_nn.sub.deep", "from ....x import MHA\nMHA\n") == []


def test_modules_that_import_each_other_in_a_circle() -> None:
    index = Index()
    index.add("x", "from y import a\n", "x/")
    index.add("y", "from x import a\n", "y/")
    assert index.resolve("x.a") is None


def test_titles() -> None:
    index = library()
    source = "from b.gates import Gate\nclass A: pass\nA, Gate\n"
    index.add("a.page", source, "page/")
    titles = {link.title: link.kind for link in index.links("a.page", source)}
    assert titles == {"b.gates": "paper", "b.gates.Gate": "paper", "A": "local"}


def test_a_module_that_is_not_indexed_or_does_not_parse() -> None:
    assert Index().links("m", "def f(): pass\nf()\n") == []
    with pytest.raises(SourceError):
        Index().add("m", "def (", "m/")
    with pytest.raises(SourceError):
        Index().links("m", "def (")


def test_the_model_module() -> None:
    index = Index()
    text = MODEL.read_text()
    index.add("attention.squeeze_excitation", text, "se/")
    links = index.links("attention.squeeze_excitation", text)
    urls = {link.url for link in links}
    assert {"se/#SqueezeExcite", "se/#witnesses", TORCH + "generated/torch.nn.Linear.html"} <= urls
    lines = text.splitlines()
    for link in links:
        assert lines[link.line - 1][link.column : link.end_column].isidentifier()


# References from prose


def test_resolve() -> None:
    index = library()
    index.add("c.gates", "class Other: pass\nclass Box:\n    def get(self): pass\n", "c/")
    assert index.resolve("b.gates.Gate") == ("gates/#Gate", "b.gates.Gate")
    assert index.resolve("b.gates") == ("gates/", "b.gates")
    assert index.resolve("Gate.get") == ("gates/#Gate.get", "b.gates.Gate.get")
    assert index.resolve("labml_nn.models.MHA") == ("lib/mha/#MHA", "labml_nn.mha.MHA")
    assert index.resolve("torch.nn.Linear") == (
        TORCH + "generated/torch.nn.Linear.html",
        "torch.nn.Linear",
    )
    assert index.resolve("get") is None
    assert index.resolve("gates") is None
    assert index.resolve("Nothing") is None
    assert index.resolve("") is None


def test_papers_come_before_the_companion_library() -> None:
    index = library()
    index.add("d.mha", "class MHA: pass\n", "d/")
    assert index.resolve("MHA") == ("d/#MHA", "d.mha.MHA")
    index.add("e.mha", "class MHA: pass\n", "e/")
    assert index.resolve("MHA") is None
    index.remove("d.mha")
    assert index.resolve("MHA") == ("e/#MHA", "e.mha.MHA")


def test_a_module_that_goes_leaves_the_name_to_its_package() -> None:
    index = Index()
    index.add("pkg", "def relu(): pass\n", "pkg/")
    index.add("pkg.relu", "", "relu/")
    index.remove("pkg.relu")
    assert index.resolve("relu") == ("pkg/#relu", "pkg.relu")


# Other projects


def test_every_documented_name_exists() -> None:
    for module in ("einops.layers.torch", "torch.nn.utils.parametrize", "torch.testing"):
        importlib.import_module(module)
    for module in ("torch.distributions", "torch.utils.data", "torch.utils.checkpoint"):
        importlib.import_module(module)
    for name in external.names():
        package, *rest = name.split(".")
        assert functools.reduce(getattr, rest, importlib.import_module(package)) is not None


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("torch.nn.Linear", TORCH + "generated/torch.nn.Linear.html"),
        ("torch.nn.Parameter", TORCH + "generated/torch.nn.parameter.Parameter.html"),
        ("torch.nn.Flatten", TORCH + "generated/torch.nn.modules.flatten.Flatten.html"),
        ("torch.nn.functional.relu", TORCH + "generated/torch.nn.functional.relu.html"),
        ("torch.nn.init.normal_", TORCH + "nn.init.html#torch.nn.init.normal_"),
        ("torch.optim.Adam", TORCH + "generated/torch.optim.Adam.html"),
        ("torch.testing.assert_close", TORCH + "testing.html#torch.testing.assert_close"),
        ("torch.float32", TORCH + "tensor_attributes.html#torch.dtype"),
        ("torch.manual_seed", TORCH + "generated/torch.manual_seed.html"),
        ("torch.no_grad", TORCH + "generated/torch.no_grad.html"),
        ("torch.relu", None),
        ("torch.nn.modules", None),
        ("einops.pack", "https://einops.rocks/api/pack_unpack/"),
        ("einops.layers.torch.Reduce", None),
        ("numpy.zeros", None),
    ],
)
def test_documentation(name: str, url: str | None) -> None:
    assert external.find(name) == url


# Links that lead nowhere


def test_dangling() -> None:
    pages = {
        "": '<a href="a/b/#x">ok</a> <a href="a/b/#y">no</a> <a href="a/c/">no</a>',
        "a/b/": """
            <h1 id=x>t</h1><a name='old'></a>
            <a href="#x">ok</a> <a href="#top">ok</a> <a href="#">ok</a> <a href="">ok</a>
            <a href="../../#q">no</a> <a href="../..">ok</a> <a href=".">ok</a>
            <a href="./#old">ok</a>
            <img src="../p.svg"> <img src='../q.svg'> <img srcset="../p.svg 1x, ../r.svg 2x">
            <a href="/a/b/">ok</a> <a href="/nowhere/">no</a> <a href="../../../up/">no</a>
            <a href="?q=1#x">ok</a> <a href="../b?q#z">no</a> <a href="index.html#x">ok</a>
            <a href="https://x.org/a">ok</a> <a href="//x.org">ok</a> <a href="mailto:a@b">ok</a>
            <a href="#%78">ok</a> <a href="#x&amp;y">no</a> <a href="#:~:text=t">ok</a>
            <svg><use xlink:href="#x"/><use xlink:href="#glyph"/></svg>
        """,
        "404.html": '<link href="/s.css"><script src="/s.js"></script>',
    }
    found = dangling(pages, ["a/p.svg", "s.css"])
    assert found == [
        Dangling("", "a/b/#y", "anchor"),
        Dangling("", "a/c/", "page"),
        Dangling("a/b/", "../../#q", "anchor"),
        Dangling("a/b/", "../q.svg", "page"),
        Dangling("a/b/", "../r.svg", "page"),
        Dangling("a/b/", "/nowhere/", "page"),
        Dangling("a/b/", "../../../up/", "page"),
        Dangling("a/b/", "../b?q#z", "anchor"),
        Dangling("a/b/", "#x&y", "anchor"),
        Dangling("a/b/", "#glyph", "anchor"),
        Dangling("404.html", "/s.js", "page"),
    ]
    assert str(found[0]) == "index.html: no such anchor: a/b/#y"


@pytest.mark.parametrize(
    "html",
    [
        "text with href='#no' and <b title=\"<a href='#no'>\">x</b>",
        "<!-- <a href='#no'> -->",
        "<script>s = \"<a href='#no'>\"</script>",
        "<SCRIPT>s = \"<a href='#no'>\"</SCRIPT >",
        "<style>a[href='#no'] {}</style><title><a href='#no'></title>",
        "<textarea><a href='#no'></textarea>",
        "<p data-href='#no' data-src=#no>1 < 2 href='#no'",
        "<p>a <- b; if x <href='#no'",
        "<?xml <a href='#no'?>",
    ],
)
def test_only_attributes_of_tags_are_links(html: str) -> None:
    assert dangling({"": html}) == []


def test_nothing_hides_a_link() -> None:
    html = "<p title='a > b'>1 < 2 <script src='s.js'>'</a>'</script><A\nHREF = '#no' x>"
    assert dangling({"": html}, []) == [Dangling("", "s.js", "page"), Dangling("", "#no", "anchor")]


def test_metadata_is_no_anchor() -> None:
    assert dangling({"": "<meta name='x'><a href='#x'>"}) == [Dangling("", "#x", "anchor")]


def test_a_site_below_a_folder() -> None:
    pages = {"": "", "404.html": "<a href='/docs/'><a href='/docs/x/'><a href='/other/'>"}
    assert [d.link for d in dangling(pages, base="/docs/")] == ["/docs/x/", "/other/"]


def test_each_address_of_a_srcset_is_one_link() -> None:
    html = "<img srcset='data:image/png;base64,AA,BB 1x,a.png,b.png 2x, c.png,\n d.png'>"
    assert [d.link for d in dangling({"": html}, [])] == ["a.png,b.png", "c.png", "d.png"]


def test_files_are_believed_when_they_are_not_given() -> None:
    pages = {"a/": "<img src='x.png'><a href='y.html'><a href='z'><a href='../a'>"}
    assert [d.link for d in dangling(pages)] == ["y.html", "z"]
