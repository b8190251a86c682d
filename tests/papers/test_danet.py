"""Dual attention against loops, PyTorch's own attention and pytorchcv's DANet."""

from collections.abc import Callable

import pytest
import torch
from attention.danet import (
    ChannelAttention,
    ContraryChannelAttention,
    DANetHead,
    PositionAttention,
    danet,
    dilate,
    scenes,
)
from convolution.resnet import Bottleneck, resnet
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorchcv.models.danet import (
    ChaAttBlock,
    DANetHeadBranch,
    PosAttBlock,
    danet_resnetd50b_cityscapes,
)
from torch import Tensor, nn
from torch.nn import functional as F


def same(out: Tensor, expected: Tensor, inputs: list[Tensor]) -> None:
    """The same values and the same gradients."""
    torch.testing.assert_close(out, expected)
    towards = torch.randn_like(out)
    torch.testing.assert_close(
        torch.autograd.grad(out, inputs, towards), torch.autograd.grad(expected, inputs, towards)
    )


def collect(weights_of: list[Tensor], scores: Tensor) -> Tensor:
    """Each `j` in turn: the `weights_of` all `i`, by the exponentials of `scores[j]`."""
    rows = []
    for row in scores:
        shares = [torch.exp(score - row.max()) for score in row]
        rows.append(sum(s * d for s, d in zip(shares, weights_of, strict=True)) / sum(shares))
    return torch.stack(rows)


def position_in_loops(attention: PositionAttention, a: Tensor) -> Tensor:
    """Equations 1 and 2, one pair of pixels at a time."""
    images = []
    for image in a:
        pixels = list(image.flatten(1).T)
        b, c, d = (
            [conv.weight[:, :, 0, 0] @ pixel + conv.bias for pixel in pixels]
            for conv in (attention.key, attention.query, attention.value)
        )
        scores = torch.stack([torch.stack([b_i @ c_j for b_i in b]) for c_j in c])
        out = attention.alpha * collect(d, scores) + torch.stack(pixels)
        images.append(out.T.view_as(image))
    return torch.stack(images)


def position_built_in(attention: PositionAttention, a: Tensor) -> Tensor:
    """PyTorch's attention, told not to scale."""
    convs = attention.query, attention.key, attention.value
    q, k, v = (conv(a).flatten(2).transpose(1, 2) for conv in convs)
    collected = F.scaled_dot_product_attention(q, k, v, scale=1.0)
    return attention.alpha * collected.transpose(1, 2).reshape(a.shape) + a


