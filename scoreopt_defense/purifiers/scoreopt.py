"""ScoreOpt: Algorithms 1 and 2 of the paper."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from scoreopt_defense._checks import check_choice, check_count, check_positive
from scoreopt_defense.denoisers import Denoiser
from scoreopt_defense.gradients import Runner, call
from scoreopt_defense.noise import Draw, Noise
from scoreopt_defense.objectives import (
    denoising_error,
    noise_error,
    reconstruction,
    score_regularization,
)
from scoreopt_defense.optimizers import Optimizer, make_optimizer
from scoreopt_defense.presets import preset
from scoreopt_defense.purifiers.base import Purifier

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["ScoreOpt", "scoreopt_n", "scoreopt_o"]


class Loss(Protocol):
    """A loss of eqs. (6) to (8): one value an image."""

    def __call__(self, x_t: Tensor, x: Tensor, x_a: Tensor, *, draw: Draw, j: int) -> Tensor: ...


def scoreopt_o(
    x_a: Tensor, *, loss: Loss, optimizer: Optimizer, noise: Noise, M: int, run: Runner = call
) -> Tensor:
    """Algorithm 1: optimise the attacked image."""
    x, state = x_a, list(optimizer.init(x_a))
    for i in range(M):
        step = partial(step_o, i=i, loss=loss, optimizer=optimizer, draw=noise.at(i))
        x, *state = run(step, x_a, x, *state)
    return x


def step_o(
    x_a: Tensor, x: Tensor, *state: Tensor, i: int, loss: Loss, optimizer: Optimizer, draw: Draw
) -> Sequence[Tensor]:
    """One step of Algorithm 1: the new image and optimiser state, a pure function of the old."""
    sigma, eps_1 = draw.sigma.to(x), draw.eps_1(x)
    grad = gradient(lambda x: loss(x + sigma * eps_1, x, x_a, draw=draw, j=0), x)
    return optimizer.step(i + 1, x, grad, *state)


def scoreopt_n(
    x_a: Tensor,
    *,
    denoiser: Denoiser,
    loss: Loss,
    optimizer: Optimizer,
    noise: Noise,
    M: int,
    N: int,
    anchored: bool = False,
    run: Runner = call,
) -> Tensor:
    """Algorithm 2: optimise the noised attacked image, then denoise it once."""
    x_i = x_a
    for i in range(M):
        draw = noise.at(i)
        sigma, eps_1 = draw.sigma.to(x_a), draw.eps_1(x_a)
        x_t, state = x_i + sigma * eps_1, list(optimizer.init(x_a))
        step = partial(
            step_n, loss=loss, optimizer=optimizer, draw=draw, eps_1=eps_1, anchored=anchored
        )
        for j in range(N):
            x_t, *state = run(partial(step, j=j), x_a, x_i, x_t, *state)
        (x_i,) = run(lambda x_t, sigma=sigma: [denoiser(x_t, sigma)], x_t)
    return x_i


def step_n(
    x_a: Tensor,
    x_i: Tensor,
    x_t: Tensor,
    *state: Tensor,
    j: int,
    loss: Loss,
    optimizer: Optimizer,
    draw: Draw,
    eps_1: Tensor,
    anchored: bool,
) -> Sequence[Tensor]:
    """One inner step of Algorithm 2: the new x_t and optimiser state, pure as :func:`step_o`.

    The image in the loss is the one that ``x_t`` stands for, ``x_t - sigma * eps_1``, and moves
    with it; or, ``anchored``, it is ``x_i``, as the paper's box is printed.
    """
    sigma = draw.sigma.to(x_t)

    def loss_at(x_t: Tensor) -> Tensor:
        x = x_i if anchored else x_t - sigma * eps_1
        return loss(x_t, x, x_a, draw=draw, j=j)

    return optimizer.step(j + 1, x_t, gradient(loss_at, x_t), *state)


def gradient(loss: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Gradient of each image's loss with respect to that image.

    Where gradients are being recorded, so is this one: a step can be differentiated.
    """
    record = torch.is_grad_enabled() and x.requires_grad
    with torch.enable_grad():
        x = x.view_as(x) if record else x.detach().requires_grad_()  # x may be x_a itself
        return torch.autograd.grad(loss(x).sum(), x, create_graph=record)[0]


