"""The functional optimisers are torch's."""

from __future__ import annotations

import pytest
import torch
from tolerances import rounding

from scoreopt_defense.optimizers import OPTIMIZERS, ascended

GRADIENTS = {
    "ordinary": lambda k: torch.randn(5, 3, dtype=torch.float64),
    "large": lambda k: 1e6 * torch.randn(5, 3, dtype=torch.float64),
    "near Adam's epsilon": lambda k: 1e-8 * torch.randn(5, 3, dtype=torch.float64),
    "zero, then not": lambda k: (k > 2) * torch.ones(5, 3, dtype=torch.float64),
    "of changing sign": lambda k: (-1) ** k * torch.ones(5, 3, dtype=torch.float64),
}


@pytest.mark.parametrize("draw", GRADIENTS.values(), ids=GRADIENTS.keys())
@pytest.mark.parametrize(
    ("name", "reference"), [("adam", torch.optim.Adam), ("sgd", torch.optim.SGD)]
)
def test_steps_match_torch(name, reference, draw):
    x = torch.randn(5, 3, dtype=torch.float64)
    theirs = x.clone().requires_grad_()
    optimizer = reference([theirs], lr=0.1)
    ours = OPTIMIZERS[name]()
    state = ours.init(x)
    for k in range(8):
        grad = draw(k)
        theirs.grad = grad.clone()
        optimizer.step()
        x, *state = ours.step(k + 1, 0.1, x, grad, *state)
        # a step of Adam is a dozen operations and below 0.3; one of SGD is as large as x becomes
        tolerance = rounding(torch.float64, 16 * (k + 1), max(1.0, x.abs().max()))
        torch.testing.assert_close(x, theirs.detach(), rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_a_step_changes_nothing_in_place(name):
    optimizer = OPTIMIZERS[name]()
    x, grad = torch.randn(4), torch.randn(4)
    state = optimizer.init(x)
    before = [t.clone() for t in (x, grad, *state)]
    first = optimizer.step(1, 0.1, x, grad, *state)
    assert all(torch.equal(a, b) for a, b in zip(before, (x, grad, *state)))
    second = optimizer.step(1, 0.1, x, grad, *state)
    assert all(torch.equal(a, b) for a, b in zip(first, second))


def test_uphill_is_at_a_distance_along_each_images_own_gradient():
    """On a quadratic it is where the linear part grows most: by the distance times the slope."""
    x, curvature = torch.randn(2, 3, 4, 4, dtype=torch.float64), torch.rand(3, 4, 4)
    grad = curvature * x
    grad[1] = 0
    moved = ascended(x, grad, 0.3) - x
    slope = grad[0].square().sum().sqrt()
    tolerance = rounding(torch.float64, 64, x.abs().max())
    torch.testing.assert_close((moved[0] * grad[0]).sum(), 0.3 * slope, rtol=tolerance, atol=0)
    torch.testing.assert_close(moved[0].square().sum().sqrt().item(), 0.3, rtol=tolerance, atol=0)
    assert torch.equal(moved[1], torch.zeros_like(moved[1]))
