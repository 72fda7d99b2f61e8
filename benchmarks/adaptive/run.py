"""Robust accuracy of ScoreOpt and its baselines by the adaptive suite, on tiny CIFAR-10 networks.

    python -m benchmarks.adaptive.run path/to/cifar10/test/images --norm linf --row scoreopt-n
    python -m benchmarks.adaptive.run path/to/cifar10/test/images    # every row, in a day

A row is a run of ``scoreopt evaluate``'s runner in ``runs/adaptive``; stopped and started again, it
goes on. Its figures are written to ``results/suite_<row>_<norm>.json``, and ``scoreopt report
runs/adaptive --view <row>_<norm>`` makes a page of it.

``results/adaptive_<row>_<norm>.json`` are what the suite left before it was one of momentum (commit
91d3424): 128 images of the rows of docs/results/robustness.md, 64 of those beside a figure of the
paper's tables. After ``-at-`` stands the budget of another row, which it is compared with.
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
OWN = "python:benchmarks.adaptive.literature"


def purified(kind: str, classifier: str = NAME, **settings: Any) -> dict[str, Any]:
    """A defence's section of a configuration."""
    return {"classifier": classifier, "purifier": kind, "denoiser": NAME, **settings}


def changed(variant: str, **overrides: Any) -> dict[str, Any]:
    """ScoreOpt with other hyper-parameters than the preset's."""
    return purified("ScoreOpt", preset=f"{NAME}/{variant}", overrides=overrides)


# of docs/results/robustness.md
MAIN: dict[str, dict[str, Any]] = {
    "undefended": {"classifier": NAME},
    "adversarial-training": {"classifier": f"{NAME}-at"},
    "one-shot": purified("OneShot", overrides={"sigma": 0.25}),
    "scoreopt-o": purified("ScoreOpt", preset=f"{NAME}/O"),
    "scoreopt-n": purified("ScoreOpt", preset=f"{NAME}/N"),
    "scoreopt-n-before-at": purified("ScoreOpt", f"{NAME}-at", preset=f"{NAME}/N"),
    "lm": purified("ScoreOpt", preset=f"{NAME}/lm"),
    # of Table 11; its file is named by the variable RESNET
    "resnet": {"classifier": RESNET},
    "scoreopt-n-before-resnet": purified("ScoreOpt", RESNET, preset=f"{NAME}/N"),
    "scoreopt-n-no-jacobian": purified("ScoreOpt", preset=f"{NAME}/fast"),
    "scoreopt-n-no-jacobian-5": purified("ScoreOpt", preset=f"{NAME}/strong"),
    "scoreopt-n-stopped": purified("ScoreOpt", preset=f"{NAME}/balanced"),
    "menet": {"classifier": NAME, "purifier": "MENet"},
    "diffpure": purified("DiffPure", overrides={"sigma": 0.25, "steps": 10}),
    "gdmp": purified("GDMP", overrides={"sigma": 0.25, "steps": 9, "rounds": 1}),
    "pursamere": purified("PurSAMERE", overrides={"sigma": 0.15, "lr": 0.04, "rho": 0, "bank": 2}),
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
# of Tables 1, 2 and 7, and DISCO; but for ME-Net, of files that training scripts write to runs/
LITERATURE: dict[str, dict[str, Any]] = {
    "menet-trained": {"classifier": f"{NAME}-menet", "purifier": "MENet"},
    "ebm": {
        "classifier": NAME,
        "purifier": "Langevin",
        "denoiser": "file:runs/cifar-ebm/energy.safetensors",
        "overrides": {"level": 0.05, "step_size": 0.05, "steps": 20, "denoise": True},
    },
    "pixeldefend": {"classifier": NAME, "purifier": f"{OWN}:pixel_defend"},
    "disco": {"classifier": NAME, "purifier": f"{OWN}:disco"},
}
ROWS = MAIN | BESIDE | LITERATURE
THREATS: dict[str, dict[str, Any]] = {
    "linf": {"norm": "linf", "eps": "8/255"},
    "l2": {"norm": "l2", "eps": 0.5},
}
# Half of what rows had before the suite was one of momentum, or less (docs/results/robustness.md);
# a row takes ten minutes to an hour of one core. The attacks compute in bfloat16, or by --float32
# in float32, as what judges them always does.
BUDGET = {"steps": 80, "longer": 2, "queries": 100, "probed": 16}
LEAST = {"steps": 20, "longer": 1, "queries": 50, "probed": 0}  # of purifiers of 80 steps and more


def configuration(
    row: str, norm: str, source: str, images: int, seed: int, float32: bool = False
) -> Config:
    """One row of the table, in one norm."""
    suite = {"suite": "adaptive", "keep_mb": 2000, "autocast": precision.autocast(float32)}
    suite |= LEAST if any(f"-{steps}-steps" in row for steps in (80, 100)) else BUDGET
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
    parser.add_argument("--row", choices=ROWS, help="default: those of docs/results/robustness.md")
    parser.add_argument("--norm", choices=THREATS, help="both by default")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    precision.add_argument(parser)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--runs", type=Path, default=Path("runs/adaptive"))
    args = parser.parse_args()
    keep_freed_memory()
    for norm in [args.norm] if args.norm else THREATS:
        for row in [args.row] if args.row else MAIN:
            config = configuration(row, norm, args.source, args.images, args.seed, args.float32)
            name, materials = f"{row}_{norm}", config.materials()
            result = evaluate_plan(
                config.plan(materials), materials, out=args.runs, name=name,
                workers=args.workers, wait=True, progress=progress(),
            )  # fmt: skip
            with result.store:
                print(result)
                to_json(result, RESULTS / f"suite_{name}.json")


if __name__ == "__main__":
    main()
