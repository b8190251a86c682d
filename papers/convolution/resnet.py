r"""
---
title: Deep Residual Learning for Image Recognition
authors: [Kaiming He, Xiangyu Zhang, Shaoqing Ren, Jian Sun]
year: 2016
venue: CVPR
arxiv: "1512.03385"
code: https://github.com/KaimingHe/deep-residual-networks
topic: convolution
tags: [backbone, signal propagation, skip connections]
zh: 深度残差网络
note: resnet
idea: learn the difference from the identity, so that depth cannot hurt
compare:
  densenet: concatenates what came before instead of adding it
  se-net: closes each branch with a gate that turns its channels up or down
  sk-net: lets each block choose the size of its kernel
cost:
  parameters: none, but for one projection a stage
  time: one addition a block
---

**The problem.** A deeper network can do whatever a shallower one does: let the
further layers be the identity. Yet trained, it does worse, and on the *training*
images already (Figure 1). The optimiser does not find the identity.

**The idea.** Start there. A block outputs $F(x) + x$ and learns the difference
$F$, the *residual*; to do nothing, it has to learn zeros (Section 3.1).

**The cost.** An addition. Where a block changes the shape, the shortcut needs a
projection, once a stage (Section 3.3).

**What is lost.** The sum asks both sides to have one shape, so width and resolution
change in a few places only. And the input of a block has to be kept until it is
added.

Other pages of this site put their own parts into the network of this one: a gate at
the end of the branch, or another layer in its middle.

Letters: `b` batch, `c` channels, `h w` height and width, `n` points, `d` features.
"""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial

import matplotlib.pyplot as plt
import torch
from einops import rearrange
from einops.layers.torch import Reduce
from torch import Tensor, nn
from torch.nn.functional import softplus
from torch.utils.flop_counter import FlopCounterMode

# ## The blocks


