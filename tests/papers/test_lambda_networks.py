"""Lambda layers against loops, against attention maps and against lucidrains' layer."""

from collections.abc import Callable

import pytest
import torch
from attention.lambda_networks import (
    ContentOnly,
    LambdaLayer,
    kept,
    lambda_resnet50,
    look,
    signposts,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from lambda_networks import LambdaLayer as TheirLambdaLayer
from torch import Tensor, nn


def in_loops(layer: LambdaLayer, x: Tensor) -> Tensor:
    """Section 3.1 as it is written: one lambda a position, summed over its context."""
    (b, d, rows, columns), h, u = x.shape, layer.h, layer.u
    q, k, v = layer.to_q(x), layer.to_k(x), layer.to_v(x)
    depth, width, r = k.shape[1] // u, d // h, layer.e.weight.shape[-1]
    context = [(i, j) for i in range(rows) for j in range(columns)]
    out = torch.zeros_like(x)
    for image in range(b):
        total = k[image].exp().sum(dim=(1, 2))
        for i, j in context:
            lam = torch.zeros(depth, width, dtype=x.dtype)
            for m, n in context:
                for s in range(u):
                    feature = slice(s * depth, (s + 1) * depth)
                    pair = k[image, feature, m, n].exp() / total[feature]
                    down, right = m - i + r // 2, n - j + r // 2
                    if 0 <= down < r and 0 <= right < r:
                        pair = pair + layer.e.weight[:, s, down, right]
                    lam = lam + torch.outer(pair, v[image, s * width : (s + 1) * width, m, n])
            heads = [q[image, a * depth : (a + 1) * depth, i, j] @ lam for a in range(h)]
            out[image, :, i, j] = torch.cat(heads)
    return out


def as_a_map(layer: LambdaLayer, x: Tensor) -> Tensor:
    """As attention without its softmax: weigh all pairs of positions, then the values."""
    (b, d, rows, columns), h, u = x.shape, layer.h, layer.u
    n, r = rows * columns, layer.e.weight.shape[-1]
    q = layer.to_q(x).view(b, h, -1, n)
    k = layer.to_k(x).view(b, u, -1, n).softmax(-1)
    v = layer.to_v(x).view(b, u, d // h, n)

    i, j = torch.arange(n) // columns, torch.arange(n) % columns
    down, right = i - i[:, None] + r // 2, j - j[:, None] + r // 2
    near = (down >= 0) & (down < r) & (right >= 0) & (right < r)
    e = layer.e.weight[:, :, down.clamp(0, r - 1), right.clamp(0, r - 1)] * near

    weights = torch.einsum("bhkn,bukm->bhunm", q, k) + torch.einsum("bhkn,kunm->bhunm", q, e)
    return torch.einsum("bhunm,buvm->bhvn", weights, v).reshape(x.shape)


SIZES = [
    {"d": 6, "k": 3, "h": 2, "u": 1, "r": 3},
    {"d": 6, "k": 2, "h": 3, "u": 2, "r": 5},
    {"d": 4, "k": 3, "h": 1, "u": 3, "r": 1},
    {"d": 4, "k": 1, "h": 4, "u": 1, "r": 9},
]


@pytest.mark.parametrize("reference", [in_loops, as_a_map])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("train", [True, False])
def test_forward_and_backward(reference: Callable, sizes: dict[str, int], train: bool) -> None:
    torch.manual_seed(0)
    layer = LambdaLayer(**sizes).double().train(train)
    randomise(layer)
    x = torch.randn(2, sizes["d"], 5, 3, dtype=torch.double, requires_grad=True)
    inputs = (x, *layer.parameters())
    out, expected = layer(x), reference(layer, x)
    torch.testing.assert_close(out, expected)

    towards = torch.randn_like(out)
    torch.testing.assert_close(
        torch.autograd.grad(out, inputs, towards), torch.autograd.grad(expected, inputs, towards)
    )


def randomise(layer: LambdaLayer) -> None:
    """Norms that do something, and statistics to do it with."""
    for norm in (layer.to_q[1], layer.to_v[1]):
        nn.init.uniform_(norm.weight, 0.5, 2)
        nn.init.normal_(norm.bias)
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)


def copy(ours: LambdaLayer, theirs: TheirLambdaLayer) -> list[tuple[nn.Parameter, nn.Parameter]]:
    """Our weights into their layer; the pairs of parameters."""
    theirs.norm_q.load_state_dict(ours.to_q[1].state_dict())
    theirs.norm_v.load_state_dict(ours.to_v[1].state_dict())
    pairs = [
        (ours.to_q[0].weight, theirs.to_q.weight),
        (ours.to_k.weight, theirs.to_k.weight),
        (ours.to_v[0].weight, theirs.to_v.weight),
        *zip(ours.to_q[1].parameters(), theirs.norm_q.parameters(), strict=True),
        *zip(ours.to_v[1].parameters(), theirs.norm_v.parameters(), strict=True),
    ]
    for mine, other in pairs:
        other.data.copy_(mine.data)
    return pairs


def agree(
    ours: LambdaLayer,
    theirs: TheirLambdaLayer,
    x: Tensor,
    pairs: list[tuple[nn.Parameter, nn.Parameter]],
) -> tuple[Tensor, Tensor]:
    """Same output and same gradients; those of the two sets of embeddings are returned."""
    out, expected = ours(x), theirs(x)
    torch.testing.assert_close(out, expected)
    towards = torch.randn_like(out)
    e = theirs.pos_conv.weight if theirs.local_contexts else theirs.rel_pos_emb
    mine, other = zip(*pairs, strict=True)
    *gradients, here = torch.autograd.grad(out, (x, *mine, ours.e.weight), towards)
    *expected_gradients, there = torch.autograd.grad(expected, (x, *other, e), towards)
    torch.testing.assert_close(gradients, expected_gradients)
    return here, there


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("u", [1, 3])
def test_a_window_is_their_local_context(u: int, train: bool) -> None:
    torch.manual_seed(0)
    ours = LambdaLayer(12, k=5, h=3, u=u, r=7).double().train(train)
    theirs = TheirLambdaLayer(12, dim_k=5, r=7, heads=3, dim_u=u).double().train(train)
    randomise(ours)
    pairs = copy(ours, theirs)
    theirs.pos_conv.weight.data.copy_(ours.e.weight.data[:, :, None])
    theirs.pos_conv.bias.data.zero_()
    x = torch.randn(2, 12, 9, 5, dtype=torch.double, requires_grad=True)
    here, there = agree(ours, theirs, x, pairs)
    torch.testing.assert_close(here, there[:, :, 0])


@pytest.mark.filterwarnings("ignore:torch.meshgrid")
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("u", [1, 2])
def test_a_wide_window_is_their_global_context(u: int, train: bool) -> None:
    torch.manual_seed(0)
    ours = LambdaLayer(8, k=3, h=2, u=u, r=9).double().train(train)
    theirs = TheirLambdaLayer(8, dim_k=3, n=5, heads=2, dim_u=u).double().train(train)
    randomise(ours)
    pairs = copy(ours, theirs)
    theirs.rel_pos_emb.data.copy_(ours.e.weight.data.permute(2, 3, 0, 1))
    x = torch.randn(2, 8, 5, 5, dtype=torch.double, requires_grad=True)
    here, there = agree(ours, theirs, x, pairs)
    torch.testing.assert_close(here, there.permute(2, 3, 0, 1))

    # Theirs works for that size alone.
    other = torch.randn(2, 8, 7, 3, dtype=torch.double)
    assert ours(other).shape == other.shape
    with pytest.raises(RuntimeError):
        theirs(other)


def test_weights_of_a_layer() -> None:
    ours = LambdaLayer(32, r=7)
    theirs = TheirLambdaLayer(32, dim_k=16, r=7)
    weights, their_weights = (sum(p.numel() for p in m.parameters()) for m in (ours, theirs))
    assert weights == 32 * (4 * 16 + 16 + 8) + 2 * (4 * 16 + 8) + 16 * 7 * 7
    assert their_weights == weights + 16  # their embeddings have a bias
    assert "e.weight" in ours.state_dict()


def of_resnet50(k: int = 16, h: int = 4, u: int = 1, r: int = 23) -> int:
    """ResNet-50 has 25,557,032 weights; take its 3 by 3 convolutions out, put lambdas in."""
    total = 25_557_032
    for width, depth in [(64, 3), (128, 4), (256, 6), (512, 3)]:
        v = width // h
        projections = (width + 2) * (h * k + u * v) + width * u * k
        total += depth * (projections + u * k * r * r - 9 * width * width)
    return total


@pytest.mark.parametrize(
    ("sizes", "printed"),
    [
        ({}, 15.0),
        ({"u": 4, "r": 7}, 16.0),
        ({"k": 4}, 14.7),
        ({"k": 8}, 14.8),
        ({"k": 32}, 15.4),
    ],
)
def test_weights_of_the_whole_network(sizes: dict[str, int], printed: float) -> None:
    with torch.device("meta"):
        model = lambda_resnet50(**sizes)
    total = sum(p.numel() for p in model.parameters())
    assert total == of_resnet50(**sizes)
    assert round(total / 1e6, 1) == printed


def test_weights_that_others_count() -> None:
    # The models of d-li14/lambda.pytorch have 14.995 million; their embeddings have biases.
    assert of_resnet50() + 16 * 16 == 14_995_848


@pytest.mark.parametrize(
    ("sizes", "printed"),
    [({"k": 2}, 14.7), ({"k": 8, "h": 2}, 14.8), ({"k": 8, "h": 16}, 15.6)],
)
def test_printed_counts_that_do_not_follow(sizes: dict[str, int], printed: float) -> None:
    assert round(of_resnet50(**sizes) / 1e6, 1) != printed


def test_the_whole_network_classifies() -> None:
    model = lambda_resnet50(n_classes=7, k=2, r=5).eval()
    assert sum(isinstance(m, LambdaLayer) for m in model.modules()) == 16
    assert sum(isinstance(m, nn.AvgPool2d) for m in model.modules()) == 3
    assert not [m for m in model[1:].modules() if getattr(m, "kernel_size", None) == (3, 3)]
    with torch.no_grad():
        assert model(torch.randn(1, 3, 63, 65)).shape == (1, 7)


@pytest.mark.parametrize(("stride", "i", "j"), [(1, 9, 7), (2, 9, 7), (2, 8, 6)])
def test_stride(stride: int, i: int, j: int) -> None:
    layer = look(8, stride, k=3, h=2, r=5)
    assert layer(torch.randn(2, 8, i, j)).shape == (2, 8, -(-i // stride), -(-j // stride))


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    h=st.integers(1, 3),
    u=st.integers(1, 3),
    r=st.sampled_from([1, 3, 5]),
    i=st.integers(1, 6),
    j=st.integers(1, 6),
)
def test_what_a_lambda_knows(seed: int, h: int, u: int, r: int, i: int, j: int) -> None:
    torch.manual_seed(seed)
    layer = LambdaLayer(2 * h, k=3, h=h, u=u, r=r).double().eval()
    x = torch.randn(2, 2 * h, i, j, dtype=torch.double)
    _, k, v = layer.project(x)

    # A row of the content lambda is a mean of the values (u means, in all).
    torch.testing.assert_close(k.sum(dim=-1), torch.ones(2, u, 3, dtype=torch.double))
    content = layer.content_lambda(k, torch.ones_like(v))
    torch.testing.assert_close(content, torch.full_like(content, u))

    # Both lambdas are linear in the values.
    w = torch.randn_like(v)
    for part in (layer.position_lambdas, lambda values: layer.content_lambda(k, values)):
        torch.testing.assert_close(part(3 * v - w), 3 * part(v) - part(w))

    # What stands where does not matter to the content lambda.
    order = torch.randperm(i * j)
    _, k_too, v_too = layer.project(x.flatten(2)[..., order].view_as(x))
    torch.testing.assert_close(layer.content_lambda(k_too, v_too), layer.content_lambda(k, v))

    # One value reaches the lambdas at most r // 2 away.
    one = torch.zeros_like(v)
    row, column = torch.randint(i, ()).item(), torch.randint(j, ()).item()
    one[..., row, column] = 1
    near = (torch.arange(i) - row).abs()[:, None] <= r // 2
    near = near & ((torch.arange(j) - column).abs() <= r // 2)
    reached = (layer.position_lambdas(one) != 0).any(dim=2).any(dim=1).any(dim=0)
    assert torch.equal(reached, near)

    # The output is linear in the query.
    layer.to_q[1].bias.data.zero_()
    out = layer(x)
    layer.to_q[0].weight.data *= -2
    torch.testing.assert_close(layer(x), -2 * out)


def test_moving_the_image_moves_the_output() -> None:
    layer = LambdaLayer(8, k=3, h=2, r=5).double().eval()
    x = torch.randn(1, 8, 4, 3, dtype=torch.double)
    wide = [torch.zeros(1, 8, 12, 11, dtype=torch.double) for _ in range(2)]
    wide[0][..., 3:7, 3:6] = wide[1][..., 5:9, 4:7] = x
    torch.testing.assert_close(
        layer(wide[0]).roll((2, 1), dims=(-2, -1))[..., 2:, 1:], layer(wide[1])[..., 2:, 1:]
    )


def test_without_positions_the_layer_is_linear_attention() -> None:
    torch.manual_seed(0)
    layer = ContentOnly(8, k=3, h=2, r=5).double()
    whole = LambdaLayer(8, k=3, h=2, r=5).double()
    whole.load_state_dict(layer.state_dict())
    whole.e.weight.data.zero_()
    x = torch.randn(2, 8, 5, 7, dtype=torch.double)
    torch.testing.assert_close(layer(x), whole(x))


def test_one_map_of_all_pairs_is_never_kept() -> None:
    with torch.device("meta"):
        layer = LambdaLayer(16, k=8, h=4, r=3)
        assert kept(layer, torch.empty(3, 16, 40, 30)) == 4 * 3 * 1200 * 8 * 4 / 2**30
        assert kept(layer, torch.empty(3, 16, 80, 30)) == 4 * 3 * 2400 * 8 * 4 / 2**30


def test_signposts() -> None:
    torch.manual_seed(0)
    x, colour = signposts(2)
    ways = [(0, 2), (0, -2), (2, 0), (-2, 0)]
    for b in range(2):
        for i in range(7):
            for j in range(9):
                down, right = ways[x[b, :4, i, j].argmax()]
                m, n = i + down, j + right
                inside = 0 <= m < 7 and 0 <= n < 9
                expected = x[b, 4:, m, n] if inside else torch.zeros(4)
                assert torch.equal(colour[b, :, i, j], expected)


def test_heads_that_do_not_divide() -> None:
    with pytest.raises(ValueError, match="h = 3 heads do not divide d = 8"):
        LambdaLayer(8, h=3)


def test_a_window_without_a_centre() -> None:
    with pytest.raises(ValueError, match="r = 4 is even"):
        LambdaLayer(8, r=4)
