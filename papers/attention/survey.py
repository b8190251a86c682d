r"""
---
title: Fourteen attention mechanisms, side by side
year: 2021
code: https://github.com/xmu-xiaoma666/External-Attention-pytorch
official: false
topic: attention
tags: [channel attention, collections, self-attention]
zh: 深度学习中的 Attention 机制总结与代码实现(2017-2021 年)
note: external-attention-pytorch
idea: one input, fourteen ways to attend, and what each of them costs
compare:
  se-net: the least change, a gate for each channel
  sk-net: gates too, but between kernels of different size
  external-attention: pixels that read from a memory
  self-attention: pixels that read from each other
cost:
  parameters: from 3 to $6.6c^2$ for $c$ channels
  time: from $O(c)$ to $O(n^2 c)$ multiply-adds for $n$ tokens
---

**The question.** *The note* is a survey of ten attention mechanisms of 2017 to 2021,
each with a few lines to run and not a word on what it costs. Four more have pages
here. All of them turn a map of $c$ channels into another of the same shape, so where
one fits, any other does. Which one?

**What is measured.** Weights; multiply-adds of convolutions and matrix products; the
most memory that an inference holds at once; time. All but time are counted on
PyTorch's `meta` device, which knows shapes and computes nothing. They are exact, and
the same on every machine.

**What is not.** Nothing here is trained. What a mechanism does for accuracy is told on
its own page, and by its paper, with a network and a schedule of its own. Training
holds more memory than inference, since every step is kept for the way back.

*The note* takes its modules from one repository. Which of them behave as their papers
say is told in [a guide](../guides/external-attention-pytorch.md). Here they are those
of this site.

Letters: `b` batch, `c` channels, `h w` height and width, `n` tokens (pixels).
"""

import math
import statistics
import time
import weakref
from collections.abc import Callable

import matplotlib.pyplot as plt
import torch
from einops.layers.torch import Rearrange
from IPython.display import Markdown, display
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from attention.acmix import ACmix
from attention.bam import BAM
from attention.cbam import CBAM
from attention.danet import ChannelAttention, PositionAttention
from attention.eca_net import ECA
from attention.emsa_rest import EMSA
from attention.external_attention import ExternalAttention, weights
from attention.flowformer import FlowAttention
from attention.lambda_networks import LambdaLayer
from attention.non_local import NonLocal
from attention.psa_epsanet import PyramidSqueezeAttention
from attention.self_attention import MultiHeadAttention
from attention.sk_net import SelectiveKernel
from attention.squeeze_excitation import SqueezeExcite

# ## One shape for all


class OfTokens(nn.Module):
    """A map through a layer that takes a list of tokens `[b n c]`."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:  # [b c h w] -> [b c h w]
        """Flatten, attend, fold up again."""
        tokens = self.layer(x.flatten(2).mT)
        return tokens.mT.reshape(x.shape)


class SelfAttention(MultiHeadAttention):
    """The tokens that ask are also the ones that answer."""

    def forward(self, x: Tensor) -> Tensor:  # [b n c] -> [b n c]
        """Read from each other."""
        return super().forward(x, x)


class DualAttention(nn.Module):
    """The two attentions of DANet, without the convolutions around them."""

    def __init__(self, c: int):
        super().__init__()
        self.position, self.channel = PositionAttention(c), ChannelAttention()

    def forward(self, x: Tensor) -> Tensor:  # [b c h w] -> [b c h w]
        """Side by side, and summed."""
        return self.position(x) + self.channel(x)


def mechanisms(c: int = 64) -> dict[str, nn.Module]:
    """One of each for `c` channels, as in its paper; four heads where it has any."""
    # ResT shortens the keys by 8 in each direction where its maps are largest. A lambda
    # layer tells positions apart up to 11 pixels away.
    to_last, to_first = Rearrange("b c h w -> b h w c"), Rearrange("b h w c -> b c h w")
    return {
        "SE": SqueezeExcite(c),
        "ECA": ECA(c),
        "CBAM": CBAM(c),
        "BAM": BAM(c),
        "SK": SelectiveKernel(c),
        "PSA": PyramidSqueezeAttention(c, c),
        "external": OfTokens(ExternalAttention(c)),
        "flow": OfTokens(FlowAttention(c, h=4)),
        "lambda": LambdaLayer(c),
        "ACmix": ACmix(c),
        "EMSA": nn.Sequential(to_last, EMSA(c, 4, s=8), to_first),
        "non-local": NonLocal(c),
        "DANet": DualAttention(c),
        "self": OfTokens(SelfAttention(c, h=4)),
    }


# What each of them weighs: whose share in the result depends on the input.
WEIGHS = {
    "channels": ["SE", "ECA"],
    "channels, places": ["CBAM", "BAM"],
    "kernel sizes": ["SK", "PSA"],
    "memory slots": ["external"],
    "summaries": ["flow", "lambda"],
    "pixels nearby": ["ACmix"],
    "all pixels": ["EMSA", "non-local", "DANet", "self"],
}

# ## What is measured


@torch.no_grad()
def multiply_adds(block: nn.Module, side: int) -> float:
    """Those of convolutions and matrix products, for a map of `side` by `side`."""
    with FlopCounterMode(display=False) as counter:
        block(torch.empty(1, 64, side, side, device="meta"))
    return counter.get_total_flops() / 2


class Memory(TorchDispatchMode):
    """The most bytes held at once, of those that are computed under it."""

    def __init__(self):
        super().__init__()
        self.held = self.peak = 0
        self.known = weakref.WeakSet()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Run an operation, and count what it makes until that is let go."""
        # What comes in and is not known was there before: the input, the weights.
        self.known.update(storages(args))
        out = func(*args, **(kwargs or {}))
        for storage in storages(out):
            if storage not in self.known:
                self.known.add(storage)
                self.count(storage.nbytes())
                weakref.finalize(storage, self.count, -storage.nbytes())
        return out

    def count(self, size: int) -> None:
        """Take `size` bytes, or give them back."""
        self.held += size
        self.peak = max(self.peak, self.held)


