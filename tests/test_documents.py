"""The tables of the README and of docs/ are those that the committed results give."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from results_file import RESULTS, weights
from speed_tables import SPEED_TABLES
from tables import PAPER, TABLES, refreshed

from scoreopt_defense import pretrained
from scoreopt_defense.evaluation.plan import described
from scoreopt_defense.presets import preset

ROOT = Path(__file__).parent.parent
DOCUMENTS = {
    "demo": "README.md",
    "transfer": "docs/cifar10-tiny.md",
    "tuning": "docs/cifar10-tiny.md",
    "cosines": "docs/gradients.md",
    "attack_search": "docs/gradients.md",
    "adaptive_linf": "docs/robustness.md",
    "adaptive_l2": "docs/robustness.md",
    "adaptive_found_by": "docs/robustness.md",
    "adaptive_failed": "docs/robustness.md",
    "gradient_modes": "docs/robustness.md",
    "mode_cosines": "docs/gradients.md",
    "every_attack": "docs/attacks.md",
    "every_class": "docs/attacks.md",
    "left_out": "docs/attacks.md",
    **{f"paper_{name}": "benchmarks/README.md"
       for name in ("summary", "commands", "allowed", "questions", *PAPER)},
    **dict.fromkeys(SPEED_TABLES, "docs/speed.md"),
    "costs": "docs/gradients.md",
}  # fmt: skip


def test_every_table_has_its_document():
    assert set(DOCUMENTS) == set(TABLES)


def test_the_page_of_the_papers_tables_is_made_anew_as_it_is():
    page = (ROOT / "benchmarks/README.md").read_text()
    assert refreshed(page) == page


@pytest.mark.parametrize("name", TABLES)
def test_a_document_holds_the_table_that_its_results_give(name):
    assert TABLES[name]() in (ROOT / DOCUMENTS[name]).read_text()


def test_the_tuned_presets_are_the_best_of_the_grid_that_was_measured():
    best = json.loads((RESULTS / "tune_presets_cifar10-tiny.json").read_text())["best"]
    for variant in ("O", "N"):
        sigma = best[variant]["sigma"]
        low, high = sigma if isinstance(sigma, list) else (sigma, sigma)
        assert preset(f"cifar10-tiny/{variant}") == best[variant] | {"sigma": (low, high)}


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_figures_about_shipped_weights_are_about_those_that_ship_now(path):
    found = json.loads(path.read_text())
    shipped = [weights(name) for name in pretrained.names("classifier")]  # all have one
    assert found.get("weights") in [None, *shipped]
    if "plan" in found:  # a run that was exported
        measured = set(_digests(found["plan"]["defences"]))
        assert measured or found["plan"]["others"]  # networks that do not ship
        assert measured <= {
            described(getattr(pretrained, kind)(name))["weights"]
            for kind in ("classifier", "denoiser")
            for name in pretrained.names(kind)
        }


def _digests(part: object) -> Iterator[str]:
    if isinstance(part, dict):
        if "weights" in part:
            yield part["weights"]
        for inner in part.values():
            yield from _digests(inner)
