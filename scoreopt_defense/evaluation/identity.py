"""What tells a defence from others: its settings, weights and code, in a few letters."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Mapping
from types import CellType, CodeType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from scoreopt_defense.defended import DefendedModel

__all__ = ["as_json", "described", "digest"]

_PLACE = r" at 0x[0-9A-Fa-f]+"  # of an object in memory, another one in another process
_CODE = ("forward", "purify", "denoise")
_DEEPEST = 4  # of objects in objects


def described(model: nn.Module) -> dict[str, Any]:
    """A defence: its kind, its settings, and digests that tell its networks from others."""
    if isinstance(model, DefendedModel):
        purifier = model.purifier
        own = _given(purifier)
        del own["settings"]
        return {
            "purifier": {"name": type(purifier).__name__}
            | as_json(purifier.settings.as_dict())
            | ({"given": own} if own else {}),
            "votes": model.votes,
            "classifier": described(model.classifier),
            **{name: described(network) for name, network in purifier.named_children()},
        }
    return _network(model)


def _network(model: nn.Module, depth: int = 0) -> dict[str, Any]:
    inside = [(path, _given(part, depth)) for path, part in model.named_modules() if path]
    weights = dict([*model.named_parameters(), *model.named_buffers()])
    return {
        "module": type(model).__qualname__,
        "outline": digest(_without_places(repr(model))),
        "given": _given(model, depth),
        "inside": digest(repr(inside)),
        "training": any(part.training for part in model.modules()),
        "weights": digest(*(part for named in sorted(weights.items()) for part in named)),
    }


def _given(module: nn.Module, depth: int = 0) -> dict[str, str]:
    """Its public attributes: what it was given, of which its ``repr`` need not speak.

    And its code, unless it is a library's, whose version a run knows.
    """
    given = {
        name: _said(value, depth)
        for name, value in sorted(vars(module).items())
        if name[0] != "_" and name != "training"
    }
    kind = type(module)
    if kind.__module__.partition(".")[0] in ("torch", "scoreopt_defense"):
        return given
    return given | {name: _said(getattr(kind, name)) for name in _CODE if hasattr(kind, name)}


def _said(value: Any, depth: int = 0) -> str:
    """A value in words that are the same in every process."""
    within = functools.partial(_said, depth=depth + 1)
    if isinstance(value, Tensor):
        return digest(value)
    if isinstance(value, np.ndarray) and value.dtype != object:
        return f"{value.dtype} {value.shape} {hashlib.sha256(value.tobytes()).hexdigest()}"
    if depth < _DEEPEST:
        if isinstance(value, nn.Module):
            return str(_network(value, depth + 1))
        if isinstance(value, functools.partial):
            return f"{within(value.func)} of {within(value.args)} {within(value.keywords)}"
        if isinstance(value, FunctionType):
            return _function(value, depth + 1)
        if isinstance(value, MethodType):
            return f"{within(value.__func__)} of {within(value.__self__)}"
        if isinstance(value, (set, frozenset)):
            return str(sorted(map(within, value)))
        if isinstance(value, (list, tuple)):
            return str([within(part) for part in value])
        if isinstance(value, Mapping):
            return str([(within(key), within(part)) for key, part in value.items()])
        if re.search(_PLACE, repr(value)) and hasattr(value, "__dict__"):
            return f"{type(value).__qualname__} {within(vars(value))}"
    return _without_places(repr(value))


def _function(value: FunctionType, depth: int) -> str:
    """Its name, its code wherever it stands, and what was bound to it."""
    cells = [cell.cell_contents for cell in value.__closure__ or () if cell != CellType()]
    bound = _said([value.__defaults__, value.__kwdefaults__, cells], depth)
    return f"{value.__qualname__}, code {_digest_of_code(value.__code__)}, bound {digest(bound)}"


def _digest_of_code(code: CodeType) -> str:
    """Of what a function and those inside it do, wherever it stands."""
    found = hashlib.sha256(code.co_code + repr(code.co_names).encode())
    for constant in code.co_consts:
        if isinstance(constant, frozenset):
            constant = sorted(map(repr, constant))  # in any order, in another process
        said = _digest_of_code(constant) if isinstance(constant, CodeType) else repr(constant)
        found.update(said.encode())
    return found.hexdigest()[:16]


def _without_places(text: str) -> str:
    """Without the addresses of objects, which are others in another process."""
    return re.sub(_PLACE, "", text)


def digest(*parts: Tensor | str) -> str:
    """SHA-256 of tensors and names, types and shapes included."""
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            found.update(f"{part.dtype} {tuple(part.shape)}".encode())
            raw = part.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            found.update(raw.numpy().data)
        else:
            found.update(part.encode())
    return found.hexdigest()


def as_json(value: Any) -> Any:
    """What comes back when it is written and read: lists for tuples."""
    return json.loads(json.dumps(value, allow_nan=False, default=repr))
