r"""
---
title: Non-local Neural Networks
authors: [Xiaolong Wang, Ross Girshick, Abhinav Gupta, Kaiming He]
year: 2018
venue: CVPR
arxiv: "1711.07971"
code: https://github.com/facebookresearch/video-nonlocal-net
topic: attention
tags: [self-attention, video]
zh: 非局部神经网络
note: non-local
idea: let every pixel average over all that resemble it
compare:
  self-attention: has this sum in every layer, with a scale, and with several heads
  danet: adds a second one, in which channels attend to channels
  external-attention: compares the positions with a small learned memory instead
  lambda-networks: sums up the positions once, before any of them asks
cost:
  parameters: $2c^2$ a block
  time: $O(nmc)$ for $n$ positions that ask and $m$ that answer
---

**The problem.** A convolution looks one step far. What is far apart in an image, or in
time, meets only after many layers, and each of them has to learn to pass it on.

**The idea.** Non-local means, an old way to remove noise, replaces a pixel by the mean
of all pixels that resemble it, wherever they are. Put into a network, with a learned
resemblance $f$ (Eq. 1):

$$y_i = \frac{1}{C(x)} \sum_j f(x_i, x_j)\,g(x_j)$$

With $f$ an exponential this is self-attention, here in space and time.

**The cost.** Every pair of positions is compared. So the blocks go where the map is
already small, and $j$ runs over a quarter of the positions (Section 3.3).

**What is lost.** Place. Eq. 1 does not know which positions are neighbours, so it
comes on top of convolutions and not instead of them.

Letters: `b` batch, `c` channels, `t h w` frames, height and width, `n` positions that
ask, `m` positions that answer, `d` channels inside, `c_in` `c_out` channels of a layer.
"""

from functools import partial

import matplotlib.pyplot as plt
import torch
from einops import einsum, rearrange, repeat
from einops.layers.torch import Reduce
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from convolution.resnet import Bottleneck, resnet

# ## The block


class NonLocal(nn.Module):
    r"""
    $z_i = W_z y_i + x_i$ (Eq. 6), with the embedded Gaussian, the paper's choice:

    $$f(x_i, x_j) = e^{\theta(x_i)^\top \phi(x_j)}, \qquad C(x) = \sum_j f(x_i, x_j)$$

    Args:
        c: Channels of the input, an image or a video.
        pool: Side of the squares in space of which only the maximum answers.

    Raises:
        ValueError: If `c` is odd, or an input is smaller than one square.
    """

    def __init__(self, c: int, pool: int = 1):
        super().__init__()
        if c % 2:
            raise ValueError(f"c = {c} channels cannot be halved")
        self.pool, d = pool, c // 2

        # Half the channels inside, for half the work (Section 3.3). The paper's are
        # matrices; in the released code they have biases.
        self.theta, self.phi, self.g = (nn.Linear(c, d, bias=False) for _ in range(3))
        self.w_z = nn.Linear(d, c, bias=False)

        # The scale of this batch norm starts at zero, so the block starts as the
        # identity (Section 4.1) and can be put into a trained network without harm.
        self.norm = nn.BatchNorm1d(c)
        nn.init.zeros_(self.norm.weight)

    def score(self, x: Tensor, x_hat: Tensor) -> Tensor:  # [b n c], [b m c] -> [b n m]
        r"""$\theta(x_i)^\top \phi(x_j)$ (Eq. 3)."""
        return einsum(self.theta(x), self.phi(x_hat), "b n d, b m d -> b n m")

    def weigh(self, x: Tensor, x_hat: Tensor) -> Tensor:  # [b n c], [b m c] -> [b n m]
        """What each position takes from each other: $f / C$."""
        scores = self.score(x, x_hat)

        # The sum in $C$ runs over $j$, so this is a softmax over those who answer.
        # There is no $1/\sqrt d$ as in the Transformer. The released code has one
        # (`NONLOCAL.USE_SCALE`), the paper has not; this page follows the paper.
        return scores.softmax(dim=-1)

    def subsample(self, x: Tensor) -> Tensor:  # [b c t h w] -> [b m c]
        r"""Positions of $\hat x$ (Section 3.3): fewer in space, never in time."""
        c, h, w = x.shape[1], *x.shape[-2:]
        if min(h, w) < self.pool:
            raise ValueError(f"a map of {h} x {w} is smaller than pool = {self.pool}")

        # The formula of Section 3.3 pools $x$, the sentence below it pools $\phi$ and
        # $g$. The released code pools $x$, which is cheaper, and so does this page.
        maps = rearrange(x, "b c ... h w -> b (c ...) h w")
        pooled = F.max_pool2d(maps, self.pool)
        return rearrange(pooled, "b (c t) h w -> b (t h w) c", c=c)

    def forward(self, x: Tensor) -> Tensor:  # [b c t h w] -> [b c t h w]
        """Every position of an image or a video asks."""
        asking = rearrange(x, "b c ... -> b (...) c")
        answering = self.subsample(x)
        a = self.weigh(asking, answering)
        y = einsum(a, self.g(answering), "b n m, b m d -> b n d")
        residual = self.norm(rearrange(self.w_z(y), "b n c -> b c n"))
        return x + residual.reshape(x.shape)


