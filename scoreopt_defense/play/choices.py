"""What there is to choose, and what is made of a choice; names of files are no choice."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from scoreopt_defense import data, pretrained
from scoreopt_defense._checks import check_choice
from scoreopt_defense.attacks import ATTACKS, Attack, RandomNoise
from scoreopt_defense.denoisers import Denoiser
from scoreopt_defense.evaluation import named
from scoreopt_defense.evaluation.judging.threat_model import usual_eps
from scoreopt_defense.play import pictures
from scoreopt_defense.presets import PRESETS
from scoreopt_defense.purifiers import KINDS, Purifier, ScoreOpt, WithoutNetwork
from scoreopt_defense.settings import Settings

__all__ = ["Asked", "Domain", "domains"]

_SAMPLES = 10  # of a user's own images
# What of a purifier, and of an attack, can be set in the page, if it has it.
_OF_PURIFIERS = ("steps", "sigma", "lr")
_OF_ATTACKS = ("eps", "steps", "eot")


class Asked(BaseModel):
    """What a browser asks for; a setting that is left out is the preset's."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    image: str = Field(max_length=4_000_000)
    label: int | None = Field(None, ge=0)
    classifier: str
    attack: str = "none"
    eps: float | None = Field(None, gt=0)
    attack_steps: int | None = Field(None, ge=1, le=1000)
    eot: int | None = Field(None, ge=1, le=64)
    defence: str = "none"
    steps: int | None = Field(None, ge=1, le=200)
    sigma: tuple[float, float] | None = None
    lr: float | None = Field(None, gt=0)
    seed: int = Field(0, ge=0, lt=2**32)


@dataclass(frozen=True)
class Domain:
    """Images of one kind, and the networks for them.

    Args:
        shape: of an image, ``(C, H, W)``.
        classes: their names.
        classifiers: by the names of :func:`scoreopt_defense.evaluation.named.classifier`.
        denoiser: by a name of :func:`scoreopt_defense.pretrained.denoiser`.
        samples: images as addresses, and their classes.
    """

    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    classifiers: tuple[str, ...]
    denoiser: str
    samples: tuple[tuple[str, int], ...] = ()

    def as_json(self) -> dict[str, Any]:
        """For the page: names, and the settings that each attack and defence begins with."""
        defences = {
            name: _of(kind.Settings.of(**values), _OF_PURIFIERS)
            for name, (kind, values) in self.defences().items()
        }
        attacks = {
            name: _of(attack, _OF_ATTACKS) | {"queries": attack.queries, "threat": attack.threat}
            for name, attack in self.attacks().items()
        }
        return {
            "shape": self.shape, "classes": self.classes, "classifiers": self.classifiers,
            "samples": self.samples, "attacks": {"none": {}} | attacks,
            "defences": {"none": {}} | defences,
        }  # fmt: skip

    def attacks(self) -> dict[str, Attack]:
        """Those whose libraries are there, each at the eps that is usual of such images."""
        found = {"random-noise": RandomNoise(), **ATTACKS}
        if min(self.shape[1:]) < 32:
            del found["corruptions"]  # whose library asks for larger ones
        return {
            name: attack.replace(eps=eps)
            if (eps := usual_eps(getattr(attack, "norm", None), self.shape))
            else attack
            for name, attack in found.items()
            if all(map(find_spec, attack.libraries))
        }

    def defences(self) -> dict[str, tuple[type[Purifier], dict[str, Any]]]:
        """By name: the purifier's class, and its settings."""
        own = [name for name in PRESETS if name.startswith(f"{self.denoiser}/")]
        tuned = {f"ScoreOpt {name}": (ScoreOpt, PRESETS[name]) for name in own or PRESETS}
        return tuned | {n: (kind, {}) for n, kind in KINDS.items() if kind is not ScoreOpt}

    def classifier(self, asked: Asked) -> nn.Module:
        """The one asked for; ValueError if it is none of these."""
        check_choice("classifier", asked.classifier, self.classifiers)
        return _classifier(asked.classifier)

    def attack(self, asked: Asked) -> Attack | None:
        """Likewise, with the settings asked for that it has; None for ``"none"``."""
        if asked.attack == "none":
            return None
        check_choice("attack", asked.attack, ["none", *self.attacks()])
        attack = self.attacks()[asked.attack]
        wanted = {"eps": asked.eps, "steps": asked.attack_steps, "eot": asked.eot}
        return attack.replace(**_given(wanted, attack.names()))

    def purifier(self, asked: Asked) -> Purifier | None:
        """Likewise."""
        if asked.defence == "none":
            return None
        check_choice("defence", asked.defence, ["none", *self.defences()])
        kind, values = self.defences()[asked.defence]
        wanted = {"steps": asked.steps, "sigma": asked.sigma, "lr": asked.lr}
        settings = kind.Settings.of(**values).replace(**_given(wanted, kind.Settings.names()))
        network = None if issubclass(kind, WithoutNetwork) else _denoiser(self.denoiser)
        parts: dict[str, Any] = {"denoiser": network} if network else {}
        return kind(**parts, settings=settings)


def _of(settings: Settings, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in names if name in settings.names()}


def _given(wanted: dict[str, Any], names: list[str]) -> dict[str, Any]:
    return {name: value for name, value in wanted.items() if value is not None and name in names}


_classifier = cache(named.classifier)


@cache
def _denoiser(name: str) -> Denoiser:
    own = name.startswith("python:")
    return named.made(name.removeprefix("python:")) if own else pretrained.denoiser(name)


def domains(
    *, images: str | None = None, classifier: str | None = None, denoiser: str | None = None
) -> list[Domain]:
    """The networks that ship, and a user's own.

    Args:
        images: samples, as of :func:`scoreopt_defense.data.source`: of the networks that ship, for
            those of their shape.
        classifier, denoiser: networks by name, both or neither; ``images`` says their shape.

    Raises:
        ValueError: if some of it is missing, or does not fit.
    """
    # of each class the first test image of data.mnist; MNIST's licence is CC BY-SA 3.0
    digits = (Path(__file__).parent / "page" / "digits.png").read_bytes()
    strip = pictures.read(digits, (1, 28, 280))
    samples = ((pictures.as_url(x), y) for y, x in enumerate(strip.split(28, dim=3)))
    found = [
        Domain((1, 28, 28), tuple("0123456789"), ("mnist-tiny",), "mnist-tiny", tuple(samples)),
        Domain(
            (3, 32, 32), data.CIFAR10_CLASSES, ("cifar10-tiny", "cifar10-tiny-at"), "cifar10-tiny"
        ),
    ]
    if bool(classifier) != bool(denoiser) or (classifier and not images):
        raise ValueError("a network of your own needs --classifier, --denoiser and --images")
    if not images:
        return found
    given = data.source(images)
    places = np.linspace(0, len(given) - 1, min(_SAMPLES, len(given))).astype(int)
    urls = [pictures.as_url(x[None]) for x in given.read(places)]
    shown = tuple(zip(urls, given.labels[places].tolist(), strict=True))
    if classifier and denoiser:
        classes = _classifier(classifier)(given.read(places[:1])).shape[1]
        called = (*given.classes, *map(str, range(len(given.classes), classes)))
        _denoiser(denoiser)
        return [Domain(given.shape, called, (classifier,), denoiser, shown), *found]
    fits = [domain.shape == given.shape for domain in found]
    if not any(fits):
        raise ValueError(f"no network that ships is for images of shape {given.shape}")
    return [replace(domain, samples=shown) if fit else domain for domain, fit in zip(found, fits)]
