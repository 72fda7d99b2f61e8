"""ME-Net's preprocessing: drop pixels at random, and complete the matrix that is left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from scoreopt_defense._checks import check_choice, check_positive
from scoreopt_defense.gradients import Runner, as_it_is
from scoreopt_defense.noise import Noise
from scoreopt_defense.purifiers.settings import PurifierSettings
from scoreopt_defense.purifiers.without_network import WithoutNetwork, WithoutNetworkSettings

__all__ = ["MENet", "MENetSettings", "usvt"]


def usvt(x: Tensor, kept: Tensor, rank: int) -> Tensor:
    r"""Complete matrices of which some entries are kept.

    .. math:: \hat x = \frac1{\hat p} \sum_{i \le r} s_i u_i v_i^\top, \qquad
              x \odot \mathrm{kept} = \sum_i s_i u_i v_i^\top

    Args:
        x: matrices, shape ``(..., H, W)``, in [-1, 1].
        kept: 1 where an entry is kept and 0 elsewhere, likewise; :math:`\hat p` is its mean.
        rank: r.

    Reference:
        Chatterjee, "Matrix estimation by universal singular value thresholding", 2015.
    """
    u, s, v = torch.linalg.svd(x * kept, full_matrices=False)
    share = kept.mean((-2, -1), keepdim=True).clamp(min=1 / kept[0].numel())  # of none, none
    return u[..., :rank] * s[..., None, :rank] @ v[..., :rank, :] / share


@dataclass(frozen=True, kw_only=True)
class MENetSettings(WithoutNetworkSettings):
    """Settings of :class:`MENet`."""

    keep: float = 0.9
    rank: float = 0.8
    channels: str = "concat"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("keep", "rank"):
            self._set(name, check_positive(name, getattr(self, name)))
            if getattr(self, name) > 1:
                raise ValueError(f"{name} must be at most 1, got {getattr(self, name)}")
        check_choice("channels", self.channels, ("concat", "separate"))


class MENet(WithoutNetwork):
    r"""Keep each pixel with a probability, and rebuild the image from its leading singular vectors.

    Only the preprocessing: the authors train the classifier on such images, as the one that ships
    as ``"cifar10-tiny-menet"`` is, and without that even clean accuracy falls with ``keep``. One
    mask a call; the result is clamped to the image range.

    Autograd does not go through it: the derivative of singular vectors divides by the differences
    of singular values, and where two are equal, as of an image of one colour, it is no number. The
    authors attack by BPDA too.

    Args:
        keep: p, probability that a pixel is kept. The default is the mean of the authors' range.
        rank: share of the image's height: so many leading singular values are kept.
        channels: ``"concat"``, side by side in one matrix, each entry with a mask of its own; or
            ``"separate"``, one matrix each under the same mask.
        gradient, deterministic, max_batch, autocast, channels_last, size, seed: as in
            :class:`~scoreopt_defense.purifiers.PurifierSettings`; the gradient is ``"bpda"``.

    Example:
        >>> import torch
        >>> MENet(keep=0.8)(torch.rand(8, 3, 32, 32)).shape
        torch.Size([8, 3, 32, 32])

    Reference:
        Yang et al., "ME-Net: towards effective adversarial robustness with matrix estimation", ICML
        2019; ``usvt`` of https://github.com/YyzHarry/ME-Net.
    """

    Settings: ClassVar[type[PurifierSettings]] = MENetSettings
    differentiable: ClassVar[bool] = False

    settings: MENetSettings

    def purify(self, x_a: Tensor, noise: Noise, run: Runner = as_it_is) -> Tensor:
        s = self.settings
        draws_for = x_a if s.channels == "concat" else x_a[:, :1]
        # a normal number is below the quantile of p with probability p
        quantile = torch.special.ndtri(torch.tensor(s.keep, dtype=torch.float64)).item()
        kept = (noise.eps_1(0, draws_for) < quantile).to(x_a).expand_as(x_a)
        rank = max(1, int(s.rank * x_a.shape[2]))
        if s.channels == "separate":
            return usvt(x_a, kept, rank)
        side_by_side = usvt(_beside(x_a), _beside(kept), rank)
        return side_by_side.unflatten(2, (x_a.shape[1], -1)).transpose(1, 2)


def _beside(x: Tensor) -> Tensor:
    """``(B, C, H, W)`` as ``(B, H, C W)``."""
    return x.transpose(1, 2).flatten(2)
