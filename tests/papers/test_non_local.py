"""Non-local blocks against loops, against PyTorch's attention and in the authors' layout."""

import pytest
import torch
from attention.non_local import (
    Concatenation,
    DotProduct,
    Gaussian,
    NonLocal,
    PerFrame,
    convolutions,
    non_local_resnet101,
    price,
    shells,
)
from convolution.resnet import Bottleneck, resnet
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

KINDS = [NonLocal, Gaussian, DotProduct, Concatenation]


def awake(kind: type[NonLocal], c: int, pool: int = 1) -> NonLocal:
    """A block whose batch norm is no longer zero."""
    block = kind(c, pool).double()
    block.norm.weight.data.uniform_(0.5, 2)
    block.norm.bias.data.normal_()
    return block


def normalize(block: NonLocal, z: Tensor) -> Tensor:
    """Batch norm of `[b n c]`, written out; in training before it updates its averages."""
    if block.training:
        mean, var = z.mean(dim=(0, 1)), z.var(dim=(0, 1), unbiased=False)
    else:
        mean, var = block.norm.running_mean, block.norm.running_var
    return (z - mean) / (var + block.norm.eps).sqrt() * block.norm.weight + block.norm.bias


def in_loops(block: NonLocal, x: Tensor) -> Tensor:
    """Equations 1 to 6, one pair of positions at a time."""
    b, c, *space = x.shape
    h, w = space[-2:]
    p = block.pool
    pooled = torch.stack(
        [
            x[..., i * p : i * p + p, j * p : j * p + p].amax(dim=(-2, -1))
            for i in range(h // p)
            for j in range(w // p)
        ],
        dim=-1,
    )
    asking, answering = x.flatten(2).mT, pooled.flatten(2).mT
    m = answering.shape[1]
    y = []
    for sample, others in zip(asking, answering, strict=True):
        for i in sample:
            if isinstance(block, Concatenation):
                pairs = [torch.cat([block.theta.weight @ i, block.phi.weight @ j]) for j in others]
                f = [(block.w_f.weight[0] @ pair).relu() for pair in pairs]
            elif isinstance(block, DotProduct):
                f = [(block.theta.weight @ i) @ (block.phi.weight @ j) for j in others]
            elif isinstance(block, Gaussian):
                f = [(i @ j).exp() for j in others]
            else:
                f = [((block.theta.weight @ i) @ (block.phi.weight @ j)).exp() for j in others]
            total = m if isinstance(block, DotProduct) else sum(f)
            terms = [f_j / total * (block.g.weight @ j) for f_j, j in zip(f, others, strict=True)]
            y.append(block.w_z.weight @ sum(terms))
    z = normalize(block, torch.stack(y).view(b, -1, c))
    return x + z.mT.reshape(x.shape)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("shape", "pool"),
    [((2, 4, 3, 2), 1), ((2, 6, 5, 3), 2), ((2, 4, 3, 2, 3), 1), ((2, 4, 3, 5, 4), 2)],
)
@pytest.mark.parametrize("train", [True, False])
def test_forward_and_backward(kind: type, shape: tuple, pool: int, train: bool) -> None:
    torch.manual_seed(0)
    block = awake(kind, shape[1], pool).train(train)
    x = torch.randn(shape, dtype=torch.double, requires_grad=True)
    inputs = (x, *block.parameters())
    expected = in_loops(block, x)
    out = block(x)
    torch.testing.assert_close(out, expected)

    towards = torch.randn_like(out)
    torch.testing.assert_close(
        torch.autograd.grad(out, inputs, towards),
        torch.autograd.grad(expected, inputs, towards),
        rtol=1e-6,
        atol=1e-9,
    )


@pytest.mark.parametrize("pool", [1, 2])
@pytest.mark.parametrize("dot", [True, False])
def test_the_layout_of_the_released_code(dot: bool, pool: int) -> None:
    """Convolutions of size 1 x 1 x 1 on pooled maps, transposed products; without its scale."""
    torch.manual_seed(0)
    block, x = awake(DotProduct if dot else NonLocal, 6, pool).eval(), torch.randn(2, 6, 3, 7, 5)
    block.norm.running_mean.normal_()
    block.norm.running_var.uniform_(0.5, 2)
    x = x.double()
    theta, phi, g, out = (
        layer.weight[..., None, None, None]
        for layer in (block.theta, block.phi, block.g, block.w_z)
    )
    pooled = F.max_pool3d(x, (1, pool, pool), (1, pool, pool))
    affinity = F.conv3d(x, theta).flatten(2).transpose(1, 2) @ F.conv3d(pooled, phi).flatten(2)
    p = affinity / affinity.shape[2] if dot else affinity.softmax(dim=2)
    t = F.conv3d(pooled, g).flatten(2) @ p.transpose(1, 2)
    z = F.conv3d(t.view(2, 3, 3, 7, 5), out)
    norm = nn.BatchNorm3d(6).double().eval()
    norm.load_state_dict(block.norm.state_dict())
    torch.testing.assert_close(block(x), x + norm(z))


@pytest.mark.parametrize("pool", [1, 2])
def test_embedded_gaussian_is_attention_without_the_scale(pool: int) -> None:
    torch.manual_seed(0)
    block = awake(NonLocal, 10, pool)
    x, x_hat = torch.randn(2, 63, 10).double(), torch.randn(2, 63 // pool, 10).double()
    y = block.weigh(x, x_hat) @ block.g(x_hat)
    inputs = block.theta(x), block.phi(x_hat), block.g(x_hat)
    torch.testing.assert_close(y, F.scaled_dot_product_attention(*inputs, scale=1.0))


def test_embedded_gaussian_is_a_head_of_the_transformer() -> None:
    """PyTorch divides by the root of 5, so the queries get it back."""
    torch.manual_seed(0)
    block, x = awake(NonLocal, 10), torch.randn(2, 63, 10).double()
    head = nn.MultiheadAttention(5, 1, bias=False, batch_first=True).double()
    head.in_proj_weight.data = torch.eye(5).double().repeat(3, 1)
    head.out_proj.weight.data = torch.eye(5).double()
    y, a = head(5**0.5 * block.theta(x), block.phi(x), block.g(x))
    torch.testing.assert_close(block.weigh(x, x), a)
    torch.testing.assert_close(block.weigh(x, x) @ block.g(x), y)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("train", [True, False])
def test_a_new_block_is_the_identity_and_can_learn(kind: type, train: bool) -> None:
    torch.manual_seed(0)
    block, x = kind(6).train(train), torch.randn(2, 6, 3, 5, 7)
    assert torch.equal(block(x), x)
    block(x).square().sum().backward()
    assert block.norm.weight.grad.abs().min() > 0


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), t=st.integers(1, 3), h=st.integers(1, 5), w=st.integers(1, 5))
def test_no_sense_of_place(kind: type, seed: int, t: int, h: int, w: int) -> None:
    torch.manual_seed(seed)
    block, x = awake(kind, 4), torch.randn(2, 4, t, h, w).double()
    order = torch.randperm(t * h * w)
    mixed = x.flatten(2)[..., order].view_as(x)
    out = block.eval()(x).flatten(2)[..., order].view_as(x)
    torch.testing.assert_close(block(mixed), out)

    # A video is one long image.
    image = x.reshape(2, 4, 1, t * h * w)
    torch.testing.assert_close(block(image), block(x).reshape(image.shape))


