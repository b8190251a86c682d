r"""
---
title: "CBAM: Convolutional Block Attention Module"
authors: [Sanghyun Woo, Jongchan Park, Joon-Young Lee, In So Kweon]
year: 2018
venue: ECCV
arxiv: "1807.06521"
code: https://github.com/Jongchan/attention-module
topic: attention
tags: [channel attention]
zh: CBAM（卷积块注意力模块）
note: cbam
idea: first decide which channels, then which places
compare:
  se-net: has the first of the two gates only, and pools with the mean alone
  bam: computes both maps side by side, adds them, and stands between the stages
  eca-net: keeps the channel gate alone and makes it cheaper
cost:
  parameters: $2c^2/r + c/r + c$ for the channels, 100 for the places
  time: $4c^2/r + 98hw$ multiply-adds a block
---

**The problem.** The gates of squeeze-and-excitation turn a channel up or down
everywhere alike. And they judge it by its mean, in which one bright pixel and a
faint haze are the same.

**The idea.** Judge a channel by its mean *and* its maximum. Then do the same with
the roles exchanged: pool over the channels, and give each *place* a gate
(Section 3).

**The cost.** That of squeeze-and-excitation and a hundred weights a block. The
second pass through the shared layers costs time but no weights.

**What is lost.** The second gate is the same for all channels, and it sees a place
through two numbers, the mean and the maximum of its channels.

Letters: `b` batch, `c` channels, `h w` height and width, `r` reduction ratio,
`p` kinds of pooling, `k` kernel size.
"""

from functools import partial

import matplotlib.pyplot as plt
import torch
from einops import rearrange, reduce, repeat
from einops.layers.torch import Reduce
from torch import Tensor, nn
from torch.nn.functional import softplus

from attention.squeeze_excitation import SqueezeExcite
from convolution.resnet import Bottleneck, conv_bn, gigaflops, resnet

# ## Which channels


