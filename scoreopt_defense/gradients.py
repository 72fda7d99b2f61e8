r"""How a purifier is differentiated. Knows no algorithm.

A gradient mode is an object of one method: what the purifier gives, and how its gradient goes back.
A surrogate of your own is such a class, and ``gradient=`` takes an object of it:

.. code-block:: python

    @dataclass(frozen=True)
    class MinusIdentity:
        def differentiate(self, purification, x_a):
            return purification(x_a), lambda grad: -grad

    ScoreOpt(denoiser, gradient=MinusIdentity())
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from scoreopt_defense._checks import check_positive
from scoreopt_defense._half_precision import in_range
from scoreopt_defense.noise import drawn_again
from scoreopt_defense.steps.recomputation import Kept, autocast_state, recompute
from scoreopt_defense.steps.step import Runner, Step, as_it_is, eager

__all__ = [
    "BPDA",
    "GRADIENTS",
    "Exact",
    "Gradient",
    "NoGradient",
    "OneShotGradient",
    "Purification",
    "Runner",
    "Smoothed",
    "Step",
    "as_it_is",
    "differentiate",
    "recompute",
    "through_every_step",
]

#: From the gradient of a purifier's output to that of its input.
Backward = Callable[[Tensor], Tensor]


class Purification(Protocol):
    """One call of a purifier under one draw of its noise: a function of the images alone.

    Images are in [-1, 1] here, shape ``(B, C, H, W)``, as the denoiser has them.
    """

    @property
    def purifier(self) -> Any:
        """The :class:`~scoreopt_defense.Purifier`."""

    @property
    def noise(self) -> Any:
        """Every random number of this call, a :class:`~scoreopt_defense.noise.Noise`."""

    def __call__(self, x_a: Tensor, run: Runner = ...) -> Tensor:
        """Purified images, each step of the algorithm carried out as ``run`` has it."""

    def one_shot(self, x_a: Tensor) -> Tensor:
        """One-shot denoising of the same images at the same noise level and noise."""


@runtime_checkable
class Gradient(Protocol):
    """A gradient mode.

    A class may say by ``needs`` what it asks of a purifier: ``"sigma"``, a noise level, or
    ``"differentiable"`` steps, or None. One that asks for what a purifier has not is refused there.
    """

    def differentiate(self, purification: Purification, x_a: Tensor) -> tuple[Tensor, Backward]:
        r"""The purified images, and the function that takes a gradient back through them.

        .. math:: \hat x = P(x_a), \qquad \frac{\partial L}{\partial \hat x} \mapsto
                  \frac{\partial L}{\partial x_a}

        Called without gradients being recorded; the second, which is linear, is called in the
        backward pass, once or more, with recording on and under the forward pass's autocast. What
        lies outside [-1, 1] is clamped afterwards, and that clamp passes gradients straight
        through: a saturated pixel does not hide them. A mode that clamps itself has the clamp's own
        derivative, as :func:`through_every_step` does: 0 at a pixel that was cut off.
        """


@dataclass(frozen=True)
class BPDA:
    """Backward through the identity (paper, 4.2.1).

    Reference:
        Athalye et al., "Obfuscated gradients give a false sense of security", ICML 2018.
    """

    needs: ClassVar[str | None] = None

    def differentiate(self, purification: Purification, x_a: Tensor) -> tuple[Tensor, Backward]:
        return purification(x_a), lambda grad: grad


@dataclass(frozen=True)
class OneShotGradient:
    r"""Backward through one-shot denoising at the same image, noise level and noise (4.2.2).

    .. math:: J_P(x_a)^\top g := J_D(x_a + \sigma\epsilon_1; \sigma)^\top g

    It is evaluated in the backward pass only, at what the denoiser drew in the forward pass, if it
    draws: from the global generators.

    Reference:
        Lee and Kim, ICCV 2023; Zhang et al., NeurIPS 2023, section 4.2.2.
    """

    needs: ClassVar[str | None] = "sigma"

    def differentiate(self, purification: Purification, x_a: Tensor) -> tuple[Tensor, Backward]:
        again = drawn_again(x_a.device)

        def backward(grad: Tensor) -> Tensor:
            leaf = x_a.detach().requires_grad_()
            with again():
                return torch.autograd.grad(purification.one_shot(leaf), leaf, grad)[0]

        return purification(x_a), backward


@dataclass(frozen=True)
class Exact:
    """The true Jacobian through every step, final clamp included, at the memory of one step.

    Needs a denoiser that is differentiable, and for ScoreOpt twice.

    Args:
        keep_mb: megabytes of what autograd records of the steps that may be kept for the backward
            pass, which then carries fewer of them out again: time bought with memory, for each
            chunk of ``max_batch`` images. Steps are kept from the first on, while one more of the
            largest so far fits; unless this is 0, the first is kept in any case. The value of a
            network with attention may then differ by rounding.
    """

    needs: ClassVar[str | None] = "differentiable"

    keep_mb: float = field(default=0.0, compare=False)  # which changes no gradient

    def __post_init__(self) -> None:
        check_positive("keep_mb", self.keep_mb, zero=True)

    def differentiate(self, purification: Purification, x_a: Tensor) -> tuple[Tensor, Backward]:
        return through_every_step(purification, x_a, Kept(self.keep_mb, purification.purifier))


@dataclass(frozen=True)
class Smoothed:
    r"""As :class:`Exact`, but for the optimiser's update: BPDA applied to the optimiser alone.

    Each step is carried out again with Adam's divisor replaced,

    .. math:: \sqrt{\hat v} + \varepsilon \;\to\;
              \sqrt{\hat v} + \varepsilon + c\, \mathrm{rms}(\sqrt{\hat v}),

    and that is differentiated exactly, at the states that the real steps went through. Adam's own
    derivative is nearly zero: its true Jacobian hides the network from the attack. The gradient is
    the exact one for an optimiser without a divisor, or a purifier without an optimiser, and tends
    to it as c goes to 0.

    Args:
        c: the floor under the divisor, in units of its root mean square over an image's pixels.
        keep_mb: as of :class:`Exact`.

    Reference:
        This library; docs/results/gradients.md.
    """

    needs: ClassVar[str | None] = "differentiable"

    c: float = 1.0
    keep_mb: float = field(default=0.0, compare=False)  # which changes no gradient

    def __post_init__(self) -> None:
        check_positive("c", self.c, zero=True)
        check_positive("keep_mb", self.keep_mb, zero=True)

    def differentiate(self, purification: Purification, x_a: Tensor) -> tuple[Tensor, Backward]:
        kept = Kept(self.keep_mb, purification.purifier)

        def run(step: Step) -> Step:
            if hasattr(eager(step), "smoothed"):
                return recompute(step, eager(step).smoothed(self.c))
            return kept(step)

        return through_every_step(purification, x_a, run)


def through_every_step(
    purification: Purification, x_a: Tensor, run: Runner
) -> tuple[Tensor, Backward]:
    """For a mode of one's own: what is recorded of the steps, each carried out as ``run`` has it.

    As :meth:`Gradient.differentiate`, with :func:`recompute` as ``run`` the exact gradient.
    """
    with torch.enable_grad():
        leaf = x_a.detach().requires_grad_()
        purified = purification(leaf, run).clamp(-1, 1)

    def backward(grad: Tensor) -> Tensor:
        return torch.autograd.grad(purified, leaf, grad, retain_graph=True)[0]

    return purified.detach(), backward


@dataclass(frozen=True)
class NoGradient:
    """No gradient, and an error where one is asked for: black-box attacks, deployment."""

    needs: ClassVar[str | None] = None

    def differentiate(self, purification: Purification, x_a: Tensor) -> tuple[Tensor, Backward]:
        def backward(grad: Tensor) -> Tensor:
            usable = list(purification.purifier.modes)
            raise RuntimeError(
                "this purifier was set to gradient='none'; to attack it by gradients choose one of "
                f"{usable}, as in purifier.with_gradient({usable[0]!r})"
            )

        return purification(x_a), backward


#: What ``gradient=`` may be by name.
GRADIENTS: dict[str, type] = {
    "one-shot": OneShotGradient,
    "bpda": BPDA,
    "exact": Exact,
    "smoothed": Smoothed,
    "none": NoGradient,
}


def differentiate(gradient: Gradient, purification: Purification, x_a: Tensor) -> Tensor:
    """The purified images, whose backward pass is the gradient mode's.

    Raises:
        RuntimeError: from the backward pass, if a network's weights have changed in between, or
            from one through that pass: there is no second derivative.
    """
    return _Differentiated.apply(x_a, gradient, purification)


class _Differentiated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_a: Tensor, gradient: Gradient, purification: Purification) -> Tensor:
        ctx.save_for_backward(x_a)
        ctx.autocast = autocast_state(x_a.device.type)
        ctx.networks = purification.purifier
        purified, ctx.go_back = gradient.differentiate(purification, x_a.detach())
        ctx.versions = _versions(ctx.networks)
        return purified.clamp(-1, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        if _versions(ctx.networks) != ctx.versions:
            raise RuntimeError(
                "the purifier's network was changed between a forward pass and its backward pass: "
                "the gradient would be that of another network"
            )
        with torch.enable_grad(), torch.autocast(**ctx.autocast):
            scaled, size = in_range(grad) if len(grad) == len(ctx.saved_tensors[0]) else (grad, 1)
            found = ctx.go_back(scaled) * size
        if torch.is_grad_enabled():  # create_graph=True
            found = _Once.apply(found, grad, *ctx.saved_tensors)
        return found, None, None


class _Once(torch.autograd.Function):
    """A gradient, tied to what it depends on: as a constant its own would be 0 without a word."""

    @staticmethod
    def forward(ctx: Any, found: Tensor, *depends_on: Tensor) -> Tensor:
        return found.view_as(found)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, ...]:
        raise RuntimeError(
            "a purifier's gradient cannot be differentiated again: no gradient mode has a second "
            "derivative. Leave out create_graph=True, or differentiate the classifier alone"
        )


def _versions(networks: nn.Module) -> list[tuple[int, int]]:
    """What changes when weights do: each tensor's place, and torch's count of its changes."""
    tensors = [*networks.parameters(), *networks.buffers()]
    return [(t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors]
