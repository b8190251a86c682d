r"""
---
title: "BAM: Bottleneck Attention Module"
authors: [Jongchan Park, Sanghyun Woo, Joon-Young Lee, In So Kweon]
year: 2018
venue: BMVC
arxiv: "1807.06514"
code: https://github.com/Jongchan/attention-module
topic: attention
tags: [channel attention, dilated convolution]
zh: BAM（瓶颈注意力模块）
note: bam
idea: decide on channels and places in parallel, and add the two maps
compare:
  cbam: asks for the places after it has gated the channels, and in every block
  se-net: knows which channels and not where, and can shut them
  danet: compares all places, and all channels, with each other
cost:
  parameters: $3c^2/r + 18c^2/r^2$ a module, three modules a network
  time: $hw\,(c^2/r + 18c^2/r^2)$ multiply-adds a module
---

**The problem.** What matters in an image is some channels in some places. A gate for
each channel of each place would say it, but to compute all of them from all
features is far too much.

**The idea.** Compute one number a channel and one number a place, *add* them, and
only then squash: $c + hw$ numbers make a map of $c \times hw$ gates (Section 3).
Three such modules are enough, where a network is about to halve its maps: at its
bottlenecks.

**The cost.** On ResNet-50, 1.4% more weights and 2% more arithmetic.

**What is lost.** The map adds to the features and never takes away: a gate between 1
and 2 cannot shut anything.

The paper appeared at BMVC (*the note* has BMCV).

Letters: `b` batch, `c` channels, `h w` height and width, `r` reduction ratio,
`d` dilation.
"""

from functools import partial

import matplotlib.pyplot as plt
import torch
from einops import rearrange, reduce, repeat
from torch import Tensor, nn

from convolution.resnet import Bottleneck, gigaflops, resnet

# ## Which channels


