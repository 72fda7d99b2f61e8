"""The tables of the README and of docs/ are those that the committed results give."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from common import RESULTS, weights
from tables import TABLES

from scoreopt_defense import pretrained
from scoreopt_defense.presets import preset

ROOT = Path(__file__).parent.parent
DOCUMENTS = {
    "demo": "README.md",
    "transfer": "docs/cifar10-tiny.md",
    "tuning": "docs/cifar10-tiny.md",
    "attacks": "docs/gradients.md",
    "cosines": "docs/gradients.md",
    "costs": "docs/gradients.md",
    "attack_search": "docs/gradients.md",
    "every_attack": "docs/attacks.md",
    "every_class": "docs/attacks.md",
    "left_out": "docs/attacks.md",
}


def test_every_table_has_its_document():
    assert set(DOCUMENTS) == set(TABLES)


@pytest.mark.parametrize("name", TABLES)
def test_a_document_holds_the_table_that_its_results_give(name):
    assert TABLES[name]() in (ROOT / DOCUMENTS[name]).read_text()


def test_the_tuned_presets_are_the_best_of_the_grid_that_was_measured():
    best = json.loads((RESULTS / "tune_presets_cifar10-tiny.json").read_text())["best"]
    for variant in ("O", "N"):
        sigma, lr, steps = best[variant]
        low, high = sigma if isinstance(sigma, list) else (sigma, sigma)
        tuned = {"variant": variant, "lr": lr, "steps": steps, "sigma": (low, high)}
        assert preset(f"cifar10-tiny/{variant}") == tuned


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_figures_about_shipped_weights_are_about_those_that_ship_now(path):
    measured = json.loads(path.read_text()).get("weights")
    shipped = [weights(name) for name in pretrained.names("denoiser")]
    assert measured is None or measured in shipped
