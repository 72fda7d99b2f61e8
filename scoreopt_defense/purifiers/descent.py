"""Descent on a loss, as both of ScoreOpt's algorithms do it: its gradient, and a step along it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from scoreopt_defense.denoisers import Denoiser
from scoreopt_defense.noise import Noise
from scoreopt_defense.objectives import Loss
from scoreopt_defense.optimizers import Optimizer
from scoreopt_defense.steps.recording import unwatched
from scoreopt_defense.steps.step import Runner, as_it_is

__all__ = ["Descent", "LossGradient", "State", "Update"]


@dataclass(frozen=True)
class State:
    """A descent between two of its steps: given to each, and another one given back.

    Args:
        optimizer: the update rule's own state.
        rows: places of the images that go on, or None where all of them do.
        loss: of each image's last step, shape ``(B,)``; infinite before the first.
        denoised: image of that step.
    """

    optimizer: tuple[Tensor, ...]
    rows: Tensor | None
    loss: Tensor
    denoised: Tensor

    def seen(self) -> dict[str, Tensor]:
        """Of the last step."""
        return {"loss": self.loss, "denoised": self.denoised}


class Descent:
    """One descent on the loss, by steps that are pure functions of tensors.

    With ``tol`` an image stops where a step did not lower its loss enough: from then on it stays,
    and is left out of the network's batches.

    Args:
        denoiser: D.
        loss: whose gradient is taken.
        optimizer: the update rule, at the learning rate ``lr``.
        moving: whether the image in the loss moves along with ``x_t``, as in both algorithms of the
            authors' code; or is the outer step's, as Algorithm 2 is printed.
        jacobian: whether the gradient goes through the denoiser.
        tol: share of its loss by which a step must lower it for an image to go on, or None.
        run: how :class:`LossGradient`, :class:`Update` and ``denoise`` are carried out.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        loss: Loss,
        optimizer: Optimizer,
        lr: float,
        *,
        moving: bool = True,
        jacobian: bool = True,
        tol: float | None = None,
        run: Runner = as_it_is,
    ) -> None:
        self.optimizer = optimizer
        self.moving = moving
        self.compares = getattr(loss, "compares", False)
        self.tol = tol
        self.denoise = run(denoiser)
        self._gradient = run(LossGradient(denoiser, loss, moving=moving, jacobian=jacobian))
        self._update = run(Update(optimizer, lr))

    def start(self, x: Tensor) -> State:
        """Before the first step of images of that shape."""
        rows = None if self.tol is None else torch.arange(len(x), device=x.device)
        loss = x.new_full((len(x),), torch.inf)
        return State(self.optimizer.init(x), rows, loss, torch.zeros_like(x).detach())

    def gradient(
        self,
        x_t: Tensor,
        x: Tensor,
        x_a: Tensor,
        x_at: Tensor | None,
        sigma: Tensor,
        state: State,
    ) -> tuple[Tensor, State]:
        """That of the loss, zero for images that stopped; and what was seen on the way."""
        inputs, rows = (x_t, x, x_a, x_at, sigma), state.rows
        if rows is None:
            grad, loss, denoised = self._gradient(*inputs)
            return grad, replace(state, loss=loss, denoised=denoised)
        if not len(rows):
            return torch.zeros_like(x_t), state
        grad, loss, denoised = self._gradient(*(t if t is None else t[rows] for t in inputs))
        loss, denoised = loss.detach(), denoised.detach()
        assert self.tol is not None
        falls = loss < (1 - self.tol) * state.loss[rows]
        return torch.zeros_like(x_t).index_copy(0, rows, grad), replace(
            state,
            rows=rows[falls],
            loss=state.loss.index_copy(0, rows, loss),
            denoised=state.denoised.index_copy(0, rows, denoised),
        )

    def update(self, count: int, x: Tensor, grad: Tensor, state: State) -> tuple[Tensor, State]:
        """The new ``x``, that of images that stopped being the old; and the optimiser's state."""
        moved, *others = self._update(count, x, grad, *state.optimizer)
        if state.rows is not None:
            goes_on = torch.zeros(len(x), dtype=torch.bool, device=x.device)
            goes_on[state.rows] = True
            moved = torch.where(goes_on.reshape(-1, 1, 1, 1), moved, x)
        return moved, replace(state, optimizer=tuple(others))

    def anchor(self, x_i: Tensor, x: Tensor) -> Tensor:
        """The image that the loss compares with: the one that moves, or the outer step's."""
        return x if self.moving else x_i

    def noised_attack(
        self, x_a: Tensor, sigma: Tensor, noise: Noise, i: int, j: int = 0
    ) -> Tensor | None:
        r""":math:`x_{a,t} = x_a + \sigma \epsilon_2`, for a loss that compares with it."""
        return x_a + sigma * noise.eps_2(i, j, x_a) if self.compares else None


