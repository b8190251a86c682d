r"""
---
title: "Beyond Self-attention: External Attention using Two Linear Layers for Visual
  Tasks"
authors: [Meng-Hao Guo, Zheng-Ning Liu, Tai-Jiang Mu, Shi-Min Hu]
year: 2021
venue: arXiv
arxiv: "2105.02358"
code: https://github.com/MenghaoGuo/EANet
topic: attention
tags: [linear attention, self-attention]
zh: 外部注意力
note: external-attention
idea: compare pixels with a small learned memory instead of with each other
compare:
  self-attention: compares the tokens with each other, $n^2$ comparisons
  emsa-rest: still compares tokens, with keys and values shortened by a convolution
  danet: compares all pairs of pixels, and all pairs of channels beside them
cost:
  parameters: $2ds$ for the two memories
  time: $O(nsd)$, linear in the pixels because $s$ is fixed
---

**The problem.** Self-attention compares every pixel with every other: with $n$
pixels that is $n^2$ comparisons, and only pixels of the *same* image ever meet.

**The idea.** Compare the pixels with $s$ learned vectors instead. These are
weights, trained on all images, so what they hold is common to the data set.
Two matrices, $M_k$ to compare with and $M_v$ to read from, replace keys and values.

**The cost.** $2nsd$ multiply-adds for $n$ pixels of $d$ features. *The note* says
$O(n)$; it is $O(nsd)$, linear in $n$ since $s$ does not grow with the image.

**What is lost.** No pixel can copy from another pixel. And the normalisation that
makes it work removes whatever all pixels of an image have in common (shown below),
so the authors' block adds its input back at the end.

Letters: `b` batch, `n` tokens (pixels), `d` features, `s` memory slots, `h` heads,
`k` features of a head.
"""

import matplotlib.pyplot as plt
import torch
from einops import einsum, rearrange
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

# ## Attention to a memory


def double_normalize(similarity: Tensor) -> Tensor:  # [... n s] -> [... n s]
    r"""
    Softmax over the tokens, then divide by the sum over the slots:

    $$\hat\alpha_{ij} = \frac{\exp \tilde\alpha_{ij}}{\sum_k \exp \tilde\alpha_{kj}},
      \qquad \alpha_{ij} = \frac{\hat\alpha_{ij}}{\sum_k \hat\alpha_{ik}}$$
    """
    # *The note* leaves this out. Attention usually has one softmax, here over the
    # slots. The authors found that too sensitive to the scale of the features, and
    # first let the tokens compete for each slot. (What that makes it blind to is not
    # the scale: see the demo.)
    log_share = similarity.log_softmax(dim=-2)

    # To exponentiate and divide by the sum is a softmax again. Written so, a token
    # that no slot likes cannot divide by zero, for which the authors' code has 1e-9.
    return log_share.softmax(dim=-1)


class ExternalAttention(nn.Module):
    r"""
    $$A = \mathrm{Norm}(F M_k^\top), \qquad F_\mathrm{out} = A M_v$$

    Args:
        d: Features of a token.
        s: Slots of the memory. The authors find 64 enough.
    """

    def __init__(self, d: int, s: int = 64):
        super().__init__()

        # *The note* calls these two MLPs. They are two matrices, which a linear
        # layer without bias holds. In the authors' code $M_v$ is made a transposed
        # view of $M_k$, so that both start equal (issue 12 of its repository). On a
        # CPU they then stay one tensor for good; a move to the GPU parts them. Here
        # they are independent, as in the paper.
        self.m_k = nn.Linear(d, s, bias=False)
        self.m_v = nn.Linear(s, d, bias=False)

    def attend(self, f: Tensor) -> Tensor:  # [... n d] -> [... n s]
        """How much each token reads from each slot; every row sums to 1."""
        similarity = self.m_k(f)
        return double_normalize(similarity)

    def forward(self, f: Tensor) -> Tensor:  # [... n d] -> [... n d]
        """Read from the memory what each token resembles."""
        a = self.attend(f)
        return self.m_v(a)


# ## Several heads


class MultiHeadExternalAttention(nn.Module):
    """
    The layer that replaces self-attention in EAMLP (Algorithm 2): widen the tokens,
    cut them into heads, let all heads read the *same* memory, and narrow again.

    Args:
        d: Features of a token.
        h: Heads before widening.
        s: Slots of the memory.
        expand: How many times wider, and how many times more heads.

    Raises:
        ValueError: If `h` does not divide `d`.
    """

    def __init__(self, d: int, h: int, s: int = 64, expand: int = 4):
        super().__init__()
        if d % h:
            raise ValueError(f"h = {h} heads do not divide d = {d} features")

        # Sharing the memory keeps it tiny, so nearly all the weights are in the two
        # projections. (The authors' code gives its memories a bias; the paper's have
        # none.)
        self.heads = h * expand
        self.widen = nn.Linear(d, d * expand)
        self.memory = ExternalAttention(d // h, s)
        self.narrow = nn.Linear(d * expand, d)

    def forward(self, f: Tensor) -> Tensor:  # [b n d] -> [b n d]
        """Every head looks at all tokens and at the one memory."""
        wide = self.widen(f)
        heads = rearrange(wide, "b n (h k) -> b h n k", h=self.heads)
        read = self.memory(heads)
        joined = rearrange(read, "b h n k -> b n (h k)")
        return self.narrow(joined)


# ## What it is compared with


class SelfAttention(nn.Module):
    """One head in which keys and values come from the tokens, not from a memory."""

    def __init__(self, d: int):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(d, d, bias=False) for _ in range(3))

    def forward(self, f: Tensor) -> Tensor:  # [b n d] -> [b n d]
        """Every token reads from every token: `n` by `n` weights."""
        scores = einsum(self.q(f), self.k(f), "b n d, b m d -> b n m")
        a = (scores / f.shape[-1] ** 0.5).softmax(dim=-1)
        return einsum(a, self.v(f), "b n m, b m d -> b n d")


