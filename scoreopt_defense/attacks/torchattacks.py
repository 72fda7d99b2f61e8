"""Attacks of torchattacks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from scoreopt_defense._checks import check_choice, check_count, check_positive
from scoreopt_defense._optional import optional
from scoreopt_defense.attacks.bounded import BoundedAttack, ProjectedGradientAttack, strongest
from scoreopt_defense.attacks.views import View
from scoreopt_defense.gradients import Gradient, NoGradient

__all__ = ["APGD", "PGD", "SPSA", "AutoAttack", "Square"]

_NORMS = {"linf": "Linf", "l2": "L2"}
_APGD_LOSSES = ("ce", "dlr")


@dataclass(frozen=True, kw_only=True)
class PGD(ProjectedGradientAttack):
    """Projected gradient ascent of the cross-entropy of the mean logits.

    Shown the classifier it is transfer PGD, in mode ``"bpda"`` BPDA+EOT, in mode ``"one-shot"``
    PGD+EOT. Settings are those of
    :class:`~scoreopt_defense.attacks.bounded.ProjectedGradientAttack`.

    Example:
        >>> PGD(eps=8/255, eot=20, steps=20).queries
        400

    Reference:
        Madry et al., ICLR 2018; Athalye et al., ICML 2018 (BPDA, EOT).
    """

    libraries: ClassVar[tuple[str, ...]] = ("torchattacks",)

    def attack(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        kind = {"linf": _library().PGD, "l2": _library().PGDL2}[self.norm]
        alpha, start = self.step_size * self.eps, self.random_start
        attack = kind(model, eps=self.eps, alpha=alpha, steps=self.steps, random_start=start)
        return _run(attack, x, y)


@dataclass(frozen=True, kw_only=True)
class _AutoPGD(BoundedAttack):
    """APGD, once for each of some losses; their strongest candidate is kept."""

    libraries: ClassVar[tuple[str, ...]] = ("torchattacks",)
    compares: ClassVar[bool] = True

    steps: int = 100

    @property
    def losses(self) -> tuple[str, ...]:
        """By the library's names."""
        raise NotImplementedError

    @property
    def classes(self) -> int:
        return 3 if "dlr" in self.losses else 2  # it divides by the third logit's distance

    @property
    def calls(self) -> int:
        return self.differentiated + 2 * len(self.losses)  # one a candidate

    @property
    def differentiated(self) -> int:
        return len(self.losses) * (self.steps + 1)

    def attack(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        found: list[Tensor] = []
        for loss in self.losses:
            attack = _library().APGD(
                model, norm=_NORMS[self.norm], eps=self.eps, steps=self.steps, loss=loss
            )
            attack.set_device(x.device)
            highest, _, _, wrong = attack.attack_single_run(x, y)
            found += [highest.detach(), wrong.detach()]
        return strongest(model, found, y)


@dataclass(frozen=True, kw_only=True)
class APGD(_AutoPGD):
    """Projected gradient ascent that halves its step where it gets no further.

    Begins at a random point. The image of highest loss and the last one classified wrongly are
    candidates; the :func:`~scoreopt_defense.attacks.bounded.strongest` is kept.

    Args:
        norm, eps, gradient, eot, steps, restarts: as in
            :class:`~scoreopt_defense.attacks.bounded.BoundedAttack`.
        loss: ``"ce"``, cross-entropy, or ``"dlr"``, the difference-of-logits ratio.

    Raises:
        ValueError: from a call, with the DLR loss, if there are fewer than three classes.

    Reference:
        Croce and Hein, ICML 2020.
    """

    loss: str = "ce"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("loss", self.loss, _APGD_LOSSES)

    @property
    def losses(self) -> tuple[str, ...]:
        return (self.loss,)


@dataclass(frozen=True, kw_only=True)
class AutoAttack(_AutoPGD):
    """AutoAttack's version for randomised defences: APGD on cross-entropy, and on the DLR loss.

    The strongest of both runs' candidates is kept; see :class:`APGD`. So an image that is not
    broken comes back attacked, where the authors' code returns it clean: by fresh noise it may
    break yet. EOT is in what the attack is shown, so that a step is taken, and an image counted as
    broken, by the mean logits of ``eot`` evaluations; the library's own ``eot_iter`` judges by one
    of them, and its ``"rand"`` takes 10 steps, where the authors' takes 100.

    Args:
        norm, eps, gradient, eot, steps, restarts: as in
            :class:`~scoreopt_defense.attacks.bounded.BoundedAttack`; ``steps`` of each of the two.

    Raises:
        ValueError: from a call, if there are fewer than three classes, of which there is no DLR
            loss: take :class:`APGD`.

    Reference:
        Croce and Hein, ICML 2020.
    """

    @property
    def losses(self) -> tuple[str, ...]:
        return _APGD_LOSSES


@dataclass(frozen=True, kw_only=True)
class SPSA(BoundedAttack):
    """Black box by scores: the gradient of the margin estimated from pairs of queries.

    Args:
        norm, eps, gradient, eot, steps, restarts: as in
            :class:`~scoreopt_defense.attacks.bounded.BoundedAttack`.
        samples: pairs of queries a step.
        lr: Adam's, relative to eps.
        delta: how far apart the queries of a pair are from the image, relative to eps; they may lie
            outside [0, 1].
        chunk: samples evaluated at once, so many copies of the batch.

    Reference:
        Uesato et al., ICML 2018.
    """

    libraries: ClassVar[tuple[str, ...]] = ("torchattacks",)
    compares: ClassVar[bool] = True

    norms: ClassVar[tuple[str, ...]] = ("linf",)

    gradient: Gradient | View = NoGradient()
    eot: int = 1
    steps: int = 5
    samples: int = 128
    lr: float = 0.5
    delta: float = 0.25
    chunk: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        for count in ("samples", "chunk"):
            self._set(count, check_count(count, getattr(self, count)))
        for number in ("lr", "delta"):
            self._set(number, check_positive(number, getattr(self, number)))

    @property
    def calls(self) -> int:
        return 2 * self.samples * self.steps

    @property
    def differentiated(self) -> int:
        return 0

    def attack(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        attack = _library().SPSA(
            model, eps=self.eps, delta=self.delta * self.eps, lr=self.lr * self.eps,
            nb_iter=self.steps, nb_sample=self.samples,
            max_batch_size=min(self.chunk, self.samples),
        )  # fmt: skip
        return _run(attack, x, y)


@dataclass(frozen=True, kw_only=True)
class Square(BoundedAttack):
    """Black box by scores: random squares, kept where they lower the margin.

    An image that is not broken comes back as far as it got, where the library returns it clean.

    Args:
        norm, eps, gradient, eot, restarts: as in
            :class:`~scoreopt_defense.attacks.bounded.BoundedAttack`.
        steps: squares tried; each is one answer, of ``eot`` queries.

    Reference:
        Andriushchenko et al., ECCV 2020.
    """

    libraries: ClassVar[tuple[str, ...]] = ("torchattacks",)
    compares: ClassVar[bool] = True

    gradient: Gradient | View = NoGradient()
    eot: int = 8
    steps: int = 124

    @property
    def calls(self) -> int:
        return 1 + self.steps

    @property
    def differentiated(self) -> int:
        return 0

    def attack(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        attack = _library().Square(
            model, norm=_NORMS[self.norm], eps=self.eps, n_queries=self.steps
        )
        attack.set_device(x.device)
        attack.init_hyperparam(x)
        return attack.attack_single_run(x, y)[1]


def _library() -> Any:
    return optional("torchattacks", extra="attacks")


def _run(attack: Any, x: Tensor, y: Tensor) -> Tensor:
    attack.set_device(x.device)  # which it takes from the first weight, if there is one
    return attack(x, y)
