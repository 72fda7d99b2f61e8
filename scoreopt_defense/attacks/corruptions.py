"""Common corruptions: no attacker, and no model asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from scoreopt_defense import data
from scoreopt_defense._checks import check_choice
from scoreopt_defense._optional import optional
from scoreopt_defense.attacks.base import Attack

__all__ = ["TABLE_5", "Corruptions"]

#: The ten of the paper's Table 5, by the names of CIFAR-10-C's files.
TABLE_5 = (
    *("gaussian_noise", "shot_noise", "impulse_noise", "elastic_transform", "pixelate"),
    *("jpeg_compression", "snow", "frost", "fog", "brightness"),
)


@dataclass(frozen=True, kw_only=True)
class Corruptions(Attack):
    """One corruption at one severity, read from CIFAR-10-C or made by ``imagecorruptions``.

    What that library makes is of ImageNet-C's strengths, which are those of images of 224 pixels:
    harder on 32 than CIFAR-10-C's own. Only the files give numbers to lay beside Table 5.

    Args:
        corruption: one of :data:`TABLE_5`; from files, any that is there.
        severity: 1 (mildest) to 5.
        files: the folder of CIFAR-10-C's arrays. Without it, images of at least 32 by 32 pixels and
            1 or 3 channels are corrupted here, by numpy's global generator.
        clean: the torchvision root of CIFAR-10, in whose test set the place of each image is
            found; with ``files`` only.

    Raises:
        ValueError: naming the setting, its value and what is allowed; and from a call, if an image
            is not of CIFAR-10's test set, or too small.

    Reference:
        Hendrycks and Dietterich, ICLR 2019; Michaelis et al., 2019 (the library).
    """

    libraries: ClassVar[tuple[str, ...]] = ("imagecorruptions",)

    corruption: str = "gaussian_noise"
    severity: int = 5
    files: str | None = None
    clean: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("severity", self.severity, range(1, 6))  # type: ignore[arg-type]
        if (self.files is None) != (self.clean is None):
            raise ValueError(
                "files and clean go together: where CIFAR-10-C is, and where CIFAR-10 is, got "
                f"files={self.files!r}, clean={self.clean!r}"
            )
        if self.files is None:
            check_choice("corruption", self.corruption, TABLE_5)

    @property
    def queries(self) -> int:
        return 0

    @property
    def threat(self) -> str:
        return f"{self.corruption}, severity {self.severity}"

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return self._made(x) if self.files is None else self._read(x)

    def _made(self, x: Tensor) -> Tensor:
        if min(x.shape[2:]) < 32 or x.shape[1] not in (1, 3):
            raise ValueError(
                "imagecorruptions needs images of at least 32 by 32 pixels and 1 or 3 channels, "
                f"got shape {tuple(x.shape)}"
            )
        corrupt = optional("imagecorruptions", extra="corruptions").corrupt
        corrupted = [
            corrupt(image, severity=self.severity, corruption_name=self.corruption, **self._seed())
            for image in _pixels(x)
        ]
        x_c = torch.from_numpy(np.stack(corrupted)).permute(0, 3, 1, 2)[:, : x.shape[1]]
        return x_c.to(x) / 255

    def _seed(self) -> dict[str, int]:
        """Of the one corruption that numpy's global generator does not govern."""
        if self.corruption != "impulse_noise":
            return {}
        return {"seed": int(np.random.randint(2**31))}  # noqa: NPY002

    def _read(self, x: Tensor) -> Tensor:
        clean = data.cifar(str(self.clean))
        place = {image.tobytes(): i for i, image in enumerate(_pixels(clean.x))}
        places = [place.get(image.tobytes()) for image in _pixels(x)]
        if None in places:
            raise ValueError(
                f"{places.count(None)} of {len(x)} images are not of CIFAR-10's test set in "
                f"{self.clean}, so that CIFAR-10-C has no corrupted ones of them"
            )
        corrupted = data.cifar10_c(str(self.files), self.corruption, severity=self.severity)
        return corrupted.x[places]


def _pixels(x: Tensor) -> np.ndarray:
    """uint8 pixels, shape (B, H, W, C)."""
    return np.ascontiguousarray((255 * x).round().byte().permute(0, 2, 3, 1).cpu().numpy())
