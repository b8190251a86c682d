"""Efficient channel attention against loops, a band matrix and the code of Figure 3."""

import math
from collections.abc import Callable

import pytest
import torch
from attention.eca_net import (
    ECA,
    RELEASED,
    OneWeightEach,
    accuracy,
    eca_resnet50,
    footprint,
    kernel_size,
)
from convolution.resnet import resnet
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F


def in_loops(x: Tensor, w: Tensor) -> Tensor:
    """Equations 8 and 9, one number at a time; beyond the ends there is nothing to add."""
    b, c, h, width = x.shape
    k = len(w)
    rows = []
    for n in range(b):
        y = [sum(x[n, i].flatten()) / (h * width) for i in range(c)]
        gated = []
        for i in range(c):
            score = 0 * y[i]
            for j in range(k):
                neighbour = i + j - k // 2
                if 0 <= neighbour < c:
                    score = score + w[j] * y[neighbour]
            gated.append(x[n, i] / (1 + torch.exp(-score)))
        rows.append(torch.stack(gated))
    return torch.stack(rows)


def in_a_band_matrix(x: Tensor, w: Tensor) -> Tensor:
    """Equation 3 with the matrix of Eq. 6, all of whose rows hold the same weights."""
    c, half = x.shape[1], len(w) // 2
    band = sum(
        w[j + half] * torch.diag(torch.ones(c - abs(j), dtype=x.dtype), j)
        for j in range(-half, half + 1)
        if abs(j) < c
    )
    return x * torch.sigmoid(x.mean(dim=(2, 3)) @ band.T)[..., None, None]


