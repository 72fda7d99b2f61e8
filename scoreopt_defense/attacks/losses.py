r"""Losses that an attack raises: plain functions of logits and labels, one value an image.

Logits :math:`z` have shape ``(B, K)``, labels ``y`` shape ``(B,)``, and the loss shape ``(B,)``.
Under EOT the logits are mean ones. The margin and the ratio are above 0 where another class wins,
and only there. The true class's lead, which is recorded and drawn, is the margin's negative.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["LOSSES", "cross_entropy", "divisors", "dlr", "margin"]

_LEAD = 8.0  # 1 - p is 3e-4 there, of which float32 has three digits


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    r"""What PGD raises: :math:`\log \sum_k e^{z_k} - z_y`."""
    return F.cross_entropy(logits, y, reduction="none")


def margin(logits: Tensor, y: Tensor) -> Tensor:
    r"""How far another class leads: :math:`\max_{k \ne y} z_k - z_y`.

    Its gradient does not vanish where the model is sure of itself.

    Reference:
        Carlini and Wagner, S&P 2017, :math:`f_6`.
    """
    column = y.unsqueeze(1)
    others = logits.scatter(1, column, -torch.inf)
    return (others.max(1, keepdim=True).values - logits.gather(1, column)).squeeze(1)


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    r"""Difference-of-logits ratio: the margin, whatever the scale of the logits.

    .. math:: \frac{\max_{k \ne y} z_k - z_y}{z_{\pi_1} - z_{\pi_3}}

    with :math:`\pi` the classes from the highest logit down.

    Raises:
        ValueError: if there are fewer than three classes.

    Reference:
        Croce and Hein, ICML 2020, eq. (6).
    """
    if logits.shape[1] < 3:
        raise ValueError(f"loss 'dlr' needs at least 3 classes, got {logits.shape[1]}")
    first, _, third = logits.topk(3).values.unbind(1)
    # 1e-12 as in their code: equal logits are no error
    return margin(logits, y) / (first - third + 1e-12)


def divisors(logits: Tensor, y: Tensor) -> Tensor:
    r"""What very sure logits are divided by, for a cross-entropy that has a gradient; 1 of others.

    Where the true class leads by :math:`g = z_y - \max_{k \ne y} z_k`, the gradient is about
    :math:`e^{-g}`. From :math:`g > -\ln \epsilon` on, with the dtype's :math:`\epsilon` (16 in
    float32), :math:`1 - p_y` rounds to 0 or to one digit, and the true class's part is lost; above
    103 all of it is, and an attack stands still. Divided by :math:`g / 8` such logits lead by 8.
    That changes neither which class wins, nor the sign of a margin and of its gradient, nor the
    difference-of-logits ratio.

    Returns:
        Shape ``(B, 1)``.
    """
    leads = -margin(logits, y)
    sure = leads.isfinite() & (leads > -math.log(torch.finfo(logits.dtype).eps))
    return torch.where(sure, leads / _LEAD, 1).clamp_min(1).unsqueeze(1)


#: By name.
LOSSES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = MappingProxyType(
    {"cross-entropy": cross_entropy, "margin": margin, "dlr": dlr}
)