class RowSoftmax(ExternalAttention):
    """External attention with one softmax, over the slots."""

    def attend(self, f: Tensor) -> Tensor:  # [... n d] -> [... n s]
        """Each token chooses among the slots, whatever the others do."""
        return self.m_k(f).softmax(dim=-1)


def weights(block: nn.Module) -> int:
    """How many numbers a block learns."""
    return sum(p.numel() for p in block.parameters())


def multiply_adds(block: nn.Module, n: int, d: int = 64) -> int:
    """Products that `block` computes for one image of `n` tokens."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        block(torch.empty(1, n, d, device="meta"))
    return counter.get_total_flops() // 2


def photographs(materials: Tensor, b: int) -> tuple[Tensor, Tensor]:
    """
    Images of 64 tokens, each one of the `materials`: as seen, with noise and under a
    light that all tokens of an image share, and as they are.
    """
    which = torch.randint(len(materials), (b, 64)).sort(dim=1).values
    truth = materials[which]
    light = 3 * torch.randn(b, 1, truth.shape[-1])
    seen = truth + light + 0.5 * torch.randn_like(truth)
    return seen, truth


def error(block: nn.Module, materials: Tensor) -> float:
    """Train `block` to see the materials; its squared error on new images."""
    optimizer = torch.optim.Adam(block.parameters(), lr=0.03)
    for _ in range(200):
        seen, truth = photographs(materials, b=8)
        (block(seen) - truth).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    seen, truth = photographs(materials, b=64)
    return (block(seen) - truth).square().mean().item()


# ## Demo


def demo() -> None:
    """Check the price, take the normalisation apart, then fill a memory."""
    torch.manual_seed(0)

    # **The price in weights.** Two matrices. To build EAMLP-14 the authors put the
    # multi-head layer in place of the 14 self-attention layers of T2T-ViT-14, which
    # has 21.5 million weights ($4d^2 + d$ in each of those layers).
    single, multi = ExternalAttention(512), MultiHeadExternalAttention(384, 6)
    eamlp = 21.5e6 + 14 * (weights(multi) - (4 * 384**2 + 384))
    assert weights(single) == 2 * 512 * 64  # Section 3: M_k and M_v, each S x d
    assert round(eamlp / 1e6) == 30  # ImageNet results: EAMLP-14, 30M

    # **The price in time.** Twice the pixels cost external attention twice as much and
    # self-attention four times.
    sizes = [2**i for i in range(4, 15)]
    with torch.device("meta"):
        external = [multiply_adds(ExternalAttention(64), n) for n in sizes]
        internal = [multiply_adds(SelfAttention(64), n) for n in sizes]
    assert external == [2 * n * 64 * 64 for n in sizes]  # Section 3: O(dSN)
    assert external[-1] / external[-2] == 2  # Section 3: linear in N
    assert round(internal[-1] / internal[-2], 1) == 4  # Section 3: O(dN²)

    # **What the double normalisation does.** Each row sums to 1 at the end. And since
    # every slot was first divided by its popularity, a slot that *all* tokens like
    # wins nothing: add one vector to all tokens, and no weight moves.
    ea, f = ExternalAttention(16, s=32), torch.randn(2, 64, 16)
    a, light = ea.attend(f), torch.randn(16)
    torch.testing.assert_close(a.sum(dim=-1), torch.ones(2, 64))  # double normalisation
    torch.testing.assert_close(ea.attend(f + light), a)  # what follows from it

    # So tokens are judged against each other. Change one and the others' weights
    # change too. A token without company is left with nothing: equal weights.
    touched = f.clone()
    touched[:, 0] += 5
    moved = (ea.attend(touched) - a)[:, 1:].abs().max()
    assert moved > 1e-3  # its softmax runs over the tokens
    assert ea.attend(f[:, :1]).unique().numel() == 1  # what follows from it

    # **What samples share.** The weights, learned from all of them, and nothing else:
    # in a batch, each image gets what it gets alone. With several heads too.
    images = torch.randn(2, 49, 384)
    torch.testing.assert_close(multi(images)[:1], multi(images[:1]))  # shared memory

    # **Filling a memory.** Twenty materials, always the same, under another light in
    # each image. The normalisation takes away what an image's tokens share, the memory
    # adds what all images share. One softmax fails at this, and so does self-attention.
    errors = []
    for seed in range(3):
        torch.manual_seed(seed)
        materials = torch.randn(20, 16)
        ea, row = ExternalAttention(16, s=32), RowSoftmax(16, s=32)
        blocks = ea, row, SelfAttention(16)
        errors.append([error(block, materials) for block in blocks])
    both, memory_only, tokens_only = torch.tensor(errors).T
    assert both.max() < 0.1  # external attention
    assert memory_only.min() > 0.5  # its memory, with one softmax over the slots
    assert tokens_only.min() > 0.5  # keys and values from the image's own tokens

    _, axes = plt.subplots(1, 3, figsize=(8, 2.6), layout="constrained")
    axes[0].loglog(sizes, internal, label="self-attention")
    axes[0].loglog(sizes, external, label="external attention")
    axes[0].set(xlabel="tokens", title="multiply-adds")
    axes[0].legend(frameon=False)
    seen, _ = photographs(materials, b=1)
    maps = [(axes[1], ea, "double normalisation"), (axes[2], row, "one softmax")]
    for ax, block, title in maps:
        ax.imshow(block.attend(seen)[0].detach().numpy(), aspect="auto")
        ax.set(xlabel="memory slot", ylabel="token, by material", title=title)


if __name__ == "__main__":
    demo()
