"""Comparing a module with someone else's: the same weights, then the same values and gradients."""

import torch
from torch import Tensor, nn

_LAYERS = nn.Conv2d | nn.Linear | nn.BatchNorm2d | nn.BatchNorm1d


def layers(module: nn.Module) -> list[nn.Module]:
    """Its layers with weights, in the order in which they were made."""
    return [layer for layer in module.modules() if isinstance(layer, _LAYERS)]


@torch.no_grad()
def copy_weights(ours: nn.Module, theirs: nn.Module) -> None:
    """Give `theirs` the weights of `ours`, and both of them batch norms that are not the identity.

    The layers have to come in the same order. A linear layer may be a convolution of 1 x 1 there;
    a bias that ours does not have becomes 0.
    """
    for layer, other in zip(layers(ours), layers(theirs), strict=True):
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            for tensor in (layer.weight, layer.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
            for tensor in (layer.bias, layer.running_mean):
                nn.init.normal_(tensor)
        state, wanted = layer.state_dict(), other.state_dict()
        assert set(state) <= set(wanted)
        for name, tensor in wanted.items():
            tensor.copy_(state[name].view_as(tensor) if name in state else torch.zeros(()))


def assert_same(ours: nn.Module, theirs: nn.Module, x: Tensor) -> None:
    """Check the outputs for `x`, and the gradients of `x` and of every weight that both have."""
    out, expected = ours(x), theirs(x)
    torch.testing.assert_close(out, expected)
    towards = torch.randn_like(out)
    pairs = [(x, x)]
    for layer, other in zip(layers(ours), layers(theirs), strict=True):
        pairs += [(p, getattr(other, name)) for name, p in layer.named_parameters(recurse=False)]
    mine = torch.autograd.grad(out, [p for p, _ in pairs], towards)
    other = torch.autograd.grad(expected, [p for _, p in pairs], towards)
    for gradient, gradient_too in zip(mine, other, strict=True):
        torch.testing.assert_close(gradient, gradient_too.view_as(gradient))
