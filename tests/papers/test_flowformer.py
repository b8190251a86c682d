"""Flow-Attention against loops, against its matrix of weights and against the authors' steps."""

import math
from collections.abc import Callable

import pytest
import torch
from attention.flowformer import (
    Block,
    FlowAttention,
    Positions,
    compete,
    conserve,
    flow_attention,
    flowformer,
    linear_attention,
    needles,
    shares,
    train,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode


def in_loops(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The paper's equations one head, one sink and one source at a time."""
    heads = []
    for q_, k_, v_ in zip(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), strict=True):
        sinks, sources = list(1 / (1 + (-q_).exp())), list(1 / (1 + (-k_).exp()))
        incoming = [sum(a @ b for b in sources) for a in sinks]
        outgoing = [sum(a @ b for a in sinks) for b in sources]
        i_hat = [sum(a @ b / o for b, o in zip(sources, outgoing, strict=True)) for a in sinks]
        o_hat = [sum(a @ b / i for a, i in zip(sinks, incoming, strict=True)) for b in sources]
        total = sum(o.exp() for o in o_hat)
        v_hat = [len(sources) * o.exp() / total * value for o, value in zip(o_hat, v_, strict=True)]
        rows = []
        for a, i, i_h in zip(sinks, incoming, i_hat, strict=True):
            read = sum(a @ b / i * value for b, value in zip(sources, v_hat, strict=True))
            rows.append(read / (1 + (-i_h).exp()))
        heads.append(torch.stack(rows))
    return torch.stack(heads).view(*q.shape[:-1], v.shape[-1])


def with_the_matrix(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """All weights in one matrix of sinks by sources, normalised along its two sides."""
    s = q.sigmoid() @ k.sigmoid().mT
    by_row, by_column = s / s.sum(-1, keepdim=True), s / s.sum(-2, keepdim=True)
    competition = F.softmax(by_row.sum(-2, keepdim=True), dim=-1) * k.shape[-2]
    return (by_column.sum(-1, keepdim=True).sigmoid() * by_row * competition) @ v


@pytest.mark.parametrize("reference", [in_loops, with_the_matrix])
@pytest.mark.parametrize(("n", "m", "d", "e"), [(7, 7, 3, 3), (5, 9, 4, 2), (9, 5, 1, 3)])
def test_forward_and_backward(reference: Callable, n: int, m: int, d: int, e: int) -> None:
    torch.manual_seed(0)
    q, k, v = (
        torch.randn(2, 3, *shape, dtype=torch.double, requires_grad=True)
        for shape in [(n, d), (m, d), (m, e)]
    )
    out, expected = flow_attention(q, k, v), reference(q, k, v)
    torch.testing.assert_close(out, expected)
    towards = torch.randn_like(out)
    torch.testing.assert_close(
        torch.autograd.grad(out, (q, k, v), towards),
        torch.autograd.grad(expected, (q, k, v), towards),
    )


def as_released(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The steps of the authors' code: small constants everywhere, and a clamp."""
    eps, q, k = 1e-6, q.sigmoid(), k.sigmoid()
    n, m = q.shape[-2], k.shape[-2]

    def through(x: Tensor, total: Tensor) -> Tensor:
        return ((x + eps) * (total[..., None, :] + eps)).sum(-1, keepdim=True)

    into, out_of = 1 / through(q, k.sum(-2)), 1 / through(k, q.sum(-2))
    sink = through(q, (k * out_of).sum(-2))
    source = through(k, (q * into).sum(-2)).clamp(-1, 1)
    competed = v * source.softmax(-2) * m
    return ((q * into) @ (k.mT @ competed)) * (sink * n / m).sigmoid()


def test_with_a_ceiling_it_is_the_authors_code() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 3, 63, 8, dtype=torch.double).unbind()
    expected = as_released(q, k, v)
    torch.testing.assert_close(flow_attention(q, k, v, ceiling=1.0), expected, rtol=1e-4, atol=1e-6)
    assert (flow_attention(q, k, v) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("h", [1, 3])
def test_heads_are_networks_of_their_own(h: int, train: bool) -> None:
    torch.manual_seed(0)
    layer = FlowAttention(12, h).double().train(train)
    x = torch.randn(2, 7, 12, dtype=torch.double, requires_grad=True)
    q, k, v = layer.qkv(x).chunk(3, dim=-1)
    width = 12 // h
    heads = [
        with_the_matrix(*(t[:, None, :, i * width : (i + 1) * width] for t in (q, k, v)))[:, 0]
        for i in range(h)
    ]
    expected = layer.out(torch.cat(heads, dim=-1))
    out = layer(x)
    torch.testing.assert_close(out, expected)
    inputs = (x, *layer.parameters())
    towards = torch.randn_like(out)
    torch.testing.assert_close(
        torch.autograd.grad(out, inputs, towards), torch.autograd.grad(expected, inputs, towards)
    )


class Largest(TorchDispatchMode):
    """The most numbers that any operation returns at once."""

    numel = 0

    def __torch_dispatch__(
        self, operation: Callable, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        out = operation(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, Tensor):
                self.numel = max(self.numel, tensor.numel())
        return out


def test_no_matrix_of_sinks_by_sources() -> None:
    n, layer = 513, FlowAttention(8, 2)
    with Largest() as largest:
        layer(torch.randn(1, n, 8, requires_grad=True)).sum().backward()
    assert largest.numel == 3 * 8 * n
    with Largest() as largest:
        with_the_matrix(*torch.randn(3, 1, 2, n, 4))
    assert largest.numel == 2 * n * n


def test_weights() -> None:
    layer = FlowAttention(24, 4)
    assert sum(p.numel() for p in layer.parameters()) == 4 * 24**2 + 4 * 24
    with torch.device("meta"):
        model = flowformer()
    assert sum(p.numel() for p in model.parameters()) == 43_311_304
    assert sum(isinstance(part, Block) for part in model) == 19


def test_the_network_classifies() -> None:
    torch.manual_seed(0)
    model = flowformer(classes=7).eval()
    image = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        scores = model(image)
        assert scores.shape == (1, 7)

        # Patches are cut where they are, and only their places tell them apart.
        order = torch.randperm(56)
        patches = image.view(1, 3, 56, 4, 224)
        moved = patches[:, :, order].reshape(image.shape)
        tokens, shuffled = model[1](model[0](image)), model[1](model[0](moved))
        rows = tokens.reshape(1, 56, 56, 96)[:, order].flatten(1, 2)
        torch.testing.assert_close(shuffled, rows)
        assert (model[2](shuffled) - shuffled).abs().max() > 0


def test_a_block_adds_to_its_input() -> None:
    torch.manual_seed(0)
    block, x = Block(12, 3), torch.randn(2, 5, 12)
    norm, attention = block.attention
    after = x + attention(norm(x))
    torch.testing.assert_close(block(x), after + block.gamma * block.mlp(after))
    assert torch.equal(block.gamma, torch.full((12,), 1e-5))
    places = Positions(5, 12)
    torch.testing.assert_close(places(x) - x, places.table.expand_as(x))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), n=st.integers(1, 9), m=st.integers(1, 9), d=st.integers(1, 5))
def test_what_is_conserved(seed: int, n: int, m: int, d: int) -> None:
    torch.manual_seed(seed)
    q, k = 2 * torch.randn(2, 3, n, d).double(), 2 * torch.randn(2, 3, m, d).double()
    v = torch.randn(2, 3, m, 4).double()
    incoming, outgoing, i_hat, o_hat = conserve(q.sigmoid(), k.sigmoid())
    capacity = q.sigmoid() @ k.sigmoid().mT
    ones = torch.ones(2, 3, 1).double()
    torch.testing.assert_close((capacity / incoming).sum(-1), ones.expand(2, 3, n))
    torch.testing.assert_close((capacity / outgoing.mT).sum(-2), ones.expand(2, 3, m))
    torch.testing.assert_close(i_hat.sum(-2), m * ones)
    torch.testing.assert_close(o_hat.sum(-2), n * ones)

    # Competition moves weight and makes none. Louder goes with more outgoing flow.
    louder = compete(o_hat, math.inf)
    torch.testing.assert_close(louder.mean(-2), ones)
    assert torch.equal(louder.argsort(dim=-2), o_hat.argsort(dim=-2))

    # The order of the sources does not matter, that of the sinks is kept.
    out = flow_attention(q, k, v)
    sources, sinks = torch.randperm(m), torch.randperm(n)
    shuffled = flow_attention(q[:, :, sinks], k[:, :, sources], v[:, :, sources])
    torch.testing.assert_close(shuffled, out[:, :, sinks])


@pytest.mark.parametrize("attend", [flow_attention, linear_attention])
def test_shares(attend: Callable) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 7, 3).double().unbind()
    parts = shares(attend, q, k)
    torch.testing.assert_close(parts.sum(-1), torch.ones(1, 2, 7).double())
    out = attend(q, k, torch.cat([v, torch.ones_like(v[..., :1])], dim=-1))
    torch.testing.assert_close(parts @ v, out[..., :-1] / out[..., -1:])


def test_linear_attention_is_a_mean_by_capacity() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 7, 3).double().unbind()
    s = q.sigmoid() @ k.sigmoid().mT
    torch.testing.assert_close(linear_attention(q, k, v), s / s.sum(-1, keepdim=True) @ v)


def test_one_source_may_take_everything() -> None:
    q, k, v = torch.full((1, 1, 999, 4), 9.0), torch.full((1, 1, 999, 4), -9.0), torch.zeros(999, 2)
    k[:, :, 7], v[7] = 9.0, 1.0
    out = flow_attention(q, k, v[None, None])
    assert torch.isfinite(out).all()
    assert shares(flow_attention, q, k)[..., 7].min() > 0.999


def test_linear_attention_finds_the_needle_later() -> None:
    torch.manual_seed(0)
    _, right = train(linear_attention, steps=150)
    assert right > 0.9


def test_needles_say_what_is_to_be_repeated() -> None:
    torch.manual_seed(0)
    x, said = needles(50)
    assert x.shape == (50, 32, 16)
    assert torch.equal(said.abs(), torch.ones(50, 15))
    loudest = x[range(50), x[..., 0].argmax(dim=1), 1:]
    assert torch.equal(loudest, said)


@pytest.mark.parametrize(("d", "h"), [(12, 5), (3, 6)])
def test_heads_that_do_not_divide(d: int, h: int) -> None:
    with pytest.raises(ValueError, match=f"h = {h} heads do not divide d = {d}"):
        FlowAttention(d, h)
