r"""
---
title: "EPSANet: An Efficient Pyramid Squeeze Attention Block on Convolutional Neural
  Network"
authors: [Hu Zhang, Keke Zu, Jian Lu, Yuru Zou, Deyu Meng]
year: 2022
venue: ACCV
arxiv: "2105.14447"
code: https://github.com/murufeng/EPSANet
topic: attention
tags: [channel attention, multi-scale]
zh: EPSANet：金字塔挤压注意力（PSA）
note: psa-epsanet
idea: look through windows of four sizes and let each image weigh them
compare:
  se-net: gates the channels of one scale, which need not share anything out
  sk-net: adds its branches up, before it weighs them and after
  cbam: spends its second gate on where and not on scale
cost:
  parameters: $6.6\,c_\mathrm{in} c_\mathrm{out}$, where a 3 by 3 convolution has 9
  time: $6.6\,c_\mathrm{in} c_\mathrm{out}$ multiply-adds a pixel
---

**The problem.** A 3 by 3 convolution sees everything at one scale. A gate such as SE
turns its channels up or down but adds no other scale.

**The idea.** Convolve the input with kernels of 3, 5, 7 and 9 pixels, a quarter of the
output channels each (the *pyramid*). Squeeze and excite every scale, and let a softmax
share out the attention among the four, for each channel and each image.

**The cost.** Less than that of the 3 by 3 convolution it replaces: the larger the
kernel, the more groups it is cut into.

**What is lost.** A large kernel sees few channels at a time, a sixteenth at 9 by 9. No
scale is ever chosen, only made up to $e$ times louder. And by itself the attention
cannot tell a fine texture from a coarse one (both shown below).

*The note* follows the first version on arXiv, which says *split* for squeeze: there
each kernel gets a quarter of the *input* channels. The authors' code gives all
channels to each ("follow the code", issue 9 of its repository), and so does this page.

Letters: `b` batch, `s` scales, `c` channels of one scale, `c_in` and `c_out` channels
in and out, `h w` height and width.
"""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, conv2d, layer_norm, pad, unfold

from attention.squeeze_excitation import SqueezeExcite
from convolution.resnet import Bottleneck, gigaflops, resnet

# ## The module

# The paper ties groups to kernels, $G = 2^{(k-1)/2}$, with one exception: at 3 by 3
# that would be 2, and it takes 1.
KERNELS, GROUPS = (3, 5, 7, 9), (1, 4, 8, 16)


