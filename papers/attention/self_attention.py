r"""
---
title: Attention Is All You Need
authors: [Ashish Vaswani, Noam Shazeer, Niki Parmar, Jakob Uszkoreit, Llion Jones,
  Aidan N. Gomez, Łukasz Kaiser, Illia Polosukhin]
year: 2017
venue: NeurIPS
arxiv: "1706.03762"
code: https://github.com/tensorflow/tensor2tensor
topic: attention
tags: [self-attention, transformer]
zh: 自注意力与 Transformer 简介
note: self-attention
idea: let every position ask all the others, at once
compare:
  external-attention: compares the positions with a small learned memory instead
  flowformer: never forms the comparisons, so its cost is linear in the positions
  non-local: the same sum over all positions, put into a convolutional network
  vit: feeds patches of an image to this encoder, as if they were words
cost:
  parameters: $4d^2$ an attention layer
  time: $O(n^2 d)$ to compare $n$ positions, but none waits for another
---

**The problem.** A recurrent network reads a sentence word by word: step $n$ waits
for step $n - 1$, and a word has to survive every step in between to be of use.

**The idea.** Each position asks a question (a *query*), each position offers an
answer (a *value*) under a heading (a *key*). A softmax over how well the query fits
the keys says how much of each value to take (Section 3.2). All positions do so at
once, and any two are one step apart.

**The cost.** $n$ positions make $n^2$ comparisons (Table 1).

**What is lost.** Order. Attention sees a *set*, so where each position stands has to
be added to what it holds (Section 3.5).

*The note* covers one attention layer, and of that neither the softmax nor the scale,
which give "scaled dot-product attention" its name. This page builds the whole model.

Letters: `b` batch, `n` positions that ask, `m` positions that answer, `d` features,
`h` heads, `k` features of a query or key ($d_k$), `v` features of a value ($d_v$),
`t` tokens of the vocabulary.
"""

import math

import matplotlib.pyplot as plt
import torch
from einops import einsum, rearrange
from torch import Tensor, nn
from torch.nn import functional as F

# ## Attention


def weigh(q: Tensor, k: Tensor, mask: Tensor | None = None) -> Tensor:
    r"""
    $\mathrm{softmax}(QK^\top / \sqrt{d_k})$: how much each query takes of each value.

    Args:
        q: Queries `[... n k]`.
        k: Keys `[... m k]`.
        mask: True where a query may look, `[n m]` or wider. (`nn.MultiheadAttention`
            has it the other way round.) A query that may look nowhere gives NaN.

    Returns:
        Weights `[... n m]`, each row a distribution over the keys.
    """
    # A sum of $d_k$ random products has variance $d_k$ (footnote 4). Without the
    # root the scores grow with the width, the softmax picks a single key, and then
    # hardly any gradient passes through it.
    scores = einsum(q, k, "... n k, ... m k -> ... n m") / math.sqrt(q.shape[-1])

    # Minus infinity and not zero: $e^{-\infty}$ is what adds nothing to the sum.
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(dim=-1)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """For each query, the weighted mean of the values `[... m v]` (Eq. 1)."""
    a = weigh(q, k, mask)
    return einsum(a, v, "... n m, ... m v -> ... n v")


