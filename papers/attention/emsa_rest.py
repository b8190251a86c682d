r"""
---
title: "ResT: An Efficient Transformer for Visual Recognition"
authors: [Qing-Long Zhang, Yu-Bin Yang]
year: 2021
venue: NeurIPS
arxiv: "2105.13677"
code: https://github.com/wofmanaf/ResT
topic: attention
tags: [backbone, saving memory, self-attention, transformer]
zh: ResT：高效多头自注意力（EMSA）
note: emsa-rest
idea: shorten keys and values with a convolution, and let the heads talk to each other
compare:
  self-attention: keeps all keys, and its heads meet only after they have chosen
  pvt: shortens keys and values with a matrix over patches, and leaves the heads apart
  external-attention: replaces keys and values by a learned memory of fixed length
cost:
  parameters: $4d^2 + (s+1)^2 d + k^2$ an attention layer
  time: $O(n^2 d / s^2)$ to compare, where self-attention takes $O(n^2 d)$
---

**The problem.** Two. Self-attention compares each of $n$ positions with every
other, and an image has many. And each of $k$ heads compares them by its own $d/k$
features alone; if these are few, the comparison says little.

**The idea.** Efficient multi-head self-attention (EMSA) makes keys and values from
a map that a convolution of stride $s$ has shortened to $n/s^2$ positions. All $n$
still ask. Then, *before* the softmax, a 1×1 convolution over the heads lets each
of them use what the others have compared:

$$\mathrm{EMSA}(Q, K, V) =
  \mathrm{IN}\big(\mathrm{softmax}\big(\mathrm{Conv}(QK^\top/\sqrt{d_k})\big)\big)V$$

*The note* tells of both problems, and of the remedy for the first. The remedy for the
second is Conv; IN, an instance normalisation, is to keep the heads different.

**The cost.** $s^2$ times fewer comparisons, and $k^2$ weights to mix the heads.

**What is lost.** Detail in keys and values. In ResT V2 the authors add an upsampling
to recover it, and take the mixing out for speed. And under the normalisation each
row of a map sums to 0, so no position learns the mean of all values.

Letters: `b` batch, `h w` height and width, `d` features, `n` positions that ask (all
of them), `m` positions that answer, `k` heads, `e` features of a head ($d_k$), `s`
reduction ratio.
"""

import matplotlib.pyplot as plt
import torch
from einops import einsum, rearrange
from einops.layers.torch import Rearrange, Reduce
from torch import Tensor, nn
from torch.nn import functional as F

from convolution.resnet import conv_bn

# ## The attention


