"""A run as a TOML file: what to defend, on which images, against what, and how to judge."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import nn

from scoreopt_defense import data
from scoreopt_defense._checks import check_file
from scoreopt_defense._mapped import map_weights
from scoreopt_defense._memory import give_back_freed_memory
from scoreopt_defense._optional import optional
from scoreopt_defense.defended import DefendedModel
from scoreopt_defense.evaluation import named
from scoreopt_defense.evaluation.evaluate import materials_of
from scoreopt_defense.evaluation.judging import AnyStep, Final, Judging
from scoreopt_defense.evaluation.judging.threat_model import bound_of
from scoreopt_defense.evaluation.plan import Materials, Plan
from scoreopt_defense.evaluation.plan.plan import MOST_THREADS
from scoreopt_defense.evaluation.plan.tasks import Suite
from scoreopt_defense.evaluation.sections import (
    Attacked,
    Certify,
    Count,
    Defence,
    Images,
    Judged,
    Section,
    Seed,
    SuiteSection,
)
from scoreopt_defense.sizes import Fitted

from pydantic import (  # isort: skip  # which sections found
    BaseModel,
    Field,
    ValidationError,
    WrapValidator,
)

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = optional("tomli", extra="evaluate")

__all__ = ["Config", "ConfigError", "defence", "load"]


_MAX_BYTES = 2**20  # of a file: more than anybody writes


class ConfigError(ValueError):
    """A configuration that cannot be run, naming the key, its value and what is allowed."""


OrAuto = WrapValidator(lambda value, count: None if value == "auto" else count(value))


class Config(Section):
    """What the file says; see :func:`scoreopt_defense.evaluate`."""

    images: Images
    """What to attack."""
    defences: Annotated[dict[str, Defence], Field(min_length=1)]
    """By name."""
    attacks: dict[str, Attacked] = {}
    """By name; the clean images are always judged."""
    suite: str | None = None
    """The name of one at its own settings: ``"quick"`` or ``"adaptive"``."""
    suites: dict[str, SuiteSection] = {}
    """By name, with settings."""
    certify: Certify | None = None
    """How ``scoreopt certify`` certifies the defences."""
    judging: Judged = Judged()
    """When an image counts as broken."""
    checks: bool = Field(default=True, strict=True)
    """Whether what the attacks' checks rest on is run too."""
    keep: Literal["all", "worst", "none"] = "all"
    """Which attacked images stay when the run is finished."""
    trials: Count = 1
    """Repetitions with other seeds."""
    batch: Annotated[int | None, Field(ge=1, strict=True), OrAuto] = 32
    """Images a unit of work, or ``"auto"``."""
    seed: Seed = 0
    """Of attacks and purifications."""
    threads: Annotated[int | None, Field(ge=1, le=MOST_THREADS, strict=True), OrAuto] = 1
    """Of each worker, or ``"auto"``."""
    device: str = "cpu"
    """``"cpu"``, ``"cuda"``, ``"cuda:1"`` or ``"mps"``."""

    def source(self) -> data.Source:
        """The images."""
        it = self.images
        with _named("images", it.model_dump()):
            return data.source(
                it.source, split=it.split, n=it.n, seed=it.seed, order=it.order, columns=it.columns,
                preprocessing=it.preprocessing(d.classifier for d in self.defences.values()),
            )  # fmt: skip

    def defence(self, name: str) -> nn.Module:
        """A defence, on the device."""
        device = _device(self.device)
        model = defence(name, self.defences[name])
        with _named("device", device):
            model = model.to(device)
        map_weights(model)
        give_back_freed_memory()  # its own, which building it took, and where its weights lay
        return model

    def materials(self, before: Callable[[], Plan | None] = lambda: None) -> Materials:
        """The networks, images and attacks.

        Args:
            before: the plan that the run goes on with, if it does; asked for where it matters.

        Raises:
            ConfigError: naming the key and value of what cannot be had.
        """
        images = self.source()
        defences = {name: self.defence(name) for name in self.defences}
        attacks = {
            name: _attack(name, section, math.prod(images.shape))
            for name, section in self.attacks.items()
        }
        criterion = (
            AnyStep(confirm=self.judging.confirm)
            if self.judging.criterion == "any-step"
            else Final()
        )
        judging = Judging(criterion=criterion, purifications=self.judging.purifications)
        suites = {n: _suite(n, section) for n, section in self.suites.items()}
        if self.suite is not None:
            with _named("", {"suite": self.suite}):
                usual = named.suite(self.suite)
            label = self.suite.lower()
            suites = {next((n for n in suites if n.lower() == label), label): usual} | suites
        try:
            return materials_of(
                defences, images, attacks, judging, suites, checks=self.checks, before=before
            )
        except (OSError, ValueError, TypeError, RuntimeError) as error:
            raise ConfigError(str(error)) from error  # which names what it is about

    def plan(self, materials: Materials, **found: int) -> Plan:
        """The plan for these materials, with the ``batch`` and ``threads`` that were found."""
        sizes: dict[str, Any] = {"batch": self.batch, "threads": self.threads} | found
        return Plan.of(materials, trials=self.trials, seed=self.seed, **sizes)


