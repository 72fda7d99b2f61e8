"""Adapters for networks of the deepinv library."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from scoreopt_defense.denoisers.base import Denoiser
from scoreopt_defense.denoisers.data_range import on_data_range
from scoreopt_defense.denoisers.edm import EDM_SIGMA_RANGE
from scoreopt_defense.denoisers.guided_diffusion import GuidedDiffusionDenoiser
from scoreopt_defense.denoisers.precision import network_precision
from scoreopt_defense.denoisers.preconditioned import PreconditionedDenoiser

__all__ = [
    "DeepinvDenoiser",
    "DeepinvUNetDenoiser",
    "DiffUNetDenoiser",
    "deepinv_denoiser",
    "match_edm_groups",
]


def deepinv_denoiser(
    net: Any,
    *,
    sigma_range: tuple[float, float] | None = None,
    class_label: int | Tensor | None = None,
    trained_in_deepinv: bool = False,
) -> Denoiser:
    """The right adapter for a deepinv network.

    Args:
        net: an ``NCSNpp``, ``ADMUNet`` or ``DiffUNet``, or any other deepinv denoiser
            ``net(x, sigma)`` of images in [0, 1], such as ``DRUNet``.
        sigma_range: noise levels it was trained for, on [-1, 1], twice deepinv's. Those of
            ``NCSNpp``, ``ADMUNet`` and ``DiffUNet`` are known.
        class_label: of a class-conditional ``NCSNpp`` or ``ADMUNet``; one, or one an image.
        trained_in_deepinv: says that a narrow ``NCSNpp`` or ``ADMUNet`` was trained as it is.

    Raises:
        ValueError: if a layer of ``NCSNpp`` or ``ADMUNet`` has fewer than 128 channels. EDM's group
            normalisation takes min(32, C / 4) groups and deepinv's always 32, so that weights from
            EDM load and compute something else: see :func:`match_edm_groups`.
    """
    kind = type(net).__name__
    if kind == "DiffUNet":
        return DiffUNetDenoiser(net)
    if kind in ("NCSNpp", "ADMUNet"):
        if not trained_in_deepinv:
            _check_edm_groups(net)
        if getattr(net, "precondition_type", "edm") == "edm" and net._was_trained_on_minus_one_one:
            return DeepinvUNetDenoiser(
                net,
                sigma_data=float(net.pixel_std),
                label_dim=label_dim(net),
                class_label=class_label,
                sigma_range=sigma_range,
            )
        low, high = EDM_SIGMA_RANGE  # trained on [0, 1], where the same number is twice the noise
        sigma_range = sigma_range or (2 * low, 2 * high)
    if sigma_range is None:
        raise ValueError(f"sigma_range must be given: {kind} does not say what it was trained for")
    if class_label is not None:
        raise ValueError(f"class_label must be None for this {kind}, got {class_label!r}")
    return DeepinvDenoiser(net, sigma_range=sigma_range)


class DeepinvDenoiser(Denoiser):
    r"""A denoiser of images in [0, 1], as deepinv's all are.

    .. math:: D(x_t; \sigma) = 2 D_{[0,1]}\big(\tfrac12 (x_t + 1);\, \tfrac12 \sigma\big) - 1

    Args:
        net: called as ``net(x, sigma)`` with sigma of shape ``(B,)``.
        sigma_range: noise levels it was trained for, on [-1, 1], twice deepinv's.
    """

    def __init__(self, net: nn.Module, *, sigma_range: tuple[float, float]) -> None:
        super().__init__(sigma_range=sigma_range)
        self.net = net

    def denoise(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        return on_data_range(self._denoise, x_t, sigma, (0.0, 1.0))

    def _denoise(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        with network_precision(self.net, x_t, sigma.flatten()) as (x, level):
            return self.net(x, level).to(sigma.dtype)


class DeepinvUNetDenoiser(PreconditionedDenoiser):
    """``NCSNpp`` or ``ADMUNet`` as EDM trains them: the paper's CIFAR-10 model is one.

    Args:
        net: its ``forward_unet`` is called; the preconditioning is done here.
        **arguments: of :class:`~scoreopt_defense.denoisers.preconditioned.PreconditionedDenoiser`.
    """

    def __init__(self, net: nn.Module, **arguments: Any) -> None:
        super().__init__(net, **arguments)

    def raw(self, x: Tensor, c_noise: Tensor) -> Tensor:
        return self.net.forward_unet(x, c_noise, class_labels=self.one_hot(x))


class DiffUNetDenoiser(GuidedDiffusionDenoiser):
    """``DiffUNet``, deepinv's guided-diffusion network: the paper's ImageNet model is one.

    deepinv's own denoising mode rounds to the nearest step and clamps its result to the image
    range; here the step is interpolated and nothing is clamped.

    Args:
        net: called as ``net(z, t, type_t="timestep")``.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net)

    def raw(self, z: Tensor, timestep: Tensor, **labels: Tensor) -> Tensor:
        return self.net(z, timestep, type_t="timestep", **labels)


def match_edm_groups(net: nn.Module) -> nn.Module:
    """Set the group normalisations of a deepinv network to EDM's min(32, C / 4) groups, in place.

    For weights that were trained in NVIDIA's EDM. Changes nothing where every layer has 128
    channels or more.
    """
    for norm in _group_norms(net):
        norm.num_groups = _edm_groups(norm)
    return net


def label_dim(net: Any) -> int:
    """Classes of an ``NCSNpp`` or ``ADMUNet``; 0 for an unconditional one."""
    return 0 if net.map_label is None else int(net.map_label.in_features)


def _check_edm_groups(net: nn.Module) -> None:
    for norm in _group_norms(net):
        if norm.num_groups != _edm_groups(norm):
            raise ValueError(
                f"this {type(net).__name__} has a layer of {norm.num_channels} channels, where "
                f"deepinv normalises in {norm.num_groups} groups and EDM in {_edm_groups(norm)}: "
                "weights from EDM would compute something else. Call "
                "scoreopt_defense.denoisers.match_edm_groups(net) if they come from EDM, or pass "
                "trained_in_deepinv=True if they were trained in deepinv"
            )


def _group_norms(net: nn.Module) -> list[nn.GroupNorm]:
    return [module for module in net.modules() if isinstance(module, nn.GroupNorm)]


def _edm_groups(norm: nn.GroupNorm) -> int:
    return min(32, norm.num_channels // 4)
