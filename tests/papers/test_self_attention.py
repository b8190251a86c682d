"""The Transformer against PyTorch's and labml's, with the same weights."""

import math

import labml.tracker
import pytest
import torch
from attention.self_attention import (
    Layer,
    MultiHeadAttention,
    Transformer,
    attention,
    positional_encoding,
    weigh,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from labml_nn.transformers.mha import MultiHeadAttention as LabmlAttention
from labml_nn.transformers.positional_encoding import get_positional_encoding
from torch import Tensor, nn
from torch.nn import functional as F


def some_mask(n: int, m: int) -> Tensor:
    """Which of `m` keys each of `n` queries may see: at least one."""
    mask = torch.rand(n, m) < 0.5
    mask[:, 0] = True
    return mask


def copy_attention(ours: MultiHeadAttention, theirs: nn.MultiheadAttention) -> None:
    weights = [ours.w_q.weight, ours.w_k.weight, ours.w_v.weight]
    theirs.in_proj_weight.data = torch.cat(weights).data.clone()
    theirs.out_proj.weight.data = ours.w_o.weight.data.clone()
    if theirs.in_proj_bias is not None:
        theirs.in_proj_bias.data.zero_()
        theirs.out_proj.bias.data.zero_()


def copy_layer(ours: Layer, theirs: nn.Module) -> None:
    consults = hasattr(ours, "consult")
    blocks = [ours.look, ours.consult, ours.think] if consults else [ours.look, ours.think]
    for i, block in enumerate(blocks, start=1):
        for parameter in block.norm.parameters():
            parameter.data.normal_()
        getattr(theirs, f"norm{i}").load_state_dict(block.norm.state_dict())
    copy_attention(ours.look.sublayer, theirs.self_attn)
    if consults:
        copy_attention(ours.consult.sublayer, theirs.multihead_attn)
    theirs.linear1.load_state_dict(ours.think.sublayer[0].state_dict())
    theirs.linear2.load_state_dict(ours.think.sublayer[2].state_dict())


def assert_same(out: Tensor, expected: Tensor, *inputs: Tensor) -> None:
    """The same values and the same gradients with respect to `inputs`."""
    torch.testing.assert_close(out, expected)
    towards = torch.randn_like(out)
    torch.testing.assert_close(
        torch.autograd.grad(out, inputs, towards), torch.autograd.grad(expected, inputs, towards)
    )


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.double, requires_grad=True)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_in_loops(masked: bool) -> None:
    torch.manual_seed(0)
    q, k, v = randn(5, 3), randn(7, 3), randn(7, 2)
    mask = some_mask(5, 7) if masked else torch.ones(5, 7, dtype=torch.bool)
    rows = []
    for i in range(5):
        seen = [j for j in range(7) if mask[i, j]]
        scores = [(q[i] * k[j]).sum() / math.sqrt(3) for j in seen]
        total = sum(score.exp() for score in scores)
        pairs = zip(scores, seen, strict=True)
        rows.append(sum(score.exp() / total * v[j] for score, j in pairs))
    assert_same(attention(q, k, v, mask if masked else None), torch.stack(rows), q, k, v)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_of_pytorch(masked: bool) -> None:
    torch.manual_seed(0)
    q, k, v = randn(2, 3, 7, 5), randn(2, 3, 9, 5), randn(2, 3, 9, 11)
    mask = some_mask(7, 9) if masked else None
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    assert_same(attention(q, k, v, mask), expected, q, k, v)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("d", "h"), [(15, 3), (15, 1), (7, 7)])
def test_heads_of_pytorch(d: int, h: int, masked: bool, train: bool) -> None:
    torch.manual_seed(0)
    ours = MultiHeadAttention(d, h).double().train(train)
    theirs = nn.MultiheadAttention(d, h, bias=False, batch_first=True).double().train(train)
    copy_attention(ours, theirs)
    x, memory = randn(2, 5, d), randn(2, 9, d)
    mask = some_mask(5, 9) if masked else None
    expected, _ = theirs(x, memory, memory, attn_mask=None if mask is None else ~mask)
    assert_same(ours(x, memory, mask), expected, x, memory)