def load(path: str | Path) -> Config:
    """Read and validate a file.

    Raises:
        ConfigError: if it is missing, no TOML, or has a key or a value that is not allowed; all of
            them are listed.
    """
    text = ""
    try:
        check_file(path, most=_MAX_BYTES)
        text = Path(path).read_text(encoding="utf-8-sig")
        values = tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is no TOML: {error}{_fraction_in(text)}") from error
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        lines = [_said(problem) for problem in error.errors()]
        raise ConfigError("\n".join(f"{path}: {line}" for line in lines)) from error


def _fraction_in(text: str) -> str:
    """What may be wrong with a file: a fraction is text, which TOML wants in quotes."""
    found = re.search(r"^\s*([\w-]+)\s*=\s*(\d+\s*/\s*\d+)", text, re.M)
    return f'; write a fraction in quotes: {found[1]} = "{found[2]}"' if found else ""


def _device(name: str) -> torch.device:
    """Where the networks are put, if it is there."""
    try:
        device = torch.device(name.lower())
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(
            'device must be "cpu", "cuda", "cuda:1" (the second GPU) or "mps" (Apple\'s), and be '
            f"there, got {name!r}: {str(error).splitlines()[0]}"
        ) from error
    return device


_SECTIONS: dict[str, type[BaseModel]] = {
    "images": Images,
    "judging": Judged,
    "defences": Defence,
    "attacks": Attacked,
    "suites": SuiteSection,
    "certify": Certify,
}


def _said(problem: Any) -> str:
    """One of pydantic's findings: the key, what is allowed, the value."""
    where = [part for part in problem["loc"] if isinstance(part, str) and "[" not in part]
    key = ".".join(where)
    if problem["type"] == "extra_forbidden":
        section = _SECTIONS[where[0]] if len(where) > 1 else Config
        near = get_close_matches(where[-1].lower(), section.model_fields, 1)
        hint = f": did you mean {near[0]}?" if near else ""
        if len(where) > 1 and where[-1] in Config.model_fields:
            hint = ": if it is meant for the whole file, put it before the first [section]"
        return f"there is no key {key}{hint}; there are {sorted(section.model_fields)}"
    if problem["type"] == "missing":
        return f"{key} is missing"
    said = problem["msg"].removeprefix("Input ").removeprefix("Value error, ")
    return f"{key} {said}, got {problem['input']!r}"


@contextmanager
def _named(key: str, value: Any) -> Iterator[None]:
    """Errors below name the key and its value; of a section that of its keys which they begin with.

    Raises:
        ConfigError, ImportError: in place of them.
    """
    try:
        yield
    except ConfigError:
        raise
    except (ImportError, OSError, ValueError, TypeError, RuntimeError) as error:
        said = f"{key} = {value!r}: {error}"
        if isinstance(value, Mapping):
            said = (
                f"{key}.{error}".lstrip(".")
                if str(error).partition(" ")[0] in value
                else f"{key}: {error}"
            )
        kind = ImportError if isinstance(error, ImportError) else ConfigError
        raise kind(said) from error


def defence(name: str, section: Defence) -> nn.Module:
    """What a section of the file defends, as a module; errors name ``defences.<name>``."""
    key = f"defences.{name}"
    with _named(f"{key}.classifier", section.classifier):
        network = named.classifier(section.classifier)
        if (section.resize, section.crop) != (None, None):
            network = Fitted(network, resize=section.resize, crop=section.crop)
    about = section.model_dump(exclude={"classifier", "votes"}, exclude_defaults=True)
    with _named(key, about):
        purifier = named.purifier(
            section.purifier, section.denoiser, section.preset, section.overrides
        )
    if purifier is None:
        return network
    return DefendedModel(network, purifier, votes=section.votes)


def _suite(name: str, section: SuiteSection) -> Suite:
    settings = dict(section.model_extra or {})
    if section.eps is not None:
        settings["eps"] = section.eps
    with _named(f"suites.{name}", {"suite": section.suite or name} | settings):
        return named.suite(section.suite or name, **settings)


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
