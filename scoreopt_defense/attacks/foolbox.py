"""Attacks of Foolbox."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scoreopt_defense._checks import check_choice, check_positive
from scoreopt_defense._optional import optional
from scoreopt_defense.attacks.bounded import BoundedAttack, ProjectedGradientAttack
from scoreopt_defense.attacks.losses import LOSSES
from scoreopt_defense.attacks.views import View
from scoreopt_defense.attacks.wrappers import Around
from scoreopt_defense.gradients import Gradient, NoGradient

__all__ = ["FoolboxPGD", "MinimumNorm", "MomentumPGD", "RandomNoise"]

_TINY = 1e-30  # of a gradient of zero, which stays one


@dataclass(frozen=True, kw_only=True)
class FoolboxPGD(ProjectedGradientAttack):
    r"""As :class:`~scoreopt_defense.attacks.PGD`, by Foolbox, whose random start is uniform in l2.

    The authors' code takes it for transfer PGD. It can begin at images that are passed to
    :meth:`run` as ``start``, raise another loss than the cross-entropy, and step along a running
    mean of gradients, in steps that become shorter:

    .. math:: m \leftarrow \mu m + g / \overline{|g|}, \qquad
              x \leftarrow \Pi_{\varepsilon, [0, 1]}\big(x + \alpha_i\, \mathrm{sign}\, m\big)

    and along m over its own length in l2. For l1 take
    :class:`~scoreopt_defense.attacks.AutoPGD`: the library's descent leaves many more images there.

    Args:
        norm, eps, gradient, eot, steps, restarts, step_size, random_start: as in
            :class:`~scoreopt_defense.attacks.bounded.ProjectedGradientAttack`.
        loss: of the mean logits: ``"cross-entropy"``, ``"margin"`` or ``"dlr"``; see
            :mod:`scoreopt_defense.attacks.losses`.
        momentum: :math:`\mu`; 0 steps along the last gradient alone.
        last_step: of ``eps``, the share that the last step has: their sizes fall to it from
            ``step_size`` by half a cosine. None: all are of one size.

    Reference:
        Dong et al., CVPR 2018, for momentum; Croce and Hein, ICML 2020, for shorter steps.
    """

    libraries: ClassVar[tuple[str, ...]] = ("foolbox",)

    takes_start: ClassVar[bool] = True

    loss: str = "cross-entropy"
    momentum: float = 0.0
    last_step: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("loss", self.loss, LOSSES)
        self._set("momentum", check_positive("momentum", self.momentum, zero=True))
        if self.last_step is not None:
            self._set("last_step", check_positive("last_step", self.last_step))

    def attack(
        self, model: nn.Module, x: Tensor, y: Tensor, *, start: Tensor | None = None
    ) -> Tensor:
        foolbox = optional("foolbox", extra="attacks")
        kind = {
            "linf": foolbox.attacks.LinfPGD,
            "l2": foolbox.attacks.L2PGD,
        }[self.norm]
        attack = _hooked(kind, self, start)(
            rel_stepsize=self.step_size,
            steps=self.steps,
            random_start=self.random_start or start is not None,
        )
        bounded = foolbox.PyTorchModel(model, bounds=(0, 1), device=x.device)
        return attack.run(bounded, x, y, epsilon=self.eps)


def _hooked(kind: Any, settings: FoolboxPGD, start: Tensor | None) -> Any:
    """The library's class, by the methods that it has for others to override."""
    astensor = optional("eagerpy", extra="attacks").astensor

    class Hooked(kind):
        def get_loss_fn(self, model: Any, labels: Any) -> Any:
            loss = LOSSES[settings.loss]
            return lambda x: astensor(loss(model(x).raw, labels.raw).sum())

        def get_random_start(self, x0: Any, epsilon: float) -> Any:
            if start is None:
                return super().get_random_start(x0, epsilon)
            return self.project(astensor(start), x0, epsilon)

        def get_optimizer(self, x: Any, stepsize: float) -> Any:
            self.mean, sizes = torch.zeros_like(x.raw), _sizes(settings)
            return lambda gradients: settings.eps * next(sizes) * gradients

        def normalize(self, gradients: Any, *, x: Any, bounds: Any) -> Any:
            if settings.momentum:
                size = gradients.raw.abs().mean((1, 2, 3), keepdim=True).clamp(min=_TINY)
                self.mean = settings.momentum * self.mean + gradients.raw / size
                gradients = astensor(self.mean)
            return super().normalize(gradients, x=x, bounds=bounds)

    return Hooked


def _sizes(settings: FoolboxPGD) -> Iterator[float]:
    """Of the steps, as shares of eps."""
    first, count = settings.step_size, max(settings.steps - 1, 1)
    last = first if settings.last_step is None else settings.last_step
    for place in range(settings.steps):
        yield last + (first - last) * (1 + math.cos(math.pi * place / count)) / 2