def storages(tree: object) -> list[torch.UntypedStorage]:
    """Where the tensors in `tree` keep their numbers; a view keeps none of its own."""
    leaves = tree_leaves(tree)
    return [leaf.untyped_storage() for leaf in leaves if isinstance(leaf, Tensor)]


@torch.no_grad()
def memory(block: nn.Module, side: int) -> int:
    """Bytes for a map of `side` by `side`, beyond the input and the weights."""
    x = torch.empty(1, 64, side, side, device="meta")
    with Memory() as counter:
        block(x)
    return counter.peak


@torch.no_grad()
def milliseconds(block: nn.Module, side: int) -> float:
    """The median of five runs, after one to warm up."""
    x, taken = torch.randn(1, 64, side, side), []
    for _ in range(6):
        start = time.perf_counter()
        block(x)
        taken.append(time.perf_counter() - start)
    return 1000 * statistics.median(taken[1:])


def growth(measure: Callable[[nn.Module, int], float], block: nn.Module) -> float:
    """The power of $n$ that a measure grows with, from $256^2$ to $512^2$ tokens."""
    return math.log(measure(block, 512) / measure(block, 256), 4)


@torch.no_grad()
def knows_place(block: nn.Module) -> bool:
    """Whether shuffling the pixels does more than shuffle the result."""
    x, order = torch.randn(2, 64, 12, 11), torch.randperm(132)
    shuffled = x.flatten(2)[..., order].view_as(x)
    moved = block(x).flatten(2)[..., order].view_as(x)
    return not torch.allclose(block(shuffled), moved, atol=1e-4)


# ## Which to take
#
# - **In a convolutional network, for next to nothing: ECA or SE.** Their cost does not
#   grow with the image. Take ECA if weights count. Where it matters *where* something
#   is, CBAM or BAM.
# - **Where things come in all sizes: SK or PSA.** They take the place of a
#   convolution, so count what they cost against it.
# - **Where pixels have to hear of each other, up to about $2c$ of them:
#   self-attention.** As long as the map of comparisons costs less than the four
#   projections, there is nothing to save. A fused kernel
#   (`scaled_dot_product_attention`) never stores the map and saves its memory, not
#   its multiply-adds.
# - **For more pixels than that: EMSA or flow.** EMSA still compares pixel with pixel,
#   but with $s^2$ times fewer, and its cost is a square in the end. Flow stays linear.
#   External attention does too, and what it reads was learned from other images.
# - **To add to a trained network: non-local or DANet.** At the start they pass on what
#   they are given, so nothing breaks.
# - **Where places matter: lambda or ACmix, or positions added to the input.** Half of
#   the fourteen, and most of those that read from all pixels, cannot tell a pixel by
#   its place.

# ## Demo