def conv_bn(
    c_in: int, c_out: int, kernel: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """A convolution that keeps height and width, up to its stride; batch norm."""
    pad = kernel // 2
    conv = nn.Conv2d(c_in, c_out, kernel, stride, pad, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(c_out))


class Residual(nn.Module):
    """
    $y = F(x) + x$ (Eq. 1), or $F(x) + W_s x$ where $F$ changes the shape (Eq. 2).

    Args:
        branch: The residual $F$.
        skip: What brings $x$ to the shape of $F(x)$.
    """

    def __init__(self, branch: nn.Module, skip: nn.Module):
        super().__init__()

        # *The note* calls the branch $H$. In the paper $H$ is the whole, what the
        # block should compute, and the point is to learn $F(x) = H(x) - x$ instead.
        self.branch, self.skip = branch, skip

    def forward(self, x: Tensor) -> Tensor:  # [b c_in h w] -> [b c_out h' w']
        """The residual on top of the shortcut; the ReLU follows the sum."""
        residual = self.branch(x)
        shortcut = self.skip(x)  # b c_out h' w'
        return torch.relu(residual + shortcut)


def projection(c_in: int, c_out: int, stride: int) -> nn.Module:
    """The identity wherever it fits (option B of Section 4.1)."""
    same = (c_in, stride) == (c_out, 1)
    return nn.Identity() if same else conv_bn(c_in, c_out, 1, stride)


class BasicBlock(Residual):
    """
    Two layers of 3 by 3, for networks of up to 34 layers (Figure 5, left).

    Args:
        c_in: Channels of the input.
        c_out: Channels of the output.
        stride: How many times smaller the output is.
    """

    def __init__(self, c_in: int, c_out: int, stride: int = 1):
        first, second = conv_bn(c_in, c_out, 3, stride), conv_bn(c_out, c_out, 3)
        branch = nn.Sequential(first, nn.ReLU(), second)
        super().__init__(branch, projection(c_in, c_out, stride))


def conv3x3(width: int, stride: int) -> nn.Sequential:
    """How a bottleneck looks around."""
    return nn.Sequential(conv_bn(width, width, 3, stride), nn.ReLU())


class Bottleneck(Residual):
    """
    Narrow, look around, widen (Figure 5, right): the layer in the middle is the
    expensive one, so it gets fewer channels.

    Args:
        c_in: Channels of the input.
        c_out: Channels of the output.
        stride: How many times smaller the output is.
        width: Channels in the middle; a quarter of `c_out` unless given.
        look: Makes the layer in the middle, from `width` and a stride.
        gate: Makes a layer that closes the branch, from `c_out`.
        early: Whether the first layer strides, and not the one in the middle.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        stride: int = 1,
        width: int | None = None,
        look: Callable[[int, int], nn.Module] = conv3x3,
        gate: Callable[[int], nn.Module] = nn.Identity,
        early: bool = False,
    ):
        width = width or c_out // 4

        # The paper's networks stride in the first layer, which skips three pixels of
        # four unseen. Most code since strides in the middle and pays a little more.
        first, middle = (stride, 1) if early else (1, stride)
        branch = nn.Sequential(
            OrderedDict(
                narrow=nn.Sequential(conv_bn(c_in, width, 1, first), nn.ReLU()),
                look=look(width, middle),
                widen=conv_bn(width, c_out, 1),
                gate=gate(c_out),
            )
        )
        super().__init__(branch, projection(c_in, c_out, stride))


# ## The networks


def resnet(
    block: Callable[[int, int, int], nn.Module] = Bottleneck,
    depths: tuple[int, ...] = (3, 4, 6, 3),
    channels: tuple[int, ...] = (256, 512, 1024, 2048),
    n_classes: int = 1000,
) -> nn.Sequential:
    """
    A stem, four stages and a classifier (Table 1): ResNet-50 unless told otherwise.

    Args:
        block: Makes a block, of channels in, channels out and stride.
        depths: Blocks of each stage.
        channels: Channels that each stage ends in.
        n_classes: Classes to tell apart.

    Returns:
        The parts `stem`, `stage1` to `stage4` and `head`.
    """
    stem = nn.Sequential(conv_bn(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
    parts, c = OrderedDict(stem=stem), 64
    for i, (depth, c_out) in enumerate(zip(depths, channels, strict=True), 1):
        blocks = [block(c, c_out, 1 if i == 1 else 2)]
        blocks += [block(c_out, c_out, 1) for _ in range(depth - 1)]
        parts[f"stage{i}"] = nn.Sequential(*blocks)
        c = c_out

    pool = Reduce("b c h w -> b c", "mean")
    parts["head"] = nn.Sequential(pool, nn.Linear(c, n_classes))
    return nn.Sequential(parts)


# ## Deep and plain


def tower(blocks: int, shortcuts: bool, d: int = 16) -> nn.Sequential:
    """Blocks of two layers each for points of the plane; with shortcuts or plain."""
    layers = [nn.Linear(2, d)]
    for _ in range(blocks):
        first = [nn.Linear(d, d, bias=False), nn.BatchNorm1d(d), nn.ReLU()]
        second = [nn.Linear(d, d, bias=False), nn.BatchNorm1d(d)]
        branch = nn.Sequential(*first, *second)
        plain = nn.Sequential(branch, nn.ReLU())
        layers.append(Residual(branch, nn.Identity()) if shortcuts else plain)
    return nn.Sequential(*layers, nn.Linear(d, 1), nn.Flatten(0))


def spirals(n: int) -> tuple[Tensor, Tensor]:  # [] -> [n 2], [n]
    """Points on two spirals, and on which of them each lies (±1)."""
    arm = 2.0 * torch.randint(2, (n,)) - 1
    radius = torch.rand(n).sqrt()
    turn = 9 * radius
    points = torch.stack([turn.cos(), turn.sin()], dim=1)
    points = points * rearrange(2 * arm * radius, "n -> n 1")
    return points + 0.02 * torch.randn(n, 2), arm


def losses(model: nn.Module) -> list[float]:
    """Those of eighty training steps, each on new points."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True)
    seen = []
    for _ in range(80):
        points, arm = spirals(256)
        loss = softplus(-arm * model(points)).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seen.append(loss.item())
    return seen


def first_gradient(model: nn.Module) -> float:
    """How long the gradient of the first block is before any training."""
    points, arm = spirals(256)
    softplus(-arm * model(points)).mean().backward()
    return next(model[1].parameters()).grad.norm().item()


def gigaflops(model: nn.Module) -> float:
    """Billions of multiply-adds for one image of 224 by 224."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(torch.empty(1, 3, 224, 224, device="meta"))
    return counter.get_total_flops() / 2e9


# ## Demo


def demo() -> None:
    """Count the networks of Table 1, then make a plain one and a residual one deep."""
    torch.manual_seed(0)
    early, narrow = partial(Bottleneck, early=True), (64, 128, 256, 512)
    with torch.device("meta"):  # counts weights, computes nothing
        resnet18 = resnet(BasicBlock, (2, 2, 2, 2), narrow)
        resnet34 = resnet(BasicBlock, (3, 4, 6, 3), narrow)
        resnet50 = resnet(early)
        resnet152 = resnet(early, (3, 8, 36, 3))
        late = resnet()

    # **The price.** Table 1 counts multiply-adds and calls them FLOPs. For 34 layers it
    # has no projections (option A pads with zeros); each of the three costs as much.
    projections = 3 * 64 * 128 * 28**2 / 1e9
    assert round(gigaflops(resnet18), 1) == 1.8  # Table 1
    assert round(gigaflops(resnet34) - projections, 1) == 3.6  # Table 1
    assert round(gigaflops(resnet152), 1) == 11.3  # Table 1

    # For 50 layers the table prints 3.8, where 3.86 follows: cut off, not rounded. A
    # stride in the middle makes it 4.09, the figure usually met today.
    assert int(10 * gigaflops(resnet50)) == 38  # Table 1: 3.8
    assert round(gigaflops(late), 2) == 4.09  # what follows from its stride

    # **Nothing is easy to learn.** With zeros in the last batch norm a block returns
    # its input, up to the ReLU that comes after the sum.
    block, x = Bottleneck(12, 12), torch.randn(3, 12, 7, 5)
    nn.init.zeros_(block.branch.widen[1].weight)
    torch.testing.assert_close(block(x), x.relu())  # Section 3.1: F = 0

    # **Depth hurts, unless there are shortcuts.** 2 or 12 blocks, so 4 or 24 layers
    # between the first and the last. Every step sees new points, so a high loss is
    # not overfitting.
    kinds, runs = [(2, False), (12, False), (2, True), (12, True)], []
    for seed in range(3):
        torch.manual_seed(seed)
        runs.append([losses(tower(*kind)) for kind in kinds])
    curves = torch.tensor(runs)  # seed kind step
    shallow, deep, _, deep_residual = curves[..., -10:].mean(dim=-1).T
    assert (deep - shallow).min() > 0.15  # Figure 1: degradation
    assert deep_residual.max() < 0.2  # Section 4.1: none with shortcuts

    # **It is not that gradients vanish.** Batch norm sees to that. The first block of
    # the deep plain network gets the *longer* gradient, and cannot make use of it.
    gradients = [first_gradient(tower(blocks, False)) for blocks in (2, 12)]
    assert gradients[1] > 3 * gradients[0]  # Section 4.1: not vanishing gradients

    _, axes = plt.subplots(1, 2, figsize=(7, 2.6), sharey=True, layout="constrained")
    for (blocks, shortcuts), curve in zip(kinds, curves.mean(dim=0), strict=True):
        axes[int(shortcuts)].plot(curve, label=f"{2 * blocks} layers")
    axes[0].set(title="plain", xlabel="step", ylabel="loss on new points")
    axes[1].set(title="with shortcuts", xlabel="step", ylim=(0, 1))
    axes[1].legend(frameon=False)


if __name__ == "__main__":
    demo()
