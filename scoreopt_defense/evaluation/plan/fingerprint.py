"""What defences and attacks are declared to be, and digests of their weights, code and images."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections.abc import Iterator, Mapping
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn

from scoreopt_defense.defended import DefendedModel

__all__ = ["as_json", "described", "digest", "json_digest", "key_of", "of_attack"]

_OURS = ("torch", "scoreopt_defense", "builtins", "abc", "typing")


def described(model: nn.Module) -> dict[str, Any]:
    """What a defence is declared to be: its kind, its settings, and digests of its weights."""
    if isinstance(model, DefendedModel):
        purifier = model.purifier
        return {
            "purifier": {"name": type(purifier).__name__} | _settings(purifier),
            "votes": model.votes,
            "classifier": described(model.classifier),
            **{name: described(network) for name, network in purifier.named_children()},
        }
    return {
        "module": type(model).__qualname__,
        "training": any(getattr(part, "training", False) for part in model.modules()),
        "weights": _weights(model),
    }


def _settings(purifier: Any) -> dict[str, Any]:
    try:
        return as_json(purifier.settings.as_dict())
    except (TypeError, ValueError):  # of an object of somebody's that JSON has no word for
        given = {name: getattr(purifier.settings, name) for name in purifier.Settings.names()}
        plain = (type(None), bool, int, float, str, tuple, list)
        return {
            name: as_json(value) if isinstance(value, plain) else type(value).__qualname__
            for name, value in given.items()
        }


def _weights(model: nn.Module) -> str:
    """A digest of buffers and all that it would save; of what cannot be read, of names alone."""
    try:
        numbers = model.state_dict() | dict(model.named_buffers())
        named = sorted(numbers.items())
        return digest(*(part for name, value in named for part in (name, *_parts(value))))
    except Exception:  # a module's own hooks, or a type that cannot be read
        return digest(*(name for name, _ in model.named_parameters()))


def _parts(value: Any) -> Iterator[Tensor | str]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from (str(name), *_parts(inner))
    elif isinstance(value, (tuple, list)):  # a quantised layer's weight and bias
        for inner in value:
            yield from _parts(inner)
    elif value is None or isinstance(value, (bool, int, float, str, bytes, torch.dtype)):
        yield repr(value)


def digest(*parts: Tensor | str) -> str:
    """SHA-256 of tensors and names, types and shapes included."""
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            found.update(f"{part.dtype} {tuple(part.shape)}".encode())
            for numbers in _numbers(part.detach()):
                raw = numbers.cpu().contiguous().reshape(-1).view(torch.uint8)
                found.update(raw.numpy().data)
        else:
            found.update(part.encode("utf-8", "backslashreplace"))
    return found.hexdigest()


def _numbers(value: Tensor) -> list[Tensor]:
    """The dense tensors that one consists of."""
    if value.is_meta or nn.parameter.is_lazy(value):
        return []
    if value.is_quantized:
        return [value.int_repr(), value.dequantize()]
    if value.layout is torch.strided:
        return [value.resolve_conj().resolve_neg()]
    if value.layout is torch.sparse_coo:
        return [value.coalesce().indices(), value.coalesce().values()]
    return [value.to_dense()]


def of_attack(attack: Any) -> dict[str, Any]:
    """An attack: its kind and settings; and its code, unless it is this library's."""
    about = {"kind": type(attack).__name__} | as_json(attack.as_dict())
    foreign = [
        found.__code__
        for kind in type(attack).__mro__
        if kind.__module__.partition(".")[0] not in _OURS
        for _, found in sorted(vars(kind).items())
        if inspect.isfunction(found)
    ]
    return about | ({"code": digest(*map(_code, foreign))[:16]} if foreign else {})


def _code(code: CodeType) -> str:
    """What a function and those inside it do, wherever it stands."""
    found = [code.co_code.hex(), repr(code.co_names)]
    for constant in code.co_consts:
        if isinstance(constant, frozenset):
            constant = sorted(map(repr, constant))  # in any order, in another process
        found.append(_code(constant) if isinstance(constant, CodeType) else repr(constant))
    return " ".join(found)


def as_json(value: Any) -> Any:
    """What comes back when it is written and read: lists for tuples.

    Of objects, their ``repr`` without addresses, which are others in another process.
    """

    def without_places(value: object) -> str:
        return re.sub(r" at 0x[0-9A-Fa-f]+", "", repr(value))

    return json.loads(json.dumps(value, allow_nan=False, default=without_places))


def key_of(name: str) -> int:
    """A name as a whole number, the same in every process."""
    return int.from_bytes(hashlib.sha256(name.encode(errors="surrogatepass")).digest()[:8], "big")


def json_digest(*values: Any) -> str:
    """SHA-256 of what JSON has, whatever order its objects have."""
    text = json.dumps(values, separators=(",", ":"), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
