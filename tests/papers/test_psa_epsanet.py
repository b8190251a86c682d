"""Pyramid squeeze attention against sums over taps and the structure of the authors' code."""

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from attention.psa_epsanet import (
    KERNELS,
    PyramidSqueezeAttention,
    epsanet50,
    least_error,
    operations,
    overlay,
    weights,
)
from attention.squeeze_excitation import SqueezeExcite
from convolution.resnet import Bottleneck, resnet
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

Reference = Callable[[Tensor, Sequence[Tensor], Tensor, Tensor, int], Tensor]
PLAIN = (1, 1, 1, 1)
WIDE = (32, 32, 32, 32)


def tap_by_tap(x: Tensor, kernels: Sequence[Tensor], w1: Tensor, w2: Tensor, stride: int) -> Tensor:
    """The definition, one tap, one channel and one scale at a time."""
    b, c_in, h, w = x.shape
    c = len(w2)
    scales, scores = [], []
    for kernel in kernels:
        k, fan_in = kernel.shape[-1], kernel.shape[1]
        r, groups = k // 2, c_in // fan_in
        border = x.new_zeros(b, c_in, h + 2 * r, w + 2 * r)
        border[:, :, r : r + h, r : r + w] = x
        channels = []
        for o in range(c):
            first = o // (c // groups) * fan_in
            total = x.new_zeros(b, h, w)
            for i in range(fan_in):
                for dy in range(k):
                    for dx in range(k):
                        seen = border[:, first + i, dy : dy + h, dx : dx + w]
                        total = total + kernel[o, i, dy, dx] * seen
            channels.append(total[:, ::stride, ::stride])
        scales.append(channels)
        means = [channel.sum(dim=(1, 2)) / channel[0].numel() for channel in channels]
        hidden = [sum(w1[j, o] * means[o] for o in range(c)) for j in range(len(w1))]
        hidden = [value * (value > 0) for value in hidden]
        logits = [sum(w2[o, j] * hidden[j] for j in range(len(w1))) for o in range(c)]
        scores.append([torch.exp(1 / (1 + torch.exp(-value))) for value in logits])
    out = []
    for i, channels in enumerate(scales):
        for o, channel in enumerate(channels):
            share = scores[i][o] / sum(score[o] for score in scores)
            out.append(channel * share[:, None, None])
    return torch.stack(out, dim=1)


