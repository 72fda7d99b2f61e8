"""Table 6: seconds an image of a purifier, against its steps."""

from __future__ import annotations

import json
import time
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.common.results_file import write
from benchmarks.common.timing import images, in_turn
from scoreopt_defense.evaluation import named
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
            made[row["name"], steps] = named.purifier(
                section["purifier"], section["denoiser"], preset, overrides | {"steps": steps}
            )  # type: ignore[assignment]
    return made


def run(table: str, scale_name: str, spec: dict[str, Any], scale: Any, rounds: int = 5) -> None:
    """Time them in turn; the fastest round of each to ``results/paper_<table>_<scale>.json``."""
    device = scale.rest.get("device", "cpu")
    count = spec[f"images_{scale_name}"]
    x = images(count).to(device)
    torch.set_num_threads(1)
    made = {key: purifier.to(device) for key, purifier in purifiers(spec, scale).items()}
    clock = time.perf_counter if x.is_cuda else time.process_time
    ways = {key: partial(_finished, it, x) for key, it in made.items()}
    write(
        f"paper_{table}_{scale_name}", table=table, scale=scale_name, images=count, rounds=rounds,
        rows=[{"name": name, "steps": steps, "seconds": round(min(values) / count, 6)}
              for (name, steps), values in in_turn(ways, rounds, clock).items()],
    )  # fmt: skip


def _finished(purifier: Purifier, x: Tensor) -> None:
    """A purification, of which no kernel is left in a queue."""
    purifier(x, seed=0)
    if x.is_cuda:
        torch.cuda.synchronize()
