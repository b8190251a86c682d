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
compare: [external-attention, vit, emsa-rest]
cost:
  parameters: $4d^2$ an attention layer
  time: $O(n^2 d)$ to compare $n$ positions, but no step waits for another
---

**The problem.** A recurrent network reads a sentence word by word: step $n$ waits
for step $n - 1$, and a word has to survive every step in between to be of use.

**The idea.** Each position asks a question (a *query*), each position offers an
answer (a *value*) under a heading (a *key*). A softmax over how well the query fits
the keys says how much of each value to take (Section 3.2). All positions do so at
once, and any two are one step apart.

**The cost.** $n$ positions make $n^2$ comparisons (Table 1).

**What is lost.** Order. Attention sees a *set* of positions, so where each one
stands has to be added to what it holds (Section 3.5).

*The note* covers one attention layer, without the softmax and the scale that give
"scaled dot-product attention" its name. This page builds the whole model.

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
            has it the other way round.) Where a query may look nowhere, the result
            is NaN.
    """
    # A product of $d_k$ random pairs has variance $d_k$, so without the root the
    # scores grow with the width, the softmax picks one key, and its gradient dies.
    scores = einsum(q, k, "... n k, ... m k -> ... n m") / math.sqrt(q.shape[-1])

    # Minus infinity and not zero, for $e^{-\infty} = 0$ takes part in no sum.
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(dim=-1)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """For each query the mean of the values `[... m v]`, weighted (Eq. 1)."""
    a = weigh(q, k, mask)
    return einsum(a, v, "... n m, ... m v -> ... n v")


class MultiHeadAttention(nn.Module):
    r"""
    One softmax yields one mean. Several heads look for several things at once, each
    in its own $d_k = d/h$ features, so that all together cost what one would.

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

        # All heads' projections side by side. The paper's are matrices without bias;
        # PyTorch's `nn.MultiheadAttention` has biases unless told otherwise.
        self.h = h
        self.w_q = nn.Linear(d, h * d_k, bias=False)
        self.w_k = nn.Linear(d, h * d_k, bias=False)
        self.w_v = nn.Linear(d, h * d_v, bias=False)
        self.w_o = nn.Linear(h * d_v, d, bias=False)

    def split(self, x: Tensor) -> Tensor:  # [b n d] -> [b h n k]
        """Give each head its share of the features."""
        return rearrange(x, "b n (h k) -> b h n k", h=self.h)

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor | None = None) -> Tensor:
        """
        `x` asks and `memory` answers. In *self*-attention they are the same.

        Args:
            x: `[b n d]`.
            memory: `[b m d]`.
            mask: As for `weigh`.
        """
        q = self.split(self.w_q(x))
        k = self.split(self.w_k(memory))
        v = self.split(self.w_v(memory))
        heads = attention(q, k, v, mask)
        joined = rearrange(heads, "b h n v -> b n (h v)")
        return self.w_o(joined)


# ## Positions


def positional_encoding(n: int, d: int) -> Tensor:  # [] -> [n d]
    r"""
    $\sin$ and $\cos$ of the position at $d/2$ speeds (Section 3.5), like the hands of
    a clock: a shift by $j$ positions turns each hand by a fixed angle.

    Raises:
        ValueError: If `d` is odd.
    """
    if d % 2:
        raise ValueError(f"d = {d} is odd: each speed needs a sine and a cosine")
    speed = 10000 ** (-torch.arange(0, d, 2) / d)
    angle = einsum(torch.arange(n), speed, "n, i -> n i")

    # The paper takes turns, the authors' code puts all sines first. To the layer
    # that follows it is the same up to the order of its weights.
    return rearrange([angle.sin(), angle.cos()], "two n i -> n (i two)")


# ## Layers


class AddNorm(nn.Module):
    r"""
    $\mathrm{LayerNorm}(x + \mathrm{Sublayer}(x))$, around every sub-layer (Section 3.1).

    Later versions of the authors' code normalise *before* the sub-layer, as most
    models do now. This is the paper's order, and that of the code's first release.
    """

    def __init__(self, sublayer: nn.Module, d: int, dropout: float):
        super().__init__()
        self.sublayer, self.dropout = sublayer, nn.Dropout(dropout)
        self.norm = nn.LayerNorm(d)

    def forward(self, x: Tensor, *others: Tensor | None) -> Tensor:
        """`others` are what the sub-layer takes besides `x`."""
        y = self.sublayer(x, *others)
        return self.norm(x + self.dropout(y))


