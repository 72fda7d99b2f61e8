"""Purification by code that is not this library's, so that it can be judged as what is."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from scoreopt_defense._checks import check_flag, check_sigma, looks_rescaled
from scoreopt_defense._foreign import untouched
from scoreopt_defense.denoisers import Denoiser, NoDenoiser
from scoreopt_defense.gradients import BPDA, Gradient, Runner, as_it_is
from scoreopt_defense.noise import Noise, seeded
from scoreopt_defense.purifiers.base import Purifier
from scoreopt_defense.purifiers.settings import PurifierSettings, modes

__all__ = ["ThirdParty", "ThirdPartySettings"]


@dataclass(frozen=True, kw_only=True)
class ThirdPartySettings(PurifierSettings):
    """Settings of :class:`ThirdParty`."""

    gradient: Gradient = BPDA()
    differentiable: bool = True
    sigma: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_flag("differentiable", self.differentiable)
        if self.sigma is not None:
            self._set("sigma", check_sigma(self.sigma))
        if self.max_batch == "auto":
            raise ValueError(
                "max_batch must be a whole number or None: nothing is known of what a third "
                "party's purification holds in memory, got 'auto'"
            )


class ThirdParty(Purifier):
    """Any purification as a purifier, to be met by every attack that can be made on it.

    Wrap only what purifies, and give the classifier to :class:`~scoreopt_defense.DefendedModel`:
    then BPDA, transfer attacks, the one-shot surrogate and the true gradient can all be tried on
    it, where a module from images to logits has but its own backward pass.

    What it draws from the global generators of torch, numpy and ``random`` is seeded by the call
    and leaves no trace on them, so that calls are reproducible and a gradient is taken under the
    noise of its forward pass. Unlike the library's own noise it depends on an image's place in the
    chunk: with another ``max_batch`` it is other noise. Of several samples each is a call of its
    own, as some draw once for all images of a call. Gradients are recorded during a call, also
    where its caller records none: it may take some itself. Those of a module's weights are not.

    Args:
        purification: a module or function from images ``(B, C, H, W)`` in [0, 1] to the same. A
            module's weights move with the purifier and are part of a recorded run's key.
        denoiser: of the one-shot surrogate, with ``sigma``: the network that the purification
            itself knows, or one of the same images. Without both, that surrogate is not tried.
        sigma: the surrogate's noise level, or (low, high), on the [-1, 1] scale.
        differentiable: whether autograd goes through it, in mode ``"exact"``. Where it takes
            gradients itself, that is exact only if it takes them with ``create_graph=True``. It
            records all of a call at once: ``max_batch`` bounds the memory.
        gradient, deterministic, max_batch, autocast, channels_last, size, seed: as in
            :class:`~scoreopt_defense.purifiers.PurifierSettings`; the gradient is ``"bpda"``
            by default, ``"smoothed"`` is exact, and ``"auto"`` is no ``max_batch``.

    Raises:
        TypeError: if ``purification`` cannot be called.
        ValueError: if there is one of ``denoiser`` and ``sigma``; or, from a call, if it does not
            return images of the shape that it was given.
        RuntimeError: from a backward pass, if autograd does not go through it after all.

    Example:
        >>> import torch
        >>> purifier = ThirdParty(lambda x: (8 * x).round() / 8, differentiable=False)
        >>> purifier(torch.rand(8, 3, 32, 32)).shape, purifier.modes
        (torch.Size([8, 3, 32, 32]), ('bpda',))
    """

    Settings: ClassVar[type[PurifierSettings]] = ThirdPartySettings
    samples_apart: ClassVar[bool] = True

    settings: ThirdPartySettings

    def __init__(
        self,
        purification: Callable[[Tensor], Tensor],
        denoiser: Denoiser | None = None,
        settings: ThirdPartySettings | None = None,
        **values: object,
    ) -> None:
        if not callable(purification):
            raise TypeError(
                "purification must be a module or function of images, got "
                f"{type(purification).__name__}"
            )
        super().__init__(NoDenoiser() if denoiser is None else denoiser, settings, **values)
        if not isinstance(purification, nn.Module):
            purification = _Function(purification)
        self.purification = purification
        self._has_warned_of_output = False

    def _check(self, settings: PurifierSettings, denoiser: Denoiser) -> None:
        assert isinstance(settings, ThirdPartySettings)
        if (settings.sigma is None) != isinstance(denoiser, NoDenoiser):
            raise ValueError(
                "denoiser and sigma make the one-shot surrogate together: give both or neither, "
                f"got denoiser {type(denoiser).__name__} and sigma {settings.sigma!r}"
            )
        super()._check(settings, denoiser)

    @property
    def differentiable(self) -> bool:  # type: ignore[override]
        """The setting."""
        return self.settings.differentiable

    def purify(self, x_a: Tensor, noise: Noise, run: Runner = as_it_is) -> Tensor:
        # not as a step, which is carried out twice: its state may be another the second time
        return self._carry_out(x_a, noise.seed())

    def _carry_out(self, x_a: Tensor, seed: int) -> Tensor:
        recorded = torch.is_grad_enabled() and x_a.requires_grad
        x = (x_a + 1) / 2
        # it may take gradients of its own, also where none are recorded, but with no weight's
        with seeded(seed), untouched(self.purification), torch.enable_grad():
            purified = self.purification(x)
        if not isinstance(purified, Tensor) or purified.shape != x_a.shape:
            got = tuple(purified.shape) if isinstance(purified, Tensor) else type(purified).__name__
            raise ValueError(
                f"the purification must return images of shape {tuple(x_a.shape)}, as it was "
                f"given, got {got}"
            )
        if recorded and not purified.requires_grad:
            left = modes(self.settings.replace(differentiable=False), differentiable=False)
            raise RuntimeError(
                "autograd does not go through the purification, which cuts its graph by "
                "torch.no_grad, detach, a comparison or NumPy: mend that, or say "
                f"differentiable=False and attack it in the modes {list(left)}"
            )
        if purified.numel():
            self._warn_of_output(*torch.stack(purified.detach().aminmax()).tolist())
        return 2 * purified.to(x_a) - 1

    def _warn_of_output(self, low: float, high: float) -> None:
        if self._has_warned_of_output or not looks_rescaled(low, high):
            return
        self._has_warned_of_output = True
        warnings.warn(
            f"the purification returns images from {low:.4g} to {high:.4g}, and what is outside "
            "[0, 1] is cut off: if it works on another scale, as in [-1, 1], return (x + 1) / 2",
            stacklevel=2,
        )


class _Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)

    def extra_repr(self) -> str:
        return getattr(self.function, "__qualname__", type(self.function).__qualname__)