def as_released(
    x: Tensor, kernels: Sequence[Tensor], w1: Tensor, w2: Tensor, stride: int
) -> Tensor:
    """The steps of the authors' module: 1 by 1 convolutions, scales joined back to front."""
    features, gates = [], []
    for kernel in kernels:
        groups = x.shape[1] // kernel.shape[1]
        feature = F.conv2d(x, kernel, None, stride, kernel.shape[-1] // 2, groups=groups)
        hidden = F.relu(F.conv2d(F.adaptive_avg_pool2d(feature, 1), w1[..., None, None]))
        features.append(feature)
        gates.append(torch.sigmoid(F.conv2d(hidden, w2[..., None, None])))
    shape = (len(x), len(kernels), len(w2), 1, 1)
    attention = nn.Softmax(dim=1)(torch.cat(gates, dim=1).view(shape))
    out = features[0] * attention[:, 0]
    for i in range(1, len(kernels)):
        out = torch.cat((features[i] * attention[:, i], out), dim=1)
    return torch.cat(out.chunk(len(kernels), dim=1)[::-1], dim=1)


@pytest.mark.parametrize("reference", [tap_by_tap, as_released])
@pytest.mark.parametrize(
    ("c_in", "c_out", "stride", "kernels", "groups", "r"),
    [
        (4, 8, 1, KERNELS, (1, 2, 1, 2), 1),
        (6, 12, 2, (3, 5, 7), (1, 2, 2), 2),
        (2, 3, 1, (1, 3, 3), (1, 1, 1), 1),
    ],
)
@pytest.mark.parametrize("train", [True, False])
def test_forward_and_backward(
    reference: Reference,
    c_in: int,
    c_out: int,
    stride: int,
    kernels: Sequence[int],
    groups: Sequence[int],
    r: int,
    train: bool,
) -> None:
    torch.manual_seed(0)
    psa = PyramidSqueezeAttention(c_in, c_out, stride, kernels, groups, r).double().train(train)
    for weight in (psa.se.w1.weight, psa.se.w2.weight):
        nn.init.normal_(weight, std=3)
    x = torch.randn(2, c_in, 7, 5, dtype=torch.double, requires_grad=True)
    leaves = [x, *(conv.weight for conv in psa.scales), psa.se.w1.weight, psa.se.w2.weight]
    out, expected = psa(x), reference(x, leaves[1:-2], leaves[-2], leaves[-1], stride)
    torch.testing.assert_close(out, expected)

    towards = torch.randn_like(out)
    torch.testing.assert_close(
        torch.autograd.grad(out, leaves, towards), torch.autograd.grad(expected, leaves, towards)
    )


def test_default_groups_at_the_width_of_the_first_stage() -> None:
    torch.manual_seed(0)
    psa = PyramidSqueezeAttention(64, 64, stride=2).double()
    x = torch.randn(2, 64, 15, 13, dtype=torch.double)
    kernels = [conv.weight for conv in psa.scales]
    expected = as_released(x, kernels, psa.se.w1.weight, psa.se.w2.weight, 2)
    torch.testing.assert_close(psa(x), expected)
    assert [kernel.shape[1] for kernel in kernels] == [64, 16, 8, 4]


def test_everything_is_trained_and_the_input_is_left_alone() -> None:
    torch.manual_seed(0)
    psa = PyramidSqueezeAttention(4, 16, groups=PLAIN, r=1)
    assert sum(p.numel() for p in psa.parameters()) == 4 * 4 * (9 + 25 + 49 + 81) + 2 * 4 * 4
    x = torch.rand(2, 4, 9, 7)
    before = x.clone()
    psa(x).square().sum().backward()
    assert torch.equal(x, before)
    assert all(p.grad.abs().max() > 0 for p in psa.parameters())


def network(
    depths: tuple[int, ...], kernels: Sequence[int], groups: Sequence[int], wide: int
) -> nn.Sequential:
    """EPSANet of any depth."""

    def look(width: int, stride: int) -> nn.Module:
        psa = PyramidSqueezeAttention(width, width, stride, kernels, groups)
        return nn.Sequential(psa, nn.BatchNorm2d(width), nn.ReLU())

    def block(c_in: int, c_out: int, stride: int) -> nn.Module:
        return Bottleneck(c_in, c_out, stride, width=wide * c_out // 4, look=look)

    with torch.device("meta"):
        return resnet(block, depths)


# The README of the official code; the last two with kernels that fit what it prints.
@pytest.mark.parametrize(
    ("depths", "kernels", "groups", "wide", "millions", "billions"),
    [
        ((3, 4, 6, 3), KERNELS, (1, 4, 8, 16), 1, 22.56, 3.62),
        ((3, 4, 23, 3), KERNELS, (1, 4, 8, 16), 1, 38.90, 6.82),
        ((3, 4, 6, 3), (3, 5, 5, 7), WIDE, 2, 27.90, 4.72),
        ((3, 4, 23, 3), (3, 5, 5, 7), WIDE, 2, 49.59, 8.97),
    ],
)
def test_figures_of_the_readme(
    depths: tuple[int, ...],
    kernels: Sequence[int],
    groups: Sequence[int],
    wide: int,
    millions: float,
    billions: float,
) -> None:
    model = network(depths, kernels, groups, wide)
    assert round(weights(model), 2) == millions
    assert round(operations(model), 2) == billions


def test_weights_of_the_whole_network() -> None:
    with torch.device("meta"):
        small, large = epsanet50(), epsanet50(groups=WIDE, wide=2)
    assert sum(p.numel() for p in small.parameters()) == 22_560_712
    # With biases in the gates the authors' epsanet50 counts 22,561,715.
    gates = [m for m in small.modules() if isinstance(m, SqueezeExcite)]
    assert len(gates) == 16
    biases = sum(gate.w1.out_features + gate.w2.out_features for gate in gates)
    assert 22_560_712 + biases == 22_561_715
    assert sum(p.numel() for p in large.parameters()) == 30_098_088


def test_the_whole_network_classifies() -> None:
    model = epsanet50().eval()
    with torch.no_grad():
        assert model(torch.randn(1, 3, 63, 65)).shape == (1, 1000)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), c=st.integers(1, 4), h=st.integers(1, 6), w=st.integers(1, 6))
