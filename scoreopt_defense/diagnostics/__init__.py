"""What a defence's gradients are worth: each function returns data that can draw itself.

A purifier can look robust because an attack was shown a poor gradient. These measure how poor: the
surrogates against the exact gradient, the noise of a gradient against the number of purifications
that it is averaged over, whether the purifier's own optimisation converges, and whether the loss
really grows where the gradient points.
"""

from scoreopt_defense.diagnostics.convergence import Curves, optimization_curves
from scoreopt_defense.diagnostics.denoising import denoising_errors, psnr
from scoreopt_defense.diagnostics.gradients import (
    Agreement,
    GradientNoise,
    LossAlong,
    gradient_agreement,
    gradient_noise,
    input_gradient,
    loss_along,
)

__all__ = [
    "Agreement",
    "Curves",
    "GradientNoise",
    "LossAlong",
    "denoising_errors",
    "gradient_agreement",
    "gradient_noise",
    "input_gradient",
    "loss_along",
    "optimization_curves",
    "psnr",
]
