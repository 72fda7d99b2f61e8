"""The small networks whose weights ship with the package."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scoreopt_defense.denoisers.edm import edm_scalings

__all__ = ["TinyEnergy", "TinyResNet", "TinyUNet"]


class _FiLMBlock(nn.Module):
    """Norm-free residual block whose hidden features are scaled and shifted by the noise level."""

    def __init__(self, width: int, embedding: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.film = nn.Linear(embedding, 2 * width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)  # starts as the identity: stable without a norm layer

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        scale, shift = self.film(emb)[:, :, None, None].chunk(2, dim=1)
        residual = self.conv1(F.silu(h)) * (1 + scale) + shift
        return h + self.conv2(F.silu(residual))


class _Level(nn.ModuleList):
    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        for block in self:
            h = block(h, emb)
        return h


class TinyUNet(nn.Module):
    r"""A norm-free U-Net denoiser with EDM preconditioning, made to be fast on a CPU.

    .. math:: D_\theta(x_t; \sigma) = c_{skip}(\sigma)\, x_t
              + c_{out}(\sigma)\, F_\theta(c_{in}(\sigma)\, x_t;\, \tfrac14 \ln \sigma)

    :math:`F_\theta` works on 2x2 pixel-unshuffled images, so its finest level has a quarter of the
    pixels. It has no normalisation, no attention and no dropout: images of a batch never mix.

    Args:
        channels: image channels.
        widths: features of each level; each level after the first halves height and width.
        blocks: residual blocks a level, on the way down and on the way up.
        embedding: features of the noise-level embedding.
        sigma_data: standard deviation of the training images, in [-1, 1].
        num_classes: that it can be told of; 0 for an unconditional network.

    Raises:
        ValueError: from ``forward``, if height or width cannot be halved ``len(widths)`` times.

    Reference:
        Karras et al., NeurIPS 2022 (EDM), Table 1.
    """

    frequencies: Tensor

    def __init__(
        self,
        *,
        channels: int = 3,
        widths: Sequence[int] = (64, 96, 128),
        blocks: int = 2,
        embedding: int = 64,
        sigma_data: float = 0.5,
        num_classes: int = 0,
    ) -> None:
        super().__init__()
        self.img_channels = channels
        self.sigma_data = sigma_data
        self.multiple = 2 ** len(widths)
        self.register_buffer("frequencies", torch.tensor([1.0, 2.0, 4.0, 8.0]), persistent=False)
        self.embed = nn.Sequential(
            nn.Linear(8, embedding), nn.SiLU(), nn.Linear(embedding, embedding), nn.SiLU()
        )
        if num_classes:
            self.label = nn.Linear(num_classes, embedding, bias=False)

        def level(width: int) -> _Level:
            return _Level(_FiLMBlock(width, embedding) for _ in range(blocks))

        pairs = list(itertools.pairwise(widths))
        self.stem = nn.Conv2d(4 * channels, widths[0], 3, padding=1)
        self.encoder = nn.ModuleList(level(width) for width in widths)
        self.downs = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2) for a, b in pairs)
        self.ups = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, stride=2) for a, b in pairs)
        self.decoder = nn.ModuleList(level(width) for width in widths[:-1])
        self.head = nn.Conv2d(widths[0], 4 * channels, 3, padding=1)
        nn.init.zeros_(self.head.weight)

    def forward(self, x_t: Tensor, sigma: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """Denoise ``x_t`` of shape (B, C, H, W), in [-1, 1] plus noise of ``sigma``, shape (B,).

        ``class_labels`` are one-hot, shape (B, num_classes), as NVIDIA's networks take them; a row
        of zeros is no label. The preconditioning is computed in float32 at least, whatever the type
        of the weights.
        """
        if x_t.shape[-2] % self.multiple or x_t.shape[-1] % self.multiple:
            raise ValueError(
                f"image height and width must be multiples of {self.multiple}, "
                f"got {tuple(x_t.shape[-2:])}"
            )
        sigma = sigma.to(torch.promote_types(sigma.dtype, torch.float32)).reshape(-1, 1, 1, 1)
        c_skip, c_out, c_in, c_noise = edm_scalings(sigma, self.sigma_data)
        x = (c_in * x_t).to(self.stem.weight.dtype)
        residual = self._unet(x, c_noise.flatten(), class_labels)
        return c_skip * x_t + c_out * residual.to(sigma.dtype)

    def _unet(self, x: Tensor, c_noise: Tensor, class_labels: Tensor | None) -> Tensor:
        phase = math.pi / 2 * c_noise[:, None] * self.frequencies
        emb = self.embed(torch.cat([phase.cos(), phase.sin()], dim=1).to(x.dtype))
        if class_labels is not None:
            emb = emb + self.label(class_labels.to(x.dtype))
        h = self.stem(F.pixel_unshuffle(x, 2))
        skips = []
        for i, level in enumerate(self.encoder):
            if i:
                skips.append(h)
                h = self.downs[i - 1](h)
            h = level(h, emb)
        for i in reversed(range(len(self.ups))):
            h = self.decoder[i](self.ups[i](h) + skips[i], emb)
        return F.pixel_shuffle(self.head(h), 2)


class _EnergyBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.conv2(F.silu(self.conv1(F.silu(h))))


class TinyEnergy(nn.Module):
    r"""A small convolutional energy of images, the negative log density of images noised by s.

    .. math:: U_\theta(x) = \frac{1}{2 s^2} \| F_\theta(x) \|_2^2

    :math:`F_\theta` works on 2x2 pixel-unshuffled images. Its activations are smooth, so that the
    energy's gradient has one too; it has no normalisation: images of a batch never mix.

    Args:
        channels: image channels.
        widths: features of each level; each level after the first halves height and width.
        blocks: residual blocks a level.
        sigma: s, images in [-1, 1].
    """

    def __init__(
        self,
        *,
        channels: int = 3,
        widths: Sequence[int] = (32, 64, 96),
        blocks: int = 1,
        sigma: float = 0.1,
    ) -> None:
        super().__init__()
        self.img_channels = channels
        self.sigma = sigma
        levels: list[nn.Module] = [nn.Conv2d(4 * channels, widths[0], 3, padding=1)]
        for i, width in enumerate(widths):
            if i:
                levels.append(nn.Conv2d(widths[i - 1], width, 3, stride=2, padding=1))
            levels.extend(_EnergyBlock(width) for _ in range(blocks))
        self.features = nn.Sequential(*levels)
        self.head = nn.Conv2d(widths[-1], widths[-1], 1)

    def forward(self, x: Tensor) -> Tensor:
        """Energies, shape (B,), of images of shape (B, C, H, W) in [-1, 1], H and W even."""
        h = self.head(self.features(F.pixel_unshuffle(x, 2)))
        return h.square().sum((1, 2, 3)) / (2 * self.sigma**2)


def _conv_bn(width_in: int, width_out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(width_in, width_out, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(width_out),
        nn.ReLU(inplace=True),
    )


class _ResidualBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_conv_bn(width, width), _conv_bn(width, width))

    def forward(self, h: Tensor) -> Tensor:
        return h + self.body(h)


class TinyResNet(nn.Module):
    """A small residual classifier of images in [0, 1]; the normalisation is inside.

    Args:
        channels: image channels.
        num_classes: logits an image.
        stem: features of the first convolution, at full resolution.
        widths: features of each stage; each stage halves height and width.
        blocks: residual blocks a stage.
        mean, std: of the training pixels in [0, 1], one value a channel or one for all.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        *,
        channels: int = 3,
        num_classes: int = 10,
        stem: int = 32,
        widths: Sequence[int] = (64, 128, 192),
        blocks: int = 1,
        mean: Sequence[float] = (0.5,),
        std: Sequence[float] = (0.25,),
    ) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).reshape(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).reshape(-1, 1, 1), persistent=False)
        stages: list[nn.Module] = [_conv_bn(channels, stem)]
        for width_in, width in itertools.pairwise((stem, *widths)):
            stages.append(_conv_bn(width_in, width, stride=2))
            stages.extend(_ResidualBlock(width) for _ in range(blocks))
        self.features = nn.Sequential(*stages)
        self.head = nn.Linear(2 * widths[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, shape (B, num_classes), of images of shape (B, C, H, W) in [0, 1]."""
        # a detour that makes the gradient contiguous, where the network's is channels-last: attack
        # libraries flatten it with ``view``
        x = x.flatten(1).unflatten(1, x.shape[1:])
        h = self.features((x - self.mean) / self.std)
        return self.head(torch.cat([h.mean((-2, -1)), h.amax((-2, -1))], dim=1))
