"""Attacks that stay in a ball about each image: what of them is the same in every library."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from scoreopt_defense._checks import check_choice, check_count, check_positive
from scoreopt_defense._half_precision import half_precision
from scoreopt_defense.attacks.base import Attack
from scoreopt_defense.attacks.losses import margin
from scoreopt_defense.attacks.views import View, shown, views
from scoreopt_defense.attacks.wrappers import (
    Around,
    Checked,
    autocast,
    cast,
    default_dtype,
    finite,
    stretched,
)
from scoreopt_defense.defended import EOT
from scoreopt_defense.gradients import Gradient, OneShotGradient
from scoreopt_defense.settings import Options

__all__ = ["LARGEST", "BoundedAttack", "ProjectedGradientAttack", "check_eps", "strongest"]

#: Largest eps that is no mistake of scale, images being in [0, 1]: no pixel is further than 1 from
#: another; half the pixels of a CIFAR image, all the way, are 28 in l2, and no paper goes past 5;
#: in l1 none past 255, of ImageNet, where 12 is usual of CIFAR; a flow of 2 leads from one edge of
#: the image to the other, and 1 from any colour to any.
LARGEST = {"linf": 1.0, "l2": 10.0, "l1": 255.0, "flow": 2.0, "color": 1.0}


@dataclass(frozen=True, kw_only=True)
class BoundedAttack(Attack):
    """An attack within a ball about each image, by an iterative method of a library.

    Args:
        norm: of the ball, one of the class's :attr:`norms`.
        eps: its radius, images being in [0, 1]: 8/255, not 8.
        gradient: what the attack is shown of a defended model, by name or as an object. A mode of
            :mod:`scoreopt_defense.gradients` (``"one-shot"``, ``"bpda"``, ``"exact"``,
            ``"smoothed"``, ``"none"``): the real defence, differentiated so. ``"surrogate"``:
            one-shot denoising in its place, forward and backward. ``"shortened"``: the same defence
            of two steps. ``"classifier"``: the classifier alone. ``"as-it-is"``: what was passed
            in. Any other module is attacked as it is.
        eot: random evaluations that each answer of the model is the mean logits of.
        steps: of the method.
        restarts: the method is run so many times, and of each image the :func:`strongest` result
            kept, by what the attacker can see. A fair judge takes fresh evaluations.
        autocast: ``"bfloat16"``: what the attack is shown computes under ``torch.autocast``, about
            twice as fast where the processor has such arithmetic, and many times as slow where
            not. The defence that judges the images does not. ``"auto"``: where the processor has
            it, but None of an attack that compares answers; a run's plan says what that came to.
            ``"float32"`` is None.

    Raises:
        ValueError: naming the setting, its value and what is allowed.
    """

    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")
    float32_only: ClassVar[bool] = False
    #: Whether it goes the same way if an image's logits are all divided by one number; False where
    #: its loss weighs them against something else. See :mod:`scoreopt_defense.attacks.wrappers`.
    scale_free: ClassVar[bool] = True
    #: Whether it takes but the direction of each image's gradient.
    by_direction: ClassVar[bool] = True
    #: Whether it compares answers, of which half precision rounds small differences away.
    compares: ClassVar[bool] = False

    norm: str = "linf"
    eps: float = 8 / 255
    gradient: Gradient | View = OneShotGradient()
    eot: int = 20
    steps: int = 20
    restarts: int = 1
    autocast: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("norm", self.norm, self.norms)
        if self.autocast is not None:
            check_choice("autocast", self.autocast, ("auto", "bfloat16", "float32"))
        if self.autocast == "float32" or (self.autocast == "auto" and self.compares):
            self._set("autocast", None)
        self._set("eps", check_eps(self.eps, self.norm))
        for count in ("eot", "steps", "restarts"):
            self._set(count, check_count(count, getattr(self, count)))

    @classmethod
    def options(cls) -> dict[str, Options]:
        return {"gradient": views()}

    def perturb(
        self, model: nn.Module, x: Tensor, y: Tensor, *, start: Tensor | None = None
    ) -> Tensor:
        seen: nn.Module = EOT(shown(self.gradient, model), self.eot).eval()
        seen = Around(seen, stretched if self.norm == "l2" else finite)
        kind = half_precision(x.device) if self.autocast == "auto" else self.autocast
        if kind is not None:
            seen = Around(seen, partial(autocast, dtype=getattr(torch, kind)))
        if self.float32_only and x.dtype != torch.float32:
            seen, x = Around(seen, partial(cast, dtype=x.dtype)), x.float()
        of = type(self).__name__
        checked = Checked(
            y, of=of, classes=self.classes, scale_free=self.scale_free,
            by_direction=self.by_direction,
        )  # fmt: skip
        seen = Around(seen, checked)
        begin = {} if start is None else {"start": start.to(x)}
        plain = partial(torch.clone, memory_format=torch.contiguous_format)
        # copies, since a library may write into what it is given
        with default_dtype(torch.float32):
            found = [
                self.attack(seen, plain(x), y.clone(), **{k: plain(v) for k, v in begin.items()})
                for _ in range(self.restarts)
            ]
        return found[0] if len(found) == 1 else strongest(seen, found, y)

    @abstractmethod
    def attack(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """The library's attack, once, on what the attacker is shown, EOT included."""

    @property
    def classes(self) -> int:
        """Fewest classes that its loss is defined of."""
        return 2

    @property
    def calls(self) -> int:
        """Answers of the model, each of ``eot`` evaluations, that one run takes an image."""
        return self.steps

    @property
    def differentiated(self) -> int:
        """How many of those are differentiated."""
        return self.steps

    @property
    def queries(self) -> int:
        chosen_among = self.restarts if self.restarts > 1 else 0
        return self.eot * (self.restarts * self.calls + chosen_among)

    @property
    def gradients(self) -> int:
        return self.eot * self.restarts * self.differentiated

    @property
    def threat(self) -> str:
        return f"{self.norm} <= {self.eps:.4g}"


