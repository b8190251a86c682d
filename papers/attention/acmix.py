r"""
---
title: On the Integration of Self-Attention and Convolution
authors: [Xuran Pan, Chunjiang Ge, Rui Lu, Shiji Song, Guanfu Chen, Zeyi Huang,
  Gao Huang]
year: 2022
venue: CVPR
arxiv: "2111.14556"
code: https://github.com/LeapLabTHU/ACmix
topic: attention
tags: [convolution and attention, local attention, self-attention]
zh: Self-Attention 和 CNN 的优雅集成（ACmix）
note: acmix
idea: convolution and self-attention share their expensive half, so compute it once
compare:
  sasa: has the local attention alone, in place of the convolutions of a ResNet
  attention-augmented-conv: concatenates the two, each with projections of its own
  container: mixes the two as well, on independent paths
  botnet: keeps its convolutions and puts attention in the last stage only
cost:
  parameters: $3c^2 + O(c)$ for both paths, where a 3×3 convolution has $9c^2$
  time: $3c^2$ multiply-adds a pixel to project, $98c$ for windows of 7, $108c$ for
    kernels of 3
---

**The problem.** A convolution can subtract a neighbour, but does the same at every
pixel. Attention chooses its neighbours by what they hold, but all it can do with them
is average. A network that wants both pays for both.

**The idea.** Look where the work is. A $k \times k$ convolution is $k^2$ convolutions
of 1×1, whose maps are shifted and added. Self-attention is three of them, whose maps
are compared and averaged. In both, the first stage costs about $c^2$ and the second
about $c$ (Figure 2). So compute three maps once, and let both second stages work on
them.

**The cost.** A little more than attention alone, and less than one 3×3 convolution.

**What is lost.** The second path is not any convolution: one channel of each head, `n`
together, are made from the same nine maps, where a free convolution makes each channel
from its own. And few multiply-adds need not mean little time: the authors' README
calls sliding windows extremely inefficient without a CUDA kernel made for them.

*The note* lost the numbers of its cost comparison (they are below). It files SE and
CBAM under self-attention; they are gates, without queries or keys. It gives ViT 256
tokens; an image of 224 × 224 has 14 × 14 = 196, and a class token.

Letters: `b` batch, `c` channels, `h w` height and width, `m` the maps $q$, $k$, $v$,
`n` heads, `d` channels of a head, `o` pixels of a window, `s` shifts.
"""

import math
from collections.abc import Callable
from functools import partial

import matplotlib.pyplot as plt
import torch
from einops import einsum, rearrange, reduce, repeat
from torch import Tensor, nn
from torch.nn import functional as F

from convolution.resnet import Bottleneck, resnet

# ## A convolution in two stages


def shift(f: Tensor, dx: int, dy: int) -> Tensor:  # [... h w] -> [... h w]
    r"""Move a map: $\tilde f_{i,j} = f_{i + \Delta x, j + \Delta y}$ (Section 3.1)."""
    # What comes in at the border is zero, as in the convolution. `torch.roll` would
    # bring in the opposite border.
    h, w = f.shape[-2:]
    r = max(abs(dx), abs(dy))
    return F.pad(f, [r] * 4)[..., r + dx : r + dx + h, r + dy : r + dy + w]


