"""One image certified: what its noised copies are classified as, and what that proves."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from scoreopt_defense._checks import check_count, check_positive
from scoreopt_defense.defended import DefendedModel
from scoreopt_defense.evaluation.certification import bounds
from scoreopt_defense.evaluation.judging.asking import answer
from scoreopt_defense.evaluation.suite.probes import Measurement
from scoreopt_defense.noise import Noise, RoundedNormal, seeded
from scoreopt_defense.purifiers import KINDS, DiffPure, OneShot
from scoreopt_defense.purifiers.settings import level_of

__all__ = ["Certification", "own_level"]

#: Levels of a pixel on the grid of the noise, on which images of 8 bits are.
LEVELS = 255 * 256
# Of float64, in a quantile of the beta distribution and in that of the normal one.
_ROUNDING = 1e-12


def own_level(model: nn.Module) -> float | None:
    """The noise level, on the [-1, 1] scale, of a defence whose own noise is the certificate's.

    That of :class:`OneShot` and :class:`DiffPure`, to whose output x comes through x + sigma eps
    alone; not where sigma is drawn, the noise is fixed, the image is resized before, or several
    noised copies are averaged into one answer. None of all others.
    """
    if not isinstance(model, DefendedModel) or type(model.purifier) not in (OneShot, DiffPure):
        return None
    settings = model.purifier.settings
    low, high = level_of(settings)
    plain = settings.size is None and not settings.deterministic and model.votes == 1
    return low if plain and low == high else None


@dataclass(frozen=True, kw_only=True)
class Certification(Measurement):
    """Certify each image: CERTIFY of Cohen et al., which looks more than once.

    Args:
        sigma: of the noise, on the [-1, 1] scale.
        n0, n: noised copies that choose the class, and others that bound its probability.
        alpha: how often, at most, a certificate is wrong.
        until_pixels: l2, on [0, 1] pixels: an image stops where it is certified so far.
        max_batch: noised copies in a call.
    """

    sigma: float
    n0: int = 100
    n: int = 10_000
    alpha: float = 0.001
    until_pixels: float | None = None
    max_batch: int = 256

    def __post_init__(self) -> None:
        for name in ("n0", "n", "max_batch"):
            check_count(name, getattr(self, name), most=2**30)
        check_positive("sigma", self.sigma)
        if check_positive("alpha", self.alpha) >= 0.5:
            raise ValueError(f"alpha must be below 0.5, got {self.alpha!r}")
        if self.until_pixels is not None:
            check_positive("until_pixels", self.until_pixels)

    @property
    def sigma_pixels(self) -> float:
        """The same noise level on [0, 1] pixels."""
        return self.sigma / 2

    @property
    def looks(self) -> list[int]:
        return bounds.looks(self.n)

    @property
    def alpha_of_a_look(self) -> float:
        """Only looks that may end in a certificate spend anything: without a goal the last one."""
        return self.alpha / (1 if self.until_pixels is None else len(self.looks))

    @property
    def most_pixels(self) -> float:
        """The largest l2 radius that it can come to: of an image whose every copy is of a class."""
        bound = bounds.lower_bound(np.array(self.n), self.n, self.alpha_of_a_look)
        return float(bounds.radius(bound, self.sigma_pixels))

    @torch.no_grad()
    def measure(self, model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Of each image, shape ``(B,)``, float64.

        ``top`` is the class that ``n0`` copies chose, ``count`` of ``draws`` others are of it, and
        ``bound`` is below its probability. ``predicted`` is it again, or -1, an abstention, where
        the radius is 0: ``radius_pixels`` and ``radius_paper``, l2, on [0, 1] and [-1, 1].
        """
        copies = _Copies(self, model, x)
        every = np.arange(len(x))
        top = _majority(copies.classes(every, range(self.n0)))
        count, draws = np.zeros(len(x), dtype=int), np.zeros(len(x), dtype=int)
        bound, left = np.zeros(len(x)), every
        for before, look in zip([0, *self.looks], self.looks):
            found = copies.classes(left, range(self.n0 + before, self.n0 + look))
            count[left] += (found == top[left]).sum(0)
            draws[left] = look
            if look == self.n or self.until_pixels is not None:
                now = bounds.lower_bound(count[left], look, self.alpha_of_a_look) - copies.error
                bound[left] = np.maximum(bound[left], now)
            far = copies.radius(bound)[left] >= (self.until_pixels or np.inf)
            left = left[~far & ~bounds.futile(count[left], look)]
            if not len(left):
                break
        pixels = copies.radius(bound)
        measured = {
            "top": top, "predicted": np.where(pixels > 0, top, -1), "count": count,
            "draws": draws, "bound": bound, "radius_pixels": pixels, "radius_paper": 2 * pixels,
        }  # fmt: skip
        return {name: torch.from_numpy(value).double() for name, value in measured.items()}


