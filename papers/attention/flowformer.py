r"""
---
title: "Flowformer: Linearizing Transformers with Conservation Flows"
authors: [Haixu Wu, Jialong Wu, Jiehui Xu, Jianmin Wang, Mingsheng Long]
year: 2022
venue: ICML
arxiv: "2202.06258"
code: https://github.com/thuml/Flowformer
topic: attention
tags: [linear attention, transformer]
zh: Flowformer 任务通用的线性复杂度主干网络
note: flowformer
idea: give every token a fixed amount to send and to receive, so that tokens compete
compare:
  self-attention: lets keys compete for each query by a softmax over all pairs
  linear-attention-rnn: has the two products in this order, and no competition
  external-attention: is linear since the keys are a small learned memory
  lambda-networks: turns the context into a linear map first, with a softmax on the keys
cost:
  parameters: $4d^2$ a layer, those of self-attention
  time: $O(nd^2/h)$ for $n$ tokens, no $n \times n$ matrix
---

**The problem.** Attention compares $n$ queries with $n$ keys. Replace the softmax by
$\phi(Q)\,\phi(K)^\top$, and $\phi(K)^\top V$ can be multiplied first, in time linear in
$n$. But the softmax also made keys compete. Without it the weights tend to be nearly
equal, which the paper calls *trivial*.

**The idea.** See attention as a network in which information flows from sources (the
values) to sinks (the results), with $\phi(Q_i) \cdot \phi(K_j)$ the capacity of a pipe.
Fix what each sink takes in, and the sources must compete for it. Fix what each source
gives out, and the sinks must (Section 3).

**The cost.** That of linear attention and four flows, each a sum over one side and a
product with it for every token of the other.

**What is lost.** Sources compete once, for all sinks together. And the weights still
form a matrix of rank $d/h$: tokens cannot each pick out one of many others.

*The note*, a press summary, gives no formula and leaves both words, conservation and
competition, undefined.

Letters: `b` batch, `n` tokens as sinks, `m` tokens as sources, `d` features, `h` heads,
`k` features of a query or key, `v` features of a value.
"""

import math
from collections.abc import Callable
from functools import partial

import matplotlib.pyplot as plt
import torch
from einops import einsum, rearrange
from einops.layers.torch import Rearrange, Reduce
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode

# ## Flow-Attention


