"""External attention against loops and against the behaviour of the authors' code."""

import pytest
import torch
from attention.external_attention import (
    ExternalAttention,
    MultiHeadExternalAttention,
    RowSoftmax,
    SelfAttention,
    double_normalize,
    multiply_adds,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F


def in_loops(f: Tensor, m_k: Tensor, m_v: Tensor) -> Tensor:
    """The equations of the paper for one image, one number at a time."""
    (n, d), s = f.shape, len(m_k)
    raw = [[sum(f[i, x] * m_k[j, x] for x in range(d)) for j in range(s)] for i in range(n)]
    by_token = [
        [raw[i][j].exp() / sum(raw[k][j].exp() for k in range(n)) for j in range(s)]
        for i in range(n)
    ]
    weights = [[value / sum(row) for value in row] for row in by_token]
    return torch.stack([sum(weights[i][j] * m_v[j] for j in range(s)) for i in range(n)])


class Official(nn.Module):
    """What `External_attention` of EANet does between its convolutions, written anew."""

    def __init__(self, c: int, k: int) -> None:
        super().__init__()
        self.linear_0 = nn.Conv1d(c, k, 1, bias=False)
        self.linear_1 = nn.Conv1d(k, c, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        attn = F.softmax(self.linear_0(x), dim=2)
        return self.linear_1(attn / (1e-9 + attn.sum(1, keepdim=True)))


class OfficialHeads(nn.Module):
    """What `Attention` of EAMLP does, written anew, its memories without biases."""

    def __init__(self, dim: int, heads: int, k: int) -> None:
        super().__init__()
        self.heads = 4 * heads
        self.trans_dims = nn.Linear(dim, 4 * dim)
        self.linear_0 = nn.Linear(dim // heads, k, bias=False)
        self.linear_1 = nn.Linear(k, dim // heads, bias=False)
        self.proj = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        wide = self.trans_dims(x).view(b, n, self.heads, -1).transpose(1, 2)
        attn = self.linear_0(wide).softmax(dim=-2)
        read = self.linear_1(attn / (1e-9 + attn.sum(-1, keepdim=True)))
        return self.proj(read.transpose(1, 2).reshape(b, n, -1))


@pytest.mark.parametrize(("n", "d", "s"), [(5, 7, 3), (1, 4, 6), (6, 3, 1)])
@pytest.mark.parametrize("train", [True, False])
def test_forward_and_backward_against_loops(n: int, d: int, s: int, train: bool) -> None:
    torch.manual_seed(0)
    ea = ExternalAttention(d, s).double().train(train)
    f = torch.randn(2, n, d, dtype=torch.double, requires_grad=True)
    inputs = (f, ea.m_k.weight, ea.m_v.weight)
    out = ea(f)
    expected = torch.stack([in_loops(image, ea.m_k.weight, ea.m_v.weight.T) for image in f])
    torch.testing.assert_close(out, expected)

    towards = torch.randn_like(out)
    torch.testing.assert_close(
        torch.autograd.grad(out, inputs, towards), torch.autograd.grad(expected, inputs, towards)
    )


@pytest.mark.parametrize("train", [True, False])
def test_forward_and_backward_against_the_authors_layout(train: bool) -> None:
    torch.manual_seed(0)
    ours, theirs = ExternalAttention(13, 7).train(train), Official(13, 7).train(train)
    theirs.linear_0.weight.data = ours.m_k.weight.data[..., None].clone()
    theirs.linear_1.weight.data = ours.m_v.weight.data[..., None].clone()
    f = torch.randn(3, 63, 13, requires_grad=True)
    out, expected = ours(f), theirs(f.mT).mT
    torch.testing.assert_close(out, expected)
    out.square().sum().backward()
    by_ours, f.grad = f.grad, None
    expected.square().sum().backward()
    torch.testing.assert_close(by_ours, f.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(ours.m_k.weight.grad, theirs.linear_0.weight.grad[..., 0])
    torch.testing.assert_close(ours.m_v.weight.grad, theirs.linear_1.weight.grad[..., 0])


@pytest.mark.parametrize("train", [True, False])
def test_several_heads_against_the_authors(train: bool) -> None:
    torch.manual_seed(0)
    ours, theirs = MultiHeadExternalAttention(15, 3, s=7), OfficialHeads(15, 3, k=7)
    names = ["trans_dims", "linear_0", "linear_1", "proj"]
    layers = [ours.widen, ours.memory.m_k, ours.memory.m_v, ours.narrow]
    for name, layer in zip(names, layers, strict=True):
        getattr(theirs, name).load_state_dict(layer.state_dict())
    f = torch.randn(2, 11, 15, requires_grad=True)
    out, expected = ours.train(train)(f), theirs.train(train)(f)
    torch.testing.assert_close(out, expected)
    gradients = torch.autograd.grad(out.square().sum(), [f, *ours.parameters()])
    too = [theirs.trans_dims.weight, theirs.trans_dims.bias]
    too += [theirs.linear_0.weight, theirs.linear_1.weight, theirs.proj.weight, theirs.proj.bias]
    expected = torch.autograd.grad(expected.square().sum(), [f, *too])
    torch.testing.assert_close(gradients, expected, rtol=1e-4, atol=1e-5)


def test_what_it_is_compared_with() -> None:
    torch.manual_seed(0)
    sa, f = SelfAttention(6), torch.randn(2, 9, 6)
    expected = F.scaled_dot_product_attention(sa.q(f), sa.k(f), sa.v(f))
    torch.testing.assert_close(sa(f), expected)
    row = RowSoftmax(6, 5)
    torch.testing.assert_close(row(f), F.linear(F.softmax(row.m_k(f), -1), row.m_v.weight))


shapes = st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9))


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**31), shape=shapes, scale=st.floats(0.01, 30))
def test_double_normalisation(seed: int, shape: tuple[int, ...], scale: float) -> None:
    torch.manual_seed(seed)
    similarity = scale * torch.randn(shape, dtype=torch.double)
    a = double_normalize(similarity)
    torch.testing.assert_close(a.sum(-1), torch.ones_like(a[..., 0]))
    assert (a >= 0).all()

    # A softmax over the slots in which each counts less by its popularity.
    discounted = similarity - similarity.logsumexp(dim=-2, keepdim=True)
    torch.testing.assert_close(a, discounted.softmax(dim=-1))

    # So what is added to a slot for all tokens changes nothing.
    torch.testing.assert_close(double_normalize(similarity + torch.randn(shape[2])), a)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), n=st.integers(2, 20))