@dataclass(frozen=True, kw_only=True)
class ProjectedGradientAttack(BoundedAttack):
    r"""What projected gradient ascent has, whichever library takes it.

    .. math:: x \leftarrow \Pi_{\varepsilon, [0, 1]}\big(x + \alpha\, \mathrm{sign}\, \nabla_x
              H(y, \tfrac1k \sum_i f_i(x))\big)

    and along the gradient over its own length in l2.

    Args:
        norm, eps, gradient, eot, steps, restarts: as in :class:`BoundedAttack`.
        step_size: :math:`\alpha / \varepsilon`, a share of ``eps``: 0.25 is ``eps / 4``. Warns of a
            shorter one than that with which so few steps cannot reach the border of the ball.
        random_start: begin at a random point of the ball instead of the image.
    """

    step_size: float = 0.25
    random_start: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set("step_size", check_positive("step_size", self.step_size))
        if self.step_size < type(self).step_size and self.steps * self.step_size < 1:
            warnings.warn(
                f"{self.steps} steps of step_size {self.step_size:.3g} go no further than "
                f"{self.steps * self.step_size:.3g} of eps: step_size is a share of eps, as 0.25 "
                "is eps / 4",
                stacklevel=4,
            )


def check_eps(eps: object, norm: str) -> float:
    """A radius that is no mistake of scale."""
    number = check_positive("eps", eps)
    if number > LARGEST[norm]:
        raise ValueError(
            f"eps must be above 0 and at most {LARGEST[norm]:g} in norm {norm!r}, images being in "
            f"[0, 1], got {eps!r}; 8 of 255 levels are 8/255"
        )
    return number


def strongest(model: nn.Module, found: Sequence[Tensor], y: Tensor) -> Tensor:
    """Of each image the candidate whose :func:`~scoreopt_defense.attacks.losses.margin` is highest.

    Args:
        model: what judges; one answer a candidate.
        found: candidates, each of shape ``(B, C, H, W)``.
        y: labels, shape ``(B,)``.
    """
    with torch.no_grad():
        margins = torch.stack([margin(model(x), y) for x in found])
    return torch.stack(list(found))[margins.argmax(0), torch.arange(len(y), device=y.device)]
