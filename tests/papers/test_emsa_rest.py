"""EMSA against loops, against PyTorch's attention and, as a network, against token lists."""

import math
from collections.abc import Callable

import pytest
import torch
from attention.emsa_rest import (
    EMSA,
    PixelAttention,
    likeness,
    lookups,
    multiply_adds,
    resnet_stem,
    rest,
    three_convolutions,
    weights,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

SIZES = {
    "Lite": (64, (2, 2, 2, 2)),
    "Small": (64, (2, 2, 6, 2)),
    "Base": (96, (2, 2, 6, 2)),
    "Large": (96, (2, 2, 18, 2)),
}


def normalize(values: list[Tensor], eps: float = 1e-5) -> list[Tensor]:
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / len(values)
    return [(value - mean) / torch.sqrt(variance + eps) for value in values]


def shorten_in_loops(x: Tensor, conv: nn.Conv2d, norm: nn.LayerNorm, s: int) -> list[Tensor]:
    """A list of the short map's positions, row by row."""
    h, w, d = x.shape
    kernel, pad, short = s + 1, s // 2, []
    for top in range(-pad, h + pad - kernel + 1, s):
        for left in range(-pad, w + pad - kernel + 1, s):
            features = []
            for c in range(d):
                value = conv.bias[c]
                for i in range(kernel):
                    for j in range(kernel):
                        if 0 <= top + i < h and 0 <= left + j < w:
                            value = value + conv.weight[c, 0, i, j] * x[top + i, left + j, c]
                features.append(value)
            short.append(torch.stack(normalize(features)) * norm.weight + norm.bias)
    return short


def in_loops(x: Tensor, emsa: EMSA, s: int) -> Tensor:
    """The paper's equation, one number of the tables at a time."""
    return torch.stack([image_in_loops(image, emsa, s) for image in x])


def image_in_loops(image: Tensor, emsa: EMSA, s: int) -> Tensor:
    h, w, d = image.shape
    e, heads = d // emsa.k, range(emsa.k)
    ask = [image[i, j] for i in range(h) for j in range(w)]
    answer = shorten_in_loops(image, emsa.shorten[1], emsa.shorten[3], s) if s > 1 else ask
    q = [emsa.q.weight @ position + emsa.q.bias for position in ask]
    kv = [emsa.kv.weight @ position + emsa.kv.bias for position in answer]

    logits = {}
    for i in heads:
        share = slice(i * e, (i + 1) * e)
        for n, query in enumerate(q):
            for m, key in enumerate(kv):
                logits[i, n, m] = query[share] @ key[share] / math.sqrt(e)
    mixes = isinstance(emsa.mix, nn.Conv2d)
    if mixes:
        weight, bias = emsa.mix.weight[:, :, 0, 0], emsa.mix.bias
        logits = {
            (i, n, m): bias[i] + sum(weight[i, j] * logits[j, n, m] for j in heads)
            for i, n, m in logits
        }

    joined = [[] for _ in q]
    for i in heads:
        a = []
        for n in range(len(q)):
            powers = [torch.exp(logits[i, n, m]) for m in range(len(kv))]
            a += [power / sum(powers) for power in powers]
        if mixes:
            a = normalize(a)
        for n in range(len(q)):
            values = [position[d + i * e : d + (i + 1) * e] for position in kv]
            joined[n].append(sum(a[n * len(kv) + m] * values[m] for m in range(len(kv))))
    out = [emsa.out.weight @ torch.cat(position) + emsa.out.bias for position in joined]
    return torch.stack(out).view(h, w, d)


def in_tokens(x: Tensor, emsa: EMSA, s: int) -> Tensor:
    """As the authors' code computes: a list of tokens, its height and its width."""
    b, h, w, d = x.shape
    tokens = x.reshape(b, h * w, d)
    q = emsa.q(tokens).reshape(b, h * w, emsa.k, d // emsa.k).transpose(1, 2)
    if s > 1:
        conv, norm = emsa.shorten[1], emsa.shorten[3]
        grid = tokens.transpose(1, 2).reshape(b, d, h, w)
        grid = F.conv2d(grid, conv.weight, conv.bias, stride=s, padding=s // 2, groups=d)
        tokens = F.layer_norm(grid.flatten(2).transpose(1, 2), (d,), norm.weight, norm.bias)
    kv = emsa.kv(tokens).reshape(b, -1, 2, emsa.k, d // emsa.k).permute(2, 0, 3, 1, 4)
    attention = q @ kv[0].transpose(2, 3) * (d // emsa.k) ** -0.5
    if isinstance(emsa.mix, nn.Conv2d):
        attention = F.conv2d(attention, emsa.mix.weight, emsa.mix.bias)
        attention = F.instance_norm(attention.softmax(dim=-1))
    else:
        attention = attention.softmax(dim=-1)
    return emsa.out((attention @ kv[1]).transpose(1, 2).reshape(b, h, w, d))


@pytest.mark.parametrize(
    ("reference", "h", "w", "train"),
    [(in_loops, 5, 3, True), (in_tokens, 9, 7, True), (in_tokens, 9, 7, False)],
)
@pytest.mark.parametrize(("k", "s"), [(1, 1), (1, 2), (2, 1), (2, 2), (3, 3), (2, 4)])
@pytest.mark.parametrize("mix", [True, False])
def test_forward_and_backward(
    reference: Callable, h: int, w: int, train: bool, k: int, s: int, mix: bool
) -> None:
    torch.manual_seed(0)
    emsa = EMSA(6, k, s, mix).double().train(train)
    for p in emsa.parameters():
        p.data.normal_()
    x = torch.randn(2, h, w, 6, dtype=torch.double, requires_grad=True)
    out, expected = emsa(x), reference(x, emsa, s)
    torch.testing.assert_close(out, expected)

    inputs, towards = (x, *emsa.parameters()), torch.randn_like(out)
    torch.testing.assert_close(
        torch.autograd.grad(out, inputs, towards), torch.autograd.grad(expected, inputs, towards)
    )


@pytest.mark.parametrize("train", [True, False])
def test_without_ratio_and_mixing_it_is_pytorchs_attention(train: bool) -> None:
    torch.manual_seed(0)
    ours = EMSA(12, k=3, mix=False).double().train(train)
    theirs = nn.MultiheadAttention(12, 3, batch_first=True).double().train(train)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.q.weight, ours.kv.weight]))
        theirs.in_proj_bias.copy_(torch.cat([ours.q.bias, ours.kv.bias]))
    theirs.out_proj.load_state_dict(ours.out.state_dict())
    x = torch.randn(2, 7, 9, 12, dtype=torch.double, requires_grad=True)
    tokens = x.flatten(1, 2)
    out, expected = ours(x), theirs(tokens, tokens, tokens, need_weights=False)[0].view_as(x)
    torch.testing.assert_close(out, expected)

    towards = torch.randn_like(out)
    x_grad, *grads = torch.autograd.grad(
        out, [x, ours.q.weight, ours.kv.weight, ours.out.weight], towards
    )
    x_grad_too, in_proj, out_proj = torch.autograd.grad(
        expected, [x, theirs.in_proj_weight, theirs.out_proj.weight], towards
    )
    torch.testing.assert_close(x_grad, x_grad_too)
    torch.testing.assert_close(torch.cat(grads[:2]), in_proj)
    torch.testing.assert_close(grads[2], out_proj)


def network_in_tokens(model: nn.Sequential, x: Tensor) -> Tensor:
    """The authors' network with the weights of `model`, from its layers in their order."""
    batch_norms = iter([m for m in model.modules() if isinstance(m, nn.BatchNorm2d)])
    linears = iter([m for m in model.modules() if isinstance(m, nn.Linear)])
    layer_norms = iter([m for m in model.modules() if isinstance(m, nn.LayerNorm)])
    convs = iter([m for m in model.modules() if isinstance(m, nn.Conv2d)])

    def conv(x: Tensor, stride: int = 1) -> Tensor:
        layer = next(convs)
        groups = x.shape[1] // layer.weight.shape[1]
        pad = (layer.weight.shape[-1] - 1) // 2
        return F.conv2d(x, layer.weight, layer.bias, stride, pad, groups=groups)

    def norm(x: Tensor) -> Tensor:
        layer = next(batch_norms)
        return F.batch_norm(x, None, None, layer.weight, layer.bias, training=True)

    def gate(x: Tensor) -> Tensor:
        return x * torch.sigmoid(conv(x))

    def block(x: Tensor, h: int, w: int, k: int, s: int) -> Tensor:
        b, n, d = x.shape
        before = next(layer_norms)(x)
        q, kv, out = next(linears), next(linears), next(linears)
        short = before
        if s > 1:
            short = conv(before.transpose(1, 2).reshape(b, d, h, w), stride=s)
            short = next(layer_norms)(short.flatten(2).transpose(1, 2))
        q, (keys, values) = q(before), kv(short).chunk(2, dim=-1)
        q, keys, values = (y.reshape(b, -1, k, d // k).transpose(1, 2) for y in (q, keys, values))
        logits = q @ keys.mT / (d // k) ** 0.5
        a = logits.softmax(-1) if k == 1 else F.instance_norm(conv(logits).softmax(-1))
        x = x + out((a @ values).transpose(1, 2).reshape(b, n, d))
        widen_from = next(layer_norms)(x)
        widen, narrow = next(linears), next(linears)
        return x + narrow(F.gelu(widen(widen_from)))

    x = F.relu(norm(conv(x, 2)))
    x = F.relu(norm(conv(x)))
    x = gate(conv(x, 2))
    for i in range(4):
        if i > 0:
            x = gate(norm(conv(x, 2)))
        b, d, h, w = x.shape
        x = block(x.flatten(2).transpose(1, 2), h, w, k=2**i, s=2 ** (3 - i))
        x = x.transpose(1, 2).reshape(b, d, h, w)
    tokens = next(layer_norms)(x.flatten(2).transpose(1, 2))
    return next(linears)(tokens.mean(dim=1))


@pytest.mark.parametrize(("h", "w"), [(96, 64), (63, 97)])
def test_the_network(h: int, w: int) -> None:
    torch.manual_seed(0)
    model = rest(16, (1, 1, 1, 1)).double().train()
    x = torch.randn(2, 3, h, w, dtype=torch.double, requires_grad=True)
    out, expected = model(x), network_in_tokens(model, x)
    assert out.shape == (2, 1000)
    torch.testing.assert_close(out, expected)
    [gradient], [gradient_too] = (torch.autograd.grad(y.square().sum(), x) for y in (out, expected))
    torch.testing.assert_close(gradient, gradient_too)


def products(module: nn.Module, x: Tensor) -> tuple[float, float]:
    """Multiply-adds of the layers, and of QK and AV, by PyTorch's counter."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(x)
    attention = counter.get_flop_counts()["Global"][torch.ops.aten.bmm]
    return (counter.get_total_flops() - attention) / 2, attention / 2


@pytest.mark.parametrize(
    ("name", "stem", "count", "millions", "billions"),
    [
        ("Lite", three_convolutions, 10_508_300, 10.51, 1.5),
        ("Small", three_convolutions, 13_679_708, 13.68, 2.0),
        ("Base", three_convolutions, 30_327_052, 30.33, 4.5),
        ("Large", three_convolutions, 51_676_156, 51.68, 8.1),
        ("Lite", resnet_stem, 10_489_196, 10.49, 1.4),
        ("Small", resnet_stem, 13_660_604, 13.66, 1.9),
        ("Base", resnet_stem, 30_277_660, 30.28, 4.3),
        ("Large", resnet_stem, 51_626_764, 51.63, 7.9),
    ],
)
def test_price_of_the_networks(
    name: str, stem: Callable, count: int, millions: float, billions: float
) -> None:
    """What is printed for them is 10.49M, 13.66M, 30.28M and 51.63M; 1.4G, 1.9G, 4.3G, 7.9G."""
    with torch.device("meta"):
        model = rest(*SIZES[name], stem).eval()
    layers, _ = products(model, torch.empty(1, 3, 224, 224, device="meta"))
    assert weights(model) == count
    assert round(count / 1e6, 2) == millions
    assert round(layers / 1e9, 1) == billions


def test_price_with_self_attention_in_its_place() -> None:
    """10.48M and 1.6G in issue 4 of the authors' repository; the products are not in it."""
    with torch.device("meta"):
        model = rest().eval()
        x = torch.empty(1, 3, 224, 224)
    _, short = products(model, x)
    for module in model.modules():
        if isinstance(module, EMSA):
            module.shorten = module.mix = module.norm = nn.Identity()
    layers, full = products(model, x)
    assert round(weights(model) / 1e6, 2) == 10.48
    assert round(layers / 1e9, 1) == 1.6
    assert round(full / 1e9, 1) == 2.9
    assert round(short / 1e9, 2) == 0.07


def test_counting_layer_by_layer() -> None:
    model, x = rest(16, (1, 1, 1, 1)).eval(), torch.randn(1, 3, 64, 96)
    layers, _ = products(model, x)
    assert multiply_adds(model, x) == layers


@pytest.mark.parametrize(("h", "w"), [(64, 64), (63, 65), (100, 37)])
@pytest.mark.parametrize("stem", [three_convolutions, resnet_stem])
def test_stems_quarter_the_image(stem: Callable, h: int, w: int) -> None:
    shape = stem(8)(torch.randn(1, 3, h, w)).shape
    assert shape == (1, 8, math.ceil(math.ceil(h / 2) / 2), math.ceil(math.ceil(w / 2) / 2))


def test_all_stages_have_the_same_keys() -> None:
    model, keys = rest(16, (2, 1, 2, 1)).eval(), []
    for module in model.modules():
        if isinstance(module, EMSA):
            module.shorten.register_forward_hook(lambda _, __, y: keys.append(y.shape[1:3]))
    with torch.no_grad():
        model(torch.randn(1, 3, 96, 128))
    assert keys == 6 * [(3, 4)]


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    k=st.integers(2, 4),
    e=st.integers(1, 3),
    s=st.integers(1, 3),
    h=st.integers(5, 8),
    w=st.integers(5, 8),
)
def test_what_mixing_and_normalising_do(seed: int, k: int, e: int, s: int, h: int, w: int) -> None:
    torch.manual_seed(seed)
    emsa, x = EMSA(k * e, k, s).double(), torch.randn(2, h, w, k * e, dtype=torch.double)
    q, keys, values = emsa.project(x)
    assert q.shape[2] == h * w
    lines = [(size + 1) // 3 if s == 3 else math.ceil(size / s) for size in (h, w)]
    assert keys.shape[2] == math.prod(lines)
    logits = emsa.compare(q, keys).detach().requires_grad_()
    a = emsa.attend(logits)

    # Every row sums to 0, and no map is louder than another.
    torch.testing.assert_close(a.sum(dim=-1), torch.zeros_like(a[..., 0]), rtol=0, atol=1e-9)
    assert (a.square().mean(dim=(2, 3)) <= 1).all()
    torch.testing.assert_close(a @ (values + 5), a @ values)

    # Every head listens to every head, and without mixing to itself.
    for i in range(k):
        towards = a[:, i, :, 0].sum()
        [gradient] = torch.autograd.grad(towards, logits, retain_graph=True)
        assert (gradient.abs().amax(dim=(0, 2, 3)) > 0).all()
        apart = EMSA(k * e, k, s, mix=False).attend(logits)[:, i, :, 0].sum()
        [gradient] = torch.autograd.grad(apart, logits)
        others = [j for j in range(k) if j != i]
        assert gradient[:, others].abs().max() == 0
        assert gradient[:, i].abs().max() > 0

    # Renaming the heads renames the maps.
    names = torch.randperm(k)
    emsa.mix.weight.data = emsa.mix.weight.data[names][:, names]
    emsa.mix.bias.data = emsa.mix.bias.data[names]
    torch.testing.assert_close(emsa.attend(logits[:, names]), a[:, names])


def test_a_single_key_is_not_read() -> None:
    """Its weight is the mean of all weights."""
    emsa = EMSA(8, k=2, s=4)
    q, keys, _ = emsa.project(torch.randn(1, 3, 4, 8))
    assert keys.shape[2] == 1
    assert emsa.attend(emsa.compare(q, keys)).abs().max() == 0


def test_biases_that_can_do_nothing() -> None:
    """The softmax forgets what is the same for all keys, the norm what is in all values."""
    torch.manual_seed(0)
    emsa = EMSA(8, k=4, s=2).double()
    emsa(torch.randn(2, 7, 5, 8, dtype=torch.double)).square().sum().backward()
    torch.testing.assert_close(emsa.kv.bias.grad, torch.zeros_like(emsa.kv.bias))
    torch.testing.assert_close(emsa.mix.bias.grad, torch.zeros_like(emsa.mix.bias))
    assert emsa.q.bias.grad.abs().max() > 1e-3
    assert emsa.mix.weight.grad.abs().max() > 1e-3


@pytest.mark.parametrize(
    ("s", "size", "seen"), [(8, 56, 53), (4, 28, 27), (2, 14, 14), (8, 61, 61)]
)
def test_rows_that_reach_a_key(s: int, size: int, seen: int) -> None:
    x = torch.zeros(1, size, size, 1, requires_grad=True)
    EMSA(1, 1, s).shorten[:2](x).sum().backward()
    reached = x.grad[0, :, :, 0] != 0
    assert reached.sum() == seen**2
    assert reached[:seen, :seen].all()


def test_a_mixture_of_all_is_one_long_head() -> None:
    torch.manual_seed(0)
    short, long = EMSA(12, k=6, s=2).double(), EMSA(12, k=1, s=2).double()
    long.load_state_dict(short.state_dict(), strict=False)
    nn.init.constant_(short.mix.weight, 6**-0.5)
    nn.init.zeros_(short.mix.bias)
    x = torch.randn(2, 5, 7, 12, dtype=torch.double)
    choice = short.mix(short.compare(*short.project(x)[:2])).softmax(dim=-1)
    whole = long.attend(long.compare(*long.project(x)[:2]))
    torch.testing.assert_close(choice, whole.expand_as(choice))


def test_position_comes_from_the_border() -> None:
    """On a constant map the gate differs at the border only."""
    torch.manual_seed(0)
    gate = PixelAttention(3)
    y = gate(torch.ones(1, 3, 6, 7))
    inside = y[..., 1:-1, 1:-1]
    torch.testing.assert_close(inside, inside[..., :1, :1].expand_as(inside))
    assert (y[..., 0, 0] - inside[..., 0, 0]).abs().min() > 1e-3


def test_lookups_have_one_answer() -> None:
    torch.manual_seed(0)
    x, answer, who = lookups(5)
    asked, held, numbers = x.flatten(1, 2).split([6, 6, 4], dim=-1)
    matches = (asked[:, :, None] == held[:, None]).all(dim=-1)
    assert (matches.sum(dim=-1) == 1).all()
    assert torch.equal(matches.float().argmax(dim=-1), who)
    found = matches.float() @ numbers
    torch.testing.assert_close(answer.flatten(1, 2), found)


def test_likeness() -> None:
    maps = torch.randn(2, 1, 3, 4)
    same, opposite = maps.expand(-1, 3, -1, -1), torch.cat([maps, -maps], dim=1)
    assert likeness(same) == pytest.approx(1)
    assert likeness(opposite) == pytest.approx(-1)


def test_heads_that_do_not_divide() -> None:
    with pytest.raises(ValueError, match="k = 3 heads do not divide d = 16"):
        EMSA(16, k=3)


def test_ratio_that_is_not_positive() -> None:
    with pytest.raises(ValueError, match="s = 0 is not positive"):
        EMSA(16, k=4, s=0)