def test_what_attention_is(seed: int, c: int, h: int, w: int) -> None:
    torch.manual_seed(seed)
    psa = PyramidSqueezeAttention(2, 4 * c, groups=PLAIN, r=1).double()
    for weight in psa.parameters():
        nn.init.normal_(weight, std=4)
    x = torch.randn(3, 2, h, w, dtype=torch.double)
    f = psa.squeeze_concat(x)
    a = psa.attend(f)
    torch.testing.assert_close(a.sum(dim=1), torch.ones(3, c, dtype=torch.double))
    assert (a.amax(dim=1) <= math.e * a.amin(dim=1) * (1 + 1e-9)).all()
    torch.testing.assert_close(psa(x), (f * a[..., None, None]).flatten(1, 2))

    # Every image on its own.
    torch.testing.assert_close(psa(x)[1:2], psa(x[1:2]))

    # One gate serves all scales, so scales that trade places take their output along.
    order = torch.randperm(4)
    psa.scales = nn.ModuleList(psa.scales[i] for i in order)
    torch.testing.assert_close(psa.attend(psa.squeeze_concat(x)), a[:, order])


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), h=st.integers(1, 5), w=st.integers(1, 5))
def test_attention_knows_the_means_of_the_channels_and_no_more(seed: int, h: int, w: int) -> None:
    torch.manual_seed(seed)
    psa = PyramidSqueezeAttention(4, 16, groups=(1, 2, 4, 1), r=1).double()
    x = torch.randn(1, 4, h, w, dtype=torch.double)
    flat = x.mean(dim=(2, 3), keepdim=True).expand_as(x)
    seen, averaged = (psa.attend(psa.squeeze_concat(F.pad(y, [4] * 4))) for y in (x, flat))
    torch.testing.assert_close(seen, averaged)


@pytest.mark.parametrize("value", [0, 1])
def test_equal_gates_leave_every_scale_a_quarter(value: int) -> None:
    psa = PyramidSqueezeAttention(4, 8, groups=PLAIN, r=1)
    psa.se.w2.weight.data.fill_(value)
    for conv in psa.scales if value else ():
        conv.weight.data.zero_()
        conv.weight.data[:, :, conv.padding[0], conv.padding[0]] = 1
    x = torch.rand(2, 4, 9, 7)
    assert torch.equal(psa(x), psa.squeeze_concat(x).flatten(1, 2) / 4)


def test_every_scale_reads_all_channels_as_far_as_its_kernel_reaches() -> None:
    psa = PyramidSqueezeAttention(8, 16, groups=(1, 2, 4, 4), r=1)
    for i in range(8):
        impulse = torch.zeros(1, 8, 13, 13)
        impulse[0, i, 6, 6] = 1
        answers = psa.squeeze_concat(impulse)[0].abs().sum(dim=1) > 0
        for answer, k in zip(answers, KERNELS, strict=True):
            far = k // 2
            expected = torch.zeros(13, 13, dtype=torch.bool)
            expected[6 - far : 7 + far, 6 - far : 7 + far] = True
            assert torch.equal(answer, expected)


def test_the_louder_texture_is_the_one_wanted() -> None:
    torch.manual_seed(0)
    image, louder = overlay(torch.tensor([0.0, 0.4, 0.6, 1.0]).repeat(50))
    assert image.shape == (200, 4, 12, 12)
    assert image.min() == 0
    seen = image[:, :1] - image[:, 1:2] + image[:, 2:3] - image[:, 3:]
    torch.testing.assert_close(seen[::4], louder[::4])
    torch.testing.assert_close(seen[3::4], louder[3::4])
    deviation = louder.view(50, 4, -1).std(dim=2, correction=0).mean(dim=0)
    torch.testing.assert_close(deviation, torch.tensor([1.0, 0.6, 0.6, 1.0]), atol=1e-3, rtol=0)
    roughness = louder.diff(dim=3).view(50, 4, -1).square().mean(dim=(0, 2))
    assert roughness[1] > 5 * roughness[2]


def test_least_error_is_below_that_of_some_convolution() -> None:
    torch.manual_seed(0)
    image, louder = overlay(torch.tensor([1 / 3, 2 / 3]).repeat(200))
    seen = image[:, :1] - image[:, 1:2] + image[:, 2:3] - image[:, 3:]
    halves = ((0.8 * seen - louder).square().mean() / louder.var()).item()
    assert 0.15 < least_error() < halves


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"c_in": 4, "c_out": 6}, "4 scales do not divide c_out = 6 channels"),
        ({"c_in": 64, "c_out": 64, "kernels": (3, 5, 6, 9)}, "kernel 6 is even"),
        ({"c_in": 64, "c_out": 32}, "16 groups do not divide 64 or 8 channels"),
        ({"c_in": 24, "c_out": 64}, "16 groups do not divide 24 or 16 channels"),
        ({"c_in": 64, "c_out": 64, "groups": (1, 4, 8)}, "zip"),
        ({"c_in": 64, "c_out": 64, "r": 5}, "r = 5 does not divide c = 16"),
    ],
)
def test_arguments_that_do_not_fit(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PyramidSqueezeAttention(**arguments)
