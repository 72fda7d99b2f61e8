"""Clean, attacked and purified images side by side, in the page itself."""

from __future__ import annotations

import base64
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from io import BytesIO

import numpy as np
import torch
from torch import Tensor, nn

from scoreopt_defense._optional import optional
from scoreopt_defense.defended import DefendedModel
from scoreopt_defense.evaluation.judging.fresh import reseeded
from scoreopt_defense.evaluation.plan import CLEAN
from scoreopt_defense.evaluation.plan.fingerprint import key_of
from scoreopt_defense.evaluation.record.figures import Cell
from scoreopt_defense.evaluation.record.results import Result
from scoreopt_defense.evaluation.record.store_error import NotKept, StoreError
from scoreopt_defense.evaluation.report.reload import Reloaded
from scoreopt_defense.evaluation.run.unit import CLEAN_KEPT
from scoreopt_defense.noise import derive, seeded

__all__ = ["Gallery", "Shown", "Wall", "broken", "gallery"]

_LONGEST = 96  # pixels a side; larger images are shrunk
_BYTES = 2_500_000  # of all images together


@dataclass(frozen=True)
class Shown:
    """One image under one attack on one defence; images as ``data:`` addresses.

    Attributes:
        right, draws: of the record's fresh purifications of the attacked image.
        said: the class that most of them got.
        bare: what the classifier alone says of the attacked image; None if it is not loaded.
        purified_as: what it says of ``purified``.
    """

    image: int
    label: str
    clean: str
    attacked: str
    difference: str
    right: int
    draws: int
    said: str
    purified: str | None = None
    bare: str | None = None
    purified_as: str | None = None


@dataclass
class Wall:
    """The images of one attack on one defence.

    Attributes:
        gain: how much differences are amplified.
    """

    cell: Cell
    gain: float
    shown: list[Shown] = field(default_factory=list)


@dataclass
class Gallery:
    """All walls.

    Attributes:
        drawn: how many images were drawn; ``complete`` says whether all of them fitted.
        shrunk: whether they are smaller than they were.
        absent: why there are none.
        unkept: attacks on defences whose images the run did not keep.
        damaged: of images that cannot be read, what is wrong.
    """

    walls: list[Wall]
    drawn: int = 0
    seed: int = 0
    complete: bool = True
    shrunk: bool = False
    absent: str | None = None
    unkept: int = 0
    damaged: list[str] = field(default_factory=list)

    @property
    def most(self) -> int:
        """Images of the fullest wall."""
        return max((len(wall.shown) for wall in self.walls), default=0)


def gallery(result: Result, loaded: Reloaded, *, count: int = 8, seed: int = 0) -> Gallery:
    """A seeded handful of the run's images, the same in every cell.

    Images are added one by one in all cells, until the page would be too large.
    """
    total, channels, *sides = result.plan.images["shape"]
    cells = [cell for cell in result.cells if cell.attack != CLEAN and cell.accuracy is not None]
    if channels not in (1, 3) or not cells:
        why = (
            "no attack has finished a batch yet"
            if not cells
            else f"images of {channels} channels cannot be shown"
        )
        return Gallery([], absent=why)
    drawn = np.random.default_rng(seed).permutation(min(total, CLEAN_KEPT))[:count].tolist()
    clean: dict[str, Tensor] = {}
    made, damaged, unkept = [], [], 0
    for cell in cells:
        try:
            if cell.defence not in clean:
                clean[cell.defence] = _drawn(result, cell.defence, CLEAN, drawn)
            attacked = _drawn(result, cell.defence, cell.attack, drawn)
        except NotKept:
            unkept += 1
        except StoreError as error:  # of one image; the others are shown
            damaged.append(str(error))
        else:
            made.append(_Maker(result, loaded, cell, drawn, clean[cell.defence], attacked, seed))
    made = [maker for maker in made if maker.places]
    damaged = list(dict.fromkeys(damaged))
    if not made:
        why = "the run did not keep them (keep)" if unkept else "none can be read"
        return Gallery([], absent=why, damaged=damaged)
    walls = [Wall(maker.cell, maker.gain) for maker in made]
    found = Gallery(
        walls, len(drawn), seed, shrunk=max(sides) > _LONGEST, unkept=unkept, damaged=damaged
    )
    size = 0
    for image in drawn:
        row = [(wall, maker.show(image)) for wall, maker in zip(walls, made)]
        size += sum(_size(shown) for _, shown in row if shown)
        if size > _BYTES and found.most:
            found.complete = False
            break
        for wall, shown in row:
            if shown:
                wall.shown.append(shown)
    return found


