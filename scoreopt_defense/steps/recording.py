"""What autograd keeps of a step: counted, or kept from whoever watches."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

__all__ = ["Recording", "unwatched"]


def unwatched() -> AbstractContextManager[Any]:
    """For a graph that is used up inside: nobody's hooks on what autograd keeps see it.

    ``torch.utils.checkpoint`` would carry all of its function out again for each such graph, and
    ``save_on_cpu`` copy it there and back. Where there are no hooks, as there seldom are, it does
    nothing; nor before torch 2.8, which cannot say.
    """
    watching = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", lambda _: None)
    if watching(False) is None:
        return nullcontext()
    return saved_tensors_hooks(Tensor.detach, lambda kept: kept)


class Recording(saved_tensors_hooks):
    """A context that counts what autograd keeps of what is computed in it.

    It may be entered again, and counts on: what it counted must be alive still, or an address would
    stand for two tensors.

    Args:
        networks: whose weights are there anyway, and do not count.

    Attributes:
        bytes: so far.
    """

    def __init__(self, networks: nn.Module) -> None:
        super().__init__(self._count, lambda kept: kept)
        self.bytes = 0
        self._seen = {weight.untyped_storage().data_ptr() for weight in networks.parameters()}

    def _count(self, kept: Tensor) -> Tensor:
        storage = kept.untyped_storage()
        if storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            self.bytes += storage.nbytes()
        return kept.detach()  # itself would lead back to the graph that holds it, for ever
