"""An adapter for denoisers of the azula library."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from scoreopt_defense.denoisers.base import Denoiser
from scoreopt_defense.denoisers.data_range import check_data_range, on_data_range
from scoreopt_defense.denoisers.precision import most_exact

__all__ = ["AzulaDenoiser"]

# The time interval [0, 1] is cut into so many pieces, one of them again, and so on: 54 bits, where
# float64 ends, in a fifth of the operations that halving takes.
_PIECES, _ROUNDS = 64, 9


class AzulaDenoiser(Denoiser):
    r"""A denoiser of azula, whatever its schedule.

    .. math:: D(x_t; \sigma) = \mu_\phi(\alpha_t x_t;\, t) \quad\text{where}\quad
              \sigma_t / \alpha_t = \sigma

    Args:
        denoiser: called as ``denoiser(x_t, t).mean``; its ``schedule`` gives :math:`\alpha_t` and
            :math:`\sigma_t`.
        data_range: of the images it was trained on; azula's own pretrained models have [-1, 1].
        conditioning: further keyword arguments of each call, such as a label.
        channels: image channels, or None where any number will do.

    Raises:
        TypeError: if ``denoiser`` has no schedule.

    Reference:
        https://azula.readthedocs.io
    """

    net: Any

    def __init__(
        self,
        denoiser: Any,
        *,
        data_range: tuple[float, float] = (-1.0, 1.0),
        conditioning: dict[str, Any] | None = None,
        channels: int | None = None,
    ) -> None:
        schedule = getattr(denoiser, "schedule", None)
        if not callable(schedule):
            raise TypeError(
                f"denoiser must be an azula denoiser with a schedule, got {type(denoiser).__name__}"
            )
        data_range = check_data_range(data_range)
        scale = (data_range[1] - data_range[0]) / 2
        ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
        low, high = (_log_sigma(schedule, ends).exp() / scale).tolist()
        super().__init__(sigma_range=(low, high), channels=channels)
        self.net = denoiser
        self.data_range = data_range
        self.conditioning = conditioning or {}

    def denoise(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        return on_data_range(self._denoise, x_t, sigma, self.data_range)

    def _denoise(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        time = self.time(sigma.flatten()).to(sigma.dtype)
        alpha, _ = self.net.schedule(time)
        return self.net(alpha.reshape_as(sigma) * x_t, time, **self.conditioning).mean

    def time(self, sigma: Tensor) -> Tensor:
        """The time of each noise level, shape ``(B,)`` to ``(B,)``, by cutting intervals up."""
        exact = most_exact(sigma.device)
        target = sigma.to(exact).log()[:, None]
        low, high = torch.zeros_like(target), torch.ones_like(target)
        cuts = torch.linspace(0, 1, _PIECES + 1, dtype=exact, device=sigma.device)
        for _ in range(_ROUNDS):
            times = torch.lerp(low, high, cuts)
            below = (_log_sigma(self.net.schedule, times) <= target).sum(1, keepdim=True)
            after = below.clamp(1, _PIECES)
            low, high = times.gather(1, after - 1), times.gather(1, after)
        return ((low + high) / 2).flatten()


def _log_sigma(schedule: Any, time: Tensor) -> Tensor:
    alpha, sigma = schedule(time)
    return (sigma / alpha).log()
