"""What every attack is: frozen settings, and one method that hands them to a library."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from scoreopt_defense._checks import (
    check_choice,
    check_count,
    check_labels,
    check_logits,
    check_positive,
    check_unit_images,
)
from scoreopt_defense._foreign import untouched
from scoreopt_defense._offloading import may_bring_weights
from scoreopt_defense.attacks.losses import divisors, margin
from scoreopt_defense.attacks.views import View, shown, views
from scoreopt_defense.defended import EOT
from scoreopt_defense.gradients import Gradient, OneShotGradient
from scoreopt_defense.settings import Options, Settings

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Attack", "BoundedAttack", "ProjectedGradientAttack", "strongest"]

# Largest eps that is no mistake of scale, images being in [0, 1]: no pixel is further than 1 from
# another; half the pixels of a CIFAR image, all the way, are 28 in l2, and no paper goes past 5; a
# flow of 2 leads from one edge of the image to the other
_LARGEST = {"linf": 1.0, "l2": 10.0, "flow": 2.0}


@dataclass(frozen=True, kw_only=True)
class Attack(Settings, ABC):
    """Settings of an attack, and :meth:`run`. A subclass writes :meth:`perturb`, a few lines.

    Args:
        preset: the named configuration that this one began as, whose budget is the paper's.
    """

    #: Whether it can begin elsewhere than its library does: :meth:`perturb` then has ``start=``.
    takes_start: ClassVar[bool] = False

    preset: str | None = None

    def run(self, model: nn.Module, x: Tensor, y: Tensor, *, start: Tensor | None = None) -> Tensor:
        """Attacked images.

        Random numbers are the library's, which draws them from the global generators of torch,
        numpy and ``random``: seed those, and the model's own, for the same result again.

        Args:
            model: from images in [0, 1] to logits: a :class:`~scoreopt_defense.DefendedModel`,
                which is shown as ``gradient`` says, or any other module, randomised or not. Nothing
                of it is changed, and it is attacked in the train or eval mode that it is in.
            x: clean images, shape ``(B, C, H, W)``, float32 or float64, in [0, 1].
            y: their labels, shape ``(B,)``, integers from 0.
            start: images to begin from, of the shape of ``x``, in [0, 1], such as those that
                another attack found: for a class that :attr:`takes_start`. What is outside the ball
                about ``x`` is projected onto it, and a random start is left out.

        Returns:
            Images of the shape, dtype and device of ``x``, in [0, 1], without a graph.

        Raises:
            TypeError, ValueError: if ``x``, ``y`` or ``start`` is no such batch, a ``start`` is
                given to an attack that takes none, or the model is on another device.
            ImportError: without the library; the error names the extra that brings it.
        """
        x = check_unit_images(x)
        y = check_labels(y, len(x))
        if start is not None:
            start = self._checked_start(start, x)
        devices = {part.device for part in model.parameters()}
        is_offloaded = devices == {torch.device("meta")} and may_bring_weights(model)
        if devices and x.device not in devices and not is_offloaded:  # libraries would move it
            raise ValueError(
                f"the model is on {', '.join(map(str, devices))} and the images are on {x.device}: "
                "move one of them, as in model.to(images.device)"
            )
        if not len(x):
            return x.clone()
        with torch.inference_mode(False), torch.enable_grad(), untouched(model):
            begin = {} if start is None else {"start": start.detach().clone().to(x)}
            x_adv = self.perturb(model, x.detach().clone(), y.detach().clone(), **begin)
            return x_adv.detach().to(x)

    def _checked_start(self, start: Tensor, x: Tensor) -> Tensor:
        if not self.takes_start:
            raise ValueError(
                f"start must be None for {type(self).__name__}, which begins where its library "
                "does; a class that takes one says takes_start = True, as FoolboxPGD does"
            )
        start = check_unit_images(start)
        if start.shape != x.shape:
            raise ValueError(
                f"start must have the images' shape {tuple(x.shape)}, got {tuple(start.shape)}"
            )
        return start

    @abstractmethod
    def perturb(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """As :meth:`run`, on checked arguments, gradients being recorded."""

    @property
    @abstractmethod
    def queries(self) -> int:
        """Most images that :meth:`run` has the model classify for each of its own.

        Exact unless the attack stops early on an image that it has broken. Of a defended model each
        is ``votes`` purifications; of a surrogate or a classifier that is shown, none.
        """

    @property
    def gradients(self) -> int:
        """How many of the :attr:`queries` are differentiated."""
        return 0

    @property
    @abstractmethod
    def threat(self) -> str:
        """What the attacker may do to an image, in a few words."""

    def budget(self) -> dict[str, Any]:
        """The settings, the threat and what it all costs, as JSON has it."""
        cost = {"threat": self.threat, "queries": self.queries, "gradients": self.gradients}
        return self.as_dict() | cost

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it, with the class under ``"kind"``."""
        return {"kind": type(self).__name__} | super().as_dict()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`as_dict`."""
        return super().from_dict({name: value for name, value in values.items() if name != "kind"})


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
            twice as fast where the processor has such arithmetic. The defence that judges the
            images does not. Gradients of float16 vanish, and the attack with them.

    Raises:
        ValueError: naming the setting, its value and what is allowed.
    """

    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")
    float32_only: ClassVar[bool] = False
    #: Whether it goes the same way if an image's logits are all divided by one number; False where
    #: its loss weighs them against something else. See :class:`_Shown`.
    scale_free: ClassVar[bool] = True

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
            check_choice("autocast", self.autocast, ("bfloat16",))
        self._set("eps", _check_eps(self.eps, self.norm))
        for count in ("eot", "steps", "restarts"):
            self._set(count, check_count(count, getattr(self, count)))

    @classmethod
    def options(cls) -> dict[str, Options]:
        return {"gradient": views()}

    def perturb(
        self, model: nn.Module, x: Tensor, y: Tensor, *, start: Tensor | None = None
    ) -> Tensor:
        seen: nn.Module = EOT(shown(self.gradient, model), self.eot).eval()
        if self.norm == "l2":
            seen = _Stretched(seen)
        if self.autocast is not None:
            seen = _Autocast(seen, getattr(torch, self.autocast))
        if self.float32_only and x.dtype != torch.float32:
            seen, x = _Cast(seen, x.dtype), x.float()
        seen = _Shown(seen, self, y)
        begin = {} if start is None else {"start": start.to(x)}
        # copies, since a library may write into what it is given
        with _by_default(torch.float32):
            found = [
                self.attack(seen, x.clone(), y.clone(), **{k: v.clone() for k, v in begin.items()})
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


def _check_eps(eps: object, norm: str) -> float:
    number = check_positive("eps", eps)
    if number > _LARGEST[norm]:
        raise ValueError(
            f"eps must be above 0 and at most {_LARGEST[norm]:g} in norm {norm!r}, images being in "
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


@contextmanager
def _by_default(dtype: torch.dtype) -> Iterator[None]:
    """Tensors are of this type unless they say: libraries count on float32."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class _Around(nn.Module):
    """A module around what an attack is shown, in its mode."""

    def __init__(self, model: nn.Module, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.model, self.dtype = model, dtype
        self.training = getattr(model, "training", False)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """Libraries move what they attack, which is on its device, or brought there by a hook."""
        return self


class _Stretched(_Around):
    """A model whose gradient's largest entry is 1, of each image: of it l2 takes the direction.

    A very sure classifier's is shorter than the 1e-12 and more that libraries add to its length, or
    its squares are 0 in float32: their steps would be short.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            x = x.view_as(x)
            x.register_hook(_stretched)
        return self.model(x)


def _stretched(gradient: Tensor) -> Tensor:
    largest = gradient.flatten(1).abs().amax(1).reshape(-1, 1, 1, 1)
    return gradient / torch.where(largest > 0, largest, 1)


class _Cast(_Around):
    """A model of another dtype than the library's."""

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x.to(self.dtype))


class _Autocast(_Around):
    """A model under autocast."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, self.dtype):
            return self.model(x)


class _Shown(_Around):
    """What an attack is shown: checked logits, of which the cross-entropy has a gradient.

    They are of the images' precision, or their own if that is higher.

    An image that the first differentiated call finds the model too sure of has its logits divided
    by :func:`~scoreopt_defense.attacks.losses.divisors`, and by the same ones in all later calls,
    so that losses stay comparable from step to step. Any other image's logits are divided by 1,
    which is exact, and so is its gradient: their bits are those of the model. So are all logits of
    a call that is not differentiated, or of another number of images than there are labels.

    Args:
        attack: whose answers these are.
        y: labels of the images, shape ``(B,)``.
    """

    def __init__(self, model: nn.Module, attack: BoundedAttack, y: Tensor) -> None:
        super().__init__(model)
        self.attack, self.y, self.highest = attack, y, int(y.max())
        self.divisors: Tensor | None = None
        self.default = torch.get_default_dtype()

    def forward(self, x: Tensor) -> Tensor:
        with _by_default(self.default):
            logits = check_logits(self.model(x), len(x))
        logits = logits.to(torch.promote_types(logits.dtype, x.dtype))
        if (classes := logits.shape[1]) < self.attack.classes:
            raise ValueError(
                f"{type(self.attack).__name__} needs at least {self.attack.classes} classes, got "
                f"{classes}; of two, take APGD with loss 'ce'"
            )
        if self.highest >= classes:
            raise ValueError(
                f"labels must be from 0 to {classes - 1}, the model's classes, got {self.highest}"
            )
        if not (self.attack.scale_free and logits.requires_grad and len(x) == len(self.y)):
            return logits
        if self.divisors is None:
            self.divisors = divisors(logits.detach(), self.y)
        return logits / self.divisors