def demo() -> None:
    """Measure all fourteen on one input, and check what the papers say of the cost."""
    torch.manual_seed(0)
    blocks = {name: block.eval() for name, block in mechanisms().items()}
    with torch.device("meta"):  # counts, and computes nothing
        counted = {name: block.eval() for name, block in mechanisms().items()}

    # **One shape.** What comes out has the shape of what went in, whatever its size.
    x = torch.randn(2, 64, 13, 17)
    assert all(block(x).shape == x.shape for block in blocks.values())  # the note
    assert torch.equal(blocks["non-local"](x), x)  # non-local, Section 3.3: W_z is 0

    # **The price.** Two gates cost the same for any image. Four mechanisms compare
    # pixels with pixels, a square. All others grow with the image and no faster.
    learned = [weights(block) for block in counted.values()]
    assert min(learned) == 3  # ECA, Eq. 9: k weights
    assert round(max(learned) / 64**2, 1) == 6.6  # PSA, in units of c²
    products = {name: growth(multiply_adds, block) for name, block in counted.items()}
    held = {name: growth(memory, block) for name, block in counted.items()}
    pairs = WEIGHS["all pixels"]
    others = [name for name in blocks if name not in pairs]
    linear = [products[name] for name in others if name not in ("SE", "ECA")]
    assert products["SE"] == products["ECA"] == 0  # SE, Eq. 3; ECA, Eq. 9
    assert max(abs(power - 1) for power in linear) < 0.01  # what follows: linear in n
    assert min(products[name] for name in pairs) > 1.95  # quadratic in n
    assert max(held[name] for name in others) < 1.01  # linear in n
    assert min(held[name] for name in pairs) > 1.95  # quadratic in n

    # **When is a square too much?** Self-attention has four projections, $4nc^2$, and
    # two products with the map, $2n^2c$. They are level at $n = 2c$, here 128 pixels.
    n, c = 32**2, 64
    assert (
        multiply_adds(counted["self"], 32) == 4 * n * c**2 + 2 * n**2 * c
    )  # Transformer: O(n²d)
    assert multiply_adds(counted["external"], 32) == 2 * n * c * 64  # EA: O(dSn)

    # **Who knows where?** Shuffle the pixels. If the result is only shuffled too, the
    # block cannot know places, unless they are part of its input. (Some blocks start
    # closed, with zeros for scales, and would hide what they know.)
    for block in blocks.values():
        for p in block.parameters():
            if not p.any():
                nn.init.ones_(p)
    placed = {name for name, block in blocks.items() if knows_place(block)}
    blind = {"SE", "ECA", "external", "flow", "non-local", "DANet", "self"}
    assert set(blocks) - placed == blind  # nothing in them depends on a place

    # **Side by side**, for 64 channels and a map of 32 by 32. Time is that of the
    # machine that built this page, on one thread. A click on a heading sorts.
    taken = {
        name: [milliseconds(block, side) for side in (8, 16, 32)]
        for name, block in blocks.items()
    }
    titles = ["mechanism", "weighs", "weights", "multiply-adds, M", "memory, MB", "ms"]
    table = [[*titles, "cost grows with", "knows places"], ["---"] * 2 + ["---:"] * 6]
    for weighed, names in WEIGHS.items():
        for name in names:
            block = counted[name]
            row = [name, weighed, f"{weights(block):,}"]
            row += [f"{multiply_adds(block, 32) / 1e6:.3f}"]
            row += [f"{memory(block, 32) / 2**20:.2f}", f"{taken[name][-1]:.2f}"]
            row += [f"$n^{products[name]:.0f}$", "yes" if name in placed else "no"]
            table.append(row)
    display(Markdown("\n".join("| " + " | ".join(row) + " |" for row in table)))

    # **As the map grows**, what compares all pixels with all leaves the rest behind,
    # whatever is measured.
    sides = [2**i for i in range(3, 9)]
    tokens = [side**2 for side in sides]
    figure, axes = plt.subplots(1, 3, figsize=(8, 3.4), layout="constrained")
    for i, names in enumerate(WEIGHS.values()):
        style = {"color": f"C{i % 6}", "linestyle": "--" if names == pairs else "-"}
        for name in names:
            block, label = counted[name], ", ".join(names) if name == names[0] else None
            counts = [multiply_adds(block, side) for side in sides]
            axes[0].loglog(tokens, counts, label=label, **style)
            axes[1].loglog(tokens, [memory(block, side) for side in sides], **style)
            axes[2].loglog(tokens[:3], taken[name], marker=".", **style)
    axes[0].set(title="multiply-adds", xlabel="tokens")
    axes[1].set(title="bytes held", xlabel="tokens")
    axes[2].set(title="milliseconds", xlabel="tokens")
    figure.legend(loc="outside lower center", ncols=4, frameon=False)


if __name__ == "__main__":
    demo()
