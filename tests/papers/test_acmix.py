"""ACmix against loops, against the authors' way of computing it and against convolutions."""

import itertools
import math

import pytest
import torch
from attention.acmix import ACmix, acmix_resnet50, convolve, edges, lamps, learn, shift
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode


def trained(c: int, **sizes: int) -> ACmix:
    """With weights as after some training: nothing is zero, one or shared any more."""
    mix = ACmix(c, **sizes).double()
    for p in mix.parameters():
        p.data += 0.5 * torch.randn_like(p)
    return mix


def mirror(i: int, size: int) -> int:
    return -i if i < 0 else 2 * (size - 1) - i if i >= size else i


def in_loops(mix: ACmix, x: Tensor) -> Tensor:
    """One number at a time, as the paper has it: relative places, k² shifts, N groups."""
    weight, bias = mix.qkv.weight[..., 0, 0], mix.qkv.bias
    b, c, h, w = x.shape
    n, stride = mix.heads, mix.stride
    d, r, k = c // n, mix.k_att // 2, mix.shifts.kernel_size[0]
    maps = torch.einsum("oc,bchw->bohw", weight, x) + bias[:, None, None]
    q, key, v = maps.reshape(b, 3, n, d, h, w).unbind(1)
    place = {}
    for i, j in itertools.product(range(h), range(w)):
        at = torch.tensor([2 * j / (w - 1) - 1, 2 * i / (h - 1) - 1]).double()
        place[i, j] = mix.place.weight @ at + mix.place.bias
    reach = range(-r, r + 1)

    def attention(a: int, e: int, i: int, j: int) -> Tensor:
        window = [(mirror(i + s, h), mirror(j + t, w)) for s in reach for t in reach]
        scores = [
            q[a, e, :, i, j] @ (key[a, e, :, y, z] + place[i, j] - place[y, z]) / math.sqrt(d)
            for y, z in window
        ]
        total = sum(s.exp() for s in scores)
        return sum(
            s.exp() / total * v[a, e, :, y, z] for s, (y, z) in zip(scores, window, strict=True)
        )

    def convolution(a: int, e: int, f: int, i: int, j: int) -> Tensor:
        pieces = maps[a].reshape(3 * n, d, h, w)[:, f]
        kernel = mix.shifts.weight[f * n + e]
        out = torch.zeros((), dtype=torch.double)
        for s, t in itertools.product(range(k), range(k)):
            y, z = i + s - k // 2, j + t - k // 2
            if 0 <= y < h and 0 <= z < w:
                out = out + kernel[:, s, t] @ (mix.fc.weight @ pieces[:, y, z])
        return out

    rows = []
    for a, i, j in itertools.product(range(b), range(0, h, stride), range(0, w, stride)):
        att = torch.cat([attention(a, e, i, j) for e in range(n)])
        conv = torch.stack([convolution(a, e, f, i, j) for e in range(n) for f in range(d)])
        rows.append(mix.alpha * att + mix.beta * conv)
    size = (b, -(-h // stride), -(-w // stride), c)
    return torch.stack(rows).reshape(size).permute(0, 3, 1, 2)


def as_released(mix: ACmix, x: Tensor) -> Tensor:
    """
    As the authors' module computes it: places of queries and keys unfolded apart, pieces put
    side by side. Only the heads of its convolution are in another order, which is undone.
    """
    b, c, h, w = x.shape
    n, stride, k_att = mix.heads, mix.stride, mix.k_att
    d, size = c // n, (h // stride, w // stride)
    q, k, v = F.conv2d(x, mix.qkv.weight, mix.qkv.bias).chunk(3, dim=1)
    line = [torch.linspace(-1, 1, s, dtype=x.dtype) for s in (h, w)]
    at = torch.stack([line[1].expand(h, w), line[0][:, None].expand(h, w)])[None]
    pe = F.conv2d(at, mix.place.weight[..., None, None], mix.place.bias)

    def around(t: Tensor) -> Tensor:
        pad = nn.ReflectionPad2d(k_att // 2)
        return F.unfold(pad(t), k_att, stride=stride).view(len(t), d, k_att**2, *size)

    fold = (b * n, d, h, w)
    asking = q.reshape(fold)[:, :, ::stride, ::stride] * d**-0.5
    relative = pe[:, :, None, ::stride, ::stride] - around(pe)
    a = (asking.unsqueeze(2) * (around(k.reshape(fold)) + relative)).sum(1).softmax(1)
    att = (a.unsqueeze(1) * around(v.reshape(fold))).sum(2).view(b, c, *size)

    parts = torch.cat([t.reshape(b, n, d, h * w) for t in (q, k, v)], 1)
    maps = F.conv2d(parts, mix.fc.weight[..., None, None])
    maps = maps.permute(0, 2, 1, 3).reshape(b, -1, h, w)
    width = mix.shifts.kernel_size[0]
    conv = F.conv2d(maps, mix.shifts.weight, None, stride, width // 2, groups=d)
    conv = conv.view(b, d, n, *size).transpose(1, 2).reshape(b, c, *size)
    return mix.alpha * att + mix.beta * conv


def same(mix: ACmix, x: Tensor, expected: Tensor, out: Tensor) -> None:
    torch.testing.assert_close(out, expected)
    towards = torch.randn_like(out)
    inputs = (x, *mix.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(out, inputs, towards), torch.autograd.grad(expected, inputs, towards)
    )


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(
    ("c", "sizes", "h", "w"),
    [
        (4, {"heads": 2, "k_att": 3}, 5, 4),
        (6, {"heads": 3, "k_att": 5, "stride": 2}, 5, 3),
        (3, {"heads": 1, "k_att": 3, "k_conv": 5}, 4, 7),
        (3, {"heads": 3, "k_att": 3, "k_conv": 1, "stride": 2}, 4, 5),
    ],
)
def test_forward_and_backward(c: int, sizes: dict[str, int], h: int, w: int, train: bool) -> None:
    torch.manual_seed(0)
    mix = trained(c, **sizes).train(train)
    x = torch.randn(2, c, h, w, dtype=torch.double, requires_grad=True)
    same(mix, x, in_loops(mix, x), mix(x))


@pytest.mark.parametrize(
    ("stride", "h", "w"), [(1, 9, 7), (1, 63, 4), (2, 8, 6)]
)  # with stride 2 the authors' code takes even sizes only
def test_as_the_authors_compute_it(stride: int, h: int, w: int) -> None:
    torch.manual_seed(0)
    mix = trained(12, stride=stride)
    x = torch.randn(2, 12, h, w, dtype=torch.double, requires_grad=True)
    same(mix, x, as_released(mix, x), mix(x))


def test_a_layer_starts_as_half_of_each_path() -> None:
    torch.manual_seed(0)
    mix, x = ACmix(8), torch.randn(2, 8, 5, 7)
    assert (mix.alpha, mix.beta) == (0.5, 0.5)
    qkv = mix.project(x)
    torch.testing.assert_close(mix(x), (mix.attend(qkv) + mix.convolve(qkv)) / 2)


def test_at_first_every_head_of_the_convolution_adds_the_shifted_maps() -> None:
    torch.manual_seed(0)
    mix, x = ACmix(8, heads=2, k_conv=5), torch.randn(2, 8, 6, 5)
    qkv = mix.project(x)
    maps = torch.einsum("mbndhw,smn->sbdhw", qkv, mix.fc.weight.view(25, 3, 2))
    offsets = itertools.product(range(-2, 3), repeat=2)
    added = sum(shift(maps[i], dx, dy) for i, (dx, dy) in enumerate(offsets))
    torch.testing.assert_close(mix.convolve(qkv), added.repeat(1, 2, 1, 1))
    assert mix.shifts.bias is None
    assert sum(mix.shifts.weight.flatten()) == 8 * 25


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    k=st.sampled_from([1, 3, 5, 7]),
    h=st.integers(1, 8),
    w=st.integers(1, 8),
)
def test_a_convolution_is_shifted_convolutions_of_one_by_one(
    seed: int, k: int, h: int, w: int
) -> None:
    torch.manual_seed(seed)
    f, kernel = torch.randn(2, 3, h, w).double(), torch.randn(4, 3, k, k).double()
    torch.testing.assert_close(convolve(f, kernel), F.conv2d(f, kernel, padding=k // 2))


@settings(max_examples=30, deadline=None)
@given(dx=st.integers(-3, 3), dy=st.integers(-3, 3), h=st.integers(1, 6), w=st.integers(1, 6))
def test_a_shift_is_a_one_hot_convolution_and_no_roll(dx: int, dy: int, h: int, w: int) -> None:
    f = torch.arange(1.0, 2 * h * w + 1).view(1, 2, h, w)
    kernel = torch.zeros(2, 1, 7, 7)
    kernel[:, :, 3 + dx, 3 + dy] = 1
    moved = shift(f, dx, dy)
    assert torch.equal(moved, F.conv2d(f, kernel, padding=3, groups=2))
    assert torch.equal(moved, torch.roll(f, (-dx, -dy), (2, 3))) == (dx == dy == 0)


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    h=st.integers(3, 7),
    w=st.integers(3, 7),
    stride=st.integers(1, 3),
)
def test_what_attention_does(seed: int, h: int, w: int, stride: int) -> None:
    torch.manual_seed(seed)
    mix = trained(8, heads=2, k_att=5, stride=stride)
    x = torch.randn(2, 8, h, w).double()
    q, k, v = mix.project(x)
    a = mix.weigh(q, k)
    assert a.shape == (2, 2, 25, -(-h // stride), -(-w // stride))
    assert (a >= 0).all()
    torch.testing.assert_close(a.sum(dim=2), torch.ones_like(a[:, :, 0]))

    # An average is never outside of what it averages.
    out = mix.attend(torch.stack([q, k, v])).unflatten(1, (2, 4)).flatten(3)
    assert (out <= v.flatten(3).amax(dim=-1, keepdim=True) + 1e-9).all()
    assert (out >= v.flatten(3).amin(dim=-1, keepdim=True) - 1e-9).all()

    # Moving the origin of all places or all keys moves no weight.
    mix.place.bias.data += 3
    torch.testing.assert_close(mix.weigh(q, k + 2), a)


def test_places_only_tilt_a_window() -> None:
    torch.manual_seed(0)
    mix = trained(4, heads=1)
    zero = torch.zeros(1, 1, 4, 9, 11, dtype=torch.double)
    q = torch.randn(4, 1, 1, dtype=torch.double).expand_as(zero)
    a = mix.weigh(q, zero)[0, 0, :, 4, 5].view(7, 7).log()
    for steps in (a.diff(dim=0), a.diff(dim=1)):
        torch.testing.assert_close(steps, steps[:1, :1].expand_as(steps))
        assert steps.abs().min() > 1e-3


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_heads_of_the_convolution_share_nine_maps(heads: int) -> None:
    torch.manual_seed(0)
    mix = trained(64, heads=heads, k_att=3)
    mix.alpha.data.zero_()
    points = torch.zeros(64, 64, 5, 5).double()
    points[range(64), range(64), 2, 2] = 1
    answers = (mix(points) - mix(0 * points))[..., 1:4, 1:4].flip(-1, -2)
    rows = answers.reshape(64, heads, -1, 9).permute(2, 1, 3, 0).flatten(1, 2)
    ranks = torch.linalg.matrix_rank(rows).unique()
    assert ranks.tolist() == [min(9, 3 * heads)]


def test_weights_of_the_whole_network() -> None:
    with torch.device("meta"):
        model = acmix_resnet50()
    assert sum(p.numel() for p in model.parameters()) == 18_333_976
    layers = [m for m in model.modules() if isinstance(m, ACmix)]
    assert [m.stride for m in layers] == 3 * [1] + [2, 1, 1, 1] + [2] + 5 * [1] + [2, 1, 1]
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    wide = [m for m in convolutions if m.kernel_size == (3, 3)]
    assert wide == [m.shifts for m in layers]
    # With the bias that the authors' code asks for and loses.
    assert sum(m.shifts.out_channels for m in layers) == 3_776


def counted(module: nn.Module, x: Tensor) -> float:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(x)
    return counter.get_total_flops() / 2


def test_arithmetic_of_a_layer_and_of_the_whole_network() -> None:
    with torch.device("meta"):
        mix, model = ACmix(128), acmix_resnet50().eval()
        x, image = torch.empty(1, 128, 14, 14), torch.empty(1, 3, 224, 224)
    assert counted(mix.qkv, x) == 196 * 3 * 128**2
    place = 196 * 2 * 32
    mix.attend = lambda qkv: 0
    assert counted(mix, x) == 196 * (3 * 128**2 + 108 * 128)
    del mix.attend
    assert counted(mix, x) == 196 * (3 * 128**2 + 108 * 128) + place

    # The counter does not see products outside of matrices and convolutions.
    pixels = [(64, 3, 56), (128, 4, 28), (256, 6, 14), (512, 3, 7)]
    attention = sum(98 * c * n * side**2 for c, n, side in pixels)
    assert round((counted(model, image) + attention) / 1e9, 2) == 3.5


def test_the_whole_network_classifies() -> None:
    with torch.no_grad():
        assert acmix_resnet50().eval()(torch.randn(1, 3, 127, 129)).shape == (1, 1000)


@pytest.mark.parametrize(("task", "path"), [(lamps, "attend"), (edges, "convolve")])
def test_each_question_needs_its_path(task: object, path: str) -> None:
    torch.manual_seed(1)
    for _ in range(2):
        without = ACmix(8, heads=2)
        setattr(without, path, lambda qkv: 0)
        assert learn(without, task)[0] > 0.4


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"c": 6}, "heads = 4 do not divide c = 6"),
        ({"c": 8, "k_att": 4}, "k_att = 4"),
        ({"c": 8, "k_conv": 2}, "k_conv = 2"),
    ],
)
def test_sizes_that_do_not_fit(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ACmix(**sizes)


@pytest.mark.parametrize(("h", "w"), [(3, 9), (9, 3)])
def test_a_map_smaller_than_its_mirror(h: int, w: int) -> None:
    with pytest.raises(ValueError, match=f"a map of {h} x {w} cannot be mirrored by 3"):
        ACmix(8)(torch.randn(1, 8, h, w))