def position_of_pytorchcv(attention: PositionAttention, a: Tensor) -> Tensor:
    c, q = a.shape[1], attention.query.out_channels
    theirs = PosAttBlock(c, reduction=c // q).to(a)
    ours = {"query_conv": "query", "key_conv": "key", "value_conv": "value"}
    tensors = {
        f"{name}.{kind}": getattr(getattr(attention, ours[name]), kind)
        for name in ours
        for kind in ("weight", "bias")
    }
    tensors["scale.alpha"] = attention.alpha[None]
    return torch.func.functional_call(theirs, tensors, a)


@pytest.mark.parametrize("reference", [position_in_loops, position_built_in, position_of_pytorchcv])
@pytest.mark.parametrize(("c", "r"), [(8, 8), (12, 4), (6, 1)])
@pytest.mark.parametrize("train", [True, False])
def test_position_attention(reference: Callable, c: int, r: int, train: bool) -> None:
    torch.manual_seed(0)
    attention = PositionAttention(c, r).double().train(train)
    attention.alpha.data.fill_(0.7)
    a = torch.randn(2, c, 5, 3, dtype=torch.double, requires_grad=True)
    same(attention(a), reference(attention, a), [a, *attention.parameters()])


@pytest.mark.parametrize("kind", [ChannelAttention, ContraryChannelAttention])
@pytest.mark.parametrize("train", [True, False])
def test_channel_attention_in_loops(kind: type, train: bool) -> None:
    torch.manual_seed(0)
    attention = kind().double().train(train)
    attention.beta.data.fill_(0.7)
    a = torch.randn(2, 7, 5, 3, dtype=torch.double, requires_grad=True)
    sign = 1 if kind is ChannelAttention else -1
    expected = []
    for image in a:
        channels = list(image)
        rows = [torch.stack([sign * (a_i * a_j).sum() for a_i in channels]) for a_j in channels]
        expected.append(attention.beta * collect(channels, torch.stack(rows)) + image)
    same(attention(a), torch.stack(expected), [a, attention.beta])


def test_the_sign_of_the_authors_code_is_that_of_pytorchcv() -> None:
    torch.manual_seed(0)
    ours, theirs = ContraryChannelAttention().double(), ChaAttBlock().double()
    ours.beta.data.fill_(0.7)
    a = torch.randn(2, 7, 5, 3, dtype=torch.double, requires_grad=True)
    tensors = {"scale.alpha": ours.beta[None]}
    expected = torch.func.functional_call(theirs, tensors, a)
    same(ours(a), expected, [a, ours.beta])

    ours = ChannelAttention().double()
    ours.beta.data.fill_(0.7)
    assert (ours(a) - expected).abs().max() > 0.1


def test_weights() -> None:
    def count(module: nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    assert count(PositionAttention(64)) == 5_201
    assert count(ChannelAttention()) == 1
    with torch.device("meta"):
        assert count(danet()) == 47_586_427
        assert count(danet(k=21)) == 47_586_427 + 3 * 2 * 513


def copy(ours: nn.Module, theirs: nn.Module) -> None:
    """Give `theirs` the tensors of `ours`, which come in the same order."""
    source, target = ours.state_dict(), theirs.state_dict()
    for mine, yours in zip(source, target, strict=True):
        target[yours] = source[mine].view_as(target[yours])
    theirs.load_state_dict(target)


def copy_branch(branch: nn.Module, classify: nn.Module, theirs: DANetHeadBranch) -> None:
    conv1, _, attention, conv2, _ = branch
    copy(nn.Sequential(conv1, conv2), nn.Sequential(theirs.conv1, theirs.conv2))
    copy(classify, theirs.conv3)
    scale = getattr(attention, "alpha", getattr(attention, "beta", None))
    theirs.att.scale.alpha.data.fill_(scale.item())
    if isinstance(attention, PositionAttention):
        for conv in ("query", "key", "value"):
            copy(getattr(attention, conv), getattr(theirs.att, f"{conv}_conv"))


@pytest.mark.parametrize("train", [True, False])
def test_the_network_of_pytorchcv(train: bool) -> None:
    torch.manual_seed(0)
    ours = danet(k=5).train(train)
    theirs = danet_resnetd50b_cityscapes(num_classes=5).train(train)
    for module in ours.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1)
            module.bias.data.normal_(std=0.1)
        if isinstance(module, nn.Dropout2d):
            module.p = 0.0
    for module in theirs.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0

    head = ours.head
    head.channel[2] = ContraryChannelAttention()
    head.position[2].alpha.data.fill_(0.7)
    head.channel[2].beta.data.fill_(-0.4)
    copy(ours[:-1], theirs.backbone)
    copy_branch(head.position, head.classify[1], theirs.head.branch_pa)
    copy_branch(head.channel, head.classify[2], theirs.head.branch_ca)
    copy(head.classify[0], theirs.head.conv)

    x = torch.randn(2, 3, 63, 41, requires_grad=True)
    features, _ = theirs.backbone(x)
    out, expected = ours(x), theirs.head(features)
    assert [y.shape for y in out] == 3 * [(2, 5, 8, 6)]
    for y, y_too in zip(out, expected, strict=True):
        torch.testing.assert_close(y, y_too, rtol=1e-3, atol=1e-3)
    [gradient], [gradient_too] = (torch.autograd.grad(sum(o).sum(), x) for o in (out, expected))
    torch.testing.assert_close(gradient, gradient_too, rtol=1e-2, atol=1e-2)


def test_dilation_fills_the_gaps_of_the_strided_network() -> None:
    torch.manual_seed(0)

    def block(c_in: int, c_out: int, stride: int) -> Bottleneck:
        return Bottleneck(c_in, c_out, stride)

    net = resnet(block, (1, 2, 3, 3), (8, 8, 16, 16)).eval()
    features = net[:-1]
    x = torch.randn(1, 3, 97, 130)
    coarse = features(x)
    dilate(net.stage3, 2)
    dilate(net.stage4, 4)
    fine = features(x)
    assert fine.shape == (1, 16, 13, 17)
    torch.testing.assert_close(fine[..., ::4, ::4], coarse, rtol=1e-4, atol=1e-5)


def test_the_sum_of_the_branches_is_classified() -> None:
    torch.manual_seed(0)
    head, x = DANetHead(64, 3).eval(), torch.randn(2, 64, 5, 7)
    both, position, channel = head(x)
    linear = [judge[1] for judge in head.classify]
    total = head.position(x) + head.channel(x)
    torch.testing.assert_close(both, linear[0](total))
    torch.testing.assert_close(position, linear[1](head.position(x)))
    torch.testing.assert_close(channel, linear[2](head.channel(x)))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), c=st.integers(1, 4), h=st.integers(1, 6), w=st.integers(1, 6))
def test_what_the_maps_know(seed: int, c: int, h: int, w: int) -> None:
    torch.manual_seed(seed)
    a = torch.randn(2, 8 * c, h, w)
    position, channel = PositionAttention(8 * c), ChannelAttention()
    assert torch.equal(position(a), a)
    assert torch.equal(channel(a), a)

    # Everyone hands out one whole, of which no part is negative.
    for attention, size in [(position, h * w), (channel, 8 * c)]:
        shares = attention.attend(a)
        assert shares.shape == (2, size, size)
        assert (shares >= 0).all()
        torch.testing.assert_close(shares.sum(dim=-1), torch.ones(2, size))
    energy = channel.energy(a)
    torch.testing.assert_close(energy, energy.mT)

    # Pixels may move, channels may change their names.
    position.alpha.data.fill_(2)
    channel.beta.data.fill_(2)
    order, names = torch.randperm(h * w), torch.randperm(8 * c)
    moved = a.flatten(2)[..., order].view_as(a)
    for attention in (position, channel):
        expected = attention(a).flatten(2)[..., order].view_as(a)
        torch.testing.assert_close(attention(moved), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(channel.attend(moved), channel.attend(a), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(channel(a[:, names]), channel(a)[:, names], rtol=1e-3, atol=1e-3)


def test_scenes_say_the_names_on_the_left_only() -> None:
    torch.manual_seed(0)
    image, name, material = scenes(50)
    said = image[:, 3:]
    assert (said[..., 9:] == 0).all()
    assert torch.equal(said[..., :9].argmax(dim=1), name[..., :9])
    assert torch.equal(name[..., :9], name[..., 9:])
    assert torch.equal(material[..., :9], material[..., 9:])
    assert (image[:, :3].argmax(dim=1) == material).float().mean() > 0.95
    assert {len(set(stripes.tolist())) for stripes in material[:, 0]} == {3}


@pytest.mark.parametrize(("c", "r"), [(12, 8), (3, 2)])
def test_channels_that_do_not_divide(c: int, r: int) -> None:
    with pytest.raises(ValueError, match=f"r = {r} does not divide c = {c}"):
        PositionAttention(c, r)
