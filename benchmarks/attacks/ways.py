"""What the rows of the search differ in: gradients and views that no attack of the package has."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
import torchattacks
from torch import Tensor, nn

from scoreopt_defense import EOT, DefendedModel
from scoreopt_defense.attacks import BoundedAttack
from scoreopt_defense.attacks.wrappers import Around
from scoreopt_defense.gradients import (
    Backward,
    Purification,
    Smoothed,
    Step,
    recompute,
    through_every_step,
)
from scoreopt_defense.noise import Noise, derive
from scoreopt_defense.optimizers import Adam
from scoreopt_defense.purifiers.descent import LossGradient, Update
from scoreopt_defense.steps.recomputation import Kept

KEEP_MB = 2000


@dataclass(frozen=True)
class ByStep:
    """Smoothed with a floor of each step's own: at the first step alone, or c / k at step k."""

    schedule: str
    c: float = 1.0

    def floor(self, count: int) -> float:
        return {"first": self.c * (count == 1), "decreasing": self.c / count}[self.schedule]

    def differentiate(self, purification: Purification, x_a: Tensor) -> tuple[Tensor, Backward]:
        def run(step: Any) -> Step:
            if not hasattr(step, "smoothed"):
                return recompute(step)
            return recompute(
                step, lambda count, *rest: step.smoothed(self.floor(count))(count, *rest)
            )

        return through_every_step(purification, x_a, run)


