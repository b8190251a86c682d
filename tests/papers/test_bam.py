"""BAM against loops, against pytorchcv's branches with their norms moved, and its networks."""

from collections.abc import Callable

import pytest
import torch
from attention.bam import BAM, Released, Separate, SpatialBranch, bam_resnet50, footprint, lamps
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorchcv.models.bamresnet import BamBlock
from pytorchcv.models.bamresnet import bam_resnet50 as theirs_resnet50
from pytorchcv.models.resnet import resnet50
from torch import Tensor, nn


def scrambled(module: nn.Module) -> nn.Module:
    """Give every weight and every statistic of the batch norms a value of its own."""
    for name, value in [*module.named_parameters(), *module.named_buffers()]:
        if value.is_floating_point():
            value.data.uniform_(0.5, 1.5) if "var" in name else value.data.normal_(0, 0.5)
    return module


def normed(scores: Tensor, norm: nn.Module, over: tuple[int, ...]) -> Tensor:
    """Batch normalisation, written out."""
    shape = [1 if i in over else -1 for i in range(scores.dim())]
    mean, variance = norm.running_mean.view(shape), norm.running_var.view(shape)
    if norm.training:
        mean = scores.mean(over, keepdim=True)
        variance = scores.var(over, correction=0, keepdim=True)
    scores = (scores - mean) / (variance + norm.eps).sqrt()
    return scores * norm.weight.view(shape) + norm.bias.view(shape)


def in_loops(f: Tensor, bam: BAM) -> Tensor:
    """Equations 1 to 4, one place at a time."""
    b, _, h, w = f.shape
    spatial, d = bam.spatial, bam.spatial.f1.dilation[0]

    def dense(x: Tensor, layer: nn.Module) -> Tensor:
        return x @ layer.weight.flatten(1).T + layer.bias

    def dilated(place: dict, layer: nn.Conv2d) -> dict:
        out = {}
        for y, x in place:
            out[y, x] = layer.bias.expand(b, -1)
            for i in range(3):
                for j in range(3):
                    there = y + (i - 1) * d, x + (j - 1) * d
                    if there in place:
                        out[y, x] = out[y, x] + place[there] @ layer.weight[:, :, i, j].T
            out[y, x] = out[y, x].clamp(min=0)
        return out

    pooled = sum(f[:, :, y, x] for y in range(h) for x in range(w)) / (h * w)
    m_c = dense(dense(pooled, bam.channel.w0).clamp(min=0), bam.channel.w1)
    m_c = normed(m_c, bam.channel.norm, (0,))

    place = {(y, x): f[:, :, y, x] for y in range(h) for x in range(w)}
    place = {where: dense(value, spatial.f0).clamp(min=0) for where, value in place.items()}
    place = dilated(dilated(place, spatial.f1), spatial.f2)
    m_s = torch.stack([dense(value, spatial.f3) for value in place.values()], dim=2)
    m_s = normed(m_s, spatial.norm, (0, 2)).view(b, 1, h, w)
    return f + f / (1 + torch.exp(-m_c[:, :, None, None] - m_s))


def moved_norms(f: Tensor, bam: BAM) -> BamBlock:
    """
    pytorchcv's block, which is that of the authors' code, with our weights and with its
    norms where Eqs. 3 and 4 have them.
    """
    c = f.shape[1]
    theirs = BamBlock(c).double().train(bam.training)
    channel, spatial = theirs.ch_att, theirs.sp_att
    channel.init_fc.fc = bam.channel.w0
    channel.init_fc.bn = nn.Identity()
    channel.final_fc = nn.Sequential(bam.channel.w1, bam.channel.norm)
    spatial.init_conv.conv, spatial.init_conv.bn = bam.spatial.f0, nn.Identity()
    for block, ours in zip(spatial.dil_convs, (bam.spatial.f1, bam.spatial.f2), strict=True):
        assert block.conv.dilation == block.conv.padding == (4, 4)
        block.conv, block.bn = ours, nn.Identity()
    spatial.final_conv = nn.Sequential(bam.spatial.f3, bam.spatial.norm)
    return theirs


def added(f: Tensor, bam: BAM) -> Tensor:
    """Their branches, put together as in Eqs. 1 and 2."""
    theirs = moved_norms(f, bam)
    return f * (1 + torch.sigmoid(theirs.ch_att(f) + theirs.sp_att(f)))


@pytest.mark.parametrize(
    ("reference", "c", "r", "d", "h", "w"),
    [(in_loops, 6, 3, 1, 5, 3), (in_loops, 4, 1, 2, 4, 7), (added, 32, 16, 4, 13, 9)],
)
@pytest.mark.parametrize("train", [True, False])
def test_forward_and_backward(
    reference: Callable, c: int, r: int, d: int, h: int, w: int, train: bool
) -> None:
    torch.manual_seed(0)
    bam = scrambled(BAM(c, r, d)).double().train(train)
    f = torch.randn(3, c, h, w, dtype=torch.double, requires_grad=True)
    out, expected = bam(f), reference(f, bam)
    torch.testing.assert_close(out, expected)

    # (In training the norm takes away b_1, whose gradient is nothing but rounding.)
    inputs, towards = (f, *bam.parameters()), torch.randn_like(out)
    torch.testing.assert_close(
        torch.autograd.grad(out, inputs, towards),
        torch.autograd.grad(expected, inputs, towards),
        atol=1e-9,
        rtol=1e-6,
    )


