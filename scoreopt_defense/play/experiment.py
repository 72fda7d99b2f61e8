"""One image attacked and purified, and what is told of it on the way."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from scoreopt_defense.defended import DefendedModel
from scoreopt_defense.noise import derive, seeded
from scoreopt_defense.play.choices import Asked, Domain
from scoreopt_defense.play.pictures import as_url, from_url, magnified
from scoreopt_defense.purifiers import Purifier, ScoreOpt

__all__ = ["FRESH", "experiment"]

#: Fresh purifications of the attacked image, whose answers are counted.
FRESH = 16

_OFTEN = 0.1  # seconds between two reports of an attack
_ATTACKS, _ONE, _FRESH, _MODEL = range(4)  # what is drawn, below the seed that was asked for

#: Told what has happened: a dictionary that JSON takes, of a ``kind``.
Tell = Callable[[dict[str, Any]], object]


def experiment(domain: Domain, asked: Asked, tell: Tell, check: Callable[[], None]) -> None:
    """Attack the image, purify it step by step, and purify it afresh :data:`FRESH` times.

    Its noise, and what an attack draws, are functions of the seed asked for. It tells of

    - ``clean``: the image, the classifier's ``probabilities``, and the ``label``: by default
      what it takes the image for;
    - ``attacking``: of ``of`` queries those that are ``done``;
    - ``attacked``: the image, its ``difference`` from the clean one times ``factor``, and that
      difference's norms; with ``none`` for an attack the clean one;
    - ``step``, many times: what would come out if the purification ended here, the
      ``noised`` image that the denoiser is given, and the probabilities of the first;
    - ``purified``: what came out;
    - ``fresh``: the classes that fresh purifications are taken for.

    Args:
        tell: told of each.
        check: called before every call of a network; what it raises ends the experiment.

    Raises:
        ValueError: naming what of it is no choice, or out of range.
        ImportError: if a library is missing.
    """
    classifier, purifier = domain.classifier(asked), domain.purifier(asked)
    x = from_url(asked.image, domain.shape)
    networks = [classifier, *([purifier.denoiser] if purifier else [])]

    def seen(kind: str, x: Tensor, **others: Any) -> None:
        probabilities = [round(p, 4) for p in classifier(x).softmax(1)[0].tolist()]
        tell({"kind": kind, "image": as_url(x), "probabilities": probabilities, **others})

    def stepped(comes_out: Tensor, x_t: Tensor) -> None:
        seen("step", ((comes_out + 1) / 2).clamp(0, 1), noised=as_url((x_t + 1) / 2))

    with torch.no_grad(), _before_each_call(networks, lambda _: check()):
        y = classifier(x).argmax(1) if asked.label is None else torch.tensor([asked.label])
        seen("clean", x, label=int(y))
        x_a = _attacked(domain, asked, classifier, purifier, x, y, tell)
        change = x_a - x
        difference, factor = magnified(change)
        seen("attacked", x_a, difference=as_url(difference), factor=factor,
             linf=float(change.abs().max()), l2=float(change.norm()))  # fmt: skip
        if purifier is None:
            return
        with _each_step(purifier, stepped) as options:
            seen("purified", purifier(x_a, seed=derive(asked.seed, _ONE), **options))
        fresh = purifier(x_a, seed=derive(asked.seed, _FRESH), samples=FRESH)
        tell({"kind": "fresh", "classes": classifier(fresh).argmax(1).tolist()})


def _attacked(
    domain: Domain, asked: Asked, classifier: nn.Module, purifier: Purifier | None,
    x: Tensor, y: Tensor, tell: Tell,
) -> Tensor:  # fmt: skip
    attack = domain.attack(asked)
    if attack is None:
        return x
    model: nn.Module = classifier
    if purifier is not None:
        model = DefendedModel(classifier, purifier.replace(seed=derive(asked.seed, _MODEL)))
    done, last = 0, 0.0

    def count(images: Tensor) -> None:
        nonlocal done, last
        done += len(images)
        if time.monotonic() - last > _OFTEN:
            last = time.monotonic()
            tell({"kind": "attacking", "done": done, "of": attack.queries})

    with _before_each_call([classifier], count), seeded(derive(asked.seed, _ATTACKS)):
        return attack.run(model, x, y)


@contextmanager
def _before_each_call(networks: list[nn.Module], told: Callable[[Tensor], None]) -> Iterator[None]:
    hooks = [n.register_forward_pre_hook(lambda _, given: told(given[0])) for n in networks]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _each_step(
    purifier: Purifier, seen: Callable[[Tensor, Tensor], object]
) -> Iterator[dict[str, Any]]:
    """Options of a call of the purifier, of whose steps ``seen`` is told meanwhile.

    ScoreOpt tells of its own; of another purifier each denoising is a step.
    """
    if isinstance(purifier, ScoreOpt):
        comes_out = {"O": "x", "N": "denoised"}[purifier.settings.variant]
        yield {"callback": lambda step: seen(step[comes_out], step["x_t"])}
        return

    def told(_: object, given: tuple[Tensor, ...], denoised: Tensor) -> None:
        seen(denoised, given[0])

    hook = purifier.denoiser.register_forward_hook(told)
    try:
        yield {}
    finally:
        hook.remove()
