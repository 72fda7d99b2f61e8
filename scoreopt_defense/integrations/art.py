"""A purifier as a preprocessor of the Adversarial Robustness Toolbox (ART)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from scoreopt_defense._checks import check_choice, check_count
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
        device_type: ``"cpu"`` or ``"gpu"``, as in ART's own: where arrays are put. By default where
            the purifier's weights are.

    Raises:
        ImportError: if ART is missing.
        TypeError: if ``purifier`` is no :class:`~scoreopt_defense.purifiers.Purifier`.
        ValueError: if an argument is none of those allowed; or, from a call, if images are whole
            numbers other than 0 and 1.
    """

    params = ["purifier", "max_batch"]

    def __init__(
        self,
        purifier: Purifier,
        *,
        max_batch: int = 256,
        apply_fit: bool = False,
        apply_predict: bool = True,
        device_type: str | None = None,
    ) -> None:
        optional("art", extra="art")
        if not isinstance(purifier, Purifier):
            raise TypeError(f"purifier must be a Purifier, got {type(purifier).__name__}")
        if device_type is not None:
            check_choice("device_type", device_type, ("cpu", "gpu"))
        super().__init__(
            device_type=device_type or "cpu",
            is_fitted=True,
            apply_fit=apply_fit,
            apply_predict=apply_predict,
        )
        weights = [t for t in (*purifier.parameters(), *purifier.buffers()) if not t.is_meta]
        if device_type is None and weights:
            self._device = weights[0].device
        self.purifier = purifier
        self.max_batch = max_batch
        self._check_params()

    def forward(self, x: Tensor, y: Any = None) -> tuple[Tensor, Any]:
        """Purified images, and ``y`` as it came.

        Args:
            x: images, shape ``(B, C, H, W)``, in [0, 1]. Whole numbers 0 and 1 count as float32.
            y: labels.
        """
        if not x.is_floating_point():
            x = _floating(x)
        return self.purifier(x, max_batch=None if self.purifier.max_batch else self.max_batch), y

    def _check_params(self) -> None:
        check_count("max_batch", self.max_batch)


def _floating(x: Tensor) -> Tensor:
    """As ART's own preprocessors take whole numbers: at their value."""
    floating = x.float()
    if x.numel() and not (floating.min() >= 0 and floating.max() <= 1):
        raise ValueError(
            f"images must be in [0, 1], got {x.dtype} from {floating.min():g} to "
            f"{floating.max():g}, of which ART does not say the scale: hand over floating-point "
            "ones, as x / 255"
        )
    return floating
