"""Every attack class of four libraries, found by introspection, and how to call it.

A new class of a newer release appears by itself. What a class needs beyond the model stands in
``ARGUMENTS``; the classes that attack no image classifier of PyTorch stand in ``LEFT_OUT``.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import art.attacks.evasion
import foolbox
import numpy as np
import pyautoattack.autoattack
import torch
import torchattacks
from art.attacks import EvasionAttack
from art.attacks.evasion.laser_attack.laser_attack import LaserBeam, LaserBeamGenerator
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from scoreopt_defense import DefendedModel, PurifierPreprocessor

LIBRARIES = ("torchattacks", "art", "foolbox", "pyautoattack")

# Why a class is not run at all: it attacks something else than a PyTorch classifier of images.
LEFT_OUT = {
    "art": {
        "AdversarialPatchTensorFlowV2": "a TensorFlow model",
        "AdversarialTexturePyTorch": "an object tracker for video",
        "CarliniWagnerASR": "a speech recogniser",
        "DPatch": "an object detector",
        "DecisionTreeAttack": "a decision tree of scikit-learn",
        "FeatureAdversariesTensorFlowV2": "a TensorFlow model",
        "HighConfidenceLowUncertainty": "a Gaussian process of GPy",
        "ImperceptibleASR": "a speech recogniser",
        "ImperceptibleASRPyTorch": "a speech recogniser",
        "LowProFool": "a classifier of tables",
        "MalwareGDTensorFlow": "a TensorFlow model of malware",
        "OverTheAirFlickeringPyTorch": "a classifier of videos",
        "OverloadPyTorch": "an object detector",
        "ProjectedGradientDescentTensorFlowV2": "a TensorFlow model",
        "RobustDPatch": "an object detector",
        "SNAL": "an object detector",
    },
    "pyautoattack": {"EvaluationState": "nothing: it keeps how far AutoAttack got"},
}

# Arguments that bound an attack's work, for each class whose constructor has one of that name:
# whether it runs is asked, not how well it does.
BUDGETS: dict[str, dict[str, Any]] = {
    "torchattacks": {
        "steps": 4, "max_iterations": 10, "binary_search_steps": 2, "n_queries": 20,
        "nb_sample": 8, "noise_batch_size": 2, "restarts": 2, "verbose": False,
    },
    "art": {
        "max_iter": 4, "max_eval": 20, "init_eval": 5, "init_size": 20, "nb_random_init": 2,
        "binary_search_steps": 2, "num_trial": 5, "query_limit": 200, "nb_steps": 4,
        "conjugate_sinkhorn_max_iter": 20, "projected_sinkhorn_max_iter": 20, "targeted": False,
        "verbose": False,
    },
    "foolbox": {
        "steps": 8, "binary_search_steps": 3, "directions": 10, "repeats": 5,
        "initial_gradient_eval_steps": 5, "max_gradient_eval_steps": 10, "num_translations": 2,
        "num_rotations": 2, "distance": foolbox.distances.linf,
    },
    "pyautoattack": {"n_iter": 4, "n_queries": 20, "n_target_classes": 2, "eps": 0.1},
}  # fmt: skip


def _art(name: str, estimator: PyTorchClassifier, **arguments: Any) -> EvasionAttack:
    """An attack of ART that another one uses, on a budget."""
    kind = getattr(art.attacks.evasion, name)
    return kind(estimator, **_budget("art", kind), **arguments)


Arguments = Callable[[Any, Tensor, Tensor], dict[str, Any]]
ARGUMENTS: dict[str, dict[str, Arguments]] = {
    "torchattacks": {
        "LGV": lambda model, x, y: {
            "trainloader": [(x, y)], "epochs": 1, "nb_models_epoch": 1, "steps": 4,
        },
        "MultiAttack": lambda model, x, y: {
            "attacks": [torchattacks.FGSM(model), torchattacks.PGD(model, steps=4)],
        },
    },
    "art": {
        "AdversarialPatch": lambda model, x, y: {"patch_shape": tuple(x.shape[1:])},
        "AdversarialPatchPyTorch": lambda model, x, y: {"patch_shape": tuple(x.shape[1:])},
        "AutoAttack": lambda model, x, y: {  # its own four attacks, 5 restarts and 5,000 queries
            "attacks": [
                _art("AutoProjectedGradientDescent", model, loss_type="cross_entropy"),
                _art("AutoProjectedGradientDescent", model, loss_type="difference_logits_ratio"),
                _art("DeepFool", model),
                _art("SquareAttack", model, eps=0.03),
            ],
        },
        "FeatureAdversariesNumpy": lambda model, x, y: {"delta": 0.1, "layer": -1},
        "FeatureAdversariesPyTorch": lambda model, x, y: {
            "delta": 0.1, "step_size": 0.02, "layer": -1,
        },
        "FrameSaliencyAttack": lambda model, x, y: {
            "attacker": _art("FastGradientMethod", model, eps=0.1),
        },
        "GeoDA": lambda model, x, y: {"max_iter": 1000},  # queries; fewer give no schedule
        "GRAPHITEBlackbox": lambda model, x, y: {
            "noise_size": tuple(x.shape[2:]), "net_size": tuple(x.shape[2:]),
            "num_xforms_mask": 3, "num_xforms_boost": 3, "num_boost_queries": 20,
            "heat_patch_size": (8, 8), "heat_patch_stride": (8, 8),
        },
        "GRAPHITEWhiteboxPyTorch": lambda model, x, y: {
            "net_size": tuple(x.shape[2:]), "num_xforms": 2, "steps": 2, "first_steps": 2,
            "num_patches_to_remove": 100,
        },
        "LaserAttack": lambda model, x, y: {
            "iterations": 4,
            "laser_generator": LaserBeamGenerator(
                LaserBeam.from_array([380, 0, 0, 1]), LaserBeam.from_array([780, 3.14, 32, 8])
            ),
        },
        "TargetedUniversalPerturbation": lambda model, x, y: {"eps": 0.3},
        "VirtualAdversarialMethod": lambda model, x, y: {"max_iter": 1},  # a query a pixel
        "Wasserstein": lambda model, x, y: {"regularization": 100.0},  # 3,000 overflows float32
        "ZooAttack": lambda model, x, y: {"nb_parallel": 16},
    },
    "foolbox": {
        "PointwiseAttack": lambda model, x, y: {"l2_binary_search": False},
        "VirtualAdversarialAttack": lambda model, x, y: {"steps": 4},
    },
    "pyautoattack": {"AutoAttack": lambda model, x, y: {"version": "rand"}},
}  # fmt: skip

# What is written for three channels; the others are run on digits.
COLOUR = {
    "torchattacks": {"PIFGSM", "PIFGSMPP", "TIFGSM"},
    "art": {
        "CompositeAdversarialAttackPyTorch", "GRAPHITEBlackbox", "GRAPHITEWhiteboxPyTorch",
        "LaserAttack", "ShadowAttack",
    },
    "foolbox": set(),
    "pyautoattack": set(),
}  # fmt: skip


# Two classes of ART that want probabilities: a softmax stands behind the logits.
PROBABILITIES = {"SimBA", "VirtualAdversarialMethod"}

# Why a class fails on the defended model alone, where one does.
FIXED = "the same answer to the same image each time"
NEEDS = {
    "foolbox": {
        "BinarizationRefinementAttack": FIXED,
        "BoundaryAttack": FIXED,
        "HopSkipJumpAttack": FIXED,
    }
}


def classes(library: str) -> dict[str, type]:
    """Every attack on image classifiers that the library exports, by name."""
    module, base = {
        "torchattacks": (torchattacks, torchattacks.attack.Attack),
        "art": (art.attacks.evasion, EvasionAttack),
        "foolbox": (foolbox.attacks, foolbox.attacks.base.Attack),
        "pyautoattack": (pyautoattack.autoattack, object),
    }[library]
    found = {
        value.__name__: value
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, base) and not inspect.isabstract(value)
        and value.__module__.startswith(library)
    }  # fmt: skip
    return {name: found[name] for name in sorted(found.keys() - LEFT_OUT.get(library, {}).keys())}


def attack(library: str, name: str, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Images that the attack returns.

    Args:
        model: a module from images to logits; for ART a :class:`DefendedModel` may stand behind
            :func:`as_preprocessor`.
        x: images in [0, 1], shape ``(B, C, H, W)``, of more than one class.
        y: what ``model`` takes them for, shape ``(B,)``.
    """
    runners = {"torchattacks": _by_torchattacks, "art": _by_art, "foolbox": _by_foolbox}
    runners["pyautoattack"] = _by_pyautoattack
    return runners[library](classes(library)[name], model, x, y)


