"""Named settings of ScoreOpt: Table 10 of the paper as data, and settings chosen here."""

from __future__ import annotations

from typing import Any

from scoreopt_defense._checks import check_choice

__all__ = ["PRESETS", "preset"]

# Zhang et al., NeurIPS 2023, Table 10: (learning rate, steps, noise levels). Losses as in the
# authors' published runs: Diff for ScoreOpt-O, the noise loss for ScoreOpt-N.
_TABLE_10: dict[str, tuple[float, int, tuple[float, float]]] = {
    "cifar10/bpda-eot-linf/O": (0.1, 5, (0.40, 0.60)),
    "cifar10/bpda-eot-linf/N": (0.1, 5, (0.50, 0.50)),
    "cifar10/pgd-eot-linf/N": (0.1, 20, (0.25, 0.25)),
    "cifar10/pgd-eot-l2/N": (0.1, 20, (0.25, 0.25)),
    "cifar10/transfer-pgd-linf/O": (0.01, 20, (0.15, 0.35)),
    "cifar10/transfer-pgd-linf/N": (0.1, 5, (0.25, 0.25)),
    "cifar10/transfer-pgd-l2/O": (0.01, 20, (0.15, 0.35)),
    "cifar10/transfer-pgd-l2/N": (0.1, 5, (0.25, 0.25)),
    "cifar100/bpda-eot-linf/O": (0.1, 3, (0.15, 0.35)),
    "cifar100/bpda-eot-linf/N": (0.1, 3, (0.25, 0.25)),
}

# For the networks that ship here: a small denoiser needs other settings than the paper's. Chosen on
# training images kept out of training; benchmarks/models/tune_presets.py has the grids.
_TUNED: dict[str, tuple[float, int, tuple[float, float]]] = {
    "mnist-tiny/O": (0.2, 5, (0.5, 1.0)),
    "mnist-tiny/N": (0.1, 5, (0.75, 0.75)),
    "cifar10-tiny/O": (0.04, 5, (0.15, 0.35)),
    "cifar10-tiny/N": (0.05, 5, (0.15, 0.15)),
}

# For the same networks, from the frontier of accuracy against time (docs/results/frontier.md): the
# cheapest point, and the one that an attack left most of, within 5 points of the bare classifier's
# clean accuracy and within 15. ScoreOpt-N, at sigma 0.15.
_FRONTIER: dict[str, dict[str, Any]] = {
    "cifar10-tiny/fast": {"lr": 0.05, "steps": 2, "jacobian": False},
    "cifar10-tiny/balanced": {"lr": 0.05, "steps": 5, "tol": 0.05},
    "cifar10-tiny/strong": {"lr": 0.02, "steps": 5, "jacobian": False},
}

# Likelihood maximisation (LM), as the authors' code has it: ScoreOpt-O but for each image's own
# noise level. Five Adam steps of 0.1 on [-1, 1]; the mean squared error there is the Diff loss, up
# to a factor that Adam takes out but for its epsilon; their clamp to an l2 ball of 200 never acts.
# Chen et al., ICML 2024; https://github.com/huanranchen/DiffusionClassifier (EDMLM.py).
_LM: dict[str, tuple[float, int, tuple[float, float]]] = {
    "rdc/lm": (0.1, 5, (0.40, 0.60)),
    "cifar10-tiny/lm": _TUNED["cifar10-tiny/O"],
}

#: Arguments of :class:`~scoreopt_defense.ScoreOpt` by preset name.
PRESETS: dict[str, dict[str, Any]] = (
    {
        name: {"variant": name[-1], "lr": lr, "steps": steps, "sigma": sigma}
        for name, (lr, steps, sigma) in (_TABLE_10 | _TUNED).items()
    }
    | {
        name: {"variant": "N", "sigma": (0.15, 0.15)} | settings
        for name, settings in _FRONTIER.items()
    }
    | {
        name: {"variant": "O", "lr": lr, "steps": steps, "sigma": sigma, "sigma_per": "image"}
        for name, (lr, steps, sigma) in _LM.items()
    }
)


def preset(name: str) -> dict[str, Any]:
    """A copy of the arguments of that preset; an unknown name lists the known ones."""
    check_choice("preset", name, PRESETS)
    return dict(PRESETS[name])
