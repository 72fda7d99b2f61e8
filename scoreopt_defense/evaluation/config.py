"""A run as a TOML file: what to defend, on which images, against what, and how to judge."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, Literal

from torch import nn

from scoreopt_defense import data
from scoreopt_defense._checks import check_file
from scoreopt_defense._optional import optional
from scoreopt_defense.defended import DefendedModel
from scoreopt_defense.evaluation import named
from scoreopt_defense.evaluation.evaluate import materials_of
from scoreopt_defense.evaluation.judging import AnyStep, Final, Judging
from scoreopt_defense.evaluation.judging.threat_model import bound_of
from scoreopt_defense.evaluation.plan import Materials, Plan
from scoreopt_defense.evaluation.plan.plan import MOST_THREADS
from scoreopt_defense.evaluation.plan.tasks import Suite
from scoreopt_defense.sizes import fitted

optional("pydantic", extra="evaluate")
from pydantic import (  # noqa: E402
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
)

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = optional("tomli", extra="evaluate")

__all__ = ["Config", "ConfigError", "defence", "load"]

_MAX_BYTES = 2**20  # of a file: more than anybody writes


class ConfigError(ValueError):
    """A configuration that cannot be run, naming the key, its value and what is allowed."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


Count = Annotated[int, Field(ge=1, strict=True)]
Seed = Annotated[int, Field(ge=0, strict=True)]


class Images(_Section):
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


class Judged(_Section):
    """How results are judged: see :class:`~scoreopt_defense.evaluation.Judging`."""

    criterion: Literal["final", "any-step"] = "final"
    purifications: Count = Judging().purifications
    confirm: Count = AnyStep().confirm


class Defence(_Section):
    """A classifier, to whose size images are resized and cropped, and what purifies them before."""

    classifier: str
    resize: Count | None = None
    crop: Count | None = None
    purifier: str = "none"
    denoiser: str | None = None
    preset: str | None = None
    overrides: dict[str, Any] = {}
    votes: Count = 1


def _fraction(value: Any) -> Any:
    """``"8/255"`` as a number; floats alone, as an exact fraction of 1e999999999 has no end."""
    if isinstance(value, str):
        over, slash, under = value.partition("/")
        with suppress(ValueError, ZeroDivisionError):
            return float(over) / (float(under) if slash else 1.0)
    return value


class Attacked(_Section):
    """An attack's name, by default the section's own, and overrides of its settings."""

    model_config = ConfigDict(extra="allow", frozen=True)

    attack: str | None = None
    eps: Annotated[float, BeforeValidator(_fraction), Field(gt=0, allow_inf_nan=False)] | None = (
        None
    )


class SuiteSection(_Section):
    """A suite: its settings; see :class:`~scoreopt_defense.evaluation.suite.adaptive.Adaptive`."""

    model_config = ConfigDict(extra="allow", frozen=True)

    suite: str | None = None
    eps: Annotated[float, BeforeValidator(_fraction), Field(gt=0, allow_inf_nan=False)] | None = (
        None
    )


class Config(_Section):
    """What the file says.

    Attributes:
        images: what to attack.
        defences, attacks: by name; the clean images are always judged.
        suite: the name of one at its own settings, such as ``"adaptive"``.
        suites: suites by name, with settings.
        judging, checks, keep, trials, batch, seed, threads: as in
            :func:`scoreopt_defense.evaluation.evaluate`.
        device: where the networks and images are put.
    """

    images: Images
    defences: Annotated[dict[str, Defence], Field(min_length=1)]
    attacks: dict[str, Attacked] = {}
    suite: str | None = None
    suites: dict[str, SuiteSection] = {}
    judging: Judged = Judged()
    checks: bool = Field(default=True, strict=True)
    keep: Literal["all", "worst", "none"] = "all"
    trials: Count = 1
    batch: Count = 32
    seed: Seed = 0
    threads: Annotated[int, Field(ge=1, le=MOST_THREADS, strict=True)] = 1
    device: str = "cpu"

    def materials(self) -> Materials:
        """The networks, images and attacks.

        Raises:
            ConfigError: naming the key and value of what cannot be had.
        """
        with _named("images", self.images.source):
            it = self.images
            images = data.source(
                it.source, split=it.split, n=it.n, seed=it.seed, order=it.order, columns=it.columns,
                preprocessing=it.preprocessing(d.classifier for d in self.defences.values()),
            )  # fmt: skip
        defences = {name: defence(name, section) for name, section in self.defences.items()}
        with _named("device", self.device):
            defences = {name: model.to(self.device) for name, model in defences.items()}
        attacks = {
            name: _attack(name, section, math.prod(images.shape))
            for name, section in self.attacks.items()
        }
        any_step = self.judging.criterion == "any-step"
        criterion = AnyStep(confirm=self.judging.confirm) if any_step else Final()
        judging = Judging(criterion=criterion, purifications=self.judging.purifications)
        suites = {n: _suite(n, section, images.shape) for n, section in self.suites.items()}
        if self.suite is not None:
            with _named("suite", self.suite):
                suites = {self.suite: named.suite(self.suite, images.shape)} | suites
        with _named("defences, attacks and suites", [*defences, *attacks, *suites]):
            return materials_of(defences, images, attacks, judging, suites, checks=self.checks)

    def plan(self, materials: Materials) -> Plan:
        """The plan for these materials."""
        return Plan.of(
            materials, trials=self.trials, batch=self.batch, seed=self.seed, threads=self.threads
        )