@pytest.mark.parametrize("train", [True, False])
def test_heads_of_labml(train: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # labml-nn calls a function that labml 0.5.3 no longer has.
    monkeypatch.setattr(labml.tracker, "debug", lambda *_: None, raising=False)
    torch.manual_seed(0)
    ours = MultiHeadAttention(15, 3).double().train(train)
    theirs = LabmlAttention(3, 15, dropout_prob=0, bias=False).double().train(train)
    theirs.query.linear.load_state_dict(ours.w_q.state_dict())
    theirs.key.linear.load_state_dict(ours.w_k.state_dict())
    theirs.value.linear.weight.data = ours.w_v.weight.data.clone()
    theirs.output.weight.data = ours.w_o.weight.data.clone()
    theirs.value.linear.bias.data.zero_()
    theirs.output.bias.data.zero_()
    x, memory, mask = randn(2, 5, 15), randn(2, 9, 15), some_mask(5, 9)
    first = [tensor.transpose(0, 1) for tensor in (x, memory)]
    expected = theirs(query=first[0], key=first[1], value=first[1], mask=mask[..., None])
    assert_same(ours(x, memory, mask), expected.transpose(0, 1), x, memory)


@pytest.mark.parametrize("train", [True, False])
def test_encoder_layer_of_pytorch(train: bool) -> None:
    torch.manual_seed(0)
    ours = Layer(15, 3, 21, dropout=0).double().train(train)
    theirs = nn.TransformerEncoderLayer(15, 3, 21, dropout=0, batch_first=True)
    theirs = theirs.double().train(train)
    copy_layer(ours, theirs)
    x, mask = randn(2, 7, 15), some_mask(7, 7)
    assert_same(ours(x, mask), theirs(x, src_mask=~mask), x)


@pytest.mark.parametrize("train", [True, False])
def test_decoder_layer_of_pytorch(train: bool) -> None:
    torch.manual_seed(0)
    ours = Layer(15, 3, 21, dropout=0, consults=True).double().train(train)
    theirs = nn.TransformerDecoderLayer(15, 3, 21, dropout=0, batch_first=True)
    theirs = theirs.double().train(train)
    copy_layer(ours, theirs)
    y, memory = randn(2, 7, 15), randn(2, 9, 15)
    mask, keep = some_mask(7, 7), some_mask(2, 9)
    expected = theirs(y, memory, tgt_mask=~mask, memory_key_padding_mask=~keep)
    assert_same(ours(y, mask, memory, keep[:, None, None]), expected, y, memory)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("padded", [True, False])
def test_whole_model_of_pytorch(train: bool, padded: bool) -> None:
    torch.manual_seed(0)
    ours = Transformer(20, n_layers=2, d=18, h=3, d_ff=21, dropout=0).double().train(train)
    layer = nn.TransformerEncoderLayer(18, 3, 21, dropout=0, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2, norm=None, enable_nested_tensor=False)
    layer = nn.TransformerDecoderLayer(18, 3, 21, dropout=0, batch_first=True)
    decoder = nn.TransformerDecoder(layer, 2, norm=None)
    theirs = nn.Transformer(18, 3, custom_encoder=encoder, custom_decoder=decoder, batch_first=True)
    theirs = theirs.double().train(train)
    for mine, other in zip(ours.encoder, theirs.encoder.layers, strict=True):
        copy_layer(mine, other)
    for mine, other in zip(ours.decoder, theirs.decoder.layers, strict=True):
        copy_layer(mine, other)

    source, target = torch.randint(20, (2, 9)), torch.randint(20, (2, 7))
    keep = some_mask(2, 9) if padded else None
    hide = ~keep if padded else None
    weight = ours.embedding.weight
    x, y = (
        F.embedding(tokens, weight) * math.sqrt(18)
        + get_positional_encoding(18)[: tokens.shape[1], 0]
        for tokens in (source, target)
    )
    causal = torch.ones(7, 7, dtype=torch.bool).triu(1)
    expected = theirs(
        x, y, tgt_mask=causal, src_key_padding_mask=hide, memory_key_padding_mask=hide
    )
    out = ours(source, target, keep)
    torch.testing.assert_close(out, expected @ weight.T, rtol=1e-5, atol=1e-5)
    [gradient] = torch.autograd.grad(out.square().sum(), weight)
    [gradient_too] = torch.autograd.grad((expected @ weight.T).square().sum(), weight)
    torch.testing.assert_close(gradient, gradient_too, rtol=1e-4, atol=1e-4)


def test_padding_is_as_good_as_absent() -> None:
    torch.manual_seed(0)
    model = Transformer(20, n_layers=2, d=16, h=2, d_ff=21).eval()
    source, target = torch.randint(20, (2, 9)), torch.randint(20, (2, 7))
    keep = torch.arange(9) < 6
    short = model(source[:, :6], target)
    torch.testing.assert_close(model(source, target, keep.expand(2, 9)), short)


def test_dropout_only_in_training() -> None:
    torch.manual_seed(0)
    model = Transformer(20, n_layers=1, d=16, h=2, d_ff=21, dropout=0.5)
    source, target = torch.randint(20, (2, 9)), torch.randint(20, (2, 7))
    assert not torch.equal(model(source, target), model(source, target))
    model.eval()
    assert torch.equal(model(source, target), model(source, target))


def test_no_gradient_from_the_future() -> None:
    torch.manual_seed(0)
    layer, x = Layer(6, 2, 9, dropout=0), torch.randn(1, 7, 6, requires_grad=True)
    causal = torch.ones(7, 7, dtype=torch.bool).tril()
    [gradient] = torch.autograd.grad(layer(x, causal)[0, 3, 0], x)
    assert (gradient[:, 4:] == 0).all()
    assert gradient[:, :4].abs().sum(-1).min() > 0


def test_a_query_that_may_look_nowhere() -> None:
    mask = torch.tensor([[True, True], [False, False]])
    a = weigh(torch.randn(2, 3), torch.randn(2, 3), mask)
    assert a[0].isfinite().all()
    assert a[1].isnan().all()


sizes = st.integers(1, 8)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**31), n=sizes, m=sizes, d_k=sizes, d_v=sizes)
def test_weights_and_means(seed: int, n: int, m: int, d_k: int, d_v: int) -> None:
    torch.manual_seed(seed)
    q, k, v = randn(n, d_k), randn(m, d_k), randn(m, d_v)
    mask = some_mask(n, m)
    a = weigh(q, k, mask)
    torch.testing.assert_close(a.sum(-1), torch.ones_like(a[:, 0]))
    assert (a[~mask] == 0).all()

    # A mean of values lies between them, whatever order they come in.
    out = attention(q, k, v, mask)
    assert (out <= v.max(0).values + 1e-9).all()
    assert (out >= v.min(0).values - 1e-9).all()
    order = torch.randperm(m)
    torch.testing.assert_close(attention(q, k[order], v[order], mask[:, order]), out)