def convolve(f: Tensor, kernel: Tensor) -> Tensor:  # [b c h w] -> [b c h w]
    r"""
    $\sum_{p,q} \mathrm{Shift}(K_{p,q}\,f,\; p - r,\; q - r)$, where $r$ is half the
    width of the kernel, rounded down (Eqs. 2 and 3).
    """
    k = kernel.shape[-1]
    maps = einsum(f, kernel, "b c h w, e c p q -> p q b e h w")  # 1×1 convolutions
    steps = [(p, q) for p in range(k) for q in range(k)]
    return sum(shift(maps[p, q], p - k // 2, q - k // 2) for p, q in steps)


# ## Attention and convolution from the same maps


def positions(f: Tensor) -> Tensor:  # [... h w] -> [h w 2]
    """Where each pixel is, from -1 to 1 in both directions."""
    like = {"dtype": f.dtype, "device": f.device}
    y, x = (torch.linspace(-1, 1, side, **like) for side in f.shape[-2:])
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)


def windows(f: Tensor, k: int, stride: int) -> Tensor:
    """The `k` by `k` pixels around each pixel: `[b n d h w]` to `[b n d o h' w']`."""
    n, h, w = f.shape[1], *f.shape[-2:]
    if min(h, w) <= k // 2:
        raise ValueError(f"a map of {h} x {w} cannot be mirrored by {k // 2} pixels")

    # A mirror at the border, so that every pixel has a full window. What it shows is
    # seen at its true place, for the places are mirrored too (below, in the keys).
    mirrored = F.pad(rearrange(f, "b n d h w -> b (n d) h w"), [k // 2] * 4, "reflect")
    patches = F.unfold(mirrored, k, stride=stride)
    shape = {"n": n, "o": k * k, "h": -(-h // stride)}
    return rearrange(patches, "b (n d o) (h w) -> b n d o h w", **shape)


class ACmix(nn.Module):
    r"""
    $$F_\mathrm{out} = \alpha F_\mathrm{att} + \beta F_\mathrm{conv}$$

    Args:
        c: Channels, in and out.
        heads: Heads of the attention, $N$ in the paper.
        k_att: Width of the window that attention sees.
        k_conv: Width of the convolution.
        stride: Of the output. The projections see every pixel.

    Raises:
        ValueError: If `heads` does not divide `c` or a width is even.
    """

    def __init__(
        self, c: int, heads: int = 4, k_att: int = 7, k_conv: int = 3, stride: int = 1
    ):
        super().__init__()
        if c % heads:
            raise ValueError(f"heads = {heads} do not divide c = {c} channels")
        if not k_att % 2 or not k_conv % 2:
            raise ValueError(f"k_att = {k_att} and k_conv = {k_conv} have to be odd")
        self.heads, self.k_att, self.stride = heads, k_att, stride
        d, s = c // heads, k_conv**2

        # *Stage one*: three 1×1 convolutions, side by side. Most weights are here.
        self.qkv = nn.Conv2d(c, 3 * c, 1)

        # *Stage two, attention*: a place in the image as a vector.
        self.place = nn.Linear(2, d)

        # *Stage two, convolution*: $3N$ pieces become $k^2$. The paper prints
        # $3N \times k^2N$, a mistake, says its author (issue 5 of the repository): the
        # $N$ comes in afterwards, in the grouped convolution.
        self.fc = nn.Linear(3 * heads, s, bias=False)

        # Moving a tensor is slow. A depth-wise convolution whose kernel is a single 1
        # moves it as well, and $k^2$ of them make one convolution, which can go on
        # learning from there (Figure 3). (In the authors' ResNet the initialisation of
        # the whole network then overwrites these kernels. In their Swin they stay.)
        #
        # No bias. The authors' code asks for one, but the function meant to zero it
        # returns `None`, which is put in its place.
        self.shifts = nn.Conv2d(
            s * d, c, k_conv, stride, k_conv // 2, groups=d, bias=False
        )
        taps = self.shifts.weight.data.zero_().flatten(2)  # c s (p q)
        taps.diagonal(dim1=1, dim2=2).fill_(1)

        self.alpha = nn.Parameter(torch.tensor(0.5))
        self.beta = nn.Parameter(torch.tensor(0.5))

    def project(self, x: Tensor) -> Tensor:  # [b c h w] -> [m b n d h w]
        """Stage one: the pieces that both paths work on."""
        return rearrange(self.qkv(x), "b (m n d) h w -> m b n d h w", m=3, n=self.heads)

    def weigh(self, q: Tensor, k: Tensor) -> Tensor:  # [b n d h w] -> [b n o h' w']
        r"""
        How much pixel $i$ takes of each pixel $j$ of its window:
        $\mathrm{softmax}_j\; q_i^\top (k_j + p_i - p_j) / \sqrt d$.
        """
        # The places are relative, and still enough to take from the keys once and for
        # all: $q_i^\top p_i$ is the same for every $j$, so the softmax drops it. What
        # they can do is tilt a window to one side, not single out a neighbour.
        p = rearrange(self.place(positions(k)), "h w d -> d h w")
        keys = windows(k - p, self.k_att, self.stride)
        asking = q[..., :: self.stride, :: self.stride]
        products = rearrange(asking, "b n d h w -> b n d 1 h w") * keys
        scores = reduce(products, "b n d o h w -> b n o h w", "sum")
        return (scores / math.sqrt(q.shape[2])).softmax(dim=2)

    def attend(self, qkv: Tensor) -> Tensor:  # [m b n d h w] -> [b c h' w']
        """Stage two of attention: compare and average."""
        q, k, v = qkv
        a = rearrange(self.weigh(q, k), "b n o h w -> b n 1 o h w")
        taken = a * windows(v, self.k_att, self.stride)
        return reduce(taken, "b n d o h w -> b (n d) h w", "sum")

    def convolve(self, qkv: Tensor) -> Tensor:  # [m b n d h w] -> [b c h' w']
        """Stage two of convolution: mix, shift and add."""
        pieces = rearrange(qkv, "m b n d h w -> b (m n) d h w")
        maps = einsum(pieces, self.fc.weight, "b mn d h w, s mn -> b d s h w")
        out = self.shifts(rearrange(maps, "b d s h w -> b (d s) h w"))

        # Its groups are the channels of a head, so the heads come last. (The authors
        # leave them there and add channels that do not correspond.)
        return rearrange(out, "b (d n) h w -> b (n d) h w", n=self.heads)

    def forward(self, x: Tensor) -> Tensor:  # [b c h w] -> [b c h' w']
        """Project once, use it twice."""
        qkv = self.project(x)
        return self.alpha * self.attend(qkv) + self.beta * self.convolve(qkv)


# ## Inside a residual network


def look(width: int, stride: int) -> nn.Sequential:
    """What replaces the 3×3 convolution, in each of the sixteen blocks."""
    mix = ACmix(width, stride=stride)
    return nn.Sequential(mix, nn.BatchNorm2d(width), nn.ReLU())


def acmix_resnet50() -> nn.Sequential:
    """ResNet-50 without its 3×3 convolutions."""
    return resnet(partial(Bottleneck, look=look))


# ## Two questions about the same image


def lamps(b: int) -> tuple[Tensor, Tensor]:  # [] -> [b c h w], [b 7 h w]
    """Images of 16 coloured pixels. Which colour has the one that channel 0 marks?"""
    lit = F.one_hot(torch.randint(16, (b,)), 16)
    lit = rearrange(lit, "b (h w) -> b 1 h w", h=4)
    colours = torch.randn(b, 7, 4, 4)
    truth = reduce(lit * colours, "b c h w -> b c 1 1", "sum")
    return torch.cat([6 * lit, colours], dim=1), truth.expand_as(colours)


def edges(b: int) -> tuple[Tensor, Tensor]:  # [] -> [b c h w], [b 7 h w]
    """The same images. How does each pixel differ from the one on its left?"""
    seen, _ = lamps(b)
    return seen, (seen - shift(seen, 0, -1))[:, 1:]


def learn(mix: ACmix, task: Callable) -> tuple[float, list[tuple[float, float]]]:
    """Train `mix`: its error on new images, and the way that alpha and beta went."""
    optimizer, way = torch.optim.Adam(mix.parameters(), lr=0.08), []
    for _ in range(50):
        seen, truth = task(16)
        (mix(seen)[:, 1:] - truth).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        way.append((mix.alpha.item(), mix.beta.item()))

    seen, truth = task(64)
    error = (mix(seen)[:, 1:] - truth).square().mean() / truth.var()
    return error.item(), way


# ## Demo


def demo() -> None:
    """Check the two stages and their price, then ask for one path or the other."""
    torch.manual_seed(0)

    # **A convolution in two stages.** Nine 1×1 convolutions, shifted and added.
    f, kernel = torch.randn(2, 3, 9, 7), torch.randn(4, 3, 3, 3)
    at_once = F.conv2d(f, kernel, padding=1)
    torch.testing.assert_close(convolve(f, kernel), at_once)  # Eqs. 1 to 3

    # **A shift is a convolution, too.** As initialised, the grouped convolution shifts
    # the nine maps and adds them, for each head.
    mix, maps = ACmix(16), torch.randn(2, 4, 9, 9, 7)  # b d s h w
    added = sum(shift(maps[:, :, i], i // 3 - 1, i % 3 - 1) for i in range(9))
    grouped = mix.shifts(rearrange(maps, "b d s h w -> b (d s) h w"))
    heads = repeat(added, "b d h w -> b (d n) h w", n=4)
    torch.testing.assert_close(grouped, heads)  # Figure 3

    # **The price in arithmetic.** A convolution uses each of its weights once a pixel.
    # Stage one has $3c^2$. In stage two, to compare and to average over a window takes
    # $2 k_a^2 c$, to mix and to shift $3 k_c^2 c + k_c^4 c$.
    with torch.device("meta"):  # counts weights, computes nothing
        model = acmix_resnet50()
    layers = [m for m in model.modules() if isinstance(m, ACmix)]
    c = torch.tensor([m.qkv.in_channels for m in layers])
    project = torch.tensor([m.qkv.weight.numel() for m in layers])
    attend = 2 * torch.tensor([m.k_att**2 for m in layers]) * c
    mixing = torch.tensor([m.fc.weight.numel() for m in layers])
    shifting = torch.tensor([m.shifts.weight.numel() for m in layers])
    price = torch.stack([project, attend, mixing * c // 4 + shifting])
    assert price[2].equal(108 * c)  # the paper: linear in the channels
    assert (price.sum(dim=0) < 9 * c**2).all()  # the paper: less than a 3×3 convolution

    # **Where the work is.** In ResNet-50, says the paper, the first stage is 99 % of a
    # convolution, which then adds $9c$ numbers, and 83 % of self-attention. Both follow
    # as the mean over the sixteen layers, with windows of 7.
    shares = torch.stack([c / (c + 1), project / (project + attend)])
    percent = (100 * shares.mean(dim=1)).round()
    assert percent.tolist() == [99, 83]  # the paper's cost analysis

    # **The price in weights.** The README prints 18.6M for ResNet-50. Its code has the
    # number below, and so has this page. (It also prints 3.6G multiply-adds. We come to
    # 3.5.) The second path has 0.3M of the weights. 3×3 convolutions beside the
    # attention would have 11.3M.
    total = sum(p.numel() for p in model.parameters())
    second = (mixing + shifting).sum()
    assert total == 18_333_976  # the authors' code
    assert 30 * second < 9 * (c**2).sum()  # the paper: minimum overhead

    # **With $\alpha = 1$ and $\beta = 0$, local attention.** What happens in a corner
    # reaches 4 × 4 pixels, those that have the corner in their windows.
    mix.alpha.data, mix.beta.data = torch.tensor([1.0, 0.0])
    x = torch.randn(2, 16, 9, 9)
    touched, within = x.clone(), torch.zeros(2, 9, 9, dtype=torch.bool)
    touched[:, :, 0, 0] += 1
    within[:, :4, :4] = True
    moved = (mix(touched) != mix(x)).any(dim=1)
    assert moved.equal(within)  # windows of 7 × 7

    # **With $\alpha = 0$ and $\beta = 1$, a convolution.** Its answers to single points
    # are a kernel, and an ordinary convolution with that kernel does the same. The
    # 4 · 9 rows that make one channel of each head have rank 9 only.
    mix.alpha.data, mix.beta.data = torch.tensor([0.0, 1.0])
    mix.shifts.weight.data += torch.randn_like(mix.shifts.weight)
    points = torch.zeros(16, 16, 7, 7)
    points[range(16), range(16), 3, 3] = 1
    answers = (mix(points) - mix(0 * points))[:, :, 2:5, 2:5]
    kernel = rearrange(answers.flip(-1, -2), "c e p q -> e c p q")
    same = F.conv2d(x, kernel, padding=1)
    torch.testing.assert_close(mix(x) - mix(0 * x), same, rtol=1e-4, atol=1e-4)  # Eq. 1
    rows = rearrange(kernel, "(n d) c p q -> d (n p q) c", n=4)
    assert (torch.linalg.matrix_rank(rows, rtol=1e-4) == 9).all()  # Figure 3: N groups

    # **Two questions.** To tell the colour of the lamp, a pixel has to find it, which
    # no fixed kernel does. To tell an edge, it has to subtract, which no average does.
    # Three networks for each question all turn down the path that is of no use. The
    # projections cannot do that for them: the other path needs them.
    torch.manual_seed(0)
    error, alone, way = {}, {}, {}
    for task, path in [(lamps, "attend"), (edges, "convolve")]:
        runs = [learn(ACmix(8, heads=2), task) for _ in range(3)]
        error[task] = max(error for error, _ in runs)
        way[task] = torch.tensor([way for _, way in runs])  # [runs steps 2]
        without = ACmix(8, heads=2)
        setattr(without, path, lambda qkv: 0)
        alone[task], _ = learn(without, task)
    assert error[lamps] < 0.5 * alone[lamps]  # a convolution does not find
    assert error[edges] < 0.1 * alone[edges]  # an average does not subtract
    ends = torch.stack([way[lamps][:, -1], way[edges][:, -1].flip(-1)]).abs()
    assert (ends[..., 0] > 3 * ends[..., 1]).all()  # the path of use leads

    figure, axes = plt.subplots(1, 3, figsize=(8, 2.8), layout="constrained")
    percent = (100 * price / price.sum(dim=0)).tolist()
    areas = axes[0].stackplot(range(1, 17), percent)
    axes[0].set(xlabel="layer of ResNet-50", title="% of multiply-adds")
    for ax, task in zip(axes[1:], way, strict=True):
        for alpha, beta in way[task].mT:
            ax.plot(alpha, "C1")
            ax.plot(beta, "C2")
        ax.set(xlabel="step", ylim=(-0.2, 0.9), title=f"α and β for {task.__name__}")
    labels = ["projections", "attention, α", "convolution, β"]
    figure.legend(areas, labels, loc="outside upper center", ncols=3, frameon=False)


if __name__ == "__main__":
    demo()
