"""What was certified: an image each, and the accuracy that this proves at a radius."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np

from scoreopt_defense._checks import check_choice, check_positive
from scoreopt_defense._files import replacing
from scoreopt_defense.evaluation.certification import bounds
from scoreopt_defense.evaluation.certification.smoothing import Certification
from scoreopt_defense.evaluation.record.results import Result
from scoreopt_defense.evaluation.record.statistics import Proportion, proportion

__all__ = ["CERTIFY", "NORMS", "Certificate", "Certified"]

#: What certification is called in a plan.
CERTIFY = "certify"
#: Norms whose ball is certified: the largest one in the l2 ball.
NORMS = ("l2", "l1", "linf")
_SHOWN = 6  # radii of a table


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """One image.

    Attributes:
        image, label: its number, and its class.
        predicted: the smoothed classifier's class; None: it abstains.
        radius_pixels, radius_paper: within which that class is proved to stay, on [0, 1] pixels and
            on the paper's [-1, 1], where it is twice as large; 0 of an abstention.
        top: the class that the first copies chose.
        count, draws: how many of the other copies were of it, and how many there were.
        bound: on the probability of ``top``; 0 where it was given up before there was one.
        seconds: that the image took.
    """

    image: int
    label: int
    predicted: int | None
    radius_pixels: float
    radius_paper: float
    top: int
    count: int
    draws: int
    bound: float
    seconds: float

    @property
    def correct(self) -> bool:
        return self.predicted == self.label


class Certified:
    """Certificates of each defence.

    Args:
        result: of the run; see :func:`certify`.
        norm: of the radii.
    """

    def __init__(self, result: Result, norm: str = "l2") -> None:
        check_choice("norm", norm, NORMS)
        self.result, self.norm = result, norm
        #: How many times the norm's radius the l2 one is.
        self.times = math.sqrt(math.prod(result.plan.images["shape"][1:])) ** (norm == "linf")

    @property
    def defences(self) -> list[str]:
        return list(self.result.plan.defences)

    def settings(self, defence: str | None = None) -> Certification:
        """What a defence was certified with."""
        about = self.result.plan.tasks[CERTIFY][self._named(defence)].attack
        return Certification(**{name: value for name, value in about.items() if name != "kind"})

    def certificates(self, defence: str | None = None) -> list[Certificate]:
        """Of each image, in order, but of those that failed."""
        found = []
        for unit, result in self.result.units():
            if (unit.attack, unit.defence) != (CERTIFY, self._named(defence)) or result.error:
                continue
            measured: dict[str, Any] = result.measured or {}
            rows = (dict(zip(measured, values)) for values in zip(*measured.values()))
            for place, label, row in zip(result.places.tolist(), result.labels.tolist(), rows):
                found.append(
                    Certificate(
                        image=result.first + place, label=label,
                        predicted=None if row["predicted"] < 0 else int(row["predicted"]),
                        radius_pixels=row["radius_pixels"] / self.times,
                        radius_paper=row["radius_paper"] / self.times, bound=row["bound"],
                        top=int(row["top"]), count=int(row["count"]), draws=int(row["draws"]),
                        seconds=result.seconds / result.tried,
                    )
                )  # fmt: skip
        return found

    def accuracy(self, radius_pixels: float = 0.0, defence: str | None = None) -> Proportion:
        """The share of images that are proved to be classified rightly by the smoothed classifier.

        At every image within that radius, on [0, 1] pixels; of images that failed none is. Each
        certificate is wrong with probability ``alpha`` at most; the interval is over images.
        """
        check_positive("radius_pixels", radius_pixels, zero=True)
        there = self.certificates(defence)
        proved = sum(c.correct and c.radius_pixels >= radius_pixels for c in there)
        return proportion(proved, self.result.plan.count)

    def share_right(self, radius_pixels: float = 0.0, defence: str | None = None) -> Proportion:
        r"""The mean share of noised copies that are right, at least, wherever within that radius.

        .. math:: \Phi\big(\Phi^{-1}(p) - r / \sigma\big)

        of an image whose likeliest class is the true one, and 0 of others. Where the noise is the
        defence's own, a copy is a purification of the defence as it is deployed, and this is a
        lower bound of the accuracy that attacks within that radius can leave of it.
        """
        check_positive("radius_pixels", radius_pixels, zero=True)
        bound = np.array([c.bound for c in self.certificates(defence) if c.top == c.label])
        sigma = self.settings(defence).sigma_pixels
        share = bounds.still_right(bound, radius_pixels * self.times, sigma)
        return proportion(float(share.sum()), self.result.plan.count)

    def to_tsv(self, path: str | Path, defence: str | None = None) -> Path:
        """Write the table of locuslab/smoothing, which its ``analyze.py`` reads.

        ``idx label predict radius correct time``, -1 an abstention; the radius on [0, 1] pixels,
        cut to 9 digits and never rounded up.
        """
        lines = ["idx\tlabel\tpredict\tradius\tcorrect\ttime"]
        for c in self.certificates(defence):
            radius = math.floor(c.radius_pixels * 1e9) / 1e9
            predicted = -1 if c.predicted is None else c.predicted
            took = timedelta(seconds=c.seconds)
            lines.append(f"{c.image}\t{c.label}\t{predicted}\t{radius}\t{c.correct:d}\t{took}")
        with replacing(path) as part:
            part.write_text("\n".join(lines) + "\n")
        return Path(path)

    def __str__(self) -> str:
        """A table: what is proved at some radii, in per cent, with its interval over images."""
        radii = self._radii()
        rows = [["certified, %", *(f"{r:.3g}" for r in radii), "abstains", "proves at most"]]
        for name in self.defences:
            there, settings = self.certificates(name), self.settings(name)
            accuracies = (str(self.accuracy(radius, name)) for radius in radii)
            abstained = sum(c.predicted is None for c in there)
            most = settings.most_pixels / self.times
            rows.append([name, *accuracies, str(abstained), f"{most:.3g}"])
        widths = [max(map(len, column)) for column in zip(*rows)]
        lines = ["  ".join(t.ljust(w) for t, w in zip(row, widths)).rstrip() for row in rows]
        lines += [f"{failure.unit} failed: {failure.error}" for failure in self.result.failures]
        lines += [f"Radii in {self.norm} on [0, 1] pixels; on [-1, 1] they are twice as large."]
        return "\n".join(lines)

    __repr__ = __str__

    def _radii(self) -> Sequence[float]:
        most = max(self.settings(name).most_pixels for name in self.defences) / self.times
        return np.linspace(0, most, _SHOWN, endpoint=False).tolist()

    def _named(self, defence: str | None) -> str:
        if defence is None and len(self.defences) == 1:
            return self.defences[0]
        check_choice("defence", defence, self.defences)
        assert defence is not None
        return defence
