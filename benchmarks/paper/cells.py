"""The paper's tables as data, and the runs that a scale needs for them.

``tables/<table>.toml`` has a table's rows with the paper's figures, and which defence and attack
give ours. Of each this makes configurations of the evaluation; ``run.py`` runs them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.adaptive.run import NAME, ROWS, THREATS
from benchmarks.paper import random_networks
from scoreopt_defense import purifiers
from scoreopt_defense.attacks import ATTACKS, TABLE_5, paper_budget
from scoreopt_defense.evaluation.config import Config, tomllib
from scoreopt_defense.presets import PRESETS

SPECIFICATIONS = Path(__file__).parent / "tables"
TABLES = sorted(path.stem for path in SPECIFICATIONS.glob("*.toml"))
WRN, EDM = "robustbench:Standard", "edm-cifar10-32x32-uncond-vp"


@dataclass(frozen=True, kw_only=True)
class Scale:
    """What a table is run with.

    Attributes:
        classifier, denoiser: of every defence that does not name others.
        defences: sections of a configuration, by name.
        budgets: settings of single attacks, where they are not the paper's.
        autocast: of the attacks that ask a purifier.
        images, trials: of attacks that ask no purifier; and of those that do.
        confirm: purifications of the vote that a break under BPDA is confirmed by.
    """

    classifier: str
    denoiser: str
    defences: Mapping[str, Mapping[str, Any]]
    budgets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    autocast: str | None = None
    images: tuple[int, int]
    trials: tuple[int, int]
    confirm: int = 150
    rest: Mapping[str, Any] = field(default_factory=dict)


def _of_the_paper(kind: str, **settings: Any) -> dict[str, Any]:
    return {"classifier": WRN, "purifier": kind, "denoiser": EDM, **settings}


SCALES = {
    "paper": Scale(
        classifier=WRN,
        denoiser=EDM,
        defences={
            "undefended": {"classifier": WRN},
            "one-shot": _of_the_paper("OneShot", overrides={"sigma": 0.25}),
            "scoreopt-o": _of_the_paper("ScoreOpt", preset="{preset}/O"),
            "scoreopt-n": _of_the_paper("ScoreOpt", preset="{preset}/N"),
            "diffpure": _of_the_paper("DiffPure"),
            "gdmp": _of_the_paper("GDMP"),
            "adp": _of_the_paper("ADP"),
            "menet": {"classifier": WRN, "purifier": "MENet"},
        },
        images=(512, 512),
        trials=(5, 5),
        rest={"batch": 64, "device": "cuda"},
    ),
    "cpu": Scale(
        classifier=NAME,
        denoiser=NAME,
        defences=ROWS,
        budgets={"stadv": {"eot": 3}},  # at 4 its row takes over half an hour
        autocast="bfloat16",
        images=(128, 64),
        trials=(3, 1),
        confirm=50,
        rest={"batch": 32},
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One defence under one attack: a run.

    Attributes:
        defence, attack: their labels, which say all that is not the scale's default.
        section: the defence's, of a configuration.
        attacks: sections by label; more than one where they share a run.
        judged: what is not the scale's default in ``judging``, in words.
        prepared: how images are resized and cropped.
        worst: name of the adaptive benchmark's row about the same defence and threat, if any.
    """

    defence: str
    attack: str
    section: Mapping[str, Any]
    attacks: Mapping[str, Mapping[str, Any]]
    images: int
    trials: int
    judging: Mapping[str, Any]
    rest: Mapping[str, Any]
    judged: str = ""
    prepared: Mapping[str, Any] = field(default_factory=dict)
    worst: str | None = None

    @property
    def run(self) -> str:
        """The folder's name."""
        attack, *others = self.attacks
        if others:
            attack = "corruptions" + "".join(attack.partition(",")[1:])
        judged = self.judged and f", {self.judged}"
        name = f"{self.defence} under {attack}{judged}, {self.images} images, {self.trials} trials"
        return "".join(c if c.isalnum() or c in " -.,=+" else "_" for c in name)

    @property
    def key(self) -> tuple[str, str]:
        """What it is found by: a run has other attacks too, and a defence other runs."""
        return self.run, self.attack

    def config(self, source: str) -> Config:
        """The configuration of its run."""
        clean = {"clean": source}  # of corrupted images that are read from files
        attacks = {n: a | clean if "files" in a else a for n, a in self.attacks.items()}
        return Config.model_validate(
            {
                "images": {"source": source, "n": self.images, "order": "index"} | self.prepared,
                "defences": {self.defence: self.section},
                "attacks": attacks,
                "judging": self.judging,
                "trials": self.trials,
                "checks": False,  # the adaptive benchmark's are of the same defences
                **self.rest,
            }
        )


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of a table, or a point of a figure's curve.

    Attributes:
        group: what it stands under.
        curve, at: of a figure: its curve's name, and its place on the x axis.
        published: the paper's figures, as printed, by column.
        cells: by column; empty where the row is not run at this scale.
    """

    group: str
    name: str
    published: Mapping[str, str]
    cells: Mapping[str, Cell]
    curve: str = ""
    at: float | None = None


@cache
def specification(table: str) -> dict[str, Any]:
    """What ``paper/<table>.toml`` says."""
    return tomllib.loads((SPECIFICATIONS / f"{table}.toml").read_text(encoding="utf-8"))


def rows(
    table: str,
    scale: str,
    *,
    classifier: str | None = None,
    denoiser: str | None = None,
    cifar10_c: str | None = None,
    float32: bool = False,
    random_weights: bool = False,
) -> list[Row]:
    """The rows of a table at a scale.

    Args:
        classifier, denoiser: in place of the scale's own, for what this project can't name.
        cifar10_c: folder of CIFAR-10-C's arrays, in place of corruptions made here.
        float32: whether attacks compute in it, whatever the scale says.
        random_weights: of the same architectures, which no download brings.
    """
    made = _Maker(table, scale, classifier, denoiser, cifar10_c, float32, random_weights)
    return [row for values in specification(table).get("rows", ()) for row in made.rows(values)]


class _Maker:
    """Makes the rows of one table at one scale."""

    def __init__(
        self,
        table: str,
        scale: str,
        classifier: str | None,
        denoiser: str | None,
        cifar10_c: str | None,
        float32: bool,
        random_weights: bool,
    ) -> None:
        self.spec, self.name, self.scale = specification(table), scale, SCALES[scale]
        if float32:
            self.scale = replace(self.scale, autocast=None)
        self.classifier, self.denoiser, self.cifar10_c = classifier, denoiser, cifar10_c
        self.random_weights = random_weights

    def rows(self, values: dict[str, Any]) -> Iterator[Row]:
        """One, or one for each of the values that it varies."""
        vary = values.get("vary")
        points = self._here(values, "values") if vary else [None]
        for at in points:
            changed, curve = dict(values), values["name"]
            if at is not None:
                for part in (self.spec, values):  # what this point alone has
                    changed |= part.get("at", {}).get(f"{at:g}", {})
                where = "attack" if vary == "eot" else "settings"
                given = dict(changed.get(where, {}))
                varied = {vary: at}
                if vary == "weight":
                    varied = {"loss": {"name": given["loss"], "weight": at}}
                changed[where] = given | varied
                changed["name"] = f"{curve}, {WORDS.get(vary, vary)} {at:g}"
            yield Row(
                group=values.get("group", ""), name=changed["name"],
                published=_published(values, at), cells=self._cells(changed),
                curve=curve, at=at,
            )  # fmt: skip

    def _here(self, values: Mapping[str, Any], key: str) -> Any:
        """A value; where it is a table of the scales' names, this one's."""
        found = values.get(key)
        by_scale = isinstance(found, dict) and found.keys() <= SCALES.keys() and found
        return found.get(self.name) if by_scale else found

    def _cells(self, values: dict[str, Any]) -> dict[str, Cell]:
        name = self._here(values, "defence")
        if name is None or self.name not in self.spec.get("scales", SCALES):
            return {}
        defence = self._defence(name, values)
        columns = self.spec["columns"] | values.get("columns", {})
        return {
            column: self._cell(*defence, told, values)
            for column, told in columns.items()
            if told not in ("mean", "")
        }

    def _defence(self, name: str, values: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """Its label and section."""
        threat = values.get("threat", "")
        section = json.loads(json.dumps(self.scale.defences.get(name, {"classifier": name})))
        settings = dict(values.get("settings", {})) | dict(values.get(f"settings_{self.name}", {}))
        named = ""
        if "{preset}" in section.get("preset", ""):
            preset = values.get("preset", self.spec.get("preset", "")).format(threat=threat)
            section["preset"] = section["preset"].format(preset=preset)
            named = f", {preset}"
        known = PRESETS.get(section.get("preset", ""), {}) | section.get("overrides", {})
        settings = _changed(settings, known)
        label = _labelled(name.rpartition("/")[2], settings) + named
        networks = {"classifier": self.classifier, "denoiser": self.denoiser}
        for part, given in networks.items():
            own = self._here(values, part) or self._here(self.spec, part)
            default = section.get(part) == getattr(self.scale, part)
            if default and (chosen := given or own):
                section[part] = chosen
                label += f", {part} {chosen.rpartition('/')[2]}"
            if self.random_weights and part in section:
                section[part] = random_networks.named(section[part])
        if self.random_weights:
            label += ", random weights"
        section |= self.spec.get("fit", {})
        if "purifier" in section:
            most = {"max_batch": self.spec.get("max_batch", 256)} if self.name == "paper" else {}
            section["overrides"] = section.get("overrides", {}) | most | settings
        return label, section

    def _cell(self, label: str, section: dict[str, Any], told: Any, values: dict[str, Any]) -> Cell:
        """Of one column, which is an attack's name, or that with settings under ``attack``."""
        threat = values.get("threat", "")
        given = {"attack": told} if isinstance(told, str) else dict(told)
        base = given.pop("attack").format(threat=threat)
        if base == "clean":  # judged in every run: in that of the column "robust"
            columns = self.spec["columns"] | values.get("columns", {})
            first = next(c for c in columns.values() if c not in ("clean", "mean", ""))
            met = self._cell(label, section, first, values)
            return replace(met, attack="clean", worst=None)
        if base.startswith("corruptions/"):
            files = {"files": self.cifar10_c} if self.cifar10_c else {}
            given = {} if files else self.spec.get(f"budget_{self.name}", {})
            corruptions = {
                _labelled(c, given): {"attack": "corruptions", "corruption": c} | given | files
                for c in TABLE_5
            }
            one = _labelled(base.partition("/")[2], given)
            return self._made(label, section, one, corruptions, values, asks=False)
        budget = dict(self.scale.budgets.get(base, {}))
        budget |= self.spec.get(f"budget_{self.name}", {}) | values.get("attack", {})
        budget |= values.get(f"attack_{self.name}", {}) | given
        if "purifier" not in section and "eot" in paper_budget(base):
            budget["eot"] = 1  # it answers in one way only
        budget = _changed(budget, paper_budget(base))
        asks = not base.startswith("transfer")
        name, sections = _labelled(base, budget), {"attack": base, **budget}
        if asks and self.scale.autocast:
            sections["autocast"] = self.scale.autocast
        norm = ATTACKS[base].as_dict().get("norm")
        row = values.get("worst") or _row_of(section) if self.name == "cpu" else None
        in_its_ball = norm in THREATS and "eps" not in budget
        worst = f"{row}_{norm}" if row and in_its_ball else None
        return self._made(label, section, name, {name: sections}, values, asks=asks, worst=worst)

    def _made(
        self, defence: str, section: dict[str, Any], name: str, attacks: dict[str, Any],
        values: dict[str, Any], *, asks: bool, worst: str | None = None,
    ) -> Cell:  # fmt: skip
        judging: dict[str, Any] = {"purifications": 8}
        judged = ""
        if name.startswith("bpda"):
            confirm = values.get(f"confirm_{self.name}", self.scale.confirm)
            judging |= {"criterion": "any-step", "confirm": confirm}
            judged = f"confirm {confirm}" if confirm != self.scale.confirm else ""
        judging |= self.spec.get(f"judging_{self.name}", {})
        trials = self.spec.get(f"trials_{self.name}", self.scale.trials[asks])
        return Cell(
            defence=defence, attack=name, section=section, attacks=attacks, judging=judging,
            judged=judged, images=self.spec.get(f"images_{self.name}", self.scale.images[asks]),
            trials=trials, rest=self.scale.rest, prepared=self.spec.get("prepared", {}),
            worst=worst,
        )  # fmt: skip


