"""A purifier as a preprocessor of the Adversarial Robustness Toolbox (ART)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from scoreopt_defense._checks import check_count
from scoreopt_defense._optional import optional
from scoreopt_defense.purifiers import Purifier

if TYPE_CHECKING:
    from art.defences.preprocessor.preprocessor import PreprocessorPyTorch
else:
    try:
        from art.defences.preprocessor.preprocessor import PreprocessorPyTorch
    except ImportError:
        PreprocessorPyTorch = object

__all__ = ["PurifierPreprocessor"]


class PurifierPreprocessor(PreprocessorPyTorch):
    """Purify images before an ART classifier sees them.

    For ``PyTorchClassifier(..., preprocessing_defences=[PurifierPreprocessor(purifier)])``. The
    gradient that ART's attacks see is the one that the purifier was set to. ART refuses a list that
    mixes this with preprocessors written in NumPy; in front of those, give ART a
    :class:`~scoreopt_defense.DefendedModel` as the model instead.

    Args:
        purifier: on the device that the ART classifier uses.
        max_batch: purify at most so many images at a time, where the purifier itself sets no
            bound: ART hands over a whole array at once.
        apply_fit: purify while the classifier is trained.
        apply_predict: purify while it predicts and is attacked.

    Raises:
        ImportError: if ART is missing.
        TypeError: if ``purifier`` is no :class:`~scoreopt_defense.purifiers.Purifier`.
    """

    params = ["purifier", "max_batch"]

    def __init__(
        self,
        purifier: Purifier,
        *,
        max_batch: int = 256,
        apply_fit: bool = False,
        apply_predict: bool = True,
    ) -> None:
        optional("art", extra="art")
        if not isinstance(purifier, Purifier):
            raise TypeError(f"purifier must be a Purifier, got {type(purifier).__name__}")
        tensors = [*purifier.parameters(), *purifier.buffers()]
        device = tensors[0].device if tensors else torch.device("cpu")
        super().__init__(
            device_type="cpu" if device.type == "cpu" else "gpu",
            is_fitted=True,
            apply_fit=apply_fit,
            apply_predict=apply_predict,
        )
        self._device = device
        self.purifier = purifier
        self.max_batch = max_batch
        self._check_params()

    def forward(self, x: Tensor, y: Any = None) -> tuple[Tensor, Any]:
        """Purified images, and ``y`` as it came.

        Args:
            x: images, shape ``(B, C, H, W)``, in [0, 1].
            y: labels.
        """
        return self.purifier(x, max_batch=None if self.purifier.max_batch else self.max_batch), y

    def _check_params(self) -> None:
        check_count("max_batch", self.max_batch)