class Layer(nn.Module):
    """
    Look around, then think about it: attention moves information between positions,
    the feed-forward works on each alone (Eq. 2). A decoder layer also `consult`s the
    encoder in between.
    """

    def __init__(self, d, h, d_ff, d_k, d_v, dropout, decoder: bool):
        super().__init__()
        feed_forward = nn.Linear(d, d_ff), nn.ReLU(), nn.Linear(d_ff, d)
        self.look = AddNorm(MultiHeadAttention(d, h, d_k, d_v), d, dropout)
        self.think = AddNorm(nn.Sequential(*feed_forward), d, dropout)
        if decoder:
            self.consult = AddNorm(MultiHeadAttention(d, h, d_k, d_v), d, dropout)

    def forward(self, x, mask, memory=None, memory_mask=None):  # [b n d] -> [b n d]
        """With a `memory` `[b m d]` a decoder layer, without one an encoder layer."""
        x = self.look(x, x, mask)
        if memory is not None:
            x = self.consult(x, memory, memory_mask)
        return self.think(x)


# ## The model


class Transformer(nn.Module):
    """
    Encoder, decoder, and one matrix that embeds the tokens of both and also scores
    the next one (Section 3.4). What is not given is that of the base model.
    """

    def __init__(
        self,
        vocabulary: int,
        d: int = 512,
        h: int = 8,
        d_ff: int = 2048,
        n_layers: int = 6,
        d_k: int | None = None,
        d_v: int | None = None,
        dropout: float = 0.1,
    ):
        super().__init__()
        sizes = d, h, d_ff, d_k, d_v, dropout
        self.encoder = nn.ModuleList(Layer(*sizes, False) for _ in range(n_layers))
        self.decoder = nn.ModuleList(Layer(*sizes, True) for _ in range(n_layers))
        self.dropout = nn.Dropout(dropout)

        # Small, for the same numbers serve as weights of the last layer. `embed` makes
        # up for it, or the positions would drown the tokens.
        self.embedding = nn.Embedding(vocabulary, d)
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
            target: Tokens `[b n]`, starting with a start token.
            keep: `[b m]`, False where the source is only padding.

        Returns:
            Scores `[b n t]`; those at position $i$ are for the token at $i + 1$.
        """
        keep = None if keep is None else rearrange(keep, "b m -> b 1 1 m")
        memory = self.embed(source)
        for layer in self.encoder:
            memory = layer(memory, keep)

        # In training the decoder is given the whole target and must not peek: a
        # position looks at itself and at what came before.
        y = self.embed(target)
        n = target.shape[1]
        causal = torch.ones(n, n, dtype=torch.bool, device=y.device).tril()
        for layer in self.decoder:
            y = layer(y, causal, memory, keep)
        return einsum(y, self.embedding.weight, "b n d, t d -> b n t")

    def generate(self, source: Tensor, n: int) -> Tensor:  # [b m] -> [b n]
        """Write `n` tokens one by one, from start token 0, each the likeliest."""
        target = torch.zeros_like(source[:, :1])
        for _ in range(n):
            scores = self(source, target)
            target = torch.cat([target, scores[:, -1:].argmax(dim=-1)], dim=1)
        return target[:, 1:]


def learn_to_reverse(n: int = 8, steps: int = 300) -> Transformer:
    """Train a small Transformer to write a string of digits 1 to 9 backwards."""
    model = Transformer(10, d=32, h=2, d_ff=64, n_layers=1, dropout=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.004)
    for _ in range(steps):
        source = torch.randint(1, 10, (32, n))
        answer = source.flip(1)
        target = torch.cat([torch.zeros_like(answer[:, :1]), answer[:, :-1]], dim=1)
        scores = model(source, target)
        F.cross_entropy(scores.flatten(0, 1), answer.flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model