class MultiHeadAttention(nn.Module):
    """
    One softmax yields one mean. Several heads look for several things at once, each
    in its own share of the features, so together they cost what one would.

    Args:
        d: Features of a position.
        h: Heads.
        d_k: Features of a query or key in *each* head, `d / h` unless given.
        d_v: Features of a value in each head, likewise.

    Raises:
        ValueError: If `h` does not divide `d`.
    """

    def __init__(self, d: int, h: int, d_k: int | None = None, d_v: int | None = None):
        super().__init__()
        if d % h:
            raise ValueError(f"h = {h} heads do not divide d = {d} features")
        d_k, d_v = d_k or d // h, d_v or d // h

        # The projections of all heads side by side. The paper's are matrices, so they
        # have no bias; in PyTorch's `nn.MultiheadAttention` they do by default. *The
        # note* likens heads to the groups of a convolution. Unlike groups they are
        # mixed again at once, by $W^O$.
        self.h = h
        self.w_q = nn.Linear(d, h * d_k, bias=False)
        self.w_k = nn.Linear(d, h * d_k, bias=False)
        self.w_v = nn.Linear(d, h * d_v, bias=False)
        self.w_o = nn.Linear(h * d_v, d, bias=False)

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor | None = None) -> Tensor:
        """
        Let `x` `[b n d]` ask and `memory` `[b m d]` answer. In *self*-attention they
        are the same.
        """
        q = rearrange(self.w_q(x), "b n (h k) -> b h n k", h=self.h)
        k = rearrange(self.w_k(memory), "b m (h k) -> b h m k", h=self.h)
        v = rearrange(self.w_v(memory), "b m (h v) -> b h m v", h=self.h)
        heads = attention(q, k, v, mask)
        joined = rearrange(heads, "b h n v -> b n (h v)")
        return self.w_o(joined)


# ## Positions


def positional_encoding(n: int, d: int) -> Tensor:  # [] -> [n d]
    r"""
    Sine and cosine of the position at $d/2$ speeds (Section 3.5), like the hands of
    a clock: $j$ positions later, each hand has turned by a fixed angle.

    Raises:
        ValueError: If `d` is odd.
    """
    if d % 2:
        raise ValueError(f"d = {d} is odd, and each speed takes a sine and a cosine")
    speed = 10000 ** (-torch.arange(0, d, 2) / d)
    angle = einsum(torch.arange(n), speed, "n, i -> n i")

    # In the paper sine and cosine alternate. The authors' code has all sines first,
    # and spaces the speeds a little differently.
    return rearrange([angle.sin(), angle.cos()], "two n i -> n (i two)")


# ## Layers


class AddNorm(nn.Module):
    r"""
    $\mathrm{LayerNorm}(x + \mathrm{Sublayer}(x))$ (Section 3.1).

    Later versions of the authors' code normalise *before* the sub-layer, as most
    models do now. This is the order of the paper and of the code's first release.
    """

    def __init__(self, sublayer: nn.Module, d: int, dropout: float):
        super().__init__()
        self.sublayer, self.dropout = sublayer, nn.Dropout(dropout)
        self.norm = nn.LayerNorm(d)

    def forward(self, x: Tensor, *others: Tensor | None) -> Tensor:
        """`others` is what the sub-layer takes besides `x`."""
        y = self.sublayer(x, *others)
        return self.norm(x + self.dropout(y))


class Layer(nn.Module):
    """
    *Look* around, then *think*: attention moves information between positions, the
    feed-forward network (Eq. 2) works on each alone. In between, a layer of the
    decoder *consults* the encoder.

    Args:
        d: Features of a position.
        h: Heads.
        d_ff: Features inside the feed-forward network.
        dropout: Share of each sub-layer's output that training drops.
        consults: Whether this is a layer of the decoder.
        heads: `d_k` and `d_v`, as for `MultiHeadAttention`.
    """

    def __init__(self, d=512, h=8, d_ff=2048, dropout=0.1, consults=False, **heads):
        super().__init__()
        feed_forward = nn.Linear(d, d_ff), nn.ReLU(), nn.Linear(d_ff, d)
        self.look = AddNorm(MultiHeadAttention(d, h, **heads), d, dropout)
        self.think = AddNorm(nn.Sequential(*feed_forward), d, dropout)
        if consults:
            self.consult = AddNorm(MultiHeadAttention(d, h, **heads), d, dropout)

    def forward(self, x, mask=None, memory=None, keep=None):  # [b n d] -> [b n d]
        """`mask` is for looking; the encoder's `memory` and its `keep` to consult."""
        x = self.look(x, x, mask)
        if memory is not None:
            x = self.consult(x, memory, keep)
        return self.think(x)


# ## The model


