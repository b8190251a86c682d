"""The survey: all mechanisms on maps of odd sizes, and its measures against hand counts."""

import pytest
import torch
from attention.survey import (
    WEIGHS,
    Memory,
    growth,
    knows_place,
    mechanisms,
    memory,
    multiply_adds,
    weights,
)
from torch import Tensor, nn

NAMES = [name for names in WEIGHS.values() for name in names]


def test_every_mechanism_is_in_one_group() -> None:
    assert sorted(NAMES) == sorted(mechanisms())
    assert len(NAMES) == 14


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("train", [True, False])
def test_a_map_of_the_same_shape_and_a_gradient_for_every_weight(name: str, train: bool) -> None:
    torch.manual_seed(0)
    block = mechanisms()[name].train(train)
    for p in block.parameters():
        if not p.any():
            nn.init.ones_(p)
    x = torch.randn(3, 64, 9, 7, requires_grad=True)
    before = x.detach().clone()
    out = block(x)
    assert out.shape == x.shape
    assert torch.equal(x, before), "the input is overwritten"
    assert out.isfinite().all()
    out.square().sum().backward()
    assert x.grad is not None
    assert all(p.grad is not None for p in block.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_is_its_images(name: str) -> None:
    torch.manual_seed(0)
    block, x = mechanisms()[name].eval(), torch.randn(3, 64, 8, 7)
    alone = torch.cat([block(image) for image in x.split(1)])
    torch.testing.assert_close(block(x), alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("side", [8, 31])
def test_measures_of_a_convolution(side: int) -> None:
    conv = nn.Conv2d(64, 64, 3, padding=1, bias=False).to("meta")
    assert weights(conv) == 9 * 64**2
    assert multiply_adds(conv, side) == 9 * 64**2 * side**2
    assert memory(conv, side) == 4 * 64 * side**2  # its output


class Steps(nn.Module):
    """Holds its input twice over, lets one go, and makes a map of all pairs."""

    def forward(self, x: Tensor) -> Tensor:
        """Views and what is done in place need no memory."""
        y = (x + 1) * 2  # two maps, one of which is let go
        y += 1
        flat = y.flatten(2).mT
        return flat @ flat.mT


def test_what_is_held_at_once() -> None:
    with torch.device("meta"):
        x = torch.empty(1, 64, 5, 3)
        with Memory() as counter:
            out = Steps()(x)
    size = x.nbytes
    assert out.nbytes == 4 * 15**2
    assert counter.peak == 2 * size
    assert counter.held == out.nbytes
    assert 1.9 < growth(memory, Steps()) <= 2


@pytest.mark.parametrize(
    ("block", "expected"),
    [(nn.Conv2d(64, 64, 1), False), (nn.Conv2d(64, 64, 3, padding=1), True), (nn.ReLU(), False)],
)
def test_who_knows_a_place(block: nn.Module, expected: bool) -> None:
    assert knows_place(block) is expected
