"""What torch makes of a module instead of calling it, where a purifier cannot be a part of that."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.fx import Proxy

__all__ = ["refuse_transforms"]

_WHY = "its noise and its gradients are no part of a graph"
_LEFT_OUT = (
    f"a purifier is left out of what is compiled: {_WHY}. Leave out fullgraph=True, or compile the "
    "classifier alone"
)
_SAYS_WHY = torch.__version__ >= "2.8"  # from which on a break of the graph takes a message


def refuse_transforms(module: nn.Module, x: object) -> None:
    """Raise where a module is recorded or transformed, and not called on images.

    Under torch.compile the graph ends here, which says why where it must not.

    Raises:
        RuntimeError: under torch.export, a tracer, or a transform of functions.
    """
    name = type(module).__name__
    if getattr(torch.compiler, "is_exporting", bool)():
        raise RuntimeError(
            f"{name} cannot be exported: {_WHY}. Export the classifier, and purify before it"
        )
    if torch.compiler.is_compiling():
        if _SAYS_WHY:
            torch._dynamo.graph_break(msg=_LEFT_OUT)
        return
    if isinstance(x, Proxy) or torch.jit.is_tracing():
        raise RuntimeError(
            f"{name} cannot be traced: {_WHY}. Trace the classifier, and purify before it"
        )
    if isinstance(x, Tensor) and _is_transformed(x):
        raise RuntimeError(
            f"{name} takes no transform of torch.func and no forward-mode derivative, which would "
            "pass its gradient mode by: take torch.autograd.grad of a batch, or purify first and "
            "transform the classifier"
        )


def _is_transformed(x: Tensor) -> bool:
    is_within = torch._C._functorch.peek_interpreter_stack() is not None
    return is_within or forward_ad.unpack_dual(x).tangent is not None