class Transformer(nn.Module):
    """
    Encoder, decoder, and one matrix that embeds the tokens of both and scores the
    next one (Section 3.4). The defaults are those of the base model.

    Args:
        vocabulary: Tokens, the same for source and target.
        n_layers: Layers of the encoder, and again of the decoder.
        d: Features of a position.
        dropout: As for `Layer`, and for the embeddings.
        sizes: `h`, `d_ff`, `d_k` and `d_v`, as for `Layer`.
    """

    def __init__(self, vocabulary, n_layers=6, d=512, dropout=0.1, **sizes):
        super().__init__()
        sizes |= {"d": d, "dropout": dropout}
        stack = range(n_layers)
        self.encoder = nn.ModuleList(Layer(**sizes) for _ in stack)
        self.decoder = nn.ModuleList(Layer(**sizes, consults=True) for _ in stack)

        # Small, for the same weights have to score the tokens at the end. `embed`
        # scales them up again, or the positions would drown the tokens.
        self.embedding = nn.Embedding(vocabulary, d)
        self.dropout = nn.Dropout(dropout)
        nn.init.normal_(self.embedding.weight, std=d**-0.5)

    def embed(self, tokens: Tensor) -> Tensor:  # [b n] -> [b n d]
        """What stands there, plus where."""
        d = self.embedding.embedding_dim
        x = self.embedding(tokens) * math.sqrt(d)
        where = positional_encoding(tokens.shape[1], d).to(x)
        return self.dropout(x + where)

    def forward(self, source: Tensor, target: Tensor, keep: Tensor | None = None):
        """
        Score each next token of the target.

        Args:
            source: Tokens `[b m]`.
            target: Tokens `[b n]`, the first of them a start token.
            keep: `[b m]`, False where the source is only padding.

        Returns:
            Scores `[b n t]`, at each position for the token after it.
        """
        keep = None if keep is None else rearrange(keep, "b m -> b 1 1 m")
        memory = self.embed(source)
        for layer in self.encoder:
            memory = layer(memory, keep)

        # In training the decoder is given the whole target and must not peek: each
        # position sees itself and what came before.
        y = self.embed(target)
        n = target.shape[1]
        causal = torch.ones(n, n, dtype=torch.bool, device=y.device).tril()
        for layer in self.decoder:
            y = layer(y, causal, memory, keep)
        return einsum(y, self.embedding.weight, "b n d, t d -> b n t")


def weights(module: nn.Module) -> int:
    """How many numbers a module learns."""
    return sum(p.numel() for p in module.parameters())


# ## Demo


