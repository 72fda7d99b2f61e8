"""Seeds as pure functions of where they are used, and models whose noise starts at one."""

from __future__ import annotations

from hashlib import sha256

from torch import Tensor, nn

from scoreopt_defense.defended import DefendedModel

__all__ = ["key_of", "placed", "reseeded"]


def key_of(name: str) -> int:
    """A name as a whole number, the same in every process."""
    return int.from_bytes(sha256(name.encode(errors="surrogatepass")).digest()[:8], "big")


def reseeded(model: nn.Module, seed: int) -> nn.Module:
    """The model with fresh noise, where its noise is ours; others draw from global generators.

    A deterministic purifier keeps its noise: with another it would be another defence.
    """
    if not isinstance(model, DefendedModel):
        return model
    return model.replace() if model.purifier.deterministic else model.replace(seed=seed)


def placed(model: nn.Module, x: Tensor) -> Tensor:
    """The tensor, on the model's device; of weights that are offloaded none is known."""
    return x.to(next((part.device for part in model.parameters() if not part.is_meta), x.device))
