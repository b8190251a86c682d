r"""
---
title: Squeeze-and-Excitation Networks
authors: [Jie Hu, Li Shen, Samuel Albanie, Gang Sun, Enhua Wu]
year: 2018
venue: CVPR
arxiv: "1709.01507"
code: https://github.com/hujie-frank/SENet
topic: attention
tags: [channel attention]
zh: 挤压与激励网络（SE 通道注意力）
note: se-net
idea: let the whole image decide how loud each channel plays
compare:
  eca-net: replaces the two matrices by one convolution over neighbouring channels
  cbam: adds max pooling, and a second gate that says where
  sk-net: gates whole branches, so that each channel chooses its kernel size
cost:
  parameters: $2c^2/r$ a block, a tenth of ResNet-50 in all
  time: $2c^2/r$ multiply-adds a block, and two passes over its values
---

**The problem.** A convolution looks through a small window and mixes channels
with the same weights for every image. It cannot know that a channel is useless
for *this* one.

**The idea.** Read each channel over the whole image (*squeeze*), decide from all
of them how much each one matters (*excitation*), and turn every channel up or
down: Section 3 of the paper, Eqs. 2 to 4.

**The cost.** On ResNet-50 a tenth more weights and next to no more arithmetic
(Section 4, measured below).

**What is lost.** A gate knows *how much* and not *where*: it turns a channel up
or down in all places alike.

Sections, equations and tables are those of the long version on arXiv. The paper
at CVPR is by Hu, Shen and Sun; Albanie and Wu joined for the long one.

Letters: `b` batch, `c` channels, `h w` height and width, `r` reduction ratio.
"""

from functools import partial

import matplotlib.pyplot as plt
import torch
from einops import rearrange, reduce
from einops.layers.torch import Reduce
from torch import Tensor, nn
from torch.nn.functional import softplus

from convolution.resnet import Bottleneck, gigaflops, resnet

# ## The gate


