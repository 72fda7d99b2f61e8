"""The sections of a run's file: what each may say."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Annotated, Any, Literal

from scoreopt_defense import data
from scoreopt_defense._optional import optional
from scoreopt_defense.evaluation import named
from scoreopt_defense.evaluation.judging import AnyStep, Judging

optional("pydantic", extra="evaluate")
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field  # noqa: E402

__all__ = [
    "Attacked",
    "Certify",
    "Count",
    "Defence",
    "Images",
    "Judged",
    "Section",
    "Seed",
    "SuiteSection",
    "fraction",
]


class Section(BaseModel):
    """One section, which has no other keys and is never changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


#: One or more.
Count = Annotated[int, Field(ge=1, strict=True)]
#: Zero or more.
Seed = Annotated[int, Field(ge=0, strict=True)]


class Images(Section):
    """Which images, and how they are made to fit: see :func:`scoreopt_defense.data.source`."""

    source: str
    """A folder or zip of ``class/image`` files, a ``.npy`` file, torchvision's folder of CIFAR,
    ``"hf:NAME"`` or ``"mnist"``."""
    split: Literal["train", "test", "validation"] = "test"
    """Of sources that have several."""
    n: Count | None = None
    """How many images; a larger number begins with those of a smaller one. All by default."""
    seed: Seed = 0
    """Of their draw."""
    order: Literal["drawn", "index"] = "drawn"
    """``"index"`` keeps the order of the files."""
    columns: tuple[str, str] | None = None
    """Of images and labels, in a data set of Hugging Face's that has several."""
    transform: Literal["torchvision", "timm"] | None = None
    """As the authors of the first classifier of that library resize and crop; in place of both."""
    resize: Count | None = None
    """The shorter side, in pixels."""
    crop: Count | None = None
    """The middle, in pixels."""

    def preprocessing(self, classifiers: Iterable[str]) -> data.Preprocessing:
        """What is done to each image.

        Raises:
            ValueError: of both ways to say it, or without a classifier of the library.
        """
        if self.transform is None:
            return data.Preprocessing(self.resize, self.crop)
        if self.resize or self.crop:
            raise ValueError("transform stands in place of resize and crop: say one of both")
        prefix = f"{self.transform}:"
        wanted = [name for name in classifiers if name.startswith(prefix)]
        if not wanted:
            raise ValueError(f"transform = {self.transform!r} needs a classifier {prefix}<name>")
        return named.preprocessing(wanted[0])


class Judged(Section):
    """How results are judged: see :class:`~scoreopt_defense.evaluation.Judging`."""

    criterion: Literal["final", "any-step"] = "final"
    """Judge the last image, or as the authors do: wrong at any step, confirmed by a vote."""
    purifications: Count = Judging().purifications
    """Fresh ones, by which each image is judged."""
    confirm: Count = AnyStep().confirm
    """Votes of ``"any-step"``."""


class Defence(Section):
    """A classifier, to whose size images are resized and cropped, and what purifies them before."""

    classifier: str
    """A name that ships, ``file:FILE``, ``diffusion:DENOISER``, ``timm:NAME``,
    ``torchvision:NAME``, ``robustbench:NAME``, or ``python:MODULE:FUNCTION``, which is called."""
    resize: Count | None = None
    """What the classifier is given: this shorter side, in pixels."""
    crop: Count | None = None
    """What the classifier is given: this middle, in pixels."""
    purifier: str = "none"
    """A class such as ``"ScoreOpt"`` or ``"DiffPure"``, or ``python:MODULE:FUNCTION``."""
    denoiser: str | None = None
    """As :func:`scoreopt_defense.pretrained.denoiser` takes it, or ``python:MODULE:FUNCTION``."""
    preset: str | None = None
    """Settings by name: ``scoreopt presets`` lists them."""
    overrides: dict[str, Any] = {}
    """Settings of the purifier in place of the preset's."""
    votes: Count = 1
    """Purifications that a decision is the mean logits of."""


def fraction(value: Any) -> Any:
    """``"8/255"`` as a number; floats alone, as an exact fraction of 1e999999999 has no end."""
    if isinstance(value, str):
        over, slash, under = value.partition("/")
        with suppress(ValueError, ZeroDivisionError):
            return float(over) / (float(under) if slash else 1.0)
    return value


Positive = Annotated[float, BeforeValidator(fraction), Field(gt=0, allow_inf_nan=False)]


class Attacked(Section):
    """An attack's name, by default the section's own, and overrides of its settings."""

    model_config = ConfigDict(extra="allow", frozen=True)

    attack: str | None = None
    """A name of ``scoreopt attacks``, or a class of ``scoreopt_defense.attacks``."""
    eps: Positive | None = None
    """Radius, of images in [0, 1]; ``"8/255"`` is a number too. By default the attack's own."""


class SuiteSection(Section):
    """A suite: its settings; see :class:`~scoreopt_defense.evaluation.suite.adaptive.Adaptive`."""

    model_config = ConfigDict(extra="allow", frozen=True)

    suite: str | None = None
    """``"quick"`` or ``"adaptive"``; by default the section's own name."""
    eps: Positive | None = None
    """Radius, of images in [0, 1]; by default the usual one of such images."""


class Certify(Section):
    """How defences are certified: see :func:`scoreopt_defense.certify`."""

    sigma: Positive | None = None
    """Of the noise, on the denoiser's [-1, 1] scale; by default the purifier's own."""
    n0: Count = 100
    """Noisy images that choose the class."""
    n: Count = 10_000
    """Noisy images that bound its share, at most."""
    alpha: Positive = 0.001
    """How often a certificate may be wrong."""
    norm: Literal["l2", "l1", "linf"] = "l2"
    """Of the radius."""
    until_pixels: Positive | None = None
    """A radius at which to stop; by default as large a one as ``n`` gives."""
    max_batch: Count = 256
    """Noisy images at a time."""
    batch: Count = 1
    """Images a unit of work."""
