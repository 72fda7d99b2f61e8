"""ScoreOpt: Algorithms 1 and 2 of the paper."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from scoreopt_defense._checks import (
    check_choice,
    check_count,
    check_flag,
    check_positive,
    check_sigma,
)
from scoreopt_defense.denoisers import Denoiser
from scoreopt_defense.gradients import Runner, as_it_is
from scoreopt_defense.noise import Noise
from scoreopt_defense.objectives import LOSSES, Diff, Loss, NoisePrediction
from scoreopt_defense.optimizers import OPTIMIZERS, Adam, Optimizer
from scoreopt_defense.presets import preset
from scoreopt_defense.purifiers.base import Purifier
from scoreopt_defense.purifiers.descent import Descent
from scoreopt_defense.purifiers.settings import PurifierSettings
from scoreopt_defense.settings import Options
from scoreopt_defense.steps.compilation import check_compile, compiled

if TYPE_CHECKING:
    from typing_extensions import Self

    from scoreopt_defense.evaluation.record.results import Result

__all__ = ["ScoreOpt", "ScoreOptSettings", "scoreopt_n", "scoreopt_o"]

Levels = tuple[float, float]
#: Told of each step before it is taken; see :meth:`ScoreOpt.purify`.
Callback = Callable[[dict[str, Any]], object]


def scoreopt_o(
    x_a: Tensor, descent: Descent, noise: Noise, sigma: Levels, M: int, callback: Callback
) -> Tensor:
    """Algorithm 1: optimise the attacked image."""
    x, state = x_a, descent.start(x_a)
    for i in range(M):
        sigma_t = noise.level(sigma, i, x_a)
        x_t = x + sigma_t * noise.eps_1(i, x_a)
        x_at = descent.noised_attack(x_a, sigma_t, noise, i)
        grad, state = descent.gradient(x_t, x, x_a, x_at, sigma_t, state)
        callback(dict(i=i, j=0, x=x, x_t=x_t, sigma=sigma_t, **state.seen()))
        x, state = descent.update(i + 1, x, grad, state)
    return x


def scoreopt_n(
    x_a: Tensor, descent: Descent, noise: Noise, sigma: Levels, M: int, N: int, callback: Callback
) -> Tensor:
    """Algorithm 2: optimise the noised attacked image, then denoise it once."""
    x_i = x_a
    for i in range(M):
        sigma_t = noise.level(sigma, i, x_a)
        noise_1 = sigma_t * noise.eps_1(i, x_a)
        x_t, state = x_i + noise_1, descent.start(x_a)
        for j in range(N):
            x = descent.anchor(x_i, x_t - noise_1)
            x_at = descent.noised_attack(x_a, sigma_t, noise, i, j)
            grad, state = descent.gradient(x_t, x, x_a, x_at, sigma_t, state)
            callback(dict(i=i, j=j, x=x, x_t=x_t, sigma=sigma_t, **state.seen()))
            x_t, state = descent.update(j + 1, x_t, grad, state)
        x_i = descent.denoise(x_t, sigma_t)
    return x_i


@dataclass(frozen=True, kw_only=True)
class ScoreOptSettings(PurifierSettings):
    """Settings of :class:`ScoreOpt`, which says what they are."""

    variant: str = "N"
    loss: Loss = None  # type: ignore[assignment]  # the variant's
    steps: int = 5
    lr: float = 0.1
    sigma: Levels = (0.25, 0.25)
    sigma_per: str = "batch"
    outer_steps: int = 1
    optimizer: Optimizer = Adam()
    anchor: str = "moving"
    jacobian: bool = True
    tol: float | None = None
    compile: bool | str = False

    def __post_init__(self) -> None:
        check_choice("variant", self.variant, ("O", "N"))
        if self.loss is None:
            self._set("loss", {"O": Diff(), "N": NoisePrediction()}[self.variant])
        super().__post_init__()
        check_choice("anchor", self.anchor, ("moving", "fixed"))
        self._set("steps", check_count("steps", self.steps, least=0))
        self._set("outer_steps", check_count("outer_steps", self.outer_steps))
        self._set("lr", check_positive("lr", self.lr))
        self._set("sigma", check_sigma(self.sigma))
        check_choice("sigma_per", self.sigma_per, ("batch", "image"))
        if self.variant == "O" and self.outer_steps != 1:
            raise ValueError(
                "outer_steps is for variant 'N'; ScoreOpt-O has only steps, got "
                f"{self.outer_steps!r}"
            )
        literal = self.variant == "N" and not isinstance(self.loss, NoisePrediction)
        if self.anchor == "fixed" and not literal:
            raise ValueError(
                "anchor='fixed' is Algorithm 2 as printed: variant 'N' with loss 'diff', 'mse' or "
                f"'sr', got variant {self.variant!r} with loss {self.loss!r}"
            )

        check_flag("jacobian", self.jacobian)
        if not self.jacobian and (self.anchor == "fixed" or getattr(self.loss, "compares", False)):
            raise ValueError(
                "jacobian=False leaves the gradient of the image that the loss compares with, and "
                f"has none of loss {self.loss!r} with anchor {self.anchor!r}: it is for anchor "
                "'moving' and losses such as 'diff', 'mse' or 'noise'"
            )
        if self.tol is not None:
            self._set("tol", check_positive("tol", self.tol, zero=True))
            if self.tol >= 1:
                raise ValueError(f"tol must be a share below 1, got {self.tol!r}")
            if self.variant == "O":
                raise ValueError(
                    "tol is for variant 'N': in ScoreOpt-O each loss is under another noise, and "
                    "does not settle"
                )
        check_compile(self.compile)

    @classmethod
    def options(cls) -> dict[str, Options]:
        return super().options() | {
            "loss": Options(LOSSES, Loss),
            "optimizer": Options(OPTIMIZERS, Optimizer),
        }


class ScoreOpt(Purifier):
    r"""Optimise an image, a few steps, towards what a denoiser finds likely.

    ScoreOpt-O (Algorithm 1) optimises the attacked image itself, under a new noise level and noise
    each step; ScoreOpt-N (Algorithm 2) optimises its noised copy and denoises that once.

    Args:
        denoiser: the prior.
        variant: ``"O"`` or ``"N"``.
        loss: ``"diff"`` eq. (6), ``"mse"`` eq. (7), ``"sr"`` eq. (8), or ``"noise"``, the authors'
            own for ScoreOpt-N; or an object, such as ``SR(weight=2.0)`` of
            :mod:`scoreopt_defense.objectives` or your own. By default ``"diff"`` for O and
            ``"noise"`` for N, as published.
        steps: optimisation steps: M of ScoreOpt-O, N of ScoreOpt-N.
        lr: learning rate, on the [-1, 1] scale.
        sigma: noise level, or (low, high) to draw it from uniformly, on the [-1, 1] scale: one draw
            a step in ScoreOpt-O and one an outer step in ScoreOpt-N.
        sigma_per: ``"batch"``: that draw is one for the whole batch, as published; ``"image"``:
            each image has its own, as in likelihood maximisation (LM), the preset ``"rdc/lm"``.
        outer_steps: M of ScoreOpt-N. The authors' code has 1: one noise draw, never renewed.
        optimizer: ``"adam"``, as published, or ``"sgd"``, as the algorithm boxes are printed; or an
            object, such as ``Adam(beta1=0.5)`` of :mod:`scoreopt_defense.optimizers` or your own.
        anchor: which image the loss of ScoreOpt-N compares with. ``"moving"``: the one that x_t
            stands for, ``x_t - sigma * eps_1``, as in the authors' code. ``"fixed"``: the outer
            step's image, as Algorithm 2 is printed.

            .. warning:: ``"fixed"`` is no defence. Its loss is smallest where the denoised image is
               the attacked one, so it rebuilds the attack. It is here to show that.
        jacobian: whether the loss's gradient goes through the denoiser. Without its Jacobian, as in
            score distillation, a step is one forward pass and records nothing:
            :math:`\nabla \mathcal L_{Diff} \approx 2 (x - D_\theta(x_t; \sigma))`.
        tol: in ScoreOpt-N, an image stops where a step lowered its loss by no more than this share
            of it, and costs nothing from then on. None stops none.
        compile: carry the steps out through ``torch.compile``; or a mode of its, such as
            ``"reduce-overhead"``, which replays them as CUDA graphs. The first call takes a minute
            or more. Values differ by rounding; the backward pass is not compiled. Needs torch 2.7.
        gradient, deterministic, max_batch, autocast, channels_last, size, seed: as in
            :class:`~scoreopt_defense.purifiers.PurifierSettings`.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is allowed.

    Example:
        >>> import torch
        >>> from scoreopt_defense.denoisers import GaussianDenoiser
        >>> purifier = ScoreOpt(GaussianDenoiser(), variant="N", steps=5, lr=0.1, sigma=0.25)
        >>> purifier(torch.rand(8, 3, 32, 32)).shape
        torch.Size([8, 3, 32, 32])
        >>> purifier.replace(steps=20).steps
        20

    Reference:
        Zhang et al., "Enhancing Adversarial Robustness via Score-Based Optimization", NeurIPS 2023.
    """

    Settings: ClassVar[type[PurifierSettings]] = ScoreOptSettings

    settings: ScoreOptSettings

    @property
    def compile(self) -> bool | str:  # type: ignore[override]
        """The setting. It hides torch's method of the name, which compiles a module in place."""
        return self.settings.compile

    @classmethod
    def from_preset(cls, name: str, denoiser: Denoiser, **overrides: Any) -> Self:
        """A setting of the paper's Table 10, or one tuned for a network that ships here.

        Args:
            name: such as ``"cifar10/bpda-eot-linf/N"``; an unknown name lists the known ones.
            denoiser: the prior.
            **overrides: arguments that replace the preset's.

        Example:
            >>> from scoreopt_defense.denoisers import GaussianDenoiser
            >>> ScoreOpt.from_preset("cifar10/bpda-eot-linf/N", GaussianDenoiser()).sigma
            (0.5, 0.5)
        """
        return cls(denoiser, **(preset(name) | overrides))

    @classmethod
    def tune(
        cls,
        denoiser: Denoiser | Any,
        classifier: nn.Module,
        images: Any,
        *,
        variant: str = "N",
        sigma: Iterable[Any] | None = None,
        lr: Iterable[float] | None = None,
        steps: Iterable[int] | None = None,
        settings: Mapping[str, Any] | None = None,
        **run: Any,
    ) -> tuple[Self, Result]:
        """Settings for other networks, by the rule that ours were tuned by.

        Of all combinations the one of the highest mean of clean accuracy and of that under transfer
        PGD, whose attacker sees the classifier alone; see
        :func:`~scoreopt_defense.evaluation.tuning.tune`. Nothing of the networks is changed.

        Args:
            denoiser: the prior, or a diffusers pipeline.
            classifier: from images in [0, 1] to logits, in eval mode.
            images: ``(x, y)`` or whatever else :func:`~scoreopt_defense.evaluate` takes, some 200
                that neither network was trained on. Judge the result on others.
            variant: ``"O"`` or ``"N"``.
            sigma, lr, steps: values to try; by default 5 noise levels (of O, 3 ranges), as far as
                the denoiser was trained for them, 3 learning rates (of O, 4), and 5 and 10 steps.
            settings: what all have besides, such as ``{"max_batch": 64}``.
            **run: ``norm`` and ``eps`` of the attack, and ``out``, ``batch``, ``seed``,
                ``workers`` and ``progress`` (``True``: it says what it costs) of ``evaluate``.

        Returns:
            The purifier, and what each combination was found to be: its ``print`` is a table.

        Raises:
            TypeError, ValueError: naming the argument, its value and what is allowed.
            RuntimeError: if no combination could be judged; it says why.

        Example:
            >>> from scoreopt_defense import data, pretrained
            >>> of = pretrained.denoiser("mnist-tiny"), pretrained.classifier("mnist-tiny")
            >>> x = data.mnist(split="train", n=8)
            >>> found, tried = ScoreOpt.tune(*of, x, sigma=[0.5], lr=[0.1, 0.2], steps=[1])
            >>> list(tried.plan.defences)
            ['sigma 0.5, lr 0.1, steps 1', 'sigma 0.5, lr 0.2, steps 1']
        """
        from scoreopt_defense.evaluation import tuning

        tried = tuning.grid(cls, denoiser, variant, sigma, lr, steps, settings or {})
        best, result = tuning.tune(tried, classifier, images, **run)
        return tried[best], result

    def purify(
        self,
        x_a: Tensor,
        noise: Noise,
        run: Runner = as_it_is,
        callback: Callback = lambda step: None,
    ) -> Tensor:
        """The algorithm; arguments as of every purifier's, and

        Args:
            callback: told of each step before it is taken, as k-diffusion's samplers do: a
                dictionary of the indices ``i`` (of the noise) and ``j`` (of the step under that
                noise), the image ``x`` that the loss compares with and its noised copy ``x_t``, the
                ``loss``, shape ``(B,)``, the ``denoised`` image, and ``sigma``, shape
                ``(B, 1, 1, 1)``; images in [-1, 1]. With ``max_batch`` it is told of each chunk's
                steps in turn.
        """
        s = self.settings
        descent = Descent(
            self.denoiser, s.loss, s.optimizer, s.lr,
            moving=s.anchor == "moving", jacobian=s.jacobian, tol=s.tol,
            run=compiled(run, s.compile) if s.compile else run,
        )  # fmt: skip
        if s.variant == "O":
            return scoreopt_o(x_a, descent, noise, s.sigma, s.steps, callback)
        return scoreopt_n(x_a, descent, noise, s.sigma, s.outer_steps, s.steps, callback)