def test_tokens_move_and_samples_do_not_mix(seed: int, n: int) -> None:
    torch.manual_seed(seed)
    ea = ExternalAttention(5, 4).double()
    f = torch.randn(3, n, 5, dtype=torch.double)
    order = torch.randperm(n)
    torch.testing.assert_close(ea(f[:, order]), ea(f)[:, order])
    torch.testing.assert_close(ea(f), torch.stack([ea(image) for image in f]))
    torch.testing.assert_close(ea.attend(f + torch.randn(5)), ea.attend(f))


def test_tokens_without_any_similar_slot_stay_finite() -> None:
    similarity = torch.zeros(2, 3)
    similarity[0] = 500
    similarity.requires_grad_()
    a = double_normalize(similarity)
    torch.testing.assert_close(a, torch.full((2, 3), 1 / 3))
    a[:, 0].sum().backward()
    assert similarity.grad.isfinite().all()


def test_the_price_is_linear() -> None:
    with torch.device("meta"):
        block = ExternalAttention(64, s=7)
        assert [multiply_adds(block, n) for n in (1, 63)] == [2 * 64 * 7, 2 * 64 * 7 * 63]


def test_the_tie_of_the_authors_holds_until_the_model_is_moved() -> None:
    """What the page says of their code: one tensor at first, two after a move."""
    model = Official(4, 3)
    model.linear_1.weight.data = model.linear_0.weight.data.permute(1, 0, 2)
    for layer in (model.linear_0, model.linear_1):
        layer.weight.data.normal_()

    def step() -> bool:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        x = torch.randn(2, 4, 5).to(model.linear_0.weight)
        model(x).square().sum().backward()
        optimizer.step()
        return torch.equal(model.linear_1.weight.mT, model.linear_0.weight.permute(1, 2, 0))

    assert step()
    model.double()  # copies the parameters one by one, as a move to a GPU does
    assert not step()


def test_heads_that_do_not_divide() -> None:
    with pytest.raises(ValueError, match="h = 4 heads do not divide d = 30"):
        MultiHeadExternalAttention(30, 4)
