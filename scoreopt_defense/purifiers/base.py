"""A purifier: what all of them do with a batch of images, whatever the algorithm."""

from __future__ import annotations

import copy
import inspect
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from scoreopt_defense._checks import check_count, check_images, looks_rescaled
from scoreopt_defense._transforms import refuse_transforms
from scoreopt_defense.denoisers import Denoiser, of_pipeline
from scoreopt_defense.gradients import Gradient, Runner, as_it_is
from scoreopt_defense.noise import Noise, Stream
from scoreopt_defense.purifiers.batching import (
    carry_out,
    chunks,
    fitting,
    precision,
    recorded_bytes,
)
from scoreopt_defense.purifiers.settings import PurifierSettings, check_settings, level_of, modes
from scoreopt_defense.settings import Frozen
from scoreopt_defense.sizes import resized

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Purifier"]

_HALF = (torch.float16, torch.bfloat16)
_POSITIONAL = inspect.Parameter.POSITIONAL_OR_KEYWORD


class Purifier(Frozen, ABC):
    """A map from images in [0, 1] to images in [0, 1], randomised unless told otherwise.

    It is what it was made: :meth:`replace` makes another. A subclass names its settings' class and
    writes :meth:`purify`; if its settings have a noise level ``sigma``, that is checked against the
    denoiser's and gives it a one-shot surrogate. Without one, its settings need another default of
    ``gradient``, such as ``BPDA()``.

    Args:
        denoiser: the prior, or a diffusers pipeline that has one; shared, never changed.
        settings: of the class :attr:`Settings`; or
        **values: the same by name.

    Attributes:
        settings: the frozen settings; each is also an attribute of the purifier.

    Raises:
        TypeError: if ``denoiser`` is no :class:`~scoreopt_defense.denoisers.Denoiser`, or a setting
            is unknown.
        ValueError: if a setting is out of its range, a noise level outside the denoiser's, or the
            gradient mode none of :attr:`modes`.
    """

    Settings: ClassVar[type[PurifierSettings]] = PurifierSettings
    #: Whether autograd can go through :meth:`purify`.
    differentiable: ClassVar[bool] = True
    #: Whether repetitions of a batch must not be purified in one, which would share their noise.
    samples_apart: ClassVar[bool] = False

    settings: PurifierSettings

    def __init__(
        self, denoiser: Denoiser | Any, settings: PurifierSettings | None = None, **values: Any
    ) -> None:
        super().__init__()
        if not isinstance(denoiser := of_pipeline(denoiser), Denoiser):
            raise TypeError(
                f"denoiser must be a scoreopt_defense Denoiser, got {type(denoiser).__name__}; "
                "wrap a network in an adapter, such as EDMDenoiser(net) for net(x, sigma)"
            )
        if any(part.training for part in denoiser.modules()):
            warnings.warn(
                "the denoiser's network is in training mode, and the purifier leaves it there, so "
                "that dropout and batch statistics are at work in it: call its eval() first unless "
                "that is meant",
                stacklevel=3,
            )
        if not isinstance(settings, (self.Settings, type(None))):
            raise TypeError(
                f"settings must be {self.Settings.__name__}, got {type(settings).__name__}"
            )
        settings = self.Settings.of(**values) if settings is None else settings.replace(**values)
        self._check(settings := settings.settled(denoiser), denoiser)
        self.denoiser = denoiser
        self.settings = settings
        self._stream = Stream(settings.seed)
        self._has_warned = False
        self._bytes: dict[Any, int] = {}
        self.training = False

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        own = inspect.signature(cls.Settings).parameters.values()
        parts = inspect.signature(cls.__init__).parameters
        networks = [p for name, p in parts.items() if name not in ("self", "settings", "values")]
        first = [inspect.Parameter(p.name, _POSITIONAL, default=p.default) for p in networks]
        cls.__signature__ = inspect.Signature([*first, *own])  # type: ignore[attr-defined]

    def __getattr__(self, name: str) -> Any:
        settings = self.__dict__.get("settings")
        if settings is not None and name in settings.names():
            return getattr(settings, name)
        return super().__getattr__(name)

    def _has(self, name: str) -> bool:
        return super()._has(name) or name in self._replaceable()

    def _replaceable(self) -> Sequence[str]:
        return self.Settings.names()

    def _check(self, settings: PurifierSettings, denoiser: Denoiser) -> None:
        """Refuse settings that do not fit this denoiser or this algorithm."""
        kind, valid = type(self), denoiser.sigma_range
        check_settings(
            settings, valid=valid, kind=kind.__name__, differentiable=kind.differentiable
        )

    @property
    def modes(self) -> tuple[str, ...]:
        """Names of the gradient modes in which this purifier can be attacked."""
        return modes(self.settings, differentiable=type(self).differentiable)

    def forward(
        self,
        x: Tensor,
        *,
        seed: int | None = None,
        samples: int = 1,
        max_batch: int | None = None,
        **options: Any,
    ) -> Tensor:
        """Purify a batch.

        Args:
            x: images, shape ``(B, C, H, W)``, float32 or float64, or in half precision, which are
                purified in float32; in [0, 1]. An attack's queries outside are purified as they
                are, with a warning, once, beyond 0.1, which may also be the sign of a wrong scale.
            seed: makes this call reproducible: the same seed gives the same noise on any device, in
                chunks of any size, and the same images the same result, but for what networks round
                otherwise there. Needed where ``torch.utils.checkpoint`` carries a call out again.
            samples: independent purifications of each image.
            max_batch: replaces the purifier's own for this call.
            **options: of the algorithm; see its ``purify``.

        Returns:
            Shape ``(samples * B, C, H, W)``, all of ``x`` once, then all of it again; in [0, 1],
            of the type of ``x``.

        Raises:
            TypeError, ValueError: if ``x`` is no such batch, not finite, or past -10 or 10.
            RuntimeError: if a backward pass makes the call, and gives it no seed; or if torch is to
                record or transform the purifier (``torch.export``, ``torch.func``, ``torch.fx``,
                ``torch.jit``) and not to call it.
        """
        refuse_transforms(self, x)
        call = {"seed": seed, "samples": samples, "max_batch": max_batch, **options}
        if torch.compiler.is_compiling():  # a model around it: its noise is no graph's constant
            return torch.compiler.disable(self.forward)(x, **call)
        if isinstance(x, Tensor) and x.dtype in _HALF:
            return self.forward(x.float(), **call).to(x.dtype)
        self._warn_of_scale(*check_images(x, channels=self.denoiser.channels))
        check_count("samples", samples)
        if max_batch is not None:
            check_count("max_batch", max_batch)
        if torch.is_inference_mode_enabled() or x.is_inference():  # where autograd does not work
            with torch.inference_mode(False):
                return self.forward(x.clone(), **call)
        seed = self._next_seed() if seed is None else check_count("seed", seed, least=0)
        noise = Noise.of_batch(seed, len(x), samples, **self.settings.drawn, device=x.device)
        x_a = 2 * x.repeat(samples, 1, 1, 1) - 1
        if not len(x_a):
            return x_a
        x_a = resized(x_a, self.settings.size)
        if self.settings.channels_last:
            x_a = x_a.contiguous(memory_format=torch.channels_last)
        together = len(x) if self.samples_apart else len(x_a)
        parts = chunks(len(x_a), max_batch or self.chunk(x_a), together)
        with precision(x_a, self.settings.autocast):
            purified = [carry_out(self, x_a[rows], noise[rows], options) for rows in parts]
        return (resized(torch.cat(purified), x.shape[-2:]) + 1) / 2

    def chunk(self, x: Tensor) -> int:
        """Images that are purified at a time, of a batch of shape ``(B, C, H, W)``."""
        size = self.settings.max_batch
        if not isinstance(size, str):
            return size or len(x)
        return fitting(x.device, self._recorded(resized(x[:1].detach(), self.settings.size)))

    def _recorded(self, x: Tensor) -> int:
        """Bytes that autograd keeps of the denoising of one image."""
        autocast = self.settings.autocast
        key = x.shape, x.dtype, x.device, autocast
        if key not in self._bytes:
            self._bytes[key] = recorded_bytes(self.denoiser, x, autocast)
        return self._bytes[key]

    @abstractmethod
    def purify(self, x_a: Tensor, noise: Noise, run: Runner = as_it_is) -> Tensor:
        """The algorithm, on the denoiser's scale.

        Args:
            x_a: attacked images, shape ``(B, C, H, W)``, in [-1, 1].
            noise: every random number of this call.
            run: how each step that is to be differentiated is carried out: ``run(step)`` is called
                in its place.

        Returns:
            Purified images, same shape and scale, not clamped.
        """

    def one_shot(self, x_a: Tensor, noise: Noise) -> Tensor:
        r"""One-shot denoising, :math:`D(x_a + \sigma\epsilon_1; \sigma)`: the usual surrogate.

        Raises:
            NotImplementedError: for an algorithm without a noise level ``sigma``.
        """
        if (levels := level_of(self.settings)) is None:
            raise NotImplementedError(
                f"{type(self).__name__} has no noise level sigma, and so no one-shot surrogate: "
                "choose another gradient, such as 'exact' or 'bpda'"
            )
        sigma = noise.level(levels, 0, x_a)
        return self.denoiser(x_a + sigma * noise.eps_1(0, x_a), sigma)

    def replace(self, **changes: Any) -> Self:
        """A twin with other settings: the same denoiser, noise of its own; this one stays.

        A seeded purifier's twins have seeds that follow from its own, each another one, unless
        ``seed`` is among the changes. ``deterministic`` ones keep theirs, and with it the noise.

        Raises:
            TypeError, ValueError: as the constructor's.
        """
        if "seed" not in changes:
            changes["seed"] = self._others_seed(self._stream.next_twin)
        settings = self.settings.replace(**changes).settled(self.denoiser)
        self._check(settings, self.denoiser)
        return self._twin(settings=settings, _stream=Stream(settings.seed))

    def with_gradient(self, gradient: str | Gradient) -> Self:
        """Short for ``replace(gradient=...)``."""
        return self.replace(gradient=gradient)

    def _next_seed(self) -> int:
        if self.settings.deterministic:
            return self._stream.start
        return self._stream.next_call()

    def _others_seed(self, derived: Callable[[], int]) -> int | None:
        """What a twin's or a copy's setting is: none if this one has none, its own if fixed."""
        seed = self.settings.seed
        return seed if seed is None or self.settings.deterministic else derived()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Networks of its own, and noise of its own; this one stays as it is, its stream included.

        A seeded purifier's copy has a seed that follows from where this one's stream is: copies
        that are made with no call or twin of this one between them are alike.
        """
        twin = self.replace(seed=self._others_seed(self._stream.of_copy))
        memo[id(self)] = twin
        own = {name: part for name, part in twin.__dict__.items() if name != "settings"}
        twin.__dict__.update(copy.deepcopy(own, memo))
        return twin

    def train(self, mode: bool = True) -> Self:
        """Change nothing: a purifier has one mode, and the network inside keeps its own."""
        return self

    def extra_repr(self) -> str:
        return str(self.settings)

    def _warn_of_scale(self, low: float, high: float) -> None:
        if self._has_warned or not looks_rescaled(low, high):
            return
        self._has_warned = True
        warnings.warn(
            f"images run from {low:.4g} to {high:.4g}, outside [0, 1]. That is harmless where an "
            "attack queries there; otherwise they are on another scale: divide pixels by 255, and "
            "leave any normalisation to the classifier. They are purified as they are",
            stacklevel=5,
        )
