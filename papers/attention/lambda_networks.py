r"""
---
title: "LambdaNetworks: Modeling Long-Range Interactions Without Attention"
authors: [Irwan Bello]
year: 2021
venue: ICLR
arxiv: "2102.08602"
code: https://github.com/lucidrains/lambda-networks
official: false
topic: attention
tags: [linear attention, position encoding]
zh: λ 网络（无注意力图的长程交互）
note: lambda-networks
idea: summarise the context into a small linear map instead of attending to it
compare:
  self-attention: weighs every pair of positions in a softmax and has to keep the map
  sasa: compares the pixels of a window, also by relative position, but in a softmax
  flowformer: multiplies keys with values first too, and knows content only
  external-attention: reads from a memory that training wrote, not the image
cost:
  parameters: $d(hk + uk + ud/h)$ for the projections and $ukr^2$ for the positions
  time: $O(n\,m\,kd/h)$, where $m = r^2$ positions are within reach
---

**The problem.** Attention compares every position with every other and keeps the
result: $h n^2$ numbers an image. *Linear* attention never forms that map, but does
not know where anything is, and on an image that matters (Section 1).

**The idea.** Turn the context of each position $n$ into a matrix of $k$ by $v$, the
*lambda* $\lambda_n$, and apply it to the query $q_n$. One part of it says what is
in the context and is shared by all positions. The other says where, seen from $n$.

**The cost.** $k \times d/h$ numbers a position to keep, however large the context.
The time still grows with it (Section 3.2).

**What is lost.** Competition. Without a softmax over the map, a query cannot single
out the one place that fits it best.

The paper announces code that we have not found. What is linked here is the best-known
re-implementation, the one that *the note* quotes.

Letters: `b` batch, `d` channels, `i j` rows and columns, `n` positions that ask, `m`
positions that answer, `h` heads, `k` features of a query or key, `v` features of a
value ($d/h$), `u` intra-depth, `r` side of a window, `c` numbers of a colour.
"""

from functools import partial

import matplotlib.pyplot as plt
import torch
from einops import einsum, rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from attention.self_attention import MultiHeadAttention
from convolution.resnet import Bottleneck, conv_bn, resnet

# ## The layer