def test_the_released_code_multiplies() -> None:
    torch.manual_seed(0)
    released = scrambled(Released(32)).double().eval()
    f = torch.randn(2, 32, 7, 5, dtype=torch.double)
    torch.testing.assert_close(released(f), moved_norms(f, released)(f))


def test_weights_of_the_whole_network() -> None:
    with torch.device("meta"):
        ours, theirs, plain = bam_resnet50(), theirs_resnet50(), resnet50()
    total, released, without = (
        sum(p.numel() for p in model.parameters()) for model in (ours, theirs, plain)
    )
    assert total == 25_917_793
    assert released == 25_915_099
    extra = 0
    for c in (256, 512, 1024):
        thin = c // 16
        extra += 2 * c * thin + thin + c + 2 * c  # the channels and their norm
        extra += c * thin + thin + 2 * (9 * thin**2 + thin) + thin + 1 + 2  # the places
    assert total - without == extra


def test_modules_stand_where_the_network_halves_its_maps() -> None:
    with torch.device("meta"):
        model = bam_resnet50()
    where = {name: [isinstance(m, BAM) for m in part] for name, part in model.named_children()}
    assert {name: sum(found) for name, found in where.items() if any(found)} == {
        "stage1": 1,
        "stage2": 1,
        "stage3": 1,
    }
    assert all(where[stage][-1] for stage in ("stage1", "stage2", "stage3"))
    dilated = [m.dilation for m in model.modules() if getattr(m, "dilation", 1) == (4, 4)]
    assert len(dilated) == 2 * 3


def test_the_whole_network_classifies() -> None:
    model = bam_resnet50(n_classes=7).eval()
    with torch.no_grad():
        assert model(torch.randn(1, 3, 63, 65)).shape == (1, 7)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    d=st.integers(1, 5),
    c=st.integers(1, 6),
    h=st.integers(1, 9),
    w=st.integers(1, 9),
)
def test_what_a_module_does_to_an_image(seed: int, d: int, c: int, h: int, w: int) -> None:
    torch.manual_seed(seed)
    bam = scrambled(BAM(c, 1, d)).double().eval()
    f = torch.randn(2, c, h, w, dtype=torch.double)
    m_c, m_s, out = bam.channel(f), bam.spatial(f), bam(f)
    assert m_c.shape == (2, c, 1, 1)
    assert m_s.shape == (2, 1, h, w)

    # Nothing is shut, nothing more than doubled, and no sign changes.
    assert (out.abs() >= f.abs()).all()
    assert (out.abs() <= 2 * f.abs()).all()
    assert (out * f >= 0).all()

    # The map is a sum under a sigmoid.
    torch.testing.assert_close(bam.attend(f).logit(), (m_c + m_s).expand_as(f))

    # Moving the pixels moves no channel's score; the mirrored kernels see the mirror image.
    order = torch.randperm(h * w)
    torch.testing.assert_close(bam.channel(f.flatten(2)[..., order].view_as(f)), m_c)
    for conv in (bam.spatial.f1, bam.spatial.f2):
        conv.weight.data = conv.weight.data.flip(3)
    torch.testing.assert_close(bam.spatial(f.flip(3)), m_s.flip(3))


def test_two_silent_branches_leave_half_a_gate() -> None:
    bam, f = BAM(6, 2), torch.randn(3, 6, 5, 4)
    for norm in (bam.channel.norm, bam.spatial.norm):
        nn.init.zeros_(norm.weight)
    torch.testing.assert_close(bam(f), 1.5 * f)


def test_three_ways_to_join() -> None:
    m_c, m_s = torch.tensor([-4.0, -4.0, 4.0, 4.0]), torch.tensor([-4.0, 8.0, -8.0, 8.0])
    modules = BAM(4, 2), Separate(4, 2), Released(4, 2)
    either, both, agree = (module.join(m_c, m_s) > 0.5 for module in modules)
    assert either.tolist() == [False, True, False, True]
    assert both.tolist() == [False, False, False, True]
    assert agree.tolist() == [True, False, False, True]


@pytest.mark.parametrize("d", [1, 2, 3, 4, 5])
def test_a_place_sees_25_places(d: int) -> None:
    torch.manual_seed(0)
    seen = (footprint(d) > 0).nonzero() - 10
    steps = [-2 * d, -d, 0, d, 2 * d]
    assert seen.tolist() == [[y, x] for y in steps for x in steps]


def test_small_maps_keep_their_size() -> None:
    branch = SpatialBranch(16)
    assert branch.f1.dilation == branch.f2.dilation == (4, 4)
    assert branch(torch.randn(2, 16, 7, 3)).shape == (2, 1, 7, 3)


@pytest.mark.parametrize(("c", "r"), [(6, 4), (3, 16)])
def test_channels_that_do_not_divide(c: int, r: int) -> None:
    with pytest.raises(ValueError, match=f"r = {r} does not divide c = {c}"):
        BAM(c, r)


@pytest.mark.parametrize("d", [0, -1])
def test_no_dilation(d: int) -> None:
    with pytest.raises(ValueError, match=f"d = {d} is no dilation"):
        BAM(16, d=d)


def test_gates_are_asked_for_by_bright_channels_and_by_lamps() -> None:
    torch.manual_seed(0)
    images, wanted = lamps(50)
    lit, bright = images[:, :1] > 0, images[:, 1:] > 0
    assert images.shape == (50, 8, 6, 9)
    assert torch.equal(wanted, lit | bright)