@dataclass(frozen=True, kw_only=True)
class MomentumPGD(FoolboxPGD):
    """Many steps of one sample along a running mean of gradients, from the clean image.

    Of a random defence the mean over steps does what EOT does within a step, at a share of its
    cost; the steps begin at half of ``eps`` and end at a fiftieth.

    Args:
        norm, eps, gradient, eot, steps, restarts: as in :class:`FoolboxPGD`.
        step_size, random_start, loss, momentum, last_step: likewise.
    """

    takes_start: ClassVar[bool] = False

    eot: int = 1
    steps: int = 80
    step_size: float = 0.5
    momentum: float = 0.9
    last_step: float | None = 0.02


@dataclass(frozen=True, kw_only=True)
class MinimumNorm(BoundedAttack):
    r"""The nearest image that is wrong, so that one run is accuracy against every radius.

    By FMN in linf and l1, and by DDN in l2, since the library's FMN of l2 never projects. What is
    found further away than ``eps`` is scaled back to it; an image of which nothing is found comes
    back clean. How far each is from its clean image is recorded, and
    :meth:`~scoreopt_defense.evaluation.Result.curve` is made of it.

    Of a random model the nearest image was wrong by a lucky draw, and is on the boundary of others.
    So an image counts as wrong where another class leads by more than ``confidence``,

    .. math:: \max_{k \ne y} z_k - z_y > \kappa

    Args:
        norm, eps, gradient, eot, steps, restarts, autocast: as in
            :class:`~scoreopt_defense.attacks.bounded.BoundedAttack`.
        confidence: :math:`\kappa`, at least 0, of the mean logits.

    Reference:
        Pintor et al., "Fast minimum-norm adversarial attacks", NeurIPS 2021; Rony et al.,
        "Decoupling direction and norm", CVPR 2019; Carlini and Wagner, S&P 2017, for the lead.
    """

    libraries: ClassVar[tuple[str, ...]] = ("foolbox",)
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2", "l1")
    by_direction: ClassVar[bool] = False  # FMN steps by the loss over the gradient's size
    compares: ClassVar[bool] = True

    steps: int = 100
    confidence: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set("confidence", check_positive("confidence", self.confidence, zero=True))

    @property
    def calls(self) -> int:
        return self.steps + 1  # of what is found

    @property
    def differentiated(self) -> int:
        return self.steps

    def attack(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        foolbox = optional("foolbox", extra="attacks")
        attack = {
            "linf": foolbox.attacks.LInfFMNAttack,
            "l2": partial(foolbox.attacks.DDNAttack, init_epsilon=self.eps),
            "l1": foolbox.attacks.L1FMNAttack,
        }[self.norm](steps=self.steps)

        def behind(model: nn.Module, x: Tensor) -> Tensor:
            logits = model(x)
            return logits + self.confidence * F.one_hot(y, logits.shape[1])

        bounded = foolbox.PyTorchModel(Around(model, behind), bounds=(0, 1), device=x.device)
        return attack(bounded, x, y, epsilons=self.eps)[1]

    def distances(self, x: Tensor, attacked: Tensor) -> Tensor:
        """See :class:`~scoreopt_defense.attacks.protocols.Nearest`."""
        far = (attacked - x).flatten(1).norm(float(self.norm[1:]), dim=1)
        return far.clamp(max=self.eps)  # but for a rounding


@dataclass(frozen=True, kw_only=True)
class RandomNoise(BoundedAttack):
    """Random noise of an attack's size, which an attack must outdo: uniform, and Gaussian in l2.

    Args:
        norm, eps, restarts: as in :class:`~scoreopt_defense.attacks.bounded.BoundedAttack`; the
            model is asked only to choose among restarts.
    """

    libraries: ClassVar[tuple[str, ...]] = ("foolbox",)

    gradient: Gradient | View = NoGradient()
    eot: int = 1
    steps: int = 1

    @property
    def calls(self) -> int:
        return 0

    @property
    def differentiated(self) -> int:
        return 0

    def attack(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        foolbox = optional("foolbox", extra="attacks")
        kind = {
            "linf": foolbox.attacks.LinfAdditiveUniformNoiseAttack,
            "l2": foolbox.attacks.L2AdditiveGaussianNoiseAttack,
        }[self.norm]
        bounded = foolbox.PyTorchModel(model, bounds=(0, 1), device=x.device)
        noised = kind().run(bounded, x, y, epsilon=self.eps)
        # it scales by the largest value, and the lowest may be further from 0
        return noised if self.norm == "l2" else x + (noised - x).clamp(-self.eps, self.eps)
