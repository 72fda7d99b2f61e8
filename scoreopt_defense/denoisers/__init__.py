"""Denoisers ``D(x_t, sigma)``: the protocol, and one file per source of networks."""

from scoreopt_defense.denoisers.base import Denoiser
from scoreopt_defense.denoisers.diffusers import (
    DiffusersDDPMDenoiser,
    DiffusersEDMDenoiser,
    diffusers_denoiser,
)
from scoreopt_defense.denoisers.edm import EDMDenoiser
from scoreopt_defense.denoisers.gaussian import GaussianDenoiser

__all__ = [
    "Denoiser",
    "DiffusersDDPMDenoiser",
    "DiffusersEDMDenoiser",
    "EDMDenoiser",
    "GaussianDenoiser",
    "diffusers_denoiser",
]
