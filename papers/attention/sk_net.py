r"""
---
title: Selective Kernel Networks
authors: [Xiang Li, Wenhai Wang, Xiaolin Hu, Jian Yang]
year: 2019
venue: CVPR
arxiv: "1903.06586"
code: https://github.com/implus/SKNet
topic: attention
tags: [channel attention, dynamic network, multi-scale]
zh: 选择性卷积核网络（SK 注意力）
note: sk-net
idea: let each channel choose, image by image, how far it looks
compare:
  se-net: decides how loud each channel plays, and leaves it the kernel it has
  psa-epsanet: gives each kernel size its own channels, which then compete
  cbam: keeps one kernel and adds a second gate that says where
  resnet: looks through one kernel of 3 × 3, whatever the image
cost:
  parameters: $9c^2/G$ for a second kernel and $3cd$ for the choice, a block
  time: a twentieth more multiply-adds than ResNeXt-50
---

**The problem.** How far a neuron should look depends on what it sees: near for fine
detail, far for a large object. A convolution has one size. An Inception block has
several, but combines what they find in the same way for every image.

**The idea.** *Split* the input among branches with kernels of different size, *fuse*
what they find into one short vector, and let it *select*: every channel takes a
mixture of its branches (Section 3.1).

**The cost.** ResNeXt-50 looks through one grouped convolution a block. A second one
and the choice add a tenth to its weights and a twentieth to its arithmetic (Table 1).

**What is lost.** The choice is one for the whole image. A channel cannot look near in
one corner and far in another (shown below).

Letters: `b` batch, `c` channels, `h w` height and width, `m` branches ($M$),
`d` channels of the short vector.
"""

import matplotlib.pyplot as plt
import torch
from einops import einsum, rearrange, reduce, repeat
from torch import Tensor, nn
from torch.nn.functional import pad

from convolution.resnet import Bottleneck, gigaflops, resnet

# ## The unit


def branch(c: int, stride: int, dilation: int, groups: int) -> nn.Sequential:
    """One way to look: a grouped convolution, a batch norm, a ReLU."""
    # A kernel of 5 x 5 has 25 taps. The authors spread the 9 of a 3 x 3 kernel over
    # the same square, which costs no more than looking near. (The first author's later
    # PyTorch version, in PytorchInsight, does not: its branches are both 3 x 3.)
    conv = nn.Conv2d(c, c, 3, stride, dilation, dilation, groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(c), nn.ReLU())


