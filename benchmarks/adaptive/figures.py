"""What the adaptive suite left of each row, by its result files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.common.results_file import RESULTS
from benchmarks.common.table_text import less, results, shares
from scoreopt_defense.data.choosing import drawn
from scoreopt_defense.evaluation.record.differences import Difference
from scoreopt_defense.evaluation.record.statistics import proportion

_TEST_IMAGES = 5000  # of the JPEG re-encoding
NORMS = {"linf": "l-infinity 8/255", "l2": "l2 0.5"}
#: The rows of the adaptive benchmark, as the documents call them.
ROWS = {
    "undefended": "undefended",
    "adversarial-training": "adversarial training",
    "one-shot": "one-shot",
    "menet": "ME-Net's preprocessing",
    "scoreopt-o": "ScoreOpt-O",
    "lm": "LM",
    "scoreopt-n": "ScoreOpt-N",
    "scoreopt-n-before-at": "ScoreOpt-N before adversarial training",
    "resnet": "another's ResNet-56, undefended",
    "scoreopt-n-before-resnet": "ScoreOpt-N before another's ResNet-56",
    "scoreopt-n-no-jacobian": "ScoreOpt-N of 2 steps without the Jacobian",
    "scoreopt-n-no-jacobian-5": "ScoreOpt-N of 5 steps without the Jacobian",
    "scoreopt-n-stopped": "ScoreOpt-N stopped early",
    "diffpure": "DiffPure",
    "gdmp": "GDMP",
    "adp": "ADP",
    "pursamere": "PurSAMERE",
    "menet-trained": "ME-Net",
    "ebm": "Langevin dynamics of an energy",
    "pixeldefend": "PixelDefend",
    "disco": "DISCO",
}


def measured(name: str, suites: Sequence[str] = ("suite", "adaptive")) -> dict[str, Any] | None:
    """What the adaptive suite left of ``<row>_<norm>``: as it is, else as it was before."""
    there = (of for of in suites if (RESULTS / f"{of}_{name}.json").exists())
    of = next(there, None)
    return results(f"{of}_{name}") if of else None


def suite_of(name: str, suites: Sequence[str] = ("suite", "adaptive")) -> dict[str, Any] | None:
    """The suite's own part of what was :func:`measured`."""
    export = measured(name, suites)
    return export and export["suites"]["adaptive"][name.partition("_")[0]]


def of_one_suite(names: Sequence[str]) -> list[dict[str, Any] | None]:
    """What one suite left of each: the suite as it is if that met all, else the suite before."""
    found = [suite_of(name, ["suite"]) for name in names]
    return found if all(found) else [suite_of(name, ["adaptive"]) for name in names]


def clean(export: dict[str, Any]) -> dict[str, float]:
    """A row's accuracy without an attack."""
    (clean,) = (cell["accuracy"] for cell in export["cells"] if cell["attack"] == "clean")
    return clean


def paired(a: dict[str, Any], b: dict[str, Any]) -> Difference | None:
    """One less another over the images of the fewer, which the more met too; None without records.

    Both are of images drawn by seed 0.
    """
    if "right" not in a or "right" not in b:
        return None
    count = min(len(of["right"].split()) for of in (a, b))
    return less(restricted(a, count), restricted(b, count))


def restricted(of: dict[str, Any], count: int) -> dict[str, Any]:
    """Its first so many images as they were drawn, of 5,000 by seed 0, in order of their index."""
    right = of["right"].split()
    order = np.sort(drawn(_TEST_IMAGES, len(right), 0)).searchsorted(
        np.sort(drawn(_TEST_IMAGES, count, 0))
    )
    return of | {"right": " ".join(right[place] for place in order)}


def accuracy(suite: dict[str, Any]) -> dict[str, float]:
    """Of the images of its record."""
    found = shares(suite)
    return proportion(sum(found.values()), len(found)).as_dict()


def calls(suite: dict[str, Any]) -> float:
    """Of the denoiser, an image: of all stages, the judging and the checks."""
    return suite["denoiser_calls"] / suite["accuracy"]["n"]


def passes(export: dict[str, Any]) -> float:
    """Of the denoiser, an answer to an image."""
    (clean,) = (cell for cell in export["cells"] if cell["attack"] == "clean")
    return clean["denoiser_calls"] / (clean["of"] * clean["accuracy"]["n"])


def right_8_times(suite: dict[str, Any]) -> str:
    """The images that stand if an attacker may submit each eight times."""
    (of,) = (of for of in suite["survival"] if of["resubmissions"] == 8)
    return f"{100 * of['value']:.1f}"


#: Settings that say what a defence does.
SETTINGS = ("variant", "sigma", "sigma_per", "level", "steps", "rounds", "share", "lr", "step_size",
            "rho", "bank", "jacobian", "tol")  # fmt: skip


def settings(export: dict[str, Any], row: str) -> str:
    """Those of a row's purifier that are not as usual, in words."""
    said = [
        f"{key} {_brief(value)}"
        for key, value in export["plan"]["defences"][row].get("purifier", {}).items()
        if key in SETTINGS and value not in (None, True, "batch")
    ]
    return ", ".join(said) or "-"


def _brief(value: Any) -> str:
    if isinstance(value, list):
        return " to ".join(f"{end:g}" for end in dict.fromkeys(value))
    return f"{value:g}" if isinstance(value, float) else str(value)
