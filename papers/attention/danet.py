r"""
---
title: Dual Attention Network for Scene Segmentation
authors: [Jun Fu, Jing Liu, Haijie Tian, Yong Li, Yongjun Bao, Zhiwei Fang, Hanqing Lu]
year: 2019
venue: CVPR
arxiv: "1809.02983"
code: https://github.com/junfu1115/DANet
topic: attention
tags: [channel attention, segmentation, self-attention]
zh: 双重注意力网络（DANet）
note: danet
idea: let pixels attend to pixels and channels to channels, side by side
compare:
  non-local: is the position branch alone, put inside a network for video
  self-attention: scales its scores, has several heads, and is told where a token stands
  external-attention: compares pixels with a learned memory, at linear cost
  se-net: lets the whole image decide how loud a channel is, not what it mixes with
cost:
  parameters: $\tfrac{5}{4}c^2$ for positions, one number for channels
  time: $O(n^2 c)$ for positions, $O(nc^2)$ for channels, $n = hw$
---

**The problem.** A network that labels each pixel looks through a window. Whether this
grey patch is road or wall may be decided by a patch at the other end of the image.

**The idea.** Two attentions, side by side. In one, every *position* collects from all
positions that resemble it (Section 3.2). In the other, every *channel* collects from
all channels (Section 3.3). Each result is added to the input, and the two are summed.

**The cost.** The map of positions has $n^2$ entries: 85 million for one crop of
Cityscapes. The map of channels has $c^2$, whatever the image.

**What is lost.** Place: a pixel far away counts as much as a neighbour. And scale, for
no score is divided by anything. In the channel branch that has consequences (below).

*The note* leaves out the two learned scales and the residuals. The code it links to
fixes 512 channels and maps of 7 × 7, adds linear layers to the channel branch and has
no scales. This page follows the paper, and says where the authors' code differs.

Letters: `b` batch, `c` channels, `h w` height and width, `n` pixels that collect,
`m` pixels collected from, `i j` two channels, `q` features of a query, `k` classes.
"""

import matplotlib.pyplot as plt
import torch
from einops import einsum, rearrange
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from convolution.resnet import Bottleneck, conv_bn, resnet

# ## Between positions


