"""Models as other people write them, which an evaluation must leave as they are."""

from __future__ import annotations

import random
import tempfile
import threading

import numpy as np
import torch
from torch import nn
from torch.nn.utils import prune
from toy_evaluation import defences, images
from toys import smooth_classifier

from scoreopt_defense import DefendedModel, OneShot


class Net(nn.Module):
    """With whatever an attack may reach: modes, buffers, a part, generators of its own."""

    def __init__(self):
        super().__init__()
        self.norm, self.drop = nn.BatchNorm2d(3), nn.Dropout(0.5)
        self.net = smooth_classifier(torch.float32)
        self.noise = torch.Generator().manual_seed(3)
        self.listed, self.named = [np.random.default_rng(3)], {"python": random.Random(3)}
        self.scale, self.loud, self.drawn = 1.0, 0.01, []

    def forward(self, x):
        draws = self.noise, *self.listed, *self.named.values()
        self.drawn.append(tuple(float(uniform(generator)) for generator in draws))
        return self.scale * self.net(self.drop(self.norm(x)) + self.loud * sum(self.drawn[-1]))


def uniform(generator):
    of_torch = isinstance(generator, torch.Generator)
    return torch.rand((), generator=generator) if of_torch else generator.random()


class Holding(nn.Module):
    """With something in it that cannot be copied."""

    def __init__(self, held, net=None):
        super().__init__()
        self.net, self.held = net or smooth_classifier(torch.float32), held

    def forward(self, x):
        return self.net(x)


class Caching(Holding):
    """Keeps its features, which are no leaves of a graph, and counts its calls."""

    def __init__(self):
        super().__init__(0)

    def forward(self, x):
        self.features = self.net[:3](x)
        self.held += 1
        return self.net[3](self.features)


class Counting(Caching):
    """In a buffer, which it would save."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


def after_a_call(model):
    model(images(1)[0].requires_grad_())
    return model


def normed(of):
    model = smooth_classifier(torch.float32)
    of(model[1])
    return after_a_call(model.eval())


def traced():
    return torch.jit.trace(smooth_classifier(torch.float32), images(1)[0], check_trace=False)


def quantized():
    given = smooth_classifier(torch.float32), {nn.Linear}
    return torch.ao.quantization.quantize_dynamic(*given)


def offloaded():
    """As accelerate does it: the weights are nowhere but during a call."""
    model = smooth_classifier(torch.float32)
    kept = model[1].weight.detach()

    def bring(part, *_):
        part.weight = nn.Parameter(kept, requires_grad=False)

    def leave(part, *_):
        part.weight = nn.Parameter(torch.empty_like(kept, device="meta"), requires_grad=False)

    leave(model[1])
    model[1].register_forward_pre_hook(bring)
    model[1].register_forward_hook(leave)
    return Holding(0, model)


AWKWARD = {
    "offloaded weights": offloaded,
    "weight_norm": lambda: normed(nn.utils.weight_norm),
    "spectral_norm": lambda: normed(nn.utils.spectral_norm),
    "pruning": lambda: normed(lambda part: prune.l1_unstructured(part, "weight", 0.3)),
    "parametrized": lambda: normed(nn.utils.parametrizations.weight_norm),
    "a lock": lambda: Holding(threading.Lock()),
    "an open file": lambda: Holding(tempfile.TemporaryFile()),  # noqa: SIM115
    "cached features": Caching,
    "a counter": Counting,
    "TorchScript": traced,
    "frozen TorchScript": lambda: torch.jit.freeze(traced()),
    "TorchScript behind a purifier": lambda: DefendedModel(
        traced(), OneShot(defences()["one-shot"].purifier.denoiser, sigma=0.3)
    ),
    "frozen TorchScript behind a purifier": lambda: DefendedModel(
        torch.jit.freeze(traced()), OneShot(defences()["one-shot"].purifier.denoiser, sigma=0.3)
    ),
    "quantized": quantized,
}


class Ends(Holding):
    def forward(self, x):
        raise SystemExit(self.held)
