"""What a call must leave of a module as it was."""

from __future__ import annotations

from typing import Any

from torch import nn


def state_of(model: nn.Module) -> dict[str, Any]:
    return {
        "modes": [module.training for module in model.modules()],
        "tensors": [t.clone() for t in [*model.parameters(), *model.buffers()]],
        "versions": [t._version for t in [*model.parameters(), *model.buffers()]],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "grads": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "dtypes": [t.dtype for t in [*model.parameters(), *model.buffers()]],
    }