class PositionAttention(nn.Module):
    r"""
    With $B$, $C$ and $D$ three $1 \times 1$ convolutions of the input $A$,

    $$s_{ji} = \frac{\exp(B_i \cdot C_j)}{\sum_i \exp(B_i \cdot C_j)}, \qquad
      E_j = \alpha \sum_i s_{ji} D_i + A_j$$

    Args:
        c: Channels.
        r: How many times narrower $B$ and $C$ are.

    Raises:
        ValueError: If `r` does not divide `c`.
    """

    def __init__(self, c: int, r: int = 8):
        super().__init__()
        if c % r:
            raise ValueError(f"r = {r} does not divide c = {c} channels")

        # In the paper $B$ and $C$ keep all channels ($r = 1$). In the authors' code
        # they have an eighth, and here too.
        self.query = nn.Conv2d(c, c // r, 1)  # C
        self.key = nn.Conv2d(c, c // r, 1)  # B
        self.value = nn.Conv2d(c, c, 1)  # D

        # Closed at first. A network trained without attention can take it in and
        # opens it as far as it helps.
        self.alpha = nn.Parameter(torch.zeros(()))

    def attend(self, a: Tensor) -> Tensor:  # [b c h w] -> [b n m]
        """How much each pixel collects from every other (Eq. 1)."""
        query = rearrange(self.query(a), "b q h w -> b (h w) q")
        key = rearrange(self.key(a), "b q h w -> b (h w) q")
        return einsum(query, key, "b n q, b m q -> b n m").softmax(dim=-1)

    def forward(self, a: Tensor) -> Tensor:  # [b c h w] -> [b c h w]
        """What a pixel collects, on top of what it holds (Eq. 2)."""
        s = self.attend(a)
        value = rearrange(self.value(a), "b c h w -> b c (h w)")
        collected = einsum(s, value, "b n m, b c m -> b c n")
        return self.alpha * collected.view_as(a) + a


# ## Between channels


class ChannelAttention(nn.Module):
    r"""
    Queries, keys and values are the channels $A_j$ themselves:

    $$x_{ji} = \frac{\exp(A_i \cdot A_j)}{\sum_i \exp(A_i \cdot A_j)}, \qquad
      E_j = \beta \sum_i x_{ji} A_i + A_j$$
    """

    # Convolutions would mix the channels before they are compared, and it is their own
    # relations that are wanted (Section 3.3). So $\beta$ is the only thing to learn.
    # *The note* plans to show that there is nothing.
    def __init__(self):
        super().__init__()
        self.beta = nn.Parameter(torch.zeros(()))

    def energy(self, a: Tensor) -> Tensor:  # [b c h w] -> [b i j]
        """How alike two channels are: summed over all pixels, not averaged."""
        return einsum(a, a, "b i h w, b j h w -> b i j")

    def attend(self, a: Tensor) -> Tensor:  # [b c h w] -> [b i j]
        """How much each channel collects from every other (Eq. 3)."""
        return self.energy(a).softmax(dim=-1)

    def forward(self, a: Tensor) -> Tensor:  # [b c h w] -> [b c h w]
        """What a channel collects, on top of what it holds (Eq. 4)."""
        x = self.attend(a)
        collected = einsum(x, a, "b i j, b j h w -> b i h w")
        return self.beta * collected + a


class ContraryChannelAttention(ChannelAttention):
    """
    What the authors' code computes. It takes the softmax of `max - energy`. The maximum
    of a row cancels, the minus stays: a channel collects from those *least* like it.
    """

    # Asked about it, the authors speak of divergence in training (issue 9 of their
    # repository), which `energy - max` would prevent and this does not need. Nor did
    # they try the other sign (issue 11). Copies of the code that "fix" the line compute
    # Eq. 3. The released weights want this.
    def attend(self, a: Tensor) -> Tensor:  # [b c h w] -> [b i j]
        """Eq. 3 with its sign turned."""
        return (-self.energy(a)).softmax(dim=-1)


# ## Side by side


def branch(c_in: int, c: int, attention: nn.Module) -> nn.Sequential:
    """An attention between two convolutions (Section 3.4)."""
    before = conv_bn(c_in, c, 3), nn.ReLU()
    after = conv_bn(c, c, 3), nn.ReLU()
    return nn.Sequential(*before, attention, *after)


class DANetHead(nn.Module):
    """
    Both branches and their sum, each with a classifier.

    Args:
        c_in: Channels of the backbone.
        k: Classes.
    """

    def __init__(self, c_in: int, k: int):
        super().__init__()
        c = c_in // 4
        self.position = branch(c_in, c, PositionAttention(c))
        self.channel = branch(c_in, c, ChannelAttention())

        # Only the sum's labels count in the end. In training the branches are judged
        # on their own as well.
        self.classify = nn.ModuleList(
            nn.Sequential(nn.Dropout2d(0.1), nn.Conv2d(c, k, 1)) for _ in range(3)
        )

    def forward(self, x: Tensor) -> list[Tensor]:  # [b c h w] -> [b k h w]
        """Scores from the sum, from positions alone, from channels alone."""
        position, channel = self.position(x), self.channel(x)
        seen = position + channel, position, channel
        return [judge(y) for judge, y in zip(self.classify, seen, strict=True)]


# ## On a dilated ResNet


def dilate(stage: nn.Sequential, dilation: int) -> None:
    """Keep a stage's map as large as its input: spread the taps instead of striding."""
    # The first block still sees the grid as it was. Only what follows would have stood
    # on the coarser one.
    for i, block in enumerate(stage):
        spread = dilation if i else dilation // 2
        for conv in block.modules():
            if isinstance(conv, nn.Conv2d):
                conv.stride = 1
                if conv.kernel_size == (3, 3):
                    conv.dilation = conv.padding = (spread, spread)


def danet(k: int = 19) -> nn.Sequential:
    """DANet on ResNet-50; its maps have an eighth of the image's size (Section 3.1)."""
    net = resnet()

    # Three small convolutions instead of one of 7 × 7: the default of the authors'
    # code.
    small = conv_bn(3, 64, 3, 2), nn.ReLU(), conv_bn(64, 64, 3), nn.ReLU()
    net.stem = nn.Sequential(*small, conv_bn(64, 128, 3), *net.stem[1:])
    net.stage1[0] = Bottleneck(128, 256, width=64)

    dilate(net.stage3, 2)
    dilate(net.stage4, 4)
    net.head = DANetHead(2048, k)
    return net


# ## A scene


def scenes(b: int) -> tuple[Tensor, ...]:  # [] -> [b c h w], [b h w], [b h w]
    """
    Six stripes of three materials, the right half in the same order as the left. What a
    material is called changes from image to image, and only the left half says so, in
    three channels of its own. Returns image, names and materials.
    """
    order = torch.rand(b, 3).argsort(dim=1).repeat(1, 2)
    stripes = order.repeat_interleave(3, dim=1)
    material = stripes[:, None].expand(b, 6, 18)
    name = torch.randint(3, (b, 3)).gather(1, stripes)[:, None].expand(b, 6, 18)

    look = 2 * one_hot(material, 3) + 0.5 * torch.randn(b, 6, 18, 3)
    said = 2 * one_hot(name, 3) * (torch.arange(18) < 9)[:, None]
    image = torch.cat([look, said], dim=-1)
    return rearrange(image, "b h w c -> b c h w"), name, material


def train(attention: nn.Module) -> tuple[nn.Module, float]:
    """Train a branch to name every pixel; its accuracy in the right half."""
    model = nn.Sequential(branch(6, 32, attention), nn.Conv2d(32, 3, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        image, name, _ = scenes(8)
        cross_entropy(model(image), name).backward()
        optimizer.step()
        optimizer.zero_grad()

    image, name, _ = scenes(32)
    right = model.eval()(image).argmax(dim=1) == name
    return model, right[..., 9:].float().mean().item()


# ## Demo


def weights(module: nn.Module) -> int:
    """How many numbers a module learns."""
    return sum(p.numel() for p in module.parameters())


def demo() -> None:
    """Check the price, what each map sees and is blind to, then name distant pixels."""
    torch.manual_seed(0)

    # **The price in weights.** Nearly all of what DANet adds to its backbone sits in
    # the four convolutions around the attentions.
    with torch.device("meta"):  # counts weights, computes nothing
        net, position, channel = danet(), PositionAttention(512), ChannelAttention()
        crop = torch.empty(1, 512, 768 // 8, 768 // 8)
    in_attention = weights(position) + weights(channel)
    assert weights(position) == 512**2 * 5 // 4 + 512 * 5 // 4 + 1  # authors' code
    assert weights(channel) == 1  # Section 3.3: only β
    assert weights(net) == 47_586_427  # pytorchcv 0.0.74, danet_resnetd50b_cityscapes
    print(f"weights in the head: {weights(net.head):,}, in attention: {in_attention:,}")

    # **The price in memory.** A crop of 768 × 768 pixels, as the authors test with,
    # becomes 96 × 96 positions. Their map fills 340 MB, that of the channels 1 MB.
    scores, *_ = net(torch.empty(1, 3, 768, 768, device="meta"))
    assert scores.shape[2:] == (96, 96)  # Section 3.1: an eighth of the image
    entries = [module.attend(crop).numel() for module in (position, channel)]
    assert entries == [96**4, 512**2]  # Sections 3.2 and 3.3: N × N and C × C

    # **Nothing at first.** With both scales at 0 the attentions pass on their input.
    a = torch.randn(2, 64, 9, 7).relu()
    position, channel = PositionAttention(64), ChannelAttention()
    assert torch.equal(position(a), a)  # Eq. 2: α is 0 at first
    assert torch.equal(channel(a), a)  # Eq. 4: so is β

    # **No matter how far.** Shuffle the pixels, and what they collect is shuffled
    # alike: no pixel knows where it stands.
    order = torch.randperm(63)
    position.alpha.data.fill_(1)
    shuffled = a.flatten(2)[..., order].view_as(a)
    moved = position(a).flatten(2)[..., order].view_as(a)
    torch.testing.assert_close(position(shuffled), moved)  # Abstract: any distance

    # **What channels collect.** An energy is a sum over all pixels, some hundreds where
    # a softmax is decided by ten. So among unrelated channels, in Eq. 3 each finds only
    # itself, and the branch multiplies its input by $1 + \beta$. Twins share. The
    # authors' code picks the channel *least* alike instead.
    a = torch.randn(1, 64, 33, 31).relu()
    a[:, 1] = a[:, 0]
    x = channel.attend(a)[0]
    contrary = ContraryChannelAttention().attend(a)[0]
    torch.testing.assert_close(x[2:, 2:], torch.eye(62))  # what follows from Eq. 3
    torch.testing.assert_close(x[:2, :2], torch.full((2, 2), 0.5))  # Eq. 3
    least = channel.energy(a)[0].argmin(dim=-1)
    assert torch.equal(contrary.argmax(dim=-1), least)  # the authors' code

    # **What positions collect.** In the right half what to call a pixel is nine pixels
    # away, and two convolutions look two pixels far: alone they guess one of three
    # names. With attention, pixels read the name off their own material on the left.
    named, guessed, linked = [], [], []
    for seed in range(3):
        torch.manual_seed(seed)
        position = PositionAttention(32)
        model, accuracy = train(position)
        named.append(accuracy)
        guessed.append(train(nn.Identity())[1])

        image, name, material = scenes(32)
        with torch.no_grad():
            s = position.attend(model[0][:2](image))
        here = material.flatten(1)
        alike = rearrange(here, "b n -> b n 1") == rearrange(here, "b m -> b 1 m")
        left = torch.arange(6 * 18) % 18 < 9
        linked.append((s * alike * left)[:, ~left].sum(dim=-1).mean())
    assert min(named) > 0.95  # Section 3.2: dependencies over any distance
    assert max(guessed) < 0.5  # the same branch without attention
    assert min(linked) > 0.8  # share that goes to the same material, left half

    i = [len(called.unique()) for called in name].index(3)
    _, axes = plt.subplots(2, 2, figsize=(8, 3), layout="constrained")
    axes[0, 0].imshow(material[i].numpy())
    names = ["ABC"[label] for label in name[i, 0, 1:9:3]] + 3 * ["?"]
    axes[0, 0].set(title="scene", xticks=range(1, 18, 3), xticklabels=names, yticks=[])
    for ax, column in zip(axes.flat[1:], [10, 13, 16], strict=True):
        ax.imshow(s[i, 3 * 18 + column].view(6, 18).numpy())
        ax.plot(column, 3, "o", color="C3")
        ax.set(title="attention of the dot", xticks=[], yticks=[])


if __name__ == "__main__":
    demo()