@dataclass(frozen=True)
class Truncated:
    """Smoothed through the last few steps alone: earlier ones shift the image by a constant."""

    last: int
    c: float = 1.0

    def differentiate(self, purification: Purification, x_a: Tensor) -> tuple[Tensor, Backward]:
        first = purification.purifier.steps - self.last + 1

        def run(step: Any) -> Step:
            if not hasattr(step, "smoothed"):
                return recompute(step)
            through = recompute(step, step.smoothed(self.c))

            def update(count: int, x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
                if count >= first:
                    return through(count, x, *rest)
                moved, *state = through(count, x, *(tensor.detach() for tensor in rest))
                return moved, *(tensor.detach() for tensor in state)

            return update

        return through_every_step(purification, x_a, run)


@dataclass(frozen=True)
class _HeldAdam(Adam):
    def _divisor(self, root: Tensor) -> Tensor:
        return super()._divisor(root.detach())


@dataclass(frozen=True)
class SecondMomentHeld:
    """Exact, but for Adam's second moment, which counts as a constant."""

    momentum: ClassVar[bool] = True

    def differentiate(self, purification: Purification, x_a: Tensor) -> tuple[Tensor, Backward]:
        kept = Kept(KEEP_MB, purification.purifier)

        def run(step: Any) -> Step:
            if not isinstance(step, Update):
                return kept(step)
            through = recompute(step, Update(_HeldAdam(), step.lr))

            def update(*inputs: Any) -> tuple[Tensor, ...]:
                moved, *state = through(*inputs)
                return moved, *(tensor.detach() for tensor in state)

            return through if self.momentum else update

        return through_every_step(purification, x_a, run)


@dataclass(frozen=True)
class MomentumDropped(SecondMomentHeld):
    """So, and each step's momentum is a constant to the next one: how DiffHammer attacks LM.

    Its code's other details are left out: there Adam's moments are kept as they are after the bias
    correction, which makes another defence, and gradients are clamped to 1e7.

    Reference:
        Wang et al., NeurIPS 2024; https://github.com/Ka1b0/DiffHammer (defense/llhd_maximize.py).
    """

    momentum: ClassVar[bool] = False


@dataclass(frozen=True)
class Averaged:
    """The mean of the one-shot and the smoothed gradient, each of length 1, at the latter's."""

    c: float = 1.0

    def differentiate(self, purification: Purification, x_a: Tensor) -> tuple[Tensor, Backward]:
        purified, through = Smoothed(self.c).differentiate(purification, x_a)

        def backward(grad: Tensor) -> Tensor:
            leaf = x_a.detach().requires_grad_()
            (one_shot,) = torch.autograd.grad(purification.one_shot(leaf), leaf, grad)
            smoothed = through(grad)
            return (smoothed + one_shot * _length(smoothed) / _length(one_shot)) / 2

        return purified, backward


@dataclass(frozen=True)
class Several:
    """The real defence, of so many purifications by one of EOT's ways to differentiate them."""

    samples: int
    aggregate: str

    def shown(self, model: DefendedModel) -> nn.Module:
        return EOT(model.with_gradient(Smoothed()), self.samples, aggregate=self.aggregate)


@dataclass(frozen=True)
class AfterSteps:
    """Mean logits of the images after some steps and after all, of the same noise (DiffAttack)."""

    steps: int

    def shown(self, model: DefendedModel) -> nn.Module:
        every = model.with_gradient(Smoothed())
        some = every.replace(steps=self.steps)

        def ask(model: nn.Module, x: Tensor) -> Tensor:
            seed = int(torch.randint(2**31, ()))
            return (model(x, seed=seed) + some(x, seed=seed)) / 2

        return Around(every, ask)


def _length(grad: Tensor) -> Tensor:
    tiny = torch.finfo(grad.dtype).tiny
    return torch.linalg.vector_norm(grad, dim=(1, 2, 3), keepdim=True).clamp(min=tiny)


@dataclass(frozen=True)
class Ahead:
    """Nesterov's: the gradient a share of the last step ahead of the image."""

    share: float = 0.9

    def shown(self, model: DefendedModel) -> nn.Module:
        last: list[Tensor] = []

        def ask(model: nn.Module, x: Tensor) -> Tensor:
            here = x.detach()
            there = here + self.share * (here - last[0]) if last else here
            last[:] = [here]
            return model(x + (there.clamp(0, 1) - here))

        return Around(model.with_gradient(Smoothed()), ask)


@dataclass(frozen=True)
class Common:
    """Common random numbers: one draw for so many steps in a row."""

    steps: int

    def shown(self, model: DefendedModel) -> nn.Module:
        start, calls = int(torch.randint(2**31, ())), 0

        def ask(model: nn.Module, x: Tensor) -> Tensor:
            nonlocal calls
            block, calls = calls // self.steps, calls + 1
            return model(x, seed=derive(start, block))

        return Around(model.with_gradient(Smoothed()), ask)


class _Negated(Noise):
    def _normal(self, i: int, use: int, like: Tensor) -> Tensor:
        return -super()._normal(i, use, like)


@dataclass(frozen=True)
class Antithetic:
    """Smoothed, of two samples, the second under the noise of the first with its sign turned."""

    def differentiate(self, purification: Purification, x_a: Tensor) -> tuple[Tensor, Backward]:
        half = len(x_a) // 2
        noise = purification.noise[:half]
        both = [
            Smoothed().differentiate(replace(purification, noise=noise), part)
            for noise, part in zip((noise, _Negated(noise.images, noise.batches)), x_a.split(half))
        ]

        def backward(grad: Tensor) -> Tensor:
            return torch.cat([back(part) for (_, back), part in zip(both, grad.split(half))])

        return torch.cat([purified for purified, _ in both]), backward


@dataclass(frozen=True)
class _Seen:
    """Smoothed, of each step's denoised image, one batch after the other, and of the last."""

    c: float = 1.0

    def differentiate(self, purification: Purification, x_a: Tensor) -> tuple[Tensor, Backward]:
        seen: list[Tensor] = []

        def run(step: Any) -> Step:
            if isinstance(step, LossGradient):  # whose denoised image is cut off from its graph

                def again(x_t: Tensor, *rest: Any) -> tuple[Tensor, ...]:
                    return *step(x_t, *rest)[:2], step.denoiser(x_t, rest[-1])

                return recompute(step, again)
            return recompute(step, step.smoothed(self.c) if hasattr(step, "smoothed") else None)

        def look(step: dict[str, Any]) -> None:
            seen.append(step["denoised"])

        def every(x_a: Tensor, run: Any) -> Tensor:
            told = replace(purification, options={"callback": look})
            return torch.cat([told(x_a, run), *seen])

        return through_every_step(every, x_a, run)


@dataclass(frozen=True)
class EachStep:
    """The mean of losses of each step's denoised image (DiffAttack, DiffBreak)."""

    def shown(self, model: DefendedModel) -> nn.Module:
        def ask(model: nn.Module, x: Tensor) -> Tensor:
            if not x.requires_grad:
                return model(x)
            purified = model.purifier(x)
            each = model.classifier(purified).unflatten(0, (-1, len(x)))
            return _OwnLoss.apply(each)

        return Around(model.with_gradient(_Seen()), ask)


class _OwnLoss(torch.autograd.Function):
    """The logits of the first, differentiated as the mean of cross-entropies of all."""

    @staticmethod
    def forward(ctx: Any, each: Tensor) -> Tensor:
        ctx.save_for_backward(each)
        return each[0].clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (each,) = ctx.saved_tensors
        labels = F.one_hot(grad.argmin(1), grad.shape[1])  # the one class whose logit has to fall
        return (each.softmax(2) - labels) / len(each)


@dataclass(frozen=True, kw_only=True)
class OfTorchattacks(BoundedAttack):
    """An attack of torchattacks by its name, through what every attack here is shown.

    Args:
        steps: gradients in all.
        method: the class.
        others: gradients a step, beside the first.
        step_size: a share of eps.
    """

    libraries: ClassVar[tuple[str, ...]] = ("torchattacks",)
    norms: ClassVar[tuple[str, ...]] = ("linf",)

    method: str = "NIFGSM"
    others: int = 0
    step_size: float = 0.25

    def attack(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        kind, steps = getattr(torchattacks, self.method), self.steps // (1 + self.others)
        if self.method.startswith("PI"):
            longer = {"amplification": self.step_size * steps}
            attack = kind(model, max_epsilon=self.eps, num_iter_set=steps, **longer)
        else:
            attack = kind(model, eps=self.eps, alpha=self.step_size * self.eps, steps=steps)
            attack.decay = 0.9
            attack.N = self.others
        attack.set_device(x.device)
        return attack(x, y)