def load(path: str | Path) -> Config:
    """Read and validate a file.

    Raises:
        ConfigError: if it is missing, no TOML, or has a key or a value that is not allowed; all of
            them are listed.
    """
    try:
        check_file(path, most=_MAX_BYTES)
        values = tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is no TOML: {error}") from error
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        lines = [_said(problem) for problem in error.errors()]
        raise ConfigError("\n".join(f"{path}: {line}" for line in lines)) from error


_SECTIONS: dict[str, type[BaseModel]] = {
    "images": Images,
    "judging": Judged,
    "defences": Defence,
    "attacks": Attacked,
    "suites": SuiteSection,
}


def _said(problem: Any) -> str:
    """One of pydantic's findings: the key, what is allowed, the value."""
    where = [part for part in problem["loc"] if isinstance(part, str) and "[" not in part]
    key = ".".join(where)
    if problem["type"] == "extra_forbidden":
        section = _SECTIONS[where[0]] if len(where) > 1 else Config
        return f"there is no key {key}; there are {sorted(section.model_fields)}"
    if problem["type"] == "missing":
        return f"{key} is missing"
    said = problem["msg"].removeprefix("Input ").removeprefix("Value error, ")
    return f"{key} {said}, got {problem['input']!r}"


@contextmanager
def _named(key: str, value: Any) -> Iterator[None]:
    """Errors below name the key and its value."""
    try:
        yield
    except ConfigError:
        raise
    except ImportError as error:
        raise ImportError(f"{key} = {value!r}: {error}") from error
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise ConfigError(f"{key} = {value!r}: {error}") from error


def defence(name: str, section: Defence) -> nn.Module:
    key = f"defences.{name}"
    with _named(f"{key}.classifier", section.classifier):
        network = fitted(named.classifier(section.classifier), section.resize, section.crop)
    about = section.model_dump(exclude={"classifier", "votes"}, exclude_defaults=True)
    with _named(key, about):
        purifier = named.purifier(
            section.purifier, section.denoiser, section.preset, section.overrides
        )
    if purifier is None:
        return network
    return DefendedModel(network, purifier, votes=section.votes)


def _suite(name: str, section: SuiteSection, shape: Sequence[int]) -> Suite:
    settings = dict(section.model_extra or {})
    if section.eps is not None:
        settings["eps"] = section.eps
    with _named(f"suites.{name}", {"suite": section.suite or name} | settings):
        return named.suite(section.suite or name, shape, **settings)


def _attack(name: str, section: Attacked, numbers: int) -> Any:
    """The attack; its ε is below the distance at which it may return any image at all."""
    overrides = dict(section.model_extra or {})
    if section.eps is not None:
        overrides["eps"] = section.eps
    with _named(f"attacks.{name}", {"attack": section.attack or name} | overrides):
        made = named.attack(section.attack or name, **overrides)
        bound = bound_of(made)
    most = {math.inf: 1.0, 2.0: math.sqrt(numbers)}.get(bound[0]) if bound else None
    if bound and most is not None and bound[1] >= most:
        raise ConfigError(
            f"attacks.{name}.eps must be above 0 and below {most:g}, for images in [0, 1] (as in "
            f"'8/255'), got {bound[1]!r}"
        )
    return made