def as_the_authors_do(x: Tensor, w: Tensor) -> Tensor:
    """A pooled map, its channels turned into the axis of a signal and back."""
    y = F.adaptive_avg_pool2d(x, 1).squeeze(-1).transpose(-1, -2)
    y = F.conv1d(y, w.view(1, 1, -1), padding=(len(w) - 1) // 2).transpose(-1, -2)
    return x * y.unsqueeze(-1).sigmoid().expand_as(x)


def of_figure_3(c: int, gamma: float = 2, b: float = 1) -> int:
    t = int(abs((math.log(c, 2) + b) / gamma))
    return t if t % 2 else t + 1


@pytest.mark.parametrize("reference", [in_loops, in_a_band_matrix, as_the_authors_do])
@pytest.mark.parametrize(("c", "k"), [(7, 1), (7, 3), (11, 5), (16, None), (3, 7), (1, 3)])
@pytest.mark.parametrize("train", [True, False])
def test_forward_and_backward(reference: Callable, c: int, k: int | None, train: bool) -> None:
    torch.manual_seed(0)
    eca = ECA(c, k).double().train(train)
    eca.conv.weight.data.normal_()
    x = torch.randn(3, c, 5, 7, dtype=torch.double, requires_grad=True)
    out, expected = eca(x), reference(x, eca.conv.weight.flatten())
    torch.testing.assert_close(out, expected)

    towards = torch.randn_like(out)
    inputs = (x, eca.conv.weight)
    torch.testing.assert_close(
        torch.autograd.grad(out, inputs, towards), torch.autograd.grad(expected, inputs, towards)
    )


@pytest.mark.parametrize(
    ("c", "k"), [(16, 3), (32, 3), (64, 3), (128, 5), (256, 5), (512, 5), (1024, 5), (2048, 7)]
)
def test_kernel_sizes_and_so_the_weights(c: int, k: int) -> None:
    assert kernel_size(c) == k
    assert [p.shape for p in ECA(c).parameters()] == [(1, 1, k)]


def test_kernel_sizes_are_those_of_figure_3() -> None:
    assert [kernel_size(c) for c in range(1, 5000)] == [of_figure_3(c) for c in range(1, 5000)]


@settings(max_examples=200, deadline=None)
@given(c=st.integers(1, 10**6), gamma=st.floats(0.5, 4), shift=st.floats(0, 4))
def test_kernel_sizes_are_odd_and_nearest(c: int, gamma: float, shift: float) -> None:
    k, t = kernel_size(c, gamma, shift), (math.log2(c) + shift) / gamma
    assert k % 2 == 1
    assert k >= 1
    assert abs(k - t) <= 1


def test_weights_of_the_whole_network() -> None:
    with torch.device("meta"):
        plain, ours, released = resnet(), eca_resnet50(), eca_resnet50(RELEASED)
    counts = [sum(p.numel() for p in net.parameters()) for net in (plain, ours, released)]
    assert counts == [25_557_032, 25_557_118, 25_557_112]


@pytest.mark.parametrize("early", [True, False])
def test_open_gates_leave_resnet_50(early: bool) -> None:
    torch.manual_seed(0)
    ours, plain = eca_resnet50(early=early).eval(), resnet().eval()
    plain.load_state_dict({k: v for k, v in ours.state_dict().items() if "gate" not in k})
    for stage in (plain.stage2, plain.stage3, plain.stage4) if early else ():
        stage[0].branch.narrow[0][0].stride = (2, 2)
        stage[0].branch.look[0][0].stride = (1, 1)
    x = torch.randn(1, 3, 65, 63)
    with torch.no_grad():
        assert (ours(x) - plain(x)).abs().max() > 1e-3
        for module in ours.modules():
            if isinstance(module, ECA):
                module.excite = torch.ones_like
        torch.testing.assert_close(ours(x), plain(x))


def test_the_gate_closes_the_branch_and_not_the_shortcut() -> None:
    block = eca_resnet50().eval().stage1[1]
    block.branch.gate.excite = torch.zeros_like
    x = torch.rand(2, 256, 5, 3)
    torch.testing.assert_close(block(x), x)


@pytest.mark.parametrize("k", [1, 3, 7])
def test_a_gate_hears_its_neighbours_and_no_one_else(k: int) -> None:
    torch.manual_seed(0)
    i, j = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    assert torch.equal(footprint(ECA(16, k)) > 0, (i - j).abs() <= k // 2)


def test_one_weight_each() -> None:
    torch.manual_seed(0)
    block, x = OneWeightEach(5).double(), torch.randn(2, 5, 3, 7, dtype=torch.double)
    expected = torch.stack(
        [x[:, i] * (block.w[i] * x[:, i].mean((1, 2), keepdim=True)).sigmoid() for i in range(5)], 1
    )
    torch.testing.assert_close(block(x), expected)
    assert sum(p.numel() for p in block.parameters()) == 5


def test_behind_a_convolution_one_weight_each_is_enough() -> None:
    torch.manual_seed(0)
    mix = nn.Conv2d(16, 16, 1, bias=False)
    assert accuracy(OneWeightEach(16), torch.arange(16)) < 0.8
    assert accuracy(nn.Sequential(mix, OneWeightEach(16)), torch.randperm(16), steps=150) > 0.9


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    c=st.integers(1, 9),
    half=st.integers(0, 3),
    h=st.integers(1, 6),
    w=st.integers(1, 6),
)
def test_what_a_gate_does_to_an_image(seed: int, c: int, half: int, h: int, w: int) -> None:
    torch.manual_seed(seed)
    eca, x = ECA(c, 2 * half + 1), torch.randn(2, c, h, w)
    out = eca(x)

    # A gate is a share, the same one all over its channel.
    assert (out.abs() <= x.abs()).all()
    torch.testing.assert_close(out, x * eca.excite(eca.squeeze(x))[..., None, None])

    # Moving the pixels moves the output with them.
    order = torch.randperm(h * w)
    moved = x.flatten(2)[..., order].view_as(x)
    torch.testing.assert_close(eca(moved), out.flatten(2)[..., order].view_as(x))

    # Read backwards with the weights backwards, nothing changes.
    mirror = ECA(c, 2 * half + 1)
    mirror.conv.weight.data = eca.conv.weight.data.flip(-1)
    torch.testing.assert_close(mirror(x.flip(1)), out.flip(1))

    # All gates listen alike: what stands one channel further is heard one channel further.
    y = F.pad(torch.randn(2, c), (half + 1, half + 1))
    torch.testing.assert_close(eca.excite(y.roll(1, 1)), eca.excite(y).roll(1, 1))


def test_a_shuffle_of_the_channels_is_not_a_shuffle_of_the_gates() -> None:
    torch.manual_seed(0)
    eca, y = ECA(16, 3), torch.randn(2, 16)
    order = torch.randperm(16)
    assert (eca.excite(y[:, order]) - eca.excite(y)[:, order]).abs().max() > 0.01


def test_without_weights_every_gate_is_half_open() -> None:
    eca, x = ECA(6), torch.randn(2, 6, 5, 3)
    nn.init.zeros_(eca.conv.weight)
    assert torch.equal(eca(x), x / 2)


@pytest.mark.parametrize("k", [0, 2, 4])
def test_a_window_without_a_middle(k: int) -> None:
    with pytest.raises(ValueError, match=f"k = {k} is even"):
        ECA(8, k)
