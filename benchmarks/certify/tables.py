"""The sandwich: what is certified of a defence, below, and what attacks leave of it, above."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from benchmarks.adaptive.figures import ROWS as NAMES
from benchmarks.adaptive.figures import clean
from benchmarks.common.results_file import RESULTS
from benchmarks.common.table_text import markdown, percent, results
from scoreopt_defense.evaluation.certification.bounds import still_right
from scoreopt_defense.evaluation.record.statistics import Proportion, proportion

__all__ = ["CERTIFY_TABLES", "draw"]

ROWS = ("undefended", "one-shot", "adversarial-training", "scoreopt-n", "diffpure")
#: l2 on [0, 1] pixels: those that the suite was held to are the second and the last, the smallest
#: l2 ball that holds the linf one of 8/255.
LINF = 8 / 255 * math.sqrt(3 * 32 * 32)
RADII = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, LINF)
SUITES = {0.5: "l2", LINF: "linf"}
#: Of the first 128 images as they are drawn by seed 0: by today's digest, and by that of a file
#: called ``adaptive_``.
SAME = ("18ea2d4f4f66", "a07237848d49")


class Row:
    """One defence's result file."""

    def __init__(self, row: str) -> None:
        self.row, self.found = row, results(f"certify_{row}")
        columns = {name: np.array(self.found[name].split(), dtype=float)
                   for name in ("label", "top", "bound", "radius_pixels")}  # fmt: skip
        self.right = columns["label"] == columns["top"]
        self.bound, self.radii = columns["bound"], columns["radius_pixels"]
        self.images = self.found["images"]["shape"][0]

    def certified(self, radius: float) -> Proportion:
        """Of the smoothed classifier, which answers with the majority."""
        proved = self.right & (self.radii > 0) & (self.radii >= radius)
        return proportion(int(proved.sum()), self.images)

    def one(self, radius: float) -> Proportion:
        """Of a single noised copy: see :meth:`~scoreopt_defense...Certified.share_right`."""
        share = still_right(self.bound[self.right], radius, self.found["sigma_pixels"])
        return proportion(float(share.sum()), self.images)

    def left(self, radius: float) -> dict[str, float] | None:
        """What the suite left of these images in a ball that is no larger, the least that it did.

        At 0 it is accuracy without an attack. None where it was not held to this radius.
        """
        found = []
        for norm in {0.0: ("l2", "linf")}.get(radius, (SUITES.get(radius),)):
            for kind in ("suite", "adaptive"):
                if not (RESULTS / f"{kind}_{self.row}_{norm}.json").exists():
                    continue
                export = results(f"{kind}_{self.row}_{norm}")
                if {_digest(export["plan"]), _digest(self.found)} <= {*SAME}:
                    suite = export["suites"]["adaptive"][self.row]
                    found.append(suite["accuracy"] if radius else clean(export))
        return min(found, key=lambda share: share["value"], default=None)


def _digest(plan: dict[str, Any]) -> str:
    return plan["images"]["sha256"][:12]


def measured() -> list[Row]:
    return [Row(row) for row in ROWS if (RESULTS / f"certify_{row}.json").exists()]


def sandwich() -> str:
    """Accuracy against l2 radius, certified and attacked."""
    lines = []
    for row in measured():
        name = NAMES[row.row]
        own = row.found["own_noise"]
        said = "majority of purifications" if own else "in noise"
        lines.append([f"{name}, {said}", "certified", *(_cell(row.certified(r)) for r in RADII)])
        if own:
            lines.append([f"{name}, one purification", "certified",
                          *(_cell(row.one(r)) for r in RADII)])  # fmt: skip
        lines.append([name, "attacked", *(percent(row.left(r), 0) for r in RADII)])
    return markdown(["defence", "", *(f"{radius:.3g}" for radius in RADII)], lines)


def _cell(share: Proportion) -> str:
    return percent(share.as_dict(), 0)


def cost() -> str:
    """Copies, what they can prove at most, and what they took."""
    return markdown(
        ["defence", "noise", "copies", "radius at most", "abstains", "seconds an image"],
        [
            [NAMES[row.row], "its own" if row.found["own_noise"] else "outside",
             f"{row.found['certification']['n']:,}", f"{row.found['most_pixels']:.3f}",
             str(int((row.radii == 0).sum())), f"{row.found['seconds'] / row.images:.0f}"]
            for row in measured()
        ],
    )  # fmt: skip


CERTIFY_TABLES = {"certify_sandwich": sandwich, "certify_cost": cost}


def draw() -> None:
    """``certify.svg``: between the two lines nobody knows."""
    from matplotlib.figure import Figure  # an extra

    rows = measured()
    figure = Figure(figsize=(2.6 * len(rows), 3), layout="constrained")
    for axes, row in zip(np.atleast_1d(figure.subplots(1, len(rows), sharey=True)), rows):
        panel(axes, row)
    figure.axes[0].set_ylabel("accuracy, %")
    labelled = {label: handle for axes in figure.axes
                for handle, label in zip(*axes.get_legend_handles_labels())}  # fmt: skip
    figure.legend(labelled.values(), labelled, loc="outside lower center", ncols=3)
    figure.savefig(RESULTS / "certify.svg")


def panel(axes: Any, row: Row) -> None:
    """One defence."""
    radii = np.linspace(0, LINF, 400)
    lower = np.array([100 * row.certified(radius).value for radius in radii])
    axes.plot(radii, lower, color="C0", label="certified, majority of noised copies")
    if row.found["own_noise"]:
        one = [100 * row.one(radius).value for radius in radii]
        axes.plot(radii, one, color="C2", ls="--", label="certified, one purification")
    there = {radius: share for radius in (0.0, *SUITES) if (share := row.left(radius))}
    above = [100 * share["value"] for share in there.values()]
    axes.step([*there, 1.05 * LINF], [*above, above[-1]], "C3", where="post",
              label="the adaptive suite leaves")  # fmt: skip
    axes.plot([*there], above, "o", color="C3", ms=4)
    axes.set(title=NAMES[row.row], xlabel="l2 radius on pixels", ylim=(0, 100))
    axes.set_xlim(0, 1.05 * LINF)
    axes.set_xticks([0, 0.5, 1, 1.5])