class SqueezeExcite(nn.Module):
    r"""
    Multiply each channel $u_c$ by a gate $s_c$ computed from all channels:

    $$z_c = \tfrac{1}{hw}\sum_{i,j} u_c(i, j), \quad
      s = \sigma(W_2\,\mathrm{relu}(W_1 z)), \quad
      \tilde{x}_c = s_c\,u_c$$

    Args:
        c: Number of channels.
        r: Reduction ratio, how many times narrower the middle is.

    Raises:
        ValueError: If `r` does not divide `c`.
    """

    def __init__(self, c: int, r: int = 16):
        super().__init__()
        if c % r:
            raise ValueError(f"r = {r} does not divide c = {c} channels")

        # Two thin matrices and not one of $c \times c$: the detour through $c/r$
        # units makes the gate $r/2$ times smaller.
        #
        # Eq. 3 has no biases, and Section 6 found that a ResNet models its channels
        # better without. The models that the authors released do have them (the demo
        # counts how many). This page follows the paper.
        #
        # *The note* takes $r = 8$ and mentions neither the detour nor the ReLU in
        # the middle of it. In the paper $r$ is 16 unless it says otherwise
        # (Section 5.1), and without the ReLU the two matrices would be one.
        self.w1 = nn.Linear(c, c // r, bias=False)
        self.w2 = nn.Linear(c // r, c, bias=False)

    def squeeze(self, u: Tensor) -> Tensor:  # [b c h w] -> [b c]
        """Forget *where*, keep *how much*: one number a channel (Eq. 2)."""
        return reduce(u, "b c h w -> b c", "mean")

    def excite(self, z: Tensor) -> Tensor:  # [b c] -> [b c]
        """What all channels hold decides how far each one opens (Eq. 3)."""
        hidden = self.w1(z).relu()  # b c/r

        # A sigmoid and not a softmax, for channels do not compete: several may be
        # turned up at once. With a ReLU in its place SE-ResNet-50 does worse than
        # ResNet-50 (Table 12).
        return self.w2(hidden).sigmoid()

    def forward(self, u: Tensor) -> Tensor:  # [b c h w] -> [b c h w]
        """Squeeze, excite, scale (Eq. 4)."""
        z = self.squeeze(u)
        s = self.excite(z)
        return u * rearrange(s, "b c -> b c 1 1")


# ## Inside a residual network


def se_resnet50(n_classes: int = 1000, r: int = 16) -> nn.Sequential:
    """
    SE-ResNet-50 (Table 1). The gate fits wherever there are channels. In a ResNet it
    closes the residual branch, just before the sum, so the shortcut stays an identity
    (Figure 3).
    """
    gate = partial(SqueezeExcite, r=r)

    # The stride sits in the first convolution of a block, as in the authors' models.
    # Today it is usually in the second, which costs a little more time.
    return resnet(partial(Bottleneck, gate=gate, early=True), n_classes=n_classes)


# ## A task that needs a gate


def witnesses(b: int) -> tuple[Tensor, Tensor, Tensor]:  # [] -> [b c h w], [b], [b]
    """
    Images of 8 noisy channels. Channels 1 and 2 both testify to the label (±1), but
    one of them guesses, a different one from image to image. Channel 0 says whom to
    trust.
    """
    tip, label, guess = 2.0 * torch.randint(2, (3, b)) - 1
    means = torch.zeros(b, 8)
    means[:, 0] = tip
    means[:, 1] = torch.where(tip > 0, label, guess)
    means[:, 2] = torch.where(tip < 0, label, guess)
    images = rearrange(means, "b c -> b c 1 1") + torch.randn(b, 8, 6, 5)
    return images, tip, label


def accuracy(block: nn.Module) -> float:
    """Train `block`, average pooling and a linear classifier; test on new images."""
    pool = Reduce("b c h w -> b c", "mean")
    model = nn.Sequential(block, pool, nn.Linear(8, 1), nn.Flatten(0))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(100):
        images, _, label = witnesses(64)
        softplus(-label * model(images)).mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    images, _, label = witnesses(2000)
    return (model(images) * label > 0).float().mean().item()


# ## Demo


def demo() -> None:
    """Check the price against the paper, then what a gate sees and what it learns."""
    torch.manual_seed(0)
    with torch.device("meta"):  # counts weights, computes nothing
        model = se_resnet50().eval()

    # **The price in weights.** A block adds $2c^2/r$, a network $N_s$ of them in
    # stage $s$.
    stages = [(256, 3), (512, 4), (1024, 6), (2048, 3)]  # channels and blocks
    gates = [m for m in model.modules() if isinstance(m, SqueezeExcite)]
    extra = sum(p.numel() for gate in gates for p in gate.parameters())
    total = sum(p.numel() for p in model.parameters())
    assert extra == 2 / 16 * sum(n * c**2 for c, n in stages)  # Eq. 5
    assert round(extra / 1e6, 1) == 2.5  # Section 4: "∼2.5 million"
    assert round(100 * extra / (total - extra)) == 10  # Section 4: "∼10%"
    assert round(total / 1e6, 1) == 28.1  # Table 10, r = 16
    biases = sum(gate.w1.out_features + gate.w2.out_features for gate in gates)
    print(f"with biases, as released: {biases:,} more")

    # **The price in arithmetic.** A gate uses each of its weights once an image, and
    # touches each value once to squeeze and once to scale. (What the paper calls FLOPs
    # are multiply-adds; PyTorch counts each as two.)
    plain = 1e9 * gigaflops(model) - extra
    values = sum(n * c * (56 * 256 / c) ** 2 for c, n in stages)
    assert round(plain / 1e9, 2) == 3.86  # Table 2, GFLOPs of ResNet-50
    assert round((plain + extra + 2 * values) / 1e9, 2) == 3.87  # SE-ResNet-50

    # **A gate cannot see where.** The squeeze forgets position, so shuffling the
    # pixels moves no gate.
    se, u = SqueezeExcite(64), torch.randn(2, 64, 9, 7)
    pixels = rearrange(u, "b c h w -> b c (h w)")[..., torch.randperm(63)]
    shuffled = rearrange(pixels, "b c (h w) -> b c h w", h=9)
    s = se.excite(se.squeeze(u))
    torch.testing.assert_close(se.excite(se.squeeze(shuffled)), s)  # Eq. 2

    # **A gate sees every channel.** Raise one and the gates of the *others* move,
    # which one weight a channel could never do. And several may be open at once.
    louder = u.clone()
    louder[:, 0] += 5
    moved = se.excite(se.squeeze(louder)) - s
    assert moved[:, 1:].abs().max() > 0.01  # Section 3.2: channel dependencies
    assert s.sum(dim=1).min() > 1  # Section 3.2: not mutually exclusive

    # **A gate learns whom to trust.** Alone, the classifier has one weight for each
    # witness, whoever is guessing. Behind the block it hears the right one louder.
    heard, alone, swings = [], [], []
    for seed in range(3):
        torch.manual_seed(seed)
        se = SqueezeExcite(8, r=2)
        heard.append(accuracy(se))
        alone.append(accuracy(nn.Identity()))
        images, tip, _ = witnesses(1000)
        s = se.excite(se.squeeze(images))
        trust_1, trust_2 = s[tip > 0].mean(dim=0), s[tip < 0].mean(dim=0)
        swings.append((trust_1[1] - trust_1[2]) - (trust_2[1] - trust_2[2]))
    assert min(heard) > 0.99  # Section 3.2: dynamics conditioned on the input
    assert max(alone) < 0.8  # the same classifier without the block
    assert min(swings) > 0.1  # gate 1 against gate 2, as the tip changes

    _, ax = plt.subplots(figsize=(6, 2.2), layout="constrained")
    for shares, width, whom in [(trust_1, -0.4, 1), (trust_2, 0.4, 2)]:
        label = f'"trust channel {whom}"'
        ax.bar(range(8), shares.tolist(), width, align="edge", label=label)
    ax.set(xlabel="channel", ylabel="mean gate", xticks=range(8))
    ax.legend(title="channel 0 says", frameon=False, bbox_to_anchor=(1, 1))


if __name__ == "__main__":
    demo()
