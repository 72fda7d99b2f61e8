"""What defences and attacks are declared to be, and digests of their weights, code and images."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from types import CellType, CodeType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from scoreopt_defense.defended import DefendedModel
from scoreopt_defense.diffusion_classifier import DiffusionClassifier
from scoreopt_defense.sizes import Fitted

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
    if isinstance(model, Fitted):
        return {"resize": model.resize, "crop": model.crop, "net": described(model.net)}
    return {
        "module": type(model).__qualname__,
        "training": any(getattr(part, "training", False) for part in model.modules()),
        "weights": _weights(model),
        **({"settings": model.extra_repr()} if isinstance(model, DiffusionClassifier) else {}),
        **_code_of_modules(model),
    }


def _code_of_modules(model: nn.Module) -> dict[str, str]:
    """A digest of what the classes inside do, if any is neither torch's nor this library's."""
    kinds = dict.fromkeys(type(part) for part in model.modules())
    code = [found for found in map(_code_of_class, kinds) if found]
    return {"code": digest(*code)[:16]} if code else {}


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
    code = _code_of_class(type(attack))
    if not code:
        return about
    own = sorted(getattr(attack, "__dict__", {}).items())
    unsaid = {n: v for n, v in own if n not in about and isinstance(v, _PLAIN)}
    return about | {"code": digest(code, repr(unsaid))[:16]}


_PLAIN = (type(None), bool, int, float, str, bytes, tuple)


def _code_of_class(kind: type) -> str:
    """What a class and those that it is derived from do, but for torch's and this library's own."""
    foreign = [k for k in kind.__mro__ if k.__module__.partition(".")[0] not in _OURS]
    found = (
        f"{name} {_code_of(value)}"
        for k in foreign
        for name, value in sorted(vars(k).items())
        if callable(value) or isinstance(value, _HOLDERS) or not name.startswith("__")
    )
    return " ".join(found)


_HOLDERS = (staticmethod, classmethod, property, functools.partialmethod)


def _code_of(value: Any, depth: int = 0) -> str:
    """What is in a class: functions by what they do, whatever they are wrapped in."""
    if depth > _DEEP:
        return "..."
    parts: list[Any]
    match value:
        case staticmethod() | classmethod():
            parts = [value.__func__]
        case property():
            parts = [value.fget, value.fset]
        case functools.partial() | functools.partialmethod():
            parts = [value.func, value.args, value.keywords]
        case FunctionType():
            cells = [_content(cell) for cell in value.__closure__ or ()]
            parts = [value.__defaults__, value.__kwdefaults__, *cells]
            wrapped = getattr(value, "__wrapped__", None)
            return " ".join([_code(value.__code__), *(_code_of(p, depth + 1) for p in parts),
                             _code_of(wrapped, depth + 1) if wrapped else ""])  # fmt: skip
        case tuple() | list():
            parts = list(value)
        case Tensor():
            return digest(value)
        case _:
            return _without_places(value) if isinstance(value, _PLAIN) else type(value).__qualname__
    return " ".join(_code_of(part, depth + 1) for part in parts)


_DEEP = 8  # of what is wrapped in what


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # it is empty yet
        return None


def _code(code: CodeType) -> str:
    """What a function and those inside it do, wherever it stands."""
    found = [code.co_code.hex(), repr(code.co_names)]
    for constant in code.co_consts:
        if isinstance(constant, frozenset):
            constant = sorted(map(repr, constant))  # in any order, in another process
        found.append(_code(constant) if isinstance(constant, CodeType) else repr(constant))
    return " ".join(found)


def _without_places(value: object) -> str:
    """Of an object's ``repr`` all but addresses, which are others in another process."""
    return re.sub(r" at 0x[0-9A-Fa-f]+", "", repr(value))


def as_json(value: Any) -> Any:
    """What comes back when it is written and read: lists for tuples.

    Of objects, their ``repr`` without addresses, which are others in another process.
    """
    return json.loads(json.dumps(value, allow_nan=False, default=_without_places))


def key_of(name: str) -> int:
    """A name as a whole number, the same in every process."""
    return int.from_bytes(hashlib.sha256(name.encode(errors="surrogatepass")).digest()[:8], "big")


def json_digest(*values: Any) -> str:
    """SHA-256 of what JSON has, whatever order its objects have."""
    text = json.dumps(values, separators=(",", ":"), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