def _majority(classes: np.ndarray) -> np.ndarray:
    """The class of most draws, of the lowest number if there are two; shape ``(B,)``."""
    return np.array([np.bincount(of_image).argmax() for of_image in classes.T])


class _Copies:
    """Noised copies of some images, each a function of the seed, the image and the draw.

    Args:
        x: shape ``(B, C, H, W)``, in [0, 1]; what is certified is the image on the grid that is
            nearest to each, and :meth:`radius` is less by the way there.
    """

    def __init__(self, settings: Certification, model: nn.Module, x: Tensor) -> None:
        self.sigma, self.x, self.max_batch = settings.sigma_pixels, x, settings.max_batch
        self.levels = (x.double() * LEVELS).round().long().flatten(1)
        moved = self.levels.double() / LEVELS - x.double().flatten(1)
        self.moved = moved.norm(dim=1).cpu().numpy()
        seed = int(torch.randint(2**62, (), device="cpu"))  # whose generator starts at the unit's
        self.key = Noise.of_batch(seed, len(x), device=x.device).images
        self.normal = RoundedNormal(self.sigma * LEVELS)
        self.error = self.levels.shape[1] * self.normal.error + _ROUNDING
        own = own_level(model) == settings.sigma
        self.ask: Any = partial(model, noised=True) if own else model
        self.apart = not _independent(model, self._noised(np.arange(len(x)), range(1)))

    def radius(self, bound: np.ndarray) -> np.ndarray:
        """On [0, 1] pixels, l2, around the images themselves."""
        return np.maximum(bounds.radius(bound, self.sigma) - self.moved, 0)

    def classes(self, images: np.ndarray, draws: range) -> np.ndarray:
        """What copies of these images are taken for, shape ``(len(draws), len(images))``."""
        size = 1 if self.apart else max(1, self.max_batch // len(images))
        return np.concatenate([
            self._classified(images, draws[start : start + size])
            for start in range(0, len(draws), size)
        ])  # fmt: skip

    def _classified(self, images: np.ndarray, draws: range) -> np.ndarray:
        with warnings.catch_warnings():  # of images beyond [0, 1], which noise makes of any
            warnings.filterwarnings("ignore", "images run from")
            logits = answer(self.ask, self._noised(images, draws))
        return logits.argmax(1).reshape(len(draws), len(images)).cpu().numpy()

    def _noised(self, images: np.ndarray, draws: range) -> Tensor:
        """Images, copy by copy: integers, exactly summed, of which floats are made at the end."""
        rows = torch.from_numpy(images).to(self.levels.device)
        key = self.key[0][rows], self.key[1][rows]
        noised = self.levels[rows] + self.normal.draw(key, draws, self.levels.shape[1])
        return (noised.to(self.x.dtype) / LEVELS).reshape(-1, *self.x.shape[1:])


def _independent(model: nn.Module, x: Tensor) -> bool:
    """Whether what a call answers to one image has no chance in common with its others.

    Otherwise each copy of an image has a call of its own, as a binomial count needs. A range of
    noise levels is drawn once for a batch, and so may be what is drawn by code that is not ours.
    """
    seed = {}
    if isinstance(model, DefendedModel):
        low, high = level_of(model.purifier.settings) or (0, 0)
        if type(model.purifier) not in KINDS.values() or low < high:
            return False
        seed = {"seed": 0}
    answers = []
    for start in (0, 1):
        with seeded(start), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "images run from")
            answers.append(answer(partial(model, **seed), x))
    return torch.equal(*answers)
