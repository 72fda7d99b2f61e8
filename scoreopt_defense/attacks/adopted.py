"""Attack objects of torchattacks, Foolbox and ART, asked anew of any model as they are set."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from scoreopt_defense._checks import check_positive
from scoreopt_defense._optional import optional
from scoreopt_defense.attacks.wrappers import Around, Checked, default_dtype
from scoreopt_defense.defended import EOT

__all__ = ["Adopted", "adopt", "library_of"]

_LIBRARIES = ("torchattacks", "foolbox", "art")
_PLAIN = (type(None), str, Real)
# By name, those whose loss weighs logits against a distance: divided ones would weigh less.
_WEIGHING = r"^CW|Carlini|EAD|ElasticNet"


def library_of(attack: Any) -> str | None:
    """Which of these libraries an attack is an object of."""
    named = (kind.__module__.partition(".")[0] for kind in type(attack).__mro__)
    return next((name for name in named if name in _LIBRARIES), None)


def adopt(attack: Any, *, eps: float | None = None) -> Adopted:
    """An attack object of torchattacks, Foolbox or ART as one that :func:`evaluate` runs.

    It is shown the defence as it is, one evaluation a query. What it was made for, a model or an
    estimator, is left out of it: it is asked of the defence in its place.

    Args:
        attack: an object of a class of theirs, whose settings are in images in [0, 1].
        eps: of Foolbox's, which are given it with each call; the others have their own.

    Raises:
        TypeError: of another object.
        ValueError: if one of Foolbox's that is bounded has no ``eps``, or another is given one.

    Example:
        >>> import torchattacks, torch
        >>> theirs = torchattacks.PGD(torch.nn.Linear(4, 2), eps=0.1)
        >>> adopt(theirs).norm, adopt(theirs).eps
        ('linf', 0.1)
    """
    library = library_of(attack)
    if library is None:
        raise TypeError(
            f"attack must be an object of {', '.join(_LIBRARIES)}, got {type(attack).__name__}"
        )
    norm = _norm(attack, library)
    if library == "foolbox":
        if norm is not None and eps is None:
            raise ValueError(f"Foolbox's {type(attack).__name__} needs eps: adopt(attack, eps=...)")
        return Adopted(attack, library, norm, None if eps is None else check_positive("eps", eps))
    if eps is not None:
        raise ValueError(f"{library}'s {type(attack).__name__} has its own eps, got {eps!r}")
    nothing = nn.Identity()  # pickled with the attack, where its network would be too
    theirs = copy.deepcopy(attack, {id(_bound(attack, library)): nothing})
    eps = getattr(theirs, "eps", None)
    if norm is None or eps is None:
        return Adopted(theirs, library, None, None)
    return Adopted(theirs, library, norm, float(eps))


@dataclass(frozen=True)
class Adopted:
    """What :func:`adopt` makes; ``norm`` and ``eps`` are None where it may return any image."""

    theirs: Any
    library: str
    norm: str | None
    eps: float | None

    @property
    def name(self) -> str:
        """Its class's."""
        return type(self.theirs).__name__

    @property
    def libraries(self) -> tuple[str, ...]:
        """Whose versions tell results apart."""
        return (self.library,)

    def as_dict(self) -> dict[str, Any]:
        """The library, its class, and its settings: numbers and words."""
        about = {"library": self.library, "attack": self.name}
        return about | {"norm": self.norm, "eps": self.eps, "settings": dict(_said(self.theirs))}

    def run(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """As :meth:`scoreopt_defense.attacks.Attacking.run`."""
        scale_free = not re.search(_WEIGHING, self.name)
        checked = Checked(y, of=self.name, classes=2, scale_free=scale_free, by_direction=False)
        seen = Around(EOT(model, 1).eval(), checked)
        with torch.enable_grad(), default_dtype(torch.float32):
            return getattr(self, f"_{self.library}")(seen, x.clone(), y.clone())

    def _anew(self, bound: Any) -> Any:
        """Theirs, with this in the place of what it is bound to."""
        return copy.deepcopy(self.theirs, {id(_bound(self.theirs, self.library)): bound})

    def _torchattacks(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        attack = self._anew(model)
        attack.set_device(x.device)
        return attack(x, y)

    def _foolbox(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        theirs = optional("foolbox", extra="attacks")
        asked = theirs.PyTorchModel(model, bounds=(0, 1), device=x.device)
        return self.theirs(asked, x, y, epsilons=self.eps)[1]

    def _art(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        estimators = optional("art.estimators.classification", extra="art")
        with torch.no_grad():
            classes = model(x[:1]).shape[1]
        with torch.cuda.device_of(x):
            estimator = estimators.PyTorchClassifier(
                model=model,
                loss=nn.CrossEntropyLoss(),
                input_shape=tuple(x.shape[1:]),
                nb_classes=classes,
                clip_values=(0, 1),
                device_type="gpu" if x.is_cuda else "cpu",
            )
            found = self._anew(estimator).generate(x.float().cpu().numpy(), y.cpu().numpy())
        return torch.from_numpy(found).to(x)


def _bound(attack: Any, library: str) -> Any:
    """The model or estimator that an object is made for."""
    return attack.model if library == "torchattacks" else attack.estimator


def _norm(attack: Any, library: str) -> str | None:
    """By its name; None where the library does not say one."""
    if library == "foolbox":
        said = getattr(getattr(attack, "distance", None), "p", None)
    else:
        said = getattr(attack, "norm", None)
        if said is None:  # torchattacks says it in prose
            measures = re.findall(r"Distance Measure\s*:\s*(.*)", type(attack).__doc__ or "")
            said = measures[0] if len(measures) == 1 else None
    name = f"l{str(said).strip().lower().removeprefix('l')}".removesuffix(".0")
    return name if name in ("linf", "l2", "l1") else None


def _said(attack: Any) -> Iterator[tuple[str, Any]]:
    """The settings among an object's attributes, and those of the attacks that it consists of."""
    for name, value in sorted(vars(attack).items()):
        if name in ("model_name", "device"):
            continue
        several = value if isinstance(value, (list, tuple)) else [value]
        if all(isinstance(one, _PLAIN) for one in several):
            said = [str(one) if one in (math.inf, -math.inf) else one for one in several]
            yield name, said if isinstance(value, (list, tuple)) else said[0]
        elif all(library_of(one) and hasattr(one, "__dict__") for one in several):
            yield name, [{"attack": type(one).__name__} | dict(_said(one)) for one in several]
