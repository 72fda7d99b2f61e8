"""A run's rows for other programs."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from scoreopt_defense._files import replacing
from scoreopt_defense._optional import optional
from scoreopt_defense.evaluation.record.allowances import allowances
from scoreopt_defense.evaluation.record.results import Result
from scoreopt_defense.evaluation.record.statistics import Proportion
from scoreopt_defense.evaluation.suite.checklist import Checked
from scoreopt_defense.evaluation.suite.summary import summaries

__all__ = ["right_counts", "to_csv", "to_json", "to_parquet"]

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def to_csv(result: Result, path: str | Path) -> int:
    """Write a line an image, trial and attack; returns how many.

    ``predicted_0``, ``lead_0`` and so on are the judged purifications: the class, and the true
    class's logit less the highest other one's. A cell is empty where the unit failed. A suite's
    stage has rows of the images alone that it met. A text that a spreadsheet would take for a
    formula, such as an attack's name ``=1+1``, is written after an apostrophe.
    """
    names, count = None, 0
    with replacing(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        for row in _flat(result):
            if names is None:
                names = csv.DictWriter(file, list(row))
                names.writeheader()
            names.writerow({name: _no_formula(value) for name, value in row.items()})
            count += 1
    return count


def _no_formula(value: Any) -> Any:
    """As OWASP advises for CSV: numbers are left as they are."""
    return f"'{value}" if isinstance(value, str) and value[:1] in _FORMULA else value


def to_json(result: Result, path: str | Path) -> int:
    """Write a run's figures, its plan and the machine; returns how many cells there are.

    A suite's stages and checklist are under ``"suites"``; among the cells is its sum alone. Under
    ``"weakest"`` is each defence's figure over all attacks and suites, unless one suite is all, and
    under ``"overall"`` what it is not to be read without. Of each image, in order, ``"right"`` is
    in how many of ``"of"`` judgements it was right, or ``3/4`` where but 4 were made, as a trial
    failed, or ``-`` where none was: two cells of the same images can be paired by it. Under
    ``"curve"`` is :meth:`Result.curve`, of the attacks that have one.
    """

    def figure(share: Proportion | None) -> dict[str, float] | None:
        return None if share is None else share.as_dict()

    cells = [
        {"defence": c.defence, "attack": c.attack, "accuracy": figure(c.robust),
         "majority": figure(c.majority), "failed": c.failed,
         "denoiser_calls": c.denoiser_calls, "classifier_calls": c.classifier_calls,
         "seconds": round(c.seconds, 1), **right_counts(result, c.defence, c.attack),
         **_curve(result, c.defence, c.attack)}
        for c in result.cells
    ]  # fmt: skip
    suites: dict[str, dict[str, Any]] = {name: {} for name in result.plan.suites}
    for (defence, suite), found in summaries(result).items():
        cell = found.worst.cell
        suites[suite][defence] = {
            "accuracy": figure(cell.robust if cell else None),
            "majority": figure(cell.majority if cell else None),
            "survival": [asdict(survival) for survival in cell.survival] if cell else [],
            **(right_counts(result, defence, suite) if cell else {}),
            **_checks(found),
            "stages": [asdict(s) | {"left": None if math.isnan(s.left) else round(s.left, 4)}
                       for s in found.worst.stages],
            "raised": [s.attack for s in found.raised], "failed": found.failed,
            "untried": found.worst.untried,
            "denoiser_calls": found.denoiser_calls, "classifier_calls": found.classifier_calls,
            "seconds": round(found.seconds, 1),
        }  # fmt: skip
    overall = {defence: result.overall(defence) for defence in result.plan.defences}
    weakest = {name: figure(found.weakest) for name, found in overall.items()}
    about = {
        "machine": result.view.machine if result.view else None,
        "plan": result.plan.summary(),
        "budgets": [
            asdict(budget) for budget in allowances(result.plan)
        ],  # the paper's beside them
        "weakest": weakest if result.competing or not suites else {},
        "overall": {
            name: {"absent": found.absent, "lacking": found.lacking, "warnings": found.warnings}
            | _checks(found)
            for name, found in overall.items()
        },
        "cells": cells,
        "suites": suites,
    }
    with replacing(path) as part:
        part.write_text(json.dumps(about, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return len(cells)


def _curve(result: Result, defence: str, attack: str) -> dict[str, Any]:
    """Radii and what is left there, of what seeks the nearest wrong image."""
    if "distance" not in result.measured(defence, attack):
        return {}
    found = result.curve(defence, attack)
    return {"curve": [[round(at, 6), round(of.value, 4)] for at, of in found.items()]}


def _checks(found: Checked) -> dict[str, Any]:
    checklist = [{"name": c.name, "status": c.status, "figure": c.figure} for c in found.checks]
    return {"checks": found.verdict, "checklist": checklist}


def right_counts(result: Result, defence: str, attack: str) -> dict[str, Any]:
    """Each image's count of right judgements, of ``of``, as it is written."""
    counts = result.counts(defence, attack)
    of = max((made for _, made in counts.values()), default=0)
    said = {
        i: f"{right}" if made == of else f"{right}/{made}" for i, (right, made) in counts.items()
    }
    return {"of": of, "right": " ".join(said.get(i, "-") for i in range(result.plan.count))}


def to_parquet(result: Result, path: str | Path) -> int:
    """As :func:`to_csv`, in Parquet."""
    pyarrow = optional("pyarrow", extra="parquet")
    parquet = optional("pyarrow.parquet", extra="parquet")
    rows = list(_flat(result))
    with replacing(path) as part:
        parquet.write_table(pyarrow.Table.from_pylist(rows), part)
    return len(rows)


def _flat(result: Result) -> Iterator[dict[str, Any]]:
    draws = result.plan.judging["purifications"]
    for unit, found in result.units():
        shared = {
            "denoiser_calls": found.denoiser_calls / max(1, found.tried),
            "classifier_calls": found.classifier_calls / max(1, found.tried),
            "seconds": found.seconds / max(1, found.tried),
            "parts": found.parts, "error": found.error, "adversarial": found.adversarial,
        }  # fmt: skip
        for i, place in enumerate(found.places.tolist()):
            row = {
                "defence": unit.defence, "attack": unit.attack, "trial": unit.trial,
                "image": found.first + place, "label": int(found.labels[i]),
                "broken": None if found.broken is None else int(found.broken[i]), **shared,
                "place": place,
            }  # fmt: skip
            for name, table in (("predicted", found.predicted), ("lead", found.lead)):
                values = [None] * draws if table is None else table[i].tolist()
                row |= {f"{name}_{draw}": value for draw, value in enumerate(values)}
            yield row
