"""What a defence answers, by which it is told from others that are declared to be the same.

Nobody's objects are searched for what they compute with: a loss or a hook that is another one shows
in the answers. What shows in none of them, such as a condition on pixels that the two fixed images
do not meet, no fingerprint can see.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from scoreopt_defense._foreign import as_it_was, contained
from scoreopt_defense.defended import DefendedModel
from scoreopt_defense.denoisers.nothing import NoDenoiser
from scoreopt_defense.evaluation.judging.fresh import as_deployed, placed, reseeded
from scoreopt_defense.purifiers import Purifier, ScoreOpt
from scoreopt_defense.sizes import resized

__all__ = ["behaviour", "is_blind", "unlike"]

# Rounding of float32 through a network: errors of 2^-24 an operation, which add up at random, of
# about 2^14 in a row (a thousand layers' sums of a hundred terms) come to 2^-24 2^7.
_ROUNDING = 2.0**-17
_MULTIPLE = 16  # that two machines may differ by, of what such an error in the images changes
_PATTERNS = 8  # of signs, with which an image is summed
_LEVELS = 0.25, 1.0  # of noise, on the denoiser's scale: the paper's lowest, and where details go

Answers = dict[str, list[float]]


def behaviour(
    model: nn.Module, shape: Sequence[int], dtype: torch.dtype = torch.float32, threads: int = 1
) -> dict[str, Any] | None:
    """What a defence and its parts answer of two fixed images, under a fixed seed.

    Of the whole, in its own gradient mode, and of the classifier: logits and their gradient. Of the
    denoiser: images of two noise levels. Of ScoreOpt: the loss, and its image after one step.

    Args:
        shape: of an image, ``(C, H, W)``.
        dtype: of the images.
        threads: that it computes with.

    Returns:
        By what was asked: numbers, and how far rounding may move them (half of it, as it is taken
        of both sides that are compared), measured by a rounding error in the images. No numbers of
        what is not finite, or of a gradient that there is none of; None of a model that fails.
    """
    x = torch.rand(2, *shape, generator=_generator(), device="cpu").to(dtype)
    signs = (torch.rand(x.shape, generator=_generator(), device="cpu") - 0.5).sign().to(dtype)
    found: dict[str, Any] = {}
    try:
        with contained(), as_it_was(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its units will warn
            torch.set_num_threads(threads)
            moved = (x + _rounding(model) * signs).clamp(0, 1)
            given = placed(model, x), placed(model, moved)
            for name, part in _parts(model):
                with as_it_was(model):
                    one, other = (_answered(part, images) for images in given)
                found |= {
                    f"{name}{what}": {
                        "of": of, "rounding": _MULTIPLE / 2 * _distance(of, apart) if apart else 0.0
                    }
                    for (what, of), apart in zip(one.items(), other.values(), strict=True)
                }  # fmt: skip
            logits = found["logits"]
            size = max(map(abs, logits["of"]), default=0.0)
            if logits["rounding"] > 8 * _MULTIPLE * _rounding(model) * size:  # it may draw
                with as_it_was(model):
                    again = _answered(partial(_classified, model), given[0])["logits"]
                if _distance(logits["of"], again) > 4 * _rounding(model) * size:
                    logits["rounding"] = max(logits["rounding"], 2 * size)  # as far as it is large
    except Exception:  # its units record it
        return None
    return found or None


def _parts(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Functions of images to numbers, each with a name; the whole is the first."""
    yield "", lambda x: _classified(model, x)
    if isinstance(model, DefendedModel):
        if "exact" in model.purifier.modes:  # an attack may choose it, whatever mode it is in
            yield "exactly ", lambda x: _classified(model.with_gradient("exact"), x)
        yield "classifier's ", lambda x: _classified(model.classifier, x)
        yield "", lambda x: _denoised(model.purifier, x)
        if isinstance(model.purifier, ScoreOpt):
            yield "", lambda x: _one_step(model.purifier, x)


def _answered(part: Any, x: Tensor) -> Answers:
    with torch.inference_mode(False), torch.enable_grad(), as_deployed(x, 0):
        return part(x.clone())  # it may write into its images


