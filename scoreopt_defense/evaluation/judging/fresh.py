"""How a model is asked: with noise that starts at a seed, where it is, as it is deployed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from scoreopt_defense.defended import DefendedModel
from scoreopt_defense.noise import generators, seeded, start
from scoreopt_defense.purifiers import Purifier

__all__ = ["as_deployed", "placed", "reseeded"]


def reseeded(model: nn.Module, seed: int) -> nn.Module:
    """The model with fresh noise, where its noise is ours; others draw from global generators.

    Generators among a module's own attributes start at the seed too, in place: who calls this puts
    them back. A deterministic purifier keeps its noise: with another it would be another defence.
    """
    for part in model.modules():
        if not (isinstance(part, Purifier) and part.deterministic):
            for generator in generators(part):
                start(generator, seed)
    if not isinstance(model, DefendedModel):
        return model
    return model.replace() if model.purifier.deterministic else model.replace(seed=seed)


def placed(model: nn.Module, x: Tensor) -> Tensor:
    """The tensor, on the model's device; of weights that are offloaded none is known."""
    return x.to(next((part.device for part in model.parameters() if not part.is_meta), x.device))


@contextmanager
def as_deployed(x: Tensor, seed: int) -> Iterator[None]:
    """In the defence's own precision, wherever it is asked, such as within an attack's autocast."""
    with seeded(seed), torch.autocast(x.device.type, enabled=False):
        yield
