r"""
---
title: "ECA-Net: Efficient Channel Attention for Deep Convolutional Neural Networks"
authors: [Qilong Wang, Banggu Wu, Pengfei Zhu, Peihua Li, Wangmeng Zuo, Qinghua Hu]
year: 2020
venue: CVPR
arxiv: "1910.03151"
code: https://github.com/BangguWu/ECANet
topic: attention
tags: [channel attention]
zh: 高效通道注意力（ECA）
note: eca-net
idea: a channel's gate needs only its neighbours, not two fully connected layers
compare:
  se-net: computes each gate from all channels, through two matrices
  cbam: adds max pooling to those matrices, and a second gate that says where
  sk-net: uses such gates to choose between sizes of convolution
cost:
  parameters: $k$ a block, 80 in ResNet-50
  time: $kc$ multiply-adds a block, and two passes over its values
---

**The problem.** The gates of squeeze-and-excitation need $2c^2/r$ weights a block. To
keep them few they pass through $c/r$ numbers, where no channel has a place of its own
any more. One weight a channel ($c$ in all, no passing through) already does better
than that, and one full matrix ($c^2$) does better still (Table 2): a gate wants
its own channel and some company.

**The idea.** Company, but not everyone. The gate of a channel looks at the channel
and its $k - 1$ neighbours, and all gates look with the same $k$ weights: a convolution
along the channels (Eqs. 7 to 9). Wider layers get a larger $k$ (Eq. 12).

**The cost.** 80 weights on ResNet-50, where squeeze-and-excitation has 2.5 million.

**What is lost.** Channels further away are not heard, and all gates listen in the same
way. Channels have no order to begin with, so who is whose neighbour is up to the layer
before, which is trained along (tried out below).

Letters: `b` batch, `c` channels, `h w` height and width, `k` kernel size, `g` groups
and `m` members of a group in the demo, `i j` a gate and a channel.
"""

import math
from collections.abc import Mapping
from functools import partial

import matplotlib.pyplot as plt
import torch
from einops import rearrange, reduce
from einops.layers.torch import Reduce
from torch import Tensor, nn
from torch.nn.functional import softplus

from attention.squeeze_excitation import SqueezeExcite
from convolution.resnet import Bottleneck, gigaflops, resnet

# ## How many neighbours


def kernel_size(c: int, gamma: float = 2, shift: float = 1) -> int:
    r"""
    The odd number nearest to $t$, where `shift` is the paper's $b$ (Eq. 12):

    $$k = |t|_\mathrm{odd}, \qquad t = \frac{\log_2 c}{\gamma} + \frac{b}{\gamma}$$
    """
    # *The note* leaves the rule out and takes 3 for 512 channels, where it says 5.
    #
    # An even $t$ has two nearest odd numbers. That happens at 8, 128 and 2048 channels,
    # and Eq. 12 does not choose. The code in Figure 3 does: it truncates $t$ and adds
    # one if the result is even, which is the nearest odd number with ties going up.
    t = (math.log2(c) + shift) / gamma
    return 2 * math.floor(t / 2) + 1


# ## The gate


