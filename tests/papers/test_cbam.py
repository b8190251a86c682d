"""CBAM against loops and against pytorchcv's block, bottleneck and network."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from attention.cbam import CBAM, ChannelGate, SpatialGate, cbam_resnet50, corners
from convolution.resnet import Bottleneck, resnet
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorchcv.models.cbamresnet import CbamBlock, CbamResUnit
from pytorchcv.models.cbamresnet import cbam_resnet50 as theirs_resnet50
from torch import Tensor, nn


def scrambled(module: nn.Module) -> nn.Module:
    """Give every weight and every statistic of the batch norms a value of its own."""
    for name, value in [*module.named_parameters(), *module.named_buffers()]:
        if value.is_floating_point():
            value.data.uniform_(0.5, 1.5) if "var" in name else value.data.normal_(0, 0.5)
    return module


def copied(ours: nn.Module, theirs: nn.Module) -> None:
    """Their modules are ours in another wrapping: the same tensors in the same order."""
    values, theirs_too = ours.state_dict().values(), theirs.state_dict()
    theirs.load_state_dict(dict(zip(theirs_too, values, strict=True)))


def in_loops(f: Tensor, cbam: CBAM) -> Tensor:
    """Equations 1 to 3 and the batch norm of the code, one number at a time."""
    c, h, w = f.shape[1:]
    (w0, b0), (w1, b1) = ((m.weight, m.bias) for m in (cbam.channel.w0, cbam.channel.w1))
    conv, norm = cbam.spatial.conv
    pad = conv.kernel_size[0] // 2

    def mlp(pooled: list[Tensor], j: int) -> Tensor:
        hidden = [
            (b0[k] + sum(w0[k, i] * pooled[i] for i in range(c))).clamp(min=0)
            for k in range(len(w0))
        ]
        return b1[j] + sum(w1[j, k] * hidden[k] for k in range(len(w0)))

    images, maps = [], []
    for image in f:
        values = [[image[j, y, x] for y in range(h) for x in range(w)] for j in range(c)]
        mean = [sum(value) / (h * w) for value in values]
        most = [torch.stack(value).max() for value in values]
        gates = [1 / (1 + torch.exp(-mlp(mean, j) - mlp(most, j))) for j in range(c)]
        images.append(torch.stack([gates[j] * image[j] for j in range(c)]))

        rows = []
        for y in range(h):
            for x in range(w):
                total = 0
                for dy in range(-pad, pad + 1):
                    for dx in range(-pad, pad + 1):
                        if 0 <= y + dy < h and 0 <= x + dx < w:
                            place = images[-1][:, y + dy, x + dx]
                            largest, average = conv.weight[0, :, pad + dy, pad + dx]
                            total = total + largest * place.max() + average * place.sum() / c
                rows.append(total)
        maps.append(torch.stack(rows).view(1, h, w))

    maps = torch.stack(maps)
    mean, variance = norm.running_mean, norm.running_var
    if norm.training:
        mean, variance = maps.mean(), maps.var(correction=0)
    scores = (maps - mean) / (variance + norm.eps).sqrt() * norm.weight + norm.bias
    return torch.stack(images) / (1 + torch.exp(-scores))


def in_pytorchcv(f: Tensor, cbam: CBAM) -> Tensor:
    """The same with pytorchcv's block, whose kernel has the paper's 7 x 7."""
    names = dict(zip(CbamBlock(f.shape[1], 1).state_dict(), cbam.state_dict(), strict=True))
    ours = dict(cbam.named_parameters()) | dict(cbam.named_buffers())
    hidden = cbam.channel.w0.out_features
    theirs = CbamBlock(f.shape[1], f.shape[1] // hidden).double().train(cbam.training)
    values = {theirs_name: ours[name].clone() for theirs_name, name in names.items()}
    return torch.func.functional_call(theirs, values, (f,))


@pytest.mark.parametrize(
    ("reference", "k", "h", "w"),
    [(in_loops, 3, 3, 4), (in_loops, 7, 3, 2), (in_pytorchcv, 7, 13, 9)],
)
@pytest.mark.parametrize(("c", "r"), [(6, 3), (5, 1)])
@pytest.mark.parametrize("train", [True, False])
def test_forward_and_backward(
    reference: Callable, k: int, h: int, w: int, c: int, r: int, train: bool
) -> None:
    torch.manual_seed(0)
    cbam = scrambled(CBAM(c, r, k)).double().train(train)
    f = torch.randn(2, c, h, w, dtype=torch.double, requires_grad=True)
    expected = reference(f, cbam)  # first, for ours moves the running statistics
    out = cbam(f)
    torch.testing.assert_close(out, expected)

    inputs, towards = (f, *cbam.parameters()), torch.randn_like(out)
    torch.testing.assert_close(
        torch.autograd.grad(out, inputs, towards), torch.autograd.grad(expected, inputs, towards)
    )


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(("c_in", "stride"), [(32, 1), (12, 1), (32, 2)])
def test_the_bottleneck_is_that_of_pytorchcv(c_in: int, stride: int, train: bool) -> None:
    torch.manual_seed(0)
    ours = scrambled(Bottleneck(c_in, 32, stride, gate=CBAM)).double().train(train)
    theirs = CbamResUnit(c_in, 32, stride, bottleneck=True).double().train(train)
    pairs = [
        (ours.branch.narrow, theirs.body.conv1),
        (ours.branch.look, theirs.body.conv2),
        (ours.branch.widen, theirs.body.conv3),
        (ours.branch.gate, theirs.cbam),
    ]
    if not isinstance(ours.skip, nn.Identity):
        pairs.append((ours.skip, theirs.identity_conv))
    for pair in pairs:
        copied(*pair)

    x = torch.randn(3, c_in, 9, 7, dtype=torch.double, requires_grad=True)
    out, expected = ours(x), theirs(x)
    torch.testing.assert_close(out, expected)
    towards = torch.randn_like(out)
    [gradient], [too] = (torch.autograd.grad(y, x, towards) for y in (out, expected))
    torch.testing.assert_close(gradient, too)


def test_weights_of_the_whole_network() -> None:
    with torch.device("meta"):
        ours, theirs = cbam_resnet50(), theirs_resnet50()
        deeper = resnet(partial(Bottleneck, gate=CBAM), (3, 4, 23, 3))
    total, same, deep = (sum(p.numel() for p in m.parameters()) for m in (ours, theirs, deeper))
    assert total == same == 28_089_624
    assert deep == 49_330_172


def test_the_whole_network_classifies() -> None:
    model = cbam_resnet50(n_classes=7).eval()
    with torch.no_grad():
        assert model(torch.randn(1, 3, 63, 65)).shape == (1, 7)


sizes = {"c": st.integers(1, 7), "h": st.integers(1, 7), "w": st.integers(1, 7)}


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), k=st.sampled_from([1, 3, 7]), **sizes)
def test_what_the_gates_do_to_an_image(seed: int, k: int, c: int, h: int, w: int) -> None:
    torch.manual_seed(seed)
    cbam, f = scrambled(CBAM(c, 1, k)).eval(), torch.randn(2, c, h, w)
    m_c, out = cbam.channel(f), cbam(f)
    m_s = cbam.spatial(m_c * f)

    # Two shares, one a channel and one a place; nothing is added.
    assert m_c.shape == (2, c, 1, 1)
    assert m_s.shape == (2, 1, h, w)
    assert (out.abs() <= f.abs()).all()
    torch.testing.assert_close(out, m_s * m_c * f)

    # What is moved keeps the gates of its channel; what is renamed those of its place.
    order, names = torch.randperm(h * w), torch.randperm(c)
    moved = f.flatten(2)[..., order].view_as(f)
    torch.testing.assert_close(cbam.channel(moved), m_c)
    torch.testing.assert_close(cbam.spatial(f[:, names]), cbam.spatial(f))

    # A mirrored kernel looks at the mirrored image as the kernel does at the image.
    expected = cbam.spatial(f).flip(3)
    cbam.spatial.conv[0].weight.data = cbam.spatial.conv[0].weight.data.flip(3)
    torch.testing.assert_close(cbam.spatial(f.flip(3)), expected)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), **sizes)
def test_the_two_poolings_share_their_layers(seed: int, c: int, h: int, w: int) -> None:
    torch.manual_seed(seed)
    gate, f = scrambled(ChannelGate(c, 1)), torch.randn(2, c, h, w)
    swapped = ChannelGate(c, 1, pools=("max", "mean"))
    swapped.load_state_dict(gate.state_dict())
    torch.testing.assert_close(swapped(f), gate(f))

    # Where all pixels are equal, both say the same.
    flat = f[..., :1, :1].expand(2, c, h, w)
    expected = (2 * gate.mlp(flat[..., 0, 0])).sigmoid()
    torch.testing.assert_close(gate(flat)[..., 0, 0], expected)


def test_only_the_maximum_tells_a_pixel_from_a_haze() -> None:
    torch.manual_seed(0)
    pixel, haze = torch.zeros(1, 4, 3, 5), torch.full((1, 4, 3, 5), 1.0)
    pixel[..., 1, 3] = 15
    for pools, same in [(("mean",), True), (("max",), False), (("mean", "max"), False)]:
        gate = scrambled(ChannelGate(4, 1, pools))
        assert torch.allclose(gate(pixel), gate(haze)) == same


def test_a_new_spatial_gate_is_half_open() -> None:
    gate = SpatialGate()
    assert (gate(torch.randn(2, 5, 6, 3)) == 0.5).all()
    assert gate.conv[0].weight.abs().min() > 0


@pytest.mark.parametrize(("c", "r"), [(6, 4), (3, 16)])
def test_channels_that_do_not_divide(c: int, r: int) -> None:
    with pytest.raises(ValueError, match=f"r = {r} does not divide c = {c}"):
        CBAM(c, r)


@pytest.mark.parametrize("k", [2, 14, 56])
def test_even_kernels(k: int) -> None:
    with pytest.raises(ValueError, match=f"k = {k} is even"):
        CBAM(16, k=k)


def test_images_hold_their_label_in_the_marked_corner_of_the_told_channel() -> None:
    torch.manual_seed(0)
    images, label, corner = corners(200)
    assert (corner.sum(dim=(1, 2)) == 12).all()
    told = torch.where(images[:, 0].amax(dim=(1, 2)) > 1.5, 2, 3)
    held = images[torch.arange(200), told][corner].view(200, 12).mean(dim=1)
    assert (held * label > 0.8).all()
    means = images[:, 0].mean(dim=(1, 2))
    assert (means[told == 2].mean() - means[told == 3].mean()).abs() < 0.01
