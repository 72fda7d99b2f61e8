"""Models that an attack may only ask: a plain function, and a random model that keeps its word."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from scoreopt_defense._checks import check_logits
from scoreopt_defense.defended import EOT

__all__ = ["Remembered", "Scores"]


class Scores(nn.Module):
    """A plain function as a module, such as a service behind HTTP: for attacks by scores.

    Square and SPSA attack it; one that asks for a gradient is an error.

    Args:
        scores: from images, a float32 array of shape ``(B, C, H, W)`` in [0, 1], to an array of
            shape ``(B, K)``: logits, or probabilities ``p`` as ``numpy.log(p)``. It is given an
            array of its own, which it may write into.

    Raises:
        ValueError: from a call, if the function returns something else.

    Example:
        >>> model = Scores(lambda x: x.reshape(len(x), -1)[:, :4])
        >>> model(torch.rand(2, 3, 8, 8)).shape
        torch.Size([2, 4])
    """

    def __init__(self, scores: Callable[[np.ndarray], Any]) -> None:
        super().__init__()
        self.scores = scores
        self.training = False

    def forward(self, x: Tensor) -> Tensor:
        """Scores, shape ``(B, K)``, float32."""
        return _Asked.apply(x, self.scores)


class _Asked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scores: Callable[[np.ndarray], Any]) -> Tensor:
        answer = scores(x.detach().to("cpu", torch.float32, copy=True).numpy())
        return check_logits(torch.from_numpy(np.array(answer, np.float32)).to(x.device), len(x))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        raise RuntimeError(
            "a plain function has no gradient: attack it by its scores, as Square and SPSA do"
        )


class Remembered(nn.Module):
    """A random model that answers the same image alike: for attacks by decisions.

    Boundary and HopSkipJump stop where an image that was adversarial is not any more. Here an image
    that was asked about before has the answer that it had, the mean logits of some evaluations. The
    noise of other images is drawn anew, so that the attacker sees the defence's own randomness, and
    pays for it once an image. There is no gradient.

    Args:
        model: from images ``(B, C, H, W)`` in [0, 1] to logits.
        samples: evaluations that an answer is the mean logits of.

    Attributes:
        queries: images that the model was asked about, each ``samples`` times.

    Example:
        >>> model = Remembered(nn.Sequential(nn.Dropout(0.5), nn.Flatten()), samples=2)
        >>> x = torch.rand(2, 1, 2, 2)
        >>> torch.equal(model(x), model(x.flip(0)).flip(0)), model.queries
        (True, 2)
    """

    def __init__(self, model: nn.Module, samples: int = 1) -> None:
        super().__init__()
        self.model = EOT(model, samples)
        self.training = self.model.training
        self._answers: dict[bytes, Tensor] = {}

    @property
    def queries(self) -> int:
        return len(self._answers)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Mean logits, shape ``(B, K)``."""
        keys = [blake2b(each.tobytes()).digest() for each in x.detach().cpu().numpy()]
        new = {key: place for place, key in enumerate(keys) if key not in self._answers}
        if new:
            self._answers |= zip(new, self.model(x[list(new.values())]).unbind())
        return torch.stack([self._answers[key] for key in keys])
