"""Robust accuracy of ScoreOpt and its baselines by the adaptive suite, on tiny CIFAR-10 networks.

    python -m benchmarks.adaptive.run path/to/cifar10/test/images --norm linf --row scoreopt-n
    python -m benchmarks.adaptive.run path/to/cifar10/test/images    # every figure, in days
    python -m benchmarks.adaptive.run IMAGES --norm linf --row diffpure --budget least

A row is a run of ``scoreopt evaluate``'s runner in ``runs/adaptive``; stopped and started again, it
goes on. Its figures are written to ``results/adaptive_<row>_<norm>.json``, and ``scoreopt report
runs/adaptive/<row>-<norm>`` makes a page of it. Rows of docs/robustness.md meet 128 images; those
that only stand beside a figure of the paper's tables meet as many as that does, 64 mostly. The
last is a row at the budget of a longer one, which it is compared with.

``--confirm`` is the suite's, 0 unless said otherwise: before it was there most rows were measured,
and they are compared with one another. docs/robustness.md says what it is worth.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.common import precision
from benchmarks.common.results_file import RESULTS
from scoreopt_defense._memory import keep_freed_memory
from scoreopt_defense.evaluation.config import Config
from scoreopt_defense.evaluation.evaluate import evaluate_plan
from scoreopt_defense.evaluation.record.export import to_json
from scoreopt_defense.evaluation.run.progress import progress

NAME, RESNET = "cifar10-tiny", "python:benchmarks.paper.third_party:resnet"


def purified(kind: str, classifier: str = NAME, **settings: Any) -> dict[str, Any]:
    """A defence's section of a configuration."""
    return {"classifier": classifier, "purifier": kind, "denoiser": NAME, **settings}


def changed(variant: str, **overrides: Any) -> dict[str, Any]:
    """ScoreOpt with other hyper-parameters than the preset's."""
    return purified("ScoreOpt", preset=f"{NAME}/{variant}", overrides=overrides)


