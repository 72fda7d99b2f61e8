"""Table 6: seconds an image of a purifier, against its steps.

Interleaved: each round times every purifier once, so that what else the machine does falls on all
of them alike; the fastest round counts.
"""

from __future__ import annotations

import json
import time
from typing import Any

import torch
from results_file import write

from scoreopt_defense.evaluation.config import purifier_of
from scoreopt_defense.purifiers import Purifier


def purifiers(spec: dict[str, Any], scale: Any) -> dict[tuple[str, int], Purifier]:
    """By curve and steps."""
    made: dict[tuple[str, int], Purifier] = {}
    for row in spec["timed"]:
        section = json.loads(json.dumps(scale.defences[row["defence"]]))
        overrides = section.get("overrides", {}) | row.get("settings", {})
        preset = section.get("preset")
        if preset:
            preset = preset.format(preset=spec["preset"])
        for steps in row["steps"]:
            made[row["name"], steps] = purifier_of(
                section["purifier"], section["denoiser"], preset, overrides | {"steps": steps}
            )  # type: ignore[assignment]
    return made


@torch.no_grad()
def run(table: str, scale_name: str, spec: dict[str, Any], scale: Any, rounds: int = 5) -> None:
    """Time them, and write ``results/paper_<table>_<scale>.json``."""
    device = scale.rest.get("device", "cpu")
    images = spec[f"images_{scale_name}"]
    x = torch.rand(images, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(device)
    torch.set_num_threads(1)
    made = {key: purifier.to(device) for key, purifier in purifiers(spec, scale).items()}
    fastest = dict.fromkeys(made, float("inf"))
    for _ in range(rounds):
        for key, purifier in made.items():
            fastest[key] = min(fastest[key], _seconds(purifier, x))
    write(
        f"paper_{table}_{scale_name}", table=table, scale=scale_name, images=images, rounds=rounds,
        rows=[{"name": name, "steps": steps, "seconds": round(value / images, 6)}
              for (name, steps), value in fastest.items()],
    )  # fmt: skip


def _seconds(purifier: Purifier, x: torch.Tensor) -> float:
    started = time.perf_counter()
    purified = purifier(x, seed=0)
    if purified.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started
