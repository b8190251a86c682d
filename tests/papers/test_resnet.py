"""Residual networks against labml's, against pytorchcv's and against their definition."""

from functools import partial

import pytest
import torch
from convolution.resnet import BasicBlock, Bottleneck, resnet
from hypothesis import given, settings
from hypothesis import strategies as st
from labml_nn.resnet import BottleneckResidualBlock, ResidualBlock
from oracle import assert_same, copy_weights
from pytorchcv.models import resnet as pytorchcv
from torch import nn

NARROW = (64, 128, 256, 512)
NETWORKS = [
    ("resnet18", BasicBlock, (2, 2, 2, 2), NARROW, 11_689_512),
    ("resnet34", BasicBlock, (3, 4, 6, 3), NARROW, 21_797_672),
    ("resnet50", partial(Bottleneck, early=True), (3, 4, 6, 3), None, 25_557_032),
    ("resnet50b", Bottleneck, (3, 4, 6, 3), None, 25_557_032),
    ("resnet101b", Bottleneck, (3, 4, 23, 3), None, 44_549_160),
    ("resnet152b", Bottleneck, (3, 8, 36, 3), None, 60_192_808),
]


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(("c_in", "stride"), [(12, 1), (7, 1), (12, 2)])
def test_blocks_of_labml(c_in: int, stride: int, train: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, c_in, 9, 7, dtype=torch.double, requires_grad=True)
    pairs = [
        (BasicBlock(c_in, 12, stride), ResidualBlock(c_in, 12, stride)),
        (Bottleneck(c_in, 12, stride), BottleneckResidualBlock(c_in, 3, 12, stride)),
    ]
    for ours, theirs in pairs:
        ours.double().train(train)
        theirs.double().train(train)
        copy_weights(ours, theirs)
        assert_same(ours, theirs, x)


@pytest.mark.parametrize(("name", "block", "depths", "channels", "count"), NETWORKS)
def test_weights_of_whole_networks(
    name: str, block: type, depths: tuple[int, ...], channels: tuple[int, ...] | None, count: int
) -> None:
    with torch.device("meta"):
        ours = resnet(block, depths, **({"channels": channels} if channels else {}))
        theirs = getattr(pytorchcv, name)()
    assert sum(p.numel() for p in ours.parameters()) == count
    assert sum(p.numel() for p in theirs.parameters()) == count


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(("name", "early"), [("resnet50", True), ("resnet50b", False)])
def test_the_whole_network_of_pytorchcv(name: str, early: bool, train: bool) -> None:
    """Which has the shortcut of a block before its branch, and pools to one pixel of 224."""
    torch.manual_seed(0)
    ours = resnet(partial(Bottleneck, early=early), (1, 1, 2, 1), n_classes=5)
    theirs = pytorchcv.ResNet(
        channels=[[256], [512], [1024] * 2, [2048]],
        init_block_channels=64,
        bottleneck=True,
        conv1_stride=early,
        num_classes=5,
    )
    theirs.features.final_pool = nn.AdaptiveAvgPool2d(1)
    for unit in theirs.modules():  # in the order of ours
        if isinstance(unit, pytorchcv.ResUnit) and unit.resize_identity:
            unit.identity_conv = unit._modules.pop("identity_conv")
    ours.double().train(train)
    theirs.double().train(train)
    copy_weights(ours, theirs)
    assert_same(ours, theirs, torch.randn(2, 3, 63, 65, dtype=torch.double, requires_grad=True))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), c=st.integers(1, 5), h=st.integers(1, 6), w=st.integers(1, 6))
def test_a_branch_of_zeros_changes_nothing(seed: int, c: int, h: int, w: int) -> None:
    torch.manual_seed(seed)
    x = torch.rand(2, 4 * c, h, w)
    for block, last in [
        (Bottleneck(4 * c, 4 * c).eval(), "branch.widen.1"),
        (BasicBlock(4 * c, 4 * c).eval(), "branch.2.1"),
    ]:
        nn.init.zeros_(block.get_submodule(last).weight)
        assert torch.equal(block(x), x)


@pytest.mark.parametrize(("stride", "h", "w"), [(1, 9, 7), (2, 9, 7), (2, 8, 6), (3, 8, 6)])
@pytest.mark.parametrize("block", [BasicBlock, Bottleneck, partial(Bottleneck, early=True)])
def test_stride(block: type, stride: int, h: int, w: int) -> None:
    out = block(6, 12, stride)(torch.randn(2, 6, h, w))
    assert out.shape == (2, 12, -(-h // stride), -(-w // stride))


def test_parts_can_be_replaced() -> None:
    looks: list[tuple[int, int]] = []

    def look(width: int, stride: int) -> nn.Module:
        looks.append((width, stride))
        return nn.AvgPool2d(stride)

    model = resnet(partial(Bottleneck, look=look, gate=nn.BatchNorm2d), (1, 2, 1, 1), n_classes=3)
    assert looks == [(64, 1), (128, 2), (128, 1), (256, 2), (512, 2)]
    assert model.stage2[1].branch.gate.num_features == 512  # `gate` was given the channels
    model.stage2.append(nn.ReLU())
    assert [name for name, _ in model.named_children()] == [
        "stem",
        *(f"stage{i}" for i in range(1, 5)),
        "head",
    ]


def test_bad_depths() -> None:
    with pytest.raises(ValueError, match="longer"):
        resnet(depths=(1, 2))