# of docs/robustness.md
MAIN: dict[str, dict[str, Any]] = {
    "undefended": {"classifier": NAME},
    "adversarial-training": {"classifier": f"{NAME}-at"},
    "one-shot": purified("OneShot", overrides={"sigma": 0.25}),
    "scoreopt-o": purified("ScoreOpt", preset=f"{NAME}/O"),
    "scoreopt-n": purified("ScoreOpt", preset=f"{NAME}/N"),
    "scoreopt-n-before-at": purified("ScoreOpt", f"{NAME}-at", preset=f"{NAME}/N"),
    # of Table 11; its file is named by the variable RESNET
    "resnet": {"classifier": RESNET},
    "scoreopt-n-before-resnet": purified("ScoreOpt", RESNET, preset=f"{NAME}/N"),
    "scoreopt-n-no-jacobian": purified("ScoreOpt", preset=f"{NAME}/fast"),
    "scoreopt-n-no-jacobian-5": purified("ScoreOpt", preset=f"{NAME}/strong"),
    "scoreopt-n-stopped": purified("ScoreOpt", preset=f"{NAME}/balanced"),
    "menet": {"classifier": NAME, "purifier": "MENet"},
    "diffpure": purified("DiffPure", overrides={"sigma": 0.25, "steps": 10}),
    "gdmp": purified("GDMP", overrides={"sigma": 0.25, "steps": 9, "rounds": 1}),
    "adp": purified("ADP", overrides={"sigma": 0.15, "level": 0.15, "steps": 5, "share": 0.3}),
}
# of Table 12, each for the threat that it names there, and of Figures 2 and 3
BESIDE: dict[str, dict[str, Any]] = {
    "scoreopt-o-low": changed("O", sigma=[0.10, 0.30]),
    "scoreopt-o-wide": changed("O", sigma=[0.10, 0.35]),
    "scoreopt-o-high": changed("O", sigma=[0.20, 0.40]),
    "scoreopt-o-faster": changed("O", lr=0.08, steps=10),
    "scoreopt-n-low": changed("N", sigma=[0.12, 0.12]),
    "scoreopt-n-high": changed("N", sigma=[0.18, 0.18]),
    "scoreopt-n-10-steps-high": changed("N", steps=10, sigma=[0.18, 0.18]),
    **{f"scoreopt-o-{k}-steps": changed("O", steps=k) for k in (1, 2, 10, 20, 100)},
    **{f"scoreopt-n-{k}-steps": changed("N", steps=k) for k in (1, 2, 10, 20)},
    "scoreopt-o-mse": changed("O", loss="mse"),
    **{f"scoreopt-o-mse-{k}-steps": changed("O", loss="mse", steps=k) for k in (10, 20, 100)},
    "scoreopt-o-sr": changed("O", loss="sr"),
    **{f"scoreopt-o-sr-{k}-steps": changed("O", loss="sr", steps=k) for k in (1, 10, 20, 100)},
    **{
        f"scoreopt-o-{loss}-lambda-{weight:g}": changed(
            "O", loss={"name": loss, "weight": weight}, steps=20
        )
        for loss in ("mse", "sr")
        for weight in (0.01, 0.1, 10.0)
    },
    **{  # of Table 2
        f"diffpure-{k}-steps": purified("DiffPure", overrides={"sigma": 0.25, "steps": k})
        for k in (20, 40, 80, 100)
    },
}
ROWS = MAIN | BESIDE
THREATS: dict[str, dict[str, Any]] = {
    "linf": {"norm": "linf", "eps": "8/255"},
    "l2": {"norm": "l2", "eps": 0.5},
}
# What the paper's budget (20 steps of 20 samples; 1,000 queries and two restarts are ours) is cut
# to, so that a row takes less than an hour of two cores, or half of one if it only stands beside a
# table; of one budget, more steps of fewer samples break more (attack_search.py). Attacks compute
# in bfloat16, or by --float32 in float32, as what judges them always does.
LEAST = {"steps": 20, "longer": 1, "queries": 50, "probed": 0}
SMALLEST = {"steps": 40, "longer": 1, "queries": 100, "probed": 16}
SMALL = {"steps": 40, "longer": 2, "queries": 100, "probed": 16}
MIDDLE = {"steps": 80, "longer": 2, "queries": 100, "probed": 16}
LARGE = {"steps": 80, "longer": 4, "queries": 200, "probed": 32}
NAMED = {"least": LEAST, "smallest": SMALLEST, "small": SMALL, "middle": MIDDLE, "large": LARGE}
_REFERENCES = ("undefended", "adversarial-training", "one-shot", "menet")
_LONGER = ("scoreopt-n-before-at", "diffpure", "gdmp", "adp")
_IN_L2_TOO = (
    *_REFERENCES, "scoreopt-o", "scoreopt-n", *_LONGER, "scoreopt-n-before-resnet",
    "scoreopt-o-1-steps", "scoreopt-n-1-steps", "scoreopt-n-10-steps",
)  # fmt: skip
_IN_L2_ALONE = ("scoreopt-n-10-steps-high", "scoreopt-o-high")
# the rows that a document has, by norm
STANDING = {
    "linf": [row for row in ROWS if row not in _IN_L2_ALONE],
    "l2": [row for row in ROWS if row in _IN_L2_TOO + _IN_L2_ALONE],
}
OF_128 = (*MAIN, "scoreopt-o-faster", "scoreopt-o-high")
BUDGETS: dict[str, dict[str, dict[str, int]]] = {  # by norm; SMALL for the rows not named
    "linf": {
        **dict.fromkeys((*_REFERENCES, "resnet", "scoreopt-o", "scoreopt-n"), LARGE),
        **dict.fromkeys(("scoreopt-n-no-jacobian", "scoreopt-n-no-jacobian-5"), LARGE),
        "scoreopt-n-stopped": LARGE,
        **dict.fromkeys(_LONGER, MIDDLE),
        **dict.fromkeys((f"scoreopt-{k}-20-steps" for k in ("n", "o", "o-mse", "o-sr")), SMALLEST),
        **dict.fromkeys((row for row in ROWS if "lambda" in row), SMALLEST),
        **dict.fromkeys((row for row in ROWS if "-100-" in row), LEAST),
        "diffpure-40-steps": SMALLEST,
        "diffpure-80-steps": LEAST,
    },
    "l2": {
        **dict.fromkeys(_REFERENCES, LARGE),
        **dict.fromkeys(("scoreopt-o", "scoreopt-n", *_LONGER), MIDDLE),
        **dict.fromkeys(("scoreopt-n-10-steps", "scoreopt-n-10-steps-high"), SMALLEST),
    },
}
# rows at the budgets of longer ones, which they are compared with, and with ``confirm``
AGAIN: dict[str, list[tuple[str, str | None, int]]] = {
    "linf": [
        *(("diffpure", budget, 0) for budget in ("small", "smallest", "least")),
        ("scoreopt-n", "small", 0),
        *((row, "smallest", 0) for row in ("scoreopt-n", "scoreopt-o", "scoreopt-o-sr")),
        *((row, "least", 0) for row in ("scoreopt-o", "scoreopt-o-sr")),
        *((row, "smallest", 32) for row in ("scoreopt-n", "scoreopt-o")),
        ("scoreopt-o", None, 32),
    ],
    "l2": [],
}


