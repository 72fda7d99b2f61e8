"""The base of denoisers that may be told a class, and the labels they are told."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from scoreopt_defense.denoisers.base import Denoiser

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["ClassConditionalDenoiser"]


class ClassConditionalDenoiser(Denoiser):
    r"""A denoiser that may know the class, :math:`D_\theta(x_t; \sigma, y)`.

    Args:
        sigma_range, channels: as in :class:`~scoreopt_defense.denoisers.base.Denoiser`.
        class_label: one label for all images, or one an image, shape ``(B,)``; None for an
            unconditional network.

    Attributes:
        label_dim: classes that the network knows; 0 where it has none, or does not say.

    Raises:
        ValueError: from a call, if there is neither one label nor one an image.
    """

    label_dim: int = 0

    def __init__(
        self,
        *,
        sigma_range: tuple[float, float],
        channels: int | None = None,
        class_label: int | Tensor | None = None,
    ) -> None:
        super().__init__(sigma_range=sigma_range, channels=channels)
        self.class_label = class_label

    def with_class_label(self, class_label: int | Tensor | None) -> Self:
        """The same network under another label: no weight is copied, and neither changes the other.

        Moving the network itself, as in ``twin.to(device)``, moves it for both.
        """
        return self._twin(class_label=class_label)

    def labels(self, x: Tensor) -> Tensor | None:
        """The label of each image of a batch, int64, shape ``(B,)``; or None."""
        if self.class_label is None:
            return None
        labels = torch.as_tensor(self.class_label, device=x.device).flatten()
        if len(labels) not in (1, len(x)):
            raise ValueError(
                f"class_label must be one label or one an image, got {len(labels)} for a batch of "
                f"{len(x)}"
            )
        return labels.long().expand(len(x)).clone()  # a network may write into them

    def one_hot(self, x: Tensor) -> Tensor | None:
        """Labels as NVIDIA's networks take them, shape ``(B, label_dim)``: of no label zeros."""
        if not self.label_dim:
            return None
        labels = self.labels(x)
        if labels is None:
            return x.new_zeros(len(x), self.label_dim)
        return F.one_hot(labels, self.label_dim).to(x.dtype)