class SelectiveKernel(nn.Module):
    r"""
    Branches $\tilde U_1 \dots \tilde U_M$ of one input, mixed channel by channel:

    $$s = \tfrac{1}{hw}\sum_{i,j} \sum_m \tilde U_m(i, j), \quad
      z = \mathrm{relu}(\mathrm{BN}(W s)), \quad
      a_m = \frac{e^{A_m z}}{\sum_n e^{A_n z}}, \quad
      V = \sum_m a_m\, \tilde U_m$$

    The paper's name for it is $\mathrm{SK}[M, G, r]$; SKNet-50 uses
    $\mathrm{SK}[2, 32, 16]$ (Section 3.2).

    Args:
        c: Number of channels.
        stride: Of every branch.
        m: Number of branches. They reach over 3, 5, 7, … pixels.
        groups: Groups $G$ of each convolution.
        r: Reduction ratio, how many times narrower the short vector is.
        least: The least length $L$ of that vector.

    Raises:
        ValueError: If there is no branch, or `groups` does not divide `c`.
    """

    def __init__(
        self,
        c: int,
        stride: int = 1,
        m: int = 2,
        groups: int = 32,
        r: int = 16,
        least: int = 32,
    ):
        super().__init__()
        if m < 1:
            raise ValueError(f"m = {m} branches leave nothing to select from")
        if c % groups:
            raise ValueError(f"groups = {groups} does not divide c = {c} channels")
        dilations = range(1, m + 1)
        self.branches = nn.ModuleList(branch(c, stride, i, groups) for i in dilations)

        # The way down. A narrow layer would leave too little to decide by, hence the
        # floor $L$ (Eq. 4). The batch norm of Eq. 3 is easily overlooked; because of it
        # a training batch needs two images.
        d = max(c // r, least)
        self.w = nn.Linear(c, d, bias=False)
        self.norm = nn.BatchNorm1d(d)

        # The ways up, one below the other. *The note* calls the unit light because its
        # kernels share one SE module. They share $W$; each has an $A_m$ of its own.
        #
        # *The note*'s code is another unit: four dense kernels up to 7 x 7 (22 million
        # weights at its 512 channels), and between $W$ and $A_m$ neither batch norm nor
        # ReLU, so that the two act as one matrix.
        self.a = nn.Linear(d, m * c, bias=False)

    def split(self, x: Tensor) -> Tensor:  # [b c h w] -> [m b c h' w']
        """Look at the same input near and far."""
        return torch.stack([look(x) for look in self.branches])

    def fuse(self, u: Tensor) -> Tensor:  # [m b c h w] -> [b d]
        """What all branches found in the whole image, in few numbers (Eqs. 1 to 3)."""
        s = reduce(u.sum(dim=0), "b c h w -> b c", "mean")
        return self.norm(self.w(s)).relu()

    def weigh(self, z: Tensor) -> Tensor:  # [b d] -> [m b c]
        """How much each channel takes from each branch (Eq. 5)."""
        scores = rearrange(self.a(z), "b (m c) -> m b c", m=len(self.branches))

        # The softmax runs over the branches. So the sizes compete within a channel,
        # and the channels choose freely of each other.
        return scores.softmax(dim=0)

    def forward(self, x: Tensor) -> Tensor:  # [b c h w] -> [b c h' w']
        """Split, fuse, select (Eq. 6)."""
        u = self.split(x)
        a = self.weigh(self.fuse(u))

        # *The note* adds the branches up. That is the baseline of the paper's ablation;
        # the selection is a weighted sum.
        return einsum(a, u, "m b c, m b c h w -> b c h w")


# ## Inside a residual network


def sk_bottleneck(c_in: int, c_out: int, stride: int) -> Bottleneck:
    """A bottleneck of ResNeXt with this unit for its grouped convolution (Table 1)."""
    # ResNeXt's bottlenecks are twice as wide in the middle as a ResNet's.
    return Bottleneck(c_in, c_out, stride, width=c_out // 2, look=SelectiveKernel)


def weights(model: nn.Module) -> int:
    """How many numbers a model learns."""
    return sum(p.numel() for p in model.parameters())


# ## A task with two scales


class EqualSum(SelectiveKernel):
    """The baseline of the paper's ablation: the same branches, without a choice."""

    def forward(self, x: Tensor) -> Tensor:  # [b c h w] -> [b c h' w']
        """Every image takes all of every branch."""
        return self.split(x).sum(dim=0)


def texture(b: int, scale: float) -> Tensor:  # [] -> [b 1 h w]
    """Random cells, enlarged to `scale` pixels each; the first may be cut off."""
    cells = torch.randn(b, 1, 13, 13)
    y, x = ((torch.arange(12) / scale + torch.rand(())).long() for _ in range(2))
    return cells[:, :, y[:, None], x]


def edges(x: Tensor, scale: int) -> Tensor:  # [b 1 h w] -> [b 1 h w]
    """The cell to the right minus the cell to the left of each pixel."""
    return pad(x, (0, scale))[..., scale:] - pad(x, (scale, 0))[..., :-scale]


def train(block: nn.Module) -> nn.Sequential:
    """Teach `block` to find the edges of fine and of coarse textures."""
    model = nn.Sequential(nn.Conv2d(1, 8, 1), block, nn.Conv2d(8, 1, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0.05, total_iters=60)
    for _ in range(60):
        fine, coarse = texture(8, 1), texture(8, 2)
        wanted = torch.cat([edges(fine, 1), edges(coarse, 2)])
        found = model(torch.cat([fine, coarse]))
        (found - wanted).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return model.eval()


@torch.no_grad()
def missed(model: nn.Module, x: Tensor, wanted: Tensor) -> float:
    """The squared error of `model`, as a share of what there was to find."""
    return ((model(x) - wanted).square().sum() / wanted.square().sum()).item()


@torch.no_grad()
def far(model: nn.Sequential, scale: float) -> float:
    """What the channels take from the larger kernel, on average."""
    narrow, sk, _ = model
    u = sk.split(narrow(texture(100, scale)))
    return sk.weigh(sk.fuse(u))[1].mean().item()


# ## Demo


def demo() -> None:
    """Check the price against the paper, then the choice, then what it is good for."""
    torch.manual_seed(0)
    with torch.device("meta"):  # counts weights, computes nothing
        sknet = resnet(sk_bottleneck).eval()

    # **The price in weights.** A unit adds a second branch and a choice to ResNeXt-50.
    # The printed figure needs both $A_1$ and $A_2$ (27.1 with one) and the floor $L$
    # (27.4 without). It does not tell whether $W$ and $A_m$ have biases; the released
    # model has none, and as many weights as this one, to the last.
    #
    # For SKNet-101 we count 48.7 million, and the README prints 48.9. (In one stage its
    # released model squeezes to 16, below $L$, and has 48.7 too.)
    units = [unit for unit in sknet.modules() if isinstance(unit, SelectiveKernel)]
    kernels = sum(weights(unit.branches[1]) for unit in units)
    choices = sum(weights(unit) - weights(unit.branches) for unit in units)
    total = weights(sknet)
    sizes = [(128, 32, 3), (256, 32, 4), (512, 32, 6), (1024, 64, 3)]  # c, d, units
    assert kernels == sum(n * (9 * c * c / 32 + 2 * c) for c, _, n in sizes)  # G = 32
    assert choices == sum(n * (3 * c * d + 2 * d) for c, d, n in sizes)  # Eqs. 3 to 5
    assert round(total / 1e6, 1) == 27.5  # Table 1, SKNet-50
    assert round((total - kernels - choices) / 1e6, 1) == 25.0  # Table 1, ResNeXt-50
    assert total == 27_479_784  # models/sknet50.prototxt of the official code

    # **The price in arithmetic.** Convolutions and matrices make 4.46 billion
    # multiply-adds; with the weighted sums of branches it is the paper's 4.47. (For
    # ResNeXt-50 we count 4.23, and the paper prints 4.24.)
    assert round(gigaflops(sknet), 2) == 4.47  # Table 1, GFLOPs

    # **Branches compete, channels do not.** Each channel shares out 1 among its
    # branches. With two of them only the difference of their scores counts: the choice
    # is a gate as in SE, which closes one kernel as it opens the other.
    sk, x = SelectiveKernel(64), torch.randn(4, 64, 9, 7)
    z = sk.fuse(sk.split(x))
    a_1, a_2 = rearrange(sk.a.weight, "(m c) d -> m c d", m=2)
    shares, gate = sk.weigh(z), torch.sigmoid(z @ (a_1 - a_2).T)
    torch.testing.assert_close(shares.sum(dim=0), torch.ones(4, 64))  # Eq. 6
    torch.testing.assert_close(shares[0], gate)  # Section 3.1: B is redundant

    # **Enlarge an image by two, and the right kernel is the same one, dilated by two.**
    # What a small kernel does for an object, the larger one can do for the same object
    # from half as far. Someone has to choose.
    enlarged = repeat(x, "b c h w -> b c (h i) (w j)", i=2, j=2)
    near, wide = (look[0] for look in sk.branches)
    wide.load_state_dict(near.state_dict())
    found = repeat(near(x), "b c h w -> b c (h i) (w j)", i=2, j=2)
    torch.testing.assert_close(wide(enlarged), found)  # Section 3.1: dilation 2

    # **To choose pays.** Find the edges between the cells of a texture, either fine (a
    # pixel a cell) or enlarged by two. Each kernel can do one of them. Added up, the
    # kernel for the other scale is always in the way.
    chosen, added, torn, curves = [], [], [], []
    scales = [1, 1.2, 1.4, 1.6, 1.8, 2]
    for seed in range(3):
        torch.manual_seed(seed)
        sk = train(SelectiveKernel(8, groups=1))
        equal = train(EqualSum(8, groups=1))
        fine, coarse = texture(100, 1), texture(100, 2)
        fine_edges, coarse_edges = edges(fine, 1), edges(coarse, 2)
        chosen += [missed(sk, fine, fine_edges), missed(sk, coarse, coarse_edges)]
        added += [missed(equal, fine, fine_edges), missed(equal, coarse, coarse_edges)]
        curves.append([far(sk, scale) for scale in scales])
        halves = torch.cat([fine[:, :, :6], coarse[:, :, 6:]], dim=2)
        wanted = torch.cat([fine_edges[:, :, :6], coarse_edges[:, :, 6:]], dim=2)
        torn.append(missed(sk, halves, wanted))
    assert max(chosen) < 0.05  # Section 3.1: sizes adapt to the input
    assert min(added) > 0.15  # the same branches without a choice

    # **Enlarge the object, and the larger kernel gets more.** So it is in SKNet-50 too,
    # but for its last layers. No texture between 1 and 2 was seen in training.
    assert min(curve[-1] - curve[0] for curve in curves) > 0.4  # Section 4.4

    # **One choice an image.** Where the image is fine above and coarse below, channels
    # settle in between, and neither half comes out right.
    assert min(torn) > 0.3  # Eq. 2: the squeeze forgets where

    # The choice in all three trainings, and what the last one finds.
    titles = ["coarse texture", "its edges", "chosen", "added up"]
    found = sk(coarse[:1]).detach(), equal(coarse[:1]).detach()
    images = [coarse, coarse_edges, *found]
    _, (left, *axes) = plt.subplots(
        1, 5, figsize=(8, 2), layout="constrained", width_ratios=[1.6, 1, 1, 1, 1]
    )
    for curve in curves:
        left.plot(scales, curve, marker=".")
    left.set(xlabel="times enlarged", ylabel="share of 5 × 5", ylim=(0, 1))
    for ax, image, title in zip(axes, images, titles, strict=True):
        ax.imshow(image[0, 0].numpy(), vmin=-3, vmax=3)
        ax.set(title=title, xticks=[], yticks=[])


if __name__ == "__main__":
    demo()