def budget_of(row: str, norm: str) -> dict[str, int]:
    """A row's own."""
    return BUDGETS[norm].get(row, SMALL)


def written(row: str, norm: str, budget: str | None = None, confirm: int = 0) -> str:
    """What a row's result file is called after ``adaptive_``, at a budget of another's too."""
    confirmed = "-confirmed" if confirm else ""
    return f"{row}_{norm}" + (f"-at-{budget}" if budget else "") + confirmed


def configuration(
    row: str, norm: str, source: str, images: int, seed: int, float32: bool = False,
    budget: str | None = None, confirm: int = 0,
) -> Config:  # fmt: skip
    """One row of the table, in one norm, at its own budget or at one of ``NAMED``."""
    suite = {"suite": "adaptive", "keep_mb": 2000, "confirm": confirm}
    suite |= {"autocast": precision.autocast(float32)}
    suite |= NAMED[budget] if budget else budget_of(row, norm)
    return Config.model_validate(
        {
            "batch": 32,
            "seed": seed,
            "images": {"source": source, "n": images, "seed": seed, "order": "index"},
            "defences": {row: ROWS[row]},
            "suites": {"adaptive": suite | THREATS[norm]},
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", help="CIFAR-10 test images")
    parser.add_argument("--row", choices=ROWS, help="every one that a document has by default")
    parser.add_argument("--norm", choices=THREATS, help="both by default")
    parser.add_argument(
        "--images", type=int, help="128, or 64 of a row that is compared with as many"
    )
    parser.add_argument("--budget", choices=NAMED, help="the row's own by default")
    parser.add_argument("--confirm", type=int, default=0, help="as of the adaptive suite")
    parser.add_argument("--seed", type=int, default=0)
    precision.add_argument(parser)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--runs", type=Path, default=Path("runs/adaptive"))
    args = parser.parse_args()
    keep_freed_memory()
    for norm in [args.norm] if args.norm else THREATS:
        rows = [args.row] if args.row else STANDING[norm]
        asked = [(row, args.budget, args.confirm) for row in rows]
        if not (args.row or args.budget or args.confirm):
            asked += AGAIN[norm]
        for row, budget, confirm in asked:
            images = args.images or (128 if row in OF_128 and not budget else 64)
            config = configuration(
                row, norm, args.source, images, args.seed, args.float32, budget, confirm
            )
            name = written(row, norm, budget, confirm)
            materials = config.materials()
            result = evaluate_plan(
                config.plan(materials), materials, out=args.runs, name=name,
                workers=args.workers, wait=True, progress=progress(),
            )  # fmt: skip
            with result.store:
                print(result)
                to_json(result, RESULTS / f"adaptive_{name}.json")


if __name__ == "__main__":
    main()