def _budget(library: str, kind: type) -> dict[str, Any]:
    accepted = inspect.signature(kind.__init__).parameters
    return {key: value for key, value in BUDGETS[library].items() if key in accepted}


def _arguments(library: str, kind: type, model: Any, x: Tensor, y: Tensor) -> dict[str, Any]:
    special = ARGUMENTS[library].get(kind.__name__, lambda *_: {})
    return _budget(library, kind) | special(model, x, y)


def _by_torchattacks(kind: type, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    if kind.__name__ == "LGV":  # trains a copy, and the networks that ship are frozen
        model = copy.deepcopy(model).requires_grad_()
    arguments = _arguments("torchattacks", kind, model, x, y)
    accepted = inspect.signature(kind.__init__).parameters
    if "n_classes" in accepted:
        arguments["n_classes"] = model(x).shape[1]
    attacker = kind(*([model] if "model" in accepted else []), **arguments)
    if kind.__name__ == "AutoAttack":
        attacker._autoattack.attacks[-1].n_queries = 20  # Square's 5,000 take minutes
    return attacker(x, y)


def _by_foolbox(kind: type, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    target = foolbox.PyTorchModel(model, bounds=(0, 1), device=x.device)
    attacker = kind(**_arguments("foolbox", kind, target, x, y))
    criterion, more = y, {"epsilons": 0.1}
    accepted = inspect.signature(kind.run).parameters
    if "starting_points" in accepted:  # the image of the other class
        more["starting_points"] = x.roll(1, 0)
    if kind.__name__ == "BinarizationRefinementAttack":  # refines what another attack found
        more["starting_points"] = x.round()
    if kind.__name__ == "DatasetAttack":
        attacker.feed(target, x)
    if kind.__name__ == "GenAttack":
        criterion = foolbox.criteria.TargetedMisclassification(y.roll(1, 0))
    return attacker(target, x, criterion, **more)[1]


def _by_pyautoattack(kind: type, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    attacker = kind(model, **_arguments("pyautoattack", kind, model, x, y))
    if kind.__name__ == "AutoAttack":  # of 100 steps of 20 evaluations
        attacker.apgd.n_iter, attacker.apgd.eot_iter = 4, 2
        return attacker.run_standard_evaluation(x, y)[0]
    return attacker.perturb(x, y)


class as_preprocessor(nn.Module):
    """Marks a defended model that ART gets as a classifier with a preprocessor."""

    def __init__(self, model: DefendedModel) -> None:
        super().__init__()
        self.model = model


class _ChannelsLast(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x.permute(0, 3, 1, 2))


def _by_art(kind: type, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    channels_last = kind.__name__ == "LaserAttack"
    if channels_last:
        x = x.permute(0, 2, 3, 1)
    guide = x.roll(1, 0).numpy()  # for each image, the one of the other class
    if kind.__name__ in ("FeatureAdversariesNumpy", "ShadowAttack"):  # one image at a time
        x, y = x[:1], y[:1]
    estimator = _estimator(
        model, x, channels_last=channels_last, probabilities=kind.__name__ in PROBABILITIES
    )
    attacker = kind(estimator, **_arguments("art", kind, estimator, x, y))
    images, labels, more = x.numpy(), y.numpy(), {}
    if kind.__name__.startswith("AdversarialPatch"):
        attacker.generate(images, labels)
        return torch.from_numpy(attacker.apply_patch(images, scale=0.5))
    if kind.__name__.startswith("FeatureAdversaries"):
        labels = guide[: len(images)]
    if kind.__name__ == "FeatureAdversariesNumpy":  # L-BFGS on numerical gradients
        more = {"maxiter": 1, "maxfun": 1, "maxls": 1}
    if kind.__name__.startswith("GRAPHITE"):
        labels = np.roll(labels, 1)
        more = {"mask": np.ones(images.shape[1:], np.float32)}
    if kind.__name__ == "GRAPHITEBlackbox":
        more["x_tar"] = guide
    if kind.__name__ == "TargetedUniversalPerturbation":
        labels = np.eye(estimator.nb_classes, dtype=np.float32)[np.roll(labels, 1)]
    if kind.__name__ == "SimBA":
        labels = np.eye(estimator.nb_classes, dtype=np.float32)[labels]
    attacked = torch.from_numpy(attacker.generate(images, labels, **more))
    return attacked.permute(0, 3, 1, 2) if channels_last else attacked


def _estimator(
    model: nn.Module, x: Tensor, *, channels_last: bool, probabilities: bool
) -> PyTorchClassifier:
    defences = []
    if isinstance(model, as_preprocessor):
        defences = [PurifierPreprocessor(model.model.purifier)]
        model = model.model.classifier
    if channels_last:
        model = _ChannelsLast(model)
    if probabilities:
        model = nn.Sequential(model, nn.Softmax(1))
    return PyTorchClassifier(
        model,
        nn.CrossEntropyLoss(),
        tuple(x.shape[1:]),
        model(x[:1]).shape[1],
        channels_first=not channels_last,
        clip_values=(0, 1),
        preprocessing_defences=defences,
        device_type="cpu" if x.device.type == "cpu" else "gpu",
    )