class LambdaLayer(nn.Module):
    r"""
    Sum up the context, then apply the sum to the query (Section 3.1):

    $$\lambda_n = \sum_m (\bar k_m + e_{nm})\,v_m^\top, \qquad
      y_n = \lambda_n^\top q_n$$

    with $\bar k$ the keys after a softmax and $e$ embeddings of relative positions.

    Args:
        d: Channels, of the input and of the output.
        k: Features of a query or key.
        h: Heads. All apply the *same* lambda, each to a query of its own.
        u: Keys and values that each position adds to the sum (Appendix B.4).
        r: Side of the window in which positions are told apart.

    Raises:
        ValueError: If `h` does not divide `d`, or `r` is even.
    """

    def __init__(self, d: int, k: int = 16, h: int = 4, u: int = 1, r: int = 23):
        super().__init__()
        if d % h:
            raise ValueError(f"h = {h} heads do not divide d = {d} channels")
        if r % 2 == 0:
            raise ValueError(f"r = {r} is even, so the window has no centre")

        # In attention more heads make more maps. Here they make the lambda *smaller*:
        # it has $v = d/h$ columns, and $h$ outputs side by side have $d$ channels again
        # (multi-query lambdas, Section 3.2).
        #
        # No softmax tames the products of queries and lambdas, so queries and values
        # get a batch norm. Keys get a softmax instead.
        self.h, self.u = h, u
        self.to_q = conv_bn(d, h * k, 1)
        self.to_k = nn.Conv2d(d, u * k, 1, bias=False)
        self.to_v = conv_bn(d, u * (d // h), 1)

        # $e_{nm}$ depends only on where $m$ lies as seen from $n$, so it is the kernel
        # of a convolution, $r$ by $r$ with $u$ channels in and $k$ out.
        #
        # *The note* lets it have a bias, a constant on top of every lambda that the
        # paper's sum does not have.
        self.e = nn.Conv2d(u, k, r, padding=r // 2, bias=False)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # [b d i j] -> []
        """Queries `[b h k i j]`, keys `[b u k m]` and values `[b u v i j]`."""
        q = rearrange(self.to_q(x), "b (h k) i j -> b h k i j", h=self.h)
        k = rearrange(self.to_k(x), "b (u k) i j -> b u k (i j)", u=self.u)
        v = rearrange(self.to_v(x), "b (u v) i j -> b u v i j", u=self.u)

        # Over the *positions*, which makes each of the $k$ rows of the content lambda
        # a weighted mean of the values. (Attention takes its softmax over positions
        # too, but for each query anew. That is what needs a map.)
        return q, k.softmax(dim=-1), v

    def content_lambda(self, k: Tensor, v: Tensor) -> Tensor:  # [] -> [b k v]
        r"""$\sum_m \bar k_m v_m^\top$: what is there. The same for every query."""
        return einsum(k, v.flatten(-2), "b u k m, b u v m -> b k v")

    def position_lambdas(self, v: Tensor) -> Tensor:  # [b u v i j] -> [b k v i j]
        r"""$\sum_m e_{nm} v_m^\top$: what is where, as seen from each position."""
        # The *lambda convolution* (Appendix B.1). All features of a value meet the
        # same kernel, so for the convolution they are one more batch.
        #
        # *The note* has a second branch for a global context: a table of indices for
        # maps of exactly $n$ by $n$. It fails at any other size, and being a plain
        # attribute it is neither saved nor moved with the module. There is no need for
        # it: a window of $r = 2n - 1$ reaches all of such a map from everywhere, and
        # slides over other maps too.
        lambdas = self.e(rearrange(v, "b u v i j -> (b v) u i j"))
        return rearrange(lambdas, "(b v) k i j -> b k v i j", b=len(v))

    def forward(self, x: Tensor) -> Tensor:  # [b d i j] -> [b d i j]
        """One lambda a position, applied to its queries."""
        q, k, v = self.project(x)
        content = rearrange(self.content_lambda(k, v), "b k v -> b k v 1 1")
        lambdas = content + self.position_lambdas(v)
        y = einsum(q, lambdas, "b h k i j, b k v i j -> b h v i j")
        return rearrange(y, "b h v i j -> b (h v) i j")


# ## Inside a residual network


def look(width: int, stride: int, **sizes: int) -> nn.Sequential:
    """
    In place of the 3 by 3 convolution of each bottleneck; what follows that stays. A
    lambda layer does not stride, so the paper averages 3 by 3 pixels after it.
    """
    layers: list[nn.Module] = [LambdaLayer(width, **sizes)]
    if stride > 1:
        layers.append(nn.AvgPool2d(3, stride, 1))
    return nn.Sequential(*layers, nn.BatchNorm2d(width), nn.ReLU())


def lambda_resnet50(n_classes: int = 1000, **sizes: int) -> nn.Sequential:
    """ResNet-50 with lambda layers in all sixteen blocks (Section 5.1)."""
    block = partial(Bottleneck, look=partial(look, **sizes))
    return resnet(block, n_classes=n_classes)


# ## What it is compared with


class ContentOnly(LambdaLayer):
    """Linear attention: one lambda for all positions."""

    def position_lambdas(self, v: Tensor) -> Tensor:  # [b u v i j] -> [i j]
        """No position has anything of its own."""
        return v.new_zeros(v.shape[-2:])


def kept(block: nn.Module, *inputs: Tensor) -> float:
    """Gigabytes of the largest tensor that `block` keeps for its backward pass."""
    sizes = []

    def pack(x: Tensor) -> Tensor:
        """Called with each tensor that is kept."""
        sizes.append(x.nbytes)
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        block(*inputs)
    return max(sizes) / 2**30


# ## A task that needs a place

# Rows and columns to go: right, left, down, up.
WAYS = {"→": (0, 2), "←": (0, -2), "↓": (2, 0), "↑": (-2, 0)}


def signposts(b: int) -> tuple[Tensor, Tensor]:  # [] -> [b d i j], [b c i j]
    """
    Maps on which each pixel has a colour (`c` numbers) and points one of four ways;
    and for each pixel the colour two steps on, black beyond the edge.
    """
    way, colour = torch.randint(4, (b, 7, 9)), torch.randn(b, 4, 7, 9)
    posts = rearrange(F.one_hot(way, 4), "b i j c -> b c i j")
    wide = F.pad(colour, (2, 2, 2, 2))
    ahead = [wide[..., 2 + i : 9 + i, 2 + j : 11 + j] for i, j in WAYS.values()]
    target = einsum(posts.float(), torch.stack(ahead), "b w i j, w b c i j -> b c i j")
    return torch.cat([posts, colour], dim=1), target


def errors(*layers: nn.Module) -> list[float]:
    """
    Train each layer, with a linear map behind it, on the same maps. Which share of
    the variance of new ones is left unexplained?
    """
    models = nn.ModuleList(nn.Sequential(layer, nn.Conv2d(8, 4, 1)) for layer in layers)
    optimizer = torch.optim.Adam(models.parameters(), lr=0.03)
    for _ in range(70):
        x, colour = signposts(4)
        sum((model(x) - colour).square().mean() for model in models).backward()
        optimizer.step()
        optimizer.zero_grad()

    x, colour = signposts(64)
    with torch.no_grad():
        left = [(model(x) - colour).var() / colour.var() for model in models.eval()]
    return [share.item() for share in left]


# ## Demo


def demo() -> None:
    """Check the price, then what is attention here and what is not."""
    torch.manual_seed(0)

    # **The price in weights.** ResNet-50 has 25.6 million. Lambda layers in place of
    # its 3 by 3 convolutions make it 15, or 16 with $u = 4$ and windows of 7 by 7.
    #
    # The counts for other $k$ in the paper's ablation (Appendix D.1) follow too, but
    # for $k = 2$: 14.6 million here, 14.7 there. Those for other $h$ mostly do not.
    with torch.device("meta"):
        models = lambda_resnet50(), lambda_resnet50(u=4, r=7)
    counts = [sum(p.numel() for p in model.parameters()) for model in models]
    assert [round(n / 1e6, 1) for n in counts] == [15.0, 16.0]  # Section 5.1

    # **The price in time.** The context enters with all its $m = r^2$ positions. So
    # this layer has fewer weights than a 3 by 3 convolution, which has $9d^2$, and
    # takes four times its multiply-adds.
    d, k, v, n, m = 64, 16, 64 // 4, 64**2, 23**2
    with torch.device("meta"):
        layer, rival = LambdaLayer(d), MultiHeadAttention(d, h=8)
    with FlopCounterMode(display=False) as counter:
        layer(torch.empty(1, d, 64, 64, device="meta"))
    products = counter.get_total_flops() / 2
    lambdas = n * (1 + m) * k * v
    projections, outputs = n * d * (4 * k + k + v), n * d * k
    assert products == projections + lambdas + outputs  # Section 3.2: Θ(nmkd/h)

    # **The price in memory.** Attention keeps its map for the backward pass, a lambda
    # layer its lambdas. For 128 images of 64 by 64 that is half a gigabyte, and with 8
    # heads of attention 64.
    sides, maps, lambdas = range(8, 65, 8), [], []
    for side in sides:
        image = torch.empty(128, d, side, side, device="meta")
        tokens = rearrange(image, "b d i j -> b (i j) d")
        maps.append(kept(rival, tokens, tokens))
        lambdas.append(kept(layer, image))
    assert maps[-1] == 64  # Section 1, footnote: "64GB"
    assert lambdas[-1] == 4 * 128 * n * k * v / 2**30  # Section 3.2: Θ(bnkd/h)

    # **Is it only a reordering?** *The note* asks. The content part is: multiply keys
    # and queries first, by way of a map, and it is linear attention.
    layer, x = LambdaLayer(16, k=8, h=2, r=5), torch.randn(2, 16, 9, 7)
    q, k, v = layer.project(x)
    queries, values = q.flatten(-2), v.flatten(-2)
    content = layer.content_lambda(k, v)
    y_c = einsum(queries, content, "b h k n, b k v -> b h v n")
    weights = einsum(queries, k, "b h k n, b u k m -> b h u n m")
    linear = einsum(weights, values, "b h u n m, b u v m -> b h v n")
    torch.testing.assert_close(y_c, linear)  # Appendix C.3: linear attention

    # The positions are new. Beside the key stands $e_{nm}$, which linear attention does
    # not have: it depends on $n$ *and* $m$, so there is one lambda for each position.
    # (To read $e$ off, show the layer one pixel $m$ at a time.)
    pixels = rearrange(torch.eye(63), "m (i j) -> m 1 1 i j", i=9)
    e = rearrange(layer.position_lambdas(pixels), "m k 1 i j -> k (i j) m")
    pairs = rearrange(k, "b 1 k m -> b k 1 m") + e
    weights = einsum(queries, pairs, "b h k n, b k n m -> b h n m")
    y = einsum(weights, values, "b h n m, b u v m -> b h v n")
    torch.testing.assert_close(layer(x), y.reshape(x.shape))  # Section 3.1

    # So the whole is a reordering too, but of an attention whose softmax has left the
    # map for the keys; on the map it would forbid the reordering. The weights that
    # remain there are no shares, many are negative, and all is linear in the values.
    others = torch.randn_like(v)
    both = layer.position_lambdas(v + 2 * others)
    parts = layer.position_lambdas(v) + 2 * layer.position_lambdas(others)
    assert (weights < 0).float().mean() > 0.1  # what follows from no softmax
    torch.testing.assert_close(both, parts)  # Section 3.1: linear functions

    # **What, and where.** Shuffle the pixels, and the content lambda stays the same. A
    # single pixel reaches $r$ by $r$ position lambdas, each in another way.
    shuffled = x.flatten(-2)[..., torch.randperm(63)].view_as(x)
    _, k, v = layer.project(shuffled)
    torch.testing.assert_close(layer.content_lambda(k, v), content)  # Section 3.1
    footprint = rearrange(e[..., 31], "k (i j) -> k i j", i=9)
    window = layer.e.weight[:, 0].flip(-2, -1)
    torch.testing.assert_close(footprint, F.pad(window, (1, 1, 2, 2)))  # Appendix B.1

    # **Follow the signpost.** Where to look depends on what stands at the pixel, and
    # a query picks its kernel. A convolution of the same reach has one kernel for all
    # pixels and averages the four ways; linear attention knows of no ways. (On
    # ImageNet lambda layers without positions lose about ten points, Appendix D.1.)
    wrong, sizes = [], {"h": 1, "r": 5}
    for seed in range(3):
        torch.manual_seed(seed)
        layer = LambdaLayer(8, **sizes)
        convolution = nn.Conv2d(8, 8, 5, padding=2)
        wrong.append(errors(layer, ContentOnly(8, **sizes), convolution))
    whole, content, convolution = torch.tensor(wrong).T
    assert whole.max() < 0.1  # Section 3.1: content and position
    assert content.min() > 0.9  # Section 1: linear attention
    assert convolution.min() > 0.7  # the same reach, one kernel

    # On the left the kernels that pixels pick, by the way they point.
    posts = rearrange(F.pad(torch.eye(4), (0, 0, 0, 4)), "d way -> 1 d 1 way")
    q, _, _ = layer.project(posts)
    kernels = einsum(q[0, 0, :, 0], layer.e.weight[:, 0], "k way, k i j -> way i j")
    shape = {"figsize": (8, 2), "width_ratios": [1, 1, 1, 1, 2]}
    _, axes = plt.subplots(1, 5, **shape, layout="constrained")
    for ax, way, kernel in zip(axes[:4], WAYS, kernels.abs(), strict=True):
        ax.imshow(kernel.detach().numpy())
        ax.set(title=way, xticks=[], yticks=[])
    axes[4].plot(sides, maps, label="attention maps")
    axes[4].plot(sides, lambdas, label="lambdas")
    axes[4].set(xlabel="side of the image", title="gigabytes kept")
    axes[4].legend(frameon=False)


if __name__ == "__main__":
    demo()