def demo() -> None:
    """Check each part's reason to be there, then the price."""
    torch.manual_seed(0)

    # **Equation 1** against PyTorch's own, with a mask.
    q, k, v = torch.randn(2, 7, 16), torch.randn(2, 9, 16), torch.randn(2, 9, 5)
    mask = torch.rand(7, 9) < 0.5
    mask[:, 0] = True
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    torch.testing.assert_close(attention(q, k, v, mask), expected)  # Eq. 1

    # **Why the scale.** How much gradient passes a softmax with weights $a$? The trace
    # of its derivative is $1 - \sum a^2$: nearly 1 if many keys share the weight, 0 if
    # one has it all. With the root it does not depend on the width. Without, it fades.
    widths = [2**i for i in range(11)]
    scaled, unscaled = [], []
    for d_k in widths:
        q, k = torch.randn(512, d_k), torch.randn(64, d_k)
        a = torch.stack([weigh(q, k), weigh(q * math.sqrt(d_k), k)])
        passed = 1 - a.square().sum(dim=-1).mean(dim=-1)
        scaled.append(passed[0].item())
        unscaled.append(passed[1].item())
    variance = (q @ k.T).var().item()
    assert round(variance / 1024, 1) == 1  # footnote 4: q·k has variance d_k
    assert min(scaled) > 0.9  # Section 3.2.1: scaled
    assert unscaled[-1] < 0.1  # Section 3.2.1: "extremely small gradients"

    # **A set.** Shuffle the positions, and a layer's output is shuffled with them and
    # otherwise the same. So the model needs an encoding of position...
    layer, order = Layer(d=16, h=4, d_ff=32, dropout=0), torch.randperm(50)
    x = torch.randn(1, 50, 16)
    torch.testing.assert_close(layer(x[:, order]), layer(x)[:, order])  # Section 3.5

    # ...in which what two positions have in common depends only on how far apart they
    # are: each diagonal of the picture has one colour.
    where = positional_encoding(50, 64)
    common = where @ where.T
    torch.testing.assert_close(common[1:, 1:], common[:-1, :-1])  # Section 3.5

    # **One step apart.** Change the first position, and one layer later the last one,
    # 49 positions on, has heard of it.
    touched = x.clone()
    touched[:, 0] += 5
    heard = (layer(touched) - layer(x))[:, -1].abs().max()
    assert heard > 1e-3  # Table 1: maximum path length O(1)

    # **The whole model.** The order of the source matters. And the target cannot peek:
    # change it from position 4 on, and the scores before are the same to the last bit.
    model = Transformer(100, n_layers=2, d=32, h=4, d_ff=64).eval()
    source, target = torch.randint(100, (3, 11)), torch.randint(100, (3, 9))
    scores, mirrored = model(source, target), model(source.flip(1), target)
    assert (mirrored - scores).abs().max() > 0.01  # Section 3.5
    changed = target.clone()
    changed[:, 4:] = (target[:, 4:] + 1) % 100
    moved = (model(source, changed) - scores).abs().amax(dim=(0, 2))
    assert moved[:4].max() == 0  # Section 3.1: only "positions less than i"
    assert moved[4:].min() > 0.01  # while all later ones have changed

    # With the same kind of mask, padding is as good as absent.
    keep = (torch.arange(11) < 6).expand(3, 11)
    short = model(source[:, :6], target)
    torch.testing.assert_close(model(source, target, keep), short)  # as Section 3.2.3

    # **The price of heads.** Eight of $d_k = 64$ cost what one of 512 does. *The note*
    # gives each of its 8 heads $d_k = d_v = 512$, which is eight times the layer.
    eight = weights(MultiHeadAttention(512, 8))
    assert eight == weights(MultiHeadAttention(512, 1))  # Section 3.2.2
    assert 8 * eight == weights(MultiHeadAttention(512, 8, 512, 512))  # the note's

    # **The price of the model.** The paper's vocabulary has "about 37000" tokens
    # (Section 5.1). So counted, no row of Table 3 fits. Yet ten of the eleven do, to
    # the last digit, with 41,100; where the 4,100 rows of the embedding come from, the
    # paper does not say. The eleventh, the big model, fits neither.
    rows = [{}, {"d_k": 16}, {"d_k": 32}, {"n_layers": 2}, {"n_layers": 4}]
    rows += [{"n_layers": 8}, {"d": 256}, {"d": 1024}, {"d_ff": 1024}, {"d_ff": 4096}]
    with torch.device("meta"):  # counts weights, computes nothing
        base = Transformer(37_000)
        big = Transformer(37_000, d=1024, d_ff=4096, h=16)
        variants = [Transformer(41_100, **row) for row in rows]
    print(f"base: {weights(base) / 1e6:.1f} million with 37,000 tokens, 65 in print")
    print(f"big: {weights(big) / 1e6:.1f} million with 37,000 tokens, 213 in print")
    counted = [round(weights(model) / 1e6) for model in variants]
    assert counted == [65, 58, 60, 36, 50, 80, 28, 168, 53, 90]  # Table 3, base to (C)

    _, (left, right) = plt.subplots(1, 2, figsize=(7, 2.6), layout="constrained")
    left.semilogx(widths, scaled, base=2, label=r"with $1/\sqrt{d_k}$")
    left.semilogx(widths, unscaled, base=2, label="without")
    left.set(xlabel="$d_k$", title="gradient through the softmax", ylim=(0, 1))
    left.legend(frameon=False)
    right.imshow(common.numpy())
    right.set(xlabel="position", ylabel="position", title="common to two encodings")


if __name__ == "__main__":
    demo()
