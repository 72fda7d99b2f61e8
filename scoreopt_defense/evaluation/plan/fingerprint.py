"""What tells a defence from others: declared settings, weights, and what it answers.

Nobody's objects are searched for what they compute with: a loss or a hook that is another one shows
in the answers.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import re
import warnings
from collections.abc import Iterator, Mapping
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn

from scoreopt_defense._foreign import as_it_was, contained
from scoreopt_defense.defended import DefendedModel
from scoreopt_defense.evaluation.seeding import placed, reseeded
from scoreopt_defense.noise import seeded

__all__ = ["as_json", "behaviour", "described", "digest", "of_attack", "unlike"]

_OURS = ("torch", "scoreopt_defense", "builtins", "abc", "typing")
# Rounding of float32 through a network: errors of 2^-24 an operation, which add up at random, of
# about 2^14 in a row (a thousand layers' sums of a hundred terms) come to 2^-24 2^7.
_ROUNDING = 2.0**-17
_MULTIPLE = 16  # that two machines may differ by, of what such an error in the images changes
_PATTERNS = 8  # of signs, with which an image's gradient is summed


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


def behaviour(model: nn.Module, x: Tensor, threads: int = 1) -> dict[str, Any] | None:
    """What a defence answers, under a fixed seed and in its own gradient mode.

    Args:
        x: a few images, shape ``(B, C, H, W)``, in [0, 1].
        threads: that it computes with.

    Returns:
        By ``"logits"`` and ``"gradient"``: numbers, and how far rounding may move them (half of it,
        as it is taken of both sides that are compared), measured by a rounding error in the images.
        None of a model that does not answer; the same of a gradient that there is none of.
    """
    try:
        with contained(), as_it_was(model), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its units will warn
            torch.set_num_threads(threads)
            x = placed(model, x)
            signs = torch.rand(x.shape, generator=_generator(), device="cpu") - 0.5
            step = _rounding(model) * signs.sign().to(x)
            first, second = _answers(model, x), _answers(model, (x + step).clamp(0, 1))
    except Exception:  # its units record it
        return None
    return {
        name: {"of": one, "rounding": _MULTIPLE / 2 * _distance(one, other)}
        for (name, one), other in zip(first.items(), second.values(), strict=True)
        if one and other
    } or None


def _rounding(model: nn.Module) -> float:
    """Relative to 1, of the coarsest type that it computes with."""
    types = {part.dtype for part in model.parameters() if part.is_floating_point()}
    if isinstance(model, DefendedModel) and model.purifier.autocast:
        types.add(getattr(torch, model.purifier.autocast))
    return max(_ROUNDING, *(2 * torch.finfo(kind).eps for kind in types if kind.itemsize == 2), 0)


def _answers(model: nn.Module, x: Tensor) -> dict[str, list[float]]:
    as_deployed = torch.autocast(x.device.type, enabled=False)
    with torch.inference_mode(False), torch.enable_grad(), as_deployed, seeded(0):
        leaf = x.clone().requires_grad_()
        logits = reseeded(model, 0)(leaf.clone())  # it may write into its images
        found = {"logits": _finite(logits.detach().flatten()), "gradient": []}
        try:
            weights = torch.linspace(-1, 1, logits.shape[-1]).to(logits)
            (gradient,) = torch.autograd.grad((logits * weights).sum(), leaf)
        except (RuntimeError, ValueError):  # none is offered
            return found
    shape = _PATTERNS, x[0].numel()
    signs = (torch.rand(shape, generator=_generator(), device="cpu") - 0.5).sign()
    sums = gradient.flatten(1).cpu().double() @ signs.double().T
    return found | {"gradient": _finite(sums.flatten())}


def _generator() -> torch.Generator:
    return torch.Generator("cpu").manual_seed(0)


def _finite(values: Tensor) -> list[float]:
    numbers = values.cpu().double()
    return numbers.tolist() if numbers.isfinite().all() else []


def _distance(one: list[float], other: list[float]) -> float:
    """Largest difference, and the last bits of the largest number."""
    furthest = max(abs(a - b) for a, b in zip(one, other, strict=True))
    return furthest + _ROUNDING * max(map(abs, one))


def unlike(was: Mapping[str, Any] | None, is_now: Mapping[str, Any] | None) -> str | None:
    """In which answer two behaviours differ by more than rounding, and by how much.

    What does not answer is not compared.
    """
    for name, one in (was or {}).items():
        other = (is_now or {}).get(name)
        if other is None:
            continue
        if len(one["of"]) != len(other["of"]):
            return f"{len(one['of'])} numbers of its {name} were answered, now {len(other['of'])}"
        most = one["rounding"] + other["rounding"]
        far = max(abs(a - b) for a, b in zip(one["of"], other["of"], strict=True))
        if far > most:
            return f"its {name} on the first images moved by {far:.2g}; rounding is {most:.1g}"
    return None


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
