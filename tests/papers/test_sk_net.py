"""Selective kernels against dense kernels, against pytorchcv, alone and in SKNet-50."""

from collections.abc import Iterator

import pytest
import torch
from attention.sk_net import EqualSum, SelectiveKernel, edges, sk_bottleneck, texture
from convolution.resnet import Bottleneck, conv_bn, resnet
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorchcv.models.sknet import SKConvBlock, sknet50
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode


def perturb(module: nn.Module) -> nn.Module:
    """Batch norms that do something."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            part.weight.data.uniform_(0.5, 2)
            part.bias.data.normal_(std=0.3)
            part.running_mean.normal_(std=0.3)
            part.running_var.uniform_(0.5, 2)
    return module


def normalize(x: Tensor, norm: nn.Module, train: bool) -> Tensor:
    """A batch norm by its definition."""
    dims = [i for i in range(x.ndim) if i != 1]
    shape = [-1 if i == 1 else 1 for i in range(x.ndim)]
    mean = x.mean(dims) if train else norm.running_mean
    var = x.var(dims, correction=0) if train else norm.running_var
    x = (x - mean.view(shape)) / (var.view(shape) + norm.eps).sqrt()
    return x * norm.weight.view(shape) + norm.bias.view(shape)


def dense(weight: Tensor, size: int, groups: int) -> Tensor:
    """The full kernel of `size` that a dilated and grouped one stands for."""
    c_out, c_in, *_ = weight.shape
    full = weight.new_zeros(c_out, c_in * groups, size, size)
    step = (size - 1) // 2
    for o in range(c_out):
        start = o // (c_out // groups) * c_in
        for i in range(3):
            for j in range(3):
                full[o, start : start + c_in, i * step, j * step] = weight[o, :, i, j]
    return full


def by_definition(x: Tensor, sk: SelectiveKernel, stride: int, groups: int, train: bool) -> Tensor:
    """Section 3.1 for every branch, with whole kernels, exponentials and a loop of channels."""
    branches = []
    for i, (conv, norm, _) in enumerate(sk.branches):
        kernel = dense(conv.weight, 2 * i + 3, groups)
        found = F.conv2d(x, kernel, stride=stride, padding=i + 1)
        branches.append(normalize(found, norm, train).clamp(min=0))
    s = sum(branches).flatten(2).sum(-1) / branches[0][0, 0].numel()
    z = normalize(s @ sk.w.weight.T, sk.norm, train).clamp(min=0)
    c = x.shape[1]
    channels = []
    for k in range(c):
        powers = [(z @ sk.a.weight[m * c + k]).exp() for m in range(len(branches))]
        shares = [power / sum(powers) for power in powers]
        parts = [a[:, None, None] * u[:, k] for a, u in zip(shares, branches, strict=True)]
        channels.append(sum(parts))
    return torch.stack(channels, dim=1)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(
    ("c", "stride", "m", "groups", "r", "least"),
    [
        (6, 1, 2, 3, 2, 1),
        (4, 2, 2, 1, 16, 5),
        (4, 1, 3, 2, 1, 2),
        (5, 2, 4, 5, 2, 1),
        (3, 1, 1, 1, 1, 1),
    ],
)
def test_forward_and_backward(
    c: int, stride: int, m: int, groups: int, r: int, least: int, train: bool
) -> None:
    torch.manual_seed(0)
    sk = perturb(SelectiveKernel(c, stride, m, groups, r, least)).double().train(train)
    x = torch.randn(3, c, 9, 7, dtype=torch.double, requires_grad=True)
    expected = by_definition(x, sk, stride, groups, train)
    out = sk(x)
    torch.testing.assert_close(out, expected)

    inputs = (x, *sk.parameters())
    towards = torch.randn_like(out)
    torch.testing.assert_close(
        torch.autograd.grad(out, inputs, towards), torch.autograd.grad(expected, inputs, towards)
    )


def copy(ours: nn.Module, theirs: nn.Module) -> None:
    """Give `ours` the weights of `theirs`, whose parts stand in the same order."""
    pairs = zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True)
    for mine, other in pairs:
        mine.copy_(other.reshape(mine.shape))


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(("m", "stride"), [(2, 1), (2, 2), (3, 1)])
def test_the_unit_of_pytorchcv(m: int, stride: int, train: bool) -> None:
    torch.manual_seed(0)
    theirs = perturb(SKConvBlock(64, 64, stride, groups=32, num_branches=m, min_channels=7))
    ours = SelectiveKernel(64, stride, m, least=7)
    copy(ours, theirs)
    x = torch.randn(3, 64, 9, 7, dtype=torch.double, requires_grad=True)
    out, expected = (sk.double().train(train)(x) for sk in (ours, theirs))
    torch.testing.assert_close(out, expected)

    towards = torch.randn_like(out)
    gradients, expected = (
        torch.autograd.grad(y, [x, *sk.parameters()], towards)
        for y, sk in ((out, ours), (expected, theirs))
    )
    for gradient, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, other.reshape(gradient.shape))


def test_the_network_of_pytorchcv() -> None:
    torch.manual_seed(0)
    theirs = sknet50(num_classes=7)
    theirs.features.final_pool = nn.AdaptiveAvgPool2d(1)  # theirs takes 224 x 224 only
    with torch.no_grad():
        theirs(torch.randn(2, 3, 63, 65))  # moves the running statistics
    ours = resnet(sk_bottleneck, n_classes=7)
    copy(ours, theirs)

    x = torch.randn(1, 3, 63, 65, dtype=torch.double, requires_grad=True)
    out, expected = (model.double().eval()(x) for model in (ours, theirs))
    assert out.shape == (1, 7)
    torch.testing.assert_close(out, expected)
    [gradient], [other] = (torch.autograd.grad(y.square().sum(), x) for y in (out, expected))
    assert gradient.abs().max() > 0
    torch.testing.assert_close(gradient, other)


def weights(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def units(model: nn.Module) -> Iterator[SelectiveKernel]:
    return (part for part in model.modules() if isinstance(part, SelectiveKernel))


def grouped(width: int, stride: int) -> nn.Sequential:
    return nn.Sequential(conv_bn(width, width, 3, stride, groups=32), nn.ReLU())


def resnext_bottleneck(c_in: int, c_out: int, stride: int) -> Bottleneck:
    return Bottleneck(c_in, c_out, stride, width=c_out // 2, look=grouped)


def narrow_bottleneck(c_in: int, c_out: int, stride: int) -> Bottleneck:
    def look(width: int, stride: int) -> SelectiveKernel:
        return SelectiveKernel(width, stride, least=1)

    return Bottleneck(c_in, c_out, stride, width=c_out // 2, look=look)


def test_weights_of_the_whole_network() -> None:
    with torch.device("meta"):
        model = resnet(sk_bottleneck)
        assert weights(model) == 27_479_784  # the authors' prototxt, and pytorchcv
        assert weights(resnet(sk_bottleneck, (3, 4, 23, 3))) == 48_736_040  # pytorchcv
        assert weights(resnet(resnext_bottleneck)) == 25_028_904

        # What the page says of other ways to count.
        one_matrix = sum(weights(unit.a) // 2 for unit in units(model))
        biases = sum(unit.w.out_features + unit.a.out_features for unit in units(model))
        norms = sum(weights(unit.norm) for unit in units(model))
        assert round((weights(model) - one_matrix) / 1e6, 1) == 27.1
        assert round(weights(resnet(narrow_bottleneck)) / 1e6, 1) == 27.4
        assert round((weights(model) + biases) / 1e6, 1) == 27.5
        assert round((weights(model) - norms) / 1e6, 1) == 27.5


def test_arithmetic_of_the_whole_network() -> None:
    with torch.device("meta"), torch.no_grad():
        image = torch.empty(1, 3, 224, 224)
        with FlopCounterMode(display=False) as counter:
            resnet(sk_bottleneck).eval()(image)
        selection = counter.get_flop_counts()["Global"][torch.ops.aten.bmm]
        assert round(counter.get_total_flops() / 2e9, 2) == 4.47
        assert round((counter.get_total_flops() - selection) / 2e9, 2) == 4.46
        with FlopCounterMode(display=False) as counter:
            resnet(resnext_bottleneck).eval()(image)
        assert round(counter.get_total_flops() / 2e9, 2) == 4.23


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    c=st.integers(1, 6),
    m=st.integers(1, 4),
    h=st.integers(1, 6),
    w=st.integers(1, 6),
)
def test_what_a_choice_does_to_its_branches(seed: int, c: int, m: int, h: int, w: int) -> None:
    torch.manual_seed(seed)
    sk = perturb(SelectiveKernel(c, m=m, groups=1, least=3)).eval()
    sk.a.weight.data.mul_(5)
    x = torch.randn(2, c, h, w)
    u = sk.split(x)
    a, out = sk.weigh(sk.fuse(u)), sk(x)

    # Shares of one, so every value lies between those of the branches.
    assert a.shape == (m, 2, c)
    torch.testing.assert_close(a.sum(dim=0), torch.ones(2, c))
    assert (a >= 0).all()
    assert (out >= u.min(dim=0).values - 1e-5).all()
    assert (out <= u.max(dim=0).values + 1e-5).all()

    # What every branch gains alike moves nothing.
    sk.a.weight.data += torch.randn(c, sk.w.out_features).repeat(m, 1)
    torch.testing.assert_close(sk.weigh(sk.fuse(u)), a, rtol=1e-3, atol=1e-4)

    # Without scores all branches count the same.
    sk.a.weight.data.zero_()
    torch.testing.assert_close(sk(x), u.mean(dim=0))


def test_each_channel_chooses_for_itself() -> None:
    torch.manual_seed(0)
    sk, z = SelectiveKernel(4, groups=1), torch.rand(3, 32)
    before = sk.weigh(z)
    sk.a.weight.data[1] += 1  # the first branch's score of channel 1
    moved = (sk.weigh(z) - before).abs().amax(dim=(0, 1)) > 1e-3
    assert moved.tolist() == [False, True, False, False]


def test_fuse_forgets_where_and_hears_every_branch() -> None:
    torch.manual_seed(0)
    sk = SelectiveKernel(4, m=3, groups=1).eval()
    u = torch.rand(3, 2, 4, 5, 7)
    moved = u.flatten(3)[..., torch.randperm(35)].view_as(u)
    torch.testing.assert_close(sk.fuse(moved), sk.fuse(u))
    torch.testing.assert_close(sk.fuse(u[[2, 0, 1]]), sk.fuse(u))
    for i in range(3):
        louder = u.clone()
        louder[i] += 1
        assert (sk.fuse(louder) - sk.fuse(u)).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("c", "r", "least", "d"), [(128, 16, 32, 32), (1024, 16, 32, 64), (40, 4, 8, 10)]
)
def test_length_of_the_short_vector(c: int, r: int, least: int, d: int) -> None:
    sk = SelectiveKernel(c, groups=1, r=r, least=least)
    assert sk.w.out_features == sk.norm.num_features == sk.a.in_features == d
    assert sk.w.bias is None
    assert sk.a.bias is None


def test_a_branch_reaches_as_far_as_it_is_called() -> None:
    impulse = torch.zeros(1, 1, 11, 11)
    impulse[..., 5, 5] = 1
    for i, look in enumerate(SelectiveKernel(1, m=3, groups=1).branches):
        look[0].weight.data.fill_(1)
        seen = look[0](impulse)[0, 0].nonzero()
        reach = [5 - (i + 1), 5, 5 + (i + 1)]
        assert seen.tolist() == [[y, x] for y in reach for x in reach]


@pytest.mark.parametrize(("stride", "h", "w"), [(1, 9, 7), (2, 9, 7), (2, 8, 6)])
def test_stride(stride: int, h: int, w: int) -> None:
    sk = SelectiveKernel(8, stride, m=3, groups=2)
    assert sk(torch.randn(2, 8, h, w)).shape == (2, 8, -(-h // stride), -(-w // stride))


def test_the_baseline_adds_up() -> None:
    torch.manual_seed(0)
    equal, x = EqualSum(4, groups=1).eval(), torch.randn(2, 4, 5, 7)
    torch.testing.assert_close(equal(x), equal.branches[0](x) + equal.branches[1](x))


@pytest.mark.parametrize("scale", [1, 2, 3])
def test_textures_and_their_edges(scale: int) -> None:
    torch.manual_seed(0)
    x = texture(2, scale)
    y = edges(x, scale)
    assert x.shape == y.shape == (2, 1, 12, 12)
    [changes] = (x[0, 0, 0].diff() != 0).nonzero(as_tuple=True)
    assert set(changes.diff().tolist()) == {scale}
    for i in range(12):
        left = x[..., i - scale] if i >= scale else 0
        right = x[..., i + scale] if i + scale < 12 else 0
        torch.testing.assert_close(y[..., i], right - left)


def test_a_training_batch_needs_two_images() -> None:
    sk, x = SelectiveKernel(4, groups=1), torch.randn(1, 4, 5, 7)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        sk(x)
    assert sk.eval()(x).shape == x.shape


@pytest.mark.parametrize(("c", "groups"), [(6, 4), (48, 32)])
def test_channels_that_do_not_divide(c: int, groups: int) -> None:
    with pytest.raises(ValueError, match=f"groups = {groups} does not divide c = {c}"):
        SelectiveKernel(c, groups=groups)


def test_no_branches() -> None:
    with pytest.raises(ValueError, match="m = 0"):
        SelectiveKernel(4, m=0, groups=1)
