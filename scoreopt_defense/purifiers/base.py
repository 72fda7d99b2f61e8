"""What every purifier is."""

from __future__ import annotations

import copy
import inspect
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from scoreopt_defense._checks import (
    check_choice,
    check_count,
    check_flag,
    check_images,
    check_sigma,
    looks_rescaled,
)
from scoreopt_defense._memory import free_bytes
from scoreopt_defense._transforms import refuse_transforms
from scoreopt_defense.denoisers import Denoiser
from scoreopt_defense.gradients import (
    GRADIENTS,
    Gradient,
    NoGradient,
    OneShotGradient,
    Runner,
    as_it_is,
    differentiate,
)
from scoreopt_defense.noise import Noise, Stream
from scoreopt_defense.settings import Frozen, Options, Settings, name_of
from scoreopt_defense.steps.recording import Recording

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Purification", "Purifier", "PurifierSettings"]

# What differentiating a step holds at most, over what autograd records of one denoising: 4.5 on
# cifar10-tiny by the exact gradient (7.4 MB an image, benchmarks/speed/memory.py, over 1.63).
_RECORDS = 6

_HALF = (torch.float16, torch.bfloat16)
_POSITIONAL = inspect.Parameter.POSITIONAL_OR_KEYWORD


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
            that of seed 0 unless another is given.
        max_batch: purify at most so many images at a time; the result is the same, but for
            rounding. ``"auto"``: as many as half of the free memory holds, by what autograd records
            of one denoising.
        autocast: ``"bfloat16"`` or ``"float16"``: purify, and differentiate, under
            ``torch.autocast``. Images keep their type.
        channels_last: hand the denoiser images in that memory format, which suits the convolutions
            of GPUs with tensor cores.
        seed: where the stream of noise starts. Each call goes on in the stream, so that repeated
            calls stay independent, and each worker of a ``DataLoader`` has its own; without a seed
            it starts at the operating system's entropy. Torch's global generator is neither used
            nor advanced.

    Raises:
        ValueError: naming the setting, its value and what is allowed.
    """

    gradient: Gradient = OneShotGradient()
    deterministic: bool = False
    max_batch: int | str | None = None
    autocast: str | None = None
    channels_last: bool = False
    seed: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_flag("deterministic", self.deterministic)
        check_flag("channels_last", self.channels_last)
        if self.autocast is not None:
            check_choice("autocast", self.autocast, ("bfloat16", "float16"))
        if self.max_batch not in (None, "auto"):
            self._set("max_batch", check_count("max_batch", self.max_batch))
        if self.deterministic and self.seed is None:
            self._set("seed", 0)
        if self.seed is not None:
            self._set("seed", check_count("seed", self.seed, least=0))

    @classmethod
    def options(cls) -> dict[str, Options]:
        return {"gradient": Options(GRADIENTS, Gradient)}


class Purifier(Frozen, ABC):
    """A map from images in [0, 1] to images in [0, 1], randomised unless told otherwise.

    It is what it was made: :meth:`replace` makes another. A subclass names its settings' class and
    writes :meth:`purify`; if its settings have a noise level ``sigma``, that is checked against the
    denoiser's and gives it a one-shot surrogate. Without one, its settings need another default of
    ``gradient``, such as ``BPDA()``.

    Args:
        denoiser: the prior; shared, never changed.
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
        self, denoiser: Denoiser, settings: PurifierSettings | None = None, **values: Any
    ) -> None:
        super().__init__()
        if not isinstance(denoiser, Denoiser):
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
        self._check(settings, denoiser)
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
        if (sigma := _level(settings)) is not None:
            check_sigma(sigma, valid=denoiser.sigma_range)
        needs = _needs(type(settings.gradient))
        if not self._offers(needs, settings):
            kind, mode = type(self).__name__, name_of(settings.gradient, GRADIENTS)
            why = {
                "sigma": f"a noise level sigma, and {kind} has none",
                "differentiable": f"steps that autograd goes through, and {kind}'s are not",
            }
            raise ValueError(
                f"gradient={mode!r} needs {why[str(needs)]}: it can be attacked in the modes "
                f"{list(self._modes(settings))}"
            )

    @property
    def modes(self) -> tuple[str, ...]:
        """Names of the gradient modes in which this purifier can be attacked."""
        return self._modes(self.settings)

    def _modes(self, settings: PurifierSettings) -> tuple[str, ...]:
        return tuple(
            name
            for name, kind in GRADIENTS.items()
            if kind is not NoGradient and self._offers(_needs(kind), settings)
        )

    def _offers(self, needs: str | None, settings: PurifierSettings) -> bool:
        """Whether it has what a gradient mode asks for."""
        has = {
            "sigma": _level(settings) is not None,
            "differentiable": getattr(settings, "differentiable", type(self).differentiable),
        }
        return needs is None or has[needs]

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
        if torch.compiler.is_compiling():  # a model around it: its noise is no graph's constant
            return torch.compiler.disable(self.forward)(
                x, seed=seed, samples=samples, max_batch=max_batch, **options
            )
        if isinstance(x, Tensor) and x.dtype in _HALF:
            given, x = x.dtype, x.float()
            return self.forward(x, seed=seed, samples=samples, max_batch=max_batch, **options).to(
                given
            )
        self._warn_of_scale(*check_images(x, channels=self.denoiser.channels))
        check_count("samples", samples)
        if max_batch is not None:
            check_count("max_batch", max_batch)
        if torch.is_inference_mode_enabled() or x.is_inference():  # where autograd does not work
            with torch.inference_mode(False):
                return self.forward(
                    x.clone(), seed=seed, samples=samples, max_batch=max_batch, **options
                )
        seed = self._next_seed() if seed is None else check_count("seed", seed, least=0)
        noise = Noise.of_batch(
            seed, len(x), samples, shared=self.settings.deterministic, device=x.device
        )
        x_a = 2 * x.repeat(samples, 1, 1, 1) - 1
        if not len(x_a):
            return x_a
        if self.settings.channels_last:
            x_a = x_a.contiguous(memory_format=torch.channels_last)
        size, whole = max_batch or self.chunk(x_a), len(x) if self.samples_apart else len(x_a)
        chunks = [
            slice(start, min(start + size, first + whole))
            for first in range(0, len(x_a), whole)
            for start in range(first, first + whole, size)
        ]
        with self._precision(x_a):
            purified = [self._purify(x_a[rows], noise[rows], options) for rows in chunks]
        return (torch.cat(purified) + 1) / 2

    def _purify(self, x_a: Tensor, noise: Noise, options: Mapping[str, Any]) -> Tensor:
        """One chunk, differentiably where gradients are being recorded."""
        if torch.is_grad_enabled() and x_a.requires_grad:
            purification = Purification(self, noise, options)
            return differentiate(self.settings.gradient, purification, x_a)
        with torch.no_grad():
            return self.purify(x_a, noise, **options).clamp(-1, 1)

    def chunk(self, x: Tensor) -> int:
        """Images that are purified at a time, of a batch of shape ``(B, C, H, W)``."""
        size = self.settings.max_batch
        if not isinstance(size, str):
            return size or len(x)
        return max(1, int(free_bytes(x.device) / (2 * _RECORDS * self._recorded(x[:1].detach()))))

    def _recorded(self, x: Tensor) -> int:
        """Bytes that autograd keeps of the denoising of one image."""
        key = x.shape, x.dtype, x.device
        if key not in self._bytes:
            sigma = max(self.denoiser.sigma_range[0], min(1.0, self.denoiser.sigma_range[1]))
            image, recording = x.clone().requires_grad_(), Recording(self.denoiser)
            with torch.enable_grad(), self._precision(x), recording:
                self.denoiser(image, sigma)
            self._bytes[key] = recording.bytes
        return max(1, self._bytes[key])

    def _precision(self, x: Tensor) -> AbstractContextManager[Any]:
        name = self.settings.autocast
        return torch.autocast(x.device.type, getattr(torch, name)) if name else nullcontext()

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
        if (levels := _level(self.settings)) is None:
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
        settings = self.settings.replace(**changes)
        self._check(settings, self.denoiser)
        return self._twin(settings=settings, _stream=Stream(settings.seed))

    def with_gradient(self, gradient: str | Gradient) -> Self:
        """Short for ``replace(gradient=...)``."""
        return self.replace(gradient=gradient)

    def _next_seed(self) -> int:
        if self.settings.deterministic:
            return self._stream.start
        if torch.is_grad_enabled() and torch._C._current_graph_task_id() != -1:
            raise RuntimeError(
                "a backward pass makes this call, as torch.utils.checkpoint does where it carries "
                "one out again, and would draw other noise: give it a seed, as in "
                "checkpoint(model, x, seed=0, use_reentrant=False), another in each step, or make "
                "it deterministic=True"
            )
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


def _level(settings: PurifierSettings) -> Any:
    """The noise level ``sigma``, or None of an algorithm that has none."""
    return getattr(settings, "sigma", None)


def _needs(mode: type) -> str | None:
    """What a gradient mode asks of a purifier; one of the library's own says what, or is exact."""
    return getattr(mode, "needs", "differentiable" if mode in GRADIENTS.values() else None)


@dataclass(frozen=True, eq=False)
class Purification:
    """One call under one draw of its noise: what a gradient mode is given."""

    purifier: Purifier
    noise: Noise
    options: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, x_a: Tensor, run: Runner = as_it_is) -> Tensor:
        # a copy: an algorithm of a user's own may write into it, and x_a is differentiated at
        return self.purifier.purify(x_a.clone(), self.noise, run, **self.options)

    def one_shot(self, x_a: Tensor) -> Tensor:
        return self.purifier.one_shot(x_a, self.noise)