# ## Other ways to resemble


class Gaussian(NonLocal):
    r"""The features themselves, without $\theta$ and $\phi$ (Eq. 2)."""

    def __init__(self, c: int, pool: int = 1):
        super().__init__(c, pool)
        del self.theta, self.phi

    def score(self, x: Tensor, x_hat: Tensor) -> Tensor:  # [b n c], [b m c] -> [b n m]
        r"""$x_i^\top x_j$, on all channels."""
        return einsum(x, x_hat, "b n c, b m c -> b n m")


class DotProduct(NonLocal):
    """No exponential; $C(x)$ is the number of positions that answer (Eq. 4)."""

    def weigh(self, x: Tensor, x_hat: Tensor) -> Tensor:  # [b n c], [b m c] -> [b n m]
        """Weights that may be negative and need not sum to 1."""
        return self.score(x, x_hat) / x_hat.shape[1]


class Concatenation(DotProduct):
    r"""$f(x_i, x_j) = \mathrm{relu}(w_f^\top [\theta(x_i), \phi(x_j)])$ (Eq. 5)."""

    def __init__(self, c: int, pool: int = 1):
        super().__init__(c, pool)
        self.w_f = nn.Linear(c, 1, bias=False)

    def score(self, x: Tensor, x_hat: Tensor) -> Tensor:  # [b n c], [b m c] -> [b n m]
        """Nothing has to be concatenated: a number of $i$ and a number of $j$."""
        w_i, w_j = self.w_f.weight[0].chunk(2)
        of_i = einsum(self.theta(x), w_i, "b n d, d -> b n")
        of_j = einsum(self.phi(x_hat), w_j, "b m d, d -> b m")
        pairs = rearrange(of_i, "b n -> b n 1") + rearrange(of_j, "b m -> b 1 m")
        return pairs.relu()


# ## Inside a network for video


class PerFrame(nn.Module):
    """A layer for images, applied to every frame, or to every second one."""

    def __init__(self, layer: nn.Module, stride: int = 1):
        super().__init__()
        self.layer, self.stride = layer, stride

    def forward(self, x: Tensor) -> Tensor:  # [b c_in t h w] -> [b c_out t' h' w']
        """To the layer, frames are more of the batch."""
        images = rearrange(x[:, :, :: self.stride], "b c t h w -> (b t) c h w")
        return rearrange(self.layer(images), "(b t) c h w -> b c t h w", b=len(x))


# The stages that the paper calls res3 and res4, with their channels and after which of
# their residual blocks the five non-local blocks stand: in ResNet-50 after every other
# one (Section 5.1), in ResNet-101 after these of 4 and of 23 (released code).
FIVE = {"stage2": (512, (2, 4)), "stage3": (1024, (7, 14, 21))}


