"""Every random number: where it is drawn, and which call draws which."""

from scoreopt_defense.noise.bits import threefry
from scoreopt_defense.noise.generators import (
    drawn_again,
    draws_of_its_own,
    generators,
    put_back,
    same_draws,
    seeded,
    start,
)
from scoreopt_defense.noise.noise import Noise
from scoreopt_defense.noise.rounded import RoundedNormal
from scoreopt_defense.noise.streams import Stream, derive

__all__ = [
    "Noise",
    "RoundedNormal",
    "Stream",
    "derive",
    "drawn_again",
    "draws_of_its_own",
    "generators",
    "put_back",
    "same_draws",
    "seeded",
    "start",
    "threefry",
]
