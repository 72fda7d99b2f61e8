"""The variance-preserving diffusion: which noise there is at a time, and at which time a noise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

__all__ = ["VPSchedule"]

_Time = TypeVar("_Time", float, Tensor)


@dataclass(frozen=True)
class VPSchedule:
    r"""The VP or sub-VP diffusion in continuous time, whose :math:`\beta` is linear.

    .. math:: z_t = \alpha_t x + s_t \epsilon, \qquad \alpha_t = e^{-B_t / 2}, \qquad
              B_t = \tfrac12 \beta_d t^2 + \beta_{min} t

    with :math:`s_t^2 = 1 - e^{-B_t}` for VP and :math:`s_t = 1 - e^{-B_t}` for sub-VP. Then
    :math:`x_t = z_t / \alpha_t` is the image at the noise level :math:`\sigma = s_t / \alpha_t`.

    Args:
        beta_d: :math:`\beta_{max} - \beta_{min}`.
        beta_min: at time 0.
        sub: whether it is the sub-VP SDE.

    Example:
        >>> schedule = VPSchedule()
        >>> round(schedule.sigma(0.1), 2), round(schedule.time(torch.tensor(0.34)).item(), 2)
        (0.34, 0.1)

    Reference:
        Song et al., ICLR 2021, eqs. (29), (33), appendix C; Karras et al., NeurIPS 2022, Table 1.
    """

    beta_d: float = 19.9
    beta_min: float = 0.1
    sub: bool = False

    def scales(self, time: Tensor) -> tuple[Tensor, Tensor]:
        r""":math:`\alpha_t` and :math:`s_t`, each of the shape of ``time``."""
        integral = self._integral(time)
        variance = -torch.expm1(-integral)
        return (-integral / 2).exp(), variance if self.sub else variance.sqrt()

    def sigma(self, time: float) -> float:
        """The noise level at a time."""
        integral = self._integral(time)
        return 2 * math.sinh(integral / 2) if self.sub else math.sqrt(math.expm1(integral))

    def time(self, sigma: Tensor) -> Tensor:
        """The inverse of :meth:`sigma`, of the shape of ``sigma``."""
        integral = 2 * torch.asinh(sigma / 2) if self.sub else (sigma**2).log1p()
        # (sqrt(b^2 + 2dB) - b) / d, without the cancellation at small sigma
        root = (self.beta_min**2 + 2 * self.beta_d * integral).sqrt()
        return 2 * integral / (root + self.beta_min)

    def alpha(self, sigma: Tensor) -> Tensor:
        r""":math:`\alpha_t` at a noise level, of the shape of ``sigma``."""
        return ((4 + sigma**2).sqrt() - sigma) / 2 if self.sub else (1 + sigma**2).rsqrt()

    def _integral(self, time: _Time) -> _Time:
        return 0.5 * self.beta_d * time**2 + self.beta_min * time