def _row_of(section: Mapping[str, Any]) -> str | None:
    """The adaptive benchmark's row of the same defence, if it has one."""
    asked = _in_full(section)
    return next((row for row, own in ROWS.items() if _in_full(own) == asked), None)


def _in_full(section: Mapping[str, Any]) -> dict[str, Any]:
    """A defence with every setting of its purifier, be it given, of its preset or the default."""
    named = {key: value for key, value in section.items() if key not in ("preset", "overrides")}
    known = section.get("purifier") in purifiers.KINDS  # a function's has what it was made with
    return named | {"settings": settings_of(section) if known else section.get("overrides", {})}


def settings_of(section: Mapping[str, Any]) -> purifiers.PurifierSettings:
    """The settings of a section's purifier."""
    given = PRESETS.get(section.get("preset", ""), {}) | section.get("overrides", {})
    return purifiers.KINDS[section["purifier"]].Settings.from_dict(given)


WORDS = {"weight": "lambda", "eot": "replicates"}


def _published(values: dict[str, Any], at: float | None) -> dict[str, str]:
    """The paper's figures; of a curve, those at this place."""
    found = values.get("published", {})
    return found if at is None else found.get(f"{at:g}", {})


def _changed(settings: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that are not what they would be anyway: equal cells then have equal labels."""
    as_json = json.loads(json.dumps(known))
    return {name: value for name, value in settings.items() if as_json.get(name) != value}


def _labelled(name: str, settings: Mapping[str, Any]) -> str:
    """A name that says its settings: one of the same name is the same."""

    def said(value: Any) -> str:
        if isinstance(value, dict):
            return " ".join(map(str, value.values()))
        return "-".join(map(str, value)) if isinstance(value, list) else str(value)

    return ", ".join([name, *(f"{key} {said(value)}" for key, value in settings.items())])


def cells(
    table: str,
    scale: str,
    *,
    images: int | None = None,
    named: Sequence[str] | None = None,
    **settings: Any,
) -> list[Cell]:
    """The cells of a table, each once.

    Args:
        images: how many, in place of the scale's.
        named: the rows of these names alone.
        **settings: as of :func:`rows`.

    Raises:
        ValueError: if no row has one of the names.
    """
    every = rows(table, scale, **settings)
    if other := set(named or ()) - {row.name for row in every}:
        known = ", ".join(repr(row.name) for row in every)
        raise ValueError(f"{table} has no row {', '.join(map(repr, sorted(other)))}, but {known}")
    made = (c for r in every if named is None or r.name in named for c in r.cells.values())
    chosen = (c if images is None else replace(c, images=images) for c in made)
    return list({c.key: c for c in chosen}.values())