class ScoreOpt(Purifier):
    r"""Optimise an image, a few steps, towards what a denoiser finds likely.

    ScoreOpt-O (Algorithm 1) optimises the attacked image itself, under a new noise level and noise
    each step; ScoreOpt-N (Algorithm 2) optimises its noised copy and denoises that once.

    Args:
        denoiser: the prior.
        variant: ``"O"`` or ``"N"``.
        loss: ``"diff"`` eq. (6), ``"mse"`` eq. (7), ``"sr"`` eq. (8), or ``"noise"``, the authors'
            own for ScoreOpt-N. By default ``"diff"`` for O and ``"noise"`` for N, as published.
        steps: optimisation steps: M of ScoreOpt-O, N of ScoreOpt-N.
        lr: learning rate, on the [-1, 1] scale.
        sigma: noise level, or (low, high) to draw it from uniformly, on the [-1, 1] scale: one draw
            a step in ScoreOpt-O and one an outer step in ScoreOpt-N, the same for the whole batch.
        outer_steps: M of ScoreOpt-N. The authors' code has 1: one noise draw, never renewed.
        optimizer: ``"adam"``, as published, or ``"sgd"``, as the algorithm boxes are printed.
        weight: of the consistency term in ``"mse"`` (:math:`\lambda`) and ``"sr"``.
        anchor: which image the loss of ScoreOpt-N compares with. ``"moving"``: the one that x_t
            stands for, ``x_t - sigma * eps_1``, as in the authors' code. ``"fixed"``: the outer
            step's image, as Algorithm 2 is printed.

            .. warning:: ``"fixed"`` is no defence. Its loss is smallest where the denoised image is
               the attacked one, so it rebuilds the attack. It is here to show that.
        gradient, deterministic, max_batch, seed: as in
            :class:`~scoreopt_defense.purifiers.base.Purifier`.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is allowed.

    Example:
        >>> import torch
        >>> from scoreopt_defense.denoisers import GaussianDenoiser
        >>> purifier = ScoreOpt(GaussianDenoiser(), variant="N", steps=5, lr=0.1, sigma=0.25)
        >>> purifier(torch.rand(8, 3, 32, 32)).shape
        torch.Size([8, 3, 32, 32])

    Reference:
        Zhang et al., "Enhancing Adversarial Robustness via Score-Based Optimization", NeurIPS 2023.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        variant: str = "N",
        loss: str | None = None,
        steps: int = 5,
        lr: float = 0.1,
        sigma: float | tuple[float, float] = 0.25,
        outer_steps: int = 1,
        optimizer: str = "adam",
        weight: float = 1.0,
        anchor: str = "moving",
        gradient: str = "one-shot",
        deterministic: bool = False,
        max_batch: int | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__(
            denoiser,
            sigma=sigma,
            gradient=gradient,
            deterministic=deterministic,
            max_batch=max_batch,
            seed=seed,
        )
        check_choice("variant", variant, ("O", "N"))
        if loss is None:
            loss = {"O": "diff", "N": "noise"}[variant]
        check_choice("loss", loss, ("diff", "mse", "sr", "noise"))
        check_choice("anchor", anchor, ("moving", "fixed"))
        if variant == "O" and outer_steps != 1:
            raise ValueError(
                f"outer_steps is for variant 'N'; ScoreOpt-O has only steps, got {outer_steps!r}"
            )
        if anchor == "fixed" and (variant == "O" or loss == "noise"):
            raise ValueError(
                "anchor='fixed' is Algorithm 2 as printed: variant 'N' with loss 'diff', 'mse' or "
                f"'sr', got variant {variant!r} with loss {loss!r}"
            )
        self.variant = variant
        self.loss = loss
        self.steps = check_count("steps", steps, least=0)
        self.outer_steps = check_count("outer_steps", outer_steps)
        self.optimizer = optimizer
        self.lr = check_positive("lr", lr)
        self.weight = check_positive("weight", weight, zero=True)
        self.anchor = anchor
        make_optimizer(optimizer, lr)

    @classmethod
    def from_preset(cls, name: str, denoiser: Denoiser, **overrides: Any) -> Self:
        """A setting of the paper's Table 10, or one tuned for a network that ships here.

        Args:
            name: such as ``"cifar10/bpda-eot-linf/N"``; an unknown name lists the known ones.
            denoiser: the prior.
            **overrides: arguments that replace the preset's.

        Example:
            >>> from scoreopt_defense.denoisers import GaussianDenoiser
            >>> ScoreOpt.from_preset("cifar10/bpda-eot-linf/N", GaussianDenoiser()).sigma
            (0.5, 0.5)
        """
        return cls(denoiser, **(preset(name) | overrides))

    def purify(self, x_a: Tensor, noise: Noise, run: Runner = call) -> Tensor:
        optimizer = make_optimizer(self.optimizer, self.lr)
        if self.variant == "O":
            return scoreopt_o(
                x_a, loss=self._loss, optimizer=optimizer, noise=noise, M=self.steps, run=run
            )
        return scoreopt_n(
            x_a,
            denoiser=self.denoiser,
            loss=self._loss,
            optimizer=optimizer,
            noise=noise,
            M=self.outer_steps,
            N=self.steps,
            anchored=self.anchor == "fixed",
            run=run,
        )

    def _loss(self, x_t: Tensor, x: Tensor, x_a: Tensor, *, draw: Draw, j: int) -> Tensor:
        sigma = draw.sigma.to(x)
        denoised = self.denoiser(x_t, sigma)
        if self.loss == "noise":
            return noise_error(denoised, x, sigma)
        value = denoising_error(denoised, x)
        if self.loss == "mse":
            value = value + self.weight * reconstruction(x, x_a)
        if self.loss == "sr":
            x_at = x_a + sigma * draw.eps_2(j, x_a)
            with torch.set_grad_enabled(x_a.requires_grad):
                denoised_a = self.denoiser(x_at, sigma)
            value = value + self.weight * score_regularization(denoised, denoised_a)
        return value

    def extra_repr(self) -> str:
        return (
            f"variant={self.variant!r}, loss={self.loss!r}, steps={self.steps}, lr={self.lr}, "
            f"outer_steps={self.outer_steps}, optimizer={self.optimizer!r}, {super().extra_repr()}"
        )
