r"""The strongest white-box attack on ScoreOpt: attacks that differ in one thing.

    python -m benchmarks.attacks.search path/to/cifar10/training/images

Every row differs from ``REFERENCE``, PGD by the smoothed gradient, in one thing, and differentiates
each image as often, in bfloat16 (by ``--float32`` in that). Both defences are judged by fresh
purifications in float32, on training images kept out of training: to choose an attack on test
images would fit it to them.

Goes on where it was if it is stopped and run again; what is there by then is written. The best rows
again, on fewer images at 8 times the gradients:

    python -m benchmarks.attacks.search DATA --images 24 --steps 40 --eot 4 \
        --rows "smoothed, c = 1" "twice the steps, half the EOT" \
        "four times the steps, a quarter of the EOT" "step eps / 2" --result attack_search_long

Some of them on purifiers of 20 steps:

    python -m benchmarks.attacks.search DATA --images 32 --purifier-steps 20 \
        --rows "smoothed, c = 1" exact "smoothed, c = 0.3" "smoothed, c = 3" "step eps / 2" \
        "last 10 steps" --result attack_search_20_steps

The gradient by which LM's white-box figures were published, on LM and ScoreOpt-O:

    python -m benchmarks.attacks.search DATA --images 32 --defences ScoreOpt-O LM \
        --rows "smoothed, c = 1" exact "momentum dropped" one-shot bpda --result attack_search_lm

Momentum in other ways, at 80 gradients, of ScoreOpt-N (torchattacks has no EMI-FGSM):

    python -m benchmarks.attacks.search DATA --steps 40 --eot 2 --images 32 --defences ScoreOpt-N \
        --reference "one sample, momentum, cosine" --rows "one sample, momentum, cosine" \
        "every step's image" "two samples, antithetic" "two samples, momentum" \
        "one draw for 4 steps" Nesterov VMI-FGSM NI-FGSM "momentum, two restarts" \
        "momentum, c / k at step k" "two samples, selective" PI-FGSM VNI-FGSM PI-FGSM++ \
        "one draw for 16 steps" --result attack_search_momentum

Momentum in l2:

    python -m benchmarks.attacks.search DATA --norm l2 --eps 0.5 --steps 40 --eot 2 --images 48 \
        --defences one-shot ScoreOpt-N --rows "smoothed, c = 1" "one sample, momentum, cosine" \
        "one sample, momentum" "one sample, cosine" "one sample a step" \
        --result attack_search_l2

And of DiffPure, at the paper's 400 gradients:

    python -m benchmarks.attacks.search DATA --norm l2 --eps 0.5 --steps 20 --eot 20 --images 32 \
        --purifications 32 --defences DiffPure --rows "smoothed, c = 1" \
        "one sample, momentum, cosine" "twenty samples, momentum" \
        --result attack_search_diffpure_l2

The best of them at 320 and 640 gradients: by ``--steps 160`` and 320, and a ``--result`` of their
own.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.attacks.ways import (
    AfterSteps,
    Ahead,
    Antithetic,
    Averaged,
    ByStep,
    Common,
    EachStep,
    MomentumDropped,
    OfTorchattacks,
    Several,
    Truncated,
)
from benchmarks.common import precision
from benchmarks.common.held_out import add_arguments, held_out
from benchmarks.common.results_file import rounded, weights, write
from scoreopt_defense import DefendedModel, DiffPure, OneShot, ScoreOpt, data, pretrained
from scoreopt_defense.attacks import APGD, PGD, Attack, FoolboxPGD, MomentumPGD
from scoreopt_defense.evaluation import Judging, evaluate
from scoreopt_defense.evaluation.record.differences import difference
from scoreopt_defense.evaluation.record.export import to_json
from scoreopt_defense.evaluation.record.results import Result
from scoreopt_defense.evaluation.record.store import Store
from scoreopt_defense.evaluation.run.progress import progress
from scoreopt_defense.evaluation.run.scheduler import Stopped
from scoreopt_defense.gradients import BPDA, Exact, OneShotGradient, Smoothed
from scoreopt_defense.purifiers import Purifier

REFERENCE = "smoothed, c = 1"
# By a preset of ScoreOpt, or as what they are; of those the smoothed gradient is the exact one.
DEFENCES: dict[str, tuple[str | type[Purifier], dict[str, Any]]] = {
    "ScoreOpt-N": ("N", {}),
    "ScoreOpt-O": ("O", {}),
    "LM": ("O", {"sigma_per": "image"}),
    "one-shot": (OneShot, {"sigma": 0.25}),
    "DiffPure": (DiffPure, {"sigma": 0.25, "steps": 10}),
}
BOTH = "ScoreOpt-N", "ScoreOpt-O"


def grid(
    threat: dict[str, Any], steps: int, eot: int, float32: bool = False, purifier_steps: int = 0
) -> dict[str, Attack]:
    """The rows, the most telling first, each differentiating an image ``steps * eot`` times."""
    precise = {"autocast": precision.autocast(float32)}
    common: dict[str, Any] = threat | precise | {"steps": steps, "eot": eot}

    def pgd(gradient: Any, **changes: Any) -> Attack:
        return PGD(gradient=gradient, **common | changes)

    def apgd(loss: str) -> Attack:  # which begins with a gradient that it takes no step by
        return APGD(gradient=Smoothed(), loss=loss, **common | {"steps": steps - 1})

    rows: dict[str, Attack] = {
        "one-shot": pgd(OneShotGradient()),
        REFERENCE: pgd(Smoothed()),
        "DLR loss": FoolboxPGD(gradient=Smoothed(), loss="dlr", **common),
        "mean with one-shot": pgd(Averaged()),
        "smoothed, c = 3": pgd(Smoothed(3.0)),
        "APGD, DLR loss": apgd("dlr"),
        "momentum": FoolboxPGD(gradient=Smoothed(), momentum=1.0, **common),
        "smoothed, c = 0.3": pgd(Smoothed(0.3)),
        "bpda": pgd(BPDA()),
        "twice the steps, half the EOT": pgd(Smoothed(), steps=2 * steps, eot=eot // 2),
        "smoothed, c = 10": pgd(Smoothed(10.0)),
        "last 2 steps": pgd(Truncated(2)),
        "exact": pgd(Exact()),
        "APGD, cross-entropy": apgd("ce"),
        "margin loss": FoolboxPGD(gradient=Smoothed(), loss="margin", **common),
        "smoothed, c = 0.1": pgd(Smoothed(0.1)),
        "step eps / 8": pgd(Smoothed(), step_size=1 / 8),
        "last 1 step": pgd(Truncated(1)),
        "last 3 steps": pgd(Truncated(3)),
        "floor at the first step": pgd(ByStep("first")),
        "floor c / k at step k": pgd(ByStep("decreasing")),
        "random start": pgd(Smoothed(), random_start=True),
        "step eps / 2": pgd(Smoothed(), step_size=1 / 2),
    }
    alone = common | {"steps": steps * eot, "eot": 1}  # as many gradients, one a step
    rows |= {
        "momentum dropped": pgd(MomentumDropped()),
        "one sample a step": pgd(Smoothed(), **alone),
        "one sample, momentum": FoolboxPGD(gradient=Smoothed(), momentum=0.9, **alone),
        "one sample, momentum, cosine": MomentumPGD(gradient=Smoothed(), **alone),
        "one sample, cosine": MomentumPGD(gradient=Smoothed(), momentum=0.0, **alone),
    }
    if eot >= 4:
        fourfold = pgd(Smoothed(), steps=4 * steps, eot=eot // 4)
        rows["four times the steps, a quarter of the EOT"] = fourfold
    if purifier_steps > 10:
        rows["last 10 steps"] = pgd(Truncated(10))
    return rows


def several(threat: dict[str, Any], budget: int, float32: bool = False) -> dict[str, Attack]:
    """Ways of stepping by momentum, at so many gradients in all."""
    common: dict[str, Any] = threat | {"autocast": precision.autocast(float32)}
    selective, after = Several(2, "selective"), AfterSteps(2)  # 2 and all of 5: as much work as 7
    alone: dict[str, Any] = common | {"steps": budget}

    def of(method: str, **settings: Any) -> Attack:
        given = {"gradient": Smoothed(), "eot": 1} | alone
        return OfTorchattacks(method=method, **given, **settings)

    rows: dict[str, Attack] = {
        "two samples, momentum": MomentumPGD(
            gradient=Smoothed(), eot=2, steps=budget // 2, **common
        ),
        "twenty samples, momentum": MomentumPGD(
            gradient=Smoothed(), eot=20, steps=max(1, budget // 20), **common
        ),
        "two samples, antithetic": MomentumPGD(
            gradient=Antithetic(), eot=2, steps=budget // 2, **common
        ),
        "two samples, selective": MomentumPGD(gradient=selective, steps=budget // 2, **common),
        "after 2 steps and all": MomentumPGD(gradient=after, steps=budget * 5 // 7, **common),
        "every step's image": MomentumPGD(gradient=EachStep(), **alone),
        "one draw for 4 steps": MomentumPGD(gradient=Common(4), **alone),
        "one draw for 16 steps": MomentumPGD(gradient=Common(16), **alone),
        "Nesterov": MomentumPGD(gradient=Ahead(), **alone),
        "momentum, c / k at step k": MomentumPGD(gradient=ByStep("decreasing"), **alone),
        "momentum, two restarts": MomentumPGD(
            gradient=Smoothed(), restarts=2, steps=budget // 2, **common
        ),
    }
    if threat["norm"] == "linf":
        rows |= {
            "NI-FGSM": of("NIFGSM"),
            "VMI-FGSM": of("VMIFGSM", others=3),
            "VNI-FGSM": of("VNIFGSM", others=3),
            "PI-FGSM": of("PIFGSM"),
            "PI-FGSM++": of("PIFGSMPP"),
        }
    return rows


def defences(name: str, which: Sequence[str] = BOTH, **overrides: Any) -> dict[str, DefendedModel]:
    """Those at the presets of those networks, but for these settings."""
    classifier, denoiser = pretrained.classifier(name), pretrained.denoiser(name)

    def defended(kind: str | type[Purifier], own: dict[str, Any]) -> DefendedModel:
        if isinstance(kind, str):
            purifier: Purifier = ScoreOpt.from_preset(
                f"{name}/{kind}", denoiser, **own, **overrides
            )
        else:
            purifier = kind(denoiser, **own)
        return DefendedModel(classifier, purifier)

    return {defence: defended(*DEFENCES[defence]) for defence in which}


def search(
    models: dict[str, DefendedModel],
    images: data.Images,
    attacks: dict[str, Attack],
    *,
    out: Path,
    batch: int,
    seed: int,
    purifications: int = 8,
    watch: Any = None,
) -> Result:
    """The defences under each attack: complete, or as far as Ctrl-C let it go."""
    try:
        return evaluate(
            models, images, attacks, judging=Judging(purifications=purifications),
            out=out, batch=batch, seed=seed, checks=False, progress=watch,
        )  # fmt: skip
    except Stopped as stop:
        print(stop)
        return Result(Store(out))


def differences(result: Result, reference: str) -> list[dict[str, Any]]:
    """Each complete cell's accuracy less the reference's, over the same images.

    And the true class's mean lead, which tells attacks apart that leave next to nothing.
    """
    complete = {
        (cell.defence, cell.attack)
        for cell in result.cells
        if cell.accuracy and cell.accuracy.n == result.plan.count
    }

    def leads(defence: str, attack: str) -> dict[int, float]:
        judged = result.judged(defence, attack)
        return dict(zip(judged.images.tolist(), judged.lead.mean(1).tolist()))

    return [
        {"defence": defence, "attack": attack}
        | rounded(difference(result.shares(defence, attack), result.shares(defence, reference)))
        | {"lead": rounded(difference(leads(defence, attack), leads(defence, reference)))}
        for defence, attack in sorted(complete)
        if (defence, reference) in complete and attack not in (reference, "clean")
    ]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", help="the data that the network was trained on")
    parser.add_argument("--name", default="cifar10-tiny", help="of the shipped networks")
    parser.add_argument("--describe", default="CIFAR-10 training images kept out of training, JPEG")
    add_arguments(parser, images=64)
    parser.add_argument("--norm", default="linf", choices=("linf", "l2"))
    parser.add_argument("--eps", type=float, default=8 / 255, help="radius on [0, 1]")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--eot", type=int, default=2)
    parser.add_argument("--purifier-steps", type=int, default=0, help="the presets' by default")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--purifications", type=int, default=8, help="that judge each image")
    parser.add_argument("--seed", type=int, default=0)
    precision.add_argument(parser)
    parser.add_argument("--defences", nargs="+", default=BOTH, choices=DEFENCES)
    parser.add_argument("--rows", nargs="+", help="some of the grid's; all by default")
    parser.add_argument(
        "--reference", default=REFERENCE, help="the row that others are set against"
    )
    parser.add_argument("--result", default="attack_search", help="what figures and record go by")
    arguments = sys.argv[1:] if arguments is None else arguments
    args = parser.parse_args(arguments)

    images = held_out(args)
    threat = {"norm": args.norm, "eps": args.eps}
    attacks = grid(threat, args.steps, args.eot, args.float32, args.purifier_steps)
    more = several(threat, args.steps * args.eot, args.float32)
    attacks = {row: (attacks | more)[row] for row in args.rows or attacks}
    given = {"steps": args.purifier_steps} if args.purifier_steps else {}
    models = defences(args.name, args.defences, **given)
    out = Path("runs") / args.result
    result = search(
        models, images, attacks, out=out, batch=args.batch, seed=args.seed,
        purifications=args.purifications, watch=progress(),
    )  # fmt: skip
    print(result)
    with result.store:
        to_json(result, out / "figures.json")
        found = json.loads((out / "figures.json").read_text())
        write(
            args.result,
            command=shlex.join(["python", "-m", "benchmarks.attacks.search", "DATA"]
                               + [word for word in arguments if word != args.source]),
            data=args.describe, weights=weights(args.name), seed=args.seed,
            less_reference=differences(result, args.reference), **found,
        )  # fmt: skip


if __name__ == "__main__":
    main()