def conserve(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    r"""
    What flows into each sink and out of each source,

    $$I_i = \phi(Q_i) \sum_j \phi(K_j)^\top, \qquad
      O_j = \phi(K_j) \sum_i \phi(Q_i)^\top,$$

    and what would, if everyone on the *other* side gave out, or took in, exactly 1:

    $$\hat I_i = \phi(Q_i) \sum_j \frac{\phi(K_j)^\top}{O_j}, \qquad
      \hat O_j = \phi(K_j) \sum_i \frac{\phi(Q_i)^\top}{I_i}$$
    """

    def flow(x: Tensor, y: Tensor) -> Tensor:
        """Nothing here has a size of n times m: the other side enters as one sum."""
        return einsum(x, y.sum(dim=-2), "b h n k, b h k -> b h n")[..., None]

    incoming, outgoing = flow(q, k), flow(k, q)
    return incoming, outgoing, flow(q, k / outgoing), flow(k, q / incoming)


def compete(outgoing: Tensor, ceiling: float) -> Tensor:  # [b h m 1] -> [b h m 1]
    r"""How much louder each source becomes: the softmax of $\hat O$."""
    # The authors' code first cuts $\hat O$ off at 1, "for stability". With as many
    # sinks as sources 1 is its average, so that takes from the winners all they have
    # won (see the demo). Here, as in the paper, nothing is cut.
    share = outgoing.clamp(max=ceiling).softmax(dim=-2)

    # A softmax sums to 1: the more sources, the smaller the result. The authors' code
    # multiplies by their number, and so does this page.
    return share * outgoing.shape[-2]


def aggregate(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Keys and values first: `k` by `v` numbers, from which all sinks read."""
    memory = einsum(k, v, "b h m k, b h m v -> b h k v")
    return einsum(q, memory, "b h n k, b h k v -> b h n v")


def flow_attention(
    q: Tensor, k: Tensor, v: Tensor, ceiling: float = math.inf
) -> Tensor:  # [b h n k], [b h m k], [b h m v] -> [b h n v]
    r"""
    Competition among sources, aggregation, allocation to sinks:

    $$\hat V = \mathrm{softmax}(\hat O) \odot V, \quad
      A = \tfrac{\phi(Q)}{I}\,\bigl(\phi(K)^\top \hat V\bigr), \quad
      R = \sigma(\hat I) \odot A$$

    Args:
        q: Queries of the sinks.
        k: Keys of the sources.
        v: Values of the sources.
        ceiling: Where to cut off the outgoing flow; 1 in the authors' code.
    """
    # Capacities must not be negative, so $\phi$ is a sigmoid. (For the Long Range Arena
    # the authors' code has a ReLU.)
    q, k = q.sigmoid(), k.sigmoid()
    incoming, _, conserved_incoming, conserved_outgoing = conserve(q, k)
    competed = compete(conserved_outgoing, ceiling) * v
    aggregated = aggregate(q / incoming, k, competed)

    # On WikiText-103 either step helps: perplexity 31.2 without competition, 32.2
    # without allocation, 30.8 with both (README of Flowformer_NLP).
    #
    # With $n$ sinks for $m$ sources the authors' code scales $\hat I$ by $n/m$, which
    # is 1 in self-attention. For a causal model it takes all sums cumulatively.
    return conserved_incoming.sigmoid() * aggregated


class FlowAttention(nn.Module):
    """
    Flow-Attention in several heads, in the place of self-attention.

    Args:
        d: Features of a token.
        h: Heads.
        attend: Makes results from queries, keys and values.

    Raises:
        ValueError: If `h` does not divide `d`.
    """

    def __init__(self, d: int, h: int, attend: Callable = flow_attention):
        super().__init__()
        if d % h:
            raise ValueError(f"h = {h} heads do not divide d = {d} features")
        self.split = Rearrange("b n (three h k) -> three b h n k", three=3, h=h)
        self.qkv = nn.Linear(d, 3 * d)
        self.attend = attend
        self.out = nn.Linear(d, d)

    def forward(self, x: Tensor) -> Tensor:  # [b n d] -> [b n d]
        """Every head is a network of its own."""
        q, k, v = self.split(self.qkv(x))
        result = self.attend(q, k, v)
        return self.out(rearrange(result, "b h n v -> b n (h v)"))


# ## The network


class Block(nn.Module):
    """Attention and an MLP, each after a norm and on top of its input."""

    def __init__(self, d: int, h: int):
        super().__init__()
        self.attention = nn.Sequential(nn.LayerNorm(d), FlowAttention(d, h))
        wide = nn.Linear(d, 4 * d), nn.GELU(), nn.Linear(4 * d, d)
        self.mlp = nn.Sequential(nn.LayerNorm(d), *wide)
        self.gamma = nn.Parameter(torch.full((d,), 1e-5))

    def forward(self, x: Tensor) -> Tensor:  # [b n d] -> [b n d]
        """The MLP starts nearly closed, as in the authors' code."""
        x = x + self.attention(x)
        return x + self.gamma * self.mlp(x)


class Positions(nn.Module):
    """What each place adds, learned: attention itself does not know places."""

    def __init__(self, n: int, d: int):
        super().__init__()
        self.table = nn.Parameter(0.02 * torch.randn(n, d))

    def forward(self, x: Tensor) -> Tensor:  # [b n d] -> [b n d]
        """Tokens that know where they are."""
        return x + self.table


def flowformer(classes: int = 1000, h: int = 12) -> nn.Sequential:
    """For ImageNet: 19 blocks in four stages of 3136, 784, 196 and 49 tokens."""
    c, side, layers = 3, 224, []
    for d, depth, patch in [(96, 3, 4), (192, 3, 2), (384, 10, 2), (768, 3, 2)]:
        side //= patch
        layers += [nn.Conv2d(c, d, patch, patch), Rearrange("b d h w -> b (h w) d")]
        layers += [Positions(side**2, d)] if c == 3 else []
        layers += [Block(d, h) for _ in range(depth)]
        layers += [Rearrange("b (h w) d -> b d h w", h=side)] if d < 768 else []
        c = d
    head = nn.LayerNorm(c), Reduce("b n d -> b d", "mean"), nn.Linear(c, classes)
    return nn.Sequential(*layers, *head)


# ## What it is compared with


def linear_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The same without competition and allocation."""
    q, k = q.sigmoid(), k.sigmoid()
    incoming, *_ = conserve(q, k)
    return aggregate(q / incoming, k, v)


def shares(attend: Callable, q: Tensor, k: Tensor) -> Tensor:  # -> [b h n m]
    """What fraction each token takes from each: attend to values that are their own."""
    one_hot = torch.eye(k.shape[-2], dtype=k.dtype).expand(*k.shape[:-1], -1)
    weights = attend(q, k, one_hot)
    return weights / weights.sum(dim=-1, keepdim=True)


# ## A needle


def needles(b: int) -> tuple[Tensor, Tensor]:  # [] -> [b n d], [b d]
    """
    Sequences of 32 tokens that each say 15 random signs. One token stands out in its
    first feature, and every token is to repeat what it says.
    """
    x = torch.randn(b, 32, 16).sign()
    x[..., 0] = torch.randn(b, 32) / 2
    needle = torch.randint(32, (b,))
    x[range(b), needle, 0] += 4
    return x, x[range(b), needle, 1:]


def train(attend: Callable, steps: int = 60) -> tuple[nn.Module, float]:
    """Train one layer to repeat the needle; how many signs it gets right."""
    layer = FlowAttention(16, 1, attend)
    model = nn.Sequential(layer, nn.Linear(16, 15))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    for _ in range(steps):
        x, said = needles(16)
        (model(x) - said[:, None]).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    x, said = needles(128)
    return layer, (model(x) * said[:, None] > 0).float().mean().item()


# ## Demo


def products(model: nn.Module, *shape: int) -> dict[str, float]:
    """How many multiply-adds each operation of PyTorch does for such an input."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.empty(shape, device="meta"))
    counts = counter.get_flop_counts()["Global"]
    return {str(operation): count / 2 for operation, count in counts.items()}


def demo() -> None:
    """Check the price, what is conserved, and who wins the competition."""
    torch.manual_seed(0)
    with torch.device("meta"):  # counts, computes nothing
        net, layer = flowformer(), FlowAttention(64, 4)

    # **The price of the network.** The authors print 41 "MB" and 6.3 G for ImageNet.
    # Both follow if M is $2^{20}$ and G is $2^{30}$, and only layers with weights
    # count. In millions and billions, with all products, it is 43 and 6.9.
    counts = products(net, 1, 3, 224, 224)
    in_layers = counts["aten.convolution"] + counts["aten.addmm"]
    weights = sum(p.numel() for p in net.parameters())
    assert round(weights / 2**20) == 41  # README of Flowformer_CV
    assert round(in_layers / 2**30, 1) == 6.3  # README of Flowformer_CV, FLOPs (G)

    # **The price of attention.** Without an $n \times n$ matrix, twice the tokens cost
    # twice as much.
    sizes = [64, 128, 256, 512, 1024]
    spent = [sum(products(layer, 1, n, 64).values()) for n in sizes]
    assert spent == [n * (4 * 64**2 + 2 * 64 * 16 + 4 * 64) for n in sizes]  # O(nd²/h)

    # **What is conserved.** Divided by $I$, every sink takes in 1; divided by $O$,
    # every source gives out 1. So all $\hat O$ together are as much as there are sinks:
    # what one source gains, others lose.
    q, (k, v) = torch.randn(2, 4, 7, 16), torch.randn(2, 2, 4, 5, 16)
    capacity = einsum(q.sigmoid(), k.sigmoid(), "b h n k, b h m k -> b h n m")
    i, o, i_hat, o_hat = conserve(q.sigmoid(), k.sigmoid())
    taken, given = (capacity / i).sum(dim=-1), (capacity / o.mT).sum(dim=-2)
    torch.testing.assert_close(taken, torch.ones(2, 4, 7))  # Section 3: sinks
    torch.testing.assert_close(given, torch.ones(2, 4, 5))  # Section 3: sources
    resource = torch.full((2, 4, 1), 7.0)
    torch.testing.assert_close(o_hat.sum(dim=-2), resource)  # what follows from it

    # **The same with the matrix.** What is written as three steps is one matrix of
    # weights. It only never needs to be there.
    weights = i_hat.sigmoid() * capacity / i * compete(o_hat, math.inf).mT
    quadratic = einsum(weights, v, "b h n m, b h m v -> b h n v")
    torch.testing.assert_close(flow_attention(q, k, v), quadratic)  # the three steps

    # **A fixed resource makes rivals.** A key that suits every query hides among others
    # that suit none. Linear attention gives it less and less as the others get more. In
    # Flow-Attention its $\hat O$ is $n$ times its share, and the softmax does the rest,
    # unless $\hat O$ is cut off.
    cut = partial(flow_attention, ceiling=1.0)
    kinds = scaled_dot_product_attention, flow_attention, cut, linear_attention
    planted = []
    for n in sizes:
        q, k = torch.randn(1, 1, n, 4) + 3, torch.randn(1, 1, n, 4) - 3
        k[:, :, 0] += 6
        planted.append([shares(kind, q, k)[..., 0].mean().item() for kind in kinds])
    _, won, cut_off, trivial = torch.tensor(planted).T
    assert won.min() > 0.99  # competition
    assert max(trivial[-1], cut_off[-1]) < 0.03  # 1024 tokens, no competition

    # **Finding a needle.** All tokens repeat what one of them says. In 60 steps softmax
    # finds it, competition nearly, linear attention not. (In 150 steps it does, too:
    # with large weights a sigmoid comes close to 0, and so do the other shares.)
    found = []
    for seed in range(3):
        torch.manual_seed(seed)
        kinds = scaled_dot_product_attention, flow_attention, linear_attention
        layers, right = zip(*[train(kind) for kind in kinds], strict=True)
        found.append(right)
    softmax, competing, alone = torch.tensor(found).T
    assert competing.min() > 0.8  # Flow-Attention
    assert alone.max() < 0.75  # without competition and allocation
    assert softmax.min() > 0.9  # self-attention

    # **What is lost.** The weights come from products of `k` features, scaled by rows
    # and by columns, which leaves their rank at `k`. Softmax over all pairs makes it
    # full.
    q, k = torch.randn(2, 1, 1, 32, 16).double()
    ranks = [torch.linalg.matrix_rank(shares(kind, q, k)).item() for kind in kinds]
    assert ranks == [32, 16, 16]  # what follows from the three steps

    _, axes = plt.subplots(
        1, 4, figsize=(8, 2.3), layout="constrained", width_ratios=[1.7, 1, 1, 1]
    )
    lines = axes[0].plot([str(n) for n in sizes], planted)
    for line, style in zip(lines, ["-", "--", "-", ":"], strict=True):
        line.set_linestyle(style)
    axes[0].legend(["softmax", "flow", "flow, cut off", "linear"], frameon=False)
    axes[0].set(xlabel="tokens", title="share of the one key that fits")
    x, _ = needles(1)
    titles = "softmax", "flow", "linear"
    for ax, layer, title in zip(axes[1:], layers, titles, strict=True):
        q, k, _ = layer.split(layer.qkv(x))
        ax.imshow(shares(layer.attend, q, k)[0, 0].detach().numpy(), vmin=0)
        ax.set(title=title, xlabel="read from", xticks=[], yticks=[])


if __name__ == "__main__":
    demo()
