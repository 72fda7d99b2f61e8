"""When an image counts as broken: by its judged purifications, or at any step of an attack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from scoreopt_defense._checks import check_count
from scoreopt_defense.defended import DefendedModel
from scoreopt_defense.evaluation.judging.fresh import reseeded
from scoreopt_defense.evaluation.judging.threat_model import check_attacked, reaches
from scoreopt_defense.evaluation.judging.votes import vote
from scoreopt_defense.noise import derive, seeded
from scoreopt_defense.settings import Options, Settings

__all__ = ["CRITERIA", "AnyStep", "Criterion", "Final", "Judging"]


@runtime_checkable
class Criterion(Protocol):
    """When an image counts as broken."""

    def run(
        self, attack: Any, model: nn.Module, x: Tensor, y: Tensor, seed: int
    ) -> tuple[Tensor, Tensor | None]:
        """Attack: adversarial images and, unless the judged purifications say it, which broke."""


@dataclass(frozen=True)
class Final:
    """The last adversarial image decides, by its judged purifications."""

    def run(
        self, attack: Any, model: nn.Module, x: Tensor, y: Tensor, seed: int
    ) -> tuple[Tensor, Tensor | None]:
        with seeded(derive(seed, 0)):
            attacked = attack.run(reseeded(model, derive(seed, 0)), x.clone(), y.clone())
        return check_attacked(attack, x, attacked), None


@dataclass(frozen=True)
class AnyStep:
    """An image is broken if it is classified wrongly at any step, and a vote confirms it.

    Watches what the attack itself sends to the model, so that it works for any library's attack.
    Each row that is within an image's threat model and not of its class is confirmed at once, the
    worst one of each image and call, until one is. Of an attack without a bound a row belongs to
    the clean image that it is nearest to (if equally near, the one at its place in the batch):
    libraries send copies and parts of a batch in orders of their own. The last image is a step too;
    on it the vote alone decides, as it does where an attack sends nothing: no single draw that
    comes out right by luck keeps it from that.

    What an attack does not send to the defended model (a transfer attack's queries of the bare
    classifier) is not seen.

    Args:
        confirm: purifications whose mean logits are the confirming vote.

    Reference:
        Hill et al., ICLR 2021, and the authors' code: 150 purifications.
    """

    confirm: int = 150

    def __post_init__(self) -> None:
        check_count("confirm", self.confirm)

    def run(
        self, attack: Any, model: nn.Module, x: Tensor, y: Tensor, seed: int
    ) -> tuple[Tensor, Tensor | None]:
        watch = _Watch(attack, model, x, y, self.confirm, derive(seed, 1))
        watched = _watched(reseeded(model, derive(seed, 0)), watch)
        with seeded(derive(seed, 0)):
            attacked = check_attacked(attack, x, attack.run(watched, x.clone(), y.clone()))
        watch.last(attacked)
        broken = watch.broken.reshape(-1, 1, 1, 1)
        return torch.where(broken, watch.images, attacked), watch.broken


def _watched(model: nn.Module, watch: _Watch) -> nn.Module:
    return model.watched(watch) if isinstance(model, DefendedModel) else _Watched(model, watch)


class _Watched(nn.Module):
    """A module that is not ours, whose calls are told; it may write into what it is given."""

    def __init__(self, model: nn.Module, watch: _Watch) -> None:
        super().__init__()
        self.model, self.watch = model, watch
        self.training = getattr(model, "training", False)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        queries = (*args, *kwargs.values())[0].detach().clone()
        logits = self.model(*args, **kwargs)
        self.watch(queries, logits)
        return logits


class _Watch:
    """Looks at each call of the model, and confirms what seems broken."""

    def __init__(
        self, attack: Any, model: nn.Module, x: Tensor, y: Tensor, confirm: int, seed: int
    ) -> None:
        self.attack, self.model, self.x, self.y = attack, model, x, y
        self.confirm, self.seed, self.calls = confirm, seed, 0
        self.images, self.broken = x.clone(), torch.zeros_like(y, dtype=torch.bool)

    def __call__(self, queries: Tensor, logits: Tensor) -> None:
        if queries.shape[1:] == self.x.shape[1:]:
            self.calls += 1
            self._look(queries.detach(), logits.detach())

    def last(self, attacked: Tensor) -> None:
        """Vote on what the attack ended with."""
        if len(images := (~self.broken).nonzero().flatten()):
            self._confirm(attacked[images], images, call=0)  # those of the attack count from 1

    def _look(self, queries: Tensor, logits: Tensor) -> None:
        wrong = (logits.argmax(1)[:, None] != self.y) & ~self.broken
        wrong &= reaches(self.attack, self.x, queries)
        lead = (logits[:, self.y] - logits.amax(1, keepdim=True)).masked_fill(~wrong, float("inf"))
        if len(images := wrong.any(0).nonzero().flatten()):
            found = queries[lead[:, images].argmin(0)].to(self.x)
            self._confirm(found, images, call=self.calls)

    def _confirm(self, found: Tensor, images: Tensor, *, call: int) -> None:
        logits = vote(
            self.model, found, times=self.confirm, rows=len(self.x),
            seed=derive(self.seed, call),
        )  # fmt: skip
        confirmed = logits.argmax(1) != self.y[images]
        self.broken[images[confirmed]] = True
        self.images[images[confirmed]] = found[confirmed].clamp(0, 1)


#: By the name that a configuration says.
CRITERIA = Options({"final": Final, "any-step": AnyStep}, Criterion)


@dataclass(frozen=True, kw_only=True)
class Judging(Settings):
    """How results are judged.

    Args:
        criterion: ``"final"``, ``"any-step"``, or an object such as ``AnyStep(confirm=50)``.
        purifications: fresh ones of each final image.

    Raises:
        ValueError: naming the setting, its value and what is allowed.
    """

    criterion: Criterion = Final()
    purifications: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("purifications", self.purifications)

    @classmethod
    def options(cls) -> dict[str, Options]:
        return {"criterion": CRITERIA}