def non_local_resnet101(n_classes: int = 400) -> nn.Sequential:
    """
    The ResNet on frames of Table 1, which only pools over time, with five blocks.

    Args:
        n_classes: Classes to tell apart; 400 in Kinetics.
    """
    # Table 1 has maps of 56 after the first pooling, the released code 55, for it does
    # not pad in space. With 55, and blocks that stride as in the paper on ResNet, the
    # multiply-adds are those of Table 2e.
    net = resnet(partial(Bottleneck, early=True), (3, 4, 23, 3), n_classes=n_classes)
    layers = [PerFrame(net.stem[:2], stride=2), nn.MaxPool3d(3, 2, (1, 0, 0))]
    for stage in "stage1", "stage2", "stage3", "stage4":
        c, after = FIVE.get(stage, (0, ()))
        for i, block in enumerate(getattr(net, stage), 1):
            layers.append(PerFrame(block))
            if i in after:
                layers.append(NonLocal(c, pool=2))
        if stage == "stage1":
            layers.append(nn.MaxPool3d((3, 1, 1), (2, 1, 1), (1, 0, 0)))
    return nn.Sequential(*layers, Reduce("b c t h w -> b c", "mean"), net.head[1])


def price(model: nn.Module, *shape: int) -> Tensor:
    """Weights (not those of batch norms) and multiply-adds for an input of `shape`."""
    norms = nn.BatchNorm1d, nn.BatchNorm2d
    layers = [m for m in model.modules() if not isinstance(m, norms)]
    weights = sum(p.numel() for m in layers for p in m.parameters(recurse=False))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(torch.empty(shape, device="meta"))
    return torch.tensor([weights, counter.get_total_flops() / 2], dtype=torch.double)


# ## A task that needs memory


def shells(b: int) -> tuple[Tensor, Tensor]:  # [] -> [b c t h w], [b h w]
    """
    Videos of 12 shells, each of another colour. In the first frame each shows its
    number. Then the lights are out, the shells are moved, and the last frame asks.
    """
    colour = F.normalize(torch.randn(b, 4, 12), dim=1)
    number = torch.randn(b, 1, 12)
    moved = torch.rand(b, 1, 12).argsort(dim=-1)
    video = torch.zeros(b, 8, 5, 12)  # number, colour, three to spare
    video[:, 0, 0] = number[:, 0]
    video[:, 1:5, 0] = colour
    video[:, 1:5, -1] = colour.gather(-1, repeat(moved, "b 1 n -> b c n", c=4))
    answer = number.gather(-1, moved)
    video = rearrange(video, "b c t (h w) -> b c t h w", h=3)
    return video, rearrange(answer, "b 1 (h w) -> b h w", h=3)


def convolutions() -> nn.Sequential:
    """Three layers of 3 by 3 by 3: each sees three frames far."""
    layers = [nn.Conv3d(8, 8, 3, padding=1) for _ in range(3)]
    return nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])