class EMSA(nn.Module):
    """
    All positions of a map ask, the positions of a smaller map answer.

    Args:
        d: Features of a position.
        k: Heads.
        s: Reduction ratio, how many times lower and narrower the map of keys is.
        mix: Whether the heads talk to each other.

    Raises:
        ValueError: If `k` does not divide `d`, or if `s` is not positive.
    """

    def __init__(self, d: int, k: int, s: int = 1, mix: bool = True):
        super().__init__()
        if d % k:
            raise ValueError(f"k = {k} heads do not divide d = {d} features")
        if s < 1:
            raise ValueError(f"the reduction ratio s = {s} is not positive")

        # *The note* gives each of its 8 heads $d_k = d_v = 512$ of $d = 512$ features.
        # In the paper they share the features, $d_k = d/k$.
        self.k = k
        self.q, self.kv = nn.Linear(d, d), nn.Linear(d, 2 * d)
        self.out = nn.Linear(d, d)

        # Kernel $s+1$ and not $s$, so that neighbouring windows overlap by one pixel.
        # *The note* fixes $h$ and $w$ when it makes the layer. Nothing here depends
        # on them.
        self.shorten = nn.Identity()
        if s > 1:
            conv = nn.Conv2d(d, d, s + 1, stride=s, padding=s // 2, groups=d)
            to, fro = Rearrange("b h w d -> b d h w"), Rearrange("b d h w -> b h w d")
            self.shorten = nn.Sequential(to, conv, fro, nn.LayerNorm(d))

        # As in the authors' code, one head has neither convolution nor normalisation;
        # the paper's equation makes no exception.
        self.mix = self.norm = nn.Identity()
        if mix and k > 1:
            self.mix, self.norm = nn.Conv2d(k, k, 1), nn.InstanceNorm2d(k)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries `[b k n e]` of the whole map, keys and values `[b k m e]`."""
        q = rearrange(self.q(x), "b h w (k e) -> b k (h w) e", k=self.k)
        kv = self.kv(self.shorten(x))
        kv = rearrange(kv, "b h w (two k e) -> two b k (h w) e", two=2, k=self.k)
        keys, values = kv
        return q, keys, values

    def compare(self, q: Tensor, keys: Tensor) -> Tensor:
        """Each head on its own: logits `[b k n m]`."""
        return einsum(q, keys, "b k n e, b k m e -> b k n m") / q.shape[-1] ** 0.5

    def attend(self, logits: Tensor) -> Tensor:  # [b k n m] -> [b k n m]
        """Mix the heads, choose, normalise each head's map."""
        # *Before* the softmax. The output layer mixes heads too, but by then each has
        # chosen where to look.
        choice = self.mix(logits).softmax(dim=-1)

        # A map of the softmax has mean $1/m$. This subtracts it, and scales what is
        # left to be about equally strong in all heads: one that mixing has made flat
        # is heard again. In the paper's ablation, accuracy falls without the
        # normalisation, and a little more without the convolution too.
        return self.norm(choice)

    def forward(self, x: Tensor) -> Tensor:  # [b h w d] -> [b h w d]
        """Compare, attend, read, and join the heads."""
        q, keys, values = self.project(x)
        a = self.attend(self.compare(q, keys))
        read = einsum(a, values, "b k n m, b k m e -> b k n e")
        joined = rearrange(read, "b k (h w) e -> b h w (k e)", h=x.shape[1])
        return self.out(joined)


# ## The network


class Block(nn.Module):
    """A transformer block, normalising first: look around, then think."""

    def __init__(self, d: int, k: int, s: int):
        super().__init__()
        think = nn.Linear(d, 4 * d), nn.GELU(), nn.Linear(4 * d, d)
        self.look = nn.Sequential(nn.LayerNorm(d), EMSA(d, k, s))
        self.think = nn.Sequential(nn.LayerNorm(d), *think)

    def forward(self, x: Tensor) -> Tensor:  # [b h w d] -> [b h w d]
        """Each part adds to what is there."""
        x = x + self.look(x)
        return x + self.think(x)


class PixelAttention(nn.Module):
    """
    The positional encoding: a gate for each value, from its 3×3 neighbourhood. What
    gives a position away is the zeros around the map, so any size of map will do.
    """

    def __init__(self, d: int):
        super().__init__()
        self.conv = nn.Conv2d(d, d, 3, padding=1, groups=d)

    def forward(self, x: Tensor) -> Tensor:  # [b d h w] -> [b d h w]
        """Where and what decide how much passes."""
        return x * self.conv(x).sigmoid()


def three_convolutions(d: int) -> nn.Sequential:
    """The stem of the paper's text and of the authors' code."""
    first, second = conv_bn(3, d // 2, 3, stride=2), conv_bn(d // 2, d // 2, 3)
    last = nn.Conv2d(d // 2, d, 3, stride=2, padding=1, bias=False)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), last)


def resnet_stem(d: int) -> nn.Sequential:
    """The stem of a ResNet. The authors' code has it too, and does not use it."""
    return nn.Sequential(conv_bn(3, d, 7, stride=2), nn.ReLU(), nn.MaxPool2d(3, 2, 1))


def rest(d=64, depths=(2, 2, 2, 2), stem=three_convolutions) -> nn.Sequential:
    """
    A pyramid of four stages; ResT-Lite unless told otherwise.

    Args:
        d: Features of the first stage. Each later one has twice as many.
        depths: Blocks of each stage.
        stem: Makes a map of `d` features, a quarter as high and wide, of an image.
    """
    # Heads 1, 2, 4, 8 and ratios 8, 4, 2, 1. As each stage halves the map, all have
    # the same number of keys: 7 × 7 of an image of 224 × 224. Images of other sizes
    # will do; at odd ones the authors' code stops, for it takes their halves to be
    # rounded down.
    stages, embed = [], [stem(d)]
    for i, depth in enumerate(depths):
        if i > 0:
            d = 2 * d
            conv = nn.Conv2d(d // 2, d, 3, stride=2, padding=1)
            embed = [Rearrange("b h w d -> b d h w"), conv, nn.BatchNorm2d(d)]
        positions = PixelAttention(d), Rearrange("b d h w -> b h w d")
        blocks = [Block(d, k=2**i, s=2 ** (3 - i)) for _ in range(depth)]
        stages.append(nn.Sequential(*embed, *positions, *blocks))
    head = nn.LayerNorm(d), Reduce("b h w d -> b d", "mean"), nn.Linear(d, 1000)
    return nn.Sequential(*stages, *head)


def weights(module: nn.Module) -> int:
    """How many numbers a module learns."""
    return sum(p.numel() for p in module.parameters())


def multiply_adds(module: nn.Module, x: Tensor) -> int:
    r"""Those of its layers. $QK^\top$ and $AV$ are no layers, so this misses them."""
    counts = []

    def count(layer, _, y):
        """Every output takes one product for each weight of its row."""
        counts.append(y.numel() * layer.weight[0].numel())

    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(count)
    with torch.no_grad():
        module(x)
    return sum(counts)


def likeness(maps: Tensor) -> float:
    """The mean cosine between the maps of two heads."""
    flat = F.normalize(maps.flatten(start_dim=2), dim=-1)
    pairs = torch.triu_indices(maps.shape[1], maps.shape[1], offset=1)
    return (flat @ flat.mT)[:, *pairs].mean().item()


# ## A task for which two features are too few


def lookups(b: int) -> tuple[Tensor, Tensor, Tensor]:
    """
    Maps `[b h w d]` of 20 positions. Each *asks* for a code of six signs, *holds* one,
    and has four numbers. The answer `[b h w 4]` is the numbers of the one position
    that holds what was asked for; `who` `[b n]` is that position.
    """
    codes = torch.rand(b, 64).argsort(dim=1)[:, :20, None]
    held = 2.0 * (codes >> torch.arange(6) & 1) - 1
    numbers, who = torch.randn(b, 20, 4), torch.rand(b, 20).argsort(dim=1)
    asked = held.take_along_dim(who[..., None], dim=1)
    answer = numbers.take_along_dim(who[..., None], dim=1)
    x = torch.cat([asked, held, numbers], dim=-1)
    return *(rearrange(y, "b (h w) d -> b h w d", h=4) for y in (x, answer)), who


def error(block: nn.Module) -> float:
    """Train `block` to look up; its squared error on new maps."""
    optimizer = torch.optim.Adam(block.parameters(), lr=0.04)
    for _ in range(60):
        x, answer, _ = lookups(16)
        (block(x)[..., :4] - answer).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    x, answer, _ = lookups(256)
    return (block(x)[..., :4] - answer).square().mean().item()


# ## Demo


def demo() -> None:
    """Check the price, then what shortening, mixing and normalising do."""
    torch.manual_seed(0)

    # **The price of a network.** The paper's text and the authors' code have a stem of
    # three convolutions. What they *print* is 0.02 to 0.05 million weights less. It
    # follows from a ResNet stem, and so do the multiply-adds, if counted layer by
    # layer, without $QK^\top$ and $AV$.
    sizes = [(64, (2, 2, 2, 2)), (64, (2, 2, 6, 2))]  # ResT-Lite, Small
    sizes += [(96, (2, 2, 6, 2)), (96, (2, 2, 18, 2))]  # Base, Large
    with torch.device("meta"):  # counts weights, computes nothing
        described = [weights(rest(*size)) for size in sizes]
        printed = [weights(rest(*size, resnet_stem)) / 1e6 for size in sizes]
    assert described == [10508300, 13679708, 30327052, 51676156]  # the authors' code
    assert [round(w, 2) for w in printed] == [10.49, 13.66, 30.28, 51.63]  # the paper
    lite, image = rest(stem=resnet_stem).eval(), torch.randn(1, 3, 224, 224)
    assert round(multiply_adds(lite, image) / 1e9, 1) == 1.4  # README of the code

    # **The price of a layer**, term by term. There are $s^2$ times fewer comparisons
    # than in self-attention, and $k^2nm$ multiply-adds to mix them. That saving is in
    # what the printed numbers leave out: in all of ResT-Lite $QK^\top$ and $AV$ take
    # 0.07 billion multiply-adds, and with self-attention they would take 2.9.
    n, d, k, s = 28 * 28, 128, 2, 4
    m, x, emsa = n // s**2, torch.randn(1, 28, 28, d), EMSA(d, k, s)
    project, shorten, mix = 2 * d**2 * (n + m), (s + 1) ** 2 * d * m, k**2 * n * m
    assert multiply_adds(emsa, x) == project + shorten + mix  # the paper's cost
    logits = emsa.compare(*emsa.project(x)[:2])
    assert logits.numel() == k * n**2 / s**2  # the paper's cost: n²/s²

    # **What shortening leaves out.** A window of $s+1$ pixels every $s$ pixels, the
    # first of them $s/2$ before the edge: in the first stage, of 56 rows and columns,
    # the last three are in no window. They ask, but nobody can look at them.
    x = torch.zeros(1, 56, 56, 1, requires_grad=True)
    EMSA(1, k=1, s=8).shorten[:2](x).sum().backward()
    seen = x.grad[0, :, :, 0] != 0
    assert seen.sum() == seen[:53, :53].sum() == 53**2  # from kernel s + 1, padding s/2

    # **Heads apart, heads mixed.** Without mixing, how head 0 looks does not depend on
    # what the others compare. And each table of logits has rank $d_k$, here 2: not much
    # to tell positions apart by. Mixed, head 0 listens to all, and the ranks add up
    # to $d$.
    emsa, apart, reach = EMSA(16, k=8).double(), EMSA(16, k=8, mix=False), []
    q, keys, _ = emsa.project(torch.randn(3, 9, 7, 16).double())
    logits = emsa.compare(q, keys)
    for block in (apart, emsa):
        towards = block.attend(logits)[:, 0, :, 0].sum()
        [gradient] = torch.autograd.grad(towards, logits, retain_graph=True)
        reach.append(gradient[:, 1:].abs().amax(dim=(0, 2, 3)))
    assert reach[0].max() == 0 < 0.01 < reach[1].min()  # the paper's reason for Conv
    ranks = [torch.linalg.matrix_rank(y) for y in (logits, emsa.mix(logits))]
    assert ranks[0].max() == 2 < 16 <= ranks[1].min()  # what follows from it

    # With all its weights $1/\sqrt{k}$, the convolution makes each head the one long
    # head that compares all features.
    equal = F.conv2d(logits, torch.full((8, 8, 1, 1), 8**-0.5, dtype=q.dtype))
    long = emsa.compare(*(rearrange(y, "b k n e -> b 1 n (k e)") for y in (q, keys)))
    torch.testing.assert_close(equal, long.expand_as(equal))  # what Conv can do

    # **Heads normalised.** Mixing also makes the heads alike. Much of what they share
    # is the $1/m$ that each gives to everyone; without that they differ. (The logits
    # are four times those of a layer that has not learned yet.) The price: rows sum to
    # 0, so what all values have in common is never read.
    sharp = 4 * logits
    choice, a = emsa.mix(sharp).softmax(dim=-1), emsa.attend(sharp)
    before = likeness(apart.attend(sharp))
    assert likeness(choice) > before + 0.1  # the paper: Conv impairs their diversity
    assert likeness(a) < 0.2  # the paper: IN restores it
    assert a.sum(dim=-1).abs().max() < 1e-9  # what follows from IN

    # **Looking up a code.** A head of two features can compare two signs of six, and
    # eight such heads choose eight times by two. Mixed, they choose by all six. (To
    # watch the mixing alone, without the normalisation. With it the task takes longer,
    # and the mean of the numbers stays unknown.)
    alone, together = [], []
    for seed in range(3):
        torch.manual_seed(seed)
        apart, mixed = EMSA(16, k=8, mix=False), EMSA(16, k=8)
        mixed.norm = nn.Identity()
        alone.append(error(apart))
        together.append(error(mixed))
    assert min(alone) > 0.4  # heads of two features
    assert max(together) < 0.1  # the same heads, mixed

    # Where the eight heads look. Rows ask and columns answer, sorted so that the right
    # answers lie on the diagonal. Mixed, most heads do the same: the diversity that the
    # paper wants back.
    x, _, who = lookups(1)
    _, axes = plt.subplots(2, 8, figsize=(8, 2.4), layout="constrained")
    for row, block, label in zip(axes, (apart, mixed), ("apart", "mixed"), strict=True):
        q, keys, _ = block.project(x)
        maps = block.attend(block.compare(q, keys))[0, ..., who[0]]
        for ax, one in zip(row, maps.detach().numpy(), strict=True):
            ax.imshow(one)
            ax.set(xticks=[], yticks=[])
        row[0].set(ylabel=label)


if __name__ == "__main__":
    demo()
