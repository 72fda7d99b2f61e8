"""Attacks of torchattacks, mister_ed and ART on a defended classifier, each a few lines.

No attack is written here. An attack that differentiates the defence gets the gradient mode that it
is about; EOT is a module around the model, so that any attack has it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torchattacks
from torch import Tensor, nn

from scoreopt_defense import EOT, DefendedModel, Purifier, PurifierPreprocessor

Attack = Callable[[nn.Module, Purifier | None, Tensor, Tensor, "Budget"], Tensor]


@dataclass(frozen=True)
class Budget:
    """How hard the attacks try. ``eot`` counts purifications for each gradient.

    The paper has 50 steps of 15 purifications (BPDA+EOT), 20 of 20 (PGD+EOT), 1,280 queries (SPSA).
    """

    eps: float = 0.3
    transfer_steps: int = 40
    bpda_steps: int = 12
    bpda_eot: int = 3
    pgd_steps: int = 15
    pgd_eot: int = 3
    spsa_steps: int = 5
    spsa_samples: int = 8
    stadv_steps: int = 12
    art_steps: int = 10


def defended(classifier: nn.Module, purifier: Purifier | None, gradient: str) -> nn.Module:
    """The classifier behind the purifier, differentiated that way; alone where there is none."""
    if purifier is None:
        return classifier
    return DefendedModel(classifier, purifier.with_gradient(gradient))


def transfer_pgd(
    classifier: nn.Module, purifier: Purifier | None, x: Tensor, y: Tensor, budget: Budget
) -> Tensor:
    """PGD on the classifier alone (paper, appendix B)."""
    steps = budget.transfer_steps
    return torchattacks.PGD(classifier, eps=budget.eps, alpha=budget.eps / 4, steps=steps)(x, y)


def bpda_eot(
    classifier: nn.Module, purifier: Purifier | None, x: Tensor, y: Tensor, budget: Budget
) -> Tensor:
    """EOT-PGD through the real purifier forward and the identity backward (paper, 4.2.1)."""
    model = defended(classifier, purifier, "bpda")
    return torchattacks.EOTPGD(
        model, eps=budget.eps, alpha=budget.eps / 4, steps=budget.bpda_steps,
        eot_iter=budget.bpda_eot,
    )(x, y)  # fmt: skip


def pgd_eot(
    classifier: nn.Module, purifier: Purifier | None, x: Tensor, y: Tensor, budget: Budget
) -> Tensor:
    """PGD on the mean logits, backward through the one-shot surrogate (paper, 4.2.2)."""
    model = EOT(defended(classifier, purifier, "one-shot"), budget.pgd_eot)
    return torchattacks.PGD(
        model, eps=budget.eps, alpha=budget.eps / 4, steps=budget.pgd_steps
    )(x, y)  # fmt: skip


def spsa(
    classifier: nn.Module, purifier: Purifier | None, x: Tensor, y: Tensor, budget: Budget
) -> Tensor:
    """Score-based black-box attack: two queries a sample and step (paper, 4.3)."""
    model = defended(classifier, purifier, "none")
    return torchattacks.SPSA(
        model, eps=budget.eps, delta=budget.eps / 4, lr=budget.eps / 2, nb_iter=budget.spsa_steps,
        nb_sample=budget.spsa_samples, max_batch_size=budget.spsa_samples,
    )(x, y)  # fmt: skip


def stadv(
    classifier: nn.Module, purifier: Purifier | None, x: Tensor, y: Tensor, budget: Budget
) -> Tensor:
    """Spatially transformed images, by mister_ed (paper, Table 4), within its own bound of 0.05."""
    from recoloradv.mister_ed.utils.pytorch_utils import DifferentiableNormalize
    from recoloradv.utils import get_attack_from_name

    channels = x.shape[1]
    no_normalisation = DifferentiableNormalize([0.0] * channels, [1.0] * channels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it predates align_corners
        attack = get_attack_from_name(
            "stadv", defended(classifier, purifier, "one-shot"), no_normalisation
        )
        attack.attack_kwargs.update(
            num_iterations=budget.stadv_steps, optimizer_kwargs={"lr": 0.01}, verbose=False
        )
        return attack.attack(x, y)[0].detach()


def art_pgd(
    classifier: nn.Module, purifier: Purifier | None, x: Tensor, y: Tensor, budget: Budget
) -> Tensor:
    """ART's PGD on an ART classifier with the purifier as its preprocessor."""
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    estimator = PyTorchClassifier(
        model=classifier,
        loss=nn.CrossEntropyLoss(),
        input_shape=tuple(x.shape[1:]),
        nb_classes=classifier(x[:1]).shape[1],
        clip_values=(0, 1),
        preprocessing_defences=[] if purifier is None else [PurifierPreprocessor(purifier)],
        device_type=x.device.type if x.device.type == "cpu" else "gpu",
    )
    attack = ProjectedGradientDescentPyTorch(
        estimator, eps=budget.eps, eps_step=budget.eps / 4, max_iter=budget.art_steps,
        batch_size=len(x), verbose=False,
    )  # fmt: skip
    return torch.from_numpy(attack.generate(x.cpu().numpy(), y.cpu().numpy())).to(x)


ATTACKS: dict[str, Attack] = {
    "transfer PGD": transfer_pgd,
    "BPDA+EOT": bpda_eot,
    "PGD+EOT": pgd_eot,
    "SPSA": spsa,
    "StAdv": stadv,
    "ART PGD": art_pgd,
}