class PyramidSqueezeAttention(nn.Module):
    r"""
    Features $F_i$ of every scale $i$, each weighed against the others:

    $$F_i = \mathrm{Conv}_{k_i \times k_i}^{G_i}(X), \quad
      a_i = \frac{\exp \mathrm{SE}(F_i)}{\sum_j \exp \mathrm{SE}(F_j)}, \quad
      Y = [a_1 F_1, \dots, a_s F_s]$$

    Args:
        c_in: Channels of the input.
        c_out: Channels of the output, all scales together.
        stride: How many times smaller the output is.
        kernels: Size of each scale's kernel.
        groups: Groups of each scale's convolution.
        r: Reduction ratio of the gate.

    Raises:
        ValueError: If a kernel is even, or channels do not divide.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        stride: int = 1,
        kernels: Sequence[int] = KERNELS,
        groups: Sequence[int] = GROUPS,
        r: int = 16,
    ):
        super().__init__()
        s = len(kernels)
        if c_out % s:
            raise ValueError(f"{s} scales do not divide c_out = {c_out} channels")
        if even := [k for k in kernels if k % 2 == 0]:
            raise ValueError(f"kernel {even[0]} is even and has no middle")
        c = c_out // s
        if unfit := [g for g in groups if c_in % g or c % g]:
            raise ValueError(f"{unfit[0]} groups do not divide {c_in} or {c} channels")

        # In a plain list these would not count as parameters and never train, as
        # happens in the code that *the note* links to. (That code also writes its
        # features over the caller's input.)
        self.scales = nn.ModuleList(
            nn.Conv2d(c_in, c, k, stride, k // 2, groups=g, bias=False)
            for k, g in zip(kernels, groups, strict=True)
        )

        # One gate for all scales, as in the authors' code. (Theirs has biases, the
        # paper's formula none.) Through the middle of it fit $c/r$ numbers, which is
        # a single one in the first stage of the network below.
        self.se = SqueezeExcite(c, r)

    def squeeze_concat(self, x: Tensor) -> Tensor:  # [b c_in h w] -> [b s c h' w']
        """The SPC module: every scale reads *all* channels and writes a few."""
        return torch.stack([conv(x) for conv in self.scales], dim=1)

    def attend(self, f: Tensor) -> Tensor:  # [b s c h w] -> [b s c]
        """How much of its attention each channel gives to each scale."""
        # *The note* gates the original features, the paper these. The demo shows how
        # little of their scale the gate gets to see.
        each = rearrange(f, "b s c h w -> (b s) c h w")
        z = self.se.excite(self.se.squeeze(each))

        # Gates lie between 0 and 1, so their softmax is never far from even: no scale
        # gets more than $e$ times what another gets.
        return rearrange(z, "(b s) c -> b s c", b=len(f)).softmax(dim=1)

    def forward(self, x: Tensor) -> Tensor:  # [b c_in h w] -> [b c_out h' w']
        """Look at four scales, weigh them, put them side by side."""
        f = self.squeeze_concat(x)
        a = self.attend(f)
        y = f * rearrange(a, "b s c -> b s c 1 1")

        # The authors' code ends up with the largest kernel first. What comes next
        # learns either order; only who copies weights has to mind.
        return rearrange(y, "b s c h w -> b (s c) h w")


# ## Inside a residual network


def epsanet50(
    kernels: Sequence[int] = KERNELS, groups: Sequence[int] = GROUPS, wide: int = 1
) -> nn.Sequential:
    """ResNet-50 that looks around at four scales, in middles `wide` times wider."""

    def look(width: int, stride: int) -> nn.Sequential:
        """In place of the 3 by 3 convolution, stride and all."""
        psa = PyramidSqueezeAttention(width, width, stride, kernels, groups)
        return nn.Sequential(psa, nn.BatchNorm2d(width), nn.ReLU())

    def block(c_in: int, c_out: int, stride: int) -> nn.Module:
        """A bottleneck that looks through the pyramid."""
        return Bottleneck(c_in, c_out, stride, width=wide * c_out // 4, look=look)

    return resnet(block)


def weights(model: nn.Module) -> float:
    """How many, in millions."""
    return sum(p.numel() for p in model.parameters()) / 1e6


def operations(model: nn.Module) -> float:
    """
    Billions for an image of 224 by 224, counted as the authors must have done it: a
    multiply-add is one, each value of a batch norm is two.
    """
    normed = []
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.register_forward_hook(lambda *call: normed.append(call[-1].numel()))
    return gigaflops(model) + 2 * sum(normed) / 1e9


# ## A task of two scales

# Shares of the coarse texture in the images to learn from.
SHARES = (1 / 3, 2 / 3)


def blur(x: Tensor, k: int) -> Tensor:  # [b c h w] -> [b c h w]
    """Averages over windows of `k` by `k`."""
    return avg_pool2d(x, k, 1, k // 2, count_include_pad=False)


def overlay(coarse: Tensor) -> tuple[Tensor, Tensor]:  # [b] -> [b c h w], [b 1 h w]
    """
    A fine texture and a coarse one on top of each other, and the louder one alone;
    `coarse` is the share of the coarse one. The image comes as an earlier layer might
    pass it on: what is lighter and darker than its surroundings, and these.
    """
    noise = torch.randn(2, len(coarse), 1, 12, 12)
    share = rearrange(coarse, "b -> b 1 1 1")
    fine = (1 - share) * layer_norm(noise[0] - blur(noise[0], 3), (1, 12, 12))
    rough = share * layer_norm(blur(noise[1], 9), (1, 12, 12))

    around = blur(fine + rough, 3)
    detail = fine + rough - around
    parts = torch.cat([detail, -detail, around, -around], dim=1)
    return parts.relu(), torch.where(share > 0.5, rough, fine)


def error(psa: PyramidSqueezeAttention) -> float:
    """
    Train `psa` to bring out the louder texture. What it misses in new images: its
    squared error there, as a share of the variance.
    """
    model = nn.Sequential(psa, nn.BatchNorm2d(16), nn.Conv2d(16, 1, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.04, betas=(0.8, 0.98))
    for _ in range(100):
        image, louder = overlay(torch.tensor(SHARES).repeat(4))
        (model(image) - louder).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    image, louder = overlay(torch.tensor(SHARES).repeat(100))
    return ((model.eval()(image) - louder).square().mean() / louder.var()).item()


def least_error() -> float:
    """What the best convolution of 9 by 9 misses, by least squares."""
    image, louder = overlay(torch.tensor(SHARES).repeat(25))
    windows = rearrange(unfold(image, 9, padding=4), "b d n -> (b n) d")
    wanted = rearrange(louder, "b 1 h w -> (b h w) 1")
    best = torch.linalg.lstsq(windows, wanted, driver="gels").solution  # of full rank
    return ((windows @ best - wanted).square().mean() / wanted.var()).item()


# ## Demo


def demo() -> None:
    """Check the price, put the attention to use, then see where it ends."""
    torch.manual_seed(0)
    with torch.device("meta"):  # counts weights, computes nothing
        small = epsanet50()
        large = epsanet50(groups=(32, 32, 32, 32), wide=2)
        fewer = epsanet50((3, 5, 5, 7), (32, 32, 32, 32), wide=2)
        scales = PyramidSqueezeAttention(64, 64).scales

    # **The price.** A value costs $k^2 c_\mathrm{in}/G$ multiply-adds. The groups make
    # the 9 by 9 kernel the cheapest of the four; without, it would cost 5184.
    per_value = [conv.weight[0].numel() for conv in scales]
    assert per_value == [576, 400, 392, 324]  # the paper's G = 1, 4, 8, 16
    assert round(weights(small), 2) == 22.56  # README of the official code
    assert round(operations(small), 2) == 3.62  # README, in GFLOPs

    # **The large network** has middles twice as wide and, as issue 15 of the repository
    # quotes the paper, 32 groups at every scale. That makes 30.10M. The 27.90M of the
    # README, and its other figures for large networks, fit four kernels of 108 weights
    # together, say 3, 5, 5 and 7, while 3, 5, 7 and 9 have 164.
    assert round(weights(large), 2) == 30.10  # what follows; README: 27.90
    assert round(weights(fewer), 2) == 27.90  # README

    # **What the attention does.** Of two textures the louder is wanted. With attention
    # every image gets a mixture of kernels of its own.
    missed, swings = [], []
    for seed in range(3):
        torch.manual_seed(seed)
        psa = PyramidSqueezeAttention(4, 16, groups=(1, 1, 1, 1), r=1)
        missed.append(error(psa))
        image, _ = overlay(torch.tensor(SHARES).repeat(50))
        f = psa.squeeze_concat(image)
        a = psa.attend(f)
        fine, rough = rearrange(a, "(b two) s c -> two b s c", two=2).mean(dim=1)
        swings.append((fine - rough).abs().max())
    assert max(missed) < 0.12  # weighed by the softmax
    assert min(swings) > 0.1  # how far a weight moves from fine to coarse

    # **What a pyramid is without.** Frame the small kernels with zeros, and it is one
    # convolution of 9 by 9. With equal weights it stays one, the same for all images,
    # and not even the best of those can serve textures of both kinds.
    framed = [pad(conv.weight, [4 - conv.padding[0]] * 4) for conv in psa.scales]
    nine = conv2d(image, torch.cat(framed), padding=4)
    torch.testing.assert_close(f.flatten(1, 2), nine)  # the SPC module is linear
    assert least_error() > 0.18  # weighed equally

    # **What it cannot see: scale.** As a convolution is linear, the mean of its output
    # is a weighted sum of the means of its input, whatever the size of the kernel (but
    # for the border, left empty here). Shuffle the pixels, and the attention stays as
    # it is. A scale must show in the input's means already, as it does after a ReLU.
    pixels = rearrange(image, "b c h w -> b c (h w)")[..., torch.randperm(144)]
    shuffled = rearrange(pixels, "b c (h w) -> b c h w", h=12)
    bordered = (psa.squeeze_concat(pad(x, [4] * 4)) for x in (image, shuffled))
    torch.testing.assert_close(*map(psa.attend, bordered))  # the mean of a linear map

    # The weights change places in the middle, where the other texture becomes the
    # louder. Which kernel a channel turns to for which is up to training: a large one
    # can do all that a small one can.
    fig, axes = plt.subplots(1, 4, figsize=(8, 2.4), sharey=True, layout="constrained")
    shares = torch.linspace(0, 1, 11)
    crossfade, _ = overlay(shares.repeat_interleave(30))
    curves = psa.attend(psa.squeeze_concat(crossfade)).detach()
    curves = rearrange(curves, "(x b) s c -> c x s b", b=30).mean(dim=-1)
    for i, (ax, curve) in enumerate(zip(axes, curves, strict=True), 1):
        ax.plot(shares, curve, label=[f"{k} × {k}" for k in KERNELS])
        ax.set(title=f"channel {i}")
    axes[0].set(ylabel="mean weight")
    axes[-1].legend(frameon=False, bbox_to_anchor=(1, 1))
    fig.supxlabel("share of the coarse texture")

    # **What it cannot do: choose.** The weights of a channel sum to 1. A gate that
    # shouts gets no further than $e$ to 1, one without a word leaves each a quarter.
    torch.testing.assert_close(a.sum(dim=1), torch.ones(100, 4))  # softmax over scales
    psa.se.w2.weight.data *= 1000
    a = psa.attend(f)
    assert 2 < (a.amax(dim=1) / a.amin(dim=1)).max() < 2.7183  # softmax of sigmoids
    psa.se.w2.weight.data *= 0
    assert (psa.attend(f) == 1 / 4).all()  # softmax of equal gates


if __name__ == "__main__":
    demo()
