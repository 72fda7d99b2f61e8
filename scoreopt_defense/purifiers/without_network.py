"""The base of purifiers that know no denoiser, such as JPEG."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from scoreopt_defense.denoisers.nothing import NoDenoiser
from scoreopt_defense.gradients import BPDA, Gradient
from scoreopt_defense.purifiers.base import Purifier
from scoreopt_defense.purifiers.settings import PurifierSettings

__all__ = ["WithoutNetwork", "WithoutNetworkSettings"]


@dataclass(frozen=True, kw_only=True)
class WithoutNetworkSettings(PurifierSettings):
    """Settings of a purifier without a network: as every purifier's, but attacked by BPDA."""

    gradient: Gradient = BPDA()


class WithoutNetwork(Purifier):
    """A purifier that knows no denoiser, and so is made of its settings alone.

    Args:
        settings: of the class :attr:`Settings`; or
        **values: the same by name.
    """

    Settings: ClassVar[type[PurifierSettings]] = WithoutNetworkSettings

    def __init__(self, settings: PurifierSettings | None = None, **values: Any) -> None:
        super().__init__(NoDenoiser(), settings, **values)

    def _recorded(self, x: Tensor) -> int:
        return x.nbytes