@dataclass(frozen=True)
class LossGradient:
    """Each image's gradient of its loss, that loss, and the denoised image.

    With respect to a shift of ``x_t`` and, if it moves along, of ``x``: "the loss gradients with
    respect to x and x_t are equivalent". It can be differentiated itself where gradients are being
    recorded.
    """

    denoiser: Denoiser
    loss: Loss
    moving: bool = True
    jacobian: bool = True
    _spent: list[Tensor] = field(default_factory=list, repr=False, compare=False)

    def __call__(
        self, x_t: Tensor, x: Tensor, x_a: Tensor, x_at: Tensor | None, sigma: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        denoised_a = None if x_at is None else self.denoiser(x_at, sigma)
        constant = None if self.jacobian else self.denoiser(x_t, sigma)
        recorded = torch.is_grad_enabled() and any(t.requires_grad for t in (x_t, x, x_a))

        def loss(shift: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            denoised = self.denoiser(x_t + shift, sigma) if constant is None else constant
            if constant is None and not (torch.compiler.is_compiling() or denoised.requires_grad):
                raise RuntimeError(
                    "autograd does not go through the denoiser's network, which cuts its graph by "
                    "torch.no_grad or detach: mend that, or leave its Jacobian out by "
                    "jacobian=False, which is another defence"
                )
            moved = x + shift if self.moving else x
            loss = self.loss(denoised, moved, x_a=x_a, denoised_a=denoised_a, sigma=sigma)
            if loss.shape != x.shape[:1]:
                raise ValueError(
                    f"the loss must be one number an image, of shape {tuple(x.shape[:1])}, got "
                    f"{tuple(loss.shape)}"
                )
            if not (recorded or torch.compiler.is_compiling()):
                # Its graph will have given up its tensors, and stays until the next step's stands:
                # what it is made of lies among them, and keeps the C library from giving the memory
                # back to the system that the next step takes again.
                self._spent[:] = [loss]
            return loss.sum(), (loss.detach(), denoised.detach())

        grad, (losses, denoised) = _gradient(loss, x_t.new_zeros(()).expand_as(x_t), recorded)
        return grad, losses, denoised


def _gradient(f: Callable[[Tensor], Any], at: Tensor, recorded: bool) -> tuple[Tensor, Any]:
    """Gradient of a function of a value and a rest, and that rest."""
    if torch.compiler.is_compiling():  # which knows torch.func, and autograd only in part
        return torch.func.grad(f, has_aux=True)(at)
    with torch.enable_grad(), nullcontext() if recorded else unwatched():
        value, rest = f(at.requires_grad_())
        (grad,) = torch.autograd.grad(value, at, create_graph=recorded)
    return grad, rest


@dataclass(frozen=True)
class Update:
    """One step of the optimiser: the new ``x`` and the new state."""

    optimizer: Optimizer
    lr: float

    def __call__(self, count: int, x: Tensor, grad: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        return self.optimizer.step(count, self.lr, x, grad, *state)

    def smoothed(self, c: float) -> Update:
        """What :class:`~scoreopt_defense.gradients.Smoothed` differentiates in its place."""
        smoothed = getattr(self.optimizer, "smoothed", None)
        return self if smoothed is None else Update(smoothed(c), self.lr)
