"""Squeeze-and-excitation against loops, against convolutions and against labml's ResNet."""

from collections.abc import Callable

import pytest
import torch
from attention.squeeze_excitation import SEBottleneck, SqueezeExcite, se_resnet50
from hypothesis import given, settings
from hypothesis import strategies as st
from labml_nn.resnet import BottleneckResidualBlock
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
def test_open_gates_leave_the_bottleneck_of_labml(train: bool) -> None:
    torch.manual_seed(0)
    ours = SEBottleneck(c_in=12, width=5, stride=1, r=2).train(train)
    theirs = BottleneckResidualBlock(12, 5, 20, stride=1).train(train)
    pairs = zip(
        [ours.branch[0], ours.branch[2], ours.branch[4], ours.skip],
        [
            (theirs.conv1, theirs.bn1),
            (theirs.conv2, theirs.bn2),
            (theirs.conv3, theirs.bn3),
            (theirs.shortcut.conv, theirs.shortcut.bn),
        ],
        strict=True,
    )
    for (conv, norm), (conv_too, norm_too) in pairs:
        conv_too.weight.data.copy_(conv.weight.data)
        conv_too.bias.data.zero_()
        norm.weight.data.uniform_(0.5, 2)
        norm.bias.data.normal_()
        norm_too.load_state_dict(norm.state_dict())
    ours.branch[5].excite = torch.ones_like

    x = torch.randn(3, 12, 9, 7, requires_grad=True)
    out, expected = ours(x), theirs(x)
    torch.testing.assert_close(out, expected)
    [gradient], [gradient_too] = (torch.autograd.grad(y.square().sum(), x) for y in (out, expected))
    torch.testing.assert_close(gradient, gradient_too, rtol=1e-4, atol=1e-4)


def test_the_gate_closes_the_branch_and_not_the_shortcut() -> None:
    block = SEBottleneck(c_in=8, width=2, stride=1, r=4).eval()
    assert isinstance(block.skip, nn.Identity)
    block.branch[5].excite = torch.zeros_like
    x = torch.rand(2, 8, 5, 3)
    torch.testing.assert_close(block(x), x)


@pytest.mark.parametrize(("stride", "h", "w"), [(1, 9, 7), (2, 9, 7), (2, 8, 6)])
def test_stride(stride: int, h: int, w: int) -> None:
    block = SEBottleneck(c_in=8, width=4, stride=stride, r=2)
    assert block(torch.randn(2, 8, h, w)).shape == (2, 16, -(-h // stride), -(-w // stride))


def test_weights_of_the_whole_network() -> None:
    with torch.device("meta"):
        model = se_resnet50()
    total = sum(p.numel() for p in model.parameters())
    assert total == 28_071_976
    # With biases as in the authors' models: what timm and pytorchcv count for theirs.
    biases = sum(m.w1.out_features + m.w2.out_features for m in model.modules() if hasattr(m, "w1"))
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