def error(model: nn.Module, steps: int) -> float:
    """Train `model` to write the numbers into channel 0; its error on new videos."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(steps):
        video, answer = shells(16)
        (model(video)[:, 0, -1] - answer).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    video, answer = shells(500)
    return (model.eval()(video)[:, 0, -1] - answer).square().mean().item()


# ## Demo


def demo() -> None:
    """Check the price against the paper, then what the block is and how far it sees."""
    torch.manual_seed(0)

    # **The price of a block.** Four matrices of $c^2/2$. With 2 × 2 pooling a quarter
    # of the positions answer, so $\phi$, $g$ and the pairs cost a quarter.
    with torch.device("meta"):  # counts weights, computes nothing
        res3, res4 = NonLocal(512, pool=2), NonLocal(1024, pool=2)
        unpooled, model = NonLocal(1024), non_local_resnet101()
    n, c = 4 * 14 * 14, 1024
    _, full = price(unpooled, 1, c, 4, 14, 14)
    _, quarter = price(res4, 1, c, 4, 14, 14)
    assert full == 4 * n * c * c / 2 + 2 * n * n * c / 2  # Figure 2
    assert quarter == 2.5 * n * c * c / 2 + 2 * n * (n / 4) * c / 2  # Section 3.3

    # **The price of a network.** Five blocks add a fifth, in weights and in
    # multiply-adds. (The printed 43.2M leave out batch norm; with it they are 43.3M.)
    total = price(model, 1, 3, 32, 224, 224)
    five = 2 * price(res3, 1, 512, 4, 28, 28) + 3 * price(res4, 1, c, 4, 14, 14)
    weights, multiply_adds = (total - five).tolist()
    more = total / (total - five)
    assert round(weights / 1e6, 1) == 43.2  # Table 2e, C2D baseline
    assert round(multiply_adds / 1e9, 1) == 34.2  # Table 2e, C2D baseline
    assert [round(x, 1) for x in more.tolist()] == [1.2, 1.2]  # Table 2e

    # **At first, nothing.** A new block leaves what it gets untouched. From here on
    # its batch norm is switched on.
    block, x = NonLocal(8).eval(), torch.randn(2, 8, 5, 3, 4)
    assert torch.equal(block(x), x)  # Section 4.1
    nn.init.ones_(block.norm.weight)

    # **It is self-attention.** One head, without the scale.
    i = rearrange(x, "b c t h w -> b (t h w) c")
    y = einsum(block.weigh(i, i), block.g(i), "b n m, b m d -> b n d")
    q, k, v = block.theta(i), block.phi(i), block.g(i)
    attention = F.scaled_dot_product_attention(q, k, v, scale=1)
    torch.testing.assert_close(y, attention)  # Section 3.2

    # **It knows no place.** Shuffle all positions, across frames too, and the output
    # is shuffled alike.
    order = torch.randperm(60)
    mixed = x.flatten(2)[..., order].view_as(x)
    expected = block(x).flatten(2)[..., order].view_as(x)
    torch.testing.assert_close(block(mixed), expected)  # Eq. 1: a sum over all j

    # **How far it sees.** From the last frame one block reaches the first, three
    # convolutions do not.
    x.requires_grad_()
    reach = []
    for model in (block, convolutions()):
        (gradient,) = torch.autograd.grad(model(x)[:, :, -1].square().sum(), x)
        reach.append(gradient[:, :, 0].abs().max().item())
    assert reach[0] > 1e-4  # Section 3.1: all positions j
    assert reach[1] == 0  # three frames far, the first is four away

    # **The shell game.** A single block, and nothing else, learns to look up in the
    # first frame what the last one asks. For convolutions that cannot see so far, the
    # best guess is 0, with a mean squared error of 1.
    #
    # On Kinetics all four kinds of $f$ help alike (Table 2a), and the authors conclude
    # that it is not the softmax that matters but to be non-local. Here it matters. A
    # dot product cannot silence the eleven other shells, and concatenation does not
    # compare at all: it *adds* a number of $i$ and one of $j$.
    rows = []
    for seed in range(3):
        torch.manual_seed(seed)
        kinds = NonLocal(8), DotProduct(8), Concatenation(8)
        rows.append([error(model, steps=60) for model in kinds])
        rows[-1].append(error(convolutions(), steps=20))
    embedded, dot, concatenated, local = zip(*rows, strict=True)
    assert max(embedded) < 0.2  # one non-local block
    assert min(local) > 0.9  # three convolutions
    assert min(dot + concatenated) > 0.4  # what follows from Eqs. 4 and 5

    # The figure: where the marked shell of the last frame looks. It finds its colour
    # twice, here and where it was.
    video, _ = shells(1)
    i = rearrange(video, "b c t h w -> b (t h w) c")
    a = rearrange(kinds[0].weigh(i, i)[0, -6], "(t h w) -> t h w", t=5, h=3).detach()
    _, axes = plt.subplots(1, 6, figsize=(8, 1.9), layout="constrained")
    names = "one block", "dot product", "concatenation", "convolutions"
    axes[0].barh(names, torch.tensor(rows).mean(dim=0).tolist())
    axes[0].invert_yaxis()
    axes[0].set(title="error")
    for t in range(5):
        axes[1 + t].imshow(a[t].numpy(), vmin=0, vmax=1)
        axes[1 + t].set(xticks=[], yticks=[], title=f"frame {t + 1}")
    axes[5].scatter(2, 1, marker="x", color="red")


if __name__ == "__main__":
    demo()