def _classified(model: nn.Module, x: Tensor) -> Answers:
    leaf = x.clone().requires_grad_()
    logits = reseeded(model, 0)(leaf.clone())
    found: Answers = {"logits": _finite(logits.detach().flatten()), "gradient": []}
    try:
        weights = torch.linspace(-1, 1, logits.shape[-1]).to(logits)
        (gradient,) = torch.autograd.grad((logits * weights).sum(), leaf)
    except (RuntimeError, ValueError):  # none is offered
        return found
    return found | {"gradient": _summed(gradient)}


def _denoised(purifier: Purifier, x: Tensor) -> Answers:
    denoiser, found = purifier.denoiser, {}
    if isinstance(denoiser, NoDenoiser):
        return {}
    low, high = denoiser.sigma_range
    x = resized(x, purifier.size)
    noise = torch.randn(x.shape, generator=_generator(), device="cpu").to(x)
    with torch.no_grad():
        for level in _LEVELS:
            sigma = min(max(level, low), high)
            found[f"denoised image at sigma {sigma:g}"] = _summed(
                denoiser(2 * x - 1 + sigma * noise, sigma)
            )
    return found


def _one_step(purifier: ScoreOpt, x: Tensor) -> Answers:
    told: list[dict[str, Any]] = []
    seed = {} if purifier.deterministic else {"seed": 0}
    one = purifier.replace(steps=1, max_batch=None, **seed)
    with torch.no_grad():
        stepped = one(x, callback=told.append)
    loss = told[0]["loss"] if told else x.new_zeros(0)
    return {"loss": _finite(loss.detach().flatten()), "image after a step": _summed(stepped)}


def _rounding(model: nn.Module) -> float:
    """Relative to 1, of the coarsest type that it computes with."""
    types = {part.dtype for part in model.parameters() if part.is_floating_point()}
    if isinstance(model, DefendedModel) and model.purifier.autocast:
        types.add(getattr(torch, model.purifier.autocast))
    return max(_ROUNDING, *(2 * torch.finfo(kind).eps for kind in types if kind.itemsize == 2), 0)


def _summed(images: Tensor) -> list[float]:
    """Each image's sums with fixed signs."""
    shape = _PATTERNS, images[0].numel()
    signs = (torch.rand(shape, generator=_generator(), device="cpu") - 0.5).sign()
    return _finite((images.detach().flatten(1).cpu().double() @ signs.double().T).flatten())


def _generator() -> torch.Generator:
    return torch.Generator("cpu").manual_seed(0)


def _finite(values: Tensor) -> list[float]:
    numbers = values.cpu().double()
    return numbers.tolist() if numbers.isfinite().all() else []


def _distance(one: list[float], other: list[float]) -> float:
    """Largest difference, and the last bits of the largest number."""
    if not one:
        return 0.0
    furthest = max(abs(a - b) for a, b in zip(one, other, strict=True))
    return furthest + _ROUNDING * max(map(abs, one))


def unlike(was: Mapping[str, Any] | None, is_now: Mapping[str, Any] | None) -> str | None:
    """In which answer two behaviours differ by more than rounding, and by how much."""
    if (was is None) != (is_now is None):
        return "it answers now, and did not" if was is None else "it does not answer any more"
    nothing: dict[str, Any] = {"of": [], "rounding": 0.0}
    for name in {**(was or {}), **(is_now or {})}:
        one, other = ((of or {}).get(name, nothing) for of in (was, is_now))
        if len(one["of"]) != len(other["of"]):
            return f"{len(one['of'])} numbers of its {name} were answered, now {len(other['of'])}"
        if not one["of"]:
            continue
        most = one["rounding"] + other["rounding"]
        far = max(abs(a - b) for a, b in zip(one["of"], other["of"], strict=True))
        if far > most:
            return f"its {name} on two fixed images moved by {far:.2g}; rounding is {most:.1g}"
    return None


def is_blind(found: Mapping[str, Any] | None) -> bool:
    """Whether an answer may move as far as it is large: another one could not be told from it."""
    logits = (found or {}).get("logits", {"of": []})
    spread = max(logits["of"], default=0.0) - min(logits["of"], default=0.0)
    return found is None or not logits["of"] or bool(logits["rounding"] >= spread > 0)