@settings(max_examples=50, deadline=None)
@given(n=st.integers(1, 40), half=st.integers(1, 20), shift=st.integers(0, 30))
def test_positions(n: int, half: int, shift: int) -> None:
    d = 2 * half
    encoding = positional_encoding(n + shift, d)
    for i in range(half):
        speed = 1 / 10000 ** (2 * i / d)
        for position in range(0, n, 7):
            assert encoding[position, 2 * i] == pytest.approx(math.sin(position * speed), abs=1e-4)
            assert encoding[position, 2 * i + 1] == pytest.approx(
                math.cos(position * speed), abs=1e-4
            )

        # Some positions later each pair has turned by a fixed angle.
        sin, cos = math.sin(shift * speed), math.cos(shift * speed)
        turn = torch.tensor([[cos, -sin], [sin, cos]])
        here, later = encoding[:n, 2 * i : 2 * i + 2], encoding[shift:, 2 * i : 2 * i + 2]
        torch.testing.assert_close(here @ turn, later, atol=1e-4, rtol=0)


def test_positions_of_labml() -> None:
    expected = get_positional_encoding(18, max_len=63)[:, 0]
    torch.testing.assert_close(positional_encoding(63, 18), expected, atol=1e-5, rtol=0)


def test_weights_of_the_base_model() -> None:
    """PyTorch's stacks have biases in the attention and two more norms; ours as the paper says."""
    with torch.device("meta"):
        ours = Transformer(37_000)
        theirs = nn.Transformer(512, 8, 6, 6, 2048, batch_first=True)
    total = sum(p.numel() for p in theirs.parameters())
    biases, norms = 18 * 4 * 512, 2 * 2 * 512
    assert sum(p.numel() for p in ours.parameters()) == total - biases - norms + 37_000 * 512


@pytest.mark.parametrize(("d", "h"), [(15, 4), (8, 3)])
def test_heads_that_do_not_divide(d: int, h: int) -> None:
    with pytest.raises(ValueError, match=f"h = {h} heads do not divide d = {d}"):
        MultiHeadAttention(d, h)


def test_an_odd_number_of_features() -> None:
    with pytest.raises(ValueError, match="d = 7 is odd"):
        positional_encoding(3, 7)
