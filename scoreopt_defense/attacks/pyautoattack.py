"""Attacks of pyautoattack, the code of AutoAttack's authors as a package."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from scoreopt_defense._checks import check_choice, check_count
from scoreopt_defense._optional import optional
from scoreopt_defense.attacks.bounded import BoundedAttack, strongest

__all__ = ["AutoPGD"]

_NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}
_TARGETED = "dlr-targeted"


@dataclass(frozen=True, kw_only=True)
class AutoPGD(BoundedAttack):
    r"""As :class:`~scoreopt_defense.attacks.APGD`, in l1 too, and towards classes.

    With the targeted loss it is run towards each of the classes that lead on the clean image,

    .. math:: -\frac{z_y - z_t}{z_{\pi_1} - (z_{\pi_3} + z_{\pi_4}) / 2},

    with :math:`\pi` the classes from the highest logit down. In l1 it goes through balls of 3 and 2
    ``eps``, three tenths of the steps in each, to that of ``eps``. Of all runs' images the
    :func:`~scoreopt_defense.attacks.bounded.strongest` is kept. EOT is in what the attack is shown:
    the library's own judges an image by one evaluation, and returns what is not broken clean.

    Args:
        norm, eps, gradient, eot, steps, restarts: as in
            :class:`~scoreopt_defense.attacks.bounded.BoundedAttack`; ``steps`` of each run, in l1
            at least 5.
        loss: ``"ce"``, ``"dlr"`` or ``"dlr-targeted"``.
        targets: classes that the targeted loss goes towards, at most; all but the true one if there
            are fewer.

    Raises:
        ValueError: from a call, if there are fewer than three classes of the DLR loss, or four of
            the targeted one.

    Reference:
        Croce and Hein, ICML 2020; in l1 Croce and Hein, "Mind the box", ICML 2021.
    """

    libraries: ClassVar[tuple[str, ...]] = ("pyautoattack",)

    norms: ClassVar[tuple[str, ...]] = ("linf", "l2", "l1")
    float32_only: ClassVar[bool] = True
    compares: ClassVar[bool] = True

    steps: int = 100
    loss: str = "ce"
    targets: int = 9

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("loss", self.loss, ("ce", "dlr", _TARGETED))
        self._set("targets", check_count("targets", self.targets))
        if self.norm == "l1":
            self._set("steps", check_count("steps", self.steps, least=5))

    @property
    def classes(self) -> int:
        return {"ce": 2, "dlr": 3, _TARGETED: 4}[self.loss]

    @property
    def runs(self) -> int:
        """Most runs that one restart is."""
        return self.targets if self.loss == _TARGETED else 1

    @property
    def calls(self) -> int:
        ranked = int(self.loss == _TARGETED)
        return ranked + self.differentiated + 2 * self.runs  # one a candidate

    @property
    def differentiated(self) -> int:
        begun = 3 if self.norm == "l1" else 1  # each ball with a gradient that no step is taken by
        return self.runs * (self.steps + begun)

    def attack(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        library = optional("pyautoattack.autopgd_base", extra="autoattack")
        settings: dict[str, Any] = {
            "n_iter": self.steps, "norm": _NORMS[self.norm], "eps": self.eps, "device": x.device,
        }  # fmt: skip
        found: list[Tensor] = []
        for target in self._targets(model, x, y):
            if target is None:
                attack = library.APGDAttack(model, loss=self.loss, **settings)
            else:
                attack = library.APGDAttack_targeted(model, **settings)
                attack.y_target = target
            attack.init_hyperparam(x)
            if self.norm == "l1":
                wide = math.ceil(0.3 * self.steps)
                balls, steps = [3 * self.eps, 2 * self.eps, self.eps], [wide, wide]
                ended = attack.decr_eps_pgd(x, y, balls, [*steps, self.steps - 2 * wide])
            else:
                ended = attack.attack_single_run(x, y)
            highest, _, _, wrong = ended
            found += [highest.detach(), wrong.detach()]
        return strongest(model, found, y)

    def _targets(self, model: nn.Module, x: Tensor, y: Tensor) -> list[Any]:
        """The classes that each image's runs go towards, each of shape ``(B,)``."""
        if self.loss != _TARGETED:
            return [None]
        with torch.no_grad():
            logits = model(x).scatter(1, y[:, None], -torch.inf)
        return list(logits.topk(min(self.targets, logits.shape[1] - 1)).indices.unbind(1))
