"""What can be set of every purifier, and which gradient modes its settings leave it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from scoreopt_defense._checks import check_choice, check_count, check_flag, check_sigma
from scoreopt_defense._half_precision import half_precision
from scoreopt_defense.gradients import GRADIENTS, Gradient, NoGradient, OneShotGradient
from scoreopt_defense.settings import Options, Settings, name_of

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["PER_IMAGE", "PurifierSettings", "check_settings", "level_of", "modes"]

#: What ``deterministic`` is where each image of a batch has a fixed draw of its own.
PER_IMAGE = "per-image"
# Settings that came later, as they were before: results keep their keys without them.
_BEFORE = {"size": None, "sigma_per": "batch"}


@dataclass(frozen=True, kw_only=True)
class PurifierSettings(Settings):
    """What can be set of every purifier.

    Args:
        gradient: how it is differentiated, by name or as an object of
            :mod:`scoreopt_defense.gradients`; the forward value is the same in all modes.

            ``"one-shot"`` backward through one-shot denoising at the same x, noise level and
            noise (paper, 4.2.2); ``"bpda"`` backward through the identity (paper, 4.2.1);
            ``"exact"`` the true Jacobian through every step, at the memory of one step, for a
            denoiser that is twice differentiable; ``"smoothed"`` the same with a floor under Adam's
            divisor, the strongest known; ``"none"`` no gradient, and an error where one is asked
            for.
        deterministic: give every image the same fixed noise, so that the purifier is a function;
            that of seed 0 unless another is given. ``"per-image"``: each image of a batch a fixed
            draw of its own, by its place there: what an attacker sees who knows the draw of each.
        max_batch: purify at most so many images at a time; the result is the same, but for
            rounding. ``"auto"``: as many as half of the free memory holds, by what autograd records
            of one denoising.
        autocast: ``"bfloat16"`` or ``"float16"``: purify, and differentiate, under
            ``torch.autocast``. Images keep their type. ``"auto"``: ``"bfloat16"`` if the device
            that the denoiser is on when this is set computes it by instructions of its own, and
            the purifier's setting is then that, or None.
        channels_last: hand the denoiser images in that memory format, which suits the convolutions
            of GPUs with tensor cores.
        size: both sides, in pixels, that images are resized to before they are purified, and back
            after: those of the denoiser's own images. Every gradient mode differentiates the
            resizing as it is; see :func:`~scoreopt_defense.sizes.resized`.
        seed: where the stream of noise starts. Each call goes on in the stream, so that repeated
            calls stay independent, and each worker of a ``DataLoader`` has its own; without a seed
            it starts at the operating system's entropy. Torch's global generator is neither used
            nor advanced.

    Raises:
        ValueError: naming the setting, its value and what is allowed.
    """

    gradient: Gradient = OneShotGradient()
    deterministic: bool | str = False
    max_batch: int | str | None = None
    autocast: str | None = None
    channels_last: bool = False
    size: int | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.deterministic, bool) and self.deterministic != PER_IMAGE:
            raise ValueError(
                f"deterministic must be True, False or {PER_IMAGE!r}, got {self.deterministic!r}"
            )
        check_flag("channels_last", self.channels_last)
        if self.autocast is not None:
            check_choice("autocast", self.autocast, ("auto", "bfloat16", "float16"))
        if self.size is not None:
            self._set("size", check_count("size", self.size))
        if self.max_batch not in (None, "auto"):
            self._set("max_batch", check_count("max_batch", self.max_batch))
        if self.deterministic and self.seed is None:
            self._set("seed", 0)
        if self.seed is not None:
            self._set("seed", check_count("seed", self.seed, least=0))

    @classmethod
    def options(cls) -> dict[str, Options]:
        return {"gradient": Options(GRADIENTS, Gradient)}

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it; without what came later and is not set: results keep their keys."""
        found = super().as_dict()
        return {n: v for n, v in found.items() if n not in _BEFORE or v != _BEFORE[n]}

    @property
    def drawn(self) -> dict[str, bool]:
        """Which of a batch's images share which noise; see :meth:`Noise.of_batch`."""
        apart = getattr(self, "sigma_per", "batch") == "image"
        return {"shared": self.deterministic is True, "apart": apart}

    def settled(self, network: nn.Module) -> Self:
        """These, with what ``autocast="auto"`` comes to where the network is."""
        if self.autocast != "auto":
            return self
        device = next((part.device for part in network.parameters()), torch.device("cpu"))
        return self.replace(autocast=half_precision(device))


def level_of(settings: PurifierSettings) -> Any:
    """The noise level ``sigma``, or None of an algorithm that has none."""
    return getattr(settings, "sigma", None)


def modes(settings: PurifierSettings, *, differentiable: bool) -> tuple[str, ...]:
    """Names of the gradient modes in which a purifier of these settings can be attacked.

    Args:
        settings: which may themselves say whether its steps are differentiable.
        differentiable: whether they are where the settings do not say.
    """
    has = _has(settings, differentiable)
    kinds = {name: kind for name, kind in GRADIENTS.items() if kind is not NoGradient}
    return tuple(name for name, kind in kinds.items() if _needs(kind) in has)


def check_settings(
    settings: PurifierSettings, *, valid: tuple[float, float], kind: str, differentiable: bool
) -> None:
    """They fit a denoiser and a purifier.

    Args:
        valid: what ``sigma`` and ``level``, where there are such, must be within.
        kind: the purifier's class, of which the gradient mode asks for no more than it has.
        differentiable: see :func:`modes`.
    """
    for name in ("sigma", "level"):
        if (levels := getattr(settings, name, None)) is not None:
            check_sigma(levels, valid=valid, name=name)
    needs = _needs(type(settings.gradient))
    if needs not in _has(settings, differentiable):
        why = {
            "sigma": f"a noise level sigma, and {kind} has none",
            "differentiable": f"steps that autograd goes through, and {kind}'s are not",
        }
        raise ValueError(
            f"gradient={name_of(settings.gradient, GRADIENTS)!r} needs {why[str(needs)]}: it can "
            f"be attacked in the modes {list(modes(settings, differentiable=differentiable))}"
        )


def _has(settings: PurifierSettings, differentiable: bool) -> set[str | None]:
    """What a gradient mode may ask for, nothing included."""
    has: dict[str | None, bool] = {
        None: True,
        "sigma": level_of(settings) is not None,
        "differentiable": getattr(settings, "differentiable", differentiable),
    }
    return {name for name, there in has.items() if there}


def _needs(mode: type) -> str | None:
    """What a gradient mode asks of a purifier; one of the library's own says what, or is exact."""
    return getattr(mode, "needs", "differentiable" if mode in GRADIENTS.values() else None)
