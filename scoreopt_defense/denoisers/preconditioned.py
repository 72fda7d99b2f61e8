"""An adapter for raw networks, which does the preconditioning of EDM's Table 1 around them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from scoreopt_defense._checks import check_choice, check_count
from scoreopt_defense.denoisers.edm import EDM_SIGMA_RANGE, edm_scalings
from scoreopt_defense.denoisers.labels import ClassConditionalDenoiser
from scoreopt_defense.denoisers.precision import network_precision
from scoreopt_defense.denoisers.vp_schedule import VPSchedule

__all__ = ["PreconditionedDenoiser"]

_VP_TIMES = (1e-5, 1.0)  # lowest and highest, Table 1


class PreconditionedDenoiser(ClassConditionalDenoiser):
    r"""A raw network inside its preconditioning.

    .. math:: D(x_t; \sigma) = c_{skip} x_t + c_{out} F_\theta(c_{in} x_t;\, c_{noise})

    .. math::
        \text{edm:}\quad c_{skip} &= s^2/\rho^2, & c_{out} &= \sigma s/\rho, &
            c_{in} &= 1/\rho, & c_{noise} &= \tfrac14 \ln\sigma \\
        \text{vp:}\quad c_{skip} &= 1, & c_{out} &= -\sigma, &
            c_{in} &= 1/\sqrt{1 + \sigma^2}, & c_{noise} &= 999\,t \\
        \text{ve:}\quad c_{skip} &= 1, & c_{out} &= \sigma, &
            c_{in} &= 1, & c_{noise} &= \ln\tfrac12\sigma

    with :math:`s` the standard deviation of the data, :math:`\rho^2 = \sigma^2 + s^2` and t the
    time of :class:`~scoreopt_defense.denoisers.vp_schedule.VPSchedule`.

    Args:
        net: called as ``net(x, c_noise, labels)`` with ``c_noise`` of shape ``(B,)`` and one-hot
            ``labels`` of shape ``(B, label_dim)``, or None without classes.
        kind: ``"edm"``, ``"vp"`` or ``"ve"``, as NVIDIA's ``EDMPrecond``, ``VPPrecond`` and
            ``VEPrecond``.
        sigma_data: s, on [-1, 1].
        beta_d, beta_min: of the VP schedule.
        steps: of the VP schedule: its times run from 0 to ``steps - 1``.
        label_dim: classes; 0 for an unconditional network.
        class_label: which; None is the zero vector, as in NVIDIA's code.
        sigma_range, channels: as in :class:`~scoreopt_defense.denoisers.base.Denoiser`.

    Raises:
        ValueError: naming the argument.

    Example:
        >>> denoiser = PreconditionedDenoiser(lambda x, c_noise, labels: 0 * x, kind="edm")
        >>> denoiser(torch.ones(1, 3, 8, 8), sigma=0.5).shape
        torch.Size([1, 3, 8, 8])

    Reference:
        Karras et al., NeurIPS 2022, Table 1.
    """

    net: Any

    def __init__(
        self,
        net: Callable[..., Tensor],
        *,
        kind: str = "edm",
        sigma_data: float = 0.5,
        beta_d: float = 19.9,
        beta_min: float = 0.1,
        steps: int = 1000,
        label_dim: int = 0,
        class_label: int | Tensor | None = None,
        sigma_range: tuple[float, float] | None = None,
        channels: int | None = None,
    ) -> None:
        check_choice("kind", kind, ("edm", "vp", "ve"))
        schedule = VPSchedule(beta_d=beta_d, beta_min=beta_min)
        low, high = map(schedule.sigma, _VP_TIMES)
        known = {"edm": EDM_SIGMA_RANGE, "vp": (low, high), "ve": (0.02, 100.0)}  # Table 1
        super().__init__(
            sigma_range=sigma_range or known[kind],
            channels=channels,
            class_label=class_label,
        )
        self.label_dim = check_count("label_dim", label_dim, least=0)
        if class_label is not None and not label_dim:
            raise ValueError(
                f"class_label must be None for an unconditional network, got {class_label}"
            )
        self.net = net
        self.kind = kind
        self.sigma_data = sigma_data
        self.schedule, self.steps = schedule, steps

    def denoise(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        c_skip, c_out, c_in, c_noise = self.scalings(sigma)
        with network_precision(self.net, c_in * x_t, c_noise.flatten()) as (x, time):
            residual = self.raw(x, time)
        return c_skip * x_t + c_out * residual.to(sigma.dtype)

    def raw(self, x: Tensor, c_noise: Tensor) -> Tensor:
        """The network itself, F."""
        return self.net(x, c_noise, self.one_hot(x))

    def scalings(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """c_skip, c_out, c_in and c_noise, each of the shape of ``sigma``."""
        one = torch.ones_like(sigma)
        if self.kind == "vp":
            c_noise = (self.steps - 1) * self.schedule.time(sigma)
            return one, -sigma, self.schedule.alpha(sigma), c_noise
        if self.kind == "ve":
            return one, sigma, one, (sigma / 2).log()
        return edm_scalings(sigma, self.sigma_data)