class ECA(nn.Module):
    r"""
    Multiply each channel by a gate computed from its neighbourhood $\Omega_i^k$:

    $$\omega_i = \sigma\Big(\sum_{j=1}^{k} w^j y_i^j\Big), \qquad
      y_i^j \in \Omega_i^k$$

    Args:
        c: Number of channels.
        k: How many of them a gate looks at, `kernel_size(c)` unless given.

    Raises:
        ValueError: If `k` is even, for then a channel is not amid its neighbours.
    """

    def __init__(self, c: int, k: int | None = None):
        super().__init__()
        k = kernel_size(c) if k is None else k
        if k % 2 == 0:
            raise ValueError(f"k = {k} is even, the window has no middle")

        # To the convolution, the channels are positions of a signal with one feature.
        # No bias: the paper counts $k$ weights. (The library that the note uses leaves
        # PyTorch's default on and has $k + 1$.)
        #
        # Eq. 6 draws the windows starting at their own channel. Figure 3 centres
        # them and fills up with zeros beyond the first and the last; so does this page.
        self.conv = nn.Conv1d(1, 1, k, padding=k // 2, bias=False)

    def squeeze(self, x: Tensor) -> Tensor:  # [b c h w] -> [b c]
        """One number a channel, as in squeeze-and-excitation."""
        return reduce(x, "b c h w -> b c", "mean")

    def excite(self, y: Tensor) -> Tensor:  # [b c] -> [b c]
        """What a channel and its neighbours hold decides how far it opens (Eq. 9)."""
        signal = rearrange(y, "b c -> b 1 c")
        scores = rearrange(self.conv(signal), "b 1 c -> b c")
        return scores.sigmoid()

    def forward(self, x: Tensor) -> Tensor:  # [b c h w] -> [b c h w]
        """Squeeze, excite, scale."""
        y = self.squeeze(x)
        omega = self.excite(y)
        return x * rearrange(omega, "b c -> b c 1 1")


# ## Inside a residual network

# The released ECA-Net50 was trained with these (`--ksize 3557` in the README of the
# official code). Its layers do not compute $k$, they are told. Eq. 12 gives 5, 5, 5, 7.
RELEASED = {256: 3, 512: 5, 1024: 5, 2048: 7}


def eca_resnet50(
    kernels: Mapping[int, int] | None = None,
    early: bool = False,
) -> nn.Sequential:
    """
    ResNet-50 with a gate where squeeze-and-excitation has it: to close each branch.

    Args:
        kernels: From channels to `k`; what is missing follows Eq. 12.
        early: Whether a block strides in its first convolution.
    """
    given = kernels or {}

    def gate(c: int) -> nn.Module:
        """One for `c` channels, as wide as it was given or as Eq. 12 says."""
        return ECA(c, given.get(c))

    return resnet(partial(Bottleneck, gate=gate, early=early))


# ## What it is compared with


class OneWeightEach(nn.Module):
    """SE-Var2 of Table 2: a gate has a weight of its own and sees no other channel."""

    def __init__(self, c: int):
        super().__init__()
        self.w = nn.Parameter(torch.randn(c))

    def excite(self, y: Tensor) -> Tensor:  # [b c] -> [b c]
        """The diagonal matrix of Eq. 4."""
        return (self.w * y).sigmoid()

    def forward(self, x: Tensor) -> Tensor:  # [b c h w] -> [b c h w]
        """Squeeze, excite, scale."""
        omega = self.excite(reduce(x, "b c h w -> b c", "mean"))
        return x * rearrange(omega, "b c -> b c 1 1")


def witnesses(b: int) -> tuple[Tensor, Tensor]:  # [] -> [b c h w], [b g]
    """
    Images of 4 groups of 4 noisy channels: a witness, a tip, a witness, silence. Both
    witnesses testify to the label of their group (±1), but one of them guesses, and
    only the tip between them says which.
    """
    tip, label, guess = 2.0 * torch.randint(2, (3, b, 4)) - 1
    left = torch.where(tip > 0, label, guess)
    right = torch.where(tip < 0, label, guess)
    group = [left, tip, right, torch.zeros(b, 4)]
    means = rearrange(group, "m b g -> b (g m) 1 1")
    return means + torch.randn(b, 16, 4, 5), label


def accuracy(block: nn.Module, order: Tensor, steps: int = 60) -> float:
    """Train `block` and a linear classifier on channels in this order; test on more."""
    pool = Reduce("b c h w -> b c", "mean")
    model = nn.Sequential(block, pool, nn.Linear(16, 4))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(steps):
        images, label = witnesses(64)
        softplus(-label * model(images[:, order])).mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    images, label = witnesses(1000)
    return (model(images[:, order]) * label > 0).float().mean().item()


def footprint(block: nn.Module) -> Tensor:
    """How much gate $i$ moves with channel $j$: `c` by `c`, from a sample."""
    images, _ = witnesses(50)
    y = reduce(images, "b c h w -> b c", "mean")
    jacobian = torch.autograd.functional.jacobian(lambda y: block.excite(y).sum(0), y)
    return reduce(jacobian.abs(), "i b j -> i j", "mean")


# ## Demo


def demo() -> None:
    """Check the price against the paper, then who is heard, and what order is worth."""
    torch.manual_seed(0)

    # **How many neighbours.** An odd number is nearest if it is at most one away.
    distances = [kernel_size(c) - (math.log2(c) + 1) / 2 for c in range(1, 5000)]
    assert max(map(abs, distances)) <= 1  # Eq. 12
    assert [kernel_size(c) for c in (8, 128, 2048)] == [3, 5, 7]  # Figure 3: ties

    # **The price in weights.** The network is as large as ResNet-50, to four digits.
    # (The authors' script counts in units of $2^{20}$; in millions it is 25.56.) The
    # abstract's 80 are those of the released model. Eq. 12 makes them 86.
    with torch.device("meta"):  # counts weights, computes nothing
        model, released = eca_resnet50(), eca_resnet50(RELEASED)
        early = eca_resnet50(RELEASED, early=True)
    sizes = []
    for net in (model, released):
        gates = [m for m in net.modules() if isinstance(m, ECA)]
        sizes.append(sum(p.numel() for gate in gates for p in gate.parameters()))
    total = sum(p.numel() for p in released.parameters())
    assert sizes == [86, 80]  # Eq. 12, and the abstract: 80
    assert round(total / 2**20, 2) == 24.37  # Table 3

    # **The price in arithmetic.** 4.09 billion multiply-adds, both for this network and
    # for the authors' code. Table 3 says 3.86, the figure of the plain network in the
    # paper on squeeze-and-excitation, which halves the image one convolution earlier.
    # Either way the gates do not show.
    flops = [round(gigaflops(net), 2) for net in (released, early)]
    assert flops == [4.09, 3.86]  # Table 3: 3.86

    # **Whom a gate hears.** The gradient of every gate reaches exactly $k$ channels, so
    # the matrix that takes channels to gates is a band.
    eca = ECA(16, k=5)
    i, j = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    assert torch.equal(footprint(eca) > 0, (i - j).abs() <= 2)  # Eqs. 6 and 7

    # **A word from next door.** Without a neighbour's tip a gate cannot know whom to
    # trust, and the classifier is right on three labels in four: those on which the
    # witnesses agree, and half of the rest. Three shared weights are enough to pass
    # the tip on. Squeeze-and-excitation has 256 for it, and learns each group alone.
    #
    # **What order is worth.** Shuffle the channels, the same way in all images, and
    # most tips are no one's neighbour: most of the gain is gone. (To squeeze-and-
    # excitation all orders are one.) But put a 1 × 1 convolution in front, as a
    # bottleneck has it, train both, and the tips arrive again. Then even one weight a
    # channel is enough, for the convolution can add a tip to its witnesses.
    in_order, rows = torch.arange(16), []
    for seed in range(3):
        torch.manual_seed(seed)
        shuffled, sort = torch.randperm(16), nn.Conv2d(16, 16, 1, bias=False)
        alone, eca, se = OneWeightEach(16), ECA(16), SqueezeExcite(16, r=2)
        row = [accuracy(block, in_order) for block in (alone, eca, se)]
        row.append(accuracy(ECA(16), shuffled))
        row.append(accuracy(nn.Sequential(sort, ECA(16)), shuffled, steps=100))
        rows.append(row)
    without, local, everyone, lost, found = zip(*rows, strict=True)
    assert max(without) < 0.8  # Section 3.2.2: needs cross-channel interaction
    assert min(local) > 0.99  # Section 3.2.2: local interaction is enough
    assert min(everyone) > 0.9  # SE hears all channels, with 85 times the weights
    assert max(lost) < 0.9  # what follows from Eq. 7
    assert min(found) > 0.95  # the order is learned along

    _, axes = plt.subplots(1, 4, figsize=(8, 2.4), layout="constrained")
    titles = "one weight each", "ECA", "squeeze-excitation"
    for ax, block, title in zip(axes, (alone, eca, se), titles, strict=False):
        ax.imshow(footprint(block).numpy())
        ax.set(xlabel="channel", title=title, xticks=[], yticks=[])
    axes[0].set(ylabel="gate")
    names = "one each", "ECA", "SE", "ECA,\nshuffled", "behind\n1 × 1"
    axes[3].barh(names, torch.tensor(rows).mean(dim=0).tolist())
    axes[3].invert_yaxis()
    axes[3].set(xlim=(0.5, 1), title="accuracy")


if __name__ == "__main__":
    demo()
