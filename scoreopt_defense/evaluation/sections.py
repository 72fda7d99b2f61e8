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
    *("Attacked", "Count", "Defence", "Images", "Judged", "Section", "Seed", "SuiteSection"),
    "fraction",
]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


Count = Annotated[int, Field(ge=1, strict=True)]
Seed = Annotated[int, Field(ge=0, strict=True)]


class Images(Section):
    """Which images, and how they are made to fit: see :func:`scoreopt_defense.data.source`.

    Attributes:
        transform: ``"torchvision"`` or ``"timm"``: as the authors of the first classifier of that
            library resize and crop; in place of ``resize`` and ``crop``.
    """

    source: str
    split: Literal["train", "test", "validation"] = "test"
    n: Count | None = None
    seed: Seed = 0
    order: Literal["drawn", "index"] = "drawn"
    columns: tuple[str, str] | None = None
    transform: Literal["torchvision", "timm"] | None = None
    resize: Count | None = None
    crop: Count | None = None

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
    purifications: Count = Judging().purifications
    confirm: Count = AnyStep().confirm


class Defence(Section):
    """A classifier, to whose size images are resized and cropped, and what purifies them before."""

    classifier: str
    resize: Count | None = None
    crop: Count | None = None
    purifier: str = "none"
    denoiser: str | None = None
    preset: str | None = None
    overrides: dict[str, Any] = {}
    votes: Count = 1


def fraction(value: Any) -> Any:
    """``"8/255"`` as a number; floats alone, as an exact fraction of 1e999999999 has no end."""
    if isinstance(value, str):
        over, slash, under = value.partition("/")
        with suppress(ValueError, ZeroDivisionError):
            return float(over) / (float(under) if slash else 1.0)
    return value


class Attacked(Section):
    """An attack's name, by default the section's own, and overrides of its settings."""

    model_config = ConfigDict(extra="allow", frozen=True)

    attack: str | None = None
    eps: Annotated[float, BeforeValidator(fraction), Field(gt=0, allow_inf_nan=False)] | None = None


class SuiteSection(Section):
    """A suite: its settings; see :class:`~scoreopt_defense.evaluation.suite.adaptive.Adaptive`."""

    model_config = ConfigDict(extra="allow", frozen=True)

    suite: str | None = None
    eps: Annotated[float, BeforeValidator(fraction), Field(gt=0, allow_inf_nan=False)] | None = None