def broken(
    result: Result, loaded: Reloaded, worst: Iterable[Cell], *, seed: int = 0
) -> dict[str, Wall]:
    """Of each of these cells, by its defence, the three images that it broke most surely.

    They are right without an attack and wrong under it, each in most purifications. Later cells are
    left out where the page would be too large.
    """
    walls: dict[str, Wall] = {}
    size = 0
    for cell in worst:
        images = _broken(result, cell)[:3]
        if not images or size > _BYTES / 2:
            continue
        try:
            clean = _drawn(result, cell.defence, CLEAN, images)
            attacked = _drawn(result, cell.defence, cell.attack, images)
        except StoreError:  # which the gallery says
            continue
        maker = _Maker(result, loaded, cell, images, clean, attacked, seed)
        shown = [one for image in images if (one := maker.show(image))]
        size += sum(map(_size, shown))
        walls[cell.defence] = Wall(cell, maker.gain, shown=shown)
    return {defence: wall for defence, wall in walls.items() if wall.shown}


def _broken(result: Result, cell: Cell) -> list[int]:
    shares = []
    for attack in (CLEAN, cell.attack):
        judged = result.judged(cell.defence, attack)
        first = (judged.trials == 0) & (judged.images < CLEAN_KEPT)
        shares.append(
            dict(zip(judged.images[first].tolist(), judged.right[first].mean(1).tolist()))
        )
    clean, left = shares
    found = [image for image in left if left[image] < 0.5 < clean.get(image, 0)]
    return sorted(found, key=lambda image: left[image])


def _drawn(result: Result, defence: str, attack: str, drawn: list[int]) -> Tensor:
    return torch.from_numpy(result.adversarial(defence, attack, images=drawn))


class _Maker:
    """Makes the images of one cell, from the record and the loaded defence."""

    def __init__(
        self,
        result: Result,
        loaded: Reloaded,
        cell: Cell,
        drawn: list[int],
        clean: Tensor,
        attacked: Tensor,
        seed: int,
    ) -> None:
        self.cell, self.classes = cell, loaded.classes
        judged = result.judged(cell.defence, cell.attack)
        rows = np.flatnonzero((judged.trials == 0) & np.isin(judged.images, drawn))
        self.judged = dict(zip(judged.images[rows].tolist(), rows.tolist()))
        self.labels, self.predicted = judged.labels, judged.predicted
        there = torch.isfinite(clean).flatten(1).all(1) & torch.isfinite(attacked).flatten(1).all(1)
        keep = [i for i, ok in enumerate(there.tolist()) if ok and drawn[i] in self.judged]
        self.places = {drawn[i]: place for place, i in enumerate(keep)}
        self.clean, self.attacked = clean[keep], attacked[keep]
        self.gain = _gain(self.attacked - self.clean) if keep else 1.0
        model = loaded.models.get(cell.defence)
        place = derive(seed, key_of(cell.defence), key_of(cell.attack))
        self.purified, self.bare, self.purified_as = _seen(model, self.attacked, place)

    def show(self, image: int) -> Shown | None:
        if image not in self.places:
            return None
        place, row = self.places[image], self.judged[image]
        label, predicted = int(self.labels[row]), Counter(self.predicted[row].tolist())
        return Shown(
            image,
            self._class(label),
            _png(self.clean[place]),
            _png(self.attacked[place]),
            _png(0.5 + self.gain * (self.attacked[place] - self.clean[place])),
            right=predicted[label],
            draws=predicted.total(),
            said=self._class(predicted.most_common(1)[0][0]),
            purified=None if self.purified is None else _png(self.purified[place]),
            bare=None if self.bare is None else self._class(self.bare[place]),
            purified_as=None if self.purified_as is None else self._class(self.purified_as[place]),
        )

    def _class(self, index: int) -> str:
        return self.classes[index] if 0 <= index < len(self.classes) else str(index)


Seen = tuple["Tensor | None", "list[int] | None", "list[int] | None"]


@torch.no_grad()
def _seen(model: nn.Module | None, attacked: Tensor, seed: int) -> Seen:
    """One purification, and what the classifier says of the images without and with it."""
    if model is None or not len(attacked):
        return None, None, None
    fresh = reseeded(model, seed)
    with seeded(seed):
        if not isinstance(fresh, DefendedModel):
            return None, fresh(attacked).argmax(1).tolist(), None
        purified = fresh.purifier(attacked)
        bare, after = (fresh.classifier(x).argmax(1).tolist() for x in (attacked, purified))
    return purified, bare, after


def _gain(change: Tensor) -> float:
    """A round number that takes the largest change at most to black or white."""
    largest = float(change.abs().max())
    if largest == 0:
        return 1.0
    exact = 0.5 / largest
    return float(math.floor(exact)) if exact >= 2 else round(exact, 1)


def _png(image: Tensor) -> str:
    longest = max(image.shape[1:])
    if longest > _LONGEST:
        shape = [max(1, round(side * _LONGEST / longest)) for side in image.shape[1:]]
        image = nn.functional.interpolate(image[None], shape, mode="area")[0]
    levels = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    pillow, file = optional("PIL.Image", extra="evaluate"), BytesIO()
    pillow.fromarray(levels.squeeze(2) if levels.shape[2] == 1 else levels).save(file, "png")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _size(shown: Shown) -> int:
    return sum(map(len, _images(shown)))


def _images(shown: Shown) -> Iterator[str]:
    yield from (shown.clean, shown.attacked, shown.difference, shown.purified or "")