class ChannelBranch(nn.Module):
    r"""
    $$M_c(F) = \mathrm{BN}(W_1\,\mathrm{relu}(W_0\,\mathrm{AvgPool}(F) + b_0) + b_1)$$

    Args:
        c: Number of channels.
        r: Reduction ratio, how many times narrower the middle is.
    """

    def __init__(self, c: int, r: int = 16):
        super().__init__()

        # As in squeeze-and-excitation, up to the end: there a sigmoid, here a batch
        # norm, which brings both branches to one scale before they are added. (It
        # also takes away $b_1$, which Eq. 3 has all the same.)
        #
        # The authors' code has its norms elsewhere: after every layer but the last.
        # This page follows Eqs. 3 and 4.
        self.w0 = nn.Linear(c, c // r)
        self.w1 = nn.Linear(c // r, c)
        self.norm = nn.BatchNorm1d(c)

    def forward(self, f: Tensor) -> Tensor:  # [b c h w] -> [b c 1 1]
        """How much each channel matters, wherever (Eq. 3)."""
        pooled = reduce(f, "b c h w -> b c", "mean")
        scores = self.w1(self.w0(pooled).relu())
        return rearrange(self.norm(scores), "b c -> b c 1 1")


# ## Which places


class SpatialBranch(nn.Module):
    r"""
    $$M_s(F) = \mathrm{BN}\big(f_3^{1 \times 1}(f_2^{3 \times 3}(f_1^{3 \times 3}(
      f_0^{1 \times 1}(F))))\big)$$

    with a ReLU between the convolutions, as in the authors' code.

    Args:
        c: Number of channels.
        r: Reduction ratio.
        d: Dilation of the two convolutions in the middle.
    """

    def __init__(self, c: int, r: int = 16, d: int = 4):
        super().__init__()

        # *The note* pools over the channels here. That is CBAM; this branch mixes
        # them with a learned convolution, down to $c/r$.
        self.f0 = nn.Conv2d(c, c // r, 1)

        # Whether a place matters depends on what is far from it. Dilation looks far at
        # the price of looking near. *The note* has $d = 2$; in the paper's ablation 4
        # does best. The padding has to be $d$ too: in the repository that the note
        # links it is 1, and there are three such layers, so a 7 by 7 map shrinks to a
        # single number.
        self.f1 = nn.Conv2d(c // r, c // r, 3, padding=d, dilation=d)
        self.f2 = nn.Conv2d(c // r, c // r, 3, padding=d, dilation=d)
        self.f3 = nn.Conv2d(c // r, 1, 1)
        self.norm = nn.BatchNorm2d(1)

    def forward(self, f: Tensor) -> Tensor:  # [b c h w] -> [b 1 h w]
        """How much each place matters, whatever the channel (Eq. 4)."""
        thin = self.f0(f).relu()
        near = self.f1(thin).relu()
        far = self.f2(near).relu()
        return self.norm(self.f3(far))


# ## Both at once


class BAM(nn.Module):
    r"""
    $$M(F) = \sigma(M_c(F) + M_s(F)), \qquad F' = F + F \otimes M(F)$$

    Args:
        c: Number of channels.
        r: Reduction ratio of both branches.
        d: Dilation of the spatial branch.

    Raises:
        ValueError: If `r` does not divide `c`, or `d` is less than 1.
    """

    def __init__(self, c: int, r: int = 16, d: int = 4):
        super().__init__()
        if c % r:
            raise ValueError(f"r = {r} does not divide c = {c} channels")
        if d < 1:
            raise ValueError(f"d = {d} is no dilation: neighbours are 1 apart or more")
        self.channel = ChannelBranch(c, r)
        self.spatial = SpatialBranch(c, r, d)

    def join(self, m_c: Tensor, m_s: Tensor) -> Tensor:  # [...], [...] -> [b c h w]
        """One gate for each channel of each place, from a sum by broadcasting."""
        # The authors' code multiplies here, $\sigma(M_c \cdot M_s)$, and so do those
        # who copied it. In the paper's ablation the sum does better, and the demo
        # shows why it could: in a product two that say no make a yes.
        return (m_c + m_s).sigmoid()

    def attend(self, f: Tensor) -> Tensor:  # [b c h w] -> [b c h w]
        """The map $M(F)$ (Eq. 2)."""
        return self.join(self.channel(f), self.spatial(f))

    def forward(self, f: Tensor) -> Tensor:  # [b c h w] -> [b c h w]
        """Add to the features what the map lets through (Eq. 1)."""
        # *The note* leaves out the first term. With it a gradient always gets through,
        # so the module can stand in the trunk of a network, outside the blocks and
        # their shortcuts.
        return f + f * self.attend(f)


def bam_resnet50(n_classes: int = 1000) -> nn.Sequential:
    """ResNet-50 with a module after each stage but the last (Figure 1)."""
    model = resnet(partial(Bottleneck, early=True), n_classes=n_classes)
    model.stage1.append(BAM(256))
    model.stage2.append(BAM(512))
    model.stage3.append(BAM(1024))
    return model


# ## How far a place looks


def footprint(d: int) -> Tensor:  # [] -> [h w]
    """How strongly each pixel moves the number in the middle, by its gradient."""
    branch = SpatialBranch(c=64, r=4, d=d).eval()
    f = torch.randn(1, 64, 21, 21, requires_grad=True)
    branch(f)[0, 0, 10, 10].backward()
    return reduce(f.grad.abs(), "1 c h w -> h w", "sum")


# ## A channel or a place


class Separate(BAM):
    """Two gates, one after the other, as in CBAM."""

    def join(self, m_c: Tensor, m_s: Tensor) -> Tensor:  # [...], [...] -> [b c h w]
        """Open only where both are."""
        return m_c.sigmoid() * m_s.sigmoid()


class Released(BAM):
    """What the authors' code does."""

    def join(self, m_c: Tensor, m_s: Tensor) -> Tensor:  # [...], [...] -> [b c h w]
        """Open where both agree, be it on no."""
        return (m_c * m_s).sigmoid()


def lamps(b: int) -> tuple[Tensor, Tensor]:  # [] -> [b c h w], [b c h w]
    """
    Images of 8 channels, and the gates they ask for. Channel 0 shows where lamps are
    lit; each other one is +1 all over if it is bright and -1 if not. A gate should open
    if its channel is bright *or* its place is lit.
    """
    bright = torch.rand(b, 7, 1, 1) < 0.5
    lit = repeat(torch.rand(b, 3, 3) < 0.4, "b i j -> b 1 (i h) (j w)", h=2, w=3)
    wanted = bright | lit  # b 7 h w
    images = torch.cat([lit, bright.expand_as(wanted)], dim=1) * 2.0 - 1
    return images + 0.1 * torch.randn_like(images), wanted


def wrong(module: BAM) -> float:
    """Train `module` on the gates; the share of them it has wrong on new images."""
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
    for _ in range(50):
        images, wanted = lamps(32)
        (module.attend(images)[:, 1:] - wanted.float()).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    images, wanted = lamps(500)
    opened = module.eval().attend(images)[:, 1:] > 0.5
    return (opened != wanted).float().mean().item()


# ## Demo


def demo() -> None:
    """Check the price, how far a place looks, and three ways to join the maps."""
    torch.manual_seed(0)
    with torch.device("meta"):  # counts weights, computes nothing
        model = bam_resnet50().eval()

    # **The price in weights.** To add the maps or to multiply them costs nothing. The
    # norms of the authors' code have fewer weights; printed, both are 25.92M.
    total = sum(p.numel() for p in model.parameters())
    released = total - sum(3 * c // 2 + 2 for c in (256, 512, 1024))
    assert round(total / 1e6, 2) == 25.92  # ImageNet table, ResNet50 + BAM
    assert released == 25_915_099  # the authors' code

    # **The price in arithmetic.** The spatial branch uses its weights once a pixel.
    # Each stage has twice the channels and a quarter of the pixels of the one before,
    # so that all three modules cost about the same.
    assert round(gigaflops(model), 2) == 3.94  # ImageNet table, ResNet50 + BAM, GFLOPs

    # **How far a place looks.** Two layers of 3 by 3 touch 25 pixels whatever the
    # dilation. Dilation draws them apart: $4d + 1$ pixels from side to side, with
    # holes in between.
    footprints = [footprint(d) for d in (1, 2, 4)]
    rows = [(seen > 0).nonzero()[:, 0] for seen in footprints]
    sides = [int(row.max() - row.min()) + 1 for row in rows]
    assert [len(row) for row in rows] == [25, 25, 25]  # Eq. 4: two of 3 × 3
    assert sides == [5, 9, 17]  # 4d + 1

    # **A map of sums.** The norms give both branches an equal say. Undo the sigmoid,
    # and two places differ by the same amount in every channel. But the sigmoid bends
    # the sum, so that the map is more than a column times a row: a table of channels
    # and places that two separate gates cannot fill.
    bam, f = BAM(32, r=4).double(), torch.randn(4, 32, 9, 7).double()
    m_c, m_s = bam.channel(f), bam.spatial(f)
    m = bam.join(m_c, m_s)
    assert 0.9 < m_s.std() / m_c.std() < 1.1  # Eqs. 3 and 4: both end in a norm
    rise = m.logit() - m.logit()[:, :, :1, :1]
    torch.testing.assert_close(rise, rise[:, :1].expand_as(rise))  # Eq. 2
    tables = torch.stack([m, Separate(32).join(m_c, m_s)]).flatten(3)
    joint, apart = torch.linalg.matrix_rank(tables)
    assert apart.max() == 1  # a column times a row
    assert joint.min() > 3  # Section 3: a 3D map

    # **Nothing is shut.** The output is between one and two times the input.
    times = bam(f) / f
    assert 1 <= times.min() < times.max() <= 2  # Eq. 1

    # **A channel or a place.** A sum lets either of them open a gate. Two gates one
    # after the other ask for both, and a product of scores only asks that they agree.
    # Taught to open a gate if its channel is bright or its place lit, only the sum
    # gets there.
    shares = []
    for seed in range(3):
        torch.manual_seed(seed)
        modules = BAM(8, r=1), Separate(8, r=1), Released(8, r=1)
        shares.append([wrong(module) for module in modules])
    by_sum, separate, by_product = torch.tensor(shares).T
    assert by_sum.max() < 0.05  # Eq. 2, a gate of a sum
    assert separate.min() > 0.1  # a product of two gates
    assert by_product.min() > 0.1  # a gate of a product

    _, axes = plt.subplots(1, 6, figsize=(8, 1.9), layout="constrained")
    for ax, d, seen in zip(axes, (1, 2, 4), footprints, strict=False):
        ax.imshow(seen.numpy())
        ax.set(title=f"$d = {d}$", xticks=[], yticks=[])
    scores = torch.linspace(-6, 6, 61)
    m_c, m_s = rearrange(scores, "w -> 1 w"), rearrange(scores, "h -> h 1")
    titles = r"$\sigma(M_c + M_s)$", r"$\sigma(M_c)\,\sigma(M_s)$", r"$\sigma(M_c M_s)$"
    for ax, module, title in zip(axes[3:], modules, titles, strict=True):
        gates = module.join(m_c, m_s).numpy()
        ax.imshow(gates, origin="lower", extent=(-6, 6, -6, 6), vmin=0, vmax=1)
        ax.set(xlabel="$M_c$", ylabel="$M_s$", xticks=[0], yticks=[0])
        ax.set_title(title, fontsize=9)


if __name__ == "__main__":
    demo()
