"""What every purifier is."""

from __future__ import annotations

import copy
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from scoreopt_defense._checks import (
    check_choice,
    check_count,
    check_images,
    check_sigma,
    looks_rescaled,
)
from scoreopt_defense.denoisers import Denoiser
from scoreopt_defense.gradients import (
    GRADIENT_MODES,
    Runner,
    call,
    differentiate_as,
    recompute,
    refuse_gradient,
)
from scoreopt_defense.noise import Noise

if TYPE_CHECKING:
    from typing_extensions import Self


__all__ = ["Purifier"]

_T = TypeVar("_T")


class Purifier(nn.Module, ABC):
    """A map from images in [0, 1] to images in [0, 1], randomised unless told otherwise.

    Args:
        denoiser: the prior; shared, never changed.
        sigma: noise level, or (low, high) to draw it from uniformly, on the [-1, 1] scale.
        gradient: how the purifier is differentiated; the forward value is the same in all modes.

            ``"one-shot"`` backward through one-shot denoising at the same x, noise level and
            noise (paper, 4.2.2), whose final clamp is passed straight through so that saturated
            pixels hide no gradient; ``"bpda"`` backward through the identity (paper, 4.2.1);
            ``"exact"`` the true Jacobian through every step, at the memory of one step, for a
            denoiser that is twice differentiable; ``"none"`` no gradient, and an error where one is
            asked for.
        deterministic: give every image the same fixed noise, so that the purifier is a function.
        max_batch: purify at most so many images at a time; the result is the same.
        seed: where the stream of noise starts. Each call goes on in the stream, so that repeated
            calls stay independent; without a seed it starts at the operating system's entropy.
            Torch's global generator is neither used nor advanced.

    Raises:
        TypeError: if ``denoiser`` is no :class:`~scoreopt_defense.denoisers.Denoiser`.
        ValueError: if another argument is out of its range, or ``sigma`` is outside the denoiser's.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        sigma: float | tuple[float, float],
        gradient: str = "one-shot",
        deterministic: bool = False,
        max_batch: int | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(denoiser, Denoiser):
            raise TypeError(
                f"denoiser must be a scoreopt_defense Denoiser, got {type(denoiser).__name__}; "
                "wrap a network in an adapter, such as EDMDenoiser(net) for net(x, sigma)"
            )
        self.denoiser = denoiser
        self.sigma = check_sigma(sigma, valid=denoiser.sigma_range)
        self.gradient = gradient
        self.deterministic = deterministic
        self.max_batch = max_batch
        if seed is not None:
            check_count("seed", seed, least=0)
        self._stream = np.random.SeedSequence(0 if seed is None and deterministic else seed)
        self._fixed_seed = _seed_of(self._stream) if deterministic else None
        self._has_warned = False
        self.training = False

    @property
    def gradient(self) -> str:
        """How the purifier is differentiated; may be set at any time."""
        return self._gradient

    @gradient.setter
    def gradient(self, mode: str) -> None:
        check_choice("gradient", mode, GRADIENT_MODES)
        self._gradient = mode

    @property
    def max_batch(self) -> int | None:
        """The most images purified at a time; may be set at any time."""
        return self._max_batch

    @max_batch.setter
    def max_batch(self, size: int | None) -> None:
        self._max_batch = None if size is None else check_count("max_batch", size)

    def forward(
        self,
        x: Tensor,
        *,
        seed: int | None = None,
        repeats: int = 1,
        max_batch: int | None = None,
    ) -> Tensor:
        """Purify a batch.

        Args:
            x: images, shape ``(B, C, H, W)``, float32 or float64, in [0, 1]. An attack's queries
                outside are purified as they are, with a warning, once, beyond 0.1, which may also
                be the sign of a wrong scale.
            seed: makes this call reproducible: the same seed and images give the same result, on
                any device and in chunks of any size.
            repeats: independent purifications of each image.
            max_batch: replaces the purifier's own for this call.

        Returns:
            Shape ``(repeats * B, C, H, W)``, all of ``x`` once, then all of it again; in [0, 1].

        Raises:
            TypeError, ValueError: if ``x`` is no such batch, not finite, or past -10 or 10.
        """
        low, high = check_images(x, channels=self.denoiser.channels)
        if looks_rescaled(low, high) and not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"images run from {low:.4g} to {high:.4g}, outside [0, 1]. That is harmless where "
                "an attack queries there; otherwise they are on another scale: divide pixels by "
                "255, and leave any normalisation to the classifier. They are purified as they are",
                stacklevel=2,
            )
        check_count("repeats", repeats)
        if max_batch is not None:
            check_count("max_batch", max_batch)
        if torch.is_inference_mode_enabled() or x.is_inference():  # where autograd does not work
            with torch.inference_mode(False):
                return self.forward(x.clone(), seed=seed, repeats=repeats, max_batch=max_batch)
        if seed is None:
            seed = self._next_seed()
        noise = Noise.of_batch(
            check_count("seed", seed, least=0) % 2**64,
            self.sigma,
            len(x),
            repeats,
            shared=self.deterministic,
        )
        rows = x.repeat(repeats, 1, 1, 1)
        size = max_batch or self.max_batch or len(rows)
        chunks = [slice(start, start + size) for start in range(0, len(rows), size or 1)]
        if not chunks:
            return rows
        return torch.cat([self._purify_chunk(rows[chunk], noise[chunk]) for chunk in chunks])

    def _purify_chunk(self, x: Tensor, noise: Noise) -> Tensor:
        settings = self._settings()

        def checked(step: Callable[..., _T]) -> Callable[..., _T]:
            def checked_step(*tensors: Tensor) -> _T:
                if self._settings() != settings:
                    raise RuntimeError(
                        "the purifier's settings were changed between a forward pass and its "
                        f"backward pass, from {settings} to {self._settings()}"
                    )
                return step(*tensors)

            return checked_step

        def purified(x: Tensor, run: Runner = call) -> Tensor:
            return _to_unit(self.purify(2 * x - 1, noise, run)).clamp(0, 1)

        def one_shot(x: Tensor) -> Tensor:
            return _to_unit(self._one_shot(2 * x - 1, noise))

        if not (torch.is_grad_enabled() and x.requires_grad):
            with torch.no_grad():
                return purified(x)
        if self.gradient == "exact":
            return purified(x, lambda step, *tensors: recompute(checked(step), *tensors))
        if self.gradient == "none":
            return refuse_gradient(x, purified)
        surrogate = {"one-shot": one_shot, "bpda": lambda x: x}[self.gradient]
        return differentiate_as(x, purified, checked(surrogate))

    def _settings(self) -> dict[str, Any]:
        """What the result depends on, but for the images and the noise."""
        public = {name: value for name, value in vars(self).items() if name[0] != "_"}
        return public | {"denoiser": id(self.denoiser)}

    def _one_shot(self, x_a: Tensor, noise: Noise) -> Tensor:
        r""":math:`D_\\theta(x_a + \\sigma\\epsilon_1; \\sigma)`, the first step's draw."""
        draw = noise.at(0)
        sigma = draw.sigma.to(x_a)
        return self.denoiser(x_a + sigma * draw.eps_1(x_a), sigma)

    def _next_seed(self) -> int:
        if self._fixed_seed is not None:
            return self._fixed_seed
        return _seed_of(self._stream.spawn(1)[0])

    @abstractmethod
    def purify(self, x_a: Tensor, noise: Noise, run: Runner = call) -> Tensor:
        """The algorithm, on the denoiser's scale.

        Args:
            x_a: attacked images, shape ``(B, C, H, W)``, in [-1, 1].
            noise: every random number of this call.
            run: carries out each step that calls the denoiser, as ``run(step, *tensors)``.

        Returns:
            Purified images, same shape and scale, not clamped.
        """

    def with_gradient(self, mode: str) -> Self:
        """A copy that is differentiated in another mode: same denoiser, noise of its own."""
        twin = copy.copy(self)
        twin.__dict__ |= {"_modules": dict(self._modules), "_stream": self._stream.spawn(1)[0]}
        twin.gradient = mode
        return twin

    def train(self, mode: bool = True) -> Self:
        """Change nothing: a purifier has one mode, and the network inside keeps its own."""
        return self

    def extra_repr(self) -> str:
        return f"sigma={self.sigma}, gradient={self.gradient!r}, max_batch={self.max_batch}"


def _to_unit(x: Tensor) -> Tensor:
    return (x + 1) / 2


def _seed_of(stream: np.random.SeedSequence) -> int:
    return int(stream.generate_state(1, np.uint64)[0])
