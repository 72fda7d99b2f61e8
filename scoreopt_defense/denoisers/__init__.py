"""Denoisers ``D(x_t, sigma)``: the protocol, and one file per source of networks."""

from scoreopt_defense.denoisers.azula import AzulaDenoiser
from scoreopt_defense.denoisers.base import Denoiser
from scoreopt_defense.denoisers.deepinv import (
    DeepinvDenoiser,
    DeepinvUNetDenoiser,
    DiffUNetDenoiser,
    deepinv_denoiser,
    match_edm_groups,
)
from scoreopt_defense.denoisers.diffusers import (
    DiffusersDDPMDenoiser,
    DiffusersEDMDenoiser,
    diffusers_denoiser,
    of_pipeline,
)
from scoreopt_defense.denoisers.edm import EDMDenoiser
from scoreopt_defense.denoisers.energy import EnergyDenoiser
from scoreopt_defense.denoisers.gaussian import GaussianDenoiser
from scoreopt_defense.denoisers.guided_diffusion import GuidedDiffusionDenoiser
from scoreopt_defense.denoisers.k_diffusion import KDiffusionDenoiser
from scoreopt_defense.denoisers.labels import ClassConditionalDenoiser
from scoreopt_defense.denoisers.nothing import NoDenoiser
from scoreopt_defense.denoisers.preconditioned import PreconditionedDenoiser
from scoreopt_defense.denoisers.score_sde import (
    ScoreSDEVEDenoiser,
    ScoreSDEVPDenoiser,
    score_sde_denoiser,
)
from scoreopt_defense.denoisers.vp import DDPMDenoiser

__all__ = [
    "AzulaDenoiser",
    "ClassConditionalDenoiser",
    "DDPMDenoiser",
    "DeepinvDenoiser",
    "DeepinvUNetDenoiser",
    "Denoiser",
    "DiffUNetDenoiser",
    "DiffusersDDPMDenoiser",
    "DiffusersEDMDenoiser",
    "EDMDenoiser",
    "EnergyDenoiser",
    "GaussianDenoiser",
    "GuidedDiffusionDenoiser",
    "KDiffusionDenoiser",
    "NoDenoiser",
    "PreconditionedDenoiser",
    "ScoreSDEVEDenoiser",
    "ScoreSDEVPDenoiser",
    "deepinv_denoiser",
    "diffusers_denoiser",
    "match_edm_groups",
    "of_pipeline",
    "score_sde_denoiser",
]
