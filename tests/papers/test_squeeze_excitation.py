"""Squeeze-and-excitation against loops, against convolutions and against pytorchcv's network."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from attention.squeeze_excitation import SqueezeExcite, se_resnet50
from convolution.resnet import Bottleneck, resnet
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import assert_same, copy_weights
from pytorchcv.models.seresnet import SEResNet
from torch import Tensor, nn
from torch.nn import functional as F


def in_loops(u: Tensor, w1: Tensor, w2: Tensor) -> Tensor:
    """Equations 2 to 4, one number at a time."""
    b, c, h, w = u.shape
    rows = []
    for i in range(b):
        z = [sum(u[i, j, y, x] for y in range(h) for x in range(w)) / (h * w) for j in range(c)]
        hidden = [sum(w1[k, j] * z[j] for j in range(c)) for k in range(len(w1))]
        hidden = [value if value > 0 else 0 * value for value in hidden]
        scores = [sum(w2[j, k] * hidden[k] for k in range(len(w1))) for j in range(c)]
        rows.append(torch.stack([u[i, j] / (1 + torch.exp(-scores[j])) for j in range(c)]))
    return torch.stack(rows)


def in_convolutions(u: Tensor, w1: Tensor, w2: Tensor) -> Tensor:
    """As the authors' Caffe models do it, with 1 x 1 convolutions of a pooled map."""
    z = F.adaptive_avg_pool2d(u, 1)
    hidden = F.relu(F.conv2d(z, w1[..., None, None]))
    return u * torch.sigmoid(F.conv2d(hidden, w2[..., None, None]))


@pytest.mark.parametrize("reference", [in_loops, in_convolutions])
@pytest.mark.parametrize(("c", "r"), [(6, 3), (6, 2), (3, 1), (7, 7)])
@pytest.mark.parametrize("train", [True, False])
def test_forward_and_backward(reference: Callable, c: int, r: int, train: bool) -> None:
    torch.manual_seed(0)
    se = SqueezeExcite(c, r).double().train(train)
    u = torch.randn(3, c, 5, 7, dtype=torch.double, requires_grad=True)
    inputs = (u, se.w1.weight, se.w2.weight)
    out, expected = se(u), reference(*inputs)
    torch.testing.assert_close(out, expected)

    towards = torch.randn_like(out)
    torch.testing.assert_close(
        torch.autograd.grad(out, inputs, towards), torch.autograd.grad(expected, inputs, towards)
    )


@pytest.mark.parametrize("train", [True, False])
def test_the_network_of_pytorchcv(train: bool) -> None:
    """Whose gates are convolutions of 1 x 1, with biases."""
    torch.manual_seed(0)
    block = partial(Bottleneck, gate=SqueezeExcite, early=True)
    ours = resnet(block, (1, 1, 2, 1), n_classes=5)
    theirs = SEResNet(
        channels=[[256], [512], [1024] * 2, [2048]],
        init_block_channels=64,
        bottleneck=True,
        conv1_stride=True,
        num_classes=5,
    )
    theirs.features.final_pool = nn.AdaptiveAvgPool2d(1)
    ours.double().train(train)
    theirs.double().train(train)
    copy_weights(ours, theirs)
    assert_same(ours, theirs, torch.randn(2, 3, 63, 65, dtype=torch.double, requires_grad=True))


def test_the_gate_closes_the_branch_and_not_the_shortcut() -> None:
    block = Bottleneck(8, 8, gate=lambda c: SqueezeExcite(c, r=4)).eval()
    assert isinstance(block.skip, nn.Identity)
    block.branch.gate.excite = torch.zeros_like
    x = torch.rand(2, 8, 5, 3)
    torch.testing.assert_close(block(x), x)


def test_weights_of_the_whole_network() -> None:
    with torch.device("meta"):
        model = se_resnet50()
    total = sum(p.numel() for p in model.parameters())
    assert total == 28_071_976
    # With biases as in the authors' models: what timm and pytorchcv count for theirs.
    biases = sum(
        m.w1.out_features + m.w2.out_features
        for m in model.modules()
        if isinstance(m, SqueezeExcite)
    )
    assert biases == 16_048
    assert total + biases == 28_088_024


def test_the_whole_network_classifies() -> None:
    model = se_resnet50(n_classes=7, r=64).eval()
    with torch.no_grad():
        assert model(torch.randn(1, 3, 63, 65)).shape == (1, 7)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), c=st.integers(1, 9), h=st.integers(1, 6), w=st.integers(1, 6))
def test_what_a_gate_does_to_an_image(seed: int, c: int, h: int, w: int) -> None:
    torch.manual_seed(seed)
    se, u = SqueezeExcite(c, r=1), torch.randn(2, c, h, w)
    out = se(u)

    # A gate is a share, the same one all over its channel.
    assert (out.abs() <= u.abs()).all()
    torch.testing.assert_close(out, u * se.excite(se.squeeze(u))[..., None, None])

    # Moving the pixels moves the output with them.
    order = torch.randperm(h * w)
    moved = u.flatten(2)[..., order].view_as(u)
    torch.testing.assert_close(se(moved), out.flatten(2)[..., order].view_as(u))

    # Renaming the channels renames the gates.
    names = torch.randperm(c)
    se.w1.weight.data = se.w1.weight.data[:, names]
    se.w2.weight.data = se.w2.weight.data[names]
    torch.testing.assert_close(se(u[:, names]), out[:, names])


def test_without_a_second_matrix_every_gate_is_half_open() -> None:
    se, u = SqueezeExcite(6, 2), torch.randn(2, 6, 5, 3)
    se.w2.weight.data.zero_()
    assert torch.equal(se(u), u / 2)


@pytest.mark.parametrize(("c", "r"), [(6, 4), (3, 16)])
def test_channels_that_do_not_divide(c: int, r: int) -> None:
    with pytest.raises(ValueError, match=f"r = {r} does not divide c = {c}"):
        SqueezeExcite(c, r)