@pytest.mark.parametrize("kind", [NonLocal, Gaussian])
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), n=st.integers(1, 9), m=st.integers(1, 9))
def test_a_softmax_is_a_mean_over_those_who_answer(kind: type, seed: int, n: int, m: int) -> None:
    torch.manual_seed(seed)
    a = kind(4).weigh(torch.randn(2, n, 4), torch.randn(2, m, 4))
    assert a.shape == (2, n, m)
    assert (a >= 0).all()
    torch.testing.assert_close(a.sum(dim=-1), torch.ones(2, n))


def test_pooling_skips_time_and_leaves_who_asks() -> None:
    block, x = NonLocal(4, pool=2), torch.randn(2, 4, 3, 7, 5)
    frames = [F.max_pool2d(x[:, :, t], 2) for t in range(3)]
    assert torch.equal(block.subsample(x), torch.stack(frames, 2).flatten(2).mT)
    assert torch.equal(block.subsample(x[:, :, 1]), frames[1].flatten(2).mT)
    assert block(x).shape == x.shape


def without_blocks(model: nn.Sequential) -> nn.Sequential:
    return nn.Sequential(*[layer for layer in model if not isinstance(layer, NonLocal)])


def test_weights_of_the_whole_network() -> None:
    with torch.device("meta"):
        model = non_local_resnet101()
    plain = without_blocks(model)
    assert price(plain, 1, 3, 32, 224, 224).tolist() == [43_214_416, 34_172_207_104]
    assert sum(p.numel() for p in plain.parameters()) == 43_319_760
    # Four matrices of c * c / 2 for 512 and 1024 channels.
    extra = 2 * (2 * 512**2) + 3 * (2 * 1024**2)
    assert price(model, 1, 3, 32, 224, 224).tolist() == [43_214_416 + extra, 42_299_916_288]


