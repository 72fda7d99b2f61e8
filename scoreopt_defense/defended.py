"""A classifier behind a purifier, and the EOT wrapper: what attack libraries see."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from scoreopt_defense._checks import check_choice, check_count, check_logits
from scoreopt_defense._transforms import refuse_transforms
from scoreopt_defense.gradients import Gradient
from scoreopt_defense.noise import draws_of_its_own, same_draws
from scoreopt_defense.purifiers import OneShot, Purifier
from scoreopt_defense.settings import Frozen

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["EOT", "DefendedModel"]


class DefendedModel(Frozen):
    """A classifier whose images are purified first: an ordinary module from images to logits.

    The classifier and the denoiser keep their own train or eval mode, whatever mode an attack
    library gives this module. It is what it was made: :meth:`replace` makes another.

    Args:
        classifier: any module from images ``(B, C, H, W)`` in [0, 1] to logits ``(B, K)``; it does
            its own normalisation. Put it in eval mode first.
        purifier: what the images go through.
        votes: how many purifications of each image the logits are averaged over.

    Raises:
        TypeError: if an argument is of the wrong kind.
        ValueError: from a call, if the images are no such batch (see :class:`Purifier`) or the
            classifier does not return one row of logits an image.

    Example:
        >>> import torch
        >>> from scoreopt_defense import OneShot
        >>> from scoreopt_defense.denoisers import GaussianDenoiser
        >>> classifier = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 10)).eval()
        >>> model = DefendedModel(classifier, OneShot(GaussianDenoiser(), sigma=0.25), votes=4)
        >>> model(torch.rand(2, 3, 2, 2)).shape
        torch.Size([2, 10])
    """

    def __init__(self, classifier: nn.Module, purifier: Purifier, *, votes: int = 1) -> None:
        super().__init__()
        if not isinstance(classifier, nn.Module):
            raise TypeError(f"classifier must be a torch module, got {type(classifier).__name__}")
        if not isinstance(purifier, Purifier):
            raise TypeError(f"purifier must be a Purifier, got {type(purifier).__name__}")
        if getattr(classifier, "training", False):  # a frozen TorchScript has no mode
            warnings.warn(
                "the classifier is in training mode, and DefendedModel leaves it there: call "
                "classifier.eval() first unless that is meant",
                stacklevel=3,
            )
        self.purifier = purifier  # in the data's order: ART takes the last for the logits
        self.classifier = classifier
        self.votes = check_count("votes", votes)
        self._watch: Callable[[Tensor, Tensor], None] | None = None
        self.training = getattr(classifier, "training", False)

    def forward(
        self, x: Tensor, *, seed: int | None = None, samples: int = 1, **options: Any
    ) -> Tensor:
        """Logits, averaged over ``votes`` purifications.

        Args:
            x: images, shape ``(B, C, H, W)``, in [0, 1].
            seed: makes this call reproducible.
            samples: average over so many times ``votes`` purifications, each classified in a call
                of its own; see :class:`EOT`. Of a deterministic purifier they are all alike.
            **options: of the purifier's algorithm; see its ``purify``.

        Returns:
            Shape ``(B, K)``.
        """
        refuse_transforms(self, x)
        check_count("samples", samples)
        # of a deterministic purifier the votes are the same ones in every sample
        fixed = self.purifier.settings.deterministic
        repeats = self.votes if fixed else self.votes * samples
        purified = self.purifier(x, seed=seed, samples=repeats, **options)
        each = purified.unflatten(0, (repeats, len(x)))
        # a call for each: the classifier may be random itself, and draw once for all of a call
        several = [
            self._classify(one, repeats) for _ in range(samples if fixed else 1) for one in each
        ]
        logits = torch.stack(several).mean(0) if len(several) > 1 else several[0]
        if self._watch is not None:
            self._watch(x, logits)
        return logits

    def purify(self, x: Tensor, *, seed: int | None = None, samples: int = 1) -> Tensor:
        """What the classifier is given: purified images, shape ``(samples * B, C, H, W)``.

        Args:
            x: images, shape ``(B, C, H, W)``, in [0, 1].
            seed, samples: as the purifier's: see :meth:`Purifier.forward`.
        """
        return self.purifier(x, seed=seed, samples=samples)

    def _classify(self, x: Tensor, samples: int) -> Tensor:
        """Logits of one sample of so many, whose graphs are all kept till the backward pass."""
        size = self.purifier.chunk(x)
        if self.purifier.settings.max_batch is None or samples * len(x) <= size:
            return self._logits(x)
        trained = any(getattr(part, "training", False) for part in self.classifier.modules())
        if trained or draws_of_its_own(self.classifier):
            # a second pass would update running statistics again, and draw other noise
            return torch.cat([self._logits(chunk) for chunk in x.split(size)])
        # a checkpointed chunk keeps no activations, so that max_batch bounds memory here too; a
        # compiler takes no context that sets generators
        draws: Any = {} if torch.compiler.is_compiling() else {"context_fn": same_draws}
        return torch.cat(
            [
                checkpoint(self._logits, chunk, use_reentrant=False, **draws)
                for chunk in x.split(size)
            ]
        )

    def _logits(self, x: Tensor) -> Tensor:
        # memory of its own: the classifier may normalise in place
        return check_logits(self.classifier(x.clone()), len(x))

    def replace(self, *, votes: int | None = None, **changes: Any) -> Self:
        """A twin: the same classifier behind ``purifier.replace(**changes)``.

        ``model.replace(seed=0)`` starts its noise at a known place, so that what an attack library
        does with it, which passes no seed, can be repeated.
        """
        votes = self.votes if votes is None else check_count("votes", votes)
        return self._twin(purifier=self.purifier.replace(**changes), votes=votes)

    def with_gradient(self, gradient: str | Gradient) -> Self:
        """The same defence, differentiated in another mode; short for ``replace(gradient=...)``."""
        return self.replace(gradient=gradient)

    def watched(self, watch: Callable[[Tensor, Tensor], None]) -> Self:
        """The same defence and noise, whose calls are told: ``watch(x, logits)``, of its twins too.

        Hooks of a module are not its twins', and an attack makes twins as it likes.
        """
        return self._twin(_watch=watch)

    def surrogate(self) -> Self:
        """The same classifier behind one-shot denoising, forward and backward.

        What the authors' code attacks; the defended model itself then judges the result.
        """
        return self._twin(purifier=OneShot.surrogate_of(self.purifier))

    def _has(self, name: str) -> bool:
        return super()._has(name) or name in self._settings()

    def _replaceable(self) -> Sequence[str]:
        return ["votes", *self._settings()]

    def _settings(self) -> Sequence[str]:
        """Of its purifier, once it has one."""
        purifier = self._modules.get("purifier")
        return purifier.Settings.names() if isinstance(purifier, Purifier) else ()

    def extra_repr(self) -> str:
        return f"votes={self.votes}"


class EOT(Frozen):
    r"""Mean logits over ``samples`` random evaluations, a defended model's purified in one pass.

    Attack this module instead of the model and any attack of any library becomes an EOT attack,
    which differentiates the loss of the mean logits.

    Args:
        model: a :class:`DefendedModel`, or any randomised module from images to logits, which is
            called ``samples`` times: what it draws may be one number for all images of a call.
        samples: evaluations a call; a defended model's votes multiply them.
        aggregate: how the mean is differentiated. ``"logits"``: as what it is. ``"selective"``:
            evaluations that are wrong, or nearly, weigh more, and the sure ones little:

            .. math:: \frac{\partial L}{\partial z_i} = w_i\, g, \qquad
                      w_i = \frac{s(m_i)}{\sum_j s(m_j)}, \qquad
                      m_i = 2\, \frac{g^\top z_i}{\|g\|_1}

            with :math:`g` the gradient of the mean logits, of any loss that is raised, and
            :math:`s` the sigmoid: :math:`m_i` is how far other classes lead evaluation i. Of two
            classes it is the direction in which the mean of their cross-entropies rises. The model
            is called ``samples`` times.

    Example:
        >>> import torch
        >>> noisy = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Flatten())
        >>> EOT(noisy, samples=8)(torch.ones(2, 1, 2, 2)).shape
        torch.Size([2, 4])

    Reference:
        Athalye et al., "Synthesizing robust adversarial examples", ICML 2018; "DiffHammer", NeurIPS
        2024, for the weights of its E-step.
    """

    def __init__(self, model: nn.Module, samples: int, *, aggregate: str = "logits") -> None:
        super().__init__()
        self.model = model
        self.samples = check_count("samples", samples)
        check_choice("aggregate", aggregate, ("logits", "selective"))
        self.aggregate = aggregate
        self.training = getattr(model, "training", False)

    def forward(self, x: Tensor) -> Tensor:
        """Mean logits, shape ``(B, K)``, of images of shape ``(B, C, H, W)`` in [0, 1]."""
        selective = self.aggregate == "selective"
        if isinstance(self.model, DefendedModel) and not selective:
            return self.model(x, samples=self.samples)
        # memory of its own: it may write into its images
        each = [check_logits(self.model(x.clone()), len(x)) for _ in range(self.samples)]
        return _Selective.apply(torch.stack(each)) if selective else torch.stack(each).mean(0)

    def extra_repr(self) -> str:
        return f"samples={self.samples}, aggregate={self.aggregate!r}"


class _Selective(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, each: Tensor) -> Tensor:
        ctx.save_for_backward(each)
        return each.mean(0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (each,) = ctx.saved_tensors
        size = grad.abs().sum(1).clamp(min=torch.finfo(grad.dtype).tiny)
        leads = 2 * (grad * each).sum(2) / size
        return F.logsigmoid(leads).softmax(0).unsqueeze(2) * grad
