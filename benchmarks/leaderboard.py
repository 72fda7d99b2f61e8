"""Bundles, checked by ``scoreopt_defense.evaluation.bundle.verify``, and what came of it.

    python -m benchmarks.leaderboard benchmarks/bundles/*.zip \\
        --defence benchmarks/configs/leaderboard.toml
    python -m benchmarks.documents --refresh docs/results/leaderboard.md

A bundle's row in results/leaderboard.json is made anew; the others stay.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common.results_file import RESULTS, write
from benchmarks.common.table_text import markdown, percent, points, results
from scoreopt_defense.evaluation import config
from scoreopt_defense.evaluation.anytime import sequence
from scoreopt_defense.evaluation.bundle import Bundle, Verification, verify
from scoreopt_defense.evaluation.judging.threat_model import level

NAME, BUNDLES = "leaderboard", Path(__file__).parent / "bundles"


def row(path: Path, found: Verification, *, data: str, where: str) -> dict[str, Any]:
    """What is written of a bundle that was checked."""
    bundle = found.bundle
    return {
        "bundle": path.name, "where": where, "sha256": digest(path),
        "data": data, "norm": bundle.norm, "eps": bundle.eps, "defence": bundle.defence,
        "claimed": bundle.share and bundle.share.as_dict(),
        "found": found.found and found.found.as_dict(),
        "difference": {name: round(value, 4) for name, value in (
            ("value", found.difference), ("low", found.low), ("high", found.high))},
        "outcome": found.outcome, "why": found.why, "p": found.p, "margin": found.margin,
        "purifications": [bundle.predicted.shape[1], found.purifications], "seed": found.seed,
    }  # fmt: skip


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def table() -> str:
    """A row a bundle, of each ball the least robust first."""
    rows = sorted(
        results(NAME)["rows"],
        key=lambda r: (r["data"], r["norm"], r["eps"], (r["found"] or r["claimed"])["value"]),
    )
    return markdown(
        ["images", "ball", "defence", "claimed, %", "checked, %", "less the claim", "outcome",
         "bundle"],
        [
            [f"{r['claimed']['n']} {r['data']}", f"{r['norm']} {level(r['eps'])}", r["defence"],
             percent(r["claimed"]), percent(r["found"]),
             points(r["difference"]) if r["found"] else "-", r["outcome"],
             f"`{r['where']}{r['bundle']}`"]
            for r in rows
        ],
    )  # fmt: skip


def until() -> str:
    """How many images of each committed bundle it takes to know that fewer than 30 % stand."""
    rows = []
    for found in results(NAME)["rows"]:
        path = BUNDLES / found["bundle"]
        if not path.exists():  # it is attached somewhere
            continue
        bundle = Bundle.read(path)
        lows, highs = sequence(bundle.right.mean(1))
        below = np.flatnonzero(highs < 0.3)
        rows.append([
            bundle.defence, percent(found["claimed"]),
            f"{100 * lows[-1]:.0f} to {100 * highs[-1]:.0f}",
            f"{below[0] + 1} of {len(highs)} images" if len(below) else "not decided",
        ])  # fmt: skip
    return markdown(
        ["defence", "stand, % (interval)", "confidence sequence, all images",
         "known to be below 30 % after"],
        rows,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("--defence", type=Path, required=True, help="TOML file, as of verify")
    parser.add_argument("--name", help="which defence of it, if the bundle calls it otherwise")
    parser.add_argument("--data", help="what the images are called; by default as the TOML has it")
    parser.add_argument("--where", default="benchmarks/bundles/", help="where others find them")
    parser.add_argument("--purifications", type=int, default=32)
    args = parser.parse_args()
    read = config.load(args.defence)
    images = read.source()
    there = results(NAME)["rows"] if (RESULTS / f"{NAME}.json").exists() else []
    rows = {r["bundle"]: r for r in there}
    for path in args.bundles:
        bundle = Bundle.read(path)
        model = read.defence(args.name or bundle.defence)
        found = verify(bundle, model, images, purifications=args.purifications)
        print(f"{path}: {found}")
        data = args.data or Path(read.images.source).stem
        rows[path.name] = row(path, found, data=data, where=args.where)
        write(NAME, rows=list(rows.values()))


if __name__ == "__main__":
    main()