class ChannelGate(nn.Module):
    r"""
    $$M_c(F) = \sigma\big(\mathrm{MLP}(\mathrm{AvgPool}(F)) +
      \mathrm{MLP}(\mathrm{MaxPool}(F))\big)$$

    Args:
        c: Number of channels.
        r: Reduction ratio, how many times narrower the middle is.
        pools: What to know about a channel; the mean alone is squeeze-and-excitation.

    Raises:
        ValueError: If `r` does not divide `c`.
    """

    def __init__(self, c: int, r: int = 16, pools: tuple[str, ...] = ("mean", "max")):
        super().__init__()
        if c % r:
            raise ValueError(f"r = {r} does not divide c = {c} channels")

        # Eq. 2 writes no biases. But the paper's ResNet-50 has its 28.09M weights
        # only with them, and without them 28.07M, so they are here.
        self.w0 = nn.Linear(c, c // r)
        self.w1 = nn.Linear(c // r, c)
        self.pools = pools

    def mlp(self, pooled: Tensor) -> Tensor:  # [b c] -> [b c]
        """One pair of matrices for both poolings: each is a summary of `c` channels."""
        return self.w1(self.w0(pooled).relu())

    def forward(self, f: Tensor) -> Tensor:  # [b c h w] -> [b c 1 1]
        """Add the two opinions, then squash the sum (Eq. 2)."""
        # The maximum is what the strongest pixel says. By itself it does about as
        # well as the mean, and the two together do better than either (Table 1).
        #
        # *The note* says that the sum is normalised. With a sigmoid, here and below,
        # so that nothing adds up to 1: channels, or places, do not compete.
        scores = [self.mlp(reduce(f, "b c h w -> b c", pool)) for pool in self.pools]
        return rearrange(sum(scores).sigmoid(), "b c -> b c 1 1")


# ## Which places


class SpatialGate(nn.Module):
    r"""
    $$M_s(F) = \sigma\big(f^{k \times k}([\mathrm{AvgPool}(F); \mathrm{MaxPool}(F)])
      \big)$$

    Args:
        k: Size of the convolution, odd. The paper's is 7.

    Raises:
        ValueError: If `k` is even.
    """

    def __init__(self, k: int = 7):
        super().__init__()

        # *The note* passes `kernel_size=input.shape[2]`. On its 7 by 7 map that is
        # the paper's 7. On 14 by 14 it would be 14, an even kernel has no middle, and
        # the map of gates no longer fits the features (shown below). The size
        # belongs to the layer and not to the image.
        if k % 2 == 0:
            raise ValueError(f"k = {k} is even: the map of gates would not fit")

        # A place is judged by what surrounds it, so the kernel is large; 3 does
        # slightly worse (Table 2).
        #
        # Eq. 3 has no batch norm. The authors' code has one and the convolution no
        # bias, so the norm is what lets a gate prefer open or closed. It starts at
        # zero, as theirs does: every gate half open.
        self.conv = conv_bn(2, 1, k)
        nn.init.zeros_(self.conv[1].weight)

    def forward(self, f: Tensor) -> Tensor:  # [b c h w] -> [b 1 h w]
        """Pool over the channels, look around, squash (Eq. 3)."""
        # Pooled, and not mixed by a learned 1 by 1 convolution: with no weights at
        # all it does better (Table 2). Eq. 3 names the mean first; in this order the
        # authors' weights fit.
        pooled = [reduce(f, "b c h w -> b h w", pool) for pool in ("max", "mean")]
        maps = rearrange(pooled, "p b h w -> b p h w")
        return self.conv(maps).sigmoid()


# ## One after the other


class CBAM(nn.Module):
    r"""
    $$F' = M_c(F) \otimes F, \qquad F'' = M_s(F') \otimes F'$$

    Args:
        c: Number of channels.
        r: Reduction ratio of the channel gate.
        k: Kernel size of the spatial gate.
    """

    def __init__(self, c: int, r: int = 16, k: int = 7):
        super().__init__()
        self.channel = ChannelGate(c, r)
        self.spatial = SpatialGate(k)

    def forward(self, f: Tensor) -> Tensor:  # [b c h w] -> [b c h w]
        """Gate the channels, then the places of what is left (Eq. 1)."""
        # The second gate takes a maximum over channels, and a loud useless channel
        # would win it everywhere. So it comes second. In the paper this order beats
        # the other one, and that beats both at once (Table 3).
        f = self.channel(f) * f

        # Nothing is added back. In the repository that *the note* links, the block
        # adds its input; here the network's shortcut does.
        return self.spatial(f) * f


def cbam_resnet50(n_classes: int = 1000) -> nn.Sequential:
    """ResNet-50 with both gates at the end of each residual branch (Figure 3)."""
    # The paper counts the arithmetic of blocks that stride in their first convolution.
    # The authors' PyTorch code strides in the second, for 0.23 GFLOPs more.
    block = partial(Bottleneck, gate=CBAM, early=True)
    return resnet(block, n_classes=n_classes)


# ## Which channel, which corner


def corners(b: int) -> tuple[Tensor, Tensor, Tensor]:  # [] -> [b c h w], [b], [b h w]
    """
    Images whose channels 2 and 3 hold ±1 in each corner. One of these eight signs is
    the label. Channel 1 marks its corner. Channel 0 tells its channel: 2 if it holds
    a bright pixel, 3 if it holds a haze of the same mean.
    """
    signs = 2.0 * torch.randint(2, (b, 2, 2, 2)) - 1
    which, row, column = torch.randint(2, (3, b))
    i = torch.arange(b)
    label = signs[i, which, row, column]
    mark, noise = torch.zeros(b, 1, 2, 2), torch.zeros(b, 4, 2, 2)
    mark[i, 0, row, column] = 3
    quarters = torch.cat([mark, signs, noise], dim=1)
    maps = repeat(quarters, "b c i j -> b c (i h) (j w)", h=3, w=4)

    # A 3 in one of 48 pixels and 3/48 in each of them have the same mean.
    pixel, haze = torch.zeros(b, 48), torch.full((b, 48), 3 / 48)
    pixel[i, torch.randint(48, (b,))] = 3
    tip = torch.where(rearrange(which, "b -> b 1") == 0, pixel, haze)
    images = torch.cat([rearrange(tip, "b (h w) -> b 1 h w", h=6), maps], dim=1)
    return images + 0.1 * torch.randn_like(images), label, maps[:, 0] > 0


def accuracy(block: nn.Module) -> float:
    """Train `block`, average pooling and a linear classifier; test on new images."""
    pool = Reduce("b c h w -> b c", "mean")
    head = [nn.BatchNorm1d(8), nn.Linear(8, 1), nn.Flatten(0)]
    model = nn.Sequential(block, pool, *head)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(80):
        images, label, _ = corners(32)
        softplus(-label * model(images)).mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    images, label, _ = corners(2000)
    return (model.eval()(images) * label > 0).float().mean().item()


# ## Demo


def demo() -> None:
    """Check the price, show what the maximum adds, then find a channel and a corner."""
    torch.manual_seed(0)
    with torch.device("meta"):  # counts weights, computes nothing
        model = cbam_resnet50().eval()

    # **The price in weights.** Nearly all of it is the two matrices, as in
    # squeeze-and-excitation: the table prints the same 28.09M for both.
    stages = [(256, 3), (512, 4), (1024, 6), (2048, 3)]  # channels and blocks
    gates = [m for m in model.modules() if isinstance(m, CBAM)]
    extra = sum(p.numel() for gate in gates for p in gate.parameters())
    total = sum(p.numel() for p in model.parameters())
    closed = sum(n * (c * c / 8 + c / 16 + c + 100) for c, n in stages)
    assert extra == closed  # Eqs. 2 and 3, with biases and norms
    assert round(total / 1e6, 2) == 28.09  # Table 4, ResNet-50 + CBAM

    # **The price in arithmetic.** The matrices are used twice an image, the 98 weights
    # of the convolution once a pixel.
    used = gigaflops(model)
    gating = sum(n * (c * c / 4 + 98 * (56 * 256 / c) ** 2) for c, n in stages) / 1e9
    assert round(used, 3) == 3.864  # Table 4, GFLOPs of ResNet-50 + CBAM
    assert round(used - gating, 3) == 3.858  # Table 4, ResNet-50

    # **An even kernel.** The note's block on a 14 by 14 map: padding by half the kernel
    # gives one row and one column too many.
    even = nn.Conv2d(2, 1, kernel_size=14, padding=14 // 2)
    assert even(torch.zeros(1, 2, 14, 14)).shape[2:] == (15, 15)  # the note's kernel

    # **A pixel and a haze.** Their means are equal, so a gate that knows only means
    # cannot tell them apart. The maximum can.
    pixel, haze = torch.zeros(1, 8, 6, 8), torch.full((1, 8, 6, 8), 3 / 48)
    pixel[..., 2, 5] = 3
    by_mean, by_both = ChannelGate(8, 1, pools=("mean",)), ChannelGate(8, 1)
    torch.testing.assert_close(by_mean(pixel), by_mean(haze))  # what an SE gate sees
    assert (by_both(pixel) - by_both(haze)).abs().max() > 0.1  # Section 3, MaxPool

    # **Which channel, which corner.** Squeeze-and-excitation cannot find the corner.
    # Nor can it find the channel, a matter of pixel or haze. All that it can do is
    # count all eight signs. A spatial gate leaves two, and the maximum one of them.
    scores = []
    for seed in range(3):
        torch.manual_seed(seed)
        se, places, cbam = SqueezeExcite(8, r=1), CBAM(8, r=1), CBAM(8, r=1)
        places.channel = ChannelGate(8, r=1, pools=("mean",))
        scores.append([accuracy(block) for block in (se, places, cbam)])
    neither, where, both = torch.tensor(scores).T
    assert neither.max() < 0.7  # the majority of 8 signs is right in 64%
    assert where.max() < 0.8  # the majority of 2, in 75%
    assert both.min() > 0.85  # Section 3: what and where

    # **Each gate is blind where the other sees.** Shuffle the pixels and no channel's
    # gate moves; shuffle the channels and no place's does.
    images, _, corner = corners(100)
    pixels = rearrange(images, "b c h w -> b c (h w)")[..., torch.randperm(48)]
    moved = rearrange(pixels, "b c (h w) -> b c h w", h=6)
    renamed = images[:, torch.randperm(8)]
    m_s = cbam.spatial(cbam.channel(images) * images)[:, 0]
    torch.testing.assert_close(cbam.channel(moved), cbam.channel(images))  # Eq. 2
    torch.testing.assert_close(cbam.spatial(renamed), cbam.spatial(images))  # Eq. 3
    assert m_s[corner].mean() > 2 * m_s[~corner].mean()  # it found the corner

    layout = [["0", "1", "gate", "bars"], ["2", "3", "gate", "bars"]]
    fig, axes = plt.subplot_mosaic(
        layout, figsize=(8, 2.5), width_ratios=[1, 1, 2, 2.2], layout="constrained"
    )
    for name in "0123":
        axes[name].imshow(images[0, int(name)].numpy(), vmin=-1, vmax=3)
        axes[name].set(title=f"channel {name}", xticks=[], yticks=[])
    shown = axes["gate"].imshow(m_s[0].detach().numpy(), vmin=0, vmax=1)
    fig.colorbar(shown, shrink=0.7)
    axes["gate"].set(title="spatial gate", xticks=[], yticks=[])
    means = both.mean().item(), where.mean().item(), neither.mean().item()
    axes["bars"].barh(["and maximum", "and where", "squeeze"], means)
    axes["bars"].set(title="accuracy", xlim=(0.5, 1))


if __name__ == "__main__":
    demo()