def test_five_blocks_stand_in_the_middle_and_change_nothing_at_first() -> None:
    torch.manual_seed(0)
    model = non_local_resnet101(n_classes=3).eval()
    # A stem, 3 residual blocks and a pooling before each; then after 2, 4 and 7, 14, 21.
    places = [i for i, layer in enumerate(model) if isinstance(layer, NonLocal)]
    assert places == [8, 11, 19, 27, 35]
    video = torch.randn(2, 3, 8, 63, 65)
    with torch.no_grad():
        assert model(video).shape == (2, 3)
        assert torch.equal(model(video), without_blocks(model)(video))


def test_on_a_still_the_network_is_resnet_101() -> None:
    torch.manual_seed(0)
    video_net = without_blocks(non_local_resnet101(n_classes=3).eval())
    image_net = resnet(
        lambda *shape: Bottleneck(*shape, early=True), depths=(3, 4, 23, 3), n_classes=3
    ).eval()
    image_net.load_state_dict(
        dict(zip(image_net.state_dict(), video_net.state_dict().values(), strict=True))
    )
    image_net.stem[2].padding = 0
    image = torch.randn(2, 3, 63, 65)
    with torch.no_grad():
        torch.testing.assert_close(
            video_net(image[:, :, None].expand(-1, -1, 8, -1, -1)), image_net(image)
        )


def test_per_frame() -> None:
    layer, x = nn.Conv2d(2, 5, 3, stride=2), torch.randn(2, 2, 7, 9, 6)
    out = PerFrame(layer, stride=2)(x)
    assert out.shape[2] == 4
    for t in range(4):
        torch.testing.assert_close(out[:, :, t], layer(x[:, :, 2 * t]))


def test_shells_can_be_told_by_their_colours() -> None:
    torch.manual_seed(0)
    video, answer = shells(5)
    first, last = video[:, :, 0].flatten(2), video[:, :, -1].flatten(2)
    same = (first[:, 1:5].mT @ last[:, 1:5]) > 1 - 1e-5
    assert (same.sum(dim=1) == 1).all()
    torch.testing.assert_close((first[:, :1].mT * same).sum(dim=1), answer.flatten(1))
    assert (video[:, :, 1:-1] == 0).all()
    assert (last[:, 0] == 0).all()


def test_three_convolutions_see_three_frames_far() -> None:
    x = torch.randn(1, 8, 5, 3, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(convolutions()(x)[:, :, -1].sum(), x)
    assert (gradient.abs().amax(dim=(0, 1, 3, 4)) > 0).tolist() == [False, *[True] * 4]


@pytest.mark.parametrize("kind", KINDS)
def test_odd_channels(kind: type) -> None:
    with pytest.raises(ValueError, match="c = 7 channels"):
        kind(7)


@pytest.mark.parametrize("shape", [(1, 4, 1, 5), (1, 4, 5, 1), (1, 4, 3, 1, 5)])
def test_maps_smaller_than_a_square(shape: tuple) -> None:
    with pytest.raises(ValueError, match=f"{shape[-2]} x {shape[-1]} is smaller than pool = 2"):
        NonLocal(4, pool=2)(torch.randn(shape))
